//! The small file of facts that are not in the log: what is acknowledged, what was lost.
//!
//! Two slots written in turn, in place: a torn write leaves the other slot, and a full disk does not matter because no
//! block is allocated after the file was made.

use std::io;
use std::path::Path;

use picket_wire::ids::StreamId;

use super::Loss;
use super::fs::{Filesystem, SpoolFile};

/// Distance of the two slots: the block size of nearly every file system, so that one torn block cannot hold both.
const SLOT: u64 = 4096;
const MAGIC: [u8; 8] = *b"PKSTATE1";
const FIXED: usize = 68;
/// As many ranges as fit a slot beside the fixed part and the checksum.
const MAX_HOLES: usize = (SLOT as usize - FIXED - 4) / 16;
/// The file's name in the spool's directory.
pub(super) const STATE_NAME: &str = "state";

/// The facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    /// The stream all numbers belong to.
    pub(super) stream: StreamId,
    /// Everything up to here is acknowledged.
    pub(super) acked: u64,
    /// Everything up to here was on the disk when this was written.
    pub(super) synced: u64,
    /// What was lost in this stream so far.
    pub(super) loss: Loss,
    /// Missing numbers that `loss` already counts, or that need no count; ascending, disjoint, inclusive.
    pub(super) holes: Vec<(u64, u64)>,
}

impl State {
    pub(super) fn new(stream: StreamId) -> Self {
        Self { stream, acked: 0, synced: 0, loss: Loss::default(), holes: Vec::new() }
    }

    /// Parts of `from..=to` that are neither acknowledged nor known holes.
    pub(super) fn unknown_in(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        let mut next = from.max(self.acked.saturating_add(1));
        for &(low, high) in &self.holes {
            if high < next || low > to {
                continue;
            }
            if low > next {
                out.push((next, low - 1));
            }
            next = high.saturating_add(1);
        }
        if next <= to {
            out.push((next, to));
        }
        out
    }

    /// Remembers a hole.
    pub(super) fn add_hole(&mut self, from: u64, to: u64) {
        self.holes.push((from, to));
        self.holes.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.holes.len());
        for &(low, high) in &self.holes {
            match merged.last_mut() {
                Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        // A disk so bad that the list overflows: the two oldest become one. A record between them that is destroyed
        // later is then not counted again, which is the least wrong way to stay bounded.
        while merged.len() > MAX_HOLES {
            let (_, high) = merged.remove(1);
            merged[0].1 = high;
        }
        self.holes = merged;
    }

    fn encode(&self, generation: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED + 16 * self.holes.len() + 4);
        out.extend_from_slice(&MAGIC);
        for number in [generation, self.stream.0, self.acked, self.synced, self.loss.records, self.loss.bytes, self.holes.len() as u64] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&[0; FIXED - 64]);
        for (low, high) in &self.holes {
            out.extend_from_slice(&low.to_le_bytes());
            out.extend_from_slice(&high.to_le_bytes());
        }
        let sum = crc32c::crc32c(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<(u64, State)> {
        let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        if bytes.get(..8)? != MAGIC {
            return None;
        }
        let count = usize::try_from(long(56)?).ok().filter(|&n| n <= MAX_HOLES)?;
        let end = FIXED + 16 * count;
        let sum = u32::from_le_bytes(bytes.get(end..end + 4)?.try_into().ok()?);
        if sum != crc32c::crc32c(bytes.get(..end)?) {
            return None;
        }
        let holes = (0..count).map(|i| Some((long(FIXED + 16 * i)?, long(FIXED + 16 * i + 8)?))).collect::<Option<Vec<_>>>()?;
        let loss = Loss { records: long(40)?, bytes: long(48)? };
        Some((long(8)?, State { stream: StreamId(long(16)?), acked: long(24)?, synced: long(32)?, loss, holes }))
    }
}

/// The open state file.
pub(super) struct StateFile<F> {
    file: F,
    generation: u64,
}

impl<F: SpoolFile> StateFile<F> {
    /// Reads the newest sound slot; `None` where there is no file or none of the two is sound.
    pub(super) fn load<S: Filesystem<File = F>>(fs: &S, dir: &Path) -> io::Result<Option<(Self, State)>> {
        let file = match fs.open(&dir.join(STATE_NAME)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut best: Option<(u64, State)> = None;
        let mut buf = vec![0u8; SLOT as usize];
        for slot in 0..2 {
            let read = file.read_at(&mut buf, slot * SLOT)?;
            if let Some(found) = State::decode(&buf[..read])
                && best.as_ref().is_none_or(|(generation, _)| found.0 > *generation)
            {
                best = Some(found);
            }
        }
        Ok(best.map(|(generation, state)| (Self { file, generation }, state)))
    }

    /// Makes the file, both slots allocated, and puts it on the disk.
    pub(super) fn create<S: Filesystem<File = F>>(fs: &S, dir: &Path, state: &State) -> io::Result<Self> {
        let mut file = fs.create(&dir.join(STATE_NAME))?;
        file.write_at(&[0u8; 2 * SLOT as usize], 0)?;
        let mut this = Self { file, generation: 0 };
        this.store(state)?;
        fs.sync_dir(dir)?;
        Ok(this)
    }

    /// Writes the older slot and puts it on the disk.
    pub(super) fn store(&mut self, state: &State) -> io::Result<()> {
        let generation = self.generation + 1;
        self.file.write_at(&state.encode(generation), (generation % 2) * SLOT)?;
        self.file.sync()?;
        self.generation = generation;
        Ok(())
    }
}
