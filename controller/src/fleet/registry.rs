//! How each probe is: sessions, heartbeats, and the one word for it. Pure: the time is a parameter.
//!
//! A session begins with a birth and ends with a death that names it; a death of another session says nothing. Between the
//! two, silence makes a probe late and then offline; a sign of life brings it back.
//!
//! **Invariant:** a probe's state, its reason and since when change together, and only here.

use std::collections::BTreeMap;
use std::time::Duration;

use picket_wire::event::{Birth, Check, Heartbeat, PacingReport, Rates, Shaper};
use picket_wire::ids::{ProbeId, SessionId};
use picket_wire::units::UnixMillis;

use crate::clock::{Mono, Now, rfc3339};
use crate::jobs::plan::Worker;
use crate::store::{ProbeRecord, Standing};
use crate::view::{FleetSummary, PacingView, ProbeJob, ProbeState, ProbeView};

/// When silence means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A probe that was silent for so long is late.
    pub late: Duration,
    /// A probe that was silent for so long is offline.
    pub offline: Duration,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its identity.
    pub id: SessionId,
    /// When something of it was last heard.
    pub heard: Mono,
    /// Its last heartbeat.
    pub heartbeat: Option<Heartbeat>,
    /// How fast it sends, as it said last.
    pub pacing: Option<PacingReport>,
    /// How it ended: said by the probe itself, or not.
    pub ended: Option<bool>,
}

/// A probe.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Its row.
    pub record: ProbeRecord,
    /// Its last session that this run of the controller knows.
    pub session: Option<Session>,
    /// The jobs it holds leases of, with how much of them is asked.
    pub jobs: Vec<ProbeJob>,
    state: ProbeState,
    reason: String,
    since: UnixMillis,
}

/// What a heartbeat belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// The session that is known.
    Known,
    /// A session of which nothing is known: its birth has not come.
    Stranger,
    /// Nobody who may speak.
    Nobody,
}

/// All probes.
#[derive(Debug, Clone)]
pub struct Registry {
    probes: BTreeMap<ProbeId, Probe>,
    patience: Patience,
    started: Mono,
}

/// More leases than a probe holds at a time.
const PACES_MAX: usize = 64;

