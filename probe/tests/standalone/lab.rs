//! Two network namespaces, and runs of the program in them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::ops::Deref;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub(crate) use crate::namespaces::{Namespaces, inside, sh};

pub(crate) const PROBE: &str = env!("CARGO_BIN_EXE_picket-probe");
pub(crate) const POLICY: &str = "198.18.0.0/15,2001:db8::/32";

/// Two namespaces joined by a veth pair.
pub(crate) struct Lab {
    namespaces: Namespaces,
    _listeners: Vec<TcpListener>,
}

impl Deref for Lab {
    type Target = Namespaces;
    fn deref(&self) -> &Namespaces {
        &self.namespaces
    }
}

pub(crate) const OPEN: [u16; 3] = [22, 80, 443];
pub(crate) const SILENT: u16 = 25;
pub(crate) const PROHIBITED: u16 = 110;

impl Lab {
    /// The target's kernel answers for 198.19.0.0/22 and 2001:db8:2::/64; see the constants for its ports.
    pub(crate) fn new() -> Option<Lab> {
        let namespaces = Namespaces::named("alone")?;
        let Namespaces { probe, target } = &namespaces;
        sh(&format!(
            "ip netns add {probe}; ip netns add {target}
             ip netns exec {probe} sysctl -qw net.ipv6.conf.default.accept_dad=0
             ip netns exec {target} sysctl -qw net.ipv6.conf.default.accept_dad=0
             ip -n {probe} link add eth0 type veth peer name eth0 netns {target}
             ip -n {probe} link set lo up; ip -n {target} link set lo up
             ip -n {probe} link set eth0 up; ip -n {target} link set eth0 up
             ip -n {probe} address add 198.18.1.1/24 dev eth0
             ip -n {probe} address add 2001:db8:1::1/64 dev eth0 nodad
             ip -n {target} address add 198.18.1.2/24 dev eth0
             ip -n {target} address add 2001:db8:1::2/64 dev eth0 nodad
             ip -n {target} route add local 198.19.0.0/22 dev lo
             ip -n {target} route add local 2001:db8:2::/64 dev lo
             ip -n {probe} route add default via 198.18.1.2
             ip -n {probe} route add default via 2001:db8:1::2
             ip netns exec {target} sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=1000000 net.ipv6.icmp.ratelimit=0
             ip netns exec {target} nft 'add table inet t; add chain inet t in {{ type filter hook input priority 0; }};
               add rule inet t in tcp dport {SILENT} drop;
               add rule inet t in tcp dport {PROHIBITED} reject with icmpx type admin-prohibited;
               add rule inet t in ip daddr 198.19.0.128/25 icmp type echo-request drop'"
        ));
        let listeners = inside(target, || OPEN.map(|port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).into());
        Some(Lab { namespaces, _listeners: listeners })
    }

    pub(crate) fn command(&self, args: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.probe, PROBE]).args(args.split_whitespace());
        command.env("PICKET_POLICY__ALLOW", POLICY).env("PICKET_INTERFACE__PACKETS", "20kpps").env("RUST_LOG", "error");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, args: &str) -> Run {
        Run::of(self.command(args).output().unwrap())
    }
}

pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Run {
    pub(crate) fn of(output: Output) -> Run {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Answers by address and port, and the coverage, of NDJSON.
    pub(crate) fn parsed(&self) -> (BTreeMap<(IpAddr, u16), String>, Value) {
        let mut lines: Vec<Value> = self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let coverage = lines.pop().unwrap_or_else(|| panic!("no output: {}", self.err));
        assert_eq!(coverage["type"], "coverage", "{}", self.err);
        let sum: u64 = ["answered", "silent", "refused", "not_reached"].iter().map(|part| coverage[*part].as_u64().unwrap()).sum();
        assert_eq!(coverage["asked"], sum, "the coverage adds up");
        let mut answers = BTreeMap::new();
        // Hosts that were found first belong to the way, where ports were the aim.
        let hosts_first = coverage["passes"][0]["discovery"] == true;
        for line in lines.iter().filter(|line| !(hosts_first && line["type"] == "host")) {
            let port = line["port"].as_u64().unwrap_or(0) as u16;
            let key = (line["addr"].as_str().unwrap().parse().unwrap(), port);
            let before = answers.insert(key, line["state"].as_str().unwrap().to_owned());
            assert_eq!(before, None, "{key:?} is reported twice");
        }
        (answers, coverage)
    }
}

impl Lab {
    /// A directory for files of a run, gone when dropped.
    pub(crate) fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    /// Counts what reaches the target's wire besides what IPv6 says by itself.
    pub(crate) fn count_frames(&self) {
        let target = &self.target;
        sh(&format!(
            "ip netns exec {target} nft 'add table netdev c; add chain netdev c in {{ type filter hook ingress device eth0 priority 0; }};
               add rule netdev c in meta protocol arp counter comment frames;
               add rule netdev c in meta l4proto {{ tcp, udp, sctp, icmp }} counter comment frames;
               add rule netdev c in icmpv6 type {{ echo-request, nd-neighbor-solicit }} ip6 saddr 2001:db8::/32 counter comment frames'"
        ));
    }

    /// How many frames were counted.
    pub(crate) fn frames(&self) -> u64 {
        let out = Command::new("ip").args(["netns", "exec", &self.target, "nft", "list", "table", "netdev", "c"]).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let counts = text.lines().filter_map(|line| line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok());
        let counts: Vec<u64> = counts.collect();
        assert_eq!(counts.len(), 3, "{text}");
        counts.iter().sum()
    }
}

/// Whether a tool of others is there; said aloud where it is not, and an error where nothing may be left out.
pub(crate) fn has_tool(name: &str, args: &[&str]) -> bool {
    let there = Command::new(name).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    let required = std::env::var_os("PICKET_REQUIRE_LAB").is_some_and(|value| value == "1");
    assert!(there || !required, "PICKET_REQUIRE_LAB=1, but {name} is missing: run scripts/setup test");
    if !there {
        eprintln!("SKIPPED: {name} {args:?} does not work; scripts/setup test installs it");
    }
    there
}
