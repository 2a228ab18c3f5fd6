//! The engine without any network: what it hands out, and what it makes of what it is told.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use picket_wire::addr::{AddrSet, parse_set};
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::trace::{Graph, Link, Method, Path, PathEnd};
use proptest::prelude::*;

use super::engine::{AHEAD_MAX, trace};
use super::report::{Event, Summary};
use super::spec::{self, SpecError, TracePlan};
use crate::net::engine::{Engine, NotSent, Source, Transmit};
use crate::net::ports::{RawIdentity, SourcePorts};
use crate::net::sim;
use crate::net::time::Instant;
use crate::packet::ip::{Packet, v4_header};

fn space(targets: &str, ports: Option<&str>) -> Arc<TargetSpace> {
    let ports = ports.map(|ports| ports.parse().unwrap());
    let spec = TargetSpec { include: parse_set(targets).unwrap(), exclude: AddrSet::new(), ports, seed: 1 };
    Arc::new(TargetSpace::new(&spec).unwrap())
}

/// A plan as somebody gets it who names nothing else.
pub(crate) fn plan(targets: &str, method: Method) -> TracePlan {
    let space = space(targets, None);
    TracePlan::new(Arc::clone(&space), 0, space.len(), method).unwrap()
}

fn identity() -> RawIdentity {
    let ports = SourcePorts::default();
    let source = Source { v4: Some([192, 0, 2, 2].into()), v6: None };
    RawIdentity { source, base_port: ports.base(3), ports, key: *b"sixteen random b" }
}

type TraceEngine = dyn Engine<Event = Event>;

fn engine(plan: TracePlan) -> Box<TraceEngine> {
    trace(plan, identity()).unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}

/// All that the engine wants to send now, with the packets.
fn drain(engine: &mut TraceEngine, now: Instant) -> Vec<(Transmit, Vec<u8>)> {
    let mut buf = [0; 1500];
    core::iter::from_fn(|| engine.poll_transmit(now, &mut buf).map(|transmit| (transmit, buf[..transmit.len].to_vec()))).collect()
}

fn ttl(packet: &[u8]) -> u8 {
    Packet::parse(packet).unwrap().ttl()
}

/// An ICMP error of `from` about a packet of ours.
fn error(from: [u8; 4], icmp: (u8, u8), packet: &[u8]) -> Vec<u8> {
    let message = [&[icmp.0, icmp.1, 0, 0, 0, 0, 0, 0][..], packet].concat();
    [&v4_header(from.into(), [192, 0, 2, 2].into(), 1, 60, message.len() as u16)[..], &message].concat()
}

fn exceeded(packet: &[u8]) -> Vec<u8> {
    error([198, 19, 0, ttl(packet)], (11, 0), packet)
}

fn events(engine: &mut TraceEngine) -> Vec<Event> {
    core::iter::from_fn(|| engine.poll_event()).collect()
}

fn only_path(events: Vec<Event>) -> (Path, Summary) {
    match <[Event; 2]>::try_from(events) {
        Ok([Event::Path { path, .. }, Event::Done(summary)]) => (*path, summary),
        other => panic!("{other:?}"),
    }
}

/// Lets time pass until the engine waits for nothing, and nothing is sent.
fn run_out(engine: &mut TraceEngine, mut sent: impl FnMut(&[u8])) -> Instant {
    let mut now = at(0);
    for _ in 0..10_000 {
        drain(engine, now).iter().for_each(|(_, packet)| sent(packet));
        let Some((due, _)) = engine.poll_timeout() else { return now };
        now = now.max(due);
        engine.on_timeout(now);
    }
    panic!("it waits for ever");
}

#[test]
fn no_path_begins_too_far_behind_one_that_is_open() {
    let plan = TracePlan { paths: 2, shared: false, window: 1, ahead: 1, ..plan("198.18.0.0/16", Method::Udp) };
    let mut engine = engine(plan);
    let (mut open, mut told) = (None, 0);
    loop {
        let sent = drain(engine.as_mut(), at(0));
        let answers: Vec<Vec<u8>> = sent
            .iter()
            .filter(|(transmit, _)| transmit.dst != *open.get_or_insert(transmit.dst))
            .map(|(transmit, packet)| {
                let IpAddr::V4(dst) = transmit.dst else { panic!("{transmit:?}") };
                error(dst.octets(), (3, 3), packet)
            })
            .collect();
        if answers.is_empty() {
            break;
        }
        answers.iter().for_each(|answer| engine.on_packet(at(0), answer));
        told += events(engine.as_mut()).iter().filter(|event| matches!(event, Event::Path { .. })).count() as u64;
    }
    // One is open since the beginning, and all behind it are over that may begin.
    assert_eq!(told, AHEAD_MAX - 1);
    // When it is over at last, others begin.
    let (mut now, mut begun) = (at(0), 0);
    while events(engine.as_mut()).is_empty() {
        now = now.max(engine.poll_timeout().unwrap().0);
        engine.on_timeout(now);
        begun = drain(engine.as_mut(), now).iter().filter(|(transmit, _)| Some(transmit.dst) != open).count();
    }
    assert_eq!(begun, 2);
}

