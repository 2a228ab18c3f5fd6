//! The target space: an indexable set of (address, port) pairs in a keyed order, never expanded into a list.
//!
//! A space has `len()` units. Three views of one unit:
//!
//! - **target**: the address, and the port where the job has ports;
//! - **index** `0..len`: its rank in natural order (addresses ascending, IPv4 first; ports ascending within an address);
//! - **position** `0..len`: its place in the order of sending, `index = permute(position)`.
//!
//! Leases and results speak in positions. Both sides compute the same order from the spec's seed, with random access in both
//! directions and in constant memory. Neighbours in time are strangers in address, so that no network or host gets a burst.
//!
//! A link that is discovered as a whole ([`TargetSpace::link`]) is one unit that has no target: what counts there is that the link
//! was asked. Its addresses are too many to be units, and the hosts that are found are told by address.
//!
//! The permutation is a Feistel network over the smallest power of two that holds the space, with cycle walking for values
//! that fall outside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). It spreads; it does not hide.
//!
//! **Invariant:** position to target is a bijection; exclusions are not part of the space and are counted apart.
//! **Invariant:** the order for a given seed never changes between versions: golden values in the tests freeze it.

use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::addr::{self, AddrSet};
use crate::job::Technique;
use crate::units::PortSet;

/// The most units one job may have: at a million packets per second it would take 35,000 years.
pub const MAX_LEN: u64 = 1 << 60;

/// Why a spec has no space.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// No address at all.
    #[error("no target is left: {included} addresses were named and all of them are excluded")]
    Empty {
        /// How many addresses were named before exclusions.
        included: u128,
    },
    /// Ports were asked for and none named.
    #[error("no port is named: use for example 22,80,443 or 1-1024")]
    NoPorts,
    /// More than [`MAX_LEN`] units.
    #[error("the targets are {addresses} addresses x {ports} ports: more than any job can reach (at most 2^60); name smaller networks")]
    TooLarge {
        /// How many addresses remain after exclusions, as text (it may not fit any integer).
        addresses: String,
        /// How many ports each.
        ports: u32,
    },
    /// IPv4 addresses are not found by link discovery.
    #[error("{0} is IPv4: link discovery finds IPv6 hosts; discover IPv4 networks address by address")]
    LinkV4(IpAddr),
    /// Where there are none to be.
    #[error("{0} is a target, and a capture has none: say by a filter which packets are wanted, such as `host {0}`")]
    Targets(IpAddr),
}

/// What to probe, as it stands in a job spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetSpec {
    /// The addresses asked for.
    pub include: AddrSet,
    /// Addresses taken out again.
    pub exclude: AddrSet,
    /// The ports of each address; `None` for measurements of a host as a whole.
    pub ports: Option<PortSet>,
    /// The key of the order.
    pub seed: u64,
}

/// One unit of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The address.
    pub addr: IpAddr,
    /// The port, where the job has ports.
    pub port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    v4: bool,
    first: u128,
    last: u128,
    /// How many addresses are in the runs before this one.
    before: u64,
}

/// The space of a [`TargetSpec`], ready for lookups in both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetSpace {
    runs: Vec<Run>,
    ports: Option<PortSet>,
    /// Ports per address; 1 where the job has none. 0 for a link, whose one unit has no target.
    width: u64,
    len: u64,
    excluded: u128,
    order: Permutation,
}

impl TargetSpace {
    /// Builds the space of a spec.
    pub fn new(spec: &TargetSpec) -> Result<Self, SpaceError> {
        let left = spec.include.minus(&spec.exclude);
        let width = match &spec.ports {
            None => 1,
            Some(ports) if ports.is_empty() => return Err(SpaceError::NoPorts),
            Some(ports) => u64::from(ports.len()),
        };
        let too_large =
            || SpaceError::TooLarge { addresses: left.len().map_or_else(|| "2^128".to_owned(), |n| n.to_string()), ports: width as u32 };
        let addresses = left.len().and_then(|n| u64::try_from(n).ok()).ok_or_else(too_large)?;
        let len = addresses.checked_mul(width).filter(|len| *len <= MAX_LEN).ok_or_else(too_large)?;
        if len == 0 {
            return Err(SpaceError::Empty { included: spec.include.len().unwrap_or(u128::MAX) });
        }
        let mut before = 0;
        let runs = left.numbers().map(|(v4, first, last)| {
            let run = Run { v4, first, last, before };
            before += (last - first + 1) as u64;
            run
        });
        let runs = runs.collect();
        let excluded = spec.include.intersection(&spec.exclude).len().unwrap_or(u128::MAX).saturating_mul(width.into());
        Ok(Self { runs, ports: spec.ports.clone(), width, len, excluded, order: Permutation::new(len, spec.seed) })
    }

