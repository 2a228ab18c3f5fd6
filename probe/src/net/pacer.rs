//! When a frame may leave: both limits of an interface (frames per second and bits per second of layer-2 frames), with a
//! stated burst in time. Pure: `now` is a parameter.
//!
//! A sender on a busy machine wakes up late now and then. To hold the mean exactly, a late sender must be allowed to catch
//! up, and catching up at once would be a burst. So each limit is two clocks (GCRA, ITU-T I.371 annex A):
//!
//! - the **schedule** advances by the exact cost of each frame. A sender late by at most [`Limits::burst`] catches up all of
//!   it; what is later than that is lost, never sent after. Time in which nobody wanted to send earns nothing
//!   ([`Pacer::idle`]), so a start is no burst.
//! - the **spacing** holds frames apart while catching up: at most 1.25 times the limit below 2k per second, 1.05 times up to
//!   20k, 1.02 times above, with a slack of one frame (at least 65 µs, at most 500 µs). Hence at most 2, 12 and 110 frames in
//!   any millisecond at 1k, 10k and 100k per second.
//!
//! At high rates a timer for each frame would cost more than the frames: [`Pacer::wake_at`] lets a few come due together, as
//! far as the slack allows it.
//!
//! **Invariant:** for each limit, in every window of length W, what was charged is at most `limit * (W + burst)` and one frame
//! more; also at most the spacing's multiple of `limit * (W + slack)` and one frame more. It holds for the moments at which frames were charged
//! and for every earlier moment back to the [`Plan`] that admitted them, so a sender that is preempted in the middle is covered.
//!
//! The length of a frame is what is on the wire from its Ethernet header on: short frames count as the 60 bytes that they are padded
//! to, preamble and frame check sequence do not count.

use core::time::Duration;
use std::sync::{Arc, Mutex};

use picket_wire::units::{BitsPerSecond, PacketsPerSecond};

use super::time::Instant;

/// Default of [`Limits::burst`]: what two scheduler ticks on a busy small board cost.
pub const DEFAULT_BURST: Duration = Duration::from_millis(10);

const PICOS_PER_NANO: u128 = 1_000;
const PICOS_PER_SEC: u128 = 1_000_000_000_000;
/// What a timer is late on a quiet machine; one more frame of 100k per second would break its millisecond's budget.
const SLACK_MIN: u128 = 65_000_000;
const SLACK_MAX: u128 = 500_000_000;
/// The frame that stands for "one frame" in the slack of a bit limit.
const SLACK_BITS: u128 = 12_000;

/// What may be sent in a second. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Frames per second.
    pub packets: Option<PacketsPerSecond>,
    /// Bits per second of layer-2 frames.
    pub bits: Option<BitsPerSecond>,
    /// How late a sender may be and still catch up.
    pub burst: Duration,
}

impl Limits {
    /// No limit at all: for links into nothing, such as benchmarks.
    pub const UNLIMITED: Limits = Limits { packets: None, bits: None, burst: DEFAULT_BURST };

    /// A limit of packets alone.
    pub const fn packets(rate: PacketsPerSecond) -> Limits {
        Limits { packets: Some(rate), bits: None, burst: DEFAULT_BURST }
    }

    /// A limit of bits alone.
    pub const fn bits(rate: BitsPerSecond) -> Limits {
        Limits { packets: None, bits: Some(rate), burst: DEFAULT_BURST }
    }

    /// These limits, each clipped to `ceiling`'s; the burst is the smaller one.
    pub fn clipped_to(self, ceiling: Limits) -> Limits {
        fn smaller<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            }
        }
        Limits {
            packets: smaller(self.packets, ceiling.packets),
            bits: smaller(self.bits, ceiling.bits),
            burst: self.burst.min(ceiling.burst),
        }
    }

    /// Whether `ceiling` takes something away from what these limits ask for. Asking for no limit asks for nothing.
    pub fn exceeds(self, ceiling: Limits) -> bool {
        let over = |mine: Option<u64>, top: Option<u64>| matches!((mine, top), (Some(mine), Some(top)) if mine > top);
        over(self.packets.map(|rate| rate.get().into()), ceiling.packets.map(|rate| rate.get().into()))
            || over(self.bits.map(BitsPerSecond::get), ceiling.bits.map(BitsPerSecond::get))
    }
}

/// One limit: cost in picoseconds per unit (frame or bit), and its two clocks in picoseconds.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    unit: u128,
    near_unit: u128,
    slack: u128,
    /// How long a loop may sleep on when the next frame is due.
    patience: u128,
    schedule: u128,
    spacing: u128,
}

impl Bucket {
    fn new(per_second: u64, slack_units: u128) -> Self {
        // Rounded up: a rounding error may only ever make us slower.
        let unit = PICOS_PER_SEC.div_ceil(u128::from(per_second));
        let frame = unit * slack_units;
        let slack = frame.clamp(SLACK_MIN, SLACK_MAX);
        // The budgets of a millisecond leave more room to catch up at low rates, where being late costs a frame at once.
        let catch_up_percent = match frame {
            500_000_000.. => 25,
            50_000_000.. => 5,
            _ => 2,
        };
        // Whole frames that fit into half of the slack, at least one where frames are closer than 200 µs.
        let patience = match frame {
            200_000_001.. => 0,
            _ => (slack / 2 / frame).max(1) * frame,
        };
        Self {
            unit,
            near_unit: (unit * 100).div_ceil(100 + catch_up_percent),
            slack,
            patience: patience.min(slack),
            schedule: 0,
            spacing: 0,
        }
    }

