//! The state of one chunk of positions: what was sent when, what answered, what is to be asked again.
//!
//! A position is in at most one place: in level `k` (asked `k` times, waiting), in the queue of probes whose neighbour is not
//! known yet, or in none, which means that its fate is decided. Fate: answered, refused, not reached, else silent.
//!
//! Each level is a set of bits and a cursor. Positions enter a level in the order of sending, so that the one at the cursor
//! is due first. A straggler may hold the cursor up, but not longer than its own wait, so a level is through when its last
//! position is.
//!
//! **Invariant:** `sent[a][offset]` is a time exactly for the probes that left; it decides between silent and not reached.

use core::time::Duration;
use std::collections::VecDeque;

use picket_wire::result::{Answer, NotReached, Runs, State};

use super::report::ChunkReport;
use super::rto::{Again, Rto};
use crate::net::engine::NotSent;
use crate::net::time::Instant;

/// In place of a send time: this probe did not leave.
const NEVER: u32 = u32::MAX;
/// When a probe whose neighbour is being asked for is offered again the first time: on a healthy link the answer is there.
const REOFFER_FIRST: Duration = Duration::from_millis(10);
/// The longest pause between two offers.
const REOFFER_MAX: Duration = Duration::from_millis(500);
/// After so many rounds of offers in which nothing moved, the neighbours are given up: about 8 s, longer than any neighbour
/// cache takes to say so itself.
const REOFFER_ROUNDS: u32 = 20;
/// A round trip beyond this is a fault of the clock or of a link that slept, not a measurement.
const RTT_MAX: Duration = Duration::from_secs(60);

/// Why a position was never asked, as indexes into [`Chunk::unreached`].
const REASONS: [NotReached; 3] = [NotReached::NoNeighbour, NotReached::NoRoute, NotReached::LinkError];

/// A growing set of small numbers.
#[derive(Debug, Default)]
struct Bits {
    words: Vec<u64>,
    count: u32,
}

impl Bits {
    const fn mask(at: u32) -> (usize, u64) {
        ((at / 64) as usize, 1 << (at % 64))
    }

    fn get(&self, at: u32) -> bool {
        let (word, mask) = Self::mask(at);
        self.words.get(word).is_some_and(|bits| bits & mask != 0)
    }

    fn set(&mut self, at: u32) {
        let (word, mask) = Self::mask(at);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        if let Some(bits) = self.words.get_mut(word) {
            self.count += u32::from(*bits & mask == 0);
            *bits |= mask;
        }
    }

    /// Takes a number out; whether it was there.
    fn clear(&mut self, at: u32) -> bool {
        let (word, mask) = Self::mask(at);
        let was = self.get(at);
        if let (true, Some(bits)) = (was, self.words.get_mut(word)) {
            *bits &= !mask;
            self.count -= 1;
        }
        was
    }

    /// The first number from `at` on.
    fn next_from(&self, at: u32) -> Option<u32> {
        let (first, mask) = Self::mask(at);
        let mut keep = !(mask - 1);
        for (index, bits) in self.words.iter().enumerate().skip(first) {
            let left = bits & keep;
            if left != 0 {
                return Some(index as u32 * 64 + left.trailing_zeros());
            }
            keep = u64::MAX;
        }
        None
    }

    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let mut at = 0;
        core::iter::from_fn(move || {
            let found = self.next_from(at)?;
            at = found + 1;
            Some(found)
        })
    }

    fn reset(&mut self) {
        self.words.clear();
        self.count = 0;
    }
}

/// Positions that were asked equally often and wait.
#[derive(Debug, Default)]
struct Level {
    waiting: Bits,
    cursor: u32,
}

impl Level {
    /// The position that is due first.
    fn first(&self) -> Option<u32> {
        if self.waiting.count == 0 {
            return None;
        }
        self.waiting.next_from(self.cursor).or_else(|| self.waiting.next_from(0))
    }

    fn take(&mut self, offset: u32) {
        if self.waiting.clear(offset) {
            self.cursor = offset + 1;
        }
    }
}

/// Probes whose neighbour is being asked for, in the order of their offers.
#[derive(Debug)]
struct Pending {
    queue: VecDeque<(u32, u8)>,
    /// How many are left of the round of offers that is going on.
    round: usize,
    /// When the next round begins.
    next_round: Instant,
    pause: Duration,
    /// Length at the start of the last round, and for how many rounds it has not become shorter.
    last: usize,
    stale: u32,
}

