//! Promises about the limit of an owner's records: which ones end, and what is refused.

use std::{collections::BTreeSet, time::Duration};

use super::{
    samples::{LONG, anonymous, is_same, of, owner, record},
    subject::Subject,
    verbs::{at_most, by, marked, since, together},
};
use crate::{
    backend::{
        Backend, Outcome,
        clear::Cleared,
        terms::{Created, Left, Limit, Terms},
    },
    record::{
        Record,
        id::{Owner, RecordId},
    },
};

/// Above the limit, the least recently used record ends. `create`, `update` and `touch` count as use. `load`, `list`, `scan`,
/// `count`, `mark` and calls without effect do not.
pub async fn above_a_limit_the_least_recent_ends<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    subject.learns_the_time(owner).await;
    let mut all = Vec::new();
    for _ in 0..5 {
        let new = record(of(owner));
        assert!(subject.create_within(&new, 5).await.is_empty(), "`create` ends records below the limit");
        all.push(new);
        subject.wait_a_little().await;
    }
    subject.touch(all[0].id, all[0].version, LONG).await;
    subject.wait_a_little().await;
    let written = record(all[1].id);
    subject.updates(all[1].version, &written).await;
    all[1] = written;
    subject.wait_a_little().await;
    subject.must_load(all[2].id).await;
    subject.touch(all[3].id, all[3].version ^ 1, LONG).await;
    assert!(
        matches!(subject.update(all[3].version ^ 1, &record(all[3].id)).await, Outcome::Conflict(_)),
        "`update` of another version is no `Conflict`"
    );
    subject.list(owner).await;
    subject.mark(owner).await;
    subject.scan(2).await;
    subject.count().await;
    subject.wait_a_little().await;
    for (at, why) in [
        (2, "that was only loaded since it was created"),
        (3, "whose last `touch` and `update` came with another version"),
        (4, "that was only listed since it was created"),
        (0, "that was touched before others were created"),
        (1, "that was updated before others were created"),
    ] {
        let new = record(of(owner));
        let ended = subject.create_within(&new, 5).await;
        assert!(
            ended == [all[at].id],
            "above the limit `create` says that it ended {ended:?}, and not the one record {why}: who is active is signed out, \
             and not who was idle longest"
        );
        subject.is_absent(all[at].id, all[at].version, "a `create` above the limit").await;
        is_same(&subject.must_load(new.id).await, &new, "`load` after a `create` above the limit");
        assert!(subject.list(owner).await.len() == 5, "a `create` above the limit ends more than it says");
        subject.wait_a_little().await;
    }
}

/// If there are more records than the limit, because it was lowered, `create` ends as many as necessary, and returns the names
/// of all of them. The new record is never one of them.
pub async fn a_lowered_limit_ends_several_at_once<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    subject.learns_the_time(owner).await;
    let mut all = Vec::new();
    for _ in 0..6 {
        let new = record(of(owner));
        subject.creates(&new).await;
        all.push(new);
        subject.wait_a_little().await;
    }
    let others = [record(of(super::samples::owner())), record(anonymous())];
    for other in &others {
        subject.creates(other).await;
    }
    for (limit, left) in [(7, 7), (4, 4), (3, 3), (1, 1), (1, 1)] {
        let new = record(of(owner));
        let ended = subject.create_within(&new, limit).await;
        all.push(new);
        let (gone, live) = all.split_at(all.len() - left);
        let expected: BTreeSet<RecordId> = gone.iter().map(|record| record.id).collect();
        assert!(
            ended.iter().copied().collect::<BTreeSet<_>>() == expected && ended.len() == expected.len(),
            "under a limit of {limit} `create` says that it ended {} records, not the {} that were used least recently",
            ended.len(),
            expected.len()
        );
        for record in gone {
            subject.is_absent(record.id, record.version, "a `create` under a lower limit").await;
        }
        for record in live {
            let Some(there) = subject.load(record.id).await else {
                panic!("`create` ended more than it has to under a limit of {limit}, or the new record itself")
            };
            is_same(&there, record, "`load` after a `create` under a lower limit");
        }
        let listed = subject.list(owner).await.len();
        assert!(listed == left, "under a limit of {limit} there are {listed} records after a `create`");
        all.drain(..all.len() - left);
        subject.wait_a_little().await;
    }
    for other in &others {
        is_same(&subject.must_load(other.id).await, other, "`load` of what is not the owner's, after a limit");
    }
}

