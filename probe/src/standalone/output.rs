//! Results on standard output: rows for people or objects for programs, and the coverage at the end.
//!
//! Rows are written as chunks come, so that memory does not grow with the number of answers.

use core::time::Duration;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;

use picket_wire::host::HostSeen;
use picket_wire::result::{Answer, Coverage, NotReached, State};
use picket_wire::space::{Target, TargetSpace};
use serde_json::json;

use super::Outcome;
use super::args::OutputArg;
use super::progress::span;
use crate::scan::report::{ChunkReport, Done, LateReport, ProxySeen};

/// Writes results.
pub(super) struct Output<W> {
    to: W,
    format: OutputArg,
    all: bool,
    /// Width of the address column.
    width: usize,
    ports: bool,
    head: bool,
    coverage: Coverage,
    not_reached: BTreeMap<NotReached, u64>,
    listed: u64,
    /// What was seen on the link of the next chunk's targets.
    hosts: BTreeMap<IpAddr, HostSeen>,
    proxies: Vec<ProxySeen>,
}

impl<W: Write> Output<W> {
    pub(super) fn new(to: W, format: OutputArg, all: bool, space: &TargetSpace, has_v6: bool) -> Self {
        let width = if has_v6 { 39 } else { 15 };
        let ports = space.target(0).is_some_and(|target| target.port.is_some());
        Self {
            to,
            format,
            all,
            width,
            ports,
            head: false,
            coverage: Coverage::default(),
            not_reached: BTreeMap::new(),
            listed: 0,
            hosts: BTreeMap::new(),
            proxies: Vec::new(),
        }
    }

    /// Keeps what was seen on the link for the rows of the chunk that follows.
    pub(super) fn hosts(&mut self, hosts: &[HostSeen]) {
        self.hosts.extend(hosts.iter().map(|host| (host.addr, *host)));
    }

    /// Keeps a proxy for the end.
    pub(super) fn proxy(&mut self, proxy: ProxySeen) {
        self.proxies.push(proxy);
    }

    /// Writes the answers of a chunk, in natural order.
    pub(super) fn chunk(&mut self, space: &TargetSpace, report: &ChunkReport) -> io::Result<()> {
        self.coverage += report.coverage();
        for (why, runs) in &report.not_reached {
            *self.not_reached.entry(*why).or_default() += runs.count();
        }
        let target = |answer: &Answer| space.target(report.from + answer.offset);
        let mut rows: Vec<(Target, &Answer)> =
            report.answers.iter().filter(|answer| self.wants(answer.state)).filter_map(|answer| Some((target(answer)?, answer))).collect();
        rows.sort_unstable_by_key(|(target, _)| *target);
        for (target, answer) in rows {
            self.write(target, answer)?;
        }
        self.hosts.clear();
        self.to.flush()
    }

    /// Writes an answer that came after its range was reported as silent there.
    pub(super) fn late(&mut self, space: &TargetSpace, late: &LateReport) -> io::Result<()> {
        self.coverage.silent = self.coverage.silent.saturating_sub(1);
        self.coverage.add_answers(late.state, 1);
        if let Some(target) = space.target(late.position).filter(|_| self.wants(late.state)) {
            self.write(target, &Answer { offset: 0, state: late.state, rtt: late.rtt, ttl: late.ttl })?;
        }
        self.to.flush()
    }

    fn wants(&self, state: State) -> bool {
        self.all || self.format == OutputArg::Ndjson || matches!(state, State::Open | State::Up | State::UpBy(_) | State::Unfiltered)
    }

    fn write(&mut self, target: Target, answer: &Answer) -> io::Result<()> {
        self.listed += 1;
        match self.format {
            OutputArg::Table => self.row(target, answer),
            OutputArg::Ndjson => writeln!(self.to, "{}", object(target, answer, self.hosts.get(&target.addr))),
        }
    }

