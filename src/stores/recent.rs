//! What the stores of this process remember for a while: each owner's last clear, and which records ended.
//!
//! Both are bounded, so neither counts towards the bounds of a store. What is forgotten early because of its bound counts
//! against the caller: a login is late, and a retry is not answered. So nothing gets in that should not.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::{
    backend::{Since, Terms},
    error::{Error, ErrorKind},
    record::id::{Owner, RecordId},
};

/// Each owner's last clear, for [`REMEMBERED`]. Times are by the store's clock.
#[derive(Debug)]
pub(super) struct RecentClears {
    last: HashMap<Owner, LastClear>,
    /// All clears, in the order in which they are forgotten. Those that are not their owner's last one are void.
    order: VecDeque<(Owner, Duration)>,
    most: usize,
    /// Clears up to then were forgotten before their time.
    floor: Option<Duration>,
}

#[derive(Debug)]
struct LastClear {
    name: i64,
    ended: u64,
    at: Duration,
}

/// The users' records that ended within the last ten seconds, for the retry of a `create`.
#[derive(Debug)]
pub(super) struct RecentEndings {
    /// Each with the time at which it is forgotten.
    ended: VecDeque<(RecordId, Duration)>,
    most: usize,
    /// Until then, some may be missing.
    incomplete: Duration,
}

/// The [`Terms`] of a `create` that may have to wait until it is decided, while the request grows older.
#[derive(Clone, Copy, Debug)]
pub(super) struct TermsAt {
    /// The age of the request, and when it had that age.
    since: Option<(Duration, Duration)>,
    pub(super) retry: bool,
}

impl RecentClears {
    /// Remembers up to `most` clears, of about 100 bytes each.
    pub(super) fn new(most: usize) -> Self {
        Self { last: HashMap::new(), order: VecDeque::new(), most, floor: None }
    }

    /// How many records the owner's last clear ended, if it had that name.
    pub(super) fn repeat(&self, owner: Owner, name: i64) -> Option<u64> {
        self.last.get(&owner).filter(|last| last.name == name).map(|last| last.ended)
    }

    pub(super) fn remember(&mut self, owner: Owner, name: i64, ended: u64, now: Duration) {
        self.last.insert(owner, LastClear { name, ended, at: now });
        self.order.push_back((owner, now));
        self.forget(now);
    }

    /// Forgets some of those whose time is over, and of those that are too many.
    pub(super) fn forget(&mut self, now: Duration) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some(&(owner, at)) = self.order.front() else { return };
            let is_over = now.saturating_sub(at) > REMEMBERED;
            if !is_over && self.order.len() <= self.most {
                return;
            }
            self.order.pop_front();
            if self.last.get(&owner).is_some_and(|last| last.at == at) {
                self.last.remove(&owner);
                self.floor = self.floor.max((!is_over).then_some(at));
            }
        }
    }

    fn is_since(&self, owner: Owner, age: Duration, now: Duration) -> bool {
        let last = self.last.get(&owner).map(|last| last.at).max(self.floor);
        last.is_some_and(|at| now.saturating_sub(at) < age)
    }
}

impl RecentEndings {
    /// Remembers up to `most` endings, of about 80 bytes each.
    pub(super) fn new(most: usize) -> Self {
        Self { ended: VecDeque::new(), most, incomplete: Duration::ZERO }
    }

    /// Remembers that a record ended at that time. A visitor's need not be remembered.
    pub(super) fn remember(&mut self, id: RecordId, at: Duration, now: Duration) {
        if id.owner().is_none() || !Self::is_recent(at, now) {
            return;
        }
        let until = at.saturating_add(ENDINGS);
        while self.ended.front().is_some_and(|(_, until)| *until <= now) {
            self.ended.pop_front();
        }
        self.ended.push_back((id, until));
        if self.ended.len() > self.most
            && let Some((_, until)) = self.ended.pop_front()
        {
            self.incomplete = self.incomplete.max(until);
        }
    }

    /// Whether what ended at that time is still to be remembered.
    pub(super) fn is_recent(at: Duration, now: Duration) -> bool {
        now < at.saturating_add(ENDINGS)
    }

    /// Whether the record ended lately, or may have.
    pub(super) fn may_have(&self, id: RecordId, now: Duration) -> bool {
        id.owner().is_some()
            && (now < self.incomplete || self.ended.iter().any(|(ended, until)| *ended == id && now < *until))
    }
}

impl TermsAt {
    pub(super) fn new(terms: Terms, now: impl FnOnce() -> Duration) -> Self {
        let Terms { since, limit: _, leaves: _, retry } = terms;
        Self {
            since: since.and_then(|since| match since {
                Since::Age(age) => Some((age, now())),
                Since::Mark(_) => None,
            }),
            retry,
        }
    }

    /// Whether a new record of this owner is too late.
    pub(super) fn are_late(&self, clears: &RecentClears, owner: Option<Owner>, now: Duration) -> bool {
        let Some((age, then)) = self.since else { return false };
        let age = age.saturating_add(now.saturating_sub(then));
        age > REMEMBERED || owner.is_some_and(|owner| clears.is_since(owner, age, now))
    }

