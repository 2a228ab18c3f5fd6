//! The agent against a scripted controller, in virtual time.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use picket_wire::command::Command;
use picket_wire::envelope::{Audience, Contents, seal};
use picket_wire::event::{Activity, Check, Event, InterfaceLimits, Live, SelfTest};
use picket_wire::host::{HostBatch, HostSeen, SeenBy};
use picket_wire::ids::{JobId, LeaseId, Role, SessionId, StreamId};
use picket_wire::job::{JobKind, JobSpec, Lease, Mode, Priority, ScanOptions, Technique};
use picket_wire::path::{PathBatch, TracedPath};
use picket_wire::policy::AddressPolicy;
use picket_wire::result::{BatchHead, EXTRAS_MAX, LateAnswer, LateBatch, LeaseEnd, Record, ResultBatch, Runs, State};
use picket_wire::service::{ServiceBatch, ServiceFound, ServiceOutcome};
use picket_wire::space::TargetSpec;
use picket_wire::trace::{Path, PathEnd};
use picket_wire::units::{BitsPerSecond, PacketsPerSecond, RttCode, UnixMillis};

use super::core::{Action, Agent, Identity, Journal, Unacked, Vitals};
use super::state::Saved;
use crate::net::time::Instant;

const STREAM: StreamId = StreamId(0xabc);

/// A disk that survives the agent.
#[derive(Default)]
struct Disk {
    records: Vec<(u64, Record)>,
    next: u64,
    saved: Saved,
    room: usize,
    save_fails: bool,
}

#[derive(Clone)]
struct FakeJournal(Rc<RefCell<Disk>>);

impl Journal for FakeJournal {
    fn append(&mut self, record: &[u8]) -> Option<u64> {
        let mut disk = self.0.borrow_mut();
        if disk.room == 0 {
            return None;
        }
        disk.room -= 1;
        disk.next += 1;
        let seq = disk.next;
        disk.records.push((seq, picket_wire::codec::decode(record).unwrap()));
        Some(seq)
    }
    fn save(&mut self, saved: &Saved) -> bool {
        let mut disk = self.0.borrow_mut();
        if !disk.save_fails {
            disk.saved = saved.clone();
        }
        !disk.save_fails
    }
    fn ack(&mut self, stream: StreamId, up_to: u64) {
        assert_eq!(stream, STREAM);
        self.0.borrow_mut().records.retain(|(seq, _)| *seq > up_to);
    }
    fn stream(&self) -> StreamId {
        STREAM
    }
    fn acked(&self) -> u64 {
        0
    }
}

struct World {
    disk: Rc<RefCell<Disk>>,
    agent: Agent<FakeJournal>,
    now: Instant,
    unix: u64,
    serial: u64,
    session: u64,
}

fn identity() -> Identity {
    Identity {
        probe: "attic".parse().unwrap(),
        signing_keys: vec![SigningKey::from_bytes(&[1; 32]).verifying_key()],
        version: "0".into(),
        hardware: "test".into(),
        self_test: SelfTest { raw_socket: Check::Works, ipv4: Check::Works, ipv6: Check::Fails("no address".into()) },
        interface: InterfaceLimits {
            name: "eth0".into(),
            packets: PacketsPerSecond::new(1000).unwrap(),
            bits: BitsPerSecond::new(1_000_000).unwrap(),
        },
    }
}

fn spec(job: u64, targets: &str, deadline: Option<u64>) -> JobSpec {
    JobSpec {
        id: JobId(job),
        kind: JobKind::Scan(ScanOptions { technique: Technique::Syn, attempts: 2 }),
        targets: TargetSpec {
            include: picket_wire::addr::parse_set(targets).unwrap(),
            exclude: Default::default(),
            ports: Some("1-100".parse().unwrap()),
            seed: 1,
        },
        mode: Mode::Split,
        rate: None,
        priority: Priority::Bulk,
        deadline: deadline.map(UnixMillis),
        policy: AddressPolicy::default(),
    }
}

fn lease(job: u64, grant: u32, from: u64, to: u64) -> Lease {
    Lease { id: LeaseId { job: JobId(job), grant }, from, to, attempt: 0, ttl: Some(Duration::from_secs(60)) }
}

fn batch(lease: LeaseId, from: u64, to: u64) -> ResultBatch {
    let head = BatchHead { lease, from, to, started: UnixMillis(0), took: Duration::ZERO, packets: to - from, duplicates: 0 };
    ResultBatch::new(head, vec![], Runs::default(), vec![])
}

