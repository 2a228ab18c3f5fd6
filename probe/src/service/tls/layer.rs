//! A TLS session for looking, not for trusting: every certificate is accepted, and told.
//!
//! **Invariant:** nothing secret is ever said inside such a session.

use core::net::IpAddr;
use core::sync::atomic::{AtomicBool, Ordering};
use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, ProtocolVersion, SignatureScheme};

/// Why TLS does not stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::service) enum TlsFailure {
    /// It speaks TLS, but we did not come to terms; why.
    Disagreed(String),
    /// What it said is not TLS.
    Foreign,
    /// It said nothing.
    Silent,
    /// It closed without a word.
    Closed,
}

/// A client's session.
pub(in crate::service) struct Session {
    conn: ClientConnection,
    asked: Arc<Asked>,
    fault: Option<Error>,
}

/// What a session came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::service) struct Agreed {
    /// `1.2`, `1.3`.
    pub(in crate::service) version: &'static str,
    /// The cipher suite's IANA name.
    pub(in crate::service) cipher: String,
    /// The application protocol chosen.
    pub(in crate::service) alpn: Option<String>,
    /// The chain as the server sent it, its own certificate first.
    pub(in crate::service) chain: Vec<Vec<u8>>,
    /// Whether the server asked for a client's certificate.
    pub(in crate::service) wants_certificate: bool,
}

impl Session {
    /// A session with the server at `addr`, offering `alpn`. `None` where the library refuses its own configuration.
    pub(in crate::service) fn new(addr: IpAddr, alpn: &[&[u8]]) -> Option<Self> {
        let asked = Arc::new(Asked(AtomicBool::new(false)));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .ok()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anything))
            .with_client_cert_resolver(asked.clone());
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = Resumption::disabled();
        let conn = ClientConnection::new(Arc::new(config), ServerName::IpAddress(addr.into())).ok()?;
        Some(Self { conn, asked, fault: None })
    }

    pub(in crate::service) fn is_handshaking(&self) -> bool {
        self.conn.is_handshaking()
    }

    /// What is to be sent.
    pub(in crate::service) fn outgoing(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.conn.wants_write() && self.conn.write_tls(&mut bytes).is_ok_and(|len| len > 0) {}
        bytes
    }

    /// Takes what arrived. A fault is kept and shows when nothing is left to read.
    pub(in crate::service) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.fault.is_none() {
            match self.conn.read_tls(&mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(_) => self.fault = self.conn.process_new_packets().err(),
            }
        }
    }

    /// Whether the handshake may go on; `heard` are the first bytes that came.
    pub(in crate::service) fn check(&self, heard: &[u8]) -> Result<(), TlsFailure> {
        match &self.fault {
            None => Ok(()),
            Some(_) if !is_tls(heard) => Err(TlsFailure::Foreign),
            Some(Error::AlertReceived(alert)) => Err(TlsFailure::Disagreed(format!("alert {alert:?}"))),
            Some(error) => Err(TlsFailure::Disagreed(error.to_string())),
        }
    }

    /// Reads what was said inside; 0 where that is nothing yet.
    pub(in crate::service) fn read(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        let mut chunk = [0; 2048];
        let mut total = 0;
        loop {
            match self.conn.reader().read(&mut chunk) {
                Ok(0) if total == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => return Ok(total),
                Ok(len) => {
                    into.extend_from_slice(chunk.get(..len).unwrap_or_default());
                    total += len;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && (total > 0 || self.fault.is_none()) => return Ok(total),
                Err(error) => return Err(error),
            }
        }
    }

    pub(in crate::service) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.conn.writer().write_all(bytes)
    }

    /// What both sides agreed on.
    pub(in crate::service) fn agreed(&self) -> Agreed {
        Agreed {
            version: match self.conn.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "1.3",
                _ => "1.2",
            },
            cipher: self.conn.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).map(iana_name).unwrap_or_default(),
            alpn: self.conn.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
            chain: self.conn.peer_certificates().unwrap_or_default().iter().map(|der| der.to_vec()).collect(),
            wants_certificate: self.asked.0.load(Ordering::Relaxed),
        }
    }
}

/// Whether bytes begin as a TLS record of a handshake or an alert does (RFC 8446, section 5.1).
pub(in crate::service) fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 3, 0..=4, ..])
}

/// The library marks suites of TLS 1.3 by a prefix of its own.
fn iana_name(name: &str) -> String {
    name.replacen("TLS13_", "TLS_", 1)
}

/// Accepts whatever is shown.
#[derive(Debug)]
struct Anything;

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        use SignatureScheme as Scheme;
        vec![
            Scheme::ECDSA_NISTP256_SHA256,
            Scheme::ECDSA_NISTP384_SHA384,
            Scheme::ECDSA_NISTP521_SHA512,
            Scheme::ED25519,
            Scheme::ED448,
            Scheme::RSA_PSS_SHA256,
            Scheme::RSA_PSS_SHA384,
            Scheme::RSA_PSS_SHA512,
            Scheme::RSA_PKCS1_SHA256,
            Scheme::RSA_PKCS1_SHA384,
            Scheme::RSA_PKCS1_SHA512,
            Scheme::RSA_PKCS1_SHA1,
            Scheme::ECDSA_SHA1_Legacy,
        ]
    }
}

/// Has no certificate, and remembers that it was asked for one.
#[derive(Debug)]
struct Asked(AtomicBool);

impl ResolvesClientCert for Asked {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _sigschemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}