    fn row(&mut self, target: Target, answer: &Answer) -> io::Result<()> {
        let width = self.width;
        if !core::mem::replace(&mut self.head, true) {
            let port = if self.ports { " PORT " } else { "" };
            writeln!(self.to, "{:width$} {port} STATE     {:>10} TTL", "ADDRESS", "RTT")?;
        }
        let state = match answer.state {
            State::Filtered { icmp_type, icmp_code } => format!("filtered (icmp {icmp_type}/{icmp_code})"),
            state => state.as_str().to_owned(),
        };
        let rtt = format!("{:.3} ms", answer.rtt.as_secs_f64() * 1e3);
        let ttl = if answer.ttl == 0 { "-".to_owned() } else { answer.ttl.to_string() };
        let port = target.port.map_or_else(String::new, |port| format!("{port:>5} "));
        let mac = self.hosts.get(&target.addr).and_then(|seen| seen.mac).map_or_else(String::new, |mac| format!(" {mac}"));
        writeln!(self.to, "{:width$} {port} {state:9} {rtt:>10} {ttl:>3}{mac}", target.addr.to_string())
    }

    /// Writes the coverage. What was not begun counts as stopped.
    pub(super) fn finish(&mut self, space: &TargetSpace, done: &Done, took: Duration) -> io::Result<Outcome> {
        let never = space.len() - done.next;
        self.coverage += Coverage { asked: never, not_reached: never, ..Coverage::default() };
        if never > 0 {
            *self.not_reached.entry(NotReached::Stopped).or_default() += never;
        }
        debug_assert!(self.coverage.adds_up());
        let outcome = match self.not_reached.contains_key(&NotReached::Stopped) {
            true => Outcome::Incomplete,
            false => Outcome::Complete,
        };
        match self.format {
            OutputArg::Table => self.table_end(space, done, took)?,
            OutputArg::Ndjson => writeln!(self.to, "{}", self.object_end(space, done, took, outcome))?,
        }
        self.to.flush()?;
        Ok(outcome)
    }

    fn table_end(&mut self, space: &TargetSpace, done: &Done, took: Duration) -> io::Result<()> {
        let Coverage { asked, up, open, closed, filtered, silent, refused, not_reached, packets, .. } = self.coverage;
        let answered = if self.ports { format!("{open} open + {closed} closed") } else { format!("{up} up") };
        if self.listed > 0 {
            writeln!(self.to)?;
        }
        writeln!(
            self.to,
            "{asked} targets = {answered} + {filtered} filtered + {silent} silent + {refused} refused by policy + {not_reached} not reached"
        )?;
        if not_reached > 0 {
            let reasons: Vec<String> = self.not_reached.iter().map(|(why, count)| format!("{count} {}", why.as_str())).collect();
            writeln!(self.to, "not reached: {}", reasons.join(", "))?;
        }
        if space.excluded() > 0 {
            writeln!(self.to, "{} more were excluded", space.excluded())?;
        }
        let rate = packets as f64 / took.as_secs_f64().max(1e-6);
        let stats = done.stats;
        write!(self.to, "{packets} packets in {} ({rate:.0} pps)", span(took))?;
        if stats.duplicates + stats.late > 0 {
            write!(self.to, ", {} duplicate and {} late answers", stats.duplicates, stats.late)?;
        }
        writeln!(self.to)
    }

    fn object_end(&self, space: &TargetSpace, done: &Done, took: Duration, outcome: Outcome) -> serde_json::Value {
        let reasons: serde_json::Map<String, serde_json::Value> =
            self.not_reached.iter().map(|(why, count)| (reason_key(*why).to_owned(), json!(count))).collect();
        let c = self.coverage;
        json!({
            "type": "coverage",
            "complete": outcome == Outcome::Complete,
            "asked": c.asked,
            "answered": c.answered(),
            "up": c.up,
            "open": c.open,
            "closed": c.closed,
            "filtered": c.filtered,
            "silent": c.silent,
            "refused": c.refused,
            "not_reached": c.not_reached,
            "not_reached_reasons": reasons,
            "excluded": u64::try_from(space.excluded()).unwrap_or(u64::MAX),
            "packets": c.packets,
            "duplicates": done.stats.duplicates,
            "late": done.stats.late,
            "seconds": took.as_secs_f64(),
            "proxies": self.proxies.iter().map(|p| json!({ "mac": p.mac.to_string(), "addresses": p.addresses })).collect::<Vec<_>>(),
        })
    }
}

fn reason_key(why: NotReached) -> &'static str {
    match why {
        NotReached::NoNeighbour => "no_neighbour",
        NotReached::NoRoute => "no_route",
        NotReached::LinkError => "link_error",
        NotReached::Stopped => "stopped",
    }
}

