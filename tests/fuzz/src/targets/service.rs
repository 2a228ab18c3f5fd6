//! What services say, and what users' fingerprints say of them.

use std::path::Path;
use std::sync::OnceLock;

use picket_probe::service::recog::{Fingerprints, check, keys};
use picket_probe::service::{dialogues, replay};
use picket_wire::ids::{JobId, LeaseId};
use picket_wire::job::Transport;
use picket_wire::service::{ServiceBatch, ServiceFound, ServiceOutcome};
use picket_wire::units::UnixMillis;

/// Longest file of fingerprints that is tried.
const FILE_MAX: usize = 4_096;

/// A dialogue: the first byte chooses it, the second its transport; then answers, each led by its length in two bytes.
pub(crate) fn dialogue(bytes: &[u8]) {
    let [which, transport, rest @ ..] = bytes else { return };
    let names: Vec<&str> = dialogues().collect();
    let transport = if transport % 2 == 0 { Transport::Tcp } else { Transport::Udp };
    let mut answers = Vec::new();
    let mut rest = rest;
    while let Some((len, behind)) = rest.split_first_chunk::<2>() {
        let (answer, behind) = behind.split_at(usize::from(u16::from_be_bytes(*len)).min(behind.len()));
        answers.push(answer);
        rest = behind;
    }
    if let Some(mut service) = replay(names[usize::from(*which) % names.len()], transport, &answers) {
        // What is found passes the bounds of the wire once it was clipped, as it is before it leaves.
        service.clip();
        let found = vec![ServiceFound { position: 0, outcome: ServiceOutcome::Identified(Box::new(service)) }];
        let batch = ServiceBatch { lease: LeaseId { job: JobId(1), grant: 1 }, at: UnixMillis(0), found };
        assert_eq!(batch.check(), Ok(()));
    }
}

/// A banner under every key of the fingerprints.
pub(crate) fn banner(bytes: &[u8]) {
    static OURS: OnceLock<Fingerprints> = OnceLock::new();
    let ours = OURS.get_or_init(Fingerprints::builtin);
    let text = String::from_utf8_lossy(bytes);
    for key in keys::ALL {
        let _ = ours.identify(key, &text);
    }
}

/// A file of fingerprints.
pub(crate) fn fingerprints(bytes: &[u8]) {
    if let Ok(text) = core::str::from_utf8(bytes)
        && text.len() <= FILE_MAX
    {
        let _ = check::text("fuzz.xml", text, Path::new("/nonexistent"));
    }
}
