//! Who writes a ring: segments and their indexes within the budget, on the thread of a capture's files.
//!
//! It must not know packets but for what the index makes of them.
//!
//! **Invariants:**
//! - What the ring takes of the disk is never more than the budget: files by whole blocks of [`BLOCK`] bytes, what the file system needs to
//!   find them, and the directory. Room is made before it is needed, by removing the oldest segment.
//! - An index's pages are written once each: a segment that is written costs the disk its own bytes, and 2 % at most.
//! - Packets are never given up for an index: where it cannot be written the segment is one without.
//! - One process writes a ring at a time.

use core::time::Duration;
use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::index::{Builder, Header, Key};
use super::segment::{self, Segment, data_path, index_path};
use crate::capture::UnixNanos;
use crate::capture::files::{Disk, FileError, Files, Job, LOOK_BYTES, LOOK_EVERY, ROOM, Written, free_bytes, whole_blocks, write_some};
use crate::capture::pcapng::read::{Block, Blocks, ReadError, Reader, Step};
use crate::capture::pcapng::{Interface, Section, Statistics, write};
use crate::capture::session::Rotation;
use crate::net::clock;
use crate::net::time::Instant;

/// The least budget, in bytes.
pub const LEAST_BUDGET: u64 = 1 << 20;
/// What a file system gives space by, in bytes.
pub const BLOCK: u64 = 4096;
/// What a segment's two files need besides, in bytes: where their blocks are.
const BESIDES: u64 = 2 * BLOCK;
/// Parts of the budget, and of the age, that are removed at once.
const PARTS: u64 = 64;
const PARTS_OF_AGE: u32 = 16;
const LEAST_SEGMENT: u64 = 32 << 10;
const MOST_SEGMENT: u64 = 64 << 20;
/// Segments that may be there at least before their number is what makes the oldest go: each start of a capture begins one.
const MOST_SEGMENTS: u64 = 1024;
/// Held by who writes.
const LOCK: &str = "ring.lock";

/// How large a ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What it takes of the disk at most, in bytes.
    pub budget: u64,
    /// Segments go when their last packet is older.
    pub keep: Option<Duration>,
    /// So many bytes of the file system stay free: the ring makes room by itself, as long as it has something to remove.
    pub keep_free: u64,
}

impl Options {
    /// Length of a segment, in bytes.
    pub fn segment(&self) -> u64 {
        (self.budget / PARTS).clamp(LEAST_SEGMENT, MOST_SEGMENT)
    }

    /// With which the session that fills the ring is to be made.
    pub fn rotation(&self) -> Rotation {
        Rotation { bytes: Some(self.segment()), every: self.keep.map(|keep| keep / PARTS_OF_AGE), daily: false }
    }

    fn most_segments(&self) -> u64 {
        (2 * self.budget / self.segment()).max(MOST_SEGMENTS)
    }
}

/// Why a ring cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The budget is too small.
    #[error("a ring needs {LEAST_BUDGET} bytes at least, and {0} are not enough: give it 1MiB or more")]
    Budget(u64),
    /// The directory cannot be made or used.
    #[error("use {} as a ring", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else writes it.
    #[error("use {} as a ring: another capture is writing it", .0.display())]
    Busy(PathBuf),
    /// No key for the index.
    #[error("no randomness for the key of the index: {0}")]
    Random(getrandom::Error),
    /// The first segment cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Goes on with the ring in `dir`, or makes it. `section` and `interface` describe what comes; the session that gives it should rotate by
/// [`Options::rotation`].
///
/// # Errors
/// The directory cannot be used, somebody else is writing there, or the budget is too small.
pub fn keep(dir: &Path, options: Options, section: Section, interface: Interface) -> Result<Files, RingError> {
    let failed = Arc::new(AtomicBool::new(false));
    let mut store = Store::open(dir, options, section, interface, failed.clone())?;
    store.begin()?;
    let len = store.open.as_ref().map_or(0, |open| open.len);
    Ok(Files::on(store, len, len, failed)?)
}

/// A segment that has ended.
#[derive(Debug)]
struct Old {
    number: u64,
    cost: u64,
    last: UnixNanos,
}

/// The segment that is being written.
#[derive(Debug)]
struct Open {
    number: u64,
    data: File,
    path: PathBuf,
    len: u64,
    index: Option<File>,
    index_len: u64,
    builder: Builder,
    link_type: u16,
    blocks: Blocks,
    /// What had been dropped when it began.
    dropped: u64,
}

#[derive(Debug)]
struct Store {
    dir: PathBuf,
    options: Options,
    section: Section,
    interface: Interface,
    key: Key,
    /// Held as long as the store lives.
    _lock: File,
    old: VecDeque<Old>,
    /// What the old ones and the directory take.
    taken: u64,
    directory: u64,
    open: Option<Open>,
    number: u64,
    /// With which a segment has ended last.
    counters: Option<Vec<u8>>,
    looked: (Instant, u64),
    done: Written,
    failed: Arc<AtomicBool>,
}

