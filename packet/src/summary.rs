//! A packet in one line, as tshark shows it: source, destination, protocol, and what it says.
//!
//! It must not know when or where the packet was seen, nor who reads the line.
//!
//! **Invariants:** any bytes have a summary; it has one line without control characters, whatever they are.

use core::fmt::Write;

use crate::arp::{Arp, Operation};
use crate::icmp::{self, Message};
use crate::ip::{PROTOCOL_ICMP, PROTOCOL_ICMPV6};
use crate::link::Inside;
use crate::ndp::Neighbour;
use crate::tcp::{Flags, Segment};
use crate::view::{IpView, Transport, View, addresses, view};

/// A packet in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Who sent it: an IP address, else a hardware address; empty where the link has none.
    pub source: String,
    /// To whom.
    pub destination: String,
    /// The innermost protocol that was recognised.
    pub protocol: String,
    /// What it says.
    pub info: String,
}

/// Control bits in the order in which tools show them.
const FLAGS: [(u8, &str); 8] = [
    (Flags::FIN, "FIN"),
    (Flags::SYN, "SYN"),
    (Flags::RST, "RST"),
    (Flags::PSH, "PSH"),
    (Flags::ACK, "ACK"),
    (Flags::URG, "URG"),
    (Flags::ECE, "ECE"),
    (Flags::CWR, "CWR"),
];

/// Names of set control bits, with `separator` between them.
pub fn flag_names(bits: u8, separator: &str) -> String {
    FLAGS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect::<Vec<_>>().join(separator)
}

/// The usual name of an IP protocol (IANA, "Protocol Numbers").
pub fn protocol_name(protocol: u8) -> Option<&'static str> {
    Some(match protocol {
        1 => "ICMP",
        2 => "IGMP",
        4 => "IPIP",
        6 => "TCP",
        17 => "UDP",
        41 => "6in4",
        47 => "GRE",
        50 => "ESP",
        51 => "AH",
        58 => "ICMPv6",
        88 => "EIGRP",
        89 => "OSPF",
        103 => "PIM",
        112 => "VRRP",
        132 => "SCTP",
        136 => "UDPLite",
        _ => return None,
    })
}

/// What the packet that begins with `bytes` is, in words.
pub fn summary(link_type: u16, bytes: &[u8]) -> Summary {
    let view = view(link_type, bytes);
    let (source, destination) = addresses(&view).map_or_else(Default::default, |(src, dst)| (src.to_string(), dst.to_string()));
    let (protocol, info) = match &view {
        View::Ip(ip) => in_words(ip),
        View::Part(head) => {
            let name = protocol_name(head.protocol).map_or_else(|| format!("protocol {}", head.protocol), str::to_owned);
            (if head.src.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(), format!("fragment or cut header, {name}"))
        }
        View::Arp(arp) => return of_arp(arp),
        View::Other(inside) => return of_other(inside),
        View::Unknown => ("?".to_owned(), format!("link type {link_type} is not taken apart here")),
    };
    Summary { source, destination, protocol, info }
}

fn in_words(ip: &IpView<'_>) -> (String, String) {
    let number = ip.packet.protocol();
    let name = protocol_name(number).map_or_else(|| format!("IP {number}"), str::to_owned);
    let info = match &ip.transport {
        Transport::Tcp(segment) => of_segment(segment, ip.len),
        Transport::Udp(start) => format!("{} → {} Len={}", start.src_port, start.dst_port, start.len.saturating_sub(8)),
        Transport::Sctp(start) => format!("{} → {}", start.src_port, start.dst_port),
        Transport::None if matches!(number, PROTOCOL_ICMP | PROTOCOL_ICMPV6) => of_icmp(ip),
        Transport::None => format!("{} bytes", ip.len),
    };
    (name, info)
}

