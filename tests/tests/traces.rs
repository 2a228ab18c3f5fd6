//! Traces as jobs, through a controller, a probe and routers that really forward: the paths are those that packets take, each is delivered
//! once whatever is killed, and coverage adds up.

#![allow(clippy::unwrap_used, reason = "helpers of tests end a test that cannot go on, as tests themselves do")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use picket_controller::view::{JobState, PathRow};
use picket_tests::lab::behind::{Behind, NETWORK};
use picket_tests::lab::site::Site;
use picket_tests::lab::{Run, require_root, wait_until};
use picket_tests::system::records::Records;
use picket_tests::system::{Fleet, PATIENCE, Plan};
use picket_wire::ids::JobId;
use picket_wire::result::Record;
use picket_wire::trace::PathEnd;
use serde_json::Value;

/// Only waited for when something is broken.
const LONG: Duration = Duration::from_secs(180);
const ROUTERS: u8 = 4;
/// 512 destinations, every second one of which answers.
const MANY: &str = "198.18.208.0/23";
const ONE: &str = "198.18.208.6";

struct Rig {
    fleet: Fleet,
    behind: Behind,
    /// The site's router, as the probe sees it.
    first: IpAddr,
}

impl Rig {
    fn new(name: &str, plan: Plan) -> Self {
        let site = Site::builder(name).probe("a").build().unwrap();
        let behind = Behind::new(&site, ROUTERS).unwrap();
        let IpAddr::V4(own) = IpAddr::from(site.probe("a").unwrap().v4()) else { panic!("the probe has no address") };
        let [a, b, c, _] = own.octets();
        let fleet = Fleet::start(site, plan.roles("scan,trace")).unwrap();
        Self { fleet, behind, first: [a, b, c, 1].into() }
    }

    fn picket(&self, args: &[&str]) -> String {
        self.fleet.picket(args, LONG).unwrap().ok().unwrap()
    }

