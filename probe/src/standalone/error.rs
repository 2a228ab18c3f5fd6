//! Why a run does not come about, or breaks off.

use std::io;
use std::net::IpAddr;

use picket_wire::job::Technique;
use picket_wire::space::SpaceError;

use super::output::file::OutputError;
use super::resume::ResumeError;
use super::targets::TargetError;
use crate::config::ConfigError;
use crate::lock::LockError;
use crate::net::drive::DriveGone;
use crate::net::netlink::NetlinkError;
use crate::scan::connect::ConnectError;
use crate::scan::spec::SpecError;
use crate::station::StationError;

/// Why a run did not come about, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    /// A port scan without ports.
    #[error("name the ports to scan, for example `-p 22,80,443` or `-p 1-1024`; to find hosts only, use `picket-probe discover`")]
    NoPorts,
    /// Wrong ports.
    #[error(transparent)]
    Ports(#[from] picket_wire::port::PortError),
    /// Two techniques for one protocol.
    #[error(
        "techniques `{}` and `{}` both ask {} ports: name one of them",
        .first.as_str(), .second.as_str(), .first.transport().map_or("no", picket_wire::job::Transport::as_str)
    )]
    OneTechnique {
        /// The one.
        first: Technique,
        /// The other.
        second: Technique,
    },
    /// A technique for hosts beside others.
    #[error("technique `{}` asks hosts and goes alone: leave the others out", .0.as_str())]
    Techniques(Technique),
    /// Two formats for one stream.
    #[error("only one format can go to standard output: name files for the others, such as --output-file nmap-xml=scan.xml")]
    TwoOnStdout,
    /// Two formats for one file.
    #[error("two formats cannot go into one file, `{0}`")]
    SameFile(String),
    /// Flags beside `--resume FILE` without targets.
    #[error("a run is resumed as it was begun: use `--resume FILE` with no other options than outputs, --stats-every and --config")]
    ResumeAlone,
    /// A link that has no hardware addresses.
    #[error("interface `{0}` has no neighbours: its link has no hardware addresses; name an Ethernet interface with --interface")]
    NoLink(String),
    /// A format that has no place for what a link tells.
    #[error("a link is written as a table or as NDJSON to standard output: use `-o table` or `-o ndjson` and no files")]
    LinkOutput,
    /// A graph in a form for paths.
    #[error("--multipath makes a graph, and `{0}` can only express paths: use `-o table` or `-o ndjson`, or leave --multipath out")]
    GraphOutput(String),
    /// A form for one path of each destination, and many.
    #[error("`{0}` has one path for each destination, and --continuous makes many: use `-o table`, `-o ndjson` or `-o atlas`")]
    ContinuousOutput(String),
    /// Too much to keep statistics of.
    #[error("{0} destinations are too many to be traced again and again: at most {1} are possible")]
    ContinuousTargets(u64, u64),
    /// No targets.
    #[error("name targets, for example 192.168.1.0/24 or fd00::/64; `picket-probe discover --link` needs none")]
    NoTargets,
    /// No destinations.
    #[error("name destinations, for example 198.51.100.7 or www.example.org")]
    NoDestination,
    /// The file's run was begun by another command.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// Wrong targets.
    #[error(transparent)]
    Targets(#[from] TargetError),
    /// Targets that make no space.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// An impossible combination of options.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// An impossible trace.
    #[error(transparent)]
    Trace(#[from] crate::trace::spec::SpecError),
    /// Wrong configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Every target is forbidden.
    #[error(
        "the site's policy permits none of the targets; {addr}: {verdict}. \
         Change `policy.allow` and `policy.deny` in the configuration, or PICKET_POLICY__ALLOW"
    )]
    Forbidden {
        /// One of them.
        addr: IpAddr,
        /// Its verdict.
        verdict: String,
    },
    /// Another probe runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel's tables cannot be read.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The interface cannot be used.
    #[error(transparent)]
    Station(#[from] StationError),
    /// No interface to listen to.
    #[cfg(feature = "libpcap")]
    #[error(transparent)]
    Tap(#[from] crate::tap::TapError),
    /// No permission for raw packets, and no other technique was allowed.
    #[error("{0}; `--technique connect` scans ports without privilege")]
    Unprivileged(StationError),
    /// The connect scan broke off.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The loop broke off.
    #[error(transparent)]
    Loop(#[from] DriveGone),
    /// Fingerprints of the user cannot be used.
    #[error(transparent)]
    Fingerprints(#[from] crate::service::recog::FingerprintError),
    /// A ring of files without a reason to begin the next one.
    #[error("--files keeps the newest files of a rotation: add --rotate-size, --rotate-seconds or --rotate-daily")]
    FilesAlone,
    /// Two things for standard output.
    #[error("`-w -` needs standard output for itself: leave out rotation, --lines, --flows and -o ndjson")]
    PipeAlone,
    /// Packets cannot be captured.
    #[cfg(feature = "libpcap")]
    #[error(transparent)]
    Capture(#[from] crate::capture::source::SourceError),
    /// No time.
    #[error("{0}")]
    Time(String),
    /// A time without any duration.
    #[error("--from {0} is not before --to {1}: no packet is between them")]
    NoTime(String, String),
    /// A ring cannot be kept.
    #[error(transparent)]
    Ring(#[from] crate::capture::ring::RingError),
    /// A ring cannot be asked.
    #[error(transparent)]
    Ask(#[from] crate::capture::ring::AskError),
    /// Packets cannot be kept.
    #[error(transparent)]
    Files(#[from] crate::capture::files::FileError),
    /// Results cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A result that contradicts itself.
    #[error(transparent)]
    Batch(#[from] picket_wire::result::BatchError),
    /// The system did not give something.
    #[error("{operation}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl StandaloneError {
    /// 2 for what was typed wrong, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoPorts
            | Self::Ports(_)
            | Self::OneTechnique { .. }
            | Self::Techniques(_)
            | Self::TwoOnStdout
            | Self::SameFile(_)
            | Self::ResumeAlone
            | Self::LinkOutput
            | Self::GraphOutput(_)
            | Self::ContinuousOutput(_)
            | Self::ContinuousTargets(..)
            | Self::NoTargets
            | Self::NoDestination
            | Self::Resume(ResumeError::Other { .. } | ResumeError::Missing(_))
            | Self::Targets(TargetError::Form { .. })
            | Self::Space(_)
            | Self::Spec(_)
            | Self::Trace(_)
            | Self::FilesAlone
            | Self::PipeAlone
            | Self::Time(_)
            | Self::NoTime(..)
            | Self::Ring(crate::capture::ring::RingError::Budget(_))
            | Self::Config(_) => 2,
            #[cfg(feature = "libpcap")]
            Self::Ask(crate::capture::ring::AskError::Filter(_)) => 2,
            #[cfg(feature = "libpcap")]
            Self::Capture(crate::capture::source::SourceError::Filter(_)) => 2,
            _ => 1,
        }
    }
}

/// Says what was being done.
pub(super) fn system(operation: &'static str) -> impl FnOnce(io::Error) -> StandaloneError {
    move |source| StandaloneError::System { operation, source }
}
