//! What arrives over the transport: messages of both directions, signed envelopes, records of a spool.

use core::time::Duration;

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
        if let Record::Paths(batch) = &record {
            paths(batch);
        }
    }
    if let Ok(event) = decode::<Event>(bytes) {
        assert_eq!(decode::<Event>(&encode(&event)).as_ref(), Ok(&event));
    }
    let _ = (decode::<Live>(bytes), decode::<Command>(bytes));
}

/// Envelopes: nothing that nobody signed is believed.
pub(crate) fn envelope(bytes: &[u8]) {
    assert!(envelope::open(bytes, &[]).is_err(), "without a key nothing is signed");
}