    /// The paths of a job, as `picket paths` has them.
    fn paths(&self, job: JobId) -> Vec<PathRow> {
        let text = self.picket(&["paths", "--job", &job.to_string(), "--output", "ndjson"]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn check(&self, path: &PathRow) {
        let told: Vec<BTreeSet<IpAddr>> = way(path);
        assert_eq!(told, self.behind.way(self.first, path.dst), "{path:?}");
        let end = if Behind::is_alive(path.dst) { PathEnd::Reached } else { PathEnd::Silent };
        assert_eq!(path.end, end, "{path:?}");
    }
}

/// Who answered at each distance; silent hops at the end left out.
fn way(path: &PathRow) -> Vec<BTreeSet<IpAddr>> {
    let mut way: Vec<BTreeSet<IpAddr>> = path.hops.iter().map(|hop| hop.replies.iter().map(|reply| reply.from).collect()).collect();
    while way.last().is_some_and(BTreeSet::is_empty) {
        way.pop();
    }
    way
}

#[test]
fn a_trace_tells_the_routers_that_packets_meet() {
    if !require_root() {
        return;
    }
    let rig = Rig::new("trace", Plan::default());
    for method in ["icmp", "udp", "tcp"] {
        let text = rig.picket(&["trace", ONE, "--method", method, "--json"]);
        let document: Value = serde_json::from_str(&text).unwrap();
        let [path]: [PathRow; 1] = serde_json::from_value(document["paths"].clone()).unwrap();
        rig.check(&path);
        assert_eq!((document["job"]["state"].as_str(), document["job"]["coverage"]["up"].as_u64()), (Some("done"), Some(1)));
        assert_eq!((path.asked.method.as_str(), path.probe.as_str(), path.asked.attempts), (method, "a", 3));
        assert!(path.hops.iter().all(|hop| hop.sent == 3 && hop.replies.len() == 3), "{path:?}");
        assert_eq!(path.source, Some(rig.fleet.site().probe("a").unwrap().v4().into()));
    }
    // For people: a line for each router; and what readers of RIPE Atlas expect.
    let text = rig.picket(&["trace", ONE, "--mtu", "--method", "udp", "--json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert!(told.to_string().contains(r#""mtu":{"bytes":1500,"limits":[],"silent":false,"ttl":64}"#), "{text}");
    assert!(rig.picket(&["trace", ONE, "--mtu"]).contains("packets of up to 1500 bytes arrive"));
    let table = rig.picket(&["trace", ONE]);
    let hops = rig.behind.way(rig.first, ONE.parse().unwrap());
    let lines: Vec<&str> = table.lines().collect();
    for (hop, line) in hops.iter().zip(&lines[1..]) {
        assert!(hop.iter().all(|addr| line.contains(&addr.to_string())), "{table}");
    }
    assert!(table.contains("reached") && lines[0].contains("from a (a)"), "{table}");
    let atlas: Value = serde_json::from_str(rig.picket(&["trace", ONE, "--output", "atlas"]).trim()).unwrap();
    let told = |hop: &Value| hop["result"][0]["from"].as_str().map(str::to_owned);
    let expected: Vec<Option<String>> = hops.iter().map(|hop| hop.first().map(ToString::to_string)).collect();
    assert_eq!(atlas["result"].as_array().unwrap().iter().map(told).collect::<Vec<_>>(), expected);
    assert_eq!((&atlas["type"], &atlas["dst_addr"]), (&"traceroute".into(), &ONE.into()));

    // All ways: here there is one.
    let text = rig.picket(&["trace", ONE, "--multipath", "--json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    let [path]: [PathRow; 1] = serde_json::from_value(document["paths"].clone()).unwrap();
    let graph = path.ways.unwrap();
    let nodes: Vec<BTreeSet<IpAddr>> = graph.hops.iter().map(|hop| hop.nodes.iter().map(|node| node.reply.from).collect()).collect();
    assert_eq!((nodes, graph.confidence, graph.end), (hops.clone(), 95, PathEnd::Reached));

    // Later a router keeps silent: the latest path has a hole there, and those before are remembered.
    rig.behind.silence(2).unwrap();
    let text = rig.picket(&["trace", ONE, "--json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    let [path]: [PathRow; 1] = serde_json::from_value(document["paths"].clone()).unwrap();
    let mut silent = hops.clone();
    silent[2].clear();
    assert_eq!((way(&path), path.end), (silent, PathEnd::Reached));
    let known: Vec<PathRow> = serde_json::from_str(&rig.picket(&["paths", ONE, "--json"])).unwrap();
    let by_icmp: Vec<&PathRow> = known.iter().filter(|path| path.flow == "icmp").collect();
    // The first one, the one with packets of all sizes, the table, the one for Atlas, and now this.
    assert_eq!((by_icmp.len(), by_icmp[0].job), (5, path.job));
    let flows: BTreeSet<&str> = known.iter().map(|path| path.flow.as_str()).collect();
    assert_eq!(flows, ["icmp", "tcp/80", "udp/33434", "udp/33434 all ways"].into());
    // Silence is no change of the way.
    assert_eq!(rig.picket(&["paths", "changes"]), "no way has changed\n");
    assert_eq!(rig.picket(&["paths", "accept", ONE]), "4 ways accepted\n");
    let summary = rig.picket(&["paths"]);
    assert_eq!(summary.lines().filter(|line| line.starts_with(ONE)).count(), 4, "{summary}");
    let detailed = rig.picket(&["paths", ONE, "--probe", "a"]);
    assert!(detailed.contains("  3 *\n") && detailed.contains("before that:"), "{detailed}");

    // And then there is no route any more.
    rig.fleet.site().probe("a").unwrap().namespace().ip(&["route", "add", "unreachable", NETWORK]).unwrap();
    // A probe looks at its routes again when the kernel says that they have changed, which takes its moment.
    let latest = wait_until("a trace without a route", LONG, || {
        let document: Value = serde_json::from_str(&rig.picket(&["trace", ONE, "--json"])).unwrap();
        let [latest]: [PathRow; 1] = serde_json::from_value(document["paths"].clone()).unwrap();
        Ok((document["job"]["coverage"]["not_reached"] == 1).then_some(latest))
    });
    let latest = latest.unwrap();
    assert_eq!((latest.end, latest.hops.len(), latest.sent), (PathEnd::NoRoute, 0, 0));
    assert!(rig.picket(&["paths", ONE]).contains("\n    no-route, 0 packets\n"));
    assert!(rig.picket(&["paths", "changes"]).contains("\n    no longer reached: reached -> no-route\n"));
}

/// `address status distance names` of every host, as libnmap reads them.
const LIBNMAP: &str = "
import sys
from libnmap.parser import NmapParser
for host in NmapParser.parse_fromfile(sys.argv[1]).hosts:
    print(host.address, host.status, host.distance, *host.hostnames)
";

/// What a program of the system prints, which must succeed.
fn read_by(program: &str, args: &[&str]) -> String {
    let run = std::process::Command::new(program).args(args).output().unwrap();
    assert!(run.status.success(), "{program}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

#[test]
fn names_and_origins_are_told_and_tools_of_nmap_read_them() {
    if !require_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let table = dir.path().join("table.tsv");
    let line = |first: &str, last: &str, asn: u32, name: &str| format!("{first}\t{last}\t{asn}\tZZ\t{name} of the lab\n");
    let lines =
        [line("198.18.200.0", "198.18.207.255", 64_500, "EXAMPLE-TRANSIT"), line("198.18.208.0", "198.18.211.255", 64_501, "EXAMPLE-EDGE")];
    std::fs::write(&table, lines.concat()).unwrap();
    let lookup = |server: &str| format!("[lookup]\nreverse = true\nserver = \"{server}\"\norigin = \"{}\"\n", table.display());
    let rig = Rig::new("names", Plan::default().controller(&lookup("127.0.0.1:5353")));
    let mut dns = Run::new("dnsmasq").args(["-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "-u", "root"]);
    dns = dns.args(["--port=5353", "--listen-address=127.0.0.1", "--bind-interfaces", "--local=/arpa/"]);
    dns = dns.args(["--ptr-record=2.200.18.198.in-addr.arpa,edge1.example.net", "--ptr-record=6.208.18.198.in-addr.arpa,www.example.org"]);
    let _dns = rig.fleet.site().controller().spawn(&dns).unwrap();

    let shown = rig.picket(&["trace", ONE, "--names"]);
    let hop = |addr: &str| shown.lines().skip(1).find(|line| line.contains(addr)).unwrap_or_default().to_owned();
    assert!(hop("198.18.200.2").contains("  edge1.example.net  AS64500 EXAMPLE-TRANSIT ZZ  "), "{shown}");
    assert!(hop("198.18.201.2").contains("AS64500 EXAMPLE-TRANSIT ZZ  "), "{shown}");
    assert!(hop(ONE).contains("  www.example.org    AS64501 EXAMPLE-EDGE ZZ"), "{shown}");
    // Names are nothing that is stored, nor told unasked.
    assert!(rig.picket(&["paths", "--json"]).contains("\"hops\"") && !rig.picket(&["paths", "--json"]).contains("example"));
    let [path]: [PathRow; 1] = serde_json::from_str(&rig.picket(&["paths", ONE, "--names", "--json"])).unwrap();
    let names = path.names.unwrap();
    let known = &names.addrs[&ONE.parse::<IpAddr>().unwrap()];
    let origin = known.origin.clone().map(|origin| (origin.asn, origin.country, origin.description));
    assert_eq!((known.names.concat().as_str(), names.lacking), ("www.example.org", Vec::new()));
    assert_eq!(origin, Some((64_501, Some("ZZ".to_owned()), "EXAMPLE-EDGE of the lab".to_owned())));

    // A second destination that nobody answers for, in one document with the first.
    rig.picket(&["trace", "198.18.208.7"]);
    let file = table.with_file_name("paths.xml");
    let path = file.to_str().unwrap();
    for args in [&["paths", NETWORK, "-o", "xml", "--names"][..], &["trace", ONE, "198.18.208.7", "-o", "xml", "--names"]] {
        let text = rig.picket(args);
        std::fs::write(&file, &text).unwrap();
        read_by("xmllint", &["--noout", "--dtdvalid", "/usr/share/nmap/nmap.dtd", path]);
        let mut hosts: Vec<String> =
            read_by("/usr/bin/python3", &["-c", LIBNMAP, path]).lines().map(|line| line.trim_end().to_owned()).collect();
        hosts.sort_unstable();
        let far = usize::from(ROUTERS) + 2;
        assert_eq!(hosts, [format!("{ONE} up {far} www.example.org"), "198.18.208.7 unknown 0".to_owned()], "{text}");
        assert!(text.contains(" host=\"edge1.example.net\"/>"), "{text}");
        read_by("ndiff", &[path, path]);
    }
}

#[test]
fn what_either_policy_forbids_is_refused_and_gets_no_packet() {
    if !require_root() {
        return;
    }
    // A quarter for each policy.
    let plan = Plan::default().fleet_deny(&["198.18.208.64/26"]).site_deny(&["198.18.208.128/26"]);
    let rig = Rig::new("policy", plan);
    let watch = rig.fleet.site().watch("a", Some(&format!("dst net {NETWORK}"))).unwrap();
    let job = rig.fleet.submit_job(&["trace", "198.18.208.0/24", "--rate", "1kpps"]).unwrap();
    let done = rig.fleet.wait_done(job, LONG).unwrap();
    assert!(done.coverage.adds_up());
    let coverage = done.coverage;
    assert_eq!((coverage.asked, coverage.refused, coverage.up, coverage.silent, coverage.not_reached), (256, 128, 64, 64, 0));
    let asked: BTreeSet<u8> = watch
        .stop()
        .unwrap()
        .packets()
        .map(|packet| if let IpAddr::V4(dst) = packet.destination { dst.octets()[3] } else { panic!("{packet:?}") })
        .collect();
    let allowed: BTreeSet<u8> = (0..64).chain(192..=255).collect();
    assert_eq!(asked, allowed);
    let paths = rig.paths(job);
    assert_eq!(paths.len(), 128);
    paths.iter().for_each(|path| rig.check(path));
}

#[test]
fn a_probe_that_is_killed_goes_on_and_each_path_is_delivered_once() {
    if !require_root() {
        return;
    }
    let mut rig = Rig::new("killed", Plan::default());
    let before = rig.behind.passed().unwrap();
    // Slow enough that there is something left to kill.
    let job = rig.fleet.submit_job(&["trace", MANY, "--rate", "250pps", "--priority", "bulk"]).unwrap();
    for packets in [150, 500, 900] {
        wait_until(&format!("{packets} packets of the trace"), LONG, || Ok((rig.behind.passed()? - before >= packets).then_some(())))
            .unwrap();
        rig.fleet.kill_probe("a").unwrap();
        assert!(!rig.fleet.job(job).unwrap().state.is_final(), "it was over before anybody was killed");
        rig.fleet.start_probe("a").unwrap();
    }
    let done = rig.fleet.wait_done(job, LONG).unwrap();
    assert_eq!(done.state, JobState::Done);
    let coverage = done.coverage;
    assert!(coverage.adds_up());
    assert_eq!((coverage.asked, coverage.up, coverage.silent, coverage.refused, coverage.not_reached), (512, 256, 256, 0, 0));

    let paths = rig.paths(job);
    let told: BTreeSet<IpAddr> = paths.iter().map(|path| path.dst).collect();
    assert_eq!((paths.len(), told.len()), (512, 512), "each destination once");
    paths.iter().for_each(|path| rig.check(path));

    // Batches cover every position once; of paths that were told again behind a checkpoint the later one counts.
    let records = Records::read(rig.fleet.data()).unwrap();
    records.reported_once(job, 1).unwrap();
    let mut raw: BTreeMap<u64, usize> = BTreeMap::new();
    for record in &records.raw {
        assert_eq!(record.outcome, 0, "{record:?}");
        if let Record::Paths(batch) = &record.record {
            batch.paths.iter().for_each(|path| *raw.entry(path.position).or_default() += 1);
        }
    }
    assert_eq!(raw.len(), 512);
    assert!(raw.values().all(|times| *times <= 4), "{raw:?}");
    rig.picket(&["db", "rebuild"]);
    assert_eq!(rig.paths(job), paths, "a rebuild changes nothing");
}

#[test]
fn a_cancelled_trace_keeps_what_was_done() {
    if !require_root() {
        return;
    }
    let rig = Rig::new("cancel", Plan::default());
    let job = rig.fleet.submit_job(&["trace", MANY, "--rate", "100pps", "--priority", "bulk"]).unwrap();
    let some = rig.fleet.wait_job(job, "begun", LONG, |job| job.coverage.asked > 0).unwrap();
    assert!(some.asked_so_far >= some.coverage.asked);
    rig.fleet.picket(&["job", "cancel", &job.to_string()], PATIENCE).unwrap().ok().unwrap();
    let over = rig.fleet.wait_job(job, "over", LONG, |job| job.state.is_final()).unwrap();
    assert_eq!((over.state, over.coverage.asked), (JobState::Cancelled, 512));
    assert!(over.coverage.adds_up() && over.coverage.not_reached > 0, "{over:?}");
    let paths = rig.paths(job);
    assert_eq!(paths.len() as u64, over.coverage.up + over.coverage.silent);
    paths.iter().for_each(|path| rig.check(path));
}
