//! The controller against probes that behave as real ones should, without a broker: every message passes by hand, so that
//! each can be lost, repeated or delayed, and the controller killed between any two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use picket_wire::capture::{CaptureCounts, CaptureEnd, Captured, Chunk, ChunkState};
use picket_wire::codec;
use picket_wire::command::Command;
use picket_wire::envelope::{self, Serials};
use picket_wire::event::{Activity, Event, LeaseStatus, Live};
use picket_wire::host::{HardwareAddress, HostBatch, HostSeen, SeenBy};
use picket_wire::ids::{JobId, LeaseId, ProbeId, Role, SessionId, StreamId};
use picket_wire::job::{JobSpec, Lease, Technique, Transport};
use picket_wire::path::{PathBatch, TracedPath};
use picket_wire::policy::AddressPolicy;
use picket_wire::result::{Answer, BatchHead, EXTRAS_MAX, LateAnswer, LateBatch, LeaseEnd, NotReached, Record, ResultBatch, Runs, State};
use picket_wire::service::{BANNER_MAX, Service as Served, ServiceBatch, ServiceFound, ServiceOutcome};
use picket_wire::space::{Target, TargetSpace};
use picket_wire::topic::{Prefix, Topic};
use picket_wire::trace::{Hop, Path, PathEnd, Quoted, Reply, ReplyKind};
use picket_wire::units::{RttCode, UnixMillis};
use tokio::sync::mpsc;

use super::{Inbound, Outgoing};
use crate::clock::{Clock, date};
use crate::fleet::registry::tests::{beat, birth, record};
use crate::pki::{Names, Pki};
use crate::service::{CapturesQuery, HostQuery, PathsQuery, ResultQuery, Service, ServiceConfig, Timing};
use crate::store::sqlite::SqliteStore;
use crate::store::{ProbeRecord, Store};
use crate::view::{AcceptPaths, CaptureState, JobRequest, JobState, JobView, PathRow, ProbeState, Reached, ResultRow};

/// A probe with a spool that survives everything.
struct Probe {
    id: ProbeId,
    session: u64,
    connected: bool,
    welcomed: bool,
    beats: u64,
    stream: StreamId,
    /// Records by number, acknowledged ones removed.
    spool: BTreeMap<u64, Vec<u8>>,
    last: u64,
    published: u64,
    leases: BTreeMap<LeaseId, (Lease, u64)>,
    /// Leases that ended here: a grant that comes again is not taken again.
    over: BTreeSet<LeaseId>,
    jobs: BTreeMap<JobId, (JobSpec, TargetSpace)>,
    serials: Serials,
    /// Answers to chunks.
    acks: Vec<(LeaseId, u64, ChunkState)>,
    /// Every position that it has asked, by job.
    asked: Vec<(JobId, u64)>,
}

impl Probe {
    fn new(id: &str, stream: u64) -> Self {
        Self {
            id: id.parse().unwrap(),
            session: 0,
            connected: false,
            welcomed: false,
            beats: 0,
            stream: StreamId(stream),
            spool: BTreeMap::new(),
            last: 0,
            published: 0,
            leases: BTreeMap::new(),
            over: BTreeSet::new(),
            jobs: BTreeMap::new(),
            serials: Serials::default(),
            acks: Vec::new(),
            asked: Vec::new(),
        }
    }

    fn append(&mut self, record: &Record) {
        self.last += 1;
        self.spool.insert(self.last, codec::encode(record));
    }

    fn statuses(&self) -> Vec<LeaseStatus> {
        let status = |(lease, position): &(Lease, u64)| LeaseStatus {
            lease: lease.id,
            position: *position,
            sent: *position,
            activity: Activity::Running,
            packets: 0,
            answers: 0,
        };
        self.leases.values().map(status).collect()
    }

    /// What is not yet published, as one message.
    fn records(&mut self) -> Option<Event> {
        let first = self.published + 1;
        let records: Vec<Vec<u8>> = self.spool.range(first..).map(|(_, bytes)| bytes.clone()).collect();
        if records.is_empty() {
            return None;
        }
        self.published = self.last;
        Some(Event::Records { stream: self.stream, after: first - 1, first, records })
    }

    /// What the net answers: fixed by the target alone.
    fn state(target: Target) -> Option<State> {
        let port = target.port.unwrap_or(0);
        match (u32::from(port) + u32::from(target.addr.to_string().bytes().last().unwrap_or(0))) % 4 {
            0 => Some(State::Open),
            1 => Some(State::Closed),
            2 => Some(State::Filtered { icmp_type: 3, icmp_code: 13 }),
            _ => None,
        }
    }

    /// Asks the next positions of its first lease and spools the outcome.
    fn work(&mut self, amount: u64, now: UnixMillis) {
        let Some((id, (lease, position))) =
            self.leases.iter().find(|(id, _)| self.jobs.contains_key(&id.job)).map(|(id, held)| (*id, held.clone()))
        else {
            return;
        };
        let to = (position + amount).min(lease.to);
        let batch = self.batch(id, position, to, now);
        self.append(&Record::Batch(batch));
        self.asked.extend((position..to).map(|position| (id.job, position)));
        if to == lease.to {
            self.end(id, to, LeaseEnd::Done);
        } else {
            self.leases.insert(id, (lease, to));
        }
    }

    fn batch(&self, lease: LeaseId, from: u64, to: u64, now: UnixMillis) -> ResultBatch {
        let space = &self.jobs[&lease.job].1;
        let answer = |position: u64| {
            let state = Self::state(space.target(position)?)?;
            Some(Answer { offset: position - from, state, rtt: Duration::from_micros(200), ttl: 60 })
        };
        let head = BatchHead { lease, from, to, started: now, took: Duration::ZERO, packets: to - from, duplicates: 0 };
        ResultBatch::new(head, (from..to).filter_map(answer).collect(), Runs::default(), vec![])
    }

    fn end(&mut self, lease: LeaseId, position: u64, end: LeaseEnd) {
        self.leases.remove(&lease);
        self.over.insert(lease);
        self.append(&Record::LeaseEnded { lease, position, end });
    }

    fn obey(&mut self, command: Command) -> Vec<Event> {
        match command {
            Command::Welcome { session, nonce, leases, stored, .. } => {
                assert_eq!((session, nonce), (SessionId(self.session), birth(self.session).nonce));
                self.welcomed = true;
                self.leases.retain(|id, _| leases.contains(id));
                self.spool = self.spool.split_off(&(stored + 1));
                self.published = stored.min(self.last);
            }
            Command::Ack { stream, up_to } => {
                assert_eq!(stream, self.stream);
                self.spool = self.spool.split_off(&(up_to + 1));
            }
            Command::HeartbeatAck { .. } => {}
            Command::ChunkAck { lease, stored, state } => self.acks.push((lease, stored, state)),
            Command::Job(spec) => {
                let space = spec.space().unwrap();
                self.jobs.insert(spec.id, (spec, space));
            }
            Command::Grant(lease) => {
                if !self.over.contains(&lease.id) && !self.leases.contains_key(&lease.id) {
                    let (job, from) = (lease.id.job, lease.from);
                    self.leases.insert(lease.id, (lease, from));
                    if !self.jobs.contains_key(&job) {
                        return vec![Event::NeedJob { job }];
                    }
                }
            }
            Command::Revoke { lease } => {
                if let Some((_, position)) = self.leases.get(&lease).cloned() {
                    self.end(lease, position, LeaseEnd::Revoked);
                }
            }
            Command::Cancel { job } => {
                let held: Vec<(LeaseId, u64)> =
                    self.leases.iter().filter(|(id, _)| id.job == job).map(|(id, held)| (*id, held.1)).collect();
                for (lease, position) in held {
                    self.end(lease, position, LeaseEnd::Cancelled);
                }
            }
        }
        Vec::new()
    }
}

/// A controller and its probes.
struct Field {
    /// Removed with it.
    _dir: tempfile::TempDir,
    config: ServiceConfig,
    clock: Clock,
    service: Service,
    outbox: mpsc::UnboundedReceiver<Outgoing>,
    probes: Vec<Probe>,
    fleet: BTreeMap<String, serde_json::Value>,
    /// Messages on their way to the controller.
    up: Vec<Inbound>,
}

