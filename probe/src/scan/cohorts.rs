//! Loss among the living, by when they were asked first: what the packet loop slows down for, without what no rate has caused.
//!
//! Whether a position answered its first packet is known soon, that it answered the second one much later. So both are counted for
//! those who were asked first in the same span ([`SPAN`]) and told together, when the second answers should be there.
//!
//! **An outage is no congestion.** Where too much is sent, some of it still gets through. Where of many who live not a single one answered
//! what was sent in a span, the way was broken off: a link that flapped, a radio that faded, a route that changed. To send
//! slower afterwards helps nobody. The loss of such spans, and of the two beside them which it began and ended in, is not told.
//!
//! Pure; it must not know chunks or packets. **Invariant:** at most [`KEPT`] spans are held, and what is noted is told or left out within
//! as many.

use core::time::Duration;
use std::collections::VecDeque;

use crate::net::engine::Signs;
use crate::net::time::Instant;

/// Those who were asked first in the same span are one cohort.
const SPAN: Duration = Duration::from_millis(100);
/// Most spans held.
const KEPT: usize = 64;
/// So many who live, and none of whom answered the first packet, are no chance. At a loss of three quarters it would be one in thirty.
const OUTAGE_MIN: u64 = 12;
/// What lasts longer than so many spans is how the network is.
const OUTAGE_SPANS: usize = 30;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Cohorts {
    /// When the first of them begins.
    base: Instant,
    open: VecDeque<Signs>,
    /// The latest cohort of which some got through: an outage may have begun in it.
    before: Option<Signs>,
    /// Those after it, of which nobody did, and how many they are.
    dark: (Signs, usize),
    told: Signs,
}

fn add(sum: &mut Signs, more: Signs) {
    sum.first += more.first;
    sum.repeated += more.repeated;
    sum.errors_first += more.errors_first;
    sum.errors_repeated += more.errors_repeated;
}

/// What got through at once.
fn at_once(signs: Signs) -> Signs {
    Signs { first: signs.first, errors_first: signs.errors_first, ..Signs::default() }
}

impl Cohorts {
    /// Somebody answered whose first packet left at `asked`.
    pub(super) fn note(&mut self, asked: Instant, counter: impl FnOnce(&mut Signs)) {
        if asked < self.base {
            // Its cohort was told already.
            return counter(&mut self.told);
        }
        let place = |base: Instant| (asked.saturating_since(base).as_nanos() / SPAN.as_nanos()) as usize;
        while !self.open.is_empty() && place(self.base) >= KEPT {
            self.close_first();
        }
        if self.open.is_empty() {
            let span = SPAN.as_nanos() as u64;
            self.base = self.base.max(Instant::from_nanos(asked.as_nanos() / span * span));
        }
        let place = place(self.base);
        if self.open.len() <= place {
            self.open.resize(place + 1, Signs::default());
        }
        if let Some(cohort) = self.open.get_mut(place) {
            counter(cohort);
        }
    }

    /// What was noted of those whose second answers are there by now: asked first `age` ago or longer.
    pub(super) fn take(&mut self, now: Instant, age: Duration) -> Signs {
        while !self.open.is_empty() && self.base + SPAN + age <= now {
            self.close_first();
        }
        core::mem::take(&mut self.told)
    }

    fn close_first(&mut self) {
        if let Some(cohort) = self.open.pop_front() {
            self.base += SPAN;
            self.close(cohort);
        }
    }

    fn close(&mut self, cohort: Signs) {
        if cohort.first + cohort.errors_first == 0 {
            let (dark, spans) = &mut self.dark;
            add(dark, cohort);
            *spans += 1;
            if *spans > OUTAGE_SPANS {
                self.tell_all();
            }
            return;
        }
        if self.dark.0.repeated + self.dark.0.errors_repeated >= OUTAGE_MIN {
            self.dark = Default::default();
            let before = self.before.take().unwrap_or_default();
            add(&mut self.told, at_once(before));
            add(&mut self.told, at_once(cohort));
        } else {
            self.tell_all();
            self.before = Some(cohort);
        }
    }

