//! When to send slower than is allowed, and when to dare more again. Pure: `now` is a parameter.
//!
//! One [`Congestion`] watches the interface (does the kernel take what is sent, can be read what arrives), and one watches each
//! task (is what it asks answered). Each is told every [`REVIEW`] what happened, and holds a rate below the granted one while
//! there is reason to.
//!
//! **Signs.** Positions that have answered are known to be alive. Among them the number that answered only the second packet,
//! against the number that answered the first, is the loss: with `attempts` packets of equal chances it is exact, however many
//! others are silent. It covers a router that drops what is too much, and errors that their sender limits. Besides: drops of
//! the receive buffer, a kernel without room to send, ICMP source quench (deprecated by RFC 6633, so never more than a halving,
//! and never below the floor, whoever sends it).
//!
//! **Answer.** Down at once, to what seems to get through and a tenth less; then a pause until the effect can be seen; then up,
//! by a quarter where it has not been bad, by a twentieth near the rate at which it was. That circles round the rate that the
//! path carries within ten percent of it.
//!
//! **Not every loss is ours.** A lossy radio link loses as much at half the rate, a router that drops the first packet to each
//! new host as well. When loss stays the same through two slow-downs it does not come from the rate: the rate is given back,
//! and only more loss than that is a sign from there on.
//!
//! **Invariant:** without signs nothing changes; the rate is never above the granted one and never below a hundredth of it.

use core::time::Duration;

use picket_wire::event::Slowdown;
use picket_wire::units::PacketsPerSecond;

use super::engine::Signs;
use super::time::Instant;

/// How often a loop tells what happened.
pub const REVIEW: Duration = Duration::from_millis(100);

/// Loss beyond what the path has anyway that is a sign.
const LOSS: f64 = 0.05;
/// Fewer lost packets than this are chance.
const LOST_MIN: u64 = 8;
/// So many answers without a sign say that all is well.
const ANSWERS: u64 = 64;
/// Loss is not judged over less time.
const JUDGE_AFTER: Duration = Duration::from_millis(200);
/// What is left of loss after a slow-down that did not help.
const FUTILE: f64 = 0.7;
/// So many slow-downs in a row that did not help mean that the rate is not the cause.
const FUTILE_MAX: u32 = 2;
/// How long after a change its effect is waited for, besides the time that a repetition takes.
const SETTLE: Duration = Duration::from_millis(500);
/// Below what got through, so that queues drain.
const BELOW: f64 = 0.9;
/// Drops of the receive buffer in one review that count.
const DROPS_MIN: u64 = 16;
/// Refusals for want of room in one review that count.
const FULL_MIN: u64 = 8;
/// The floor, as a part of the granted rate.
const FLOOR: f64 = 0.01;

/// What happened since the last review.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Packets that left.
    pub sent: u64,
    /// What the engine noticed.
    pub signs: Signs,
    /// Packets received.
    pub received: u64,
    /// Packets that the kernel received and had no room for.
    pub receive_drops: u64,
    /// How often the kernel had no room to send.
    pub send_full: u64,
    /// ICMP source quenches.
    pub quenches: u64,
}

/// Answers and packets since loss was judged last.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    first: u64,
    second: u64,
    errors: u64,
    sent: u64,
    /// Time in which something was sent.
    active: Duration,
}

impl Window {
    fn add(&mut self, tally: &Tally, span: Duration) {
        let Signs { first, repeated, errors_first, errors_repeated, .. } = tally.signs;
        self.first += first + errors_first;
        self.second += repeated + errors_repeated;
        self.errors += errors_first + errors_repeated;
        self.sent += tally.sent;
        if tally.sent > 0 {
            self.active += span;
        }
    }

    fn rate(&self) -> f64 {
        self.sent as f64 / self.active.as_secs_f64().max(REVIEW.as_secs_f64())
    }

    fn loss(&self) -> f64 {
        (self.second as f64 / self.first.max(1) as f64).min(0.95)
    }

