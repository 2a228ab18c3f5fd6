//! The controller's configuration: where it listens, under which names it is reached, what the fleet may probe.
//!
//! Layers, each over the one before: defaults, the file, `PICKET_` environment variables, flags. A key is written `section.key`:
//! `[api] listen` in the file is `PICKET_API__LISTEN` in the environment. [`KEYS`] is the list of all of them.
//!
//! Text becomes a checked [`Config`] here and is not looked at again. This module must not know what its values are for.
//!
//! **Invariant:** every error names the key and where its value came from.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use config::{Environment, File, FileFormat, Map, Source, Value, ValueKind};
use log::LevelFilter;
use picket_wire::addr::IpNet;
use picket_wire::policy::AddressPolicy;
use picket_wire::topic::Prefix;
use picket_wire::units::parse_duration;

use crate::lookup;
use crate::pki::Names;
use crate::service::{CaptureLimits, Timing};

/// Read when it exists and no other file is named.
pub const DEFAULT_FILE: &str = "/etc/picket/controller.toml";
/// Where the controller keeps everything, unless told otherwise.
pub const DEFAULT_DATA: &str = "/var/lib/picket";
/// The probes' MQTT listener.
pub const MQTT_PORT: u16 = 8883;
/// The HTTPS API.
pub const API_PORT: u16 = 8443;
/// The dashboards' MQTT listener.
pub const DASHBOARD_PORT: u16 = 8884;
const DNS_PORT: u16 = 53;

/// Every key, with what it means.
pub const KEYS: [(&str, &str); 18] = [
    ("data", "directory of the database, the keys and the admin token; default /var/lib/picket"),
    ("names", "host names and addresses under which probes and people reach this controller; default all of this machine"),
    ("log_level", "off, error, warn, info, debug or trace; default info"),
    ("topic_prefix", "first part of every MQTT topic; default picket/v1"),
    ("mqtt.listen", "address and port for probes; default port 8883 on every address"),
    ("api.listen", "address and port of the HTTPS API; default port 8443 on every address"),
    ("dashboard.listen", "address and port for MQTT dashboards; default port 8884 on every address"),
    ("policy.allow", "networks that may be probed; default private networks only"),
    ("policy.deny", "networks that may not, whatever `policy.allow` says; default none"),
    ("leases.ttl", "how long a probe may work without a word from here before its work goes to another; default 90s"),
    ("probes.heartbeat", "how often a probe reports; default 10s"),
    ("lookup.reverse", "whether names of the addresses on paths are asked of DNS for those who want to read them; default false"),
    ("lookup.server", "address and port of the DNS server that is asked; default the system's"),
    ("lookup.timeout", "how long an answer waits for names and origins; default 2s"),
    ("lookup.origin", "file with the networks of autonomous systems, as iptoasn.com publishes it (.tsv or .tsv.gz); default none"),
    ("captures.allow", "what captures may keep of packets: off, headers or payload; default headers"),
    ("captures.max_bytes", "bytes that all captures together may take here; default 10737418240 (10 GiB)"),
    ("captures.keep", "how long captures are kept after their last bytes came; default 720h (30 days)"),
];

/// `PICKET_` variables that belong to others who may share an environment with the service: the command line, the tests' lab.
const FOREIGN_VARIABLES: [&str; 8] = ["server", "ca", "token", "token_file", "bin_dir", "require_lab", "lab_keep", "lab_log"];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not TOML, or a variable is not text.
    #[error("{origin} cannot be understood: {reason}")]
    Syntax {
        /// Which file or environment.
        origin: String,
        /// What the parser says.
        reason: String,
    },
    /// Nobody knows this key.
    #[error("{origin}: there is no key `{key}`{}", hint.map(|hint| format!("; did you mean `{hint}`?")).unwrap_or_default())]
    UnknownKey {
        /// Where it stands.
        origin: String,
        /// The key.
        key: String,
        /// The key that is nearest to it.
        hint: Option<&'static str>,
    },
    /// A value is not what the key takes.
    #[error("{origin}: `{key}`: {reason}")]
    Value {
        /// Where it stands.
        origin: String,
        /// The key.
        key: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The system does not tell its addresses.
    #[error("cannot list this machine's addresses ({reason}): name the controller with --name HOST_OR_ADDRESS or the key `names`")]
    NoNames {
        /// What the system said.
        reason: String,
    },
}

