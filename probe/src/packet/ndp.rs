//! Neighbour solicitation and advertisement of IPv6 (RFC 4861, sections 4.3, 4.4 and 7).
//!
//! It must not know caches or timing: `net::neighbour` decides whom to ask and whom to believe.

use std::net::Ipv6Addr;

use super::checksum::Checksum;
use super::eth::Mac;

/// Length of a solicitation with its source link-layer address option, IPv6 header included.
pub const SOLICIT_LEN: usize = IPV6_HEADER + 32;
/// ICMPv6 type of a neighbour solicitation (RFC 4861, section 4.3).
pub const TYPE_SOLICIT: u8 = 135;
/// ICMPv6 type of a neighbour advertisement (RFC 4861, section 4.4).
pub const TYPE_ADVERT: u8 = 136;
const IPV6_HEADER: usize = 40;
const NEXT_HEADER_ICMPV6: u8 = 58;
const HOP_LIMIT: u8 = 255;
const OPTION_SOURCE_MAC: u8 = 1;
const OPTION_TARGET_MAC: u8 = 2;

/// The group in which `target` listens for solicitations (RFC 4291, section 2.7.1).
pub const fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let o = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | o[13] as u16, u16::from_be_bytes([o[14], o[15]]))
}

/// The IPv6 packet that asks for `target`, sent to `dst`: its solicited-node group, or the address itself to check on it.
pub fn solicit(src: Ipv6Addr, src_mac: Mac, target: Ipv6Addr, dst: Ipv6Addr) -> [u8; SOLICIT_LEN] {
    let mut body = [0; SOLICIT_LEN - IPV6_HEADER];
    body[0] = TYPE_SOLICIT;
    body[8..24].copy_from_slice(&target.octets());
    body[24] = OPTION_SOURCE_MAC;
    body[25] = 1;
    body[26..32].copy_from_slice(&src_mac.0);
    packet(src, dst, body)
}

/// The IPv6 packet that answers a solicitation: solicited and override flags set (RFC 4861, section 7.2.4).
pub fn advertise(target: Ipv6Addr, target_mac: Mac, dst: Ipv6Addr) -> [u8; SOLICIT_LEN] {
    let mut body = [0; SOLICIT_LEN - IPV6_HEADER];
    body[0] = TYPE_ADVERT;
    body[4] = 0x60;
    body[8..24].copy_from_slice(&target.octets());
    body[24] = OPTION_TARGET_MAC;
    body[25] = 1;
    body[26..32].copy_from_slice(&target_mac.0);
    packet(target, dst, body)
}

fn packet(src: Ipv6Addr, dst: Ipv6Addr, mut body: [u8; 32]) -> [u8; SOLICIT_LEN] {
    let mut sum = Checksum::new();
    sum.add_pseudo_v6(src, dst, NEXT_HEADER_ICMPV6, 32);
    sum.add(&body);
    body[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    let mut p = [0; SOLICIT_LEN];
    p[0] = 0x60;
    p[5] = 32;
    p[6] = NEXT_HEADER_ICMPV6;
    p[7] = HOP_LIMIT;
    p[8..24].copy_from_slice(&src.octets());
    p[24..40].copy_from_slice(&dst.octets());
    p[IPV6_HEADER..].copy_from_slice(&body);
    p
}

/// A neighbour solicitation or advertisement that passed the checks of RFC 4861, sections 7.1.1 and 7.1.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Whether it is an advertisement.
    pub advert: bool,
    /// Source address of the packet.
    pub src: Ipv6Addr,
    /// Destination address of the packet.
    pub dst: Ipv6Addr,
    /// The address that it is about.
    pub target: Ipv6Addr,
    /// Hardware address of the sender (solicitation) or of the target (advertisement), where the option is there.
    pub mac: Option<Mac>,
    /// Whether an advertisement answers a solicitation.
    pub solicited: bool,
}

