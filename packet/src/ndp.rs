//! Neighbour solicitation and advertisement of IPv6 (RFC 4861, sections 4.3, 4.4 and 7), and router advertisements (sections 4.2 and 6).
//!
//! It must not know caches or timing: `net::neighbour` decides whom to ask and whom to believe.

use std::net::Ipv6Addr;

use super::checksum::Checksum;
use super::eth::Mac;

/// Length of a solicitation with its source link-layer address option, IPv6 header included.
pub const SOLICIT_LEN: usize = IPV6_HEADER + 32;
/// ICMPv6 type of a neighbour solicitation (RFC 4861, section 4.3).
pub const TYPE_SOLICIT: u8 = 135;
/// ICMPv6 type of a router advertisement (RFC 4861, section 4.2).
pub const TYPE_ROUTER_ADVERT: u8 = 134;
/// ICMPv6 type of a neighbour advertisement (RFC 4861, section 4.4).
pub const TYPE_ADVERT: u8 = 136;
const IPV6_HEADER: usize = 40;
const NEXT_HEADER_ICMPV6: u8 = 58;
const HOP_LIMIT: u8 = 255;
const OPTION_SOURCE_MAC: u8 = 1;
const OPTION_TARGET_MAC: u8 = 2;
const OPTION_PREFIX: u8 = 3;

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

/// A router advertisement, for simulations: of the first 32 prefixes, which any link carries.
pub fn router_advert(advert: &RouterAdvert, dst: Ipv6Addr) -> Vec<u8> {
    let flags = u8::from(advert.managed) << 7 | u8::from(advert.other) << 6;
    let [high, low] = advert.lifetime.to_be_bytes();
    let mut body = vec![TYPE_ROUTER_ADVERT, 0, 0, 0, 64, flags, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
    if let Some(mac) = advert.mac {
        body.extend([OPTION_SOURCE_MAC, 1]);
        body.extend(mac.0);
    }
    for info in advert.prefixes.iter().take(32) {
        body.extend([OPTION_PREFIX, 4, info.len, u8::from(info.on_link) << 7 | u8::from(info.autonomous) << 6]);
        body.extend([0; 12]);
        body.extend(info.prefix.octets());
    }
    let len = body.len() as u16;
    let mut sum = Checksum::new();
    sum.add_pseudo_v6(advert.src, dst, NEXT_HEADER_ICMPV6, len.into());
    sum.add(&body);
    body[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    [&super::ip::v6_header(advert.src, dst, NEXT_HEADER_ICMPV6, HOP_LIMIT, len)[..], &body].concat()
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
        let whole = Message::parse(packet)?;
        let (message, options) = whole.body.split_first_chunk::<24>()?;
        let advert = match message[0] {
            TYPE_SOLICIT => false,
            TYPE_ADVERT => true,
            _ => return None,
        };
        let target = address(message.get(8..24)?)?;
        let solicited = advert && message[4] & 0x40 != 0;
        if target.is_multicast() || (solicited && whole.dst.is_multicast()) {
            return None;
        }
        let wanted = if advert { OPTION_TARGET_MAC } else { OPTION_SOURCE_MAC };
        let mut mac = None;
        for option in Options(options) {
            let (kind, value) = option?;
            if kind == wanted && mac.is_none() {
                mac = hardware_address(value);
            }
        }
        Some(Self { advert, src: whole.src, dst: whole.dst, target, mac, solicited })
    }
}

/// A prefix that a router announces (RFC 4861, section 4.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixInfo {
    /// The network, host bits zero.
    pub prefix: Ipv6Addr,
    /// Length of the prefix, in bits.
    pub len: u8,
    /// Whether its addresses are on the link.
    pub on_link: bool,
    /// Whether hosts may make addresses of it by themselves (RFC 4862).
    pub autonomous: bool,
}

/// A router advertisement that passed the checks of RFC 4861, section 6.1.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterAdvert {
    /// The router's link-local address.
    pub src: Ipv6Addr,
    /// Its hardware address, where the option is there.
    pub mac: Option<Mac>,
    /// For how many seconds it serves as a default router; 0: it does not.
    pub lifetime: u16,
    /// Whether addresses are given out by DHCPv6.
    pub managed: bool,
    /// Whether other configuration is given out by DHCPv6.
    pub other: bool,
    /// The prefixes.
    pub prefixes: Vec<PrefixInfo>,
}

impl RouterAdvert {
    /// Reads a router advertisement from an IPv6 packet; `None` for everything else, and for what fails a check: hop limit not 255, a source
    /// that is not link-local, wrong checksum, a code, an option of length zero, an impossible prefix length.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let whole = Message::parse(packet)?;
        let (message, options) = whole.body.split_first_chunk::<16>()?;
        if message[0] != TYPE_ROUTER_ADVERT || !whole.src.is_unicast_link_local() {
            return None;
        }
        let lifetime = u16::from_be_bytes([message[6], message[7]]);
        let (managed, other) = (message[5] & 0x80 != 0, message[5] & 0x40 != 0);
        let mut advert = Self { src: whole.src, mac: None, lifetime, managed, other, prefixes: Vec::new() };
        for option in Options(options) {
            match option? {
                (OPTION_SOURCE_MAC, value) if advert.mac.is_none() => advert.mac = hardware_address(value),
                (OPTION_PREFIX, value) => advert.prefixes.push(prefix(value)?),
                _ => {}
            }
        }
        Some(advert)
    }
}

fn prefix(option: &[u8]) -> Option<PrefixInfo> {
    let option = option.first_chunk::<32>()?;
    let (len, flags) = (option[2], option[3]);
    let mask = u128::MAX.checked_shl(128_u32.checked_sub(len.into())?).unwrap_or(0);
    let prefix = Ipv6Addr::from_bits(address(option.get(16..32)?)?.to_bits() & mask);
    Some(PrefixInfo { prefix, len, on_link: flags & 0x80 != 0, autonomous: flags & 0x40 != 0 })
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(bytes).map(Ipv6Addr::from).ok()
}

