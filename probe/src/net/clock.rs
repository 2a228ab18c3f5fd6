//! The only reads of real clocks.
//!
//! Invariant: every other module gets the time as a parameter, from here or from a simulation.

use std::sync::OnceLock;
use std::time::SystemTime;

use super::time::Instant;

static ORIGIN: OnceLock<std::time::Instant> = OnceLock::new();

/// The monotonic clock, counted from the process's first question (plus one second, so that a little may be subtracted).
#[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
pub fn now() -> Instant {
    let now = std::time::Instant::now();
    let since = now.saturating_duration_since(*ORIGIN.get_or_init(|| now));
    Instant::from_nanos(1_000_000_000) + since
}

/// The wall clock, as the system believes it; it may jump, and a box without a clock battery starts it anywhere.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}