fn config(dir: &tempfile::TempDir) -> ServiceConfig {
    ServiceConfig {
        data_dir: dir.path().join("data"),
        database: dir.path().join("data/picket.db"),
        prefix: Prefix::default(),
        api_urls: vec!["https://127.0.0.1:8443".into()],
        brokers: vec!["127.0.0.1:8883".into()],
        policy: AddressPolicy { allow: vec!["198.18.0.0/15".parse().unwrap(), "2001:db8::/32".parse().unwrap()], deny: vec![] },
        timing: Timing::default(),
        lookup: crate::lookup::Settings::default(),
        captures: Default::default(),
    }
}

async fn open(config: ServiceConfig, clock: &Clock) -> (Service, mpsc::UnboundedReceiver<Outgoing>) {
    let pki = Pki::open(&config.data_dir, &Names::default(), date(clock.now().wall)).unwrap();
    let service = Service::open(config, Arc::new(pki), clock.clone()).await.unwrap();
    let outbox = service.take_outbox().unwrap();
    (service, outbox)
}

impl Field {
    async fn new(probes: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual(UnixMillis(1_790_000_000_000));
        std::fs::create_dir(dir.path().join("data")).unwrap();
        std::fs::set_permissions(dir.path().join("data"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let store = SqliteStore::open(&dir.path().join("data/picket.db")).await.unwrap();
        for id in probes {
            let roles = vec![Role::Scan, Role::Trace, Role::Capture];
            store.put_probe(&ProbeRecord { key: 0, site: id.parse().unwrap(), roles, ..record(id) }).await.unwrap();
        }
        drop(store);
        let config = config(&dir);
        let (service, outbox) = open(config.clone(), &clock).await;
        let probes = probes.iter().zip(1..).map(|(id, stream)| Probe::new(id, stream * 1000)).collect();
        let mut field = Self { _dir: dir, config, clock, service, outbox, probes, fleet: BTreeMap::new(), up: Vec::new() };
        for index in 0..field.probes.len() {
            field.connect(index).await;
        }
        field
    }

    /// The controller dies, and another begins with the same database. All connections break.
    async fn restart(&mut self) {
        self.up.clear();
        let (service, outbox) = open(self.config.clone(), &self.clock).await;
        (self.service, self.outbox) = (service, outbox);
        for index in 0..self.probes.len() {
            if self.probes[index].connected {
                self.connect(index).await;
            }
        }
    }

    fn event(&mut self, index: usize, event: &Event) {
        let topic = Topic::ProbeEvt(self.probes[index].id.clone()).format(&Prefix::default());
        self.up.push(Inbound { topic, payload: codec::encode(event).into() });
    }

    fn live(&mut self, index: usize, live: &Live) {
        let topic = Topic::ProbeLive(self.probes[index].id.clone()).format(&Prefix::default());
        self.up.push(Inbound { topic, payload: codec::encode(live).into() });
    }

    async fn connect(&mut self, index: usize) {
        let probe = &mut self.probes[index];
        probe.session += 1;
        (probe.connected, probe.welcomed, probe.beats, probe.published) = (true, false, 0, 0);
        probe.published = probe.spool.keys().next().map_or(probe.last, |first| first - 1);
        let mut birth = birth(probe.session);
        (birth.stream, birth.acked, birth.leases) = (probe.stream, probe.published, probe.statuses());
        self.live(index, &Live::Birth(birth));
        self.quiet().await;
        assert!(self.probes[index].welcomed);
    }

    async fn lose(&mut self, index: usize) {
        self.probes[index].connected = false;
        let session = SessionId(self.probes[index].session);
        self.live(index, &Live::Death { session, orderly: false });
        self.quiet().await;
    }

    /// Passes messages both ways until there are none.
    async fn quiet(&mut self) {
        loop {
            for index in 0..self.probes.len() {
                if self.probes[index].connected
                    && self.probes[index].welcomed
                    && let Some(event) = self.probes[index].records()
                {
                    self.event(index, &event);
                }
            }
            let up = std::mem::take(&mut self.up);
            if !up.is_empty() {
                self.service.handle(&up).await.unwrap();
            }
            let mut moved = !up.is_empty();
            while let Ok(message) = self.outbox.try_recv() {
                moved = true;
                self.down(message);
            }
            if !moved {
                return;
            }
        }
    }

    fn down(&mut self, message: Outgoing) {
        let topic = Topic::parse(&Prefix::default(), &message.topic).unwrap();
        let hears: Vec<usize> = match &topic {
            Topic::Fleet(path) => {
                assert!(message.retain);
                self.fleet.insert(path.clone(), serde_json::from_slice(&message.payload).unwrap());
                return;
            }
            Topic::RoleCmd(Role::Scan | Role::Trace | Role::Capture) => (0..self.probes.len()).collect(),
            Topic::ProbeCmd(id) => (0..self.probes.len()).filter(|index| self.probes[*index].id == *id).collect(),
            _ => panic!("the controller wrote to {}", message.topic),
        };
        assert!(!message.retain);
        let key = self.service.pki().signing_key().verifying_key();
        let contents = envelope::open(&message.payload, &[key]).unwrap();
        let now = self.clock.now().wall;
        for index in hears {
            let probe = &mut self.probes[index];
            if !probe.connected {
                continue;
            }
            probe.serials.judge(&contents, &probe.id, &[Role::Scan, Role::Trace, Role::Capture], now).unwrap();
            probe.serials.accept(&contents);
            let id = probe.id.clone();
            for event in probe.obey(contents.command.clone()) {
                let topic = Topic::ProbeEvt(id.clone()).format(&Prefix::default());
                self.up.push(Inbound { topic, payload: codec::encode(&event).into() });
            }
        }
    }

    /// Time passes for everybody; connected probes send a heartbeat.
    async fn wait(&mut self, span: Duration) {
        self.clock.advance(span);
        for index in 0..self.probes.len() {
            let probe = &mut self.probes[index];
            if probe.connected {
                probe.beats += 1;
                let mut beat = beat(probe.session, probe.beats);
                (beat.leases, beat.spool_records) = (probe.statuses(), probe.spool.len() as u64);
                self.event(index, &Event::Heartbeat(beat));
            }
        }
        self.quiet().await;
        self.service.tick().await.unwrap();
        self.quiet().await;
    }

    async fn work(&mut self, index: usize, amount: u64) {
        let now = self.clock.now().wall;
        self.probes[index].work(amount, now);
        self.quiet().await;
    }

    async fn submit(&mut self, request: serde_json::Value) -> JobView {
        let request: JobRequest = serde_json::from_value(request).unwrap();
        let submitted = self.service.submit(request, "admin").await.unwrap();
        self.quiet().await;
        submitted.job.unwrap()
    }

    /// Everybody works in turn until the job is over.
    async fn finish(&mut self, id: JobId) -> JobView {
        for _ in 0..400 {
            let view = self.service.job(id).await.unwrap();
            if view.state.is_final() {
                return view;
            }
            for index in 0..self.probes.len() {
                if self.probes[index].connected {
                    self.work(index, 300).await;
                }
            }
            self.wait(Duration::from_secs(2)).await;
        }
        panic!("it does not end: {:?}", self.service.job(id).await.unwrap());
    }

    async fn rows(&self, query: ResultQuery) -> Vec<ResultRow> {
        let (mut rows, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.service.results(&ResultQuery { cursor: cursor.clone(), limit: 700, ..query.clone() }).await.unwrap();
            rows.extend(page.items);
            match page.next {
                Some(next) => cursor = Some(next),
                None => return rows,
            }
        }
    }

    async fn of_job(&self, job: JobId) -> Vec<ResultRow> {
        self.rows(ResultQuery { job: Some(job), ..ResultQuery::default() }).await
    }
}

fn split() -> serde_json::Value {
    serde_json::json!({ "targets": ["198.18.0.0/24"], "ports": "1-10", "technique": "syn" })
}

/// What the net answers to all of `split()`.
fn truth() -> Vec<(String, u16, &'static str)> {
    let mut all = Vec::new();
    for host in 0..=255u8 {
        for port in 1..=10u16 {
            let addr: std::net::IpAddr = [198, 18, 0, host].into();
            if let Some(state) = Probe::state(Target { addr, port: Some(port) }) {
                all.push((addr.to_string(), port, state.as_str()));
            }
        }
    }
    all
}

fn found(rows: &[ResultRow]) -> Vec<(String, u16, String)> {
    rows.iter().map(|row| (row.addr.to_string(), row.port.unwrap(), row.state.clone())).collect()
}

fn assert_truth(rows: &[ResultRow]) {
    let truth: Vec<(String, u16, String)> = truth().into_iter().map(|(addr, port, state)| (addr, port, state.to_owned())).collect();
    assert_eq!(found(rows), truth);
}

#[tokio::test]
async fn two_probes_share_a_job_from_submit_to_last_row() {
    let mut field = Field::new(&["attic", "cellar"]).await;
    let job = field.submit(split()).await;
    assert_eq!((job.state, job.total), (JobState::Running, 2560));
    assert_eq!(field.probes.iter().map(|probe| probe.leases.len()).collect::<Vec<_>>(), [1, 1], "both have their half");
    let waiting = field.service.wait_job(job.id, job.version, Duration::from_secs(5));
    let service = field.service.clone();
    let waiter = tokio::spawn(async move {
        let view = service.job(job.id).await.unwrap();
        service.wait_job(job.id, view.version, Duration::from_secs(60)).await.unwrap().version > view.version
    });
    drop(waiting);
    tokio::task::yield_now().await;
    field.wait(Duration::from_secs(1)).await;
    let done = field.finish(job.id).await;
    assert!(waiter.await.unwrap());
    assert_eq!(done.state, JobState::Done);
    assert!(done.coverage.adds_up() && done.coverage.asked == 2560);
    assert_eq!((done.asked_so_far, done.coverage.answered()), (2560, truth().len() as u64));
    assert_eq!(done.probes.iter().map(|part| part.coverage.asked).sum::<u64>(), 2560);
    assert!(done.probes.iter().all(|part| part.limit == "5kpps" && part.coverage.asked > 1000));
    assert_truth(&field.of_job(job.id).await);
    assert!(field.probes.iter().all(|probe| probe.spool.is_empty()), "everything is acknowledged");
}

#[tokio::test]
async fn results_can_be_narrowed() {
    let mut field = Field::new(&["attic", "cellar"]).await;
    let job = field.submit(split()).await;
    field.finish(job.id).await;
    let all = truth();
    let count = |keep: &dyn Fn(&(String, u16, &str)) -> bool| all.iter().filter(|row| keep(row)).count();
    let query = ResultQuery { job: Some(job.id), ..ResultQuery::default() };
    let net = ResultQuery { net: Some("198.18.0.128/25".parse().unwrap()), ..query.clone() };
    let upper = |row: &(String, u16, &str)| row.0.rsplit('.').next().unwrap().parse::<u8>().unwrap() >= 128;
    assert_eq!(field.rows(net).await.len(), count(&upper));
    let open = ResultQuery { state: Some("open".into()), ports: Some("3,7-9".parse().unwrap()), ..query.clone() };
    assert_eq!(field.rows(open).await.len(), count(&|row| row.2 == "open" && [3, 7, 8, 9].contains(&row.1)));
    let attic = field.rows(ResultQuery { probe: Some("attic".parse().unwrap()), ..query.clone() }).await;
    let cellar = field.rows(ResultQuery { site: Some("cellar".parse().unwrap()), ..query }).await;
    assert_eq!(attic.len() + cellar.len(), all.len());
    // Without a job: the same by site and address.
    let latest = field.rows(ResultQuery { net: Some("198.18.0.128/25".parse().unwrap()), ..ResultQuery::default() }).await;
    assert_eq!(latest.len(), count(&upper));
    for (field_name, query) in [
        ("state", ResultQuery { state: Some("ajar".into()), ..ResultQuery::default() }),
        ("cursor", ResultQuery { cursor: Some("x".into()), ..ResultQuery::default() }),
        ("limit", ResultQuery { limit: 1_000_000, ..ResultQuery::default() }),
    ] {
        let error = field.service.results(&query).await.unwrap_err();
        assert!(matches!(error, crate::service::ServiceError::InvalidInput { field, .. } if field == field_name), "{error}");
    }
}

#[tokio::test]
async fn each_probe_gives_its_own_view() {
    let mut field = Field::new(&["attic", "cellar"]).await;
    let mut request = split();
    request["mode"] = "each".into();
    let job = field.submit(request).await;
    let done = field.finish(job.id).await;
    assert_eq!((done.state, done.total, done.coverage.asked), (JobState::Done, 5120, 5120));
    let rows = field.of_job(job.id).await;
    assert_eq!(rows.len(), 2 * truth().len());
    let attic: Vec<ResultRow> = rows.into_iter().filter(|row| row.probe.as_str() == "attic").collect();
    assert_truth(&attic);
}

#[tokio::test]
async fn killed_at_every_step_the_controller_ends_with_the_same_results() {
    for kill in 0..9 {
        let mut field = Field::new(&["attic", "cellar"]).await;
        let job = field.submit(split()).await;
        for step in 0..8 {
            if step == kill {
                field.restart().await;
            }
            let (probe, amount) = (step % 2, 100 + 37 * step as u64);
            let now = field.clock.now().wall;
            field.probes[probe].work(amount, now);
            // Every third time the controller dies with the message on its way, every other time right after it took it.
            if step + 1 == kill && kill % 3 == 0 {
                field.restart().await;
            }
            field.quiet().await;
            field.wait(Duration::from_secs(3)).await;
        }
        if kill == 8 {
            field.restart().await;
        }
        let done = field.finish(job.id).await;
        assert_eq!((done.state, done.coverage.asked), (JobState::Done, 2560), "killed at {kill}");
        assert!(done.coverage.adds_up());
        assert_truth(&field.of_job(job.id).await);
        let mut asked: Vec<_> = field.probes.iter().flat_map(|probe| probe.asked.clone()).collect();
        let count = asked.len();
        asked.sort_unstable();
        asked.dedup();
        assert_eq!((asked.len(), count), (2560, 2560), "nothing is asked twice, killed at {kill}");
    }
}

#[tokio::test]
async fn repeated_and_torn_messages_count_once() {
    let mut field = Field::new(&["attic"]).await;
    let job = field.submit(split()).await;
    let now = field.clock.now().wall;
    for _ in 0..4 {
        field.probes[0].work(50, now);
    }
    let Some(Event::Records { stream, records, .. }) = field.probes[0].records() else { panic!("nothing to send") };
    let send = |field: &mut Field, first: u64, count: usize| {
        let from = first as usize - 1;
        let event = Event::Records { stream, after: first - 1, first, records: records[from..from + count].to_vec() };
        field.event(0, &event);
    };
    // What comes after a gap is not taken, and nothing past it is acknowledged.
    send(&mut field, 3, 2);
    field.quiet().await;
    assert_eq!((field.service.job(job.id).await.unwrap().coverage.asked, field.probes[0].spool.len()), (0, 4));
    // Overlapping, repeated, all of it again.
    for (first, count) in [(1, 2), (2, 2), (1, 4), (1, 4)] {
        send(&mut field, first, count);
    }
    field.quiet().await;
    assert_eq!((field.service.job(job.id).await.unwrap().coverage.asked, field.probes[0].spool.len()), (200, 0));
    assert_truth(&{
        field.finish(job.id).await;
        field.of_job(job.id).await
    });
}

#[tokio::test]
async fn holes_in_a_spools_numbering_hold_nothing_up() {
    let mut field = Field::new(&["attic"]).await;
    let job = field.submit(split()).await;
    let now = field.clock.now().wall;
    field.probes[0].work(50, now);
    field.quiet().await;
    let batch = codec::encode(&Record::Batch({
        let (id, (_, position)) = field.probes[0].leases.iter().next().map(|(id, held)| (*id, held.clone())).unwrap();
        field.probes[0].batch(id, position, position + 10, now)
    }));
    // The disk lost numbers 2 to 9.
    let stream = field.probes[0].stream;
    field.event(0, &Event::Records { stream, after: 1, first: 10, records: vec![batch] });
    field.quiet().await;
    assert_eq!(field.service.job(job.id).await.unwrap().coverage.asked, 60);
}

#[tokio::test]
async fn what_a_restored_database_lacks_holds_nothing_up() {
    let mut field = Field::new(&["attic"]).await;
    // The probe has deleted 50 records that were acknowledged after this database's backup was made.
    field.probes[0].last = 50;
    field.connect(0).await;
    let job = field.submit(split()).await;
    let done = field.finish(job.id).await;
    assert_eq!((done.state, done.coverage.asked), (JobState::Done, 2560));
    assert!(field.probes[0].spool.is_empty(), "everything is acknowledged");
}

#[tokio::test]
async fn what_is_not_believed_is_kept_and_acknowledged() {
    let mut field = Field::new(&["attic", "cellar"]).await;
    let job = field.submit(split()).await;
    let now = field.clock.now().wall;
    let (foreign, (lease, _)) = field.probes[1].leases.iter().next().map(|(id, held)| (*id, held.clone())).unwrap();
    let mine = *field.probes[0].leases.keys().next().unwrap();
    let outside = field.probes[0].leases[&mine].0.to;
    let stolen = field.probes[0].batch(foreign, lease.from, lease.from + 10, now);
    let beyond = field.probes[0].batch(mine, outside - 5, outside + 5, now);
    field.probes[0].append(&Record::Batch(stolen));
    field.probes[0].append(&Record::Batch(beyond));
    field.probes[0].append(&Record::JobRefused { job: JobId(1), reason: "which job?".into() });
    let late = |lease, position| Record::Late(LateBatch { lease, answers: vec![late_answer(position)] });
    let served =
        |lease, position, outcome| Record::Services(ServiceBatch { lease, at: now, found: vec![ServiceFound { position, outcome }] });
    let seen = |lease, addr: &str, count| {
        let host = HostSeen { addr: addr.parse().unwrap(), mac: None, how: SeenBy::Arp };
        Record::Hosts(HostBatch { lease, at: now, hosts: vec![host; count] })
    };
    let nobody = LeaseId { job: JobId(5), grant: 1 };
    let oversized = ServiceOutcome::Unidentified { banner: vec![0; BANNER_MAX + 1] };
    for record in [
        late(foreign, lease.from),
        late(mine, outside),
        late(mine, u64::MAX),
        Record::Late(LateBatch { lease: mine, answers: vec![late_answer(0); EXTRAS_MAX + 1] }),
        served(foreign, lease.from, ServiceOutcome::Silent),
        served(mine, outside, ServiceOutcome::Silent),
        served(mine, field.probes[0].leases[&mine].0.from, oversized),
        seen(foreign, "198.18.0.1", 1),
        seen(nobody, "198.18.0.1", 1),
        seen(mine, "224.0.0.1", 1),
        seen(mine, "198.18.0.1", EXTRAS_MAX + 1),
        traced(foreign, &[lease.from], now),
        // Its lease is one of a scan.
        traced(mine, &[field.probes[0].leases[&mine].0.from], now),
    ] {
        field.probes[0].append(&record);
    }
    field.probes[0].last += 1;
    let last = field.probes[0].last;
    field.probes[0].spool.insert(last, vec![1, 0xff, 0xff]);
    field.quiet().await;
    assert!(field.probes[0].spool.is_empty(), "they block nothing");
    assert_eq!(field.service.job(job.id).await.unwrap().coverage.asked, 0);
    let counts = field.service.rebuild().await.unwrap();
    assert_eq!((counts.records, counts.rejected, counts.batches), (17, 16, 0));
    assert_eq!((counts.hosts, counts.services, counts.link_hosts), (0, 0, 0));
    field.finish(job.id).await;
    assert_truth(&field.of_job(job.id).await);
}

fn late_answer(position: u64) -> LateAnswer {
    LateAnswer { position, state: State::Open, rtt: RttCode::encode(Duration::from_millis(900)), ttl: 60 }
}

/// Paths to positions: over one router, and nobody behind it.
fn traced(lease: LeaseId, positions: &[u64], at: UnixMillis) -> Record {
    traced_over("198.18.1.2", lease, positions, at)
}

fn traced_over(router: &str, lease: LeaseId, positions: &[u64], at: UnixMillis) -> Record {
    let from = router.parse().unwrap();
    let quoted = Some(Quoted { ttl: 1, tos: 0 });
    let reply = Reply { from, rtt_us: 300, ttl: 64, kind: ReplyKind::TimeExceeded, quoted, mpls: vec![], interfaces: vec![], mtu: None };
    let hops = vec![Hop { ttl: 1, sent: 1, replies: vec![reply], inherited: false }];
    // The destination is not told.
    let path = Path { dst: from, end: PathEnd::Silent, hops, sent: 9, mtu: None };
    let packed = |position: &u64| TracedPath::path(*position, Duration::from_millis(200), &path, 0);
    let sources = vec!["198.18.1.1".parse().unwrap(), "2001:db8:1::1".parse().unwrap()];
    Record::Paths(PathBatch { lease, at, sources, tos: 0, paths: positions.iter().map(packed).collect() })
}

/// Paths to all destinations of a job, each of which answers behind one router.
fn reached(lease: LeaseId, space: &TargetSpace, at: UnixMillis) -> Record {
    let packed = |position: u64| {
        let dst = space.target(position).unwrap().addr;
        let reply =
            Reply { from: dst, rtt_us: 300, ttl: 64, kind: ReplyKind::Answer, quoted: None, mpls: vec![], interfaces: vec![], mtu: None };
        let hops = vec![Hop { ttl: 1, sent: 1, ..Hop::default() }, Hop { ttl: 2, sent: 1, replies: vec![reply], inherited: false }];
        let path = Path { dst, end: PathEnd::Reached, hops, sent: 2, mtu: None };
        TracedPath::path(position, Duration::from_millis(1), &path, 0)
    };
    Record::Paths(PathBatch { lease, at, sources: vec![], tos: 0, paths: (0..space.len()).map(packed).collect() })
}

#[tokio::test]
async fn paths_are_kept_once_for_each_destination_and_probe() {
    let mut field = Field::new(&["attic", "cellar"]).await;
    let trace = |mode| serde_json::json!({ "targets": ["198.18.0.0/29", "2001:db8::/126"], "technique": "trace", "mode": mode });
    let job = field.submit(trace("each")).await;
    let now = field.clock.now().wall;
    for probe in &mut field.probes {
        let (id, lease) = probe.leases.iter().next().map(|(id, (lease, _))| (*id, lease.clone())).unwrap();
        let all: Vec<u64> = (lease.from..lease.to).collect();
        assert_eq!(all.len(), 12);
        // As after a crash between some paths and their batch: they are told again.
        probe.append(&traced(id, &all[..5], now));
        probe.append(&traced(id, &all, now));
    }
    field.quiet().await;
    let done = field.finish(job.id).await;
    assert_eq!((done.state, done.technique, done.coverage.asked), (JobState::Done, Technique::Trace, 24));
    let pages = async |field: &Field, query: PathsQuery| {
        let (mut rows, mut cursor) = (Vec::new(), None);
        loop {
            let page = field.service.paths(&PathsQuery { cursor: cursor.clone(), limit: 5, ..query.clone() }).await.unwrap();
            rows.extend(page.items);
            match page.next {
                Some(next) => cursor = Some(next),
                None => return rows,
            }
        }
    };
    let of_job = PathsQuery { job: Some(job.id), ..PathsQuery::default() };
    let rows = pages(&field, of_job.clone()).await;
    let seen: BTreeSet<(String, String)> = rows.iter().map(|row| (row.dst.to_string(), row.probe.to_string())).collect();
    assert_eq!((rows.len(), seen.len()), (24, 24));
    for row in &rows {
        assert_eq!((row.hops[0].replies[0].from.to_string().as_str(), row.end, row.sent), ("198.18.1.2", PathEnd::Silent, 9));
        assert_eq!((row.flow.as_str(), row.source.unwrap().is_ipv4()), ("icmp", row.dst.is_ipv4()));
        assert_eq!(row.asked.attempts, 3);
    }
    // A later job of one probe is the latest of it; the other's stays.
    field.wait(Duration::from_secs(5)).await;
    let later =
        field.submit(serde_json::json!({ "targets": ["198.18.0.3"], "technique": "trace", "select": { "probes": ["attic"] } })).await;
    let now = field.clock.now().wall;
    let id = field.probes[0].leases.keys().next().copied().unwrap();
    field.probes[0].append(&traced(id, &[0], now));
    field.finish(later.id).await;
    let to = |latest| PathsQuery { net: Some("198.18.0.3".parse().unwrap()), latest, ..PathsQuery::default() };
    let jobs = |rows: &[PathRow]| rows.iter().map(|row| (row.probe.to_string(), row.job)).collect::<Vec<_>>();
    let (attic, cellar) = ("attic".to_owned(), "cellar".to_owned());
    assert_eq!(jobs(&pages(&field, to(true)).await), [(attic.clone(), later.id), (cellar.clone(), job.id)]);
    assert_eq!(jobs(&pages(&field, to(false)).await), [(attic.clone(), later.id), (attic, job.id), (cellar, job.id)]);
    // The projection is made again from what came.
    let before = pages(&field, PathsQuery::default()).await;
    assert_eq!(field.service.rebuild().await.unwrap().paths, 25);
    assert_eq!(pages(&field, PathsQuery::default()).await, before);
    let wrong = field.service.paths(&PathsQuery { cursor: Some("x".into()), ..of_job }).await;
    assert!(wrong.unwrap_err().to_string().contains("is not a cursor"));
}

/// The changes that are told after a trace of two destinations over a router.
async fn changes_over(field: &mut Field, router: &str) -> Vec<PathRow> {
    field.wait(Duration::from_secs(2)).await;
    let job = field.submit(serde_json::json!({ "targets": ["198.18.0.3", "2001:db8::3"], "technique": "trace" })).await;
    let now = field.clock.now().wall;
    let id = field.probes[0].leases.keys().next().copied().unwrap();
    field.probes[0].append(&traced_over(router, id, &[0, 1], now));
    field.finish(job.id).await;
    changes(&field.service).await
}

async fn changes(service: &Service) -> Vec<PathRow> {
    service.paths(&PathsQuery { changes: true, ..PathsQuery::default() }).await.unwrap().items
}

/// Of each change of one hop: the family, who was known, who is new, and who had accepted the former.
fn new_hops(rows: &[PathRow]) -> Vec<(bool, String, String, Option<String>)> {
    let told = |row: &PathRow| {
        let change = row.change.clone().unwrap();
        assert!(change.distance.is_none() && change.reached.is_none());
        let [hop] = change.hops.as_slice() else { panic!("{change:?}") };
        let list = |addrs: &BTreeSet<std::net::IpAddr>| addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        (row.dst.is_ipv4(), list(&hop.known), list(&hop.new), change.accepted_by)
    };
    rows.iter().map(told).collect()
}

#[tokio::test]
async fn a_way_that_changes_is_told_until_it_is_accepted() {
    const ONE: &str = "198.18.1.2";
    const OTHER: &str = "198.18.1.7";
    let mut field = Field::new(&["attic"]).await;
    assert_eq!(changes_over(&mut field, ONE).await, [], "the first path is what is known");
    let was = |v4, known: &str, new: &str, by: Option<&str>| (v4, known.to_owned(), new.to_owned(), by.map(str::to_owned));
    let changed = changes_over(&mut field, OTHER).await;
    assert_eq!(new_hops(&changed), [was(true, ONE, OTHER, None), was(false, ONE, OTHER, None)]);
    // To one of them it is one more alternative, to the other one it takes the place of what was.
    let accept = |addr: &str, add| AcceptPaths { addr: addr.into(), site: None, probe: None, add };
    for (addr, add) in [("198.18.0.0/24", true), ("2001:db8::3", false)] {
        assert_eq!(field.service.accept_paths(&accept(addr, add), "admin").await.unwrap().accepted, 1);
    }
    assert_eq!(changes(&field.service).await, []);
    let changed = changes_over(&mut field, ONE).await;
    assert_eq!(new_hops(&changed), [was(false, OTHER, ONE, Some("admin"))]);
    // What somebody accepted is no projection.
    field.service.rebuild().await.unwrap();
    assert_eq!(changes(&field.service).await, changed);
    assert!(field.service.accept_paths(&accept("here", false), "admin").await.is_err());
}

/// The paths of a job, each destination with its probe and its first router.
async fn paths_of(field: &Field, job: JobId) -> Vec<(String, String, Option<String>)> {
    let page = field.service.paths(&PathsQuery { job: Some(job), limit: 100, ..PathsQuery::default() }).await.unwrap();
    let router = |row: &PathRow| row.hops.first().map(|hop| hop.replies[0].from.to_string());
    page.items.iter().map(|row| (row.dst.to_string(), row.probe.to_string(), router(row))).collect()
}

#[tokio::test]
async fn of_shared_work_each_destination_has_the_path_whose_position_counts() {
    const FIRST: &str = "198.18.1.2";
    const SECOND: &str = "198.18.1.7";
    let mut field = Field::new(&["attic", "cellar"]).await;
    let request = serde_json::json!({ "targets": ["198.18.0.0/28"], "technique": "trace", "mode": "split" });
    let job = field.submit(request).await;
    // One of them has the work, tells some paths with their batch and more without, and is not heard any more.
    let held = |field: &Field, index: usize| field.probes[index].leases.iter().next().map(|(id, (lease, at))| (*id, lease.clone(), *at));
    let one = (0..2).find(|index| held(&field, *index).is_some()).unwrap();
    let other = 1 - one;
    let (id, lease, _) = held(&field, one).unwrap();
    let (from, now) = (lease.from, field.clock.now().wall);
    assert!(lease.to - from >= 8, "{lease:?}");
    let places = |range: std::ops::Range<u64>| range.map(|at| from + at).collect::<Vec<u64>>();
    field.probes[one].append(&traced_over(FIRST, id, &places(0..2), now));
    let batch = field.probes[one].batch(id, from, from + 2, now);
    field.probes[one].append(&Record::Batch(batch));
    field.probes[one].append(&traced_over(FIRST, id, &places(2..5), now));
    field.quiet().await;
    assert_eq!(paths_of(&field, job.id).await.len(), 5);
    field.lose(one).await;
    // Meanwhile, without a connection, it goes on: paths that nobody has heard of yet, and a batch for some that are known.
    let space = field.probes[one].jobs[&job.id].1.clone();
    let batch = field.probes[one].batch(id, from + 2, from + 8, now);
    field.probes[one].append(&traced_over(FIRST, id, &places(5..8), now));
    field.probes[one].append(&Record::Batch(batch));
    for _ in 0..60 {
        while let Some((id, lease, at)) = held(&field, other) {
            let now = field.clock.now().wall;
            field.probes[other].append(&traced_over(SECOND, id, &(at..lease.to).collect::<Vec<u64>>(), now));
            field.work(other, lease.to - at).await;
        }
        field.wait(Duration::from_secs(3)).await;
    }
    let done = field.service.job(job.id).await.unwrap();
    assert_eq!((done.state, done.coverage.asked), (JobState::Done, 16));
    let before = paths_of(&field, job.id).await;
    let by = |index: usize, router: &str| (field.probes[index].id.to_string(), Some(router.to_owned()));
    let expected = |at: u64| {
        (space.target(at).unwrap().addr.to_string(), if (from..from + 2).contains(&at) { by(one, FIRST) } else { by(other, SECOND) })
    };
    let mut expected: Vec<_> = (0..16).map(expected).collect();
    expected.sort_by_key(|(dst, _)| dst.parse::<std::net::Ipv4Addr>().unwrap());
    assert_eq!(before, expected.into_iter().map(|(dst, (probe, router))| (dst, probe, router)).collect::<Vec<_>>());
    // What comes late is kept, and is nobody's path.
    field.connect(one).await;
    assert!(field.probes[one].spool.is_empty());
    assert_eq!(paths_of(&field, job.id).await, before);
    assert_eq!((field.service.rebuild().await.unwrap().rejected, paths_of(&field, job.id).await), (0, before));
}

#[tokio::test]
async fn where_nothing_can_be_sent_any_more_the_latest_path_says_so() {
    let mut field = Field::new(&["attic"]).await;
    // No route to the first and the second destination, and policy forbids the third and the fourth.
    let unsent = async |field: &mut Field| {
        field.wait(Duration::from_secs(2)).await;
        let targets = ["198.18.0.3", "198.18.0.4", "2001:db8::3", "2001:db8::4"];
        let job = field.submit(serde_json::json!({ "targets": targets, "technique": "trace" })).await;
        let now = field.clock.now().wall;
        let id = field.probes[0].leases.keys().next().copied().unwrap();
        let space = field.probes[0].jobs[&job.id].1.clone();
        let offsets = |v4: bool| Runs::from_ascending((0..4).filter(|at| space.target(*at).unwrap().addr.is_ipv4() == v4));
        let head = BatchHead { lease: id, from: 0, to: 4, started: now, took: Duration::from_millis(3), packets: 0, duplicates: 0 };
        let batch = ResultBatch::new(head, vec![], offsets(false), vec![(NotReached::NoRoute, offsets(true))]);
        field.probes[0].append(&Record::Batch(batch));
        field.probes[0].end(id, 4, LeaseEnd::Done);
        field.quiet().await;
        assert_eq!(field.finish(job.id).await.coverage.not_reached, 2);
        job.id
    };
    // Nothing is known of any of them yet.
    let job = unsent(&mut field).await;
    assert_eq!(paths_of(&field, job).await, []);

    field.wait(Duration::from_secs(2)).await;
    let job = field.submit(serde_json::json!({ "targets": ["198.18.0.3", "2001:db8::3"], "technique": "trace" })).await;
    let now = field.clock.now().wall;
    let id = field.probes[0].leases.keys().next().copied().unwrap();
    let record = reached(id, &field.probes[0].jobs[&job.id].1, now);
    field.probes[0].append(&record);
    field.finish(job.id).await;
    assert_eq!(changes(&field.service).await, []);

    let job = unsent(&mut field).await;
    let all = field.service.paths(&PathsQuery { latest: true, ..PathsQuery::default() }).await.unwrap().items;
    let told = |row: &PathRow| (row.dst.to_string(), row.end, row.job, row.hops.len(), row.sent);
    let expected = [("198.18.0.3", PathEnd::NoRoute), ("2001:db8::3", PathEnd::Refused)];
    assert_eq!(all.iter().map(told).collect::<Vec<_>>(), expected.map(|(dst, end)| (dst.to_owned(), end, job, 0, 0)));
    let changed = changes(&field.service).await;
    assert_eq!(changed.iter().map(told).collect::<Vec<_>>(), all.iter().map(told).collect::<Vec<_>>());
    for row in &changed {
        let change = row.change.clone().unwrap();
        assert_eq!((change.hops.len(), change.distance, change.reached), (0, None, Some(Reached::Lost)));
    }
    field.service.rebuild().await.unwrap();
    assert_eq!(changes(&field.service).await, changed);
    // Who expects it is told no more.
    let accept = AcceptPaths { addr: "198.18.0.3".into(), site: None, probe: None, add: false };
    assert_eq!(field.service.accept_paths(&accept, "admin").await.unwrap().accepted, 1);
    assert_eq!(changes(&field.service).await, changed[1..]);
}

#[tokio::test]
async fn late_answers_services_and_hosts_count_once() {
    let mut field = Field::new(&["attic"]).await;
    let job = field.submit(serde_json::json!({ "targets": ["198.18.0.0/28"], "ports": "1-4", "technique": "syn" })).await;
    let now = field.clock.now().wall;
    let (id, (lease, _)) = field.probes[0].leases.iter().next().map(|(id, held)| (*id, held.clone())).unwrap();
    let space = TargetSpace::new(&field.probes[0].jobs[&job.id].0.targets).unwrap();
    let state = |position: u64| Probe::state(space.target(position).unwrap());
    let silent: Vec<u64> = (lease.from..lease.to).filter(|position| state(*position).is_none()).collect();
    let open = (lease.from..lease.to).find(|position| state(*position) == Some(State::Open)).unwrap();
    let ssh = ServiceOutcome::Identified(Box::new(Served { name: "ssh".into(), product: Some("OpenSSH".into()), ..Served::default() }));
    let services = |outcome: ServiceOutcome| {
        Record::Services(ServiceBatch { lease: id, at: now, found: vec![ServiceFound { position: open, outcome }] })
    };
    let hosts = HostBatch {
        lease: id,
        at: now,
        hosts: vec![HostSeen { addr: "198.18.7.7".parse().unwrap(), mac: Some(HardwareAddress([2, 0, 0, 0, 0, 7])), how: SeenBy::Arp }],
    };
    // As after a crash between the services and their batch: the services are told twice.
    let probe = &mut field.probes[0];
    probe.append(&Record::Hosts(hosts.clone()));
    probe.append(&services(ServiceOutcome::Silent));
    probe.append(&Record::Hosts(hosts));
    probe.append(&services(ssh));
    let late = |positions: &[u64]| Record::Late(LateBatch { lease: id, answers: positions.iter().map(|at| late_answer(*at)).collect() });
    // Nothing is reported yet that could be late.
    probe.append(&late(&silent[..1]));
    field.quiet().await;
    let done = field.finish(job.id).await;
    assert_eq!((done.state, done.coverage.silent), (JobState::Done, silent.len() as u64));
    let rows = field.of_job(job.id).await.len();

    let probe = &mut field.probes[0];
    probe.append(&late(&[silent[0], silent[1], open, silent[0]]));
    probe.append(&late(&silent[1..3]));
    field.quiet().await;
    assert!(field.probes[0].spool.is_empty());
    let everything = async |field: &Field| {
        let view = field.service.job(job.id).await.unwrap();
        let hosts = field.service.link_hosts(&HostQuery::default()).await.unwrap().items;
        (view.coverage, view.probes, field.of_job(job.id).await, field.rows(ResultQuery::default()).await, hosts)
    };
    let before = everything(&field).await;
    assert!(before.0.adds_up());
    assert_eq!((before.0.open, before.0.silent), (done.coverage.open + 3, done.coverage.silent - 3));
    assert_eq!((before.2.len(), before.3.len()), (rows + 3, rows + 3));
    for rows in [&before.2, &before.3] {
        let served: Vec<&ResultRow> = rows.iter().filter(|row| row.service.is_some()).collect();
        let target = space.target(open).unwrap();
        let [row] = served.as_slice() else { panic!("{} rows have a service", served.len()) };
        assert_eq!((row.addr, row.port, row.protocol), (target.addr, target.port, Some(Transport::Tcp)));
        let service = row.service.as_ref().unwrap();
        assert_eq!((service.outcome.as_str(), service.product.as_deref()), ("identified", Some("OpenSSH")));
    }
    assert_eq!((before.4.len(), before.4[0].mac.as_deref()), (1, Some("02:00:00:00:00:07")));
    let counts = field.service.rebuild().await.unwrap();
    assert_eq!((counts.rejected, counts.services, counts.link_hosts), (0, 1, 1));
    assert_eq!(everything(&field).await, before);
    field.restart().await;
    assert_eq!(everything(&field).await, before);
}

#[tokio::test]
async fn a_dead_probes_work_goes_to_another_and_its_late_results_count_once() {
    let mut field = Field::new(&["attic", "cellar"]).await;
    let job = field.submit(split()).await;
    field.work(0, 200).await;
    // It works on without a connection, and is not heard for longer than its lease.
    field.lose(0).await;
    let now = field.clock.now().wall;
    field.probes[0].work(300, now);
    for _ in 0..60 {
        field.work(1, 200).await;
        field.wait(Duration::from_secs(3)).await;
    }
    let done = field.service.job(job.id).await.unwrap();
    assert_eq!((done.state, done.coverage.asked), (JobState::Done, 2560));
    let before = field.of_job(job.id).await;
    assert_truth(&before);
    // What it found meanwhile comes late: kept as evidence, counted once.
    field.connect(0).await;
    assert!(field.probes[0].spool.is_empty() && field.probes[0].leases.is_empty());
    assert_eq!(field.of_job(job.id).await, before);
    assert_eq!(field.service.job(job.id).await.unwrap().coverage, done.coverage);
    assert_eq!(field.service.rebuild().await.unwrap().rejected, 0);
    assert_eq!(field.of_job(job.id).await, before);
}

#[tokio::test]
async fn a_probe_that_comes_back_in_time_goes_on_where_it_was() {
    let mut field = Field::new(&["attic"]).await;
    let job = field.submit(split()).await;
    field.work(0, 200).await;
    field.lose(0).await;
    // Nobody else could do it: even long after its lease the work waits for it.
    for _ in 0..10 {
        field.wait(Duration::from_secs(60)).await;
    }
    let now = field.clock.now().wall;
    field.probes[0].work(100, now);
    field.connect(0).await;
    let done = field.finish(job.id).await;
    assert_eq!(done.state, JobState::Done);
    assert_eq!(field.probes[0].asked.len(), 2560, "nothing is asked twice");
    assert_truth(&field.of_job(job.id).await);
}

#[tokio::test]
async fn a_cancelled_job_keeps_what_was_done_and_says_what_was_not() {
    let mut field = Field::new(&["attic", "cellar"]).await;
    let job = field.submit(split()).await;
    field.work(0, 200).await;
    let view = field.service.cancel(job.id, "admin").await.unwrap();
    assert_eq!(view.state, JobState::Cancelling);
    field.service.cancel(job.id, "admin").await.unwrap();
    field.quiet().await;
    let over = field.service.job(job.id).await.unwrap();
    assert_eq!((over.state, over.reason.as_deref()), (JobState::Cancelled, Some("cancelled by admin")));
    assert_eq!((over.coverage.asked, over.coverage.not_reached), (2560, 2360));
    assert!(over.coverage.adds_up());
    assert!(field.probes.iter().all(|probe| probe.leases.is_empty()));
    let error = field.service.cancel(job.id, "admin").await.unwrap_err();
    assert!(error.to_string().contains("is over already"), "{error}");
    // The same after a restart.
    field.restart().await;
    let again = field.service.job(job.id).await.unwrap();
    assert_eq!((again.state, again.coverage), (over.state, over.coverage));
}

#[tokio::test]
async fn a_lost_grant_is_sent_again() {
    let mut field = Field::new(&["attic"]).await;
    let request: JobRequest = serde_json::from_value(split()).unwrap();
    let job = field.service.submit(request, "admin").await.unwrap().job.unwrap();
    while field.outbox.try_recv().is_ok() {}
    field.quiet().await;
    assert!(field.probes[0].leases.is_empty());
    for _ in 0..8 {
        field.wait(Duration::from_secs(2)).await;
    }
    assert!(!field.probes[0].leases.is_empty());
    let done = field.finish(job.id).await;
    assert_eq!(done.state, JobState::Done);
}

#[tokio::test]
async fn a_deadline_stops_a_job() {
    let mut field = Field::new(&["attic"]).await;
    let mut request = split();
    request["deadline_seconds"] = 60.into();
    let job = field.submit(request).await;
    field.work(0, 200).await;
    for _ in 0..40 {
        field.wait(Duration::from_secs(3)).await;
    }
    let over = field.service.job(job.id).await.unwrap();
    assert_eq!((over.state, over.reason.as_deref()), (JobState::Failed, Some("its deadline passed before the end")));
    assert_eq!((over.coverage.asked, over.coverage.not_reached), (2560, 2360));
}

#[tokio::test]
async fn a_job_waits_for_a_probe_that_can_do_it_and_says_what_is_missing() {
    let mut field = Field::new(&["attic"]).await;
    field.lose(0).await;
    let job = field.submit(split()).await;
    assert_eq!((job.state, job.reason.as_deref()), (JobState::Pending, Some("no probe can work on it now (attic: it is offline)")));
    field.connect(0).await;
    assert_eq!(field.service.job(job.id).await.unwrap().state, JobState::Running);
    assert_eq!(field.finish(job.id).await.state, JobState::Done);
}

#[tokio::test]
async fn a_refused_job_ends_with_the_reason() {
    let mut field = Field::new(&["attic"]).await;
    let job = field.submit(split()).await;
    field.probes[0].leases.clear();
    field.probes[0].append(&Record::JobRefused { job: job.id, reason: "the site's policy forbids scans".into() });
    field.quiet().await;
    let over = field.service.job(job.id).await.unwrap();
    assert_eq!(over.state, JobState::Failed);
    assert!(over.reason.as_ref().unwrap().contains("the site's policy forbids scans"), "{:?}", over.reason);
    assert_eq!((over.coverage.asked, over.coverage.not_reached), (2560, 2560));
}

/// The end of a capture whose file has these bytes.
fn captured(lease: LeaseId, file: &[u8], at: UnixMillis) -> Captured {
    Captured {
        lease,
        began: at,
        ended: at.after(Duration::from_secs(3)),
        interface: "eth0".into(),
        filter: "tcp".into(),
        end: CaptureEnd::Time,
        counts: CaptureCounts { accepted: 9, delivered: 9, written: 9, ..CaptureCounts::default() },
        sections: 1,
        len: file.len() as u64,
        sha256: <sha2::Sha256 as sha2::Digest>::digest(file).into(),
    }
}

/// All of a capture that is here.
async fn file_of(field: &Field, lease: LeaseId) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let (bytes, _) = field.service.capture_bytes(lease, whole.len() as u64).await.unwrap();
        if bytes.is_empty() {
            return whole;
        }
        whole.extend(bytes);
    }
}

