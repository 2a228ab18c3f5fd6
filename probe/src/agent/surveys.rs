//! Jobs that want to know what serves on open ports: the questions that run beside the scan of each such lease.
//!
//! Finished chunks wait in line until their open ports are asked ([`HeldChunks`]); the scan goes on meanwhile. When too many wait,
//! the scan is parked behind its last chunk and begins again there when the line is short enough.
//!
//! **Invariant:** at most `HELD_MAX` finished chunks of a lease wait, and those that were on their way when it was parked.
//! **Invariant:** a lease that is cut waits for nothing: what is finished is told, and nothing more is asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use picket_wire::ids::LeaseId;
use picket_wire::job::{JobSpec, ServiceOptions};
use picket_wire::policy::{AddressPolicy, Permit};
use picket_wire::result::{LateAnswer, ResultBatch, State};
use picket_wire::space::TargetSpace;
use picket_wire::units::UnixMillis;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::held::{HeldChunks, Ready};
use crate::config::ServicesConfig;
use crate::net::engine::Source;
use crate::net::pacer::{Limits, SharedPacer};
use crate::net::target_pacer::TargetPacer;
use crate::scan::connect;
use crate::service::recog::Fingerprints;
use crate::service::{self, Deadlines, DetectOptions, Detected, ServiceTarget};

/// Finished chunks of a lease that may wait before its scan is parked.
const HELD_MAX: usize = 8;
/// A parked scan begins again when so few wait.
const HELD_LOW: usize = 2;
/// Connections of questions at a time: each has buffers, and the box little memory.
const OPEN_MAX: usize = 96;
/// Why ports were not asked whose lease is over.
const STOPPED: &str = "stopped before it was asked";

/// What the questions of a lease tell.
pub type ServiceEvent = (LeaseId, Detected);

/// How the scan stands that finds the ports.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scan {
    Running,
    /// It was told to stop, and goes on later.
    Parking,
    Parked,
    /// It is over, with what went wrong.
    Ended(Option<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// All of it is asked.
    Open,
    /// Cut; somebody goes on behind what is finished.
    GoesOn,
    /// Cut for good.
    Over,
}

struct Survey {
    held: HeldChunks,
    spec: Arc<JobSpec>,
    space: Arc<TargetSpace>,
    /// One past the last position of the lease, and of what is measured so far.
    to: u64,
    next: u64,
    scan: Scan,
    fate: Fate,
    /// Limits towards each address and network, for scan and questions together.
    limits: Option<TargetPacer>,
    targets: mpsc::UnboundedSender<ServiceTarget>,
    questions: JoinHandle<()>,
}

impl Drop for Survey {
    fn drop(&mut self) {
        self.questions.abort();
    }
}

/// What is to be done with a lease.
#[derive(Debug)]
pub enum Next {
    /// Something for the spool.
    Ready(Ready),
    /// Cut the scan: it goes on later.
    Park,
    /// Measure from here to the end.
    Resume {
        /// The job.
        spec: Arc<JobSpec>,
        /// Its space.
        space: Arc<TargetSpace>,
        /// First position.
        from: u64,
        /// One past the last position.
        to: u64,
        /// Limits towards each address and network, those of the scan that was parked.
        limits: Option<TargetPacer>,
    },
    /// All is told, and the scan is over.
    Ended(Option<String>),
}

/// What the questions stand on.
pub struct Ground {
    /// The pacer that all connections share.
    pub interface: SharedPacer,
    /// What the job's questions may send.
    pub rate: Limits,
    /// Limits towards each address and network, shared with the scan.
    pub targets: Option<TargetPacer>,
    /// Addresses to ask from.
    pub source: Source,
    /// Trusted time.
    pub wall: Option<UnixMillis>,
}

/// The leases that ask.
pub struct Surveys {
    site: AddressPolicy,
    config: ServicesConfig,
    fingerprints: Option<Arc<Fingerprints>>,
    events: mpsc::UnboundedSender<ServiceEvent>,
    running: BTreeMap<LeaseId, Survey>,
}

