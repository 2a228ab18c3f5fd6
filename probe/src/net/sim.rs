//! A simulated network behind a [`Link`], under a virtual clock: hosts that answer, lose, delay, repeat and reorder, by a
//! scenario and a seed. The same loop and engines run on it as on a real interface, in no real time.
//!
//! Invariant: two runs of one scenario are equal, byte for byte and nanosecond for nanosecond.

use core::ops::RangeInclusive;
use core::time::Duration;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

mod host;
mod way;

use self::host::{Answer, Probe};
use self::way::Fate;
pub use self::way::{Router, Spread, Telling, Way};
use super::drive::{Drive, EventSink};
use super::link::{BATCH, Batch, Framing, Link, LinkCounters, Received, Sent, Stop, Waker};
use super::route::{Interface, InterfaceAddress, InterfaceKind, Route, RouteAction, RouteTable};
use super::time::Instant;
use crate::packet::arp::{Arp, Operation};
use crate::packet::eth::{self, Frame, Mac};
use crate::packet::ndp;

/// What a port does with a SYN, an INIT or a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// Accepts.
    Open,
    /// Answers datagrams from another port.
    OpenElsewhere,
    /// Refuses: a RST, an ABORT, or port unreachable.
    Closed,
    /// Says nothing.
    Silent,
    /// The host answers with an ICMP unreachable of this code (of the packet's own family).
    Unreachable(u8),
    /// The router before it does.
    Prohibited(u8),
}

/// Hosts that behave alike.
#[derive(Debug, Clone)]
pub struct HostRule {
    /// Their network: an address and the length of its prefix.
    pub network: (IpAddr, u8),
    /// How many of a thousand addresses there exist; which ones follows from the seed.
    pub present: u16,
    /// Whether they answer ARP and neighbour solicitations.
    pub resolves: bool,
    /// The hardware address that they all answer with; `None`: each has its own.
    pub mac: Option<Mac>,
    /// Whether they answer echo requests.
    pub echo: bool,
    /// Who answers echo requests in their place, in his own name.
    pub echo_by: Option<IpAddr>,
    /// Whether they answer timestamp requests.
    pub timestamp: bool,
    /// Whether something before them drops segments of connections that it does not know.
    pub stateful: bool,
    /// When something before them resets a connection, in their name and with the right numbers, counted from the SYN.
    pub resets_first: Option<Duration>,
    /// Resets with wrong numbers that come with each answer to a SYN.
    pub reset_flood: u16,
    /// Whether our own packets come back, addresses exchanged and else unchanged.
    pub mirrors: bool,
    /// An ICMP error is sent no sooner than so long after the one before.
    pub error_gap: Duration,
    /// Time to the answer.
    pub rtt: Duration,
    /// Time to the answer to a question for a neighbour: a link answers sooner than a host.
    pub resolve_time: Duration,
    /// At most this is added to the time, so that answers overtake each other.
    pub jitter: Duration,
    /// How many of a thousand packets are lost, in each direction.
    pub loss: u16,
    /// How many of a thousand answers come twice.
    pub duplicates: u16,
    /// Hop limit of the answers as they arrive.
    pub ttl: u8,
    /// Ports by range, the first that fits counts.
    pub ports: Vec<(RangeInclusive<u16>, PortState)>,
    /// All other ports.
    pub other_ports: PortState,
    /// The same for datagrams.
    pub udp: Vec<(RangeInclusive<u16>, PortState)>,
    /// All other ports for datagrams.
    pub other_udp: PortState,
}

impl HostRule {
    /// Hosts that are all there, answer everything at once and have no port open.
    pub fn new(network: IpAddr, prefix: u8) -> Self {
        Self {
            network: (network, prefix),
            present: 1_000,
            resolves: true,
            mac: None,
            echo: true,
            echo_by: None,
            timestamp: true,
            stateful: false,
            resets_first: None,
            reset_flood: 0,
            mirrors: false,
            error_gap: Duration::ZERO,
            rtt: Duration::from_millis(1),
            resolve_time: Duration::from_micros(200),
            jitter: Duration::ZERO,
            loss: 0,
            duplicates: 0,
            ttl: 64,
            ports: Vec::new(),
            other_ports: PortState::Closed,
            udp: Vec::new(),
            other_udp: PortState::Closed,
        }
    }

