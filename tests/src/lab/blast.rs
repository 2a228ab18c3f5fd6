//! A sender of frames at rates that no UDP socket reaches: what a capture has to keep up with.
//!
//! Frames leave by the probe's own links, AF_XDP where the kernel has it, and are UDP datagrams of many flows, each with its number in the payload.
//!
//! Invariants: a blast is bounded in number, and never faster over its whole length than it says.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use picket_probe::net::afpacket::{AfPacket, LinkConfig};
use picket_probe::net::afxdp::AfXdp;
use picket_probe::net::clock;
use picket_probe::net::link::{BATCH, Batch, FRAME_LEN, Link, Stop};
use picket_probe::net::netlink;

use super::Namespace;

/// Ethernet, IPv4 and UDP, and a number of eight bytes.
const HEADERS: usize = 14 + 20 + 8;
const LEAST: usize = HEADERS + 8;
/// The source port of the first flow, and every flow's destination port.
const FIRST_PORT: u16 = 1_024;
/// Where all datagrams go to.
const PORT: u16 = 9;
const FROM: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const TO: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// A device that takes nothing for so long is broken.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Blast {
    /// Bytes in each frame from its Ethernet header on, without the checksum; 50 to 1514.
    pub frame: usize,
    /// Frames per second.
    pub rate: u32,
    /// How many.
    pub count: u64,
    /// How many source ports take turns, at most 60,000.
    pub flows: u16,
    /// The hardware address of the other end.
    pub to: [u8; 6],
    /// The processor that sends, and that works on what is received where receiving follows sending, as between veth devices.
    pub processor: usize,
}

/// What became of it.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Frames that the device took.
    pub count: u64,
    /// From the first to the last one.
    pub time: Duration,
}

impl Sent {
    /// Frames per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.time.as_secs_f64()
    }
}

impl Blast {
    /// Sends it all by a device of a namespace, and returns when the device has taken the last one. A device that cannot be that fast
    /// takes longer.
    ///
    /// # Errors
    /// When the device cannot be used or refuses a frame.
    pub fn send(&self, from: &Namespace, device: &str) -> Result<Sent> {
        ensure!((LEAST..=1_514).contains(&self.frame), "frames of {} bytes: from {LEAST} to 1514", self.frame);
        ensure!((1..=60_000).contains(&self.flows), "{} flows: from 1 to 60000", self.flows);
        from.enter(|| self.send_here(device))?
    }

    fn send_here(&self, device: &str) -> Result<Sent> {
        let mut only = CpuSet::new();
        only.set(self.processor)?;
        sched_setaffinity(Pid::from_raw(0), &only).with_context(|| format!("stay on processor {}", self.processor))?;
        let snapshot = netlink::snapshot_blocking()?;
        let interface = snapshot.interface(device).with_context(|| format!("no device {device}"))?;
        let config = LinkConfig::for_ports(1, 1);
        match AfXdp::open(interface, &config) {
            Ok(mut link) => self.send_by(&mut link),
            Err(_) => self.send_by(&mut AfPacket::open(interface, &config)?),
        }
    }

    fn send_by(&self, link: &mut impl Link) -> Result<Sent> {
        let template = self.template();
        let (mut batch, mut sent, mut next, begun) = (Batch::default(), 0, 0, Instant::now());
        let mut taken_at = begun;
        while sent < self.count {
            let due = self.due(begun.elapsed());
            while next < due && !batch.is_full() {
                self.write(&template, next, batch.slot());
                batch.push(self.frame);
                next += 1;
            }
            // A full batch that has left in part is filled again when all of it has.
            if batch.is_empty() {
                std::hint::spin_loop();
                continue;
            }
            let outcome = link.send(clock::now(), &batch, batch.len().min(BATCH));
            batch.advance(outcome.count);
            sent += outcome.count as u64;
            match outcome.stop {
                Some(Stop::Full) | None => {}
                Some(other) => bail!("the device refused frame {sent}: {other:?}"),
            }
            if outcome.count > 0 {
                taken_at = Instant::now();
            }
            ensure!(taken_at.elapsed() < PATIENCE, "the device takes no frames any more, after {sent}");
        }
        Ok(Sent { count: sent, time: taken_at - begun })
    }

    /// How many should have left after so long.
    fn due(&self, after: Duration) -> u64 {
        let due = after.as_nanos() * u128::from(self.rate) / 1_000_000_000;
        u64::try_from(due).unwrap_or(u64::MAX).min(self.count)
    }

    /// A frame without its port and number. No UDP checksum, as IPv4 permits (RFC 768).
    fn template(&self) -> Vec<u8> {
        let (ip_len, udp_len) = (self.frame - 14, self.frame - 34);
        let mut frame = vec![0; self.frame];
        frame[..6].copy_from_slice(&self.to);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..16].copy_from_slice(&[0x45, 0]);
        frame[16..18].copy_from_slice(&(ip_len as u16).to_be_bytes());
        frame[22..24].copy_from_slice(&[64, 17]);
        frame[26..30].copy_from_slice(&FROM.octets());
        frame[30..34].copy_from_slice(&TO.octets());
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame[36..38].copy_from_slice(&PORT.to_be_bytes());
        frame[38..40].copy_from_slice(&(udp_len as u16).to_be_bytes());
        frame
    }

    fn write(&self, template: &[u8], number: u64, slot: &mut [u8]) {
        const { assert!(FRAME_LEN >= 1_514) };
        slot[..self.frame].copy_from_slice(template);
        let port = FIRST_PORT + (number % u64::from(self.flows)) as u16;
        slot[34..36].copy_from_slice(&port.to_be_bytes());
        slot[HEADERS..LEAST].copy_from_slice(&number.to_be_bytes());
    }
}

/// The Internet checksum (RFC 1071) of a header whose checksum is zero.
fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_datagrams_with_their_number() {
        let blast = Blast { frame: 60, rate: 620_000, count: 10, flows: 3, to: [6; 6], processor: 0 };
        let mut slot = [0xff; FRAME_LEN];
        blast.write(&blast.template(), 7, &mut slot);
        let packet = picket_packet::ip::Packet::parse(&slot[14..60]).unwrap();
        assert_eq!((packet.src(), packet.dst(), packet.protocol()), (FROM.into(), TO.into(), 17));
        assert_eq!(packet.payload()[..8], [4, 1, 0, 9, 0, 26, 0, 0], "source port of the second of three flows, destination, length");
        assert_eq!(packet.payload()[8..16], 7_u64.to_be_bytes());
        // A header with its checksum sums up to nothing.
        assert_eq!(checksum(&slot[14..34]), 0);
    }

    #[test]
    fn a_blast_is_as_many_as_its_rate_says() {
        let blast = Blast { frame: 60, rate: 1_000, count: 1_500, flows: 1, to: [0; 6], processor: 0 };
        assert_eq!([0, 999, 1_000, 2_500_000, 9_000_000].map(|micros| blast.due(Duration::from_micros(micros))), [0, 0, 1, 1_500, 1_500]);
    }
}
