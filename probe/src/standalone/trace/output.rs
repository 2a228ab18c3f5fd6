//! Paths for people and for programs.

use core::time::Duration;
use std::io::{self, Write};
use std::net::IpAddr;

use picket_wire::trace::{Graph, GraphHop, Hop, InterfaceInfo, InterfaceRole, Path, Reply, ReplyKind};
use serde_json::{Value, json};

use super::PathOutput;
use crate::packet::icmp;
use crate::standalone::Outcome;
use crate::standalone::targets::Names;
use crate::trace::report::Summary;
use crate::trace::spec::TracePlan;

/// Writes paths as they are told.
pub(super) struct Printer<W> {
    out: W,
    format: PathOutput,
    plan: TracePlan,
    /// Names that destinations were given by.
    names: Names,
}

impl Printer<io::Stdout> {
    pub(super) fn new(format: PathOutput, plan: TracePlan, names: Names) -> Self {
        Self { out: io::stdout(), format, plan, names }
    }
}

impl<W: Write> Printer<W> {
    pub(super) fn path(&mut self, path: &Path) -> io::Result<()> {
        match self.format {
            PathOutput::Ndjson => writeln!(self.out, "{}", self.object(path))?,
            PathOutput::Table => self.table(path)?,
        }
        self.out.flush()
    }

    pub(super) fn graph(&mut self, graph: &Graph) -> io::Result<()> {
        match self.format {
            PathOutput::Ndjson => writeln!(self.out, "{}", self.graph_object(graph))?,
            PathOutput::Table => self.graph_table(graph)?,
        }
        self.out.flush()
    }

    fn name(&self, addr: IpAddr) -> Option<&str> {
        self.names.iter().find(|(_, addrs)| addrs.contains(&addr)).map(|(name, _)| name.as_str())
    }

    /// The destination, and how it is asked.
    fn heading(&self, dst: IpAddr) -> String {
        let name = self.name(dst).map_or_else(String::new, |name| format!(" ({name})"));
        let port = if self.plan.port == 0 { String::new() } else { format!(", port {}", self.plan.port) };
        format!("{dst}{name} by {}{port}", self.plan.method)
    }

    fn table(&mut self, path: &Path) -> io::Result<()> {
        writeln!(self.out, "{}", self.heading(path.dst))?;
        for hop in &path.hops {
            self.hop(path, hop)?;
        }
        writeln!(self.out, "    {}, {} packets", path.end.as_str(), path.sent)
    }

    /// One line for each address that answered: its round trips, stars for what stayed silent after the first one, what else it said.
    fn hop(&mut self, path: &Path, hop: &Hop) -> io::Result<()> {
        let mut number = format!("{:>3}", hop.ttl);
        let mut from: Vec<IpAddr> = Vec::new();
        for reply in &hop.replies {
            if !from.contains(&reply.from) {
                from.push(reply.from);
            }
        }
        if from.is_empty() {
            return writeln!(self.out, "{number} *");
        }
        let mut silent = usize::from(hop.sent).saturating_sub(hop.replies.len());
        for addr in from {
            let mut replies = hop.replies.iter().filter(|reply| reply.from == addr);
            let times: Vec<String> = replies.clone().map(|reply| format!("{:.2}", f64::from(reply.rtt_us) / 1e3)).collect();
            let stars = " *".repeat(core::mem::take(&mut silent));
            let said: String = replies.next_back().map(|reply| remarks(reply, path.dst, self.plan.tos)).unwrap_or_default();
            writeln!(self.out, "{number} {addr}  {} ms{stars}{said}", times.join(" "))?;
            number = "   ".to_owned();
        }
        Ok(())
    }

