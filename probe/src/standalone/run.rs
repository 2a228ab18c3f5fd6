//! From a command line to results.

use core::time::Duration;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use picket_wire::addr::AddrSet;
use picket_wire::job::{ScanOptions, Technique};
use picket_wire::policy::{AddressPolicy, Permit};
use picket_wire::space::{SpaceError, TargetSpace, TargetSpec};
use picket_wire::units::PortSet;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::Outcome;
use super::args::{CommonArgs, DiscoverArgs, ScanArgs, TechniqueArg};
use super::output::Output;
use super::progress::ProgressLine;
use super::targets::{self, TargetError};
use crate::config::{self, Config, ConfigError, Raw, RawInterface};
use crate::lock::{Lock, LockError};
use crate::logging;
use crate::net::afpacket::LinkError;
use crate::net::clock;
use crate::net::drive::{DriveEvent, DriveGone, TaskSpec, Weight};
use crate::net::engine::Source;
use crate::net::netlink::{NetlinkError, snapshot_blocking};
use crate::net::pacer::{Limits, Pacer};
use crate::scan::connect::{self, ConnectError, ConnectOptions};
use crate::scan::engine::ScanEngine;
use crate::scan::report::{Done, Event, Progress};
use crate::scan::spec::{Cut, RawIdentity, ScanPlan, SourcePorts, SpecError};
use crate::station::{self, Station, StationError};

/// Events that wait for the terminal before sending pauses.
const EVENTS: usize = 16;
/// How often the progress line changes.
const TICK: Duration = Duration::from_millis(500);
/// Where the lock of this box's network lies.
const LOCK_DIR: &str = "/run/lock";

/// Why a run did not come about, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    /// A port scan without ports.
    #[error("name the ports to scan, for example `-p 22,80,443` or `-p 1-1024`; to find hosts only, use `picket-probe discover`")]
    NoPorts,
    /// Wrong targets.
    #[error(transparent)]
    Targets(#[from] TargetError),
    /// Targets that make no space.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// An impossible combination of options.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Wrong configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Every target is forbidden.
    #[error(
        "the site's policy permits none of the targets; {addr}: {verdict}. \
         Change `policy.allow` and `policy.deny` in the configuration, or PICKET_POLICY__ALLOW"
    )]
    Forbidden {
        /// One of them.
        addr: IpAddr,
        /// Its verdict.
        verdict: String,
    },
    /// Another probe runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel's tables cannot be read.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The interface cannot be used.
    #[error(transparent)]
    Station(#[from] StationError),
    /// No permission for raw packets, and no other technique was allowed.
    #[error("{0}; `--technique connect` scans ports without privilege")]
    Unprivileged(StationError),
    /// The connect scan broke off.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The loop broke off.
    #[error(transparent)]
    Loop(#[from] DriveGone),
    /// The system did not give something.
    #[error("{operation}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl StandaloneError {
    /// 2 for what was typed wrong, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoPorts | Self::Targets(TargetError::Form(_)) | Self::Space(_) | Self::Spec(_) | Self::Config(_) => 2,
            _ => 1,
        }
    }
}

fn system(operation: &'static str) -> impl FnOnce(io::Error) -> StandaloneError {
    move |source| StandaloneError::System { operation, source }
}

/// Runs `picket-probe scan`.
///
/// # Errors
/// See [`StandaloneError`]; an interrupted run is no error but [`Outcome::Incomplete`].
pub fn scan(args: &ScanArgs) -> Result<Outcome, StandaloneError> {
    let ports = match (args.technique, &args.ports) {
        (TechniqueArg::Echo, None) => None,
        (_, None) => return Err(StandaloneError::NoPorts),
        (TechniqueArg::Echo, Some(_)) => return Err(SpecError::Ports(Technique::Echo).into()),
        (_, Some(ports)) => Some(ports.clone()),
    };
    run(&args.common, args.technique, ports)
}

