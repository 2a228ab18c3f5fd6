//! Reports of multicast listeners on an IPv6 link (MLDv1: RFC 2710, section 3; MLDv2: RFC 3810, section 5.2).
//!
//! It must not know what a report is good for. We never send any.

use std::net::{IpAddr, Ipv6Addr};

use super::checksum::Checksum;
use super::ip::{PROTOCOL_ICMPV6, Packet};

/// ICMPv6 type of a report of version 1.
pub const TYPE_REPORT_V1: u8 = 131;
/// ICMPv6 type of a report of version 2.
pub const TYPE_REPORT_V2: u8 = 143;
const V1_LEN: usize = 24;
const V2_HEADER_LEN: usize = 8;
const RECORD_LEN: usize = 20;
/// Record types by which somebody leaves a group: "include" of no source, in answer to a query or by itself (RFC 3810, section 5.2.12).
const IS_IN: u8 = 1;
const TO_IN: u8 = 3;

/// Groups that somebody on the link listens to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Who says so: a link-local address, or none yet (unspecified).
    pub src: Ipv6Addr,
    /// The groups, in the order of the packet.
    pub groups: Vec<Ipv6Addr>,
}

impl Report {
    /// Reads a report from an IPv6 packet; `None` for everything else, and for what fails a check (RFC 2710, section 4; RFC 3810, section
    /// 5.2.13): hop limit not 1, a source that is neither link-local nor unspecified, a wrong checksum, a group that is none,
    /// records that are cut short.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let packet = Packet::parse(bytes)?;
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (packet.src(), packet.dst()) else { return None };
        let message = packet.payload();
        let kind = *message.first()?;
        let from_link = packet.ttl() == 1 && (src.is_unicast_link_local() || src.is_unspecified());
        if packet.protocol() != PROTOCOL_ICMPV6 || !matches!(kind, TYPE_REPORT_V1 | TYPE_REPORT_V2) || !from_link {
            return None;
        }
        let mut sum = Checksum::new();
        sum.add_pseudo_v6(src, dst, PROTOCOL_ICMPV6, u32::try_from(message.len()).ok()?);
        sum.add(message);
        if sum.finish() != 0 {
            return None;
        }
        let groups = if kind == TYPE_REPORT_V1 { vec![group(message.get(8..V1_LEN)?)?] } else { records(message)? };
        Some(Self { src, groups })
    }
}

fn group(bytes: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(bytes).map(Ipv6Addr::from).ok().filter(Ipv6Addr::is_multicast)
}

/// The groups of the records of version 2 by which somebody listens (RFC 3810, section 5.2.4).
fn records(message: &[u8]) -> Option<Vec<Ipv6Addr>> {
    let (header, mut rest) = message.split_first_chunk::<V2_HEADER_LEN>()?;
    let mut groups = Vec::new();
    for _ in 0..u16::from_be_bytes([header[6], header[7]]) {
        let (record, after) = rest.split_first_chunk::<RECORD_LEN>()?;
        let sources = usize::from(u16::from_be_bytes([record[2], record[3]]));
        let leaves = matches!(record[0], IS_IN | TO_IN) && sources == 0;
        let named = group(record.get(4..)?)?;
        if !leaves {
            groups.push(named);
        }
        rest = after.get(sources * 16 + usize::from(record[1]) * 4..)?;
    }
    Some(groups)
}

