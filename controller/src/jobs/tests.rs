//! The planner and the book together, in a world where probes die, come back and report late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use picket_wire::addr::parse_set;
use picket_wire::event::{Check, SelfTest};
use picket_wire::ids::{JobId, LeaseId, ProbeId, Role};
use picket_wire::job::{JobKind, JobSpec, Mode, Priority, ScanOptions, Technique};
use picket_wire::policy::AddressPolicy;
use picket_wire::result::Coverage;
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::trace::{Method, TraceOptions, WaysOptions};
use picket_wire::units::UnixMillis;
use proptest::prelude::*;

use super::book::Job;
use super::plan::{Action, Limits, Outcome, Worker, plan};
use super::ranges::Span;
use crate::clock::{Clock, Mono};
use crate::store::JobRecord;
use crate::view::{JobRequest, JobState};

const TERM: Duration = Duration::from_secs(100);
const LIMITS: Limits = Limits { stop_grace: Duration::from_secs(30) };

fn request() -> JobRequest {
    serde_json::from_value(serde_json::json!({ "targets": ["198.18.0.0/22"], "ports": "1-4", "technique": "syn" })).unwrap()
}

fn job(mode: Mode, targets: &str, clock: &Clock) -> Job {
    let targets =
        TargetSpec { include: parse_set(targets).unwrap(), exclude: Default::default(), ports: Some("1-4".parse().unwrap()), seed: 3 };
    let space = Arc::new(TargetSpace::new(&targets).unwrap());
    let spec = JobSpec {
        id: JobId(1 << 32),
        kind: JobKind::Scan(ScanOptions { technique: Technique::Syn, attempts: 2 }),
        targets,
        mode,
        rate: None,
        priority: Priority::Bulk,
        deadline: None,
        policy: AddressPolicy::default(),
    };
    let record = JobRecord {
        spec,
        request: request(),
        summary: String::new(),
        actor: "admin".into(),
        whole: false,
        state: JobState::Pending,
        reason: None,
        outcome: None,
        created: clock.now().wall,
        started: None,
        ended: None,
        last_grant: 0,
    };
    Job::new(record, space, clock.now())
}

fn worker(id: &str) -> Worker {
    Worker {
        id: id.parse().unwrap(),
        site: "hq".parse().unwrap(),
        labels: vec![],
        roles: vec![Role::Scan, Role::Trace],
        ready: Ok(()),
        gone: false,
        self_test: Some(SelfTest { raw_socket: Check::Works, ipv4: Check::Works, ipv6: Check::Works }),
        rate: 100,
    }
}

/// A world of one job and some probes.
struct World {
    clock: Clock,
    job: Job,
    workers: Vec<Worker>,
    /// What each probe believes to hold, with its position. A dead probe keeps it.
    held: BTreeMap<ProbeId, BTreeMap<u32, (Span, u64)>>,
}

impl World {
    fn new(mode: Mode, probes: usize) -> Self {
        let clock = Clock::manual(UnixMillis(1_790_000_000_000));
        let job = job(mode, "198.18.0.0/22", &clock);
        Self { job, workers: (0..probes).map(|n| worker(&format!("p{n}"))).collect(), held: BTreeMap::new(), clock }
    }

    fn plan(&mut self) {
        for _ in 0..16 {
            if self.job.is_final() {
                return;
            }
            let now = self.clock.now();
            let actions = plan(&[self.job.work(now)], &self.workers, now.mono, LIMITS);
            let again = actions.iter().any(|action| !matches!(action, Action::Explain { .. }));
            for action in actions {
                self.apply(action);
            }
            self.check();
            if !again {
                return;
            }
        }
        panic!("planning does not end");
    }

    fn apply(&mut self, action: Action) {
        let now = self.clock.now();
        match action {
            Action::Start { probes, .. } => drop(self.job.start(&probes)),
            Action::Grant { probe, part, span, expires, .. } => {
                let (number, _) = self.job.grant(part, &probe, span, expires.then(|| now.mono.after(TERM)), now);
                self.held.entry(probe).or_default().insert(number, (span, span.from));
            }
            Action::Expire { lease: LeaseId { grant, .. }, reason } => drop(self.job.end_lease(grant, "expired", Some(reason), now.wall)),
            Action::Abandon { part, reason, .. } => drop(self.job.abandon(part, &reason)),
            Action::Stop { outcome, .. } => drop(self.job.stop(outcome, now)),
            Action::Finish { outcome, .. } => drop(self.job.finish(outcome, now)),
            Action::Explain { reason, .. } => self.job.record.reason = Some(reason),
        }
    }

