//! Opening: what is on the disk after whatever happened, and what is missing from it.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use picket_wire::ids::StreamId;

use super::fs::{Filesystem, SpoolFile};
use super::reader::missing_before;
use super::record::{self, RECORD_HEADER, SEGMENT_HEADER, SegmentHead};
use super::state::{State, StateFile};
use super::{Active, Recovery, Segment, Spool, SpoolConfig, SpoolError, segment_path};

/// What reading all segments found.
#[derive(Default)]
struct Survey {
    segments: VecDeque<Segment>,
    /// Missing numbers, inclusive; ranges may be empty.
    holes: Vec<(u64, u64)>,
    /// The newest record.
    last: u64,
    /// The newest number that anything on the disk says was synced.
    confirmed: u64,
    /// Unreadable bytes behind the last record of the last segment.
    tail: u64,
    /// Whether the last segment's header is sound.
    head_sound: bool,
    /// Files with nothing readable in them, and their bytes.
    debris: Vec<u64>,
    debris_bytes: u64,
}

impl<S: Filesystem> Spool<S> {
    /// Opens the spool in `dir`, or makes it. `new_stream` is used only where a stream begins: here for the first time, or
    /// when the log of the old one is gone; it must be random.
    ///
    /// # Errors
    /// The directory or a file in it cannot be made, read or synced.
    pub fn open(fs: S, dir: &Path, config: SpoolConfig, new_stream: StreamId) -> Result<(Self, Recovery), SpoolError> {
        fs.create_dir_all(dir).map_err(|e| SpoolError::io("create spool directory", dir, e))?;
        let indexes = list_segments(&fs, dir)?;
        let state_path = dir.join(super::state::STATE_NAME);
        let loaded = StateFile::load(&fs, dir).map_err(|e| SpoolError::io("read spool state", &state_path, e))?;
        let heads = read_heads(&fs, dir, &indexes)?;

        let known_stream = loaded.as_ref().map(|(_, state)| state.stream).or_else(|| heads.iter().find_map(|h| h.map(|h| h.stream)));
        let mut recovery = Recovery { new_stream: known_stream.is_none() || indexes.is_empty(), ..Recovery::default() };
        let stream = known_stream.filter(|_| !recovery.new_stream).unwrap_or(new_stream);
        let had_state = loaded.is_some();
        let (state_file, mut state) = match loaded {
            Some((file, state)) if !recovery.new_stream => (Some(file), state),
            Some((_, old)) => {
                // The log is gone: what was in it and not acknowledged is lost, and the counter lives on.
                let mut state = State::new(stream);
                state.loss = old.loss;
                state.loss.records += old.synced.saturating_sub(old.acked);
                if old.synced > old.acked {
                    recovery.lost.push((old.acked + 1, old.synced));
                }
                (None, state)
            }
            None => (None, State::new(stream)),
        };

        // Segments of another stream cannot be ours to send: somebody put them there.
        let foreign = |head: &Option<SegmentHead>| head.is_some_and(|h| h.stream != stream);
        let mut ours = Vec::new();
        for (index, head) in indexes.iter().zip(&heads) {
            let path = segment_path(dir, *index);
            if foreign(head) {
                log::error!("{} belongs to another spool and is removed", path.display());
                fs.remove(&path).map_err(|e| SpoolError::io("remove foreign spool segment", &path, e))?;
            } else {
                ours.push((*index, *head));
            }
        }
        let mut survey = survey(&fs, dir, &ours, &mut state, had_state)?;

        let confirmed = survey.confirmed.max(state.synced);
        let next_index = indexes.last().map_or(1, |index| index + 1);
        let state_file = match state_file {
            Some(file) => file,
            None => StateFile::create(&fs, dir, &state).map_err(|e| SpoolError::io("create spool state", &state_path, e))?,
        };
        let last = survey.last.max(confirmed).max(state.acked);
        let mut spool = Self {
            fs,
            dir: dir.to_owned(),
            config,
            state,
            state_file,
            state_due: None,
            segments: std::mem::take(&mut survey.segments),
            active: None,
            next_index,
            next: last + 1,
            last,
            synced: last,
            unsynced: VecDeque::new(),
            unsynced_bytes: 0,
            dir_dirty: false,
            suspect: false,
            last_sync: None,
            cursor: None,
            scratch: Vec::new(),
        };
        spool.settle(confirmed)?;
        spool.account(&survey.holes, survey.last, confirmed, &mut recovery);
        spool.resume(&survey, &mut recovery)?;
        Ok((spool, recovery))
    }