#[test]
fn plans_are_checked() {
    let space = space("198.18.0.0/30", None);
    let range = |from, to| TracePlan::new(Arc::clone(&space), from, to, Method::Icmp).map(drop);
    assert_eq!(range(0, 4), Ok(()));
    assert_eq!(range(2, 2), Err(SpecError::Range { from: 2, to: 2, len: 4 }));
    assert_eq!(range(0, 5), Err(SpecError::Range { from: 0, to: 5, len: 4 }));
    let with_ports = super::tests::space("198.18.0.1", Some("80"));
    assert_eq!(TracePlan::new(with_ports, 0, 1, Method::Tcp).map(drop), Err(SpecError::Ports));
    let wrong = |change: fn(&mut TracePlan)| {
        let mut plan = plan("198.18.0.1", Method::Icmp);
        change(&mut plan);
        trace(plan, identity()).map(drop).unwrap_err().to_string()
    };
    assert_eq!(wrong(|plan| plan.first_ttl = 0), "hops 0 to 30: from 1 up to 64 are possible");
    assert_eq!(wrong(|plan| plan.max_ttl = 65), "hops 1 to 65: from 1 up to 64 are possible");
    assert_eq!(wrong(|plan| (plan.first_ttl, plan.max_ttl) = (9, 8)), "hops 9 to 8: from 1 up to 64 are possible");
    assert_eq!(wrong(|plan| plan.queries = 17), "17 probes for each hop: 1 to 16 are possible");
    assert_eq!(wrong(|plan| plan.window = 0), "a window of 0: at least 1 is needed");
    assert_eq!(wrong(|plan| plan.payload = 1_460), "1460 bytes of payload make a packet longer than 1500 bytes");
    let nobody = RawIdentity { source: Source { v4: None, v6: None }, ..identity() };
    assert_eq!(trace(plan("198.18.0.1", Method::Icmp), nobody).map(drop), Err(SpecError::NoSource));
}

#[test]
fn hops_are_asked_side_by_side_and_more_often_once_they_have_answered() {
    let mut engine = engine(plan("198.18.0.1", Method::Udp));
    let first = drain(&mut *engine, at(0));
    assert_eq!(first.iter().map(|(_, packet)| ttl(packet)).collect::<Vec<_>>(), (1..=16).collect::<Vec<_>>());
    engine.on_packet(at(10), &exceeded(&first[2].1));
    // Two more for the hop that answered.
    let more: Vec<u8> = drain(&mut *engine, at(10)).iter().map(|(_, packet)| ttl(packet)).collect();
    assert_eq!(more, [3, 3]);
    engine.on_packet(at(11), &exceeded(&first[2].1));
    assert_eq!(drain(&mut *engine, at(11)).len(), 0, "a repetition is no answer");
    // The destination is hop 2: all that lies beyond is forgotten.
    engine.on_packet(at(12), &error([198, 18, 0, 1], (3, 3), &first[1].1));
    engine.on_packet(at(12), &exceeded(&first[0].1));
    let rest = drain(&mut *engine, at(12));
    assert_eq!(rest.iter().map(|(_, packet)| ttl(packet)).collect::<Vec<_>>(), [2, 2, 1, 1]);
    for (_, packet) in &rest {
        let answer = if ttl(packet) == 2 { error([198, 18, 0, 1], (3, 3), packet) } else { exceeded(packet) };
        engine.on_packet(at(14), &answer);
    }
    let (path, summary) = only_path(events(&mut *engine));
    assert_eq!((path.end, path.hops.len(), path.sent), (PathEnd::Reached, 2, 16 + 2 + 4));
    assert!(path.hops.iter().all(|hop| hop.replies.len() == 3 && hop.sent == 3), "{path:?}");
    assert_eq!(path.hops[1].replies[0].rtt_us, 12_000);
    assert_eq!((summary.answers, summary.duplicates, summary.sent_packets), (7, 1, 22));
}

#[test]
fn an_answer_after_the_wait_counts_while_the_path_is_open() {
    let mut engine = engine(TracePlan { queries: 1, ..plan("198.18.0.1", Method::Tcp) });
    let first = drain(&mut *engine, at(0));
    engine.on_packet(at(1), &exceeded(&first[1].1));
    engine.on_packet(at(1), &exceeded(&first[0].1));
    // Hop 3 is asked again and given up before hop 4, which is far, has answered.
    engine.on_packet(at(600), &exceeded(&first[3].1));
    drain(&mut *engine, at(600));
    while let Some((due, _)) = engine.poll_timeout().filter(|(due, _)| *due < at(3_000)) {
        engine.on_timeout(due);
        let sent = drain(&mut *engine, due);
        for (_, packet) in sent.iter().filter(|(_, packet)| ttl(packet) == 5) {
            engine.on_packet(due, &error([198, 18, 0, 1], (3, 13), packet));
        }
        if events(&mut *engine).iter().any(|event| matches!(event, Event::Done(_))) {
            break;
        }
        engine.on_packet(due, &exceeded(&first[2].1));
    }
    engine.stop();
    let path = events(&mut *engine).into_iter().find_map(|event| match event {
        Event::Path { path, .. } => Some(path),
        _ => None,
    });
    if let Some(path) = path {
        assert_eq!(path.hops[2].replies.len(), 1, "{path:?}");
    }
}

#[test]
fn what_does_not_leave_is_not_silent() {
    for (why, end) in [(NotSent::Refused, PathEnd::Refused), (NotSent::NoRoute, PathEnd::NoRoute), (NotSent::NoNeighbour, PathEnd::NoRoute)]
    {
        let mut engine = engine(plan("198.18.0.1", Method::Icmp));
        // The loop says so before it asks for the next one.
        while let Some(transmit) = engine.poll_transmit(at(0), &mut [0; 1500]) {
            engine.on_not_sent(at(0), transmit.token, why);
        }
        let (path, summary) = only_path(events(&mut *engine));
        assert_eq!((path.end, path.hops.len(), path.sent, summary.sent_packets), (end, 0, 0, 0));
    }
    // A family without a source address is not sent either.
    let mut engine = engine(plan("2001:db8::1", Method::Icmp));
    assert_eq!(drain(&mut *engine, at(0)).len(), 0);
    assert_eq!(only_path(events(&mut *engine)).0.end, PathEnd::NoRoute);
}

