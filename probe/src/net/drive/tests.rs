use super::super::engine::Engine;
use super::super::pacer::DEFAULT_BURST;
use super::super::sim::{self, HostRule, PortState, Scenario, SimLink};
use super::*;
use crate::packet::checksum::checksum;
use picket_wire::units::PacketsPerSecond;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

const MS: u64 = 1_000_000;

/// What a [`Volley`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    NotSent(u64, NotSent),
    Answer(Instant, IpAddr),
}

/// Sends an echo request to each address once, again where the neighbour was not known yet.
struct Volley {
    queue: VecDeque<(u64, IpAddr)>,
    events: VecDeque<Told>,
    claim: Option<IpAddr>,
    clock: Instant,
}

impl Volley {
    fn new(targets: impl IntoIterator<Item = IpAddr>) -> Self {
        let queue = targets.into_iter().enumerate().map(|(n, ip)| (n as u64, ip)).collect();
        Self { queue, events: VecDeque::new(), claim: None, clock: Instant::ZERO }
    }
}

fn echo(dst: IpAddr, token: u64, buf: &mut [u8]) -> usize {
    let scenario = Scenario::default();
    let mut message = [8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    message[8..].copy_from_slice(&token.to_be_bytes());
    match dst {
        IpAddr::V4(dst) => {
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut header = [0x45, 0, 0, 36, 0, 0, 0, 0, 64, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            header[12..16].copy_from_slice(&scenario.address_v4.0.octets());
            header[16..20].copy_from_slice(&dst.octets());
            buf[..20].copy_from_slice(&header);
            buf[20..36].copy_from_slice(&message);
            36
        }
        IpAddr::V6(dst) => {
            message[0] = 128;
            buf[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 16, 58, 64]);
            buf[8..24].copy_from_slice(&scenario.address_v6.0.octets());
            buf[24..40].copy_from_slice(&dst.octets());
            buf[40..56].copy_from_slice(&message);
            56
        }
    }
}

impl Engine for Volley {
    type Event = Told;

    fn poll_transmit(&mut self, now: Instant, buf: &mut [u8]) -> Option<super::super::engine::Transmit> {
        assert!(now >= self.clock, "the engine's clock went back");
        self.clock = now;
        let (token, dst) = self.queue.pop_front()?;
        let len = echo(dst, token, buf);
        Some(super::super::engine::Transmit { dst: self.claim.unwrap_or(dst), token, len })
    }

    fn on_not_sent(&mut self, _: Instant, token: u64, why: NotSent) {
        if why == NotSent::NeighbourPending {
            // The test targets are numbered by their last 16 bits.
            self.queue.push_back((token, TARGETS.with(|targets| targets.borrow()[&token])));
        } else {
            self.events.push_back(Told::NotSent(token, why));
        }
    }

    fn on_packet(&mut self, now: Instant, packet: &[u8]) {
        let src = match packet.first().map(|first| first >> 4) {
            Some(4) if packet[9] == 1 && packet[20] == 0 => IpAddr::from([packet[12], packet[13], packet[14], packet[15]]),
            Some(6) if packet[6] == 58 && packet[40] == 129 => IpAddr::from(<[u8; 16]>::try_from(&packet[8..24]).unwrap()),
            _ => return,
        };
        self.events.push_back(Told::Answer(now, src));
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }

    fn on_timeout(&mut self, _: Instant) {}

    fn poll_event(&mut self) -> Option<Told> {
        self.events.pop_front()
    }
}

thread_local! {
    static TARGETS: core::cell::RefCell<BTreeMap<u64, IpAddr>> = const { core::cell::RefCell::new(BTreeMap::new()) };
}

type Sim = Drive<SimLink, Told, VecDeque<DriveEvent<Told>>>;

fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

fn near(last: u8) -> IpAddr {
    v4(192, 0, 2, last)
}

fn pps(rate: u32) -> Limits {
    Limits::packets(PacketsPerSecond::new(rate).unwrap())
}

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * MS)
}

