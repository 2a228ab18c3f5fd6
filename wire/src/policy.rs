//! Which addresses may be probed: allow and deny lists, and the verdict with the rule that made it.
//!
//! The same type serves the fleet's policy (carried, signed, in each job) and the site's own (read from the probe's disk):
//! a packet leaves only where both permit. Judged is always the address really used: names after resolution, IPv4-mapped
//! IPv6 as IPv4, and the IPv4 address embedded in 6to4 (RFC 3056) and NAT64 (RFC 6052) addresses as well as the outer one.
//!
//! **Invariant:** deny wins over allow; what no rule allows is denied; special ranges need a rule that lies inside them.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::addr::{AddrSet, IpNet, canonical};

/// Allow and deny lists of networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPolicy {
    /// Networks that may be probed.
    pub allow: Vec<IpNet>,
    /// Networks that may not, whatever `allow` says.
    pub deny: Vec<IpNet>,
}

/// The verdict on one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Permitted by this rule.
    Allowed(IpNet),
    /// Forbidden by this rule of the deny list.
    Denied(IpNet),
    /// A special range that no rule names.
    Special(&'static str, IpNet),
    /// No rule of the allow list holds the address.
    NotAllowed,
}

impl Verdict {
    /// Whether the address may be probed.
    pub fn is_allowed(self) -> bool {
        matches!(self, Verdict::Allowed(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Allowed(net) => write!(f, "allowed by `allow {net}`"),
            Verdict::Denied(net) => write!(f, "denied by `deny {net}`"),
            Verdict::Special(what, net) => write!(f, "denied: {what} addresses ({net}) must be allowed by a rule inside that range"),
            Verdict::NotAllowed => write!(f, "denied: no `allow` rule holds it"),
        }
    }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("the networks in this file are well formed")
}

/// Ranges that an allow rule must name from inside: a broad rule such as `0.0.0.0/0` does not reach them.
pub fn special() -> [(&'static str, IpNet); 9] {
    [
        ("unspecified", net("0.0.0.0/8")),
        ("loopback", net("127.0.0.0/8")),
        ("link-local", net("169.254.0.0/16")),
        ("multicast", net("224.0.0.0/4")),
        ("reserved and broadcast", net("240.0.0.0/4")),
        ("loopback and unspecified", net("::/127")),
        ("link-local", net("fe80::/10")),
        ("multicast", net("ff00::/8")),
        ("IPv4-compatible", net("::/96")),
    ]
}

/// The IPv4 address that a translator would really send to: 6to4 (RFC 3056) and the NAT64 well-known prefix (RFC 6052).
fn embedded(addr: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = addr else { return None };
    let s = v6.segments();
    let from = |high: u16, low: u16| Some(IpAddr::V4(Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low))));
    match s {
        [0x2002, high, low, ..] => from(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => from(high, low),
        _ => None,
    }
}

impl Default for AddressPolicy {
    /// Private networks only (RFC 1918, RFC 4193): nobody scans the world by leaving a file empty.
    fn default() -> Self {
        Self { allow: ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"].map(net).to_vec(), deny: Vec::new() }
    }
}

impl AddressPolicy {
    /// Judges one address.
    pub fn check(&self, addr: IpAddr) -> Verdict {
        let addr = canonical(addr);
        match embedded(addr).map(|inner| self.check_plain(inner)) {
            Some(verdict) if !verdict.is_allowed() => verdict,
            _ => self.check_plain(addr),
        }
    }

    fn check_plain(&self, addr: IpAddr) -> Verdict {
        if let Some(rule) = self.deny.iter().find(|rule| rule.contains(addr)) {
            return Verdict::Denied(*rule);
        }
        let ranges = special();
        let special = ranges.iter().find(|(_, range)| range.contains(addr));
        let inside = |rule: &&IpNet| {
            rule.contains(addr) && special.is_none_or(|(_, range)| rule.prefix() >= range.prefix() && range.contains(rule.addr()))
        };
        match (self.allow.iter().find(inside), special) {
            (Some(rule), _) => Verdict::Allowed(*rule),
            (None, Some((what, range))) => Verdict::Special(what, *range),
            (None, None) => Verdict::NotAllowed,
        }
    }

    /// The permitted part of a set, without regard to embedded IPv4 addresses (those are judged one by one when used).
    pub fn permitted(&self, set: &AddrSet) -> AddrSet {
        let ranges = special();
        let specials = AddrSet::from_nets(ranges.iter().map(|(_, range)| range));
        let named = |rule: &&IpNet| ranges.iter().any(|(_, range)| range.contains(rule.addr()) && rule.prefix() >= range.prefix());
        let allowed = AddrSet::from_nets(&self.allow).minus(&specials).union(&AddrSet::from_nets(self.allow.iter().filter(named)));
        set.intersection(&allowed).minus(&AddrSet::from_nets(&self.deny))
    }
}

/// One or more policies made ready for the packet path: an address is permitted where every one of them permits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    set: AddrSet,
}

impl Permit {
    /// What all of `policies` permit together.
    pub fn all_of<'a>(policies: impl IntoIterator<Item = &'a AddressPolicy>) -> Self {
        Self { set: policies.into_iter().fold(AddrSet::everything(), |set, policy| policy.permitted(&set)) }
    }

