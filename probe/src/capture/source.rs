//! An interface as libpcap gives its packets: a memory-mapped ring of the kernel (TPACKET_V3), filled without waking anybody for each
//! packet, with times in nanoseconds.
//!
//! It must not know what becomes of packets. libpcap is reached through the crate `pcap` alone, here alone.
//!
//! **Invariants:** nothing here waits longer than it is told to; counters never go back.

use core::time::Duration;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pcap::{Active, Capture, Linktype, Precision};

use picket_wire::filter::{self, FilterError};

use super::UnixNanos;
use super::bpf::{Instruction, Program};
use super::pcapng::Packet;

/// How long packets may wait in a block of the ring that is not full. In immediate mode each packet would wake us.
pub const BLOCK_TIMEOUT: Duration = Duration::from_millis(100);
/// The interface that stands for all.
pub const ANY: &str = "any";

/// How an interface is listened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Its name, or [`ANY`].
    pub interface: String,
    /// Bytes of each packet that are kept.
    pub snap_len: u32,
    /// Whether packets for others are wanted.
    pub promiscuous: bool,
    /// Size of the kernel's buffer, in bytes.
    pub buffer: u32,
    /// The filter; empty for everything.
    pub filter: String,
}

/// Why an interface cannot be listened to, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nobody may listen without this.
    #[error("capturing on `{interface}` needs CAP_NET_RAW: run as root, or give the program that capability ({reason})")]
    Permission {
        /// The interface.
        interface: String,
        /// libpcap's words.
        reason: String,
    },
    /// The interface is down.
    #[error("`{0}` is down: set it up, for example by `ip link set {0} up`")]
    Down(String),
    /// It cannot be opened.
    #[error("open `{interface}` for capturing: {reason}")]
    Open {
        /// The interface.
        interface: String,
        /// libpcap's words.
        reason: String,
    },
    /// The filter is wrong.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The interface went away.
    #[error("capturing on `{interface}` ended: {reason}")]
    Gone {
        /// The interface.
        interface: String,
        /// libpcap's words.
        reason: String,
    },
}

/// What the kernel counted since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelCounts {
    /// Packets that passed the filter, dropped ones included.
    pub accepted: u64,
    /// Of these, those for which the buffer had no room.
    pub dropped: u64,
    /// Packets that the interface or its driver had no room for.
    pub interface_dropped: u64,
    /// Packets that the interface has sent and received meanwhile, whatever the filter; `None` for all interfaces together.
    pub passed: Option<u64>,
    /// Of those that came, the ones longer than a frame of the interface: offloads put several frames together on their way in (GRO, LRO),
    /// or had not cut them yet on their way out (TSO, GSO). On the wire they were shorter, and more.
    pub longer: u64,
}

/// An interface that is being listened to.
pub struct Source {
    capture: Capture<Active>,
    interface: String,
    link_type: u16,
    passed_before: Option<u64>,
    longest: u32,
    counts: KernelCounts,
    /// libpcap's counters have 32 bits.
    last: (u32, u32, u32),
}

impl core::fmt::Debug for Source {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Source").field("interface", &self.interface).field("link_type", &self.link_type).finish_non_exhaustive()
    }
}

/// libpcap's words without the crate's.
fn words(error: &pcap::Error) -> String {
    match error {
        pcap::Error::PcapError(text) => text.trim_end_matches('.').to_owned(),
        other => other.to_string(),
    }
}

/// Compiles a filter for Ethernet without opening anything. Names in it are looked up.
///
/// # Errors
/// It is wrong.
pub fn check(filter: &str) -> Result<(), FilterError> {
    check_for(filter, Linktype::ETHERNET)
}

/// Compiles a filter for packets of a link, given by its LINKTYPE_ value, that are in a file. Names in it are looked up.
///
/// # Errors
/// It is wrong, or asks for what this link does not tell.
pub fn compile(filter: &str, link_type: u16) -> Result<Program, FilterError> {
    // DLT_RAW (pcap-linktype(7)).
    let link = if link_type == crate::packet::link::RAW_IP { Linktype(12) } else { Linktype(link_type.into()) };
    check_for(filter, link)?;
    let unreadable = |reason: String| FilterError { filter: filter.to_owned(), reason, place: None };
    let dead = Capture::dead(link).map_err(|error| unreadable(words(&error)))?;
    let program = dead.compile(filter, true).map_err(|error| unreadable(words(&error)))?;
    let instructions = program.get_instructions().iter().map(instruction).collect::<Option<Vec<_>>>();
    instructions.map(Program).ok_or_else(|| unreadable("libpcap's program cannot be read".to_owned()))
}

