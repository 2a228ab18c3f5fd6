//! Rates and contents of traffic as seen from outside the sender: a capture in another namespace, and its analysis.
//!
//! The capture is made by tcpdump and read here from its file; nothing of Picket's own packet code takes part.
//!
//! Invariant: a [`Capture`] is complete: [`Watch::stop`] fails when the kernel dropped a single frame of it; only
//! [`Watch::stop_counting`] gives one with holes, and says how many frames are lost in them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::{Namespace, Proc, Run};

/// How much of each frame is kept: all headers that are looked at.
const SNAP: usize = 160;
/// Capture ring in KiB.
const RING: u32 = 32 * 1024;
/// How long tcpdump may take to start, to drain its ring and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which frames of a device are captured. Told apart by the device's hardware address, so for a device that sends only frames of
/// its own: not for a port of a bridge, which passes on what others sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Those that the device receives: what the other end of the link sends.
    In,
    /// Those that the device itself sends.
    Out,
    /// Both.
    Both,
}

/// A running capture.
#[derive(Debug)]
pub struct Watch {
    proc: Proc,
    file: PathBuf,
    /// Frames that were counted as received and will never be captured: they came while the filter was put in place.
    strays: u64,
}

impl Watch {
    /// Starts a capture of a device; once this returns, every frame is seen. `filter` is a pcap filter expression.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn start(namespace: &Namespace, device: &str, direction: Direction, filter: Option<&str>) -> Result<Self> {
        let file = namespace.lab().next_file(&format!("{}-{device}.pcap", namespace.short()));
        // By the device's own hardware address, and not by tcpdump's option or the filter word `inbound`: the former is applied after
        // the counters that `stop` goes by, the latter loses the first frame (libpcap cannot apply it outside the kernel).
        let own = namespace.hardware_address(device)?.map(|byte| format!("{byte:02x}")).join(":");
        let direction = match direction {
            Direction::In => format!("not ether src {own}"),
            Direction::Out => format!("ether src {own}"),
            Direction::Both => String::new(),
        };
        let filter = match (direction.as_str(), filter.unwrap_or_default()) {
            (only, "") | ("", only) => only.to_owned(),
            (direction, filter) => format!("({direction}) and ({filter})"),
        };
        // Immediate mode: a frame is in the ring, and counted, when it passes, not when a block of them is full.
        let mut run = Run::new("tcpdump").args(["-n", "-p", "-Z", "root", "--immediate-mode", "--time-stamp-precision=nano"]);
        run = run.args(["-i", device, "-s", &SNAP.to_string(), "-B", &RING.to_string(), "-w"]).arg(&file);
        if !filter.is_empty() {
            run = run.arg(filter);
        }
        let mut proc = namespace.spawn(&run.label(format!("watch-{device}")))?;
        proc.wait_for_line("listening on", PATIENCE)?;
        let mut this = Self { proc, file, strays: u64::MAX };
        // A frame on its way through the ring makes the difference for a moment only, a stray for ever.
        for _ in 0..5 {
            let now = this.counts()?;
            this.strays = this.strays.min(now.received.saturating_sub(now.captured + now.dropped));
            if this.strays == 0 {
                break;
            }
        }
        Ok(this)
    }

    /// How many frames have been captured so far.
    ///
    /// # Errors
    /// When tcpdump has ended.
    pub fn seen(&mut self) -> Result<u64> {
        Ok(self.counts()?.captured)
    }

    /// Ends the capture once every frame that passed before this call is written, and reads it.
    ///
    /// # Errors
    /// When frames were dropped, or tcpdump failed.
    pub fn stop(self) -> Result<Capture> {
        let (capture, lost) = self.stop_counting()?;
        ensure!(lost == 0, "the capture lost {lost} frames and has {}", capture.len());
        Ok(capture)
    }

    /// The same, and how many frames passed that the kernel had no room to capture.
    ///
    /// # Errors
    /// When tcpdump failed.
    pub fn stop_counting(mut self) -> Result<(Capture, u64)> {
        // On SIGINT tcpdump forgets what is still in its ring, so it is asked for its counters until nothing is. The frames that
        // passed before the first question are in its first answer; later ones may go on passing.
        let passed = self.counts()?;
        let start = Instant::now();
        let mut now = passed;
        while now.captured + now.dropped + self.strays < passed.received {
            ensure!(start.elapsed() < PATIENCE, "tcpdump does not drain its ring: {now:?}");
            std::thread::sleep(Duration::from_millis(5));
            now = self.counts()?;
        }
        self.proc.signal(Signal::SIGINT)?;
        let status = self.proc.wait(PATIENCE)?;
        let last = last_counts(&self.proc.stderr()).context("tcpdump ended without its counters")?;
        ensure!(status.success(), "tcpdump ended with {status}: {}", self.proc.stderr());
        let bytes = std::fs::read(&self.file).with_context(|| format!("read {}", self.file.display()))?;
        let capture = Capture::parse(bytes).with_context(|| format!("read {}", self.file.display()))?;
        Ok((capture, last.dropped))
    }

    /// Asks tcpdump for its counters.
    fn counts(&mut self) -> Result<Counts> {
        let before = self.proc.stderr().matches(RECEIVED).count();
        self.proc.signal(Signal::SIGUSR1)?;
        self.proc.wait_for("counters of tcpdump", PATIENCE, |_, stderr| {
            let complete = stderr.ends_with('\n') && stderr.matches(DROPPED).count() > before;
            complete.then(|| last_counts(stderr)).flatten()
        })
    }
}

