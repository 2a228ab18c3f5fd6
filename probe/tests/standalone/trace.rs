//! `picket-probe trace` through ten routers that really forward, one of which keeps silent and one of which spreads load by flow.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::lab::{POLICY, PROBE, Run, has_tool, inside, sh};

/// Routers in a row between the probe and the destination.
pub(crate) const ROUTERS: usize = 10;
/// The one that says nothing.
pub(crate) const SILENT: usize = 4;
/// The one before two ways of equal cost.
pub(crate) const FORK: usize = 7;

/// The probe, routers in a row, and the destination, each in a namespace of its own.
pub(crate) struct Chain {
    pub(crate) names: Vec<String>,
}

impl Drop for Chain {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

impl Chain {
    /// Machine `n` has 198.18.N.2 and 2001:db8:N::2 towards the probe, 198.18.N+1.1 and 2001:db8:N+1::1 away from it. Behind [`FORK`] there are two links to the
    /// same neighbour, 198.19.0.0/24 and 198.19.1.0/24, between which its kernel chooses by addresses and ports.
    pub(crate) fn new() -> Option<Chain> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: network namespaces need root");
            return None;
        }
        let names: Vec<String> = (0..=ROUTERS + 1).map(|n| format!("pk-way-{}-{n}", std::process::id())).collect();
        let chain = Chain { names };
        for name in &chain.names {
            sh(&format!(
                "ip netns add {name}; ip -n {name} link set lo up
                 ip netns exec {name} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0 \
                   net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=1000000 net.ipv6.icmp.ratelimit=0 \
                   net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.fib_multipath_hash_policy=1 \
                   net.ipv4.icmp_errors_use_inbound_ifaddr=1"
            ));
        }
        for near in 0..=ROUTERS {
            let [a, b] = [&chain.names[near], &chain.names[near + 1]];
            let far = near + 1;
            sh(&format!(
                "ip -n {a} link add away type veth peer name back netns {b}
                 ip -n {a} link set away up; ip -n {b} link set back up
                 ip -n {a} address add 198.18.{far}.1/24 dev away; ip -n {b} address add 198.18.{far}.2/24 dev back
                 ip -n {a} address add 2001:db8:{far}::1/64 dev away nodad; ip -n {b} address add 2001:db8:{far}::2/64 dev back nodad
                 ip -n {a} route add default via 198.18.{far}.2; ip -n {a} route add default via 2001:db8:{far}::2"
            ));
            for back in 1..far {
                sh(&format!(
                    "ip -n {b} route add 198.18.{back}.0/24 via 198.18.{far}.1; ip -n {b} route add 2001:db8:{back}::/64 via 2001:db8:{far}::1"
                ));
            }
        }
        let [fork, join] = [&chain.names[FORK], &chain.names[FORK + 1]];
        sh(&format!(
            "ip -n {fork} link add other type veth peer name other netns {join}
             ip -n {fork} link set other up; ip -n {join} link set other up
             ip -n {fork} address add 198.19.1.1/24 dev other; ip -n {join} address add 198.19.1.2/24 dev other
             ip -n {fork} route replace default nexthop via 198.18.{0}.2 nexthop via 198.19.1.2
             ip netns exec {1} nft 'add table inet t; add chain inet t out {{ type filter hook output priority 0; }};
               add rule inet t out icmp type time-exceeded drop; add rule inet t out icmpv6 type time-exceeded drop'",
            FORK + 1,
            chain.names[SILENT],
        ));
        Some(chain)
    }

    pub(crate) fn run(&self, args: &str) -> Run {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[0], PROBE]).args(args.split_whitespace());
        command.env("PICKET_POLICY__ALLOW", POLICY).env("RUST_LOG", "error").stdout(Stdio::piped()).stderr(Stdio::piped());
        Run::of(command.output().unwrap())
    }

    fn paths(&self, args: &str) -> Vec<Value> {
        let run = self.run(&format!("trace -o ndjson {args}"));
        assert_eq!(run.code, Some(0), "{}", run.err);
        let mut lines: Vec<Value> = run.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let sums = lines.pop().unwrap();
        assert_eq!((&sums["type"], sums["paths"].as_u64()), (&"trace".into(), Some(lines.len() as u64)), "{sums}");
        lines
    }

    pub(crate) fn destination(v4: bool) -> String {
        let far = ROUTERS + 1;
        if v4 { format!("198.18.{far}.2") } else { format!("2001:db8:{far}::2") }
    }

    pub(crate) fn address(v4: bool, hop: usize) -> String {
        if v4 { format!("198.18.{hop}.2") } else { format!("2001:db8:{hop}::2") }
    }
}