    /// One line for each node: its shortest round trip, and where there is a choice the flows that lead there and the nodes that follow.
    fn graph_table(&mut self, graph: &Graph) -> io::Result<()> {
        writeln!(self.out, "{}, {} % sure of each node's successors", self.heading(graph.dst), graph.confidence)?;
        for (at, hop) in graph.hops.iter().enumerate() {
            let mut number = format!("{:>3}", hop.ttl);
            let next = graph.hops.get(at + 1);
            let choice = hop.nodes.len() > 1 || next.is_some_and(|next| next.nodes.len() > 1);
            for (place, node) in hop.nodes.iter().enumerate() {
                let rtt = f64::from(node.least_rtt_us) / 1e3;
                let mut line = format!("{number} {}  {rtt:.2} ms{}", node.reply.from, remarks(&node.reply, graph.dst, self.plan.tos));
                if choice {
                    line += &format!("  {} flows", node.flows);
                    let to: Vec<String> = followers(graph, hop, place).map(|addr| addr.to_string()).collect();
                    if !to.is_empty() {
                        line += &format!("  to {}", to.join(" "));
                    }
                }
                writeln!(self.out, "{line}")?;
                number = "   ".to_owned();
            }
            match (hop.nodes.is_empty(), hop.silent) {
                (true, _) => writeln!(self.out, "{number} *")?,
                (false, 0) => {}
                (false, silent) => writeln!(self.out, "{number} *  {silent} flows")?,
            }
            if hop.by_packet {
                writeln!(self.out, "    load is spread by packet, so links are not known")?;
            } else if !hop.sure && !hop.nodes.is_empty() {
                writeln!(self.out, "    too few flows were answered to be sure that there is no other one")?;
            }
        }
        writeln!(self.out, "    {}, {} packets", graph.end.as_str(), graph.sent)
    }

