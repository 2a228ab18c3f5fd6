//! ICMP and ICMPv6 echo (RFC 792; RFC 4443, section 4): up where a reply comes.
//!
//! The cookie is the payload, its lowest 16 bits also the sequence number, since an ICMP error may quote no more than that.
//! The attempt is the identifier.

use picket_wire::result::State;
use picket_wire::space::Target;

use super::{ProbeKind, Reply, Run, TTL};
use crate::packet::icmp::{self, ECHO_PAYLOAD_LEN, EchoRequest, EchoTemplate, Message};
use crate::packet::ip::Packet;

/// So that who finds these packets on his network can tell what they are.
const SIGNATURE: [u8; 8] = *b"picket\r\n";

pub(in crate::scan) struct Echo {
    run: Run,
    template: EchoTemplate,
}

impl Echo {
    pub(super) fn new(run: Run) -> Self {
        Self { run, template: EchoTemplate::new(run.source.v4, run.source.v6, TTL) }
    }

    #[inline]
    fn request(&self, target: Target, attempt: u8) -> EchoRequest {
        let cookie = self.run.cookie(target, attempt);
        let mut payload = [0; ECHO_PAYLOAD_LEN];
        let (start, end) = payload.split_at_mut(SIGNATURE.len());
        start.copy_from_slice(&SIGNATURE);
        end.copy_from_slice(&cookie.to_be_bytes());
        EchoRequest { dst: target.addr, id: self.run.mark(attempt), seq: cookie as u16, payload }
    }

    /// The attempt of an echo message of ours, as far as it is there.
    fn recognise(&self, target: Target, echo: &icmp::Echo<'_>) -> Option<u8> {
        let attempt = self.run.attempt(echo.id)?;
        let sent = self.request(target, attempt);
        (echo.seq == sent.seq && sent.payload.starts_with(echo.payload)).then_some(attempt)
    }
}

impl ProbeKind for Echo {
    fn run(&self) -> &Run {
        &self.run
    }

    #[inline]
    fn patch(&self, target: Target, attempt: u8, buf: &mut [u8]) -> Option<usize> {
        self.template.write(&self.request(target, attempt), buf)
    }

    fn accept_direct(&self, packet: &Packet<'_>) -> Option<Reply> {
        let Message::EchoReply(echo) = Message::parse(packet)? else { return None };
        let target = Target { addr: packet.src(), port: None };
        // A reply repeats all of it.
        let attempt = self.recognise(target, &echo).filter(|_| echo.payload.len() == ECHO_PAYLOAD_LEN)?;
        Some(Reply { target, attempt, state: State::Up, ttl: packet.ttl() })
    }

    fn accept_quote(&self, quote: &Packet<'_>) -> Option<(Target, u8)> {
        let Message::EchoRequest(echo) = Message::parse(quote)? else { return None };
        let target = Target { addr: quote.dst(), port: None };
        // Cut where the router pleased, or followed by padding of its own.
        let payload = echo.payload.get(..ECHO_PAYLOAD_LEN).unwrap_or(echo.payload);
        let attempt = self.recognise(target, &icmp::Echo { payload, ..echo })?;
        Some((target, attempt))
    }
}