fn hardware_address(option: &[u8]) -> Option<Mac> {
    option.get(2..8).and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()).map(Mac)
}

/// An ICMPv6 message that came from this link and is what was sent.
struct Message<'a> {
    src: Ipv6Addr,
    dst: Ipv6Addr,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    fn parse(packet: &'a [u8]) -> Option<Self> {
        let (header, rest) = packet.split_first_chunk::<IPV6_HEADER>()?;
        let body = rest.get(..usize::from(u16::from_be_bytes([header[4], header[5]])))?;
        let code = *body.get(1)?;
        if header[0] >> 4 != 6 || header[6] != NEXT_HEADER_ICMPV6 || header[7] != HOP_LIMIT || code != 0 {
            return None;
        }
        let (src, dst) = (address(&header[8..24])?, address(&header[24..40])?);
        let mut sum = Checksum::new();
        sum.add_pseudo_v6(src, dst, NEXT_HEADER_ICMPV6, u32::try_from(body.len()).ok()?);
        sum.add(body);
        (sum.finish() == 0).then_some(Self { src, dst, body })
    }
}

/// Options with their types (RFC 4861, section 4.6); `None` in place of the first that is malformed.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Option<(u8, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let [kind, units, ..] = *self.0 else { return None };
        let len = usize::from(units) * 8;
        let option = self.0.split_at_checked(len).filter(|_| len > 0);
        self.0 = option.map_or(&[], |(_, rest)| rest);
        Some(option.map(|(value, _)| (kind, value)))
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

    fn sample() -> RouterAdvert {
        let prefix = |text: &str, on_link| PrefixInfo { prefix: text.parse().unwrap(), len: 64, on_link, autonomous: !on_link };
        let prefixes = vec![prefix("2001:db8::", true), prefix("2001:db8:1::", false)];
        RouterAdvert { src: "fe80::1".parse().unwrap(), mac: Some(MAC), lifetime: 1800, managed: true, other: false, prefixes }
    }

    #[test]
    fn router_advertisements_are_what_pnet_reads() {
        use pnet_packet::icmpv6::ndp::{NdpOptionTypes, RouterAdvertPacket};
        let all: Ipv6Addr = "ff02::1".parse().unwrap();
        let bytes = router_advert(&sample(), all);
        assert_eq!(RouterAdvert::parse(&bytes), Some(sample()));
        let ip = Ipv6Packet::new(&bytes).unwrap();
        let message = RouterAdvertPacket::new(ip.payload()).unwrap();
        assert_eq!((message.get_lifetime(), message.get_flags()), (1800, 0x80));
        let kinds: Vec<_> = message.get_options().iter().map(|option| option.option_type).collect();
        assert_eq!(kinds, [NdpOptionTypes::SourceLLAddr, NdpOptionTypes::PrefixInformation, NdpOptionTypes::PrefixInformation]);
        assert_eq!(Neighbour::parse(&bytes), None);
        let from_afar = RouterAdvert { src: "2001:db8::1".parse().unwrap(), ..sample() };
        assert_eq!(RouterAdvert::parse(&router_advert(&from_afar, all)), None, "routers speak from link-local addresses");
        for (at, what) in [(7, "hop limit"), (41, "code"), (43, "checksum"), (60, "option without its checksum")] {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(RouterAdvert::parse(&bad), None, "{what}");
        }
    }

    #[test]
    fn host_bits_of_a_prefix_are_cleared_and_impossible_lengths_refused() {
        let all: Ipv6Addr = "ff02::1".parse().unwrap();
        let with = |prefix: &str, len| {
            let info = PrefixInfo { prefix: prefix.parse().unwrap(), len, on_link: true, autonomous: true };
            RouterAdvert::parse(&router_advert(&RouterAdvert { prefixes: vec![info], ..sample() }, all))
        };
        assert_eq!(with("2001:db8::7", 64).unwrap().prefixes[0].prefix, "2001:db8::".parse::<Ipv6Addr>().unwrap());
        assert_eq!(with("2001:db8::7", 0).unwrap().prefixes[0].prefix, Ipv6Addr::UNSPECIFIED);
        assert_eq!(with("2001:db8::7", 129), None);
    }

    proptest! {
        #[test]
        fn router_advertisements_never_panic(at in 40usize..120, value: u8, cut in 0usize..130) {
            let mut bytes = router_advert(&sample(), "ff02::1".parse().unwrap());
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            // The checksum is made right, so that the options are read.
            bytes[42..44].fill(0);
            let mut sum = Checksum::new();
            sum.add_pseudo_v6(sample().src, "ff02::1".parse().unwrap(), NEXT_HEADER_ICMPV6, (bytes.len() - 40) as u32);
            sum.add(&bytes[40..]);
            let sum = sum.finish().to_be_bytes();
            bytes[42..44].copy_from_slice(&sum);
            let _ = RouterAdvert::parse(&bytes);
            bytes.truncate(cut);
            let _ = RouterAdvert::parse(&bytes);
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = Neighbour::parse(&bytes);
            let _ = RouterAdvert::parse(&bytes);
        }

        #[test]
        fn never_panics_on_damage(at in 0..SOLICIT_LEN, value: u8, cut in 0..=SOLICIT_LEN) {
            let mut bytes = advertise("2001:db8::5".parse().unwrap(), MAC, "2001:db8::1".parse().unwrap());
            bytes[at] = value;
            let _ = Neighbour::parse(&bytes[..cut]);
        }
    }
}
