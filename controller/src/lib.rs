//! The Picket controller: the service behind `picket serve`, and the command line that is a client of its HTTP API.
//!
//! Arrows: `serve` starts everything; `api` and `hub` speak to `service` alone; `service` to `jobs`, `fleet`, `results`, `lookup`,
//! `store` and `pki`; `cli` to nobody but the API, of which it knows the types in `view`.

pub mod api;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
mod errors;
pub mod fleet;
pub mod hub;
pub mod jobs;
pub mod logging;
pub mod lookup;
pub mod pki;
pub mod policy;
pub mod results;
mod secret;
pub mod serve;
pub mod service;
pub mod store;
pub mod view;