    /// What `port` does.
    pub fn port(&self, port: u16) -> PortState {
        self.ports.iter().find(|(range, _)| range.contains(&port)).map_or(self.other_ports, |(_, state)| *state)
    }

    /// What `port` does with datagrams.
    pub fn udp_port(&self, port: u16) -> PortState {
        self.udp.iter().find(|(range, _)| range.contains(&port)).map_or(self.other_udp, |(_, state)| *state)
    }

    fn covers(&self, ip: IpAddr) -> bool {
        covers(self.network, ip)
    }
}

fn covers((network, prefix): (IpAddr, u8), ip: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, true),
        IpAddr::V6(ip) => (u128::from(ip), false),
    };
    let ((a, a4), (b, b4)) = (bits(network), bits(ip));
    a4 == b4 && (a ^ b).checked_shr(128 - u32::from(prefix)).unwrap_or(0) == 0
}

/// A network.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Where all chance comes from.
    pub seed: u64,
    /// Our own IPv4 address and the length of its prefix.
    pub address_v4: (Ipv4Addr, u8),
    /// Our own IPv6 address and the length of its prefix.
    pub address_v6: (Ipv6Addr, u8),
    /// Our own link-local address.
    pub link_local: Ipv6Addr,
    /// Addresses that answer an echo request to all nodes of the link, each to a source of its own scope.
    pub all_nodes: Vec<Ipv6Addr>,
    /// The IPv4 router, for what is not on the link.
    pub gateway_v4: Option<Ipv4Addr>,
    /// The IPv6 router.
    pub gateway_v6: Option<Ipv6Addr>,
    /// Hosts; the first rule that covers an address counts, and an address without a rule does not exist.
    pub hosts: Vec<HostRule>,
    /// Routers on the way; the first way whose network covers an address counts, and without one it is one hop away.
    pub ways: Vec<Way>,
    /// A router sends an ICMP error no sooner than so long after the one before.
    pub router_error_gap: Duration,
    /// Time that the link needs for a frame.
    pub frame_time: Duration,
    /// When nothing gets through in either direction, counted from the start: from, and to.
    pub outages: Vec<(Duration, Duration)>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            seed: 1,
            address_v4: (Ipv4Addr::new(192, 0, 2, 2), 24),
            address_v6: (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2), 64),
            link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
            all_nodes: Vec::new(),
            gateway_v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            gateway_v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
            hosts: Vec::new(),
            ways: Vec::new(),
            router_error_gap: Duration::ZERO,
            frame_time: Duration::from_nanos(800),
            outages: Vec::new(),
        }
    }
}

/// Our own hardware address in every scenario.
pub const OWN_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x02]);

impl Scenario {
    /// Whether nothing gets through at `at`.
    fn is_out(&self, at: Instant) -> bool {
        let at = at.saturating_since(Instant::ZERO);
        self.outages.iter().any(|(from, to)| (*from..*to).contains(&at))
    }

    /// The rule for `ip`, where a host with that address exists.
    pub fn host(&self, ip: IpAddr) -> Option<&HostRule> {
        let rule = self.hosts.iter().find(|rule| rule.covers(ip))?;
        let bits = match ip {
            IpAddr::V4(ip) => u64::from(u32::from(ip)),
            IpAddr::V6(ip) => (u128::from(ip) ^ (u128::from(ip) >> 64)) as u64,
        };
        (mix(self.seed ^ mix(bits)) % 1_000 < u64::from(rule.present)).then_some(rule)
    }

    /// The hardware address of `ip`, if it answers for one.
    pub fn mac(&self, ip: IpAddr) -> Option<Mac> {
        let gateway = Some(ip) == self.gateway_v4.map(IpAddr::V4) || Some(ip) == self.gateway_v6.map(IpAddr::V6);
        let answers = gateway || self.host(ip).is_some_and(|rule| rule.resolves);
        let [a, b, c, d, e, ..] = mix(match ip {
            IpAddr::V4(ip) => u32::from(ip).into(),
            IpAddr::V6(ip) => u128::from(ip) as u64,
        })
        .to_be_bytes();
        let own = Mac([0x06, a, b, c, d, e]);
        answers.then(|| self.host(ip).and_then(|rule| rule.mac).unwrap_or(own))
    }

