//! Who works on what: a pure function from how things stand to what is to be done.
//!
//! Shared work (`split`) is a pool of free positions; leases are cut from it so that one takes some 45 seconds to send and
//! that the rest is divided over the probes by their rates. Work that each probe does (`each`) has one part per vantage
//! point, leased whole and without an end.
//!
//! A lease whose time is over is only taken away when somebody else can do the work and has nothing else to do of that
//! job: until then the probe that holds it may come back and go on where it was.
//!
//! **Invariant:** a granted range is free: no lease that is alive and nothing that is covered overlaps it.
//! **Invariant:** the same input gives the same actions; the caller applies them all before it asks again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use picket_wire::event::SelfTest;
use picket_wire::ids::{JobId, Label, LeaseId, ProbeId, Role, SiteName};
use picket_wire::job::{Mode, Needs, Selection};
use serde::{Deserialize, Serialize};

use super::ranges::{Span, Spans};
use crate::clock::Mono;
use crate::view::Unfit;

/// How long the sending of one lease should take.
const LEASE_TIME: Duration = Duration::from_secs(45);
/// Smaller leases cost more to manage than they share, where two targets take three packets.
const LEASE_MIN: u64 = 512;
/// One being worked on and one waiting, so that a probe never idles between two.
const LEASES_PER_PROBE: usize = 2;
/// Leases that a probe is given over all jobs; it would take 64.
const LEASES_FULL: usize = 48;
/// A probe whose leases of a job failed so often is not offered it again.
pub const FAILURES_MAX: u32 = 3;

/// A probe as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its id.
    pub id: ProbeId,
    /// Where it stands.
    pub site: SiteName,
    /// Its labels.
    pub labels: Vec<Label>,
    /// The roles it holds.
    pub roles: Vec<Role>,
    /// Whether it can be given work now, or why not, in words.
    pub ready: Result<(), String>,
    /// Whether its connection is known to be down.
    pub gone: bool,
    /// Its self-test, once it has told it.
    pub self_test: Option<SelfTest>,
    /// Packets per second of its interface; 1 where it has not told.
    pub rate: u32,
}

/// A lease that is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its identity.
    pub id: LeaseId,
    /// Who holds it.
    pub probe: ProbeId,
    /// Of which part.
    pub part: u32,
    /// The whole range.
    pub span: Span,
    /// When its time is over; `None` where it has no end.
    pub expires: Option<Mono>,
}

/// A part of a job: the whole space once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The one probe that does it, for `each`.
    pub probe: Option<ProbeId>,
    /// Positions for which there are results.
    pub covered: Spans,
    /// Whether nothing more is expected of it.
    pub abandoned: bool,
}

/// Whether a job goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It is worked on.
    Open,
    /// Its leases are ending, since when.
    Stopping {
        /// When the stop was asked for.
        since: Mono,
        /// What it will be when they have.
        outcome: Outcome,
    },
}

/// How a job ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All of it is accounted for.
    Done,
    /// Somebody cancelled it.
    Cancelled(String),
    /// It cannot go on.
    Failed(String),
}

/// A job that is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Its id; older jobs have smaller ones.
    pub id: JobId,
    /// Whether it goes on.
    pub phase: Phase,
    /// Whether probes share it.
    pub mode: Mode,
    /// Positions of its space.
    pub len: u64,
    /// Whether one probe should do all of it (one host, somebody waits).
    pub whole: bool,
    /// About how many packets two targets cost.
    pub packets_for_two: u64,
    /// Packets per second that it asks of each probe.
    pub rate: Option<u32>,
    /// What it asks of a probe.
    pub needs: Needs,
    /// Which probes may do it.
    pub select: Selection,
    /// Probes that are not offered it again, and why.
    pub excluded: BTreeMap<ProbeId, String>,
    /// Its parts; empty until it has started, for `each`.
    pub parts: Vec<Part>,
    /// Its leases that are alive.
    pub leases: Vec<Held>,
    /// Whether its deadline has passed.
    pub overdue: bool,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Begin an `each` job from these vantage points.
    Start {
        /// The job.
        job: JobId,
        /// One part each.
        probes: Vec<ProbeId>,
    },
    /// Lease a range.
    Grant {
        /// The job.
        job: JobId,
        /// To whom.
        probe: ProbeId,
        /// Of which part.
        part: u32,
        /// Which positions.
        span: Span,
        /// Whether it ends by itself.
        expires: bool,
    },
    /// A lease is over because its holder was not heard.
    Expire {
        /// The lease.
        lease: LeaseId,
        /// Why.
        reason: String,
    },
    /// Nothing more is expected of a part.
    Abandon {
        /// The job.
        job: JobId,
        /// The part.
        part: u32,
        /// Why.
        reason: String,
    },
    /// Ask the probes to end the job's leases.
    Stop {
        /// The job.
        job: JobId,
        /// What it will be then.
        outcome: Outcome,
    },
    /// The job is over.
    Finish {
        /// The job.
        job: JobId,
        /// How.
        outcome: Outcome,
    },
    /// Nobody can be given the job now.
    Explain {
        /// The job.
        job: JobId,
        /// Why, naming each probe's lack.
        reason: String,
    },
}