impl Neighbour {
    /// Reads a neighbour message from an IPv6 packet; `None` for everything else, and for what fails a check: hop limit
    /// not 255 (it came from another link), wrong checksum, a code, a multicast target, an option of length zero, an answer to a
    /// group that claims to be solicited.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (header, rest) = packet.split_first_chunk::<IPV6_HEADER>()?;
        let body = rest.get(..usize::from(u16::from_be_bytes([header[4], header[5]])))?;
        let (message, mut options) = body.split_first_chunk::<24>()?;
        let kind = message[0];
        let known = matches!(kind, TYPE_SOLICIT | TYPE_ADVERT);
        if header[0] >> 4 != 6 || header[6] != NEXT_HEADER_ICMPV6 || header[7] != HOP_LIMIT || !known || message[1] != 0 {
            return None;
        }
        let address = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).map(Ipv6Addr::from).ok();
        let (src, dst) = (address(&header[8..24])?, address(&header[24..40])?);
        let target = address(&message[8..24])?;
        let mut sum = Checksum::new();
        sum.add_pseudo_v6(src, dst, NEXT_HEADER_ICMPV6, u32::try_from(body.len()).ok()?);
        sum.add(body);
        if sum.finish() != 0 || target.is_multicast() {
            return None;
        }
        let advert = kind == TYPE_ADVERT;
        let solicited = advert && message[4] & 0x40 != 0;
        if solicited && dst.is_multicast() {
            return None;
        }
        let wanted = if advert { OPTION_TARGET_MAC } else { OPTION_SOURCE_MAC };
        let mut mac = None;
        while let [option, units, ..] = *options {
            let len = usize::from(units) * 8;
            let value = options.get(..len).filter(|_| len > 0)?;
            if option == wanted && mac.is_none() {
                mac = value.get(2..8).and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()).map(Mac);
            }
            options = options.get(len..)?;
        }
        Some(Self { advert, src, dst, target, mac, solicited })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::{
        Packet,
        icmpv6::{self, ndp::NeighborSolicitPacket},
        ipv6::Ipv6Packet,
    };
    use proptest::prelude::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    #[test]
    fn solicitation_is_what_pnet_reads() {
        let (src, target): (Ipv6Addr, Ipv6Addr) = ("2001:db8::1".parse().unwrap(), "2001:db8::12:3456".parse().unwrap());
        let group = solicited_node(target);
        assert_eq!(group, "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
        let bytes = solicit(src, MAC, target, group);
        let ip = Ipv6Packet::new(&bytes).unwrap();
        assert_eq!((ip.get_hop_limit(), ip.get_next_header().0, ip.get_destination()), (255, 58, group));
        let message = NeighborSolicitPacket::new(ip.payload()).unwrap();
        assert_eq!(message.get_target_addr(), target);
        let whole = icmpv6::Icmpv6Packet::new(ip.payload()).unwrap();
        assert_eq!(whole.get_checksum(), icmpv6::checksum(&whole, &src, &group));
        let ours = Neighbour::parse(&bytes).unwrap();
        assert_eq!(ours, Neighbour { advert: false, src, dst: group, target, mac: Some(MAC), solicited: false });
    }

    #[test]
    fn forged_advertisements_are_refused() {
        let target: Ipv6Addr = "2001:db8::5".parse().unwrap();
        let good = advertise(target, MAC, "2001:db8::1".parse().unwrap());
        assert_eq!(Neighbour::parse(&good).unwrap().mac, Some(MAC));
        assert!(Neighbour::parse(&good).unwrap().solicited);
        for (at, what) in [(7, "hop limit"), (41, "code"), (43, "checksum"), (60, "target without its checksum")] {
            let mut bad = good;
            bad[at] ^= 1;
            assert_eq!(Neighbour::parse(&bad), None, "{what}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = Neighbour::parse(&bytes);
        }

        #[test]
        fn never_panics_on_damage(at in 0..SOLICIT_LEN, value: u8, cut in 0..=SOLICIT_LEN) {
            let mut bytes = advertise("2001:db8::5".parse().unwrap(), MAC, "2001:db8::1".parse().unwrap());
            bytes[at] = value;
            let _ = Neighbour::parse(&bytes[..cut]);
        }
    }
}