/// What the controller says of a file when it has looked at its digest.
async fn whole(field: &mut Field, lease: LeaseId) -> (u64, ChunkState) {
    for _ in 0..1_000 {
        field.event(0, &Event::Chunk(Chunk::question(lease)));
        field.quiet().await;
        let (_, stored, state) = field.probes[0].acks.pop().unwrap();
        if state == ChunkState::Whole || stored == 0 {
            return (stored, state);
        }
        tokio::task::yield_now().await;
    }
    panic!("nobody looks at it")
}

#[tokio::test]
async fn a_captures_bytes_are_taken_in_order_once_and_kept_as_they_came() {
    let mut field = Field::new(&["attic", "cellar"]).await;
    let job =
        field.submit(serde_json::json!({ "technique": "capture", "select": { "probes": ["attic"] }, "capture": { "bytes": 4096 } })).await;
    let lease = field.probes[0].leases.keys().next().copied().unwrap();
    let file: Vec<u8> = (0..5_000u32).flat_map(u32::to_le_bytes).take(6_000).collect();
    let chunk = |from: usize, to: usize| Event::Chunk(Chunk::pack(lease, from as u64, &file[from..to]));
    let state = async |field: &Field| {
        let page = field.service.captures(&CapturesQuery { job: Some(job.id), ..CapturesQuery::default() }).await.unwrap();
        page.items.first().map(|view| (view.state, view.stored))
    };
    assert_eq!(state(&field).await, None);
    // In order, repeated, with a gap, from somebody else, and as no packer would have made them.
    let foreign = Event::Chunk(Chunk::pack(lease, 1_000, b"cellar's"));
    let damaged = Event::Chunk(Chunk { lease, offset: 3_000, len: 99, packed: vec![1, 2, 3] });
    let nobodys = Event::Chunk(Chunk::pack(LeaseId { job: JobId(1), grant: 1 }, 0, b"?"));
    let too_long = Event::Chunk(Chunk::pack(lease, 3_000, &[0; 9_000]));
    let cases = [
        (0, Event::Chunk(Chunk::question(lease)), 0, ChunkState::Open),
        (0, chunk(0, 1_000), 1_000, ChunkState::Open),
        (0, chunk(0, 1_000), 1_000, ChunkState::Open),
        (0, chunk(2_000, 3_000), 1_000, ChunkState::Open),
        (1, foreign, 0, ChunkState::Unwanted),
        (0, chunk(1_000, 3_000), 3_000, ChunkState::Open),
        (0, damaged, 3_000, ChunkState::Unwanted),
        (0, too_long, 3_000, ChunkState::Unwanted),
        (0, nobodys, 0, ChunkState::Unwanted),
    ];
    for (index, event, stored, state) in cases {
        field.event(index, &event);
        field.quiet().await;
        let (_, told, how) = field.probes[index].acks.pop().unwrap();
        assert_eq!((told, how), (stored, state), "{event:?}");
    }
    assert_eq!(state(&field).await, Some((CaptureState::Running, 3_000)));
    assert_eq!(file_of(&field, lease).await, file[..3_000]);
    assert_eq!(field.service.capture_bytes(lease, 2_999).await.unwrap().0, file[2_999..3_000]);
    // The controller dies; the end comes before the rest of the file.
    field.restart().await;
    let now = field.clock.now().wall;
    let batch = field.probes[0].batch(lease, 0, 1, now);
    field.probes[0].append(&Record::Captured(Box::new(captured(lease, &file, now))));
    field.probes[0].append(&Record::Batch(batch));
    field.probes[0].end(lease, 1, LeaseEnd::Done);
    field.quiet().await;
    assert_eq!(field.service.job(job.id).await.unwrap().state, JobState::Done);
    assert_eq!(state(&field).await, Some((CaptureState::Arriving, 3_000)));
    // What came to another end than the probe told is not kept.
    let other = vec![9; 3_000];
    field.event(0, &Event::Chunk(Chunk::pack(lease, 3_000, &other)));
    field.quiet().await;
    assert_eq!(field.probes[0].acks.pop().unwrap(), (lease, 6_000, ChunkState::Open), "its digest is being looked at");
    assert_eq!(whole(&mut field, lease).await, (0, ChunkState::Open));
    field.event(0, &chunk(0, 2_000));
    field.event(0, &chunk(2_000, 6_000));
    field.quiet().await;
    assert_eq!(whole(&mut field, lease).await, (6_000, ChunkState::Whole));
    assert_eq!(file_of(&field, lease).await, file);
    let view = field.service.capture(lease).await.unwrap();
    assert_eq!((view.state, view.bytes, view.end.as_deref()), (CaptureState::Whole, Some(6_000), Some("time")));
    assert_eq!(view.ended, Some(view.began.clone().unwrap()), "no moment lies after the record came");
    // Everything that is no evidence is made anew.
    field.service.rebuild().await.unwrap();
    assert_eq!(field.service.capture(lease).await.unwrap(), view);
    // Who reads it is remembered; what is removed is gone, and not taken again.
    field.service.begin_download(lease, 7, "alice").await.unwrap();
    let downloads = field.service.capture(lease).await.unwrap().downloads.unwrap();
    assert_eq!((downloads.len(), downloads[0].actor.as_str(), downloads[0].from), (1, "alice", 7));
    field.service.remove_capture(lease, "bob").await.unwrap();
    assert!(field.service.begin_download(lease, 0, "alice").await.unwrap_err().to_string().contains("by bob"));
    assert_eq!((file_of(&field, lease).await.len(), state(&field).await), (0, Some((CaptureState::Removed, 6_000))));
    field.event(0, &Event::Chunk(Chunk::question(lease)));
    field.quiet().await;
    assert_eq!(field.probes[0].acks.pop().unwrap(), (lease, 6_000, ChunkState::Removed));
}

