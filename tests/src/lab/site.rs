//! A whole site: a controller's place, a router, places for probes and segments of targets, all namespaces of one lab.
//!
//! ```text
//!  controller --- router --- probe (its own link)
//!                   |
//!                   +------- segment: a target network, and probes that sit inside it
//! ```
//!
//! Addresses are the same in every lab of the same plan: links are `198.19.N.0/24` and `2001:db8:ffff:N::/64`, the router `.1`,
//! whoever is at the other end `.2` (probes inside a segment from `.10`); `N` is 0 for the controller, from 1 for probes with a link of their
//! own, from 101 for segments. The hosts of a segment are what its truth says, routed to it or, for an on-link segment, directly
//! on its wire.
//!
//! Invariant: the router has no way out; what is addressed outside the site ends there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::link::{eui64, with_identifier};
use super::target::{self, Service, Target};
use super::truth::{HostState, Network, TruthSpec};
use super::watch::{Direction, Watch};
use super::{Lab, Namespace, wait_until};

/// The device of every place, inside its namespace.
pub const DEVICE: &str = "eth0";
/// More IPv6 hosts than this are not put on a wire one by one.
const MOST_ON_LINK_V6: u64 = 1024;
/// How long links and first packets may take before the lab is called broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a segment shall be.
#[derive(Clone, Debug)]
pub struct SegmentPlan {
    name: String,
    spec: TruthSpec,
    services: BTreeMap<u16, Service>,
    on_link: bool,
}

impl SegmentPlan {
    /// A segment whose hosts are routed to it.
    pub fn new(name: &str, spec: TruthSpec) -> Self {
        Self { name: name.to_owned(), spec, services: BTreeMap::new(), on_link: false }
    }

    /// What a listened port says to who connects.
    #[must_use]
    pub fn service(mut self, port: u16, service: Service) -> Self {
        self.services.insert(port, service);
        self
    }

    /// Puts the hosts on the segment's own wire: router and probes inside reach them by ARP and neighbour discovery, and a dead
    /// host answers neither.
    #[must_use]
    pub fn on_link(mut self) -> Self {
        self.on_link = true;
        self
    }
}

#[derive(Clone, Debug)]
struct ProbePlan {
    name: String,
    segment: Option<String>,
}

/// Plans a [`Site`].
#[derive(Clone, Debug)]
pub struct SiteBuilder {
    lab: String,
    probes: Vec<ProbePlan>,
    segments: Vec<SegmentPlan>,
}

impl SiteBuilder {
    /// Adds a place for a probe, on a link of its own to the router.
    #[must_use]
    pub fn probe(mut self, name: &str) -> Self {
        self.probes.push(ProbePlan { name: name.to_owned(), segment: None });
        self
    }

    /// Adds a place for a probe inside a segment, beside the segment's hosts.
    #[must_use]
    pub fn probe_in(mut self, name: &str, segment: &str) -> Self {
        self.probes.push(ProbePlan { name: name.to_owned(), segment: Some(segment.to_owned()) });
        self
    }

    /// Adds a segment of targets.
    #[must_use]
    pub fn segment(mut self, plan: SegmentPlan) -> Self {
        self.segments.push(plan);
        self
    }

    /// Builds it, and checks that every place reaches the controller and nothing outside.
    ///
    /// # Errors
    /// When a lab cannot run here, the plan contradicts itself, or the kernel refuses something.
    pub fn build(self) -> Result<Site> {
        let mut names = std::collections::BTreeSet::new();
        for name in self.probes.iter().map(|p| &p.name).chain(self.segments.iter().map(|s| &s.name)) {
            ensure!(!name.is_empty() && name.len() <= 13, "place {name:?}: 1 to 13 characters");
            ensure!(names.insert(name.as_str()), "two places are called {name:?}");
        }
        ensure!(self.probes.len() <= 100 && self.segments.len() <= 100, "at most 100 probes and 100 segments");
        let lab = Lab::new(&self.lab)?;
        let (router, controller) = (lab.namespace("router")?, lab.namespace("controller")?);
        router.forward()?;
        connect(&router, "ctl", &controller, 0)?;

        let mut segments = BTreeMap::new();
        for (index, plan) in self.segments.iter().enumerate() {
            let inside = self.probes.iter().any(|probe| probe.segment.as_ref() == Some(&plan.name));
            let segment = build_segment(&lab, &router, plan, 101 + u8::try_from(index)?, inside)?;
            segments.insert(plan.name.clone(), segment);
        }
        let mut probes = BTreeMap::new();
        for (index, plan) in self.probes.iter().enumerate() {
            let namespace = lab.namespace(&format!("probe-{}", plan.name))?;
            let place = match &plan.segment {
                None => {
                    let number = 1 + u8::try_from(index)?;
                    let device = format!("p-{}", plan.name);
                    connect(&router, &device, &namespace, number)?;
                    Place { namespace, router_device: device, number, host: 2, bridged: false }
                }
                Some(name) => {
                    let segment = segments.get(name).with_context(|| format!("probe {:?}: no segment {name:?}", plan.name))?;
                    build_inside(&router, namespace, &plan.name, segment, 10 + u8::try_from(index)?)?
                }
            };
            probes.insert(plan.name.clone(), place);
        }
        let site = Site { segments, probes, router, controller, neighbours: Vec::new(), lab };
        site.check()?;
        Ok(site)
    }
}

