//! The recent past of an in-process store: each owner's last clear, and which records ended.
//!
//! Both lists are bounded, so neither counts towards the limits of a store. If an entry is forgotten early because of its
//! bound, the answer is on the safe side: a login is too late, and a retry fails.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::{
    backend::terms::{Limit, Mark, Since, Terms},
    clock::millis,
    error::{Error, ErrorKind},
    record::id::{Owner, RecordId},
};

/// Each owner's last clear, remembered for twice [`GOOD_FOR`], because a mark that names it can be valid for that long. Times
/// are by the store's clock.
#[derive(Debug)]
pub(super) struct RecentClears {
    /// A random number that identifies this opening of the store.
    opening: i64,
    last: HashMap<Owner, LastClear>,
    /// All clears, oldest first: they are forgotten in this order. Entries of owners with a newer clear are skipped.
    order: VecDeque<(Owner, Duration)>,
    most: usize,
    /// Clears up to this time were forgotten early.
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
    /// Until this time, some endings may be missing.
    incomplete: Duration,
}

/// The [`Terms`] of a `create` that may wait until it is decided. The age of the request grows in the meantime.
#[derive(Clone, Copy, Debug)]
pub(super) struct TermsAt {
    since: Option<SinceAt>,
    limit: Limit,
    pub(super) leaves: Option<(RecordId, i64)>,
    pub(super) retry: bool,
}

#[derive(Clone, Copy, Debug)]
enum SinceAt {
    Mark(Mark),
    /// The age of the request, and when it had that age.
    Age(Duration, Duration),
}

impl RecentClears {
    /// Remembers up to `most` clears, of about 100 bytes each, until that opening of the store ends.
    pub(super) fn new(most: usize, opening: i64) -> Self {
        Self { opening, last: HashMap::new(), order: VecDeque::new(), most, floor: None }
    }

    /// The number of this opening.
    pub(super) fn opening(&self) -> i64 {
        self.opening
    }

    /// Returns how many records the owner's last clear ended, if it had that name.
    pub(super) fn repeat(&self, owner: Owner, name: i64) -> Option<u64> {
        self.last.get(&owner).filter(|last| last.name == name).map(|last| last.ended)
    }

    pub(super) fn remember(&mut self, owner: Owner, name: i64, ended: u64, now: Duration) {
        self.last.insert(owner, LastClear { name, ended, at: now });
        self.order.push_back((owner, now));
        self.forget(now);
    }

    /// Forgets some clears whose time is over, and some of those above the bound.
    pub(super) fn forget(&mut self, now: Duration) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some(&(owner, at)) = self.order.front() else { return };
            let is_over = now.saturating_sub(at) > 2 * GOOD_FOR;
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

    /// Returns a mark of the owner's last clear, if there was one recently.
    pub(super) fn mark(&self, owner: Owner, now: Duration) -> Mark {
        let last = self.last.get(&owner).filter(|last| now.saturating_sub(last.at) <= GOOD_FOR);
        Mark::new(last.map(|last| last.name), millis(now)).with_opening(self.opening)
    }

