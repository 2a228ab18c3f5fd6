//! Paths, beside Debian's traceroute, mtr and scamper, through routers that really forward: one path, and many at once.
//!
//! Every program is started anew for each run; its time is from start to exit. What it told is compared with the lab's truth, hop by hop.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path as File;
use std::time::Duration;

use anyhow::{Result, ensure};
use picket_tests::lab::Run;
use picket_tests::lab::chain::{Chain, Family, Plan};
use picket_tests::lab::programs::Programs;
use picket_tests::lab::tree::Tree;
use picket_tests::system::paths::{self, Path};

use crate::median;
use crate::timed::{self, first};

const ROUNDS: usize = 5;
const SLOW_ROUNDS: usize = 2;
const HOPS: u8 = 12;
const OURS: &str = "picket-probe";
const RIVAL: &str = "traceroute";
/// Of traceroute's time, what Picket may take for one path.
const BAR_ONE: f64 = 0.6;
/// Of scamper's time, what it may take for many; with half of the destinations dead; and of its packets.
const BAR_MANY: f64 = 0.6;
const BAR_DEAD: f64 = 0.35;
const BAR_PACKETS: f64 = 0.8;
/// MiB that it may take for [`MOST`] destinations.
const BAR_MEMORY: f64 = 24.0;
const MANY: u32 = 1_000;
const MOST: u32 = 10_000;
const RATE: u32 = 10_000;
/// What scamper does for each destination: one packet for each hop and a second for its answer, where two and five are usual. It waits
/// for nothing less.
const SCAMPER: &str = "trace -P icmp-paris -q 1 -w 1";

type Reader = Box<dyn Fn(&str) -> Result<Vec<Path>>>;

struct Contender {
    name: &'static str,
    run: Run,
    read: Reader,
}

impl Contender {
    fn new(name: &'static str, run: Run, read: impl Fn(&str) -> Result<Vec<Path>> + 'static) -> Self {
        Self { name, run, read: Box::new(read) }
    }
}

/// 12 hops, one of them silent, and 80 ms: before all of them, and before the last alone.
pub(crate) fn one() -> Result<()> {
    beside_others("12 hops, one silent, 80 ms to each", 1)?;
    beside_others("12 hops, one silent, 80 ms to the last", HOPS)
}

fn beside_others(what: &str, long: u8) -> Result<()> {
    let chain = Chain::new("benchtrace", Plan::hops(HOPS).silent(HOPS / 2).long(long, Duration::from_millis(40)))?;
    let (dst, truth) = (chain.destination(Family::V4), chain.truth(Family::V4));
    let text = dst.to_string();
    let peer = |program: &str, args: &[&str]| Run::new(program).args(args).arg(&text);
    let contenders = [
        Contender::new(OURS, paths::probe(Chain::DEVICE, "1kpps", &[&text])?, paths::read_probe),
        Contender::new(RIVAL, peer("traceroute", &["-n"]), move |text| Ok(vec![paths::read_traceroute(dst, text)?])),
        Contender::new("mtr -c 1", peer("mtr", &["-n", "-c", "1", "--report"]), move |text| Ok(vec![paths::read_mtr(dst, text)?])),
        Contender::new("scamper", Run::new("scamper").args(["-O", "json", "-I", &format!("trace {text}")]), paths::read_scamper),
    ];
    let mut seconds = vec![Vec::new(); contenders.len()];
    let mut right = vec![0; contenders.len()];
    for round in 0..ROUNDS {
        // The others take many times as long, and the same each time.
        let these = if round < SLOW_ROUNDS { contenders.len() } else { 2 };
        for ((contender, seconds), right) in contenders.iter().zip(&mut seconds).zip(&mut right).take(these) {
            let timed = timed::run(chain.probe(), &contender.run)?;
            seconds.push(timed.seconds);
            let paths = (contender.read)(&timed.stdout)?;
            *right += usize::from(paths.iter().all(|path| path.reached && path.way() == truth) && paths.len() == 1);
        }
    }
    ensure!(chain.lost() == 0, "the long cable lost {} frames", chain.lost());
    let ours = median(seconds.iter().flatten().copied().take(ROUNDS));
    for ((contender, seconds), right) in contenders.iter().zip(&seconds).zip(&right) {
        let [least, most] = [f64::min, f64::max].map(|of| seconds.iter().copied().reduce(of).unwrap_or(f64::NAN));
        let (name, runs, seconds) = (contender.name, seconds.len(), median(seconds.iter().copied()));
        let beside = match name {
            OURS => String::new(),
            RIVAL => format!("; picket-probe takes {:.3} x of it (bar {BAR_ONE})", ours / seconds),
            _ => format!("; picket-probe takes {:.3} x of it", ours / seconds),
        };
        println!("trace     {what}: {name:12} median {seconds:.3} s ({least:.3} to {most:.3}), right in {right} of {runs} runs{beside}");
    }
    Ok(())
}