impl Pending {
    fn new() -> Self {
        Self { queue: VecDeque::new(), round: 0, next_round: Instant::ZERO, pause: REOFFER_FIRST, last: 0, stale: 0 }
    }

    fn push(&mut self, now: Instant, offset: u32, attempt: u8) {
        if self.round == 0 && self.queue.is_empty() && self.next_round <= now {
            (self.pause, self.next_round, self.last, self.stale) = (REOFFER_FIRST, now + REOFFER_FIRST, usize::MAX, 0);
        }
        self.queue.push_back((offset, attempt));
    }

    /// Starts a round if it is time for one. `false`: nothing to offer now.
    fn in_round(&mut self, now: Instant) -> bool {
        if self.round == 0 && !self.queue.is_empty() && self.next_round <= now {
            self.stale = if self.queue.len() < self.last { 0 } else { self.stale + 1 };
            (self.round, self.last) = (self.queue.len(), self.queue.len());
        }
        self.round > 0
    }

    fn pop(&mut self, now: Instant) -> Option<(u32, u8)> {
        let next = self.queue.pop_front();
        self.round = self.round.saturating_sub(1);
        if self.round == 0 {
            self.next_round = now + self.pause;
            self.pause = (self.pause * 2).min(REOFFER_MAX);
        }
        next
    }
}

/// An answer as it is kept: 16 bytes.
#[derive(Debug, Clone, Copy)]
struct Found {
    offset: u32,
    rtt_us: u32,
    /// Where its state stands in [`Chunk::states`].
    state: u32,
    ttl: u8,
}

/// How many of the latest states are looked at before one is noted again: nearly all answers of a chunk say one of a few
/// things, and who makes up more shall cost no time.
const STATES_LOOKED_AT: usize = 8;

/// Which of two answers for one position counts: the one of higher rank, and of equals the first.
///
/// An ICMP error may come from anybody on the way. A refusal may as well: filters that reset connections send a RST with the
/// right numbers before the target's own answer is there. Nobody accepts in the name of a closed port but who serves it.
fn rank(state: State) -> u8 {
    match state {
        State::Filtered { .. } | State::FilteredBy { .. } => 0,
        State::Closed | State::Unfiltered => 1,
        State::Up | State::UpBy(_) | State::Open => 2,
    }
}

/// What became of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// The first one of its position, with its round trip where that is known.
    New(Option<Duration>),
    /// Another one of its position.
    Again,
    /// One that replaces another of its position; whether that was one of the target itself.
    Stronger { contradicts: bool },
    /// The probe that it answers was never sent.
    Unasked,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Chunk {
    from: u64,
    len: u32,
    attempts: u8,
    /// Whether hearsay leaves a position asked for: what one way of asking does not get through, another may.
    insist: bool,
    sealed: bool,
    started: Instant,
    /// By attempt: send time of each position in microseconds since `started`.
    sent: Vec<Vec<u32>>,
    /// `levels[k - 1]` holds what was asked `k` times.
    levels: Vec<Level>,
    pending: Pending,
    /// Probes that the schedule holds until a limit towards their target lets them go.
    held: Bits,
    /// When positions whose last probe failed on the link are looked at again.
    retry_at: Instant,
    answered: Bits,
    /// Of those answered: by an ICMP error only, which an answer of the target itself replaces.
    hearsay: Bits,
    /// Of those answered: by a refusal, which an acceptance replaces.
    weak: Bits,
    found: Vec<Found>,
    states: Vec<State>,
    refused: Bits,
    unreached: [Bits; REASONS.len()],
    packets: u64,
    bytes: u64,
    duplicates: u64,
    /// Positions on the link for which a proxy answers: asked by IP packets.
    by_ip: Bits,
}

impl Chunk {
    pub(super) fn new(attempts: u8, insist: bool) -> Self {
        Self {
            from: 0,
            len: 0,
            attempts,
            insist,
            sealed: false,
            started: Instant::ZERO,
            sent: (0..attempts).map(|_| Vec::new()).collect(),
            levels: (0..attempts).map(|_| Level::default()).collect(),
            pending: Pending::new(),
            held: Bits::default(),
            retry_at: Instant::ZERO,
            answered: Bits::default(),
            hearsay: Bits::default(),
            weak: Bits::default(),
            found: Vec::new(),
            states: Vec::new(),
            refused: Bits::default(),
            unreached: Default::default(),
            packets: 0,
            bytes: 0,
            duplicates: 0,
            by_ip: Bits::default(),
        }
    }

