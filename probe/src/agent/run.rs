//! The agent's shell: sockets, timers, signals and the disk around [`super::core::Agent`].
//!
//! One loop on one thread waits for whatever comes next (a message, a chunk of results, a timer, a signal), tells the agent,
//! carries out its actions, syncs the spool when that is due, and publishes what the disk has confirmed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use picket_wire::codec;
use picket_wire::event::{Check, Event, InterfaceLimits, Live, Pace, SelfTest, Shaper, Traffic};
use picket_wire::ids::{LeaseId, SessionId, StreamId};
use picket_wire::job::JobSpec;
use picket_wire::result::{EXTRAS_MAX, LateAnswer};
use picket_wire::service::ServiceBatch;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::captures::{CaptureEvent, Captures, Kept};
use super::core::{Action, Agent, Identity as AgentIdentity, Pacing, Vitals};
use super::held::Ready;
use super::journal::{DiskJournal, spool_time};
#[cfg(feature = "libpcap")]
use super::ring::Ring;
use super::state;
use super::surveys::{self, Next, ServiceEvent, Surveys};
use super::tasks::{self, ConnectEvent, TaskEvent, Tasks};
use crate::config::Config;
use crate::errors::chain;
use crate::identity::Identity;
use crate::net::drive::{DriveEvent, DriveStats};
use crate::net::engine::Source;
use crate::net::ports::SourcePorts;
use crate::net::time::Instant;
use crate::net::{clock, netlink};
use crate::scan;
use crate::scan::report::TracedChunk;
use crate::shaper;
use crate::spool::{DiskFs, Spool, SpoolConfig};
use crate::station::{self, Station};
use crate::transport::mqtt::{Beginning, Link, LinkEvent, MqttConfig, Outlet, PublishError, Session};
use crate::transport::{Delivery, DeliveryConfig};

/// How often an interface that could not be opened is tried again.
const STATION_RETRY: Duration = Duration::from_secs(10);
/// How soon the transport is tried again when its queue was full.
const BUSY_RETRY: Duration = Duration::from_millis(20);
/// How long running measurements may take to hand over what they finished when the program ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often it is looked whether the interface got or lost an address: DHCP may be slower than this program's start.
const ABILITIES_EVERY: Duration = Duration::from_secs(10);

