//! When a frame may leave: both limits of an interface (frames per second and bits per second of layer-2 frames), with a
//! stated burst in time. Pure: `now` is a parameter.
//!
//! A sender on a busy machine wakes up late now and then. To hold the mean exactly, a late sender must be allowed to catch
//! up, and catching up at once would be a burst. So each limit has two conditions:
//!
//! - the **schedule** (GCRA, ITU-T I.371 annex A) advances by the exact cost of each frame. A sender late by at most
//!   [`Limits::burst`] catches up all of it; what is later than that is lost, never sent after. Time in which nobody wanted to
//!   send earns nothing ([`Pacer::idle`]), so a start is no burst.
//! - the **spacing** counts what was charged in the last millisecond, and holds that to a little more than the limit's share of
//!   it: 2, 12 and 110 frames at 1k, 10k and 100k per second, a quarter more of bits. A delay of less than a millisecond is made
//!   good at once, a longer one by and by.
//!
//! A timer for each frame would cost more than the frames: [`Pacer::wake_at`] lets a few come due together, never more than the
//! spacing leaves room for: two at 1k and 10k per second, eight at 100k. Below 1k per second frames go one by one.
//!
//! **Invariant:** for each limit, in every window of length W, what was charged is at most `limit * (W + burst)` and one frame
//! more; also at most the spacing's share in every millisecond, of bits one frame more. It holds for the moments at which frames were
//! charged and for every earlier moment back to the [`Plan`] that admitted them, so a sender that is preempted in the middle is covered.
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
const NANOS_PER_MILLI: u64 = 1_000_000;
/// Frames may be this much closer together at the other end than they were here, and still keep the millisecond's share:
/// what a timer of the machine that receives them is late.
const JITTER: u64 = 100_000;
/// How long frames may be saved up for one wake-up at rates of many frames per millisecond.
const PATIENCE: u64 = 100_000;
/// Frames further apart than this (200 µs), or bits at fewer than 480 in this time, are sent by timers alone.
const SPARSE: u128 = 200_000_000;
/// The shortest frame that counts, in bits.
const SHORT_FRAME: u128 = 480;
/// Moments that the spacing remembers.
const STAMPS: usize = 64;

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

/// What was charged in the last millisecond, in units (frames or bits), and when: by groups of units, so that its size is fixed.
#[derive(Debug)]
struct Spacing {
    /// A millisecond and what frames may move together on their way, in nanoseconds.
    width: u64,
    /// Units in that time at most.
    most: u64,
    /// Units of a group.
    group: u64,
    /// Units charged so far.
    total: u64,
    /// When the last unit of each of the last groups was charged, in nanoseconds.
    stamps: [u64; STAMPS],
}

impl Spacing {
    fn new(width: u64, most: u64) -> Self {
        // Two groups are in part outside of what is looked back to.
        let group = most.div_ceil(STAMPS as u64 - 2);
        Self { width, most, group, total: 0, stamps: [0; STAMPS] }
    }

    /// When one more unit may be charged, in nanoseconds.
    fn opens_at(&self) -> u64 {
        self.total.checked_sub(self.most).map_or(0, |behind| self.stamp(behind) + self.width)
    }

    /// How many units may be charged at `now`, in nanoseconds.
    fn room(&self, now: u64) -> u64 {
        let Some(since) = now.checked_sub(self.width) else {
            return self.most.saturating_sub(self.total);
        };
        // Whole groups, the newest first, for as long as they lie within the width.
        let oldest = self.total.saturating_sub(self.most);
        let mut from = self.total;
        while from > oldest && self.stamp(from - 1) > since {
            from = (from - 1) / self.group * self.group;
        }
        self.most - (self.total - from.max(oldest))
    }

    /// Until when unit `at`, one of the last ones, has been charged.
    fn stamp(&self, at: u64) -> u64 {
        self.stamps[slot(at / self.group)]
    }

    fn charge(&mut self, now: u64, units: u64) {
        let first = (self.total / self.group).max(((self.total + units) / self.group).saturating_sub(STAMPS as u64));
        self.total += units;
        for group in first..=self.total.saturating_sub(1) / self.group {
            let stamp = &mut self.stamps[slot(group)];
            *stamp = now.max(*stamp);
        }
    }

    /// As if all that fits had been charged at `now`.
    fn fill(&mut self, now: u64) {
        self.charge(now, self.most);
    }
}