    /// What was read may so far be in the kernel's memory alone: the process was killed, or died of a failed sync, after
    /// which another sync would do nothing. So what no later write vouches for is written again, the same bytes in place.
    fn settle(&mut self, confirmed: u64) -> Result<(), SpoolError> {
        for segment in self.segments.iter().filter(|s| s.last > confirmed) {
            let path = self.segment_path(segment.index);
            let settled = self.fs.open(&path).and_then(|mut file| {
                let mut bytes = read_all(&file)?;
                bytes.truncate(usize::try_from(segment.len).unwrap_or(usize::MAX));
                file.write_at(&bytes, 0)?;
                file.sync()
            });
            settled.map_err(|e| SpoolError::io("sync spool segment", &path, e))?;
        }
        self.fs.sync_dir(&self.dir).map_err(|e| SpoolError::io("sync spool directory", &self.dir, e))
    }

    /// Sorts what is missing: lost where the disk had confirmed it, else never finished.
    fn account(&mut self, holes: &[(u64, u64)], last: u64, confirmed: u64, recovery: &mut Recovery) {
        let tail = (last + 1, confirmed);
        let before = self.state.clone();
        for &(from, to) in holes.iter().chain([&tail]) {
            if from > to {
                continue;
            }
            recovery.lost.extend(self.count_missing(from, to.min(confirmed)));
            for (low, high) in self.state.unknown_in(from.max(confirmed + 1), to) {
                self.state.add_hole(low, high);
                recovery.unfinished.push((low, high));
            }
        }
        for (low, high) in &recovery.lost {
            log::error!("the spool lost records {low} to {high}: the disk does not have what it had confirmed");
        }
        if self.state != before {
            // Where this fails, the next opening finds and counts the same again, so nothing is counted twice on the disk.
            if let Err(error) = self.store_state() {
                log::warn!("the spool's loss is not written yet: {error}");
                self.state_due = Some(std::time::Duration::ZERO);
            }
        }
    }

    /// Goes on in the last segment where it is sound to its end, else behind it.
    fn resume(&mut self, survey: &Survey, recovery: &mut Recovery) -> Result<(), SpoolError> {
        let old = self.segments.back().cloned();
        let unreadable = survey.tail + survey.debris_bytes;
        if unreadable > 0 {
            // The unreadable bytes may have held published numbers: step over as many as fit in them. The new segment must
            // be on the disk before they, the only witness of that, are removed.
            self.next = self.last + 1 + unreadable.div_ceil(RECORD_HEADER as u64);
            match self.begin_synced() {
                Err(error) if error.is_full() => return Ok(()),
                other => other?,
            }
            self.remove_unreadable(survey, old)?;
            recovery.truncated_bytes = unreadable;
        } else if let Some(old) = old {
            let limit = self.config.segment_bytes.min(self.config.cap_bytes / 4);
            if survey.head_sound && survey.last == self.last && !old.damaged && old.len < limit {
                let path = self.segment_path(old.index);
                let file = self.fs.open(&path).map_err(|e| SpoolError::io("open spool segment", &path, e))?;
                self.active = Some(Active { file, synced_len: old.len, synced_records: old.records });
            }
        }
        Ok(())
    }

    fn begin_synced(&mut self) -> Result<(), SpoolError> {
        let (prev, first) = (self.last, self.next);
        self.begin_segment(prev, first)?;
        let Some(active) = self.active.as_mut() else { return Ok(()) };
        let synced = active.file.sync().and_then(|()| self.fs.sync_dir(&self.dir));
        synced.map_err(|e| SpoolError::io("sync spool segment", &segment_path(&self.dir, self.next_index - 1), e))?;
        self.dir_dirty = false;
        Ok(())
    }

