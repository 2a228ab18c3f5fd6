//! RIPE Atlas's results of traceroutes, one object on a line; their form is [`picket_wire::atlas`]'s.

use std::io::{self, Write};

use picket_wire::atlas::{Asked, Traceroute};

use super::{Again, Form, Head, Traced};
use crate::standalone::output::stamp;

pub(super) struct Atlas;

impl Form for Atlas {
    fn path(&mut self, head: &Head, traced: &Traced<'_>, out: &mut dyn Write) -> io::Result<()> {
        let plan = &head.plan;
        let asked = Asked {
            method: plan.method,
            name: head.name(traced.path.dst),
            source: head.source(traced.path.dst),
            began: stamp(traced.began),
            ended: stamp(traced.ended),
            size: plan.payload_len(),
            flow: plan.flow,
            first_ttl: plan.first_ttl,
            max_ttl: plan.max_ttl,
            gap: plan.gap,
            attempts: plan.attempts(),
        };
        serde_json::to_writer(&mut *out, &Traceroute::new(traced.path, &asked))?;
        writeln!(out)
    }

    fn again(&mut self, head: &Head, again: &Again<'_>, out: &mut dyn Write) -> io::Result<()> {
        self.path(head, &again.traced, out)
    }
}
