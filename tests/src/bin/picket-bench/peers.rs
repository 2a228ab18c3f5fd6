//! Picket beside masscan, zmap and nmap: the same task in one lab, in turn.
//!
//! The target is the kernel's own stack behind one link, answering for a whole network, with the truth in an nftables ruleset.
//! Every program is started anew for each run; its time is from start to exit, so that waiting for the last answer counts.
//!
//! One processor is the scanner's, the other one plays the machines that are scanned: what arrives there is worked on there, and no
//! program under test runs there.
//!
//! **Fair:** each program has a few settings to choose from (rates, and for peers how long to wait at the end). All are tried,
//! those near the fastest one three times, and the fastest that found all of the truth and nothing else is measured, several times
//! and in turn with the others. Where no setting finds everything, the one that finds most is measured, and what it missed is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use picket_tests::lab::programs::Programs;
use picket_tests::lab::target::Target;
use picket_tests::lab::truth::{HostState, Mix, PortTruth, TruthSpec};
use picket_tests::lab::{Lab, Namespace, Run};

use crate::timed::{self, first};

const DEVICE: &str = "eth0";
const SCANNER: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);
const ROUNDS: usize = 5;
/// Ports behind which something listens, spread over the first thousand.
const LISTENED: usize = 50;
/// Packets per second to choose from.
const RATES: [u32; 4] = [100_000, 150_000, 200_000, 300_000];
/// How often a setting is tried that takes at most so many times as long as the program's fastest one.
const TRIES: usize = 3;
const NEAR: f64 = 2.0;
/// A peer this many times slower than the fastest one is tried, but not measured again and again.
const FAR_BEHIND: f64 = 3.0;

/// nmap as it is called by hand, and with what makes it fastest.
const NMAP: &str = "nmap";
const NMAP_TUNED: &str = "nmap*";

/// Open ports; hosts have port 0.
type Found = BTreeSet<(IpAddr, u16)>;

/// What is to be scanned.
struct Task {
    name: &'static str,
    what: &'static str,
    /// As the command lines take them.
    targets: &'static str,
    ports: &'static str,
    spec: TruthSpec,
    /// Of the rival's time, what Picket may take.
    bar: f64,
    /// Whom the bar names; the best peer where it names nobody.
    rival: Option<&'static str>,
}

impl Task {
    /// Whether hosts are looked for, not ports.
    fn is_discovery(&self) -> bool {
        self.ports.is_empty()
    }
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

    /// Of two runs: the shorter time, the most of everything else.
    fn merge(&mut self, other: &Outcome) {
        self.seconds = self.seconds.min(other.seconds);
        self.resident_kib = self.resident_kib.max(other.resident_kib);
        self.missed = self.missed.max(other.missed);
        self.wrong = self.wrong.max(other.wrong);
    }
}

/// A /16, one port.
pub(crate) fn slash16() -> Result<()> {
    let spec = TruthSpec::new(16, &["198.18.0.0/16"], &[80])?.mix(Mix { dead: 300, shy: 0, open: 250, silent: 250 });
    bench(Task { name: "slash16", what: "/16 x 1 port", targets: "198.18.0.0/16", ports: "80", spec, bar: 0.4, rival: None })
}

/// A /24, a thousand ports.
pub(crate) fn slash24() -> Result<()> {
    let spec = TruthSpec::new(24, &["198.18.7.0/24"], &listened(1000))?.mix(Mix { dead: 300, shy: 0, open: 400, silent: 200 });
    bench(Task { name: "slash24", what: "/24 x 1000 ports", targets: "198.18.7.0/24", ports: "1-1000", spec, bar: 0.5, rival: None })
}

/// One host, every port.
pub(crate) fn ports() -> Result<()> {
    let spec = TruthSpec::new(65, &["198.18.3.3/32"], &listened(65_535))?.mix(Mix { dead: 0, shy: 0, open: 800, silent: 100 });
    bench(Task { name: "ports", what: "one host x 65535 ports", targets: "198.18.3.3", ports: "1-65535", spec, bar: 0.45, rival: None })
}

