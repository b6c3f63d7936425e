//! The health of the store: one log message when an outage begins, and one when it is over.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{error::Error, log};

/// Its times come from the sessions' own clock.
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
    /// Records a failed call.
    pub(super) fn failed(&self, error: &Error, now: Duration) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.last = now;
        if !self.is_failing.swap(true, Relaxed) {
            times.began = now;
            log::warn!(error = %error.chain(), "the store is failing: requests that need it are answered with 503");
        }
    }

    /// Records a successful call.
    #[inline]
    pub(super) fn answered(&self, now: impl FnOnce() -> Duration) {
        if self.is_failing.load(Relaxed) {
            self.returned(now());
        }
    }

    fn returned(&self, now: Duration) {
        let Times { began, last } = *self.times.lock().unwrap_or_else(PoisonError::into_inner);
        // If only one of several servers is down, or only writes fail, other calls succeed in between.
        if now.saturating_sub(last) >= QUIET && self.is_failing.swap(false, Relaxed) {
            let failed_for = last.saturating_sub(began).as_secs_f64();
            log::info!(failed_for, "the store works again");
        }
    }
}

/// How long no call may fail before the outage counts as over.
const QUIET: Duration = Duration::from_secs(5);