/// Times that planning depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long probes have to end their leases after a stop.
    pub stop_grace: Duration,
}

/// Why a probe cannot take part in a job; `None` where it can. Readiness is judged last, so that what waiting does not
/// mend is named first.
pub fn lack(worker: &Worker, work_needs: &Needs, select: &Selection, excluded: &BTreeMap<ProbeId, String>) -> Option<String> {
    if !select.probes.is_empty() && !select.probes.contains(&worker.id) {
        return Some("it is not among the probes asked for".to_owned());
    }
    if !select.sites.is_empty() && !select.sites.contains(&worker.site) {
        return Some(format!("it stands in site {}, which is not asked for", worker.site));
    }
    if let Some(label) = select.labels.iter().find(|label| !worker.labels.contains(label)) {
        return Some(format!("it does not carry the label {label}"));
    }
    if !worker.roles.contains(&work_needs.role) {
        return Some(format!("it does not hold the role {}", work_needs.role));
    }
    if let Some(reason) = excluded.get(&worker.id) {
        return Some(reason.clone());
    }
    if let Err(reason) = &worker.ready {
        return Some(reason.clone());
    }
    worker.self_test.as_ref().and_then(|test| test.lacks(work_needs))
}

/// Whether the selection asks for this probe at all.
pub fn selected(worker: &Worker, select: &Selection) -> bool {
    (select.probes.is_empty() || select.probes.contains(&worker.id))
        && (select.sites.is_empty() || select.sites.contains(&worker.site))
        && select.labels.iter().all(|label| worker.labels.contains(label))
}

/// The probes that can take part now, by id, and those that are selected and cannot.
pub fn candidates<'a>(
    workers: &'a [Worker],
    needs: &Needs,
    select: &Selection,
    excluded: &BTreeMap<ProbeId, String>,
) -> (Vec<&'a Worker>, Vec<Unfit>) {
    let mut fit = Vec::new();
    let mut unfit = Vec::new();
    for worker in workers.iter().filter(|worker| selected(worker, select)) {
        match lack(worker, needs, select, excluded) {
            None => fit.push(worker),
            Some(reason) => unfit.push(Unfit { probe: worker.id.clone(), reason }),
        }
    }
    (fit, unfit)
}

/// What is to be done now.
pub fn plan(jobs: &[Work], workers: &[Worker], now: Mono, limits: Limits) -> Vec<Action> {
    let mut actions = Vec::new();
    // Leases that this round hands out count too: whoever has fewest over all jobs comes first.
    let mut load: BTreeMap<ProbeId, usize> = BTreeMap::new();
    for held in jobs.iter().flat_map(|job| &job.leases) {
        *load.entry(held.probe.clone()).or_default() += 1;
    }
    for job in jobs {
        match &job.phase {
            Phase::Stopping { since, outcome } => {
                stopping(job, workers, now, now.since(*since) >= limits.stop_grace, outcome, &mut actions)
            }
            Phase::Open if job.overdue => {
                let reason = "its deadline passed before the end".to_owned();
                actions.push(Action::Stop { job: job.id, outcome: Outcome::Failed(reason) });
            }
            Phase::Open => match job.mode {
                Mode::Split => split(job, workers, now, &mut load, &mut actions),
                Mode::Each => each(job, workers, &mut load, &mut actions),
            },
        }
    }
    actions
}

fn find<'a>(workers: &'a [Worker], id: &ProbeId) -> Option<&'a Worker> {
    workers.iter().find(|worker| worker.id == *id)
}

/// A job that stops is over when each of its leases has ended, or is held by somebody who cannot work on it any more, or
/// was given time enough to end.
fn stopping(job: &Work, workers: &[Worker], now: Mono, patience_over: bool, outcome: &Outcome, actions: &mut Vec<Action>) {
    let mut alive = false;
    for held in &job.leases {
        // Who is out of reach may go on sending until its lease's time is over; who is connected has been told to stop.
        let gone = find(workers, &held.probe).is_none_or(|worker| worker.gone);
        let over = if gone { held.expires.is_none_or(|at| now >= at) } else { patience_over };
        if over {
            let reason = "its probe was not heard after the job was stopped".to_owned();
            actions.push(Action::Expire { lease: held.id, reason });
        } else {
            alive = true;
        }
    }
    if !alive {
        actions.push(Action::Finish { job: job.id, outcome: outcome.clone() });
    }
}

