//! Appending, syncing, acknowledging.

use std::time::Duration;

use picket_wire::ids::StreamId;

use super::fs::{Filesystem, SpoolFile};
use super::record::{self, SEGMENT_HEADER, SegmentHead};
use super::{Active, LAZY_STATE, MAX_RECORD, MAX_UNSYNCED, Segment, Spool, SpoolError};

impl<S: Filesystem> Spool<S> {
    /// Writes one record and says its number. It may be published once [`Spool::synced`] has reached that number.
    ///
    /// # Errors
    /// The record was not taken and is counted in [`Spool::loss`]. After [`SpoolError::Full`] and
    /// [`SpoolError::DiskFull`] the spool is sound and goes on as soon as there is room.
    pub fn append(&mut self, now: Duration, record: &[u8]) -> Result<u64, SpoolError> {
        let result = self.offer(now, record);
        if result.is_err() {
            self.state.loss.records += 1;
            self.state.loss.bytes += record.len() as u64;
            self.touch_state(now, self.config.fsync_interval);
        }
        result
    }

    /// As [`Spool::append`], for a caller that keeps the record or does its work again: a refusal is not counted as a loss.
    ///
    /// # Errors
    /// The record was not taken.
    pub fn offer(&mut self, now: Duration, payload: &[u8]) -> Result<u64, SpoolError> {
        if payload.len() > MAX_RECORD {
            return Err(SpoolError::TooLong { len: payload.len() });
        }
        if self.suspect || self.unsynced_bytes + payload.len() > MAX_UNSYNCED {
            self.sync_records(now)?;
        }
        if !self.fits(payload.len()) {
            if !self.all_acked() {
                return Err(SpoolError::Full { dir: self.dir.clone(), cap: self.config.cap_bytes });
            }
            self.reclaim()?;
            if !self.fits(payload.len()) {
                return Err(SpoolError::Full { dir: self.dir.clone(), cap: self.config.cap_bytes });
            }
        }
        match self.write_record(now, payload) {
            Err(SpoolError::DiskFull { .. }) if self.all_acked() && self.reclaim().is_ok() => self.write_record(now, payload),
            other => other,
        }
    }

    fn write_record(&mut self, now: Duration, payload: &[u8]) -> Result<u64, SpoolError> {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        record::encode(self.state.stream, self.next, self.synced, payload, &mut bytes);
        let written = self.write_frame(now, &bytes);
        // One long record must not hold its size in memory for ever.
        if bytes.capacity() <= 64 * 1024 {
            self.scratch = bytes;
        }
        written?;
        let seq = self.next;
        self.next += 1;
        self.last = seq;
        self.unsynced_bytes += payload.len();
        self.unsynced.push_back((seq, payload.into()));
        Ok(seq)
    }

    fn write_frame(&mut self, now: Duration, bytes: &[u8]) -> Result<(), SpoolError> {
        let limit = self.config.segment_bytes.min(self.config.cap_bytes / 4);
        let full = |segment: &Segment| segment.records > 0 && segment.len + bytes.len() as u64 > limit;
        if self.active.is_none() || self.segments.back().is_some_and(full) {
            if self.active.is_some() {
                self.sync_records(now)?;
            }
            let (prev, first) = (self.last, self.next);
            self.begin_segment(prev, first)?;
        }
        let (Some(active), Some(segment)) = (self.active.as_mut(), self.segments.back_mut()) else {
            unreachable!("a segment was just begun");
        };
        if let Err(source) = active.file.write_at(bytes, segment.len) {
            // Whatever part arrived is overwritten by the next record or cut by the next opening; this is to free its room.
            let _ = active.file.set_len(segment.len);
            return Err(SpoolError::io("write spool segment", &super::segment_path(&self.dir, segment.index), source));
        }
        segment.len += bytes.len() as u64;
        segment.last = self.next;
        segment.records += 1;
        Ok(())
    }

    /// Makes a new active segment. The old one must be synced.
    pub(super) fn begin_segment(&mut self, prev: u64, first: u64) -> Result<(), SpoolError> {
        let index = self.next_index;
        let path = self.segment_path(index);
        let head = record::encode_head(SegmentHead { stream: self.state.stream, prev, first });
        let made = self.fs.create(&path).and_then(|mut file| file.write_at(&head, 0).map(|()| file));
        let file = match made {
            Ok(file) => file,
            Err(source) => {
                let _ = self.fs.remove(&path);
                return Err(SpoolError::io("create spool segment", &path, source));
            }
        };
        self.next_index += 1;
        self.dir_dirty = true;
        self.active = Some(Active { file, synced_len: SEGMENT_HEADER as u64, synced_records: 0 });
        self.segments.push_back(Segment { index, prev, first, last: prev, records: 0, len: SEGMENT_HEADER as u64, damaged: false });
        Ok(())
    }

    /// When [`Spool::sync`] is wanted next: at once if the last one is longer ago than the interval, else when it has
    /// passed, so that a burst of records costs one write of the card; `None` where nothing waits.
    pub fn needs_sync(&self, now: Duration) -> Option<Duration> {
        let records = !self.unsynced.is_empty() || self.suspect;
        let for_records = records.then(|| self.last_sync.map_or(now, |last| last + self.config.fsync_interval));
        [for_records, self.state_due].into_iter().flatten().min()
    }

