//! Captures: what passes an interface, kept as files that other tools read, shown in lines, or counted by flows.
//!
//! ```text
//!  source (libpcap) ▶ run (thread) ▶ session ─┬▶ files (thread) ▶ pcapng on a disk or in a pipe
//!     filter ▲          stop ▲                ├▶ summary: a line for each packet, at a bounded rate
//!                                             └▶ flows: records every N seconds
//!  of jobs:  what the disk has confirmed of a file ▶ upload: which bytes are on their way to the controller
//! ```
//!
//! It must not know the controller, the wire transport, the packet loop or the engines that measure, nor the configuration: what
//! the probe's own traffic is comes as addresses and ports. All but [`source`] and [`run`] is compiled without libpcap, too.
//!
//! **Invariants:**
//! - Memory is bounded, whatever comes: the kernel's buffer, the buffers on their way to the disk, the table of flows, the lines that
//!   wait for a terminal, and whatever is read from a file have a limit each.
//! - Counters add up: what passed the filter was dropped by the kernel, came here, or was still in the kernel's buffer at the end; what
//!   came here was written or lost on the way to the disk. All of them are told at the end.
//! - A capture never competes with measuring: it has threads of its own, and waits where the disk is slow.
//! - The probe's own traffic is left out unless it is asked for.
//! - Nothing that a file or a packet holds can cause a panic.
//! - A file is a sequence of whole blocks at every moment, up to the one that is being written: whoever is killed leaves a file
//!   that reads up to there.

pub mod bpf;
pub mod files;
pub mod filter;
pub mod flows;
pub mod ring;
#[cfg(feature = "libpcap")]
pub mod run;
pub mod session;
#[cfg(feature = "libpcap")]
pub mod source;
pub mod upload;

pub(crate) use picket_packet::view;
pub use picket_packet::{UnixNanos, pcapng, summary};