#[test]
fn what_was_held_back_is_offered_again() {
    let mut engine = engine(TracePlan { queries: 1, max_ttl: 2, ..plan("198.18.0.1", Method::Icmp) });
    let first = drain(&mut *engine, at(0));
    for (transmit, _) in &first {
        engine.on_not_sent(at(0), transmit.token, NotSent::NeighbourPending);
    }
    let again = drain(&mut *engine, at(1));
    assert_eq!(
        again.iter().map(|(transmit, _)| transmit.token).collect::<Vec<_>>(),
        first.iter().map(|(t, _)| t.token).collect::<Vec<_>>()
    );
    let until = at(500);
    for (transmit, _) in &again {
        engine.on_not_sent(at(1), transmit.token, NotSent::TooSoon { until, lane: 0 });
    }
    assert_eq!(drain(&mut *engine, at(2)).len(), 0);
    assert_eq!(engine.poll_timeout().map(|(due, _)| due), Some(until));
    engine.on_timeout(until);
    let sent = drain(&mut *engine, until);
    assert_eq!(sent.len(), 2);
    sent.iter().for_each(|(_, packet)| engine.on_packet(at(510), &exceeded(packet)));
    let (path, _) = only_path(events(&mut *engine));
    // The round trip counts from when it left.
    assert_eq!((path.end, path.sent, path.hops[1].replies[0].rtt_us), (PathEnd::TooFar, 2, 10_000));
}

#[test]
fn an_answer_before_the_repetition_has_left_adds_none_to_it() {
    let mut engine = engine(TracePlan { max_ttl: 1, ..plan("198.18.0.1", Method::Udp) });
    let first = drain(&mut *engine, at(0));
    let (due, _) = engine.poll_timeout().unwrap();
    engine.on_timeout(due);
    engine.on_packet(due, &exceeded(&first[0].1));
    assert_eq!((first.len(), drain(&mut *engine, due).len()), (1, 2), "three in all");
}

#[test]
fn who_loses_the_way_keeps_what_was_found() {
    let mut engine = engine(TracePlan { queries: 1, window: 2, ..plan("198.18.0.1", Method::Icmp) });
    let first = drain(&mut *engine, at(0));
    engine.on_packet(at(1), &exceeded(&first[0].1));
    engine.on_packet(at(1), &exceeded(&first[1].1));
    while let Some(transmit) = engine.poll_transmit(at(2), &mut [0; 1500]) {
        engine.on_not_sent(at(2), transmit.token, NotSent::NoNeighbour);
    }
    let (path, _) = only_path(events(&mut *engine));
    assert_eq!((path.end, path.hops.len()), (PathEnd::NoRoute, 2), "{path:?}");
}

#[test]
fn datagrams_that_answer_count_for_the_first_hop_beyond_the_routers() {
    let mut engine = engine(TracePlan { queries: 1, port: 53, ..plan("198.18.0.1", Method::Udp) });
    let first = drain(&mut *engine, at(0));
    first.iter().take(2).for_each(|(_, packet)| engine.on_packet(at(5), &exceeded(packet)));
    let asked = Packet::parse(&first[2].1).unwrap();
    let flow = &asked.payload()[..2];
    let datagram = [&[0, 53][..], flow, &[0, 10, 0, 0, 1, 2]].concat();
    let answer = [&v4_header([198, 18, 0, 1].into(), [192, 0, 2, 2].into(), 17, 60, 10)[..], &datagram].concat();
    // The answers to the third one and to all beyond it look alike.
    (0..3).for_each(|_| engine.on_packet(at(9), &answer));
    let (path, _) = only_path(events(&mut *engine));
    assert_eq!((path.end, path.hops.len(), path.hops[2].replies.len()), (PathEnd::Reached, 3, 1), "{path:?}");
}

#[test]
fn stopping_tells_what_is_known() {
    let mut engine = engine(TracePlan { paths: 2, ..plan("198.18.0.0/29", Method::Icmp) });
    let first = drain(&mut *engine, at(0));
    engine.on_packet(at(1), &exceeded(&first[0].1));
    engine.stop();
    engine.stop();
    let told = events(&mut *engine);
    let paths: Vec<&Path> =
        told.iter().filter_map(|event| if let Event::Path { path, .. } = event { Some(&**path) } else { None }).collect();
    assert_eq!(paths.iter().map(|path| (path.end, path.hops.len())).collect::<Vec<_>>(), [(PathEnd::Stopped, 1), (PathEnd::Stopped, 0)]);
    assert!(matches!(told.last(), Some(Event::Done(Summary { paths: 2, left: 6, .. }))), "{told:?}");
    assert_eq!((drain(&mut *engine, at(2)).len(), engine.poll_timeout()), (0, None));
}

