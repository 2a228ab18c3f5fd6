//! Which bytes of a file are on their way to the controller: a window over what the disk has confirmed, as pure decisions.
//!
//! Each chunk, and each question, has one answer: how many bytes the controller has. Where that is what the oldest chunk on its way would
//! have made of it, the file has grown there; where it is anything else, that chunk was not taken, nor will those behind it be:
//! when all of them are answered the file goes on behind what is there. A new session begins with a question, since an answer may
//! have been lost with the old one, and the controller may have been restored from a backup.
//!
//! It must not know files, compression or transports: offsets and time (since any fixed origin) are parameters.
//!
//! **Invariants:**
//! - Nothing is sent that the disk has not confirmed: what a crash cuts off was not sent.
//! - No more than [`WINDOW`] bytes are on their way.
//! - It ends: what is not answered for [`STALL`] is asked for again, and what has no room waits.

use core::time::Duration;
use std::collections::VecDeque;

use picket_wire::capture::{CHUNK_MAX, ChunkState};

/// Most bytes on their way: on a slow link commands must not wait long behind them.
pub const WINDOW: u64 = 4 * CHUNK_MAX as u64;
/// Without an answer for so long everything is asked for again.
pub const STALL: Duration = Duration::from_secs(30);
/// How soon a controller without room is asked again at first, and at the latest one that does not know that the file is whole.
pub const AGAIN: Duration = Duration::from_secs(15);

/// How soon it is asked first whether it knows that the file is whole.
const SOON: Duration = Duration::from_secs(1);
/// So often the controller may have all without knowing that it is all, before it is told so once more.
const UNHEARD: u32 = 8;

/// What to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// How many bytes does the controller have?
    Question,
    /// These bytes.
    Bytes {
        /// Where they begin.
        offset: u64,
        /// How many they are.
        len: usize,
    },
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// It goes on.
    Open,
    /// The controller has all of it.
    Whole,
    /// The controller does not want it.
    Unwanted,
    /// Somebody removed it at the controller.
    Removed,
}

/// The upload of one file.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Bytes that the disk has confirmed.
    durable: u64,
    /// No more will come.
    over: bool,
    /// A session is there.
    live: bool,
    /// What the controller has, where it was told in this session.
    stored: Option<u64>,
    /// The next byte to be sent.
    next: u64,
    /// What the controller will have after each chunk on its way; `None` for a question.
    flying: VecDeque<Option<u64>>,
    /// A chunk was not taken: all answers are awaited.
    turning: bool,
    progress: Duration,
    /// Asked again at this moment.
    again: Option<Duration>,
    course: Course,
    /// How often it was refused for want of room.
    refused: u32,
    /// How often the controller had all of it and did not know that.
    unheard: u32,
}

impl Upload {
    /// A file of which the disk has confirmed so much, and to which more will come unless it is `over`.
    pub fn new(durable: u64, over: bool) -> Self {
        Self {
            durable,
            over,
            live: false,
            stored: None,
            next: 0,
            flying: VecDeque::new(),
            turning: false,
            progress: Duration::ZERO,
            again: None,
            course: Course::Open,
            refused: 0,
            unheard: 0,
        }
    }

    /// How far it is.
    pub fn course(&self) -> Course {
        self.course
    }

    /// Whether it takes part in a session.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Bytes on their way.
    pub fn flying(&self) -> u64 {
        let (first, stored) = (self.stored.unwrap_or(self.next), self.flying.iter().flatten().last());
        stored.map_or(0, |last| last.saturating_sub(first))
    }

    /// Whether the controller has had all of it for a while without knowing that this is all. Says so once in a while.
    pub fn is_unheard(&mut self) -> bool {
        let unheard = self.unheard >= UNHEARD;
        if unheard {
            self.unheard = 0;
        }
        unheard
    }

    /// The disk has confirmed so much.
    pub fn grown(&mut self, durable: u64) {
        self.durable = self.durable.max(durable);
    }

    /// No more will come: the file has so many bytes, all confirmed.
    pub fn ended(&mut self, len: u64) {
        self.grown(len);
        self.over = true;
        if self.stored == Some(len) && self.flying.is_empty() {
            // All of it is there, and nothing else will ask whether that is known.
            self.again = Some(self.progress);
        }
    }

    /// A session begins.
    pub fn begin(&mut self, now: Duration) {
        self.live = true;
        self.restart(now);
    }

    /// The session is over.
    pub fn end(&mut self) {
        self.live = false;
    }