/// One host, a thousand ports, 55 of them silent.
pub(crate) fn silent() -> Result<()> {
    let ports: Vec<u16> = (1..=75).map(|n| n * 13).collect();
    let mut spec = TruthSpec::new(55, &["198.18.5.5/32"], &ports)?.mix(Mix { dead: 0, shy: 0, open: 1000, silent: 0 });
    let host = IpAddr::V4(Ipv4Addr::new(198, 18, 5, 5));
    for port in ports.iter().take(55) {
        spec = spec.port(host, *port, PortTruth::Silent);
    }
    bench(Task {
        name: "silent",
        what: "one host x 1000 ports, 55 silent",
        targets: "198.18.5.5",
        ports: "1-1000",
        spec,
        bar: 0.45,
        rival: Some(NMAP),
    })
}

/// Who is there on the scanner's own wire.
pub(crate) fn onlink() -> Result<()> {
    let spec = TruthSpec::new(9, &["198.18.9.0/24"], &[80])?.mix(Mix { dead: 600, shy: 100, open: 500, silent: 0 });
    bench(Task { name: "onlink", what: "/24 discovery", targets: "198.18.9.0/24", ports: "", spec, bar: 0.4, rival: Some(NMAP) })
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
    // What arrives is the work of the machine at which it arrives.
    net.receive_on(DEVICE, 2)?;
    scanner.receive_on(DEVICE, 1)?;
    let target = Target::start(&net, task.spec.clone().build()?, &BTreeMap::new())?;
    target.self_check(&scanner, 8)?;
    if task.is_discovery() {
        scanner.ip(&["route", "add", task.targets, "dev", DEVICE])?;
    }
    let truth: Found = match task.is_discovery() {
        true => target.truth().hosts().filter(|(_, state)| *state != HostState::Dead).map(|(address, _)| (address, 0)).collect(),
        false => target.truth().in_state(PortTruth::Open).collect(),
    };
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
    let mut tried: Vec<(Outcome, Setting)> = Vec::new();
    for settings in contenders(task, net, lab)? {
        tried.extend(choose(task, scanner, settings, truth)?);
    }
    let fastest =
        tried.iter().filter(|(_, setting)| !is_picket(setting.program)).map(|(outcome, _)| outcome.seconds).min_by(f64::total_cmp);
    let far = fastest.map_or(f64::INFINITY, |seconds| seconds * FAR_BEHIND);
    let best: Vec<Setting> = tried
        .into_iter()
        .filter(|(outcome, setting)| outcome.seconds <= far || task.rival == Some(setting.program))
        .map(|(_, setting)| setting)
        .collect();
    let mut outcomes: Vec<Vec<Outcome>> = vec![Vec::new(); best.len()];
    for _ in 0..ROUNDS {
        for (setting, outcomes) in best.iter().zip(&mut outcomes) {
            outcomes.push(measure(scanner, setting, truth)?);
        }
    }
    let mut medians: Vec<(&str, f64, bool)> = Vec::new();
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
        medians.push((setting.program, seconds[ROUNDS / 2], outcomes.iter().all(Outcome::is_right)));
    }
    let complete = |(_, _, right): &&(&str, f64, bool)| *right;
    let peers = || medians.iter().filter(|(program, ..)| !is_picket(program));
    let best = peers().filter(complete).min_by(|a, b| a.1.total_cmp(&b.1));
    for (program, seconds, _) in medians.iter().filter(|(program, ..)| is_picket(program)) {
        for (peer, theirs, _) in peers() {
            let judged = task.rival.map_or(best.is_some_and(|(name, ..)| name == peer), |rival| rival == *peer);
            let bar = if judged { format!(" (bar {} x)", task.bar) } else { String::new() };
            println!("{:8}{}: {program} takes {:.2} x {peer}{bar}", task.name, task.what, seconds / theirs);
        }
    }
    Ok(())
}

