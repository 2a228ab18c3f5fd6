//! `picket-probe scan` and `picket-probe discover` as a technician runs them: against a kernel that answers for a thousand
//! hosts in another network namespace, and with everything one can type wrong.
//!
//! The first part needs root, `ip` and `nft`; without them it says so and stops, and CI runs as root.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

mod continuous;
mod docs;
mod formats;
mod fragile;
mod kinds;
mod lab;
#[path = "../namespaces/mod.rs"]
mod namespaces;
mod resume;
mod terminal;
mod texts;
mod trace;
mod trace_formats;

use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use lab::{Lab, OPEN, POLICY, PROBE, PROHIBITED, Run, SILENT};

pub(crate) fn truth(port: u16) -> Option<&'static str> {
    match port {
        SILENT => None,
        PROHIBITED => Some("filtered"),
        port if OPEN.contains(&port) => Some("open"),
        _ => Some("closed"),
    }
}

pub(crate) fn check_truth(run: &Run, addresses: usize, ports: &[u16]) {
    assert_eq!(run.code, Some(0), "{}", run.err);
    let (answers, coverage) = run.parsed();
    for ((addr, port), state) in &answers {
        assert_eq!(Some(state.as_str()), truth(*port), "{addr} {port}");
    }
    let answering = ports.iter().filter(|port| truth(**port).is_some()).count();
    assert_eq!(answers.len(), addresses * answering, "{coverage}");
    assert_eq!(coverage["silent"], addresses * (ports.len() - answering));
    assert_eq!(coverage["not_reached"], 0);
}

#[test]
fn syn_scan_finds_the_truth() {
    let Some(lab) = Lab::new() else { return };
    let run = lab.run("scan 198.19.0.0/24 2001:db8:2::/121 -p 20-25,80,110,443 -o ndjson");
    check_truth(&run, 256 + 128, &[20, 21, 22, 23, 24, 25, 80, 110, 443]);
}

#[test]
fn connect_scan_finds_the_truth() {
    let Some(lab) = Lab::new() else { return };
    // Without the prohibited port: of an ICMP error that comes before the system call is over the kernel tells nobody.
    let run = lab.run("scan 198.19.0.0/28 2001:db8:2::/125 -p 20-25,80,443 -o ndjson --technique connect");
    check_truth(&run, 16 + 8, &[20, 21, 22, 23, 24, 25, 80, 443]);
}

#[test]
fn who_may_not_is_told_and_may_fall_back() {
    let Some(lab) = Lab::new() else { return };
    let run = |args: &str| {
        let nobody = format!("netns exec {} setpriv --reuid 65534 --clear-groups --inh-caps=-all {PROBE} {args}", lab.probe);
        let mut command = Command::new("ip");
        command.args(nobody.split_whitespace()).env("PICKET_POLICY__ALLOW", POLICY);
        Run::of(command.output().unwrap())
    };
    if run("--version").code != Some(0) {
        eprintln!("SKIPPED: the build directory cannot be read by others");
        return;
    }
    let refused = run("scan 198.19.0.1 -p 80");
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("CAP_NET_RAW") && refused.err.contains("--technique connect"), "{}", refused.err);
    let auto = run("scan 198.19.0.1 -p 80 --technique auto -o ndjson");
    assert!(auto.err.contains("scanning by connections instead"), "{}", auto.err);
    check_truth(&auto, 1, &[80]);
}

#[test]
fn discovery_finds_who_answers() {
    let Some(lab) = Lab::new() else { return };
    let run = lab.run("discover 198.19.0.0/24,2001:db8:2::/124 --exclude 198.19.0.9 -o ndjson --technique echo");
    assert_eq!(run.code, Some(0), "{}", run.err);
    let (answers, coverage) = run.parsed();
    assert_eq!((answers.len(), &coverage["silent"], &coverage["excluded"]), (127 + 16, &128.into(), &1.into()));
    assert!(answers.values().all(|state| state == "up"));
    // Who drops echo requests is found in another way.
    let (answers, coverage) = lab.run("discover 198.19.0.0/24,2001:db8:2::/124 --exclude 198.19.0.9 -o ndjson").parsed();
    assert_eq!((answers.len(), &coverage["silent"]), (255 + 16, &0.into()));
}

#[test]
fn neighbours_that_are_not_there_are_not_called_silent() {
    let Some(lab) = Lab::new() else { return };
    let run = lab.run("scan 198.18.1.2-198.18.1.5 -p 22,81 -o ndjson");
    let (answers, coverage) = run.parsed();
    assert_eq!((answers.len(), &coverage["silent"]), (2, &0.into()));
    assert_eq!(coverage["not_reached_reasons"], serde_json::json!({ "host_down": 6 }));
    // The same where all ports of all addresses are asked at once.
    let (answers, coverage) = lab.run("scan 198.18.1.2-198.18.1.5 -p 22,81 -o ndjson -Pn").parsed();
    assert_eq!((answers.len(), &coverage["not_reached_reasons"]), (2, &serde_json::json!({ "no_neighbour": 6 })));
}