fn object(target: Target, answer: &Answer, seen: Option<&HostSeen>) -> serde_json::Value {
    let mut object = json!({ "type": "answer", "addr": target.addr.to_string() });
    if let Some(port) = target.port {
        object["port"] = json!(port);
    }
    object["state"] = json!(answer.state.as_str());
    if let State::Filtered { icmp_type, icmp_code } = answer.state {
        object["icmp"] = json!({ "type": icmp_type, "code": icmp_code });
    }
    object["rtt_us"] = json!(u64::try_from(answer.rtt.as_micros()).unwrap_or(u64::MAX));
    if answer.ttl > 0 {
        object["ttl"] = json!(answer.ttl);
    }
    if let Some(HostSeen { mac: Some(mac), how, .. }) = seen {
        object["mac"] = json!(mac.to_string());
        object["how"] = json!(how.as_str());
    }
    object
}

#[cfg(test)]
mod tests {
    use picket_wire::addr::parse_set;
    use picket_wire::result::Runs;
    use picket_wire::space::TargetSpec;

    use super::*;
    use crate::net::time::Instant;
    use crate::scan::report::Stats;

    fn shown(format: OutputArg, all: bool) -> (String, Outcome) {
        let spec = TargetSpec {
            include: parse_set("198.18.0.0/30").unwrap(),
            exclude: parse_set("198.18.0.3").unwrap(),
            ports: Some("80,443".parse().unwrap()),
            seed: 0,
        };
        let space = TargetSpace::new(&spec).unwrap();
        let offset = |addr: &str, port| space.position(Target { addr: addr.parse().unwrap(), port: Some(port) }).unwrap();
        let answer = |addr, port, state| Answer { offset: offset(addr, port), state, rtt: Duration::from_micros(1234), ttl: 63 };
        let mut answers = vec![
            answer("198.18.0.2", 80, State::Closed),
            answer("198.18.0.1", 443, State::Open),
            answer("198.18.0.1", 80, State::Filtered { icmp_type: 3, icmp_code: 13 }),
        ];
        answers.sort_by_key(|answer| answer.offset);
        let report = ChunkReport {
            from: 0,
            to: 6,
            started: Instant::ZERO,
            ended: Instant::ZERO,
            sent_packets: 8,
            sent_bytes: 352,
            answers,
            refused: Runs::from_ascending([offset("198.18.0.0", 80)]),
            not_reached: vec![(NotReached::Stopped, Runs::from_ascending([offset("198.18.0.0", 443)]))],
            duplicates: 1,
            late: 0,
        };
        let mut output = Output::new(Vec::new(), format, all, &space, false);
        output.chunk(&space, &report).unwrap();
        let stats = Stats { duplicates: 1, ..Stats::default() };
        let outcome = output.finish(&space, &Done { next: 6, stats }, Duration::from_secs(2)).unwrap();
        (String::from_utf8(output.to).unwrap(), outcome)
    }

    #[test]
    fn tables_are_for_people() {
        let (text, outcome) = shown(OutputArg::Table, true);
        let expected = "\
ADDRESS          PORT  STATE            RTT TTL
198.18.0.1         80  filtered (icmp 3/13)   1.234 ms  63
198.18.0.1        443  open        1.234 ms  63
198.18.0.2         80  closed      1.234 ms  63

6 targets = 1 open + 1 closed + 1 filtered + 1 silent + 1 refused by policy + 1 not reached
not reached: 1 stopped before its turn
2 more were excluded
8 packets in 2.0 s (4 pps), 1 duplicate and 0 late answers
";
        assert_eq!((text.as_str(), outcome), (expected, Outcome::Incomplete));
        let (text, _) = shown(OutputArg::Table, false);
        assert!(text.contains("open") && !text.contains("closed  "), "{text}");
    }

    #[test]
    fn lines_of_json_are_for_programs() {
        let (text, _) = shown(OutputArg::Ndjson, false);
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(
            lines[0],
            json!({"type": "answer", "addr": "198.18.0.1", "port": 80, "state": "filtered", "icmp": {"type": 3, "code": 13}, "rtt_us": 1234, "ttl": 63})
        );
        let end = &lines[3];
        assert_eq!(
            (&end["asked"], &end["silent"], &end["complete"], &end["not_reached_reasons"]),
            (&json!(6), &json!(1), &json!(false), &json!({"stopped": 1}))
        );
    }
}
