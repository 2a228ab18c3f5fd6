//! The packet loop on real interfaces: a veth pair between two network namespaces, loopback, and a tun-like bare link.
//!
//! Needs root and `ip`; without them it says so and stops, and CI runs as root.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

mod namespaces;

use std::collections::VecDeque;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use picket_probe::net::afpacket::{AfPacket, LinkConfig};
use picket_probe::net::clock;
use picket_probe::net::drive::{self, DriveEvent, DriveHandle, TaskSpec, Weight};
use picket_probe::net::engine::{Engine, NotSent, Source, Transmit};
use picket_probe::net::link::{Link, Received};
use picket_probe::net::netlink::{self, Watcher};
use picket_probe::net::pacer::{DEFAULT_BURST, Limits, Pacer};
use picket_probe::net::time::Instant;
use picket_probe::packet::checksum::{Checksum, checksum};
use picket_probe::scan::connect::{self, ConnectOptions};
use picket_probe::scan::report::Event;
use picket_probe::scan::spec::ScanPlan;
use picket_wire::addr::parse_set;
use picket_wire::job::{ScanOptions, Technique};
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::units::PacketsPerSecond;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use namespaces::{Namespaces, inside, sh};

const PORT: u16 = 45_000;

/// Two namespaces joined by a veth pair.
struct Lab(Namespaces);

impl Lab {
    /// Inside: 198.18.1.1/24 and 2001:db8:1::1/64 are ours; the other side has .2 to .9, routes 198.19.0.0/16, and listens on
    /// no port but refuses all.
    fn new() -> Option<Lab> {
        let lab = Lab(Namespaces::named("net")?);
        let Namespaces { probe, target } = &lab.0;
        sh(&format!(
            "ip netns add {probe}; ip netns add {target}
             ip netns exec {probe} sysctl -qw net.ipv6.conf.default.accept_dad=0
             ip netns exec {target} sysctl -qw net.ipv6.conf.default.accept_dad=0
             ip -n {probe} link add eth0 type veth peer name eth0 netns {target}
             ip -n {probe} link set lo up; ip -n {target} link set lo up
             ip -n {probe} link set eth0 up; ip -n {target} link set eth0 up
             ip -n {probe} address add 198.18.1.1/24 dev eth0
             ip -n {probe} address add 2001:db8:1::1/64 dev eth0 nodad
             for n in 2 3 4 5 6 7 8 9; do
               ip -n {target} address add 198.18.1.$n/24 dev eth0
               ip -n {target} address add 2001:db8:1::$n/64 dev eth0 nodad
             done
             ip -n {target} route add local 198.19.0.0/16 dev lo
             ip -n {probe} route add default via 198.18.1.2
             ip netns exec {target} sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=1000000"
        ));
        Some(lab)
    }

