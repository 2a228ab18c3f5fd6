//! How long to wait for an answer: the retransmission timeout of RFC 6298, over answers of many hosts.
//!
//! The smoothed mean and deviation follow the stream of samples, and with it whichever hosts happen to answer most. A slow
//! host among fast ones would be given up too soon, so the wait also covers the slowest answer of late, which is slowly
//! forgotten.
//!
//! Asking again and giving up are two decisions. To ask again early costs one packet where the first answer was merely slow,
//! since that one counts all the same; so once enough answers were measured, repetitions follow the measured round trip down
//! to [`Timing::quick`]. To give up early loses a host that sleeps or whose router had to find it; so the wait after the last
//! attempt never falls below [`Timing::floor`].
//!
//! And to ask again early gains nothing while others have yet to be asked first: the same packets leave in the same time in whatever
//! order. Then a repetition waits for [`Timing::apart`] ([`Again::Apart`]), since what is lost is mostly lost in bursts (a radio link
//! that fades, a queue that overflows, a bridge that learns), and both packets in one burst are as good as one.
//!
//! **Invariant:** [`Rto::after`] <= ceiling; after the last attempt it is >= floor, and so is every wait before
//! `ENOUGH` round trips were measured.

use core::time::Duration;

use super::spec::Timing;

/// Round trips after which the measurement is believed further down than [`Timing::floor`].
const ENOUGH: u32 = 32;

/// When a silent target is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// As soon as an answer should be there: there is nobody else to ask.
    Soon,
    /// So late that what has lost the first packet is likely over: others are asked meanwhile.
    Apart,
}

/// The estimate.
#[derive(Debug, Clone, Copy)]
pub struct Rto {
    timing: Timing,
    /// Attempts of one round, which ask in different ways: the wait doubles from round to round.
    round: u8,
    attempts: u8,
    /// Round trips measured, up to [`ENOUGH`].
    samples: u32,
    /// The way back may not stand: nothing is asked again before [`Timing::initial`].
    settling: bool,
    smoothed: Option<Estimate>,
    slowest: Duration,
    current: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Estimate {
    mean: Duration,
    deviation: Duration,
}

impl Rto {
    /// Nothing is measured yet; a silent target is asked `attempts` times in all.
    pub fn new(timing: Timing, attempts: u8) -> Self {
        let timing = Timing { ceiling: timing.ceiling.max(timing.floor), quick: timing.quick.min(timing.floor), ..timing };
        let current = timing.initial.clamp(timing.floor, timing.ceiling);
        Self { timing, round: 1, attempts, samples: 0, settling: false, smoothed: None, slowest: Duration::ZERO, current }
    }

    /// With `round` attempts that ask in different ways before the first way is tried again: silence to one of them is no sign
    /// of congestion to the next.
    #[must_use]
    pub fn with_round(self, round: u8) -> Self {
        Self { round: round.max(1), ..self }
    }

    /// The mean round trip, where one was measured.
    pub fn mean(&self) -> Option<Duration> {
        self.smoothed.map(|estimate| estimate.mean)
    }

    /// The wait after attempt number `attempt`, counted from 0: twice as long each round (RFC 6298, section 5.5).
    pub fn after(&self, attempt: u8) -> Duration {
        let wait = (self.current * (1 << (attempt / self.round).min(10))).min(self.timing.ceiling);
        if attempt.saturating_add(1) < self.attempts { wait } else { wait.max(self.timing.floor) }
    }

    /// The pause between attempt number `attempt` and the next; the wait after the last one.
    pub fn pause(&self, attempt: u8, again: Again) -> Duration {
        let wait = self.after(attempt);
        match again {
            Again::Apart if attempt.saturating_add(1) < self.attempts => wait.max(self.timing.apart),
            _ => wait,
        }
    }

    /// Takes a round trip; it is exact, since each answer names the attempt that it answers. Whether the estimate has changed
    /// enough to look at timers again.
    pub fn sample(&mut self, rtt: Duration) -> bool {
        // RFC 6298, sections 2.2 and 2.3.
        let next = match self.smoothed {
            None => Estimate { mean: rtt, deviation: rtt / 2 },
            Some(Estimate { mean, deviation }) => {
                Estimate { deviation: (deviation * 3 + mean.abs_diff(rtt)) / 4, mean: (mean * 7 + rtt) / 8 }
            }
        };
        self.smoothed = Some(next);
        self.samples = (self.samples + 1).min(ENOUGH);
        self.slowest = self.slowest.max(rtt);
        self.update()
    }

    /// A chunk is over: what was slow once is forgotten by and by. `late` says that answers came after the wait for them.
    pub fn chunk_over(&mut self, late: bool) -> bool {
        self.slowest = match late {
            // How late they were nobody knows any more; were the wait right, there would be none.
            true => (self.current * 3 / 2).min(self.timing.ceiling),
            false => self.slowest * 3 / 4,
        };
        self.update()
    }

