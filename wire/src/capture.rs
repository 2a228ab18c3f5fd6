//! Captures as jobs: what is asked for, the pieces in which a file travels, and what a capture came to.
//!
//! A capture of a job is one file on the probe's disk (pcapng), which grows while packets come. It travels in [`Chunk`]s: consecutive
//! bytes that the disk has confirmed, packed by themselves. The controller takes a chunk where it lacks exactly these bytes, and
//! answers each with how many bytes it has ([`crate::command::Command::ChunkAck`]); whatever is lost, repeated, or cut off by a crash of
//! either side, the next chunk begins where the controller's bytes end. The counters, the length and the digest of the
//! whole travel as a record of the spool ([`Captured`]), exactly once.
//!
//! ```text
//!  probe:       file ──▶ durable bytes ──▶ Chunk(offset) ──▶
//!  controller:  one transaction: bytes + length ──▶ ChunkAck(stored) ──▶ probe goes on, or back, to `stored`
//! ```
//!
//! It must not know files, databases or libpcap: whether a filter compiles is not looked at here.
//!
//! **Invariant:** bytes of a file that were sent once never change: a file only grows, and what a crash cuts off was not sent.
//! **Invariant:** no chunk costs its receiver more than [`CHUNK_MAX`] bytes of memory, whatever it holds.

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::LeaseId;
use crate::units::UnixMillis;

/// Bytes of a packet that hold the headers of link, network and transport, options and a VLAN tag included.
pub const HEADERS: u32 = 128;
/// The least that is worth keeping of a packet: the header of an Ethernet frame.
pub const SNAP_LEAST: u32 = 14;
/// What capture libraries keep of a packet at most.
pub const WHOLE: u32 = 262_144;
/// Longest filter, in bytes.
pub const FILTER_MAX: usize = 4096;
/// Longest name of an interface, in bytes (IFNAMSIZ without its zero).
pub const INTERFACE_MAX: usize = 15;
/// Longest capture, in seconds: a week.
pub const SECONDS_MAX: u32 = 7 * 86_400;
/// How long a capture lasts where nobody says.
pub const SECONDS_DEFAULT: u32 = 300;
/// How large its file may become where nobody says, in bytes.
pub const BYTES_DEFAULT: u64 = 64 << 20;
/// The largest file.
pub const BYTES_MAX: u64 = 1 << 40;
/// The smallest limit of a file: the head and some packets.
pub const BYTES_LEAST: u64 = 4096;
/// Most bytes of a file in one chunk.
pub const CHUNK_MAX: usize = 128 << 10;
/// Most bytes of a packed chunk: what cannot be packed grows by five bytes for each 65,535 (RFC 1951, section 3.2.4), and a few.
pub const PACKED_MAX: usize = CHUNK_MAX + 64;

/// How much of packets may be kept, by whoever has a say: each side's policy permits no more than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeps {
    /// Nothing: no captures.
    Off,
    /// [`HEADERS`] bytes.
    #[default]
    Headers,
    /// All of them.
    Payload,
}

impl Keeps {
    /// Why a capture of so many bytes of each packet is not permitted; `None` where it is.
    pub fn forbids(self, snap_len: u32) -> Option<String> {
        match self {
            Keeps::Off => Some("captures are not permitted".to_owned()),
            Keeps::Headers if snap_len > HEADERS => {
                Some(format!("{snap_len} bytes of each packet are asked for, and no more than its headers, {HEADERS} bytes, are permitted"))
            }
            Keeps::Headers | Keeps::Payload => None,
        }
    }
}

impl FromStr for Keeps {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Keeps::Off),
            "headers" => Ok(Keeps::Headers),
            "payload" => Ok(Keeps::Payload),
            _ => Err(format!("`{text}` is not what may be kept of packets: use off, headers or payload")),
        }
    }
}

/// Most hosts, and most ports, of a question to a ring.
pub const ASKED_MAX: usize = 64;