/// Links a place to the router: addresses at both ends, default routes at the place.
fn connect(router: &Namespace, device: &str, place: &Namespace, number: u8) -> Result<()> {
    router.link(device, place, DEVICE)?;
    for (namespace, device, host) in [(router, device, 1), (place, DEVICE, 2)] {
        namespace.address(device, v4(number, host).into(), 24)?;
        namespace.address(device, v6(number, host).into(), 64)?;
    }
    default_routes(place, number)
}

fn default_routes(place: &Namespace, number: u8) -> Result<()> {
    place.route("default", v4(number, 1).into())?;
    place.route("default", v6(number, 1).into())
}

fn build_segment(lab: &Lab, router: &Namespace, plan: &SegmentPlan, number: u8, inside: bool) -> Result<Segment> {
    let truth = plan.spec.clone().build().with_context(|| format!("segment {:?}", plan.name))?;
    for network in truth.networks() {
        let links: [Network; 2] = ["198.19.0.0/16".parse()?, "2001:db8:ffff::/48".parse()?];
        let clash = links.iter().any(|links| links.contains(network.address()) || network.contains(links.address()));
        ensure!(!clash, "segment {:?}: {network} overlaps the site's own links", plan.name);
    }
    let namespace = lab.namespace(&format!("target-{}", plan.name))?;
    let wire = format!("s-{}", plan.name);
    let router_device = if inside {
        // Others share the wire: a bridge, with the router's address on it.
        let bridge = format!("b-{}", plan.name);
        router.bridge(&bridge)?;
        router.link(&wire, &namespace, DEVICE)?;
        router.enslave(&wire, &bridge)?;
        for (namespace, device, host) in [(router, bridge.as_str(), 1), (&namespace, DEVICE, 2)] {
            namespace.address(device, v4(number, host).into(), 24)?;
            namespace.address(device, v6(number, host).into(), 64)?;
        }
        default_routes(&namespace, number)?;
        bridge
    } else {
        connect(router, &wire, &namespace, number)?;
        wire
    };
    if plan.on_link {
        let mut addresses = String::new();
        for network in truth.networks().iter().filter(|network| network.address().is_ipv6()) {
            ensure!(network.size() <= MOST_ON_LINK_V6, "segment {:?}: {network} is too big to be on-link", plan.name);
            // A local route answers ARP for IPv4; neighbour discovery wants each address on the device.
            for (address, _) in truth.hosts_of(*network).filter(|(_, state)| *state != HostState::Dead) {
                writeln!(addresses, "address add {address}/128 dev {DEVICE} nodad").expect("a String takes text");
            }
        }
        namespace.ip_batch(&addresses)?;
    }
    let segment = Segment { target: Target::start(&namespace, truth, &plan.services)?, number, router_device, on_link: plan.on_link };
    segment.route_from(router, None)?;
    Ok(segment)
}

fn build_inside(router: &Namespace, namespace: Namespace, name: &str, segment: &Segment, host: u8) -> Result<Place> {
    let device = format!("i-{name}");
    router.link(&device, &namespace, DEVICE)?;
    router.enslave(&device, &segment.router_device)?;
    namespace.address(DEVICE, v4(segment.number, host).into(), 24)?;
    namespace.address(DEVICE, v6(segment.number, host).into(), 64)?;
    default_routes(&namespace, segment.number)?;
    segment.route_from(&namespace, Some(DEVICE))?;
    Ok(Place { namespace, router_device: device, number: segment.number, host, bridged: true })
}

fn v4(number: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 19, number, host)
}

fn v6(number: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0xffff, u16::from(number), 0, 0, 0, u16::from(host))
}

/// A place of a site where a probe runs.
#[derive(Debug)]
pub struct Place {
    namespace: Namespace,
    router_device: String,
    number: u8,
    host: u8,
    /// The router's end is a port of a bridge.
    bridged: bool,
}

impl Place {
    /// Its namespace; its only device is [`DEVICE`].
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        v4(self.number, self.host)
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        v6(self.number, self.host)
    }

    /// True for its own addresses: a filter on sources.
    #[must_use]
    pub fn is(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(self.v4()) || address == IpAddr::V6(self.v6())
    }

    /// The router's device at the other end of its link.
    #[must_use]
    pub fn router_device(&self) -> &str {
        &self.router_device
    }
}