/// A report as a host sends it, with its router alert option (RFC 2711), for simulations: of version 1 with the first
/// group, else of version 2 with 255 at most.
pub fn report(src: Ipv6Addr, dst: Ipv6Addr, groups: &[Ipv6Addr], version: u8) -> Vec<u8> {
    let groups = groups.get(..groups.len().min(255)).unwrap_or_default();
    let (kind, count) = if version == 1 { (TYPE_REPORT_V1, 0) } else { (TYPE_REPORT_V2, groups.len() as u8) };
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, count];
    if version == 1 {
        message.extend(groups.iter().take(1).flat_map(|group| group.octets()));
    } else {
        for group in groups {
            message.extend([4, 0, 0, 0]);
            message.extend(group.octets());
        }
    }
    let mut sum = Checksum::new();
    sum.add_pseudo_v6(src, dst, PROTOCOL_ICMPV6, message.len() as u32);
    sum.add(&message);
    message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    let mut packet = super::ip::v6_header(src, dst, 0, 1, (message.len() + 8) as u16).to_vec();
    packet.extend([PROTOCOL_ICMPV6, 0, 5, 2, 0, 0, 1, 0]);
    packet.extend(message);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::icmpv6::{self, Icmpv6Packet};
    use proptest::prelude::*;

    fn addr(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn both_versions_name_their_groups() {
        let (src, groups) = (addr("fe80::9"), [addr("ff02::1:ff00:9"), addr("ff02::fb")]);
        for (version, expected) in [(1, &groups[..1]), (2, &groups[..])] {
            let bytes = report(src, addr("ff02::16"), &groups, version);
            assert_eq!(Report::parse(&bytes), Some(Report { src, groups: expected.to_vec() }), "version {version}");
            let message = Icmpv6Packet::new(&bytes[48..]).unwrap();
            assert_eq!(message.get_checksum(), icmpv6::checksum(&message, &src, &addr("ff02::16")), "pnet agrees");
        }
        assert!(Report::parse(&report(Ipv6Addr::UNSPECIFIED, addr("ff02::16"), &groups, 2)).is_some());
    }

    #[test]
    fn what_another_network_could_send_is_refused() {
        let groups = [addr("ff02::fb")];
        assert_eq!(Report::parse(&report(addr("2001:db8::1"), addr("ff02::16"), &groups, 2)), None, "global source");
        assert_eq!(Report::parse(&report(addr("fe80::1"), addr("ff02::16"), &[addr("2001:db8::1")], 2)), None, "no group");
        let good = report(addr("fe80::1"), addr("ff02::16"), &groups, 2);
        for (at, what) in [(7, "hop limit"), (48, "type"), (50, "checksum"), (60, "record without its checksum")] {
            let mut bad = good.clone();
            bad[at] ^= 2;
            assert_eq!(Report::parse(&bad), None, "{what}");
        }
    }

    #[test]
    fn who_leaves_listens_no_more() {
        let mut bytes = report(addr("fe80::1"), addr("ff02::16"), &[addr("ff02::fb")], 2);
        bytes[56] = TO_IN;
        // One's complement: the type of the record went from 4 to 3 in the high byte of a word.
        let sum = u16::from_be_bytes([bytes[50], bytes[51]]) + 0x100;
        bytes[50..52].copy_from_slice(&sum.to_be_bytes());
        assert!(Report::parse(&bytes).unwrap().groups.is_empty());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = Report::parse(&bytes);
        }

        #[test]
        fn never_panics_on_damage(count in 0u8..4, at in 48usize..100, value: u8, cut in 0usize..200) {
            let groups = vec![addr("ff02::1:ff00:9"); usize::from(count)];
            let mut bytes = report(addr("fe80::1"), addr("ff02::16"), &groups, 2);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            // The checksum is made right, so that the records are read.
            bytes[50..52].fill(0);
            let mut sum = Checksum::new();
            sum.add_pseudo_v6(addr("fe80::1"), addr("ff02::16"), PROTOCOL_ICMPV6, (bytes.len() - 48) as u32);
            sum.add(&bytes[48..]);
            let sum = sum.finish().to_be_bytes();
            bytes[50..52].copy_from_slice(&sum);
            let _ = Report::parse(&bytes);
            bytes.truncate(cut);
            let _ = Report::parse(&bytes);
        }

        #[test]
        fn reports_round_trip(groups in proptest::collection::vec(any::<[u8; 15]>(), 0..20), src: [u8; 8]) {
            let groups: Vec<Ipv6Addr> = groups.iter().map(|rest| {
                let mut octets = [0xff; 16];
                octets[1..].copy_from_slice(rest);
                Ipv6Addr::from(octets)
            }).collect();
            let src = Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(u64::from_be_bytes(src)));
            prop_assert_eq!(Report::parse(&report(src, addr("ff02::16"), &groups, 2)), Some(Report { src, groups }));
        }
    }
}