    /// There was no outage.
    fn tell_all(&mut self) {
        let (dark, _) = core::mem::take(&mut self.dark);
        add(&mut self.told, self.before.take().unwrap_or_default());
        add(&mut self.told, dark);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// Everybody is asked at one in each millisecond, and who is lost answers 400 ms later. What is told, second by second.
    fn told(seconds: u64, lost: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
        let mut cohorts = Cohorts::default();
        let mut each = vec![(0, 0)];
        for ms in 0..seconds * 1_000 {
            if !lost(ms) {
                cohorts.note(at(ms), |signs| signs.first += 1);
            }
            if let Some(before) = ms.checked_sub(400).filter(|before| lost(*before)) {
                cohorts.note(at(before), |signs| signs.repeated += 1);
            }
            if ms % 100 == 0 {
                let Signs { first, repeated, .. } = cohorts.take(at(ms), Duration::from_millis(401));
                let last = each.last_mut().unwrap();
                *last = (last.0 + first, last.1 + repeated);
            }
            if ms % 1_000 == 999 {
                each.push((0, 0));
            }
        }
        each
    }

    #[test]
    fn loss_is_told_of_the_same_packets_whatever_the_rate_did_meanwhile() {
        let each = told(8, |ms| ms % 4 == 0);
        for (first, repeated) in &each[1..7] {
            assert_eq!((*first, *repeated), (750, 250), "{each:?}");
        }
    }

    #[test]
    fn an_outage_is_not_told_as_loss() {
        let each = told(8, |ms| (2_350..2_650).contains(&ms));
        assert_eq!(each.iter().map(|(_, repeated)| repeated).sum::<u64>(), 0, "{each:?}");
        assert!(each.iter().map(|(first, _)| first).sum::<u64>() >= 6_900, "{each:?}");
    }

    #[test]
    fn what_lasts_is_how_the_network_is() {
        // A router that drops the first packet to everybody.
        let each = told(20, |ms| ms >= 2_000);
        assert!(each.iter().map(|(_, repeated)| repeated).sum::<u64>() > 10_000, "{each:?}");
    }

    #[test]
    fn of_few_nothing_is_concluded() {
        let each = told(8, |ms| ms % 20 != 0 || (2_350..2_650).contains(&ms));
        assert!(each.iter().map(|(_, repeated)| repeated).sum::<u64>() > 6_000, "heavy loss is not taken for an outage: {each:?}");
    }

    proptest! {
        /// Whatever comes in whatever order: bounded, and nothing is told that was not noted.
        #[test]
        fn any_order(steps in proptest::collection::vec((0u64..100_000, 0u8..5, any::<bool>()), 1..300)) {
            let mut cohorts = Cohorts::default();
            let (mut noted, mut told) = (Signs::default(), Signs::default());
            let mut now = 0;
            for (ms, what, forward) in steps {
                now = if forward { now + ms / 50 } else { now };
                let asked = at(now.saturating_sub(ms / 20));
                let count = |signs: &mut Signs| match what {
                    0 => signs.first += 1,
                    1 => signs.repeated += 1,
                    2 => signs.errors_first += 1,
                    _ => signs.errors_repeated += 1,
                };
                match what {
                    4 => add(&mut told, cohorts.take(at(now), Duration::from_millis(ms % 2_000))),
                    _ => {
                        count(&mut noted);
                        cohorts.note(asked, count);
                    }
                }
                prop_assert!(cohorts.open.len() <= KEPT);
            }
            add(&mut told, cohorts.take(at(now) + Duration::from_secs(100), Duration::ZERO));
            prop_assert!(told.first <= noted.first && told.repeated <= noted.repeated);
            prop_assert!(told.errors_first <= noted.errors_first && told.errors_repeated <= noted.errors_repeated);
            let held = cohorts.before.map_or(0, |cohort| cohort.first) + told.first;
            prop_assert_eq!(held, noted.first, "what got through at once is always told");
        }
    }
}
