//! Which probe is next: chunks in order, repetitions when they are due, reports when chunks are finished.
//!
//! First what was asked long ago ([`Again::Apart`]), then who was never asked, and only where there is nobody left, or no memory for him,
//! what was asked a moment ago ([`Again::Soon`]).
//!
//! Pure and without packets: the raw engine turns probes into bytes, the connect engine into sockets.
//!
//! **Invariant:** the positions of all open chunks, and of the reported ones that are still listened for, are together bounded
//! by [`ChunkLimits::memory`](super::spec::ChunkLimits); the open ones have precedence.

use core::time::Duration;
use std::collections::VecDeque;

use picket_wire::job::Technique;
use picket_wire::result::State;

use super::chunk::{Chunk, Taken};
use super::cohorts::Cohorts;
use super::lanes::{HELD_MAX, Lanes};
use super::report::{Done, Event, LateReport, Stats};
use super::rto::{Again, Rto};
use super::spec::{ChunkLimits, Cut, ScanPlan, Timing};
use crate::net::engine::{NotSent, Signs};
use crate::net::time::Instant;

/// At line rate some wait is over with every packet; they are ended together, this far apart.
const END_GRAIN: Duration = Duration::from_millis(1);

/// How long after its report a chunk is listened for: nobody believes a longer round trip.
const LATE_MAX: Duration = Duration::from_secs(60);
/// What a reported chunk costs besides its positions, counted in positions.
const RETIRED_COST: u64 = 128;

/// For so long after the interface came up repetitions are patient: routers and hosts have to find back to it, and bridges learn.
const SETTLING: Duration = Duration::from_secs(3);

/// How long the kernel takes frames for an interface that is down before it tells so, at most.
const UNNOTICED: Duration = Duration::from_millis(500);

/// One probe: attempt number `attempt` (from 0) for a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Probe {
    pub(super) position: u64,
    pub(super) attempt: u8,
}

/// What an answer would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heeded {
    /// One that goes into the report of its chunk.
    Open,
    /// A late one.
    Late,
}

#[derive(Debug)]
pub(super) struct Schedule {
    /// The next position to begin.
    next: u64,
    to: u64,
    attempts: u8,
    insist: bool,
    limits: ChunkLimits,
    max_open: u64,
    rto: Rto,
    /// Open chunks, oldest first, each following on the one before.
    chunks: VecDeque<Chunk>,
    /// Reported chunks that are still listened for, oldest first, with the time of their report.
    retired: VecDeque<(Instant, Chunk)>,
    /// Their positions and what they cost besides.
    retired_cost: u64,
    /// The memory of a finished chunk.
    spare: Option<Chunk>,
    /// Where the last repetition came from: the next one is likely there too.
    hint: usize,
    /// Not before this is any repetition due while others have yet to be asked first.
    send_wake: Instant,
    /// Not before this is any repetition due at all.
    soon_wake: Instant,
    /// Until then the way back to the interface may not stand.
    settling: Option<Instant>,
    /// Not before this is any wait over.
    end_wake: Instant,
    /// The latest time heard of.
    seen: Instant,
    events: VecDeque<Event>,
    stats: Stats,
    /// Probes that are too soon for their targets.
    lanes: Lanes,
    /// Who answered the first and who the second packet.
    cohorts: Cohorts,
    /// Whether all attempts ask the same, so that an answer to a later one means that an earlier one was lost.
    comparable: bool,
    /// Whether the answer that is being taken names its attempt.
    marked: bool,
    /// Whether a closed port is told by an ICMP error.
    closed_by_icmp: bool,
    /// Late answers since the last report.
    late: u64,
    /// Those among them whose round trip is not known.
    blind: u64,
    over: bool,
    /// Whether answers teach how long to wait, now, and whether those do that name no attempt.
    learning: bool,
    unmarked_teach: bool,
}