#[tokio::test]
async fn captures_have_no_more_room_than_is_given_and_expire() {
    let mut field = Field::new(&["attic"]).await;
    let job = field.submit(serde_json::json!({ "technique": "capture" })).await;
    let lease = field.probes[0].leases.keys().next().copied().unwrap();
    field.config.captures.max_bytes = 1_000;
    field.restart().await;
    // Nothing that could be packed.
    let mut noise = vec![0; 900];
    getrandom::fill(&mut noise).unwrap();
    field.event(0, &Event::Chunk(Chunk::pack(lease, 0, &noise)));
    field.quiet().await;
    assert_eq!(field.probes[0].acks.pop().unwrap(), (lease, 900, ChunkState::Open));
    field.event(0, &Event::Chunk(Chunk::pack(lease, 900, &noise)));
    field.quiet().await;
    assert_eq!(field.probes[0].acks.pop().unwrap(), (lease, 900, ChunkState::NoRoom));
    field.event(0, &Event::Chunk(Chunk::question(lease)));
    field.quiet().await;
    assert_eq!(field.probes[0].acks.pop().unwrap(), (lease, 900, ChunkState::NoRoom), "asked without sending anything");
    field.service.cancel(job.id, "admin").await.unwrap();
    field.quiet().await;
    field.probes[0].end(lease, 0, LeaseEnd::Cancelled);
    field.quiet().await;
    field.wait(field.config.captures.keep + Duration::from_secs(61)).await;
    let view = field.service.capture(lease).await.unwrap();
    assert_eq!((view.state, view.remover.as_deref()), (CaptureState::Removed, Some("its time is over")));
    assert!(file_of(&field, lease).await.is_empty());
}

