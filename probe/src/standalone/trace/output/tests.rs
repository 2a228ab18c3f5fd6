//! The forms as they are.

use std::time::UNIX_EPOCH;

use picket_wire::trace::{GraphHop, Hop, InterfaceInfo, InterfaceRole, Link, Method, MplsLabel, Node, PathEnd, Quoted, Reply, ReplyKind};

use super::*;
use crate::trace::tests::plan;

fn answer(from: &str, rtt_us: u32, kind: ReplyKind) -> Reply {
    let quoted = (kind != ReplyKind::Answer).then_some(Quoted { ttl: 1, tos: 0 });
    Reply { from: from.parse().unwrap(), rtt_us, ttl: 60, kind, quoted, mpls: Vec::new(), interfaces: Vec::new(), mtu: None }
}

fn path() -> Path {
    let mut labelled = answer("192.0.2.9", 2_340, ReplyKind::TimeExceeded);
    labelled.mpls.push(MplsLabel { label: 24_001, tc: 0, bottom: true, ttl: 1 });
    labelled.quoted = Some(Quoted { ttl: 2, tos: 0x28 });
    labelled.interfaces.push(InterfaceInfo {
        role: InterfaceRole::Incoming,
        index: Some(3),
        addr: None,
        name: Some("ge-0/0/1".into()),
        mtu: None,
    });
    let hops = vec![
        Hop {
            ttl: 1,
            sent: 3,
            replies: vec![answer("192.0.2.1", 210, ReplyKind::TimeExceeded), answer("192.0.2.1", 190, ReplyKind::TimeExceeded)],
            ..Hop::default()
        },
        Hop { ttl: 2, sent: 0, replies: vec![answer("192.0.2.5", 900, ReplyKind::TimeExceeded)], inherited: true },
        Hop { ttl: 3, sent: 3, ..Hop::default() },
        Hop { ttl: 4, sent: 2, replies: vec![labelled, answer("192.0.2.10", 2_500, ReplyKind::TimeExceeded)], ..Hop::default() },
        Hop {
            ttl: 5,
            sent: 1,
            replies: vec![answer("192.0.2.77", 3_000, ReplyKind::Unreachable { icmp_type: 3, icmp_code: 13 })],
            ..Hop::default()
        },
    ];
    Path { dst: "198.18.0.1".parse().unwrap(), end: PathEnd::Unreachable, hops, sent: 9, mtu: None }
}

fn graph() -> Graph {
    let node = |addr: &str, flows: u16, rtt_us: u32| Node {
        flows,
        least_rtt_us: rtt_us - 20,
        reply: answer(addr, rtt_us, if addr.starts_with("198") { ReplyKind::Answer } else { ReplyKind::TimeExceeded }),
    };
    let hop = |ttl, by_packet: bool, silent, nodes: Vec<Node>| GraphHop { ttl, sure: silent == 0 && !by_packet, by_packet, silent, nodes };
    let link = |ttl, from, to| Link { ttl, from, to };
    Graph {
        dst: "198.18.0.1".parse().unwrap(),
        end: PathEnd::Reached,
        confidence: 95,
        hops: vec![
            hop(1, false, 0, vec![node("192.0.2.1", 6, 210)]),
            hop(2, false, 1, vec![node("192.0.2.5", 7, 420), node("192.0.2.9", 4, 390)]),
            hop(3, false, 6, Vec::new()),
            hop(4, true, 0, vec![node("192.0.2.13", 4, 990), node("192.0.2.17", 2, 980)]),
            hop(5, false, 0, vec![node("198.18.0.1", 6, 1_400)]),
        ],
        links: vec![link(1, 0, 0), link(1, 0, 1)],
        sent: 44,
    }
}

fn head() -> Head {
    Head {
        plan: plan("198.18.0.0/30", Method::Udp),
        names: vec![("box.example.test".to_owned(), vec!["198.18.0.1".parse().unwrap()])],
        source: Source { v4: Some([192, 0, 2, 2].into()), v6: None },
        arguments: "picket-probe trace box.example.test <\"198.18.0.2\">".to_owned(),
        started: UNIX_EPOCH + Duration::from_secs(1_795_268_648),
        sums_only: false,
    }
}

fn end() -> End {
    let sums = Summary { paths: 1, reached: 0, left: 2, sent_packets: 9, sent_bytes: 0, answers: 5, duplicates: 0 };
    let took = Duration::from_millis(240);
    End { outcome: Outcome::Incomplete, sums, took, at: UNIX_EPOCH + Duration::from_secs(1_795_268_649) }
}