/// What a job wants to know of services; nothing where it does not scan ports.
pub fn wanted(spec: &JobSpec) -> Option<ServiceOptions> {
    spec.kind.scan().technique.transport()?;
    spec.kind.survey()?.services
}

impl Surveys {
    /// Nothing is asked yet.
    pub fn new(site: AddressPolicy, config: ServicesConfig, events: mpsc::UnboundedSender<ServiceEvent>) -> Self {
        Self { site, config, fingerprints: None, events, running: BTreeMap::new() }
    }

    /// Read when first needed: most probes never do, and memory is short.
    fn fingerprints(&mut self) -> Arc<Fingerprints> {
        let config = &self.config;
        let read = || {
            Arc::new(config.load_fingerprints().unwrap_or_else(|error| {
                log::error!("{}; only the fingerprints that Picket brings are used", crate::errors::chain(&error));
                Fingerprints::builtin()
            }))
        };
        Arc::clone(self.fingerprints.get_or_insert_with(read))
    }

    /// The scan of a lease begins whose open ports are to be asked.
    pub fn begin(&mut self, lease: LeaseId, spec: &Arc<JobSpec>, space: &Arc<TargetSpace>, from: u64, to: u64, ground: Ground) {
        let Some(options) = wanted(spec) else { return };
        let limits = ground.targets.clone();
        let detect = DetectOptions {
            interface: ground.interface,
            rate: ground.rate,
            targets: ground.targets,
            max_open: (connect::open_limit() / 2).min(OPEN_MAX),
            options,
            site: self.config.site.clone(),
            fingerprints: self.fingerprints(),
            source: ground.source,
            mark: Some(crate::net::link::SHAPER_MARK),
            wall: ground.wall,
            deadlines: Deadlines::default(),
        };
        let permit = Permit::all_of([&self.site, &spec.policy]);
        let (targets, wanted) = mpsc::unbounded_channel();
        let events = self.events.clone();
        let questions = tokio::spawn(async move {
            let (into, asked) = mpsc::channel(1);
            let (told, found) = mpsc::channel(16);
            let detection = service::detect(detect, Arc::new(move |dst| permit.permits(dst)), asked, told);
            tokio::join!(detection, feed(wanted, into), forward(lease, found, events));
        });
        let survey = Survey {
            held: HeldChunks::default(),
            spec: Arc::clone(spec),
            space: Arc::clone(space),
            to,
            next: from,
            scan: Scan::Running,
            fate: Fate::Open,
            limits,
            targets,
            questions,
        };
        self.running.insert(lease, survey);
    }

    /// Whether the ports of this lease are asked.
    pub fn has(&self, lease: LeaseId) -> bool {
        self.running.contains_key(&lease)
    }

    /// All leases whose ports are asked.
    pub fn leases(&self) -> Vec<LeaseId> {
        self.running.keys().copied().collect()
    }

    /// Whether any port is being asked.
    pub fn is_asking(&self) -> bool {
        self.running.values().any(|survey| survey.held.asking() > 0)
    }

    /// A chunk of the lease is finished.
    pub fn on_chunk(&mut self, batch: ResultBatch) {
        let Some(survey) = self.running.get_mut(&batch.lease) else { return };
        survey.next = batch.to;
        let from = batch.from;
        let open = batch.answers().filter(|answer| answer.state == State::Open);
        let targets: Vec<ServiceTarget> = open.filter_map(|answer| survey.target(from + answer.offset)).collect();
        survey.held.push(batch, targets.iter().map(|target| target.id));
        for target in targets {
            survey.ask(target);
        }
        survey.cut_what_is_left();
    }

    /// A position of the lease has answered late.
    pub fn on_late(&mut self, lease: LeaseId, answer: LateAnswer) {
        let Some(survey) = self.running.get_mut(&lease) else { return };
        let target = Some(answer.position).filter(|_| answer.state == State::Open).and_then(|position| survey.target(position));
        survey.held.push_late(answer, target.is_some());
        if let Some(target) = target {
            survey.ask(target);
        }
        survey.cut_what_is_left();
    }

