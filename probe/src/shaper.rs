//! The second line: a shaper in the kernel that holds the sum of all marked packets on an interface, whoever sends them.
//!
//! Measuring sockets carry the firewall mark [`MARK`]. An HTB queueing discipline sends what carries it through one class of
//! limited rate, and everything else past it untouched. Its rate is [`ABOVE_PERCENT`] above the site's bit limit, and its burst
//! twice the pacer's, so it never acts while the pacer works. A class of HTB counts bytes alone; so every packet is made to count
//! at least `bits / packets` (a size table with a minimum), which holds the packet limit by the same clock. A mixture of short and
//! long packets is therefore held to at least half of what the two limits together would allow, never to more.
//!
//! What has no room waits in a short queue, and beyond it the sender is told (`ENOBUFS`), so nothing is lost silently. AF_PACKET
//! passes the discipline; AF_XDP bypasses it by design and is not used where the site demands the shaper.
//!
//! Another program as a second sender is held to the same sum when its packets carry the mark: by `SO_MARK`, or by a rule of the
//! firewall, such as `nft add rule inet lab out meta skuid scanner meta mark set 0x7069`.
//!
//! Installing needs CAP_NET_ADMIN, so it is a command of its own (`picket-probe shaper install`), run once by root at start; the
//! daemon only reads the counters. It speaks through `tc` of iproute2, which every distribution has and which builds size tables.
//!
//! **Invariant:** a root queueing discipline that somebody else has set is never replaced unasked; an installation that fails
//! half-way leaves nothing.

use std::process::{Command, ExitCode};

use clap::{Args, Subcommand};
use picket_wire::event::{Shaper, ShaperCounters};
use picket_wire::units::{BitsPerSecond, PacketsPerSecond};
use serde::Deserialize;

use crate::config::{InterfaceConfig, ShaperUse};

pub use crate::net::link::SHAPER_MARK as MARK;

/// How much above the site's limit the kernel's is, in percent.
pub const ABOVE_PERCENT: u64 = 5;

/// `pi` in ASCII, like the mark.
const ROOT: &str = "7069:";
const CLASS: &str = "7069:1";
const LEAF: &str = "706a:";
/// Longest frame that the size table tells apart; longer ones count in proportion.
const TABLE_MTU: u64 = 2_048;

/// Why there is no shaper.
#[derive(Debug, thiserror::Error)]
pub enum ShaperError {
    /// No `tc`.
    #[error("cannot run `tc`: install iproute2")]
    NoTc(#[source] std::io::Error),
    /// It said something that cannot be read.
    #[error("`tc` answered what cannot be read")]
    Unreadable(#[source] serde_json::Error),
    /// Somebody shapes the interface already.
    #[error("interface `{interface}` has the root queueing discipline `{kind} {handle}`, which is not ours: --replace takes its place")]
    Foreign {
        /// The interface.
        interface: String,
        /// Its kind.
        kind: String,
        /// Its handle.
        handle: String,
    },
    /// The kernel lacks something.
    #[error("the kernel lacks {what}: {reason}")]
    Lacks {
        /// What.
        what: &'static str,
        /// What `tc` said.
        reason: String,
    },
    /// It is not allowed, or not there.
    #[error("{operation} on `{interface}`: {reason}")]
    Refused {
        /// What was being done.
        operation: &'static str,
        /// The interface.
        interface: String,
        /// What `tc` said.
        reason: String,
    },
}

/// One queueing discipline as `tc -s -j qdisc show` has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
struct Discipline {
    kind: String,
    handle: String,
    root: bool,
    bytes: u64,
    packets: u64,
    drops: u64,
    overlimits: u64,
}

fn tc(args: &[&str]) -> Result<Result<String, String>, ShaperError> {
    let output = Command::new("tc").args(args).output().map_err(ShaperError::NoTc)?;
    let said = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().trim().to_owned();
    Ok(if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err(said) })
}

fn parse(text: &str) -> Result<Vec<Discipline>, ShaperError> {
    if text.trim().is_empty() { Ok(Vec::new()) } else { serde_json::from_str(text).map_err(ShaperError::Unreadable) }
}

fn disciplines(interface: &str) -> Result<Vec<Discipline>, ShaperError> {
    let refused = |reason| ShaperError::Refused { operation: "read the queueing disciplines", interface: interface.to_owned(), reason };
    parse(&tc(&["-s", "-j", "qdisc", "show", "dev", interface])?.map_err(refused)?)
}

fn counters(all: &[Discipline]) -> Option<ShaperCounters> {
    let root = all.iter().find(|discipline| discipline.root && discipline.handle == ROOT)?;
    let leaf = all.iter().find(|discipline| discipline.handle == LEAF)?;
    Some(ShaperCounters { bytes: leaf.bytes, packets: leaf.packets, drops: leaf.drops, overlimits: root.overlimits })
}

/// The shaper of an interface as it is; needs no privilege.
pub fn status(interface: &str, wanted: ShaperUse) -> Shaper {
    if wanted == ShaperUse::Off {
        return Shaper::Off;
    }
    match disciplines(interface) {
        Ok(all) => counters(&all)
            .map_or_else(|| Shaper::Absent("not installed: `picket-probe shaper install` as root does that".to_owned()), Shaper::Holds),
        Err(error) => Shaper::Absent(crate::errors::chain(&error)),
    }
}

/// What the kernel is told, derived from the site's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    bits: u64,
    /// What a packet counts at least, in bytes.
    least: u64,
    burst: u64,
    queue: u64,
}

