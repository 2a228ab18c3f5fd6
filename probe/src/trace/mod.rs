//! Traceroute: which way packets take to a destination, and what the routers on it say.
//!
//! ```text
//!  spec      what is wanted, checked                  packet   what one probe looks like, and which probe an answer names
//!  path      one path under way: which hop is asked,  engine   courses + packets = net::engine::Engine
//!            what was answered, when it is over       report   what is told
//!  stops     what paths know of each other
//!  multipath all ways at once: which flow is sent how far
//!  mtu       how large a packet may be that arrives
//!  course    what a path and all ways are to the engine
//! ```
//!
//! **One flow.** All probes of a path look alike to a router that spreads load by flow (Augustin et al., "Avoiding traceroute anomalies
//! with Paris traceroute", IMC 2006): addresses, protocol and ports stay, and so does what takes the ports' place in ICMP, the checksum.
//! The number of a probe stands where no router looks and every error quotes it: in the checksum of a datagram, in the sequence
//! number of an echo request (two bytes of whose payload keep the checksum what it was), in the sequence number of a SYN.
//!
//! **All at once.** TTLs are asked side by side: as many at the start as the plan's window says, then as many beyond the farthest answer as may be silent;
//! further questions for a hop follow its first answer. So a path takes about one round trip, and its silent hops cost one wait together.
//!
//! **Waits.** A silent hop before one that answered is asked once more after a little more than the longest round trip of the path, and
//! given up after as long again: whoever is nearer should not be slower. Beyond the farthest answer nothing is known, and the wait is
//! a second, or several round trips. Whatever comes later counts as long as the path is open.
//!
//! **Many destinations.** One hop at a time is enough where many paths are under way, and sends nothing beyond the destination; where a hop is late, the next ones are
//! asked beside it. Paths begin where others met the last router that all know, go on from there and back until they meet somebody known,
//! and take the nearer hops from whoever was there before; [`TracePlan::shared`](spec::TracePlan::shared) says whether.
//!
//! **Over.** A path ends where the destination answers, or somebody says that it cannot be reached, or an address comes again behind another
//! one, or several hops in a row say nothing, or at the last TTL.
//!
//! **Forging.** Who sees none of our packets must guess, besides addresses and ports, for an error: 16 bits of a checksum (UDP), 16 of a sequence
//! number (ICMP), 32 of one (TCP), and 64 more of the payload where it is quoted; for an echo reply 80, for a segment 32, for a datagram none.
//!
//! **Invariant:** a hop is only silent if the wait for an answer to its last packet is over; it says how many have left.
//! **Invariant:** memory is bounded by the paths that are open at a time, not by the destinations.
//!
//! It must not know links, clocks, routes or the controller.

pub mod engine;
pub mod report;
pub mod spec;
pub mod statistics;

mod course;
mod mtu;
mod multipath;
mod packet;
mod path;
mod stops;

#[cfg(test)]
mod scenarios;
#[cfg(test)]
pub(crate) mod tests;