    /// A probe does some of a lease and reports it; at its end it says so. Probes that the controller has given up report too.
    fn work(&mut self, probe: usize, amount: u64) {
        let Some(id) = self.workers.get(probe).map(|worker| worker.id.clone()) else { return };
        let alive = !self.workers[probe].gone;
        let Some(leases) = self.held.get_mut(&id).filter(|_| alive) else { return };
        let Some((number, (span, position))) = leases.iter().next().map(|(number, lease)| (*number, *lease)) else { return };
        let done = Span { from: position, to: (position + amount.max(1)).min(span.to) };
        if done.to == span.to {
            leases.remove(&number);
        } else {
            leases.insert(number, (span, done.to));
        }
        let now = self.clock.now();
        let part = self.job.leases[&number].part;
        let missing = self.job.parts.iter().find(|book| book.record.number == part).unwrap().covered.missing(done);
        for piece in missing {
            self.job.cover(part, piece, &id, Coverage { asked: piece.len(), silent: piece.len(), ..Coverage::default() });
        }
        for notes in self.job.notes.get_mut(&number).into_iter() {
            notes.expires = notes.expires.map(|_| now.mono.after(TERM));
        }
        if done.to == span.to {
            self.job.end_lease(number, "done", None, now.wall);
        }
    }

    fn die(&mut self, probe: usize) {
        if let Some(worker) = self.workers.get_mut(probe) {
            (worker.gone, worker.ready) = (true, Err("it is offline".to_owned()));
        }
    }

    /// A probe comes back and is told which leases it still holds.
    fn revive(&mut self, probe: usize) {
        let Some(worker) = self.workers.get_mut(probe) else { return };
        (worker.gone, worker.ready) = (false, Ok(()));
        let alive: Vec<u32> = self.job.alive().map(|lease| lease.number).collect();
        if let Some(held) = self.held.get_mut(&worker.id) {
            held.retain(|number, _| alive.contains(number));
        }
    }

    fn check(&self) {
        let leases: Vec<_> = self.job.alive().collect();
        for (index, lease) in leases.iter().enumerate() {
            for other in leases.iter().skip(index + 1).filter(|other| other.part == lease.part) {
                assert!(!lease.span.overlaps(other.span), "{lease:?} and {other:?}");
            }
        }
        let sum: u64 = self.job.by_probe.values().map(|coverage| coverage.asked).sum();
        let covered: u64 = self.job.parts.iter().map(|part| part.covered.len()).sum();
        assert_eq!(sum, covered);
    }