/// What the runs of one program came to.
#[derive(Default)]
struct Sums {
    seconds: Vec<f64>,
    packets: Vec<f64>,
    resident_kib: u64,
    /// At worst: destinations whose path was told otherwise than it is.
    wrong: usize,
    /// The paths of the last run.
    paths: BTreeMap<IpAddr, Path>,
}

impl Sums {
    fn seconds(&self) -> f64 {
        median(self.seconds.iter().copied())
    }

    fn packets(&self) -> f64 {
        median(self.packets.iter().copied())
    }
}

/// Destinations by the thousand behind a tree of routers; all alive, half of them dead, and ten times as many.
pub(crate) fn many() -> Result<()> {
    let mut tree = Tree::new("benchtree")?;
    tree.apart()?;
    compare(&tree, "1,000 destinations", MANY, ROUNDS, Some(BAR_MANY))?;
    compare(&tree, "10,000 destinations", MOST, 1, None)?;
    tree.kill_half()?;
    compare(&tree, "1,000 destinations, half of them dead", MANY, ROUNDS, Some(BAR_DEAD))
}

fn contenders(list: &File) -> Result<Vec<Contender>> {
    let file = list.to_string_lossy();
    let rate = format!("{RATE}pps");
    let probe = |more: &[&str]| {
        let args = [&["--method", "icmp", "-q", "1", "--input-file", &file], more].concat();
        Ok::<_, anyhow::Error>(first(paths::probe(Tree::DEVICE, &rate, &args)?))
    };
    let scamper = Run::new("scamper").args(["-O", "json", "-p", &RATE.to_string(), "-c", SCAMPER, "-f"]).arg(list);
    Ok(vec![
        Contender::new(OURS, probe(&[])?, paths::read_probe),
        Contender::new("picket-probe --all-hops", probe(&["--all-hops"])?, paths::read_probe),
        Contender::new("scamper", first(scamper), paths::read_scamper),
    ])
}

fn compare(tree: &Tree, what: &str, count: u32, rounds: usize, bar: Option<f64>) -> Result<()> {
    let destinations = Tree::destinations(count);
    let text: String = destinations.iter().map(|destination| format!("{destination}\n")).collect();
    let list = tree.probe().lab().write("destinations", text)?;
    let mut contenders = contenders(&list)?;
    let help = tree.probe().run(&Programs::locate()?.probe(&["trace", "--help"])?, Duration::from_secs(10))?.ok()?;
    contenders.retain(|contender| !contender.name.contains("--all-hops") || help.contains("--all-hops"));
    let mut sums: Vec<Sums> = contenders.iter().map(|_| Sums::default()).collect();
    for _ in 0..rounds {
        for (contender, sums) in contenders.iter().zip(&mut sums) {
            let before = tree.arrived()?;
            let timed = timed::run(tree.probe(), &contender.run)?;
            sums.packets.push((tree.arrived()? - before) as f64);
            sums.seconds.push(timed.seconds);
            sums.resident_kib = sums.resident_kib.max(timed.resident_kib);
            sums.paths = (contender.read)(&timed.stdout)?.into_iter().map(|path| (path.dst, path)).collect();
            let right = |dst: &IpAddr, path: &Path| matches!(dst, IpAddr::V4(dst) if tree.truth(*dst) == path.way());
            let told = destinations.iter().map(|dst| IpAddr::from(*dst));
            let wrong = told.filter(|dst| !sums.paths.get(dst).is_some_and(|path| right(dst, path))).count();
            sums.wrong = sums.wrong.max(wrong);
        }
    }
    tell(what, &contenders, &sums, bar);
    Ok(())
}

fn tell(what: &str, contenders: &[Contender], sums: &[Sums], bar: Option<f64>) {
    for (contender, sums) in contenders.iter().zip(sums) {
        println!(
            "traces    {what}, {RATE} packets/s: {:24} median {:.3} s of {}, {} packets, {:.1} MiB, {} paths otherwise than they are at worst",
            contender.name,
            sums.seconds(),
            sums.seconds.len(),
            sums.packets(),
            mib(sums),
            sums.wrong,
        );
    }
    let Some((theirs, ours)) = sums.split_last() else { return };
    for (contender, ours) in contenders.iter().zip(ours) {
        let differs = theirs.paths.iter().filter(|(dst, path)| ours.paths.get(*dst).is_none_or(|ours| ours.way() != path.way())).count();
        let (seconds, packets) = (ours.seconds() / theirs.seconds(), ours.packets() / theirs.packets());
        let bars =
            bar.map_or_else(|| format!("memory {:.1} MiB (bar {BAR_MEMORY})", mib(ours)), |bar| format!("bars {bar} and {BAR_PACKETS}"));
        println!(
            "traces    {what}: {} takes {seconds:.3} x scamper's time and {packets:.3} x its packets ({bars}); {differs} paths differ from scamper's",
            contender.name
        );
    }
}

fn mib(sums: &Sums) -> f64 {
    crate::mib(sums.resident_kib)
}
