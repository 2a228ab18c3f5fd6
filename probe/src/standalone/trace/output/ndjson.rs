//! Paths and graphs for programs: one JSON object on a line.

use std::io::{self, Write};

use picket_wire::trace::{Graph, InterfaceInfo, Path, Reply, ReplyKind};
use serde_json::{Value, json};

use super::{End, Form, Head, Traced, milliseconds, role};
use crate::standalone::Outcome;

pub(super) struct Ndjson;

impl Form for Ndjson {
    fn path(&mut self, head: &Head, traced: &Traced<'_>, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", object(head, traced.path))
    }

    fn graph(&mut self, head: &Head, graph: &Graph, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", graph_object(head, graph))
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
    })
}

fn interface(info: &InterfaceInfo) -> Value {
    json!({ "role": role(info.role), "index": info.index, "addr": info.addr.map(|addr| addr.to_string()), "name": info.name, "mtu": info.mtu })
}
