//! All ways through routers that spread load, beside scamper's tracelb, in one lab.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use picket_tests::lab::Run;
use picket_tests::lab::ways::Ways;
use picket_tests::system::ways;

/// scamper asks one distance after the other, and waits for each.
const LONG: Duration = Duration::from_secs(300);
const ROUNDS: usize = 100;
/// Of scamper's time, what Picket may take.
const BAR: f64 = 0.1;

/// The section.
pub(crate) fn run() -> Result<()> {
    let lab = Ways::new("benchways")?;
    let expected = lab.links();
    let (mut seconds, mut packets, mut complete) = (Vec::new(), Vec::new(), 0);
    let sent = || Ok::<_, anyhow::Error>(lab.probe.counters(Ways::DEVICE)?.sent_packets);
    for round in 0..ROUNDS {
        // Each run has flows of its own, as two probes would.
        let flow = (round * 37).to_string();
        let begun = Instant::now();
        let graph = ways::graph(&lab, &["--method", "udp", "--multipath", "--confidence", "99", "--flow", &flow])?;
        seconds.push(begun.elapsed().as_secs_f64());
        packets.push(graph.packets);
        complete += usize::from(graph.links == *expected && graph.nodes == lab.routers() + 1);
    }
    let destination = Ways::destination().to_string();
    let scamper = Run::new("scamper").args(["-O", "text", "-I", &format!("tracelb -P udp-sport -c 99 {destination}")]);
    let (begun, before) = (Instant::now(), sent()?);
    let text = lab.probe.run(&scamper, LONG)?.ok()?;
    let theirs = begun.elapsed().as_secs_f64();
    let frames = sent()? - before;
    let told = text.lines().find(|line| line.starts_with("tracelb")).context("scamper told no graph")?;
    packets.sort_unstable();
    let (median, most) = (packets.get(ROUNDS / 2).copied().unwrap_or_default(), packets.last().copied().unwrap_or_default());
    let ours = crate::median(seconds);
    println!(
        "ways      4 x 2 ways, 99 %: picket-probe {ours:.3} s, start included, {median} packets (most {most}), all {} routers and {} links in {complete} of {ROUNDS} runs",
        lab.routers(),
        expected.len()
    );
    println!("ways      4 x 2 ways, 99 %: scamper {theirs:.1} s and {frames} frames, once: {told}");
    println!("ways      4 x 2 ways, 99 %: picket-probe takes {:.4} x scamper's time (bar {BAR})", ours / theirs);
    Ok(())
}
