//! What the fleet says is true: every answer, every silence, every refusal, against a target network whose truth is known, and
//! against what was seen on the wire from outside.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::time::{Duration, Instant};

use picket_controller::view::{JobState, JobView, Plan as JobPlan, ResultRow};
use picket_tests::lab::site::{SegmentPlan, Site};
use picket_tests::lab::truth::{HostState, PortTruth, Truth, TruthSpec};
use picket_tests::lab::watch::{Capture, Watch};
use picket_tests::lab::{Signal, require_root, wait_until};
use picket_tests::system::expect::{Expected, Scope, asked, found};
use picket_tests::system::{Fleet, Plan, records::Records, towards};
use serde::Deserialize;

/// Only waited for when something is broken.
const LONG: Duration = Duration::from_secs(120);
const PORTS: [u16; 4] = [22, 80, 443, 8080];
/// Listened ports, and one that nobody listens on.
const ASKED: [u16; 5] = [22, 80, 443, 8080, 9999];
const ATTEMPTS: u64 = 2;

/// What `picket scan --json` prints.
#[derive(Deserialize)]
struct Scanned {
    job: JobView,
    plan: JobPlan,
    results: Vec<ResultRow>,
}

fn measure(fleet: &Fleet, args: &[&str]) -> Scanned {
    let text = fleet.picket(&[args, &["--json"]].concat(), LONG).unwrap().ok().unwrap();
    serde_json::from_str(&text).unwrap()
}

fn truth<'a>(fleet: &'a Fleet, segment: &str) -> &'a Truth {
    fleet.site().segment(segment).unwrap().target().truth()
}

fn watch(fleet: &Fleet, probes: &[&str], segments: &[&str]) -> Vec<Watch> {
    let filter = towards(fleet.site(), segments).unwrap();
    probes.iter().map(|name| fleet.site().watch(name, Some(&filter)).unwrap()).collect()
}

fn stop(watches: Vec<Watch>) -> Vec<Capture> {
    watches.into_iter().map(|watch| watch.stop().unwrap()).collect()
}

#[test]
fn a_split_scan_and_a_discovery_of_a_slash_20() {
    if !require_root() {
        return;
    }
    let spec = TruthSpec::new(2026, &["198.18.16.0/20", "2001:db8:3::/120"], &PORTS).unwrap();
    let site = Site::builder("truth").probe("a").probe("b").probe("c").segment(SegmentPlan::new("net", spec)).build().unwrap();
    // What one policy refuses, what the other does, and what the job itself leaves out; IPv4 and IPv6.
    let (by_fleet, by_site) = (["198.18.20.0/26", "2001:db8:3::40/124"], ["198.18.21.0/26", "2001:db8:3::80/124"]);
    let excluded = ["198.18.22.0/27", "2001:db8:3::c0/124"];
    let scope = Scope::new(&[by_fleet, by_site].concat(), &excluded);
    let fleet = Fleet::start(site, Plan::default().packets("4kpps").fleet_deny(&by_fleet).site_deny(&by_site)).unwrap();
    let probes = ["a", "b", "c"];
    let targets = ["198.18.16.0/20", "2001:db8:3::/120", "--exclude", excluded[0], "--exclude", excluded[1]];

    let expected = Expected::scan(&[truth(&fleet, "net")], &ASKED, &scope);
    let watches = watch(&fleet, &probes, &["net"]);
    let start = Instant::now();
    let scanned = measure(&fleet, &[&["scan", "-p", "22,80,443,8080,9999"], &targets[..]].concat());
    eprintln!("scan of {} targets by three probes: {:?}", scanned.job.total, start.elapsed());
    let captures = stop(watches);
    let captures: Vec<&Capture> = captures.iter().collect();
    expected.check_rows(&scanned.results).unwrap();
    expected.check_coverage(&scanned.job.coverage, 1).unwrap();
    expected.check_wire(&captures, ATTEMPTS).unwrap();
    assert_eq!(scanned.job.total, expected.coverage.asked);
    assert_eq!(scanned.plan.targets, expected.coverage.asked);
    assert_eq!(scanned.plan.refused_by_policy, (64 + 16) * 5, "what the fleet's policy refuses is known beforehand");
    assert_eq!(scanned.plan.excluded, (32 + 16) * 5);
    let sent: u64 = asked(&captures).values().sum();
    assert_eq!(scanned.job.coverage.packets, sent, "the packets of the coverage are those that were seen outside");
    // The work was shared: each probe has a part, the parts are the whole, and nobody did another's.
    assert_eq!(scanned.job.probes.len(), 3);
    for (part, capture) in scanned.job.probes.iter().zip(&captures) {
        assert!(part.coverage.adds_up() && part.coverage.asked > 0, "{part:?}");
        assert_eq!(part.coverage.packets, asked(&[capture]).values().sum::<u64>(), "{}", part.probe);
    }
    assert_eq!(scanned.job.probes.iter().map(|part| part.coverage.asked).sum::<u64>(), expected.coverage.asked);
    Records::read(fleet.data()).unwrap().reported_once(scanned.job.id, 1).unwrap();

    let expected = Expected::discovery(&[truth(&fleet, "net")], &scope);
    let watches = watch(&fleet, &probes, &["net"]);
    let found = measure(&fleet, &[&["discover", "--host-probes", "echo"], &targets[..]].concat());
    let captures = stop(watches);
    expected.check_rows(&found.results).unwrap();
    expected.check_coverage(&found.job.coverage, 1).unwrap();
    expected.check_wire(&captures.iter().collect::<Vec<_>>(), ATTEMPTS).unwrap();
    Records::read(fleet.data()).unwrap().reported_once(found.job.id, 1).unwrap();
}

