//! `picket-probe ring`: what a ring of captures has, asked afterwards.
//!
//! It reads only: it needs no privilege but that to read the directory, and runs beside the capture that fills the ring.
//!
//! **Invariant:** a file under its own name is a whole answer; what was interrupted leaves none.

mod output;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, Subcommand};
use picket_wire::when::{self, Near};
use tz::TimeZone;

use super::Outcome;
use super::capture::heed_signals;
use super::error::{StandaloneError, system};
use super::output::file::Destination;
use crate::capture::ring::{self, Answer, AskError, Question};
use crate::capture::{UnixNanos, run};

const ASK_EXAMPLES: &str = "\
Examples:
  picket-probe ring ask ring --host 192.0.2.7 --from 02:10 --to 02:12 -w night.pcapng
  picket-probe ring ask ring --host 192.0.2.7 --port 53 --from -5m -w - | wireshark -k -i -
  picket-probe ring ask ring --from '2026-11-22 02:10' -w syn.pcapng 'tcp[13] & 2 != 0'

Times are local unless they say otherwise. 02:10 is the last such time; for --to, the first one
after --from. '2026-11-22 02:10:30' has a date, 2026-11-22T02:10:30+01:00 a zone (RFC 3339); -5m is
five minutes ago; seconds since 1970, as captures tell them, are taken too.

A packet belongs to a host if it is its source or destination, or if an ARP message asks or tells
about it. Several hosts, or several ports, mean any of them; hosts, ports and FILTER must all
match. FILTER is in the language of pcap-filter(7), asked of what was kept of each packet. Of the
ring no more is read than where the hosts can be at that time; ports and FILTER spare nothing.

Exit status: 0 answered, 1 failure, 2 wrong usage, 3 interrupted, or a part is damaged.";

const SHOW_EXAMPLES: &str = "\
Example:
  picket-probe ring show /var/lib/picket/ring --json";

/// Asks a ring that `capture --ring` keeps: host X between 02:10 and 02:12.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct RingArgs {
    #[command(subcommand)]
    command: RingCommand,
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
enum RingCommand {
    /// Writes the packets that match as pcapng
    #[command(after_help = ASK_EXAMPLES)]
    Ask(AskArgs),
    /// Shows the segments of a ring: times, packets, bytes
    #[command(after_help = SHOW_EXAMPLES)]
    Show(ShowArgs),
}

#[derive(Debug, Clone, PartialEq, Args)]
struct AskArgs {
    /// The ring's directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Which packets, as in pcap-filter(7) [default: all]
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Packets of this address; may be given several times
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    host: Vec<IpAddr>,
    /// Packets from or to this port of TCP, UDP or SCTP; may be given several times
    #[arg(long, value_name = "N")]
    port: Vec<u16>,
    /// Not before this time [default: the beginning of the ring]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Before this time [default: the end of the ring]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
    /// Where the packets go; - for standard output
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    /// Tell the counters as JSON, on standard output; with -w - on standard error
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, PartialEq, Args)]
struct ShowArgs {
    /// The ring's directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// As JSON: one object for each segment, then their sum
    #[arg(long)]
    json: bool,
}

fn address(text: &str) -> Result<IpAddr, String> {
    let wrong = || format!("`{text}` is no address: write for example 192.0.2.7 or 2001:db8::7; names and networks belong into FILTER");
    text.parse().map_err(|_| wrong())
}

/// `picket-probe ring`.
///
/// # Errors
/// See [`StandaloneError`].
pub fn ring(args: &RingArgs) -> Result<Outcome, StandaloneError> {
    let zone = TimeZone::local().unwrap_or_else(|_| TimeZone::utc());
    match &args.command {
        RingCommand::Ask(args) => ask(args, &zone),
        RingCommand::Show(args) => {
            let segments = ring::show(&args.dir)?;
            output::segments(&mut io::stdout().lock(), &segments, args.json, &zone).map_err(system("write the segments"))?;
            Ok(Outcome::Complete)
        }
    }
}

fn ask(args: &AskArgs, zone: &TimeZone) -> Result<Outcome, StandaloneError> {
    let question = question(args, run::now(), zone)?;
    let stop = Arc::new(AtomicBool::new(false));
    heed_signals(stop.clone())?;
    answered(args, &question, &stop, zone)
}

fn answered(args: &AskArgs, question: &Question, stop: &AtomicBool, zone: &TimeZone) -> Result<Outcome, StandaloneError> {
    let mut to = Destination::open(&args.write)?;
    let answer = match ring::ask(&args.dir, question, to.out(), stop) {
        Ok(answer) => answer,
        Err(error) => {
            to.discard();
            return early(error);
        }
    };
    to.commit()?;
    tell(args, question, &answer, zone).map_err(system("write the counters"))?;
    Ok(if answer.damaged > 0 { Outcome::Incomplete } else { Outcome::Complete })
}

