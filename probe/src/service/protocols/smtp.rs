//! SMTP (RFC 5321): the greeting and what EHLO answers; where STARTTLS (RFC 3207) is offered, the certificate too.

use super::replies::Replies;
use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::recog::keys;

const EHLO: &[u8] = b"EHLO picket.invalid\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
}

/// A conversation with a mail server; no mail is ever sent.
pub(super) struct Smtp {
    state: State,
    replies: Replies,
    finding: Option<Finding>,
    /// Whether it takes place inside TLS already.
    tls: bool,
}

impl Smtp {
    pub(super) fn new(tls: bool) -> Self {
        Self { state: State::Greeting, replies: Replies::default(), finding: None, tls }
    }

    fn end(&mut self) -> Step {
        self.finding.take().map_or(Step::Foreign, |mut finding| {
            finding.farewell = b"QUIT\r\n";
            finding.done()
        })
    }

    fn ask(&mut self, state: State, question: &[u8]) -> Step {
        self.state = state;
        Step::Send(question.to_vec())
    }
}

impl Dialogue for Smtp {
    fn start(&mut self) -> Step {
        Step::More
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        let reply = match self.replies.take(input) {
            None => return Step::More,
            Some(None) => return self.end(),
            Some(Some(reply)) => reply,
        };
        match (self.state, &mut self.finding) {
            (State::Greeting, _) => {
                let mut finding = Finding::new("smtp");
                finding.look_up(keys::SMTP_BANNER, reply.text());
                finding.service.hostname =
                    reply.lines.first().and_then(|line| line.split(' ').next()).filter(|word| word.contains('.')).map(str::to_owned);
                finding.fact("smtp.greeting", reply.lines.join(" "));
                finding.fact("smtp.code", if reply.code == 220 { String::new() } else { reply.code.to_string() });
                self.finding = Some(finding);
                if reply.code == 220 { self.ask(State::Ehlo, EHLO) } else { self.end() }
            }
            (State::Ehlo, Some(finding)) if reply.code == 250 => {
                let offers = reply.lines.get(1..).unwrap_or_default();
                finding.fact("smtp.capabilities", offers.join(", "));
                let starttls = offers.iter().any(|line| line.eq_ignore_ascii_case("STARTTLS"));
                finding.fact("smtp.starttls", if starttls { "offered" } else { "" });
                if starttls && !self.tls { self.ask(State::StartTls, b"STARTTLS\r\n") } else { self.end() }
            }
            // Who knows no EHLO may know HELO (RFC 5321, section 3.2).
            (State::Ehlo, Some(_)) if (500..503).contains(&reply.code) => self.ask(State::Helo, b"HELO picket.invalid\r\n"),
            (State::StartTls, Some(_)) if reply.code == 220 => Step::StartTls,
            _ => self.end(),
        }
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding.take().map(Box::new)
    }

    fn on_tls(&mut self, _stands: bool) -> Step {
        self.end()
    }
}
