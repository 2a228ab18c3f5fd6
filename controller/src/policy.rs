//! The fleet's address policy applied to a job before anything is sent.
//!
//! The same policy travels, signed, in the job's spec and is applied again by each probe to each address; here the operator
//! is told beforehand. Pure.

use std::net::IpAddr;

use picket_wire::addr::AddrSet;
use picket_wire::policy::AddressPolicy;

/// What the policy says of a set of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// How many addresses it permits.
    pub permitted: u128,
    /// How many it refuses.
    pub refused: u128,
    /// One that it refuses, and why.
    pub example: Option<String>,
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
    }
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
        assert_eq!(judge("198.18.0.0/24"), Judgement { permitted: 256, refused: 0, example: None });
        let partly = judge("198.18.6.0/23");
        assert_eq!((partly.permitted, partly.refused), (256, 256));
        assert_eq!(partly.example.unwrap(), "198.18.7.0: denied by `deny 198.18.7.0/24`");
        assert_eq!(judge("192.0.2.1").permitted, 0);
        assert_eq!(judge("64:ff9b::198.18.7.1").example.unwrap(), "64:ff9b::c612:701: denied by `deny 198.18.7.0/24`");
    }
}
