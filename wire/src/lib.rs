//! What a Picket probe and its controller say to each other.
//!
//! Pure data: identifiers, units, target spaces, job specs, results, signed envelopes, topics. This crate does no IO, reads
//! no clock, draws no randomness and knows neither MQTT nor SQL; both programs and every test speak through it.

pub mod addr;
pub mod atlas;
pub mod capture;
pub mod codec;
pub mod command;
pub mod enrol;
pub mod envelope;
pub mod event;
pub mod filter;
pub mod host;
pub mod ids;
pub mod job;
pub mod nmap_xml;
pub mod path;
pub mod policy;
pub mod port;
pub mod result;
pub mod service;
pub mod space;
pub mod target;
pub mod top_ports;
pub mod topic;
pub mod trace;
pub mod trace_text;
pub mod units;
pub mod when;