impl Schedule {
    pub(super) fn new(plan: &ScanPlan) -> Self {
        let limits = plan.chunks;
        let limits = ChunkLimits { positions: limits.positions.max(1), ..limits };
        let per_position = size_of::<u32>() * usize::from(plan.attempts);
        Self {
            next: plan.from,
            to: plan.to,
            attempts: plan.attempts,
            insist: plan.insists(),
            limits,
            max_open: (limits.memory / per_position) as u64,
            rto: Rto::new(plan.timing, plan.attempts).with_round(plan.round()),
            chunks: VecDeque::new(),
            retired: VecDeque::new(),
            retired_cost: 0,
            spare: None,
            hint: 0,
            send_wake: Instant::FAR_FUTURE,
            soon_wake: Instant::FAR_FUTURE,
            settling: None,
            end_wake: Instant::FAR_FUTURE,
            seen: Instant::ZERO,
            events: VecDeque::new(),
            stats: Stats::default(),
            lanes: Lanes::default(),
            cohorts: Cohorts::default(),
            marked: true,
            comparable: plan.technique != Technique::Discover,
            closed_by_icmp: plan.technique == Technique::Udp,
            late: 0,
            blind: 0,
            over: false,
            learning: true,
            unmarked_teach: false,
        }
    }

    pub(super) fn stats(&self) -> Stats {
        self.stats
    }

    /// How long somebody listens for an answer to attempt number `attempt`: until the position is given up.
    pub(super) fn listening(&self, attempt: u8) -> Duration {
        (attempt..self.attempts).map(|attempt| self.rto.after(attempt)).sum()
    }

    /// The latest time heard of.
    pub(super) fn seen(&self) -> Instant {
        self.seen
    }

    /// One past the last position that was begun.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// The next probe, booked as sent.
    #[inline]
    pub(super) fn poll(&mut self, now: Instant) -> Option<Probe> {
        self.seen = self.seen.max(now);
        if self.lanes.len() > 0
            && let Some(probe) = self.poll_held(now)
        {
            return Some(self.booked(now, probe));
        }
        if now >= self.send_wake
            && let Some(probe) = self.poll_due(now, Again::Apart)
        {
            return Some(self.booked(now, probe));
        }
        if let Some(probe) = self.poll_new(now) {
            return Some(self.booked(now, probe));
        }
        if now < self.soon_wake {
            return None;
        }
        let probe = self.poll_due(now, Again::Soon)?;
        Some(self.booked(now, probe))
    }

    #[inline]
    fn booked(&mut self, now: Instant, probe: Probe) -> Probe {
        let due = now + self.rto.after(probe.attempt);
        if probe.attempt + 1 < self.attempts {
            self.soon_wake = self.soon_wake.min(due);
            self.send_wake = self.send_wake.min(now + self.rto.pause(probe.attempt, Again::Apart));
        } else {
            self.end_wake = self.end_wake.min(due);
        }
        self.stats.sent_packets += 1;
        probe
    }

    fn poll_due(&mut self, now: Instant, again: Again) -> Option<Probe> {
        let mut wake = Instant::FAR_FUTURE;
        let count = self.chunks.len();
        for step in 0..count {
            let index = (self.hint + step) % count;
            let chunk = self.chunks.get_mut(index)?;
            if let Some((offset, attempt)) = chunk.poll_due(now, &self.rto, again, &mut wake) {
                self.hint = index;
                return Some(Probe { position: chunk.from() + u64::from(offset), attempt });
            }
        }
        match again {
            Again::Apart => self.send_wake = wake,
            Again::Soon => self.soon_wake = wake,
        }
        // Giving up neighbours may have finished a chunk.
        self.collect(now);
        None
    }

    fn poll_held(&mut self, now: Instant) -> Option<Probe> {
        let mut dropped = false;
        let found = loop {
            let Some(probe) = self.lanes.pop(now) else { break None };
            let released = self.chunk_of(probe.position).is_some_and(|(chunk, offset)| chunk.release(now, offset, probe.attempt));
            if released {
                break Some(probe);
            }
            dropped = true;
        };
        if dropped {
            self.collect(now);
        }
        found
    }