    /// Puts everything on the disk: records first, then the state if it changed.
    ///
    /// # Errors
    /// The records stay in memory and the next call writes them again elsewhere; [`Spool::needs_sync`] says when.
    pub fn sync(&mut self, now: Duration) -> Result<(), SpoolError> {
        let state_changed = self.state_due.is_some();
        if state_changed {
            // Where it fails, it is tried again after the interval and not in a tight loop.
            self.state_due = Some(now + self.config.fsync_interval);
        }
        self.sync_records(now)?;
        if state_changed { self.store_state() } else { Ok(()) }
    }

    fn sync_records(&mut self, now: Duration) -> Result<(), SpoolError> {
        self.last_sync = Some(now);
        if self.suspect {
            return self.rewrite_unsynced();
        }
        if self.unsynced.is_empty() && !self.dir_dirty {
            return Ok(());
        }
        if let (Some(active), Some(segment)) = (self.active.as_mut(), self.segments.back()) {
            if let Err(source) = active.file.sync() {
                self.suspect = true;
                return Err(SpoolError::io("sync spool segment", &super::segment_path(&self.dir, segment.index), source));
            }
            if self.dir_dirty {
                self.fs.sync_dir(&self.dir).map_err(|e| SpoolError::io("sync spool directory", &self.dir, e))?;
                self.dir_dirty = false;
            }
            active.synced_len = segment.len;
            active.synced_records = segment.records;
        }
        self.synced = self.last;
        self.unsynced.clear();
        self.unsynced_bytes = 0;
        Ok(())
    }

    /// After a failed sync: the unsynced records go to a new segment, and the old one is cut to what is sure.
    fn rewrite_unsynced(&mut self) -> Result<(), SpoolError> {
        let index = self.next_index;
        let path = self.segment_path(index);
        let prev = self.synced;
        let first = self.unsynced.front().map_or(self.next, |(seq, _)| *seq);
        let mut bytes = record::encode_head(SegmentHead { stream: self.state.stream, prev, first }).to_vec();
        for (seq, payload) in &self.unsynced {
            record::encode(self.state.stream, *seq, self.synced, payload, &mut bytes);
        }
        let made = self.fs.create(&path).and_then(|mut file| {
            file.write_at(&bytes, 0)?;
            file.sync()?;
            self.fs.sync_dir(&self.dir)?;
            Ok(file)
        });
        let file = match made {
            Ok(file) => file,
            Err(source) => {
                let _ = self.fs.remove(&path);
                return Err(SpoolError::io("write spool segment again", &path, source));
            }
        };
        self.next_index += 1;
        self.dir_dirty = false;
        self.suspect = false;
        self.cursor = None;
        let records = self.unsynced.len() as u64;
        let len = bytes.len() as u64;
        if let (Some(mut old), Some(segment)) = (self.active.take(), self.segments.back_mut()) {
            segment.len = old.synced_len;
            segment.records = old.synced_records;
            segment.last = if segment.records == 0 { segment.prev } else { prev };
            let emptied = segment.records == 0;
            // Left uncut, the same records would be found twice with the same numbers and bytes: harmless.
            let _ = old.file.set_len(old.synced_len);
            if emptied && let Some(gone) = self.segments.pop_back() {
                let _ = self.fs.remove(&self.segment_path(gone.index));
            }
        }
        self.active = Some(Active { file, synced_len: len, synced_records: records });
        self.segments.push_back(Segment { index, prev, first, last: self.last.max(prev), records, len, damaged: false });
        self.synced = self.last;
        self.unsynced.clear();
        self.unsynced_bytes = 0;
        Ok(())
    }

    /// Takes an acknowledgement of everything up to `up_to` and frees the segments that are wholly acknowledged.
    /// Says whether it was for this stream; one for another is ignored, one beyond what was published counts as up to there.
    pub fn ack(&mut self, now: Duration, stream: StreamId, up_to: u64) -> bool {
        if stream != self.state.stream {
            return false;
        }
        let up_to = up_to.min(self.synced);
        if up_to > self.state.acked {
            self.state.acked = up_to;
            self.touch_state(now, LAZY_STATE);
        }
        if let Err(error) = self.free_acked() {
            log::warn!("acknowledged segments of the spool stay for now: {error}");
        }
        true
    }

    fn free_acked(&mut self) -> Result<(), SpoolError> {
        let keep = usize::from(self.active.is_some());
        let acked = self.state.acked;
        let done = self.segments.iter().take(self.segments.len().saturating_sub(keep)).take_while(|s| s.last <= acked).count();
        if done == 0 {
            return Ok(());
        }
        // First the position, then the deletion: else a vanished segment could not be told from an acknowledged one.
        self.store_state()?;
        for _ in 0..done {
            let Some(index) = self.segments.front().map(|segment| segment.index) else { break };
            let path = self.segment_path(index);
            match self.fs.remove(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(SpoolError::io("delete spool segment", &path, e)),
                _ => self.segments.pop_front(),
            };
        }
        Ok(())
    }

    /// Everything is acknowledged but the active segment holds room that a full disk or the cap needs: empty it in place.
    fn reclaim(&mut self) -> Result<(), SpoolError> {
        self.store_state()?;
        self.free_acked()?;
        let (Some(active), Some(segment)) = (self.active.as_mut(), self.segments.back_mut()) else { return Ok(()) };
        let len = SEGMENT_HEADER as u64;
        let emptied = active.file.set_len(len);
        emptied.map_err(|e| SpoolError::io("empty spool segment", &super::segment_path(&self.dir, segment.index), e))?;
        *segment = Segment { prev: self.last, first: self.next, last: self.last, records: 0, len, ..segment.clone() };
        active.synced_len = len;
        active.synced_records = 0;
        self.cursor = None;
        Ok(())
    }
}
