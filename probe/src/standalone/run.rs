//! From a command line to results.
//!
//! ```text
//!  stage 1: hosts, where more than one address is asked ▶ stage 2: their ports, one pass for each protocol, all at once
//! ```

use core::time::Duration;
use std::io::{self, Write};

use picket_wire::job::{HostProbe, Technique};
use picket_wire::service::ServiceOutcome;
use picket_wire::space::{TargetSpace, TargetSpec};

use super::Outcome;
use super::args::{CommonArgs, DiscoverArgs, PortArgs, ScanArgs, ServicesArgs};
use super::dry_run;
use super::engines::{Asking, Engines, Told, random};
use super::error::{StandaloneError, system};
use super::ledger::{Ledger, unix};
use super::link::{self, Wanted};
use super::output::Outputs;
use super::prepare::{self, Work};
use super::progress::{ProgressLine, Standing};
use super::request::{DISCOVERY, PassPlan, Request, outputs};
use super::results::{PassHead, RunHead};
use super::resume::{Entry, Head, Journal, ResumeError, SYNC_EVERY};
use super::services::{Detection, OpenPort};
use super::signals::Signals;
use crate::logging;
use crate::net::clock;
use crate::net::target_pacer::TargetLimits;
use crate::net::time::Instant;
use crate::scan::report::Event;
use crate::scan::spec::Cut;

/// How often the progress line changes.
const TICK: Duration = Duration::from_millis(500);

/// Runs `picket-probe scan`.
///
/// # Errors
/// See [`StandaloneError`]; an interrupted run is no error but [`Outcome::Incomplete`].
pub fn scan(args: &ScanArgs) -> Result<Outcome, StandaloneError> {
    let bare = args.ports == PortArgs::default() && !args.services;
    start(&args.common, bare, || Request::scan(&args.ports, &args.common, args.services))
}

/// Runs `picket-probe services`.
///
/// # Errors
/// See [`StandaloneError`]; an interrupted run is no error but [`Outcome::Incomplete`].
pub fn services(args: &ServicesArgs) -> Result<Outcome, StandaloneError> {
    start(&args.common, args.ports == PortArgs::default(), || Request::scan(&args.ports, &args.common, true))
}

/// Runs `picket-probe discover`.
///
/// # Errors
/// See [`StandaloneError`]; an interrupted run is no error but [`Outcome::Incomplete`].
pub fn discover(args: &DiscoverArgs) -> Result<Outcome, StandaloneError> {
    let bare = args.technique.is_none() && args.host_probes.is_empty();
    match link::wanted(args)? {
        Wanted::Sweep => start(&args.common, bare, || Request::discover(args)),
        Wanted::Link => link::discover(&args.common, None),
        Wanted::Networks(networks, None) => link::discover(&args.common, Some(networks)),
        Wanted::Networks(networks, Some(rest)) => match start(&args.common, bare, || Ok(*rest))? {
            Outcome::Complete => link::discover(&args.common, Some(networks)),
            Outcome::Incomplete => Ok(Outcome::Incomplete),
        },
    }
}

/// A run to be begun, or to be gone on with.
struct Start {
    head: Head,
    journal: Option<Journal>,
    /// What it has found so far.
    entries: Vec<Entry>,
}

