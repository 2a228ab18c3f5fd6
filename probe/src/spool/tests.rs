//! The spool against a file system that tears writes, fills up, fails to sync and loses power.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use picket_wire::ids::StreamId;
use proptest::prelude::*;

use super::*;

const DIR: &str = "/spool";

fn small() -> SpoolConfig {
    SpoolConfig { segment_bytes: 600, cap_bytes: 6000, fsync_interval: Duration::from_secs(1) }
}

fn open(fs: &FaultyFs, config: SpoolConfig, stream: u64) -> (Spool<FaultyFs>, Recovery) {
    Spool::open(fs.clone(), Path::new(DIR), config, StreamId(stream)).unwrap()
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn payloads(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|e| std::str::from_utf8(&e.payload).unwrap()).collect()
}

#[test]
fn records_come_back_in_order_after_a_sync_and_not_before() {
    let fs = FaultyFs::new(1);
    let (mut spool, recovery) = open(&fs, SpoolConfig::default(), 7);
    assert!(recovery.new_stream);
    assert_eq!(spool.append(at(0), b"a").unwrap(), 1);
    assert_eq!(spool.append(at(0), b"").unwrap(), 2);
    assert_eq!(spool.read_from(at(0), 1, 100).unwrap(), []);
    assert_eq!(spool.synced(), 0);
    spool.sync(at(0)).unwrap();
    assert_eq!(spool.synced(), 2);
    let entries = spool.read_from(at(0), 1, 100).unwrap();
    assert_eq!(entries, [Entry { seq: 1, after: 0, payload: b"a".to_vec() }, Entry { seq: 2, after: 1, payload: vec![] }]);
    // The cursor goes on where it was, and back.
    spool.append(at(1), b"c").unwrap();
    spool.sync(at(1)).unwrap();
    assert_eq!(payloads(&spool.read_from(at(1), 3, 100).unwrap()), ["c"]);
    assert_eq!(payloads(&spool.read_from(at(1), 2, 100).unwrap()), ["", "c"]);
}

#[test]
fn reading_is_bounded_but_never_stuck_on_a_long_record() {
    let fs = FaultyFs::new(1);
    let (mut spool, _) = open(&fs, SpoolConfig::default(), 7);
    for size in [10, 190_000, 10, 10] {
        spool.append(at(0), &vec![b'x'; size]).unwrap();
    }
    spool.sync(at(0)).unwrap();
    let sizes = |entries: Vec<Entry>| entries.iter().map(|e| e.payload.len()).collect::<Vec<_>>();
    assert_eq!(sizes(spool.read_from(at(0), 1, 100).unwrap()), [10]);
    assert_eq!(sizes(spool.read_from(at(0), 2, 100).unwrap()), [190_000]);
    assert_eq!(sizes(spool.read_from(at(0), 3, 100).unwrap()), [10, 10]);
    assert!(matches!(spool.append(at(0), &vec![0; MAX_RECORD + 1]), Err(SpoolError::TooLong { .. })));
    assert_eq!(spool.loss().records, 1);
}

#[test]
fn syncs_are_grouped_by_the_interval() {
    let fs = FaultyFs::new(1);
    let (mut spool, _) = open(&fs, SpoolConfig::default(), 7);
    assert_eq!(spool.needs_sync(at(5)), None);
    spool.append(at(5), b"a").unwrap();
    assert_eq!(spool.needs_sync(at(5)), Some(at(5)), "the first at once");
    spool.sync(at(5)).unwrap();
    assert_eq!(spool.needs_sync(at(5)), None);
    spool.append(at(5), b"b").unwrap();
    assert_eq!(spool.needs_sync(at(5)), Some(at(6)), "then at the interval");
    spool.sync(at(6)).unwrap();
    assert!(spool.ack(at(6), StreamId(7), 2));
    assert_eq!(spool.needs_sync(at(6)), Some(at(66)), "an acknowledgement alone has time");
}

