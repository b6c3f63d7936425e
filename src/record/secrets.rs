//! The secrets of a session: the newest, previous ones and superseded ones.
//!
//! | secret | is | may |
//! |---|---|---|
//! | newest | in the last cookie | do everything |
//! | previous | one before a rotation, within its grace | read, write, end sessions |
//! | superseded | one before a login of the same user or before `clear_others`, for ten seconds | end sessions |
//!
//! A secret *opens* a session if it is one of these three.

use crate::record::{Contents, token::SecretHash};

/// Which of its secrets opens a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    Newest,
    Previous,
    Superseded,
}

/// Secrets that were replaced, each with the time until which it is accepted.
type Replaced = Vec<(SecretHash, u64)>;

impl<K, D> Contents<K, D> {
    /// Returns what kind of secret of this session this is at that time, or `None` if it does not open it.
    pub(crate) fn opening(&self, secret: &SecretHash, now: u64) -> Option<Opening> {
        // All are compared, so that the time taken reveals nothing.
        let is_in = |replaced: &Replaced| {
            let is_it = |(hash, until): &(SecretHash, u64)| hash.matches(secret) & (*until > now);
            replaced.iter().fold(false, |found, replaced| found | is_it(replaced))
        };
        match (self.hash.matches(secret), is_in(&self.previous), is_in(&self.superseded)) {
            (true, ..) => Some(Opening::Newest),
            (_, true, _) => Some(Opening::Previous),
            (_, _, true) => Some(Opening::Superseded),
            _ => None,
        }
    }

    /// Returns whether a client that keeps an ID for this many milliseconds will drop it before the session ends, and half of that
    /// time has passed.
    pub(crate) fn needs_new_secret(&self, kept_for: u64, now: impl FnOnce() -> u64) -> bool {
        let issued = self.issued.unwrap_or(self.created);
        self.deadline.saturating_sub(issued) > kept_for && now().saturating_sub(issued) >= kept_for / 2
    }

    /// Rotates: gives the session a new secret if this is the newest one. That one stays valid for `grace` milliseconds.
    ///
    /// If the maximum number of previous secrets is still within the grace, the secret stays, so that none is forgotten early.
    pub(crate) fn rotate(&mut self, presented: &SecretHash, new: SecretHash, grace: u64, now: u64) -> bool {
        self.forget_expired(now);
        if !self.hash.matches(presented) || self.previous.len() >= MAX_PREVIOUS {
            return false;
        }
        if grace > 0 {
            self.previous.push((self.hash, now.saturating_add(grace)));
        }
        self.hash = new;
        self.issued = Some(now);
        true
    }

    /// Signs in again: gives the session a new secret if this is the newest one. All secrets before it are superseded.
    pub(crate) fn supersede(&mut self, presented: &SecretHash, new: SecretHash, now: u64) -> bool {
        if !self.hash.matches(presented) {
            return false;
        }
        self.forget_expired(now);
        let until = now.saturating_add(SUPERSEDED_FOR);
        let replaced = self.previous.drain(..).map(|(hash, _)| hash).chain([self.hash]);
        self.superseded.extend(replaced.map(|hash| (hash, until)));
        self.forget_surplus();
        self.hash = new;
        self.issued = Some(now);
        self.logins = self.logins.saturating_add(1);
        true
    }

    /// Ends the grace of a previous secret, which is superseded from now on. Returns `false` if it is not a previous secret.
    pub(crate) fn end_grace(&mut self, presented: &SecretHash, now: u64) -> bool {
        self.forget_expired(now);
        let Some(at) = self.previous.iter().position(|(hash, _)| hash.matches(presented)) else { return false };
        let (hash, _) = self.previous.remove(at);
        self.superseded.push((hash, now.saturating_add(SUPERSEDED_FOR)));
        self.forget_surplus();
        true
    }

    fn forget_surplus(&mut self) {
        self.superseded.drain(..self.superseded.len().saturating_sub(MAX_SUPERSEDED));
    }

    fn forget_expired(&mut self, now: u64) {
        for replaced in [&mut self.previous, &mut self.superseded] {
            replaced.retain(|(_, until)| *until > now);
        }
    }
}

