//! ICMP (RFC 792) and ICMPv6 (RFC 4443): echo, timestamp, and errors with the packet that they quote.
//!
//! It must not know cookies, attempts or what an answer means. Checksums are not verified on the way in, see [`super::ip`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Checksum;
use super::ip::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, Packet, V4_HEADER_LEN, V4Template, V6_HEADER_LEN, V6Template};

/// Length of the echo header: type, code, checksum, identifier, sequence number.
pub const ECHO_HEADER_LEN: usize = 8;
/// Length of the payload of the echo requests that we send: with IPv4 the frame stays at the Ethernet minimum.
pub const ECHO_PAYLOAD_LEN: usize = 16;
/// Length of a timestamp message (RFC 792): header, identifier, sequence number and three timestamps.
pub const TIMESTAMP_LEN: usize = 20;
const ECHO_LEN: usize = ECHO_HEADER_LEN + ECHO_PAYLOAD_LEN;

/// ICMP type "destination unreachable" (RFC 792).
pub const V4_UNREACHABLE: u8 = 3;
/// Code "protocol unreachable" of [`V4_UNREACHABLE`].
pub const V4_PROTOCOL_UNREACHABLE: u8 = 2;
/// Code "port unreachable" of [`V4_UNREACHABLE`].
pub const V4_PORT_UNREACHABLE: u8 = 3;
/// Code "fragmentation needed" of [`V4_UNREACHABLE`] (RFC 1191): no verdict on the destination.
pub const V4_FRAGMENTATION_NEEDED: u8 = 4;
/// ICMP type "source quench" (RFC 792; deprecated by RFC 6633).
pub const V4_SOURCE_QUENCH: u8 = 4;
/// ICMP type "time exceeded" (RFC 792).
pub const V4_TIME_EXCEEDED: u8 = 11;
/// ICMP type "parameter problem" (RFC 792).
pub const V4_PARAMETER_PROBLEM: u8 = 12;
/// ICMPv6 type "destination unreachable" (RFC 4443, section 3.1).
pub const V6_UNREACHABLE: u8 = 1;
/// Code "port unreachable" of [`V6_UNREACHABLE`].
pub const V6_PORT_UNREACHABLE: u8 = 4;
/// ICMPv6 type "packet too big" (RFC 4443, section 3.2).
pub const V6_TOO_BIG: u8 = 2;
/// ICMPv6 type "time exceeded" (RFC 4443, section 3.3).
pub const V6_TIME_EXCEEDED: u8 = 3;
/// ICMPv6 type "parameter problem" (RFC 4443, section 3.4).
pub const V6_PARAMETER_PROBLEM: u8 = 4;

/// Code "unrecognised next header" of [`V6_PARAMETER_PROBLEM`]: nobody speaks the protocol there.
pub const V6_UNKNOWN_NEXT_HEADER: u8 = 1;

const V4_ECHO_REPLY: u8 = 0;
const V4_ECHO_REQUEST: u8 = 8;
const V4_TIMESTAMP: u8 = 13;
const V4_TIMESTAMP_REPLY: u8 = 14;
const V6_ECHO_REQUEST: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;

/// An echo message, request or reply; in a quote its payload may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Identifier.
    pub id: u16,
    /// Sequence number.
    pub seq: u16,
    /// What is sent back unchanged.
    pub payload: &'a [u8],
}

impl<'a> Echo<'a> {
    fn parse(message: &'a [u8]) -> Option<Self> {
        let (h, payload) = message.split_first_chunk::<ECHO_HEADER_LEN>()?;
        Some(Self { id: u16::from_be_bytes([h[4], h[5]]), seq: u16::from_be_bytes([h[6], h[7]]), payload })
    }
}

/// A timestamp message, request or reply (RFC 792).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamp {
    /// Identifier.
    pub id: u16,
    /// Sequence number.
    pub seq: u16,
    /// What the asker wrote; a reply repeats it. `None` where a quote ends before it.
    pub originate: Option<u32>,
}

impl Timestamp {
    fn parse(message: &[u8]) -> Option<Self> {
        let (h, rest) = message.split_first_chunk::<ECHO_HEADER_LEN>()?;
        let originate = rest.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes));
        Some(Self { id: u16::from_be_bytes([h[4], h[5]]), seq: u16::from_be_bytes([h[6], h[7]]), originate })
    }
}