/// The schedule after `units` more; a sender that is later than `burst` has lost what is more.
fn advanced(schedule: u128, now: u128, units: u64, unit: u128, burst: u128) -> u128 {
    schedule.max(now.saturating_sub(burst)) + u128::from(units) * unit
}

/// A millisecond, or half of a burst that is shorter than two.
fn is_far_behind(schedule: u128, now: u128, burst: u128) -> bool {
    schedule + (u128::from(NANOS_PER_MILLI) * PICOS_PER_NANO).min(burst / 2) <= now
}

const fn slot(group: u64) -> usize {
    (group % STAMPS as u64) as usize
}

/// One limit: cost in picoseconds per unit (frame or bit), and its two conditions.
#[derive(Debug)]
struct Bucket {
    unit: u128,
    /// How long a loop may sleep on when the next frame is due, in picoseconds.
    patience: u128,
    /// In picoseconds.
    schedule: u128,
    spacing: Spacing,
}

impl Bucket {
    /// A limit of frames.
    fn packets(rate: PacketsPerSecond) -> Self {
        let rate = u64::from(rate.get());
        let frame = 1_000_000_000 / rate;
        let width = NANOS_PER_MILLI + JITTER.min(frame / 2);
        // A fifth more, and less than a fifth at rates where that would be a burst of its own; at low rates a whole frame more.
        let share = (rate * 12 / 10_000).min((rate / 1_000 + 10).max(rate * 11 / 10_000));
        let most = share.max(rate * width / 1_000_000_000 + 1);
        let spacing = Spacing::new(width, most);
        // So many together, each time so many are due, must fit; of a group the last one stands for all.
        let fits = |count: &u64| count * (width / (count * frame).max(1) + 1) + spacing.group - 1 <= most;
        let longest = if frame > NANOS_PER_MILLI { 1 } else { (PATIENCE / frame.max(1)).max(2) };
        let together = (1..=longest).rev().find(fits).unwrap_or(1);
        Self::new(rate, spacing, (together - 1) * frame)
    }

    /// A limit of bits.
    fn bits(rate: BitsPerSecond) -> Self {
        let most = (rate.get() / 1_000 * 5 / 4).max(1);
        Self::new(rate.get(), Spacing::new(NANOS_PER_MILLI, most), PATIENCE)
    }

    fn new(per_second: u64, spacing: Spacing, patience: u64) -> Self {
        // Rounded up: a rounding error may only ever make us slower.
        let unit = PICOS_PER_SEC.div_ceil(u128::from(per_second));
        Self { unit, patience: u128::from(patience) * PICOS_PER_NANO, schedule: 0, spacing }
    }

    fn ready_at(&self) -> u128 {
        self.schedule.max(u128::from(self.spacing.opens_at()) * PICOS_PER_NANO)
    }

    /// How late each wake-up may be, in picoseconds, at which the spacing's share still makes up for it.
    fn tolerance(&self) -> u128 {
        (u128::from(self.spacing.most) * self.unit).saturating_sub(u128::from(self.spacing.width) * PICOS_PER_NANO)
    }

    fn charge(&mut self, now: Instant, units: u64, burst: u128) {
        self.schedule = advanced(self.schedule, picos(now), units, self.unit, burst);
        self.spacing.charge(now.as_nanos(), units);
    }

    fn idle(&mut self, now: Instant) {
        self.schedule = self.schedule.max(picos(now));
    }

    /// A change of limits is no fresh start.
    fn resume(&mut self, now: Instant) {
        self.schedule = picos(now);
        self.spacing.fill(now.as_nanos());
    }
}

/// A pacer that everything shares which opens connections on one interface.
pub type SharedPacer = Arc<Mutex<Pacer>>;

/// The state of one interface's (or one task's) limits.
#[derive(Debug)]
pub struct Pacer {
    limits: Limits,
    burst: u128,
    packets: Option<Bucket>,
    bits: Option<Bucket>,
}

/// A batch being put together against a [`Pacer`]: nothing is charged until it has left.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    now: u128,
    burst: u128,
    packets: Option<Planned>,
    bits: Option<Planned>,
}