    /// The space of a job by `technique`.
    ///
    /// # Errors
    /// See [`TargetSpace::new`], [`TargetSpace::link`] and [`TargetSpace::single`].
    pub fn of(technique: Technique, spec: &TargetSpec) -> Result<Self, SpaceError> {
        match technique {
            Technique::Link => Self::link(spec),
            Technique::Capture => Self::single(spec),
            _ => Self::new(spec),
        }
    }

    /// The space of a link that is discovered as a whole: one unit, without a target. The addresses of the spec, which may be more
    /// than any other space could have, say which hosts are wanted.
    ///
    /// # Errors
    /// When no address is left, or one is IPv4.
    pub fn link(spec: &TargetSpec) -> Result<Self, SpaceError> {
        let left = spec.include.minus(&spec.exclude);
        if let Some((first, _)) = left.ranges().find(|(first, _)| first.is_ipv4()) {
            return Err(SpaceError::LinkV4(first));
        }
        if left.is_empty() {
            return Err(SpaceError::Empty { included: spec.include.len().unwrap_or(u128::MAX) });
        }
        let runs = left.numbers().map(|(v4, first, last)| Run { v4, first, last, before: 0 }).collect();
        Ok(Self { runs, ports: None, width: 0, len: 1, excluded: 0, order: Permutation::new(1, spec.seed) })
    }

    /// The space of what has no targets: one unit.
    ///
    /// # Errors
    /// When there are targets.
    pub fn single(spec: &TargetSpec) -> Result<Self, SpaceError> {
        match spec.include.ranges().next() {
            Some((first, _)) => Err(SpaceError::Targets(first)),
            None => Ok(Self { runs: Vec::new(), ports: None, width: 0, len: 1, excluded: 0, order: Permutation::new(1, spec.seed) }),
        }
    }

    /// How many units; exact, at least 1.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A space is never empty; here for the sake of convention.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// How many addresses are units, or parts of one; none for a link.
    pub fn addresses(&self) -> u64 {
        self.len.checked_div(self.width).unwrap_or(0)
    }

    /// The ranges of addresses in order, IPv4 first.
    pub fn ranges(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> + '_ {
        self.runs.iter().map(|run| match run.v4 {
            true => (addr::v4(run.first), addr::v4(run.last)),
            false => (addr::v6(run.first), addr::v6(run.last)),
        })
    }

    /// How many units the exclusions took out (of those that were asked for).
    pub fn excluded(&self) -> u128 {
        self.excluded
    }

    /// The target at a position of the sending order.
    pub fn target(&self, position: u64) -> Option<Target> {
        (position < self.len && self.width > 0).then(|| self.at_index(self.order.forward(position)))
    }

    /// The position at which a target is sent, where it is in the space.
    pub fn position(&self, target: Target) -> Option<u64> {
        self.index(target).map(|index| self.order.backward(index))
    }

    /// The rank of a target in natural order, where it is in the space.
    pub fn index(&self, target: Target) -> Option<u64> {
        let port = match (&self.ports, target.port) {
            _ if self.width == 0 => return None,
            (None, None) => 0,
            (Some(ports), Some(port)) => u64::from(ports.rank(port)?),
            _ => return None,
        };
        let (v4, value) = match addr::canonical(target.addr) {
            IpAddr::V4(a) => (true, u128::from(a.to_bits())),
            IpAddr::V6(a) => (false, a.to_bits()),
        };
        // IPv4 runs come first; within a family they ascend.
        let after = self.runs.partition_point(|run| (run.v4 && !v4) || (run.v4 == v4 && run.first <= value));
        let run = self.runs.get(after.checked_sub(1)?)?;
        let inside = run.v4 == v4 && run.first <= value && value <= run.last;
        inside.then(|| (run.before + (value - run.first) as u64) * self.width + port)
    }

    /// The target of a rank in natural order.
    pub fn natural(&self, index: u64) -> Option<Target> {
        (index < self.len && self.width > 0).then(|| self.at_index(index))
    }