impl World {
    fn new() -> World {
        let disk = Rc::new(RefCell::new(Disk {
            room: usize::MAX,
            saved: Saved { roles: vec![Role::Scan], ..Saved::default() },
            ..Disk::default()
        }));
        let agent = Agent::new(identity(), FakeJournal(disk.clone()), disk.borrow().saved.clone(), &Unacked::default());
        World { disk, agent, now: Instant::from_nanos(1_000_000_000), unix: 1_700_000_000_000, serial: 100, session: 0 }
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.agent.poll_action()).collect()
    }

    fn sealed(&mut self, audience: Audience, command: Command, key: u8) -> Vec<u8> {
        self.serial += 1;
        let issued = UnixMillis(self.unix);
        let contents = Contents { audience, serial: self.serial, issued, expires: issued.after(Duration::from_secs(60)), command };
        seal(&contents, &SigningKey::from_bytes(&[key; 32]))
    }

    fn tell(&mut self, command: Command) -> Vec<Action> {
        let bytes = self.sealed(Audience::Probe("attic".parse().unwrap()), command, 1);
        self.agent.on_message(self.now, &bytes);
        self.actions()
    }

    fn pass(&mut self, span: Duration) -> Vec<Action> {
        self.now += span;
        self.unix += span.as_millis() as u64;
        self.agent.on_timeout(self.now, Vitals::default);
        self.actions()
    }

    fn connect(&mut self, leases: &[LeaseId], stored: u64) -> Vec<Action> {
        self.session += 1;
        let session = SessionId(self.session);
        self.agent.on_connected(self.now, session, 77 + self.session, Duration::ZERO);
        let mut all = self.actions();
        let welcome = Command::Welcome {
            session,
            nonce: 77 + self.session,
            now: UnixMillis(self.unix),
            heartbeat: Duration::from_secs(15),
            roles: vec![Role::Scan],
            leases: leases.to_vec(),
            stored,
        };
        all.extend(self.tell(welcome));
        all
    }

    /// Power is cut and comes back: only the disk survives.
    fn restart(&mut self) {
        let (saved, records) = (self.disk.borrow().saved.clone(), self.disk.borrow().records.clone());
        let mut unacked = Unacked::default();
        records.iter().for_each(|(seq, record)| unacked.take(*seq, record));
        self.agent = Agent::new(identity(), FakeJournal(self.disk.clone()), saved, &unacked);
    }

    fn last_record(&self) -> Option<Record> {
        self.disk.borrow().records.last().map(|(_, record)| record.clone())
    }
}

fn starts(actions: &[Action]) -> Vec<(LeaseId, u64, u64)> {
    actions.iter().filter_map(|a| if let Action::Start { lease, from, to, .. } = a { Some((*lease, *from, *to)) } else { None }).collect()
}

fn cuts(actions: &[Action]) -> Vec<LeaseId> {
    actions.iter().filter_map(|a| if let Action::Cut(lease) = a { Some(*lease) } else { None }).collect()
}

fn running_world() -> (World, LeaseId) {
    let mut w = World::new();
    w.connect(&[], 0);
    w.tell(Command::Job(spec(1, "10.0.0.0/24", None)));
    let started = w.tell(Command::Grant(lease(1, 1, 0, 1000)));
    let id = lease(1, 1, 0, 1000).id;
    assert_eq!(starts(&started), [(id, 0, 1000)]);
    (w, id)
}

#[test]
fn a_lease_runs_from_grant_to_stored_end() {
    let (mut w, id) = running_world();
    w.agent.on_batch(w.now, &batch(id, 0, 600));
    w.agent.on_batch(w.now, &batch(id, 600, 1000));
    w.agent.on_task_ended(w.now, id, None);
    assert_eq!(w.last_record(), Some(Record::LeaseEnded { lease: id, position: 1000, end: LeaseEnd::Done }));
    w.tell(Command::Ack { stream: STREAM, up_to: 3 });
    assert!(w.disk.borrow().records.is_empty() && w.disk.borrow().saved.leases.is_empty() && w.disk.borrow().saved.jobs.is_empty());
}

