//! One probe process at a time: rate limits mean nothing if two share an interface, and a spool has one writer.
//!
//! **Invariant:** the lock is the kernel's, so it ends with its process, however that ends; the text in the file only says
//! whose it is.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("another probe runs already (process {holder}, lock {}): stop it first", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Its process id, as far as the file tells.
        holder: String,
    },
    /// The lock file cannot be used.
    #[error("lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A held lock; dropped, it is free.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`, or says who has it. Does not wait. The directory must exist.
    ///
    /// # Errors
    /// Another process has it, or the file cannot be made.
    pub fn acquire(path: &Path) -> Result<Lock, LockError> {
        let io = |source| LockError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Its text is for people only; without it the answer is the same.
                let _ = (&mut file).take(20).read_to_string(&mut holder);
                let known = !holder.trim().is_empty();
                return Err(LockError::Held {
                    path: path.to_owned(),
                    holder: if known { holder.trim().to_owned() } else { "unknown".into() },
                });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        // The file is never removed: a second process could hold a lock on the removed one.
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
        Ok(Lock { _file: file })
    }

    /// Takes the lock of a data directory.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn data(dir: &Path) -> Result<Lock, LockError> {
        Self::acquire(&dir.join("probe.lock"))
    }

    /// Takes the lock of the network this process is in (one box, or one network namespace of it), in `runtime`, which is
    /// `/run/lock` on a box.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn network(runtime: &Path) -> Result<Lock, LockError> {
        let namespace = fs::metadata("/proc/self/ns/net").map_or(0, |meta| meta.ino());
        Self::acquire(&runtime.join(format!("picket-probe-{namespace}.lock")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::data(dir.path()).unwrap();
        let error = Lock::data(dir.path()).unwrap_err();
        let path = dir.path().join("probe.lock");
        let expected = format!("another probe runs already (process {}, lock {}): stop it first", std::process::id(), path.display());
        assert_eq!(error.to_string(), expected);
        drop(lock);
        Lock::data(dir.path()).unwrap();
        let error = Lock::data(&dir.path().join("missing")).unwrap_err();
        assert!(matches!(error, LockError::Io { .. }));
        let _network = Lock::network(dir.path()).unwrap();
        assert!(matches!(Lock::network(dir.path()), Err(LockError::Held { .. })));
    }
}
