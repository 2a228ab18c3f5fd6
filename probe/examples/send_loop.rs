//! How fast and how cheap the packet loop sends: a SYN engine on an interface whose other end drops everything.
//!
//! `scripts/bench-send-loop` makes the lab and runs it beside masscan; by hand, in a namespace:
//! `send_loop INTERFACE SECONDS [RATE, such as 100kpps]`.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use picket_probe::net::afpacket::{AfPacket, LinkConfig};
use picket_probe::net::drive::{self, DriveEvent, TaskSpec, Weight};
use picket_probe::net::engine::{Engine, NotSent, Transmit};
use picket_probe::net::netlink;
use picket_probe::net::pacer::Limits;
use picket_probe::net::time::Instant;
use picket_probe::packet::checksum::{Checksum, checksum};

/// A SYN to each address of 198.19.0.0/16, over and over: a template, patched for each target as a real scan does it, with
/// a keyed sequence number by which its answer would be known.
struct Syn {
    template: [u8; 40],
    next: u32,
    retry: Vec<u32>,
}

impl Syn {
    fn new(src: Ipv4Addr) -> Self {
        let mut template = [0; 40];
        template[..12].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
        template[12..16].copy_from_slice(&src.octets());
        template[20..24].copy_from_slice(&[0xaf, 0xc8, 0, 80]);
        template[32..36].copy_from_slice(&[0x50, 2, 4, 0]);
        Self { template, next: 0, retry: Vec::new() }
    }
}

impl Engine for Syn {
    type Event = ();

    fn poll_transmit(&mut self, _: Instant, buf: &mut [u8]) -> Option<Transmit> {
        let n = self.retry.pop().unwrap_or(self.next);
        self.next = self.next.max(n.wrapping_add(1));
        let dst = Ipv4Addr::from(0xc613_0000 | n & 0xffff);
        let packet = buf.first_chunk_mut::<40>()?;
        *packet = self.template;
        packet[16..20].copy_from_slice(&dst.octets());
        let cookie = n.wrapping_mul(0x9e37_79b9).rotate_left(13) ^ u32::from(dst);
        packet[24..28].copy_from_slice(&cookie.to_be_bytes());
        let own = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&own.to_be_bytes());
        let mut sum = Checksum::new();
        sum.add(&packet[12..20]);
        sum.add_u16(6);
        sum.add_u16(20);
        sum.add(&packet[20..40]);
        packet[36..38].copy_from_slice(&sum.finish().to_be_bytes());
        Some(Transmit { dst: IpAddr::V4(dst), token: n.into(), len: 40 })
    }

    fn on_not_sent(&mut self, _: Instant, token: u64, why: NotSent) {
        assert_eq!(why, NotSent::NeighbourPending, "the lab has a gateway that answers");
        self.retry.push(token as u32);
    }

    fn on_packet(&mut self, _: Instant, _: &[u8]) {}

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }

    fn on_timeout(&mut self, _: Instant) {}

    fn poll_event(&mut self) -> Option<()> {
        None
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: send_loop INTERFACE SECONDS [RATE]";
    let interface = arguments.next().ok_or(usage)?;
    let seconds: f64 = arguments.next().ok_or(usage)?.parse()?;
    let limits = match arguments.next() {
        Some(rate) => Limits::packets(rate.parse()?),
        None => Limits::UNLIMITED,
    };
    let table = Arc::new(netlink::snapshot_blocking()?).table(&interface).ok_or("no such interface")?;
    let source = table.source().v4.ok_or("the interface has no IPv4 address")?;
    let link = AfPacket::open(table.interface(), &LinkConfig::for_ports(45_000, 45_000))?;
    let (sink, _events) = tokio::sync::mpsc::unbounded_channel::<DriveEvent<()>>();
    let (handle, thread) = drive::spawn(link, limits, Arc::new(table), sink)?;
    let engine = Box::new(Syn::new(source));
    handle.add(TaskSpec { name: "syn".into(), engine, weight: Weight::Bulk, rate: Limits::UNLIMITED, gate: Arc::new(|_| true) })?;
    std::thread::park_timeout(Duration::from_millis(200));
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

/// Processor time of this process so far, user and system.
fn cpu_seconds() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("the kernel counts for everybody");
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}
