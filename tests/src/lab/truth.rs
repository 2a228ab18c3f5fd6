//! What is true of a target network: which host is there, which of its ports is open, refused or silent. Computed from a seed, so
//! that a test, the target that realises it and a second run of both agree.
//!
//! Must not know: namespaces, or how the truth is realised ([`super::target`]).
//!
//! Invariant: the same [`TruthSpec`] gives the same [`Truth`], in every build.
//! Invariant: every address is inside 198.18.0.0/15, 192.0.2.0/24 or 2001:db8::/32.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// More hosts than this are not listed one by one.
const MOST_HOSTS: u64 = 1 << 17;

/// A network: an address and a prefix length, host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Network {
    address: IpAddr,
    length: u8,
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Network {
    type Err = anyhow::Error;

    /// Reads `address/length`; host bits must be zero.
    fn from_str(text: &str) -> Result<Self> {
        let (address, length) = text.split_once('/').with_context(|| format!("network {text:?}: no prefix length"))?;
        let address: IpAddr = address.parse().with_context(|| format!("network {text:?}"))?;
        let length: u8 = length.parse().with_context(|| format!("network {text:?}"))?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        ensure!(length <= width, "network {text:?}: prefix length over {width}");
        let this = Self { address, length };
        ensure!(this.at(0) == Some(address) && number(address) & this.host_mask() == 0, "network {text:?}: host bits are set");
        Ok(this)
    }
}

impl Network {
    /// Its first address.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Its prefix length.
    #[must_use]
    pub fn length(self) -> u8 {
        self.length
    }

    /// How many addresses it holds; `u64::MAX` when more than that.
    #[must_use]
    pub fn size(self) -> u64 {
        self.host_mask().checked_add(1).and_then(|size| u64::try_from(size).ok()).unwrap_or(u64::MAX)
    }

    /// True when the address is in it. IPv4 and IPv6 never mix.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && number(address) & !self.host_mask() == number(self.address)
    }

    /// Its address number `index`, from 0.
    #[must_use]
    pub fn at(self, index: u64) -> Option<IpAddr> {
        if u128::from(index) > self.host_mask() {
            return None;
        }
        let value = number(self.address) + u128::from(index);
        Some(match self.address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(value).ok()?)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(value)),
        })
    }

    fn host_mask(self) -> u128 {
        let width = if self.address.is_ipv4() { 32 } else { 128 };
        let bits = width - u32::from(self.length);
        if bits == 128 { u128::MAX } else { (1 << bits) - 1 }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// True for the addresses that a lab may use: benchmarking and documentation prefixes only (RFC 2544, RFC 5737, RFC 3849).
#[must_use]
pub fn permitted(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let octets = v4.octets();
            (octets[0] == 198 && octets[1] & 0xfe == 18) || octets[..3] == [192, 0, 2]
        }
        IpAddr::V6(v6) => v6.segments()[..2] == [0x2001, 0xdb8],
    }
}

/// What a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// Answers echo requests; its ports are as their own truth says.
    Up,
    /// Ignores echo requests; its ports are as their own truth says.
    Shy,
    /// Is not there: nothing that is sent to it is ever answered.
    Dead,
}

/// What a TCP port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PortTruth {
    /// A SYN is answered by SYN+ACK.
    Open,
    /// A SYN is answered by RST: connection refused.
    Closed,
    /// A SYN is not answered.
    Silent,
}

/// How often each state comes, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mix {
    /// Hosts that are dead.
    pub dead: u16,
    /// Hosts that are shy (the rest is up).
    pub shy: u16,
    /// Ports, of hosts that are not dead, that are open.
    pub open: u16,
    /// Ports, of hosts that are not dead, that are silent (the rest is closed).
    pub silent: u16,
}

impl Default for Mix {
    fn default() -> Self {
        Self { dead: 300, shy: 100, open: 250, silent: 250 }
    }
}

/// From what a [`Truth`] is computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TruthSpec {
    seed: u64,
    networks: Vec<Network>,
    ports: Vec<u16>,
    mix: Mix,
    #[serde(skip)]
    hosts: BTreeMap<IpAddr, HostState>,
    #[serde(skip)]
    host_ports: BTreeMap<(IpAddr, u16), PortTruth>,
}

