//! The command lines.
//!
//! Nmap's spellings are read too ([`nmap_spellings`]), where they mean the same here.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use picket_wire::job::{HostProbe, NetworkLimit, Technique};
use picket_wire::units::PacketsPerSecond;

pub use super::output::OutputArg;
pub use super::output::file::OutputFile;
use super::rates::RateArg;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TechniqueArg {
    /// TCP SYN by raw packets; needs CAP_NET_RAW.
    Syn,
    /// TCP connections by the operating system; needs no privilege, sends more packets per open port.
    Connect,
    /// `syn` where that is permitted, else `connect`.
    Auto,
    /// TCP ACK: not whether ports are open, but whether a filter stands before them.
    Ack,
    /// UDP with a payload that the port's usual service answers.
    Udp,
    /// SCTP INIT.
    Sctp,
    /// ICMP echo: hosts only, no ports.
    Echo,
    /// ICMP timestamp (IPv4): hosts only, no ports.
    Timestamp,
    /// ARP and neighbour solicitation on the own link: hosts only, no ports.
    Neighbour,
    /// Several ways one after the other until the host answers: hosts only, no ports.
    Discover,
}

impl TechniqueArg {
    /// The technique to begin with.
    pub(super) fn first(self) -> Technique {
        match self {
            TechniqueArg::Syn | TechniqueArg::Auto => Technique::Syn,
            TechniqueArg::Connect => Technique::Connect,
            TechniqueArg::Ack => Technique::Ack,
            TechniqueArg::Udp => Technique::Udp,
            TechniqueArg::Sctp => Technique::Sctp,
            TechniqueArg::Echo => Technique::Echo,
            TechniqueArg::Timestamp => Technique::Timestamp,
            TechniqueArg::Neighbour => Technique::Neighbour,
            TechniqueArg::Discover => Technique::Discover,
        }
    }
}

const SCAN_EXAMPLES: &str = "\
Examples:
  picket-probe scan 192.168.1.0/24 printer.lan fd00::10 -p 22,80,443,8000-8100 --rate 500pps
  picket-probe scan 192.168.1.0/24 -p T:22,80,U:53,161 --services --output-file nmap-xml=lan.xml
  picket-probe scan -iL targets.txt -p 443 --dry-run

Where more than one address is asked, hosts are looked for first, and only the ports of those that answer are
scanned, as nmap does and masscan does not. The ports of the others count as not reached (`host did not answer
discovery`), never as closed. -Pn asks every port of every address; with --technique connect it is always so.

The site's limits and policy apply (interface.packets, interface.bits, policy.allow and policy.deny in
/etc/picket/probe.toml, or PICKET_INTERFACE__PACKETS and so on): without any, 1000 packets per second and
private networks. Addresses are never looked up as names.

Of nmap's options these are understood: -sS -sT -sA -sU -sY -sn -sV -sL -Pn -p -iL -oX -n (always so); of masscan's
-oL and -oJ.

Exit status: 0 every target was dealt with, 1 failure, 2 wrong usage, 3 interrupted or incomplete.";

const DISCOVER_EXAMPLES: &str = "\
Example: picket-probe discover 192.168.1.0/24 fd00::/120 --exclude 192.168.1.1

The site's limits and policy apply, see `picket-probe scan --help`.

Exit status: 0 every target was dealt with, 1 failure, 2 wrong usage, 3 interrupted or incomplete.";

const SERVICES_EXAMPLES: &str = "\
Example: picket-probe services 192.168.1.0/24 -p 22,80,443,8443

The same as `picket-probe scan --services`: see `picket-probe scan --help`.

Exit status: 0 every target was dealt with, 1 failure, 2 wrong usage, 3 interrupted or incomplete.";

/// Scans ports.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = SCAN_EXAMPLES)]
pub struct ScanArgs {
    /// Ask what serves on open ports, while the scan still runs (-sV)
    #[arg(long)]
    pub services: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take it for a heading")]
    pub ports: PortArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take it for a heading")]
    pub common: CommonArgs,
}

/// Scans ports and asks what serves on the open ones.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = SERVICES_EXAMPLES)]
pub struct ServicesArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take it for a heading")]
    pub ports: PortArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take it for a heading")]
    pub common: CommonArgs,
}