/// What two files of these lengths take.
fn cost(data: u64, index: u64) -> u64 {
    data.next_multiple_of(BLOCK) + index.next_multiple_of(BLOCK) + BESIDES
}

fn now() -> UnixNanos {
    since_1970(clock::wall())
}

fn since_1970(time: SystemTime) -> UnixNanos {
    UnixNanos(u64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX))
}

fn full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// All that was dropped, by a block of counters.
fn dropped(counters: &[u8]) -> Option<(u64, Statistics)> {
    let Ok(Step::Block(Block::Statistics(statistics), _)) = Blocks::within_section().next(counters) else { return None };
    Some((statistics.kernel_drops.unwrap_or(0) + statistics.interface_drops.unwrap_or(0), statistics))
}

impl Store {
    fn open(dir: &Path, options: Options, section: Section, interface: Interface, failed: Arc<AtomicBool>) -> Result<Self, RingError> {
        if options.budget < LEAST_BUDGET {
            return Err(RingError::Budget(options.budget));
        }
        let directory = |source| RingError::Directory { path: dir.to_owned(), source };
        // Packets are nobody else's business.
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(directory)?;
        let lock = File::options().write(true).create(true).truncate(false).open(dir.join(LOCK)).map_err(directory)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(RingError::Busy(dir.to_owned())),
            Err(TryLockError::Error(source)) => return Err(directory(source)),
            Ok(()) => {}
        }
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(RingError::Random)?;
        let mut store = Self {
            dir: dir.to_owned(),
            options,
            section,
            interface,
            key: Key(key),
            _lock: lock,
            old: VecDeque::new(),
            taken: 0,
            directory: 0,
            open: None,
            number: 0,
            counters: None,
            looked: (clock::now(), LOOK_BYTES),
            done: Written::default(),
            failed,
        };
        store.take_over().map_err(directory)?;
        Ok(store)
    }

    /// What earlier captures have left: the last one perhaps without an end.
    fn take_over(&mut self) -> io::Result<()> {
        let found = segment::list(&self.dir)?;
        for lone in found.indexes.iter().filter(|number| !found.segments.contains(number)) {
            fs::remove_file(index_path(&self.dir, *lone))?;
        }
        if let Some(last) = found.segments.last() {
            self.number = *last;
            if Segment::open(&self.dir, *last)?.is_some_and(|segment| segment.end().is_none()) {
                // One that cannot be mended is read without an index.
                let mended = self.mend(*last);
                log::info!("the index of {} was made anew: {mended:?}", data_path(&self.dir, *last).display());
            }
        }
        for number in found.segments {
            let Some(segment) = Segment::open(&self.dir, number)? else { continue };
            let path = data_path(&self.dir, number);
            let last =
                segment.end().map_or_else(|| fs::metadata(&path).and_then(|meta| meta.modified()).map(since_1970), |end| Ok(end.last));
            self.retire(number, last.unwrap_or_default());
        }
        Ok(())
    }

    /// Cuts off what is not whole at the end of a segment, and makes its index.
    fn mend(&self, number: u64) -> io::Result<()> {
        let data = File::options().read(true).write(true).open(data_path(&self.dir, number))?;
        let mut reader = Reader::new(&data);
        let (mut head, mut link_type) = (0, 0);
        while let Ok(Some((block, len))) = reader.next_sized() {
            match block {
                Block::Section(_) if head == 0 => head += len,
                Block::Interface(interface) => {
                    link_type = interface.link_type;
                    head += len;
                    break;
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        let mut bytes = vec![0; head];
        std::os::unix::fs::FileExt::read_exact_at(&data, &mut bytes, 0)?;
        let mut builder = Builder::new(&Header::new(self.key, number, &bytes));
        let torn = loop {
            match reader.next_sized() {
                Ok(Some((Block::Section(_) | Block::Interface(_), _))) => return Err(io::ErrorKind::InvalidData.into()),
                Ok(Some((block, len))) => builder.block(link_type, &block, len),
                Ok(None) | Err(ReadError::Format { .. }) => break false,
                Err(ReadError::Torn { .. }) => break true,
                Err(ReadError::Io { source, .. }) => return Err(source),
            }
        };
        let whole = reader.offset();
        if torn {
            data.set_len(whole)?;
        }
        builder.finish(if torn { whole } else { data.metadata()?.len() }, None);
        fs::write(index_path(&self.dir, number), builder.out())
    }

    /// Counts a segment as one that has ended.
    fn retire(&mut self, number: u64, last: UnixNanos) {
        let len = |path: PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
        let cost = cost(len(data_path(&self.dir, number)), len(index_path(&self.dir, number)));
        self.taken += cost;
        self.old.push_back(Old { number, cost, last });
    }

    /// Removes the oldest segment; false where there is none but the present one.
    fn remove_oldest(&mut self) -> bool {
        let Some(oldest) = self.old.pop_front() else { return false };
        self.taken = self.taken.saturating_sub(oldest.cost);
        // What somebody else removed is gone as well. Without its data an index is nothing, so that goes last.
        for path in [data_path(&self.dir, oldest.number), index_path(&self.dir, oldest.number)] {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!("remove {}: {error}", path.display());
            }
        }
        true
    }

    /// What the ring takes when so many bytes more are written.
    fn would_take(&self, more: u64) -> u64 {
        let open = self.open.as_ref().map_or_else(
            || cost(more, BLOCK),
            // What the index grows by: its share, and a page that is begun.
            |open| cost(open.len + more, open.index_len + open.builder.waiting() + more / 32 + BLOCK),
        );
        self.directory + self.taken + open
    }

    fn make_room(&mut self, more: u64) -> Result<(), FileError> {
        // Who does not rotate as the ring would have it makes longer segments, but not a single one.
        let long = |open: &Open| open.len + more > 2 * self.options.segment() && open.builder.span().packets > 0;
        if self.open.as_ref().is_some_and(long) {
            self.close(None);
            self.begin()?;
        }
        while self.would_take(more) > self.options.budget || self.old.len() as u64 >= self.options.most_segments() {
            if !self.remove_oldest() {
                break;
            }
        }
        self.floor()
    }

    /// Keeps free what is to be kept free, now and then.
    fn floor(&mut self) -> Result<(), FileError> {
        let (at, bytes) = self.looked;
        if self.options.keep_free == 0 || (bytes < LOOK_BYTES && clock::now().saturating_since(at) < LOOK_EVERY) {
            return Ok(());
        }
        self.looked = (clock::now(), 0);
        while let Some(free) = free_bytes(&self.dir)
            && free < self.options.keep_free
        {
            // Where all of the ring would not be enough, nothing of it is given up.
            if free.saturating_add(self.taken) < self.options.keep_free || !self.remove_oldest() {
                return Err(FileError::Floor { path: self.dir.clone(), free, keep: self.options.keep_free });
            }
        }
        Ok(())
    }

    /// Removes what is older than it should be.
    fn expire(&mut self, now: UnixNanos) {
        let Some(keep) = self.options.keep else { return };
        while self.old.front().is_some_and(|oldest| now.saturating_since(oldest.last) > keep) {
            self.remove_oldest();
        }
    }

    /// Begins a segment, with the counters that one before has ended with.
    fn begin(&mut self) -> Result<(), FileError> {
        self.expire(now());
        self.number += 1;
        let (number, path) = (self.number, data_path(&self.dir, self.number));
        let head = self.head(number);
        self.directory = fs::metadata(&self.dir).map_or(BLOCK, |meta| meta.len().next_multiple_of(BLOCK)) + BLOCK;
        self.make_room(head.len() as u64 + ROOM as u64)?;
        let create = || File::create(&path).and_then(|mut data| data.write_all(&head).map(|()| data));
        let data = loop {
            match create() {
                Err(error) if full(&error) && self.remove_oldest() => {}
                created => break created.map_err(|source| FileError::Create { path: path.clone(), source })?,
            }
        };
        let index =
            File::create(index_path(&self.dir, number)).inspect_err(|error| log::warn!("{} has no index: {error}", path.display())).ok();
        let builder = Builder::new(&Header::new(self.key, number, &head));
        let (dropped, first) = self.counters.as_deref().and_then(dropped).unwrap_or_else(|| (0, self.at_first()));
        let (len, index_len) = (head.len() as u64, 0);
        let (link_type, blocks) = (self.interface.link_type, Blocks::within_section());
        let open = Open { number, data, path: path.clone(), len, index, index_len, builder, link_type, blocks, dropped };
        self.open = Some(open);
        self.done.files += 1;
        self.done.last = Some(path);
        self.done.bytes += len;
        let mut block = Vec::new();
        write::statistics(&first, &mut block);
        self.append(&block)
    }

    fn head(&self, number: u64) -> Vec<u8> {
        let mut section = self.section.clone();
        section.comment = segment::comment(&section.comment, number, now());
        let mut head = Vec::new();
        write::section(&section, &mut head);
        write::interface(&self.interface, &mut head);
        head
    }

    /// Counters when nothing has been counted yet.
    fn at_first(&self) -> Statistics {
        let time = now();
        Statistics { time, start: Some(time), interface_drops: Some(0), kernel_drops: Some(0), ..Statistics::default() }
    }

    /// Ends the present segment's index, and counts it as an old one.
    fn close(&mut self, counters: Option<&[u8]>) {
        let Some(mut open) = self.open.take() else { return };
        let dropped = counters.and_then(dropped).map(|(dropped, _)| dropped.saturating_sub(open.dropped));
        let span = open.builder.span();
        open.builder.finish(open.len, dropped);
        open.write_index(true);
        let last = if span.packets == 0 { now() } else { span.last };
        self.retire(open.number, last);
    }

    /// Appends whole blocks, and makes room for them as long as the disk is full and there is something to remove.
    fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.make_room(rest.len() as u64)?;
            let Some(open) = &mut self.open else { return Ok(()) };
            let (taken, outcome) = write_some(&mut open.data, open.len, rest);
            let Err(error) = outcome else {
                self.done.packets += open.wrote(rest);
                self.count(rest.len());
                return Ok(());
            };
            let again = full(&error) && self.remove_oldest();
            let Some(open) = &mut self.open else { return Ok(()) };
            let whole = whole_blocks(rest, if again { taken } else { taken.saturating_sub(ROOM) }).0;
            let (begin, after) = rest.split_at_checked(whole).unwrap_or((&[], rest));
            let end = open.len + whole as u64;
            // A disk that does not even cut a file leaves a torn block, which readers step back from.
            let cut = open.data.set_len(end).and_then(|()| open.data.seek(SeekFrom::Start(end)));
            log::debug!("{whole} of {} bytes written, cut: {cut:?}", rest.len());
            self.done.packets += open.wrote(begin);
            self.count(whole);
            if !again {
                let path = self.open.as_ref().map_or_else(PathBuf::new, |open| open.path.clone());
                return Err(FileError::Write { path, source: error });
            }
            rest = after;
        }
        Ok(())
    }

    fn count(&mut self, bytes: usize) {
        self.done.bytes += bytes as u64;
        self.looked.1 += bytes as u64;
    }

    fn heed(&mut self, outcome: Result<(), FileError>) {
        if let Err(problem) = outcome
            && self.done.problem.is_none()
        {
            self.done.problem = Some(problem);
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    fn rotate(&mut self, counters: &[u8]) -> Result<(), FileError> {
        self.append(counters)?;
        self.close(Some(counters));
        self.counters = Some(counters.to_owned());
        self.begin()
    }

    /// The last counters also go behind what a full disk has left room for.
    fn end(&mut self, counters: &[u8]) {
        let outcome = self.append(counters);
        self.heed(outcome);
        let files = self.open.as_ref().map(|open| (open.path.clone(), open.data.try_clone()));
        self.close(Some(counters));
        if let Some((path, data)) = files {
            let synced = data.and_then(|data| data.sync_data()).map_err(|source| FileError::Write { path, source });
            self.heed(synced);
        }
    }
}

impl Open {
    /// Takes what was written into the index; gives how many packets that was.
    fn wrote(&mut self, bytes: &[u8]) -> u64 {
        self.len += bytes.len() as u64;
        let (mut rest, mut packets) = (bytes, 0);
        while let Ok(Step::Block(block, len)) = self.blocks.next(rest) {
            self.builder.block(self.link_type, &block, len);
            packets += u64::from(matches!(block, Block::Packet(_)));
            rest = rest.get(len..).unwrap_or_default();
        }
        self.write_index(false);
        packets
    }

    /// Writes the index's whole pages, or all that there is.
    fn write_index(&mut self, all: bool) {
        let waiting = self.builder.out();
        let len = if all { waiting.len() } else { waiting.len() / BLOCK as usize * BLOCK as usize };
        let pages: Vec<u8> = waiting.drain(..len).collect();
        if let Some(index) = &mut self.index
            && let Err(error) = index.write_all(&pages)
        {
            log::warn!("{} goes on without an index: {error}", self.path.display());
            self.index = None;
        }
        self.index_len += len as u64;
    }
}

impl Disk for Store {
    fn patience(&self) -> Option<Duration> {
        self.options.keep.map(|keep| (keep / PARTS_OF_AGE).clamp(Duration::from_millis(100), Duration::from_secs(60)))
    }

    fn work(&mut self, job: Job) -> Option<Vec<u8>> {
        match job {
            Job::Blocks { bytes, .. } => {
                if self.done.problem.is_none() {
                    let outcome = self.append(&bytes);
                    self.heed(outcome);
                }
                Some(bytes)
            }
            Job::Rotate(counters) => {
                if self.done.problem.is_none() {
                    let outcome = self.rotate(&counters);
                    self.heed(outcome);
                }
                None
            }
            Job::End(counters) => {
                self.end(&counters);
                None
            }
        }
    }

    fn idle(&mut self) {
        self.expire(now());
    }

    fn done(self) -> Written {
        self.done
    }
}

#[cfg(test)]
mod tests;
