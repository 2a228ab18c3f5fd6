//! Results: from raw records to what counts ([`project`]), and from there to rows for people ([`rows`]); what of a path
//! is new ([`ways`]). Paths have rules of their own ([`traced`]).

pub mod captures;
pub mod project;
pub mod rebuild;
pub mod rows;
pub mod traced;
pub mod ways;
