//! A probe of a path as a packet, and the probe that an answer names.
//!
//! **Invariant:** two probes of one path differ, besides in TTL, in nothing that a router hashes: IPv4 and IPv6 headers, ports, and the first
//! four bytes of an ICMP message are equal.

use core::hash::Hasher;
use core::net::IpAddr;

use picket_wire::trace::{Method, Quoted, ReplyKind};
use siphasher::sip::SipHasher13;

use super::spec::TracePlan;
use crate::net::engine::Source;
use crate::net::ports::RawIdentity;
use crate::packet::checksum::Checksum;
use crate::packet::extension::Extensions;
use crate::packet::icmp::{self, ECHO_HEADER_LEN, Message};
use crate::packet::ip::{
    PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Packet, V4_HEADER_LEN, V6_HEADER_LEN, v4_header_marked, v6_header_marked,
};
use crate::packet::tcp::{self, Flags, Segment};
use crate::packet::udp::Datagram;

/// The keyed bytes of a payload.
const COOKIE_LEN: usize = 8;
/// Where the two bytes stand that make the checksum what it should be, from the start of the payload.
const BALANCE: usize = COOKIE_LEN;
/// The shortest payload: cookie and balance.
pub(super) const PAYLOAD_MIN: usize = COOKIE_LEN + 2;
/// Checksums that are chosen: neither 0 nor 0xffff, which are one number to the sum and mean "none" in UDP.
const SUMS: u16 = 0xfffe;

/// Which probe a packet is, or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) dst: IpAddr,
    /// Source port or echo identifier.
    pub(super) flow: u16,
    /// Number within the path; `None` where the answer repeats nothing of it.
    pub(super) number: Option<u16>,
}

/// An answer to a probe of this run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) name: Name,
    pub(super) from: IpAddr,
    pub(super) ttl: u8,
    pub(super) kind: ReplyKind,
    pub(super) quoted: Option<Quoted>,
    pub(super) extensions: Extensions,
    /// What the next link takes, where the probe was too large for it.
    pub(super) mtu: Option<u32>,
}

/// Writes and recognises the probes of a run.
pub(super) struct Probes {
    method: Method,
    port: u16,
    tos: u8,
    /// What follows the IP header, in bytes.
    transport_len: usize,
    source: Source,
    keyed: SipHasher13,
}

/// What is secret of a flow.
#[derive(Debug, Clone, Copy)]
struct Secret(u64);

impl Secret {
    /// The checksum of the datagram `number`.
    const fn sum(self, number: u16) -> u16 {
        1 + ((self.0 as u16 as u32 + number as u32) % SUMS as u32) as u16
    }

    /// The datagram whose checksum it is.
    const fn of_sum(self, sum: u16) -> u16 {
        let (sum, start) = (sum as u32 + SUMS as u32 - 1, self.0 as u16 as u32 % SUMS as u32);
        ((sum - start) % SUMS as u32) as u16
    }

    /// The sequence number of the echo request `number`.
    const fn echo(self, number: u16) -> u16 {
        ((self.0 >> 16) as u16).wrapping_add(number)
    }

    const fn of_echo(self, seq: u16) -> u16 {
        seq.wrapping_sub((self.0 >> 16) as u16)
    }

    /// The sequence number of the SYN `number`.
    const fn seq(self, number: u16) -> u32 {
        ((self.0 >> 32) as u32).wrapping_add(number as u32)
    }

    fn of_seq(self, seq: u32) -> Option<u16> {
        u16::try_from(seq.wrapping_sub((self.0 >> 32) as u32)).ok()
    }
}

impl Probes {
    pub(super) fn new(plan: &TracePlan, identity: &RawIdentity) -> Self {
        Self {
            method: plan.method,
            port: plan.port,
            tos: plan.tos,
            transport_len: plan.transport_len(),
            source: identity.source,
            keyed: SipHasher13::new_with_key(&identity.key),
        }
    }

    fn hash(&self, dst: IpAddr, flow: u16, what: u8) -> u64 {
        let mut hasher = self.keyed;
        match dst {
            IpAddr::V4(addr) => hasher.write(&addr.octets()),
            IpAddr::V6(addr) => hasher.write(&addr.octets()),
        }
        hasher.write_u32(u32::from(flow) << 8 | u32::from(what));
        hasher.finish()
    }

