//! The state machine of a watched session: whether it has ended, and when the store is polled next.
//!
//! [`Watch`] has no lock, no await, no clock and no backend. It is told what happened, and asked what a stream should be told.
//! Its poll times are [moments](crate::clock::Clock::moment).

use std::time::Duration;

use crate::{clock::millis, error::Error};

/// Why [`Session::ended`](crate::Session::ended) resolved, as precisely as this process can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ending {
    /// The session was ended by a sign-out, by a sign-out everywhere, by its handle, or by the limit of [sessions per
    /// user](crate::Builder::sessions_per_key). Or it was evicted from a full store.
    ///
    /// If another process ended the session, this process only sees that it is gone. So a login in another process that
    /// ended it is also reported as `SignedOut`.
    SignedOut,
    /// The user signed in again, or ended all other sessions.
    ///
    /// The session may live on under a new ID, and the stream may belong to a stolen copy of the old one. The user's own streams
    /// can reconnect with the new cookie.
    Replaced,
    /// The session reached its idle timeout or its absolute timeout.
    Expired,
    /// [`Sessions::close`](crate::Sessions::close) was called, as in a graceful shutdown. The session itself lives on.
    Closed,
    /// It is not known whether the session ended. The store has not answered for as long as
    /// [`unknown_after`](crate::Builder::unknown_after), or the session's record cannot be read.
    Unknown,
}

/// The state of a watched session.
pub(crate) struct Watch {
    ending: Option<Ending>,
    known: Known,
    /// When the store is polled next.
    next: Duration,
    /// Since when the store has been failing.
    unreachable: Option<Duration>,
    pace: Pace,
}

/// A session as the store last returned it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) version: i64,
    /// How many logins and `clear_others` calls there were after the first login.
    pub(crate) logins: u32,
    pub(crate) deadline: u64,
    pub(crate) idle: Option<u64>,
    /// The time to live, and when it was read, by [`Clock::elapsed`](crate::clock::Clock::elapsed).
    pub(crate) ttl: Duration,
    pub(crate) at: Duration,
}

/// How often the store is polled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) interval: Duration,
    /// The interval while the store fails.
    pub(crate) retry: Duration,
    /// Different for each record, so that streams that begin together are not polled together.
    pub(crate) phase: u64,
}

/// The result of a look at the store.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The record is unchanged, and has this time to live.
    Same(Duration),
    Changed(Known),
    /// The record exists, but its deadline has passed.
    Expired,
    Gone,
    /// The sessions are closed.
    Closed,
    Failed(Error),
}

/// A look at the store.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) seen: Seen,
    /// The moments when the look began and when it was over.
    pub(crate) began: Duration,
    pub(crate) over: Duration,
    /// The same two times by [`Clock::elapsed`](crate::clock::Clock::elapsed).
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

impl Watch {
    pub(crate) fn new(known: Known, pace: Pace, now: Duration) -> Self {
        Self { ending: None, known, next: pace.next(pace.interval, now), unreachable: None, pace }
    }

    pub(crate) fn known(&self) -> &Known {
        &self.known
    }

    pub(crate) fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Ends the session for every stream. The first reason counts.
    pub(crate) fn end(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
    }

    /// Records a login on the session. Returns whether it is a new one, so that older streams may have to end.
    pub(crate) fn replace(&mut self, logins: u32) -> bool {
        let is_later = logins > self.known.logins;
        self.known.logins = self.known.logins.max(logins);
        is_later
    }

    /// Records that the session was used, and its new time to live.
    pub(crate) fn used(&mut self, ttl: Duration, now: Duration) {
        (self.known.ttl, self.known.at) = (ttl, now);
    }

    /// Returns why a stream ends, or `None` if it has to wait.
    ///
    /// `logins` is the number of logins when the stream began, and `patience` is how long it waits while the store fails.
    pub(crate) fn verdict(&self, logins: u32, patience: Duration, now: Duration) -> Option<Ending> {
        match self.ending {
            Some(ending) => Some(ending),
            None if logins < self.known.logins => Some(Ending::Replaced),
            None if self.gives_up(patience).is_some_and(|at| at <= now) => Some(Ending::Unknown),
            None => None,
        }
    }

