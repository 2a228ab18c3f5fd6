//! Where blocks go: a file, a ring of files, or a pipe, written by a thread of its own so that a slow disk does not hold up who
//! empties the kernel's buffer.
//!
//! ```text
//!  capturing thread ──[at most BUFFERS buffers]──▶ writing thread ──▶ disk
//!         ▲─────────────── empty ones ──────────────────┘
//! ```
//!
//! It must not know packets or filters; only that what it gets are whole blocks.
//!
//! **Invariants:**
//! - Memory is [`BUFFERS`] times [`BUFFER`] at most, more only where single packets are longer than a buffer (the kernel makes some of 64 KiB, a tunnel's up to 256); where the disk keeps up there are two, which stay in the
//!   processor's cache. Whoever is faster than the disk waits for an empty buffer, and the kernel counts what it drops.
//! - A file that is continued keeps every whole block that it had. One that is none of these formats, or is damaged, is left as it is.
//! - However it ends, a file on a disk is cut behind its last whole block, with room for the counters; what could not be written is
//!   counted.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::pcapng::read::{Block, Blocks, ReadError, Reader, Step};
use super::pcapng::{Packet, Statistics, write};
use crate::net::clock;
use crate::net::time::Instant;

/// Size of a buffer, in bytes.
pub const BUFFER: usize = 128 << 10;
/// How many there are at most: what comes in while a disk does not take anything for some tens of milliseconds, as file systems do when they
/// write out.
pub const BUFFERS: usize = 128;
/// How many there are of a file whose writing is confirmed: such captures run beside everything else on a small box.
const BUFFERS_CONFIRMED: usize = 24;
/// Most bytes of one call, which ends at a multiple of that in the file. Of larger ones ext4 makes folios that the kernel is slow to find
/// memory for.
const PIECE: u64 = 64 << 10;
/// Free space is looked at after so many bytes, or so long.
pub(super) const LOOK_BYTES: u64 = 4 << 20;
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Room that is kept behind the last block of a full disk: more than a block of counters is long.
pub(super) const ROOM: usize = 160;
/// Digits of a file's number in a ring.
const DIGITS: usize = 5;

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// One file, which is made anew.
    File(PathBuf),
    /// One file, which is continued by a new section where it is there; a block that was cut off at its end is removed.
    Continued(PathBuf),
    /// As [`To::Continued`], of a file that was cut to so many bytes ([`cut`]) and is not read again.
    Behind(PathBuf, u64),
    /// Files `NAME-00001.EXT` and so on; of those that are there already the numbers go on. The oldest ones are removed where there
    /// are more than so many.
    Ring(PathBuf, Option<u32>),
    /// Standard output.
    Pipe,
}

/// Why writing ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be made.
    #[error("make {}", .path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is there and cannot be continued.
    #[error("continue {}: it stays as it is", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// Somebody else is writing it.
    #[error("continue {}: another capture is writing it", .path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("write {}; it is whole up to what was counted", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Less is free than was to be kept.
    #[error("{} has {free} bytes free, and --keep-free {keep} shall stay", .path.display())]
    Floor {
        /// The file's directory.
        path: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes to be kept.
        keep: u64,
    },
    /// Whoever read the pipe is gone.
    #[error("nobody reads standard output any more")]
    ReaderGone,
    /// The thread cannot be started.
    #[error("start the writing thread")]
    Thread(#[source] io::Error),
}

/// What was written in all.
#[derive(Debug, Default)]
pub struct Written {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Files that were made; those that a ring removed are counted, too.
    pub files: u32,
    /// The last one.
    pub last: Option<PathBuf>,
    /// Why it ended early.
    pub problem: Option<FileError>,
}

/// What the writing thread is to do.
pub(super) enum Job {
    /// Append whole blocks, of which so many are packets.
    Blocks {
        /// The blocks.
        bytes: Vec<u8>,
        /// Packets among them.
        packets: u64,
    },
    /// End the present file with these counters, and begin the next one.
    Rotate(Vec<u8>),
    /// End the last file with these counters.
    End(Vec<u8>),
}