    fn poll_new(&mut self, now: Instant) -> Option<Probe> {
        if self.next >= self.to || self.over || self.lanes.len() >= HELD_MAX {
            return None;
        }
        self.seal_old(now);
        if self.chunks.back().is_none_or(Chunk::is_sealed) {
            let open = self.chunks.front().map_or(0, |front| self.next - front.from());
            if open >= self.max_open.max(1) {
                return None;
            }
            self.forget_retired(now, open);
            let mut chunk = self.spare.take().unwrap_or_else(|| Chunk::new(self.attempts, self.insist));
            chunk.reuse(now, self.next);
            self.chunks.push_back(chunk);
            self.end_wake = self.end_wake.min(now + self.limits.span);
        }
        let chunk = self.chunks.back_mut()?;
        chunk.begin(now);
        let position = self.next;
        self.next += 1;
        self.stats.begun += 1;
        if self.next == self.to || chunk.len() >= self.limits.positions {
            chunk.seal();
        }
        Some(Probe { position, attempt: 0 })
    }

    /// Makes room for a new chunk beside `open` positions: open chunks have precedence over reported ones.
    fn forget_retired(&mut self, now: Instant, open: u64) {
        let wanted = open + u64::from(self.limits.positions);
        while let Some((since, chunk)) = self.retired.front()
            && (wanted + self.retired_cost > self.max_open || now.saturating_since(*since) > LATE_MAX)
        {
            self.retired_cost = self.retired_cost.saturating_sub(RETIRED_COST + u64::from(chunk.len()));
            self.spare = self.retired.pop_front().map(|(_, chunk)| chunk);
        }
    }

    /// Seals the youngest chunk when its time is over.
    fn seal_old(&mut self, now: Instant) {
        let span = self.limits.span;
        if let Some(chunk) = self.chunks.back_mut().filter(|chunk| !chunk.is_sealed())
            && now.saturating_since(chunk.started()) >= span
        {
            chunk.seal();
            self.collect(now);
        }
    }

    /// The chunk that a position belongs to, and its offset there.
    fn chunk_of(&mut self, position: u64) -> Option<(&mut Chunk, u32)> {
        let index = self.chunks.partition_point(|chunk| chunk.from() <= position).checked_sub(1)?;
        let chunk = self.chunks.get_mut(index)?;
        let offset = u32::try_from(position - chunk.from()).ok().filter(|offset| *offset < chunk.len())?;
        Some((chunk, offset))
    }

    /// Counts the bytes of a probe just booked.
    pub(super) fn add_bytes(&mut self, probe: Probe, bytes: usize) {
        self.stats.sent_bytes += bytes as u64;
        if let Some(chunk) = self.chunks.back_mut().filter(|chunk| chunk.from() <= probe.position) {
            chunk.add_bytes(bytes);
        } else if let Some((chunk, _)) = self.chunk_of(probe.position) {
            chunk.add_bytes(bytes);
        }
    }

    /// A probe of `bytes` that was handed out did not leave.
    pub(super) fn not_sent(&mut self, now: Instant, probe: Probe, why: NotSent, bytes: usize) {
        self.seen = self.seen.max(now);
        let rto = self.rto;
        let Some((chunk, offset)) = self.chunk_of(probe.position) else { return };
        chunk.not_sent(now, offset, probe.attempt, why, bytes, &rto);
        let held = chunk.is_held(offset);
        self.stats.sent_packets = self.stats.sent_packets.saturating_sub(1);
        self.stats.sent_bytes = self.stats.sent_bytes.saturating_sub(bytes as u64);
        match why {
            // When it is due is for the chunk to say.
            NotSent::NeighbourPending => (self.send_wake, self.soon_wake) = (Instant::ZERO, Instant::ZERO),
            NotSent::TooSoon { until, lane } => {
                if held {
                    self.lanes.hold(lane, until, probe);
                }
                return;
            }
            _ => self.look_again(),
        }
        self.collect(now);
    }

    /// An answer to a probe came.
    pub(super) fn answer(&mut self, now: Instant, probe: Probe, state: State, ttl: u8) {
        self.seen = self.seen.max(now);
        if self.over || self.chunks.front().map_or(probe.position < self.next, |front| probe.position < front.from()) {
            return self.answer_late(now, probe, state, ttl);
        }
        let taken = self.chunk_of(probe.position).map(|(chunk, offset)| {
            let first_sent = chunk.first_sent(offset);
            (chunk.answer(now, offset, probe.attempt, state, ttl), chunk.is_finished(), first_sent)
        });
        let Some((taken, finished, first_sent)) = taken else {
            self.stats.foreign += 1;
            return;
        };
        match taken {
            Taken::Unasked => self.stats.foreign += 1,
            Taken::Again => self.stats.duplicates += 1,
            Taken::Stronger { contradicts } => self.stats.contradicted += u64::from(contradicts),
            Taken::New(rtt) => {
                self.stats.answers += 1;
                if let Some(first_sent) = first_sent.filter(|_| self.comparable && self.marked) {
                    self.note(first_sent, probe.attempt, state);
                }
                self.learn(rtt);
            }
        }
        if finished {
            self.collect(now);
        }
    }

