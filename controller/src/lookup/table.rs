//! A table of networks and the autonomous systems that announce them, in the form that iptoasn.com publishes: lines of five columns between
//! tabs, the first and the last address of a range, an AS number, a country and a description; IPv4 and IPv6, together or each alone.
//!
//! Pure but for the reader that it is given. Ranges are kept sorted and found by halving: 12 bytes for one of IPv4, 36 for one of IPv6, and each
//! autonomous system once.
//!
//! **Invariant:** ranges do not overlap, so an address has one origin at most.

use std::collections::HashMap;
use std::io::{BufRead, Read};
use std::net::IpAddr;

/// Longest line, in bytes. Those that are published have some hundred.
const LINE_MAX: u64 = 4_096;
/// Most ranges. The whole internet has less than a million.
const RANGES_MAX: usize = 8_000_000;
/// Characters of a description that are kept.
const DESCRIPTION_MAX: usize = 120;
/// Number of what nobody announces.
const NOT_ROUTED: u32 = 0;

/// Who announces an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The number of the autonomous system.
    pub asn: u32,
    /// Its country, two letters (ISO 3166-1), where the table has one.
    pub country: Option<String>,
    /// What the table calls it.
    pub description: String,
}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// It cannot be read to the end.
    #[error("line {line} cannot be read: {source}")]
    Read {
        /// The line, from 1 on.
        line: u32,
        /// Why not.
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("line {line}: {reason}")]
    Line {
        /// The line, from 1 on.
        line: u32,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    systems: Vec<System>,
    /// The descriptions, one behind the other.
    text: String,
}

#[derive(Debug)]
struct System {
    asn: u32,
    country: Option<[u8; 2]>,
    /// Where its description begins and how long it is, in bytes.
    at: u32,
    len: u16,
}

/// Ranges of one family by their first address.
#[derive(Debug)]
struct Ranges<A> {
    first: Vec<A>,
    last: Vec<A>,
    system: Vec<u32>,
}

impl<A> Default for Ranges<A> {
    fn default() -> Self {
        Self { first: Vec::new(), last: Vec::new(), system: Vec::new() }
    }
}

/// A range as it was read.
struct Raw<A> {
    first: A,
    last: A,
    system: u32,
    line: u32,
}

impl<A: Copy + Ord + Into<u128>> Ranges<A> {
    /// Sorts ranges, and joins those that follow on each other and are the same system's.
    fn build(mut raw: Vec<Raw<A>>, show: impl Fn(A) -> IpAddr) -> Result<Self, TableError> {
        raw.sort_unstable_by_key(|range| (range.first, range.line));
        let mut ranges = Self::default();
        let mut before: Option<&Raw<A>> = None;
        for range in &raw {
            if let Some(before) = before.filter(|before| before.last >= range.first) {
                let (line, other) = (range.line.max(before.line), range.line.min(before.line));
                let reason =
                    format!("a range that has {} overlaps the one of line {other}: each address has one origin", show(range.first));
                return Err(TableError::Line { line, reason });
            }
            before = Some(range);
            let joins = |last: &A| Into::<u128>::into(*last).checked_add(1) == Some(range.first.into());
            match (ranges.last.last_mut().filter(|last| joins(last)), ranges.system.last()) {
                (Some(last), Some(system)) if *system == range.system => *last = range.last,
                _ => {
                    ranges.first.push(range.first);
                    ranges.last.push(range.last);
                    ranges.system.push(range.system);
                }
            }
        }
        ranges.first.shrink_to_fit();
        ranges.last.shrink_to_fit();
        ranges.system.shrink_to_fit();
        Ok(ranges)
    }

    fn system(&self, addr: A) -> Option<u32> {
        let at = self.first.partition_point(|first| *first <= addr).checked_sub(1)?;
        self.last.get(at).filter(|last| addr <= **last)?;
        self.system.get(at).copied()
    }

    fn bytes(&self) -> usize {
        (self.first.capacity() + self.last.capacity()) * size_of::<A>() + self.system.capacity() * size_of::<u32>()
    }
}

