//! Promises about calls that are repeated with `retry`: they are never applied twice, and fail if the backend cannot tell.

use std::time::Duration;

use super::{
    records::HowItEnds,
    samples::{LONG, both, is_same, of, owner, record},
    subject::Subject,
    verbs::since,
};
use crate::{
    backend::{
        Backend, Outcome,
        terms::{Created, Terms},
    },
    record::Record,
};

/// A `create` that repeats an existing record, with or without `retry`, returns `Done` and changes nothing.
pub async fn a_create_of_the_very_record_is_done<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let there = Record { ttl: LONG / 2, ..record(id) };
        subject.creates(&there).await;
        for retry in [false, true, true] {
            let again = Record { ttl: LONG, ..there.clone() };
            let created = subject.create_on(&again, Terms { retry, ..Terms::default() }).await;
            assert!(
                matches!(created, Created::Done { .. }),
                "`create` of the very record that is there is {created:?}: a login that was made is made again"
            );
            is_same(&subject.must_load(id).await, &there, "`load` after a repeated `create`");
        }
        if id.owner().is_some() {
            assert!(subject.lists(id).await.is_some(), "`list` lost a record by a repeated `create`");
        }
    }
}

/// If a retried `create` was never applied, it stores the record, or it returns an error and stores nothing.
pub async fn a_retried_create_that_was_never_made_is_made_or_an_error<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let new = record(id);
        match subject.creates_again(&new).await {
            Ok(Created::Done { .. }) => is_same(&subject.must_load(id).await, &new, "`load` after a retried `create`"),
            Ok(other) => panic!("a retried `create` of a name that nothing has is {other:?}: nobody can sign in"),
            Err(_) => {
                assert!(subject.load(id).await.is_none(), "a retried `create` is an error, and its record is there");
            }
        }
        // Another record has the name.
        let there = record(both()[0]);
        subject.creates(&there).await;
        if let Ok(created) = subject.creates_again(&record(there.id)).await {
            assert!(matches!(created, Created::Taken), "a retried `create` of a name that is taken is {created:?}");
        }
        is_same(&subject.must_load(there.id).await, &there, "`load` after a `create` of a taken name");
    }
}

/// A retried `create` of a user's record that has ended is an error, or `Late` if that applies, and does not bring the
/// record back.
pub async fn a_retried_create_brings_nothing_back<B: Backend>(subject: &Subject<B>) {
    for end in HowItEnds::of(both()[0]) {
        let id = of(owner());
        let mut old = record(id);
        if *end == HowItEnds::Expiry {
            old.ttl = subject.short();
        }
        subject.creates(&old).await;
        subject.ends(&old, end).await;
        let again = Record { ttl: LONG, ..old.clone() };
        for _ in 0..2 {
            let created = subject.creates_again(&again).await;
            assert!(
                subject.load(id).await.is_none(),
                "a retried `create` brought back a record that {end:?} had ended: who was revoked is signed in"
            );
            assert!(
                created.is_err(),
                "a retried `create` of a record that {end:?} had ended is {created:?} and no error: the user is told that \
                 they are signed in"
            );
        }
        subject.is_absent(id, old.version, "a retried `create`").await;
    }
}

/// A retried `create` can be `Late` like any other, whether the first try was applied or not.
pub async fn a_retried_create_can_be_late<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    let (made, never) = (record(of(owner)), record(of(owner)));
    subject.creates(&made).await;
    subject.clear(owner).await;
    for record in [&never, &made] {
        let terms = Terms { retry: true, ..since(LONG / 6) };
        subject.is_late(record, terms, "a `clear` before it was retried").await;
    }
}

