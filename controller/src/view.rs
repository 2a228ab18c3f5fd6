//! What people and their programs see: the JSON of the HTTP API, of the command line's `--json` and of the fleet topics.
//!
//! One type per thing, used by the service that fills it, the API that serves it and the command line that reads it.
//! Fields are only ever added. Times are RFC 3339 text in UTC; durations carry their unit in the field's name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use picket_wire::capture::CaptureCounts;
use picket_wire::event::{LeasePace, PacingReport, Shaper, Slowdown};
use picket_wire::host::SeenBy;
use picket_wire::ids::{JobId, Label, ProbeId, Role, SiteName};
use picket_wire::job::{Mode, Priority, Selection, ServiceOptions, Technique, Transport};
use picket_wire::result::Coverage;
use picket_wire::trace::{Graph, Hop, Method, PathEnd, PathMtu, WaysOptions};
use serde::{Deserialize, Serialize};

/// A request for a job: the body of `POST /v1/jobs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// Targets as people type them: addresses, networks, octet patterns, ranges, and names (all addresses of a name are taken). For
    /// `link`: which addresses of the probes' links are wanted; all where none is named. For `capture`: none.
    #[serde(default)]
    pub targets: Vec<String>,
    /// Targets to leave out, in the same forms.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Ports such as `22,80,8000-8100,http*`; required for techniques that work on ports, refused for others. A job works on ports
    /// of one transport protocol, that of its technique.
    #[serde(default)]
    pub ports: Option<String>,
    /// What is sent.
    pub technique: Technique,
    /// How often a silent target is asked in all; 2 where absent.
    #[serde(default)]
    pub attempts: Option<u8>,
    /// Whether probes share the work (`split`) or each does all of it (`each`); `split` where absent.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// Packets per second for each probe, such as `5kpps`.
    #[serde(default)]
    pub rate: Option<String>,
    /// Bits per second of layer-2 frames for each probe, such as `20Mbit`.
    #[serde(default)]
    pub bit_rate: Option<String>,
    /// Packets per second of each probe towards any one address, such as `20pps`.
    #[serde(default)]
    pub per_address: Option<String>,
    /// Packets per second of each probe towards any one network, with its size: `100pps/24`, or with that of IPv6 networks
    /// `100pps/24,48`.
    #[serde(default)]
    pub per_network: Option<String>,
    /// For `discover`: how hosts are asked, such as `echo`, `timestamp`, `syn:443`, `ack:80`, `udp:53`, `sctp:36412`; a choice of
    /// the program's where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_probes: Vec<String>,
    /// Ask open ports what serves there.
    #[serde(default)]
    pub services: Option<ServiceOptions>,
    /// For `trace`: how; what is usual where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceRequest>,
    /// For `capture`: what; what is usual where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureRequest>,
    /// `interactive` or `bulk`; chosen by size where absent.
    #[serde(default)]
    pub priority: Option<Priority>,
    /// Which probes may take part.
    #[serde(default)]
    pub select: Selection,
    /// The job is stopped after so many seconds.
    #[serde(default)]
    pub deadline_seconds: Option<u64>,
    /// A few words for people.
    #[serde(default)]
    pub name: Option<String>,
    /// Plan and judge only; nothing is stored or sent.
    #[serde(default)]
    pub dry_run: bool,
}

/// What is asked of the rings of probes. What is absent demands nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RingRequest {
    /// Not before this moment, as RFC 3339 has it; the ring's beginning where absent.
    pub from: Option<String>,
    /// Before this moment; the ring's end where absent.
    pub to: Option<String>,
    /// Hosts, one of which is source or destination.
    pub hosts: Vec<IpAddr>,
    /// Ports, one of which is source or destination port.
    pub ports: Vec<u16>,
}