/// A message that somebody may have sent us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// Somebody asks.
    EchoRequest(Echo<'a>),
    /// Somebody answers.
    EchoReply(Echo<'a>),
    /// Somebody asks for the time.
    TimestampRequest(Timestamp),
    /// Somebody tells it.
    TimestampReply(Timestamp),
    /// A router or host reports on a packet.
    Error {
        /// Type.
        icmp_type: u8,
        /// Code.
        icmp_code: u8,
        /// The packet that it is about; its end may be missing.
        quote: Packet<'a>,
    },
}

impl<'a> Message<'a> {
    /// Reads the message in an IP packet (or in the quote of one). `None` for every other protocol, kind or damage. An error
    /// whose quote is of the other family than its own header is damage.
    pub fn parse(packet: &Packet<'a>) -> Option<Self> {
        let message = packet.payload();
        let (header, quoted) = message.split_first_chunk::<ECHO_HEADER_LEN>()?;
        let (icmp_type, icmp_code) = (header[0], header[1]);
        let error = || {
            let quote = Packet::parse_quote(quoted)?;
            (quote.src().is_ipv4() == packet.src().is_ipv4()).then_some(Message::Error { icmp_type, icmp_code, quote })
        };
        match (packet.protocol(), packet.src(), icmp_type) {
            (PROTOCOL_ICMP, IpAddr::V4(_), V4_ECHO_REQUEST) | (PROTOCOL_ICMPV6, IpAddr::V6(_), V6_ECHO_REQUEST) if icmp_code == 0 => {
                Echo::parse(message).map(Message::EchoRequest)
            }
            (PROTOCOL_ICMP, IpAddr::V4(_), V4_ECHO_REPLY) | (PROTOCOL_ICMPV6, IpAddr::V6(_), V6_ECHO_REPLY) if icmp_code == 0 => {
                Echo::parse(message).map(Message::EchoReply)
            }
            (PROTOCOL_ICMP, IpAddr::V4(_), V4_TIMESTAMP) if icmp_code == 0 => Timestamp::parse(message).map(Message::TimestampRequest),
            (PROTOCOL_ICMP, IpAddr::V4(_), V4_TIMESTAMP_REPLY) if icmp_code == 0 => {
                Timestamp::parse(message).filter(|_| message.len() >= TIMESTAMP_LEN).map(Message::TimestampReply)
            }
            (PROTOCOL_ICMP, IpAddr::V4(_), V4_UNREACHABLE | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM) => error(),
            (PROTOCOL_ICMPV6, IpAddr::V6(_), V6_UNREACHABLE..=V6_PARAMETER_PROBLEM) => error(),
            _ => None,
        }
    }
}

/// The packet that a source quench is about.
pub fn source_quench<'a>(packet: &Packet<'a>) -> Option<Packet<'a>> {
    let (header, quoted) = packet.payload().split_first_chunk::<ECHO_HEADER_LEN>()?;
    let is_quench = packet.protocol() == PROTOCOL_ICMP && packet.src().is_ipv4() && header[0] == V4_SOURCE_QUENCH;
    if is_quench { Packet::parse_quote(quoted) } else { None }
}

/// What the next link takes, in bytes, as a router says that a packet is too large for it: in the last two bytes of the header of an
/// IPv4 error (RFC 1191, section 4; 0 where the router is older), in the last four of an IPv6 one (RFC 4443, section 3.2). `None` for every other message.
pub fn next_hop_mtu(packet: &Packet<'_>) -> Option<u32> {
    let header = packet.payload().first_chunk::<ECHO_HEADER_LEN>()?;
    let mtu = match (packet.src().is_ipv4(), header[0], header[1]) {
        (true, V4_UNREACHABLE, V4_FRAGMENTATION_NEEDED) => u16::from_be_bytes([header[6], header[7]]).into(),
        (false, V6_TOO_BIG, _) => u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        _ => return None,
    };
    Some(mtu)
}

/// What differs between two echo requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EchoRequest {
    /// Destination address.
    pub dst: IpAddr,
    /// Identifier.
    pub id: u16,
    /// Sequence number.
    pub seq: u16,
    /// Payload.
    pub payload: [u8; ECHO_PAYLOAD_LEN],
}

/// The constant bytes of echo requests, IP header included, for both families.
#[derive(Debug, Clone, Copy)]
pub struct EchoTemplate {
    v4: Option<V4Template>,
    v6: Option<V6Template>,
}

