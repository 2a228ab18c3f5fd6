//! What routers append to ICMP errors (RFC 4884): MPLS label stacks (RFC 4950) and interfaces (RFC 5837).
//!
//! It must not know what a trace makes of them. An extension whose checksum is wrong is not there; an object that makes no sense is
//! passed over, and so is what follows one that is longer than the rest.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use picket_wire::trace::{InterfaceInfo, InterfaceRole, MPLS_MAX, MplsLabel};

use super::checksum::checksum;
use super::ip::Packet;
use picket_wire::path::{INTERFACES_MAX, NAME_MAX};

/// Where the extension begins when nobody says how long the quote is (RFC 4884, section 5.5).
const QUOTE_LEN: usize = 128;
const ICMP_HEADER_LEN: usize = 8;
const VERSION: u8 = 2;
const CLASS_MPLS: u8 = 1;
const CLASS_INTERFACE: u8 = 2;

/// What was appended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extensions {
    /// The label stack, top first.
    pub mpls: Vec<MplsLabel>,
    /// The interfaces.
    pub interfaces: Vec<InterfaceInfo>,
}

impl Extensions {
    /// What is appended to the ICMP error in `packet`; nothing where nothing is, or nothing valid.
    pub fn parse(packet: &Packet<'_>) -> Self {
        let mut all = Self::default();
        let Some(mut objects) = structure(packet) else { return all };
        while let Some((object, rest)) = split_object(objects) {
            match object {
                [_, _, CLASS_MPLS, 1, stack @ ..] => all.mpls.extend(labels(stack).take(MPLS_MAX - all.mpls.len())),
                [_, _, CLASS_INTERFACE, kind, body @ ..] if all.interfaces.len() < INTERFACES_MAX => {
                    all.interfaces.extend(interface(*kind, body))
                }
                _ => {}
            }
            objects = rest;
        }
        all
    }
}

/// The objects of a valid extension structure.
fn structure<'a>(packet: &Packet<'a>) -> Option<&'a [u8]> {
    let (header, body) = packet.payload().split_first_chunk::<ICMP_HEADER_LEN>()?;
    // The length counts words of 32 bits in ICMP and of 64 bits in ICMPv6 (RFC 4884, sections 4.1 and 4.4).
    let stated = if packet.src().is_ipv4() { usize::from(header[5]) * 4 } else { usize::from(header[4]) * 8 };
    let at = if stated == 0 { QUOTE_LEN } else { stated };
    let extension = body.get(at..)?;
    let (head, objects) = extension.split_first_chunk::<4>()?;
    let unsummed = head[2..4] == [0, 0];
    // Without a checksum it is only believed where its place was stated: the rest of a long quote may look like anything.
    let valid = if unsummed { stated != 0 } else { checksum(extension) == 0 };
    (head[0] >> 4 == VERSION && valid).then_some(objects)
}

/// The first object with its header, and what follows it.
fn split_object(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = usize::from(u16::from_be_bytes(*bytes.first_chunk::<2>()?));
    (len >= 4).then(|| bytes.split_at_checked(len)).flatten()
}

/// RFC 4950, section 4.
fn labels(stack: &[u8]) -> impl Iterator<Item = MplsLabel> + '_ {
    stack.as_chunks::<4>().0.iter().map(|bytes| {
        let entry = u32::from_be_bytes(*bytes);
        MplsLabel { label: entry >> 12, tc: (entry >> 9 & 7) as u8, bottom: entry >> 8 & 1 == 1, ttl: entry as u8 }
    })
}

/// RFC 5837, section 4: which parts are there, and in which order, is said by the type.
fn interface(kind: u8, mut body: &[u8]) -> Option<InterfaceInfo> {
    let role = match kind >> 6 {
        0 => InterfaceRole::Incoming,
        1 => InterfaceRole::SubIncoming,
        2 => InterfaceRole::Outgoing,
        _ => InterfaceRole::NextHop,
    };
    let has = |bit: u8| kind & bit != 0;
    let index = if has(0x08) { Some(take_u32(&mut body)?) } else { None };
    let addr = if has(0x04) { Some(take_address(&mut body)?) } else { None };
    let name = if has(0x02) { Some(take_name(&mut body)?) } else { None };
    let mtu = if has(0x01) { Some(take_u32(&mut body)?) } else { None };
    Some(InterfaceInfo { role, index, addr, name, mtu })
}

fn take<const N: usize>(body: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = body.split_first_chunk::<N>()?;
    *body = rest;
    Some(*head)
}

fn take_u32(body: &mut &[u8]) -> Option<u32> {
    take::<4>(body).map(u32::from_be_bytes)
}

