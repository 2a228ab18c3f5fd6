//! Addresses that a station may have, guessed from what is known of it.
//!
//! Pure: prefixes of at most 64 bits in, addresses out; the last 64 bits are the interface identifier.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::packet::eth::Mac;

/// `prefix` with another interface identifier.
pub(super) fn with_identifier(prefix: Ipv6Addr, identifier: u64) -> Ipv6Addr {
    Ipv6Addr::from_bits((prefix.to_bits() & !u128::from(u64::MAX)) | u128::from(identifier))
}

/// The interface identifier of an address.
pub(super) fn identifier(addr: Ipv6Addr) -> u64 {
    addr.to_bits() as u64
}

/// Modified EUI-64 (RFC 4291, appendix A): ff:fe in the middle, the universal bit turned over.
pub(super) fn eui64(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The hardware address that an interface identifier was made from, if it was.
pub(super) fn from_eui64(identifier: u64) -> Option<Mac> {
    match identifier.to_be_bytes() {
        [a, b, c, 0xff, 0xfe, d, e, f] => Some(Mac([a ^ 2, b, c, d, e, f])).filter(|mac| mac.is_unicast()),
        _ => None,
    }
}

/// The identifiers that people choose for a host with this IPv4 address: its last octet, as the number and as its digits look
/// (192.0.2.10: `::a` and `::10`), and the whole address in the last 32 bits (`::192.0.2.10`) and as its digits look (`::192:0:2:10`).
pub(super) fn from_v4(addr: Ipv4Addr) -> [u64; 4] {
    let looks = addr.octets().map(|octet| u64::from(octet / 100) << 8 | u64::from(octet / 10 % 10) << 4 | u64::from(octet % 10));
    let [.., last] = addr.octets();
    let [.., last_looks] = looks;
    let whole = looks.iter().fold(0, |sum, looks| sum << 16 | looks);
    [last.into(), last_looks, addr.to_bits().into(), whole]
}

/// The identifier of which only the last 24 bits are known, from a solicited-node group (RFC 4291, section 2.7.1): a small one that
/// somebody chose. `None` for every other group.
pub(super) fn from_group(group: Ipv6Addr) -> Option<u64> {
    let low = group.to_bits() as u64 & 0xff_ffff;
    (crate::packet::ndp::solicited_node(Ipv6Addr::from_bits(low.into())) == group).then_some(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_appendix_s_own_example() {
        // RFC 4291, appendix A, with the bits that it names: 34-56-78-9A-BC-DE.
        let mac = Mac([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]);
        let addr = with_identifier("2001:db8::".parse().unwrap(), eui64(mac));
        assert_eq!(addr, "2001:db8::3656:78ff:fe9a:bcde".parse::<Ipv6Addr>().unwrap());
        assert_eq!(from_eui64(identifier(addr)), Some(mac));
        assert_eq!(from_eui64(1), None);
    }

    #[test]
    fn what_people_make_of_ipv4_addresses() {
        let prefix = "2001:db8::".parse().unwrap();
        let guessed = from_v4(Ipv4Addr::new(192, 0, 2, 10)).map(|identifier| with_identifier(prefix, identifier));
        assert_eq!(
            guessed,
            ["2001:db8::a", "2001:db8::10", "2001:db8::c000:20a", "2001:db8::192:0:2:10"].map(|t| t.parse::<Ipv6Addr>().unwrap())
        );
        assert_eq!(from_v4(Ipv4Addr::new(10, 1, 2, 255))[1], 0x255);
    }

    #[test]
    fn only_solicited_node_groups_hint_at_addresses() {
        assert_eq!(from_group("ff02::1:ff00:5".parse().unwrap()), Some(5));
        assert_eq!(from_group("ff02::fb".parse().unwrap()), None);
        assert_eq!(from_group("ff05::1:ff00:5".parse().unwrap()), None);
    }

    proptest! {
        #[test]
        fn identifiers_made_from_hardware_addresses_are_recognised(mut mac: [u8; 6], prefix: u64) {
            mac[0] &= !1;
            prop_assume!(mac != [0; 6]);
            let prefix = Ipv6Addr::from_bits(u128::from(prefix) << 64);
            let addr = with_identifier(prefix, eui64(Mac(mac)));
            prop_assert_eq!(from_eui64(identifier(addr)), Some(Mac(mac)));
            prop_assert_eq!(addr.to_bits() >> 64, prefix.to_bits() >> 64);
        }
    }
}