#[test]
fn each_vantage_gives_one_full_view() {
    if !require_root() {
        return;
    }
    let spec = TruthSpec::new(7, &["198.18.64.0/24", "2001:db8:4::/122"], &PORTS).unwrap();
    // One probe beside the router, one inside the segment.
    let site = Site::builder("each").probe("north").probe_in("desk", "net").segment(SegmentPlan::new("net", spec)).build().unwrap();
    let fleet = Fleet::start(site, Plan::default().packets("2kpps").site_deny(&["198.18.64.128/26"])).unwrap();
    let scope = Scope::new(&["198.18.64.128/26"], &[]);
    let expected = Expected::scan(&[truth(&fleet, "net")], &PORTS, &scope);
    let watches = watch(&fleet, &["desk", "north"], &["net"]);
    let scanned = measure(&fleet, &["scan", "198.18.64.0/24", "2001:db8:4::/122", "-p", "22,80,443,8080", "--mode", "each"]);
    let captures = stop(watches);
    expected.check_coverage(&scanned.job.coverage, 2).unwrap();
    assert_eq!(scanned.job.total, 2 * expected.coverage.asked);
    for (probe, capture) in ["desk", "north"].iter().zip(&captures) {
        let part = scanned.job.probes.iter().find(|part| part.probe.as_str() == *probe).unwrap();
        expected.check_coverage(&part.coverage, 1).unwrap();
        expected.check_wire(&[capture], ATTEMPTS).unwrap();
        let own: Vec<ResultRow> = scanned.results.iter().filter(|row| row.probe.as_str() == *probe).cloned().collect();
        expected.check_rows(&own).unwrap();
    }
    assert_eq!(scanned.results.len(), 2 * expected.found.len());
    Records::read(fleet.data()).unwrap().reported_once(scanned.job.id, 2).unwrap();
}

#[test]
fn who_is_not_on_the_wire_was_not_reached() {
    if !require_root() {
        return;
    }
    let spec = TruthSpec::new(3, &["198.18.80.0/26", "2001:db8:5::/122"], &PORTS).unwrap();
    let site = Site::builder("onlink").probe_in("desk", "lan").segment(SegmentPlan::new("lan", spec).on_link()).build().unwrap();
    let fleet = Fleet::start(site, Plan::default()).unwrap();
    let truth = truth(&fleet, "lan");
    let mut expected = Expected::scan(&[truth], &PORTS, &Scope::default());
    // Nobody answers for a dead host's address, so nothing could be sent to it: that is not silence.
    let is_dead = |address| truth.host(address) == Some(HostState::Dead);
    let before = expected.asked.len();
    expected.asked.retain(|(address, _), _| !is_dead(*address));
    expected.coverage.not_reached = (before - expected.asked.len()) as u64;
    expected.coverage.silent -= expected.coverage.not_reached;
    expected.forbidden = truth.hosts().filter(|(_, state)| *state == HostState::Dead).map(|(address, _)| address).collect();
    // Neighbour solicitations go to multicast addresses, ARP has none: whatever goes to a dead host's address is too much.
    let watches = watch(&fleet, &["desk"], &["lan"]);
    let scanned = measure(&fleet, &["scan", "198.18.80.0/26", "2001:db8:5::/122", "-p", "22,80,443,8080"]);
    let captures = stop(watches);
    expected.check_rows(&scanned.results).unwrap();
    expected.check_coverage(&scanned.job.coverage, 1).unwrap();
    expected.check_wire(&captures.iter().collect::<Vec<_>>(), ATTEMPTS).unwrap();
}

