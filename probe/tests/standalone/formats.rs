//! Every format is read back by the programs of others: nmap's DTD, ndiff and libnmap for the XML, json.tool for JSON; and masscan's
//! lines by a strict reader of our own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::{Lab, Run, has_tool, inside};
use crate::truth;

const DTD: &str = "/usr/share/nmap/nmap.dtd";
/// The system's own, for which libnmap is packaged.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

pub(crate) fn tool(name: &str, args: &[&str]) -> Run {
    Run::of(Command::new(name).args(args).output().unwrap())
}

pub(crate) fn valid_by_dtd(file: &Path) {
    let run = tool("xmllint", &["--noout", "--dtdvalid", DTD, file.to_str().unwrap()]);
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{}", std::fs::read_to_string(file).unwrap());
}

/// `address port/protocol state` of every listed port, and `address state` of every host, as libnmap reads them.
fn read_by_libnmap(file: &Path) -> BTreeSet<String> {
    let script = "
import sys
from libnmap.parser import NmapParser
report = NmapParser.parse_fromfile(sys.argv[1])
for host in report.hosts:
    print(host.address, host.status)
    for s in host.services:
        print(host.address, '%d/%s' % (s.port, s.protocol), s.state)
";
    let run = tool(PYTHON, &["-c", script, file.to_str().unwrap()]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    run.out.lines().map(str::to_owned).collect()
}

#[test]
fn nmap_xml_is_what_nmap_itself_would_have_written() {
    let Some(lab) = Lab::new() else { return };
    if !(has_tool("xmllint", &["--version"]) && has_tool("nmap", &["--version"]) && has_tool(PYTHON, &["-c", "import libnmap"])) {
        return;
    }
    let dir = Lab::dir();
    let (ours, theirs) = (dir.path().join("ours.xml"), dir.path().join("theirs.xml"));
    let ports = "22,25,80,81,110,443";
    let run = lab.run(&format!("scan 198.19.0.0/28 -p {ports} -oX {} -o ndjson", ours.display()));
    assert_eq!(run.code, Some(0), "{}", run.err);
    valid_by_dtd(&ours);
    let nmap = format!("netns exec {} nmap -n -sS -T4 -p {ports} 198.19.0.0/28 -oX {}", lab.probe, theirs.display());
    assert_eq!(tool("ip", &nmap.split_whitespace().collect::<Vec<_>>()).code, Some(0));
    let (ours, theirs) = (read_by_libnmap(&ours), read_by_libnmap(&theirs));
    assert_eq!(ours, theirs);
    assert_eq!(ours.len(), 16 * (1 + 6));
}

#[test]
fn nmap_xml_of_everything_together_is_valid() {
    let Some(lab) = Lab::new() else { return };
    if !has_tool("xmllint", &["--version"]) {
        return;
    }
    let dir = Lab::dir();
    for (number, args) in [
        "scan 198.19.0.0/29 2001:db8:2::/125 -p T:1-300,U:53,161,S:2905 -Pn",
        "scan 198.19.0.0/29 -p 22,80 --services",
        "discover 198.18.1.0/29 198.19.0.0/30",
        "scan 198.19.0.7 -p 25",
        "scan 198.19.0.0/30 -p 1-100 -sT",
        "scan 198.19.0.0/30 -p 1-100 -sA",
    ]
    .iter()
    .enumerate()
    {
        let file = dir.path().join(format!("{number}.xml"));
        let run = lab.run(&format!("{args} -oX {}", file.display()));
        assert_eq!(run.code, Some(0), "{args}: {}", run.err);
        valid_by_dtd(&file);
        let text = std::fs::read_to_string(&file).unwrap();
        // The listed and the counted ports of each host are all the ports that it was asked.
        if number == 0 {
            for host in text.split("<host ").skip(1) {
                let listed = host.matches("<port ").count();
                let counts =
                    host.match_indices("<extrareasons ").filter_map(|(at, _)| host[at..].split("count=\"").nth(1)?.split('"').next());
                let counted: usize = counts.map(|count| count.parse::<usize>().unwrap()).sum();
                assert_eq!(listed + counted, 303, "{host}");
            }
        }
    }
}

#[test]
fn ndiff_tells_two_scans_apart() {
    let Some(lab) = Lab::new() else { return };
    if !has_tool("ndiff", &["--help"]) {
        return;
    }
    let dir = Lab::dir();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    lab.run(&format!("scan 198.19.0.0/30 -p 22,80,81 -oX {}", file("before")));
    let _listener = inside(&lab.target, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, 81)).unwrap());
    lab.run(&format!("scan 198.19.0.0/30 -p 22,80,81 -oX {}", file("after")));
    let same = tool("ndiff", &[&file("before"), &file("before")]);
    assert_eq!(same.code, Some(0), "{}{}", same.out, same.err);
    let differs = tool("ndiff", &[&file("before"), &file("after")]);
    assert_eq!(differs.code, Some(1), "{}", differs.err);
    let lines =
        |sign: &str, state: &str| differs.out.lines().filter(|l| l.starts_with(sign) && l.contains("81/tcp") && l.contains(state)).count();
    assert_eq!((lines("-", "closed"), lines("+", "open")), (4, 4), "{}", differs.out);
}

