//! Nmap's XML, version 1.05, as its DTD has it: read by ndiff, libnmap and many others.
//!
//! That form groups ports by host, and answers come in the order of the permuted space: so hosts are collected and written at
//! the end. A host costs what it has: open and filtered ports, and the closed ones as far as [`LISTED`] goes; silent ports are
//! counted, never kept.
//!
//! **Invariant:** for each host and protocol, listed + counted ports = the ports it was asked.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::time::SystemTime;

use picket_wire::host::HardwareAddress;
use picket_wire::job::{Technique, Transport};
use picket_wire::nmap_xml::{self as xml, escape, icmp_reason};
use picket_wire::result::{ResultBatch, State};
use picket_wire::service::{Service, ServiceOutcome};
use picket_wire::space::Target;
use picket_wire::units::PortSet;

use super::super::Outcome;
use super::super::results::{Found, News, PassHead, PassState, Row, RunHead, Summary};
use super::{Format, PROGRAM, stamp};

/// Ports of one state other than open that are listed one by one, as Nmap does; more are only counted.
const LISTED: usize = 25;
/// Hosts up to which ports that are not open are listed at all.
const DETAILED_HOSTS: usize = 4_096;
/// Addresses up to which hosts of a run without discovery are listed though they never answered.
const ASSUMED_UP: u64 = 256;

/// A reason as Nmap names it, and who said it where that is not the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Reason(&'static str, Option<IpAddr>);

fn reason(row: &Row) -> Reason {
    let from = |icmp_type, icmp_code, from| Reason(icmp_reason(row.addr.is_ipv4(), icmp_type, icmp_code), from);
    match (row.state, row.technique) {
        (State::Filtered { icmp_type, icmp_code }, _) => from(icmp_type, icmp_code, None),
        (State::FilteredBy { icmp_type, icmp_code, from: who }, _) => from(icmp_type, icmp_code, Some(who)),
        (State::Up, _) => Reason("echo-reply", None),
        (State::UpBy(by), _) => Reason(by.as_str(), None),
        (State::Open, Technique::Udp) => Reason("udp-response", None),
        (State::Open, Technique::Sctp) => Reason("init-ack", None),
        (State::Open, _) => Reason("syn-ack", None),
        (State::Closed, Technique::Connect) => Reason("conn-refused", None),
        (State::Closed, Technique::Udp) => Reason("port-unreach", None),
        (State::Closed, Technique::Sctp) => Reason("abort", None),
        (State::Closed | State::Unfiltered, _) => Reason("reset", None),
    }
}

#[derive(Debug, Clone, Copy)]
struct PortRow {
    state: &'static str,
    reason: Reason,
    ttl: u8,
}

/// What is known of one host.
#[derive(Debug, Default)]
struct Host {
    up: Option<(Reason, u8)>,
    mac: Option<HardwareAddress>,
    ports: BTreeMap<(Transport, u16), PortRow>,
    services: BTreeMap<(Transport, u16), ServiceOutcome>,
    /// Ports that are not listed.
    counted: BTreeMap<(Transport, &'static str, Reason), u64>,
    /// Ports that were not asked.
    unasked: BTreeMap<Transport, u64>,
    /// Smoothed round trip and its variation (RFC 6298), microseconds.
    times: Option<(u64, u64)>,
    seen: Option<(SystemTime, SystemTime)>,
}

impl Host {
    fn measure(&mut self, rtt: Duration, at: SystemTime) {
        let us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX / 16);
        self.times = Some(match self.times {
            None => (us, us / 2),
            Some((srtt, var)) => ((srtt * 7 + us) / 8, (var * 3 + srtt.abs_diff(us)) / 4),
        });
        self.seen = Some(self.seen.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
    }

    fn put(&mut self, row: &Row, transport: Transport, port: u16, detailed: bool) {
        let (state, reason) = (row.state.as_str(), reason(row));
        let alike = || self.ports.iter().filter(|((of, _), kept)| *of == transport && kept.state == state).count();
        let listed = row.state == State::Open || (detailed && self.counted_of(transport, state) == 0 && alike() < LISTED);
        if listed {
            self.ports.insert((transport, port), PortRow { state, reason, ttl: row.ttl });
            return;
        }
        *self.counted.entry((transport, state, reason)).or_default() += 1;
        if self.counted_of(transport, state) > 1 {
            return;
        }
        // All of a state are listed or all are counted.
        let mut counted: Vec<Reason> = Vec::new();
        self.ports.retain(|(of, _), kept| {
            let goes = *of == transport && kept.state == state;
            if goes {
                counted.push(kept.reason);
            }
            !goes
        });
        for reason in counted {
            *self.counted.entry((transport, state, reason)).or_default() += 1;
        }
    }

    fn counted_of(&self, transport: Transport, state: &str) -> u64 {
        self.counted.iter().filter(|((of, like, _), _)| *of == transport && *like == state).map(|(_, n)| n).sum()
    }

