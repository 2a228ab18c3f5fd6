//! Whole runs on a simulated link in virtual time, through the packet loop.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use picket_wire::addr::parse_set;
use picket_wire::host::{HardwareAddress, SeenBy};
use picket_wire::policy::AddressPolicy;
use proptest::prelude::*;

use super::engine::LinkDiscovery;
use super::guess;
use super::*;
use crate::net::drive::{Drive, DriveEvent, TaskId, TaskSpec, Weight};
use crate::net::engine::Engine;
use crate::net::pacer::{DEFAULT_BURST, Limits};
use crate::net::sim::{self, HostRule, OWN_MAC, Scenario, SimLink};
use crate::net::time::Instant;
use crate::packet::ndp::{self, RouterAdvert};
use crate::packet::{eth, guard, ip, mld};

const MAC: [Mac; 4] = [
    Mac([0x00, 0x16, 0x3e, 0, 0, 1]),
    Mac([0x00, 0x16, 0x3e, 0, 0, 2]),
    Mac([0x00, 0x16, 0x3e, 0, 0, 3]),
    Mac([0x00, 0x16, 0x3e, 0, 0, 4]),
];
const PROXY: Mac = Mac([2, 0, 0, 0, 0, 0x77]);

fn addr(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn prefix() -> Ipv6Addr {
    addr("2001:db8::")
}

fn own(identifier: u64) -> Ipv6Addr {
    guess::with_identifier(prefix(), identifier)
}

/// A host with one address, silent to all nodes unless it is listed there.
fn host(addr: Ipv6Addr, mac: Mac) -> HostRule {
    HostRule { mac: Some(mac), ..HostRule::new(addr.into(), 128) }
}

fn frame(mac: Mac, packet: &[u8]) -> Vec<u8> {
    [&eth::header(Mac::multicast(ALL_NODES.into()), mac, eth::TYPE_IPV6)[..], packet].concat()
}

type Sim = Drive<SimLink, Event, VecDeque<DriveEvent<Event>>>;

struct Setup {
    scenario: Scenario,
    seeds: Vec<(IpAddr, Mac)>,
    within: Option<&'static str>,
    /// Frames that arrive whatever is sent, by milliseconds.
    noise: Vec<(u64, Vec<u8>)>,
    policy: AddressPolicy,
}

struct Run {
    hosts: BTreeMap<IpAddr, (Option<HardwareAddress>, SeenBy)>,
    routers: Vec<RouterSeen>,
    proxies: Vec<(HardwareAddress, u64)>,
    summary: Summary,
    took: Duration,
    wire: Vec<Vec<u8>>,
}

fn policy(allow: &str, deny: &str) -> AddressPolicy {
    let set = |text: &str| text.split_whitespace().map(|net| net.parse().unwrap()).collect();
    AddressPolicy { allow: set(allow), deny: set(deny) }
}

impl Setup {
    fn new(scenario: Scenario) -> Self {
        let policy = policy("2001:db8::/32 fe80::/10 192.0.2.0/24", "");
        Self { scenario, seeds: Vec::new(), within: None, noise: Vec::new(), policy }
    }

    fn run(self) -> Run {
        let routes = self.scenario.routes();
        let link = routes.local_link().unwrap();
        let gate = Arc::new(gate::permits(&[&self.policy], &link));
        let within = self.within.map(|text| parse_set(text).unwrap());
        let plan = LinkPlan { within, seeds: self.seeds, ..LinkPlan::new(link, [5; 16]) };
        let engine = Box::new(LinkDiscovery::new(plan));
        let mut link = SimLink::new(self.scenario);
        for (at, bytes) in self.noise {
            link.inject(Instant::from_nanos(at * 1_000_000), bytes);
        }
        let rate = Limits { packets: picket_wire::units::PacketsPerSecond::new(1_000), bits: None, burst: DEFAULT_BURST };
        let mut drive = Drive::new(Instant::ZERO, link, rate, routes, VecDeque::new());
        drive.add(
            Instant::ZERO,
            TaskId::for_tests(1),
            TaskSpec { name: "link".into(), engine, weight: Weight::Bulk, rate, targets: None, gate },
        );
        let over = |_, drive: &mut Sim| drive.sink().iter().any(|event| matches!(event, DriveEvent::Task(_, Event::Done(_))));
        let ended = sim::run(&mut drive, Instant::ZERO, Instant::ZERO + Duration::from_secs(60), over);
        let wire = drive.link().wire.iter().map(|(_, bytes)| bytes.clone()).collect();
        let mut run = Run {
            hosts: BTreeMap::new(),
            routers: Vec::new(),
            proxies: Vec::new(),
            summary: Summary::default(),
            took: ended.saturating_since(Instant::ZERO),
            wire,
        };
        let mut done = false;
        for event in core::mem::take(drive.sink()) {
            let DriveEvent::Task(_, event) = event else { continue };
            assert!(!done, "nothing comes after the end");
            match event {
                Event::Hosts(hosts) => {
                    for host in hosts {
                        assert_eq!(run.hosts.insert(host.addr, (host.mac, host.how)), None, "each address is told once");
                    }
                }
                Event::Router(router) => run.routers.push(router),
                Event::Proxy { mac, addresses } => run.proxies.push((mac, addresses)),
                Event::Done(summary) => (done, run.summary) = (true, summary),
            }
        }
        assert!(done, "the run came to its end");
        assert_eq!(run.summary.hosts, run.hosts.len() as u64);
        run
    }
}

impl Run {
    fn how(&self, addr: Ipv6Addr) -> Option<SeenBy> {
        self.hosts.get(&addr.into()).map(|(_, how)| *how)
    }

    /// What was asked for, or sent to.
    fn destinations(&self) -> Vec<IpAddr> {
        self.wire.iter().filter_map(|bytes| guard::destination(&bytes[eth::HEADER_LEN..])).collect()
    }
}

/// Nobody but who is listed.
fn link(hosts: Vec<HostRule>, to_all: &[&str]) -> Scenario {
    Scenario { hosts, gateway_v4: None, gateway_v6: None, all_nodes: to_all.iter().map(|text| addr(text)).collect(), ..Scenario::default() }
}

#[test]
fn who_answers_to_all_nodes_is_told_with_its_hardware_address() {
    let privacy = "2001:db8::1234:5678:9abc:def0";
    let hosts = vec![host(addr("fe80::a1"), MAC[0]), host(addr(privacy), MAC[0]), host(addr("fe80::a2"), MAC[1])];
    let run = Setup::new(link(hosts, &["fe80::a1", privacy, "fe80::a2"])).run();
    let mac = |n: usize| Some(HardwareAddress(MAC[n].0));
    let expected = [(addr("fe80::a1"), mac(0)), (addr(privacy), mac(0)), (addr("fe80::a2"), mac(1))];
    assert_eq!(run.hosts, expected.map(|(addr, mac)| (addr.into(), (mac, SeenBy::AllNodes))).into());
    assert!(run.took >= Duration::from_millis(1_500) && run.took < Duration::from_millis(2_500), "{:?}", run.took);
    let rounds: Vec<Ipv6Addr> = run
        .wire
        .iter()
        .filter(|bytes| guard::destination(&bytes[eth::HEADER_LEN..]) == Some(ALL_NODES.into()))
        .map(|bytes| Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[eth::HEADER_LEN + 8..eth::HEADER_LEN + 24]).unwrap()))
        .collect();
    let scenario = Scenario::default();
    let sources = [scenario.link_local, scenario.address_v6.0];
    assert_eq!(rounds, [sources, sources].concat(), "from both sources, twice");
    assert!(run.wire.iter().all(|bytes| eth::Frame::parse(bytes).unwrap().src() == OWN_MAC));
}

