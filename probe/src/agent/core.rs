//! The agent as a state machine. See the module above for its invariants.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use picket_wire::capture::{Captured, ChunkState};
use picket_wire::command::Command;
use picket_wire::envelope::{self, Audience, Contents, Refusal};
use picket_wire::event::{
    Activity, Birth, Event, Heartbeat, InterfaceLimits, LeasePace, LeaseStatus, Live, Pace, PacingReport, Refusals, SelfTest, Shaper,
    Traffic, encode_record,
};
use picket_wire::host::{HostBatch, HostSeen};
use picket_wire::ids::{JobId, LeaseId, ProbeId, Role, SessionId, StreamId};
use picket_wire::job::{JobSpec, Lease};
use picket_wire::path::PathBatch;
use picket_wire::result::{EXTRAS_MAX, LateAnswer, LateBatch, LeaseEnd, Record, ResultBatch};
use picket_wire::service::ServiceBatch;
use picket_wire::space::TargetSpace;
use picket_wire::units::UnixMillis;

use super::state::{Saved, SavedLease};
use crate::net::time::Instant;

/// How often the pace is told where it does not change.
const PACING_EVERY: Duration = Duration::from_secs(60);
/// Leases that a probe keeps at a time, over all jobs; a controller never needs more.
const LEASES_MAX: usize = 64;
/// Commands held back until the welcome of a session.
const HELD_BACK_MAX: usize = 64;
/// Heartbeats that may be unanswered and still extend leases when their answer comes.
const HEARTBEATS_MAX: usize = 64;
/// How often heartbeats go while work runs: people watch the progress.
const BUSY_HEARTBEAT: Duration = Duration::from_secs(1);

/// How long work waits for room in the spool before it is tried again; doubles each time.
const NO_ROOM_WAIT: Duration = Duration::from_secs(5);
/// The longest such wait.
const NO_ROOM_WAIT_MAX: Duration = Duration::from_secs(600);

/// When a birth is said again that nobody has answered: the controller may not have listened yet, or its answer was lost. Doubles
/// each time.
const BIRTH_AGAIN: Duration = Duration::from_secs(2);
/// The longest pause between two births of one session.
const BIRTH_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Durable storage, as the agent sees it.
pub trait Journal {
    /// Appends a record to the spool; `None` when there is no room, which counts as no loss. The sequence number otherwise.
    fn append(&mut self, record: &[u8]) -> Option<u64>;
    /// Replaces the saved state, durably. `false` when that failed: then the caller must not act.
    fn save(&mut self, saved: &Saved) -> bool;
    /// Drops everything up to a sequence number of the stream.
    fn ack(&mut self, stream: StreamId, up_to: u64);
    /// The spool's stream.
    fn stream(&self) -> StreamId;
    /// Everything up to this number of the stream is dropped.
    fn acked(&self) -> u64;
}

/// What unacknowledged records say of leases: how far each is reported, and the number of its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unacked(BTreeMap<LeaseId, (u64, Option<u64>)>);

impl Unacked {
    /// Takes the next record in.
    pub fn take(&mut self, seq: u64, record: &Record) {
        match record {
            Record::Batch(batch) => {
                let (to, _) = self.0.entry(batch.lease).or_default();
                *to = batch.to.max(*to);
            }
            Record::LeaseEnded { lease, .. } => self.0.entry(*lease).or_default().1 = Some(seq),
            Record::JobRefused { .. } | Record::Loss { .. } => {}
            Record::Late(_) | Record::Services(_) | Record::Hosts(_) | Record::Paths(_) | Record::Captured(_) => {}
        }
    }
}

/// What the shell must do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Publish on the probe's own `live` topic.
    Live(Live),
    /// Publish on the probe's own `evt` topic.
    Event(Event),
    /// The roles changed: subscribe to their topics and to no others.
    Roles(Vec<Role>),
    /// Begin to measure positions `from..to` of the job; report chunks and the end.
    Start {
        /// The lease.
        lease: LeaseId,
        /// The job.
        spec: Arc<JobSpec>,
        /// Its space.
        space: Arc<TargetSpace>,
        /// First position.
        from: u64,
        /// One past the last position.
        to: u64,
    },
    /// Stop measuring: report what is finished as a last chunk, then the end.
    Cut(LeaseId),
    /// Begin to publish the spool from behind this sequence number, on a new session.
    Publish {
        /// Everything up to here is stored by the controller.
        stored: u64,
    },
    /// An acknowledgement came: more may be sent.
    Acked {
        /// Everything up to here is stored by the controller.
        up_to: u64,
    },
    /// The answer to a chunk of a capture's file.
    ChunkAcked {
        /// Whose file.
        lease: LeaseId,
        /// How many of its bytes the controller has.
        stored: u64,
        /// What becomes of the rest.
        state: ChunkState,
    },
}