#[test]
fn acknowledged_segments_go_and_numbers_go_on() {
    let fs = FaultyFs::new(1);
    let (mut spool, _) = open(&fs, small(), 7);
    for i in 0..20u8 {
        spool.append(at(0), &[i; 100]).unwrap();
    }
    spool.sync(at(0)).unwrap();
    assert_eq!(spool.stats().records, 20);
    let before = spool.stats().segments;
    assert!(!spool.ack(at(0), StreamId(8), 20), "another stream's");
    assert_eq!(spool.stats().segments, before);
    spool.ack(at(0), StreamId(7), 1000);
    assert_eq!(spool.acked(), 20, "never beyond what was published");
    assert_eq!((spool.stats().segments, spool.stats().records, spool.stats().oldest), (1, 0, None));
    drop(spool);
    let (mut spool, recovery) = open(&fs, small(), 9);
    assert_eq!(recovery, Recovery::default());
    assert_eq!((spool.stream(), spool.acked()), (StreamId(7), 20));
    assert_eq!(spool.append(at(0), b"next").unwrap(), 21);
}

#[test]
fn a_torn_tail_is_cut_and_its_numbers_are_not_used_again() {
    let fs = FaultyFs::new(1);
    let (mut spool, _) = open(&fs, small(), 7);
    spool.append(at(0), b"one").unwrap();
    spool.append(at(0), b"two").unwrap();
    spool.sync(at(0)).unwrap();
    drop(spool);
    fs.edit("0000000001.seg", |bytes| bytes.truncate(bytes.len() - 1));
    let (mut spool, recovery) = open(&fs, small(), 9);
    assert_eq!(recovery.truncated_bytes, 26);
    let seq = spool.append(at(0), b"three").unwrap();
    assert!(seq > 2, "{seq}");
    spool.sync(at(0)).unwrap();
    let entries = spool.read_from(at(0), 1, 1000).unwrap();
    assert_eq!(payloads(&entries), ["one", "three"]);
    assert_eq!(entries[1].after, 1, "the gap is visible");
    drop(spool);
    let (_, recovery) = open(&fs, small(), 9);
    assert_eq!(recovery, Recovery::default(), "nothing is left of it");
}

#[test]
fn a_damaged_record_loses_itself_alone_and_is_counted_once() {
    let fs = FaultyFs::new(1);
    let (mut spool, _) = open(&fs, small(), 7);
    for text in ["one", "two", "three", "four"] {
        spool.append(at(0), text.as_bytes()).unwrap();
        spool.sync(at(0)).unwrap();
    }
    drop(spool);
    fs.edit("0000000001.seg", |bytes| {
        let place = bytes.windows(3).position(|w| w == b"two").unwrap();
        bytes[place] ^= 1;
    });
    for round in 0..3 {
        let (mut spool, recovery) = open(&fs, small(), 9);
        assert_eq!(recovery.lost, if round == 0 { vec![(2, 2)] } else { vec![] });
        assert_eq!(spool.loss().records, 1);
        let entries = spool.read_from(at(0), 1, 1000).unwrap();
        assert_eq!(payloads(&entries), ["one", "three", "four"]);
        assert_eq!(entries[1].after, 1);
    }
    // A header too, and while the spool is open.
    let (mut spool, _) = open(&fs, small(), 9);
    fs.edit("0000000001.seg", |bytes| {
        let place = bytes.windows(5).position(|w| w == b"three").unwrap();
        bytes[place - 3] ^= 1;
    });
    assert_eq!(payloads(&spool.read_from(at(0), 1, 1000).unwrap()), ["one", "four"]);
    assert_eq!(spool.loss().records, 2);
    assert_eq!(payloads(&spool.read_from(at(0), 1, 1000).unwrap()), ["one", "four"]);
    assert_eq!(spool.loss().records, 2);
}

