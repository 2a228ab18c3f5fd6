//! The wire is frozen by bytes: each message decodes from, and encodes to, the bytes in `golden/v1`.
//!
//! A failure here means that programs already in the field would not understand this one. Add new variants at the end of
//! their enum and a new file for them; never change an old file. `UPDATE_GOLDEN=1` writes files that do not exist yet.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use picket_wire::addr::parse_set;
use picket_wire::capture::{CaptureCounts, CaptureEnd, CaptureOptions, CaptureSource, Captured, Chunk, ChunkState, RingQuestion};
use picket_wire::codec::{decode, encode};
use picket_wire::command::Command;
use picket_wire::envelope::{Audience, Contents, open, seal};
use picket_wire::event::{
    Activity, Birth, Check, Event, Heartbeat, InterfaceLimits, LeasePace, LeaseStatus, Live, Pace, PacingReport, Rates, Refusals, SelfTest,
    Shaper, ShaperCounters, Slowdown, Traffic, encode_record,
};
use picket_wire::host::{HardwareAddress, HostBatch, HostSeen, SeenBy};
use picket_wire::ids::{JobId, LeaseId, Role, SessionId, StreamId};
use picket_wire::job::{
    HostProbe, JobKind, JobSpec, Lease, Mode, NetworkLimit, Priority, RateLimits, ScanOptions, ServiceOptions, Survey, Technique,
};
use picket_wire::path::{Found, PathBatch, TracedPath};
use picket_wire::policy::AddressPolicy;
use picket_wire::result::{Answer, BatchHead, LateAnswer, LateBatch, LeaseEnd, NotReached, Record, ResultBatch, Runs, State, UpReason};
use picket_wire::service::{Service, ServiceBatch, ServiceFound, ServiceOutcome};
use picket_wire::space::TargetSpec;
use picket_wire::trace::{
    Graph, GraphHop, Hop, InterfaceInfo, InterfaceRole, Link, Method, MplsLabel, MtuLimit, Node, Path as TracePath, PathEnd, PathMtu,
    Quoted, Reply, ReplyKind, TraceOptions, WaysOptions,
};
use picket_wire::units::{BitsPerSecond, PacketsPerSecond, RttCode, UnixMillis};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(format!("{name}.hex"));
    if !path.exists() && std::env::var_os("UPDATE_GOLDEN").is_some() {
        let lines: Vec<String> = bytes.chunks(40).map(hex::encode).collect();
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    hex::decode(text.split_whitespace().collect::<String>()).unwrap()
}

fn frozen<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, message: &T) {
    let bytes = encode(message);
    let frozen = golden(name, &bytes);
    assert_eq!(decode::<T>(&frozen).as_ref(), Ok(message), "{name}: an old message is not understood");
    assert_eq!(hex::encode(bytes), hex::encode(frozen), "{name}: an old program would not understand this one");
}

fn lease() -> LeaseId {
    LeaseId { job: JobId(0x65f0_0000_0000_0001), grant: 7 }
}