    /// The routes that a kernel would have here.
    pub fn routes(&self) -> Arc<RouteTable> {
        let v4 = IpAddr::V4(self.address_v4.0);
        let v6 = IpAddr::V6(self.address_v6.0);
        let interface = Interface {
            index: 2,
            name: "sim0".to_owned(),
            kind: InterfaceKind::Ethernet,
            mac: Some(OWN_MAC),
            mtu: 1500,
            up: true,
            addresses: vec![
                InterfaceAddress { ip: v4, prefix: self.address_v4.1, usable: true },
                InterfaceAddress { ip: v6, prefix: self.address_v6.1, usable: true },
                InterfaceAddress { ip: self.link_local.into(), prefix: 64, usable: true },
            ],
        };
        let route = |network, prefix, action| Route { network, prefix, action, interface: Some(2), source: None, metric: 0 };
        let mut routes = vec![
            route(v4, self.address_v4.1, RouteAction::OnLink),
            route(v6, self.address_v6.1, RouteAction::OnLink),
            route(v4, 32, RouteAction::Local),
            route(v6, 128, RouteAction::Local),
            route(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 64, RouteAction::OnLink),
            route(self.link_local.into(), 128, RouteAction::Local),
        ];
        let gateways = [self.gateway_v4.map(IpAddr::V4), self.gateway_v6.map(IpAddr::V6)];
        for gateway in gateways.into_iter().flatten() {
            let any = if gateway.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
            routes.push(route(any, 0, RouteAction::Via(gateway)));
        }
        Arc::new(RouteTable::new(interface, routes, &[]))
    }
}

/// One step of splitmix64 (Steele, Lea, Flood 2014): all the chance there is.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The link into a scenario.
#[derive(Debug)]
pub struct SimLink {
    scenario: Scenario,
    now: Instant,
    busy_until: Instant,
    random: u64,
    /// Frames on their way to us, by arrival and order.
    arrivals: BTreeMap<(Instant, u64), Vec<u8>>,
    arrived: u64,
    /// When each reporter of errors may send the next one.
    errors: HashMap<IpAddr, Instant>,
    /// What left, and when: what a capture on the wire would show.
    pub wire: Vec<(Instant, Vec<u8>)>,
    /// Whether the interface is up.
    pub up: bool,
    /// Whether there is no memory to listen with.
    pub deaf: bool,
    listening: bool,
    /// Frames that the kernel takes before it says that it is full; grows back by whoever sets it.
    pub room: usize,
}

impl SimLink {
    /// A link into `scenario`.
    pub fn new(scenario: Scenario) -> Self {
        Self {
            random: mix(scenario.seed),
            scenario,
            now: Instant::ZERO,
            busy_until: Instant::ZERO,
            arrivals: BTreeMap::new(),
            arrived: 0,
            errors: HashMap::new(),
            wire: Vec::new(),
            up: true,
            deaf: false,
            listening: true,
            room: usize::MAX,
        }
    }

    /// Whether what arrives is received.
    pub fn is_listening(&self) -> bool {
        self.listening
    }

    /// The scenario; what is changed counts from the next packet on.
    pub fn scenario(&mut self) -> &mut Scenario {
        &mut self.scenario
    }

    /// Lets a frame arrive at `at`.
    pub fn inject(&mut self, at: Instant, frame: Vec<u8>) {
        self.arrived += 1;
        self.arrivals.insert((at, self.arrived), frame);
    }

    /// When the next frame arrives.
    pub fn next_arrival(&self) -> Option<Instant> {
        self.arrivals.first_key_value().map(|((at, _), _)| *at)
    }

    fn chance(&mut self, per_mille: u16) -> bool {
        self.random = mix(self.random);
        self.random % 1_000 < u64::from(per_mille)
    }

    fn delay(&mut self, rule: &HostRule) -> Duration {
        self.random = mix(self.random);
        let jitter = u64::try_from(rule.jitter.as_nanos()).unwrap_or(u64::MAX);
        rule.rtt + Duration::from_nanos(if jitter == 0 { 0 } else { self.random % jitter })
    }

