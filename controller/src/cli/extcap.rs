//! Probes in Wireshark's list of interfaces: `picket` as a program of its external capture interface.
//!
//! Wireshark and tshark run each program of their extcap directories, without a subcommand: `--extcap-interfaces` lists the probes that can
//! capture, `--extcap-dlts` and `--extcap-config` tell of one of them, `--capture --fifo F` has it capture into a FIFO until Wireshark
//! closes that or sends SIGTERM, and `--extcap-capture-filter` without `--capture` asks whether a filter is right. The form of all this
//! is that of the Wireshark Developer's Guide, "Extcap: Developer Reference". [`given`] finds such a call.
//!
//! It must not know how a capture is followed: that is [`super::captures`]' business. Which controller is meant is said as for every
//! other command, by environment or options in a wrapper script.
//!
//! **Invariants:**
//! - Nothing but sentences of that form goes to standard output; what is wrong goes to standard error. The answer about a filter is the exception.
//! - Text of others cannot end a sentence: braces and control characters are left out.
//! - No capture outlives its reader: it is ended when the FIFO is closed, also where no packet comes.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use picket_wire::capture::{SNAP_LEAST, WHOLE};
use picket_wire::ids::{ProbeId, Role};
use picket_wire::job::Selection;

use super::captures::{job_request, pipe, size, time};
use super::client::Client;
use super::failure::{Exit, Failure};
use super::format::clean;
use super::{Context, scan};
use crate::view::{CaptureRequest, JobRequest, ProbeState, ProbeView};

/// In front of a probe's name in the name of its interface.
const PREFIX: &str = "picket-";
/// Wireshark waits for the list when it starts.
const LIST_PATIENCE: Duration = Duration::from_secs(5);
/// The data link type that is told: captures of the interface `any` have another one, which their file says.
const ETHERNET: &str = "dlt {number=1}{name=EN10MB}{display=Ethernet}";

/// What Wireshark asks, and what was set in its dialog.
#[derive(Debug, clap::Args)]
pub(super) struct ExtcapArgs {
    /// List the probes that can capture
    #[arg(long)]
    extcap_interfaces: bool,
    /// Version of who asks
    #[arg(long, value_name = "VERSION")]
    extcap_version: Option<String>,
    /// The interface that is meant: picket-PROBE
    #[arg(long, value_name = "NAME")]
    extcap_interface: Option<String>,
    /// Tell its data link type
    #[arg(long)]
    extcap_dlts: bool,
    /// Tell what can be set
    #[arg(long)]
    extcap_config: bool,
    /// Which packets, as in pcap-filter(7); without --capture, whether that is right
    #[arg(long, value_name = "FILTER", allow_hyphen_values = true)]
    extcap_capture_filter: Option<String>,
    /// Capture
    #[arg(long, requires = "fifo")]
    capture: bool,
    /// Where the file goes
    #[arg(long, value_name = "FIFO")]
    fifo: Option<PathBuf>,
    /// Interface of the probe, or `any`
    #[arg(long, value_name = "IF")]
    interface: Option<String>,
    /// Bytes of each packet that are kept
    #[arg(long, value_name = "BYTES")]
    snap_length: Option<String>,
    /// Keep packets as a whole
    #[arg(long)]
    full: bool,
    /// Capture the probe's own traffic as well
    #[arg(long)]
    with_own: bool,
    /// End after this time
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// End before the file has more bytes
    #[arg(long, value_name = "SIZE")]
    bytes: Option<String>,
}

/// Whether the arguments are those that Wireshark calls a program of its external capture interface with.
pub(super) fn given(args: &[OsString]) -> bool {
    args.iter().skip(1).any(|arg| arg.to_str().is_some_and(|arg| arg.starts_with("--extcap-")))
}

