//! Captures beside Debian's tcpdump and dumpcap: what they lose and what they cost, at the same rates, in turn, with buffers of the same size.
//!
//! One processor sends, and does what the kernel does for each received frame; the other one has the program under test and nothing else,
//! for every program alike. A run is a fresh process; its processor time is all that it used from its start to its end, over the frames
//! that arrived. The rate is the highest one of a ladder at which tcpdump lost nothing; beyond the sender's own, as
//! fast as it can.
//!
//! **Truth:** what arrived is what the receiving device counted; what is in a file is counted by capinfos. A frame that is in no counter
//! of a program and not in its file is called unaccounted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use picket_tests::lab::blast::{Blast, Sent};
use picket_tests::lab::programs::Programs;
use picket_tests::lab::sink::Sink;
use picket_tests::lab::{Lab, Run};

use crate::{median, timed};

const ROUNDS: usize = 3;
/// The processor that sends and receives in the kernel, and the one of the programs under test.
const SENDER: usize = 0;
const CAPTURER: usize = 1;
/// Frames per second that are tried.
const LADDER: [u32; 5] = [300_000, 400_000, 500_000, 620_000, 800_000];
/// How far below what was asked for a sender may be.
const NEAR: f64 = 0.97;
/// How long a rate is tried, and how long it is measured.
const TRY: f64 = 1.0;
const MEASURE: f64 = 4.0;
/// To disk: what the bar asks for.
const DISK_RATE: u32 = 300_000;
const DISK_SECONDS: f64 = 3.0;
const FULL: usize = 1_514;
const SHORT: usize = 60;
const FLOWS: u16 = 1_000;
/// Of tcpdump's processor time per packet, what Picket may take.
const BAR: f64 = 1.0;
const BAR_FLOWS: f64 = 1.3;
/// The kernel's buffer, for everybody.
const BUFFER_MIB: u32 = 8;
const WHOLE: &str = "262144";
/// What stays free of a disk, in bytes.
const KEEP_FREE: u64 = 10 << 30;
const MEMORY: &str = "/dev/shm";
const DISK: &str = "/var/tmp";
/// Beside the frame itself, at most, for each one in a file.
const PER_FRAME: usize = 36;
/// A program whose blocks come with a timeout (tcpdump: a second) has them all after so long.
const DRAIN: Duration = Duration::from_millis(1_500);
const PATIENCE: Duration = Duration::from_secs(30);

const OURS: &str = "picket-probe";
const FLOWS_OF_OURS: &str = "picket-probe --flows";
const RIVAL: &str = "tcpdump";

/// One way to capture.
struct Contender {
    name: &'static str,
    run: Run,
    /// Where its file is, where it has one.
    file: Option<PathBuf>,
    /// What it says when it listens.
    ready: &'static str,
    /// Packets that the kernel dropped, and those that it captured, as it tells at the end.
    read: fn(&str) -> Option<Told>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    dropped: u64,
    captured: u64,
}

/// What one run came to.
struct Outcome {
    sent: Sent,
    arrived: u64,
    told: Told,
    /// Packets in its file, where it has one.
    in_file: Option<u64>,
    processor: Duration,
    stolen: Duration,
}

impl Outcome {
    /// Frames that are not in the file; those that it did not capture where it has none.
    fn lost(&self) -> u64 {
        self.arrived.saturating_sub(self.in_file.unwrap_or(self.told.captured))
    }

    fn unaccounted(&self) -> i64 {
        self.lost() as i64 - self.told.dropped as i64
    }

    /// Seconds for a million frames that were captured.
    fn cost(&self) -> f64 {
        self.processor.as_secs_f64() / (self.arrived - self.lost()).max(1) as f64 * 1e6
    }
}

/// The lab: a sender, and a device that everybody listens to.
struct Bench {
    sink: Sink,
    to: [u8; 6],
}

impl Bench {
    fn new() -> Result<Self> {
        let sink = Sink::new(&Lab::new("benchcapture")?)?;
        sink.sink().receive_on(Sink::DEVICE, 1 << SENDER)?;
        let to = sink.sink().hardware_address(Sink::DEVICE)?;
        Ok(Self { sink, to })
    }