/// A segment of a site.
#[derive(Debug)]
pub struct Segment {
    target: Target,
    number: u8,
    router_device: String,
    on_link: bool,
}

impl Segment {
    /// Its target network.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The router's device that leads to it (a bridge when probes sit inside).
    #[must_use]
    pub fn router_device(&self) -> &str {
        &self.router_device
    }

    /// Adds the routes to its hosts in a namespace that is on its wire.
    fn route_from(&self, namespace: &Namespace, device: Option<&str>) -> Result<()> {
        let device = device.unwrap_or(&self.router_device);
        let mut routes = String::new();
        for network in self.target.truth().networks() {
            let gateway: IpAddr = if network.address().is_ipv4() { v4(self.number, 2).into() } else { v6(self.number, 2).into() };
            let via = if self.on_link { String::new() } else { format!("via {gateway} ") };
            writeln!(routes, "route add {network} {via}dev {device}").expect("a String takes text");
        }
        namespace.ip_batch(&routes)
    }
}

/// A running site. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Site {
    segments: BTreeMap<String, Segment>,
    probes: BTreeMap<String, Place>,
    router: Namespace,
    controller: Namespace,
    /// Hosts that were added to segments.
    neighbours: Vec<Namespace>,
    lab: Lab,
}

impl Site {
    /// Plans a site; `lab` names it (see [`Lab::new`]).
    pub fn builder(lab: &str) -> SiteBuilder {
        SiteBuilder { lab: lab.to_owned(), probes: Vec::new(), segments: Vec::new() }
    }

    /// Its lab, for files and directories.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The controller's namespace.
    #[must_use]
    pub fn controller(&self) -> &Namespace {
        &self.controller
    }

    /// The controller's IPv4 address, reachable from every probe.
    #[must_use]
    pub fn controller_v4(&self) -> Ipv4Addr {
        v4(0, 2)
    }

    /// The controller's IPv6 address, reachable from every probe.
    #[must_use]
    pub fn controller_v6(&self) -> Ipv6Addr {
        v6(0, 2)
    }

    /// The router's namespace, where captures see what places send.
    #[must_use]
    pub fn router(&self) -> &Namespace {
        &self.router
    }

    /// A probe's place.
    ///
    /// # Errors
    /// When the site has no such place.
    pub fn probe(&self, name: &str) -> Result<&Place> {
        self.probes.get(name).with_context(|| format!("the site has no probe {name:?}"))
    }

    /// All places of probes, by name.
    pub fn probes(&self) -> impl Iterator<Item = (&str, &Place)> {
        self.probes.iter().map(|(name, place)| (name.as_str(), place))
    }

    /// A segment.
    ///
    /// # Errors
    /// When the site has no such segment.
    pub fn segment(&self, name: &str) -> Result<&Segment> {
        self.segments.get(name).with_context(|| format!("the site has no segment {name:?}"))
    }

    /// All segments, by name.
    pub fn segments(&self) -> impl Iterator<Item = (&str, &Segment)> {
        self.segments.iter().map(|(name, segment)| (name.as_str(), segment))
    }

    /// Pulls a probe's cable: the device of the probe loses its carrier, addresses and routes stay.
    ///
    /// # Errors
    /// When there is no such probe or the kernel refuses.
    pub fn link_down(&self, probe: &str) -> Result<()> {
        self.router.down(&self.probe(probe)?.router_device)
    }

    /// Plugs it in again, and waits until the kernel calls the link up.
    ///
    /// # Errors
    /// When there is no such probe, or the link does not come up.
    pub fn link_up(&self, probe: &str) -> Result<()> {
        let place = self.probe(probe)?;
        self.router.up(&place.router_device)?;
        wait_until(&format!("carrier at {probe:?}"), PATIENCE, || {
            let up = place.namespace.ip(&["-o", "link", "show", "dev", DEVICE])?.contains(" state UP ");
            Ok(up.then_some(()))
        })
    }