#[test]
fn a_full_spool_refuses_counts_and_recovers() {
    let fs = FaultyFs::new(1);
    let (mut spool, _) = open(&fs, small(), 7);
    let mut taken = 0;
    let error = loop {
        match spool.append(at(0), &[1; 100]) {
            Ok(seq) => taken = seq,
            Err(error) => break error,
        }
    };
    assert!(error.is_full());
    assert_eq!(error.to_string(), "the spool /spool is full: 6000 bytes are waiting for the controller");
    assert!(!spool.has_room(100));
    assert!(spool.offer(at(0), &[1; 100]).unwrap_err().is_full(), "not counted: its owner keeps it");
    assert_eq!(spool.loss(), Loss { records: 1, bytes: 100 });
    spool.sync(at(1)).unwrap();
    drop(spool);
    let (mut spool, _) = open(&fs, small(), 9);
    assert_eq!(spool.loss(), Loss { records: 1, bytes: 100 }, "the count survives");
    spool.ack(at(1), StreamId(7), taken);
    assert!(spool.has_room(100));
    assert_eq!(spool.append(at(1), b"again").unwrap(), taken + 1);
}

#[test]
fn a_full_disk_refuses_counts_and_recovers() {
    let fs = FaultyFs::new(1);
    let (mut spool, _) = open(&fs, small(), 7);
    spool.append(at(0), b"kept").unwrap();
    fs.set_room(Some(fs.used() + 50));
    let error = spool.append(at(0), &[1; 100]).unwrap_err();
    assert!(matches!(error, SpoolError::DiskFull { .. }), "{error}");
    spool.sync(at(0)).unwrap();
    assert_eq!(spool.loss(), Loss { records: 1, bytes: 100 });
    fs.set_room(None);
    assert_eq!(spool.append(at(1), b"later").unwrap(), 2);
    spool.sync(at(1)).unwrap();
    assert_eq!(payloads(&spool.read_from(at(1), 1, 1000).unwrap()), ["kept", "later"]);
    // Everything acknowledged: the active segment is emptied in place, no new file is needed.
    spool.append(at(2), &[1; 300]).unwrap();
    spool.sync(at(2)).unwrap();
    spool.ack(at(2), StreamId(7), 3);
    fs.set_room(Some(fs.used()));
    assert_eq!(spool.append(at(3), &[2; 200]).unwrap(), 4);
    spool.sync(at(3)).unwrap();
    drop(spool);
    let (mut spool, recovery) = open(&fs, small(), 9);
    assert_eq!(recovery, Recovery::default());
    assert_eq!(spool.read_from(at(3), 4, 1000).unwrap(), [Entry { seq: 4, after: 3, payload: vec![2; 200] }]);
}

#[test]
fn after_a_failed_sync_the_records_are_written_again_elsewhere() {
    let fs = FaultyFs::new(1);
    let (mut spool, _) = open(&fs, small(), 7);
    spool.append(at(0), b"safe").unwrap();
    spool.sync(at(0)).unwrap();
    spool.append(at(1), b"risky").unwrap();
    fs.fail_next_sync();
    let error = spool.sync(at(1)).unwrap_err();
    assert_eq!(error.to_string(), "sync spool segment /spool/0000000001.seg");
    assert_eq!(spool.synced(), 1);
    assert_eq!(spool.needs_sync(at(1)), Some(at(2)), "tried again, but not in a tight loop");
    spool.sync(at(2)).unwrap();
    assert_eq!(spool.synced(), 2);
    assert_eq!(payloads(&spool.read_from(at(2), 1, 1000).unwrap()), ["safe", "risky"]);
    fs.crash();
    let (mut spool, recovery) = open(&fs, small(), 9);
    assert_eq!(recovery.lost, []);
    assert_eq!(payloads(&spool.read_from(at(2), 1, 1000).unwrap()), ["safe", "risky"]);
}

