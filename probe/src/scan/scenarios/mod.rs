//! Scenario files: a world, a scan, and what must come of it, run through the real packet loop on the simulated network.
//!
//! To add one: a file `NAME.toml` here, and its name at the end. What a field means is said at the structures below; a
//! field that is not there leaves its default.

use core::ops::RangeInclusive;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use picket_wire::addr::parse_set;
use picket_wire::job::{HostProbe, ScanOptions, Technique};
use picket_wire::result::{Coverage, State};
use picket_wire::space::{Target, TargetSpace, TargetSpec};
use picket_wire::units::PacketsPerSecond;
use serde::Deserialize;

use super::engine::ScanEngine;
use super::report::{Done, Event};
use super::spec::{ChunkLimits, ScanPlan};
use crate::net::drive::{Drive, DriveEvent, TaskId, TaskSpec, Weight};
use crate::net::pacer::{DEFAULT_BURST, Limits};
use crate::net::ports::{RawIdentity, SourcePorts};
use crate::net::sim::{self, HostRule, PortState, Scenario, SimLink, every_file};
use crate::net::time::Instant;

/// No scan takes longer than this.
const AT_MOST: Duration = Duration::from_secs(3600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// What this scenario is about.
    about: String,
    #[serde(default)]
    world: World,
    hosts: Vec<Hosts>,
    scan: Scan,
    expect: Expect,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct World {
    seed: Option<u64>,
    /// A router sends an ICMP error no sooner than so long after the one before.
    router_error_gap_ms: f64,
    /// When nothing gets through in either direction: from, and to.
    outages_ms: Vec<(f64, f64)>,
}

/// Hosts that behave alike; the first entry that covers an address counts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hosts {
    network: String,
    present: Option<u16>,
    echo: Option<bool>,
    echo_by: Option<IpAddr>,
    timestamp: Option<bool>,
    stateful: Option<bool>,
    rtt_ms: Option<f64>,
    jitter_ms: Option<f64>,
    loss: Option<u16>,
    duplicates: Option<u16>,
    ttl: Option<u8>,
    resets_first_ms: Option<f64>,
    reset_flood: Option<u16>,
    mirrors: Option<bool>,
    error_gap_ms: Option<f64>,
    /// Pairs of ranges and state; the first that fits counts. SCTP has the ports of TCP.
    #[serde(default)]
    ports: Vec<(String, String)>,
    other_ports: Option<String>,
    #[serde(default)]
    udp: Vec<(String, String)>,
    other_udp: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scan {
    technique: Technique,
    targets: String,
    ports: Option<String>,
    attempts: u8,
    rate: u32,
    #[serde(default)]
    host_probes: Vec<HostProbe>,
    /// Most positions of a chunk.
    chunk: Option<u32>,
}

/// An exact number, or the least and the most.
#[derive(Deserialize, Clone, Copy)]
#[serde(untagged)]
enum Count {
    Exact(u64),
    Between([u64; 2]),
}

impl Count {
    fn holds(self, n: u64) -> bool {
        match self {
            Count::Exact(exact) => n == exact,
            Count::Between([least, most]) => (least..=most).contains(&n),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// Counters of the coverage and of the scan by their names. Those of the coverage that are not named must be zero.
    counts: BTreeMap<String, Count>,
    /// Packets of the scan at most, neighbours not counted.
    packets_at_most: u64,
    /// Virtual time to the end at most.
    seconds_at_most: f64,
    /// What is said of single targets: state and reason, or `silent`.
    #[serde(default)]
    states: BTreeMap<String, String>,
}

fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
}

fn state(text: &str) -> PortState {
    match text.split_once(':') {
        None if text == "open" => PortState::Open,
        None if text == "open-elsewhere" => PortState::OpenElsewhere,
        None if text == "closed" => PortState::Closed,
        None if text == "silent" => PortState::Silent,
        Some(("unreachable", code)) => PortState::Unreachable(code.parse().unwrap()),
        Some(("prohibited", code)) => PortState::Prohibited(code.parse().unwrap()),
        _ => panic!("no port is `{text}`"),
    }
}

fn ports(pairs: &[(String, String)]) -> Vec<(RangeInclusive<u16>, PortState)> {
    let ranges = |text: &str| -> Vec<RangeInclusive<u16>> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse().unwrap()..=last.parse().unwrap()
        };
        text.split(',').map(range).collect()
    };
    pairs.iter().flat_map(|(text, what)| ranges(text).into_iter().map(|range| (range, state(what)))).collect()
}

