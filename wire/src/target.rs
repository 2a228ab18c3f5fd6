//! Targets as people type them: networks, octet patterns, full ranges and host names.
//!
//! The forms are those of Nmap's command line, where they have one meaning: `198.18.0.0/24`, `198.18.0-3.1,7,9-`, `198.18.*.1`,
//! `printer.lan`, `printer.lan/24`, `2001:db8::/120`; besides them full ranges, `198.18.0.9-198.18.1.3`. Where other scanners guess
//! (`/33`, `1.2.3`, `010.1.1.1`, an octet range that runs backwards), the text is refused with what is wrong.
//!
//! Names are left to the caller, who can resolve them. IPv6 has no octet patterns: a range names both ends in full.
//!
//! **Invariant:** a pattern costs one range for each gap in it, never one entry for each address, and at most [`RANGES_MAX`].

use core::fmt;
use core::net::{IpAddr, Ipv4Addr};
use core::str::FromStr;

use crate::addr::{AddrError, AddrSet, IpNet, canonical};
use crate::job::SWEEP_MAX;

/// Most separate ranges that one pattern may stand for: `*.1.1.1` is 256, `*.*.1.1` is 65,536.
pub const RANGES_MAX: usize = 65_536;

/// Why a text is not a target. The message names the input, what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not a target in any form.
    #[error(
        "`{0}` is not an address, a network, a range or a name: use for example 198.18.0.7, 198.18.0.0/24, 198.18.0-3.1,7,9-, \
         2001:db8::/120 or printer.lan"
    )]
    Form(String),
    /// Too few or too many parts between dots.
    #[error("`{input}` has {octets} octets: an IPv4 address has 4, none may be left out")]
    Octets {
        /// The refused text.
        input: String,
        /// How many it has.
        octets: usize,
    },
    /// A part between dots that is no number from 0 to 255, list or range of them.
    #[error("`{octet}` in `{input}` is not an octet: use 0 to 255, lists such as 1,7,9, ranges such as 1-50 or 9-, or * for all")]
    Octet {
        /// The refused text.
        input: String,
        /// The part that is wrong.
        octet: String,
    },
    /// Some programs read such a number as octal, others as decimal.
    #[error("`{octet}` in `{input}` begins with a zero, which some read as octal: write `{plain}` if it is decimal")]
    LeadingZero {
        /// The refused text.
        input: String,
        /// The part that is wrong.
        octet: String,
        /// The same without zeros.
        plain: String,
    },
    /// A range of octets whose end is before its start.
    #[error("`{range}` in `{input}` ends before it starts: did you mean the other way round?")]
    OctetOrder {
        /// The refused text.
        input: String,
        /// The range.
        range: String,
    },
    /// An octet pattern with too many gaps.
    #[error("`{input}` is {ranges} separate ranges, more than the {RANGES_MAX} that one item may have: name networks, or fewer lists")]
    Scattered {
        /// The refused text.
        input: String,
        /// How many ranges it would be.
        ranges: usize,
    },
    /// A range of IPv6 addresses that does not name both ends.
    #[error("`{0}` does not name both ends of the range: write the last address in full, such as 2001:db8::1-2001:db8::f")]
    HalfRange(String),
    /// An address with an interface.
    #[error("`{0}` names an interface: leave out what follows %, a probe measures on its own interface")]
    Scope(String),
    /// A range and a prefix length at the same time.
    #[error("`{0}` has both a range and a prefix length: use one of them")]
    RangeAndPrefix(String),
    /// An IPv6 network that would hold all of IPv4.
    #[error("`{0}` is wider than the IPv4-mapped addresses that it begins in: use a prefix length from /96 to /128, or write it as IPv4")]
    WiderThanMapped(String),
    /// A name where only addresses make sense.
    #[error("`{0}` is a name, and only addresses are possible here")]
    Name(String),
    /// What is wrong with an address, a network or a full range.
    #[error(transparent)]
    Address(#[from] AddrError),
}

