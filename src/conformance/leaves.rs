//! Promises about [`Terms::leaves`](crate::Terms::leaves): the visitor's record, which ends when the visitor signs in.

use super::{
    samples::{LONG, anonymous, is_same, of, owner, record},
    subject::Subject,
    verbs::{at_most, leaving, marked, since, together},
};
use crate::{
    backend::{
        Backend, Outcome,
        terms::{Created, Left, Limit, Terms},
    },
    record::Record,
};

/// `create` ends the record in `leaves` if it has the version given, and reports `Left::Done`. If the version differs, `create`
/// returns that record as `Left::Conflict` and does not change it. The new record is stored either way. A backend that cannot
/// do this returns `Left::NotTried`, and does not touch the record.
pub async fn a_create_ends_what_it_leaves<B: Backend>(subject: &Subject<B>) {
    // If there is no record to leave, none is reported.
    let new = record(of(owner()));
    let left = subject.create_leaving(&new, Terms::default()).await;
    assert!(matches!(left, Left::NotTried), "`create` that leaves nothing says what became of it: {left:?}");
    // A live record.
    let visitor = Record { ttl: LONG / 2, ..record(anonymous()) };
    let (beside, other) = (record(anonymous()), record(of(owner())));
    for record in [&visitor, &beside, &other] {
        subject.creates(record).await;
    }
    let new = record(of(owner()));
    match subject.create_leaving(&new, leaving(&visitor)).await {
        Left::Done => subject.is_absent(visitor.id, visitor.version, "a `create` that left it").await,
        Left::NotTried => subject.is_as_before(&visitor, "`NotTried`").await,
        left => panic!("`create` that leaves a record says {left:?} of it, though it is there with that version"),
    }
    subject.is_as_before(&beside, "another's end").await;
    subject.is_as_before(&other, "another's end").await;
    // A record that was written to in the meantime.
    let (old, there) = (record(anonymous()), Record { ttl: LONG / 2, ..record(anonymous()) });
    let there = Record { id: old.id, ..there };
    subject.creates(&old).await;
    subject.updates(old.version, &there).await;
    let new = record(of(owner()));
    match subject.create_leaving(&new, leaving(&old)).await {
        Left::Conflict(shown) => is_same(&shown, &there, "`Conflict` of what a `create` leaves"),
        Left::NotTried => {}
        left => panic!(
            "`create` that leaves a record says {left:?} of it, though it has another version: what was written is lost"
        ),
    }
    subject.is_as_before(&there, "a `Conflict`").await;
    // A record that has ended, one that has expired, and one that never existed.
    let (ended, expired) = (record(anonymous()), Record { ttl: subject.short(), ..record(anonymous()) });
    subject.creates(&ended).await;
    subject.creates(&expired).await;
    subject.delete(ended.id).await;
    subject.outlast(expired.ttl).await;
    for gone in [ended, expired, record(anonymous())] {
        let new = record(of(owner()));
        let left = subject.create_leaving(&new, leaving(&gone)).await;
        assert!(
            matches!(left, Left::Gone | Left::NotTried),
            "`create` that leaves a record which is not there says {left:?} of it"
        );
        subject.is_absent(gone.id, gone.version, "a `create` that left it").await;
    }
}

/// With any answer other than `Done`, the record in `leaves` is unchanged.
pub async fn what_a_create_leaves_ends_only_with_it<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    let early = subject.mark(owner).await;
    subject.clear(owner).await;
    let there = record(of(owner));
    subject.creates(&there).await;
    let visitor = Record { ttl: LONG / 2, ..record(anonymous()) };
    subject.creates(&visitor).await;
    let leaves = leaving(&visitor).leaves;
    for (id, terms) in [
        (of(owner), since(LONG / 6)),
        (of(owner), marked(early)),
        (there.id, Terms::default()),
        (of(owner), at_most(Limit::refuse(1))),
    ] {
        let created = subject.create_on(&record(id), Terms { leaves, ..terms }).await;
        assert!(
            matches!(created, Created::Late | Created::Taken | Created::Full),
            "`create` that has to be refused is {created:?}"
        );
        subject.is_as_before(&visitor, &format!("a `create` that was {created:?}")).await;
    }
    let listed = subject.list(owner).await.len();
    assert!(listed == 1, "a `create` that was refused stored a record: there are {listed} and not one");
}

