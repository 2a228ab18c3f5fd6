//! The fleet as dashboards see it: retained JSON by mosquitto_sub, true within seconds, read-only.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use picket_tests::lab::site::{SegmentPlan, Site};
use picket_tests::lab::truth::{Mix, TruthSpec};
use picket_tests::lab::{Proc, Run, require_root};
use picket_tests::system::{DASHBOARD_PORT, Fleet, PATIENCE, Plan};
use serde_json::Value;

const ROOT: &str = "picket/v1/fleet/";

struct Board {
    host: String,
    ca: String,
    user: String,
    password: String,
}

impl Board {
    fn new(fleet: &Fleet) -> Self {
        let made: Value = fleet.json(&["dashboard-user", "add", "grafana", "--json"]).unwrap();
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        let ca = fleet.data().join("ca.pem").to_str().unwrap().to_owned();
        Self { host: fleet.site().controller_v4().to_string(), ca, user: text("name"), password: text("password") }
    }

    fn client(&self, program: &str, password: &str) -> Run {
        let port = DASHBOARD_PORT.to_string();
        Run::new(program).args(["-h", &self.host, "-p", &port, "--cafile", &self.ca, "-u", &self.user, "-P", password])
    }

    fn subscriber(&self, filter: &str) -> Run {
        // Topic, whether it was retained, payload: one line each.
        self.client("mosquitto_sub", &self.password).args(["-q", "1", "-t", filter, "-F", "%t %r %p"])
    }
}

/// The newest document of each topic of a subscriber so far.
fn documents(stdout: &str) -> BTreeMap<String, Value> {
    let lines = stdout.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ' ');
        let (topic, _, payload) = (parts.next()?, parts.next()?, parts.next().unwrap_or_default());
        // The last line may be half written.
        Some((topic.to_owned(), serde_json::from_str(payload).ok()?))
    });
    lines.collect()
}

fn wait_state(subscriber: &mut Proc, probe: &str, states: &[&str], deadline: Duration) -> Value {
    let topic = format!("{ROOT}probe/{probe}");
    subscriber
        .wait_for(&format!("{probe} as {states:?}"), deadline, |stdout, _| {
            documents(stdout).remove(&topic).filter(|document| states.contains(&document["state"].as_str().unwrap_or_default()))
        })
        .unwrap()
}

fn fleet(name: &str, probes: &[&str]) -> Fleet {
    // All dead: a job sends and nobody answers, which is as busy as a probe can be.
    let spec = TruthSpec::new(5, &["198.18.0.0/22"], &[80]).unwrap().mix(Mix { dead: 1000, shy: 0, open: 0, silent: 0 });
    let builder = probes.iter().fold(Site::builder(name), |builder, probe| builder.probe(probe));
    Fleet::start(builder.segment(SegmentPlan::new("net", spec)).build().unwrap(), Plan::default().heartbeat(1)).unwrap()
}