/// Who does the jobs, on the writing thread.
pub(super) trait Disk: Send + 'static {
    /// After so long without a job [`Self::idle`] is called; never where this is `None`.
    fn patience(&self) -> Option<Duration> {
        None
    }

    /// Does a job, and gives its buffer back.
    fn work(&mut self, job: Job) -> Option<Vec<u8>>;

    /// Nothing came for a while.
    fn idle(&mut self) {}

    /// What was written in all.
    fn done(self) -> Written;
}

/// Does all jobs until nobody gives any more.
fn serve(mut disk: impl Disk, todo: &Receiver<Job>, give_back: &Sender<Vec<u8>>) -> Written {
    loop {
        let job = match disk.patience() {
            None => todo.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(patience) => todo.recv_timeout(patience),
        };
        match job {
            Ok(job) => {
                if let Some(buffer) = disk.work(job) {
                    // A capture that has ended needs no buffer.
                    let _ = give_back.send(buffer);
                }
            }
            Err(RecvTimeoutError::Timeout) => disk.idle(),
            Err(RecvTimeoutError::Disconnected) => return disk.done(),
        }
    }
}

/// The capturing thread's end.
#[derive(Debug)]
pub struct Files {
    jobs: SyncSender<Job>,
    empty: Receiver<Vec<u8>>,
    buffer: Vec<u8>,
    /// Buffers that there are, and may be.
    made: usize,
    most: usize,
    packets: u64,
    /// Bytes handed over, in the file and in all.
    in_file: u64,
    in_all: u64,
    head: u64,
    failed: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

impl Files {
    /// Makes the first file, which begins with `head`, as each one will; `keep_free` bytes of its file system stay free.
    ///
    /// # Errors
    /// The file cannot be made, or too little is free.
    pub fn start(to: To, head: Vec<u8>, keep_free: u64) -> Result<Self, FileError> {
        Self::start_confirmed(to, head, keep_free, None)
    }

    /// As [`Files::start`], and `confirm` is told how many bytes of the file the disk has confirmed.
    ///
    /// # Errors
    /// The file cannot be made, or too little is free.
    pub fn start_confirmed(to: To, head: Vec<u8>, keep_free: u64, confirm: Option<Confirm>) -> Result<Self, FileError> {
        let failed = Arc::new(AtomicBool::new(false));
        let head_len = head.len() as u64;
        let writer = Writer::open(to, head, keep_free, failed.clone())?;
        let len = if let Output::File { len, .. } = writer.output { len } else { head_len };
        match confirm {
            None => Self::on(writer, head_len, len, failed),
            Some(confirm) => {
                Self::with(Confirmed { writer, confirm, asked: clock::now(), told: 0 }, head_len, len, failed, BUFFERS_CONFIRMED)
            }
        }
    }

    /// Has `disk` write. Each file begins with `head` bytes, the present one has `len`; `failed` says that writing has ended early.
    pub(super) fn on(disk: impl Disk, head: u64, len: u64, failed: Arc<AtomicBool>) -> Result<Self, FileError> {
        Self::with(disk, head, len, failed, BUFFERS)
    }

    fn with(disk: impl Disk, head: u64, len: u64, failed: Arc<AtomicBool>, most: usize) -> Result<Self, FileError> {
        let (jobs, todo) = sync_channel(BUFFERS);
        let (give_back, empty) = channel();
        let work = move || serve(disk, &todo, &give_back);
        let thread = std::thread::Builder::new().name("picket-files".into()).spawn(work).map_err(FileError::Thread)?;
        Ok(Self { jobs, empty, buffer: new_buffer(), made: 1, most, packets: 0, in_file: len, in_all: len, head, failed, thread })
    }

    /// Bytes of the present file, those on their way to it included.
    pub fn file_len(&self) -> u64 {
        self.in_file
    }

    /// Bytes of all files, those on their way included.
    pub fn total_len(&self) -> u64 {
        self.in_all
    }

    /// Whether writing has ended early: nothing more arrives on the disk.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Appends a packet. Waits where all buffers are on their way.
    pub fn packet(&mut self, packet: &Packet<'_>) {
        // A buffer grows for what is longer than all of it, and for nothing else.
        if self.buffer.len() + write::packet_len(packet.data.len()) > self.buffer.capacity() {
            self.flush();
        }
        let before = self.buffer.len();
        write::packet(packet, &mut self.buffer);
        self.packets += 1;
        self.count(before);
        if self.buffer.len() >= BUFFER {
            self.flush();
        }
    }

