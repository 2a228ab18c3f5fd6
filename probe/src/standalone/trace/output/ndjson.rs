//! Paths and graphs for programs: one JSON object on a line.

use std::io::{self, Write};
use std::time::UNIX_EPOCH;

use picket_wire::trace::{Graph, InterfaceInfo, Path, Reply, ReplyKind};
use serde_json::{Map, Value, json};

use super::{Again, End, Form, Head, Traced, milliseconds};
use crate::standalone::Outcome;
use crate::trace::statistics::{HopDelta, HopStatistics, RoundTrips, Statistics};

pub(super) struct Ndjson;

impl Form for Ndjson {
    fn path(&mut self, head: &Head, traced: &Traced<'_>, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", object(head, traced.path))
    }

    fn graph(&mut self, head: &Head, graph: &Graph, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", graph_object(head, graph))
    }

    fn again(&mut self, head: &Head, again: &Again<'_>, out: &mut dyn Write) -> io::Result<()> {
        if head.sums_only {
            return Ok(());
        }
        writeln!(out, "{}", cycle(again))
    }

    fn statistics(&mut self, head: &Head, statistics: &Statistics, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", sums(head, statistics))
    }

    fn end(&mut self, _head: &Head, end: &End, out: &mut dyn Write) -> io::Result<()> {
        let sums = &end.sums;
        let object = json!({
            "type": "trace", "complete": end.outcome == Outcome::Complete, "paths": sums.paths, "reached": sums.reached, "left": sums.left,
            "packets": sums.sent_packets, "answers": sums.answers, "duplicates": sums.duplicates, "seconds": end.took.as_secs_f64(),
        });
        writeln!(out, "{object}")
    }
}

fn graph_object(head: &Head, graph: &Graph) -> Value {
    json!({
        "type": "graph",
        "dst": graph.dst.to_string(),
        "name": head.name(graph.dst),
        "method": head.plan.method.as_str(),
        "port": head.port(),
        "confidence": graph.confidence,
        "end": graph.end.as_str(),
        "packets": graph.sent,
        "hops": graph.hops.iter().map(|hop| json!({
            "ttl": hop.ttl,
            "sure": hop.sure,
            "by_packet": hop.by_packet,
            "silent": hop.silent,
            "nodes": hop.nodes.iter().map(|node| json!({
                "addr": node.reply.from.to_string(),
                "flows": node.flows,
                "least_rtt_ms": milliseconds(node.least_rtt_us),
                "reply": reply(&node.reply),
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "links": graph.links.iter().map(|link| {
            let (from, to) = graph.ends(link).unzip();
            json!({ "ttl": link.ttl, "from": from.map(|addr| addr.to_string()), "to": to.map(|addr| addr.to_string()) })
        }).collect::<Vec<_>>(),
    })
}

fn object(head: &Head, path: &Path) -> Value {
    json!({
        "type": "path",
        "dst": path.dst.to_string(),
        "name": head.name(path.dst),
        "method": head.plan.method.as_str(),
        "port": head.port(),
        "end": path.end.as_str(),
        "packets": path.sent,
        "hops": path.hops.iter().map(|hop| json!({
            "ttl": hop.ttl,
            "sent": hop.sent,
            "inherited": hop.inherited,
            "replies": hop.replies.iter().map(reply).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "mtu": path.mtu.as_ref().map(|mtu| json!({
            "bytes": mtu.bytes,
            "ttl": mtu.ttl,
            "limits": mtu.limits.iter().map(|limit| json!({ "from": limit.from.to_string(), "bytes": limit.bytes })).collect::<Vec<_>>(),
            "silent": mtu.silent,
        })),
    })
}

fn reply(reply: &Reply) -> Value {
    let (kind, error) = match reply.kind {
        ReplyKind::TimeExceeded => ("time-exceeded", None),
        ReplyKind::Answer => ("answer", None),
        ReplyKind::Unreachable { icmp_type, icmp_code } => ("unreachable", Some((icmp_type, icmp_code))),
    };
    json!({
        "from": reply.from.to_string(),
        "rtt_ms": milliseconds(reply.rtt_us),
        "ttl": reply.ttl,
        "kind": kind,
        "icmp_type": error.map(|(icmp_type, _)| icmp_type),
        "icmp_code": error.map(|(_, icmp_code)| icmp_code),
        "quoted_ttl": reply.quoted.map(|quoted| quoted.ttl),
        "quoted_tos": reply.quoted.map(|quoted| quoted.tos),
        "mpls": reply.mpls.iter().map(|label| json!({ "label": label.label, "tc": label.tc, "bottom": label.bottom, "ttl": label.ttl })).collect::<Vec<_>>(),
        "interfaces": reply.interfaces.iter().map(interface).collect::<Vec<_>>(),
        "mtu": reply.mtu,
    })
}

fn interface(info: &InterfaceInfo) -> Value {
    json!({ "role": info.role.as_str(), "index": info.index, "addr": info.addr.map(|addr| addr.to_string()), "name": info.name, "mtu": info.mtu })
}

/// What one path of many saw, as far as it is new: addresses where they changed, losses where there were any.
fn cycle(again: &Again<'_>) -> Value {
    let Traced { path, began, .. } = again.traced;
    json!({
        "type": "cycle",
        "dst": path.dst.to_string(),
        "cycle": again.cycle,
        "began_unix": began.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as f64 / 1e3,
        "end": path.end.as_str(),
        "packets": path.sent,
        "hops": again.deltas.iter().map(delta).collect::<Vec<_>>(),
    })
}

fn delta(delta: &HopDelta) -> Value {
    let mut object = Map::from_iter([("ttl".to_owned(), delta.ttl.into())]);
    let mut put = |key: &str, value: Value, there: bool| there.then(|| object.insert(key.to_owned(), value));
    let from: Vec<Value> = delta.from.iter().map(|addr| addr.to_string().into()).collect();
    let rtts: Vec<Value> = delta.rtts_us.iter().map(|us| milliseconds(*us).into()).collect();
    put("from", from.into(), !delta.from.is_empty());
    put("rtt_ms", rtts.into(), !delta.rtts_us.is_empty());
    put("lost", delta.lost.into(), delta.lost > 0);
    object.into()
}

fn sums(head: &Head, statistics: &Statistics) -> Value {
    let ends = statistics.ends().iter().map(|(end, count)| (end.as_str().to_owned(), Value::from(*count)));
    json!({
        "type": "statistics",
        "dst": statistics.dst().to_string(),
        "name": head.name(statistics.dst()),
        "method": head.plan.method.as_str(),
        "port": head.port(),
        "cycles": statistics.paths(),
        "ends": Map::from_iter(ends),
        "hops": statistics.hops().map(|(ttl, hop)| hop_sums(ttl, hop)).collect::<Vec<_>>(),
    })
}

fn hop_sums(ttl: u8, hop: &HopStatistics) -> Value {
    let times = hop.round_trips();
    let time = |of: fn(&RoundTrips) -> f64| times.as_ref().map(|times| of(times).round() / 1e3);
    json!({
        "ttl": ttl,
        "addrs": hop.addresses().iter().map(|(addr, answers)| json!({ "addr": addr.to_string(), "answers": answers })).collect::<Vec<_>>(),
        "sent": hop.sent(),
        "answered": hop.answered(),
        "loss_percent": (hop.loss() * 100.0).round() / 100.0,
        "last_ms": time(|times| times.last.into()),
        "avg_ms": time(|times| times.average),
        "best_ms": time(|times| times.best.into()),
        "worst_ms": time(|times| times.worst.into()),
        "stdev_ms": time(|times| times.deviation),
    })
}