#[test]
fn a_grant_before_its_job_asks_for_the_job() {
    let mut w = World::new();
    w.connect(&[], 0);
    let actions = w.tell(Command::Grant(lease(1, 1, 0, 10)));
    assert_eq!(actions, [Action::Event(Event::NeedJob { job: JobId(1) })]);
    assert_eq!(starts(&w.tell(Command::Job(spec(1, "10.0.0.0/24", None)))).len(), 1);
}

#[test]
fn a_spec_that_got_lost_is_asked_for_again() {
    let mut w = World::new();
    w.connect(&[], 0);
    let lease = lease(1, 1, 0, 10);
    w.tell(Command::Grant(lease.clone()));
    // The controller ends before it answers; the lease is in its database, and the probe says that it has it.
    w.agent.on_disconnected();
    w.connect(&[lease.id], 0);
    let asks = |actions: &[Action]| actions.contains(&Action::Event(Event::NeedJob { job: JobId(1) }));
    assert!(asks(&w.pass(Duration::ZERO)), "with the first heartbeat");
    assert!(asks(&w.pass(Duration::from_secs(15))), "and with each until it is here");
    assert_eq!(starts(&w.tell(Command::Job(spec(1, "10.0.0.0/24", None)))).len(), 1);
    assert!(!asks(&w.pass(Duration::from_secs(15))));
}

#[test]
fn after_power_loss_it_goes_on_behind_the_last_batch_in_the_spool() {
    let (mut w, id) = running_world();
    w.agent.on_batch(w.now, &batch(id, 0, 300));
    w.restart();
    assert!(w.actions().is_empty(), "a lease with a life waits for the controller");
    assert_eq!(starts(&w.connect(&[id], 0)), [(id, 300, 1000)]);
}

#[test]
fn without_its_spool_it_goes_on_only_with_what_it_had_reported_nothing_of() {
    let (mut w, id) = running_world();
    w.tell(Command::Job(spec(2, "10.1.0.0/24", None)));
    let untouched = lease(2, 1, 0, 10);
    w.tell(Command::Grant(untouched.clone()));
    w.agent.on_batch(w.now, &batch(id, 0, 300));
    // The position is saved before the acknowledged batch is deleted.
    w.tell(Command::Ack { stream: STREAM, up_to: 1 });
    w.disk.borrow_mut().saved.stream = Some(StreamId(0xdef));
    w.disk.borrow_mut().records.clear();
    w.restart();
    assert_eq!(starts(&w.connect(&[id, untouched.id], 0)), [(untouched.id, 0, 10)]);
}

#[test]
fn acknowledged_batches_are_not_measured_again_after_power_loss() {
    let (mut w, id) = running_world();
    w.agent.on_batch(w.now, &batch(id, 0, 300));
    w.tell(Command::Ack { stream: STREAM, up_to: 1 });
    w.restart();
    assert_eq!(starts(&w.connect(&[id], 1)), [(id, 300, 1000)]);
}

#[test]
fn an_ended_lease_is_not_started_again_by_a_late_grant() {
    let (mut w, id) = running_world();
    w.agent.on_batch(w.now, &batch(id, 0, 1000));
    w.agent.on_task_ended(w.now, id, None);
    w.restart();
    assert!(starts(&w.connect(&[id], 0)).is_empty());
    assert!(starts(&w.tell(Command::Grant(lease(1, 1, 0, 1000)))).is_empty());
    assert_eq!(w.disk.borrow().records.len(), 2);
}

#[test]
fn a_dropped_link_does_not_touch_a_running_task() {
    let (mut w, id) = running_world();
    w.agent.on_disconnected();
    assert!(w.pass(Duration::from_secs(50)).is_empty());
    assert!(starts(&w.connect(&[id], 0)).is_empty(), "it still runs");
    assert!(cuts(&w.pass(Duration::from_secs(30))).is_empty(), "the welcome extended the lease");
}

#[test]
fn a_lease_pauses_when_its_life_is_over_and_resumes_when_the_controller_still_means_it() {
    let (mut w, id) = running_world();
    w.agent.on_disconnected();
    w.agent.on_batch(w.now, &batch(id, 0, 100));
    assert_eq!(cuts(&w.pass(Duration::from_secs(61))), [id]);
    w.agent.on_batch(w.now, &batch(id, 100, 150));
    w.agent.on_task_ended(w.now, id, None);
    assert!(starts(&w.pass(Duration::from_secs(5))).is_empty());
    assert_eq!(starts(&w.connect(&[id], 0)), [(id, 150, 1000)]);
}