    fn blast(&self, frame: usize, rate: u32, seconds: f64) -> Blast {
        let count = (f64::from(rate) * seconds) as u64;
        Blast { frame, rate, count, flows: FLOWS, to: self.to, processor: SENDER }
    }

    fn measure(&self, contender: &Contender, blast: &Blast) -> Result<Outcome> {
        if let Some(file) = &contender.file {
            room(file, blast)?;
        }
        let outcome = self.capture(contender, blast).with_context(|| contender.name);
        if let Some(file) = &contender.file {
            // Where there is none, counting it has said so.
            let _ = std::fs::remove_file(file);
        }
        outcome
    }

    fn capture(&self, contender: &Contender, blast: &Blast) -> Result<Outcome> {
        let (used, stolen) = (timed::children()?, stolen()?);
        let mut process = self.sink.sink().spawn(&contender.run)?;
        process.wait_for("its start", PATIENCE, |_, said| said.contains(contender.ready).then_some(()))?;
        let before = self.sink.arrived()?.0;
        let sent = blast.send(self.sink.sender(), Sink::DEVICE)?;
        let arrived = self.sink.arrived()?.0 - before;
        std::thread::sleep(DRAIN);
        process.signal(Signal::SIGINT)?;
        let status = process.wait(PATIENCE)?;
        let processor = timed::children()?.saturating_sub(used);
        let stolen = self::stolen()?.saturating_sub(stolen);
        ensure!(status.success(), "it ended with {status}: {}", process.stderr());
        let said = format!("{}\n{}", process.stdout(), process.stderr());
        let told = (contender.read)(&said).with_context(|| format!("no counters in: {said}"))?;
        let in_file = contender.file.as_deref().map(packets_in).transpose()?;
        ensure!(arrived >= sent.count, "{arrived} frames arrived of {}", sent.count);
        // What else arrived is the sender's own chatter, which the filter does not want.
        Ok(Outcome { arrived: sent.count, sent, told, in_file, processor, stolen })
    }

    /// The highest rate of the ladder at which a program loses nothing and the sender keeps up.
    fn highest(&self, what: &str, contender: &Contender, frame: usize) -> Result<u32> {
        let mut highest = None;
        for rate in LADDER {
            let outcome = self.measure(contender, &self.blast(frame, rate, TRY))?;
            let (lost, reached) = (outcome.lost(), outcome.sent.rate());
            println!("capture {what}: {} at {rate} packets/s ({reached:.0} sent) lost {lost}, {}", contender.name, stolen_text(&outcome));
            if lost > 0 {
                break;
            }
            highest = Some(rate);
            if reached < f64::from(rate) * NEAR {
                println!("capture {what}: the sender is at its limit, {} is not", contender.name);
                break;
            }
        }
        highest.with_context(|| format!("{} lost packets at {} packets/s", contender.name, LADDER[0]))
    }