/// Where packets come from. Later sources are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CaptureSource {
    /// They are captured from now on.
    #[default]
    Live,
    /// They were captured before, into the probe's ring.
    Ring(RingQuestion),
}

/// What is asked of a ring, besides the filter. What is empty demands nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingQuestion {
    /// Not before.
    pub from: UnixMillis,
    /// Before this.
    pub to: UnixMillis,
    /// One of these is source or destination.
    pub hosts: Vec<IpAddr>,
    /// One of these is source or destination port of TCP, UDP or SCTP.
    pub ports: Vec<u16>,
}

/// What is captured, and when it ends: every capture of a job ends by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureOptions {
    /// Where the packets come from.
    pub source: CaptureSource,
    /// The interface, or `any`; `None` for the one that the probe measures on.
    pub interface: Option<String>,
    /// Which packets, in the language of pcap-filter(7); empty for all.
    pub filter: String,
    /// Bytes of each packet that are kept.
    pub snap_len: u32,
    /// Whether packets for others are wanted.
    pub promiscuous: bool,
    /// Whether the probe's own measurements and its connection to the controller are wanted.
    pub with_own: bool,
    /// After so many packets.
    pub packets: Option<u64>,
    /// Before the file has more bytes.
    pub bytes: u64,
    /// After so many seconds.
    pub seconds: u32,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            source: CaptureSource::Live,
            interface: None,
            filter: String::new(),
            snap_len: HEADERS,
            promiscuous: true,
            with_own: false,
            packets: None,
            bytes: BYTES_DEFAULT,
            seconds: SECONDS_DEFAULT,
        }
    }
}

/// Why a capture cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// Not the name of an interface.
    #[error("`{}` is not the name of an interface: it has 1 to {INTERFACE_MAX} characters, and no slash or space", .0.escape_debug())]
    Interface(String),
    /// Longer than any that makes sense.
    #[error("the filter has {0} bytes: at most {FILTER_MAX} are possible")]
    FilterLength(usize),
    /// A character that no filter has.
    #[error("the filter has the character `{}`, which no filter has", .0.escape_debug())]
    FilterCharacter(char),
    /// Not within what can be kept.
    #[error("{0} bytes of each packet cannot be kept: {SNAP_LEAST} to {WHOLE} can")]
    SnapLength(u32),
    /// Nothing, or too long.
    #[error("a capture of {0} seconds is not possible: 1 to {SECONDS_MAX} (a week) are")]
    Seconds(u32),
    /// Too small or too large.
    #[error("a file of {0} bytes at most is not possible: {BYTES_LEAST} to {BYTES_MAX} are")]
    Bytes(u64),
    /// None.
    #[error("a capture of 0 packets captures nothing: leave it out, or use at least 1")]
    Packets,
    /// The time that is asked of a ring ends before it begins.
    #[error("the time that is asked for ends before it begins")]
    Times,
    /// More than anybody asks for.
    #[error("a ring is asked for {0} hosts or ports: at most {ASKED_MAX} are possible; ask for more by a filter")]
    Asked(usize),
    /// The ring was captured where the site says.
    #[error("a ring has the packets of the interface that its site chose: leave out the interface, the number of packets and the time")]
    RingElsewhere,
}

