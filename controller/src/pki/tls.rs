//! TLS settings made from the fleet's identities.
//!
//! **Invariant:** every configuration names its cryptography provider (ring) itself, never the process default, and where
//! client certificates are asked for there is exactly one revocation list: with two for one issuer the first would win.
//!
//! Sessions are never resumed where a certificate identifies the client: a resumed handshake does not look at the
//! certificate again, so a ticket would outlive its revocation.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Crl, PkiError};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// One end's certificate and key with the fleet's authority. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<Material>);

struct Material {
    leaf: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    authority: CertificateDer<'static>,
}

impl core::fmt::Debug for Tls {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Tls(..)")
    }
}

impl Tls {
    pub(super) fn new(leaf: CertificateDer<'static>, key: PrivatePkcs8KeyDer<'static>, authority: CertificateDer<'static>) -> Self {
        Self(Arc::new(Material { leaf, key, authority }))
    }

    /// Leaf and authority. The authority is served too, against custom: a probe that enrols knows only the authority's
    /// fingerprint and finds the certificate here.
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.0.leaf.clone(), self.0.authority.clone()]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        self.0.key.clone_key().into()
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, PkiError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.authority.clone()).map_err(PkiError::Tls)?;
        Ok(Arc::new(roots))
    }

    fn verifier(&self, crl: &Crl, required: bool) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
        let builder = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider())
            .with_crls([crl.der.clone()])
            .only_check_end_entity_revocation();
        let builder = if required { builder } else { builder.allow_unauthenticated() };
        builder.build().map_err(|error| PkiError::Verifier(error.to_string()))
    }

    fn server(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        verifier: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<ServerConfig, PkiError> {
        let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions).map_err(PkiError::Tls)?;
        let resumes = verifier.is_none();
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(self.chain(), self.key()).map_err(PkiError::Tls)?;
        if !resumes {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(config)
    }

    /// For the fleet's MQTT listener: a client certificate of this authority that is not revoked is required. TLS 1.3 only.
    pub fn fleet_server(&self, crl: &Crl) -> Result<Arc<ServerConfig>, PkiError> {
        let verifier = self.verifier(crl, true)?;
        Ok(Arc::new(self.server(&[&rustls::version::TLS13], Some(verifier))?))
    }

    /// For the dashboards' MQTT listener: no client certificates, TLS 1.2 or 1.3.
    pub fn dashboard_server(&self) -> Result<Arc<ServerConfig>, PkiError> {
        Ok(Arc::new(self.server(rustls::ALL_VERSIONS, None)?))
    }

    /// For the HTTPS API: a client certificate is welcome, and refused when it is not this authority's or is revoked.
    pub fn api_server(&self, crl: &Crl) -> Result<Arc<ServerConfig>, PkiError> {
        let verifier = self.verifier(crl, false)?;
        let mut config = self.server(rustls::ALL_VERSIONS, Some(verifier))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// For a client that shows this certificate and trusts this authority alone.
    pub fn client(&self) -> Result<Arc<ClientConfig>, PkiError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .map_err(PkiError::Tls)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain(), self.key())
            .map_err(PkiError::Tls)?;
        Ok(Arc::new(config))
    }

    /// The certificate of this end.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.0.leaf
    }
}
