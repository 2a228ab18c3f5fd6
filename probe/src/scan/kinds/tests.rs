//! Each kind against honest answers, other people's and damaged ones. Whole scans are in `scan::tests` and in the scenario files.

use core::net::{Ipv4Addr, Ipv6Addr};
use std::collections::HashSet;
use std::sync::Arc;

use picket_wire::addr::parse_set;
use picket_wire::job::{HostProbe, ScanOptions};
use picket_wire::result::UpReason;
use picket_wire::space::{TargetSpace, TargetSpec};
use proptest::prelude::*;

use super::*;
use crate::net::engine::Source;
use crate::packet::ip::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, v4_header, v6_header};

const OWN_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1);
const HOST_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 7));
const HOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7));
const ROUTER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254));
const ROUTER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0xfe));

fn kind_of(technique: Technique, attempts: u8, probes: &[HostProbe]) -> Kind {
    let ports = technique.has_ports().then(|| "80".parse().unwrap());
    let spec = TargetSpec { include: parse_set("198.18.0.7").unwrap(), exclude: parse_set("").unwrap(), ports, seed: 1 };
    let space = Arc::new(TargetSpace::new(&spec).unwrap());
    let plan = ScanPlan::new(space, 0, 1, ScanOptions { technique, attempts }).unwrap().with_host_probes(probes);
    let ports = SourcePorts::default();
    let source = Source { v4: Some(OWN_V4), v6: Some(OWN_V6) };
    Kind::new(&plan, RawIdentity { source, base_port: ports.base(3), ports, key: [7; 16] }).unwrap()
}

fn sent(kind: &Kind, target: Target, attempt: u8) -> Vec<u8> {
    let mut buf = [0; 1500];
    let len = kind.patch(target, attempt, &mut buf).unwrap();
    buf[..len].to_vec()
}

fn header_len(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}

/// A packet to us.
fn from(src: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    match src {
        IpAddr::V4(src) => [&v4_header(src, OWN_V4, protocol, 50, body.len() as u16)[..], body].concat(),
        IpAddr::V6(src) => [&v6_header(src, OWN_V6, protocol, 50, body.len() as u16)[..], body].concat(),
    }
}

