//! What is where in a segment: for each extent of some 64 KiB its times and who is within, in about a hundredth of its length.
//!
//! ```text
//!  header ▸ extent ▸ extent ▸ ... ▸ end            each record: length (2), checksum (4), body
//!    │         └ length, packets, first and last time, set of addresses
//!    └ number of the segment, checksum of its head, key of the hashes
//! ```
//!
//! The extents follow each other without a gap from the segment's head on. The set of addresses is a Bloom filter of keyed hashes with 16 bits
//! for each address: of 10,000 who are not within, 5 seem to be. It never has more than a 55th of the extent, 1.8 %; with packets of 60 bytes and
//! no two of the same host that leaves 6.8 bits for each address, and 4 of 100 who are not within seem to be. What seems to be within and is
//! not costs reading the extent, nothing else.
//!
//! It must not know files, nor what is asked.
//!
//! **Invariants:**
//! - Who is within an extent is never missing in its record.
//! - No bytes cause a panic. What is not as it was written (each checksum goes on from the one before, the first from the segment's head) ends
//!   the records: nothing behind it is believed.
//! - An index has at most 2 % of its segment's length, of segments of 128 KiB and more.

use core::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use crate::capture::UnixNanos;
use crate::capture::pcapng::read::Block;
use crate::capture::view::parties;

/// An extent ends before it has more bytes; one that has a single block may be longer.
pub const EXTENT: u64 = 64 << 10;
/// Length of the header.
pub const HEADER: usize = 44;
/// Length of the last record of a segment that has ended.
pub const END: usize = FRAMING + END_BODY;

const MAGIC: [u8; 8] = *b"pktring\x01";
/// Length and checksum in front of a record.
const FRAMING: usize = 6;
const END_BODY: usize = 45;
/// Kind, hashes, length, packets, first and last time.
const EXTENT_BODY: usize = 26;
const KIND_EXTENT: u8 = 1;
const KIND_END: u8 = 2;
/// Bytes of the set for each address, and of the extent for each byte of the set.
const BYTES_EACH: usize = 2;
const SHARE: u64 = 55;
/// More hashes than this make the set larger in nobody's eyes.
const MOST_HASHES: u8 = 12;
/// No block of a packet is shorter.
const SHORTEST: u32 = 32;

/// Makes hashes of addresses that nobody outside can foresee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(pub [u8; 16]);

impl Key {
    /// The hash of an address; one of IPv4 has that of its mapped form (RFC 4291, section 2.5.5.2).
    pub fn hash(&self, addr: IpAddr) -> u64 {
        let bits = match addr {
            IpAddr::V4(addr) => addr.to_ipv6_mapped().to_bits(),
            IpAddr::V6(addr) => addr.to_bits(),
        };
        let mut hasher = SipHasher13::new_with_key(&self.0);
        hasher.write(&bits.to_le_bytes());
        hasher.finish()
    }
}

/// To which segment an index belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Of the hashes.
    pub key: Key,
    /// The segment's number.
    pub number: u64,
    /// Length of what stands in front of the first extent.
    pub head_len: u32,
    /// CRC-32C of that.
    pub head_crc: u32,
}

impl Header {
    /// Of a segment that begins with `head`.
    pub fn new(key: Key, number: u64, head: &[u8]) -> Self {
        Self { key, number, head_len: u32::try_from(head.len()).unwrap_or(u32::MAX), head_crc: crc32c::crc32c(head) }
    }

    fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let (fields, crc) = bytes.split_at_mut(HEADER - 4);
        let parts = [&MAGIC[..], &self.key.0, &self.number.to_le_bytes(), &self.head_len.to_le_bytes(), &self.head_crc.to_le_bytes()];
        fields.copy_from_slice(&parts.concat());
        crc.copy_from_slice(&crc32c::crc32c(fields).to_le_bytes());
        bytes
    }

    /// Reads what an index begins with; `None` where that is no header.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes.get(..HEADER)?);
        let crc = bytes.get(..HEADER - 4).map(crc32c::crc32c)?;
        let magic = fields.take::<8>()?;
        let header = Self { key: Key(fields.take()?), number: fields.double()?, head_len: fields.word()?, head_crc: fields.word()? };
        (magic == MAGIC && fields.word()? == crc).then_some(header)
    }

    /// With which the records' checksums begin: the header's own. (That of a text with its own checksum behind it is the same for all texts.)
    fn seed(&self) -> u32 {
        let [.., a, b, c, d] = self.bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

/// What is known of a part of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent<'a> {
    /// Where it begins in the segment.
    pub offset: u64,
    /// Its length.
    pub len: u32,
    /// Packets.
    pub packets: u32,
    /// The earliest time of these. (A clock may be set back.)
    pub first: UnixNanos,
    /// The latest time.
    pub last: UnixNanos,
    /// Whose packets.
    pub who: Who<'a>,
}

