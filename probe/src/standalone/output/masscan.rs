//! The two forms of masscan that people's scripts read: lines (`-oL`) and JSON (`-oJ`), in the layout of masscan 1.3.2.
//!
//! Both know open ports, closed ones where all were asked for, banners, and hosts that answer ICMP as `icmp` port 0.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use picket_wire::result::State;
use picket_wire::service::{Service, ServiceOutcome};
use serde_json::json;

use super::super::results::{Found, News, Row, Summary};
use super::Format;

fn stamp(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// State, protocol, port, reason: what both forms say of a row, where they can say it.
struct Port {
    status: &'static str,
    proto: &'static str,
    port: u16,
    reason: &'static str,
}

fn port(row: &Row, all: bool) -> Option<Port> {
    let status = match row.state {
        State::Open | State::Up | State::UpBy(_) => "open",
        State::Closed if all => "closed",
        _ => return None,
    };
    let (proto, port) = match (row.transport(), row.port) {
        (Some(transport), Some(port)) => (transport.as_str(), port),
        _ => ("icmp", 0),
    };
    let reason = match (proto, row.state) {
        ("tcp", State::Open) => "syn-ack",
        ("tcp", _) => "rst-ack",
        ("udp", State::Open) => "udp-response",
        ("sctp", State::Open) => "init-ack",
        ("sctp", _) => "abort",
        ("udp", _) => "port-unreach",
        _ => "none",
    };
    Some(Port { status, proto, port, reason })
}

/// One line of text, without what would end the line or the field.
fn banner(service: &Service) -> String {
    let texts = [&service.product, &service.version, &service.extra];
    let text = texts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ");
    let text = if text.is_empty() { service.banner.escape_ascii().to_string() } else { text };
    text.bytes().flat_map(std::ascii::escape_default).map(char::from).collect()
}

fn name(service: &Service) -> String {
    service.name.bytes().flat_map(std::ascii::escape_default).map(char::from).filter(|c| !c.is_whitespace()).collect()
}

/// `-oL`.
pub(super) struct List {
    all: bool,
}

impl List {
    pub(super) fn new(all: bool) -> Self {
        Self { all }
    }
}

impl Format for List {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "#masscan")
    }

    fn news(&mut self, news: &News<'_>, out: &mut dyn Write) -> io::Result<()> {
        match news {
            News::Chunk { pass, rows, .. } | News::Late { pass, rows } => {
                for row in rows.iter().filter(|_| !pass.discovery) {
                    if let Some(Port { status, proto, port, .. }) = port(row, self.all) {
                        writeln!(out, "{status} {proto} {port} {} {}", row.addr, stamp(row.at))?;
                    }
                }
                Ok(())
            }
            News::Service(Found { row, outcome: ServiceOutcome::Identified(service) }) => match port(row, false) {
                Some(Port { proto, port, .. }) => {
                    writeln!(out, "banner {proto} {port} {} {} {} {}", row.addr, stamp(row.at), name(service), banner(service))
                }
                None => Ok(()),
            },
            News::Service(_) | News::Unserved(_) | News::Hosts(_) => Ok(()),
        }
    }

    fn end(&mut self, _summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "# end")
    }
}

/// `-oJ`.
pub(super) struct Json {
    all: bool,
    first: bool,
}

impl Json {
    pub(super) fn new(all: bool) -> Self {
        Self { all, first: true }
    }

    fn record(&mut self, row: &Row, port: &str, out: &mut dyn Write) -> io::Result<()> {
        if !core::mem::replace(&mut self.first, false) {
            writeln!(out, ",")?;
        }
        writeln!(out, r#"{{   "ip": "{}",   "timestamp": "{}", "ports": [ {port} ] }}"#, row.addr, stamp(row.at))
    }
}

impl Format for Json {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "[")
    }

    fn news(&mut self, news: &News<'_>, out: &mut dyn Write) -> io::Result<()> {
        match news {
            News::Chunk { pass, rows, .. } | News::Late { pass, rows } => {
                for row in rows.iter().filter(|_| !pass.discovery) {
                    if let Some(Port { status, proto, port, reason }) = port(row, self.all) {
                        let ttl = row.ttl;
                        let text =
                            format!(r#"{{"port": {port}, "proto": "{proto}", "status": "{status}", "reason": "{reason}", "ttl": {ttl}}}"#);
                        self.record(row, &text, out)?;
                    }
                }
                Ok(())
            }
            News::Service(Found { row, outcome: ServiceOutcome::Identified(service) }) => match port(row, false) {
                Some(Port { proto, port, .. }) => {
                    let (name, banner) = (json!(service.name), json!(banner(service)));
                    let text = format!(r#"{{"port": {port}, "proto": "{proto}", "service": {{"name": {name}, "banner": {banner}}}}}"#);
                    self.record(row, &text, out)
                }
                None => Ok(()),
            },
            News::Service(_) | News::Unserved(_) | News::Hosts(_) => Ok(()),
        }
    }

    fn end(&mut self, _summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "]")
    }
}