/// An answer that came to no end.
fn early(error: AskError) -> Result<Outcome, StandaloneError> {
    match error {
        AskError::Stopped => {
            eprintln!("interrupted: no answer was written");
            Ok(Outcome::Incomplete)
        }
        // Who read the pipe has enough.
        AskError::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Outcome::Complete),
        error => Err(error.into()),
    }
}

fn question(args: &AskArgs, now: UnixNanos, zone: &TimeZone) -> Result<Question, StandaloneError> {
    let time = |text: &Option<String>, near| text.as_deref().map(|text| when::moment(text, now.0, zone, near).map(UnixNanos)).transpose();
    let from = time(&args.from, Near::Last).map_err(StandaloneError::Time)?.unwrap_or_default();
    let to = time(&args.to, Near::From(from.0)).map_err(StandaloneError::Time)?;
    // Not the present moment: a clock that was set back has left packets behind that.
    let to = to.unwrap_or(UnixNanos(u64::MAX));
    if from >= to {
        return Err(StandaloneError::NoTime(shown(from, zone), shown(to, zone)));
    }
    Ok(Question { from, to, hosts: args.host.clone(), ports: args.port.clone(), filter: args.filter.join(" ") })
}

fn tell(args: &AskArgs, question: &Question, answer: &Answer, zone: &TimeZone) -> io::Result<()> {
    let piped = args.write.as_os_str() == "-";
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    if !args.json {
        return output::answer(&mut err, question, answer, &args.write, zone);
    }
    output::answer_object(if piped { &mut err } else { &mut out }, question, answer, &args.write)
}

/// A moment in local time.
fn shown(time: UnixNanos, zone: &TimeZone) -> String {
    when::shown(time.0, zone)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::capture::pcapng::{Interface, Section, Statistics};

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        args: RingArgs,
    }

    fn args(line: &str) -> Result<AskArgs, String> {
        let typed = Typed::try_parse_from(format!("ring ask {line}").split(' ')).map_err(|error| error.to_string())?;
        let RingCommand::Ask(args) = typed.args.command else { panic!("a question is expected") };
        Ok(args)
    }

    fn asked(line: &str) -> Result<Question, String> {
        let args = args(&format!("ring -w a.pcapng {line}"))?;
        question(&args, UnixNanos(1_795_313_430_000_000_000), &TimeZone::utc()).map_err(|error| error.to_string())
    }

    #[test]
    fn questions_are_read() {
        let question = asked("--host 192.0.2.7 --host 2001:db8::7 --port 53 --from 02:09 --to 02:10 tcp and less 80").unwrap();
        let minute = 60 * UnixNanos::SECOND;
        let end = 1_795_313_400 * UnixNanos::SECOND;
        let hosts = vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let expected =
            Question { from: UnixNanos(end - minute), to: UnixNanos(end), hosts, ports: vec![53], filter: "tcp and less 80".into() };
        assert_eq!(question, expected);
        let question = asked("--from -5m").unwrap();
        assert_eq!((question.from.0, question.to.0), (end + minute / 2 - 5 * minute, u64::MAX));
        assert_eq!(asked("").unwrap(), Question::default());
    }

    #[test]
    fn what_is_typed_wrong_is_said() {
        let error = asked("--host www.example.org").unwrap_err();
        assert!(error.contains("`www.example.org` is no address: write for example 192.0.2.7"), "{error}");
        let error = asked("--from yesterday").unwrap_err();
        assert!(error.contains("`yesterday` is no time: write for example 02:10"), "{error}");
        let error = asked("--from -5m --to -6m").unwrap_err();
        assert_eq!(error, "--from 2026-11-22 02:05:30.000 is not before --to 2026-11-22 02:04:30.000: no packet is between them");
        assert!(asked("--port 99999").unwrap_err().contains("99999"));
    }

    #[test]
    fn who_interrupts_is_left_no_file_that_looks_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (ring, file) = (dir.path().join("ring"), dir.path().join("a.pcapng"));
        let options = ring::Options { budget: 1 << 20, keep: None, keep_free: 0 };
        let interface = Interface { link_type: 1, snap_len: 0, name: "eth0".into(), filter: String::new() };
        let files = ring::keep(&ring, options, Section::default(), interface).unwrap();
        assert!(files.finish(&Statistics::default()).problem.is_none());
        std::fs::write(&file, "an earlier answer").unwrap();
        let args = args(&format!("{} -w {}", ring.display(), file.display())).unwrap();
        let answered = |stop| answered(&args, &Question::default(), &AtomicBool::new(stop), &TimeZone::utc()).unwrap();
        assert_eq!((answered(true), dir.path().join("a.pcapng.part").exists()), (Outcome::Incomplete, false));
        assert_eq!(std::fs::read(&file).unwrap(), b"an earlier answer");
        assert_eq!(answered(false), Outcome::Complete);
        assert!(std::fs::read(&file).unwrap().starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]));
    }
}
