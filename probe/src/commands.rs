//! The commands of a probe that belongs to a fleet: `enrol`, `run`, `status`; and `fingerprints`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use picket_wire::event::{Check, SelfTest};

use crate::agent;
use crate::config::{self, Config, Raw, RawInterface};
use crate::identity::Identity;
use crate::identity::enrol::{About, enrol};
use crate::lock::Lock;
use crate::net::netlink;
use crate::net::ports::SourcePorts;
use crate::service::recog::check;
use crate::station::{self, Station};

/// Options that every command of a fleet's probe takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Configuration file [default: /etc/picket/probe.toml where it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where identity, spool and memory are kept [default: /var/lib/picket-probe]
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Measuring interface [default: that of the default route]
    #[arg(long, global = true, value_name = "NAME")]
    interface: Option<String>,
    /// off, error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Common {
    /// The configuration that these options and all other layers make.
    pub(crate) fn load(self) -> anyhow::Result<Config> {
        let flags = Raw {
            data: self.data,
            log_level: self.log_level,
            interface: RawInterface { name: self.interface, ..RawInterface::default() },
            ..Raw::default()
        };
        let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Ok(config::load(self.config.as_deref(), variables, flags)?)
    }
}

/// Makes this box a probe of a fleet, with the one-time token that `picket probe add` printed.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  picket-probe enrol picket1-BWF0dGljAR5o...\n  picket-probe enrol --token-file /boot/picket.token")]
pub struct EnrolArgs {
    /// The token
    #[arg(value_name = "TOKEN", required_unless_present = "token_file", conflicts_with = "token_file")]
    token: Option<String>,
    /// Read the token from a file; it is removed once the box is enrolled
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Runs the probe: keeps one connection to the controller and measures what it is told to.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  picket-probe run --data /var/lib/picket-probe\n\nEnds in an orderly way on SIGTERM and Ctrl-C.")]
pub struct RunArgs {
    #[command(flatten)]
    common: Common,
}

/// Shows what this box is, what it can do, and what stands in its way.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  picket-probe status --json")]
pub struct StatusArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Looks after fingerprints of services.
#[derive(Debug, Clone, Args)]
pub struct FingerprintsArgs {
    #[command(subcommand)]
    command: FingerprintsCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum FingerprintsCommand {
    /// Compiles every pattern and tries every example, and says what is wrong and where
    #[command(after_help = "Example:\n  picket-probe fingerprints check /etc/picket/fingerprints\n\nWarnings do not fail the check.")]
    Check {
        /// Directory with files *.xml in the schema of Recog [default: those that are built in]
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the asynchronous runtime")
}

/// `picket-probe enrol`.
pub fn run_enrol(args: EnrolArgs) -> anyhow::Result<ExitCode> {
    let config = args.common.load()?;
    crate::logging::start(config.log_level);
    let token = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => std::fs::read_to_string(path).with_context(|| format!("read the token from {}", path.display()))?,
        (None, None) => anyhow::bail!("a token is needed: `picket probe add NAME` prints one"),
    };
    let data = &config.data;
    agent::run::prepare_data(data).with_context(|| format!("make the data directory {}", data.display()))?;
    let _lock = Lock::data(data)?;
    let about = About { hardware: crate::health::hardware(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let identity = runtime()?.block_on(enrol(data, &token, about))?;
    if let Some(path) = &args.token_file {
        std::fs::remove_file(path)
            .with_context(|| format!("the box is enrolled, but its used token {} could not be removed", path.display()))?;
    }
    println!("This box is now probe `{}`. Start it with: picket-probe run --data {}", identity.probe(), data.display());
    Ok(ExitCode::SUCCESS)
}

/// `picket-probe run`.
pub fn run_agent(args: RunArgs) -> anyhow::Result<ExitCode> {
    let config = args.common.load()?;
    crate::logging::start(config.log_level);
    let data = &config.data;
    let identity = Identity::load(data)?;
    let _lock = Lock::data(data)?;
    // Where /run/lock does not exist, two data directories on one box cannot be told apart; the one above still holds.
    let _network = match Lock::network(std::path::Path::new("/run/lock")) {
        Err(error @ crate::lock::LockError::Held { .. }) => return Err(error.into()),
        Err(error) => {
            log::warn!("{}", crate::errors::chain(&error));
            None
        }
        Ok(lock) => Some(lock),
    };
    // A probe without its packet loop would live on and do nothing: it ends, is started again, and goes on at its checkpoint.
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::abort();
    }));
    log::info!("probe {} starts, version {}", identity.probe(), env!("CARGO_PKG_VERSION"));
    runtime()?.block_on(agent::run::run(&config, identity))?;
    Ok(ExitCode::SUCCESS)
}

/// `picket-probe status`.
pub fn run_status(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let json = args.json;
    let config = args.common.load()?;
    let identity = Identity::load(&config.data);
    let snapshot = netlink::snapshot_blocking()?;
    let interface = station::choose(&snapshot, config.interface.name.as_deref());
    let raw =
        match Station::<crate::scan::report::Event>::open(&config.interface, SourcePorts::default(), std::collections::VecDeque::new()) {
            Ok(_) => Check::Works,
            Err(error) => Check::Fails(crate::errors::chain(&error)),
        };
    let (name, test) = match &interface {
        Ok(interface) => (interface.name.clone(), station::self_test(interface, raw)),
        Err(error) => {
            let fails = || Check::Fails(error.to_string());
            (String::new(), SelfTest { raw_socket: fails(), ipv4: fails(), ipv6: fails() })
        }
    };
    let works = |check: &Check| matches!(check, Check::Works);
    let checks = [("raw packet socket", &test.raw_socket), ("IPv4", &test.ipv4), ("IPv6", &test.ipv6)];
    if json {
        let value = serde_json::json!({
            "probe": identity.as_ref().ok().map(|identity| identity.probe().to_string()),
            "enrolment": identity.as_ref().err().map(|error| crate::errors::chain(error)),
            "hardware": crate::health::hardware(),
            "version": env!("CARGO_PKG_VERSION"),
            "interface": name,
            "packet_limit": config.interface.packets.to_string(),
            "bit_limit": config.interface.bits.to_string(),
            "self_test": checks.map(|(what, check)| match check {
                Check::Works => serde_json::json!({"what": what, "works": true}),
                Check::Fails(why) => serde_json::json!({"what": what, "works": false, "why": why}),
            }),
        });
        println!("{value:#}");
    } else {
        match &identity {
            Ok(identity) => println!("probe       {}, controller {}", identity.probe(), identity.urls().join(", ")),
            Err(error) => println!("probe       none: {}", crate::errors::chain(error)),
        }
        println!("hardware    {}", crate::health::hardware());
        println!("version     {}", env!("CARGO_PKG_VERSION"));
        println!("interface   {name}, at most {} and {}", config.interface.packets, config.interface.bits);
        for (what, check) in checks {
            match check {
                Check::Works => println!("{what:<18} works"),
                Check::Fails(why) => println!("{what:<18} FAILS: {why}"),
            }
        }
    }
    let well = identity.is_ok() && works(&test.raw_socket) && (works(&test.ipv4) || works(&test.ipv6));
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// `picket-probe fingerprints`.
pub fn run_fingerprints(args: FingerprintsArgs) -> anyhow::Result<ExitCode> {
    let FingerprintsCommand::Check { dir } = args.command;
    let report = dir.map_or_else(|| Ok(check::builtin_set()), |dir| check::directory(&dir))?;
    for warning in &report.warnings {
        println!("warning: {warning}");
    }
    for failure in &report.failures {
        println!("FAILED:  {failure}");
    }
    println!(
        "{} files, {} fingerprints, {} examples: {} failed, {} warnings",
        report.files,
        report.fingerprints,
        report.examples,
        report.failures.len(),
        report.warnings.len()
    );
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
