use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::*;
use crate::capture::pcapng::Packet;
use crate::capture::ring::{Answer, Question, ask, show};
use crate::capture::session::{Keep, Limits, News, Outlet, Session, Telling};
use crate::packet::ip::{PROTOCOL_UDP, v4_header};
use crate::packet::link::RAW_IP;

const OPTIONS: Options = Options { budget: LEAST_BUDGET, keep: None, keep_free: 0 };

/// A packet: time, from, to, port, bytes of payload.
#[derive(Debug, Clone, Copy)]
struct Sent {
    time: u64,
    from: u8,
    to: u8,
    port: u16,
    payload: usize,
}

fn host(n: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, 0, n).into()
}

impl Sent {
    fn data(&self, number: u32) -> Vec<u8> {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (host(self.from), host(self.to)) else { panic!("these have version 4") };
        let udp = [self.port.to_be_bytes(), 9u16.to_be_bytes(), (8 + self.payload as u16).to_be_bytes(), [0, 0]].concat();
        let mut payload = vec![number as u8; self.payload];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        [&v4_header(from, to, PROTOCOL_UDP, 64, 8 + self.payload as u16)[..], &udp, &payload].concat()
    }

    fn wanted(&self, question: &Question) -> bool {
        (question.from.0..question.to.0).contains(&self.time)
            && (question.hosts.is_empty() || [self.from, self.to].iter().any(|n| question.hosts.contains(&host(*n))))
            && (question.ports.is_empty() || question.ports.contains(&self.port) || question.ports.contains(&9))
    }
}

struct Kept {
    files: Files,
    dropped: u64,
}

impl Keep for Kept {
    fn packet(&mut self, packet: &Packet<'_>) {
        self.files.packet(packet);
    }
    fn lens(&self) -> (u64, u64) {
        (self.files.file_len(), self.files.total_len())
    }
    fn rotate(&mut self) {
        self.dropped += 3;
        self.files.rotate(&Statistics { kernel_drops: Some(self.dropped), ..Statistics::default() });
    }
}

struct Nobody;

impl Outlet for Nobody {
    fn offer(&mut self, _: News) -> bool {
        false
    }
}

fn interface() -> Interface {
    Interface { link_type: RAW_IP, snap_len: 0, name: "eth0".into(), filter: String::new() }
}

fn open(dir: &Path, options: Options) -> Result<Files, RingError> {
    keep(dir, options, Section { comment: "a test".into(), ..Section::default() }, interface())
}

/// Captures into a ring; the packets' numbers begin with `first`.
fn fill(dir: &Path, options: Options, first: usize, packets: &[Sent]) -> Written {
    let mut kept = Kept { files: open(dir, options).unwrap(), dropped: 0 };
    let telling = Telling { packets: None, flows: None, most_flows: 1 };
    let mut session = Session::new(RAW_IP, Limits::default(), options.rotation(), telling, 0);
    for (n, sent) in packets.iter().enumerate() {
        let data = sent.data((first + n) as u32);
        let packet = Packet { interface: 0, time: UnixNanos(sent.time), original_len: data.len() as u32, data: &data };
        assert!(session.packet(&packet, Some(&mut kept), &mut Nobody));
    }
    kept.dropped += 3;
    let written = kept.files.finish(&Statistics { kernel_drops: Some(kept.dropped), ..Statistics::default() });
    assert!(written.problem.is_none() && written.packets == packets.len() as u64, "{written:?}");
    written
}

/// Numbers of the packets of a file.
fn numbers(file: &[u8]) -> Vec<u32> {
    let (mut reader, mut found) = (Reader::new(file), Vec::new());
    while let Ok(Some(block)) = reader.next_block() {
        if let Block::Packet(packet) = block {
            found.push(u32::from_be_bytes(packet.data[28..32].try_into().unwrap()));
        }
    }
    found
}

/// Numbers of all packets that segments have, read without any index.
fn there(dir: &Path) -> Vec<u32> {
    let segments = segment::list(dir).unwrap().segments;
    segments.iter().flat_map(|number| numbers(&fs::read(data_path(dir, *number)).unwrap())).collect()
}

fn asked(dir: &Path, question: &Question) -> (Vec<u32>, Answer) {
    let mut out = Vec::new();
    let answer = ask(dir, question, &mut out, &AtomicBool::new(false)).unwrap();
    let found = numbers(&out);
    assert_eq!(answer.packets, found.len() as u64);
    (found, answer)
}

/// What the directory takes of the disk.
fn taken(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().blocks()).sum::<u64>();
    (files + fs::metadata(dir).unwrap().blocks()) * 512
}