impl Plan {
    fn new(packets: PacketsPerSecond, bits: BitsPerSecond) -> Self {
        let (packets, bits) = (u64::from(packets.get()), bits.get());
        let least = (bits / 8 / packets).clamp(60, 65_535);
        let above = bits.saturating_add(bits / 100 * ABOVE_PERCENT).max(8_000);
        // Twice the pacer's burst of 10 ms, and never less than a few packets.
        let burst = (above / 8 / 50).max(4 * least).max(1_600);
        Self { bits: above, least, burst, queue: (packets / 20).clamp(16, 1_000) }
    }
}

/// Installs the shaper, or brings it up to date.
///
/// # Errors
/// When there is no `tc`, the kernel lacks what is needed, the privilege is missing, or somebody else shapes the interface.
pub fn install(interface: &str, packets: PacketsPerSecond, bits: BitsPerSecond, replace: bool) -> Result<(), ShaperError> {
    let all = disciplines(interface)?;
    // What the kernel sets by itself has no handle.
    if let Some(root) = all.iter().find(|discipline| discipline.root && discipline.handle != "0:" && discipline.handle != ROOT) {
        if !replace {
            return Err(ShaperError::Foreign { interface: interface.to_owned(), kind: root.kind.clone(), handle: root.handle.clone() });
        }
        delete_root(interface)?;
    }
    if all.iter().any(|discipline| discipline.root && discipline.handle == ROOT) {
        delete_root(interface)?;
    }
    let outcome = build(interface, Plan::new(packets, bits));
    if outcome.is_err() {
        // Nothing may stay half-built; where nothing was built there is nothing to take away.
        let _ = tc(&["qdisc", "del", "dev", interface, "root", "handle", ROOT]);
    }
    outcome
}

fn build(interface: &str, plan: Plan) -> Result<(), ShaperError> {
    let Plan { bits, least, burst, queue } = plan;
    let refused = |operation| move |reason: String| ShaperError::Refused { operation, interface: interface.to_owned(), reason };
    let (mtu, least) = (TABLE_MTU.to_string(), least.to_string());
    let root = ["qdisc", "add", "dev", interface, "root", "handle", ROOT];
    let size = ["stab", "mtu", &mtu, "tsize", "512", "mpu", &least, "overhead", "0", "linklayer", "ethernet"];
    tc(&[&root[..], &size, &["htb", "default", "0"]].concat())?.map_err(|reason| match reason.contains("unknown") {
        true => ShaperError::Lacks { what: "the HTB queueing discipline (sch_htb)", reason },
        false => refused("install a queueing discipline")(reason),
    })?;
    let (rate, burst) = (format!("{bits}bit"), format!("{burst}b"));
    let class = ["class", "add", "dev", interface, "parent", ROOT, "classid", CLASS, "htb", "rate", &rate, "ceil", &rate];
    tc(&[&class[..], &["burst", &burst, "cburst", &burst, "quantum", "1514"]].concat())?.map_err(refused("add the limited class"))?;
    let limit = queue.to_string();
    tc(&["qdisc", "add", "dev", interface, "parent", CLASS, "handle", LEAF, "pfifo", "limit", &limit])?
        .map_err(refused("add its queue"))?;
    classify(interface)
}

/// Tells the kernel which packets are meant; which classifier a kernel has differs. `u32` is none of them: a kernel that is built
/// without its match of marks (CONFIG_CLS_U32_MARK) takes the filter without a word and then matches every packet.
fn classify(interface: &str) -> Result<(), ShaperError> {
    let mark = format!("{MARK:#x}");
    // A classic BPF program: load the mark (SKF_AD_OFF + SKF_AD_MARK), compare, all ones for "the class named", 0 for "no match".
    let program = format!("4,32 0 0 4294963220,21 0 1 {MARK},6 0 0 4294967295,6 0 0 0");
    let base = ["filter", "add", "dev", interface, "parent", ROOT, "protocol", "all", "prio", "1"];
    let ways: [&[&str]; 2] = [&["handle", &mark, "fw", "classid", CLASS], &["bpf", "bytecode", &program, "flowid", CLASS]];
    let mut reason = String::new();
    for way in ways {
        match tc(&[&base[..], way].concat())? {
            Ok(_) => return Ok(()),
            Err(said) => reason = said,
        }
    }
    Err(ShaperError::Lacks { what: "a classifier by mark (cls_fw or cls_bpf)", reason })
}

