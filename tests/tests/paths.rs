//! `picket-probe trace` beside scamper and mtr, through routers that really forward: the same paths.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use picket_tests::lab::chain::{Chain, Family, Plan};
use picket_tests::lab::watch::{Content, Direction, Watch};
use picket_tests::lab::{Proc, Run, require_root};
use picket_tests::system::paths::{self, Path};

/// The others wait for silent hops, for seconds each.
const LONG: Duration = Duration::from_secs(120);
const RATE: &str = "1kpps";

fn ours(chain: &Chain, dst: IpAddr, args: &[&str]) -> Path {
    let run = paths::probe(Chain::DEVICE, RATE, &[&[dst.to_string().as_str()], args].concat()).unwrap();
    let text = chain.probe().run(&run, LONG).unwrap().ok().unwrap();
    let [path] = paths::read_probe(&text).unwrap().try_into().unwrap();
    path
}

#[test]
fn silent_and_limited_hops_are_told_as_scamper_and_mtr_tell_them() {
    const SILENT: usize = 3;
    const LIMITED: usize = 5;
    if !require_root() {
        return;
    }
    let chain = Chain::new("paths", Plan::hops(8).silent(3).limited(5)).unwrap();
    let mut others: Vec<(Family, Proc, Proc)> = Vec::new();
    for family in Family::ALL {
        // A router's limit is one for each address that it answers.
        let [first, second] = [1, 2].map(|number| chain.another(family, number).unwrap().to_string());
        let dst = chain.destination(family).to_string();
        let scamper = paths::scamper(1_000, &[format!("trace -P icmp-paris -q 1 -S {first} {dst}")]);
        let mtr = Run::new("mtr").args(["-n", "-c", "1", "--report", "-a", &second, &dst]);
        others.push((family, chain.probe().spawn(&scamper).unwrap(), chain.probe().spawn(&mtr).unwrap()));
    }
    for (family, scamper, mtr) in others {
        let (dst, truth) = (chain.destination(family), chain.truth(family));
        let path = ours(&chain, dst, &[]);
        assert_eq!((path.reached, path.way()), (true, truth.clone()), "{path:?}");
        for (ttl, hop) in (1..).zip(&path.hops) {
            let answers = match ttl {
                SILENT => 0..=0,
                LIMITED => 1..=2,
                _ => 3..=3,
            };
            assert!(hop.sent == Some(3) && answers.contains(&hop.from.len()), "hop {ttl} of {path:?}");
        }
        let [theirs] = paths::read_scamper(&scamper.finish(LONG).unwrap().ok().unwrap()).unwrap().try_into().unwrap();
        assert_eq!((theirs.reached, theirs.way()), (true, truth.clone()), "scamper: {theirs:?}");
        let theirs = paths::read_mtr(dst, &mtr.finish(LONG).unwrap().ok().unwrap()).unwrap();
        assert_eq!((theirs.reached, theirs.way()), (true, truth), "mtr: {theirs:?}");
    }
}

#[test]
fn a_flow_takes_the_branch_that_scamper_sees_it_take() {
    const FLOWS: usize = 24;
    const FORK: usize = 3;
    if !require_root() {
        return;
    }
    let chain = Chain::new("branch", Plan::hops(5).fork(3)).unwrap();
    for family in Family::ALL {
        let (dst, truth) = (chain.destination(family), chain.truth(family));
        let watch = Watch::start(chain.probe(), Chain::DEVICE, Direction::Out, Some(&format!("udp and dst host {dst}"))).unwrap();
        let flow = |flow: usize| ours(&chain, dst, &["--method", "udp", "-q", "4", "--flow", &flow.to_string()]);
        let ours: Vec<Path> = (0..FLOWS).map(flow).collect();
        let mut ports = Vec::new();
        for packet in watch.stop().unwrap().packets() {
            let Content::Udp { source, destination } = packet.content else { panic!("{packet:?}") };
            if ports.last() != Some(&(source, destination)) {
                ports.push((source, destination));
            }
        }
        assert_eq!(ports.len(), FLOWS, "every path is one flow, and each another one: {ports:?}");
        let command = |(source, destination): &(u16, u16)| format!("trace -P udp-paris -q 1 -s {source} -d {destination} {dst}");
        let scamper = paths::scamper(1_000, &ports.iter().map(command).collect::<Vec<_>>());
        let theirs = paths::read_scamper(&chain.probe().run(&scamper, LONG).unwrap().ok().unwrap()).unwrap();
        assert_eq!(theirs.len(), FLOWS);
        let mut seen = BTreeSet::new();
        for (path, (source, _)) in ours.iter().zip(&ports) {
            assert!(path.reached && path.hops.iter().all(|hop| hop.from.len() == 4), "{path:?}");
            let theirs = theirs.iter().find(|theirs| theirs.source_port == Some(u64::from(*source))).unwrap();
            assert_eq!(path.way(), theirs.way(), "of four packets of source port {source} all took one way, and scamper's the same");
            seen.extend(path.way()[FORK - 1].clone());
        }
        assert_eq!(seen, truth[FORK - 1], "{FLOWS} flows over two ways");
    }
}

