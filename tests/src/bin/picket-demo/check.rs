//! What a job found against what is true in the lab: every answer right, every difference named, the coverage exact. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use picket_controller::view::{JobState, JobView, ResultRow};
use picket_tests::lab::truth::{HostState, Network, PortTruth, Truth};

/// More differences than this are counted, not named.
const NAMED: usize = 10;

/// What a job was to find out, and what is true of it.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    /// The truths of all segments; where the flag is set, a router may say of a dead host that it is not there.
    pub(crate) truths: Vec<(&'a Truth, bool)>,
    /// Never asked, by policy.
    pub(crate) forbidden: Network,
    /// The ports that were asked; none for a search for hosts.
    pub(crate) ports: &'a [u16],
    /// The probes that each did all of it; none where they shared it.
    pub(crate) each: &'a [&'a str],
}

/// What a target must have been found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// An answer with this state.
    Answer(&'static str),
    /// No answer of its own; an ICMP error (`filtered`) where the flag is set.
    None { filtered: bool },
    /// Not asked at all.
    Forbidden,
}

type Key<'a> = (Option<&'a str>, IpAddr, Option<u16>);

/// What was compared, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// Targets, times the vantage points.
    pub(crate) targets: u64,
    /// Answers that had to be found.
    pub(crate) answers: u64,
}

impl Question<'_> {
    fn expected(&self, address: IpAddr, host: HostState, port: Option<u16>, truth: &Truth, told: bool) -> Expected {
        if self.forbidden.contains(address) {
            return Expected::Forbidden;
        }
        let silent = Expected::None { filtered: told && host == HostState::Dead };
        match port {
            None if host == HostState::Up => Expected::Answer("up"),
            None => silent,
            Some(port) => match truth.state(address, port) {
                Some(PortTruth::Open) => Expected::Answer("open"),
                Some(PortTruth::Closed) => Expected::Answer("closed"),
                Some(PortTruth::Silent) | None => silent,
            },
        }
    }

    fn all(&self) -> BTreeMap<Key<'_>, Expected> {
        let vantages: Vec<Option<&str>> =
            if self.each.is_empty() { vec![None] } else { self.each.iter().map(|name| Some(*name)).collect() };
        let ports: Vec<Option<u16>> = if self.ports.is_empty() { vec![None] } else { self.ports.iter().copied().map(Some).collect() };
        let mut all = BTreeMap::new();
        for (truth, told) in &self.truths {
            for (address, host) in truth.hosts() {
                for port in &ports {
                    let expected = self.expected(address, host, *port, truth, *told);
                    all.extend(vantages.iter().map(|vantage| ((*vantage, address, *port), expected)));
                }
            }
        }
        all
    }

    /// Compares a finished job and all its rows with the truth.
    ///
    /// # Errors
    /// The differences, in words.
    pub(crate) fn compare(&self, job: &JobView, rows: &[ResultRow]) -> Result<Compared, Vec<String>> {
        let mut differences = Differences::default();
        if job.state != JobState::Done {
            let reason = job.reason.as_deref().unwrap_or("no reason given");
            differences.add(format!("job {} is {:?}: {reason}", job.id, job.state));
        }
        let all = self.all();
        let mut found = BTreeSet::new();
        for row in rows {
            let vantage = (!self.each.is_empty()).then_some(row.probe.as_str());
            let key = (vantage, row.addr, row.port);
            let what = name(row.addr, row.port);
            if !found.insert(key) {
                differences.add(format!("{what} was reported twice"));
            }
            let right = match all.get(&key) {
                Some(Expected::Answer(state)) => row.state == *state,
                Some(Expected::None { filtered }) => *filtered && row.state == "filtered",
                Some(Expected::Forbidden) | None => false,
            };
            if !right {
                let truth = all.get(&key).map_or_else(|| "not asked for".to_owned(), |expected| expected.to_string());
                differences.add(format!("{what} was found {} ({}) by {}, but is {truth}", row.state, row.reason, row.probe));
            }
        }
        for (key, expected) in &all {
            if matches!(expected, Expected::Answer(_)) && !found.contains(key) {
                let by = key.0.map(|probe| format!(" by {probe}")).unwrap_or_default();
                differences.add(format!("{} is {expected} and was not found{by}", name(key.1, key.2)));
            }
        }
        self.sums(job, rows, &all, &mut differences);
        let answers = all.values().filter(|expected| matches!(expected, Expected::Answer(_))).count() as u64;
        differences.finish().map(|()| Compared { targets: all.len() as u64, answers })
    }

    /// The coverage against the truth and against the rows.
    fn sums(&self, job: &JobView, rows: &[ResultRow], all: &BTreeMap<Key<'_>, Expected>, differences: &mut Differences) {
        let c = &job.coverage;
        let expected = |wanted: Expected| all.values().filter(|expected| **expected == wanted).count() as u64;
        let filtered = rows.iter().filter(|row| row.state == "filtered").count() as u64;
        let quiet = all.values().filter(|expected| matches!(expected, Expected::None { .. })).count() as u64;
        for (what, counted, right) in [
            ("asked", c.asked, all.len() as u64),
            ("up", c.up, expected(Expected::Answer("up"))),
            ("open", c.open, expected(Expected::Answer("open"))),
            ("closed", c.closed, expected(Expected::Answer("closed"))),
            ("filtered", c.filtered, filtered),
            ("refused by policy", c.refused, expected(Expected::Forbidden)),
            ("filtered, silent and not reached", c.filtered + c.silent + c.not_reached, quiet),
        ] {
            if counted != right {
                differences.add(format!("the coverage counts {counted} {what}, right is {right}"));
            }
        }
        if !c.adds_up() {
            differences.add(format!("the coverage does not add up: {c:?}"));
        }
        let parts = job.probes.iter().fold((0, 0), |(asked, packets), part| (asked + part.coverage.asked, packets + part.coverage.packets));
        if parts != (c.asked, c.packets) {
            differences.add(format!("the parts of the probes sum up to (asked, packets) {parts:?}, the job to {:?}", (c.asked, c.packets)));
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Answer(state) => state,
            Self::None { .. } => "silent",
            Self::Forbidden => "off limits",
        })
    }
}