/// What is captured. What is absent is as usual.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaptureRequest {
    /// Ask what was captured before, into the rings of the probes, instead of capturing.
    pub ring: Option<RingRequest>,
    /// The interface of each probe, or `any`; the one that it measures on where absent.
    pub interface: Option<String>,
    /// Which packets, in the language of pcap-filter(7); all where absent.
    pub filter: Option<String>,
    /// Bytes of each packet that are kept, 14 to 262144; 128, which hold the headers, where absent. More needs leave on both sides.
    pub snap_length: Option<u32>,
    /// Without packets for others.
    pub no_promiscuous: bool,
    /// With the probe's own measurements and its connection to the controller.
    pub with_own: bool,
    /// After so many packets it ends.
    pub packets: Option<u64>,
    /// Before its file has more bytes it ends, 4096 to 2^40; 64 MiB where absent.
    pub bytes: Option<u64>,
    /// After so many seconds it ends, up to 604800 (a week); 300 where absent.
    pub seconds: Option<u32>,
}

/// How far a capture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureState {
    /// Packets may still come.
    Running,
    /// It is over, and bytes of it are on their way.
    Arriving,
    /// All of it is here.
    Whole,
    /// Its bytes were removed.
    Removed,
}

/// A capture: a row of `GET /v1/captures`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureView {
    /// The job.
    pub job: JobId,
    /// The number of its lease: a probe that tries again has another.
    pub lease: u32,
    /// The probe.
    pub probe: ProbeId,
    /// Its site.
    pub site: SiteName,
    /// How far it is.
    pub state: CaptureState,
    /// Bytes of the file that are here: as many as can be downloaded.
    pub stored: u64,
    /// Bytes of the file, once it is over.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// SHA-256 of the file, once it is over.
    #[serde(default)]
    pub sha256: Option<String>,
    /// When it began, once it is over.
    #[serde(default)]
    pub began: Option<String>,
    /// When it ended.
    #[serde(default)]
    pub ended: Option<String>,
    /// Why it ended: `asked`, `packets`, `bytes`, `time`, `disk`, `interface`, `interrupted`; `answered` by a ring.
    #[serde(default)]
    pub end: Option<String>,
    /// What the probe says of that.
    #[serde(default)]
    pub reason: Option<String>,
    /// The interface.
    #[serde(default)]
    pub interface: Option<String>,
    /// The filter as it was installed, with what keeps the probe's own traffic out.
    #[serde(default)]
    pub filter: Option<String>,
    /// How many sections the file has: one more than the capture was interrupted.
    #[serde(default)]
    pub sections: Option<u32>,
    /// What was counted in the last of its sections.
    #[serde(default)]
    pub counts: Option<CaptureCounts>,
    /// When bytes of it came last.
    pub last: String,
    /// When its bytes were removed.
    #[serde(default)]
    pub removed: Option<String>,
    /// By whom, or why.
    #[serde(default)]
    pub remover: Option<String>,
    /// Who has downloaded it, the latest first; of `GET /v1/captures/{job}/{lease}` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downloads: Option<Vec<DownloadView>>,
}

/// Somebody has downloaded a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownloadView {
    /// When.
    pub at: String,
    /// Whose token.
    pub actor: String,
    /// From which byte on.
    pub from: u64,
}

/// How paths are traced. What is absent is as usual.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceRequest {
    /// `icmp`, `udp` or `tcp`; `icmp` where absent, `udp` for all ways, since many routers take echo requests for one flow.
    pub method: Option<Method>,
    /// The port that is asked; 33434 for `udp` and 80 for `tcp` where absent.
    pub port: Option<u16>,
    /// Probes for each hop that answers, 1 to 16; 3 for up to 16 destinations, 1 for more where absent.
    pub queries: Option<u8>,
    /// The first hop that is asked; 1 where absent.
    pub first_ttl: Option<u8>,
    /// The last hop that is asked, up to 64; 30 where absent.
    pub max_ttl: Option<u8>,
    /// Silent hops in a row that end a path; 5 where absent.
    pub gap: Option<u8>,
    /// Type of service or traffic class; 0 where absent.
    pub tos: Option<u8>,
    /// Bytes behind the ICMP or UDP header; 12 where absent.
    pub payload: Option<u16>,
    /// Another flow: the number is added to the source port.
    pub flow: Option<u16>,
    /// Ask every hop of every path. More than 16 destinations, asked once each, otherwise take the first hops from each other.
    pub all_hops: bool,
    /// Look for all ways between which load is spread by flow.
    pub ways: Option<WaysOptions>,
    /// Find the largest packet that arrives unbroken, up to so many bytes, 68 to 1500; by `icmp` or `udp`, of one way.
    pub mtu: Option<u16>,
}