    fn secret(&self, dst: IpAddr, flow: u16) -> Secret {
        Secret(self.hash(dst, flow, 0))
    }

    fn cookie(&self, dst: IpAddr, flow: u16) -> [u8; COOKIE_LEN] {
        self.hash(dst, flow, 1).to_be_bytes()
    }

    /// Length of a packet to `dst`.
    pub(super) fn len(&self, dst: IpAddr) -> usize {
        ip_len(dst) + self.transport_len
    }

    /// Writes probe `number` to `dst`, `size` bytes long where that is not left to the plan, and gives its length; `None` where the family has
    /// no source address, `size` is too small for a probe, or `buf` is too short.
    pub(super) fn write(&self, dst: IpAddr, flow: u16, number: u16, ttl: u8, size: Option<u16>, buf: &mut [u8]) -> Option<usize> {
        let v4 = dst.is_ipv4();
        let protocol = match self.method {
            Method::Icmp if v4 => PROTOCOL_ICMP,
            Method::Icmp => PROTOCOL_ICMPV6,
            Method::Udp => PROTOCOL_UDP,
            Method::Tcp => PROTOCOL_TCP,
        };
        let len = match size {
            None => u16::try_from(self.transport_len).ok()?,
            Some(size) => size.checked_sub(ip_len(dst) as u16).filter(|len| usize::from(*len) >= ECHO_HEADER_LEN + PAYLOAD_MIN)?,
        };
        let mut sum = Checksum::new();
        let at = match dst {
            IpAddr::V4(dst) => {
                let src = self.source.v4?;
                // ICMP for IPv4 sums no pseudo-header.
                if self.method != Method::Icmp {
                    sum.add_pseudo_v4(src, dst, protocol, len);
                }
                buf.first_chunk_mut::<V4_HEADER_LEN>()?.copy_from_slice(&v4_header_marked(src, dst, protocol, ttl, len, self.tos));
                V4_HEADER_LEN
            }
            IpAddr::V6(dst) => {
                let src = self.source.v6?;
                sum.add_pseudo_v6(src, dst, protocol, len.into());
                buf.first_chunk_mut::<V6_HEADER_LEN>()?.copy_from_slice(&v6_header_marked(src, dst, protocol, ttl, len, self.tos));
                V6_HEADER_LEN
            }
        };
        let body = buf.get_mut(at..at + usize::from(len))?;
        body.fill(0);
        let secret = self.secret(dst, flow);
        match self.method {
            Method::Icmp => {
                body[0] = if v4 { 8 } else { 128 };
                body[4..6].copy_from_slice(&flow.to_be_bytes());
                body[6..8].copy_from_slice(&secret.echo(number).to_be_bytes());
                body[8..8 + COOKIE_LEN].copy_from_slice(&self.cookie(dst, flow));
                balance(body, 2, echo_sum(flow), sum);
            }
            Method::Udp => {
                body[..2].copy_from_slice(&flow.to_be_bytes());
                body[2..4].copy_from_slice(&self.port.to_be_bytes());
                body[4..6].copy_from_slice(&len.to_be_bytes());
                body[8..8 + COOKIE_LEN].copy_from_slice(&self.cookie(dst, flow));
                balance(body, 6, secret.sum(number), sum);
            }
            Method::Tcp => {
                body[..2].copy_from_slice(&flow.to_be_bytes());
                body[2..4].copy_from_slice(&self.port.to_be_bytes());
                body[4..8].copy_from_slice(&secret.seq(number).to_be_bytes());
                body[12] = 0x50;
                body[13] = Flags::SYN;
                body[14..16].copy_from_slice(&tcp::WINDOW.to_be_bytes());
                sum.add(body);
                body[16..18].copy_from_slice(&sum.finish().to_be_bytes());
            }
        }
        Some(at + usize::from(len))
    }

