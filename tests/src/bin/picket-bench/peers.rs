//! Picket beside masscan, zmap and nmap: the same task in one lab, in turn.
//!
//! The target is the kernel's own stack behind one link, answering for a whole network, with the truth in an nftables ruleset.
//! Every program is started anew for each run; its time is from start to exit, so that waiting for the last answer counts.
//!
//! **Fair:** each program has a few settings to choose from (rates, and for peers how long to wait at the end). All are tried
//! once, and the fastest that found all of the truth and nothing else is measured, several times and in turn with the others.
//! Where no setting finds everything, the one that finds most is measured, and what it missed is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use picket_tests::lab::programs::Programs;
use picket_tests::lab::target::Target;
use picket_tests::lab::truth::{Mix, PortTruth, TruthSpec};
use picket_tests::lab::{Lab, Namespace, Run};

const DEVICE: &str = "eth0";
const SCANNER: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);
/// A run longer than this is broken.
const LONG: Duration = Duration::from_secs(120);
const ROUNDS: usize = 5;
/// Ports behind which something listens, spread over the first thousand.
const LISTENED: usize = 50;

type Found = BTreeSet<(IpAddr, u16)>;

/// What is to be scanned.
struct Task {
    name: &'static str,
    what: &'static str,
    /// As the command lines take them.
    targets: &'static str,
    ports: &'static str,
    spec: TruthSpec,
    /// Of the best peer's time, what Picket may take.
    bar: f64,
}

/// One way to call one program.
struct Setting {
    program: &'static str,
    how: String,
    run: Run,
    read: fn(&str) -> Found,
}

/// What one run came to.
#[derive(Clone)]
struct Outcome {
    seconds: f64,
    resident_kib: u64,
    missed: usize,
    wrong: usize,
}

impl Outcome {
    fn is_right(&self) -> bool {
        self.missed + self.wrong == 0
    }
}

/// A /16, one port.
pub(crate) fn slash16() -> Result<()> {
    let spec = TruthSpec::new(16, &["198.18.0.0/16"], &[80])?.mix(Mix { dead: 300, shy: 0, open: 250, silent: 250 });
    bench(Task { name: "slash16", what: "/16 x 1 port", targets: "198.18.0.0/16", ports: "80", spec, bar: 0.4 })
}

/// A /24, a thousand ports.
pub(crate) fn slash24() -> Result<()> {
    let spec = TruthSpec::new(24, &["198.18.7.0/24"], &listened(1000))?.mix(Mix { dead: 300, shy: 0, open: 400, silent: 200 });
    bench(Task { name: "slash24", what: "/24 x 1000 ports", targets: "198.18.7.0/24", ports: "1-1000", spec, bar: 0.5 })
}

/// One host, every port.
pub(crate) fn ports() -> Result<()> {
    let spec = TruthSpec::new(65, &["198.18.3.3/32"], &listened(65_535))?.mix(Mix { dead: 0, shy: 0, open: 800, silent: 100 });
    bench(Task { name: "ports", what: "one host x 65535 ports", targets: "198.18.3.3", ports: "1-65535", spec, bar: 0.45 })
}

/// One host, a thousand ports, 55 of them silent.
pub(crate) fn silent() -> Result<()> {
    let ports: Vec<u16> = (1..=75).map(|n| n * 13).collect();
    let mut spec = TruthSpec::new(55, &["198.18.5.5/32"], &ports)?.mix(Mix { dead: 0, shy: 0, open: 1000, silent: 0 });
    let host = IpAddr::V4(Ipv4Addr::new(198, 18, 5, 5));
    for port in ports.iter().take(55) {
        spec = spec.port(host, *port, PortTruth::Silent);
    }
    bench(Task { name: "silent", what: "one host x 1000 ports, 55 silent", targets: "198.18.5.5", ports: "1-1000", spec, bar: 0.45 })
}

fn listened(last: usize) -> Vec<u16> {
    (1..=LISTENED).filter_map(|n| u16::try_from(n * last / LISTENED).ok()).collect()
}

fn bench(task: Task) -> Result<()> {
    let lab = Lab::new("peers")?;
    let (scanner, net) = (lab.namespace("scanner")?, lab.namespace("target")?);
    scanner.link(DEVICE, &net, DEVICE)?;
    for (namespace, address) in [(&scanner, SCANNER), (&net, GATEWAY)] {
        namespace.address(DEVICE, address.into(), 24)?;
    }
    scanner.route("default", GATEWAY.into())?;
    // What arrives is another machine's work.
    net.receive_on(DEVICE, 2)?;
    let target = Target::start(&net, task.spec.clone().build()?, &BTreeMap::new())?;
    target.self_check(&scanner, 8)?;
    let truth: Found = target.truth().in_state(PortTruth::Open).collect();
    let ticking = AtomicBool::new(true);
    std::thread::scope(|scope| {
        // masscan does not notice the end of its wait on a silent wire; everybody gets the same trickle.
        scope.spawn(|| net.enter(|| tick(&ticking)));
        let result = compare(&task, &scanner, &net, &lab, &truth);
        ticking.store(false, Ordering::Relaxed);
        result
    })
}

