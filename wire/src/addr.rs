//! Address sets: networks and ranges of both families, as people write them and as interval arithmetic needs them.
//!
//! Sets are kept as sorted disjoint ranges, one list per family, so that a /8 or an IPv6 prefix costs one entry.
//!
//! **Invariant:** an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) never appears: it is IPv4 from the door on.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an address, a network or a range. The message names the input and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    /// Not an address in any form; names are resolved elsewhere.
    #[error("`{0}` is not an address, a network or a range: use for example 198.18.0.7, 198.18.0.0/24, 198.18.0.1-50 or 2001:db8::/64")]
    Form(String),
    /// The prefix length does not fit the family.
    #[error("`{input}` has no such prefix length: {family} networks go from /0 to /{max}")]
    PrefixLength {
        /// The refused text.
        input: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The longest prefix of the family.
        max: u8,
    },
    /// The end is before the start.
    #[error("range `{0}` ends before it starts")]
    Order(String),
    /// One end is IPv4, the other IPv6.
    #[error("range `{0}` mixes IPv4 and IPv6")]
    Mixed(String),
}

/// IPv4 for an IPv4-mapped IPv6 address, else the address itself.
pub fn canonical(addr: IpAddr) -> IpAddr {
    addr.to_canonical()
}

/// A network in CIDR notation; host bits are cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(IpAddr, u8)", into = "(IpAddr, u8)")]
pub struct IpNet {
    addr: IpAddr,
    prefix: u8,
}

impl IpNet {
    /// The network of `addr` with `prefix` bits; `None` where the prefix is too long for the family.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Self> {
        match addr {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32u32.checked_sub(prefix.into())?).unwrap_or(0);
                Some(Self { addr: Ipv4Addr::from_bits(v4.to_bits() & mask).into(), prefix })
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128u32.checked_sub(prefix.into())?).unwrap_or(0);
                let net = Ipv6Addr::from_bits(v6.to_bits() & mask);
                match (net.to_ipv4_mapped(), prefix.checked_sub(96)) {
                    (Some(v4), Some(prefix)) => Self::new(v4.into(), prefix),
                    _ => Some(Self { addr: net.into(), prefix }),
                }
            }
        }
    }

    /// The network of this one address.
    pub fn host(addr: IpAddr) -> Self {
        let addr = canonical(addr);
        Self { addr, prefix: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// The first address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The prefix length in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `addr` lies inside; IPv4-mapped IPv6 addresses count as IPv4.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let addr = canonical(addr);
        addr.is_ipv4() == self.addr.is_ipv4() && IpNet::new(addr, self.prefix) == Some(*self)
    }

    /// First and last address as numbers.
    fn bounds(&self) -> (u128, u128) {
        match self.addr {
            IpAddr::V4(v4) => {
                let first = u128::from(v4.to_bits());
                (first, first + ((1u128 << (32 - self.prefix)) - 1))
            }
            IpAddr::V6(v6) => {
                let span = u128::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                (v6.to_bits(), v6.to_bits() | span)
            }
        }
    }
}

impl TryFrom<(IpAddr, u8)> for IpNet {
    type Error = AddrError;
    fn try_from((addr, prefix): (IpAddr, u8)) -> Result<Self, AddrError> {
        IpNet::new(addr, prefix).ok_or_else(|| prefix_error(&format!("{addr}/{prefix}"), addr))
    }
}

impl From<IpNet> for (IpAddr, u8) {
    fn from(net: IpNet) -> Self {
        (net.addr, net.prefix)
    }
}

fn prefix_error(input: &str, addr: IpAddr) -> AddrError {
    let (family, max) = if addr.is_ipv4() { ("IPv4", 32) } else { ("IPv6", 128) };
    AddrError::PrefixLength { input: input.to_owned(), family, max }
}

