//! Discovery of the probe's own link as the measurement of a lease.
//!
//! **The model.** The space of such a job is one position without a target: the link of whoever holds the lease. The job runs in
//! mode `each`, so every probe gets that one position of its own, asks its own link once and reports it as a batch of one: `up` where
//! somebody is there, silent where nobody is, refused where policy let nothing be sent, not reached where none of the wanted
//! networks is on this link (then nothing is sent). Coverage so counts links and adds up like every other. The hosts
//! themselves, which nobody could have listed, are told by address as they are found, each once in a run.
//!
//! The one position is the checkpoint: who is killed in the middle asks again, and the database keeps a host of a job and a probe
//! once, however often it is told. Who is cut keeps the hosts it has told and reports no position.
//!
//! The targets of the job limit what is told and asked for, as [`LinkPlan::within`]. Policy is the design of [`discover::gate`], the
//! fleet's and the site's. What the job excludes is not asked by itself, and not with all nodes either: those are
//! asked only where nothing of the link is excluded.
//!
//! It must not know the spool, the controller or sockets.
//!
//! **Invariant:** one chunk at most, of position 0, behind all hosts; none once the measurement was stopped.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use picket_wire::addr::{AddrSet, IpNet};
use picket_wire::host::{HostSeen, SeenBy};
use picket_wire::job::JobSpec;
use picket_wire::policy::AddressPolicy;
use picket_wire::result::{Answer, NotReached, Runs, State};

use crate::discover::engine::LinkDiscovery;
use crate::discover::{self, ALL_NODES, LinkPlan, Summary};
use crate::net::drive::Gate;
use crate::net::engine::{Engine, NotSent, Signs, Transmit};
use crate::net::onlink::LocalLink;
use crate::net::time::Instant;
use crate::packet::eth::Mac;
use crate::scan::report::{ChunkReport, Done, Event, Progress, Stats};
use crate::station;

/// Neighbours that are remembered for later guesses, at most.
const SEEDS_MAX: usize = 4_096;

/// Stations that earlier measurements found on the link: what is known of them helps to guess their IPv6 addresses.
#[derive(Debug, Default)]
pub struct Seeds(BTreeMap<IpAddr, Mac>);

impl Seeds {
    /// Takes in what a measurement told. A proxy's hardware address hints at nobody behind it.
    pub fn take(&mut self, hosts: &[HostSeen]) {
        for host in hosts.iter().filter(|host| host.how != SeenBy::ProxyArp) {
            let Some(mac) = host.mac else { continue };
            self.0.insert(host.addr, Mac(mac.0));
            if self.0.len() > SEEDS_MAX {
                self.0.pop_first();
            }
        }
    }

    /// Those, and the neighbours that the kernel knows.
    pub fn with(&self, kernel: Vec<(IpAddr, Mac)>) -> Vec<(IpAddr, Mac)> {
        let mut all = self.0.clone();
        all.extend(kernel);
        all.into_iter().collect()
    }
}

/// What a job's discovery of a link may send to.
pub fn gate(site: &AddressPolicy, spec: &JobSpec, link: &LocalLink) -> Arc<dyn Gate> {
    let permits = discover::gate::permits(&[site, &spec.policy], link);
    let excluded = spec.targets.exclude.clone();
    let whole = networks(link).all(|net| AddrSet::from_nets([&net]).intersection(&excluded).is_empty());
    Arc::new(move |addr| match addr == IpAddr::V6(ALL_NODES) {
        true => whole && permits(addr),
        false => !excluded.contains(addr) && permits(addr),
    })
}

/// The IPv6 networks of a link.
fn networks(link: &LocalLink) -> impl Iterator<Item = IpNet> + '_ {
    link.networks_v6().filter_map(|(addr, len, _): (Ipv6Addr, u8, Ipv6Addr)| IpNet::new(addr.into(), len))
}

/// The measurement, in the words of a scan. See the module.
pub struct LinkMeasurement {
    /// `None` where nothing that is wanted is on the link.
    engine: Option<LinkDiscovery>,
    events: VecDeque<Event>,
    progress: Arc<Progress>,
    started: Option<Instant>,
    seen: Instant,
    stopped: bool,
}

