//! The Picket probe: paced packet engines, the spool, the agent.

pub mod net;
pub mod packet;
pub mod spool;