fn delete_root(interface: &str) -> Result<(), ShaperError> {
    let refused = |reason| ShaperError::Refused { operation: "remove the queueing discipline", interface: interface.to_owned(), reason };
    tc(&["qdisc", "del", "dev", interface, "root"])?.map(drop).map_err(refused)
}

/// Removes the shaper; whether there was one.
///
/// # Errors
/// When there is no `tc` or the privilege is missing.
pub fn remove(interface: &str) -> Result<bool, ShaperError> {
    let ours = disciplines(interface)?.iter().any(|discipline| discipline.root && discipline.handle == ROOT);
    if ours {
        delete_root(interface)?;
    }
    Ok(ours)
}

/// Holds the sum of all measuring packets in the kernel, a little above the site's limits.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  picket-probe shaper install --interface eth0\n\nNeeds CAP_NET_ADMIN; `status` does not.")]
pub struct ShaperArgs {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    common: crate::commands::Common,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// Install it, or bring it up to date with the configuration
    Install {
        /// Take the place of a queueing discipline that somebody else has set
        #[arg(long)]
        replace: bool,
    },
    /// Remove it
    Remove,
    /// Show its counters; the exit status is 3 where there is none
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `picket-probe shaper`.
pub fn run(args: ShaperArgs) -> anyhow::Result<ExitCode> {
    let config = args.common.load()?;
    let snapshot = crate::net::netlink::snapshot_blocking()?;
    let interface = crate::station::choose(&snapshot, config.interface.name.as_deref())?.name.clone();
    let InterfaceConfig { packets, bits, shaper, .. } = config.interface;
    match args.action {
        Action::Install { replace } => match install(&interface, packets, bits, replace) {
            Ok(()) => {
                println!("shaper on {interface}: marked packets (mark {MARK:#x}) at most {ABOVE_PERCENT} % above {packets} and {bits}")
            }
            // A box without it still measures, unless its site says otherwise.
            Err(error @ ShaperError::Lacks { .. }) if shaper != ShaperUse::Demand => {
                eprintln!("picket-probe: no shaper on {interface}: {error}; the pacer alone holds the limits");
            }
            Err(error) => return Err(error.into()),
        },
        Action::Remove if remove(&interface)? => println!("shaper on {interface} removed"),
        Action::Remove => println!("there is no shaper on {interface}"),
        Action::Status { json } => return Ok(print(&interface, &status(&interface, ShaperUse::Use), json)),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(interface: &str, shaper: &Shaper, json: bool) -> ExitCode {
    let (installed, why, counters) = match shaper {
        Shaper::Holds(counters) => (true, String::new(), *counters),
        Shaper::Absent(why) => (false, why.clone(), ShaperCounters::default()),
        Shaper::Off => (false, "switched off".to_owned(), ShaperCounters::default()),
    };
    let ShaperCounters { bytes, packets, drops, overlimits } = counters;
    if json {
        let value = serde_json::json!({
            "interface": interface, "installed": installed, "why": why,
            "bytes": bytes, "packets": packets, "drops": drops, "overlimits": overlimits,
        });
        println!("{value:#}");
    } else if installed {
        println!("shaper on {interface}: {packets} packets, {bytes} bytes, {overlimits} waits, {drops} without room");
    } else {
        println!("no shaper on {interface}: {why}");
    }
    if installed { ExitCode::SUCCESS } else { ExitCode::from(3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_those_of_marked_packets() {
        let text = r#"[{"kind":"htb","handle":"7069:","root":true,"options":{"r2q":10},"bytes":900,"packets":9,"drops":1,"overlimits":5},
            {"kind":"pfifo","handle":"706a:","parent":"7069:1","options":{"limit":100},"bytes":500,"packets":4,"drops":1,"overlimits":0}]"#;
        let expected = ShaperCounters { bytes: 500, packets: 4, drops: 1, overlimits: 5 };
        assert_eq!(counters(&parse(text).unwrap()), Some(expected));
        assert_eq!(counters(&parse(r#"[{"kind":"noqueue","handle":"0:","root":true}]"#).unwrap()), None);
        assert_eq!(parse("").unwrap(), []);
        assert!(parse("nonsense").is_err());
    }

    #[test]
    fn the_plan_holds_both_limits() {
        let plan = |packets, bits| Plan::new(PacketsPerSecond::new(packets).unwrap(), BitsPerSecond::new(bits).unwrap());
        // 1000 packets of 1250 bytes are 10 Mbit.
        assert_eq!(plan(1_000, 10_000_000), Plan { bits: 10_500_000, least: 1_250, burst: 26_250, queue: 50 });
        // Where the bit limit is the tighter one, a frame counts what it is.
        assert_eq!(plan(1_000_000, 10_000_000).least, 60);
        assert_eq!(plan(1, 1_000_000_000).least, 65_535);
    }
}