    /// Makes it an empty chunk that starts at position `from`, keeping its memory.
    pub(super) fn reuse(&mut self, now: Instant, from: u64) {
        self.sent.iter_mut().for_each(Vec::clear);
        for level in &mut self.levels {
            level.waiting.reset();
            level.cursor = 0;
        }
        let sets = [&mut self.answered, &mut self.hearsay, &mut self.weak, &mut self.refused, &mut self.by_ip, &mut self.held].into_iter();
        sets.chain(&mut self.unreached).for_each(Bits::reset);
        // A chunk in which everything answered is the exception: its memory is not kept.
        (self.found, self.states) = (Vec::new(), Vec::new());
        self.pending = Pending::new();
        (self.from, self.len, self.sealed, self.started, self.retry_at) = (from, 0, false, now, Instant::ZERO);
        (self.packets, self.bytes, self.duplicates) = (0, 0, 0);
    }

    /// Lets go of what a report has told; what is left knows who was asked when and who has answered.
    pub(super) fn retire(&mut self) {
        (self.found, self.states) = (Vec::new(), Vec::new());
        self.pending = Pending::new();
    }

    /// Whether a position has an answer that ends the asking.
    fn is_settled(&self, offset: u32) -> bool {
        self.answered.get(offset) && !(self.insist && self.hearsay.get(offset))
    }

