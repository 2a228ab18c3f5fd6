//! The last look at a packet before it leaves: where does it really go?
//!
//! A question for a neighbour goes to everybody on the link, but it is about one address: that of an ARP request, and of a
//! neighbour solicitation to the group that its target listens in. That address is what policy is asked about.
//!
//! Invariant: an address is only ever returned for a packet that ends at that address, or asks for it: its lengths are consistent
//! and it carries no source route that would send it on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::arp::{self, Arp, Operation};
use super::eth::Mac;
use super::ndp;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// How a packet reaches its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By its route.
    Routed,
    /// An ARP request, to everybody on the link, from this hardware address and this address.
    Arp(Mac, Ipv4Addr),
    /// A neighbour solicitation to this group.
    Solicitation(Ipv6Addr),
}

/// The destination of a packet that is about to leave, see [`examine`].
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    examine(packet).map(|(dst, _)| dst)
}

/// The destination of a packet that is about to leave, and the way there; `None` where the packet is malformed or source-routed
/// (RFC 791, section 3.1; RFC 8200, section 4.4), or is an ARP packet other than a request.
pub fn examine(packet: &[u8]) -> Option<(IpAddr, Way)> {
    match packet.first()? >> 4 {
        4 => destination_v4(packet).map(|dst| (dst.into(), Way::Routed)),
        6 => destination_v6(packet).and_then(|dst| solicited(packet, dst)),
        0 => {
            let request = Arp::parse(packet).filter(|arp| arp.operation == Operation::Request && packet.len() == arp::LEN)?;
            Some((request.target.into(), Way::Arp(request.sender_mac, request.sender)))
        }
        _ => None,
    }
}

/// The address that a packet to `dst` is about. To a solicited-node group (RFC 4291, section 2.7.1) nothing goes but the
/// solicitation of an address that listens there.
fn solicited(packet: &[u8], dst: Ipv6Addr) -> Option<(IpAddr, Way)> {
    let [.., a, b, c] = dst.octets();
    if dst != ndp::solicited_node(Ipv6Addr::from_bits(u128::from(u32::from_be_bytes([0, a, b, c])))) {
        return Some((dst.into(), Way::Routed));
    }
    let asked = ndp::Neighbour::parse(packet).filter(|message| !message.advert && ndp::solicited_node(message.target) == dst)?;
    Some((asked.target.into(), Way::Solicitation(dst)))
}

fn destination_v4(packet: &[u8]) -> Option<Ipv4Addr> {
    let header = packet.first_chunk::<20>()?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    if usize::from(u16::from_be_bytes([header[2], header[3]])) != packet.len() {
        return None;
    }
    let mut options = packet.get(20..header_len)?;
    while let Some((kind, rest)) = options.split_first() {
        options = match *kind {
            OPTION_END => break,
            OPTION_NOP => rest,
            OPTION_LSRR | OPTION_SSRR => return None,
            _ => options.get(usize::from(*rest.first()?).max(2)..)?,
        };
    }
    Some(Ipv4Addr::new(header[16], header[17], header[18], header[19]))
}

fn destination_v6(packet: &[u8]) -> Option<Ipv6Addr> {
    let (header, mut rest) = packet.split_first_chunk::<40>()?;
    if usize::from(u16::from_be_bytes([header[4], header[5]])) != rest.len() {
        return None;
    }
    let mut next = header[6];
    while matches!(next, HOP_BY_HOP | DESTINATION_OPTIONS) {
        next = *rest.first()?;
        rest = rest.get((usize::from(*rest.get(1)?) + 1) * 8..)?;
    }
    let address: [u8; 16] = header[24..40].try_into().ok()?;
    (next != ROUTING).then_some(Ipv6Addr::from(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(options: &[u8]) -> Vec<u8> {
        let len = 20 + options.len();
        let mut packet = vec![0; 20];
        packet[0] = 0x40 | u8::try_from(len / 4).unwrap();
        packet[3] = u8::try_from(len).unwrap();
        packet[16..20].copy_from_slice(&[192, 0, 2, 1]);
        packet.extend(options);
        packet
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[5] = u8::try_from(payload.len()).unwrap();
        packet[6] = next;
        packet[39] = 1;
        packet.extend(payload);
        packet
    }

    #[test]
    fn plain_packets() {
        assert_eq!(destination(&v4(&[])), "192.0.2.1".parse().ok());
        assert_eq!(destination(&v4(&[1, 1, 68, 4, 0, 0, 0, 0])), "192.0.2.1".parse().ok());
        assert_eq!(destination(&v6(58, &[])), "::1".parse().ok());
        assert_eq!(destination(&v6(0, &[58, 0, 0, 0, 0, 0, 0, 0])), "::1".parse().ok());
    }

    #[test]
    fn questions_are_about_the_address_asked_for() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let [sender, target] = [1, 9].map(|n| Ipv4Addr::new(192, 0, 2, n));
        let request = Arp { operation: Operation::Request, sender_mac: mac, sender, target_mac: Mac::default(), target };
        assert_eq!(examine(&request.emit()), Some((target.into(), Way::Arp(mac, sender))));
        let reply = Arp { operation: Operation::Reply, ..request };
        assert_eq!(examine(&reply.emit()), None, "engines answer for nobody");
        assert_eq!(examine(&[&request.emit()[..], &[0]].concat()), None, "more than a request");

        let [src, target] = ["2001:db8::1", "2001:db8::12:3456"].map(|text| text.parse::<Ipv6Addr>().unwrap());
        let group = ndp::solicited_node(target);
        assert_eq!(examine(&ndp::solicit(src, mac, target, group)), Some((target.into(), Way::Solicitation(group))));
        assert_eq!(examine(&ndp::solicit(src, mac, target, target)), Some((target.into(), Way::Routed)));
        let other: Ipv6Addr = "ff02::1:ff00:1".parse().unwrap();
        assert_eq!(examine(&ndp::solicit(src, mac, target, other)), None, "the target does not listen there");
        let all: Ipv6Addr = "ff02::1".parse().unwrap();
        assert_eq!(examine(&ndp::solicit(src, mac, target, all)), Some((all.into(), Way::Routed)), "to all is to all");
        let mut other = v6(58, &[128, 0, 0, 0, 0, 0, 0, 0]);
        other[24..40].copy_from_slice(&group.octets());
        assert_eq!(examine(&other), None, "no solicitation");
    }

    #[test]
    fn source_routes_and_wrong_lengths_go_nowhere() {
        assert_eq!(destination(&v4(&[1, 131, 7, 4, 198, 18, 0, 1])), None);
        assert_eq!(destination(&v4(&[137, 7, 4, 198, 18, 0, 1, 0])), None);
        assert_eq!(destination(&v6(43, &[58, 0, 0, 0, 0, 0, 0, 0])), None);
        assert_eq!(destination(&v6(60, &[43, 0, 0, 0, 0, 0, 0, 0, 58, 0, 0, 0, 0, 0, 0, 0])), None);
        assert_eq!(destination(&v4(&[])[..19]), None);
        assert_eq!(destination(&[&v4(&[])[..], &[0]].concat()), None);
        assert_eq!(destination(&[]), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100), version in prop_oneof![Just(4u8), Just(6u8)]) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = version << 4 | *first & 0xf; }
            let _ = destination(&bytes);
        }
    }
}
