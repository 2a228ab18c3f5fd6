//! The command-signing key as a file: PKCS#8 version 2 in PEM, as ring writes it too. OpenSSL reads only version 1.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use super::files::{self, Access};
use super::{PkiError, corrupt, issue};

/// What precedes the 32 bytes of a private Ed25519 key in PKCS#8 version 2 (RFC 5958 section 2, RFC 8410 section 7).
const BEFORE_PRIVATE: [u8; 16] = [0x30, 0x51, 2, 1, 1, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// What is between it and the 32 bytes of the public key. Having that one too is what makes damage noticeable: any 32 bytes
/// are a private key.
const BEFORE_PUBLIC: [u8; 3] = [0x81, 0x21, 0];

pub(super) fn create(path: &Path) -> Result<(), PkiError> {
    let key = SigningKey::from_bytes(&issue::random()?);
    let der = [BEFORE_PRIVATE.as_slice(), key.as_bytes(), &BEFORE_PUBLIC, key.verifying_key().as_bytes()].concat();
    let text = STANDARD.encode(der);
    let (first, second) = text.split_at(64);
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{first}\n{second}\n-----END PRIVATE KEY-----\n");
    files::write(path, pem.as_bytes(), Access::Secret)
}

pub(super) fn load(path: &Path) -> Result<SigningKey, PkiError> {
    let pem = files::read(path, Access::Secret)?.ok_or_else(|| PkiError::Missing { path: path.to_owned() })?;
    let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|error| corrupt(path, format!("no private key in it ({error})")))?;
    let (private, public) = split(der.secret_pkcs8_der()).ok_or_else(|| corrupt(path, "it is not an Ed25519 key in PKCS#8 version 2"))?;
    let key = SigningKey::from_bytes(private);
    if key.verifying_key().as_bytes() != public {
        return Err(corrupt(path, "its private and its public half do not belong together"));
    }
    Ok(key)
}

fn split(der: &[u8]) -> Option<(&[u8; 32], &[u8; 32])> {
    let (private, rest) = der.strip_prefix(BEFORE_PRIVATE.as_slice())?.split_first_chunk::<32>()?;
    let public = rest.strip_prefix(BEFORE_PUBLIC.as_slice())?;
    Some((private, public.try_into().ok()?))
}