fn world() -> Scenario {
    let hosts = vec![
        HostRule::new(near(0), 25),
        HostRule { resolves: false, ..HostRule::new(near(128), 25) },
        HostRule { rtt: Duration::from_millis(20), ..HostRule::new(v4(198, 18, 0, 0), 15) },
        HostRule::new("2001:db8::".parse().unwrap(), 32),
    ];
    Scenario { hosts, ..Scenario::default() }
}

fn drive(scenario: Scenario, limits: Limits) -> Sim {
    let routes = scenario.routes();
    Drive::new(Instant::ZERO, SimLink::new(scenario), limits, routes, VecDeque::new())
}

fn task(targets: &[IpAddr], rate: Limits, weight: Weight) -> TaskSpec<Told> {
    TARGETS.with(|all| all.borrow_mut().extend(targets.iter().enumerate().map(|(n, ip)| (n as u64, *ip))));
    let engine = Box::new(Volley::new(targets.iter().copied()));
    TaskSpec { name: "volley".into(), engine, weight, rate, targets: None, gate: Arc::new(|_| true) }
}

fn bulk(targets: &[IpAddr]) -> TaskSpec<Told> {
    task(targets, Limits::UNLIMITED, Weight::Bulk)
}

fn answers(drive: &mut Sim) -> BTreeSet<IpAddr> {
    let answer = |event: &DriveEvent<Told>| match event {
        DriveEvent::Task(_, Told::Answer(_, src)) => Some(*src),
        _ => None,
    };
    drive.sink().iter().filter_map(answer).collect()
}

fn not_sent(drive: &mut Sim) -> Vec<(u64, NotSent)> {
    let refusal = |event: &DriveEvent<Told>| match event {
        DriveEvent::Task(_, Told::NotSent(token, why)) => Some((*token, *why)),
        _ => None,
    };
    drive.sink().iter().filter_map(refusal).collect()
}

/// Destinations of the echo requests on the wire, in order.
fn sent(drive: &mut Sim) -> Vec<IpAddr> {
    let echo = |(_, frame): &(Instant, Vec<u8>)| {
        let packet = &frame[eth::HEADER_LEN..];
        let is_echo = (packet[0] == 0x45 && packet[9] == 1) || (packet[0] == 0x60 && packet[40] == 128);
        is_echo.then(|| guard::destination(packet).unwrap())
    };
    drive.link().wire.iter().filter_map(echo).collect()
}

fn busiest(drive: &mut Sim, width: Duration) -> usize {
    let times: Vec<Instant> = drive.link().wire.iter().map(|(at, _)| *at).collect();
    let mut from = 0;
    let mut most = 0;
    for (to, time) in times.iter().enumerate() {
        while times[from] + width < *time {
            from += 1;
        }
        most = most.max(to - from + 1);
    }
    most
}

fn run_for(drive: &mut Sim, from: u64, to: u64) {
    sim::run(drive, at(from), at(to), |_, _| false);
}

#[test]
fn neighbours_are_asked_and_then_answer() {
    let mut targets: Vec<IpAddr> = (10..40).map(near).collect();
    targets.extend((10..40).map(|n| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n))));
    let mut drive = drive(world(), pps(10_000));
    drive.add(at(0), TaskId(1), bulk(&targets));
    run_for(&mut drive, 0, 200);
    assert_eq!(answers(&mut drive), targets.iter().copied().collect());
    let stats = drive.stats();
    assert_eq!((stats.questions, stats.sent_packets), (60, 120));
    assert_eq!(stats.tasks[0].1.sent_packets, 60);
}

#[test]
fn a_gateway_is_asked_once_for_all_behind_it() {
    let targets: Vec<IpAddr> = (0..=255).map(|n| v4(198, 18, 3, n)).collect();
    let mut drive = drive(world(), pps(100_000));
    drive.add(at(0), TaskId(1), bulk(&targets));
    run_for(&mut drive, 0, 100);
    assert_eq!(answers(&mut drive).len(), 256);
    assert_eq!(drive.stats().questions, 1);
}