    fn count(&mut self, before: usize) {
        let more = (self.buffer.len() - before) as u64;
        self.in_file += more;
        self.in_all += more;
    }

    /// Sends what there is on its way.
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let mut next = self.next_buffer();
        next.clear();
        next.shrink_to(BUFFER);
        let bytes = core::mem::replace(&mut self.buffer, next);
        let _ = self.jobs.send(Job::Blocks { bytes, packets: core::mem::take(&mut self.packets) });
    }

    fn next_buffer(&mut self) -> Vec<u8> {
        if let Ok(buffer) = self.empty.try_recv() {
            // The disk keeps up again: what it needed meanwhile goes, one with each buffer.
            if self.empty.try_recv().is_ok() {
                self.made -= 1;
            }
            return buffer;
        }
        if self.made < self.most {
            self.made += 1;
            return new_buffer();
        }
        // The thread lives until the end is told; without it there would be nobody to write anyway.
        self.empty.recv().unwrap_or_default()
    }

    /// Ends the present file with counters, and begins the next one of a ring.
    pub fn rotate(&mut self, statistics: &Statistics) {
        self.flush();
        let _ = self.jobs.send(Job::Rotate(block_of(statistics)));
        self.in_file = self.head;
        self.in_all += self.head;
    }

    /// Ends the last file with counters.
    pub fn finish(mut self, statistics: &Statistics) -> Written {
        self.flush();
        let _ = self.jobs.send(Job::End(block_of(statistics)));
        drop(self.jobs);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Who is told how many bytes of a file the disk has confirmed, and how often that is asked of the disk.
pub struct Confirm {
    /// No more often than this: each time costs a card some of its life.
    pub every: Duration,
    /// Told the file's length, from the writing thread.
    pub tell: Box<dyn FnMut(u64) + Send>,
}

/// A writer that has the disk confirm what it wrote.
struct Confirmed {
    writer: Writer,
    confirm: Confirm,
    asked: Instant,
    told: u64,
}

impl Confirmed {
    /// Where bytes wait for the disk's word, when that is asked for.
    fn due(&self) -> Option<Instant> {
        let Writer { done, output, .. } = &self.writer;
        let waiting = done.problem.is_none() && matches!(output, Output::File { len, .. } if *len > self.told);
        waiting.then(|| self.asked + self.confirm.every)
    }

    fn look(&mut self) {
        let now = clock::now();
        if self.due().is_none_or(|due| now < due) {
            return;
        }
        self.asked = now;
        if let Output::File { file, path, len } = &mut self.writer.output {
            match file.sync_data() {
                Ok(()) => {
                    self.told = *len;
                    (self.confirm.tell)(*len);
                }
                // What the disk may have lost is not sent, and nothing is added to it.
                Err(source) => {
                    let path = path.clone();
                    self.writer.heed(Err(FileError::Write { path, source }));
                }
            }
        }
    }
}

impl Disk for Confirmed {
    fn patience(&self) -> Option<Duration> {
        self.due().map(|due| due.saturating_since(clock::now()))
    }

    fn work(&mut self, job: Job) -> Option<Vec<u8>> {
        let buffer = self.writer.work(job);
        self.look();
        buffer
    }

    fn idle(&mut self) {
        self.look();
    }

    fn done(self) -> Written {
        self.writer.done()
    }
}

fn new_buffer() -> Vec<u8> {
    Vec::with_capacity(BUFFER)
}

fn block_of(statistics: &Statistics) -> Vec<u8> {
    let mut bytes = Vec::new();
    write::statistics(statistics, &mut bytes);
    bytes
}

/// What is written to.
#[derive(Debug)]
enum Output {
    File { file: File, path: PathBuf, len: u64 },
    Pipe(io::Stdout),
}

#[derive(Debug)]
struct Writer {
    to: To,
    head: Vec<u8>,
    keep_free: u64,
    output: Output,
    /// Files of a ring, the oldest first.
    ring: Vec<PathBuf>,
    number: u64,
    looked: (Instant, u64),
    done: Written,
    failed: Arc<AtomicBool>,
}

impl Writer {
    fn open(to: To, head: Vec<u8>, keep_free: u64, failed: Arc<AtomicBool>) -> Result<Self, FileError> {
        let (ring, number) = match &to {
            To::Ring(path, _) => existing(path),
            To::File(_) | To::Continued(_) | To::Behind(..) | To::Pipe => (Vec::new(), 0),
        };
        let looked = (clock::now(), 0);
        let output = Output::Pipe(io::stdout());
        let mut writer = Self { to, head, keep_free, output, ring, number, looked, done: Written::default(), failed };
        writer.next_file()?;
        Ok(writer)
    }

    fn heed(&mut self, outcome: Result<(), FileError>) {
        if let Err(problem) = outcome {
            self.done.problem = Some(problem);
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    fn next_file(&mut self) -> Result<(), FileError> {
        let path = match &self.to {
            To::Pipe => {
                let head = core::mem::take(&mut self.head);
                return self.append(&head, 0);
            }
            To::File(path) | To::Continued(path) | To::Behind(path, _) => path.clone(),
            To::Ring(path, most) => {
                self.number += 1;
                let most = most.map_or(usize::MAX, |most| most as usize);
                // Room is made before it is needed.
                while self.ring.len() >= most {
                    // One that somebody else removed is gone as well.
                    let _ = fs::remove_file(self.ring.remove(0));
                }
                numbered(path, self.number)
            }
        };
        self.looked.1 = LOOK_BYTES;
        self.floor_of(directory(&path))?;
        let (file, len) = match self.to {
            To::Continued(_) => continued(&path)?,
            To::Behind(_, len) => behind(&path, len)?,
            _ => (emptied(&path)?, 0),
        };
        self.output = Output::File { file, path: path.clone(), len };
        if let To::Ring(..) = self.to {
            self.ring.push(path.clone());
        }
        self.done.files += 1;
        self.done.last = Some(path);
        let head = self.head.clone();
        self.append(&head, 0)
    }

    /// Looks at what is free, now and then.
    fn floor(&mut self) -> Result<(), FileError> {
        let Output::File { path, .. } = &self.output else { return Ok(()) };
        let dir = directory(path).to_owned();
        self.floor_of(&dir)
    }

    fn floor_of(&mut self, dir: &Path) -> Result<(), FileError> {
        let (at, bytes) = self.looked;
        if self.keep_free == 0 || (bytes < LOOK_BYTES && clock::now().saturating_since(at) < LOOK_EVERY) {
            return Ok(());
        }
        self.looked = (clock::now(), 0);
        // A file system that does not say is not held to it.
        let Some(free) = free_bytes(dir) else { return Ok(()) };
        if free < self.keep_free {
            return Err(FileError::Floor { path: dir.to_owned(), free, keep: self.keep_free });
        }
        Ok(())
    }

    /// Appends whole blocks. Where the disk takes only a part of them, what it took is cut to whole blocks again.
    fn append(&mut self, bytes: &[u8], packets: u64) -> Result<(), FileError> {
        let (taken, outcome) = match &mut self.output {
            Output::Pipe(out) => {
                let outcome = out.write_all(bytes).and_then(|()| out.flush());
                (bytes.len(), outcome.map_err(|_| FileError::ReaderGone))
            }
            Output::File { file, path, len } => {
                let (taken, outcome) = write_some(file, *len, bytes);
                let kept = if outcome.is_ok() { taken } else { whole_blocks(bytes, taken.saturating_sub(ROOM)).0 };
                *len += kept as u64;
                // A disk that does not even cut a file leaves a torn block, which readers say and step back from.
                let cut = outcome.is_ok() || (file.set_len(*len).is_ok() && file.seek(SeekFrom::Start(*len)).is_ok());
                log::debug!("{} of {} bytes written, cut: {cut}", kept, bytes.len());
                (kept, outcome.map_err(|source| FileError::Write { path: path.clone(), source }))
            }
        };
        match &outcome {
            Ok(()) => self.done.packets += packets,
            Err(FileError::ReaderGone) => return outcome,
            Err(_) => self.done.packets += whole_blocks(bytes, taken).1,
        }
        self.done.bytes += taken as u64;
        self.looked.1 += taken as u64;
        outcome
    }

    /// The last counters. They also go behind what a full disk has left room for.
    fn end(&mut self, counters: &[u8]) {
        let outcome = self.append(counters, 0);
        if self.done.problem.is_none() {
            self.heed(outcome);
        }
        if let Output::File { file, path, .. } = &self.output
            && let Err(source) = file.sync_data()
            && self.done.problem.is_none()
        {
            self.done.problem = Some(FileError::Write { path: path.clone(), source });
        }
    }
}

impl Disk for Writer {
    fn work(&mut self, job: Job) -> Option<Vec<u8>> {
        match job {
            Job::Blocks { bytes, packets } => {
                if self.done.problem.is_none() {
                    let outcome = self.floor().and_then(|()| self.append(&bytes, packets));
                    self.heed(outcome);
                }
                Some(bytes)
            }
            Job::Rotate(counters) => {
                if self.done.problem.is_none() {
                    let outcome = self.append(&counters, 0).and_then(|()| self.next_file());
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

    fn done(self) -> Written {
        self.done
    }
}

/// What is free in a directory's file system, where that says.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(dir).ok()?;
    #[allow(clippy::useless_conversion, reason = "these have 32 bits on some targets")]
    Some(u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size())))
}

/// Opens a file that nobody else writes, as it is. What cannot be locked, such as a device, nobody continues.
pub(super) fn locked(path: &Path, read: bool) -> Result<File, FileError> {
    let create = |source| FileError::Create { path: path.to_owned(), source };
    let file = File::options().read(read).write(true).create(true).truncate(false).open(path).map_err(create)?;
    if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
        return Err(FileError::Busy { path: path.to_owned() });
    }
    Ok(file)
}

/// Opens a file without what was in it.
pub(super) fn emptied(path: &Path) -> Result<File, FileError> {
    let file = locked(path, false)?;
    // A device has no length.
    if file.metadata().is_ok_and(|about| about.is_file()) {
        file.set_len(0).map_err(|source| FileError::Create { path: path.to_owned(), source })?;
    }
    Ok(file)
}

/// Opens a file behind its first `len` bytes, which are all that it keeps.
fn behind(path: &Path, len: u64) -> Result<(File, u64), FileError> {
    let mut file = locked(path, true)?;
    let set = file.set_len(len).and_then(|()| file.seek(SeekFrom::Start(len)));
    set.map_err(|source| FileError::Create { path: path.to_owned(), source })?;
    Ok((file, len))
}

/// Opens a file behind its last whole block, and cuts off what comes behind that.
fn continued(path: &Path) -> Result<(File, u64), FileError> {
    let create = |source| FileError::Create { path: path.to_owned(), source };
    let mut file = locked(path, true)?;
    let mut reader = Reader::new(&file);
    let ended = loop {
        match reader.next_block() {
            Ok(Some(_)) => {}
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let len = reader.offset();
    match ended {
        // The few bytes of a file without any whole block may be anything.
        Ok(()) | Err(ReadError::Torn { offset: 1.. }) => {}
        Err(source) => return Err(FileError::Foreign { path: path.to_owned(), source }),
    }
    file.set_len(len).and_then(|()| file.seek(SeekFrom::Start(len))).map_err(create)?;
    Ok((file, len))
}

/// What a file has that was left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    /// Bytes of whole blocks.
    pub len: u64,
    /// Packets.
    pub packets: u64,
    /// Sections: how often it was begun or continued.
    pub sections: u32,
}

/// Cuts a file of our own, which a crash or a power cut has ended, behind the last block that can be read. One that is not there has
/// nothing.
///
/// # Errors
/// It cannot be read or cut.
pub fn cut(path: &Path) -> Result<Left, FileError> {
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Left::default()),
        Err(source) => return Err(FileError::Create { path: path.to_owned(), source }),
    };
    let write = |source| FileError::Write { path: path.to_owned(), source };
    let mut left = Left::default();
    let mut reader = Reader::new(&file);
    loop {
        match reader.next_block() {
            Ok(Some(block)) => {
                left.packets += u64::from(matches!(block, Block::Packet(_)));
                left.sections += u32::from(matches!(block, Block::Section(_)));
            }
            Ok(None) => break,
            Err(ReadError::Io { source, .. }) => return Err(write(source)),
            Err(error) => {
                log::info!("{}: cut where a crash has left something else: {error}", path.display());
                break;
            }
        }
    }
    left.len = reader.offset();
    file.set_len(left.len).and_then(|()| file.sync_all()).map_err(write)?;
    Ok(left)
}

/// Writes behind the first `len` bytes until all is taken or an error comes; gives how much was taken.
pub(super) fn write_some(file: &mut File, len: u64, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut taken = 0;
    while let Some(rest) = bytes.get(taken..)
        && !rest.is_empty()
    {
        let piece = PIECE - (len + taken as u64) % PIECE;
        match file.write(rest.get(..piece as usize).unwrap_or(rest)) {
            Ok(0) => return (taken, Err(io::ErrorKind::WriteZero.into())),
            Ok(more) => taken += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (taken, Err(error)),
        }
    }
    (taken, Ok(()))
}

/// How many of the first `most` bytes are whole blocks, and how many packets are among these.
pub(super) fn whole_blocks(bytes: &[u8], most: usize) -> (usize, u64) {
    let (mut blocks, mut at, mut packets) = (Blocks::within_section(), 0, 0);
    while let Ok(Step::Block(block, len)) = blocks.next(bytes.get(at..most).unwrap_or_default()) {
        at += len;
        packets += u64::from(matches!(block, Block::Packet(_)));
    }
    (at, packets)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What a ring's files are called around their number.
fn around(path: &Path) -> (OsString, OsString) {
    let mut before = path.file_stem().unwrap_or_default().to_owned();
    before.push("-");
    let after = path.extension().map_or_else(OsString::new, |extension| {
        let mut after = OsString::from(".");
        after.push(extension);
        after
    });
    (before, after)
}

fn numbered(path: &Path, number: u64) -> PathBuf {
    let (mut name, after) = around(path);
    name.push(format!("{number:0DIGITS$}"));
    name.push(after);
    path.with_file_name(name)
}

/// Files that a ring has already, the oldest first, and the highest number.
fn existing(path: &Path) -> (Vec<PathBuf>, u64) {
    let (before, after) = around(path);
    let (Some(before), Some(after)) = (before.to_str(), after.to_str()) else { return (Vec::new(), 0) };
    let number = |name: &str| {
        let digits = name.strip_prefix(before)?.strip_suffix(after)?;
        let right = digits.len() >= DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        right.then(|| digits.parse::<u64>().ok()).flatten()
    };
    // A directory that cannot be read has none that we know of; making a file in it will say why.
    let names = fs::read_dir(directory(path)).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> = names.filter_map(|entry| Some((number(entry.file_name().to_str()?)?, entry.path()))).collect();
    found.sort();
    let last = found.last().map_or(0, |(number, _)| *number);
    (found.into_iter().map(|(_, path)| path).collect(), last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::UnixNanos;
    use crate::capture::pcapng::read::Reader;
    use crate::capture::pcapng::{Interface, Section};

    fn head() -> Vec<u8> {
        let mut head = Vec::new();
        write::section(&Section::default(), &mut head);
        write::interface(&Interface { link_type: 1, snap_len: 0, name: "eth0".into(), filter: String::new() }, &mut head);
        head
    }

    fn packet(n: u64, data: &[u8]) -> Packet<'_> {
        Packet { interface: 0, time: UnixNanos(n), original_len: 1500, data }
    }

    /// The times of a file's packets, and whether it ends with counters.
    fn read(path: &Path) -> (Vec<u64>, bool) {
        let mut reader = Reader::new(File::open(path).unwrap());
        let (mut times, mut counters) = (Vec::new(), false);
        while let Some(block) = reader.next_block().unwrap() {
            counters = matches!(block, Block::Statistics(_));
            if let Block::Packet(packet) = block {
                times.push(packet.time.0);
            }
        }
        (times, counters)
    }

    #[test]
    fn packets_arrive_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pcapng");
        let mut files = Files::start(To::File(path.clone()), head(), 1).unwrap();
        // Many times what the buffers hold.
        for n in 0..40_000 {
            files.packet(&packet(n, &[7; 96]));
        }
        let expected = files.total_len();
        let written = files.finish(&Statistics::default());
        assert!(written.problem.is_none(), "{written:?}");
        assert_eq!((written.packets, written.files), (40_000, 1));
        assert_eq!((written.bytes, fs::metadata(&path).unwrap().len()), (expected + 28, expected + 28));
        assert_eq!(read(&path), ((0..40_000).collect(), true));
    }

    #[test]
    fn what_was_cut_off_anywhere_is_continued_behind_its_last_whole_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.pcapng");
        let run = |numbers: core::ops::Range<u64>| {
            let mut files = Files::start(To::Continued(path.clone()), head(), 1).unwrap();
            numbers.for_each(|n| files.packet(&packet(n, b"hello")));
            let total = files.total_len();
            (total, files.finish(&Statistics::default()))
        };
        assert_eq!(run(0..3).1.packets, 3, "one that is not there is made");
        let whole = fs::read(&path).unwrap();
        for cut in head().len()..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let kept = (cut - head().len()) / 40;
            let (total, written) = run(7..9);
            assert!(written.problem.is_none(), "{written:?}");
            let mut times: Vec<u64> = (0..kept.min(3) as u64).collect();
            times.extend([7, 8]);
            assert_eq!(read(&path), (times, true), "cut at {cut}");
            let len = fs::metadata(&path).unwrap().len();
            assert_eq!((written.packets, total + 28), (2, len), "limits count what was there already");
        }
    }

    #[test]
    fn what_is_no_whole_capture_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.pcapng");
        let mut damaged = head();
        write::packet(&packet(1, b"hello"), &mut damaged);
        *damaged.last_mut().unwrap() = 7;
        for bytes in [&b"abc"[..], b"a diary of many years", &head()[..9], &damaged] {
            fs::write(&path, bytes).unwrap();
            let error = Files::start(To::Continued(path.clone()), head(), 0).unwrap_err();
            assert!(matches!(error, FileError::Foreign { .. }), "{error}");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn nobody_continues_what_is_being_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.pcapng");
        for to in [To::File(path.clone()), To::Continued(path.clone())] {
            let first = Files::start(to, head(), 0).unwrap();
            let error = Files::start(To::Continued(path.clone()), head(), 0).unwrap_err();
            assert!(matches!(error, FileError::Busy { .. }), "{error}");
            assert!(first.finish(&Statistics::default()).problem.is_none());
        }
        assert_eq!(read(&path), (Vec::new(), true));
    }

    #[test]
    fn a_ring_keeps_the_newest_and_goes_on_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.pcapng");
        // Somebody else's.
        for other in ["r-x.pcapng", "r-00001.pcap", "s-00009.pcapng"] {
            fs::write(dir.path().join(other), "mine").unwrap();
        }
        for run in 0..2 {
            let mut files = Files::start(To::Ring(path.clone(), Some(3)), head(), 0).unwrap();
            for n in 0..5 {
                if n > 0 {
                    files.rotate(&Statistics::default());
                    assert_eq!(files.file_len(), head().len() as u64);
                }
                files.packet(&packet(run * 10 + n, b"hello"));
            }
            let written = files.finish(&Statistics::default());
            assert_eq!((written.packets, written.files), (5, 5));
        }
        let mut left: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["r-00001.pcap", "r-00008.pcapng", "r-00009.pcapng", "r-00010.pcapng", "r-x.pcapng", "s-00009.pcapng"]);
        assert_eq!(read(&dir.path().join("r-00009.pcapng")), (vec![13], true));
    }

    #[test]
    fn what_cannot_be_begun_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let error = Files::start(To::File(dir.path().join("no/such.pcapng")), head(), 0).unwrap_err();
        assert!(matches!(error, FileError::Create { .. }), "{error}");
        let error = Files::start(To::File(dir.path().join("a.pcapng")), head(), u64::MAX).unwrap_err();
        assert!(matches!(error, FileError::Floor { keep: u64::MAX, .. }), "{error}");
        assert!(!dir.path().join("a.pcapng").exists());
    }

    #[test]
    fn only_whole_blocks_are_counted() {
        let mut bytes = Vec::new();
        for n in 0..3 {
            write::packet(&packet(n, b"hello"), &mut bytes);
        }
        let one = bytes.len() / 3;
        for (most, whole) in [(0, 0), (one - 1, 0), (one, 1), (2 * one + 3, 2), (3 * one, 3)] {
            assert_eq!(whole_blocks(&bytes, most), (whole * one, whole as u64));
        }
    }
}