#[test]
fn no_more_paths_are_open_than_the_plan_says() {
    let mut engine = engine(TracePlan { paths: 10, ..plan("198.18.0.0/24", Method::Icmp) });
    let destinations =
        |sent: &[(Transmit, Vec<u8>)]| sent.iter().map(|(transmit, _)| transmit.dst).collect::<std::collections::HashSet<IpAddr>>().len();
    assert_eq!(destinations(&drain(&mut *engine, at(0))), 10);
    let mut counts: HashMap<(IpAddr, u8), u32> = HashMap::new();
    run_out(&mut *engine, |packet| {
        let packet = Packet::parse(packet).unwrap();
        *counts.entry((packet.dst(), packet.ttl())).or_default() += 1;
    });
    let told = events(&mut *engine);
    assert!(matches!(told.last(), Some(Event::Done(Summary { paths: 256, reached: 0, left: 0, .. }))));
    assert!(counts.values().all(|count| *count <= 2) && counts.keys().all(|(_, ttl)| *ttl <= 5), "five silent hops, asked twice");
}

proptest! {
    /// Whatever answers, in whatever order and however often: nothing beyond the plan is sent, each path is told once, and it ends.
    #[test]
    fn every_trace_ends_within_its_bounds(
        steps in proptest::collection::vec((any::<u16>(), 0..6_u8, 0..200_u64), 0..200), queries in 1..4_u8, window in 1..20_u8, method in 0..3_u8,
    ) {
        let method = [Method::Icmp, Method::Udp, Method::Tcp][usize::from(method)];
        let mut engine = engine(TracePlan { queries, window, max_ttl: 20, ..plan("198.18.0.0/30", method) });
        let (mut now, mut sent, mut told) = (at(0), Vec::new(), Vec::new());
        let mut counts: HashMap<(IpAddr, u8), u32> = HashMap::new();
        for (which, what, later) in steps {
            for (transmit, packet) in drain(&mut *engine, now) {
                if what == 5 && which % 7 == 0 {
                    engine.on_not_sent(now, transmit.token, NotSent::LinkError);
                } else {
                    *counts.entry((transmit.dst, ttl(&packet))).or_default() += 1;
                    sent.push(packet);
                }
            }
            now += Duration::from_millis(later);
            if let Some(packet) = sent.get(usize::from(which) % sent.len().max(1)) {
                match what {
                    0 | 1 => engine.on_packet(now, &exceeded(packet)),
                    2 => engine.on_packet(now, &error([198, 18, 0, (which % 4) as u8], (3, 3), packet)),
                    3 => engine.on_packet(now, &error([198, 19, 1, 1], (3, 1), packet)),
                    _ => engine.on_timeout(now),
                }
            }
            told.extend(events(&mut *engine));
        }
        run_out(&mut *engine, |packet| *counts.entry((Packet::parse(packet).unwrap().dst(), ttl(packet))).or_default() += 1);
        // Time that ran out began at zero again: the engine only ever looks whether a moment has come.
        engine.on_timeout(now + Duration::from_secs(100));
        run_out(&mut *engine, |_| {});
        told.extend(events(&mut *engine));
        let paths = told.iter().filter(|event| matches!(event, Event::Path { .. })).count();
        prop_assert_eq!(paths, 4, "{:?}", told);
        prop_assert!(matches!(told.last(), Some(Event::Done(_))));
        prop_assert!(told.len() == 5 && counts.values().all(|count| *count <= u32::from(queries.max(2))), "{:?}", counts);
        prop_assert!(counts.keys().all(|(_, ttl)| *ttl <= 20));
    }
}

/// What is random of a network, and the same each time.
fn hash(seed: u64, what: [u64; 3]) -> u64 {
    what.iter().fold(seed, |hash, value| sim::mix(hash ^ value))
}

/// A network of routers that choose by the source port.
struct Ways {
    seed: u64,
    /// Nodes at each distance.
    widths: Vec<u64>,
    /// Of a thousand answers, so many are lost.
    loss: u64,
    /// Some flows have one more hop.
    uneven: bool,
}

impl Ways {
    fn hash(&self, what: [u64; 3]) -> u64 {
        hash(self.seed, what)
    }

    fn length(&self, port: u16) -> usize {
        self.widths.len() + usize::from(self.uneven && self.hash([1, port.into(), 0]).is_multiple_of(2))
    }

    /// Who ends a packet of that port; `None` for the destination.
    fn node(&self, port: u16, ttl: u8) -> Option<[u8; 4]> {
        let at = usize::from(ttl - 1);
        (at < self.length(port)).then(|| {
            let width = self.widths.get(at).copied().unwrap_or(1);
            [198, 19, ttl, (self.hash([2, ttl.into(), port.into()]) % width) as u8]
        })
    }

    /// All links that there are, over all ports.
    fn links(&self) -> HashSet<(u8, [u8; 4], [u8; 4])> {
        let (ports, dst) = (SourcePorts::default(), [198, 18, 0, 1]);
        let of = |port: u16| {
            (1..=self.length(port) as u8).map(move |ttl| (ttl, self.node(port, ttl).unwrap(), self.node(port, ttl + 1).unwrap_or(dst)))
        };
        (ports.first()..=ports.last()).flat_map(of).collect()
    }

    /// Explores them.
    fn graph(&self, plan: TracePlan) -> Graph {
        let mut count = 0;
        let (graph, summary) = explore(plan, |packet| {
            count += 1;
            let port = u16::from_be_bytes([packet[20], packet[21]]);
            let answer = match self.node(port, ttl(packet)) {
                Some(from) => error(from, (11, 0), packet),
                None => error([198, 18, 0, 1], (3, 3), packet),
            };
            (self.hash([3, count, 0]) % 1_000 >= self.loss).then_some(answer)
        });
        assert_eq!(summary.sent_packets, count);
        graph
    }
}

