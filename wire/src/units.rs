//! Quantities with their units: rates, TTLs, ports, times, round trips.
//!
//! **Invariant:** bounds are checked where a value is made (`FromStr`, `TryFrom`, decoding), never again after it.

use core::fmt;
use core::num::NonZeroU32;
use core::str::FromStr;
use core::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a text is not a quantity. The message names the input and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a packet rate.
    #[error("`{0}` is not a packet rate: write a whole number with its unit, such as 500pps, 5kpps or 1Mpps")]
    PacketRate(String),
    /// A bare number: nobody can tell packets from bits.
    #[error("`{0}` has no unit: write {0}pps for packets per second or {0}bit for bits per second")]
    NoUnit(String),
    /// Not a bit rate.
    #[error("`{0}` is not a bit rate: write a whole number with its unit, such as 64kbit, 20Mbit or 1Gbit (bits per second)")]
    BitRate(String),
    /// A rate of nothing would never end.
    #[error("a rate of `{0}` would never send anything: use at least 1pps")]
    ZeroRate(String),
    /// Not a port or a port range.
    #[error("`{0}` is not a port: use 0 to 65535, ranges such as 1-1024, or open ends such as -1024 and 60000-")]
    Port(String),
    /// A range whose end is before its start.
    #[error("port range `{0}` ends before it starts: did you mean the other way round?")]
    PortOrder(String),
    /// Not a span of time.
    #[error("`{0}` is not a duration: write a whole number with its unit, such as 30s, 5m or 2h")]
    Duration(String),
    /// Nothing was named.
    #[error("no port is named: use for example 22,80,443 or 1-1024")]
    NoPorts,
}

/// A packet rate, at least 1 per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PacketsPerSecond(NonZeroU32);

/// A bit rate of layer-2 frames, at least 1 per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BitsPerSecond(core::num::NonZeroU64);

fn scaled(number: &str, scale: &str) -> Option<u64> {
    let factor = match scale {
        "" => 1,
        "k" | "K" => 1_000,
        "m" | "M" => 1_000_000,
        "g" | "G" => 1_000_000_000,
        _ => return None,
    };
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

impl PacketsPerSecond {
    /// A rate of `rate` packets per second; `None` for zero.
    pub const fn new(rate: u32) -> Option<Self> {
        match NonZeroU32::new(rate) {
            Some(rate) => Some(Self(rate)),
            None => None,
        }
    }

    /// Packets per second.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl FromStr for PacketsPerSecond {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split_number(text);
        if unit.is_empty() && !number.is_empty() {
            return Err(UnitError::NoUnit(text.to_owned()));
        }
        let bad = || UnitError::PacketRate(text.to_owned());
        let scale = unit.strip_suffix("pps").ok_or_else(bad)?;
        let rate = scaled(number, scale).and_then(|rate| u32::try_from(rate).ok()).ok_or_else(bad)?;
        Self::new(rate).ok_or_else(|| UnitError::ZeroRate(text.to_owned()))
    }
}

impl fmt::Display for PacketsPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, u64::from(self.get()), "pps")
    }
}

impl BitsPerSecond {
    /// A rate of `rate` bits per second; `None` for zero.
    pub const fn new(rate: u64) -> Option<Self> {
        match core::num::NonZeroU64::new(rate) {
            Some(rate) => Some(Self(rate)),
            None => None,
        }
    }

    /// Bits per second.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl FromStr for BitsPerSecond {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split_number(text);
        if unit.is_empty() && !number.is_empty() {
            return Err(UnitError::NoUnit(text.to_owned()));
        }
        let bad = || UnitError::BitRate(text.to_owned());
        let scale = unit.strip_suffix("bit").ok_or_else(bad)?;
        let rate = scaled(number, scale).ok_or_else(bad)?;
        Self::new(rate).ok_or_else(|| UnitError::ZeroRate(text.to_owned()))
    }
}

impl fmt::Display for BitsPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.get(), "bit")
    }
}

fn write_scaled(f: &mut fmt::Formatter<'_>, value: u64, unit: &str) -> fmt::Result {
    let (value, scale) = match value {
        v if v % 1_000_000_000 == 0 => (v / 1_000_000_000, "G"),
        v if v % 1_000_000 == 0 => (v / 1_000_000, "M"),
        v if v % 1_000 == 0 => (v / 1_000, "k"),
        v => (v, ""),
    };
    write!(f, "{value}{scale}{unit}")
}