    /// The network reads a frame of ours.
    fn network(&mut self, at: Instant, bytes: &[u8]) {
        let Some(frame) = Frame::parse(bytes) else {
            return;
        };
        match frame.ethertype() {
            eth::TYPE_ARP => self.answer_arp(at, frame.payload()),
            eth::TYPE_IPV4 | eth::TYPE_IPV6 => {
                if let Some(message) = ndp::Neighbour::parse(frame.payload()) {
                    self.answer_solicitation(at, message);
                } else if let Some(packet) = Probe::parse(frame.payload()) {
                    self.answer_probe(at, frame, &packet);
                }
            }
            _ => {}
        }
    }

    /// Sends a neighbour's answer after the time that its rule says, unless it is lost, and perhaps twice; a router's comes for sure.
    fn answer_question(&mut self, at: Instant, ip: IpAddr, frame: Vec<u8>) {
        let Some(rule) = self.scenario.host(ip).cloned() else {
            return self.inject(at + Duration::from_micros(200), frame);
        };
        if self.chance(rule.loss) || self.chance(rule.loss) {
            return;
        }
        if self.chance(rule.duplicates) {
            self.inject(at + rule.resolve_time + rule.resolve_time, frame.clone());
        }
        self.inject(at + rule.resolve_time, frame);
    }

    fn answer_arp(&mut self, at: Instant, payload: &[u8]) {
        let Some(request) = Arp::parse(payload) else {
            return;
        };
        if let Some(mac) = self.scenario.mac(IpAddr::V4(request.target)) {
            let reply = Arp {
                operation: Operation::Reply,
                sender_mac: mac,
                sender: request.target,
                target_mac: request.sender_mac,
                target: request.sender,
            };
            let frame = [&eth::header(OWN_MAC, mac, eth::TYPE_ARP)[..], &reply.emit()[..]].concat();
            self.answer_question(at, IpAddr::V4(request.target), frame);
        }
    }

    fn answer_solicitation(&mut self, at: Instant, message: ndp::Neighbour) {
        if !message.advert
            && let Some(mac) = self.scenario.mac(IpAddr::V6(message.target))
        {
            let advert = ndp::advertise(message.target, mac, message.src);
            let frame = [&eth::header(OWN_MAC, mac, eth::TYPE_IPV6)[..], &advert[..]].concat();
            self.answer_question(at, IpAddr::V6(message.target), frame);
        }
    }

    /// All nodes answer by themselves, from the address that fits.
    fn answer_all_nodes(&mut self, at: Instant, probe: &Probe<'_>) {
        let IpAddr::V6(src) = probe.src else { return };
        for node in self.scenario.all_nodes.clone() {
            let mac = self.scenario.mac(node.into());
            let rule = self.scenario.host(node.into()).cloned();
            let fits = node.is_unicast_link_local() == src.is_unicast_link_local();
            let (true, Some(mac), Some(rule)) = (fits, mac, rule) else { continue };
            for answer in (Probe { dst: node.into(), ..*probe }).answers(&self.scenario, &rule) {
                self.inject(at + rule.rtt, [&eth::header(OWN_MAC, mac, eth::TYPE_IPV6)[..], &answer.packet[..]].concat());
            }
        }
    }

    fn answer_probe(&mut self, at: Instant, frame: Frame<'_>, probe: &Probe<'_>) {
        if probe.dst.is_multicast() {
            return self.answer_all_nodes(at, probe);
        }
        self.random = mix(self.random);
        let way = self.scenario.ways.iter().find(|way| covers(way.network, probe.dst));
        if let Some(Fate::Ended(said)) = way.map(|way| way.fate(probe, self.random)) {
            if let Some((rule, answer)) = said {
                self.answer(at, frame, &rule, answer);
            }
            return;
        }
        let Some(rule) = self.scenario.host(probe.dst).cloned() else {
            return;
        };
        for answer in probe.answers(&self.scenario, &rule) {
            self.answer(at, frame, &rule, answer);
        }
    }