/// Routers that part again and again, each one's ways its own, and join all at once.
#[derive(Debug)]
struct Forks {
    seed: u64,
    /// How many ways each router of a distance has.
    ways: Vec<u64>,
    /// Routers in a row behind where all join.
    joined: u64,
}

impl Forks {
    /// Who ends a packet of that port; `None` for the destination.
    fn node(&self, port: u16, ttl: u8) -> Option<[u8; 4]> {
        let depth = u64::from(ttl - 1);
        let forks = self.ways.len() as u64;
        (depth <= forks + self.joined).then(|| {
            let ways = if depth <= forks { &self.ways[..depth as usize] } else { &[] };
            let branch = ways
                .iter()
                .enumerate()
                .fold(0, |branch, (at, ways)| branch * ways + hash(self.seed, [at as u64, branch, port.into()]) % ways);
            [198, 19, ttl, branch as u8]
        })
    }

    /// How many routers there are at each distance.
    fn widths(&self) -> Vec<usize> {
        let forks = (0..=self.ways.len()).map(|depth| self.ways[..depth].iter().product::<u64>() as usize);
        forks.chain((0..self.joined).map(|_| 1)).collect()
    }

    /// Whether all that there is was found.
    fn is_whole(&self, graph: &Graph) -> bool {
        let found: Vec<usize> = graph.hops.iter().map(|hop| hop.nodes.len()).collect();
        let widths: Vec<usize> = self.widths().into_iter().chain([1]).collect();
        assert!(graph.hops.iter().all(|hop| hop.sure), "nothing was lost");
        found == widths && graph.links.len() == self.links()
    }

    /// How many links: one to each router but the first, and one onward from each before those that have joined.
    fn links(&self) -> usize {
        let widths = self.widths();
        let forks = self.ways.len();
        widths[1..=forks].iter().sum::<usize>() + widths[forks] + self.joined as usize
    }

    /// The graph, and how many packets each distance took.
    fn explore(&self, plan: TracePlan) -> (Graph, Vec<u32>) {
        let mut packets = Vec::new();
        let (graph, _) = explore(plan, |packet| {
            let (port, ttl) = (u16::from_be_bytes([packet[20], packet[21]]), ttl(packet));
            packets.resize(packets.len().max(ttl.into()), 0);
            packets[usize::from(ttl) - 1] += 1;
            Some(self.node(port, ttl).map_or_else(|| error([198, 18, 0, 1], (3, 3), packet), |from| error(from, (11, 0), packet)))
        });
        (graph, packets)
    }
}

/// Packets for each distance, by what they are for: whoever changes what is asked must say here what for.
#[test]
fn every_packet_of_a_graph_is_accounted_for() {
    let ways = |lite| spec::Ways::new(lite, 99).unwrap();
    let hops = [
        // All packets are handed to one gateway, and whoever leads from it on is behind it.
        1,
        // So many flows to know that there are no more than four nodes. Each of the eight behind them has two of these: its link, and whether it is
        // meshed. That these agree shows that load is not spread by packet.
        ways(true).flows(4) as u32,
        // So many to know that there are no more than eight.
        ways(true).flows(8) as u32,
        // Each of the eight has one for its link, and so many it takes to know that one node is alone.
        ways(true).flows(1) as u32,
        // Whoever has handed a flow to the destination hands all of them there.
        1,
    ];
    let (plan, mut totals) = (all_ways(true, 99), Vec::new());
    for seed in 0..40 {
        let forks = Forks { seed, ways: vec![4, 2], joined: 1 };
        let (graph, packets) = forks.explore(plan.clone());
        assert!(forks.is_whole(&graph), "{graph:?}");
        assert!(packets.iter().zip(hops).all(|(packets, least)| *packets >= least), "{packets:?}");
        totals.push(graph.sent);
    }
    totals.sort_unstable();
    // More than these where a flow that shows a link is not fit to count for its hop, and where links look uneven before all are known.
    assert_eq!((hops.iter().sum::<u32>(), totals[0], totals[20]), (96, 96, 96), "{totals:?}");
    // Nothing is granted to the full form, which asks each router.
    let (graph, packets) = Forks { seed: 1, ways: vec![4, 2], joined: 1 }.explore(all_ways(false, 99));
    let least =
        [ways(false).flows(1) as u32, 4 * ways(false).flows(2) as u32, 4 * ways(false).flows(2) as u32, 8 * ways(false).flows(1) as u32, 8];
    assert!(packets.iter().zip(least).all(|(packets, least)| *packets >= least), "{packets:?} of {}", graph.sent);
}

/// The confidence is that of one router's ways: so of graphs with one that spreads load as many may lack something as it leaves, and of those
/// where load is spread at two distances twice as many.
#[test]
fn no_more_graphs_are_incomplete_than_the_confidence_leaves() {
    let plan = TracePlan { window: 1, ..all_ways(true, 95) };
    let (mut missed, mut left) = (0, 0.0);
    for seed in 0..2_000 {
        let random = hash(seed, [7, 7, 7]);
        let ways = if seed % 10 == 0 { vec![2, 2] } else { vec![2 + random % 3] };
        left += 0.05 * ways.len() as f64;
        let forks = Forks { seed, ways, joined: 1 };
        let (graph, _) = forks.explore(plan.clone());
        missed += u32::from(!forks.is_whole(&graph));
    }
    assert!(f64::from(missed) <= left, "{missed} are incomplete, {left} may be");
    // It is not that more was asked than that takes.
    assert!(f64::from(missed) >= left / 4.0, "{missed} are incomplete, {left} may be");
}