#[test]
fn dashboards_see_the_fleet_and_nothing_else() {
    if !require_root() {
        return;
    }
    let fleet = fleet("board", &["attic", "cellar"]);
    let board = Board::new(&fleet);
    let place = fleet.site().probe("attic").unwrap().namespace();
    let mut subscriber = place.spawn(&board.subscriber(&format!("{ROOT}#"))).unwrap();
    for probe in ["attic", "cellar"] {
        let document = wait_state(&mut subscriber, probe, &["online"], PATIENCE);
        let fields = document.as_object().unwrap();
        assert!(fields.values().all(|value| !value.is_object() && !value.is_array()), "flat: {document}");
        for field in ["state", "reason", "since", "roles", "site", "link", "jobs_running", "progress_percent", "version"] {
            assert!(fields.get(field).is_some_and(|value| !value.is_null()), "{field}: {document}");
        }
        assert_eq!((&document["roles"], &document["link"], &document["online"]), (&"scan".into(), &"mqtt".into(), &true.into()));
    }
    let text = subscriber.stdout();
    assert!(text.lines().all(|line| line.starts_with(ROOT)), "{text}");
    // Who comes later finds all of it at once.
    let mut late = place.spawn(&board.subscriber(&format!("{ROOT}#"))).unwrap();
    for topic in documents(&text).keys() {
        let line = late.wait_for_line(&format!("{topic} "), PATIENCE).unwrap();
        assert_eq!(line.split(' ').nth(1), Some("1"), "what is there is retained: {line}");
    }
    drop(late);
    let summary = &documents(&text)[&format!("{ROOT}summary")];
    assert_eq!((&summary["probes"], &summary["online"], &summary["offline"]), (&2.into(), &2.into(), &0.into()), "{summary}");

    // Nothing else can be read: neither other trees, nor all of it, nor what probes and controller say to each other.
    for filter in
        ["#", "picket/#", "picket/v1/#", "picket/v1/probe/attic/cmd", "picket/v1/probe/+/evt", "picket/v1/role/scan/cmd", "$SYS/#"]
    {
        let mut refused = place.spawn(&board.subscriber(filter)).unwrap();
        // mosquitto_sub ends by itself when every subscription is refused.
        let status = refused.wait(PATIENCE).unwrap();
        assert!(refused.stdout().is_empty(), "{filter}: {}", refused.stdout());
        assert!(!status.success() || refused.stderr().contains("denied"), "{filter}: {status} {}", refused.stderr());
    }
    // A wrong password, no password.
    let wrong =
        place.run(&board.client("mosquitto_sub", "wrong").args(["-t", &format!("{ROOT}#"), "-C", "1", "-W", "10"]), PATIENCE).unwrap();
    assert!(!wrong.status.success() && wrong.stdout.is_empty(), "{wrong:?}");
    let port = DASHBOARD_PORT.to_string();
    let nobody = Run::new("mosquitto_sub").args([
        "-h",
        &board.host,
        "-p",
        &port,
        "--cafile",
        &board.ca,
        "-t",
        &format!("{ROOT}#"),
        "-C",
        "1",
        "-W",
        "10",
    ]);
    let nobody = place.run(&nobody, PATIENCE).unwrap();
    assert!(!nobody.status.success() && nobody.stdout.is_empty(), "{nobody:?}");
    // Nothing can be published: no subscriber sees it, and no probe obeys it.
    for topic in [
        format!("{ROOT}probe/attic"),
        format!("{ROOT}forged"),
        "picket/v1/probe/attic/cmd".to_owned(),
        "picket/v1/role/scan/cmd".to_owned(),
    ] {
        let message = "{\"state\":\"forged\"}";
        let publisher = board.client("mosquitto_pub", &board.password).args(["-q", "1", "-r", "-t", &topic, "-m", message]);
        // Whether it is told or not: MQTT 3.1.1 has no way to refuse a publication but to end the connection.
        let _ = place.run(&publisher, PATIENCE).unwrap();
    }
    let mut fresh = place.spawn(&board.subscriber(&format!("{ROOT}#"))).unwrap();
    wait_state(&mut fresh, "cellar", &["online"], PATIENCE);
    wait_state(&mut fresh, "attic", &["online"], PATIENCE);
    assert!(!fresh.stdout().contains("forged") && !subscriber.stdout().contains("forged"));
    assert_eq!(fleet.probe("attic").unwrap().refused_commands, Some(0), "nothing reached the probe");
    // A user that was removed is nobody.
    fleet.picket(&["dashboard-user", "remove", "grafana"], PATIENCE).unwrap().ok().unwrap();
    let removed = place.run(&board.subscriber(&format!("{ROOT}#")).args(["-C", "1", "-W", "10"]), PATIENCE).unwrap();
    assert!(!removed.status.success() && removed.stdout.is_empty(), "{removed:?}");
}

