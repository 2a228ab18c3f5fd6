//! SMB 2 and 3 (MS-SMB2): the dialect chosen, signing, the server's identity and clock, and the names that NTLM gives. Nobody logs
//! in, no share is touched.

use super::{Setting, ber, ntlm};
use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::text::{Reader, utc};

const NEGOTIATE: u16 = 0;
const SESSION_SETUP: u16 = 1;
const DIALECTS: [u16; 5] = [0x0202, 0x0210, 0x0300, 0x0302, 0x0311];
/// Seconds between 1601 and 1970, the beginnings of Windows' time and of Unix'.
const WINDOWS_EPOCH: u64 = 11_644_473_600;
const MESSAGE_MAX: usize = 32 * 1024;

/// A conversation of two messages.
pub(super) struct Smb {
    random: [u8; 32],
    finding: Option<Finding>,
}

impl Smb {
    pub(super) fn new(setting: &Setting) -> Self {
        Self { random: setting.random, finding: None }
    }

    fn end(&mut self) -> Step {
        self.finding.take().map_or(Step::Foreign, Finding::done)
    }

    fn message(&mut self, message: &[u8]) -> Step {
        let Some(finding) = &mut self.finding else {
            return match negotiated(message) {
                Some(finding) => {
                    self.finding = Some(finding);
                    Step::Send(framed(&session_setup()))
                }
                None => Step::Foreign,
            };
        };
        if ntlm::describe(message, finding).is_some() && finding.service.fact("ntlm.version") == Some("6.1.0") {
            // Samba gives itself this version, and no build (its source, auth/ntlmssp); Windows always has one.
            finding.service.product = Some("Samba".to_owned());
        }
        self.end()
    }
}

impl Dialogue for Smb {
    fn start(&mut self) -> Step {
        Step::Send(framed(&negotiate(&self.random)))
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        let mut reader = Reader::new(input);
        let Some(kind) = reader.u8() else { return Step::More };
        let Some(len) = reader.u24() else { return if kind == 0 { Step::More } else { Step::Foreign } };
        if kind != 0 || len > MESSAGE_MAX {
            return self.end();
        }
        let Some(message) = reader.take(len).map(<[u8]>::to_vec) else { return Step::More };
        input.drain(..len + 4);
        self.message(&message)
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding.take().map(Box::new)
    }
}

/// Direct TCP (section 2.1): a zero, and the length in three octets.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(message.len()).unwrap_or_default().to_be_bytes().to_vec();
    out.extend_from_slice(message);
    out
}

/// SMB2 header (section 2.2.1.2).
fn header(command: u16, id: u8) -> Vec<u8> {
    let mut out = b"\xfeSMB\x40\0\0\0\0\0\0\0".to_vec();
    out.extend_from_slice(&command.to_le_bytes());
    // Credits asked for; flags; no next command.
    out.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.push(id);
    out.resize(64, 0);
    out
}

/// Section 2.2.3, with the contexts that 3.1.1 wants: integrity by SHA-512, encryption by AES-128-GCM or -CCM.
fn negotiate(random: &[u8; 32]) -> Vec<u8> {
    let mut out = header(NEGOTIATE, 0);
    for number in [36, DIALECTS.len() as u16, 1, 0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&0x7f_u32.to_le_bytes());
    out.extend_from_slice(random.first_chunk::<16>().unwrap_or(&[0; 16]));
    // The contexts begin at the next eighth octet after the dialects.
    out.extend_from_slice(&[112, 0, 0, 0, 2, 0, 0, 0]);
    for dialect in DIALECTS {
        out.extend_from_slice(&dialect.to_le_bytes());
    }
    out.resize(112, 0);
    out.extend_from_slice(&[1, 0, 38, 0, 0, 0, 0, 0, 1, 0, 32, 0, 1, 0]);
    out.extend_from_slice(random);
    out.resize(160, 0);
    out.extend_from_slice(&[2, 0, 6, 0, 0, 0, 0, 0, 2, 0, 2, 0, 1, 0]);
    out
}

