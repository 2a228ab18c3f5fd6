//! The Picket probe: paced packet engines, the spool, the agent.

pub mod agent;
pub mod capture;
pub mod commands;
pub mod config;
pub mod discover;
pub mod durable;
pub mod errors;
pub mod health;
pub mod identity;
pub mod lock;
pub mod logging;
pub mod net;
pub mod scan;
pub mod service;
pub mod shaper;
pub mod spool;
pub mod standalone;
pub mod station;
#[cfg(feature = "libpcap")]
pub mod tap;
pub mod trace;
pub mod transport;

pub use picket_packet as packet;
