//! Trace engines under hostile answers, see [`super::engine`].

use core::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use picket_probe::net::engine::{Engine, Source};
use picket_probe::net::ports::{RawIdentity, SourcePorts};
use picket_probe::trace::engine::trace;
use picket_probe::trace::report::Event;
use picket_probe::trace::spec::{TracePlan, Ways};
use picket_wire::addr::parse_set;
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::trace::{Graph, MAX_TTL, MPLS_MAX, Method, Path};

use super::engine::{QUOTED, Reader, instruct};

const METHODS: [Method; 3] = [Method::Icmp, Method::Udp, Method::Tcp];

type TraceEngine = dyn Engine<Event = Event>;

/// One for each method, for one way, for all of them by the light form, and by the full one; for few destinations, or as if they were many.
fn engine(which: u8) -> (Box<TraceEngine>, u64) {
    let method = METHODS[usize::from(which) % METHODS.len()];
    let ways = |lite| Some(Ways::new(lite, 60).expect("a possible confidence"));
    let multipath = [None, ways(true), ways(false)][usize::from(which) / METHODS.len() % 3].clone();
    let include = parse_set("198.18.0.0/30,2001:db8::/127").expect("these are networks");
    let spec = TargetSpec { include, exclude: parse_set("").expect("nothing is a set"), ports: None, seed: 5 };
    let space = Arc::new(TargetSpace::new(&spec).expect("a small space"));
    let len = space.len();
    let plan = TracePlan { live: true, multipath, ..TracePlan::new(space, 0, len, method).expect("a plain plan") };
    let many = usize::from(which) / (3 * METHODS.len()) % 2 == 1;
    let plan = if many { TracePlan { window: 1, ahead: 1, shared: true, queries: 1, ..plan } } else { plan };
    let source = Source { v4: Some(Ipv4Addr::new(192, 0, 2, 1)), v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1)) };
    let ports = SourcePorts::default();
    let identity = RawIdentity { source, base_port: ports.base(0), ports, key: *b"sixteen byte key" };
    (trace(plan, identity).expect("a plain plan"), len)
}

/// Drives one engine through the instructions; each path must be told at most once, within its bounds, and one end.
pub(crate) fn replies(bytes: &[u8]) {
    let mut input = Reader::new(bytes);
    let (mut engine, len) = engine(input.byte().unwrap_or(0));
    let (mut told, mut ends, mut left) = (0, 0, 0);
    let mut take = |engine: &mut TraceEngine| {
        while let Some(event) = engine.poll_event() {
            match event {
                Event::Path { path, .. } => {
                    told += 1;
                    check(&path);
                }
                Event::Done(summary) => {
                    ends += 1;
                    left = summary.left;
                }
                Event::Graph { graph, .. } => {
                    told += 1;
                    check_graph(&graph);
                }
                Event::Hop { .. } => {}
            }
        }
    };
    instruct(&mut *engine, input, QUOTED, &mut take);
    engine.stop();
    take(&mut *engine);
    assert_eq!((told + left, ends), (len, 1), "each destination is told once or counted as left");
}

fn check(path: &Path) {
    for (ttl, hop) in (1..).zip(&path.hops) {
        assert!(hop.ttl == ttl && ttl <= MAX_TTL, "hops follow on each other");
        assert!(hop.inherited || hop.replies.len() <= usize::from(hop.sent), "no more answers than packets");
        assert!(hop.replies.iter().all(|reply| reply.mpls.len() <= MPLS_MAX), "label stacks are bounded");
    }
}

fn check_graph(graph: &Graph) {
    for (ttl, hop) in (1..).zip(&graph.hops) {
        assert!(hop.ttl == ttl && ttl <= MAX_TTL, "hops follow on each other");
        assert!(hop.nodes.windows(2).all(|pair| pair[0].reply.from < pair[1].reply.from), "a node is told once");
        let flows: u32 = hop.nodes.iter().map(|node| u32::from(node.flows)).sum();
        assert!(
            flows <= graph.sent && hop.nodes.iter().all(|node| node.flows > 0 || hop.by_packet),
            "a node has flows, each of which was sent"
        );
    }
    for link in &graph.links {
        let nodes = |ttl: u8| graph.hops.get(usize::from(ttl - 1)).map_or(0, |hop| hop.nodes.len());
        assert!(usize::from(link.from) < nodes(link.ttl) && usize::from(link.to) < nodes(link.ttl + 1), "links join nodes");
    }
}
