//! IPv4 and IPv6 behind one view: who to whom, which protocol, how many hops left, what inside.
//!
//! It must not know the protocols inside. Header checksums are not verified on the way in: offloads leave them unfinished on
//! local paths, and what we accept as an answer is proved by a keyed cookie further up.
//!
//! Invariant: a [`Packet`] is a whole packet or the first fragment of one; later fragments have no protocol header and are
//! no packet here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{Checksum, checksum};

/// Length of an IPv4 header without options (RFC 791, section 3.1).
pub const V4_HEADER_LEN: usize = 20;
/// Length of the fixed IPv6 header (RFC 8200, section 3).
pub const V6_HEADER_LEN: usize = 40;
/// Protocol number of ICMP (RFC 792).
pub const PROTOCOL_ICMP: u8 = 1;
/// Protocol number of TCP (RFC 9293).
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP (RFC 768).
pub const PROTOCOL_UDP: u8 = 17;
/// Protocol number of SCTP (RFC 9260).
pub const PROTOCOL_SCTP: u8 = 132;
/// Next header value of ICMPv6 (RFC 4443, section 1).
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Hop-by-hop options, routing, destination options (RFC 8200, sections 4.3, 4.4, 4.6): one layout.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;
/// Fragment header (RFC 8200, section 4.5).
const FRAGMENT: u8 = 44;
/// Authentication header (RFC 4302, section 2), whose length counts words of four octets.
const AUTHENTICATION: u8 = 51;
/// More extension headers than any real packet has: a bound for the walk.
const MAX_EXTENSIONS: usize = 8;
/// "Don't fragment" without a fragment offset (RFC 791, section 3.1): such packets need no unique identification (RFC 6864).
const DONT_FRAGMENT: u16 = 0x4000;

/// What the first bytes of an IP packet say, fragments included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol (IPv4), or the first next header (IPv6).
    pub protocol: u8,
    /// Length of the packet with its headers, as sent.
    pub len: usize,
}

impl Head {
    /// Reads the fixed part of a header; what follows may be missing.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header = bytes.first_chunk::<V4_HEADER_LEN>()?;
                let src = Ipv4Addr::new(header[12], header[13], header[14], header[15]).into();
                let dst = Ipv4Addr::new(header[16], header[17], header[18], header[19]).into();
                Some(Self { src, dst, protocol: header[9], len: u16::from_be_bytes([header[2], header[3]]).into() })
            }
            6 => {
                let header = bytes.first_chunk::<V6_HEADER_LEN>()?;
                let address = |at: usize| header.get(at..at + 16).and_then(|o| <[u8; 16]>::try_from(o).ok()).map(Ipv6Addr::from);
                let len = V6_HEADER_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
                Some(Self { src: address(8)?.into(), dst: address(24)?.into(), protocol: header[6], len })
            }
            _ => None,
        }
    }
}