    fn ready_at(&self) -> u128 {
        self.schedule.max(self.spacing.saturating_sub(self.slack))
    }

    fn charge(&mut self, now: u128, units: u128, burst: u128) {
        self.schedule = self.schedule.max(now.saturating_sub(burst)) + units * self.unit;
        self.spacing = self.spacing.max(now) + units * self.near_unit;
    }

    fn idle(&mut self, now: u128) {
        self.schedule = self.schedule.max(now);
    }

    /// Carries the debt of a previous limit over, so that a change of limits is no fresh start.
    fn resume(&mut self, now: u128) {
        self.schedule = now;
        self.spacing = now + self.slack;
    }
}

/// A pacer that everything shares which opens connections on one interface.
pub type SharedPacer = Arc<Mutex<Pacer>>;

/// The state of one interface's (or one task's) limits.
#[derive(Debug, Clone, Copy)]
pub struct Pacer {
    limits: Limits,
    burst: u128,
    packets: Option<Bucket>,
    bits: Option<Bucket>,
}

/// A batch being put together against a [`Pacer`]: nothing is charged until it has left.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pacer: Pacer,
    now: u128,
}

fn picos(at: Instant) -> u128 {
    u128::from(at.as_nanos()) * PICOS_PER_NANO
}

fn instant(picos: u128) -> Instant {
    Instant::from_nanos(u64::try_from(picos.div_ceil(PICOS_PER_NANO)).unwrap_or(u64::MAX))
}

impl Pacer {
    /// A pacer that may send its first frame at once.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            burst: limits.burst.as_nanos() * PICOS_PER_NANO,
            packets: limits.packets.map(|rate| Bucket::new(rate.get().into(), 1)),
            bits: limits.bits.map(|rate| Bucket::new(rate.get(), SLACK_BITS)),
        }
    }

    /// The limits it holds.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Changes the limits. The first frame under the new ones waits a full slack, so that alternating between two limits is
    /// never faster than the higher one.
    pub fn set_limits(&mut self, now: Instant, limits: Limits) {
        if limits != self.limits {
            *self = Self::new(limits);
            for bucket in [&mut self.packets, &mut self.bits].into_iter().flatten() {
                bucket.resume(picos(now));
            }
        }
    }

    /// When the next frame may leave, whatever its length; in the past where it may leave now.
    pub fn ready_at(&self) -> Instant {
        instant([self.packets, self.bits].into_iter().flatten().map(|bucket| bucket.ready_at()).max().unwrap_or(0))
    }

    /// When a loop that has nothing else to do should look again: [`Self::ready_at`] or, at high rates and while on schedule,
    /// a little later, so that one wake-up serves several frames.
    pub fn wake_at(&self) -> Instant {
        let buckets = || [self.packets, self.bits].into_iter().flatten();
        let patience = buckets().map(|bucket| bucket.patience).min().unwrap_or(0);
        instant(buckets().map(|bucket| (bucket.schedule + patience).max(bucket.ready_at())).max().unwrap_or(0))
    }

    /// Whether a frame may leave at `now`.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.ready_at() <= now
    }

    /// Sends one frame of `frame_len` bytes if it may leave at `now`.
    pub fn take(&mut self, now: Instant, frame_len: usize) -> bool {
        let ready = self.is_ready(now);
        if ready {
            self.charge(now, 1, frame_len);
        }
        ready
    }

    /// Charges frames that left at `now` or shortly before, whether or not they were allowed to: a debt is paid by waiting.
    pub fn charge(&mut self, now: Instant, frames: usize, bytes: usize) {
        let now = picos(now);
        if let Some(bucket) = &mut self.packets {
            bucket.charge(now, frames as u128, self.burst);
        }
        if let Some(bucket) = &mut self.bits {
            bucket.charge(now, bytes as u128 * 8, self.burst);
        }
    }

    /// There is nothing to send at `now`: the time until somebody wants to earns no right to catch up.
    pub fn idle(&mut self, now: Instant) {
        let now = picos(now);
        for bucket in [&mut self.packets, &mut self.bits].into_iter().flatten() {
            bucket.idle(now);
        }
    }

    /// Starts a batch at `now`: how many and how long the frames may be is asked of the plan, frame by frame.
    pub const fn plan(&self, now: Instant) -> Plan {
        Plan { pacer: *self, now: now.as_nanos() as u128 * PICOS_PER_NANO }
    }
}

impl Plan {
    /// Whether one more frame may leave now.
    pub fn admits(&self) -> bool {
        [self.pacer.packets, self.pacer.bits].into_iter().flatten().all(|bucket| bucket.ready_at() <= self.now)
    }

    /// Puts a frame of `frame_len` bytes into the batch.
    pub fn add(&mut self, frame_len: usize) {
        if let Some(bucket) = &mut self.pacer.packets {
            bucket.charge(self.now, 1, self.pacer.burst);
        }
        if let Some(bucket) = &mut self.pacer.bits {
            bucket.charge(self.now, frame_len as u128 * 8, self.pacer.burst);
        }
    }
}

#[cfg(test)]
mod tests;