    /// How many ports of a protocol are listed or counted.
    fn known(&self, transport: Transport) -> u64 {
        let listed = self.ports.keys().filter(|(of, _)| *of == transport).count() as u64;
        let counted: u64 = self.counted.iter().filter(|((of, ..), _)| *of == transport).map(|(_, n)| n).sum();
        listed + counted + self.unasked.get(&transport).copied().unwrap_or(0)
    }
}

/// See the module.
pub(super) struct NmapXml {
    head: RunHead,
    hosts: BTreeMap<IpAddr, Host>,
    passes: Vec<(Technique, PortSet)>,
}

impl NmapXml {
    pub(super) fn new(head: RunHead) -> Self {
        Self { head, hosts: BTreeMap::new(), passes: Vec::new() }
    }

    fn rows(&mut self, pass: &PassHead, rows: &[Row]) {
        for row in rows {
            // A router that speaks for a host does not say that it is there.
            if !row.shows_host() && !self.hosts.contains_key(&row.addr) && pass.technique.transport().is_none() {
                continue;
            }
            let detailed = self.hosts.len() <= DETAILED_HOSTS;
            let host = self.hosts.entry(row.addr).or_default();
            host.measure(row.rtt, row.at);
            host.mac = host.mac.or(row.seen.and_then(|seen| seen.mac));
            match (row.transport(), row.port) {
                (Some(transport), Some(port)) => host.put(row, transport, port, detailed),
                _ => host.up = Some((reason(row), row.ttl)),
            }
        }
    }

    /// Ports that were not asked, of hosts that are known.
    fn unasked(&mut self, pass: &PassHead, batch: &ResultBatch) {
        let (Some(transport), Some(space)) = (pass.technique.transport(), &pass.space) else { return };
        let lists = core::iter::once(batch.refused()).chain(batch.not_reached().iter().map(|(_, runs)| runs));
        for offset in lists.flat_map(|runs| runs.iter()) {
            if let Some(host) = space.target(batch.from + offset).and_then(|target| self.hosts.get_mut(&target.addr)) {
                *host.unasked.entry(transport).or_default() += 1;
            }
        }
    }

    /// Counts the silent ports of every host: what was asked and is in no list.
    fn count_silent(&mut self, pass: &PassState) {
        let (Some(transport), Some(space), Some(ports)) = (pass.head.technique.transport(), &pass.head.space, &pass.head.ports) else {
            return;
        };
        let detailed = self.hosts.len() <= DETAILED_HOSTS;
        for (addr, host) in &mut self.hosts {
            let asked = match pass.is_complete() {
                true => space.index(Target { addr: *addr, port: ports.nth(0) }).map_or(0, |_| u64::from(ports.len())),
                false => {
                    let begun = |port| space.position(Target { addr: *addr, port: Some(port) }).is_some_and(|at| at < pass.next);
                    ports.iter().filter(|port| begun(*port)).count() as u64
                }
            };
            let silent = asked.saturating_sub(host.known(transport));
            let all_listed = host.ports.keys().filter(|(of, _)| *of == transport).count() as u64 == host.known(transport);
            if detailed && pass.is_complete() && all_listed && (1..=LISTED as u64).contains(&silent) {
                // All others are known one by one, and so these are too.
                let row = PortRow { state: pass.head.technique.silence(), reason: Reason("no-response", None), ttl: 0 };
                ports.iter().for_each(|port| {
                    host.ports.entry((transport, port)).or_insert(row);
                });
            } else if silent > 0 {
                let key = (transport, pass.head.technique.silence(), Reason("no-response", None));
                *host.counted.entry(key).or_default() += silent;
            }
        }
    }

    /// Hosts that were asked without discovery and never answered; few enough to name them all.
    fn assume_hosts(&mut self, summary: &Summary) {
        let Some(space) = summary.aims().find_map(|pass| pass.head.space.as_ref().filter(|_| pass.head.ports.is_some())) else { return };
        if summary.discovery().is_some() || space.addresses() > ASSUMED_UP {
            return;
        }
        let width = space.len() / space.addresses();
        for rank in 0..space.addresses() {
            if let Some(target) = space.natural(rank * width) {
                self.hosts.entry(target.addr).or_default();
            }
        }
    }

    fn write(&self, summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
        let scans: String = self.passes.iter().map(|(technique, ports)| scaninfo(*technique, ports)).collect();
        write!(out, "{}", xml::begin(PROGRAM, &self.head.arguments, stamp(self.head.started), &scans))?;
        let mut up = 0u64;
        for (addr, host) in &self.hosts {
            up += 1;
            self.write_host(*addr, host, out)?;
        }
        let total = self.head.targets.len().unwrap_or(u128::MAX);
        let hosts = summary.discovery().or_else(|| summary.passes.iter().find(|pass| pass.head.ports.is_none()));
        let down = hosts.map_or(0, |pass| pass.tally.coverage.silent);
        let Summary { outcome, ended, took, .. } = *summary;
        let complete = outcome == Outcome::Complete;
        write!(out, "{}", xml::end(&xml::End { verb: "scanned", complete, ended: stamp(ended), took, up, down, total }))
    }

