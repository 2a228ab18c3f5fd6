//! The coverage-guided fuzzer over one target: `PICKET_FUZZ_TARGET=packet picket-fuzz CORPUS [libFuzzer options]`. Use scripts/fuzz.
#![no_main]

use std::sync::OnceLock;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("PICKET_FUZZ_TARGET").unwrap_or_default();
        let names: Vec<&str> = picket_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
        picket_fuzz::target(&name).unwrap_or_else(|| panic!("PICKET_FUZZ_TARGET is `{name}`: use one of {}", names.join(", ")))
    });
    target(bytes);
});
