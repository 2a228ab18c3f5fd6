//! The fleet's certificate authority, its identities and the command-signing key, kept as files in the data directory.
//!
//! | file | mode | what |
//! |---|---|---|
//! | `ca.pem`, `ca.key` | 0644, 0600 | the authority: ECDSA P-256, twenty years |
//! | `signing.key` | 0600 | Ed25519 key that signs commands, PKCS#8 |
//! | `server.pem`, `server.key` | 0644, 0600 | what the controller's listeners show |
//! | `controller.pem`, `controller.key` | 0644, 0600 | what the controller shows as an MQTT client |
//! | `crl.pem` | 0644 | the newest revocation list, for brokers of others |
//!
//! All of them are made on the first start. Later the authority and the signing key are only ever read: when one is missing
//! the service refuses to start, because a new one would lock out every probe. The other files follow from the authority, so
//! a missing one is made again. A damaged file, or one that others could read or write, is an error that names it.
//!
//! Which certificates are revoked is not known here: the caller's database is the truth, and [`Pki::crl`] signs what it says.
//!
//! **Invariant:** a certificate signed here carries only what the controller decided; of a request nothing is used but the key.
//! **Invariant:** files are replaced whole, so that a crash at any moment leaves a directory that opens again.

mod files;
mod identity;
mod issue;
mod names;
mod signing;
mod tls;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use ed25519_dalek::SigningKey;
use picket_wire::ids::ProbeId;
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use files::Access::{Public, Secret};
use issue::Authority;

pub use identity::{Identity, OU_CONTROLLER, OU_PROBE, Peer, Serial, SerialError, identity_of};
pub use names::{NameError, Names};
pub use tls::Tls;

const CA_CERT: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const SIGNING_KEY: &str = "signing.key";
const SERVER: (&str, &str) = ("server.pem", "server.key");
const CONTROLLER: (&str, &str) = ("controller.pem", "controller.key");
const CRL: &str = "crl.pem";
/// Exists while the first start writes the files; found later, it says that nothing of them was ever used.
const UNFINISHED: &str = "pki.unfinished";

/// What can go wrong with the authority. Each message says which file or request it is about.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The operating system refused.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file that cannot be made again is not there, though others are.
    #[error("{} is missing although the fleet's authority was set up here: restore it from a backup", path.display())]
    Missing {
        /// The missing file.
        path: PathBuf,
    },
    /// A file is not what it should be.
    #[error("{} cannot be used: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or the directory is open to others.
    #[error("{} has mode {mode:04o}, which lets others in: make it {wanted:04o}", path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        wanted: u32,
    },
    /// The authority itself has come to its end.
    #[error("{} ended at {ended}: no certificate can be issued any more", path.display())]
    Ended {
        /// The authority's certificate.
        path: PathBuf,
        /// When it ended.
        ended: OffsetDateTime,
    },
    /// A probe's signing request was refused.
    #[error("the signing request of probe `{probe}` was refused: {reason}")]
    Request {
        /// For whom it was made.
        probe: ProbeId,
        /// What is wrong with it.
        reason: String,
    },
    /// Making a key, certificate or list failed.
    #[error("make {what}")]
    Generate {
        /// What was to be made.
        what: &'static str,
        /// Why it failed.
        source: rcgen::Error,
    },
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
    /// TLS cannot work with these certificates.
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    /// The client certificate verifier cannot work with this list.
    #[error("set up the verification of client certificates: {0}")]
    Verifier(String),
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its serial number, by which it can be revoked.
    pub serial: Serial,
    /// When it ends.
    pub not_after: OffsetDateTime,
}

/// A signed revocation list.
#[derive(Debug, Clone)]
pub struct Crl {
    /// For files.
    pub pem: String,
    /// For rustls.
    pub der: CertificateRevocationListDer<'static>,
    /// Counts up with every list.
    pub number: u64,
    /// Which certificates it revokes, in order.
    pub serials: Vec<Serial>,
    /// After this moment strict verifiers refuse everybody.
    pub next_update: OffsetDateTime,
}

