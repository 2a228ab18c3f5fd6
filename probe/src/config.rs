//! The probe's configuration: defaults, then `/etc/picket/probe.toml`, then `PICKET_` variables, then flags.
//!
//! Text becomes [`Raw`] (every field optional, unknown keys refused, one layer at a time so that the message can name the
//! layer), the layers are merged, and [`Config`] holds the checked result. After that nothing is checked again; each
//! component gets its own slice.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Environment, File, FileFormat, Map};
use picket_wire::addr::IpNet;
use picket_wire::capture::{HEADERS, Keeps, SNAP_LEAST, WHOLE};
use picket_wire::policy::AddressPolicy;
use picket_wire::units::{BitsPerSecond, PacketsPerSecond, PortSet};
use serde::Deserialize;

use crate::capture::ring::keeper::LEAST_BUDGET;
use crate::service::fragile::{SiteLeave, SitePolicy};
use crate::service::recog::{FingerprintError, Fingerprints};

/// Where the configuration is looked for when no `--config` is given; it may be absent.
pub const DEFAULT_FILE: &str = "/etc/picket/probe.toml";
/// Variables with this prefix belong to Picket; levels are separated by two underscores (`PICKET_INTERFACE__NAME`).
pub const ENV_PREFIX: &str = "PICKET_";
/// Variables with our prefix that belong to the operator's command line, which may share an environment with a probe.
const FOREIGN_VARIABLES: [&str; 8] = ["SERVER", "CA", "TOKEN", "TOKEN_FILE", "BIN_DIR", "REQUIRE_LAB", "API", "LOG"];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A layer cannot be read, or holds something that it should not.
    #[error("{layer}: {reason}")]
    Layer {
        /// The file, or `environment`.
        layer: String,
        /// What is wrong; names the key.
        reason: String,
    },
    /// A value is not what its key wants.
    #[error("configuration key `{key}`: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

/// One layer as text has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// Where the probe keeps its identity, spool and memory.
    pub data: Option<PathBuf>,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: Option<String>,
    /// The measuring interface.
    pub interface: RawInterface,
    /// The site's address policy.
    pub policy: RawPolicy,
    /// The spool.
    pub spool: RawSpool,
    /// Service detection.
    pub services: RawServices,
    /// Captures of jobs.
    pub capture: RawCapture,
    /// The ring of captures.
    pub ring: RawRing,
}

/// See [`RingConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRing {
    /// Most bytes; without it there is no ring.
    pub max_bytes: Option<u64>,
    /// Its interface.
    pub interface: Option<String>,
    /// Which packets.
    pub filter: Option<String>,
    /// Bytes of each packet.
    pub snap_length: Option<u32>,
    /// Hours that packets are kept.
    pub keep_hours: Option<u64>,
    /// Bytes of the disk that stay free.
    pub keep_free: Option<u64>,
    /// Whether the probe's own traffic is in it.
    pub with_own: Option<bool>,
}

/// See [`CaptureConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawCapture {
    /// `off`, `headers` or `payload`.
    pub allow: Option<String>,
    /// Most bytes of all files.
    pub max_bytes: Option<u64>,
    /// Bytes of the disk that stay free.
    pub keep_free: Option<u64>,
    /// Days that a file waits for the controller.
    pub keep_days: Option<u64>,
}

/// See [`ServicesConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawServices {
    /// `true`, `false`, or the ports.
    pub ask_fragile: Option<RawLeave>,
    /// More fragile ports.
    pub fragile: Option<String>,
    /// A directory of fingerprints.
    pub fingerprints: Option<PathBuf>,
}

/// What may be asked: everything, nothing, or some ports.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum RawLeave {
    /// All of them or none.
    All(bool),
    /// One port.
    Port(u16),
    /// Ports, as in `502,9100-9107`.
    Ports(String),
}