const CAPTURED: &str = " captured";
const RECEIVED: &str = " received by filter";
const DROPPED: &str = " dropped by kernel";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    captured: u64,
    received: u64,
    dropped: u64,
}

/// Reads the last counters that tcpdump printed: `N packets captured`, `N packets received by filter`, `N packets dropped by
/// kernel`, on one line or on three.
fn last_counts(stderr: &str) -> Option<Counts> {
    let last = |what: &str| {
        let before = &stderr[..stderr.rfind(what)?];
        let before = before.trim_end_matches("packets").trim_end_matches("packet").trim_end();
        let digits = before.rfind(|c: char| !c.is_ascii_digit()).map_or(before, |at| &before[at + 1..]);
        digits.parse().ok()
    };
    Some(Counts { captured: last(CAPTURED)?, received: last(RECEIVED)?, dropped: last(DROPPED)? })
}

/// One captured frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// When it passed: nanoseconds since the epoch, by the kernel's clock.
    pub at: u64,
    /// Length of the whole L2 frame in bytes (without the checksum that hardware adds).
    pub length: u32,
    /// Its first bytes.
    pub head: &'a [u8],
}

/// What a frame carries, as far as a test asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// What is inside.
    pub content: Content,
}

/// What an IP packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A TCP segment.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
        /// The flags octet: FIN 1, SYN 2, RST 4, PSH 8, ACK 16 (RFC 9293).
        flags: u8,
    },
    /// A UDP datagram.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// An ICMP or ICMPv6 message.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Anything else, later fragments included: its protocol number.
    Other(u8),
}

impl Frame<'_> {
    /// The EtherType of an untagged Ethernet frame.
    #[must_use]
    pub fn ethertype(&self) -> Option<u16> {
        be16(self.head, 12)
    }

    /// The IPv4 or IPv6 packet inside; `None` for anything else or when the frame is cut short.
    #[must_use]
    pub fn packet(&self) -> Option<Packet> {
        let ip = self.head.get(14..)?;
        match self.ethertype()? {
            0x0800 => {
                let header = usize::from(ip.first()? & 0x0f) * 4;
                let source = Ipv4Addr::from(be32(ip, 12)?).into();
                let destination = Ipv4Addr::from(be32(ip, 16)?).into();
                let later_fragment = be16(ip, 6)? & 0x1fff != 0;
                let content = content(*ip.get(9)?, ip.get(header..)?, later_fragment)?;
                Some(Packet { source, destination, ttl: *ip.get(8)?, content })
            }
            0x86dd => {
                let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?).into());
                let (mut next, mut at, mut later_fragment) = (*ip.get(6)?, 40, false);
                // Extension headers (RFC 8200): hop-by-hop 0, routing 43, fragment 44, destination options 60.
                while matches!(next, 0 | 43 | 44 | 60) && !later_fragment {
                    let length = if next == 44 { 8 } else { 8 * (usize::from(*ip.get(at + 1)?) + 1) };
                    later_fragment = next == 44 && be16(ip, at + 2)? & 0xfff8 != 0;
                    next = *ip.get(at)?;
                    at += length;
                }
                let content = content(next, ip.get(at..)?, later_fragment)?;
                Some(Packet { source: address(8)?, destination: address(24)?, ttl: *ip.get(7)?, content })
            }
            _ => None,
        }
    }
}

