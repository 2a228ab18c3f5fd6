//! Nmap's XML, version 1.05, as its DTD has it: the document around the hosts, escapes and reasons, and a host with the way to it as
//! `nmap --traceroute` writes it.
//!
//! It is no part of what the two programs say to each other, but both write it, and so it is made here, once. Times are seconds since 1970.
//!
//! **Invariant:** whatever a name or a command line holds, the document stays well-formed.

use core::fmt::Write;
use core::net::IpAddr;
use core::time::Duration;
use std::collections::BTreeMap;

use crate::trace::{Hop, Method, Path, PathEnd, Reply, ReplyKind};

/// How a run ended.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// What was done to hosts: `scanned` or `traced`.
    pub verb: &'a str,
    /// Whether all was done.
    pub complete: bool,
    /// When it was over.
    pub ended: u64,
    /// How long it took.
    pub took: Duration,
    /// Hosts that are there.
    pub up: u64,
    /// Hosts that are known not to be, or did not answer.
    pub down: u64,
    /// All that was asked for.
    pub total: u128,
}

/// The document's beginning. `program` is who writes it with its version, `scans` are the elements of what was scanned for.
pub fn begin(program: &str, arguments: &str, started: u64, scans: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE nmaprun>\n\
         <nmaprun scanner=\"nmap\" args=\"{}\" start=\"{started}\" startstr=\"{}\" version=\"{}\" xmloutputversion=\"1.05\">\n\
         {scans}<verbose level=\"0\"/>\n<debugging level=\"0\"/>\n",
        escape(arguments),
        calendar(started),
        escape(program),
    )
}

/// A host's address.
pub fn address(addr: IpAddr) -> String {
    let family = if addr.is_ipv4() { "ipv4" } else { "ipv6" };
    format!("<address addr=\"{addr}\" addrtype=\"{family}\"/>\n")
}

/// The name that a host was given by, and the one that it has by reverse DNS.
pub fn hostnames(given: Option<&str>, found: Option<&str>) -> String {
    let mut names = "<hostnames>\n".to_owned();
    for (name, kind) in [(given, "user"), (found, "PTR")] {
        if let Some(name) = name {
            // A `String` takes whatever it is given.
            let _ = writeln!(names, "<hostname name=\"{}\" type=\"{kind}\"/>", escape(name));
        }
    }
    names + "</hostnames>\n"
}

/// The document's end.
pub fn end(end: &End<'_>) -> String {
    let End { verb, ended, up, down, total, .. } = end;
    let (calendar, took) = (calendar(*ended), end.took.as_secs_f64());
    let exit = if end.complete { "exit=\"success\"" } else { "exit=\"error\" errormsg=\"interrupted\"" };
    let text = format!("Picket done at {calendar}; {total} IP addresses ({up} hosts up) {verb} in {took:.2} seconds");
    format!(
        "<runstats><finished time=\"{ended}\" timestr=\"{calendar}\" summary=\"{text}\" elapsed=\"{took:.2}\" {exit}/>\
         <hosts up=\"{up}\" down=\"{down}\" total=\"{total}\"/>\n</runstats>\n</nmaprun>\n"
    )
}

/// A host to which a path was traced.
#[derive(Debug, Clone, Copy)]
pub struct Traced<'a> {
    /// The path.
    pub path: &'a Path,
    /// What was sent.
    pub method: Method,
    /// The port that was asked, where there is one.
    pub port: Option<u16>,
    /// When it began.
    pub began: u64,
    /// When it was over.
    pub ended: u64,
    /// Which of several paths to the host it is.
    pub comment: Option<&'a str>,
    /// The name that the destination was given by.
    pub name: Option<&'a str>,
    /// Names of addresses by reverse DNS.
    pub names: &'a BTreeMap<IpAddr, String>,
}