/// See [`InterfaceConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawInterface {
    /// Its name.
    pub name: Option<String>,
    /// Packet rate with its unit.
    pub packets: Option<String>,
    /// Bit rate with its unit.
    pub bits: Option<String>,
    /// `auto` or `off`.
    pub xdp: Option<String>,
    /// `demand`, `use` or `off`.
    pub shaper: Option<String>,
}

/// See [`AddressPolicy`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPolicy {
    /// Networks that may be probed.
    pub allow: Option<Vec<String>>,
    /// Networks that may not.
    pub deny: Option<Vec<String>>,
}

/// See [`SpoolLimits`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawSpool {
    /// Most bytes on disk.
    pub max_bytes: Option<u64>,
    /// Least time between two writes to the medium, in milliseconds.
    pub fsync_interval_ms: Option<u64>,
}

/// The measuring interface and what it may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Its name; `None` for the one that holds the default route.
    pub name: Option<String>,
    /// Packets per second over everything that is sent there. Default 1000: below what upsets the smallest router.
    pub packets: PacketsPerSecond,
    /// Bits per second of layer-2 frames. Default 10 Mbit.
    pub bits: BitsPerSecond,
    /// Whether frames may leave by AF_XDP. Default: where it is worth it.
    pub xdp: XdpUse,
    /// What the site says of the kernel's shaper. Default: used where it is installed.
    pub shaper: ShaperUse,
}

/// What the site says of the kernel's shaper (`picket-probe shaper`), which holds the sum of all marked packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShaperUse {
    /// Nothing is measured without it.
    Demand,
    /// Packets are marked for it, and whether it is there is reported.
    #[default]
    Use,
    /// Packets are not marked.
    Off,
}

/// Whether frames may leave by AF_XDP, which no queueing discipline and no capture on this box sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpUse {
    /// Where the interface may send so fast that the processor time matters ([`XDP_FROM`]), the kernel has it, and nothing on
    /// the box has to see the frames.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// From this limit of an interface on, AF_XDP is worth what it hides: below, AF_PACKET does it on one core as well, and where the
/// other end of a virtual link is served by another processor it is even cheaper.
pub const XDP_FROM: u32 = 250_000;

impl InterfaceConfig {
    /// Whether AF_XDP is to be tried.
    pub fn wants_xdp(&self) -> bool {
        self.xdp == XdpUse::Auto && self.shaper != ShaperUse::Demand && self.packets.get() >= XDP_FROM
    }
}

/// What the site says of service detection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServicesConfig {
    /// Which fragile ports may be asked, and which are fragile here. Default: none but the documented list, and none may be asked.
    pub site: SitePolicy,
    /// A directory of fingerprints in Recog's schema, tried before those that are built in. Default: none.
    pub fingerprints: Option<PathBuf>,
}

impl ServicesConfig {
    /// The fingerprints: those of the site's directory, where there is one, and those that are built in.
    ///
    /// # Errors
    /// When the directory's are not in the schema.
    pub fn load_fingerprints(&self) -> Result<Fingerprints, FingerprintError> {
        self.fingerprints.as_deref().map_or_else(|| Ok(Fingerprints::builtin()), Fingerprints::with_dir)
    }
}

/// What the spool may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolLimits {
    /// Most bytes on disk. Default 256 MiB: at 5 bytes an answer, 50 million answers.
    pub max_bytes: u64,
    /// Least time between two writes to the medium. Default 1 s: a power cut costs at most so much, and the card lives.
    pub fsync_interval: Duration,
}

/// What the site says of captures that a controller asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureConfig {
    /// What may be kept of packets. Default: headers.
    pub allow: Keeps,
    /// Most bytes of all files that are not at the controller. Default 1 GiB.
    pub max_bytes: u64,
    /// Bytes of their file system that stay free. Default 256 MiB.
    pub keep_free: u64,
    /// How long a file waits for a controller that does not take it. Default 30 days.
    pub keep: Duration,
    /// How often the disk is asked to confirm a file that grows: the spool's `fsync_interval_ms`.
    pub sync_every: Duration,
}