/// A `create` that repeats an existing record ends the record in `leaves`, if the first try did not.
pub async fn a_repeated_create_ends_what_it_leaves<B: Backend>(subject: &Subject<B>) {
    for retry in [false, true] {
        let (new, visitor) = (record(of(owner())), record(anonymous()));
        subject.creates(&new).await;
        subject.creates(&visitor).await;
        for at in 0..3 {
            let left = subject.create_leaving(&new, Terms { retry, ..leaving(&visitor) }).await;
            match left {
                Left::Done if at == 0 => {}
                Left::Gone if at > 0 => {}
                // The caller has to end it.
                Left::NotTried => _ = subject.delete(visitor.id).await,
                left => panic!("a `create` that is repeated says {left:?} of the record that it leaves"),
            }
            subject.is_absent(visitor.id, visitor.version, "a `create` that left it").await;
        }
    }
}

/// If the record in `leaves` is written to at the same time, exactly one of the two wins, and the loser is told: either
/// `create` returns `Left::Conflict`, or the write returns `Gone`.
pub async fn a_create_beside_a_write_to_what_it_leaves_loses_nothing<B: Backend>(subject: &Subject<B>) {
    for round in 0..ROUNDS {
        let (new, visitor, written) = (record(of(owner())), record(anonymous()), record(anonymous()));
        let written = Record { id: visitor.id, ..written };
        subject.creates(&visitor).await;
        let left = together((0..2).map(|at| {
            let (subject, new, visitor, written) = (subject.clone(), new.clone(), visitor.clone(), written.clone());
            async move {
                if at == 0 {
                    return Some(subject.create_leaving(&new, leaving(&visitor)).await);
                }
                for _ in 0..round % 4 {
                    tokio::task::yield_now().await;
                }
                match subject.update(visitor.version, &written).await {
                    Outcome::Done => None,
                    Outcome::Gone => Some(Left::Done),
                    Outcome::Conflict(_) => panic!("`update` beside a `create` is a `Conflict` with nothing"),
                }
            }
        }))
        .await;
        let there = subject.load(visitor.id).await;
        match (&left[0], &left[1]) {
            (Some(Left::Done), Some(_)) => {
                assert!(there.is_none(), "a record that a `create` has left is there: it was written to after its end");
            }
            (Some(Left::Conflict(shown)), None) => is_same(shown, &written, "`Conflict` of what a `create` leaves"),
            (Some(Left::NotTried), None) => {}
            (left, updated) => panic!(
                "a `create` says {left:?} of the record that it leaves, and an `update` beside it was {}: what was written is \
                 lost",
                if updated.is_none() { "`Done`" } else { "`Gone`" }
            ),
        }
        if left[1].is_none() {
            subject.is_as_before(&written, "a `create` beside its `update`").await;
        }
    }
}

impl<B: Backend> Subject<B> {
    /// Creates a record under these terms, which must succeed, and returns what happened to the record that it leaves.
    async fn create_leaving(&self, new: &Record, terms: Terms) -> Left {
        match self.create_on(new, terms).await {
            Created::Done { ended, left } => {
                assert!(ended.is_empty(), "`create` without a limit says that it ended {ended:?} because of it");
                is_same(&self.must_load(new.id).await, new, "`load` after a `create` that leaves another record");
                left
            }
            other => panic!("`create` that leaves another record is {other:?}: nobody can sign in"),
        }
    }

    async fn is_as_before(&self, record: &Record, after: &str) {
        let Some(there) = self.load(record.id).await else {
            panic!(
                "a `create` ended the record that it was to leave alone, after {after}: what was written there is lost"
            )
        };
        is_same(&there, record, &format!("`load` after {after}"));
        assert!(
            there.ttl > record.ttl / 2,
            "a `create` took time from the record that it was to leave alone, after {after}"
        );
    }
}

const ROUNDS: usize = 20;
