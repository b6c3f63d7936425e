//! The clock that sessions are timed by, and one that tests can set.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Tells the time: the machine's, or one that a test moves by hand.
///
/// ```
/// # use jam_session::{Clock, MemorySessions};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), jam_session::Error> {
/// let clock = Clock::manual();
/// let sessions = MemorySessions::builder().clock(clock.clone()).build()?;
/// let id = sessions.create("ada", serde_json::json!({})).await?;
///
/// clock.advance(Duration::from_secs(3600));
/// assert!(sessions.get(&id).await?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's clock; what every builder has unless told otherwise.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still until [`advance`](Self::advance) moves it. It begins at the machine's time.
    pub fn manual() -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new(millis(since_epoch())))))
    }

    /// The same, beginning at that time: for what is to have been there before.
    pub fn manual_at(time: SystemTime) -> Self {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(Source::Manual(Arc::new(AtomicU64::new(millis(since_epoch)))))
    }

    /// Moves a manual clock on, and every clone of it. The system's clock does not listen.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(now) = &self.0 {
            // It never goes back, however far it is moved.
            let _ = now.fetch_update(SeqCst, SeqCst, |now| Some(now.saturating_add(millis(by))));
        }
    }

    #[cfg(feature = "conformance")]
    pub(crate) fn is_manual(&self) -> bool {
        matches!(self.0, Source::Manual(_))
    }

    /// The time of day: for what must mean the same in another process.
    pub fn now(&self) -> SystemTime {
        time(self.now_ms())
    }

    /// Time that only goes forward, from an arbitrary start: for durations within a process.
    pub fn elapsed(&self) -> Duration {
        match &self.0 {
            Source::System => START.elapsed(),
            Source::Manual(now) => Duration::from_millis(now.load(SeqCst)),
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        match &self.0 {
            Source::System => millis(since_epoch()),
            Source::Manual(now) => now.load(SeqCst),
        }
    }
}

/// Whole milliseconds, as many as fit.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The time of day that is so many milliseconds after 1970.
pub(crate) fn time(millis: u64) -> SystemTime {
    // Saturates: a manual clock may have been moved past what the platform can tell.
    UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(UNIX_EPOCH)
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_never_goes_back() {
        let clock = Clock::manual();
        let before = clock.elapsed();
        clock.advance(Duration::MAX);
        assert!(clock.elapsed() > before);
        clock.advance(Duration::from_secs(1));
        assert!(clock.elapsed() > before);
    }
}
