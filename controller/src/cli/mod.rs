//! The operator's command line: every subcommand but `serve` is a client of the HTTP API.
//!
//! Results go to standard output, everything else (progress, hints, errors) to standard error. Errors are one line and, where
//! something can be done, a hint; the exit code tells scripts what kind of outcome it was ([`Exit`]).
//!
//! This module must not know the service: only the types of the HTTP API ([`crate::view`]).

mod admin;
mod captures;
mod client;
mod connect;
mod extcap;
mod failure;
mod follow;
mod format;
mod hosts;
mod interrupt;
mod jobs;
mod lines;
mod paths;
mod place;
mod probes;
mod progress;
mod results;
mod scan;
mod table;
#[cfg(test)]
mod tests;
mod trace;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::ServeArgs;
pub use connect::{ConnectArgs, ENDPOINTS_FILE, Endpoints};
pub use failure::{Exit, Failure};

const EXIT_CODES: &str = "\
Exit codes:
  0  done (for scans: the job ended with everything accounted for)
  1  failed
  2  wrong usage or invalid input
  3  the job was cancelled, failed or is not over yet
  4  the controller cannot be reached
  5  not authorised

On the controller's own machine no connection options are needed as long as its data directory can be read. Elsewhere \
copy ca.pem from there, make a token with `picket token add`, and set PICKET_SERVER, PICKET_CA and PICKET_TOKEN_FILE.";

/// A fleet of network probes: the controller's service and its command line.
#[derive(Debug, Parser)]
#[command(name = "picket", version, max_term_width = 110, after_help = EXIT_CODES, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(subcommand)]
    command: Command,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller
    ///
    /// Starts with nothing prepared: the data directory, the certificate authority, the database and the admin token are made
    /// on the first start.
    Serve(ServeArgs),
    /// Scan ports, and ask what serves there
    #[command(
        after_help = "Examples:\n  picket scan 198.18.0.0/24 -p 22,80,443\n  picket scan 2001:db8::/120 -p 1-1024 --rate 5kpps --probe attic --probe cellar\n  picket scan printer.example -p- --mode each --output ndjson > printer.ndjson\n  picket scan 198.18.0-3.1,7,9- -p T:22,http*,U:53,161 --services --rate 500pps,2Mbit\n  picket scan 198.18.0.0/16 --top-ports 100 --per-network 200pps/24 --dry-run"
    )]
    Scan(scan::ScanArgs),
    /// Find hosts
    #[command(
        after_help = "Examples:\n  picket discover 198.18.0.0/24\n  picket discover 198.18.0.0/16 --exclude 198.18.7.0/24 --site hq\n  picket discover 198.18.0.0/24 --host-probes echo,syn:22,udp:53\n  picket discover 2001:db8:7::/64 --site hq\n  picket discover --link --probe attic"
    )]
    Discover(scan::DiscoverArgs),
    /// Trace which way packets take
    #[command(
        after_help = "Examples:\n  picket trace 198.18.9.2 --probe attic\n  picket trace www.example.org --mode each --method tcp --port 443\n  picket trace 198.18.0.0/22 --rate 1kpps --output ndjson > paths.ndjson\n  picket trace 198.18.9.2 --probe attic --multipath --confidence 99\n  picket trace 198.18.9.2 --probe attic --names\n\nProbes need the role trace: picket probe add attic --role scan,trace"
    )]
    Trace(trace::TraceArgs),
    /// Have a probe capture packets, with the file written here while it grows
    #[command(
        after_help = "Examples:\n  picket capture --probe attic icmp or arp\n  picket capture --probe attic -w attic.pcapng tcp port 443 and host 192.0.2.7\n  picket capture --probe attic -i eth1 --time 10m -w - | wireshark -k -i -\n  picket capture --site hq --detach --bytes 1GiB udp port 53\n  picket capture --probe attic --ring --from 02:10 --to 02:12 --host 192.0.2.7 -w night.pcapng\n\nProbes are in Wireshark's own list of interfaces, too, where picket is in its directory extcap (docs/captures.md).\n\nThe filter is in the language of pcap-filter(7). Headers only are kept unless more is asked for, which the policies of both sides\nmust permit. The probe's own traffic is left out. Probes need the role capture: picket probe add attic --role scan,capture"
    )]
    Capture(captures::CaptureArgs),
    /// List, show, fetch and remove captures
    #[command(subcommand)]
    Captures(captures::CapturesCommand),
    /// List, show, watch and cancel jobs
    #[command(subcommand)]
    Job(jobs::JobCommand),
    /// Show what was found
    #[command(
        after_help = "Examples:\n  picket results --job 65f0c1d200a4b7e1\n  picket results --addr 198.18.0.0/24 --state open --output csv > open.csv"
    )]
    Results(results::ResultsArgs),
    /// Show the hosts that were seen on the probes' own links
    #[command(after_help = "Example:\n  picket hosts --site hq --addr 198.18.0.0/24")]
    Hosts(hosts::HostsArgs),
    /// Show the paths to destinations: the latest of each probe, and those before
    #[command(
        after_help = "Examples:\n  picket paths\n  picket paths 198.18.9.2 --probe attic\n  picket paths 198.18.0.0/22 --names\n  picket paths --job 65f0c1d200a4b7e1 --output atlas > paths.json\n  picket paths 198.18.0.0/22 --probe attic --output xml > paths.xml"
    )]
    Paths(paths::PathsArgs),
    /// Add, list, show and revoke probes
    #[command(subcommand)]
    Probe(probes::ProbeCommand),
    /// Show the fleet in a few numbers
    #[command(after_help = "Example:\n  picket fleet")]
    Fleet(JsonArgs),
    /// Add, list and revoke API tokens
    #[command(subcommand)]
    Token(admin::TokenCommand),
    /// Add, list and remove users of the read-only MQTT listener
    #[command(subcommand)]
    DashboardUser(admin::DashboardUserCommand),
    /// Be a program of Wireshark's external capture interface, which calls it without this word
    #[command(
        hide = true,
        after_help = "Example:\n  picket --extcap-interfaces\n\nA wrapper script in ~/.local/lib/wireshark/extcap/ sets PICKET_SERVER, PICKET_CA and PICKET_TOKEN_FILE and calls picket with\nits arguments: docs/captures.md."
    )]
    Extcap(extcap::ExtcapArgs),
    /// Work on the database
    #[command(subcommand)]
    Db(admin::DbCommand),
}