impl CaptureOptions {
    /// Verifies what can be verified without an interface.
    ///
    /// # Errors
    /// What cannot be.
    pub fn check(&self) -> Result<(), CaptureError> {
        if let Some(name) = &self.interface {
            let right = |c: char| !c.is_whitespace() && !c.is_control() && c != '/';
            // The kernel refuses these two as well (dev_valid_name).
            if name.is_empty() || name.len() > INTERFACE_MAX || name == "." || name == ".." || !name.chars().all(right) {
                return Err(CaptureError::Interface(name.clone()));
            }
        }
        if self.filter.len() > FILTER_MAX {
            return Err(CaptureError::FilterLength(self.filter.len()));
        }
        if let Some(wrong) = self.filter.chars().find(|c| c.is_control() && !c.is_ascii_whitespace()) {
            return Err(CaptureError::FilterCharacter(wrong));
        }
        if !(SNAP_LEAST..=WHOLE).contains(&self.snap_len) {
            return Err(CaptureError::SnapLength(self.snap_len));
        }
        if !(1..=SECONDS_MAX).contains(&self.seconds) {
            return Err(CaptureError::Seconds(self.seconds));
        }
        if !(BYTES_LEAST..=BYTES_MAX).contains(&self.bytes) {
            return Err(CaptureError::Bytes(self.bytes));
        }
        if self.packets == Some(0) {
            return Err(CaptureError::Packets);
        }
        let CaptureSource::Ring(question) = &self.source else { return Ok(()) };
        match question.hosts.len().max(question.ports.len()) {
            _ if question.from >= question.to => Err(CaptureError::Times),
            most if most > ASKED_MAX => Err(CaptureError::Asked(most)),
            _ if self.interface.is_some() || self.packets.is_some() => Err(CaptureError::RingElsewhere),
            _ => Ok(()),
        }
    }
}

/// Consecutive bytes of a capture's file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Whose file.
    pub lease: LeaseId,
    /// How many bytes of the file come before these.
    pub offset: u64,
    /// How many they are. None: a question how many the controller has.
    pub len: u32,
    /// The bytes, packed (DEFLATE, RFC 1951).
    pub packed: Vec<u8>,
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lease, offset, len, packed } = self;
        write!(f, "Chunk({lease}, {len} bytes from {offset}, packed into {})", packed.len())
    }
}

/// Why a chunk is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// More than a chunk has.
    #[error("a chunk of {len} bytes, packed into {packed}, is longer than chunks are")]
    Long {
        /// How many bytes it says it has.
        len: u32,
        /// How many came.
        packed: usize,
    },
    /// The file would be longer than files are.
    #[error("a chunk of {len} bytes from {offset} lies beyond the end of every file")]
    Beyond {
        /// Where.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// What is packed is not what it says.
    #[error("a chunk of {len} bytes does not unpack to them")]
    Damaged {
        /// How many bytes it says it has.
        len: u32,
    },
}

impl Chunk {
    /// Packs the bytes at an offset; no more than [`CHUNK_MAX`].
    pub fn pack(lease: LeaseId, offset: u64, bytes: &[u8]) -> Self {
        debug_assert!(bytes.len() <= CHUNK_MAX);
        // The fastest of the levels: headers pack to a third by it already, and the box has other things to do.
        let packed = if bytes.is_empty() { Vec::new() } else { miniz_oxide::deflate::compress_to_vec(bytes, 1) };
        Self { lease, offset, len: bytes.len() as u32, packed }
    }

    /// The question how many bytes of a file the controller has.
    pub fn question(lease: LeaseId) -> Self {
        Self::pack(lease, 0, &[])
    }

    /// The offset behind its bytes.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len.into())
    }

    /// Its bytes.
    ///
    /// # Errors
    /// It is too long, or not what it says.
    pub fn unpack(&self) -> Result<Vec<u8>, ChunkError> {
        let Self { offset, len, ref packed, .. } = *self;
        if len as usize > CHUNK_MAX || packed.len() > PACKED_MAX {
            return Err(ChunkError::Long { len, packed: packed.len() });
        }
        if self.end() > BYTES_MAX + CHUNK_MAX as u64 {
            return Err(ChunkError::Beyond { offset, len });
        }
        if len == 0 && packed.is_empty() {
            return Ok(Vec::new());
        }
        unpack(packed, len)
    }
}

/// The bytes of what was packed, which are to be so many.
///
/// # Errors
/// It is something else.
pub fn unpack(packed: &[u8], len: u32) -> Result<Vec<u8>, ChunkError> {
    let limit = (len as usize).min(CHUNK_MAX);
    match miniz_oxide::inflate::decompress_to_vec_with_limit(packed, limit) {
        Ok(bytes) if bytes.len() == len as usize => Ok(bytes),
        _ => Err(ChunkError::Damaged { len }),
    }
}