/// The addresses of each hop.
fn hops(path: &Value) -> Vec<BTreeSet<String>> {
    let from = |hop: &Value| hop["replies"].as_array().unwrap().iter().map(|reply| reply["from"].as_str().unwrap().to_owned()).collect();
    path["hops"].as_array().unwrap().iter().map(from).collect()
}

/// Whether `hops` is the chain; behind the fork either address will do.
fn check(v4: bool, hops: &[BTreeSet<String>]) {
    assert_eq!(hops.len(), ROUTERS + 1, "{hops:?}");
    for (hop, from) in (1..).zip(hops) {
        let expected: BTreeSet<String> = match hop {
            SILENT => BTreeSet::new(),
            hop if hop == FORK + 1 && v4 && from.contains("198.19.1.2") => ["198.19.1.2".to_owned()].into(),
            hop => [Chain::address(v4, hop)].into(),
        };
        assert_eq!(*from, expected, "hop {hop} of {hops:?}");
    }
}

#[test]
fn the_way_is_found_by_every_method_in_both_families() {
    let Some(chain) = Chain::new() else { return };
    for method in ["icmp", "udp", "tcp"] {
        for v4 in [true, false] {
            let [path] = chain.paths(&format!("--method {method} {}", Chain::destination(v4))).try_into().unwrap();
            assert_eq!((&path["end"], &path["method"]), (&"reached".into(), &method.into()), "{path}");
            check(v4, &hops(&path));
            for hop in path["hops"].as_array().unwrap() {
                let replies = hop["replies"].as_array().unwrap();
                assert!(replies.is_empty() == (hop["ttl"] == SILENT) && hop["sent"] == 3, "{path}");
                assert!(replies.iter().all(|reply| reply["quoted_ttl"].as_u64().is_none_or(|ttl| ttl == 1)), "{path}");
            }
        }
    }
    // Another flow may go the other way; one flow never goes both.
    let mut seen = BTreeSet::new();
    for flow in 0..32 {
        let [path] = chain.paths(&format!("--method udp --flow {flow} {}", Chain::destination(true))).try_into().unwrap();
        check(true, &hops(&path));
        seen.extend(hops(&path)[FORK].clone());
    }
    assert_eq!(seen.len(), 2, "32 flows over two ways: {seen:?}");
}

