//! Limits towards targets, and slow-downs, with the real engine and loop on the simulated network.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use picket_wire::addr::parse_set;
use picket_wire::event::Slowdown;
use picket_wire::job::{NetworkLimit, ScanOptions, Technique};
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::units::PacketsPerSecond;

use super::engine::ScanEngine;
use super::report::Event;
use super::spec::ScanPlan;
use crate::net::drive::{Drive, DriveEvent, TaskId, TaskSpec, Weight};
use crate::net::pacer::Limits;
use crate::net::ports::{RawIdentity, SourcePorts};
use crate::net::sim::{self, HostRule, Scenario, SimLink};
use crate::net::target_pacer::{TargetLimits, TargetPacer};
use crate::net::time::Instant;
use crate::packet::{eth, guard};

type Sim = Drive<SimLink, Event, VecDeque<DriveEvent<Event>>>;

fn pps(rate: u32) -> PacketsPerSecond {
    PacketsPerSecond::new(rate).unwrap()
}

fn at(seconds: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(seconds)
}

/// A SYN scan of `targets` on a network where every address answers.
fn scan(targets: &str, ports: &str, rate: u32, limits: TargetLimits, rule: impl FnOnce(&mut HostRule)) -> Sim {
    let mut hosts = HostRule::new(IpAddr::from([198, 18, 0, 0]), 15);
    rule(&mut hosts);
    let scenario = Scenario { hosts: vec![hosts], ..Scenario::default() };
    let routes = scenario.routes();
    let spec =
        TargetSpec { include: parse_set(targets).unwrap(), exclude: parse_set("").unwrap(), ports: Some(ports.parse().unwrap()), seed: 5 };
    let space = Arc::new(TargetSpace::new(&spec).unwrap());
    let plan = ScanPlan::new(Arc::clone(&space), 0, space.len(), ScanOptions { technique: Technique::Syn, attempts: 2 }).unwrap();
    let ports = SourcePorts::default();
    let identity = RawIdentity { source: routes.source(), base_port: ports.base(0), ports, key: [9; 16] };
    let engine = Box::new(ScanEngine::new(&plan, identity).unwrap());
    let mut drive = Drive::new(Instant::ZERO, SimLink::new(scenario), Limits::packets(pps(rate)), routes, VecDeque::new());
    let targets = TargetPacer::new(limits, &[3; 16]);
    let task = TaskSpec { name: "scan".into(), engine, weight: Weight::Bulk, rate: Limits::UNLIMITED, targets, gate: Arc::new(|_| true) };
    drive.add(Instant::ZERO, TaskId::for_tests(1), task);
    drive
}

/// When packets left, by what `of` makes of their destination.
fn sent<K: Ord>(drive: &mut Sim, of: impl Fn(IpAddr) -> K) -> BTreeMap<K, Vec<u64>> {
    let mut times: BTreeMap<K, Vec<u64>> = BTreeMap::new();
    for (time, frame) in &drive.link().wire {
        let packet = &frame[eth::HEADER_LEN..];
        if packet[0] == 0x45 {
            times.entry(of(guard::destination(packet).unwrap())).or_default().push(time.as_nanos());
        }
    }
    times
}

fn closest(times: &[u64]) -> u64 {
    times.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap_or(u64::MAX)
}

#[test]
fn one_host_with_all_its_ports_is_asked_at_its_own_rate_and_costs_nothing_meanwhile() {
    let limits = TargetLimits { per_address: Some(pps(100)), per_network: None };
    let mut drive = scan("198.18.3.7", "1-65535", 50_000, limits, |_| {});
    let mut turns = 0;
    sim::run(&mut drive, at(0), at(20), |_, _| {
        turns += 1;
        false
    });
    let stats = drive.stats().tasks[0].1.clone();
    assert!((1_990..=2_002).contains(&stats.sent_packets), "{}", stats.sent_packets);
    // Those that are held from the start, and two offers for each that leaves.
    assert!(stats.too_soon < 4_096 + 3 * stats.sent_packets, "{} offers in vain", stats.too_soon);
    assert!(turns < 15_000, "{turns} turns in 20 s");
    let times = sent(&mut drive, |dst| dst);
    assert!(closest(&times[&IpAddr::from([198, 18, 3, 7])]) >= 7_900_000);
}

#[test]
fn hosts_and_networks_each_get_their_own_rate() {
    let network = NetworkLimit { rate: pps(400), v4_prefix: 24, v6_prefix: 64 };
    let limits = TargetLimits { per_address: Some(pps(20)), per_network: Some(network) };
    let mut drive = scan("198.18.4.0/25,198.18.5.0/29", "1-200", 20_000, limits, |_| {});
    sim::run(&mut drive, at(0), at(10), |_, _| false);
    for (address, times) in sent(&mut drive, |dst| dst) {
        // The gateway is a neighbour, and asked by ARP: all that is here are probes.
        assert!(closest(&times) >= 47_900_000, "{address}: {} ns", closest(&times));
    }
    let networks = sent(&mut drive, |dst| if let IpAddr::V4(dst) = dst { dst.octets()[2] } else { 0 });
    let busiest = |times: &[u64]| {
        times.iter().enumerate().map(|(n, from)| times[n..].iter().take_while(|to| **to <= from + 1_000_000_000).count()).max()
    };
    assert!(busiest(&networks[&4]).unwrap() <= 402, "{:?}", busiest(&networks[&4]));
    // 128 hosts of 20 per second would be more than the network's 400. The other eight take part as they come up in the order of
    // sending: what may be held for the first network is bounded, and with it how far ahead the scan looks.
    assert!((3_600..=4_001).contains(&networks[&4].len()), "{}", networks[&4].len());
    assert!((450..=1_608).contains(&networks[&5].len()), "{}", networks[&5].len());
}

#[test]
fn a_clean_scan_is_not_slowed_down_and_a_scan_under_limits_still_finds_everything() {
    let mut drive = scan("198.18.0.0/20", "80", 5_000, TargetLimits::default(), |_| {});
    sim::run(&mut drive, at(0), at(3), |_, drive| {
        assert_eq!((drive.stats().slowed, drive.stats().tasks.first().and_then(|(_, task)| task.slowed)), (None, None));
        false
    });
    let stats = drive.stats().tasks[0].1.clone();
    assert_eq!(stats.sent_packets, 4_096, "each once");
    let limits = TargetLimits { per_address: Some(pps(50)), per_network: None };
    let mut drive = scan("198.18.0.0/28", "1-100", 5_000, limits, |_| {});
    sim::run(&mut drive, at(0), at(10), |_, _| false);
    let chunk = |event: &DriveEvent<Event>| if let DriveEvent::Task(_, Event::Chunk(report)) = event { report.answers.len() } else { 0 };
    assert_eq!(drive.sink().iter().map(chunk).sum::<usize>(), 1_600);
}

#[test]
fn loss_that_the_rate_does_not_cause_costs_a_few_seconds_only() {
    let mut drive = scan("198.18.0.0/16", "80", 2_000, TargetLimits::default(), |rule| rule.loss = 80);
    let mut reasons = Vec::new();
    sim::run(&mut drive, at(0), at(20), |_, drive| {
        let slowed = drive.stats().tasks.first().and_then(|(_, task)| task.slowed);
        if reasons.last() != Some(&slowed) {
            reasons.push(slowed);
        }
        false
    });
    assert!(reasons.contains(&Some(Slowdown::Loss)), "it was tried");
    assert_eq!(reasons.last(), Some(&None), "and given up: {reasons:?}");
}
