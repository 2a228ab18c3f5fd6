//! The probe's program. Commands live in the library; here they are only named.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use picket_probe::commands::{self, EnrolArgs, FingerprintsArgs, RunArgs, StatusArgs};
use picket_probe::shaper::{self, ShaperArgs};
use picket_probe::standalone::{self, DiscoverArgs, ScanArgs, ServicesArgs, TraceArgs};

/// Picket's probe: scans for a fleet or by itself, never faster than its interface may send.
#[derive(Debug, Parser)]
#[command(name = "picket-probe", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Enrol(EnrolArgs),
    Run(RunArgs),
    Status(StatusArgs),
    Scan(ScanArgs),
    Services(ServicesArgs),
    Discover(DiscoverArgs),
    Trace(TraceArgs),
    #[cfg(feature = "libpcap")]
    Capture(standalone::CaptureArgs),
    #[cfg(feature = "libpcap")]
    Ring(standalone::RingArgs),
    Fingerprints(FingerprintsArgs),
    Shaper(ShaperArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse_from(standalone::nmap_spellings(std::env::args_os())).command {
        Command::Enrol(args) => commands::run_enrol(args),
        Command::Run(args) => commands::run_agent(args),
        Command::Status(args) => commands::run_status(args),
        Command::Scan(args) => Ok(standalone::exit_status(standalone::scan(&args))),
        Command::Services(args) => Ok(standalone::exit_status(standalone::services(&args))),
        Command::Discover(args) => Ok(standalone::exit_status(standalone::discover(&args))),
        Command::Trace(args) => Ok(standalone::exit_status(standalone::trace(&args))),
        #[cfg(feature = "libpcap")]
        Command::Capture(args) => Ok(standalone::exit_status(standalone::capture(&args))),
        #[cfg(feature = "libpcap")]
        Command::Ring(args) => Ok(standalone::exit_status(standalone::ring(&args))),
        Command::Fingerprints(args) => commands::run_fingerprints(args),
        Command::Shaper(args) => shaper::run(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("picket-probe: {error:#}");
        ExitCode::FAILURE
    })
}