    /// Whether a packet may go to `addr`; agrees with [`AddressPolicy::check`] of each policy.
    pub fn permits(&self, addr: IpAddr) -> bool {
        let addr = canonical(addr);
        self.set.contains(addr) && embedded(addr).is_none_or(|inner| self.set.contains(inner))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(allow: &[&str], deny: &[&str]) -> AddressPolicy {
        AddressPolicy { allow: allow.iter().map(|n| net(n)).collect(), deny: deny.iter().map(|n| net(n)).collect() }
    }

    fn verdict(policy: &AddressPolicy, addr: &str) -> String {
        policy.check(addr.parse().unwrap()).to_string()
    }

    #[test]
    fn verdicts_name_their_rule() {
        let p = policy(&["198.18.0.0/15", "2001:db8::/32"], &["198.18.7.0/24"]);
        assert_eq!(verdict(&p, "198.18.0.1"), "allowed by `allow 198.18.0.0/15`");
        assert_eq!(verdict(&p, "198.18.7.1"), "denied by `deny 198.18.7.0/24`");
        assert_eq!(verdict(&p, "::ffff:198.18.7.1"), "denied by `deny 198.18.7.0/24`");
        assert_eq!(verdict(&p, "192.0.2.1"), "denied: no `allow` rule holds it");
        assert_eq!(verdict(&p, "2001:db8::1"), "allowed by `allow 2001:db8::/32`");
    }

    #[test]
    fn broad_rules_do_not_reach_special_ranges() {
        let p = policy(&["0.0.0.0/0", "::/0"], &[]);
        for addr in [
            "127.0.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "169.254.1.1",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
        ] {
            assert!(matches!(p.check(addr.parse().unwrap()), Verdict::Special(..)), "{addr}");
        }
        assert!(policy(&["127.0.0.0/8"], &[]).check("127.0.0.1".parse().unwrap()).is_allowed());
        assert!(policy(&["fe80::/64"], &[]).check("fe80::7".parse().unwrap()).is_allowed());
    }

    #[test]
    fn embedded_addresses_are_judged_too() {
        let p = policy(&["0.0.0.0/0", "::/0"], &["198.18.7.0/24"]);
        for addr in ["2002:c612:0701::1", "64:ff9b::198.18.7.1", "2002:7f00:0001::"] {
            assert!(!p.check(addr.parse().unwrap()).is_allowed(), "{addr}");
        }
        assert!(p.check("64:ff9b::198.18.8.1".parse().unwrap()).is_allowed());
        let permit = Permit::all_of([&p, &policy(&["64:ff9b::/96", "198.18.0.0/16"], &[])]);
        for (addr, permitted) in [
            ("64:ff9b::198.18.8.1", true),
            ("64:ff9b::198.18.7.1", false),
            ("64:ff9b::198.19.0.1", false),
            ("::ffff:198.18.8.1", true),
            ("198.19.0.1", false),
        ] {
            assert_eq!(permit.permits(addr.parse().unwrap()), permitted, "{addr}");
        }
    }

    #[test]
    fn the_default_is_private_networks() {
        let p = AddressPolicy::default();
        assert!(p.check("192.168.1.1".parse().unwrap()).is_allowed() && p.check("fd00::1".parse().unwrap()).is_allowed());
        assert!(!p.check("198.18.0.1".parse().unwrap()).is_allowed() && !p.check("172.32.0.1".parse().unwrap()).is_allowed());
    }

    proptest! {
        #[test]
        fn the_permitted_part_agrees_with_single_verdicts(
            allow in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..6),
            deny in proptest::collection::vec((any::<u32>(), 1u8..=32), 0..6),
            addrs in proptest::collection::vec(any::<u32>(), 50),
        ) {
            let nets = |list: Vec<(u32, u8)>| list.into_iter().map(|(a, p)| IpNet::new(Ipv4Addr::from_bits(a).into(), p).unwrap()).collect();
            let p = AddressPolicy { allow: nets(allow), deny: nets(deny) };
            let permitted = p.permitted(&AddrSet::everything());
            for addr in addrs.into_iter().map(|a| IpAddr::V4(Ipv4Addr::from_bits(a))) {
                prop_assert_eq!(permitted.contains(addr), p.check(addr).is_allowed(), "{}", addr);
                prop_assert_eq!(Permit::all_of([&p]).permits(addr), p.check(addr).is_allowed());
            }
        }
    }
}
