//! Service detection: what serves on an open port.
//!
//! Each protocol is a **dialogue**: a state machine without IO that is told what was heard and says what to send
//! (`dialogue`, `protocols`). The **inquiry** of a port decides who asks what in which order: a brief listening for
//! a greeting, the dialogue that the port or the first bytes suggest, TLS where it is usual, HTTP as the generic question, and
//! then the rest, a few connections at a time. The **shell** opens the paced sockets and bounds everything in bytes and time.
//!
//! It must not know scans, agents or transports: open ports come in by one channel, what was found leaves by another.
//!
//! **Invariant:** every target gets exactly one [`Detected`]. No connection is opened that the pacers did not admit and the
//! gate did not permit. A port holds at most [`WIDTH`] connections at a time, for at most [`Deadlines::port`] besides the time
//! that pacing took. What is read of a connection is bounded. Connections are closed in order, not by reset.

mod conn;
mod dialogue;
pub mod fragile;
mod guess;
mod inquiry;
mod protocols;
pub mod recog;
mod shell;
#[cfg(test)]
mod tests;
mod text;
mod tls;
mod toll;

use core::net::IpAddr;
use core::time::Duration;
use std::sync::Arc;

use picket_wire::job::{ServiceOptions, Transport};
use picket_wire::service::ServiceOutcome;
use picket_wire::units::UnixMillis;

pub use self::inquiry::WIDTH;
pub use self::protocols::{dialogues, replay};
pub use self::shell::detect;
use crate::net::engine::Source;
use crate::net::pacer::{Limits, SharedPacer};
use crate::net::target_pacer::TargetPacer;

/// An open port to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServiceTarget {
    /// The caller's own name for it, returned with what was found.
    pub id: u64,
    /// Where it is.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
    /// The port's protocol. SCTP ports are told as lost: nothing here speaks it.
    pub transport: Transport,
}

/// What asking a target came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The target's [`ServiceTarget::id`].
    pub id: u64,
    /// Whom it was asked of.
    pub target: ServiceTarget,
    /// What it came to.
    pub outcome: ServiceOutcome,
    /// How long asking took, pacing included.
    pub took: Duration,
}

/// How long a detection waits for what. Round trips are measured and come on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For a connection to stand. Below one second the kernel does not repeat its SYN by itself, so that nothing leaves
    /// unpaced; a connection that did not come about is tried once more.
    pub connect: Duration,
    /// For a greeting, before anything else is said.
    pub listen: Duration,
    /// For a greeting on ports whose usual protocol begins with one; other questions are asked meanwhile.
    pub greeting: Duration,
    /// For the first answer to a question.
    pub answer: Duration,
    /// For what follows, from somebody who has answered before.
    pub follow: Duration,
    /// Before who was sent away without having said anything comes again.
    pub again: Duration,
    /// For all that is asked of a port.
    pub port: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_millis(950),
            listen: Duration::from_millis(150),
            greeting: Duration::from_secs(5),
            answer: Duration::from_millis(1_200),
            follow: Duration::from_millis(2_500),
            again: Duration::from_millis(500),
            port: Duration::from_secs(15),
        }
    }
}

/// How a detection runs.
#[derive(Debug, Clone)]
pub struct DetectOptions {
    /// The limits that all which opens connections on the interface share.
    pub interface: SharedPacer,
    /// What this detection may send of its own.
    pub rate: Limits,
    /// Limits towards each address and network, where there are any; a clone of the scan's, so that they hold for both together.
    pub targets: Option<TargetPacer>,
    /// Most connections at a time; taken as at least [`WIDTH`].
    pub max_open: usize,
    /// What the job asked for.
    pub options: ServiceOptions,
    /// What the site says of fragile ports.
    pub site: fragile::SitePolicy,
    /// What products say of themselves.
    pub fingerprints: Arc<recog::Fingerprints>,
    /// Addresses to ask from; a family without one is left to the kernel.
    pub source: Source,
    /// The mark that the kernel's shaper knows measurement traffic by. Best effort: setting it takes a privilege.
    pub mark: Option<u32>,
    /// The trusted time at the start, for judging how long certificates are still valid; without it that is not told.
    pub wall: Option<UnixMillis>,
    /// How long it waits for what.
    pub deadlines: Deadlines,
}
