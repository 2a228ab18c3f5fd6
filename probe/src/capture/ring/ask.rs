//! Asking a ring: the packets that match as pcapng, and what there is.
//!
//! It must not know who asks. The ring may be written meanwhile by another process, and lose its oldest segments.
//!
//! **Invariants:**
//! - Memory is bounded by one extent, one index, and the interfaces of the ring.
//! - What is written is a whole pcapng file once [`ask`] has returned without an error; its last block are the counters.
//! - What could not be looked at is told: segments that were gone, places that are damaged.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::index::{Extent, Span};
use super::query::Question;
use super::segment::{self, Segment, Walk};
use crate::capture::UnixNanos;
use crate::capture::bpf::Program;
use crate::capture::pcapng::read::{Block, MAX_INTERFACES};
use crate::capture::pcapng::{Interface, Packet, Section, Statistics, write};

/// What is gathered before it is written, in bytes.
const PIECE: usize = 64 << 10;

/// Why a ring cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no such directory, or it cannot be read.
    #[error("read the directory of the ring, {}", .path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It holds no segment.
    #[error(
        "{} holds no ring: no file segment-NUMBER.pcapng is in it; `picket-probe capture --ring DIR --disk SIZE` makes one", .0.display()
    )]
    NoRing(PathBuf),
    /// A segment cannot be read.
    #[error("read {}", .path.display())]
    Read {
        /// The segment.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The filter is wrong.
    #[cfg(feature = "libpcap")]
    #[error(transparent)]
    Filter(#[from] picket_wire::filter::FilterError),
    /// Nobody here knows filters.
    #[cfg(not(feature = "libpcap"))]
    #[error("this program was built without libpcap and knows no filters: ask by hosts, ports and times")]
    NoFilters,
    /// More interfaces than a file may have.
    #[error("the packets were captured in more than {MAX_INTERFACES} different ways (interface, filter, length kept): ask for less time")]
    TooManyInterfaces,
    /// The answer cannot be written.
    #[error("write the answer")]
    Write(#[source] io::Error),
    /// It was stopped.
    #[error("stopped before the end")]
    Stopped,
}

/// What an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answer {
    /// Segments of the ring, and of these, those that were looked into since their times can match.
    pub segments: u64,
    /// See there.
    pub segments_read: u64,
    /// Segments that were removed meanwhile.
    pub segments_gone: u64,
    /// Extents that were read, and those that the index spared.
    pub extents_read: u64,
    /// See there.
    pub extents_skipped: u64,
    /// Bytes of segments that were read.
    pub bytes_read: u64,
    /// Of these, bytes of which no index tells.
    pub bytes_unindexed: u64,
    /// Places at which segments are damaged: what follows there is missing.
    pub damaged: u64,
    /// Packets that were looked at.
    pub looked_at: u64,
    /// Packets that matched.
    pub packets: u64,
    /// When the first and the last of these in time were seen.
    pub times: Option<(UnixNanos, UnixNanos)>,
    /// Packets that the kernel or the interface dropped while the segments that were looked into were written, where they have ended in order.
    pub dropped: u64,
    /// Segments of which nobody knows how many were dropped: the present one, and those whose capture was killed.
    pub dropped_unknown: u64,
}

/// Writes the packets of the ring in `dir` that match, as pcapng. `stop` ends it early.
///
/// # Errors
/// The ring cannot be read, the filter is wrong, the answer cannot be written, or it was stopped.
pub fn ask(dir: &Path, question: &Question, out: &mut dyn Write, stop: &AtomicBool) -> Result<Answer, AskError> {
    let numbers = segments(dir)?;
    let mut gather = Gather::new(question, out, stop);
    gather.answer.segments = numbers.len() as u64;
    gather.newest = newest(dir, &numbers)?;
    if let Some(link_type) = gather.newest.as_ref().map(|interface| interface.link_type) {
        gather.program(link_type)?;
    }
    for number in numbers {
        gather.segment(dir, number)?;
    }
    gather.finish()
}

fn segments(dir: &Path) -> Result<Vec<u64>, AskError> {
    let listing = segment::list(dir).map_err(|source| AskError::List { path: dir.to_owned(), source })?;
    if listing.segments.is_empty() { Err(AskError::NoRing(dir.to_owned())) } else { Ok(listing.segments) }
}

/// Compiles a filter for a link.
#[cfg(feature = "libpcap")]
fn compiled(filter: &str, link_type: u16) -> Result<Program, AskError> {
    Ok(crate::capture::source::compile(filter, link_type)?)
}

#[cfg(not(feature = "libpcap"))]
fn compiled(_filter: &str, _link_type: u16) -> Result<Program, AskError> {
    Err(AskError::NoFilters)
}

/// How the newest packets were captured: a filter is tried for these before anything else is done.
fn newest(dir: &Path, numbers: &[u64]) -> Result<Option<Interface>, AskError> {
    for number in numbers.iter().rev() {
        let read = |source| AskError::Read { path: segment::data_path(dir, *number), source };
        let Some(segment) = Segment::open(dir, *number).map_err(read)? else { continue };
        if let Some(interface) = segment.interface().map_err(read)? {
            return Ok(Some(interface));
        }
    }
    Ok(None)
}

/// An interface of the section that is being read.
struct Here {
    interface: Interface,
    /// Its number in the answer.
    number: Option<u32>,
    program: Option<Rc<Program>>,
}

/// An interface of the answer.
struct There {
    interface: Interface,
    packets: u64,
}

struct Gather<'a> {
    question: &'a Question,
    out: &'a mut dyn Write,
    stop: &'a AtomicBool,
    buffer: Vec<u8>,
    section: Section,
    here: Vec<Here>,
    there: Vec<There>,
    /// The filter, for each link at which it was needed.
    programs: Vec<(u16, Rc<Program>)>,
    newest: Option<Interface>,
    /// Drops by the segment's first counters and by the last of the others.
    drops: (Option<u64>, Option<u64>),
    begun: bool,
    answer: Answer,
}