/// A packet whose headers are known to be complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    ttl: u8,
    tos: u8,
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Looks at `bytes` as an IP packet that is there as a whole; what follows its end (link padding) is ignored.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (packet, whole) = Self::read(bytes)?;
        whole.then_some(packet)
    }

    /// Looks at `bytes` as the start of an IP packet, as ICMP errors quote it: the end may be missing.
    pub fn parse_quote(bytes: &'a [u8]) -> Option<Self> {
        Self::read(bytes).map(|(packet, _)| packet)
    }

    /// The packet, and whether its end is there.
    fn read(bytes: &'a [u8]) -> Option<(Self, bool)> {
        match bytes.first()? >> 4 {
            4 => Self::read_v4(bytes),
            6 => Self::read_v6(bytes),
            _ => None,
        }
    }

    /// RFC 791, section 3.1.
    fn read_v4(bytes: &'a [u8]) -> Option<(Self, bool)> {
        let (header, _) = bytes.split_first_chunk::<V4_HEADER_LEN>()?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        if header_len < V4_HEADER_LEN || total < header_len || fragment_offset != 0 {
            return None;
        }
        let packet = Self {
            src: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            dst: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            ttl: header[8],
            tos: header[1],
            payload: bytes.get(header_len..total.min(bytes.len()))?,
        };
        Some((packet, total <= bytes.len()))
    }

    /// RFC 8200, section 3, and the extension headers of section 4.
    fn read_v6(bytes: &'a [u8]) -> Option<(Self, bool)> {
        let (header, rest) = bytes.split_first_chunk::<V6_HEADER_LEN>()?;
        let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let address = |at: usize| header.get(at..at + 16).and_then(|o| <[u8; 16]>::try_from(o).ok()).map(Ipv6Addr::from);
        let (src, dst) = (address(8)?, address(24)?);
        let (protocol, payload) = skip_extensions(header[6], rest.get(..len.min(rest.len()))?)?;
        // The first bits may make an IPv4-mapped address, which no wire carries: kept as it is, it matches nothing.
        let packet = Self { src: src.into(), dst: dst.into(), protocol, ttl: header[7], tos: header[0] << 4 | header[1] >> 4, payload };
        Some((packet, len <= rest.len()))
    }

    /// Source address.
    pub const fn src(&self) -> IpAddr {
        self.src
    }

    /// Destination address.
    pub const fn dst(&self) -> IpAddr {
        self.dst
    }

    /// Protocol, behind all IPv6 extension headers.
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// TTL or hop limit.
    pub const fn ttl(&self) -> u8 {
        self.ttl
    }

    /// Type of service (IPv4) or traffic class (IPv6): six bits of DSCP, two of ECN.
    pub const fn tos(&self) -> u8 {
        self.tos
    }

    /// What the protocol carries.
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// The protocol behind the extension headers and its bytes; `None` for later fragments and for chains that do not end.
fn skip_extensions(mut next: u8, mut bytes: &[u8]) -> Option<(u8, &[u8])> {
    for _ in 0..=MAX_EXTENSIONS {
        let len = match (next, bytes) {
            (HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS, [_, units, ..]) => (usize::from(*units) + 1) * 8,
            (AUTHENTICATION, [_, words, ..]) => (usize::from(*words) + 2) * 4,
            (FRAGMENT, [_, _, high, low, ..]) if u16::from_be_bytes([*high, *low]) >> 3 == 0 => 8,
            (HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT, _) => return None,
            _ => return Some((next, bytes)),
        };
        next = *bytes.first()?;
        bytes = bytes.get(len..)?;
    }
    None
}

/// An IPv4 header without options, don't fragment set, its checksum right for exactly these fields.
pub fn v4_header(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, ttl: u8, payload_len: u16) -> [u8; V4_HEADER_LEN] {
    v4_header_marked(src, dst, protocol, ttl, payload_len, 0)
}