/// Runs `picket-probe discover`.
///
/// # Errors
/// See [`StandaloneError`]; an interrupted run is no error but [`Outcome::Incomplete`].
pub fn discover(args: &DiscoverArgs) -> Result<Outcome, StandaloneError> {
    run(&args.common, TechniqueArg::Echo, None)
}

/// Everything that is known before the first packet.
struct Work {
    config: Config,
    space: Arc<TargetSpace>,
    permit: Permit,
    asked: Limits,
    attempts: u8,
}

fn run(common: &CommonArgs, technique: TechniqueArg, ports: Option<PortSet>) -> Result<Outcome, StandaloneError> {
    let flags = Raw { interface: RawInterface { name: common.interface.clone(), ..RawInterface::default() }, ..Raw::default() };
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut config = config::load(common.config.as_deref(), variables, flags)?;
    logging::start(config.log_level.min(log::LevelFilter::Warn));
    let include = targets::parse(&common.targets, targets::system_resolver)?;
    for (name, addrs) in &include.names {
        let list: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        eprintln!("{name} is {}", list.join(", "));
    }
    let exclude = targets::parse(&common.exclude, targets::system_resolver)?.set;
    let has_v6 = include.set.families().1;
    let wanted = include.set.minus(&exclude);
    let spec = TargetSpec { include: include.set, exclude, ports, seed: u64::from_le_bytes(random()?) };
    let space = Arc::new(TargetSpace::new(&spec)?);
    announce_policy(&config.policy, &wanted)?;
    match &config.interface.name {
        None => config.interface.name = interface_towards(&config.policy.permitted(&wanted))?,
        // A wrong name is said before anybody is asked to stop another probe.
        Some(name) => drop(station::choose(&snapshot_blocking()?, Some(name))?),
    }
    let asked = common.rate.map_or(Limits::UNLIMITED, Limits::packets);
    announce_rate(asked, station::limits(&config.interface));
    let _lock = lock()?;
    let permit = Permit::all_of([&config.policy]);
    let work = Work { config, space: Arc::clone(&space), permit, asked, attempts: common.attempts };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start the runtime"))?;
    let (running, station) = begin(&work, technique, &runtime)?;
    let output = Output::new(io::BufWriter::new(io::stdout()), common.output, common.all, &space, has_v6);
    let outcome = runtime.block_on(follow(running, &space, output));
    drop(station);
    outcome
}

/// Asked for every packet.
fn gate(permit: &Permit) -> impl Fn(IpAddr) -> bool + Send + Sync + 'static {
    let permit = permit.clone();
    move |addr| permit.permits(addr)
}

fn random<const N: usize>() -> Result<[u8; N], StandaloneError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string())).map_err(system("draw random numbers"))?;
    Ok(bytes)
}

/// Says what policy will refuse, with the rule for one example; an error where nothing is left.
fn announce_policy(policy: &AddressPolicy, wanted: &AddrSet) -> Result<(), StandaloneError> {
    let refused = wanted.minus(&policy.permitted(wanted));
    let Some((addr, _)) = refused.ranges().next() else { return Ok(()) };
    let verdict = policy.check(addr).to_string();
    if refused == *wanted {
        return Err(StandaloneError::Forbidden { addr, verdict });
    }
    let count = |set: &AddrSet| set.len().map_or_else(|| "very many".to_owned(), |n| n.to_string());
    eprintln!("policy refuses {} of {} addresses; {addr}: {verdict}", count(&refused), count(wanted));
    Ok(())
}

fn announce_rate(asked: Limits, ceiling: Limits) {
    let granted = asked.clipped_to(ceiling);
    if let (true, Some(asked), Some(granted)) = (asked.exceeds(ceiling), asked.packets, granted.packets) {
        eprintln!("rate {asked} is above the interface's limit: sending at {granted} (interface.packets, PICKET_INTERFACE__PACKETS)");
    }
}

