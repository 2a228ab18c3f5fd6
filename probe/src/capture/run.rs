//! The loop of a capture, for a thread of its own: waits for the kernel's blocks, hands packets to the [`Session`], and ends in order.
//!
//! It must not know who asked, nor how anything is shown.
//!
//! **Invariants:** however it ends, the files are closed with the last counters, and [`Outcome`] has all of them.

use core::time::Duration;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::UnixNanos;
use super::files::{Files, Written};
use super::pcapng::{Packet, Statistics};
use super::session::{Counts, Keep, Limit, Outlet, Session};
use super::source::{BLOCK_TIMEOUT, KernelCounts, Source, SourceError};
use crate::net::clock;

/// Packets that are handled before the time is looked at again.
const BATCH: usize = 8192;
/// How often counters are read and a partly filled buffer leaves for the disk.
const TICK: Duration = Duration::from_millis(100);

/// Why it ended.
#[derive(Debug)]
pub enum End {
    /// Somebody asked for it.
    Asked,
    /// A limit was reached.
    Limit(Limit),
    /// Nothing could be written any more; [`Written::problem`] says why.
    Files,
    /// The interface went away.
    Source(SourceError),
}

/// What a capture came to.
#[derive(Debug)]
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// The kernel's counters.
    pub kernel: KernelCounts,
    /// Ours.
    pub counts: Counts,
    /// What went to files, where there are any.
    pub written: Option<Written>,
    /// Flows that were put out of a full table.
    pub flows_put_out: u64,
    /// Packets that belong to no flow.
    pub flows_others: u64,
    /// When it began and ended.
    pub began: UnixNanos,
    /// When it ended.
    pub ended: UnixNanos,
}

impl Outcome {
    /// Packets that passed the filter and were still in the kernel's buffer at the end.
    pub fn left(&self) -> u64 {
        self.kernel.accepted.saturating_sub(self.kernel.dropped).saturating_sub(self.counts.delivered)
    }

    /// Packets that came here and did not reach the disk.
    pub fn lost(&self) -> u64 {
        self.written.as_ref().map_or(0, |written| self.counts.delivered.saturating_sub(written.packets))
    }

    /// Packets of the interface that the filter did not want; `None` where the interface does not tell.
    pub fn filtered(&self) -> Option<u64> {
        self.kernel.passed.map(|passed| passed.saturating_sub(self.kernel.accepted))
    }
}

/// Files with the counters that they end with.
struct Kept {
    files: Files,
    latest: Statistics,
}

impl Keep for Kept {
    fn packet(&mut self, packet: &Packet<'_>) {
        self.files.packet(packet);
    }
    fn lens(&self) -> (u64, u64) {
        (self.files.file_len(), self.files.total_len())
    }
    fn rotate(&mut self) {
        self.files.rotate(&self.latest);
    }
}

/// The clock of the box.
pub fn now() -> UnixNanos {
    let since = clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixNanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Captures until a limit is reached, `stop` is set, or nothing more can be read or written. `day` numbers the days of local time.
pub fn capture(
    mut source: Source,
    mut session: Session,
    files: Option<Files>,
    outlet: &mut dyn Outlet,
    stop: &AtomicBool,
    day: impl Fn(UnixNanos) -> i64,
) -> Outcome {
    let (began, start) = (now(), clock::now());
    let mut keep = files.map(|files| Kept { files, latest: Statistics { time: began, start: Some(began), ..Statistics::default() } });
    let mut looked = Duration::ZERO;
    let mut end = loop {
        source.wait(BLOCK_TIMEOUT);
        let taken = take(&mut source, &mut session, keep.as_mut(), outlet, BATCH);
        let elapsed = clock::now().saturating_since(start);
        if elapsed.saturating_sub(looked) >= TICK || taken.is_err() {
            looked = elapsed;
            let kernel = source.counts();
            if let Some(keep) = &mut keep {
                keep.latest = statistics(began, None, kernel, session.counts());
                keep.files.flush();
            }
        }
        if let Err(error) = taken {
            break End::Source(error);
        }
        if keep.as_ref().is_some_and(|keep| keep.files.failed()) {
            break End::Files;
        }
        if let Some(limit) = session.tick(elapsed, day(now()), keep.as_mut().map(|keep| keep as &mut dyn Keep), outlet) {
            break End::Limit(limit);
        }
        if stop.load(Ordering::Relaxed) {
            break End::Asked;
        }
    };
    if matches!(end, End::Asked | End::Limit(Limit::Time)) {
        drain(&mut source, &mut session, keep.as_mut(), outlet, &mut end);
    }
    session.end(outlet);
    let (kernel, counts, ended) = (source.counts(), session.counts(), now());
    let written = keep.map(|keep| keep.files.finish(&statistics(began, Some(ended), kernel, counts)));
    if written.as_ref().is_some_and(|written| written.problem.is_some()) {
        end = End::Files;
    }
    let (flows_put_out, flows_others) = session.flows().map_or((0, 0), |flows| (flows.put_out(), flows.others().packets));
    Outcome { end, kernel, counts, written, flows_put_out, flows_others, began, ended }
}

/// What had passed the filter when the end was asked for is taken as well: a block that is not full comes with its timeout.
fn drain(source: &mut Source, session: &mut Session, mut keep: Option<&mut Kept>, outlet: &mut dyn Outlet, end: &mut End) {
    let asked = source.counts();
    let (wanted, until) = (asked.accepted.saturating_sub(asked.dropped), clock::now() + BLOCK_TIMEOUT * 3);
    while session.room() > 0 && session.counts().delivered < wanted && clock::now() < until {
        source.wait(BLOCK_TIMEOUT);
        let missing = wanted.saturating_sub(session.counts().delivered);
        let most = usize::try_from(missing).unwrap_or(BATCH).min(BATCH);
        if let Err(error) = take(source, session, keep.as_deref_mut(), outlet, most) {
            *end = End::Source(error);
            return;
        }
    }
}

fn take(
    source: &mut Source,
    session: &mut Session,
    mut keep: Option<&mut Kept>,
    outlet: &mut dyn Outlet,
    most: usize,
) -> Result<usize, SourceError> {
    let most = usize::try_from(session.room()).unwrap_or(most).min(most);
    source.dispatch(most, |packet| {
        session.packet(packet, keep.as_deref_mut().map(|keep| keep as &mut dyn Keep), outlet);
    })
}

fn statistics(start: UnixNanos, end: Option<UnixNanos>, kernel: KernelCounts, counts: Counts) -> Statistics {
    Statistics {
        interface: 0,
        time: end.unwrap_or_else(now),
        start: Some(start),
        end,
        received: kernel.passed,
        interface_drops: Some(kernel.interface_dropped),
        accepted: Some(kernel.accepted),
        kernel_drops: Some(kernel.dropped),
        delivered: Some(counts.delivered),
    }
}