/// Only live records of the owner count: not those that have expired, were deleted, signed out or cleared, nor those of other
/// owners. Records without an owner have no limit.
pub async fn a_limit_counts_only_the_owners_live_records<B: Backend>(subject: &Subject<B>) {
    for limit in [Limit::LeastRecent(2), Limit::Refuse(2)] {
        let owner = owner();
        let lives = record(of(owner));
        subject.creates(&lives).await;
        for end in ["expiry", "`delete`", "`update` for no time", "`clear`"] {
            let ends = Record { ttl: if end == "expiry" { subject.short() } else { LONG }, ..record(of(owner)) };
            subject.creates(&ends).await;
            match end {
                "expiry" => subject.outlast(ends.ttl).await,
                "`delete`" => _ = subject.delete(ends.id).await,
                "`clear`" => _ = subject.clear_others(&lives).await,
                _ => subject.updates(ends.version, &Record { ttl: Duration::ZERO, ..record(ends.id) }).await,
            }
            subject.creates(&record(of(super::samples::owner()))).await;
            let same_sid = format!("{}.{}", super::samples::owner(), lives.id.sid());
            let Ok(same_sid) = same_sid.parse() else { panic!("`{same_sid}` is no name of a record") };
            subject.creates(&record(same_sid)).await;
            let new = record(of(owner));
            match subject.create_on(&new, at_most(limit)).await {
                Created::Done { ended, .. } => assert!(
                    ended.is_empty(),
                    "under {limit:?} a second record ends {ended:?} after {end}: what has ended, or is another owner's, counts"
                ),
                other => panic!("under {limit:?} a second record is {other:?} after {end}: nobody can sign in"),
            }
            is_same(&subject.must_load(lives.id).await, &lives, "`load` after a `create` below the limit");
            subject.delete(new.id).await;
        }
    }
    for limit in [Limit::LeastRecent(1), Limit::Refuse(1)] {
        let visitors: Vec<Record> = (0..4).map(|_| record(anonymous())).collect();
        for visitor in &visitors {
            match subject.create_on(visitor, at_most(limit)).await {
                Created::Done { ended, .. } => assert!(ended.is_empty(), "`create` of a visitor's record ends others"),
                other => panic!("`create` of a visitor's record is {other:?} because of a limit for users"),
            }
        }
        for visitor in &visitors {
            is_same(&subject.must_load(visitor.id).await, visitor, "`load` of a visitor's record");
        }
    }
}

/// With a limit that refuses, `create` above it is `Full` and changes nothing. Once a record ends, it is `Done`.
pub async fn a_limit_that_refuses_is_full<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    let all: Vec<Record> = (0..3).map(|_| Record { ttl: LONG / 2, ..record(of(owner)) }).collect();
    for record in &all {
        let created = subject.create_on(record, at_most(Limit::refuse(3))).await;
        assert!(matches!(created, Created::Done { .. }), "`create` below a limit is {created:?}: nobody can sign in");
    }
    // A lowered limit refuses as well, and ends nothing.
    for limit in [3, 2, 1] {
        let new = record(of(owner));
        let created = subject.create_on(&new, at_most(Limit::refuse(limit))).await;
        assert!(
            subject.load(new.id).await.is_none(),
            "`create` stored a record above a limit that refuses: a user has more sessions than there may be"
        );
        assert!(
            matches!(created, Created::Full),
            "`create` above a limit that refuses is {created:?} and not `Full`: the user is told that they are signed in"
        );
        subject.is_absent(new.id, new.version, "a `create` that was `Full`").await;
        for record in &all {
            let Some(there) = subject.load(record.id).await else {
                panic!("a `create` that was `Full` ended another record: who is signed in is signed out")
            };
            is_same(&there, record, "`load` after a `create` that was `Full`");
        }
        assert!(subject.list(owner).await.len() == 3, "`list` after a `create` that was `Full` is not as before");
    }
    subject.delete(all[1].id).await;
    let new = record(of(owner));
    let created = subject.create_on(&new, at_most(Limit::refuse(3))).await;
    assert!(
        matches!(created, Created::Done { ref ended, .. } if ended.is_empty()),
        "`create` is {created:?} once a record has ended: nobody can sign in"
    );
    is_same(&subject.must_load(new.id).await, &new, "`load` after `create`");
    assert!(subject.clear(owner).await == 3, "`clear` does not count the 3 records below the limit");
}

