//! Whole-system tests of Picket: a lab of network namespaces, ground truth, faults, capture from outside and benchmarks.
//!
//! The library is what the tests of `tests/tests`, the demo and the benches share. It drives Picket through its programs and its
//! wire, as a user or a network would; what it measures it measures by its own means (the kernel, nftables, tcpdump), so that a
//! fault in Picket's packet code cannot hide itself.

pub mod lab;
pub mod system;