impl FromStr for IpNet {
    type Err = AddrError;
    fn from_str(text: &str) -> Result<Self, AddrError> {
        let form = || AddrError::Form(text.to_owned());
        let Some((addr, prefix)) = text.split_once('/') else {
            return Ok(Self::host(text.parse().map_err(|_| form())?));
        };
        let addr: IpAddr = addr.parse().map_err(|_| form())?;
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(form());
        }
        prefix.parse().ok().and_then(|prefix| Self::new(addr, prefix)).ok_or_else(|| prefix_error(text, addr))
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.addr, self.prefix) {
            (IpAddr::V4(addr), 32) => write!(f, "{addr}"),
            (IpAddr::V6(addr), 128) => write!(f, "{addr}"),
            (addr, prefix) => write!(f, "{addr}/{prefix}"),
        }
    }
}

/// Sorted disjoint inclusive ranges of numbers: one family's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Ranges(Vec<(u128, u128)>);

impl Ranges {
    fn normalise(&mut self) {
        self.0.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(self.0.len());
        for &(first, last) in &self.0 {
            match merged.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        self.0 = merged;
    }

    fn minus(&self, other: &Ranges) -> Ranges {
        let mut left = Vec::new();
        let mut holes = other.0.iter().peekable();
        for &(first, last) in &self.0 {
            let mut start = Some(first);
            // Holes are sorted, and one may reach into the next range: it is only skipped when it ends before this one.
            while let Some(&&(hole_first, hole_last)) = holes.peek() {
                let Some(from) = start else { break };
                if hole_last < from {
                    holes.next();
                    continue;
                }
                if hole_first > last {
                    break;
                }
                if hole_first > from {
                    left.push((from, hole_first - 1));
                }
                start = (hole_last < last).then(|| hole_last + 1);
                if hole_last <= last {
                    holes.next();
                }
            }
            if let Some(from) = start {
                left.push((from, last));
            }
        }
        Ranges(left)
    }

    fn len(&self) -> Option<u128> {
        self.0.iter().try_fold(0u128, |sum, (first, last)| sum.checked_add((last - first).checked_add(1)?))
    }
}

/// A set of addresses of both families.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<(IpAddr, IpAddr)>", into = "Vec<(IpAddr, IpAddr)>")]
pub struct AddrSet {
    v4: Ranges,
    v6: Ranges,
}

impl AddrSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every address of both families.
    pub fn everything() -> Self {
        Self { v4: Ranges(vec![(0, u128::from(u32::MAX))]), v6: Ranges(vec![(0, u128::MAX)]) }
    }

    /// The union of networks.
    pub fn from_nets<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut set = Self::default();
        for net in nets {
            set.list(net.addr).0.push(net.bounds());
        }
        set.normalise();
        set
    }

    fn list(&mut self, family: IpAddr) -> &mut Ranges {
        if family.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }

    fn normalise(&mut self) {
        self.v4.normalise();
        self.v6.normalise();
    }

    /// Adds everything from `first` to `last`.
    pub fn insert_range(&mut self, first: IpAddr, last: IpAddr) -> Result<(), AddrError> {
        let (first, last) = (canonical(first), canonical(last));
        let (low, high) = match (first, last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits())),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits()),
            _ => return Err(AddrError::Mixed(format!("{first}-{last}"))),
        };
        if low > high {
            return Err(AddrError::Order(format!("{first}-{last}")));
        }
        self.list(first).0.push((low, high));
        self.normalise();
        Ok(())
    }

    /// Everything that is in either set.
    pub fn union(&self, other: &AddrSet) -> AddrSet {
        let mut both = self.clone();
        both.v4.0.extend(&other.v4.0);
        both.v6.0.extend(&other.v6.0);
        both.normalise();
        both
    }

    /// Everything that is here and not in `other`.
    pub fn minus(&self, other: &AddrSet) -> AddrSet {
        AddrSet { v4: self.v4.minus(&other.v4), v6: self.v6.minus(&other.v6) }
    }

    /// Everything that is in both sets.
    pub fn intersection(&self, other: &AddrSet) -> AddrSet {
        self.minus(&self.minus(other))
    }

    /// How many addresses; `None` where the number does not fit 128 bits.
    pub fn len(&self) -> Option<u128> {
        self.v4.len()?.checked_add(self.v6.len()?)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.v4.0.is_empty() && self.v6.0.is_empty()
    }

    /// Whether `addr` is in the set; IPv4-mapped IPv6 addresses count as IPv4.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let (ranges, value) = match canonical(addr) {
            IpAddr::V4(v4) => (&self.v4.0, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (&self.v6.0, v6.to_bits()),
        };
        let after = ranges.partition_point(|(first, _)| *first <= value);
        after > 0 && ranges.get(after - 1).is_some_and(|(_, last)| value <= *last)
    }

    /// Whether any IPv4 / IPv6 address is in the set.
    pub fn families(&self) -> (bool, bool) {
        (!self.v4.0.is_empty(), !self.v6.0.is_empty())
    }

    /// The ranges in order, IPv4 first.
    pub fn ranges(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> + '_ {
        self.v4.0.iter().map(|&(a, b)| (v4(a), v4(b))).chain(self.v6.0.iter().map(|&(a, b)| (v6(a), v6(b))))
    }

    /// The ranges as numbers, each with its family (`true` for IPv4), IPv4 first.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = (bool, u128, u128)> + '_ {
        self.v4.0.iter().map(|&(a, b)| (true, a, b)).chain(self.v6.0.iter().map(|&(a, b)| (false, a, b)))
    }
}