#[test]
fn many_destinations_errors_and_what_was_typed_wrong() {
    let Some(chain) = Chain::new() else { return };
    // A network that the last router refuses, and one that it drops in silence.
    let last = &chain.names[ROUTERS];
    sh(&format!(
        "ip -n {last} route add blackhole 198.19.8.0/24
         ip netns exec {last} nft 'add table inet t; add chain inet t f {{ type filter hook forward priority 0; }};
           add rule inet t f ip daddr 198.19.7.0/24 reject with icmp admin-prohibited'"
    ));
    let refused = &chain.paths("-q 1 198.19.7.0/27")[..];
    assert_eq!(refused.len(), 32);
    for path in refused {
        assert_eq!((&path["end"], path["hops"].as_array().unwrap().len()), (&"unreachable".into(), ROUTERS + 1), "{path}");
        let [ended, refused] = [ROUTERS - 1, ROUTERS].map(|hop| &path["hops"][hop]["replies"][0]);
        assert_eq!((&ended["from"], &refused["icmp_code"]), (&refused["from"], &13.into()), "{path}");
    }
    let silent = chain.paths("-q 1 198.19.8.1");
    assert_eq!((&silent[0]["end"], silent[0]["hops"].as_array().unwrap().len()), (&"silent".into(), ROUTERS - 1), "{silent:?}");
    for (args, code, said) in [
        ("trace", 2, "name destinations"),
        ("trace 198.18.3.2 --method smoke", 2, "`smoke` is not a way to trace: use icmp, udp or tcp"),
        ("trace 198.18.3.2 --max-hops 65", 2, "hops 1 to 65: from 1 up to 64 are possible"),
        ("trace 198.18.3.2 --multipath -o xml", 2, "--multipath makes a graph, and `nmap-xml` can only express paths"),
        ("trace 198.18.3.2 --multipath --output-file atlas=/nonexistent/x", 2, "`atlas` can only express paths"),
        ("trace 198.18.3.2 -o atlas --output-file ndjson=-", 2, "only one format can go to standard output"),
        ("trace 198.18.3.2 --continuous -o xml", 2, "`nmap-xml` has one path for each destination, and --continuous makes many"),
        ("trace 198.18.0.0/16 --report", 2, "65536 destinations are too many to be traced again and again: at most 1024 are possible"),
        ("trace 198.18.3.2 --report --multipath", 2, "cannot be used with"),
        ("trace 198.18.3.2 --every 5s", 2, "required arguments were not provided"),
        ("trace 198.18.3.2 --report --every 5ms", 2, "`5ms` is out of range: from 100ms to 1d"),
        ("trace 198.18.3.2 --report --every soon", 2, "`soon` is not a duration"),
        ("trace 198.18.3.2 -q 0", 2, "0 probes for each hop: 1 to 16 are possible"),
        ("trace 192.0.2.1", 1, "the site's policy permits none of the targets; 192.0.2.1"),
        ("trace 198.18.3.2 -i nowhere", 1, "there is no interface `nowhere`"),
    ] {
        let run = chain.run(args);
        assert!(run.code == Some(code) && run.err.contains(said), "{args}: {:?} {}", run.code, run.err);
    }
    let dry = chain.run("trace --dry-run 198.18.3.2");
    assert!(dry.code == Some(0) && dry.out.contains("packets       90 at most") && dry.out.ends_with("nothing was sent\n"), "{}", dry.out);
    let table = chain.run(&format!("trace -q 1 {}", Chain::destination(true)));
    assert!(table.out.contains(&format!("\n  {SILENT} *\n")) && table.out.contains("\n    reached, "), "{}", table.out);
}

/// The hops that another program tells, a line each; `None` where one is silent.
fn theirs(output: &Output) -> Vec<Option<String>> {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    lines.map(|line| line.split_whitespace().nth(1).filter(|word| *word != "*").map(str::to_owned)).collect()
}

#[test]
fn the_way_is_the_one_that_traceroute_tells() {
    let Some(chain) = Chain::new() else { return };
    if !has_tool("traceroute", &["--version"]) {
        return;
    }
    for v4 in [true, false] {
        let dst = Chain::destination(v4);
        let traceroute = || Command::new("traceroute").args(["-n", "-I", "-q", "1", "-w", "1", &dst]).output().unwrap();
        let theirs = theirs(&inside(&chain.names[0], traceroute));
        let [path] = chain.paths(&dst).try_into().unwrap();
        let ours: Vec<Option<String>> = hops(&path).into_iter().map(|hop| hop.into_iter().next()).collect();
        let comparable = |all: &[Option<String>]| -> Vec<Option<String>> {
            // Behind the fork the two are different flows.
            all.iter().enumerate().filter(|(at, _)| *at != FORK).map(|(_, hop)| hop.clone()).collect()
        };
        assert_eq!(comparable(&ours), comparable(&theirs), "{dst}");
    }
}
