//! Link discovery as an [`Engine`]: rounds of all nodes, questions for guesses, and what is heard meanwhile.
//!
//! **Invariant:** memory and packets are bounded by [`HOSTS_MAX`] and [`QUESTIONS_MAX`], whatever arrives.

use core::hash::Hasher;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use picket_wire::host::{HardwareAddress, HostSeen, SeenBy};
use picket_wire::job::{LINK_ATTEMPTS, LINK_QUESTIONS_MAX};
use picket_wire::result::EXTRAS_MAX;
use siphasher::sip::SipHasher13;

use super::guess;
use super::{ALL_NODES, Event, LinkPlan, RouterSeen, Summary};
use crate::net::engine::{Engine, NotSent, Transmit};
use crate::net::proxy::{Heard, ProxyWatch};
use crate::net::time::Instant;
use crate::packet::arp::{Arp, Operation};
use crate::packet::eth::Mac;
use crate::packet::icmp::{ECHO_PAYLOAD_LEN, EchoRequest, EchoTemplate, Message};
use crate::packet::ip::Packet;
use crate::packet::mld;
use crate::packet::ndp::{self, Neighbour, RouterAdvert};

/// Most hosts that are told in a run.
pub const HOSTS_MAX: usize = 16_384;
/// Most addresses that are asked for in a run.
pub const QUESTIONS_MAX: usize = LINK_QUESTIONS_MAX as usize;
/// Most routers that are told in a run.
const ROUTERS_MAX: usize = 256;
/// Rounds of all nodes, and the time between them: hosts may have lost the first, or answered too many others at that moment.
const ROUNDS: u16 = LINK_ATTEMPTS as u16;
const BETWEEN_ROUNDS: Duration = Duration::from_millis(500);
/// How often a guess is asked for, and the wait after each: a station that sleeps hears a group with the next beacon.
const ATTEMPTS: u8 = LINK_ATTEMPTS;
const WAIT: Duration = Duration::from_millis(300);
/// Hosts are gathered so long before they are told.
const GATHER: Duration = Duration::from_millis(100);
/// A multicast stays on its link whatever this says.
const HOP_LIMIT: u8 = 1;
/// So that who finds these packets on his network can tell what they are.
const SIGNATURE: [u8; 8] = *b"picket\r\n";
/// In a token: a round of all nodes, not a question.
const ROUND: u64 = 1 << 63;

/// An address that is asked for.
#[derive(Debug, Clone, Copy)]
struct Question {
    addr: Ipv6Addr,
    how: SeenBy,
    /// How often it was asked.
    asked: u8,
    /// Answered, or not to be asked.
    closed: bool,
    /// Made from the key: nobody has it.
    canary: bool,
}

/// An echo request to all nodes that is to be sent, or was.
#[derive(Debug, Clone, Copy)]
struct Round {
    due: Instant,
    source: usize,
    number: u16,
}

/// See the module.
pub struct LinkDiscovery {
    plan: LinkPlan,
    keyed: SipHasher13,
    sources: Vec<(Ipv6Addr, EchoTemplate)>,
    prefixes: Vec<Ipv6Addr>,
    started: Option<Instant>,
    /// The latest time heard of: what is due by then waits for its turn to be sent, not for time.
    seen: Instant,
    rounds: VecDeque<Round>,
    questions: Vec<Question>,
    by_addr: HashMap<Ipv6Addr, usize>,
    to_ask: VecDeque<usize>,
    /// Questions that wait for their answers, the first to give up first: all wait equally long.
    waiting: VecDeque<(Instant, usize)>,
    watch: ProxyWatch<()>,
    stations: BTreeSet<Mac>,
    told: BTreeSet<Ipv6Addr>,
    routers: BTreeSet<Ipv6Addr>,
    /// Hosts to be told, and since when there are any.
    fresh: Vec<HostSeen>,
    fresh_since: Option<Instant>,
    /// Guesses that were answered, told at the end.
    confirmed: BTreeMap<Ipv6Addr, HostSeen>,
    events: VecDeque<Event>,
    summary: Summary,
    over: bool,
}