/// A path that was traced: a row of `GET /v1/paths`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRow {
    /// The site in which the address means something.
    pub site: SiteName,
    /// The probe from which it leads.
    pub probe: ProbeId,
    /// The job.
    pub job: JobId,
    /// The destination.
    pub dst: IpAddr,
    /// What packets looked like to routers, such as `icmp` or `udp/33434+7`; only paths of the same flow can be compared.
    pub flow: String,
    /// How it was asked.
    pub asked: PathAsked,
    /// The probe's address that packets were sent from.
    #[serde(default)]
    pub source: Option<IpAddr>,
    /// When its first packet was sent.
    pub began: String,
    /// When it was over.
    pub ended: String,
    /// How it ended: `reached`, `unreachable`, `loop`, `silent`, `too-far`, `stopped`; or `no-route` or `refused` (by policy), where nothing could be sent
    /// and an older path is known.
    pub end: PathEnd,
    /// Packets that were sent for it.
    pub sent: u32,
    /// The hops by TTL, silent ones at the end left out; empty where all ways were looked for.
    pub hops: Vec<Hop>,
    /// All ways, where they were looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ways: Option<Graph>,
    /// How large a packet may be that arrives, where that was asked and found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<PathMtu>,
    /// What is new in it, where that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<PathChange>,
    /// Who is behind the addresses on it, where that was asked (`names=true`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<PathNames>,
}

/// Who is behind the addresses on a path, as far as the controller found out when it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PathNames {
    /// Those of which something is known.
    pub addrs: BTreeMap<IpAddr, AddrNames>,
    /// What could not be found out, and why; about all paths of the page.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<String>,
}

/// Who is behind an address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AddrNames {
    /// Its names by reverse DNS, four at most. Bytes that are no letters, digits, `-` or `_` are written as `\\` and three digits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Who announces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<OriginView>,
}

/// An autonomous system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginView {
    /// Its number.
    pub asn: u32,
    /// Its country, two letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    /// What the controller's table calls it.
    pub description: String,
}

/// What of a path is new against what is known of its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathChange {
    /// When what is known was accepted, or first seen where nobody has accepted anything.
    pub since: String,
    /// Who accepted it; absent where the first path that was seen is taken.
    pub accepted_by: Option<String>,
    /// Hops at which somebody else answered than was known there. One of several known ones is no change, and neither is silence.
    pub hops: Vec<HopChange>,
    /// The destination's distance, where it is none of those that are known.
    pub distance: Option<u8>,
    /// Whether the destination was reached before and not now (`lost`), or the other way round (`gained`).
    pub reached: Option<Reached>,
}

/// A hop at which somebody new answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopChange {
    /// Its distance.
    pub ttl: u8,
    /// Who was known there.
    pub known: BTreeSet<IpAddr>,
    /// Who answered now and was not known there.
    pub new: BTreeSet<IpAddr>,
}

/// How reaching the destination has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reached {
    /// It was reached before, and not now.
    Lost,
    /// It was not reached before, and is now.
    Gained,
}

/// Which ways are accepted as they are now: the body of `POST /v1/paths/accept`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptPaths {
    /// To destinations in this network, such as `198.18.9.2` or `198.18.0.0/16`.
    pub addr: String,
    /// Only in this site.
    #[serde(default)]
    pub site: Option<SiteName>,
    /// Only by this probe.
    #[serde(default)]
    pub probe: Option<ProbeId>,
    /// Keep what was known as well: the latest path is one more alternative.
    #[serde(default)]
    pub add: bool,
}

/// The answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathsAccepted {
    /// Ways (of a probe, a destination and a flow) that were accepted.
    pub accepted: u64,
}

