//! A hello that offers one version of TLS and everything that was ever usual with it: whether the server takes it, and what it
//! shows. In versions before 1.3 certificates are plain, so old servers that no library talks to any more are still told.

use picket_wire::units::UnixMillis;

use super::certificate;
use crate::service::dialogue::{Dialogue, End, Finding, Step};
use crate::service::text::Reader;

/// A version of TLS by its number on the wire (RFC 8446, section 4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::service) struct Version(u16);

impl Version {
    /// All that are asked for, oldest first.
    pub(in crate::service) const ALL: [Version; 4] = [Version(0x0301), Version(0x0302), Version(0x0303), Version(0x0304)];

    pub(in crate::service) fn as_str(self) -> &'static str {
        match self.0 {
            0x0300 => "ssl3",
            0x0301 => "1.0",
            0x0302 => "1.1",
            0x0303 => "1.2",
            0x0304 => "1.3",
            _ => "unknown",
        }
    }

    const TLS13: Version = Version(0x0304);
}

/// Suites by their numbers and, where we tell them, names (IANA, "TLS Cipher Suites"); preferred first.
const SUITES: &[(u16, &str)] = &[
    (0xc02c, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    (0xc030, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
    (0xc02b, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
    (0xc02f, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
    (0xcca9, "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
    (0xcca8, "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
    (0x009f, "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384"),
    (0x009e, "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256"),
    (0xc00a, "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA"),
    (0xc014, "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA"),
    (0xc009, "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA"),
    (0xc013, "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"),
    (0x0039, "TLS_DHE_RSA_WITH_AES_256_CBC_SHA"),
    (0x0033, "TLS_DHE_RSA_WITH_AES_128_CBC_SHA"),
    (0x009d, "TLS_RSA_WITH_AES_256_GCM_SHA384"),
    (0x009c, "TLS_RSA_WITH_AES_128_GCM_SHA256"),
    (0x003d, "TLS_RSA_WITH_AES_256_CBC_SHA256"),
    (0x003c, "TLS_RSA_WITH_AES_128_CBC_SHA256"),
    (0x0035, "TLS_RSA_WITH_AES_256_CBC_SHA"),
    (0x002f, "TLS_RSA_WITH_AES_128_CBC_SHA"),
    (0x000a, "TLS_RSA_WITH_3DES_EDE_CBC_SHA"),
    (0x0005, "TLS_RSA_WITH_RC4_128_SHA"),
    (0x0004, "TLS_RSA_WITH_RC4_128_MD5"),
];
const SUITES_13: &[(u16, &str)] =
    &[(0x1301, "TLS_AES_128_GCM_SHA256"), (0x1302, "TLS_AES_256_GCM_SHA384"), (0x1303, "TLS_CHACHA20_POLY1305_SHA256")];
/// RFC 5746: renegotiation is safe here, as there will be none.
const RENEGOTIATION_SCSV: u16 = 0x00ff;
const ALPN: &[&str] = &["h2", "http/1.1"];

const RECORD_ALERT: u8 = 21;
const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const CERTIFICATE: u8 = 11;
const SERVER_KEY_EXCHANGE: u8 = 12;
const SERVER_HELLO_DONE: u8 = 14;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_SUPPORTED_VERSIONS: u16 = 43;
/// Certificates kept of a chain.
const CHAIN_MAX: usize = 8;

/// Asks for one version.
pub(in crate::service) struct Hello {
    version: Version,
    random: [u8; 32],
    now: Option<UnixMillis>,
    handshake: Vec<u8>,
    flight: Flight,
}

/// What a server's first flight says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Flight {
    version: Option<Version>,
    suite: u16,
    alpn: Option<String>,
    chain: Vec<Vec<u8>>,
    alert: Option<u8>,
    over: bool,
}

impl Hello {
    /// A hello for `version`; `random` is any 32 bytes, `now` counts the days that certificates are still valid.
    pub(in crate::service) fn new(version: Version, random: [u8; 32], now: Option<UnixMillis>) -> Self {
        Self { version, random, now, handshake: Vec::new(), flight: Flight::default() }
    }

    fn finding(&self) -> Option<Box<Finding>> {
        let flight = &self.flight;
        if flight.version.is_none() && flight.alert.is_none() {
            return None;
        }
        let mut finding = Finding::new("tls");
        finding.service.tls = true;
        // A server that answers with another version than the only one offered has not taken it.
        if flight.version == Some(self.version) {
            finding.fact("tls.version", self.version.as_str());
            let known = SUITES.iter().chain(SUITES_13).find(|(number, _)| *number == flight.suite);
            finding.fact("tls.cipher", known.map_or_else(|| format!("{:#06x}", flight.suite), |(_, name)| (*name).to_owned()));
            finding.fact("tls.alpn", flight.alpn.clone().unwrap_or_default());
        }
        certificate::describe(&flight.chain, self.now, &mut finding);
        Some(Box::new(finding))
    }
}

impl Dialogue for Hello {
    fn start(&mut self) -> Step {
        Step::Send(client_hello(self.version, &self.random))
    }

    fn on_bytes(&mut self, input: &mut Vec<u8>) -> Step {
        let Some(taken) = take_records(input, &mut self.handshake, &mut self.flight) else { return Step::Foreign };
        input.drain(..taken);
        let read = self.flight.read(&self.handshake);
        self.handshake.drain(..read);
        if !self.flight.over {
            return Step::More;
        }
        self.finding().map_or(Step::Foreign, Step::Done)
    }

    fn on_end(&mut self, _input: &[u8], _how: End) -> Option<Box<Finding>> {
        self.finding()
    }
}

/// Moves the handshake's part of whole records over; returns how many bytes were whole, `None` where they are no TLS.
fn take_records(input: &[u8], handshake: &mut Vec<u8>, flight: &mut Flight) -> Option<usize> {
    let mut reader = Reader::new(input);
    loop {
        let mut record = reader;
        let (Some(kind), Some(major)) = (record.u8(), record.u8()) else { break };
        if major != 3 || !(20..=24).contains(&kind) {
            return None;
        }
        let Some(body) = record.u8().and_then(|_| record.sized16()) else { break };
        match kind {
            RECORD_HANDSHAKE => handshake.extend_from_slice(body),
            RECORD_ALERT => {
                flight.alert = body.get(1).copied();
                flight.over = true;
            }
            // A change of cipher, or what follows a hello of 1.3: nothing that we can read.
            _ => flight.over |= flight.version.is_some(),
        }
        reader = record;
    }
    Some(input.len() - reader.rest().len())
}

impl Flight {
    /// Reads whole messages; returns how many bytes they were.
    fn read(&mut self, handshake: &[u8]) -> usize {
        let mut reader = Reader::new(handshake);
        loop {
            let mut message = reader;
            let (Some(kind), Some(len)) = (message.u8(), message.u24()) else { break };
            let Some(body) = message.take(len) else { break };
            match kind {
                SERVER_HELLO => {
                    // What is cut short says as much as it does.
                    let _ = self.hello(body);
                    self.over |= self.version == Some(Version::TLS13);
                }
                CERTIFICATE => {
                    let _ = self.certificates(body);
                }
                SERVER_KEY_EXCHANGE | SERVER_HELLO_DONE => self.over = true,
                _ => {}
            }
            reader = message;
        }
        handshake.len() - reader.rest().len()
    }

    /// RFC 5246, section 7.4.1.3, and RFC 8446, section 4.1.3.
    fn hello(&mut self, body: &[u8]) -> Option<()> {
        let mut reader = Reader::new(body);
        self.version = Some(Version(reader.u16()?));
        reader.take(32)?;
        reader.sized8()?;
        self.suite = reader.u16()?;
        reader.u8()?;
        let mut extensions = Reader::new(reader.sized16()?);
        while let (Some(kind), Some(body)) = (extensions.u16(), extensions.sized16()) {
            let mut body = Reader::new(body);
            match kind {
                EXTENSION_SUPPORTED_VERSIONS => self.version = body.u16().map(Version).or(self.version),
                EXTENSION_ALPN => {
                    self.alpn = body.sized16().and_then(|list| Reader::new(list).sized8()).map(crate::service::text::clean);
                }
                _ => {}
            }
        }
        Some(())
    }

    fn certificates(&mut self, body: &[u8]) -> Option<()> {
        let mut reader = Reader::new(body);
        let len = reader.u24()?;
        let mut list = Reader::new(reader.take(len)?);
        while self.chain.len() < CHAIN_MAX {
            let len = list.u24()?;
            self.chain.push(list.take(len)?.to_vec());
        }
        Some(())
    }
}

/// Appends what `write` writes behind its length of two octets.
fn sized(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0, 0]);
    write(out);
    let len = u16::try_from(out.len() - at - 2).unwrap_or(u16::MAX).to_be_bytes();
    if let Some(slot) = out.get_mut(at..at + 2) {
        slot.copy_from_slice(&len);
    }
}

fn numbers(out: &mut Vec<u8>, numbers: impl IntoIterator<Item = u16>) {
    out.extend(numbers.into_iter().flat_map(u16::to_be_bytes));
}

fn extension(out: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&kind.to_be_bytes());
    sized(out, write);
}

/// RFC 8446, section 4.1.2; RFC 5246, section 7.4.1.2.
fn client_hello(version: Version, random: &[u8; 32]) -> Vec<u8> {
    let tls13 = version == Version::TLS13;
    let mut body = Vec::with_capacity(256);
    body.extend_from_slice(&version.0.min(0x0303).to_be_bytes());
    body.extend_from_slice(random);
    // A session id in the way of 1.3's compatibility mode; older versions have none to resume.
    if tls13 {
        body.push(32);
        body.extend_from_slice(random);
    } else {
        body.push(0);
    }
    sized(&mut body, |out| {
        numbers(out, if tls13 { SUITES_13 } else { SUITES }.iter().map(|(number, _)| *number));
        numbers(out, (!tls13).then_some(RENEGOTIATION_SCSV));
    });
    body.extend_from_slice(&[1, 0]);
    sized(&mut body, |out| extensions(out, version, random));
    let mut message = vec![CLIENT_HELLO, 0];
    sized(&mut message, |out| out.extend_from_slice(&body));
    let mut record = vec![RECORD_HANDSHAKE, 3, 1];
    sized(&mut record, |out| out.extend_from_slice(&message));
    record
}

fn extensions(out: &mut Vec<u8>, version: Version, random: &[u8; 32]) {
    // x25519, secp256r1, secp384r1, secp521r1.
    extension(out, 10, |out| sized(out, |out| numbers(out, [0x001d, 0x0017, 0x0018, 0x0019])));
    extension(out, 11, |out| out.extend_from_slice(&[1, 0]));
    if version.0 >= 0x0303 {
        let schemes = [0x0403, 0x0503, 0x0603, 0x0807, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0203, 0x0201];
        extension(out, 13, |out| sized(out, |out| numbers(out, schemes)));
    }
    extension(out, EXTENSION_ALPN, |out| {
        sized(out, |out| {
            for name in ALPN {
                out.push(u8::try_from(name.len()).unwrap_or_default());
                out.extend_from_slice(name.as_bytes());
            }
        });
    });
    if version == Version::TLS13 {
        extension(out, EXTENSION_SUPPORTED_VERSIONS, |out| {
            out.push(2);
            numbers(out, [version.0]);
        });
        // Any 32 octets are a public key of X25519 (RFC 7748); the answer is never read, so no secret belongs to it.
        extension(out, 51, |out| {
            sized(out, |out| {
                numbers(out, [0x001d]);
                sized(out, |out| out.extend_from_slice(random));
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection};

    use super::*;

    /// What a real server says to a hello of `version`.
    fn answer(version: Version, offered: &'static rustls::SupportedProtocolVersion) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["box.example.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[offered])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let mut server = ServerConnection::new(Arc::new(config)).unwrap();
        let hello = client_hello(version, &[7; 32]);
        server.read_tls(&mut &hello[..]).unwrap();
        let _ = server.process_new_packets();
        let mut out = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut out).unwrap();
        }
        out
    }

    fn told(version: Version, bytes: &[u8], chunk: usize) -> Option<Box<Finding>> {
        let mut hello = Hello::new(version, [7; 32], None);
        let Step::Send(_) = hello.start() else { panic!("a client speaks first") };
        let mut input = Vec::new();
        for part in bytes.chunks(chunk) {
            input.extend_from_slice(part);
            match hello.on_bytes(&mut input) {
                Step::Done(finding) => return Some(finding),
                Step::More => {}
                step => panic!("{step:?}"),
            }
        }
        hello.on_end(&input, End::Closed)
    }

    #[test]
    fn versions_are_taken_or_not() {
        let [_, _, tls12, tls13] = Version::ALL;
        for chunk in [1, 7, 10_000] {
            let found = told(tls12, &answer(tls12, &rustls::version::TLS12), chunk).unwrap().service;
            assert_eq!(found.fact("tls.version"), Some("1.2"));
            assert_eq!(found.fact("tls.names"), Some("box.example.test"));
            assert_eq!(found.fact("tls.cipher"), Some("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"));
            assert_eq!(found.fact("tls.alpn"), Some("h2"));
            let found = told(tls13, &answer(tls13, &rustls::version::TLS13), chunk).unwrap().service;
            assert_eq!(found.fact("tls.version"), Some("1.3"));
            let found = told(tls13, &answer(tls13, &rustls::version::TLS12), chunk).unwrap().service;
            assert!(found.tls && found.fact("tls.version").is_none(), "an alert is TLS, and says no: {found:?}");
        }
    }

    #[test]
    fn an_old_server_shows_its_certificate() {
        // ServerHello of TLS 1.0 with 3DES, and an empty chain's message.
        let mut hello = vec![2, 0, 0, 38, 3, 1];
        hello.extend_from_slice(&[9; 32]);
        hello.extend_from_slice(&[0, 0, 0x0a, 0]);
        hello.extend_from_slice(&[11, 0, 0, 3, 0, 0, 0, 14, 0, 0, 0]);
        let mut record = vec![22, 3, 1, 0, u8::try_from(hello.len()).unwrap()];
        record.extend_from_slice(&hello);
        let found = told(Version::ALL[0], &record, 5).unwrap().service;
        assert_eq!((found.fact("tls.version"), found.fact("tls.cipher")), (Some("1.0"), Some("TLS_RSA_WITH_3DES_EDE_CBC_SHA")));
    }

    #[test]
    fn other_protocols_are_foreign() {
        let mut hello = Hello::new(Version::ALL[3], [7; 32], None);
        assert_eq!(hello.on_bytes(&mut b"SSH-2.0-x\r\n".to_vec()), Step::Foreign);
        assert_eq!(hello.on_end(b"", End::Silence), None);
    }

    proptest! {
        #[test]
        fn any_answer_is_harmless(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 20u8..25) {
            let mut hello = Hello::new(Version::ALL[2], [7; 32], None);
            let mut record = vec![kind, 3, 3];
            sized(&mut record, |out| out.extend_from_slice(&bytes));
            hello.on_bytes(&mut record);
            hello.on_bytes(&mut bytes.clone());
            hello.on_end(&bytes, End::Closed);
        }

        #[test]
        fn any_damage_is_harmless(at in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = answer(Version::ALL[2], &rustls::version::TLS12);
            let index = at.index(bytes.len());
            bytes[index] = byte;
            let mut hello = Hello::new(Version::ALL[2], [7; 32], None);
            hello.on_bytes(&mut bytes);
            hello.on_end(&bytes, End::Closed);
        }
    }
}