    fn compare(&self, what: &str, contenders: &[Contender], blast: &Blast, rounds: usize) -> Result<()> {
        let mut outcomes: Vec<Vec<Outcome>> = contenders.iter().map(|_| Vec::new()).collect();
        for round in 0..rounds {
            let mut order: Vec<usize> = (0..contenders.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for at in order {
                outcomes[at].push(self.measure(&contenders[at], blast)?);
            }
        }
        let cost = |outcomes: &[Outcome]| median(outcomes.iter().map(Outcome::cost));
        let rival = contenders.iter().position(|contender| contender.name == RIVAL).context("nobody to compare with")?;
        let theirs = cost(&outcomes[rival]);
        for (contender, outcomes) in contenders.iter().zip(&outcomes) {
            let ratio = cost(outcomes) / theirs;
            let bar = match contender.name {
                OURS => format!(" (bar {BAR}, {})", kept(ratio <= BAR)),
                FLOWS_OF_OURS => format!(" (bar {BAR_FLOWS}, {})", kept(ratio <= BAR_FLOWS)),
                _ => String::new(),
            };
            report(what, contender, outcomes, blast.rate);
            println!("capture {what}: {} takes {ratio:.2} x tcpdump's processor time for each packet{bar}", contender.name);
        }
        Ok(())
    }
}

/// What the host took from both processors.
fn stolen() -> Result<Duration> {
    Ok(timed::stolen(SENDER)? + timed::stolen(CAPTURER)?)
}

fn stolen_text(outcome: &Outcome) -> String {
    format!("{:.0} ms stolen", outcome.stolen.as_secs_f64() * 1e3)
}

fn report(what: &str, contender: &Contender, outcomes: &[Outcome], rate: u32) {
    let list = |of: &dyn Fn(&Outcome) -> String| outcomes.iter().map(of).collect::<Vec<_>>().join(", ");
    let lost: u64 = outcomes.iter().map(Outcome::lost).sum();
    let all: u64 = outcomes.iter().map(|outcome| outcome.arrived).sum();
    let behind = outcomes.iter().any(|outcome| outcome.sent.rate() < f64::from(rate) * NEAR);
    let verdict = if lost == 0 && behind { "kept at what the sender could" } else { kept(lost == 0) };
    println!(
        "capture {what}: {:20} {:.3} s of processor time per million packets ({}), lost {lost} of {all} = {:.2} % ({verdict})",
        contender.name,
        median(outcomes.iter().map(Outcome::cost)),
        list(&|outcome| format!("{:.3}", outcome.cost())),
        lost as f64 / all as f64 * 100.0,
    );
    println!(
        "capture {what}: {:20} sent {} packets/s, lost {}, of these unaccounted {}, stolen ms {}",
        contender.name,
        list(&|outcome| format!("{:.0}", outcome.sent.rate())),
        list(&|outcome| outcome.lost().to_string()),
        list(&|outcome| outcome.unaccounted().to_string()),
        list(&|outcome| format!("{:.0}", outcome.stolen.as_secs_f64() * 1e3)),
    );
}

fn kept(kept: bool) -> &'static str {
    if kept { "kept" } else { "MISSED" }
}

/// Refuses to fill a disk.
fn room(file: &Path, blast: &Blast) -> Result<()> {
    let dir = file.parent().context("a file without a directory")?;
    let stat = nix::sys::statvfs::statvfs(dir).with_context(|| format!("look at {}", dir.display()))?;
    let (free, need) = (stat.blocks_available() * stat.fragment_size(), blast.count * (blast.frame + PER_FRAME) as u64);
    ensure!(free >= need + KEEP_FREE, "{} has {free} bytes free: {need} are needed, and {KEEP_FREE} stay", dir.display());
    // What others have left to be written is not to be this run's burden.
    nix::unistd::syncfs(std::fs::File::open(dir)?).with_context(|| format!("write out {}", dir.display()))
}

fn packets_in(file: &Path) -> Result<u64> {
    let output = std::process::Command::new("capinfos").args(["-M", "-c", "-T", "-r"]).arg(file).output().context("run capinfos")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let count = text.trim().rsplit('\t').next().and_then(|count| count.parse().ok());
    count.with_context(|| format!("capinfos of {}: {text}{}", file.display(), String::from_utf8_lossy(&output.stderr)))
}

/// The number that follows a text.
fn number(text: &str, before: &str) -> Option<u64> {
    let rest = text.split(before).nth(1)?.trim_start();
    rest.get(..rest.bytes().take_while(u8::is_ascii_digit).count())?.parse().ok()
}

/// `N packets dropped by kernel`, and so on.
fn of_tcpdump(said: &str) -> Option<Told> {
    let count = |what: &str| said.lines().find_map(|line| line.strip_suffix(what)?.trim().parse().ok());
    Some(Told { captured: count(" packets captured")?, dropped: count(" packets dropped by kernel")? })
}

/// `Packets received/dropped on interface 'eth0': 12/0 (...)`.
fn of_dumpcap(said: &str) -> Option<Told> {
    let (_, counts) = said.split("Packets received/dropped on interface").nth(1)?.split_once(": ")?;
    let (captured, rest) = counts.split_once('/')?;
    Some(Told { captured: captured.trim().parse().ok()?, dropped: rest.split_whitespace().next()?.parse().ok()? })
}

