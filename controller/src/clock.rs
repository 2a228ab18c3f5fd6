//! Time, from one place: the wall clock for what is written down, a monotonic one for what is waited for.
//!
//! **Invariant:** nothing else in the controller's core reads a clock, so that tests turn it by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use picket_wire::units::UnixMillis;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A moment on the monotonic clock, counted from the start of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mono(pub Duration);

impl Mono {
    /// This moment plus `span`.
    pub fn after(self, span: Duration) -> Mono {
        Mono(self.0.saturating_add(span))
    }

    /// Time from `earlier` to here; zero where that is later.
    pub fn since(self, earlier: Mono) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The wall clock.
    pub wall: UnixMillis,
    /// The monotonic clock.
    pub mono: Mono,
}

/// Where the time comes from. Cheap to clone; clones share their time.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    System(Instant),
    /// Milliseconds of Unix time; the monotonic clock counts from the same origin.
    Manual {
        start: u64,
        now: Arc<AtomicU64>,
    },
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self(Source::System(Instant::now()))
    }

    /// A clock that stands at `start` until it is turned.
    pub fn manual(start: UnixMillis) -> Self {
        Self(Source::Manual { start: start.0, now: Arc::new(AtomicU64::new(start.0)) })
    }

    /// Turns a manual clock forward; the machine's clock does not care.
    pub fn advance(&self, span: Duration) {
        if let Source::Manual { now, .. } = &self.0 {
            now.fetch_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }

    /// Both clocks now.
    pub fn now(&self) -> Now {
        match &self.0 {
            Source::System(start) => {
                let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let wall = UnixMillis(u64::try_from(unix.as_millis()).unwrap_or(u64::MAX));
                Now { wall, mono: Mono(start.elapsed()) }
            }
            Source::Manual { start, now } => {
                let now = now.load(Ordering::SeqCst);
                Now { wall: UnixMillis(now), mono: Mono(Duration::from_millis(now.saturating_sub(*start))) }
            }
        }
    }
}

/// A wall-clock moment as a calendar date, clipped to what a calendar holds.
pub fn date(at: UnixMillis) -> OffsetDateTime {
    let nanos = i128::from(at.0).saturating_mul(1_000_000);
    OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// RFC 3339 text in UTC, to the millisecond.
pub fn rfc3339(at: UnixMillis) -> String {
    date(at).format(&Rfc3339).unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
}

/// The moment that RFC 3339 text means, cut to milliseconds; none where it is no such text, or before 1970.
pub fn parse_rfc3339(text: &str) -> Option<UnixMillis> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok().map(UnixMillis)
}

/// The wall-clock moment of a calendar date; the epoch for anything before it.
pub fn millis(at: OffsetDateTime) -> UnixMillis {
    UnixMillis(u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_turns_by_hand() {
        let clock = Clock::manual(UnixMillis(1_790_000_000_123));
        let shared = clock.clone();
        assert_eq!(clock.now().mono, Mono::default());
        shared.advance(Duration::from_secs(2));
        assert_eq!(clock.now().mono.since(Mono::default()), Duration::from_secs(2));
        assert_eq!(rfc3339(UnixMillis(1_790_000_000_123)), "2026-09-21T14:13:20.123Z");
        assert_eq!(millis(date(UnixMillis(1_790_000_000_123))), UnixMillis(1_790_000_000_123));
    }
}