#[test]
fn addresses_are_guessed_from_hardware_and_ipv4_addresses() {
    let there = [own(guess::eui64(MAC[0])), own(0x25), own(0x37), own(0xc000_0209), own(guess::eui64(MAC[3]))];
    let hosts = there.iter().zip([MAC[0], MAC[1], MAC[2], MAC[3], MAC[3]]).map(|(addr, mac)| host(*addr, mac)).collect();
    let v4 = |last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last));
    let seeds = vec![(v4(5), MAC[0]), (v4(0x25), MAC[1]), (v4(37), MAC[2]), (v4(9), MAC[3]), (IpAddr::from([198, 18, 0, 77]), MAC[3])];
    let run = Setup { seeds, ..Setup::new(link(hosts, &[])) }.run();
    let found: Vec<IpAddr> = run.hosts.keys().copied().collect();
    let mut expected: Vec<IpAddr> = there.iter().map(|addr| IpAddr::V6(*addr)).collect();
    expected.sort();
    assert_eq!(found, expected);
    assert!(run.hosts.values().all(|(mac, how)| *how == SeenBy::Guessed && mac.is_some()));
    assert_eq!(run.summary.answered, 5);
    assert!(!run.destinations().contains(&own(0x77).into()), "that IPv4 address is not on the link");
}