/// The crate shows an instruction as text alone: four numbers.
fn instruction(shown: &pcap::BpfInstruction) -> Option<Instruction> {
    let text = shown.to_string();
    let mut numbers = text.split(' ');
    let mut next = || numbers.next();
    Some(Instruction { code: next()?.parse().ok()?, yes: next()?.parse().ok()?, no: next()?.parse().ok()?, k: next()?.parse().ok()? })
}

fn check_for(text: &str, link: Linktype) -> Result<(), FilterError> {
    let none = || FilterError { filter: text.to_owned(), reason: "libpcap gives no handle".to_owned(), place: None };
    let dead = Capture::dead(link).map_err(|_| none())?;
    filter::check(text, |text, optimised| dead.compile(text, optimised).map(drop).map_err(|error| words(&error)))
}

impl Source {
    /// Opens an interface.
    ///
    /// # Errors
    /// There is no permission, no such interface, or the filter is wrong.
    pub fn open(listen: &Listen) -> Result<Self, SourceError> {
        let open = |error: &pcap::Error| open_error(&listen.interface, error);
        let mut capture = Capture::from_device(listen.interface.as_str())
            .map_err(|error| open(&error))?
            .snaplen(listen.snap_len.try_into().unwrap_or(i32::MAX))
            .promisc(listen.promiscuous)
            .buffer_size(listen.buffer.try_into().unwrap_or(i32::MAX))
            .timeout(BLOCK_TIMEOUT.as_millis() as i32)
            .immediate_mode(false)
            .precision(Precision::Nano)
            .open()
            .map_err(|error| open(&error))?;
        if listen.interface == ANY {
            // Tells the interface of each packet; a libpcap that does not know it gives the older header.
            let _ = capture.set_datalink(Linktype(crate::packet::link::COOKED_2.into()));
        }
        let link = capture.get_datalink();
        check_for(&listen.filter, link)?;
        capture.filter(&listen.filter, true).map_err(|error| open(&error))?;
        let capture = capture.setnonblock().map_err(|error| open(&error))?;
        let passed_before = passed(&listen.interface);
        Ok(Self {
            capture,
            interface: listen.interface.clone(),
            link_type: link_type(link),
            passed_before,
            longest: longest(&listen.interface, link_type(link)),
            counts: KernelCounts::default(),
            last: (0, 0, 0),
        })
    }

    /// LINKTYPE_ value of its packets.
    pub fn link_type(&self) -> u16 {
        self.link_type
    }

    /// Waits until there are packets, or so long.
    pub fn wait(&self, most: Duration) {
        let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
        // A signal ends it early, and what went wrong is said by the next look at the packets.
        let _ = poll(&mut [PollFd::new(self.capture.as_fd(), PollFlags::POLLIN)], timeout);
    }

    /// Hands over the packets that are there, `most` at most; gives how many they were.
    ///
    /// # Errors
    /// The interface went away.
    pub fn dispatch(&mut self, most: usize, mut take: impl FnMut(&Packet<'_>)) -> Result<usize, SourceError> {
        let Self { capture, counts, longest, .. } = self;
        let handler = |packet: pcap::Packet<'_>| {
            counts.longer += u64::from(packet.header.len > *longest);
            // With the precision that was asked for, the field of microseconds has nanoseconds.
            #[allow(clippy::useless_conversion, reason = "these have 32 bits on some targets")]
            let time = UnixNanos::new(packet.header.ts.tv_sec.into(), packet.header.ts.tv_usec.into());
            take(&Packet { interface: 0, time, original_len: packet.header.len, data: packet.data });
        };
        let taken = capture.dispatch(Some(most.min(i32::MAX as usize)), handler);
        taken.map_err(|error| SourceError::Gone { interface: self.interface.clone(), reason: words(&error) })
    }