/// The same with a type of service.
pub fn v4_header_marked(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, ttl: u8, payload_len: u16, tos: u8) -> [u8; V4_HEADER_LEN] {
    let mut h = [0; V4_HEADER_LEN];
    h[0] = 0x45;
    h[1] = tos;
    h[2..4].copy_from_slice(&(V4_HEADER_LEN as u16).saturating_add(payload_len).to_be_bytes());
    h[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
    h[8] = ttl;
    h[9] = protocol;
    h[12..16].copy_from_slice(&src.octets());
    h[16..20].copy_from_slice(&dst.octets());
    let sum = checksum(&h);
    h[10..12].copy_from_slice(&sum.to_be_bytes());
    h
}

/// An IPv6 header (RFC 8200, section 3): no traffic class, no flow label.
pub fn v6_header(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, hop_limit: u8, payload_len: u16) -> [u8; V6_HEADER_LEN] {
    v6_header_marked(src, dst, next_header, hop_limit, payload_len, 0)
}

/// The same with a traffic class.
pub fn v6_header_marked(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, hop_limit: u8, payload_len: u16, class: u8) -> [u8; V6_HEADER_LEN] {
    let mut h = [0; V6_HEADER_LEN];
    h[0] = 0x60 | class >> 4;
    h[1] = class << 4;
    h[4..6].copy_from_slice(&payload_len.to_be_bytes());
    h[6] = next_header;
    h[7] = hop_limit;
    h[8..24].copy_from_slice(&src.octets());
    h[24..40].copy_from_slice(&dst.octets());
    h
}

/// An IPv4 header that is constant but for its destination: the sum of the rest is taken once (RFC 1624 in its simplest form:
/// what changes is added to what stays).
#[derive(Debug, Clone, Copy)]
pub(super) struct V4Template {
    bytes: [u8; V4_HEADER_LEN],
    sum: Checksum,
    payload_sum: Checksum,
}

impl V4Template {
    /// A template for payloads of `payload_len` bytes, which it puts into the header and into the pseudo-header sum.
    pub(super) fn new(src: Ipv4Addr, protocol: u8, ttl: u8, payload_len: u16) -> Self {
        let mut bytes = v4_header(src, Ipv4Addr::UNSPECIFIED, protocol, ttl, payload_len);
        bytes[10..12].copy_from_slice(&[0, 0]);
        let mut sum = Checksum::new();
        sum.add(&bytes);
        let mut payload_sum = Checksum::new();
        payload_sum.add_pseudo_v4(src, Ipv4Addr::UNSPECIFIED, protocol, payload_len);
        Self { bytes, sum, payload_sum }
    }

    /// The header for `dst`.
    #[inline]
    pub(super) fn header(&self, dst: Ipv4Addr) -> [u8; V4_HEADER_LEN] {
        let (mut bytes, mut sum) = (self.bytes, self.sum);
        let dst = dst.octets();
        sum.add(&dst);
        bytes[16..20].copy_from_slice(&dst);
        bytes[10..12].copy_from_slice(&sum.finish().to_be_bytes());
        bytes
    }

    /// The sum over the pseudo-header for `dst`, to which the payload is to be added.
    #[inline]
    pub(super) fn pseudo_sum(&self, dst: Ipv4Addr) -> Checksum {
        let mut sum = self.payload_sum;
        sum.add(&dst.octets());
        sum
    }
}

/// An IPv6 header that is constant but for its destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct V6Template {
    bytes: [u8; V6_HEADER_LEN],
    payload_sum: Checksum,
}

impl V6Template {
    /// A template for payloads of `payload_len` bytes.
    pub(super) fn new(src: Ipv6Addr, next_header: u8, hop_limit: u8, payload_len: u16) -> Self {
        let bytes = v6_header(src, Ipv6Addr::UNSPECIFIED, next_header, hop_limit, payload_len);
        let mut payload_sum = Checksum::new();
        payload_sum.add_pseudo_v6(src, Ipv6Addr::UNSPECIFIED, next_header, u32::from(payload_len));
        Self { bytes, payload_sum }
    }

    /// The header for `dst`.
    #[inline]
    pub(super) fn header(&self, dst: Ipv6Addr) -> [u8; V6_HEADER_LEN] {
        let mut bytes = self.bytes;
        bytes[24..40].copy_from_slice(&dst.octets());
        bytes
    }

    /// The sum over the pseudo-header for `dst`, to which the payload is to be added.
    #[inline]
    pub(super) fn pseudo_sum(&self, dst: Ipv6Addr) -> Checksum {
        let mut sum = self.payload_sum;
        sum.add(&dst.octets());
        sum
    }
}

#[cfg(test)]
mod tests {
    use pnet_packet::Packet as _;
    use pnet_packet::ipv4::{self, Ipv4Packet};
    use pnet_packet::ipv6::Ipv6Packet;
    use proptest::prelude::*;

    use super::*;