/// What becomes of a file that the controller has so much of. Later states are added at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChunkState {
    /// The rest is awaited.
    Open,
    /// It has all of it: as many bytes as the record of its end says.
    Whole,
    /// Its room for captures is used up: it takes the rest when there is room.
    NoRoom,
    /// It does not want the file: it knows of no such capture.
    Unwanted,
    /// Somebody removed it, or its time was over.
    Removed,
}

/// Why a capture ended. Later reasons are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CaptureEnd {
    /// Somebody asked for it: a cancel, a deadline.
    Asked,
    /// As many packets as were asked for.
    Packets,
    /// As many bytes.
    Bytes,
    /// As long.
    Time,
    /// Nothing could be written any more; how the box says it.
    Disk(String),
    /// The interface went away; how the box says it.
    Gone(String),
    /// The program was killed, and what had come until then is all.
    Interrupted,
    /// The ring was asked; what was looked at, as the box says it.
    Answered(String),
}

impl CaptureEnd {
    /// The text form.
    pub fn as_str(&self) -> &'static str {
        match self {
            CaptureEnd::Asked => "asked",
            CaptureEnd::Packets => "packets",
            CaptureEnd::Bytes => "bytes",
            CaptureEnd::Time => "time",
            CaptureEnd::Disk(_) => "disk",
            CaptureEnd::Gone(_) => "interface",
            CaptureEnd::Interrupted => "interrupted",
            CaptureEnd::Answered(_) => "answered",
        }
    }

    /// What the box says of it.
    pub fn reason(&self) -> Option<&str> {
        match self {
            CaptureEnd::Disk(reason) | CaptureEnd::Gone(reason) | CaptureEnd::Answered(reason) => Some(reason),
            _ => None,
        }
    }
}

/// What was counted since the program, or the capture, started last. `passed` = not wanted by the filter + `accepted`; `accepted` =
/// `kernel_drops` + `delivered` + what was still on its way; `delivered` = `written` + lost on the way to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureCounts {
    /// Frames that passed the interface; `None` where it does not tell.
    pub passed: Option<u64>,
    /// Packets that passed the filter.
    pub accepted: u64,
    /// Of these, those for which the kernel's buffer had no room.
    pub kernel_drops: u64,
    /// Packets that the interface or its driver had no room for.
    pub interface_drops: u64,
    /// Packets that came to the program.
    pub delivered: u64,
    /// Their bytes on the wire; 0 for those of a ring.
    pub bytes: u64,
    /// Of these packets, those that the file has.
    pub written: u64,
    /// Packets that were longer than a frame of the interface: offloads had put them together, or not cut them yet.
    pub longer: u64,
}

/// What a capture came to. Its lease's end follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// The lease.
    pub lease: LeaseId,
    /// When it began, by the probe's clock.
    pub began: UnixMillis,
    /// When it ended.
    pub ended: UnixMillis,
    /// The interface.
    pub interface: String,
    /// The filter that was installed, with what keeps the probe's own traffic out.
    pub filter: String,
    /// Why it ended.
    pub end: CaptureEnd,
    /// What was counted in the last of its sections.
    pub counts: CaptureCounts,
    /// How many sections the file has: one more than the capture was interrupted.
    pub sections: u32,
    /// How many bytes the file has.
    pub len: u64,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
}

/// Longest text of a record of a capture's end, in bytes: a filter that leaves out many addresses is long.
const TEXT_MAX: usize = 64 << 10;

/// Why a record of a capture's end is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapturedError {
    /// A text that nobody writes.
    #[error("the end of the capture of lease {0} has a text that is too long")]
    Text(LeaseId),
    /// No file is so long.
    #[error("the capture of lease {0} cannot have {1} bytes")]
    Length(LeaseId, u64),
}