    fn graph_object(&self, graph: &Graph) -> Value {
        json!({
            "type": "graph",
            "dst": graph.dst.to_string(),
            "name": self.name(graph.dst),
            "method": self.plan.method.as_str(),
            "port": (self.plan.port != 0).then_some(self.plan.port),
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
                    "least_rtt_ms": f64::from(node.least_rtt_us) / 1e3,
                    "reply": reply(&node.reply),
                })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "links": graph.links.iter().map(|link| {
                let (from, to) = graph.ends(link).unzip();
                json!({ "ttl": link.ttl, "from": from.map(|addr| addr.to_string()), "to": to.map(|addr| addr.to_string()) })
            }).collect::<Vec<_>>(),
        })
    }

    fn object(&self, path: &Path) -> Value {
        json!({
            "type": "path",
            "dst": path.dst.to_string(),
            "name": self.name(path.dst),
            "method": self.plan.method.as_str(),
            "port": (self.plan.port != 0).then_some(self.plan.port),
            "end": path.end.as_str(),
            "packets": path.sent,
            "hops": path.hops.iter().map(|hop| json!({
                "ttl": hop.ttl,
                "sent": hop.sent,
                "replies": hop.replies.iter().map(reply).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        })
    }

    pub(super) fn end(&mut self, outcome: Outcome, sums: &Summary, took: Duration) -> io::Result<()> {
        let seconds = took.as_secs_f64();
        match self.format {
            PathOutput::Ndjson => {
                let object = json!({
                    "type": "trace", "complete": outcome == Outcome::Complete, "paths": sums.paths, "reached": sums.reached, "left": sums.left,
                    "packets": sums.sent_packets, "answers": sums.answers, "duplicates": sums.duplicates, "seconds": seconds,
                });
                writeln!(self.out, "{object}")?;
            }
            PathOutput::Table => {
                let left = if sums.left == 0 { String::new() } else { format!(", {} not begun", sums.left) };
                writeln!(
                    self.out,
                    "\n{} paths, {} reached{left}; {} packets, {} answers in {seconds:.2} s",
                    sums.paths, sums.reached, sums.sent_packets, sums.answers
                )?;
            }
        }
        self.out.flush()
    }
}

/// The nodes that follow on one of a hop.
fn followers<'a>(graph: &'a Graph, hop: &'a GraphHop, place: usize) -> impl Iterator<Item = IpAddr> + 'a {
    let links = graph.links.iter().filter(move |link| link.ttl == hop.ttl && usize::from(link.from) == place);
    links.filter_map(|link| graph.ends(link).map(|(_, to)| to))
}

fn reply(reply: &Reply) -> Value {
    let (kind, error) = match reply.kind {
        ReplyKind::TimeExceeded => ("time-exceeded", None),
        ReplyKind::Answer => ("answer", None),
        ReplyKind::Unreachable { icmp_type, icmp_code } => ("unreachable", Some((icmp_type, icmp_code))),
    };
    json!({
        "from": reply.from.to_string(),
        "rtt_ms": f64::from(reply.rtt_us) / 1e3,
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

fn role(role: InterfaceRole) -> &'static str {
    match role {
        InterfaceRole::Incoming => "incoming",
        InterfaceRole::SubIncoming => "sub-incoming",
        InterfaceRole::Outgoing => "outgoing",
        InterfaceRole::NextHop => "next-hop",
    }
}

fn interface(info: &InterfaceInfo) -> Value {
    json!({ "role": role(info.role), "index": info.index, "addr": info.addr.map(|addr| addr.to_string()), "name": info.name, "mtu": info.mtu })
}

/// What is worth saying of a reply beside its round trip.
fn remarks(reply: &Reply, dst: IpAddr, tos: u8) -> String {
    let mut said = String::new();
    if let ReplyKind::Unreachable { icmp_type, icmp_code } = reply.kind {
        said += "  ";
        said += &code(dst.is_ipv4(), icmp_type, icmp_code);
    }
    for label in &reply.mpls {
        said += &format!("  MPLS {} tc {} ttl {}", label.label, label.tc, label.ttl);
    }
    if let Some(quoted) = reply.quoted {
        if quoted.ttl > 1 {
            said += &format!("  quoted ttl {}", quoted.ttl);
        }
        if quoted.tos != tos {
            said += &format!("  tos {:#04x}", quoted.tos);
        }
    }
    for info in &reply.interfaces {
        let parts = [info.name.clone(), info.index.map(|index| format!("index {index}")), info.addr.map(|addr| addr.to_string())];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        said += &format!("  {} {}", role(info.role), parts.join(" "));
    }
    said
}

/// As traceroute(8) abbreviates ICMP errors.
fn code(v4: bool, icmp_type: u8, icmp_code: u8) -> String {
    let known = match (v4, icmp_type, icmp_code) {
        (true, icmp::V4_UNREACHABLE, 0) | (false, icmp::V6_UNREACHABLE, 0) => "!N",
        (true, icmp::V4_UNREACHABLE, 1) | (false, icmp::V6_UNREACHABLE, 3) => "!H",
        (true, icmp::V4_UNREACHABLE, 2) => "!P",
        (true, icmp::V4_UNREACHABLE, 4) | (false, icmp::V6_TOO_BIG, _) => "!F",
        (true, icmp::V4_UNREACHABLE, 13) | (false, icmp::V6_UNREACHABLE, 1) => "!X",
        (true, icmp::V4_UNREACHABLE, _) | (false, icmp::V6_UNREACHABLE, _) => return format!("!{icmp_code}"),
        _ => return format!("!{icmp_type}-{icmp_code}"),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use picket_wire::trace::{Link, Method, MplsLabel, Node, PathEnd, Quoted};

    use super::*;
    use crate::trace::tests::plan;

    fn answer(from: &str, rtt_us: u32, kind: ReplyKind) -> Reply {
        let quoted = (kind != ReplyKind::Answer).then_some(Quoted { ttl: 1, tos: 0 });
        Reply { from: from.parse().unwrap(), rtt_us, ttl: 60, kind, quoted, mpls: Vec::new(), interfaces: Vec::new() }
    }

    fn path() -> Path {
        let mut labelled = answer("192.0.2.9", 2_340, ReplyKind::TimeExceeded);
        labelled.mpls.push(MplsLabel { label: 24_001, tc: 0, bottom: true, ttl: 1 });
        labelled.quoted = Some(Quoted { ttl: 2, tos: 0x28 });
        labelled.interfaces.push(InterfaceInfo {
            role: InterfaceRole::Incoming,
            index: Some(3),
            addr: None,
            name: Some("ge-0/0/1".into()),
            mtu: None,
        });
        let hops = vec![
            Hop {
                ttl: 1,
                sent: 3,
                replies: vec![answer("192.0.2.1", 210, ReplyKind::TimeExceeded), answer("192.0.2.1", 190, ReplyKind::TimeExceeded)],
            },
            Hop { ttl: 2, sent: 3, replies: Vec::new() },
            Hop { ttl: 3, sent: 2, replies: vec![labelled, answer("192.0.2.10", 2_500, ReplyKind::TimeExceeded)] },
            Hop { ttl: 4, sent: 1, replies: vec![answer("192.0.2.77", 3_000, ReplyKind::Unreachable { icmp_type: 3, icmp_code: 13 })] },
        ];
        Path { dst: "198.18.0.1".parse().unwrap(), end: PathEnd::Unreachable, hops, sent: 9 }
    }

    fn graph() -> Graph {
        let node = |addr: &str, flows: u16, rtt_us: u32| Node {
            flows,
            least_rtt_us: rtt_us - 20,
            reply: answer(addr, rtt_us, if addr.starts_with("198") { ReplyKind::Answer } else { ReplyKind::TimeExceeded }),
        };
        let hop =
            |ttl, by_packet: bool, silent, nodes: Vec<Node>| GraphHop { ttl, sure: silent == 0 && !by_packet, by_packet, silent, nodes };
        let link = |ttl, from, to| Link { ttl, from, to };
        Graph {
            dst: "198.18.0.1".parse().unwrap(),
            end: PathEnd::Reached,
            confidence: 95,
            hops: vec![
                hop(1, false, 0, vec![node("192.0.2.1", 6, 210)]),
                hop(2, false, 1, vec![node("192.0.2.5", 7, 420), node("192.0.2.9", 4, 390)]),
                hop(3, false, 6, Vec::new()),
                hop(4, true, 0, vec![node("192.0.2.13", 4, 990), node("192.0.2.17", 2, 980)]),
                hop(5, false, 0, vec![node("198.18.0.1", 6, 1_400)]),
            ],
            links: vec![link(1, 0, 0), link(1, 0, 1)],
            sent: 44,
        }
    }

    fn written(format: PathOutput) -> String {
        let names = vec![("box.example.test".to_owned(), vec!["198.18.0.1".parse().unwrap()])];
        let mut printer = Printer { out: Vec::new(), format, plan: plan("198.18.0.1", Method::Udp), names };
        printer.path(&path()).unwrap();
        printer.graph(&graph()).unwrap();
        let sums = Summary { paths: 1, reached: 0, left: 2, sent_packets: 9, sent_bytes: 0, answers: 5, duplicates: 0 };
        printer.end(Outcome::Incomplete, &sums, Duration::from_millis(240)).unwrap();
        String::from_utf8(printer.out).unwrap()
    }

    #[test]
    fn people_read_it() {
        insta::assert_snapshot!(written(PathOutput::Table));
    }

    #[test]
    fn programs_read_it() {
        insta::assert_snapshot!(written(PathOutput::Ndjson));
    }

    #[test]
    fn errors_are_abbreviated_as_elsewhere() {
        let all = [
            (true, 3, 0),
            (true, 3, 1),
            (true, 3, 2),
            (true, 3, 4),
            (true, 3, 13),
            (true, 3, 9),
            (true, 12, 0),
            (false, 1, 0),
            (false, 1, 3),
            (false, 2, 0),
            (false, 1, 1),
            (false, 1, 5),
            (false, 4, 1),
        ];
        let said: Vec<String> = all.into_iter().map(|(v4, icmp_type, icmp_code)| code(v4, icmp_type, icmp_code)).collect();
        assert_eq!(said, ["!N", "!H", "!P", "!F", "!X", "!9", "!12-0", "!N", "!H", "!F", "!X", "!5", "!4-1"]);
    }
}
