//! What scans and traces share of Nmap's XML, version 1.05: the document around the hosts, dates, escapes, reasons.

use core::net::IpAddr;
use core::time::Duration;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::standalone::Outcome;

/// How a run ended.
#[derive(Debug, Clone, Copy)]
pub(in crate::standalone) struct End {
    pub(in crate::standalone) outcome: Outcome,
    pub(in crate::standalone) ended: SystemTime,
    pub(in crate::standalone) took: Duration,
    /// Hosts that are there.
    pub(in crate::standalone) up: u64,
    /// Hosts that are known not to be, or did not answer.
    pub(in crate::standalone) down: u64,
    /// All that was asked for.
    pub(in crate::standalone) total: u128,
}

/// The document's beginning; `scans` writes what was scanned for.
pub(in crate::standalone) fn begin(
    arguments: &str,
    started: SystemTime,
    scans: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE nmaprun>")?;
    writeln!(
        out,
        "<nmaprun scanner=\"nmap\" args=\"{}\" start=\"{}\" startstr=\"{}\" version=\"{}\" xmloutputversion=\"1.05\">",
        escape(arguments),
        stamp(started),
        calendar(started),
        concat!("picket-probe ", env!("CARGO_PKG_VERSION")),
    )?;
    scans(out)?;
    writeln!(out, "<verbose level=\"0\"/>\n<debugging level=\"0\"/>")
}

/// A host's address.
pub(in crate::standalone) fn address(addr: IpAddr, out: &mut dyn Write) -> io::Result<()> {
    let family = if addr.is_ipv4() { "ipv4" } else { "ipv6" };
    writeln!(out, "<address addr=\"{addr}\" addrtype=\"{family}\"/>")
}

/// The name that a host was given by.
pub(in crate::standalone) fn hostnames(name: Option<&str>, out: &mut dyn Write) -> io::Result<()> {
    match name {
        Some(name) => writeln!(out, "<hostnames>\n<hostname name=\"{}\" type=\"user\"/>\n</hostnames>", escape(name)),
        None => writeln!(out, "<hostnames>\n</hostnames>"),
    }
}

/// The document's end.
pub(in crate::standalone) fn end(end: &End, verb: &str, out: &mut dyn Write) -> io::Result<()> {
    let End { up, down, total, .. } = end;
    let (time, calendar, took) = (stamp(end.ended), calendar(end.ended), end.took.as_secs_f64());
    let exit = match end.outcome {
        Outcome::Complete => "exit=\"success\"",
        Outcome::Incomplete => "exit=\"error\" errormsg=\"interrupted\"",
    };
    let text = format!("Picket done at {calendar}; {total} IP addresses ({up} hosts up) {verb} in {took:.2} seconds");
    write!(out, "<runstats><finished time=\"{time}\" timestr=\"{calendar}\" summary=\"{text}\" elapsed=\"{took:.2}\" {exit}/>")?;
    writeln!(out, "<hosts up=\"{up}\" down=\"{down}\" total=\"{total}\"/>\n</runstats>\n</nmaprun>")
}

/// An ICMP error as Nmap names it.
pub(in crate::standalone) fn icmp_reason(v4: bool, icmp_type: u8, icmp_code: u8) -> &'static str {
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

/// Seconds since 1970.
pub(in crate::standalone) fn stamp(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// As C's `ctime` in UTC: `Sat Nov 21 13:44:08 2026`.
fn calendar(at: SystemTime) -> String {
    let seconds = stamp(at);
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
pub(in crate::standalone) fn escape(text: &str) -> String {
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
        let at = |seconds| calendar(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "Thu Jan  1 00:00:00 1970");
        assert_eq!(at(1_795_268_648), "Sat Nov 21 13:44:08 2026");
        assert_eq!(at(951_782_400), "Tue Feb 29 00:00:00 2000");
        assert_eq!(at(4_107_542_399), "Sun Feb 28 23:59:59 2100");
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