#[test]
fn an_identifier_seen_once_is_looked_for_under_every_prefix() {
    // Link-local by multicast, global only by guess.
    let identifier = 0x1122_3344_5566_7788;
    let local = guess::with_identifier(addr("fe80::"), identifier);
    let run = Setup::new(link(vec![host(local, MAC[0]), host(own(identifier), MAC[0])], &[&local.to_string()])).run();
    assert_eq!((run.how(local), run.how(own(identifier))), (Some(SeenBy::AllNodes), Some(SeenBy::Guessed)));
}

#[test]
fn routers_listeners_and_announcements_are_overheard() {
    let info = ndp::PrefixInfo { prefix: prefix(), len: 64, on_link: true, autonomous: true };
    let advert =
        RouterAdvert { src: addr("fe80::99"), mac: Some(MAC[0]), lifetime: 900, managed: true, other: false, prefixes: vec![info] };
    let listener = addr("fe80::b0b");
    let announced = own(0xabcd);
    let liar = own(0xdead);
    let unsolicited = |target, mac| {
        let mut packet = ndp::advertise(target, mac, ALL_NODES);
        // Solicited flag off, and the checksum with it.
        packet[44] ^= 0x40;
        let sum = u16::from_be_bytes([packet[42], packet[43]]) + 0x4000;
        packet[42..44].copy_from_slice(&sum.to_be_bytes());
        frame(mac, &packet)
    };
    let report = mld::report(listener, addr("ff02::16"), &[addr("ff02::1:ff00:42"), addr("ff02::fb")], 2);
    let noise = vec![
        (200, frame(MAC[0], &ndp::router_advert(&advert, ALL_NODES))),
        (300, frame(MAC[0], &ndp::router_advert(&advert, ALL_NODES))),
        (250, frame(MAC[1], &report)),
        (400, unsolicited(announced, MAC[2])),
        (400, unsolicited(liar, MAC[3])),
        (500, frame(MAC[3], &ndp::advertise(liar, MAC[3], addr("2001:db8::2")))),
    ];
    let hosts = vec![host(own(0x42), MAC[1]), host(announced, MAC[2]), host(own(guess::eui64(MAC[1])), MAC[1])];
    let run = Setup { noise, ..Setup::new(link(hosts, &[])) }.run();
    assert_eq!(run.how(addr("fe80::99")), Some(SeenBy::RouterAdvertisement));
    assert_eq!(run.how(listener), Some(SeenBy::Multicast));
    assert_eq!(run.how(announced), Some(SeenBy::Neighbour), "an announcement is told once it was confirmed");
    assert_eq!(run.how(own(0x42)), Some(SeenBy::Guessed), "from the group it listens to");
    assert_eq!(run.how(own(guess::eui64(MAC[1]))), Some(SeenBy::Guessed));
    let [router] = &run.routers[..] else { panic!("{:?}", run.routers) };
    assert_eq!(
        router.to_string(),
        "router fe80::99 (00:16:3e:00:00:01), DHCPv6; 2001:db8::/64 on the link, autonomous",
        "each router is told once"
    );
}

