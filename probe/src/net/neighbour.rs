//! Which hardware address a neighbour has: a cache that asks by ARP and neighbour solicitation. Sans IO: it says whom to
//! ask and when, the loop builds and sends the frames, paced like all others.
//!
//! It must not know sockets, frames or clocks.
//!
//! - A question is asked three times, waiting 300 ms, 600 ms and 1 s; then the neighbour has failed for five seconds.
//! - An answer is believed only while a question is open, ours or an engine's. A neighbour that says unasked that it has another
//!   hardware address (a gateway that failed over) is asked again as soon as it is used, and the old one serves until it has answered.
//! - An answer is good for 30 s; when the neighbour is used after that, it is asked again while it is still used.
//! - What somebody wrote into the kernel's table to stay there ([`Vouched::Fixed`]) is known as long as it stands there: never asked
//!   for, never given up, and changed by nothing that arrives. Such a neighbour may be one that answers no question at all.
//! - The size is bounded: with many neighbours the least recently confirmed are forgotten, and asked again when needed. Fixed ones are
//!   as many as the kernel has.
//!
//! Invariant: a question is opened only by [`NeighbourCache::resolve`], which the loop calls for packets that policy permits; nothing
//! that arrives makes us send.
//! Invariant: [`Resolution::Known`] is only ever said of an address that answered a question of ours, or that the kernel
//! vouches for.

use core::cmp::Reverse;
use core::time::Duration;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;

use super::route::{KernelNeighbour, Vouched};
use super::time::Instant;
use crate::packet::eth::Mac;

/// Waits after the first, second and third question.
const WAITS: [Duration; 3] = [Duration::from_millis(300), Duration::from_millis(600), Duration::from_secs(1)];
/// How long an answer is good without asking again (RFC 4861, section 10: REACHABLE_TIME).
const FRESH: Duration = Duration::from_secs(30);
/// How long nobody asks again for a neighbour that did not answer.
const FAILED_FOR: Duration = Duration::from_secs(5);

/// How many questions of engines are remembered at least, and for how long at least where there are fewer. Who answers later is not
/// kept, and asked again when needed.
const ENGINE_QUESTIONS: usize = 4_096;
const ENGINE_QUESTIONS_FOR: Duration = Duration::from_secs(2);

/// What is known of a next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// Its hardware address.
    Known(Mac),
    /// It is being asked.
    Pending,
    /// It is not being asked, since too many are: try again when others have answered.
    Busy,
    /// It did not answer.
    Failed,
}

/// A question to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Who has this address?
    pub ip: IpAddr,
    /// Where a still valid answer is checked by asking the neighbour alone.
    pub known: Option<Mac>,
    /// Who needed it first: the number given to [`NeighbourCache::resolve`].
    pub asker: u64,
}

/// Bounds of the cache.
#[derive(Debug, Clone, Copy)]
pub struct NeighbourLimits {
    /// Most neighbours remembered.
    pub entries: usize,
    /// Most neighbours asked at a time.
    pub asking: usize,
}

impl Default for NeighbourLimits {
    fn default() -> Self {
        Self { entries: 16_384, asking: 1_024 }
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    mac: Option<Mac>,
    /// When `mac` was last confirmed, or when the asking failed.
    since: Instant,
    /// The open question: how often it was asked, 0 while it waits in the queue for the first time.
    asked: Option<u8>,
    asker: u64,
    /// Whether `mac` is in doubt: ask everybody, not only its holder.
    doubt: bool,
    /// Tells a live timer from a stale one.
    generation: u32,
}

/// The cache.
#[derive(Debug)]
pub struct NeighbourCache {
    limits: NeighbourLimits,
    entries: HashMap<IpAddr, Entry>,
    /// What the kernel's table holds for good.
    fixed: HashMap<IpAddr, Mac>,
    /// Open questions, known and unknown.
    asking: usize,
    /// Questions that are due.
    due: VecDeque<IpAddr>,
    timers: BinaryHeap<Reverse<(Instant, IpAddr, u32)>>,
    /// Grows with every answer, failure and question sent: something changed for those who wait.
    progress: u64,
    /// What engines asked for of late, and before that; each question is answered once.
    engine_asked: [HashSet<IpAddr>; 2],
    /// Since when the first of them is being filled.
    engine_since: Instant,
}

impl NeighbourCache {
    /// An empty cache.
    pub fn new(limits: NeighbourLimits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            fixed: HashMap::new(),
            asking: 0,
            due: VecDeque::new(),
            timers: BinaryHeap::new(),
            progress: 0,
            engine_asked: [HashSet::new(), HashSet::new()],
            engine_since: Instant::ZERO,
        }
    }

