//! Packets, flows and counters for people and for programs.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::args::{CaptureArgs, CaptureOutput};
use crate::capture::flows::{Direction, End as Side, Record};
use crate::capture::run::{End, Outcome as Captured};
use crate::capture::session::{Limit, News};
use crate::capture::source::Listen;
use crate::capture::summary::{flag_names, protocol_name};
use crate::packet::line::{Object, Table};
use crate::standalone::Outcome;

/// Writes what is told.
pub(super) struct Printer {
    format: CaptureOutput,
    link_type: u16,
    table: Table,
}

impl Printer {
    pub(super) fn new(format: CaptureOutput, link_type: u16) -> Self {
        Self { format, link_type, table: Table::default() }
    }

    pub(super) fn news(&mut self, news: &News) -> io::Result<()> {
        let mut text = Vec::new();
        match (news, self.format) {
            (News::Packet(shown), CaptureOutput::Ndjson) => {
                writeln!(text, "{}", serde_json::to_string(&Object::new(self.link_type, shown))?)?;
            }
            (News::Packet(shown), CaptureOutput::Table) => write!(text, "{}", self.table.line(self.link_type, shown))?,
            (News::Flows(records), CaptureOutput::Ndjson) => {
                records.iter().try_for_each(|record| writeln!(text, "{}", flow_object(record)))?;
            }
            (News::Flows(records), CaptureOutput::Table) => {
                records.iter().try_for_each(|record| flow_line(&mut text, record))?;
                writeln!(text)?;
            }
        }
        let mut out = io::stdout().lock();
        out.write_all(&text)?;
        out.flush()
    }

    /// The counters: the last object, or some lines on standard error.
    pub(super) fn end(&mut self, captured: &Captured, piped: bool) -> io::Result<()> {
        if self.format == CaptureOutput::Ndjson && !piped {
            let mut out = io::stdout().lock();
            writeln!(out, "{}", counters_object(captured))?;
            return out.flush();
        }
        print!("{}", self.table.end(captured.counts.delivered));
        // Who closed standard error does not want it.
        let _ = counters(&mut io::stderr().lock(), captured);
        Ok(())
    }
}

fn protocol(number: u8) -> String {
    protocol_name(number).map_or_else(|| number.to_string(), str::to_owned)
}

fn flow_object(record: &Record) -> Value {
    let Record { forward, backward, .. } = record;
    json!({
        "type": "flow", "protocol": protocol(record.protocol), "source": record.from.addr, "source_port": record.from.port,
        "destination": record.to.addr, "destination_port": record.to.port, "packets": forward.packets, "bytes": forward.bytes,
        "packets_back": backward.packets, "bytes_back": backward.bytes, "flags": flag_names(forward.tcp_flags, "|"),
        "flags_back": flag_names(backward.tcp_flags, "|"), "first": record.first.to_string(), "last": record.last.to_string(),
        "rtt_us": record.rtt.map(|rtt| rtt.as_secs_f64() * 1e6), "why": record.why.as_str(),
    })
}

fn side(side: Side) -> String {
    match (side.port, side.addr.is_ipv6()) {
        (0, _) => side.addr.to_string(),
        (port, false) => format!("{}:{port}", side.addr),
        (port, true) => format!("[{}]:{port}", side.addr),
    }
}

fn flow_line(out: &mut dyn Write, record: &Record) -> io::Result<()> {
    let went = |direction: &Direction| format!("{} packets, {} bytes", direction.packets, direction.bytes);
    let flags = flag_names(record.forward.tcp_flags | record.backward.tcp_flags, " ");
    let flags = if flags.is_empty() { flags } else { format!("  [{flags}]") };
    let rtt = record.rtt.map_or_else(String::new, |rtt| format!("  rtt {:.3} ms", rtt.as_secs_f64() * 1e3));
    let name = protocol(record.protocol);
    let (from, to) = (side(record.from), side(record.to));
    writeln!(out, "{name:<6} {from} → {to}  {}, back {}{flags}{rtt}", went(&record.forward), went(&record.backward))
}

/// Why it ended, for programs and in words.
fn why(captured: &Captured) -> (&'static str, String) {
    let problem = captured.written.as_ref().and_then(|written| written.problem.as_ref());
    match (&captured.end, problem) {
        (_, Some(problem)) => ("files", crate::errors::chain(problem)),
        (End::Source(error), None) => ("interface", error.to_string()),
        (End::Files, None) => ("files", "nothing more can be written".to_owned()),
        (End::Asked, None) => ("stopped", "stopped".to_owned()),
        (End::Limit(Limit::Packets), None) => ("packets", "as many packets as were asked for".to_owned()),
        (End::Limit(Limit::Bytes), None) => ("bytes", "as many bytes as were asked for".to_owned()),
        (End::Limit(Limit::Time), None) => ("seconds", "as long as was asked for".to_owned()),
    }
}

