use proptest::prelude::*;

use super::read::{Block, Blocks, FormatError, MAX_BLOCK, MAX_INTERFACES, ReadError, Reader, Step};
use super::*;

fn text() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[a-zäß 0-9]{0,20}").unwrap()
}

fn count() -> impl Strategy<Value = Option<u64>> {
    proptest::option::of(any::<u64>())
}

fn moment() -> impl Strategy<Value = Option<UnixNanos>> {
    proptest::option::of(any::<u64>().prop_map(UnixNanos))
}

prop_compose! {
    fn sections()(hardware in text(), os in text(), application in text(), comment in text()) -> Section {
        Section { hardware, os, application, comment }
    }
}

prop_compose! {
    fn interfaces()(link_type: u16, snap_len: u32, name in text(), filter in text()) -> Interface {
        Interface { link_type, snap_len, name, filter }
    }
}

prop_compose! {
    fn counters()(
        time: u64, start in moment(), end in moment(), received in count(), interface_drops in count(), accepted in count(),
        kernel_drops in count(), delivered in count(),
    ) -> Statistics {
        let time = UnixNanos(time);
        Statistics { interface: 0, time, start, end, received, interface_drops, accepted, kernel_drops, delivered }
    }
}

/// A section with one interface, and what follows.
fn file(rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write::section(&Section::default(), &mut bytes);
    write::interface(&Interface { link_type: 1, snap_len: 0, name: "eth0".into(), filter: String::new() }, &mut bytes);
    bytes.extend(rest);
    bytes
}

/// Gives a byte or a few at a time.
struct Drip<'a>(&'a [u8], usize);