/// An address family number of IANA's, two octets that mean nothing, the address.
fn take_address(body: &mut &[u8]) -> Option<IpAddr> {
    match take::<4>(body)? {
        [0, 1, ..] => take::<4>(body).map(|octets| Ipv4Addr::from(octets).into()),
        [0, 2, ..] => take::<16>(body).map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

/// Its length, which counts itself and is a multiple of four, and the name, padded with zeros. What is not text is not kept.
fn take_name(body: &mut &[u8]) -> Option<String> {
    let len = usize::from(*body.first()?);
    let (name, rest) = body.split_at_checked(len).filter(|_| len > 0 && len <= NAME_MAX)?;
    *body = rest;
    let text = String::from_utf8_lossy(name.get(1..)?);
    let mut kept = String::new();
    for c in text.trim_end_matches('\0').chars().filter(|c| !c.is_control()) {
        // What stands for a byte that is no text is longer than it.
        if kept.len() + c.len_utf8() > NAME_MAX {
            break;
        }
        kept.push(c);
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ip::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, v4_header, v6_header};

    /// A time exceeded with a quote of `quote` bytes, of which the header says that it is `stated` words long, and an extension.
    fn error(v4: bool, quote: usize, stated: u8, extension: &[u8]) -> Vec<u8> {
        let mut message = vec![if v4 { 11 } else { 3 }, 0, 0, 0, 0, 0, 0, 0];
        message[if v4 { 5 } else { 4 }] = stated;
        message.extend(vec![0x45; quote]);
        message.extend(extension);
        let len = message.len() as u16;
        let mut packet = match v4 {
            true => v4_header([192, 0, 2, 9].into(), [192, 0, 2, 1].into(), PROTOCOL_ICMP, 64, len).to_vec(),
            false => v6_header("2001:db8::9".parse().unwrap(), "2001:db8::1".parse().unwrap(), PROTOCOL_ICMPV6, 64, len).to_vec(),
        };
        packet.extend(message);
        packet
    }

    fn summed(objects: &[u8]) -> Vec<u8> {
        let mut extension = [&[0x20, 0, 0, 0][..], objects].concat();
        let sum = checksum(&extension);
        extension[2..4].copy_from_slice(&sum.to_be_bytes());
        extension
    }

    fn parse(packet: &[u8]) -> Extensions {
        Extensions::parse(&Packet::parse(packet).unwrap())
    }

    const STACK: [u8; 12] = [0, 12, 1, 1, 0x05, 0xdc, 0x10, 0x01, 0x00, 0x01, 0x0b, 0xff];

    #[test]
    fn label_stacks_are_read_in_both_families_and_by_the_old_way() {
        let labels =
            vec![MplsLabel { label: 24_001, tc: 0, bottom: false, ttl: 1 }, MplsLabel { label: 16, tc: 5, bottom: true, ttl: 255 }];
        for packet in [error(true, 32, 8, &summed(&STACK)), error(true, 128, 0, &summed(&STACK)), error(false, 64, 8, &summed(&STACK))] {
            assert_eq!(parse(&packet), Extensions { mpls: labels.clone(), interfaces: Vec::new() });
        }
        // A place that was stated needs no checksum; one that was not does.
        let unsummed = [&[0x20, 0, 0, 0][..], &STACK].concat();
        assert_eq!(parse(&error(true, 32, 8, &unsummed)).mpls, labels);
        assert_eq!(parse(&error(true, 128, 0, &unsummed)), Extensions::default());
        let mut wrong = summed(&STACK);
        wrong[2] ^= 1;
        assert_eq!(parse(&error(true, 32, 8, &wrong)), Extensions::default());
        assert_eq!(parse(&error(true, 28, 0, &[])), Extensions::default());
    }

    #[test]
    fn interfaces_are_read_with_whatever_parts_they_have() {
        let whole = [&[0, 32, 2, 0x0f][..], &[0, 0, 0, 3], &[0, 1, 0, 0, 192, 0, 2, 9], b"\x0ceth0.100\0\0\0", &[0, 0, 5, 220]].concat();
        let next = [&[0, 24, 2, 0xc4][..], &[0, 2, 0, 0], &"2001:db8::5".parse::<Ipv6Addr>().unwrap().octets()].concat();
        // One that says more than it has is left out; what follows it stands.
        let short = [0, 8, 2, 0x09, 0, 0, 0, 3];
        let all = parse(&error(true, 32, 8, &summed(&[&whole[..], &short, &next, &STACK].concat())));
        let expected = [
            InterfaceInfo {
                role: InterfaceRole::Incoming,
                index: Some(3),
                addr: Some([192, 0, 2, 9].into()),
                name: Some("eth0.100".into()),
                mtu: Some(1500),
            },
            InterfaceInfo { role: InterfaceRole::NextHop, index: None, addr: Some("2001:db8::5".parse().unwrap()), name: None, mtu: None },
        ];
        assert_eq!((&all.interfaces[..], all.mpls.len()), (&expected[..], 2));
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless_and_what_is_kept_is_bounded(
            v4: bool, stated in 0..40_u8, objects in proptest::collection::vec(any::<u8>(), 0..200), sum: bool,
        ) {
            let extension = if sum { summed(&objects) } else { [&[0x20, 0, 0, 0][..], &objects].concat() };
            for quote in [0, usize::from(stated) * if v4 { 4 } else { 8 }] {
                let all = parse(&error(v4, quote, stated, &extension));
                prop_assert!(all.mpls.len() <= MPLS_MAX && all.interfaces.len() <= INTERFACES_MAX);
                prop_assert!(all.interfaces.iter().all(|interface| interface.name.as_ref().is_none_or(|name| name.len() <= NAME_MAX)));
            }
        }
    }
}