    /// Whether the way back may not stand, as after the interface came up: waits are then as long as before any measurement.
    pub fn set_settling(&mut self, settling: bool) {
        self.settling = settling;
        self.update();
    }

    /// Recomputes the wait; small changes are not worth touching every timer.
    fn update(&mut self) -> bool {
        let estimate = match self.smoothed {
            None => self.timing.initial,
            Some(Estimate { mean, deviation }) => mean + deviation * 4,
        };
        let least = match (self.settling, self.samples < ENOUGH) {
            (true, _) => self.timing.initial.max(self.timing.floor),
            (false, true) => self.timing.floor,
            (false, false) => self.timing.quick,
        };
        let next = estimate.max(self.slowest * 5 / 4).clamp(least.min(self.timing.ceiling), self.timing.ceiling);
        let changed = next.abs_diff(self.current) > self.current / 16;
        if changed {
            self.current = next;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn starts_at_the_initial_wait_and_doubles_to_the_ceiling() {
        let rto = Rto::new(Timing::default(), 10);
        assert_eq!([0, 1, 2, 9].map(|attempt| rto.after(attempt)), [ms(1000), ms(2000), ms(3000), ms(3000)]);
    }

    #[test]
    fn different_questions_of_one_round_wait_equally_long() {
        let rto = Rto::new(Timing::default(), 10).with_round(2);
        assert_eq!([0, 1, 2, 3, 4].map(|attempt| rto.after(attempt)), [ms(1000), ms(1000), ms(2000), ms(2000), ms(3000)]);
    }

    #[test]
    fn fast_answers_bring_it_to_the_floor() {
        let mut rto = Rto::new(Timing::default(), 10);
        assert!(rto.sample(Duration::from_micros(300)));
        assert_eq!(rto.after(0), ms(100));
        assert_eq!(rto.mean(), Some(Duration::from_micros(300)));
    }

    #[test]
    fn many_fast_answers_let_it_ask_again_sooner_but_give_up_no_sooner() {
        let mut rto = Rto::new(Timing::default(), 3);
        for _ in 1..ENOUGH {
            rto.sample(Duration::from_micros(300));
        }
        assert_eq!(rto.after(0), ms(100));
        rto.sample(Duration::from_micros(300));
        assert_eq!([0, 1, 2].map(|attempt| rto.after(attempt)), [ms(25), ms(50), ms(100)]);
        rto.sample(ms(40));
        assert_eq!(rto.after(0), ms(50), "a slow one among them is waited for");
    }

    #[test]
    fn where_others_are_asked_meanwhile_repetitions_are_apart_and_giving_up_is_as_soon() {
        let mut rto = Rto::new(Timing::default(), 3);
        assert_eq!([0, 1, 2].map(|attempt| rto.pause(attempt, Again::Apart)), [0, 1, 2].map(|attempt| rto.after(attempt)), "it is slow");
        for _ in 0..ENOUGH {
            rto.sample(Duration::from_micros(300));
        }
        assert_eq!([0, 1, 2].map(|attempt| rto.pause(attempt, Again::Apart)), [ms(400), ms(400), ms(100)]);
        assert_eq!([0, 1, 2].map(|attempt| rto.pause(attempt, Again::Soon)), [ms(25), ms(50), ms(100)]);
    }

    #[test]
    fn one_slow_host_among_fast_ones_is_waited_for_and_then_forgotten() {
        let mut rto = Rto::new(Timing::default(), 10);
        rto.sample(ms(400));
        for _ in 0..1000 {
            rto.sample(ms(1));
        }
        assert!(rto.after(0) >= ms(470), "{:?}", rto.after(0));
        for _ in 0..12 {
            rto.chunk_over(false);
        }
        assert_eq!((rto.after(0), rto.after(9)), (ms(25), ms(3000)));
    }

    #[test]
    fn while_the_way_back_may_not_stand_nothing_is_asked_again_soon() {
        let mut rto = Rto::new(Timing::default(), 2);
        for _ in 0..1000 {
            rto.sample(Duration::from_micros(300));
        }
        assert!(rto.after(0) < ms(100));
        rto.set_settling(true);
        assert_eq!(rto.after(0), ms(1000));
        rto.sample(Duration::from_micros(300));
        assert_eq!(rto.after(0), ms(1000));
        rto.set_settling(false);
        assert!(rto.after(0) < ms(100));
    }

    #[test]
    fn late_answers_lengthen_it_up_to_the_ceiling() {
        let mut rto = Rto::new(Timing::default(), 10);
        rto.sample(ms(1));
        let before = rto.after(0);
        assert!(rto.chunk_over(true) && rto.after(0) > before);
        for _ in 0..20 {
            rto.chunk_over(true);
        }
        assert_eq!(rto.after(0), ms(3000));
        rto.sample(Duration::from_secs(4000));
        assert_eq!(rto.after(3), ms(3000));
    }
}