    /// Adds hosts to the wire of a segment with probes inside, each with a hardware address and an IPv6 address of its own: made
    /// from the hardware address, small, or of the kind that nobody can guess, by turns. Gives every IPv6 address in the network of
    /// that wire, the router's and the target's included and those of probes left out, with its hardware address.
    ///
    /// # Errors
    /// When there is no such segment, nobody is inside, or the kernel refuses.
    pub fn add_neighbours(&mut self, segment: &str, count: u8) -> Result<BTreeMap<Ipv6Addr, [u8; 6]>> {
        let segment = self.segment(segment)?;
        let inside = self.probes.values().any(|place| place.bridged && place.number == segment.number);
        ensure!(inside, "a wire without a probe inside is no bridge");
        let bridge = &segment.router_device;
        let [a, b, c, d, ..] = v6(segment.number, 0).segments();
        let hosts = self.lab.namespace(&format!("hosts-{}", segment.number))?;
        let (mut devices, mut ends, mut all) = (String::new(), String::new(), BTreeMap::new());
        for n in 1..=count {
            let mac = [0x00, 0x16, 0x3e, 0x19, segment.number, n];
            let identifier = match n % 3 {
                0 => eui64(mac),
                1 => 0x100 + u64::from(n),
                _ => 0x39c1_77aa_5e00_1d00 | u64::from(n),
            };
            let (address, text) = (with_identifier([a, b, c, d], identifier), mac.map(|byte| format!("{byte:02x}")).join(":"));
            writeln!(devices, "link add h{n} address {text} type veth peer name n{n} netns {}", self.router.name())?;
            writeln!(devices, "address add {address}/64 dev h{n} nodad\nlink set h{n} up")?;
            writeln!(ends, "link set n{n} master {bridge} up")?;
            all.insert(address, mac);
        }
        // A bridge takes the least address of its ports, unless it has one of its own.
        let own = self.router.hardware_address(bridge)?.map(|byte| format!("{byte:02x}")).join(":");
        self.router.ip(&["link", "set", "dev", bridge, "address", &own])?;
        hosts.ip_batch(&devices)?;
        self.router.ip_batch(&ends)?;
        all.insert(v6(segment.number, 1), self.router.hardware_address(bridge)?);
        all.insert(v6(segment.number, 2), segment.target.namespace().hardware_address(DEVICE)?);
        self.neighbours.push(hosts);
        Ok(all)
    }

    /// The IPv6 network of a segment's wire, /64.
    ///
    /// # Errors
    /// When there is no such segment.
    pub fn wire_v6(&self, segment: &str) -> Result<String> {
        Ok(format!("{}/64", v6(self.segment(segment)?.number, 0)))
    }

    /// Cuts the controller off from everybody, with its programs running on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn controller_link_down(&self) -> Result<()> {
        self.router.down("ctl")
    }

    /// Connects the controller again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn controller_link_up(&self) -> Result<()> {
        self.router.up("ctl")
    }

    /// Limits a probe's link, both ways, to bits of L2 frames per second.
    ///
    /// # Errors
    /// When there is no such probe or the kernel refuses.
    pub fn limit_link(&self, probe: &str, bits_per_second: u64) -> Result<()> {
        let place = self.probe(probe)?;
        // One tick of the slowest usual kernel clock (100 Hz) must fit the bucket, and two full frames; the queue holds 100 ms.
        let burst = u32::try_from((bits_per_second / 8 / 100).max(3_080))?;
        let queue = u32::try_from((bits_per_second / 8 / 10).max(30_800))?;
        place.namespace.limit(DEVICE, bits_per_second, burst, queue)?;
        self.router.limit(&place.router_device, bits_per_second, burst, queue)
    }

    /// Captures what a probe sends, at the router's end of its link.
    ///
    /// # Errors
    /// When there is no such probe or tcpdump does not start.
    pub fn watch(&self, probe: &str, filter: Option<&str>) -> Result<Watch> {
        let place = self.probe(probe)?;
        if !place.bridged {
            return Watch::start(&self.router, &place.router_device, Direction::In, filter);
        }
        // On a port of a bridge everything comes by; the probe's frames are those of its own hardware address.
        let own = place.namespace.hardware_address(DEVICE)?.map(|byte| format!("{byte:02x}")).join(":");
        let filter = filter.map_or_else(|| format!("ether src {own}"), |filter| format!("ether src {own} and ({filter})"));
        Watch::start(&self.router, &place.router_device, Direction::Both, Some(&filter))
    }

    /// Checks the site: only devices that a lab may hold, no way out, and every probe reaches the controller over both families.
    ///
    /// # Errors
    /// When one of these does not hold.
    pub fn check(&self) -> Result<()> {
        let targets = self.segments.values().map(|segment| segment.target.namespace());
        let places = self.probes.values().map(|place| &place.namespace);
        for namespace in targets.chain(places).chain([&self.router, &self.controller]) {
            namespace.check()?;
        }
        // Addresses of nobody (RFC 5737, RFC 9637), asked of the routing table only.
        for outside in ["203.0.113.1", "3fff::1"] {
            ensure!(self.router.ip(&["route", "get", outside]).is_err(), "the router of {} has a route to {outside}", self.router);
        }
        for (name, place) in &self.probes {
            for address in [IpAddr::V4(self.controller_v4()), IpAddr::V6(self.controller_v6())] {
                let answered = place.namespace.enter(|| target::echo(address, PATIENCE))??;
                ensure!(answered, "the probe's place {name:?} does not reach the controller at {address}");
            }
        }
        Ok(())
    }
}