    /// The near end of the wire without a loop, and a socket that sends datagrams to it from the far one.
    fn wire(&self, config: LinkConfig) -> (AfPacket, UdpSocket) {
        let link = inside(&self.0.probe, move || {
            let table = Arc::new(netlink::snapshot_blocking().unwrap()).table("eth0").unwrap();
            AfPacket::open(table.interface(), &config).unwrap()
        });
        let sender = inside(&self.0.target, || {
            let socket = UdpSocket::bind((Ipv4Addr::new(198, 18, 1, 2), 0)).unwrap();
            socket.connect((Ipv4Addr::new(198, 18, 1, 1), PORT)).unwrap();
            socket
        });
        (link, sender)
    }
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Told {
    Answer(IpAddr, &'static str),
    NotSent(u64, NotSent),
}

/// An echo request and a SYN to each address.
struct Knock {
    source: Source,
    queue: VecDeque<(u64, IpAddr)>,
    targets: Vec<IpAddr>,
    events: VecDeque<Told>,
}

impl Knock {
    fn spec(source: Source, targets: Vec<IpAddr>, rate: Limits) -> TaskSpec<Told> {
        let queue = (0..).zip(targets.iter().flat_map(|ip| [*ip, *ip])).collect();
        let engine = Box::new(Knock { source, queue, targets, events: VecDeque::new() });
        TaskSpec { name: "knock".into(), engine, weight: Weight::Bulk, rate, targets: None, gate: Arc::new(|_| true) }
    }
}

fn packet(source: Source, dst: IpAddr, syn: bool, buf: &mut [u8]) -> usize {
    let mut body = vec![8, 0, 0, 0, 0, 1, 0, 1];
    if syn {
        body = vec![0; 20];
        body[0..2].copy_from_slice(&PORT.to_be_bytes());
        body[3] = 80;
        body[12] = 0x50;
        body[13] = 0x02;
    }
    let protocol = if syn { 6 } else { 1 };
    let at = if syn { 16 } else { 2 };
    let mut sum = Checksum::new();
    let header = match dst {
        IpAddr::V4(dst) => {
            let src = source.v4.unwrap();
            if syn {
                sum.add_pseudo_v4(src, dst, protocol, 20);
            }
            let mut header = vec![0x45, 0, 0, 20 + body.len() as u8, 0, 0, 0, 0, 64, protocol, 0, 0];
            header.extend(src.octets());
            header.extend(dst.octets());
            let own = checksum(&header);
            header[10..12].copy_from_slice(&own.to_be_bytes());
            header
        }
        IpAddr::V6(dst) => {
            let src = source.v6.unwrap();
            let protocol = if syn { 6 } else { 58 };
            if !syn {
                body[0] = 128;
            }
            sum.add_pseudo_v6(src, dst, protocol, body.len() as u32);
            let mut header = vec![0x60, 0, 0, 0, 0, body.len() as u8, protocol, 64];
            header.extend(src.octets());
            header.extend(dst.octets());
            header
        }
    };
    sum.add(&body);
    body[at..at + 2].copy_from_slice(&sum.finish().to_be_bytes());
    let whole = [header, body].concat();
    buf[..whole.len()].copy_from_slice(&whole);
    whole.len()
}

impl Engine for Knock {
    type Event = Told;

    fn poll_transmit(&mut self, _: Instant, buf: &mut [u8]) -> Option<Transmit> {
        let (token, dst) = self.queue.pop_front()?;
        Some(Transmit { dst, token, len: packet(self.source, dst, token % 2 == 1, buf) })
    }

    fn on_not_sent(&mut self, _: Instant, token: u64, why: NotSent) {
        match why {
            NotSent::NeighbourPending => self.queue.push_back((token, self.targets[token as usize / 2])),
            why => self.events.push_back(Told::NotSent(token, why)),
        }
    }

    fn on_packet(&mut self, _: Instant, packet: &[u8]) {
        let (src, protocol, body) = match packet[0] >> 4 {
            4 => (IpAddr::from([packet[12], packet[13], packet[14], packet[15]]), packet[9], &packet[20..]),
            6 => (IpAddr::from(<[u8; 16]>::try_from(&packet[8..24]).unwrap()), packet[6], &packet[40..]),
            // ARP.
            _ => return,
        };
        let what = match (protocol, body[0]) {
            (6, _) if body[13] & 4 != 0 => "reset",
            (6, _) if body[13] & 0x12 == 0x12 => "syn-ack",
            (1, 0) | (58, 129) => "echo",
            _ => return,
        };
        self.events.push_back(Told::Answer(src, what));
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }

    fn on_timeout(&mut self, _: Instant) {}

    fn poll_event(&mut self) -> Option<Told> {
        self.events.pop_front()
    }
}

fn pps(rate: u32) -> Limits {
    Limits { burst: DEFAULT_BURST, ..Limits::packets(PacketsPerSecond::new(rate).unwrap()) }
}

/// A loop on an interface of a namespace.
struct Rig {
    handle: DriveHandle<Told>,
    events: UnboundedReceiver<DriveEvent<Told>>,
    thread: Option<std::thread::JoinHandle<()>>,
    source: Source,
    _watcher: Watcher,
}

impl Rig {
    fn start(namespace: &str, interface: &str, limits: Limits) -> Rig {
        let interface = interface.to_owned();
        inside(namespace, move || {
            let snapshot = Arc::new(netlink::snapshot_blocking().unwrap());
            let table = snapshot.table(&interface).expect("the lab has made it");
            let link = AfPacket::open(table.interface(), &LinkConfig::for_ports(PORT, PORT)).unwrap();
            let source = table.source();
            let (sink, events) = unbounded_channel();
            let (handle, thread) = drive::spawn(link, limits, Arc::new(table), sink).unwrap();
            let teller = handle.clone();
            let watcher = Watcher::start(move |snapshot| {
                if let Some(table) = snapshot.table(&interface) {
                    let _ = teller.set_routes(Arc::new(table));
                }
            })
            .unwrap();
            Rig { handle, events, thread: Some(thread), source, _watcher: watcher }
        })
    }

    /// The next `count` task events, sorted; fails after five seconds of silence.
    fn take(&mut self, count: usize) -> Vec<Told> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut told = Vec::new();
        runtime.block_on(async {
            while told.len() < count {
                let next = tokio::time::timeout(Duration::from_secs(5), self.events.recv()).await;
                match next.unwrap_or_else(|_| panic!("only {told:?} of {count}: {:?}", self.handle.stats())) {
                    Some(DriveEvent::Task(_, event)) => told.push(event),
                    Some(_) => {}
                    None => panic!("the loop has ended"),
                }
            }
        });
        sorted(told)
    }

    fn answers_within(&mut self, limit: Duration) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(limit, self.events.recv()).await.is_ok() })
    }

    fn wait_for(&mut self, wanted: &DriveEvent<Told>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            loop {
                let next = tokio::time::timeout(Duration::from_secs(5), self.events.recv()).await;
                if next.unwrap_or_else(|_| panic!("no {wanted:?}")).as_ref() == Some(wanted) {
                    return;
                }
            }
        });
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn sorted(mut told: Vec<Told>) -> Vec<Told> {
    told.sort_by_cached_key(|told| format!("{told:?}"));
    told
}

