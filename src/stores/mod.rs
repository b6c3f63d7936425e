//! The stores that come with this crate: memory, a JSON file, and Redis.
//!
//! ```
//! use jam_session::stores::{json::JsonSessions, memory::MemorySessions};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = std::env::temp_dir().join(format!("jam-session-stores-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! // Until the process ends, in this process.
//! let sessions = MemorySessions::new();
//! # drop(sessions);
//! // Until the file is removed, in one process at a time.
//! let sessions = JsonSessions::open(folder.join("sessions.json")).await?;
//! # sessions.close().await?;
//! # std::fs::remove_dir_all(folder)?;
//! # Ok(())
//! # }
//! ```

pub mod json;
pub mod memory;
mod recent;
#[cfg(feature = "redis")]
pub mod redis;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{json::JsonSessions, memory::MemorySessions};
    use crate::{backend::Backend, clock::Clock, sessions::Sessions};

    const HOUR: Duration = Duration::from_secs(3_600);

    /// Of sessions that live for two hours.
    async fn check_set_back<B: Backend>(sessions: &Sessions<B>, clock: &Clock) {
        let old = sessions.create("ada", serde_json::json!({})).await.unwrap();
        let new = sessions.rework(&old).await.unwrap();
        assert!(sessions.get(&old).await.unwrap().is_some());
        clock.advance(Duration::from_secs(10));
        assert!(sessions.get(&old).await.unwrap().is_none());
        clock.set_wall(clock.wall_ms() - 3_600_000);
        assert!(sessions.get(&old).await.unwrap().is_none(), "an ID that was replaced is valid again");
        clock.advance(2 * HOUR - Duration::from_secs(11));
        assert!(sessions.get(&new).await.unwrap().is_some());
        clock.advance(Duration::from_secs(1));
        assert!(sessions.get(&new).await.unwrap().is_none(), "the session lives on behind its deadline");
    }

    #[tokio::test]
    async fn p18_a_wall_clock_that_is_set_back_in_use_revives_and_lengthens_nothing() {
        let clock = Clock::adjustable();
        let sessions = MemorySessions::builder().clock(clock.clone()).default_ttl(None).max_lifetime(2 * HOUR).build();
        check_set_back(&sessions.unwrap(), &clock).await;

        let folder = std::env::temp_dir().join(format!("jam-session-set-back-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let builder = JsonSessions::builder(folder.join("sessions.json")).request_time(Duration::from_secs(60));
        let builder = builder.clock(clock.clone()).default_ttl(None).max_lifetime(2 * HOUR);
        let sessions = builder.open().await.unwrap();
        check_set_back(&sessions, &clock).await;
        sessions.close().await.unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
