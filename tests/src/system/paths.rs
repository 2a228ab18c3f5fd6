//! Paths as `picket-probe trace`, scamper, mtr and traceroute tell them, in one form.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::Run;
use crate::lab::programs::Programs;

/// A path, as one program told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Where to.
    pub dst: IpAddr,
    /// Whether the destination answered.
    pub reached: bool,
    /// The source port, where the program told it.
    pub source_port: Option<u64>,
    /// Each distance, from one on.
    pub hops: Vec<Hop>,
}

/// What is at one distance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// Packets that went so far, where the program told it.
    pub sent: Option<u64>,
    /// Who answered each of those that were answered.
    pub from: Vec<IpAddr>,
}

impl Path {
    /// Who answered at each distance, the destination included; silent hops at the end left out.
    #[must_use]
    pub fn way(&self) -> Vec<BTreeSet<IpAddr>> {
        let mut way: Vec<BTreeSet<IpAddr>> = self.hops.iter().map(|hop| hop.from.iter().copied().collect()).collect();
        while way.last().is_some_and(BTreeSet::is_empty) {
            way.pop();
        }
        way
    }

    fn hop(&mut self, ttl: usize) -> Result<&mut Hop> {
        ensure!((1..=255).contains(&ttl), "hop {ttl}: from 1 up to 255 are possible");
        if self.hops.len() < ttl {
            self.hops.resize(ttl, Hop::default());
        }
        Ok(&mut self.hops[ttl - 1])
    }
}

/// `picket-probe trace`, told as NDJSON, on a device that may send so many packets a second.
///
/// # Errors
/// When it is not built.
pub fn probe(device: &str, rate: &str, args: &[&str]) -> Result<Run> {
    let run = Programs::locate()?.probe(&["trace", "-o", "ndjson", "-i", device, "--rate", rate])?.args(args);
    let run = run.env("PICKET_INTERFACE__PACKETS", rate).env("PICKET_INTERFACE__BITS", "1Gbit");
    Ok(run.env("PICKET_POLICY__ALLOW", "198.18.0.0/15,2001:db8::/32").env("RUST_LOG", "error"))
}

/// scamper with one command for each destination, as `trace -P icmp-paris 198.18.2.2`, and so many packets a second.
#[must_use]
pub fn scamper(rate: u32, commands: &[String]) -> Run {
    Run::new("scamper").args(["-O", "json", "-p", &rate.to_string(), "-I"]).args(commands)
}

/// Reads what `picket-probe trace -o ndjson` told: all of its paths, of which there must be as many as its last line says.
///
/// # Errors
/// When it is something else.
pub fn read_probe(text: &str) -> Result<Vec<Path>> {
    let lines = text.lines().map(serde_json::from_str).collect::<serde_json::Result<Vec<Value>>>().context("a line of picket-probe")?;
    let (sums, paths) = lines.split_last().context("picket-probe told nothing")?;
    ensure!(sums["paths"] == paths.len() && sums["complete"] == true, "{} paths and {sums}", paths.len());
    let read = |line: &Value| -> Result<Path> {
        let mut path = Path { dst: addr(&line["dst"])?, reached: line["end"] == "reached", source_port: None, hops: Vec::new() };
        for told in list(&line["hops"])? {
            let hop = path.hop(number(&told["ttl"])?)?;
            hop.sent = told["sent"].as_u64();
            hop.from = list(&told["replies"])?.iter().map(|reply| addr(&reply["from"])).collect::<Result<_>>()?;
        }
        Ok(path)
    };
    paths.iter().map(|line| read(line).with_context(|| format!("read {line}"))).collect()
}

/// Reads what `scamper -O json` told of traces.
///
/// # Errors
/// When it is something else.
pub fn read_scamper(text: &str) -> Result<Vec<Path>> {
    let lines = text.lines().map(serde_json::from_str).collect::<serde_json::Result<Vec<Value>>>().context("a line of scamper")?;
    let read = |line: &Value| -> Result<Path> {
        let reached = line["stop_reason"] == "COMPLETED";
        let mut path = Path { dst: addr(&line["dst"])?, reached, source_port: line["sport"].as_u64(), hops: Vec::new() };
        // Where nobody answered, there are none.
        for told in line["hops"].as_array().into_iter().flatten() {
            path.hop(number(&told["probe_ttl"])?)?.from.push(addr(&told["addr"])?);
        }
        Ok(path)
    };
    let traces = lines.iter().filter(|line| line["type"] == "trace");
    traces.map(|line| read(line).with_context(|| format!("read {line}"))).collect()
}