/// A host name (RFC 1123), in lower case, without the dot at its end; underscores are let through as resolvers do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

impl HostName {
    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = TargetError;
    fn from_str(text: &str) -> Result<Self, TargetError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            !label.is_empty() && label.len() <= 63 && plain && !label.starts_with('-') && !label.ends_with('-')
        };
        match name.len() <= 253 && name.split('.').all(label) && !looks_numeric(name) {
            true => Ok(Self(name.to_ascii_lowercase())),
            false => Err(TargetError::Form(text.to_owned())),
        }
    }
}

/// Whether it is rather a mistyped address, or a number that resolvers take for one (`0x7f000001`): that is asked of no name server.
fn looks_numeric(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.to_ascii_lowercase().strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
    let lettered = last.bytes().any(|b| b.is_ascii_alphabetic());
    hexadecimal || !lettered || (name.contains('.') && last.starts_with(|c: char| c.is_ascii_digit()))
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One item of a list of targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetItem {
    /// Addresses.
    Set(AddrSet),
    /// A name: all of its addresses are meant.
    Name(HostName),
    /// A name and a prefix length: the networks of that size around its addresses, see [`around`].
    NamePrefix(HostName, u8),
}

impl TargetItem {
    /// Whether it is an IPv6 network of so many addresses that its hosts are found only by whoever is on its link.
    pub fn is_a_link(&self) -> bool {
        let size = |first: IpAddr, last: IpAddr| match (first, last) {
            (IpAddr::V6(first), IpAddr::V6(last)) => (last.to_bits() - first.to_bits()).saturating_add(1),
            _ => 0,
        };
        match self {
            TargetItem::Set(set) => set.ranges().any(|(first, last)| size(first, last) > SWEEP_MAX),
            TargetItem::Name(_) => false,
            // Networks up to /32 are those of IPv4, see [`around`].
            TargetItem::NamePrefix(_, bits) => (33..128).contains(bits) && 1_u128 << (128 - bits) > SWEEP_MAX,
        }
    }
}

impl FromStr for TargetItem {
    type Err = TargetError;
    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (body, prefix) = split_prefix(text)?;
        if body.contains([':', '%']) {
            return v6_item(text, body, prefix).map(TargetItem::Set);
        }
        if !body.is_empty() && body.bytes().all(is_pattern_byte) {
            return v4_item(text, body, prefix).map(TargetItem::Set);
        }
        let name: HostName = body.parse().map_err(|_| TargetError::Form(text.to_owned()))?;
        Ok(match prefix {
            None => TargetItem::Name(name),
            Some(bits) => TargetItem::NamePrefix(name, bits),
        })
    }
}

fn is_pattern_byte(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'.' | b',' | b'-' | b'*')
}

/// The text before a slash and the prefix length behind it, at most 128.
fn split_prefix(text: &str) -> Result<(&str, Option<u8>), TargetError> {
    let Some((body, digits)) = text.split_once('/') else { return Ok((text, None)) };
    let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    if !number {
        return Err(TargetError::Form(text.to_owned()));
    }
    let (family, max) = if body.contains(':') { ("IPv6", 128) } else { ("IPv4", 32) };
    // A name may have addresses of either family.
    let limit = if body.bytes().any(|b| b.is_ascii_alphabetic()) { 128 } else { max };
    match digits.parse() {
        Ok(bits) if bits <= limit => Ok((body, Some(bits))),
        _ => Err(AddrError::PrefixLength { input: text.to_owned(), family, max }.into()),
    }
}

