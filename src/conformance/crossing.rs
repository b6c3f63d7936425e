//! Promises about logins that overlap with a sign-out everywhere: the name of a `clear`, the record that it depends on, and how
//! late a `create` may be.

use std::time::Duration;

use super::{
    samples::{LONG, anonymous, both, is_same, of, owner, record, version},
    subject::Subject,
    verbs::{by, everything, since, together},
};
use crate::{
    backend::{
        Backend,
        clear::{Clear, Cleared},
        terms::{Created, Terms},
    },
    record::{Record, id::Owner},
};

/// `clear` with the name of the owner's last one ends nothing, and is `Done` with the same number again.
pub async fn a_repeated_clear_ends_nothing_more<B: Backend>(subject: &Subject<B>) {
    for had in [3, 0] {
        let owner = owner();
        for _ in 0..had {
            subject.creates(&record(of(owner))).await;
        }
        let clear = everything();
        assert!(
            subject.clear_done(owner, clear).await == had,
            "`clear` does not count the {had} records that it ended"
        );
        let new = [record(of(owner)), record(of(owner))];
        for new in &new {
            subject.creates(new).await;
        }
        for _ in 0..3 {
            let again = subject.clear_done(owner, clear).await;
            for new in &new {
                assert!(
                    subject.load(new.id).await.is_some(),
                    "a `clear` that was repeated ended what had begun since: who has just signed in is signed out"
                );
            }
            assert!(again == had, "a `clear` that ended {had} records says {again} when it is repeated");
        }
        assert!(subject.clear(owner).await == 2, "a `clear` of another name does not end the 2 records that there are");
    }
    // The clear depends on a record that was written to since.
    let (first, others) = (record(of(owner())), 2);
    subject.creates(&first).await;
    for _ in 0..others {
        subject.creates(&record(of(of_owner(&first)))).await;
    }
    let clear = by(&first, true);
    assert!(subject.clear_done(of_owner(&first), clear).await == others, "`clear` does not count the others");
    let second = record(first.id);
    subject.updates(first.version, &second).await;
    match subject.clear_as(of_owner(&first), clear).await {
        Cleared::Done(again) => assert!(again == others, "a repeated `clear` says {again} and not {others} again"),
        other => {
            panic!("a repeated `clear` is {other:?}, though it was `Done`: a sign-out that was made is answered 401")
        }
    }
    is_same(&subject.must_load(first.id).await, &second, "`load` after a repeated `clear`");
}

/// `clear` by a record without `keep` also ends that record, and counts it.
pub async fn a_clear_by_a_record_ends_that_one_too<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    let all: Vec<Record> = (0..3).map(|_| record(of(owner))).collect();
    for record in &all {
        subject.creates(record).await;
    }
    let ended = subject.clear_done(owner, by(&all[1], false)).await;
    for old in &all {
        subject.is_absent(old.id, old.version, "a `clear` by a record that was not to be kept").await;
    }
    assert!(ended == 3, "`clear` by one of 3 records, which was not to be kept, says that it ended {ended}");
}

/// `clear` by a record that has another version is a `Conflict` with that record, and ends nothing.
pub async fn a_clear_by_another_version_is_a_conflict<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    let (first, other) = (record(of(owner)), record(of(owner)));
    subject.creates(&first).await;
    subject.creates(&other).await;
    let there = Record { ttl: LONG / 2, ..record(first.id) };
    subject.updates(first.version, &there).await;
    for wrong in [first.version, version(), there.version ^ 1, other.version, 0] {
        for keep in [true, false] {
            let asks = by(&Record { version: wrong, ..there.clone() }, keep);
            let conflict = match subject.clear_as(owner, asks).await {
                Cleared::Conflict(conflict) => conflict,
                Cleared::Gone => panic!("`clear` by another version is `Gone`, though the record is live"),
                Cleared::Done(_) => panic!(
                    "`clear` by another version is `Done`: whoever has an ID that was replaced signs the user out"
                ),
            };
            is_same(&conflict, &there, "`Conflict` of a `clear`");
            for record in [&there, &other] {
                assert!(subject.load(record.id).await.is_some(), "`clear` by another version ended a record");
            }
            assert!(subject.list(owner).await.len() == 2, "`clear` by another version ended a record");
        }
    }
    is_same(&subject.must_load(there.id).await, &there, "`load` after a `clear` that was a `Conflict`");
    assert!(subject.clear_others(&there).await == 1, "`clear` by the version that is there does not end the other one");
}