fn counters_object(captured: &Captured) -> Value {
    let Captured { kernel, counts, .. } = captured;
    let (end, reason) = why(captured);
    let mut object = json!({
        "type": "capture", "end": end, "reason": reason, "began": captured.began.to_string(), "ended": captured.ended.to_string(),
        "passed": kernel.passed, "filtered": captured.filtered(), "accepted": kernel.accepted, "kernel_drops": kernel.dropped,
        "interface_drops": kernel.interface_dropped, "captured": counts.delivered, "captured_bytes": counts.bytes,
        "left": captured.left(), "shown": counts.shown, "skipped": counts.skipped,
    });
    let mut more = |key: &str, value: Value| object.as_object_mut().map(|object| object.insert(key.to_owned(), value));
    if kernel.longer > 0 {
        more("longer", kernel.longer.into());
    }
    if let Some(written) = &captured.written {
        more("written", written.packets.into());
        more("written_bytes", written.bytes.into());
        more("lost", captured.lost().into());
        more("files", written.files.into());
        more("file", written.last.as_ref().map(|path| path.display().to_string()).into());
    }
    if captured.flows_others + captured.flows_put_out + counts.records_lost > 0 {
        more("flows_put_out", captured.flows_put_out.into());
        more("flows_lost", counts.records_lost.into());
        more("no_flow", captured.flows_others.into());
    }
    object
}

fn counters(out: &mut dyn Write, captured: &Captured) -> io::Result<()> {
    let Captured { kernel, counts, .. } = captured;
    let seconds = captured.ended.saturating_since(captured.began).as_secs_f64();
    writeln!(out, "ended             {}", why(captured).1)?;
    if let (Some(passed), Some(filtered)) = (kernel.passed, captured.filtered()) {
        writeln!(out, "interface         {passed} frames, of which the filter did not want {filtered}")?;
    }
    let (accepted, left) = (kernel.accepted, captured.left());
    let still = if left > 0 { format!(", of which {left} were still in the kernel's buffer") } else { String::new() };
    writeln!(out, "passed the filter {accepted} packets{still}")?;
    writeln!(out, "dropped           {} by the kernel, {} by the interface", kernel.dropped, kernel.interface_dropped)?;
    writeln!(out, "captured          {} packets, {} bytes on the wire, in {seconds:.1} s", counts.delivered, counts.bytes)?;
    if kernel.longer > 0 {
        let longer = kernel.longer;
        writeln!(
            out,
            "longer than frames {longer} packets: offloads (GRO, LRO, TSO) put them together; on the wire they are shorter, and more"
        )?;
    }
    if let Some(written) = &captured.written {
        let place = match (&written.last, written.files) {
            (Some(path), 1) => format!("to {}", path.display()),
            (Some(path), files) => format!("to {files} files, the last one {}", path.display()),
            (None, _) => "to standard output".to_owned(),
        };
        let lost = captured.lost();
        writeln!(out, "written           {} packets, {} bytes, {place}; lost on the way {lost}", written.packets, written.bytes)?;
    }
    if counts.shown + counts.skipped > 0 {
        writeln!(out, "shown             {} packets, not shown {}", counts.shown, counts.skipped)?;
    }
    if captured.flows_put_out + counts.records_lost > 0 {
        let (early, lost) = (captured.flows_put_out, counts.records_lost);
        writeln!(out, "flows             {early} told early since the table was full, {lost} records lost since nobody read them")?;
    }
    out.flush()
}

/// Says what begins.
pub(super) fn announce(listen: &Listen, args: &CaptureArgs) {
    let kept = if args.full { "whole packets".to_owned() } else { format!("{} bytes of each packet", listen.snap_len) };
    let filter = if listen.filter.is_empty() { "none" } else { &listen.filter };
    let mut out = io::stderr().lock();
    // Who closed standard error does not want it.
    let _ = writeln!(out, "filter: {filter}\ncapturing on {}, {kept}; Ctrl-C ends it", listen.interface);
}

/// Says what would be done.
pub(super) fn dry_run(args: &CaptureArgs, listen: &Listen) -> io::Result<Outcome> {
    let mut out = io::stdout().lock();
    let Listen { interface, snap_len, promiscuous, buffer, filter } = listen;
    let filter = if filter.is_empty() { "none" } else { filter };
    writeln!(out, "interface     {interface}, {}promiscuous, kernel's buffer {buffer} bytes", if *promiscuous { "" } else { "not " })?;
    writeln!(out, "filter        {filter}")?;
    writeln!(out, "kept          {snap_len} bytes of each packet")?;
    match &args.write {
        Some(path) if args.pipes() => writeln!(out, "written to    standard output ({})", path.display())?,
        Some(path) => writeln!(out, "written to    {}, while {} bytes are free", path.display(), args.keep_free.0)?,
        None => {}
    }
    if let Some((dir, options)) = args.ring() {
        let age = options.keep.map_or_else(String::new, |keep| format!(", none older than {} s", keep.as_secs()));
        writeln!(out, "ring          {}, at most {} bytes in segments of {}{age}", dir.display(), options.budget, options.segment())?;
    }
    writeln!(out, "nothing was captured")?;
    out.flush()?;
    Ok(Outcome::Complete)
}