    /// The interface has just come up.
    pub(super) fn on_link_up(&mut self, now: Instant) {
        for chunk in &mut self.chunks {
            chunk.offer_again(now, now - UNNOTICED);
        }
        self.settling = Some(now + SETTLING);
        self.rto.set_settling(true);
        self.look_again();
    }

    /// Ends the patience when it is time.
    fn settle(&mut self) {
        if self.settling.is_some_and(|until| until <= self.seen) {
            self.settling = None;
            self.rto.set_settling(false);
            self.look_again();
        }
    }

    fn learn(&mut self, rtt: Option<Duration>) {
        self.settle();
        if self.learning && rtt.is_some_and(|rtt| self.rto.sample(rtt)) {
            self.look_again();
        }
    }

    /// An answer for a position that was reported.
    fn answer_late(&mut self, now: Instant, probe: Probe, state: State, ttl: u8) {
        let index = self.retired.partition_point(|(_, chunk)| chunk.from() <= probe.position).checked_sub(1);
        let retired = index.and_then(|index| self.retired.get_mut(index)).map(|(_, chunk)| chunk).filter(|_| !self.over);
        let taken = retired.and_then(|chunk| {
            let offset = u32::try_from(probe.position - chunk.from()).ok().filter(|offset| *offset < chunk.len())?;
            Some(chunk.answer_late(now, offset, probe.attempt, state))
        });
        match taken {
            Some(Taken::New(Some(rtt))) => {
                (self.stats.answers, self.stats.late, self.late) = (self.stats.answers + 1, self.stats.late + 1, self.late + 1);
                self.events.push_back(Event::Late(LateReport { position: probe.position, state, rtt, ttl }));
                self.learn(Some(rtt));
            }
            Some(Taken::Again) => self.stats.duplicates += 1,
            // What was reported stands; that it was contradicted is counted.
            Some(Taken::Stronger { contradicts }) => self.stats.contradicted += u64::from(contradicts),
            Some(Taken::Unasked) => self.stats.foreign += 1,
            Some(Taken::New(None)) | None => {
                (self.stats.late, self.late, self.blind) = (self.stats.late + 1, self.late + 1, self.blind + 1);
            }
        }
    }

    /// The chunk that a position belongs to, its offset there, and whether the chunk is open or reported and still listened for.
    fn known_chunk(&self, position: u64) -> Option<(&Chunk, u32, Heeded)> {
        let open = self.chunks.partition_point(|chunk| chunk.from() <= position).checked_sub(1);
        let retired = self.retired.partition_point(|(_, chunk)| chunk.from() <= position).checked_sub(1);
        let open = open.and_then(|index| self.chunks.get(index)).map(|chunk| (chunk, Heeded::Open));
        let (chunk, how) = open.or_else(|| Some((&self.retired.get(retired?)?.1, Heeded::Late)))?;
        let offset = u32::try_from(position - chunk.from()).ok().filter(|offset| *offset < chunk.len())?;
        Some((chunk, offset, how))
    }

    /// What the first answer for a position is now: `None` where it was not asked, or has answered.
    pub(super) fn heeds(&self, now: Instant, position: u64) -> Option<Heeded> {
        let (chunk, offset, how) = self.known_chunk(position)?;
        (!chunk.is_answered(offset) && chunk.asked(now, offset).is_some()).then_some(how)
    }

    /// An answer came that does not name the attempt that it answers.
    pub(super) fn answer_unmarked(&mut self, now: Instant, position: u64, state: State) {
        let asked = self.known_chunk(position).and_then(|(chunk, offset, _)| chunk.asked(now, offset));
        let (attempt, since_first) = asked.unwrap_or((0, Duration::ZERO));
        self.learning = self.unmarked_teach;
        if attempt > 0 && self.heeds(now, position).is_some() {
            self.learn(Some(since_first));
        }
        self.marked = false;
        self.answer(now, Probe { position, attempt }, state, 0);
        (self.learning, self.marked) = (true, true);
    }

