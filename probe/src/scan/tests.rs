//! Whole scans on a simulated network in virtual time: every report is compared with what that network really did.
//!
//! Answers are made by reading the engine's packets with another library (`pnet_packet`), so that an error of ours in a
//! header shows as a scan that finds nothing.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use picket_wire::addr::parse_set;
use picket_wire::job::{ScanOptions, Technique};
use picket_wire::result::{Coverage, NotReached, State};
use picket_wire::space::{Target, TargetSpace, TargetSpec};
use pnet_packet::tcp::{MutableTcpPacket, TcpPacket};
use proptest::prelude::*;

use super::engine::ScanEngine;
use super::report::{ChunkReport, Done, Event, LateReport};
use super::spec::{ChunkLimits, Cut, ScanPlan, SpecError};
use crate::net::engine::{Engine, NotSent, Source};
use crate::net::ports::{RawIdentity, SourcePorts};
use crate::net::time::Instant;
use crate::packet::ip::{self, v4_header, v6_header};

const OWN_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1);
const SOURCE: Source = Source { v4: Some(OWN_V4), v6: Some(OWN_V6) };
const START: Instant = Instant::from_nanos(5_000_000_000);
/// How long a neighbour lookup takes in the simulation.
const LOOKUP: Duration = Duration::from_millis(300);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn identity() -> RawIdentity {
    RawIdentity { source: SOURCE, base_port: SourcePorts::default().base(0), ports: SourcePorts::default(), key: *b"sixteen byte key" }
}

fn space(include: &str, ports: Option<&str>) -> Arc<TargetSpace> {
    let ports = ports.map(|ports| ports.parse().unwrap());
    let spec = TargetSpec { include: parse_set(include).unwrap(), exclude: parse_set("").unwrap(), ports, seed: 77 };
    Arc::new(TargetSpace::new(&spec).unwrap())
}

fn plan(space: &Arc<TargetSpace>, technique: Technique, attempts: u8) -> ScanPlan {
    ScanPlan::new(Arc::clone(space), 0, space.len(), ScanOptions { technique, attempts }).unwrap()
}

/// SplitMix64: the simulation's dice.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// What the simulated network does with packets for a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Positive,
    Reset,
    Silent,
    Unreachable {
        code: u8,
        short_quote: bool,
    },
    /// An ICMP error first, then the target answers after all.
    Contradiction,
    Refused,
    NoRoute,
    NoNeighbour,
    /// The neighbour is found after [`LOOKUP`]; then positive.
    Slow,
    /// The link fails for the first attempt.
    Flaky,
}

