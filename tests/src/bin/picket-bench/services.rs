//! Service detection beside `nmap -sV`, on real services in one lab, in turn.
//!
//! Both are started anew for each run, and their time is from start to exit: looking for open ports is part of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use picket_tests::lab::Run;
use picket_tests::lab::programs::Programs;
use picket_tests::lab::services::{self, Daemon, Services};
use picket_tests::system::services::Pair;
use serde_json::Value;

/// A run longer than this is broken.
const LONG: Duration = Duration::from_secs(600);
const ROUNDS: usize = 3;
/// Of nmap's time, what Picket may take.
const BAR: f64 = 0.2;
const CONFIG: &str = "[interface]\npackets = \"5kpps\"\nbits = \"100Mbit\"\n[policy]\nallow = [\"198.18.0.0/15\"]\n";

/// Identified ports.
type Found = BTreeSet<(IpAddr, u16)>;

/// Four services on fourteen hosts.
fn many_hosts() -> Result<()> {
    let pair = Pair::new("svchosts")?;
    let daemons = [Daemon::Vsftpd, Daemon::Openssh, Daemon::Nginx, Daemon::Redis];
    // One process each, which serves at every address of the namespace.
    let _services = Services::start(&pair.servers, "0.0.0.0".parse()?, &daemons)?;
    compare(&pair, "4 services on 14 hosts", "198.18.1.1-14", &[21, 22, 80, 6379])
}

/// Thirteen services and twelve silent listeners on one host.
fn silent_ports() -> Result<()> {
    let pair = Pair::new("svcsilent")?;
    let daemons: Vec<Daemon> =
        Daemon::ALL.into_iter().filter(|daemon| !matches!(daemon, Daemon::Bind | Daemon::Dnsmasq | Daemon::Snmpd)).collect();
    let _services = Services::start(&pair.servers, Pair::host(1), &daemons)?;
    let silent = 7001..=7012;
    let _silent = services::silent(&pair.servers, silent.clone())?;
    let ports: Vec<u16> = [21, 22, 25, 80, 110, 143, 389, 443, 445, 993, 1883, 3306, 5432].into_iter().chain(silent).collect();
    compare(&pair, "25 ports, 12 of them silent", "198.18.1.1", &ports)
}

/// The section.
pub(crate) fn run() -> Result<()> {
    if let Some(lacks) = services::missing() {
        anyhow::bail!("missing {lacks}");
    }
    many_hosts()?;
    silent_ports()
}

fn compare(pair: &Pair, what: &str, targets: &str, ports: &[u16]) -> Result<()> {
    let ports = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let lab = pair.probe.lab();
    let config = lab.write("bench-probe.toml", CONFIG)?;
    let xml: PathBuf = lab.dir().join("nmap.xml");
    let probe = Programs::locate()?
        .probe(&["services", targets, "-p", &ports, "--no-discovery", "--interface", Pair::DEVICE, "-o", "ndjson", "--config"])?
        .arg(&config);
    let nmap = Run::new("nmap").args(["-sV", "-n", "-Pn", "-p", &ports, "-oX"]).arg(&xml).args([targets]);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (mut found, mut peer) = (Found::new(), Found::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let text = pair.probe.run(&probe, LONG)?.ok()?;
        ours.push(begun.elapsed().as_secs_f64());
        found = read_ours(&text)?;
        let begun = Instant::now();
        pair.probe.run(&nmap, LONG)?.ok()?;
        theirs.push(begun.elapsed().as_secs_f64());
        peer = read_nmap(&std::fs::read_to_string(&xml).with_context(|| format!("read {}", xml.display()))?);
    }
    let (ours, theirs) = (crate::median(ours), crate::median(theirs));
    println!(
        "services  {what}: picket-probe {ours:.2} s, {} identified; nmap -sV {theirs:.2} s, {} identified; ratio {:.3} (bar {BAR}), medians of {ROUNDS}",
        found.len(),
        peer.len(),
        ours / theirs
    );
    for missed in peer.difference(&found) {
        println!("services  {what}: nmap identified {} port {}, Picket did not", missed.0, missed.1);
    }
    Ok(())
}

fn read_ours(text: &str) -> Result<Found> {
    let mut found = Found::new();
    for line in text.lines() {
        let object: Value = serde_json::from_str(line).with_context(|| format!("read {line:?}"))?;
        if object["type"] == "service" && object["outcome"] == "identified" {
            let addr = object["addr"].as_str().and_then(|text| text.parse().ok()).context("a service without an address")?;
            let port = object["port"].as_u64().and_then(|port| u16::try_from(port).ok()).context("a service without a port")?;
            ensure!(found.insert((addr, port)), "{addr} port {port} is told twice");
        }
    }
    Ok(found)
}

/// Ports whose service nmap has probed, not guessed by the port's number.
fn read_nmap(xml: &str) -> Found {
    let value = |text: &str, name: &str| {
        let rest = text.split_once(&format!("{name}=\""))?.1;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let mut found = Found::new();
    for host in xml.split("<host ").skip(1) {
        let Some(addr) = value(host, "addr").and_then(|addr| addr.parse().ok()) else { continue };
        for port in host.split("<port ").skip(1) {
            let one = port.split("</port>").next().unwrap_or_default();
            if one.contains("method=\"probed\"")
                && let Some(number) = value(one, "portid").and_then(|number| number.parse().ok())
            {
                found.insert((addr, number));
            }
        }
    }
    found
}