fn steady(count: usize, payload: usize) -> Vec<Sent> {
    (0..count).map(|n| Sent { time: n as u64, from: (n % 7) as u8, to: 100, port: 1_000 + (n % 50) as u16, payload }).collect()
}

#[test]
fn the_oldest_go_and_the_budget_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let packets = steady(4_000, 1_000);
    let written = fill(dir.path(), OPTIONS, 0, &packets);
    assert!(written.files > 100 && written.bytes > 4_000_000, "{written:?}");
    assert!(taken(dir.path()) <= LEAST_BUDGET, "{}", taken(dir.path()));
    let left = there(dir.path());
    assert_eq!(left, (4_000 - left.len() as u32..4_000).collect::<Vec<_>>(), "the newest, without a gap");
    // A segment of 32 KiB takes 11 KiB besides; of larger rings' segments it is nothing.
    assert!(left.len() > 650, "{}", left.len());
    // A smaller or a further capture makes room as well, and goes on behind the last number.
    fill(dir.path(), OPTIONS, 4_000, &packets[..100]);
    let left = there(dir.path());
    assert_eq!(left, (4_100 - left.len() as u32..4_100).collect::<Vec<_>>());
    assert!(taken(dir.path()) <= LEAST_BUDGET);
}

#[test]
fn who_does_not_rotate_keeps_to_the_budget_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = open(dir.path(), OPTIONS).unwrap();
    for (n, sent) in steady(3_000, 1_000).iter().enumerate() {
        let data = sent.data(n as u32);
        files.packet(&Packet { interface: 0, time: UnixNanos(sent.time), original_len: 9, data: &data });
    }
    assert!(files.finish(&Statistics::default()).problem.is_none());
    assert!(taken(dir.path()) <= LEAST_BUDGET, "{}", taken(dir.path()));
    let (found, answer) = asked(dir.path(), &Question::default());
    assert!(found == there(dir.path()) && found.last() == Some(&2_999) && answer.segments > 3, "{answer:?}");
}

#[test]
fn an_answer_says_what_it_is_and_what_it_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), Options { budget: 8 << 20, ..OPTIONS }, 0, &steady(2_000, 400));
    let question = Question { from: UnixNanos(500), to: UnixNanos(1_000), hosts: vec![host(3)], ports: vec![], filter: String::new() };
    let mut out = Vec::new();
    let answer = ask(dir.path(), &question, &mut out, &AtomicBool::new(false)).unwrap();
    let expected: Vec<u32> = (500..1_000).filter(|n| n % 7 == 3).collect();
    assert_eq!(numbers(&out), expected);
    let mut reader = Reader::new(&out[..]);
    let Some(Block::Section(section)) = reader.next_block().unwrap() else { panic!("a section is expected") };
    assert_eq!(section.comment, "asked of a ring: host 198.18.0.3, from 0.000000500, to 0.000001000; a test");
    assert_eq!(reader.next_block().unwrap(), Some(Block::Interface(interface())));
    let mut last = None;
    while let Some(block) = reader.next_block().unwrap() {
        if let Block::Statistics(statistics) = block {
            last = Some(statistics);
        }
    }
    let last = last.unwrap();
    assert_eq!((last.delivered, last.start, last.end), (Some(expected.len() as u64), answer.times.map(|t| t.0), answer.times.map(|t| t.1)));
    // Segments of 128 KiB, of which each has counted three drops.
    assert!(answer.segments_read < answer.segments && answer.segments_read >= 2, "{answer:?}");
    assert_eq!((answer.dropped, answer.dropped_unknown), (3 * answer.segments_read, 0));
    assert!(answer.damaged == 0 && answer.bytes_unindexed == 0 && answer.looked_at < 2_000, "{answer:?}");
    // Nobody there: no extent is read, and the file is one all the same.
    let nobody = Question { hosts: vec![host(200)], ..question };
    let mut out = Vec::new();
    let answer = ask(dir.path(), &nobody, &mut out, &AtomicBool::new(false)).unwrap();
    assert!(answer.packets == 0 && answer.extents_read == 0 && answer.extents_skipped > 0, "{answer:?}");
    assert_eq!(Reader::new(&out[..]).next_block().unwrap().map(|block| matches!(block, Block::Section(_))), Some(true));
}

#[test]
fn a_ring_is_shown_by_its_indexes() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), Options { budget: 64 << 20, ..OPTIONS }, 0, &steady(5_000, 800));
    let shown = show(dir.path()).unwrap();
    assert_eq!((shown.iter().map(|s| s.span.packets).sum::<u64>(), shown.len()), (5_000, 5));
    assert!(shown.iter().all(|s| s.ended && s.damaged == 0 && s.index_bytes > 0 && s.index_bytes * 100 < s.bytes), "{shown:?}");
    assert_eq!((shown[0].span.first, shown[4].span.last), (UnixNanos(0), UnixNanos(4_999)));
    // Without an index it is read.
    fs::remove_file(index_path(dir.path(), 2)).unwrap();
    let again = show(dir.path()).unwrap();
    assert_eq!((again[1].span, again[1].index_bytes, again[1].ended), (shown[1].span, 0, false));
}

