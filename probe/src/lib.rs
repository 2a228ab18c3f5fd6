//! The Picket probe: paced packet engines, the spool, the agent.

pub mod agent;
pub mod durable;
pub mod health;
pub mod config;
pub mod net;
pub mod packet;
pub mod scan;
pub mod spool;
