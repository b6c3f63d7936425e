//! The guide: what the crate guarantees, and what a request does and costs.

#[doc = include_str!("promises.md")]
pub mod promises {}

#[doc = include_str!("requests.md")]
pub mod requests {}
