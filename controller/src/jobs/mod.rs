//! Jobs: what was asked for, who works on what, how far it is.
//!
//! [`submit`] turns a request into a signed spec, [`plan`] decides who works on what, [`book`] keeps what is so. None of them
//! knows MQTT, HTTP or SQL.

pub mod book;
pub mod plan;
pub mod ranges;
pub mod submit;
#[cfg(test)]
mod tests;
