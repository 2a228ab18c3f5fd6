//! Host discovery and port scans: who answers, on which ports, how fast.
//!
//! A scan works through a range of positions of a target space (a lease) in order. Two engines share one book-keeping:
//!
//! ```text
//!  spec      what is wanted, checked                   kinds/    what one probe looks like and whose answer this is
//!  schedule  which probe is next, who answered,        engine    schedule + kind = packets in and out (net::engine::Engine)
//!            when to ask again, what to report         connect   schedule + sockets of the operating system
//!  chunk     the state of up to 65,536 positions       rto       how long to wait for an answer
//!  report    what is told about a finished chunk      cohorts   what loss tells of the rate
//! ```
//!
//! **Chunks.** Positions are begun in order and belong to chunks of what is sent in one second, 65,536 at most. A chunk keeps
//! four bytes per position and attempt (when it was sent); chunks are reported in order and cover the range without a gap. Several are open at a time, so that sending never waits for late answers; their
//! sum is bounded, so that memory does not grow with the target space.
//!
//! **Late answers count.** A reported chunk keeps its send times, and who has answered, as long as
//! [`memory`](spec::ChunkLimits::memory) has room beside the open chunks (a minute at most). An answer for a position that was
//! reported as silent becomes [`Late`](report::Event::Late), with its exact round trip, once. After the end of the scan nobody listens.
//!
//! **Attempts.** Each position that stays silent is asked again after a wait learnt from the round trips measured so far
//! ([`rto`]), up to `attempts` times in all; while others have yet to be asked first, [`apart`](spec::Timing::apart) from the first time, so
//! that one burst of loss does not take both packets. The attempt is written in the source port (TCP) or the identifier (ICMP), so
//! each answer names the probe that it answers and its round trip is exact (Karn's problem does not arise).
//!
//! **Answers** are recognised by a keyed cookie that only this run knows, in a field that every honest answer repeats. What
//! does not carry it is not ours, whatever it claims; how hard that is to forge is said at the kinds. An answer is counted
//! once; further ones are counted as duplicates, also those for a chunk already reported, as long as it is listened for.
//!
//! **Contradictions.** Of several answers for one position the strongest counts, in whatever order they come: accepted (SYN-ACK, INIT ACK, a
//! datagram, any sign of life of a host) before refused (RST, ABORT, port unreachable), refused before hearsay (an ICMP error of
//! others, or one that says no more than filtered); of equals the first. So a middlebox that resets a connection before the server's
//! SYN-ACK arrives does not hide the server: the port is open, and counted as [`contradicted`](report::Stats::contradicted). It is heard as
//! long as the chunk is open; the refusal ends the asking as any answer does, nobody waits for its contradiction, and what a report
//! has said stands (a later acceptance is only counted).
//!
//! **Who said it.** An ICMP error from the target itself and one from somebody on the way are different states. In discovery an error of
//! the host itself says that it is up, and one of others does not end the asking: the next attempt asks in another way.
//!
//! **Open ports and the kernel.** No socket stands behind a raw SYN: the kernel answers the SYN-ACK with a RST by itself, which
//! takes the half-open connection away at the target. Where a local firewall drops that RST, or the source address is not
//! one of the kernel's own, the target repeats its SYN-ACK until it gives up; those are counted as duplicates or late.
//!
//! **Invariant:** in every report, answered + refused + not reached + silent = length of its range, and the ranges of all
//! reports follow on each other from the start of the lease.
//! **Invariant:** a position is only silent if a packet for it has left and the wait for its answer is over.
//!
//! It must not know links, clocks, routes or the controller. [`connect`] alone uses the operating system's sockets.

pub mod connect;
pub mod engine;
pub mod report;
pub mod rto;
pub mod spec;

mod chunk;
mod cohorts;
mod kinds;
mod lanes;
mod onlink;
mod schedule;

#[cfg(test)]
mod rate_tests;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod tests;
