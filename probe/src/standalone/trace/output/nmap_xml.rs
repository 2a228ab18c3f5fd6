//! Nmap's XML: a host for each destination, with the way to it in `<trace>`, as `nmap --traceroute` writes it.
//!
//! A hop at which several addresses answered has several `<hop>` with the same TTL; silent ones have none, as of nmap.

use core::net::IpAddr;
use std::io::{self, Write};

use picket_wire::trace::{Hop, Method, Path, PathEnd, Reply, ReplyKind};

use super::{End, Form, Head, Traced, milliseconds};
use crate::standalone::output::xml::{self, icmp_reason, stamp};

#[derive(Default)]
pub(super) struct NmapXml {
    up: u64,
    down: u64,
}

impl Form for NmapXml {
    fn begin(&mut self, head: &Head, out: &mut dyn Write) -> io::Result<()> {
        xml::begin(&head.arguments, head.started, |_| Ok(()), out)
    }

    fn path(&mut self, head: &Head, traced: &Traced<'_>, out: &mut dyn Write) -> io::Result<()> {
        let path = traced.path;
        let reached = path.end == PathEnd::Reached;
        self.up += u64::from(reached);
        self.down += u64::from(!reached);
        let (state, reason, ttl) = status(path, head.plan.method);
        write!(out, "<host starttime=\"{}\" endtime=\"{}\">", stamp(traced.began), stamp(traced.ended))?;
        writeln!(out, "<status state=\"{state}\" reason=\"{reason}\" reason_ttl=\"{ttl}\"/>")?;
        xml::address(path.dst, out)?;
        xml::hostnames(head.name(path.dst), out)?;
        if let Some(last) = path.hops.last().filter(|_| reached) {
            writeln!(out, "<distance value=\"{}\"/>", last.ttl)?;
        }
        let port = head.port().map_or_else(String::new, |port| format!(" port=\"{port}\""));
        writeln!(out, "<trace{port} proto=\"{}\">", head.plan.method)?;
        path.hops.iter().try_for_each(|hop| write_hop(hop, out))?;
        writeln!(out, "</trace>\n</host>")
    }

    fn end(&mut self, head: &Head, end: &End, out: &mut dyn Write) -> io::Result<()> {
        let total = (head.plan.to - head.plan.from).into();
        let end = xml::End { outcome: end.outcome, ended: end.at, took: end.took, up: self.up, down: self.down, total };
        xml::end(&end, "traced", out)
    }
}

/// The first answer of each address.
fn write_hop(hop: &Hop, out: &mut dyn Write) -> io::Result<()> {
    let mut told: Vec<IpAddr> = Vec::new();
    for reply in &hop.replies {
        if !told.contains(&reply.from) {
            told.push(reply.from);
            // As nmap writes what it knows from the way to somebody else.
            let rtt = if hop.inherited { "--".to_owned() } else { format!("{:.2}", milliseconds(reply.rtt_us)) };
            writeln!(out, "<hop ttl=\"{}\" ipaddr=\"{}\" rtt=\"{rtt}\"/>", hop.ttl, reply.from)?;
        }
    }
    Ok(())
}

/// State, reason and the TTL of the answer that says so. A host that was not reached may be there.
fn status(path: &Path, method: Method) -> (&'static str, &'static str, u8) {
    let last = path.hops.last();
    let ends = |reply: &&Reply| reply.kind != ReplyKind::TimeExceeded;
    let (reason, ttl) =
        last.and_then(|hop| hop.replies.iter().find(ends)).map_or(("no-response", 0), |reply| (said(reply, method), reply.ttl));
    match path.end {
        PathEnd::Reached => ("up", reason, ttl),
        PathEnd::Unreachable => ("unknown", reason, ttl),
        PathEnd::Refused => ("skipped", "policy", 0),
        PathEnd::NoRoute => ("unknown", "no-route", 0),
        PathEnd::Silent | PathEnd::Loop | PathEnd::TooFar | PathEnd::Stopped => ("unknown", "no-response", 0),
    }
}

fn said(reply: &Reply, method: Method) -> &'static str {
    match (reply.kind, method) {
        (ReplyKind::Unreachable { icmp_type, icmp_code }, _) => icmp_reason(reply.from.is_ipv4(), icmp_type, icmp_code),
        (ReplyKind::TimeExceeded, _) => "time-exceeded",
        (ReplyKind::Answer, Method::Icmp) => "echo-reply",
        (ReplyKind::Answer, Method::Tcp) => "tcp-response",
        (ReplyKind::Answer, Method::Udp) if reply.quoted.is_some() => "port-unreach",
        (ReplyKind::Answer, Method::Udp) => "udp-response",
    }
}
