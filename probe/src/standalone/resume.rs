//! The resume file: what a run was asked and what it has found so far, so that another process can go on with it.
//!
//! ```text
//!  picket-probe resume 1 0.1.0\n        format and program; another program may read its entries wrongly
//!  (length u32, CRC-32C u32, entry)*     little endian; entries are postcard
//! ```
//!
//! Entries are only ever added, and each is whole or not there: a torn one at the end, as a killed process or a power cut leaves
//! it, is cut off. The positions that are done follow from the batches of results, so that the two cannot disagree; what is read
//! again is told to the outputs again, so that they are complete.
//!
//! **Invariant:** nothing in a file, whatever it holds, makes reading it panic.

use core::time::Duration;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use picket_wire::host::HostSeen;
use picket_wire::result::{LateAnswer, ResultBatch};
use picket_wire::service::ServiceOutcome;
use picket_wire::units::UnixMillis;
use serde::{Deserialize, Serialize};

use super::request::Request;

/// Format, then program.
const MAGIC: &str = concat!("picket-probe resume 1 ", env!("CARGO_PKG_VERSION"), "\n");
/// What every version begins with.
const FAMILY: &str = "picket-probe resume ";
/// Longer entries are never written: a batch of 65,536 positions in which every answer differs is below 2 MiB.
const ENTRY_MAX: usize = 16 << 20;
const FRAME_HEADER: usize = 8;
/// How often the file is made durable.
pub(super) const SYNC_EVERY: Duration = Duration::from_secs(3);

/// Why a run cannot go on from a file.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The system did not give it.
    #[error("resume file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is no resume file: name a new file, or one that an interrupted run has written", .0.display())]
    Foreign(PathBuf),
    /// Another version wrote it.
    #[error("resume file {} was written by another version (`{found}`): go on with that one, or begin anew with another file", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its first line.
        found: String,
    },
    /// Its contents are damaged.
    #[error("resume file {} is damaged at byte {at} of {len}: begin anew with another file", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: usize,
        /// How long it is.
        len: usize,
    },
    /// The arguments are those of another run.
    #[error("resume file {} is of another run: it differs in {what}. Use `--resume FILE` alone to go on with it, or name another file", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// Another process goes on with it.
    #[error("resume file {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// There is nothing to go on with.
    #[error("resume file {} does not exist: to begin a run that can be resumed, name targets as well", .0.display())]
    Missing(PathBuf),
}

/// What a run was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) request: Request,
    /// The key of the order of each pass.
    pub(super) seed: u64,
    pub(super) started: UnixMillis,
    /// The command line as it was typed.
    pub(super) arguments: String,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Entry {
    /// First and only once.
    Head(Box<Head>),
    /// A range of a pass is finished.
    Chunk { pass: u8, batch: ResultBatch, late: u64 },
    /// Answers to positions that were reported as silent.
    Late { pass: u8, answers: Vec<LateAnswer>, at: UnixMillis },
    /// What serves on an open port.
    Service { pass: u8, position: u64, outcome: ServiceOutcome },
    /// Seen on the link, right before the chunk that it belongs to.
    Hosts { pass: u8, hosts: Vec<HostSeen> },
    /// How long the run has taken so far.
    Took(Duration),
}

impl Entry {
    /// The number of the pass that it belongs to.
    pub(super) fn pass(&self) -> Option<u8> {
        match self {
            Entry::Chunk { pass, .. } | Entry::Late { pass, .. } | Entry::Service { pass, .. } | Entry::Hosts { pass, .. } => Some(*pass),
            Entry::Head(_) | Entry::Took(_) => None,
        }
    }
}

/// An open resume file.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    frame: Vec<u8>,
}

impl Journal {
    /// Begins a file. Its name is free, as [`Journal::open`] has found.
    pub(super) fn create(path: &Path, head: &Head) -> Result<Self, ResumeError> {
        let io = |source| ResumeError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(io)?;
        let mut journal = Self { file: locked(file, path)?, path: path.to_owned(), frame: Vec::new() };
        journal.file.write_all(MAGIC.as_bytes()).map_err(io)?;
        journal.append(&Entry::Head(Box::new(head.clone())))?;
        journal.sync()?;
        Ok(journal)
    }