#[test]
fn forged_answers_are_not_believed() {
    let target = own(7);
    let echo = |identifier: u16, payload: &[u8; 16]| {
        let mut message = vec![129, 0, 0, 0];
        message.extend(identifier.to_be_bytes());
        message.extend([0, 0]);
        message.extend(payload);
        [&ip::v6_header(target, addr("2001:db8::2"), 58, 64, message.len() as u16)[..], &message].concat()
    };
    let mut noise = Vec::new();
    for at in 0..15 {
        noise.push((at * 100, frame(MAC[0], &echo(1, &[0; 16]))));
        noise.push((at * 100, frame(MAC[0], &echo(1, b"picket\r\n00000000"))));
        noise.push((at * 100, frame(MAC[0], &ndp::advertise(own(0x5555_5555), MAC[0], addr("2001:db8::2")))));
    }
    let run = Setup { noise, ..Setup::new(link(Vec::new(), &[])) }.run();
    assert_eq!(run.hosts, BTreeMap::new());
}

#[test]
fn a_router_that_answers_for_whole_prefixes_makes_no_hosts() {
    let mut hosts = vec![host(own(guess::eui64(MAC[0])), MAC[0])];
    hosts.push(HostRule { mac: Some(PROXY), ..HostRule::new(prefix().into(), 64) });
    let v4 = |last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last));
    let run = Setup { seeds: vec![(v4(5), MAC[0]), (v4(6), MAC[1])], ..Setup::new(link(hosts, &[])) }.run();
    assert_eq!(run.hosts.keys().copied().collect::<Vec<_>>(), [IpAddr::from(own(guess::eui64(MAC[0])))]);
    assert!(matches!(run.proxies[..], [(HardwareAddress(mac), addresses)] if mac == PROXY.0 && addresses >= 2), "{:?}", run.proxies);
}

#[test]
fn loss_is_met_by_asking_again() {
    let v4 = |last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last));
    let hosts = (1..100).map(|n| HostRule { loss: 100, ..host(own(n + 0x100), Mac([2, 1, 1, 1, 1, n as u8])) }).collect();
    // ::1xx is how the last octet looks.
    let seeds = (1..100u8).map(|n| (v4(100 + n), Mac([2, 1, 1, 1, 1, n]))).collect();
    let run = Setup { seeds, ..Setup::new(link(hosts, &[])) }.run();
    // Those whose digits are decimal can be guessed: 0x101 to 0x199.
    let guessable = (1..100u64).filter(|n| n & 0xf < 10 && n >> 4 < 10).count();
    let found = run.hosts.len();
    assert!(found <= guessable && found * 100 >= guessable * 90, "{found} of {guessable} at a loss of one in five, asked twice");
}

#[test]
fn only_wanted_addresses_are_told_and_asked_for() {
    let hosts = vec![host(addr("fe80::a1"), MAC[0]), host(own(5), MAC[0]), host(own(0x1_0000_0000), MAC[1])];
    let seeds = vec![(IpAddr::from([192, 0, 2, 5]), MAC[0])];
    let scenario = link(hosts, &["fe80::a1", "2001:db8::1:0:0"]);
    let run = Setup { seeds, within: Some("2001:db8::/96"), ..Setup::new(scenario) }.run();
    assert_eq!(run.hosts.keys().copied().collect::<Vec<_>>(), [IpAddr::from(own(5))]);
    let wanted = parse_set("2001:db8::/96").unwrap();
    let asked: Vec<IpAddr> =
        run.destinations().into_iter().filter(|dst| *dst != IpAddr::from(ALL_NODES) && !wanted.contains(*dst)).collect();
    assert_eq!(asked.len(), 2, "but for the address that nobody has, twice: {asked:?}");
}

