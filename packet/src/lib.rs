//! Bytes on the wire: views that check a length once and then cannot panic, builders of what we send, and what is made of packets
//! that were captured: files ([`pcapng`]) and a line for each ([`summary`], [`mod@line`]).
//!
//! Probe and controller share it: the probe writes files of packets and shows them, the controller's command line shows those that arrive.
//!
//! It must not know engines, links, clocks, files or terminals; only `std` and the types of `picket-wire` (which are without IO, too).
//!
//! **Invariants:**
//! - No accessor or `parse` panics, whatever the bytes are; indexing into packets happens here and nowhere else.
//! - What is said of a packet has no control characters.

pub mod arp;
pub mod checksum;
pub mod eth;
pub mod extension;
pub mod guard;
pub mod icmp;
pub mod ip;
pub mod line;
pub mod link;
pub mod mld;
pub mod ndp;
pub mod payload;
pub mod pcapng;
pub mod provoked;
pub mod sctp;
pub mod summary;
pub mod tcp;
mod time;
pub mod udp;
pub mod view;

pub use time::UnixNanos;