fn spec() -> JobSpec {
    JobSpec {
        id: lease().job,
        kind: JobKind::Scan(ScanOptions { technique: Technique::Syn, attempts: 2 }),
        targets: TargetSpec {
            include: parse_set("198.18.0.0/20,198.19.0.7,2001:db8::/120").unwrap(),
            exclude: parse_set("198.18.0.128-255").unwrap(),
            ports: Some("22,80,8000-8100".parse().unwrap()),
            seed: 0x0123_4567_89ab_cdef,
        },
        mode: Mode::Split,
        rate: PacketsPerSecond::new(5000),
        priority: Priority::Interactive,
        deadline: Some(UnixMillis(1_800_000_000_000)),
        policy: AddressPolicy {
            allow: vec!["198.18.0.0/15".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            deny: vec!["198.18.7.0/24".parse().unwrap()],
        },
    }
}

fn statuses() -> Vec<LeaseStatus> {
    vec![LeaseStatus { lease: lease(), position: 4096, sent: 5000, activity: Activity::Running, packets: 5200, answers: 77 }]
}

#[test]
fn commands() {
    frozen(
        "command-welcome",
        &Command::Welcome {
            session: SessionId(1),
            nonce: 2,
            now: UnixMillis(1_700_000_000_000),
            heartbeat: Duration::from_secs(15),
            roles: vec![Role::Scan, Role::Trace],
            leases: vec![lease()],
            stored: 300,
        },
    );
    frozen("command-ack", &Command::Ack { stream: StreamId(9), up_to: 300 });
    frozen("command-heartbeat-ack", &Command::HeartbeatAck { session: SessionId(1), number: 12 });
    frozen("command-job", &Command::Job(spec()));
    frozen("command-grant", &Command::Grant(Lease { id: lease(), from: 4096, to: 8192, attempt: 1, ttl: Some(Duration::from_secs(90)) }));
    frozen("command-revoke", &Command::Revoke { lease: lease() });
    frozen("command-cancel", &Command::Cancel { job: lease().job });
}

#[test]
fn events() {
    frozen(
        "live-birth",
        &Live::Birth(Birth {
            session: SessionId(1),
            nonce: 2,
            version: "0.1.0".into(),
            hardware: "Raspberry Pi 4 Model B (aarch64)".into(),
            uptime: Duration::from_millis(1500),
            self_test: SelfTest { raw_socket: Check::Works, ipv4: Check::Works, ipv6: Check::Fails("no address on eth0".into()) },
            stream: StreamId(9),
            acked: 250,
            leases: statuses(),
            interface: InterfaceLimits {
                name: "eth0".into(),
                packets: PacketsPerSecond::new(1000).unwrap(),
                bits: BitsPerSecond::new(10_000_000).unwrap(),
            },
        }),
    );
    frozen("live-death", &Live::Death { session: SessionId(1), orderly: false });
    frozen("event-records", &Event::Records { stream: StreamId(9), after: 299, first: 301, records: vec![vec![1, 2, 3], vec![4]] });
    frozen("event-need-job", &Event::NeedJob { job: lease().job });
    let rates = |packets, bits| Rates { packets: PacketsPerSecond::new(packets), bits: BitsPerSecond::new(bits) };
    let pace = |slowed| Pace { asked: rates(5000, 0), granted: rates(1000, 10_000_000), current: rates(700, 10_000_000), slowed };
    let report = |shaper| PacingReport {
        session: SessionId(1),
        interface: pace(Some(Slowdown::ReceiveOverload)),
        leases: vec![LeasePace { lease: lease(), pace: pace(Some(Slowdown::SendQueueFull)) }],
        shaper,
    };
    let counters = ShaperCounters { bytes: 6000, packets: 100, drops: 3, overlimits: 50 };
    for (name, shaper) in [
        ("event-pacing", Shaper::Holds(counters)),
        ("event-pacing-absent", Shaper::Absent("not installed".to_owned())),
        ("event-pacing-off", Shaper::Off),
    ] {
        frozen(name, &Event::Pacing(Box::new(report(shaper))));
    }
    frozen(
        "event-heartbeat",
        &Event::Heartbeat(Heartbeat {
            session: SessionId(1),
            number: 12,
            uptime: Duration::from_secs(3600),
            cpu: Duration::from_millis(900),
            memory_kib: 8464,
            load_percent: 42,
            spool_records: 3,
            spool_bytes: 4000,
            lost_records: 0,
            leases: statuses(),
            traffic: Traffic {
                sent_packets: 5200,
                sent_bytes: 312_000,
                received_packets: 77,
                kernel_drops: 0,
                send_retries: 1,
                policy_refused: 5,
                clipped: 1,
            },
            refusals: Refusals { unsigned: 1, misaddressed: 2, expired: 3, replayed: 4, malformed: 5 },
        }),
    );
}

#[test]
fn records() {
    let answer = |offset, state, us| Answer { offset, state, rtt: Duration::from_micros(us), ttl: 57 };
    let batch = ResultBatch::new(
        BatchHead {
            lease: lease(),
            from: 4096,
            to: 8192,
            started: UnixMillis(1_700_000_000_000),
            took: Duration::from_millis(1200),
            packets: 4200,
            duplicates: 2,
        },
        vec![
            answer(5, State::Open, 300),
            answer(900, State::Open, 21_000),
            answer(6, State::Closed, 290),
            answer(7, State::Up, 100),
            answer(8, State::Filtered { icmp_type: 3, icmp_code: 13 }, 1000),
        ],
        Runs::from_ascending([10, 11, 12, 400]),
        vec![(NotReached::NoNeighbour, Runs::from_ascending([20])), (NotReached::Stopped, Runs::from_ascending([4000, 4001]))],
    );
    let records = [
        ("record-batch", Record::Batch(batch)),
        ("record-lease-ended", Record::LeaseEnded { lease: lease(), position: 8192, end: LeaseEnd::Done }),
        ("record-lease-failed", Record::LeaseEnded { lease: lease(), position: 5000, end: LeaseEnd::Failed("interface is gone".into()) }),
        ("record-job-refused", Record::JobRefused { job: lease().job, reason: "it lacks IPv6".into() }),
        ("record-loss", Record::Loss { records: 3, bytes: 900 }),
    ];
    for (name, record) in records {
        frozen(name, &record);
        assert_eq!(encode_record(&record), encode(&record));
    }
}

fn survey() -> JobSpec {
    let limits = RateLimits {
        bits: BitsPerSecond::new(20_000_000),
        per_address: PacketsPerSecond::new(20),
        per_network: Some(NetworkLimit { rate: PacketsPerSecond::new(200).unwrap(), v4_prefix: 24, v6_prefix: 64 }),
    };
    let host_probes =
        vec![HostProbe::Echo, HostProbe::Timestamp, HostProbe::Syn(443), HostProbe::Ack(80), HostProbe::Udp(53), HostProbe::Sctp(36_412)];
    let scan = ScanOptions { technique: Technique::Discover, attempts: 6 };
    let services = Some(ServiceOptions { ask_fragile: true });
    JobSpec { kind: JobKind::Survey(Box::new(Survey { scan, host_probes, limits, services })), ..spec() }
}

#[test]
fn surveys() {
    frozen("command-job-survey", &Command::Job(survey()));
    let techniques = [
        Technique::Echo,
        Technique::Syn,
        Technique::Connect,
        Technique::Timestamp,
        Technique::Ack,
        Technique::Udp,
        Technique::Sctp,
        Technique::Neighbour,
        Technique::Discover,
    ];
    frozen("techniques", &techniques.to_vec());
    let link = ScanOptions { technique: Technique::Link, attempts: 2 };
    let targets =
        TargetSpec { include: parse_set("2001:db8:7::/64").unwrap(), exclude: parse_set("2001:db8:7::5").unwrap(), ports: None, seed: 7 };
    frozen("command-job-link", &Command::Job(JobSpec { kind: JobKind::Scan(link), mode: Mode::Each, targets, ..spec() }));
}

#[test]
fn states() {
    let reasons = [
        UpReason::Arp,
        UpReason::Neighbour,
        UpReason::Timestamp,
        UpReason::SynAck,
        UpReason::Reset,
        UpReason::Udp,
        UpReason::PortUnreachable,
        UpReason::Sctp,
    ];
    let filtered = |from: &str| State::FilteredBy { icmp_type: 3, icmp_code: 13, from: from.parse().unwrap() };
    let mut states = vec![State::Up, State::Open, State::Closed, State::Filtered { icmp_type: 1, icmp_code: 4 }, State::Unfiltered];
    states.extend(reasons.map(State::UpBy));
    states.extend(["192.0.2.1", "2001:db8::1"].map(filtered));
    frozen("states", &states);
}

#[test]
fn findings_beside_batches() {
    let at = UnixMillis(1_700_000_000_000);
    let late = |position, state| LateAnswer { position, state, rtt: RttCode::encode(Duration::from_millis(2_300)), ttl: 57 };
    let service = Service {
        name: "http".into(),
        tls: true,
        product: Some("nginx".into()),
        version: Some("1.22.1".into()),
        extra: Some("Debian".into()),
        os: Some("Linux".into()),
        hostname: Some("www.example.com".into()),
        device: Some("appliance".into()),
        cpes: vec!["cpe:/a:nginx:nginx:1.22.1".into()],
        facts: vec![("tls.version".into(), "1.3".into()), ("http.status".into(), "200".into())],
        banner: b"HTTP/1.1 200 OK\r\n".to_vec(),
    };
    let outcomes = [
        ServiceOutcome::Identified(Box::new(service)),
        ServiceOutcome::Unidentified { banner: vec![0, 255] },
        ServiceOutcome::Silent,
        ServiceOutcome::Spared,
        ServiceOutcome::Lost("refused".into()),
        ServiceOutcome::Refused,
    ];
    let found = (4096..).zip(outcomes).map(|(position, outcome)| ServiceFound { position, outcome }).collect();
    let ways = [
        SeenBy::Arp,
        SeenBy::ProxyArp,
        SeenBy::Neighbour,
        SeenBy::AllNodes,
        SeenBy::RouterAdvertisement,
        SeenBy::Multicast,
        SeenBy::Guessed,
    ];
    let host = |(index, how): (u8, SeenBy)| HostSeen {
        addr: if index % 2 == 0 { format!("198.18.0.{index}") } else { format!("fe80::{index}") }.parse().unwrap(),
        mac: (index > 0).then_some(HardwareAddress([2, 0, 0, 0, 0, index])),
        how,
    };
    let hosts = (0u8..).zip(ways).map(host).collect();
    let records = [
        ("record-late", Record::Late(LateBatch { lease: lease(), answers: vec![late(4100, State::Open), late(5000, State::Closed)] })),
        ("record-services", Record::Services(ServiceBatch { lease: lease(), at, found })),
        ("record-hosts", Record::Hosts(HostBatch { lease: lease(), at, hosts })),
    ];
    for (name, record) in records {
        frozen(name, &record);
    }
}

fn trace_options() -> TraceOptions {
    TraceOptions {
        method: Method::Tcp,
        port: 443,
        first_ttl: 2,
        max_ttl: 40,
        queries: 3,
        gap: 6,
        tos: 0xb8,
        payload: 12,
        flow: 700,
        all_hops: true,
        ways: Some(WaysOptions { confidence: 99, full: true }),
        limits: RateLimits { bits: None, per_address: PacketsPerSecond::new(20), per_network: None },
        mtu: None,
    }
}

#[test]
fn traces() {
    let targets = TargetSpec { ports: None, ..spec().targets };
    let job = |options| JobSpec { kind: JobKind::Trace(Box::new(options)), targets: targets.clone(), ..spec() };
    frozen("command-job-trace", &Command::Job(job(trace_options())));
    frozen("command-job-trace-usual", &Command::Job(job(TraceOptions { mtu: Some(1_500), ..TraceOptions::usual(Method::Icmp, false) })));

    let quoted = |ttl| Some(Quoted { ttl, tos: 0xb8 });
    let reply = |from: &str, rtt_us, kind, quoted| Reply {
        from: from.parse().unwrap(),
        rtt_us,
        ttl: 250,
        kind,
        quoted,
        mpls: vec![],
        interfaces: vec![],
        mtu: None,
    };
    let router = |from: &str, rtt_us| reply(from, rtt_us, ReplyKind::TimeExceeded, quoted(1));
    let hop = |ttl, sent, replies| Hop { ttl, sent, replies, inherited: false };
    let info = InterfaceInfo {
        role: InterfaceRole::Incoming,
        index: Some(3),
        addr: Some("198.18.3.2".parse().unwrap()),
        name: Some("ge-0/0/1".into()),
        mtu: Some(1500),
    };
    let labelled = Reply {
        mpls: vec![MplsLabel { label: 1_048_575, tc: 5, bottom: true, ttl: 3 }],
        interfaces: vec![info],
        ..router("198.18.3.2", 21_000)
    };
    let ends = [
        PathEnd::Reached,
        PathEnd::Unreachable,
        PathEnd::Loop,
        PathEnd::Silent,
        PathEnd::TooFar,
        PathEnd::Refused,
        PathEnd::NoRoute,
        PathEnd::Stopped,
    ];
    let v4 = |end| TracePath {
        dst: "198.18.9.2".parse().unwrap(),
        end,
        hops: vec![
            hop(2, 3, vec![router("198.18.1.2", 300), router("198.18.1.2", 290), router("198.18.1.2", 4_000)]),
            hop(3, 2, vec![]),
            Hop { inherited: true, ..hop(4, 0, vec![router("198.18.2.2", 900)]) },
            hop(5, 1, vec![labelled.clone()]),
            hop(6, 1, vec![reply("198.18.9.1", 30_000, ReplyKind::Unreachable { icmp_type: 3, icmp_code: 13 }, quoted(4))]),
            hop(7, 1, vec![reply("198.18.9.2", 31_000, ReplyKind::Answer, None)]),
        ],
        sent: 20,
        mtu: None,
    };
    let v6 = TracePath {
        dst: "2001:db8:9::2".parse().unwrap(),
        end: PathEnd::Reached,
        hops: vec![
            hop(1, 1, vec![router("2001:db8:1::2", 300)]),
            Hop { inherited: true, ..hop(2, 0, vec![router("2001:db8:2::2", 300)]) },
            hop(3, 1, vec![reply("2001:db8:9::2", 900, ReplyKind::Answer, None)]),
        ],
        sent: 3,
        mtu: Some(PathMtu {
            bytes: 1_400,
            ttl: 64,
            limits: vec![
                MtuLimit { from: "2001:db8:1::2".parse().unwrap(), bytes: Some(1_400) },
                MtuLimit { from: "2001:db8:2::2".parse().unwrap(), bytes: None },
            ],
            silent: true,
        }),
    };
    let node = |from: &str| Node { flows: 9, least_rtt_us: 700, reply: router(from, 800) };
    let graph = Graph {
        dst: "198.18.9.2".parse().unwrap(),
        end: PathEnd::Reached,
        confidence: 99,
        hops: vec![
            GraphHop { ttl: 1, sure: true, by_packet: false, silent: 0, nodes: vec![node("198.18.1.2")] },
            GraphHop { ttl: 2, sure: false, by_packet: true, silent: 3, nodes: vec![node("198.18.2.2"), node("198.18.100.2")] },
        ],
        links: vec![Link { ttl: 1, from: 0, to: 0 }, Link { ttl: 1, from: 0, to: 1 }],
        sent: 40,
    };
    let took = Duration::from_millis(1_200);
    let mut paths: Vec<TracedPath> = (4096..).zip(ends).map(|(at, end)| TracedPath::path(at, took, &v4(end), 0xb8)).collect();
    paths.push(TracedPath::path(5000, took, &v6, 0xb8));
    paths.push(TracedPath::ways(5001, took, graph));
    paths[0].ago_ms = 700;
    let sources = ["198.18.1.1", "2001:db8:1::1"].map(|text| text.parse().unwrap()).to_vec();
    let batch = PathBatch { lease: lease(), at: UnixMillis(1_700_000_000_000), sources, tos: 0xb8, paths };
    assert_eq!(batch.check(), Ok(()));
    assert_eq!(batch.paths[0].found(v4(PathEnd::Reached).dst, 0xb8), Found::Path(v4(PathEnd::Reached)));
    frozen("record-paths", &Record::Paths(batch));
}

#[test]
fn captures() {
    let options = CaptureOptions {
        source: CaptureSource::Live,
        interface: Some("eth1".into()),
        filter: "tcp port 443".into(),
        snap_len: 262_144,
        promiscuous: true,
        with_own: false,
        packets: Some(1_000),
        bytes: 1 << 30,
        seconds: 600,
    };
    let targets = TargetSpec { include: Default::default(), exclude: Default::default(), ports: None, seed: 1 };
    let job = |options| JobSpec { kind: JobKind::Capture(Box::new(options)), mode: Mode::Each, targets: targets.clone(), ..spec() };
    frozen("command-job-capture", &Command::Job(job(options)));
    frozen("command-job-capture-usual", &Command::Job(job(CaptureOptions::default())));
    let question = RingQuestion {
        from: UnixMillis(1_700_000_000_000),
        to: UnixMillis(1_700_000_120_000),
        hosts: ["192.0.2.7", "2001:db8::7"].map(|text| text.parse().unwrap()).to_vec(),
        ports: vec![53, 443],
    };
    let asked = CaptureOptions { source: CaptureSource::Ring(question), ..CaptureOptions::default() };
    assert_eq!(asked.check(), Ok(()));
    frozen("command-job-capture-ring", &Command::Job(job(asked)));
    frozen("technique-capture", &Technique::Capture);
    for (name, state) in [
        ("command-chunk-ack", ChunkState::Open),
        ("command-chunk-ack-whole", ChunkState::Whole),
        ("command-chunk-ack-no-room", ChunkState::NoRoom),
        ("command-chunk-ack-unwanted", ChunkState::Unwanted),
        ("command-chunk-ack-removed", ChunkState::Removed),
    ] {
        frozen(name, &Command::ChunkAck { lease: lease(), stored: 1 << 33, state });
    }
    frozen("event-chunk-question", &Event::Chunk(Chunk::question(lease())));
    // As one packer made it; others may make other bytes, which unpack to the same.
    let packed = hex::decode("cb48cdc9c957c8409000").unwrap();
    let chunk = Chunk { lease: lease(), offset: 131_072, len: 17, packed };
    assert_eq!(chunk.unpack().as_deref(), Ok(&b"hello hello hello"[..]));
    frozen("event-chunk", &Event::Chunk(chunk));
    let counts = CaptureCounts {
        passed: Some(9_000),
        accepted: 1_200,
        kernel_drops: 100,
        interface_drops: 1,
        delivered: 1_100,
        bytes: 700_000,
        written: 1_099,
        longer: 3,
    };
    let ends = [
        ("asked", CaptureEnd::Asked),
        ("packets", CaptureEnd::Packets),
        ("bytes", CaptureEnd::Bytes),
        ("time", CaptureEnd::Time),
        ("disk", CaptureEnd::Disk("no space left on device".into())),
        ("gone", CaptureEnd::Gone("the interface disappeared".into())),
        ("interrupted", CaptureEnd::Interrupted),
        ("answered", CaptureEnd::Answered("9 of 64 segments were looked into".into())),
    ];
    for (name, end) in ends {
        let captured = Captured {
            lease: lease(),
            began: UnixMillis(1_700_000_000_000),
            ended: UnixMillis(1_700_000_060_000),
            interface: "eth1".into(),
            filter: "(tcp port 443) and not (host 192.0.2.7)".into(),
            end,
            counts,
            sections: 2,
            len: 131_089,
            sha256: [0xa5; 32],
        };
        assert_eq!(captured.check(), Ok(()));
        frozen(&format!("record-captured-{name}"), &Record::Captured(Box::new(captured)));
    }
}

#[test]
fn envelopes() {
    let key = SigningKey::from_bytes(&[42; 32]);
    let contents = Contents {
        audience: Audience::Role(Role::Scan),
        serial: 1_700_000_000_000_000,
        issued: UnixMillis(1_700_000_000_000),
        expires: UnixMillis(1_700_000_060_000),
        command: Command::Cancel { job: lease().job },
    };
    let bytes = seal(&contents, &key);
    let frozen = golden("envelope", &bytes);
    assert_eq!(open(&frozen, &[key.verifying_key()]), Ok(contents));
    assert_eq!(hex::encode(bytes), hex::encode(frozen));
}

#[test]
fn damaged_messages_are_refused_and_never_panic() {
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let bytes = hex::decode(text.split_whitespace().collect::<String>()).unwrap();
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                let _ = (decode::<Command>(&damaged), decode::<Event>(&damaged), decode::<Live>(&damaged));
                match decode::<Record>(&damaged) {
                    Ok(Record::Batch(batch)) => drop(batch.check()),
                    Ok(Record::Services(services)) => drop(services.check()),
                    Ok(Record::Paths(paths)) => drop(paths.check()),
                    Ok(Record::Captured(captured)) => drop(captured.check()),
                    _ => {}
                }
            }
            let _ = (
                decode::<Command>(&bytes[..at]),
                decode::<Event>(&bytes[..at]),
                decode::<Live>(&bytes[..at]),
                decode::<Record>(&bytes[..at]),
            );
        }
    }
}