    /// An engine asks for `ip` by itself: the answer may be believed.
    pub fn on_engine_asks(&mut self, now: Instant, ip: IpAddr) {
        let [recent, before] = &mut self.engine_asked;
        if recent.len() >= ENGINE_QUESTIONS || now.saturating_since(self.engine_since) >= ENGINE_QUESTIONS_FOR {
            core::mem::swap(recent, before);
            recent.clear();
            self.engine_since = now;
        }
        recent.insert(ip);
    }

    /// The hardware address of `ip`, or what is being done to find it. `asker` is remembered with the question.
    pub fn resolve(&mut self, now: Instant, ip: IpAddr, asker: u64) -> Resolution {
        if let Some(mac) = self.fixed.get(&ip) {
            return Resolution::Known(*mac);
        }
        let Some(entry) = self.entries.get(&ip) else {
            return self.ask_new(now, ip, asker);
        };
        let age = now.saturating_since(entry.since);
        match (entry.mac, entry.asked) {
            (Some(mac), asked) => {
                if asked.is_none() && (age >= FRESH || entry.doubt) {
                    self.ask(ip, asker);
                }
                Resolution::Known(mac)
            }
            (None, Some(_)) => Resolution::Pending,
            (None, None) if age < FAILED_FOR => Resolution::Failed,
            (None, None) => {
                if self.ask(ip, asker) {
                    Resolution::Pending
                } else {
                    Resolution::Busy
                }
            }
        }
    }

    fn ask_new(&mut self, now: Instant, ip: IpAddr, asker: u64) -> Resolution {
        if self.asking >= self.limits.asking {
            return Resolution::Busy;
        }
        self.make_room(now);
        self.entries.insert(ip, Entry { mac: None, since: now, asked: None, asker, doubt: false, generation: 0 });
        self.ask(ip, asker);
        Resolution::Pending
    }

    /// Opens a question, unless one is open or too many are.
    fn ask(&mut self, ip: IpAddr, asker: u64) -> bool {
        if self.asking >= self.limits.asking {
            return false;
        }
        if let Some(entry) = self.entries.get_mut(&ip)
            && entry.asked.is_none()
        {
            entry.asked = Some(0);
            entry.asker = asker;
            entry.generation = entry.generation.wrapping_add(1);
            self.asking += 1;
            self.due.push_back(ip);
        }
        true
    }

    /// Forgets a quarter of the entries that nobody waits for, oldest first, when the cache is full.
    fn make_room(&mut self, now: Instant) {
        if self.entries.len() < self.limits.entries {
            return;
        }
        let mut ages: Vec<Duration> = self.entries.values().filter(|e| e.asked.is_none()).map(|e| now.saturating_since(e.since)).collect();
        ages.sort_unstable();
        if let Some(oldest) = ages.get(ages.len() * 3 / 4).copied() {
            self.entries.retain(|_, entry| entry.asked.is_some() || now.saturating_since(entry.since) < oldest);
        }
    }