impl Crl {
    /// Whether it is time to sign a new list although nothing has changed: a third of its life is over.
    pub fn is_due(&self, now: OffsetDateTime) -> bool {
        self.next_update - now < issue::CRL_LIFE * 2 / 3
    }
}

/// A certificate and its key.
struct Pair {
    leaf: CertificateDer<'static>,
    key: KeyPair,
    not_after: OffsetDateTime,
}

impl Pair {
    fn tls(&self, authority: &CertificateDer<'static>) -> Tls {
        Tls::new(self.leaf.clone(), PrivatePkcs8KeyDer::from(self.key.serialize_der()), authority.clone())
    }
}

/// The fleet's authority, open for work. Share it behind an `Arc`; no method blocks for longer than a file takes.
pub struct Pki {
    dir: PathBuf,
    names: Names,
    authority: Authority,
    ca: CertificateDer<'static>,
    ca_pem: String,
    ca_key_id: Option<Vec<u8>>,
    ca_not_after: OffsetDateTime,
    signing: SigningKey,
    server: RwLock<Pair>,
    controller: RwLock<Pair>,
    controller_name: String,
    last_crl: AtomicU64,
}

impl core::fmt::Debug for Pki {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Pki").field("dir", &self.dir).field("controller", &self.controller_name).finish_non_exhaustive()
    }
}

impl Pki {
    /// Opens the authority in `dir`, after making it when there is none, and brings the server's certificate up to date:
    /// it is issued again when `names` has changed or when two thirds of its life are over.
    pub fn open(dir: &Path, names: &Names, now: OffsetDateTime) -> Result<Self, PkiError> {
        files::prepare_dir(dir)?;
        if needs_setup(dir)? {
            log::info!("making a new fleet authority in {}", dir.display());
            set_up(dir, now)?;
        }
        let ca = load_authority(dir, now)?;
        let signing = signing::load(&dir.join(SIGNING_KEY))?;
        let server = open_pair(
            dir,
            SERVER,
            &ca.der,
            |pair| server_is_due(pair, names, now),
            |key| issue::server(names, key, &ca.authority, ca.clip(now + issue::SERVER_LIFE)),
        )?;
        let (controller, controller_name) = open_controller(dir, &ca, now)?;
        let last_crl = stored_crl_number(&dir.join(CRL), &ca.der)?;
        let pki = Self {
            dir: dir.to_owned(),
            names: names.clone(),
            authority: ca.authority,
            ca: ca.der,
            ca_pem: ca.pem,
            ca_key_id: ca.key_id,
            ca_not_after: ca.not_after,
            signing,
            server: RwLock::new(server),
            controller: RwLock::new(controller),
            controller_name,
            last_crl: AtomicU64::new(last_crl.unwrap_or(0)),
        };
        if last_crl.is_none() {
            pki.publish_crl(&[], now)?;
        }
        Ok(pki)
    }

    /// Issues the server's and the controller's certificates again where two thirds of their life are over; says whether
    /// one was. Call it now and then (daily is enough) and hand the new [`Pki::server_tls`] to the listeners.
    pub fn renew(&self, now: OffsetDateTime) -> Result<bool, PkiError> {
        let mut renewed = false;
        {
            let mut pair = self.server.write().unwrap_or_else(PoisonError::into_inner);
            if server_is_due(&pair, &self.names, now) {
                let end = self.clip(now + issue::SERVER_LIFE);
                let leaf = issue::server(&self.names, &pair.key, &self.authority, end)?;
                replace(&self.dir.join(SERVER.0), &mut pair, leaf)?;
                renewed = true;
            }
        }
        let mut pair = self.controller.write().unwrap_or_else(PoisonError::into_inner);
        if is_due(&pair, issue::CONTROLLER_LIFE, now) {
            let end = self.clip(now + issue::CONTROLLER_LIFE);
            let leaf = issue::controller(&self.controller_name, &pair.key, &self.authority, now, end)?;
            replace(&self.dir.join(CONTROLLER.0), &mut pair, leaf)?;
            renewed = true;
        }
        Ok(renewed)
    }

