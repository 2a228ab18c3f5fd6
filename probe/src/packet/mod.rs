//! Bytes on the wire: views that check a length once and then cannot panic, and builders of what we send.
//!
//! It must not know engines, links or time; only `std`.
//!
//! Invariant: no accessor or `parse` panics, whatever the bytes are; indexing into packets happens here and nowhere else.

pub mod arp;
pub mod checksum;
pub mod eth;
pub mod extension;
pub mod guard;
pub mod icmp;
pub mod ip;
pub mod link;
pub mod mld;
pub mod ndp;
pub mod payload;
pub mod provoked;
pub mod sctp;
pub mod tcp;
pub mod udp;
