//! What a run has found so far: every finding goes through here, into the resume file first and then to the outputs, whether it
//! comes from the engines or is read again.
//!
//! **Invariant:** what the outputs were told is in the resume file, where there is one.

use core::time::Duration;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use picket_wire::addr::AddrSet;
use picket_wire::host::HostSeen;
use picket_wire::ids::{JobId, LeaseId};
use picket_wire::result::{LateAnswer, NotReached, ResultBatch, State};
use picket_wire::service::ServiceOutcome;
use picket_wire::units::UnixMillis;

use super::Outcome;
use super::error::StandaloneError;
use super::output::Outputs;
use super::output::file::OutputError;
use super::results::{Found, News, PassHead, PassState, Row, ServiceTally, Summary};
use super::resume::{Entry, Journal};
use super::services::OpenPort;
use crate::net::clock;
use crate::scan::report::{ChunkReport, LateReport, ProxySeen};

/// Most addresses seen on the link that wait for their chunk; more are shown without their hardware address.
const SEEN_MAX: usize = 65_536;

/// See the module.
pub(super) struct Ledger {
    passes: Vec<PassState>,
    outputs: Outputs,
    journal: Option<Journal>,
    /// What was seen on the link of the next chunk's targets.
    seen: HashMap<IpAddr, HostSeen>,
    proxies: Vec<ProxySeen>,
    /// Hosts that answered discovery.
    up: Vec<IpAddr>,
    services: Option<ServiceTally>,
    /// Open ports for which it is not known yet what serves there.
    unserved: BTreeMap<OpenPort, Row>,
    /// Those of them that nobody was told to ask yet.
    fresh: Vec<OpenPort>,
    /// Why results could not be written, once.
    failed: Option<OutputError>,
}

impl Ledger {
    pub(super) fn new(outputs: Outputs, journal: Option<Journal>, services: bool) -> Self {
        Self {
            passes: Vec::new(),
            outputs,
            journal,
            seen: HashMap::new(),
            proxies: Vec::new(),
            up: Vec::new(),
            services: services.then(ServiceTally::default),
            unserved: BTreeMap::new(),
            fresh: Vec::new(),
            failed: None,
        }
    }

    /// Adds a pass; it has the next number.
    pub(super) fn add(&mut self, head: PassHead) {
        self.passes.push(PassState::new(head));
    }

    /// All passes so far.
    pub(super) fn passes(&self) -> &[PassState] {
        &self.passes
    }

    /// The hosts that answered discovery.
    pub(super) fn up(&self) -> AddrSet {
        AddrSet::try_from(self.up.iter().map(|addr| (*addr, *addr)).collect::<Vec<_>>()).unwrap_or_default()
    }

    /// Why results could not be written.
    pub(super) fn failed(&self) -> Option<&OutputError> {
        self.failed.as_ref()
    }

    /// The same, to hand on.
    pub(super) fn take_failure(&mut self) -> Option<OutputError> {
        self.failed.take()
    }

    /// A chunk as an engine reports it.
    pub(super) fn chunk(&mut self, pass: usize, report: ChunkReport) -> Result<(), StandaloneError> {
        let late = report.late;
        let now = unix(clock::wall());
        let started = UnixMillis(now.0.saturating_sub(u64::try_from(report.took().as_millis()).unwrap_or(u64::MAX)));
        // No lease is part of a run without a controller.
        let nobody = LeaseId { job: JobId(0), grant: 0 };
        let batch = report.into_batch(nobody, started);
        self.keep(|| Entry::Chunk { pass: pass as u8, batch: batch.clone(), late })?;
        self.count(pass, &batch, late)
    }

    /// A late answer as an engine reports it.
    pub(super) fn late(&mut self, pass: usize, report: LateReport) -> Result<(), StandaloneError> {
        let (answer, now) = (report.into_answer(), clock::wall());
        self.keep(|| Entry::Late { pass: pass as u8, answers: vec![answer], at: unix(now) })?;
        self.count_late(pass, &[answer], now);
        Ok(())
    }

    /// Hosts that were seen on the link.
    pub(super) fn hosts(&mut self, pass: usize, hosts: Vec<HostSeen>) -> Result<(), StandaloneError> {
        self.keep(|| Entry::Hosts { pass: pass as u8, hosts: hosts.clone() })?;
        self.count_hosts(pass, &hosts);
        Ok(())
    }

    /// A hardware address that answers for very many addresses.
    pub(super) fn proxy(&mut self, proxy: ProxySeen) {
        self.proxies.push(proxy);
    }

    /// What serves on an open port.
    pub(super) fn service(&mut self, port: OpenPort, outcome: ServiceOutcome) -> Result<(), StandaloneError> {
        self.keep(|| Entry::Service { pass: port.0, position: port.1, outcome: outcome.clone() })?;
        self.count_service(port, outcome);
        Ok(())
    }

    fn count_service(&mut self, port: OpenPort, outcome: ServiceOutcome) {
        let (Some(services), Some(row)) = (&mut self.services, self.unserved.remove(&port)) else { return };
        services.add(&outcome);
        let told = self.outputs.news(&News::Service(&Found { row, outcome }));
        self.check(told);
    }

    /// Open ports to be asked what serves there, each once.
    pub(super) fn unserved(&mut self) -> Vec<(OpenPort, Row)> {
        let fresh = core::mem::take(&mut self.fresh);
        fresh.into_iter().filter_map(|port| Some((port, *self.unserved.get(&port)?))).collect()
    }