    /// Whether a question is due to be sent.
    pub fn has_question(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next question to send; it counts as asked.
    pub fn next_question(&mut self, now: Instant) -> Option<Question> {
        while let Some(ip) = self.due.pop_front() {
            if let Some(entry) = self.entries.get_mut(&ip)
                && let Some(asked) = entry.asked
            {
                let wait = WAITS[usize::from(asked).min(WAITS.len() - 1)];
                entry.asked = Some(asked + 1);
                self.timers.push(Reverse((now + wait, ip, entry.generation)));
                self.progress += 1;
                // Only the first check of a known address goes to it alone: it may have moved.
                let known = entry.mac.filter(|_| asked == 0 && !entry.doubt);
                return Some(Question { ip, known, asker: entry.asker });
            }
        }
        None
    }

    /// A question could not be sent: it will be due again.
    pub fn question_not_sent(&mut self, question: Question) {
        if let Some(entry) = self.entries.get_mut(&question.ip)
            && let Some(asked) = entry.asked
        {
            entry.asked = Some(asked.saturating_sub(1));
            entry.generation = entry.generation.wrapping_add(1);
            self.due.push_front(question.ip);
        }
    }

    /// `ip` says that it has `mac`. Returns whether it was believed.
    pub fn on_answer(&mut self, now: Instant, ip: IpAddr, mac: Mac) -> bool {
        if !mac.is_unicast() {
            return false;
        }
        // Both are looked at: each question is answered once.
        if self.engine_asked.iter_mut().filter_map(|set| set.take(&ip)).count() > 0 {
            self.on_hint(now, ip, mac, true);
            return true;
        }
        let Some(entry) = self.entries.get_mut(&ip) else {
            return false;
        };
        // Asked at least once: a question that still waits in the queue has nothing to answer.
        if entry.asked.is_some_and(|asked| asked > 0) {
            if let Some(old) = entry.mac.filter(|old| *old != mac) {
                log::debug!("neighbour {ip} moved from {old} to {mac}");
            }
            entry.mac = Some(mac);
            self.close(now, ip);
            return true;
        }
        self.on_announcement(ip, mac);
        false
    }

    /// `ip` says unasked that it has `mac`. It is not believed, but where we knew another address everybody is asked when it is used
    /// next, by whoever may send there.
    pub fn on_announcement(&mut self, ip: IpAddr, mac: Mac) {
        if let Some(entry) = self.entries.get_mut(&ip)
            && entry.mac.is_some_and(|old| old != mac)
            && entry.asked.is_none()
        {
            entry.doubt = true;
        }
    }

    fn close(&mut self, now: Instant, ip: IpAddr) {
        if let Some(entry) = self.entries.get_mut(&ip) {
            if entry.asked.take().is_some() {
                self.asking -= 1;
            }
            entry.since = now;
            entry.doubt = false;
            entry.generation = entry.generation.wrapping_add(1);
            self.progress += 1;
        }
    }

    /// The kernel's table as it stands: all of it, since what is fixed is so until it is missing there.
    pub fn on_kernel(&mut self, now: Instant, table: &[KernelNeighbour]) {
        let usable = || table.iter().filter(|neighbour| neighbour.mac.is_unicast());
        let fixed =
            usable().filter(|neighbour| neighbour.vouched == Vouched::Fixed).map(|neighbour| (neighbour.ip, neighbour.mac)).collect();
        if self.fixed != fixed {
            self.fixed = fixed;
            // A question that is open for one of them has become pointless; one that was fixed and is no more has yet to be asked.
            let settled: Vec<IpAddr> = self.fixed.keys().copied().collect();
            settled.into_iter().for_each(|ip| self.close(now, ip));
            self.progress += 1;
        }
        for neighbour in usable().filter(|neighbour| neighbour.vouched != Vouched::Fixed) {
            self.on_hint(now, neighbour.ip, neighbour.mac, neighbour.vouched == Vouched::Confirmed);
        }
    }

    /// What the kernel knows. What it is sure of replaces what we have; a guess only fills a gap, and is checked on use.
    fn on_hint(&mut self, now: Instant, ip: IpAddr, mac: Mac, sure: bool) {
        let known = self.entries.get(&ip).is_some_and(|entry| entry.mac.is_some());
        if !mac.is_unicast() || (known && !sure) {
            return;
        }
        if !self.entries.contains_key(&ip) {
            self.make_room(now);
        }
        let since = if sure { now } else { now - FRESH };
        let entry = self.entries.entry(ip).or_insert(Entry { mac: None, since, asked: None, asker: 0, doubt: false, generation: 0 });
        entry.mac = Some(mac);
        self.close(now, ip);
        if let Some(entry) = self.entries.get_mut(&ip) {
            entry.since = since;
        }
    }

    /// When [`Self::on_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, ..))| *at)
    }

    /// Time has passed: unanswered questions are asked again or given up.
    pub fn on_timeout(&mut self, now: Instant) {
        while let Some(Reverse((at, ip, generation))) = self.timers.peek().copied() {
            if at > now {
                return;
            }
            self.timers.pop();
            let Some(entry) = self.entries.get_mut(&ip).filter(|entry| entry.generation == generation) else {
                continue;
            };
            if entry.asked.is_some_and(|asked| usize::from(asked) < WAITS.len()) {
                self.due.push_back(ip);
            } else {
                entry.mac = None;
                self.close(now, ip);
            }
        }
    }

    /// A number that changes whenever those who wait for a neighbour should try again.
    pub const fn progress(&self) -> u64 {
        self.progress
    }