    /// Issues a certificate for `probe` over the key in a PKCS#10 request, which must be signed by that key. Everything else
    /// in the request is ignored: the subject becomes CN = id, OU = `probe`; client authentication only; valid from yesterday
    /// for 90 days.
    pub fn issue_probe(&self, request_pem: &str, probe: &ProbeId, now: OffsetDateTime) -> Result<Issued, PkiError> {
        let leaf = issue::probe(request_pem, probe, &self.authority, now, self.clip(now + issue::PROBE_LIFE))?;
        Ok(Issued { certificate_pem: leaf.certificate.pem(), serial: leaf.serial, not_after: leaf.not_after })
    }

    /// Signs a list that revokes exactly `revoked`. Its number is higher than that of every list before, also across restarts
    /// and when the clock has gone back.
    pub fn crl(&self, revoked: &[Serial], now: OffsetDateTime) -> Result<Crl, PkiError> {
        let clock = u64::try_from(now.unix_timestamp()).unwrap_or(0);
        let next = |last: u64| Some(clock.max(last.saturating_add(1)));
        let last = self.last_crl.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).unwrap_or_else(|last| last);
        let number = clock.max(last.saturating_add(1));
        issue::revocation_list(revoked, number, self.ca_key_id.clone(), &self.authority, now)
    }

    /// Like [`Pki::crl`], and also replaces `crl.pem` for brokers that read it.
    pub fn publish_crl(&self, revoked: &[Serial], now: OffsetDateTime) -> Result<Crl, PkiError> {
        let crl = self.crl(revoked, now)?;
        files::write(&self.dir.join(CRL), crl.pem.as_bytes(), Public)?;
        Ok(crl)
    }

    /// The server's side of TLS, for all listeners.
    pub fn server_tls(&self) -> Tls {
        self.server.read().unwrap_or_else(PoisonError::into_inner).tls(&self.ca)
    }

    /// The controller's side of TLS as an MQTT client.
    pub fn controller_tls(&self) -> Tls {
        self.controller.read().unwrap_or_else(PoisonError::into_inner).tls(&self.ca)
    }

    /// The controller's common name and MQTT client id: `picket-controller-<8 hex>`.
    pub fn controller_name(&self) -> &str {
        &self.controller_name
    }

    /// The key that signs commands.
    pub fn signing_key(&self) -> &SigningKey {
        &self.signing
    }

    /// The authority's certificate as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The authority's certificate.
    pub fn ca_der(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// SHA-256 of the authority's certificate (DER): what an enrolment token carries.
    pub fn ca_fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.ca).into()
    }

    /// Where the newest published revocation list is.
    pub fn crl_path(&self) -> PathBuf {
        self.dir.join(CRL)
    }

    fn clip(&self, end: OffsetDateTime) -> OffsetDateTime {
        end.min(self.ca_not_after)
    }
}

/// Whether this is the first start. An unfinished first start is swept away: nothing was issued from it.
fn needs_setup(dir: &Path) -> Result<bool, PkiError> {
    let everything = [CA_CERT, CA_KEY, SIGNING_KEY, SERVER.0, SERVER.1, CONTROLLER.0, CONTROLLER.1, CRL];
    let marker = dir.join(UNFINISHED);
    if files::exists(&marker)? {
        for name in everything {
            files::remove(&dir.join(name))?;
        }
        return Ok(true);
    }
    let mut missing = None;
    let mut found = false;
    for name in everything {
        let there = files::exists(&dir.join(name))?;
        found |= there;
        if !there && [CA_CERT, CA_KEY, SIGNING_KEY].contains(&name) {
            missing = missing.or(Some(dir.join(name)));
        }
    }
    match missing {
        Some(path) if found => Err(PkiError::Missing { path }),
        missing => Ok(missing.is_some()),
    }
}