fn start(common: &CommonArgs, bare: bool, request: impl FnOnce() -> Result<Request, StandaloneError>) -> Result<Outcome, StandaloneError> {
    if !common.names_targets() && common.resume.is_none() {
        return Err(StandaloneError::NoTargets);
    }
    if common.list {
        return list(&request()?);
    }
    let mut start = begin_or_go_on(common, bare, request)?;
    let request = &mut start.head.request;
    if common.names_outputs() || !common.names_targets() && request.outputs.is_empty() {
        request.outputs = outputs(common)?;
    }
    let mut config = prepare::configuration(common.config.as_deref(), request.interface.as_deref())?;
    config.services.fingerprints = common.fingerprints.clone().or(config.services.fingerprints);
    logging::start(config.log_level.min(log::LevelFilter::Warn));
    prepare::announce_names(&request.names, &config.policy);
    // Impossible targets are said before anything else is looked at.
    let plans = plans(request);
    for (number, plan) in plans.iter().enumerate() {
        prepare::pass(request, plan, number, start.head.seed, None)?;
    }
    if common.dry_run {
        return dry_run::Plan::new(config, request, &plans)?.print(common.json).map_err(system("write the plan"));
    }
    prepare::announce_fragile(request.services.unwrap_or_default(), &config.services.site);
    let work = prepare::work(config, &request.targets(), request.rate())?;
    let _lock = prepare::lock()?;
    if let (None, Some(path)) = (&start.journal, &common.resume) {
        start.journal = Some(Journal::create(path, &start.head)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start the runtime"))?;
    let session = {
        let _inside = runtime.enter();
        Session::new(start, work, common)?
    };
    runtime.block_on(session.run())
}

/// The run of the resume file, or a new one.
fn begin_or_go_on(
    common: &CommonArgs,
    bare: bool,
    request: impl FnOnce() -> Result<Request, StandaloneError>,
) -> Result<Start, StandaloneError> {
    let stored = common.resume.as_deref().map(Journal::open).transpose()?.flatten();
    match (stored, &common.resume) {
        (Some((journal, head, entries)), Some(_)) if !common.names_targets() => match bare && common.says_nothing() {
            true => Ok(Start { head, journal: Some(journal), entries }),
            false => Err(StandaloneError::ResumeAlone),
        },
        (Some((journal, head, entries)), _) => match request()?.differs(&head.request) {
            None => Ok(Start { head, journal: Some(journal), entries }),
            Some(what) => Err(ResumeError::Other { path: journal.path().to_owned(), what }.into()),
        },
        (None, Some(path)) if !common.names_targets() => Err(ResumeError::Missing(path.clone()).into()),
        (None, _) => {
            let arguments: Vec<String> = std::env::args().skip(1).collect();
            let seed = u64::from_le_bytes(random()?);
            let head = Head { request: request()?, seed, started: unix(clock::wall()), arguments: arguments.join(" ") };
            Ok(Start { head, journal: None, entries: Vec::new() })
        }
    }
}

/// All passes: discovery first, where it is wanted.
fn plans(request: &Request) -> Vec<PassPlan> {
    let discovery = request.discovery.then_some(PassPlan { technique: DISCOVERY, ports: None });
    discovery.into_iter().chain(request.passes.iter().cloned()).collect()
}

/// Prints the addresses in their natural order.
fn list(request: &Request) -> Result<Outcome, StandaloneError> {
    let spec = TargetSpec { include: request.include.clone(), exclude: request.exclude.clone(), ports: None, seed: 0 };
    let space = TargetSpace::new(&spec)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut targets = (0..space.len()).map_while(|index| space.natural(index));
    let written = targets.try_for_each(|target| writeln!(out, "{}", target.addr)).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Outcome::Incomplete),
        written => written.map(|()| Outcome::Complete).map_err(system("write the list")),
    }
}

/// How far a run is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    No,
    /// What is under way is finished and reported.
    Soon,
    /// At once.
    Now,
}

/// A run.
struct Session {
    head: Head,
    work: Work,
    ledger: Ledger,
    engines: Engines,
    /// Where services are asked for.
    detection: Option<Detection>,
    signals: Signals,
    line: ProgressLine,
    entries: Vec<Entry>,
    started: Instant,
    /// What earlier processes took.
    before: Duration,
    synced: Instant,
    stop: Stop,
    stage: &'static str,
}

