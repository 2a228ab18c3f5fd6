//! Host discovery on a real link: everything that is there is found, nothing that is not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use picket_packet::eth::Mac;
use picket_probe::config::{InterfaceConfig, ShaperUse, XdpUse};
use picket_probe::discover::engine::LinkDiscovery;
use picket_probe::discover::{LinkPlan as DiscoverPlan, gate};
use picket_probe::net::drive::{DriveEvent, TaskSpec, Weight};
use picket_probe::net::engine::Mapped;
use picket_probe::net::pacer::Limits;
use picket_probe::net::ports::{RawIdentity, SourcePorts};
use picket_probe::scan::engine::ScanEngine;
use picket_probe::scan::report::{Event, ProxySeen};
use picket_probe::scan::spec::ScanPlan;
use picket_probe::station::{self, Station};
use picket_tests::lab::link::{Link, LinkPlan};
use picket_tests::lab::{Lab, require_root};
use picket_wire::addr::{AddrSet, parse_set};
use picket_wire::host::{HostSeen, SeenBy};
use picket_wire::job::{ScanOptions, Technique};
use picket_wire::policy::AddressPolicy;
use picket_wire::result::Coverage;
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::units::{BitsPerSecond, PacketsPerSecond};

fn interface() -> InterfaceConfig {
    InterfaceConfig {
        name: Some(Link::DEVICE.to_owned()),
        packets: PacketsPerSecond::new(10_000).unwrap(),
        bits: BitsPerSecond::new(1_000_000_000).unwrap(),
        xdp: XdpUse::Off,
        shaper: ShaperUse::Off,
    }
}

#[derive(Default)]
struct Found {
    up: BTreeSet<IpAddr>,
    hosts: BTreeMap<IpAddr, HostSeen>,
    proxies: Vec<ProxySeen>,
    coverage: Coverage,
    took: Duration,
}

/// Takes what is told until the end.
fn gather(events: &std::sync::mpsc::Receiver<DriveEvent<Event>>, space: Option<&TargetSpace>, found: &mut Found) {
    loop {
        match events.recv_timeout(Duration::from_secs(30)).expect("the run comes to its end") {
            DriveEvent::Task(_, Event::Chunk(report)) => {
                found.coverage += report.coverage();
                let addr = |offset| space.unwrap().target(report.from + offset).unwrap().addr;
                found.up.extend(report.answers.iter().map(|answer| addr(answer.offset)));
            }
            DriveEvent::Task(_, Event::Hosts(hosts)) => found.hosts.extend(hosts.into_iter().map(|host| (host.addr, host))),
            DriveEvent::Task(_, Event::Proxy(proxy)) => found.proxies.push(proxy),
            DriveEvent::Task(_, Event::Done(_)) => return,
            _ => {}
        }
    }
}

struct Channel(std::sync::mpsc::Sender<DriveEvent<Event>>);

impl picket_probe::net::drive::EventSink<Event> for Channel {
    fn offer(&mut self, event: DriveEvent<Event>) -> Result<(), DriveEvent<Event>> {
        // Who does not listen any more has what it wanted.
        let _ = self.0.send(event);
        Ok(())
    }
}

fn scan(link: &Link, targets: &str, technique: Technique) -> Found {
    let work = || {
        let spec = TargetSpec { include: parse_set(targets).unwrap(), exclude: AddrSet::new(), ports: None, seed: 5 };
        let space = Arc::new(TargetSpace::new(&spec).unwrap());
        let started = Instant::now();
        let (sender, events) = std::sync::mpsc::channel();
        let station = Station::open(&interface(), SourcePorts::default(), Channel(sender)).unwrap();
        let plan = ScanPlan::new(Arc::clone(&space), 0, space.len(), ScanOptions { technique, attempts: 2 }).unwrap();
        let ports = station.ports();
        let identity = RawIdentity { source: station.source(), base_port: ports.base(0), ports, key: [9; 16] };
        let engine = Box::new(ScanEngine::new(&plan, identity).unwrap().on_link(station.local_link()));
        let rate = Limits::UNLIMITED;
        let task = TaskSpec { name: "link".into(), engine, weight: Weight::Bulk, rate, targets: None, gate: Arc::new(|_| true) };
        station.handle().add(task).unwrap();
        let mut found = Found::default();
        gather(&events, Some(&space), &mut found);
        found.took = started.elapsed();
        found
    };
    link.probe().enter(work).unwrap()
}

fn macs(found: &Found) -> BTreeMap<IpAddr, [u8; 6]> {
    found.hosts.values().filter(|host| host.how != SeenBy::ProxyArp).map(|host| (host.addr, host.mac.unwrap().0)).collect()
}