    fn write_host(&self, addr: IpAddr, host: &Host, out: &mut dyn Write) -> io::Result<()> {
        let (first, last) = host.seen.unwrap_or((self.head.started, self.head.started));
        write!(out, "<host starttime=\"{}\" endtime=\"{}\">", stamp(first), stamp(last))?;
        let (Reason(reason, _), ttl) = host.up.unwrap_or((Reason("user-set", None), 0));
        writeln!(out, "<status state=\"up\" reason=\"{reason}\" reason_ttl=\"{ttl}\"/>")?;
        write!(out, "{}", xml::address(addr))?;
        if let Some(mac) = host.mac {
            writeln!(out, "<address addr=\"{}\" addrtype=\"mac\"/>", mac.to_string().to_uppercase())?;
        }
        write!(out, "{}", xml::hostnames(self.head.name_of(addr), None))?;
        if !self.passes.is_empty() {
            write_ports(host, out)?;
        }
        if let Some((srtt, var)) = host.times {
            writeln!(out, "<times srtt=\"{srtt}\" rttvar=\"{var}\" to=\"{}\"/>", (srtt + 4 * var).max(100_000))?;
        }
        writeln!(out, "</host>")
    }
}

impl Format for NmapXml {
    fn news(&mut self, news: &News<'_>, _out: &mut dyn Write) -> io::Result<()> {
        match news {
            News::Chunk { pass, batch, rows } => {
                self.rows(pass, rows);
                self.unasked(pass, batch);
            }
            News::Late { pass, rows } => self.rows(pass, rows),
            News::Service(Found { row, outcome }) => {
                if let (Some(transport), Some(port)) = (row.transport(), row.port) {
                    self.hosts.entry(row.addr).or_default().services.insert((transport, port), outcome.clone());
                }
            }
            News::Unserved(_) | News::Hosts(_) => {}
        }
        Ok(())
    }

    fn end(&mut self, summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
        self.assume_hosts(summary);
        for pass in summary.aims() {
            if let Some(ports) = &pass.head.ports {
                self.passes.push((pass.head.technique, ports.clone()));
            }
            self.count_silent(pass);
        }
        self.write(summary, out)
    }
}

fn scaninfo(technique: Technique, ports: &PortSet) -> String {
    let kind = match technique {
        Technique::Connect => "connect",
        Technique::Ack => "ack",
        Technique::Udp => "udp",
        Technique::Sctp => "sctpinit",
        _ => "syn",
    };
    let protocol = technique.transport().map_or("tcp", Transport::as_str);
    let ranges = ports.ranges().iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    let services = ranges.collect::<Vec<_>>().join(",");
    format!("<scaninfo type=\"{kind}\" protocol=\"{protocol}\" numservices=\"{}\" services=\"{services}\"/>\n", ports.len())
}

fn write_ports(host: &Host, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "<ports>")?;
    let states: BTreeSet<&'static str> = host.counted.keys().map(|(_, state, _)| *state).collect();
    for state in states {
        let of = || host.counted.iter().filter(|((_, like, _), _)| *like == state);
        writeln!(out, "<extraports state=\"{state}\" count=\"{}\">", of().map(|(_, n)| n).sum::<u64>())?;
        for ((transport, _, Reason(reason, _)), count) in of() {
            writeln!(out, "<extrareasons reason=\"{reason}\" count=\"{count}\" proto=\"{}\"/>", transport.as_str())?;
        }
        writeln!(out, "</extraports>")?;
    }
    for ((transport, port), PortRow { state, reason: Reason(reason, from), ttl }) in &host.ports {
        write!(out, "<port protocol=\"{}\" portid=\"{port}\">", transport.as_str())?;
        write!(out, "<state state=\"{state}\" reason=\"{reason}\" reason_ttl=\"{ttl}\"")?;
        if let Some(from) = from {
            write!(out, " reason_ip=\"{from}\"")?;
        }
        write!(out, "/>")?;
        if let Some(outcome) = host.services.get(&(*transport, *port)) {
            write_service(outcome, out)?;
        }
        writeln!(out, "</port>")?;
    }
    writeln!(out, "</ports>")
}

fn write_service(outcome: &ServiceOutcome, out: &mut dyn Write) -> io::Result<()> {
    let Service { name, tls, product, version, extra, os, hostname, device, cpes, .. } = match outcome {
        ServiceOutcome::Identified(service) => service.as_ref(),
        ServiceOutcome::Unidentified { .. } => return write!(out, "<service name=\"unknown\" method=\"probed\" conf=\"0\"/>"),
        _ => return Ok(()),
    };
    write!(out, "<service name=\"{}\"", escape(name))?;
    let texts =
        [("product", product), ("version", version), ("extrainfo", extra), ("hostname", hostname), ("ostype", os), ("devicetype", device)];
    for (key, text) in texts {
        if let Some(text) = text {
            write!(out, " {key}=\"{}\"", escape(text))?;
        }
    }
    if *tls {
        write!(out, " tunnel=\"ssl\"")?;
    }
    write!(out, " method=\"probed\" conf=\"10\">")?;
    for cpe in cpes {
        write!(out, "<cpe>{}</cpe>", escape(cpe))?;
    }
    write!(out, "</service>")
}
