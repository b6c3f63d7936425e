//! An outage: the time in which the file cannot be trusted. Changes are refused until a new file is written.

use std::time::{Duration, Instant};

pub(super) struct Outage {
    cause: String,
    retry_at: Instant,
    wait: Duration,
}

impl Outage {
    /// Begins an outage, with a first try to end it at once. After a failed try, the next one waits this long, and then twice as
    /// long each time.
    pub(super) fn new(cause: String, wait: Duration) -> Self {
        Self { cause, retry_at: Instant::now(), wait }
    }

    pub(super) fn cause(&self) -> &str {
        &self.cause
    }

    /// Returns how long to wait until the next try to end it.
    pub(super) fn patience(&self) -> Duration {
        self.retry_at.saturating_duration_since(Instant::now())
    }

    pub(super) fn retry_now(&mut self) {
        self.retry_at = Instant::now();
    }

    /// Records that a try to end it failed.
    pub(super) fn go_on(&mut self, cause: String) {
        (self.cause, self.retry_at) = (cause, Instant::now() + self.wait);
        self.wait = (2 * self.wait).min(MAX_WAIT);
    }
}

const MAX_WAIT: Duration = Duration::from_secs(5);