impl TruthSpec {
    /// A truth for these networks and listened ports. Every other port of a host that is not dead is closed.
    ///
    /// # Errors
    /// When a network does not parse.
    pub fn new(seed: u64, networks: &[&str], ports: &[u16]) -> Result<Self> {
        let networks = networks.iter().map(|text| text.parse()).collect::<Result<_>>()?;
        let ports: BTreeSet<u16> = ports.iter().copied().collect();
        let ports = ports.into_iter().collect();
        Ok(Self { seed, networks, ports, mix: Mix::default(), hosts: BTreeMap::new(), host_ports: BTreeMap::new() })
    }

    /// How often each state comes.
    #[must_use]
    pub fn mix(mut self, mix: Mix) -> Self {
        self.mix = mix;
        self
    }

    /// Sets what one host is, whatever the seed says.
    #[must_use]
    pub fn host(mut self, address: IpAddr, state: HostState) -> Self {
        self.hosts.insert(address, state);
        self
    }

    /// Sets what one listened port of one host is, whatever the seed says (a dead host stays dead).
    #[must_use]
    pub fn port(mut self, address: IpAddr, port: u16, truth: PortTruth) -> Self {
        self.host_ports.insert((address, port), truth);
        self
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Computes the truth.
    ///
    /// # Errors
    /// When a network is outside the lab's prefixes, overlaps another or is too big to list, or something set by hand is outside.
    pub fn build(self) -> Result<Truth> {
        let mut size = 0_u64;
        for (n, network) in self.networks.iter().enumerate() {
            size = size.saturating_add(network.size());
            let last = network.at(network.size() - 1).with_context(|| format!("network {network} is too big"))?;
            ensure!(permitted(network.address) && permitted(last), "network {network} is outside the prefixes that a lab may use");
            if let Some(other) = self.networks[..n].iter().find(|o| o.contains(network.address) || network.contains(o.address)) {
                bail!("networks {other} and {network} overlap");
            }
        }
        ensure!(size <= MOST_HOSTS, "{size} hosts are too many to list (at most {MOST_HOSTS})");
        let all = self.mix;
        ensure!(all.dead + all.shy <= 1000 && all.open + all.silent <= 1000, "a mix of more than 1000 thousandths: {all:?}");
        for address in self.hosts.keys().chain(self.host_ports.keys().map(|(address, _)| address)) {
            ensure!(self.networks.iter().any(|network| network.contains(*address)), "{address} is in none of the networks");
        }
        for (address, port) in self.host_ports.keys() {
            ensure!(self.ports.binary_search(port).is_ok(), "{address} port {port} is set by hand but is not a listened port");
        }
        let mut hosts = BTreeMap::new();
        for network in &self.networks {
            for address in (0..network.size()).filter_map(|index| network.at(index)) {
                let host = self.one(address);
                hosts.insert(address, host);
            }
        }
        Ok(Truth { spec: self, hosts })
    }

    fn one(&self, address: IpAddr) -> Host {
        let state = self.hosts.get(&address).copied().unwrap_or_else(|| match draw(self.seed, address, None) {
            n if n < self.mix.dead => HostState::Dead,
            n if n < self.mix.dead + self.mix.shy => HostState::Shy,
            _ => HostState::Up,
        });
        let port = |port: &u16| {
            self.host_ports.get(&(address, *port)).copied().unwrap_or_else(|| match draw(self.seed, address, Some(*port)) {
                n if n < self.mix.open => PortTruth::Open,
                n if n < self.mix.open + self.mix.silent => PortTruth::Silent,
                _ => PortTruth::Closed,
            })
        };
        let ports = match state {
            HostState::Dead => vec![PortTruth::Silent; self.ports.len()],
            _ => self.ports.iter().map(port).collect(),
        };
        Host { state, ports }
    }
}

/// A number below 1000 for a host, or for a port of it.
fn draw(seed: u64, address: IpAddr, port: Option<u16>) -> u16 {
    let number = number(address);
    let mut hash = seed;
    let family = if address.is_ipv4() { 4 } else { 6 };
    for part in [number as u64, (number >> 64) as u64, family, port.map_or(0, |port| u64::from(port) + 1)] {
        hash = mix(hash ^ part);
    }
    u16::try_from(hash % 1000).expect("below 1000")
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Host {
    state: HostState,
    /// Parallel to the spec's sorted ports.
    ports: Vec<PortTruth>,
}

/// How many ports are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Open ports.
    pub open: u64,
    /// Closed ports.
    pub closed: u64,
    /// Silent ports.
    pub silent: u64,
}

impl Counts {
    /// All of them.
    #[must_use]
    pub fn total(self) -> u64 {
        self.open + self.closed + self.silent
    }
}

/// What is true of a target network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    spec: TruthSpec,
    hosts: BTreeMap<IpAddr, Host>,
}

