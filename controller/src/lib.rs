//! The Picket controller: the service behind `picket serve`, and the command line that is a client of its HTTP API.
//!
//! Arrows: `serve` starts everything; `api` and `hub` speak to `service` alone; `service` to `jobs`, `fleet`, `results`, `store`
//! and `pki`; `cli` to nobody but the API, of which it knows the types in `view`.

pub mod broker;
pub mod pki;
pub mod view;
pub mod clock;
pub mod service;
pub mod api;
pub mod cli;
pub mod config;
pub mod serve;
pub mod logging;
pub mod fleet;
pub mod hub;
pub mod jobs;
pub mod policy;
pub mod results;
mod secret;
pub mod store;