/// How a path was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathAsked {
    /// `icmp`, `udp` or `tcp`.
    pub method: Method,
    /// The port that was asked; absent for `icmp`.
    pub port: Option<u16>,
    /// The variation of the flow.
    pub flow: u16,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Bytes behind the ICMP or UDP header.
    pub payload: u16,
    /// The first TTL.
    pub first_ttl: u8,
    /// The last TTL.
    pub max_ttl: u8,
    /// Silent hops in a row that end a path.
    pub gap: u8,
    /// Packets that a silent hop gets.
    pub attempts: u8,
}

/// What a job would do, or does: answered to submissions and dry runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Addresses in the space.
    pub addresses: u64,
    /// Targets: addresses times ports.
    pub targets: u64,
    /// Targets taken out by exclusions.
    pub excluded: u64,
    /// Targets that the fleet's policy refuses; they are counted as refused in the coverage.
    pub refused_by_policy: u64,
    /// An example of a refusal: the address and the verdict with its rule.
    pub refusal_example: Option<String>,
    /// What the fleet's policy says of the addresses, each rule with how many it decides.
    #[serde(default)]
    pub verdicts: Vec<RuleVerdict>,
    /// Most packets that may be sent, over all probes. What open ports are asked about services comes on top.
    pub packets_at_most: u64,
    /// About how long the sending takes, in seconds, with the probes that are there now.
    pub seconds_about: Option<u64>,
    /// For the discovery of links: what each probe sends, in words. Such a job has one target for each probe, its link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// For a capture: what each probe captures, in words. Such a job has one target for each probe, its interface, and sends nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<String>,
    /// Probes that would take part.
    pub probes: Vec<ProbeId>,
    /// Probes that are selected and cannot, each with the reason.
    pub unfit: Vec<Unfit>,
    /// Names that were resolved, with the addresses taken.
    pub names: Vec<ResolvedName>,
}

/// What one rule decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleVerdict {
    /// The verdict with its rule.
    pub verdict: String,
    /// Whether it permits.
    pub allowed: bool,
    /// How many of the addresses it decides.
    pub addresses: u64,
}

/// A probe that cannot take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfit {
    /// The probe.
    pub probe: ProbeId,
    /// Why.
    pub reason: String,
}

/// A name and its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedName {
    /// As it was typed.
    pub name: String,
    /// All addresses.
    pub addresses: Vec<IpAddr>,
}

/// The answer to a submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// The job; absent for a dry run.
    pub job: Option<JobView>,
    /// What it will do.
    pub plan: Plan,
}

/// The life of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// No probe works on it yet.
    Pending,
    /// Probes work on it.
    Running,
    /// It was cancelled, and probes are still ending their part.
    Cancelling,
    /// All of it is accounted for.
    Done,
    /// It was cancelled; what was done is kept.
    Cancelled,
    /// It cannot be done, or its deadline passed before the end.
    Failed,
}

impl JobState {
    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, JobState::Done | JobState::Cancelled | JobState::Failed)
    }
}

/// A job as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// A few words for people.
    pub name: Option<String>,
    /// Its state.
    pub state: JobState,
    /// Why it is in that state, where there is something to say (no probe is fit, who cancelled it ...).
    pub reason: Option<String>,
    /// Targets and ports in a line, as submitted.
    pub summary: String,
    /// What is sent.
    pub technique: Technique,
    /// Whether probes share the work.
    pub mode: Mode,
    /// The rate that was asked for, of each probe, such as `5kpps, 20Mbit`; absent where none was.
    #[serde(default)]
    pub asked_rate: Option<String>,
    /// When it was submitted.
    pub created: String,
    /// When the first lease was granted.
    pub started: Option<String>,
    /// When it ended.
    pub ended: Option<String>,
    /// Targets to account for: the space, times the number of vantage points where each does all of it.
    pub total: u64,
    /// What is accounted for so far.
    pub coverage: Coverage,
    /// Targets asked so far, answers still awaited included.
    pub asked_so_far: u64,
    /// Targets per second over the last seconds.
    pub rate: f64,
    /// About how many seconds are left.
    pub seconds_left: Option<u64>,
    /// The part of each probe.
    pub probes: Vec<JobProbe>,
    /// Rises with every change; pass it to wait for the next one.
    pub version: u64,
}