/// A set of ports: sorted, disjoint, non-adjacent inclusive ranges.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u16, u16)>", into = "Vec<(u16, u16)>")]
pub struct PortSet(Vec<(u16, u16)>);

impl PortSet {
    /// The set of all ports in the given inclusive ranges; overlaps merge.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (u16, u16)>) -> Self {
        let mut sorted: Vec<(u16, u16)> = ranges.into_iter().filter(|(first, last)| first <= last).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match merged.last_mut() {
                Some(previous) if u32::from(first) <= u32::from(previous.1) + 1 => previous.1 = previous.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// The ranges, sorted and disjoint.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// How many ports.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|(first, last)| u32::from(last - first) + 1).sum()
    }

    /// Whether no port is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The `rank`-th port in ascending order.
    pub fn nth(&self, rank: u32) -> Option<u16> {
        let mut left = rank;
        for (first, last) in &self.0 {
            let count = u32::from(last - first) + 1;
            if left < count {
                return u16::try_from(u32::from(*first) + left).ok();
            }
            left -= count;
        }
        None
    }

    /// The rank of `port` in ascending order, where it is in the set.
    pub fn rank(&self, port: u16) -> Option<u32> {
        let mut before = 0;
        for (first, last) in &self.0 {
            if port < *first {
                return None;
            }
            if port <= *last {
                return Some(before + u32::from(port - first));
            }
            before += u32::from(last - first) + 1;
        }
        None
    }

    /// All ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().flat_map(|(first, last)| *first..=*last)
    }
}

impl TryFrom<Vec<(u16, u16)>> for PortSet {
    type Error = UnitError;
    fn try_from(ranges: Vec<(u16, u16)>) -> Result<Self, UnitError> {
        if let Some((first, last)) = ranges.iter().find(|(first, last)| first > last) {
            return Err(UnitError::PortOrder(format!("{first}-{last}")));
        }
        Ok(Self::from_ranges(ranges))
    }
}

impl From<PortSet> for Vec<(u16, u16)> {
    fn from(set: PortSet) -> Self {
        set.0
    }
}

impl FromStr for PortSet {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let mut ranges = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let bad = || UnitError::Port(item.to_owned());
            let number = |digits: &str, open: u16| -> Result<u16, UnitError> {
                match digits {
                    "" => Ok(open),
                    _ if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| bad()),
                    _ => Err(bad()),
                }
            };
            let range = match item.split_once('-') {
                None => {
                    let port = number(item, 0)?;
                    (port, port)
                }
                // An open start begins at 1: port 0 is scanned only where it is named.
                Some((first, last)) => (number(first, 1)?, number(last, u16::MAX)?),
            };
            if range.0 > range.1 {
                return Err(UnitError::PortOrder(item.to_owned()));
            }
            ranges.push(range);
        }
        match ranges.is_empty() {
            true => Err(UnitError::NoPorts),
            false => Ok(Self::from_ranges(ranges)),
        }
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match first == last {
                true => write!(f, "{first}")?,
                false => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// A moment in Unix time, in milliseconds. Judged only against a clock that is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// This moment plus `span`.
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to here; zero where `earlier` is later.
    pub fn since(self, earlier: UnixMillis) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A round-trip time in 14 bits: 9 bits of mantissa, 5 of exponent, in microseconds.
///
/// Exact below 512 µs, within 0.2 % up to 18 minutes. As a varint it takes one byte below 128 µs and two otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RttCode(u16);

const MANTISSA_BITS: u32 = 9;

impl RttCode {
    /// The code nearest below `rtt`.
    pub fn encode(rtt: Duration) -> Self {
        let us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).min(0x3ff << 30);
        let bits = u64::BITS - us.leading_zeros();
        if bits <= MANTISSA_BITS {
            return Self(us as u16);
        }
        // As in a floating-point number the leading one is not stored: exponent 1 starts at 512.
        let shift = bits - MANTISSA_BITS - 1;
        let exponent = (shift + 1).min(31);
        let mantissa = (us >> (exponent - 1)) & ((1 << MANTISSA_BITS) - 1);
        Self(((exponent as u16) << MANTISSA_BITS) | mantissa as u16)
    }

    /// The time it stands for.
    pub fn decode(self) -> Duration {
        let exponent = u32::from(self.0 >> MANTISSA_BITS).min(31);
        let mantissa = u64::from(self.0) & ((1 << MANTISSA_BITS) - 1);
        Duration::from_micros(match exponent {
            0 => mantissa,
            _ => ((1 << MANTISSA_BITS) | mantissa) << (exponent - 1),
        })
    }
}

