//! The targets, by what they read.

pub(crate) mod capture;
mod engine;
pub(crate) mod packet;
pub(crate) mod scan;
pub(crate) mod service;
pub(crate) mod text;
pub(crate) mod trace;
pub(crate) mod wire;