#[test]
fn what_is_too_old_goes_without_anything_coming() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { keep: Some(Duration::from_secs(3_600)), ..OPTIONS };
    assert_eq!(options.rotation().every, Some(Duration::from_secs(225)));
    let mut store = Store::open(dir.path(), options, Section::default(), interface(), Arc::default()).unwrap();
    store.begin().unwrap();
    let second = |n: u64| UnixNanos(n * UnixNanos::SECOND);
    for n in [1_000, 2_000, 3_000] {
        let mut block = Vec::new();
        write::packet(&Packet { interface: 0, time: second(n), original_len: 9, data: &[0x45; 40] }, &mut block);
        store.append(&block).unwrap();
        // The clock of the test is not the box's, by which all of this is long ago.
        store.options.keep = None;
        store.close(None);
        store.begin().unwrap();
        store.options.keep = options.keep;
    }
    store.expire(second(4_600));
    assert_eq!(segment::list(dir.path()).unwrap().segments, [1, 2, 3, 4], "the hour is not over");
    store.expire(second(4_601));
    assert_eq!(segment::list(dir.path()).unwrap(), segment::Listing { segments: vec![2, 3, 4], indexes: vec![2, 3, 4] });
    store.idle();
    assert_eq!(segment::list(dir.path()).unwrap().segments, [4]);
}

#[test]
fn a_ring_has_one_writer_and_a_sound_budget() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), OPTIONS).unwrap();
    let error = open(dir.path(), OPTIONS).unwrap_err();
    assert!(matches!(&error, RingError::Busy(path) if path == dir.path()), "{error}");
    assert!(first.finish(&Statistics::default()).problem.is_none());
    let error = open(dir.path(), Options { budget: LEAST_BUDGET - 1, ..OPTIONS }).unwrap_err();
    assert!(matches!(error, RingError::Budget(_)), "{error}");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(open(&file, OPTIONS).unwrap_err(), RingError::Directory { .. }));
    let empty = tempfile::tempdir().unwrap();
    let error = ask(empty.path(), &Question::default(), &mut Vec::new(), &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().contains("holds no ring: no file segment-NUMBER.pcapng is in it"), "{error}");
}

#[test]
fn nothing_is_given_up_for_room_that_cannot_be_made() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), OPTIONS, 0, &steady(500, 1_000));
    let before = there(dir.path());
    let error = open(dir.path(), Options { keep_free: u64::MAX, ..OPTIONS }).unwrap_err();
    assert!(matches!(error, RingError::File(FileError::Floor { keep: u64::MAX, .. })), "{error}");
    assert_eq!(there(dir.path()), before);
}

#[test]
fn files_of_others_stay_and_lone_indexes_go() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["notes", "segment-1.pcapng", "segment-0000000009.index"] {
        fs::write(dir.path().join(name), "mine").unwrap();
    }
    fill(dir.path(), OPTIONS, 0, &steady(10, 100));
    let names: BTreeSet<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let expected = ["notes", "ring.lock", "segment-0000000001.index", "segment-0000000001.pcapng", "segment-1.pcapng"];
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn a_ring_is_asked_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { budget: 2 << 20, ..OPTIONS };
    fill(dir.path(), options, 0, &steady(100, 200));
    let packets = steady(20_000, 300);
    let writing = std::thread::scope(|scope| {
        let writer = scope.spawn(|| fill(dir.path(), options, 100, &packets));
        let (mut asked_often, mut newest) = (0, 0);
        loop {
            let over = writer.is_finished();
            let question = Question { hosts: vec![host(100)], ..Question::default() };
            let (found, answer) = asked(dir.path(), &question);
            // What is there is there without a gap, unless segments went meanwhile.
            let gaps = found.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count() as u64;
            assert!(gaps <= answer.segments_gone && answer.damaged == 0, "{gaps} gaps, {answer:?}");
            assert!(found.is_empty() || found.last() >= Some(&newest));
            newest = found.last().copied().unwrap_or(newest);
            asked_often += 1;
            if over {
                assert_eq!(newest, 20_099);
                break asked_often;
            }
        }
    });
    assert!(writing > 0);
}

#[test]
fn who_stops_gets_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), OPTIONS, 0, &steady(10, 100));
    let error = ask(dir.path(), &Question::default(), &mut Vec::new(), &AtomicBool::new(true)).unwrap_err();
    assert_eq!(error.to_string(), "stopped before the end");
}

