//! VNC (RFC 6143): the version of its RFB protocol and the ways of security that it offers. No password is tried.

use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::text::{Reader, clean};

/// A conversation up to the list of security types.
#[derive(Default)]
pub(super) struct Vnc {
    finding: Option<Finding>,
    minor: u16,
}

impl Vnc {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// RFC 6143, section 7.1.1: `RFB xxx.yyy\n`.
    fn greeting(&mut self, input: &mut Vec<u8>) -> Step {
        let Some(line) = input.get(..12) else { return Step::More };
        let text = String::from_utf8_lossy(line).into_owned();
        let Some((major, minor)) = text.strip_prefix("RFB ").and_then(|rest| rest.trim_end().split_once('.')) else { return Step::Foreign };
        let mut finding = Finding::new("rfb");
        finding.fact("rfb.version", clean(format!("{major}.{minor}").as_bytes()));
        self.minor = minor.parse().unwrap_or(3);
        self.finding = Some(finding);
        input.drain(..12);
        // Versions other than these three are to be taken as 3.3 (RFC 6143, section 7.1.1); Apple and RealVNC are ahead of them.
        Step::Send(match self.minor {
            7 => b"RFB 003.007\n".to_vec(),
            8.. => b"RFB 003.008\n".to_vec(),
            _ => b"RFB 003.003\n".to_vec(),
        })
    }

    /// RFC 6143, section 7.1.2. `None` while it is not whole.
    fn types(&self, input: &[u8]) -> Option<Vec<u32>> {
        let mut reader = Reader::new(input);
        if self.minor < 7 {
            return reader.u32().map(|one| vec![one]);
        }
        reader.sized8().map(|types| types.iter().copied().map(u32::from).collect())
    }
}

impl Dialogue for Vnc {
    fn start(&mut self) -> Step {
        Step::More
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        if self.finding.is_none() {
            return self.greeting(input);
        }
        let Some(types) = self.types(input) else { return Step::More };
        let Some(mut finding) = self.finding.take() else { return Step::Foreign };
        finding.fact("rfb.security", types.iter().map(|kind| security(*kind)).collect::<Vec<_>>().join(", "));
        if types.is_empty() || types == [0] {
            let reason = input.get(if self.minor < 7 { 8.. } else { 5.. }).unwrap_or_default();
            finding.fact("rfb.refusal", clean(reason));
        }
        finding.done()
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding.take().map(Box::new)
    }
}

/// Names of IANA's registry "Remote Framebuffer, Security Types".
fn security(kind: u32) -> String {
    match kind {
        0 => "refused".into(),
        1 => "none".into(),
        2 => "password".into(),
        5 | 6 => "RA2".into(),
        16 => "Tight".into(),
        17 => "Ultra".into(),
        18 => "TLS".into(),
        19 => "VeNCrypt".into(),
        20 => "SASL".into(),
        30 | 35 => "Apple".into(),
        other => other.to_string(),
    }
}