impl LinkMeasurement {
    /// Discovers `link` as far as the job wants it; `seeds` are stations that are known, `key` is fresh randomness.
    pub fn new(spec: &JobSpec, link: Option<LocalLink>, seeds: Vec<(IpAddr, Mac)>, key: [u8; 16]) -> Self {
        let within = spec.targets.include.minus(&spec.targets.exclude);
        let wanted = |net: IpNet| !AddrSet::from_nets([&net]).intersection(&within).is_empty();
        let link = link.filter(|link| networks(link).any(wanted));
        let engine = link.map(|link| LinkDiscovery::new(LinkPlan { within: Some(within), seeds, ..LinkPlan::new(link, key) }));
        let mut this =
            Self { engine, events: VecDeque::new(), progress: Arc::default(), started: None, seen: Instant::ZERO, stopped: false };
        if this.engine.is_none() {
            this.finish(Summary::default());
        }
        this
    }

    /// How it stands, readable from other threads.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    fn stats(summary: &Summary) -> Stats {
        let Summary { sent_packets, sent_bytes, hosts: answers, .. } = *summary;
        Stats { sent_packets, sent_bytes, answers, ..Stats::default() }
    }

    /// Notes the time, and how far it is.
    fn at(&mut self, now: Instant) {
        self.seen = self.seen.max(now);
        self.started.get_or_insert(now);
        if let Some(engine) = &self.engine {
            self.progress.publish(0, &Self::stats(&engine.summary()));
        }
    }

    fn finish(&mut self, summary: Summary) {
        if summary.dropped > 0 {
            log::warn!("the link has more hosts and hints than one run takes: {} were left out", summary.dropped);
        }
        let stats = Self::stats(&summary);
        if !self.stopped {
            self.events.push_back(Event::Chunk(self.chunk(&summary)));
        }
        let next = u64::from(!self.stopped);
        self.progress.publish(next, &stats);
        self.events.push_back(Event::Done(Done { next, stats }));
    }

    /// What the one position came to.
    fn chunk(&self, summary: &Summary) -> ChunkReport {
        let it = || Runs::from_ascending([0]);
        let up = Answer { offset: 0, state: State::Up, rtt: Duration::ZERO, ttl: 0 };
        let (mut answers, mut refused, mut not_reached) = (Vec::new(), Runs::default(), Vec::new());
        match summary {
            _ if self.engine.is_none() => not_reached.push((NotReached::NoRoute, it())),
            // Overheard hosts are told all the same, but nobody was asked.
            Summary { sent_packets: 0, refused: 1.., .. } => refused = it(),
            Summary { hosts: 1.., .. } => answers.push(up),
            Summary { sent_packets: 0, .. } => not_reached.push((NotReached::LinkError, it())),
            _ => {}
        }
        ChunkReport {
            from: 0,
            to: 1,
            started: self.started.unwrap_or(self.seen),
            ended: self.seen,
            sent_packets: summary.sent_packets,
            sent_bytes: summary.sent_bytes,
            answers,
            refused,
            not_reached,
            duplicates: 0,
            late: 0,
        }
    }
}

impl Engine for LinkMeasurement {
    type Event = Event;

    fn poll_transmit(&mut self, now: Instant, buf: &mut [u8]) -> Option<Transmit> {
        self.at(now);
        self.engine.as_mut()?.poll_transmit(now, buf)
    }

    fn on_not_sent(&mut self, now: Instant, token: u64, why: NotSent) {
        if let Some(engine) = &mut self.engine {
            engine.on_not_sent(now, token, why);
        }
    }

    fn on_packet(&mut self, now: Instant, packet: &[u8]) {
        self.on_frame(now, None, packet);
    }

    fn on_frame(&mut self, now: Instant, from: Option<Mac>, packet: &[u8]) {
        self.at(now);
        if let Some(engine) = &mut self.engine {
            engine.on_frame(now, from, packet);
        }
    }

    fn on_link_up(&mut self, now: Instant) {
        if let Some(engine) = &mut self.engine {
            engine.on_link_up(now);
        }
    }

    fn wants_all_multicast(&self) -> bool {
        self.engine.as_ref().is_some_and(Engine::wants_all_multicast)
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.engine.as_ref()?.poll_timeout()
    }

    fn on_timeout(&mut self, now: Instant) {
        self.at(now);
        if let Some(engine) = &mut self.engine {
            engine.on_timeout(now);
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            match self.engine.as_mut()?.poll_event()? {
                discover::Event::Done(summary) => self.finish(summary),
                event => match station::scan_event(event) {
                    Ok(event) => return Some(event),
                    Err(router) => log::debug!("{router}"),
                },
            }
        }
    }

