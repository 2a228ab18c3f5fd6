//! What dashboards see: retained, flat JSON documents below `fleet/`. Pure: from views to what is to be published now.
//!
//! | path | what |
//! |---|---|
//! | `controller` | whether the controller works, and when it said so last |
//! | `summary` | the fleet in a few numbers |
//! | `probe/<id>` | one probe |
//!
//! News (a state, a reason, a job) are published at once, numbers that run (uptime, counters) every few seconds at most, and
//! everything every 30 seconds, so that who finds an old time in a document knows that nobody speaks any more.
//!
//! **Invariant:** a document of something that is no longer there is cleared by an empty one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use picket_wire::ids::ProbeId;
use serde::Serialize;

use crate::clock::Mono;
use crate::view::{FleetSummary, ProbeState, ProbeView};

/// Everything is published this often.
const ALL_EVERY: Duration = Duration::from_secs(30);
/// Running numbers are published at most this often.
const NUMBERS_EVERY: Duration = Duration::from_secs(5);

/// `fleet/controller`.
#[derive(Debug, Clone, Serialize)]
struct ControllerDocument<'a> {
    /// `online`, or `offline` after an orderly end.
    state: &'static str,
    /// Its version.
    version: &'a str,
    /// When it said so; older than a minute means that it is gone.
    time: &'a str,
}

/// `fleet/probe/<id>`: as in the API, but flat.
#[derive(Debug, Clone, Serialize)]
struct ProbeDocument<'a> {
    id: &'a ProbeId,
    state: ProbeState,
    reason: &'a str,
    since: &'a str,
    online: bool,
    site: &'a str,
    labels: String,
    roles: String,
    link: Option<&'a str>,
    last_seen: Option<&'a str>,
    version: Option<&'a str>,
    hardware: Option<&'a str>,
    self_test: String,
    interface: Option<&'a str>,
    packet_limit: Option<&'a str>,
    bit_limit: Option<&'a str>,
    uptime_seconds: Option<u64>,
    memory_kib: Option<u64>,
    load_percent: Option<u32>,
    spool_records: Option<u64>,
    lost_records: Option<u64>,
    sent_packets: Option<u64>,
    refused_commands: Option<u64>,
    jobs_running: usize,
    /// Ids of its jobs, separated by commas.
    jobs: String,
    /// How much of its leases is asked, over all its jobs, 0 to 100; 100 when idle.
    progress_percent: u8,
    /// What its interface sends at most at present.
    rate_current: Option<&'a str>,
    /// Why that, or the rate of one of its jobs, is less than granted; empty where nothing is.
    rate_slowed: String,
    shaper: Option<&'a str>,
    shaper_packets: Option<u64>,
    shaper_drops: Option<u64>,
    shaper_overlimits: Option<u64>,
    certificate_expires: Option<&'a str>,
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Everything that slows a probe down: each reason once.
fn slowed(view: &ProbeView) -> String {
    let Some(pacing) = &view.pacing else { return String::new() };
    let reasons: BTreeSet<&str> =
        pacing.leases.iter().map(|lease| &lease.slowed).chain([&pacing.slowed]).flatten().map(String::as_str).collect();
    reasons.into_iter().collect::<Vec<_>>().join(",")
}

fn probe_document(view: &ProbeView) -> ProbeDocument<'_> {
    let pacing = view.pacing.as_ref();
    let percents = view.jobs.iter().map(|job| usize::from(job.percent)).sum::<usize>();
    ProbeDocument {
        id: &view.id,
        state: view.state,
        reason: &view.reason,
        since: &view.since,
        online: matches!(view.state, ProbeState::Online | ProbeState::Busy | ProbeState::Late),
        site: view.site.as_str(),
        labels: join(&view.labels),
        roles: join(&view.roles),
        link: view.link.as_deref(),
        last_seen: view.last_seen.as_deref(),
        version: view.version.as_deref(),
        hardware: view.hardware.as_deref(),
        self_test: view.self_test.join("; "),
        interface: view.interface.as_deref(),
        packet_limit: view.packet_limit.as_deref(),
        bit_limit: view.bit_limit.as_deref(),
        uptime_seconds: view.uptime_seconds,
        memory_kib: view.memory_kib,
        load_percent: view.load_percent,
        spool_records: view.spool_records,
        lost_records: view.lost_records,
        sent_packets: view.sent_packets,
        refused_commands: view.refused_commands,
        jobs_running: view.jobs.len(),
        jobs: join(&view.jobs.iter().map(|job| job.job).collect::<Vec<_>>()),
        progress_percent: percents.checked_div(view.jobs.len()).map_or(100, |percent| percent.min(100) as u8),
        rate_current: pacing.map(|pacing| pacing.current.as_str()),
        rate_slowed: slowed(view),
        shaper: pacing.map(|pacing| pacing.shaper.as_str()),
        shaper_packets: pacing.and_then(|pacing| pacing.shaper_packets),
        shaper_drops: pacing.and_then(|pacing| pacing.shaper_drops),
        shaper_overlimits: pacing.and_then(|pacing| pacing.shaper_overlimits),
        certificate_expires: view.certificate_expires.as_deref(),
    }
}

fn json<T: Serialize>(document: &T) -> Vec<u8> {
    serde_json::to_vec(document).expect("documents hold only texts, numbers and truth values")
}

#[derive(Debug, Clone)]
struct Published {
    /// What makes news.
    news: Vec<u8>,
    bytes: Vec<u8>,
    at: Mono,
}

