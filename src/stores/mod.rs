//! The stores that come with this crate: memory, a JSON file, and Redis.
//!
//! ```
//! use jam_session::stores::{json::JsonSessions, memory::MemorySessions};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = std::env::temp_dir().join(format!("jam-session-stores-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! // In this process only, until it ends.
//! let sessions = MemorySessions::new();
//! # drop(sessions);
//! // In one file, for one process at a time.
//! let sessions = JsonSessions::open(folder.join("sessions.json")).await?;
//! # sessions.close().await?;
//! # std::fs::remove_dir_all(folder)?;
//! # Ok(())
//! # }
//! ```

mod cursor;
pub mod json;
pub mod memory;
mod recent;
#[cfg(feature = "redis")]
pub mod redis;