impl Session {
    fn new(start: Start, work: Work, common: &CommonArgs) -> Result<Self, StandaloneError> {
        let Start { mut head, journal, entries } = start;
        let engines = open_engines(&mut head.request, &work)?;
        let request = &head.request;
        let site = &work.config.services;
        let detection = match request.services {
            Some(options) => {
                let fingerprints = site.load_fingerprints()?;
                Some(Detection::begin(options, site.site.clone(), engines.connects(), engines.targets(), &work.permit, fingerprints))
            }
            None => None,
        };
        let run_head = RunHead {
            arguments: format!("picket-probe {}", head.arguments),
            started: std::time::UNIX_EPOCH + Duration::from_millis(head.started.0),
            targets: request.targets(),
            names: request.names.clone(),
            services: request.services.is_some(),
            ports: request.has_ports(),
            all: request.all,
        };
        let outputs = Outputs::open(&request.outputs, &run_head)?;
        let now = clock::now();
        let before = entries.iter().rev().find_map(|entry| if let Entry::Took(took) = entry { Some(*took) } else { None });
        Ok(Self {
            ledger: Ledger::new(outputs, journal, request.services.is_some()),
            head,
            work,
            engines,
            detection,
            signals: Signals::new().map_err(system("listen for signals"))?,
            line: ProgressLine::new(now, common.stats_every),
            entries,
            started: now,
            before: before.unwrap_or_default(),
            synced: now,
            stop: Stop::No,
            stage: "",
        })
    }

    async fn run(mut self) -> Result<Outcome, StandaloneError> {
        let plans = plans(&self.head.request);
        let rest = if self.head.request.discovery { plans.get(1..).unwrap_or_default() } else { plans.as_slice() };
        let first = plans.len() - rest.len();
        let entries = core::mem::take(&mut self.entries);
        let (early, later): (Vec<Entry>, Vec<Entry>) =
            entries.into_iter().partition(|entry| entry.pass().is_none_or(|pass| usize::from(pass) < first));
        if let (1, Some(plan)) = (first, plans.first()) {
            let mut head = prepare::pass(&self.head.request, plan, 0, self.head.seed, None)?;
            head.discovery = true;
            self.stage("looking for hosts", vec![head], &early).await?;
        }
        let hosts = (first == 1).then(|| self.ledger.up());
        let of = |(number, plan)| prepare::pass(&self.head.request, plan, number, self.head.seed, hosts.as_ref());
        let heads = (first..).zip(rest).map(of).collect::<Result<Vec<_>, _>>()?;
        let what = if self.head.request.has_ports() { "ports" } else { "hosts" };
        self.stage(what, heads, &later).await?;
        self.end()
    }

    /// Reads again what is known of some passes, and does what is left of them.
    async fn stage(&mut self, what: &'static str, heads: Vec<PassHead>, known: &[Entry]) -> Result<(), StandaloneError> {
        self.stage = what;
        let first = self.ledger.passes().len();
        let beside = heads.len();
        heads.into_iter().for_each(|head| self.ledger.add(head));
        known.iter().try_for_each(|entry| self.ledger.replay(entry))?;
        self.ask_services();
        self.engines.forget();
        if self.stop > Stop::No || self.ledger.failed().is_some() {
            return Ok(());
        }
        // With limits towards targets passes follow one another: side by side they would wait for each other.
        let together = self.head.request.target_limits() == TargetLimits::default();
        for number in first..self.ledger.passes().len() {
            if self.stop == Stop::No {
                self.begin(number, if together { beside } else { 1 })?;
            }
            if !together {
                self.follow().await?;
            }
        }
        self.follow().await
    }

    /// Begins what is left of a pass.
    fn begin(&mut self, number: usize, beside: usize) -> Result<(), StandaloneError> {
        let request = &self.head.request;
        let Some(pass) = self.ledger.passes().get(number).filter(|pass| !pass.is_complete()) else { return Ok(()) };
        let host_probes = if pass.head.technique == Technique::Discover { request.host_probes.as_slice() } else { &[] };
        let attempts = attempts(request, &pass.head);
        let asking = Asking { attempts, host_probes, services: request.services, on_stop: self.on_stop(), beside };
        self.engines.begin(number, &pass.head, pass.next, &asking)
    }