#[tokio::test]
async fn a_rebuild_changes_nothing() {
    let mut field = Field::new(&["attic", "cellar"]).await;
    let first = field.submit(split()).await;
    field.work(0, 200).await;
    let second = field.submit(serde_json::json!({ "targets": ["198.18.0.0/26"], "ports": "5-20", "technique": "connect" })).await;
    field.finish(first.id).await;
    field.finish(second.id).await;
    let everything = async |field: &Field| {
        let ledger = field.rows(ResultQuery::default()).await;
        let views = [field.service.job(first.id).await.unwrap(), field.service.job(second.id).await.unwrap()];
        (ledger, field.of_job(first.id).await, field.of_job(second.id).await, views.map(|view| (view.coverage, view.probes)))
    };
    let before = everything(&field).await;
    let counts = field.service.rebuild().await.unwrap();
    assert_eq!((counts.rejected, counts.ports as usize), (0, before.0.len()));
    assert_eq!(everything(&field).await, before);
    assert_eq!(field.service.rebuild().await.unwrap(), counts);
    field.restart().await;
    assert_eq!(everything(&field).await, before);
}

#[tokio::test]
async fn the_status_tree_follows_the_fleet() {
    let mut field = Field::new(&["attic", "cellar"]).await;
    field.wait(Duration::from_secs(1)).await;
    assert_eq!((field.fleet["summary"]["online"].as_u64(), field.fleet["probe/attic"]["state"].as_str()), (Some(2), Some("online")));
    let job = field.submit(split()).await;
    field.work(0, 200).await;
    field.wait(Duration::from_secs(1)).await;
    assert_eq!((field.fleet["summary"]["busy"].as_u64(), field.fleet["summary"]["jobs_running"].as_u64()), (Some(2), Some(1)));
    assert_eq!(field.fleet["probe/attic"]["jobs"].as_str(), Some(job.id.to_string().as_str()));
    field.lose(0).await;
    field.wait(Duration::from_millis(500)).await;
    let attic = &field.fleet["probe/attic"];
    assert_eq!((attic["state"].as_str(), attic["reason"].as_str()), (Some("offline"), Some("its connection broke")));
    assert_eq!(attic["online"].as_bool(), Some(false));
    // An old will cannot mark the new session dead.
    field.connect(0).await;
    field.live(0, &Live::Death { session: SessionId(1), orderly: false });
    field.wait(Duration::from_secs(1)).await;
    assert_eq!(field.service.probe(&"attic".parse().unwrap()).await.unwrap().state, ProbeState::Busy);
    assert_eq!(field.fleet["controller"]["state"].as_str(), Some("online"));
}