    /// It is known what asking a port came to.
    pub fn on_found(&mut self, (lease, detected): ServiceEvent) -> Option<LeaseId> {
        let survey = self.running.get_mut(&lease)?;
        survey.held.found(detected.id, detected.outcome).then_some(lease)
    }

    /// The scan of the lease is over.
    pub fn on_ended(&mut self, lease: LeaseId, failure: Option<String>) {
        let Some(survey) = self.running.get_mut(&lease) else { return };
        let goes_on = survey.scan == Scan::Parking && survey.fate == Fate::Open && survey.next < survey.to && failure.is_none();
        survey.scan = if goes_on { Scan::Parked } else { Scan::Ended(failure) };
    }

    /// The lease is to end; `goes_on` where somebody else, or this probe later, goes on behind what is finished.
    pub fn cut(&mut self, lease: LeaseId, goes_on: bool) {
        let Some(survey) = self.running.get_mut(&lease) else { return };
        survey.fate = if goes_on { Fate::GoesOn } else { Fate::Over };
        survey.questions.abort();
        if survey.scan == Scan::Parked {
            survey.scan = Scan::Ended(None);
        }
        survey.cut_what_is_left();
    }

    /// The spool took no more: what waits is measured and asked again.
    pub fn forget_held(&mut self, lease: LeaseId) {
        if let Some(survey) = self.running.get_mut(&lease) {
            survey.held = HeldChunks::default();
        }
    }

    /// What is to be done with the lease now; to be called until nothing is.
    pub fn next(&mut self, lease: LeaseId) -> Option<Next> {
        let survey = self.running.get_mut(&lease)?;
        if survey.questions.is_finished() && survey.fate == Fate::Open && survey.held.asking() > 0 {
            // It ends by itself only by a fault: what nobody asks any more must not hold everything up.
            log::error!("lease {lease}: service detection has ended, and {} ports were not asked", survey.held.asking());
            survey.held.give_up("service detection ended early");
        }
        if let Some(ready) = survey.held.pop() {
            return Some(Next::Ready(ready));
        }
        match &survey.scan {
            Scan::Running if survey.fate == Fate::Open && survey.held.chunks() >= HELD_MAX && survey.next < survey.to => {
                survey.scan = Scan::Parking;
                Some(Next::Park)
            }
            Scan::Parked if survey.held.chunks() <= HELD_LOW => {
                survey.scan = Scan::Running;
                let (spec, space) = (Arc::clone(&survey.spec), Arc::clone(&survey.space));
                Some(Next::Resume { spec, space, from: survey.next, to: survey.to, limits: survey.limits.clone() })
            }
            Scan::Ended(failure) if survey.held.is_empty() => {
                let failure = failure.clone();
                self.running.remove(&lease);
                Some(Next::Ended(failure))
            }
            _ => None,
        }
    }
}

impl Survey {
    fn target(&self, position: u64) -> Option<ServiceTarget> {
        let target = self.space.target(position)?;
        let transport = self.spec.kind.scan().technique.transport()?;
        Some(ServiceTarget { id: position, addr: target.addr, port: target.port?, transport })
    }

    fn ask(&self, target: ServiceTarget) {
        // Questions that were given up take none; what is left is cut below.
        let _ = self.targets.send(target);
    }

    fn cut_what_is_left(&mut self) {
        match self.fate {
            Fate::Open => {}
            Fate::GoesOn => self.held.forget_unfinished(STOPPED),
            Fate::Over => self.held.give_up(STOPPED),
        }
    }
}

/// Hands targets on as they are taken.
async fn feed(mut wanted: mpsc::UnboundedReceiver<ServiceTarget>, into: mpsc::Sender<ServiceTarget>) {
    while let Some(target) = wanted.recv().await {
        if into.send(target).await.is_err() {
            return;
        }
    }
}

async fn forward(lease: LeaseId, mut found: mpsc::Receiver<Detected>, events: mpsc::UnboundedSender<ServiceEvent>) {
    while let Some(detected) = found.recv().await {
        // The receiver lives as long as the agent.
        let _ = events.send((lease, detected));
    }
}