/// What people are shown of a probe's words: no control characters, and no more than fits a line or two.
fn clip(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

fn clipped(birth: &Birth) -> Birth {
    let mut birth = birth.clone();
    birth.version = clip(&birth.version, 32);
    birth.hardware = clip(&birth.hardware, 128);
    birth.interface.name = clip(&birth.interface.name, 32);
    let test = &mut birth.self_test;
    for check in [&mut test.raw_socket, &mut test.ipv4, &mut test.ipv6] {
        if let Check::Fails(why) = check {
            *why = clip(why, 256);
        }
    }
    birth
}

impl Registry {
    /// The fleet as the database has it, before anybody was heard.
    pub fn new(records: Vec<ProbeRecord>, patience: Patience, now: Now) -> Self {
        let mut registry = Self { probes: BTreeMap::new(), patience, started: now.mono };
        for record in records {
            registry.put(record, now);
        }
        registry
    }

    /// Enters a probe, new or changed.
    pub fn put(&mut self, record: ProbeRecord, now: Now) {
        let id = record.id.clone();
        match self.probes.get_mut(&id) {
            Some(probe) => probe.record = record,
            None => {
                let since = record.last_seen.unwrap_or(record.since);
                let probe = Probe { session: None, jobs: Vec::new(), state: ProbeState::Enrolled, reason: String::new(), since, record };
                self.probes.insert(id.clone(), probe);
            }
        }
        self.judge(&id, now);
    }

    /// One probe.
    pub fn get(&self, id: &ProbeId) -> Option<&Probe> {
        self.probes.get(id)
    }

    /// All probes, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Probe> + '_ {
        self.probes.values()
    }

    /// A probe that may speak: enrolled and not revoked.
    pub fn enrolled(&mut self, id: &ProbeId) -> Option<&mut Probe> {
        self.probes.get_mut(id).filter(|probe| probe.record.standing == Standing::Enrolled)
    }

    /// A session begins; `false` where the probe may not speak.
    pub fn birth(&mut self, id: &ProbeId, birth: &Birth, now: Now) -> bool {
        let Some(probe) = self.enrolled(id) else { return false };
        probe.session = Some(Session { id: birth.session, heard: now.mono, heartbeat: None, pacing: None, ended: None });
        let birth = clipped(birth);
        probe.record.version = Some(birth.version.clone());
        probe.record.hardware = Some(birth.hardware.clone());
        probe.record.birth = Some(birth);
        probe.record.last_seen = Some(now.wall);
        self.judge(id, now);
        true
    }

    /// A session ends; `false` where it is not the one that is known.
    pub fn death(&mut self, id: &ProbeId, session: SessionId, orderly: bool, now: Now) -> bool {
        let Some(current) = self.enrolled(id).and_then(|probe| probe.session.as_mut()).filter(|current| current.id == session) else {
            return false;
        };
        current.ended = Some(orderly);
        self.judge(id, now);
        true
    }

    /// A sign of life with what it says.
    pub fn heartbeat(&mut self, id: &ProbeId, beat: Heartbeat, now: Now) -> Beat {
        let Some(probe) = self.enrolled(id) else { return Beat::Nobody };
        probe.record.last_seen = Some(now.wall);
        // The controller was away and the probe was not: the session is the one whose birth is in the database.
        let remembered = probe.record.birth.as_ref().is_some_and(|birth| birth.session == beat.session);
        if probe.session.is_none() && remembered {
            probe.session = Some(Session { id: beat.session, heard: now.mono, heartbeat: None, pacing: None, ended: None });
        }
        let outcome = match probe.session.as_mut().filter(|session| session.id == beat.session) {
            Some(session) => {
                session.heard = now.mono;
                session.ended = None;
                session.heartbeat = Some(beat);
                Beat::Known
            }
            None => Beat::Stranger,
        };
        self.judge(id, now);
        outcome
    }

    /// What a probe says of its pace, kept for people to see. Of another session than the present one it says nothing.
    pub fn pacing(&mut self, id: &ProbeId, mut report: PacingReport, now: Now) {
        self.heard(id, now);
        let session = self.enrolled(id).and_then(|probe| probe.session.as_mut());
        let Some(session) = session.filter(|session| session.id == report.session) else { return };
        report.leases.truncate(PACES_MAX);
        if let Shaper::Absent(why) = &mut report.shaper {
            *why = clip(why, 256);
        }
        session.pacing = Some(report);
    }

    /// A sign of life without words.
    pub fn heard(&mut self, id: &ProbeId, now: Now) {
        let Some(probe) = self.enrolled(id) else { return };
        probe.record.last_seen = Some(now.wall);
        if let Some(session) = probe.session.as_mut() {
            session.heard = now.mono;
        }
        self.judge(id, now);
    }

    /// Enters which jobs each probe works on.
    pub fn set_jobs(&mut self, mut jobs: BTreeMap<ProbeId, Vec<ProbeJob>>, now: Now) {
        let ids: Vec<ProbeId> = self.probes.keys().cloned().collect();
        for id in ids {
            let held = jobs.remove(&id).unwrap_or_default();
            if let Some(probe) = self.probes.get_mut(&id).filter(|probe| probe.jobs != held) {
                probe.jobs = held;
                self.judge(&id, now);
            }
        }
    }

    /// Time has passed: whose state has changed.
    pub fn tick(&mut self, now: Now) -> Vec<ProbeId> {
        let ids: Vec<ProbeId> = self.probes.keys().cloned().collect();
        ids.into_iter().filter(|id| self.judge(id, now)).collect()
    }

    /// Brings a probe's state up to date; whether it has changed.
    fn judge(&mut self, id: &ProbeId, now: Now) -> bool {
        let (patience, started) = (self.patience, self.started);
        let Some(probe) = self.probes.get_mut(id) else { return false };
        let (state, reason) = judge(probe, patience, started, now.mono);
        let changed = state != probe.state;
        if changed {
            // What was so before the controller started goes on since then.
            let first = probe.reason.is_empty();
            probe.state = state;
            if !first || matches!(state, ProbeState::Online | ProbeState::Busy) {
                probe.since = now.wall;
            }
        }
        probe.reason = reason;
        changed
    }

    /// The probes as the planner sees them.
    pub fn workers(&self, now: Now) -> Vec<Worker> {
        let enrolled = self.probes.values().filter(|probe| probe.record.standing == Standing::Enrolled);
        enrolled.map(|probe| self.worker(probe, now)).collect()
    }

    fn worker(&self, probe: &Probe, now: Now) -> Worker {
        let record = &probe.record;
        let ready = match (probe.state, &record.birth) {
            (ProbeState::Online | ProbeState::Busy, Some(_)) => Ok(()),
            (ProbeState::Late, _) => Err("it is late".to_owned()),
            (ProbeState::Enrolled, _) => Err("it has never connected".to_owned()),
            _ => Err("it is offline".to_owned()),
        };
        // Right after the start nobody has been heard yet: that says nothing.
        let settled = now.mono.since(self.started) >= self.patience.offline;
        let connected = matches!(probe.state, ProbeState::Online | ProbeState::Busy | ProbeState::Late);
        Worker {
            id: record.id.clone(),
            site: record.site.clone(),
            labels: record.labels.clone(),
            roles: record.roles.clone(),
            ready,
            gone: !connected && (settled || probe.session.is_some()),
            self_test: record.birth.as_ref().map(|birth| birth.self_test.clone()),
            rate: record.birth.as_ref().map_or(1, |birth| birth.interface.packets.get()),
        }
    }

    /// The limits of a probe's interface, once it has told them.
    pub fn limits(&self, id: &ProbeId) -> Option<Rates> {
        let birth = self.probes.get(id)?.record.birth.as_ref()?;
        Some(Rates { packets: Some(birth.interface.packets), bits: Some(birth.interface.bits) })
    }

    /// The fleet in a few numbers.
    pub fn summary(&self, jobs_running: u32, now: Now) -> FleetSummary {
        let mut summary = FleetSummary {
            jobs_running,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time: rfc3339(now.wall),
            ..FleetSummary::default()
        };
        for probe in self.probes.values() {
            let counter = match probe.state {
                ProbeState::Online => &mut summary.online,
                ProbeState::Busy => &mut summary.busy,
                ProbeState::Late => &mut summary.late,
                ProbeState::Offline | ProbeState::Enrolled => &mut summary.offline,
                ProbeState::Invited | ProbeState::Revoked => continue,
            };
            *counter += 1;
            summary.probes += 1;
        }
        summary
    }
}