/// Sequence numbers are the wire's: there is no memory of where a connection began.
fn of_segment(segment: &Segment, len: usize) -> String {
    let flags = segment.flags();
    let mut info = format!("{} → {} [{}] Seq={}", segment.src_port(), segment.dst_port(), flag_names(flags.0, ", "), segment.seq());
    if flags.has(Flags::ACK) {
        let _ = write!(info, " Ack={}", segment.ack());
    }
    let _ = write!(info, " Win={} Len={}", segment.window(), len.saturating_sub(segment.header_len()));
    info
}

fn of_icmp(ip: &IpView<'_>) -> String {
    if let Some(neighbour) = Neighbour::parse(ip.bytes) {
        let kind = if neighbour.advert { "Neighbor Advertisement" } else { "Neighbor Solicitation for" };
        return match neighbour.mac {
            Some(mac) if neighbour.advert => format!("{kind} {} is at {mac}", neighbour.target),
            Some(mac) => format!("{kind} {} from {mac}", neighbour.target),
            None => format!("{kind} {}", neighbour.target),
        };
    }
    let echo =
        |kind: &str, echo: icmp::Echo<'_>| format!("Echo (ping) {kind} id={:#06x}, seq={}, ttl={}", echo.id, echo.seq, ip.packet.ttl());
    match Message::parse(&ip.packet) {
        Some(Message::EchoRequest(request)) => echo("request", request),
        Some(Message::EchoReply(reply)) => echo("reply", reply),
        Some(Message::TimestampRequest(asked)) => format!("Timestamp request id={:#06x}, seq={}", asked.id, asked.seq),
        Some(Message::TimestampReply(told)) => format!("Timestamp reply id={:#06x}, seq={}", told.id, told.seq),
        Some(Message::Error { icmp_type, icmp_code, quote }) => {
            let name = error_name(quote.src().is_ipv4(), icmp_type, icmp_code);
            let about = protocol_name(quote.protocol()).map_or_else(|| format!("protocol {}", quote.protocol()), str::to_owned);
            format!("{name}, about {about} {} → {}", quote.src(), quote.dst())
        }
        None => match ip.packet.payload() {
            [kind, code, ..] => format!("{} (type {kind}, code {code})", message_name(ip.packet.src().is_ipv4(), *kind)),
            _ => "cut".to_owned(),
        },
    }
}

fn error_name(v4: bool, icmp_type: u8, code: u8) -> String {
    let (kind, codes): (&str, &[&str]) = match (v4, icmp_type) {
        (true, icmp::V4_UNREACHABLE) => {
            ("Destination unreachable", &["Network", "Host", "Protocol", "Port", "Fragmentation needed", "Source route failed"])
        }
        (false, icmp::V6_UNREACHABLE) => {
            ("Destination unreachable", &["No route", "Prohibited", "Beyond scope", "Address", "Port", "Policy", "Reject route"])
        }
        (true, icmp::V4_TIME_EXCEEDED) | (false, icmp::V6_TIME_EXCEEDED) => ("Time-to-live exceeded", &["in transit", "in reassembly"]),
        (false, icmp::V6_TOO_BIG) => ("Packet too big", &[]),
        _ => ("Parameter problem", &[]),
    };
    match codes.get(usize::from(code)) {
        Some(code) => format!("{kind} ({code})"),
        None if codes.is_empty() => kind.to_owned(),
        None => format!("{kind} (code {code})"),
    }
}

/// Types that have no reader of their own here (IANA, "ICMP Type Numbers" and "ICMPv6 Parameters").
fn message_name(v4: bool, icmp_type: u8) -> &'static str {
    match (v4, icmp_type) {
        (true, 5) | (false, 137) => "Redirect",
        (true, 9) | (false, 134) => "Router Advertisement",
        (true, 10) | (false, 133) => "Router Solicitation",
        (false, 130) => "Multicast Listener Query",
        (false, 131) => "Multicast Listener Report",
        (false, 132) => "Multicast Listener Done",
        (false, 143) => "Multicast Listener Report v2",
        _ => "message",
    }
}