#[test]
fn an_interrupted_scan_is_accounted_for() {
    if !require_root() {
        return;
    }
    let spec = TruthSpec::new(12, &["198.18.64.0/22"], &PORTS).unwrap();
    let site = Site::builder("cancel").probe("a").probe("b").segment(SegmentPlan::new("net", spec)).build().unwrap();
    let fleet = Fleet::start(site, Plan::default()).unwrap();
    let expected = Expected::scan(&[truth(&fleet, "net")], &PORTS, &Scope::default());
    let mut watches = watch(&fleet, &["a", "b"], &["net"]);
    let mut scan = fleet.picket_spawn(&["scan", "198.18.64.0/22", "-p", "22,80,443,8080", "--json"]).unwrap();
    wait_until("some packets of the scan", LONG, || Ok((watches[0].seen()? + watches[1].seen()? > 2000).then_some(()))).unwrap();
    scan.signal(Signal::SIGINT).unwrap();
    let done = scan.finish(LONG).unwrap();
    assert_eq!(done.status.code(), Some(3), "{}", done.stderr);
    eprintln!("it says: {}", done.stderr.trim());
    let scanned: Scanned = serde_json::from_str(&done.stdout).unwrap();
    // Everybody has been told and has ended: nothing is sent any more.
    let captures = stop(watches);
    let later = stop(watch(&fleet, &["a", "b"], &["net"]));
    assert!(later.iter().all(Capture::is_empty));
    assert_eq!(scanned.job.state, JobState::Cancelled);
    let coverage = scanned.job.coverage;
    assert!(coverage.adds_up() && coverage.asked == scanned.job.total && scanned.job.total == expected.coverage.asked, "{coverage:?}");
    assert!(coverage.not_reached > 0 && coverage.silent > 0 && coverage.open > 0, "{coverage:?}");
    // What is said is true, and nothing is said of what was not asked.
    let found = found(&scanned.results);
    assert_eq!(found.len(), scanned.results.len());
    assert!(found.is_subset(&expected.found));
    assert_eq!(found.len() as u64, coverage.answered());
    let asked = asked(&captures.iter().collect::<Vec<_>>());
    assert!(found.iter().all(|(address, port, _)| asked.contains_key(&(*address, *port))));
    assert!(coverage.asked - coverage.not_reached <= asked.len() as u64);
}

#[test]
fn one_host_and_a_thousand_ports() {
    if !require_root() {
        return;
    }
    let host = "198.18.0.1".parse().unwrap();
    let open: Vec<u16> = (1..=10).map(|n| n * 97).collect();
    let mut spec = TruthSpec::new(1, &["198.18.0.0/30"], &open).unwrap().host(host, HostState::Up);
    for port in &open {
        spec = spec.port(host, *port, PortTruth::Open);
    }
    let site = Site::builder("latency").probe("a").segment(SegmentPlan::new("net", spec)).build().unwrap();
    let fleet = Fleet::start(site, Plan::default().packets("5kpps")).unwrap();
    for _ in 0..3 {
        let start = Instant::now();
        let done = fleet.picket(&["scan", "198.18.0.1", "-p", "1-1000", "-o", "csv"], Duration::from_secs(30)).unwrap();
        let took = start.elapsed();
        let text = done.ok().unwrap();
        assert_eq!(text.lines().filter(|line| line.contains(",open,")).count(), open.len(), "{text}");
        assert_eq!(text.lines().count(), 1 + 1000, "a heading and a row for each port, since the host answers for each");
        eprintln!("one host, 1000 ports at 5 kpps, from submit to last row: {took:?}");
    }
}