impl Fate {
    fn of(seed: u64, target: Target) -> Fate {
        let mut dice = Dice(seed ^ u64::from(target.port.unwrap_or(0)) << 20);
        match target.addr {
            IpAddr::V4(a) => dice.0 ^= u64::from(a.to_bits()),
            IpAddr::V6(a) => dice.0 ^= a.to_bits() as u64 ^ 0x66,
        }
        let by_port = dice.next() % 100;
        // What concerns the whole host depends on the address alone.
        let mut host = Dice(seed.rotate_left(17));
        match target.addr {
            IpAddr::V4(a) => host.0 ^= u64::from(a.to_bits()),
            IpAddr::V6(a) => host.0 ^= a.to_bits() as u64 ^ 0x66,
        }
        match host.next() % 100 {
            0..4 => return Fate::Refused,
            4..7 => return Fate::NoRoute,
            7..12 => return Fate::NoNeighbour,
            12..16 => return Fate::Slow,
            _ => {}
        }
        match by_port {
            0..25 => Fate::Positive,
            25..50 => Fate::Reset,
            50..80 => Fate::Silent,
            80..88 => Fate::Unreachable { code: [0, 1, 3, 9, 10, 13][(by_port % 6) as usize], short_quote: by_port.is_multiple_of(2) },
            88..92 => Fate::Contradiction,
            _ => Fate::Flaky,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Weather {
    loss: u64,
    duplicates: u64,
    delay: (u64, u64),
    rate: u64,
    noise: u64,
}

const FAIR: Weather = Weather { loss: 0, duplicates: 0, delay: (200, 3_000), rate: 20_000, noise: 0 };

/// What was done to a target.
#[derive(Debug, Clone, Default)]
struct Traffic {
    left: u32,
    offered: u32,
    /// Answers delivered: when, what, the round trip.
    delivered: Vec<(Instant, State, Duration)>,
}

/// Whose answer it is, what it says, and when the probe that it answers was sent.
type Truth = (Target, State, Instant);

struct World {
    technique: Technique,
    fates: Box<dyn Fn(Target) -> Fate>,
    weather: Weather,
    dice: Dice,
    lookups: HashMap<IpAddr, Instant>,
    flying: BTreeMap<(Instant, u64), (Option<Truth>, Vec<u8>)>,
    count: u64,
    traffic: HashMap<Target, Traffic>,
}

impl World {
    fn new(technique: Technique, seed: u64, weather: Weather) -> Self {
        Self::with(technique, weather, move |target| Fate::of(seed, target))
    }

    fn with(technique: Technique, weather: Weather, fates: impl Fn(Target) -> Fate + 'static) -> Self {
        let dice = Dice(99);
        Self {
            technique,
            fates: Box::new(fates),
            weather,
            dice,
            lookups: HashMap::new(),
            flying: BTreeMap::new(),
            count: 0,
            traffic: HashMap::new(),
        }
    }

    fn fly(&mut self, at: Instant, truth: Option<Truth>, bytes: Vec<u8>) {
        self.count += 1;
        self.flying.insert((at, self.count), (truth, bytes));
    }

    /// Takes a packet onto the wire, or says why not.
    fn send(&mut self, now: Instant, packet: &[u8]) -> Result<(), NotSent> {
        let sent = Sent::read(packet);
        let traffic = self.traffic.entry(sent.target).or_default();
        traffic.offered += 1;
        let fate = (self.fates)(sent.target);
        match fate {
            Fate::Refused => return Err(NotSent::Refused),
            Fate::NoRoute => return Err(NotSent::NoRoute),
            Fate::NoNeighbour | Fate::Slow => {
                let asked = *self.lookups.entry(sent.target.addr).or_insert(now);
                match (fate, now.saturating_since(asked) < LOOKUP) {
                    (_, true) => return Err(NotSent::NeighbourPending),
                    (Fate::NoNeighbour, false) => return Err(NotSent::NoNeighbour),
                    _ => {}
                }
            }
            Fate::Flaky if traffic.offered == 1 => return Err(NotSent::LinkError),
            _ => {}
        }
        traffic.left += 1;
        let repeated = traffic.left > 1;
        match fate {
            Fate::Silent => {}
            Fate::Reset if self.technique == Technique::Syn => self.answer(now, &sent, State::Closed, sent.reset()),
            Fate::Unreachable { code, short_quote } => self.unreachable(now, &sent, code, short_quote),
            Fate::Contradiction if !repeated => self.unreachable(now, &sent, 1, false),
            _ if self.technique == Technique::Syn => self.answer(now, &sent, State::Open, sent.syn_ack()),
            _ => self.answer(now, &sent, State::Up, sent.echo_reply()),
        }
        if self.dice.percent(self.weather.noise) {
            self.noise(now, &sent);
        }
        Ok(())
    }

    fn unreachable(&mut self, now: Instant, sent: &Sent, code: u8, short_quote: bool) {
        let (icmp_type, icmp_code) = if sent.target.addr.is_ipv4() { (3, code) } else { (1, code % 7) };
        let bytes = sent.error(icmp_type, icmp_code, short_quote);
        self.answer(now, sent, State::FilteredBy { icmp_type, icmp_code, from: Sent::router(sent.target.addr) }, bytes);
    }

    fn answer(&mut self, now: Instant, sent: &Sent, state: State, bytes: Vec<u8>) {
        let copies = 1 + u64::from(self.dice.percent(self.weather.duplicates));
        for _ in 0..copies {
            if self.dice.percent(self.weather.loss) {
                continue;
            }
            let (least, most) = self.weather.delay;
            let delay = Duration::from_micros(least + self.dice.below(most - least + 1));
            self.fly(now + delay, Some((sent.target, state, now)), bytes.clone());
        }
    }

    /// Packets that look like answers and are not: wrong cookie, wrong port, cut, damaged, random.
    fn noise(&mut self, now: Instant, sent: &Sent) {
        let mut bytes = match self.dice.below(4) {
            0 => sent.syn_ack(),
            1 => sent.reset(),
            2 => sent.error(3, 1, true),
            _ => sent.echo_reply(),
        };
        match self.dice.below(3) {
            0 => {
                let to = self.dice.below(bytes.len() as u64) as usize;
                bytes.truncate(to);
            }
            1 => bytes.iter_mut().for_each(|byte| *byte = self.dice.next() as u8),
            // The acknowledgement, the quoted sequence number and the cookie in an echo all lie beyond these offsets.
            _ => {
                let (from, end) = sent.cookie_bytes(&bytes);
                let at = from + self.dice.below((end - from) as u64) as usize;
                bytes[at] ^= 1 << self.dice.below(8);
            }
        }
        self.fly(now + ms(1), None, bytes);
    }
}

/// A packet of the engine, as another library reads it.
struct Sent {
    bytes: Vec<u8>,
    target: Target,
    header: usize,
}

impl Sent {
    fn read(bytes: &[u8]) -> Sent {
        let (addr, header, protocol): (IpAddr, _, _) = match bytes[0] >> 4 {
            4 => {
                let packet = pnet_packet::ipv4::Ipv4Packet::new(bytes).unwrap();
                assert_eq!((packet.get_source(), packet.get_total_length() as usize), (OWN_V4, bytes.len()));
                assert_eq!(packet.get_checksum(), pnet_packet::ipv4::checksum(&packet));
                (packet.get_destination().into(), 20, packet.get_next_level_protocol().0)
            }
            _ => {
                let packet = pnet_packet::ipv6::Ipv6Packet::new(bytes).unwrap();
                assert_eq!((packet.get_source(), packet.get_payload_length() as usize + 40), (OWN_V6, bytes.len()));
                (packet.get_destination().into(), 40, packet.get_next_header().0)
            }
        };
        let port = (protocol == 6).then(|| TcpPacket::new(&bytes[header..]).unwrap().get_destination());
        Sent { bytes: bytes.to_vec(), target: Target { addr, port }, header }
    }

    fn reply_header(&self, from: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
        match from {
            IpAddr::V4(from) => v4_header(from, OWN_V4, protocol, 57, len as u16).to_vec(),
            IpAddr::V6(from) => v6_header(from, OWN_V6, protocol, 57, len as u16).to_vec(),
        }
    }

    fn tcp(&self, flags: u8, seq: u32) -> Vec<u8> {
        let Some(asked) = TcpPacket::new(&self.bytes[self.header..]) else { return vec![0; 40] };
        let mut segment = vec![0; 20];
        let mut reply = MutableTcpPacket::new(&mut segment).unwrap();
        reply.set_source(asked.get_destination());
        reply.set_destination(asked.get_source());
        reply.set_acknowledgement(asked.get_sequence().wrapping_add(1));
        reply.set_sequence(seq);
        reply.set_data_offset(5);
        reply.set_flags(flags);
        [self.reply_header(self.target.addr, 6, 20), segment].concat()
    }

    fn syn_ack(&self) -> Vec<u8> {
        self.tcp(0x12, 0x1234_5678)
    }

    fn reset(&self) -> Vec<u8> {
        self.tcp(0x14, 0)
    }

    fn echo_reply(&self) -> Vec<u8> {
        let mut message = self.bytes[self.header..].to_vec();
        message[0] = if self.target.addr.is_ipv4() { 0 } else { 129 };
        [self.reply_header(self.target.addr, if self.target.addr.is_ipv4() { 1 } else { 58 }, message.len()), message].concat()
    }

    fn error(&self, icmp_type: u8, icmp_code: u8, short_quote: bool) -> Vec<u8> {
        let quoted = if short_quote { &self.bytes[..self.header + 8] } else { &self.bytes[..] };
        let message = [&[icmp_type, icmp_code, 0, 0, 0, 0, 0, 0], quoted].concat();
        let protocol = if self.target.addr.is_ipv4() { 1 } else { 58 };
        [self.reply_header(Self::router(self.target.addr), protocol, message.len()), message].concat()
    }

    /// Who says that `target` cannot be reached.
    fn router(target: IpAddr) -> IpAddr {
        match target {
            IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 254).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0xfe).into(),
        }
    }

    /// Where, in one of the replies above, every bit is checked.
    fn cookie_bytes(&self, reply: &[u8]) -> (usize, usize) {
        let packet = ip::Packet::parse(reply).unwrap();
        match (packet.protocol(), packet.payload()[0]) {
            // The acknowledgement; its lowest bit is free in a reset.
            (6, _) => (self.header + 8, self.header + 11),
            // The quoted sequence numbers of TCP; of an echo, identifier and sequence number.
            (_, 3 | 1) => (2 * self.header + 8 + 4, 2 * self.header + 8 + 8),
            _ => (self.header + 4, reply.len()),
        }
    }
}

struct Outcome {
    chunks: Vec<(Instant, ChunkReport)>,
    late: HashMap<u64, LateReport>,
    done: Done,
    ended: Instant,
    traffic: HashMap<Target, Traffic>,
    most_open: u64,
}

/// The loop: sends at the weather's rate, delivers, wakes up, until the engine is done.
fn run(mut engine: ScanEngine, mut world: World, cut: Option<(Instant, Cut)>) -> Outcome {
    let mut now = START;
    let mut next_send = START;
    let gap = Duration::from_nanos(1_000_000_000 / world.weather.rate);
    let (mut chunks, mut most_open, mut reported): (Vec<(Instant, ChunkReport)>, u64, Option<u64>) = (Vec::new(), 0, None);
    let mut late = HashMap::new();
    let mut buf = [0; 1500];
    let mut hungry = true;
    let first = engine.next_position();
    for _ in 0..50_000_000u64 {
        while let Some(event) = engine.poll_event() {
            match event {
                Event::Chunk(report) => {
                    assert_eq!(report.from, reported.unwrap_or(first), "reports follow on each other");
                    reported = Some(report.to);
                    chunks.push((now, report));
                }
                Event::Hosts(_) | Event::Proxy(_) | Event::Paths(_) => panic!("this network has no neighbours, and nothing is traced"),
                Event::Late(report) => {
                    assert!(reported.is_some_and(|reported| report.position < reported), "late means after the report");
                    assert_eq!(late.insert(report.position, report), None, "an answer counts once");
                }
                Event::Done(done) => {
                    assert_eq!(done.next, reported.unwrap_or(first));
                    assert!(engine.poll_transmit(now, &mut buf).is_none() && engine.poll_event().is_none());
                    return Outcome { chunks, late, done, ended: now, traffic: world.traffic, most_open };
                }
            }
        }
        most_open = most_open.max(engine.next_position() - reported.unwrap_or(first));
        if let Some((at, how)) = cut
            && now >= at
        {
            engine.cut(now, how);
            continue;
        }
        if let Some((&(at, id), _)) = world.flying.first_key_value()
            && at <= now
        {
            let (truth, bytes) = world.flying.remove(&(at, id)).unwrap();
            if let Some((target, state, sent)) = truth {
                world.traffic.get_mut(&target).unwrap().delivered.push((now, state, now.saturating_since(sent)));
            }
            engine.on_packet(now, &bytes);
            hungry = true;
            continue;
        }
        if engine.poll_timeout().is_some_and(|(at, _)| at <= now) {
            engine.on_timeout(now);
            assert!(engine.poll_timeout().is_none_or(|(at, why)| at > now || panic!("{why} is still due")));
            hungry = true;
            continue;
        }
        if hungry && next_send <= now {
            match engine.poll_transmit(now, &mut buf) {
                None => hungry = false,
                Some(transmit) => {
                    assert_eq!(Sent::read(&buf[..transmit.len]).target.addr, transmit.dst);
                    match world.send(now, &buf[..transmit.len]) {
                        Ok(()) => next_send = now + gap,
                        Err(why) => engine.on_not_sent(now, transmit.token, why),
                    }
                }
            }
            continue;
        }
        let flying = world.flying.first_key_value().map(|((at, _), _)| *at);
        let send = hungry.then_some(next_send);
        let next = [flying, send, engine.poll_timeout().map(|(at, _)| at), cut.map(|(at, _)| at)].into_iter().flatten().min();
        now = next.expect("an engine that is not done waits for something").max(now);
    }
    panic!("the scan does not end");
}

/// Compares every position of every report with what the network did.
fn check(space: &TargetSpace, outcome: &Outcome, attempts: u8, fates: impl Fn(Target) -> Fate) -> Coverage {
    let mut total = Coverage::default();
    for (at, report) in &outcome.chunks {
        let coverage = report.coverage();
        assert!(coverage.adds_up() && coverage.asked == report.to - report.from);
        total += coverage;
        let answers: HashMap<u64, _> = report.answers.iter().map(|answer| (answer.offset, answer)).collect();
        assert!(report.answers.is_sorted_by_key(|answer| answer.offset));
        let refused: Vec<u64> = report.refused.iter().collect();
        let unreached: HashMap<u64, NotReached> =
            report.not_reached.iter().flat_map(|(why, runs)| runs.iter().map(|o| (o, *why))).collect();
        for offset in 0..coverage.asked {
            let target = space.target(report.from + offset).unwrap();
            let traffic = outcome.traffic.get(&target).cloned().unwrap_or_default();
            let context = || format!("{target:?} {:?} {traffic:?} reported {at:?}", fates(target));
            assert!(traffic.left <= u32::from(attempts), "{}", context());
            let in_time: Vec<_> = traffic.delivered.iter().filter(|(when, ..)| when <= at).collect();
            if let Some(answer) = answers.get(&offset) {
                // The first one counts, but an answer of the target itself replaces hearsay.
                assert!(!outcome.late.contains_key(&(report.from + offset)), "told twice: {}", context());
                let hard = in_time.iter().find(|(_, state, _)| !state.is_hearsay());
                let (_, state, rtt) = hard.or(in_time.first()).unwrap_or_else(|| panic!("false answer: {}", context()));
                assert_eq!(answer.state, *state, "{}", context());
                assert_eq!(answer.rtt.as_micros().abs_diff(rtt.as_micros()), 0, "{}", context());
                assert_eq!(answer.ttl, 57);
                continue;
            }
            let undelivered = in_time.iter().all(|(when, ..)| when == at);
            assert!(undelivered, "lost answer: {}", context());
            let after = traffic.delivered.iter().find(|(when, ..)| when >= at);
            match (outcome.late.get(&(report.from + offset)), after) {
                (Some(late), Some((_, state, rtt))) => {
                    assert_eq!((late.state, late.rtt, late.ttl), (*state, *rtt, 57), "{}", context());
                    total.silent -= 1;
                    total.add_answers(late.state, 1);
                }
                (None, Some((when, ..))) => assert!(*when >= outcome.ended, "a late answer is lost: {}", context()),
                (Some(_), None) => panic!("false late answer: {}", context()),
                (None, None) => {}
            }
            if refused.contains(&offset) {
                assert_eq!(fates(target), Fate::Refused);
                assert_eq!(traffic.left, 0);
                continue;
            }
            match (unreached.get(&offset), fates(target)) {
                (Some(NotReached::Stopped), _) => {}
                (None, _) => assert!(traffic.left > 0, "silent, but never asked: {}", context()),
                (Some(NotReached::NoNeighbour), Fate::NoNeighbour) | (Some(NotReached::NoRoute), Fate::NoRoute) => {
                    assert_eq!(traffic.left, 0)
                }
                (Some(NotReached::LinkError), Fate::Flaky) => assert_eq!((traffic.left, attempts), (0, 1)),
                _ => panic!("wrong reason {:?}: {}", unreached.get(&offset), context()),
            }
            if unreached.is_empty() {
                let asked = if fates(target) == Fate::Flaky { attempts - 1 } else { attempts };
                assert_eq!(traffic.left, u32::from(asked), "silent, but not asked often enough: {}", context());
            }
        }
    }
    let left: u64 = outcome.traffic.values().map(|traffic| u64::from(traffic.left)).sum();
    assert_eq!(outcome.done.stats.sent_packets, left);
    total
}

fn scan(targets: &str, ports: Option<&str>, technique: Technique, attempts: u8, seed: u64, weather: Weather) -> (Coverage, Outcome) {
    let space = space(targets, ports);
    let engine = ScanEngine::new(&plan(&space, technique, attempts), identity()).unwrap();
    let outcome = run(engine, World::new(technique, seed, weather), None);
    let coverage = check(&space, &outcome, attempts, |target| Fate::of(seed, target));
    assert_eq!((coverage.asked, outcome.done.next), (space.len(), space.len()));
    assert_eq!(outcome.chunks.iter().map(|(_, report)| report.sent_packets).sum::<u64>(), outcome.done.stats.sent_packets);
    assert_eq!(outcome.chunks.iter().map(|(_, report)| report.sent_bytes).sum::<u64>(), outcome.done.stats.sent_bytes);
    (coverage, outcome)
}

const BOTH: &str = "198.18.0.0/26,2001:db8::/122";

#[test]
fn every_state_of_a_fair_network_is_found() {
    let (coverage, outcome) = scan(BOTH, Some("1-40"), Technique::Syn, 2, 1, FAIR);
    let counts = [coverage.open, coverage.closed, coverage.filtered, coverage.silent, coverage.refused, coverage.not_reached];
    assert!(counts.iter().all(|count| *count > 100), "{coverage:?}");
    assert_eq!((outcome.done.stats.late, outcome.done.stats.foreign), (0, 0));
    // Without loss, what the network would have answered is what was found.
    let space = space(BOTH, Some("1-40"));
    let expected = |fate: Fate| (0..space.len()).filter(|p| Fate::of(1, space.target(*p).unwrap()) == fate).count() as u64;
    assert_eq!(coverage.open, expected(Fate::Positive) + expected(Fate::Slow) + expected(Fate::Flaky));
    assert_eq!((coverage.closed, coverage.refused), (expected(Fate::Reset), expected(Fate::Refused)));
}

#[test]
fn hosts_are_found_by_echo() {
    let (coverage, _) = scan("198.18.0.0/23,2001:db8::/120", None, Technique::Echo, 2, 2, FAIR);
    assert!(coverage.up > 300 && coverage.filtered > 30 && coverage.silent > 100 && coverage.open == 0, "{coverage:?}");
}

#[test]
fn no_answer_is_lost_on_a_bad_network() {
    let bad = Weather { loss: 30, duplicates: 30, delay: (100, 90_000), rate: 50_000, noise: 20 };
    for seed in 0..4 {
        let (coverage, outcome) = scan(BOTH, Some("1-30"), Technique::Syn, 5, seed, bad);
        assert!(outcome.done.stats.duplicates > 100 && coverage.open > 300, "{coverage:?} {:?}", outcome.done.stats);
        scan("198.18.0.0/24,2001:db8::/121", None, Technique::Echo, 4, seed, bad);
    }
}

#[test]
fn the_wait_at_the_end_follows_the_round_trips() {
    let scan_took = |delay: u64, fate: fn(u16) -> Fate| {
        let space = space("198.18.0.1", Some("1-1000"));
        let engine = ScanEngine::new(&plan(&space, Technique::Syn, 2), identity()).unwrap();
        let weather = Weather { delay: (delay, delay + 100), rate: 100_000, ..FAIR };
        let fates = move |target: Target| fate(target.port.unwrap());
        let outcome = run(engine, World::with(Technique::Syn, weather, fates), None);
        check(&space, &outcome, 2, fates);
        outcome.ended.saturating_since(START)
    };
    let all_answer = |_| Fate::Reset;
    let some_silent = |port| if port % 18 == 0 { Fate::Silent } else { Fate::Reset };
    // 10 ms of sending. No silent target: no wait but for the last answer.
    assert!(scan_took(1_000, all_answer) < ms(12));
    // Silent ones are asked again after 25 ms, are given up 100 ms later, and do not wait for a second.
    let fast = scan_took(1_000, some_silent);
    assert!(fast > ms(125) && fast < ms(140), "{fast:?}");
    let slow = scan_took(250_000, some_silent);
    assert!(slow > ms(750) && slow < ms(1400), "{slow:?}");
    // Nothing ever answers: the initial wait and twice of it.
    let dark = scan_took(1_000, |_| Fate::Silent);
    assert!(dark > ms(3000) && dark < ms(3030), "{dark:?}");
}

#[test]
fn memory_is_bounded_whatever_the_space() {
    let space = space("10.0.0.0/8", Some("1-65535"));
    let mut plan =
        ScanPlan::new(Arc::clone(&space), 1 << 39, (1 << 39) + 100_000, ScanOptions { technique: Technique::Syn, attempts: 2 }).unwrap();
    plan.chunks = ChunkLimits { positions: 1000, memory: 8 * 20_000, ..ChunkLimits::default() };
    let fate = |_| Fate::Silent;
    let engine = ScanEngine::new(&plan, identity()).unwrap();
    let outcome = run(engine, World::with(Technique::Syn, Weather { rate: 1_000_000, ..FAIR }, fate), None);
    let coverage = check(&space, &outcome, 2, fate);
    assert_eq!(coverage.silent, 100_000);
    assert!(outcome.most_open <= 20_000, "{}", outcome.most_open);
}

#[test]
fn slow_scans_report_by_the_second() {
    let space = space("198.18.0.0/28", Some("1-20"));
    let fate = |_| Fate::Reset;
    let engine = ScanEngine::new(&plan(&space, Technique::Syn, 2), identity()).unwrap();
    let outcome = run(engine, World::with(Technique::Syn, Weather { rate: 50, ..FAIR }, fate), None);
    check(&space, &outcome, 2, fate);
    let longest = outcome.chunks.iter().map(|(_, report)| report.took()).max().unwrap();
    assert!(outcome.chunks.len() == 7 && longest <= ms(1010), "{} {longest:?}", outcome.chunks.len());
}

#[test]
fn a_neighbour_that_never_shows_up_is_given_up() {
    let space = space("198.18.0.0/30", Some("1-10"));
    let mut engine = ScanEngine::new(&plan(&space, Technique::Syn, 2), identity()).unwrap();
    let (mut now, mut buf, mut offers) = (START, [0; 1500], 0u32);
    let report = loop {
        if let Some(Event::Chunk(report)) = engine.poll_event() {
            break report;
        }
        if let Some(transmit) = engine.poll_transmit(now, &mut buf) {
            offers += 1;
            engine.on_not_sent(now, transmit.token, NotSent::NeighbourPending);
        } else if let Some((at, why)) = engine.poll_timeout() {
            assert!(at > now || at == Instant::ZERO, "{why} spins");
            now = at.max(now);
            engine.on_timeout(now);
        }
    };
    assert_eq!(report.coverage().not_reached, 40);
    assert_eq!(report.not_reached.iter().map(|(why, _)| *why).collect::<Vec<_>>(), [NotReached::NoNeighbour]);
    assert!(offers < 40 * 25 && now.saturating_since(START) < Duration::from_secs(12), "{offers} {now:?}");
}

#[test]
fn a_family_without_a_source_address_is_not_reached() {
    let space = space(BOTH, Some("1-40"));
    let source = Source { v4: None, ..SOURCE };
    let engine = ScanEngine::new(&plan(&space, Technique::Syn, 2), RawIdentity { source, ..identity() }).unwrap();
    let fate = |target: Target| if target.addr.is_ipv4() { Fate::NoRoute } else { Fate::Positive };
    let outcome = run(engine, World::with(Technique::Syn, FAIR, fate), None);
    let coverage = check(&space, &outcome, 2, fate);
    assert_eq!((coverage.open, coverage.not_reached), (64 * 40, 64 * 40));
}

#[test]
fn answers_of_another_run_are_not_ours() {
    let space = space("198.18.0.0/24", Some("80"));
    let plan = plan(&space, Technique::Syn, 1);
    let mut ours = ScanEngine::new(&plan, identity()).unwrap();
    let mut theirs = ScanEngine::new(&plan, RawIdentity { key: [7; 16], ..identity() }).unwrap();
    let (mut buf, mut other) = ([0; 1500], [0; 1500]);
    while let Some(transmit) = theirs.poll_transmit(START, &mut other) {
        ours.poll_transmit(START, &mut buf);
        let sent = Sent::read(&other[..transmit.len]);
        for reply in [sent.syn_ack(), sent.reset(), sent.error(3, 13, false)] {
            ours.on_packet(START + ms(1), &reply);
        }
        theirs.on_packet(START + ms(1), &sent.syn_ack());
    }
    assert_eq!((ours.stats().answers, ours.stats().foreign, theirs.stats().answers), (0, 0, 256));
}

#[test]
fn wrong_specs_say_what_is_wrong() {
    let ports = space("198.18.0.0/30", Some("1-10"));
    let hosts = space("198.18.0.0/30", None);
    let error = |space: &Arc<TargetSpace>, from, to, technique, attempts| {
        ScanPlan::new(Arc::clone(space), from, to, ScanOptions { technique, attempts }).unwrap_err().to_string()
    };
    assert_eq!(error(&ports, 0, 41, Technique::Syn, 2), "positions 0 to 41 are no part of a target space of 40");
    assert_eq!(error(&ports, 5, 5, Technique::Syn, 2), "positions 5 to 5 are no part of a target space of 40");
    assert_eq!(error(&ports, 0, 40, Technique::Syn, 0), "0 attempts: 1 to 10 are possible");
    assert_eq!(error(&ports, 0, 40, Technique::Echo, 1), "technique `echo` has no ports: leave them out");
    assert_eq!(error(&hosts, 0, 4, Technique::Syn, 1), "technique `syn` needs ports");
    let connect = ScanPlan::new(ports, 0, 40, ScanOptions { technique: Technique::Connect, attempts: 1 }).unwrap();
    assert_eq!(ScanEngine::new(&connect, identity()).err(), Some(SpecError::NotRaw(Technique::Connect)));
    assert!(SourcePorts::new(65_530, 10).is_err() && SourcePorts::new(1, 9).is_err() && SourcePorts::new(65_526, 10).is_ok());
    let bases = [0, 1, 408, 409].map(|engine| SourcePorts::default().base(engine));
    assert_eq!(bases, [61440, 61450, 65520, 61440]);
}

fn weather() -> impl Strategy<Value = Weather> {
    (0u64..60, 0u64..60, 50u64..5_000, 0u64..400_000, 300u64..300_000, 0u64..40)
        .prop_map(|(loss, duplicates, least, more, rate, noise)| Weather { loss, duplicates, delay: (least, least + more), rate, noise })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn reports_are_what_the_network_did(seed: u64, weather in weather(), attempts in 1u8..=10, echo: bool, positions in 1u32..2000, span in 1u64..1500) {
        let technique = if echo { Technique::Echo } else { Technique::Syn };
        let space = space("198.18.0.0/25,2001:db8::/121", (!echo).then_some("1-9"));
        let mut plan = plan(&space, technique, attempts);
        plan.chunks = ChunkLimits { positions, span: ms(span), ..ChunkLimits::default() };
        let outcome = run(ScanEngine::new(&plan, identity()).unwrap(), World::new(technique, seed, weather), None);
        let coverage = check(&space, &outcome, attempts, |target| Fate::of(seed, target));
        prop_assert_eq!(coverage.asked, space.len());
        prop_assert_eq!(outcome.done.next, space.len());
    }

    #[test]
    fn a_cut_scan_claims_nothing_half_done(seed: u64, weather in weather(), attempts in 1u8..=4, at in 0u64..3000, resumable: bool, positions in 1u32..3000) {
        let space = space("198.18.0.0/25,2001:db8::/121", Some("1-9"));
        let mut plan = plan(&space, Technique::Syn, attempts);
        plan.chunks.positions = positions;
        let how = if resumable { Cut::Resumable } else { Cut::Final };
        let engine = ScanEngine::new(&plan, identity()).unwrap();
        let outcome = run(engine, World::new(Technique::Syn, seed, weather), Some((START + ms(at), how)));
        let fates = |target| Fate::of(seed, target);
        let coverage = check(&space, &outcome, attempts, fates);
        prop_assert_eq!(coverage.asked, outcome.done.next);
        if resumable {
            prop_assert!(outcome.chunks.iter().all(|(_, report)| report.not_reached.iter().all(|(why, _)| *why != NotReached::Stopped)));
        } else {
            prop_assert_eq!(outcome.done.next, outcome.done.stats.begun);
        }
        if outcome.done.next < space.len() {
            // Another engine goes on where this one ended, and together they cover everything once.
            let rest = ScanPlan::new(Arc::clone(&space), outcome.done.next, space.len(), ScanOptions { technique: Technique::Syn, attempts }).unwrap();
            let rest = run(ScanEngine::new(&rest, identity()).unwrap(), World::new(Technique::Syn, seed, weather), None);
            prop_assert_eq!(coverage.asked + check(&space, &rest, attempts, fates).asked, space.len());
        }
    }

    #[test]
    fn hostile_packets_never_match_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), at in 0usize..64, value: u8, echo: bool) {
        let technique = if echo { Technique::Echo } else { Technique::Syn };
        let space = space("198.18.0.7,2001:db8::7", (!echo).then_some("80"));
        let mut engine = ScanEngine::new(&plan(&space, technique, 1), identity()).unwrap();
        let mut buf = [0; 1500];
        engine.on_packet(START, &bytes);
        let transmit = engine.poll_transmit(START, &mut buf).unwrap();
        engine.on_packet(START, &bytes);
        prop_assert_eq!(engine.stats().answers, 0);
        let sent = Sent::read(&buf[..transmit.len]);
        for mut reply in [sent.syn_ack(), sent.reset(), sent.echo_reply(), sent.error(3, 13, false), sent.error(1, 4, true)] {
            if let Some(byte) = reply.get_mut(at) {
                *byte = value;
            }
            engine.on_packet(START + ms(1), &reply);
            engine.on_packet(START + ms(1), &buf[..transmit.len]);
        }
    }
}