    /// What the kernel counted so far. Where it no longer tells, what it told last.
    pub fn counts(&mut self) -> KernelCounts {
        if let Ok(stat) = self.capture.stats() {
            let now = (stat.received, stat.dropped, stat.if_dropped);
            let more = |now: u32, last: u32| u64::from(now.wrapping_sub(last));
            self.counts.accepted += more(now.0, self.last.0);
            self.counts.dropped += more(now.1, self.last.1);
            self.counts.interface_dropped += more(now.2, self.last.2);
            self.last = now;
        }
        if let (Some(now), Some(before)) = (passed(&self.interface), self.passed_before) {
            self.counts.passed = Some(now.saturating_sub(before));
        }
        self.counts
    }
}

fn open_error(interface: &str, error: &pcap::Error) -> SourceError {
    let (interface, reason) = (interface.to_owned(), words(error));
    let lower = reason.to_lowercase();
    if lower.contains("permission") || lower.contains("not permitted") {
        SourceError::Permission { interface, reason }
    } else if lower.contains("is not up") || lower.contains("network is down") {
        SourceError::Down(interface)
    } else {
        SourceError::Open { interface, reason }
    }
}

/// DLT_ numbers are LINKTYPE_ numbers but for a few that systems number differently (pcap-linktype(7)).
fn link_type(link: Linktype) -> u16 {
    match link.0 {
        // DLT_RAW, as Linux and as others have it.
        12 | 14 => crate::packet::link::RAW_IP,
        other => u16::try_from(other).unwrap_or_default(),
    }
}

/// Length of the longest frame that passes an interface as one, in bytes; no limit where that is not known.
fn longest(interface: &str, link_type: u16) -> u32 {
    let headers = match link_type {
        // With two VLAN tags, which the MTU does not count.
        crate::packet::link::ETHERNET => 14 + 8,
        crate::packet::link::RAW_IP => 0,
        _ => return u32::MAX,
    };
    let mtu = std::fs::read_to_string(format!("/sys/class/net/{interface}/mtu")).ok().and_then(|text| text.trim().parse().ok());
    mtu.map_or(u32::MAX, |mtu: u32| mtu.saturating_add(headers))
}

