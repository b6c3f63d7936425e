//! Promises about marks: a login that began before its user was signed out everywhere is refused, whatever the clocks say.

use std::time::Duration;

use super::{
    samples::{LONG, is_same, of, owner, record},
    subject::Subject,
    verbs::{by, everything, marked, since},
};
use crate::{
    backend::{
        Backend,
        clear::{By, Clear, Cleared},
        terms::{Created, Mark},
    },
    record::{Record, id::Owner},
};

/// `mark` names the owner's last `clear`, whatever that ended, or no clear if there was none. A `clear` that returned `Gone` or
/// `Conflict` did not happen. A repeated `clear` is the same one.
pub async fn a_mark_names_the_last_clear<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    assert!(subject.mark(owner).await.clear.is_none(), "`mark` names a `clear` of an owner who never was cleared");
    let (there, other) = (record(of(owner)), record(of(owner)));
    for clear in [everything(), everything(), by(&there, true), by(&there, false)] {
        if clear.by.is_some() && subject.load(there.id).await.is_none() {
            subject.creates(&there).await;
            subject.creates(&other).await;
        }
        is_done(subject.clear_as(owner, clear).await);
        for _ in 0..3 {
            subject.names(owner, clear, "`clear`").await;
        }
        for (refused, keep) in [(record(of(owner)), true), (record(of(owner)), false)] {
            let cleared = subject.clear_as(owner, by(&refused, keep)).await;
            assert!(matches!(cleared, Cleared::Gone), "`clear` by a record that never was is {cleared:?}, not `Gone`");
        }
        subject.names(owner, clear, "a `clear` that was `Gone`").await;
        if let Some(there) = subject.load(there.id).await {
            let cleared = subject.clear_as(owner, by(&Record { version: there.version ^ 1, ..there }, true)).await;
            assert!(
                matches!(cleared, Cleared::Conflict(_)),
                "`clear` by another version is {cleared:?}, no `Conflict`"
            );
            subject.names(owner, clear, "a `clear` that was a `Conflict`").await;
        }
        is_done(subject.clear_as(owner, clear).await);
        subject.names(owner, clear, "a `clear` that was repeated").await;
    }
}

/// `create` with a mark is `Late` and stores nothing, if the owner was cleared after the mark was taken. It does not matter
/// whether the mark names a `clear`, what the later `clear` ended, or whether the clock has moved.
pub async fn a_create_with_a_mark_from_before_a_clear_is_late<B: Backend>(subject: &Subject<B>) {
    for was_cleared in [false, true] {
        for had in ["nothing", "records", "one that is kept", "one that it is by"] {
            let owner = owner();
            if was_cleared {
                subject.clear(owner).await;
            }
            let there = record(of(owner));
            if had != "nothing" {
                subject.creates(&there).await;
                subject.creates(&record(of(owner))).await;
            }
            let mark = subject.mark(owner).await;
            let clear = match had {
                "one that is kept" => by(&there, true),
                "one that it is by" => by(&there, false),
                _ => everything(),
            };
            is_done(subject.clear_as(owner, clear).await);
            let after = format!("a `clear` that found {had}, with a mark from before it,");
            subject.is_late(&record(of(owner)), marked(mark), &after).await;
            if had == "one that is kept" {
                // `Late` takes precedence over `Taken`.
                subject.is_late(&record(there.id), marked(mark), &after).await;
                let created = subject.create_on(&there, marked(mark)).await;
                assert!(
                    matches!(created, Created::Done { .. }),
                    "`create` of a record that is there is {created:?}: a login that was made is answered 401"
                );
                is_same(&subject.must_load(there.id).await, &there, "`load` after a `create` that was `Late`");
            }
            // Another `clear` does not make the mark valid again.
            is_done(subject.clear_as(owner, everything()).await);
            subject.is_late(&record(of(owner)), marked(mark), "two `clear`s, with a mark from before both,").await;
        }
    }
}