/// The graph that comes of a plan where every packet is answered after 10 ms as the closure says.
fn explore(plan: TracePlan, mut answer: impl FnMut(&[u8]) -> Option<Vec<u8>>) -> (Graph, Summary) {
    let mut engine = engine(plan);
    let (mut now, mut answers) = (at(0), VecDeque::new());
    for _ in 0..10_000 {
        for (_, packet) in drain(&mut *engine, now) {
            answers.extend(answer(&packet).map(|answer| (now + Duration::from_millis(10), answer)));
        }
        match (answers.front().map(|(due, _)| *due), engine.poll_timeout()) {
            (Some(arrives), due) if due.is_none_or(|(due, _)| arrives <= due) => {
                now = now.max(arrives);
                engine.on_packet(now, &answers.pop_front().unwrap().1);
            }
            (_, Some((due, _))) => {
                now = now.max(due);
                engine.on_timeout(now);
            }
            (_, None) => break,
        }
    }
    match <[Event; 2]>::try_from(events(&mut *engine)) {
        Ok([Event::Graph { graph, .. }, Event::Done(summary)]) => {
            assert_eq!(u64::from(graph.sent), summary.sent_packets);
            (*graph, summary)
        }
        other => panic!("{other:?}"),
    }
}

fn links(graph: &Graph) -> HashSet<(u8, [u8; 4], [u8; 4])> {
    let octets = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => addr.octets(),
        IpAddr::V6(_) => panic!("all of them are IPv4"),
    };
    let ends = |link: &Link| graph.ends(link).map(|(from, to)| (link.ttl, octets(from), octets(to))).unwrap();
    graph.links.iter().map(ends).collect()
}

fn all_ways(lite: bool, confidence: u8) -> TracePlan {
    TracePlan { multipath: Some(spec::Ways::new(lite, confidence).unwrap()), ..plan("198.18.0.1", Method::Udp) }
}

#[test]
fn ways_of_different_lengths_are_followed_to_their_ends() {
    let ends = |graph: &Graph| (graph.hops.len(), graph.hops[3].nodes.len(), graph.hops.last().unwrap().nodes.len());
    // One router leads to the destination and to somebody before it: the full form asks it about all, whatever the first flow met.
    let plan = all_ways(false, 99);
    for seed in 0..8 {
        let ways = Ways { seed, widths: vec![1, 2, 1], loss: 0, uneven: true };
        let graph = ways.graph(plan.clone());
        assert_eq!((links(&graph), graph.end, ends(&graph)), (ways.links(), PathEnd::Reached, (5, 2, 1)));
    }
    // Each of two leads to one of these, and the light form asks each.
    let plan = all_ways(true, 99);
    for seed in 0..8 {
        let (graph, _) = explore(plan.clone(), |packet| {
            let longer = hash(seed, [1, packet[20].into(), packet[21].into()]).is_multiple_of(2);
            Some(match ttl(packet) {
                1 | 2 => exceeded(packet),
                3 => error([198, 19, 3, u8::from(longer)], (11, 0), packet),
                4 if longer => exceeded(packet),
                _ => error([198, 18, 0, 1], (3, 3), packet),
            })
        });
        assert_eq!((graph.end, ends(&graph), graph.links.len()), (PathEnd::Reached, (5, 2, 1), 6), "{graph:?}");
    }
}

#[test]
fn the_light_form_takes_for_granted_who_is_asked_by_all_and_who_delivers() {
    let hop = |packets: &[u32]| packets.to_vec();
    let alone = Forks { seed: 1, ways: Vec::new(), joined: 2 };
    let (graph, packets) = alone.explore(TracePlan { window: 1, ..all_ways(true, 95) });
    assert_eq!((packets, graph.links.len()), (hop(&[1, 6, 6, 1]), 3), "a gateway, two routers and the destination");
    assert!(graph.hops.iter().all(|hop| hop.sure));
    // Where the first hop asked is no gateway it is asked as any other.
    let (_, packets) = alone.explore(TracePlan { window: 1, first_ttl: 2, ..all_ways(true, 95) });
    assert_eq!(packets, hop(&[0, 6, 6, 1]));
    let (_, packets) = alone.explore(TracePlan { window: 1, ..all_ways(false, 95) });
    assert_eq!(packets, hop(&[6, 6, 6, 6]));
}