#[inline]
fn message(icmp_type: u8, request: &EchoRequest, mut sum: Checksum) -> [u8; ECHO_LEN] {
    let mut m = [0; ECHO_LEN];
    m[0] = icmp_type;
    m[4..6].copy_from_slice(&request.id.to_be_bytes());
    m[6..8].copy_from_slice(&request.seq.to_be_bytes());
    m[ECHO_HEADER_LEN..].copy_from_slice(&request.payload);
    sum.add(&m);
    m[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    m
}

impl EchoTemplate {
    /// Templates for the families that have a source address.
    pub fn new(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, ttl: u8) -> Self {
        Self {
            v4: v4.map(|src| V4Template::new(src, PROTOCOL_ICMP, ttl, ECHO_LEN as u16)),
            v6: v6.map(|src| V6Template::new(src, PROTOCOL_ICMPV6, ttl, ECHO_LEN as u16)),
        }
    }

    /// Writes the packet for `request` and gives its length; `None` where the family has no source address or `buf` is too
    /// short.
    #[inline]
    pub fn write(&self, request: &EchoRequest, buf: &mut [u8]) -> Option<usize> {
        match request.dst {
            IpAddr::V4(dst) => {
                let template = self.v4.as_ref()?;
                let packet = buf.first_chunk_mut::<{ V4_HEADER_LEN + ECHO_LEN }>()?;
                packet[..V4_HEADER_LEN].copy_from_slice(&template.header(dst));
                // ICMP for IPv4 sums no pseudo-header.
                packet[V4_HEADER_LEN..].copy_from_slice(&message(V4_ECHO_REQUEST, request, Checksum::new()));
                Some(packet.len())
            }
            IpAddr::V6(dst) => {
                let template = self.v6.as_ref()?;
                let packet = buf.first_chunk_mut::<{ V6_HEADER_LEN + ECHO_LEN }>()?;
                packet[..V6_HEADER_LEN].copy_from_slice(&template.header(dst));
                packet[V6_HEADER_LEN..].copy_from_slice(&message(V6_ECHO_REQUEST, request, template.pseudo_sum(dst)));
                Some(packet.len())
            }
        }
    }
}

/// What differs between two timestamp requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimestampRequest {
    /// Destination address.
    pub dst: Ipv4Addr,
    /// Identifier.
    pub id: u16,
    /// Sequence number.
    pub seq: u16,
    /// Originate timestamp; with its highest bit set it is in no particular unit (RFC 792).
    pub originate: u32,
}

/// The constant bytes of timestamp requests, IP header included.
#[derive(Debug, Clone, Copy)]
pub struct TimestampTemplate(V4Template);

impl TimestampTemplate {
    /// A template for requests from `src`.
    pub fn new(src: Ipv4Addr, ttl: u8) -> Self {
        Self(V4Template::new(src, PROTOCOL_ICMP, ttl, TIMESTAMP_LEN as u16))
    }

    /// Writes the packet for `request` and gives its length; `None` where `buf` is too short.
    pub fn write(&self, request: &TimestampRequest, buf: &mut [u8]) -> Option<usize> {
        let packet = buf.first_chunk_mut::<{ V4_HEADER_LEN + TIMESTAMP_LEN }>()?;
        let mut m = [0; TIMESTAMP_LEN];
        m[0] = V4_TIMESTAMP;
        m[4..6].copy_from_slice(&request.id.to_be_bytes());
        m[6..8].copy_from_slice(&request.seq.to_be_bytes());
        m[8..12].copy_from_slice(&request.originate.to_be_bytes());
        let sum = super::checksum::checksum(&m);
        m[2..4].copy_from_slice(&sum.to_be_bytes());
        packet[..V4_HEADER_LEN].copy_from_slice(&self.0.header(request.dst));
        packet[V4_HEADER_LEN..].copy_from_slice(&m);
        Some(packet.len())
    }
}

#[cfg(test)]
mod tests {
    use pnet_packet::icmp::{self, IcmpPacket, echo_request::EchoRequestPacket};
    use pnet_packet::icmpv6::{self, Icmpv6Packet};
    use proptest::prelude::*;

    use super::*;
    use crate::ip::{v4_header, v6_header};

