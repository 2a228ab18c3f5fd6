//! SCTP INIT (RFC 9260, section 5.1): open where an INIT ACK comes, closed where an ABORT comes.
//!
//! The cookie is the initiate tag: whatever answers an INIT carries it as its verification tag (sections 5.1 and 8.4), 32 bits.
//! An ICMP error is worth less: the first eight octets hold ports and a tag of zero, so the cookie chooses the source port as
//! well (8.7 bits with the default ports), and the initiate tag must be right where the quote reaches so far (section 10).
//! The attempt is part of the source port.

use picket_wire::result::State;
use picket_wire::space::Target;

use super::{ProbeKind, Reply, Run, TTL};
use crate::packet::ip::{PROTOCOL_SCTP, Packet};
use crate::packet::sctp::{ABORT_T, Answer, CHUNK_ABORT, CHUNK_INIT_ACK, Init, InitTemplate, Start};

pub(in crate::scan) struct Sctp {
    run: Run,
    template: InitTemplate,
}

impl Sctp {
    pub(super) fn new(run: Run) -> Self {
        Self { run, template: InitTemplate::new(run.source.v4, run.source.v6, TTL) }
    }

    fn init(&self, target: Target, dst_port: u16, attempt: u8) -> Init {
        let cookie = self.run.cookie(target, attempt);
        // Zero is no tag (section 3.3.2).
        Init { dst: target.addr, src_port: self.run.spread_port(cookie, attempt), dst_port, tag: (cookie as u32).max(1) }
    }
}

impl ProbeKind for Sctp {
    fn run(&self) -> &Run {
        &self.run
    }

    fn patch(&self, target: Target, attempt: u8, buf: &mut [u8]) -> Option<usize> {
        self.template.write(&self.init(target, target.port?, attempt), buf)
    }

    fn accept_direct(&self, packet: &Packet<'_>) -> Option<Reply> {
        if packet.protocol() != PROTOCOL_SCTP {
            return None;
        }
        let answer = Answer::parse(packet.payload())?;
        let attempt = self.run.spread_attempt(answer.dst_port)?;
        let target = Target { addr: packet.src(), port: Some(answer.src_port) };
        let sent = self.init(target, answer.src_port, attempt);
        let state = match answer.chunk {
            CHUNK_INIT_ACK => State::Open,
            // With the T bit the tag would be the zero of our own header, which anybody can repeat.
            CHUNK_ABORT if answer.flags & ABORT_T == 0 => State::Closed,
            _ => return None,
        };
        let is_ours = (answer.tag, answer.dst_port) == (sent.tag, sent.src_port);
        is_ours.then_some(Reply { target, attempt, state, ttl: packet.ttl() })
    }

    fn accept_quote(&self, quote: &Packet<'_>) -> Option<(Target, u8)> {
        if quote.protocol() != PROTOCOL_SCTP {
            return None;
        }
        let start = Start::parse(quote.payload())?;
        let attempt = self.run.spread_attempt(start.src_port)?;
        let target = Target { addr: quote.dst(), port: Some(start.dst_port) };
        let sent = self.init(target, start.dst_port, attempt);
        let is_ours = (start.src_port, start.tag) == (sent.src_port, 0) && start.initiate_tag.is_none_or(|tag| tag == sent.tag);
        is_ours.then_some((target, attempt))
    }
}