#[test]
fn a_vanished_log_begins_a_new_stream_and_counts_what_was_in_it() {
    let fs = FaultyFs::new(1);
    let (mut spool, _) = open(&fs, small(), 7);
    for _ in 0..3 {
        spool.append(at(0), b"x").unwrap();
    }
    spool.sync(at(0)).unwrap();
    spool.ack(at(0), StreamId(7), 1);
    spool.sync(at(100)).unwrap();
    drop(spool);
    fs.remove(&Path::new(DIR).join("0000000001.seg")).unwrap();
    let (spool, recovery) = open(&fs, small(), 9);
    assert!(recovery.new_stream);
    assert_eq!(recovery.lost, [(2, 3)]);
    assert_eq!((spool.stream(), spool.loss().records), (StreamId(9), 2));
}

#[test]
fn a_lost_state_file_costs_only_sending_again() {
    let fs = FaultyFs::new(1);
    let (mut spool, _) = open(&fs, small(), 7);
    for i in 0..20u8 {
        spool.append(at(0), &[i; 100]).unwrap();
    }
    spool.sync(at(0)).unwrap();
    spool.ack(at(0), StreamId(7), 10);
    drop(spool);
    fs.edit("state", |bytes| bytes.fill(0));
    let (mut spool, recovery) = open(&fs, small(), 9);
    assert_eq!((spool.stream(), recovery.lost), (StreamId(7), vec![]));
    let mut seen = Vec::new();
    spool.for_each_unacked(at(0), |entry| seen.push(entry.seq)).unwrap();
    assert_eq!(seen.last(), Some(&20));
    assert!(seen[0] <= 11);
    assert_eq!(spool.append(at(0), b"x").unwrap(), 21);
}

#[test]
fn works_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/spool");
    let (mut spool, _) = Spool::open(DiskFs, &path, SpoolConfig::default(), StreamId(1)).unwrap();
    for i in 0..1000u32 {
        spool.append(at(0), &i.to_le_bytes()).unwrap();
    }
    spool.sync(at(0)).unwrap();
    spool.ack(at(0), StreamId(1), 500);
    drop(spool);
    let (mut spool, recovery) = Spool::open(DiskFs, &path, SpoolConfig::default(), StreamId(2)).unwrap();
    assert_eq!(recovery, Recovery::default());
    let entries = spool.read_from(at(0), 1, usize::MAX).unwrap();
    assert_eq!(entries.len(), 1000);
    assert!(entries.iter().zip(0u32..).all(|(e, i)| e.payload == i.to_le_bytes()));
}

/// What one step of a schedule does.
#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Sync,
    Publish,
    Ack(u64),
    Restart,
    Crash,
    /// Power fails at the n-th file operation from now.
    CrashIn(u32),
    FailSync,
    DiskRoom(Option<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..300).prop_map(Step::Append),
        4 => Just(Step::Sync),
        4 => Just(Step::Publish),
        2 => (0u64..30).prop_map(Step::Ack),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
        2 => (0u32..30).prop_map(Step::CrashIn),
        1 => Just(Step::FailSync),
        1 => prop_oneof![Just(None), (0u64..800).prop_map(Some)].prop_map(Step::DiskRoom),
    ]
}

/// The reference: what a correct controller would have, and what the disk had promised.
#[derive(Default)]
struct Model {
    /// Number to content, for everything that was ever published, per stream.
    published: BTreeMap<u64, Vec<u8>>,
    /// Everything that an append returned a number for and a sync confirmed.
    promised: BTreeMap<u64, Vec<u8>>,
    pending: BTreeMap<u64, Vec<u8>>,
    contents: BTreeSet<Vec<u8>>,
    /// The controller's store and how far it is complete.
    received: BTreeMap<u64, Vec<u8>>,
    complete: u64,
    acked: u64,
    stream: Option<StreamId>,
    counter: u32,
}