    /// The answer in a packet, if it is one to a probe of this run.
    pub(super) fn accept(&self, bytes: &[u8]) -> Option<Seen> {
        let packet = Packet::parse(bytes)?;
        let direct = |name: Name| Seen {
            name,
            from: packet.src(),
            ttl: packet.ttl(),
            kind: ReplyKind::Answer,
            quoted: None,
            extensions: Extensions::default(),
            mtu: None,
        };
        match (Message::parse(&packet), self.method) {
            (Some(Message::Error { icmp_type, icmp_code, quote }), _) => {
                let name = self.quoted(&quote)?;
                let kind = self.kind(&packet, name.dst, icmp_type, icmp_code)?;
                let quoted = Some(Quoted { ttl: quote.ttl(), tos: quote.tos() });
                let (extensions, mtu) = (Extensions::parse(&packet), icmp::next_hop_mtu(&packet));
                Some(Seen { name, from: packet.src(), ttl: packet.ttl(), kind, quoted, extensions, mtu })
            }
            (Some(Message::EchoReply(echo)), Method::Icmp) => {
                let (dst, flow) = (packet.src(), echo.id);
                let ours = echo.payload.starts_with(&self.cookie(dst, flow));
                ours.then(|| direct(Name { dst, flow, number: Some(self.secret(dst, flow).of_echo(echo.seq)) }))
            }
            (_, Method::Tcp) if packet.protocol() == PROTOCOL_TCP => self.segment(&packet).map(direct),
            (_, Method::Udp) if packet.protocol() == PROTOCOL_UDP => {
                let datagram = Datagram::parse(packet.payload()).filter(|datagram| datagram.src_port == self.port)?;
                Some(direct(Name { dst: packet.src(), flow: datagram.dst_port, number: None }))
            }
            _ => None,
        }
    }

    /// A segment that acknowledges a SYN of ours, to take it up or to refuse it.
    fn segment(&self, packet: &Packet<'_>) -> Option<Name> {
        let segment = Segment::parse(packet.payload())?;
        let flags = segment.flags();
        let answers = flags.has(Flags::ACK) && (flags.has(Flags::SYN) || flags.has(Flags::RST)) && segment.src_port() == self.port;
        let (dst, flow) = (packet.src(), segment.dst_port());
        let number = self.secret(dst, flow).of_seq(segment.ack().wrapping_sub(1)).filter(|_| answers)?;
        Some(Name { dst, flow, number: Some(number) })
    }

    /// The probe of ours in a quote; eight bytes of its payload are sure to be there.
    fn quoted(&self, quote: &Packet<'_>) -> Option<Name> {
        let (dst, body) = (quote.dst(), quote.payload());
        let start = body.first_chunk::<8>()?;
        let word = |at: usize| u16::from_be_bytes([start[at], start[at + 1]]);
        let (flow, number, cookie) = match (self.method, quote.protocol()) {
            (Method::Icmp, PROTOCOL_ICMP | PROTOCOL_ICMPV6) if matches!(start[0], 8 | 128) => {
                let flow = word(4);
                (flow, Some(self.secret(dst, flow).of_echo(word(6))), body.get(8..8 + COOKIE_LEN))
            }
            (Method::Udp, PROTOCOL_UDP) if word(2) == self.port => {
                let flow = word(0);
                (flow, Some(self.secret(dst, flow).of_sum(word(6))), body.get(8..8 + COOKIE_LEN))
            }
            (Method::Tcp, PROTOCOL_TCP) if word(2) == self.port => {
                let (flow, seq) = (word(0), u32::from_be_bytes([start[4], start[5], start[6], start[7]]));
                (flow, Some(self.secret(dst, flow).of_seq(seq)?), None)
            }
            _ => return None,
        };
        cookie.is_none_or(|cookie| cookie == self.cookie(dst, flow)).then_some(Name { dst, flow, number })
    }

    /// What an error says of a probe; `None` where it says nothing of the way.
    fn kind(&self, packet: &Packet<'_>, dst: IpAddr, icmp_type: u8, icmp_code: u8) -> Option<ReplyKind> {
        let v4 = packet.src().is_ipv4();
        let exceeded = if v4 { icmp::V4_TIME_EXCEEDED } else { icmp::V6_TIME_EXCEEDED };
        let nobody_there = match v4 {
            true => (icmp_type, icmp_code) == (icmp::V4_UNREACHABLE, icmp::V4_PORT_UNREACHABLE),
            false => (icmp_type, icmp_code) == (icmp::V6_UNREACHABLE, icmp::V6_PORT_UNREACHABLE),
        };
        match icmp_type {
            kind if kind == exceeded => (icmp_code == 0).then_some(ReplyKind::TimeExceeded),
            _ if nobody_there && self.method == Method::Udp && packet.src() == dst => Some(ReplyKind::Answer),
            _ => Some(ReplyKind::Unreachable { icmp_type, icmp_code }),
        }
    }
}

