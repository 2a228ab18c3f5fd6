//! The spool: every record that a probe has produced and its controller has not yet acknowledged, on the disk.
//!
//! It knows nothing of what records mean, of MQTT, or of time other than the `now` it is given (a [`Duration`] since any
//! fixed origin, monotonic). It is synchronous and used from one thread.
//!
//! # Format
//!
//! A spool is a directory. `NNNNNNNNNN.seg` are segments: written once, in order, their names sort oldest first. Each is
//!
//! | bytes | segment header (40) | | bytes | record (24 + payload) |
//! |---|---|---|---|---|
//! | 0..8 | `PKSPOOL1` | | 0..4 | CRC-32C of the stream and bytes 4..24 |
//! | 8..16 | stream | | 4..8 | CRC-32C of the stream and the payload |
//! | 16..24 | last sequence number before it | | 8..12 | length of the payload, at most 192 KiB |
//! | 24..32 | its first sequence number | | 12..16 | how many records before this one were not yet synced |
//! | 32..36 | zero | | 16..24 | sequence number |
//! | 36..40 | CRC-32C of bytes 0..36 | | 24.. | payload |
//!
//! All numbers are little-endian. `state` holds the acknowledged position, the loss counter and the known holes, in two
//! slots written in turn and in place, so that it can be written when the disk is full.
//!
//! # What holds
//!
//! - **Invariant:** a record is handed out for publication only after the disk has confirmed it; so a number that was
//!   ever published means the same bytes for ever. Where a start finds a tail that it cannot read, it leaves a gap of
//!   numbers instead of using them again.
//! - **Invariant:** gaps are visible: each [`Entry`] names the number before it, so that a receiver that has everything up
//!   to `after` may go on to `seq` without waiting for what does not exist.
//! - **Invariant:** a torn tail is cut on opening; a damaged record loses itself alone, its neighbours are found again, and
//!   it is counted in [`Spool::loss`] once, also over restarts.
//! - **Invariant:** what the caller could not append is counted in [`Spool::loss`].
//! - **Invariant:** after a failed sync the unsynced records (kept in memory until then) are written again, to a new
//!   segment: the kernel may have dropped them, and a second sync of the same file would claim success.
//! - **Invariant:** a segment is deleted only after the acknowledged position that allows it is on the disk.
//!
//! When the cap is reached, the newest record is refused (and counted); nothing that was accepted is dropped. A caller that
//! can wait uses [`Spool::offer`], which counts nothing, or asks [`Spool::has_room`] first.

mod fs;
mod reader;
mod record;
mod recover;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use picket_wire::ids::StreamId;

pub use fs::{DiskFs, Filesystem, SpoolFile};
use reader::Cursor;
use record::{RECORD_HEADER, SEGMENT_HEADER};
use state::{State, StateFile};

/// The longest record in bytes: what fits one message.
pub const MAX_RECORD: usize = picket_wire::codec::RECORDS_MAX;

/// Unsynced records are kept in memory too (to be written again after a failed sync): past this, an append syncs first.
const MAX_UNSYNCED: usize = 1024 * 1024;

/// How long an acknowledged position may wait to be written where no record is synced anyway. Losing it costs only
/// re-sending, writing it costs a block of the SD card's life.
const LAZY_STATE: Duration = Duration::from_secs(60);

/// What the operator may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolConfig {
    /// Size in bytes at which a segment is closed; acknowledged space is freed in units of this. At most a quarter of
    /// the cap is used. Default 1 MiB.
    pub segment_bytes: u64,
    /// Most bytes on the disk. Default 64 MiB.
    pub cap_bytes: u64,
    /// Least time between two syncs: the most that a power cut takes, and what spares an SD card. Default 1 s.
    pub fsync_interval: Duration,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self { segment_bytes: 1024 * 1024, cap_bytes: 64 * 1024 * 1024, fsync_interval: Duration::from_secs(1) }
    }
}

/// Why the spool could not do something.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The configured cap is reached and nothing of it is acknowledged.
    #[error("the spool {} is full: {cap} bytes are waiting for the controller", dir.display())]
    Full {
        /// The spool's directory.
        dir: PathBuf,
        /// The configured cap in bytes.
        cap: u64,
    },
    /// The disk is full.
    #[error("no space left on the disk of the spool {}", dir.display())]
    DiskFull {
        /// The spool's directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The record is longer than [`MAX_RECORD`].
    #[error("a record of {len} bytes is longer than a spool takes ({MAX_RECORD})")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl SpoolError {
    /// Whether waiting for acknowledgements (or for room on the disk) can help.
    pub fn is_full(&self) -> bool {
        matches!(self, SpoolError::Full { .. } | SpoolError::DiskFull { .. })
    }

    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { dir: path.parent().unwrap_or(path).to_owned(), source }
            }
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }
}

/// What was lost since the spool was first made; only ever grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loss {
    /// Records refused by [`Spool::append`] or destroyed on the disk.
    pub records: u64,
    /// Bytes of the refused records; the size of a destroyed one is not known.
    pub bytes: u64,
}

