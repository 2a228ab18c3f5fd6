//! `picket-probe trace --report` and `--continuous`: what many cycles come to, beside mtr, and with known losses.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::{Lab, has_tool, inside, sh};
use crate::trace::{Chain, FORK, ROUTERS, SILENT};

fn parsed(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The objects of one type.
fn of_type<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["type"] == kind).collect()
}

/// Address and loss in percent of each hop, as mtr's report has them: `  3.|-- 198.18.3.2  0.0%  3 ...`.
fn told_by_mtr(text: &str) -> Vec<(Option<String>, f64)> {
    let rows = text.lines().filter(|line| line.contains(".|-- "));
    let row = |line: &str| {
        let words: Vec<&str> = line.split(".|-- ").nth(1).unwrap().split_whitespace().collect();
        let loss = words[1].trim_end_matches('%').parse().unwrap();
        (Some(words[0].to_owned()).filter(|word| word != "???"), loss)
    };
    rows.map(row).collect()
}

#[test]
fn a_report_tells_the_hops_and_losses_that_mtr_tells() {
    let Some(chain) = Chain::new() else { return };
    if !has_tool("mtr", &["--version"]) {
        return;
    }
    for v4 in [true, false] {
        let dst = Chain::destination(v4);
        let mtr = || Command::new("mtr").args(["--report", "-n", "-c", "4", "-i", "0.2", &dst]).output().unwrap();
        let mut theirs = told_by_mtr(&String::from_utf8(inside(&chain.names[0], mtr).stdout).unwrap());
        let run = chain.run(&format!("trace -o ndjson --report --cycles 4 --every 200ms {dst}"));
        assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
        let lines = parsed(&run.out);
        let [statistics, sums] = &lines[..] else { panic!("a report says nothing on the way: {}", run.out) };
        assert_eq!((&statistics["cycles"], &statistics["ends"]["reached"]), (&4.into(), &4.into()), "{statistics}");
        assert_eq!((&sums["type"], &sums["paths"], &sums["complete"]), (&"trace".into(), &4.into(), &true.into()));
        let mut ours: Vec<(Option<String>, f64)> = Vec::new();
        for hop in statistics["hops"].as_array().unwrap() {
            let addrs = hop["addrs"].as_array().unwrap();
            assert!(hop["sent"] == 4 && addrs.len() <= 1, "one flow, one probe in each cycle: {hop}");
            ours.push((addrs.first().map(|addr| addr["addr"].as_str().unwrap().to_owned()), hop["loss_percent"].as_f64().unwrap()));
        }
        assert_eq!(ours.len(), ROUTERS + 1);
        assert_eq!(ours[SILENT - 1], (None, 100.0));
        // Behind the fork the two are different flows.
        ours.remove(FORK);
        theirs.remove(FORK);
        assert_eq!(ours, theirs, "{dst}");
    }
}

#[test]
fn losses_are_counted_packet_by_packet_and_cycles_tell_what_is_new() {
    const CYCLES: u64 = 6;
    const LOSSY: usize = 2;
    let Some(chain) = Chain::new() else { return };
    let last = ROUTERS + 1;
    // Every second answer of one router, and of the destination, is lost; the first ones are not.
    sh(&format!(
        "ip netns exec {} nft 'add table inet l; add chain inet l out {{ type filter hook output priority 0; }};
           add rule inet l out icmp type time-exceeded numgen inc mod 2 1 drop'
         ip netns exec {} nft 'add table inet l; add chain inet l out {{ type filter hook output priority 0; }};
           add rule inet l out icmp type echo-reply numgen inc mod 2 1 drop'",
        chain.names[LOSSY], chain.names[last],
    ));
    // No packet of another TTL reaches the destination, so that it is the second one of two that is lost.
    let dst = Chain::destination(true);
    let run = chain.run(&format!("trace -o ndjson --continuous --cycles {CYCLES} --every 100ms --max-hops {last} {dst}"));
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
    let lines = parsed(&run.out);
    let (cycles, statistics) = (of_type(&lines, "cycle"), of_type(&lines, "statistics")[0]);
    let ends: Vec<&str> = cycles.iter().map(|cycle| cycle["end"].as_str().unwrap()).collect();
    assert_eq!(ends, ["reached", "silent", "reached", "silent", "reached", "silent"]);
    assert_eq!((&statistics["ends"]["reached"], &statistics["ends"]["silent"]), (&3.into(), &3.into()));
    let mut summed: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (number, cycle) in (1..).zip(&cycles) {
        assert_eq!((&cycle["cycle"], &cycle["dst"]), (&Value::from(number), &Value::from(dst.as_str())));
        for hop in cycle["hops"].as_array().unwrap() {
            let (answered, lost) = (hop["rtt_ms"].as_array().map_or(0, Vec::len) as u64, hop["lost"].as_u64().unwrap_or(0));
            assert!(answered + lost == 1 && hop["from"].is_array() == (number == 1 && answered == 1), "addresses are told once: {cycle}");
            let sums = summed.entry(hop["ttl"].as_u64().unwrap()).or_default();
            *sums = (sums.0 + answered, sums.1 + lost);
        }
    }
    let hops = statistics["hops"].as_array().unwrap();
    assert_eq!(hops.len(), last, "{statistics}");
    for (ttl, hop) in (1..).zip(hops) {
        let (answered, sent) = (hop["answered"].as_u64().unwrap(), hop["sent"].as_u64().unwrap());
        assert_eq!((answered, sent - answered), summed[&(ttl as u64)], "what the cycles told, summed: {hop}");
        let expected = match ttl {
            SILENT => 0,
            ttl if ttl == LOSSY || ttl == last => CYCLES / 2,
            _ => CYCLES,
        };
        assert_eq!((answered, sent), (expected, CYCLES), "{hop}");
        let times = ["best_ms", "avg_ms", "worst_ms"].map(|key| hop[key].as_f64());
        assert!(times.is_sorted() && times[0].is_some() == (expected > 0), "{hop}");
    }
    let sums = lines.last().unwrap();
    let packets: u64 = cycles.iter().map(|cycle| cycle["packets"].as_u64().unwrap()).sum();
    assert_eq!((sums["packets"].as_u64(), packets), (Some(packets), CYCLES * last as u64), "one packet for each hop and cycle");
}

#[test]
fn several_destinations_have_a_report_each() {
    let Some(lab) = Lab::new() else { return };
    let run = lab.run("trace --report --cycles 2 --every 100ms 198.18.1.2 198.19.0.1 2001:db8:1::2");
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
    let headings: Vec<&str> = run.out.lines().filter(|line| line.contains(" by icmp, ")).collect();
    let of = |dst: &str| format!("{dst} by icmp, 2 cycles: 2 reached");
    assert_eq!(headings, ["198.18.1.2", "198.19.0.1", "2001:db8:1::2"].map(of));
    assert!(run.out.ends_with(" s\n") && run.out.contains("\n6 paths, 6 reached; "), "{}", run.out);
}

#[test]
fn an_interrupted_count_of_cycles_tells_what_was_seen() {
    let Some(lab) = Lab::new() else { return };
    let mut child = lab.command("trace 198.18.1.2 -o ndjson --continuous --cycles 1000 --every 1d").stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    out.read_line(&mut text).unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let lines = parsed(&text);
    let [cycle, statistics, sums] = &lines[..] else { panic!("{text}") };
    assert_eq!((&cycle["type"], &statistics["cycles"], &sums["complete"]), (&"cycle".into(), &1.into(), &false.into()), "{text}");
}
