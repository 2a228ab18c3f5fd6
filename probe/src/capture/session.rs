//! What becomes of each packet of a capture: kept, shown, counted into a flow; and when the capture ends or changes its file.
//!
//! It must not know libpcap, files, threads or clocks: packets, time and places to put things are parameters.
//!
//! **Invariants:**
//! - Of the packets that came, each was shown or counted as skipped, where packets are shown.
//! - Showing never holds up keeping: what finds no room is skipped and counted.

use core::time::Duration;

use picket_packet::line::Allowance;
pub use picket_packet::line::Shown;

use super::flows::{Flows, Record};
use super::pcapng::{Packet, write};

/// When a capture ends by itself. What is `None` ends nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// After so many packets.
    pub packets: Option<u64>,
    /// Before all files together have more bytes.
    pub bytes: Option<u64>,
    /// After so long.
    pub time: Option<Duration>,
}

/// When a capture begins a new file, if the present one has a packet. What is `None` begins none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rotation {
    /// Before the file has more bytes.
    pub bytes: Option<u64>,
    /// After so long.
    pub every: Option<Duration>,
    /// When a day begins, as the second parameter of [`Session::tick`] has it.
    pub daily: bool,
}

impl Rotation {
    /// Whether there is any.
    pub fn is_some(&self) -> bool {
        *self != Self::default()
    }
}

/// What is told beside the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Telling {
    /// Packets that are shown per second, at most; `None` shows none.
    pub packets: Option<u32>,
    /// Flows are told of so often.
    pub flows: Option<Duration>,
    /// Flows that are remembered at most.
    pub most_flows: usize,
}

impl Telling {
    /// Files alone.
    pub const NOTHING: Self = Self { packets: None, flows: None, most_flows: 0 };
}

/// Why a capture ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// As many packets as were asked for.
    Packets,
    /// As many bytes.
    Bytes,
    /// As long.
    Time,
}

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A packet.
    Packet(Shown),
    /// What flows did in an interval; those that had no room in the table come by themselves.
    Flows(Vec<Record>),
}

/// Where news go. Must not wait.
pub trait Outlet {
    /// Takes something; false where there is no room for it.
    fn offer(&mut self, news: News) -> bool;
}

/// Where nothing is shown.
#[derive(Debug, Clone, Copy)]
pub struct Nowhere;

impl Outlet for Nowhere {
    fn offer(&mut self, _: News) -> bool {
        false
    }
}

/// Where packets are kept.
pub trait Keep {
    /// Appends a packet.
    fn packet(&mut self, packet: &Packet<'_>);
    /// Bytes of the present file, and of all.
    fn lens(&self) -> (u64, u64);
    /// Ends the present file and begins the next one.
    fn rotate(&mut self);
}

/// What a session counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packets that came, and were within the limits.
    pub delivered: u64,
    /// Their bytes on the wire.
    pub bytes: u64,
    /// Packets that were shown.
    pub shown: u64,
    /// Packets that were not, since more came than are shown.
    pub skipped: u64,
    /// Records of flows that found no room on their way out.
    pub records_lost: u64,
}

/// A capture under way.
#[derive(Debug)]
pub struct Session {
    link_type: u16,
    limits: Limits,
    rotation: Rotation,
    telling: Telling,
    counts: Counts,
    lines: Allowance,
    flows: Option<Flows>,
    flows_due: Duration,
    /// Packets of the present file, and when it began, on both clocks.
    file_packets: u64,
    file_since: Duration,
    day: i64,
    now: Duration,
    end: Option<Limit>,
}