fn name(address: IpAddr, port: Option<u16>) -> String {
    port.map_or_else(|| address.to_string(), |port| std::net::SocketAddr::new(address, port).to_string())
}

#[derive(Debug, Default)]
struct Differences {
    named: Vec<String>,
    more: usize,
}

impl Differences {
    fn add(&mut self, text: String) {
        if self.named.len() < NAMED { self.named.push(text) } else { self.more += 1 }
    }

    fn finish(mut self) -> Result<(), Vec<String>> {
        if self.more > 0 {
            self.named.push(format!("... and {} more differences", self.more));
        }
        if self.named.is_empty() { Ok(()) } else { Err(self.named) }
    }
}

#[cfg(test)]
mod tests {
    use picket_tests::lab::truth::TruthSpec;
    use serde_json::json;

    use super::*;

    const PORTS: [u16; 2] = [22, 80];

    fn truth() -> Truth {
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let spec = TruthSpec::new(1, &["198.18.0.0/30"], &PORTS).unwrap().host(at("198.18.0.0"), HostState::Dead);
        let spec = [1, 2, 3].iter().fold(spec, |spec, last| spec.host(at(&format!("198.18.0.{last}")), HostState::Up));
        let states = [(1, 22, PortTruth::Open), (1, 80, PortTruth::Closed), (2, 22, PortTruth::Silent), (2, 80, PortTruth::Open)];
        states.into_iter().fold(spec, |spec, (last, port, state)| spec.port(at(&format!("198.18.0.{last}")), port, state)).build().unwrap()
    }

    fn row(last: u8, port: u16, state: &str) -> ResultRow {
        serde_json::from_value(json!({
            "site": "hq", "probe": "north", "job": "65f0c1d200a4b7e1", "addr": format!("198.18.0.{last}"), "port": port, "state": state,
            "reason": "r", "rtt_us": 1, "ttl": 64, "seen": "2026-11-21T10:00:00Z"
        }))
        .unwrap()
    }

    fn job(open: u64, silent: u64) -> JobView {
        let coverage = json!({
            "asked": 8, "up": 0, "open": open, "closed": 1, "filtered": 1, "silent": silent, "refused": 2, "not_reached": 0, "packets": 9
        });
        serde_json::from_value(json!({
            "id": "65f0c1d200a4b7e1", "name": null, "state": "done", "reason": null, "summary": "", "technique": "syn", "mode": "split",
            "created": "", "started": null, "ended": null, "total": 8, "coverage": coverage, "asked_so_far": 8, "rate": 1.0,
            "seconds_left": null, "version": 1,
            "probes": [{"probe": "north", "coverage": coverage, "leases": 0, "limit": "1kpps"}]
        }))
        .unwrap()
    }

    #[test]
    fn the_right_answer_is_right_and_every_fault_has_a_name() {
        let truth = truth();
        let forbidden = "198.18.0.3/32".parse().unwrap();
        let question = Question { truths: vec![(&truth, true)], forbidden, ports: &PORTS, each: &[] };
        let right = [row(0, 22, "filtered"), row(1, 22, "open"), row(1, 80, "closed"), row(2, 80, "open")];
        assert_eq!(question.compare(&job(2, 2), &right), Ok(Compared { targets: 8, answers: 3 }));

        let faults = |rows: &[ResultRow], job: &JobView| question.compare(job, rows).unwrap_err().join("; ");
        let mut rows = right.to_vec();
        rows[1].state = "closed".to_owned();
        assert!(faults(&rows, &job(2, 2)).contains("198.18.0.1:22 was found closed (r) by north, but is open"));
        assert!(faults(&right[1..3], &job(2, 2)).contains("198.18.0.2:80 is open and was not found"));
        let twice = [&right[..], &[row(1, 22, "open")]].concat();
        assert!(faults(&twice, &job(2, 2)).contains("198.18.0.1:22 was reported twice"));
        let off = [&right[..], &[row(3, 22, "closed")]].concat();
        assert!(faults(&off, &job(2, 2)).contains("198.18.0.3:22 was found closed (r) by north, but is off limits"));
        let stray = [&right[..], &[row(2, 22, "filtered")]].concat();
        assert!(faults(&stray, &job(2, 2)).contains("198.18.0.2:22 was found filtered (r) by north, but is silent"));
        let sums = faults(&right, &job(1, 2));
        assert!(sums.contains("counts 1 open, right is 2") && sums.contains("does not add up"), "{sums}");
    }

    #[test]
    fn each_vantage_point_answers_for_itself() {
        let truth = truth();
        let forbidden = "198.18.0.3/32".parse().unwrap();
        let question = Question { truths: vec![(&truth, false)], forbidden, ports: &PORTS, each: &["north", "south"] };
        let rows = [row(1, 22, "open"), row(1, 80, "closed"), row(2, 80, "open")];
        let faults = question.compare(&job(2, 2), &rows).unwrap_err().join("; ");
        assert!(faults.contains("198.18.0.2:80 is open and was not found by south"), "{faults}");
        assert!(!faults.contains("by north"), "{faults}");
    }
}