#[cfg(feature = "libpcap")]
#[test]
fn filters_are_asked_too() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), OPTIONS, 0, &steady(300, 100));
    let question = |filter: &str| Question { ports: vec![1_003, 1_004], filter: filter.into(), ..Question::default() };
    let expected: Vec<u32> = (0..300).filter(|n| [3, 4].contains(&(n % 50)) && n % 7 == 5).collect();
    assert_eq!(asked(dir.path(), &question("src host 198.18.0.5 and greater 100")).0, expected);
    let error = ask(dir.path(), &question("src hots 198.18.0.5"), &mut Vec::new(), &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().starts_with("filter is wrong at character 5, `hots`: "), "{error}");
}

fn sent() -> impl Strategy<Value = Sent> {
    (0u64..40, 0u8..12, 0u8..12, 1u16..6, prop_oneof![4usize..60, 60usize..3_000]).prop_map(|(time, from, to, port, payload)| Sent {
        time,
        from,
        to,
        port,
        payload,
    })
}

/// Packets at times that go on, and back now and then.
fn traffic(most: usize) -> impl Strategy<Value = Vec<Sent>> {
    proptest::collection::vec(sent(), 1..most).prop_map(|mut packets| {
        for (n, packet) in packets.iter_mut().enumerate() {
            packet.time += n as u64;
        }
        packets
    })
}

fn question(most: u64) -> impl Strategy<Value = Question> {
    let hosts = proptest::collection::vec((0u8..13).prop_map(host), 0..3);
    (0..most, 0..most, hosts, proptest::collection::vec(1u16..7, 0..2)).prop_map(|(from, length, hosts, ports)| Question {
        from: UnixNanos(from),
        to: UnixNanos(from + length),
        hosts,
        ports,
        filter: String::new(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_what_a_look_at_every_packet_finds(
        packets in traffic(2_500), questions in proptest::collection::vec(question(2_000), 4), budget in LEAST_BUDGET..LEAST_BUDGET * 3,
    ) {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), Options { budget, ..OPTIONS }, 0, &packets);
        prop_assert!(taken(dir.path()) <= budget);
        let left = there(dir.path());
        prop_assert_eq!(left.last(), Some(&(packets.len() as u32 - 1)));
        for question in questions {
            let expected: Vec<u32> = left.iter().copied().filter(|n| packets[*n as usize].wanted(&question)).collect();
            let (found, answer) = asked(dir.path(), &question);
            prop_assert_eq!(found, expected);
            prop_assert!(answer.damaged == 0 && answer.bytes_unindexed == 0, "{:?}", answer);
        }
    }

    #[test]
    fn who_is_killed_or_robbed_of_an_index_leaves_what_can_be_asked(
        packets in traffic(900), question in question(800), cut in any::<prop::sample::Index>(), index in any::<prop::sample::Index>(),
        harm in 0u8..4, which in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { budget: 4 << 20, ..OPTIONS };
        fill(dir.path(), options, 0, &packets);
        // The last segment ends anywhere behind its head, as after kill -9; any index is short, damaged, gone, or an older one.
        let segments = segment::list(dir.path()).unwrap().segments;
        let last = data_path(dir.path(), *segments.last().unwrap());
        let file = File::options().write(true).open(&last).unwrap();
        let (head, len) = (200, file.metadata().unwrap().len());
        file.set_len(head + cut.index((len - head + 1) as usize) as u64).unwrap();
        let harmed = index_path(dir.path(), segments[which.index(segments.len())]);
        let mut bytes = fs::read(&harmed).unwrap();
        let at = index.index(bytes.len());
        match harm {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 0x10,
            2 => bytes.clear(),
            _ => bytes = fs::read(index_path(dir.path(), segments[0])).unwrap(),
        }
        fs::write(&harmed, bytes).unwrap();
        let left = there(dir.path());
        let expected: Vec<u32> = left.iter().copied().filter(|n| packets[*n as usize].wanted(&question)).collect();
        prop_assert_eq!(asked(dir.path(), &question).0, &expected[..]);
        // The next capture mends the last one's end, and goes on.
        fill(dir.path(), options, packets.len(), &packets[..1]);
        let again = there(dir.path());
        prop_assert_eq!(&again[..left.len()], &left[..]);
        let shown = show(dir.path()).unwrap();
        prop_assert!(shown[segments.len() - 1].ended, "{:?}", shown);
        let mut all = packets.clone();
        all.push(packets[0]);
        let expected: Vec<u32> = again.iter().copied().filter(|n| all[*n as usize].wanted(&question)).collect();
        prop_assert_eq!(asked(dir.path(), &question).0, expected);
    }
}
