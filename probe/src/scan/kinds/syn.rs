//! TCP SYN (RFC 9293, section 3.5): open where a SYN-ACK comes, closed where a RST comes.
//!
//! The cookie is the sequence number; every answer of the target acknowledges it plus one, and every ICMP error quotes it,
//! since RFC 792 asks for the first eight octets. The attempt is the source port.

use picket_wire::result::State;
use picket_wire::space::Target;

use super::{ProbeKind, Reply, Run, TTL};
use crate::packet::ip::{PROTOCOL_TCP, Packet};
use crate::packet::tcp::{self, Flags, Segment, Start, SynTemplate};

pub(in crate::scan) struct Syn {
    run: Run,
    template: SynTemplate,
}

impl Syn {
    pub(super) fn new(run: Run) -> Self {
        Self { run, template: SynTemplate::new(run.source.v4, run.source.v6, TTL) }
    }

    /// The low half: the sequence number has 32 bits.
    #[inline]
    fn sequence(&self, target: Target, attempt: u8) -> u32 {
        self.run.cookie(target, attempt) as u32
    }
}

/// What a segment says about the port; the acknowledgement is compared to the sequence number that we sent.
fn classify(segment: &Segment, sequence: u32) -> Option<State> {
    let (flags, acknowledged) = (segment.flags(), segment.ack().wrapping_sub(sequence));
    if !flags.has(Flags::ACK) {
        return None;
    }
    match (flags.has(Flags::RST), flags.has(Flags::SYN), acknowledged) {
        // RFC 9293, section 3.10.7.1: a closed port acknowledges the SYN. Some devices forget that a SYN counts as one.
        (true, false, 0 | 1) => Some(State::Closed),
        (false, true, 1) => Some(State::Open),
        _ => None,
    }
}

impl ProbeKind for Syn {
    fn run(&self) -> &Run {
        &self.run
    }

    #[inline]
    fn patch(&self, target: Target, attempt: u8, buf: &mut [u8]) -> Option<usize> {
        let (src_port, dst_port) = (self.run.mark(attempt), target.port?);
        self.template.write(&tcp::Syn { dst: target.addr, src_port, dst_port, seq: self.sequence(target, attempt) }, buf)
    }

    fn accept_direct(&self, packet: &Packet<'_>) -> Option<Reply> {
        if packet.protocol() != PROTOCOL_TCP {
            return None;
        }
        let segment = Segment::parse(packet.payload())?;
        let attempt = self.run.attempt(segment.dst_port())?;
        let target = Target { addr: packet.src(), port: Some(segment.src_port()) };
        let state = classify(&segment, self.sequence(target, attempt))?;
        Some(Reply { target, attempt, state, ttl: packet.ttl() })
    }

    fn accept_quote(&self, quote: &Packet<'_>) -> Option<(Target, u8)> {
        if quote.protocol() != PROTOCOL_TCP {
            return None;
        }
        let start = Start::parse(quote.payload())?;
        let attempt = self.run.attempt(start.src_port)?;
        let target = Target { addr: quote.dst(), port: Some(start.dst_port) };
        (start.seq == self.sequence(target, attempt)).then_some((target, attempt))
    }
}
