//! Trace engines under hostile answers, see [`super::engine`].

use core::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use picket_probe::net::engine::{Engine, Source};
use picket_probe::net::ports::{RawIdentity, SourcePorts};
use picket_probe::trace::engine::TraceEngine;
use picket_probe::trace::report::Event;
use picket_probe::trace::spec::TracePlan;
use picket_wire::addr::parse_set;
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::trace::{MAX_TTL, MPLS_MAX, Method, Path};

use super::engine::{QUOTED, Reader, instruct};

const METHODS: [Method; 3] = [Method::Icmp, Method::Udp, Method::Tcp];

fn engine(method: Method) -> (TraceEngine, u64) {
    let include = parse_set("198.18.0.0/30,2001:db8::/127").expect("these are networks");
    let spec = TargetSpec { include, exclude: parse_set("").expect("nothing is a set"), ports: None, seed: 5 };
    let space = Arc::new(TargetSpace::new(&spec).expect("a small space"));
    let len = space.len();
    let plan = TracePlan { live: true, ..TracePlan::new(space, 0, len, method).expect("a plain plan") };
    let source = Source { v4: Some(Ipv4Addr::new(192, 0, 2, 1)), v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1)) };
    let ports = SourcePorts::default();
    let identity = RawIdentity { source, base_port: ports.base(0), ports, key: *b"sixteen byte key" };
    (TraceEngine::new(plan, identity).expect("a plain plan"), len)
}

/// Drives one engine through the instructions; each path must be told at most once, within its bounds, and one end.
pub(crate) fn replies(bytes: &[u8]) {
    let mut input = Reader::new(bytes);
    let (mut engine, len) = engine(METHODS[usize::from(input.byte().unwrap_or(0)) % METHODS.len()]);
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
                Event::Hop { .. } => {}
            }
        }
    };
    instruct(&mut engine, input, QUOTED, &mut take);
    engine.stop();
    take(&mut engine);
    assert_eq!((told + left, ends), (len, 1), "each destination is told once or counted as left");
}

fn check(path: &Path) {
    for (ttl, hop) in (1..).zip(&path.hops) {
        assert!(hop.ttl == ttl && ttl <= MAX_TTL, "hops follow on each other");
        assert!(hop.replies.len() <= usize::from(hop.sent), "no more answers than packets");
        assert!(hop.replies.iter().all(|reply| reply.mpls.len() <= MPLS_MAX), "label stacks are bounded");
    }
}