/// The state of a probe and the reason for it. Reasons hold no running numbers: a text that changes by itself is no news.
fn judge(probe: &Probe, patience: Patience, started: Mono, now: Mono) -> (ProbeState, String) {
    let seconds = |span: Duration| span.as_secs();
    match probe.record.standing {
        Standing::Invited => return (ProbeState::Invited, "its enrolment token has not been used".to_owned()),
        Standing::Revoked => {
            let reason = probe.record.reason.clone().unwrap_or_else(|| "no reason given".to_owned());
            return (ProbeState::Revoked, format!("revoked: {reason}"));
        }
        Standing::Enrolled => {}
    }
    let Some(session) = &probe.session else {
        return match probe.record.last_seen {
            None => (ProbeState::Enrolled, "enrolled, never connected".to_owned()),
            Some(_) if now.since(started) < patience.offline => {
                (ProbeState::Offline, "not heard yet since the controller started".to_owned())
            }
            Some(_) => (ProbeState::Offline, "not heard since the controller started".to_owned()),
        };
    };
    let silence = now.since(session.heard);
    match session.ended {
        Some(true) => (ProbeState::Offline, "it said good-bye".to_owned()),
        Some(false) => (ProbeState::Offline, "its connection broke".to_owned()),
        None if silence >= patience.offline => (ProbeState::Offline, format!("silent for more than {} s", seconds(patience.offline))),
        None if silence >= patience.late => (ProbeState::Late, format!("no heartbeat for more than {} s", seconds(patience.late))),
        None => match probe.jobs.len() {
            0 => (ProbeState::Online, "connected and idle".to_owned()),
            1 => (ProbeState::Busy, "working on 1 job".to_owned()),
            jobs => (ProbeState::Busy, format!("working on {jobs} jobs")),
        },
    }
}

