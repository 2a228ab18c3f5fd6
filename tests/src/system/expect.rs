//! What a right answer of the fleet is, computed from the lab's truth alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Result, ensure};
use picket_controller::view::ResultRow;
use picket_wire::result::Coverage;

use crate::lab::truth::{HostState, Network, PortTruth, Truth};
use crate::lab::watch::Capture;

/// What was found, free of times: address, port and state.
pub type Found = BTreeSet<(IpAddr, Option<u16>, String)>;

/// What a job over networks of a truth must come to.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Every answer.
    pub found: Found,
    /// The counts; packets are not judged here.
    pub coverage: Coverage,
    /// Every target that is asked, and whether it stays silent.
    pub asked: BTreeMap<(IpAddr, Option<u16>), bool>,
    /// Every address that policy refuses or that is excluded.
    pub forbidden: BTreeSet<IpAddr>,
}

/// Which part of a truth is measured.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Addresses that policy refuses.
    pub refused: Vec<Network>,
    /// Addresses that the job leaves out.
    pub excluded: Vec<Network>,
}

impl Scope {
    /// From networks as text.
    ///
    /// # Panics
    /// When one is not a network.
    #[must_use]
    pub fn new(refused: &[&str], excluded: &[&str]) -> Self {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a network of the test")).collect();
        Self { refused: networks(refused), excluded: networks(excluded) }
    }

    fn is_in(networks: &[Network], address: IpAddr) -> bool {
        networks.iter().any(|network| network.contains(address))
    }
}

impl Expected {
    /// Of a port scan of a truth's networks.
    #[must_use]
    pub fn scan(truths: &[&Truth], ports: &[u16], scope: &Scope) -> Self {
        let mut this = Self::default();
        for (address, _) in truths.iter().flat_map(|truth| truth.hosts()) {
            for port in ports {
                let state = truths.iter().find_map(|truth| truth.state(address, *port)).unwrap_or(PortTruth::Silent);
                let answer = match state {
                    PortTruth::Open => Some("open"),
                    PortTruth::Closed => Some("closed"),
                    PortTruth::Silent => None,
                };
                this.add(address, Some(*port), answer, scope);
            }
        }
        this
    }

    /// Of a host discovery of a truth's networks.
    #[must_use]
    pub fn discovery(truths: &[&Truth], scope: &Scope) -> Self {
        let mut this = Self::default();
        for (address, state) in truths.iter().flat_map(|truth| truth.hosts()) {
            this.add(address, None, (state == HostState::Up).then_some("up"), scope);
        }
        this
    }

    fn add(&mut self, address: IpAddr, port: Option<u16>, answer: Option<&str>, scope: &Scope) {
        if Scope::is_in(&scope.excluded, address) {
            self.forbidden.insert(address);
            return;
        }
        self.coverage.asked += 1;
        if Scope::is_in(&scope.refused, address) {
            self.forbidden.insert(address);
            self.coverage.refused += 1;
            return;
        }
        match answer {
            Some("up") => self.coverage.up += 1,
            Some("open") => self.coverage.open += 1,
            Some(_) => self.coverage.closed += 1,
            None => self.coverage.silent += 1,
        }
        self.asked.insert((address, port), answer.is_none());
        if let Some(answer) = answer {
            self.found.insert((address, port, answer.to_owned()));
        }
    }

    /// Checks rows: every answer is there once, and nothing else.
    ///
    /// # Errors
    /// When one is missing, wrong or double; the error shows some.
    pub fn check_rows(&self, rows: &[ResultRow]) -> Result<()> {
        let found = found(rows);
        ensure!(found.len() == rows.len(), "{} of {} rows are there twice", rows.len() - found.len(), rows.len());
        let few = |set: Vec<&(IpAddr, Option<u16>, String)>| format!("{}, for one {:?}", set.len(), set.first());
        let missing: Vec<_> = self.found.difference(&found).collect();
        let wrong: Vec<_> = found.difference(&self.found).collect();
        ensure!(missing.is_empty() && wrong.is_empty(), "missing or other: {}; false: {}", few(missing), few(wrong));
        Ok(())
    }

    /// Checks what was seen outside, of all vantage points together that share the work: every target was asked, a silent one
    /// `attempts` times, nothing more often, and nothing that is forbidden at all.
    ///
    /// # Errors
    /// When a packet is too much or missing.
    pub fn check_wire(&self, captures: &[&Capture], attempts: u64) -> Result<()> {
        let asked = asked(captures);
        for (target, silent) in &self.asked {
            let count = asked.get(target).copied().unwrap_or(0);
            let right = if *silent { count == attempts } else { (1..=attempts).contains(&count) };
            ensure!(right, "{target:?} (silent: {silent}) was asked {count} times, {attempts} attempts are asked for");
        }
        let other = asked.keys().find(|target| !self.asked.contains_key(*target));
        ensure!(other.is_none(), "{other:?} was asked and is no target");
        let strayed: u64 = captures.iter().map(|capture| capture.sent_to(|address| self.forbidden.contains(&address))).sum();
        ensure!(strayed == 0, "{strayed} packets went where policy or the job forbids");
        Ok(())
    }

    /// Checks a coverage: it adds up and equals the truth's counts `times` over.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_coverage(&self, coverage: &Coverage, times: u64) -> Result<()> {
        ensure!(coverage.adds_up(), "{coverage:?} does not add up");
        let c = &self.coverage;
        let wanted = [c.asked, c.up, c.open, c.closed, c.filtered, c.silent, c.refused, c.not_reached].map(|count| count * times);
        let c = coverage;
        let counts = [c.asked, c.up, c.open, c.closed, c.filtered, c.silent, c.refused, c.not_reached];
        ensure!(counts == wanted, "asked, up, open, closed, filtered, silent, refused, not reached: {counts:?}, by the truth {wanted:?}");
        Ok(())
    }
}

/// How often each target was asked, over several captures. Targets of a discovery have no port.
#[must_use]
pub fn asked(captures: &[&Capture]) -> BTreeMap<(IpAddr, Option<u16>), u64> {
    let mut asked = BTreeMap::new();
    for capture in captures {
        let ports = capture.probed_ports(|_| true).into_iter().map(|((address, port), count)| ((address, Some(port)), count));
        let hosts = capture.probed_hosts(|_| true).into_iter().map(|(address, count)| ((address, None), count));
        for (target, count) in ports.chain(hosts) {
            *asked.entry(target).or_default() += count;
        }
    }
    asked
}

/// Rows without times.
#[must_use]
pub fn found(rows: &[ResultRow]) -> Found {
    rows.iter().map(|row| (row.addr, row.port, row.state.clone())).collect()
}