impl Model {
    fn publish(&mut self, spool: &mut Spool<FaultyFs>, now: Duration) -> Result<(), SpoolError> {
        for entry in spool.read_from(now, spool.acked() + 1, usize::MAX)? {
            assert!(entry.seq <= spool.synced());
            assert!(self.contents.contains(&entry.payload), "invented bytes at {}", entry.seq);
            let before = self.published.insert(entry.seq, entry.payload.clone());
            assert!(before.is_none_or(|bytes| bytes == entry.payload), "number {} used twice", entry.seq);
            if entry.after <= self.complete && entry.seq > self.complete {
                self.complete = entry.seq;
                self.received.insert(entry.seq, entry.payload);
            }
        }
        Ok(())
    }
}

/// Runs a schedule and then lets everything settle.
fn run(steps: &[Step], seed: u64) {
    let fs = FaultyFs::new(seed);
    let mut model = Model::default();
    let mut now = Duration::ZERO;
    let mut lives = 0;
    let mut reopen = |fs: &FaultyFs, model: &mut Model| -> Option<Spool<FaultyFs>> {
        lives += 1;
        let stream = StreamId(lives);
        let (mut spool, recovery) = match Spool::open(fs.clone(), Path::new(DIR), small(), stream) {
            Ok(opened) => opened,
            Err(_) => return None,
        };
        assert_eq!(recovery.lost, [], "an honest disk loses nothing");
        if let Some(old) = model.stream
            && old != spool.stream()
        {
            assert!(model.promised.keys().all(|seq| *seq <= model.acked), "a stream with promises was dropped");
            *model = Model { contents: std::mem::take(&mut model.contents), counter: model.counter, ..Model::default() };
        }
        model.stream = Some(spool.stream());
        model.pending.clear();
        let mut found = BTreeMap::new();
        let mut chain = None;
        spool
            .for_each_unacked(Duration::ZERO, |entry| {
                assert!(chain.is_none_or(|last| last == entry.after), "the chain is whole");
                chain = Some(entry.seq);
                found.insert(entry.seq, entry.payload.clone());
            })
            .ok()?;
        for (seq, bytes) in &model.promised {
            assert!(*seq <= model.acked || found.get(seq) == Some(bytes), "record {seq} was promised and is gone");
        }
        model.promised.extend(found);
        Some(spool)
    };
    let mut spool = reopen(&fs, &mut model);
    for step in steps {
        now += Duration::from_millis(100);
        if spool.is_none() {
            fs.crash();
            fs.heal();
            spool = reopen(&fs, &mut model);
        }
        let Some(open) = spool.as_mut() else { panic!("a healthy disk opens") };
        match step {
            Step::Append(len) => {
                model.counter += 1;
                let mut record = model.counter.to_le_bytes().to_vec();
                record.resize(4 + len, 0xEE);
                model.contents.insert(record.clone());
                let before = open.loss();
                match open.append(now, &record) {
                    Ok(seq) => {
                        model.pending.insert(seq, record);
                    }
                    Err(_) => assert_eq!(open.loss().records, before.records + 1),
                }
            }
            Step::Sync => {
                let _ = open.sync(now);
            }
            Step::Publish => {
                let _ = model.publish(open, now);
            }
            Step::Ack(lag) => {
                let up_to = model.complete.saturating_sub(*lag);
                assert!(open.ack(now, model.stream.unwrap(), up_to));
                model.acked = model.acked.max(up_to);
            }
            Step::Restart => {
                spool = None;
                if !fs.crashed() {
                    spool = reopen(&fs, &mut model);
                }
                continue;
            }
            Step::Crash => {
                fs.crash();
                spool = reopen(&fs, &mut model);
                continue;
            }
            Step::CrashIn(operations) => fs.crash_in(*operations),
            Step::FailSync => fs.fail_next_sync(),
            Step::DiskRoom(room) => fs.set_room(room.map(|room| fs.used() + room)),
        }
        let synced = open.synced();
        let later = model.pending.split_off(&(synced + 1));
        model.promised.append(&mut std::mem::replace(&mut model.pending, later));
        if fs.crashed() {
            spool = None;
        }
    }
    // The storm is over: everything that was promised arrives, exactly once, and the spool empties.
    drop(spool);
    fs.crash();
    fs.heal();
    let mut spool = reopen(&fs, &mut model).expect("a healthy disk opens");
    model.publish(&mut spool, now).unwrap();
    for (seq, bytes) in &model.promised {
        assert_eq!(model.received.get(seq), Some(bytes), "record {seq}");
    }
    spool.ack(now, spool.stream(), model.complete);
    assert_eq!(spool.stats().records, 0);
    let seq = spool.append(now, b"after all").unwrap();
    assert!(!model.published.contains_key(&seq));
    spool.sync(now).unwrap();
    assert_eq!(spool.read_from(now, spool.acked() + 1, 1000).unwrap().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_promised_is_lost_and_no_number_is_used_twice(steps in prop::collection::vec(step(), 1..80), seed: u64) {
        run(&steps, seed);
    }

    #[test]
    fn rot_is_counted_never_silent_and_never_invents(
        sizes in prop::collection::vec(0usize..200, 1..40),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..8), 1..6),
        also_state: bool,
    ) {
        let fs = FaultyFs::new(0);
        let (mut spool, _) = open(&fs, small(), 1);
        let mut contents = BTreeMap::new();
        for (i, size) in sizes.iter().enumerate() {
            let mut record = (i as u32).to_le_bytes().to_vec();
            record.resize(4 + size, 0x55);
            if let Ok(seq) = spool.append(at(0), &record) {
                contents.insert(seq, record);
            }
        }
        // The acknowledgement makes the state file vouch for all of them; without that (or a later record) the newest ones
        // could not be told from ones that never reached the disk.
        spool.sync(at(0)).unwrap();
        spool.ack(at(0), StreamId(1), 1);
        spool.sync(at(1)).unwrap();
        contents.remove(&1);
        let refused = spool.loss().records;
        drop(spool);
        let files: Vec<String> = fs.list(Path::new(DIR)).unwrap().into_iter().filter(|n| also_state || n != "state").collect();
        for (file, place, bit) in &flips {
            fs.edit(&files[file.index(files.len())], |bytes| {
                let place = place.index(bytes.len());
                bytes[place] ^= 1 << bit;
            });
        }
        let mut seen = BTreeMap::new();
        let (mut spool, _) = open(&fs, small(), 2);
        spool.for_each_unacked(at(1), |entry| { seen.insert(entry.seq, entry.payload.clone()); }).unwrap();
        if spool.stream() == StreamId(1) {
            for (seq, bytes) in seen.iter().filter(|(seq, _)| **seq != 1) {
                prop_assert_eq!(contents.get(seq), Some(bytes));
            }
            let fresh = spool.append(at(1), b"new");
            if let Ok(seq) = fresh {
                prop_assert!(!contents.contains_key(&seq));
            }
        }
        if !also_state {
            let missing = contents.keys().filter(|seq| !seen.contains_key(seq)).count() as u64;
            let refused_now = spool.loss().records - refused - missing;
            prop_assert!(refused_now <= 1, "{} missing, {} counted", missing, spool.loss().records - refused);
            let counted = spool.loss().records;
            spool.sync(at(1)).unwrap();
            drop(spool);
            let (spool, _) = open(&fs, small(), 3);
            prop_assert_eq!(spool.loss().records, counted, "counted once");
        }
    }
}