/// Strictly what masscan -oL writes: `open tcp 80 198.18.1.2 1795268616`.
fn read_list(text: &str) -> BTreeMap<(IpAddr, u16), String> {
    let lines: Vec<&str> = text.lines().collect();
    let [first, rows @ .., last] = lines.as_slice() else { panic!("{text}") };
    assert_eq!((*first, *last), ("#masscan", "# end"));
    let mut found = BTreeMap::new();
    for row in rows {
        let words: Vec<&str> = row.split(' ').collect();
        let [state, proto, port, addr, stamp] = words[..] else { panic!("{row}") };
        assert!(["open", "closed"].contains(&state) && ["tcp", "udp", "sctp", "icmp"].contains(&proto), "{row}");
        assert!(stamp.parse::<u64>().is_ok_and(|stamp| stamp > 1_600_000_000), "{row}");
        let before = found.insert((addr.parse().unwrap(), port.parse().unwrap()), state.to_owned());
        assert_eq!(before, None, "{row} comes twice");
    }
    found
}

fn read_json(file: &Path) -> BTreeMap<(IpAddr, u16), String> {
    let read = tool("python3", &["-m", "json.tool", file.to_str().unwrap()]);
    assert_eq!(read.code, Some(0), "{}", read.err);
    let rows: Vec<Value> = serde_json::from_str(&read.out).unwrap();
    let mut found = BTreeMap::new();
    for row in rows {
        assert!(row["timestamp"].as_str().unwrap().parse::<u64>().is_ok());
        let port = &row["ports"][0];
        assert!(port["proto"] == "tcp" && port["ttl"].is_u64() && port["reason"].is_string(), "{row}");
        let key = (row["ip"].as_str().unwrap().parse().unwrap(), port["port"].as_u64().unwrap() as u16);
        assert_eq!(found.insert(key, port["status"].as_str().unwrap().to_owned()), None, "{row} comes twice");
    }
    found
}

#[test]
fn masscan_forms_say_what_was_found() {
    let Some(lab) = Lab::new() else { return };
    let dir = Lab::dir();
    let (list, json) = (dir.path().join("list"), dir.path().join("json"));
    let run = lab.run(&format!("scan 198.19.0.0/28 -p 20-25,80,110 --all -oL {} -oJ {} -o ndjson", list.display(), json.display()));
    assert_eq!(run.code, Some(0), "{}", run.err);
    let expected: BTreeMap<(IpAddr, u16), String> =
        run.parsed().0.into_iter().filter(|(_, state)| state == "open" || state == "closed").collect();
    assert_eq!(expected.len(), 16 * 6);
    assert!(expected.iter().all(|((_, port), state)| truth(*port) == Some(state)));
    assert_eq!(read_list(&std::fs::read_to_string(&list).unwrap()), expected);
    assert_eq!(read_json(&json), expected);
    // Nothing found is an empty list, not an empty file.
    let run = lab.run("scan 198.19.0.1 -p 25 --output-file masscan-json=-");
    assert_eq!((run.code, run.out.as_str()), (Some(0), "[\n]\n"));
}

#[test]
fn an_interrupted_run_ends_every_format_and_a_killed_one_is_visibly_unfinished() {
    let Some(lab) = Lab::new() else { return };
    if !has_tool("xmllint", &["--version"]) {
        return;
    }
    let dir = Lab::dir();
    let file = |name: &str| dir.path().join(name);
    let args = format!(
        "scan 198.19.0.0/22 -p 1-1000 -Pn --rate 500pps -o ndjson -oX {0}/x --output-file table={0}/t -oJ {0}/j -oL {0}/l",
        dir.path().display()
    );
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let mut child = lab.command(&args).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        out.read_line(&mut text).unwrap();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        out.read_to_string(&mut text).unwrap();
        let ended = child.wait_with_output().unwrap();
        let names = ["x", "t", "j", "l"];
        if signal == Signal::SIGKILL {
            assert!(names.iter().all(|name| !file(name).exists() && file(&format!("{name}.part")).exists()));
            continue;
        }
        assert_eq!(ended.status.code(), Some(3));
        assert!(names.iter().all(|name| file(name).exists() && !file(&format!("{name}.part")).exists()));
        valid_by_dtd(&file("x"));
        assert!(std::fs::read_to_string(file("x")).unwrap().contains("exit=\"error\" errormsg=\"interrupted\""));
        assert!(std::fs::read_to_string(file("t")).unwrap().contains("stopped before its turn"));
        assert_eq!(read_list(&std::fs::read_to_string(file("l")).unwrap()), read_json(&file("j")));
        assert!(text.lines().last().unwrap().contains("\"complete\":false"));
    }
}