/// `create` with a mark that was taken after the owner's last `clear` stores the record, however often the mark is used. Clears
/// of other owners, and clears that returned `Gone` or `Conflict`, do not make it late.
pub async fn a_create_with_a_mark_from_after_a_clear_is_done<B: Backend>(subject: &Subject<B>) {
    for was_cleared in [false, true] {
        let (ada, grace) = (owner(), owner());
        let clear = everything();
        if was_cleared {
            is_done(subject.clear_as(ada, clear).await);
        }
        let mark = subject.mark(ada).await;
        for meanwhile in ["nothing", "other records", "a `clear` of another owner", "a refused `clear`", "a repeat"] {
            match meanwhile {
                "other records" => {
                    let other = record(of(ada));
                    subject.creates(&other).await;
                    subject.delete(other.id).await;
                }
                "a `clear` of another owner" => _ = subject.clear(grace).await,
                "a refused `clear`" => {
                    let there = record(of(ada));
                    assert!(matches!(subject.clear_as(ada, by(&there, false)).await, Cleared::Gone), "{NOT_GONE}");
                    subject.creates(&there).await;
                    let By { id, version, .. } = By { id: there.id, version: there.version ^ 1, keep: true };
                    let asks = Clear { by: Some(By { id, version, keep: true }), ..everything() };
                    assert!(matches!(subject.clear_as(ada, asks).await, Cleared::Conflict(_)), "{NOT_GONE}");
                }
                "a repeat" if was_cleared => is_done(subject.clear_as(ada, clear).await),
                _ => {}
            }
            let new = record(of(ada));
            let created = subject.create_on(&new, marked(mark)).await;
            assert!(
                matches!(created, Created::Done { .. }),
                "`create` with a mark is {created:?} after {meanwhile}: nobody can sign in"
            );
            is_same(&subject.must_load(new.id).await, &new, "`load` after `create`");
        }
        // Another owner's mark is not valid here.
        subject.clear(grace).await;
        let others = subject.mark(grace).await;
        subject.is_late(&record(of(ada)), marked(others), "a `clear` that the mark does not name").await;
    }
}

/// A mark is valid for fifteen minutes, and the `clear` that it names is remembered for as long. After that, a `create` with it
/// returns `Late`.
pub async fn a_mark_is_good_for_fifteen_minutes<B: Backend>(subject: &Subject<B>) {
    for was_cleared in [false, true] {
        let owner = owner();
        if was_cleared {
            subject.clear(owner).await;
        }
        let mark = subject.mark(owner).await;
        // Any clock can be asked about a mark of another time.
        if let Some(taken) = mark.taken.checked_sub(MINUTE.as_millis() as u64 * 15 + 1) {
            let old = Mark { taken, ..mark };
            subject.is_late(&record(of(owner)), marked(old), "more than fifteen minutes").await;
        }
    }
    if subject.has_own_clock() {
        return;
    }
    for was_cleared in [false, true] {
        let owner = owner();
        if was_cleared {
            subject.clear(owner).await;
            subject.outlast(MINUTE * 14).await;
        }
        let (mark, other) = (subject.mark(owner).await, subject.mark(owner).await);
        assert!(mark.clear.is_some() == was_cleared, "`mark` does not name a `clear` fourteen minutes ago");
        subject.outlast(MINUTE * 14).await;
        // Other records begin and end in between.
        for _ in 0..3 {
            subject.clear(super::samples::owner()).await;
        }
        let created = subject.create_on(&record(of(owner)), marked(mark)).await;
        assert!(
            matches!(created, Created::Done { .. }),
            "`create` with a mark that is fourteen minutes old is {created:?}: nobody can sign in with a slow form"
        );
        subject.outlast(MINUTE + MINUTE / 2).await;
        subject.is_late(&record(of(owner)), marked(mark), "fifteen minutes since the mark was taken").await;
        // A clear in its last minute is still known.
        let mark = subject.mark(owner).await;
        assert!(mark.clear.is_none(), "`mark` names a `clear` of more than fifteen minutes ago");
        subject.outlast(MINUTE * 14).await;
        is_done(subject.clear_as(owner, everything()).await);
        for mark in [mark, Mark { taken: subject.mark(owner).await.taken, ..other }] {
            subject.is_late(&record(of(owner)), marked(mark), "a `clear` fourteen minutes after the mark").await;
        }
    }
}