#[test]
fn forbidden_addresses_see_nothing_not_even_a_question() {
    let targets = [near(10), near(11), v4(198, 18, 0, 1)];
    let mut drive = drive(world(), pps(1_000));
    let spec = TaskSpec { gate: Arc::new(|dst: IpAddr| dst == near(11)), ..bulk(&targets) };
    drive.add(at(0), TaskId(1), spec);
    run_for(&mut drive, 0, 100);
    assert_eq!(not_sent(&mut drive), [(0, NotSent::Refused), (2, NotSent::Refused)]);
    assert_eq!(sent(&mut drive), [near(11)]);
    assert_eq!(drive.link().wire.len(), 2, "one question, for the permitted one");
}

#[test]
fn the_gate_sees_mapped_addresses_as_ipv4() {
    let mapped: IpAddr = "::ffff:192.0.2.10".parse().unwrap();
    let mut drive = drive(world(), pps(1_000));
    let spec = TaskSpec { gate: Arc::new(|dst: IpAddr| dst.is_ipv6()), ..bulk(&[mapped]) };
    drive.add(at(0), TaskId(1), spec);
    run_for(&mut drive, 0, 10);
    assert_eq!(not_sent(&mut drive), [(0, NotSent::Refused)]);
}

#[test]
fn a_packet_that_goes_elsewhere_than_its_engine_says_is_refused() {
    let mut drive = drive(world(), pps(1_000));
    let mut engine = Volley::new([near(10)]);
    engine.claim = Some(near(11));
    let gate: Arc<dyn Gate> = Arc::new(|_| true);
    drive.add(at(0), TaskId(1), TaskSpec { engine: Box::new(engine), gate, ..bulk(&[]) });
    run_for(&mut drive, 0, 10);
    assert_eq!(not_sent(&mut drive), [(0, NotSent::Refused)]);
    assert!(drive.link().wire.is_empty());
}

#[test]
fn silent_neighbours_and_missing_routes_are_told_apart() {
    let mut scenario = world();
    scenario.gateway_v4 = None;
    let mut drive = drive(scenario, pps(1_000));
    drive.add(at(0), TaskId(1), bulk(&[near(200), v4(203, 0, 113, 1)]));
    run_for(&mut drive, 0, 3_000);
    assert_eq!(not_sent(&mut drive), [(1, NotSent::NoRoute), (0, NotSent::NoNeighbour)]);
    assert_eq!(drive.stats().questions, 3);
    assert_eq!(drive.link().wire.len(), 3);
}

#[test]
fn waiting_for_silent_neighbours_does_not_spin() {
    let targets: Vec<IpAddr> = (128..=254).map(near).collect();
    let mut drive = drive(world(), pps(100));
    drive.add(at(0), TaskId(1), bulk(&targets));
    let mut turns = 0;
    sim::run(&mut drive, at(0), at(20_000), |_, _| {
        turns += 1;
        false
    });
    assert_eq!(not_sent(&mut drive).len(), targets.len());
    assert_eq!(drive.stats().questions, 3 * targets.len() as u64);
    assert!(turns < 10_000, "{turns} turns in 20 s");
    assert!(busiest(&mut drive, Duration::from_secs(1)) <= 102);
}

#[test]
fn the_interface_limit_holds_the_sum_and_tasks_hold_theirs() {
    let targets: Vec<IpAddr> = (0..6_000).map(|n: u32| v4(198, 18, (n >> 8) as u8, n as u8)).collect();
    let mut drive = drive(world(), pps(2_500));
    for id in 1..=3 {
        drive.add(at(0), TaskId(id), task(&targets, pps(if id == 3 { 100 } else { 5_000 }), Weight::Bulk));
    }
    run_for(&mut drive, 0, 2_000);
    let stats = drive.stats();
    assert!((4_990..=5_001).contains(&stats.sent_packets), "{}", stats.sent_packets);
    let counts: Vec<u64> = stats.tasks.iter().map(|(_, task)| task.sent_packets).collect();
    assert!((198..=201).contains(&counts[2]) && counts[0].abs_diff(counts[1]) <= 2, "{counts:?}");
    assert_eq!(stats.tasks.iter().map(|(_, task)| task.clipped).collect::<Vec<_>>(), [true, true, false]);
    assert!(busiest(&mut drive, Duration::from_millis(1)) <= 4);
    assert!(busiest(&mut drive, Duration::from_millis(100)) <= 250 + 26);
}