#[test]
fn a_lease_given_to_another_meanwhile_is_dropped_and_its_batches_stay() {
    let (mut w, id) = running_world();
    w.agent.on_disconnected();
    w.agent.on_batch(w.now, &batch(id, 0, 100));
    assert_eq!(cuts(&w.connect(&[], 0)), [id]);
    w.agent.on_task_ended(w.now, id, None);
    assert_eq!(w.last_record(), Some(Record::Batch(batch(id, 0, 100))));
    assert!(w.disk.borrow().saved.leases.is_empty() || starts(&w.pass(Duration::from_secs(1))).is_empty());
}

#[test]
fn heartbeats_extend_leases_from_when_they_were_sent() {
    let (mut w, id) = running_world();
    let beat = w.pass(Duration::from_secs(30));
    let number = beat.iter().find_map(|a| if let Action::Event(Event::Heartbeat(h)) = a { Some(h.number) } else { None }).unwrap();
    w.now += Duration::from_secs(20);
    w.unix += 20_000;
    w.tell(Command::HeartbeatAck { session: SessionId(1), number });
    // Sent at 30 s, life 60 s: it holds until 90 s, not until 110 s.
    assert!(cuts(&w.pass(Duration::from_secs(39))).is_empty());
    assert_eq!(cuts(&w.pass(Duration::from_secs(2))), [id]);
}

#[test]
fn cancel_and_revoke_report_what_was_done() {
    for (command, end) in
        [(Command::Cancel { job: JobId(1) }, LeaseEnd::Cancelled), (Command::Revoke { lease: lease(1, 1, 0, 1).id }, LeaseEnd::Revoked)]
    {
        let (mut w, id) = running_world();
        assert_eq!(cuts(&w.tell(command)), [id]);
        w.agent.on_batch(w.now, &batch(id, 0, 40));
        w.agent.on_task_ended(w.now, id, None);
        assert_eq!(w.last_record(), Some(Record::LeaseEnded { lease: id, position: 40, end }));
    }
}

#[test]
fn the_deadline_stops_work_and_needs_a_trusted_clock() {
    let mut w = World::new();
    w.connect(&[], 0);
    let deadline = w.unix + 10_000;
    w.tell(Command::Job(spec(1, "10.0.0.0/24", Some(deadline))));
    let id = lease(1, 1, 0, 1000).id;
    assert_eq!(starts(&w.tell(Command::Grant(Lease { ttl: None, ..lease(1, 1, 0, 1000) }))).len(), 1);
    w.restart();
    assert!(starts(&w.pass(Duration::from_secs(1))).is_empty(), "no controller told the time since the restart");
    assert_eq!(starts(&w.connect(&[id], 0)).len(), 1);
    assert_eq!(cuts(&w.pass(Duration::from_secs(10))), [id]);
    w.agent.on_task_ended(w.now, id, None);
    assert_eq!(w.last_record(), Some(Record::LeaseEnded { lease: id, position: 0, end: LeaseEnd::Deadline }));
}

#[test]
fn leases_without_a_life_go_on_without_a_controller() {
    let mut w = World::new();
    w.connect(&[], 0);
    w.tell(Command::Job(spec(1, "10.0.0.0/24", None)));
    w.tell(Command::Grant(Lease { ttl: None, ..lease(1, 1, 0, 1000) }));
    w.restart();
    assert_eq!(starts(&w.pass(Duration::from_secs(1))).len(), 1);
    assert!(cuts(&w.pass(Duration::from_secs(100_000))).is_empty());
}

#[test]
fn of_one_job_one_lease_runs_at_a_time() {
    let (mut w, first) = running_world();
    let second = lease(1, 2, 1000, 2000);
    assert!(starts(&w.tell(Command::Grant(second.clone()))).is_empty());
    w.tell(Command::Job(spec(2, "10.1.0.0/24", None)));
    assert_eq!(starts(&w.tell(Command::Grant(lease(2, 1, 0, 10)))).len(), 1, "another job does not wait");
    w.agent.on_batch(w.now, &batch(first, 0, 1000));
    w.agent.on_task_ended(w.now, first, None);
    assert_eq!(starts(&w.actions()), [(second.id, 1000, 2000)]);
}