/// `create` with a `since` before the owner's last `clear` is `Late` and stores nothing, whatever that `clear` ended.
pub async fn a_create_since_before_a_clear_is_late<B: Backend>(subject: &Subject<B>) {
    for had in ["nothing", "records", "one that is kept", "one that it is by"] {
        let (ada, grace) = (owner(), owner());
        let there = record(of(ada));
        if had != "nothing" {
            subject.creates(&there).await;
            subject.creates(&record(of(ada))).await;
        }
        let clear = match had {
            "one that is kept" => by(&there, true),
            "one that it is by" => by(&there, false),
            _ => everything(),
        };
        subject.clear_done(ada, clear).await;
        let late = record(of(ada));
        subject.is_late(&late, since(LONG / 6), &format!("a `clear` that found {had}")).await;
        if had == "one that is kept" {
            // It is late before its name is taken.
            subject.is_late(&record(there.id), since(LONG / 6), "a `clear` that kept the record of that name").await;
            is_same(&subject.must_load(there.id).await, &there, "`load` after a `create` that was `Late`");
        }
        for of_another in [record(of(grace)), record(anonymous())] {
            let created = subject.create_on(&of_another, since(LONG / 6)).await;
            assert!(
                matches!(created, Created::Done { .. }),
                "`create` is {created:?} after a `clear` of another owner: nobody can sign in"
            );
        }
        assert!(
            subject.create(&late).await,
            "`create` without a `since` is refused after a `clear`: nobody can sign in"
        );
        assert!(subject.clear(ada).await <= 2, "`clear` counts a record that was refused");
        subject.is_late(&record(of(ada)), since(LONG / 6), "a second `clear`").await;
    }
}

/// `create` with a `since` after the owner's last `clear` stores the record.
pub async fn a_create_since_after_a_clear_is_done<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    for _ in 0..2 {
        subject.clear(owner).await;
        subject.wait_a_little().await;
        let new = record(of(owner));
        let created = subject.create_on(&new, since(Duration::ZERO)).await;
        assert!(
            matches!(created, Created::Done { .. }),
            "`create` of a request that arrived after a `clear` is {created:?}: nobody can sign in again"
        );
        is_same(&subject.must_load(new.id).await, &new, "`load` after `create`");
    }
}

/// A request that arrives after the `clear` has returned counts as later, even if the clock has not moved, so its `create` is
/// not `Late`.
pub async fn a_create_as_old_as_the_clear_is_done<B: Backend>(subject: &Subject<B>) {
    if !subject.stands_still() {
        // Without a manual clock, no two calls happen at the same moment.
        return;
    }
    let owner = owner();
    subject.clear(owner).await;
    subject.outlast(LONG / 12).await;
    let age = LONG / 12 + Duration::from_millis(1);
    let created = subject.create_on(&record(of(owner)), since(age)).await;
    assert!(
        matches!(created, Created::Done { .. }),
        "`create` of a request that arrived at the moment of a `clear` is {created:?}: nobody can sign in again"
    );
    let before = age + Duration::from_millis(1);
    subject.is_late(&record(of(owner)), since(before), "a `clear` a millisecond after the request arrived").await;
}

/// A `clear`, and how many records it ended, is remembered for at least fifteen minutes. (The contract asks for
/// thirty.)
pub async fn a_clear_is_remembered_for_fifteen_minutes<B: Backend>(subject: &Subject<B>) {
    if subject.has_own_clock() {
        return;
    }
    let owner = owner();
    subject.creates(&record(of(owner))).await;
    let clear = everything();
    subject.clear_done(owner, clear).await;
    for minutes in [1, 13] {
        subject.outlast(MINUTE * minutes).await;
        // Other records begin and end in between.
        for _ in 0..3 {
            subject.clear(of_owner(&record(both()[0]))).await;
        }
    }
    subject.is_late(&record(of(owner)), since(MINUTE * 14 + MINUTE / 2), "a `clear` fourteen minutes ago").await;
    assert!(subject.clear_done(owner, clear).await == 1, "a `clear` is not known again after fourteen minutes");
    let created = subject.create_on(&record(of(owner)), since(MINUTE * 13)).await;
    assert!(
        matches!(created, Created::Done { .. }),
        "a `clear` fourteen minutes ago makes a younger request late: {created:?}"
    );
}

/// `create` with a `since` of more than fifteen minutes is `Late`, whether there was a `clear` or not.
pub async fn a_create_since_more_than_fifteen_minutes_is_late<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        for age in [MINUTE * 15 + Duration::from_millis(1), LONG, Duration::MAX] {
            subject.is_late(&record(id), since(age), "more than fifteen minutes").await;
        }
        let new = record(id);
        let created = subject.create_on(&new, since(MINUTE * 14)).await;
        assert!(
            matches!(created, Created::Done { .. }),
            "`create` of a request that is fourteen minutes old is {created:?}: nobody can sign in with a slow form"
        );
        is_same(&subject.must_load(id).await, &new, "`load` after `create`");
    }
}

