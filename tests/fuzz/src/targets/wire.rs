//! What arrives over the transport: messages of both directions, signed envelopes, records of a spool.

use core::time::Duration;

use picket_wire::capture::{CHUNK_MAX, Chunk};
use picket_wire::codec::{decode, encode};
use picket_wire::command::Command;
use picket_wire::envelope;
use picket_wire::event::{Event, Live};
use picket_wire::path::{Found, PACKED_MAX, PathBatch, TracedPath};
use picket_wire::result::Record;

/// Paths; what was believed can be packed again.
fn paths(batch: &PathBatch) {
    let dst = [192, 0, 2, 1].into();
    let believed = batch.check().is_ok();
    for path in &batch.paths {
        let found = path.found(dst, batch.tos);
        let Found::Path(unpacked) = &found else { continue };
        let again = TracedPath::path(path.position, Duration::ZERO, unpacked, batch.tos);
        assert!(!believed || path.size() > PACKED_MAX || again.found(dst, batch.tos) == found);
    }
}

/// Bytes of a capture's file: as many as the chunk says, or none; what was believed can be packed again.
fn chunk_of(chunk: &Chunk) {
    if let Ok(bytes) = chunk.unpack() {
        assert!(bytes.len() == chunk.len as usize && bytes.len() <= CHUNK_MAX);
        assert_eq!(Chunk::pack(chunk.lease, chunk.offset, &bytes).unpack(), Ok(bytes));
    }
}

/// Messages; what was read is written and read as the same.
pub(crate) fn message(bytes: &[u8]) {
    if let Ok(record) = decode::<Record>(bytes) {
        if let Record::Batch(batch) = &record {
            if let Ok(coverage) = batch.check() {
                assert!(coverage.adds_up());
            }
        } else {
            assert_eq!(decode::<Record>(&encode(&record)).as_ref(), Ok(&record));
        }
        if let Record::Captured(captured) = &record {
            let _ = captured.check();
        }
        if let Record::Paths(batch) = &record {
            paths(batch);
        }
    }
    if let Ok(event) = decode::<Event>(bytes) {
        if let Event::Chunk(chunk) = &event {
            chunk_of(chunk);
        }
        assert_eq!(decode::<Event>(&encode(&event)).as_ref(), Ok(&event));
    }
    let _ = (decode::<Live>(bytes), decode::<Command>(bytes));
}

/// Envelopes: nothing that nobody signed is believed.
pub(crate) fn envelope(bytes: &[u8]) {
    assert!(envelope::open(bytes, &[]).is_err(), "without a key nothing is signed");
}