/// Makes what can never be made again: the authority and the signing key.
fn set_up(dir: &Path, now: OffsetDateTime) -> Result<(), PkiError> {
    let marker = dir.join(UNFINISHED);
    files::write(&marker, b"The first start did not finish; the next one begins anew.\n", Public)?;
    let key = issue::new_key()?;
    let certificate = issue::authority(&key, now)?;
    files::write(&dir.join(CA_KEY), key.serialize_pem().as_bytes(), Secret)?;
    files::write(&dir.join(CA_CERT), certificate.pem().as_bytes(), Public)?;
    signing::create(&dir.join(SIGNING_KEY))?;
    files::remove_durably(&marker)
}

struct LoadedAuthority {
    authority: Authority,
    der: CertificateDer<'static>,
    pem: String,
    key_id: Option<Vec<u8>>,
    not_after: OffsetDateTime,
}

impl LoadedAuthority {
    fn clip(&self, end: OffsetDateTime) -> OffsetDateTime {
        end.min(self.not_after)
    }
}

fn corrupt(path: &Path, reason: impl Into<String>) -> PkiError {
    PkiError::Corrupt { path: path.to_owned(), reason: reason.into() }
}

fn load_authority(dir: &Path, now: OffsetDateTime) -> Result<LoadedAuthority, PkiError> {
    let path = dir.join(CA_CERT);
    let (pem, der) = load_certificate(&path)?.ok_or_else(|| PkiError::Missing { path: path.clone() })?;
    let key_path = dir.join(CA_KEY);
    let key = load_key(&key_path)?.ok_or_else(|| PkiError::Missing { path: key_path.clone() })?;
    let parsed = parse(&path, &der)?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(corrupt(&key_path, "it is not the key of ca.pem"));
    }
    if !parsed.is_ca() {
        return Err(corrupt(&path, "it is not the certificate of an authority"));
    }
    let not_after = parsed.validity().not_after.to_datetime();
    if not_after <= now {
        return Err(PkiError::Ended { path, ended: not_after });
    }
    let key_id = parsed.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    let authority = Authority::from_ca_cert_der(&der, key).map_err(|error| corrupt(&path, error.to_string()))?;
    Ok(LoadedAuthority { authority, der, pem, key_id, not_after })
}

fn load_certificate(path: &Path) -> Result<Option<(String, CertificateDer<'static>)>, PkiError> {
    let Some(pem) = files::read_text(path, Public)? else { return Ok(None) };
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| corrupt(path, format!("no certificate in it ({error})")))?;
    Ok(Some((pem, der)))
}

fn load_key(path: &Path) -> Result<Option<KeyPair>, PkiError> {
    let Some(pem) = files::read_text(path, Secret)? else { return Ok(None) };
    KeyPair::from_pem(&pem).map(Some).map_err(|error| corrupt(path, format!("no private key in it ({error})")))
}

fn parse<'a>(path: &Path, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PkiError> {
    X509Certificate::from_der(der).map(|(_, parsed)| parsed).map_err(|error| corrupt(path, format!("damaged certificate ({error})")))
}

/// Loads a certificate with its key; makes the one or both where missing, and the certificate anew where `due` says so.
fn open_pair(
    dir: &Path,
    (cert_name, key_name): (&str, &str),
    ca: &CertificateDer<'_>,
    due: impl FnOnce(&Pair) -> bool,
    make: impl FnOnce(&KeyPair) -> Result<issue::Leaf, PkiError>,
) -> Result<Pair, PkiError> {
    let (path, key_path) = (dir.join(cert_name), dir.join(key_name));
    let (key, is_new) = match load_key(&key_path)? {
        Some(key) => (key, false),
        None => (issue::new_key()?, true),
    };
    if is_new {
        // The key goes first: a certificate without its key would be a damaged pair, a key without certificate is not.
        files::remove_durably(&path)?;
        files::write(&key_path, key.serialize_pem().as_bytes(), Secret)?;
    }
    let Some((_, leaf)) = load_certificate(&path)? else {
        let made = make(&key)?;
        files::write(&path, made.certificate.pem().as_bytes(), Public)?;
        return Ok(Pair { leaf: made.certificate.der().clone(), key, not_after: made.not_after });
    };
    let not_after = check_issued(&path, &leaf, &key, ca)?;
    let mut pair = Pair { leaf, key, not_after };
    if due(&pair) {
        let made = make(&pair.key)?;
        replace(&path, &mut pair, made)?;
    }
    Ok(pair)
}