    /// Opens a file to go on with it; `None` where there is none yet. A torn entry at its end is cut off.
    pub(super) fn open(path: &Path) -> Result<Option<(Self, Head, Vec<Entry>)>, ResumeError> {
        let io = |source| ResumeError::Io { path: path.to_owned(), source };
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io)?,
        };
        let mut file = locked(file, path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let (entries, sound) = read(&bytes).map_err(|wrong| wrong.of(path, bytes.len()))?;
        file.set_len(sound as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(io)?;
        let mut entries = entries.into_iter();
        let Some(Entry::Head(head)) = entries.next() else { return Err(Wrong::Foreign.of(path, bytes.len())) };
        Ok(Some((Self { file, path: path.to_owned(), frame: Vec::new() }, *head, entries.collect())))
    }

    /// Adds an entry. It outlives this process from now on, and a power cut after the next [`Journal::sync`].
    pub(super) fn append(&mut self, entry: &Entry) -> Result<(), ResumeError> {
        let wrong = |error: postcard::Error| ResumeError::Io { path: self.path.clone(), source: io::Error::other(error) };
        let payload = postcard::to_allocvec(entry).map_err(wrong)?;
        self.frame.clear();
        self.frame.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.frame.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
        self.frame.extend_from_slice(&payload);
        self.file.write_all(&self.frame).map_err(|source| ResumeError::Io { path: self.path.clone(), source })
    }

    /// Makes it durable.
    pub(super) fn sync(&mut self) -> Result<(), ResumeError> {
        self.file.sync_data().map_err(|source| ResumeError::Io { path: self.path.clone(), source })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn locked(file: File, path: &Path) -> Result<File, ResumeError> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ResumeError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(ResumeError::Io { path: path.to_owned(), source }),
    }
}

/// What is wrong with the bytes of a file.
#[derive(Debug, PartialEq)]
enum Wrong {
    Foreign,
    Version(String),
    Damaged(usize),
}

impl Wrong {
    fn of(self, path: &Path, len: usize) -> ResumeError {
        let path = path.to_owned();
        match self {
            Wrong::Foreign => ResumeError::Foreign(path),
            Wrong::Version(found) => ResumeError::Version { path, found },
            Wrong::Damaged(at) => ResumeError::Damaged { path, at, len },
        }
    }
}

/// All entries, and how many bytes of them are sound.
fn read(bytes: &[u8]) -> Result<(Vec<Entry>, usize), Wrong> {
    let Some(mut rest) = bytes.strip_prefix(MAGIC.as_bytes()) else {
        return Err(match bytes.split(|byte| *byte == b'\n').next() {
            Some(line) if line.starts_with(FAMILY.as_bytes()) && line.len() < 100 => Wrong::Version(line.escape_ascii().to_string()),
            _ => Wrong::Foreign,
        });
    };
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        match entry(rest) {
            Some((entry, after)) => {
                let first = entries.is_empty();
                if first != matches!(entry, Entry::Head(_)) {
                    return Err(Wrong::Damaged(at));
                }
                entries.push(entry);
                rest = after;
            }
            None if !entries.is_empty() && is_torn(rest) => return Ok((entries, at)),
            None => return Err(Wrong::Damaged(at)),
        }
    }
    Ok((entries, bytes.len()))
}

/// The length that a frame claims, and its checksum.
fn header(bytes: &[u8]) -> Option<(usize, u32)> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    Some((word(0)? as usize, word(4)?))
}

fn entry(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    let (len, sum) = header(bytes)?;
    let payload = bytes.get(FRAME_HEADER..FRAME_HEADER.checked_add(len)?)?;
    if len > ENTRY_MAX || crc32c::crc32c(payload) != sum {
        return None;
    }
    let (entry, left) = postcard::take_from_bytes(payload).ok()?;
    left.is_empty().then_some((entry, bytes.get(FRAME_HEADER + len..)?))
}

