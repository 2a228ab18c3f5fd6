//! `make demo`: a whole fleet on one machine, in network namespaces of its own, told step by step; or a scan of real targets.
//!
//! Everything that the demo does with Picket is a command line that it prints; a shell runs exactly that line, so a newcomer can
//! repeat each. What it claims at the end it has checked: answers against the ground truth of the lab, rates against captures
//! made outside the probes.
//!
//! From the environment: `ONCE=1` ends by itself; `TARGETS=...` (with `PORTS=`, `RATE=`, `YES=1`) scans these from this machine
//! instead, after showing what would be sent and asking.
//!
//! Exit status: 0 all is as it should be, 1 something is not (or could not run), 2 wrong usage, 130 interrupted before the end.
//!
//! Must not know: Picket's packet code, or how it stores anything.

mod check;
mod fleet;
mod rates;
mod say;
mod stage;
mod stop;
mod story;
mod targets;

use std::process::ExitCode;

use say::Say;

const USAGE: &str = "\
picket-demo: a whole Picket fleet on this machine, in network namespaces of its own

  make demo                          shows everything, then leaves it running until Ctrl-C; needs root
  make demo ONCE=1                   exits by itself, cleaned up; the exit status says whether all was right
  make demo TARGETS=\"192.168.1.0/24\" [PORTS=22,80,443] [RATE=200pps] [YES=1]
                                     scans these targets from this machine instead, after showing what would be sent and asking";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("-h" | "--help") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Some(other) => {
            eprintln!("picket-demo: unknown argument `{other}`\n\n{USAGE}");
            return ExitCode::from(2);
        }
    }
    let say = Say::new();
    if let Some(targets) = setting("TARGETS") {
        return targets::run(&say, &targets);
    }
    if let Some(lacks) = picket_tests::lab::missing() {
        eprintln!(
            "picket-demo: cannot run here, missing {lacks}.\n\
             The demo makes network namespaces and captures what passes in them; nothing outside of them is touched or reached.\n\
             As root: `sudo make demo`. In a container: give it CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW."
        );
        return ExitCode::FAILURE;
    }
    if let Err(error) = stop::listen() {
        eprintln!("picket-demo: listen for Ctrl-C: {error}");
        return ExitCode::FAILURE;
    }
    let once = setting("ONCE").is_some_and(|value| value != "0");
    match story::tell(&say, once) {
        Ok(differences) if differences.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) if error.is::<stop::Interrupted>() => {
            say.line("Interrupted; everything is cleaned up.");
            ExitCode::from(130)
        }
        Err(error) => {
            say.wrong(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A setting from the environment; an empty one is none.
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}