    /// Whether a clear that happens right now makes it late.
    pub(super) fn has_since(&self) -> bool {
        self.since.is_some()
    }
}

/// What a store answers to a retry when it cannot tell what became of the first try.
pub(super) fn unknown() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the answer to the first try was lost, so it is not known whether the change was applied",
    )
}

/// For how long a clear is remembered at least, and a new record may refer to.
pub(super) const REMEMBERED: Duration = Duration::from_secs(15 * 60);
const ENDINGS: Duration = Duration::from_secs(10);
/// More than one, so that there are ever fewer.
const FORGOTTEN_AT_ONCE: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::id::Sid;

    fn owner(n: u8) -> Owner {
        Owner::from([n; 16])
    }

    fn minutes(n: u64) -> Duration {
        Duration::from_secs(60 * n)
    }

    /// Whether a request of that age is late.
    fn is_late(clears: &RecentClears, n: u8, age: Duration, now: Duration) -> bool {
        let since = Some(Since::Age(age));
        TermsAt::new(Terms { since, ..Terms::default() }, || now).are_late(clears, Some(owner(n)), now)
    }

    #[test]
    fn a_clear_is_remembered_for_fifteen_minutes_and_then_forgotten() {
        let mut clears = RecentClears::new(100);
        clears.remember(owner(1), 7, 3, minutes(1));
        assert_eq!((clears.repeat(owner(1), 7), clears.repeat(owner(1), 8)), (Some(3), None));
        for (age, is) in [(0, false), (5, false), (6, true), (15, true), (16, true)] {
            assert_eq!(is_late(&clears, 1, minutes(age), minutes(6)), is, "{age}");
        }
        assert!(!is_late(&clears, 2, minutes(15), minutes(6)) && is_late(&clears, 2, minutes(16), minutes(6)));
        assert!(is_late(&clears, 1, minutes(15), minutes(15)));
        clears.forget(minutes(16));
        assert!(clears.last.len() == 1);
        clears.forget(minutes(17));
        assert!(clears.last.is_empty() && clears.order.is_empty() && clears.floor.is_none());
    }

    #[test]
    fn a_request_grows_older_while_its_create_waits() {
        let mut clears = RecentClears::new(100);
        let terms = TermsAt::new(Terms { since: Some(Since::Age(minutes(0))), ..Terms::default() }, || minutes(1));
        assert!(!terms.are_late(&clears, Some(owner(1)), minutes(2)));
        clears.remember(owner(1), 7, 0, minutes(2));
        assert!(terms.are_late(&clears, Some(owner(1)), minutes(3)));
        assert!(!terms.are_late(&clears, Some(owner(2)), minutes(16)) && terms.are_late(&clears, None, minutes(17)));
    }

    #[test]
    fn the_last_clear_of_an_owner_counts_however_many_there_were() {
        let mut clears = RecentClears::new(100);
        for n in 0..10 {
            clears.remember(owner(1), n, n as u64, minutes(n as u64));
        }
        assert_eq!((clears.repeat(owner(1), 9), clears.repeat(owner(1), 8)), (Some(9), None));
        // The first of them is forgotten, and the last is not.
        clears.forget(minutes(16));
        assert!(is_late(&clears, 1, minutes(8), minutes(16)) && !is_late(&clears, 1, minutes(7), minutes(16)));
    }

    #[test]
    fn what_is_forgotten_early_makes_everyone_late_who_came_before() {
        let mut clears = RecentClears::new(2);
        for n in 1..=4 {
            clears.remember(owner(n), 7, 0, minutes(n.into()));
        }
        assert_eq!(clears.last.len(), 2);
        for n in 1..=2 {
            assert!(is_late(&clears, n, minutes(4), minutes(5)) && clears.repeat(owner(n), 7).is_none());
        }
        assert!(is_late(&clears, 9, minutes(4), minutes(5)) && !is_late(&clears, 9, minutes(3), minutes(5)));
    }

    #[test]
    fn an_ending_is_remembered_for_ten_seconds_and_one_too_many_leaves_a_doubt() {
        let id = |n| RecordId::new(Some(owner(n)), Sid::random().unwrap());
        let second = Duration::from_secs;
        let (mut endings, ids) = (RecentEndings::new(2), [id(1), id(2), id(3)]);
        endings.remember(ids[0], second(1), second(1));
        endings.remember(ids[1], second(1), second(2));
        assert!(endings.may_have(ids[0], second(10)) && !endings.may_have(ids[0], second(11)));
        assert!(!endings.may_have(ids[2], second(2)));
        // It ended long ago, and one is a visitor's.
        endings.remember(ids[2], second(1), second(11));
        endings.remember(RecordId::new(None, Sid::random().unwrap()), second(10), second(10));
        assert!(!endings.may_have(ids[2], second(11)) && endings.ended.len() == 2);

        for (id, at) in ids.into_iter().zip([20, 21, 22]) {
            endings.remember(id, second(at), second(at));
        }
        assert_eq!(endings.ended.len(), 2);
        assert!(endings.may_have(ids[0], second(29)) && endings.may_have(id(9), second(29)));
        assert!(!endings.may_have(ids[0], second(30)) && endings.may_have(ids[1], second(30)));
    }
}
