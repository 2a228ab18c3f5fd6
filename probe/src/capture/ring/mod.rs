//! A rolling capture on the box, asked afterwards: "host X between 02:10 and 02:12".
//!
//! ```text
//!  session ▶ files (thread) ▶ keeper ─┬▶ segment-0000000001.pcapng ─┐
//!                                     └▶ segment-0000000001.index ──┴▶ ask (index, query) ▶ pcapng
//! ```
//!
//! A ring is a directory of segments, each a whole pcapng file, within a budget of bytes and, where that is wanted, of age; the oldest segment
//! goes first. Beside each one stands its index ([`index`]), a hundredth of its length: which times and which addresses are in
//! which 64 KiB. A question ([`query`]) reads those parts alone that can hold an answer, and tests each packet in them exactly.
//!
//! It must not know who asks, the controller, nor the wire.
//!
//! **Invariants:**
//! - An answer has every packet of the ring that matches, and no other, in the order in which they were captured: the index only says what
//!   need not be read. What it does not tell for sure is read.
//! - Who is killed leaves segments that can be asked up to the last whole block.

pub mod ask;
pub mod index;
pub mod keeper;
pub mod query;
mod segment;

pub use ask::{Answer, AskError, ask, show};
pub use keeper::{Options, RingError, keep};
pub use query::Question;
