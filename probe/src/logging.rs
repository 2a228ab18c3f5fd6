//! Where log lines go: to the journal when systemd started the program, else to standard error.

use log::{Level, LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::JournalLog;

/// The netlink library warns of every kernel that is newer than itself, whenever it is asked: its errors are enough.
const CHATTY: &str = "netlink_packet_route";

/// The journal, without what nobody needs there for years.
struct Journal(JournalLog);

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let chatter = metadata.target().starts_with(CHATTY) && metadata.level() > Level::Error;
        !chatter && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// Starts logging. Called once, by `main`.
pub fn start(level: LevelFilter) {
    if started_by_systemd() {
        let journal =
            JournalLog::new().and_then(|journal| log::set_boxed_logger(Box::new(Journal(journal))).map_err(std::io::Error::other));
        match journal {
            Ok(()) => return log::set_max_level(level),
            Err(error) => eprintln!("picket-probe: the journal does not take log lines ({error}); they go to standard error"),
        }
    }
    // `RUST_LOG` serves whoever looks for a fault; the configured level holds otherwise.
    let variables = env_logger::Env::default().filter_or("RUST_LOG", format!("{level},{CHATTY}=error").to_lowercase());
    // A logger that is there already (in tests) may stay.
    let _ = env_logger::Builder::from_env(variables).format_target(false).try_init();
}

/// systemd names the journal's socket in `JOURNAL_STREAM` for the services whose output it takes itself.
fn started_by_systemd() -> bool {
    systemd_journal_logger::connected_to_journal()
}
