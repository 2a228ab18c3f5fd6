//! UDP (RFC 768): a view of what comes, and the datagrams that we send.
//!
//! It must not know payloads, cookies or what an answer means. Checksums are not verified on the way in, see [`super::ip`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Checksum;
use super::ip::{PROTOCOL_UDP, V4_HEADER_LEN, V6_HEADER_LEN, v4_header, v6_header};

/// Length of the header.
pub const HEADER_LEN: usize = 8;

/// The header: all that an ICMP error needs to quote (RFC 792).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Length of header and payload, as sent.
    pub len: u16,
}

impl Start {
    /// Reads the header; what follows it may be cut.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (h, _) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let word = |at: usize| u16::from_be_bytes([h[at], h[at + 1]]);
        Some(Self { src_port: word(0), dst_port: word(2), len: word(4) })
    }
}

/// A datagram that is there as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Looks at the payload of an IP packet as a datagram; `None` where its end is missing. What follows the end is ignored.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let start = Start::parse(bytes)?;
        let payload = bytes.get(HEADER_LEN..usize::from(start.len))?;
        Some(Self { src_port: start.src_port, dst_port: start.dst_port, payload })
    }
}

/// Writes datagrams, IP header included, for the families that have a source address.
#[derive(Debug, Clone, Copy)]
pub struct Writer {
    /// Source address for IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Source address for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Hops that a packet may take.
    pub ttl: u8,
}

impl Writer {
    /// Writes a packet to `dst` and gives its length; `None` where the family has no source address or `buf` is too short.
    pub fn write(&self, dst: IpAddr, datagram: &Datagram<'_>, buf: &mut [u8]) -> Option<usize> {
        let len = u16::try_from(HEADER_LEN + datagram.payload.len()).ok()?;
        let mut sum = Checksum::new();
        let header_len = match dst {
            IpAddr::V4(dst) => {
                let src = self.v4?;
                sum.add_pseudo_v4(src, dst, PROTOCOL_UDP, len);
                buf.first_chunk_mut::<V4_HEADER_LEN>()?.copy_from_slice(&v4_header(src, dst, PROTOCOL_UDP, self.ttl, len));
                V4_HEADER_LEN
            }
            IpAddr::V6(dst) => {
                let src = self.v6?;
                sum.add_pseudo_v6(src, dst, PROTOCOL_UDP, len.into());
                buf.first_chunk_mut::<V6_HEADER_LEN>()?.copy_from_slice(&v6_header(src, dst, PROTOCOL_UDP, self.ttl, len));
                V6_HEADER_LEN
            }
        };
        let body = buf.get_mut(header_len..header_len + usize::from(len))?;
        let (header, payload) = body.split_first_chunk_mut::<HEADER_LEN>()?;
        payload.copy_from_slice(datagram.payload);
        header[..2].copy_from_slice(&datagram.src_port.to_be_bytes());
        header[2..4].copy_from_slice(&datagram.dst_port.to_be_bytes());
        header[4..6].copy_from_slice(&len.to_be_bytes());
        header[6..].copy_from_slice(&[0, 0]);
        sum.add(header);
        sum.add(payload);
        // Zero would say that there is no checksum (RFC 768).
        let sum = match sum.finish() {
            0 => 0xffff,
            sum => sum,
        };
        header[6..].copy_from_slice(&sum.to_be_bytes());
        Some(header_len + usize::from(len))
    }
}

#[cfg(test)]
mod tests {
    use pnet_packet::Packet as _;
    use pnet_packet::udp::{self, UdpPacket};
    use proptest::prelude::*;

    use super::*;
    use crate::ip::Packet;

    proptest! {
        #[test]
        fn datagrams_are_what_pnet_reads(
            src4: u32, src6: u128, dst4: u32, dst6: u128, v4: bool, src_port: u16, dst_port: u16,
            payload in proptest::collection::vec(any::<u8>(), 0..1400),
        ) {
            let (src4, src6) = (Ipv4Addr::from_bits(src4), Ipv6Addr::from_bits(src6));
            let writer = Writer { v4: Some(src4), v6: Some(src6), ttl: 64 };
            let dst = if v4 { IpAddr::V4(Ipv4Addr::from_bits(dst4)) } else { IpAddr::V6(Ipv6Addr::from_bits(dst6)) };
            let mut buf = [0xaa; 1500];
            let sent = Datagram { src_port, dst_port, payload: &payload };
            let len = writer.write(dst, &sent, &mut buf).unwrap();
            let ip = Packet::parse(&buf[..len]).unwrap();
            prop_assert_eq!((ip.dst(), ip.protocol(), ip.ttl()), (dst, PROTOCOL_UDP, 64));
            prop_assert_eq!(Datagram::parse(ip.payload()), Some(sent));
            let oracle = UdpPacket::new(ip.payload()).unwrap();
            prop_assert_eq!((oracle.get_source(), oracle.get_destination()), (src_port, dst_port));
            prop_assert_eq!((usize::from(oracle.get_length()), oracle.payload()), (8 + payload.len(), &payload[..]));
            let sum = match dst {
                IpAddr::V4(dst) => udp::ipv4_checksum(&oracle, &src4, &dst),
                IpAddr::V6(dst) => udp::ipv6_checksum(&oracle, &src6, &dst),
            };
            prop_assert!(oracle.get_checksum() == sum || (sum == 0 && oracle.get_checksum() == 0xffff));
            prop_assert_ne!(oracle.get_checksum(), 0);
        }

        #[test]
        fn views_never_panic_and_agree_with_pnet(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Some(start) = Start::parse(&bytes) {
                let oracle = UdpPacket::new(&bytes).unwrap();
                prop_assert_eq!((start.src_port, start.dst_port, start.len), (oracle.get_source(), oracle.get_destination(), oracle.get_length()));
            }
            if let Some(datagram) = Datagram::parse(&bytes) {
                let oracle = UdpPacket::new(&bytes).unwrap();
                prop_assert_eq!(datagram.payload, oracle.payload());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_not_written() {
        let writer = Writer { v4: Some(Ipv4Addr::LOCALHOST), v6: None, ttl: 64 };
        let datagram = Datagram { src_port: 1, dst_port: 2, payload: b"12345" };
        assert_eq!(writer.write("198.18.0.1".parse().unwrap(), &datagram, &mut [0; 32]), None);
        assert_eq!(writer.write("198.18.0.1".parse().unwrap(), &datagram, &mut [0; 33]), Some(33));
        assert_eq!(writer.write("2001:db8::1".parse().unwrap(), &datagram, &mut [0; 100]), None);
    }
}
