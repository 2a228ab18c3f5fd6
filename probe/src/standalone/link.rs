//! `picket-probe discover --link`, and `discover` of a network on the link that is too large to be asked address by address.
//!
//! With `--link` the IPv4 neighbours are looked for first, by ARP: what is learnt of them helps to guess their IPv6 addresses. Both run on
//! one station, one after the other.
//!
//! **Invariant:** nothing is sent that the site's policy forbids, see [`crate::discover::gate`].

use core::time::Duration;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;

use picket_wire::addr::{AddrSet, IpNet};
use picket_wire::host::HostSeen;
use picket_wire::job::{SWEEP_MAX, ScanOptions, Technique};
use picket_wire::policy::{AddressPolicy, Permit};
use picket_wire::space::{TargetSpace, TargetSpec};
use serde_json::json;
use tokio::sync::mpsc;

use super::Outcome;
use super::args::{CommonArgs, DiscoverArgs, OutputArg};
use super::engines::random;
use super::error::{StandaloneError, system};
use super::prepare;
use super::rates;
use super::request::{Request, outputs};
use super::signals::Signals;
use crate::discover::engine::LinkDiscovery;
use crate::discover::{LinkPlan, RouterSeen, gate};
use crate::logging;
use crate::net::clock;
use crate::net::drive::{DriveEvent, Gate, TaskSpec, Weight};
use crate::net::engine::Mapped;
use crate::net::netlink::snapshot_blocking;
use crate::net::onlink::LocalLink;
use crate::net::pacer::Limits;
use crate::net::ports::{RawIdentity, SourcePorts};
use crate::packet::eth::Mac;
use crate::scan::engine::ScanEngine;
use crate::scan::report::{Event, ProxySeen};
use crate::scan::spec::ScanPlan;
use crate::station::{self, Station};

/// The largest IPv4 network whose neighbours are looked for with `--link`: a minute at 1000 packets per second.
const V4_MAX: u128 = 1 << 16;
/// Events that wait for the terminal before sending pauses.
const EVENTS: usize = 64;

/// What a command line asks for, as far as it is a matter of the link.
pub(super) enum Wanted {
    /// Nothing of the sort.
    Sweep,
    /// All of the link.
    Link,
    /// Networks of it, and targets to be asked one by one, where any are left.
    Networks(AddrSet, Option<Box<Request>>),
}

/// Decides which targets of `picket-probe discover` are too large to be asked one by one, and on the link.
pub(super) fn wanted(args: &DiscoverArgs) -> Result<Wanted, StandaloneError> {
    if args.link {
        return Ok(Wanted::Link);
    }
    if !args.common.names_targets() || args.common.resume.is_some() || args.technique.is_some() {
        return Ok(Wanted::Sweep);
    }
    let request = Request::discover(args)?;
    let targets = request.targets();
    let large: Vec<(IpAddr, IpAddr)> =
        targets.ranges().filter(|(first, last)| first.is_ipv6() && size(*first, *last) > SWEEP_MAX).collect();
    let large = AddrSet::try_from(large).unwrap_or_default();
    if large.is_empty() {
        return Ok(Wanted::Sweep);
    }
    let config = prepare::configuration(args.common.config.as_deref(), request.interface.as_deref())?;
    let name = prepare::interface(&config, &targets)?;
    let link = Arc::new(snapshot_blocking()?).table(&name).and_then(|table| table.local_link());
    let held = |link: &LocalLink| large.ranges().all(|(first, last)| link.holds(first, last));
    if !link.is_some_and(|link| held(&link)) {
        // Too large, and no link: said by whoever makes the space.
        return Ok(Wanted::Sweep);
    }
    let rest = targets.minus(&large);
    let rest = (!rest.is_empty()).then(|| {
        let mut request = request;
        (request.include, request.exclude) = (rest, AddrSet::new());
        Box::new(request)
    });
    Ok(Wanted::Networks(large, rest))
}

fn size(first: IpAddr, last: IpAddr) -> u128 {
    match (first, last) {
        (IpAddr::V6(first), IpAddr::V6(last)) => last.to_bits().saturating_sub(first.to_bits()).saturating_add(1),
        (IpAddr::V4(first), IpAddr::V4(last)) => u128::from(last.to_bits().saturating_sub(first.to_bits())) + 1,
        _ => 0,
    }
}

