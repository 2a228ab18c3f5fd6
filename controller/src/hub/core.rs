//! The controller's state of work and fleet, and what each message, request and second does to it.
//!
//! Everything that changes goes through here, one thing at a time: memory first, then one transaction, then the commands
//! that follow from it. When a transaction fails, memory is thrown away and read again: the database is the truth.
//!
//! **Invariant:** no command leaves before what it says is in the database.
//! **Invariant:** a message counts for the probe whose topic it came on, whatever it says inside.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use picket_wire::capture::{Chunk, ChunkState, PACKED_MAX};
use picket_wire::codec;
use picket_wire::command::Command;
use picket_wire::envelope::{self, Audience, Contents};
use picket_wire::event::{Birth, Event, Heartbeat, LeaseStatus, Live, PacingReport};
use picket_wire::ids::{JobId, LeaseId, ProbeId, Role, SessionId, StreamId};
use picket_wire::job::Mode;
use picket_wire::result::{LeaseEnd, Record, ResultBatch};
use picket_wire::topic::Topic;
use picket_wire::units::UnixMillis;
use tokio::sync::mpsc;

use super::serial::SerialClock;
use super::{Inbound, Outgoing};
use crate::clock::{Clock, Mono, Now};
use crate::fleet::publish::Publisher;
use crate::fleet::registry::{Beat, Patience, Registry};
use crate::jobs::book::Job;
use crate::jobs::plan::{self, Action, Limits, Outcome};
use crate::pki::Pki;
use crate::results::captures;
use crate::results::project::{self, Origin};
use crate::results::traced::{self, Tracing};
use crate::service::{ServiceConfig, ServiceError, Shared};
use crate::store::{CaptureQuery, CaptureRow, Change, Fate, Ingest, LateRow, ProbeRecord, RawRecord, Store, StoreError};
use crate::view::{JobView, ProbeJob};

/// Bytes of records that one transaction takes, about: at 4 bytes an answer, 130,000 answers.
const INGEST_BYTES: usize = 512 * 1024;
/// Most records in one message: a probe's smallest record has some twenty bytes, and its messages have 64 KiB.
const RECORDS_PER_MESSAGE: usize = 8192;

/// Jobs that are over and stay in memory for late results and questions.
const OVER_KEPT: usize = 32;
/// A lease that its probe does not report is sent again after this.
const RESEND_AFTER: Duration = Duration::from_secs(10);
/// The same acknowledgement or cancel is not repeated faster.
const REPEAT_AFTER: Duration = Duration::from_secs(5);
/// Old captures are looked for this often, and at most so many of them removed each time.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
const EXPIRE_AT_ONCE: u32 = 16;
/// Signs of life are written down this often.
const SEEN_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
struct Stream {
    key: i64,
    stored: u64,
    acked: Option<Mono>,
}

/// Consecutive records of one message.
#[derive(Debug, Clone)]
struct Records {
    probe: ProbeId,
    stream: StreamId,
    after: u64,
    first: u64,
    records: Vec<Vec<u8>>,
}

/// A message that could be read.
#[derive(Debug, Clone)]
enum Message {
    Live(ProbeId, Live),
    Records(Records),
    Heartbeat(ProbeId, Heartbeat),
    NeedJob(ProbeId, JobId),
    Pacing(ProbeId, Box<PacingReport>),
    Chunk(ProbeId, Chunk),
}

/// All state of the controller that changes.
pub(crate) struct Core {
    store: Arc<dyn Store>,
    config: Arc<ServiceConfig>,
    pki: Arc<Pki>,
    clock: Clock,
    shared: Arc<Shared>,
    outbox: mpsc::UnboundedSender<Outgoing>,
    pub(crate) registry: Registry,
    jobs: BTreeMap<JobId, Job>,
    streams: HashMap<(ProbeId, StreamId), Stream>,
    serials: SerialClock,
    publisher: Publisher,
    /// Sessions that were sent a job's spec.
    told: HashMap<JobId, HashSet<SessionId>>,
    /// Jobs that changed since views were made last.
    touched: BTreeSet<JobId>,
    /// Whether there may be something to plan.
    dirty: bool,
    /// Whether memory may differ from the database.
    stale: bool,
    seen_written: Mono,
    /// Captures whose digest is being looked at.
    checking: Arc<Mutex<HashSet<LeaseId>>>,
    /// When captures were last looked through for old ones.
    captures_looked: Mono,
}

fn internal(action: &'static str) -> impl FnOnce(StoreError) -> ServiceError {
    move |error| ServiceError::Internal { action, source: Box::new(error) }
}

/// Where a record came from.
fn origin<'a>(probe: &'a ProbeRecord, raw: &RawRecord, job: &Job) -> Origin<'a> {
    let transport = job.options().technique.transport();
    Origin { probe: probe.key, site: &probe.site, stream: raw.stream, sequence: raw.sequence, received: raw.received, transport }
}

/// How a job traces, if it does.
fn tracing(job: &Job) -> Option<Tracing<'_>> {
    let spec = &job.record.spec;
    let handed_on = spec.mode == Mode::Split && job.leases.values().any(|lease| lease.attempt > 0);
    Some(Tracing { options: spec.kind.trace()?, handed_on })
}

impl Core {
    /// Reads everything that runs from the database.
    pub(crate) async fn load(
        store: Arc<dyn Store>,
        config: Arc<ServiceConfig>,
        pki: Arc<Pki>,
        clock: Clock,
        shared: Arc<Shared>,
        outbox: mpsc::UnboundedSender<Outgoing>,
    ) -> Result<Self, StoreError> {
        let now = clock.now();
        let serials = SerialClock::load(store.as_ref()).await?;
        let patience = Patience { late: config.timing.late_after, offline: config.timing.offline_after };
        let registry = Registry::new(Vec::new(), patience, now);
        let mut core = Self {
            store,
            config,
            pki,
            clock,
            shared,
            outbox,
            registry,
            jobs: BTreeMap::new(),
            streams: HashMap::new(),
            serials,
            publisher: Publisher::default(),
            told: HashMap::new(),
            touched: BTreeSet::new(),
            dirty: true,
            stale: true,
            seen_written: now.mono,
            checking: Arc::default(),
            captures_looked: now.mono,
        };
        core.refresh().await?;
        Ok(core)
    }

