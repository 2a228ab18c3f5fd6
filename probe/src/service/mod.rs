//! Service detection: what serves on an open port.
//!
//! Must not know: agents, spools, transports.

pub mod fragile;
pub mod recog;