    /// Neighbours remembered, whatever their state.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets everything but what the kernel holds for good: the interface has changed, of which the kernel tells by itself.
    pub fn clear(&mut self) {
        let fixed = core::mem::take(&mut self.fixed);
        *self = Self { progress: self.progress + 1, fixed, ..Self::new(self.limits) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// Asks and lets it be answered.
    fn known(cache: &mut NeighbourCache, now: Instant, ip: IpAddr, mac: Mac) {
        cache.resolve(now, ip, 7);
        cache.next_question(now).unwrap();
        assert!(cache.on_answer(now, ip, mac));
    }

    #[test]
    fn asked_answered_known() {
        let mut cache = NeighbourCache::new(NeighbourLimits::default());
        assert_eq!(cache.resolve(at(0), ip(1), 7), Resolution::Pending);
        assert_eq!(cache.resolve(at(0), ip(1), 8), Resolution::Pending);
        assert_eq!(cache.next_question(at(1)), Some(Question { ip: ip(1), known: None, asker: 7 }));
        assert_eq!(cache.next_question(at(1)), None);
        assert!(cache.on_answer(at(2), ip(1), A));
        assert_eq!(cache.resolve(at(3), ip(1), 7), Resolution::Known(A));
        cache.on_timeout(at(10_000));
        assert_eq!(cache.resolve(at(10_000), ip(1), 7), Resolution::Known(A));
    }

    #[test]
    fn three_questions_then_failure_then_again() {
        let mut cache = NeighbourCache::new(NeighbourLimits::default());
        cache.resolve(at(0), ip(1), 7);
        let mut asked = Vec::new();
        for ms in 0..3_000 {
            cache.on_timeout(at(ms));
            asked.extend(cache.next_question(at(ms)).map(|_| ms));
        }
        assert_eq!(asked, [0, 300, 900]);
        assert_eq!(cache.resolve(at(3_000), ip(1), 7), Resolution::Failed);
        assert_eq!(cache.poll_timeout(), None);
        assert_eq!(cache.resolve(at(8_000), ip(1), 7), Resolution::Pending);
        assert!(cache.next_question(at(8_000)).is_some());
    }

    #[test]
    fn unasked_answers_are_not_believed() {
        let mut cache = NeighbourCache::new(NeighbourLimits::default());
        assert!(!cache.on_answer(at(0), ip(1), A));
        assert!(cache.is_empty());
        cache.resolve(at(0), ip(1), 7);
        assert!(!cache.on_answer(at(0), ip(1), A), "nothing was sent yet");
        cache.next_question(at(0));
        assert!(!cache.on_answer(at(1), ip(1), Mac::BROADCAST));
        assert_eq!(cache.resolve(at(1), ip(1), 7), Resolution::Pending);
    }

    #[test]
    fn a_gateway_that_moves_is_asked_and_then_believed() {
        let mut cache = NeighbourCache::new(NeighbourLimits::default());
        known(&mut cache, at(0), ip(1), A);
        assert!(!cache.on_answer(at(100), ip(1), B), "nobody asked");
        assert_eq!(cache.resolve(at(100), ip(1), 7), Resolution::Known(A));
        assert_eq!(cache.next_question(at(101)).unwrap().known, None, "everybody is asked");
        assert!(cache.on_answer(at(102), ip(1), B));
        assert_eq!(cache.resolve(at(103), ip(1), 7), Resolution::Known(B));
        cache.on_announcement(ip(1), B);
        assert!(!cache.has_question(), "nothing new");
    }

    #[test]
    fn an_announcement_alone_makes_nobody_send() {
        let mut cache = NeighbourCache::new(NeighbourLimits::default());
        cache.on_hint(at(0), ip(1), A, true);
        cache.on_announcement(ip(1), B);
        assert!(!cache.has_question(), "nobody who may send there has asked");
        assert_eq!(cache.resolve(at(1), ip(1), 9), Resolution::Known(A));
        assert_eq!(cache.next_question(at(1)), Some(Question { ip: ip(1), known: None, asker: 9 }), "everybody is asked");
        assert!(cache.on_answer(at(2), ip(1), A));
        assert_eq!(cache.resolve(at(3), ip(1), 9), Resolution::Known(A));
        assert!(!cache.has_question(), "the doubt is settled");
    }

    #[test]
    fn what_an_engine_asked_for_is_known_afterwards() {
        let mut cache = NeighbourCache::new(NeighbourLimits::default());
        cache.on_engine_asks(at(0), ip(1));
        assert!(cache.is_empty(), "silent neighbours take no room");
        assert!(cache.on_answer(at(1), ip(1), A));
        assert!(!cache.on_answer(at(1), ip(2), A), "nobody asked for that one");
        assert_eq!(cache.resolve(at(2), ip(1), 7), Resolution::Known(A));
        assert!(!cache.has_question());
        assert!(!cache.on_answer(at(3), ip(1), B), "a second answer is believed as little as any");
        for n in 0..3 * ENGINE_QUESTIONS as u32 {
            cache.on_engine_asks(at(10), std::net::Ipv4Addr::from_bits(0xc612_0000 + n).into());
            assert!(cache.engine_asked.iter().all(|set| set.len() <= ENGINE_QUESTIONS), "bounded");
        }
        assert!(!cache.on_answer(at(11), IpAddr::from([198, 18, 0, 0]), A), "too many were asked since");
        cache.on_engine_asks(at(5_000), ip(7));
        cache.on_engine_asks(at(8_000), ip(8));
        cache.on_engine_asks(at(11_000), ip(9));
        assert!(!cache.on_answer(at(11_000), ip(7), A), "asked too long ago");
        assert!(cache.on_answer(at(11_000), ip(8), A));
    }

    #[test]
    fn a_neighbour_that_moved_silently_is_found_when_checked() {
        let mut cache = NeighbourCache::new(NeighbourLimits::default());
        known(&mut cache, at(0), ip(1), A);
        cache.resolve(at(30_000), ip(1), 7);
        assert_eq!(cache.next_question(at(30_000)).unwrap().known, Some(A));
        // It does not answer at its old address; the second question goes to all.
        cache.on_timeout(at(30_300));
        assert_eq!(cache.next_question(at(30_300)).unwrap().known, None);
        assert!(cache.on_answer(at(30_301), ip(1), B));
        assert_eq!(cache.resolve(at(30_302), ip(1), 7), Resolution::Known(B));
    }

    #[test]
    fn old_answers_are_checked_while_used_and_dropped_when_silent() {
        let mut cache = NeighbourCache::new(NeighbourLimits::default());
        known(&mut cache, at(0), ip(1), A);
        assert_eq!(cache.resolve(at(29_000), ip(1), 7), Resolution::Known(A));
        assert!(!cache.has_question());
        assert_eq!(cache.resolve(at(30_000), ip(1), 7), Resolution::Known(A));
        for ms in 30_000..32_000 {
            cache.on_timeout(at(ms));
            cache.next_question(at(ms));
        }
        assert_eq!(cache.resolve(at(32_000), ip(1), 7), Resolution::Failed);
    }

    #[test]
    fn hints_of_the_kernel() {
        let mut cache = NeighbourCache::new(NeighbourLimits::default());
        cache.on_hint(at(60_000), ip(1), A, true);
        cache.on_hint(at(60_000), ip(2), A, false);
        assert_eq!(cache.resolve(at(60_000), ip(1), 7), Resolution::Known(A));
        assert!(!cache.has_question(), "the kernel is sure");
        assert_eq!(cache.resolve(at(60_000), ip(2), 7), Resolution::Known(A));
        assert!(cache.has_question(), "the kernel is not sure: check");
        cache.on_hint(at(60_001), ip(1), B, false);
        assert_eq!(cache.resolve(at(60_001), ip(1), 7), Resolution::Known(A));
        cache.on_hint(at(60_001), ip(1), B, true);
        assert_eq!(cache.resolve(at(60_001), ip(1), 7), Resolution::Known(B));
    }

    fn written_down(ip: IpAddr, mac: Mac) -> KernelNeighbour {
        KernelNeighbour { interface: 2, ip, mac, vouched: Vouched::Fixed }
    }

    #[test]
    fn what_is_written_down_is_neither_asked_for_nor_given_up() {
        let mut cache = NeighbourCache::new(NeighbourLimits { entries: 16, asking: 4 });
        let table = [written_down(ip(1), A)];
        cache.on_kernel(at(0), &table);
        // A day in which it is used, doubted, contradicted, crowded out and read again, and answers nothing.
        for minute in 0..24 * 60 {
            let now = at(minute * 60_000);
            cache.on_timeout(now);
            assert_eq!(cache.resolve(now, ip(1), 7), Resolution::Known(A), "minute {minute}");
            assert!(!cache.has_question(), "minute {minute}");
            cache.on_announcement(ip(1), B);
            cache.on_engine_asks(now, ip(1));
            cache.on_answer(now, ip(1), B);
            (2..40).for_each(|n| cache.on_hint(now, ip(n), A, true));
            if minute % 60 == 0 {
                cache.clear();
                cache.on_kernel(now, &table);
            }
        }
    }

    #[test]
    fn what_is_taken_out_of_the_kernels_table_is_asked_for_like_any_other() {
        let mut cache = NeighbourCache::new(NeighbourLimits::default());
        cache.on_kernel(at(0), &[written_down(ip(1), A), written_down(ip(2), Mac::BROADCAST)]);
        assert_eq!(cache.resolve(at(1), ip(1), 7), Resolution::Known(A));
        assert_eq!(cache.resolve(at(1), ip(2), 7), Resolution::Pending, "nobody has such an address");
        let before = cache.progress();
        cache.on_kernel(at(2), &[]);
        assert!(cache.progress() > before, "who waits looks again");
        assert_eq!(cache.resolve(at(2), ip(1), 7), Resolution::Pending);
    }

    #[test]
    fn what_is_written_down_while_it_is_being_asked_for_ends_the_question() {
        let mut cache = NeighbourCache::new(NeighbourLimits::default());
        cache.resolve(at(0), ip(1), 7);
        cache.next_question(at(0)).unwrap();
        let before = cache.progress();
        cache.on_kernel(at(1), &[written_down(ip(1), A)]);
        assert!(cache.progress() > before, "who waits looks again");
        assert_eq!(cache.resolve(at(1), ip(1), 7), Resolution::Known(A));
        cache.on_timeout(at(5_000));
        assert!(!cache.has_question(), "it is not asked again");
        assert_eq!(cache.asking, 0);
    }

    #[test]
    fn a_question_that_could_not_be_sent_is_asked_again() {
        let mut cache = NeighbourCache::new(NeighbourLimits::default());
        cache.resolve(at(0), ip(1), 7);
        let question = cache.next_question(at(0)).unwrap();
        cache.question_not_sent(question);
        cache.on_timeout(at(5_000));
        assert_eq!(cache.next_question(at(5_000)), Some(question));
        assert_eq!(cache.next_question(at(5_000)), None);
    }

    #[test]
    fn bounded() {
        let limits = NeighbourLimits { entries: 64, asking: 16 };
        let mut cache = NeighbourCache::new(limits);
        for n in 0..=255 {
            let now = at(u64::from(n));
            known(&mut cache, now, ip(n), A);
            assert!(cache.len() <= limits.entries);
        }
        for n in 0..16 {
            assert_eq!(cache.resolve(at(300), IpAddr::from([198, 18, 0, n]), 7), Resolution::Pending);
        }
        assert_eq!(cache.resolve(at(300), IpAddr::from([198, 18, 0, 99]), 7), Resolution::Busy);
        assert_eq!(cache.resolve(at(300), ip(255), 7), Resolution::Known(A), "the newest are kept");
    }

    proptest! {
        /// Whatever happens in whatever order: bounds hold, every question ends, no panic.
        #[test]
        fn any_order_of_events(steps in proptest::collection::vec((0u8..6, 0u8..40, 0u64..800), 1..400)) {
            let limits = NeighbourLimits { entries: 16, asking: 4 };
            let mut cache = NeighbourCache::new(limits);
            let mut now = 0;
            let mut last = None;
            for (what, who, wait) in steps {
                now += wait;
                match what {
                    0 | 1 => { let _ = cache.resolve(at(now), ip(who), u64::from(who)); }
                    2 => last = cache.next_question(at(now)).or(last),
                    3 => { cache.on_answer(at(now), ip(who), if who % 2 == 0 { A } else { B }); }
                    4 => cache.on_timeout(at(now)),
                    _ => if let Some(question) = last.take() { cache.question_not_sent(question) },
                }
                prop_assert!(cache.asking <= limits.asking);
                prop_assert_eq!(cache.asking, cache.entries.values().filter(|entry| entry.asked.is_some()).count());
                prop_assert!(cache.len() <= limits.entries + limits.asking);
            }
            for _ in 0..10 {
                while cache.next_question(at(now)).is_some() {}
                now += 1_100;
                cache.on_timeout(at(now));
            }
            prop_assert_eq!(cache.asking, 0);
        }
    }
}
