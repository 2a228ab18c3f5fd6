//! Where log lines go: to the journal when systemd started the program, else to standard error.

use log::LevelFilter;

/// Starts logging. Called once, by `main`.
pub fn start(level: LevelFilter) {
    if started_by_systemd() {
        let journal = systemd_journal_logger::JournalLog::new().and_then(|logger| logger.install().map_err(std::io::Error::other));
        match journal {
            Ok(()) => return log::set_max_level(level),
            Err(error) => eprintln!("picket-probe: the journal does not take log lines ({error}); they go to standard error"),
        }
    }
    // `RUST_LOG` serves whoever looks for a fault; the configured level holds otherwise. The netlink library warns of every
    // kernel that is newer than itself.
    let variables = env_logger::Env::default().filter_or("RUST_LOG", format!("{level},netlink_packet_route=error").to_lowercase());
    // A logger that is there already (in tests) may stay.
    let _ = env_logger::Builder::from_env(variables).format_target(false).try_init();
}

/// systemd names the journal's socket in `JOURNAL_STREAM` for the services whose output it takes itself.
fn started_by_systemd() -> bool {
    systemd_journal_logger::connected_to_journal()
}
