//! One job as it stands in memory: what the database says of it, and what only this run of the controller knows.
//!
//! **Invariant:** everything but expiries, reports and rates is in the database before anybody acts on it.
//! **Invariant:** the coverage of a job that is over adds up to its total: what has no result is counted as not reached.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use picket_wire::event::{LeaseStatus, Rates};
use picket_wire::ids::{JobId, LeaseId, ProbeId};
use picket_wire::job::{Lease, Mode, ScanOptions};
use picket_wire::result::{Coverage, State};
use picket_wire::space::{SpaceError, TargetSpace};
use picket_wire::units::{PacketsPerSecond, UnixMillis};

use super::plan::{FAILURES_MAX, Held, Outcome, Part, Phase, Work};
use super::ranges::{Span, Spans};
use crate::clock::{Mono, Now, rfc3339};
use crate::store::{Change, JobRecord, JobStored, LeaseEnding, LeaseRecord, PartRecord};
use crate::view::{JobProbe, JobState, JobView};

/// The rate shown is that of the last so many seconds.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// A part of a job.
#[derive(Debug, Clone)]
pub struct PartBook {
    /// Its row.
    pub record: PartRecord,
    /// Positions that have results.
    pub covered: Spans,
}

/// What is known of a lease besides its row.
#[derive(Debug, Clone, Default)]
pub struct LeaseNotes {
    /// When its time is over; `None` where it has no end.
    pub expires: Option<Mono>,
    /// What its probe said last.
    pub status: Option<LeaseStatus>,
    /// When it was last sent.
    pub sent: Option<Mono>,
}

/// A job.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its row.
    pub record: JobRecord,
    /// Its space, ready for lookups.
    pub space: Arc<TargetSpace>,
    /// Its parts.
    pub parts: Vec<PartBook>,
    /// All its leases, by number.
    pub leases: BTreeMap<u32, LeaseRecord>,
    /// What is known of those that are alive: exactly these have an entry.
    pub notes: BTreeMap<u32, LeaseNotes>,
    /// Probes that it is not offered to again.
    pub excluded: BTreeMap<ProbeId, String>,
    /// What is accounted for, by probe.
    pub by_probe: BTreeMap<ProbeId, Coverage>,
    /// Rises with every change.
    pub version: u64,
    /// When its stop was asked for.
    stop_since: Mono,
    /// When probes were last told to stop, so that they are not told with every heartbeat.
    pub cancel_sent: BTreeMap<ProbeId, Mono>,
    samples: VecDeque<(Mono, u64)>,
}

impl Job {
    /// A job that was just submitted.
    pub fn new(record: JobRecord, space: Arc<TargetSpace>, now: Now) -> Self {
        let parts = match record.spec.mode {
            Mode::Split => vec![PartBook { record: PartRecord { number: 0, probe: None, abandoned: None }, covered: Spans::default() }],
            Mode::Each => Vec::new(),
        };
        Self {
            record,
            space,
            parts,
            leases: BTreeMap::new(),
            notes: BTreeMap::new(),
            excluded: BTreeMap::new(),
            by_probe: BTreeMap::new(),
            version: now.wall.0,
            stop_since: now.mono,
            cancel_sent: BTreeMap::new(),
            samples: VecDeque::new(),
        }
    }

    /// A job from the database. Leases that are alive get a fresh term: nobody knows what was said while the controller
    /// was away.
    pub fn load(stored: JobStored, now: Now, term: Duration) -> Result<Self, SpaceError> {
        let space = Arc::new(stored.job.spec.space()?);
        let mut job = Self::new(stored.job, space, now);
        job.parts = stored.parts.into_iter().map(|record| PartBook { record, covered: Spans::default() }).collect();
        for (part, span) in stored.covered {
            if let Some(part) = job.parts.iter_mut().find(|book| book.record.number == part) {
                part.covered.insert(span);
            }
        }
        for lease in stored.leases {
            if lease.ended.is_none() {
                let expires = lease.expires.then(|| now.mono.after(term));
                job.notes.insert(lease.number, LeaseNotes { expires, ..LeaseNotes::default() });
            }
            job.leases.insert(lease.number, lease);
        }
        job.excluded = stored.exclusions.into_iter().collect();
        job.by_probe = stored.coverage.into_iter().collect();
        Ok(job)
    }