    const SRC6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const DST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = v6_header(SRC6, DST6, next, 61, payload.len() as u16).to_vec();
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn padding_is_cut_off_and_truncation_is_only_for_quotes() {
        let mut bytes = v4_header(Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 18, 0, 1), PROTOCOL_TCP, 64, 4).to_vec();
        bytes.extend([1, 2, 3, 4, 0, 0]);
        assert_eq!(Packet::parse(&bytes).unwrap().payload(), &[1, 2, 3, 4]);
        assert_eq!(Packet::parse(&bytes[..22]), None);
        assert_eq!(Packet::parse_quote(&bytes[..22]).unwrap().payload(), &[1, 2]);
        bytes[7] = 1;
        assert_eq!(Packet::parse(&bytes), None, "a later fragment");
    }

    #[test]
    fn extension_headers_are_walked() {
        for (name, next, payload, expected) in [
            ("none", 6, vec![1, 2], Some((6, vec![1, 2]))),
            ("hop by hop", 0, [vec![6, 0, 0, 0, 0, 0, 0, 0], vec![9]].concat(), Some((6, vec![9]))),
            ("two", 60, [vec![43, 0, 0, 0, 0, 0, 0, 0], vec![58, 1], vec![0; 14], vec![7]].concat(), Some((58, vec![7]))),
            ("first fragment", 44, [vec![6, 0, 0, 1, 0, 0, 0, 0], vec![5]].concat(), Some((6, vec![5]))),
            ("later fragment", 44, [vec![6, 0, 0, 9, 0, 0, 0, 0], vec![5]].concat(), None),
            ("authentication", 51, [vec![6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], vec![4]].concat(), Some((6, vec![4]))),
            ("longer than the packet", 0, vec![6, 9, 0, 0, 0, 0, 0, 0], None),
            ("cut in the header", 0, vec![6], None),
            ("endless", 0, vec![0; 200], None),
        ] {
            let bytes = v6(next, &payload);
            let found = Packet::parse(&bytes).map(|p| (p.protocol(), p.payload().to_vec()));
            assert_eq!(found, expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), version in 0u8..16) {
            if let Some(first) = bytes.first_mut() {
                *first = (*first & 0x0f) | (version << 4);
            }
            let whole = Packet::parse(&bytes);
            let quote = Packet::parse_quote(&bytes);
            prop_assert!(whole.is_none() || whole == quote);
            if let Some(packet) = quote {
                let head = Head::parse(&bytes).unwrap();
                prop_assert_eq!((head.src, head.dst), (packet.src(), packet.dst()));
                prop_assert!(whole.is_none() || head.len <= bytes.len());
            }
        }

        #[test]
        fn v4_agrees_with_pnet(src: u32, dst: u32, protocol: u8, ttl: u8, payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let (src, dst) = (Ipv4Addr::from_bits(src), Ipv4Addr::from_bits(dst));
            let mut bytes = v4_header(src, dst, protocol, ttl, payload.len() as u16).to_vec();
            let template = V4Template::new(src, protocol, ttl, payload.len() as u16);
            prop_assert_eq!(&template.header(dst)[..], &bytes[..]);
            bytes.extend(&payload);
            let oracle = Ipv4Packet::new(&bytes).unwrap();
            prop_assert_eq!(ipv4::checksum(&oracle), oracle.get_checksum());
            prop_assert_eq!(oracle.payload(), &payload[..]);
            let ours = Packet::parse(&bytes).unwrap();
            prop_assert_eq!((ours.src(), ours.dst()), (IpAddr::V4(oracle.get_source()), IpAddr::V4(oracle.get_destination())));
            prop_assert_eq!((ours.protocol(), ours.ttl(), ours.payload()), (oracle.get_next_level_protocol().0, oracle.get_ttl(), oracle.payload()));
        }

        #[test]
        fn v6_agrees_with_pnet(src: u128, dst: u128, ttl: u8, payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let (src, dst) = (Ipv6Addr::from_bits(src), Ipv6Addr::from_bits(dst));
            let mut bytes = v6_header(src, dst, PROTOCOL_TCP, ttl, payload.len() as u16).to_vec();
            let template = V6Template::new(src, PROTOCOL_TCP, ttl, payload.len() as u16);
            prop_assert_eq!(&template.header(dst)[..], &bytes[..]);
            bytes.extend(&payload);
            let oracle = Ipv6Packet::new(&bytes).unwrap();
            let ours = Packet::parse(&bytes).unwrap();
            prop_assert_eq!((ours.src(), ours.dst()), (IpAddr::V6(oracle.get_source()), IpAddr::V6(oracle.get_destination())));
            prop_assert_eq!((ours.protocol(), ours.ttl(), ours.payload()), (oracle.get_next_header().0, oracle.get_hop_limit(), oracle.payload()));
        }
    }
}
