//! How evenly a scan sends, seen from outside: `picket-probe scan` at each rate into a sink, captured in the sink's namespace.
//!
//! The sink answers nothing, so every target is one frame and a run is as long as its rate says. What is judged is what the
//! probe's program promises of any window of time (`limit x window` and the stated burst), its mean, and what it costs.
//!
//! Each rate is run several times: a machine that does something else meanwhile makes a sender late, which costs the mean, so the
//! median of the means is judged; of windows and bursts the worst of all runs, since no machine may make them larger.
//!
//! **Quiet:** the sender has a processor of its own, what arrives at the sink is worked on by another, and processors are kept from
//! idle states that take long to leave (`/dev/cpu_dma_latency`), as for every measurement of timers: what is judged is the sender, not
//! how a virtual machine wakes up.
//!
//! **Fair:** the capture counts the frames that it could not keep, and a line says so; a figure beside a loss is no figure of the
//! sender. Frames count as the 60 bytes that Ethernet pads them to, as the limit has them, though a virtual link does not pad.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use picket_tests::lab::Lab;
use picket_tests::lab::programs::Programs;
use picket_tests::lab::sink::Sink;
use picket_tests::lab::watch::{Direction, Timing, WINDOWS, Watch};

use crate::timed;

const ROUNDS: usize = 5;

/// What a limit is of.
#[derive(Clone, Copy)]
enum Limit {
    Packets(u32),
    Bits(u64),
}

/// The matrix.
const LIMITS: [Limit; 8] = [
    Limit::Packets(100),
    Limit::Packets(1_000),
    Limit::Packets(10_000),
    Limit::Packets(50_000),
    Limit::Packets(100_000),
    Limit::Bits(1_000_000),
    Limit::Bits(10_000_000),
    Limit::Bits(100_000_000),
];
/// How long a run sends.
const SECONDS: f64 = 3.5;
/// At low rates it lasts longer, up to so many seconds: one frame more or less at its end is not to be seen in its mean.
const LEAST_FRAMES: u64 = 7_000;
const LONGEST: f64 = 7.0;
/// What a frame counts at least: Ethernet pads shorter ones.
const PADDED: u32 = 60;
/// The stated burst in seconds of the limit; one frame comes on top.
const BURST: f64 = 0.010;
/// How far the mean may be from the limit.
const MEAN_BAR: f64 = 0.000_5;
/// What a scan of 1000 packets a second may cost, as a share of one core.
const PROCESSOR_BAR: f64 = 0.05;
/// The processor that it runs on.
const SENDER: usize = 0;
/// A run longer than this is broken.
const LONG: Duration = Duration::from_secs(60);

impl Limit {
    /// In its own units per second.
    fn rate(self) -> f64 {
        match self {
            Self::Packets(rate) => f64::from(rate),
            Self::Bits(rate) => rate as f64,
        }
    }

    /// What one frame of a SYN scan takes of it.
    fn frame(self) -> f64 {
        match self {
            Self::Packets(_) => 1.0,
            Self::Bits(_) => f64::from(PADDED * 8),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Packets(rate) => format!("{rate} pps"),
            Self::Bits(rate) => format!("{} Mbit/s", rate / 1_000_000),
        }
    }

    /// The interface's limits of packets and bits, the other one out of the way; AF_XDP begins above.
    fn settings(self) -> (String, String) {
        match self {
            Self::Packets(rate) => (format!("{rate}pps"), "10Gbit".to_owned()),
            Self::Bits(rate) => ("240kpps".to_owned(), format!("{rate}bit")),
        }
    }

    /// Targets for a run of [`SECONDS`].
    fn frames(self) -> u64 {
        let per_second = self.rate() / self.frame();
        ((per_second * SECONDS) as u64).max(LEAST_FRAMES.min((per_second * LONGEST) as u64))
    }
}

/// One run.
struct Outcome {
    timing: Timing,
    expected: u64,
    /// Frames that the capture had no room for.
    lost: u64,
    processor: Duration,
    /// What the host of a virtual machine took from the sender's processor meanwhile.
    stolen: Duration,
}

/// The section.
pub(crate) fn run() -> Result<()> {
    let lab = Lab::new("pacing")?;
    let sink = Sink::new(&lab)?;
    // What arrives is another machine's work.
    sink.sink().receive_on(Sink::DEVICE, 2)?;
    let _awake = awake();
    for limit in LIMITS {
        let outcomes = (0..ROUNDS).map(|_| measure(&sink, limit)).collect::<Result<Vec<_>>>().with_context(|| limit.name())?;
        report(limit, &outcomes);
    }
    Ok(())
}

/// Keeps processors from deep idle states for as long as it is held; a machine without that door is measured as it is.
fn awake() -> Option<File> {
    let mut door = File::options().write(true).open("/dev/cpu_dma_latency").ok()?;
    // Microseconds (Linux, Documentation/power/pm_qos_interface.rst).
    door.write_all(&0i32.to_ne_bytes()).ok()?;
    Some(door)
}