impl Session {
    /// Begins at zero of the time that [`Self::tick`] is told, on `day`.
    pub fn new(link_type: u16, limits: Limits, rotation: Rotation, telling: Telling, day: i64) -> Self {
        Self {
            link_type,
            limits,
            rotation,
            telling,
            counts: Counts::default(),
            lines: Allowance::new(telling.packets.unwrap_or(0)),
            flows: telling.flows.map(|_| Flows::new(telling.most_flows)),
            flows_due: telling.flows.unwrap_or(Duration::MAX),
            file_packets: 0,
            file_since: Duration::ZERO,
            day,
            now: Duration::ZERO,
            end: None,
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The flows, where they are counted.
    pub fn flows(&self) -> Option<&Flows> {
        self.flows.as_ref()
    }

    /// How many packets may come before a limit is reached.
    pub fn room(&self) -> u64 {
        if self.end.is_some() { 0 } else { self.limits.packets.map_or(u64::MAX, |most| most.saturating_sub(self.counts.delivered)) }
    }

    /// Takes a packet; false where it lies behind a limit.
    pub fn packet(&mut self, packet: &Packet<'_>, keep: Option<&mut dyn Keep>, outlet: &mut dyn Outlet) -> bool {
        if self.room() == 0 {
            return false;
        }
        if let Some(keep) = keep
            && !self.keep(packet, keep)
        {
            return false;
        }
        self.counts.delivered += 1;
        self.counts.bytes += u64::from(packet.original_len);
        if let Some(flows) = &mut self.flows {
            flows.packet(self.link_type, packet.time, packet.original_len, packet.data);
        }
        if self.telling.packets.is_some() {
            self.show(packet, outlet);
        }
        if self.limits.packets == Some(self.counts.delivered) {
            self.end = Some(Limit::Packets);
        }
        true
    }

    /// A file has one packet at least: a limit below a packet's length makes no empty ones.
    fn keep(&mut self, packet: &Packet<'_>, keep: &mut dyn Keep) -> bool {
        let ((file, all), more) = (keep.lens(), write::packet_len(packet.data.len()) as u64);
        if self.limits.bytes.is_some_and(|most| all + more > most) {
            self.end = Some(Limit::Bytes);
            return false;
        }
        if self.rotation.bytes.is_some_and(|most| file + more > most) {
            self.rotate(keep);
        }
        keep.packet(packet);
        self.file_packets += 1;
        true
    }

    fn rotate(&mut self, keep: &mut dyn Keep) {
        if self.file_packets > 0 {
            keep.rotate();
            (self.file_packets, self.file_since) = (0, self.now);
        }
    }

    fn show(&mut self, packet: &Packet<'_>, outlet: &mut dyn Outlet) {
        let room = self.lines.is_left();
        let shown = || Shown::new(self.counts.delivered, packet);
        if room && outlet.offer(News::Packet(shown())) {
            self.lines.spend();
            self.counts.shown += 1;
        } else {
            self.counts.skipped += 1;
        }
    }

    /// Says that so much time has passed, and that it is `day`; gives the limit that ends the capture.
    pub fn tick(&mut self, elapsed: Duration, day: i64, keep: Option<&mut dyn Keep>, outlet: &mut dyn Outlet) -> Option<Limit> {
        self.now = elapsed;
        self.lines.tick(elapsed);
        if elapsed >= self.flows_due {
            let every = self.telling.flows.unwrap_or(Duration::MAX).max(Duration::from_millis(1));
            // Intervals that were missed are not made up for: the next one ends where it would have.
            let missed = elapsed.saturating_sub(self.flows_due).as_nanos() / every.as_nanos();
            self.flows_due = self.flows_due.saturating_add(every.saturating_mul(u32::try_from(missed + 1).unwrap_or(u32::MAX)));
            self.tell_flows(false, outlet);
        } else {
            self.tell_early(outlet);
        }
        let late = self.rotation.every.is_some_and(|every| elapsed.saturating_sub(self.file_since) >= every);
        let next_day = core::mem::replace(&mut self.day, day) != day;
        if (late || (self.rotation.daily && next_day))
            && let Some(keep) = keep
        {
            self.rotate(keep);
        }
        let over = self.limits.time.is_some_and(|most| elapsed >= most);
        self.end = self.end.or(over.then_some(Limit::Time));
        self.end
    }

    /// Tells the last records.
    pub fn end(&mut self, outlet: &mut dyn Outlet) {
        self.tell_flows(true, outlet);
    }

    fn tell_early(&mut self, outlet: &mut dyn Outlet) {
        let early = self.flows.as_mut().map(Flows::early).unwrap_or_default();
        self.tell(early, outlet);
    }

    fn tell_flows(&mut self, end: bool, outlet: &mut dyn Outlet) {
        let records = self.flows.as_mut().map(|flows| flows.interval(end)).unwrap_or_default();
        self.tell(records, outlet);
    }

    fn tell(&mut self, records: Vec<Record>, outlet: &mut dyn Outlet) {
        let count = records.len() as u64;
        if count > 0 && !outlet.offer(News::Flows(records)) {
            self.counts.records_lost += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::UnixNanos;
    use crate::packet::link::RAW_IP;

    #[derive(Default)]
    struct Room {
        left: usize,
        news: Vec<News>,
    }

    impl Outlet for Room {
        fn offer(&mut self, news: News) -> bool {
            let taken = self.left > 0;
            if taken {
                self.left -= 1;
                self.news.push(news);
            }
            taken
        }
    }

    #[derive(Default)]
    struct Kept {
        times: Vec<u64>,
        file: u64,
        all: u64,
        changes: Vec<usize>,
    }

    impl Keep for Kept {
        fn packet(&mut self, packet: &Packet<'_>) {
            self.times.push(packet.time.0);
            let len = write::packet_len(packet.data.len()) as u64;
            (self.file, self.all) = (self.file + len, self.all + len);
        }
        fn lens(&self) -> (u64, u64) {
            (self.file, self.all)
        }
        fn rotate(&mut self) {
            self.file = 0;
            self.changes.push(self.times.len());
        }
    }

    fn packet(n: u64) -> Packet<'static> {
        Packet { interface: 0, time: UnixNanos(n), original_len: 60, data: &[0; 40] }
    }

    const QUIET: Telling = Telling { packets: None, flows: None, most_flows: 8 };

    fn session(limits: Limits, rotation: Rotation, telling: Telling) -> Session {
        Session::new(RAW_IP, limits, rotation, telling, 0)
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn packets_end_it() {
        let (mut room, mut kept) = (Room::default(), Kept::default());
        let mut session = session(Limits { packets: Some(2), ..Limits::default() }, Rotation::default(), QUIET);
        let taken: Vec<bool> = (0..4).map(|n| session.packet(&packet(n), Some(&mut kept), &mut room)).collect();
        assert_eq!((taken, kept.times, session.room()), (vec![true, true, false, false], vec![0, 1], 0));
        assert_eq!(session.tick(seconds(0), 0, None, &mut room), Some(Limit::Packets));
        assert_eq!(session.counts(), Counts { delivered: 2, bytes: 120, ..Counts::default() });
    }

    #[test]
    fn bytes_end_it_before_there_are_more() {
        let (mut room, mut kept) = (Room::default(), Kept::default());
        let mut session = session(Limits { bytes: Some(150), ..Limits::default() }, Rotation::default(), QUIET);
        for n in 0..9 {
            session.packet(&packet(n), Some(&mut kept), &mut room);
        }
        assert_eq!((kept.all, session.counts().delivered), (144, 2));
        assert_eq!(session.tick(seconds(0), 0, Some(&mut kept), &mut room), Some(Limit::Bytes));
    }

    #[test]
    fn time_ends_it() {
        let mut session = session(Limits { time: Some(seconds(3)), ..Limits::default() }, Rotation::default(), QUIET);
        let mut room = Room::default();
        assert_eq!(session.tick(Duration::from_millis(2_999), 0, None, &mut room), None);
        assert_eq!(session.tick(seconds(3), 0, None, &mut room), Some(Limit::Time));
    }

    #[test]
    fn files_change_by_size_time_and_day() {
        let (mut room, mut kept) = (Room::default(), Kept::default());
        let rotation = Rotation { bytes: Some(100), every: Some(seconds(10)), daily: true };
        let mut session = session(Limits::default(), rotation, QUIET);
        let packets = |session: &mut Session, kept: &mut Kept, count| {
            (0..count).for_each(|n| assert!(session.packet(&packet(n), Some(kept), &mut Room::default())));
        };
        // 72 bytes each, and one is in each file even where it is too long.
        packets(&mut session, &mut kept, 3);
        assert_eq!(kept.changes, [1, 2]);
        session.tick(seconds(9), 0, Some(&mut kept), &mut room);
        packets(&mut session, &mut kept, 1);
        assert_eq!(kept.changes, [1, 2, 3]);
        session.tick(seconds(10), 0, Some(&mut kept), &mut room);
        assert_eq!(kept.changes.len(), 3, "ten seconds count from the last change");
        session.tick(seconds(19), 0, Some(&mut kept), &mut room);
        assert_eq!(kept.changes, [1, 2, 3, 4]);
        // A file without a packet stays.
        session.tick(seconds(20), 1, Some(&mut kept), &mut room);
        session.tick(seconds(40), 1, Some(&mut kept), &mut room);
        assert_eq!(kept.changes, [1, 2, 3, 4]);
        packets(&mut session, &mut kept, 1);
        session.tick(seconds(41), 2, Some(&mut kept), &mut room);
        assert_eq!(kept.changes, [1, 2, 3, 4, 5]);
        session.tick(seconds(42), 2, Some(&mut kept), &mut room);
        assert_eq!(kept.changes, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_is_not_shown_is_counted() {
        let telling = Telling { packets: Some(3), ..QUIET };
        let mut session = session(Limits::default(), Rotation::default(), telling);
        let mut room = Room { left: 5, news: Vec::new() };
        for n in 0..10 {
            session.packet(&packet(n), None, &mut room);
        }
        // The next second; the reader is slow.
        session.tick(seconds(1), 0, None, &mut room);
        for n in 10..14 {
            session.packet(&packet(n), None, &mut room);
        }
        let counts = session.counts();
        assert_eq!((counts.shown, counts.skipped, counts.delivered), (5, 9, 14));
        let News::Packet(last) = room.news.last().unwrap() else { panic!("a packet is expected") };
        assert_eq!((last.number, last.time, last.original_len), (12, UnixNanos(11), 60));
    }

    #[test]
    fn flows_are_told_at_intervals_and_losses_counted() {
        let bytes = crate::packet::ip::v4_header([198, 18, 0, 1].into(), [198, 18, 0, 2].into(), 47, 64, 0);
        let packet = Packet { interface: 0, time: UnixNanos(5), original_len: 60, data: &bytes };
        let telling = Telling { flows: Some(seconds(2)), ..QUIET };
        let mut session = session(Limits::default(), Rotation::default(), telling);
        let mut room = Room { left: 1, news: Vec::new() };
        session.packet(&packet, None, &mut room);
        session.tick(seconds(1), 0, None, &mut room);
        assert!(room.news.is_empty());
        // An interval was slept over.
        session.tick(seconds(5), 0, None, &mut room);
        assert_eq!(room.news.len(), 1);
        session.packet(&packet, None, &mut room);
        session.tick(Duration::from_millis(5_999), 0, None, &mut room);
        assert_eq!(session.counts().records_lost, 0);
        session.tick(seconds(6), 0, None, &mut room);
        assert_eq!((session.counts().records_lost, room.news.len()), (1, 1));
    }
}