    pub(super) fn from(&self) -> u64 {
        self.from
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// It takes no new positions from here on.
    pub(super) fn seal(&mut self) {
        self.sealed = true;
    }

    /// Whether the fate of all its positions is decided and no more will come.
    pub(super) fn is_finished(&self) -> bool {
        self.sealed && self.pending.queue.is_empty() && self.held.count == 0 && self.levels.iter().all(|level| level.waiting.count == 0)
    }

    /// Takes in the next position and books its first probe.
    pub(super) fn begin(&mut self, now: Instant) -> u32 {
        let offset = self.len;
        self.len += 1;
        self.book(now, offset, 0);
        offset
    }

    fn book(&mut self, now: Instant, offset: u32, attempt: u8) {
        let at = u32::try_from(now.saturating_since(self.started).as_micros()).unwrap_or(NEVER).min(NEVER - 1);
        if let Some(times) = self.sent.get_mut(usize::from(attempt)) {
            let index = offset as usize;
            if index >= times.len() {
                times.resize(index + 1, NEVER);
            }
            if let Some(time) = times.get_mut(index) {
                *time = at;
            }
        }
        if let Some(level) = self.levels.get_mut(usize::from(attempt)) {
            level.waiting.set(offset);
        }
        self.packets += 1;
    }

    pub(super) fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    fn sent_at(&self, attempt: u8, offset: u32) -> Option<Instant> {
        let time = *self.sent.get(usize::from(attempt))?.get(offset as usize)?;
        (time != NEVER).then(|| self.started + Duration::from_micros(time.into()))
    }

    /// The last probe that left for a position, of its first `asked` ones.
    fn last_sent(&self, asked: u8, offset: u32) -> Option<(u8, Instant)> {
        (0..asked).rev().find_map(|attempt| Some((attempt, self.sent_at(attempt, offset)?)))
    }

    /// When the wait of a position in level `asked` is over.
    fn due(&self, asked: u8, offset: u32, rto: &Rto, again: Again) -> Instant {
        match self.last_sent(asked, offset) {
            Some((attempt, at)) if attempt + 1 == asked => at + rto.pause(attempt, again),
            Some((attempt, at)) => (at + rto.pause(attempt, again)).max(self.retry_at),
            None => self.retry_at,
        }
    }

    /// The next probe that is to be repeated or offered again, booked as sent; else lowers `wake` to when there is one.
    pub(super) fn poll_due(&mut self, now: Instant, rto: &Rto, again: Again, wake: &mut Instant) -> Option<(u32, u8)> {
        while self.pending.in_round(now) {
            if self.pending.stale >= REOFFER_ROUNDS && self.sealed {
                self.give_up_pending();
                break;
            }
            if let Some((offset, attempt)) = self.pending.pop(now)
                && !self.is_settled(offset)
            {
                self.book(now, offset, attempt);
                return Some((offset, attempt));
            }
        }
        if !self.pending.queue.is_empty() {
            *wake = (*wake).min(self.pending.next_round);
        }
        for asked in 1..self.attempts {
            let Some(offset) = self.levels.get(usize::from(asked) - 1).and_then(Level::first) else { continue };
            let due = self.due(asked, offset, rto, again);
            if due > now {
                *wake = (*wake).min(due);
                continue;
            }
            if let Some(level) = self.levels.get_mut(usize::from(asked) - 1) {
                level.take(offset);
            }
            self.book(now, offset, asked);
            return Some((offset, asked));
        }
        None
    }

    /// Takes back a probe that was held: booked as sent, unless the position has answered meanwhile.
    pub(super) fn release(&mut self, now: Instant, offset: u32, attempt: u8) -> bool {
        let wanted = self.held.clear(offset) && !self.is_settled(offset);
        if wanted {
            self.book(now, offset, attempt);
        }
        wanted
    }

    pub(super) fn is_held(&self, offset: u32) -> bool {
        self.held.get(offset)
    }

    /// When a position's first packet has left.
    pub(super) fn first_sent(&self, offset: u32) -> Option<Instant> {
        self.sent_at(0, offset)
    }

    fn give_up_pending(&mut self) {
        let queue = core::mem::take(&mut self.pending.queue);
        self.pending.round = 0;
        for (offset, attempt) in queue {
            if !self.is_settled(offset) {
                self.decide_unsent(offset, attempt, NotSent::NoNeighbour);
            }
        }
    }

    /// Ends the waits that are over; lowers `wake` to when the next one is.
    pub(super) fn end_waits(&mut self, now: Instant, rto: &Rto, wake: &mut Instant) {
        let last = usize::from(self.attempts) - 1;
        while let Some(offset) = self.levels.get(last).and_then(Level::first) {
            let due = self.due(self.attempts, offset, rto, Again::Soon);
            if due > now {
                *wake = (*wake).min(due);
                return;
            }
            if let Some(level) = self.levels.get_mut(last) {
                level.take(offset);
            }
            if self.last_sent(self.attempts, offset).is_none() {
                self.unreached(NotReached::LinkError, offset);
            }
        }
    }

    fn unreached(&mut self, why: NotReached, offset: u32) {
        let reason = REASONS.iter().position(|reason| *reason == why);
        if let Some(set) = reason.and_then(|reason| self.unreached.get_mut(reason)) {
            set.set(offset);
        }
    }

    /// A booked probe of `bytes` did not leave.
    pub(super) fn not_sent(&mut self, now: Instant, offset: u32, attempt: u8, why: NotSent, bytes: usize, rto: &Rto) {
        let booked = self.sent.get_mut(usize::from(attempt)).and_then(|times| times.get_mut(offset as usize));
        let Some(time) = booked.filter(|time| **time != NEVER) else { return };
        *time = NEVER;
        self.packets = self.packets.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes as u64);
        if why == NotSent::LinkError {
            // It stays where it is: this attempt is spent, the next one comes after a wait.
            self.retry_at = self.retry_at.max(now + rto.after(attempt));
            return;
        }
        let waited = self.levels.get_mut(usize::from(attempt)).is_some_and(|level| level.waiting.clear(offset));
        match why {
            _ if !waited => {}
            NotSent::NeighbourPending => self.pending.push(now, offset, attempt),
            NotSent::TooSoon { .. } => self.held.set(offset),
            _ => self.decide_unsent(offset, attempt, why),
        }
    }

    /// What left since `since` never arrived, and nobody was told so: positions that wait for answers to it are offered again,
    /// from the first such attempt on.
    pub(super) fn offer_again(&mut self, now: Instant, since: Instant) {
        for level in 0..self.levels.len() {
            let waiting: Vec<u32> = self.levels.get(level).map(|level| level.waiting.iter().collect()).unwrap_or_default();
            for offset in waiting {
                let lost = |attempt: &u8| self.sent_at(*attempt, offset).is_some_and(|sent| sent >= since);
                let Some(first) = (0..self.attempts).find(lost) else { continue };
                for times in self.sent.iter_mut().skip(first.into()) {
                    times.get_mut(offset as usize).into_iter().for_each(|time| *time = NEVER);
                }
                if let Some(level) = self.levels.get_mut(level) {
                    level.waiting.clear(offset);
                }
                self.pending.push(now, offset, first);
            }
        }
    }

