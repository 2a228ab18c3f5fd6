//! Routers in a row between a probe and a destination, in both families, some of them as routers of the world are: one that keeps
//! silent, one that limits its errors, one with another beside it, and a long cable before one.
//!
//! ```text
//!  probe ==delay== 1 - 2 - 3 -+- 4 -----+- 5 ... - destination
//!                             +- other -+
//! ```
//!
//! All of them are namespaces whose kernels forward. Machine `n` has 198.18.N.2 and 2001:db8:N::2 towards the probe, 198.18.N+1.1 and
//! 2001:db8:N+1::1 away from it; it tells of itself by the former.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::delay::Delay;
use super::{Lab, Namespace};

/// The networks to and from the router beside [`Plan::fork`].
const OTHER: (u8, u8) = (100, 101);

/// Source and destination address, protocol, source and destination port (`fib_multipath_hash_fields` of the kernel).
const HASHED: &str = "55";

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    const fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    const fn length(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    const fn host(self, network: u8, host: u8) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(198, 18, network, host)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, network as u16, 0, 0, 0, 0, host as u16)),
        }
    }

    /// The end of a link that is nearer to the probe.
    const fn near(self, network: u8) -> IpAddr {
        self.host(network, 1)
    }

    /// The other one.
    const fn far(self, network: u8) -> IpAddr {
        self.host(network, 2)
    }

    /// The probe's network.
    fn home(self) -> String {
        format!("{}/{}", self.host(1, 0), self.length())
    }
}

/// What the chain shall be.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    hops: u8,
    silent: Option<u8>,
    limited: Option<u8>,
    fork: Option<u8>,
    /// Which link, and how long.
    long: Option<(u8, Duration)>,
    /// Which links take how many bytes.
    narrow: [Option<(u8, u16)>; 2],
    hushed: Option<u8>,
}

impl Plan {
    /// So many hops to the destination, which is the last one.
    #[must_use]
    pub const fn hops(hops: u8) -> Self {
        Self { hops, silent: None, limited: None, fork: None, long: None, narrow: [None; 2], hushed: None }
    }

    /// That router sends no time-exceeded.
    #[must_use]
    pub const fn silent(mut self, hop: u8) -> Self {
        self.silent = Some(hop);
        self
    }

    /// That router sends no more than a few time-exceeded to each address at once, two at least, and then one in 25 s.
    #[must_use]
    pub const fn limited(mut self, hop: u8) -> Self {
        self.limited = Some(hop);
        self
    }

    /// At that hop there are two routers, between which the one before chooses by addresses, protocol and ports.
    #[must_use]
    pub const fn fork(mut self, hop: u8) -> Self {
        self.fork = Some(hop);
        self
    }

    /// The link before that hop takes packets of so many bytes, 1280 at least. Two links may be so.
    #[must_use]
    pub fn narrow(mut self, hop: u8, bytes: u16) -> Self {
        if let Some(free) = self.narrow.iter_mut().find(|narrow| narrow.is_none()) {
            *free = Some((hop, bytes));
        }
        self
    }

    /// That router does not say that packets are too large.
    #[must_use]
    pub const fn hushed(mut self, hop: u8) -> Self {
        self.hushed = Some(hop);
        self
    }

    /// The link before that hop takes so long in each direction. Both ends know each other's hardware address.
    #[must_use]
    pub const fn long(mut self, hop: u8, one_way: Duration) -> Self {
        self.long = Some((hop, one_way));
        self
    }
}

/// The lab.
#[derive(Debug)]
pub struct Chain {
    plan: Plan,
    /// The probe, the routers, the destination.
    nodes: Vec<Namespace>,
    _other: Option<Namespace>,
    delay: Option<Delay>,
}

impl Chain {
    /// The probe's device.
    pub const DEVICE: &'static str = "eth0";

    /// Builds it in a lab of its own.
    ///
    /// # Errors
    /// When a lab cannot run here, or the plan names a hop that is no router, or a fork that has no router before or after it.
    pub fn new(name: &str, plan: Plan) -> Result<Self> {
        let routers = 1..plan.hops;
        ensure!(plan.hops < OTHER.0, "{} hops: {} are possible", plan.hops, OTHER.0 - 1);
        ensure!(
            [plan.silent, plan.limited, plan.hushed].iter().flatten().all(|hop| routers.contains(hop)),
            "only routers keep silent: {plan:?}"
        );
        ensure!(plan.long.is_none_or(|(hop, _)| hop > 0 && hop <= plan.hops), "there is no such link: {plan:?}");
        ensure!(plan.fork.is_none_or(|hop| hop > 1 && hop + 1 < plan.hops), "a fork is between routers: {plan:?}");
        let lab = Lab::new(name)?;
        let nodes = (0..=plan.hops).map(|hop| match hop {
            0 => lab.namespace("probe"),
            hop if hop == plan.hops => lab.namespace("dst"),
            hop => lab.namespace(&format!("r{hop}")),
        });
        let mut this = Self { plan, nodes: nodes.collect::<Result<_>>()?, _other: None, delay: None };
        this.connect()?;
        if let Some(hop) = plan.fork {
            this._other = Some(this.fork(hop)?);
        }
        this.manners()?;
        Ok(this)
    }

