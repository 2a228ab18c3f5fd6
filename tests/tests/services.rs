//! A fleet that asks what serves on open ports: whatever is killed in the middle, in the end every open port has its service, exactly
//! once, and the coverage adds up.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::collections::BTreeMap;
use std::time::Duration;

use picket_controller::view::{JobState, Submitted};
use picket_tests::lab::site::{SegmentPlan, Site};
use picket_tests::lab::target::Service;
use picket_tests::lab::truth::TruthSpec;
use picket_tests::lab::{require_root, wait_until};
use picket_tests::system::expect::{Expected, Scope};
use picket_tests::system::{Fleet, PATIENCE, Plan, towards};

/// Only waited for when something is broken.
const LONG: Duration = Duration::from_secs(180);
const NETWORK: &str = "198.18.0.0/26";
const PORTS: [u16; 3] = [22, 80, 8080];

fn fleet(name: &str) -> Fleet {
    let spec = TruthSpec::new(41, &[NETWORK], &PORTS).unwrap();
    let segment = SegmentPlan::new("net", spec)
        .service(22, Service::Banner("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3".into()))
        .service(80, Service::Http("lab".into()));
    let site = Site::builder(name).probe("a").probe("b").segment(segment).build().unwrap();
    Fleet::start(site, Plan::default().heartbeat(1).lease_ttl(10)).unwrap()
}

/// Frames that the probes have sent since the site was built.
fn sent(fleet: &Fleet) -> u64 {
    let frames = |name: &str| {
        let device = fleet.site().probe(name).unwrap().router_device().to_owned();
        fleet.site().router().counters(&device).unwrap().received_packets
    };
    frames("a") + frames("b")
}

fn wait_sent(fleet: &Fleet, before: u64, frames: u64) {
    wait_until(&format!("{frames} frames"), LONG, || Ok((sent(fleet) - before >= frames).then_some(()))).unwrap();
}

#[test]
fn every_open_port_has_its_service_once_whatever_is_killed() {
    if !require_root() {
        return;
    }
    let mut fleet = fleet("services");
    let before = sent(&fleet);
    let job = fleet.submit_job(&["scan", NETWORK, "-p", "22,http,8080", "--services", "--rate", "60pps"]).unwrap();
    wait_sent(&fleet, before, 60);
    fleet.kill_probe("a").unwrap();
    wait_sent(&fleet, before, 120);
    fleet.kill_controller().unwrap();
    fleet.start_probe("a").unwrap();
    fleet.start_controller().unwrap();
    let middle = sent(&fleet);
    wait_sent(&fleet, middle, 60);
    fleet.kill_probe("b").unwrap();
    fleet.start_probe("b").unwrap();
    let done = fleet.wait_done(job, LONG).unwrap();

    assert_eq!(done.state, JobState::Done);
    let expected = Expected::scan(&[fleet.site().segment("net").unwrap().target().truth()], &PORTS, &Scope::default());
    expected.check_coverage(&done.coverage, 1).unwrap();
    let rows = fleet.results(job).unwrap();
    expected.check_rows(&rows).unwrap();
    let mut served: BTreeMap<u16, usize> = BTreeMap::new();
    for row in &rows {
        assert_eq!(row.service.is_some(), row.state == "open", "{row:?}");
        let Some(service) = &row.service else { continue };
        let (port, name) = (row.port.unwrap(), service.name.as_deref());
        match port {
            22 => assert_eq!((name, service.product.as_deref()), (Some("ssh"), Some("OpenSSH")), "{row:?}"),
            80 => assert_eq!(name, Some("http"), "{row:?}"),
            _ => assert_eq!((service.outcome.as_str(), name), ("silent", None), "{row:?}"),
        }
        *served.entry(port).or_default() += 1;
    }
    assert!(PORTS.iter().all(|port| served.get(port).is_some_and(|count| *count > 5)), "the truth has too few open ports: {served:?}");
    // The same by site and address, and once more from the evidence.
    let latest = fleet.json::<Vec<picket_controller::view::ResultRow>>(&["results", "--state", "open", "--json"]).unwrap();
    assert_eq!(latest.iter().filter(|row| row.service.is_some()).count(), served.values().sum::<usize>());
    let before = rows;
    let rebuilt: picket_controller::view::RebuildCounts = fleet.json(&["db", "rebuild", "--json"]).unwrap();
    assert_eq!((rebuilt.rejected, rebuilt.services as usize), (0, served.values().sum::<usize>()));
    assert_eq!(fleet.results(job).unwrap(), before);
}

#[test]
fn a_cancelled_job_keeps_what_was_found_and_waits_for_no_answers() {
    if !require_root() {
        return;
    }
    let fleet = fleet("cancels");
    let start = sent(&fleet);
    // Port 8080 says nothing: asking it takes seconds.
    let job = fleet.submit_job(&["scan", NETWORK, "-p", "8080,80", "--services", "--rate", "40pps"]).unwrap();
    wait_sent(&fleet, start, 60);
    fleet.picket(&["job", "cancel", &job.to_string()], PATIENCE).unwrap();
    let over = fleet.wait_job(job, "its end", Duration::from_secs(20), |job| job.state.is_final()).unwrap();
    assert_eq!(over.state, JobState::Cancelled);
    assert!(over.coverage.adds_up() && over.coverage.asked == over.total, "{:?}", over.coverage);
    let rows = fleet.results(job).unwrap();
    assert!(rows.iter().all(|row| row.service.is_some() == (row.state == "open")), "what was not asked any more is said to be lost");
}

#[test]
fn a_dry_run_shows_everything_and_sends_nothing() {
    if !require_root() {
        return;
    }
    let fleet = fleet("dryrun");
    let filter = towards(fleet.site(), &["net"]).unwrap();
    let watch = fleet.site().watch("a", Some(&filter)).unwrap();
    let args = ["scan", "198.18.0.0-63 192.0.2.1-2", "-p", "T:22,http,U:53", "--services", "--rate", "500pps", "--dry-run"];
    let shown = fleet.picket(&args, PATIENCE).unwrap().ok().unwrap();
    for part in [
        "syn, ports 22,80:",
        "udp, ports 53:",
        "132 targets on 66 addresses, at most 264 packets",
        "66 targets on 66 addresses, at most 132 packets",
        "about 1 s",
        "2 probes: a, b",
        "policy: 64 addresses allowed by `allow 198.18.0.0/15`",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let plans: Vec<Submitted> = fleet.json(&[&args[..], &["--json"]].concat()).unwrap();
    assert!(plans.iter().all(|plan| plan.job.is_none() && plan.plan.probes.len() == 2));
    let jobs: serde_json::Value = fleet.json(&["job", "list", "--json"]).unwrap();
    assert_eq!(jobs.as_array().or_else(|| jobs["items"].as_array()).unwrap().len(), 0, "nothing is stored: {jobs}");
    let seen = watch.stop().unwrap();
    assert_eq!(seen.sent_to(|_| true), 0, "nothing is sent");
}