    /// Whether a position on the link is asked by IP packets.
    pub(super) fn is_by_ip(&self, position: u64) -> bool {
        self.known_chunk(position).is_some_and(|(chunk, offset, _)| chunk.is_by_ip(offset))
    }

    /// From here on a position is asked by IP packets, and what was answered on the link is forgotten. `false` where it has been
    /// reported already.
    pub(super) fn ask_by_ip(&mut self, now: Instant, position: u64) -> bool {
        let Some((chunk, offset)) = self.chunk_of(position) else { return false };
        let answered = chunk.ask_by_ip(now, offset);
        self.stats.answers = self.stats.answers.saturating_sub(answered.into());
        self.look_again();
        true
    }

    /// All targets are on the link: what is asked there teaches how long to wait.
    pub(super) fn all_on_link(&mut self) {
        self.rto = Rto::new(Timing::ON_LINK, self.attempts);
        self.unmarked_teach = true;
    }

    /// Some targets are further away: only they teach how long to wait for them, and what was learnt on the link is forgotten.
    pub(super) fn not_all_on_link(&mut self, timing: Timing, round: u8) {
        if core::mem::replace(&mut self.unmarked_teach, false) {
            self.rto = Rto::new(timing, self.attempts).with_round(round);
            self.look_again();
        }
    }

    fn note(&mut self, first_sent: Instant, attempt: u8, state: State) {
        let error = state.is_hearsay() || (self.closed_by_icmp && state == State::Closed);
        let counter = |signs: &mut Signs| match (error, attempt) {
            (false, 0) => signs.first += 1,
            (false, _) => signs.repeated += 1,
            (true, 0) => signs.errors_first += 1,
            (true, _) => signs.errors_repeated += 1,
        };
        // Third packets and later would count what was lost twice.
        if attempt <= 1 {
            self.cohorts.note(first_sent, counter);
        }
    }

    /// What was noticed since the last call.
    pub(super) fn signs(&mut self) -> Signs {
        let again = if self.next < self.to { Again::Apart } else { Again::Soon };
        let wait = self.rto.pause(0, again) + self.rto.mean().unwrap_or_default();
        Signs { wait, ..self.cohorts.take(self.seen, wait) }
    }

    /// The wait has changed: all timers are to be computed anew.
    fn look_again(&mut self) {
        (self.send_wake, self.soon_wake, self.end_wake) = (Instant::ZERO, Instant::ZERO, Instant::ZERO);
    }