/// One record, ready to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub seq: u64,
    /// The number of the record before it: whoever has everything up to here lacks nothing before `seq`.
    pub after: u64,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Whether a new stream was begun (no spool was here, or its log was gone).
    pub new_stream: bool,
    /// Bytes of a torn tail that were cut off.
    pub truncated_bytes: u64,
    /// Ranges of numbers (inclusive) that had been on the disk and are gone; newly counted in the loss.
    pub lost: Vec<(u64, u64)>,
    /// Ranges (inclusive) that are missing but were never confirmed by the disk, so never published: no loss.
    pub unfinished: Vec<(u64, u64)>,
}

/// Figures for the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Bytes on the disk.
    pub bytes: u64,
    /// The configured cap.
    pub cap_bytes: u64,
    /// Records that are not acknowledged, unsynced ones included.
    pub records: u64,
    /// Segment files.
    pub segments: usize,
    /// The oldest number that is not acknowledged; none where everything is.
    pub oldest: Option<u64>,
    /// The newest number given out; 0 before the first.
    pub newest: u64,
}

/// What is known of one segment.
#[derive(Debug, Clone)]
struct Segment {
    /// Its place in the order, and its file's name.
    index: u64,
    /// The last record before it.
    prev: u64,
    /// The number its first record has or will have.
    first: u64,
    /// Its newest record; `prev` while it has none.
    last: u64,
    /// How many sound records it has.
    records: u64,
    /// Bytes up to the end of its last sound record.
    len: u64,
    /// Whether something between its records is unreadable.
    damaged: bool,
}

/// The segment that is being written.
struct Active<F> {
    file: F,
    /// Bytes of it that the disk has confirmed, and records in these.
    synced_len: u64,
    synced_records: u64,
}

/// The log. See the [module](self).
pub struct Spool<S: Filesystem = DiskFs> {
    fs: S,
    dir: PathBuf,
    config: SpoolConfig,
    state: State,
    state_file: StateFile<S::File>,
    /// When the state in memory became newer than its file, and how long it may stay so.
    state_due: Option<Duration>,
    /// Oldest first; the last one is the active one where there is one.
    segments: VecDeque<Segment>,
    active: Option<Active<S::File>>,
    next_index: u64,
    /// The number of the next record, and of the newest one.
    next: u64,
    last: u64,
    synced: u64,
    unsynced: VecDeque<(u64, Box<[u8]>)>,
    unsynced_bytes: usize,
    dir_dirty: bool,
    /// Whether a sync of the active segment failed.
    suspect: bool,
    last_sync: Option<Duration>,
    cursor: Option<Cursor<S::File>>,
    scratch: Vec<u8>,
}

impl<S: Filesystem> Spool<S> {
    /// The stream that all numbers here belong to.
    pub fn stream(&self) -> StreamId {
        self.state.stream
    }

    /// Everything up to this number is on the disk and may be published.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Everything up to this number is acknowledged.
    pub fn acked(&self) -> u64 {
        self.state.acked
    }

    /// What was lost so far, in all lives of this spool.
    pub fn loss(&self) -> Loss {
        self.state.loss
    }

    /// Whether a record of `len` bytes would be taken, as far as the cap is concerned.
    pub fn has_room(&self, len: usize) -> bool {
        self.fits(len) || self.all_acked()
    }

    /// Figures for the status.
    pub fn stats(&self) -> Stats {
        let acked = self.state.acked;
        let records = self.segments.iter().filter(|s| s.last > acked).map(|s| s.records.min(s.last - acked)).sum();
        Stats {
            bytes: self.bytes(),
            cap_bytes: self.config.cap_bytes,
            records,
            segments: self.segments.len(),
            oldest: (records > 0).then_some(acked + 1),
            newest: self.last,
        }
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    fn fits(&self, len: usize) -> bool {
        // A segment's header is reckoned in, whether or not one is due.
        self.bytes() + (RECORD_HEADER + SEGMENT_HEADER + len) as u64 <= self.config.cap_bytes
    }

    fn all_acked(&self) -> bool {
        self.state.acked >= self.last
    }

    fn segment_path(&self, index: u64) -> PathBuf {
        segment_path(&self.dir, index)
    }

    /// Marks the state for writing, within `patience` of `now`.
    fn touch_state(&mut self, now: Duration, patience: Duration) {
        let due = now + patience;
        self.state_due = Some(self.state_due.map_or(due, |old| old.min(due)));
    }

    fn store_state(&mut self) -> Result<(), SpoolError> {
        self.state.synced = self.state.synced.max(self.synced);
        let acked = self.state.acked;
        self.state.holes.retain(|&(_, high)| high > acked);
        self.state_file.store(&self.state).map_err(|e| SpoolError::io("write spool state", &self.dir.join(state::STATE_NAME), e))?;
        self.state_due = None;
        Ok(())
    }

    /// Counts what is missing in `from..=to`, once; says what was not known before.
    fn count_missing(&mut self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let parts = self.state.unknown_in(from, to);
        for &(low, high) in &parts {
            self.state.loss.records += high - low + 1;
            self.state.add_hole(low, high);
        }
        parts
    }
}

fn segment_path(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("{index:010}.seg"))
}
