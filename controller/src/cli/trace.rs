//! `picket trace`: submit, watch, print the paths.

use picket_wire::job::Technique;
use picket_wire::trace::{DEFAULT_CONFIDENCE, MAX_QUERIES, MAX_TTL, MTU_LEAST, MTU_MOST, Method, PAYLOAD_MIN, WaysOptions};

use super::Context;
use super::failure::{Exit, Failure};
use super::paths::PathOutputArgs;
use super::scan::{self, Shown, WorkArgs, measure};
use crate::view::{JobRequest, TraceRequest};

/// How all ways are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// As many flows as each distance asks for, more where links are meshed or uneven
    Lite,
    /// As many flows as each node asks for
    Full,
}

/// `picket trace` and its flags.
#[derive(Debug, clap::Args)]
pub(super) struct TraceArgs {
    /// Addresses, networks, patterns (198.18.0-3.1,7,9-), ranges (198.18.0.9-198.18.1.3), host names and networks around them (name/24)
    #[arg(required = true, value_name = "TARGETS", value_parser = scan::targets)]
    targets: Vec<String>,
    #[command(flatten)]
    work: WorkArgs,
    /// What is sent: icmp, udp or tcp [default: icmp; udp with --multipath]
    #[arg(long, short)]
    method: Option<Method>,
    /// Port that is asked [default: 33434 for udp, 80 for tcp]
    #[arg(long, short, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Probes for each hop that answers [default: 3; 1 for more than 16 destinations]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_QUERIES)))]
    queries: Option<u8>,
    /// The first hop that is asked [default: 1]
    #[arg(long, value_name = "TTL", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_TTL)))]
    first_hop: Option<u8>,
    /// The last hop that is asked [default: 30]
    #[arg(long, value_name = "TTL", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_TTL)))]
    max_hops: Option<u8>,
    /// Silent hops in a row that end a path [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_TTL)))]
    gap: Option<u8>,
    /// Ask every hop of every path. More than 16 destinations, asked once each, otherwise take the first hops from each other where they meet
    #[arg(long)]
    all_hops: bool,
    /// Look for all ways between which load is spread by flow [default form: lite]
    #[arg(long, value_name = "FORM", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "lite", conflicts_with = "queries")]
    multipath: Option<Form>,
    /// How sure to be that no node has a further successor, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = DEFAULT_CONFIDENCE, requires = "multipath", value_parser = clap::value_parser!(u8).range(50..=99))]
    confidence: u8,
    /// Another flow: the number is added to the source port
    #[arg(long, value_name = "N")]
    flow: Option<u16>,
    /// Type of service or traffic class of the probes: DSCP times four
    #[arg(long, value_name = "BYTE")]
    tos: Option<u8>,
    /// Bytes behind the ICMP or UDP header [default: 12]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(i64::from(PAYLOAD_MIN)..))]
    payload: Option<u16>,
    /// Find the largest packet that arrives unbroken (path MTU), up to so many bytes [default: 1500], and who says that larger ones are too
    /// large. By icmp the answer must find its way back as large; by udp it is short
    #[arg(long, value_name = "BYTES", num_args = 0..=1, require_equals = true, default_missing_value = "1500", conflicts_with = "multipath",
        value_parser = clap::value_parser!(u16).range(i64::from(MTU_LEAST)..=i64::from(MTU_MOST)))]
    mtu: Option<u16>,
    #[command(flatten)]
    output: PathOutputArgs,
}

impl TraceArgs {
    fn request(&self) -> JobRequest {
        let ways = self.multipath.map(|form| WaysOptions { confidence: self.confidence, full: form == Form::Full });
        let trace = TraceRequest {
            method: self.method,
            port: self.port,
            queries: self.queries,
            first_ttl: self.first_hop,
            max_ttl: self.max_hops,
            gap: self.gap,
            tos: self.tos,
            payload: self.payload,
            flow: self.flow,
            all_hops: self.all_hops,
            ways,
            mtu: self.mtu,
        };
        JobRequest { trace: Some(trace), ..self.work.request(&self.targets, Technique::Trace, None) }
    }
}

pub(super) async fn run(args: TraceArgs, context: &mut Context<'_>) -> Result<Exit, Failure> {
    if args.multipath.is_some() {
        args.output.draws_graphs()?;
    }
    args.output.tells_names()?;
    measure(&[args.request()], &args.work, Shown::Paths(&args.output), context).await
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        trace: TraceArgs,
    }

    fn request(line: &str) -> Result<TraceRequest, String> {
        let args = Line::try_parse_from(std::iter::once("trace").chain(line.split_whitespace())).map_err(|error| error.to_string())?;
        let request = args.trace.request();
        assert_eq!((request.technique, request.ports, request.attempts), (Technique::Trace, None, None));
        request.trace.ok_or_else(|| "it does not say how".to_owned())
    }

    #[test]
    fn what_is_not_said_is_left_to_the_controller() {
        assert_eq!(request("198.18.0.1"), Ok(TraceRequest::default()));
        let asked = request("198.18.0.1 -m tcp -p 443 --queries 2 --max-hops 40 --flow 7").unwrap();
        assert_eq!(
            (asked.method, asked.port, asked.queries, asked.max_ttl, asked.flow),
            (Some(Method::Tcp), Some(443), Some(2), Some(40), Some(7))
        );
        let ways = |line: &str| request(line).map(|request| request.ways);
        assert_eq!(ways("198.18.0.1 --multipath"), Ok(Some(WaysOptions { confidence: 95, full: false })));
        assert_eq!(ways("198.18.0.1 --multipath=full --confidence 99"), Ok(Some(WaysOptions { confidence: 99, full: true })));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (line, reason) in [
            ("198.18.0.1 --method smoke", "`smoke` is not a way to trace"),
            ("198.18.0.1 --queries 17", "17 is not in 1..=16"),
            ("198.18.0.1 --max-hops 65", "65 is not in 1..=64"),
            ("198.18.0.1 --confidence 99", "--multipath"),
            ("198.18.0.1 --multipath --confidence 100", "100 is not in 50..=99"),
            ("198.18.0.1 --multipath --queries 2", "cannot be used with"),
            ("198.18.0.1 --attempts 2", "--attempts"),
        ] {
            let error = request(line).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}
