//! `capture --ring` and `ring ask`: what is asked afterwards is what a full capture beside it has seen.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Addresses of the target from which it sends: 198.18.1.2 to 198.18.1.9.
const SENDERS: u8 = 8;
const BUDGET: u64 = 1 << 20;

fn lab() -> Option<Lab> {
    let lab = Lab::new()?;
    for n in 3..2 + SENDERS {
        sh(&format!("ip -n {} address add 198.18.1.{n}/24 dev eth0", lab.net.target));
    }
    Some(lab)
}

fn nanos() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// As programs type it.
fn typed(nanos: u64) -> String {
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

/// Sends numbered datagrams from all addresses in turn.
fn send(lab: &Lab, numbers: core::ops::Range<u32>) {
    inside(&lab.net.target, || {
        let sockets: Vec<UdpSocket> = (2..2 + SENDERS).map(|n| UdpSocket::bind((Ipv4Addr::new(198, 18, 1, n), PORT)).unwrap()).collect();
        sockets.iter().for_each(|socket| socket.connect((NEAR, PORT)).unwrap());
        for n in numbers {
            send_one(&sockets[n as usize % sockets.len()], n);
        }
    });
}

/// Numbers of datagrams.
fn numbers(path: &Path) -> Vec<u32> {
    read(path).0.iter().map(|(_, _, data)| u32::from_be_bytes(data[42..46].try_into().unwrap())).collect()
}

/// Lengths and the beginnings of datagrams, of frames that match, as tshark has them.
fn frames(path: &Path, filter: &str) -> Vec<String> {
    let args = ["-n", "-r", path.to_str().unwrap(), "-Y", filter, "-T", "fields", "-e", "frame.len", "-e", "ip.src", "-e", "data.data"];
    let output = Command::new("tshark").args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let head = |line: &str| line.chars().take(60).collect();
    String::from_utf8(output.stdout).unwrap().lines().map(head).collect()
}

/// Asks; gives the counters.
fn ask(lab: &Lab, question: &str) -> Value {
    let ended = lab.run(&format!("ring ask ring --json -w answer.pcapng {question}"));
    assert_eq!(ended.code, Some(0), "{question}: {}", ended.err);
    let answer = ended.objects().pop().unwrap();
    assert_eq!(answer["packets"], read(&lab.path("answer.pcapng")).0.len(), "{answer}");
    answer
}

/// What files take of the disk.
fn taken(dir: &Path) -> u64 {
    let blocks = |meta: std::fs::Metadata| meta.blocks() * 512;
    // A file may go between being listed and being looked at.
    let files: u64 = std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok()).map(blocks).sum();
    files + std::fs::metadata(dir).map_or(0, blocks)
}