// Rates are shown and compared by people only; no NaN is ever stored.
impl Eq for JobView {}

/// The part of one probe in a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobProbe {
    /// The probe.
    pub probe: ProbeId,
    /// What is accounted for by it.
    pub coverage: Coverage,
    /// Leases it holds now.
    pub leases: u32,
    /// The limit of the interface it sends on, such as `5kpps`, or the rate asked for where that is lower.
    pub limit: String,
    /// What it is granted: the rate asked for, clipped to its interface's limits, such as `5kpps, 20Mbit`. Absent where the probe has
    /// not told them.
    #[serde(default)]
    pub granted: Option<String>,
    /// Whether that is less than what was asked for.
    #[serde(default)]
    pub clipped: bool,
}

/// Where a probe stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeState {
    /// A token was made; no box has used it.
    Invited,
    /// Enrolled, never seen since.
    Enrolled,
    /// Connected and idle.
    Online,
    /// Connected and working.
    Busy,
    /// Connected, but heartbeats are late.
    Late,
    /// Not connected.
    Offline,
    /// Its certificate is revoked.
    Revoked,
}

/// A probe as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeView {
    /// Its id.
    pub id: ProbeId,
    /// Its state.
    pub state: ProbeState,
    /// Why it is in that state, in words.
    pub reason: String,
    /// Since when.
    pub since: String,
    /// The site it stands in.
    pub site: SiteName,
    /// Its labels.
    pub labels: Vec<Label>,
    /// The roles it holds.
    pub roles: Vec<Role>,
    /// How it is connected (`mqtt`), where it is.
    pub link: Option<String>,
    /// When it was last heard.
    pub last_seen: Option<String>,
    /// Its program's version.
    pub version: Option<String>,
    /// What it runs on.
    pub hardware: Option<String>,
    /// What its self-test found wanting, in words; empty where all is well.
    pub self_test: Vec<String>,
    /// The interface it measures on.
    pub interface: Option<String>,
    /// Its limits, such as `5kpps`.
    pub packet_limit: Option<String>,
    /// Such as `20Mbit`.
    pub bit_limit: Option<String>,
    /// How long its program has run.
    pub uptime_seconds: Option<u64>,
    /// Resident memory of its program.
    pub memory_kib: Option<u64>,
    /// Load of the box over one minute, in hundredths of a processor.
    pub load_percent: Option<u32>,
    /// Records that wait in its spool.
    pub spool_records: Option<u64>,
    /// Records that its spool could not keep.
    pub lost_records: Option<u64>,
    /// Frames it sent since its program started.
    pub sent_packets: Option<u64>,
    /// Commands it refused since its program started.
    pub refused_commands: Option<u64>,
    /// The jobs it works on.
    pub jobs: Vec<ProbeJob>,
    /// How fast it sends, and what holds it back, where it has said so.
    #[serde(default)]
    pub pacing: Option<PacingView>,
    /// When its certificate ends.
    pub certificate_expires: Option<String>,
}

/// How fast a probe sends, and what holds it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacingView {
    /// What the interface sends at most at present, such as `5kpps, 20Mbit`.
    pub current: String,
    /// Why that is less than its limits, where it is.
    pub slowed: Option<String>,
    /// The leases that run.
    pub leases: Vec<LeasePacingView>,
    /// The kernel's shaper: `off`, `absent` or `holds`.
    pub shaper: String,
    /// Why there is no shaper.
    pub shaper_reason: Option<String>,
    /// Packets that the shaper let pass.
    pub shaper_packets: Option<u64>,
    /// Their bytes.
    pub shaper_bytes: Option<u64>,
    /// Packets that it had no room for.
    pub shaper_drops: Option<u64>,
    /// How often it made a packet wait.
    pub shaper_overlimits: Option<u64>,
}