    /// Returns when a stream with this patience gives up, if the store fails until then.
    pub(crate) fn gives_up(&self, patience: Duration) -> Option<Duration> {
        self.unreachable.map(|since| since.saturating_add(patience))
    }

    /// Returns when the next look is due.
    pub(crate) fn next(&self) -> Duration {
        self.next
    }

    /// Returns when the next look is so late that another stream has to take over.
    pub(crate) fn overdue(&self) -> Duration {
        self.next.saturating_add(self.pace.interval)
    }

    /// Makes the next look due at once, because the session may have ended unnoticed.
    pub(crate) fn hurry(&mut self, now: Duration) {
        self.next = self.next.min(now);
    }

    /// Records that a look begins, and schedules the next one in case this one is dropped.
    pub(crate) fn begin(&mut self, now: Duration) {
        self.next = self.pace.next(self.pace.interval, now);
    }

    /// Takes the result of a look. Returns whether the streams have to be woken.
    pub(crate) fn take(&mut self, look: Look) -> bool {
        let Look { seen, began, over, from, to } = look;
        let unreachable = self.unreachable.take();
        self.next = self.pace.next(self.pace.interval, over);
        match seen {
            Seen::Same(ttl) => {
                self.used(ttl, from);
                false
            }
            Seen::Changed(known) => {
                let replaced = self.replace(known.logins);
                self.known = Known { logins: self.known.logins, ..known };
                replaced
            }
            Seen::Gone => {
                // A session whose time to live is not over yet cannot have expired.
                let had_time = to.saturating_sub(self.known.at) < self.known.ttl;
                self.end(if had_time { Ending::SignedOut } else { Ending::Expired });
                true
            }
            Seen::Expired => {
                self.end(Ending::Expired);
                true
            }
            Seen::Closed => {
                self.end(Ending::Closed);
                true
            }
            Seen::Failed(_) => {
                self.unreachable = Some(unreachable.unwrap_or(began));
                self.next = self.pace.next(self.pace.retry, over);
                unreachable.is_none()
            }
        }
    }
}

impl Pace {
    pub(crate) fn new(interval: Duration, unknown_after: Duration, phase: u64) -> Self {
        // After a short outage the store is polled again before any stream gives up.
        Self { interval, retry: interval.min(unknown_after / 4), phase }
    }