/// Section 2.2.5: SPNEGO's negTokenInit (RFC 4178) with NTLM's first message.
fn session_setup() -> Vec<u8> {
    const SPNEGO: &[u8] = &[0x06, 6, 0x2b, 6, 1, 5, 5, 2];
    const NTLMSSP: &[u8] = &[0x06, 10, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 2, 2, 10];
    let mechanisms = ber::write(0xa0, &[&ber::write(ber::SEQUENCE, &[NTLMSSP])]);
    let token = ber::write(0xa2, &[&ber::write(ber::OCTETS, &[&ntlm::negotiate()])]);
    let init = ber::write(0xa0, &[&ber::write(ber::SEQUENCE, &[&mechanisms, &token])]);
    let blob = ber::write(0x60, &[SPNEGO, &init]);
    let mut out = header(SESSION_SETUP, 1);
    out.extend_from_slice(&[25, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 88, 0]);
    out.extend_from_slice(&u16::try_from(blob.len()).unwrap_or_default().to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&blob);
    out
}

/// Section 2.2.4; or an answer of SMB 1 that knows no better (MS-CIFS).
fn negotiated(message: &[u8]) -> Option<Finding> {
    let mut finding = Finding::new("microsoft-ds");
    if message.starts_with(b"\xffSMB") {
        finding.fact("smb.dialect", "1");
        return Some(finding);
    }
    let mut reader = Reader::new(message.strip_prefix(b"\xfeSMB")?);
    reader.take(60)?;
    let _size = reader.u16_le()?;
    let security = reader.u16_le()?;
    let dialect = reader.u16_le()?;
    reader.u16_le()?;
    let guid = reader.take(16)?;
    let capabilities = reader.u32_le()?;
    reader.take(12)?;
    let (now, boot) = (reader.u64_le()?, reader.u64_le()?);
    finding.fact("smb.dialect", dialect_name(dialect));
    finding.fact("smb.signing", if security & 2 != 0 { "required" } else { "optional" });
    finding.fact("smb.guid", hex::encode(guid));
    finding.fact("smb.capabilities", format!("{capabilities:#x}"));
    for (name, ticks) in [("smb.time", now), ("smb.boot", boot)] {
        let seconds = (ticks / 10_000_000).checked_sub(WINDOWS_EPOCH).and_then(|seconds| i64::try_from(seconds).ok());
        finding.fact(name, seconds.map(utc).unwrap_or_default());
    }
    Some(finding)
}

fn dialect_name(dialect: u16) -> String {
    let [major, minor] = dialect.to_be_bytes();
    match minor & 0x0f {
        0 => format!("{major}.{}", minor >> 4),
        patch => format!("{major}.{}.{patch}", minor >> 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::protocols::tests::{lead, setting};

    #[test]
    fn messages_have_the_lengths_that_they_say() {
        let message = negotiate(&[7; 32]);
        assert_eq!(message.len(), 160 + 14);
        assert_eq!(&message[100..102], &[0x02, 0x02], "dialects follow the fixed part");
        let setup = session_setup();
        assert_eq!(setup.len(), 88 + usize::from(u16::from_le_bytes([setup[78], setup[79]])));
    }

    #[test]
    fn an_answer_is_told() {
        let mut answer = header(NEGOTIATE, 0);
        answer.extend_from_slice(&[65, 0, 3, 0, 0x11, 3, 1, 0]);
        answer.extend_from_slice(&[0xab; 16]);
        answer.extend_from_slice(&[0x2f, 0, 0, 0]);
        answer.extend_from_slice(&[0; 12]);
        answer.extend_from_slice(&((WINDOWS_EPOCH + 951_782_400) * 10_000_000).to_le_bytes());
        answer.extend_from_slice(&[0; 8]);
        let mut refused = header(SESSION_SETUP, 1);
        refused.extend_from_slice(&[9, 0, 0, 0]);
        let (sent, found) = lead(Smb::new(&setting(445)), &[&framed(&answer), &framed(&refused)]);
        assert_eq!(sent.len(), 2);
        let found = found.unwrap().service;
        assert_eq!(found.fact("smb.dialect"), Some("3.1.1"));
        assert_eq!(found.fact("smb.signing"), Some("required"));
        assert_eq!(found.fact("smb.time"), Some("2000-02-29T00:00:00Z"));
        assert_eq!(found.fact("smb.boot"), None);
    }
}