/// How fast one lease is worked on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasePacingView {
    /// Its job.
    pub job: JobId,
    /// The rate that the job asked for.
    pub asked: String,
    /// That, clipped to the interface's.
    pub granted: String,
    /// What is sent at most at present.
    pub current: String,
    /// Why that is less than granted, where it is.
    pub slowed: Option<String>,
}

impl From<&PacingReport> for PacingView {
    fn from(report: &PacingReport) -> Self {
        let slowed = |why: Option<Slowdown>| why.map(|why| why.as_str().to_owned());
        let lease = |lease: &LeasePace| LeasePacingView {
            job: lease.lease.job,
            asked: lease.pace.asked.to_string(),
            granted: lease.pace.granted.to_string(),
            current: lease.pace.current.to_string(),
            slowed: slowed(lease.pace.slowed),
        };
        let (shaper, reason, counters) = match &report.shaper {
            Shaper::Off => ("off", None, None),
            Shaper::Absent(why) => ("absent", Some(why.clone()), None),
            Shaper::Holds(counters) => ("holds", None, Some(*counters)),
        };
        Self {
            current: report.interface.current.to_string(),
            slowed: slowed(report.interface.slowed),
            leases: report.leases.iter().map(lease).collect(),
            shaper: shaper.to_owned(),
            shaper_reason: reason,
            shaper_packets: counters.map(|counters| counters.packets),
            shaper_bytes: counters.map(|counters| counters.bytes),
            shaper_drops: counters.map(|counters| counters.drops),
            shaper_overlimits: counters.map(|counters| counters.overlimits),
        }
    }
}

/// One job of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeJob {
    /// The job.
    pub job: JobId,
    /// How much of its leases is asked, 0 to 100.
    pub percent: u8,
}

/// A request for a new probe: the body of `POST /v1/probes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRequest {
    /// Its id.
    pub id: ProbeId,
    /// The site it stands in; its own id where absent.
    #[serde(default)]
    pub site: Option<SiteName>,
    /// Its labels.
    #[serde(default)]
    pub labels: Vec<Label>,
    /// Its roles; `scan` where empty.
    #[serde(default)]
    pub roles: Vec<Role>,
    /// How long the token is good for; 24 hours where absent.
    #[serde(default)]
    pub token_hours: Option<u32>,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeInvited {
    /// The probe.
    pub probe: ProbeView,
    /// The one-time enrolment token.
    pub token: String,
    /// When the token ends.
    pub expires: String,
}

/// One thing found: a row of results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultRow {
    /// The site in which the address means something.
    pub site: SiteName,
    /// The probe that found it.
    pub probe: ProbeId,
    /// The job.
    pub job: JobId,
    /// The address.
    pub addr: IpAddr,
    /// The port, for port scans.
    pub port: Option<u16>,
    /// The port's protocol: `tcp`, `udp` or `sctp`.
    #[serde(default)]
    pub protocol: Option<Transport>,
    /// `up`, `open`, `closed`, `filtered` or `unfiltered`.
    pub state: String,
    /// What says so: `echo-reply`, `trace`, `syn-ack`, `reset`, `connected`, `refused`, or the ICMP type and code and who sent it.
    pub reason: String,
    /// Round trip in microseconds.
    pub rtt_us: u64,
    /// TTL or hop limit of the answer; absent where the operating system hides it.
    pub ttl: Option<u8>,
    /// When its batch was measured.
    pub seen: String,
    /// What serves on an open port, where that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceView>,
}

/// What serves on a port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceView {
    /// What asking came to: `identified`, `unidentified`, `silent`, `spared` (a fragile port: shaken hands only), `lost` (no
    /// connection came about) or `refused` (by policy).
    pub outcome: String,
    /// The protocol, such as `ssh` or `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether it is spoken inside TLS.
    #[serde(default)]
    pub tls: bool,
    /// Such as `OpenSSH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Such as `9.2p1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// More that the product says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<String>,
    /// The operating system, where the service tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// The name that the host gives itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The kind of device, where the service tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// CPE names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpes: Vec<String>,
    /// Everything else that was learnt, as names and values in the order found; a name may come more than once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<(String, String)>,
    /// The first bytes that it said; what is not printable ASCII is escaped as in `\r\n` and `\xff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banner: Option<String>,
    /// Why there was no connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When it was asked.
    pub asked: String,
}

