//! Loss and round trips of each hop as a table, as of `mtr --report`.

use super::Head;
use super::table::heading;
use crate::trace::statistics::{HopStatistics, Statistics};

/// Narrower than this no column of addresses is: a long IPv4 address.
const ADDRESS_MIN: usize = 15;

/// The table: what it is of, the columns' names, then a line for each hop, and one more for each further address of it.
pub(super) fn lines(head: &Head, statistics: &Statistics) -> Vec<String> {
    let ends: Vec<String> = statistics.ends().iter().map(|(end, count)| format!("{count} {}", end.as_str())).collect();
    let cycles = statistics.paths();
    let s = if cycles == 1 { "" } else { "s" };
    let ends = if ends.is_empty() { String::new() } else { format!(": {}", ends.join(", ")) };
    let addresses = statistics.hops().flat_map(|(_, hop)| hop.addresses());
    let width = addresses.map(|(addr, _)| addr.to_string().len()).max().unwrap_or_default().max(ADDRESS_MIN);
    let mut lines = vec![
        format!("{}, {cycles} cycle{s}{ends}", heading(head, statistics.dst())),
        format!("HOP {:width$}  LOSS %   SENT    LAST     AVG    BEST   WORST   STDEV", "ADDRESS"),
    ];
    for (ttl, hop) in statistics.hops() {
        let mut addresses = hop.addresses().iter().map(|(addr, _)| addr.to_string());
        let first = addresses.next().unwrap_or_else(|| "*".to_owned());
        lines.push(format!("{ttl:>3} {first:width$}  {}", numbers(hop)).trim_end().to_owned());
        lines.extend(addresses.map(|addr| format!("    {addr}")));
    }
    lines
}

fn numbers(hop: &HopStatistics) -> String {
    let mut line = format!("{:>6.1} {:>6}", hop.loss(), hop.sent());
    if let Some(times) = hop.round_trips() {
        for us in [times.last.into(), times.average, times.best.into(), times.worst.into(), times.deviation] {
            line += &format!(" {:>7.2}", us / 1e3);
        }
    }
    line
}