impl Traced<'_> {
    /// The host. A hop at which several addresses answered has several `<hop>` with the same TTL; silent ones have none, as of nmap.
    pub fn host(&self) -> String {
        let Self { path, method, began, ended, .. } = self;
        let (state, reason, ttl) = status(path, *method);
        let comment = self.comment.map_or_else(String::new, |text| format!(" comment=\"{}\"", escape(text)));
        let distance = path.hops.last().filter(|_| path.end == PathEnd::Reached);
        let distance = distance.map_or_else(String::new, |hop| format!("<distance value=\"{}\"/>\n", hop.ttl));
        let port = self.port.map_or_else(String::new, |port| format!(" port=\"{port}\""));
        let hops: String = path.hops.iter().map(|hop| self.hop(hop)).collect();
        format!(
            "<host starttime=\"{began}\" endtime=\"{ended}\"{comment}><status state=\"{state}\" reason=\"{reason}\" reason_ttl=\"{ttl}\"/>\n\
             {}{}{distance}<trace{port} proto=\"{method}\">\n{hops}</trace>\n</host>\n",
            address(path.dst),
            hostnames(self.name, self.names.get(&path.dst).map(String::as_str)),
        )
    }

    /// The first answer of each address.
    fn hop(&self, hop: &Hop) -> String {
        let (mut told, mut lines): (Vec<IpAddr>, String) = Default::default();
        for reply in &hop.replies {
            if !told.contains(&reply.from) {
                told.push(reply.from);
                // As nmap writes what it knows from the way to somebody else.
                let rtt = if hop.inherited { "--".to_owned() } else { format!("{:.2}", f64::from(reply.rtt_us) / 1e3) };
                let host = self.names.get(&reply.from).map_or_else(String::new, |name| format!(" host=\"{}\"", escape(name)));
                // A `String` takes whatever it is given.
                let _ = writeln!(lines, "<hop ttl=\"{}\" ipaddr=\"{}\" rtt=\"{rtt}\"{host}/>", hop.ttl, reply.from);
            }
        }
        lines
    }
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

/// An ICMP error as Nmap names it.
pub fn icmp_reason(v4: bool, icmp_type: u8, icmp_code: u8) -> &'static str {
    match (v4, icmp_type, icmp_code) {
        (true, 3, 0) | (false, 1, 0) => "net-unreach",
        (true, 3, 1) => "host-unreach",
        (true, 3, 2) => "proto-unreach",
        (true, 3, 3) | (false, 1, 4) => "port-unreach",
        (true, 3, 9) => "net-prohibited",
        (true, 3, 10) => "host-prohibited",
        (true, 3, 13) | (false, 1, 1) => "admin-prohibited",
        (false, 1, 3) => "addr-unreach",
        (true, 11, _) | (false, 3, _) => "time-exceeded",
        _ => "dest-unreach",
    }
}

/// As C's `ctime` in UTC: `Sat Nov 21 13:44:08 2026`.
fn calendar(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"].get((days % 7) as usize).copied().unwrap_or_default();
    // Days to civil date, counted in eras of 400 years that begin in March (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let months = ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"];
    let month = months.get(from_march as usize).copied().unwrap_or_default();
    let year = year_of_era + era * 400 + u64::from(from_march >= 10);
    let (hour, minute, second) = (rest / 3_600, rest % 3_600 / 60, rest % 60);
    format!("{weekday} {month} {day:>2} {hour:02}:{minute:02}:{second:02} {year}")
}

/// Text for an attribute or an element. What XML 1.0 cannot hold is written as `\xNN`.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push_str(&format!("&#{};", c as u32)),
            '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'.. => escaped.push(c),
            _ => escaped.push_str(&format!("\\x{:02x}", c as u32)),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_read_as_from_c() {
        assert_eq!(calendar(0), "Thu Jan  1 00:00:00 1970");
        assert_eq!(calendar(1_795_268_648), "Sat Nov 21 13:44:08 2026");
        assert_eq!(calendar(951_782_400), "Tue Feb 29 00:00:00 2000");
        assert_eq!(calendar(4_107_542_399), "Sun Feb 28 23:59:59 2100");
    }

    proptest! {
        #[test]
        fn escaped_text_is_text(text in any::<String>()) {
            let escaped = escape(&text);
            let broken = escaped.contains(['<', '>', '"', '\n', '\0', '\u{1b}', '\u{ffff}']);
            prop_assert!(!broken);
            prop_assert_eq!(escaped.matches('&').count(), escaped.matches(';').count() - text.matches(';').count());
        }
    }
}