    /// A position will not be asked again. If it was asked before, it may still answer.
    fn decide_unsent(&mut self, offset: u32, attempt: u8, why: NotSent) {
        if self.last_sent(attempt, offset).is_some() {
            if let Some(level) = self.levels.get_mut(usize::from(self.attempts) - 1) {
                level.waiting.set(offset);
            }
            return;
        }
        match why {
            NotSent::Refused => self.refused.set(offset),
            NotSent::NoRoute => self.unreached(NotReached::NoRoute, offset),
            NotSent::LinkError => self.unreached(NotReached::LinkError, offset),
            NotSent::NoNeighbour | NotSent::NeighbourPending | NotSent::TooSoon { .. } => self.unreached(NotReached::NoNeighbour, offset),
        }
    }

    /// When a probe was sent and how long ago, where that can be believed.
    fn round_trip(&self, now: Instant, offset: u32, attempt: u8) -> Option<Option<Duration>> {
        let sent = self.sent_at(attempt, offset)?;
        Some(Some(now.saturating_since(sent)).filter(|rtt| *rtt <= RTT_MAX))
    }

    /// An answer to attempt number `attempt` came.
    pub(super) fn answer(&mut self, now: Instant, offset: u32, attempt: u8, state: State, ttl: u8) -> Taken {
        let Some(rtt) = self.round_trip(now, offset, attempt) else { return Taken::Unasked };
        let rtt_us = rtt.and_then(|rtt| u32::try_from(rtt.as_micros()).ok()).unwrap_or(0);
        let old = if self.answered.get(offset) { Some(self.rank_of(offset)) } else { None };
        if old.is_some_and(|old| rank(state) <= old) {
            self.duplicates += 1;
            return Taken::Again;
        }
        let found = Found { offset, rtt_us, state: self.note(state), ttl };
        self.mark(offset, state);
        if self.is_settled(offset) {
            for level in &mut self.levels {
                level.waiting.clear(offset);
            }
            self.held.clear(offset);
        }
        let Some(old) = old else {
            self.found.push(found);
            return Taken::New(rtt);
        };
        let place = self.found.iter_mut().rev().find(|old| old.offset == offset);
        place.expect("what is marked as answered is in the list").clone_from(&found);
        Taken::Stronger { contradicts: old > 0 }
    }

    /// An answer came after the report.
    pub(super) fn answer_late(&mut self, now: Instant, offset: u32, attempt: u8, state: State) -> Taken {
        match self.round_trip(now, offset, attempt) {
            None => Taken::Unasked,
            Some(_) if self.answered.get(offset) => {
                let old = self.rank_of(offset);
                if rank(state) <= old {
                    return Taken::Again;
                }
                self.mark(offset, state);
                Taken::Stronger { contradicts: old > 0 }
            }
            Some(rtt) => {
                self.mark(offset, state);
                Taken::New(rtt)
            }
        }
    }

    fn rank_of(&self, offset: u32) -> u8 {
        match (self.hearsay.get(offset), self.weak.get(offset)) {
            (true, _) => 0,
            (_, true) => 1,
            _ => 2,
        }
    }

    fn mark(&mut self, offset: u32, state: State) {
        self.answered.set(offset);
        self.hearsay.clear(offset);
        self.weak.clear(offset);
        match rank(state) {
            0 => self.hearsay.set(offset),
            1 => self.weak.set(offset),
            _ => {}
        }
    }

    /// The place of a state in the list.
    fn note(&mut self, state: State) -> u32 {
        let known = self.states.iter().enumerate().rev().take(STATES_LOOKED_AT).find(|(_, known)| **known == state);
        let place = known.map(|(place, _)| place).unwrap_or_else(|| {
            self.states.push(state);
            self.states.len() - 1
        });
        // One answer and a few replacements for each of 65,536 positions.
        place as u32
    }