#[test]
fn a_graph_that_may_not_be_sent_or_is_stopped_is_told_all_the_same() {
    for why in [NotSent::Refused, NotSent::NoRoute] {
        let mut engine = engine(all_ways(true, 95));
        // Refused at once, or when the first path is known.
        while let Some(transmit) = engine.poll_transmit(at(0), &mut [0; 1500]) {
            engine.on_not_sent(at(0), transmit.token, why);
        }
        let end = if why == NotSent::Refused { PathEnd::Refused } else { PathEnd::NoRoute };
        assert!(matches!(&events(&mut *engine)[..], [Event::Graph { graph, .. }, Event::Done(_)] if graph.end == end && graph.sent == 0));
    }
    let mut engine = engine(TracePlan { max_ttl: 1, ..all_ways(false, 95) });
    let first = drain(&mut *engine, at(0));
    engine.on_packet(at(1), &exceeded(&first[0].1));
    let more = drain(&mut *engine, at(1));
    assert_eq!(more.len(), 5, "six flows at the only hop");
    // One is held back and offered again, one is refused by the link, and the third ends it.
    engine.on_not_sent(at(1), more[4].0.token, NotSent::NeighbourPending);
    assert_eq!(drain(&mut *engine, at(2)).iter().map(|(transmit, _)| transmit.token).collect::<Vec<_>>(), [more[4].0.token]);
    engine.on_not_sent(at(2), more[4].0.token, NotSent::LinkError);
    engine.on_packet(at(3), &exceeded(&more[0].1));
    engine.stop();
    match &events(&mut *engine)[..] {
        [Event::Graph { graph, .. }, Event::Done(_)] => {
            assert_eq!((graph.end, graph.hops.len(), graph.hops[0].nodes[0].flows, graph.sent), (PathEnd::Stopped, 1, 2, 5));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn flows_that_were_held_back_or_never_left_are_not_silent() {
    let mut engine = engine(TracePlan { max_ttl: 2, ..all_ways(false, 95) });
    let first = drain(&mut *engine, at(0));
    first.iter().for_each(|(_, packet)| engine.on_packet(at(10), &exceeded(packet)));
    let more = drain(&mut *engine, at(10));
    assert_eq!((first.len(), more.len()), (2, 10));
    for (transmit, _) in &more {
        engine.on_not_sent(at(10), transmit.token, NotSent::TooSoon { until: at(500), lane: 0 });
    }
    assert_eq!((drain(&mut *engine, at(11)).len(), engine.poll_timeout().map(|(due, _)| due)), (0, Some(at(500))));
    engine.on_timeout(at(500));
    let again = drain(&mut *engine, at(500));
    assert_eq!(again.len(), 10);
    // Half are answered, one never leaves and has another one in its place, and then the way is lost: what was found stays.
    again.iter().take(5).for_each(|(_, packet)| engine.on_packet(at(510), &exceeded(packet)));
    engine.on_not_sent(at(510), again[5].0.token, NotSent::LinkError);
    let instead = drain(&mut *engine, at(510));
    assert_eq!(instead.len(), 1);
    engine.on_not_sent(at(511), instead[0].0.token, NotSent::NoNeighbour);
    while let Some((due, _)) = engine.poll_timeout() {
        engine.on_timeout(due);
        assert_eq!(drain(&mut *engine, due).len(), 0);
    }
    match &events(&mut *engine)[..] {
        [Event::Graph { graph, .. }, Event::Done(summary)] => {
            let flows: u16 = graph.hops.iter().flat_map(|hop| &hop.nodes).map(|node| node.flows).sum();
            let silent: u16 = graph.hops.iter().map(|hop| hop.silent).sum();
            assert_eq!((graph.end, flows, silent, graph.sent), (PathEnd::NoRoute, 2 + 5, 4, 2 + 9));
            assert_eq!(summary.sent_packets, 11);
            assert_eq!(graph.hops.iter().map(|hop| hop.sure).collect::<Vec<_>>(), [true, false]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_flows_may_get_farther_than_the_first_one() {
    // The first flow ends at a firewall, others go on to the destination.
    let firewall = |port: u16, ttl: u8| port.is_multiple_of(2) && ttl == 2;
    let (graph, summary) = explore(all_ways(true, 95), |packet| {
        let port = u16::from_be_bytes([packet[20], packet[21]]);
        match ttl(packet) {
            3.. if port.is_multiple_of(2) => None,
            ttl if firewall(port, ttl) => Some(error([198, 19, 9, 9], (3, 13), packet)),
            4.. => Some(error([198, 18, 0, 1], (3, 3), packet)),
            _ => Some(exceeded(packet)),
        }
    });
    assert_eq!((graph.end, graph.hops.len(), summary.reached), (PathEnd::Reached, 4, 1), "{graph:?}");
    assert_eq!(graph.hops[1].nodes.len(), 2);
}

#[test]
fn datagrams_that_answer_count_for_the_end_of_the_first_path() {
    let (graph, _) = explore(TracePlan { port: 53, ..all_ways(true, 60) }, |packet| match ttl(packet) {
        2 => None,
        4.. => {
            let datagram = [&[0, 53][..], &packet[20..22], &[0, 10, 0, 0, 1, 2]].concat();
            Some([&v4_header([198, 18, 0, 1].into(), [192, 0, 2, 2].into(), 17, 60, 10)[..], &datagram].concat())
        }
        _ => Some(exceeded(packet)),
    });
    let nodes: Vec<usize> = graph.hops.iter().map(|hop| hop.nodes.len()).collect();
    assert_eq!((graph.end, &nodes[..]), (PathEnd::Reached, &[1, 0, 1, 1][..]), "{graph:?}");
    assert_eq!(graph.hops[3].nodes[0].reply.from, IpAddr::from([198, 18, 0, 1]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the network is like: it ends, and tells nothing that is not there.
    #[test]
    fn graphs_have_no_link_that_the_network_lacks(
        seed: u64, widths in proptest::collection::vec(1..9_u64, 1..7), loss in prop_oneof![Just(0), 0..400_u64], uneven: bool, lite: bool,
    ) {
        let ways = Ways { seed, widths, loss, uneven };
        let graph = ways.graph(all_ways(lite, 90));
        let (found, there) = (links(&graph), ways.links());
        prop_assert!(found.is_subset(&there), "{:?}", found.difference(&there));
        prop_assert_eq!(graph.hops.iter().any(|hop| hop.by_packet), false);
    }
}

/// A tree of routers, each of which leads to several others; who stands where follows from the destination alone.
#[derive(Debug)]
struct Tree {
    seed: u64,
    /// Routers before each network of destinations, at most.
    depth: u8,
    /// Of a thousand routers, and of a thousand packets.
    silent: u64,
    loss: u64,
}

impl Tree {
    fn hash(&self, what: [u64; 3]) -> u64 {
        hash(self.seed, what)
    }

    /// The routers before a destination; nobody at silent ones.
    fn routers(&self, dst: IpAddr) -> Vec<Option<IpAddr>> {
        let IpAddr::V4(dst) = dst else { panic!("only IPv4") };
        let network = u64::from(dst.octets()[2]);
        let depth = 1 + (self.hash([1, network, 0]) % u64::from(self.depth)) as u8;
        (1..=depth)
            .map(|ttl| {
                // Networks whose numbers agree in more bits go together for longer.
                let branch = network & ((1 << (ttl / 2).min(8)) - 1);
                let addr = IpAddr::from([198, 19, ttl, branch as u8]);
                (self.hash([2, ttl.into(), branch]) % 1_000 >= self.silent).then_some(addr)
            })
            .collect()
    }

    fn answer(&self, count: u64, packet: &[u8]) -> Option<Vec<u8>> {
        let dst = Packet::parse(packet).unwrap().dst();
        let routers = self.routers(dst);
        let answer = match routers.get(usize::from(ttl(packet)) - 1) {
            Some(Some(IpAddr::V4(from))) => error(from.octets(), (11, 0), packet),
            Some(_) => return None,
            None => match dst {
                IpAddr::V4(dst) => error(dst.octets(), (3, 3), packet),
                IpAddr::V6(_) => return None,
            },
        };
        (self.hash([3, count, 0]) % 1_000 >= self.loss).then_some(answer)
    }

    /// All paths, by destination, and how many packets they took.
    fn paths(&self, plan: TracePlan) -> (HashMap<IpAddr, Path>, u64) {
        let mut engine = engine(plan);
        let (mut now, mut count, mut paths, mut answers) = (at(0), 0, HashMap::new(), VecDeque::new());
        let mut buf = [0; 1_500];
        loop {
            // A packet each 0.1 ms.
            while let Some(transmit) = engine.poll_transmit(now, &mut buf) {
                count += 1;
                let answer = self.answer(count, &buf[..transmit.len]);
                answers.extend(answer.map(|answer| (now + Duration::from_millis(10), answer)));
                now += Duration::from_micros(100);
                while answers.front().is_some_and(|(due, _)| *due <= now) {
                    let (due, answer) = answers.pop_front().unwrap();
                    engine.on_packet(due, &answer);
                }
                if engine.poll_timeout().is_some_and(|(due, _)| due <= now) {
                    engine.on_timeout(now);
                }
            }
            for event in events(&mut *engine) {
                match event {
                    Event::Path { path, .. } => assert!(paths.insert(path.dst, *path).is_none(), "a path is told once"),
                    Event::Done(summary) => {
                        assert_eq!(summary.sent_packets, count);
                        return (paths, count);
                    }
                    other => panic!("{other:?}"),
                }
            }
            match (answers.pop_front(), engine.poll_timeout()) {
                (Some((due, answer)), timeout) if timeout.is_none_or(|(timeout, _)| due <= timeout) => {
                    now = now.max(due);
                    engine.on_packet(now, &answer);
                }
                (answer, Some((due, _))) => {
                    answer.into_iter().for_each(|answer| answers.push_front(answer));
                    now = now.max(due);
                    engine.on_timeout(now);
                }
                (None, None) => panic!("it waits for ever"),
                (Some(_), None) => unreachable!("it was taken above"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn paths_that_share_hops_are_those_that_share_none(seed: u64, depth in 1..20_u8, silent in 0..200_u64, loss in prop_oneof![Just(0), 0..50_u64]) {
        let tree = Tree { seed, depth, silent, loss };
        let networks: Vec<String> = (0..40).map(|network| format!("198.18.{network}.0/29")).collect();
        let plan = TracePlan { gap: 8, ..plan(&networks.join(" "), Method::Udp) };
        prop_assert!(plan.shared);
        let total = (plan.to - plan.from) as usize;
        let (all, every) = tree.paths(TracePlan { shared: false, ..plan.clone() });
        let (shared, fewer) = tree.paths(plan);
        prop_assert_eq!((all.len(), shared.len()), (total, total));
        for (dst, path) in &shared {
            let routers = tree.routers(*dst);
            let met: Vec<Option<IpAddr>> = path.hops.iter().map(|hop| hop.replies.first().map(|reply| reply.from)).collect();
            for (at, met) in met.iter().enumerate().filter(|(at, _)| *at < routers.len()) {
                prop_assert!(met.is_none() || *met == routers[at], "{dst}: {met:?} at {at} of {routers:?}");
            }
            // More silent ones in a row than it looks beyond.
            let cut = routers.windows(8).any(|row| row.iter().all(Option::is_none));
            if loss == 0 && !cut {
                let told: Vec<Option<IpAddr>> = routers.into_iter().chain([Some(*dst)]).collect();
                prop_assert_eq!(&met, &told, "{:?}", path);
                prop_assert_eq!(path.end, PathEnd::Reached);
                prop_assert_eq!(&met, &all[dst].hops.iter().map(|hop| hop.replies.first().map(|reply| reply.from)).collect::<Vec<_>>());
            }
            prop_assert!(path.hops.iter().enumerate().all(|(at, hop)| usize::from(hop.ttl) == at + 1));
        }
        // Of a hop or two there is nothing to share, and a silent one costs a look beyond.
        prop_assert!(depth < 6 || fewer <= every + total as u64, "{fewer} packets, {every} without");
    }
}
