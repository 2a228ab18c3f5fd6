//! The fleet's address policy applied to a job before anything is sent.
//!
//! The same policy travels, signed, in the job's spec and is applied again by each probe to each address; here the operator
//! is told beforehand. Pure.

use std::net::IpAddr;

use picket_wire::addr::AddrSet;
use picket_wire::policy::{self, AddressPolicy, Verdict};

use crate::view::RuleVerdict;

/// What the policy says of a set of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// How many addresses it permits.
    pub permitted: u128,
    /// How many it refuses.
    pub refused: u128,
    /// One that it refuses, and why.
    pub example: Option<String>,
    /// Every rule that decides anything, with how many addresses.
    pub rules: Vec<RuleVerdict>,
}

/// Judges all of `targets`.
pub fn judge(policy: &AddressPolicy, targets: &AddrSet) -> Judgement {
    let permitted = policy.permitted(targets);
    let refused = targets.minus(&permitted);
    let count = |set: &AddrSet| set.len().unwrap_or(u128::MAX);
    let judged = |addr: IpAddr| format!("{addr}: {}", policy.check(addr));
    let example = refused.ranges().next().map(|(first, _)| judged(first));
    // Whole sets are judged without regard to IPv4 addresses embedded in IPv6 ones; a few single addresses are judged fully.
    let singles = permitted.ranges().take(64).filter(|(first, last)| first == last).map(|(first, _)| first);
    let embedded: Vec<IpAddr> = singles.filter(|addr| !policy.check(*addr).is_allowed()).collect();
    let moved = embedded.len() as u128;
    Judgement {
        permitted: count(&permitted) - moved,
        refused: count(&refused).saturating_add(moved),
        example: example.or_else(|| embedded.first().map(|addr| judged(*addr))),
        rules: rules(policy, targets),
    }
}

/// What each rule decides, in the order in which rules are looked at: deny, allow, then what none of them holds.
fn rules(policy: &AddressPolicy, targets: &AddrSet) -> Vec<RuleVerdict> {
    let mut verdicts: Vec<RuleVerdict> = Vec::new();
    let mut add = |verdict: Verdict, addresses: &AddrSet| {
        let count = u64::try_from(addresses.len().unwrap_or(u128::MAX)).unwrap_or(u64::MAX);
        if count > 0 {
            verdicts.push(RuleVerdict { verdict: verdict.to_string(), allowed: verdict.is_allowed(), addresses: count });
        }
    };
    let mut left = targets.clone();
    for rule in &policy.deny {
        let net = AddrSet::from_nets([rule]);
        add(Verdict::Denied(*rule), &left.intersection(&net));
        left = left.minus(&net);
    }
    let mut permitted = policy.permitted(&left);
    left = left.minus(&permitted);
    for rule in &policy.allow {
        let net = AddrSet::from_nets([rule]);
        add(Verdict::Allowed(*rule), &permitted.intersection(&net));
        permitted = permitted.minus(&net);
    }
    for (what, range) in policy::special() {
        let net = AddrSet::from_nets([&range]);
        add(Verdict::Special(what, range), &left.intersection(&net));
        left = left.minus(&net);
    }
    add(Verdict::NotAllowed, &left);
    verdicts
}

#[cfg(test)]
mod tests {
    use picket_wire::addr::parse_set;

    use super::*;

    #[test]
    fn the_refused_part_is_counted_with_an_example() {
        let policy = AddressPolicy {
            allow: vec!["198.18.0.0/15".parse().unwrap(), "64:ff9b::/96".parse().unwrap()],
            deny: vec!["198.18.7.0/24".parse().unwrap()],
        };
        let judge = |text| judge(&policy, &parse_set(text).unwrap());
        let all = judge("198.18.0.0/24");
        assert_eq!((all.permitted, all.refused, all.example), (256, 0, None));
        let partly = judge("198.18.6.0/23");
        assert_eq!((partly.permitted, partly.refused), (256, 256));
        assert_eq!(partly.example.unwrap(), "198.18.7.0: denied by `deny 198.18.7.0/24`");
        assert_eq!(judge("192.0.2.1").permitted, 0);
        assert_eq!(judge("64:ff9b::198.18.7.1").example.unwrap(), "64:ff9b::c612:701: denied by `deny 198.18.7.0/24`");
    }

    #[test]
    fn every_rule_says_how_much_it_decides() {
        let policy = AddressPolicy {
            allow: vec!["198.18.0.0/16".parse().unwrap(), "198.18.0.0/15".parse().unwrap(), "0.0.0.0/0".parse().unwrap()],
            deny: vec!["198.18.7.0/24".parse().unwrap(), "198.18.7.0/25".parse().unwrap()],
        };
        let rules = |text: &str| {
            let judged = judge(&policy, &parse_set(text).unwrap());
            assert_eq!(judged.rules.iter().map(|rule| u128::from(rule.addresses)).sum::<u128>(), judged.permitted + judged.refused);
            judged.rules.iter().map(|rule| format!("{} {}", rule.addresses, rule.verdict)).collect::<Vec<_>>()
        };
        assert_eq!(
            rules("198.18.6.0/23 198.19.0.0-198.19.0.9 192.0.2.1 127.0.0.1-2 2001:db8::/120"),
            [
                "256 denied by `deny 198.18.7.0/24`",
                "256 allowed by `allow 198.18.0.0/16`",
                "10 allowed by `allow 198.18.0.0/15`",
                "1 allowed by `allow 0.0.0.0/0`",
                "2 denied: loopback addresses (127.0.0.0/8) must be allowed by a rule inside that range",
                "256 denied: no `allow` rule holds it",
            ]
        );
        assert_eq!(rules("0.0.0.0/0").len(), 3 + 1 + 5);
    }
}