fn v6_item(text: &str, body: &str, prefix: Option<u8>) -> Result<AddrSet, TargetError> {
    if body.contains('%') {
        return Err(TargetError::Scope(text.to_owned()));
    }
    let address = |part: &str| part.parse::<IpAddr>().map_err(|_| TargetError::Form(text.to_owned()));
    if let Some((first, last)) = body.split_once('-') {
        if prefix.is_some() {
            return Err(TargetError::RangeAndPrefix(text.to_owned()));
        }
        let first = address(first)?;
        let last = last.parse::<IpAddr>().map_err(|_| TargetError::HalfRange(text.to_owned()))?;
        return full_range(text, first, last);
    }
    let addr = address(body)?;
    let bits = prefix.unwrap_or(128);
    if canonical(addr).is_ipv4() && bits < 96 {
        return Err(TargetError::WiderThanMapped(text.to_owned()));
    }
    let net = IpNet::new(addr, bits).ok_or_else(|| TargetError::Form(text.to_owned()))?;
    Ok(AddrSet::from_nets([&net]))
}

fn full_range(text: &str, first: IpAddr, last: IpAddr) -> Result<AddrSet, TargetError> {
    let (first, last) = (canonical(first), canonical(last));
    if first.is_ipv4() != last.is_ipv4() {
        return Err(AddrError::Mixed(text.to_owned()).into());
    }
    if first > last {
        return Err(AddrError::Order(text.to_owned()).into());
    }
    Ok(AddrSet::try_from(vec![(first, last)])?)
}

fn v4_item(text: &str, body: &str, prefix: Option<u8>) -> Result<AddrSet, TargetError> {
    if let Some((first, last)) = body.split_once('-').filter(|(first, last)| dots(first) == 3 && dots(last) == 3) {
        if prefix.is_some() {
            return Err(TargetError::RangeAndPrefix(text.to_owned()));
        }
        return full_range(text, one_address(text, first)?, one_address(text, last)?);
    }
    let mut octets = octets(text, body)?;
    if let Some(bits) = prefix {
        widen(&mut octets, bits);
    }
    product(text, &octets)
}

fn dots(text: &str) -> usize {
    text.bytes().filter(|b| *b == b'.').count()
}

/// An end of a full range: each octet is one number.
fn one_address(text: &str, part: &str) -> Result<IpAddr, TargetError> {
    let octets = octets(text, part)?;
    match octets.each_ref().map(Vec::as_slice) {
        [[(a, a2)], [(b, b2)], [(c, c2)], [(d, d2)]] if (a, b, c, d) == (a2, b2, c2, d2) => Ok(Ipv4Addr::new(*a, *b, *c, *d).into()),
        _ => Err(TargetError::Form(text.to_owned())),
    }
}

/// Sorted disjoint inclusive ranges of one octet.
type Octet = Vec<(u8, u8)>;

fn octets(text: &str, body: &str) -> Result<[Octet; 4], TargetError> {
    let parts = body.split('.').map(|part| octet(text, part)).collect::<Vec<_>>();
    let count = parts.len();
    let wrong = || TargetError::Octets { input: text.to_owned(), octets: count };
    let parts: [Result<Octet, TargetError>; 4] = parts.try_into().map_err(|_| wrong())?;
    let [a, b, c, d] = parts;
    Ok([a?, b?, c?, d?])
}

fn octet(text: &str, part: &str) -> Result<Octet, TargetError> {
    if part == "*" {
        return Ok(vec![(0, u8::MAX)]);
    }
    let mut ranges = part.split(',').map(|item| octet_range(text, item)).collect::<Result<Vec<_>, _>>()?;
    ranges.sort_unstable();
    let mut merged: Octet = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if u16::from(first) <= u16::from(previous.1) + 1 => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    Ok(merged)
}