impl std::io::Read for Drip<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = buf.len().min(self.1);
        self.0.read(&mut buf[..len])
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        section in sections(), interface in interfaces(), statistics in counters(), drip in 1usize..9,
        packets in proptest::collection::vec((any::<u64>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..70)), 0..10),
    ) {
        let mut bytes = Vec::new();
        write::section(&section, &mut bytes);
        write::interface(&interface, &mut bytes);
        for (time, original_len, data) in &packets {
            write::packet(&Packet { interface: 0, time: UnixNanos(*time), original_len: *original_len, data }, &mut bytes);
        }
        write::statistics(&statistics, &mut bytes);
        let mut reader = Reader::new(Drip(&bytes, drip));
        prop_assert_eq!(reader.next_block().unwrap(), Some(Block::Section(section)));
        prop_assert_eq!(reader.next_block().unwrap(), Some(Block::Interface(interface)));
        for (time, original_len, data) in &packets {
            let expected = Packet { interface: 0, time: UnixNanos(*time), original_len: *original_len, data };
            prop_assert_eq!(reader.next_block().unwrap(), Some(Block::Packet(expected)));
        }
        prop_assert_eq!(reader.next_block().unwrap(), Some(Block::Statistics(statistics)));
        prop_assert_eq!(reader.next_block().unwrap(), None);
        prop_assert_eq!(reader.offset(), bytes.len() as u64);
    }

    #[test]
    fn a_torn_file_reads_up_to_its_last_whole_block(lens in proptest::collection::vec(0usize..40, 1..8), cut in any::<prop::sample::Index>()) {
        let mut bytes = file(&[]);
        let mut ends = vec![bytes.len()];
        for len in lens {
            write::packet(&Packet { interface: 0, time: UnixNanos(7), original_len: 99, data: &vec![1; len] }, &mut bytes);
            ends.push(bytes.len());
        }
        let cut = ends[0] + cut.index(bytes.len() - ends[0] + 1);
        let whole = *ends.iter().rfind(|end| **end <= cut).unwrap();
        let mut reader = Reader::new(&bytes[..cut]);
        let last = loop {
            match reader.next_block() {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        prop_assert_eq!(reader.offset(), whole as u64);
        match last {
            None => prop_assert_eq!(cut, whole),
            Some(ReadError::Torn { offset }) => prop_assert!(offset == whole as u64 && cut > whole),
            Some(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(head: bool, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let bytes = if head { file(&bytes) } else { bytes };
        let (mut reader, mut blocks) = (Reader::new(&bytes[..]), 0);
        while let Ok(Some(_)) = reader.next_block() {
            blocks += 1;
        }
        prop_assert!(blocks * FRAMING <= bytes.len() && reader.offset() <= bytes.len() as u64);
    }

    #[test]
    fn damaged_files_are_read_or_refused(at in any::<prop::sample::Index>(), to: u8, statistics in counters()) {
        let mut bytes = file(&[]);
        write::packet(&Packet { interface: 0, time: UnixNanos(7), original_len: 99, data: b"hello" }, &mut bytes);
        write::statistics(&statistics, &mut bytes);
        let at = at.index(bytes.len());
        bytes[at] = to;
        let mut reader = Reader::new(&bytes[..]);
        while let Ok(Some(_)) = reader.next_block() {}
        prop_assert!(reader.offset() <= bytes.len() as u64);
    }
}

/// The example of the draft's section 4.1 in big-endian order, with an interface of microseconds and one of units of 1/1024 s, written by hand.
#[test]
fn others_byte_order_and_resolutions_are_read() {
    let word = |word: u32| word.to_be_bytes();
    let section = [word(SECTION_HEADER), word(28), word(BYTE_ORDER_MAGIC), [0, 1, 0, 0], [0xff; 4], [0xff; 4], word(28)].concat();
    let micro = [word(INTERFACE_DESCRIPTION), word(20), [0, 1, 0, 0], word(96), word(20)].concat();
    let binary = [word(INTERFACE_DESCRIPTION), word(28), [0, 113, 0, 0], word(0), [0, 9, 0, 1], [0x8a, 0, 0, 0], word(28)].concat();
    let packet = |interface, low| {
        let body = [word(interface), word(0), word(low), word(2), word(60), [0xab, 0xcd, 0, 0]].concat();
        [&word(ENHANCED_PACKET)[..], &word(36), &body, &word(36)].concat()
    };
    let unknown = [word(0x0bad), word(12), word(12)].concat();
    let bytes = [section, micro, binary, packet(0, 1_500_000), unknown, packet(1, 1536)].concat();
    let mut reader = Reader::new(&bytes[..]);
    assert_eq!(reader.next_block().unwrap(), Some(Block::Section(Section::default())));
    let interface = |link_type, snap_len| Interface { link_type, snap_len, name: String::new(), filter: String::new() };
    assert_eq!(reader.next_block().unwrap(), Some(Block::Interface(interface(1, 96))));
    assert_eq!(reader.next_block().unwrap(), Some(Block::Interface(interface(113, 0))));
    let time = UnixNanos::new(1, 500_000_000);
    assert_eq!(reader.next_block().unwrap(), Some(Block::Packet(Packet { interface: 0, time, original_len: 60, data: &[0xab, 0xcd] })));
    assert_eq!(reader.next_block().unwrap(), Some(Block::Other(0x0bad)));
    assert_eq!(reader.next_block().unwrap(), Some(Block::Packet(Packet { interface: 1, time, original_len: 60, data: &[0xab, 0xcd] })));
    assert_eq!(reader.next_block().unwrap(), None);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let error = |bytes: &[u8]| {
        let mut reader = Reader::new(bytes);
        loop {
            match reader.next_block() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("nothing is wrong"),
                Err(error) => return error.to_string(),
            }
        }
    };
    let start = file(&[]).len();
    // A classic capture file.
    let classic = [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0];
    assert_eq!(error(&classic), "at byte 0: this is no pcapng: a file begins with a section header, type 0x0a0d0d0a");
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let long = error(&file(&words(&[6, 0x7fff_fffc, 0])));
    let said = "a block of type 0x6 says that it is 2147483644 bytes long; lengths are multiples of 4 from 12 to 1048576";
    assert_eq!(long, format!("at byte {start}: {said}"));
    let said = "a block of type 0x6 has the length 16 in front and 12 behind: the file is damaged";
    assert_eq!(error(&file(&words(&[6, 16, 0, 12]))), format!("at byte {start}: {said}"));
    let said = "a packet is shorter than its fields: the file is damaged";
    assert_eq!(error(&file(&words(&[6, 32, 0, 0, 0, 400, 400, 32]))), format!("at byte {start}: {said}"));
    let said = "a packet names interface 3, and the section describes 1";
    assert_eq!(error(&file(&words(&[6, 32, 3, 0, 0, 0, 0, 32]))), format!("at byte {start}: {said}"));
    let said = "the file ends in the middle of a block; it is whole up to byte";
    assert_eq!(error(&file(&words(&[6, 32, 3]))), format!("{said} {start}"));
}

#[test]
fn interfaces_and_memory_have_bounds() {
    let mut bytes = file(&[]);
    for _ in 1..=MAX_INTERFACES {
        write::interface(&Interface { link_type: 1, snap_len: 0, name: String::new(), filter: String::new() }, &mut bytes);
    }
    let mut reader = Reader::new(&bytes[..]);
    let error = core::iter::from_fn(|| reader.next_block().map(|block| block.map(|_| ())).transpose()).find_map(Result::err);
    assert!(matches!(error, Some(ReadError::Format { error: FormatError::TooManyInterfaces, .. })), "{error:?}");
    // A block that says it is as long as may be is waited for, but nothing is set aside for it.
    let mut blocks = Blocks::new();
    assert!(matches!(blocks.next(&file(&[])), Ok(Step::Block(Block::Section(_), 28..=64))));
    let head = [6u32.to_le_bytes(), (MAX_BLOCK as u32).to_le_bytes()].concat();
    assert_eq!(blocks.next(&head), Ok(Step::More(MAX_BLOCK)));
}

#[test]
fn long_texts_are_cut_between_characters() {
    let mut bytes = Vec::new();
    write::section(&Section { comment: "ä".repeat(write::MAX_TEXT), ..Section::default() }, &mut bytes);
    let Ok(Step::Block(Block::Section(section), len)) = Blocks::new().next(&bytes) else { panic!("{bytes:?}") };
    assert_eq!((section.comment, len), ("ä".repeat(write::MAX_TEXT / 2), bytes.len()));
}