/// Bytes of the IP header of a probe to `dst`.
pub(super) const fn ip_len(dst: IpAddr) -> usize {
    if dst.is_ipv4() { V4_HEADER_LEN } else { V6_HEADER_LEN }
}

/// The checksum of a flow's echo requests, which routers take for a part of the flow: the same in every run, so that later runs take the same way.
/// (Nobody needs to guess it: sequence number and payload are keyed.)
const fn echo_sum(flow: u16) -> u16 {
    1 + flow % SUMS
}

/// Writes `wanted` as the checksum at `at`, and into the payload what makes it true; `sum` is what is summed besides `body`.
fn balance(body: &mut [u8], at: usize, wanted: u16, mut sum: Checksum) {
    sum.add(body);
    // The checksum is the complement of the sum (RFC 1071): !wanted = sum + missing.
    sum.add_u16(wanted);
    let missing = sum.finish();
    body[at..at + 2].copy_from_slice(&wanted.to_be_bytes());
    body[8 + BALANCE..8 + BALANCE + 2].copy_from_slice(&missing.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use pnet_packet::Packet as _;
    use pnet_packet::icmp::IcmpPacket;
    use pnet_packet::icmpv6::Icmpv6Packet;
    use pnet_packet::tcp::TcpPacket;
    use pnet_packet::udp::UdpPacket;
    use pnet_packet::{icmp as pnet_icmp, icmpv6, tcp as pnet_tcp, udp as pnet_udp};
    use proptest::prelude::*;

    use super::*;
    use crate::net::ports::SourcePorts;
    use crate::packet::ip::{v4_header, v6_header};
    use crate::trace::tests::plan;

    const SOURCE: Source =
        Source { v4: Some(core::net::Ipv4Addr::new(192, 0, 2, 2)), v6: Some(core::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)) };

    fn probes(method: Method, payload: usize) -> Probes {
        let plan = TracePlan { payload, tos: 0x28, ..plan("198.18.0.1", method) };
        let ports = SourcePorts::default();
        Probes::new(&plan, &RawIdentity { source: SOURCE, base_port: ports.first(), ports, key: *b"sixteen random b" })
    }

    /// A time exceeded about `probe`, of which it quotes `quote` bytes behind the IP header.
    fn exceeded(probe: &[u8], quote: usize) -> Vec<u8> {
        let v4 = probe[0] >> 4 == 4;
        let quoted = &probe[..probe.len().min(quote + if v4 { 20 } else { 40 })];
        let message = [&[if v4 { 11 } else { 3 }, 0, 0, 0, 0, 0, 0, 0][..], quoted].concat();
        let len = message.len() as u16;
        match v4 {
            true => [&v4_header([192, 0, 2, 99].into(), [192, 0, 2, 2].into(), 1, 250, len)[..], &message].concat(),
            false => [&v6_header("2001:db8::99".parse().unwrap(), SOURCE.v6.unwrap(), 58, 250, len)[..], &message].concat(),
        }
    }

    /// What a router may hash: all that stays the same on the way but the lengths, and the first four bytes of what follows.
    fn hashed(probe: &[u8]) -> Vec<u8> {
        match probe[0] >> 4 {
            4 => [&probe[..2], &probe[9..10], &probe[12..24]].concat(),
            _ => [&probe[..4], &probe[6..7], &probe[8..44]].concat(),
        }
    }

    proptest! {
        #[test]
        fn probes_are_one_flow_and_their_numbers_come_back(
            method in prop_oneof![Just(Method::Icmp), Just(Method::Udp), Just(Method::Tcp)],
            dst4: u32, dst6: u128, v4: bool, flow: u16, numbers in proptest::collection::vec(any::<u16>(), 2), payload in 0..300_usize,
        ) {
            let dst: IpAddr = if v4 { core::net::Ipv4Addr::from(dst4).into() } else { core::net::Ipv6Addr::from(dst6).into() };
            let probes = probes(method, payload);
            let mut seen = Vec::new();
            for number in numbers.iter().map(|number| number % 1024) {
                let mut buf = [0xaa; 1500];
                let len = probes.write(dst, flow, number, 7, None, &mut buf).unwrap();
                let ip = Packet::parse(&buf[..len]).unwrap();
                prop_assert_eq!((ip.dst(), ip.ttl(), ip.tos(), len), (dst, 7, 0x28, probes.len(dst)));
                let (src4, src6) = (SOURCE.v4.unwrap(), SOURCE.v6.unwrap());
                let (stated, right) = match (ip.protocol(), dst) {
                    (PROTOCOL_ICMP, _) => { let p = IcmpPacket::new(ip.payload()).unwrap(); (p.get_checksum(), pnet_icmp::checksum(&p)) }
                    (PROTOCOL_ICMPV6, IpAddr::V6(dst)) => {
                        let p = Icmpv6Packet::new(ip.payload()).unwrap(); (p.get_checksum(), icmpv6::checksum(&p, &src6, &dst))
                    }
                    (PROTOCOL_UDP, dst) => {
                        let p = UdpPacket::new(ip.payload()).unwrap();
                        (p.get_checksum(), match dst { IpAddr::V4(dst) => pnet_udp::ipv4_checksum(&p, &src4, &dst), IpAddr::V6(dst) => pnet_udp::ipv6_checksum(&p, &src6, &dst) })
                    }
                    (_, dst) => {
                        let p = TcpPacket::new(ip.payload()).unwrap();
                        prop_assert_eq!(p.payload().len(), 0);
                        (p.get_checksum(), match dst { IpAddr::V4(dst) => pnet_tcp::ipv4_checksum(&p, &src4, &dst), IpAddr::V6(dst) => pnet_tcp::ipv6_checksum(&p, &src6, &dst) })
                    }
                };
                prop_assert_eq!(stated, right);
                for quote in [8, 16, 1000] {
                    let answer = probes.accept(&exceeded(&buf[..len], quote)).unwrap();
                    prop_assert_eq!(answer.name, Name { dst, flow, number: Some(number) });
                    prop_assert_eq!((answer.kind, answer.ttl, answer.quoted), (ReplyKind::TimeExceeded, 250, Some(Quoted { ttl: 7, tos: 0x28 })));
                }
                prop_assert_eq!(probes.accept(&exceeded(&buf[..len], 7)), None, "too little is quoted");
                seen.push(hashed(&buf[..len]));
            }
            prop_assert_eq!(&seen[0], &seen[1]);
        }

        #[test]
        fn any_bytes_are_harmless(method in prop_oneof![Just(Method::Icmp), Just(Method::Udp), Just(Method::Tcp)], bytes: Vec<u8>) {
            let probes = probes(method, 12);
            let _ = probes.accept(&bytes);
            let protocol = match method { Method::Icmp => 1, Method::Udp => 17, Method::Tcp => 6 };
            let packet = [&v4_header([198, 18, 0, 1].into(), [192, 0, 2, 2].into(), protocol, 9, bytes.len() as u16)[..], &bytes].concat();
            if let Some(seen) = probes.accept(&packet) {
                prop_assert_eq!((method, seen.name.number), (Method::Udp, None), "only a datagram needs no secret");
            }
            prop_assert_eq!(probes.accept(&exceeded(&packet, 100)).filter(|_| method != Method::Icmp && bytes.len() >= 16), None);
        }
    }

    #[test]
    fn strangers_and_other_runs_are_not_ours() {
        let (ours, mut theirs) = (probes(Method::Icmp, 12), probes(Method::Icmp, 12));
        theirs.keyed = SipHasher13::new_with_key(b"another key 1234");
        let mut buf = [0; 1500];
        let len = theirs.write("198.18.0.1".parse().unwrap(), 61_440, 3, 5, None, &mut buf).unwrap();
        assert_eq!(ours.accept(&exceeded(&buf[..len], 100)), None, "the cookie is another's");
        assert!(theirs.accept(&exceeded(&buf[..len], 100)).is_some());
        for method in [Method::Icmp, Method::Udp, Method::Tcp] {
            let hashed = [*b"sixteen random b", *b"another key 1234"].map(|key| {
                let run = Probes { keyed: SipHasher13::new_with_key(&key), ..probes(method, 12) };
                let len = run.write("198.18.0.1".parse().unwrap(), 61_440, 3, 5, None, &mut buf).unwrap();
                hashed(&buf[..len])
            });
            assert_eq!(hashed[0], hashed[1], "{method}: a flow takes the same way in every run");
        }
    }
}