impl LinkDiscovery {
    /// Makes the engine for a plan.
    pub fn new(plan: LinkPlan) -> Self {
        let template = |source: Ipv6Addr| (source, EchoTemplate::new(None, Some(source), HOP_LIMIT));
        let mut this = Self {
            keyed: SipHasher13::new_with_key(&plan.key),
            sources: plan.sources().into_iter().map(template).collect(),
            prefixes: plan.prefixes(),
            plan,
            started: None,
            seen: Instant::ZERO,
            rounds: VecDeque::new(),
            questions: Vec::new(),
            by_addr: HashMap::new(),
            to_ask: VecDeque::new(),
            waiting: VecDeque::new(),
            watch: ProxyWatch::default(),
            stations: BTreeSet::new(),
            told: BTreeSet::new(),
            routers: BTreeSet::new(),
            fresh: Vec::new(),
            fresh_since: None,
            confirmed: BTreeMap::new(),
            events: VecDeque::new(),
            summary: Summary::default(),
            over: false,
        };
        for prefix in this.prefixes.clone() {
            let nobody = guess::with_identifier(prefix, this.cookie(prefix, 0));
            this.ask_for(nobody, SeenBy::Guessed, true);
        }
        for (addr, mac) in core::mem::take(&mut this.plan.seeds) {
            this.on_known(addr, mac);
        }
        this
    }

    /// Sums so far.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// What an honest answer to a round from `source` repeats, and nobody knows who has not heard it.
    fn cookie(&self, source: Ipv6Addr, number: u16) -> u64 {
        let mut hasher = self.keyed;
        hasher.write(&source.octets());
        hasher.write_u16(number);
        hasher.finish()
    }

    fn request(&self, source: Ipv6Addr, number: u16) -> EchoRequest {
        let cookie = self.cookie(source, number);
        let mut payload = [0; ECHO_PAYLOAD_LEN];
        let (start, end) = payload.split_at_mut(SIGNATURE.len());
        start.copy_from_slice(&SIGNATURE);
        end.copy_from_slice(&cookie.to_be_bytes());
        EchoRequest { dst: ALL_NODES.into(), id: number, seq: cookie as u16, payload }
    }

    fn start(&mut self, now: Instant) {
        if self.started.is_none() {
            self.started = Some(now);
            let each = |number: u16| (0..self.sources.len()).map(move |source| (number, source));
            let rounds = (1..=ROUNDS).flat_map(each);
            self.rounds =
                rounds.map(|(number, source)| Round { due: now + BETWEEN_ROUNDS * u32::from(number - 1), source, number }).collect();
        }
    }

    // What is learnt.

    /// A station is there, with this hardware address.
    fn on_station(&mut self, mac: Mac) {
        if mac.is_unicast() && mac != self.plan.link.mac() && self.stations.len() < HOSTS_MAX && self.stations.insert(mac) {
            self.guess(guess::eui64(mac));
        }
    }

    /// A station is known to have this address.
    fn on_known(&mut self, addr: IpAddr, mac: Mac) {
        self.on_station(mac);
        match addr {
            IpAddr::V4(addr) if self.plan.link.source_for(addr.into()).is_some() => {
                guess::from_v4(addr).into_iter().for_each(|identifier| self.guess(identifier));
            }
            IpAddr::V4(_) => {}
            IpAddr::V6(addr) => {
                self.ask_for(addr, SeenBy::Neighbour, false);
                self.on_identifier(guess::identifier(addr));
            }
        }
    }

    /// A station uses this interface identifier somewhere.
    fn on_identifier(&mut self, identifier: u64) {
        if let Some(mac) = guess::from_eui64(identifier) {
            self.on_station(mac);
        }
        self.guess(identifier);
    }