fn v4(c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 18, c, d))
}

fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last))
}

fn echo_and_reset(targets: &[IpAddr]) -> Vec<Told> {
    sorted(targets.iter().flat_map(|ip| [Told::Answer(*ip, "echo"), Told::Answer(*ip, "reset")]).collect())
}

#[test]
fn neighbours_answer_over_both_families_and_through_a_router() {
    let Some(lab) = Lab::new() else { return };
    let mut rig = Rig::start(&lab.0.probe, "eth0", pps(20_000));
    let mut targets: Vec<IpAddr> = (2..10).map(|n| v4(1, n)).collect();
    targets.extend((2..10).map(v6));
    targets.extend((0..200).map(|n| IpAddr::V4(Ipv4Addr::new(198, 19, 7, n))));
    rig.handle.add(Knock::spec(rig.source, targets.clone(), pps(20_000))).unwrap();
    assert_eq!(rig.take(targets.len() * 2), echo_and_reset(&targets));
    let stats = rig.handle.stats();
    assert_eq!((stats.receive_drops, stats.questions <= 17), (0, true), "{stats:?}");
}

#[test]
fn silent_neighbours_and_missing_routes_are_reported() {
    let Some(lab) = Lab::new() else { return };
    let mut rig = Rig::start(&lab.0.probe, "eth0", pps(1_000));
    let nowhere = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1));
    rig.handle.add(Knock::spec(rig.source, vec![v4(1, 77), nowhere], pps(1_000))).unwrap();
    let expected = [
        Told::NotSent(0, NotSent::NoNeighbour),
        Told::NotSent(1, NotSent::NoNeighbour),
        Told::NotSent(2, NotSent::NoRoute),
        Told::NotSent(3, NotSent::NoRoute),
    ];
    let mut told = rig.take(4);
    told.sort_by_key(|told| if let Told::NotSent(token, _) = told { *token } else { 99 });
    assert_eq!(told, expected);
}

