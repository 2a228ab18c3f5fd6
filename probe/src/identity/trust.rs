//! Judging the controller's certificate.
//!
//! Two ways in: the fleet's authority is known ([`FleetTrust`]), or, at enrolment, only its fingerprint ([`PinnedTrust`]);
//! then the authority must be in the chain that the server sends and is the only trust anchor. Either way the server's
//! certificate is verified in full against it: signature, name, key usage, expiry.
//!
//! The clock is believed only where it makes a certificate expired. A box without a clock battery wakes up in the past, and
//! "not valid yet" then says more about the box than about the certificate; so the time used is never before the
//! certificate's first valid second. What that gives up: a certificate made for the future would be taken early, which
//! nobody gains by, as it takes the authority's key to make one.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The server showed no authority with the token's fingerprint.
#[derive(Debug, thiserror::Error)]
#[error("none of its certificates has the expected fingerprint")]
pub(super) struct FingerprintMismatch;

pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// Not before any of these certificates begins.
fn lenient(now: UnixTime, certificates: &[&CertificateDer<'_>]) -> UnixTime {
    let begins = |der: &&CertificateDer<'_>| {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        u64::try_from(parsed.validity().not_before.timestamp()).ok()
    };
    let latest = certificates.iter().filter_map(begins).max().unwrap_or(0);
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_secs().max(latest)))
}

fn verifier(authority: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned())?;
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(|e| Error::General(e.to_string()))
}

macro_rules! delegate_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Trusts one authority.
#[derive(Debug)]
pub(super) struct FleetTrust(Arc<WebPkiServerVerifier>);

impl FleetTrust {
    pub(super) fn new(authority: &CertificateDer<'_>) -> Result<Self, Error> {
        verifier(authority).map(Self)
    }
}

impl ServerCertVerifier for FleetTrust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let all: Vec<_> = intermediates.iter().chain([end_entity]).collect();
        self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, lenient(now, &all))
    }

    delegate_signatures!();
}

/// Trusts the authority in the server's chain that has this SHA-256 fingerprint.
#[derive(Debug)]
pub(super) struct PinnedTrust(pub(super) [u8; 32]);

impl ServerCertVerifier for PinnedTrust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|certificate| fingerprint(certificate) == self.0);
        let Some(authority) = authority else {
            return Err(CertificateError::Other(OtherError(Arc::new(FingerprintMismatch))).into());
        };
        let all: Vec<_> = intermediates.iter().chain([end_entity]).collect();
        verifier(authority)?.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, lenient(now, &all))
    }

    delegate_signatures!();
}
