//! FTP (RFC 959): the greeting and the features (RFC 2389). Nobody logs in.

use super::replies::Replies;
use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::recog::keys;

/// A conversation with a file server, or with a mail server that did not say so.
pub(super) struct Ftp {
    replies: Replies,
    finding: Option<Finding>,
}

impl Ftp {
    pub(super) fn new() -> Self {
        Self { replies: Replies::default(), finding: None }
    }

    fn end(&mut self) -> Step {
        self.finding.take().map_or(Step::Foreign, |mut finding| {
            finding.farewell = b"QUIT\r\n";
            finding.done()
        })
    }
}

impl Dialogue for Ftp {
    fn start(&mut self) -> Step {
        Step::More
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        let reply = match self.replies.take(input) {
            None => return Step::More,
            Some(None) => return self.end(),
            Some(Some(reply)) => reply,
        };
        match &mut self.finding {
            None => {
                let mut finding = Finding::new("ftp");
                finding.look_up(keys::FTP_BANNER, reply.text());
                finding.fact("ftp.greeting", reply.lines.join(" "));
                self.finding = Some(finding);
                if reply.code == 220 { Step::Send(b"FEAT\r\n".to_vec()) } else { self.end() }
            }
            Some(finding) => {
                if reply.code == 211 && reply.lines.len() > 2 {
                    let features: Vec<String> = reply.lines.iter().skip(1).rev().skip(1).rev().cloned().collect();
                    let tls = features.iter().any(|line| line.to_ascii_uppercase().starts_with("AUTH TLS"));
                    finding.fact("ftp.features", features.join(", "));
                    finding.fact("ftp.tls", if tls { "offered" } else { "" });
                }
                // Mail servers refuse FEAT by a code with the enhanced status of RFC 3463.
                let mail = reply.lines.first().is_some_and(|line| line.starts_with("5."));
                if mail && reply.code >= 500 {
                    finding.service.name = "smtp".to_owned();
                    finding.lookups.iter_mut().for_each(|(key, _)| *key = keys::SMTP_BANNER);
                    finding.service.facts.iter_mut().for_each(|(name, _)| *name = name.replace("ftp.", "smtp."));
                }
                self.end()
            }
        }
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding.take().map(Box::new)
    }
}
