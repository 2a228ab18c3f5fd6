//! Nmap's XML: a host for each destination, with the way to it in `<trace>`, as `nmap --traceroute` writes it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use picket_wire::nmap_xml;
use picket_wire::trace::PathEnd;

use super::{End, Form, Head, Traced};
use crate::standalone::Outcome;
use crate::standalone::output::{PROGRAM, stamp};

#[derive(Default)]
pub(super) struct NmapXml {
    up: u64,
    down: u64,
}

impl Form for NmapXml {
    fn begin(&mut self, head: &Head, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "{}", nmap_xml::begin(PROGRAM, &head.arguments, stamp(head.started), ""))
    }

    fn path(&mut self, head: &Head, traced: &Traced<'_>, out: &mut dyn Write) -> io::Result<()> {
        let reached = traced.path.end == PathEnd::Reached;
        self.up += u64::from(reached);
        self.down += u64::from(!reached);
        let host = nmap_xml::Traced {
            path: traced.path,
            method: head.plan.method,
            port: head.port(),
            began: stamp(traced.began),
            ended: stamp(traced.ended),
            comment: None,
            name: head.name(traced.path.dst),
            names: &BTreeMap::new(),
        };
        write!(out, "{}", host.host())
    }

    fn end(&mut self, head: &Head, end: &End, out: &mut dyn Write) -> io::Result<()> {
        let end = nmap_xml::End {
            verb: "traced",
            complete: end.outcome == Outcome::Complete,
            ended: stamp(end.at),
            took: end.took,
            up: self.up,
            down: self.down,
            total: (head.plan.to - head.plan.from).into(),
        };
        write!(out, "{}", nmap_xml::end(&end))
    }
}