    /// Somebody may have this identifier under each prefix. The one of all zeros is the routers' anycast (RFC 4291, section 2.6.1).
    fn guess(&mut self, identifier: u64) {
        for at in 0..self.prefixes.len() {
            if let Some(prefix) = self.prefixes.get(at).filter(|_| identifier != 0) {
                self.ask_for(guess::with_identifier(*prefix, identifier), SeenBy::Guessed, false);
            }
        }
    }

    fn ask_for(&mut self, addr: Ipv6Addr, how: SeenBy, canary: bool) {
        let wanted = canary || (self.plan.wants(addr) && !self.told.contains(&addr));
        let on_link = self.plan.link.source_for(addr.into()).is_some();
        if !wanted || !on_link || addr.is_multicast() || self.by_addr.contains_key(&addr) || self.over {
            return;
        }
        if self.questions.len() >= QUESTIONS_MAX {
            self.summary.dropped += 1;
            return;
        }
        self.by_addr.insert(addr, self.questions.len());
        self.to_ask.push_back(self.questions.len());
        self.questions.push(Question { addr, how, asked: 0, closed: false, canary });
    }

    /// A host has shown itself: it is told, and its address hints at others.
    fn on_seen(&mut self, now: Instant, addr: Ipv6Addr, mac: Option<Mac>, how: SeenBy) {
        if addr.is_unspecified() || addr.is_multicast() || !self.is_neighbour(addr) {
            return;
        }
        mac.into_iter().for_each(|mac| self.on_station(mac));
        self.tell(now, HostSeen { addr: addr.into(), mac: mac.map(|mac| HardwareAddress(mac.0)), how });
        self.on_identifier(guess::identifier(addr));
    }

    fn is_neighbour(&self, addr: Ipv6Addr) -> bool {
        self.plan.link.source_for(addr.into()).is_some()
    }

    fn tell(&mut self, now: Instant, host: HostSeen) {
        let IpAddr::V6(addr) = host.addr else { return };
        if !self.plan.wants(addr) || self.told.contains(&addr) || self.over {
            return;
        }
        if self.told.len() >= HOSTS_MAX {
            self.summary.dropped += 1;
            return;
        }
        self.told.insert(addr);
        self.confirmed.remove(&addr);
        self.summary.hosts += 1;
        self.fresh.push(host);
        self.fresh_since.get_or_insert(now);
    }

    fn flush(&mut self) {
        self.fresh_since = None;
        let fresh = core::mem::take(&mut self.fresh);
        self.events.extend(fresh.chunks(EXTRAS_MAX).map(|hosts| Event::Hosts(hosts.to_vec())));
    }

    // What arrives.

    fn on_echo_reply(&mut self, now: Instant, from: Option<Mac>, packet: &[u8]) {
        let Some(packet) = Packet::parse(packet) else { return };
        let Some(Message::EchoReply(echo)) = Message::parse(&packet) else { return };
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (packet.src(), packet.dst()) else { return };
        let ours = self.sources.iter().any(|(source, _)| *source == dst) && (1..=ROUNDS).contains(&echo.id);
        let sent = self.request(dst, echo.id);
        if ours && self.started.is_some() && echo.seq == sent.seq && echo.payload == sent.payload {
            self.on_seen(now, src, from, SeenBy::AllNodes);
        }
    }

    fn on_neighbour(&mut self, now: Instant, from: Option<Mac>, message: Neighbour) {
        let Some(mac) = message.mac.or(from).filter(|mac| message.advert && mac.is_unicast() && *mac != self.plan.link.mac()) else {
            return;
        };
        let asked_from = self.plan.link.source_for(message.target.into());
        if message.solicited && asked_from == Some(IpAddr::V6(message.dst)) {
            self.on_answer(now, message.target, mac);
        } else if !message.solicited && asked_from.is_some() {
            self.on_known(message.target.into(), mac);
        }
    }

