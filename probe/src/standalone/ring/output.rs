//! Answers and segments for people and for programs.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};
use tz::TimeZone;

use super::shown;
use crate::capture::UnixNanos;
use crate::capture::ring::ask::Shown;
use crate::capture::ring::index::Span;
use crate::capture::ring::{Answer, Question};

/// What was asked, what came of it, and what it took.
pub(super) fn answer(out: &mut dyn Write, question: &Question, answer: &Answer, path: &Path, zone: &TimeZone) -> io::Result<()> {
    let begin = if question.from == UnixNanos(0) { "the beginning".to_owned() } else { shown(question.from, zone) };
    let end = if question.to == UnixNanos(u64::MAX) { "the end".to_owned() } else { shown(question.to, zone) };
    let plain = Question { from: UnixNanos(0), to: UnixNanos(u64::MAX), ..question.clone() };
    writeln!(out, "asked             {plain}, from {begin} to {end}")?;
    let times = answer.times.map_or_else(String::new, |(first, last)| format!(", from {} to {}", shown(first, zone), shown(last, zone)));
    let place = if path.as_os_str() == "-" { "standard output".to_owned() } else { path.display().to_string() };
    writeln!(out, "found             {} packets{times}, to {place}", answer.packets)?;
    let Answer { segments, segments_read, extents_read, extents_skipped, bytes_read, looked_at, .. } = answer;
    let parts = extents_read + extents_skipped;
    writeln!(
        out,
        "read              {bytes_read} bytes: {segments_read} of {segments} segments, {extents_read} of their {parts} indexed parts"
    )?;
    writeln!(out, "looked at         {looked_at} packets")?;
    if answer.bytes_unindexed > 0 {
        writeln!(out, "without an index  {} bytes, which were read as a whole", answer.bytes_unindexed)?;
    }
    let unknown = match answer.dropped_unknown {
        0 => String::new(),
        segments => format!("; not known of {segments} segments that have not ended in order, or not yet"),
    };
    writeln!(out, "dropped           {} packets, while these segments were captured{unknown}", answer.dropped)?;
    if answer.segments_gone > 0 {
        writeln!(out, "gone              {} of the oldest segments were removed meanwhile", answer.segments_gone)?;
    }
    if answer.damaged > 0 {
        writeln!(out, "damaged           {} places of the ring cannot be read: packets may be missing", answer.damaged)?;
    }
    out.flush()
}

fn time(time: UnixNanos) -> Value {
    time.to_string().into()
}

/// The same as one object; times are seconds since 1970.
pub(super) fn answer_object(out: &mut dyn Write, question: &Question, answer: &Answer, path: &Path) -> io::Result<()> {
    let object = json!({
        "type": "answer", "from": (question.from > UnixNanos(0)).then(|| time(question.from)),
        "to": (question.to < UnixNanos(u64::MAX)).then(|| time(question.to)), "hosts": question.hosts, "ports": question.ports,
        "filter": question.filter, "packets": answer.packets, "first": answer.times.map(|times| time(times.0)),
        "last": answer.times.map(|times| time(times.1)), "file": path.display().to_string(), "looked_at": answer.looked_at,
        "segments": answer.segments, "segments_read": answer.segments_read, "segments_gone": answer.segments_gone,
        "parts_read": answer.extents_read, "parts_spared": answer.extents_skipped, "bytes_read": answer.bytes_read,
        "bytes_unindexed": answer.bytes_unindexed, "damaged": answer.damaged, "dropped": answer.dropped,
        "dropped_unknown": answer.dropped_unknown,
    });
    writeln!(out, "{object}")?;
    out.flush()
}

fn ends(span: &Span) -> Option<(UnixNanos, UnixNanos)> {
    (span.packets > 0).then_some((span.first, span.last))
}

/// Percent of the bytes of packets that the indexes have.
fn share(index_bytes: u64, bytes: u64) -> f64 {
    index_bytes as f64 * 100.0 / bytes.max(1) as f64
}

/// The segments of a ring, the oldest first, and their sum.
pub(super) fn segments(out: &mut dyn Write, segments: &[Shown], json: bool, zone: &TimeZone) -> io::Result<()> {
    let mut all = Span::default();
    segments.iter().for_each(|segment| all.join(&segment.span));
    let sum = |of: fn(&Shown) -> u64| segments.iter().map(of).sum::<u64>();
    let (bytes, index_bytes) = (sum(|s| s.bytes), sum(|s| s.index_bytes));
    let (first, last) = (ends(&all).map(|ends| time(ends.0)), ends(&all).map(|ends| time(ends.1)));
    if json {
        for segment in segments {
            writeln!(out, "{}", segment_object(segment))?;
        }
        let object = json!({
            "type": "ring", "segments": segments.len(), "first": first, "last": last, "packets": all.packets, "bytes": bytes,
            "index_bytes": index_bytes,
        });
        writeln!(out, "{object}")?;
        return out.flush();
    }
    writeln!(out, "{:>10}  {:<23}  {:<23}  {:>10}  {:>12}  {:>9}", "segment", "first packet", "last packet", "packets", "bytes", "index")?;
    for segment in segments {
        let (first, last) = ends(&segment.span).map_or_else(Default::default, |(first, last)| (shown(first, zone), shown(last, zone)));
        let Shown { number, bytes, index_bytes, span, .. } = segment;
        let state = match (segment.damaged, segment.ended) {
            (0, true) => "",
            (0, false) => "  open, or not ended in order",
            _ => "  damaged",
        };
        writeln!(out, "{number:>10}  {first:<23}  {last:<23}  {:>10}  {bytes:>12}  {index_bytes:>9}{state}", span.packets)?;
    }
    let range = ends(&all).map_or_else(String::new, |(first, last)| format!(" from {} to {}", shown(first, zone), shown(last, zone)));
    let (count, packets, percent) = (segments.len(), all.packets, share(index_bytes, bytes));
    writeln!(out, "{count} segments, {packets} packets{range}, {bytes} bytes, indexes {index_bytes} bytes ({percent:.2} %)")?;
    out.flush()
}

fn segment_object(segment: &Shown) -> Value {
    let (first, last) = (ends(&segment.span).map(|ends| time(ends.0)), ends(&segment.span).map(|ends| time(ends.1)));
    json!({
        "type": "segment", "number": segment.number, "file": segment.path.display().to_string(), "first": first, "last": last,
        "packets": segment.span.packets, "bytes": segment.bytes, "index_bytes": segment.index_bytes, "ended": segment.ended,
        "damaged": segment.damaged,
    })
}