/// `create` of a record that is already there is `Done`, however late it is.
pub async fn a_record_that_is_there_is_never_late<B: Backend>(subject: &Subject<B>) {
    let there = Record { ttl: LONG / 2, ..record(of(owner())) };
    subject.creates(&there).await;
    subject.clear_others(&there).await;
    for age in [LONG / 6, LONG] {
        let created = subject.create_on(&there, since(age)).await;
        assert!(
            matches!(created, Created::Done { .. }),
            "`create` of a record that is there is {created:?}: a login that was made is answered 401"
        );
        is_same(&subject.must_load(there.id).await, &there, "`load` after a repeated `create`");
    }
}

/// A `clear` that was `Gone` or a `Conflict` did not happen: it makes nothing late, and its name is free.
pub async fn a_clear_that_ended_nothing_is_not_remembered<B: Backend>(subject: &Subject<B>) {
    let there = record(of(owner()));
    let owner = of_owner(&there);
    let gone = by(&there, true);
    assert!(
        matches!(subject.clear_as(owner, gone).await, Cleared::Gone),
        "`clear` by a record that never was is not `Gone`"
    );
    subject.creates(&there).await;
    let mut conflict = by(&there, true);
    conflict.by = conflict.by.map(|by| crate::backend::clear::By { version: by.version ^ 1, ..by });
    assert!(
        matches!(subject.clear_as(owner, conflict).await, Cleared::Conflict(_)),
        "`clear` by another version is no `Conflict`"
    );
    let new = record(of(owner));
    let created = subject.create_on(&new, since(LONG / 6)).await;
    assert!(
        matches!(created, Created::Done { .. }),
        "`create` is {created:?} after a `clear` that did nothing: whoever has an old ID keeps the user from signing in"
    );
    for name in [gone.name, conflict.name] {
        subject.creates(&record(of(owner))).await;
        let others = subject.list(owner).await.len() as u64 - 1;
        let asks = Clear { name, ..by(&there, true) };
        let ended = subject.clear_done(owner, asks).await;
        assert!(ended == others, "`clear` takes a name for a repeat that did nothing: it ended {ended} of {others}");
        assert!(subject.list(owner).await.len() == 1, "`clear` takes a name for a repeat that did nothing");
    }
}

/// If `create`s run at the same time as a `clear`, with a `since` before it, all are ended by it or `Late`.
pub async fn no_create_since_before_a_clear_outlives_it<B: Backend>(subject: &Subject<B>) {
    for round in 0..ROUNDS {
        let owner = owner();
        let new = subject.creates_beside_a_clear(owner, &since(LONG / 6), round).await;
        for record in &new {
            assert!(
                subject.load(record.id).await.is_none(),
                "a `create` beside a `clear` outlives it, though its request came before: who had the old password is \
                 signed in"
            );
        }
        assert!(subject.list(owner).await.is_empty(), "`list` shows a record that came before a `clear`");
    }
}

impl<B: Backend> Subject<B> {
    /// Creates six records under these terms, and clears their owner at the same time, a little later in each round.
    pub(super) async fn creates_beside_a_clear(&self, owner: Owner, terms: &Terms, round: usize) -> Vec<Record> {
        let new: Vec<Record> = (0..6).map(|_| record(of(owner))).collect();
        together((0..7).map(|at| {
            let (subject, new, terms) = (self.clone(), new.get(at).cloned(), terms.clone());
            async move {
                match new {
                    Some(new) => {
                        let created = subject.create_on(&new, terms).await;
                        assert!(!matches!(created, Created::Taken), "`create` of a free name is `Taken`");
                    }
                    None => {
                        for _ in 0..round % 5 {
                            tokio::task::yield_now().await;
                        }
                        subject.clear(owner).await;
                    }
                }
            }
        }))
        .await;
        new
    }

    /// Checks that a record is late, and that nothing of it is stored.
    pub(super) async fn is_late(&self, late: &Record, terms: Terms, after: &str) {
        let before = self.load(late.id).await.map(|there| there.version);
        let created = self.create_on(late, terms).await;
        assert!(
            self.load(late.id).await.map(|there| there.version) == before && before != Some(late.version),
            "`create` stored a record after {after}: a login that was under way survives the sign-out"
        );
        assert!(
            matches!(created, Created::Late),
            "`create` after {after} is {created:?} and not `Late`: a login that was under way survives the sign-out"
        );
    }

    /// Makes a `clear` that must succeed, and returns how many records it ended.
    async fn clear_done(&self, owner: Owner, clear: Clear) -> u64 {
        match self.clear_as(owner, clear).await {
            Cleared::Done(ended) => ended,
            other => {
                panic!("`clear` is {other:?}, though it is by a record that is there: nobody can sign out everywhere")
            }
        }
    }
}

fn of_owner(record: &Record) -> Owner {
    record.id.owner().unwrap_or_else(owner)
}

const ROUNDS: usize = 20;
const MINUTE: Duration = Duration::from_secs(60);