/// Twenty small datagrams a second towards the scanner's host.
fn tick(on: &AtomicBool) {
    if let Ok(socket) = UdpSocket::bind((GATEWAY, 0)) {
        while on.load(Ordering::Relaxed) {
            let _ = socket.send_to(b"tick", (SCANNER, 9));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn compare(task: &Task, scanner: &Namespace, net: &Namespace, lab: &Lab, truth: &Found) -> Result<()> {
    let mut best: Vec<Setting> = Vec::new();
    for settings in contenders(task, net, lab)? {
        best.extend(choose(task, scanner, settings, truth)?);
    }
    let mut outcomes: Vec<Vec<Outcome>> = vec![Vec::new(); best.len()];
    for _ in 0..ROUNDS {
        for (setting, outcomes) in best.iter().zip(&mut outcomes) {
            outcomes.push(measure(scanner, setting, truth)?);
        }
    }
    let mut medians: Vec<(&str, f64)> = Vec::new();
    for (setting, outcomes) in best.iter().zip(&outcomes) {
        let mut seconds: Vec<f64> = outcomes.iter().map(|outcome| outcome.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let most = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).max().unwrap_or(0);
        println!(
            "{:8}{}: {:8} median {:.3} s (min {:.3}, max {:.3}, of {ROUNDS}), memory {:.1} MiB, missed {} and wrong {} of {} at worst [{}]",
            task.name,
            task.what,
            setting.program,
            seconds[ROUNDS / 2],
            seconds[0],
            seconds[ROUNDS - 1],
            most(|outcome| outcome.resident_kib) as f64 / 1024.0,
            most(|outcome| outcome.missed as u64),
            most(|outcome| outcome.wrong as u64),
            truth.len(),
            setting.how,
        );
        medians.push((setting.program, seconds[ROUNDS / 2]));
    }
    let peers = medians.iter().filter(|(program, _)| !program.starts_with("picket"));
    let Some((peer, fastest)) = peers.min_by(|a, b| a.1.total_cmp(&b.1)) else { return Ok(()) };
    for (program, seconds) in medians.iter().filter(|(program, _)| program.starts_with("picket")) {
        println!("{:8}{}: {program} takes {:.2} x {peer} (bar {} x)", task.name, task.what, seconds / fastest, task.bar);
    }
    Ok(())
}

/// Tries every setting of a program and keeps the one that is right and fastest, else the one that misses least.
fn choose(task: &Task, scanner: &Namespace, settings: Vec<Setting>, truth: &Found) -> Result<Option<Setting>> {
    let mut best: Option<(Outcome, Setting)> = None;
    for setting in settings {
        let outcome = measure(scanner, &setting, truth)?;
        eprintln!(
            "  try {} {}: {:.3} s, missed {}, wrong {} [{}]",
            task.name, setting.program, outcome.seconds, outcome.missed, outcome.wrong, setting.how
        );
        let better = best.as_ref().is_none_or(|(old, _)| match (outcome.is_right(), old.is_right()) {
            (true, true) => outcome.seconds < old.seconds,
            (false, false) => outcome.missed + outcome.wrong < old.missed + old.wrong,
            (right, _) => right,
        });
        if better {
            best = Some((outcome, setting));
        }
    }
    Ok(best.map(|(_, setting)| setting))
}

/// Runs a program once, and looks at its memory all the while.
fn measure(scanner: &Namespace, setting: &Setting, truth: &Found) -> Result<Outcome> {
    let began = Instant::now();
    let mut process = scanner.spawn(&setting.run)?;
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
    let status = status.with_context(|| format!("{} [{}]", setting.program, setting.how))?;
    anyhow::ensure!(status.success(), "{} [{}] ended with {status}: {}", setting.program, setting.how, process.stderr());
    let found = (setting.read)(&process.stdout());
    Ok(Outcome {
        seconds,
        resident_kib: peak.into_inner(),
        missed: truth.difference(&found).count(),
        wrong: found.difference(truth).count(),
    })
}

fn resident_peak(id: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().trim_end_matches(" kB").parse().ok()
}

/// Every program that can do the task, with the settings that it may choose from.
fn contenders(task: &Task, net: &Namespace, lab: &Lab) -> Result<Vec<Vec<Setting>>> {
    let rates: &[u32] = &[50_000, 100_000, 150_000, 200_000, 300_000];
    let router = net.hardware_address(DEVICE)?.map(|byte| format!("{byte:02x}")).join(":");
    let fair = |run: Run| run.under(["nice", "-n", "-10"]);
    let mut all = Vec::new();
    for attempts in ["2", "1"] {
        let program = if attempts == "2" { "picket" } else { "picket/1" };
        let picket = |rate: &u32| {
            let args = ["scan", task.targets, "-p", task.ports, "-i", DEVICE, "--attempts", attempts];
            let run = Programs::locate()?.probe(&args)?.env("PICKET_INTERFACE__PACKETS", format!("{rate}pps"));
            let run = run
                .env("PICKET_INTERFACE__BITS", "10Gbit")
                .env("PICKET_POLICY__ALLOW", "198.18.0.0/15")
                .args(["--rate", &format!("{rate}pps")]);
            Ok(Setting { program, how: format!("{rate} pps, {attempts} attempts"), run: fair(run), read: rows })
        };
        all.push(rates.iter().map(picket).collect::<Result<Vec<_>>>()?);
    }
    let mut masscan = Vec::new();
    for (rate, wait) in rates.iter().flat_map(|rate| [0, 1, 2].map(|wait| (rate, wait))) {
        let text = format!(
            "{} -p {} --rate {rate} --wait {wait} --adapter {DEVICE} --adapter-ip {SCANNER} --router-mac {router} -oL -",
            task.targets, task.ports
        );
        let run = Run::new("masscan").args(text.split_whitespace());
        masscan.push(Setting { program: "masscan", how: format!("--rate {rate} --wait {wait}"), run: fair(run), read: list });
    }
    all.push(masscan);
    if let (Ok(port), true) = (task.ports.parse::<u16>(), task.name == "slash16") {
        // Its packaged list forbids the addresses of labs.
        let nobody = lab.write("zmap-blacklist", "")?;
        let mut zmap = Vec::new();
        for (rate, wait) in rates.iter().flat_map(|rate| [0, 1, 2].map(|wait| (rate, wait))) {
            let text = format!(
                "-p {port} -r {rate} -c {wait} -b {} -i {DEVICE} -G {router} -S {SCANNER} -q -v 1 -o - {}",
                nobody.display(),
                task.targets
            );
            let run = Run::new("zmap").args(text.split_whitespace());
            zmap.push(Setting { program: "zmap", how: format!("-r {rate} -c {wait}"), run: fair(run), read: addresses_on_80 });
        }
        all.push(zmap);
    } else {
        let mut nmap = Vec::new();
        for how in ["-T5", "-T5 --min-rate 20000", "-T5 --min-rate 50000 --max-retries 1"] {
            let text = format!("-n -Pn -sS {how} -p {} -oG - {}", task.ports, task.targets);
            nmap.push(Setting {
                program: "nmap",
                how: how.to_owned(),
                run: fair(Run::new("nmap").args(text.split_whitespace())),
                read: grepable,
            });
        }
        all.push(nmap);
    }
    Ok(all)
}

/// Picket's table: address, port, state.
fn rows(text: &str) -> Found {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let (address, port) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        (words.next()? == "open").then_some((address, port))
    };
    text.lines().filter_map(row).collect()
}

/// masscan's list: `open tcp PORT ADDRESS TIME`.
fn list(text: &str) -> Found {
    let row = |line: &str| {
        let mut words = line.strip_prefix("open tcp ")?.split(' ');
        let port = words.next()?.parse().ok()?;
        Some((words.next()?.parse().ok()?, port))
    };
    text.lines().filter_map(row).collect()
}

/// zmap's addresses; it scans one port, here 80.
fn addresses_on_80(text: &str) -> Found {
    text.lines().filter_map(|line| Some((line.trim().parse().ok()?, 80))).collect()
}

/// nmap's grepable lines: `Host: ADDRESS () Ports: 22/open/tcp//ssh///, ...`.
fn grepable(text: &str) -> Found {
    let mut found = Found::new();
    for line in text.lines() {
        let Some((head, ports)) = line.split_once("Ports: ") else { continue };
        let Some(address) = head.split_whitespace().nth(1).and_then(|word| word.parse().ok()) else { continue };
        let ports = ports.split('\t').next().unwrap_or_default();
        for port in ports.split(", ").filter(|port| port.contains("/open/")) {
            if let Some(port) = port.split('/').next().and_then(|port| port.trim().parse().ok()) {
                found.insert((address, port));
            }
        }
    }
    found
}