/// Which ports, and how.
#[derive(Debug, Clone, PartialEq, Default, Args)]
pub struct PortArgs {
    /// Ports: lists, ranges, open ends and service names, such as 22,80,8000-8100,60000-,http*; after T:, U: and S: they are of
    /// TCP, UDP and SCTP
    #[arg(short, long, value_name = "PORTS", allow_hyphen_values = true)]
    pub ports: Option<String>,
    /// The N ports that are open most often in networks such as probes watch, instead of --ports
    #[arg(long, value_name = "N", conflicts_with = "ports")]
    pub top_ports: Option<usize>,
    /// What is sent, one for each protocol [default: syn; udp and sctp where -p has U: and S:]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub technique: Vec<TechniqueArg>,
    /// Ask the ports of every address, without looking for hosts first (-Pn)
    #[arg(long)]
    pub no_discovery: bool,
    /// Ask ports of fragile devices (printers, machine controllers) too, as far as services.ask_fragile permits
    #[arg(long)]
    pub ask_fragile: bool,
}

/// Finds hosts.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = DISCOVER_EXAMPLES)]
pub struct DiscoverArgs {
    /// The interface's own link: IPv4 neighbours by ARP, IPv6 hosts by asking all nodes, overhearing and guessing; no targets
    #[arg(long, conflicts_with_all = ["targets", "input_file", "resume", "technique", "host_probes", "list"])]
    pub link: bool,
    /// What is sent: echo, timestamp, neighbour, or discover for several ways one after the other
    #[arg(long, value_enum)]
    pub technique: Option<TechniqueArg>,
    /// With technique discover: what hosts are asked, in this order: echo, timestamp, syn:PORT, ack:PORT, udp:PORT, sctp:PORT
    #[arg(long, value_name = "PROBES", value_delimiter = ',')]
    pub host_probes: Vec<HostProbe>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take it for a heading")]
    pub common: CommonArgs,
}

/// What all commands understand.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct CommonArgs {
    /// Addresses, networks, ranges or names: 198.18.0.7, 198.18.0.0/24, 198.18.0.1-50, 2001:db8::/120, printer.lan;
    /// - for standard input
    #[arg(value_name = "TARGETS")]
    pub targets: Vec<String>,
    /// More targets from a file, one or several on a line, # for comments; - for standard input (-iL)
    #[arg(long, value_name = "FILE")]
    pub input_file: Vec<PathBuf>,
    /// Targets to leave out, in the same forms
    #[arg(long, value_name = "TARGETS")]
    pub exclude: Vec<String>,
    /// Targets to leave out, from a file
    #[arg(long, value_name = "FILE")]
    pub exclude_file: Vec<PathBuf>,
    /// Packets or bits per second with the unit, such as 500pps, 5kpps or 20mbit; never above the interface's limit
    #[arg(long, value_name = "RATE", value_delimiter = ',')]
    pub rate: Vec<RateArg>,
    /// Packets per second towards any one address, such as 50pps; the run's passes then follow one another
    #[arg(long, value_name = "RATE")]
    pub per_address: Option<PacketsPerSecond>,
    /// Packets per second towards any one network, such as 200pps/24, or 200pps/24,64 with the size of IPv6 networks
    #[arg(long, value_name = "RATE/PREFIX")]
    pub per_network: Option<NetworkLimit>,
    /// How often a silent target is asked in all, 1 to 10
    #[arg(long, value_name = "N", default_value_t = ATTEMPTS, value_parser = clap::value_parser!(u8).range(1..=10))]
    pub attempts: u8,
    /// Interface to send on [default: the configured one, else that of the route to the first target]
    #[arg(short, long, value_name = "IF")]
    pub interface: Option<String>,
    /// How results are written to standard output [default: table]
    #[arg(short, long, value_enum)]
    pub output: Option<OutputArg>,
    /// Results into a file as well, such as nmap-xml=scan.xml (-oX FILE); may be repeated
    #[arg(long, value_name = "FORMAT=FILE")]
    pub output_file: Vec<OutputFile>,
    /// List closed and filtered ports as well
    #[arg(long)]
    pub all: bool,
    /// Keep results in FILE while running; `--resume FILE` alone goes on where an interrupted run has stopped
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// Say what would be done, and send nothing. Names are resolved
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: as JSON
    #[arg(long, requires = "dry_run")]
    pub json: bool,
    /// List the addresses in their natural order, and send nothing (-sL)
    #[arg(long, conflicts_with = "dry_run")]
    pub list: bool,
    /// Where standard error is no terminal: a line on the progress so often
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub stats_every: Option<u32>,
    /// With services: fingerprints in the Recog schema from a directory (every *.xml in it) besides those that are built in
    #[arg(long, value_name = "DIR")]
    pub fingerprints: Option<PathBuf>,
    /// Configuration with the site's limits and policy [default: /etc/picket/probe.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl CommonArgs {
    /// Whether nothing is said of what to measure: only where results go, and what goes on.
    pub(super) fn says_nothing(&self) -> bool {
        let Self { targets, input_file, exclude, exclude_file, rate, attempts, interface, all, dry_run, list, .. } = self;
        let unlimited = self.per_address.is_none() && self.per_network.is_none();
        let lists_empty = targets.is_empty() && input_file.is_empty() && exclude.is_empty() && exclude_file.is_empty() && rate.is_empty();
        lists_empty && unlimited && *attempts == ATTEMPTS && interface.is_none() && !all && !dry_run && !list
    }

    /// Whether targets are named.
    pub(super) fn names_targets(&self) -> bool {
        !self.targets.is_empty() || !self.input_file.is_empty()
    }

    /// Whether outputs are named.
    pub(super) fn names_outputs(&self) -> bool {
        self.output.is_some() || !self.output_file.is_empty()
    }
}

