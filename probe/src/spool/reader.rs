//! Reading in order, cheaply: a cursor stays where the last read ended.

use std::time::Duration;

use super::fs::{Filesystem, SpoolFile};
use super::record::{self, At, RECORD_HEADER, SEGMENT_HEADER};
use super::{Entry, Segment, Spool, SpoolError};

/// What is read at a time: large enough to make the system call cheap, small enough for a box of 512 MB.
const CHUNK: usize = 64 * 1024;

/// A place in the log.
pub(super) struct Cursor<F> {
    index: u64,
    file: F,
    offset: u64,
    /// The number of the last record before this place.
    after: u64,
}

/// A record, and the ranges that are missing just before it (empty where nothing is).
type Step = (Entry, [(u64, u64); 2]);

/// Bytes of a segment from `base` on.
struct Window {
    base: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn at(&self, offset: u64) -> usize {
        offset.saturating_sub(self.base) as usize
    }
}

impl<S: Filesystem> Spool<S> {
    /// Records from number `seq` on that are on the disk, in order, up to `max_bytes` of payload (one at least, if any).
    ///
    /// # Errors
    /// A file cannot be read. A damaged record is no error: it is counted in [`Spool::loss`] and passed over.
    pub fn read_from(&mut self, now: Duration, seq: u64, max_bytes: usize) -> Result<Vec<Entry>, SpoolError> {
        let mut out: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        if seq > self.synced {
            return Ok(out);
        }
        // The cursor is good where nothing wanted lies before it.
        let mut cursor = match self.cursor.take() {
            Some(cursor) if self.reaches(&cursor, seq) => cursor,
            _ => match self.seek(seq)? {
                Some(cursor) => cursor,
                None => return Ok(out),
            },
        };
        let mut window = Window { base: cursor.offset, bytes: Vec::new() };
        while let Some(segment) = self.segment(cursor.index).cloned() {
            let at = cursor.offset;
            match self.step(&mut cursor, &mut window, &segment)? {
                Some((entry, _)) if entry.seq > self.synced => {
                    cursor.offset = at;
                    cursor.after = entry.after;
                    break;
                }
                Some((entry, holes)) => {
                    self.note_missing(now, holes);
                    if entry.seq < seq {
                        continue;
                    }
                    let size = entry.payload.len();
                    if !out.is_empty() && bytes + size > max_bytes {
                        cursor.offset = at;
                        cursor.after = entry.after;
                        break;
                    }
                    bytes += size;
                    out.push(entry);
                }
                None => {
                    if cursor.after < segment.last && segment.last <= self.synced {
                        let from = cursor.after.max(segment.first - 1) + 1;
                        self.note_missing(now, [(from, segment.last)]);
                    }
                    match self.enter_next(&cursor, cursor.after.max(segment.last))? {
                        Some(next) => cursor = next,
                        None => break,
                    }
                    window = Window { base: 0, bytes: Vec::new() };
                }
            }
        }
        self.cursor = Some(cursor);
        Ok(out)
    }