    fn signs(&mut self) -> Signs {
        self.engine.as_mut().map(Engine::signs).unwrap_or_default()
    }

    fn stop(&mut self) {
        self.stopped = true;
        if let Some(engine) = &mut self.engine {
            engine.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use picket_wire::addr::parse_set;
    use picket_wire::host::HardwareAddress;
    use picket_wire::ids::JobId;
    use picket_wire::job::{JobKind, LINK_ATTEMPTS, Mode, Priority, ScanOptions, Technique};
    use picket_wire::result::Coverage;
    use picket_wire::space::TargetSpec;
    use picket_wire::units::PacketsPerSecond;

    use super::*;
    use crate::net::drive::{Drive, DriveEvent, TaskId, TaskSpec, Weight};
    use crate::net::pacer::{DEFAULT_BURST, Limits};
    use crate::net::sim::{self, HostRule, Scenario, SimLink};

    fn policy(allow: &str, deny: &str) -> AddressPolicy {
        let set = |text: &str| text.split_whitespace().map(|net| net.parse().unwrap()).collect();
        AddressPolicy { allow: set(allow), deny: set(deny) }
    }

    fn spec(include: &str, exclude: &str, fleet: &str) -> JobSpec {
        JobSpec {
            id: JobId(1),
            kind: JobKind::Scan(ScanOptions { technique: Technique::Link, attempts: LINK_ATTEMPTS }),
            targets: TargetSpec { include: parse_set(include).unwrap(), exclude: parse_set(exclude).unwrap(), ports: None, seed: 1 },
            mode: Mode::Each,
            rate: None,
            priority: Priority::Interactive,
            deadline: None,
            policy: policy(fleet, ""),
        }
    }

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Two hosts; the first answers to all nodes, the other only when it is asked.
    fn scenario() -> Scenario {
        let host = |addr: &str, last| HostRule { mac: Some(Mac([0, 0x16, 0x3e, 0, 0, last])), ..HostRule::new(at(addr), 128) };
        let hosts = vec![host("2001:db8::a1", 1), host("2001:db8::b2", 2)];
        let all_nodes = vec!["2001:db8::a1".parse().unwrap()];
        Scenario { hosts, all_nodes, gateway_v4: None, gateway_v6: None, ..Scenario::default() }
    }

    type Sim = Drive<SimLink, Event, VecDeque<DriveEvent<Event>>>;

    struct Run {
        hosts: Vec<IpAddr>,
        coverage: Vec<Coverage>,
        /// Frames that left.
        sent: usize,
        chunk_is_last: bool,
    }

    /// Runs it to its end, or until it is stopped after so long.
    fn run(spec: &JobSpec, site: &AddressPolicy, stop_after: Option<Duration>) -> Run {
        let scenario = scenario();
        let routes = scenario.routes();
        let link = routes.local_link().unwrap();
        let seeds = vec![(at("2001:db8::b2"), Mac([0, 0x16, 0x3e, 0, 0, 2]))];
        let gate = gate(site, spec, &link);
        let engine = Box::new(LinkMeasurement::new(spec, Some(link), seeds, [5; 16]));
        let rate = Limits { packets: PacketsPerSecond::new(1_000), bits: None, burst: DEFAULT_BURST };
        let mut drive = Drive::new(Instant::ZERO, SimLink::new(scenario), rate, routes, VecDeque::new());
        let id = TaskId::for_tests(1);
        let task = TaskSpec { name: "link".into(), engine, weight: Weight::Interactive, rate, targets: None, gate };
        drive.add(Instant::ZERO, id, task);
        let until = stop_after.unwrap_or(Duration::from_secs(60));
        let over = |_, drive: &mut Sim| drive.sink().iter().any(|event| matches!(event, DriveEvent::Task(_, Event::Done(_))));
        sim::run(&mut drive, Instant::ZERO, Instant::ZERO + until, over);
        drive.cancel(id);
        sim::run(&mut drive, Instant::ZERO + until, Instant::ZERO + until + Duration::from_secs(1), over);
        let sent = drive.link().wire.len();
        let events: Vec<Event> =
            drive.sink().drain(..).filter_map(|event| if let DriveEvent::Task(_, event) = event { Some(event) } else { None }).collect();
        let hosts = |event: &Event| if let Event::Hosts(hosts) = event { hosts.iter().map(|host| host.addr).collect() } else { vec![] };
        let coverage = |event: &Event| if let Event::Chunk(report) = event { Some(report.coverage()) } else { None };
        Run {
            hosts: events.iter().flat_map(hosts).collect(),
            coverage: events.iter().filter_map(coverage).collect(),
            sent,
            chunk_is_last: matches!(events.as_slice(), [.., Event::Chunk(_), Event::Done(_)]),
        }
    }

    #[test]
    fn hosts_are_told_and_the_link_is_one_answer() {
        let all = policy("2001:db8::/32", "");
        let found = run(&spec("2001:db8::/64", "", "2001:db8::/32"), &all, None);
        assert_eq!(found.hosts, [at("2001:db8::a1"), at("2001:db8::b2")]);
        let [coverage] = found.coverage[..] else { panic!("{:?}", found.coverage) };
        assert!(found.chunk_is_last && coverage.adds_up());
        assert_eq!((coverage.asked, coverage.up), (1, 1));
        assert!(coverage.packets > 4 && coverage.packets as usize <= found.sent, "{coverage:?}, {} frames", found.sent);
    }

    #[test]
    fn a_network_that_is_not_on_the_link_is_not_reached_and_nothing_is_sent() {
        let all = policy("2001:db8::/32", "");
        let elsewhere = run(&spec("2001:db8:5::/64", "", "2001:db8::/32"), &all, None);
        assert_eq!((elsewhere.sent, elsewhere.hosts.len(), elsewhere.coverage[0].not_reached), (0, 0, 1));
        assert!(elsewhere.chunk_is_last);
        // A probe without such a link says the same.
        let mut engine = LinkMeasurement::new(&spec("::/0", "", "2001:db8::/32"), None, vec![], [1; 16]);
        assert!(matches!(engine.poll_event(), Some(Event::Chunk(report)) if report.coverage().not_reached == 1));
        assert!(matches!(engine.poll_event(), Some(Event::Done(_))));
        assert!(engine.poll_event().is_none() && engine.poll_timeout().is_none() && !engine.wants_all_multicast());
    }

    #[test]
    fn either_policy_can_refuse_all_of_it() {
        let (all, none) = ("2001:db8::/32", "2001:db8:ffff::/48");
        for (fleet, site) in [(all, none), (none, all)] {
            let refused = run(&spec("2001:db8::/64", "", fleet), &policy(site, ""), None);
            assert_eq!((refused.sent, refused.coverage[0].refused, refused.coverage[0].asked), (0, 1, 1));
        }
    }

    #[test]
    fn what_is_excluded_hears_nothing_not_even_with_all_nodes() {
        let all = policy("2001:db8::/32", "");
        let found = run(&spec("2001:db8::/64", "2001:db8::a1", "2001:db8::/32"), &all, None);
        assert_eq!(found.hosts, [at("2001:db8::b2")], "the other is asked by itself");
        let link = scenario().routes().local_link().unwrap();
        let gate = gate(&all, &spec("2001:db8::/64", "2001:db8::a1", "2001:db8::/32"), &link);
        assert!(!gate.permits(ALL_NODES.into()) && !gate.permits(at("2001:db8::a1")) && gate.permits(at("2001:db8::b2")));
    }

    #[test]
    fn who_is_stopped_tells_hosts_and_no_position() {
        let all = policy("2001:db8::/32", "");
        let cut = run(&spec("2001:db8::/64", "", "2001:db8::/32"), &all, Some(Duration::from_millis(300)));
        assert_eq!((cut.hosts.len(), cut.coverage.len()), (2, 0));
        assert!(!cut.chunk_is_last);
    }

    #[test]
    fn seeds_are_bounded_and_no_proxies() {
        let mut seeds = Seeds::default();
        let host = |number: u32, how| HostSeen {
            addr: std::net::Ipv4Addr::from_bits(number).into(),
            mac: Some(HardwareAddress([2, 0, 0, 0, 0, 1])),
            how,
        };
        seeds.take(&[host(1, SeenBy::ProxyArp)]);
        assert!(seeds.with(vec![]).is_empty());
        for number in 0..5_000 {
            seeds.take(&[host(number, SeenBy::Arp)]);
        }
        assert_eq!(seeds.with(vec![(at("2001:db8::1"), Mac([2, 0, 0, 0, 0, 1]))]).len(), SEEDS_MAX + 1);
    }
}
