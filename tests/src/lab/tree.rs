//! Many destinations behind a tree of routers: a trunk that all paths share, two forks, and branches of different lengths, each with a
//! network at its end in which one machine answers for all addresses.
//!
//! ```text
//!                          +- v0 - .. - 198.19.0.0/20
//!                   +- u0 -+
//!  probe - t1 .. t4 +      +- v1 - .. - 198.19.16.0/20
//!                   +- u1 -+
//!                          +- v2, v3
//! ```
//!
//! All of them are namespaces whose kernels forward, and answer as much as they are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};

use super::{Lab, Namespace};

/// Routers that all paths share.
const TRUNK: usize = 4;
/// For each branch, how many routers it has to itself behind the second fork.
const BRANCHES: [usize; 4] = [3, 4, 4, 5];
/// Addresses of each branch.
const EACH: u32 = 4096;
/// What is outside of the kernel's own processor in [`Tree::apart`]: bit masks of processors.
const PROBES: u32 = 1;
const OTHERS: u32 = 2;

/// The lab.
#[derive(Debug)]
pub struct Tree {
    probe: Namespace,
    /// By name: each machine, and its address towards the probe.
    nodes: BTreeMap<String, (Namespace, IpAddr)>,
    half_dead: bool,
}

impl Tree {
    /// The probe's device.
    pub const DEVICE: &'static str = "eth0";

    /// Builds it in a lab of its own.
    ///
    /// # Errors
    /// When a lab cannot run here.
    pub fn new(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        let mut this = Self { probe: lab.namespace("probe")?, nodes: BTreeMap::new(), half_dead: false };
        for branch in 0..BRANCHES.len() {
            let mut parent = this.probe.clone();
            for name in names(branch) {
                let (node, address) = match this.nodes.get(&name) {
                    Some(known) => known.clone(),
                    None => this.grow(&parent, &name)?,
                };
                if parent.name() != this.probe.name() {
                    parent.route(&network(branch), address)?;
                }
                parent = node;
            }
            parent.ip(&["route", "add", "local", &network(branch), "dev", "lo"])?;
        }
        let (_, first) = this.first()?;
        this.probe.route("default", *first)?;
        Ok(this)
    }

    /// One more machine behind another one.
    fn grow(&mut self, parent: &Namespace, name: &str) -> Result<(Namespace, IpAddr)> {
        let node = parent.lab().namespace(name)?;
        let number = u8::try_from(self.nodes.len() + 1).context("too many machines")?;
        let [near, far] = [1, 2].map(|host| IpAddr::V4(Ipv4Addr::new(198, 18, number, host)));
        let is_first = parent.name() == self.probe.name();
        let device = if is_first { Self::DEVICE } else { name };
        parent.link(device, &node, "back")?;
        parent.address(device, near, 24)?;
        node.address("back", far, 24)?;
        if !is_first {
            node.route("198.18.1.0/24", near)?;
        }
        node.forward()?;
        self.nodes.insert(name.to_owned(), (node.clone(), far));
        Ok((node, far))
    }

    fn first(&self) -> Result<&(Namespace, IpAddr)> {
        self.nodes.get("t1").context("no first router")
    }

    /// Who asks.
    #[must_use]
    pub fn probe(&self) -> &Namespace {
        &self.probe
    }

    /// From now on every second destination answers nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill_half(&mut self) -> Result<()> {
        for branch in 0..BRANCHES.len() {
            let (node, _) = self.nodes.get(&format!("d{branch}")).context("no such branch")?;
            node.nft(&format!(
                "table ip lab {{\n\tchain in {{\n\t\ttype filter hook prerouting priority raw;\n\
                 \t\tip daddr {} ip daddr & 0.0.0.1 == 0.0.0.1 drop\n\t}}\n}}\n",
                network(branch)
            ))?;
        }
        self.half_dead = true;
        Ok(())
    }

    /// So many destinations, of all branches in turn.
    #[must_use]
    pub fn destinations(count: u32) -> Vec<Ipv4Addr> {
        let branches = u32::try_from(BRANCHES.len()).unwrap_or(1);
        (0..count).map(|n| Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 19, 0, 0)) + n % branches * EACH + n / branches)).collect()
    }

    /// Who answers at each distance on the way to a destination, itself included where it does.
    #[must_use]
    pub fn truth(&self, destination: Ipv4Addr) -> Vec<BTreeSet<IpAddr>> {
        let number = u32::from(destination);
        let branch = ((number & 0xffff) / EACH) as usize;
        let mut names = names(branch);
        names.pop();
        let mut way: Vec<BTreeSet<IpAddr>> =
            names.iter().filter_map(|name| self.nodes.get(name)).map(|(_, address)| [*address].into()).collect();
        if !(self.half_dead && number & 1 == 1) {
            way.push([destination.into()].into());
        }
        way
    }

    /// Packets that the first router has received from the probe so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn arrived(&self) -> Result<u64> {
        Ok(self.first()?.0.counters("back")?.received_packets)
    }

    /// Lets the second processor do what the routers do, and the first one what the probe receives, as if they were different machines.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn apart(&self) -> Result<()> {
        self.first()?.0.receive_on("back", OTHERS)?;
        self.probe.receive_on(Self::DEVICE, PROBES)
    }
}

/// The machines on the way to a branch, the nearest first; the last one is where its network is.
fn names(branch: usize) -> Vec<String> {
    let trunk = (1..=TRUNK).map(|n| format!("t{n}"));
    let own = (1..=BRANCHES[branch]).map(|n| format!("w{branch}-{n}"));
    trunk.chain([format!("u{}", branch / 2), format!("v{branch}")]).chain(own).chain([format!("d{branch}")]).collect()
}

fn network(branch: usize) -> String {
    format!("198.19.{}.0/20", branch * 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_of_ten_to_twelve_hops_and_share_the_first() {
        let lengths: Vec<usize> = (0..BRANCHES.len()).map(|branch| names(branch).len()).collect();
        assert_eq!(lengths, [10, 11, 11, 12]);
        assert!((0..BRANCHES.len()).all(|branch| names(branch)[..TRUNK] == names(0)[..TRUNK]));
        assert_ne!(names(0)[TRUNK + 1], names(1)[TRUNK + 1]);
    }

    #[test]
    fn destinations_are_different_and_of_all_branches() {
        let all: BTreeSet<Ipv4Addr> = Tree::destinations(10_000).into_iter().collect();
        assert_eq!(all.len(), 10_000);
        let four = [[198, 19, 0, 0], [198, 19, 16, 0], [198, 19, 32, 0], [198, 19, 48, 0]].map(Ipv4Addr::from);
        assert_eq!(Tree::destinations(4), four);
        assert!(all.iter().all(|address| address.octets()[2] < 64));
    }
}