    /// When [`Schedule::on_timeout`] is to be called. What is to be sent already is no matter of time.
    pub(super) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let end = (self.end_wake, "end of a wait for answers");
        let repetition = [self.send_wake, self.soon_wake].into_iter().filter(|at| *at > self.seen).min();
        let mut next = match repetition {
            Some(at) if at < self.end_wake => (at, "repetition of a probe"),
            _ => end,
        };
        if let Some(due) = self.lanes.next_due().filter(|due| *due > self.seen && *due < next.0) {
            next = (due, "end of a wait for a target's limit");
        }
        (!self.chunks.is_empty() && next.0 < Instant::FAR_FUTURE).then_some(next)
    }

    pub(super) fn on_timeout(&mut self, now: Instant) {
        self.seen = self.seen.max(now);
        self.settle();
        self.seal_old(now);
        loop {
            let mut wake = Instant::FAR_FUTURE;
            for chunk in &mut self.chunks {
                chunk.end_waits(now, &self.rto, &mut wake);
                if !chunk.is_sealed() {
                    wake = wake.min(chunk.started() + self.limits.span);
                }
            }
            self.end_wake = wake.max(now + END_GRAIN);
            // A chunk that is over may shorten the wait of the others.
            self.collect(now);
            if self.end_wake > now {
                return;
            }
        }
    }

    /// Reports the chunks at the front that are finished, and the end.
    fn collect(&mut self, now: Instant) {
        while self.chunks.front().is_some_and(Chunk::is_finished) {
            let Some(mut chunk) = self.chunks.pop_front() else { break };
            let late = core::mem::take(&mut self.late);
            self.events.push_back(Event::Chunk(chunk.report(now, chunk.len(), late)));
            chunk.retire();
            self.retired_cost += RETIRED_COST + u64::from(chunk.len());
            self.retired.push_back((now, chunk));
            self.hint = 0;
            if self.rto.chunk_over(core::mem::take(&mut self.blind) > 0) {
                self.look_again();
            }
        }
        if self.chunks.is_empty() && self.next == self.to {
            self.finish(self.to);
        }
    }

    fn finish(&mut self, next: u64) {
        if !self.over {
            self.over = true;
            self.lanes.clear();
            self.chunks.clear();
            self.retired.clear();
            self.spare = None;
            self.events.push_back(Event::Done(Done { next, stats: self.stats }));
        }
    }

    /// Ends the scan now.
    pub(super) fn cut(&mut self, now: Instant, how: Cut) {
        if self.over {
            return;
        }
        self.on_timeout(now);
        let mut end = self.chunks.front().map_or(self.next, Chunk::from);
        for chunk in core::mem::take(&mut self.chunks) {
            let decided = if how == Cut::Final { chunk.len() } else { chunk.first_undecided() };
            if decided > 0 {
                self.events.push_back(Event::Chunk(chunk.report(now, decided, core::mem::take(&mut self.late))));
                end = chunk.from() + u64::from(decided);
            }
            if decided < chunk.len() {
                break;
            }
        }
        self.finish(end);
    }

    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use picket_wire::addr::parse_set;
    use picket_wire::job::{ScanOptions, Technique};
    use picket_wire::space::{TargetSpace, TargetSpec};

    use super::*;

    /// A schedule with room for 20,000 positions, one probe a microsecond, into a silent network.
    #[test]
    fn what_is_listened_for_is_bounded_and_open_chunks_come_first() {
        let spec = TargetSpec {
            include: parse_set("198.18.0.0/15").unwrap(),
            exclude: parse_set("").unwrap(),
            ports: Some("80".parse().unwrap()),
            seed: 1,
        };
        let space = std::sync::Arc::new(TargetSpace::new(&spec).unwrap());
        let mut plan = ScanPlan::new(space, 0, 100_000, ScanOptions { technique: Technique::Syn, attempts: 2 }).unwrap();
        plan.chunks = ChunkLimits { positions: 1_000, memory: 8 * 20_000, ..plan.chunks };
        let mut schedule = Schedule::new(&plan);
        let (mut now, mut most_retired, mut late) = (Instant::ZERO, 0, 0);
        while !schedule.over {
            now += Duration::from_micros(1);
            if schedule.poll(now).is_none() {
                let (at, _) = schedule.poll_timeout().expect("a scan that is not over waits for something");
                now = now.max(at);
                schedule.on_timeout(now);
            }
            let open: u64 = schedule.chunks.iter().map(|chunk| u64::from(chunk.len())).sum();
            let retired: u64 = schedule.retired.iter().map(|(_, chunk)| u64::from(chunk.len())).sum();
            assert!(open + retired <= 20_000, "{open} {retired}");
            most_retired = most_retired.max(retired);
            // The oldest chunk that is remembered still takes an answer, the one before it none.
            if let Some(from) = schedule.retired.front().map(|(_, chunk)| chunk.from())
                && late == 0
                && from > 0
            {
                schedule.answer(now, Probe { position: from - 1, attempt: 1 }, State::Open, 60);
                assert_eq!((schedule.stats.answers, schedule.stats.late), (0, 1));
                for _ in 0..2 {
                    schedule.answer(now, Probe { position: from, attempt: 1 }, State::Closed, 60);
                }
                assert_eq!((schedule.stats.answers, schedule.stats.late, schedule.stats.duplicates), (1, 2, 1));
                schedule.answer(now, Probe { position: from, attempt: 0 }, State::Open, 60);
                assert_eq!((schedule.stats.answers, schedule.stats.contradicted), (1, 1));
                late += 1;
            }
        }
        assert!(most_retired >= 10_000 && late == 1, "{most_retired}");
        let told = core::iter::from_fn(|| schedule.poll_event()).filter(|event| matches!(event, Event::Late(_))).count();
        assert_eq!((told, schedule.retired.len()), (1, 0));
    }
}
