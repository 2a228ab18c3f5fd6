//! Files of captured packets.

use picket_probe::capture::pcapng::read::{Block, Blocks, Reader, Step};
use picket_probe::capture::pcapng::write;

/// A file that somebody else wrote, or that was cut or damaged.
pub(crate) fn pcapng(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    let mut read = 0;
    while let Ok(Some(block)) = reader.next_block() {
        rewrite(&block);
        read += 1;
    }
    assert!(reader.offset() <= bytes.len() as u64);
    // Shown as a whole, it reads the same.
    let (mut blocks, mut at, mut seen) = (Blocks::new(), 0, 0);
    while let Ok(Step::Block(_, len)) = blocks.next(bytes.get(at..).unwrap_or_default()) {
        at += len;
        seen += 1;
    }
    assert_eq!((at as u64, seen), (reader.offset(), read), "in pieces and as a whole");
}

/// A packet that was read is one that can be written.
fn rewrite(block: &Block<'_>) {
    if let Block::Packet(packet) = block {
        let mut out = Vec::new();
        write::packet(packet, &mut out);
        assert!(out.len() >= packet.data.len() + 32);
    }
}