pub(super) async fn run(args: ExtcapArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    if args.extcap_interfaces {
        let client = context.client()?;
        let listed = tokio::time::timeout(LIST_PATIENCE, client.all::<ProbeView>(&["probes"], &Vec::new())).await;
        let late = |_| Failure::new(Exit::Unreachable, format!("the controller has not answered in {LIST_PATIENCE:?}"));
        context.line(interfaces(&listed.map_err(late)??).trim_end())?;
        return Ok(Exit::Complete);
    }
    let probe = args.probe()?;
    if args.extcap_dlts {
        context.line(ETHERNET)?;
    } else if args.extcap_config {
        context.line(config().trim_end())?;
    } else if args.capture {
        let fifo = args.fifo.clone().ok_or_else(|| Failure::usage("a capture needs --fifo"))?;
        return pipe(&context.client()?, &args.request(probe)?, fifo, context).await;
    } else if args.extcap_capture_filter.is_some() {
        if let Err(wrong) = check(&context.client()?, args.request(probe)?).await {
            // The filter is quoted there.
            wrong.message.lines().try_for_each(|line| context.line(clean(line)))?;
        }
    } else {
        return Err(Failure::usage(
            "nothing is asked of the interface: --extcap-dlts, --extcap-config, --extcap-capture-filter or --capture",
        ));
    }
    Ok(Exit::Complete)
}

/// Has the controller look at the filter; nothing is captured.
async fn check(client: &Client, mut request: JobRequest) -> Result<(), Failure> {
    request.dry_run = true;
    scan::submit(client, &request).await.map(drop)
}

/// Without what would end a value of a sentence, or the sentence.
fn value(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && !matches!(c, '{' | '}')).collect()
}

/// One interface for each probe that can capture now.
fn interfaces(probes: &[ProbeView]) -> String {
    let mut out = format!("extcap {{version={}}}{{display=Picket}}\n", env!("CARGO_PKG_VERSION"));
    let here = |probe: &&ProbeView| matches!(probe.state, ProbeState::Online | ProbeState::Busy | ProbeState::Late);
    for probe in probes.iter().filter(here).filter(|probe| probe.roles.contains(&Role::Capture)) {
        let (id, site) = (value(probe.id.as_str()), value(probe.site.as_str()));
        let interface = probe.interface.as_deref().map(|name| format!(", {}", value(name))).unwrap_or_default();
        let _ = writeln!(out, "interface {{value={PREFIX}{id}}}{{display=Picket probe {id} at {site}{interface}}}");
    }
    out
}

/// What Wireshark asks people for.
fn config() -> String {
    let snap = format!("{{type=integer}}{{range={SNAP_LEAST},{WHOLE}}}{{default=128}}");
    let args = [
        ("interface", "Interface of the probe", "A name such as eth1, or any; empty: the one that it measures on", "{type=string}"),
        (
            "snap-length",
            "Bytes kept of each packet",
            "128 hold the headers; more needs leave from the policies of fleet and site",
            snap.as_str(),
        ),
        ("full", "Keep packets as a whole", "Needs leave from the policies of fleet and site", "{type=boolflag}{default=false}"),
        (
            "with-own",
            "The probe's own traffic, too",
            "Its measurements and its connection to the controller",
            "{type=boolflag}{default=false}",
        ),
        ("time", "Most time", "The capture ends after this time, such as 90s or 2h", "{type=string}{default=5m}"),
        ("bytes", "Most bytes", "The capture ends before it has more bytes, such as 500kB or 1GiB", "{type=string}{default=64MiB}"),
    ];
    let mut out = String::new();
    for (number, (option, display, tooltip, kind)) in args.iter().enumerate() {
        let _ = writeln!(out, "arg {{number={number}}}{{call=--{option}}}{{display={display}}}{{tooltip={tooltip}}}{kind}");
    }
    out
}