    /// Somebody answered for an address that was asked for.
    fn on_answer(&mut self, now: Instant, addr: Ipv6Addr, mac: Mac) {
        let Some(index) = self.by_addr.get(&addr).copied() else { return };
        let Some(question) = self.questions.get_mut(index).filter(|question| question.asked > 0 && !question.closed) else { return };
        question.closed = true;
        let Question { how, canary, .. } = *question;
        if canary {
            self.watch.unmask(mac);
            return;
        }
        self.summary.answered += 1;
        // Guesses come in handfuls for each station: the share of them that one answers for says nothing.
        if how != SeenBy::Guessed || self.watch.on_answer(mac, (), u64::MAX) == Heard::Host {
            self.on_station(mac);
        }
        if !self.told.contains(&addr) {
            self.confirmed.insert(addr, HostSeen { addr: addr.into(), mac: Some(HardwareAddress(mac.0)), how });
        }
        self.fresh_since.get_or_insert(now);
    }

    fn on_router(&mut self, now: Instant, from: Option<Mac>, advert: RouterAdvert) {
        let mac = advert.mac.or(from);
        self.on_seen(now, advert.src, mac, SeenBy::RouterAdvertisement);
        if self.routers.len() < ROUTERS_MAX && self.routers.insert(advert.src) {
            let RouterAdvert { src: addr, lifetime, managed, other, prefixes, .. } = advert;
            let mac = mac.map(|mac| HardwareAddress(mac.0));
            self.events.push_back(Event::Router(RouterSeen { addr, mac, lifetime, managed, other, prefixes }));
        }
    }

    fn on_report(&mut self, now: Instant, from: Option<Mac>, report: mld::Report) {
        from.into_iter().for_each(|mac| self.on_station(mac));
        self.on_seen(now, report.src, from, SeenBy::Multicast);
        report.groups.into_iter().filter_map(guess::from_group).for_each(|identifier| self.guess(identifier));
    }

    // The end.

    fn is_done(&self, now: Instant) -> bool {
        let listened = self.started.is_some_and(|started| now >= started + self.plan.listen);
        listened && self.rounds.is_empty() && self.to_ask.is_empty() && self.waiting.is_empty()
    }

    fn finish(&mut self, now: Instant) {
        if self.over {
            return;
        }
        let proxies = self.watch.proxies();
        let proxy = |host: &HostSeen| proxies.iter().any(|(mac, _)| host.mac == Some(HardwareAddress(mac.0)));
        let believed = |host: &HostSeen| host.how != SeenBy::Guessed || !proxy(host);
        for host in core::mem::take(&mut self.confirmed).into_values().filter(believed) {
            self.tell(now, host);
        }
        self.flush();
        let proxy = |(mac, addresses): &(Mac, u64)| Event::Proxy { mac: HardwareAddress(mac.0), addresses: *addresses };
        self.events.extend(proxies.iter().map(proxy));
        self.summary.asked = self.questions.iter().filter(|question| question.asked > 0 && !question.canary).count() as u64;
        self.events.push_back(Event::Done(self.summary));
        self.over = true;
    }

    // Sending.

    fn next_round(&mut self, now: Instant, buf: &mut [u8]) -> Option<Transmit> {
        let round = *self.rounds.front().filter(|round| round.due <= now)?;
        self.rounds.pop_front();
        let (source, template) = self.sources.get(round.source)?;
        let len = template.write(&self.request(*source, round.number), buf)?;
        let token = ROUND | (round.source as u64) << 16 | u64::from(round.number);
        Some(self.sent(Transmit { dst: ALL_NODES.into(), token, len }))
    }

    fn next_question(&mut self, now: Instant, buf: &mut [u8]) -> Option<Transmit> {
        loop {
            let index = self.to_ask.pop_front()?;
            let Some(question) = self.questions.get_mut(index).filter(|question| !question.closed) else { continue };
            let IpAddr::V6(source) = self.plan.link.source_for(question.addr.into())? else { continue };
            let packet = ndp::solicit(source, self.plan.link.mac(), question.addr, ndp::solicited_node(question.addr));
            buf.get_mut(..packet.len())?.copy_from_slice(&packet);
            question.asked += 1;
            self.waiting.push_back((now + WAIT, index));
            let (dst, token) = (question.addr.into(), index as u64);
            return Some(self.sent(Transmit { dst, token, len: packet.len() }));
        }
    }

