//! Whole scans of a simulated link in virtual time, through the packet loop.

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use picket_wire::addr::{AddrSet, parse_set};
use picket_wire::job::{ScanOptions, Technique};
use picket_wire::result::{Coverage, NotReached, State, UpReason};
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::units::PacketsPerSecond;

use super::*;
use crate::net::drive::{Drive, DriveEvent, TaskId, TaskSpec, Weight};
use crate::net::pacer::{DEFAULT_BURST, Limits};
use crate::net::ports::{RawIdentity, SourcePorts};
use crate::net::sim::{self, HostRule, OWN_MAC, PortState, Scenario, SimLink};
use crate::packet::arp::{Arp, Operation};
use crate::packet::{eth, ndp};
use crate::scan::engine::ScanEngine;
use crate::scan::report::Done;
use crate::scan::spec::ScanPlan;

const PROXY: Mac = Mac([2, 0, 0, 0, 0, 0x77]);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn near(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn host(last: u8) -> HostRule {
    HostRule::new(near(last), 32)
}

/// Hosts at every fifth address, 50 of them, and no router.
fn fifty() -> Scenario {
    Scenario { hosts: (1..=50).map(|n| host(n * 5)).collect(), gateway_v4: None, ..Scenario::default() }
}

fn fifty_addresses() -> BTreeSet<IpAddr> {
    (1..=50).map(|n| near(n * 5)).collect()
}

/// What a run came to.
struct Run {
    up: BTreeMap<IpAddr, State>,
    late: BTreeSet<IpAddr>,
    hosts: Vec<HostSeen>,
    proxies: Vec<ProxySeen>,
    coverage: Coverage,
    not_reached: BTreeMap<NotReached, u64>,
    done: Done,
    took: Duration,
    drive: Sim,
}

type Sim = Drive<SimLink, Event, VecDeque<DriveEvent<Event>>>;

struct Setup {
    scenario: Scenario,
    targets: &'static str,
    technique: Technique,
    attempts: u8,
    rate: u32,
    deny: &'static str,
    /// Frames that arrive whatever is sent.
    noise: Vec<(u64, Vec<u8>)>,
}

impl Setup {
    fn new(scenario: Scenario, targets: &'static str) -> Self {
        Self { scenario, targets, technique: Technique::Neighbour, attempts: 2, rate: 10_000, deny: "", noise: Vec::new() }
    }

    fn run(self) -> Run {
        let set = |text: &str| if text.is_empty() { AddrSet::new() } else { parse_set(text).unwrap() };
        let spec = TargetSpec { include: set(self.targets), exclude: AddrSet::new(), ports: None, seed: 7 };
        let space = Arc::new(TargetSpace::new(&spec).unwrap());
        let routes = self.scenario.routes();
        let options = ScanOptions { technique: self.technique, attempts: self.attempts };
        let plan = ScanPlan::new(Arc::clone(&space), 0, space.len(), options).unwrap();
        let ports = SourcePorts::default();
        let identity = RawIdentity { source: routes.source(), base_port: ports.base(0), ports, key: [3; 16] };
        let engine = Box::new(ScanEngine::new(&plan, identity).unwrap().on_link(routes.local_link()));
        let rate = Limits { packets: PacketsPerSecond::new(self.rate), bits: None, burst: DEFAULT_BURST };
        let mut link = SimLink::new(self.scenario);
        for (at, frame) in self.noise {
            link.inject(Instant::from_nanos(at * 1_000_000), frame);
        }
        let mut drive = Drive::new(Instant::ZERO, link, rate, routes, VecDeque::new());
        let deny = set(self.deny);
        let gate = Arc::new(move |addr| !deny.contains(addr));
        drive.add(
            Instant::ZERO,
            TaskId::for_tests(1),
            TaskSpec { name: "link".into(), engine, weight: Weight::Bulk, rate, targets: None, gate },
        );
        let over = |_, drive: &mut Sim| drive.sink().iter().any(|event| matches!(event, DriveEvent::Task(_, Event::Done(_))));
        let ended = sim::run(&mut drive, Instant::ZERO, Instant::ZERO + Duration::from_secs(600), over);
        collect(&space, drive, ended)
    }
}

fn collect(space: &TargetSpace, mut drive: Sim, ended: Instant) -> Run {
    let (mut up, mut late, mut hosts, mut proxies) = (BTreeMap::new(), BTreeSet::new(), Vec::new(), Vec::new());
    let (mut coverage, mut not_reached, mut done) = (Coverage::default(), BTreeMap::new(), None);
    for event in core::mem::take(drive.sink()) {
        let DriveEvent::Task(_, event) = event else { continue };
        match event {
            Event::Chunk(report) => {
                coverage += report.coverage();
                for (why, runs) in &report.not_reached {
                    *not_reached.entry(*why).or_default() += runs.count();
                }
                up.extend(report.answers.iter().map(|a| (space.target(report.from + a.offset).unwrap().addr, a.state)));
            }
            Event::Hosts(seen) => hosts.extend(seen),
            Event::Proxy(proxy) => proxies.push(proxy),
            Event::Late(answer) => drop(late.insert(space.target(answer.position).unwrap().addr)),
            Event::Paths(chunk) => panic!("nothing is traced: {chunk:?}"),
            Event::Done(end) => done = Some(end),
        }
    }
    assert!(coverage.adds_up());
    let done = done.expect("the run came to its end");
    assert_eq!((done.next, coverage.asked), (space.len(), space.len()));
    Run { up, late, hosts, proxies, coverage, not_reached, done, took: ended.saturating_since(Instant::ZERO), drive }
}

impl Run {
    fn addresses(&self) -> BTreeSet<IpAddr> {
        self.up.keys().copied().collect()
    }

    /// How often each kind of frame left: ARP, neighbour solicitations, everything else.
    fn sent(&mut self) -> (usize, usize, usize) {
        let (mut arp, mut ns, mut other) = (0, 0, 0);
        for (_, bytes) in &self.drive.link().wire {
            let frame = eth::Frame::parse(bytes).unwrap();
            match (frame.ethertype(), ndp::Neighbour::parse(frame.payload())) {
                (eth::TYPE_ARP, _) => arp += 1,
                (_, Some(_)) => ns += 1,
                _ => other += 1,
            }
        }
        (arp, ns, other)
    }
}

fn reply(sender: IpAddr, mac: Mac, target: [u8; 4], target_mac: Mac) -> Vec<u8> {
    let IpAddr::V4(sender) = sender else { panic!("ARP is for IPv4") };
    let arp = Arp { operation: Operation::Reply, sender_mac: mac, sender, target_mac, target: target.into() };
    [&eth::header(OWN_MAC, mac, eth::TYPE_ARP)[..], &arp.emit()[..]].concat()
}

#[test]
fn a_network_of_fifty_hosts_is_found_as_it_is_and_soon() {
    let mut run = Setup::new(fifty(), "192.0.2.0/24").run();
    assert_eq!(run.addresses(), fifty_addresses());
    assert!(run.up.values().all(|state| *state == State::UpBy(UpReason::Arp)));
    let macs: BTreeMap<IpAddr, Option<HardwareAddress>> = run.hosts.iter().map(|host| (host.addr, host.mac)).collect();
    let scenario = fifty();
    assert_eq!(macs, fifty_addresses().iter().map(|ip| (*ip, scenario.mac(*ip).map(|mac| HardwareAddress(mac.0)))).collect());
    assert!(run.hosts.iter().all(|host| host.how == SeenBy::Arp));
    // Our own address is nobody's on the link.
    assert_eq!(run.not_reached, BTreeMap::from([(NotReached::NoRoute, 1)]));
    assert!(run.proxies.is_empty());
    assert!(run.took < ms(250), "255 addresses at 10 kpps, the silent ones twice, and the wait: {:?}", run.took);
    let (arp, ns, other) = run.sent();
    assert_eq!((arp, ns, other), (255 + 205, 0, 0), "each is asked once, the silent ones twice");
    assert_eq!(run.drive.stats().questions, 0, "the loop itself had nothing to ask");
}

#[test]
fn neighbours_of_ipv6_are_found_by_solicitation() {
    let hosts = [3u16, 9, 77].map(|n| HostRule::new(format!("2001:db8::{n:x}").parse().unwrap(), 128)).to_vec();
    let mut run = Setup::new(Scenario { hosts, ..Scenario::default() }, "2001:db8::/120").run();
    let found: BTreeSet<String> = run.addresses().iter().map(ToString::to_string).collect();
    // The router is there too.
    assert_eq!(found, ["2001:db8::1", "2001:db8::3", "2001:db8::9", "2001:db8::4d"].map(str::to_owned).into());
    assert!(run.up.values().all(|state| *state == State::UpBy(UpReason::Neighbour)));
    assert!(run.hosts.iter().all(|host| host.how == SeenBy::Neighbour && host.mac.is_some()));
    let (arp, ns, other) = run.sent();
    assert_eq!((arp, other), (0, 0));
    assert_eq!(ns, 255 + 251);
}

#[test]
fn loss_is_met_by_asking_again_and_duplicates_count_once() {
    let mut scenario = fifty();
    scenario.hosts.iter_mut().for_each(|host| (host.loss, host.duplicates) = (100, 500));
    let run = Setup { attempts: 6, ..Setup::new(scenario, "192.0.2.0/24") }.run();
    assert_eq!(run.addresses(), fifty_addresses());
    assert!(run.done.stats.duplicates > 5, "{}", run.done.stats.duplicates);
    assert_eq!(run.hosts.len(), 50, "each host is told once");
}

#[test]
fn stations_that_sleep_between_beacons_are_waited_for() {
    let mut scenario = fifty();
    for host in scenario.hosts.iter_mut().step_by(3) {
        host.resolve_time = ms(120);
    }
    let run = Setup { rate: 1_000, ..Setup::new(scenario, "192.0.2.0/24") }.run();
    let found: BTreeSet<IpAddr> = run.addresses().union(&run.late).copied().collect();
    assert_eq!(found, fifty_addresses());
    assert!(run.took > ms(700), "the wait has grown with what was measured: {:?}", run.took);
}

#[test]
fn a_link_on_which_nobody_answers_is_given_up_soon() {
    let scenario = Scenario { gateway_v4: None, ..Scenario::default() };
    let run = Setup::new(scenario, "192.0.2.0/24").run();
    assert_eq!((run.coverage.up, run.coverage.silent), (0, 255));
    assert!(run.took < ms(600), "{:?}", run.took);
}

#[test]
fn a_proxy_for_everything_hides_no_host_and_makes_none() {
    let mut hosts: Vec<HostRule> = (1..=50).map(|n| host(n * 5)).collect();
    // Behind the proxy one answers from afar; for all others it answers, but nobody is there.
    hosts.push(HostRule { mac: Some(PROXY), rtt: ms(180), ..host(201) });
    hosts.push(HostRule { mac: Some(PROXY), echo: false, other_ports: PortState::Silent, ..HostRule::new(near(0), 24) });
    let scenario = Scenario { hosts, gateway_v4: None, ..Scenario::default() };
    for rate in [50, 10_000] {
        let mut run = Setup { rate, ..Setup::new(scenario.clone(), "192.0.2.0/24") }.run();
        let mut expected = fifty_addresses();
        expected.insert(near(201));
        assert_eq!(run.addresses(), expected, "at {rate} pps");
        assert_eq!(run.up[&near(201)], State::Up, "by echo");
        assert_eq!(run.up[&near(5)], State::UpBy(UpReason::Arp));
        let [proxy] = run.proxies[..] else { panic!("{:?}", run.proxies) };
        assert_eq!((proxy.mac, proxy.addresses, proxy.reported), (HardwareAddress(PROXY.0), 205, 0), "at {rate} pps");
        let (evidence, hosts): (Vec<HostSeen>, Vec<HostSeen>) = run.hosts.iter().partition(|host| host.how == SeenBy::ProxyArp);
        assert!(evidence.len() <= crate::net::proxy::MANY && evidence.iter().all(|host| host.mac == Some(HardwareAddress(PROXY.0))));
        assert_eq!(hosts.iter().map(|host| host.addr).collect::<BTreeSet<_>>(), fifty_addresses());
        let (arp, _, other) = run.sent();
        assert_eq!(other, 204 * 2 + 1, "echo requests to what the proxy answers for");
        assert!(arp <= 256 + 1, "{arp}");
        assert_eq!(run.coverage.silent, 204);
    }
}

#[test]
fn a_proxy_that_is_found_out_after_reports_is_said_to_be() {
    let proxied =
        |last, prefix| HostRule { mac: Some(PROXY), echo: false, other_ports: PortState::Silent, ..HostRule::new(near(last), prefix) };
    // Real hosts are the most, so that the proxy is not conspicuous before it has answered for sixteen.
    let mut hosts: Vec<HostRule> = (0..25).map(|n| proxied(n * 8 + 5, 32)).collect();
    hosts.extend((100..250).map(host).filter(|rule| !hosts.iter().any(|other| other.network == rule.network)).collect::<Vec<_>>());
    let proxied: BTreeSet<IpAddr> = (0..25).map(|n| near(n * 8 + 5)).collect();
    let run = Setup { rate: 30, ..Setup::new(Scenario { hosts, ..Scenario::default() }, "192.0.2.0/24") }.run();
    let [proxy] = run.proxies[..] else { panic!("{:?}", run.proxies) };
    assert_eq!(proxy.addresses, 25);
    assert!(proxy.reported > 0 && proxy.reported < 16, "{proxy:?}");
    assert_eq!(run.addresses().intersection(&proxied).count() as u64, proxy.reported, "those reports stand");
    assert!(proxy.to_string().contains("02:00:00:00:00:77 answers for 25 addresses"), "{proxy}");
}

#[test]
fn a_proxy_that_answers_after_the_reports_makes_no_hosts() {
    // As Linux does it: the proxy lets the host itself come first.
    let mut hosts: Vec<HostRule> = (1..=50).map(|n| host(n * 5)).collect();
    hosts.push(HostRule { mac: Some(PROXY), resolve_time: ms(700), echo: false, ..HostRule::new(near(0), 24) });
    // The last answers come while others still wait: the scan is long enough for that.
    let scenario = Scenario { hosts, gateway_v4: None, ..Scenario::default() };
    let run = Setup { rate: 100, ..Setup::new(scenario, "192.0.2.0/24") }.run();
    assert_eq!(run.addresses(), fifty_addresses());
    assert!(run.late.is_empty(), "{:?}", run.late);
    assert!(matches!(run.proxies[..], [proxy] if proxy.reported == 0 && proxy.addresses >= 4), "{:?}", run.proxies);
}

#[test]
fn a_host_with_several_addresses_is_no_proxy() {
    let mut scenario = fifty();
    for host in scenario.hosts.iter_mut().take(12) {
        host.mac = Some(PROXY);
    }
    let run = Setup::new(scenario, "192.0.2.0/24").run();
    assert_eq!(run.addresses(), fifty_addresses());
    assert!(run.proxies.is_empty());
}

#[test]
fn forged_answers_and_announcements_are_not_ours() {
    let forged = Mac([2, 0, 0, 0, 0, 0xbb]);
    let own = [192, 0, 2, 2];
    let mut noise = Vec::new();
    for at in 0..200 {
        // For an address never asked, to another station, to another address, an announcement, and before anything was sent.
        noise.push((at, reply(IpAddr::from([198, 18, 0, 9]), forged, own, OWN_MAC)));
        noise.push((at, reply(near(9), forged, own, Mac([2, 9, 9, 9, 9, 9]))));
        noise.push((at, reply(near(9), forged, [192, 0, 2, 3], OWN_MAC)));
        noise.push((at, reply(near(9), forged, [192, 0, 2, 9], Mac::BROADCAST)));
        noise.push((at, reply(near(9), Mac::BROADCAST, own, OWN_MAC)));
    }
    noise.push((0, reply(near(9), forged, own, OWN_MAC)));
    let run = Setup { noise, ..Setup::new(fifty(), "192.0.2.8-255") }.run();
    let mut expected = fifty_addresses();
    expected.remove(&near(5));
    assert_eq!(run.addresses(), expected);
    assert!(run.hosts.iter().all(|host| host.mac != Some(HardwareAddress(forged.0))));
}

#[test]
fn policy_judges_the_address_that_is_asked_for() {
    let mut run = Setup { deny: "192.0.2.0/25", ..Setup::new(fifty(), "192.0.2.0/24") }.run();
    assert_eq!(run.addresses(), fifty_addresses().into_iter().filter(|ip| *ip >= near(128)).collect());
    assert_eq!(run.coverage.refused, 127, "half of it without our own address, which is not asked at all");
    for (_, bytes) in &run.drive.link().wire {
        let arp = Arp::parse(eth::Frame::parse(bytes).unwrap().payload()).unwrap();
        assert!(arp.target >= Ipv4Addr::new(192, 0, 2, 128), "{arp:?}");
    }
}

#[test]
fn what_is_not_on_the_link_is_not_reached_by_neighbour() {
    let mut run = Setup::new(fifty(), "198.18.0.0/28").run();
    assert_eq!(run.not_reached, BTreeMap::from([(NotReached::NoRoute, 16)]));
    assert_eq!(run.sent(), (0, 0, 0));
}

#[test]
fn answers_serve_the_loop_as_well() {
    let mut run = Setup::new(fifty(), "192.0.2.0/24").run();
    // A host that was found is sent to without another question.
    let now = Instant::ZERO + run.took;
    let routes = fifty().routes();
    let spec = TargetSpec { include: parse_set("192.0.2.5").unwrap(), exclude: AddrSet::new(), ports: None, seed: 1 };
    let space = Arc::new(TargetSpace::new(&spec).unwrap());
    let plan = ScanPlan::new(space, 0, 1, ScanOptions { technique: Technique::Echo, attempts: 1 }).unwrap();
    let ports = SourcePorts::default();
    let identity = RawIdentity { source: routes.source(), base_port: ports.base(1), ports, key: [4; 16] };
    let engine = Box::new(ScanEngine::new(&plan, identity).unwrap());
    let task =
        TaskSpec { name: "echo".into(), engine, weight: Weight::Bulk, rate: Limits::UNLIMITED, targets: None, gate: Arc::new(|_| true) };
    run.drive.add(now, TaskId::for_tests(2), task);
    sim::run(&mut run.drive, now, now + ms(500), |_, _| false);
    assert!(run.drive.sink().iter().any(|event| matches!(event, DriveEvent::Task(_, Event::Chunk(report)) if report.answers.len() == 1)));
    assert_eq!(run.drive.stats().questions, 0);
}
