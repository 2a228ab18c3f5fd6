//! SSH (RFC 4253): the software, what it offers, and its host key. The key exchange is led as far as the server's reply, which
//! shows the key (RFC 4253, section 8; RFC 5656, section 4; RFC 8731). Nobody logs in, nothing secret is computed: what we send
//! as our public value is only shaped like one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};

use super::Setting;
use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::recog::keys;
use crate::service::text::{Reader, begins, clean, take_line};

const OUR_GREETING: &[u8] = b"SSH-2.0-Picket\r\n";
const MSG_KEXINIT: u8 = 20;
const MSG_KEX_INIT: u8 = 30;
const MSG_KEX_REPLY: u8 = 31;
/// Longest packet that is waited for (RFC 4253, section 6.1).
const PACKET_MAX: usize = 35_000;
/// Most lines before the greeting (RFC 4253, section 4.2, sets no bound).
const LINES_MAX: usize = 50;
const KEX: [&str; 7] = [
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "diffie-hellman-group14-sha256",
    "diffie-hellman-group14-sha1",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group1-sha1",
];
const HOST_KEYS: &str = "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-512,rsa-sha2-256,ssh-rsa,ssh-dss";
const CIPHERS: &str = "chacha20-poly1305@openssh.com,aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,\
                       aes128-cbc,aes256-cbc,3des-cbc";
const MACS: &str = "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha2-256,hmac-sha2-512,hmac-sha1,hmac-md5";
/// The base point of NIST P-256 (FIPS 186-4, D.1.2.3): a point of the curve, as any that a server must accept.
const P256_POINT: [u8; 65] = [
    4, 0x6b, 0x17, 0xd1, 0xf2, 0xe1, 0x2c, 0x42, 0x47, 0xf8, 0xbc, 0xe6, 0xe5, 0x63, 0xa4, 0x40, 0xf2, 0x77, 0x03, 0x7d, 0x81, 0x2d, 0xeb,
    0x33, 0xa0, 0xf4, 0xa1, 0x39, 0x45, 0xd8, 0x98, 0xc2, 0x96, 0x4f, 0xe3, 0x42, 0xe2, 0xfe, 0x1a, 0x7f, 0x9b, 0x8e, 0xe7, 0xeb, 0x4a,
    0x7c, 0x0f, 0x9e, 0x16, 0x2b, 0xce, 0x33, 0x57, 0x6b, 0x31, 0x5e, 0xce, 0xcb, 0xb6, 0x40, 0x68, 0x37, 0xbf, 0x51, 0xf5,
];

/// A conversation up to the host key.
pub(super) struct Ssh {
    random: [u8; 32],
    lines: usize,
    finding: Option<Finding>,
}

impl Ssh {
    pub(super) fn new(setting: &Setting) -> Self {
        Self { random: setting.random, lines: 0, finding: None }
    }

    fn greeting(&mut self, input: &mut Vec<u8>) -> Step {
        while let Some(line) = take_line(input) {
            if begins(&line, b"SSH-") {
                return self.greeted(&clean(&line));
            }
            self.lines += 1;
            if self.lines > LINES_MAX {
                return Step::Foreign;
            }
        }
        Step::More
    }

    /// RFC 4253, section 4.2: `SSH-protoversion-softwareversion SP comments`.
    fn greeted(&mut self, line: &str) -> Step {
        let mut parts = line.splitn(3, '-').skip(1);
        let protocol = parts.next().unwrap_or_default();
        let software = parts.next().unwrap_or_default();
        let mut finding = Finding::new("ssh");
        finding.fact("ssh.protocol", protocol);
        finding.fact("ssh.software", software);
        finding.look_up(keys::SSH_BANNER, software);
        let (name, comment) = software.split_once(' ').unwrap_or((software, ""));
        let (product, version) = name.split_once(['_', '-']).unwrap_or((name, ""));
        finding.service.product = Some(product.to_owned()).filter(|text| !text.is_empty());
        finding.service.version = Some(version.to_owned()).filter(|text| !text.is_empty());
        finding.service.extra = Some(comment.to_owned()).filter(|text| !text.is_empty());
        if !matches!(protocol, "2.0" | "1.99") {
            return finding.done();
        }
        self.finding = Some(finding);
        Step::Send([OUR_GREETING, &packet(&kexinit(&self.random))].concat())
    }

    fn end(&mut self) -> Step {
        self.finding.take().map_or(Step::Foreign, Finding::done)
    }

