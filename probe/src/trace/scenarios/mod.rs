//! Scenario files: routers and hosts, a trace, and what must come of it, run through the real packet loop on the simulated network.
//!
//! To add one: a file `NAME.toml` here, and its name at the end. A field that is not there leaves its default.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use picket_wire::addr::parse_set;
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::trace::{Graph, Hop, Link, Method, Path, PathMtu, ReplyKind};
use picket_wire::units::PacketsPerSecond;
use serde::Deserialize;

use super::engine;
use super::report::{Event, Summary};
use super::spec::{DEFAULT_CONFIDENCE, TracePlan, Ways};
use crate::net::drive::{Drive, DriveEvent, TaskId, TaskSpec, Weight};
use crate::net::pacer::{DEFAULT_BURST, Limits};
use crate::net::ports::{RawIdentity, SourcePorts};
use crate::net::sim::{self, HostRule, PortState, Router, Scenario, SimLink, Spread, Telling, Way, every_file};
use crate::net::time::Instant;

/// No trace takes longer than this.
const AT_MOST: Duration = Duration::from_secs(600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// What this scenario is about.
    about: String,
    #[serde(default)]
    hosts: Vec<Hosts>,
    #[serde(default)]
    ways: Vec<WayFile>,
    trace: Trace,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hosts {
    network: String,
    #[serde(default)]
    rtt_ms: f64,
    #[serde(default)]
    loss: u16,
    #[serde(default)]
    silent: bool,
    /// Port state for TCP and UDP.
    #[serde(default)]
    open: bool,
    ttl: Option<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WayFile {
    network: String,
    /// Routers that differ in nothing but their addresses, `{n}` being the hop, and their round trips.
    plain: Option<Plain>,
    #[serde(default)]
    routers: Vec<RouterFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    count: u8,
    address: String,
    rtt_ms_each: f64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RouterFile {
    /// Which hop, where it takes the place of a plain one.
    at: Option<usize>,
    addresses: Vec<IpAddr>,
    by_packet: bool,
    silent: bool,
    rtt_ms: Option<f64>,
    loss: u16,
    gap_ms: f64,
    ttl: Option<u8>,
    labels: Vec<u32>,
    quoted_ttl: Option<u8>,
    tos: Option<u8>,
    quotes: Option<usize>,
    refuses: Option<u8>,
    forwards_expired: bool,
    mtu: Option<u16>,
    /// It says that a packet is too large, but not for what; or nothing.
    tells_no_size: bool,
    tells_nothing: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Trace {
    targets: String,
    #[serde(default)]
    methods: Vec<Method>,
    queries: Option<u8>,
    window: Option<u8>,
    gap: Option<u8>,
    max_ttl: Option<u8>,
    first_ttl: Option<u8>,
    rate: Option<u32>,
    tos: Option<u8>,
    mtu: Option<u16>,
    multipath: Option<Form>,
    confidence: Option<u8>,
}

/// How all ways are looked for.
#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Form {
    Lite,
    Full,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// Destinations, each with the way as [`told`] writes it and [`is_way`] reads it; all of them where one is named `all`.
    #[serde(default)]
    paths: BTreeMap<String, String>,
    reached: u64,
    packets_at_most: u64,
    seconds_at_most: f64,
    /// A line that the listing of all replies must have.
    #[serde(default)]
    replies: Vec<String>,
    /// Every link of the only graph, as [`links`] writes it.
    #[serde(default)]
    links: Vec<String>,
    /// TTLs of graphs at which load is spread by packet.
    #[serde(default)]
    by_packet: Vec<u8>,
    /// Of a hundred runs with other flows, how many at least must find just these.
    #[serde(default)]
    of_hundred: u16,
}

fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
}

fn network(text: &str) -> (IpAddr, u8) {
    let (network, prefix) = text.split_once('/').unwrap();
    (network.parse().unwrap(), prefix.parse().unwrap())
}

impl Hosts {
    fn rule(&self) -> HostRule {
        let (addr, prefix) = network(&self.network);
        let plain = HostRule::new(addr, prefix);
        let port = if self.silent {
            PortState::Silent
        } else if self.open {
            PortState::Open
        } else {
            PortState::Closed
        };
        HostRule {
            rtt: if self.rtt_ms > 0.0 { ms(self.rtt_ms) } else { plain.rtt },
            loss: self.loss,
            echo: !self.silent,
            ttl: self.ttl.unwrap_or(plain.ttl),
            other_ports: port,
            other_udp: port,
            ..plain
        }
    }
}

impl WayFile {
    fn way(&self) -> Way {
        let mut routers = Vec::new();
        if let Some(plain) = &self.plain {
            routers.extend((1..=plain.count).map(|hop| {
                let addr = plain.address.replace("{n}", &hop.to_string()).parse().unwrap();
                Router { rtt: ms(plain.rtt_ms_each * f64::from(hop)), ..Router::new(vec![addr]) }
            }));
        }
        for file in &self.routers {
            let known = file.at.map(|at| routers[at - 1].clone());
            let plain = known.unwrap_or_else(|| Router::new(Vec::new()));
            let router = Router {
                addresses: if file.addresses.is_empty() { plain.addresses.clone() } else { file.addresses.clone() },
                spread: if file.by_packet { Spread::Packet } else { Spread::Flow },
                silent: file.silent,
                rtt: file.rtt_ms.map_or(plain.rtt, ms),
                loss: file.loss,
                gap: ms(file.gap_ms),
                ttl: file.ttl.unwrap_or(plain.ttl),
                labels: file.labels.clone(),
                quoted_ttl: file.quoted_ttl.unwrap_or(plain.quoted_ttl),
                tos: file.tos,
                quotes: file.quotes.unwrap_or(plain.quotes),
                refuses: file.refuses,
                forwards_expired: file.forwards_expired,
                mtu: file.mtu,
                tells_mtu: match (file.tells_nothing, file.tells_no_size) {
                    (true, _) => Telling::Nothing,
                    (_, true) => Telling::NoSize,
                    _ => Telling::Size,
                },
            };
            match file.at {
                Some(at) => routers[at - 1] = router,
                None => routers.push(router),
            }
        }
        Way { network: network(&self.network), routers }
    }
}

struct Outcome {
    paths: BTreeMap<IpAddr, Path>,
    graphs: Vec<Graph>,
    summary: Summary,
    took: Duration,
    /// Of the packets of all paths.
    bytes: u64,
}

type Sim = Drive<SimLink, Event, VecDeque<DriveEvent<Event>>>;

impl File {
    fn run(&self, method: Method, flow: u16) -> Outcome {
        let scenario = Scenario {
            hosts: self.hosts.iter().map(Hosts::rule).collect(),
            ways: self.ways.iter().map(WayFile::way).collect(),
            ..Scenario::default()
        };
        let spec = TargetSpec { include: parse_set(&self.trace.targets).unwrap(), exclude: parse_set("").unwrap(), ports: None, seed: 5 };
        let space = Arc::new(TargetSpace::new(&spec).unwrap());
        let routes = scenario.routes();
        let plain = TracePlan::new(Arc::clone(&space), 0, space.len(), method).unwrap();
        let plan = TracePlan {
            queries: self.trace.queries.unwrap_or(plain.queries),
            window: self.trace.window.unwrap_or(plain.window),
            gap: self.trace.gap.unwrap_or(plain.gap),
            max_ttl: self.trace.max_ttl.unwrap_or(plain.max_ttl),
            first_ttl: self.trace.first_ttl.unwrap_or(plain.first_ttl),
            tos: self.trace.tos.unwrap_or(plain.tos),
            mtu: self.trace.mtu,
            multipath: self
                .trace
                .multipath
                .map(|form| Ways::new(form == Form::Lite, self.trace.confidence.unwrap_or(DEFAULT_CONFIDENCE)).unwrap()),
            flow,
            ..plain
        };
        let ports = SourcePorts::default();
        let identity = RawIdentity { source: routes.source(), base_port: ports.base(0), ports, key: *b"a scenario's key" };
        let engine = engine::trace(plan, identity).unwrap();
        let rate = Limits { packets: PacketsPerSecond::new(self.trace.rate.unwrap_or(10_000)), bits: None, burst: DEFAULT_BURST };
        let mut drive: Sim = Drive::new(Instant::ZERO, SimLink::new(scenario), rate, routes, VecDeque::new());
        let task = TaskSpec { name: "scenario".into(), engine, weight: Weight::Interactive, rate, targets: None, gate: Arc::new(|_| true) };
        drive.add(Instant::ZERO, TaskId::for_tests(1), task);
        let over = |_, drive: &mut Sim| drive.sink().iter().any(|event| matches!(event, DriveEvent::Task(_, Event::Done(_))));
        let ended = sim::run(&mut drive, Instant::ZERO, Instant::ZERO + AT_MOST, over);
        let (mut paths, mut graphs, mut summary, mut bytes) = (BTreeMap::new(), Vec::new(), None, 0);
        for event in core::mem::take(drive.sink()) {
            match event {
                DriveEvent::Task(_, Event::Path { position, bytes: sent, path, .. }) => {
                    assert_eq!(space.target(position).unwrap().addr, path.dst);
                    bytes += sent;
                    assert!(paths.insert(path.dst, *path).is_none(), "a path is told once");
                }
                DriveEvent::Task(_, Event::Graph { position, bytes: sent, graph }) => {
                    assert_eq!(space.target(position).unwrap().addr, graph.dst);
                    bytes += sent;
                    assert!(paths.insert(graph.dst, flat(&graph)).is_none(), "a graph is told once");
                    graphs.push(*graph);
                }
                DriveEvent::Task(_, Event::Done(sums)) => summary = Some(sums),
                _ => {}
            }
        }
        Outcome { paths, graphs, summary: summary.expect("the trace ends"), took: ended.saturating_since(Instant::ZERO), bytes }
    }

    fn check(&self, name: &str) {
        let all = [Method::Icmp, Method::Udp, Method::Tcp];
        for method in if self.trace.methods.is_empty() { &all[..] } else { &self.trace.methods } {
            let (outcome, again) = (self.run(*method, 0), self.run(*method, 0));
            assert_eq!(outcome.paths, again.paths, "{name}: two runs differ");
            let listing: String = outcome.paths.values().map(replies).collect();
            let told: BTreeMap<String, String> = outcome.paths.values().map(|path| (path.dst.to_string(), told(path))).collect();
            let context = format!("{name} by {method}: {}\n{told:#?}\n{listing}{:?}, took {:?}", self.about, outcome.summary, outcome.took);
            assert_eq!(outcome.summary.paths, outcome.paths.len() as u64, "{context}");
            assert_eq!(outcome.summary.sent_packets, outcome.paths.values().map(|path| u64::from(path.sent)).sum::<u64>(), "{context}");
            assert_eq!(outcome.summary.sent_bytes, outcome.bytes, "{context}");
            assert_eq!(outcome.summary.reached, self.expect.reached, "{context}");
            assert!(outcome.summary.sent_packets <= self.expect.packets_at_most, "{context}");
            assert!(outcome.took.as_secs_f64() <= self.expect.seconds_at_most, "{context}");
            for (dst, expected) in &self.expect.paths {
                match dst.as_str() {
                    "all" => told.iter().for_each(|(dst, told)| assert!(is_way(told, &expected.replace("DST", dst)), "{context}")),
                    dst => assert!(told.get(dst).is_some_and(|told| is_way(told, expected)), "{dst}\n{context}"),
                }
            }
            let by_packet = outcome.graphs.iter().flat_map(|graph| &graph.hops).filter(|hop| hop.by_packet).map(|hop| hop.ttl);
            assert_eq!(by_packet.collect::<Vec<_>>(), self.expect.by_packet, "{context}");
            let mut complete = 0;
            for run in 0..if self.expect.of_hundred > 0 { 100 } else { 0 } {
                let outcome = self.run(*method, run * 37);
                let [graph] = &outcome.graphs[..] else { panic!("{context}") };
                let links = links(graph);
                complete += u16::from(links == self.expect.links);
                let extra: Vec<&String> = links.iter().filter(|link| !self.expect.links.contains(link)).collect();
                assert!(extra.is_empty(), "no such links: {extra:?}\n{context}");
                assert!(u64::from(graph.sent) <= self.expect.packets_at_most, "{} packets in run {run}\n{context}", graph.sent);
                assert!(outcome.took.as_secs_f64() <= self.expect.seconds_at_most, "{:?} in run {run}\n{context}", outcome.took);
            }
            assert!(
                complete >= self.expect.of_hundred,
                "complete in {complete} of 100\n{:?}\n{context}",
                outcome.graphs.iter().map(links).collect::<Vec<_>>()
            );
            for wanted in &self.expect.replies {
                assert!(listing.lines().any(|line| line == wanted), "no `{wanted}`\n{context}");
            }
        }
    }
}

/// A graph as a path that has all addresses.
fn flat(graph: &Graph) -> Path {
    let hops = graph.hops.iter().map(|hop| Hop {
        ttl: hop.ttl,
        sent: 0,
        replies: hop.nodes.iter().map(|node| node.reply.clone()).collect(),
        inherited: false,
    });
    Path { dst: graph.dst, end: graph.end, hops: hops.collect(), sent: graph.sent, mtu: None }
}

/// `1 192.0.2.1 > 192.0.2.2`, in order.
fn links(graph: &Graph) -> Vec<String> {
    let text = |link: &Link| {
        let (from, to) = graph.ends(link).unwrap();
        format!("{} {from} > {to}", link.ttl)
    };
    graph.links.iter().map(text).collect()
}

/// `192.0.2.1 * 198.18.0.1|198.18.0.2 ... reached`: the addresses of each hop, silent ones as stars.
fn told(path: &Path) -> String {
    let mut text = String::new();
    for hop in &path.hops {
        let mut from: Vec<String> = hop.replies.iter().map(|reply| reply.from.to_string()).collect();
        from.sort();
        from.dedup();
        write!(text, "{} ", if from.is_empty() { "*".to_owned() } else { from.join("|") }).unwrap();
    }
    text + path.end.as_str()
}

/// Whether a path is as expected; `A/B` is a hop that is either one.
fn is_way(told: &str, expected: &str) -> bool {
    let hops = expected.split(' ').zip(told.split(' '));
    told.split(' ').count() == expected.split(' ').count()
        && hops.into_iter().all(|(expected, told)| expected.split('/').any(|one| one == told))
}

/// All replies, a line each.
fn replies(path: &Path) -> String {
    let mut text = String::new();
    for (hop, reply) in path.hops.iter().flat_map(|hop| hop.replies.iter().map(move |reply| (hop, reply))) {
        write!(text, "{} {} of {}", hop.ttl, reply.from, hop.sent).unwrap();
        match reply.kind {
            ReplyKind::TimeExceeded => {}
            ReplyKind::Answer => text.push_str(" answer"),
            ReplyKind::Unreachable { icmp_type, icmp_code } => write!(text, " unreachable {icmp_type}/{icmp_code}").unwrap(),
        }
        write!(text, " ttl {}", reply.ttl).unwrap();
        if let Some(quoted) = reply.quoted {
            write!(text, " quoted {}/{}", quoted.ttl, quoted.tos).unwrap();
        }
        for label in &reply.mpls {
            write!(text, " mpls {}", label.label).unwrap();
        }
        text.push('\n');
    }
    if let Some(PathMtu { bytes, ttl, limits, silent }) = &path.mtu {
        write!(text, "mtu {bytes} up to {ttl}").unwrap();
        for limit in limits {
            write!(text, " by {} {:?}", limit.from, limit.bytes.unwrap_or(0)).unwrap();
        }
        text.push_str(if *silent { " silent\n" } else { "\n" });
    }
    text
}

every_file! {
    File in "src/trace/scenarios":
    balanced_by_flow
    balanced_by_packet
    bulk_half_dead
    bulk_shared
    far_answer_is_waited_for
    graph_by_packet
    graph_four_by_two
    graph_full_form
    graph_lossy
    graph_meshed
    graph_one_way
    graph_silent
    labels_and_marks
    long_and_v6
    loop_between_two
    lossy_hops
    mtu_black_hole
    mtu_cut_off
    mtu_told
    mtu_unnumbered_answers
    mtu_untold_size
    prohibited
    rate_limited_hop
    silent_hop
    silent_network
    ttl_games
}