fn is_picket(program: &str) -> bool {
    program.starts_with("picket")
}

/// Tries every setting of a program and keeps the one that is right and fastest, else the one that misses least. Those that are not far behind
/// are tried again, since one try may fall into a moment at which the machine was busy with something else.
fn choose(task: &Task, scanner: &Namespace, settings: Vec<Setting>, truth: &Found) -> Result<Option<(Outcome, Setting)>> {
    let mut tried = Vec::new();
    for setting in settings {
        let outcome = measure(scanner, &setting, truth)?;
        tell(task, &setting, &outcome);
        tried.push((outcome, setting));
    }
    let right = tried.iter().filter(|(outcome, _)| outcome.is_right());
    let near = right.map(|(outcome, _)| outcome.seconds).min_by(f64::total_cmp).map_or(0.0, |seconds| seconds * NEAR);
    for (outcome, setting) in tried.iter_mut().filter(|(outcome, _)| outcome.seconds <= near) {
        for _ in 1..TRIES {
            let again = measure(scanner, setting, truth)?;
            tell(task, setting, &again);
            outcome.merge(&again);
        }
    }
    let rank = |outcome: &Outcome| (!outcome.is_right(), if outcome.is_right() { 0 } else { outcome.missed + outcome.wrong });
    Ok(tried.into_iter().min_by(|(a, _), (b, _)| rank(a).cmp(&rank(b)).then(a.seconds.total_cmp(&b.seconds))))
}

fn tell(task: &Task, setting: &Setting, outcome: &Outcome) {
    eprintln!(
        "  try {} {}: {:.3} s, missed {}, wrong {} [{}]",
        task.name, setting.program, outcome.seconds, outcome.missed, outcome.wrong, setting.how
    );
}

fn measure(scanner: &Namespace, setting: &Setting, truth: &Found) -> Result<Outcome> {
    let timed = timed::run(scanner, &setting.run).with_context(|| format!("{} [{}]", setting.program, setting.how))?;
    let found = (setting.read)(&timed.stdout);
    Ok(Outcome {
        seconds: timed.seconds,
        resident_kib: timed.resident_kib,
        missed: truth.difference(&found).count(),
        wrong: found.difference(truth).count(),
    })
}

/// Every program that can do the task, with the settings that it may choose from.
fn contenders(task: &Task, net: &Namespace, lab: &Lab) -> Result<Vec<Vec<Setting>>> {
    let router = net.hardware_address(DEVICE)?.map(|byte| format!("{byte:02x}")).join(":");
    let mut all = vec![picket(task, 2)?, picket(task, 1)?];
    if task.is_discovery() {
        all.push(nmap(task, NMAP, &["-sn"]));
        all.push(nmap(task, NMAP_TUNED, &["-sn -T5", "-sn -T5 --min-rate 5000 --max-retries 1"]));
        return Ok(all);
    }
    all.push(masscan(task, &router));
    if task.ports == "80" {
        all.push(zmap(task, &router, lab)?);
    } else {
        all.push(nmap(task, NMAP, &["-Pn -sS -T5"]));
        all.push(nmap(task, NMAP_TUNED, &["-Pn -sS -T5 --min-rate 20000", "-Pn -sS -T5 --min-rate 50000 --max-retries 1"]));
    }
    Ok(all)
}

