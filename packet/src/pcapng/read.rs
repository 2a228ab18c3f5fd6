//! Blocks from bytes, with bounds.
//!
//! [`Blocks`] takes apart what it is shown; [`Reader`] shows it a stream, piece by piece.
//!
//! It must not know files.
//!
//! **Invariants:**
//! - No bytes cause a panic, and none more memory than [`MAX_BLOCK`] and [`MAX_INTERFACES`] allow.
//! - [`Reader::offset`] is the end of the last whole block: a file that is cut there is a valid one.

use core::fmt;
use std::io::{self, Read};

use super::{
    BYTE_ORDER_MAGIC, ENHANCED_PACKET, FRAMING, INTERFACE_DESCRIPTION, INTERFACE_STATISTICS, Interface, MAJOR, Packet, SECTION_HEADER,
    Section, Statistics, option,
};
use crate::UnixNanos;

/// Longest block, in bytes: four times what capture libraries keep of a packet at most.
pub const MAX_BLOCK: usize = 1 << 20;
/// Most interfaces of a section.
pub const MAX_INTERFACES: usize = 1024;
/// What is read of a stream at once, in bytes.
const PIECE: usize = 64 << 10;

/// Why bytes are no pcapng.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It begins as something else.
    #[error("this is no pcapng: a file begins with a section header, type 0x0a0d0d0a")]
    NotPcapng,
    /// A section of another version.
    #[error("the section has version {0}; this program reads version 1")]
    Version(u16),
    /// A length that no block has.
    #[error("a block of type {kind:#x} says that it is {len} bytes long; lengths are multiples of 4 from 12 to {MAX_BLOCK}")]
    Length {
        /// The block's type.
        kind: u32,
        /// The length.
        len: u32,
    },
    /// The length behind a block is another than the one in front of it.
    #[error("a block of type {kind:#x} has the length {front} in front and {back} behind: the file is damaged")]
    Lengths {
        /// The block's type.
        kind: u32,
        /// In front.
        front: u32,
        /// Behind.
        back: u32,
    },
    /// A block whose fields do not fit into it.
    #[error("a {0} is shorter than its fields: the file is damaged")]
    Short(BlockKind),
    /// A packet or counters of an interface that was not described.
    #[error("a {kind} names interface {interface}, and the section describes {known}")]
    UnknownInterface {
        /// What names it.
        kind: BlockKind,
        /// The interface.
        interface: u32,
        /// How many there are.
        known: usize,
    },
    /// More interfaces than anybody has.
    #[error("the section describes more than {MAX_INTERFACES} interfaces")]
    TooManyInterfaces,
}

/// Why a stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is no pcapng, or damaged.
    #[error("at byte {offset}: {error}")]
    Format {
        /// Where the block begins.
        offset: u64,
        /// What is wrong with it.
        error: FormatError,
    },
    /// It ends in the middle of a block, as that of a capture does that was killed.
    #[error("the file ends in the middle of a block; it is whole up to byte {offset}")]
    Torn {
        /// Where the block begins.
        offset: u64,
    },
    /// The system's answer.
    #[error("at byte {offset}")]
    Io {
        /// How far it was read.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// Blocks that we know, as errors name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// Section Header Block.
    Section,
    /// Interface Description Block.
    Interface,
    /// Enhanced Packet Block.
    Packet,
    /// Interface Statistics Block.
    Statistics,
}

impl fmt::Display for BlockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Section => "section header",
            Self::Interface => "description of an interface",
            Self::Packet => "packet",
            Self::Statistics => "block of counters",
        })
    }
}

/// What a block holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block<'a> {
    /// A section begins; interfaces are counted from zero again.
    Section(Section),
    /// The section's next interface.
    Interface(Interface),
    /// A packet.
    Packet(Packet<'a>),
    /// Counters.
    Statistics(Statistics),
    /// Something of another type, stepped over.
    Other(u32),
}