/// A rolling capture of the site's own, which jobs may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingConfig {
    /// Most bytes of the disk.
    pub bytes: u64,
    /// The interface, or `any`. Default: the one that is measured on.
    pub interface: Option<String>,
    /// Which packets, in the language of pcap-filter(7). Default: all.
    pub filter: String,
    /// Bytes of each packet that are kept. Default: its headers.
    pub snap_len: u32,
    /// How long packets are kept. Default: as long as there is room.
    pub keep: Option<Duration>,
    /// Bytes of their file system that stay free. Default 256 MiB.
    pub keep_free: u64,
    /// Whether the probe's own measurements and its connection to the controller are in it. Default: no.
    pub with_own: bool,
}

/// The checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the probe keeps its identity, spool and memory. Default `/var/lib/picket-probe`.
    pub data: PathBuf,
    /// What is logged. Default `info`.
    pub log_level: log::LevelFilter,
    /// The measuring interface.
    pub interface: InterfaceConfig,
    /// The site's own address policy: only local hands change it. Default: private networks.
    pub policy: AddressPolicy,
    /// The spool.
    pub spool: SpoolLimits,
    /// Service detection.
    pub services: ServicesConfig,
    /// Captures of jobs.
    pub capture: CaptureConfig,
    /// The ring of captures, where the site wants one.
    pub ring: Option<RingConfig>,
}

/// Reads all layers. `file` is what `--config` named; `variables` are the environment's.
pub fn load(file: Option<&Path>, variables: impl IntoIterator<Item = (String, String)>, flags: Raw) -> Result<Config, ConfigError> {
    let from_file = match file {
        Some(path) => read_file(path, true)?,
        None => read_file(Path::new(DEFAULT_FILE), false)?,
    };
    let from_env = read_variables(variables)?;
    check(merge(merge(from_file, from_env), flags))
}

fn read_file(path: &Path, required: bool) -> Result<Raw, ConfigError> {
    let source = File::from(path).format(FileFormat::Toml).required(required);
    read_layer(path.display().to_string(), config::Config::builder().add_source(source))
}

fn read_variables(variables: impl IntoIterator<Item = (String, String)>) -> Result<Raw, ConfigError> {
    let ours = variables.into_iter().filter_map(|(name, value)| {
        let key = name.strip_prefix(ENV_PREFIX)?;
        (!FOREIGN_VARIABLES.contains(&key)).then(|| (key.to_owned(), value))
    });
    let ours: Map<String, String> = ours.collect::<HashMap<_, _>>().into_iter().collect();
    let source = Environment::default()
        .separator("__")
        .list_separator(",")
        .with_list_parse_key("policy.allow")
        .with_list_parse_key("policy.deny")
        .try_parsing(true)
        .source(Some(ours));
    read_layer(format!("environment ({ENV_PREFIX}...)"), config::Config::builder().add_source(source))
}

fn read_layer(layer: String, builder: config::ConfigBuilder<config::builder::DefaultState>) -> Result<Raw, ConfigError> {
    builder.build().and_then(config::Config::try_deserialize).map_err(|error| ConfigError::Layer { layer, reason: error.to_string() })
}

