//! DNS (RFC 1035), over datagrams and over TCP: the version that it gives itself (`version.bind`, class CHAOS), and whether it
//! recurses for us.

use picket_wire::job::Transport;

use super::Setting;
use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::recog::keys;
use crate::service::text::{Reader, clean};

const TYPE_TXT: u16 = 16;
const CLASS_CHAOS: u16 = 3;

/// Two questions: the version, then the root's name servers with recursion desired.
pub(super) struct Dns {
    id: u16,
    tcp: bool,
    finding: Option<Finding>,
}

impl Dns {
    pub(super) fn new(setting: &Setting) -> Self {
        let [a, b, ..] = setting.random;
        Self { id: u16::from_be_bytes([a, b]), tcp: setting.transport == Transport::Tcp, finding: None }
    }

    fn ask(&self, question: &[u8]) -> Step {
        let mut message = self.id.to_be_bytes().to_vec();
        // Recursion desired; one question.
        message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        message.extend_from_slice(question);
        if self.tcp {
            let len = u16::try_from(message.len()).unwrap_or_default();
            message.splice(0..0, len.to_be_bytes());
        }
        Step::Send(message)
    }

    fn answer(&mut self, message: &[u8]) -> Option<Step> {
        let mut reader = Reader::new(message);
        let (id, flags) = (reader.u16()?, reader.u16()?);
        // A response to what we asked.
        if id != self.id || flags & 0x8000 == 0 || flags & 0x7800 != 0 {
            return None;
        }
        let rcode = flags & 0x0f;
        let Some(mut finding) = self.finding.take() else {
            let mut finding = Finding::new("domain");
            finding.fact("dns.version_rcode", if rcode == 0 { String::new() } else { rcode_name(rcode) });
            if let Some(version) = text_answer(message) {
                finding.look_up(keys::DNS_VERSION, version.clone());
                finding.fact("dns.version", version);
            }
            self.finding = Some(finding);
            self.id = self.id.wrapping_add(1);
            // The root's name servers: type NS, class IN.
            return Some(self.ask(b"\0\0\x02\0\x01"));
        };
        finding.fact("dns.recursion", if flags & 0x80 != 0 && rcode != 5 { "yes" } else { "no" });
        finding.fact("dns.rcode", rcode_name(rcode));
        Some(finding.done())
    }
}

impl Dialogue for Dns {
    fn start(&mut self) -> Step {
        self.ask(b"\x07version\x04bind\0\0\x10\0\x03")
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        if !self.tcp {
            let message = core::mem::take(input);
            return self.answer(&message).unwrap_or(Step::More);
        }
        let mut reader = Reader::new(input);
        let Some(message) = reader.sized16().map(<[u8]>::to_vec) else {
            // Anything has a length in front of it; an answer of this length is none.
            let plausible = input.len() < 4 || input.get(2..4) == Some(&self.id.to_be_bytes());
            return if plausible { Step::More } else { Step::Foreign };
        };
        input.drain(..message.len() + 2);
        self.answer(&message).unwrap_or(Step::Foreign)
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding.take().map(Box::new)
    }
}

/// Passes a name (RFC 1035, section 4.1.4).
fn skip_name(reader: &mut Reader<'_>) -> Option<()> {
    loop {
        match reader.u8()? {
            0 => return Some(()),
            0xc0.. => return reader.u8().map(drop),
            len => reader.take(len.into()).map(drop)?,
        }
    }
}

/// The text of the first TXT answer in class CHAOS.
fn text_answer(message: &[u8]) -> Option<String> {
    let mut reader = Reader::new(message.get(4..)?);
    let (questions, answers) = (reader.u16()?, reader.u16()?);
    reader.take(4)?;
    for _ in 0..questions.min(4) {
        skip_name(&mut reader)?;
        reader.take(4)?;
    }
    for _ in 0..answers.min(8) {
        skip_name(&mut reader)?;
        let (kind, class) = (reader.u16()?, reader.u16()?);
        reader.take(4)?;
        let mut data = Reader::new(reader.sized16()?);
        if (kind, class) == (TYPE_TXT, CLASS_CHAOS) {
            return data.sized8().map(clean);
        }
    }
    None
}

fn rcode_name(rcode: u16) -> String {
    let name = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"].get(usize::from(rcode));
    name.map_or_else(|| rcode.to_string(), |name| (*name).to_owned())
}
