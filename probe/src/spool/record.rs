//! Bytes of one record and of one segment's header; see the format in [`super`].
//!
//! **Invariant:** no input makes these functions panic, and none of them does IO.

use core::ops::Range;

use picket_wire::ids::StreamId;

use super::MAX_RECORD;

/// Bytes before each record's payload.
pub(super) const RECORD_HEADER: usize = 24;
/// Bytes at the start of each segment.
pub(super) const SEGMENT_HEADER: usize = 40;
const SEGMENT_MAGIC: [u8; 8] = *b"PKSPOOL1";

/// One record found in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its number.
    pub(super) seq: u64,
    /// The newest number that was known to be on the disk when this one was written.
    pub(super) synced: u64,
    /// Where the payload lies in the buffer.
    pub(super) payload: Range<usize>,
}

/// What is at one place of a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At {
    /// A whole, sound record.
    Frame(Frame),
    /// It may be a record, but the buffer must hold this many bytes from here to tell.
    Need(usize),
    /// A sound header whose payload is damaged; the next record is this many bytes on.
    Damaged(usize),
    /// No record begins here.
    Garbage,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// Checksums begin with the stream, so that bytes of an earlier spool on the same blocks are never taken for ours.
fn checksum(stream: StreamId, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&stream.0.to_le_bytes()), bytes)
}

/// Appends one record's bytes to `out`.
pub(super) fn encode(stream: StreamId, seq: u64, synced: u64, payload: &[u8], out: &mut Vec<u8>) {
    let mut head = [0u8; RECORD_HEADER];
    let unsynced = u32::try_from(seq.saturating_sub(synced)).unwrap_or(u32::MAX);
    head[4..8].copy_from_slice(&checksum(stream, payload).to_le_bytes());
    head[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    head[12..16].copy_from_slice(&unsynced.to_le_bytes());
    head[16..24].copy_from_slice(&seq.to_le_bytes());
    let sum = checksum(stream, &head[4..]);
    head[..4].copy_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(payload);
}

/// Reads what begins at `at`.
pub(super) fn frame_at(stream: StreamId, buf: &[u8], at: usize) -> At {
    let Some(head) = buf.get(at..at.saturating_add(RECORD_HEADER)) else {
        return At::Need(RECORD_HEADER);
    };
    let fields = (word(head, 0), word(head, 4), word(head, 8), word(head, 12), long(head, 16));
    let (Some(sum), Some(payload_sum), Some(len), Some(unsynced), Some(seq)) = fields else {
        return At::Garbage;
    };
    let len = len as usize;
    if sum != checksum(stream, &head[4..]) || len > MAX_RECORD || seq == 0 {
        return At::Garbage;
    }
    let start = at + RECORD_HEADER;
    match buf.get(start..start + len) {
        None => At::Need(RECORD_HEADER + len),
        Some(payload) if checksum(stream, payload) != payload_sum => At::Damaged(RECORD_HEADER + len),
        Some(_) => At::Frame(Frame { seq, synced: seq.saturating_sub(u64::from(unsynced)), payload: start..start + len }),
    }
}

/// The first sound record at or after `at` whose number is above `after`, in a buffer that holds the segment to its end.
pub(super) fn search(stream: StreamId, buf: &[u8], mut at: usize, after: u64) -> Option<Frame> {
    while at + RECORD_HEADER <= buf.len() {
        match frame_at(stream, buf, at) {
            At::Frame(frame) if frame.seq > after => return Some(frame),
            At::Frame(frame) => at = frame.payload.end,
            At::Damaged(skip) => at += skip,
            At::Need(_) | At::Garbage => at += 1,
        }
    }
    None
}

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHead {
    /// The stream it belongs to.
    pub(super) stream: StreamId,
    /// The last record before this segment; everything up to it was on the disk when the segment was made.
    pub(super) prev: u64,
    /// The number of its first record; numbers between `prev` and this were never given to anything published.
    pub(super) first: u64,
}

/// Bytes of a segment's header.
pub(super) fn encode_head(head: SegmentHead) -> [u8; SEGMENT_HEADER] {
    let mut bytes = [0u8; SEGMENT_HEADER];
    bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
    bytes[8..16].copy_from_slice(&head.stream.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&head.prev.to_le_bytes());
    bytes[24..32].copy_from_slice(&head.first.to_le_bytes());
    let sum = crc32c::crc32c(&bytes[..36]);
    bytes[36..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Reads a segment's header; `None` where it is not a sound one.
pub(super) fn decode_head(bytes: &[u8]) -> Option<SegmentHead> {
    let bytes = bytes.get(..SEGMENT_HEADER)?;
    if bytes[..8] != SEGMENT_MAGIC || word(bytes, 36)? != crc32c::crc32c(&bytes[..36]) {
        return None;
    }
    let head = SegmentHead { stream: StreamId(long(bytes, 8)?), prev: long(bytes, 16)?, first: long(bytes, 24)? };
    (head.first > head.prev).then_some(head)
}