/// The interface on which the kernel would send to the first target; the loop sends on one interface only.
fn interface_towards(targets: &AddrSet) -> Result<Option<String>, StandaloneError> {
    let snapshot = snapshot_blocking()?;
    let towards = targets.ranges().next().and_then(|(first, _)| snapshot.interface_towards(first));
    Ok(towards.map(|interface| interface.name.clone()))
}

/// The lock against a second probe on this box's network. Who may not even write there is told so: without it the limits of
/// two probes add up.
fn lock() -> Result<Option<Lock>, StandaloneError> {
    let dir = if Path::new(LOCK_DIR).is_dir() { PathBuf::from(LOCK_DIR) } else { std::env::temp_dir() };
    match Lock::network(&dir) {
        Ok(lock) => Ok(Some(lock)),
        Err(held @ LockError::Held { .. }) => Err(held.into()),
        Err(error) => {
            log::warn!("running without a lock: {error}");
            Ok(None)
        }
    }
}

/// Where events come from.
enum Events {
    Raw(mpsc::Receiver<DriveEvent<Event>>),
    Connect(mpsc::Receiver<Event>),
}

/// What is told on the way.
enum Told {
    Scan(Event),
    Link { up: bool },
}

impl Events {
    async fn next(&mut self) -> Option<Told> {
        match self {
            Events::Connect(events) => events.recv().await.map(Told::Scan),
            Events::Raw(events) => loop {
                match events.recv().await? {
                    DriveEvent::Task(_, event) => return Some(Told::Scan(event)),
                    DriveEvent::Link { up } => return Some(Told::Link { up }),
                    DriveEvent::Ended(..) => {}
                }
            },
        }
    }
}

/// A scan under way.
struct Running {
    events: Events,
    progress: Arc<Progress>,
    /// How to end it before its time.
    stop: Option<Box<dyn FnOnce()>>,
    /// Why a connect scan broke off.
    failure: Option<oneshot::Receiver<ConnectError>>,
}

fn begin(work: &Work, technique: TechniqueArg, runtime: &tokio::runtime::Runtime) -> Result<(Running, Option<Station>), StandaloneError> {
    let options = ScanOptions { technique: technique.first(), attempts: work.attempts };
    if options.technique == Technique::Connect {
        return Ok((begin_connect(work, options, runtime)?, None));
    }
    let (sink, events) = mpsc::channel(EVENTS);
    match Station::open(&work.config.interface, SourcePorts::default(), sink) {
        Ok(station) => Ok((begin_raw(work, options, &station, events)?, Some(station))),
        Err(error @ StationError::Link(LinkError::Permission { .. })) if technique == TechniqueArg::Auto => {
            eprintln!("{error}; scanning by connections instead");
            Ok((begin_connect(work, ScanOptions { technique: Technique::Connect, ..options }, runtime)?, None))
        }
        Err(error @ StationError::Link(LinkError::Permission { .. })) if technique == TechniqueArg::Syn => {
            Err(StandaloneError::Unprivileged(error))
        }
        Err(error) => Err(error.into()),
    }
}

fn begin_raw(
    work: &Work,
    options: ScanOptions,
    station: &Station,
    events: mpsc::Receiver<DriveEvent<Event>>,
) -> Result<Running, StandaloneError> {
    let plan = ScanPlan::new(Arc::clone(&work.space), 0, work.space.len(), options)?;
    let ports = station.ports();
    let identity = RawIdentity { source: station.source(), base_port: ports.base(0), ports, key: random()? };
    let engine = ScanEngine::new(&plan, identity)?.on_link(station.local_link()).on_stop(Cut::Final);
    let progress = engine.progress();
    let task = TaskSpec {
        name: "scan".to_owned(),
        engine: Box::new(engine),
        weight: Weight::Interactive,
        rate: work.asked,
        gate: Arc::new(gate(&work.permit)),
    };
    let added = station.handle().add(task)?;
    let handle = station.handle().clone();
    // If the loop has ended, so has the scan.
    let stop = Box::new(move || drop(handle.cancel(added.id)));
    Ok(Running { events: Events::Raw(events), progress, stop: Some(stop), failure: None })
}

