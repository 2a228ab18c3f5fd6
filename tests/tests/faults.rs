//! Killed, unplugged, partitioned: at the end everything is in the database exactly once and is true, and nothing was asked twice
//! but what lay behind the last checkpoint of a probe that was killed.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use picket_controller::view::{JobState, ProbeState, ProbeView, ResultRow};
use picket_tests::lab::site::{SegmentPlan, Site};
use picket_tests::lab::truth::TruthSpec;
use picket_tests::lab::watch::{Capture, Watch};
use picket_tests::lab::{Signal, require_root, wait_until};
use picket_tests::system::expect::{Expected, Found, Scope, asked, found};
use picket_tests::system::records::Records;
use picket_tests::system::{Fleet, PATIENCE, Plan, towards};
use picket_wire::ids::JobId;

/// Only waited for when something is broken. A probe that was thrown out again and again waits up to a minute before it comes back.
const LONG: Duration = Duration::from_secs(180);
const PORTS: [u16; 8] = [22, 25, 53, 80, 110, 443, 993, 8080];
const PORTS_TEXT: &str = "22,25,53,80,110,443,993,8080";
const NETWORKS: [&str; 2] = ["198.18.0.0/23", "2001:db8:7::/122"];
/// Left out of jobs that each probe does alone, so that they take as long as those that are shared.
const HALF: &str = "198.18.1.0/24";
const ATTEMPTS: u64 = 2;
const PROBES: [&str; 2] = ["a", "b"];
/// What a killed probe may have to do again: a chunk takes in positions for 1 s, and is a checkpoint when the last of them has
/// had its answers and its wait, twice, of at most 1 s each as long as nothing was measured.
const TAIL: Duration = Duration::from_millis(3_500);
/// The probe's trusted clock stands behind the machine's by the way of the welcome, and a loaded machine writes late.
const CLOCKS: Duration = Duration::from_millis(750);

/// SplitMix64, so that a seed gives the same moments everywhere.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, usize::try_from(self.below(last as u64 + 1)).unwrap());
        }
    }

    /// `count` ascending numbers between 4 and 92 percent of `whole`.
    fn moments(&mut self, count: usize, whole: u64) -> Vec<u64> {
        let mut moments: Vec<u64> = (0..count).map(|_| whole * (40 + self.below(880)) / 1000).collect();
        moments.sort_unstable();
        moments
    }
}

fn nanos_now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

