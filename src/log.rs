//! Logging macros that give every message the target `jam_session`, and a rate limit for messages that clients can repeat.

use std::{
    mem,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use crate::clock::Clock;

/// A rate limit for messages that clients can repeat, because the cause is still there at the next request.
///
/// Each message may be logged above DEBUG once a minute. [`limited`] logs the repeats within that minute at DEBUG.
#[derive(Default)]
pub(crate) struct RateLimit {
    clock: Clock,
    /// There are few messages, so a list is searched faster than a map.
    admitted: Mutex<Vec<Admitted>>,
}

struct Admitted {
    message: &'static str,
    at: Duration,
    repeats: u64,
}

impl RateLimit {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, admitted: Mutex::default() }
    }

    /// Returns the limit of this process, for code that has no sessions at hand.
    pub(crate) fn of_process() -> &'static Self {
        static LIMIT: LazyLock<RateLimit> = LazyLock::new(RateLimit::default);
        &LIMIT
    }

    /// If the message may be logged above DEBUG now, returns how often it was repeated since it last was.
    pub(crate) fn admit(&self, message: &'static str) -> Option<u64> {
        let at = self.clock.elapsed();
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = admitted.iter_mut().find(|last| last.message == message) else {
            admitted.push(Admitted { message, at, repeats: 0 });
            return Some(0);
        };
        if at.saturating_sub(last.at) < INTERVAL {
            last.repeats += 1;
            return None;
        }
        last.at = at;
        Some(mem::take(&mut last.repeats))
    }
}

macro_rules! line {
    ($level:ident, $($line:tt)*) => { tracing::$level!(target: "jam_session", $($line)*) };
}

macro_rules! debug_line {
    ($($line:tt)*) => { $crate::log::line!(debug, $($line)*) };
}
macro_rules! info_line {
    ($($line:tt)*) => { $crate::log::line!(info, $($line)*) };
}
macro_rules! warn_line {
    ($($line:tt)*) => { $crate::log::line!(warn, $($line)*) };
}
macro_rules! error_line {
    ($($line:tt)*) => { $crate::log::line!(error, $($line)*) };
}

/// Logs a message that clients can repeat: its level, the [`RateLimit`], the fields in parentheses, and the message.
macro_rules! limited_line {
    ($level:ident, $limit:expr, ($($fields:tt)*), $message:literal) => {
        match $limit.admit($message) {
            Some(repeats) => $crate::log::line!($level, repeats, $($fields)* $message),
            None => $crate::log::line!(debug, $($fields)* $message),
        }
    };
}

pub(crate) use {
    debug_line as debug, error_line as error, info_line as info, limited_line as limited, line, warn_line as warn,
};

const INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p13_a_message_is_admitted_once_a_minute_with_the_number_of_its_repeats() {
        let clock = Clock::manual();
        let limit = RateLimit::new(clock.clone());
        assert_eq!(limit.admit("a"), Some(0));
        for _ in 0..3 {
            assert_eq!(limit.admit("a"), None);
        }
        // Each message has a minute of its own.
        clock.advance(Duration::from_secs(30));
        assert_eq!((limit.admit("b"), limit.admit("a")), (Some(0), None));
        clock.advance(INTERVAL / 2 - Duration::from_millis(1));
        assert_eq!((limit.admit("a"), limit.admit("b")), (None, None));
        clock.advance(Duration::from_millis(1));
        assert_eq!((limit.admit("a"), limit.admit("b")), (Some(5), None));
        assert_eq!(limit.admit("a"), None);
        clock.advance(INTERVAL);
        assert_eq!((limit.admit("a"), limit.admit("b")), (Some(1), Some(2)));
        clock.advance(INTERVAL);
        assert_eq!(limit.admit("a"), Some(0));
    }
}