/// Where a listener waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// On every address of both families, as far as the machine has them.
    Everywhere(u16),
    /// On one address.
    At(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Listen::At(address));
        }
        let port = text.strip_prefix(':').or(text.strip_prefix("*:")).unwrap_or(text);
        if port.bytes().all(|b| b.is_ascii_digit())
            && let Ok(port) = port.parse()
        {
            return Ok(Listen::Everywhere(port));
        }
        Err(format!("`{text}` is not an address to listen on: use for example 198.18.0.1:8443, [2001:db8::1]:8443 or :8443"))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Everywhere(port) => write!(f, ":{port}"),
            Listen::At(address) => write!(f, "{address}"),
        }
    }
}

impl Listen {
    /// Opens the listener; where the machine has no IPv6, every address is every IPv4 address.
    pub fn bind(self) -> std::io::Result<std::net::TcpListener> {
        let listener = match self {
            Listen::At(address) => std::net::TcpListener::bind(address),
            Listen::Everywhere(port) => std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .or_else(|_| std::net::TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port))),
        }?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// The one address it is bound to, where it is one.
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Listen::At(address) if !address.ip().is_unspecified() => Some(address.ip()),
            _ => None,
        }
    }
}

/// The names under which the controller is reached, in the order in which probes try them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicNames(Vec<String>);

impl PublicNames {
    /// The names and addresses as text.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// For the server's certificate.
    pub fn certificate(&self) -> Names {
        let mut names = Names::default();
        for name in &self.0 {
            // Each was parsed by the same rule when this list was made.
            let _ = names.add(name);
        }
        names
    }

    /// `host:port` for each, IPv6 addresses in brackets.
    pub fn with_port(&self, port: u16) -> Vec<String> {
        self.iter().map(|name| host_port(name, port)).collect()
    }
}

/// `host:port`, with brackets where `host` is an IPv6 address.
pub fn host_port(host: &str, port: u16) -> String {
    match host.parse::<Ipv6Addr>() {
        Ok(_) => format!("[{host}]:{port}"),
        Err(_) => format!("{host}:{port}"),
    }
}

/// A configuration that can be used as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory of the database, the keys and the admin token.
    pub data: PathBuf,
    /// Names under which probes and people reach the controller.
    pub names: PublicNames,
    /// What is logged.
    pub log_level: LevelFilter,
    /// First part of every MQTT topic.
    pub prefix: Prefix,
    /// For probes.
    pub mqtt: Listen,
    /// The HTTPS API.
    pub api: Listen,
    /// For MQTT dashboards.
    pub dashboard: Listen,
    /// Which addresses the fleet may probe.
    pub policy: AddressPolicy,
    /// How long a lease holds without a word from the controller.
    pub lease_ttl: Duration,
    /// How often a probe reports.
    pub heartbeat: Duration,
    /// Where names and origins of addresses are looked up.
    pub lookup: lookup::Settings,
    /// What is kept of captures.
    pub captures: CaptureLimits,
    /// Where the bound addresses are written once everything accepts.
    pub ready_file: Option<PathBuf>,
}

/// `picket serve` and its flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ServeArgs {
    /// Configuration file (TOML); default /etc/picket/controller.toml where it exists
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the database, the keys and the admin token; made when missing [default: /var/lib/picket]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where probes connect, by MQTT over mutual TLS [default: port 8883 on every address]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen_mqtt: Option<String>,
    /// Where the HTTPS API answers [default: port 8443 on every address]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen_api: Option<String>,
    /// Where MQTT dashboards connect, read-only [default: port 8884 on every address]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen_dashboard: Option<String>,
    /// A host name or address under which probes and people reach this controller; may be given several times, the first is
    /// tried first [default: this machine's addresses and host name]
    #[arg(long = "name", value_name = "HOST_OR_IP")]
    pub names: Vec<String>,
    /// off, error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Writes the bound addresses to this file as JSON once everything accepts connections
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