    /// Reads everything again where memory may differ from the database.
    pub(crate) async fn refresh(&mut self) -> Result<(), StoreError> {
        if !self.stale {
            return Ok(());
        }
        let now = self.clock.now();
        for record in self.store.probes().await? {
            self.registry.put(record, now);
        }
        let term = self.term();
        self.jobs.clear();
        for stored in self.store.active_jobs().await? {
            let id = stored.job.spec.id;
            match Job::load(stored, now, term) {
                Ok(job) => {
                    self.touched.insert(id);
                    self.jobs.insert(id, job);
                }
                Err(error) => log::error!("job {id} cannot be continued: {error}"),
            }
        }
        self.streams.clear();
        self.directory();
        self.stale = false;
        self.dirty = true;
        self.show(now);
        Ok(())
    }

    /// How long the controller waits for a word before a lease's time is over.
    fn term(&self) -> Duration {
        self.config.timing.lease_ttl + self.config.timing.lease_margin
    }

    /// Runs a change of memory and database; when the database fails, memory is read again before the next one.
    fn failed<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if result.is_err() {
            self.stale = true;
        }
        result
    }

    // ---- commands -------------------------------------------------------------------------------------------------

    fn send(&mut self, topic: Topic, audience: Audience, command: Command) {
        let now = self.clock.now().wall;
        let contents = Contents {
            audience,
            serial: self.serials.next(now),
            issued: now,
            expires: now.after(self.config.timing.command_life),
            command,
        };
        let payload = envelope::seal(&contents, self.pki.signing_key());
        log::debug!("{} to {:?}, {} bytes", contents.command.name(), contents.audience, payload.len());
        let _ = self.outbox.send(Outgoing { topic: topic.format(&self.config.prefix), payload, retain: false });
    }

    fn tell(&mut self, probe: &ProbeId, command: Command) {
        self.send(Topic::ProbeCmd(probe.clone()), Audience::Probe(probe.clone()), command);
    }

    fn tell_role(&mut self, role: Role, command: Command) {
        self.send(Topic::RoleCmd(role), Audience::Role(role), command);
    }

    // ---- messages -------------------------------------------------------------------------------------------------

    /// Takes messages in the order in which they came. On an error nothing of what failed was done, and all of them may be
    /// given again.
    pub(crate) async fn handle(&mut self, inbound: &[Inbound]) -> Result<(), StoreError> {
        self.begin().await?;
        let mut records: Vec<Records> = Vec::new();
        let mut bytes = 0;
        for inbound in inbound {
            match self.read(inbound) {
                None => {}
                Some(Message::Records(more)) => {
                    bytes += more.records.iter().map(Vec::len).sum::<usize>();
                    records.push(more);
                    // One transaction takes so much at most: memory, and the time in which nobody else is served.
                    if bytes >= INGEST_BYTES {
                        bytes = 0;
                        self.ingest(std::mem::take(&mut records)).await?;
                    }
                }
                Some(other) => {
                    self.ingest(std::mem::take(&mut records)).await?;
                    self.message(other).await?;
                }
            }
        }
        self.ingest(records).await?;
        self.settle().await
    }

    fn read(&self, inbound: &Inbound) -> Option<Message> {
        let unreadable = |probe: &ProbeId, error: codec::CodecError| {
            log::warn!("probe {probe} sent what cannot be read: {error}");
        };
        let message = match Topic::parse(&self.config.prefix, &inbound.topic)? {
            Topic::ProbeLive(id) => match codec::decode(&inbound.payload) {
                Ok(live) => Message::Live(id, live),
                Err(error) => {
                    unreadable(&id, error);
                    return None;
                }
            },
            Topic::ProbeEvt(id) => match codec::decode(&inbound.payload) {
                Ok(Event::Records { stream, after, first, records }) => {
                    Message::Records(Records { probe: id, stream, after, first, records })
                }
                Ok(Event::Heartbeat(beat)) => Message::Heartbeat(id, beat),
                Ok(Event::NeedJob { job }) => Message::NeedJob(id, job),
                Ok(Event::Pacing(report)) => Message::Pacing(id, report),
                Ok(Event::Chunk(chunk)) => Message::Chunk(id, chunk),
                Err(error) => {
                    unreadable(&id, error);
                    return None;
                }
            },
            _ => return None,
        };
        Some(message)
    }

    async fn message(&mut self, message: Message) -> Result<(), StoreError> {
        match message {
            Message::Live(id, Live::Birth(birth)) => self.birth(&id, birth).await,
            Message::Live(id, Live::Death { session, orderly }) => self.death(&id, session, orderly).await,
            Message::Heartbeat(id, beat) => self.heartbeat(&id, beat).await,
            Message::NeedJob(id, job) => {
                self.need_job(&id, job);
                Ok(())
            }
            Message::Pacing(id, report) => {
                self.registry.pacing(&id, *report, self.clock.now());
                Ok(())
            }
            Message::Chunk(id, chunk) => self.chunk(&id, &chunk).await,
            Message::Records(records) => self.ingest(vec![records]).await,
        }
    }

    async fn birth(&mut self, id: &ProbeId, birth: Birth) -> Result<(), StoreError> {
        let now = self.clock.now();
        if !self.registry.birth(id, &birth, now) {
            log::warn!("{id} says that it is born, but it is not an enrolled probe");
            return Ok(());
        }
        log::info!("probe {id} connected, session {}, version {}", birth.session, birth.version);
        let Some(record) = self.registry.get(id).map(|probe| probe.record.clone()) else { return Ok(()) };
        let stored = self.store.put_probe(&record).await.map(drop);
        self.failed(stored)?;
        let mut stream = self.stream(id, birth.stream).await?;
        if birth.acked > stream.stored && i64::try_from(birth.acked).is_ok() {
            log::error!(
                "probe {id} was told that its records up to {} are stored, and only those up to {} are: this database is older than \
                 that; what is missing is measured again where its job still runs",
                birth.acked,
                stream.stored
            );
            let skip = Ingest { stored: vec![(stream.key, birth.acked)], ..Ingest::default() };
            let skipped = self.store.ingest(&skip).await;
            self.failed(skipped)?;
            stream.stored = birth.acked;
            if let Some(known) = self.streams.get_mut(&(id.clone(), birth.stream)) {
                known.stored = birth.acked;
            }
        }
        for status in &birth.leases {
            self.note(id, status, now);
        }
        let leases: Vec<LeaseId> = self.held_by(id);
        self.tell(
            id,
            Command::Welcome {
                session: birth.session,
                nonce: birth.nonce,
                now: now.wall,
                heartbeat: self.config.timing.heartbeat,
                roles: record.roles.clone(),
                leases: leases.clone(),
                stored: stream.stored,
            },
        );
        let stopping: BTreeSet<JobId> =
            leases.iter().map(|lease| lease.job).filter(|job| self.jobs.get(job).is_some_and(Job::is_stopping)).collect();
        for job in stopping {
            self.cancel_at(id, job, now);
        }
        self.dirty = true;
        Ok(())
    }

    async fn death(&mut self, id: &ProbeId, session: SessionId, orderly: bool) -> Result<(), StoreError> {
        let now = self.clock.now();
        if !self.registry.death(id, session, orderly, now) {
            log::debug!("the death of session {session} of probe {id} says nothing: it is not the one that is known");
            return Ok(());
        }
        log::info!("probe {id} is gone ({})", if orderly { "it said good-bye" } else { "its connection broke" });
        self.dirty = true;
        let Some(record) = self.registry.get(id).map(|probe| probe.record.clone()) else { return Ok(()) };
        let stored = self.store.put_probe(&record).await.map(drop);
        self.failed(stored)
    }

    /// Leases that the database says a probe holds.
    fn held_by(&self, id: &ProbeId) -> Vec<LeaseId> {
        let held = |job: &Job| {
            let leases: Vec<LeaseId> =
                job.alive().filter(|lease| lease.probe == *id).map(|lease| LeaseId { job: job.id(), grant: lease.number }).collect();
            leases
        };
        self.jobs.values().filter(|job| !job.is_final()).flat_map(held).collect()
    }

    /// Enters what a probe says of a lease; `false` where it should not hold it.
    fn note(&mut self, id: &ProbeId, status: &LeaseStatus, now: Now) -> bool {
        let expires = now.mono.after(self.term());
        let Some(job) = self.jobs.get_mut(&status.lease.job).filter(|job| !job.is_final()) else { return false };
        let alive = job.leases.get(&status.lease.grant).is_some_and(|lease| lease.ended.is_none() && lease.probe == *id);
        if let (true, Some(notes)) = (alive, job.notes.get_mut(&status.lease.grant)) {
            notes.expires = notes.expires.map(|_| expires);
            if notes.status.as_ref().is_none_or(|last| last != status) {
                self.touched.insert(status.lease.job);
            }
            notes.status = Some(*status);
        }
        alive
    }

    async fn heartbeat(&mut self, id: &ProbeId, beat: Heartbeat) -> Result<(), StoreError> {
        let now = self.clock.now();
        let was_ready = self.registry.get(id).is_some_and(|probe| probe.is_connected());
        match self.registry.heartbeat(id, beat.clone(), now) {
            Beat::Known => {}
            Beat::Stranger => {
                log::debug!("a heartbeat of probe {id} belongs to session {}, whose birth has not come", beat.session);
                return Ok(());
            }
            Beat::Nobody => return Ok(()),
        }
        self.dirty |= !was_ready;
        self.tell(id, Command::HeartbeatAck { session: beat.session, number: beat.number });
        let mut cancelled = BTreeSet::new();
        for status in &beat.leases {
            let wanted = self.note(id, status, now);
            if self.jobs.get(&status.lease.job).is_some_and(|job| job.is_stopping() && !job.is_final()) {
                cancelled.insert(status.lease.job);
            } else if !wanted && !self.is_complete(status) {
                self.tell(id, Command::Revoke { lease: status.lease });
            }
        }
        for job in cancelled {
            self.cancel_at(id, job, now);
        }
        self.resend(id, &beat, now);
        self.reacknowledge(id, &beat, now);
        Ok(())
    }

    /// Whether a probe is just about to say that a lease is done.
    fn is_complete(&self, status: &LeaseStatus) -> bool {
        let lease = self.jobs.get(&status.lease.job).and_then(|job| job.leases.get(&status.lease.grant));
        lease.is_some_and(|lease| status.position >= lease.span.to)
    }

    fn cancel_at(&mut self, id: &ProbeId, job: JobId, now: Now) {
        let Some(book) = self.jobs.get_mut(&job) else { return };
        if book.cancel_sent.get(id).is_some_and(|at| now.mono.since(*at) < REPEAT_AFTER) {
            return;
        }
        book.cancel_sent.insert(id.clone(), now.mono);
        self.tell(id, Command::Cancel { job });
    }

    /// Sends leases again that got lost on the way. A probe with an empty spool that does not report a lease has never
    /// seen it, or else its end would be here.
    fn resend(&mut self, id: &ProbeId, beat: &Heartbeat, now: Now) {
        if beat.spool_records > 0 {
            return;
        }
        let reported: HashSet<LeaseId> = beat.leases.iter().map(|status| status.lease).collect();
        for lease in self.held_by(id) {
            let Some(job) = self.jobs.get_mut(&lease.job).filter(|job| !job.is_stopping()) else { continue };
            let Some(notes) = job.notes.get_mut(&lease.grant) else { continue };
            let waited = notes.sent.is_none_or(|at| now.mono.since(at) >= RESEND_AFTER);
            if reported.contains(&lease) || !waited {
                continue;
            }
            notes.sent = Some(now.mono);
            log::info!("lease {lease} is sent to probe {id} again: it does not report it");
            self.told.entry(lease.job).or_default().remove(&beat.session);
            self.grant_to(id, lease);
        }
    }

    /// An acknowledgement may have got lost: who has records waiting is told again.
    fn reacknowledge(&mut self, id: &ProbeId, beat: &Heartbeat, now: Now) {
        if beat.spool_records == 0 {
            return;
        }
        let Some(stream) = self.registry.get(id).and_then(|probe| probe.record.birth.as_ref()).map(|birth| birth.stream) else { return };
        let Some(known) = self.streams.get_mut(&(id.clone(), stream)) else { return };
        if known.stored > 0 && known.acked.is_none_or(|at| now.mono.since(at) >= REPEAT_AFTER) {
            known.acked = Some(now.mono);
            let up_to = known.stored;
            self.tell(id, Command::Ack { stream, up_to });
        }
    }

    fn need_job(&mut self, id: &ProbeId, job: JobId) {
        self.registry.heard(id, self.clock.now());
        let holds = self.held_by(id).iter().any(|lease| lease.job == job);
        match self.jobs.get(&job).filter(|_| holds) {
            Some(book) => {
                let spec = book.record.spec.clone();
                self.tell(id, Command::Job(spec));
            }
            None => self.tell(id, Command::Cancel { job }),
        }
    }

    // ---- records --------------------------------------------------------------------------------------------------

    async fn stream(&mut self, id: &ProbeId, stream: StreamId) -> Result<Stream, StoreError> {
        let name = (id.clone(), stream);
        if let Some(known) = self.streams.get(&name) {
            return Ok(*known);
        }
        let key = self.registry.get(id).map_or(0, |probe| probe.record.key);
        let record = self.store.stream(key, stream).await?;
        let known = Stream { key: record.key, stored: record.stored, acked: None };
        self.streams.insert(name, known);
        Ok(known)
    }

    /// The job, read from the database where it is over and no longer in memory.
    async fn recall(&mut self, id: JobId) -> Result<bool, StoreError> {
        if self.jobs.contains_key(&id) {
            return Ok(true);
        }
        let (now, term) = (self.clock.now(), self.term());
        let Some(stored) = self.store.job(id).await? else { return Ok(false) };
        match Job::load(stored, now, term) {
            Ok(job) => {
                self.jobs.insert(id, job);
                Ok(true)
            }
            Err(error) => {
                log::error!("job {id} cannot be read: {error}");
                Ok(false)
            }
        }
    }

    /// Stores the records of several messages and their effects in one transaction, then acknowledges.
    async fn ingest(&mut self, messages: Vec<Records>) -> Result<(), StoreError> {
        if messages.is_empty() {
            return Ok(());
        }
        let mut ingest = Ingest::default();
        let mut over: Vec<(ProbeId, LeaseId)> = Vec::new();
        let mut acks: BTreeMap<(ProbeId, StreamId), (i64, u64)> = BTreeMap::new();
        for message in messages {
            if self.registry.enrolled(&message.probe).is_none() {
                log::warn!("{} sent records, but it is not an enrolled probe", message.probe);
                continue;
            }
            self.registry.heard(&message.probe, self.clock.now());
            let taken = self.take(&message, &mut ingest).await;
            let (key, stored) = self.failed(taken)?;
            let new = ingest.projection.overs.get(over.len()..).unwrap_or_default();
            over.extend(new.iter().map(|row| (message.probe.clone(), row.over.lease)));
            acks.insert((message.probe, message.stream), (key, stored));
        }
        ingest.stored = acks.values().filter(|(_, stored)| *stored > 0).copied().collect();
        if !ingest.records.is_empty() {
            let stored = self.store.ingest(&ingest).await;
            let ingested = self.failed(stored)?;
            for late in ingested.lates {
                self.late_counts(&late);
            }
        }
        let now = self.clock.now();
        for ((probe, stream), (_, stored)) in acks {
            if let Some(known) = self.streams.get_mut(&(probe.clone(), stream)) {
                known.acked = Some(now.mono);
            }
            self.tell(&probe, Command::Ack { stream, up_to: stored });
        }
        for (probe, lease) in over {
            // All of its file may have come before: the probe waits for no more than that word.
            self.chunk(&probe, &Chunk::question(lease)).await?;
        }
        Ok(())
    }

    /// Takes the new records of one message, as far as nothing before them is missing. Gives the stream's key and mark.
    async fn take(&mut self, message: &Records, ingest: &mut Ingest) -> Result<(i64, u64), StoreError> {
        let Stream { key, mut stored, .. } = self.stream(&message.probe, message.stream).await?;
        if message.after > stored || message.after >= message.first {
            log::debug!("probe {}: records after {} came, but only those up to {stored} are here", message.probe, message.after);
            return Ok((key, stored));
        }
        // The database counts in signed numbers; and who sends thousands of records in one message means harm.
        let past = message.first.checked_add(message.records.len() as u64).filter(|past| i64::try_from(*past).is_ok());
        if past.is_none() || message.records.len() > RECORDS_PER_MESSAGE || message.records.iter().any(Vec::is_empty) {
            log::warn!("probe {}: {} records from {} in one message are not taken", message.probe, message.records.len(), message.first);
            return Ok((key, stored));
        }
        let received = self.clock.now().wall;
        for (sequence, bytes) in (message.first..).zip(&message.records) {
            if sequence <= stored {
                continue;
            }
            let mut record = RawRecord { stream: key, sequence, received, fate: Fate::Counted, reason: None, bytes: bytes.clone() };
            (record.fate, record.reason) = match self.effect(&message.probe, &record, ingest).await? {
                Ok(fate) => (fate, None),
                Err(reason) => {
                    log::warn!("record {sequence} of probe {} is kept but not believed: {reason}", message.probe);
                    (Fate::Rejected, Some(reason))
                }
            };
            ingest.records.push(record);
            stored = sequence;
        }
        if let Some(known) = self.streams.get_mut(&(message.probe.clone(), message.stream)) {
            known.stored = stored;
        }
        Ok((key, stored))
    }

    /// What a record means. The inner error says why it is not believed.
    async fn effect(&mut self, probe: &ProbeId, raw: &RawRecord, ingest: &mut Ingest) -> Result<Result<Fate, String>, StoreError> {
        let record: Record = match codec::decode(&raw.bytes) {
            Ok(record) => record,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let job = match &record {
            Record::LeaseEnded { lease, .. } => Some(lease.job),
            Record::JobRefused { job, .. } => Some(*job),
            other => project::lease_of(other).map(|lease| lease.job),
        };
        if let Some(job) = job
            && !self.recall(job).await?
        {
            return Ok(Err(format!("there is no job {job}")));
        }
        Ok(match record {
            Record::Batch(batch) => self.batch(probe, raw, &batch, ingest),
            Record::LeaseEnded { lease, end, .. } => self.lease_ended(probe, lease, end, ingest),
            Record::JobRefused { job, reason } => self.job_refused(probe, job, &reason, ingest),
            Record::Loss { records, bytes } => {
                log::warn!("probe {probe} lost {records} records ({bytes} bytes): its spool had no room");
                ingest.losses.push((raw.stream, records, bytes));
                Ok(Fate::Counted)
            }
            found @ (Record::Late(_) | Record::Services(_) | Record::Hosts(_) | Record::Paths(_) | Record::Captured(_)) => {
                self.extras(probe, raw, &found, ingest)
            }
        })
    }

    /// What is told beside batches: late answers, services, hosts on the link, paths, what captures came to.
    fn extras(&mut self, probe: &ProbeId, raw: &RawRecord, record: &Record, ingest: &mut Ingest) -> Result<Fate, String> {
        let id = project::lease_of(record).ok_or("it is of no lease")?;
        let unknown = || format!("lease {id} was never granted to this probe");
        let job = self.jobs.get(&id.job).ok_or_else(unknown)?;
        let lease = job.leases.get(&id.grant).filter(|lease| lease.probe == *probe).ok_or_else(unknown)?;
        let known = self.registry.get(probe).map(|probe| &probe.record).ok_or_else(unknown)?;
        let origin = origin(known, raw, job);
        match record {
            Record::Late(late) => project::late(late, lease, &job.space, origin, &mut ingest.projection),
            Record::Services(services) => project::services(services, lease, &job.space, origin, &mut ingest.projection),
            Record::Hosts(hosts) => project::hosts(hosts, origin, &mut ingest.projection),
            Record::Paths(paths) => {
                let covered =
                    job.parts.iter().find(|book| book.record.number == lease.part).map(|book| &book.covered).ok_or_else(unknown)?;
                traced::paths(paths, lease, covered, &job.space, tracing(job), origin, &mut ingest.projection)
            }
            Record::Captured(captured) => {
                project::captured(captured, job.record.spec.kind.capture().is_some(), origin, &mut ingest.projection)
            }
            _ => Err("it tells no findings".to_owned()),
        }
    }

    /// A late answer was entered in the database: a silent position is an answered one now.
    fn late_counts(&mut self, late: &LateRow) {
        let probe = self.jobs.get(&late.lease.job).and_then(|job| job.leases.get(&late.lease.grant)).map(|lease| lease.probe.clone());
        if let (Some(job), Some(probe)) = (self.jobs.get_mut(&late.lease.job), probe) {
            job.late(&probe, late.row.answer.state);
            self.touched.insert(late.lease.job);
        }
    }

    fn batch(&mut self, probe: &ProbeId, raw: &RawRecord, batch: &ResultBatch, ingest: &mut Ingest) -> Result<Fate, String> {
        let whole = batch.check().map_err(|error| error.to_string())?;
        let unknown = || format!("lease {} was never granted to this probe", batch.lease);
        let job = self.jobs.get_mut(&batch.lease.job).ok_or_else(unknown)?;
        let lease = job.leases.get(&batch.lease.grant).filter(|lease| lease.probe == *probe).ok_or_else(unknown)?;
        project::belongs(batch, lease)?;
        let part = lease.part;
        let record = self.registry.get(probe).map(|probe| &probe.record).ok_or_else(unknown)?;
        let origin = origin(record, raw, job);
        let book = job.parts.iter().find(|book| book.record.number == part).ok_or_else(unknown)?;
        let (fate, pieces) = project::project(batch, whole, part, &book.covered, &job.space, origin, &mut ingest.projection);
        if fate != Fate::Counted {
            log::info!("lease {}: positions {} to {} have results already, in whole or in part", batch.lease, batch.from, batch.to);
        }
        if let Some(tracing) = tracing(job) {
            traced::ends(batch, &pieces, &job.space, tracing, origin, &mut ingest.projection);
        }
        for (span, coverage) in pieces {
            job.cover(part, span, probe, coverage);
        }
        self.touched.insert(batch.lease.job);
        self.dirty |= job.parts.iter().any(|book| book.record.number == part && book.covered.len() == job.space.len());
        Ok(fate)
    }

    fn lease_ended(&mut self, probe: &ProbeId, lease: LeaseId, end: LeaseEnd, ingest: &mut Ingest) -> Result<Fate, String> {
        let unknown = || format!("lease {lease} was never granted to this probe");
        let now = self.clock.now().wall;
        let job = self.jobs.get_mut(&lease.job).ok_or_else(unknown)?;
        let held = job.leases.get(&lease.grant).filter(|held| held.probe == *probe).ok_or_else(unknown)?;
        let covered =
            job.parts.iter().find(|book| book.record.number == held.part).is_some_and(|book| book.covered.missing(held.span).is_empty());
        let (how, reason) = match end {
            LeaseEnd::Done if covered => ("done", None),
            // A probe that is done with less than all of its range would be given the same again and again.
            LeaseEnd::Done => ("failed", Some("it said that it was done, but results are missing".to_owned())),
            LeaseEnd::Revoked => ("revoked", None),
            LeaseEnd::Cancelled => ("cancelled", None),
            LeaseEnd::Deadline => ("deadline", None),
            LeaseEnd::Failed(reason) => ("failed", Some(reason)),
        };
        log::info!("lease {lease} ended on probe {probe}: {how}{}", reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default());
        ingest.changes.extend(job.end_lease(lease.grant, how, reason, now));
        self.touched.insert(lease.job);
        self.dirty = true;
        Ok(Fate::Counted)
    }

    fn job_refused(&mut self, probe: &ProbeId, id: JobId, reason: &str, ingest: &mut Ingest) -> Result<Fate, String> {
        let now = self.clock.now().wall;
        let job = self.jobs.get_mut(&id).ok_or_else(|| format!("there is no job {id}"))?;
        if job.leases.values().all(|lease| lease.probe != *probe) {
            return Err(format!("job {id} was never given to this probe"));
        }
        log::info!("probe {probe} refuses job {id}: {reason}");
        ingest.changes.extend(job.exclude(probe, format!("it refuses the job: {reason}")));
        let held: Vec<u32> = job.alive().filter(|lease| lease.probe == *probe).map(|lease| lease.number).collect();
        for number in held {
            ingest.changes.extend(job.end_lease(number, "failed", Some(reason.to_owned()), now));
        }
        self.touched.insert(id);
        self.dirty = true;
        Ok(Fate::Counted)
    }

    // ---- captures -------------------------------------------------------------------------------------------------

    /// Takes bytes of a capture's file where they follow on what is here, and says what is here.
    async fn chunk(&mut self, id: &ProbeId, chunk: &Chunk) -> Result<(), StoreError> {
        if self.registry.enrolled(id).is_none() {
            log::warn!("{id} sent bytes of a capture, but it is not an enrolled probe");
            return Ok(());
        }
        self.registry.heard(id, self.clock.now());
        let taken = self.take_chunk(id, chunk).await;
        let (stored, state) = self.failed(taken)?;
        self.tell(id, Command::ChunkAck { lease: chunk.lease, stored, state });
        Ok(())
    }

    async fn take_chunk(&mut self, id: &ProbeId, chunk: &Chunk) -> Result<(u64, ChunkState), StoreError> {
        let lease = chunk.lease;
        let known = self.recall(lease.job).await?;
        let job = self.jobs.get(&lease.job).filter(|_| known);
        let options = job.filter(|job| job.leases.get(&lease.grant).is_some_and(|held| held.probe == *id));
        let Some(options) = options.and_then(|job| job.record.spec.kind.capture()).cloned() else {
            log::warn!("probe {id} sent bytes of a capture that it was never asked for, lease {lease}");
            return Ok((0, ChunkState::Unwanted));
        };
        let Some(probe) = self.registry.get(id).map(|probe| probe.record.clone()) else { return Ok((0, ChunkState::Unwanted)) };
        let query = CaptureQuery { lease: Some(lease), limit: 1, ..CaptureQuery::default() };
        let now = self.clock.now().wall;
        let row = self.store.captures(&query).await?.pop().map(|found| found.row).unwrap_or_else(|| CaptureRow {
            lease,
            probe: probe.key,
            site: probe.site,
            stored: 0,
            packed: 0,
            first: now,
            last: now,
            over: None,
            checked: false,
            removed: None,
        });
        if chunk.len == 0 || chunk.offset != row.stored || row.removed.is_some() {
            let full = row.state() == ChunkState::Open && self.is_full(PACKED_MAX).await?;
            let state = if full { ChunkState::NoRoom } else { row.state() };
            let stored = row.stored;
            self.check_capture(row);
            return Ok((stored, state));
        }
        // Each time that it is continued, a file begins again with a head.
        let most = options.bytes.saturating_mul(2);
        let wrong = match chunk.unpack() {
            Ok(_) if chunk.end() > most => Some(format!("it has more than the {} bytes that were asked for", options.bytes)),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(wrong) = wrong {
            log::warn!("probe {id}: the capture of lease {lease} is not taken any further: {wrong}");
            return Ok((row.stored, ChunkState::Unwanted));
        }
        if self.is_full(chunk.packed.len()).await? {
            log::warn!("captures take all of their {} bytes: lease {lease} of probe {id} waits for room", self.config.captures.max_bytes);
            return Ok((row.stored, ChunkState::NoRoom));
        }
        if !self.store.put_chunk(&row, chunk, now).await? {
            return Ok((row.stored, ChunkState::Open));
        }
        let grown = CaptureRow { stored: chunk.end(), ..row };
        let answer = (grown.stored, grown.state());
        self.check_capture(grown);
        Ok(answer)
    }

    /// Whether captures have no room for so many bytes more.
    async fn is_full(&self, more: usize) -> Result<bool, StoreError> {
        Ok(self.store.captures_size().await?.saturating_add(more as u64) > self.config.captures.max_bytes)
    }

    /// Has the digest of a capture looked at that has all its bytes, beside everything else; its probe asks again for what came of it.
    fn check_capture(&self, row: CaptureRow) {
        let lease = row.lease;
        if !row.is_to_be_checked() || !self.checking.lock().unwrap_or_else(PoisonError::into_inner).insert(lease) {
            return;
        }
        let (store, checking) = (Arc::clone(&self.store), Arc::clone(&self.checking));
        tokio::spawn(async move {
            if let Err(error) = captures::check_bytes(store.as_ref(), &row).await {
                log::error!("{}", crate::errors::chain(&error));
            }
            checking.lock().unwrap_or_else(PoisonError::into_inner).remove(&lease);
        });
    }

    /// Removes the bytes of captures that are older than they are kept.
    async fn expire_captures(&mut self, now: Now) -> Result<(), StoreError> {
        self.captures_looked = now.mono;
        let keep = self.config.captures.keep;
        let before = UnixMillis(now.wall.0.saturating_sub(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX)));
        let query = CaptureQuery { untouched_since: Some(before), limit: EXPIRE_AT_ONCE, ..CaptureQuery::default() };
        let old = self.store.captures(&query).await?;
        for capture in &old {
            let lease = capture.row.lease;
            log::info!(
                "the capture of lease {lease} by probe {} is removed: it is older than {} days",
                capture.probe,
                keep.as_secs() / 86_400
            );
            self.store.remove_capture(lease, now.wall, "its time is over").await?;
        }
        Ok(())
    }

    // ---- requests -------------------------------------------------------------------------------------------------

    /// Before anything that changes: memory is the database's, and there is room for serials.
    pub(crate) async fn begin(&mut self) -> Result<(), StoreError> {
        self.refresh().await?;
        self.serials.reserve(self.store.as_ref(), self.clock.now().wall).await
    }

    /// After anything that changed: plan, and show.
    pub(crate) async fn settle(&mut self) -> Result<(), StoreError> {
        if self.dirty {
            self.dirty = false;
            let planned = self.plan().await;
            self.failed(planned)?;
        }
        self.show(self.clock.now());
        Ok(())
    }

    /// Enters a new job.
    pub(crate) async fn submit(&mut self, job: Job) -> Result<JobId, ServiceError> {
        self.begin().await.map_err(internal("read its database"))?;
        let id = job.id();
        if self.jobs.contains_key(&id) {
            return Err(ServiceError::Conflict(format!("job {id} exists")));
        }
        let stored = self.store.apply(&job.rows()).await;
        self.failed(stored).map_err(internal("store the job"))?;
        log::info!("job {id} submitted by {}: {}", job.record.actor, job.record.summary);
        self.jobs.insert(id, job);
        self.touched.insert(id);
        self.dirty = true;
        self.settle().await.map_err(internal("start the job"))?;
        Ok(id)
    }

    /// Asks a job to stop.
    pub(crate) async fn cancel(&mut self, id: JobId, actor: &str) -> Result<(), ServiceError> {
        self.begin().await.map_err(internal("read its database"))?;
        let known = self.recall(id).await.map_err(internal("read the job"))?;
        let Some(job) = self.jobs.get(&id).filter(|_| known) else {
            return Err(ServiceError::NotFound { what: "job", name: id.to_string() });
        };
        if job.is_final() {
            return Err(ServiceError::Conflict(format!("job {id} is over already")));
        }
        if !job.is_stopping() {
            log::info!("job {id} is cancelled by {actor}");
            let stopped = self.stop(id, Outcome::Cancelled(format!("cancelled by {actor}"))).await;
            self.failed(stopped).map_err(internal("store the cancel"))?;
        }
        self.dirty = true;
        self.settle().await.map_err(internal("cancel the job"))
    }

    async fn stop(&mut self, id: JobId, outcome: Outcome) -> Result<(), StoreError> {
        let now = self.clock.now();
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let changes = job.stop(outcome, now);
        let holders: BTreeSet<ProbeId> = job.alive().map(|lease| lease.probe.clone()).collect();
        self.store.apply(&changes).await?;
        self.touched.insert(id);
        for probe in holders {
            self.cancel_at(&probe, id, now);
        }
        Ok(())
    }

    /// Enters a probe's new row, as it is in the database now.
    pub(crate) fn put_probe(&mut self, record: ProbeRecord) {
        let now = self.clock.now();
        self.registry.put(record, now);
        self.directory();
        self.dirty = true;
    }

    /// A job as it stands, from memory or the database.
    pub(crate) async fn job_view(&mut self, id: JobId) -> Result<Option<JobView>, StoreError> {
        self.refresh().await?;
        if !self.recall(id).await? {
            return Ok(None);
        }
        let view = self.jobs.get(&id).map(|job| job.view(|probe| self.registry.limits(probe)));
        self.forget();
        Ok(view)
    }

    /// The space of a job, for questions about its results.
    pub(crate) async fn with_job<T>(&mut self, id: JobId, look: impl FnOnce(&Job) -> T) -> Result<Option<T>, StoreError> {
        self.refresh().await?;
        if !self.recall(id).await? {
            return Ok(None);
        }
        let seen = self.jobs.get(&id).map(look);
        self.forget();
        Ok(seen)
    }

    /// Jobs that are not over.
    pub(crate) fn running(&self) -> u32 {
        self.jobs.values().filter(|job| !job.is_final()).count() as u32
    }

    /// Everything must be read again: the database was changed beside this.
    pub(crate) fn invalidate(&mut self) {
        self.stale = true;
    }

    // ---- time and plan --------------------------------------------------------------------------------------------

    /// Time has passed.
    pub(crate) async fn tick(&mut self) -> Result<(), StoreError> {
        self.begin().await?;
        let now = self.clock.now();
        for id in self.registry.tick(now) {
            if let Some(probe) = self.registry.get(&id) {
                log::info!("probe {id} is now {:?}: {}", probe.state(), probe.view().reason);
            }
        }
        // Expiries and deadlines need no event.
        self.dirty = true;
        self.settle().await?;
        self.publish(now);
        if now.mono.since(self.captures_looked) >= EXPIRE_EVERY {
            let expired = self.expire_captures(now).await;
            self.failed(expired)?;
        }
        if now.mono.since(self.seen_written) >= SEEN_EVERY {
            self.seen_written = now.mono;
            let records: Vec<ProbeRecord> =
                self.registry.iter().filter(|probe| probe.is_connected()).map(|probe| probe.record.clone()).collect();
            for record in records {
                let stored = self.store.put_probe(&record).await.map(drop);
                self.failed(stored)?;
            }
        }
        Ok(())
    }

    /// The connection to the broker is new: what it kept may be gone.
    pub(crate) fn reconnected(&mut self) {
        self.publisher.forget();
    }

    fn publish(&mut self, now: Now) {
        let summary = self.registry.summary(self.running(), now);
        let views: Vec<_> = self.registry.iter().map(|probe| probe.view()).collect();
        for (path, payload) in self.publisher.update(&summary, &views, now.mono) {
            let topic = Topic::Fleet(path).format(&self.config.prefix);
            let _ = self.outbox.send(Outgoing { topic, payload, retain: true });
        }
    }

    /// Plans until there is nothing left to do.
    async fn plan(&mut self) -> Result<(), StoreError> {
        // Each round makes progress; the bound is for faults only.
        for _ in 0..16 {
            let now = self.clock.now();
            let works: Vec<_> = self.jobs.values().filter(|job| !job.is_final()).map(|job| job.work(now)).collect();
            if works.is_empty() {
                return Ok(());
            }
            let limits = Limits { stop_grace: self.config.timing.stop_grace };
            let actions = plan::plan(&works, &self.registry.workers(now), now.mono, limits);
            let again = actions.iter().any(|action| !matches!(action, Action::Explain { .. }));
            self.carry_out(actions, now).await?;
            if !again {
                return Ok(());
            }
        }
        log::error!("planning does not come to an end; it goes on in a second");
        Ok(())
    }

    async fn carry_out(&mut self, actions: Vec<Action>, now: Now) -> Result<(), StoreError> {
        let expires = now.mono.after(self.term());
        let mut changes: Vec<Change> = Vec::new();
        let mut grants: Vec<(ProbeId, LeaseId, bool)> = Vec::new();
        let mut revoked: Vec<(ProbeId, LeaseId)> = Vec::new();
        let mut stops: Vec<(JobId, Outcome)> = Vec::new();
        for action in actions {
            let id = match &action {
                Action::Expire { lease, .. } => lease.job,
                Action::Start { job, .. }
                | Action::Grant { job, .. }
                | Action::Abandon { job, .. }
                | Action::Stop { job, .. }
                | Action::Finish { job, .. }
                | Action::Explain { job, .. } => *job,
            };
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            match action {
                Action::Start { probes, .. } => changes.extend(job.start(&probes)),
                Action::Grant { probe, part, span, expires: ends, .. } => {
                    let first = job.record.started.is_none();
                    let (number, more) = job.grant(part, &probe, span, ends.then_some(expires), now);
                    changes.extend(more);
                    log::info!("lease {id}.{number}: positions {} to {} to probe {probe}", span.from, span.to);
                    grants.push((probe, LeaseId { job: id, grant: number }, first));
                }
                Action::Expire { lease, reason } => {
                    log::info!("lease {lease} is over: {reason}");
                    if let Some(held) = job.leases.get(&lease.grant) {
                        revoked.push((held.probe.clone(), lease));
                    }
                    changes.extend(job.end_lease(lease.grant, "expired", Some(reason), now.wall));
                }
                Action::Abandon { part, reason, .. } => changes.extend(job.abandon(part, &reason)),
                Action::Stop { outcome, .. } => {
                    stops.push((id, outcome));
                    continue;
                }
                Action::Finish { outcome, .. } => {
                    log::info!("job {id} is over: {outcome:?}");
                    changes.extend(job.finish(outcome, now));
                    self.told.remove(&id);
                }
                Action::Explain { reason, .. } => {
                    if job.record.reason.as_ref() == Some(&reason) {
                        continue;
                    }
                    job.record.reason = Some(reason);
                    changes.push(job.row());
                }
            }
            self.touched.insert(id);
        }
        if !changes.is_empty() {
            self.store.apply(&changes).await?;
        }
        for (id, outcome) in stops {
            self.stop(id, outcome).await?;
        }
        for (probe, lease) in revoked {
            if self.registry.get(&probe).is_some_and(|probe| probe.is_connected()) {
                self.tell(&probe, Command::Revoke { lease });
            }
        }
        for (probe, lease, first) in grants {
            if first {
                self.announce(lease.job);
            }
            self.grant_to(&probe, lease);
        }
        Ok(())
    }

    /// Publishes a job's spec to all holders of its role.
    fn announce(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let spec = job.record.spec.clone();
        let role = spec.needs().role;
        let hear = self.registry.iter().filter(|probe| probe.record.roles.contains(&role) && probe.is_connected());
        let sessions: HashSet<SessionId> = hear.filter_map(|probe| probe.open_session()).collect();
        self.told.entry(id).or_default().extend(sessions);
        self.tell_role(role, Command::Job(spec));
    }

    /// Sends a lease, after the job's spec where the probe's session has not heard it.
    fn grant_to(&mut self, probe: &ProbeId, lease: LeaseId) {
        let ttl = self.config.timing.lease_ttl;
        let Some(job) = self.jobs.get(&lease.job) else { return };
        let Some(granted) = job.wire_lease(lease.grant, ttl) else { return };
        let spec = job.record.spec.clone();
        let session = self.registry.get(probe).and_then(|probe| probe.open_session());
        let told = session.is_some_and(|session| self.told.entry(lease.job).or_default().insert(session));
        if told {
            self.tell(probe, Command::Job(spec));
        }
        self.tell(probe, Command::Grant(granted));
    }

    // ---- what others see ------------------------------------------------------------------------------------------

    /// Brings views up to date.
    fn show(&mut self, now: Now) {
        if self.touched.is_empty() {
            return;
        }
        for id in std::mem::take(&mut self.touched) {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            job.touch(now);
            let view = job.view(|probe| self.registry.limits(probe));
            self.shared.show(view);
        }
        let mut held: BTreeMap<ProbeId, Vec<ProbeJob>> = BTreeMap::new();
        for job in self.jobs.values().filter(|job| !job.is_final()) {
            let mut asked: BTreeMap<&ProbeId, (u64, u64)> = BTreeMap::new();
            for lease in job.alive() {
                let sent = job
                    .notes
                    .get(&lease.number)
                    .and_then(|notes| notes.status)
                    .map_or(0, |status| status.sent.saturating_sub(lease.span.from));
                let sum = asked.entry(&lease.probe).or_default();
                *sum = (sum.0 + sent.min(lease.span.len()), sum.1 + lease.span.len());
            }
            for (probe, (sent, all)) in asked {
                let percent = (u128::from(sent) * 100 / u128::from(all.max(1))) as u8;
                held.entry(probe.clone()).or_default().push(ProbeJob { job: job.id(), percent });
            }
        }
        self.registry.set_jobs(held, now);
        self.forget();
    }

    /// Drops the oldest jobs that are over.
    fn forget(&mut self) {
        let over: Vec<JobId> = self.jobs.values().filter(|job| job.is_final()).map(Job::id).collect();
        let surplus = over.len().saturating_sub(OVER_KEPT);
        for id in over.into_iter().take(surplus) {
            self.jobs.remove(&id);
            self.shared.drop_view(id);
        }
    }

    /// Tells those who may not wait who holds which role.
    fn directory(&self) {
        let roles = self.registry.iter().filter(|probe| probe.record.standing == crate::store::Standing::Enrolled);
        self.shared.set_roles(roles.map(|probe| (probe.record.id.clone(), probe.record.roles.clone())).collect());
    }
}