fn explain(workers: &[Worker], unfit: &[Unfit]) -> String {
    if workers.is_empty() {
        return "there is no probe yet".to_owned();
    }
    if unfit.is_empty() {
        return "no probe is selected: none matches the probes, sites and labels asked for".to_owned();
    }
    let shown = unfit.iter().take(8).map(|unfit| format!("{}: {}", unfit.probe, unfit.reason));
    let mut text = format!("no probe can work on it now ({}", shown.collect::<Vec<_>>().join("; "));
    if unfit.len() > 8 {
        text.push_str(&format!("; and {} more", unfit.len() - 8));
    }
    text.push(')');
    text
}

/// Whether waiting cannot help: every selected probe has refused the job itself.
fn hopeless(job: &Work, workers: &[Worker]) -> bool {
    let mut selected = workers.iter().filter(|worker| selected(worker, &job.select)).peekable();
    selected.peek().is_some() && selected.all(|worker| job.excluded.contains_key(&worker.id))
}

fn give_up(job: &Work, workers: &[Worker], unfit: &[Unfit], actions: &mut Vec<Action>) {
    let reason = explain(workers, unfit);
    match hopeless(job, workers) {
        true => actions.push(Action::Finish { job: job.id, outcome: Outcome::Failed(reason) }),
        false => actions.push(Action::Explain { job: job.id, reason }),
    }
}

fn split(job: &Work, workers: &[Worker], now: Mono, load: &mut BTreeMap<ProbeId, usize>, actions: &mut Vec<Action>) {
    let Some(part) = job.parts.first() else { return };
    let whole = Span { from: 0, to: job.len };
    if part.covered.len() == job.len {
        actions.push(Action::Finish { job: job.id, outcome: Outcome::Done });
        return;
    }
    let mut free = Spans::of(whole);
    part.covered.iter().for_each(|span| free.remove(span));
    job.leases.iter().for_each(|held| free.remove(held.span));

    let (fit, unfit) = candidates(workers, &job.needs, &job.select, &job.excluded);
    let team = team(job, fit, load);
    let mut held: BTreeMap<&ProbeId, usize> = BTreeMap::new();
    for lease in &job.leases {
        *held.entry(&lease.probe).or_default() += 1;
    }
    // Leases of probes that are revoked or removed come back at once; those whose time is over only to those who wait.
    let waiting: BTreeSet<&ProbeId> = team.iter().map(|worker| &worker.id).filter(|id| !held.contains_key(*id)).collect();
    let mut wanted = if free.is_empty() { waiting.len() } else { 0 };
    for lease in &job.leases {
        let reason = match find(workers, &lease.probe) {
            None => Some("its probe is no longer in the fleet"),
            Some(_) if wanted > 0 && lease.expires.is_some_and(|at| now >= at) && !waiting.contains(&lease.probe) => {
                wanted -= 1;
                Some("its probe was not heard in time")
            }
            Some(_) => None,
        };
        if let Some(reason) = reason {
            actions.push(Action::Expire { lease: lease.id, reason: reason.to_owned() });
            for span in part.covered.missing(lease.span) {
                free.insert(span);
            }
        }
    }
    if free.is_empty() {
        return;
    }
    if team.is_empty() {
        if job.leases.is_empty() {
            give_up(job, workers, &unfit, actions);
        }
        return;
    }
    grant(job, &team, free, job.len - part.covered.len(), &held, load, actions);
}

/// Whether a probe holds as many leases as it should, over all jobs; the rest waits here.
fn is_full(worker: &Worker, load: &BTreeMap<ProbeId, usize>) -> bool {
    load.get(&worker.id).copied().unwrap_or(0) >= LEASES_FULL
}

/// Who comes first: the one with the fewest leases, then the fastest.
fn first(worker: &Worker, job: &Work, load: &BTreeMap<ProbeId, usize>) -> (usize, Reverse<u64>, ProbeId) {
    (load.get(&worker.id).copied().unwrap_or(0), Reverse(rate_of(worker, job.rate)), worker.id.clone())
}

/// At most `count` of the fit probes; those who work on the job already stay.
fn team<'a>(job: &Work, mut fit: Vec<&'a Worker>, load: &BTreeMap<ProbeId, usize>) -> Vec<&'a Worker> {
    let holders: BTreeSet<&ProbeId> = job.leases.iter().map(|lease| &lease.probe).collect();
    let most = if job.whole { 1 } else { job.select.count.map_or(usize::MAX, |count| count as usize) };
    if fit.len() > most {
        let order = |worker: &&Worker| (!holders.contains(&worker.id), first(worker, job, load));
        fit.sort_by_key(order);
        fit.truncate(most);
    }
    fit
}