/// What the first bytes of some hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<'a> {
    /// A whole block, and its length in bytes.
    Block(Block<'a>, usize),
    /// The beginning of a block. The whole of it, or of what tells its length, has so many bytes.
    More(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn word(self, bytes: [u8; 4]) -> u32 {
        match self {
            Order::Little => u32::from_le_bytes(bytes),
            Order::Big => u32::from_be_bytes(bytes),
        }
    }

    fn half(self, bytes: [u8; 2]) -> u16 {
        match self {
            Order::Little => u16::from_le_bytes(bytes),
            Order::Big => u16::from_be_bytes(bytes),
        }
    }

    fn double(self, bytes: [u8; 8]) -> u64 {
        match self {
            Order::Little => u64::from_le_bytes(bytes),
            Order::Big => u64::from_be_bytes(bytes),
        }
    }
}

/// How the times of an interface count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Clock {
    /// `if_tsresol`: a power of ten, or of two with the highest bit set.
    resolution: u8,
    /// `if_tsoffset`, in seconds.
    offset: i64,
}

impl Default for Clock {
    /// Microseconds (section 4.2).
    fn default() -> Self {
        Self { resolution: 6, offset: 0 }
    }
}

impl Clock {
    fn time(self, units: u64) -> UnixNanos {
        let (units, second) = (u128::from(units), u128::from(UnixNanos::SECOND));
        let exponent = u32::from(self.resolution & 0x7f);
        let nanos = if self.resolution & 0x80 != 0 {
            // 64 bits of units and 30 of nanoseconds fit into 128.
            (units * second).checked_shr(exponent).unwrap_or(0)
        } else if exponent <= 9 {
            units * 10u128.pow(9 - exponent)
        } else {
            10u128.checked_pow(exponent - 9).map_or(0, |divisor| units / divisor)
        };
        let whole = i128::try_from(nanos).unwrap_or(i128::MAX).saturating_add(i128::from(self.offset) * second as i128);
        UnixNanos(whole.clamp(0, u64::MAX.into()) as u64)
    }
}

/// Takes fields off the front of a body.
#[derive(Clone, Copy)]
struct Fields<'a> {
    rest: &'a [u8],
    order: Order,
}

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*bytes)
    }

    fn word(&mut self) -> Option<u32> {
        self.take().map(|bytes| self.order.word(bytes))
    }

    fn half(&mut self) -> Option<u16> {
        self.take().map(|bytes| self.order.half(bytes))
    }

    /// A time: the high word comes first in either byte order.
    fn moment(&mut self) -> Option<u64> {
        Some(u64::from(self.word()?) << 32 | u64::from(self.word()?))
    }

    /// Bytes that are padded to a multiple of four. The last padding of a block may be missing.
    fn padded(&mut self, len: usize) -> Option<&'a [u8]> {
        let bytes = self.rest.get(..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(bytes)
    }

    /// The options that follow; an option that does not fit ends them.
    fn options(mut self) -> impl Iterator<Item = (u16, &'a [u8])> {
        core::iter::from_fn(move || {
            let (code, len) = (self.half()?, self.half()?);
            if code == option::END {
                return None;
            }
            Some((code, self.padded(len.into())?))
        })
    }
}

/// Text of an option: what is no UTF-8 is replaced.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// A block's outside.
enum Frame<'a> {
    More(usize),
    Whole { kind: u32, fields: Fields<'a>, len: usize },
}

/// Looks at a block's type and its two lengths (section 3.1), in the byte order of the section or of the one that begins here.
fn frame(order: Option<Order>, bytes: &[u8]) -> Result<Frame<'_>, FormatError> {
    let Some(([kind, len], _)) = bytes.as_chunks::<4>().0.split_first_chunk::<2>() else { return Ok(Frame::More(8)) };
    let order = if u32::from_le_bytes(*kind) == SECTION_HEADER {
        let Some(magic) = bytes.get(8..).and_then(<[u8]>::first_chunk::<4>) else { return Ok(Frame::More(FRAMING)) };
        [Order::Little, Order::Big].into_iter().find(|order| order.word(*magic) == BYTE_ORDER_MAGIC).ok_or(FormatError::NotPcapng)?
    } else {
        order.ok_or(FormatError::NotPcapng)?
    };
    let (kind, len) = (order.word(*kind), order.word(*len));
    let whole = len as usize;
    if !(FRAMING..=MAX_BLOCK).contains(&whole) || !whole.is_multiple_of(4) {
        return Err(FormatError::Length { kind, len });
    }
    let Some((body, back)) = bytes.get(..whole).and_then(<[u8]>::split_last_chunk::<4>) else { return Ok(Frame::More(whole)) };
    let back = order.word(*back);
    if back != len {
        return Err(FormatError::Lengths { kind, front: len, back });
    }
    Ok(Frame::Whole { kind, fields: Fields { rest: body.get(8..).unwrap_or_default(), order }, len: whole })
}