#[test]
fn policy_refuses_and_says_so() {
    let Some(lab) = Lab::new() else { return };
    let mut command = lab.command("scan 198.19.0.0/29 -p 22 -o ndjson");
    let run = Run::of(command.env("PICKET_POLICY__DENY", "198.19.0.4/30").output().unwrap());
    let (answers, coverage) = run.parsed();
    assert_eq!((answers.len(), &coverage["refused"]), (4, &4.into()));
    assert!(run.err.contains("policy refuses 4 of 8 addresses; 198.19.0.4: denied by `deny 198.19.0.4/30`"), "{}", run.err);
}

#[test]
fn an_interrupted_scan_prints_what_it_has() {
    let Some(lab) = Lab::new() else { return };
    for technique in ["syn", "connect"] {
        let args = format!("scan 198.19.0.0/22 -p 1-1000 --rate 500pps -o ndjson -Pn --technique {technique}");
        let child = lab.command(&args).spawn().unwrap();
        let run = interrupt_after_first_line(child);
        assert_eq!(run.code, Some(3), "{}", run.err);
        let (answers, coverage) = run.parsed();
        assert!(answers.len() > 100, "{coverage}");
        assert_eq!((&coverage["asked"], &coverage["complete"]), (&(1024 * 1000).into(), &false.into()));
        assert!(coverage["not_reached_reasons"]["stopped"].as_u64().unwrap() > 900_000);
        assert!(run.err.contains("stopping"), "{}", run.err);
    }
}

/// The first line comes with the first chunk, after about a second of sending.
fn interrupt_after_first_line(mut child: Child) -> Run {
    use std::io::{BufRead, BufReader, Read};
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    out.read_line(&mut text).unwrap();
    // `ip netns exec` becomes the program that it starts.
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    out.read_to_string(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    Run { out: text, ..Run::of(output) }
}

#[test]
fn a_rate_above_the_limit_is_clipped_aloud() {
    let Some(lab) = Lab::new() else { return };
    let run = lab.run("scan 198.19.0.1 -p 1-2000 --rate 50kpps -o ndjson");
    assert!(run.err.contains("rate 50kpps is above the interface's limit: sending at 20kpps"), "{}", run.err);
    let (_, coverage) = run.parsed();
    assert!(coverage["seconds"].as_f64().unwrap() > 0.09, "{coverage}");
}

#[test]
fn what_is_typed_wrong_is_said_to_be_so() {
    let run = |args: &str| {
        let mut command = Command::new(PROBE);
        Run::of(command.args(args.split_whitespace()).env("PICKET_POLICY__ALLOW", POLICY).output().unwrap())
    };
    for (args, code, message) in [
        ("scan 198.18.0.1", 2, "name the ports to scan, for example `-p 22,80,443`"),
        ("scan -p 80", 2, "name targets, for example 192.168.1.0/24 or fd00::/64"),
        ("scan 198.18.0.1 -p 80-70", 2, "port range `80-70` ends before it starts"),
        ("scan 198.18.0.1 -p nosuchservice", 2, "no TCP service is called `nosuchservice`"),
        ("scan 198.18.0.300 -p 80", 2, "`300` in `198.18.0.300` is not an octet"),
        ("scan 198.18.0.0/33 -p 80", 2, "`198.18.0.0/33` has no such prefix length"),
        ("scan 198.18.0.9-198.18.0.1 -p 80", 2, "ends before it starts"),
        ("scan ::/0 -p 80", 2, "more than any job can reach"),
        ("scan 198.18.0.1 -p 80 --exclude 198.18.0.0/24", 2, "no target is left"),
        ("scan 198.18.0.1 -p 80 --rate 500", 2, "`500` has no unit"),
        ("scan 198.18.0.1 -p 80 --rate 0pps", 2, "would never send anything"),
        ("scan 198.18.0.1 -p 80 --attempts 11", 2, "11 is not in 1..=10"),
        ("scan 198.18.0.1 -p 80 --technique echo", 2, "technique `echo` has no ports"),
        ("scan 198.18.0.1 -p 80 --config /nonexistent/probe.toml", 2, "/nonexistent/probe.toml"),
        ("scan 192.0.2.1 -p 80", 1, "permits none of the targets; 192.0.2.1: denied: no `allow` rule holds it"),
        ("scan 198.18.0.1 -p 80 --interface nosuch0", 1, "there is no interface `nosuch0`"),
    ] {
        let run = run(args);
        assert_eq!(run.code, Some(code), "{args}: {}", run.err);
        assert!(run.err.contains(message) && run.out.is_empty(), "{args}: {}", run.err);
    }
}