/// Discovers the link; `within` limits what is told and asked for.
///
/// # Errors
/// See [`StandaloneError`].
pub(super) fn discover(common: &CommonArgs, within: Option<AddrSet>) -> Result<Outcome, StandaloneError> {
    let mut config = prepare::configuration(common.config.as_deref(), common.interface.as_deref())?;
    logging::start(config.log_level.min(log::LevelFilter::Warn));
    let output = output(common)?;
    config.interface.name = Some(prepare::interface(&config, within.as_ref().unwrap_or(&AddrSet::new()))?);
    let _lock = prepare::lock()?;
    let (sink, events) = mpsc::channel(EVENTS);
    let station = Station::open(&config.interface, SourcePorts::default(), sink)?;
    let link = station.local_link().ok_or_else(|| StandaloneError::NoLink(station.interface().name))?;
    let granted = rates::limits(&common.rate).clipped_to(station::limits(&config.interface));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start the runtime"))?;
    let signals = Signals::new().map_err(system("listen for signals"))?;
    let run = Run { station, events, policy: config.policy, granted, out: Printer::new(output), seeds: Vec::new(), signals };
    runtime.block_on(run.all(link, within, common))
}

fn output(common: &CommonArgs) -> Result<OutputArg, StandaloneError> {
    let outputs = outputs(common)?;
    match &outputs[..] {
        [only] if only.path.as_os_str() == "-" && matches!(only.format, OutputArg::Table | OutputArg::Ndjson) => Ok(only.format),
        _ => Err(StandaloneError::LinkOutput),
    }
}

struct Run {
    station: Station,
    events: mpsc::Receiver<DriveEvent<Event>>,
    policy: AddressPolicy,
    granted: Limits,
    out: Printer,
    seeds: Vec<(IpAddr, Mac)>,
    signals: Signals,
}

impl Run {
    async fn all(mut self, link: LocalLink, within: Option<AddrSet>, common: &CommonArgs) -> Result<Outcome, StandaloneError> {
        let started = clock::now();
        let neighbours = self.station.neighbours();
        self.seeds.extend(neighbours);
        if common.dry_run {
            return self.out.dry_run(&link, self.policy.permitted(&v4_networks(&link)).len().filter(|_| within.is_none()));
        }
        let mut outcome = Outcome::Complete;
        if within.is_none() {
            outcome = self.neighbours_v4(&link, common.attempts).await?;
        }
        if outcome == Outcome::Complete {
            outcome = self.hosts_v6(link, within).await?;
        }
        self.out.end(outcome, clock::now().saturating_since(started)).map_err(system("write results"))?;
        Ok(outcome)
    }

    /// ARP over the IPv4 networks of the link that are not too large.
    async fn neighbours_v4(&mut self, link: &LocalLink, attempts: u8) -> Result<Outcome, StandaloneError> {
        let include = self.policy.permitted(&v4_networks(link));
        if include.is_empty() {
            return Ok(Outcome::Complete);
        }
        let spec = TargetSpec { include, exclude: AddrSet::new(), ports: None, seed: u64::from_le_bytes(random()?) };
        let space = Arc::new(TargetSpace::new(&spec)?);
        let options = ScanOptions { technique: Technique::Neighbour, attempts };
        let plan = ScanPlan::new(Arc::clone(&space), 0, space.len(), options)?;
        let ports = self.station.ports();
        let identity = RawIdentity { source: self.station.source(), base_port: ports.base(0), ports, key: random()? };
        let engine = ScanEngine::new(&plan, identity)?.on_link(Some(link.clone()));
        let permit = Permit::all_of([&self.policy]);
        self.run(Box::new(engine), Arc::new(move |addr| permit.permits(addr))).await
    }

    async fn hosts_v6(&mut self, link: LocalLink, within: Option<AddrSet>) -> Result<Outcome, StandaloneError> {
        let gate = gate::permits(&[&self.policy], &link);
        if !gate(IpAddr::V6(crate::discover::ALL_NODES)) {
            eprintln!(
                "policy does not permit to ask all nodes (a whole on-link prefix, or ff02::1 by name): hosts are guessed and overheard only"
            );
        }
        let plan = LinkPlan { within, seeds: core::mem::take(&mut self.seeds), ..LinkPlan::new(link, random()?) };
        let (tell, mut routers) = mpsc::unbounded_channel();
        let engine = Mapped::new(LinkDiscovery::new(plan), move |event| match station::scan_event(event) {
            Ok(event) => Some(event),
            Err(router) => {
                // Nobody listens any more: the program is ending.
                let _ = tell.send(router);
                None
            }
        });
        let outcome = self.run(Box::new(engine), Arc::new(gate)).await?;
        while let Ok(router) = routers.try_recv() {
            self.out.router(&router).map_err(system("write results"))?;
        }
        Ok(outcome)
    }