/// `create` returns the first that applies of: `Done` for a repeat, `Late`, `Taken`, `Full`, `Done`. Only a `Done` that stores
/// a new record ends other records.
pub async fn of_the_answers_of_a_create_the_first_is_given<B: Backend>(subject: &Subject<B>) {
    for limit in [Limit::LeastRecent(1), Limit::Refuse(1)] {
        let owner = owner();
        let early = subject.mark(owner).await;
        let all: Vec<Record> = (0..3).map(|_| record(of(owner))).collect();
        for record in &all {
            subject.creates(record).await;
        }
        let cleared = subject.clear_as(owner, by(&all[0], true)).await;
        assert!(matches!(cleared, Cleared::Done(2)), "`clear` is {cleared:?}, though it is by a record that is there");
        for record in &all[1..] {
            subject.creates(record).await;
        }
        let lates = [since(LONG / 6), marked(early)];
        for terms in lates.clone().into_iter().chain([Terms::default()]) {
            for retry in [false, true] {
                let created = subject.create_on(&all[1], Terms { limit, retry, ..terms.clone() }).await;
                assert!(
                    matches!(created, Created::Done { ref ended, .. } if ended.is_empty()),
                    "`create` of the very record that is there is {created:?} under {limit:?}: it is not `Done`, or ends others"
                );
                subject.are_there(&all, "a `create` of the very record that is there").await;
            }
        }
        for terms in lates {
            for id in [of(owner), all[1].id] {
                subject.is_late(&record(id), Terms { limit, ..terms.clone() }, "a `clear`, under a limit,").await;
                subject.are_there(&all, "a `create` that was `Late`").await;
            }
        }
        let created = subject.create_on(&record(all[1].id), at_most(limit)).await;
        assert!(
            matches!(created, Created::Taken),
            "`create` of a name that is taken is {created:?} and not `Taken` under {limit:?}: one session takes another's place"
        );
        subject.are_there(&all, "a `create` that was `Taken`").await;
    }
}

/// A record that the limit ended is gone for every method. A retried `create` of it returns an error.
pub async fn what_a_limit_has_ended_stays_ended<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    let old = record(of(owner));
    subject.creates(&old).await;
    subject.wait_a_little().await;
    let new = record(of(owner));
    assert!(subject.create_within(&new, 1).await == [old.id], "`create` above the limit does not name what it ended");
    subject.is_absent(old.id, old.version, "a `create` above the limit").await;
    for terms in [Terms::default(), at_most(1)] {
        let again = subject.create_retried(&old, terms).await;
        assert!(
            subject.load(old.id).await.is_none(),
            "a retried `create` brought back a record that a limit had ended: a user has more sessions than there may be"
        );
        assert!(
            again.is_err(),
            "a retried `create` of a record that a limit had ended is {again:?} and no error: the user is told that they are \
             signed in"
        );
    }
    // The other way round: the login that ended it is retried, and ends nothing more.
    subject.creates(&record(of(owner))).await;
    for retry in [false, true] {
        match subject.create_on(&new, Terms { retry, ..at_most(1) }).await {
            Created::Done { ended, .. } => assert!(
                ended.is_empty() && subject.list(owner).await.len() == 2,
                "a `create` that is repeated ends more than the first time: one login ends two sessions"
            ),
            other => panic!("a `create` that is repeated is {other:?}: a login that was made is answered 401"),
        }
    }
    is_same(&subject.must_load(new.id).await, &new, "`load` after a repeated `create`");
    // The name is free.
    subject.creates(&record(old.id)).await;
}