/// `over` wins where it says something.
fn merge(under: Raw, over: Raw) -> Raw {
    Raw {
        data: over.data.or(under.data),
        log_level: over.log_level.or(under.log_level),
        interface: RawInterface {
            name: over.interface.name.or(under.interface.name),
            packets: over.interface.packets.or(under.interface.packets),
            bits: over.interface.bits.or(under.interface.bits),
            xdp: over.interface.xdp.or(under.interface.xdp),
            shaper: over.interface.shaper.or(under.interface.shaper),
        },
        policy: RawPolicy { allow: over.policy.allow.or(under.policy.allow), deny: over.policy.deny.or(under.policy.deny) },
        spool: RawSpool {
            max_bytes: over.spool.max_bytes.or(under.spool.max_bytes),
            fsync_interval_ms: over.spool.fsync_interval_ms.or(under.spool.fsync_interval_ms),
        },
        services: RawServices {
            ask_fragile: over.services.ask_fragile.or(under.services.ask_fragile),
            fragile: over.services.fragile.or(under.services.fragile),
            fingerprints: over.services.fingerprints.or(under.services.fingerprints),
        },
        capture: RawCapture {
            allow: over.capture.allow.or(under.capture.allow),
            max_bytes: over.capture.max_bytes.or(under.capture.max_bytes),
            keep_free: over.capture.keep_free.or(under.capture.keep_free),
            keep_days: over.capture.keep_days.or(under.capture.keep_days),
        },
        ring: RawRing {
            max_bytes: over.ring.max_bytes.or(under.ring.max_bytes),
            interface: over.ring.interface.or(under.ring.interface),
            filter: over.ring.filter.or(under.ring.filter),
            snap_length: over.ring.snap_length.or(under.ring.snap_length),
            keep_hours: over.ring.keep_hours.or(under.ring.keep_hours),
            keep_free: over.ring.keep_free.or(under.ring.keep_free),
            with_own: over.ring.with_own.or(under.ring.with_own),
        },
    }
}

/// The least spool that is worth having.
const SPOOL_MIN: u64 = 1024 * 1024;

fn check(raw: Raw) -> Result<Config, ConfigError> {
    fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(key: &'static str, text: &str) -> Result<T, ConfigError> {
        text.parse().map_err(|error: T::Err| ConfigError::Value { key, reason: error.to_string() })
    }
    fn nets(key: &'static str, texts: Vec<String>) -> Result<Vec<IpNet>, ConfigError> {
        texts.iter().map(|text| parse(key, text)).collect()
    }
    let log_level = match raw.log_level {
        Some(text) => text.parse().map_err(|_| ConfigError::Value {
            key: "log_level",
            reason: format!("`{text}` is not a level: use off, error, warn, info, debug or trace"),
        })?,
        None => log::LevelFilter::Info,
    };
    let RawInterface { name, packets, bits, xdp, shaper } = raw.interface;
    let default_policy = AddressPolicy::default();
    let max_bytes = raw.spool.max_bytes.unwrap_or(256 * 1024 * 1024);
    if max_bytes < SPOOL_MIN {
        return Err(ConfigError::Value { key: "spool.max_bytes", reason: format!("{max_bytes} is too small: use at least {SPOOL_MIN}") });
    }
    let leave = match raw.services.ask_fragile {
        None | Some(RawLeave::All(false)) => SiteLeave::None,
        Some(RawLeave::All(true)) => SiteLeave::All,
        Some(RawLeave::Port(port)) => SiteLeave::Ports(PortSet::from_ranges([(port, port)])),
        Some(RawLeave::Ports(text)) => SiteLeave::Ports(parse("services.ask_fragile", &text)?),
    };
    let more = raw.services.fragile.map(|text| parse("services.fragile", &text)).transpose()?;
    let fsync_interval = Duration::from_millis(raw.spool.fsync_interval_ms.unwrap_or(1000));
    let keep_days = raw.capture.keep_days.unwrap_or(30);
    if !(1..=3650).contains(&keep_days) {
        return Err(ConfigError::Value { key: "capture.keep_days", reason: format!("{keep_days} days are not possible: use 1 to 3650") });
    }
    Ok(Config {
        ring: ring(raw.ring)?,
        capture: CaptureConfig {
            allow: parse("capture.allow", raw.capture.allow.as_deref().unwrap_or("headers"))?,
            max_bytes: raw.capture.max_bytes.unwrap_or(1 << 30),
            keep_free: raw.capture.keep_free.unwrap_or(256 << 20),
            keep: Duration::from_secs(keep_days * 86_400),
            sync_every: fsync_interval,
        },
        services: ServicesConfig { site: SitePolicy { leave, more }, fingerprints: raw.services.fingerprints },
        data: raw.data.unwrap_or_else(|| PathBuf::from("/var/lib/picket-probe")),
        log_level,
        interface: InterfaceConfig {
            name,
            packets: parse("interface.packets", packets.as_deref().unwrap_or("1kpps"))?,
            bits: parse("interface.bits", bits.as_deref().unwrap_or("10Mbit"))?,
            xdp: xdp_use(xdp.as_deref())?,
            shaper: shaper_use(shaper.as_deref())?,
        },
        policy: AddressPolicy {
            allow: raw.policy.allow.map_or(Ok(default_policy.allow), |texts| nets("policy.allow", texts))?,
            deny: raw.policy.deny.map_or(Ok(default_policy.deny), |texts| nets("policy.deny", texts))?,
        },
        spool: SpoolLimits { max_bytes, fsync_interval },
    })
}

