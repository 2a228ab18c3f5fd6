//! The committed corpus, and mutations of it from a fixed seed, through every target.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use picket_fuzz::TARGETS;

/// Mutations of each corpus file.
const MUTATIONS: u64 = 40;

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn mutate(bytes: &[u8], state: &mut u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=next(state) % 4 {
        let at = next(state) as usize % (bytes.len() + 1);
        match next(state) % 4 {
            0 if at < bytes.len() => bytes[at] ^= 1 << (next(state) % 8),
            1 => bytes.insert(at, next(state) as u8),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            _ => bytes.truncate(at),
        }
    }
    bytes
}

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("corpus {}: {error}", dir.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.display().to_string(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn corpora_and_their_mutations_break_no_promise() {
    for (name, target) in TARGETS {
        let files = corpus(name);
        assert!(!files.is_empty(), "target {name} has no corpus");
        for (at, (file, bytes)) in files.iter().enumerate() {
            eprintln!("{file}");
            target(bytes);
            let mut state = at as u64;
            (0..MUTATIONS).for_each(|_| target(&mutate(bytes, &mut state)));
        }
    }
}

#[test]
fn the_corpus_stays_small_and_has_no_orphans() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for entry in std::fs::read_dir(&root).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(picket_fuzz::target(&name).is_some(), "corpus/{name} belongs to no target");
        let files = corpus(&name);
        let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(files.len() <= 400 && bytes <= 256 * 1024, "corpus/{name}: {} files, {bytes} bytes; minimise it", files.len());
    }
}