    /// Runs an engine to its end, or until somebody interrupts it.
    async fn run(&mut self, engine: crate::net::drive::BoxEngine<Event>, gate: Arc<dyn Gate>) -> Result<Outcome, StandaloneError> {
        let task = TaskSpec {
            name: "link".to_owned(),
            engine,
            weight: Weight::Interactive,
            rate: self.granted,
            targets: Default::default(),
            gate,
        };
        let added = self.station.handle().add(task)?;
        let mut outcome = Outcome::Complete;
        loop {
            let event = tokio::select! {
                event = self.events.recv() => event.ok_or(crate::net::drive::DriveGone)?,
                () = self.signals.next(), if outcome == Outcome::Complete => {
                    outcome = Outcome::Incomplete;
                    self.station.handle().cancel(added.id)?;
                    continue;
                }
            };
            match event {
                DriveEvent::Task(_, Event::Hosts(hosts)) => {
                    self.seeds.extend(hosts.iter().filter_map(|host| Some((host.addr, Mac(host.mac?.0)))));
                    self.out.hosts(&hosts).map_err(system("write results"))?;
                }
                DriveEvent::Task(_, Event::Proxy(proxy)) => self.out.proxy(proxy).map_err(system("write results"))?,
                DriveEvent::Task(_, Event::Done(_)) if outcome == Outcome::Complete => drop(self.station.handle().cancel(added.id)?),
                DriveEvent::Ended(id, _) if id == added.id => return Ok(outcome),
                _ => {}
            }
        }
    }
}

/// The IPv4 networks of the link that are not too large.
fn v4_networks(link: &LocalLink) -> AddrSet {
    let nets: Vec<IpNet> = link
        .networks_v4()
        .filter(|(_, prefix)| 1_u128 << (32 - u32::from((*prefix).min(32))) <= V4_MAX)
        .filter_map(|(addr, prefix)| IpNet::new(addr, prefix))
        .collect();
    AddrSet::from_nets(&nets)
}

/// Writes what is found as it comes.
struct Printer {
    out: io::Stdout,
    ndjson: bool,
    head: bool,
    hosts: u64,
}

impl Printer {
    fn new(format: OutputArg) -> Self {
        Self { out: io::stdout(), ndjson: format == OutputArg::Ndjson, head: false, hosts: 0 }
    }

    fn hosts(&mut self, hosts: &[HostSeen]) -> io::Result<()> {
        let proxied = |host: &HostSeen| host.how == picket_wire::host::SeenBy::ProxyArp;
        for host in hosts.iter().filter(|host| self.ndjson || !proxied(host)) {
            self.hosts += u64::from(!proxied(host));
            let mac = host.mac.map(|mac| mac.to_string());
            if self.ndjson {
                let object = json!({ "type": "host", "addr": host.addr.to_string(), "mac": mac, "how": host.how.as_str() });
                writeln!(self.out, "{object}")?;
                continue;
            }
            if !core::mem::replace(&mut self.head, true) {
                writeln!(self.out, "{:39} {:17} HOW", "ADDRESS", "MAC")?;
            }
            writeln!(self.out, "{:39} {:17} {}", host.addr.to_string(), mac.unwrap_or_default(), host.how.as_str())?;
        }
        self.out.flush()
    }

    fn router(&mut self, router: &RouterSeen) -> io::Result<()> {
        if !self.ndjson {
            return writeln!(self.out, "{router}");
        }
        let prefix = |info: &crate::packet::ndp::PrefixInfo| {
            let text = format!("{}/{}", info.prefix, info.len);
            json!({ "prefix": text, "on_link": info.on_link, "autonomous": info.autonomous })
        };
        let object = json!({
            "type": "router",
            "addr": router.addr.to_string(),
            "mac": router.mac.map(|mac| mac.to_string()),
            "lifetime_s": router.lifetime,
            "managed": router.managed,
            "other": router.other,
            "prefixes": router.prefixes.iter().map(prefix).collect::<Vec<_>>(),
        });
        writeln!(self.out, "{object}")
    }

    fn proxy(&mut self, proxy: ProxySeen) -> io::Result<()> {
        eprintln!("warning: {proxy}");
        if !self.ndjson {
            return Ok(());
        }
        let object = json!({ "type": "proxy", "mac": proxy.mac.to_string(), "addresses": proxy.addresses, "reported": proxy.reported });
        writeln!(self.out, "{object}")
    }

    fn dry_run(&mut self, link: &LocalLink, v4: Option<u128>) -> Result<Outcome, StandaloneError> {
        let networks = link.networks_v6().count();
        let mut text = format!(
            "all nodes of the link by {} echo requests, and at most {} solicitations",
            networks * 2,
            2 * crate::discover::engine::QUESTIONS_MAX
        );
        if let Some(v4) = v4 {
            text = format!("{v4} IPv4 addresses by ARP, then {text}");
        }
        writeln!(self.out, "{text}; nothing was sent").map_err(system("write the plan"))?;
        Ok(Outcome::Complete)
    }

    fn end(&mut self, outcome: Outcome, took: Duration) -> io::Result<()> {
        let seconds = took.as_secs_f64();
        if self.ndjson {
            let object = json!({ "type": "link", "complete": outcome == Outcome::Complete, "hosts": self.hosts, "seconds": seconds });
            writeln!(self.out, "{object}")?;
        } else {
            writeln!(self.out, "\n{} addresses on the link in {seconds:.1} s", self.hosts)?;
        }
        self.out.flush()
    }
}