#[test]
fn a_neighbour_that_is_written_down_need_not_answer_arp() {
    let Some(lab) = Lab::new() else { return };
    // Deaf to ARP, as some machines are made.
    sh(&format!(
        "ip -n {target} link set eth0 arp off
         mac=$(ip -n {target} -o link show eth0 | sed 's/.*link.ether \\([^ ]*\\).*/\\1/')
         mine=$(ip -n {probe} -o link show eth0 | sed 's/.*link.ether \\([^ ]*\\).*/\\1/')
         for n in 2 3; do
           ip -n {probe} neigh replace 198.18.1.$n lladdr $mac dev eth0 nud permanent
           ip -n {probe} neigh replace 2001:db8:1::$n lladdr $mac dev eth0 nud permanent
         done
         ip -n {probe} neigh replace 198.18.1.4 lladdr $mac dev eth0 nud noarp
         ip -n {target} neigh replace 198.18.1.1 lladdr $mine dev eth0 nud permanent
         ip -n {target} neigh replace 2001:db8:1::1 lladdr $mine dev eth0 nud permanent",
        probe = lab.0.probe,
        target = lab.0.target,
    ));
    let mut rig = Rig::start(&lab.0.probe, "eth0", pps(1_000));
    let known = vec![v4(1, 2), v4(1, 3), v6(2), v6(3), v4(1, 4)];
    rig.handle.add(Knock::spec(rig.source, known.clone(), pps(1_000))).unwrap();
    assert_eq!(rig.take(2 * known.len()), echo_and_reset(&known));
    assert_eq!(rig.handle.stats().questions, 0);
    // The others are as deaf as they seem, and nobody knows them.
    rig.handle.add(Knock::spec(rig.source, vec![v4(1, 5)], pps(1_000))).unwrap();
    assert_eq!(rig.take(2), [Told::NotSent(0, NotSent::NoNeighbour), Told::NotSent(1, NotSent::NoNeighbour)]);
}

#[test]
fn loopback_works_without_hardware_addresses() {
    let Some(lab) = Lab::new() else { return };
    let mut rig = Rig::start(&lab.0.target, "lo", pps(10_000));
    let targets: Vec<IpAddr> = ["127.0.0.1", "127.9.9.9", "198.19.4.5"].iter().map(|ip| ip.parse().unwrap()).collect();
    let source = Source { v4: Some(Ipv4Addr::LOCALHOST), v6: Some(Ipv6Addr::LOCALHOST) };
    rig.handle.add(Knock::spec(source, targets.clone(), pps(10_000))).unwrap();
    assert_eq!(rig.take(targets.len() * 2), echo_and_reset(&targets));
    let six = vec![IpAddr::V6(Ipv6Addr::LOCALHOST)];
    rig.handle.add(Knock::spec(source, six.clone(), pps(10_000))).unwrap();
    // The first task hears the second one's answers too: engines tell their own by a cookie, this one does not.
    let mut told = rig.take(4);
    told.dedup();
    assert_eq!(told, echo_and_reset(&six));
}

/// Datagram number `n`, of a length and with bytes that depend on it.
fn datagram(n: u32) -> Vec<u8> {
    let len = 4 + if n.is_multiple_of(3) { (n as usize * 37) % 1468 } else { n as usize % 60 };
    let mut bytes = n.to_be_bytes().to_vec();
    bytes.extend((4..len).map(|at| (at as u32).wrapping_mul(n.wrapping_add(7)) as u8));
    bytes
}

/// The number of a datagram, found to be whole; the kernels may talk about each other's addresses meanwhile.
fn number(packet: &Received<'_>) -> Option<u32> {
    if packet.ethertype != 0x0800 || packet.payload[9] != 17 {
        return None;
    }
    let number = u32::from_be_bytes(packet.payload[28..32].try_into().unwrap());
    assert_eq!(packet.payload[28..], datagram(number), "datagram {number}");
    Some(number)
}