#[test]
fn an_interactive_task_is_served_at_once() {
    let many: Vec<IpAddr> = (0..20_000).map(|n: u32| v4(198, 18, (n >> 8) as u8, n as u8)).collect();
    let few: Vec<IpAddr> = (0..30).map(|n| v4(198, 19, 0, n)).collect();
    let mut drive = drive(world(), pps(1_000));
    drive.add(at(0), TaskId(1), bulk(&many));
    drive.add(at(0), TaskId(2), bulk(&many));
    run_for(&mut drive, 0, 2_000);
    let before = sent(&mut drive).len();
    drive.add(at(2_000), TaskId(3), task(&few, Limits::UNLIMITED, Weight::Interactive));
    run_for(&mut drive, 2_000, 3_000);
    let after = sent(&mut drive).split_off(before);
    let first = after.iter().position(|dst| *dst == few[0]).unwrap();
    let last = after.iter().position(|dst| *dst == few[29]).unwrap();
    assert!(first <= 1 && last <= 36, "{first}..{last}");
    assert!(last > 30, "the others go on");
}

#[test]
fn a_full_kernel_keeps_order_and_loses_nothing() {
    let targets: Vec<IpAddr> = (0..500).map(|n: u32| v4(198, 18, (n >> 8) as u8, n as u8)).collect();
    let mut drive = drive(world(), Limits::UNLIMITED);
    drive.link().room = 7;
    drive.add(at(0), TaskId(1), bulk(&targets));
    let mut grown = 0;
    sim::run(&mut drive, at(0), at(1_000), |now, drive| {
        if drive.link().room == 0 && now.as_nanos() / MS > grown {
            grown = now.as_nanos() / MS;
            drive.link().room = 13;
        }
        false
    });
    // The first ones waited for the gateway, and so were offered again behind the others.
    let mut expected = targets;
    expected.rotate_left(PARK_AFTER as usize);
    assert!(sent(&mut drive) == expected);
    assert!(drive.stats().send_full > 10);
}

#[test]
fn an_interface_that_goes_down_pauses_and_goes_on() {
    let targets: Vec<IpAddr> = (0..500).map(|n: u32| v4(198, 18, (n >> 8) as u8, n as u8)).collect();
    let mut drive = drive(world(), pps(1_000));
    drive.add(at(0), TaskId(1), bulk(&targets));
    run_for(&mut drive, 0, 200);
    drive.link().up = false;
    run_for(&mut drive, 200, 5_000);
    let before = sent(&mut drive).len();
    assert!((190..=201).contains(&before), "{before}");
    assert!(!drive.stats().up);
    drive.link().up = true;
    run_for(&mut drive, 5_000, 6_000);
    assert_eq!(sent(&mut drive).into_iter().collect::<BTreeSet<_>>(), targets.iter().copied().collect());
    assert_eq!(sent(&mut drive).len(), targets.len(), "each once");
    assert_eq!(not_sent(&mut drive), []);
    let link: Vec<bool> = drive.sink().iter().filter_map(|e| if let DriveEvent::Link { up } = e { Some(*up) } else { None }).collect();
    assert_eq!(link, [false, true]);
    assert!(busiest(&mut drive, Duration::from_millis(100)) <= 112);
}

#[test]
fn routes_that_say_down_pause_at_once() {
    let mut drive = drive(world(), pps(1_000));
    drive.add(at(0), TaskId(1), bulk(&[near(10)]));
    let table = world().routes();
    let interface = super::super::route::Interface { up: false, ..table.interface().clone() };
    drive.set_routes(at(0), Arc::new(RouteTable::new(interface, Vec::new(), &[])));
    drive.link().up = false;
    run_for(&mut drive, 0, 1_000);
    assert!(drive.link().wire.is_empty());
    drive.link().up = true;
    drive.set_routes(at(1_000), table);
    run_for(&mut drive, 1_000, 1_100);
    assert_eq!(sent(&mut drive), [near(10)]);
}