    /// Returns whether the owner may have been cleared since the mark was taken, or the mark is too old to tell.
    fn is_outdated(&self, mark: Mark, owner: Option<Owner>, now: Duration) -> bool {
        let Mark { clear, taken, opening } = mark;
        let taken = Duration::from_millis(taken);
        if opening != self.opening || now.checked_sub(taken).is_none_or(|age| age > GOOD_FOR) {
            return true;
        }
        let last = owner.and_then(|owner| self.last.get(&owner));
        match clear {
            Some(name) => last.is_none_or(|last| last.name != name),
            None => {
                let is_lately = |last: &LastClear| now.saturating_sub(last.at) <= GOOD_FOR;
                // A clear after the mark may have been forgotten early.
                last.is_some_and(is_lately) || self.floor.is_some_and(|floor| floor >= taken)
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

    /// Remembers that a record ended at that time. Visitors' records need not be remembered.
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

    /// Returns whether an ending at that time still has to be remembered.
    pub(super) fn is_recent(at: Duration, now: Duration) -> bool {
        now < at.saturating_add(ENDINGS)
    }

    /// Returns whether the record ended recently, or may have.
    pub(super) fn may_have(&self, id: RecordId, now: Duration) -> bool {
        id.owner().is_some()
            && (now < self.incomplete || self.ended.iter().any(|(ended, until)| *ended == id && now < *until))
    }
}

impl TermsAt {
    pub(super) fn new(terms: Terms, now: impl FnOnce() -> Duration) -> Self {
        let Terms { since, limit, leaves, retry } = terms;
        let since = since.map(|since| match since {
            Since::Mark(mark) => SinceAt::Mark(mark),
            Since::Age(age) => SinceAt::Age(age, now()),
        });
        // A record with an owner may be ended by the limit, so its outcome cannot be decided in the same step.
        let leaves = leaves.filter(|(id, _)| id.owner().is_none());
        Self { since, limit, leaves, retry }
    }

    /// Returns whether a new record of this owner is too late.
    pub(super) fn are_late(&self, clears: &RecentClears, owner: Option<Owner>, now: Duration) -> bool {
        match self.since {
            None => false,
            Some(SinceAt::Mark(mark)) => clears.is_outdated(mark, owner, now),
            Some(SinceAt::Age(age, then)) => {
                let age = age.saturating_add(now.saturating_sub(then));
                age > GOOD_FOR || owner.is_some_and(|owner| clears.is_since(owner, age, now))
            }
        }
    }

    /// Returns whether a clear that happens right now makes it too late.
    pub(super) fn has_since(&self) -> bool {
        self.since.is_some()
    }

    /// Returns the limit, if it applies to this owner.
    pub(super) fn limit_of(&self, owner: Option<Owner>) -> Option<(Owner, Limit)> {
        owner.zip((self.limit != Limit::None).then_some(self.limit))
    }
}

/// The error for a retry if the store cannot tell whether the first try was applied.
pub(super) fn unknown() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the answer to the first try was lost, so it is not known whether the change was applied",
    )
}

/// Returns how many of an owner's live records end for a new one, or `None` if the limit refuses it.
pub(super) fn above(limit: Limit, live: usize) -> Option<usize> {
    match limit {
        Limit::None => Some(0),
        Limit::LeastRecent(most) => Some((live + 1).saturating_sub(most).min(live)),
        Limit::Refuse(most) => (live < most).then_some(0),
    }
}

/// How long a mark is valid, and the maximum age of a request.
const GOOD_FOR: Duration = Duration::from_secs(15 * 60);
const ENDINGS: Duration = Duration::from_secs(10);
/// How many entries each call may forget. More than one, so that their number shrinks.
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

    /// Whether a login with that mark is late.
    fn is_outdated(clears: &RecentClears, n: u8, mark: Mark, now: Duration) -> bool {
        let since = Some(Since::Mark(mark));
        TermsAt::new(Terms { since, ..Terms::default() }, || now).are_late(clears, Some(owner(n)), now)
    }

    const OPENING: i64 = 77;

    #[test]
    fn a_clear_is_remembered_for_half_an_hour_and_then_forgotten() {
        let mut clears = RecentClears::new(100, OPENING);
        clears.remember(owner(1), 7, 3, minutes(1));
        assert_eq!((clears.repeat(owner(1), 7), clears.repeat(owner(1), 8)), (Some(3), None));
        for (age, is) in [(0, false), (5, false), (6, true), (15, true), (16, true)] {
            assert_eq!(is_late(&clears, 1, minutes(age), minutes(6)), is, "{age}");
        }
        assert!(!is_late(&clears, 2, minutes(15), minutes(6)) && is_late(&clears, 2, minutes(16), minutes(6)));
        assert!(is_late(&clears, 1, minutes(15), minutes(15)));
        clears.forget(minutes(31));
        assert!(clears.last.len() == 1);
        clears.forget(minutes(32));
        assert!(clears.last.is_empty() && clears.order.is_empty() && clears.floor.is_none());
    }

    #[test]
    fn a_mark_is_good_until_the_next_clear_and_for_fifteen_minutes() {
        let mut clears = RecentClears::new(100, OPENING);
        clears.remember(owner(1), 7, 0, minutes(1));
        let (named, none) = (clears.mark(owner(1), minutes(16)), clears.mark(owner(2), minutes(16)));
        assert_eq!((named.clear, none.clear), (Some(7), None));
        // The clear is half an hour ago by then.
        for (now, is) in [(16, false), (31, false), (32, true)] {
            clears.forget(minutes(now));
            assert_eq!(is_outdated(&clears, 1, named, minutes(now)), is, "{now}");
            assert_eq!(is_outdated(&clears, 2, none, minutes(now)), is, "{now}");
        }
        let mut clears = RecentClears::new(100, OPENING);
        clears.remember(owner(1), 7, 0, minutes(1));
        for n in 1..=2 {
            // One that ended nothing counts too.
            clears.remember(owner(n), 8, 0, minutes(16));
        }
        assert!(is_outdated(&clears, 1, named, minutes(16)) && is_outdated(&clears, 2, none, minutes(31)));
        // It names the new one now, and no longer names the old one.
        assert_eq!(clears.mark(owner(1), minutes(31)).clear, Some(8));
        assert!(!is_outdated(&clears, 1, clears.mark(owner(1), minutes(31)), minutes(46)));
        assert_eq!(clears.mark(owner(1), minutes(32)).clear, None);
        assert!(!is_outdated(&clears, 1, clears.mark(owner(1), minutes(32)), minutes(32)));
    }