impl Config {
    /// Reads all layers of the running process.
    pub fn load(args: &ServeArgs) -> Result<Self, ConfigError> {
        Self::from_layers(
            args,
            Path::new(DEFAULT_FILE),
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    /// Reads all layers, with the default file and the environment given.
    pub fn from_layers(
        args: &ServeArgs,
        default_file: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::default();
        match &args.config {
            Some(path) => layers.add_file(path, Missing::Refused)?,
            None => layers.add_file(default_file, Missing::Fine)?,
        }
        layers.add_environment(environment.into_iter().collect())?;
        layers.add_flags(args);
        layers.finish(args.ready_file.clone())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Fine,
    Refused,
}

/// Values as text, each with where it stands. Lists keep their items.
#[derive(Default)]
struct Layers(BTreeMap<&'static str, (Vec<String>, String)>);

impl Layers {
    fn add_file(&mut self, path: &Path, missing: Missing) -> Result<(), ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && missing == Missing::Fine => return Ok(()),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        let origin = path.display().to_string();
        let values = File::from_str(&text, FileFormat::Toml).collect();
        let values = values.map_err(|error| ConfigError::Syntax { origin: origin.clone(), reason: syntax(&error) })?;
        self.add(values, "", &|_| origin.clone())
    }

    fn add_environment(&mut self, variables: Map<String, String>) -> Result<(), ConfigError> {
        let source = Environment::with_prefix("PICKET").prefix_separator("_").separator("__").source(Some(variables));
        let mut values =
            source.collect().map_err(|error| ConfigError::Syntax { origin: "the environment".into(), reason: error.to_string() })?;
        values.retain(|key, _| !FOREIGN_VARIABLES.contains(&key.as_str()));
        self.add(values, "", &|key| format!("environment variable PICKET_{}", key.to_uppercase().replace('.', "__")))
    }

    fn add_flags(&mut self, args: &ServeArgs) {
        let flags = [
            ("data", "--data", args.data.as_ref().map(|path| path.display().to_string())),
            ("mqtt.listen", "--listen-mqtt", args.listen_mqtt.clone()),
            ("api.listen", "--listen-api", args.listen_api.clone()),
            ("dashboard.listen", "--listen-dashboard", args.listen_dashboard.clone()),
            ("log_level", "--log-level", args.log_level.clone()),
        ];
        for (key, flag, value) in flags {
            if let Some(value) = value {
                self.0.insert(key, (vec![value], flag.to_owned()));
            }
        }
        if !args.names.is_empty() {
            self.0.insert("names", (args.names.clone(), "--name".to_owned()));
        }
    }

    fn add(&mut self, values: Map<String, Value>, above: &str, origin: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
        let sorted: BTreeMap<String, Value> = values.into_iter().collect();
        for (name, value) in sorted {
            let key = if above.is_empty() { name } else { format!("{above}.{name}") };
            let is_section = KEYS.iter().any(|(known, _)| known.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with('.')));
            match (value.kind, KEYS.iter().find(|(known, _)| *known == key)) {
                (ValueKind::Table(inner), None) if is_section => self.add(inner, &key, origin)?,
                (kind, Some((known, _))) => {
                    let items = texts(kind).map_err(|reason| ConfigError::Value { origin: origin(&key), key: key.clone(), reason })?;
                    self.0.insert(known, (items, origin(&key)));
                }
                (_, None) if is_section => {
                    let reason = format!("this is a section: write [{key}] and its keys below it");
                    return Err(ConfigError::Value { origin: origin(&key), key, reason });
                }
                (_, None) => return Err(ConfigError::UnknownKey { origin: origin(&key), hint: nearest(&key), key }),
            }
        }
        Ok(())
    }

    fn list<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Result<Option<Vec<T>>, ConfigError> {
        let Some((items, origin)) = self.0.get(key) else { return Ok(None) };
        let items = items.iter().flat_map(|item| item.split(',')).map(str::trim).filter(|item| !item.is_empty());
        let wrong = |error: T::Err| ConfigError::Value { origin: origin.clone(), key: key.to_owned(), reason: error.to_string() };
        items.map(|item| item.parse().map_err(wrong)).collect::<Result<Vec<T>, _>>().map(Some)
    }

    fn one<T>(&self, key: &'static str, default: T, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        let Some((items, origin)) = self.0.get(key) else { return Ok(default) };
        let wrong = |reason| ConfigError::Value { origin: origin.clone(), key: key.to_owned(), reason };
        match items.as_slice() {
            [item] => parse(item).map_err(wrong),
            _ => Err(wrong("one value is expected, not a list".to_owned())),
        }
    }

    fn finish(self, ready_file: Option<PathBuf>) -> Result<Config, ConfigError> {
        let listen = |key, port| self.one(key, Listen::Everywhere(port), |text| text.parse());
        let (mqtt, api) = (listen("mqtt.listen", MQTT_PORT)?, listen("api.listen", API_PORT)?);
        let dashboard = listen("dashboard.listen", DASHBOARD_PORT)?;
        let (default, timing, captures) = (AddressPolicy::default(), Timing::default(), CaptureLimits::default());
        let policy = AddressPolicy {
            allow: self.list::<IpNet>("policy.allow")?.unwrap_or(default.allow),
            deny: self.list::<IpNet>("policy.deny")?.unwrap_or(default.deny),
        };
        let names = match self.list::<CheckedName>("names")? {
            Some(names) if !names.is_empty() => PublicNames(names.into_iter().map(|name| name.0).collect()),
            _ => default_names(&[api, mqtt])?,
        };
        let lookup = lookup::Settings {
            reverse: self.one("lookup.reverse", false, yes_or_no)?,
            server: self.one("lookup.server", None, |text| server(text).map(Some))?,
            timeout: self.one("lookup.timeout", lookup::DEFAULT_TIMEOUT, |text| within(text, 1, 30))?,
            origin: self.one("lookup.origin", None, |text| file(text).map(Some))?,
        };
        Ok(Config {
            data: self.one("data", PathBuf::from(DEFAULT_DATA), directory)?,
            names,
            log_level: self.one("log_level", LevelFilter::Info, level)?,
            prefix: self.one("topic_prefix", Prefix::default(), |text| text.parse().map_err(|e| format!("{e}")))?,
            mqtt,
            api,
            dashboard,
            policy,
            lease_ttl: self.one("leases.ttl", timing.lease_ttl, |text| within(text, 5, 3600))?,
            heartbeat: self.one("probes.heartbeat", timing.heartbeat, |text| within(text, 1, 300))?,
            lookup,
            captures: CaptureLimits {
                allow: self.one("captures.allow", captures.allow, str::parse)?,
                max_bytes: self.one("captures.max_bytes", captures.max_bytes, whole_number)?,
                keep: self.one("captures.keep", captures.keep, |text| within(text, 60, 10 * 366 * 86_400))?,
            },
            ready_file,
        })
    }
}

/// The message of the TOML parser, in one line.
fn syntax(error: &config::ConfigError) -> String {
    let text = match error {
        config::ConfigError::FileParse { cause, .. } => cause.to_string(),
        other => other.to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn texts(kind: ValueKind) -> Result<Vec<String>, String> {
    match kind {
        ValueKind::Array(items) => items.into_iter().map(|item| text(item.kind)).collect(),
        one => Ok(vec![text(one)?]),
    }
}

fn text(kind: ValueKind) -> Result<String, String> {
    match kind {
        ValueKind::String(text) => Ok(text),
        ValueKind::I64(number) => Ok(number.to_string()),
        ValueKind::U64(number) => Ok(number.to_string()),
        ValueKind::Boolean(yes) => Ok(yes.to_string()),
        _ => Err("text is expected".to_owned()),
    }
}

fn whole_number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is not a whole number of bytes, such as 10737418240"))
}

fn directory(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("a directory is expected".to_owned()),
        path => Ok(PathBuf::from(path)),
    }
}

fn file(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("a file is expected".to_owned()),
        path => Ok(PathBuf::from(path)),
    }
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("`{text}` is neither true nor false"))
}