/// `7`, `1-50`, `9-`, `-9` or `-`.
fn octet_range(text: &str, item: &str) -> Result<(u8, u8), TargetError> {
    let number = |digits: &str| -> Result<u8, TargetError> {
        if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()) {
            let plain = digits.trim_start_matches('0');
            let plain = if plain.is_empty() { "0" } else { plain };
            return Err(TargetError::LeadingZero { input: text.to_owned(), octet: digits.to_owned(), plain: plain.to_owned() });
        }
        digits.parse().map_err(|_| TargetError::Octet { input: text.to_owned(), octet: item.to_owned() })
    };
    let Some((first, last)) = item.split_once('-') else {
        let value = number(item)?;
        return Ok((value, value));
    };
    let first = if first.is_empty() { 0 } else { number(first)? };
    let last = if last.is_empty() { u8::MAX } else { number(last)? };
    match first <= last {
        true => Ok((first, last)),
        false => Err(TargetError::OctetOrder { input: text.to_owned(), range: item.to_owned() }),
    }
}

/// Clears and sets the host bits of a prefix length: every address of the pattern becomes its network.
fn widen(octets: &mut [Octet; 4], prefix: u8) {
    for (index, octet) in (0u8..).zip(octets) {
        let bits = prefix.saturating_sub(index * 8).min(8);
        let hosts = 0xffu8.checked_shr(bits.into()).unwrap_or(0);
        let ranges = octet.iter().map(|(first, last)| (first & !hosts, last | hosts));
        let mut wider: Octet = Vec::new();
        for (first, last) in ranges {
            match wider.last_mut() {
                Some(previous) if u16::from(first) <= u16::from(previous.1) + 1 => previous.1 = previous.1.max(last),
                _ => wider.push((first, last)),
            }
        }
        *octet = wider;
    }
}

/// The addresses of a pattern as ranges: full octets at the end make them longer, every value before makes more of them.
fn product(text: &str, octets: &[Octet; 4]) -> Result<AddrSet, TargetError> {
    let full = |octet: &Octet| matches!(octet.as_slice(), [(0, u8::MAX)]);
    let trailing = octets.iter().rev().take_while(|octet| full(octet)).count().min(3);
    let shift = 8 * trailing as u32;
    let (before, at) = octets.split_at(3 - trailing);
    let runs = at.first().map(Vec::as_slice).unwrap_or_default();
    let values = |octet: &Octet| octet.iter().map(|(first, last)| usize::from(last - first) + 1).sum::<usize>();
    let ranges = before.iter().map(values).product::<usize>() * runs.len();
    if ranges > RANGES_MAX {
        return Err(TargetError::Scattered { input: text.to_owned(), ranges });
    }
    let mut heads = vec![0u32];
    for octet in before {
        let values = || octet.iter().flat_map(|(first, last)| *first..=*last);
        heads = heads.iter().flat_map(|head| values().map(move |value| (head << 8) | u32::from(value))).collect();
    }
    let hosts = (1u32 << shift) - 1;
    let address = |head: u32, value: u8, rest: u32| IpAddr::from(Ipv4Addr::from_bits((((head << 8) | u32::from(value)) << shift) | rest));
    let pairs = heads.iter().flat_map(|head| runs.iter().map(|(first, last)| (address(*head, *first, 0), address(*head, *last, hosts))));
    Ok(AddrSet::try_from(pairs.collect::<Vec<_>>())?)
}

/// The networks of a prefix length around the addresses of a name. Up to 32 bits are of IPv4 addresses, longer ones of IPv6
/// addresses: the other family's addresses are left out, for nobody means a /24 of IPv6 or a /64 of IPv4.
pub fn around(addresses: &[IpAddr], prefix: u8) -> AddrSet {
    let fits = |addr: &&IpAddr| canonical(**addr).is_ipv4() == (prefix <= 32);
    let nets: Vec<IpNet> = addresses.iter().filter(fits).filter_map(|addr| IpNet::new(canonical(*addr), prefix)).collect();
    AddrSet::from_nets(&nets)
}

/// Splits a list of targets at white space and commas. A comma inside an octet pattern separates octets and not items:
/// `198.18.0.1,7,198.18.9.0/24` is two items. A list in the first octet must stand first or behind white space.
pub fn split(text: &str) -> Vec<&str> {
    text.split_whitespace().flat_map(split_word).filter(|item| !item.is_empty()).collect()
}