    /// Who goes on from a resume file asks again what is not decided; else nobody would.
    fn on_stop(&self) -> Cut {
        if self.ledger.resume_file().is_some() { Cut::Resumable } else { Cut::Final }
    }

    /// Takes what the passes tell until all have ended; ends them on a signal, and on the second one at once.
    async fn follow(&mut self) -> Result<(), StandaloneError> {
        let mut tick = tokio::time::interval(TICK);
        while (self.engines.is_running() || self.is_talking()) && self.stop < Stop::Now {
            tokio::select! {
                told = self.engines.next() => self.take(told?)?,
                Some((port, outcome)) = served(self.detection.as_mut()) => {
                    self.line.clear();
                    self.ledger.service(port, outcome)?;
                    self.engines.set_talking(self.is_talking());
                }
                () = self.signals.next() => self.interrupt(),
                _ = tick.tick() => self.tick()?,
            }
        }
        self.line.clear();
        Ok(())
    }

    fn is_talking(&self) -> bool {
        self.detection.as_ref().is_some_and(Detection::is_busy)
    }

    /// Hands open ports on.
    fn ask_services(&mut self) {
        if let Some(detection) = &mut self.detection {
            self.ledger.unserved().iter().for_each(|(port, row)| detection.ask(*port, row));
            self.engines.set_talking(detection.is_busy());
        }
    }

    /// Ends all that is under way: passes report what they have, open ports are asked no more.
    fn stop(&mut self) {
        self.stop = Stop::Soon;
        self.engines.stop(self.on_stop());
        self.detection = None;
        self.engines.set_talking(false);
    }

    fn take(&mut self, told: Told) -> Result<(), StandaloneError> {
        if !matches!(told, Told::Scan(_, Event::Done(_))) {
            self.line.clear();
        }
        match told {
            Told::Scan(pass, Event::Chunk(report)) => self.ledger.chunk(pass, report)?,
            Told::Scan(pass, Event::Late(report)) => self.ledger.late(pass, report)?,
            Told::Scan(pass, Event::Hosts(hosts)) => self.ledger.hosts(pass, hosts)?,
            Told::Scan(_, Event::Proxy(proxy)) => {
                eprintln!("warning: {proxy}");
                self.ledger.proxy(proxy);
            }
            // A pass scans, and traces nothing.
            Told::Scan(_, Event::Paths(_)) => {}
            Told::Scan(pass, Event::Done(_)) => self.engines.ended(pass),
            Told::Link { up } => eprintln!("the interface is {}", if up { "up again" } else { "down: waiting for it" }),
        }
        // Who reads the results may have had enough of them (`head`): then there is no point in going on.
        if self.ledger.failed().is_some() && self.stop == Stop::No {
            self.stop();
        }
        self.ask_services();
        Ok(())
    }

    fn interrupt(&mut self) {
        self.line.clear();
        match self.stop {
            Stop::No => {
                eprintln!("stopping");
                self.stop();
            }
            Stop::Soon | Stop::Now => self.stop = Stop::Now,
        }
    }

    fn tick(&mut self) -> Result<(), StandaloneError> {
        let now = clock::now();
        if now.saturating_since(self.synced) >= SYNC_EVERY {
            self.synced = now;
            self.ledger.sync(self.took())?;
        }
        let (stage, engines, work, request) = (self.stage, &self.engines, &self.work, &self.head.request);
        let services = self.detection.as_ref().filter(|_| !engines.is_running()).map(Detection::progress);
        self.line.show(now, || standing(stage, services, engines, work, request));
        Ok(())
    }

    fn took(&self) -> Duration {
        self.before + clock::now().saturating_since(self.started)
    }

