//! Results: from raw records to what counts ([`project`]), and from there to rows for people ([`rows`]); what of a path
//! is new ([`ways`]).

pub mod project;
pub mod rebuild;
pub mod rows;
pub mod ways;