    fn reason(&self) -> Slowdown {
        if self.errors * 2 > self.first + self.second { Slowdown::IcmpLimited } else { Slowdown::Loss }
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Congestion {
    /// Packets per second, while slowed down.
    rate: Option<f64>,
    reason: Option<Slowdown>,
    /// The rate at which it was last too fast.
    bad: Option<f64>,
    /// What was sent per second when it was slowed down first: stands for the granted rate where none is set.
    top: f64,
    /// Loss that the path has at any rate.
    base: f64,
    /// The loss for which it was slowed down last.
    tried: Option<f64>,
    futile: u32,
    window: Window,
    last: Option<Instant>,
    settle_until: Instant,
    raise_at: Instant,
}

impl Congestion {
    /// The rate to keep and why, while slowed down.
    pub fn slowed(&self) -> Option<(PacketsPerSecond, Slowdown)> {
        let rate = PacketsPerSecond::new(self.rate?.max(1.0) as u32)?;
        Some((rate, self.reason?))
    }

    /// Takes in what happened since the last call; whether the rate has changed. `granted` is the packet rate that is allowed.
    pub fn review(&mut self, now: Instant, granted: Option<PacketsPerSecond>, tally: Tally) -> bool {
        let before = self.slowed();
        let span = self.last.map_or(REVIEW, |last| now.saturating_since(last));
        self.last = Some(now);
        let recent = tally.sent as f64 / span.max(REVIEW).as_secs_f64();
        let granted = granted.map(|rate| f64::from(rate.get()));
        self.window.add(&tally, span);
        if now >= self.settle_until {
            self.judge(now, granted, &tally, recent);
        } else {
            // What arrives now tells of packets from before the change.
            self.window = Window::default();
        }
        before != self.slowed()
    }

    fn judge(&mut self, now: Instant, granted: Option<f64>, tally: &Tally, recent: f64) {
        let settle = SETTLE + tally.signs.wait * 2;
        let overload = tally.receive_drops >= DROPS_MIN && tally.receive_drops * 100 > tally.received;
        if overload {
            let read = tally.received as f64 / (tally.received + tally.receive_drops) as f64;
            return self.lower(now, granted, Slowdown::ReceiveOverload, recent, read.max(0.1) * BELOW, settle);
        }
        if tally.quenches > 0 {
            return self.lower(now, granted, Slowdown::SourceQuench, recent, 0.5, settle);
        }
        // Without a limit the kernel's own back-pressure is the pace: nothing is lost by it.
        if tally.send_full >= FULL_MIN && granted.is_some() {
            return self.lower(now, granted, Slowdown::SendQueueFull, recent, 0.98, settle);
        }
        let Window { first, second, .. } = self.window;
        let lost = second >= LOST_MIN && self.window.active >= JUDGE_AFTER && self.window.loss() > self.base + LOSS;
        if lost {
            return self.on_loss(now, granted, settle);
        }
        if first + second >= ANSWERS && self.window.active >= JUDGE_AFTER {
            self.window = Window::default();
            (self.tried, self.futile) = (None, 0);
        }
        if now >= self.raise_at {
            self.raise(now, granted);
        }
    }

    fn on_loss(&mut self, now: Instant, granted: Option<f64>, settle: Duration) {
        let (loss, rate, reason) = (self.window.loss(), self.window.rate(), self.window.reason());
        self.futile = match self.tried {
            Some(before) if loss > before * FUTILE => self.futile + 1,
            _ => 0,
        };
        if self.futile >= FUTILE_MAX {
            // As much is lost as before: it is not our rate.
            let base = (loss * 1.2).min(1.0);
            *self = Self { base, last: self.last, ..Self::default() };
            return;
        }
        self.tried = Some(loss);
        self.lower(now, granted, reason, rate, (1.0 - loss).max(0.1) * BELOW, settle);
    }

    fn lower(&mut self, now: Instant, granted: Option<f64>, reason: Slowdown, sending: f64, factor: f64, settle: Duration) {
        let sending = self.rate.map_or(sending, |rate| sending.min(rate));
        if self.rate.is_none() {
            self.top = sending;
        }
        let top = granted.unwrap_or(self.top);
        self.bad = Some(sending);
        self.rate = Some((sending * factor).max(top * FLOOR).max(1.0).min(top.max(1.0)));
        self.reason = Some(reason);
        self.window = Window::default();
        self.settle_until = now + settle;
        self.raise_at = self.settle_until + SETTLE;
    }

    fn raise(&mut self, now: Instant, granted: Option<f64>) {
        let Some(rate) = self.rate else { return };
        let near = self.bad.is_some_and(|bad| (bad * 0.8..bad * 1.2).contains(&rate));
        let rate = (rate * if near { 1.05 } else { 1.25 }).max(rate + 1.0);
        if rate >= granted.unwrap_or(self.top * 1.5) {
            (self.rate, self.reason) = (None, None);
        } else {
            self.rate = Some(rate);
        }
        self.raise_at = now + SETTLE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Drives a controller against a model of a path: returns the rate at each review.
    fn run(granted: u32, seconds: u64, mut path: impl FnMut(u64, f64) -> Tally) -> (Congestion, Vec<f64>) {
        let mut congestion = Congestion::default();
        let granted = PacketsPerSecond::new(granted).unwrap();
        let mut rates = Vec::new();
        for turn in 0..seconds * 10 {
            let rate = congestion.slowed().map_or(f64::from(granted.get()), |(rate, _)| f64::from(rate.get()));
            rates.push(rate);
            let tally = path(turn, rate);
            congestion.review(Instant::from_nanos(turn * 100 * MS), Some(granted), tally);
        }
        (congestion, rates)
    }

    /// Answers where a fifth of the targets is alive and `loss` of the packets is lost.
    fn answers(rate: f64, loss: f64) -> Tally {
        let sent = rate / 10.0;
        let first = sent * 0.2 * (1.0 - loss);
        let signs = Signs { first: first as u64, repeated: (first * loss) as u64, wait: Duration::from_millis(100), ..Signs::default() };
        Tally { sent: sent as u64, signs, received: first as u64, ..Tally::default() }
    }

    #[test]
    fn a_clean_path_is_never_slowed_down() {
        let (congestion, rates) = run(5_000, 60, |_, rate| answers(rate, 0.0));
        assert!(congestion.slowed().is_none() && rates.iter().all(|rate| *rate == 5_000.0));
    }

    #[test]
    fn it_finds_the_rate_that_a_bottleneck_carries() {
        for carries in [300.0, 1_000.0, 4_000.0] {
            let (congestion, rates) = run(10_000, 120, |_, rate| answers(rate, (1.0 - carries / rate).max(0.0)));
            let late = &rates[600..];
            let mean = late.iter().sum::<f64>() / late.len() as f64;
            assert!((0.8 * carries..1.15 * carries).contains(&mean), "{mean} of {carries}");
            assert!(late.iter().all(|rate| *rate < 1.4 * carries), "{late:?}");
            assert_eq!(congestion.slowed().map(|(_, why)| why), Some(Slowdown::Loss));
        }
    }

    #[test]
    fn it_recovers_when_the_bottleneck_is_gone() {
        let (congestion, rates) = run(10_000, 90, |turn, rate| answers(rate, if turn < 300 { (1.0 - 500.0 / rate).max(0.0) } else { 0.0 }));
        assert!(rates[290] < 700.0, "{}", rates[290]);
        assert!(congestion.slowed().is_none(), "{:?}", rates.last());
    }

    #[test]
    fn loss_that_does_not_depend_on_the_rate_is_left_alone_in_the_end() {
        for loss in [0.08, 0.3, 0.6] {
            let (congestion, rates) = run(5_000, 60, |_, rate| answers(rate, loss));
            assert!(congestion.slowed().is_none(), "{loss}: {:?}", rates.last());
            let slow = rates.iter().filter(|rate| **rate < 5_000.0).count();
            assert!((1..200).contains(&slow), "{loss}: {slow} tenths of a second");
        }
    }

    #[test]
    fn errors_at_a_limited_rate_are_named() {
        // 100 ICMP errors per second, however fast one asks.
        let (congestion, rates) = run(2_000, 60, |turn, rate| {
            let sent = rate / 10.0;
            let share = (10.0 / sent).min(1.0);
            let first = sent * share / (2.0 - share);
            let signs =
                Signs { errors_first: first.round() as u64, errors_repeated: (first * (1.0 - share)).round() as u64, ..Signs::default() };
            let _ = turn;
            Tally { sent: sent as u64, signs, ..Tally::default() }
        });
        assert_eq!(congestion.slowed().map(|(_, why)| why), Some(Slowdown::IcmpLimited));
        let late = &rates[300..];
        assert!(late.iter().all(|rate| (40.0..400.0).contains(rate)), "{late:?}");
    }

    #[test]
    fn overload_and_a_full_kernel_lower_the_rate_to_what_goes() {
        let (congestion, rates) = run(50_000, 30, |_, rate| {
            let (sent, read) = (rate / 10.0, 1_000.0);
            Tally { sent: sent as u64, received: sent.min(read) as u64, receive_drops: (sent - read).max(0.0) as u64, ..Tally::default() }
        });
        assert_eq!(congestion.slowed().map(|(_, why)| why), Some(Slowdown::ReceiveOverload));
        assert!(rates[20..].iter().all(|rate| (7_000.0..13_000.0).contains(rate)), "{rates:?}");
        let (congestion, rates) = run(50_000, 30, |_, rate| {
            let (sent, room) = (rate / 10.0, 2_000.0);
            Tally { sent: sent.min(room) as u64, send_full: if sent > room { 50 } else { 0 }, ..Tally::default() }
        });
        assert_eq!(congestion.slowed().map(|(_, why)| why), Some(Slowdown::SendQueueFull));
        assert!(rates[20..].iter().all(|rate| (18_000.0..25_000.0).contains(rate)), "{rates:?}");
    }

    #[test]
    fn source_quench_halves_down_to_the_floor() {
        let (congestion, rates) = run(10_000, 60, |_, rate| Tally { sent: (rate / 10.0) as u64, quenches: 1, ..Tally::default() });
        assert_eq!(rates[1], 5_000.0);
        assert_eq!(congestion.slowed(), Some((PacketsPerSecond::new(100).unwrap(), Slowdown::SourceQuench)));
    }

    #[test]
    fn few_lost_packets_are_chance() {
        let (congestion, _) = run(100, 60, |turn, rate| {
            let signs = Signs { first: 0, repeated: u64::from(turn == 5), ..Signs::default() };
            Tally { sent: (rate / 10.0) as u64, signs, ..Tally::default() }
        });
        assert!(congestion.slowed().is_none());
    }
}