    fn connect(&mut self) -> Result<()> {
        for (network, ends) in (1..).zip(self.nodes.windows(2)) {
            let [nearer, farther] = ends else { continue };
            let device = if network == 1 { Self::DEVICE } else { "fwd" };
            let long = self.plan.long.filter(|(link, _)| *link == network);
            match long {
                Some((_, one_way)) => self.delay = Some(Delay::link(nearer, device, farther, "back", one_way)?),
                None => nearer.link(device, farther, "back")?,
            }
            for family in Family::ALL {
                nearer.address(device, family.near(network), family.length())?;
                farther.address("back", family.far(network), family.length())?;
                nearer.route("default", family.far(network))?;
                if network > 1 {
                    farther.route(&family.home(), family.near(network))?;
                }
                if long.is_some() {
                    know(nearer, device, family.far(network), farther, "back")?;
                    know(farther, "back", family.near(network), nearer, device)?;
                }
            }
            for (_, bytes) in self.plan.narrow.iter().flatten().filter(|(link, _)| *link == network) {
                for (node, device) in [(nearer, device), (farther, "back")] {
                    node.ip(&["link", "set", device, "mtu", &bytes.to_string()])?;
                }
            }
            if network < self.plan.hops {
                farther.forward()?;
            }
        }
        Ok(())
    }

    fn fork(&self, hop: u8) -> Result<Namespace> {
        let (before, after) = (&self.nodes[usize::from(hop) - 1], &self.nodes[usize::from(hop) + 1]);
        let other = before.lab().namespace("other")?;
        other.forward()?;
        before.link("other", &other, "back")?;
        other.link("fwd", after, "other")?;
        for family in Family::ALL {
            before.address("other", family.near(OTHER.0), family.length())?;
            other.address("back", family.far(OTHER.0), family.length())?;
            other.address("fwd", family.near(OTHER.1), family.length())?;
            after.address("other", family.far(OTHER.1), family.length())?;
            other.route("default", family.far(OTHER.1))?;
            other.route(&family.home(), family.near(OTHER.0))?;
            let ways = [family.far(hop), family.far(OTHER.0)].map(|gateway| gateway.to_string());
            let [one, two] = &ways;
            before.ip(&[family.flag(), "route", "del", "default"])?;
            before.ip(&[family.flag(), "route", "add", "default", "nexthop", "via", one, "nexthop", "via", two])?;
        }
        for family in ["ipv4", "ipv6"] {
            let parameter = |name: &str| format!("net/{family}/fib_multipath_hash_{name}");
            // Chosen fields and not the policy of ports, which prefers a number that the sender's kernel has left at the packet: no router sees that.
            before.sysctls(&[(&parameter("fields"), HASHED), (&parameter("policy"), "3")])?;
        }
        Ok(other)
    }

    /// The silent router, the hushed and the limited one.
    fn manners(&self) -> Result<()> {
        if let Some(hop) = self.plan.silent {
            self.nodes[usize::from(hop)].nft(
                "table inet lab {\n\tchain out {\n\t\ttype filter hook output priority filter;\n\
                 \t\ticmp type time-exceeded drop\n\t\ticmpv6 type time-exceeded drop\n\t}\n}\n",
            )?;
        }
        if let Some(hop) = self.plan.hushed {
            self.nodes[usize::from(hop)].nft(
                "table inet hush {\n\tchain out {\n\t\ttype filter hook output priority filter;\n\
                 \t\ticmp type destination-unreachable icmp code frag-needed drop\n\t\ticmpv6 type packet-too-big drop\n\t}\n}\n",
            )?;
        }
        if let Some(hop) = self.plan.limited {
            // Linux has a minute's worth of answers in stock for whom it has not answered yet; and for IPv6 the more, the wider the route that leads there.
            // So the probe has a route of its own.
            let router = &self.nodes[usize::from(hop)];
            router.sysctls(&[("net/ipv4/icmp_ratelimit", "25000"), ("net/ipv6/icmp/ratelimit", "25000")])?;
            router.route(&format!("{}/128", Family::V6.near(1)), Family::V6.near(hop))?;
        }
        Ok(())
    }

    /// Who asks.
    #[must_use]
    pub fn probe(&self) -> &Namespace {
        &self.nodes[0]
    }

    /// The address that is traced to.
    #[must_use]
    pub const fn destination(&self, family: Family) -> IpAddr {
        family.far(self.plan.hops)
    }

    /// One more address of the probe, below 100: to routers it is somebody else.
    ///
    /// # Errors
    /// When it is there already.
    pub fn another(&self, family: Family, number: u8) -> Result<IpAddr> {
        let address = family.host(1, 100 + number);
        self.probe().address(Self::DEVICE, address, family.length())?;
        Ok(address)
    }

    /// Every hop, the destination included: who may answer there. Nobody, where it keeps silent.
    #[must_use]
    pub fn truth(&self, family: Family) -> Vec<BTreeSet<IpAddr>> {
        let who = |hop: u8| match Some(hop) {
            hop if hop == self.plan.silent => BTreeSet::new(),
            fork if fork == self.plan.fork => [family.far(hop), family.far(OTHER.0)].into(),
            _ => [family.far(hop)].into(),
        };
        (1..=self.plan.hops).map(who).collect()
    }

    /// Frames that the long cable lost: there should be none.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.delay.as_ref().map_or(0, Delay::lost)
    }
}

/// Makes a machine know the hardware address of another one.
fn know(who: &Namespace, device: &str, address: IpAddr, other: &Namespace, other_device: &str) -> Result<()> {
    let hardware = other.hardware_address(other_device)?.map(|byte| format!("{byte:02x}")).join(":");
    who.ip(&["neighbour", "replace", &address.to_string(), "lladdr", &hardware, "dev", device, "nud", "permanent"]).map(drop)
}
