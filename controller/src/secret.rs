//! Secrets: made from the system's randomness, kept as SHA-256, compared in constant time.
//!
//! All secrets of the controller are random and long, so that a plain hash is enough: there is nothing to guess.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::service::ServiceError;

fn failed<E: std::error::Error + Send + Sync + 'static>(action: &'static str) -> impl FnOnce(E) -> ServiceError {
    move |error| ServiceError::Internal { action, source: Box::new(error) }
}

/// Random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], ServiceError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(failed("get random bytes from the system"))?;
    Ok(bytes)
}

/// A random number.
pub(crate) fn number() -> Result<u64, ServiceError> {
    Ok(u64::from_le_bytes(bytes()?))
}

/// 256 random bits as text.
pub(crate) fn text() -> Result<String, ServiceError> {
    Ok(URL_SAFE_NO_PAD.encode(bytes::<32>()?))
}

/// What is kept of a secret.
pub(crate) fn hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Whether two hashes are equal, in a time that does not depend on where they differ.
pub(crate) fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y))) == 0
}

/// The secret in the file at `path`, which is made (mode 0600, on the disk before it counts) where there is none.
pub(crate) fn keep(path: &Path, make: impl FnOnce() -> Result<String, ServiceError>) -> Result<String, ServiceError> {
    match File::open(path) {
        Ok(mut file) => {
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(failed("read the admin token"))?;
            let text = text.trim().to_owned();
            if !text.is_empty() {
                return Ok(text);
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read the admin token")(error)),
    }
    let text = make()?;
    let write = || -> std::io::Result<()> {
        let part = path.with_extension("token.part");
        let _ = std::fs::remove_file(&part);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(format!("{text}\n").as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(failed("write the admin token"))?;
    Ok(text)
}