fn begin_connect(work: &Work, options: ScanOptions, runtime: &tokio::runtime::Runtime) -> Result<Running, StandaloneError> {
    let plan = ScanPlan::new(Arc::clone(&work.space), 0, work.space.len(), options)?;
    let progress: Arc<Progress> = Arc::default();
    let limits = station::limits(&work.config.interface);
    let options = ConnectOptions {
        interface: Arc::new(Mutex::new(Pacer::new(limits))),
        rate: work.asked,
        source: Source { v4: None, v6: None },
        max_open: connect::open_limit(),
        progress: Arc::clone(&progress),
    };
    let (sender, events) = mpsc::channel(EVENTS);
    let (stop, stopped) = oneshot::channel::<Cut>();
    let (fail, failure) = oneshot::channel();
    let gate = gate(&work.permit);
    runtime.spawn(async move {
        let stopped = async { if let Ok(how) = stopped.await { how } else { core::future::pending().await } };
        if let Err(error) = connect::run(&plan, options, gate, sender, stopped).await {
            // Nobody asks any more: the program is ending.
            let _ = fail.send(error);
        }
    });
    // If it has ended already, that is what is wanted.
    let stop = Box::new(move || {
        let _ = stop.send(Cut::Final);
    });
    Ok(Running { events: Events::Connect(events), progress, stop: Some(stop), failure: Some(failure) })
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Takes events until the end, writes rows, and ends the scan on a signal; on the second one at once.
async fn follow<W: Write>(mut running: Running, space: &TargetSpace, mut output: Output<W>) -> Result<Outcome, StandaloneError> {
    let mut signals = Signals::new().map_err(system("listen for signals"))?;
    let started = clock::now();
    let mut line = ProgressLine::new(started, space.len());
    let mut tick = tokio::time::interval(TICK);
    let mut done = None;
    let mut broken = false;
    let mut reported = 0;
    while done.is_none() {
        tokio::select! {
            event = running.events.next() => match event {
                Some(Told::Scan(Event::Done(end))) => done = Some(end),
                Some(Told::Scan(event)) => {
                    line.clear();
                    let written = match event {
                        Event::Chunk(report) => {
                            reported = report.to;
                            output.chunk(space, &report)
                        }
                        Event::Late(late) => output.late(space, &late),
                        Event::Hosts(hosts) => {
                            output.hosts(&hosts);
                            Ok(())
                        }
                        Event::Proxy(proxy) => {
                            eprintln!("warning: {proxy}");
                            output.proxy(proxy);
                            Ok(())
                        }
                        Event::Done(_) => Ok(()),
                    };
                    // Who reads the results may have had enough of them (`head`): then there is no point in going on.
                    if let Err(error) = written && !core::mem::replace(&mut broken, true) {
                        log::warn!("write results: {error}");
                        if let Some(stop) = running.stop.take() { stop(); }
                    }
                }
                Some(Told::Link { up }) => {
                    line.clear();
                    eprintln!("the interface is {}", if up { "up again" } else { "down: waiting for it" });
                }
                None => return Err(broke_off(&mut running).await),
            },
            () = signals.next() => {
                line.clear();
                match running.stop.take() {
                    Some(stop) => {
                        eprintln!("stopping");
                        stop();
                    }
                    None => done = Some(Done { next: reported, stats: crate::scan::report::Stats::default() }),
                }
            }
            _ = tick.tick() => line.show(clock::now(), &running.progress),
        }
    }
    line.clear();
    let Some(done) = done else { return Ok(Outcome::Incomplete) };
    if broken {
        return Ok(Outcome::Incomplete);
    }
    output.finish(space, &done, clock::now().saturating_since(started)).map_err(system("write results"))
}

async fn broke_off(running: &mut Running) -> StandaloneError {
    match running.failure.take() {
        Some(failure) => failure.await.map_or(StandaloneError::Loop(DriveGone), StandaloneError::Connect),
        None => StandaloneError::Loop(DriveGone),
    }
}