/// An address and a port; 53 where none is named.
fn server(text: &str) -> Result<SocketAddr, String> {
    let plain = text.parse::<IpAddr>().map(|addr| SocketAddr::new(addr, DNS_PORT));
    plain
        .or_else(|_| text.parse())
        .map_err(|_| format!("`{text}` is not a DNS server: use for example 198.18.0.53, 198.18.0.53:5353 or [2001:db8::53]:53"))
}

fn level(text: &str) -> Result<LevelFilter, String> {
    text.parse().map_err(|_| format!("`{text}` is not a log level: use off, error, warn, info, debug or trace"))
}

fn within(text: &str, least: u64, most: u64) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|reason| reason.to_string())?;
    let fits = (Duration::from_secs(least)..=Duration::from_secs(most)).contains(&duration);
    fits.then_some(duration).ok_or_else(|| format!("`{text}` is out of range: from {least}s to {most}s"))
}

/// A name that a certificate can carry.
struct CheckedName(String);

impl FromStr for CheckedName {
    type Err = crate::pki::NameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Names::default().add(text)?;
        Ok(Self(text.trim_end_matches('.').to_ascii_lowercase()))
    }
}

/// The addresses that listeners are bound to; where one is bound everywhere, all of this machine and its host name.
fn default_names(listeners: &[Listen]) -> Result<PublicNames, ConfigError> {
    let bound: Vec<IpAddr> = listeners.iter().filter_map(|listen| listen.address()).collect();
    let mut names: Vec<String> = Vec::new();
    if bound.len() == listeners.len() {
        names.extend(bound.iter().map(IpAddr::to_string));
    } else {
        names.extend(machine_addresses()?.iter().map(IpAddr::to_string));
        names.extend(host_name());
    }
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    if names.is_empty() {
        // A machine without network is still good for a look around on itself.
        names.push("localhost".to_owned());
    }
    Ok(PublicNames(names))
}