/// A set of addresses: says of some that they are within though they are not, and never the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who<'a> {
    hashes: u8,
    bits: &'a [u8],
}

impl Who<'_> {
    /// Whether the address with this hash may be within.
    pub fn may_have(&self, hash: u64) -> bool {
        !self.bits.is_empty()
            && places(hash, self.hashes, self.bits.len()).all(|(byte, bit)| self.bits.get(byte).is_some_and(|b| b & bit != 0))
    }
}

/// The bits of a hash: two halves make as many as are wanted (Kirsch and Mitzenmacher, "Less Hashing, Same Performance").
fn places(hash: u64, hashes: u8, bytes: usize) -> impl Iterator<Item = (usize, u8)> {
    let (first, step, bits) = (hash as u32, (hash >> 32) as u32 | 1, bytes as u64 * 8);
    (0..u32::from(hashes)).map(move |n| {
        let place = (u64::from(first.wrapping_add(n.wrapping_mul(step))) * bits) >> 32;
        ((place / 8) as usize, 1 << (place % 8))
    })
}

/// What is known of a segment that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Packets.
    pub packets: u64,
    /// The earliest time of these.
    pub first: UnixNanos,
    /// The latest time.
    pub last: UnixNanos,
    /// Its length.
    pub len: u64,
    /// Packets that the kernel or the interface dropped meanwhile, where that was counted.
    pub dropped: Option<u64>,
    chain: u32,
}

impl End {
    /// Reads what an index ends with; `None` where that is no end.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (_, last) = bytes.split_last_chunk::<END>()?;
        let mut framing = Fields(last);
        let (len, crc) = (framing.half()?, framing.word()?);
        let end = Self::of(Fields(framing.0.get(1..)?))?;
        let right =
            usize::from(len) == END_BODY && framing.0.first() == Some(&KIND_END) && crc32c::crc32c_append(end.chain, framing.0) == crc;
        right.then_some(end)
    }

    fn of(mut fields: Fields<'_>) -> Option<Self> {
        let (packets, first, last) = (fields.double()?, UnixNanos(fields.double()?), UnixNanos(fields.double()?));
        let (len, dropped, chain) = (fields.double()?, fields.double()?, fields.word()?);
        Some(Self { packets, first, last, len, dropped: (dropped != u64::MAX).then_some(dropped), chain })
    }
}

/// A record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// Of an extent.
    Extent(Extent<'a>),
    /// Of the segment.
    End(End),
}

/// The records of an index, as far as they are believed.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: Fields<'a>,
    chain: u32,
    offset: u64,
}

impl<'a> Records<'a> {
    /// Of an index that begins with `header`.
    pub fn new(header: &Header, index: &'a [u8]) -> Self {
        let rest = Fields(index.get(HEADER..).unwrap_or_default());
        Self { rest, chain: header.seed(), offset: header.head_len.into() }
    }

    /// Up to where in the segment the records so far tell what is there.
    pub fn covered(&self) -> u64 {
        self.offset
    }

    fn record(&mut self) -> Option<Record<'a>> {
        let (len, crc) = (self.rest.half()?, self.rest.word()?);
        let body = self.rest.slice(len.into())?;
        let chain = crc32c::crc32c_append(self.chain, body);
        if chain != crc {
            return None;
        }
        let mut fields = Fields(body);
        let record = match fields.take::<1>()? {
            [KIND_EXTENT] => Record::Extent(extent(self.offset, fields)?),
            [KIND_END] if body.len() == END_BODY => Record::End(End::of(fields).filter(|end| end.chain == self.chain)?),
            _ => return None,
        };
        self.chain = chain;
        if let Record::Extent(extent) = &record {
            self.offset += u64::from(extent.len);
        }
        Some(record)
    }
}

fn extent(offset: u64, mut fields: Fields<'_>) -> Option<Extent<'_>> {
    let [hashes] = fields.take()?;
    let (len, packets) = (fields.word()?, fields.word()?);
    let (first, last) = (UnixNanos(fields.double()?), UnixNanos(fields.double()?));
    let sound = len > 0 && packets <= len / SHORTEST && (first <= last || packets == 0) && hashes <= MOST_HASHES;
    sound.then_some(Extent { offset, len, packets, first, last, who: Who { hashes, bits: fields.0 } })
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;
    fn next(&mut self) -> Option<Record<'a>> {
        let record = self.record();
        if record.is_none() {
            self.rest = Fields(&[]);
        }
        record
    }
}

/// Takes fields off the front.
#[derive(Debug, Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn half(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn word(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn double(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

/// Packets, and between which times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Packets.
    pub packets: u64,
    /// The earliest time.
    pub first: UnixNanos,
    /// The latest time.
    pub last: UnixNanos,
}

