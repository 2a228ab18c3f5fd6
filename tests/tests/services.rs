//! A fleet that asks what serves on open ports: whatever is killed in the middle, in the end every open port has its service, exactly
//! once, and the coverage adds up.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::collections::BTreeMap;
use std::time::Duration;

use picket_controller::view::{JobState, ProbeView, Submitted};
use picket_tests::lab::site::{SegmentPlan, Site};
use picket_tests::lab::target::Service;
use picket_tests::lab::truth::TruthSpec;
use picket_tests::lab::{require_root, wait_until};
use picket_tests::system::expect::{Expected, Scope};
use picket_tests::system::{Fleet, PATIENCE, Plan, records::Records, towards};

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

const WAITS: &str = "the scan waits for answers about services";
/// Many chunks of positions in the time that a silent port takes.
const WIDE: &str = "198.18.2.0/25";
const LAST_PORT: u16 = 400;

#[test]
fn a_scan_that_waits_for_services_goes_on_where_it_was_also_after_a_kill() {
    if !require_root() {
        return;
    }
    // Ports that are open and say nothing: asking one takes seconds, and only so many are asked at a time, so that the scan is ahead of
    // the questions on a slow machine, too.
    let spec = TruthSpec::new(43, &[WIDE], &[22, 80, 81, 82, 83]).unwrap();
    let segment = SegmentPlan::new("net", spec).service(22, Service::Banner("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3".into()));
    let site = Site::builder("parks").probe("a").segment(segment).build().unwrap();
    let mut fleet =
        Fleet::start(site, Plan::default().packets("16kpps").heartbeat(1).lease_ttl(10).log("info,picket_probe::agent=debug")).unwrap();
    let job = fleet.submit_job(&["scan", WIDE, "-p", &format!("1-{LAST_PORT}"), "--services"]).unwrap();
    let waits = |fleet: &mut Fleet| fleet.probe_proc("a").unwrap().wait_for_line(WAITS, PATIENCE).unwrap();
    waits(&mut fleet);
    assert!(!fleet.job(job).unwrap().state.is_final());
    fleet.kill_probe("a").unwrap();
    fleet.start_probe("a").unwrap();
    // What was not reported is measured again, and has to wait again.
    waits(&mut fleet);
    let done = fleet.wait_done(job, LONG).unwrap();

    let ports: Vec<u16> = (1..=LAST_PORT).collect();
    let expected = Expected::scan(&[fleet.site().segment("net").unwrap().target().truth()], &ports, &Scope::default());
    expected.check_coverage(&done.coverage, 1).unwrap();
    let rows = fleet.results(job).unwrap();
    expected.check_rows(&rows).unwrap();
    Records::read(fleet.data()).unwrap().reported_once(job, 1).unwrap();
    let mut served: BTreeMap<u16, usize> = BTreeMap::new();
    for row in &rows {
        assert_eq!(row.service.is_some(), row.state == "open", "{row:?}");
        let Some(service) = &row.service else { continue };
        let said = (service.outcome.as_str(), service.name.as_deref());
        let port = row.port.unwrap();
        assert_eq!(said, if port == 22 { ("identified", Some("ssh")) } else { ("silent", None) }, "{row:?}");
        *served.entry(port).or_default() += 1;
    }
    assert!(
        [22, 80, 81, 82, 83].iter().all(|port| served.get(port).is_some_and(|count| *count > 10)),
        "the truth has too few open ports: {served:?}"
    );
}

#[test]
fn a_job_shows_what_was_asked_and_what_is_granted() {
    if !require_root() {
        return;
    }
    let spec = TruthSpec::new(44, &[NETWORK], &PORTS).unwrap();
    let site = Site::builder("clips").probe("a").segment(SegmentPlan::new("net", spec)).build().unwrap();
    let fleet = Fleet::start(site, Plan::default().packets("40pps").bits("10Mbit").heartbeat(1)).unwrap();
    let scan = |more: &[&str]| fleet.submit_job(&[&["scan", NETWORK, "-p", "22,80,8080"], more].concat()).unwrap();
    let cases = [
        (scan(&["--rate", "5kpps,20Mbit"]), "5kpps, 20Mbit", "40pps, 10Mbit", true),
        (scan(&["--rate", "5kpps", "--services"]), "5kpps", "40pps, 10Mbit", true),
        (scan(&["--rate", "5kpps", "--technique", "connect"]), "5kpps", "40pps, 10Mbit", true),
        (scan(&["--rate", "10pps"]), "10pps", "10pps, 10Mbit", false),
    ];
    for (job, asked, granted, clipped) in &cases {
        // What the probe says of it while it works on it.
        let its = |view: &ProbeView| view.pacing.iter().flat_map(|pacing| pacing.leases.clone()).find(|lease| lease.job == *job);
        let told = fleet.wait_probe("a", "telling the pace of the job", LONG, |view| its(view).is_some()).unwrap();
        let lease = its(&told).unwrap();
        assert_eq!((lease.asked.as_str(), lease.granted.as_str()), (*asked, *granted), "{lease:?}");
        // What people see.
        let view = fleet.job(*job).unwrap();
        let [part] = &view.probes[..] else { panic!("{view:?}") };
        assert_eq!(view.asked_rate.as_deref(), Some(*asked));
        assert_eq!((part.granted.as_deref(), part.clipped), (Some(*granted), *clipped));
        let shown = fleet.picket(&["job", "show", &job.to_string()], PATIENCE).unwrap().ok().unwrap();
        assert!(shown.contains(&format!("{asked} asked of each probe")) && shown.contains(granted), "{shown}");
        assert_eq!(shown.contains("(clipped)"), *clipped, "{shown}");
        fleet.picket(&["job", "cancel", &job.to_string()], PATIENCE).unwrap().ok().unwrap();
    }
}
