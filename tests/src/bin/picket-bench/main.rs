//! The figures of `docs/benchmarks.md`, measured on whole systems in network namespaces: `picket-bench [SECTION ...]`.
//!
//! Sections: `size`, `idle`, `host`, `bytes`, and beside masscan, zmap and nmap `slash16`, `slash24`, `ports`, `silent`, `onlink` (see
//! [`peers`]), `services` beside nmap, `pacing` (see [`pacing`]), `shaper` with nmap as a second sender, `ways` beside scamper, and
//! `trace` and `traces` beside traceroute, mtr and scamper, and `capture-short`, `capture-full`, `capture-disk`, `capture-memory` and
//! `capture-flows` beside tcpdump and dumpcap; `capture` stands for the last five. Each prints a few lines; none of them judges. The send loop is measured by `scripts/bench-send-loop`, and
//! `scripts/bench` calls both.

mod capture;
mod pacing;
mod peers;
mod services;
mod shaper;
mod timed;
mod trace;
mod ways;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use picket_tests::lab::programs::Programs;
use picket_tests::lab::require_root;
use picket_tests::lab::site::{SegmentPlan, Site};
use picket_tests::lab::truth::{Mix, TruthSpec};
use picket_tests::lab::watch::{Direction, Watch};
use picket_tests::system::{Fleet, MQTT_PORT, Plan};

/// A name, and what it measures.
type Section = (&'static str, fn() -> Result<()>);

const SECTIONS: [Section; 20] = [
    ("size", size),
    ("idle", idle),
    ("host", host),
    ("bytes", bytes),
    ("slash16", peers::slash16),
    ("slash24", peers::slash24),
    ("ports", peers::ports),
    ("silent", peers::silent),
    ("onlink", peers::onlink),
    ("services", services::run),
    ("pacing", pacing::run),
    ("shaper", shaper::run),
    ("ways", ways::run),
    ("trace", trace::one),
    ("traces", trace::many),
    ("capture-short", capture::short),
    ("capture-full", capture::full),
    ("capture-disk", capture::disk),
    ("capture-memory", capture::memory),
    ("capture-flows", capture::flows),
];

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| !SECTIONS.iter().any(|(known, _)| means(name, known))) {
        bail!("`{unknown}` is not a section: use {}", SECTIONS.map(|(name, _)| name).join(", "));
    }
    if !require_root() {
        bail!("benchmarks need root, for network namespaces");
    }
    for (name, run) in SECTIONS {
        if wanted.is_empty() || wanted.iter().any(|wanted| means(wanted, name)) {
            run().with_context(|| format!("section {name}"))?;
        }
    }
    Ok(())
}

/// Whether a section is meant by a word: its name, or what its name has before the hyphen.
fn means(word: &str, section: &str) -> bool {
    word == section || section.split_once('-').is_some_and(|(group, _)| group == word)
}

/// The middle one of some figures; not a number where there are none.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The stripped release programs.
fn size() -> Result<()> {
    let programs = Programs::locate()?;
    for name in ["picket-probe", "picket"] {
        let bytes = std::fs::metadata(programs.path(name)?)?.len();
        println!("size    {name}: {bytes} bytes = {:.2} MiB", bytes as f64 / f64::from(1 << 20));
    }
    Ok(())
}

/// Memory and processor time of a probe that is connected and has nothing to do, after it has done something.
fn idle() -> Result<()> {
    let spec = TruthSpec::new(1, &["198.18.0.0/24"], &[80])?;
    let site = Site::builder("idle").probe("a").segment(SegmentPlan::new("net", spec)).build()?;
    let mut fleet = Fleet::start(site, Plan::default().heartbeat(15).packets("5kpps"))?;
    // What it needed to start is not what it needs to rest.
    std::thread::sleep(Duration::from_secs(15));
    let before = fleet.probe_proc("a")?.resident_kib()?;
    // The figure that counts is of a probe that has been warm: its first scan touched every page that it needs.
    let job = fleet.submit_job(&["scan", "198.18.0.0/24", "-p", "80"])?;
    fleet.wait_done(job, Duration::from_secs(60))?;
    let watched = Duration::from_secs(60);
    let (began, from) = (Instant::now(), fleet.probe_proc("a")?.processor_time()?);
    // Time has to pass while nothing happens: that is what is measured.
    std::thread::sleep(watched);
    let used = fleet.probe_proc("a")?.processor_time()? - from;
    let share = used.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    let after = fleet.probe_proc("a")?.resident_kib()?;
    println!(
        "idle    resident {:.1} MiB before and {:.1} MiB after a scan; processor {share:.3} % of a core over {} s",
        mib(before),
        mib(after),
        watched.as_secs()
    );
    Ok(())
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// One host, 1000 ports, a few of them open and some silent: `picket scan` from its start to its end.
fn host() -> Result<()> {
    let ports: Vec<u16> = (1..=1000).collect();
    let answering = TruthSpec::new(2, &["198.18.0.1/32"], &ports)?.mix(Mix { dead: 0, shy: 0, open: 20, silent: 0 });
    let mixed = TruthSpec::new(3, &["198.18.1.1/32"], &ports)?.mix(Mix { dead: 0, shy: 0, open: 20, silent: 55 });
    let site = Site::builder("host")
        .probe("a")
        .segment(SegmentPlan::new("answering", answering))
        .segment(SegmentPlan::new("mixed", mixed))
        .build()?;
    let fleet = Fleet::start(site, Plan::default().packets("5kpps"))?;
    for (what, target) in [("every port answers", "198.18.0.1"), ("one port in eighteen is silent", "198.18.1.1")] {
        let mut times = Vec::new();
        for _ in 0..7 {
            let began = Instant::now();
            fleet.picket(&["scan", target, "-p", "1-1000", "--rate", "5kpps"], Duration::from_secs(60))?.ok()?;
            times.push(began.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        println!(
            "host    1000 ports at 5 kpps, {what}: median {:.3} s (min {:.3}, max {:.3}, of {})",
            times[times.len() / 2],
            times[0],
            times[times.len() - 1],
            times.len()
        );
    }
    Ok(())
}

/// What a bulk scan sends to the controller, frame by frame, for each open port.
fn bytes() -> Result<()> {
    let ports: Vec<u16> = (1..=16).collect();
    let spec = TruthSpec::new(4, &["198.18.0.0/20"], &ports)?.mix(Mix { dead: 0, shy: 0, open: 1000, silent: 0 });
    let site = Site::builder("bytes").probe("a").segment(SegmentPlan::new("net", spec)).build()?;
    let fleet = Fleet::start(site, Plan::default().heartbeat(15).packets("20kpps"))?;
    let router = fleet.site().router();
    let device = fleet.site().probe("a")?.router_device().to_owned();
    let watch = Watch::start(router, &device, Direction::In, Some(&format!("tcp dst port {MQTT_PORT}")))?;
    let job = fleet.submit_job(&["scan", "198.18.0.0/20", "-p", "1-16"])?;
    let view = fleet.wait_done(job, Duration::from_secs(300))?;
    let capture = watch.stop()?;
    let open = view.coverage.open;
    ensure!(open == 4096 * 16, "{open} ports were found open, all 65536 are");
    let sent = capture.timing(|_| true).bits() / 8;
    println!(
        "bytes   {open} open ports: {sent} bytes of frames from probe to broker = {:.2} bytes per open port, TLS, heartbeats and acknowledgements included",
        sent as f64 / open as f64
    );
    Ok(())
}