    const V4: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 18, 0, 9));
    const V6: (Ipv6Addr, Ipv6Addr) = (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9));

    fn v4_packet(message: &[u8]) -> Vec<u8> {
        [&v4_header(V4.0, V4.1, PROTOCOL_ICMP, 60, message.len() as u16)[..], message].concat()
    }

    fn v6_packet(message: &[u8]) -> Vec<u8> {
        [&v6_header(V6.0, V6.1, PROTOCOL_ICMPV6, 60, message.len() as u16)[..], message].concat()
    }

    fn parse(bytes: &[u8]) -> Option<Message<'_>> {
        Message::parse(&Packet::parse(bytes)?)
    }

    #[test]
    fn errors_give_their_quote() {
        let mut sent = v4_header(V4.1, V4.0, 6, 3, 24).to_vec();
        sent.extend([0x9c, 0x40, 0, 80, 1, 2, 3, 4]);
        let bytes = v4_packet(&[&[3, 13, 0, 0, 0, 0, 0, 0][..], &sent].concat());
        let Some(Message::Error { icmp_type: 3, icmp_code: 13, quote }) = parse(&bytes) else { panic!("{bytes:?}") };
        assert_eq!((quote.src(), quote.dst(), quote.payload().len()), (V4.1.into(), V4.0.into(), 8));
        assert_eq!(parse(&v6_packet(&[&[1, 1, 0, 0, 0, 0, 0, 0][..], &sent].concat())), None, "a quote of the other family");
        assert_eq!(parse(&v4_packet(&[&[3, 13, 0, 0, 0, 0, 0, 0][..], &sent[..19]].concat())), None, "too short a quote");
        let sent = [&v6_header(V6.1, V6.0, 6, 3, 24)[..], &[0x9c, 0x40, 0, 80, 1, 2, 3, 4]].concat();
        let bytes = v6_packet(&[&[1, 4, 0, 0, 0, 0, 0, 0][..], &sent].concat());
        assert!(matches!(parse(&bytes), Some(Message::Error { icmp_type: 1, icmp_code: 4, .. })));
    }

    proptest! {
        #[test]
        fn requests_are_what_pnet_reads(id: u16, seq: u16, payload: [u8; ECHO_PAYLOAD_LEN]) {
            let template = EchoTemplate::new(Some(V4.0), Some(V6.0), 64);
            let mut buf = [0xaa; 1500];
            let len = template.write(&EchoRequest { dst: V4.1.into(), id, seq, payload }, &mut buf).unwrap();
            let ip = Packet::parse(&buf[..len]).unwrap();
            let oracle = EchoRequestPacket::new(ip.payload()).unwrap();
            prop_assert_eq!((oracle.get_identifier(), oracle.get_sequence_number()), (id, seq));
            prop_assert_eq!(oracle.get_checksum(), icmp::checksum(&IcmpPacket::new(ip.payload()).unwrap()));
            prop_assert_eq!(parse(&buf[..len]), Some(Message::EchoRequest(Echo { id, seq, payload: &payload })));
            let len = template.write(&EchoRequest { dst: V6.1.into(), id, seq, payload }, &mut buf).unwrap();
            let ip = Packet::parse(&buf[..len]).unwrap();
            let oracle = Icmpv6Packet::new(ip.payload()).unwrap();
            prop_assert_eq!(oracle.get_checksum(), icmpv6::checksum(&oracle, &V6.0, &V6.1));
            prop_assert_eq!(parse(&buf[..len]), Some(Message::EchoRequest(Echo { id, seq, payload: &payload })));
        }

        #[test]
        fn timestamps_are_what_pnet_reads(dst: u32, id: u16, seq: u16, originate: u32) {
            let template = TimestampTemplate::new(V4.0, 64);
            let mut buf = [0xaa; 100];
            let len = template.write(&TimestampRequest { dst: Ipv4Addr::from_bits(dst), id, seq, originate }, &mut buf).unwrap();
            let ip = Packet::parse(&buf[..len]).unwrap();
            let oracle = IcmpPacket::new(ip.payload()).unwrap();
            prop_assert_eq!((oracle.get_icmp_type().0, oracle.get_icmp_code().0, ip.payload().len()), (13, 0, 20));
            prop_assert_eq!(oracle.get_checksum(), icmp::checksum(&oracle));
            let stamp = Timestamp { id, seq, originate: Some(originate) };
            prop_assert_eq!(parse(&buf[..len]), Some(Message::TimestampRequest(stamp)));
            let mut reply = ip.payload().to_vec();
            reply[0] = 14;
            let (whole, cut) = (v4_packet(&reply), v4_packet(&reply[..19]));
            prop_assert_eq!(parse(&whole), Some(Message::TimestampReply(stamp)));
            prop_assert_eq!(parse(&cut), None, "a reply is whole");
        }

        #[test]
        fn never_panics(message in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&v4_packet(&message));
            let _ = parse(&v6_packet(&message));
            let quoted = [&[3, 1, 0, 0, 0, 0, 0, 0][..], &message].concat();
            let _ = parse(&v4_packet(&quoted));
        }
    }
}