/// Checks that a certificate is of this authority and of this key; gives the end of its life.
fn check_issued(path: &Path, leaf: &CertificateDer<'_>, key: &KeyPair, ca: &CertificateDer<'_>) -> Result<OffsetDateTime, PkiError> {
    let parsed = parse(path, leaf)?;
    let issuer = parse(path, ca)?;
    if parsed.verify_signature(Some(issuer.public_key())).is_err() {
        return Err(corrupt(path, "it is not signed by ca.pem; remove it to have it issued again"));
    }
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(corrupt(path, "it does not belong to the key beside it; remove it to have it issued again"));
    }
    Ok(parsed.validity().not_after.to_datetime())
}

fn replace(path: &Path, pair: &mut Pair, made: issue::Leaf) -> Result<(), PkiError> {
    files::write(path, made.certificate.pem().as_bytes(), Public)?;
    log::info!("issued {} anew, valid until {}", path.display(), made.not_after.date());
    pair.leaf = made.certificate.der().clone();
    pair.not_after = made.not_after;
    Ok(())
}

fn is_due(pair: &Pair, life: Duration, now: OffsetDateTime) -> bool {
    pair.not_after - now < life / 3
}

fn server_is_due(pair: &Pair, names: &Names, now: OffsetDateTime) -> bool {
    is_due(pair, issue::SERVER_LIFE, now) || issue::names_of(&pair.leaf).as_ref() != Some(names)
}

/// The controller's own identity. Its name stays the same for as long as its certificate exists.
fn open_controller(dir: &Path, ca: &LoadedAuthority, now: OffsetDateTime) -> Result<(Pair, String), PkiError> {
    let path = dir.join(CONTROLLER.0);
    let name = match load_certificate(&path)? {
        Some((_, leaf)) => match identity_of(&leaf).map(|peer| peer.identity) {
            Some(Identity::Controller(name)) => name,
            _ => return Err(corrupt(&path, "it does not name a controller; remove it to have it issued again")),
        },
        None => format!("{}{}", identity::CONTROLLER_CN_PREFIX, hex::encode(issue::random::<4>()?)),
    };
    let end = ca.clip(now + issue::CONTROLLER_LIFE);
    let pair = open_pair(
        dir,
        CONTROLLER,
        &ca.der,
        |pair| is_due(pair, issue::CONTROLLER_LIFE, now),
        |key| issue::controller(&name, key, &ca.authority, now, end),
    )?;
    Ok((pair, name))
}

/// The number of the list that was published last; `None` where there is none.
fn stored_crl_number(path: &Path, ca: &CertificateDer<'_>) -> Result<Option<u64>, PkiError> {
    let Some(pem) = files::read(path, Public)? else { return Ok(None) };
    let broken = |reason: &str| corrupt(path, format!("{reason}; remove it to have it made again"));
    let der = CertificateRevocationListDer::from_pem_slice(&pem).map_err(|_| broken("no revocation list in it"))?;
    let (_, list) = CertificateRevocationList::from_der(&der).map_err(|_| broken("damaged revocation list"))?;
    let issuer = parse(path, ca)?;
    list.verify_signature(issuer.public_key()).map_err(|_| broken("it is not signed by ca.pem"))?;
    let digits = list.crl_number().map(|number| number.to_u64_digits()).unwrap_or_default();
    Ok(Some(digits.first().copied().unwrap_or(0)))
}

#[cfg(test)]
mod tests;