/// How often a silent target is asked where nothing is said.
const ATTEMPTS: u8 = 2;

/// Nmap's options and ours, word for word.
const SPELLINGS: [(&str, &[&str]); 10] = [
    ("-sS", &["--technique", "syn"]),
    ("-sT", &["--technique", "connect"]),
    ("-sA", &["--technique", "ack"]),
    ("-sU", &["--technique", "udp"]),
    ("-sY", &["--technique", "sctp"]),
    ("-sV", &["--services"]),
    ("-sL", &["--list"]),
    ("-Pn", &["--no-discovery"]),
    ("-iL", &["--input-file"]),
    // Addresses are never looked up as names.
    ("-n", &[]),
];
/// Options of nmap and masscan that take a file, and the format that it gets.
const FILES: [(&str, &str); 3] = [("-oX", "nmap-xml="), ("-oL", "masscan-list="), ("-oJ", "masscan-json=")];

/// Writes nmap's and masscan's spellings of options in ours; everything else stays as it is. Only whole words are read so, and
/// only after the names of the commands that measure.
pub fn nmap_spellings(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let mut ours: Vec<OsString> = arguments.by_ref().take(2).collect();
    let Some(command) = ours.get(1).and_then(|command| command.to_str()).filter(|c| ["scan", "discover", "services"].contains(c)) else {
        ours.extend(arguments);
        return ours;
    };
    let discover = command == "discover";
    let mut hosts_only = false;
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().unwrap_or_default();
        if text == "--" {
            ours.push(argument);
            break;
        }
        if text == "-sn" {
            hosts_only = true;
        } else if let Some((_, words)) = SPELLINGS.iter().find(|(theirs, _)| *theirs == text) {
            ours.extend(words.iter().map(OsString::from));
        } else if let Some((_, format)) = FILES.iter().find(|(theirs, _)| *theirs == text) {
            let mut file = OsString::from(format);
            file.push(arguments.next().as_deref().unwrap_or(OsStr::new("")));
            ours.extend([OsString::from("--output-file"), file]);
        } else {
            ours.push(argument);
        }
    }
    if hosts_only && !discover {
        ours.splice(2..2, ["--technique", "discover"].map(OsString::from));
    }
    ours.extend(arguments);
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(typed: &str) -> String {
        let typed = typed.split_whitespace().map(OsString::from);
        nmap_spellings(typed).join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn spellings_of_nmap_and_masscan_become_ours() {
        for (typed, read) in [
            (
                "picket-probe scan -sS -sU -p 1 -Pn 198.18.0.1",
                "picket-probe scan --technique syn --technique udp -p 1 --no-discovery 198.18.0.1",
            ),
            ("picket-probe scan -sn 198.18.0.1", "picket-probe scan --technique discover 198.18.0.1"),
            ("picket-probe discover -sn -n 198.18.0.1", "picket-probe discover 198.18.0.1"),
            (
                "picket-probe scan -iL x -oX y.xml -oL -",
                "picket-probe scan --input-file x --output-file nmap-xml=y.xml --output-file masscan-list=-",
            ),
            ("picket-probe services x -sT -oJ", "picket-probe services x --technique connect --output-file masscan-json="),
            ("picket-probe scan -i eth0 -- -sS", "picket-probe scan -i eth0 -- -sS"),
            ("picket-probe run -sS", "picket-probe run -sS"),
            ("picket-probe", "picket-probe"),
        ] {
            assert_eq!(ours(typed), read);
        }
    }
}