    fn finish(&mut self) {
        for round in 0..10_000 {
            for probe in 0..self.workers.len() {
                self.revive(probe);
                self.work(probe, 400);
            }
            self.clock.advance(Duration::from_secs(1));
            self.plan();
            if self.job.is_final() {
                return;
            }
            assert!(round < 9_999, "{:?}", self.job.record);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn whatever_dies_everything_is_covered_once(
        each in any::<bool>(),
        probes in 1usize..5,
        steps in proptest::collection::vec((0u8..5, 0usize..5, 1u64..700), 0..80),
    ) {
        let mut world = World::new(if each { Mode::Each } else { Mode::Split }, probes);
        for (step, probe, amount) in steps {
            match step {
                0 => world.die(probe),
                1 => world.revive(probe),
                2 => world.clock.advance(Duration::from_secs(amount / 4)),
                _ => world.work(probe, amount),
            }
            world.plan();
        }
        world.finish();
        let coverage = world.job.coverage();
        prop_assert!(coverage.adds_up());
        prop_assert_eq!(coverage.asked, world.job.total());
        prop_assert_eq!(world.job.record.state, JobState::Done);
        prop_assert_eq!(coverage.not_reached, 0);
    }

    #[test]
    fn a_cancelled_job_ends_and_adds_up(probes in 1usize..4, work in proptest::collection::vec((0usize..4, 1u64..700), 0..10), dead in any::<bool>()) {
        let mut world = World::new(Mode::Split, probes);
        world.plan();
        for (probe, amount) in work {
            world.work(probe, amount);
            world.plan();
        }
        if !world.job.is_final() {
            if dead {
                world.die(0);
            }
            world.job.stop(Outcome::Cancelled("cancelled by admin".into()), world.clock.now());
            for _ in 0..20 {
                world.clock.advance(Duration::from_secs(10));
                world.plan();
            }
            prop_assert_eq!(world.job.record.state, JobState::Cancelled);
        }
        let coverage = world.job.coverage();
        prop_assert!(coverage.adds_up());
        prop_assert_eq!(coverage.asked, world.job.total());
    }
}

#[test]
fn work_is_divided_by_rate() {
    let mut world = World::new(Mode::Split, 3);
    world.workers[2].rate = 200;
    world.plan();
    let spans: BTreeMap<String, u64> =
        world.job.alive().map(|lease| (lease.probe.to_string(), lease.span.len())).fold(BTreeMap::new(), |mut sum, (probe, len)| {
            *sum.entry(probe).or_default() += len;
            sum
        });
    // 4096 targets: a quarter, a quarter, a half, rounded.
    assert_eq!(spans.values().sum::<u64>(), 4096);
    assert!((900..1200).contains(&spans["p0"]) && (900..1200).contains(&spans["p1"]) && (1800..2300).contains(&spans["p2"]), "{spans:?}");
}

#[test]
fn large_jobs_are_cut_into_leases_of_less_than_a_minute() {
    let mut world = World::new(Mode::Split, 2);
    world.job = job(Mode::Split, "198.18.0.0/15", &world.clock);
    world.plan();
    let leases: Vec<_> = world.job.alive().collect();
    assert_eq!(leases.len(), 4, "two for each probe");
    // 100 packets a second for 45 s, 1.5 packets per target.
    assert!(leases.iter().all(|lease| lease.span.len() == 3000), "{leases:?}");
}

#[test]
fn targets_that_cost_much_are_worth_sharing() {
    let mut world = World::new(Mode::Split, 4);
    world.job = job(Mode::Split, "198.18.0.0/26", &world.clock);
    world.plan();
    assert_eq!(world.job.alive().count(), 1, "256 targets of a scan");
    let ways = Some(WaysOptions { confidence: 95, full: false });
    world.job = job(Mode::Split, "198.18.0.0/26", &world.clock);
    world.job.record.spec.kind = JobKind::Trace(Box::new(TraceOptions { ways, ..TraceOptions::usual(Method::Udp, false) }));
    world.plan();
    let probes: BTreeSet<String> = world.job.alive().map(|lease| lease.probe.to_string()).collect();
    assert_eq!(
        probes.len(),
        4,
        "and of graphs, for which each probe takes {:?}",
        world.job.alive().map(|lease| lease.span).collect::<Vec<_>>()
    );
}

#[test]
fn one_host_is_one_lease() {
    let mut world = World::new(Mode::Split, 3);
    world.job = job(Mode::Split, "198.18.0.1", &world.clock);
    world.job.record.whole = true;
    world.plan();
    assert_eq!(world.job.alive().map(|lease| lease.span).collect::<Vec<_>>(), [Span { from: 0, to: 4 }]);
}

#[test]
fn nobody_fit_is_explained_probe_by_probe() {
    let mut world = World::new(Mode::Split, 3);
    world.workers[0].ready = Err("it is offline".into());
    world.workers[1].roles = vec![Role::Trace];
    world.workers[2].self_test.as_mut().unwrap().raw_socket = Check::Fails("operation not permitted".into());
    world.plan();
    assert_eq!(
        world.job.record.reason.as_deref(),
        Some(
            "no probe can work on it now (p0: it is offline; p1: it does not hold the role scan; p2: it lacks a raw packet socket: operation not permitted)"
        )
    );
    assert_eq!(world.job.record.state, JobState::Pending);
}

#[test]
fn an_overdue_lease_is_taken_away_only_for_somebody_who_waits() {
    let mut world = World::new(Mode::Split, 2);
    world.plan();
    world.die(0);
    world.clock.advance(TERM + Duration::from_secs(1));
    for notes in world.job.notes.values_mut() {
        notes.expires = Some(Mono::default());
    }
    world.plan();
    let holders = |world: &World| world.job.alive().map(|lease| lease.probe.to_string()).collect::<Vec<_>>();
    assert_eq!(holders(&world), ["p0", "p1"], "p1 has work: p0 may come back");
    world.work(1, 10_000);
    world.plan();
    assert_eq!(holders(&world), ["p1"]);
    assert_eq!(world.job.alive().next().map(|lease| lease.attempt), Some(1));
}

#[test]
fn a_probe_that_refuses_is_not_asked_again() {
    let mut world = World::new(Mode::Split, 1);
    world.plan();
    let id: ProbeId = "p0".parse().unwrap();
    world.job.exclude(&id, "it refuses the job: no such thing".into());
    let held: Vec<u32> = world.job.alive().map(|lease| lease.number).collect();
    for number in held {
        world.job.end_lease(number, "failed", None, UnixMillis(1));
    }
    world.plan();
    assert_eq!(world.job.record.state, JobState::Failed);
    assert!(world.job.record.reason.as_ref().unwrap().contains("no such thing"), "{:?}", world.job.record.reason);
    assert_eq!((world.job.coverage().not_reached, world.job.coverage().asked), (4096, 4096));
}

#[test]
fn each_gives_every_vantage_point_all_of_it() {
    let mut world = World::new(Mode::Each, 3);
    world.workers[1].ready = Err("it is offline".into());
    world.plan();
    let leases: Vec<_> = world.job.alive().map(|lease| (lease.probe.to_string(), lease.span.len(), lease.expires)).collect();
    assert_eq!(leases, [("p0".to_owned(), 4096, false), ("p2".to_owned(), 4096, false)]);
    assert_eq!(world.job.total(), 2 * 4096);
}
