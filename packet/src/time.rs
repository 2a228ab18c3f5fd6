//! When a packet was seen, as files of packets and their lines have it.
//!
//! It must not read a clock.

use core::fmt;

/// When a packet was seen: nanoseconds since 1970-01-01 00:00 UTC, leap seconds not counted. Lasts until the year 2554.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixNanos(pub u64);

impl UnixNanos {
    /// Nanoseconds of a second.
    pub const SECOND: u64 = 1_000_000_000;

    /// From whole seconds and nanoseconds; what lies before 1970 is 1970, what lies after the last moment is the last moment.
    pub fn new(seconds: i64, nanos: i64) -> Self {
        let whole = i128::from(seconds) * i128::from(Self::SECOND) + i128::from(nanos);
        Self(whole.clamp(0, u64::MAX.into()) as u64)
    }

    /// Whole seconds.
    pub const fn seconds(self) -> u64 {
        self.0 / Self::SECOND
    }

    /// Nanoseconds beyond the whole second.
    pub const fn subsecond(self) -> u32 {
        (self.0 % Self::SECOND) as u32
    }

    /// How much later than `other`; zero where it is not later.
    pub const fn saturating_since(self, other: Self) -> core::time::Duration {
        core::time::Duration::from_nanos(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for UnixNanos {
    /// Seconds since 1970 with nine decimals, as capture tools print them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.seconds(), self.subsecond())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_clamped_and_shown_in_nanoseconds() {
        let moment = UnixNanos::new(1_700_000_000, 5);
        assert_eq!((moment.seconds(), moment.subsecond(), moment.to_string()), (1_700_000_000, 5, "1700000000.000000005".into()));
        assert_eq!(UnixNanos::new(-1, 0), UnixNanos(0));
        assert_eq!(UnixNanos::new(i64::MAX, i64::MAX), UnixNanos(u64::MAX));
        assert_eq!(moment.saturating_since(UnixNanos::new(1_700_000_001, 0)), core::time::Duration::ZERO);
    }
}