impl Captured {
    /// Verifies that it can be.
    ///
    /// # Errors
    /// What cannot be.
    pub fn check(&self) -> Result<(), CapturedError> {
        let texts = [self.interface.as_str(), self.filter.as_str(), self.end.reason().unwrap_or_default()];
        if texts.into_iter().any(|text| text.len() > TEXT_MAX) {
            return Err(CapturedError::Text(self.lease));
        }
        // A continued file may be longer than its limit by a head and counters each time.
        if self.len > 2 * BYTES_MAX { Err(CapturedError::Length(self.lease, self.len)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::JobId;

    fn lease() -> LeaseId {
        LeaseId { job: JobId(7), grant: 1 }
    }

    #[test]
    fn what_cannot_be_captured_says_what_is_wrong() {
        let wrong = |change: fn(&mut CaptureOptions)| {
            let mut options = CaptureOptions::default();
            change(&mut options);
            options.check().unwrap_err().to_string()
        };
        CaptureOptions::default().check().unwrap();
        CaptureOptions { interface: Some("any".into()), packets: Some(1), ..CaptureOptions::default() }.check().unwrap();
        let texts = [
            wrong(|o| o.interface = Some("../../etc".into())),
            wrong(|o| o.interface = Some("a-name-of-16-char".into())),
            wrong(|o| o.filter = "tcp\u{1b}[2J".into()),
            wrong(|o| o.filter = "a".repeat(5000)),
            wrong(|o| o.snap_len = 13),
            wrong(|o| o.seconds = 0),
            wrong(|o| o.bytes = 100),
            wrong(|o| o.packets = Some(0)),
        ];
        for (text, part) in
            texts.iter().zip(["../../etc", "15 characters", "\\u{1b}", "5000", "13 bytes", "0 seconds", "100 bytes", "0 packets"])
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn policy_permits_headers_unless_it_says_more() {
        assert_eq!(Keeps::default().forbids(HEADERS), None);
        assert!(Keeps::Headers.forbids(HEADERS + 1).unwrap().contains("129 bytes"));
        assert_eq!(Keeps::Payload.forbids(WHOLE), None);
        assert!(Keeps::Off.forbids(SNAP_LEAST).is_some());
        assert_eq!("payload".parse(), Ok(Keeps::Payload));
        assert!("all".parse::<Keeps>().unwrap_err().contains("headers"));
    }

    #[test]
    fn a_bomb_does_not_grow_beyond_a_chunk() {
        let packed = miniz_oxide::deflate::compress_to_vec(&vec![0; 64 * CHUNK_MAX], 9);
        assert!(packed.len() < CHUNK_MAX);
        for len in [0, 1, CHUNK_MAX as u32] {
            let chunk = Chunk { lease: lease(), offset: 0, len, packed: packed.clone() };
            assert_eq!(chunk.unpack(), Err(ChunkError::Damaged { len }));
        }
        let long = Chunk { lease: lease(), offset: 0, len: CHUNK_MAX as u32 + 1, packed };
        assert!(matches!(long.unpack(), Err(ChunkError::Long { .. })));
        let beyond = Chunk { offset: u64::MAX, ..Chunk::pack(lease(), 0, b"x") };
        assert!(matches!(beyond.unpack(), Err(ChunkError::Beyond { .. })));
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks(bytes in proptest::collection::vec(any::<u8>(), 0..4000), repeat in 1usize..32, offset in 0u64..BYTES_MAX) {
            let bytes = bytes.repeat(repeat);
            let chunk = Chunk::pack(lease(), offset, &bytes);
            prop_assert!(chunk.packed.len() <= PACKED_MAX);
            prop_assert_eq!(chunk.end(), offset + bytes.len() as u64);
            prop_assert_eq!(chunk.unpack(), Ok(bytes));
        }

        #[test]
        fn any_bytes_unpack_or_do_not(len in any::<u32>(), offset in any::<u64>(), packed in proptest::collection::vec(any::<u8>(), 0..500)) {
            if let Ok(bytes) = (Chunk { lease: lease(), offset, len, packed }).unpack() {
                prop_assert_eq!(bytes.len(), len as usize);
            }
        }
    }
}
