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
    // A logger that is there already (in tests) may stay.
    let _ = builder(level, std::env::var("RUST_LOG").ok().as_deref()).format_target(false).try_init();
}

/// `directives` (of `RUST_LOG`) serve whoever looks for a fault; the configured level holds otherwise. Chatter is told to who names
/// its source, whatever level is asked of everything.
fn builder(level: LevelFilter, directives: Option<&str>) -> env_logger::Builder {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level).filter_module(CHATTY, LevelFilter::Error);
    if let Some(directives) = directives {
        builder.parse_filters(directives);
    }
    builder
}

/// systemd names the journal's socket in `JOURNAL_STREAM` for the services whose output it takes itself.
fn started_by_systemd() -> bool {
    systemd_journal_logger::connected_to_journal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_chatter_is_kept_from_whoever_looks_for_a_fault() {
        let told = |directives, target, level| {
            let logger = builder(LevelFilter::Info, directives).build();
            logger.enabled(&Metadata::builder().target(target).level(level).build())
        };
        let chatter = "netlink_packet_route::link::buffer_tool";
        for directives in [None, Some("info"), Some("debug"), Some("picket_probe=debug")] {
            assert!(!told(directives, chatter, Level::Warn), "{directives:?}");
            assert!(told(directives, chatter, Level::Error), "{directives:?}");
            for own in ["picket_probe::net::netlink", "rtnetlink"] {
                assert!(told(directives, own, Level::Warn), "{directives:?} {own}");
            }
        }
        assert!(!told(Some("error"), "picket_probe::net::netlink", Level::Warn));
        assert!(told(Some("info,netlink_packet_route=warn"), chatter, Level::Warn), "who asks for it gets it");
    }
}