#[test]
fn bad_commands_are_refused_and_counted_by_reason() {
    let mut w = World::new();
    w.connect(&[], 0);
    let own = || Audience::Probe("attic".parse().unwrap());
    let cancel = || Command::Cancel { job: JobId(9) };
    let forged = w.sealed(own(), cancel(), 2);
    let foreign = w.sealed(Audience::Probe("cellar".parse().unwrap()), cancel(), 1);
    let other_role = w.sealed(Audience::Role(Role::Capture), cancel(), 1);
    let good = w.sealed(own(), cancel(), 1);
    let stale = w.sealed(own(), cancel(), 1);
    for bytes in [&forged[..], &foreign, &other_role, &good, &good, b"", b"garbage", &[1; 80]] {
        w.agent.on_message(w.now, bytes);
    }
    w.now += Duration::from_secs(61);
    w.agent.on_message(w.now, &stale);
    let r = w.agent.refusals();
    assert_eq!((r.unsigned, r.misaddressed, r.replayed, r.malformed, r.expired), (2, 2, 1, 2, 1));
    w.restart();
    w.connect(&[], 0);
    w.agent.on_message(w.now, &good);
    assert!(w.agent.refusals().replayed == 1 || w.agent.refusals().expired == 1, "not even after a restart");
}

#[test]
fn commands_wait_for_the_welcome_and_a_foreign_welcome_is_nothing() {
    let mut w = World::new();
    w.agent.on_connected(w.now, SessionId(5), 5, Duration::ZERO);
    assert!(matches!(w.actions()[..], [Action::Live(Live::Birth(_))]));
    assert!(w.tell(Command::Job(spec(1, "10.0.0.0/24", None))).is_empty());
    assert!(w.tell(Command::Grant(lease(1, 1, 0, 10))).is_empty());
    let welcome = |nonce, now| Command::Welcome {
        session: SessionId(5),
        nonce,
        now: UnixMillis(now),
        heartbeat: Duration::from_secs(15),
        roles: vec![Role::Scan],
        leases: vec![],
        stored: 0,
    };
    let now = w.unix;
    assert!(w.tell(welcome(6, now)).is_empty());
    // The two have lower serials than the welcome; they are for the same audience and must not be taken for replays.
    let actions = w.tell(welcome(5, now));
    assert!(actions.contains(&Action::Publish { stored: 0 }));
    assert_eq!(starts(&actions).len(), 1);
}

#[test]
fn a_birth_that_nobody_answers_is_said_again() {
    let mut w = World::new();
    w.agent.on_connected(w.now, SessionId(5), 5, Duration::from_secs(1));
    let births = |actions: &[Action]| {
        let uptime = |action: &Action| match action {
            Action::Live(Live::Birth(birth)) => Some((birth.session, birth.nonce, birth.uptime.as_secs())),
            _ => None,
        };
        actions.iter().filter_map(uptime).collect::<Vec<_>>()
    };
    assert_eq!(births(&w.actions()), [(SessionId(5), 5, 1)]);
    assert_eq!(w.agent.poll_timeout(w.now), Some(w.now + Duration::from_secs(2)));
    assert!(w.pass(Duration::from_millis(1_999)).is_empty());
    assert_eq!(births(&w.pass(Duration::from_millis(1))), [(SessionId(5), 5, 3)]);
    assert!(w.pass(Duration::from_secs(3)).is_empty(), "less and less often");
    assert_eq!(births(&w.pass(Duration::from_secs(1))).len(), 1);
    // Each birth may be answered in the end. The first answer counts, the others are no attack.
    let welcome = Command::Welcome {
        session: SessionId(5),
        nonce: 5,
        now: UnixMillis(w.unix),
        heartbeat: Duration::from_secs(15),
        roles: vec![Role::Scan],
        leases: vec![],
        stored: 0,
    };
    assert!(w.tell(welcome.clone()).contains(&Action::Publish { stored: 0 }));
    w.tell(Command::Job(spec(1, "10.0.0.0/24", None)));
    assert_eq!(starts(&w.tell(Command::Grant(lease(1, 1, 0, 10)))).len(), 1);
    assert!(w.tell(welcome).is_empty());
    assert_eq!(w.agent.refusals().total(), 0);
    assert!(births(&w.pass(Duration::from_secs(300))).is_empty());
}