/// A value of the dialog, none where it was left empty.
fn set<T>(option: &str, text: Option<&String>, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Failure> {
    let text = text.map(|text| text.trim()).filter(|text| !text.is_empty());
    text.map(|text| read(text).map_err(|why| Failure::usage(format!("--{option}: {why}")))).transpose()
}

impl ExtcapArgs {
    fn probe(&self) -> Result<ProbeId, Failure> {
        let name = self.extcap_interface.as_deref().unwrap_or_default();
        let probe = name.strip_prefix(PREFIX).and_then(|probe| ProbeId::from_str(probe).ok());
        probe.ok_or_else(|| {
            Failure::usage(format!(
                "`{name}` is no interface of Picket: --extcap-interface {PREFIX}PROBE, as --extcap-interfaces lists them"
            ))
        })
    }

    fn request(&self, probe: ProbeId) -> Result<JobRequest, Failure> {
        let snap = |text: &str| {
            let bytes = text.parse().ok().filter(|bytes| (SNAP_LEAST..=WHOLE).contains(bytes));
            bytes.ok_or_else(|| format!("`{text}` is not possible: {SNAP_LEAST} to {WHOLE} bytes of a packet can be kept"))
        };
        let words = |text: &str| Ok(text.to_owned());
        let snap_length = set("snap-length", self.snap_length.as_ref(), snap)?;
        let capture = CaptureRequest {
            interface: set("interface", self.interface.as_ref(), words)?,
            filter: set("extcap-capture-filter", self.extcap_capture_filter.as_ref(), words)?,
            snap_length: if self.full { Some(WHOLE) } else { snap_length },
            with_own: self.with_own,
            bytes: set("bytes", self.bytes.as_ref(), size)?,
            seconds: set("time", self.time.as_ref(), time)?,
            ..CaptureRequest::default()
        };
        let select = Selection { probes: vec![probe], ..Selection::default() };
        Ok(JobRequest { name: Some("Wireshark".to_owned()), ..job_request(capture, select) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Action, Command, parse};
    use super::*;

    fn asked(line: &str) -> ExtcapArgs {
        let words = std::iter::once("picket").chain(line.split('|')).map(OsString::from);
        let Action::Client(cli) = parse(words).unwrap() else { panic!("{line} starts no client") };
        let Command::Extcap(args) = cli.command else { panic!("{line} is another command") };
        args
    }

    #[test]
    fn wireshark_calls_without_a_subcommand() {
        let args = asked("--extcap-interfaces|--extcap-version=4.0");
        assert!(args.extcap_interfaces && args.probe().is_err());
        let args = asked(
            "--data|/tmp/x|--capture|--extcap-interface|picket-attic|--fifo|/tmp/f|--extcap-capture-filter|udp port 9|--full|--time|90s|--bytes||--interface|eth1",
        );
        assert!(args.capture);
        let request = args.request(args.probe().unwrap()).unwrap();
        let capture = request.capture.unwrap();
        assert_eq!(request.select.probes, [ProbeId::from_str("attic").unwrap()]);
        assert_eq!((capture.filter.as_deref(), capture.interface.as_deref()), (Some("udp port 9"), Some("eth1")));
        assert_eq!((capture.snap_length, capture.seconds, capture.bytes), (Some(WHOLE), Some(90), None));
        for line in ["--time|yesterday", "--bytes|7", "--snap-length|3"] {
            let args = asked(&format!("--capture|--extcap-interface|picket-attic|--fifo|f|{line}"));
            assert!(args.request(args.probe().unwrap()).unwrap_err().message.starts_with("--"), "{line}");
        }
        assert!(!given(&["picket".into(), "capture".into(), "--full".into()]));
    }

    #[test]
    fn sentences_hold_whatever_text_comes() {
        assert_eq!(value("a}{b\nc"), "abc");
        for line in config().lines() {
            assert!(line.starts_with("arg {number=") && line.ends_with('}') && line.contains("{call=--"), "{line}");
            let option = line.split("{call=").nth(1).and_then(|rest| rest.split('}').next()).unwrap();
            let flag = line.contains("boolflag");
            asked(&format!("--extcap-interface|picket-a|{option}{}", if flag { "" } else { "|1" }));
        }
    }
}