/// A host seen on a probe's own link: a row of `GET /v1/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRow {
    /// The site in which the address means something.
    pub site: SiteName,
    /// The probe on whose link it is.
    pub probe: ProbeId,
    /// The job that asked.
    pub job: JobId,
    /// The address.
    pub addr: IpAddr,
    /// Its hardware address, where it is known.
    pub mac: Option<String>,
    /// How it was learnt: `arp`, `proxy-arp`, `neighbour`, `all-nodes`, `router-advertisement`, `multicast` or `guessed`.
    pub how: SeenBy,
    /// When it was seen first.
    pub first_seen: String,
    /// When it was seen last.
    pub last_seen: String,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Pass it as `cursor` for the next page; absent on the last one.
    pub next: Option<String>,
}

/// An error as RFC 9457 has it (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A short name of the kind of problem, such as `invalid-target`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// This very problem: which input, what is wrong, what would be right.
    pub detail: String,
}

/// The fleet in a few numbers: `fleet/summary`, and `GET /v1/fleet`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FleetSummary {
    /// Probes that are enrolled and not revoked.
    pub probes: u32,
    /// Of these: connected and idle.
    pub online: u32,
    /// Connected and working.
    pub busy: u32,
    /// Connected, heartbeats late.
    pub late: u32,
    /// Not connected.
    pub offline: u32,
    /// Jobs that are not over.
    pub jobs_running: u32,
    /// The controller's version.
    pub version: String,
    /// When this was true.
    pub time: String,
}

/// What a token allows. Each allows all that the ones before it do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// See everything.
    Read,
    /// Submit and cancel jobs.
    Operate,
    /// Add and revoke probes, tokens and users.
    Admin,
}

impl Scope {
    /// The text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Operate => "operate",
            Scope::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Scope {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Scope::Read, Scope::Operate, Scope::Admin].into_iter().find(|scope| scope.as_str() == text);
        known.ok_or_else(|| format!("`{text}` is not a scope: use read, operate or admin"))
    }
}

/// An API token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// Its name; unique.
    pub name: String,
    /// What it allows.
    pub scope: Scope,
    /// When it was made.
    pub created: String,
    /// When it ends by itself.
    pub expires: Option<String>,
}

/// A new API token; its text is shown only once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMade {
    /// The token.
    pub token: String,
    /// What is known of it from now on.
    pub view: TokenView,
}

/// A user of the dashboards' listener without the password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DashboardUser {
    /// The user name.
    pub name: String,
    /// When it was made.
    pub created: String,
}

/// A new user of the dashboards' listener; the password is shown only once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DashboardUserMade {
    /// The user name.
    pub name: String,
    /// The password.
    pub password: String,
}

/// What a rebuild of the projections did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildCounts {
    /// Raw records read.
    pub records: u64,
    /// Of these: not believed, and why is stored with them.
    pub rejected: u64,
    /// Batches that count, in pieces.
    pub batches: u64,
    /// Single answers.
    pub observations: u64,
    /// Hosts.
    pub hosts: u64,
    /// Latest answers of hosts and ports.
    pub ports: u64,
    /// Ports whose service was asked for.
    #[serde(default)]
    pub services: u64,
    /// Hosts seen on links.
    #[serde(default)]
    pub link_hosts: u64,
    /// Paths.
    #[serde(default)]
    pub paths: u64,
}

/// Whether the controller is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether all is well.
    pub ok: bool,
    /// The controller's version.
    pub version: String,
    /// What is wrong with the database, if anything.
    pub database: Option<String>,
    /// Whether the hub is connected to the broker.
    pub broker_connected: bool,
    /// How long the service has run.
    pub uptime_seconds: u64,
}
