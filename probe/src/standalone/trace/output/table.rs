//! Paths and graphs for people.

use core::net::IpAddr;
use std::io::{self, Write};

use picket_wire::trace::Graph;
use picket_wire::trace_text;

use super::{End, Form, Head, Traced, report};
use crate::trace::statistics::Statistics;

pub(super) struct Table;

impl Form for Table {
    fn path(&mut self, head: &Head, traced: &Traced<'_>, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", heading(head, traced.path.dst))?;
        trace_text::path(traced.path, head.plan.tos).iter().try_for_each(|line| writeln!(out, "{line}"))
    }

    fn graph(&mut self, head: &Head, graph: &Graph, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}, {} % sure of each node's successors", heading(head, graph.dst), graph.confidence)?;
        trace_text::graph(graph, head.plan.tos).iter().try_for_each(|line| writeln!(out, "{line}"))
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