/// Facts about the box that heartbeats carry; the shell reads them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vitals {
    /// How long the program has run.
    pub uptime: Duration,
    /// Its processor time.
    pub cpu: Duration,
    /// Its resident memory, in KiB.
    pub memory_kib: u64,
    /// The box's load over one minute, in hundredths.
    pub load_percent: u32,
    /// Records in the spool that are not acknowledged.
    pub spool_records: u64,
    /// Their bytes.
    pub spool_bytes: u64,
    /// Records that the spool could not keep.
    pub lost_records: u64,
    /// What the packet loop did.
    pub traffic: Traffic,
    /// How fast it sends, and what holds it back.
    pub pacing: Pacing,
}

/// How fast a probe sends, and what holds it back: a [`PacingReport`] without its session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pacing {
    /// The interface.
    pub interface: Pace,
    /// The leases that run.
    pub leases: Vec<LeasePace>,
    /// The kernel's shaper.
    pub shaper: Shaper,
}

/// How a running measurement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskProgress {
    /// One past the last position that was asked at least once.
    pub sent: u64,
    /// Packets sent.
    pub packets: u64,
    /// Answers received.
    pub answers: u64,
}

/// Who the agent is and what it stands on; fixed for its life.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The probe.
    pub probe: ProbeId,
    /// Keys whose signatures are believed.
    pub signing_keys: Vec<VerifyingKey>,
    /// The program's version.
    pub version: String,
    /// What it runs on.
    pub hardware: String,
    /// What it can do.
    pub self_test: SelfTest,
    /// The interface and its limits.
    pub interface: InterfaceLimits,
}

#[derive(Debug)]
struct Session {
    id: SessionId,
    nonce: u64,
    born: Instant,
    /// How long the program had run then.
    uptime: Duration,
    /// How often that was said, and when it is said again as long as nobody answers.
    births: u32,
    next_birth: Instant,
    welcomed: bool,
    heartbeats: u64,
    /// What was said of the pace last, and when.
    pacing: Option<(Pacing, Instant)>,
    /// Number and time of heartbeats without an answer.
    unanswered: VecDeque<(u64, Instant)>,
    held_back: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    /// Not running; will when its turn comes.
    Waiting,
    /// A task measures it.
    Running,
    /// The task was told to stop; `None` means that it pauses, else why it ends.
    Cutting(Option<Ending>),
    /// Its end is in the spool.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Revoked,
    Cancelled,
    Deadline,
    /// The controller does not know it any more: nothing is said about it.
    Forgotten,
}

#[derive(Debug)]
struct Held {
    run: Run,
    /// The moment until which nobody else may have it; [`Instant::FAR_FUTURE`] for leases without a life.
    holds_until: Instant,
    progress: TaskProgress,
    /// Why it is to end, until its end is in the spool: not forgotten where that has no room.
    ending: Option<Ending>,
}

/// The agent.
#[derive(Debug)]
pub struct Agent<J> {
    me: Identity,
    journal: J,
    saved: Saved,
    specs: BTreeMap<JobId, (Arc<JobSpec>, Arc<TargetSpace>)>,
    held: BTreeMap<LeaseId, Held>,
    session: Option<Session>,
    /// Trusted time: the controller's clock when it was read, and the reading of ours.
    clock: Option<(UnixMillis, Instant)>,
    refusals: Refusals,
    heartbeat_every: Duration,
    next_heartbeat: Instant,
    /// The spool had no room: work waits until this moment.
    no_room_until: Option<Instant>,
    /// How long it waited the last time: targets are not asked again and again for answers that cannot be kept.
    no_room_wait: Duration,
    /// The program is ending: nothing new is started.
    closing: bool,
    actions: VecDeque<Action>,
}