/// However many `create`s run at the same time, there are never more records than the limit once one of them has returned.
/// Every record is stored, and ends only because of a later `create` that reports it.
pub async fn of_parallel_creates_no_more_than_the_limit_are_left<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    let all: Vec<Record> = (0..PARALLEL).map(|_| record(of(owner))).collect();
    let ended = together(all.clone().into_iter().map(|new| {
        let subject = subject.clone();
        async move {
            let ended = subject.create_within(&new, 5).await;
            assert!(!ended.contains(&new.id), "`create` ended its own record because of the limit");
            let there = subject.list(owner).await.len();
            assert!(there <= 5, "after a `create` under a limit of 5 there are {there} records");
            ended
        }
    }))
    .await
    .concat();
    let names: BTreeSet<RecordId> = ended.iter().copied().collect();
    assert!(names.len() == ended.len(), "two `create`s say that they ended the same record because of the limit");
    let left = subject.list(owner).await;
    assert!(left.len() == 5, "{PARALLEL} parallel `create`s under a limit of 5 leave {} records", left.len());
    for record in &all {
        let (is_there, has_ended) = (subject.load(record.id).await.is_some(), names.contains(&record.id));
        assert!(
            is_there != has_ended,
            "of parallel `create`s under a limit one is {} and was {}: a login is lost, or goes beyond the limit",
            if is_there { "there" } else { "not there" },
            if has_ended { "ended" } else { "not ended" }
        );
    }
    let owner = super::samples::owner();
    let created = together((0..PARALLEL).map(|_| {
        let subject = subject.clone();
        async move {
            match subject.create_on(&record(of(owner)), at_most(Limit::refuse(5))).await {
                Created::Done { .. } => 1,
                Created::Full => 0,
                other => panic!("`create` under a limit that refuses is {other:?}"),
            }
        }
    }))
    .await;
    let (done, there) = (created.into_iter().sum::<usize>(), subject.list(owner).await.len());
    assert!(
        done == 5 && there == 5,
        "of {PARALLEL} parallel `create`s under a limit of 5 that refuses {done} are `Done`, and {there} records are there"
    );
}

impl<B: Backend> Subject<B> {
    /// Creates a record under a limit that ends the least recently used ones, and returns which ones ended.
    pub(super) async fn create_within(&self, record: &Record, limit: usize) -> Vec<RecordId> {
        match self.create_on(record, at_most(limit)).await {
            Created::Done { ended, left } => {
                assert!(
                    matches!(left, Left::NotTried),
                    "`create` that leaves nothing says what became of it: {left:?}"
                );
                ended
            }
            other => panic!("`create` under a limit is {other:?}: nobody can sign in"),
        }
    }

    /// Lets a backend learn the time of the server that holds the owner's records, by calls without effect. Where the last use
    /// of two records is about the same, it may go by their ends; an estimate from the first answers may be off by as much as
    /// one of them was late.
    async fn learns_the_time(&self, owner: Owner) {
        for _ in 0..16 {
            let record = record(of(owner));
            self.touch(record.id, record.version, LONG).await;
        }
    }

    /// Checks that these records are all that their owner has, and unchanged.
    async fn are_there(&self, all: &[Record], after: &str) {
        for record in all {
            let Some(there) = self.load(record.id).await else {
                panic!("{after} ended a record because of the limit: who is signed in is signed out")
            };
            is_same(&there, record, &format!("`load` after {after}"));
        }
        let owner: Option<Owner> = all[0].id.owner();
        let listed = match owner {
            Some(owner) => self.list(owner).await.len(),
            None => all.len(),
        };
        assert!(listed == all.len(), "{after} changed how many records there are: {listed} and not {}", all.len());
    }
}

const PARALLEL: usize = 100;