/// Addresses of interfaces that are up, IPv4 first, without loopback and link-local ones.
fn machine_addresses() -> Result<Vec<IpAddr>, ConfigError> {
    let interfaces = nix::ifaddrs::getifaddrs().map_err(|error| ConfigError::NoNames { reason: error.desc().to_owned() })?;
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or(address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    };
    let mut addresses: Vec<IpAddr> = interfaces.filter_map(address).filter(is_reachable).collect();
    addresses.sort_by_key(|address| address.is_ipv6());
    Ok(addresses)
}

fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

fn host_name() -> Option<String> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    let usable = name != "localhost" && Names::default().add(&name).is_ok();
    usable.then(|| name.to_ascii_lowercase())
}

/// The known key with the fewest edits, where these are few.
fn nearest(key: &str) -> Option<&'static str> {
    let distance = |known: &str| edits(key, known).min(1 + edits(key, known.rsplit('.').next().unwrap_or(known)));
    let (known, _) = KEYS.iter().min_by_key(|(known, _)| distance(known))?;
    (distance(known) <= 1 + key.len() / 4).then_some(known)
}

/// Levenshtein distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let above = *cell;
            left = (diagonal + usize::from(x != y)).min(above + 1).min(left + 1);
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)], args: &ServeArgs) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("controller.toml");
        std::fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        Config::from_layers(args, &path, environment).map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
    }

    #[test]
    fn defaults_are_usable() {
        let config = load("", &[], &ServeArgs::default()).unwrap();
        assert_eq!(config.data, Path::new(DEFAULT_DATA));
        assert_eq!(
            (config.mqtt, config.api, config.dashboard),
            (Listen::Everywhere(8883), Listen::Everywhere(8443), Listen::Everywhere(8884))
        );
        assert_eq!(config.policy, AddressPolicy::default());
        assert!(config.names.iter().next().is_some());
    }

    #[test]
    fn later_layers_win() {
        let file = "names = ['a.example']\n[api]\nlisten = '198.18.0.1:1'\n[mqtt]\nlisten = ':2'\n[policy]\nallow = ['198.18.0.0/15']\ndeny = '198.18.7.0/24'\n";
        let environment =
            [("PICKET_API__LISTEN", "198.18.0.1:3"), ("PICKET_MQTT__LISTEN", ":4"), ("PICKET_TOKEN", "not for the service"), ("HOME", "/")];
        let args = ServeArgs { listen_api: Some("198.18.0.1:5".into()), ..ServeArgs::default() };
        let config = load(file, &environment, &args).unwrap();
        assert_eq!(config.api, "198.18.0.1:5".parse().unwrap());
        assert_eq!(config.mqtt, Listen::Everywhere(4));
        assert_eq!(config.names.iter().collect::<Vec<_>>(), ["a.example"]);
        assert_eq!(config.policy.allow, ["198.18.0.0/15".parse().unwrap()]);
        assert_eq!(config.policy.deny, ["198.18.7.0/24".parse().unwrap()]);
    }

    #[test]
    fn lists_in_the_environment_are_separated_by_commas() {
        let config = load(
            "",
            &[("PICKET_NAMES", "a.example, 198.18.0.1"), ("PICKET_POLICY__ALLOW", "198.18.0.0/15,2001:db8::/32")],
            &ServeArgs::default(),
        )
        .unwrap();
        assert_eq!(config.names.with_port(8443), ["a.example:8443", "198.18.0.1:8443"]);
        assert_eq!(config.policy.allow.len(), 2);
    }

    #[test]
    fn lookups_are_off_until_they_are_configured() {
        assert_eq!(load("", &[], &ServeArgs::default()).unwrap().lookup, lookup::Settings::default());
        let file = "[lookup]\nreverse = true\nserver = '198.18.0.53'\ntimeout = '5s'\norigin = '/var/lib/ip2asn-combined.tsv.gz'\n";
        let expected = lookup::Settings {
            reverse: true,
            server: Some("198.18.0.53:53".parse().unwrap()),
            timeout: Duration::from_secs(5),
            origin: Some("/var/lib/ip2asn-combined.tsv.gz".into()),
        };
        assert_eq!(load(file, &[], &ServeArgs::default()).unwrap().lookup, expected);
        let six = load("", &[("PICKET_LOOKUP__SERVER", "[2001:db8::53]:5353")], &ServeArgs::default()).unwrap();
        assert_eq!(six.lookup.server, Some("[2001:db8::53]:5353".parse().unwrap()));
    }

    #[test]
    fn names_follow_the_listeners() {
        let args =
            ServeArgs { listen_api: Some("198.18.0.1:1".into()), listen_mqtt: Some("[2001:db8::1]:2".into()), ..ServeArgs::default() };
        let config = load("", &[], &args).unwrap();
        assert_eq!(config.names.with_port(9), ["198.18.0.1:9", "[2001:db8::1]:9"]);
    }

    #[test]
    fn wrong_configuration_names_the_key_and_the_place() {
        let flags = ServeArgs::default;
        let errors = [
            load("[api]\nlisten = ':8443'\nlissen = ':1'\n", &[], &flags()),
            load("lisen = ':1'\n", &[], &flags()),
            load("completely = 'wrong'\n", &[], &flags()),
            load("[api.tls]\nx = 1\n", &[], &flags()),
            load("api = 7\n", &[], &flags()),
            load("names = [\n", &[], &flags()),
            load("[api]\nlisten = 'here'\n", &[], &flags()),
            load("[api]\nlisten = true\n", &[], &flags()),
            load("[api]\nlisten = [':1', ':2']\n", &[], &flags()),
            load("[policy]\nallow = ['198.18.0.0/33']\n", &[], &flags()),
            load("[leases]\nttl = '60'\n", &[], &flags()),
            load("[leases]\nttl = '1s'\n", &[], &flags()),
            load("topic_prefix = '/picket/'\n", &[], &flags()),
            load("[lookup]\nreverse = 'perhaps'\n", &[], &flags()),
            load("[lookup]\nserver = 'dns.example'\n", &[], &flags()),
            load("[lookup]\ntimeout = '1m'\n", &[], &flags()),
            load("[lookup]\norigins = ''\n", &[], &flags()),
            load("", &[("PICKET_API__LISTEM", ":1")], &flags()),
            load("", &[("PICKET_LOG_LEVEL", "loud")], &flags()),
            load("", &[], &ServeArgs { names: vec!["https://a.example".into()], ..flags() }),
            load("", &[], &ServeArgs { listen_mqtt: Some("1.2.3.4".into()), ..flags() }),
            load("", &[], &ServeArgs { config: Some("/nonexistent/controller.toml".into()), ..flags() }),
        ];
        let shown: Vec<String> = errors.into_iter().map(|error| error.unwrap_err()).collect();
        insta::assert_snapshot!(shown.join("\n"));
    }
}