impl<J: Journal> Agent<J> {
    /// An agent that goes on where `saved` and the unacknowledged records of the spool left it.
    pub fn new(me: Identity, journal: J, mut saved: Saved, unacked: &Unacked) -> Self {
        if saved.stream != Some(journal.stream()) {
            // The spool is a new one, and what it held is gone: the controller knows how far it got, and grants anew. Of leases that
            // nothing was reported of nothing is gone; a box that is killed before its first record has only such.
            saved.leases.retain(|lease| lease.position == lease.lease.from && lease.ended.is_none());
            saved.stream = Some(journal.stream());
        }
        for (id, (to, ended)) in &unacked.0 {
            if let Some(lease) = saved.lease(*id) {
                lease.position = lease.position.max(*to);
                lease.ended = lease.ended.or(*ended);
            }
        }
        let mut agent = Self {
            me,
            journal,
            specs: BTreeMap::new(),
            held: BTreeMap::new(),
            session: None,
            clock: None,
            refusals: Refusals::default(),
            heartbeat_every: Duration::from_secs(15),
            next_heartbeat: Instant::FAR_FUTURE,
            no_room_until: None,
            no_room_wait: Duration::ZERO,
            closing: false,
            actions: VecDeque::new(),
            saved: Saved::default(),
        };
        for spec in core::mem::take(&mut saved.jobs) {
            // What was accepted once has a space; a spec that lost it was damaged on disk and is asked for again.
            let _ = agent.learn(spec);
        }
        for lease in &saved.leases {
            let run = if lease.ended.is_some() { Run::Ended } else { Run::Waiting };
            // How long the box was down is not known: a lease with a life waits for the controller's word.
            let holds_until = if lease.lease.ttl.is_some() { Instant::ZERO } else { Instant::FAR_FUTURE };
            let progress = TaskProgress { sent: lease.position, ..TaskProgress::default() };
            agent.held.insert(lease.lease.id, Held { run, holds_until, progress, ending: None });
        }
        agent.saved = saved;
        agent.saved.jobs = agent.specs.values().map(|(spec, _)| JobSpec::clone(spec)).collect();
        agent
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The roles that were last confirmed.
    pub fn roles(&self) -> &[Role] {
        &self.saved.roles
    }

    /// Commands refused so far.
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// The storage.
    pub fn journal(&mut self) -> &mut J {
        &mut self.journal
    }

    /// Trusted time, where a controller told it since the program started.
    pub fn trusted_now(&self, now: Instant) -> Option<UnixMillis> {
        self.clock.map(|(told, at)| told.after(now.saturating_since(at)))
    }

    /// A transport connected and subscribed. `session` and `nonce` are fresh randomness.
    pub fn on_connected(&mut self, now: Instant, session: SessionId, nonce: u64, uptime: Duration) {
        self.session = Some(Session {
            id: session,
            nonce,
            born: now,
            uptime,
            births: 0,
            next_birth: now,
            welcomed: false,
            heartbeats: 0,
            pacing: None,
            unanswered: VecDeque::new(),
            held_back: Vec::new(),
        });
        self.next_heartbeat = Instant::FAR_FUTURE;
        self.say_birth(now);
    }

    /// Says the session's birth when it is time to, for the first time or again. The nonce stays: each answer to any of them is fresh.
    fn say_birth(&mut self, now: Instant) {
        let leases = self.statuses(now);
        let Some(session) = self.session.as_mut().filter(|session| !session.welcomed && now >= session.next_birth) else { return };
        session.next_birth = now + BIRTH_AGAIN.saturating_mul(1 << session.births.min(10)).min(BIRTH_AGAIN_MAX);
        session.births += 1;
        let birth = Birth {
            session: session.id,
            nonce: session.nonce,
            version: self.me.version.clone(),
            hardware: self.me.hardware.clone(),
            uptime: session.uptime + now.saturating_since(session.born),
            self_test: self.me.self_test.clone(),
            stream: self.journal.stream(),
            acked: self.journal.acked(),
            leases,
            interface: self.me.interface.clone(),
        };
        self.actions.push_back(Action::Live(Live::Birth(birth)));
    }

    /// The transport lost its connection.
    pub fn on_disconnected(&mut self) {
        self.session = None;
        self.next_heartbeat = Instant::FAR_FUTURE;
    }

    /// Bytes arrived on a command topic.
    pub fn on_message(&mut self, now: Instant, bytes: &[u8]) {
        match envelope::open(bytes, &self.me.signing_keys) {
            Ok(contents) => self.on_contents(now, contents, bytes),
            Err(refusal) => self.refuse("a message", &refusal),
        }
    }

    fn refuse(&mut self, what: &str, refusal: &Refusal) {
        refusal.count(&mut self.refusals);
        log::warn!("{what} is refused: {refusal}");
    }

    fn on_contents(&mut self, now: Instant, contents: Contents, bytes: &[u8]) {
        if let Command::Welcome { .. } = contents.command {
            return self.on_welcome(now, contents);
        }
        let welcomed = self.session.as_ref().is_some_and(|session| session.welcomed);
        let trusted = self.trusted_now(now).filter(|_| welcomed);
        let Some(trusted) = trusted else {
            // Time cannot be judged yet: the message waits for the welcome, which is on its way.
            if let Some(session) = self.session.as_mut().filter(|session| session.held_back.len() < HELD_BACK_MAX) {
                session.held_back.push(bytes.to_vec());
            }
            return;
        };
        let name = contents.command.name();
        if let Err(refusal) = self.saved.serials.judge(&contents, &self.me.probe, &self.saved.roles, trusted) {
            return self.refuse(name, &refusal);
        }
        self.saved.serials.accept(&contents);
        // Cumulative acknowledgements change nothing that a replay within their short life could harm, and come often:
        // their serials reach the disk with the next command that changes what runs.
        let harmless = matches!(contents.command, Command::Ack { .. } | Command::HeartbeatAck { .. } | Command::ChunkAck { .. });
        if !harmless && !self.journal.save(&self.saved) {
            log::error!("{name} is not obeyed: its serial could not be saved");
            return;
        }
        self.obey(now, contents.command);
    }

    fn on_welcome(&mut self, now: Instant, contents: Contents) {
        let addressed_to_us = contents.audience == Audience::Probe(self.me.probe.clone());
        let Command::Welcome { session: id, nonce, now: told, heartbeat, roles, leases, stored } = contents.command.clone() else { return };
        let Some(session) = self.session.as_mut() else { return };
        if !addressed_to_us {
            let refusal = Refusal::Misaddressed(contents.audience);
            return self.refuse("welcome", &refusal);
        }
        let is_ours = session.id == id && session.nonce == nonce;
        if is_ours && session.welcomed && session.births > 1 {
            // Each of several births is answered; the first answer was enough.
            return;
        }
        if !is_ours || session.welcomed {
            let refusal = Refusal::Replayed { serial: contents.serial, last: self.saved.serials.own };
            return self.refuse("welcome", &refusal);
        }
        session.welcomed = true;
        let (born, held_back) = (session.born, core::mem::take(&mut session.held_back));
        // Time never goes back behind what was trusted once.
        let told = told.max(self.saved.trusted_time).max(self.trusted_now(now).unwrap_or_default());
        self.clock = Some((told, now));
        self.heartbeat_every = heartbeat.clamp(Duration::from_secs(1), Duration::from_secs(3600));
        self.next_heartbeat = now;
        self.saved.trusted_time = told;
        if self.saved.roles != roles {
            self.saved.roles = roles.clone();
            self.actions.push_back(Action::Roles(roles));
        }
        let known: HashSet<LeaseId> = leases.into_iter().collect();
        for id in self.held.keys().copied().collect::<Vec<_>>() {
            if known.contains(&id) {
                self.extend(id, born);
            } else {
                self.end(now, id, Ending::Forgotten);
            }
        }
        self.forget_stored(stored);
        self.actions.push_back(Action::Publish { stored });
        // What was sent before the welcome has lower serials: it is judged first.
        for bytes in held_back {
            self.on_message(now, &bytes);
        }
        self.saved.serials.accept(&contents);
        // As for acknowledgements: positions must be saved before the batches that prove them are deleted.
        if self.journal.save(&self.saved) {
            self.journal.ack(self.journal.stream(), stored);
        } else {
            log::error!("the welcome's serial and time could not be saved");
        }
        self.schedule(now);
    }

    fn obey(&mut self, now: Instant, command: Command) {
        match command {
            // Handled before it gets here.
            Command::Welcome { .. } => {}
            Command::Ack { stream, up_to } => {
                if stream == self.journal.stream() {
                    self.forget_stored(up_to);
                    // Positions must be saved before the batches that prove them are deleted.
                    if self.journal.save(&self.saved) {
                        self.journal.ack(stream, up_to);
                        self.no_room_until = None;
                        self.no_room_wait = Duration::ZERO;
                    }
                    self.actions.push_back(Action::Acked { up_to });
                    self.schedule(now);
                }
            }
            Command::ChunkAck { lease, stored, state } => self.actions.push_back(Action::ChunkAcked { lease, stored, state }),
            Command::HeartbeatAck { session, number } => self.on_heartbeat_ack(now, session, number),
            Command::Job(spec) => {
                let id = spec.id;
                match self.learn(spec) {
                    Ok(()) => self.schedule(now),
                    Err(reason) => self.refuse_job(now, id, reason),
                }
            }
            Command::Grant(lease) => self.on_grant(now, lease),
            Command::Revoke { lease } => self.end(now, lease, Ending::Revoked),
            Command::Cancel { job } => {
                for id in self.held.keys().copied().filter(|id| id.job == job).collect::<Vec<_>>() {
                    self.end(now, id, Ending::Cancelled);
                }
            }
        }
    }

    /// Drops leases whose end the controller has stored, and specs that no lease needs any more.
    fn forget_stored(&mut self, up_to: u64) {
        let stored = |lease: &SavedLease| lease.ended.is_some_and(|seq| seq <= up_to);
        for lease in self.saved.leases.iter().filter(|lease| stored(lease)) {
            self.held.remove(&lease.lease.id);
        }
        let before = self.saved.leases.len();
        self.saved.leases.retain(|lease| !stored(lease));
        if self.saved.leases.len() != before {
            self.forget_idle_specs();
        }
    }

    fn forget_idle_specs(&mut self) {
        let needed: HashSet<JobId> = self.held.keys().map(|id| id.job).collect();
        self.specs.retain(|id, _| needed.contains(id));
        self.saved.jobs.retain(|spec| needed.contains(&spec.id));
    }

    fn on_heartbeat_ack(&mut self, now: Instant, id: SessionId, number: u64) {
        let Some(session) = self.session.as_mut().filter(|session| session.id == id) else { return };
        let Some(&(_, sent)) = session.unanswered.iter().find(|(n, _)| *n == number) else { return };
        session.unanswered.retain(|(n, _)| *n > number);
        for id in self.held.keys().copied().collect::<Vec<_>>() {
            self.extend(id, sent);
        }
        self.schedule(now);
    }

    fn extend(&mut self, id: LeaseId, from: Instant) {
        let ttl = self.saved.lease(id).and_then(|saved| saved.lease.ttl);
        if let (Some(ttl), Some(held)) = (ttl, self.held.get_mut(&id)) {
            held.holds_until = held.holds_until.max(from + ttl);
        }
    }

    /// Takes a spec in, where it makes sense.
    fn learn(&mut self, spec: JobSpec) -> Result<(), String> {
        if self.specs.contains_key(&spec.id) {
            return Ok(());
        }
        let space = spec.space().map_err(|error| error.to_string())?;
        let options = spec.kind.scan();
        spec.kind.check().map_err(|error| error.to_string())?;
        if options.technique.has_ports() != spec.targets.ports.is_some() {
            return Err(format!("technique {} and the presence of ports contradict each other", options.technique.as_str()));
        }
        // Specs come to all holders of a role, work or not: only a bounded number waits for its lease.
        while self.specs.len() >= LEASES_MAX {
            let needed: HashSet<JobId> = self.held.keys().map(|id| id.job).collect();
            let Some(idle) = self.specs.keys().copied().find(|id| !needed.contains(id)) else {
                return Err(format!("more than {LEASES_MAX} jobs at a time"));
            };
            self.specs.remove(&idle);
            self.saved.jobs.retain(|spec| spec.id != idle);
        }
        let id = spec.id;
        self.saved.jobs.push(spec.clone());
        self.specs.insert(id, (Arc::new(spec), Arc::new(space)));
        Ok(())
    }

    fn refuse_job(&mut self, now: Instant, job: JobId, reason: String) {
        log::warn!("job {job} is refused: {reason}");
        for id in self.held.keys().copied().filter(|id| id.job == job).collect::<Vec<_>>() {
            self.end(now, id, Ending::Revoked);
        }
        // Where the spool has no room the lease simply runs out, and the controller gives it to another.
        let _ = self.journal.append(&encode_record(&Record::JobRefused { job, reason }));
    }

    fn on_grant(&mut self, now: Instant, lease: Lease) {
        let (id, job) = (lease.id, lease.id.job);
        if self.held.contains_key(&id) {
            return;
        }
        if self.held.len() >= LEASES_MAX || lease.from >= lease.to {
            let reason =
                format!("{} leases are held, at most {LEASES_MAX} are; this one covers {} to {}", self.held.len(), lease.from, lease.to);
            log::warn!("lease {id} is not taken: {reason}");
            // Where the spool has no room either, the next session shows that the lease is not here.
            let end = LeaseEnd::Failed(reason);
            let _ = self.journal.append(&encode_record(&Record::LeaseEnded { lease: id, position: lease.from, end }));
            return;
        }
        let holds_until = lease.ttl.map_or(Instant::FAR_FUTURE, |ttl| now + ttl);
        let progress = TaskProgress { sent: lease.from, ..TaskProgress::default() };
        self.held.insert(id, Held { run: Run::Waiting, holds_until, progress, ending: None });
        self.saved.leases.push(SavedLease { position: lease.from, lease, ended: None });
        if !self.journal.save(&self.saved) {
            // The memory could not be kept: the lease would be lost by a restart, so another probe should have it.
            self.held.remove(&id);
            self.saved.leases.retain(|saved| saved.lease.id != id);
            return log::error!("lease {id} is not taken: it could not be saved");
        }
        if !self.specs.contains_key(&job) {
            self.actions.push_back(Action::Event(Event::NeedJob { job }));
        }
        self.schedule(now);
    }

    /// Ends a lease: at once where nothing runs, else after the task has handed over what it finished.
    fn end(&mut self, now: Instant, id: LeaseId, why: Ending) {
        let Some(held) = self.held.get_mut(&id) else { return };
        if held.run != Run::Ended {
            held.ending = held.ending.or(Some(why));
        }
        match held.run {
            Run::Running => {
                held.run = Run::Cutting(Some(why));
                self.actions.push_back(Action::Cut(id));
            }
            Run::Cutting(None) => held.run = Run::Cutting(Some(why)),
            Run::Waiting => self.finish(now, id, Some(why), None),
            Run::Cutting(Some(_)) => {}
            Run::Ended if why == Ending::Forgotten => {
                // The controller has its end already, or never will care.
                self.held.remove(&id);
                self.saved.leases.retain(|saved| saved.lease.id != id);
                self.forget_idle_specs();
            }
            Run::Ended => {}
        }
    }

    /// Puts the end of a lease into the spool and remembers it until the controller has stored that.
    fn finish(&mut self, now: Instant, id: LeaseId, why: Option<Ending>, failure: Option<String>) {
        let Some(saved) = self.saved.lease(id) else { return };
        let complete = saved.position >= saved.lease.to;
        let end = match (why, failure) {
            (Some(Ending::Forgotten), _) => {
                self.held.remove(&id);
                self.saved.leases.retain(|saved| saved.lease.id != id);
                self.forget_idle_specs();
                return self.schedule(now);
            }
            _ if complete => LeaseEnd::Done,
            (Some(Ending::Revoked), _) => LeaseEnd::Revoked,
            (Some(Ending::Cancelled), _) => LeaseEnd::Cancelled,
            (Some(Ending::Deadline), _) => LeaseEnd::Deadline,
            (None, failure) => LeaseEnd::Failed(failure.unwrap_or_else(|| "the measurement ended early".to_owned())),
        };
        let position = saved.position;
        match self.journal.append(&encode_record(&Record::LeaseEnded { lease: id, position, end })) {
            Some(seq) => {
                if let Some(saved) = self.saved.lease(id) {
                    saved.ended = Some(seq);
                }
                if let Some(held) = self.held.get_mut(&id) {
                    held.run = Run::Ended;
                }
            }
            // No room: the lease stays as it is, and its end is tried again when there is room.
            None => self.spool_is_full(now, id),
        }
        self.schedule(now);
    }

    fn spool_is_full(&mut self, now: Instant, id: LeaseId) {
        if self.no_room_until.is_none() {
            self.no_room_wait = (self.no_room_wait * 2).clamp(NO_ROOM_WAIT, NO_ROOM_WAIT_MAX);
            self.no_room_until = Some(now + self.no_room_wait);
            log::warn!(
                "the spool has no room: work waits for an acknowledgement, or {} s, lease {id} among it",
                self.no_room_wait.as_secs()
            );
        }
        if let Some(held) = self.held.get_mut(&id) {
            match held.run {
                Run::Running => {
                    held.run = Run::Cutting(None);
                    self.actions.push_back(Action::Cut(id));
                }
                // A task that is being cut keeps its state until it has ended.
                Run::Ended | Run::Waiting | Run::Cutting(_) => {}
            }
        }
    }

    /// A task finished a chunk of its lease. Chunks come in order, each beginning where the one before ended.
    pub fn on_batch(&mut self, now: Instant, batch: &ResultBatch) {
        let id = batch.lease;
        let Some(saved) = self.saved.lease(id) else { return };
        if batch.from != saved.position || saved.ended.is_some() {
            // Behind a chunk that found no room everything is measured again.
            return;
        }
        match self.journal.append(&encode_record(&Record::Batch(batch.clone()))) {
            Some(_) => saved.position = batch.to,
            None => self.spool_is_full(now, id),
        }
    }

    /// A trace finished a chunk of its lease: the paths, and who was reached. Chunks come in order; where the paths find no room the chunk
    /// is not reported either, and traced again.
    pub fn on_paths(&mut self, now: Instant, paths: PathBatch, batch: &ResultBatch) {
        let id = batch.lease;
        if self.saved.lease(id).is_none_or(|saved| batch.from != saved.position || saved.ended.is_some()) {
            return;
        }
        if !paths.paths.is_empty() && self.journal.append(&encode_record(&Record::Paths(paths))).is_none() {
            return self.spool_is_full(now, id);
        }
        self.on_batch(now, batch);
    }

    /// A capture is over. False where there is no room to say so: it is to be said again. Also for a lease that is not held any more,
    /// since its file is on its way.
    pub fn on_captured(&mut self, now: Instant, captured: Captured, batch: &ResultBatch) -> bool {
        let id = captured.lease;
        // Its batch is there, and so is what stands before it.
        if self.saved.lease(id).is_some_and(|saved| saved.position >= saved.lease.to) {
            return true;
        }
        if self.journal.append(&encode_record(&Record::Captured(Box::new(captured)))).is_none() {
            self.spool_is_full(now, id);
            return false;
        }
        self.on_batch(now, batch);
        true
    }

    /// Whether a lease that is cut is to go on later, by this probe.
    pub fn pauses(&self, id: LeaseId) -> bool {
        self.held.get(&id).is_some_and(|held| held.run == Run::Cutting(None))
    }

    /// Whether a lease is held, and not over.
    pub fn holds(&self, id: LeaseId) -> bool {
        self.held.get(&id).is_some_and(|held| held.run != Run::Ended)
    }

    /// What serves on ports of a chunk that is not reported yet. `false` when there is no room: then the chunk must not be
    /// reported either.
    pub fn on_services(&mut self, now: Instant, services: ServiceBatch) -> bool {
        let id = services.lease;
        if self.saved.lease(id).is_none_or(|saved| saved.ended.is_some()) {
            return false;
        }
        let appended = self.journal.append(&encode_record(&Record::Services(services))).is_some();
        if !appended {
            self.spool_is_full(now, id);
        }
        appended
    }

    /// Positions that were reported as silent have answered. Where there is no room they stay silent, which they were when they
    /// were asked.
    pub fn on_late(&mut self, id: LeaseId, mut answers: Vec<LateAnswer>) {
        let Some(saved) = self.saved.lease(id).filter(|saved| saved.ended.is_none()) else { return };
        // Behind a chunk that found no room everything is measured again.
        answers.retain(|answer| (saved.lease.from..saved.position).contains(&answer.position));
        for answers in answers.chunks(EXTRAS_MAX) {
            let late = LateBatch { lease: id, answers: answers.to_vec() };
            if self.journal.append(&encode_record(&Record::Late(late))).is_none() {
                return log::debug!("late answers of lease {id} are not kept: the spool has no room");
            }
        }
    }

    /// Hosts were seen on the link.
    pub fn on_hosts(&mut self, now: Instant, id: LeaseId, at: UnixMillis, hosts: &[HostSeen]) {
        if self.saved.lease(id).is_none_or(|saved| saved.ended.is_some()) {
            return;
        }
        for hosts in hosts.chunks(EXTRAS_MAX) {
            let hosts = HostBatch { lease: id, at, hosts: hosts.to_vec() };
            if self.journal.append(&encode_record(&Record::Hosts(hosts))).is_none() {
                return self.spool_is_full(now, id);
            }
        }
    }

    /// Whether somebody goes on behind what a lease has reported, once it is cut: not after a cancel or a deadline.
    pub fn goes_on(&self, id: LeaseId) -> bool {
        let run = self.held.get(&id).map(|held| held.run);
        !matches!(run, Some(Run::Cutting(Some(Ending::Cancelled | Ending::Deadline))))
    }

    /// How a task stands.
    pub fn on_progress(&mut self, id: LeaseId, progress: TaskProgress) {
        if let Some(held) = self.held.get_mut(&id) {
            held.progress = progress;
        }
    }

    /// A task ended: complete, cut, or with a failure.
    pub fn on_task_ended(&mut self, now: Instant, id: LeaseId, failure: Option<String>) {
        let Some(held) = self.held.get_mut(&id) else { return };
        let complete = self.saved.leases.iter().any(|saved| saved.lease.id == id && saved.position >= saved.lease.to);
        let run = core::mem::replace(&mut held.run, Run::Waiting);
        match run {
            Run::Cutting(Some(why)) => self.finish(now, id, Some(why), None),
            Run::Cutting(None) if !complete => self.schedule(now),
            Run::Running | Run::Cutting(None) => self.finish(now, id, None, failure),
            Run::Waiting | Run::Ended => held.run = run,
        }
    }

    /// Starts what may start now.
    fn schedule(&mut self, now: Instant) {
        if self.closing || self.no_room_until.is_some_and(|until| now < until) {
            return;
        }
        self.no_room_until = None;
        let trusted = self.trusted_now(now);
        let ready = |held: &Held| held.run == Run::Waiting && (held.ending.is_some() || held.holds_until > now);
        let waiting: Vec<LeaseId> = self.held.iter().filter(|(_, held)| ready(held)).map(|(id, _)| *id).collect();
        for id in waiting {
            // Ending one lease may have started another of this list already.
            let Some(held) = self.held.get(&id).filter(|held| ready(held)) else { continue };
            if let Some(why) = held.ending {
                self.finish(now, id, Some(why), None);
                continue;
            }
            let Some((spec, space)) = self.specs.get(&id.job).cloned() else { continue };
            let Some(saved) = self.saved.lease(id) else { continue };
            let (from, to) = (saved.position, saved.lease.to);
            if to > space.len() {
                self.refuse_job(now, id.job, format!("lease {id} ends at position {to}, the space has {}", space.len()));
                continue;
            }
            if from >= to {
                self.finish(now, id, None, None);
                continue;
            }
            match (spec.deadline, trusted) {
                // Whether it is too late cannot be known before somebody told the time.
                (Some(_), None) => continue,
                (Some(deadline), Some(trusted)) if trusted >= deadline => {
                    self.finish(now, id, Some(Ending::Deadline), None);
                    continue;
                }
                _ => {}
            }
            if let Some(lack) = self.me.self_test.lacks(&spec.needs()) {
                self.refuse_job(now, id.job, lack);
                continue;
            }
            let is_busy = |(other, held): (&LeaseId, &Held)| other.job == id.job && matches!(held.run, Run::Running | Run::Cutting(_));
            if self.held.iter().any(is_busy) {
                continue;
            }
            if let Some(held) = self.held.get_mut(&id) {
                held.run = Run::Running;
                held.progress.sent = from;
            }
            self.actions.push_back(Action::Start { lease: id, spec, space, from, to });
        }
    }

    /// The next moment at which [`Agent::on_timeout`] must be called.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let expiries = self
            .held
            .values()
            .filter(|held| held.run == Run::Running && held.holds_until < Instant::FAR_FUTURE)
            .map(|held| held.holds_until);
        let deadlines = self.running_deadlines(now).map(|(_, at)| at);
        let heartbeat = (self.next_heartbeat < Instant::FAR_FUTURE).then_some(self.next_heartbeat);
        let birth = self.session.as_ref().filter(|session| !session.welcomed).map(|session| session.next_birth);
        expiries.chain(deadlines).chain(heartbeat).chain(birth).chain(self.no_room_until).min()
    }

