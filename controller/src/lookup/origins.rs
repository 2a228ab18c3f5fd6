//! The file of a [`Table`]: read when it is first asked for and again when it has changed, beside everything else.
//!
//! **Invariant:** what was read once stays in use until something newer was read whole.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use flate2::bufread::MultiGzDecoder;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::{Instant, timeout_at};

use super::table::Table;
use crate::errors::chain;

/// The first bytes of what gzip wrote (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
const BUFFER: usize = 64 << 10;

/// By what a file is known to be another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

#[derive(Default)]
struct State {
    /// Of the file that was read last, whether it was good or not.
    stamp: Option<Stamp>,
    table: Option<Arc<Table>>,
    problem: Option<String>,
    reading: Option<Shared<BoxFuture<'static, ()>>>,
}

/// See the module.
pub(super) struct Origins {
    path: PathBuf,
    state: Mutex<State>,
}

impl core::fmt::Debug for Origins {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Origins").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Origins {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table as the file has it, or what there is of it until then, and what is wrong with it.
    pub(super) async fn table(self: &Arc<Self>, until: Instant) -> (Option<Arc<Table>>, Option<String>) {
        let late = || format!("the table of origins {} is still being read", self.path.display());
        let Ok(stamp) = timeout_at(until, tokio::fs::metadata(&self.path)).await else { return (self.state().table.clone(), Some(late())) };
        let stamp = match stamp {
            Ok(file) => Stamp { modified: file.modified().ok(), bytes: file.len(), inode: file.ino() },
            Err(error) => return (self.state().table.clone(), Some(self.unreadable(&error))),
        };
        if let Some(reading) = self.begin(stamp) {
            let has_table = self.state().table.is_some();
            // Whoever has something to show does not wait for something newer.
            if !has_table && timeout_at(until, reading).await.is_err() {
                return (None, Some(late()));
            }
        }
        let state = self.state();
        (state.table.clone(), state.problem.clone())
    }

    /// Begins to read a file that is not known yet; gives what is to be waited for, if anything is.
    fn begin(self: &Arc<Self>, stamp: Stamp) -> Option<Shared<BoxFuture<'static, ()>>> {
        let mut state = self.state();
        if state.reading.is_none() && state.stamp != Some(stamp) {
            let origins = Arc::clone(self);
            let reading = tokio::task::spawn_blocking(move || origins.read(stamp));
            state.reading = Some(reading.map(drop).boxed().shared());
        }
        state.reading.clone()
    }

    fn read(&self, stamp: Stamp) {
        let result = open(&self.path).map_err(|error| self.unreadable(&error)).and_then(|reader| {
            Table::read(reader).map_err(|error| format!("the table of origins {} cannot be used: {}", self.path.display(), chain(&error)))
        });
        let mut state = self.state();
        (state.stamp, state.reading) = (Some(stamp), None);
        match result {
            Ok(table) => {
                let (ranges, systems, kib) = (table.ranges(), table.systems(), table.bytes() / 1024);
                log::info!("table of origins {}: {ranges} ranges, {systems} systems, {kib} KiB", self.path.display());
                (state.table, state.problem) = (Some(Arc::new(table)), None);
            }
            Err(problem) => {
                log::error!("{problem}");
                state.problem = Some(problem);
            }
        }
    }

    fn unreadable(&self, error: &io::Error) -> String {
        format!("the table of origins {} cannot be read: {error}", self.path.display())
    }
}

/// The text of a file, compressed or not.
fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let mut head = Vec::new();
    File::open(path)?.take(GZIP.len() as u64).read_to_end(&mut head)?;
    let file = BufReader::with_capacity(BUFFER, File::open(path)?);
    Ok(if head == GZIP { Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(file))) } else { Box::new(file) })
}