impl Table {
    /// Reads a table.
    ///
    /// # Errors
    /// When it cannot be read, or a line is not one of a table.
    pub fn read(mut reader: impl BufRead) -> Result<Self, TableError> {
        let mut made = Builder::default();
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            let read = reader.by_ref().take(LINE_MAX + 1).read_until(b'\n', &mut bytes);
            let read = read.map_err(|source| TableError::Read { line, source })?;
            if read == 0 {
                break;
            }
            made.line(line, &bytes).map_err(|reason| TableError::Line { line, reason })?;
        }
        made.finish()
    }

    /// Who announces an address. IPv4-mapped IPv6 is to be given as IPv4.
    pub fn origin(&self, addr: IpAddr) -> Option<Origin> {
        let place = match addr {
            IpAddr::V4(v4) => self.v4.system(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.system(v6.to_bits()),
        }?;
        let system = self.systems.get(usize::try_from(place).ok()?)?;
        let at = usize::try_from(system.at).ok()?;
        let description = self.text.get(at..at + usize::from(system.len)).unwrap_or_default().to_owned();
        let country = system.country.map(|letters| letters.map(char::from).iter().collect());
        Some(Origin { asn: system.asn, country, description })
    }

    /// How many ranges there are.
    pub fn ranges(&self) -> usize {
        self.v4.first.len() + self.v6.first.len()
    }

    /// How many systems there are, with different descriptions counted apart.
    pub fn systems(&self) -> usize {
        self.systems.len()
    }

    /// The memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.v4.bytes() + self.v6.bytes() + self.systems.capacity() * size_of::<System>() + self.text.capacity()
    }
}

/// A table that is being read.
#[derive(Default)]
struct Builder {
    v4: Vec<Raw<u32>>,
    v6: Vec<Raw<u128>>,
    places: HashMap<(u32, Option<[u8; 2]>, String), u32>,
}

impl Builder {
    fn line(&mut self, line: u32, bytes: &[u8]) -> Result<(), String> {
        if bytes.len() as u64 > LINE_MAX {
            return Err(format!("it has more than {LINE_MAX} bytes: this is no table of networks"));
        }
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end_matches(['\n', '\r']);
        if text.is_empty() || text.starts_with('#') {
            return Ok(());
        }
        let columns: Vec<&str> = text.splitn(5, '\t').collect();
        let [first, last, asn, country, description] = columns[..] else {
            return Err(format!(
                "{} columns between tabs: five are expected, first address, last address, AS number, country, description",
                columns.len()
            ));
        };
        let asn: u32 = asn.parse().map_err(|_| format!("`{}` is not an AS number: a number up to {} is expected", shown(asn), u32::MAX))?;
        let (first, last) = (address(first)?, address(last)?);
        if first > last || first.is_ipv4() != last.is_ipv4() {
            return Err(format!("{first} to {last} is no range: the last address must follow the first and be of its family"));
        }
        if asn == NOT_ROUTED {
            return Ok(());
        }
        if self.v4.len() + self.v6.len() >= RANGES_MAX {
            return Err(format!("more than {RANGES_MAX} ranges: this is no table of networks"));
        }
        let system = self.system(asn, country, description);
        match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => self.v4.push(Raw { first: first.to_bits(), last: last.to_bits(), system, line }),
            (IpAddr::V6(first), IpAddr::V6(last)) => self.v6.push(Raw { first: first.to_bits(), last: last.to_bits(), system, line }),
            _ => {}
        }
        Ok(())
    }

    fn system(&mut self, asn: u32, country: &str, description: &str) -> u32 {
        let country = country.as_bytes().try_into().ok().filter(|letters: &[u8; 2]| letters.iter().all(u8::is_ascii_uppercase));
        let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        let description: String = description.trim().chars().take(DESCRIPTION_MAX).map(printable).collect();
        // No more than ranges, and those are bounded.
        let next = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        *self.places.entry((asn, country, description)).or_insert(next)
    }

    fn finish(self) -> Result<Table, TableError> {
        let mut systems: Vec<_> = self.places.into_iter().collect();
        systems.sort_unstable_by_key(|(_, place)| *place);
        let mut table = Table { systems: Vec::with_capacity(systems.len()), ..Table::default() };
        for ((asn, country, description), _) in systems {
            let (at, len) = (u32::try_from(table.text.len()), u16::try_from(description.len()));
            // Four GiB of descriptions take more ranges than there may be.
            let (Ok(at), Ok(len)) = (at, len) else { continue };
            table.text.push_str(&description);
            table.systems.push(System { asn, country, at, len });
        }
        table.text.shrink_to_fit();
        table.v4 = Ranges::build(self.v4, |addr| IpAddr::from(addr.to_be_bytes()))?;
        table.v6 = Ranges::build(self.v6, |addr| IpAddr::from(addr.to_be_bytes()))?;
        Ok(table)
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| {
        let hint = if text.parse::<u64>().is_ok() { ", and not a number (iptoasn.com has both forms)" } else { "" };
        format!("`{}` is not an address: one such as 198.18.0.0 or 2001:db8:: is expected{hint}", shown(text))
    })
}