/// A file system in memory. Each file has what the kernel shows and what is on the disk; a crash keeps a random part of
/// what was not synced, in no order, torn.
#[derive(Clone)]
struct FaultyFs(Rc<RefCell<Disk>>);

#[derive(Default)]
struct Disk {
    files: BTreeMap<PathBuf, Rc<RefCell<Node>>>,
    /// The directory as the disk has it.
    durable: BTreeMap<PathBuf, Rc<RefCell<Node>>>,
    rng: u64,
    room: Option<u64>,
    fail_sync: bool,
    crash_in: Option<u32>,
    crashed: bool,
}

#[derive(Default, Clone)]
struct Node {
    live: Vec<u8>,
    disk: Vec<u8>,
    /// Changes since the last sync: writes, and cuts.
    changes: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Len(u64),
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, data) => {
            let start = *offset as usize;
            if bytes.len() < start + data.len() {
                bytes.resize(start + data.len(), 0);
            }
            bytes[start..start + data.len()].copy_from_slice(data);
        }
        Change::Len(len) => bytes.resize(*len as usize, 0),
    }
}

impl Disk {
    fn random(&mut self) -> u64 {
        // splitmix64
        self.rng = self.rng.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn used(&self) -> u64 {
        self.files.values().map(|node| node.borrow().live.len() as u64).sum()
    }

    /// Every operation comes through here; the one at which the power fails may still have its effect, in part.
    fn operation(&mut self) -> io::Result<Effect> {
        if self.crashed {
            return Err(io::Error::other("power is off"));
        }
        match self.crash_in {
            Some(0) => {
                self.crashed = true;
                Ok(Effect::Partial)
            }
            Some(n) => {
                self.crash_in = Some(n - 1);
                Ok(Effect::Whole)
            }
            None => Ok(Effect::Whole),
        }
    }
}

#[derive(PartialEq)]
enum Effect {
    Whole,
    Partial,
}

fn power_failed() -> io::Error {
    io::Error::other("power fails")
}

impl FaultyFs {
    fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Disk { rng: seed, ..Disk::default() })))
    }

    fn crash_in(&self, operations: u32) {
        self.0.borrow_mut().crash_in = Some(operations);
    }

    fn crashed(&self) -> bool {
        self.0.borrow().crashed
    }

    fn fail_next_sync(&self) {
        self.0.borrow_mut().fail_sync = true;
    }

    fn set_room(&self, room: Option<u64>) {
        self.0.borrow_mut().room = room;
    }

    fn used(&self) -> u64 {
        self.0.borrow().used()
    }

    fn heal(&self) {
        let mut disk = self.0.borrow_mut();
        disk.fail_sync = false;
        disk.crash_in = None;
        disk.room = None;
    }

    /// Loses power and starts again with what is on the disk.
    fn crash(&self) {
        let disk = &mut *self.0.borrow_mut();
        let mut names: BTreeMap<PathBuf, Rc<RefCell<Node>>> = disk.durable.clone();
        for (path, node) in disk.files.clone() {
            let known = names.get(&path).is_some_and(|old| Rc::ptr_eq(old, &node));
            if !known && disk.random().is_multiple_of(2) {
                names.insert(path, node);
            }
        }
        let gone: Vec<PathBuf> = names.keys().filter(|path| !disk.files.contains_key(*path)).cloned().collect();
        for path in gone {
            if disk.random().is_multiple_of(2) {
                names.remove(&path);
            }
        }
        let mut files = BTreeMap::new();
        for (path, node) in names {
            let node = node.borrow().clone();
            let mut bytes = node.disk;
            for change in &node.changes {
                let kept = match (change, disk.random() % 4) {
                    (_, 0) => continue,
                    (Change::Write(offset, data), 1) => {
                        let cut = disk.random() as usize % (data.len() + 1);
                        Change::Write(*offset, data[..cut].to_vec())
                    }
                    (Change::Write(offset, data), 2) => {
                        // The size arrived, the beginning did not: zeros in its place.
                        let cut = disk.random() as usize % (data.len() + 1);
                        Change::Write(offset + cut as u64, data[cut..].to_vec())
                    }
                    _ => change.clone(),
                };
                apply(&mut bytes, &kept);
            }
            files.insert(path, Rc::new(RefCell::new(Node { live: bytes.clone(), disk: bytes, changes: Vec::new() })));
        }
        disk.durable = files.clone();
        disk.files = files;
        disk.crashed = false;
        disk.crash_in = None;
    }

    /// Changes a file behind the spool's back, on the disk and in the kernel.
    fn edit(&self, name: &str, change: impl Fn(&mut Vec<u8>)) {
        let disk = self.0.borrow();
        let mut node = disk.files[&Path::new(DIR).join(name)].borrow_mut();
        change(&mut node.live);
        node.disk = node.live.clone();
        node.changes.clear();
    }
}