/// Reads what `mtr -n --report` told: `  3.|-- 198.18.3.2   0.0%   1   0.1 ...`, and `???` where nobody answered.
///
/// # Errors
/// When it is something else.
pub fn read_mtr(dst: IpAddr, text: &str) -> Result<Path> {
    let mut path = Path { dst, reached: false, source_port: None, hops: Vec::new() };
    for line in text.lines().filter(|line| line.contains(".|--")) {
        let (ttl, rest) = line.split_once(".|--").context("no hop")?;
        let who = rest.split_whitespace().next().with_context(|| format!("nobody in {line:?}"))?;
        let hop = path.hop(ttl.trim().parse().with_context(|| format!("the hop of {line:?}"))?)?;
        if who != "???" {
            hop.from.push(who.parse().with_context(|| format!("the address of {line:?}"))?);
        }
    }
    path.reached = path.hops.last().is_some_and(|hop| hop.from.contains(&dst));
    ensure!(!path.hops.is_empty(), "mtr told no hop: {text:?}");
    Ok(path)
}

/// Reads what `traceroute -n` told: `  3  198.18.3.2  0.1 ms  0.1 ms  0.1 ms`, and a star for each packet that nobody answered.
///
/// # Errors
/// When it is something else.
pub fn read_traceroute(dst: IpAddr, text: &str) -> Result<Path> {
    let mut path = Path { dst, reached: false, source_port: None, hops: Vec::new() };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        // The first line says what is asked.
        let Some(Ok(ttl)) = words.next().map(str::parse) else { continue };
        path.hop(ttl)?.from.extend(words.filter_map(|word| word.parse::<IpAddr>().ok()));
    }
    path.reached = path.hops.last().is_some_and(|hop| hop.from.contains(&dst));
    ensure!(!path.hops.is_empty(), "traceroute told no hop: {text:?}");
    Ok(path)
}

fn addr(value: &Value) -> Result<IpAddr> {
    value.as_str().and_then(|text| text.parse().ok()).with_context(|| format!("{value} is no address"))
}

fn number(value: &Value) -> Result<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok()).with_context(|| format!("{value} is no number"))
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().with_context(|| format!("{value} is no list"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn all_tell_the_same_path() {
        let ours = r#"{"type":"path","dst":"198.18.3.2","end":"reached","hops":[
            {"ttl":1,"sent":2,"replies":[{"from":"198.18.1.2"},{"from":"198.18.1.2"}]},{"ttl":2,"sent":1,"replies":[]},
            {"ttl":3,"sent":1,"replies":[{"from":"198.18.3.2"}]}]}"#;
        let ours = format!("{}\n{}\n", ours.replace('\n', ""), r#"{"type":"trace","complete":true,"paths":1}"#);
        let scamper = r#"{"type":"cycle-start"}
            {"type":"trace","dst":"198.18.3.2","sport":7,"stop_reason":"COMPLETED","hops":[{"addr":"198.18.1.2","probe_ttl":1},{"addr":"198.18.3.2","probe_ttl":3}]}
            {"type":"trace","dst":"198.18.9.9","stop_reason":"GAPLIMIT"}"#;
        let mtr = "HOST: x   Loss%   Snt\n  1.|-- 198.18.1.2   0.0%  1\n  2.|-- ???   100.0  1\n  3.|-- 198.18.3.2  0.0%  1\n";
        let traceroute = "traceroute to 198.18.3.2, 30 hops max\n 1  198.18.1.2  0.1 ms  0.1 ms\n 2  * *\n 3  198.18.3.2  0.1 ms *\n";
        let [ours] = read_probe(&ours).unwrap().try_into().unwrap();
        let [scamper, dead] = read_scamper(scamper).unwrap().try_into().unwrap();
        let mtr = read_mtr(addr("198.18.3.2"), mtr).unwrap();
        let traceroute = read_traceroute(addr("198.18.3.2"), traceroute).unwrap();
        let way: Vec<BTreeSet<IpAddr>> = vec![[addr("198.18.1.2")].into(), [].into(), [addr("198.18.3.2")].into()];
        for path in [&ours, &scamper, &mtr, &traceroute] {
            assert_eq!((path.dst, path.reached, path.way()), (addr("198.18.3.2"), true, way.clone()));
        }
        assert_eq!((ours.hops[0].sent, ours.hops[0].from.len(), scamper.source_port), (Some(2), 2, Some(7)));
        assert_eq!((dead.reached, dead.way()), (false, vec![]));
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        assert!(read_probe("").is_err() && read_probe("{\"type\":\"trace\",\"complete\":true,\"paths\":1}").is_err());
        assert!(read_probe("{\"type\":\"trace\",\"complete\":false,\"paths\":0}").is_err());
        assert!(read_scamper("{\"type\":\"tra").is_err());
        assert!(read_mtr(addr("198.18.3.2"), "mtr: no such host").is_err());
        assert!(read_traceroute(addr("198.18.3.2"), "traceroute to 198.18.3.2").is_err());
    }
}