const MAX_PREVIOUS: usize = 4;
/// Together with the newest and the previous ones, these are sixteen.
const MAX_SUPERSEDED: usize = 11;
const SUPERSEDED_FOR: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::data::Data;

    const GRACE: u64 = 10_000;

    fn hash(n: u8) -> SecretHash {
        SecretHash::from_bytes([n; 32])
    }

    fn session() -> Contents<(), Data> {
        Contents {
            key: None,
            hash: hash(1),
            previous: Vec::new(),
            superseded: Vec::new(),
            logins: 0,
            issued: None,
            created: 0,
            signed_in: None,
            written: 0,
            deadline: 0,
            idle: None,
            data: Data::default(),
        }
    }

    fn openings(session: &Contents<(), Data>, secrets: std::ops::RangeInclusive<u8>, now: u64) -> Vec<Option<Opening>> {
        secrets.map(|n| session.opening(&hash(n), now)).collect()
    }

    #[test]
    fn a_rotation_leaves_the_secret_before_it_its_grace_and_no_more() {
        use Opening::{Newest, Previous};
        let mut session = session();
        assert!(session.rotate(&hash(1), hash(2), GRACE, 0));
        assert!(!session.rotate(&hash(1), hash(3), GRACE, 1));
        assert_eq!(openings(&session, 1..=3, 9_999), [Some(Previous), Some(Newest), None]);
        assert_eq!(openings(&session, 1..=2, 10_000), [None, Some(Newest)]);
        assert_eq!((session.issued, session.logins), (Some(0), 0));
    }

    /// Rule 16: while four previous secrets are in their grace, a further rotation keeps the secret.
    #[test]
    fn no_rotation_ends_a_grace_early() {
        let mut session = session();
        for n in 1..=4 {
            assert!(session.rotate(&hash(n), hash(n + 1), GRACE, u64::from(n)));
        }
        assert!(!session.rotate(&hash(5), hash(6), GRACE, 10_000));
        assert!(session.opening(&hash(1), 10_000).is_some());
        // The first one is over.
        assert!(session.rotate(&hash(5), hash(6), GRACE, 10_001));
        assert_eq!(session.previous.len(), 4);
    }

    #[test]
    fn without_a_grace_a_rotation_leaves_nothing() {
        let mut session = session();
        for n in 1..=9 {
            assert!(session.rotate(&hash(n), hash(n + 1), 0, 0));
        }
        assert_eq!(openings(&session, 8..=10, 0), [None, None, Some(Opening::Newest)]);
    }

    /// Rule 1: the secrets before it are superseded for ten seconds.
    #[test]
    fn a_login_supersedes_every_secret_before_it() {
        use Opening::{Newest, Superseded};
        let mut session = session();
        assert!(session.rotate(&hash(1), hash(2), 60_000, 0));
        assert!(!session.supersede(&hash(1), hash(3), 5));
        assert!(session.supersede(&hash(2), hash(3), 5));
        assert_eq!(openings(&session, 1..=3, 10_004), [Some(Superseded), Some(Superseded), Some(Newest)]);
        assert_eq!(openings(&session, 1..=3, 10_005), [None, None, Some(Newest)]);
        assert_eq!(session.logins, 1);
    }

    #[test]
    fn at_most_sixteen_secrets_are_kept_and_the_oldest_superseded_go_first() {
        let mut session = session();
        for n in 1..=20 {
            assert!(session.supersede(&hash(n), hash(n + 1), 0));
        }
        for n in 21..=24 {
            assert!(session.rotate(&hash(n), hash(n + 1), GRACE, 0));
        }
        assert_eq!(1 + session.previous.len() + session.superseded.len(), 16);
        assert!(session.opening(&hash(9), 0).is_none() && session.opening(&hash(10), 0).is_some());
    }

    #[test]
    fn a_grace_is_ended_by_a_login_elsewhere() {
        let mut session = session();
        assert!(session.rotate(&hash(1), hash(2), 60_000, 0));
        assert!(!session.end_grace(&hash(2), 0) && session.end_grace(&hash(1), 0));
        assert_eq!(session.opening(&hash(1), 0), Some(Opening::Superseded));
        assert_eq!((session.opening(&hash(1), 10_000), session.logins), (None, 0));
    }
}