#[test]
fn a_long_cable_delays_what_passes_and_changes_nothing() {
    const ONE_WAY: Duration = Duration::from_millis(40);
    if !require_root() {
        return;
    }
    let chain = Chain::new("cable", Plan::hops(2).long(1, ONE_WAY)).unwrap();
    for family in Family::ALL {
        let dst = chain.destination(family);
        // A closed port of a machine two hops away: what comes back is the round trip of a datagram and an ICMP error.
        let begun = Instant::now();
        let refused = chain.probe().enter(|| {
            let any = if dst.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect((dst, 9)).unwrap();
            socket.set_read_timeout(Some(LONG)).unwrap();
            socket.send(&[7; 1_400]).unwrap();
            socket.recv(&mut [0; 1_500]).unwrap_err().kind()
        });
        assert_eq!(refused.unwrap(), std::io::ErrorKind::ConnectionRefused);
        assert!(begun.elapsed() >= 2 * ONE_WAY, "{:?}", begun.elapsed());
        let path = ours(&chain, dst, &[]);
        assert_eq!((path.reached, path.way()), (true, chain.truth(family)));
    }
    assert_eq!(chain.lost(), 0);
}

/// How large packets may be, as `picket-probe trace --mtu` tells it.
fn mtu(chain: &Chain, dst: IpAddr, method: &str) -> serde_json::Value {
    let run = paths::probe(Chain::DEVICE, RATE, &[&dst.to_string(), "--mtu", "--method", method]).unwrap();
    let text = chain.probe().run(&run, LONG).unwrap().ok().unwrap();
    let path: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(path["end"], "reached", "{path}");
    path["mtu"].clone()
}

#[test]
fn how_large_packets_may_be_is_found_where_routers_tell_and_where_they_do_not() {
    if !require_root() {
        return;
    }
    let each = || Family::ALL.into_iter().flat_map(|family| ["icmp", "udp"].map(|method| (family, method)));
    let chain = Chain::new("mtu", Plan::hops(5).narrow(3, 1_450).narrow(5, 1_400)).unwrap();
    for (family, method) in each() {
        let routers = chain.truth(family);
        let limit = |hop: usize, bytes: u16| serde_json::json!({ "from": routers[hop - 1].first(), "bytes": bytes });
        let told = serde_json::json!({ "bytes": 1_400, "ttl": 64, "limits": [limit(2, 1_450), limit(4, 1_400)], "silent": false });
        assert_eq!(mtu(&chain, chain.destination(family), method), told, "{family:?} by {method}");
    }
    drop(chain);
    // The probe's own link, which says so at once, and a black hole behind it.
    let chain = Chain::new("hole", Plan::hops(4).narrow(1, 1_490).narrow(4, 1_333).hushed(3)).unwrap();
    for (family, method) in each() {
        let told = serde_json::json!({ "bytes": 1_333, "ttl": 64, "limits": [], "silent": true });
        assert_eq!(mtu(&chain, chain.destination(family), method), told, "{family:?} by {method}");
    }
}