/// What is left of one limit for a batch.
#[derive(Debug, Clone, Copy)]
struct Planned {
    unit: u128,
    schedule: u128,
    /// Units that the spacing has room for; a last frame may take more. And what it would have if nothing had left.
    room: u64,
    most: u64,
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
            packets: limits.packets.map(Bucket::packets),
            bits: limits.bits.map(Bucket::bits),
        }
    }

    /// The limits it holds.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Changes the limits. The first frame under the new ones waits a full millisecond, so that alternating between two limits is
    /// never faster than the higher one.
    pub fn set_limits(&mut self, now: Instant, limits: Limits) {
        if limits != self.limits {
            *self = Self::new(limits);
            self.buckets().for_each(|bucket| bucket.resume(now));
        }
    }

    fn buckets(&mut self) -> impl Iterator<Item = &mut Bucket> {
        [&mut self.packets, &mut self.bits].into_iter().flatten()
    }

    /// When the next frame may leave, whatever its length; in the past where it may leave now.
    pub fn ready_at(&self) -> Instant {
        instant([&self.packets, &self.bits].into_iter().flatten().map(Bucket::ready_at).max().unwrap_or(0))
    }

    /// When a loop that has nothing else to do should look again: [`Self::ready_at`] or, at high rates and while on schedule,
    /// a little later, so that one wake-up serves several frames.
    pub fn wake_at(&self) -> Instant {
        // A limit that is not the one that holds is behind its schedule by the whole burst, so its patience is not waited for.
        let wake_at = |bucket: &Bucket| (bucket.schedule + bucket.patience).max(bucket.ready_at());
        instant([&self.packets, &self.bits].into_iter().flatten().map(wake_at).max().unwrap_or(0))
    }

    /// How late a sender may wake up each time without falling behind; `None` at rates so low that it does not matter.
    pub fn tolerance(&self) -> Option<Duration> {
        let dense = |bucket: &&Bucket, shortest: u128| bucket.unit * shortest <= SPARSE;
        let packets = self.packets.as_ref().filter(|bucket| dense(bucket, 1));
        let bits = self.bits.as_ref().filter(|bucket| dense(bucket, SHORT_FRAME));
        let least = [packets, bits].into_iter().flatten().map(Bucket::tolerance).min()?;
        Some(Duration::from_nanos(u64::try_from(least / PICOS_PER_NANO).unwrap_or(u64::MAX)))
    }

    /// Whether the sender is so far behind its schedule that the spacing is what it waits for: each moment lost is missing where it
    /// catches up.
    pub fn is_behind(&self, now: Instant) -> bool {
        [&self.packets, &self.bits].into_iter().flatten().all(|bucket| is_far_behind(bucket.schedule, picos(now), self.burst))
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
        if let Some(bucket) = &mut self.packets {
            bucket.charge(now, frames as u64, self.burst);
        }
        if let Some(bucket) = &mut self.bits {
            bucket.charge(now, bytes as u64 * 8, self.burst);
        }
    }

    /// There is nothing to send at `now`: the time until somebody wants to earns no right to catch up.
    pub fn idle(&mut self, now: Instant) {
        self.buckets().for_each(|bucket| bucket.idle(now));
    }

    /// Starts a batch at `now`: how many and how long the frames may be is asked of the plan, frame by frame.
    pub fn plan(&self, now: Instant) -> Plan {
        let planned = |bucket: &Bucket| {
            let (room, most) = (bucket.spacing.room(now.as_nanos()), bucket.spacing.most);
            Planned { unit: bucket.unit, schedule: bucket.schedule, room, most }
        };
        let [packets, bits] = [&self.packets, &self.bits].map(|bucket| bucket.as_ref().map(planned));
        Plan { now: picos(now), burst: self.burst, packets, bits }
    }
}

impl Planned {
    fn add(&mut self, now: u128, units: u64, burst: u128) {
        self.schedule = advanced(self.schedule, now, units, self.unit, burst);
        self.room = self.room.saturating_sub(units);
    }
}

impl Plan {
    /// Whether the sender is behind and does not even use the spacing's share: its processor is what holds it up.
    pub fn is_held_up(&self) -> bool {
        let unused = |limit: &Planned| is_far_behind(limit.schedule, self.now, self.burst) && limit.room > limit.most / 8;
        [&self.packets, &self.bits].into_iter().flatten().all(unused)
    }

    /// Whether one more frame may leave now.
    pub fn admits(&self) -> bool {
        [&self.packets, &self.bits].into_iter().flatten().all(|limit| limit.schedule <= self.now && limit.room > 0)
    }

    /// Puts a frame of `frame_len` bytes into the batch.
    pub fn add(&mut self, frame_len: usize) {
        if let Some(limit) = &mut self.packets {
            limit.add(self.now, 1, self.burst);
        }
        if let Some(limit) = &mut self.bits {
            limit.add(self.now, frame_len as u64 * 8, self.burst);
        }
    }
}

#[cfg(test)]
mod tests;