#[test]
fn what_arrives_is_whole_in_order_and_timed_and_what_finds_no_room_is_counted() {
    const FEW: u32 = 500;
    const MANY: u32 = 10_000;
    /// The smallest ring that there is.
    const PLACES: usize = 128;
    let Some(lab) = Lab::new() else { return };
    let (mut link, sender) = lab.wire(LinkConfig { receive_ring: 1, ..LinkConfig::for_ports(PORT, PORT) });
    // Where nobody listens, the refusal comes back with the next call.
    let sent_at = std::cell::RefCell::new(Vec::new());
    let send = |n: u32| {
        sent_at.borrow_mut().push(clock::now());
        while sender.send(&datagram(n)).is_err() {}
    };
    let mut arrived = Vec::new();
    let take = |link: &mut AfPacket, arrived: &mut Vec<u32>| {
        link.receive(&mut |packet| {
            let Some(number) = number(&packet) else { return };
            assert!(packet.src.is_some(), "datagram {number}");
            let at = packet.at.expect("the kernel gives times");
            let sent_at = sent_at.borrow()[number as usize];
            assert!((sent_at..=clock::now()).contains(&at), "datagram {number}: {at:?}, sent {sent_at:?}");
            arrived.push(number);
        })
    };
    let give_up = clock::now() + Duration::from_secs(20);
    // One at a time: none is lost, several times around the ring.
    for n in 0..FEW {
        send(n);
        while arrived.last() != Some(&n) {
            assert!(clock::now() < give_up, "datagram {n} does not arrive");
            link.wait(give_up);
            take(&mut link, &mut arrived);
        }
    }
    assert_eq!((arrived.len(), link.counters().receive_drops), (FEW as usize, 0));
    // Nobody looks for a while. A few may be lost on the way here, where the kernel is busy.
    (FEW..MANY).for_each(send);
    let (mut found, mut drops) = (0, 0);
    while found < PLACES || drops < u64::from(MANY) / 2 {
        assert!(clock::now() < give_up, "{found} and {drops} of {}", MANY - FEW);
        found += take(&mut link, &mut arrived);
        drops = link.counters().receive_drops;
    }
    assert!(arrived.is_sorted_by(|a, b| a < b));
    // And then it goes on.
    for n in MANY.. {
        assert!(clock::now() < give_up, "nothing arrives after the ring was full");
        send(n);
        link.wait(clock::now() + Duration::from_millis(100));
        while take(&mut link, &mut arrived) > 0 {}
        if arrived.last() >= Some(&MANY) {
            return;
        }
    }
}

#[test]
fn an_interface_that_was_down_is_waited_on_and_read_as_before() {
    let Some(lab) = Lab::new() else { return };
    let (mut link, sender) = lab.wire(LinkConfig::for_ports(PORT, PORT));
    for round in 0..3 {
        sh(&format!("ip -n {0} link set eth0 down; ip -n {0} link set eth0 up", lab.0.probe));
        // A wait takes its time, though nothing was read yet; what the kernels say to each other may end a few early.
        let until = clock::now() + Duration::from_millis(200);
        let mut waits = 0;
        while clock::now() < until {
            link.wait(until);
            link.receive(&mut |_| {});
            waits += 1;
        }
        assert!(waits < 50, "{waits} waits for 200 ms");
        // All of these numbers have long datagrams, which come by the socket's queue.
        let wanted: Vec<u32> = (0..20).map(|n| 30 + 3 * (20 * round + n)).filter(|n| datagram(*n).len() > 500).collect();
        let give_up = clock::now() + Duration::from_secs(20);
        let mut arrived = Vec::new();
        for n in &wanted {
            let mut sent = Instant::ZERO;
            while arrived.last() != Some(n) {
                assert!(clock::now() < give_up, "datagram {n} does not arrive");
                // It may get lost while the kernels find each other again.
                if clock::now() > sent + Duration::from_millis(100) {
                    sent = clock::now();
                    let _ = sender.send(&datagram(*n));
                }
                link.wait(clock::now() + Duration::from_millis(10));
                link.receive(&mut |packet| {
                    arrived.extend(number(&packet));
                });
            }
        }
    }
}

