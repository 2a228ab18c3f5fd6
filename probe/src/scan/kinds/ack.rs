//! TCP ACK out of nowhere (RFC 9293, section 3.10.7): whoever gets it answers RST, open port or not, so a RST says that nothing
//! filters the port; a filter that keeps state drops it.
//!
//! The cookie is the acknowledgement number, which the RST takes as its sequence number, and another half of it the sequence
//! number, which ICMP errors quote. The attempt is the source port.

use picket_wire::result::State;
use picket_wire::space::Target;

use super::{ProbeKind, Reply, Run, TTL};
use crate::packet::ip::{PROTOCOL_TCP, Packet};
use crate::packet::tcp::{self, AckTemplate, Flags, Segment, Start};

pub(in crate::scan) struct Ack {
    run: Run,
    template: AckTemplate,
}

impl Ack {
    pub(super) fn new(run: Run) -> Self {
        Self { run, template: AckTemplate::new(run.source.v4, run.source.v6, TTL) }
    }

    fn segment(&self, target: Target, dst_port: u16, attempt: u8) -> tcp::Ack {
        let cookie = self.run.cookie(target, attempt);
        tcp::Ack { dst: target.addr, src_port: self.run.mark(attempt), dst_port, seq: cookie as u32, ack: (cookie >> 32) as u32 }
    }
}

impl ProbeKind for Ack {
    fn run(&self) -> &Run {
        &self.run
    }

    fn patch(&self, target: Target, attempt: u8, buf: &mut [u8]) -> Option<usize> {
        self.template.write(&self.segment(target, target.port?, attempt), buf)
    }

    fn accept_direct(&self, packet: &Packet<'_>) -> Option<Reply> {
        if packet.protocol() != PROTOCOL_TCP {
            return None;
        }
        let segment = Segment::parse(packet.payload())?;
        let attempt = self.run.attempt(segment.dst_port())?;
        let target = Target { addr: packet.src(), port: Some(segment.src_port()) };
        let sent = self.segment(target, segment.src_port(), attempt);
        let is_reset = segment.flags().has(Flags::RST) && !segment.flags().has(Flags::SYN);
        (is_reset && segment.seq() == sent.ack).then_some(Reply { target, attempt, state: State::Unfiltered, ttl: packet.ttl() })
    }

    fn accept_quote(&self, quote: &Packet<'_>) -> Option<(Target, u8)> {
        if quote.protocol() != PROTOCOL_TCP {
            return None;
        }
        let start = Start::parse(quote.payload())?;
        let attempt = self.run.attempt(start.src_port)?;
        let target = Target { addr: quote.dst(), port: Some(start.dst_port) };
        (start.seq == self.segment(target, start.dst_port, attempt).seq).then_some((target, attempt))
    }
}
