//! Scan engines under hostile answers, see [`super::engine`].

use core::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use picket_packet::eth::Mac;
use picket_probe::net::engine::{Engine, Source};
use picket_probe::net::onlink::LocalLink;
use picket_probe::net::ports::{RawIdentity, SourcePorts};
use picket_probe::net::route::{Interface, InterfaceAddress, InterfaceKind, Route, RouteAction, RouteTable};
use picket_probe::scan::engine::ScanEngine;
use picket_probe::scan::report::Event;
use picket_probe::scan::spec::{Cut, ScanPlan};
use picket_wire::addr::parse_set;
use picket_wire::job::{ScanOptions, Technique};
use picket_wire::space::{TargetSpace, TargetSpec};

use super::engine::{DIRECT, Reader, instruct};

const TECHNIQUES: &[Technique] = &[
    Technique::Syn,
    Technique::Echo,
    Technique::Udp,
    Technique::Sctp,
    Technique::Ack,
    Technique::Timestamp,
    Technique::Neighbour,
    Technique::Discover,
];

fn space(technique: Technique) -> Arc<TargetSpace> {
    let include = parse_set("198.18.0.0/29,2001:db8::/126").expect("these are networks");
    let ports = technique.has_ports().then(|| "7,53,80".parse().expect("these are ports"));
    let spec = TargetSpec { include, exclude: parse_set("").expect("nothing is a set"), ports, seed: 5 };
    Arc::new(TargetSpace::new(&spec).expect("a small space"))
}

fn engine(technique: Technique) -> ScanEngine {
    let space = space(technique);
    let len = space.len();
    let plan = ScanPlan::new(space, 0, len, ScanOptions { technique, attempts: 2 }).expect("a plain plan");
    let source = Source { v4: Some(Ipv4Addr::new(192, 0, 2, 1)), v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1)) };
    let ports = SourcePorts::default();
    let identity = RawIdentity { source, base_port: ports.base(0), ports, key: *b"sixteen byte key" };
    let engine = ScanEngine::new(&plan, identity).expect("a raw technique").on_stop(Cut::Final);
    match technique {
        Technique::Neighbour | Technique::Discover => engine.on_link(link()),
        _ => engine,
    }
}

/// A link on which half of the targets are neighbours.
fn link() -> Option<LocalLink> {
    let ip = |text: &str| text.parse().expect("an address");
    let address = |text, prefix| InterfaceAddress { ip: ip(text), prefix, usable: true };
    let addresses = vec![address("192.0.2.1", 24), address("198.18.0.250", 24), address("2001:db8:ff::1", 64), address("fe80::1", 64)];
    let mac = Some(Mac([2, 0, 0, 0, 0, 1]));
    let interface = Interface { index: 2, name: "eth0".into(), kind: InterfaceKind::Ethernet, mac, mtu: 1500, up: true, addresses };
    let on_link = |network, prefix| Route {
        network: ip(network),
        prefix,
        action: RouteAction::OnLink,
        interface: Some(2),
        source: None,
        metric: 100,
    };
    let routes = vec![on_link("198.18.0.0", 30), on_link("2001:db8::", 127), on_link("fe80::", 64)];
    RouteTable::new(interface, routes, &[]).local_link()
}

/// Drives one engine through the instructions; its reports must cover its range without a gap and add up.
pub(crate) fn replies(bytes: &[u8]) {
    let mut input = Reader::new(bytes);
    let technique = TECHNIQUES[usize::from(input.byte().unwrap_or(0)) % TECHNIQUES.len()];
    let mut engine = engine(technique);
    let (mut end, mut covered) = (space(technique).len(), 0);
    instruct(&mut engine, input, DIRECT, |engine| take_events(engine, &mut covered, &mut end));
    engine.stop();
    take_events(&mut engine, &mut covered, &mut end);
    assert_eq!(covered, end, "reports cover what was begun");
}

fn take_events(engine: &mut ScanEngine, covered: &mut u64, end: &mut u64) {
    while let Some(event) = engine.poll_event() {
        match event {
            Event::Chunk(report) => {
                assert_eq!(report.from, *covered, "reports follow on each other");
                *covered = report.to;
                assert!(report.coverage().adds_up());
            }
            Event::Done(done) => *end = done.next,
            #[allow(unreachable_patterns, reason = "later events say nothing about ranges")]
            _ => {}
        }
    }
}