#[test]
fn an_interface_that_goes_down_and_up_again() {
    let Some(lab) = Lab::new() else { return };
    let mut rig = Rig::start(&lab.0.probe, "eth0", pps(1_000));
    sh(&format!("ip -n {} link set eth0 down", lab.0.probe));
    rig.wait_for(&DriveEvent::Link { up: false });
    rig.handle.add(Knock::spec(rig.source, vec![v4(1, 3)], pps(1_000))).unwrap();
    sh(&format!("ip -n {} link set eth0 up", lab.0.probe));
    rig.wait_for(&DriveEvent::Link { up: true });
    assert_eq!(rig.take(2), echo_and_reset(&[v4(1, 3)]));
}

#[test]
fn a_gateway_that_moves_is_followed() {
    let Some(lab) = Lab::new() else { return };
    let mut rig = Rig::start(&lab.0.probe, "eth0", pps(1_000));
    let far = |n| IpAddr::V4(Ipv4Addr::new(198, 19, 1, n));
    rig.handle.add(Knock::spec(rig.source, vec![far(1)], pps(1_000))).unwrap();
    assert_eq!(rig.take(2), echo_and_reset(&[far(1)]));
    // As a failover pair does it: another hardware address, announced.
    sh(&format!(
        "ip netns exec {0} sysctl -qw net.ipv4.conf.eth0.arp_notify=1; ip -n {0} link set eth0 address 02:00:00:00:77:77",
        lab.0.target
    ));
    // What leaves before the new address is known is lost, as it would be with any sender.
    let found = (2..100).any(|n| {
        rig.handle.add(Knock::spec(rig.source, vec![far(n)], pps(1_000))).unwrap();
        rig.answers_within(Duration::from_millis(50))
    });
    assert!(found, "the new gateway was never found");
}

/// Who closes first remembers the connection for a minute. That must not use up the ports to connect from.
#[test]
fn connections_that_the_kernel_remembers_take_no_ports_from_others() {
    let Some(lab) = Lab::new() else { return };
    sh(&format!("ip netns exec {} sysctl -qw net.ipv4.ip_local_port_range='40000 40049'", lab.0.probe));
    let listener = inside(&lab.0.target, || std::net::TcpListener::bind("0.0.0.0:9100").unwrap());
    let served = std::thread::spawn(move || {
        let ends = |stream: std::io::Result<std::net::TcpStream>| stream.unwrap().read_to_end(&mut Vec::new());
        listener.incoming().take(400).map(ends).filter(|end| matches!(end, Ok(0))).count()
    });
    let spec = TargetSpec {
        include: parse_set("198.19.0.1-198.19.1.144").unwrap(),
        exclude: parse_set("").unwrap(),
        ports: Some("9100".parse().unwrap()),
        seed: 3,
    };
    let space = Arc::new(TargetSpace::new(&spec).unwrap());
    let plan = ScanPlan::new(Arc::clone(&space), 0, 400, ScanOptions { technique: Technique::Connect, attempts: 2 }).unwrap();
    let options = ConnectOptions {
        interface: Arc::new(Mutex::new(Pacer::new(pps(5_000)))),
        rate: Limits::UNLIMITED,
        targets: None,
        source: Source { v4: Some(Ipv4Addr::new(198, 18, 1, 1)), v6: None },
        max_open: 40,
        progress: Arc::default(),
    };
    let open: u64 = inside(&lab.0.probe, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, mut events) = tokio::sync::mpsc::channel(1000);
            connect::run(&plan, options, |_| true, sender, std::future::pending()).await.unwrap();
            let mut open = 0;
            while let Some(event) = events.recv().await {
                open += if let Event::Chunk(report) = event { report.coverage().open } else { 0 };
            }
            open
        })
    });
    assert_eq!(open, 400, "eight times as many as there are ports to connect from");
    assert_eq!(served.join().unwrap(), 400, "each was closed in order");
}