impl Truth {
    /// From what it was computed.
    #[must_use]
    pub fn spec(&self) -> &TruthSpec {
        &self.spec
    }

    /// Its networks.
    #[must_use]
    pub fn networks(&self) -> &[Network] {
        &self.spec.networks
    }

    /// The ports that are listened on, ascending.
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.spec.ports
    }

    /// What a TCP port of an address answers. `None` for an address outside the networks: nothing is known of it.
    #[must_use]
    pub fn state(&self, address: IpAddr, port: u16) -> Option<PortTruth> {
        let host = self.hosts.get(&address)?;
        Some(match self.spec.ports.binary_search(&port) {
            Ok(index) => host.ports[index],
            Err(_) if host.state == HostState::Dead => PortTruth::Silent,
            Err(_) => PortTruth::Closed,
        })
    }

    /// What an address is. `None` outside the networks.
    #[must_use]
    pub fn host(&self, address: IpAddr) -> Option<HostState> {
        self.hosts.get(&address).map(|host| host.state)
    }

    /// True when the address answers echo requests.
    #[must_use]
    pub fn answers_echo(&self, address: IpAddr) -> bool {
        self.host(address) == Some(HostState::Up)
    }

    /// All addresses with what they are, ascending, IPv4 first.
    pub fn hosts(&self) -> impl Iterator<Item = (IpAddr, HostState)> + '_ {
        self.hosts.iter().map(|(address, host)| (*address, host.state))
    }

    /// All addresses of one network with what they are, ascending.
    pub fn hosts_of(&self, network: Network) -> impl Iterator<Item = (IpAddr, HostState)> + '_ {
        self.hosts().filter(move |(address, _)| network.contains(*address))
    }

    /// All listened ports of all addresses, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, u16, PortTruth)> + '_ {
        self.hosts.iter().flat_map(|(address, host)| self.spec.ports.iter().zip(&host.ports).map(|(port, truth)| (*address, *port, *truth)))
    }

    /// The listened ports that are in a state.
    pub fn in_state(&self, wanted: PortTruth) -> impl Iterator<Item = (IpAddr, u16)> + '_ {
        self.iter().filter(move |(_, _, truth)| *truth == wanted).map(|(address, port, _)| (address, port))
    }

    /// What a right scan of these ports over a network must count.
    #[must_use]
    pub fn counts(&self, network: Network, ports: &[u16]) -> Counts {
        let mut counts = Counts::default();
        for (address, _) in self.hosts_of(network) {
            for port in ports {
                match self.state(address, *port) {
                    Some(PortTruth::Open) => counts.open += 1,
                    Some(PortTruth::Closed) => counts.closed += 1,
                    Some(PortTruth::Silent) | None => counts.silent += 1,
                }
            }
        }
        counts
    }

    /// Up to `count` listened ports that are in a state, spread evenly over all that are, so that both families and all networks
    /// are among them.
    #[must_use]
    pub fn sample(&self, wanted: PortTruth, count: usize) -> Vec<(IpAddr, u16)> {
        let all: Vec<_> = self.in_state(wanted).collect();
        let step = all.len().div_ceil(count.max(1)).max(1);
        all.into_iter().step_by(step).collect()
    }

    /// Writes it as JSON: the spec, and one object a host with its ports by state.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        #[derive(Serialize)]
        struct Row {
            address: IpAddr,
            host: HostState,
            open: Vec<u16>,
            closed: Vec<u16>,
            silent: Vec<u16>,
        }
        #[derive(Serialize)]
        struct All<'a> {
            #[serde(flatten)]
            spec: &'a TruthSpec,
            hosts: Vec<Row>,
        }
        let of = |host: &Host, wanted| {
            self.spec.ports.iter().zip(&host.ports).filter(|(_, truth)| **truth == wanted).map(|(port, _)| *port).collect()
        };
        let hosts = self.hosts.iter().map(|(address, host)| Row {
            address: *address,
            host: host.state,
            open: of(host, PortTruth::Open),
            closed: of(host, PortTruth::Closed),
            silent: of(host, PortTruth::Silent),
        });
        let text = serde_json::to_vec(&All { spec: &self.spec, hosts: hosts.collect() }).context("write the truth as JSON")?;
        std::fs::write(file, text).with_context(|| format!("write the truth to {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn networks_parse_and_count() {
        let v4 = net("198.18.16.0/20");
        assert_eq!((v4.size(), v4.at(4095)), (4096, Some("198.18.31.255".parse().unwrap())));
        assert_eq!(v4.at(4096), None);
        assert!(v4.contains("198.18.17.1".parse().unwrap()) && !v4.contains("198.18.32.0".parse().unwrap()));
        assert!(!net("::/0").contains("198.18.17.1".parse().unwrap()));
        assert_eq!(net("2001:db8::/64").size(), u64::MAX);
        for bad in ["198.18.0.1/20", "198.18.0.0", "198.18.0.0/33", "2001:db8::/129", "x/1", "1.2.3.4/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_prefixes_of_the_lab() {
        for bad in ["10.0.0.0/24", "198.20.0.0/24", "192.0.3.0/24", "2001:db9::/120", "198.0.0.0/24"] {
            let error = TruthSpec::new(1, &[bad], &[80]).unwrap().build().unwrap_err().to_string();
            assert!(error.contains("outside"), "{bad}: {error}");
        }
        let error = TruthSpec::new(1, &["198.18.0.0/24", "198.18.0.128/25"], &[80]).unwrap().build().unwrap_err().to_string();
        assert!(error.contains("overlap"), "{error}");
        assert!(TruthSpec::new(1, &["2001:db8::/64"], &[80]).unwrap().build().is_err(), "too many to list");
    }

    #[test]
    fn a_seed_decides_alike_every_time() {
        let spec = || TruthSpec::new(7, &["198.18.0.0/22", "2001:db8:1::/118"], &[443, 22, 80, 80]).unwrap();
        let truth = spec().build().unwrap();
        assert_eq!(truth, spec().build().unwrap());
        assert_ne!(truth.iter().collect::<Vec<_>>(), TruthSpec { seed: 8, ..spec() }.build().unwrap().iter().collect::<Vec<_>>());
        assert_eq!(truth.ports(), [22, 80, 443]);
        assert_eq!(truth.hosts().count(), 2048);
        // Frozen: a change of the derivation would silently change every recorded run.
        let first: Vec<_> = truth.iter().take(6).map(|(_, _, state)| state).collect();
        let (closed, silent) = (PortTruth::Closed, PortTruth::Silent);
        assert_eq!(first, [closed, silent, closed, silent, silent, closed]);
        let dead = truth.hosts().filter(|(_, state)| *state == HostState::Dead).count();
        assert!((500..730).contains(&dead), "300 in a thousand of 2048 are dead, here {dead}");
        let counts = truth.counts(net("198.18.0.0/22"), &[22, 80, 443, 9999]);
        assert_eq!(counts.total(), 4096);
        let sum = |state| truth.in_state(state).count();
        assert_eq!(sum(PortTruth::Open) + sum(PortTruth::Closed) + sum(PortTruth::Silent), 2048 * 3);
    }

    #[test]
    fn what_is_set_by_hand_holds() {
        let (a, b, out) = ("198.18.0.1".parse().unwrap(), "198.18.0.2".parse().unwrap(), "198.19.0.1".parse().unwrap());
        let spec = TruthSpec::new(1, &["198.18.0.0/30"], &[80]).unwrap();
        let spec = spec.host(a, HostState::Dead).host(b, HostState::Shy).port(b, 80, PortTruth::Open);
        let truth = spec.clone().build().unwrap();
        assert_eq!((truth.state(a, 80), truth.state(a, 81)), (Some(PortTruth::Silent), Some(PortTruth::Silent)));
        assert_eq!((truth.state(b, 80), truth.state(b, 81)), (Some(PortTruth::Open), Some(PortTruth::Closed)));
        assert_eq!((truth.state(out, 80), truth.host(out)), (None, None));
        assert!(!truth.answers_echo(b));
        assert!(spec.clone().host(out, HostState::Up).build().is_err());
        assert!(spec.port(b, 81, PortTruth::Open).build().is_err());
    }

    #[test]
    fn samples_reach_both_families() {
        let truth = TruthSpec::new(3, &["198.18.0.0/24", "2001:db8:1::/120"], &[22, 80]).unwrap().build().unwrap();
        for state in [PortTruth::Open, PortTruth::Closed, PortTruth::Silent] {
            let sample = truth.sample(state, 10);
            assert!((5..=10).contains(&sample.len()), "{}", sample.len());
            assert!(sample.iter().any(|(a, _)| a.is_ipv4()) && sample.iter().any(|(a, _)| a.is_ipv6()));
            assert!(sample.iter().all(|(a, p)| truth.state(*a, *p) == Some(state)));
        }
    }
}
