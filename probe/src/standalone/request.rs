//! What is wanted, checked: from the command line, or from a resume file.

use std::collections::BTreeMap;

use picket_wire::addr::AddrSet;
use picket_wire::job::{HostProbe, NetworkLimit, ServiceOptions, Technique, Transport};
use picket_wire::port::{PortSelection, SERVICES_FILE, Services};
use picket_wire::units::{BitsPerSecond, PacketsPerSecond, PortSet};
use serde::{Deserialize, Serialize};

use super::args::{CommonArgs, DiscoverArgs, OutputArg, OutputFile, PortArgs, TechniqueArg};
use super::error::StandaloneError;
use super::output::file::chosen;
use super::rates;
use super::targets::{self, Names};
use crate::net::pacer::{DEFAULT_BURST, Limits};
use crate::net::target_pacer::TargetLimits;
use crate::scan::spec::SpecError;

/// One technique and its ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PassPlan {
    pub(super) technique: Technique,
    pub(super) ports: Option<PortSet>,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) include: AddrSet,
    pub(super) exclude: AddrSet,
    /// Names that targets were given by, with their addresses as they were at the start.
    pub(super) names: Names,
    pub(super) passes: Vec<PassPlan>,
    /// Whether hosts are looked for first.
    pub(super) discovery: bool,
    /// How hosts are asked; empty for the default.
    pub(super) host_probes: Vec<HostProbe>,
    /// Whether TCP SYN may become connections where raw packets are not permitted.
    pub(super) may_connect: bool,
    pub(super) attempts: u8,
    packets: Option<PacketsPerSecond>,
    bits: Option<BitsPerSecond>,
    per_address: Option<PacketsPerSecond>,
    per_network: Option<NetworkLimit>,
    pub(super) services: Option<ServiceOptions>,
    pub(super) interface: Option<String>,
    pub(super) outputs: Vec<OutputFile>,
    pub(super) all: bool,
}

impl Request {
    /// The rate that was asked for.
    pub(super) fn rate(&self) -> Limits {
        Limits { packets: self.packets, bits: self.bits, burst: DEFAULT_BURST }
    }

    /// Limits towards each address and network.
    pub(super) fn target_limits(&self) -> TargetLimits {
        TargetLimits { per_address: self.per_address, per_network: self.per_network }
    }

    /// The addresses asked for, exclusions taken out.
    pub(super) fn targets(&self) -> AddrSet {
        self.include.minus(&self.exclude)
    }

    /// Whether ports are asked.
    pub(super) fn has_ports(&self) -> bool {
        self.passes.iter().any(|pass| pass.ports.is_some())
    }