/// What reading a segment is ended by.
enum Broken {
    Read(io::Error),
    Ask(AskError),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl<'a> Gather<'a> {
    fn new(question: &'a Question, out: &'a mut dyn Write, stop: &'a AtomicBool) -> Self {
        Self {
            question,
            out,
            stop,
            buffer: Vec::new(),
            section: Section::default(),
            here: Vec::new(),
            there: Vec::new(),
            programs: Vec::new(),
            newest: None,
            drops: (None, None),
            begun: false,
            answer: Answer::default(),
        }
    }

    fn segment(&mut self, dir: &Path, number: u64) -> Result<(), AskError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(AskError::Stopped);
        }
        let read = |source| AskError::Read { path: segment::data_path(dir, number), source };
        let Some(segment) = Segment::open(dir, number).map_err(read)? else {
            self.answer.segments_gone += 1;
            return Ok(());
        };
        let end = segment.end();
        if let Some(end) = end
            && !self.question.wants(&Span { packets: end.packets, first: end.first, last: end.last })
        {
            return Ok(());
        }
        self.answer.segments_read += 1;
        self.drops = (None, None);
        let question = self.question;
        let hashes = segment.header().map(|header| question.hashes(&header.key)).unwrap_or_default();
        let mut wants = |extent: &Extent<'_>| question.wants_extent(extent, &hashes);
        let walk = segment.read(&mut wants, &mut |block| self.block(block).map_err(Broken::Ask)).map_err(|broken| match broken {
            Broken::Read(source) => read(source),
            Broken::Ask(error) => error,
        })?;
        self.count(&walk, end.and_then(|end| end.dropped));
        Ok(())
    }

    fn count(&mut self, walk: &Walk, dropped: Option<u64>) {
        let answer = &mut self.answer;
        answer.extents_read += walk.read;
        answer.extents_skipped += walk.skipped;
        answer.bytes_read += walk.bytes;
        answer.bytes_unindexed += walk.unindexed;
        answer.damaged += walk.damaged;
        // A segment that was read as a whole has told by itself, if it has both counters.
        let told = self.drops.0.zip(self.drops.1).and_then(|(first, last)| last.checked_sub(first));
        match dropped.or(told.filter(|_| walk.skipped == 0)) {
            Some(dropped) => answer.dropped += dropped,
            None => answer.dropped_unknown += 1,
        }
    }

    fn block(&mut self, block: &Block<'_>) -> Result<(), AskError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(AskError::Stopped);
        }
        match block {
            Block::Section(section) => {
                self.here.clear();
                self.section = section.clone();
            }
            Block::Interface(interface) => {
                let program = self.program(interface.link_type)?;
                self.here.push(Here { interface: interface.clone(), number: None, program });
            }
            Block::Packet(packet) => return self.packet(packet),
            Block::Statistics(statistics) => {
                let now = statistics.kernel_drops.unwrap_or(0) + statistics.interface_drops.unwrap_or(0);
                self.drops = self.drops.0.map_or((Some(now), None), |first| (Some(first), Some(now)));
            }
            Block::Other(_) => {}
        }
        Ok(())
    }

    fn program(&mut self, link_type: u16) -> Result<Option<Rc<Program>>, AskError> {
        let filter = &self.question.filter;
        if filter.is_empty() {
            return Ok(None);
        }
        if let Some((_, program)) = self.programs.iter().find(|(known, _)| *known == link_type) {
            return Ok(Some(program.clone()));
        }
        let program = Rc::new(compiled(filter, link_type)?);
        self.programs.push((link_type, program.clone()));
        Ok(Some(program))
    }

    fn packet(&mut self, packet: &Packet<'_>) -> Result<(), AskError> {
        self.answer.looked_at += 1;
        let Some(here) = self.here.get(packet.interface as usize) else { return Ok(()) };
        let filtered = here.program.as_ref().is_none_or(|program| program.wants(packet.data, packet.original_len));
        if !filtered || !self.question.matches(here.interface.link_type, packet) {
            return Ok(());
        }
        let interface = self.number(packet.interface)?;
        write::packet(&Packet { interface, ..*packet }, &mut self.buffer);
        if let Some(there) = self.there.get_mut(interface as usize) {
            there.packets += 1;
        }
        self.answer.packets += 1;
        let (first, last) = self.answer.times.unwrap_or((packet.time, packet.time));
        self.answer.times = Some((first.min(packet.time), last.max(packet.time)));
        if self.buffer.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    /// The number in the answer of an interface of this section, which is described at its first packet.
    fn number(&mut self, interface: u32) -> Result<u32, AskError> {
        self.begin();
        let Some(here) = self.here.get_mut(interface as usize) else { return Err(AskError::TooManyInterfaces) };
        if let Some(number) = here.number {
            return Ok(number);
        }
        let known = self.there.iter().position(|there| there.interface == here.interface);
        let number = known.unwrap_or(self.there.len());
        if number >= MAX_INTERFACES {
            return Err(AskError::TooManyInterfaces);
        }
        if known.is_none() {
            write::interface(&here.interface, &mut self.buffer);
            self.there.push(There { interface: here.interface.clone(), packets: 0 });
        }
        here.number = Some(number as u32);
        Ok(number as u32)
    }

    fn begin(&mut self) {
        if core::mem::replace(&mut self.begun, true) {
            return;
        }
        let Section { hardware, os, .. } = self.section.clone();
        let application = concat!("picket-probe ", env!("CARGO_PKG_VERSION")).to_owned();
        let comment = format!("asked of a ring: {}; {}", self.question, segment::of_capture(&self.section.comment));
        write::section(&Section { hardware, os, application, comment }, &mut self.buffer);
    }

    fn flush(&mut self) -> Result<(), AskError> {
        self.out.write_all(&self.buffer).map_err(AskError::Write)?;
        self.buffer.clear();
        Ok(())
    }

    /// Ends with counters for each interface. Who has no packet to show still shows an interface, without which some tools read no file.
    fn finish(mut self) -> Result<Answer, AskError> {
        self.begin();
        if let (true, Some(interface)) = (self.there.is_empty(), self.newest.take()) {
            write::interface(&interface, &mut self.buffer);
            self.there.push(There { interface, packets: 0 });
        }
        let (first, last) = self.answer.times.unwrap_or_default();
        for (number, there) in self.there.iter().enumerate() {
            let counters = Statistics {
                interface: number as u32,
                time: last,
                start: Some(first),
                end: Some(last),
                accepted: Some(there.packets),
                delivered: Some(there.packets),
                ..Statistics::default()
            };
            write::statistics(&counters, &mut self.buffer);
        }
        self.flush()?;
        self.out.flush().map_err(AskError::Write)?;
        Ok(self.answer)
    }
}