#[tokio::test]
async fn a_revoked_probe_is_forgotten_by_the_plan() {
    let mut field = Field::new(&["attic", "cellar"]).await;
    let job = field.submit(split()).await;
    field.work(0, 200).await;
    let revoked = field.service.probe_revoke(&"attic".parse().unwrap(), "stolen").await.unwrap();
    assert_eq!((revoked.state, revoked.reason.as_str()), (ProbeState::Revoked, "revoked: stolen"));
    assert_eq!(field.service.probe_roles(&"attic".parse().unwrap()), None);
    field.probes[0].connected = false;
    let done = field.finish(job.id).await;
    assert_eq!((done.state, done.coverage.asked), (JobState::Done, 2560));
    assert_truth(&field.of_job(job.id).await);
}

#[tokio::test]
async fn serials_rise_across_restarts_and_clock_steps() {
    let mut field = Field::new(&["attic"]).await;
    let before = field.probes[0].serials.own;
    // The same wall-clock time, a fresh start: `down` judges every serial.
    for _ in 0..3 {
        field.restart().await;
    }
    assert!(field.probes[0].serials.own > before);
    // The clock goes back by a year.
    field.clock = Clock::manual(UnixMillis(1_758_000_000_000));
    field.restart().await;
    assert!(field.probes[0].welcomed);
}