/// Packets that the interface has sent and received since it exists.
fn passed(interface: &str) -> Option<u64> {
    let count = |which: &str| {
        let text = std::fs::read_to_string(format!("/sys/class/net/{interface}/statistics/{which}_packets")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    (interface != ANY).then(|| Some(count("rx")? + count("tx")?)).flatten()
}

#[cfg(test)]
mod tests {
    use picket_wire::filter::Place;
    use proptest::prelude::*;

    use super::*;
    use crate::capture::filter;

    fn wrong(filter: &str) -> String {
        check(filter).unwrap_err().to_string()
    }

    #[test]
    fn filters_are_compiled_without_an_interface() {
        for filter in ["", "tcp port 80 and host 192.0.2.1", "tcp[13] & 2 != 0", "(ip or ip6) and not arp"] {
            check(filter).unwrap();
        }
    }

    /// Frames that filters can tell apart: families, protocols, ports, options, fragments, VLANs, ARP.
    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let some = |values: &'static [u8]| prop::sample::select(values);
        let shape =
            (0usize..6, some(&[1, 6, 17, 44, 58, 132]), some(&[0x45, 0x46, 0x4f, 0x60]), 0u8..4, some(&[0, 0, 0, 0x20]), 0usize..90);
        (proptest::collection::vec(0u8..4, 90), shape).prop_map(|(mut bytes, (ethertype, protocol, version, host, fragment, len))| {
            let ethertype = [0x0800u16, 0x0800, 0x86dd, 0x86dd, 0x0806, 0x8100][ethertype];
            bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
            bytes[14] = if ethertype == 0x86dd { 0x60 } else { version };
            bytes[20] = fragment;
            bytes[if ethertype == 0x86dd { 20 } else { 23 }] = protocol;
            bytes[26..30].copy_from_slice(&[198, 18, 0, host]);
            bytes[34..38].copy_from_slice(&[0, 80, 0, host]);
            bytes.truncate(len);
            bytes
        })
    }

    const FILTERS: [&str; 13] = [
        "",
        "tcp",
        "udp or icmp6",
        "port 80",
        "src port 2 and not tcp",
        "host 198.18.0.2",
        "net 198.18.0.0/30 and less 60",
        "ip[6:2] & 0x1fff = 0",
        "tcp[13] & 2 != 0 or ip6",
        "len > 40 and ether[2] + ether[3] * 2 > ether[4] - 1",
        "vlan 2 and ip",
        "(ip[0] & 0xf) << 2 > 20 or len % 7 = 3 or len / ip[1] = 9",
        "arp host 2.2.2.2 or ether host 01:02:03:00:01:02",
    ];

    proptest! {
        #[test]
        fn filters_want_what_libpcap_wants(frame in frames(), n in 0..FILTERS.len()) {
            let theirs = Capture::dead(Linktype::ETHERNET).unwrap().compile(FILTERS[n], true).unwrap();
            let ours = compile(FILTERS[n], crate::packet::link::ETHERNET).unwrap();
            prop_assert_eq!(ours.wants(&frame, frame.len() as u32), theirs.filter(&frame), "{}", FILTERS[n]);
        }
    }

    #[test]
    fn the_length_is_that_on_the_wire() {
        let program = compile("greater 500", crate::packet::link::RAW_IP).unwrap();
        assert!(program.wants(&[0x45; 64], 500) && !program.wants(&[0x45; 64], 499));
        assert!(compile("greater x", crate::packet::link::RAW_IP).is_err());
    }

    #[test]
    fn errors_have_their_place() {
        for (filter, at, word) in [
            ("tcp prot 80", 4, "prot"),
            ("host 192.0.2.1 && && tcp", 18, "&&"),
            ("tcp port 80 and (udp or )", 24, ")"),
            ("port 99999", 5, "99999"),
            ("tcp and", 7, ""),
            ("(tcp", 4, ""),
            ("ip6 src host fe80::1 and ether dst hots 1", 35, "hots"),
            ("tcp[13] & 2 =! 0", 12, "=!"),
            ("ip proto tcp", 9, "tcp"),
            ("tcp dst port 80 or or udp", 19, "or"),
        ] {
            let error = check(filter).unwrap_err();
            assert_eq!(error.place, Some(Place { at, word: word.into() }), "{error}");
        }
    }

    #[test]
    fn errors_show_their_place() {
        assert!(wrong("tcp prot 80").ends_with("\n  tcp prot 80\n      ^"), "{}", wrong("tcp prot 80"));
        assert!(wrong("tcp prot 80").starts_with("filter is wrong at character 5, `prot`: "), "{}", wrong("tcp prot 80"));
        assert!(wrong("tcp and").starts_with("filter ends too early, after character 7: "), "{}", wrong("tcp and"));
    }

    #[test]
    fn what_keeps_own_traffic_out_compiles() {
        let own = filter::Own {
            addresses: ["198.18.0.1", "198.18.0.2", "2001:db8::1", "fe80::1"].map(|ip| ip.parse().unwrap()).to_vec(),
            ports: Some((61_440, 65_535)),
            controllers: vec!["192.0.2.7:8883".parse().unwrap(), "[2001:db8::7]:8443".parse().unwrap()],
        };
        let text = filter::complete("udp or icmp", Some(&own));
        for link in [Linktype::ETHERNET, Linktype(12), Linktype(113), Linktype(276)] {
            check_for(&text, link).unwrap();
        }
    }

    #[test]
    fn as_many_addresses_as_may_be_fit_the_kernel() {
        let v6 = (0..40u16).map(|n| std::net::IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]));
        let v4 = (0..40u8).map(|n| std::net::IpAddr::from([198, 18, 0, n]));
        let own = filter::Own { addresses: v4.chain(v6).collect(), ports: Some((61_440, 65_535)), controllers: vec![] };
        let program = Capture::dead(Linktype::ETHERNET).unwrap().compile(&filter::complete("tcp", Some(&own)), true).unwrap();
        assert!(program.get_instructions().len() < 4096, "{}", program.get_instructions().len());
    }
}