    /// In what this run differs from another one, so that neither can go on with the other's results.
    pub(super) fn differs(&self, other: &Request) -> Option<&'static str> {
        let parts = [
            (self.include != other.include, "its targets"),
            (self.exclude != other.exclude, "its exclusions"),
            (self.passes != other.passes, "its ports or techniques"),
            (self.discovery != other.discovery, "whether hosts are looked for first"),
            (self.host_probes != other.host_probes, "how hosts are looked for"),
            (self.attempts != other.attempts, "the number of attempts"),
            (self.services != other.services, "whether services are asked for"),
        ];
        parts.iter().find(|(differs, _)| *differs).map(|(_, what)| *what)
    }

    /// `picket-probe scan` and `picket-probe services`.
    pub(super) fn scan(ports: &PortArgs, common: &CommonArgs, services: bool) -> Result<Self, StandaloneError> {
        let passes = passes(ports)?;
        let mut request = Self::common(common, passes)?;
        let has_ports = request.has_ports();
        if services && !has_ports {
            return Err(StandaloneError::NoPorts);
        }
        let connect = request.passes.iter().any(|pass| pass.technique == Technique::Connect);
        request.discovery = has_ports && !ports.no_discovery && !connect && request.targets().len() != Some(1);
        request.may_connect = ports.technique.contains(&TechniqueArg::Auto);
        request.services = services.then_some(ServiceOptions { ask_fragile: ports.ask_fragile });
        Ok(request)
    }

    /// `picket-probe discover`.
    pub(super) fn discover(args: &DiscoverArgs) -> Result<Self, StandaloneError> {
        let technique = args.technique.map_or(DISCOVERY, TechniqueArg::first);
        if technique.has_ports() {
            return Err(SpecError::NoPorts(technique).into());
        }
        let request = Self::common(&args.common, vec![PassPlan { technique, ports: None }])?;
        Ok(Self { host_probes: args.host_probes.clone(), ..request })
    }

    fn common(args: &CommonArgs, passes: Vec<PassPlan>) -> Result<Self, StandaloneError> {
        let named = targets::targets(&args.targets, &args.input_file)?;
        let excluded = targets::targets(&args.exclude, &args.exclude_file)?;
        let Limits { packets, bits, .. } = rates::limits(&args.rate);
        Ok(Self {
            include: named.set,
            exclude: excluded.set,
            names: named.names,
            passes,
            discovery: false,
            host_probes: Vec::new(),
            may_connect: false,
            attempts: args.attempts,
            packets,
            bits,
            per_address: args.per_address,
            per_network: args.per_network,
            services: None,
            interface: args.interface.clone(),
            outputs: outputs(args)?,
            all: args.all,
        })
    }

    #[cfg(test)]
    pub(super) fn example() -> Self {
        Self {
            include: picket_wire::addr::parse_set("198.18.0.0/30").unwrap(),
            exclude: picket_wire::addr::parse_set("198.18.0.3").unwrap(),
            names: Vec::new(),
            passes: vec![PassPlan { technique: Technique::Syn, ports: Some("80,443".parse().unwrap()) }],
            discovery: false,
            host_probes: Vec::new(),
            may_connect: false,
            attempts: 2,
            packets: None,
            bits: None,
            per_address: None,
            per_network: None,
            services: None,
            interface: None,
            outputs: Vec::new(),
            all: false,
        }
    }
}

/// How hosts are looked for.
pub(super) const DISCOVERY: Technique = Technique::Discover;

/// All outputs; the table is one unless something else goes to standard output.
pub(super) fn outputs(args: &CommonArgs) -> Result<Vec<OutputFile>, StandaloneError> {
    chosen(args.output, OutputArg::Table, &args.output_file)
}

/// The passes that techniques and ports together ask for: one for each protocol.
fn passes(args: &PortArgs) -> Result<Vec<PassPlan>, StandaloneError> {
    let techniques: Vec<Technique> = args.technique.iter().map(|technique| technique.first()).collect();
    if let Some(technique) = techniques.iter().find(|technique| !technique.has_ports()) {
        return match (args.ports.is_some() || args.top_ports.is_some(), techniques.len()) {
            (true, _) => Err(SpecError::Ports(*technique).into()),
            (false, 1) => Ok(vec![PassPlan { technique: *technique, ports: None }]),
            (false, _) => Err(StandaloneError::Techniques(*technique)),
        };
    }
    let mut chosen: BTreeMap<Transport, Technique> = BTreeMap::new();
    for second in techniques {
        let Some(transport) = second.transport() else { continue };
        if let Some(first) = chosen.insert(transport, second).filter(|first| *first != second) {
            return Err(StandaloneError::OneTechnique { first, second });
        }
    }
    let selection = selection(args, &chosen)?;
    if let Some((_, technique)) = chosen.iter().find(|(transport, _)| selection.get(**transport).is_empty()) {
        return Err(SpecError::NoPorts(*technique).into());
    }
    let technique = |transport| chosen.get(&transport).copied().unwrap_or(default_of(transport));
    Ok(selection.protocols().map(|(transport, ports)| PassPlan { technique: technique(transport), ports: Some(ports.clone()) }).collect())
}