    fn running_deadlines(&self, now: Instant) -> impl Iterator<Item = (LeaseId, Instant)> + '_ {
        let trusted = self.trusted_now(now);
        self.held.iter().filter(|(_, held)| held.run == Run::Running).filter_map(move |(id, _)| {
            let deadline = self.specs.get(&id.job)?.0.deadline?;
            Some((*id, now + deadline.since(trusted?)))
        })
    }

    /// Time has passed. `vitals` is asked only when a heartbeat is due.
    pub fn on_timeout(&mut self, now: Instant, vitals: impl FnOnce() -> Vitals) {
        for (id, at) in self.running_deadlines(now).collect::<Vec<_>>() {
            if now >= at {
                self.end(now, id, Ending::Deadline);
            }
        }
        for (id, held) in &mut self.held {
            if held.run == Run::Running && now >= held.holds_until {
                log::info!("lease {id} pauses: the controller was not heard for its life");
                held.run = Run::Cutting(None);
                self.actions.push_back(Action::Cut(*id));
            }
        }
        self.say_birth(now);
        if now >= self.next_heartbeat {
            self.heartbeat(now, vitals());
        }
        self.schedule(now);
    }

    fn heartbeat(&mut self, now: Instant, vitals: Vitals) {
        let leases = self.statuses(now);
        let refusals = self.refusals;
        let busy = self.held.values().any(|held| matches!(held.run, Run::Running | Run::Cutting(_)));
        let Some(session) = self.session.as_mut().filter(|session| session.welcomed) else { return };
        session.heartbeats += 1;
        session.unanswered.push_back((session.heartbeats, now));
        if session.unanswered.len() > HEARTBEATS_MAX {
            session.unanswered.pop_front();
        }
        let Vitals { uptime, cpu, memory_kib, load_percent, spool_records, spool_bytes, lost_records, traffic, pacing } = vitals;
        let heartbeat = Heartbeat {
            session: session.id,
            number: session.heartbeats,
            uptime,
            cpu,
            memory_kib,
            load_percent,
            spool_records,
            spool_bytes,
            lost_records,
            leases,
            traffic,
            refusals,
        };
        self.next_heartbeat = now + if busy { self.heartbeat_every.min(BUSY_HEARTBEAT) } else { self.heartbeat_every };
        let id = session.id;
        let news = session.pacing.as_ref().is_none_or(|(last, at)| *last != pacing || now >= *at + PACING_EVERY);
        if news {
            session.pacing = Some((pacing.clone(), now));
        }
        self.actions.push_back(Action::Event(Event::Heartbeat(heartbeat)));
        if news {
            let Pacing { interface, leases, shaper } = pacing;
            let report = PacingReport { session: id, interface, leases, shaper };
            self.actions.push_back(Action::Event(Event::Pacing(Box::new(report))));
        }
        // The question for a spec, or its answer, may have been lost with a connection: it is asked for until it is here.
        let lacking: BTreeSet<JobId> = self
            .held
            .iter()
            .filter(|(id, held)| held.run == Run::Waiting && !self.specs.contains_key(&id.job))
            .map(|(id, _)| id.job)
            .collect();
        self.actions.extend(lacking.into_iter().map(|job| Action::Event(Event::NeedJob { job })));
    }

    /// The program is ending: running measurements are cut, so that what they finished is in the spool; nothing new starts.
    pub fn shut_down(&mut self) {
        self.closing = true;
        for (id, held) in &mut self.held {
            if held.run == Run::Running {
                held.run = Run::Cutting(None);
                self.actions.push_back(Action::Cut(*id));
            }
        }
    }

    /// Whether a measurement has not handed over its end yet.
    pub fn is_measuring(&self) -> bool {
        self.held.values().any(|held| matches!(held.run, Run::Running | Run::Cutting(_)))
    }

    /// The box can do more, or less, than before; told to the controller at the next birth.
    pub fn set_abilities(&mut self, self_test: SelfTest, interface: InterfaceLimits) {
        self.me.self_test = self_test;
        self.me.interface = interface;
    }

    /// Work began or ended: people want to see it sooner than the next regular heartbeat.
    pub fn heartbeat_soon(&mut self, now: Instant) {
        if self.next_heartbeat < Instant::FAR_FUTURE {
            self.next_heartbeat = self.next_heartbeat.min(now);
        }
    }

    fn statuses(&self, now: Instant) -> Vec<LeaseStatus> {
        let status = |saved: &SavedLease| {
            let held = self.held.get(&saved.lease.id)?;
            let activity = match held.run {
                Run::Running | Run::Cutting(_) => Activity::Running,
                _ if !self.specs.contains_key(&saved.lease.id.job) => Activity::WaitingForJob,
                Run::Waiting if held.holds_until <= now => Activity::Paused,
                Run::Waiting | Run::Ended => Activity::Queued,
            };
            let TaskProgress { sent, packets, answers } = held.progress;
            Some(LeaseStatus {
                lease: saved.lease.id,
                position: saved.position,
                sent: sent.max(saved.position),
                activity,
                packets,
                answers,
            })
        };
        self.saved.leases.iter().filter_map(status).collect()
    }
}
