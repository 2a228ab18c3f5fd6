//! What a person waits for who asks one host while a bulk scan runs: an echo request and its reply, one at a time, alone and
//! beside a SYN scan of 100,000 packets per second in the same loop.
//!
//! `scripts/bench-interactive` makes the lab; by hand, in a namespace: `interactive INTERFACE HOST ROUNDS packet|xdp`. The bulk
//! scan goes to 198.18.0.0/16.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use picket_probe::net::afpacket::{AfPacket, LinkConfig};
use picket_probe::net::afxdp::AfXdp;
use picket_probe::net::clock;
use picket_probe::net::drive::{self, DriveEvent, DriveHandle, EventSink, TaskId, TaskSpec, Weight};
use picket_probe::net::engine::Source;
use picket_probe::net::netlink;
use picket_probe::net::pacer::Limits;
use picket_probe::scan::engine::ScanEngine;
use picket_probe::scan::report::Event;
use picket_probe::scan::spec::{RawIdentity, ScanPlan, SourcePorts};
use picket_wire::addr::{AddrSet, parse_set};
use picket_wire::job::{ScanOptions, Technique};
use picket_wire::space::{TargetSpace, TargetSpec};

type Failure = Box<dyn std::error::Error>;

/// Tells who has ended.
struct Ends(Sender<TaskId>);

impl EventSink<Event> for Ends {
    fn offer(&mut self, event: DriveEvent<Event>) -> Result<(), DriveEvent<Event>> {
        if let DriveEvent::Task(id, Event::Done(_)) = event {
            // Nobody listens any more: the program is ending.
            let _ = self.0.send(id);
        }
        Ok(())
    }
}

struct Bench {
    handle: DriveHandle<Event>,
    ends: Receiver<TaskId>,
    source: Source,
    started: u64,
}

impl Bench {
    fn add(&mut self, targets: &str, ports: Option<&str>, technique: Technique, weight: Weight) -> Result<TaskId, Failure> {
        let ports = ports.map(str::parse).transpose()?;
        let spec = TargetSpec { include: parse_set(targets)?, exclude: AddrSet::default(), ports, seed: 7 };
        let space = Arc::new(TargetSpace::new(&spec)?);
        let plan = ScanPlan::new(space.clone(), 0, space.len(), ScanOptions { technique, attempts: 1 })?;
        let ports = SourcePorts::default();
        self.started += 1;
        let identity = RawIdentity { source: self.source, base_port: ports.base(self.started), ports, key: *b"sixteen random b" };
        let (engine, gate) = (Box::new(ScanEngine::new(&plan, identity)?), Arc::new(|_: IpAddr| true));
        let spec = TaskSpec { name: targets.to_owned(), engine, weight, rate: Limits::UNLIMITED, targets: None, gate };
        Ok(self.handle.add(spec)?.id)
    }

    /// Milliseconds from the order to the answer, sorted.
    fn rounds(&mut self, host: &str, count: usize) -> Result<Vec<f64>, Failure> {
        let mut times = Vec::new();
        for _ in 0..count {
            let began = clock::now();
            let id = self.add(host, None, Technique::Echo, Weight::Interactive)?;
            while self.ends.recv_timeout(Duration::from_secs(10))? != id {}
            times.push(clock::now().saturating_since(began).as_secs_f64() * 1e3);
            self.handle.cancel(id)?;
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [interface, host, rounds, by] = &arguments[..] else {
        return Err("usage: interactive INTERFACE HOST ROUNDS packet|xdp".into());
    };
    let routes = Arc::new(Arc::new(netlink::snapshot_blocking()?).table(interface).ok_or("no such interface")?);
    let ports = SourcePorts::default();
    let config = LinkConfig::for_ports(ports.first(), ports.last());
    let limits = Limits::packets("100kpps".parse()?);
    let (source, (sink, ends)) = (routes.source(), channel());
    let (handle, thread) = match by.as_str() {
        "packet" => drive::spawn(AfPacket::open(routes.interface(), &config)?, limits, routes, Ends(sink))?,
        _ => drive::spawn(AfXdp::open(routes.interface(), &config)?, limits, routes, Ends(sink))?,
    };
    let mut bench = Bench { handle, ends, source, started: 0 };
    let rounds = rounds.parse()?;
    // The first one asks for the neighbour too.
    bench.rounds(host, 1)?;
    let alone = bench.rounds(host, rounds)?;
    let bulk = bench.add("198.18.0.0/16", Some("1-1000"), Technique::Syn, Weight::Bulk)?;
    std::thread::park_timeout(Duration::from_millis(500));
    let (before, began) = (bench.handle.stats().sent_packets, clock::now());
    let beside = bench.rounds(host, rounds)?;
    std::thread::park_timeout(Duration::from_millis(500));
    let rate = (bench.handle.stats().sent_packets - before) as f64 / clock::now().saturating_since(began).as_secs_f64();
    bench.handle.cancel(bulk)?;
    bench.handle.stop();
    thread.join().map_err(|_| "the loop panicked")?;
    let at = |times: &[f64], part: usize| times.get((times.len() - 1) * part / 100).copied().unwrap_or(f64::NAN);
    println!(
        "{by}: alone median {:.2} ms, 99 % {:.2} ms; beside {:.0} kpps median {:.2} ms, 99 % {:.2} ms: {:+.2} ms in the median",
        at(&alone, 50),
        at(&alone, 99),
        rate / 1e3,
        at(&beside, 50),
        at(&beside, 99),
        at(&beside, 50) - at(&alone, 50),
    );
    Ok(())
}
