//! Who this probe is: its key and certificate, whom it trusts, and where its controller is.
//!
//! The identity is a directory, `identity/` below the data directory:
//!
//! | file | what |
//! |---|---|
//! | `key.pem` | the probe's private key (PKCS#8, ECDSA P-256), mode 0600; made here, never sent |
//! | `cert.pem` | its certificate, whose common name is the probe's id |
//! | `ca.pem` | the fleet's certificate authority, the only one that is trusted |
//! | `signing.pub` | the controller's command signing key (Ed25519, 64 hexadecimal digits) |
//! | `enrolment.json` | the probe's id, brokers, API addresses and topic prefix |
//!
//! It must not know how commands are verified or how connections are kept.
//!
//! **Invariant:** the directory exists complete or not at all: it is filled under the name `identity.new`, synced, and
//! renamed.

pub mod enrol;
mod trust;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use picket_wire::ids::ProbeId;
use picket_wire::topic::Prefix;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

const DIRECTORY: &str = "identity";
const UNFINISHED: &str = "identity.new";
const KEY: &str = "key.pem";
const CERTIFICATE: &str = "cert.pem";
const AUTHORITY: &str = "ca.pem";
const SIGNING: &str = "signing.pub";
const ENROLMENT: &str = "enrolment.json";

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The box was never enrolled.
    #[error("this box is not enrolled ({} does not exist): run `picket-probe enrol TOKEN` with a token from `picket probe add`", dir.display())]
    NotEnrolled {
        /// The identity's directory.
        dir: PathBuf,
    },
    /// A file is not what it should be.
    #[error("{} is damaged: {reason}; remove {} and enrol again", path.display(), path.parent().unwrap_or(path).display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { action, path, source }
}

/// What `enrolment.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Enrolment {
    probe: ProbeId,
    brokers: Vec<String>,
    urls: Vec<String>,
    prefix: Prefix,
}

/// A complete identity, checked.
pub struct Identity {
    enrolment: Enrolment,
    key: PrivateKeyDer<'static>,
    key_pem: String,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    authority: CertificateDer<'static>,
    authority_pem: String,
    signing_key: [u8; 32],
}

impl core::fmt::Debug for Identity {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Identity").field("enrolment", &self.enrolment).finish_non_exhaustive()
    }
}

impl Identity {
    /// The probe's name.
    pub fn probe(&self) -> &ProbeId {
        &self.enrolment.probe
    }

    /// The MQTT brokers, `host:port`, to be tried in this order.
    pub fn brokers(&self) -> &[String] {
        &self.enrolment.brokers
    }

    /// The controller's API addresses, `https://host:port`.
    pub fn urls(&self) -> &[String] {
        &self.enrolment.urls
    }

    /// The topics' prefix.
    pub fn prefix(&self) -> &Prefix {
        &self.enrolment.prefix
    }

    /// The controller's command signing key (Ed25519 public key bytes).
    pub fn signing_key(&self) -> &[u8; 32] {
        &self.signing_key
    }

    /// Where the identity of a data directory is.
    pub fn directory(data: &Path) -> PathBuf {
        data.join(DIRECTORY)
    }

