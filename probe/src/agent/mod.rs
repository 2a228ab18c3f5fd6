//! The agent: from a signed command to work, and from work to the spool.
//!
//! [`core`] is the pure part: it verifies commands, keeps leases, decides what runs, and turns chunks of results into records.
//! It owns no socket, thread or clock; time comes in as a parameter, storage through [`core::Journal`], and what is to be
//! done comes out as [`core::Action`]s. `run` is the shell that carries them out: transport, packet loop, timers.
//!
//! It must not know how packets are made or sent, nor which transport carries its messages.
//!
//! Measurements are engines of the packet loop, one for each lease ([`tasks`]); discovery of the probe's own link is one too ([`link`]), and so are
//! traces ([`traces`]). Captures send nothing and have threads of their own ([`captures`]), as has the ring that the site may want (`ring`).
//!
//! **Invariant:** appending a batch to the spool is the checkpoint: after any crash a lease goes on exactly behind the last
//! batch that the spool or the saved state knows, so that no position is reported twice and none is left out.
//! **Invariant:** where a job wants services, a batch is appended only behind the services of its open ports ([`held`]), so that
//! it is the checkpoint of both.
//! **Invariant:** a command that changes what runs is obeyed only after its serial is on disk.
//! **Invariant:** a lease with a life pauses, with a checkpoint, when the controller has not answered a heartbeat that was
//! sent within that life; before that moment nobody else can have been given the work.
//! **Invariant:** of one job at most one lease runs at a time, so that the job's rate holds.

pub mod captures;
pub mod core;
pub mod held;
pub mod journal;
pub mod link;
#[cfg(feature = "libpcap")]
pub mod ring;
pub mod run;
pub mod state;
pub mod surveys;
pub mod tasks;
#[cfg(test)]
mod tests;
pub mod traces;
