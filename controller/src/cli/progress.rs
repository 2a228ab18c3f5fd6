//! How far a job is, on standard error: a bar on a terminal, now and then a line elsewhere.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::format::{count, percent, plural, rate, seconds};
use crate::view::{JobState, JobView};

/// Between two lines of progress where no bar is drawn.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Which kind of progress is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Bar,
    Lines,
    Silent,
}

/// Shows the state of one job as it changes.
pub(super) enum Progress {
    Bar(ProgressBar),
    Lines { last: Option<Instant>, every: Duration },
    Silent,
}

impl Progress {
    pub(super) fn new(style: Style, job: &JobView) -> Self {
        match style {
            Style::Silent => Progress::Silent,
            Style::Lines => Progress::Lines { last: None, every: LINE_EVERY },
            Style::Bar => {
                let bar = ProgressBar::with_draw_target(Some(job.total.max(1)), ProgressDrawTarget::stderr());
                // A template that does not parse would only cost the bar its looks.
                if let Ok(style) = ProgressStyle::with_template("{bar:24} {percent:>3}%  {msg}") {
                    bar.set_style(style.progress_chars("=> "));
                }
                Progress::Bar(bar)
            }
        }
    }

    /// Shows a new state.
    pub(super) fn show(&mut self, job: &JobView, err: &mut dyn Write) {
        match self {
            Progress::Silent => {}
            Progress::Bar(bar) => {
                bar.set_length(job.total.max(1));
                bar.set_position(done(job));
                bar.set_message(message(job));
            }
            Progress::Lines { last, every } => {
                if last.is_none_or(|last| last.elapsed() >= *every) {
                    *last = Some(Instant::now());
                    let _ = writeln!(err, "{}", line(job));
                }
            }
        }
    }

    /// A line beside the progress.
    pub(super) fn say(&self, text: &str, err: &mut dyn Write) {
        match self {
            Progress::Bar(bar) => bar.suspend(|| {
                let _ = writeln!(err, "{text}");
            }),
            _ => {
                let _ = writeln!(err, "{text}");
            }
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn done(job: &JobView) -> u64 {
    job.asked_so_far.max(job.coverage.asked).min(job.total)
}

/// `4.9k/s, 12 s left, 3 probes: attic, cellar, loft`
fn message(job: &JobView) -> String {
    let mut parts = Vec::new();
    match job.state {
        JobState::Pending => parts.push(job.reason.clone().unwrap_or_else(|| "waiting for a probe".to_owned())),
        JobState::Cancelling => parts.push("stopping".to_owned()),
        _ => parts.push(rate(job.rate)),
    }
    if let (Some(left), JobState::Running) = (job.seconds_left, job.state) {
        parts.push(format!("{} left", seconds(left)));
    }
    let working: Vec<&str> = job.probes.iter().filter(|part| part.leases > 0).map(|part| part.probe.as_str()).collect();
    if !working.is_empty() {
        let mut named = working.iter().take(4).copied().collect::<Vec<_>>().join(", ");
        if working.len() > 4 {
            named.push_str(", ...");
        }
        parts.push(format!("{}: {named}", plural(working.len(), "probe")));
    }
    parts.join(", ")
}

/// One line for logs and dumb terminals.
pub(super) fn line(job: &JobView) -> String {
    format!("job {}: {}% of {} targets, {}", job.id, percent(done(job), job.total), count(job.total), message(job))
}