    fn restart(&mut self, now: Duration) {
        (self.stored, self.turning, self.again) = (None, false, None);
        self.flying.clear();
        self.progress = now;
    }

    /// What to send now, where there is anything and the window has room.
    pub fn want(&self, now: Duration) -> Option<Want> {
        if !self.live || self.course != Course::Open || self.turning {
            return None;
        }
        if let Some(at) = self.again {
            return (now >= at && self.flying.is_empty()).then_some(Want::Question);
        }
        if self.stored.is_none() {
            return self.flying.is_empty().then_some(Want::Question);
        }
        let (stored, left) = (self.stored?, self.durable.checked_sub(self.next)?);
        let len = left.min(CHUNK_MAX as u64);
        let room = self.next + len <= stored + WINDOW;
        (len > 0 && room).then_some(Want::Bytes { offset: self.next, len: len as usize })
    }

    /// It was handed to the transport.
    pub fn sent(&mut self, now: Duration, want: Want) {
        if self.flying.is_empty() {
            self.progress = now;
        }
        match want {
            Want::Question => {
                self.again = None;
                self.flying.push_back(None);
            }
            Want::Bytes { offset, len } => {
                self.next = offset + len as u64;
                self.flying.push_back(Some(self.next));
            }
        }
    }

    /// The controller has so many bytes.
    pub fn acked(&mut self, now: Duration, stored: u64, state: ChunkState) {
        if !self.live || self.course != Course::Open {
            return;
        }
        self.progress = now;
        if stored > self.durable {
            // The disk may have lost what it had confirmed, or has not been read yet. Once the file is over its digest tells, and the controller
            // begins anew where it has something else.
            self.flying.pop_front();
            (self.stored, self.again) = (None, Some(now + AGAIN));
            return;
        }
        match state {
            ChunkState::Open => self.refused = 0,
            ChunkState::Whole if self.over && stored == self.durable => {
                self.course = Course::Whole;
                return;
            }
            // Of another life of the file.
            ChunkState::Whole => {}
            ChunkState::NoRoom => {
                self.again = Some(now + AGAIN.saturating_mul(1 << self.refused.min(6)));
                self.refused += u32::from(self.flying.len() <= 1);
            }
            ChunkState::Removed => {
                self.course = Course::Removed;
                return;
            }
            ChunkState::Unwanted => {
                self.course = Course::Unwanted;
                return;
            }
        }
        self.stored = Some(stored);
        match self.flying.pop_front() {
            Some(Some(expected)) if expected == stored => {}
            Some(Some(_)) => self.turning = true,
            // Told without having been asked for, or the answer to a question.
            Some(None) | None => self.turning |= !self.flying.is_empty() || self.next != stored,
        }
        if self.turning && self.flying.is_empty() {
            self.turning = false;
            self.next = stored;
        }
        if self.over && stored == self.durable && self.flying.is_empty() {
            // Its end is not known there yet, or its digest is being looked at.
            self.again = self.again.or(Some(now + SOON.saturating_mul(1 << self.unheard.min(4)).min(AGAIN)));
            self.unheard += 1;
        }
    }

