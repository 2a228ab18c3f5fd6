//! How fast and how cheap a scan sends: the real SYN engine, policy, pacer and loop on an interface whose other end drops
//! everything.
//!
//! `scripts/bench-send-loop` makes the lab and runs it beside masscan and zmap; by hand, in a namespace:
//! `send_loop INTERFACE SECONDS packet|xdp [RATE, such as 100kpps]`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use picket_probe::net::afpacket::{AfPacket, LinkConfig};
use picket_probe::net::afxdp::AfXdp;
use picket_probe::net::drive::{self, DriveEvent, EventSink, TaskSpec, Weight};
use picket_probe::net::netlink;
use picket_probe::net::pacer::Limits;
use picket_probe::net::ports::{RawIdentity, SourcePorts};
use picket_probe::scan::engine::ScanEngine;
use picket_probe::scan::report::Event;
use picket_probe::scan::spec::ScanPlan;
use picket_wire::addr::{AddrSet, parse_set};
use picket_wire::job::{ScanOptions, Technique};
use picket_wire::policy::{AddressPolicy, Permit};
use picket_wire::space::{TargetSpace, TargetSpec};

/// 65 million probes: more than are sent.
const TARGETS: &str = "198.19.0.0/16";
const PORTS: &str = "1-1000";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: send_loop INTERFACE SECONDS packet|xdp [RATE]";
    let interface = arguments.next().ok_or(usage)?;
    let seconds: f64 = arguments.next().ok_or(usage)?.parse()?;
    let by = arguments.next().ok_or(usage)?;
    let limits = match arguments.next() {
        Some(rate) => Limits::packets(rate.parse()?),
        None => Limits::UNLIMITED,
    };
    let table = Arc::new(netlink::snapshot_blocking()?).table(&interface).ok_or("no such interface")?;
    let ports = SourcePorts::default();
    let config = LinkConfig::for_ports(ports.first(), ports.last());
    let identity = RawIdentity { source: table.source(), base_port: ports.base(0), ports, key: *b"sixteen random b" };
    let routes = Arc::new(table);
    let (handle, thread) = match by.as_str() {
        "packet" => drive::spawn(AfPacket::open(routes.interface(), &config)?, limits, routes, Nowhere)?,
        "xdp" => drive::spawn(AfXdp::open(routes.interface(), &config)?, limits, routes, Nowhere)?,
        _ => return Err(usage.into()),
    };
    let include = parse_set(TARGETS)?;
    let policy = AddressPolicy { allow: vec!["198.18.0.0/15".parse()?], deny: Vec::new() };
    let permit = Permit::all_of([&policy]);
    let spec = TargetSpec { include, exclude: AddrSet::default(), ports: Some(PORTS.parse()?), seed: 7 };
    let space = Arc::new(TargetSpace::new(&spec)?);
    let plan = ScanPlan::new(space.clone(), 0, space.len(), ScanOptions { technique: Technique::Syn, attempts: 1 })?;
    handle.add(TaskSpec {
        name: "syn".into(),
        engine: Box::new(ScanEngine::new(&plan, identity)?),
        weight: Weight::Bulk,
        rate: Limits::UNLIMITED,
        targets: None,
        gate: Arc::new(move |addr: IpAddr| permit.permits(addr)),
    })?;
    std::thread::park_timeout(Duration::from_millis(1_200));
    let (from, cpu) = (handle.stats(), cpu_seconds());
    std::thread::park_timeout(Duration::from_secs_f64(seconds));
    let (to, cpu) = (handle.stats(), cpu_seconds() - cpu);
    handle.stop();
    thread.join().map_err(|_| "the loop panicked")?;
    let packets = (to.sent_packets - from.sent_packets) as f64;
    println!(
        "{:.1} kpps, {:.3} processor seconds per million packets, {:.1} % of a core; full {} late {} (latest {:?})",
        packets / seconds / 1e3,
        cpu / packets * 1e6,
        cpu / seconds * 100.0,
        to.send_full - from.send_full,
        to.late_wakeups - from.late_wakeups,
        to.latest_wakeup,
    );
    Ok(())
}

/// Reports go nowhere, at once: who reads them is not measured.
struct Nowhere;

impl EventSink<Event> for Nowhere {
    fn offer(&mut self, event: DriveEvent<Event>) -> Result<(), DriveEvent<Event>> {
        drop(event);
        Ok(())
    }
}

/// Processor time of this process so far, user and system.
fn cpu_seconds() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("the kernel counts for everybody");
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}
