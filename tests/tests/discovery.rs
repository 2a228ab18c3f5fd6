//! What a fleet finds of hosts, and of ports over other protocols than TCP: IPv6 links that nobody can sweep, the four ways in which
//! hosts are asked by default, UDP and SCTP.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use picket_controller::view::{HostRow, JobState, JobView, RebuildCounts, ResultRow, Submitted};
use picket_tests::lab::answer::Answers;
use picket_tests::lab::require_root;
use picket_tests::lab::site::{SegmentPlan, Site};
use picket_tests::lab::truth::{HostState, PortTruth, Truth, TruthSpec};
use picket_tests::lab::watch::Watch;
use picket_tests::system::expect::{Found, found};
use picket_tests::system::{Fleet, PATIENCE, Plan, records::Records};
use picket_wire::ids::JobId;

/// Only waited for when something is broken.
const LONG: Duration = Duration::from_secs(120);
const ALL_NODES: &str = "ff02::1";

type Link = BTreeMap<IpAddr, Option<String>>;

/// A probe on a link with a dozen hosts, and one that is elsewhere.
fn link(name: &str) -> (Fleet, Link, String) {
    let spec = TruthSpec::new(3, &["198.18.9.0/29"], &[22]).unwrap();
    let mut site = Site::builder(name).probe("far").probe_in("desk", "net").segment(SegmentPlan::new("net", spec)).build().unwrap();
    let truth: BTreeMap<Ipv6Addr, [u8; 6]> = site.add_neighbours("net", 12).unwrap();
    let shown = |mac: [u8; 6]| Some(mac.map(|byte| format!("{byte:02x}")).join(":"));
    let truth = truth.into_iter().map(|(addr, mac)| (addr.into(), shown(mac))).collect();
    let network = site.wire_v6("net").unwrap();
    (Fleet::start(site, Plan::default()).unwrap(), truth, network)
}

/// The hosts of a job, each once.
fn hosts(fleet: &Fleet, job: JobId) -> Link {
    let rows: Vec<HostRow> = fleet.json(&["hosts", "--job", &job.to_string(), "--json"]).unwrap();
    let found: Link = rows.iter().map(|row| (row.addr, row.mac.clone())).collect();
    assert_eq!(found.len(), rows.len(), "each host once");
    assert!(rows.iter().all(|row| row.probe.as_str() == "desk" && row.job == job), "{rows:?}");
    found
}

/// What a probe sends to a link: to its network or to groups.
fn watch(fleet: &Fleet, probe: &str, network: &str) -> Watch {
    // Questions for the router's own address go to groups too, and are no measurement; they are neighbour solicitations (135).
    let filter = format!("ip6 and ((dst net {network} and icmp6 and ip6[40] != 135 and ip6[40] != 136) or dst host {ALL_NODES})");
    fleet.site().watch(probe, Some(&filter)).unwrap()
}

#[test]
fn every_host_of_an_ipv6_link_is_found_by_a_job() {
    if !require_root() {
        return;
    }
    let (fleet, truth, network) = link("v6link");
    let all_nodes: IpAddr = ALL_NODES.parse().unwrap();

    let (near, far) = (watch(&fleet, "desk", &network), watch(&fleet, "far", &network));
    let dry = fleet.picket(&["discover", &network, "--dry-run"], PATIENCE).unwrap().ok().unwrap();
    for part in ["the link of each probe, at most", "all nodes (ff02::1)", "2 probes: desk, far", "allowed by `allow 2001:db8::/32`"] {
        assert!(dry.contains(part), "{part}: {dry}");
    }
    assert_eq!((near.stop().unwrap().len(), far.stop().unwrap().len()), (0, 0), "a dry run sends nothing");

    let (near, far) = (watch(&fleet, "desk", &network), watch(&fleet, "far", &network));
    let text = fleet.picket(&["discover", &network, "--rate", "200pps", "--json"], LONG).unwrap().ok().unwrap();
    let (near, far) = (near.stop().unwrap(), far.stop().unwrap());
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let job: JobView = serde_json::from_value(document["job"].clone()).unwrap();
    let shown: Vec<HostRow> = serde_json::from_value(document["hosts"].clone()).unwrap();
    assert_eq!(hosts(&fleet, job.id), truth);
    assert_eq!(shown.len(), truth.len());
    // One link was asked, the other probe has no such network and sent nothing.
    let c = job.coverage;
    assert!(c.adds_up(), "{c:?}");
    assert_eq!((job.total, c.asked, c.up, c.not_reached), (2, 2, 1, 1));
    assert!(near.sent_to(|to| to == all_nodes) >= 4, "two rounds from two sources");
    assert_eq!(far.len(), 0, "{:?}", far.packets().next());
    Records::read(fleet.data()).unwrap().reported_once(job.id, 2).unwrap();
    // The hosts are the site's, too, until somebody sees them again.
    let latest: Vec<HostRow> = fleet.json(&["hosts", "--addr", &network, "--json"]).unwrap();
    assert_eq!(latest.len(), truth.len());

    // The evidence says the same once more.
    let rebuilt: RebuildCounts = fleet.json(&["db", "rebuild", "--json"]).unwrap();
    assert_eq!(rebuilt.rejected, 0);
    assert_eq!((hosts(&fleet, job.id), fleet.job(job.id).unwrap().coverage), (truth.clone(), c));
    assert_eq!(fleet.results(job.id).unwrap(), [], "a link is no address");

    // What a job excludes hears nothing, and so not all nodes are asked; who was seen before is known and asked by itself.
    let spared = *truth.keys().nth(2).unwrap();
    let near = watch(&fleet, "desk", &network);
    let excluding = fleet.submit_job(&["discover", &network, "--exclude", &spared.to_string(), "--probe", "desk"]).unwrap();
    let done = fleet.wait_done(excluding, LONG).unwrap();
    let near = near.stop().unwrap();
    assert_eq!((done.coverage.up, done.coverage.asked), (1, 1));
    assert_eq!(near.sent_to(|to| to == all_nodes || to == spared), 0);
    let expected: Link = truth.iter().filter(|(addr, _)| **addr != spared).map(|(addr, mac)| (*addr, mac.clone())).collect();
    assert_eq!(hosts(&fleet, excluding), expected);

    // Without a network: whatever the probe is on, link-local addresses included, as far as hosts show themselves.
    let whole = fleet.submit_job(&["discover", "--link", "--probe", "desk"]).unwrap();
    fleet.wait_done(whole, LONG).unwrap();
    let found = hosts(&fleet, whole);
    assert!(truth.iter().all(|(addr, mac)| found.get(addr) == Some(mac)), "{found:?} lacks some of {truth:?}");
    let link_local = |addr: &IpAddr| matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local());
    assert!(found.keys().any(link_local) && found.keys().all(|addr| link_local(addr) || truth.contains_key(addr)), "{found:?}");
}