#[test]
fn an_answer_is_what_a_full_capture_has() {
    let Some(lab) = lab() else { return };
    let truth = lab.path("truth.pcapng");
    let filter = format!("udp dst port {PORT}");
    let full = lab.capture(&format!("--full -w {} {filter}", truth.display()));
    let ring = lab.capture(&format!("--full --ring ring --disk 64MiB --keep 1h {filter}"));
    send(&lab, 0..1_500);
    let from = nanos();
    send(&lab, 1_500..4_000);
    let to = nanos();
    send(&lab, 4_000..5_000);
    // It is asked while it is written: a tenth of a second later everything is there.
    until("all packets are in the ring", || ask(&lab, "")["packets"] == 5_000);
    let window = format!("--from {} --to {}", typed(from), typed(to));
    let answer = ask(&lab, &format!("{window} --host 198.18.1.5"));
    let during = numbers(&lab.path("answer.pcapng"));
    assert_eq!((full.interrupt().code, ring.interrupt().code), (Some(0), Some(0)));
    let expected: Vec<u32> = (1_500..4_000).filter(|n| n % 8 == 3).collect();
    assert_eq!((during, &answer["dropped_unknown"]), (expected.clone(), &1.into()));
    // Afterwards: the index spares what is before and behind, and tshark finds the same in the full capture.
    let answer = ask(&lab, &format!("{window} --host 198.18.1.5 --port {PORT}"));
    assert_eq!(numbers(&lab.path("answer.pcapng")), expected);
    assert!(answer["parts_spared"].as_u64() > Some(4) && answer["bytes_unindexed"] == 0 && answer["dropped"] == 0, "{answer}");
    let (a, b) = (typed(from), typed(to));
    let theirs = frames(&truth, &format!("ip.addr == 198.18.1.5 && frame.time_epoch >= {a} && frame.time_epoch < {b}"));
    assert_eq!(frames(&lab.path("answer.pcapng"), "udp"), theirs);
    assert_eq!(theirs.len(), expected.len());
    // By a filter, too, which sees the length on the wire.
    ask(&lab, &format!("{window} src host 198.18.1.5 and greater 300"));
    let long: Vec<u32> = expected.iter().copied().filter(|n| n % 256 >= 300 - 142).collect();
    assert_eq!(numbers(&lab.path("answer.pcapng")), long);
    assert_eq!(ask(&lab, &format!("{window} --host 198.18.1.77"))["packets"], 0);
    // All of it, through a pipe, is the full capture.
    let piped = lab.run("ring ask ring -w -");
    std::fs::write(lab.path("all.pcapng"), &piped.out).unwrap();
    assert_eq!(numbers(&lab.path("all.pcapng")), numbers(&truth));
    assert!(piped.err.contains("found             5000 packets, from "), "{}", piped.err);
    let said = Command::new("capinfos").arg(lab.path("answer.pcapng")).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    for expected in
        ["asked of a ring: host 198.18.1.77, from ", "; captured on its own, no job", "Name = eth0", "Number of stat entries = 1"]
    {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn a_ring_never_takes_more_than_its_budget() {
    let Some(lab) = lab() else { return };
    let dir = lab.path("ring");
    let capture = lab.capture(&format!("--full --ring ring --disk 1MiB -o ndjson udp dst port {PORT}"));
    let over = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(taken(&dir));
                std::thread::park_timeout(Duration::from_micros(200));
            }
            most
        });
        send(&lab, 0..8_000);
        over.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    let ended = capture.interrupt();
    let counters = ended.counters();
    assert_eq!((ended.code, &counters["written"]), (Some(0), &8_000.into()), "{}", ended.err);
    assert!(counters["written_bytes"].as_u64() > Some(2 * BUDGET), "{counters}");
    assert!(most.max(taken(&dir)) <= BUDGET && most > BUDGET / 2, "{most}");
    let shown = lab.run("ring show ring --json");
    let objects = shown.objects();
    let ring = objects.last().unwrap();
    let packets = ring["packets"].as_u64().unwrap() as u32;
    assert_eq!((ring["type"].as_str(), ring["segments"].as_u64()), (Some("ring"), Some(objects.len() as u64 - 1)));
    assert!(objects[..objects.len() - 1].iter().all(|segment| segment["ended"] == true && segment["damaged"] == 0), "{objects:?}");
    ask(&lab, "");
    assert_eq!(numbers(&lab.path("answer.pcapng")), (8_000 - packets..8_000).collect::<Vec<_>>(), "the newest, without a gap");
    let shown = String::from_utf8(lab.run("ring show ring").out).unwrap();
    assert!(shown.contains(&format!("{} segments, {packets} packets from ", objects.len() - 1)), "{shown}");
}

#[test]
fn who_is_killed_leaves_a_ring_that_is_asked_and_goes_on() {
    let Some(lab) = lab() else { return };
    let args = format!("--full --ring ring --disk 8MiB udp dst port {PORT}");
    let capture = lab.capture(&args);
    std::thread::scope(|scope| {
        scope.spawn(|| send(&lab, 0..20_000));
        until("there are some segments", || taken(&lab.path("ring")) > 1_000_000);
        capture.signal(Signal::SIGKILL);
    });
    capture.end();
    let answer = ask(&lab, "--host 198.18.1.4");
    let killed = numbers(&lab.path("answer.pcapng"));
    assert!(killed.len() > 300 && answer["damaged"] == 0 && answer["dropped_unknown"] == 1, "{answer}");
    assert_eq!(killed, (0..killed.len() as u32).map(|n| 8 * n + 2).collect::<Vec<_>>());
    // In the middle of a packet, and with an index that is none.
    let segments = || {
        let entries = std::fs::read_dir(lab.path("ring")).unwrap().map(|entry| entry.unwrap().path());
        let mut found: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|extension| extension == "pcapng")).collect();
        found.sort();
        found
    };
    // One that has just begun may have nothing yet.
    let last = segments().into_iter().rfind(|path| len(path) > 1_000).unwrap();
    File::options().write(true).open(&last).unwrap().set_len(len(&last) - 3).unwrap();
    std::fs::write(last.with_extension("index"), "no index").unwrap();
    ask(&lab, "");
    let before = numbers(&lab.path("answer.pcapng"));
    let capture = lab.capture(&args);
    send(&lab, 20_000..20_100);
    assert_eq!(capture.interrupt().code, Some(0));
    let answer = ask(&lab, "");
    let after = numbers(&lab.path("answer.pcapng"));
    assert_eq!((&after[..before.len()], &after[before.len()..]), (&before[..], &(20_000..20_100).collect::<Vec<_>>()[..]));
    assert_eq!((&answer["bytes_unindexed"], &answer["damaged"]), (&0.into(), &0.into()), "the killed segment's index was made anew");
    // Every segment is a file of its own.
    assert_eq!(segments().iter().map(|path| tshark(path).len()).sum::<usize>(), after.len());
}