/// The ring, where it has a size. Its other keys without one would be forgotten, not meant.
fn ring(raw: RawRing) -> Result<Option<RingConfig>, ConfigError> {
    let wrong = |key, reason| Err(ConfigError::Value { key, reason });
    let Some(bytes) = raw.max_bytes else {
        return match raw == RawRing::default() {
            true => Ok(None),
            false => wrong("ring.max_bytes", "say how many bytes of the disk the ring may take, for example 2000000000".to_owned()),
        };
    };
    if bytes < LEAST_BUDGET {
        return wrong("ring.max_bytes", format!("{bytes} is too small: use at least {LEAST_BUDGET}"));
    }
    let snap_len = raw.snap_length.unwrap_or(HEADERS);
    if !(SNAP_LEAST..=WHOLE).contains(&snap_len) {
        return wrong("ring.snap_length", format!("{snap_len} bytes of each packet cannot be kept: use {SNAP_LEAST} to {WHOLE}"));
    }
    if raw.keep_hours == Some(0) {
        return wrong("ring.keep_hours", "0 hours keep nothing: leave it out, or use at least 1".to_owned());
    }
    Ok(Some(RingConfig {
        bytes,
        interface: raw.interface,
        filter: raw.filter.unwrap_or_default(),
        snap_len,
        keep: raw.keep_hours.map(|hours| Duration::from_secs(hours.saturating_mul(3_600))),
        keep_free: raw.keep_free.unwrap_or(256 << 20),
        with_own: raw.with_own.unwrap_or(false),
    }))
}

fn shaper_use(text: Option<&str>) -> Result<ShaperUse, ConfigError> {
    match text {
        None | Some("use") => Ok(ShaperUse::Use),
        Some("demand") => Ok(ShaperUse::Demand),
        Some("off") => Ok(ShaperUse::Off),
        Some(other) => Err(ConfigError::Value { key: "interface.shaper", reason: format!("`{other}`: use `demand`, `use` or `off`") }),
    }
}

