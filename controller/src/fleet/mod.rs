//! The fleet: which probes there are, how each is ([`registry`]), and what dashboards are told of it ([`publish`]). Pure.

pub mod publish;
pub mod registry;
