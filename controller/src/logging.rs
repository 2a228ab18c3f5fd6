//! Where log lines go: to the journal when systemd started the program, else to standard error.

use log::{LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::{JournalLog, connected_to_journal};

/// What libraries may say at most, as long as nobody asks for debugging.
const LIBRARIES: LevelFilter = LevelFilter::Warn;

/// Starts logging; may be called once per process.
pub fn start(level: LevelFilter) {
    let journal = connected_to_journal().then(|| JournalLog::new().ok()).flatten();
    let started = match journal {
        Some(journal) => log::set_boxed_logger(Box::new(Quiet { inner: journal, level })),
        None => {
            let mut builder = env_logger::Builder::new();
            builder.filter_level(level);
            log::set_boxed_logger(Box::new(Quiet { inner: builder.build(), level }))
        }
    };
    match started {
        Ok(()) => log::set_max_level(level),
        Err(error) => eprintln!("picket: start logging: {error}"),
    }
}

/// Keeps libraries quiet: their notes are about themselves.
struct Quiet<L> {
    inner: L,
    level: LevelFilter,
}

impl<L: Log> Log for Quiet<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let most = if is_ours(metadata.target()) || self.level >= LevelFilter::Debug { self.level } else { self.level.min(LIBRARIES) };
        metadata.level() <= most && self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.inner.log(record);
        }
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

fn is_ours(target: &str) -> bool {
    target.starts_with("picket")
}
