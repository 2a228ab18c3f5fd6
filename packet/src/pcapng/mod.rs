//! Files of captured packets in the format pcapng (draft-ietf-opsawg-pcapng): what we write, and how we read it back.
//!
//! Written are Section Header, Interface Description, Enhanced Packet and Interface Statistics Blocks, little-endian, with times in
//! nanoseconds. Read is what others write too: either byte order, any resolution of time, blocks and options that we do not know
//! (they are stepped over).
//!
//! It must not know where packets come from, nor files: [`mod@write`] appends to a buffer, [`read`] looks at bytes.
//!
//! **Invariants:**
//! - What was written reads back as it was meant.
//! - No input makes the reader panic, nor hold more than [`read::MAX_BLOCK`] bytes and [`read::MAX_INTERFACES`] interfaces.

pub mod read;
pub mod write;

use crate::UnixNanos;

/// Section Header Block (section 4.1): the same in both byte orders.
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
/// Interface Description Block (section 4.2).
const INTERFACE_DESCRIPTION: u32 = 1;
/// Interface Statistics Block (section 4.6).
const INTERFACE_STATISTICS: u32 = 5;
/// Enhanced Packet Block (section 4.3).
const ENHANCED_PACKET: u32 = 6;
/// By which a reader knows the byte order (section 4.1).
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const MAJOR: u16 = 1;
/// Type, length, and length again (section 3.1).
const FRAMING: usize = 12;

/// Numbers of options (section 3.5, and those of the blocks).
mod option {
    pub(super) const END: u16 = 0;
    pub(super) const COMMENT: u16 = 1;
    pub(super) const SECTION_HARDWARE: u16 = 2;
    pub(super) const SECTION_OS: u16 = 3;
    pub(super) const SECTION_APPLICATION: u16 = 4;
    pub(super) const INTERFACE_NAME: u16 = 2;
    pub(super) const INTERFACE_TIME_RESOLUTION: u16 = 9;
    pub(super) const INTERFACE_FILTER: u16 = 11;
    pub(super) const INTERFACE_TIME_OFFSET: u16 = 14;
    pub(super) const STATISTICS_START: u16 = 2;
    pub(super) const STATISTICS_END: u16 = 3;
    pub(super) const STATISTICS_RECEIVED: u16 = 4;
    pub(super) const STATISTICS_INTERFACE_DROPS: u16 = 5;
    pub(super) const STATISTICS_ACCEPTED: u16 = 6;
    pub(super) const STATISTICS_KERNEL_DROPS: u16 = 7;
    pub(super) const STATISTICS_DELIVERED: u16 = 8;
}

/// What a file says of itself: empty texts are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Section {
    /// The box.
    pub hardware: String,
    /// Its operating system.
    pub os: String,
    /// The program that captured.
    pub application: String,
    /// For people: which probe and which job.
    pub comment: String,
}

/// An interface at which packets were seen. The first one of a section has number 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// LINKTYPE_ value: how the first bytes of packets are to be read; 1 is Ethernet.
    pub link_type: u16,
    /// Bytes of each packet that were kept at most; 0: no limit.
    pub snap_len: u32,
    /// Its name, such as `eth0`.
    pub name: String,
    /// The capture filter as text.
    pub filter: String,
}

/// A packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Number of its interface in the section.
    pub interface: u32,
    /// When it was seen.
    pub time: UnixNanos,
    /// Its length on the wire, in bytes.
    pub original_len: u32,
    /// What was kept of it.
    pub data: &'a [u8],
}

/// Counters of an interface, since the capture began. What nobody counted is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Number of the interface in the section.
    pub interface: u32,
    /// When they were read.
    pub time: UnixNanos,
    /// When the capture began.
    pub start: Option<UnixNanos>,
    /// When it ended.
    pub end: Option<UnixNanos>,
    /// Packets that the interface received.
    pub received: Option<u64>,
    /// Packets that the interface had no room for.
    pub interface_drops: Option<u64>,
    /// Packets that passed the filter.
    pub accepted: Option<u64>,
    /// Packets that passed the filter, and for which the kernel's buffer had no room.
    pub kernel_drops: Option<u64>,
    /// Packets that came as far as the program.
    pub delivered: Option<u64>,
}

#[cfg(test)]
mod tests;