    fn end(mut self) -> Result<Outcome, StandaloneError> {
        let took = self.took();
        self.ledger.sync(took)?;
        match self.ledger.take_failure() {
            Some(failure) if failure.source.kind() == io::ErrorKind::BrokenPipe => {
                log::warn!("nobody reads the results any more");
                return Ok(Outcome::Incomplete);
            }
            Some(failure) => return Err(failure.into()),
            None => {}
        }
        let outcome = self.ledger.end(excluded(&self.head.request), took)?;
        if let (Outcome::Incomplete, Some(path)) = (outcome, self.ledger.resume_file()) {
            eprintln!("to go on: picket-probe scan --resume {}", path.display());
        }
        Ok(outcome)
    }
}

/// What serves on the next port that is told; never, where none is asked.
async fn served(detection: Option<&mut Detection>) -> Option<(OpenPort, ServiceOutcome)> {
    match detection {
        Some(detection) => detection.next().await,
        None => core::future::pending().await,
    }
}

/// Targets that exclusions took out.
fn excluded(request: &Request) -> u64 {
    let addresses = request.include.intersection(&request.exclude).len().unwrap_or(u128::MAX);
    let width: u128 = request.passes.iter().map(|pass| pass.ports.as_ref().map_or(1, |ports| u128::from(ports.len()))).sum();
    u64::try_from(addresses.saturating_mul(width)).unwrap_or(u64::MAX)
}

/// Discovery asks in each of its ways at least once.
fn attempts(request: &Request, head: &PassHead) -> u8 {
    let probes = if request.host_probes.is_empty() { HostProbe::DEFAULT } else { &request.host_probes };
    match head.technique {
        Technique::Discover => request.attempts.max(u8::try_from(probes.len()).unwrap_or(u8::MAX)).min(picket_wire::job::MAX_ATTEMPTS),
        _ => request.attempts,
    }
}

/// Opens what the passes need; where raw packets are not permitted and connections will do, those.
fn open_engines(request: &mut Request, work: &Work) -> Result<Engines, StandaloneError> {
    let raw = request.discovery || request.passes.iter().any(|pass| pass.technique != Technique::Connect);
    let syn_alone = request.passes.iter().all(|pass| pass.technique == Technique::Syn);
    let targets = request.target_limits();
    match Engines::open(work, raw, targets) {
        Err(StandaloneError::Station(error)) if Engines::is_permission(&error) => match (request.may_connect, syn_alone) {
            (true, true) => {
                eprintln!("{error}; scanning by connections instead");
                request.discovery = false;
                request.passes.iter_mut().for_each(|pass| pass.technique = Technique::Connect);
                Engines::open(work, false, targets)
            }
            (_, true) => Err(StandaloneError::Unprivileged(error)),
            _ => Err(error.into()),
        },
        opened => opened,
    }
}

fn standing(stage: &'static str, services: Option<(u64, u64)>, engines: &Engines, work: &Work, request: &Request) -> Standing {
    let mut slow = Vec::new();
    let asked = request.rate();
    if let (Some(asked), Some(granted)) = (asked.packets, work.granted.packets)
        && asked > granted
    {
        slow.push(format!("clipped from {asked}"));
    }
    if let (Some(asked), Some(granted)) = (asked.bits, work.granted.bits)
        && asked > granted
    {
        slow.push(format!("clipped from {asked}"));
    }
    if let Some(stats) = engines.stats() {
        if !stats.up {
            slow.push("the interface is down".to_owned());
        }
        let tasks = stats.tasks.iter().filter_map(|(_, task)| task.slowed);
        let mut reasons: Vec<&str> = stats.slowed.into_iter().chain(tasks).map(|why| why.because()).collect();
        reasons.dedup();
        slow.extend(reasons.into_iter().map(str::to_owned));
        if stats.receive_drops > 0 {
            slow.push(format!("{} answers were lost before they were read", stats.receive_drops));
        }
    }
    let (total, begun, packets, answers) = engines.progress();
    match services {
        // The scan is over, and ports are still asked what serves there.
        Some((total, begun)) => Standing { stage: "services", total, begun, packets, answers: begun, slow },
        None => Standing { stage, total, begun, packets, answers, slow },
    }
}