struct FaultyFile {
    fs: FaultyFs,
    node: Rc<RefCell<Node>>,
}

impl Filesystem for FaultyFs {
    type File = FaultyFile;

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        self.0.borrow_mut().operation().map(|_| ())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut disk = self.0.borrow_mut();
        disk.operation()?;
        let name = |path: &PathBuf| path.strip_prefix(dir).ok().and_then(|p| p.to_str()).map(str::to_owned);
        Ok(disk.files.keys().rev().filter_map(name).collect())
    }

    fn open(&self, path: &Path) -> io::Result<FaultyFile> {
        let mut disk = self.0.borrow_mut();
        disk.operation()?;
        let node = disk.files.get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(FaultyFile { fs: self.clone(), node })
    }

    fn create(&self, path: &Path) -> io::Result<FaultyFile> {
        let mut disk = self.0.borrow_mut();
        let effect = disk.operation()?;
        if let Some(node) = disk.files.get(path).cloned() {
            drop(disk);
            let mut file = FaultyFile { fs: self.clone(), node };
            file.change(Change::Len(0));
            return if effect == Effect::Whole { Ok(file) } else { Err(power_failed()) };
        }
        let node = Rc::new(RefCell::new(Node::default()));
        disk.files.insert(path.to_owned(), Rc::clone(&node));
        if effect == Effect::Whole { Ok(FaultyFile { fs: self.clone(), node }) } else { Err(power_failed()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        let effect = disk.operation()?;
        disk.files.remove(path).ok_or(io::ErrorKind::NotFound)?;
        if effect == Effect::Whole { Ok(()) } else { Err(power_failed()) }
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        if disk.operation()? == Effect::Partial {
            return Err(power_failed());
        }
        disk.durable = disk.files.clone();
        Ok(())
    }
}

impl FaultyFile {
    fn change(&mut self, change: Change) {
        let mut node = self.node.borrow_mut();
        apply(&mut node.live, &change);
        node.changes.push(change);
    }
}

impl SpoolFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.fs.0.borrow_mut().operation()?;
        let node = self.node.borrow();
        let rest = node.live.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        let effect = self.fs.0.borrow_mut().operation()?;
        let grows = (offset + data.len() as u64).saturating_sub(self.node.borrow().live.len() as u64);
        let disk = self.fs.0.borrow();
        let room = disk.room.map_or(u64::MAX, |room| room.saturating_sub(disk.used()));
        drop(disk);
        if grows > room {
            let part = data.len() - (grows - room) as usize;
            self.change(Change::Write(offset, data[..part].to_vec()));
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.change(Change::Write(offset, data.to_vec()));
        if effect == Effect::Whole { Ok(()) } else { Err(power_failed()) }
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let effect = self.fs.0.borrow_mut().operation()?;
        self.change(Change::Len(len));
        if effect == Effect::Whole { Ok(()) } else { Err(power_failed()) }
    }

    fn size(&self) -> io::Result<u64> {
        self.fs.0.borrow_mut().operation()?;
        Ok(self.node.borrow().live.len() as u64)
    }

    fn sync(&mut self) -> io::Result<()> {
        let effect = self.fs.0.borrow_mut().operation()?;
        let mut node = self.node.borrow_mut();
        if std::mem::take(&mut self.fs.0.borrow_mut().fail_sync) {
            // As Linux does it: the pages count as clean, the disk never sees them.
            node.changes.clear();
            return Err(io::Error::other("I/O error"));
        }
        if effect == Effect::Partial {
            return Err(power_failed());
        }
        let changes = std::mem::take(&mut node.changes);
        for change in &changes {
            apply(&mut node.disk, change);
        }
        Ok(())
    }
}