    /// Its id.
    pub fn id(&self) -> JobId {
        self.record.spec.id
    }

    /// How it asks.
    pub fn options(&self) -> ScanOptions {
        self.record.spec.kind.scan()
    }

    /// Whether nothing more will happen.
    pub fn is_final(&self) -> bool {
        self.record.state.is_final()
    }

    /// Whether its leases are ending.
    pub fn is_stopping(&self) -> bool {
        self.record.outcome.is_some()
    }

    /// Changes that store all of a new job.
    pub fn rows(&self) -> Vec<Change> {
        let parts = self.parts.iter().map(|part| Change::Part(self.id(), part.record.clone()));
        core::iter::once(self.row()).chain(parts).collect()
    }

    /// The change that stores its row.
    pub fn row(&self) -> Change {
        Change::Job(Box::new(self.record.clone()))
    }

    /// The wire's form of a lease.
    pub fn wire_lease(&self, number: u32, ttl: Duration) -> Option<Lease> {
        let lease = self.leases.get(&number)?;
        Some(Lease {
            id: LeaseId { job: self.id(), grant: number },
            from: lease.span.from,
            to: lease.span.to,
            attempt: lease.attempt,
            ttl: lease.expires.then_some(ttl),
        })
    }

    /// Its leases that are alive, by number. There are few of them, whatever the number of those that have ended.
    pub fn alive(&self) -> impl Iterator<Item = &LeaseRecord> + '_ {
        self.notes.keys().filter_map(|number| self.leases.get(number))
    }

    /// Enters a lease.
    pub fn grant(&mut self, part: u32, probe: &ProbeId, span: Span, expires: Option<Mono>, now: Now) -> (u32, Vec<Change>) {
        let before = self.leases.values().filter(|lease| lease.part == part && lease.span.overlaps(span));
        let attempt = before.map(|lease| lease.attempt.saturating_add(1)).max().unwrap_or(0);
        self.record.last_grant += 1;
        let number = self.record.last_grant;
        let lease =
            LeaseRecord { number, part, probe: probe.clone(), span, attempt, expires: expires.is_some(), granted: now.wall, ended: None };
        self.leases.insert(number, lease.clone());
        self.notes.insert(number, LeaseNotes { expires, status: None, sent: Some(now.mono) });
        if self.record.started.is_none() {
            self.record.started = Some(now.wall);
        }
        self.record.state = JobState::Running;
        self.record.reason = None;
        (number, vec![self.row(), Change::Lease(self.id(), lease)])
    }

    /// Enters the end of a lease; nothing where it has ended before.
    pub fn end_lease(&mut self, number: u32, how: &str, reason: Option<String>, at: UnixMillis) -> Vec<Change> {
        let job = self.id();
        let Some(lease) = self.leases.get_mut(&number).filter(|lease| lease.ended.is_none()) else { return Vec::new() };
        lease.ended = Some(LeaseEnding { at, how: how.to_owned(), reason: reason.clone() });
        self.notes.remove(&number);
        let mut changes = vec![Change::Lease(job, lease.clone())];
        let probe = lease.probe.clone();
        if how == "failed" {
            let failed = |lease: &&LeaseRecord| lease.probe == probe && lease.ended.as_ref().is_some_and(|ending| ending.how == "failed");
            if self.leases.values().filter(failed).count() as u32 >= FAILURES_MAX {
                let why = reason.unwrap_or_else(|| "no reason given".to_owned());
                changes.extend(self.exclude(&probe, format!("it failed {FAILURES_MAX} times, the last time with: {why}")));
            }
        }
        changes
    }

    /// Enters that a probe is not offered the job again.
    pub fn exclude(&mut self, probe: &ProbeId, reason: String) -> Vec<Change> {
        self.excluded.insert(probe.clone(), reason.clone());
        vec![Change::Exclude(self.id(), probe.clone(), reason)]
    }

    /// Enters the parts of an `each` job.
    pub fn start(&mut self, probes: &[ProbeId]) -> Vec<Change> {
        let record = |(number, probe): (usize, &ProbeId)| PartRecord { number: number as u32, probe: Some(probe.clone()), abandoned: None };
        self.parts = probes.iter().enumerate().map(record).map(|record| PartBook { record, covered: Spans::default() }).collect();
        self.parts.iter().map(|part| Change::Part(self.id(), part.record.clone())).collect()
    }

    /// Enters that nothing more is expected of a part.
    pub fn abandon(&mut self, part: u32, reason: &str) -> Vec<Change> {
        let job = self.id();
        let Some(part) = self.parts.iter_mut().find(|book| book.record.number == part) else { return Vec::new() };
        part.record.abandoned = Some(reason.to_owned());
        vec![Change::Part(job, part.record.clone())]
    }

    /// Enters that its leases are to end.
    pub fn stop(&mut self, outcome: Outcome, now: Now) -> Vec<Change> {
        self.record.reason = match &outcome {
            Outcome::Done => None,
            Outcome::Cancelled(reason) | Outcome::Failed(reason) => Some(reason.clone()),
        };
        self.record.state = JobState::Cancelling;
        self.record.outcome = Some(outcome);
        self.stop_since = now.mono;
        vec![self.row()]
    }

    /// Enters its end. Leases that are still alive end with it.
    pub fn finish(&mut self, outcome: Outcome, now: Now) -> Vec<Change> {
        let how = if outcome == Outcome::Done { "done" } else { "cancelled" };
        let alive: Vec<u32> = self.alive().map(|lease| lease.number).collect();
        let mut changes: Vec<Change> = alive.into_iter().flat_map(|number| self.end_lease(number, how, None, now.wall)).collect();
        (self.record.state, self.record.reason) = match outcome {
            Outcome::Done => (JobState::Done, None),
            Outcome::Cancelled(reason) => (JobState::Cancelled, Some(reason)),
            Outcome::Failed(reason) => (JobState::Failed, Some(reason)),
        };
        self.record.outcome = None;
        self.record.ended = Some(now.wall);
        changes.push(self.row());
        changes
    }

    /// Enters what counts of a batch.
    pub fn cover(&mut self, part: u32, span: Span, probe: &ProbeId, coverage: Coverage) {
        if let Some(part) = self.parts.iter_mut().find(|book| book.record.number == part) {
            part.covered.insert(span);
        }
        *self.by_probe.entry(probe.clone()).or_default() += coverage;
    }

    /// Enters that a silent position has answered after all.
    pub fn late(&mut self, probe: &ProbeId, state: State) {
        if let Some(coverage) = self.by_probe.get_mut(probe) {
            coverage.silent = coverage.silent.saturating_sub(1);
            coverage.add_answers(state, 1);
        }
    }

    /// The planner's view of it.
    pub fn work(&self, now: Now) -> Work {
        let spec = &self.record.spec;
        let phase = match &self.record.outcome {
            Some(outcome) => Phase::Stopping { since: self.stop_since, outcome: outcome.clone() },
            None => Phase::Open,
        };
        let part = |book: &PartBook| Part {
            probe: book.record.probe.clone(),
            covered: book.covered.clone(),
            abandoned: book.record.abandoned.is_some(),
        };
        let held = |lease: &LeaseRecord| Held {
            id: LeaseId { job: spec.id, grant: lease.number },
            probe: lease.probe.clone(),
            part: lease.part,
            span: lease.span,
            expires: self.notes.get(&lease.number).and_then(|notes| notes.expires),
        };
        Work {
            id: spec.id,
            phase,
            mode: spec.mode,
            len: self.space.len(),
            whole: self.record.whole,
            packets_for_two: spec.kind.packets_for_two(),
            rate: spec.rate.map(PacketsPerSecond::get),
            needs: spec.needs(),
            select: self.record.request.select.clone(),
            excluded: self.excluded.clone(),
            parts: self.parts.iter().map(part).collect(),
            leases: self.alive().map(held).collect(),
            overdue: spec.deadline.is_some_and(|deadline| now.wall > deadline),
        }
    }

    /// Targets to account for.
    pub fn total(&self) -> u64 {
        let parts = self.parts.len().max(1) as u64;
        self.space.len().saturating_mul(parts)
    }

    fn covered(&self) -> u64 {
        self.parts.iter().map(|part| part.covered.len()).sum()
    }

    /// Targets that were asked so far, answers still awaited included.
    pub fn asked(&self) -> u64 {
        let awaited = |lease: &LeaseRecord| {
            let status = self.notes.get(&lease.number)?.status?;
            let part = self.parts.iter().find(|book| book.record.number == lease.part)?;
            let sent = Span { from: lease.span.from, to: status.sent.min(lease.span.to) };
            Some(part.covered.missing(sent).into_iter().map(Span::len).sum::<u64>())
        };
        self.covered() + self.alive().filter_map(awaited).sum::<u64>()
    }

    /// Notes that something changed: a new version, and a point for the rate.
    pub fn touch(&mut self, now: Now) {
        self.version = (self.version + 1).max(now.wall.0);
        let asked = self.asked();
        self.samples.push_back((now.mono, asked));
        // One point from before the window stays, so that there is always a distance to measure.
        while self.samples.get(1).is_some_and(|(at, _)| now.mono.since(*at) > RATE_WINDOW) {
            self.samples.pop_front();
        }
    }

    fn rate(&self) -> f64 {
        let (Some((from, before)), Some((to, after))) = (self.samples.front(), self.samples.back()) else { return 0.0 };
        let seconds = to.since(*from).as_secs_f64();
        if seconds < 0.001 || self.is_final() { 0.0 } else { after.saturating_sub(*before) as f64 / seconds }
    }

    /// What is accounted for. Of a job that is over, all of it.
    pub fn coverage(&self) -> Coverage {
        let mut sum = Coverage::default();
        self.by_probe.values().for_each(|coverage| sum += *coverage);
        if self.is_final() {
            let left = self.total().saturating_sub(sum.asked);
            sum.asked += left;
            sum.not_reached += left;
        }
        sum
    }

    /// What it asks of each probe.
    fn asked_rates(&self) -> Rates {
        let spec = &self.record.spec;
        Rates { packets: spec.rate, bits: spec.kind.limits().bits }
    }

    /// The part of a probe whose interface has these limits.
    fn part_of(&self, probe: ProbeId, limits: Option<Rates>) -> JobProbe {
        let asked = self.asked_rates();
        let clipped_to = |limits: Rates| {
            let granted = Rates {
                packets: [asked.packets, limits.packets].into_iter().flatten().min(),
                bits: [asked.bits, limits.bits].into_iter().flatten().min(),
            };
            let less = asked.packets.is_some_and(|rate| granted.packets != Some(rate))
                || asked.bits.is_some_and(|rate| granted.bits != Some(rate));
            (granted, less)
        };
        let granted = limits.map(clipped_to);
        let packets = granted.map_or(asked.packets, |(granted, _)| granted.packets);
        JobProbe {
            coverage: self.by_probe.get(&probe).copied().unwrap_or_default(),
            leases: self.alive().filter(|lease| lease.probe == probe).count() as u32,
            limit: packets.map_or_else(|| "unknown".to_owned(), |limit| limit.to_string()),
            granted: granted.map(|(granted, _)| granted.to_string()),
            clipped: granted.is_some_and(|(_, clipped)| clipped),
            probe,
        }
    }

    /// It as people see it. `limits` gives those of a probe's interface.
    pub fn view(&self, limits: impl Fn(&ProbeId) -> Option<Rates>) -> JobView {
        let (asked, total, rate) = (self.asked(), self.total(), self.rate());
        let seconds_left = (!self.is_final() && rate > 0.0).then(|| (total.saturating_sub(asked) as f64 / rate).ceil() as u64);
        let holders = self.alive().map(|lease| lease.probe.clone());
        let vantage = self.parts.iter().filter_map(|part| part.record.probe.clone());
        let names: BTreeSet<ProbeId> = self.by_probe.keys().cloned().chain(holders).chain(vantage).collect();
        let part = |id: ProbeId| {
            let limits = limits(&id);
            self.part_of(id, limits)
        };
        let asked_rate = self.asked_rates();
        JobView {
            id: self.id(),
            name: self.record.request.name.clone(),
            state: self.record.state,
            reason: self.record.reason.clone(),
            summary: self.record.summary.clone(),
            technique: self.options().technique,
            mode: self.record.spec.mode,
            asked_rate: (asked_rate != Rates::default()).then(|| asked_rate.to_string()),
            created: rfc3339(self.record.created),
            started: self.record.started.map(rfc3339),
            ended: self.record.ended.map(rfc3339),
            total,
            coverage: self.coverage(),
            asked_so_far: asked,
            rate,
            seconds_left,
            probes: names.into_iter().map(part).collect(),
            version: self.version,
        }
    }
}