/// Reads a duration such as `500ms`, `30s`, `5m`, `2h` or `1d`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let milliseconds = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    let number = number.parse::<u64>().ok();
    let total = milliseconds.zip(number).and_then(|(unit, number)| number.checked_mul(unit));
    total.map(Duration::from_millis).ok_or_else(|| UnitError::Duration(text.to_owned()))
}

/// A number of bytes with or without a unit: `1500`, `500kB`, `100MB`, `1GiB`. None where it is no such text.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_have_units_or_none() {
        let read = [("0", 0), ("1500", 1_500), ("500k", 500_000), ("100MB", 100_000_000), ("2gib", 2 << 30), ("7B", 7)];
        read.into_iter().for_each(|(text, bytes)| assert_eq!(parse_bytes(text), Some(bytes), "{text}"));
        for wrong in ["", "k", "-1", "+1", "1.5MB", "1 MB", "1TiB", "99999999999999999999", "18446744073709551615k"] {
            assert_eq!(parse_bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations_have_units() {
        let ms = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(["500ms", "30s", "5m", "2h", "1d"].map(ms), [Ok(500), Ok(30_000), Ok(300_000), Ok(7_200_000), Ok(86_400_000)]);
        for wrong in ["", "5", "s", "-1s", "1.5s", "1w", "99999999999999999d"] {
            assert_eq!(ms(wrong), Err(UnitError::Duration(wrong.to_owned())));
        }
    }

    #[test]
    fn rates_need_their_unit() {
        assert_eq!("500pps".parse::<PacketsPerSecond>().unwrap().get(), 500);
        assert_eq!("5kpps".parse::<PacketsPerSecond>().unwrap().to_string(), "5kpps");
        assert_eq!("20Mbit".parse::<BitsPerSecond>().unwrap().get(), 20_000_000);
        assert!(matches!("500".parse::<PacketsPerSecond>(), Err(UnitError::NoUnit(_))));
        assert!(matches!("0pps".parse::<PacketsPerSecond>(), Err(UnitError::ZeroRate(_))));
        for bad in ["", "pps", "-1pps", "1.5kpps", "5000000kpps", "5kbps", "5 kpps", "+5pps"] {
            assert!(bad.parse::<PacketsPerSecond>().is_err(), "{bad}");
        }
        for bad in ["", "bit", "20MB", "20mb", "99999999999Gbit"] {
            assert!(bad.parse::<BitsPerSecond>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_parse_as_people_type_them() {
        for (text, shown) in
            [("80", "80"), ("443,80,80", "80,443"), ("1-3,4,6", "1-4,6"), ("-2", "1-2"), ("65534-", "65534-65535"), ("0", "0")]
        {
            assert_eq!(text.parse::<PortSet>().unwrap().to_string(), shown, "{text}");
        }
        for bad in ["", ",", "65536", "80-70", "http", "1-2-3", "+80", "8 0"] {
            assert!(bad.parse::<PortSet>().is_err(), "{bad}");
        }
        assert_eq!("-".parse::<PortSet>().unwrap().len(), 65_535);
    }

    proptest! {
        #[test]
        fn port_rank_is_the_inverse_of_nth(ranges in proptest::collection::vec((any::<u16>(), 0u16..500), 1..8)) {
            let set = PortSet::from_ranges(ranges.into_iter().map(|(first, len)| (first, first.saturating_add(len))));
            prop_assert_eq!(set.iter().count() as u32, set.len());
            for (rank, port) in set.iter().enumerate() {
                prop_assert_eq!(set.rank(port), Some(rank as u32));
                prop_assert_eq!(set.nth(rank as u32), Some(port));
            }
            prop_assert_eq!(set.nth(set.len()), None);
        }

        #[test]
        fn rtt_codes_are_close_from_below_and_ordered(us in 0u64..1_000_000_000, more in 0u64..1_000_000) {
            let code = RttCode::encode(Duration::from_micros(us));
            let back = code.decode().as_micros() as u64;
            prop_assert!(back <= us && us - back <= us / 500, "{} became {}", us, back);
            prop_assert!(code <= RttCode::encode(Duration::from_micros(us + more)));
            prop_assert!(code.0 < 1 << 14);
        }

        #[test]
        fn any_rtt_code_decodes(raw in any::<u16>()) {
            let _ = RttCode(raw).decode();
        }
    }
}
