//! Fleet and site policy together, made ready for the packet path.
//!
//! [`AddressPolicy::check`] explains; a packet only needs yes or no, some hundred thousand times a second.
//!
//! **Invariant:** [`PolicyGate::permits`] says yes exactly where every one of its policies does.

use std::net::IpAddr;

use picket_wire::addr::AddrSet;
use picket_wire::policy::{AddressPolicy, Verdict};

use crate::net::drive::Gate;

/// Policies that must all permit.
#[derive(Debug, Clone)]
pub struct PolicyGate {
    policies: Vec<AddressPolicy>,
    permitted: AddrSet,
}

impl PolicyGate {
    /// The gate of these policies; of none, everything passes.
    pub fn new(policies: impl IntoIterator<Item = AddressPolicy>) -> Self {
        let policies: Vec<_> = policies.into_iter().collect();
        let permitted = policies.iter().fold(AddrSet::everything(), |set, policy| policy.permitted(&set));
        Self { policies, permitted }
    }

    /// Whether packets may go to `addr`.
    pub fn permits(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        self.permitted.contains(addr) && (!may_embed(addr) || self.refusal(addr).is_none())
    }

    /// The verdict of the first policy that forbids `addr`.
    pub fn refusal(&self, addr: IpAddr) -> Option<Verdict> {
        self.policies.iter().map(|policy| policy.check(addr)).find(|verdict| !verdict.is_allowed())
    }

    /// The permitted part of a set, as far as whole ranges tell it.
    pub fn permitted(&self, set: &AddrSet) -> AddrSet {
        set.intersection(&self.permitted)
    }
}

impl Gate for PolicyGate {
    fn permits(&self, dst: IpAddr) -> bool {
        PolicyGate::permits(self, dst)
    }
}

/// Whether the address may carry an IPv4 address that a translator would send to (6to4, NAT64): those are judged one by one.
fn may_embed(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if matches!(v6.segments(), [0x2002, ..] | [0x64, 0xff9b, ..]))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use picket_wire::addr::IpNet;
    use proptest::prelude::*;

    use super::*;

    fn policy(allow: &[&str], deny: &[&str]) -> AddressPolicy {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        AddressPolicy { allow: nets(allow), deny: nets(deny) }
    }

    fn policies() -> [AddressPolicy; 2] {
        [
            policy(&["0.0.0.0/0", "2000::/3", "64:ff9b::/96", "127.0.0.0/8"], &["198.18.7.0/24"]),
            policy(&["198.18.0.0/15", "::/0"], &["2001:db8:bad::/48"]),
        ]
    }

    #[test]
    fn both_must_permit() {
        let gate = PolicyGate::new(policies());
        for (addr, yes) in [
            ("198.18.0.1", true),
            ("::ffff:198.18.0.1", true),
            ("198.18.7.1", false),
            ("::ffff:198.18.7.1", false),
            ("192.0.2.1", false),
            ("127.0.0.1", false),
            ("2001:db8::1", true),
            ("2001:db8:bad::1", false),
            ("2002:c612:0001::1", true),
            ("2002:c612:0701::1", false),
            ("64:ff9b::198.18.7.1", false),
        ] {
            assert_eq!(gate.permits(addr.parse().unwrap()), yes, "{addr}");
        }
        assert_eq!(gate.refusal("198.18.7.1".parse().unwrap()).unwrap().to_string(), "denied by `deny 198.18.7.0/24`");
        assert_eq!(gate.permitted(&AddrSet::from_nets(&["198.18.6.0/23".parse::<IpNet>().unwrap()])).len(), Some(256));
    }

    proptest! {
        #[test]
        fn the_gate_says_what_the_policies_say(bits: u128, kind in 0u8..4) {
            let addr: IpAddr = match kind {
                0 => Ipv4Addr::from_bits(bits as u32).into(),
                1 => Ipv4Addr::from_bits(0xc612_0000 | bits as u32 & 0x1_ffff).into(),
                2 => Ipv6Addr::from_bits(0x2002 << 112 | bits >> 16).into(),
                _ => Ipv6Addr::from_bits(bits).into(),
            };
            let expected = policies().iter().all(|policy| policy.check(addr).is_allowed());
            prop_assert_eq!(PolicyGate::new(policies()).permits(addr), expected, "{}", addr);
        }
    }
}
