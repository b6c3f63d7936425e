//! The stores that this crate brings: memory, a JSON file, and Redis.

pub mod json;
pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;
