//! RDP (MS-RDPBCGR, section 2.2.1.1): which security the server chooses, its certificate, and inside TLS the name that NTLM gives
//! it (MS-CSSP). Nobody logs in.

use super::{ber, ntlm};
use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::text::Reader;

/// TPKT (RFC 1006), X.224 Connection Request, and RDP_NEG_REQ for TLS, CredSSP and early user authorization.
const REQUEST: [u8; 19] = [3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0x0b, 0, 0, 0];
const CONFIRM: u8 = 0xd0;
const RESPONSE: u8 = 2;
const FAILURE: u8 = 3;

/// A conversation up to NTLM's challenge.
#[derive(Default)]
pub(super) struct Rdp {
    finding: Option<Finding>,
    credssp: bool,
}

impl Rdp {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn end(&mut self) -> Step {
        self.finding.take().map_or(Step::Foreign, Finding::done)
    }

    fn confirmed(&mut self, body: &[u8]) -> Option<Step> {
        let mut reader = Reader::new(body);
        reader.u8()?;
        if reader.u8()? & 0xf0 != CONFIRM {
            return None;
        }
        reader.take(5)?;
        let mut finding = Finding::new("ms-wbt-server");
        let negotiation = reader.u8().and_then(|kind| Some((kind, reader.take(3).and_then(|_| reader.u32_le())?)));
        let (security, tls) = match negotiation {
            None => ("rdp".to_owned(), false),
            Some((RESPONSE, chosen)) => (protocol(chosen), chosen != 0),
            Some((FAILURE, code)) => (format!("refused {code}"), false),
            Some((kind, _)) => (format!("unknown {kind}"), false),
        };
        finding.fact("rdp.security", security);
        self.credssp = matches!(negotiation, Some((RESPONSE, 2 | 8)));
        self.finding = Some(finding);
        Some(if tls { Step::StartTls } else { self.end() })
    }
}

impl Dialogue for Rdp {
    fn start(&mut self) -> Step {
        Step::Send(REQUEST.to_vec())
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        if let Some(finding) = &mut self.finding {
            let whole = ber::element(&mut Reader::new(input)).is_some();
            if !whole && input.first() == Some(&ber::SEQUENCE) {
                return Step::More;
            }
            // What names nothing is no reason not to tell the rest.
            let _ = ntlm::describe(input, finding);
            return self.end();
        }
        let mut reader = Reader::new(input);
        let Some(version) = reader.u8() else { return Step::More };
        let Some(len) = reader.u8().and_then(|_| reader.u16()) else {
            return if version == 3 { Step::More } else { Step::Foreign };
        };
        if version != 3 || !(11..=64).contains(&len) {
            return Step::Foreign;
        }
        let Some(body) = reader.take(usize::from(len) - 4).map(<[u8]>::to_vec) else { return Step::More };
        input.clear();
        self.confirmed(&body).unwrap_or(Step::Foreign)
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding.take().map(Box::new)
    }

    fn on_tls(&mut self, stands: bool) -> Step {
        if stands && self.credssp { Step::Send(ask_name()) } else { self.end() }
    }
}

fn protocol(chosen: u32) -> String {
    match chosen {
        0 => "rdp".to_owned(),
        1 => "tls".to_owned(),
        2 => "credssp".to_owned(),
        4 => "rdstls".to_owned(),
        8 => "credssp-ex".to_owned(),
        other => other.to_string(),
    }
}

/// TSRequest (MS-CSSP, section 2.2.1), version 6, with NTLM's first message.
fn ask_name() -> Vec<u8> {
    let token = ber::write(0xa0, &[&ber::write(ber::OCTETS, &[&ntlm::negotiate()])]);
    let tokens = ber::write(0xa1, &[&ber::write(ber::SEQUENCE, &[&ber::write(ber::SEQUENCE, &[&token])])]);
    ber::write(ber::SEQUENCE, &[&ber::write(0xa0, &[&[ber::INTEGER, 1, 6]]), &tokens])
}
