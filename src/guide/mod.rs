//! Chapters to read about the crate as a whole.

#[doc = include_str!("promises.md")]
pub mod promises {}

#[doc = include_str!("requests.md")]
pub mod requests {}