    /// Reads and checks the identity of a data directory.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn load(data: &Path) -> Result<Identity, IdentityError> {
        let dir = Self::directory(data);
        if !dir.try_exists().map_err(io_error("look for", &dir))? {
            return Err(IdentityError::NotEnrolled { dir });
        }
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(io_error("read", &path))
        };
        let damaged = |name: &str| {
            let path = dir.join(name);
            move |reason: String| IdentityError::Damaged { path, reason }
        };
        let enrolment: Enrolment = serde_json::from_str(&read(ENROLMENT)?).map_err(|e| damaged(ENROLMENT)(e.to_string()))?;
        let parts = Parts { key: read(KEY)?, certificate: read(CERTIFICATE)?, authority: read(AUTHORITY)?, signing: read(SIGNING)? };
        Identity::check(enrolment, parts).map_err(|(name, reason)| damaged(name)(reason))
    }

    /// Makes an identity of its parts, or names the part that does not fit and why.
    fn check(enrolment: Enrolment, parts: Parts) -> Result<Identity, (&'static str, String)> {
        let key = PrivateKeyDer::from_pem_slice(parts.key.as_bytes()).map_err(|e| (KEY, e.to_string()))?;
        let certificate = CertificateDer::from_pem_slice(parts.certificate.as_bytes()).map_err(|e| (CERTIFICATE, e.to_string()))?;
        let authority = CertificateDer::from_pem_slice(parts.authority.as_bytes()).map_err(|e| (AUTHORITY, e.to_string()))?;
        let name = common_name(&certificate).map_err(|reason| (CERTIFICATE, reason))?;
        if name != enrolment.probe.as_str() {
            return Err((CERTIFICATE, format!("it is for `{name}` and not for `{}`", enrolment.probe)));
        }
        let signing = hex::decode(parts.signing.trim()).ok().and_then(|bytes| bytes.try_into().ok());
        let signing_key = signing.ok_or((SIGNING, "64 hexadecimal digits are expected".to_owned()))?;
        if enrolment.brokers.is_empty() {
            return Err((ENROLMENT, "it names no broker".to_owned()));
        }
        let identity = Identity {
            enrolment,
            key,
            key_pem: parts.key,
            certificate,
            certificate_pem: parts.certificate,
            authority,
            authority_pem: parts.authority,
            signing_key,
        };
        // The builder compares key and certificate.
        identity.tls_config().map_err(|e| (CERTIFICATE, e.to_string()))?;
        Ok(identity)
    }

    /// TLS with this identity: its certificate is shown, the fleet's authority alone is trusted, TLS 1.3.
    ///
    /// A clock that is behind does not matter: no certificate is refused because it is not valid yet.
    ///
    /// # Errors
    /// Key, certificate and authority do not fit each other.
    pub fn tls_config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        let verifier = trust::FleetTrust::new(&self.authority)?;
        let mut config = ClientConfig::builder_with_provider(trust::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        // A resumed session would show an old certificate's identity, and tickets cost memory.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// Writes the identity of a data directory that has none. All or nothing, whenever the power fails.
    fn store(&self, data: &Path) -> Result<(), IdentityError> {
        let unfinished = unfinished(data)?;
        let enrolment = serde_json::to_string_pretty(&self.enrolment).expect("names and addresses can be written as JSON");
        write(&unfinished.join(KEY), self.key_pem.as_bytes(), 0o600)?;
        write(&unfinished.join(CERTIFICATE), self.certificate_pem.as_bytes(), 0o644)?;
        write(&unfinished.join(AUTHORITY), self.authority_pem.as_bytes(), 0o644)?;
        write(&unfinished.join(SIGNING), format!("{}\n", hex::encode(self.signing_key)).as_bytes(), 0o644)?;
        write(&unfinished.join(ENROLMENT), enrolment.as_bytes(), 0o644)?;
        sync_dir(&unfinished)?;
        let dir = Self::directory(data);
        // Renaming a directory onto one that is not empty fails: an existing identity is never replaced.
        fs::rename(&unfinished, &dir).map_err(io_error("create", &dir))?;
        sync_dir(data)
    }
}

/// The files, as text.
struct Parts {
    key: String,
    certificate: String,
    authority: String,
    signing: String,
}

/// The directory where an identity is prepared; made where it is missing.
fn unfinished(data: &Path) -> Result<PathBuf, IdentityError> {
    let dir = data.join(UNFINISHED);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io_error("create", &dir))?;
    Ok(dir)
}

/// The key that an interrupted enrolment left, so that the controller meets the same one again; else a new one, on the
/// disk before it is used.
fn prepared_key(data: &Path) -> Result<rcgen::KeyPair, IdentityError> {
    let path = unfinished(data)?.join(KEY);
    let left = fs::read_to_string(&path).ok().and_then(|pem| rcgen::KeyPair::from_pem(&pem).ok());
    if let Some(key) = left.filter(|key| key.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256)) {
        return Ok(key);
    }
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|e| IdentityError::Io {
        action: "make a key for",
        path: path.clone(),
        source: io::Error::other(e),
    })?;
    write(&path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("replace", path)(e)),
        _ => {}
    }
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    made.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all())).map_err(io_error("write", path))
}

fn sync_dir(dir: &Path) -> Result<(), IdentityError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}

fn common_name(certificate: &CertificateDer<'_>) -> Result<String, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| e.to_string())?;
    let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok().map(str::to_owned));
    name.ok_or_else(|| "it has no common name".to_owned())
}

#[cfg(test)]
pub(crate) mod tests;