fn content(protocol: u8, data: &[u8], later_fragment: bool) -> Option<Content> {
    Some(match protocol {
        _ if later_fragment => Content::Other(protocol),
        6 => Content::Tcp {
            source: be16(data, 0)?,
            destination: be16(data, 2)?,
            sequence: be32(data, 4)?,
            acknowledgement: be32(data, 8)?,
            flags: *data.get(13)?,
        },
        17 => Content::Udp { source: be16(data, 0)?, destination: be16(data, 2)? },
        1 | 58 => Content::Icmp { kind: *data.first()?, code: *data.get(1)? },
        other => Content::Other(other),
    })
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

fn be32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

impl Packet {
    /// True for a TCP SYN without ACK: a probe of a port.
    #[must_use]
    pub fn is_syn(&self) -> bool {
        matches!(self.content, Content::Tcp { flags, .. } if flags & 0x12 == 0x02)
    }

    /// True for an ICMP or ICMPv6 echo request.
    #[must_use]
    pub fn is_echo_request(&self) -> bool {
        matches!(
            (self.destination, self.content),
            (IpAddr::V4(_), Content::Icmp { kind: 8, .. }) | (IpAddr::V6(_), Content::Icmp { kind: 128, .. })
        )
    }

    /// The destination port, where there is one.
    #[must_use]
    pub fn destination_port(&self) -> Option<u16> {
        match self.content {
            Content::Tcp { destination, .. } | Content::Udp { destination, .. } => Some(destination),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    at: u64,
    length: u32,
    from: usize,
    to: usize,
}

/// A finished capture.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

impl Capture {
    /// Reads a classic pcap file of Ethernet frames, with microsecond or nanosecond timestamps, of either byte order. Frames come
    /// in the order of their timestamps.
    ///
    /// # Errors
    /// When it is not such a file or is cut short.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        let magic: [u8; 4] = bytes.get(..4).and_then(|magic| magic.try_into().ok()).context("no pcap header")?;
        let (little, scale) = match magic {
            [0x4d, 0x3c, 0xb2, 0xa1] => (true, 1),
            [0xa1, 0xb2, 0x3c, 0x4d] => (false, 1),
            [0xd4, 0xc3, 0xb2, 0xa1] => (true, 1000),
            [0xa1, 0xb2, 0xc3, 0xd4] => (false, 1000),
            other => bail!("not a pcap file: it starts with {other:02x?}"),
        };
        let word = |at: usize| -> Option<u32> {
            let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(if little { u32::from_le_bytes(four) } else { u32::from_be_bytes(four) })
        };
        let kind = word(20).context("pcap header cut short")? & 0x0fff_ffff;
        ensure!(kind == 1, "link type {kind}, not Ethernet");
        let mut places = Vec::new();
        let mut at = 24;
        while at < bytes.len() {
            let cut = || format!("pcap record {} cut short", places.len());
            let seconds = word(at).with_context(cut)?;
            let fraction = word(at + 4).with_context(cut)?;
            let kept = word(at + 8).with_context(cut)? as usize;
            let length = word(at + 12).with_context(cut)?;
            let (from, to) = (at + 16, at + 16 + kept);
            ensure!(to <= bytes.len(), cut());
            places.push(Place { at: u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * scale, length, from, to });
            at = to;
        }
        // Frames of different processors may come a little out of order.
        places.sort_by_key(|place| place.at);
        Ok(Self { bytes, places })
    }

    /// All frames, by time.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = Frame<'_>> + '_ {
        self.places.iter().map(|place| Frame { at: place.at, length: place.length, head: &self.bytes[place.from..place.to] })
    }

    /// All IP packets, by time.
    pub fn packets(&self) -> impl Iterator<Item = Packet> + '_ {
        self.frames().filter_map(|frame| frame.packet())
    }

    /// How many frames there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The timing of the frames that `keep` keeps.
    pub fn timing(&self, mut keep: impl FnMut(&Frame<'_>) -> bool) -> Timing {
        Timing::new(self.frames().filter(|frame| keep(frame)).map(|frame| (frame.at, frame.length)))
    }

    /// How often each (address, port) was probed by a SYN from one of the sources that `from` accepts.
    pub fn probed_ports(&self, mut from: impl FnMut(IpAddr) -> bool) -> BTreeMap<(IpAddr, u16), u64> {
        let mut counts = BTreeMap::new();
        for packet in self.packets().filter(Packet::is_syn).filter(|packet| from(packet.source)) {
            if let Some(port) = packet.destination_port() {
                *counts.entry((packet.destination, port)).or_default() += 1;
            }
        }
        counts
    }

    /// How often each address was sent an echo request by one of the sources that `from` accepts.
    pub fn probed_hosts(&self, mut from: impl FnMut(IpAddr) -> bool) -> BTreeMap<IpAddr, u64> {
        let mut counts = BTreeMap::new();
        for packet in self.packets().filter(Packet::is_echo_request).filter(|packet| from(packet.source)) {
            *counts.entry(packet.destination).or_default() += 1;
        }
        counts
    }

    /// How many packets, of any kind, went to the addresses that `to` accepts ("never off limits" wants none).
    pub fn sent_to(&self, mut to: impl FnMut(IpAddr) -> bool) -> u64 {
        self.packets().filter(|packet| to(packet.destination)).count() as u64
    }
}

/// The widths of the windows that rates are reported for.
pub const WINDOWS: [Duration; 4] =
    [Duration::from_millis(1), Duration::from_millis(10), Duration::from_millis(100), Duration::from_millis(1000)];

/// The most that passed in any window of one width, wherever it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peak {
    /// Width of the window.
    pub width: Duration,
    /// Most packets.
    pub packets: u64,
    /// Most bits of L2 frames (not necessarily in the same window).
    pub bits: u64,
}

