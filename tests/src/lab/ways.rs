//! Routers between which load is spread by flow: four ways of two each, joined again before the destination.
//!
//! ```text
//!                 +- a1 -+- b1 -+
//!                 |      +- b2 -+
//!  probe - root --+- ..         +- join - destination
//!                 +- a4 -+- b7 -+
//!                        +- b8 -+
//! ```
//!
//! All of them are namespaces whose kernels forward, and choose by addresses, protocol and ports (`fib_multipath_hash_policy=1`), each with a seed
//! of its own: with one seed for all, every flow that chose the first half at one router would at the next one, too.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;

use super::{Lab, Namespace};

/// Routers behind the root, and behind each of them.
pub const WIDTHS: (u8, u8) = (4, 2);

/// The third byte of the first network behind the root; the others follow in the order in which they are made.
const FIRST: u8 = 10;

/// The lab.
#[derive(Debug)]
pub struct Ways {
    /// Who asks.
    pub probe: Namespace,
    routers: Vec<Namespace>,
    links: BTreeSet<(u8, IpAddr, IpAddr)>,
    _destination: Namespace,
}

impl Ways {
    /// The probe's device.
    pub const DEVICE: &'static str = "eth0";

    /// Builds it in a lab of its own.
    ///
    /// # Errors
    /// When a lab cannot run here, or the kernel spreads no load by seeds (before Linux 6.11).
    pub fn new(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (probe, destination) = (lab.namespace("probe")?, lab.namespace("dst")?);
        let (root, join) = (lab.namespace("root")?, lab.namespace("join")?);
        let (mut routers, mut forks, mut back, mut links) = (Vec::new(), Vec::new(), None, BTreeSet::new());
        connect(&probe, Self::DEVICE, &root, 1)?;
        connect(&join, "dst", &destination, 2)?;
        let mut network = FIRST;
        for a in 1..=WIDTHS.0 {
            let first = lab.namespace(&format!("a{a}"))?;
            connect(&root, &format!("a{a}"), &first, network)?;
            let nearer = far(network);
            forks.push(nearer);
            links.insert((1, far(1), nearer));
            first.route("default", near(network))?;
            network += 1;
            let mut next = Vec::new();
            for b in 1..=WIDTHS.1 {
                let second = lab.namespace(&format!("b{a}{b}"))?;
                connect(&first, &format!("b{b}"), &second, network)?;
                let farther = far(network);
                next.push(farther);
                links.insert((2, nearer, farther));
                second.route("198.18.1.0/24", near(network))?;
                network += 1;
                connect(&second, "join", &join, network)?;
                second.route("default", far(network))?;
                // Back there is one way; and so the router that joins them has one address, from where its answers leave.
                let join = *back.get_or_insert(network);
                links.insert((3, farther, far(join)));
                network += 1;
                routers.push(second);
            }
            spread(&first, "198.18.2.0/24", &next)?;
            routers.push(first);
        }
        spread(&root, "default", &forks)?;
        if let Some(network) = back {
            join.route("198.18.1.0/24", near(network))?;
            links.insert((4, far(network), Self::destination()));
        }
        probe.route("default", far(1))?;
        destination.route("default", near(2))?;
        routers.extend([root, join]);
        for (seed, router) in (1_u32..).zip(&routers) {
            router.forward()?;
            router.sysctls(&[
                ("net/ipv4/fib_multipath_hash_policy", "1"),
                ("net/ipv4/fib_multipath_hash_seed", &(seed * 7_919).to_string()),
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/icmp_ratelimit", "0"),
                ("net/ipv4/icmp_msgs_per_sec", "1000000"),
            ])?;
        }
        Ok(Self { probe, routers, links, _destination: destination })
    }

    /// The address that is traced to.
    #[must_use]
    pub const fn destination() -> IpAddr {
        far(2)
    }

    /// How many routers there are.
    #[must_use]
    pub fn routers(&self) -> usize {
        self.routers.len()
    }

    /// All links that packets to the destination may take, each with the distance of its nearer end.
    #[must_use]
    pub const fn links(&self) -> &BTreeSet<(u8, IpAddr, IpAddr)> {
        &self.links
    }
}

/// The end of a link that is nearer to the probe.
const fn near(network: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 18, network, 1))
}

/// The other one.
const fn far(network: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 18, network, 2))
}

fn connect(nearer: &Namespace, device: &str, farther: &Namespace, network: u8) -> Result<()> {
    let back = format!("back{network}");
    nearer.link(device, farther, &back)?;
    nearer.address(device, near(network), 24)?;
    farther.address(&back, far(network), 24)
}

/// Routes by several gateways of equal cost.
fn spread(router: &Namespace, destination: &str, gateways: &[IpAddr]) -> Result<()> {
    let mut args = vec!["route".to_owned(), "add".to_owned(), destination.to_owned()];
    for gateway in gateways {
        args.extend(["nexthop".to_owned(), "via".to_owned(), gateway.to_string()]);
    }
    router.ip(&args.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
}
