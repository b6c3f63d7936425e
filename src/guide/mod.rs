//! Chapters to read. They contain no code.

#[doc = include_str!("promises.md")]
pub mod promises {}