    /// RFC 4253, section 7.1.
    fn offers(&mut self, payload: &[u8]) -> Option<&'static str> {
        let mut reader = Reader::new(payload);
        reader.take(17)?;
        let mut lists = [""; 10];
        for list in &mut lists {
            *list = core::str::from_utf8(reader.sized32()?).ok()?;
        }
        let [kex, host_keys, _, ciphers, _, macs, _, compression, ..] = lists;
        let finding = self.finding.as_mut()?;
        for (name, list) in
            [("ssh.kex", kex), ("ssh.hostkeys", host_keys), ("ssh.ciphers", ciphers), ("ssh.macs", macs), ("ssh.compression", compression)]
        {
            finding.fact(name, clean(list.as_bytes()));
        }
        KEX.into_iter().find(|ours| kex.split(',').any(|theirs| theirs == *ours))
    }

    fn host_key(&mut self, payload: &[u8]) -> Option<()> {
        let mut reader = Reader::new(payload.get(1..)?);
        let blob = reader.sized32()?;
        let mut key = Reader::new(blob);
        let kind = key.sized32()?;
        let finding = self.finding.as_mut()?;
        finding.fact("ssh.hostkey.type", clean(kind));
        if kind == b"ssh-rsa" {
            let _exponent = key.sized32()?;
            finding.fact("ssh.hostkey.bits", bits(key.sized32()?).to_string());
        }
        finding.fact("ssh.hostkey.sha256", STANDARD_NO_PAD.encode(Sha256::digest(blob)));
        Some(())
    }

    fn packets(&mut self, input: &mut Vec<u8>) -> Step {
        loop {
            let mut reader = Reader::new(input);
            let Some(len) = reader.u32().and_then(|len| usize::try_from(len).ok()) else { return Step::More };
            if !(2..=PACKET_MAX).contains(&len) {
                return self.end();
            }
            let Some(body) = reader.take(len) else { return Step::More };
            let padding = body.first().copied().unwrap_or_default();
            let payload = body.get(1..len.saturating_sub(padding.into())).unwrap_or_default().to_vec();
            input.drain(..4 + len);
            match payload.first() {
                Some(&MSG_KEXINIT) => match self.offers(&payload) {
                    Some(kex) => return Step::Send(packet(&kex_init(kex, &self.random))),
                    None => return self.end(),
                },
                Some(&MSG_KEX_REPLY) => {
                    // What cannot be read is left out.
                    let _ = self.host_key(&payload);
                    return self.end();
                }
                // Ignore, debug, unimplemented.
                Some(2..=4) => {}
                _ => return self.end(),
            }
        }
    }
}

impl Dialogue for Ssh {
    fn start(&mut self) -> Step {
        Step::More
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        if self.finding.is_none() { self.greeting(input) } else { self.packets(input) }
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding.take().map(Box::new)
    }
}

