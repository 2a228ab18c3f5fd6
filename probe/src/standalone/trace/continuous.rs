//! Tracing again and again: a cycle is one run of the engine over all destinations.
//!
//! **Invariant:** cycles never overlap, so that no more is under way than one trace would have.
//! **Invariant:** however it ends, statistics of all that was seen are told.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::BTreeMap;

use picket_wire::trace::Graph;

use super::output::{Again, End, Printer, Traced};
use super::run::{Listener, Run};
use super::screen::Screen;
use crate::net::clock;
use crate::net::drive::DriveGone;
use crate::net::time::Instant;
use crate::standalone::Outcome;
use crate::standalone::error::{StandaloneError, system};
use crate::trace::report::Summary;
use crate::trace::spec::TracePlan;
use crate::trace::statistics::{Statistics, narrowed};

impl Run {
    /// Traces every so often, as many times as said or until somebody stops it.
    pub(super) async fn again(mut self, mut watch: Watch, every: Duration, cycles: Option<u64>) -> Result<Outcome, StandaloneError> {
        let (started, mut sums) = (clock::now(), Summary::default());
        loop {
            let begun = clock::now();
            let plan = watch.begin();
            sums = sums + self.trace(plan, &mut watch).await?;
            if self.stopping || cycles.is_some_and(|cycles| watch.cycle >= cycles) {
                break;
            }
            self.pause(next(begun, every, clock::now())).await?;
            if self.stopping {
                break;
            }
        }
        let whole = cycles.is_none() || !self.stopping;
        let outcome = if whole { Outcome::Complete } else { Outcome::Incomplete };
        watch.end(&End { outcome, sums, took: clock::now().saturating_since(started), at: clock::wall() })?;
        Ok(outcome)
    }

    /// Waits until then, or until somebody stops it.
    async fn pause(&mut self, until: Instant) -> Result<(), StandaloneError> {
        let until = tokio::time::Instant::now() + until.saturating_since(clock::now());
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(()),
                () = self.signals.next() => {
                    self.stopping = true;
                    return Ok(());
                }
                // That the link goes down and comes up is the engines' matter.
                event = self.events.recv() => drop(event.ok_or(DriveGone)?),
            }
        }
    }
}

/// When the cycle after the one of `begun` begins: one that took too long delays it, and nothing is caught up.
fn next(begun: Instant, every: Duration, now: Instant) -> Instant {
    (begun + every).max(now)
}

/// What was seen of each destination, and who is told.
pub(super) struct Watch {
    /// How everything is asked that is possible, and how it is asked in the present cycle.
    whole: TracePlan,
    plan: TracePlan,
    /// The present cycle, from one on.
    cycle: u64,
    seen: BTreeMap<IpAddr, Statistics>,
    printer: Printer,
    /// The terminal on which the only destination is shown.
    screen: Option<Screen>,
}

impl Watch {
    pub(super) fn new(plan: TracePlan, printer: Printer, screen: Option<Screen>) -> Self {
        Self { whole: plan.clone(), plan, cycle: 0, seen: BTreeMap::new(), printer, screen }
    }

    /// The next cycle, and how it asks.
    fn begin(&mut self) -> TracePlan {
        self.cycle += 1;
        self.plan = narrowed(&self.whole, self.seen.values());
        self.plan.clone()
    }

    /// Tells what all cycles come to.
    fn end(mut self, end: &End) -> Result<(), StandaloneError> {
        self.clear();
        for statistics in self.seen.values() {
            self.printer.statistics(statistics)?;
        }
        Ok(self.printer.end(end)?)
    }
}

impl Listener for Watch {
    fn path(&mut self, traced: &Traced<'_>) -> Result<(), StandaloneError> {
        let dst = traced.path.dst;
        let statistics = self.seen.entry(dst).or_insert_with(|| Statistics::new(dst));
        let deltas = statistics.add(traced.path, &self.plan);
        self.printer.again(&Again { cycle: self.cycle, traced: *traced, deltas: &deltas })?;
        if let Some(screen) = &mut self.screen {
            screen.draw(&self.printer.report(statistics)).map_err(system("write to the terminal"))?;
        }
        Ok(())
    }

    /// Many graphs of a destination are never asked for.
    fn graph(&mut self, _graph: &Graph) -> Result<(), StandaloneError> {
        Ok(())
    }

    fn clear(&mut self) {
        if let Some(screen) = &mut self.screen {
            // A terminal that does not take it has nobody who would miss it.
            let _ = screen.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_that_took_too_long_is_followed_at_once() {
        let at = |ms| Instant::ZERO + Duration::from_millis(ms);
        let every = Duration::from_secs(1);
        assert_eq!(next(at(500), every, at(600)), at(1_500));
        assert_eq!(next(at(500), every, at(9_700)), at(9_700));
    }
}