    #[test]
    fn a_mark_of_another_opening_or_from_the_future_is_refused() {
        let mut clears = RecentClears::new(100, OPENING);
        clears.remember(owner(1), 7, 0, minutes(1));
        for n in 1..=2 {
            let mark = clears.mark(owner(n), minutes(5));
            assert!(!is_outdated(&clears, n, mark, minutes(5)));
            for opening in [0, OPENING + 1, -OPENING] {
                assert!(is_outdated(&clears, n, mark.with_opening(opening), minutes(5)));
            }
            // A clock that jumps back makes marks that are ahead of it.
            assert!(is_outdated(&clears, n, mark, minutes(5) - Duration::from_millis(1)));
            assert!(is_outdated(&clears, n, mark, Duration::ZERO));
            for taken in [u64::MAX, mark.taken + 1] {
                assert!(is_outdated(&clears, n, Mark { taken, ..mark }, minutes(5)));
            }
            // One that jumps ahead makes them old.
            for now in [minutes(21), Duration::MAX] {
                assert!(is_outdated(&clears, n, mark, now));
            }
        }
    }

    #[test]
    fn a_mark_is_refused_if_a_clear_after_it_may_have_been_forgotten() {
        let mut clears = RecentClears::new(2, OPENING);
        clears.remember(owner(1), 7, 0, minutes(1));
        let (first, none) = (clears.mark(owner(1), minutes(2)), clears.mark(owner(9), minutes(2)));
        for n in 2..=3 {
            clears.remember(owner(n), 7, 0, minutes(n.into()));
        }
        // Of the first owner nothing is known any more, and nobody was cleared after the other mark and forgotten.
        assert!(
            is_outdated(&clears, 1, first, minutes(5))
                && !is_outdated(&clears, 3, clears.mark(owner(3), minutes(5)), minutes(5))
        );
        let before = clears.mark(owner(9), minutes(1));
        assert!(
            is_outdated(&clears, 9, before, minutes(5))
                && !is_outdated(&clears, 9, Mark { taken: before.taken + 1, ..before }, minutes(5))
        );
        assert!(!is_outdated(&clears, 9, none, minutes(5)));
        clears.remember(owner(4), 7, 0, minutes(4));
        assert!(
            is_outdated(&clears, 9, none, minutes(5))
                && !is_outdated(&clears, 9, clears.mark(owner(9), minutes(4)), minutes(5))
        );
    }

    #[test]
    fn above_a_limit_as_many_end_as_are_too_many_and_never_more_than_there_are() {
        for (limit, live, ends) in [
            (Limit::None, 1000, Some(0)),
            (Limit::LeastRecent(5), 4, Some(0)),
            (Limit::LeastRecent(5), 5, Some(1)),
            (Limit::LeastRecent(5), 9, Some(5)),
            (Limit::LeastRecent(0), 0, Some(0)),
            (Limit::LeastRecent(0), 3, Some(3)),
            (Limit::LeastRecent(usize::MAX), 3, Some(0)),
            (Limit::Refuse(5), 4, Some(0)),
            (Limit::Refuse(5), 5, None),
            (Limit::Refuse(5), 9, None),
            (Limit::Refuse(0), 0, None),
        ] {
            assert_eq!(above(limit, live), ends, "{limit:?} {live}");
        }
    }

    #[test]
    fn a_request_grows_older_while_its_create_waits() {
        let mut clears = RecentClears::new(100, OPENING);
        let terms = TermsAt::new(Terms { since: Some(Since::Age(minutes(0))), ..Terms::default() }, || minutes(1));
        assert!(!terms.are_late(&clears, Some(owner(1)), minutes(2)));
        clears.remember(owner(1), 7, 0, minutes(2));
        assert!(terms.are_late(&clears, Some(owner(1)), minutes(3)));
        assert!(!terms.are_late(&clears, Some(owner(2)), minutes(16)) && terms.are_late(&clears, None, minutes(17)));
    }

    #[test]
    fn the_last_clear_of_an_owner_counts_however_many_there_were() {
        let mut clears = RecentClears::new(100, OPENING);
        for n in 0..10 {
            clears.remember(owner(1), n, n as u64, minutes(n as u64));
        }
        assert_eq!((clears.repeat(owner(1), 9), clears.repeat(owner(1), 8)), (Some(9), None));
        // The first of them is forgotten, and the last is not.
        clears.forget(minutes(31));
        assert_eq!(clears.order.len(), 9);
        assert!(is_late(&clears, 1, minutes(8), minutes(16)) && !is_late(&clears, 1, minutes(7), minutes(16)));
    }

    #[test]
    fn what_is_forgotten_early_makes_everyone_late_who_came_before() {
        let mut clears = RecentClears::new(2, OPENING);
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