/// The beginning of a text, fit for an error.
fn shown(text: &str) -> String {
    text.chars().take(40).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Table, String> {
        Table::read(text.as_bytes()).map_err(|error| error.to_string())
    }

    fn origin(asn: u32, country: Option<&str>, description: &str) -> Option<Origin> {
        Some(Origin { asn, country: country.map(str::to_owned), description: description.to_owned() })
    }

    #[test]
    fn a_table_tells_both_families() {
        let table = read(
            "# a comment\n2001:db8::\t2001:db8:0:ffff:ffff:ffff:ffff:ffff\t64500\tDE\tEXAMPLE-SIX Example Six\n\n\
             198.18.2.0\t198.18.2.255\t0\tNone\tNot routed\r\n\
             198.18.1.0\t198.18.1.255\t64501\tUS\tEXAMPLE\tof tabs\r\n198.18.0.0\t198.18.0.255\t64501\tUS\tEXAMPLE\tof tabs\n\
             255.255.255.255\t255.255.255.255\t4294967295\tNone\t\n",
        )
        .unwrap();
        let ask = |addr: &str| table.origin(addr.parse().unwrap());
        assert_eq!(ask("198.18.0.0"), origin(64_501, Some("US"), "EXAMPLE\u{fffd}of tabs"));
        assert_eq!(ask("198.18.1.255"), ask("198.18.0.0"));
        assert_eq!((ask("198.18.2.0"), ask("198.17.255.255"), ask("0.0.0.0"), ask("::")), (None, None, None, None));
        assert_eq!(ask("255.255.255.255"), origin(u32::MAX, None, ""));
        assert_eq!(ask("2001:db8::1"), origin(64_500, Some("DE"), "EXAMPLE-SIX Example Six"));
        assert_eq!(ask("2001:db8:1::"), None);
        // Neighbours of one system are one range.
        assert_eq!((table.ranges(), table.systems()), (3, 3));
    }

    #[test]
    fn what_is_no_table_is_refused_with_its_line() {
        let long = format!("198.18.0.0\t198.18.0.255\t1\tUS\t{}", "x".repeat(5_000));
        for (text, expected) in [
            ("198.18.0.0\t198.18.0.255\t1\tUS\n", "line 1: 4 columns between tabs: five are expected"),
            ("\n198.18.0.0 198.18.0.255 1 US X\n", "line 2: 1 columns"),
            ("198.18.0.0/24\t198.18.0.255\t1\tUS\tX\n", "line 1: `198.18.0.0/24` is not an address"),
            ("16777216\t16777471\t13335\tUS\tX\n", "and not a number"),
            ("198.18.0.0\t198.18.0.255\tAS1\tUS\tX\n", "line 1: `AS1` is not an AS number"),
            ("198.18.0.0\t198.18.0.255\t4294967296\tUS\tX\n", "`4294967296` is not an AS number"),
            ("198.18.0.9\t198.18.0.1\t1\tUS\tX\n", "198.18.0.9 to 198.18.0.1 is no range"),
            ("198.18.0.9\t2001:db8::1\t1\tUS\tX\n", "is no range"),
            (
                "198.18.0.0\t198.18.0.255\t1\tUS\tX\n#\n198.18.0.255\t198.18.1.0\t2\tUS\tY\n",
                "line 3: a range that has 198.18.0.255 overlaps the one of line 1",
            ),
            (
                "198.18.0.9\t198.18.0.9\t1\tUS\tX\n198.18.0.0\t198.18.1.0\t2\tUS\tY\n",
                "line 2: a range that has 198.18.0.9 overlaps the one of line 1",
            ),
            (long.as_str(), "line 1: it has more than 4096 bytes"),
            ("\u{1b}[31m\tx\tx\tx\tx", "line 1: `x` is not an AS number"),
            ("\u{1b}[31m\tx\t1\tx\tx", "line 1: `\u{fffd}[31m` is not an address"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    /// What a table says, one range after the other.
    fn linear(ranges: &[(IpAddr, IpAddr, u32)], addr: IpAddr) -> Option<u32> {
        ranges
            .iter()
            .find(|(first, last, asn)| *asn > 0 && (*first..=*last).contains(&addr) && first.is_ipv4() == addr.is_ipv4())
            .map(|range| range.2)
    }

    /// Ranges side by side: gaps and lengths from the bottom of a family up, systems of few numbers, so that neighbours often are the same's.
    fn ranges(v6: bool) -> impl Strategy<Value = Vec<(IpAddr, IpAddr, u32)>> {
        let top = if v6 { u128::MAX } else { u128::from(u32::MAX) };
        let step = prop_oneof![Just(0u128), 0u128..4, 0u128..=top / 8];
        let start = prop_oneof![Just(0u128), Just(top - 40), 0u128..=top];
        (start, proptest::collection::vec((step.clone(), step, 0u32..4), 0..20)).prop_map(move |(start, steps)| {
            let addr = |bits: u128| if v6 { IpAddr::from(bits.to_be_bytes()) } else { IpAddr::from((bits as u32).to_be_bytes()) };
            let mut next = Some(start);
            let mut ranges = Vec::new();
            for (gap, len, asn) in steps {
                let Some(first) = next.and_then(|next| next.checked_add(gap)).filter(|first| *first <= top) else { break };
                let last = first.saturating_add(len).min(top);
                ranges.push((addr(first), addr(last), asn));
                next = last.checked_add(1);
            }
            ranges
        })
    }

    proptest! {
        #[test]
        fn halving_finds_what_a_linear_search_finds(v4 in ranges(false), v6 in ranges(true), order: u64, asked in proptest::collection::vec(any::<u128>(), 20)) {
            let mut all = [v4, v6].concat();
            // Whatever the order of the lines.
            all.sort_by_key(|(first, _, _)| { use std::hash::{DefaultHasher, Hash, Hasher}; let mut hasher = DefaultHasher::new(); (order, first).hash(&mut hasher); hasher.finish() });
            let text: String = all.iter().map(|(first, last, asn)| format!("{first}\t{last}\t{asn}\tXX\tsystem {asn}\n")).collect();
            let table = Table::read(text.as_bytes()).unwrap();
            let edges = all.iter().flat_map(|(first, last, _)| [*first, *last]).flat_map(|edge| match edge {
                IpAddr::V4(v4) => [-1i32, 0, 1].map(|by| IpAddr::from(v4.to_bits().wrapping_add_signed(by).to_be_bytes())),
                IpAddr::V6(v6) => [-1i128, 0, 1].map(|by| IpAddr::from(v6.to_bits().wrapping_add_signed(by).to_be_bytes())),
            });
            let random = asked.iter().flat_map(|bits| [IpAddr::from(bits.to_be_bytes()), IpAddr::from((*bits as u32).to_be_bytes())]);
            for addr in edges.chain(random) {
                prop_assert_eq!(table.origin(addr).map(|origin| origin.asn), linear(&all, addr), "{}", addr);
            }
        }

        #[test]
        fn any_bytes_are_a_table_or_an_error(bytes: Vec<u8>, lines in "([0-9a-f:.]{0,6}\t){0,5}[\t\n]") {
            let _ = Table::read(&bytes[..]);
            let _ = Table::read(lines.as_bytes());
        }
    }
}