fn measure(sink: &Sink, limit: Limit) -> Result<Outcome> {
    let (targets, ports, expected) = targets(limit.frames())?;
    let (packets, bits) = limit.settings();
    let probe = Programs::locate()?
        .probe(&["scan", &targets, "-p", &ports, "-Pn", "--attempts", "1", "-i", Sink::DEVICE])?
        .env("PICKET_INTERFACE__PACKETS", packets)
        .env("PICKET_INTERFACE__BITS", bits)
        .env("PICKET_POLICY__ALLOW", "198.18.0.0/15")
        .under(["taskset", "-c", "0", "nice", "-n", "-10"]);
    let watch = Watch::start(sink.sink(), Sink::DEVICE, Direction::In, Some("tcp and dst net 198.18.0.0/16"))?;
    let (before, stolen) = (timed::children()?, timed::stolen(SENDER)?);
    let mut process = sink.sender().spawn(&probe)?;
    let status = process.wait(LONG)?;
    // The capture still runs, so the scan is the only child that has ended meanwhile.
    let processor = timed::children()?.saturating_sub(before);
    let stolen = timed::stolen(SENDER)?.saturating_sub(stolen);
    ensure!(status.success(), "the scan ended with {status}: {}", process.stderr());
    let (capture, lost) = watch.stop_counting()?;
    let timing = Timing::new(capture.frames().map(|frame| (frame.at, frame.length.max(PADDED))));
    ensure!(timing.packets() + lost == expected, "{} frames passed and {lost} were lost of {expected}", timing.packets());
    Ok(Outcome { timing, expected, lost, processor, stolen })
}

/// A range of addresses and one of ports that make about `frames` targets, as they are typed, and how many they make.
fn targets(frames: u64) -> Result<(String, String, u64)> {
    let ports = frames.div_ceil(1 << 16);
    let addresses = frames / ports;
    let last = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + u32::try_from(addresses - 1)?);
    Ok((format!("198.18.0.0-{last}"), format!("1-{ports}"), addresses * ports))
}

fn report(limit: Limit, outcomes: &[Outcome]) {
    let name = limit.name();
    report_mean(limit, outcomes);
    report_windows(limit, outcomes);
    let share = |outcome: &Outcome| outcome.processor.as_secs_f64() / outcome.timing.span().as_secs_f64();
    let share = crate::median(outcomes.iter().map(share));
    let bar = match limit {
        Limit::Packets(1_000) => format!(" (bar {} %, {})", PROCESSOR_BAR * 100.0, kept(share < PROCESSOR_BAR)),
        _ => String::new(),
    };
    println!("pacing  {name}: processor {:.2} % of a core while sending, start and end included{bar}", share * 100.0);
    let pauses = outcomes.iter().map(|outcome| {
        let milliseconds = |nanos: u64| nanos as f64 / 1e6;
        format!("{:.1} ({:.0} stolen)", milliseconds(outcome.timing.gaps().most), outcome.stolen.as_secs_f64() * 1e3)
    });
    println!("pacing  {name}: longest pause of each run in ms {}", pauses.collect::<Vec<_>>().join(", "));
    let lost: u64 = outcomes.iter().map(|outcome| outcome.lost).sum();
    if lost > 0 {
        let expected: u64 = outcomes.iter().map(|outcome| outcome.expected).sum();
        println!("pacing  {name}: the capture lost {lost} of {expected} frames: its figures are too low");
    }
}

fn report_mean(limit: Limit, outcomes: &[Outcome]) {
    let mean = |timing: &Timing| match limit {
        Limit::Packets(_) => timing.mean_packets(),
        Limit::Bits(_) => timing.mean_bits(),
    };
    let off: Vec<f64> = outcomes.iter().map(|outcome| mean(&outcome.timing) / limit.rate() - 1.0).collect();
    let each = off.iter().map(|off| format!("{:+.4}", off * 100.0)).collect::<Vec<_>>().join(", ");
    let (median, name) = (crate::median(off), limit.name());
    println!(
        "pacing  {name}: {} frames in {:.3} s, mean off the limit by {:+.4} % (bar {} %, {}; runs {each})",
        outcomes[0].expected,
        outcomes[0].timing.span().as_secs_f64(),
        median * 100.0,
        MEAN_BAR * 100.0,
        kept(median.abs() <= MEAN_BAR),
    );
}

fn report_windows(limit: Limit, outcomes: &[Outcome]) {
    let (rate, name) = (limit.rate(), limit.name());
    let stated = rate * BURST + limit.frame();
    let (mut above, mut most) = (Vec::new(), Vec::new());
    for width in WINDOWS {
        let peaks: Vec<_> = outcomes.iter().map(|outcome| outcome.timing.peak(width)).collect();
        let packets = peaks.iter().map(|peak| peak.packets).max().unwrap_or(0);
        let bits = peaks.iter().map(|peak| peak.bits).max().unwrap_or(0);
        let passed = match limit {
            Limit::Packets(_) => packets as f64,
            Limit::Bits(_) => bits as f64,
        };
        most.push(format!("{packets} packets = {bits} bits in {} ms", width.as_millis()));
        if passed > rate * width.as_secs_f64() + stated {
            above.push(format!("{} ms", width.as_millis()));
        }
    }
    let burst = |timing: &Timing| match limit {
        Limit::Packets(_) => timing.burst_packets(rate),
        Limit::Bits(_) => timing.burst_bits(rate),
    };
    let burst = outcomes.iter().map(|outcome| burst(&outcome.timing)).fold(0.0, f64::max);
    println!("pacing  {name}: most {}", most.join(", "));
    let above = if above.is_empty() { "none of these".to_owned() } else { above.join(", ") };
    println!(
        "pacing  {name}: above limit x window and the burst: {above}; over every window whatever the burst was {:.2} ms of the limit (stated {:.2} ms, {})",
        burst / rate * 1e3,
        stated / rate * 1e3,
        kept(burst <= stated),
    );
}

fn kept(kept: bool) -> &'static str {
    if kept { "kept" } else { "MISSED" }
}
