//! `picket-probe scan`, `services`, `discover`, `trace` and `capture`: the engines without a controller, for the technician on site.
//!
//! Same engines, same loop, same pacer, same site policy as the agent; only that targets come from the command line and
//! results go to the terminal and into files.
//!
//! ```text
//!  args ▶ targets (text, files, names ▶ address set) ▶ request (passes) ▶ prepare (policy, interface, rate) ▶ dry_run
//!                                                                           │
//!  progress ◀ run (stages, Ctrl-C) ◀▶ engines (passes on one station) ◀─────┘
//!      services ◀┘└▶ ledger ▶ resume (file) ▶ results (rows, coverage) ▶ output (table, NDJSON, nmap XML, masscan)
//! ```
//!
//! `trace` goes from `prepare` to a station and an engine of its own, and writes paths instead of rows. `capture` sends nothing: it needs
//! neither policy nor pacer, and runs beside a probe that measures; `ring` reads what a capture has kept.
//!
//! **Invariant:** what was asked = answered + silent + refused + not reached, shown at the end of every run, interrupted ones
//! included.

use std::process::ExitCode;

pub mod args;
#[cfg(feature = "libpcap")]
mod capture;
mod dry_run;
mod engines;
mod error;
mod ledger;
mod link;
mod output;
mod prepare;
mod progress;
mod rates;
mod request;
mod results;
mod resume;
#[cfg(feature = "libpcap")]
mod ring;
mod run;
mod services;
mod signals;
mod targets;
mod trace;

pub use args::{DiscoverArgs, ScanArgs, ServicesArgs, nmap_spellings};
#[cfg(feature = "libpcap")]
pub use capture::{CaptureArgs, capture};
pub use error::StandaloneError;
#[cfg(feature = "libpcap")]
pub use ring::{RingArgs, ring};
pub use run::{discover, scan, services};
pub use trace::{TraceArgs, trace};

/// The exit status of a run; an error goes to standard error with what it came from.
pub fn exit_status(result: Result<Outcome, StandaloneError>) -> ExitCode {
    match result {
        Ok(outcome) => outcome.exit_code().into(),
        Err(error) => {
            let code = error.exit_code();
            eprintln!("picket-probe: {:#}", anyhow::Error::new(error));
            code.into()
        }
    }
}

/// How a run ended, as the exit status of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every target was dealt with.
    Complete,
    /// Interrupted, or ended before its end; the coverage says how far it came.
    Incomplete,
}

impl Outcome {
    /// 0 complete, 3 incomplete. (1: failure, 2: wrong usage.)
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Complete => 0,
            Outcome::Incomplete => 3,
        }
    }
}
