//! Whether the store does what it is asked: one line in the log when it stops, and one when it does again.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{error::Error, log};

/// Times are by the clock of the sessions.
#[derive(Default)]
pub(super) struct Health {
    is_failing: AtomicBool,
    times: Mutex<Times>,
}

#[derive(Clone, Copy, Default)]
struct Times {
    began: Duration,
    last: Duration,
}

impl Health {
    /// The store has not done what it was asked.
    pub(super) fn failed(&self, error: &Error, now: Duration) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.last = now;
        if !self.is_failing.swap(true, Relaxed) {
            times.began = now;
            log::warn!(error = %error.chain(), "the store is failing: requests that need it are answered with 503");
        }
    }

    /// The store has done what it was asked.
    #[inline]
    pub(super) fn answered(&self, now: impl FnOnce() -> Duration) {
        if self.is_failing.load(Relaxed) {
            self.returned(now());
        }
    }

    fn returned(&self, now: Duration) {
        let Times { began, last } = *self.times.lock().unwrap_or_else(PoisonError::into_inner);
        // Where one server of several is gone, or only writes fail, other calls succeed in between.
        if now.saturating_sub(last) >= QUIET && self.is_failing.swap(false, Relaxed) {
            let failed_for = last.saturating_sub(began).as_secs_f64();
            log::info!(failed_for, "the store works again");
        }
    }
}

/// For how long nothing has to fail.
const QUIET: Duration = Duration::from_secs(5);