/// Remembers what was published.
#[derive(Debug, Clone, Default)]
pub struct Publisher {
    documents: BTreeMap<String, Published>,
    all: Option<Mono>,
}

impl Publisher {
    /// What is to be published now: paths below `fleet/` and retained payloads, empty ones to clear.
    pub fn update(&mut self, summary: &FleetSummary, probes: &[ProbeView], now: Mono) -> Vec<(String, Vec<u8>)> {
        let mut out = Vec::new();
        let all = self.all.is_none_or(|at| now.since(at) >= ALL_EVERY);
        if all {
            self.all = Some(now);
        }
        let controller = ControllerDocument { state: "online", version: &summary.version, time: &summary.time };
        // The time in these two always runs: it is no news.
        self.offer("controller".to_owned(), json(&()), json(&controller), all, now, ALL_EVERY, &mut out);
        let timeless = FleetSummary { time: String::new(), ..summary.clone() };
        self.offer("summary".to_owned(), json(&timeless), json(summary), all, now, ALL_EVERY, &mut out);
        let mut paths = BTreeSet::from(["controller".to_owned(), "summary".to_owned()]);
        for view in probes {
            let path = format!("probe/{}", view.id);
            let jobs: Vec<_> = view.jobs.iter().map(|job| job.job).collect();
            let news = json(&(
                view.state,
                &view.reason,
                &view.since,
                &view.site,
                &view.labels,
                &view.roles,
                &view.version,
                jobs,
                &view.self_test,
                slowed(view),
            ));
            self.offer(path.clone(), news, json(&probe_document(view)), all, now, NUMBERS_EVERY, &mut out);
            paths.insert(path);
        }
        let gone: Vec<String> = self.documents.keys().filter(|path| !paths.contains(*path)).cloned().collect();
        for path in gone {
            self.documents.remove(&path);
            out.push((path, Vec::new()));
        }
        out
    }

    /// What is to be published when the controller ends in order.
    pub fn good_bye(version: &str, time: &str) -> (String, Vec<u8>) {
        ("controller".to_owned(), json(&ControllerDocument { state: "offline", version, time }))
    }

    /// Forgets what was published: the broker may have forgotten it too.
    pub fn forget(&mut self) {
        self.all = None;
    }

    #[expect(clippy::too_many_arguments, reason = "one private call per document, all of them different")]
    fn offer(
        &mut self,
        path: String,
        news: Vec<u8>,
        bytes: Vec<u8>,
        all: bool,
        now: Mono,
        numbers: Duration,
        out: &mut Vec<(String, Vec<u8>)>,
    ) {
        let due =
            self.documents.get(&path).is_none_or(|last| all || last.news != news || (last.bytes != bytes && now.since(last.at) >= numbers));
        if due {
            out.push((path.clone(), bytes.clone()));
            self.documents.insert(path, Published { news, bytes, at: now });
        }
    }
}

#[cfg(test)]
mod tests {
    use picket_wire::units::UnixMillis;

    use super::super::registry::tests::{beat, birth, record};
    use super::super::registry::{Patience, Registry};
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn news_at_once_numbers_slowly_everything_now_and_then() {
        let clock = Clock::manual(UnixMillis(1_790_000_000_000));
        let patience = Patience { late: Duration::from_secs(25), offline: Duration::from_secs(60) };
        let mut registry = Registry::new(vec![record("attic")], patience, clock.now());
        let id = "attic".parse().unwrap();
        let mut publisher = Publisher::default();
        let mut paths = |registry: &Registry| -> Vec<String> {
            let views: Vec<ProbeView> = registry.iter().map(|probe| probe.view()).collect();
            let now = clock.now();
            publisher.update(&registry.summary(0, now), &views, now.mono).into_iter().map(|(path, _)| path).collect()
        };
        assert_eq!(paths(&registry), ["controller", "summary", "probe/attic"]);
        assert!(paths(&registry).is_empty());
        registry.birth(&id, &birth(1), clock.now());
        assert_eq!(paths(&registry), ["summary", "probe/attic"]);
        clock.advance(Duration::from_secs(1));
        registry.heartbeat(&id, beat(1, 1), clock.now());
        assert!(paths(&registry).is_empty(), "only numbers changed");
        clock.advance(Duration::from_secs(5));
        assert_eq!(paths(&registry), ["probe/attic"]);
        clock.advance(Duration::from_secs(30));
        assert_eq!(paths(&registry).len(), 3);
    }

    #[test]
    fn documents_are_flat() {
        let clock = Clock::manual(UnixMillis(1_790_000_000_000));
        let patience = Patience { late: Duration::from_secs(25), offline: Duration::from_secs(60) };
        let mut registry = Registry::new(vec![record("attic")], patience, clock.now());
        registry.birth(&"attic".parse().unwrap(), &birth(1), clock.now());
        let views: Vec<ProbeView> = registry.iter().map(|probe| probe.view()).collect();
        for (path, bytes) in Publisher::default().update(&registry.summary(0, clock.now()), &views, clock.now().mono) {
            let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            let flat = document.as_object().unwrap().values().all(|value| !value.is_object() && !value.is_array());
            assert!(flat, "{path}: {document}");
            for field in document.as_object().unwrap().keys() {
                let documented = include_str!("../../../docs/dashboards.md").contains(&format!("`{field}`"));
                assert!(documented, "{path}: `{field}` is missing in docs/dashboards.md");
            }
        }
    }
}