fn of_arp(arp: &Arp) -> Summary {
    let info = match arp.operation {
        Operation::Request if arp.sender == arp.target => format!("ARP Announcement for {}", arp.sender),
        Operation::Request => format!("Who has {}? Tell {}", arp.target, arp.sender),
        Operation::Reply => format!("{} is at {}", arp.sender, arp.sender_mac),
    };
    let destination = match arp.operation {
        Operation::Request => "Broadcast".to_owned(),
        Operation::Reply => arp.target_mac.to_string(),
    };
    Summary { source: arp.sender_mac.to_string(), destination, protocol: "ARP".to_owned(), info }
}

fn of_other(inside: &Inside<'_>) -> Summary {
    let (source, destination) = inside.macs.map_or_else(Default::default, |(src, dst)| (src.to_string(), dst.to_string()));
    let name = match inside.ethertype {
        // Below 1536 it is a length (IEEE 802.3, clause 3.2.6).
        0..0x0600 => "802.3",
        0x0800 => "IPv4",
        0x0806 => "ARP",
        0x86dd => "IPv6",
        0x8847 | 0x8848 => "MPLS",
        0x8863 | 0x8864 => "PPPoE",
        0x888e => "EAPOL",
        0x88cc => "LLDP",
        _ => "Ethernet",
    };
    Summary { source, destination, protocol: name.to_owned(), info: format!("type {:#06x}", inside.ethertype) }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::eth::{self, Mac};
    use crate::ip::{PROTOCOL_TCP, PROTOCOL_UDP, v4_header, v6_header};
    use crate::link::{COOKED, COOKED_2, ETHERNET, RAW_IP};
    use crate::ndp;

    const A: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

    fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        [&v4_header(A, B, protocol, 64, payload.len() as u16)[..], payload].concat()
    }

    fn line(bytes: &[u8]) -> String {
        let Summary { source, destination, protocol, info } = summary(RAW_IP, bytes);
        format!("{source} → {destination} {protocol} {info}")
    }

    #[test]
    fn packets_in_words() {
        let segment = |flags, payload: &[u8]| {
            let header = [0xc3, 0x50, 0, 80, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0];
            v4(PROTOCOL_TCP, &[&header[..], payload].concat())
        };
        assert_eq!(line(&segment(0x02, b"")), "198.18.0.1 → 198.18.0.2 TCP 50000 → 80 [SYN] Seq=7 Win=64240 Len=0");
        assert_eq!(line(&segment(0x18, b"hello")), "198.18.0.1 → 198.18.0.2 TCP 50000 → 80 [PSH, ACK] Seq=7 Ack=9 Win=64240 Len=5");
        let udp = [0x14, 0xe9, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
        assert_eq!(line(&v4(PROTOCOL_UDP, &udp)), "198.18.0.1 → 198.18.0.2 UDP 5353 → 53 Len=4");
        let echo = v4(PROTOCOL_ICMP, &[8, 0, 0, 0, 0x12, 0x34, 0, 5, 1, 2]);
        assert_eq!(line(&echo), "198.18.0.1 → 198.18.0.2 ICMP Echo (ping) request id=0x1234, seq=5, ttl=64");
        let error = v4(PROTOCOL_ICMP, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &v4(PROTOCOL_UDP, &udp)].concat());
        assert_eq!(line(&error), "198.18.0.1 → 198.18.0.2 ICMP Destination unreachable (Port), about UDP 198.18.0.1 → 198.18.0.2");
        assert_eq!(line(&v4(PROTOCOL_ICMP, &[5, 1, 0, 0, 0, 0, 0, 0])), "198.18.0.1 → 198.18.0.2 ICMP Redirect (type 5, code 1)");
        assert_eq!(line(&v4(47, &[0; 9])), "198.18.0.1 → 198.18.0.2 GRE 9 bytes");
        assert_eq!(line(&v4(200, &[0; 9])), "198.18.0.1 → 198.18.0.2 IP 200 9 bytes");
    }

    #[test]
    fn what_is_cut_still_says_how_long_it_was() {
        let segment = [0xc3, 0x50, 0, 80, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x10, 0xfa, 0xf0, 0, 0, 0, 0];
        let whole = v4(PROTOCOL_TCP, &[&segment[..], &[0; 1000]].concat());
        assert_eq!(line(&whole[..64]), line(&whole));
        assert!(line(&whole).ends_with("Len=1000"), "{}", line(&whole));
        // The second fragment has no ports.
        let mut fragment = v4(PROTOCOL_UDP, &[1; 16]);
        fragment[7] = 2;
        assert_eq!(line(&fragment), "198.18.0.1 → 198.18.0.2 IPv4 fragment or cut header, UDP");
        // Nor does a packet that was cut in front of them say any.
        assert_eq!(line(&whole[..24]), "198.18.0.1 → 198.18.0.2 TCP 1020 bytes");
    }

    #[test]
    fn neighbours_in_words() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let arp = |operation| {
            let arp = Arp { operation, sender_mac: mac, sender: A, target_mac: Mac([2, 0, 0, 0, 0, 2]), target: B };
            let frame = [&eth::header(Mac::BROADCAST, mac, eth::TYPE_ARP)[..], &arp.emit()].concat();
            summary(ETHERNET, &frame)
        };
        let expected = |destination: &str, info: &str| Summary {
            source: mac.to_string(),
            destination: destination.into(),
            protocol: "ARP".into(),
            info: info.into(),
        };
        assert_eq!(arp(Operation::Request), expected("Broadcast", "Who has 198.18.0.2? Tell 198.18.0.1"));
        assert_eq!(arp(Operation::Reply), expected("02:00:00:00:00:02", "198.18.0.1 is at 02:00:00:00:00:01"));
        let (src, target): (Ipv6Addr, Ipv6Addr) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let asked = line(&ndp::solicit(src, mac, target, ndp::solicited_node(target)));
        assert_eq!(asked, "2001:db8::1 → ff02::1:ff00:2 ICMPv6 Neighbor Solicitation for 2001:db8::2 from 02:00:00:00:00:01");
        let report = [&v6_header(src, target, PROTOCOL_ICMPV6, 1, 8)[..], &[143, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(line(&report), "2001:db8::1 → 2001:db8::2 ICMPv6 Multicast Listener Report v2 (type 143, code 0)");
        let lldp = summary(ETHERNET, &eth::header(Mac::BROADCAST, mac, 0x88cc));
        assert_eq!((lldp.protocol.as_str(), lldp.info.as_str()), ("LLDP", "type 0x88cc"));
    }

    proptest! {
        #[test]
        fn any_bytes_have_one_line(
            link in prop::sample::select(vec![ETHERNET, RAW_IP, COOKED, COOKED_2, 147]),
            ethertype in prop::sample::select(vec![0x0800u16, 0x0806, 0x86dd, 0x8847]),
            protocol in prop::sample::select(vec![1u8, 6, 17, 44, 58, 132]),
            mut bytes in proptest::collection::vec(any::<u8>(), 0..140), shaped: bool,
        ) {
            if shaped && bytes.len() > 60 {
                let at = match link { ETHERNET => 14, COOKED => 16, COOKED_2 => 20, _ => 0 };
                match link {
                    ETHERNET | COOKED => bytes[at - 2..at].copy_from_slice(&ethertype.to_be_bytes()),
                    COOKED_2 => bytes[..2].copy_from_slice(&ethertype.to_be_bytes()),
                    _ => {}
                }
                bytes[at] = if ethertype == 0x0800 { 0x45 } else { 0x60 };
                bytes[at + if ethertype == 0x0800 { 9 } else { 6 }] = protocol;
            }
            let Summary { source, destination, protocol, info } = summary(link, &bytes);
            let line = format!("{source} {destination} {protocol} {info}");
            prop_assert!(!line.chars().any(char::is_control) && !protocol.is_empty() && !info.is_empty());
        }
    }
}
