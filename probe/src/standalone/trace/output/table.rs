//! Paths and graphs for people.

use core::net::IpAddr;
use std::io::{self, Write};

use picket_wire::trace::{Graph, GraphHop, Hop, Path, Reply, ReplyKind};

use super::{End, Form, Head, Traced, milliseconds, report, role};
use crate::packet::icmp;
use crate::trace::statistics::Statistics;

pub(super) struct Table;

impl Form for Table {
    fn path(&mut self, head: &Head, traced: &Traced<'_>, out: &mut dyn Write) -> io::Result<()> {
        table(head, traced.path, out)
    }

    fn graph(&mut self, head: &Head, graph: &Graph, out: &mut dyn Write) -> io::Result<()> {
        graph_table(head, graph, out)
    }

    fn statistics(&mut self, head: &Head, statistics: &Statistics, out: &mut dyn Write) -> io::Result<()> {
        report::lines(head, statistics).iter().try_for_each(|line| writeln!(out, "{line}"))
    }

    fn end(&mut self, _head: &Head, end: &End, out: &mut dyn Write) -> io::Result<()> {
        let (sums, seconds) = (&end.sums, end.took.as_secs_f64());
        let left = if sums.left == 0 { String::new() } else { format!(", {} not begun", sums.left) };
        writeln!(
            out,
            "\n{} paths, {} reached{left}; {} packets, {} answers in {seconds:.2} s",
            sums.paths, sums.reached, sums.sent_packets, sums.answers
        )
    }
}

/// The destination, and how it is asked.
pub(super) fn heading(head: &Head, dst: IpAddr) -> String {
    let name = head.name(dst).map_or_else(String::new, |name| format!(" ({name})"));
    let port = head.port().map_or_else(String::new, |port| format!(", port {port}"));
    format!("{dst}{name} by {}{port}", head.plan.method)
}

fn table(head: &Head, path: &Path, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", heading(head, path.dst))?;
    for hop in &path.hops {
        write_hop(head, path, hop, out)?;
    }
    writeln!(out, "    {}, {} packets", path.end.as_str(), path.sent)
}

/// One line for each address that answered: its round trips, stars for what stayed silent after the first one, what else it said.
fn write_hop(head: &Head, path: &Path, hop: &Hop, out: &mut dyn Write) -> io::Result<()> {
    let mut number = format!("{:>3}", hop.ttl);
    let mut from: Vec<IpAddr> = Vec::new();
    for reply in &hop.replies {
        if !from.contains(&reply.from) {
            from.push(reply.from);
        }
    }
    if hop.inherited {
        let from = from.first().map_or_else(|| "*".to_owned(), IpAddr::to_string);
        return writeln!(out, "{number} {from}  known from another path");
    }
    if from.is_empty() {
        return writeln!(out, "{number} *");
    }
    let mut silent = usize::from(hop.sent).saturating_sub(hop.replies.len());
    for addr in from {
        let mut replies = hop.replies.iter().filter(|reply| reply.from == addr);
        let times: Vec<String> = replies.clone().map(|reply| format!("{:.2}", milliseconds(reply.rtt_us))).collect();
        let stars = " *".repeat(core::mem::take(&mut silent));
        let said: String = replies.next_back().map(|reply| remarks(reply, path.dst, head.plan.tos)).unwrap_or_default();
        writeln!(out, "{number} {addr}  {} ms{stars}{said}", times.join(" "))?;
        number = "   ".to_owned();
    }
    Ok(())
}

/// One line for each node: its shortest round trip, and where there is a choice the flows that lead there and the nodes that follow.
fn graph_table(head: &Head, graph: &Graph, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}, {} % sure of each node's successors", heading(head, graph.dst), graph.confidence)?;
    for (at, hop) in graph.hops.iter().enumerate() {
        let mut number = format!("{:>3}", hop.ttl);
        let next = graph.hops.get(at + 1);
        let choice = hop.nodes.len() > 1 || next.is_some_and(|next| next.nodes.len() > 1);
        for (place, node) in hop.nodes.iter().enumerate() {
            let rtt = milliseconds(node.least_rtt_us);
            let mut line = format!("{number} {}  {rtt:.2} ms{}", node.reply.from, remarks(&node.reply, graph.dst, head.plan.tos));
            if choice {
                line += &format!("  {} flows", node.flows);
                let to: Vec<String> = followers(graph, hop, place).map(|addr| addr.to_string()).collect();
                if !to.is_empty() {
                    line += &format!("  to {}", to.join(" "));
                }
            }
            writeln!(out, "{line}")?;
            number = "   ".to_owned();
        }
        match (hop.nodes.is_empty(), hop.silent) {
            (true, _) => writeln!(out, "{number} *")?,
            (false, 0) => {}
            (false, silent) => writeln!(out, "{number} *  {silent} flows")?,
        }
        if hop.by_packet {
            writeln!(out, "    load is spread by packet, so links are not known")?;
        } else if !hop.sure && !hop.nodes.is_empty() {
            writeln!(out, "    too few flows were answered to be sure that there is no other one")?;
        }
    }
    writeln!(out, "    {}, {} packets", graph.end.as_str(), graph.sent)
}

/// The nodes that follow on one of a hop.
fn followers<'a>(graph: &'a Graph, hop: &'a GraphHop, place: usize) -> impl Iterator<Item = IpAddr> + 'a {
    let links = graph.links.iter().filter(move |link| link.ttl == hop.ttl && usize::from(link.from) == place);
    links.filter_map(|link| graph.ends(link).map(|(_, to)| to))
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
    use super::*;

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