/// How the answer is printed.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct JsonArgs {
    /// Print the answer of the API as JSON
    #[arg(long)]
    json: bool,
}

/// What is to be run, after the command line was understood.
#[derive(Debug)]
pub enum Action {
    /// The controller.
    Serve(ServeArgs),
    /// A client of the API.
    Client(Box<Cli>),
}

/// Understands a command line; the error is clap's, which knows whether it is help or a mistake.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Action, clap::Error> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if extcap::given(&args) {
        args.insert(1, "extcap".into());
    }
    let matches = command().try_get_matches_from(args)?;
    let cli = Cli::from_arg_matches(&matches)?;
    Ok(match cli.command {
        Command::Serve(args) => Action::Serve(args),
        _ => Action::Client(Box::new(cli)),
    })
}

/// The command line's grammar.
pub fn command() -> clap::Command {
    let keys: String = crate::config::KEYS.iter().map(|(key, meaning)| format!("\n  {key:<17} {meaning}")).collect();
    let help = format!(
        "Example:\n  picket serve --data /var/lib/picket --name picket.example.net\n\nKeys of the configuration file; `[api] listen` is PICKET_API__LISTEN in the environment:{keys}"
    );
    Cli::command().mut_subcommand("serve", |serve| serve.after_help(help).args(not_for_the_service()))
}

/// The connection's options are global; the service takes none of them, and says so.
fn not_for_the_service() -> impl Iterator<Item = clap::Arg> {
    [("server", "server"), ("ca", "ca"), ("token_file", "token-file")].into_iter().map(|(id, long)| {
        let refuse = |_: &str| Err::<String, _>("this is for clients; the controller itself takes --data and --config");
        clap::Arg::new(id).long(long).hide(true).value_parser(refuse)
    })
}

/// What every command of a client works with.
struct Context<'a> {
    connect: ConnectArgs,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    err_is_terminal: bool,
}

impl Context<'_> {
    fn client(&self) -> Result<client::Client, Failure> {
        self.connect.open()
    }

    /// A line for people, beside the results.
    fn note(&mut self, text: impl core::fmt::Display) {
        // What was printed before comes first. Nobody is left to tell when standard error is closed.
        let _ = self.out.flush();
        let _ = writeln!(self.err, "{text}");
    }

    fn json<T: serde::Serialize>(&mut self, value: &T) -> Result<(), Failure> {
        serde_json::to_writer_pretty(&mut *self.out, value).map_err(|error| Failure::output(error.into()))?;
        writeln!(self.out).map_err(Failure::output)
    }

    fn line(&mut self, text: impl core::fmt::Display) -> Result<(), Failure> {
        writeln!(self.out, "{text}").map_err(Failure::output)
    }
}

/// Runs a client command on the process's own output.
pub async fn run(cli: Cli) -> Exit {
    let stdout = std::io::stdout();
    let stderr = std::io::stderr();
    let mut out = std::io::BufWriter::new(stdout.lock());
    let mut context = Context { connect: cli.connect, out: &mut out, err: &mut stderr.lock(), err_is_terminal: stderr.is_terminal() };
    let result = dispatch(cli.command, &mut context).await;
    let flushed = context.out.flush().map_err(Failure::output);
    match result.and_then(|exit| flushed.map(|()| exit)) {
        Ok(exit) => exit,
        Err(failure) => {
            if !failure.is_silent() {
                context.note(&failure);
            }
            failure.exit
        }
    }
}

async fn dispatch(command: Command, context: &mut Context<'_>) -> Result<Exit, Failure> {
    match command {
        Command::Serve(_) => Err(Failure::usage("the service is not started from here")),
        Command::Scan(args) => scan::scan(args, context).await,
        Command::Discover(args) => scan::discover(args, context).await,
        Command::Trace(args) => trace::run(args, context).await,
        Command::Paths(args) => paths::run(args, context).await,
        Command::Capture(args) => captures::capture(args, context).await,
        Command::Captures(command) => captures::captures(command, context).await,
        Command::Job(command) => jobs::run(command, context).await,
        Command::Results(args) => results::run(args, context).await,
        Command::Hosts(args) => hosts::run(args, context).await,
        Command::Probe(command) => probes::run(command, context).await,
        Command::Fleet(args) => probes::fleet(args, context).await,
        Command::Token(command) => admin::token(command, context).await,
        Command::DashboardUser(command) => admin::dashboard_user(command, context).await,
        Command::Extcap(args) => extcap::run(args, context).await,
        Command::Db(command) => admin::db(command, context).await,
    }
}