#[test]
fn states_are_true_within_seconds() {
    if !require_root() {
        return;
    }
    let mut fleet = fleet("states", &["attic", "cellar"]);
    let board = Board::new(&fleet);
    let controller = fleet.site().controller().clone();
    let mut subscriber = controller.spawn(&board.subscriber(&format!("{ROOT}#"))).unwrap();
    for probe in ["attic", "cellar"] {
        wait_state(&mut subscriber, probe, &["online"], PATIENCE);
    }
    let seconds = Duration::from_secs(5);

    // Killed: its last will says so.
    let start = Instant::now();
    fleet.kill_probe("attic").unwrap();
    let document = wait_state(&mut subscriber, "attic", &["offline"], seconds);
    eprintln!("killed: offline after {:?}: {}", start.elapsed(), document["reason"]);
    assert_eq!(document["online"], false);
    assert!(!document["reason"].as_str().unwrap().is_empty());
    fleet.start_probe("attic").unwrap();
    wait_state(&mut subscriber, "attic", &["online"], PATIENCE);

    // Ended in order: another reason.
    assert!(fleet.stop_probe("attic").unwrap().success());
    let orderly = wait_state(&mut subscriber, "attic", &["offline"], seconds);
    assert_ne!(orderly["reason"], document["reason"], "an orderly end is told apart");
    fleet.start_probe("attic").unwrap();
    wait_state(&mut subscriber, "attic", &["online"], PATIENCE);

    // Cut without a word: late when heartbeats are missed (2.5 intervals), then offline (6 intervals).
    let start = Instant::now();
    fleet.site().link_down("attic").unwrap();
    wait_state(&mut subscriber, "attic", &["late", "offline"], seconds);
    let late = start.elapsed();
    let document = wait_state(&mut subscriber, "attic", &["offline"], Duration::from_secs(12));
    eprintln!("cut: late after {late:?}, offline after {:?}: {}", start.elapsed(), document["reason"]);
    fleet.site().link_up("attic").unwrap();
    wait_state(&mut subscriber, "attic", &["online"], Duration::from_secs(60));

    // Merely busy, for longer than silence would be forgiven: busy all the time, and never anything worse.
    let job = fleet.submit_job(&["scan", "198.18.0.0/22", "-p", "1-10", "--probe", "cellar", "--attempts", "1"]).unwrap();
    wait_state(&mut subscriber, "cellar", &["busy"], seconds);
    let before = subscriber.stdout().len();
    let job = fleet.wait_done(job, Duration::from_secs(120)).unwrap();
    wait_state(&mut subscriber, "cellar", &["online"], seconds);
    let topic = format!("{ROOT}probe/cellar");
    let all = subscriber.stdout();
    let states: Vec<String> = all[before..]
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(&topic)?.trim_start();
            let document: Value = serde_json::from_str(rest.split_once(' ')?.1).ok()?;
            Some(document["state"].as_str()?.to_owned())
        })
        .collect();
    assert!(states.iter().all(|state| state == "busy" || state == "online"), "{states:?}");
    assert_eq!(states.last().map(String::as_str), Some("online"));
    let turns = states.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(turns <= 1, "busy until it was idle, once: {states:?}");
    assert_eq!(job.coverage.silent, job.total);
}

#[test]
fn the_tree_grows_again_after_the_controller_was_killed() {
    if !require_root() {
        return;
    }
    let mut fleet = fleet("again", &["attic", "cellar"]);
    let board = Board::new(&fleet);
    fleet.stop_probe("cellar").unwrap();
    fleet.kill_controller().unwrap();
    fleet.start_controller().unwrap();
    // The password is still good; who was there comes back, who was not is not said to be.
    let controller = fleet.site().controller().clone();
    let mut subscriber = controller.spawn(&board.subscriber(&format!("{ROOT}#"))).unwrap();
    wait_state(&mut subscriber, "attic", &["online"], PATIENCE);
    let document = wait_state(&mut subscriber, "cellar", &["offline"], PATIENCE);
    assert_eq!(document["online"], false);
    // Revoked for good, said for good.
    fleet.picket(&["probe", "revoke", "cellar", "--reason", "sold"], PATIENCE).unwrap().ok().unwrap();
    let document = wait_state(&mut subscriber, "cellar", &["revoked"], Duration::from_secs(5));
    assert!(document["reason"].as_str().unwrap().contains("sold"), "{document}");
    let topic = format!("{ROOT}summary");
    let probes = |stdout: &str, _: &str| documents(stdout).remove(&topic).filter(|summary| summary["probes"] == 1);
    subscriber.wait_for("a summary of one probe", PATIENCE, probes).unwrap();
}