/// If the record already has the version of a retried `update`, it returns `Done` and is not applied again.
pub async fn a_retried_update_that_was_written_is_done<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let (first, second) = (record(id), Record { ttl: LONG / 2, ..record(id) });
        subject.creates(&first).await;
        subject.updates(first.version, &second).await;
        for _ in 0..3 {
            let again = Record { ttl: LONG, ..second.clone() };
            match subject.updates_again(first.version, &again).await {
                Ok(Outcome::Done) => {}
                other => panic!(
                    "a retried `update` whose version is there is {other:?} and not `Done`: it is lost, or made twice"
                ),
            }
            is_same(&subject.must_load(id).await, &second, "`load` after a retried `update`");
        }
    }
}

/// If the record still has the version that a retried `update` expects, it is written.
pub async fn a_retried_update_that_was_never_written_is_written<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let (first, second) = (record(id), record(id));
        subject.creates(&first).await;
        match subject.updates_again(first.version, &second).await {
            Ok(Outcome::Done) => {}
            other => {
                panic!("a retried `update` of the version that is there is {other:?}: a lost request costs an answer")
            }
        }
        is_same(&subject.must_load(id).await, &second, "`load` after a retried `update`");
        let out = Record { ttl: Duration::ZERO, ..record(id) };
        assert!(
            matches!(subject.updates_again(second.version, &out).await, Ok(Outcome::Done)),
            "a retried `update` for no time is not `Done`, though the version is the expected one"
        );
        subject.is_absent(id, out.version, "a retried `update` for no time").await;
    }
}

/// A retried `update` that was written, and then replaced by any number of others, is `Done` or an error, never a `Conflict`.
pub async fn a_retried_update_that_was_replaced_is_not_made_twice<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        for others in 1..=9 {
            let (first, mine) = (record(id), record(id));
            subject.creates(&first).await;
            subject.updates(first.version, &mine).await;
            let there = subject.replaced(&mine, others).await;
            match subject.updates_again(first.version, &mine).await {
                Ok(Outcome::Done) | Err(_) => {}
                Ok(other) => panic!(
                    "a retried `update` that {others} others have replaced is {other:?}: its change is made a second time"
                ),
            }
            is_same(&subject.must_load(id).await, &there, "`load` after a retried `update`");
            subject.delete(id).await;
        }
    }
}

/// A retried `update` that was never written, because any number of others were first, is a `Conflict` or an error, never `Done`.
pub async fn a_retried_update_that_came_too_late_is_not_done<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        for others in 1..=9 {
            let (first, mine) = (record(id), record(id));
            subject.creates(&first).await;
            let there = subject.replaced(&first, others).await;
            match subject.updates_again(first.version, &mine).await {
                Ok(Outcome::Conflict(shown)) => is_same(&shown, &there, "`Conflict` of a retried `update`"),
                Err(_) => {}
                Ok(other) => panic!(
                    "a retried `update` that {others} others were before is {other:?}: a change that is lost is called done"
                ),
            }
            is_same(&subject.must_load(id).await, &there, "`load` after a retried `update`");
            subject.delete(id).await;
        }
    }
}

/// A retried `update` of a record that has ended is `Gone`, whatever ended it, and stores nothing.
pub async fn a_retried_update_of_what_has_ended_is_gone<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        for end in HowItEnds::of(id) {
            let old = subject.made_and_ended(id, end).await;
            let late = record(id);
            let outcome = subject.updates_again(old.version, &late).await;
            assert!(
                subject.load(id).await.is_none(),
                "a retried `update` brought back a record that {end:?} had ended: a logout is undone by a request that was slow"
            );
            assert!(
                matches!(outcome, Ok(Outcome::Gone)),
                "a retried `update` of what {end:?} had ended is not `Gone`: {outcome:?}"
            );
            subject.is_absent(id, late.version, "a retried `update`").await;
        }
    }
}

impl<B: Backend> Subject<B> {
    /// Updates a record this many times, and returns the last version.
    async fn replaced(&self, there: &Record, times: usize) -> Record {
        let mut there = there.clone();
        for _ in 0..times {
            let next = record(there.id);
            self.updates(there.version, &next).await;
            there = next;
        }
        there
    }
}