    /// The attempt that an answer which names none is taken to answer, and how long ago the first one was: `None` if there was none.
    pub(super) fn asked(&self, now: Instant, offset: u32) -> Option<(u8, Duration)> {
        let (last, _) = self.last_sent(self.attempts, offset)?;
        let first = (0..=last).find_map(|attempt| self.sent_at(attempt, offset))?;
        Some((last, now.saturating_since(first)))
    }

    /// Whether a position was answered.
    pub(super) fn is_answered(&self, offset: u32) -> bool {
        self.answered.get(offset)
    }

    /// Whether a position is asked by IP packets though it is on the link.
    pub(super) fn is_by_ip(&self, offset: u32) -> bool {
        self.by_ip.get(offset)
    }

    /// A position begins anew, with IP packets: what was answered on the link says nothing. Whether it was answered.
    pub(super) fn ask_by_ip(&mut self, now: Instant, offset: u32) -> bool {
        let answered = self.answered.clear(offset);
        if answered {
            self.hearsay.clear(offset);
            self.weak.clear(offset);
            self.found.retain(|found| found.offset != offset);
        }
        for level in &mut self.levels {
            level.waiting.clear(offset);
        }
        for time in self.sent.iter_mut().filter_map(|times| times.get_mut(offset as usize)) {
            *time = NEVER;
        }
        self.by_ip.set(offset);
        self.pending.push(now, offset, 0);
        answered
    }

    /// The first position whose fate is not decided.
    pub(super) fn first_undecided(&self) -> u32 {
        let waiting = self.levels.iter().filter_map(|level| level.waiting.next_from(0));
        let pending = self.pending.queue.iter().map(|(offset, _)| *offset).filter(|offset| !self.is_settled(*offset));
        let held = self.held.iter().filter(|offset| !self.is_settled(*offset));
        waiting.chain(pending).chain(held).min().unwrap_or(self.len)
    }

    /// The report on the first `len` positions; those undecided are said to be stopped.
    pub(super) fn report(&self, now: Instant, len: u32, late: u64) -> ChunkReport {
        let inside = |at: &u32| *at < len;
        let runs = |set: &Bits| Runs::from_ascending(set.iter().take_while(inside).map(u64::from));
        let mut found: Vec<Found> = self.found.iter().filter(|found| found.offset < len).copied().collect();
        found.sort_unstable_by_key(|found| found.offset);
        let answer = |f: Found| {
            let state = *self.states.get(f.state as usize)?;
            Some(Answer { offset: f.offset.into(), state, rtt: Duration::from_micros(f.rtt_us.into()), ttl: f.ttl })
        };
        let mut not_reached: Vec<_> = REASONS.into_iter().zip(self.unreached.iter().map(runs)).collect();
        not_reached.push((NotReached::Stopped, runs(&self.undecided())));
        not_reached.retain(|(_, runs)| runs.count() > 0);
        ChunkReport {
            from: self.from,
            to: self.from + u64::from(len),
            started: self.started,
            ended: now,
            sent_packets: self.packets,
            sent_bytes: self.bytes,
            answers: found.into_iter().filter_map(answer).collect(),
            refused: runs(&self.refused),
            not_reached,
            duplicates: self.duplicates,
            late,
        }
    }

    fn undecided(&self) -> Bits {
        let mut set = Bits::default();
        let waiting = self.levels.iter().flat_map(|level| level.waiting.iter());
        let pending = self.pending.queue.iter().map(|(offset, _)| *offset);
        // Hearsay is an answer, if no good one: such a position is not counted twice.
        waiting.chain(pending).chain(self.held.iter()).filter(|offset| !self.answered.get(*offset)).for_each(|offset| set.set(offset));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_are_a_set(steps in proptest::collection::vec((any::<bool>(), 0u32..500), 0..200), from in 0u32..600) {
            let (mut bits, mut model) = (Bits::default(), BTreeSet::new());
            for (add, at) in steps {
                match add {
                    true => {
                        bits.set(at);
                        model.insert(at);
                    }
                    false => prop_assert_eq!(bits.clear(at), model.remove(&at)),
                }
            }
            prop_assert_eq!(bits.count as usize, model.len());
            prop_assert_eq!(bits.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(bits.next_from(from), model.range(from..).next().copied());
        }
    }
}