struct Rig {
    fleet: Fleet,
    /// When each probe was killed, in nanoseconds since the epoch.
    kills: Vec<(&'static str, u64)>,
    /// When each probe's link was down, alike.
    pauses: Vec<(&'static str, u64, u64)>,
}

/// One job under observation.
struct Observed {
    job: JobId,
    each: bool,
    watches: BTreeMap<&'static str, Watch>,
    counters: BTreeMap<&'static str, u64>,
}

impl Rig {
    fn new(name: &str, plan: Plan) -> Self {
        let spec = TruthSpec::new(99, &NETWORKS, &PORTS).unwrap();
        let site = Site::builder(name).probe("a").probe("b").segment(SegmentPlan::new("net", spec)).build().unwrap();
        Self { fleet: Fleet::start(site, plan).unwrap(), kills: Vec::new(), pauses: Vec::new() }
    }

    fn expected(&self, each: bool) -> Expected {
        let scope = if each { Scope::new(&[], &[HALF]) } else { Scope::default() };
        Expected::scan(&[self.fleet.site().segment("net").unwrap().target().truth()], &PORTS, &scope)
    }

    /// Packets that an undisturbed run sends about, over all probes.
    fn packets(&self, each: bool) -> u64 {
        let expected = self.expected(each);
        (expected.coverage.asked + expected.coverage.silent) * if each { 2 } else { 1 }
    }

    fn begin(&mut self, each: bool) -> Observed {
        self.begin_with(each, &[])
    }

    fn begin_with(&mut self, each: bool, more: &[&str]) -> Observed {
        self.kills.clear();
        self.pauses.clear();
        let filter = towards(self.fleet.site(), &["net"]).unwrap();
        let watches = PROBES.map(|name| (name, self.fleet.site().watch(name, Some(&filter)).unwrap()));
        let counters = PROBES.map(|name| (name, self.sent(name)));
        let mut args = vec!["scan", NETWORKS[0], NETWORKS[1], "-p", PORTS_TEXT];
        if each {
            args.extend(["--mode", "each", "--exclude", HALF]);
        }
        args.extend(more);
        let job = self.fleet.submit_job(&args).unwrap();
        Observed { job, each, watches: watches.into(), counters: counters.into() }
    }

    /// Frames that a probe has sent since its site was built.
    fn sent(&self, probe: &str) -> u64 {
        let place = self.fleet.site().probe(probe).unwrap();
        self.fleet.site().router().counters(place.router_device()).unwrap().received_packets
    }

    /// Waits until the probes together have sent so many frames for the job: a moment of the scan, however fast it goes.
    fn wait_sent(&self, observed: &Observed, frames: u64) {
        wait_until(&format!("{frames} frames of the job"), LONG, || {
            let sent: u64 = observed.counters.iter().map(|(name, before)| self.sent(name) - before).sum();
            Ok((sent >= frames).then_some(()))
        })
        .unwrap();
    }

    fn kill_probe(&mut self, name: &'static str) {
        self.fleet.kill_probe(name).unwrap();
        self.kills.push((name, nanos_now()));
    }

    /// Waits for the end of the job and judges everything about it. `shared` says that no lease ran out, so that no range was
    /// given to another.
    fn judge(&self, observed: Observed) -> (Found, BTreeMap<&'static str, Capture>) {
        let Observed { job: id, each, watches, .. } = observed;
        let expected = self.expected(each);
        let job = self.fleet.wait_done(id, LONG).unwrap();
        let rows = self.fleet.results(id).unwrap();
        let captures = stop(watches);
        let vantages: u32 = if each { 2 } else { 1 };
        expected.check_coverage(&job.coverage, vantages.into()).unwrap();
        if each {
            for name in PROBES {
                let own: Vec<ResultRow> = rows.iter().filter(|row| row.probe.as_str() == name).cloned().collect();
                expected.check_rows(&own).unwrap();
            }
        } else {
            expected.check_rows(&rows).unwrap();
        }
        let records = Records::read(self.fleet.data()).unwrap();
        records.reported_once(id, vantages).unwrap();
        self.check_repetitions(&expected, id, each, &records, &captures);
        (found(&rows), captures)
    }

    /// Nothing is asked again but what lay behind the last checkpoint when its probe was killed.
    fn check_repetitions(&self, expected: &Expected, id: JobId, each: bool, records: &Records, captures: &BTreeMap<&'static str, Capture>) {
        let space = records.space(id).unwrap();
        // Who reported each target, and from when to when it was measured.
        let mut reported: BTreeMap<(&str, IpAddr, u16), (u64, u64)> = BTreeMap::new();
        for (raw, batch) in records.batches(id) {
            let mut from = batch.started.0 * 1_000_000;
            let to = from + u64::try_from(batch.took.as_nanos()).unwrap();
            // A measurement stands still while its link is down: that is no part of what it took.
            for (_, down, up) in self.pauses.iter().rev().filter(|(paused, ..)| *paused == raw.probe) {
                if *up > from && *down < to {
                    from -= up - down;
                }
            }
            for position in batch.from..batch.to {
                let target = space.target(position).unwrap();
                reported.insert((raw.probe.as_str(), target.addr, target.port.unwrap()), (from, to));
            }
        }
        let clocks = u64::try_from(CLOCKS.as_nanos()).unwrap();
        let tail = u64::try_from(TAIL.as_nanos()).unwrap();
        for (name, capture) in captures {
            let kills: Vec<u64> = self.kills.iter().filter(|(killed, _)| killed == name).map(|(_, at)| *at).collect();
            for ((address, port), count) in asked(&[capture]) {
                let port = port.unwrap();
                assert!(expected.asked.contains_key(&(address, Some(port))), "{address} port {port} is no target");
                // What left while the kernel had not told yet that the link is down is asked again.
                let cuts = self.pauses.iter().filter(|(paused, ..)| paused == name).count();
                let most = ATTEMPTS * (1 + kills.len() as u64 + cuts as u64);
                assert!(count <= most, "{name} asked {address} port {port} {count} times, with {} kills and {cuts} cuts", kills.len());
            }
            for frame in capture.frames() {
                let Some(packet) = frame.packet().filter(|packet| packet.is_syn()) else { continue };
                let (address, port) = (packet.destination, packet.destination_port().unwrap());
                let span = reported.get(&(*name, address, port));
                let inside = span.is_some_and(|(from, to)| (from.saturating_sub(clocks)..=to + clocks).contains(&frame.at));
                let lost = kills.iter().any(|kill| frame.at <= kill + clocks && frame.at + tail >= *kill);
                assert!(
                    inside || lost,
                    "{name} asked {address} port {port} at {}, reported as measured {span:?}; its kills were at {kills:?}: not the tail of one of them",
                    frame.at
                );
            }
        }
        if !each {
            // Shared work is done by one of them, whatever happened.
            let by: Vec<BTreeSet<_>> = captures.values().map(|capture| asked(&[capture]).into_keys().collect()).collect();
            let both = by[0].intersection(&by[1]).next();
            assert!(both.is_none(), "{both:?} was asked by both probes");
        }
    }

    /// Everything that was made of the raw records is made again, and is the same.
    fn rebuilt(&self, job: JobId) {
        let state =
            || (self.fleet.job(job).unwrap().coverage, self.fleet.results(job).unwrap(), Records::read(self.fleet.data()).unwrap().counted);
        let before = state();
        self.fleet.picket(&["db", "rebuild"], PATIENCE).unwrap().ok().unwrap();
        assert!(state() == before, "a rebuild changes nothing");
    }

    /// Ends both probes in order and starts them again, so that what they learnt about their controller's absence is forgotten.
    fn fresh_probes(&mut self) {
        for name in PROBES {
            assert!(self.fleet.stop_probe(name).unwrap().success());
            self.fleet.start_probe(name).unwrap();
        }
        for name in PROBES {
            self.fleet.wait_online(name).unwrap();
        }
    }
}

fn stop(watches: BTreeMap<&'static str, Watch>) -> BTreeMap<&'static str, Capture> {
    watches.into_iter().map(|(name, watch)| (name, watch.stop().unwrap())).collect()
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Probe,
    Controller,
    Both,
}

/// Kills at five seeded moments of each of two jobs, one shared and one done by each probe, and compares with undisturbed runs.
/// `PICKET_LAB_SEED` in the environment gives other moments, for whoever searches longer.
fn killed(name: &str, seed: u64) {
    if !require_root() {
        return;
    }
    let shift: u64 = std::env::var("PICKET_LAB_SEED").map_or(0, |text| text.parse().expect("PICKET_LAB_SEED is a number"));
    let seed = seed + 3 * shift;
    let mut rig = Rig::new(name, Plan::default());
    let mut random = Seeded(seed);
    // Ten in seeded order; over the three tests ten of each kind.
    let kinds = [Victim::Probe, Victim::Controller, Victim::Both];
    let mut victims: Vec<Victim> = kinds.iter().cycle().skip(usize::try_from(seed).unwrap()).take(10).copied().collect();
    random.shuffle(&mut victims);
    for each in [false, true] {
        let reference = rig.begin(each);
        let (undisturbed, _) = rig.judge(reference);
        let observed = rig.begin(each);
        let moments = random.moments(5, rig.packets(each));
        for moment in moments {
            let victim = victims.pop().unwrap();
            let probe = PROBES[usize::try_from(random.below(2)).unwrap()];
            rig.wait_sent(&observed, moment);
            eprintln!("after {moment} frames: kill -9 of {victim:?} ({probe})");
            match victim {
                Victim::Probe => {
                    rig.kill_probe(probe);
                    rig.fleet.start_probe(probe).unwrap();
                }
                Victim::Controller => {
                    rig.fleet.kill_controller().unwrap();
                    rig.fleet.start_controller().unwrap();
                }
                Victim::Both => {
                    rig.fleet.kill_controller().unwrap();
                    rig.kill_probe(probe);
                    // The probe comes back to no controller, or the other way round.
                    if random.below(2) == 0 {
                        rig.fleet.start_probe(probe).unwrap();
                        rig.fleet.start_controller().unwrap();
                    } else {
                        rig.fleet.start_controller().unwrap();
                        rig.fleet.start_probe(probe).unwrap();
                    }
                }
            }
        }
        let job = observed.job;
        let (disturbed, _) = rig.judge(observed);
        rig.rebuilt(job);
        assert_eq!(disturbed, undisturbed, "the database equals that of an undisturbed run");
        rig.fresh_probes();
    }
}

#[test]
fn killed_at_ten_seeded_moments() {
    killed("kill1", 1);
}

#[test]
fn killed_at_ten_other_moments() {
    killed("kill2", 2);
}

#[test]
fn killed_at_ten_more_moments() {
    killed("kill3", 3);
}

#[test]
fn a_link_goes_down_and_comes_up() {
    if !require_root() {
        return;
    }
    let mut rig = Rig::new("link", Plan::default());
    let mut random = Seeded(5);
    let observed = rig.begin(false);
    for moment in random.moments(2, rig.packets(false)) {
        let probe = PROBES[usize::try_from(random.below(2)).unwrap()];
        rig.wait_sent(&observed, moment);
        let down = nanos_now();
        rig.fleet.site().link_down(probe).unwrap();
        // The other one goes on; the link stays down until it has done a good part, or all it had.
        let other = PROBES.into_iter().find(|name| *name != probe).unwrap();
        let before = rig.sent(other);
        // That it had nothing left to send is no failure.
        let _ = wait_until("progress of the other probe", Duration::from_secs(3), || Ok((rig.sent(other) - before >= 1000).then_some(())));
        rig.fleet.site().link_up(probe).unwrap();
        rig.pauses.push((probe, down, nanos_now()));
    }
    rig.judge(observed);
}

#[test]
fn the_controller_is_gone_for_a_while() {
    if !require_root() {
        return;
    }
    let mut rig = Rig::new("gone", Plan::default());
    let observed = rig.begin(false);
    let all = rig.packets(false);
    rig.wait_sent(&observed, all / 5);
    rig.fleet.kill_controller().unwrap();
    // They do not need it: nearly all is sent without one.
    rig.wait_sent(&observed, all * 19 / 20);
    rig.fleet.start_controller().unwrap();
    rig.judge(observed);
    // Cut off without a word, with all programs running on.
    let observed = rig.begin(false);
    rig.wait_sent(&observed, all / 5);
    rig.fleet.site().controller_link_down().unwrap();
    rig.wait_sent(&observed, all * 3 / 5);
    rig.fleet.site().controller_link_up().unwrap();
    rig.judge(observed);
}

#[test]
fn a_dead_probes_remainder_goes_to_another() {
    if !require_root() {
        return;
    }
    let mut rig = Rig::new("dead", Plan::default().lease_ttl(5).heartbeat(1));
    let observed = rig.begin(false);
    rig.wait_sent(&observed, rig.packets(false) / 3);
    rig.kill_probe("a");
    let job = rig.fleet.wait_done(observed.job, LONG).unwrap();
    let expected = rig.expected(false);
    expected.check_coverage(&job.coverage, 1).unwrap();
    let rows = rig.fleet.results(job.id).unwrap();
    expected.check_rows(&rows).unwrap();
    let part = |name: &str| job.probes.iter().find(|part| part.probe.as_str() == name).map_or(0, |part| part.coverage.asked);
    assert!(part("b") > expected.coverage.asked / 2, "{:?}", job.probes);
    assert_eq!(part("a") + part("b"), expected.coverage.asked);
    Records::read(rig.fleet.data()).unwrap().reported_once(job.id, 1).unwrap();
    let captures = stop(observed.watches);
    for (target, count) in asked(&captures.values().collect::<Vec<_>>()) {
        assert!(expected.asked.contains_key(&target) && count <= 2 * ATTEMPTS, "{target:?} was asked {count} times");
    }

    // It comes back with what it had measured and not yet told. That was done again meanwhile: nothing changes, nothing is twice.
    let watch = rig.fleet.site().watch("a", Some(&towards(rig.fleet.site(), &["net"]).unwrap())).unwrap();
    rig.fleet.start_probe("a").unwrap();
    rig.fleet
        .wait_probe("a", "back with an empty spool", PATIENCE, |view| view.state == ProbeState::Online && view.spool_records == Some(0))
        .unwrap();
    let again = rig.fleet.job(job.id).unwrap();
    assert_eq!((again.state, again.coverage), (JobState::Done, job.coverage));
    assert_eq!(found(&rig.fleet.results(job.id).unwrap()), found(&rows));
    assert!(watch.stop().unwrap().is_empty(), "its old lease is over");
}

/// A shared job that is slow enough for leases to run out in the middle of it.
fn begin_slowly(rig: &mut Rig) -> Observed {
    rig.begin_with(false, &["--rate", "400pps"])
}

/// The job is done by both, right, and counted once; then `a` comes back with what it has, and nothing changes.
fn given_away(rig: &Rig, observed: &Observed, come_back: impl FnOnce()) {
    let expected = rig.expected(false);
    let check = || {
        let job = rig.fleet.job(observed.job).unwrap();
        assert_eq!(job.state, JobState::Done);
        expected.check_coverage(&job.coverage, 1).unwrap();
        expected.check_rows(&rig.fleet.results(job.id).unwrap()).unwrap();
        Records::read(rig.fleet.data()).unwrap().counted_once(job.id, 1).unwrap();
    };
    rig.fleet.wait_done(observed.job, LONG).unwrap();
    check();
    come_back();
    let idle = |view: &ProbeView| view.state == ProbeState::Online && view.spool_records == Some(0) && view.jobs.is_empty();
    rig.fleet.wait_probe("a", "back, idle and with an empty spool", LONG, idle).unwrap();
    check();
    rig.rebuilt(observed.job);
}

#[test]
fn who_is_cut_off_stops_before_its_work_is_given_away() {
    if !require_root() {
        return;
    }
    let mut rig = Rig::new("cutoff", Plan::default().lease_ttl(5).heartbeat(1));
    let observed = begin_slowly(&mut rig);
    rig.wait_sent(&observed, rig.packets(false) / 8);
    // Only the way to the controller is cut: what it measures it still reaches.
    let device = rig.fleet.site().probe("a").unwrap().router_device().to_owned();
    let router = rig.fleet.site().router().clone();
    let rule = format!("iifname \"{device}\" tcp dport 8883 drop");
    let cut = format!("table inet cut {{\n\tchain c {{\n\t\ttype filter hook forward priority filter;\n\t\t{rule}\n\t}}\n}}\n");
    router.nft(&cut).unwrap();
    let cut_at = nanos_now();
    given_away(&rig, &observed, || router.nft("delete table inet cut\n").unwrap());
    let mut captures = stop(observed.watches);
    let (a, b) = (captures.remove("a").unwrap(), captures.remove("b").unwrap());
    let of_a = asked(&[&a]);
    let last = a.frames().last().unwrap().at;
    // It went on without a word for what it held, and no longer: 5 s from when its last answered heartbeat was sent.
    assert!(last > cut_at && last < cut_at + 7_000_000_000, "{} ms after the cut", (last - cut_at.min(last)) / 1_000_000);
    let again =
        b.frames().find(|frame| frame.packet().is_some_and(|packet| of_a.contains_key(&(packet.destination, packet.destination_port()))));
    let first = again.expect("something that a had begun was done again by b").at;
    assert!(last < first, "a was still sending {} ms after b had begun with what was a's", (last.saturating_sub(first)) / 1_000_000);
}

#[test]
fn who_was_frozen_does_not_go_on() {
    if !require_root() {
        return;
    }
    let mut rig = Rig::new("frozen", Plan::default().lease_ttl(5).heartbeat(1));
    let observed = begin_slowly(&mut rig);
    rig.wait_sent(&observed, rig.packets(false) / 8);
    rig.fleet.probe_proc("a").unwrap().freeze().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(rig.fleet.probe_proc("a").unwrap().id()).unwrap());
    let before = rig.sent("a");
    let thawed = std::cell::Cell::new(0);
    given_away(&rig, &observed, || {
        thawed.set(nanos_now());
        nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    });
    assert!(rig.sent("a") > before, "it is back");
    let a = stop(observed.watches).remove("a").unwrap();
    // Its packet loop runs before its clocks are looked at: what leaves in that moment is what one turn holds.
    let late = a.frames().filter(|frame| frame.at > thawed.get()).count();
    assert!(late <= 40, "{late} packets of a lease that had long been given away, 100 ms worth are forgiven");
}

#[test]
fn a_revoked_probes_remainder_goes_to_another() {
    if !require_root() {
        return;
    }
    // Its leases would hold for much longer than the test waits.
    let mut rig = Rig::new("revoked", Plan::default().lease_ttl(600).heartbeat(1));
    let observed = rig.begin(false);
    rig.wait_sent(&observed, rig.packets(false) / 3);
    rig.fleet.picket(&["probe", "revoke", "a"], PATIENCE).unwrap().ok().unwrap();
    let job = rig.fleet.wait_done(observed.job, PATIENCE).unwrap();
    let expected = rig.expected(false);
    expected.check_coverage(&job.coverage, 1).unwrap();
    expected.check_rows(&rig.fleet.results(job.id).unwrap()).unwrap();
    Records::read(rig.fleet.data()).unwrap().reported_once(job.id, 1).unwrap();
}

#[test]
fn an_orderly_end_is_no_fault() {
    if !require_root() {
        return;
    }
    let mut rig = Rig::new("orderly", Plan::default());
    let mut random = Seeded(17);
    let observed = rig.begin(false);
    for moment in random.moments(3, rig.packets(false)) {
        let probe = PROBES[usize::try_from(random.below(2)).unwrap()];
        rig.wait_sent(&observed, moment);
        assert!(rig.fleet.stop_probe(probe).unwrap().success());
        // What had not had its answers yet is asked again, as after a kill.
        rig.kills.push((probe, nanos_now()));
        rig.fleet.start_probe(probe).unwrap();
    }
    rig.judge(observed);
}