#[test]
fn time_never_goes_back_behind_what_was_trusted() {
    let mut w = World::new();
    w.connect(&[], 0);
    let before = w.agent.trusted_now(w.now).unwrap();
    w.restart();
    assert_eq!(w.agent.trusted_now(w.now), None);
    w.unix -= 1_000_000_000;
    w.serial += 10;
    w.connect(&[], 0);
    assert_eq!(w.agent.trusted_now(w.now), Some(before));
}

#[test]
fn a_full_spool_stops_the_work_and_loses_nothing() {
    let (mut w, id) = running_world();
    w.agent.on_batch(w.now, &batch(id, 0, 100));
    w.disk.borrow_mut().room = 0;
    w.agent.on_batch(w.now, &batch(id, 100, 200));
    assert_eq!(cuts(&w.actions()), [id]);
    w.agent.on_batch(w.now, &batch(id, 200, 250));
    w.agent.on_task_ended(w.now, id, None);
    assert!(starts(&w.actions()).is_empty());
    w.disk.borrow_mut().room = 10;
    assert_eq!(starts(&w.tell(Command::Ack { stream: STREAM, up_to: 1 })), [(id, 100, 1000)]);
}

#[test]
fn a_cancel_is_not_forgotten_while_the_spool_has_no_room() {
    let (mut w, id) = running_world();
    w.disk.borrow_mut().room = 0;
    w.agent.on_batch(w.now, &batch(id, 0, 100));
    assert_eq!(cuts(&w.actions()), [id]);
    w.tell(Command::Cancel { job: JobId(1) });
    w.agent.on_task_ended(w.now, id, None);
    assert!(starts(&w.pass(Duration::from_secs(6))).is_empty(), "still no room");
    w.disk.borrow_mut().room = 10;
    assert!(starts(&w.pass(Duration::from_secs(60))).is_empty(), "what is cancelled does not start again");
    assert_eq!(w.last_record(), Some(Record::LeaseEnded { lease: id, position: 0, end: LeaseEnd::Cancelled }));
}

#[test]
fn a_command_whose_serial_cannot_be_saved_is_not_obeyed() {
    let mut w = World::new();
    w.connect(&[], 0);
    w.tell(Command::Job(spec(1, "10.0.0.0/24", None)));
    w.disk.borrow_mut().save_fails = true;
    assert!(w.tell(Command::Grant(lease(1, 1, 0, 10))).is_empty());
    w.disk.borrow_mut().save_fails = false;
    assert!(starts(&w.pass(Duration::from_secs(1))).is_empty());
}

#[test]
fn a_job_that_the_box_cannot_do_is_refused_with_the_reason() {
    let mut w = World::new();
    w.connect(&[], 0);
    w.tell(Command::Job(spec(1, "fd00::/120", None)));
    assert!(starts(&w.tell(Command::Grant(lease(1, 1, 0, 10)))).is_empty());
    let refused = w
        .disk
        .borrow()
        .records
        .iter()
        .find_map(|(_, r)| if let Record::JobRefused { reason, .. } = r { Some(reason.clone()) } else { None });
    assert_eq!(refused.as_deref(), Some("it lacks IPv6: no address"));
}

#[test]
fn a_birth_tells_where_each_lease_stands() {
    let (mut w, id) = running_world();
    w.agent.on_batch(w.now, &batch(id, 0, 300));
    let actions = w.connect(&[id], 0);
    let Some(Action::Live(Live::Birth(birth))) = actions.first() else { panic!("{actions:?}") };
    assert_eq!((birth.leases[0].lease, birth.leases[0].position, birth.leases[0].activity), (id, 300, Activity::Running));
}

fn services(lease: LeaseId, position: u64) -> ServiceBatch {
    ServiceBatch { lease, at: UnixMillis(0), found: vec![ServiceFound { position, outcome: ServiceOutcome::Silent }] }
}

#[test]
fn services_without_room_keep_their_batch_out_too() {
    let (mut w, id) = running_world();
    assert!(w.agent.on_services(w.now, services(id, 3)));
    w.agent.on_batch(w.now, &batch(id, 0, 300));
    w.disk.borrow_mut().room = 0;
    assert!(!w.agent.on_services(w.now, services(id, 303)));
    assert_eq!(cuts(&w.actions()), [id]);
    assert!(w.agent.goes_on(id), "it is measured again when there is room");
    w.disk.borrow_mut().room = 10;
    w.agent.on_task_ended(w.now, id, None);
    assert_eq!(starts(&w.pass(Duration::from_secs(6))), [(id, 300, 1000)]);
    // Killed between services and their batch: the batch alone says how far it is.
    assert!(w.agent.on_services(w.now, services(id, 303)));
    w.restart();
    assert_eq!(starts(&w.connect(&[id], 0)), [(id, 300, 1000)]);
    assert!(!w.agent.on_services(w.now, services(LeaseId { grant: 9, ..id }, 303)), "of no lease that is held");
}

