//! Files of captured packets, and indexes of them.

use picket_packet::UnixNanos;
use picket_packet::pcapng::read::{Block, Blocks, Reader, Step};
use picket_packet::pcapng::{Packet, write};
use picket_probe::capture::bpf::{Instruction, Program};
use picket_probe::capture::ring::Question;
use picket_probe::capture::ring::index::{Builder, End, HEADER, Header, Key, Record, Records};

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

/// The first byte chooses: an index as it lies on a disk, one whose checksums are right, a segment of which one is made, or a filter's program.
pub(crate) fn ring(bytes: &[u8]) {
    let (kind, bytes) = bytes.split_first().map_or((0, bytes), |(kind, rest)| (kind % 4, rest));
    match kind {
        0 => {
            let header = Header::parse(bytes).unwrap_or_else(any_header);
            records(&header, bytes);
            End::parse(bytes);
        }
        1 => records(&any_header(), &sealed(bytes)),
        2 => indexed(bytes),
        _ => program(bytes),
    }
}

fn any_header() -> Header {
    Header::new(Key([9; 16]), 1, b"head")
}

/// An index of bodies that are each as long as the byte in front of them says, twice.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut index = std::mem::take(Builder::new(&any_header()).out());
    let mut chain = index.last_chunk().map_or(0, |seed| u32::from_le_bytes(*seed));
    let mut rest = bytes;
    while let Some((len, after)) = rest.split_first() {
        let (body, after) = after.split_at(after.len().min(2 * usize::from(*len)));
        chain = crc32c::crc32c_append(chain, body);
        index.extend((body.len() as u16).to_le_bytes());
        index.extend(chain.to_le_bytes());
        index.extend(body);
        rest = after;
    }
    index
}

fn records(header: &Header, index: &[u8]) {
    let mut records = Records::new(header, index);
    let mut offset = u64::from(header.head_len);
    let question = Question { hosts: vec![[198, 18, 0, 1].into()], to: UnixNanos(7), ..Question::default() };
    let hashes = question.hashes(&header.key);
    for record in records.by_ref() {
        if let Record::Extent(extent) = record {
            assert_eq!(extent.offset, offset, "without a gap");
            offset += u64::from(extent.len);
            question.wants_extent(&extent, &hashes);
        }
    }
    assert_eq!(records.covered(), offset);
}

/// What a file's packets match is wanted by the index of it.
fn indexed(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    let header = any_header();
    let mut builder = Builder::new(&header);
    let question = Question { hosts: vec![[198, 18, 0, 1].into(), [198, 18, 0, 2].into()], ..Question::default() };
    let (mut link_type, mut wanted, mut len) = (1, false, u64::from(header.head_len));
    while let Ok(Some((block, block_len))) = reader.next_sized() {
        if let Block::Interface(interface) = &block {
            link_type = interface.link_type;
        }
        wanted |= matches!(&block, Block::Packet(packet) if question.matches(link_type, packet));
        builder.block(link_type, &block, block_len);
        len += block_len as u64;
    }
    builder.finish(len, None);
    let index = std::mem::take(builder.out());
    let hashes = question.hashes(&header.key);
    let mut found = Records::new(&header, &index);
    let may = found.by_ref().filter(|record| matches!(record, Record::Extent(extent) if question.wants_extent(extent, &hashes))).count();
    assert!(found.covered() == len && (!wanted || may > 0));
    assert!(index.len() > HEADER && End::parse(&index).is_some_and(|end| end.len == len));
}

/// Instructions of seven bytes each, and behind as many as the first byte says the packet.
fn program(bytes: &[u8]) {
    let Some((count, rest)) = bytes.split_first() else { return };
    let (code, data) = rest.split_at(rest.len().min(usize::from(*count) * 7));
    let instruction = |bytes: &[u8; 7]| {
        let [code, yes, no, k @ ..] = *bytes;
        Instruction { code: code.into(), yes, no, k: u32::from_le_bytes(k) }
    };
    let program = Program(code.as_chunks().0.iter().map(instruction).collect());
    let packet = Packet { interface: 0, time: UnixNanos(0), original_len: data.len() as u32 + 9, data };
    program.wants(packet.data, packet.original_len);
}
