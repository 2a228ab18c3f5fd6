//! How long to wait for an answer: the retransmission timeout of RFC 6298, over answers of many hosts.
//!
//! The smoothed mean and deviation follow the stream of samples, and with it whichever hosts happen to answer most. A slow
//! host among fast ones would be given up too soon, so the wait also covers the slowest answer of late, which is slowly
//! forgotten.
//!
//! **Invariant:** floor <= [`Rto::after`] <= ceiling.

use core::time::Duration;

use super::spec::Timing;

/// The estimate.
#[derive(Debug, Clone, Copy)]
pub struct Rto {
    timing: Timing,
    /// Attempts of one round, which ask in different ways: the wait doubles from round to round.
    round: u8,
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
    /// Nothing is measured yet.
    pub fn new(timing: Timing) -> Self {
        let timing = Timing { ceiling: timing.ceiling.max(timing.floor), ..timing };
        Self { timing, round: 1, smoothed: None, slowest: Duration::ZERO, current: timing.initial.clamp(timing.floor, timing.ceiling) }
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
        (self.current * (1 << (attempt / self.round).min(10))).min(self.timing.ceiling)
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

    /// Recomputes the wait; small changes are not worth touching every timer.
    fn update(&mut self) -> bool {
        let estimate = match self.smoothed {
            None => self.timing.initial,
            Some(Estimate { mean, deviation }) => mean + deviation * 4,
        };
        let next = estimate.max(self.slowest * 5 / 4).clamp(self.timing.floor, self.timing.ceiling);
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
        let rto = Rto::new(Timing::default());
        assert_eq!([0, 1, 2, 9].map(|attempt| rto.after(attempt)), [ms(1000), ms(2000), ms(3000), ms(3000)]);
    }

    #[test]
    fn different_questions_of_one_round_wait_equally_long() {
        let rto = Rto::new(Timing::default()).with_round(2);
        assert_eq!([0, 1, 2, 3, 4].map(|attempt| rto.after(attempt)), [ms(1000), ms(1000), ms(2000), ms(2000), ms(3000)]);
    }

    #[test]
    fn fast_answers_bring_it_to_the_floor() {
        let mut rto = Rto::new(Timing::default());
        assert!(rto.sample(Duration::from_micros(300)));
        assert_eq!(rto.after(0), ms(100));
        assert_eq!(rto.mean(), Some(Duration::from_micros(300)));
    }

    #[test]
    fn one_slow_host_among_fast_ones_is_waited_for_and_then_forgotten() {
        let mut rto = Rto::new(Timing::default());
        rto.sample(ms(400));
        for _ in 0..1000 {
            rto.sample(ms(1));
        }
        assert!(rto.after(0) >= ms(470), "{:?}", rto.after(0));
        for _ in 0..10 {
            rto.chunk_over(false);
        }
        assert_eq!(rto.after(0), ms(100));
    }

    #[test]
    fn late_answers_lengthen_it_up_to_the_ceiling() {
        let mut rto = Rto::new(Timing::default());
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
