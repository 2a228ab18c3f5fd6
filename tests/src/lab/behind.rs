//! Routers in a row behind a site's router, and at their end a machine that answers for every second address of a network: a way that
//! the site's probes can trace.
//!
//! ```text
//!  probe - (site's router) - t1 - t2 - ... - last
//! ```
//!
//! All of them are namespaces whose kernels forward, and answer as much as they are asked. Router `tN` has 198.18.(199+N).2 towards the site.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, ensure};

use super::Namespace;
use super::site::Site;

/// The network at the end.
pub const NETWORK: &str = "198.18.208.0/22";
/// The site's device that leads there.
const DEVICE: &str = "behind";
/// The third octet of the first link.
const FIRST: u8 = 200;

/// The way.
#[derive(Debug)]
pub struct Behind {
    router: Namespace,
    nodes: Vec<Namespace>,
}

fn host(link: u8, host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 18, link, host))
}

impl Behind {
    /// Builds so many routers behind that of a site, and the machine at the end.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub fn new(site: &Site, routers: u8) -> Result<Self> {
        ensure!((1..=6).contains(&routers), "{routers} routers: 1 to 6 are possible");
        let router = site.router().clone();
        let names = (1..=routers).map(|number| format!("t{number}")).chain(["last".to_owned()]);
        let nodes: Vec<Namespace> = names.map(|name| site.lab().namespace(&name)).collect::<Result<_>>()?;
        let mut parent = &router;
        for (link, node) in (FIRST..).zip(&nodes) {
            let device = if link == FIRST { DEVICE } else { "fwd" };
            parent.link(device, node, "back")?;
            parent.address(device, host(link, 1), 24)?;
            node.address("back", host(link, 2), 24)?;
            node.route("default", host(link, 1))?;
            parent.route(NETWORK, host(link, 2))?;
            if link > FIRST {
                // What is farther answers from the links beyond.
                router.route(&format!("198.18.{link}.0/24"), host(FIRST, 2))?;
            }
            node.forward()?;
            parent = node;
        }
        let last = nodes.last().context("there is no machine at the end")?;
        last.ip(&["route", "add", "local", NETWORK, "dev", "lo"])?;
        last.nft(&format!(
            "table ip lab {{\n\tchain in {{\n\t\ttype filter hook prerouting priority raw;\n\
             \t\tip daddr {NETWORK} ip daddr & 0.0.0.1 == 0.0.0.1 drop\n\t}}\n}}\n"
        ))?;
        Ok(Self { router, nodes })
    }

    /// Whether somebody answers.
    #[must_use]
    pub fn is_alive(destination: IpAddr) -> bool {
        matches!(destination, IpAddr::V4(v4) if v4.to_bits().is_multiple_of(2))
    }

    /// The hops from a probe with a link of its own to a destination; `first` is the site's router as that probe sees it.
    #[must_use]
    pub fn way(&self, first: IpAddr, destination: IpAddr) -> Vec<BTreeSet<IpAddr>> {
        let routers = (FIRST..).take(self.nodes.len() - 1).map(|link| host(link, 2));
        // The machine at the end routes to itself what it has: it is no hop of its own.
        std::iter::once(first).chain(routers).chain(Self::is_alive(destination).then_some(destination)).map(|hop| [hop].into()).collect()
    }

    /// Frames that went this way so far.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn passed(&self) -> Result<u64> {
        Ok(self.router.counters(DEVICE)?.sent_packets)
    }

    /// From now on a router says nothing about packets that end there; `routers` count from one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn silence(&self, router: usize) -> Result<()> {
        let node = router.checked_sub(1).and_then(|at| self.nodes.get(at)).with_context(|| format!("there is no router {router}"))?;
        node.nft(
            "table ip silence {\n\tchain out {\n\t\ttype filter hook output priority filter;\n\t\ticmp type time-exceeded drop\n\t}\n}\n",
        )
    }
}
