//! NTLM (MS-NLMP) as far as a server's challenge, which names the host and its version to everybody who asks. It is the first leg
//! of a login that is never gone on with.

use crate::service::dialogue::Finding;
use crate::service::text::{Reader, clean, find};

const SIGNATURE: &[u8] = b"NTLMSSP\0";

/// NEGOTIATE_MESSAGE (section 2.2.1.1): Unicode, a target's name, NTLM, extended security, target information, version.
pub(super) fn negotiate() -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&0xe208_8207_u32.to_le_bytes());
    // No domain, no workstation.
    out.extend_from_slice(&[0; 16]);
    // A version of ours is asked for: 10.0, revision 15.
    out.extend_from_slice(&[10, 0, 0x61, 0x4a, 0, 0, 0, 15]);
    out
}

/// Notes what a CHALLENGE_MESSAGE (section 2.2.1.2) somewhere in `message` says.
pub(super) fn describe(message: &[u8], finding: &mut Finding) -> Option<()> {
    let challenge = message.get(find(message, SIGNATURE)?..)?;
    let field = |at: usize| {
        let mut reader = Reader::new(challenge.get(at..)?);
        let len = usize::from(reader.u16_le()?);
        reader.u16_le()?;
        let from = usize::try_from(reader.u32_le()?).ok()?;
        challenge.get(from..)?.get(..len)
    };
    if Reader::new(challenge.get(8..)?).u32_le()? != 2 {
        return None;
    }
    let mut info = Reader::new(field(40)?);
    while let (Some(id), Some(len)) = (info.u16_le().filter(|id| *id != 0), info.u16_le()) {
        let name = match id {
            1 => "ntlm.computer",
            2 => "ntlm.domain",
            3 => "ntlm.dns_computer",
            4 => "ntlm.dns_domain",
            5 => "ntlm.dns_forest",
            _ => "",
        };
        let value = utf16(info.take(len.into())?);
        if !name.is_empty() {
            finding.fact(name, value.clone());
        }
        if id == 3 || id == 1 && finding.service.hostname.is_none() {
            finding.service.hostname = Some(value).filter(|value| !value.is_empty());
        }
    }
    let mut version = Reader::new(challenge.get(48..)?);
    let (major, minor, build) = (version.u8()?, version.u8()?, version.u16_le()?);
    finding.fact("ntlm.version", format!("{major}.{minor}.{build}"));
    Some(())
}

fn utf16(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes.chunks_exact(2).filter_map(|pair| Reader::new(pair).u16_le()).collect();
    clean(String::from_utf16_lossy(&units).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_names_the_host() {
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let mut info = Vec::new();
        for (id, text) in [(2u16, "LAB"), (1, "BOX"), (3, "box.lab.example")] {
            info.extend_from_slice(&id.to_le_bytes());
            info.extend_from_slice(&u16::try_from(wide(text).len()).unwrap().to_le_bytes());
            info.extend_from_slice(&wide(text));
        }
        info.extend_from_slice(&[0; 4]);
        let mut challenge = b"noise".to_vec();
        challenge.extend_from_slice(SIGNATURE);
        challenge.extend_from_slice(&2u32.to_le_bytes());
        challenge.extend_from_slice(&[0; 28]);
        let len = u16::try_from(info.len()).unwrap().to_le_bytes();
        challenge.extend_from_slice(&[len, len].concat());
        challenge.extend_from_slice(&56u32.to_le_bytes());
        challenge.extend_from_slice(&[6, 1, 0xb1, 0x1d, 0, 0, 0, 15]);
        challenge.extend_from_slice(&info);
        let mut finding = Finding::new("x");
        describe(&challenge, &mut finding).unwrap();
        let service = finding.service;
        assert_eq!(service.hostname.as_deref(), Some("box.lab.example"));
        assert_eq!(service.fact("ntlm.computer"), Some("BOX"));
        assert_eq!(service.fact("ntlm.version"), Some("6.1.7601"));
    }
}