    /// When [`Upload::on_timeout`] is due, or there is something to be sent again.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let open = self.live && self.course == Course::Open;
        let stall = (!self.flying.is_empty()).then(|| self.progress + STALL);
        open.then(|| stall.into_iter().chain(self.again.filter(|_| self.flying.is_empty())).min()).flatten()
    }

    /// Where answers stay out, everything is asked for again. Says whether.
    pub fn on_timeout(&mut self, now: Duration) -> bool {
        let stalled = self.live && !self.flying.is_empty() && now >= self.progress + STALL;
        if stalled {
            self.restart(now);
        }
        stalled
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNK: u64 = CHUNK_MAX as u64;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn begun(durable: u64, over: bool, stored: u64) -> Upload {
        let mut upload = Upload::new(durable, over);
        assert_eq!(upload.want(seconds(0)), None, "nothing is sent without a session");
        upload.begin(seconds(0));
        assert_eq!(upload.want(seconds(0)), Some(Want::Question));
        upload.sent(seconds(0), Want::Question);
        assert_eq!(upload.want(seconds(0)), None, "one question at a time");
        upload.acked(seconds(0), stored, ChunkState::Open);
        upload
    }

    /// Sends all that may be sent.
    fn pump(upload: &mut Upload, now: Duration) -> Vec<(u64, u64)> {
        let mut sent = Vec::new();
        while let Some(want) = upload.want(now) {
            upload.sent(now, want);
            if let Want::Bytes { offset, len } = want {
                sent.push((offset, offset + len as u64));
            }
        }
        sent
    }

    #[test]
    fn it_goes_on_behind_what_is_there_within_its_window() {
        let mut upload = begun(10 * CHUNK + 5, false, CHUNK / 2);
        let sent = pump(&mut upload, seconds(0));
        assert_eq!((sent.len(), sent[0].0), (4, CHUNK / 2));
        upload.acked(seconds(1), sent[0].1, ChunkState::Open);
        assert_eq!(pump(&mut upload, seconds(1)), [(sent[3].1, sent[3].1 + CHUNK)]);
    }

    #[test]
    fn what_was_not_taken_is_sent_again_once() {
        let mut upload = begun(10 * CHUNK, false, 0);
        let sent = pump(&mut upload, seconds(0));
        // The second was lost.
        for stored in [sent[0].1, sent[0].1, sent[0].1] {
            upload.acked(seconds(1), stored, ChunkState::Open);
            assert!(!upload.flying.is_empty(), "four were sent");
        }
        assert!(upload.turning && upload.want(seconds(1)).is_none(), "an answer is missing");
        assert!(!upload.on_timeout(seconds(30)) && upload.on_timeout(seconds(31)));
        assert_eq!(upload.want(seconds(31)), Some(Want::Question));
        upload.sent(seconds(31), Want::Question);
        upload.acked(seconds(31), CHUNK, ChunkState::Open);
        assert_eq!(pump(&mut upload, seconds(31))[0].0, CHUNK);
    }

    #[test]
    fn it_is_whole_when_the_controller_says_so() {
        let mut upload = begun(7, false, 7);
        assert_eq!(upload.want(seconds(0)), None);
        upload.acked(seconds(1), 7, ChunkState::Whole);
        assert_eq!(upload.course(), Course::Open, "more may come");
        upload.ended(9);
        assert_eq!(pump(&mut upload, seconds(2)), [(7, 9)]);
        upload.acked(seconds(3), 9, ChunkState::Open);
        assert_eq!((upload.want(seconds(3)), upload.poll_timeout()), (None, Some(seconds(4))));
        assert_eq!(upload.want(seconds(4)), Some(Want::Question), "the end may have come there meanwhile");
        upload.sent(seconds(4), Want::Question);
        upload.acked(seconds(4), 9, ChunkState::Open);
        assert_eq!((upload.want(seconds(5)), upload.want(seconds(6))), (None, Some(Want::Question)));
        upload.sent(seconds(6), Want::Question);
        upload.acked(seconds(6), 9, ChunkState::Whole);
        assert_eq!((upload.course(), upload.want(seconds(60))), (Course::Whole, None));
    }

    #[test]
    fn an_end_that_brings_no_bytes_is_asked_about() {
        for len in [0, 7] {
            let mut upload = begun(len, false, len);
            upload.ended(len);
            assert_eq!(upload.want(seconds(0)), Some(Want::Question));
            upload.sent(AGAIN, Want::Question);
            upload.acked(AGAIN, len, ChunkState::Whole);
            assert_eq!(upload.course(), Course::Whole);
        }
    }

    #[test]
    fn an_end_that_is_not_heard_is_told_again() {
        let mut upload = begun(7, true, 7);
        let mut now = seconds(0);
        let mut told = 0;
        for _ in 0..40 {
            now += AGAIN;
            upload.sent(now, Want::Question);
            upload.acked(now, 7, ChunkState::Open);
            told += u32::from(upload.is_unheard());
        }
        assert_eq!(told, 5);
    }

    #[test]
    fn a_controller_without_room_is_asked_now_and_then() {
        let mut upload = begun(3 * CHUNK, true, 0);
        assert_eq!(pump(&mut upload, seconds(0)).len(), 3);
        for _ in 0..3 {
            upload.acked(seconds(1), 0, ChunkState::NoRoom);
        }
        assert_eq!((upload.want(seconds(15)), upload.want(seconds(16))), (None, Some(Want::Question)));
        upload.sent(seconds(16), Want::Question);
        upload.acked(seconds(17), 0, ChunkState::Open);
        assert_eq!(pump(&mut upload, seconds(17)).len(), 3);
    }

    #[test]
    fn one_that_has_more_than_there_is_gets_nothing() {
        let mut upload = Upload::new(5, false);
        upload.begin(seconds(0));
        upload.sent(seconds(0), Want::Question);
        upload.acked(seconds(0), 6, ChunkState::Open);
        assert_eq!(
            (upload.want(seconds(14)), upload.want(seconds(15))),
            (None, Some(Want::Question)),
            "nothing is put behind what is not here"
        );
        upload.sent(seconds(15), Want::Question);
        upload.acked(seconds(15), 0, ChunkState::Open);
        assert_eq!(pump(&mut upload, seconds(15)), [(0, 5)]);
        let mut upload = begun(5, false, 0);
        upload.acked(seconds(0), 0, ChunkState::Unwanted);
        assert_eq!((upload.course(), upload.poll_timeout()), (Course::Unwanted, None));
    }

    /// What may happen to either side.
    #[derive(Debug, Clone, Copy)]
    enum Fault {
        /// Bytes are added to the file and confirmed.
        Grow(u64),
        /// The next message is lost on the way there, or its answer on the way back.
        LoseChunk,
        LoseAnswer,
        /// The connection breaks, with all that is on its way.
        Break,
        /// The probe is killed: it knows only its file.
        KillProbe,
        /// The controller is restored from what it had a while ago.
        Restore,
        /// Messages are handled.
        Step(u8),
    }

    fn faults() -> impl Strategy<Value = Vec<Fault>> {
        let fault = prop_oneof![
            3 => (1u64..3 * CHUNK).prop_map(Fault::Grow),
            1 => Just(Fault::LoseChunk),
            1 => Just(Fault::LoseAnswer),
            1 => Just(Fault::Break),
            1 => Just(Fault::KillProbe),
            1 => Just(Fault::Restore),
            6 => (1u8..6).prop_map(Fault::Step),
        ];
        proptest::collection::vec(fault, 1..60)
    }

    /// A probe, a controller, and what is between them.
    struct World {
        upload: Upload,
        /// Length of the file, all of it confirmed.
        file: u64,
        stored: u64,
        backup: u64,
        there: VecDeque<Want>,
        back: VecDeque<u64>,
        now: Duration,
        /// The most that was on its way.
        most: u64,
    }

    impl World {
        fn step(&mut self) {
            self.now += Duration::from_millis(500);
            self.upload.on_timeout(self.now);
            while let Some(want) = self.upload.want(self.now) {
                if let Want::Bytes { offset, len } = want {
                    assert!(offset + len as u64 <= self.file, "only what the disk has confirmed");
                }
                self.upload.sent(self.now, want);
                self.there.push_back(want);
                let flying: usize = self.there.iter().map(|want| if let Want::Bytes { len, .. } = want { *len } else { 0 }).sum();
                self.most = self.most.max(flying as u64);
            }
            if let Some(want) = self.there.pop_front() {
                if let Want::Bytes { offset, len } = want
                    && offset == self.stored
                {
                    self.stored += len as u64;
                }
                self.back.push_back(self.stored);
            }
            if let Some(stored) = self.back.pop_front() {
                let state = if self.upload.over && stored == self.file { ChunkState::Whole } else { ChunkState::Open };
                self.upload.acked(self.now, stored, state);
            }
        }

        fn reconnect(&mut self) {
            self.there.clear();
            self.back.clear();
            self.upload.end();
            self.upload.begin(self.now);
        }

        fn suffer(&mut self, fault: Fault) {
            match fault {
                Fault::Grow(more) => {
                    self.file += more;
                    self.upload.grown(self.file);
                }
                Fault::LoseChunk => drop(self.there.pop_front()),
                Fault::LoseAnswer => drop(self.back.pop_front()),
                Fault::Break => self.reconnect(),
                Fault::KillProbe => {
                    self.upload = Upload::new(self.file, false);
                    self.reconnect();
                }
                Fault::Restore => {
                    // Restoring takes its time, and its sessions.
                    self.stored = core::mem::replace(&mut self.backup, self.stored).min(self.stored);
                    self.reconnect();
                }
                Fault::Step(steps) => (0..steps).for_each(|_| self.step()),
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_every_byte_arrives(faults in faults()) {
            let upload = Upload::new(0, false);
            let (there, back) = (VecDeque::new(), VecDeque::new());
            let mut world = World { upload, file: 0, stored: 0, backup: 0, there, back, now: Duration::ZERO, most: 0 };
            world.reconnect();
            for fault in faults {
                world.suffer(fault);
            }
            world.upload.ended(world.file);
            for _ in 0..2_000 {
                world.step();
            }
            prop_assert_eq!((world.stored, world.upload.course()), (world.file, Course::Whole));
            prop_assert!(world.most <= WINDOW);
        }
    }
}