#[test]
fn a_cancelled_task_sends_nothing_more_and_ends_after_its_events() {
    let targets: Vec<IpAddr> = (0..60).map(|n| v4(198, 18, 0, n)).collect();
    let mut drive = drive(world(), Limits::UNLIMITED);
    drive.add(at(0), TaskId(1), bulk(&targets));
    drive.link().room = 21;
    run_for(&mut drive, 0, 50);
    assert_eq!(drive.link().wire.len(), 21);
    drive.cancel(TaskId(1));
    drive.link().room = usize::MAX;
    drive.add(at(50), TaskId(2), bulk(&[v4(198, 19, 0, 1)]));
    run_for(&mut drive, 50, 150);
    assert_eq!(sent(&mut drive).len(), 21);
    assert_eq!(sent(&mut drive)[20], v4(198, 19, 0, 1));
    let events = core::mem::take(drive.sink());
    let ended = events.iter().position(|event| matches!(event, DriveEvent::Ended(TaskId(1), stats) if stats.sent_packets == 20)).unwrap();
    assert!(events.iter().skip(ended).all(|event| !matches!(event, DriveEvent::Task(TaskId(1), _))));
}

#[test]
fn while_nobody_takes_events_nothing_is_sent() {
    let targets: Vec<IpAddr> = (0..200).map(|n| v4(198, 18, 0, n)).collect();
    let scenario = world();
    let routes = scenario.routes();
    let (sink, mut events) = tokio::sync::mpsc::channel(4);
    let mut drive = Drive::new(at(0), SimLink::new(scenario), pps(1_000), routes, sink);
    drive.add(at(0), TaskId(1), bulk(&targets));
    sim::run(&mut drive, at(0), at(5_000), |_, _| false);
    let stuck = drive.stats().sent_packets;
    assert!(stuck < 60, "{stuck}");
    let mut taken = 0;
    sim::run(&mut drive, at(5_000), at(7_000), |_, _| {
        while events.try_recv().is_ok() {
            taken += 1;
        }
        false
    });
    assert_eq!((taken, drive.stats().tasks[0].1.sent_packets), (200, 200));
}

#[test]
fn a_lower_limit_counts_from_now_on() {
    let targets: Vec<IpAddr> = (0..5_000).map(|n: u32| v4(198, 18, (n >> 8) as u8, n as u8)).collect();
    let mut drive = drive(world(), pps(2_000));
    drive.add(at(0), TaskId(1), bulk(&targets));
    run_for(&mut drive, 0, 1_000);
    let before = drive.stats().sent_packets;
    drive.set_limits(at(1_000), pps(100));
    run_for(&mut drive, 1_000, 2_000);
    let slow = drive.stats().sent_packets - before;
    assert!((97..=101).contains(&slow), "{slow}");
    assert_eq!(drive.stats().tasks[0].1.granted, Some(Limits { burst: DEFAULT_BURST, ..pps(100) }));
}

#[test]
fn simulated_hosts_speak_as_the_scenario_says() {
    let rule = HostRule { ports: vec![(80..=80, PortState::Open), (81..=81, PortState::Silent)], ..HostRule::new(near(0), 24) };
    assert_eq!([80, 81, 82].map(|port| rule.port(port)), [PortState::Open, PortState::Silent, PortState::Closed]);
    let half = Scenario { hosts: vec![HostRule { present: 500, ..HostRule::new(v4(198, 18, 0, 0), 16) }], ..Scenario::default() };
    let there = (0..=255).filter(|n| half.host(v4(198, 18, 7, *n)).is_some()).count();
    assert!((90..166).contains(&there), "{there}");
}