    /// The target of a natural rank. `index` must be below `len()`.
    fn at_index(&self, index: u64) -> Target {
        let (rank, port) = (index / self.width, index % self.width);
        let after = self.runs.partition_point(|run| run.before <= rank);
        // The first run starts at rank 0, so that there always is one at or before any rank.
        let run = &self.runs[after.saturating_sub(1)];
        let value = run.first + u128::from(rank - run.before);
        let addr = if run.v4 { addr::v4(value) } else { addr::v6(value) };
        Target { addr, port: self.ports.as_ref().and_then(|ports| ports.nth(port as u32)) }
    }
}

/// A keyed bijection of `0..len`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Permutation {
    len: u64,
    /// Bits of the right half; the left one has `bits - right`.
    right: u32,
    left_mask: u64,
    right_mask: u64,
    keys: [u64; ROUNDS],
}

/// Each half is mixed into the other three times: fewer leave visible stripes in small spaces.
const ROUNDS: usize = 6;

fn mix(value: u64) -> u64 {
    // The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Permutation {
    fn new(len: u64, seed: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let right = bits.div_ceil(2);
        let mut state = seed;
        let keys = [(); ROUNDS].map(|()| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(state)
        });
        Self { len, right, left_mask: (1 << (bits - right)) - 1, right_mask: (1 << right) - 1, keys }
    }

    /// One multiplication and two shifts suffice: the keys are well mixed and the outcome only has to look unordered.
    #[inline]
    fn round(half: u64, key: u64) -> u64 {
        let product = (half ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (product ^ (product >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
    }

    #[inline]
    fn forward(&self, position: u64) -> u64 {
        let mut value = position;
        loop {
            let (mut left, mut right) = (value >> self.right, value & self.right_mask);
            for pair in self.keys.chunks_exact(2) {
                left ^= Self::round(right, pair[0]) & self.left_mask;
                right ^= Self::round(left, pair[1]) & self.right_mask;
            }
            value = (left << self.right) | right;
            if value < self.len {
                return value;
            }
        }
    }

    fn backward(&self, index: u64) -> u64 {
        let mut value = index;
        loop {
            let (mut left, mut right) = (value >> self.right, value & self.right_mask);
            for pair in self.keys.chunks_exact(2).rev() {
                right ^= Self::round(left, pair[1]) & self.right_mask;
                left ^= Self::round(right, pair[0]) & self.left_mask;
            }
            value = (left << self.right) | right;
            if value < self.len {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::addr::parse_set;

    fn spec(include: &str, exclude: &str, ports: Option<&str>, seed: u64) -> TargetSpec {
        TargetSpec {
            include: parse_set(include).unwrap(),
            exclude: parse_set(exclude).unwrap(),
            ports: ports.map(|ports| ports.parse().unwrap()),
            seed,
        }
    }

    #[test]
    fn every_target_comes_once() {
        let space =
            TargetSpace::new(&spec("198.18.0.0/24,2001:db8::/120,198.18.0.9", "198.18.0.128/25", Some("22,80,8000-8002"), 7)).unwrap();
        assert_eq!((space.len(), space.addresses(), space.excluded()), ((128 + 256) * 5, 384, 128 * 5));
        let seen: HashSet<Target> = (0..space.len()).map(|p| space.target(p).unwrap()).collect();
        assert_eq!(seen.len() as u64, space.len());
        assert!(seen.iter().all(|t| t.addr < "198.18.0.128".parse::<IpAddr>().unwrap() || t.addr.is_ipv6()));
        assert_eq!(space.target(space.len()), None);
    }

    #[test]
    fn what_is_not_in_the_space_has_no_position() {
        let space = TargetSpace::new(&spec("198.18.0.0/30,2001:db8::1", "198.18.0.2", Some("80"), 1)).unwrap();
        let at = |addr: &str, port| space.position(Target { addr: addr.parse().unwrap(), port });
        assert!(at("198.18.0.1", Some(80)).is_some() && at("::ffff:198.18.0.1", Some(80)).is_some());
        for (addr, port) in [
            ("198.18.0.2", Some(80)),
            ("198.18.0.4", Some(80)),
            ("198.17.255.255", Some(80)),
            ("198.18.0.1", Some(81)),
            ("198.18.0.1", None),
            ("2001:db8::2", Some(80)),
            ("2001:db8::", Some(80)),
            ("::", Some(80)),
            ("0.0.0.0", Some(80)),
        ] {
            assert_eq!(at(addr, port), None, "{addr} {port:?}");
        }
    }

    #[test]
    fn impossible_spaces_are_refused_with_their_size() {
        let error = |include, exclude, ports| TargetSpace::new(&spec(include, exclude, ports, 0)).unwrap_err().to_string();
        assert_eq!(error("198.18.0.0/31", "198.18.0.0/30", None), "no target is left: 2 addresses were named and all of them are excluded");
        assert!(error("2001:db8::/64", "", Some("80")).contains("18446744073709551616 addresses x 1 ports"));
        assert!(error("::/0", "", None).contains("2^128"));
    }

    #[test]
    fn a_link_is_one_unit_without_a_target() {
        let link = |include, exclude| TargetSpace::of(Technique::Link, &spec(include, exclude, None, 3));
        let space = link("2001:db8::/64,fe80::/64", "2001:db8::5").unwrap();
        assert_eq!((space.len(), space.addresses(), space.excluded()), (1, 0, 0));
        assert_eq!((space.target(0), space.natural(0)), (None, None));
        assert_eq!(space.position(Target { addr: "2001:db8::1".parse().unwrap(), port: None }), None);
        let ranges: Vec<(IpAddr, IpAddr)> = space.ranges().collect();
        assert_eq!(ranges.len(), 3, "{ranges:?}");
        assert!(link("::/0", "").is_ok(), "whatever is there");
        assert!(link("2001:db8::/64,198.18.0.0/24", "").unwrap_err().to_string().starts_with("198.18.0.0 is IPv4"));
        assert!(matches!(link("2001:db8::/64", "2001:db8::/32"), Err(SpaceError::Empty { .. })));
    }

    #[test]
    fn neighbours_in_time_are_strangers_in_address() {
        let space = TargetSpace::new(&spec("198.18.0.0/16", "", Some("1-16"), 99)).unwrap();
        let addr = |position| match space.target(position).unwrap().addr {
            IpAddr::V4(a) => a.to_bits(),
            IpAddr::V6(_) => unreachable!("the spec has IPv4 only"),
        };
        let close = (0..100_000).filter(|p| addr(*p) >> 8 == addr(p + 1) >> 8).count();
        // By chance one pair in 256 shares its /24: 390 of 100,000.
        assert!((250..550).contains(&close), "{close} of 100000 neighbours share a /24");
    }

    #[test]
    fn the_order_is_frozen() {
        let sample = |len, seed| -> Vec<u64> { (0..6).map(|p| Permutation::new(len, seed).forward(p)).collect() };
        assert_eq!(sample(1000, 1), GOLDEN_SMALL);
        assert_eq!(sample(1 << 44, 0xfeed), GOLDEN_LARGE);
    }

    const GOLDEN_SMALL: [u64; 6] = [406, 527, 701, 567, 859, 431];
    const GOLDEN_LARGE: [u64; 6] =
        [13_124_170_308_775, 9_517_322_811_961, 2_781_423_691_432, 16_383_588_946_745, 15_653_812_778_651, 12_620_953_079_519];

    proptest! {
        #[test]
        fn permutation_is_a_bijection(len in 1u64..3000, seed in any::<u64>()) {
            let order = Permutation::new(len, seed);
            let mut seen = vec![false; len as usize];
            for position in 0..len {
                let index = order.forward(position);
                prop_assert!(index < len && !seen[index as usize]);
                seen[index as usize] = true;
                prop_assert_eq!(order.backward(index), position);
            }
        }

        #[test]
        fn large_permutations_invert(len in (1u64 << 40)..=MAX_LEN, seed in any::<u64>(), at in any::<u64>()) {
            let order = Permutation::new(len, seed);
            let position = at % len;
            let index = order.forward(position);
            prop_assert!(index < len);
            prop_assert_eq!(order.backward(index), position);
        }

        #[test]
        fn large_spaces_round_trip(bits in 81u8..=100, ports in 1u16..2000, seed in any::<u64>(), at in any::<u64>()) {
            let mut spec = spec(&format!("2001:db8::/{bits},10.0.0.0/8"), "10.5.0.0/16,2001:db8::1:0/112", None, seed);
            spec.ports = Some(PortSet::from_ranges([(1, ports)]));
            let space = TargetSpace::new(&spec).unwrap();
            let position = at % space.len();
            let target = space.target(position).unwrap();
            prop_assert!(!spec.exclude.contains(target.addr) && spec.include.contains(target.addr));
            prop_assert_eq!(space.position(target), Some(position));
        }
    }
}
