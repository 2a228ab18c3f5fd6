//! PostgreSQL (its documentation, "Frontend/Backend Protocol"): whether it takes TLS, and how it refuses a version that never
//! was. The place in its source that the refusal names tells versions apart. Nobody logs in.

use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::text::{Reader, clean};

/// SSLRequest: its length, and 1234.5679.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// A StartupMessage of protocol 255.255.
const STARTUP: [u8; 8] = [0, 0, 0, 8, 0, 0xff, 0, 0xff];
const MESSAGE_MAX: usize = 16 * 1024;

/// A conversation up to the refusal.
#[derive(Default)]
pub(super) struct Postgres {
    tls: Option<&'static str>,
}

impl Postgres {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn finding(&self) -> Option<Finding> {
        let tls = self.tls?;
        let mut finding = Finding::new("postgresql");
        finding.service.product = Some("PostgreSQL".to_owned());
        finding.fact("postgresql.tls", tls);
        Some(finding)
    }

    /// ErrorResponse: `E`, length, fields of a letter and a text.
    fn refusal(&mut self, input: &[u8]) -> Step {
        let mut reader = Reader::new(input);
        if !matches!(reader.u8(), Some(b'E' | b'v')) {
            return self.finding().map_or(Step::Foreign, Finding::done);
        }
        let Some(len) = reader.u32().map(|len| len as usize) else { return Step::More };
        if !(4..MESSAGE_MAX).contains(&len) {
            return self.finding().filter(|_| input.starts_with(b"EFATAL")).map_or(Step::Foreign, Finding::done);
        }
        let Some(body) = reader.take(len - 4) else { return Step::More };
        self.tls = self.tls.or(Some("no"));
        let Some(mut finding) = self.finding() else { return Step::Foreign };
        let mut fields = Reader::new(body);
        let (mut file, mut line) = (String::new(), String::new());
        while let (Some(kind), Some(text)) = (fields.u8(), fields.c_text()) {
            match kind {
                b'C' => finding.fact("postgresql.code", clean(text)),
                b'M' => finding.fact("postgresql.message", clean(text)),
                b'F' => file = clean(text),
                b'L' => line = clean(text),
                b'R' => finding.fact("postgresql.routine", clean(text)),
                _ => {}
            }
        }
        if !file.is_empty() {
            finding.fact("postgresql.source", format!("{file}:{line}"));
        }
        finding.done()
    }
}

impl Dialogue for Postgres {
    fn start(&mut self) -> Step {
        Step::Send(SSL_REQUEST.to_vec())
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        match (self.tls, input.as_slice()) {
            (None, b"S") => {
                self.tls = Some("offered");
                input.clear();
                Step::StartTls
            }
            (None, b"N") => {
                self.tls = Some("no");
                input.clear();
                Step::Send(STARTUP.to_vec())
            }
            (None, [b'E', ..]) | (Some(_), _) => self.refusal(input),
            _ => Step::Foreign,
        }
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding().map(Box::new)
    }

    fn on_tls(&mut self, stands: bool) -> Step {
        if stands { Step::Send(STARTUP.to_vec()) } else { self.finding().map_or(Step::Foreign, Finding::done) }
    }
}
