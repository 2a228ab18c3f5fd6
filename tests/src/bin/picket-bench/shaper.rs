//! The kernel's shaper with a real second sender: a scan of ours beside `nmap -sT`, which runs as a user of its own and whose
//! packets a rule of the firewall marks; without the shaper and with it.
//!
//! nmap knows nothing of the limit and asks for several times as much; ours yields to it when the kernel has no room. Both send into a sink, which never answers, and are counted
//! there from the first frame of our scan to its last.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use picket_probe::shaper::{ABOVE_PERCENT, MARK};
use picket_tests::lab::programs::Programs;
use picket_tests::lab::sink::Sink;
use picket_tests::lab::watch::{Capture, Direction, Timing, Watch};
use picket_tests::lab::{Lab, Run, wait_until};

/// The site's limit of packets per second; its limit of bits is what so many full frames take.
const LIMIT: f64 = 1_000.0;
const USER: &str = "nobody";
/// What nmap is asked to send per second.
const NMAP_RATE: &str = "4000";
/// Ours and nmap's targets: more for nmap than it comes to.
const OURS: &str = "198.18.0.0/21";
const OUR_TARGETS: usize = 2048;
const NMAPS: &str = "198.19.0.0/20";
/// How far above the kernel's limit a sum may be: what its burst makes of a run of several seconds.
const BAR: f64 = 1.02;
const LONG: Duration = Duration::from_secs(60);

/// What passed while our scan sent.
struct Passed {
    seconds: f64,
    ours: usize,
    nmaps: usize,
    /// Of our targets, how many were never asked.
    missed: usize,
    all: Timing,
}

/// The section.
pub(crate) fn run() -> Result<()> {
    let sink = Sink::new(&Lab::new("benchshaper")?)?;
    // A scan that is held back outlives what it knows of its gateway, and asks again.
    sink.sink().address(Sink::DEVICE, Sink::GATEWAY.into(), 30)?;
    sink.sink().nft("insert rule netdev sink ingress ether type arp accept\n")?;
    sink.sender().nft(&format!(
        "table inet lab {{\n\tchain out {{\n\t\ttype filter hook output priority filter;\n\t\tmeta skuid {USER} meta mark set {MARK:#x}\n\t}}\n}}\n"
    ))?;
    report("without the shaper", &both(&sink)?);
    let said = sink.sender().run(&probe(&["shaper", "install"])?, LONG)?;
    ensure!(said.status.success() && !said.stderr.contains("the kernel lacks"), "no shaper here: {}", said.stderr);
    report("with the shaper", &both(&sink)?);
    let counters = sink.sender().run(&probe(&["shaper", "status"])?, LONG)?.ok()?;
    println!("shaper  {}", counters.trim());
    sink.sender().run(&probe(&["shaper", "remove"])?, LONG)?.ok().map(drop)
}

fn probe(args: &[&str]) -> Result<Run> {
    let run = Programs::locate()?.probe(args)?.args(["--interface", Sink::DEVICE]).env("PICKET_INTERFACE__PACKETS", "1kpps");
    Ok(run.env("PICKET_INTERFACE__BITS", "12Mbit").env("PICKET_POLICY__ALLOW", "198.18.0.0/15"))
}

/// nmap first, and ours when nmap sends; nmap is ended when ours is done.
fn both(sink: &Sink) -> Result<Passed> {
    let scan = probe(&["scan", OURS, "-p", "80", "-Pn", "--attempts", "1"])?;
    let text = format!("-sT -Pn -n -T5 --min-rate {NMAP_RATE} --max-retries 0 -p 1-1000 {NMAPS}");
    let user = format!("--reuid={USER}");
    let nmap = Run::new("nmap").args(text.split_whitespace()).under(["setpriv", &user, "--clear-groups"]);
    let mut watch = Watch::start(sink.sink(), Sink::DEVICE, Direction::In, Some("tcp and dst net 198.18.0.0/15"))?;
    let mut other = sink.sender().spawn(&nmap)?;
    let sends = || {
        ensure!(other.running(), "nmap ended: {}", other.stderr());
        Ok((watch.seen()? >= 500).then_some(()))
    };
    wait_until("packets of nmap", LONG, sends)?;
    sink.sender().run(&scan, LONG)?.ok()?;
    ensure!(other.running(), "nmap ended before the scan did: {}", other.stderr());
    other.kill()?;
    passed(&watch.stop()?)
}

fn passed(capture: &Capture) -> Result<Passed> {
    let [ours, nmaps] = [[198, 18], [198, 19]].map(|network| {
        let frames = capture.frames().filter_map(|frame| match frame.packet()?.destination {
            std::net::IpAddr::V4(to) if to.octets()[..2] == network => Some((frame.at, to)),
            _ => None,
        });
        frames.collect::<Vec<(u64, Ipv4Addr)>>()
    });
    let (first, last) = (ours.first().context("no frame of the scan")?.0, ours.last().context("no frame of the scan")?.0);
    let asked: BTreeSet<Ipv4Addr> = ours.iter().map(|(_, to)| *to).collect();
    Ok(Passed {
        seconds: (last - first) as f64 / 1e9,
        ours: ours.len(),
        nmaps: nmaps.iter().filter(|(at, _)| (first..=last).contains(at)).count(),
        missed: OUR_TARGETS - asked.len(),
        all: capture.timing(|frame| (first..=last).contains(&frame.at)),
    })
}

fn report(what: &str, passed: &Passed) {
    let Passed { seconds, ours, nmaps, missed, all } = passed;
    let kernels = LIMIT * (100 + ABOVE_PERCENT) as f64 / 100.0;
    let sum = all.mean_packets();
    println!(
        "shaper  {what}, in {seconds:.2} s: ours {:.1} + nmap {:.1} = {sum:.1} packets/s, {:.3} x the kernel's limit of {kernels} (bar with it {BAR} x); \
         most in 1 s {}; {missed} of {OUR_TARGETS} targets not asked",
        *ours as f64 / seconds,
        *nmaps as f64 / seconds,
        sum / kernels,
        all.peak(Duration::from_secs(1)).packets,
    );
}
