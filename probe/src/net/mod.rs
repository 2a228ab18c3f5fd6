//! Everything that touches the wire: engines' seam, time, pacing, links, routes, and the one loop.

pub mod afpacket;
pub mod afxdp;
pub mod clock;
pub mod congestion;
pub mod drive;
pub mod engine;
pub mod filter;
pub mod link;
mod mapping;
pub mod neighbour;
pub mod netlink;
pub mod onlink;
pub mod pacer;
pub(crate) mod parting;
pub mod ports;
pub(crate) mod price;
pub mod proxy;
mod receiver;
pub mod route;
pub mod sim;
pub mod target_pacer;
pub mod time;