impl Probe {
    /// Its state.
    pub fn state(&self) -> ProbeState {
        self.state
    }

    /// Whether it is connected.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, ProbeState::Online | ProbeState::Busy | ProbeState::Late)
    }

    /// The session that is open.
    pub fn open_session(&self) -> Option<SessionId> {
        self.session.as_ref().filter(|session| session.ended.is_none()).map(|session| session.id)
    }

    /// It as people see it.
    pub fn view(&self) -> ProbeView {
        let record = &self.record;
        let birth = record.birth.as_ref();
        let beat = self.session.as_ref().and_then(|session| session.heartbeat.as_ref());
        let uptime = beat.map(|beat| beat.uptime).or_else(|| self.session.as_ref().and(birth).map(|birth| birth.uptime));
        ProbeView {
            id: record.id.clone(),
            state: self.state,
            reason: self.reason.clone(),
            since: rfc3339(self.since),
            site: record.site.clone(),
            labels: record.labels.clone(),
            roles: record.roles.clone(),
            link: self.is_connected().then(|| "mqtt".to_owned()),
            last_seen: record.last_seen.map(rfc3339),
            version: record.version.clone(),
            hardware: record.hardware.clone(),
            self_test: birth.map(|birth| wanting(&birth.self_test)).unwrap_or_default(),
            interface: birth.map(|birth| birth.interface.name.clone()),
            packet_limit: birth.map(|birth| birth.interface.packets.to_string()),
            bit_limit: birth.map(|birth| birth.interface.bits.to_string()),
            uptime_seconds: uptime.map(|uptime| uptime.as_secs()),
            memory_kib: beat.map(|beat| beat.memory_kib),
            load_percent: beat.map(|beat| beat.load_percent),
            spool_records: beat.map(|beat| beat.spool_records),
            lost_records: beat.map(|beat| beat.lost_records),
            sent_packets: beat.map(|beat| beat.traffic.sent_packets),
            refused_commands: beat.map(|beat| beat.refusals.total()),
            jobs: self.jobs.clone(),
            pacing: self.session.as_ref().and_then(|session| session.pacing.as_ref()).map(PacingView::from),
            certificate_expires: record.certificate_expires.map(rfc3339),
        }
    }
}