/// A segment as [`show`] tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its number.
    pub number: u64,
    /// The file with its packets.
    pub path: PathBuf,
    /// Bytes of that.
    pub bytes: u64,
    /// Bytes of its index; 0 where it has none that belongs to it.
    pub index_bytes: u64,
    /// Packets, and between which times.
    pub span: Span,
    /// Whether it has ended in order.
    pub ended: bool,
    /// Places at which it is damaged, as far as it was read.
    pub damaged: u64,
}

/// What is in the ring, the oldest segment first. What the index tells is not read.
///
/// # Errors
/// The ring cannot be read.
pub fn show(dir: &Path) -> Result<Vec<Shown>, AskError> {
    let mut shown = Vec::new();
    for number in segments(dir)? {
        let path = segment::data_path(dir, number);
        let look = || -> io::Result<Option<Shown>> {
            let Some(segment) = Segment::open(dir, number)? else { return Ok(None) };
            let (bytes, index_bytes) = segment.lens();
            let (span, walk) = segment.span()?;
            let ended = segment.end().is_some();
            Ok(Some(Shown { number, path: path.clone(), bytes, index_bytes, span, ended, damaged: walk.damaged }))
        };
        shown.extend(look().map_err(|source| AskError::Read { path: path.clone(), source })?);
    }
    Ok(shown)
}