/// How the times between neighbouring frames are spread, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Shortest.
    pub least: u64,
    /// Half are no longer.
    pub median: u64,
    /// 90 in 100 are no longer.
    pub p90: u64,
    /// 99 in 100 are no longer.
    pub p99: u64,
    /// Longest.
    pub most: u64,
}

/// When frames passed, and how long they were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// (nanoseconds, bytes), by time.
    frames: Vec<(u64, u32)>,
}

impl Timing {
    /// From (nanoseconds, L2 bytes) in any order.
    pub fn new(frames: impl IntoIterator<Item = (u64, u32)>) -> Self {
        let mut frames: Vec<_> = frames.into_iter().collect();
        frames.sort_by_key(|(at, _)| *at);
        Self { frames }
    }

    /// How many frames.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.frames.len() as u64
    }

    /// How many bits of L2 frames.
    #[must_use]
    pub fn bits(&self) -> u64 {
        self.frames.iter().map(|(_, bytes)| u64::from(*bytes) * 8).sum()
    }

    /// From the first frame to the last.
    #[must_use]
    pub fn span(&self) -> Duration {
        let ends = self.frames.first().zip(self.frames.last());
        Duration::from_nanos(ends.map_or(0, |(first, last)| last.0 - first.0))
    }

    /// Packets a second from the first frame to the last (whose own time is not over yet, so it is not counted). 0 when there are
    /// not two.
    #[must_use]
    pub fn mean_packets(&self) -> f64 {
        let seconds = self.span().as_secs_f64();
        if seconds > 0.0 { (self.frames.len() - 1) as f64 / seconds } else { 0.0 }
    }

    /// Bits a second, counted alike.
    #[must_use]
    pub fn mean_bits(&self) -> f64 {
        let seconds = self.span().as_secs_f64();
        let last = self.frames.last().map_or(0, |(_, bytes)| u64::from(*bytes) * 8);
        if seconds > 0.0 { (self.bits() - last) as f64 / seconds } else { 0.0 }
    }

    /// The most in any window `[t, t + width)`.
    #[must_use]
    pub fn peak(&self, width: Duration) -> Peak {
        let nanos = u64::try_from(width.as_nanos()).unwrap_or(u64::MAX);
        let mut peak = Peak { width, packets: 0, bits: 0 };
        let (mut oldest, mut bits) = (0, 0_u64);
        for (index, (at, bytes)) in self.frames.iter().enumerate() {
            bits += u64::from(*bytes) * 8;
            while at - self.frames[oldest].0 >= nanos {
                bits -= u64::from(self.frames[oldest].1) * 8;
                oldest += 1;
                if oldest > index {
                    break;
                }
            }
            peak.packets = peak.packets.max((index + 1 - oldest) as u64);
            peak.bits = peak.bits.max(bits);
        }
        peak
    }

    /// The peaks of all [`WINDOWS`].
    #[must_use]
    pub fn peaks(&self) -> [Peak; 4] {
        WINDOWS.map(|width| self.peak(width))
    }

    /// The smallest burst, in packets, for which these frames keep to `rate` packets a second: over every window whatever, no more
    /// than `rate` times its width plus this passed. A token bucket of this depth would have let all of them through.
    #[must_use]
    pub fn burst_packets(&self, rate: f64) -> f64 {
        self.burst(rate, |_| 1.0)
    }

    /// The same in bits of L2 frames.
    #[must_use]
    pub fn burst_bits(&self, rate: f64) -> f64 {
        self.burst(rate, |bytes| f64::from(bytes) * 8.0)
    }

    fn burst(&self, rate: f64, cost: impl Fn(u32) -> f64) -> f64 {
        let (mut level, mut most, mut last) = (0.0_f64, 0.0_f64, None);
        for (at, bytes) in &self.frames {
            let passed = last.map_or(0, |last| at - last) as f64 / 1e9;
            level = (level - rate * passed).max(0.0) + cost(*bytes);
            most = most.max(level);
            last = Some(*at);
        }
        most
    }

    /// How the gaps are spread; all zero when there are not two frames.
    #[must_use]
    pub fn gaps(&self) -> Gaps {
        let mut gaps: Vec<u64> = self.frames.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        gaps.sort_unstable();
        let Some(last) = gaps.len().checked_sub(1) else { return Gaps::default() };
        // Nearest rank.
        let rank = |percent: usize| gaps[(gaps.len() * percent).div_ceil(100).saturating_sub(1).min(last)];
        Gaps { least: gaps[0], median: rank(50), p90: rank(90), p99: rank(99), most: gaps[last] }
    }
}