/// Paths that ended in all ways.
fn paths() -> Vec<Path> {
    let hop = |ttl, replies| Hop { ttl, sent: 2, replies, inherited: false };
    let path = |dst: &str, end, hops| Path { dst: dst.parse().unwrap(), end, hops, sent: 4, mtu: None };
    let near = || hop(1, vec![answer("192.0.2.1", 210, ReplyKind::TimeExceeded)]);
    let far = |kind| hop(2, vec![answer("198.18.0.2", 1_500, kind)]);
    let (nobody, prohibited) =
        (ReplyKind::Unreachable { icmp_type: 3, icmp_code: 3 }, ReplyKind::Unreachable { icmp_type: 3, icmp_code: 10 });
    vec![
        super::tests::path(),
        path("198.18.0.2", PathEnd::Reached, vec![near(), far(ReplyKind::Answer)]),
        path("198.18.0.2", PathEnd::Reached, vec![near(), far(nobody)]),
        path("198.18.0.2", PathEnd::Unreachable, vec![near(), far(prohibited)]),
        path("198.18.0.3", PathEnd::Silent, vec![near()]),
        path("198.18.0.3", PathEnd::Refused, Vec::new()),
        path("198.18.0.3", PathEnd::NoRoute, Vec::new()),
        path("198.18.0.3", PathEnd::Stopped, vec![near()]),
        path("2001:db8::3", PathEnd::Loop, vec![near()]),
    ]
}

fn written(format: PathOutput, paths: &[Path], graph: Option<&Graph>) -> String {
    let (head, mut form, mut out) = (head(), format.form(), Vec::new());
    let began = head.started;
    form.begin(&head, &mut out).unwrap();
    for path in paths {
        form.path(&head, &Traced { path, began, ended: began + Duration::from_secs(1) }, &mut out).unwrap();
    }
    graph.iter().for_each(|graph| form.graph(&head, graph, &mut out).unwrap());
    form.end(&head, &end(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn people_read_it() {
    insta::assert_snapshot!(written(PathOutput::Table, &[path()], Some(&graph())));
}

#[test]
fn programs_read_it() {
    insta::assert_snapshot!(written(PathOutput::Ndjson, &[path()], Some(&graph())));
}

#[test]
fn tools_of_ripe_atlas_read_it() {
    insta::assert_snapshot!(written(PathOutput::Atlas, &paths(), None));
}

#[test]
fn tools_of_nmap_read_it() {
    insta::assert_snapshot!(written(PathOutput::NmapXml, &paths(), None));
}

/// Three paths to one destination: one way, then another one, then the destination is lost.
fn repeated(format: PathOutput, sums_only: bool) -> String {
    let (head, mut form, mut out) = (Head { sums_only, ..head() }, format.form(), Vec::new());
    let plan = TracePlan { queries: 1, retry: false, gap: 2, ..head.plan.clone() };
    let hop =
        |ttl, from: &str, rtt_us| Hop { ttl, sent: 1, replies: vec![answer(from, rtt_us, ReplyKind::TimeExceeded)], inherited: false };
    let silent = Hop { ttl: 2, sent: 1, ..Hop::default() };
    let path = |end, hops| Path { dst: "198.18.0.1".parse().unwrap(), end, hops, sent: 4, mtu: None };
    let paths = [
        path(PathEnd::Reached, vec![hop(1, "192.0.2.1", 210), silent.clone(), hop(3, "192.0.2.9", 1_000), hop(4, "198.18.0.1", 2_000)]),
        path(PathEnd::Reached, vec![hop(1, "192.0.2.1", 190), silent.clone(), hop(3, "192.0.2.10", 1_300), hop(4, "198.18.0.1", 2_345)]),
        path(PathEnd::Silent, vec![hop(1, "192.0.2.1", 199), silent, hop(3, "192.0.2.10", 1_100)]),
    ];
    let mut statistics = Statistics::new("198.18.0.1".parse().unwrap());
    for (cycle, path) in (1..).zip(&paths) {
        let began = head.started + Duration::from_millis(1_000 * cycle);
        let traced = Traced { path, began, ended: began + Duration::from_millis(3) };
        let deltas = statistics.add(path, &plan);
        form.again(&head, &Again { cycle, traced, deltas: &deltas }, &mut out).unwrap();
    }
    form.statistics(&head, &statistics, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn people_read_statistics() {
    insta::assert_snapshot!(repeated(PathOutput::Table, false));
}

#[test]
fn programs_read_what_is_new_in_each_cycle_and_the_sums() {
    let all = repeated(PathOutput::Ndjson, false);
    insta::assert_snapshot!(all);
    assert_eq!(repeated(PathOutput::Ndjson, true), all.split_inclusive('\n').skip(3).collect::<String>());
}

#[test]
fn each_cycle_is_a_result_of_ripe_atlas() {
    let lines = repeated(PathOutput::Atlas, true);
    let times: Vec<&str> = lines.lines().map(|line| line.split("\"timestamp\":").nth(1).unwrap().split(',').next().unwrap()).collect();
    assert_eq!(times, ["1795268649", "1795268650", "1795268651"]);
}
