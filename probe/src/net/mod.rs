//! Everything that touches the wire: engines' seam, time, pacing, links, routes, and the one loop.

pub mod engine;
pub mod time;
pub mod clock;
pub mod pacer;
pub mod netlink;
pub mod route;
pub mod neighbour;
