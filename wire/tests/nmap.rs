//! What people type for targets and ports means here what it means to `nmap`, where that gives it one meaning.
//!
//! `nmap -sL` lists targets and sends nothing; for ports it is asked to scan in a namespace that has no network at all, and tells
//! what it understood before it finds that out.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use picket_wire::addr::AddrSet;
use picket_wire::job::Transport;
use picket_wire::port::{PortSelection, Services};
use picket_wire::target::{TargetItem, parse_addresses};

/// Stands between two texts in one list of nmap's.
const BETWEEN: &str = "192.0.2.1";

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

/// Whether nmap can be asked; as root its absence is a failure, for `scripts/setup test` installs it.
fn nmap_is_here() -> bool {
    let here = Command::new("nmap").arg("--version").output().is_ok_and(|output| output.status.success());
    if !here {
        assert!(!is_root(), "nmap is missing: run scripts/setup test");
        eprintln!("SKIPPED: nmap is missing, and nothing was compared with it");
    }
    here
}

/// Runs nmap, as root without any network; for lists it sends nothing in any case.
fn nmap(args: &[String]) -> String {
    let mut command = match is_root() {
        true => Command::new("unshare"),
        false => Command::new("nmap"),
    };
    if is_root() {
        command.args(["--net", "nmap"]);
    }
    let output = command.args(args).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A small generator of forms, so that a failure can be repeated.
struct Seed(u64);

impl Seed {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// A number, a range, an open end, all; at most `most` items in a list.
    fn octet(&mut self, most: u64) -> String {
        let items = 1 + self.below(most);
        let item = |seed: &mut Seed| {
            let (a, b) = (seed.below(256), seed.below(256));
            match seed.below(8) {
                0 => format!("{}-{}", a.min(b), a.max(b)),
                1 => format!("{}-", 250 + a % 6),
                2 => format!("-{}", b % 6),
                _ => a.to_string(),
            }
        };
        (0..items).map(|_| item(self)).collect::<Vec<_>>().join(",")
    }

    fn target(&mut self) -> String {
        let second = ["18", "19", "18,19", "18-19"][self.below(4) as usize];
        let last = if self.below(12) == 0 { "*".to_owned() } else { self.octet(4) };
        match self.below(4) {
            0 => format!("198.18.{}.{}/{}", self.below(256), self.below(256), 22 + self.below(11)),
            1 => format!("198.{second}.{}.{}", self.below(256), last),
            2 => format!("198.18.{},{}.{}/{}", self.below(100), 100 + self.below(100), self.octet(2), 24 + self.below(9)),
            _ => format!("198.{second}.{}.{}", self.below(256), self.octet(3)),
        }
    }
}

fn as_set(addrs: &BTreeSet<IpAddr>) -> AddrSet {
    AddrSet::try_from(addrs.iter().map(|addr| (*addr, *addr)).collect::<Vec<_>>()).unwrap()
}

/// What nmap lists for each text.
fn listed(family: &[&str], texts: &[String], between: &str) -> Vec<BTreeSet<IpAddr>> {
    let mut args: Vec<String> = family.iter().chain(&["-sL", "-n"]).map(|arg| (*arg).to_owned()).collect();
    args.extend(texts.iter().flat_map(|text| [text.clone(), between.to_owned()]));
    let output = nmap(&args);
    let reports = output.lines().filter_map(|line| line.strip_prefix("Nmap scan report for "));
    let mut sets = vec![BTreeSet::new()];
    for report in reports {
        match report == between {
            true => sets.push(BTreeSet::new()),
            false => assert!(sets.last_mut().unwrap().insert(report.parse().unwrap()), "{report} is listed twice"),
        }
    }
    sets.truncate(texts.len());
    sets
}

#[test]
fn targets_are_what_nmap_lists() {
    if !nmap_is_here() {
        return;
    }
    let mut seed = Seed(17);
    let mut texts: Vec<String> = (0..300).map(|_| seed.target()).collect();
    let fixed = ["198.18.0.7", "198.18.3.9/24", "198.18.0-3.1,7,9-11", "198.18.0-1.254-", "198.18.*.1", "198.18.0-1.-1", "198.18.2.5-5,4"];
    texts.extend(fixed.map(str::to_owned));
    for some in texts.chunks(50) {
        for (text, theirs) in some.iter().zip(listed(&[], some, BETWEEN)) {
            assert_eq!(parse_addresses(text).unwrap(), as_set(&theirs), "{text}");
        }
    }
    let texts = ["2001:db8::7", "2001:db8::7/120", "2001:DB8:0:1::/125", "2001:db8::198.18.0.1/127"].map(str::to_owned);
    for (text, theirs) in texts.iter().zip(listed(&["-6"], &texts, "2001:db8:ffff::1")) {
        assert_eq!(parse_addresses(text).unwrap(), as_set(&theirs), "{text}");
    }
}

#[test]
fn where_nmap_guesses_or_fails_we_say_why() {
    if !nmap_is_here() {
        return;
    }
    // What nmap makes of the text: addresses that nobody asked for, or none.
    let guessed =
        [("198.18.0.0/33", "198.18.0.0"), ("198.18.3", "198.18.0.3"), ("198.18.0.010", "198.18.0.10"), ("198.18.0.1/032", "198.18.0.1")];
    for (text, guess) in guessed {
        let output = nmap(&["-sL", "-n", text].map(str::to_owned));
        assert!(output.contains(guess), "nmap no longer guesses about {text}: {output}");
        assert!(text.parse::<TargetItem>().is_err(), "{text}");
    }
    for text in ["198.18.0.9-3", "198.18.0.256", "198.18.0.*,3", "198.18..1", "198.18.0.1,", "198.18.0.1-2-3", "198.18.0.1/"] {
        let output = nmap(&["-sL", "-n", text].map(str::to_owned));
        assert!(!output.contains("scan report"), "nmap now accepts {text}: {output}");
        assert!(text.parse::<TargetItem>().is_err(), "{text}");
    }
}

const SERVICES: &str = "\
ssh 22/tcp 0.3
domain 53/tcp 0.1
domain 53/udp 0.2
tftp 69/udp 0.1
http 80/tcp 0.5
http 80/sctp 0.01
https 443/tcp 0.4
https 443/udp 0.1
http-proxy 8080/tcp 0.2
s1-control 36412/sctp 0.01
";

/// What nmap understood, from the report's `scaninfo` elements.
fn understood(directory: &str, ports: &str) -> PortSelection {
    let args = ["--datadir", directory, "-sS", "-sU", "-sY", "-Pn", "-n", "-p", ports, "-oX", "-", BETWEEN].map(str::to_owned);
    let report = nmap(&args);
    let mut sections = Vec::new();
    for line in report.lines().filter(|line| line.starts_with("<scaninfo")) {
        let field = |name: &str| line.split(&format!(" {name}=\"")).nth(1).unwrap().split('"').next().unwrap();
        let section = field("protocol")[..1].to_ascii_uppercase();
        let services = field("services");
        if !services.is_empty() {
            sections.push(format!("{section}:{services}"));
        }
    }
    assert!(!sections.is_empty(), "nmap understood nothing of {ports}: {report}");
    PortSelection::parse(&sections.join(","), &Services::default(), &[]).unwrap()
}

#[test]
fn ports_are_what_nmap_understands() {
    if !nmap_is_here() || !is_root() {
        return eprintln!("SKIPPED: raw scan kinds of nmap need root, and no port list was compared with it");
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("nmap-services"), SERVICES).unwrap();
    let services = Services::parse(SERVICES);
    let mut seed = Seed(4);
    let mut texts: Vec<String> = [
        "22",
        "22,80,8000-8100",
        "-3,65530-",
        "-",
        "0-3",
        "T:21-25,80,U:53,69,S:36412,T:443",
        "22,U:53",
        "http,U:domain",
        "http*",
        "T:http?",
        "U:*",
        "[1-100]",
        "[1-60,400-],9",
        "U:[50-60]",
        "S:s1*,T:[70-]",
    ]
    .map(str::to_owned)
    .into();
    for _ in 0..60 {
        let item = |seed: &mut Seed| {
            let (a, b) = (seed.below(65_536), seed.below(65_536));
            let section = ["", "", "T:", "U:", "S:"][seed.below(5) as usize];
            match seed.below(4) {
                0 => format!("{section}{}-{}", a.min(b), a.max(b)),
                1 => format!("{section}{}-", 65_000 + a % 500),
                2 => format!("{section}-{}", 1 + b % 500),
                _ => format!("{section}{a}"),
            }
        };
        let items = 1 + seed.below(5);
        texts.push((0..items).map(|_| item(&mut seed)).collect::<Vec<_>>().join(","));
    }
    for text in texts {
        let ours = PortSelection::parse(&text, &services, &Transport::ALL).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(ours, understood(directory.path().to_str().unwrap(), &text), "{text}");
    }
}
