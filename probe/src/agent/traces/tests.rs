use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use picket_wire::addr::{AddrSet, parse_set};
use picket_wire::result::Coverage;
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::trace::{Method, TraceOptions, WaysOptions};
use picket_wire::units::PacketsPerSecond;

use super::*;
use crate::net::drive::{Drive, DriveEvent, TaskId, TaskSpec, Weight};
use crate::net::engine::Source;
use crate::net::pacer::{DEFAULT_BURST, Limits};
use crate::net::ports::SourcePorts;
use crate::net::sim::{self, HostRule, Router, Scenario, SimLink, Way};

const ROUTERS: u8 = 4;

/// Four routers; behind them every second address of a network answers, and nobody in the next one.
fn scenario() -> Scenario {
    let host = |last: u8| HostRule::new([198, 18, 0, last].into(), 32);
    let router = |ttl: u8| Router::new(vec![[198, 19, 0, ttl].into()]);
    let way = Way { network: ([198, 18, 0, 0].into(), 15), routers: (1..=ROUTERS).map(router).collect() };
    Scenario { hosts: (0..=255).step_by(2).map(host).collect(), ways: vec![way], ..Scenario::default() }
}

fn space(targets: &str) -> Arc<TargetSpace> {
    let spec = TargetSpec { include: parse_set(targets).unwrap(), exclude: AddrSet::new(), ports: None, seed: 5 };
    Arc::new(TargetSpace::new(&spec).unwrap())
}

fn measurement(space: &Arc<TargetSpace>, from: u64, to: u64, options: &TraceOptions) -> TraceMeasurement {
    let plan = TracePlan::of_job(Arc::clone(space), from, to, options).unwrap();
    let ports = SourcePorts::default();
    let source = Source { v4: Some(Ipv4Addr::new(192, 0, 2, 2)), v6: None };
    TraceMeasurement::new(plan, RawIdentity { source, base_port: ports.first(), ports, key: [7; 16] }).unwrap()
}

#[derive(Default)]
struct Told {
    chunks: Vec<TracedChunk>,
    done: Option<Done>,
}

/// Runs it to its end, or until it is stopped after so long. Addresses that end in 9 are forbidden.
fn run(engine: TraceMeasurement, stop_after: Option<Duration>) -> Told {
    let scenario = scenario();
    let routes = scenario.routes();
    let rate = Limits { packets: PacketsPerSecond::new(400), bits: None, burst: DEFAULT_BURST };
    let mut drive = Drive::new(Instant::ZERO, SimLink::new(scenario), rate, routes, VecDeque::new());
    let id = TaskId::for_tests(1);
    let gate = Arc::new(|dst: IpAddr| !matches!(dst, IpAddr::V4(dst) if dst.octets()[3] % 10 == 9));
    let task = TaskSpec { name: "trace".into(), engine: Box::new(engine), weight: Weight::Interactive, rate, targets: None, gate };
    drive.add(Instant::ZERO, id, task);
    let over = |_, drive: &mut Drive<SimLink, Event, VecDeque<DriveEvent<Event>>>| {
        drive.sink().iter().any(|event| matches!(event, DriveEvent::Task(_, Event::Done(_))))
    };
    let until = Instant::ZERO + stop_after.unwrap_or(Duration::from_secs(600));
    sim::run(&mut drive, Instant::ZERO, until, over);
    drive.cancel(id);
    sim::run(&mut drive, until, until + Duration::from_secs(1), over);
    let mut told = Told::default();
    for event in drive.sink().drain(..) {
        match event {
            DriveEvent::Task(_, Event::Paths(chunk)) => told.chunks.push(*chunk),
            DriveEvent::Task(_, Event::Done(done)) => told.done = Some(done),
            DriveEvent::Task(_, other) => panic!("{other:?}"),
            DriveEvent::Ended(..) | DriveEvent::Link { .. } => {}
        }
    }
    told
}

fn coverage(chunks: &[TracedChunk]) -> Coverage {
    let mut sum = Coverage::default();
    chunks.iter().for_each(|chunk| sum += chunk.report.coverage());
    sum
}

/// Chunks follow on each other from `from` on, and tell a path for each position that something was sent to, in order.
fn check(chunks: &[TracedChunk], space: &TargetSpace, mut from: u64) -> u64 {
    for chunk in chunks {
        let report = &chunk.report;
        assert!(report.from == from && report.to > from && report.coverage().adds_up());
        let unasked: Vec<u64> = report.refused.iter().chain(report.not_reached.iter().flat_map(|(_, runs)| runs.iter())).collect();
        let told: Vec<u64> = chunk.paths.iter().map(|path| path.position).collect();
        let asked: Vec<u64> = (report.from..report.to).filter(|at| !unasked.contains(&(at - report.from))).collect();
        assert_eq!(told, asked);
        assert!(chunk.paths.len() <= CHUNK_PATHS);
        for path in &chunk.paths {
            let dst = space.target(path.position).unwrap().addr;
            let reached = report.answers.iter().any(|answer| answer.offset == path.position - report.from);
            assert_eq!(path.found(dst, 0).end() == PathEnd::Reached, reached, "{dst}");
        }
        from = report.to;
    }
    from
}