/// The bits of a positive mpint (RFC 4251, section 5).
fn bits(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let top = number.get(zeros).map_or(0, |byte| byte.leading_zeros() as usize);
    (number.len() - zeros) * 8 - top
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// RFC 4253, section 6: padded to blocks of eight octets, with at least four of padding.
fn packet(payload: &[u8]) -> Vec<u8> {
    let padding = 8 - (payload.len() + 5) % 8 + if (payload.len() + 5) % 8 > 4 { 8 } else { 0 };
    let mut out = Vec::with_capacity(payload.len() + 20);
    out.extend_from_slice(&u32::try_from(payload.len() + padding + 1).unwrap_or(u32::MAX).to_be_bytes());
    out.push(u8::try_from(padding).unwrap_or_default());
    out.extend_from_slice(payload);
    out.resize(out.len() + padding, 0);
    out
}

fn kexinit(random: &[u8; 32]) -> Vec<u8> {
    let mut out = vec![MSG_KEXINIT];
    out.extend_from_slice(random.first_chunk::<16>().unwrap_or(&[0; 16]));
    for list in [&KEX.join(","), HOST_KEYS, CIPHERS, CIPHERS, MACS, MACS, "none", "none", "", ""] {
        text(&mut out, list.as_bytes());
    }
    out.extend_from_slice(&[0; 5]);
    out
}

/// Our public value: 32 octets for X25519, a point for P-256, and for the groups of RFC 3526 a number below their prime, which
/// begins with 64 ones.
fn kex_init(kex: &str, random: &[u8; 32]) -> Vec<u8> {
    let mut out = vec![MSG_KEX_INIT];
    let number = |octets: usize| {
        let mut number: Vec<u8> = random.iter().copied().cycle().take(octets).collect();
        if let Some(first) = number.first_mut() {
            // Positive, and of full length.
            *first = (*first & 0x3f) | 0x40;
        }
        number
    };
    match kex {
        "ecdh-sha2-nistp256" => text(&mut out, &P256_POINT),
        _ if kex.starts_with("curve25519") => text(&mut out, random),
        "diffie-hellman-group1-sha1" => text(&mut out, &number(128)),
        "diffie-hellman-group16-sha512" => text(&mut out, &number(512)),
        _ => text(&mut out, &number(256)),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::protocols::tests::setting;

    fn server_kexinit(kex: &str) -> Vec<u8> {
        let mut out = vec![MSG_KEXINIT];
        out.extend_from_slice(&[1; 16]);
        for list in [kex, "rsa-sha2-512,ssh-ed25519", "aes128-ctr", "aes128-ctr", "hmac-sha1", "hmac-sha1", "none,zlib", "none", "", ""] {
            text(&mut out, list.as_bytes());
        }
        out.extend_from_slice(&[0; 5]);
        packet(&out)
    }

    #[test]
    fn packets_are_whole_blocks() {
        for len in 0..40 {
            let packet = packet(&vec![1; len]);
            assert_eq!(packet.len() % 8, 0);
            assert!(packet[4] >= 4);
        }
    }

    #[test]
    fn the_host_key_is_told() {
        let mut ssh = Ssh::new(&setting(22));
        assert_eq!(ssh.start(), Step::More);
        let mut input = b"No entry without reason\r\nSSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n".to_vec();
        input.extend_from_slice(&server_kexinit("sntrup761x25519-sha512,diffie-hellman-group14-sha256,curve25519-sha256"));
        let Step::Send(greeting) = ssh.on_bytes(&mut input) else { panic!("we greet too") };
        assert!(greeting.starts_with(OUR_GREETING));
        let Step::Send(init) = ssh.on_bytes(&mut input) else { panic!("we send a public value") };
        assert_eq!((init[5], &init[6..10]), (MSG_KEX_INIT, &[0, 0, 0, 32][..]), "curve25519 is our first choice");
        let mut blob = Vec::new();
        text(&mut blob, b"ssh-rsa");
        text(&mut blob, &[1, 0, 1]);
        text(&mut blob, &[&[0, 0x80][..], &[7; 255]].concat());
        let mut reply = vec![MSG_KEX_REPLY];
        text(&mut reply, &blob);
        text(&mut reply, &[9; 32]);
        input.extend_from_slice(&packet(&reply));
        let Step::Done(finding) = ssh.on_bytes(&mut input) else { panic!("that is all") };
        let service = finding.service;
        assert_eq!((service.product.as_deref(), service.version.as_deref()), (Some("OpenSSH"), Some("9.2p1")));
        assert_eq!(service.extra.as_deref(), Some("Debian-2+deb12u3"));
        assert_eq!(service.fact("ssh.hostkey.type"), Some("ssh-rsa"));
        assert_eq!(service.fact("ssh.hostkey.bits"), Some("2048"));
        assert_eq!(service.fact("ssh.hostkey.sha256"), Some(STANDARD_NO_PAD.encode(Sha256::digest(&blob)).as_str()));
        assert_eq!(service.fact("ssh.ciphers"), Some("aes128-ctr"));
        assert_eq!(finding.lookups, [(keys::SSH_BANNER, "OpenSSH_9.2p1 Debian-2+deb12u3".to_owned())]);
    }

    #[test]
    fn a_server_without_common_ground_is_told_all_the_same() {
        let mut ssh = Ssh::new(&setting(22));
        let mut input = b"SSH-2.0-future\r\n".to_vec();
        assert!(matches!(ssh.on_bytes(&mut input), Step::Send(_)));
        input.extend_from_slice(&server_kexinit("mlkem768x25519-sha256"));
        let Step::Done(finding) = ssh.on_bytes(&mut input) else { panic!("nothing to go on with") };
        assert_eq!(finding.service.fact("ssh.kex"), Some("mlkem768x25519-sha256"));
        let mut old = Ssh::new(&setting(22));
        let Step::Done(finding) = old.on_bytes(&mut b"SSH-1.5-Cisco-1.25\n".to_vec()) else { panic!("no version 1") };
        assert_eq!((finding.service.product.as_deref(), finding.service.version.as_deref()), (Some("Cisco"), Some("1.25")));
    }
}