    /// Calls `visit` with every record that is not acknowledged, oldest first: for the start, when the caller finds out
    /// what it had done before.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn for_each_unacked(&mut self, now: Duration, mut visit: impl FnMut(&Entry)) -> Result<(), SpoolError> {
        let mut next = self.state.acked + 1;
        loop {
            let entries = self.read_from(now, next, 4 * CHUNK)?;
            let Some(last) = entries.last() else { return Ok(()) };
            next = last.seq + 1;
            entries.iter().for_each(&mut visit);
        }
    }

    /// The next record at the cursor, which moves behind it.
    fn step(&mut self, cursor: &mut Cursor<S::File>, window: &mut Window, segment: &Segment) -> Result<Option<Step>, SpoolError> {
        let mut need = RECORD_HEADER;
        while cursor.offset < segment.len {
            let have = (window.base + window.bytes.len() as u64).saturating_sub(cursor.offset);
            if cursor.offset < window.base || have < need as u64 {
                let whole = self.segment(segment.index).is_some_and(|s| s.damaged);
                let base = if whole { 0 } else { cursor.offset };
                let want = if whole { segment.len } else { (segment.len - base).min(need.max(CHUNK) as u64) };
                let mut bytes = std::mem::take(&mut window.bytes);
                bytes.resize(want as usize, 0);
                let read = cursor.file.read_at(&mut bytes, base);
                let read = read.map_err(|e| SpoolError::io("read spool segment", &self.segment_path(segment.index), e))?;
                bytes.truncate(read);
                *window = Window { base, bytes };
            }
            let frame = match record::frame_at(self.state.stream, &window.bytes, window.at(cursor.offset)) {
                At::Frame(frame) if frame.seq > cursor.after => Some(frame),
                At::Frame(frame) => {
                    // Left over from before a failed sync; the same record is already behind us.
                    cursor.offset = window.base + frame.payload.end as u64;
                    need = RECORD_HEADER;
                    continue;
                }
                At::Need(more) if cursor.offset + more as u64 <= segment.len && need < more => {
                    need = more;
                    continue;
                }
                _ => {
                    if !self.mark_damaged(segment.index) {
                        // Known as damaged: the window holds the whole segment.
                        record::search(self.state.stream, &window.bytes, window.at(cursor.offset), cursor.after)
                    } else {
                        need = segment.len as usize;
                        window.bytes.clear();
                        continue;
                    }
                }
            };
            let Some(frame) = frame else { break };
            let after = cursor.after;
            cursor.offset = window.base + frame.payload.end as u64;
            cursor.after = frame.seq;
            let payload = window.bytes.get(frame.payload.clone()).unwrap_or_default().to_vec();
            let missing = missing_before(after, frame.seq, segment);
            // What is acknowledged is no longer needed to reach this record, wherever it went.
            let after = after.max(self.state.acked.min(frame.seq - 1));
            return Ok(Some((Entry { seq: frame.seq, after, payload }, missing)));
        }
        cursor.offset = segment.len.max(cursor.offset);
        Ok(None)
    }

    fn note_missing(&mut self, now: Duration, ranges: impl IntoIterator<Item = (u64, u64)>) {
        for (from, to) in ranges {
            if from <= to {
                for (low, high) in self.count_missing(from, to) {
                    log::error!("the spool lost records {low} to {high}: the disk returns damaged data");
                    self.touch_state(now, self.config.fsync_interval);
                }
            }
        }
    }

    /// Whether reading on from the cursor comes to `seq` without a detour.
    fn reaches(&self, cursor: &Cursor<S::File>, seq: u64) -> bool {
        let near = |segment: &Segment| seq == cursor.after + 1 || seq <= segment.last;
        seq > cursor.after && self.segment(cursor.index).is_some_and(near)
    }

    fn segment(&self, index: u64) -> Option<&Segment> {
        self.segments.binary_search_by_key(&index, |s| s.index).ok().and_then(|i| self.segments.get(i))
    }

    /// Says whether this is news.
    fn mark_damaged(&mut self, index: u64) -> bool {
        match self.segments.iter_mut().find(|s| s.index == index) {
            Some(segment) if !segment.damaged => {
                segment.damaged = true;
                true
            }
            _ => false,
        }
    }

    fn enter(&self, index: u64, after: u64) -> Result<Cursor<S::File>, SpoolError> {
        let path = self.segment_path(index);
        let file = self.fs.open(&path).map_err(|e| SpoolError::io("open spool segment", &path, e))?;
        Ok(Cursor { index, file, offset: SEGMENT_HEADER as u64, after })
    }

    /// The start of the segment that holds `seq`, or of the first one after it.
    fn seek(&self, seq: u64) -> Result<Option<Cursor<S::File>>, SpoolError> {
        let place = self.segments.partition_point(|s| s.last < seq);
        let Some(segment) = self.segments.get(place) else { return Ok(None) };
        let before = place.checked_sub(1).and_then(|i| self.segments.get(i)).map_or(segment.prev, |s| s.last);
        self.enter(segment.index, before).map(Some)
    }

    fn enter_next(&self, cursor: &Cursor<S::File>, after: u64) -> Result<Option<Cursor<S::File>>, SpoolError> {
        let place = self.segments.partition_point(|s| s.index <= cursor.index);
        let Some(segment) = self.segments.get(place) else { return Ok(None) };
        self.enter(segment.index, after).map(Some)
    }
}

/// What is missing between `after` and `seq`, less the numbers that the segment's header declares unused.
pub(super) fn missing_before(after: u64, seq: u64, segment: &Segment) -> [(u64, u64); 2] {
    let before = (after + 1, segment.prev.min(seq - 1));
    let within = ((after + 1).max(segment.first), seq - 1);
    [before, within]
}
