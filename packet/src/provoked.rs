//! What the kernel answers behind our back to packets that belong to no socket of its own.
//!
//! Nobody hands these packets to the pacer. Whoever owns the pacer must charge them, or the answers of open ports make the
//! interface send more than it may.

use super::ip::{PROTOCOL_SCTP, PROTOCOL_UDP, Packet, V4_HEADER_LEN, V6_HEADER_LEN};
use super::tcp;

/// Length of the head of an ICMP error before its quote.
const ICMP_HEADER_LEN: usize = 8;
/// An ICMP error is no longer than this (RFC 1812, section 4.3.2.3).
const V4_ERROR_MAX: usize = 576;
/// An ICMPv6 error is no longer than the least MTU (RFC 4443, section 2.4 c).
const V6_ERROR_MAX: usize = 1_280;

/// The length of the IP packet by which the kernel answers `packet`, where it may: a reset to a segment, an ICMP error to a datagram
/// or to a protocol that it does not speak. It limits the rate of ICMP errors, so this is the most that can be.
pub fn provoked_reply(packet: &[u8]) -> Option<usize> {
    let parsed = Packet::parse(packet)?;
    match parsed.protocol() {
        PROTOCOL_UDP | PROTOCOL_SCTP if !parsed.dst().is_multicast() => Some(match parsed.dst().is_ipv4() {
            true => (V4_HEADER_LEN + ICMP_HEADER_LEN + packet.len()).min(V4_ERROR_MAX),
            false => (V6_HEADER_LEN + ICMP_HEADER_LEN + packet.len()).min(V6_ERROR_MAX),
        }),
        _ => tcp::provoked_reset(packet),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udp::{Datagram, Writer};

    #[test]
    fn datagrams_without_a_socket_provoke_an_error() {
        let writer = Writer { v4: Some([192, 0, 2, 1].into()), v6: Some("2001:db8::2".parse().unwrap()), ttl: 64 };
        let mut buf = [0; 1500];
        for (dst, payload, reply) in [
            ("192.0.2.2", 10, Some(28 + 38)),
            ("192.0.2.2", 1000, Some(576)),
            ("2001:db8::1", 10, Some(48 + 58)),
            ("2001:db8::1", 1400, Some(1280)),
            ("224.0.0.251", 10, None),
        ] {
            let sent = Datagram { src_port: 53, dst_port: 61_440, payload: &vec![0; payload] };
            let len = writer.write(dst.parse().unwrap(), &sent, &mut buf).unwrap();
            assert_eq!(provoked_reply(&buf[..len]), reply, "{dst} {payload}");
        }
        assert_eq!(provoked_reply(&[0x45; 30]), None);
    }
}