/// Packets per second that a probe will send for the job, if nothing else does.
pub fn rate_of(worker: &Worker, asked: Option<u32>) -> u64 {
    u64::from(asked.map_or(worker.rate, |asked| asked.min(worker.rate))).max(1)
}

fn grant(
    job: &Work,
    team: &[&Worker],
    mut free: Spans,
    left: u64,
    held: &BTreeMap<&ProbeId, usize>,
    load: &mut BTreeMap<ProbeId, usize>,
    actions: &mut Vec<Action>,
) {
    let all_rates: u64 = team.iter().map(|worker| rate_of(worker, job.rate)).sum();
    let mut counts: BTreeMap<&ProbeId, usize> = held.clone();
    for round in 1..=LEASES_PER_PROBE {
        let has_room = |worker: &&&Worker| counts.get(&worker.id).copied().unwrap_or(0) < round && !is_full(worker, load);
        let mut turn: Vec<&&Worker> = team.iter().filter(has_room).collect();
        turn.sort_by_key(|worker| first(worker, job, load));
        for worker in turn {
            let Some(span) = free.first() else { return };
            let rate = rate_of(worker, job.rate);
            let targets_per_lease = rate.saturating_mul(LEASE_TIME.as_secs()).saturating_mul(2) / job.packets_for_two.max(1);
            let share = u64::try_from(u128::from(left) * u128::from(rate) / u128::from(all_rates)).unwrap_or(u64::MAX);
            let least = least(job.packets_for_two);
            let wish = if job.whole { u64::MAX } else { targets_per_lease.min(share + 1).max(least) };
            // A rest too small for a lease of its own goes along.
            let len = if span.len() < wish.saturating_add(least / 2) { span.len() } else { wish };
            let span = Span { from: span.from, to: span.from + len };
            free.remove(span);
            *counts.entry(&worker.id).or_default() += 1;
            *load.entry(worker.id.clone()).or_default() += 1;
            actions.push(Action::Grant { job: job.id, probe: worker.id.clone(), part: 0, span, expires: true });
        }
    }
}

fn each(job: &Work, workers: &[Worker], load: &mut BTreeMap<ProbeId, usize>, actions: &mut Vec<Action>) {
    if job.parts.is_empty() {
        let (mut fit, unfit) = candidates(workers, &job.needs, &job.select, &job.excluded);
        fit.truncate(job.select.count.map_or(usize::MAX, |count| count as usize));
        match fit.is_empty() {
            true => give_up(job, workers, &unfit, actions),
            false => actions.push(Action::Start { job: job.id, probes: fit.iter().map(|worker| worker.id.clone()).collect() }),
        }
        return;
    }
    let mut over = true;
    let mut failed = Vec::new();
    for (number, part) in job.parts.iter().enumerate() {
        let number = number as u32;
        let Some(id) = &part.probe else { continue };
        if part.covered.len() == job.len {
            continue;
        }
        let held: Vec<&Held> = job.leases.iter().filter(|held| held.part == number).collect();
        let lost = match find(workers, id) {
            None => Some("the probe is no longer in the fleet".to_owned()),
            Some(_) => job.excluded.get(id).cloned(),
        };
        if part.abandoned || lost.is_some() {
            for held in held {
                actions.push(Action::Expire { lease: held.id, reason: "nothing more is expected of its probe".to_owned() });
            }
            failed.push(lost.as_ref().map_or_else(|| id.to_string(), |reason| format!("{id} ({reason})")));
            if let (false, Some(reason)) = (part.abandoned, lost) {
                actions.push(Action::Abandon { job: job.id, part: number, reason: reason.clone() });
                over = false;
            }
            continue;
        }
        over = false;
        let mut free = Spans::of(Span { from: 0, to: job.len });
        part.covered.iter().for_each(|span| free.remove(span));
        held.iter().for_each(|held| free.remove(held.span));
        let fit = |worker: &&Worker| lack(worker, &job.needs, &Selection::default(), &job.excluded).is_none();
        if let Some(worker) = find(workers, id).filter(fit) {
            for span in free.iter() {
                if is_full(worker, load) {
                    break;
                }
                *load.entry(id.clone()).or_default() += 1;
                actions.push(Action::Grant { job: job.id, probe: id.clone(), part: number, span, expires: false });
            }
        }
    }
    if over {
        let outcome = match failed.is_empty() {
            true => Outcome::Done,
            false => Outcome::Failed(format!("not done from: {}", failed.join(", "))),
        };
        actions.push(Action::Finish { job: job.id, outcome });
    }
}
/// The smallest lease where two targets take so many packets: the more each one takes, the fewer are worth sharing.
fn least(packets_for_two: u64) -> u64 {
    (LEASE_MIN * 3 / packets_for_two.max(3)).max(1)
}