#[test]
fn a_probe_that_is_killed_while_it_discovers_its_link_finds_every_host_once() {
    if !require_root() {
        return;
    }
    let (mut fleet, truth, network) = link("v6kill");
    let mut near = watch(&fleet, "desk", &network);
    let job = fleet.submit_job(&["discover", &network, "--probe", "desk"]).unwrap();
    picket_tests::lab::wait_until("all nodes are asked", PATIENCE, || Ok((near.seen()? > 0).then_some(()))).unwrap();
    fleet.kill_probe("desk").unwrap();
    assert_ne!(fleet.job(job).unwrap().state, JobState::Done, "killed in the middle");
    fleet.start_probe("desk").unwrap();
    let done = fleet.wait_done(job, LONG).unwrap();
    assert_eq!((done.coverage.asked, done.coverage.up), (1, 1));
    assert_eq!(hosts(&fleet, job), truth);
    Records::read(fleet.data()).unwrap().reported_once(job, 1).unwrap();

    // A cancelled one ends at once, reports no position, and the sum is right all the same.
    let second = fleet.submit_job(&["discover", "--link", "--probe", "desk", "--rate", "1pps"]).unwrap();
    fleet.wait_job(second, "running", LONG, |job| job.state == JobState::Running).unwrap();
    fleet.picket(&["job", "cancel", &second.to_string()], PATIENCE).unwrap().ok().unwrap();
    let over = fleet.wait_job(second, "its end", LONG, |job| job.state.is_final()).unwrap();
    assert_eq!((over.state, over.coverage.asked, over.coverage.not_reached), (JobState::Cancelled, 1, 1));
}

const V4: &str = "198.18.8.0/27";
const V6: &str = "2001:db8:8::/123";

fn fleet(name: &str, ports: &[u16]) -> Fleet {
    let spec = TruthSpec::new(77, &[V4, V6], ports).unwrap();
    let site = Site::builder(name).probe("a").probe("b").segment(SegmentPlan::new("net", spec)).build().unwrap();
    let fleet = Fleet::start(site, Plan::default().packets("400pps")).unwrap();
    let target = fleet.site().segment("net").unwrap().target().namespace();
    // Errors are the answers here: as many as are asked for.
    target.sysctls(&[("net/ipv4/icmp_ratelimit", "0"), ("net/ipv6/icmp/ratelimit", "0"), ("net/ipv4/icmp_ratemask", "0")]).unwrap();
    fleet
}

fn truth(fleet: &Fleet) -> &Truth {
    fleet.site().segment("net").unwrap().target().truth()
}

/// The job's rows and end, checked against a truth that says of each target what it answers, if it does.
fn check(fleet: &Fleet, submitted: &Submitted, said: &BTreeMap<(IpAddr, Option<u16>), Option<&str>>) -> Vec<ResultRow> {
    let job = fleet.wait_done(submitted.job.as_ref().unwrap().id, LONG).unwrap();
    let rows = fleet.results(job.id).unwrap();
    let expected: Found = said.iter().filter_map(|((addr, port), answer)| Some((*addr, *port, (*answer)?.to_owned()))).collect();
    let found = found(&rows);
    let wrong: BTreeSet<_> = found.symmetric_difference(&expected).collect();
    assert!(wrong.is_empty(), "{} rows are missing or false: {wrong:?}", wrong.len());
    assert_eq!(found.len(), rows.len(), "no row is there twice");
    let count = |state| expected.iter().filter(|(_, _, found)| found == state).count() as u64;
    let c = job.coverage;
    assert!(c.adds_up(), "{c:?}");
    let counts = (c.asked, c.up, c.open, c.closed, c.silent, c.refused, c.not_reached);
    let silent = said.values().filter(|answer| answer.is_none()).count() as u64;
    assert_eq!(counts, (said.len() as u64, count("up"), count("open"), count("closed"), silent, 0, 0));
    assert_eq!(c.unfiltered, 0);
    Records::read(fleet.data()).unwrap().reported_once(job.id, 1).unwrap();
    rows
}