impl std::fmt::Display for Timing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} packets, {} bits in {:?}", self.packets(), self.bits(), self.span())?;
        writeln!(f, "mean {:.1} packets/s, {:.0} bit/s", self.mean_packets(), self.mean_bits())?;
        for peak in self.peaks() {
            writeln!(f, "most in {:>6?}: {} packets, {} bits", peak.width, peak.packets, peak.bits)?;
        }
        let gaps = self.gaps();
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        write!(
            f,
            "gaps in us: least {:.1}, median {:.1}, p90 {:.1}, p99 {:.1}, most {:.1}",
            micros(gaps.least),
            micros(gaps.median),
            micros(gaps.p90),
            micros(gaps.p99),
            micros(gaps.most)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn pcap(nano: bool, little: bool, frames: &[(u64, &[u8], u32)]) -> Vec<u8> {
        let word = |value: u32| if little { value.to_le_bytes() } else { value.to_be_bytes() };
        let mut bytes = Vec::new();
        bytes.extend(word(if nano { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }));
        bytes.extend(if little { [2, 0, 4, 0] } else { [0, 2, 0, 4] });
        for value in [0, 0, 160, 1] {
            bytes.extend(word(value));
        }
        for (at, head, length) in frames {
            let fraction = at % 1_000_000_000 / if nano { 1 } else { 1000 };
            for value in [(at / 1_000_000_000) as u32, fraction as u32, head.len() as u32, *length] {
                bytes.extend(word(value));
            }
            bytes.extend(*head);
        }
        bytes
    }

    fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
        [&[0; 12][..], &kind.to_be_bytes(), payload].concat()
    }

    fn syn4(destination: [u8; 4], port: u16, flags: u8) -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 198, 19, 0, 1];
        ip.extend(destination);
        ip.extend(40000_u16.to_be_bytes());
        ip.extend(port.to_be_bytes());
        ip.extend([0, 0, 0, 7, 0, 0, 0, 9, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        ethernet(0x0800, &ip)
    }

    #[test]
    fn reads_every_kind_of_file() {
        let at = 1_700_000_000_123_456_000;
        let frame = syn4([198, 18, 0, 1], 80, 2);
        for (nano, little) in [(true, true), (true, false), (false, true), (false, false)] {
            let capture = Capture::parse(pcap(nano, little, &[(at, &frame, 1514)])).unwrap();
            let frames: Vec<_> = capture.frames().collect();
            assert_eq!((frames.len(), frames[0].at, frames[0].length), (1, at, 1514));
            assert_eq!(
                frames[0].packet(),
                Some(Packet {
                    source: "198.19.0.1".parse().unwrap(),
                    destination: "198.18.0.1".parse().unwrap(),
                    ttl: 64,
                    content: Content::Tcp { source: 40000, destination: 80, sequence: 7, acknowledgement: 9, flags: 2 },
                })
            );
        }
    }

    #[test]
    fn refuses_what_is_no_capture() {
        let whole = pcap(true, true, &[(5, &[0; 60], 60)]);
        for cut in [0, 3, 20, 30, whole.len() - 1] {
            assert!(Capture::parse(whole[..cut].to_vec()).is_err(), "cut at {cut}");
        }
        assert!(Capture::parse(b"GIF89a and more".to_vec()).unwrap_err().to_string().contains("not a pcap file"));
        assert!(Capture::parse(whole[..24].to_vec()).unwrap().is_empty());
    }

    #[test]
    fn frames_cut_anywhere_do_not_panic() {
        let frame = syn4([198, 18, 0, 1], 80, 2);
        for cut in 0..frame.len() {
            let _ = Frame { at: 0, length: 54, head: &frame[..cut] }.packet();
        }
    }

    #[test]
    fn looks_through_ipv6_extension_headers() {
        let mut ip = vec![0x60, 0, 0, 0, 0, 0, 0, 255];
        ip.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        ip.extend("2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
        ip.extend([58, 0, 0, 0, 0, 0, 0, 0]);
        ip.extend([128, 0, 0, 0, 0, 1, 0, 1]);
        let frame = ethernet(0x86dd, &ip);
        let packet = Frame { at: 0, length: 70, head: &frame }.packet().unwrap();
        assert!(packet.is_echo_request());
        assert_eq!(packet.destination, "2001:db8::2".parse::<IpAddr>().unwrap());
        assert_eq!(Frame { at: 0, length: 60, head: &ethernet(0x0806, &[0; 46]) }.packet(), None);
    }

    #[test]
    fn counts_what_was_probed() {
        let frames =
            [syn4([198, 18, 0, 1], 80, 2), syn4([198, 18, 0, 1], 80, 2), syn4([198, 18, 0, 2], 22, 2), syn4([198, 18, 0, 1], 80, 4)];
        let frames: Vec<_> = frames.iter().enumerate().map(|(n, frame)| (n as u64, &frame[..], 54)).collect();
        let capture = Capture::parse(pcap(true, true, &frames)).unwrap();
        let (one, two) = ("198.18.0.1".parse().unwrap(), "198.18.0.2".parse().unwrap());
        assert_eq!(capture.probed_ports(|_| true), BTreeMap::from([((one, 80), 2), ((two, 22), 1)]), "the RST is no probe");
        assert!(capture.probed_ports(|source| source == two).is_empty());
        assert_eq!((capture.sent_to(|a| a == one), capture.sent_to(|a| a == two), capture.len()), (3, 1, 4));
        assert!(capture.probed_hosts(|_| true).is_empty());
    }

    #[test]
    fn even_traffic() {
        let timing = Timing::new((0..5000).map(|n| (n * MS, 125)));
        assert_eq!(timing.peaks().map(|peak| peak.packets), [1, 10, 100, 1000]);
        assert_eq!(timing.peak(Duration::from_millis(10)).bits, 10_000);
        assert!((timing.mean_packets() - 1000.0).abs() < 1e-6 && (timing.mean_bits() - 1e6).abs() < 1e-3);
        assert_eq!(timing.gaps(), Gaps { least: MS, median: MS, p90: MS, p99: MS, most: MS });
        assert!((timing.burst_packets(1000.0) - 1.0).abs() < 1e-6);
        assert!((timing.burst_packets(500.0) - 2500.5).abs() < 1e-6, "half of them were too many, and the last itself");
    }

    #[test]
    fn windows_slide() {
        // 60 packets end one aligned 100 ms window and 60 start the next: only a sliding window sees 120.
        let early = (0..60).map(|n| (99 * MS + n, 60));
        let late = (0..60).map(|n| (100 * MS + n, 60));
        let timing = Timing::new(late.chain(early));
        assert_eq!(timing.peak(Duration::from_millis(100)).packets, 120);
        assert_eq!(timing.peak(Duration::from_millis(1)).packets, 60, "[t, t + width) is open at its end");
        assert!((timing.burst_packets(0.0) - 120.0).abs() < 1e-9);
        assert_eq!(timing.gaps().most, MS - 59);
    }

    #[test]
    fn peaks_equal_a_naive_count() {
        let mut state = 42_u64;
        let frames: Vec<(u64, u32)> = (0..400)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                ((state >> 33) % (300 * MS), 60 + (state >> 40) as u32 % 1400)
            })
            .collect();
        let timing = Timing::new(frames.clone());
        for width in [Duration::from_nanos(1), Duration::from_millis(1), Duration::from_millis(10), Duration::from_millis(100)] {
            let nanos = width.as_nanos() as u64;
            let inside = |from: u64| frames.iter().filter(move |(at, _)| (from..from + nanos).contains(at));
            let packets = frames.iter().map(|(at, _)| inside(*at).count() as u64).max().unwrap();
            let bits = frames.iter().map(|(at, _)| inside(*at).map(|(_, bytes)| u64::from(*bytes) * 8).sum()).max().unwrap();
            assert_eq!(timing.peak(width), Peak { width, packets, bits });
        }
    }

    #[test]
    fn nothing_is_measured_of_nothing() {
        let (none, one) = (Timing::default(), Timing::new([(7, 60)]));
        assert_eq!((none.packets(), none.mean_packets(), none.gaps(), none.peaks()[0].packets), (0, 0.0, Gaps::default(), 0));
        assert_eq!((one.packets(), one.bits(), one.mean_bits(), one.peaks()[3].packets), (1, 480, 0.0, 1));
    }

    #[test]
    fn counters_of_tcpdump() {
        let once = "tcpdump: listening on eth0\ntcpdump: 10 packets captured, 12 packets received by filter, 0 packets dropped by kernel\n";
        assert_eq!(last_counts(once), Some(Counts { captured: 10, received: 12, dropped: 0 }));
        let end = format!("{once}1 packet captured\n1 packet received by filter\n2 packets dropped by kernel\n");
        assert_eq!(last_counts(&end), Some(Counts { captured: 1, received: 1, dropped: 2 }));
        assert_eq!(last_counts("tcpdump: listening on eth0\n"), None);
    }
}