impl Default for Span {
    fn default() -> Self {
        Self { packets: 0, first: UnixNanos(u64::MAX), last: UnixNanos(0) }
    }
}

impl Span {
    /// Takes a packet in.
    pub fn packet(&mut self, time: UnixNanos) {
        self.join(&Self { packets: 1, first: time, last: time });
    }

    /// Takes all of another one in.
    pub fn join(&mut self, other: &Self) {
        *self = Self { packets: self.packets + other.packets, first: self.first.min(other.first), last: self.last.max(other.last) };
    }
}

/// Makes the index of a segment while its blocks come.
#[derive(Debug)]
pub struct Builder {
    key: Key,
    chain: u32,
    out: Vec<u8>,
    /// The extent that is open.
    len: u64,
    span: Span,
    hashes: Vec<u64>,
    /// The addresses of the packet before: the next one is often theirs, too.
    before: Option<(IpAddr, IpAddr)>,
    all: Span,
}

impl Builder {
    /// Of a segment that begins with its header's head.
    pub fn new(header: &Header) -> Self {
        Self {
            key: header.key,
            chain: header.seed(),
            out: header.bytes().to_vec(),
            len: 0,
            span: Span::default(),
            hashes: Vec::new(),
            before: None,
            all: Span::default(),
        }
    }

    /// Takes the next block, which has so many bytes. Descriptions of sections and interfaces stand in the head alone.
    pub fn block(&mut self, link_type: u16, block: &Block<'_>, len: usize) {
        let len = len as u64;
        if self.len > 0 && self.len + len > EXTENT {
            self.close();
        }
        self.len += len;
        if let Block::Packet(packet) = block {
            self.span.packet(packet.time);
            let who = parties(link_type, packet.data);
            if let Some((a, b)) = who
                && who != self.before
            {
                self.hashes.extend([self.key.hash(a), self.key.hash(b)]);
                self.before = who;
            }
        }
    }

    /// Packets of the segment so far.
    pub fn span(&self) -> Span {
        let mut all = self.all;
        all.join(&self.span);
        all
    }

    /// The index so far: whole records, which may be taken off the front.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Bytes of [`Self::out`].
    pub fn waiting(&self) -> u64 {
        self.out.len() as u64
    }

    /// The index ends here; the segment has so many bytes.
    pub fn finish(&mut self, len: u64, dropped: Option<u64>) {
        self.close();
        let Span { packets, first, last } = self.all;
        let mut body = vec![KIND_END];
        for field in [packets, first.0, last.0, len, dropped.unwrap_or(u64::MAX)] {
            body.extend(field.to_le_bytes());
        }
        body.extend(self.chain.to_le_bytes());
        self.record(&body);
    }

    fn close(&mut self) {
        if self.len == 0 {
            return;
        }
        let (len, span) = (core::mem::take(&mut self.len), core::mem::take(&mut self.span));
        let (hashes, bits) = set(&mut self.hashes, len);
        let mut body = Vec::with_capacity(EXTENT_BODY + bits.len());
        body.extend([KIND_EXTENT, hashes]);
        body.extend((len as u32).to_le_bytes());
        body.extend((span.packets as u32).to_le_bytes());
        body.extend(span.first.0.to_le_bytes());
        body.extend(span.last.0.to_le_bytes());
        body.extend(bits);
        self.record(&body);
        self.hashes.clear();
        self.before = None;
        self.all.join(&span);
    }

    fn record(&mut self, body: &[u8]) {
        self.chain = crc32c::crc32c_append(self.chain, body);
        self.out.extend((body.len() as u16).to_le_bytes());
        self.out.extend(self.chain.to_le_bytes());
        self.out.extend(body);
    }
}

/// The set of these hashes for an extent of so many bytes, and of how many bits each one is.
fn set(hashes: &mut Vec<u64>, len: u64) -> (u8, Vec<u8>) {
    hashes.sort_unstable();
    hashes.dedup();
    if hashes.is_empty() {
        return (0, Vec::new());
    }
    let most = usize::try_from(len / SHARE).unwrap_or(usize::MAX).max(8).min(usize::from(u16::MAX) - EXTENT_BODY);
    let bytes = (hashes.len() * BYTES_EACH).clamp(8, most);
    // As many hashes as leave half of the bits empty, where the set says the least wrong.
    let best = (bytes * 8) as f64 / hashes.len() as f64 * core::f64::consts::LN_2;
    let count = (best.round() as u8).clamp(1, MOST_HASHES);
    let mut bits = vec![0; bytes];
    for hash in hashes.iter() {
        for (byte, bit) in places(*hash, count, bytes) {
            if let Some(place) = bits.get_mut(byte) {
                *place |= bit;
            }
        }
    }
    (count, bits)
}

#[cfg(test)]
mod tests;