fn xdp_use(text: Option<&str>) -> Result<XdpUse, ConfigError> {
    match text {
        None | Some("auto") => Ok(XdpUse::Auto),
        Some("off") => Ok(XdpUse::Off),
        Some(other) => Err(ConfigError::Value { key: "interface.xdp", reason: format!("`{other}`: use `auto` or `off`") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("probe.toml");
        std::fs::write(&path, text).unwrap();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load(Some(&path), variables, Raw::default()).map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), "DIR"))
    }

    #[test]
    fn defaults_are_careful() {
        let config = load_text("", &[]).unwrap();
        assert_eq!((config.interface.packets.get(), config.interface.bits.get()), (1000, 10_000_000));
        assert_eq!(config.policy, AddressPolicy::default());
    }

    #[test]
    fn a_slow_interface_needs_no_xdp() {
        let wants = |text: &str| load_text(&format!("[interface]\n{text}"), &[]).unwrap().interface.wants_xdp();
        assert!(!wants("") && !wants("packets = '249kpps'") && wants("packets = '250kpps'"));
        assert!(wants("packets = '1Mpps'\nxdp = 'auto'") && !wants("packets = '1Mpps'\nxdp = 'off'"));
    }

    #[test]
    fn fragile_ports_are_spared_unless_the_site_says_otherwise() {
        let site = |text: &str, variables: &[(&str, &str)]| load_text(text, variables).unwrap().services.site;
        assert_eq!(site("", &[]), SitePolicy::default());
        assert_eq!(site("", &[]).leave, SiteLeave::None);
        assert_eq!(site("[services]\nask_fragile = true", &[]).leave, SiteLeave::All);
        assert_eq!(site("[services]\nask_fragile = true", &[("PICKET_SERVICES__ASK_FRAGILE", "false")]).leave, SiteLeave::None);
        let ports = |text: &str| SiteLeave::Ports(text.parse().unwrap());
        assert_eq!(site("[services]\nask_fragile = '502,9100-9107'", &[]).leave, ports("502,9100-9107"));
        assert_eq!(site("[services]\nask_fragile = 502", &[]).leave, ports("502"));
        assert_eq!(site("[services]\nfragile = '4001-4016'", &[]).more, Some("4001-4016".parse().unwrap()));
    }

    #[test]
    fn later_layers_win() {
        let text = "data = '/a'\n[interface]\nname = 'eth0'\npackets = '2kpps'\n[policy]\nallow = ['198.18.0.0/15']";
        let config = load_text(
            text,
            &[
                ("PICKET_INTERFACE__PACKETS", "3kpps"),
                ("PICKET_POLICY__DENY", "198.18.9.0/24,198.18.8.1"),
                ("PICKET_SERVER", "x"),
                ("HOME", "/"),
            ],
        )
        .unwrap();
        assert_eq!((config.interface.name.as_deref(), config.interface.packets.get()), (Some("eth0"), 3000));
        assert_eq!(config.policy.deny.iter().map(ToString::to_string).collect::<Vec<_>>(), ["198.18.9.0/24", "198.18.8.1"]);
        let flags = Raw { data: Some("/b".into()), ..Raw::default() };
        assert_eq!(load(None, [], flags).unwrap().data, Path::new("/b"));
    }

    #[test]
    fn wrong_configuration_names_layer_and_key() {
        let error = |text, variables: &[(&str, &str)]| load_text(text, variables).unwrap_err();
        for (text, variables, parts) in [
            ("[interface]\nspeed = 3", &[][..], &["DIR/probe.toml", "unknown field `speed`"][..]),
            ("nonsense", &[], &["DIR/probe.toml"]),
            ("", &[("PICKET_INTERFACE__SPEED", "3")], &["environment", "unknown field `speed`"]),
            ("[interface]\npackets = '500'", &[], &["`interface.packets`", "`500` has no unit"]),
            ("[interface]\nbits = '10MB'", &[], &["`interface.bits`", "`10MB` is not a bit rate"]),
            ("[interface]\nshaper = 'yes'", &[], &["`interface.shaper`", "`yes`", "`demand`, `use` or `off`"]),
            ("[interface]\nxdp = 'fast'", &[], &["`interface.xdp`", "`fast`", "`auto` or `off`"]),
            ("[policy]\nallow = ['198.18.0.0/33']", &[], &["`policy.allow`", "`198.18.0.0/33` has no such prefix length"]),
            ("log_level = 'loud'", &[], &["`log_level`", "`loud` is not a level"]),
            ("[spool]\nmax_bytes = 5", &[], &["`spool.max_bytes`", "5 is too small"]),
            ("[services]\nask_fragile = '9107-9100'", &[], &["`services.ask_fragile`", "`9107-9100`"]),
            ("[services]\nfragile = 'all'", &[], &["`services.fragile`", "`all`"]),
        ] {
            let message = error(text, variables);
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        let missing = load(Some(Path::new("/nonexistent/probe.toml")), [], Raw::default()).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/probe.toml"), "{missing}");
    }
}