#[test]
fn all_hosts_of_a_network_are_found_and_no_other() {
    if !require_root() {
        return;
    }
    let lab = Lab::new("link").unwrap();
    let link = Link::new(&lab, LinkPlan { hosts: 50, ipv6: false, proxy: false }).unwrap();
    let truth: BTreeMap<IpAddr, [u8; 6]> = link.v4().iter().map(|(addr, mac)| (IpAddr::V4(*addr), *mac)).collect();
    for technique in [Technique::Neighbour, Technique::Discover] {
        let found = scan(&link, Link::NETWORK, technique);
        assert_eq!(found.up, truth.keys().copied().collect(), "{technique:?}");
        assert_eq!(macs(&found), truth, "{technique:?}");
        assert!(found.proxies.is_empty());
        assert_eq!((found.coverage.asked, found.coverage.up, found.coverage.not_reached), (256, 50, 1), "the probe itself is no neighbour");
        // As long as the slowest machine may take and the wait for silent ones does not.
        assert!(found.took < Duration::from_secs(5), "{:?}", found.took);
        eprintln!("{technique:?}: {} hosts in {:?}", found.up.len(), found.took);
    }
}

#[test]
fn a_real_proxy_is_found_out_and_the_host_behind_it_found() {
    if !require_root() {
        return;
    }
    let lab = Lab::new("linkproxy").unwrap();
    let link = Link::new(&lab, LinkPlan { hosts: 20, ipv6: false, proxy: true }).unwrap();
    for technique in [Technique::Neighbour, Technique::Discover] {
        let found = scan(&link, Link::NETWORK, technique);
        let mut expected: BTreeSet<IpAddr> = link.v4().keys().map(|addr| IpAddr::V4(*addr)).collect();
        expected.insert(Link::BEHIND.into());
        assert_eq!(found.up, expected, "{technique:?}");
        let [proxy] = &found.proxies[..] else { panic!("{:?}", found.proxies) };
        assert_eq!(proxy.mac.0, link.v4()[&std::net::Ipv4Addr::new(198, 18, 7, 1)]);
        // Its own address is among those that it answers for.
        assert_eq!((proxy.addresses, proxy.reported), (65, 0));
    }
}

#[test]
fn hosts_of_ipv6_are_found_without_asking_for_each() {
    if !require_root() {
        return;
    }
    let lab = Lab::new("linkv6").unwrap();
    let link = Link::new(&lab, LinkPlan { hosts: 20, ipv6: true, proxy: false }).unwrap();
    let seeds: Vec<(IpAddr, Mac)> = link.v4().iter().map(|(addr, mac)| (IpAddr::V4(*addr), Mac(*mac))).collect();
    let truth: BTreeMap<IpAddr, [u8; 6]> = link.v6().iter().map(|(addr, mac)| (IpAddr::V6(*addr), *mac)).collect();
    // With and without an answer to all nodes: who is silent to that is guessed, if it can be.
    for answers in [true, false] {
        let ignore = if answers { "0" } else { "1" };
        link.hosts().sysctls(&[("net/ipv6/icmp/echo_ignore_multicast", ignore)]).unwrap();
        let found = discover(&link, seeds.clone());
        let guessable = |addr: &IpAddr| {
            let IpAddr::V6(addr) = addr else { return false };
            !addr.is_unicast_link_local() && (1..=20).filter(|n| n % 3 != 2).any(|n| Link::v6_of(n) == *addr)
        };
        let expected: BTreeMap<IpAddr, [u8; 6]> =
            truth.iter().filter(|(addr, _)| answers || guessable(addr)).map(|(addr, mac)| (*addr, *mac)).collect();
        let overheard = |host: &&HostSeen| host.how == SeenBy::Multicast;
        // What is overheard is there, too, whenever it speaks.
        let strangers: Vec<_> = found.hosts.values().filter(overheard).filter(|host| !truth.contains_key(&host.addr)).collect();
        assert!(strangers.is_empty(), "{strangers:?} beside {truth:?}");
        let asked: BTreeMap<IpAddr, [u8; 6]> = macs(&found)
            .into_iter()
            .filter(|(addr, _)| found.hosts[addr].how != SeenBy::Multicast || expected.contains_key(addr))
            .collect();
        assert_eq!(asked, expected, "answering all nodes: {answers}");
        let how = if answers { SeenBy::AllNodes } else { SeenBy::Guessed };
        assert!(found.hosts.values().any(|host| host.how == how));
    }
}

fn discover(link: &Link, seeds: Vec<(IpAddr, Mac)>) -> Found {
    let work = || {
        let (sender, events) = std::sync::mpsc::channel();
        let station = Station::open(&interface(), SourcePorts::default(), Channel(sender)).unwrap();
        let local = station.local_link().unwrap();
        let policy = AddressPolicy { allow: vec![Link::NETWORK6.parse().unwrap()], deny: Vec::new() };
        let gate = Arc::new(gate::permits(&[&policy], &local));
        let engine = LinkDiscovery::new(DiscoverPlan { seeds, ..DiscoverPlan::new(local, [8; 16]) });
        let engine = Box::new(Mapped::new(engine, |event| station::scan_event(event).ok()));
        let task = TaskSpec { name: "link".into(), engine, weight: Weight::Bulk, rate: Limits::UNLIMITED, targets: None, gate };
        station.handle().add(task).unwrap();
        let mut found = Found::default();
        gather(&events, None, &mut found);
        found
    };
    link.probe().enter(work).unwrap()
}