    /// Returns the next moment in this record's phase.
    fn next(&self, interval: Duration, now: Duration) -> Duration {
        let (interval, now) = (millis(interval).max(1), millis(now));
        let past = (now % interval + interval - self.phase % interval) % interval;
        Duration::from_millis(now.saturating_sub(past).saturating_add(interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const S: Duration = Duration::from_secs(1);
    const PACE: Pace = Pace { interval: Duration::from_secs(5), retry: Duration::from_secs(5), phase: 2_000 };

    fn known(version: i64, logins: u32) -> Known {
        Known { version, logins, deadline: u64::MAX, idle: Some(60_000), ttl: 60 * S, at: 100 * S }
    }

    fn watch() -> Watch {
        Watch::new(known(1, 0), PACE, 100 * S)
    }

    /// A look at that second, by both clocks.
    fn look(seen: Seen, at: u32) -> Look {
        let at = at * S;
        Look { seen, began: at, over: at, from: at, to: at }
    }

    fn failed() -> Seen {
        Seen::Failed(Error::new(ErrorKind::Unavailable, "the store is away"))
    }

    #[test]
    fn looks_have_the_phase_of_their_record_whenever_they_begin() {
        for (now, next) in [(100, 102), (101, 102), (102, 107), (106, 107)] {
            assert_eq!(PACE.next(5 * S, now * S), next * S, "after {now}");
        }
        assert_eq!(watch().next(), 102 * S);
        for phase in [0, 1, 4_999, u64::MAX] {
            let next = Pace { phase, ..PACE }.next(5 * S, 100 * S);
            assert!(next > 100 * S && next <= 105 * S, "{next:?}");
        }
    }

    #[test]
    fn a_session_that_is_there_goes_on() {
        let mut watch = watch();
        for at in [102, 107, 112] {
            watch.begin(at * S);
            assert!(!watch.take(look(Seen::Same(60 * S), at)));
            assert_eq!((watch.next(), watch.verdict(0, S, at * S)), ((at + 5) * S, None));
        }
        // Another version of it without a login: a rotation.
        assert!(!watch.take(look(Seen::Changed(known(2, 0)), 117)));
        assert_eq!((watch.known().version, watch.verdict(0, S, 117 * S)), (2, None));
    }

    #[test]
    fn a_login_ends_the_streams_from_before_it_and_no_others() {
        let mut watch = watch();
        assert!(watch.take(look(Seen::Changed(known(2, 3)), 102)));
        assert_eq!([2, 3, 4].map(|logins| watch.verdict(logins, S, 102 * S)), [Some(Ending::Replaced), None, None]);
        // What was seen before it does not undo it.
        assert!(!watch.replace(1) && !watch.take(look(Seen::Changed(known(1, 0)), 103)));
        assert_eq!(watch.verdict(2, S, 103 * S), Some(Ending::Replaced));
    }

    #[test]
    fn a_session_that_is_gone_has_expired_if_it_had_the_time() {
        for (at, ending) in [(102, Ending::SignedOut), (159, Ending::SignedOut), (160, Ending::Expired)] {
            let mut watch = watch();
            assert!(watch.take(look(Seen::Gone, at)));
            assert_eq!(watch.verdict(0, S, at * S), Some(ending), "after {at}");
        }
        // It was used since.
        let mut used = watch();
        used.take(look(Seen::Same(60 * S), 147));
        used.take(look(Seen::Gone, 170));
        assert_eq!(used.ending(), Some(Ending::SignedOut));
        let mut late = watch();
        assert!(late.take(look(Seen::Expired, 102)));
        assert_eq!(late.ending(), Some(Ending::Expired));
    }

    #[test]
    fn the_first_reason_counts() {
        let mut watch = watch();
        watch.end(Ending::SignedOut);
        watch.end(Ending::Closed);
        watch.take(look(Seen::Changed(known(2, 1)), 102));
        assert_eq!(watch.verdict(0, S, 200 * S), Some(Ending::SignedOut));
    }

    #[test]
    fn each_stream_gives_up_a_lost_store_after_its_own_time() {
        let mut watch = watch();
        // The streams hear of it once, to set their alarms.
        assert!(watch.take(look(failed(), 102)));
        assert!(!watch.take(look(failed(), 107)));
        assert_eq!(watch.gives_up(60 * S), Some(162 * S));
        assert_eq!([161, 162].map(|now| watch.verdict(0, 60 * S, now * S)), [None, Some(Ending::Unknown)]);
        assert_eq!(watch.verdict(0, 80 * S, 162 * S), None);
        // It is back, and the next time begins again.
        watch.take(look(Seen::Same(60 * S), 163));
        assert_eq!(watch.verdict(0, 60 * S, 500 * S), None);
        watch.take(look(failed(), 168));
        assert_eq!(watch.gives_up(60 * S), Some(228 * S));
    }

    #[test]
    fn a_store_that_fails_once_is_asked_again_before_a_stream_gives_up() {
        let pace = Pace::new(300 * S, 60 * S, 0);
        let mut watch = Watch::new(known(1, 0), pace, 100 * S);
        watch.take(look(failed(), 300));
        assert_eq!(watch.next(), 315 * S);
        watch.take(look(Seen::Same(60 * S), 315));
        assert_eq!(watch.next(), 600 * S);
    }

    #[test]
    fn a_look_may_be_due_at_once_and_is_overdue_an_interval_late() {
        let mut watch = watch();
        watch.hurry(101 * S);
        assert_eq!((watch.next(), watch.overdue()), (101 * S, 106 * S));
        watch.hurry(105 * S);
        assert_eq!(watch.next(), 101 * S);
        // Whoever looks and is dropped leaves the next one its turn.
        watch.begin(101 * S);
        assert_eq!(watch.next(), 102 * S);
    }
}
