//! Rates as people type them: packets or bits, told apart by the unit.

use core::str::FromStr;

use picket_wire::units::{BitsPerSecond, PacketsPerSecond, UnitError};

use crate::net::pacer::{DEFAULT_BURST, Limits};

/// A rate of either kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateArg {
    /// `500pps`.
    Packets(PacketsPerSecond),
    /// `20mbit`.
    Bits(BitsPerSecond),
}

/// Why a text is no rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// Wrong within its kind, or without a unit.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// Neither kind.
    #[error(
        "`{text}` may mean packets, bits or bytes: write {number}{scale}pps for packets per second or {number}{scale}bit for bits per second"
    )]
    Ambiguous {
        /// The text.
        text: String,
        /// Its number.
        number: String,
        /// The letter after it, where it has one that counts thousands.
        scale: String,
    },
}

impl FromStr for RateArg {
    type Err = RateError;
    fn from_str(text: &str) -> Result<Self, RateError> {
        let lower = text.to_ascii_lowercase();
        if lower.ends_with("pps") || text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self::Packets(text.parse()?));
        }
        if lower.ends_with("bit") {
            return Ok(Self::Bits(text.parse()?));
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(UnitError::PacketRate(text.to_owned()).into());
        }
        let scale = unit.get(..1).filter(|scale| "kKmMgG".contains(scale)).unwrap_or_default();
        Err(RateError::Ambiguous { text: text.to_owned(), number: number.to_owned(), scale: scale.to_owned() })
    }
}

/// All that was asked for, the lower one of each kind.
pub(super) fn limits(rates: &[RateArg]) -> Limits {
    rates.iter().fold(Limits::UNLIMITED, |limits, rate| {
        limits.clipped_to(match *rate {
            RateArg::Packets(rate) => Limits { packets: Some(rate), bits: None, burst: DEFAULT_BURST },
            RateArg::Bits(rate) => Limits { packets: None, bits: Some(rate), burst: DEFAULT_BURST },
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_says_which_kind_it_is() {
        let limits = limits(&["500pps", "20mbit", "2kpps"].map(|text| text.parse().unwrap()));
        assert_eq!((limits.packets.unwrap().get(), limits.bits.unwrap().get()), (500, 20_000_000));
        let wrong = |text: &str| text.parse::<RateArg>().unwrap_err().to_string();
        assert!(wrong("500").starts_with("`500` has no unit"));
        assert_eq!(
            wrong("20m"),
            "`20m` may mean packets, bits or bytes: write 20mpps for packets per second or 20mbit for bits per second"
        );
        assert!(wrong("10MB").contains("10Mpps") && wrong("10MB/s").contains("10Mbit"));
        assert!(
            wrong("7q").contains("7pps")
                && wrong("fast").contains("`fast` is not a packet rate")
                && wrong("").contains("not a packet rate")
        );
    }
}
