//! Rows for people, and the coverage in words at the end.
//!
//! Rows are written as they come, so that memory does not grow with their number.

use std::io::{self, Write};

use picket_wire::job::Technique;
use picket_wire::result::{Coverage, State};
use picket_wire::service::{Service, ServiceOutcome};

use super::super::progress::span;
use super::super::results::{Found, News, PassState, Row, RunHead, Summary, Tally};
use super::{Format, harmless};

/// See the module.
pub(super) struct Table {
    all: bool,
    services: bool,
    ports: bool,
    /// Width of the address column.
    width: usize,
    head: bool,
}

impl Table {
    pub(super) fn new(head: &RunHead) -> Self {
        let width = if head.targets.families().1 { 39 } else { 15 };
        Self { all: head.all, services: head.services, ports: head.ports, width, head: false }
    }

    fn row(&mut self, row: &Row, service: Option<&ServiceOutcome>, out: &mut dyn Write) -> io::Result<()> {
        let width = self.width;
        if !core::mem::replace(&mut self.head, true) {
            let port = if self.ports { " PORT      " } else { " " };
            let service = if self.services { "  SERVICE" } else { "" };
            writeln!(out, "{:width$}{port}STATE      REASON                RTT  TTL{service}", "ADDRESS")?;
        }
        let port = match (self.ports, row.port, row.transport()) {
            (true, Some(port), Some(transport)) => format!(" {:<9} ", format!("{port}/{}", transport.as_str())),
            (true, ..) => format!(" {:<9} ", "-"),
            (false, ..) => " ".to_owned(),
        };
        let rtt = format!("{:.3} ms", row.rtt.as_secs_f64() * 1e3);
        let ttl = if row.ttl == 0 { "-".to_owned() } else { row.ttl.to_string() };
        let (state, reason) = (row.state.as_str(), row.state.reason(row.technique));
        let line = format!("{:width$}{port}{state:<10} {reason:<13} {rtt:>11}  {ttl:>3}", row.addr.to_string());
        let mac = row.seen.and_then(|seen| seen.mac).map_or_else(String::new, |mac| format!("  {mac}"));
        match service {
            Some(outcome) => writeln!(out, "{line}  {}", harmless(&serving(outcome))),
            None => writeln!(out, "{line}{mac}"),
        }
    }

    fn rows(&mut self, rows: &[Row], discovery: bool, out: &mut dyn Write) -> io::Result<()> {
        let all = self.all;
        for row in rows.iter().filter(|row| !discovery && (all || matters(row.state))) {
            // What serves there is not known yet: the row comes with it.
            if !(self.services && row.state == State::Open) {
                self.row(row, None, out)?;
            }
        }
        Ok(())
    }
}

/// Whether a row is shown to who did not ask for all.
fn matters(state: State) -> bool {
    matches!(state, State::Open | State::Up | State::UpBy(_) | State::Unfiltered)
}

/// What serves on a port, in a few words: `https nginx 1.22.1 (Debian)`.
fn serving(outcome: &ServiceOutcome) -> String {
    match outcome {
        ServiceOutcome::Identified(service) => identified(service),
        ServiceOutcome::Unidentified { banner } => {
            format!("unidentified: {}", banner.escape_ascii().to_string().chars().take(40).collect::<String>())
        }
        ServiceOutcome::Spared => "spared: a port of fragile devices".to_owned(),
        ServiceOutcome::Lost(why) => format!("lost: {why}"),
        ServiceOutcome::Silent | ServiceOutcome::Refused => outcome.as_str().to_owned(),
    }
}

fn identified(service: &Service) -> String {
    let mut text = service.name.clone();
    if service.tls {
        text.push_str("/tls");
    }
    for part in [&service.product, &service.version].into_iter().flatten() {
        text.push(' ');
        text.push_str(part);
    }
    if let Some(extra) = &service.extra {
        text.push_str(&format!(" ({extra})"));
    }
    text
}

impl Format for Table {
    fn wants(&self, state: State) -> bool {
        self.all || matters(state)
    }

    fn news(&mut self, news: &News<'_>, out: &mut dyn Write) -> io::Result<()> {
        match news {
            News::Chunk { pass, rows, .. } | News::Late { pass, rows } => self.rows(rows, pass.discovery, out),
            News::Service(Found { row, outcome }) => self.row(row, Some(outcome), out),
            News::Unserved(rows) => rows.iter().try_for_each(|row| self.row(row, None, out)),
            News::Hosts(hosts) => {
                for host in *hosts {
                    let mac = host.mac.map_or_else(String::new, |mac| format!("  {mac}"));
                    writeln!(out, "{:width$} on this link ({}){mac}", host.addr.to_string(), host.how.as_str(), width = self.width)?;
                }
                Ok(())
            }
        }
    }

    fn end(&mut self, summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
        if self.head {
            writeln!(out)?;
        }
        let many = summary.passes.len() > 1;
        for pass in &summary.passes {
            let name = if many { format!("{}: ", title(pass)) } else { String::new() };
            writeln!(out, "{name}{}", coverage(&pass.tally, pass.head.technique))?;
            if !pass.tally.not_reached.is_empty() {
                let reasons: Vec<String> = pass.tally.not_reached.iter().map(|(why, count)| format!("{count} {}", why.as_str())).collect();
                writeln!(out, "{}not reached: {}", if many { "  " } else { "" }, reasons.join(", "))?;
            }
        }
        if let Some(services) = &summary.services {
            let parts: Vec<String> = services.parts().iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{n} {name}")).collect();
            let parts = if parts.is_empty() { "none".to_owned() } else { parts.join(" + ") };
            writeln!(out, "services: {} open ports = {parts}", services.open)?;
        }
        if summary.excluded > 0 {
            writeln!(out, "{} more were excluded", summary.excluded)?;
        }
        let total = summary.total();
        let packets = total.coverage.packets;
        let rate = packets as f64 / summary.took.as_secs_f64().max(1e-6);
        write!(out, "{packets} packets in {} ({rate:.0} pps)", span(summary.took))?;
        if total.duplicates + total.late > 0 {
            write!(out, ", {} duplicate and {} late answers", total.duplicates, total.late)?;
        }
        if summary.services.is_some() {
            write!(out, ", besides the connections to services")?;
        }
        writeln!(out)
    }
}

fn title(pass: &PassState) -> String {
    match pass.head.discovery {
        true => "discovery".to_owned(),
        false => format!("{} ({})", pass.head.what(), pass.head.technique.as_str()),
    }
}

/// `6 targets = 1 open + 1 closed + ... + 1 not reached`.
fn coverage(tally: &Tally, technique: Technique) -> String {
    let Coverage { asked, up, open, closed, filtered, unfiltered, silent, refused, not_reached, .. } = tally.coverage;
    let answered = match technique {
        Technique::Ack => format!("{unfiltered} unfiltered"),
        _ if technique.has_ports() => format!("{open} open + {closed} closed"),
        _ => format!("{up} up"),
    };
    let silent = match technique {
        Technique::Udp => format!("{silent} silent (open|filtered)"),
        _ => format!("{silent} silent"),
    };
    format!("{asked} targets = {answered} + {filtered} filtered + {silent} + {refused} refused by policy + {not_reached} not reached")
}