#[test]
fn tasks_of_different_weights_and_rates_share_as_they_should() {
    let many: Vec<IpAddr> = (0..20_000).map(|n: u32| v4(198, 18, (n >> 8) as u8, n as u8)).collect();
    let mut drive = drive(world(), pps(2_000));
    drive.add(at(0), TaskId(1), task(&many, Limits::UNLIMITED, Weight::Interactive));
    drive.add(at(0), TaskId(2), task(&many, Limits::UNLIMITED, Weight::Bulk));
    drive.add(at(0), TaskId(3), task(&many, pps(10), Weight::Bulk));
    run_for(&mut drive, 0, 5_000);
    let counts: Vec<u64> = drive.stats().tasks.iter().map(|(_, task)| task.sent_packets).collect();
    // Ten per second go to the one that asks for no more; what is left is shared sixteen to one.
    let left = 10_000 - counts[2];
    assert!((48..=51).contains(&counts[2]), "{counts:?}");
    assert!(counts[0].abs_diff(left * 16 / 17) <= left / 100 && counts[1].abs_diff(left / 17) <= left / 100, "{counts:?}");
    // Without the urgent one the rest is for the other, but for the one that has a limit.
    drive.cancel(TaskId(1));
    run_for(&mut drive, 5_000, 7_000);
    let after: Vec<u64> = drive.stats().tasks.iter().map(|(_, task)| task.sent_packets).collect();
    assert!((3_970..=4_001).contains(&(after[0] - counts[1])) && (18..=21).contains(&(after[1] - counts[2])), "{after:?}");
}

#[test]
fn short_frames_cost_what_they_are_padded_to() {
    let targets: Vec<IpAddr> = (0..2_000).map(|n: u32| v4(198, 18, (n >> 8) as u8, n as u8)).collect();
    // An echo request of 36 bytes makes a frame of 50, which is 60 on the wire.
    let mut drive = drive(world(), Limits::bits(picket_wire::units::BitsPerSecond::new(480_000).unwrap()));
    drive.add(at(0), TaskId(1), bulk(&targets));
    run_for(&mut drive, 0, 1_000);
    let sent = drive.stats().sent_packets;
    assert!((990..=1_001).contains(&sent), "{sent} frames of 60 bytes at 480 kbit/s");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever the kernel and the interface do: each packet leaves exactly once or is reported exactly once, within the limit.
    #[test]
    fn each_packet_leaves_once_or_is_reported_once(
        rate in 200u32..20_000,
        events in proptest::collection::vec((1u64..40, 0u8..4, 1usize..100), 0..30),
        hosts in proptest::collection::vec(any::<u16>(), 1..150),
    ) {
        let addresses: BTreeSet<IpAddr> = hosts.iter().map(|n| match n % 4 {
            0 => near((n >> 8) as u8 | 4),
            1 => v4(198, 18, (n >> 8) as u8, *n as u8),
            2 => v4(198, 19, (n >> 8) as u8, *n as u8),
            _ => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 7, *n)),
        }).collect();
        let targets: Vec<IpAddr> = addresses.into_iter().collect();
        let mut drive = drive(world(), pps(rate));
        let spec = TaskSpec { gate: Arc::new(|dst: IpAddr| !matches!(dst, IpAddr::V4(v4) if v4.octets()[1] == 19)), ..bulk(&targets) };
        drive.add(at(0), TaskId(1), spec);
        let mut now = 0;
        for (wait, what, room) in events {
            match what {
                0 => drive.link().up = !drive.link().up,
                _ => drive.link().room = room,
            }
            run_for(&mut drive, now, now + wait);
            now += wait;
        }
        drive.link().up = true;
        drive.link().room = usize::MAX;
        run_for(&mut drive, now, now + 20_000);
        let left = sent(&mut drive);
        let reported: Vec<IpAddr> = not_sent(&mut drive).into_iter().map(|(token, _)| targets[token as usize]).collect();
        let mut all: Vec<IpAddr> = left.iter().chain(&reported).copied().collect();
        all.sort();
        prop_assert_eq!(&all, &targets);
        prop_assert!(left.iter().all(|dst| !matches!(dst, IpAddr::V4(v4) if v4.octets()[1] == 19)));
        for ms in [1u64, 10, 100] {
            let bound = u64::from(rate) * (ms + 10) / 1_000 + 1;
            // A frame takes 0.8 µs of the simulated wire after it was paced.
            prop_assert!(busiest(&mut drive, Duration::from_micros(ms * 1_000 - 60)) as u64 <= bound);
        }
    }
}