pub(crate) fn v4(value: u128) -> IpAddr {
    Ipv4Addr::from_bits(value as u32).into()
}

pub(crate) fn v6(value: u128) -> IpAddr {
    Ipv6Addr::from_bits(value).into()
}

impl TryFrom<Vec<(IpAddr, IpAddr)>> for AddrSet {
    type Error = AddrError;
    fn try_from(ranges: Vec<(IpAddr, IpAddr)>) -> Result<Self, AddrError> {
        let mut set = Self::default();
        for (first, last) in ranges {
            // Adding to the end is linear where the ranges come sorted, as encoded sets do.
            let (low, high) = match (canonical(first), canonical(last)) {
                (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits())),
                (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits()),
                _ => return Err(AddrError::Mixed(format!("{first}-{last}"))),
            };
            if low > high {
                return Err(AddrError::Order(format!("{first}-{last}")));
            }
            set.list(canonical(first)).0.push((low, high));
        }
        set.normalise();
        Ok(set)
    }
}

impl From<AddrSet> for Vec<(IpAddr, IpAddr)> {
    fn from(set: AddrSet) -> Self {
        set.ranges().collect()
    }
}

/// One item as people type it: an address, a network, a full range `A-B`, or an IPv4 range over the last octet `A.B.C.1-50`.
///
/// Host bits in a network are cleared (`198.18.0.7/24` is the whole /24, as every scanner reads it); `/33` is refused.
pub fn parse_item(text: &str) -> Result<(IpAddr, IpAddr), AddrError> {
    let form = || AddrError::Form(text.to_owned());
    let bounded = |first: IpAddr, last: IpAddr| match (first, last) {
        (a, b) if a.is_ipv4() != b.is_ipv4() => Err(AddrError::Mixed(text.to_owned())),
        (a, b) if a > b => Err(AddrError::Order(text.to_owned())),
        (a, b) => Ok((a, b)),
    };
    if let Some((first, last)) = text.split_once('-') {
        let first: IpAddr = first.parse().map(canonical).map_err(|_| form())?;
        if let (IpAddr::V4(v4), true) = (first, !last.is_empty() && last.len() <= 3 && last.bytes().all(|b| b.is_ascii_digit())) {
            let octet: u8 = last.parse().map_err(|_| form())?;
            let [a, b, c, _] = v4.octets();
            return bounded(first, Ipv4Addr::new(a, b, c, octet).into());
        }
        return bounded(first, last.parse().map(canonical).map_err(|_| form())?);
    }
    let net: IpNet = text.parse()?;
    let (first, last) = net.bounds();
    Ok(if net.addr.is_ipv4() { (v4(first), v4(last)) } else { (v6(first), v6(last)) })
}