fn picket(task: &Task, attempts: u8) -> Result<Vec<Setting>> {
    let program = if attempts == 1 { "picket/1" } else { "picket" };
    let setting = |rate: &u32| {
        let (attempts, rate) = (attempts.to_string(), format!("{rate}pps"));
        let common = [task.targets, "-i", DEVICE, "--attempts", &attempts, "--rate", &rate];
        let args = match task.is_discovery() {
            true => [&["discover"], &common[..]].concat(),
            // Peers do not look for hosts first either.
            false => [&["scan", "--no-discovery", "-p", task.ports], &common[..]].concat(),
        };
        let run = Programs::locate()?.probe(&args)?.env("PICKET_INTERFACE__PACKETS", &rate);
        let run = run.env("PICKET_INTERFACE__BITS", "10Gbit").env("PICKET_POLICY__ALLOW", "198.18.0.0/15");
        Ok(Setting { program, how: format!("--rate {rate} --attempts {attempts}"), run: first(run), read: rows })
    };
    RATES.iter().map(setting).collect()
}

fn masscan(task: &Task, router: &str) -> Vec<Setting> {
    let setting = |(rate, wait)| {
        let how = format!("--rate {rate} --wait {wait}");
        let (targets, ports) = (task.targets, task.ports);
        let text = format!("{targets} -p {ports} {how} --adapter {DEVICE} --adapter-ip {SCANNER} --router-mac {router} -oL -");
        Setting { program: "masscan", how, run: first(Run::new("masscan").args(text.split_whitespace())), read: list }
    };
    RATES.iter().flat_map(|rate| [0, 1].map(|wait| (rate, wait))).map(setting).collect()
}

fn zmap(task: &Task, router: &str, lab: &Lab) -> Result<Vec<Setting>> {
    // Its packaged list forbids the addresses of labs.
    let nobody = lab.write("zmap-blacklist", "")?;
    let setting = |(rate, wait)| {
        let how = format!("-r {rate} -c {wait}");
        let (targets, port, nobody) = (task.targets, task.ports, nobody.display());
        let text = format!("{targets} -p {port} {how} -b {nobody} -i {DEVICE} -G {router} -S {SCANNER} -q -v 1 -o -");
        Setting { program: "zmap", how, run: first(Run::new("zmap").args(text.split_whitespace())), read: addresses_on_80 }
    };
    Ok(RATES.iter().flat_map(|rate| [1, 2].map(|wait| (rate, wait))).map(setting).collect())
}

fn nmap(task: &Task, program: &'static str, hows: &[&str]) -> Vec<Setting> {
    let setting = |how: &&str| {
        let ports = if task.is_discovery() { String::new() } else { format!("-p {}", task.ports) };
        let text = format!("-n {how} {ports} -oG - {}", task.targets);
        Setting { program, how: (*how).to_owned(), run: first(Run::new("nmap").args(text.split_whitespace())), read: grepable }
    };
    hows.iter().map(setting).collect()
}

/// Picket's table: address, port, state; without a port where hosts are looked for.
fn rows(text: &str) -> Found {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let (address, second) = (words.next()?.parse().ok()?, words.next()?);
        match second.strip_suffix("/tcp").unwrap_or(second).parse() {
            Ok(port) => (words.next()? == "open").then_some((address, port)),
            Err(_) => (second == "up").then_some((address, 0)),
        }
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

/// nmap's grepable lines: `Host: ADDRESS () Ports: 22/open/tcp//ssh///, ...`, and `Host: ADDRESS () Status: Up` alone where no
/// port was asked for.
fn grepable(text: &str) -> Found {
    let mut found = Found::new();
    let discovery = !text.contains("Ports: ");
    for line in text.lines() {
        let Some(address) = line.strip_prefix("Host: ").and_then(|rest| rest.split_whitespace().next()?.parse().ok()) else { continue };
        if discovery && line.contains("Status: Up") {
            found.insert((address, 0));
        }
        let Some((_, ports)) = line.split_once("Ports: ") else { continue };
        let ports = ports.split('\t').next().unwrap_or_default();
        for port in ports.split(", ").filter(|port| port.contains("/open/")) {
            if let Some(port) = port.split('/').next().and_then(|port| port.trim().parse().ok()) {
                found.insert((address, port));
            }
        }
    }
    found
}
