//! Paths and graphs as people read them: a line for each address that answered.
//!
//! It is no part of what the two programs say to each other, but both show paths, and so their lines are made here, once.

use core::net::IpAddr;

use crate::trace::{Graph, GraphHop, Hop, MAX_TTL, MtuLimit, Path, PathMtu, Reply, ReplyKind};

fn milliseconds(us: u32) -> f64 {
    f64::from(us) / 1e3
}

/// How an address is written.
pub type Who<'a> = &'a dyn Fn(IpAddr) -> String;

/// The lines of a path; `tos` is what was sent.
pub fn path(path: &Path, tos: u8) -> Vec<String> {
    path_by(path, tos, &|addr| addr.to_string())
}

/// Like [`path`], with more said of the addresses that answered.
pub fn path_by(path: &Path, tos: u8, who: Who<'_>) -> Vec<String> {
    let mut lines: Vec<String> = path.hops.iter().flat_map(|hop| hop_lines(path.dst, hop, tos, who)).collect();
    lines.extend(path.mtu.as_ref().map(mtu_line));
    lines.push(format!("    {}, {} packets", path.end.as_str(), path.sent));
    lines
}

/// How large packets may be, and who says so.
fn mtu_line(mtu: &PathMtu) -> String {
    let mut line = format!("    packets of up to {} bytes arrive", mtu.bytes);
    if mtu.ttl < MAX_TTL {
        line += &format!(" at hop {}", mtu.ttl);
    }
    for MtuLimit { from, bytes } in &mtu.limits {
        line += &match bytes {
            Some(bytes) => format!("; the link behind {from} takes {bytes}"),
            None => format!("; {from} says that larger ones are too large, not for what"),
        };
    }
    if mtu.silent {
        line += "; larger ones are lost without a word";
    }
    line
}

/// One line for each address that answered: its round trips, stars for what stayed silent after the first one, what else it said.
fn hop_lines(dst: IpAddr, hop: &Hop, tos: u8, who: Who<'_>) -> Vec<String> {
    let mut number = format!("{:>3}", hop.ttl);
    let mut from: Vec<IpAddr> = Vec::new();
    for reply in &hop.replies {
        if !from.contains(&reply.from) {
            from.push(reply.from);
        }
    }
    if hop.inherited {
        let from = from.first().map_or_else(|| "*".to_owned(), |addr| who(*addr));
        return vec![format!("{number} {from}  known from another path")];
    }
    if from.is_empty() {
        return vec![format!("{number} *")];
    }
    let mut silent = usize::from(hop.sent).saturating_sub(hop.replies.len());
    let line = |addr: IpAddr| {
        let mut replies = hop.replies.iter().filter(|reply| reply.from == addr);
        let times: Vec<String> = replies.clone().map(|reply| format!("{:.2}", milliseconds(reply.rtt_us))).collect();
        let stars = " *".repeat(core::mem::take(&mut silent));
        let said: String = replies.next_back().map(|reply| remarks(reply, dst, tos)).unwrap_or_default();
        let number = core::mem::replace(&mut number, "   ".to_owned());
        format!("{number} {}  {} ms{stars}{said}", who(addr), times.join(" "))
    };
    from.into_iter().map(line).collect()
}

/// The lines of a graph; `tos` is what was sent. One for each node: its shortest round trip, and where there is a choice the flows that
/// lead there and the nodes that follow.
pub fn graph(graph: &Graph, tos: u8) -> Vec<String> {
    graph_by(graph, tos, &|addr| addr.to_string())
}

/// Like [`graph`], with more said of the addresses that answered.
pub fn graph_by(graph: &Graph, tos: u8, who: Who<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    for (at, hop) in graph.hops.iter().enumerate() {
        let mut number = format!("{:>3}", hop.ttl);
        let next = graph.hops.get(at + 1);
        let choice = hop.nodes.len() > 1 || next.is_some_and(|next| next.nodes.len() > 1);
        for (place, node) in hop.nodes.iter().enumerate() {
            let rtt = milliseconds(node.least_rtt_us);
            let mut line = format!("{number} {}  {rtt:.2} ms{}", who(node.reply.from), remarks(&node.reply, graph.dst, tos));
            if choice {
                line += &format!("  {} flows", node.flows);
                let to: Vec<String> = followers(graph, hop, place).map(|addr| addr.to_string()).collect();
                if !to.is_empty() {
                    line += &format!("  to {}", to.join(" "));
                }
            }
            lines.push(line);
            number = "   ".to_owned();
        }
        match (hop.nodes.is_empty(), hop.silent) {
            (true, _) => lines.push(format!("{number} *")),
            (false, 0) => {}
            (false, silent) => lines.push(format!("{number} *  {silent} flows")),
        }
        if hop.by_packet {
            lines.push("    load is spread by packet, so links are not known".to_owned());
        } else if !hop.sure && !hop.nodes.is_empty() {
            lines.push("    too few flows were answered to be sure that there is no other one".to_owned());
        }
    }
    lines.push(format!("    {}, {} packets", graph.end.as_str(), graph.sent));
    lines
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
        if let Some(mtu) = reply.mtu {
            said += &format!("-{mtu}");
        }
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
        said += &format!("  {} {}", info.role.as_str(), parts.join(" "));
    }
    said
}

/// As traceroute(8) abbreviates ICMP errors.
fn code(v4: bool, icmp_type: u8, icmp_code: u8) -> String {
    let known = match (v4, icmp_type, icmp_code) {
        (true, 3, 0) | (false, 1, 0) => "!N",
        (true, 3, 1) | (false, 1, 3) => "!H",
        (true, 3, 2) => "!P",
        (true, 3, 4) | (false, 2, _) => "!F",
        (true, 3, 13) | (false, 1, 1) => "!X",
        (true, 3, _) | (false, 1, _) => return format!("!{icmp_code}"),
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