impl Hosts {
    fn rule(&self) -> HostRule {
        let (network, prefix) = self.network.split_once('/').unwrap();
        let plain = HostRule::new(network.parse().unwrap(), prefix.parse().unwrap());
        HostRule {
            present: self.present.unwrap_or(plain.present),
            echo: self.echo.unwrap_or(plain.echo),
            echo_by: self.echo_by,
            timestamp: self.timestamp.unwrap_or(plain.timestamp),
            stateful: self.stateful.unwrap_or(plain.stateful),
            rtt: self.rtt_ms.map_or(plain.rtt, ms),
            jitter: self.jitter_ms.map_or(plain.jitter, ms),
            loss: self.loss.unwrap_or(plain.loss),
            duplicates: self.duplicates.unwrap_or(plain.duplicates),
            ttl: self.ttl.unwrap_or(plain.ttl),
            resets_first: self.resets_first_ms.map(ms),
            reset_flood: self.reset_flood.unwrap_or(plain.reset_flood),
            mirrors: self.mirrors.unwrap_or(plain.mirrors),
            error_gap: self.error_gap_ms.map_or(plain.error_gap, ms),
            ports: ports(&self.ports),
            other_ports: self.other_ports.as_deref().map_or(plain.other_ports, state),
            udp: ports(&self.udp),
            other_udp: self.other_udp.as_deref().map_or(plain.other_udp, state),
            ..plain
        }
    }
}

/// What came of a scan.
struct Outcome {
    coverage: Coverage,
    done: Done,
    states: BTreeMap<Target, State>,
    /// Late reports.
    late_told: u64,
    took: Duration,
}

type Sim = Drive<SimLink, Event, VecDeque<DriveEvent<Event>>>;

impl File {
    fn space(&self) -> Arc<TargetSpace> {
        let Scan { targets, ports, .. } = &self.scan;
        let ports = ports.as_ref().map(|ports| ports.parse().unwrap());
        let spec = TargetSpec { include: parse_set(targets).unwrap(), exclude: parse_set("").unwrap(), ports, seed: 5 };
        Arc::new(TargetSpace::new(&spec).unwrap())
    }

    fn run(&self) -> Outcome {
        let scenario = Scenario {
            seed: self.world.seed.unwrap_or(1),
            router_error_gap: ms(self.world.router_error_gap_ms),
            hosts: self.hosts.iter().map(Hosts::rule).collect(),
            outages: self.world.outages_ms.iter().map(|(from, to)| (ms(*from), ms(*to))).collect(),
            ..Scenario::default()
        };
        let (space, routes) = (self.space(), scenario.routes());
        let Scan { technique, attempts, rate, host_probes, chunk, .. } = &self.scan;
        let options = ScanOptions { technique: *technique, attempts: *attempts };
        let mut plan = ScanPlan::new(Arc::clone(&space), 0, space.len(), options).unwrap().with_host_probes(host_probes);
        if let Some(positions) = chunk {
            plan.chunks = ChunkLimits { positions: *positions, ..plan.chunks };
        }
        let ports = SourcePorts::default();
        let identity = RawIdentity { source: routes.source(), base_port: ports.base(0), ports, key: *b"a scenario's key" };
        let engine = Box::new(ScanEngine::new(&plan, identity).unwrap().on_link(routes.local_link()));
        let rate = Limits { packets: PacketsPerSecond::new(*rate), bits: None, burst: DEFAULT_BURST };
        let mut drive: Sim = Drive::new(Instant::ZERO, SimLink::new(scenario), rate, routes, VecDeque::new());
        let task = TaskSpec { name: "scenario".into(), engine, weight: Weight::Bulk, rate, targets: None, gate: Arc::new(|_| true) };
        drive.add(Instant::ZERO, TaskId::for_tests(1), task);
        let over = |_, drive: &mut Sim| drive.sink().iter().any(|event| matches!(event, DriveEvent::Task(_, Event::Done(_))));
        let ended = sim::run(&mut drive, Instant::ZERO, Instant::ZERO + AT_MOST, over);
        collect(&space, drive, ended.saturating_since(Instant::ZERO))
    }