/// The blocks of a file, whatever shows them.
#[derive(Debug, Default)]
pub struct Blocks {
    order: Option<Order>,
    clocks: Vec<Clock>,
}

impl Blocks {
    /// Before the first byte of a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// In the middle of a section that this program writes: little-endian, with one interface.
    pub fn within_section() -> Self {
        Self { order: Some(Order::Little), clocks: vec![Clock { resolution: 9, offset: 0 }] }
    }

    /// Looks at what `bytes` begin with, which is where the block before ended.
    ///
    /// # Errors
    /// It is no block, or one that contradicts itself or the section. Nothing that follows can be told apart then.
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Result<Step<'a>, FormatError> {
        match frame(self.order, bytes)? {
            Frame::More(wanted) => Ok(Step::More(wanted)),
            Frame::Whole { kind, fields, len } => Ok(Step::Block(self.block(kind, fields)?, len)),
        }
    }

    fn block<'a>(&mut self, kind: u32, fields: Fields<'a>) -> Result<Block<'a>, FormatError> {
        match kind {
            SECTION_HEADER => self.section(fields).map(Block::Section),
            INTERFACE_DESCRIPTION => self.interface(fields).map(Block::Interface),
            ENHANCED_PACKET => self.packet(fields).map(Block::Packet),
            INTERFACE_STATISTICS => self.statistics(fields).map(Block::Statistics),
            other => Ok(Block::Other(other)),
        }
    }

    /// Section 4.1.
    fn section(&mut self, mut fields: Fields<'_>) -> Result<Section, FormatError> {
        let short = FormatError::Short(BlockKind::Section);
        let (_magic, major) = (fields.word().ok_or(short)?, fields.half().ok_or(short)?);
        if major != MAJOR {
            return Err(FormatError::Version(major));
        }
        let (_minor, _length) = (fields.half().ok_or(short)?, fields.take::<8>().ok_or(short)?);
        self.order = Some(fields.order);
        self.clocks.clear();
        let mut section = Section::default();
        for (code, value) in fields.options() {
            match code {
                option::SECTION_HARDWARE => section.hardware = text(value),
                option::SECTION_OS => section.os = text(value),
                option::SECTION_APPLICATION => section.application = text(value),
                option::COMMENT => section.comment = text(value),
                _ => {}
            }
        }
        Ok(section)
    }

    /// Section 4.2.
    fn interface(&mut self, mut fields: Fields<'_>) -> Result<Interface, FormatError> {
        let short = FormatError::Short(BlockKind::Interface);
        if self.clocks.len() >= MAX_INTERFACES {
            return Err(FormatError::TooManyInterfaces);
        }
        let (link_type, _reserved) = (fields.half().ok_or(short)?, fields.half().ok_or(short)?);
        let snap_len = fields.word().ok_or(short)?;
        let mut interface = Interface { link_type, snap_len, name: String::new(), filter: String::new() };
        let mut clock = Clock::default();
        for (code, value) in fields.options() {
            match (code, value) {
                (option::INTERFACE_NAME, name) => interface.name = text(name),
                (option::INTERFACE_FILTER, [0, filter @ ..]) => interface.filter = text(filter),
                (option::INTERFACE_TIME_RESOLUTION, [resolution]) => clock.resolution = *resolution,
                (option::INTERFACE_TIME_OFFSET, offset) => {
                    clock.offset = <[u8; 8]>::try_from(offset).map_or(0, |bytes| fields.order.double(bytes) as i64);
                }
                _ => {}
            }
        }
        self.clocks.push(clock);
        Ok(interface)
    }

    /// Section 4.3.
    fn packet<'a>(&self, mut fields: Fields<'a>) -> Result<Packet<'a>, FormatError> {
        let short = FormatError::Short(BlockKind::Packet);
        let interface = fields.word().ok_or(short)?;
        let clock = self.clock(BlockKind::Packet, interface)?;
        let time = clock.time(fields.moment().ok_or(short)?);
        let (kept, original_len) = (fields.word().ok_or(short)?, fields.word().ok_or(short)?);
        let data = fields.padded(kept as usize).ok_or(short)?;
        Ok(Packet { interface, time, original_len, data })
    }

    /// Section 4.6.
    fn statistics(&self, mut fields: Fields<'_>) -> Result<Statistics, FormatError> {
        let short = FormatError::Short(BlockKind::Statistics);
        let interface = fields.word().ok_or(short)?;
        let clock = self.clock(BlockKind::Statistics, interface)?;
        let time = clock.time(fields.moment().ok_or(short)?);
        let order = fields.order;
        let mut statistics = Statistics { interface, time, ..Statistics::default() };
        for (code, value) in fields.options() {
            let Ok(bytes) = <[u8; 8]>::try_from(value) else { continue };
            let moment = || Fields { rest: value, order }.moment().map(|units| clock.time(units));
            let count = Some(order.double(bytes));
            match code {
                option::STATISTICS_START => statistics.start = moment(),
                option::STATISTICS_END => statistics.end = moment(),
                option::STATISTICS_RECEIVED => statistics.received = count,
                option::STATISTICS_INTERFACE_DROPS => statistics.interface_drops = count,
                option::STATISTICS_ACCEPTED => statistics.accepted = count,
                option::STATISTICS_KERNEL_DROPS => statistics.kernel_drops = count,
                option::STATISTICS_DELIVERED => statistics.delivered = count,
                _ => {}
            }
        }
        Ok(statistics)
    }

    fn clock(&self, kind: BlockKind, interface: u32) -> Result<Clock, FormatError> {
        let unknown = FormatError::UnknownInterface { kind, interface, known: self.clocks.len() };
        self.clocks.get(interface as usize).copied().ok_or(unknown)
    }
}