#[test]
fn all_nodes_are_asked_only_where_policy_permits_the_whole_prefix_or_the_group() {
    let scenario = || link(vec![host(own(9), MAC[0])], &["2001:db8::9"]);
    for (allow, deny, asked, what) in [
        ("2001:db8::/64", "", true, "the prefix"),
        ("2001:db8::/32", "", true, "more than the prefix"),
        ("ff02::1/128", "", true, "the group by name"),
        ("2001:db8::/65", "", false, "half of the prefix"),
        ("2001:db8::/64", "2001:db8::7/128", false, "the prefix but for one address"),
        ("2001:db8:1::/64", "", false, "another prefix"),
        ("192.0.2.0/24", "", false, "another family"),
    ] {
        let run = Setup { policy: policy(allow, deny), ..Setup::new(scenario()) }.run();
        assert_eq!(run.destinations().contains(&ALL_NODES.into()), asked, "{what}");
        assert_eq!(run.how(own(9)), asked.then_some(SeenBy::AllNodes), "{what}");
        assert_eq!(
            run.summary.refused > 0,
            allow.starts_with("2001:db8:1") || allow.starts_with("192") || !asked || allow.starts_with("ff02")
        );
    }
}

#[test]
fn forbidden_addresses_are_not_asked_for() {
    let seeds = (1..50).map(|n| (IpAddr::from([192, 0, 2, n]), Mac([2, 1, 1, 1, 1, n]))).collect();
    let hosts = (1..50).map(|n| host(own(n), MAC[0])).collect();
    let deny = "2001:db8::/120";
    let run = Setup { seeds, policy: policy("2001:db8::/32", deny), ..Setup::new(link(hosts, &[])) }.run();
    let deny = parse_set(deny).unwrap();
    assert_eq!(run.destinations().iter().filter(|dst| deny.contains(**dst)).count(), 0);
    assert!(run.summary.refused >= 49, "{:?}", run.summary);
    assert!(run.hosts.is_empty());
}

#[test]
fn a_link_without_ipv6_is_over_soon() {
    let scenario = Scenario { link_local: addr("fe80::2"), ..link(Vec::new(), &[]) };
    let run = Setup::new(scenario).run();
    assert!(run.hosts.is_empty() && run.took < Duration::from_secs(3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever arrives in whatever order: bounded, it ends, no panic, and no packet but to the link.
    #[test]
    fn any_noise(frames in proptest::collection::vec((0u8..6, any::<[u8; 8]>(), any::<[u8; 6]>(), 0u64..2_000), 0..80)) {
        let routes = Scenario::default().routes();
        let mut engine = LinkDiscovery::new(LinkPlan::new(routes.local_link().unwrap(), [1; 16]));
        let mut buf = [0; 1500];
        let mut sent = 0;
        let mut frames: Vec<_> = frames;
        frames.sort_by_key(|(.., at)| *at);
        let mut now = Instant::ZERO;
        for (kind, low, mac, at) in frames {
            now = Instant::from_nanos(at * 1_000_000);
            let (mac, identifier) = (Mac(mac), u64::from_be_bytes(low));
            let local = guess::with_identifier(addr("fe80::"), identifier);
            let packet = match kind {
                0 => ndp::advertise(own(identifier), mac, addr("2001:db8::2")).to_vec(),
                1 => mld::report(local, addr("ff02::16"), &[ndp::solicited_node(local)], 2),
                2 => ndp::router_advert(&RouterAdvert { src: local, mac: Some(mac), lifetime: 1, managed: false, other: true, prefixes: Vec::new() }, ALL_NODES),
                3 => ndp::solicit(own(identifier), mac, own(9), own(9)).to_vec(),
                4 => low.to_vec(),
                _ => [&low[..], &mac.0].concat(),
            };
            engine.on_frame(now, Some(mac), &packet);
            engine.on_timeout(now);
            while let Some(transmit) = engine.poll_transmit(now, &mut buf) {
                sent += 1;
                prop_assert_eq!(guard::destination(&buf[..transmit.len]), Some(transmit.dst));
            }
        }
        let mut over = false;
        for _ in 0..2_000 {
            while let Some(event) = engine.poll_event() {
                over |= matches!(event, Event::Done(_));
            }
            if over {
                break;
            }
            while engine.poll_transmit(now, &mut buf).is_some() {
                sent += 1;
            }
            now = engine.poll_timeout().map_or(now, |(at, _)| now.max(at));
            engine.on_timeout(now);
        }
        prop_assert!(over, "it ends");
        prop_assert!(sent < 1_000, "{} packets", sent);
    }
}
