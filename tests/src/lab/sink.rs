//! A sink for benchmarks: the far end of a link that drops everything on reception, as cheaply as the kernel can, and counts it.
//!
//! Invariant: nothing that reaches a sink is ever answered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};

use super::{Lab, Namespace};

/// A sender's namespace and the sink that its only link leads to.
#[derive(Debug)]
pub struct Sink {
    sender: Namespace,
    sink: Namespace,
}

impl Sink {
    /// The name of the link's device, at both ends.
    pub const DEVICE: &'static str = "eth0";
    /// The sender's IPv4 address, /30.
    pub const SENDER: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 1);
    /// Where the sender's IPv4 default route leads.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 2);
    /// The sender's IPv6 address, /64.
    pub const SENDER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
    /// Where the sender's IPv6 default route leads.
    pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 2);

    /// Makes both, with default routes of the sender into the sink and the gateway's hardware address known to the sender.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(lab: &Lab) -> Result<Self> {
        let (sender, sink) = (lab.namespace("sender")?, lab.namespace("sink")?);
        sender.link(Self::DEVICE, &sink, Self::DEVICE)?;
        sender.address(Self::DEVICE, IpAddr::V4(Self::SENDER), 30)?;
        sender.address(Self::DEVICE, IpAddr::V6(Self::SENDER6), 64)?;
        let hardware = sink.hardware_address(Self::DEVICE)?.map(|byte| format!("{byte:02x}")).join(":");
        for gateway in [IpAddr::V4(Self::GATEWAY), IpAddr::V6(Self::GATEWAY6)] {
            // A sink answers no ARP, so its address is given.
            let address = gateway.to_string();
            sender.ip(&["neighbour", "replace", &address, "lladdr", &hardware, "dev", Self::DEVICE, "nud", "permanent"])?;
            sender.route("default", gateway)?;
        }
        sink.nft(&format!(
            "table netdev sink {{\n\tchain ingress {{\n\t\ttype filter hook ingress device \"{}\" priority filter; policy drop;\n\t}}\n}}\n",
            Self::DEVICE
        ))?;
        Ok(Self { sender, sink })
    }

    /// Where the sending program runs.
    #[must_use]
    pub fn sender(&self) -> &Namespace {
        &self.sender
    }

    /// Where frames end.
    #[must_use]
    pub fn sink(&self) -> &Namespace {
        &self.sink
    }

    /// Frames and bytes that have arrived since the sink was made. The sender's own chatter (IPv6 neighbour discovery, for one) is
    /// among them: take differences.
    ///
    /// # Errors
    /// When the counters cannot be read, or the link itself lost frames.
    pub fn arrived(&self) -> Result<(u64, u64)> {
        let sender = self.sender.counters(Self::DEVICE)?;
        ensure!(sender.sent_dropped == 0, "the link into the sink lost {} frames", sender.sent_dropped);
        let counters = self.sink.counters(Self::DEVICE)?;
        Ok((counters.received_packets, counters.received_bytes))
    }
}