    /// What a resume file holds, in its order. Passes must have been added as far as the entry needs them.
    pub(super) fn replay(&mut self, entry: &Entry) -> Result<(), StandaloneError> {
        match entry {
            Entry::Chunk { pass, batch, late } => self.count((*pass).into(), batch, *late)?,
            Entry::Late { pass, answers, at } => {
                self.count_late((*pass).into(), answers, UNIX_EPOCH + Duration::from_millis(at.0));
            }
            Entry::Hosts { pass, hosts } => self.count_hosts((*pass).into(), hosts),
            Entry::Service { pass, position, outcome } => self.count_service((*pass, *position), outcome.clone()),
            Entry::Head(_) | Entry::Took(_) => {}
        }
        Ok(())
    }

    fn keep(&mut self, entry: impl FnOnce() -> Entry) -> Result<(), StandaloneError> {
        match &mut self.journal {
            Some(journal) => Ok(journal.append(&entry())?),
            None => Ok(()),
        }
    }

    /// Makes the resume file durable, and with it how long the run has taken.
    pub(super) fn sync(&mut self, took: Duration) -> Result<(), StandaloneError> {
        self.keep(|| Entry::Took(took))?;
        match &mut self.journal {
            Some(journal) => Ok(journal.sync()?),
            None => Ok(()),
        }
    }

    /// The resume file's name.
    pub(super) fn resume_file(&self) -> Option<&std::path::Path> {
        self.journal.as_ref().map(Journal::path)
    }

    fn count(&mut self, pass: usize, batch: &ResultBatch, late: u64) -> Result<(), StandaloneError> {
        let Some(state) = self.passes.get_mut(pass) else { return Ok(()) };
        // Most answers of a port scan are of closed ports, which a table does not show: no row is made for them.
        let (outputs, discovery) = (&self.outputs, state.head.discovery);
        let mut rows = state.take(batch, late, |state| discovery || state == State::Open || outputs.wants(state))?;
        for row in &mut rows {
            row.seen = self.seen.get(&row.addr).copied();
        }
        self.seen.clear();
        self.note(pass, &rows);
        if let Some(PassState { head, .. }) = self.passes.get(pass) {
            let told = self.outputs.news(&News::Chunk { pass: head, batch, rows: &rows });
            self.check(told);
        }
        Ok(())
    }

    fn count_late(&mut self, pass: usize, answers: &[LateAnswer], at: SystemTime) {
        let Some(state) = self.passes.get_mut(pass) else { return };
        let rows: Vec<Row> = answers.iter().filter_map(|answer| state.take_late(answer, at)).collect();
        self.note(pass, &rows);
        if let Some(PassState { head, .. }) = self.passes.get(pass) {
            let told = self.outputs.news(&News::Late { pass: head, rows: &rows });
            self.check(told);
        }
    }

    fn count_hosts(&mut self, pass: usize, hosts: &[HostSeen]) {
        let Some(PassState { head, .. }) = self.passes.get(pass) else { return };
        let (targets, others): (Vec<HostSeen>, Vec<HostSeen>) = hosts.iter().partition(|host| head.holds(host.addr));
        if self.seen.len() + targets.len() <= SEEN_MAX {
            self.seen.extend(targets.into_iter().map(|host| (host.addr, host)));
        }
        if !others.is_empty() {
            let told = self.outputs.news(&News::Hosts(&others));
            self.check(told);
        }
    }

    /// Remembers what later stages need.
    fn note(&mut self, pass: usize, rows: &[Row]) {
        let discovery = self.passes.get(pass).is_some_and(|state| state.head.discovery);
        if discovery {
            self.up.extend(rows.iter().filter(|row| row.shows_host()).map(|row| row.addr));
        }
        let (Some(services), Some(state)) = (&mut self.services, self.passes.get(pass)) else { return };
        for row in rows.iter().filter(|row| row.state == State::Open) {
            let Some(position) = state.head.position(row) else { continue };
            services.open += 1;
            self.unserved.insert((pass as u8, position), *row);
            self.fresh.push((pass as u8, position));
        }
    }

    fn check(&mut self, told: Result<(), OutputError>) {
        if let Err(error) = told
            && self.failed.is_none()
        {
            self.failed = Some(error);
        }
    }

    /// Closes all passes and ends the outputs.
    pub(super) fn end(&mut self, excluded: u64, took: Duration) -> Result<Outcome, StandaloneError> {
        let discovery = self.passes.iter().position(|pass| pass.head.discovery);
        if let Some(discovery) = discovery.and_then(|at| self.passes.get_mut(at)) {
            discovery.close(None);
        }
        let kept_out = discovery.and_then(|at| self.passes.get(at)).map(|pass| pass.tally.clone());
        self.passes.iter_mut().filter(|pass| !pass.head.discovery).for_each(|pass| pass.close(kept_out.as_ref()));
        if let Some(services) = &mut self.services {
            services.stopped = services.open - services.done();
        }
        let unserved = self.services.is_some_and(|services| services.stopped > 0);
        let stopped = unserved || self.passes.iter().any(|pass| pass.tally.not_reached.contains_key(&NotReached::Stopped));
        let outcome = if stopped { Outcome::Incomplete } else { Outcome::Complete };
        let summary = Summary {
            passes: self.passes.clone(),
            services: self.services,
            proxies: self.proxies.clone(),
            excluded,
            took,
            ended: clock::wall(),
            outcome,
        };
        let unserved: Vec<Row> = self.unserved.values().copied().collect();
        self.outputs.news(&News::Unserved(&unserved))?;
        self.outputs.end(&summary)?;
        Ok(outcome)
    }
}

/// A moment of the wall clock, as it is kept.
pub(super) fn unix(at: SystemTime) -> UnixMillis {
    UnixMillis(u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX))
}
