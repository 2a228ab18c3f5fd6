//! The HTTP API as a script uses it: TLS with the fleet's authority alone, the admin token, JSON.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::de::DeserializeOwned;

use super::API_PORT;
use crate::lab::Namespace;

/// How long one answer may take, the wait of a long poll included.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A client of one controller, in its own namespace.
#[derive(Clone, Debug)]
pub struct Api {
    namespace: Namespace,
    base: String,
    data: PathBuf,
}

impl Api {
    pub(super) fn new(namespace: Namespace, address: IpAddr, data: &Path) -> Self {
        Self { namespace, base: format!("https://{address}:{API_PORT}/v1"), data: data.to_owned() }
    }

    /// `GET /v1/<path>`.
    ///
    /// # Errors
    /// When there is no answer, or it is an error, or not what is expected.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let url = format!("{}/{path}", self.base);
        let text = self.namespace.enter(|| self.fetch(&url)).with_context(|| format!("GET {url}"))??;
        serde_json::from_str(&text).with_context(|| format!("the answer to GET {url}: {text}"))
    }

    fn fetch(&self, url: &str) -> Result<String> {
        let authority = CertificateDer::from_pem_file(self.data.join("ca.pem")).map_err(|error| anyhow!("read ca.pem: {error}"))?;
        let token = std::fs::read_to_string(self.data.join("admin.token")).context("read admin.token")?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority).context("trust ca.pem")?;
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().timeout(TIMEOUT).build()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let response = client.get(url).bearer_auth(token.trim()).send().await?;
            let status = response.status();
            let text = response.text().await?;
            ensure!(status.is_success(), "{status}: {text}");
            Ok(text)
        })
    }
}