fn wanting(test: &picket_wire::event::SelfTest) -> Vec<String> {
    use picket_wire::event::Check;
    let checks = [("raw packet socket", &test.raw_socket), ("IPv4", &test.ipv4), ("IPv6", &test.ipv6)];
    let fails = checks.into_iter().filter_map(|(what, check)| match check {
        Check::Works => None,
        Check::Fails(why) => Some(format!("{what}: {why}")),
    });
    fails.collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use picket_wire::event::{Check, InterfaceLimits, Refusals, SelfTest, Traffic};
    use picket_wire::ids::{Role, StreamId};

    use super::*;
    use crate::clock::Clock;

    pub(crate) fn birth(session: u64) -> Birth {
        Birth {
            session: SessionId(session),
            nonce: session ^ 0xfeed,
            version: "0.1.0".into(),
            hardware: "test box".into(),
            uptime: Duration::from_secs(1),
            self_test: SelfTest { raw_socket: Check::Works, ipv4: Check::Works, ipv6: Check::Works },
            stream: StreamId(7),
            acked: 0,
            leases: vec![],
            interface: InterfaceLimits { name: "eth0".into(), packets: "5kpps".parse().unwrap(), bits: "20Mbit".parse().unwrap() },
        }
    }

    pub(crate) fn beat(session: u64, number: u64) -> Heartbeat {
        Heartbeat {
            session: SessionId(session),
            number,
            uptime: Duration::from_secs(9),
            cpu: Duration::ZERO,
            memory_kib: 9000,
            load_percent: 3,
            spool_records: 0,
            spool_bytes: 0,
            lost_records: 0,
            leases: vec![],
            traffic: Traffic::default(),
            refusals: Refusals::default(),
        }
    }

    pub(crate) fn record(id: &str) -> ProbeRecord {
        ProbeRecord {
            key: 1,
            id: id.parse().unwrap(),
            site: "hq".parse().unwrap(),
            labels: vec![],
            roles: vec![Role::Scan],
            standing: Standing::Enrolled,
            reason: None,
            since: UnixMillis(1),
            created: UnixMillis(1),
            hardware: None,
            version: None,
            last_seen: None,
            birth: None,
            certificate_expires: None,
        }
    }

    #[test]
    fn states_follow_signs_of_life() {
        let clock = Clock::manual(UnixMillis(1_790_000_000_000));
        let patience = Patience { late: Duration::from_secs(25), offline: Duration::from_secs(60) };
        let mut registry = Registry::new(vec![record("attic")], patience, clock.now());
        let id: ProbeId = "attic".parse().unwrap();
        let state = |registry: &Registry| (registry.get(&id).unwrap().state, registry.get(&id).unwrap().reason.clone());
        assert_eq!(state(&registry), (ProbeState::Enrolled, "enrolled, never connected".to_owned()));

        assert!(registry.birth(&id, &birth(1), clock.now()));
        assert_eq!(state(&registry).0, ProbeState::Online);
        clock.advance(Duration::from_secs(30));
        assert_eq!(registry.tick(clock.now()), std::slice::from_ref(&id));
        assert_eq!(state(&registry).0, ProbeState::Late);
        assert_eq!(registry.heartbeat(&id, beat(1, 1), clock.now()), Beat::Known);
        assert_eq!(state(&registry).0, ProbeState::Online);

        // The old session's will comes after the new session's birth.
        assert!(registry.birth(&id, &birth(2), clock.now()));
        assert!(!registry.death(&id, SessionId(1), false, clock.now()));
        assert_eq!(state(&registry).0, ProbeState::Online);
        assert_eq!(registry.heartbeat(&id, beat(1, 2), clock.now()), Beat::Stranger);
        assert!(registry.death(&id, SessionId(2), false, clock.now()));
        assert_eq!(state(&registry), (ProbeState::Offline, "its connection broke".to_owned()));
        // A will that was sent too early is corrected by the next sign of life.
        assert_eq!(registry.heartbeat(&id, beat(2, 1), clock.now()), Beat::Known);
        assert_eq!(state(&registry).0, ProbeState::Online);

        clock.advance(Duration::from_secs(61));
        registry.tick(clock.now());
        assert_eq!(state(&registry), (ProbeState::Offline, "silent for more than 60 s".to_owned()));

        let mut gone = registry.get(&id).unwrap().record.clone();
        (gone.standing, gone.reason) = (Standing::Revoked, Some("stolen".into()));
        registry.put(gone, clock.now());
        assert_eq!(state(&registry), (ProbeState::Revoked, "revoked: stolen".to_owned()));
        assert!(!registry.birth(&id, &birth(3), clock.now()));
        assert_eq!(registry.heartbeat(&id, beat(2, 2), clock.now()), Beat::Nobody);
    }

    #[test]
    fn a_session_outlives_the_controller() {
        let clock = Clock::manual(UnixMillis(1_790_000_000_000));
        let patience = Patience { late: Duration::from_secs(25), offline: Duration::from_secs(60) };
        let mut stored = record("attic");
        (stored.birth, stored.last_seen) = (Some(birth(5)), Some(UnixMillis(1_789_999_000_000)));
        let mut registry = Registry::new(vec![stored], patience, clock.now());
        let id: ProbeId = "attic".parse().unwrap();
        assert!(!registry.workers(clock.now())[0].gone, "silence right after the start says nothing");
        assert_eq!(registry.heartbeat(&id, beat(6, 1), clock.now()), Beat::Stranger);
        assert_eq!(registry.get(&id).unwrap().state, ProbeState::Offline);
        assert_eq!(registry.heartbeat(&id, beat(5, 9), clock.now()), Beat::Known);
        assert_eq!(registry.get(&id).unwrap().state, ProbeState::Online);
        assert!(registry.workers(clock.now())[0].ready.is_ok());
    }
}
