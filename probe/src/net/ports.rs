//! What makes the packets of one engine its own: source ports, source addresses and a key.

use picket_wire::job::MAX_ATTEMPTS;

use super::engine::Source;

/// The range of source ports is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{count} source ports from {first}: at least {MAX_ATTEMPTS} below 65536 are needed, one for each attempt")]
pub struct PortsError {
    /// First port.
    pub first: u16,
    /// How many.
    pub count: u16,
}

/// The source ports (and echo identifiers) that this process uses for raw packets.
///
/// They should lie outside the range from which the kernel takes ports for its own connections
/// (`net.ipv4.ip_local_port_range`, 32768 to 60999 by default), and the packet filter of the receiving socket passes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourcePorts {
    first: u16,
    count: u16,
}

impl Default for SourcePorts {
    /// 61440 to 65535: above the kernel's own range, and wide enough to hide part of a cookie in the choice of a port, which is
    /// all that an answer over UDP is sure to repeat.
    fn default() -> Self {
        Self { first: 61_440, count: 4_096 }
    }
}

impl SourcePorts {
    /// `count` ports from `first`; at least [`MAX_ATTEMPTS`].
    pub fn new(first: u16, count: u16) -> Result<Self, PortsError> {
        let fits = count >= u16::from(MAX_ATTEMPTS) && u32::from(first) + u32::from(count) <= 65_536;
        (fits && first > 0).then_some(Self { first, count }).ok_or(PortsError { first, count })
    }

    /// The first port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    pub const fn last(self) -> u16 {
        self.first + (self.count - 1)
    }

    /// How many.
    pub const fn count(self) -> u16 {
        self.count
    }

    /// The base for the `engine`-th engine. Engines that run at the same time should differ in it, so that they do not
    /// disturb each other's half-open connections at a common target; their answers they tell apart by their keys.
    pub const fn base(self, engine: u64) -> u16 {
        let stride = MAX_ATTEMPTS as u16;
        let slots = (self.count / stride) as u64;
        self.first + stride * (engine % slots) as u16
    }
}

/// What a raw engine needs besides its plan.
#[derive(Debug, Clone, Copy)]
pub struct RawIdentity {
    /// Addresses to send from.
    pub source: Source,
    /// Source port (or echo identifier) of the first attempt; attempt `n` uses `base_port + n`. See [`SourcePorts::base`].
    pub base_port: u16,
    /// All source ports that pass the receive filter: UDP spreads its probes over them.
    pub ports: SourcePorts,
    /// Random, fresh for each engine: it makes the cookies. Answers are only as trustworthy as it is secret.
    pub key: [u8; 16],
}
