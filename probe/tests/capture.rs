//! `picket-probe capture` on a real kernel: a veth pair between two network namespaces, datagrams that are counted by who sends them,
//! and tcpdump, tshark and capinfos as other readers of the same packets.
//!
//! Needs root, `ip`, tcpdump and tshark; without root it says so and stops, and CI runs as root.
#![cfg(feature = "libpcap")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "helpers of tests fail loudly, and wait for other programs")]

mod namespaces;
#[path = "capture/ring.rs"]
mod ring;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use picket_probe::capture::pcapng::Statistics;
use picket_probe::capture::pcapng::read::{Block, ReadError, Reader};
use serde_json::Value;

use namespaces::{Namespaces, inside, sh};

const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/standalone.md"));
const PROBE: &str = env!("CARGO_BIN_EXE_picket-probe");
const PORT: u16 = 9_999;
const NEAR: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
/// Whatever is waited for has come by then, or never will.
const PATIENCE: Duration = Duration::from_secs(30);

/// Two namespaces joined by a veth pair; the probe is at 198.18.1.1, the target at 198.18.1.2.
struct Lab {
    net: Namespaces,
    dir: tempfile::TempDir,
    /// Takes the datagrams: a refusal would keep the sender from sending the next one.
    _sink: UdpSocket,
}

impl Lab {
    fn new() -> Option<Lab> {
        let net = Namespaces::named("cap")?;
        let Namespaces { probe, target } = &net;
        sh(&format!(
            "ip netns add {probe}; ip netns add {target}
             ip -n {probe} link add eth0 type veth peer name eth0 netns {target}
             ip -n {probe} link set lo up; ip -n {target} link set lo up
             ip -n {probe} link set eth0 up; ip -n {target} link set eth0 up
             ip -n {probe} address add {NEAR}/24 dev eth0; ip -n {target} address add {FAR}/24 dev eth0"
        ));
        let sink = inside(probe, || UdpSocket::bind((NEAR, PORT)).unwrap());
        Some(Lab { net, dir: tempfile::tempdir().unwrap(), _sink: sink })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, program: &str, args: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.net.probe, program]).args(args.split_whitespace());
        command.env("PICKET_POLICY__ALLOW", "198.18.0.0/15").env("PICKET_DATA", self.path("data")).current_dir(self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a program and waits for the words by which it says that it listens.
    fn listen(&self, program: &str, args: &str, ready: &str) -> Running {
        let mut child = self.command(program, args).spawn().unwrap();
        let mut err = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains(ready) {
            assert!(err.read_line(&mut said).unwrap() > 0, "{args}: {said}");
        }
        Running { child, err, said }
    }

    fn capture(&self, args: &str) -> Running {
        self.listen(PROBE, &format!("capture -i eth0 {args}"), "capturing on")
    }

    /// Sends numbered datagrams of 100 to 355 bytes to the probe; gives when each one was about to leave.
    fn send(&self, count: u32) -> Vec<SystemTime> {
        inside(&self.net.target, || {
            let socket = UdpSocket::bind((FAR, PORT)).unwrap();
            socket.connect((NEAR, PORT)).unwrap();
            (0..count).map(|n| send_one(&socket, n)).collect()
        })
    }

    fn run(&self, args: &str) -> Ended {
        Ended::of(self.command(PROBE, args).spawn().unwrap(), String::new())
    }
}

fn send_one(socket: &UdpSocket, n: u32) -> SystemTime {
    let mut payload = vec![n as u8; 100 + (n % 256) as usize];
    payload[..4].copy_from_slice(&n.to_be_bytes());
    let before = SystemTime::now();
    // An interface that has just been removed refuses; who counts what was sent removes none.
    let _ = socket.send(&payload);
    if n % 64 == 63 {
        // A backlog of a thousand packets is what the kernel takes at once.
        std::thread::park_timeout(Duration::from_millis(1));
    }
    before
}

struct Running {
    child: Child,
    err: BufReader<ChildStderr>,
    said: String,
}