    fn check(&self, name: &str) {
        let (outcome, again) = (self.run(), self.run());
        let Outcome { coverage: c, done, states, late_told, took } = &outcome;
        assert_eq!((&again.coverage, &again.done, &again.states), (c, done, states), "{name}: two runs differ");
        let context = format!("{name}: {}\n{c:?}\n{:?}\ntook {took:?}, {late_told} told late", self.about, done.stats);
        assert!(c.adds_up() && c.asked == self.space().len(), "{context}");
        let counts = [
            ("up", c.up),
            ("open", c.open),
            ("closed", c.closed),
            ("filtered", c.filtered),
            ("unfiltered", c.unfiltered),
            ("silent", c.silent),
            ("refused", c.refused),
            ("not_reached", c.not_reached),
        ];
        let stats = [
            ("duplicates", done.stats.duplicates),
            ("late", *late_told),
            ("foreign", done.stats.foreign),
            ("contradicted", done.stats.contradicted),
        ];
        for (what, n) in counts {
            let expected = self.expect.counts.get(what).copied().unwrap_or(Count::Exact(0));
            assert!(expected.holds(n), "{what} is {n}\n{context}");
        }
        for (what, expected) in &self.expect.counts {
            let n =
                counts.iter().chain(&stats).find(|(name, _)| name == what).unwrap_or_else(|| panic!("{name}: nothing counts `{what}`")).1;
            assert!(expected.holds(n), "{what} is {n}\n{context}");
        }
        assert!(done.stats.sent_packets <= self.expect.packets_at_most, "{} packets\n{context}", done.stats.sent_packets);
        assert!(took.as_secs_f64() <= self.expect.seconds_at_most, "{context}");
        for (target, expected) in &self.expect.states {
            let said = states
                .get(&parse_target(target))
                .map_or("silent".to_owned(), |state| format!("{}: {}", state.as_str(), state.reason(self.scan.technique)));
            assert_eq!(said, *expected, "{target}\n{context}");
        }
    }
}

/// `ADDRESS` or `ADDRESS PORT`.
fn parse_target(text: &str) -> Target {
    let (addr, port) = text.split_once(' ').map_or((text, None), |(addr, port)| (addr, Some(port.parse().unwrap())));
    Target { addr: addr.parse().unwrap(), port }
}

fn collect(space: &TargetSpace, mut drive: Sim, took: Duration) -> Outcome {
    let (mut coverage, mut states, mut done, mut late_told) = (Coverage::default(), BTreeMap::new(), None, 0);
    for event in core::mem::take(drive.sink()) {
        let DriveEvent::Task(_, event) = event else { continue };
        match event {
            Event::Chunk(report) => {
                coverage += report.coverage();
                for answer in report.answers {
                    assert_eq!(states.insert(space.target(report.from + answer.offset).unwrap(), answer.state), None);
                }
            }
            Event::Late(late) => {
                late_told += 1;
                coverage.silent -= 1;
                coverage.add_answers(late.state, 1);
                assert_eq!(states.insert(space.target(late.position).unwrap(), late.state), None, "an answer counts once");
            }
            Event::Done(end) => done = Some(end),
            Event::Hosts(_) | Event::Proxy(_) | Event::Paths(_) => {}
        }
    }
    Outcome { coverage, done: done.expect("the scan ends"), states, late_told, took }
}

every_file! {
    File in "src/scan/scenarios":
    ack_maps_filters
    discover_round
    dual_stack_loss
    echo_proxied
    icmp_rate_limit
    late_answers
    loss_burst
    loss_burst_none
    middlebox_resets
    mirror
    prohibited_hosts
    reordering
    reset_flood
    sctp_ports
    tarpit
    timestamp_hosts
    udp_closed_rate_limited
    udp_elsewhere
    udp_services
    udp_v6
}
