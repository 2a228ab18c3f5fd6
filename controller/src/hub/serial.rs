//! Serial numbers of commands: they rise for ever, across restarts and steps of the clock.
//!
//! A serial is the wall clock in microseconds, or one more than the last where the clock does not help. The database keeps
//! a ceiling above all that were used; a restart begins above it.
//!
//! **Invariant:** every serial is above all before it and below the ceiling in the database.

use std::time::Duration;

use picket_wire::units::UnixMillis;

use crate::store::{Store, StoreError};

const NAME: &str = "serial_ceiling";
/// How far ahead of use the ceiling is raised: one write per minute.
const AHEAD: Duration = Duration::from_secs(60);
/// More commands than any one round makes.
const ROUND: u64 = 1_000_000;

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX >> 2)
}

/// Gives out serial numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct SerialClock {
    last: u64,
    ceiling: u64,
}

impl SerialClock {
    /// Continues above everything that was used before.
    pub(super) async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let ceiling = store.number(NAME).await?;
        Ok(Self { last: ceiling, ceiling })
    }

    /// Makes room for a round of commands.
    pub(super) async fn reserve(&mut self, store: &dyn Store, now: UnixMillis) -> Result<(), StoreError> {
        let clock = now.0.saturating_mul(1000);
        let wanted = clock.max(self.last);
        if wanted + micros(AHEAD) / 2 + ROUND > self.ceiling {
            let ceiling = wanted + micros(AHEAD) + 2 * ROUND;
            store.raise_number(NAME, ceiling).await?;
            self.ceiling = ceiling;
        }
        Ok(())
    }

    /// The next serial.
    pub(super) fn next(&mut self, now: UnixMillis) -> u64 {
        // A clock that leapt since the room was made must not lead out of it.
        let highest = self.ceiling.saturating_sub(ROUND);
        let clock = now.0.saturating_mul(1000).min(highest);
        self.last = clock.max(self.last + 1);
        self.last
    }
}
