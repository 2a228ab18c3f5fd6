//! One link with many real hosts: a bridge, a probe on it, hosts that each have a hardware address of their own, and where wanted
//! a router that answers ARP for addresses behind it.
//!
//! The hosts share one namespace: each is a device with its own addresses there, and the kernel answers on a device only for what is on
//! that device (`arp_ignore=1`; for IPv6 it always does). So fifty hosts cost fifty veth pairs and no process.
//!
//! Invariant: what is on the link is exactly what [`Link::v4`] and [`Link::v6`] name, the probe itself apart.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::{Lab, Namespace};

/// What the link is to be like.
#[derive(Debug, Clone, Copy)]
pub struct LinkPlan {
    /// How many hosts, at most 120.
    pub hosts: u8,
    /// Whether they have IPv6: link-local addresses, and global ones of three kinds by turns (see [`Link::v6_of`]).
    pub ipv6: bool,
    /// Whether a router answers ARP for [`Link::PROXIED`].
    pub proxy: bool,
}

/// A link in operation.
#[derive(Debug)]
pub struct Link {
    probe: Namespace,
    hosts: Namespace,
    others: Vec<Namespace>,
    v4: BTreeMap<Ipv4Addr, [u8; 6]>,
    v6: BTreeMap<Ipv6Addr, [u8; 6]>,
}