/// How long a late answer waits for others, so that they share a record.
const LATE_WAIT: Duration = Duration::from_millis(500);
/// How often the kernel's shaper is looked at.
const SHAPER_EVERY: Duration = Duration::from_secs(60);
/// How often files of captures are looked after whose leases are over.
const SETTLE_EVERY: Duration = Duration::from_secs(60);

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The spool cannot be opened.
    #[error(transparent)]
    Spool(#[from] crate::spool::SpoolError),
    /// The controller's signing key is not one.
    #[error("the controller's signing key is damaged: enrol again")]
    SigningKey(#[source] ed25519_dalek::SignatureError),
    /// TLS cannot be set up with this identity.
    #[error("set up TLS with this probe's identity")]
    Tls(#[source] rustls::Error),
    /// The system has no randomness.
    #[error("the system gives no randomness: {0}")]
    Randomness(getrandom::Error),
    /// Signals cannot be received.
    #[error("receive signals")]
    Signals(#[source] std::io::Error),
}

fn random() -> Result<u64, RunError> {
    getrandom::u64().map_err(RunError::Randomness)
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: &Config, identity: Identity) -> Result<(), RunError> {
    let mut shell = Shell::new(config, identity)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let (mut link, mut link_events) = shell.connect()?;
    let mut closing_until: Option<Instant> = None;
    loop {
        shell.pump();
        if shell.reconnect {
            // Births tell what the box can do: a new one needs a new session.
            shell.reconnect = false;
            link.close().await;
            shell.on_disconnected();
            (link, link_events) = shell.connect()?;
        }
        let now = clock::now();
        if closing_until.is_some_and(|until| now >= until || !shell.agent.is_measuring()) {
            break;
        }
        let until = shell.next_timeout(now).min(closing_until.unwrap_or(Instant::FAR_FUTURE));
        let sleep = until.saturating_since(now).min(Duration::from_secs(3600));
        tokio::select! {
            event = link_events.recv() => match event {
                Some(event) => shell.on_link(event),
                None => {
                    log::error!("the link's task has ended; starting it again");
                    shell.on_disconnected();
                    (link, link_events) = shell.connect()?;
                }
            },
            Some(event) = shell.drive_events.recv() => {
                if matches!(event, DriveEvent::Link { up: true }) {
                    link.retry_now();
                }
                shell.on_drive(event);
            }
            Some(event) = shell.connect_events.recv() => {
                let event = shell.tasks.on_connect(shell.station.as_ref(), event);
                shell.on_task(event);
            }
            Some(event) = shell.service_events.recv() => shell.on_service(event),
            Some(event) = shell.capture_events.recv() => shell.on_capture(event),
            () = tokio::time::sleep(sleep) => {}
            _ = terminate.recv() => { shell.agent.shut_down(); closing_until.get_or_insert(now + CLOSE_TIMEOUT); }
            _ = interrupt.recv() => { shell.agent.shut_down(); closing_until.get_or_insert(now + CLOSE_TIMEOUT); }
        }
        shell.on_timeout();
    }
    shell.good_bye();
    link.close().await;
    log::info!("stopped in an orderly way");
    Ok(())
}

/// Without libpcap there is none.
#[cfg(not(feature = "libpcap"))]
enum Ring {}

struct Shell<'a> {
    config: &'a Config,
    identity: Arc<Identity>,
    agent: Agent<DiskJournal>,
    delivery: Delivery,
    tasks: Tasks,
    station: Option<Station>,
    station_retry: Instant,
    /// What the box could do when that was last told, and when it is looked at again.
    abilities: SelfTest,
    abilities_due: Instant,
    drive_sender: mpsc::UnboundedSender<DriveEvent<scan::report::Event>>,
    drive_events: mpsc::UnboundedReceiver<DriveEvent<scan::report::Event>>,
    connect_events: mpsc::UnboundedReceiver<ConnectEvent>,
    surveys: Surveys,
    service_events: mpsc::UnboundedReceiver<ServiceEvent>,
    captures: Captures,
    capture_events: mpsc::UnboundedReceiver<CaptureEvent>,
    settle_due: Instant,
    /// Ends with the program.
    _ring: Option<Ring>,
    /// Late answers that wait for others until this moment.
    late: BTreeMap<LeaseId, (Instant, Vec<LateAnswer>)>,
    session: Option<Session>,
    /// The session id of the next connection: its last will must carry it before the connection is there.
    next_session: Arc<Mutex<SessionId>>,
    started: Instant,
    publish_retry: Instant,
    sync_retry: Instant,
    /// Somebody may wait for what is in the spool: it is synced without waiting for the interval.
    sync_now: bool,
    policy_refused: u64,
    reconnect: bool,
    /// The kernel's shaper when it was looked at last, and when it is looked at again.
    shaper: Shaper,
    shaper_due: Instant,
}

impl<'a> Shell<'a> {
    fn new(config: &'a Config, identity: Identity) -> Result<Self, RunError> {
        let now = clock::now();
        let spool_config =
            SpoolConfig { cap_bytes: config.spool.max_bytes, fsync_interval: config.spool.fsync_interval, ..SpoolConfig::default() };
        let (spool, recovery) = Spool::open(DiskFs, &config.data.join("spool"), spool_config, StreamId(random()?))?;
        log::info!("spool opened: {recovery:?}");
        let state_path = config.data.join("agent.state");
        let saved = state::load(&state_path).unwrap_or_else(|error| {
            // Leases are granted again by the controller; serials start over, protected by the commands' short life.
            log::error!("{}", chain(&error));
            state::Saved::default()
        });
        let mut journal = DiskJournal::new(spool, state_path);
        let unacked = journal.unacked()?;
        let acked = journal.spool.acked();

        let (drive_sender, drive_events) = mpsc::unbounded_channel();
        let (connect_sender, connect_events) = mpsc::unbounded_channel();
        let (service_sender, service_events) = mpsc::unbounded_channel();
        let (capture_sender, capture_events) = mpsc::unbounded_channel();
        let mut shell_station = None;
        let (self_test, interface) = open_station(config, &drive_sender, &mut shell_station);
        let station_retry = if shell_station.is_some() { Instant::FAR_FUTURE } else { now + STATION_RETRY };
        let abilities = self_test.clone();
        let signing_key = VerifyingKey::from_bytes(identity.signing_key()).map_err(RunError::SigningKey)?;
        let me = AgentIdentity {
            probe: identity.probe().clone(),
            signing_keys: vec![signing_key],
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hardware: crate::health::hardware(),
            self_test,
            interface,
        };
        let agent = Agent::new(me, journal, saved, &unacked);
        let identity = Arc::new(identity);
        let ring_dir = config.data.join("ring");
        let kept = config.ring.as_ref().map(|ring| Kept { dir: ring_dir.clone(), snap_len: ring.snap_len });
        let (events, measuring) = (capture_sender, config.interface.name.clone());
        Ok(Self {
            config,
            captures: Captures::load(&config.data, config.capture.clone(), kept, measuring, Arc::clone(&identity), events),
            _ring: start_ring(config, ring_dir, &identity),
            capture_events,
            settle_due: Instant::FAR_FUTURE,
            identity,
            agent,
            delivery: Delivery::new(DeliveryConfig::default(), acked),
            tasks: Tasks::new(config.policy.clone(), config.services.site.clone(), station::limits(&config.interface), connect_sender),
            station: shell_station,
            station_retry,
            abilities,
            abilities_due: now + ABILITIES_EVERY,
            drive_sender,
            drive_events,
            connect_events,
            surveys: Surveys::new(config.policy.clone(), config.services.clone(), service_sender),
            service_events,
            late: BTreeMap::new(),
            session: None,
            next_session: Arc::new(Mutex::new(SessionId(0))),
            started: now,
            publish_retry: Instant::FAR_FUTURE,
            sync_retry: Instant::ZERO,
            sync_now: false,
            policy_refused: 0,
            reconnect: false,
            shaper: Shaper::Off,
            shaper_due: Instant::ZERO,
        })
    }

    fn connect(&mut self) -> Result<(Link, mpsc::Receiver<LinkEvent>), RunError> {
        let tls = self.identity.tls_config().map_err(RunError::Tls)?;
        let next_session = Arc::clone(&self.next_session);
        let begin = move || {
            // The system gave randomness before; where it fails now, an id that is merely different serves as well.
            let id = getrandom::u64().unwrap_or_else(|_| clock::now().as_nanos());
            let session = SessionId(id);
            *next_session.lock().unwrap_or_else(PoisonError::into_inner) = session;
            Beginning { session, will: codec::encode(&Live::Death { session, orderly: false }), tls: Arc::clone(&tls) }
        };
        let identity = &self.identity;
        let link = MqttConfig::new(identity.brokers().to_vec(), identity.probe().clone(), identity.prefix().clone());
        Ok(Link::start(link, begin, || getrandom::u64().unwrap_or(u64::MAX / 2)))
    }

    fn on_link(&mut self, event: LinkEvent) {
        let now = clock::now();
        match event {
            LinkEvent::Connected(session) => {
                log::info!("connected as {}", self.identity.probe());
                session.subscribe(self.agent.roles());
                let id = session.id();
                self.session = Some(session);
                // Not being fresh, a nonce would let an old welcome set the clock: without randomness there is no session.
                match getrandom::u64() {
                    Ok(nonce) => self.agent.on_connected(now, id, nonce, now.saturating_since(self.started)),
                    Err(error) => log::error!("the system gives no randomness: {error}"),
                }
            }
            LinkEvent::Disconnected { reason, retry_in } => {
                log::warn!("{}; next attempt in {:.1} s", chain(&reason), retry_in.as_secs_f64());
                self.on_disconnected();
            }
            LinkEvent::Subscribed(_, Ok(roles)) => log::debug!("subscribed to the commands of {} roles", roles.len()),
            LinkEvent::Subscribed(_, Err(error)) => log::error!("{}", chain(&error)),
            LinkEvent::Message { topic, payload } => {
                log::trace!("message of {} bytes on {topic:?}", payload.len());
                self.agent.on_message(now, &payload);
            }
        }
    }

    fn on_disconnected(&mut self) {
        self.session = None;
        self.agent.on_disconnected();
        self.delivery.end();
        self.captures.disconnected();
    }

    fn on_drive(&mut self, event: DriveEvent<scan::report::Event>) {
        let event = self.tasks.on_drive(self.station.as_ref(), event);
        self.on_task(event);
    }

    fn on_task(&mut self, event: Option<TaskEvent>) {
        let now = clock::now();
        match event {
            Some(TaskEvent::Chunk(lease, report)) => {
                self.policy_refused += report.refused.count();
                let batch = tasks::batch(lease, report, self.agent.trusted_now(now));
                self.tell_late(lease);
                if self.surveys.has(lease) {
                    self.surveys.on_chunk(batch);
                    self.survey(lease);
                } else {
                    self.agent.on_batch(now, &batch);
                }
            }
            Some(TaskEvent::Paths(lease, chunk)) => {
                let TracedChunk { report, tos, paths } = *chunk;
                self.policy_refused += report.refused.count();
                let (trusted, source) = (self.agent.trusted_now(now), self.station.as_ref().map(Station::source));
                let source = source.unwrap_or(Source { v4: None, v6: None });
                let paths = tasks::path_batch(lease, tasks::unix_now(trusted), source, tos, paths);
                self.agent.on_paths(now, paths, &tasks::batch(lease, report, trusted));
            }
            Some(TaskEvent::Hosts(lease, hosts)) => {
                let at = tasks::unix_now(self.agent.trusted_now(now));
                self.agent.on_hosts(now, lease, at, &hosts);
            }
            Some(TaskEvent::Proxy(lease, proxy)) => log::warn!("measurement of lease {lease}: {proxy}"),
            Some(TaskEvent::Late(lease, late)) if self.surveys.has(lease) => {
                self.surveys.on_late(lease, late.into_answer());
                self.survey(lease);
            }
            Some(TaskEvent::Late(lease, late)) => {
                let waiting = self.late.entry(lease).or_insert_with(|| (now + LATE_WAIT, Vec::new()));
                waiting.1.push(late.into_answer());
                if waiting.1.len() >= EXTRAS_MAX {
                    self.tell_late(lease);
                }
            }
            Some(TaskEvent::Ended(lease, failure)) => {
                self.tell_late(lease);
                if self.surveys.has(lease) {
                    self.surveys.on_ended(lease, failure);
                    self.survey(lease);
                } else {
                    self.ended(lease, failure);
                }
            }
            Some(TaskEvent::Link(up)) => {
                log::warn!("the measuring interface is {}", if up { "up: measurements go on" } else { "down: measurements wait" })
            }
            None => {}
        }
    }

    /// Something happened to a capture.
    fn on_capture(&mut self, event: CaptureEvent) {
        let now = clock::now();
        match event {
            CaptureEvent::Grown(lease, durable) => {
                self.captures.grown(lease, durable);
                self.join(lease, now);
            }
            CaptureEvent::Ended(lease, Ok(captured)) if self.captures.paused(&captured) => self.ended(lease, None),
            CaptureEvent::Ended(lease, Ok(captured)) => {
                let failure = self.captures.ended(&captured).err();
                if let Some(failure) = &failure {
                    log::error!("the capture of lease {lease}: {failure}");
                } else {
                    let batch = tasks::captured_batch(&captured);
                    if self.agent.on_captured(now, *captured, &batch) {
                        self.captures.told(lease);
                    }
                    self.join(lease, now);
                }
                self.ended(lease, failure);
            }
            CaptureEvent::Ended(lease, Err(failure)) => {
                log::error!("lease {lease} cannot be captured: {failure}");
                self.captures.failed(lease);
                self.ended(lease, Some(failure));
            }
        }
    }

    fn ended(&mut self, lease: LeaseId, failure: Option<String>) {
        let now = clock::now();
        log::info!("measurement of lease {lease} ended");
        self.agent.on_task_ended(now, lease, failure);
        self.agent.heartbeat_soon(now);
        // The end of a lease comes seldom, and often somebody waits for it.
        self.sync_now = true;
    }

    /// Late answers come one by one, and go to the spool together.
    fn tell_late(&mut self, lease: LeaseId) {
        if let Some((_, answers)) = self.late.remove(&lease) {
            self.agent.on_late(lease, answers);
        }
    }

    /// It is known what serves on a port.
    fn on_service(&mut self, event: ServiceEvent) {
        if let Some(lease) = self.surveys.on_found(event) {
            self.survey(lease);
        }
    }

    /// Does what a lease whose ports are asked is ready for.
    fn survey(&mut self, lease: LeaseId) {
        let now = clock::now();
        while let Some(next) = self.surveys.next(lease) {
            match next {
                Next::Ready(Ready::Services(found)) => {
                    let at = tasks::unix_now(self.agent.trusted_now(now));
                    if !self.agent.on_services(now, ServiceBatch { lease, at, found }) {
                        self.surveys.forget_held(lease);
                    }
                }
                Next::Ready(Ready::Batch(batch)) => self.agent.on_batch(now, &batch),
                Next::Ready(Ready::Late(answers)) => self.agent.on_late(lease, answers),
                Next::Park => {
                    log::debug!("lease {lease}: the scan waits for answers about services");
                    self.tasks.cut(self.station.as_ref(), lease);
                }
                Next::Resume { spec, space, from, to, limits } => {
                    if let Err(reason) = self.tasks.start(self.station.as_ref(), lease, &spec, space, from..to, limits) {
                        self.surveys.on_ended(lease, Some(reason));
                    }
                }
                Next::Ended(failure) => self.ended(lease, failure),
            }
        }
        self.tasks.set_asking(self.station.as_ref(), self.surveys.is_asking());
    }

    /// Carries out what the agent wants, syncs and publishes.
    fn pump(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            self.carry_out(action);
        }
        self.sync();
        self.publish();
    }

    fn carry_out(&mut self, action: Action) {
        let now = clock::now();
        match action {
            Action::Live(live) => self.tell(Outlet::Live, &live),
            Action::Event(event) => self.tell(Outlet::Events, &event),
            Action::Roles(roles) => {
                if let Some(session) = &self.session {
                    session.subscribe(&roles);
                }
            }
            Action::Start { lease, spec, space, from, to } => {
                if spec.kind.capture().is_some() {
                    return self.start_capture(lease, &spec);
                }
                log::info!("lease {lease}: measuring positions {from} to {to}");
                let started = tasks::target_pacer(&spec).and_then(|targets| {
                    let (station, space) = (self.station.as_ref(), Arc::clone(&space));
                    self.tasks.start(station, lease, &spec, space, from..to, targets.clone()).map(|()| targets)
                });
                match started {
                    Ok(targets) => {
                        if surveys::wanted(&spec).is_some() {
                            let ground = self.tasks.ground(self.station.as_ref(), &spec, targets, self.agent.trusted_now(now));
                            self.surveys.begin(lease, &spec, &space, from, to, ground);
                        }
                        self.agent.heartbeat_soon(now);
                    }
                    Err(reason) => {
                        log::error!("lease {lease} cannot be measured: {reason}");
                        self.agent.on_task_ended(now, lease, Some(reason));
                    }
                }
            }
            Action::Cut(lease) if self.captures.has(lease) => self.captures.cut(lease, self.agent.pauses(lease)),
            Action::Cut(lease) => {
                self.tasks.cut(self.station.as_ref(), lease);
                if self.surveys.has(lease) {
                    self.surveys.cut(lease, self.agent.goes_on(lease));
                    self.survey(lease);
                }
            }
            Action::Publish { stored } => {
                self.delivery.acked(spool_time(now), stored);
                self.delivery.begin(spool_time(now));
                self.captures.connected(spool_time(now));
                self.settle(now);
            }
            Action::Acked { up_to } => self.delivery.acked(spool_time(now), up_to),
            Action::ChunkAcked { lease, stored, state } => self.captures.acked(spool_time(now), lease, stored, state),
        }
    }

    fn start_capture(&mut self, lease: LeaseId, spec: &Arc<JobSpec>) {
        let now = clock::now();
        log::info!("lease {lease}: capturing");
        match self.captures.start(lease, spec, tasks::unix_now(None)) {
            Ok(()) => self.agent.heartbeat_soon(now),
            Err(reason) => {
                log::error!("lease {lease} cannot be captured: {reason}");
                self.agent.on_task_ended(now, lease, Some(reason));
            }
        }
    }

    /// A file that is new takes part in the session that is there.
    fn join(&mut self, lease: LeaseId, now: Instant) {
        if self.session.is_some() {
            self.captures.join(lease, spool_time(now));
        }
    }

    /// Looks after files whose leases are over.
    fn settle(&mut self, now: Instant) {
        self.settle_due = now + SETTLE_EVERY;
        let agent = &self.agent;
        self.captures.settle(|lease| agent.holds(lease), agent.trusted_now(now));
    }

    fn tell<T: serde::Serialize>(&self, outlet: Outlet, message: &T) {
        let Some(session) = &self.session else { return };
        // What is said here is said again by the next heartbeat or the next birth.
        if let Err(error) = session.publish(outlet, codec::encode(message)) {
            log::debug!("a message was not sent: {error}");
        }
    }

    fn sync(&mut self) {
        let now = clock::now();
        let spool = &mut self.agent.journal().spool;
        let due = spool.needs_sync(spool_time(now)).is_some_and(|due| self.sync_now || due <= spool_time(now));
        self.sync_now = false;
        if due
            && now >= self.sync_retry
            && let Err(error) = spool.sync(spool_time(now))
        {
            log::error!("{}", chain(&error));
            self.sync_retry = now + Duration::from_secs(1);
        }
    }

    fn publish(&mut self) {
        let now = clock::now();
        self.publish_retry = Instant::FAR_FUTURE;
        let Some(session) = self.session.clone() else { return };
        self.publish_records(&session, now);
        self.publish_chunks(&session, now);
    }

    /// Files of captures go behind results.
    fn publish_chunks(&mut self, session: &Session, now: Instant) {
        if self.publish_retry < Instant::FAR_FUTURE {
            return;
        }
        let time = spool_time(now);
        while let Some((lease, want, chunk)) = self.captures.next(time) {
            match session.publish(Outlet::Events, codec::encode(&Event::Chunk(chunk))) {
                Ok(()) => self.captures.sent(time, lease, want),
                Err(PublishError::Busy) => {
                    self.publish_retry = now + BUSY_RETRY;
                    return;
                }
                Err(error) => return log::debug!("chunks wait for the next session: {error}"),
            }
        }
    }

    fn publish_records(&mut self, session: &Session, now: Instant) {
        loop {
            let spool = &mut self.agent.journal().spool;
            let stream = spool.stream();
            let Some(want) = self.delivery.want(spool.synced()) else { return };
            let entries = match spool.read_from(spool_time(now), want.from, want.max_bytes) {
                Ok(entries) if entries.is_empty() => return,
                Ok(entries) => entries,
                Err(error) => {
                    log::error!("{}", chain(&error));
                    self.publish_retry = now + Duration::from_secs(1);
                    return;
                }
            };
            for batch in self.delivery.batches(entries) {
                let event = Event::Records { stream, after: batch.after, first: batch.first, records: batch.records.clone() };
                match session.publish(Outlet::Events, codec::encode(&event)) {
                    Ok(()) => self.delivery.sent(spool_time(now), &batch),
                    Err(PublishError::Busy) => {
                        self.publish_retry = now + BUSY_RETRY;
                        return;
                    }
                    Err(error) => {
                        log::debug!("records wait for the next session: {error}");
                        return;
                    }
                }
            }
        }
    }

    fn next_timeout(&mut self, now: Instant) -> Instant {
        let from_spool_time = |at: Duration| Instant::ZERO + at;
        let agent = self.agent.poll_timeout(now);
        let sync = self.agent.journal().spool.needs_sync(spool_time(now)).map(|due| from_spool_time(due).max(self.sync_retry));
        let stall = self.delivery.poll_timeout().map(from_spool_time);
        // Where the transport is busy they wait with everything else.
        let chunks = self.captures.poll_timeout().map(from_spool_time).filter(|_| self.publish_retry == Instant::FAR_FUTURE);
        [agent, sync, stall, chunks]
            .into_iter()
            .flatten()
            .chain([self.station_retry, self.abilities_due, self.publish_retry, self.settle_due])
            .chain(self.late.values().map(|(due, _)| *due))
            .min()
            .unwrap_or(Instant::FAR_FUTURE)
    }

    fn on_timeout(&mut self) {
        let now = clock::now();
        if now >= self.station_retry {
            self.retry_station(now);
        }
        if now >= self.abilities_due {
            self.abilities_due = now + ABILITIES_EVERY;
            self.look_at_abilities();
        }
        let due: Vec<LeaseId> = self.late.iter().filter(|(_, (due, _))| now >= *due).map(|(lease, _)| *lease).collect();
        for lease in due {
            self.tell_late(lease);
        }
        for lease in self.surveys.leases() {
            self.survey(lease);
        }
        for (lease, progress) in self.tasks.progress() {
            self.agent.on_progress(lease, progress);
        }
        if self.delivery.on_timeout(spool_time(now)) {
            log::warn!("no acknowledgement for {} s: everything unacknowledged is sent again", DeliveryConfig::default().stall.as_secs());
        }
        self.captures.on_timeout(spool_time(now));
        if now >= self.settle_due {
            self.settle(now);
        }
        let spool = self.agent.journal().spool.stats();
        let loss = self.agent.journal().spool.loss();
        let uptime = now.saturating_since(self.started);
        if now >= self.shaper_due {
            self.shaper_due = now + SHAPER_EVERY;
            self.shaper = self.station.as_ref().map_or(Shaper::Absent("the measuring interface is not open".to_owned()), |station| {
                shaper::status(&station.interface().name, self.config.interface.shaper)
            });
        }
        let (config, tasks, shaper) = (self.config, &self.tasks, &self.shaper);
        let (station, policy_refused, clipped) = (self.station.as_ref(), self.policy_refused, self.tasks.clipped);
        self.agent.on_timeout(now, || {
            let health = crate::health::read();
            Vitals {
                uptime,
                cpu: health.cpu,
                memory_kib: health.memory_kib,
                load_percent: health.load_percent,
                spool_records: spool.records,
                spool_bytes: spool.bytes,
                lost_records: loss.records,
                traffic: traffic(station, policy_refused, clipped),
                pacing: pacing(config, station, tasks, shaper),
            }
        });
    }

    fn retry_station(&mut self, now: Instant) {
        let (self_test, interface) = open_station(self.config, &self.drive_sender, &mut self.station);
        if self.station.is_some() {
            log::info!("the measuring interface {} is open now", interface.name);
            self.station_retry = Instant::FAR_FUTURE;
            self.abilities = self_test.clone();
            self.agent.set_abilities(self_test, interface);
            self.reconnect = true;
        } else {
            self.station_retry = now + STATION_RETRY;
        }
    }

    /// Tells the controller by a new birth when the interface can do more, or less, than was told.
    fn look_at_abilities(&mut self) {
        let Some(station) = &self.station else { return };
        let interface = station.interface();
        let found = station::self_test(&interface, Check::Works);
        if interface.up && found != self.abilities {
            log::info!("the measuring interface {} has other addresses now", interface.name);
            self.abilities = found.clone();
            self.agent.set_abilities(found, limits(self.config, interface.name));
            self.reconnect = true;
        }
    }

    /// The last words of an orderly end.
    fn good_bye(&mut self) {
        self.pump();
        let now = clock::now();
        if let Err(error) = self.agent.journal().spool.sync(spool_time(now)) {
            log::error!("{}", chain(&error));
        }
        self.publish();
        if let Some(session) = &self.session {
            let id = session.id();
            self.tell(Outlet::Live, &Live::Death { session: id, orderly: true });
        }
    }
}

/// The ring that the site wants.
#[cfg(feature = "libpcap")]
fn start_ring(config: &Config, dir: PathBuf, identity: &Arc<Identity>) -> Option<Ring> {
    let ring = config.ring.clone()?;
    Ring::start(dir, ring, config.interface.name.clone(), Arc::clone(identity))
        .inspect_err(|error| log::error!("the thread of the ring of captures cannot be started: {error}"))
        .ok()
}

/// Without libpcap nothing is captured.
#[cfg(not(feature = "libpcap"))]
fn start_ring(config: &Config, _: PathBuf, _: &Arc<Identity>) -> Option<Ring> {
    if config.ring.is_some() {
        log::error!("this build of the program has no libpcap, and keeps no ring of captures");
    }
    None
}

fn pacing(config: &Config, station: Option<&Station>, tasks: &Tasks, shaper: &Shaper) -> Pacing {
    let stats = station.map(|station| station.handle().stats());
    let asked = tasks::rates(station::limits(&config.interface));
    let of = |stats: &DriveStats| (tasks::rates(stats.limits), tasks::rates(stats.current), stats.slowed);
    let (granted, current, slowed) = stats.as_ref().map_or((asked, asked, None), of);
    Pacing { interface: Pace { asked, granted, current, slowed }, leases: tasks.pacing(stats.as_ref()), shaper: shaper.clone() }
}

fn traffic(station: Option<&Station>, policy_refused: u64, clipped: u64) -> Traffic {
    let Some(station) = station else { return Traffic { policy_refused, clipped, ..Traffic::default() } };
    let stats = station.handle().stats();
    Traffic {
        sent_packets: stats.sent_packets,
        sent_bytes: stats.sent_bytes,
        received_packets: stats.received_packets,
        kernel_drops: stats.receive_drops,
        send_retries: stats.send_full,
        policy_refused,
        clipped,
    }
}

fn limits(config: &Config, name: String) -> InterfaceLimits {
    InterfaceLimits { name, packets: config.interface.packets, bits: config.interface.bits }
}

/// Opens the measuring interface where that is possible, and says what it offers.
fn open_station(
    config: &Config,
    sender: &mpsc::UnboundedSender<DriveEvent<scan::report::Event>>,
    station: &mut Option<Station>,
) -> (SelfTest, InterfaceLimits) {
    // `Station::open` reads the kernel's tables in a runtime of its own, which must not happen inside ours.
    let (interface, sender) = (config.interface.clone(), sender.clone());
    let opened = std::thread::scope(|scope| scope.spawn(move || Station::open(&interface, SourcePorts::default(), sender)).join());
    let error = match opened {
        Ok(Ok(opened)) => {
            let interface = opened.interface();
            *station = Some(opened);
            return (station::self_test(&interface, Check::Works), limits(config, interface.name));
        }
        Ok(Err(error)) => chain(&error),
        Err(_) => "the thread that opens the interface panicked".to_owned(),
    };
    log::error!("{error}");
    let snapshot = std::thread::scope(|scope| scope.spawn(netlink::snapshot_blocking).join());
    let name = config.interface.name.clone().unwrap_or_default();
    let interface = match &snapshot {
        Ok(Ok(snapshot)) => station::choose(snapshot, config.interface.name.as_deref()).ok(),
        _ => None,
    };
    match interface {
        Some(interface) => (station::self_test(interface, Check::Fails(error)), limits(config, interface.name.clone())),
        None => {
            let fails = || Check::Fails(error.clone());
            (SelfTest { raw_socket: fails(), ipv4: fails(), ipv6: fails() }, limits(config, name))
        }
    }
}

/// The directory that everything is kept in, made where it is missing.
pub fn prepare_data(data: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data)
}
