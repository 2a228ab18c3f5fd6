//! Who is behind the addresses of a path, as people read it: a name and an autonomous system, in columns beside the addresses.

use std::net::IpAddr;

use crate::cli::format::clean;
use crate::view::{PathNames, PathRow};

/// Columns are no wider than this; what is longer moves the rest of its line.
const WIDE: usize = 40;
/// Letters of what a table of origins calls a system: its handle, which comes first.
const HANDLE: usize = 24;

/// The name and the origin of an address; empty where nothing is known.
pub(super) fn parts(names: &PathNames, addr: IpAddr) -> (String, String) {
    let Some(known) = names.addrs.get(&addr) else { return Default::default() };
    let origin = known.origin.as_ref().map(|origin| {
        let handle: String = origin.description.split_whitespace().next().unwrap_or_default().chars().take(HANDLE).collect();
        [format!("AS{}", origin.asn), handle, origin.country.clone().unwrap_or_default()]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" ")
    });
    (clean(known.names.first().map(String::as_str).unwrap_or_default()), clean(&origin.unwrap_or_default()))
}

/// An address within a sentence.
pub(super) fn inline(row: &PathRow, addr: IpAddr) -> String {
    let (name, origin) = row.names.as_ref().map(|names| parts(names, addr)).unwrap_or_default();
    match [name, origin].iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join(", ") {
        who if who.is_empty() => addr.to_string(),
        who => format!("{addr} ({who})"),
    }
}

/// How each address of a path is written at the beginning of its line.
pub(super) fn columns(row: &PathRow) -> impl Fn(IpAddr) -> String + '_ {
    let names = row.names.as_ref().filter(|names| !names.addrs.is_empty());
    let hops = row.hops.iter().flat_map(|hop| &hop.replies).map(|reply| reply.from);
    let nodes = row.ways.iter().flat_map(|graph| &graph.hops).flat_map(|hop| &hop.nodes).map(|node| node.reply.from);
    let mut widths = [0; 3];
    if let Some(names) = names {
        for addr in hops.chain(nodes) {
            let (name, origin) = parts(names, addr);
            for (width, text) in widths.iter_mut().zip([addr.to_string(), name, origin]) {
                *width = (*width).max(text.chars().count().min(WIDE));
            }
        }
    }
    move |addr| {
        let Some(names) = names else { return addr.to_string() };
        let (name, origin) = parts(names, addr);
        let [address, named, announced] = widths;
        let column = |text: String, width: usize| if width == 0 { String::new() } else { format!("  {text:<width$}") };
        format!("{:<address$}{}{}", addr.to_string(), column(name, named), column(origin, announced))
    }
}