/// Whether a broken frame is the last one, cut short or never written in full (a file system may leave zeros).
fn is_torn(bytes: &[u8]) -> bool {
    let reaches_the_end = header(bytes).is_none_or(|(len, _)| len <= ENTRY_MAX && FRAME_HEADER + len >= bytes.len());
    reaches_the_end || bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use picket_wire::ids::{JobId, LeaseId};
    use picket_wire::result::{BatchHead, Runs};
    use proptest::prelude::*;

    use super::*;

    fn chunk(from: u64) -> Entry {
        let lease = LeaseId { job: JobId(0), grant: 0 };
        let head = BatchHead { lease, from, to: from + 10, started: UnixMillis(5), took: Duration::ZERO, packets: 10, duplicates: 0 };
        Entry::Chunk { pass: 0, batch: ResultBatch::new(head, Vec::new(), Runs::default(), Vec::new()), late: 0 }
    }

    fn head() -> Head {
        Head { request: Request::example(), seed: 7, started: UnixMillis(9), arguments: "scan 198.18.0.1".to_owned() }
    }

    #[test]
    fn what_was_written_is_read_and_a_torn_end_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        assert!(Journal::open(&path).unwrap().is_none());
        let mut journal = Journal::create(&path, &head()).unwrap();
        journal.append(&chunk(0)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        journal.append(&chunk(10)).unwrap();
        assert!(matches!(Journal::open(&path), Err(ResumeError::InUse(_))));
        drop(journal);
        let longer = std::fs::read(&path).unwrap();
        for end in whole.len()..longer.len() {
            std::fs::write(&path, &longer[..end]).unwrap();
            let (mut journal, read, entries) = Journal::open(&path).unwrap().unwrap();
            assert_eq!((read, entries), (head(), vec![chunk(0)]), "{end}");
            // It goes on where the sound part ends.
            journal.append(&chunk(10)).unwrap();
            drop(journal);
            assert_eq!(std::fs::read(&path).unwrap(), longer);
        }
        std::fs::write(&path, [whole.as_slice(), &[0; 30]].concat()).unwrap();
        assert_eq!(Journal::open(&path).unwrap().unwrap().2, [chunk(0)]);
    }

    #[test]
    fn files_of_others_and_damaged_ones_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let mut journal = Journal::create(&path, &head()).unwrap();
        for from in 0..5 {
            journal.append(&chunk(from * 10)).unwrap();
        }
        drop(journal);
        let sound = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Journal::open(&path).unwrap_err().to_string().replace(dir.path().to_str().unwrap(), "DIR")
        };
        assert_eq!(refused(b"hello\n"), "DIR/run is no resume file: name a new file, or one that an interrupted run has written");
        assert!(refused(b"").contains("no resume file"));
        let other = refused(b"picket-probe resume 9 8.7.6\nxyz");
        assert!(other.contains("written by another version (`picket-probe resume 9 8.7.6`)"), "{other}");
        let mut damaged = sound.clone();
        damaged[MAGIC.len() + FRAME_HEADER + 3] ^= 1;
        assert!(refused(&damaged).contains(&format!("is damaged at byte {} of {}", MAGIC.len(), sound.len())));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), flip in any::<prop::sample::Index>()) {
            let mut file = MAGIC.as_bytes().to_vec();
            file.extend(&bytes);
            let _ = read(&file);
            // A sound file with one byte changed is refused, or loses its end; it never tells another story.
            let mut sound = MAGIC.as_bytes().to_vec();
            for entry in [Entry::Head(Box::new(head())), chunk(0), chunk(10)] {
                let payload = postcard::to_allocvec(&entry).unwrap();
                sound.extend((payload.len() as u32).to_le_bytes());
                sound.extend(crc32c::crc32c(&payload).to_le_bytes());
                sound.extend(payload);
            }
            let (entries, _) = read(&sound).unwrap();
            let at = flip.index(sound.len());
            sound[at] ^= 0x10;
            if let Ok((fewer, _)) = read(&sound) {
                prop_assert!(entries.starts_with(&fewer));
            }
        }
    }
}
