//! Enrolment: a one-time token becomes an identity.
//!
//! The token names the controller and the fingerprint of its authority, so the first contact is authenticated both ways. The
//! key is made here and stays here. When the power fails on the way, the box has no identity and the same key ready for the
//! next attempt; whether the token still serves then is the controller's decision.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use picket_wire::enrol::{EnrolRequest, EnrolResponse, Token, TokenError};
use picket_wire::ids::ProbeId;
use rustls::{CertificateError, ClientConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::trust::{self, FingerprintMismatch, PinnedTrust};
use super::{CERTIFICATE, Enrolment, Identity, IdentityError, Parts};

/// For the whole exchange with one address.
const PATIENCE: Duration = Duration::from_secs(30);
/// The answer has a few kilobytes.
const ANSWER_MAX: usize = 64 * 1024;

/// Why the box did not become a probe.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The text is not a token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// It has an identity, which is never replaced.
    #[error("this box is already enrolled as `{probe}`: remove {} first if it should become another probe", dir.display())]
    AlreadyEnrolled {
        /// Its name.
        probe: ProbeId,
        /// The identity's directory.
        dir: PathBuf,
    },
    /// The token names an address that is none.
    #[error("the token names `{url}`, which is not an address of the form https://host:port")]
    Address {
        /// The text.
        url: String,
    },
    /// Nobody answers.
    #[error("the controller at {url} cannot be reached")]
    Unreachable {
        /// Its address.
        url: String,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else answers.
    #[error("{url} is not the controller that made the token: its certificate authority has another fingerprint")]
    Stranger {
        /// Its address.
        url: String,
    },
    /// The controller's certificate has expired, or the clock of this box is ahead.
    #[error("the certificate of the controller at {url} has expired; if that cannot be, set the clock of this box: {reason}")]
    Clock {
        /// Its address.
        url: String,
        /// The times.
        reason: String,
    },
    /// TLS failed otherwise.
    #[error("TLS with the controller at {url} failed")]
    Tls {
        /// Its address.
        url: String,
        /// What happened.
        source: io::Error,
    },
    /// The controller says no.
    #[error("the controller at {url} refused the enrolment: {message} (status {status})")]
    Refused {
        /// Its address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The controller's words.
        message: String,
    },
    /// The controller's answer makes no sense.
    #[error("the controller at {url} gave an unusable answer: {reason}")]
    Answer {
        /// Its address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The identity cannot be kept here.
    #[error("the identity cannot be stored")]
    Store(#[from] IdentityError),
}

/// What the box says of itself.
#[derive(Debug, Clone)]
pub struct About {
    /// What it is, in a few words.
    pub hardware: String,
    /// The program's version.
    pub version: String,
}

/// Turns a token into the identity of `data`, trying the token's addresses in order.
///
/// # Errors
/// The first refusal, or the last failure to reach anybody. Nothing but a prepared key is left behind.
pub async fn enrol(data: &Path, token: &str, about: About) -> Result<Identity, EnrolError> {
    let token: Token = token.parse()?;
    match Identity::load(data) {
        Ok(identity) => {
            return Err(EnrolError::AlreadyEnrolled { probe: identity.probe().clone(), dir: Identity::directory(data) });
        }
        Err(IdentityError::NotEnrolled { .. }) => {}
        Err(other) => return Err(other.into()),
    }
    let key = super::prepared_key(data)?;
    let request = EnrolRequest {
        probe: token.probe.clone(),
        secret: hex::encode(token.secret),
        csr_pem: signing_request(&token.probe, &key).map_err(EnrolError::Store)?,
        hardware: about.hardware,
        version: about.version,
    };
    let body = Bytes::from(serde_json::to_vec(&request).expect("texts can be written as JSON"));
    let mut failure = EnrolError::Address { url: String::new() };
    for url in &token.urls {
        match ask(url, token.ca_sha256, body.clone()).await {
            Ok(answer) => {
                let identity = accept(url, &token, &key, answer)?;
                identity.store(data)?;
                return Ok(identity);
            }
            // Somebody with authority has spoken; the others would say the same.
            Err(error @ (EnrolError::Refused { .. } | EnrolError::Answer { .. })) => return Err(error),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn signing_request(probe: &ProbeId, key: &rcgen::KeyPair) -> Result<String, IdentityError> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, probe.as_str());
    let request = params.serialize_request(key).and_then(|request| request.pem());
    request.map_err(|e| IdentityError::Io { action: "make a certificate request", path: PathBuf::new(), source: io::Error::other(e) })
}

/// Checks that the answer is what the token promised.
fn accept(url: &str, token: &Token, key: &rcgen::KeyPair, answer: EnrolResponse) -> Result<Identity, EnrolError> {
    let unusable = |reason: String| EnrolError::Answer { url: url.to_owned(), reason };
    let authority = CertificateDer::from_pem_slice(answer.ca_pem.as_bytes()).map_err(|e| unusable(format!("its authority: {e}")))?;
    if trust::fingerprint(&authority) != token.ca_sha256 {
        return Err(unusable("its authority is not the one of the token".to_owned()));
    }
    let enrolment = Enrolment { probe: token.probe.clone(), brokers: answer.brokers, urls: token.urls.clone(), prefix: answer.prefix };
    let parts =
        Parts { key: key.serialize_pem(), certificate: answer.certificate_pem, authority: answer.ca_pem, signing: answer.signing_key };
    let identity = Identity::check(enrolment, parts).map_err(|(name, reason)| unusable(format!("{name}: {reason}")))?;
    signed_by(&identity.certificate, &identity.authority).map_err(|reason| unusable(format!("{CERTIFICATE}: {reason}")))?;
    Ok(identity)
}

fn signed_by(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> Result<(), String> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|e| e.to_string())?;
    let (_, authority) = X509Certificate::from_der(authority).map_err(|e| e.to_string())?;
    if certificate.issuer() == authority.subject() { Ok(()) } else { Err("another authority made it".to_owned()) }
}

/// One exchange with one address.
async fn ask(url: &str, fingerprint: [u8; 32], body: Bytes) -> Result<EnrolResponse, EnrolError> {
    let exchange = exchange(url, fingerprint, body);
    let timed_out = || EnrolError::Unreachable { url: url.to_owned(), source: io::ErrorKind::TimedOut.into() };
    let (status, body) = tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| timed_out())??;
    if status != 200 && status != 201 {
        return Err(EnrolError::Refused { url: url.to_owned(), status, message: explanation(&body) });
    }
    serde_json::from_slice(&body).map_err(|e| EnrolError::Answer { url: url.to_owned(), reason: e.to_string() })
}

/// The words in a problem document (RFC 9457, section 3.1), else the beginning of whatever came.
fn explanation(body: &[u8]) -> String {
    let problem: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let field = |name: &str| problem.as_ref()?.get(name)?.as_str().map(str::to_owned);
    let raw = || String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).take(200).collect::<String>();
    let text = field("detail").or_else(|| field("title")).unwrap_or_else(raw);
    if text.is_empty() { "without a reason".to_owned() } else { text }
}

async fn exchange(url: &str, fingerprint: [u8; 32], body: Bytes) -> Result<(u16, Bytes), EnrolError> {
    let (host, port) = split_url(url).ok_or_else(|| EnrolError::Address { url: url.to_owned() })?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| EnrolError::Address { url: url.to_owned() })?;
    let unreachable = |source| EnrolError::Unreachable { url: url.to_owned(), source };
    let stream = TcpStream::connect((host, port)).await.map_err(unreachable)?;
    let stream = connector(fingerprint).connect(name, stream).await.map_err(|e| tls_error(url, e))?;

    let broken = |e: hyper::Error| EnrolError::Tls { url: url.to_owned(), source: io::Error::other(e) };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::post("/v1/enrol")
        .header(HOST, url.trim_start_matches("https://").trim_end_matches('/'))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|e| EnrolError::Answer { url: url.to_owned(), reason: e.to_string() })?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|e| EnrolError::Answer { url: url.to_owned(), reason: e.to_string() })?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(talk);
    tokio::select! {
        biased;
        answer = &mut talk => return answer,
        // The connection ends only after the answer is read, or with an error that the other side reports.
        _ = connection => {}
    }
    talk.await
}

fn connector(fingerprint: [u8; 32]) -> TlsConnector {
    let mut config = ClientConfig::builder_with_provider(trust::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has suites for these versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedTrust(fingerprint)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

fn tls_error(url: &str, source: io::Error) -> EnrolError {
    let url = url.to_owned();
    let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) if other.0.is::<FingerprintMismatch>() => {
            EnrolError::Stranger { url }
        }
        Some(rustls::Error::InvalidCertificate(reason @ (CertificateError::Expired | CertificateError::ExpiredContext { .. }))) => {
            EnrolError::Clock { url, reason: reason.to_string() }
        }
        _ => EnrolError::Tls { url, source },
    }
}

/// Host (without brackets) and port.
fn split_url(url: &str) -> Option<(&str, u16)> {
    let authority = url.strip_prefix("https://")?.trim_end_matches('/');
    let (host, port) = crate::transport::split_address(authority)?;
    Some((host, port))
}