/// An ICMP error about a packet, quoting `quoted` octets behind its IP header.
fn error(src: IpAddr, icmp_type: u8, icmp_code: u8, packet: &[u8], quoted: usize) -> Vec<u8> {
    let end = (header_len(packet) + quoted).min(packet.len());
    let protocol = if src.is_ipv4() { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
    from(src, protocol, &[&[icmp_type, icmp_code, 0, 0, 0, 0, 0, 0], &packet[..end]].concat())
}

/// The answer with ports exchanged and this payload.
fn datagram(asked: &[u8], src: IpAddr, from_port: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let body = &asked[header_len(asked)..];
    let port = from_port.map_or([body[2], body[3]], u16::to_be_bytes);
    let len = (payload.len() as u16 + 8).to_be_bytes();
    from(src, PROTOCOL_UDP, &[&port[..], &body[..2], &len, &[0, 0], payload].concat())
}

fn reset(asked: &[u8], src: IpAddr, seq: [u8; 4], flags: u8) -> Vec<u8> {
    let body = &asked[header_len(asked)..];
    let ack: [u8; 4] = u32::from_be_bytes(body[4..8].try_into().unwrap()).wrapping_add(1).to_be_bytes();
    from(src, PROTOCOL_TCP, &[&body[2..4], &body[..2], &seq, &ack, &[0x50, flags, 0, 0, 0, 0, 0, 0]].concat())
}

fn state(kind: &Kind, packet: &[u8]) -> Option<(Target, u8, State)> {
    kind.accept(packet).map(|reply| (reply.target, reply.attempt, reply.state))
}

const fn at(addr: IpAddr, port: u16) -> Target {
    Target { addr, port: Some(port) }
}

const fn host(addr: IpAddr) -> Target {
    Target { addr, port: None }
}

#[test]
fn any_datagram_from_the_port_is_an_answer_but_not_one_to_another_question() {
    let kind = kind_of(Technique::Udp, 3, &[]);
    for addr in [HOST_V4, HOST_V6] {
        // Port 7777 is asked nothing, port 53 by DNS.
        let asked = sent(&kind, at(addr, 7777), 2);
        assert_eq!(asked.len(), header_len(&asked) + 8);
        assert_eq!(state(&kind, &datagram(&asked, addr, None, b"hello")), Some((at(addr, 7777), 2, State::Open)));
        assert_eq!(state(&kind, &datagram(&asked, addr, Some(7778), b"hello")), None, "from another port");
        let asked = sent(&kind, at(addr, 53), 0);
        let mut answer = asked[header_len(&asked) + 8..].to_vec();
        answer[2] |= 0x80;
        assert_eq!(state(&kind, &datagram(&asked, addr, None, &answer)), Some((at(addr, 53), 0, State::Open)));
        answer[0] ^= 1;
        assert_eq!(state(&kind, &datagram(&asked, addr, None, &answer)), None, "another question's identifier");
        assert_eq!(state(&kind, &datagram(&asked, addr, None, b"no DNS at all")), Some((at(addr, 53), 0, State::Open)));
    }
}

#[test]
fn some_services_answer_from_another_port() {
    let kind = kind_of(Technique::Udp, 1, &[]);
    let asked = sent(&kind, at(HOST_V4, 69), 0);
    let answer = b"\0\x05\0\x01no such file\0";
    assert_eq!(state(&kind, &datagram(&asked, HOST_V4, Some(50_123), answer)), Some((at(HOST_V4, 69), 0, State::Open)));
    assert_eq!(state(&kind, &datagram(&asked, HOST_V4, Some(50_123), b"something else")), None);
    assert_eq!(state(&kind, &datagram(&asked, ROUTER_V4, Some(50_123), answer)), None, "another host");
    let asked = sent(&kind, at(HOST_V4, 53), 0);
    assert_eq!(state(&kind, &datagram(&asked, HOST_V4, Some(50_123), answer)), None, "DNS does not wander");
}

#[test]
fn a_port_is_closed_only_by_the_host_itself() {
    let kind = kind_of(Technique::Udp, 2, &[]);
    for (addr, router, icmp_type, code) in [(HOST_V4, ROUTER_V4, 3, 3), (HOST_V6, ROUTER_V6, 1, 4)] {
        for quoted in [8, 12, 1_400] {
            let asked = sent(&kind, at(addr, 123), 1);
            let closed = error(addr, icmp_type, code, &asked, quoted);
            assert_eq!(state(&kind, &closed), Some((at(addr, 123), 1, State::Closed)), "{quoted}");
            let filtered = State::FilteredBy { icmp_type, icmp_code: code, from: router };
            assert_eq!(state(&kind, &error(router, icmp_type, code, &asked, quoted)), Some((at(addr, 123), 1, filtered)));
            let prohibited = State::Filtered { icmp_type, icmp_code: 1 };
            assert_eq!(state(&kind, &error(addr, icmp_type, 1, &asked, quoted)), Some((at(addr, 123), 1, prohibited)));
        }
        let mut asked = sent(&kind, at(addr, 123), 1);
        *asked.last_mut().unwrap() ^= 1;
        assert_eq!(state(&kind, &error(addr, icmp_type, code, &asked, 1_400)), None, "a payload that is not ours");
        let ours = header_len(&asked) + 1;
        asked[ours] ^= 0x10;
        assert_eq!(state(&kind, &error(addr, icmp_type, code, &asked, 8)), None, "a port that is not the cookie's");
    }
}

#[test]
fn source_ports_of_udp_are_spread_and_name_their_attempt() {
    let kind = kind_of(Technique::Udp, 10, &[]);
    let Kind::Udp(_) = &kind else { panic!() };
    let mut ports = HashSet::new();
    for n in 0..2_000u16 {
        for attempt in [0, 9] {
            let packet = sent(&kind, at(HOST_V4, 20_000 + n), attempt);
            let port = u16::from_be_bytes([packet[20], packet[21]]);
            assert!((61_440..=65_529).contains(&port) && (port - 61_440) % 10 == u16::from(attempt), "{port}");
            ports.insert(port);
        }
    }
    assert!(ports.len() > 790, "{} of 818", ports.len());
}

#[test]
fn ports_of_machines_are_asked_nothing_unless_somebody_insists() {
    let kind = kind_of(Technique::Udp, 1, &[]);
    assert_eq!(sent(&kind, at(HOST_V4, 47_808), 0).len(), 28);
    let Kind::Udp(udp) = kind else { panic!() };
    let insisting = Kind::Udp(udp::Udp::new(*udp.run(), true));
    assert_eq!(sent(&insisting, at(HOST_V4, 47_808), 0).len(), 28 + 17);
}

/// An INIT's tag comes back in the header; `chunk` is what comes with it.
fn sctp_answer(asked: &[u8], src: IpAddr, chunk: &[u8]) -> Vec<u8> {
    let body = &asked[header_len(asked)..];
    from(src, PROTOCOL_SCTP, &[&body[2..4], &body[..2], &body[16..20], &[0; 4], chunk].concat())
}

#[test]
fn associations_are_answered_with_their_tag() {
    let kind = kind_of(Technique::Sctp, 2, &[]);
    for (addr, router, icmp_type, code) in [(HOST_V4, ROUTER_V4, 3, 13), (HOST_V6, ROUTER_V6, 1, 1)] {
        let asked = sent(&kind, at(addr, 80), 1);
        let init_ack = [&[2, 0, 0, 20][..], &[0; 16]].concat();
        assert_eq!(state(&kind, &sctp_answer(&asked, addr, &init_ack)), Some((at(addr, 80), 1, State::Open)));
        assert_eq!(state(&kind, &sctp_answer(&asked, addr, &[6, 0, 0, 4])), Some((at(addr, 80), 1, State::Closed)));
        assert_eq!(state(&kind, &sctp_answer(&asked, addr, &[6, 1, 0, 4])), None, "a reflected tag proves nothing");
        assert_eq!(state(&kind, &sctp_answer(&asked, addr, &[6, 0, 0, 5])), None, "a chunk that is cut");
        let mut wrong = asked.clone();
        wrong[header_len(&asked) + 17] ^= 1;
        assert_eq!(state(&kind, &sctp_answer(&wrong, addr, &init_ack)), None, "another tag");
        let filtered = State::FilteredBy { icmp_type, icmp_code: code, from: router };
        for quoted in [8, 28] {
            assert_eq!(state(&kind, &error(router, icmp_type, code, &asked, quoted)), Some((at(addr, 80), 1, filtered)));
        }
        assert_eq!(state(&kind, &error(router, icmp_type, code, &wrong, 28)), None, "a tag that is not ours");
    }
}

#[test]
fn resets_of_an_ack_say_unfiltered() {
    let kind = kind_of(Technique::Ack, 2, &[]);
    for (addr, router, icmp_type, code) in [(HOST_V4, ROUTER_V4, 3, 13), (HOST_V6, ROUTER_V6, 1, 1)] {
        let asked = sent(&kind, at(addr, 80), 1);
        let ack: [u8; 4] = asked[header_len(&asked) + 8..][..4].try_into().unwrap();
        assert_eq!(state(&kind, &reset(&asked, addr, ack, 0x04)), Some((at(addr, 80), 1, State::Unfiltered)));
        assert_eq!(state(&kind, &reset(&asked, addr, [1, 2, 3, 4], 0x04)), None);
        assert_eq!(state(&kind, &reset(&asked, addr, ack, 0x10)), None, "no reset");
        let filtered = State::FilteredBy { icmp_type, icmp_code: code, from: router };
        assert_eq!(state(&kind, &error(router, icmp_type, code, &asked, 8)), Some((at(addr, 80), 1, filtered)));
    }
}

#[test]
fn timestamps_are_asked_of_ipv4_alone() {
    let kind = kind_of(Technique::Timestamp, 1, &[]);
    let asked = sent(&kind, host(HOST_V4), 0);
    let mut reply = asked[20..].to_vec();
    reply[0] = 14;
    assert_eq!(state(&kind, &from(HOST_V4, PROTOCOL_ICMP, &reply)), Some((host(HOST_V4), 0, State::UpBy(UpReason::Timestamp))));
    for at in 4..12 {
        let mut wrong = reply.clone();
        wrong[at] ^= 1;
        assert_eq!(state(&kind, &from(HOST_V4, PROTOCOL_ICMP, &wrong)), None, "byte {at}");
    }
    for quoted in [8, 20] {
        let filtered = State::FilteredBy { icmp_type: 3, icmp_code: 1, from: ROUTER_V4 };
        assert_eq!(state(&kind, &error(ROUTER_V4, 3, 1, &asked, quoted)), Some((host(HOST_V4), 0, filtered)));
    }
    assert_eq!(kind.patch(host(HOST_V6), 0, &mut [0; 1500]), None);
}

#[test]
fn whatever_a_host_says_it_is_up() {
    use HostProbe::{Ack, Echo, Sctp, Syn, Timestamp, Udp};
    let kind = kind_of(Technique::Discover, 10, &[Echo, Timestamp, Syn(443), Ack(80), Udp(53), Sctp(7)]);
    let up = |addr: IpAddr, attempt, by| Some((host(addr), attempt, State::UpBy(by)));
    for addr in [HOST_V4, HOST_V6] {
        let asked = |attempt| sent(&kind, host(addr), attempt);
        let (icmp, reply) = if addr.is_ipv4() { (PROTOCOL_ICMP, 0) } else { (PROTOCOL_ICMPV6, 129) };
        for attempt in [0, 6] {
            let mut echo = asked(attempt)[header_len(&asked(0))..].to_vec();
            echo[0] = reply;
            assert_eq!(state(&kind, &from(addr, icmp, &echo)), Some((host(addr), attempt, State::Up)));
        }
        let mut stamp = asked(1)[header_len(&asked(1))..].to_vec();
        stamp[0] = if addr.is_ipv4() { 14 } else { 129 };
        let expected = if addr.is_ipv4() { State::UpBy(UpReason::Timestamp) } else { State::Up };
        assert_eq!(state(&kind, &from(addr, icmp, &stamp)), Some((host(addr), 1, expected)), "IPv6 has echo alone");
        assert_eq!(state(&kind, &reset(&asked(2), addr, [0; 4], 0x14)), up(addr, 2, UpReason::Reset));
        assert_eq!(state(&kind, &reset(&asked(2), addr, [9; 4], 0x12)), up(addr, 2, UpReason::SynAck));
        let ack: [u8; 4] = asked(3)[header_len(&asked(3)) + 8..][..4].try_into().unwrap();
        assert_eq!(state(&kind, &reset(&asked(3), addr, ack, 0x04)), up(addr, 3, UpReason::Reset));
        assert_eq!(state(&kind, &datagram(&asked(4), addr, None, b"?")), up(addr, 4, UpReason::Udp));
        assert_eq!(state(&kind, &sctp_answer(&asked(5), addr, &[6, 0, 0, 4])), up(addr, 5, UpReason::Sctp));
        let (icmp_type, port, admin) = if addr.is_ipv4() { (3, 3, 10) } else { (1, 4, 1) };
        for attempt in 0..10 {
            let own = |code| error(addr, icmp_type, code, &asked(attempt), 40);
            assert_eq!(state(&kind, &own(port)), up(addr, attempt, UpReason::PortUnreachable), "{attempt}");
            assert_eq!(state(&kind, &own(admin)), up(addr, attempt, UpReason::IcmpError), "{attempt}");
            let router = if addr.is_ipv4() { ROUTER_V4 } else { ROUTER_V6 };
            let filtered = State::FilteredBy { icmp_type, icmp_code: admin, from: router };
            assert_eq!(state(&kind, &error(router, icmp_type, admin, &asked(attempt), 40)), Some((host(addr), attempt, filtered)));
        }
        // The SYN went to port 443: an answer of port 80 to the same attempt is none.
        let syn = kind_of(Technique::Syn, 10, &[]);
        let elsewhere = sent(&syn, at(addr, 80), 2);
        assert_eq!(state(&kind, &reset(&elsewhere, addr, [9; 4], 0x12)), None);
    }
}

#[test]
fn a_protocol_that_the_host_does_not_speak_is_said_in_either_family() {
    let kind = kind_of(Technique::Sctp, 1, &[]);
    let asked = sent(&kind, at(HOST_V6, 80), 0);
    let filtered = State::Filtered { icmp_type: 4, icmp_code: 1 };
    assert_eq!(state(&kind, &error(HOST_V6, 4, 1, &asked, 40)), Some((at(HOST_V6, 80), 0, filtered)));
    assert_eq!(state(&kind, &error(HOST_V6, 4, 0, &asked, 40)), None, "an erroneous field says nothing about the way");
}

const TECHNIQUES: [Technique; 7] =
    [Technique::Syn, Technique::Echo, Technique::Timestamp, Technique::Ack, Technique::Udp, Technique::Sctp, Technique::Discover];

proptest! {
    #[test]
    fn hostile_packets_never_match_and_never_panic(
        which in 0usize..7, attempt in 0u8..10, protocol in prop_oneof![Just(1u8), Just(6), Just(17), Just(58), Just(132), any::<u8>()],
        v4: bool, body in proptest::collection::vec(any::<u8>(), 0..120), at in 0usize..90, value: u8,
    ) {
        let technique = TECHNIQUES[which];
        let kind = kind_of(technique, 10, &[]);
        let addr = if v4 || technique == Technique::Timestamp { HOST_V4 } else { HOST_V6 };
        let target = Target { addr, port: technique.has_ports().then_some(161) };
        prop_assert_eq!(state(&kind, &body), None);
        // Nobody guesses a cookie of 32 bits; the 8.7 bits of UDP may be hit by chance, and then only for the target that is written there.
        if protocol != PROTOCOL_UDP {
            prop_assert_eq!(state(&kind, &from(addr, protocol, &body)), None);
        }
        kind.accept(&from(addr, protocol, &body));
        let asked = sent(&kind, target, attempt);
        prop_assert_eq!(state(&kind, &asked), None, "our own packet");
        let router = if addr.is_ipv4() { ROUTER_V4 } else { ROUTER_V6 };
        let mut quoted = error(router, if addr.is_ipv4() { 3 } else { 1 }, 0, &asked, 60);
        prop_assert_eq!(kind.accept(&quoted).map(|reply| (reply.target, reply.attempt)), Some((target, attempt)));
        if let Some(byte) = quoted.get_mut(at) {
            *byte = value;
        }
        kind.accept(&quoted);
        quoted.truncate(at);
        kind.accept(&quoted);
    }
}