#[test]
fn a_full_disk_is_made_room_on() {
    let Some(lab) = lab() else { return };
    let small = Small::mount(lab.path("small"));
    let args = format!("--full --ring {}/ring --disk 8MiB --keep-free 0 -o ndjson udp dst port {PORT}", small.0.display());
    let capture = lab.capture(&args);
    send(&lab, 0..8_000);
    let ended = capture.interrupt();
    let counters = ended.counters();
    assert_eq!((ended.code, &counters["written"], &counters["lost"]), (Some(0), &8_000.into(), &0.into()), "{}", ended.err);
    let ended = lab.run(&format!("ring ask {}/ring -w all.pcapng", small.0.display()));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let left = numbers(&lab.path("all.pcapng"));
    assert_eq!(left, (8_000 - left.len() as u32..8_000).collect::<Vec<_>>());
    assert!(left.len() > 1_000, "{}", left.len());
}

#[test]
fn a_ring_that_is_asked_or_kept_wrongly_says_so() {
    let Some(lab) = lab() else { return };
    std::fs::create_dir(lab.path("empty")).unwrap();
    for (args, code, message) in [
        ("ring ask empty -w a", 1, "empty holds no ring: no file segment-NUMBER.pcapng is in it"),
        ("ring ask nowhere -w a", 1, "read the directory of the ring, nowhere: No such file"),
        ("ring show nowhere", 1, "read the directory of the ring, nowhere: No such file"),
        ("ring ask empty --host printer -w a", 2, "`printer` is no address: write for example 192.0.2.7"),
        ("ring ask empty --from noon -w a", 2, "`noon` is no time: write for example 02:10"),
        ("ring ask empty --from -1m --to -2m -w a", 2, "no packet is between them"),
        ("ring ask empty", 2, "--write"),
        ("capture -i eth0 --ring r", 2, "--disk"),
        ("capture -i eth0 --disk 1GiB", 2, "--ring"),
        ("capture -i eth0 --ring r --disk 1GiB -w x", 2, "cannot be used with"),
        ("capture -i eth0 --ring r --disk 1GiB --keep 5s", 2, "`5s` is too short: a ring keeps packets for 1m at least"),
        ("capture -i eth0 --ring r --disk 100kB", 2, "a ring needs 1048576 bytes at least, and 100000 are not enough"),
        ("capture -i eth0 --ring no/such/../../ring.pcapng/x --disk 1MiB", 1, "use no/such/../../ring.pcapng/x as a ring: "),
    ] {
        std::fs::write(lab.path("ring.pcapng"), "").unwrap();
        let ended = lab.run(args);
        assert_eq!(ended.code, Some(code), "{args}: {}", ended.err);
        assert!(ended.err.contains(message) && ended.out.is_empty(), "{args}: {}", ended.err);
        assert!(!lab.path("a").exists() && !lab.path("a.part").exists(), "{args}");
    }
    let capture = lab.capture("--ring ring --disk 1MiB");
    let second = lab.run("capture -i eth0 --ring ring --disk 1MiB");
    assert!(second.code == Some(1) && second.err.contains("use ring as a ring: another capture is writing it"), "{}", second.err);
    let wrong = lab.run("ring ask ring -w a tcp prot 80");
    assert!(wrong.code == Some(2) && wrong.err.contains("filter is wrong at character 5, `prot`: "), "{}", wrong.err);
    assert_eq!((capture.interrupt().code, lab.path("a.part").exists()), (Some(0), false));
    let plan = lab.run("capture -i eth0 --ring other --disk 2GiB --keep 24h --dry-run");
    assert!(
        String::from_utf8(plan.out).unwrap().contains("ring          other, at most 2147483648 bytes in segments of 33554432, none older")
    );
    assert!(!lab.path("other").exists());
}
