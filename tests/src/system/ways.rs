//! Graphs of a lab's ways, as `picket-probe trace --multipath` tells them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::programs::Programs;
use crate::lab::ways::Ways;

const CONFIG: &str = "[interface]\npackets = \"10kpps\"\nbits = \"100Mbit\"\n[policy]\nallow = [\"198.18.0.0/15\"]\n";
/// A run longer than this is broken.
const LONG: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Debug)]
pub struct Graph {
    /// Links, each with the distance of its nearer end.
    pub links: BTreeSet<(u8, IpAddr, IpAddr)>,
    /// Different addresses.
    pub nodes: usize,
    /// How it ended.
    pub end: String,
    /// Packets that were sent.
    pub packets: u64,
}

/// Runs a trace with further arguments.
///
/// # Errors
/// When it fails, or tells what is no graph.
pub fn graph(lab: &Ways, args: &[&str]) -> Result<Graph> {
    let config = lab.probe.lab().write("ways.toml", CONFIG)?;
    let destination = Ways::destination().to_string();
    let run =
        Programs::locate()?.probe(&["trace", &destination, "-i", Ways::DEVICE, "-o", "ndjson"])?.args(args).arg("--config").arg(&config);
    let text = lab.probe.run(&run, LONG)?.ok()?;
    let object: Value = serde_json::from_str(text.lines().next().context("nothing was told")?)?;
    ensure!(object["type"] == "graph", "this is no graph: {object}");
    let addr =
        |value: &Value| value.as_str().and_then(|text| text.parse::<IpAddr>().ok()).with_context(|| format!("{value} is no address"));
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut links = BTreeSet::new();
    for link in list(&object["links"]) {
        let ttl = link["ttl"].as_u64().and_then(|ttl| u8::try_from(ttl).ok()).context("a link without a distance")?;
        links.insert((ttl, addr(&link["from"])?, addr(&link["to"])?));
    }
    let mut nodes = BTreeSet::new();
    for node in list(&object["hops"]).iter().flat_map(|hop| list(&hop["nodes"])) {
        nodes.insert(addr(&node["addr"])?);
    }
    let end = object["end"].as_str().context("no end")?.to_owned();
    Ok(Graph { links, nodes: nodes.len(), end, packets: object["packets"].as_u64().context("no packets")? })
}
