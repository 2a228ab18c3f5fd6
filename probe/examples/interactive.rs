//! What a person waits for who traces the way to one host while a bulk scan runs: one path at a time, alone and beside a SYN scan of
//! 100,000 packets per second in the same loop, hop by hop.
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
use picket_probe::net::drive::{self, BoxEngine, DriveEvent, DriveHandle, EventSink, TaskId, TaskSpec, Weight};
use picket_probe::net::engine::{Mapped, Source};
use picket_probe::net::netlink;
use picket_probe::net::pacer::Limits;
use picket_probe::net::ports::{RawIdentity, SourcePorts};
use picket_probe::scan::engine::ScanEngine;
use picket_probe::scan::spec::ScanPlan;
use picket_probe::trace::engine::trace;
use picket_probe::trace::report::Event;
use picket_probe::trace::spec::TracePlan;
use picket_wire::addr::{AddrSet, parse_set};
use picket_wire::job::{ScanOptions, Technique};
use picket_wire::space::{TargetSpace, TargetSpec};
use picket_wire::trace::{Method, Path, PathEnd};

type Failure = Box<dyn std::error::Error>;

/// Between two paths, so that they fall anywhere into the scan.
const PAUSE: Duration = Duration::from_millis(10);

/// Tells which paths are over.
struct Paths(Sender<(TaskId, Path)>);

impl EventSink<Event> for Paths {
    fn offer(&mut self, event: DriveEvent<Event>) -> Result<(), DriveEvent<Event>> {
        if let DriveEvent::Task(id, Event::Path { path, .. }) = event {
            // Nobody listens any more: the program is ending.
            let _ = self.0.send((id, *path));
        }
        Ok(())
    }
}

/// Milliseconds, sorted: of whole paths, from the order to the end, and of all hops.
struct Times {
    paths: Vec<f64>,
    hops: Vec<f64>,
}

impl Times {
    fn sort(mut self) -> Self {
        self.paths.sort_by(f64::total_cmp);
        self.hops.sort_by(f64::total_cmp);
        self
    }
}

struct Bench {
    handle: DriveHandle<Event>,
    paths: Receiver<(TaskId, Path)>,
    source: Source,
    started: u64,
}

fn space(targets: &str, ports: Option<&str>) -> Result<Arc<TargetSpace>, Failure> {
    let ports = ports.map(str::parse).transpose()?;
    let spec = TargetSpec { include: parse_set(targets)?, exclude: AddrSet::default(), ports, seed: 7 };
    Ok(Arc::new(TargetSpace::new(&spec)?))
}

impl Bench {
    fn identity(&mut self) -> RawIdentity {
        let ports = SourcePorts::default();
        self.started += 1;
        RawIdentity { source: self.source, base_port: ports.base(self.started), ports, key: *b"sixteen random b" }
    }

    fn add(&self, name: &str, engine: BoxEngine<Event>, weight: Weight) -> Result<TaskId, Failure> {
        let gate = Arc::new(|_: IpAddr| true);
        let spec = TaskSpec { name: name.to_owned(), engine, weight, rate: Limits::UNLIMITED, targets: None, gate };
        Ok(self.handle.add(spec)?.id)
    }

    fn scan(&mut self) -> Result<TaskId, Failure> {
        let space = space("198.18.0.0/16", Some("1-1000"))?;
        let options = ScanOptions { technique: Technique::Syn, attempts: 1 };
        let plan = ScanPlan::new(Arc::clone(&space), 0, space.len(), options)?;
        let engine = ScanEngine::new(&plan, self.identity())?;
        // Of the scan nothing is wanted but that it runs.
        self.add("scan", Box::new(Mapped::new(engine, |_| None)), Weight::Bulk)
    }

    fn traces(&mut self, host: &str, count: usize) -> Result<Times, Failure> {
        let mut times = Times { paths: Vec::new(), hops: Vec::new() };
        let space = space(host, None)?;
        for _ in 0..count {
            std::thread::park_timeout(PAUSE);
            let plan = TracePlan { queries: 1, ..TracePlan::new(Arc::clone(&space), 0, 1, Method::Icmp)? };
            let engine = trace(plan, self.identity())?;
            let began = clock::now();
            let id = self.add("trace", engine, Weight::Interactive)?;
            let (_, path) = self.paths.recv_timeout(Duration::from_secs(10))?;
            times.paths.push(clock::now().saturating_since(began).as_secs_f64() * 1e3);
            self.handle.cancel(id)?;
            if path.end != PathEnd::Reached || path.hops.iter().any(|hop| hop.replies.is_empty()) {
                return Err(format!("not the whole path: {path:?}").into());
            }
            times.hops.extend(path.hops.iter().flat_map(|hop| &hop.replies).map(|reply| f64::from(reply.rtt_us) / 1e3));
        }
        Ok(times.sort())
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
    let (source, (sink, paths)) = (routes.source(), channel());
    let (handle, thread) = match by.as_str() {
        "packet" => drive::spawn(AfPacket::open(routes.interface(), &config)?, limits, routes, Paths(sink))?,
        _ => drive::spawn(AfXdp::open(routes.interface(), &config)?, limits, routes, Paths(sink))?,
    };
    let mut bench = Bench { handle, paths, source, started: 0 };
    let rounds = rounds.parse()?;
    // The first one asks for the neighbour too.
    bench.traces(host, 1)?;
    let alone = bench.traces(host, rounds)?;
    let bulk = bench.scan()?;
    std::thread::park_timeout(Duration::from_millis(500));
    let (before, began) = (bench.handle.stats().sent_packets, clock::now());
    let beside = bench.traces(host, rounds)?;
    let rate = (bench.handle.stats().sent_packets - before) as f64 / clock::now().saturating_since(began).as_secs_f64();
    bench.handle.cancel(bulk)?;
    bench.handle.stop();
    thread.join().map_err(|_| "the loop panicked")?;
    let at = |times: &[f64], part: usize| times.get((times.len() - 1) * part / 100).copied().unwrap_or(f64::NAN);
    println!(
        "{by}: {} paths of {} hops each, alone and beside a scan, {:.0} kpps together",
        alone.paths.len(),
        alone.hops.len() / alone.paths.len(),
        rate / 1e3
    );
    for (what, alone, beside) in [("a hop", &alone.hops, &beside.hops), ("a path", &alone.paths, &beside.paths)] {
        println!(
            "{by}: {what}: alone median {:.2} ms, 99 % {:.2} ms; beside median {:.2} ms, 99 % {:.2} ms: {:+.2} ms in the median, {:+.2} ms at 99 % (bar 10 ms a hop)",
            at(alone, 50),
            at(alone, 99),
            at(beside, 50),
            at(beside, 99),
            at(beside, 50) - at(alone, 50),
            at(beside, 99) - at(alone, 99),
        );
    }
    Ok(())
}