#[test]
fn paths_are_told_in_order_and_add_up() {
    let space = space("198.18.0.0/23");
    let options = TraceOptions::usual(Method::Icmp, false);
    let engine = measurement(&space, 0, 512, &options);
    let progress = engine.progress();
    let told = run(engine, None);
    assert_eq!(check(&told.chunks, &space, 0), 512);
    let sum = coverage(&told.chunks);
    // Of 512, those that end in 9 are refused: 26 of the first 256 and as many of the second; none of them is even.
    let refused = (0..512).filter(|at| at % 256 % 10 == 9).count() as u64;
    assert_eq!((sum.asked, sum.up, sum.refused, sum.not_reached), (512, 128, refused, 0));
    let done = told.done.unwrap();
    assert_eq!((done.next, done.stats.answers, done.stats.sent_packets), (512, 128, sum.packets));
    assert_eq!((progress.next(), progress.answers(), progress.sent_packets()), (512, 128, sum.packets));
    let bytes: u64 = told.chunks.iter().map(|chunk| chunk.report.sent_bytes).sum();
    assert_eq!(bytes, done.stats.sent_bytes);
    let routers = |path: &TracedPath| {
        let Found::Path(path) = path.found(space.target(path.position).unwrap().addr, 0) else { panic!("a path was asked for") };
        path.hops.iter().take(ROUTERS.into()).filter_map(|hop| hop.replies.first()).map(|reply| reply.from).collect::<Vec<_>>()
    };
    let way: Vec<IpAddr> = (1..=ROUTERS).map(|ttl| [198, 19, 0, ttl].into()).collect();
    assert!(told.chunks.iter().flat_map(|chunk| &chunk.paths).all(|path| routers(path) == way));
}

#[test]
fn what_was_broken_off_is_traced_again_from_the_checkpoint() {
    let space = space("198.18.0.0/24");
    let options = TraceOptions::usual(Method::Udp, false);
    let mut chunks = Vec::new();
    let mut told_to = vec![10];
    for stop_after in [Some(Duration::from_millis(5)), Some(Duration::from_millis(2_500)), Some(Duration::from_millis(2_500)), None] {
        let next = told_to[told_to.len() - 1];
        let told = run(measurement(&space, next, 240, &options), stop_after);
        let past = check(&told.chunks, &space, next);
        assert_eq!(told.done.unwrap().next, past);
        told_to.push(past);
        chunks.extend(told.chunks);
    }
    assert_eq!(coverage(&chunks).asked, 230);
    // Nothing was over after five milliseconds, some of it each time later.
    assert!(told_to[1] == 10 && told_to[1..].is_sorted_by(|one, next| one < next) && told_to[4] == 240, "{told_to:?}");
}

#[test]
fn all_ways_to_a_destination_are_one_position() {
    let space = space("198.18.0.0/30");
    let ways = Some(WaysOptions { confidence: 95, full: false });
    let told = run(measurement(&space, 0, 4, &TraceOptions { ways, ..TraceOptions::usual(Method::Udp, true) }), None);
    assert_eq!((check(&told.chunks, &space, 0), coverage(&told.chunks).up), (4, 2));
    for path in told.chunks.iter().flat_map(|chunk| &chunk.paths) {
        let Found::Ways(graph) = path.found(space.target(path.position).unwrap().addr, 0) else { panic!("all ways were asked for") };
        assert_eq!(graph.hops[0].nodes[0].reply.from, IpAddr::from([198, 19, 0, 1]));
        assert!(path.took_ms > 0);
    }
}

#[test]
fn a_lease_of_few_paths_of_a_large_job_is_traced_as_the_others_are() {
    let large = space("198.18.0.0/23");
    let options = TraceOptions::usual(Method::Icmp, false);
    let plan = TracePlan::of_job(Arc::clone(&large), 0, 4, &options).unwrap();
    assert!(plan.shared && plan.window == 1 && plan.queries == 1);
    let few = TracePlan::of_job(space("198.18.0.0/30"), 0, 4, &TraceOptions::usual(Method::Icmp, true)).unwrap();
    assert!(!few.shared && few.window == 16 && few.queries == 3);
    assert!(!TracePlan::of_job(large, 0, 4, &TraceOptions { all_hops: true, ..options }).unwrap().shared);
}