#[test]
fn udp_and_sctp_ports_are_as_the_truth_says() {
    if !require_root() {
        return;
    }
    let fleet = fleet("datagrams", &[80]);
    let target = fleet.site().segment("net").unwrap().target().namespace();
    let there = |address: &IpAddr| truth(&fleet).host(*address) != Some(HostState::Dead);
    let hosts: Vec<IpAddr> = truth(&fleet).hosts().map(|(address, _)| address).collect();
    target.nft("table inet deaf {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tudp dport 514 drop\n\t}\n}\n").unwrap();
    // Every second living host serves; a route is enough to answer for an IPv6 address, not to bind to it.
    let serving: BTreeSet<IpAddr> = hosts.iter().copied().filter(there).step_by(2).collect();
    let mut answers = Answers::default();
    for address in hosts.iter().filter(|address| there(address)) {
        if address.is_ipv6() {
            target.ip(&["address", "add", &format!("{address}/128"), "dev", "lo", "nodad"]).unwrap();
        }
        let is_serving = serving.contains(address);
        for port in [53, 7777] {
            if is_serving {
                answers.udp(target, SocketAddr::new(*address, port)).unwrap();
            }
        }
        answers.sctp(target, *address, if is_serving { &[36_412] } else { &[] }).unwrap();
    }

    let submitted = fleet.submit(&["scan", V4, V6, "-p", "U:53,123,514,7777"]).unwrap();
    let udp = |address: &IpAddr, port| match (there(address), port) {
        (false, _) | (true, 514) => None,
        (true, 53 | 7777) if serving.contains(address) => Some("open"),
        (true, _) => Some("closed"),
    };
    let said = hosts.iter().flat_map(|address| [53, 123, 514, 7777].map(|port| ((*address, Some(port)), udp(address, port)))).collect();
    let rows = check(&fleet, &submitted, &said);
    let reasons: BTreeSet<(&str, &str)> = rows.iter().map(|row| (row.state.as_str(), row.reason.as_str())).collect();
    assert_eq!(reasons, [("open", "udp-response"), ("closed", "port-unreach")].into());
    assert!(rows.iter().all(|row| row.protocol.map(picket_wire::job::Transport::as_str) == Some("udp")));

    let submitted = fleet.submit(&["scan", V4, V6, "-p", "S:80,36412"]).unwrap();
    let sctp = |address: &IpAddr, port| match (there(address), port) {
        (false, _) => None,
        (true, 36_412) if serving.contains(address) => Some("open"),
        (true, _) => Some("closed"),
    };
    let said = hosts.iter().flat_map(|address| [80, 36_412].map(|port| ((*address, Some(port)), sctp(address, port)))).collect();
    let rows = check(&fleet, &submitted, &said);
    let reasons: BTreeSet<(&str, &str)> = rows.iter().map(|row| (row.state.as_str(), row.reason.as_str())).collect();
    assert_eq!(reasons, [("open", "init-ack"), ("closed", "abort")].into());
}

#[test]
fn hosts_are_found_by_any_of_the_four_ways_that_are_the_default() {
    if !require_root() {
        return;
    }
    let fleet = fleet("fourways", &[80, 443]);
    // Shy hosts ignore echo requests. Those of IPv4 answer timestamp requests; there is no such question in IPv6, where one of the two
    // ports must answer.
    let is_up = |address: IpAddr, state: HostState| match state {
        HostState::Up => true,
        HostState::Shy if address.is_ipv4() => true,
        HostState::Shy => [80, 443].iter().any(|port| truth(&fleet).state(address, *port) != Some(PortTruth::Silent)),
        HostState::Dead => false,
    };
    let said: BTreeMap<(IpAddr, Option<u16>), Option<&str>> =
        truth(&fleet).hosts().map(|(address, state)| ((address, None), is_up(address, state).then_some("up"))).collect();
    let submitted = fleet.submit(&["discover", V4, V6]).unwrap();
    let rows = check(&fleet, &submitted, &said);
    // Hosts that ignore echo requests were found by something else.
    for row in &rows {
        let shy = truth(&fleet).host(row.addr) == Some(HostState::Shy);
        assert_eq!(row.reason == "echo-reply", !shy, "{row:?}");
    }
    let reasons: BTreeSet<&str> = rows.iter().map(|row| row.reason.as_str()).collect();
    assert!(reasons.len() >= 3, "the truth has too few kinds of hosts: {reasons:?}");
}
