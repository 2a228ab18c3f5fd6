//! IMAP (RFC 9051) and POP3 (RFC 1939): the greeting and the capabilities. Nobody logs in.

use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::recog::keys;
use crate::service::text::{begins, clean, take_line};

/// What differs between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Imap,
    Pop3,
}

/// A conversation with a server of mailboxes.
pub(super) struct Mailbox {
    kind: Kind,
    finding: Option<Finding>,
    capabilities: Vec<String>,
}

impl Mailbox {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, finding: None, capabilities: Vec::new() }
    }

    fn end(&mut self) -> Option<Box<Finding>> {
        let mut finding = self.finding.take()?;
        let (name, farewell): (_, &[u8]) = match self.kind {
            Kind::Imap => ("imap.capabilities", b"p2 LOGOUT\r\n"),
            Kind::Pop3 => ("pop3.capabilities", b"QUIT\r\n"),
        };
        let tls = self.capabilities.iter().any(|word| word.eq_ignore_ascii_case("STARTTLS") || word.eq_ignore_ascii_case("STLS"));
        finding.fact(name, self.capabilities.join(" "));
        finding.fact(name.replace("capabilities", "starttls").as_str(), if tls { "offered" } else { "" });
        finding.farewell = farewell;
        Some(Box::new(finding))
    }

    fn greeted(&mut self, line: &[u8]) -> Step {
        let (name, key, starts, question): (_, _, &[&[u8]], &[u8]) = match self.kind {
            Kind::Imap => ("imap", keys::IMAP_BANNER, &[b"* OK", b"* PREAUTH", b"* BYE"], b"p1 CAPABILITY\r\n"),
            Kind::Pop3 => ("pop3", keys::POP3_BANNER, &[b"+OK", b"-ERR"], b"CAPA\r\n"),
        };
        let Some(start) = starts.iter().find(|start| begins(line, start)) else { return Step::Foreign };
        let text = clean(line.get(start.len()..).unwrap_or_default());
        let mut finding = Finding::new(name);
        finding.look_up(key, text.clone());
        finding.fact(&format!("{name}.greeting"), text);
        self.finding = Some(finding);
        Step::Send(question.to_vec())
    }

    /// Whether this line is the last of the answer.
    fn capability(&mut self, line: &[u8]) -> bool {
        match self.kind {
            Kind::Imap => {
                if begins(line, b"* CAPABILITY ") {
                    self.capabilities = clean(line.get(13..).unwrap_or_default()).split_whitespace().map(str::to_owned).collect();
                }
                begins(line, b"p1 ")
            }
            Kind::Pop3 => {
                let over = line == b"." || begins(line, b"-ERR");
                if !over && !begins(line, b"+OK") && self.capabilities.len() < 64 {
                    self.capabilities.push(clean(line).replace(' ', "="));
                }
                over
            }
        }
    }
}

impl Dialogue for Mailbox {
    fn start(&mut self) -> Step {
        Step::More
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        while let Some(line) = take_line(input) {
            if self.finding.is_none() {
                return self.greeted(&line);
            }
            if self.capability(&line) {
                return self.end().map_or(Step::Foreign, Step::Done);
            }
        }
        Step::More
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.end()
    }
}
