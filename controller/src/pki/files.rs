//! Files of the data directory: written whole or not at all, read only when nobody else could have written or read them.
//!
//! Must not know what is in the files.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::PkiError;

/// Larger files are not ours (a revocation list of 100,000 entries has about 5 MiB).
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Only the owner: keys.
    Secret,
    /// Anybody may read, only the owner may write: certificates.
    Public,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Access::Secret => 0o600,
            Access::Public => 0o644,
        }
    }

    /// The permission bits that must not be set.
    fn forbidden(self) -> u32 {
        match self {
            Access::Secret => 0o077,
            Access::Public => 0o022,
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PkiError + use<> {
    let path = path.to_owned();
    move |source| PkiError::Io { action, path, source }
}

/// Makes the directory (mode 0700) where it does not exist; refuses one that others can write to.
pub(super) fn prepare_dir(dir: &Path) -> Result<(), PkiError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create directory", dir))?;
    let mode = fs::metadata(dir).map_err(io_error("inspect", dir))?.permissions().mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(PkiError::Exposed { path: dir.to_owned(), mode, wanted: mode & !0o022 });
    }
    Ok(())
}

/// Reads a file after checking its permissions; `None` where there is none.
pub(super) fn read(path: &Path, access: Access) -> Result<Option<Vec<u8>>, PkiError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    let metadata = file.metadata().map_err(io_error("inspect", path))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & access.forbidden() != 0 {
        return Err(PkiError::Exposed { path: path.to_owned(), mode, wanted: access.mode() });
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    Ok(Some(bytes))
}

/// Like [`read`], as text.
pub(super) fn read_text(path: &Path, access: Access) -> Result<Option<String>, PkiError> {
    let Some(bytes) = read(path, access)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|_| PkiError::Corrupt { path: path.to_owned(), reason: "it is not text".to_owned() })?;
    Ok(Some(text))
}

/// Writes a file so that after a crash at any moment either the old or the new content is there, whole.
pub(super) fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), PkiError> {
    let fresh = sibling(path);
    remove(&fresh)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(access.mode()).open(&fresh).map_err(io_error("create", &fresh))?;
    // The mode given at creation is cut by the umask, which could make a certificate unreadable for others' tools.
    file.set_permissions(fs::Permissions::from_mode(access.mode())).map_err(io_error("set mode of", &fresh))?;
    file.write_all(bytes).map_err(io_error("write", &fresh))?;
    file.sync_all().map_err(io_error("sync", &fresh))?;
    fs::rename(&fresh, path).map_err(io_error("rename into place", path))?;
    sync_parent(path)
}

/// Removes a file; no error where there is none.
pub(super) fn remove(path: &Path) -> Result<(), PkiError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a file and makes sure that it stays removed.
pub(super) fn remove_durably(path: &Path) -> Result<(), PkiError> {
    remove(path)?;
    sync_parent(path)
}

/// Whether something is there.
pub(super) fn exists(path: &Path) -> Result<bool, PkiError> {
    path.try_exists().map_err(io_error("inspect", path))
}

fn sibling(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

fn sync_parent(path: &Path) -> Result<(), PkiError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(io_error("sync directory", parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.key");
        fs::write(sibling(&path), b"left over by a crash").unwrap();
        write(&path, b"one", Access::Secret).unwrap();
        write(&path, b"two", Access::Secret).unwrap();
        assert_eq!(read(&path, Access::Secret).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(read(&dir.path().join("none"), Access::Secret).unwrap(), None);
    }

    #[test]
    fn permissions_that_are_too_open_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.key");
        write(&path, b"x", Access::Secret).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let text = read(&path, Access::Secret).unwrap_err().to_string();
            assert!(text.contains("ca.key") && text.contains(&format!("{mode:04o}")), "{text}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&path, Access::Public).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        assert!(read(&path, Access::Public).is_err());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(prepare_dir(dir.path()), Err(PkiError::Exposed { mode: 0o777, wanted: 0o755, .. })));
    }
}