/// If a backend forgets its clears when it is closed, a `create` with a mark from another run returns `Late`.
pub async fn a_mark_of_another_opening_is_late<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    for _ in 0..2 {
        let mark = subject.mark(owner).await;
        if mark.opening != 0 {
            for opening in [mark.opening ^ 1, 0, i64::MAX ^ mark.opening] {
                let after = "the store was closed and opened again";
                subject.is_late(&record(of(owner)), marked(mark.with_opening(opening)), after).await;
            }
        }
        let created = subject.create_on(&record(of(owner)), marked(mark)).await;
        assert!(
            matches!(created, Created::Done { .. }),
            "`create` with a mark is {created:?} although nothing happened since: nobody can sign in"
        );
        subject.clear(owner).await;
    }
}

/// `mark` writes nothing: no record, no time, and no `clear`.
pub async fn a_mark_writes_nothing<B: Backend>(subject: &Subject<B>) {
    let ada = owner();
    let there = Record { ttl: LONG / 2, ..record(of(ada)) };
    subject.creates(&there).await;
    let mark = subject.mark(ada).await;
    for owner in [ada, owner()] {
        for _ in 0..3 {
            subject.mark(owner).await;
        }
        let had = usize::from(owner == ada);
        assert!(subject.list(owner).await.len() == had, "`mark` added a record to those of an owner, or ended one");
        for terms in [since(LONG / 6), marked(subject.mark(owner).await)] {
            let new = record(of(owner));
            let created = subject.create_on(&new, terms).await;
            assert!(
                matches!(created, Created::Done { .. }),
                "`create` is {created:?} after a `mark`: whoever begins a login keeps the user from signing in"
            );
            subject.delete(new.id).await;
        }
    }
    is_same(&subject.must_load(there.id).await, &there, "`load` after `mark`");
    // It does not make earlier marks late either.
    let created = subject.create_on(&record(of(ada)), marked(mark)).await;
    assert!(
        matches!(created, Created::Done { .. }),
        "`create` is {created:?} because another mark was taken: whoever begins a login keeps the user from signing in"
    );
}

/// If `create`s with a mark run at the same time as a `clear` that came after the mark, all are ended by it or `Late`.
pub async fn no_create_with_a_mark_from_before_a_clear_outlives_it<B: Backend>(subject: &Subject<B>) {
    for round in 0..ROUNDS {
        let owner = owner();
        if round % 2 == 0 {
            subject.clear(owner).await;
        }
        let mark = subject.mark(owner).await;
        let new = subject.creates_beside_a_clear(owner, &marked(mark), round).await;
        for record in &new {
            assert!(
                subject.load(record.id).await.is_none(),
                "a `create` with a mark outlives a `clear` that came after the mark: who had the old password is signed in"
            );
        }
        assert!(subject.list(owner).await.is_empty(), "`list` shows a record whose mark came before a `clear`");
    }
}

impl<B: Backend> Subject<B> {
    /// Checks that a mark names that clear.
    async fn names(&self, owner: Owner, clear: Clear, after: &str) {
        let named = self.mark(owner).await.clear;
        assert!(
            named == Some(clear.name),
            "`mark` after {after} names {named:?} and not {}, the last one that was done: a login that was under way survives \
             a sign-out, or nobody can sign in",
            clear.name
        );
    }
}

fn is_done(cleared: Cleared) {
    assert!(matches!(cleared, Cleared::Done(_)), "`clear` is {cleared:?}, though it has to be done");
}

const NOT_GONE: &str = "`clear` by a record that is not there is not `Gone`, or by another version no `Conflict`";
const ROUNDS: usize = 20;
const MINUTE: Duration = Duration::from_secs(60);