    fn sent(&mut self, transmit: Transmit) -> Transmit {
        self.summary.sent_packets += 1;
        self.summary.sent_bytes += transmit.len as u64;
        transmit
    }

    fn give_up(&mut self, now: Instant) {
        while let Some((_, index)) = self.waiting.pop_front_if(|(due, _)| *due <= now) {
            if self.questions.get(index).is_some_and(|question| !question.closed && question.asked < ATTEMPTS) {
                self.to_ask.push_back(index);
            }
        }
    }
}

impl Engine for LinkDiscovery {
    type Event = Event;

    fn poll_transmit(&mut self, now: Instant, buf: &mut [u8]) -> Option<Transmit> {
        if self.over {
            return None;
        }
        self.seen = self.seen.max(now);
        self.start(now);
        self.next_round(now, buf).or_else(|| self.next_question(now, buf))
    }

    fn on_not_sent(&mut self, now: Instant, token: u64, why: NotSent) {
        self.summary.sent_packets = self.summary.sent_packets.saturating_sub(1);
        self.summary.refused += u64::from(why == NotSent::Refused);
        let again = why == NotSent::NeighbourPending;
        if token & ROUND != 0 {
            if again {
                let (source, number) = ((token & !ROUND) >> 16, token as u16);
                self.rounds.push_back(Round { due: now + BETWEEN_ROUNDS, source: source as usize, number });
            }
        } else if let Some(question) = self.questions.get_mut(token as usize) {
            // A frame that the kernel refused is an attempt that is spent.
            question.asked -= u8::from(why != NotSent::LinkError).min(question.asked);
            question.closed |= matches!(why, NotSent::Refused | NotSent::NoRoute | NotSent::NoNeighbour);
        }
    }

    fn on_packet(&mut self, now: Instant, packet: &[u8]) {
        self.on_frame(now, None, packet);
    }

    fn on_frame(&mut self, now: Instant, from: Option<Mac>, packet: &[u8]) {
        if self.over {
            return;
        }
        if let Some(arp) = Arp::parse(packet) {
            // What others ask for is not heard; an answer or an announcement names a neighbour.
            let honest = arp.operation == Operation::Reply || arp.sender == arp.target;
            if honest && arp.sender_mac.is_unicast() {
                self.on_known(arp.sender.into(), arp.sender_mac);
            }
        } else if let Some(message) = Neighbour::parse(packet) {
            self.on_neighbour(now, from, message);
        } else if let Some(advert) = RouterAdvert::parse(packet) {
            self.on_router(now, from, advert);
        } else if let Some(report) = mld::Report::parse(packet) {
            self.on_report(now, from, report);
        } else {
            self.on_echo_reply(now, from, packet);
        }
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.over {
            return None;
        }
        let started = self.started?;
        let round = self.rounds.front().filter(|round| round.due > self.seen).map(|round| (round.due, "a round of all nodes"));
        let question = self.waiting.front().map(|(due, _)| (*due, "a question is not answered"));
        let fresh = self.fresh_since.filter(|_| !self.fresh.is_empty()).map(|since| (since + GATHER, "hosts are to be told"));
        let idle = self.rounds.is_empty() && self.waiting.is_empty() && self.to_ask.is_empty();
        let end = idle.then_some((started + self.plan.listen, "the end of listening"));
        [round, question, fresh, end].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn on_timeout(&mut self, now: Instant) {
        self.seen = self.seen.max(now);
        self.give_up(now);
        if self.fresh_since.is_some_and(|since| now >= since + GATHER) {
            self.flush();
        }
        if self.is_done(now) {
            self.finish(now);
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn stop(&mut self) {
        self.finish(self.started.unwrap_or(Instant::ZERO));
    }

    fn wants_all_multicast(&self) -> bool {
        true
    }
}