    fn answer(&mut self, at: Instant, frame: Frame<'_>, rule: &HostRule, answer: Answer) {
        if let Some((reporter, gap)) = answer.error {
            let next = self.errors.entry(reporter).or_insert(at);
            if at < *next {
                return;
            }
            *next = at + gap;
        }
        // Lost on the way there, or back.
        if self.chance(rule.loss) || self.chance(rule.loss) {
            return;
        }
        let kind = if answer.packet.first().is_some_and(|first| first >> 4 == 4) { eth::TYPE_IPV4 } else { eth::TYPE_IPV6 };
        let bytes = [&eth::header(OWN_MAC, frame.dst(), kind)[..], &answer.packet[..]].concat();
        if self.chance(rule.duplicates) {
            let later = self.delay(rule);
            self.inject(at + later, bytes.clone());
        }
        let delay = answer.after.unwrap_or_else(|| self.delay(rule));
        self.inject(at + delay, bytes);
    }
}

impl Link for SimLink {
    fn framing(&self) -> Framing {
        Framing::Ethernet { mac: OWN_MAC }
    }

    fn send(&mut self, now: Instant, batch: &Batch, count: usize) -> Sent {
        if !self.up {
            return Sent { count: 0, stop: Some(Stop::Down), done: now };
        }
        let taken = count.min(self.room);
        self.room -= taken;
        let mut done = now.max(self.busy_until);
        for at in 0..taken {
            done += self.scenario.frame_time;
            self.wire.push((done, batch.frame(at).to_vec()));
            if !self.scenario.is_out(done) {
                self.network(done, batch.frame(at));
            }
        }
        self.busy_until = done;
        Sent { count: taken, stop: (taken < count).then_some(Stop::Full), done }
    }

    fn receive(&mut self, each: &mut dyn FnMut(Received<'_>)) -> usize {
        let mut count = 0;
        while count < BATCH
            && let Some(entry) = self.arrivals.first_entry()
            && entry.key().0 <= self.now
        {
            let ((at, _), bytes) = entry.remove_entry();
            count += 1;
            if let (true, Some(frame)) = (self.up && self.listening && !self.scenario.is_out(at), Frame::parse(&bytes)) {
                each(Received { ethertype: frame.ethertype(), src: Some(frame.src()), payload: frame.payload(), at: None });
            }
        }
        count
    }

    fn wait(&mut self, until: Instant) -> Instant {
        until
    }

    fn listen(&mut self, wanted: bool) -> bool {
        self.listening = wanted && !self.deaf;
        self.listening == wanted
    }

    fn is_up(&mut self) -> bool {
        self.up
    }

    fn counters(&mut self) -> LinkCounters {
        LinkCounters::default()
    }

    fn waker(&self) -> Waker {
        Waker::new(|| {})
    }
}

/// Runs `drive` from `now` until `until`, or until `done` says so after a turn; returns the time then.
pub fn run<E, S: EventSink<E>>(
    drive: &mut Drive<SimLink, E, S>,
    now: Instant,
    until: Instant,
    mut done: impl FnMut(Instant, &mut Drive<SimLink, E, S>) -> bool,
) -> Instant {
    let mut now = now;
    while now < until {
        drive.link().now = now;
        let next = drive.turn(now);
        if done(now, drive) {
            return now;
        }
        let link = drive.link();
        let next = next.min(link.next_arrival().unwrap_or(Instant::FAR_FUTURE));
        // Sending takes its time; a turn that did nothing at all still moves the clock, so that a run always ends.
        let least = if next <= now { now + Duration::from_nanos(1) } else { next };
        now = least.max(link.busy_until);
    }
    now
}

/// Tests of scenario files in a folder of this package: one for each, which is read as `$file` and checked under its name, and one that finds files
/// without a test.
#[cfg(test)]
macro_rules! every_file {
    ($file:ident in $dir:literal: $($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $dir, "/", stringify!($name), ".toml"));
                let file: $file = toml::from_str(text).unwrap_or_else(|error| panic!("{error}"));
                file.check(stringify!($name));
            }
        )*

        #[test]
        fn no_file_is_forgotten() {
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/", $dir);
            let mut files: Vec<String> = std::fs::read_dir(dir)
                .unwrap()
                .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".toml")?.to_owned()))
                .collect();
            files.sort();
            assert_eq!(files, NAMES);
        }
    };
}
#[cfg(test)]
pub(crate) use every_file;
