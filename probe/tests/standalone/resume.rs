//! A run that was killed goes on, and together both have found what one would have found; a dry run sends nothing.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, POLICY, PROBE, Run};
use crate::{check_truth, truth};

const PORTS: std::ops::RangeInclusive<u16> = 1..=120;

/// Begins a scan of 64 addresses and sends a signal when the first results are there.
fn begin_and_end(lab: &Lab, file: &Path, signal: Signal) -> Run {
    let args = format!("scan 198.19.0.0/26 -p 1-120 -Pn --rate 4kpps -o ndjson --resume {}", file.display());
    let mut child = lab.command(&args).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    std::io::copy(&mut out, &mut std::io::sink()).unwrap();
    Run::of(child.wait_with_output().unwrap())
}

#[test]
fn a_killed_run_goes_on_and_finds_the_same() {
    let Some(lab) = Lab::new() else { return };
    let dir = Lab::dir();
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let file = dir.path().join(format!("{signal}"));
        let run = begin_and_end(&lab, &file, signal);
        if signal == Signal::SIGINT {
            assert_eq!(run.code, Some(3), "{}", run.err);
            assert!(run.err.contains(&format!("to go on: picket-probe scan --resume {}", file.display())), "{}", run.err);
        }
        let alone = format!("scan --resume {}", file.display());
        let run = lab.run(&alone);
        check_truth(&run, 64, &PORTS.collect::<Vec<_>>());
        assert_eq!(run.parsed().1["asked"], 64 * 120);
        // A run that is complete is told again, and nothing is sent for it.
        lab.count_frames();
        let again = lab.run(&alone);
        assert_eq!((again.code, again.parsed().0), (Some(0), run.parsed().0));
        assert_eq!(lab.frames(), 0);
        // Another form of output may be asked for.
        let table = lab.run(&format!("{alone} -o table"));
        let open = PORTS.filter(|port| truth(*port) == Some("open")).count();
        assert_eq!(table.out.matches("/tcp ").count(), 64 * open, "{}", table.out);
        crate::lab::sh(&format!("ip netns exec {} nft delete table netdev c", lab.target));
    }
}

#[test]
fn a_run_with_discovery_goes_on_in_either_stage() {
    let Some(lab) = Lab::new() else { return };
    let dir = Lab::dir();
    let file = dir.path().join("run");
    let args = format!("scan 198.18.1.2,198.19.0.0/26 -p T:1-50,U:53 --rate 2kpps -o ndjson --resume {}", file.display());
    let mut child = lab.command(&args).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    // The hosts are told before the first port is.
    out.read_line(&mut String::new()).unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    let run = lab.run(&format!("scan --resume {}", file.display()));
    assert_eq!(run.code, Some(0), "{}", run.err);
    let (_, coverage) = run.parsed();
    assert_eq!((&coverage["asked"], &coverage["not_reached"]), (&(65 * 51).into(), &0.into()));
    assert_eq!(coverage["silent"], 65);
}

#[test]
fn resume_files_that_do_not_fit_are_refused() {
    let dir = Lab::dir();
    let path = dir.path().join("run");
    let probe = |args: &str| {
        let mut command = Command::new(PROBE);
        Run::of(command.args(args.split_whitespace()).env("PICKET_POLICY__ALLOW", POLICY).output().unwrap())
    };
    let missing = probe(&format!("scan --resume {}", path.display()));
    assert!(missing.code == Some(2) && missing.err.contains("does not exist: to begin a run"), "{}", missing.err);
    std::fs::write(&path, "something else").unwrap();
    let foreign = probe(&format!("scan --resume {}", path.display()));
    assert!(foreign.code == Some(1) && foreign.err.contains("is no resume file"), "{}", foreign.err);
    let Some(lab) = Lab::new() else { return };
    std::fs::remove_file(&path).unwrap();
    begin_and_end(&lab, &path, Signal::SIGINT);
    for (args, message) in [
        ("scan 198.19.0.0/27 -p 1-120 -Pn", "is of another run: it differs in its targets"),
        ("scan 198.19.0.0/26 -p 1-201 -Pn", "it differs in its ports or techniques"),
        ("scan --attempts 3", "a run is resumed as it was begun"),
        ("scan -Pn", "a run is resumed as it was begun"),
    ] {
        let run = lab.run(&format!("{args} --resume {}", path.display()));
        assert!(run.code == Some(2) && run.err.contains(message) && run.out.is_empty(), "{args}: {}", run.err);
    }
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(&path, bytes).unwrap();
    let run = lab.run(&format!("scan --resume {}", path.display()));
    assert!(run.code == Some(1) && run.err.contains("is damaged at byte"), "{}", run.err);
}

#[test]
fn a_dry_run_says_everything_and_sends_nothing() {
    let Some(lab) = Lab::new() else { return };
    lab.count_frames();
    let args = "scan 198.18.1.0/29 192.0.2.0/28 2001:db8:2::1 --exclude 198.18.1.7 -p T:22,80,U:53 --rate 100pps --dry-run";
    let text = lab.run(args);
    assert_eq!(text.code, Some(0), "{}", text.err);
    for part in [
        "addresses   24 asked for, 8 permitted, 1 excluded",
        "refused     192.0.2.0-192.0.2.15, 16 addresses: denied: no `allow` rule holds it",
        "discover    hosts: 8 targets, 8 to 32 packets, first",
        "syn         2 ports (22,80): 16 targets, 0 to 32 packets",
        "packets     at least 8, at most 80",
        "duration    0.1 s to 0.8 s",
        "rate        at most 100pps and 10Mbit",
        "interface   eth0, from 198.18.1.1 and 2001:db8:1::1",
    ] {
        assert!(text.out.contains(part), "{part}: {}", text.out);
    }
    let json: serde_json::Value = serde_json::from_str(&lab.run(&format!("{args} --json")).out).unwrap();
    assert_eq!((&json["packets"]["most"], &json["interface"], &json["refused"][0]["addresses"]), (&80.into(), &"eth0".into(), &16.into()));
    for other in ["services 198.19.0.0/30 -p 22 --dry-run", "discover 198.19.0.0/24 --dry-run"] {
        assert_eq!(lab.run(other).code, Some(0));
    }
    let list = lab.run("scan -sL 198.18.1.2-4,2001:db8::/127 --exclude 198.18.1.3 -p 1");
    assert_eq!(list.out, "198.18.1.2\n198.18.1.4\n2001:db8::\n2001:db8::1\n");
    assert_eq!(lab.frames(), 0);
    // The counter does count.
    lab.run("scan 198.19.0.1 -p 22");
    assert!(lab.frames() > 0);
}