impl Running {
    fn signal(&self, signal: Signal) {
        // `ip netns exec` becomes the program that it starts.
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn end(mut self) -> Ended {
        let mut said = std::mem::take(&mut self.said);
        let rest = std::thread::spawn(move || {
            self.err.read_to_string(&mut said).unwrap();
            said
        });
        let ended = Ended::of(self.child, String::new());
        Ended { err: rest.join().unwrap(), ..ended }
    }

    fn interrupt(self) -> Ended {
        self.signal(Signal::SIGINT);
        self.end()
    }
}

struct Ended {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Ended {
    fn of(child: Child, err: String) -> Ended {
        let output = child.wait_with_output().unwrap();
        Ended { code: output.status.code(), out: output.stdout, err: err + &String::from_utf8(output.stderr).unwrap() }
    }

    /// The lines of NDJSON, whose fields docs/standalone.md explains.
    fn objects(&self) -> Vec<Value> {
        let out = String::from_utf8(self.out.clone()).unwrap();
        let objects: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for field in objects.iter().flat_map(|object| object.as_object().unwrap().keys()) {
            assert!(PAGE.contains(&format!("`{field}`")), "docs/standalone.md does not explain `{field}`");
        }
        objects
    }

    /// The last object, whose sums are checked.
    fn counters(&self) -> Value {
        let counters = self.objects().pop().unwrap_or_else(|| panic!("no output: {}", self.err));
        assert_eq!(counters["type"], "capture");
        let count = |key: &str| counters[key].as_u64().unwrap_or(0);
        assert_eq!(count("accepted"), count("kernel_drops") + count("captured") + count("left"), "{counters}");
        if counters["written"].is_u64() {
            assert_eq!(count("captured"), count("written") + count("lost"), "{counters}");
        }
        counters
    }
}

/// Time in nanoseconds, length on the wire, bytes kept.
type Kept = (u64, u32, Vec<u8>);

/// The packets of a file as our own reader has them, its last counters, and whether it is whole.
fn read(path: &Path) -> (Vec<Kept>, Option<Statistics>, bool) {
    let mut reader = Reader::new(File::open(path).unwrap());
    let (mut packets, mut counters) = (Vec::new(), None);
    loop {
        match reader.next_block() {
            Ok(Some(Block::Packet(packet))) => packets.push((packet.time.0, packet.original_len, packet.data.to_vec())),
            Ok(Some(Block::Statistics(statistics))) => counters = Some(statistics),
            Ok(Some(_)) => {}
            Ok(None) => return (packets, counters, true),
            Err(ReadError::Torn { .. }) => return (packets, counters, false),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}

/// Times in nanoseconds and lengths on the wire, as tshark reads them.
fn tshark(path: &Path) -> Vec<(u64, u32)> {
    let path = path.to_str().unwrap();
    let args = ["-n", "-r", path, "-T", "fields", "-e", "frame.time_epoch", "-e", "frame.len"];
    let output = Command::new("tshark").args(args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |line: &str| {
        let (time, len) = line.split_once('\t').unwrap();
        (time.replace('.', "").parse().unwrap(), len.parse().unwrap())
    };
    text.lines().map(row).collect()
}

fn until(what: &str, mut there: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !there() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn len(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

#[test]
fn files_have_what_tcpdump_has_and_what_was_sent() {
    let Some(lab) = Lab::new() else { return };
    let (ours, theirs) = (lab.path("ours.pcapng"), lab.path("theirs.pcap"));
    let filter = format!("udp dst port {PORT}");
    let dump = format!("-i eth0 -n -U -s 512 -B 16384 -Z root --time-stamp-precision=nano -w {} {filter}", theirs.display());
    let tcpdump = lab.listen("tcpdump", &dump, "listening on");
    let capture = lab.capture(&format!("-w {} -o ndjson {filter}", ours.display()));
    let sent = lab.send(5_000);
    // A file's header, and for each packet another one, the frame's three, and the payload.
    let all: u64 = 24 + (0..5_000).map(|n| 16 + 42 + 100 + n % 256).sum::<u64>();
    until("tcpdump has written all", || len(&theirs) >= all);
    let ended = capture.interrupt();
    assert_eq!((ended.code, tcpdump.interrupt().code), (Some(0), Some(0)), "{}", ended.err);
    let counters = ended.counters();
    assert_eq!((&counters["captured"], &counters["written"], &counters["end"]), (&5_000.into(), &5_000.into(), &"stopped".into()));
    let (packets, statistics, whole) = read(&ours);
    assert!(whole);
    let statistics = statistics.unwrap();
    assert_eq!((statistics.delivered, statistics.accepted, statistics.kernel_drops), (Some(5_000), Some(5_000), Some(0)));
    assert!(statistics.end > statistics.start && statistics.received >= Some(5_000), "{statistics:?}");
    // tshark reads the same from our file.
    let seen: Vec<(u64, u32)> = packets.iter().map(|(time, len, _)| (*time, *len)).collect();
    assert_eq!(tshark(&ours), seen);
    // So does tcpdump from the wire; each socket looks at the clock for itself.
    let theirs = tshark(&theirs);
    assert_eq!(theirs.len(), 5_000);
    for (n, ((ours, len), (other, other_len))) in seen.iter().zip(&theirs).enumerate() {
        assert_eq!(len, other_len, "packet {n}");
        assert!(ours.abs_diff(*other) < 1_000_000_000, "packet {n}: {ours} and {other}");
        let left = sent[n].duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        assert!(*ours >= left && *ours - left < PATIENCE.as_nanos() as u64, "packet {n} left at {left} and was seen at {ours}");
    }
    // Headers are kept, and of what follows as much as fits 128 bytes.
    for (n, (_, len, data)) in packets.iter().enumerate() {
        assert_eq!((*len as usize, data.len()), (42 + 100 + n % 256, 128));
        assert_eq!(data[42..46], (n as u32).to_be_bytes());
    }
    let said = Command::new("capinfos").arg(&ours).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    for expected in ["pcapng", "nanoseconds (9)", "picket-probe", "captured on its own", "Name = eth0", "udp dst port 9999", "= 5000"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn whole_packets_are_kept_where_asked_and_limits_end_it() {
    let Some(lab) = Lab::new() else { return };
    let path = lab.path("a.pcapng");
    let capture = lab.capture(&format!("--full -c 300 -w {} -o ndjson udp dst port {PORT}", path.display()));
    lab.send(400);
    let ended = capture.end();
    assert_eq!((ended.code, &ended.counters()["end"]), (Some(0), &"packets".into()), "{}", ended.err);
    let (packets, _, whole) = read(&path);
    assert!(whole && packets.len() == 300 && packets.iter().all(|(_, len, data)| data.len() == *len as usize));
    // Bytes: no more than asked for, but for the closing counters.
    let capture = lab.capture(&format!("--bytes 20kB -w {} -o ndjson udp dst port {PORT}", path.display()));
    lab.send(400);
    let ended = capture.end();
    assert_eq!((ended.code, &ended.counters()["end"]), (Some(0), &"bytes".into()), "{}", ended.err);
    assert!((19_000..20_200).contains(&len(&path)), "{}", len(&path));
    let ended = lab.run("capture -i eth0 --seconds 1 -o ndjson");
    assert_eq!((ended.code, &ended.counters()["end"]), (Some(0), &"seconds".into()), "{}", ended.err);
}

#[test]
fn who_is_killed_leaves_a_file_that_reads_up_to_there() {
    let Some(lab) = Lab::new() else { return };
    let path = lab.path("killed.pcapng");
    let capture = lab.capture(&format!("-w {} udp dst port {PORT}", path.display()));
    std::thread::scope(|scope| {
        scope.spawn(|| lab.send(20_000));
        until("something is written", || len(&path) > 100_000);
        capture.signal(Signal::SIGKILL);
    });
    capture.end();
    let (packets, statistics, _) = read(&path);
    assert!(packets.len() > 500 && statistics.is_none(), "{}", packets.len());
    for (n, (_, _, data)) in packets.iter().enumerate() {
        assert_eq!(data[42..46], (n as u32).to_be_bytes(), "packet {n}");
    }
    assert_eq!(tshark(&path).len(), packets.len());
    // It goes on where it was cut, here in the middle of a packet.
    File::options().write(true).open(&path).unwrap().set_len(len(&path) - 3).unwrap();
    let capture = lab.capture(&format!("--append -w {} udp dst port {PORT}", path.display()));
    lab.send(100);
    let ended = capture.interrupt();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let (continued, statistics, _) = read(&path);
    assert_eq!(statistics.and_then(|statistics| statistics.delivered), Some(100));
    let numbers: Vec<&[u8]> = continued.iter().map(|(_, _, data)| &data[42..46]).collect();
    let before = packets.len() - 1;
    assert_eq!((continued.len(), numbers[before - 1], numbers[before]), (before + 100, packets[before - 1].2[42..46].into(), &[0; 4][..]));
    assert_eq!(tshark(&path).len(), continued.len());
}

#[test]
fn what_offloads_put_together_is_said() {
    let Some(lab) = Lab::new() else { return };
    let listener = inside(&lab.net.probe, || TcpListener::bind((NEAR, 8_080)).unwrap());
    let capture = lab.capture("-w long.pcapng -o ndjson tcp dst port 8080");
    let sent = 1 << 20;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            inside(&lab.net.target, || std::io::Write::write_all(&mut TcpStream::connect((NEAR, 8_080)).unwrap(), &vec![7; sent]).unwrap())
        });
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), sent);
    });
    let ended = capture.interrupt();
    let counters = ended.counters();
    let (packets, _, _) = read(&lab.path("long.pcapng"));
    let longer = packets.iter().filter(|(_, len, _)| *len > 1_500 + 22).count();
    assert!(longer > 0, "a veth pair hands over what TCP has not cut: {counters}");
    assert_eq!(counters["longer"], longer, "{counters}");
}

#[test]
fn an_interface_that_goes_away_ends_it_and_the_file_is_whole() {
    let Some(lab) = Lab::new() else { return };
    let path = lab.path("gone.pcapng");
    let capture = lab.capture(&format!("-w {} -o ndjson udp dst port {PORT}", path.display()));
    lab.send(100);
    until("the packets are written", || len(&path) > 100 * 128);
    sh(&format!("ip -n {} link del eth0", lab.net.probe));
    let ended = capture.end();
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    let counters = ended.counters();
    assert_eq!((&counters["end"], &counters["written"]), (&"interface".into(), &100.into()), "{counters}");
    assert!(counters["reason"].as_str().unwrap().starts_with("capturing on `eth0` ended: "), "{counters}");
    let (packets, statistics, whole) = read(&path);
    assert_eq!((packets.len(), statistics.unwrap().delivered, whole), (100, Some(100), true));
}

/// A file system of a megabyte.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Small {
        std::fs::create_dir(&path).unwrap();
        sh(&format!("mount -t tmpfs -o size=1m tmpfs {}", path.display()));
        Small(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_ends_it_and_the_file_is_whole() {
    let Some(lab) = Lab::new() else { return };
    let small = Small::mount(lab.path("small"));
    let path = small.0.join("full.pcapng");
    let capture = lab.capture(&format!("--full --keep-free 0 -w {} -o ndjson udp dst port {PORT}", path.display()));
    lab.send(8_000);
    let ended = capture.end();
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    let counters = ended.counters();
    assert!(counters["reason"].as_str().unwrap().contains("No space left on device"), "{counters}");
    let (packets, statistics, whole) = read(&path);
    assert_eq!((Some(packets.len() as u64), whole), (counters["written"].as_u64(), true));
    assert!(statistics.is_some() && packets.len() > 1_000 && counters["lost"].as_u64() > Some(0), "{counters}");
    assert_eq!(tshark(&path).len(), packets.len());
    std::fs::remove_file(&path).unwrap();
    // Nor is anything begun, or gone on with, where too little would stay free.
    let refused = lab.run(&format!("capture -i eth0 -w {} --keep-free 2MB", path.display()));
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("bytes free, and --keep-free 2000000 shall stay") && !path.exists(), "{}", refused.err);
}

#[test]
fn files_rotate_and_the_oldest_go() {
    let Some(lab) = Lab::new() else { return };
    let path = lab.path("ring.pcapng");
    let args = format!("-w {} --rotate-size 50kB --files 3 -o ndjson udp dst port {PORT}", path.display());
    let capture = lab.capture(&args);
    lab.send(2_000);
    let ended = capture.interrupt();
    let counters = ended.counters();
    let files = counters["files"].as_u64().unwrap();
    assert_eq!((ended.code, &counters["written"]), (Some(0), &2_000.into()), "{}", ended.err);
    assert!(files >= 6, "{counters}");
    assert!(!path.exists() && !lab.path(&format!("ring-{:05}.pcapng", files - 3)).exists());
    let mut numbers = Vec::new();
    for n in files - 2..=files {
        let path = lab.path(&format!("ring-{n:05}.pcapng"));
        let (packets, statistics, whole) = read(&path);
        assert!(whole && statistics.is_some() && len(&path) < 50_200, "{}", path.display());
        numbers.extend(packets.iter().map(|(_, _, data)| u32::from_be_bytes(data[42..46].try_into().unwrap())));
    }
    assert_eq!(numbers, (2_000 - numbers.len() as u32..2_000).collect::<Vec<_>>());
}

#[test]
fn own_measurements_are_left_out_unless_asked_for() {
    let Some(lab) = Lab::new() else { return };
    let tcp = |args: &str| {
        let path = lab.path("own.pcapng");
        let capture = lab.capture(&format!("{args} -w {} -o ndjson tcp or icmp or udp", path.display()));
        let scan = lab.run("scan 198.18.1.2 -p T:1-50,U:1-20 -Pn --rate 500pps");
        assert_eq!(scan.code, Some(0), "{}", scan.err);
        lab.send(10);
        let ended = capture.interrupt();
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        ended.counters()["written"].as_u64().unwrap()
    };
    // What is left are the ten datagrams of somebody else.
    assert_eq!(tcp(""), 10);
    let with = tcp("--with-own");
    assert!(with >= 10 + 2 * 50 + 20, "{with}");
}

#[test]
fn packets_are_lines_and_the_others_are_counted() {
    let Some(lab) = Lab::new() else { return };
    let capture = lab.capture(&format!("--lines 5 -c 300 udp dst port {PORT}"));
    lab.send(300);
    let ended = capture.end();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let out = String::from_utf8(ended.out).unwrap();
    let first = format!("    1    0.000000 198.18.1.2 → 198.18.1.1 UDP 142 {PORT} → {PORT} Len=100");
    assert_eq!(out.lines().next(), Some(first.as_str()), "{out}");
    let shown = out.lines().filter(|line| line.contains("UDP")).count();
    let hidden: usize = out.lines().filter_map(|line| line.strip_prefix("      ... ")?.split(' ').next()?.parse::<usize>().ok()).sum();
    assert!(shown >= 5 && shown + hidden == 300, "{out}");
    assert!(ended.err.contains(&format!("shown             {shown} packets, not shown {hidden}")), "{}", ended.err);
    assert!(ended.err.contains("passed the filter 300 packets\ndropped           0 by the kernel, 0 by the interface"), "{}", ended.err);
    let capture = lab.capture(&format!("--lines 500 -c 3 -o ndjson udp dst port {PORT}"));
    lab.send(3);
    let objects = capture.end().objects();
    assert_eq!((objects.len(), &objects[2]["number"], &objects[2]["info"]), (4, &3.into(), &"9999 → 9999 Len=102".into()));
}

#[test]
fn a_pipe_takes_a_file_as_it_grows() {
    let Some(lab) = Lab::new() else { return };
    let mut capture = lab.capture(&format!("-w - udp dst port {PORT}"));
    lab.send(3);
    let mut out = Reader::new(capture.child.stdout.take().unwrap());
    let mut packets = 0;
    // It is there before the capture ends.
    while packets < 3 {
        packets += u32::from(matches!(out.next_block().unwrap(), Some(Block::Packet(_))));
    }
    // Who reads no more ends it, when the next packets come.
    drop(out);
    until("it ends", || {
        lab.send(1);
        capture.child.try_wait().unwrap().is_some()
    });
    let ended = capture.end();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.err.contains("ended             nobody reads standard output any more"), "{}", ended.err);
}

#[test]
fn flows_have_both_directions_and_the_round_trip() {
    let Some(lab) = Lab::new() else { return };
    let capture = lab.capture("--flows 3600 -o ndjson tcp");
    let listener = inside(&lab.net.target, || TcpListener::bind((FAR, 8_080)).unwrap());
    let client = inside(&lab.net.probe, || TcpStream::connect((FAR, 8_080)).unwrap());
    let port = client.local_addr().unwrap().port();
    let (mut server, _) = listener.accept().unwrap();
    std::io::Write::write_all(&mut server, b"hello").unwrap();
    drop(server);
    let mut text = String::new();
    (&client).read_to_string(&mut text).unwrap();
    drop(client);
    let ended = capture.interrupt();
    let objects = ended.objects();
    let counters = ended.counters();
    assert_eq!(objects.len(), 2, "{objects:?}");
    let flow = &objects[0];
    let ends = ["source", "source_port", "destination", "destination_port", "protocol"].map(|key| flow[key].clone());
    assert_eq!(Value::from(ends.to_vec()), serde_json::json!([NEAR, port, FAR, 8_080, "TCP"]));
    assert!(flow["flags_back"].as_str().unwrap().contains("SYN") && flow["rtt_us"].as_f64() > Some(0.0), "{flow}");
    let packets = flow["packets"].as_u64().unwrap() + flow["packets_back"].as_u64().unwrap();
    assert_eq!((Some(packets), text.as_str()), (counters["captured"].as_u64(), "hello"));
}

#[test]
fn what_is_typed_wrong_is_said_to_be_so() {
    let Some(lab) = Lab::new() else { return };
    for (args, code, message) in [
        ("capture -i eth0 tcp prot 80", 2, "filter is wrong at character 5, `prot`: "),
        ("capture -i eth0 tcp and", 2, "filter ends too early, after character 7: "),
        ("capture -i eth0 port 99999", 2, "filter is wrong at character 6, `99999`: "),
        ("capture -i nosuch0", 1, "there is no interface `nosuch0`; there are lo, eth0"),
        ("capture -i eth0 --files 3 -w x", 2, "--files keeps the newest files of a rotation: add --rotate-size"),
        ("capture -i eth0 -w - -o ndjson", 2, "`-w -` needs standard output for itself"),
        ("capture -i eth0 --bytes 10", 2, "--write"),
        ("capture -i eth0 -w no/such/dir.pcapng", 1, "make no/such/dir.pcapng: No such file or directory"),
        ("capture -i eth0 --keep-free 5m -w a --buffer 1x", 2, "`1x` is no number of bytes"),
    ] {
        let ended = lab.run(args);
        assert_eq!(ended.code, Some(code), "{args}: {}", ended.err);
        assert!(ended.err.contains(message) && ended.out.is_empty(), "{args}: {}", ended.err);
    }
    let nobody = format!("--reuid 65534 --clear-groups --inh-caps=-all {PROBE} capture -i eth0");
    let ended = Ended::of(lab.command("setpriv", &nobody).spawn().unwrap(), String::new());
    if ended.code != Some(1) || !ended.err.contains("picket-probe: ") {
        eprintln!("SKIPPED: the build directory cannot be read by others: {}", ended.err);
        return;
    }
    assert!(ended.err.contains("capturing on `eth0` needs CAP_NET_RAW"), "{}", ended.err);
}