impl Link {
    /// The probe's device.
    pub const DEVICE: &'static str = "eth0";
    /// The IPv4 network, /24.
    pub const NETWORK: &'static str = "198.18.7.0/24";
    /// The IPv6 network, /64.
    pub const NETWORK6: &'static str = "2001:db8:7::/64";
    /// The probe's addresses.
    pub const PROBE: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 254);
    /// See [`Link::PROBE`].
    pub const PROBE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 0xfe);
    /// What a proxy answers for: 64 addresses, of which only [`Link::BEHIND`] exists.
    pub const PROXIED: &'static str = "198.18.7.128/26";
    /// The one host behind the proxy.
    pub const BEHIND: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 150);

    /// Makes it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(lab: &Lab, plan: LinkPlan) -> Result<Self> {
        let (probe, switch, hosts) = (lab.namespace("probe")?, lab.namespace("switch")?, lab.namespace("hosts")?);
        // The bridge is to be no host itself.
        switch.sysctls(&[("net/ipv6/conf/all/disable_ipv6", "1"), ("net/ipv6/conf/default/disable_ipv6", "1")])?;
        switch.bridge("br0")?;
        probe.link(Self::DEVICE, &switch, "probe")?;
        switch.enslave("probe", "br0")?;
        probe.address(Self::DEVICE, IpAddr::V4(Self::PROBE), 24)?;
        probe.address(Self::DEVICE, IpAddr::V6(Self::PROBE6), 64)?;
        hosts.sysctls(&[
            ("net/ipv4/conf/all/arp_ignore", "1"),
            ("net/ipv4/conf/default/arp_ignore", "1"),
            ("net/ipv4/conf/all/arp_announce", "2"),
            ("net/ipv6/icmp/ratelimit", "0"),
        ])?;
        let mut this = Self { probe, hosts, others: vec![switch], v4: BTreeMap::new(), v6: BTreeMap::new() };
        this.add_hosts(plan)?;
        if plan.proxy {
            this.add_proxy(lab)?;
        }
        Ok(this)
    }

    fn add_hosts(&mut self, plan: LinkPlan) -> Result<()> {
        let [switch] = &self.others[..] else { anyhow::bail!("the hosts come first") };
        let (mut devices, mut ends) = (String::new(), String::new());
        for n in 1..=plan.hosts.min(120) {
            let mac = Self::mac(n);
            let text = mac.map(|byte| format!("{byte:02x}")).join(":");
            writeln!(devices, "link add h{n} address {text} type veth peer name h{n} netns {}", switch.name())?;
            writeln!(ends, "link set h{n} master br0 up")?;
            writeln!(devices, "address add {}/24 dev h{n}", Self::v4_of(n))?;
            self.v4.insert(Self::v4_of(n), mac);
            if plan.ipv6 {
                writeln!(devices, "address add {}/64 dev h{n} nodad", Self::v6_of(n))?;
                self.v6.insert(Self::v6_of(n), mac);
                self.v6.insert(with_identifier([0xfe80, 0, 0, 0], eui64(mac)), mac);
            }
            writeln!(devices, "link set h{n} up")?;
        }
        self.hosts.ip_batch(&devices)?;
        switch.ip_batch(&ends)
    }

    fn add_proxy(&mut self, lab: &Lab) -> Result<()> {
        let (router, far) = (lab.namespace("router")?, lab.namespace("far")?);
        let [switch, ..] = &self.others[..] else { anyhow::bail!("the switch comes first") };
        router.link("near", switch, "router")?;
        switch.enslave("router", "br0")?;
        router.link("far", &far, "near")?;
        router.ip(&["route", "add", Self::PROXIED, "dev", "far"])?;
        router.ip(&["route", "add", &format!("{}/32", Self::PROBE), "dev", "near"])?;
        router.address("near", IpAddr::V4(Ipv4Addr::new(198, 18, 7, 1)), 32)?;
        far.address("near", IpAddr::V4(Self::BEHIND), 32)?;
        far.ip(&["route", "add", "default", "dev", "near"])?;
        // A Linux proxy delays its answers by up to 0.8 s, so that the host itself comes first; not every router does.
        router.sysctls(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/near/proxy_arp", "1"),
            ("net/ipv4/conf/far/proxy_arp", "1"),
            ("net/ipv4/neigh/near/proxy_delay", "0"),
            ("net/ipv4/neigh/far/proxy_delay", "0"),
            ("net/ipv4/conf/all/arp_ignore", "0"),
        ])?;
        self.v4.insert(Ipv4Addr::new(198, 18, 7, 1), router.hardware_address("near")?);
        self.others.extend([router, far]);
        Ok(())
    }

    fn mac(n: u8) -> [u8; 6] {
        [0x00, 0x16, 0x3e, 0x18, 0x07, n]
    }

    /// The IPv4 address of the `n`-th host, from 1 on: below [`Link::PROXIED`].
    #[must_use]
    pub fn v4_of(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 7, n + 5)
    }

    /// The global IPv6 address of the `n`-th host: from its hardware address (EUI-64), from the last octet of its IPv4 address,
    /// or of the privacy kind, which nobody can guess.
    #[must_use]
    pub fn v6_of(n: u8) -> Ipv6Addr {
        let prefix = [0x2001, 0xdb8, 7, 0];
        match n % 3 {
            0 => with_identifier(prefix, eui64(Self::mac(n))),
            1 => with_identifier(prefix, u64::from(n) + 5),
            _ => with_identifier(prefix, 0x39c1_77aa_5e00_1d00 | u64::from(n)),
        }
    }

    /// Where the probe runs.
    #[must_use]
    pub fn probe(&self) -> &Namespace {
        &self.probe
    }

    /// Where the hosts are.
    #[must_use]
    pub fn hosts(&self) -> &Namespace {
        &self.hosts
    }

    /// The IPv4 addresses that exist on the link itself, with their hardware addresses.
    #[must_use]
    pub fn v4(&self) -> &BTreeMap<Ipv4Addr, [u8; 6]> {
        &self.v4
    }

    /// The IPv6 addresses that exist on the link, link-local ones included, where the plan gave the hosts any.
    #[must_use]
    pub fn v6(&self) -> &BTreeMap<Ipv6Addr, [u8; 6]> {
        &self.v6
    }
}

pub(super) fn eui64(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

pub(super) fn with_identifier(prefix: [u16; 4], identifier: u64) -> Ipv6Addr {
    let prefix = prefix.iter().fold(0, |sum, word| sum << 16 | u128::from(*word));
    Ipv6Addr::from_bits(prefix << 64 | u128::from(identifier))
}