fn paths(lease: LeaseId, position: u64) -> PathBatch {
    let path = Path { dst: "10.0.0.9".parse().unwrap(), end: PathEnd::Silent, hops: vec![], sent: 9, mtu: None };
    let paths = vec![TracedPath::path(position, Duration::ZERO, &path, 0)];
    PathBatch { lease, at: UnixMillis(0), sources: vec![], tos: 0, paths }
}

#[test]
fn paths_stand_before_their_batch_or_both_are_traced_again() {
    let (mut w, id) = running_world();
    w.agent.on_paths(w.now, paths(id, 3), &batch(id, 0, 300));
    let kinds = |w: &World| w.disk.borrow().records.iter().map(|(_, record)| matches!(record, Record::Paths(_))).collect::<Vec<_>>();
    assert_eq!(kinds(&w), [true, false]);
    // Chunks that nothing was sent for have no paths.
    w.agent.on_paths(w.now, PathBatch { paths: vec![], ..paths(id, 0) }, &batch(id, 300, 400));
    assert_eq!(kinds(&w), [true, false, false]);
    // Room for the paths alone, or for nothing: the batch is not reported.
    for room in [1, 0] {
        w.disk.borrow_mut().room = room;
        w.agent.on_paths(w.now, paths(id, 403), &batch(id, 400, 500));
        assert_eq!(cuts(&w.actions()), [id]);
        // What comes behind it is of no use.
        w.disk.borrow_mut().room = 10;
        w.agent.on_paths(w.now, paths(id, 503), &batch(id, 500, 600));
        w.agent.on_task_ended(w.now, id, None);
        assert_eq!(starts(&w.pass(Duration::from_secs(15))), [(id, 400, 1000)]);
    }
    assert_eq!(kinds(&w), [true, false, false, true]);
    w.restart();
    assert_eq!(starts(&w.connect(&[id], 0)), [(id, 400, 1000)]);
}

#[test]
fn late_answers_are_told_only_of_what_was_reported() {
    let (mut w, id) = running_world();
    let late = |position| LateAnswer { position, state: State::Open, rtt: RttCode::encode(Duration::ZERO), ttl: 1 };
    w.agent.on_late(id, vec![late(3)]);
    assert_eq!(w.last_record(), None, "nothing is reported yet");
    w.agent.on_batch(w.now, &batch(id, 0, 300));
    w.agent.on_late(id, vec![late(3), late(300), late(299)]);
    assert_eq!(w.last_record(), Some(Record::Late(LateBatch { lease: id, answers: vec![late(3), late(299)] })));
    w.agent.on_late(id, vec![late(4); EXTRAS_MAX + 1]);
    let sizes: Vec<usize> = w.disk.borrow().records[2..]
        .iter()
        .map(|(_, record)| match record {
            Record::Late(late) => late.answers.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sizes, [EXTRAS_MAX, 1]);
}

#[test]
fn hosts_on_the_link_are_told_in_bounded_records() {
    let (mut w, id) = running_world();
    let host = HostSeen { addr: "10.0.0.9".parse().unwrap(), mac: None, how: SeenBy::Arp };
    w.agent.on_hosts(w.now, id, UnixMillis(7), &vec![host; EXTRAS_MAX + 5]);
    let records = w.disk.borrow().records.clone();
    assert!(matches!(&records[0].1, Record::Hosts(hosts) if hosts.hosts.len() == EXTRAS_MAX));
    assert_eq!(records[1].1, Record::Hosts(HostBatch { lease: id, at: UnixMillis(7), hosts: vec![host; 5] }));
}

#[test]
fn nobody_goes_on_with_a_job_that_was_cancelled() {
    let (mut w, id) = running_world();
    assert_eq!(cuts(&w.tell(Command::Cancel { job: id.job })), [id]);
    assert!(!w.agent.goes_on(id));
    let (mut w, id) = running_world();
    assert_eq!(cuts(&w.tell(Command::Revoke { lease: id })), [id]);
    assert!(w.agent.goes_on(id));
}