fn of_picket(said: &str) -> Option<Told> {
    Some(Told { captured: number(said, "\ncaptured ")?, dropped: number(said, "\ndropped ")? })
}

/// Everybody in the same place of the same machine.
fn placed(run: Run) -> Run {
    run.under(["taskset", "-c", &CAPTURER.to_string(), "nice", "-n", "-10"])
}

fn picket(name: &'static str, more: &[&str], file: Option<PathBuf>) -> Result<Contender> {
    let buffer = format!("{BUFFER_MIB}MiB");
    let mut run = Programs::locate()?.probe(&["capture", "-i", Sink::DEVICE, "--buffer", &buffer])?.args(more);
    if let Some(file) = &file {
        run = run.arg("-w").arg(file);
    }
    Ok(Contender { name, run: placed(run.arg("udp")), file, ready: "capturing on", read: of_picket })
}

/// With a file of each in `dir`, of so many bytes of each packet.
fn contenders(dir: &str, snap: &str) -> Result<Vec<Contender>> {
    let file = |name: &str| Path::new(dir).join(format!("picket-bench-{}-{name}", std::process::id()));
    let (ours, rival, third) = (file("ours.pcapng"), file("tcpdump.pcap"), file("dumpcap.pcapng"));
    let kib = (BUFFER_MIB << 10).to_string();
    let tcpdump = Run::new("tcpdump").args(["-n", "-Z", "root", "-i", Sink::DEVICE, "-B", &kib, "-s", snap, "-w"]).arg(&rival).arg("udp");
    let dumpcap =
        Run::new("dumpcap").args(["-q", "-i", Sink::DEVICE, "-B", &BUFFER_MIB.to_string(), "-s", snap, "-f", "udp", "-w"]).arg(&third);
    Ok(vec![
        picket(OURS, &["-s", snap], Some(ours))?,
        Contender { name: RIVAL, run: placed(tcpdump), file: Some(rival), ready: "listening on", read: of_tcpdump },
        Contender { name: "dumpcap", run: placed(dumpcap), file: Some(third), ready: "File:", read: of_dumpcap },
    ])
}

fn beside(what: &str, frame: usize, snap: &str) -> Result<()> {
    let bench = Bench::new()?;
    let contenders = contenders(MEMORY, snap)?;
    let rival = contenders.iter().find(|contender| contender.name == RIVAL).context("nobody to compare with")?;
    let rate = bench.highest(what, rival, frame)?;
    bench.compare(&format!("{what} at {rate} packets/s"), &contenders, &bench.blast(frame, rate, MEASURE), ROUNDS)
}

/// Short frames, whole, into a file in memory.
pub(crate) fn short() -> Result<()> {
    beside("60 bytes", SHORT, WHOLE)
}

/// Full frames, of which headers are kept, into a file in memory.
pub(crate) fn full() -> Result<()> {
    beside("1514 bytes, 128 kept", FULL, "128")
}

/// Full frames, whole, to a disk.
pub(crate) fn disk() -> Result<()> {
    whole("a disk", DISK)
}

/// Full frames, whole, to memory: what a disk costs is the difference.
pub(crate) fn memory() -> Result<()> {
    whole("memory", MEMORY)
}

fn whole(what: &str, dir: &str) -> Result<()> {
    let bench = Bench::new()?;
    let blast = bench.blast(FULL, DISK_RATE, DISK_SECONDS);
    bench.compare(&format!("1514 bytes to {what} at {DISK_RATE} packets/s"), &contenders(dir, WHOLE)?, &blast, ROUNDS)
}

/// Short frames of many flows, counted, beside tcpdump with a file in memory.
pub(crate) fn flows() -> Result<()> {
    let bench = Bench::new()?;
    let mut all = contenders(MEMORY, "128")?;
    all.retain(|contender| contender.name == RIVAL);
    let rate = bench.highest("flows", &all[0], SHORT)?;
    all.insert(0, picket(FLOWS_OF_OURS, &["--flows", "1"], None)?);
    bench.compare(&format!("{FLOWS} flows of 60 bytes at {rate} packets/s"), &all, &bench.blast(SHORT, rate, MEASURE), ROUNDS)
}
