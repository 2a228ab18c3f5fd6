//! Fuzz targets: for every parser of what comes from outside, a function that takes any bytes and panics where a promise is broken.
//!
//! The same functions serve two masters: `scripts/fuzz` links them with libFuzzer and explores; `tests/replay.rs` runs the
//! committed corpus, and mutations of it from a fixed seed, in every test run.
//!
//! To add one: a function in `targets/`, a line in [`TARGETS`], a first corpus file in `corpus/<name>/`.
//!
//! **Invariant:** a target does bounded work for bounded input, reads no clock and draws no randomness, so that a finding
//! repeats from its bytes alone.

mod targets;

/// A target and its name, which is also the name of its corpus folder.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("frame", targets::packet::frame),
    ("packet", targets::packet::packet),
    ("answer", targets::packet::answer),
    ("pcapng", targets::capture::pcapng),
    ("ring", targets::capture::ring),
    ("scan", targets::scan::replies),
    ("trace", targets::trace::replies),
    ("dialogue", targets::service::dialogue),
    ("banner", targets::service::banner),
    ("fingerprints", targets::service::fingerprints),
    ("message", targets::wire::message),
    ("envelope", targets::wire::envelope),
    ("targets", targets::text::targets),
    ("ports", targets::text::ports),
    ("selection", targets::text::selection),
    ("units", targets::text::units),
];

/// The target of a name.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}