/// The set of all items in a text, separated by commas or white space.
pub fn parse_set(text: &str) -> Result<AddrSet, AddrError> {
    let items = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|item| !item.is_empty());
    items.map(parse_item).collect::<Result<Vec<_>, _>>()?.try_into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn items_as_people_type_them() {
        for (text, first, last) in [
            ("198.18.0.7", "198.18.0.7", "198.18.0.7"),
            ("198.18.0.7/24", "198.18.0.0", "198.18.0.255"),
            ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
            ("198.18.0.1-50", "198.18.0.1", "198.18.0.50"),
            ("198.18.0.1-198.18.3.9", "198.18.0.1", "198.18.3.9"),
            ("2001:db8::/126", "2001:db8::", "2001:db8::3"),
            ("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("2001:db8::1-2001:db8::f", "2001:db8::1", "2001:db8::f"),
            ("::ffff:198.18.0.7", "198.18.0.7", "198.18.0.7"),
            ("::ffff:198.18.0.0/120", "198.18.0.0", "198.18.0.255"),
        ] {
            assert_eq!(parse_item(text), Ok((ip(first), ip(last))), "{text}");
        }
    }

    #[test]
    fn wrong_items_say_what_is_wrong() {
        for (text, message) in [
            ("198.18.0.0/33", "`198.18.0.0/33` has no such prefix length: IPv4 networks go from /0 to /32"),
            ("2001:db8::/129", "`2001:db8::/129` has no such prefix length: IPv6 networks go from /0 to /128"),
            ("198.18.0.9-3", "range `198.18.0.9-3` ends before it starts"),
            ("198.18.0.9-2001:db8::1", "range `198.18.0.9-2001:db8::1` mixes IPv4 and IPv6"),
        ] {
            assert_eq!(parse_item(text).unwrap_err().to_string(), message);
        }
        for bad in [
            "",
            "198.18.0",
            "198.18.0.256",
            "198.18.0.1-256",
            "198.18.0.0/",
            "198.18.0.0/-1",
            "host",
            "198.18.0.0/8/9",
            "1.2.3.4-",
            "::1%eth0",
        ] {
            assert!(parse_item(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn containment_sees_through_mapped_addresses() {
        let net: IpNet = "198.18.0.0/15".parse().unwrap();
        assert!(net.contains(ip("198.19.255.255")) && net.contains(ip("::ffff:198.18.0.1")));
        assert!(!net.contains(ip("198.20.0.0")) && !net.contains(ip("::198.18.0.1")));
        let all6: IpNet = "::/0".parse().unwrap();
        assert!(all6.contains(ip("2001:db8::1")) && !all6.contains(ip("::ffff:1.2.3.4")));
    }

    fn small_set() -> impl Strategy<Value = AddrSet> {
        proptest::collection::vec((0u32..300, 0u32..40), 0..12).prop_map(|items| {
            let mut set = AddrSet::new();
            for (first, len) in items {
                set.insert_range(v4(first.into()), v4((first + len).into())).unwrap();
            }
            set
        })
    }

    proptest! {
        #[test]
        fn set_arithmetic_agrees_with_membership(a in small_set(), b in small_set()) {
            let (minus, both, either) = (a.minus(&b), a.intersection(&b), a.union(&b));
            for value in 0..360u128 {
                let addr = v4(value);
                let (in_a, in_b) = (a.contains(addr), b.contains(addr));
                prop_assert_eq!(minus.contains(addr), in_a && !in_b);
                prop_assert_eq!(both.contains(addr), in_a && in_b);
                prop_assert_eq!(either.contains(addr), in_a || in_b);
            }
            prop_assert_eq!(minus.len().unwrap() + both.len().unwrap(), a.len().unwrap());
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,40}") {
            let _ = parse_set(&text);
        }
    }
}