/// The ports by protocol; those that are named for none are of the protocols of the techniques, or of TCP.
fn selection(args: &PortArgs, chosen: &BTreeMap<Transport, Technique>) -> Result<PortSelection, StandaloneError> {
    let protocols: Vec<Transport> = if chosen.is_empty() { vec![Transport::Tcp] } else { chosen.keys().copied().collect() };
    match (&args.ports, args.top_ports) {
        (_, Some(count)) => Ok(PortSelection::top(count, &protocols)?),
        // A system without a table of services has no names for ports; a name is then refused as unknown.
        (Some(text), None) => {
            Ok(PortSelection::parse(text, &Services::parse(&std::fs::read_to_string(SERVICES_FILE).unwrap_or_default()), &protocols)?)
        }
        (None, None) => Err(StandaloneError::NoPorts),
    }
}

fn default_of(transport: Transport) -> Technique {
    match transport {
        Transport::Tcp => Technique::Syn,
        Transport::Udp => Technique::Udp,
        Transport::Sctp => Technique::Sctp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(ports: Option<&str>, techniques: &[TechniqueArg]) -> Result<Vec<(Technique, String)>, String> {
        let ports = ports.map(str::to_owned);
        let args = PortArgs { ports, top_ports: None, technique: techniques.to_vec(), no_discovery: false, ask_fragile: false };
        let text = |pass: PassPlan| (pass.technique, pass.ports.map_or_else(String::new, |ports| ports.to_string()));
        passes(&args).map(|passes| passes.into_iter().map(text).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn there_is_a_pass_for_each_protocol() {
        use TechniqueArg as T;
        let pass = |technique, ports: &str| (technique, ports.to_owned());
        assert_eq!(planned(Some("80,22"), &[]), Ok(vec![pass(Technique::Syn, "22,80")]));
        assert_eq!(
            planned(Some("T:22,80,U:53,161,S:2905"), &[]),
            Ok(vec![pass(Technique::Syn, "22,80"), pass(Technique::Udp, "53,161"), pass(Technique::Sctp, "2905")])
        );
        assert_eq!(planned(Some("53"), &[T::Udp, T::Connect]), Ok(vec![pass(Technique::Connect, "53"), pass(Technique::Udp, "53")]));
        assert_eq!(planned(Some("U:53"), &[T::Connect]), Err("technique `connect` needs ports".to_owned()));
        assert_eq!(planned(Some("U:53"), &[]), Ok(vec![pass(Technique::Udp, "53")]));
        assert_eq!(planned(None, &[T::Echo]), Ok(vec![pass(Technique::Echo, "")]));
        assert!(planned(Some("1"), &[T::Echo]).unwrap_err().contains("technique `echo` has no ports"));
        assert!(planned(Some("1"), &[T::Syn, T::Ack]).unwrap_err().contains("`syn` and `ack`"));
        assert!(planned(None, &[T::Echo, T::Timestamp]).unwrap_err().contains("goes alone"));
        assert!(planned(None, &[T::Syn]).unwrap_err().contains("name the ports"));
    }

    #[test]
    fn one_format_has_standard_output() {
        use clap::Parser;
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            common: CommonArgs,
        }
        let given = |text: &str| {
            let args = Cli::try_parse_from(text.split_whitespace()).map_err(|error| error.to_string())?;
            outputs(&args.common).map(|list| list.len()).map_err(|error| error.to_string())
        };
        assert_eq!(given("x 198.18.0.1"), Ok(1));
        assert_eq!(given("x 198.18.0.1 --output-file nmap-xml=a.xml"), Ok(2));
        assert_eq!(given("x 198.18.0.1 --output-file nmap-xml=-"), Ok(1));
        assert!(given("x 198.18.0.1 --output-file nmap-xml=- -o ndjson").unwrap_err().contains("standard output"));
        assert!(given("x 198.18.0.1 --output-file nmap-xml=a --output-file ndjson=a").unwrap_err().contains("`a`"));
        assert!(given("x 198.18.0.1 --output-file pdf=a").unwrap_err().contains("no output format `pdf`: use table, ndjson, nmap-xml"));
    }
}
