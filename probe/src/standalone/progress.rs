//! One line on the terminal that tells how far the run is; nothing where standard error is no terminal.

use core::time::Duration;
use std::io::{self, IsTerminal, Write};

use crate::net::time::Instant;
use crate::scan::report::Progress;

/// The line.
pub(super) struct ProgressLine {
    shown: bool,
    enabled: bool,
    started: Instant,
    total: u64,
    last: (Instant, u64),
}

impl ProgressLine {
    pub(super) fn new(now: Instant, total: u64) -> Self {
        Self { shown: false, enabled: io::stderr().is_terminal(), started: now, total, last: (now, 0) }
    }

    /// Takes the line away, so that something else can be written.
    pub(super) fn clear(&mut self) {
        if core::mem::take(&mut self.shown) {
            // A terminal that does not take it has nobody who would miss it.
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    pub(super) fn show(&mut self, now: Instant, progress: &Progress) {
        if !self.enabled {
            return;
        }
        let packets = progress.sent_packets();
        let (before, sent) = self.last;
        self.last = (now, packets);
        let span = now.saturating_since(before).as_secs_f64().max(1e-3);
        let rate = packets.saturating_sub(sent) as f64 / span;
        let line = text(now.saturating_since(self.started), self.total, progress.next(), rate, progress.answers());
        self.shown = write!(io::stderr(), "\r\x1b[K{line}").is_ok();
    }
}

fn text(elapsed: Duration, total: u64, begun: u64, rate: f64, answers: u64) -> String {
    let part = begun as f64 / total as f64;
    let left = match part {
        p if p >= 1.0 => "waiting for the last answers".to_owned(),
        p if p > 0.001 && elapsed > Duration::from_secs(1) => format!("{} left", span(elapsed.mul_f64((1.0 - p) / p))),
        _ => "estimating".to_owned(),
    };
    format!("{:.1} %  {rate:.0} pps  {answers} answers  {left}", part * 100.0)
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
        let at = |secs, begun| text(Duration::from_secs(secs), 1000, begun, 4998.4, 17);
        assert_eq!(at(0, 0), "0.0 %  4998 pps  17 answers  estimating");
        assert_eq!(at(30, 250), "25.0 %  4998 pps  17 answers  1 min 30 s left");
        assert_eq!(at(40, 1000), "100.0 %  4998 pps  17 answers  waiting for the last answers");
        assert_eq!(span(Duration::from_secs(90_000)), "1 d 1 h");
    }
}
