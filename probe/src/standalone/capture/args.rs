//! What can be typed behind `picket-probe capture`.

use core::str::FromStr;
use core::time::Duration;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use picket_wire::units::{parse_bytes, parse_duration};

use crate::capture::ring::Options;

/// Enough for the headers of link, network and transport, options and a VLAN tag included.
const HEADERS: u32 = 128;
/// What capture libraries keep of a packet at most.
const WHOLE: u32 = 262_144;

const EXAMPLES: &str = "\
Examples:
  picket-probe capture -i eth0
  picket-probe capture -i eth0 tcp port 443 and host 192.0.2.7
  picket-probe capture -i any -w lan.pcapng --seconds 60
  picket-probe capture -i eth0 --full -w ring.pcapng --rotate-size 100MB --files 10
  picket-probe capture -i eth0 --ring /var/lib/picket/ring --disk 2GiB --keep 24h
  picket-probe capture -i eth0 -w - | wireshark -k -i -
  picket-probe capture -i eth0 --flows 10 -o ndjson

The filter is in the language of pcap-filter(7). Headers only are kept unless --full is given. What the probe itself sends to
measure, what answers that, and its connection to the controller are left out unless --with-own is given; the filter that
comes of it is shown at the start. Connections of connect scans and service detection cannot be told from others.

Without -w each packet is a line, as many per second as --lines permits; the others are counted. Ctrl-C ends a capture in
order. At the end all counters are told: frames that passed the interface, packets that passed the filter, drops of the
kernel and of the interface, packets written, and packets lost on the way to the disk.

Exit status: 0 ended by Ctrl-C or a limit, 1 failure, 2 wrong usage, 3 ended early: the disk is full, the interface is gone.";

/// How packets and flows are written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CaptureOutput {
    /// For people: a line for each packet or flow; the counters go to standard error.
    Table,
    /// For programs: one JSON object for each packet or flow, then the counters.
    Ndjson,
}

/// A number of bytes: `500k`, `100MB`, `1GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_bytes(text).map(Bytes).ok_or_else(|| format!("`{text}` is no number of bytes: write for example 1500, 500kB, 100MB or 1GiB"))
    }
}

/// Captures packets: into files, as lines, or counted by flows.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = EXAMPLES)]
pub struct CaptureArgs {
    /// Which packets, as in pcap-filter(7) [default: all]
    #[arg(value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Interface, or `any` [default: the configured one, else that of the default route]
    #[arg(short, long, value_name = "IF")]
    pub interface: Option<String>,
    /// Write pcapng to a file, or to standard output with -
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// Continue the file where it is there already: a packet that a crash has cut off at its end is removed, and a new section begins
    #[arg(long, requires = "write", conflicts_with_all = ["rotate_size", "rotate_seconds", "rotate_daily"])]
    pub append: bool,
    /// Bytes of each packet that are kept [default: 128, which holds the headers]
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(14..=i64::from(WHOLE)))]
    pub snap_length: Option<u32>,
    /// Keep packets as a whole
    #[arg(long, conflicts_with = "snap_length")]
    pub full: bool,
    /// End after so many packets
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub packets: Option<u64>,
    /// End before all files together have more bytes
    #[arg(long, value_name = "SIZE", requires = "write")]
    pub bytes: Option<Bytes>,
    /// End after so many seconds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
    /// Begin a new file before this one has more bytes: FILE-00001.EXT and so on
    #[arg(long, value_name = "SIZE", requires = "write")]
    pub rotate_size: Option<Bytes>,
    /// Begin a new file after so many seconds
    #[arg(long, value_name = "N", requires = "write", value_parser = clap::value_parser!(u64).range(1..))]
    pub rotate_seconds: Option<u64>,
    /// Begin a new file at midnight, local time
    #[arg(long, requires = "write")]
    pub rotate_daily: bool,
    /// Keep the newest files of a rotation only; those of earlier runs under the same name count
    #[arg(long, value_name = "N", requires = "write", value_parser = clap::value_parser!(u32).range(1..))]
    pub files: Option<u32>,
    /// Keep a ring of packets in this directory, to be asked afterwards by `picket-probe ring ask`
    #[arg(long, value_name = "DIR", requires = "disk", conflicts_with_all = ["write", "append", "rotate_size", "rotate_seconds", "rotate_daily"])]
    pub ring: Option<PathBuf>,
    /// What the ring takes of the disk at most: the oldest packets go first
    #[arg(long, value_name = "SIZE", requires = "ring")]
    pub disk: Option<Bytes>,
    /// What is older goes from the ring, for example 24h
    #[arg(long, value_name = "AGE", requires = "ring", value_parser = age)]
    pub keep: Option<Duration>,
    /// End when the files' file system has less free; a ring first removes what is oldest
    #[arg(long, value_name = "SIZE", default_value = "100MB")]
    pub keep_free: Bytes,
    /// The kernel's buffer
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    pub buffer: Bytes,
    /// See only what is sent to this box, to groups and to all
    #[arg(long)]
    pub no_promiscuous: bool,
    /// Capture the probe's own measurements and its connection to the controller as well
    #[arg(long)]
    pub with_own: bool,
    /// Lines per second at most; with -w FILE none are shown unless this is given
    #[arg(long, value_name = "N")]
    pub lines: Option<u32>,
    /// Tell flows every so many seconds instead of packets: addresses, ports, packets, bytes, TCP flags, round trip
    #[arg(long, value_name = "SECONDS", conflicts_with = "lines", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub flows: Option<u64>,
    /// Flows that are remembered at most; the most idle are told early beyond that
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub most_flows: u32,
    /// How packets and flows are written
    #[arg(short, long, value_enum, default_value_t = CaptureOutput::Table)]
    pub output: CaptureOutput,
    /// Say what would be captured and by which filter, and capture nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Configuration with the interface and the probe's identity [default: /etc/picket/probe.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The shortest age: segments are whole minutes' work.
const LEAST_AGE: Duration = Duration::from_secs(60);

fn age(text: &str) -> Result<Duration, String> {
    let age = parse_duration(text).map_err(|error| error.to_string())?;
    (age >= LEAST_AGE).then_some(age).ok_or_else(|| format!("`{text}` is too short: a ring keeps packets for 1m at least"))
}

impl CaptureArgs {
    /// The ring that was asked for.
    pub(super) fn ring(&self) -> Option<(&Path, Options)> {
        let (dir, budget) = (self.ring.as_deref()?, self.disk?.0);
        Some((dir, Options { budget, keep: self.keep, keep_free: self.keep_free.0 }))
    }

    /// Bytes of each packet that are kept.
    pub(super) fn kept(&self) -> u32 {
        if self.full { WHOLE } else { self.snap_length.unwrap_or(HEADERS) }
    }

    /// Whether standard output takes the file.
    pub(super) fn pipes(&self) -> bool {
        self.write.as_deref().is_some_and(|path| path.as_os_str() == "-")
    }

    /// The filter as it was typed.
    pub(super) fn asked(&self) -> String {
        self.filter.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        let read = |text: &str| text.parse::<Bytes>().map(|bytes| bytes.0);
        assert_eq!(["1500", "500k", "100MB", "1GiB"].map(read), [Ok(1500), Ok(500_000), Ok(100_000_000), Ok(1 << 30)]);
        for wrong in ["", "MB", "1.5MB", "-1", "10 MB", "1TBit", "99999999999GB"] {
            assert!(read(wrong).unwrap_err().starts_with(&format!("`{wrong}` is no number of bytes")));
        }
    }
}
