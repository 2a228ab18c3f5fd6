//! One program, run once: how long from its start to its end, and how much memory at most; and what processors did meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use picket_tests::lab::{Namespace, Run};

/// A run longer than this is broken.
const LONG: Duration = Duration::from_secs(120);

/// What one run came to.
pub(crate) struct Timed {
    pub(crate) seconds: f64,
    pub(crate) resident_kib: u64,
    pub(crate) stdout: String,
}

/// Runs a program, and looks at its memory all the while.
pub(crate) fn run(namespace: &Namespace, run: &Run) -> Result<Timed> {
    let began = Instant::now();
    let mut process = namespace.spawn(run)?;
    let (id, peak, running) = (process.id(), AtomicU64::new(0), AtomicBool::new(true));
    let (status, seconds) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while running.load(Ordering::Relaxed) {
                // `ip netns exec` replaces itself by the program, so the number is the program's.
                peak.fetch_max(resident_peak(id).unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let status = process.wait(LONG);
        let seconds = began.elapsed().as_secs_f64();
        running.store(false, Ordering::Relaxed);
        (status, seconds)
    });
    let status = status.with_context(|| format!("run {run:?}"))?;
    ensure!(status.success(), "{run:?} ended with {status}: {}", process.stderr());
    Ok(Timed { seconds, resident_kib: peak.into_inner(), stdout: process.stdout() })
}

fn resident_peak(id: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().trim_end_matches(" kB").parse().ok()
}

/// On a machine that others use too, who measures goes first; and stays off the processor that plays the other machines.
pub(crate) fn first(run: Run) -> Run {
    run.under(["taskset", "-c", "0", "nice", "-n", "-10"])
}

/// Processor time of all children that have ended.
pub(crate) fn children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("read the children's use of the processor")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

/// What the host of a virtual machine took from a processor since the start (proc(5), `stat`: the eighth figure, in hundredths of a second).
pub(crate) fn stolen(processor: usize) -> Result<Duration> {
    let (text, name) = (std::fs::read_to_string("/proc/stat").context("read /proc/stat")?, format!("cpu{processor} "));
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&name))
        .with_context(|| format!("/proc/stat tells nothing of processor {processor}"))?;
    let ticks: u64 = line.split_whitespace().nth(7).and_then(|ticks| ticks.parse().ok()).context("/proc/stat tells no stolen time")?;
    Ok(Duration::from_millis(ticks * 10))
}
