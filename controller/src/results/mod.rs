//! Results: from raw records to what counts ([`project`]), and from there to rows for people ([`rows`]).

pub mod project;
pub mod rebuild;
pub mod rows;
