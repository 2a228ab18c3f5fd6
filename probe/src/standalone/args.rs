//! The command lines.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use picket_wire::job::Technique;
use picket_wire::units::{PacketsPerSecond, PortSet};

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TechniqueArg {
    /// TCP SYN by raw packets; needs CAP_NET_RAW.
    Syn,
    /// TCP connections by the operating system; needs no privilege, sends more packets per open port.
    Connect,
    /// ICMP echo: hosts only, no ports; needs CAP_NET_RAW.
    Echo,
    /// `syn` where that is permitted, else `connect`.
    Auto,
}

impl TechniqueArg {
    /// The technique to begin with.
    pub(super) fn first(self) -> Technique {
        match self {
            TechniqueArg::Syn | TechniqueArg::Auto => Technique::Syn,
            TechniqueArg::Connect => Technique::Connect,
            TechniqueArg::Echo => Technique::Echo,
        }
    }
}

/// How results are written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputArg {
    /// For people: one row per open port or live host, then the coverage.
    Table,
    /// For programs: one JSON object per line; every answer, then the coverage.
    Ndjson,
}

const SCAN_EXAMPLES: &str = "\
Example: picket-probe scan 192.168.1.0/24 printer.lan fd00::10 -p 22,80,443,8000-8100 --rate 500pps

The site's limits and policy apply (interface.packets, interface.bits, policy.allow and policy.deny in
/etc/picket/probe.toml, or PICKET_INTERFACE__PACKETS and so on): without any, 1000 packets per second and
private networks.

Exit status: 0 every target was dealt with, 1 failure, 2 wrong usage, 3 interrupted or incomplete.";

const DISCOVER_EXAMPLES: &str = "\
Example: picket-probe discover 192.168.1.0/24 fd00::/120 --exclude 192.168.1.1

The site's limits and policy apply, see `picket-probe scan --help`.

Exit status: 0 every target was dealt with, 1 failure, 2 wrong usage, 3 interrupted or incomplete.";

/// Scans ports.
#[derive(Debug, Clone, Args)]
#[command(after_help = SCAN_EXAMPLES)]
pub struct ScanArgs {
    /// Ports: lists, ranges and open ends, such as 22,80,8000-8100,60000-
    #[arg(short, long, value_name = "PORTS")]
    pub ports: Option<PortSet>,
    /// What is sent
    #[arg(long, value_enum, default_value = "syn")]
    pub technique: TechniqueArg,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take it for a heading")]
    pub common: CommonArgs,
}

/// Finds hosts by ICMP echo.
#[derive(Debug, Clone, Args)]
#[command(after_help = DISCOVER_EXAMPLES)]
pub struct DiscoverArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take it for a heading")]
    pub common: CommonArgs,
}

/// What both commands understand.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Addresses, networks, ranges or names: 198.18.0.7, 198.18.0.0/24, 198.18.0.1-50, 2001:db8::/120, printer.lan
    #[arg(required = true, value_name = "TARGETS")]
    pub targets: Vec<String>,
    /// Targets to leave out, in the same forms
    #[arg(long, value_name = "TARGETS")]
    pub exclude: Vec<String>,
    /// Packets per second with the unit, such as 500pps or 5kpps; never above the interface's limit
    #[arg(long, value_name = "RATE")]
    pub rate: Option<PacketsPerSecond>,
    /// How often a silent target is asked in all, 1 to 10
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=10))]
    pub attempts: u8,
    /// Interface to send on [default: the configured one, else that of the default route]
    #[arg(short, long, value_name = "IF")]
    pub interface: Option<String>,
    /// How results are written
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: OutputArg,
    /// In a table, list closed and filtered ports as well
    #[arg(long)]
    pub all: bool,
    /// Configuration with the site's limits and policy [default: /etc/picket/probe.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}
