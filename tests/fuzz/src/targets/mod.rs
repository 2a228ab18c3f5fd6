//! The targets, by what they read.

pub(crate) mod packet;
pub(crate) mod scan;
pub(crate) mod service;
pub(crate) mod text;
pub(crate) mod wire;