/// The blocks of a stream.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    blocks: Blocks,
    buffer: Vec<u8>,
    /// Where the next block begins in the buffer.
    at: usize,
    offset: u64,
}

impl<R: Read> Reader<R> {
    /// Reads `input` from a file's beginning.
    pub fn new(input: R) -> Self {
        Self::resume(input, Blocks::new(), 0)
    }

    /// Reads on where `blocks` have come to, which is at `offset`; `input` begins there.
    pub fn resume(input: R, blocks: Blocks, offset: u64) -> Self {
        Self { input, blocks, buffer: Vec::new(), at: 0, offset }
    }

    /// End of the last whole block, in bytes from the beginning.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next block; `None` at the end of the stream.
    ///
    /// # Errors
    /// The stream is no pcapng, is damaged, ends within a block, or cannot be read.
    pub fn next_block(&mut self) -> Result<Option<Block<'_>>, ReadError> {
        Ok(self.next_sized()?.map(|(block, _)| block))
    }

    /// The next block, and its length in bytes.
    ///
    /// # Errors
    /// As [`Self::next_block`].
    pub fn next_sized(&mut self) -> Result<Option<(Block<'_>, usize)>, ReadError> {
        while let Ok(Frame::More(wanted)) = frame(self.blocks.order, self.buffer.get(self.at..).unwrap_or_default()) {
            if !self.fill(wanted)? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ReadError::Torn { offset: self.offset }) };
            }
        }
        let offset = self.offset;
        match self.blocks.next(self.buffer.get(self.at..).unwrap_or_default()) {
            Ok(Step::Block(block, len)) => {
                self.at += len;
                self.offset += len as u64;
                Ok(Some((block, len)))
            }
            Ok(Step::More(_)) => Err(ReadError::Torn { offset }),
            Err(error) => Err(ReadError::Format { offset, error }),
        }
    }

    /// Reads until `wanted` bytes lie at the front of the buffer, and no more than comes by itself: a stream may be somebody's who is still
    /// writing. False where it ends before.
    fn fill(&mut self, wanted: usize) -> Result<bool, ReadError> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let mut there = self.buffer.len();
        while there < wanted {
            self.buffer.resize(there + PIECE, 0);
            let taken = self.input.read(self.buffer.get_mut(there..).unwrap_or_default());
            there += *taken.as_ref().unwrap_or(&0);
            self.buffer.truncate(there);
            match taken {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ReadError::Io { offset: self.offset, source }),
            }
        }
        Ok(true)
    }
}