fn split_word(word: &str) -> Vec<&str> {
    let mut items: Vec<(usize, usize)> = Vec::new();
    let mut start = 0;
    for piece in word.split(',') {
        let end = start + piece.len();
        match items.last_mut() {
            Some((from, to)) if word.get(*from..*to).is_some_and(|item| continues(item, piece)) => *to = end,
            _ => items.push((start, end)),
        }
        start = end + 1;
    }
    // A comma at the end of an item ends it; it is no empty octet.
    items.iter().filter_map(|(from, to)| word.get(*from..*to)).map(|item| item.trim_end_matches(',')).collect()
}

/// Whether `piece`, which a comma separates from `item`, belongs to the same octet pattern.
fn continues(item: &str, piece: &str) -> bool {
    let pattern = |text: &str| text.split('/').next().is_some_and(|body| body.bytes().all(is_pattern_byte));
    let fits = dots(item) < 3 || dots(piece) == 0;
    !item.is_empty() && !item.contains('/') && pattern(item) && pattern(piece) && fits && dots(item) + dots(piece) <= 3
}

/// All items of a list, in the order given.
pub fn parse_items(text: &str) -> Result<Vec<TargetItem>, TargetError> {
    split(text).into_iter().map(str::parse).collect()
}

/// The set of all items of a list that has no names.
pub fn parse_addresses(text: &str) -> Result<AddrSet, TargetError> {
    let mut pairs = Vec::new();
    for (item, text) in parse_items(text)?.into_iter().zip(split(text)) {
        match item {
            TargetItem::Set(set) => pairs.extend(set.ranges()),
            TargetItem::Name(_) | TargetItem::NamePrefix(..) => return Err(TargetError::Name(text.to_owned())),
        }
    }
    Ok(AddrSet::try_from(pairs)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        let set = parse_addresses(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let ranges = set.ranges().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
        ranges.collect::<Vec<_>>().join(" ")
    }

    fn refusal(text: &str) -> String {
        text.parse::<TargetItem>().map(|item| format!("accepted as {item:?}")).unwrap_err().to_string()
    }

    #[test]
    fn items_as_people_type_them() {
        for (text, ranges) in [
            ("198.18.0.7", "198.18.0.7"),
            ("198.18.0.7/24", "198.18.0.0-198.18.0.255"),
            ("0.0.0.0/0", "0.0.0.0-255.255.255.255"),
            ("*.*.*.*", "0.0.0.0-255.255.255.255"),
            ("198.18.0.1-50", "198.18.0.1-198.18.0.50"),
            ("198.18.0.1,7,9-11", "198.18.0.1 198.18.0.7 198.18.0.9-198.18.0.11"),
            ("198.18.0.7,1,2", "198.18.0.1-198.18.0.2 198.18.0.7"),
            ("198.18.0-1.254-", "198.18.0.254-198.18.0.255 198.18.1.254-198.18.1.255"),
            ("198.18.0-1.-1", "198.18.0.0-198.18.0.1 198.18.1.0-198.18.1.1"),
            ("198.18.2-3.*", "198.18.2.0-198.18.3.255"),
            ("198.18-19.-.0-255", "198.18.0.0-198.19.255.255"),
            ("198.18.0-1.5/30", "198.18.0.4-198.18.0.7 198.18.1.4-198.18.1.7"),
            ("198.18.0,9.5/20", "198.18.0.0-198.18.15.255"),
            ("198.18.0.9-198.18.1.3", "198.18.0.9-198.18.1.3"),
            ("2001:db8::/126", "2001:db8::-2001:db8::3"),
            ("2001:DB8::1-2001:db8::f", "2001:db8::1-2001:db8::f"),
            ("::ffff:198.18.0.7", "198.18.0.7"),
            ("::ffff:198.18.0.0/120", "198.18.0.0-198.18.0.255"),
            ("::ffff:198.18.0.1-198.18.0.3", "198.18.0.1-198.18.0.3"),
        ] {
            assert_eq!(shown(text), ranges, "{text}");
        }
    }

    #[test]
    fn guesses_are_refused_with_a_reason() {
        for (text, reason) in [
            ("198.18.0.0/33", "`198.18.0.0/33` has no such prefix length: IPv4 networks go from /0 to /32"),
            ("2001:db8::/129", "`2001:db8::/129` has no such prefix length: IPv6 networks go from /0 to /128"),
            ("198.18.0.0/300", "`198.18.0.0/300` has no such prefix length"),
            ("198.18.0.0/030", "is not an address"),
            ("198.18.0.0/", "is not an address"),
            ("198.18.0.0/8/9", "is not an address"),
            ("1.2.3", "`1.2.3` has 3 octets: an IPv4 address has 4"),
            ("10", "has 1 octets"),
            ("198.18.0.1.2", "has 5 octets"),
            ("010.1.1.1", "`010` in `010.1.1.1` begins with a zero, which some read as octal: write `10`"),
            ("198.18.0.00", "write `0`"),
            ("198.18.0.1-050", "write `50`"),
            ("198.18.0.9-3", "`9-3` in `198.18.0.9-3` ends before it starts"),
            ("198.18.0.256", "`256` in `198.18.0.256` is not an octet"),
            ("198.18.0.1-256", "`1-256` in `198.18.0.1-256` is not an octet"),
            ("198.18..1", "`` in `198.18..1` is not an octet"),
            ("198.18.0.,1", "is not an octet"),
            ("198.18.0.1,,3", "is not an octet"),
            ("198.18.0.*,3", "`*` in `198.18.0.*,3` is not an octet"),
            ("198.18.0.1-2-3", "is not an octet"),
            ("198.18.0.9-198.18.0.3", "range `198.18.0.9-198.18.0.3` ends before it starts"),
            ("198.18.0.1-198.18.0.9/24", "both a range and a prefix length"),
            ("198.18.0.1,2-198.18.0.9", "is not an address"),
            ("2001:db8::1-f", "write the last address in full"),
            ("2001:db8::1-9.9.9.9", "mixes IPv4 and IPv6"),
            ("fe80::1%eth0", "names an interface"),
            ("fe80::1%eth0/64", "names an interface"),
            ("::ffff:198.18.0.0/90", "wider than the IPv4-mapped addresses"),
            ("*.*.*.1", "is 16777216 separate ranges, more than the 65536"),
            ("2001:db8:*", "is not an address"),
            ("0x7f000001", "is not an address"),
            ("198.18.0.0x1", "is not an address"),
            ("198.18.0.1a", "is not an address"),
            ("a..b", "is not an address"),
            ("-a.lan", "is not an address"),
            ("http://printer.lan/", "is not an address"),
            ("printer.lan/129", "has no such prefix length"),
            ("", "is not an address"),
        ] {
            let error = refusal(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn names_are_left_to_the_caller() {
        for (text, name) in
            [("localhost", "localhost"), ("WWW.Example.com.", "www.example.com"), ("printer_7.lan", "printer_7.lan"), ("3com", "3com")]
        {
            assert_eq!(text.parse(), Ok(TargetItem::Name(HostName(name.into()))), "{text}");
        }
        assert_eq!("printer.lan/24".parse(), Ok(TargetItem::NamePrefix(HostName("printer.lan".into()), 24)));
        assert!(parse_addresses("198.18.0.1 printer.lan").unwrap_err().to_string().contains("`printer.lan` is a name"));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let addresses = [ip("198.18.0.7"), ip("2001:db8::7"), ip("::ffff:198.18.9.1")];
        assert_eq!(around(&addresses, 30), parse_addresses("198.18.0.4/30 198.18.9.0/30").unwrap());
        assert_eq!(around(&addresses, 120), parse_addresses("2001:db8::/120").unwrap());
    }

    #[test]
    fn commas_separate_items_and_octets() {
        for (text, items) in [
            ("198.18.0.1,198.18.0.2", vec!["198.18.0.1", "198.18.0.2"]),
            ("198.18.0.1,7,198.18.9.0/24", vec!["198.18.0.1,7", "198.18.9.0/24"]),
            ("198.18.0-3,7.1, printer.lan,2001:db8::1", vec!["198.18.0-3,7.1", "printer.lan", "2001:db8::1"]),
            ("198,199.18.0.1,3/30", vec!["198,199.18.0.1,3/30"]),
            ("198.18.0.0/24,198.18.7.1", vec!["198.18.0.0/24", "198.18.7.1"]),
            ("198.18.0.1-198.18.0.9,198.18.1.1", vec!["198.18.0.1-198.18.0.9", "198.18.1.1"]),
            (" a.lan,,b.lan,\n198.18.0.1, 198.18.0.2 ", vec!["a.lan", "b.lan", "198.18.0.1", "198.18.0.2"]),
            ("198.18.0,198.18.1", vec!["198.18.0", "198.18.1"]),
            ("198.18.0.1,,3", vec!["198.18.0.1,,3"]),
            ("198.18.0.,1", vec!["198.18.0.,1"]),
            ("", vec![]),
        ] {
            assert_eq!(split(text), items, "{text}");
        }
    }

    fn octet_text() -> impl Strategy<Value = (String, Vec<u8>)> {
        let range = (any::<u8>(), any::<u8>(), 0u8..5).prop_map(|(a, b, form)| {
            let (low, high) = (a.min(b), a.max(b));
            match form {
                0 => (a.to_string(), vec![a]),
                1 => (format!("{low}-{high}"), (low..=high).collect()),
                2 => (format!("{low}-"), (low..=255).collect()),
                3 => (format!("-{high}"), (0..=high).collect()),
                _ => ("-".to_owned(), (0..=255).collect::<Vec<u8>>()),
            }
        });
        let list = proptest::collection::vec(range, 1..4).prop_map(|ranges| {
            let text = ranges.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join(",");
            let mut values: Vec<u8> = ranges.into_iter().flat_map(|(_, values)| values).collect();
            values.sort_unstable();
            values.dedup();
            (text, values)
        });
        prop_oneof![6 => list, 1 => Just(("*".to_owned(), (0..=255).collect()))]
    }

    proptest! {
        #[test]
        fn patterns_hold_what_their_octets_hold((third, c) in octet_text(), (fourth, d) in octet_text(), probes in proptest::collection::vec(any::<u16>(), 64)) {
            let set = parse_addresses(&format!("198.18.{third}.{fourth}")).unwrap();
            prop_assert_eq!(set.len(), Some(c.len() as u128 * d.len() as u128));
            for [x, y] in probes.iter().map(|probe| probe.to_be_bytes()) {
                let inside = c.contains(&x) && d.contains(&y);
                prop_assert_eq!(set.contains(Ipv4Addr::new(198, 18, x, y).into()), inside, "198.18.{}.{}", x, y);
            }
        }

        #[test]
        fn a_prefix_widens_every_address((fourth, d) in octet_text(), prefix in 16u8..=32) {
            let set = parse_addresses(&format!("198.18.7.{fourth}/{prefix}")).unwrap();
            let nets: Vec<IpNet> = d.iter().map(|d| IpNet::new(Ipv4Addr::new(198, 18, 7, *d).into(), prefix).unwrap()).collect();
            prop_assert_eq!(set, AddrSet::from_nets(&nets));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[0-9a-f.,:*/% -]{0,40}|\\PC{0,40}") {
            let _ = parse_items(&text);
            prop_assert!(split(&text).iter().all(|item| !item.is_empty()));
        }
    }
}