#[test]
fn batches_are_short_but_where_the_processor_is_what_limits() {
    let targets: Vec<IpAddr> = (0..5_000_u32).map(|n| v4(198, 18, (n >> 8) as u8, n as u8)).collect();
    let mut drive = drive(world(), pps(100_000));
    drive.add(at(0), TaskId(1), task(&targets, Limits::UNLIMITED, Weight::Bulk));
    // The gateway is asked for, what was late by then caught up; then all is on schedule.
    let settled = sim::run(&mut drive, at(0), at(15), |_, _| false);
    let (mut before, mut longest) = (drive.link().wire.len(), 0);
    let now = sim::run(&mut drive, settled, at(25), |_, drive| {
        let sent = drive.link().wire.len();
        longest = longest.max(sent - core::mem::replace(&mut before, sent));
        false
    });
    assert!((1..=4).contains(&longest), "{longest} frames in one turn on schedule");
    // Held up: long ones, and short ones again when the millisecond's share is nearly used up.
    let late = now + Duration::from_millis(4);
    let mut sizes = Vec::new();
    while sizes.last() != Some(&0) {
        drive.turn(late);
        let sent = drive.link().wire.len();
        sizes.push(sent - core::mem::replace(&mut before, sent));
    }
    let (long, short) = sizes.split_at(sizes.iter().position(|size| *size < 10).unwrap());
    assert!(long.len() >= 8 && short.iter().all(|size| *size <= 4), "{sizes:?}");
    // What was sent together does not stay together while the rest is caught up.
    let mut longest = 0;
    sim::run(&mut drive, late, late + Duration::from_millis(5), |_, drive| {
        let sent = drive.link().wire.len();
        longest = longest.max(sent - core::mem::replace(&mut before, sent));
        false
    });
    assert!((1..=4).contains(&longest), "{longest} frames in one turn where the spacing is waited for");
}

#[test]
fn a_slow_task_keeps_nobody_awake_whatever_the_interface_may_send() {
    let targets: Vec<IpAddr> = (0..100).map(|n: u8| v4(198, 18, 0, n)).collect();
    let mut drive = drive(world(), pps(100_000));
    assert_eq!(drive.tolerance(), None, "nothing is sent");
    drive.add(at(0), TaskId(1), task(&targets, pps(1_000), Weight::Bulk));
    assert_eq!(drive.tolerance(), None);
    drive.add(at(0), TaskId(2), task(&targets, Limits::UNLIMITED, Weight::Bulk));
    assert_eq!(drive.tolerance(), drive.pacer.tolerance());
    assert!(drive.tolerance().is_some(), "this one is fast");
}

#[test]
fn a_link_listens_while_there_is_work_and_rests_after_it() {
    let mut drive = drive(world(), pps(1_000));
    drive.add(at(0), TaskId(1), bulk(&[near(7)]));
    run_for(&mut drive, 0, 20_000);
    assert!(drive.link().is_listening(), "a task that waits wants to hear");
    assert_eq!(answers(&mut drive), BTreeSet::from([near(7)]));
    drive.cancel(TaskId(1));
    run_for(&mut drive, 20_000, 29_000);
    assert!(drive.link().is_listening(), "the next job may come soon");
    run_for(&mut drive, 29_000, 31_000);
    assert!(!drive.link().is_listening());
    assert_eq!(drive.turn(at(31_000)), Instant::FAR_FUTURE, "nothing wakes it");
    drive.add(at(40_000), TaskId(2), bulk(&[near(7)]));
    run_for(&mut drive, 40_000, 45_000);
    assert_eq!(answers(&mut drive), BTreeSet::from([near(7)]));
}

#[test]
fn who_cannot_listen_does_not_ask() {
    let mut drive = drive(world(), pps(1_000));
    run_for(&mut drive, 0, 15_000);
    assert!(!drive.link().is_listening(), "nothing has ever run");
    drive.link().deaf = true;
    drive.add(at(15_000), TaskId(1), bulk(&[near(7)]));
    run_for(&mut drive, 15_000, 20_000);
    assert!(drive.link().wire.is_empty());
    drive.link().deaf = false;
    run_for(&mut drive, 20_000, 25_000);
    assert_eq!(answers(&mut drive), BTreeSet::from([near(7)]), "it goes on by itself");
}
