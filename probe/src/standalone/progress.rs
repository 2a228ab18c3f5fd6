//! How far a run is: one line on the terminal that changes, or now and then a line of its own where standard error is no terminal.

use core::time::Duration;
use std::io::{self, IsTerminal, Write};

use crate::net::time::Instant;

/// Cells of the bar.
const BAR: usize = 20;

/// How a stage of a run stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Standing {
    /// What is being done: `looking for hosts`.
    pub(super) stage: &'static str,
    /// Targets.
    pub(super) total: u64,
    /// Targets begun.
    pub(super) begun: u64,
    pub(super) packets: u64,
    pub(super) answers: u64,
    /// Why it is slower than it was asked to be.
    pub(super) slow: Vec<String>,
}

/// The line.
pub(super) struct ProgressLine {
    shown: bool,
    terminal: bool,
    /// How often a line of its own is written.
    every: Option<Duration>,
    written: Instant,
    /// The stage, and since when.
    stage: (&'static str, Instant),
    last: (Instant, u64),
}

impl ProgressLine {
    pub(super) fn new(now: Instant, every: Option<u32>) -> Self {
        let every = every.map(|seconds| Duration::from_secs(seconds.into()));
        Self { shown: false, terminal: io::stderr().is_terminal(), every, written: now, stage: ("", now), last: (now, 0) }
    }

    /// Takes the line away, so that something else can be written.
    pub(super) fn clear(&mut self) {
        if core::mem::take(&mut self.shown) {
            // A terminal that does not take it has nobody who would miss it.
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    /// Whether anybody wants to see it now.
    fn is_due(&self, now: Instant) -> bool {
        self.terminal || self.every.is_some_and(|every| now.saturating_since(self.written) >= every)
    }

    pub(super) fn show(&mut self, now: Instant, standing: impl FnOnce() -> Standing) {
        if !self.is_due(now) {
            return;
        }
        let standing = standing();
        if self.stage.0 != standing.stage {
            self.stage = (standing.stage, now);
            self.last = (now, standing.packets);
        }
        let (before, sent) = self.last;
        self.last = (now, standing.packets);
        self.written = now;
        let rate = standing.packets.saturating_sub(sent) as f64 / now.saturating_since(before).as_secs_f64().max(1e-3);
        let line = text(now.saturating_since(self.stage.1), &standing, rate);
        // A stream that does not take it has nobody who would miss it.
        match self.terminal {
            true => self.shown = write!(io::stderr(), "\r\x1b[K{} {line}", bar(&standing)).is_ok(),
            false => drop(writeln!(io::stderr(), "{line}")),
        }
    }
}

fn part(standing: &Standing) -> f64 {
    standing.begun as f64 / standing.total.max(1) as f64
}

fn bar(standing: &Standing) -> String {
    let full = ((part(standing) * BAR as f64) as usize).min(BAR);
    format!("[{}{}]", "#".repeat(full), ".".repeat(BAR - full))
}

fn text(elapsed: Duration, standing: &Standing, rate: f64) -> String {
    let left = match part(standing) {
        p if p >= 1.0 => "waiting for the last answers".to_owned(),
        p if p > 0.001 && elapsed > Duration::from_secs(1) => format!("{} left", span(elapsed.mul_f64((1.0 - p) / p))),
        _ => "estimating".to_owned(),
    };
    let Standing { stage, answers, slow, .. } = standing;
    let slow = if slow.is_empty() { String::new() } else { format!("  ({})", slow.join(", ")) };
    format!("{stage} {:.1} %  {rate:.0} pps  {answers} answers  {left}{slow}", part(standing) * 100.0)
}

/// A span as people say it: two units at most.
pub(super) fn span(span: Duration) -> String {
    let s = span.as_secs();
    match s {
        0..10 => format!("{:.1} s", span.as_secs_f64()),
        10..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_reads_well() {
        let standing = |begun| Standing { stage: "ports", total: 1000, begun, packets: 0, answers: 17, slow: Vec::new() };
        let at = |secs, begun| text(Duration::from_secs(secs), &standing(begun), 4998.4);
        assert_eq!(at(0, 0), "ports 0.0 %  4998 pps  17 answers  estimating");
        assert_eq!(at(30, 250), "ports 25.0 %  4998 pps  17 answers  1 min 30 s left");
        assert_eq!(at(40, 1000), "ports 100.0 %  4998 pps  17 answers  waiting for the last answers");
        let slow = Standing { slow: vec!["clipped from 50kpps".to_owned()], ..standing(500) };
        assert!(text(Duration::from_secs(9), &slow, 1.0).ends_with("9.0 s left  (clipped from 50kpps)"));
        assert_eq!(
            (bar(&standing(0)), bar(&standing(499)), bar(&standing(1000))),
            ("[....................]".to_owned(), "[#########...........]".to_owned(), "[####################]".to_owned())
        );
        assert_eq!(span(Duration::from_secs(90_000)), "1 d 1 h");
    }
}