    fn remove_unreadable(&mut self, survey: &Survey, old: Option<Segment>) -> Result<(), SpoolError> {
        for index in &survey.debris {
            let path = self.segment_path(*index);
            self.fs.remove(&path).map_err(|e| SpoolError::io("delete empty spool segment", &path, e))?;
        }
        let Some(old) = old.filter(|_| survey.tail > 0) else { return Ok(()) };
        let path = self.segment_path(old.index);
        if old.records == 0 {
            self.fs.remove(&path).map_err(|e| SpoolError::io("delete spool segment", &path, e))?;
            self.segments.retain(|s| s.index != old.index);
            return Ok(());
        }
        let cut = self.fs.open(&path).and_then(|mut file| file.set_len(old.len).and_then(|()| file.sync()));
        cut.map_err(|e| SpoolError::io("cut torn spool segment", &path, e))
    }
}

fn list_segments<S: Filesystem>(fs: &S, dir: &Path) -> Result<Vec<u64>, SpoolError> {
    let names = fs.list(dir).map_err(|e| SpoolError::io("list spool directory", dir, e))?;
    let index = |name: &String| name.strip_suffix(".seg").filter(|digits| digits.len() == 10)?.parse().ok();
    let mut indexes: Vec<u64> = names.iter().filter_map(index).collect();
    indexes.sort_unstable();
    Ok(indexes)
}

fn read_heads<S: Filesystem>(fs: &S, dir: &Path, indexes: &[u64]) -> Result<Vec<Option<SegmentHead>>, SpoolError> {
    let read = |index: &u64| {
        let path = segment_path(dir, *index);
        let mut bytes = [0u8; SEGMENT_HEADER];
        let read = fs.open(&path).and_then(|file| file.read_at(&mut bytes, 0));
        match read {
            Ok(n) => Ok(record::decode_head(bytes.get(..n).unwrap_or_default())),
            Err(source) => Err(SpoolError::io("read spool segment", &path, source)),
        }
    };
    indexes.iter().map(read).collect()
}

fn read_all<F: SpoolFile>(file: &F) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.size()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0u8; len];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

fn survey<S: Filesystem>(
    fs: &S,
    dir: &Path,
    found: &[(u64, Option<SegmentHead>)],
    state: &mut State,
    had_state: bool,
) -> Result<Survey, SpoolError> {
    let mut survey = Survey::default();
    let mut begun = false;
    for (place, &(index, head)) in found.iter().enumerate() {
        let path = segment_path(dir, index);
        let bytes = fs.open(&path).and_then(|file| read_all(&file)).map_err(|e| SpoolError::io("read spool segment", &path, e))?;
        let start = if head.is_some() { SEGMENT_HEADER } else { 0 };
        let first_seen = record::search(state.stream, &bytes, start, 0).map(|frame| frame.seq);
        if head.is_none() && first_seen.is_none() {
            // A segment whose making was cut short, or of which nothing is left; what it held shows as missing numbers.
            survey.debris.push(index);
            survey.debris_bytes += bytes.len() as u64;
            continue;
        }
        if !begun {
            begun = true;
            // Without a state file, where the log begins is taken for where the acknowledgements ended.
            survey.last = match (head, first_seen) {
                (Some(head), _) => head.prev,
                (None, Some(seq)) if !had_state => seq - 1,
                _ => 0,
            };
            if had_state {
                survey.holes.push((1, survey.last));
            } else {
                state.acked = survey.last;
            }
        }
        let prev = head.map_or(survey.last, |h| h.prev);
        let mut segment = Segment {
            index,
            prev,
            first: head.map_or(prev + 1, |h| h.first),
            last: survey.last,
            records: 0,
            len: 0,
            damaged: head.is_none(),
        };
        survey.confirmed = survey.confirmed.max(head.map_or(0, |h| h.prev));
        let mut at = start;
        while let Some(frame) = record::search(state.stream, &bytes, at, survey.last) {
            survey.holes.extend(missing_before(survey.last, frame.seq, &segment));
            survey.confirmed = survey.confirmed.max(frame.synced);
            segment.damaged |= frame.payload.start != at + RECORD_HEADER;
            segment.records += 1;
            segment.last = frame.seq;
            survey.last = frame.seq;
            at = frame.payload.end;
        }
        segment.len = at as u64;
        survey.head_sound = head.is_some();
        survey.tail = if place + 1 == found.len() { (bytes.len() - at) as u64 } else { 0 };
        survey.segments.push_back(segment);
    }
    Ok(survey)
}
