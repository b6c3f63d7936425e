//! The promise about calls whose future is dropped before it is done.

use super::{
    samples::{LONG, anonymous, both, is_same, of, owner, record},
    subject::Subject,
    verbs::{at_most, everything, leaving, polled},
};
use crate::{
    backend::{
        Backend, Outcome,
        terms::{Created, Terms},
    },
    record::{Record, id::RecordId},
};

/// A method whose future is dropped has happened or has not, and all other methods agree on which. The next call works.
pub async fn a_dropped_verb_is_all_or_nothing<B: Backend>(subject: &Subject<B>) {
    for polls in 0..MOST_POLLS {
        let mut all_done = true;
        for id in both() {
            let backend = subject.backend();
            let (first, second) = (Record { ttl: LONG / 2, ..record(id) }, record(id));

            all_done &= polled(polls, backend.create(first.clone(), Terms::default())).await;
            if let Some(there) = subject.agrees(id, "create").await {
                is_same(&there, &first, "`load` after a dropped `create`");
            }
            // The record exists now, whichever call created it.
            let _ = subject.create(&first).await;
            is_same(&subject.must_load(id).await, &first, "`load` after a dropped `create`");

            all_done &= polled(polls, backend.load(id)).await;
            all_done &= polled(polls, backend.update(first.version, second.clone(), false)).await;
            let Some(there) = subject.agrees(id, "update").await else {
                panic!("a dropped `update` ended the record: who is signed in is signed out")
            };
            is_same(
                &there,
                if there.version == first.version { &first } else { &second },
                "`load` after a dropped `update`",
            );
            let third = subject.overwrites(there.version, id, "update").await;

            all_done &= polled(polls, backend.touch(id, third.version, LONG / 2)).await;
            let Some(there) = subject.agrees(id, "touch").await else {
                panic!("a dropped `touch` ended the record: who is signed in is signed out")
            };
            is_same(&there, &third, "`load` after a dropped `touch`");
            subject.overwrites(third.version, id, "touch").await;

            all_done &= polled(polls, backend.delete(id)).await;
            subject.agrees(id, "delete").await;
            subject.delete(id).await;
            assert!(
                subject.agrees(id, "delete").await.is_none(),
                "`delete` after a dropped one did not end the record"
            );
        }
        all_done &= subject.drops_clear(polls).await;
        all_done &= subject.drops_login(polls).await;
        if all_done {
            return;
        }
    }
}

impl<B: Backend> Subject<B> {
    /// Drops `list` and `clear`.
    async fn drops_clear(&self, polls: usize) -> bool {
        let (owner, other) = (owner(), record(of(owner())));
        let all: Vec<Record> = (0..3).map(|_| record(of(owner))).collect();
        for record in all.iter().chain([&other]) {
            self.creates(record).await;
        }
        let mut all_done = polled(polls, self.backend().list(owner)).await;
        all_done &= polled(polls, self.backend().clear(owner, everything())).await;
        let left = self.list(owner).await.len();
        assert!(left == 0 || left == 3, "a dropped `clear` ended {} records of 3", 3 - left);
        for record in &all {
            self.agrees(record.id, "clear").await;
        }
        let ended = self.clear(owner).await;
        assert!(ended == 0 || ended == 3, "a dropped `clear` ended {} records of 3", 3 - ended);
        for record in &all {
            assert!(self.load(record.id).await.is_none(), "`clear` after a dropped one left a record");
        }
        assert!(self.load(other.id).await.is_some(), "a dropped `clear` ended a record of another owner");
        all_done
    }

    /// Drops a `create` that ends others: one because of the limit, and the one that it leaves.
    async fn drops_login(&self, polls: usize) -> bool {
        let (owner, visitor) = (owner(), record(anonymous()));
        let all: Vec<Record> = (0..2).map(|_| record(of(owner))).collect();
        for record in all.iter().chain([&visitor]) {
            self.creates(record).await;
        }
        let new = record(of(owner));
        let terms = Terms { leaves: leaving(&visitor).leaves, ..at_most(2) };
        let mut all_done = polled(polls, self.backend().mark(owner)).await;
        all_done &= polled(polls, self.backend().scan(None, 10)).await;
        all_done &= polled(polls, self.backend().count()).await;
        all_done &= polled(polls, self.backend().create(new.clone(), terms.clone())).await;
        let is_there = self.agrees(new.id, "create").await.is_some();
        let left = self.list(owner).await.len();
        assert!(left == 2, "a dropped `create` under a limit of 2 was done by halves: there are {left} records of 2");
        if self.load(visitor.id).await.is_none() {
            // It may happen only now.
            assert!(
                is_there || self.load(new.id).await.is_some(),
                "a dropped `create` was done by halves: it ended what it leaves, and its record is not there"
            );
        }
        match self.create_retried(&new, terms).await {
            Ok(Created::Done { .. }) => {
                is_same(&self.must_load(new.id).await, &new, "`load` after a dropped `create`");
                let left = self.list(owner).await.len();
                assert!(
                    left == 2,
                    "a `create` that was dropped and tried again leaves {left} records under a limit of 2"
                );
            }
            // Not known, to a store that does not remember endings.
            Err(_) => {
                assert!(self.load(new.id).await.is_none(), "a retried `create` is an error, and its record is there")
            }
            Ok(other) => panic!("a `create` that was dropped and tried again is {other:?}: nobody can sign in"),
        }
        all_done
    }

    /// Checks that `load` and `list` agree whether a dropped method has happened. It may happen only now.
    async fn agrees(&self, id: RecordId, verb: &str) -> Option<Record> {
        for _ in 0..100 {
            let before = self.load(id).await;
            let listed = self.lists(id).await;
            let after = self.load(id).await;
            if before.as_ref().map(|there| there.version) != after.as_ref().map(|there| there.version) {
                continue;
            }
            assert!(
                id.owner().is_none() || listed.is_some() == after.is_some(),
                "a dropped `{verb}` was done by halves: `load` says {}, `list` {}",
                after.is_some(),
                listed.is_some()
            );
            if let (Some(listed), Some(after)) = (&listed, &after) {
                is_same(listed, &Record { ttl: LONG, ..after.clone() }, "`list`, beside `load` after a dropped call,");
            }
            return after;
        }
        panic!("a dropped `{verb}` goes on and on")
    }

    /// Updates what is there, even if that has only just been written.
    async fn overwrites(&self, mut expected: i64, id: RecordId, verb: &str) -> Record {
        let new = record(id);
        for _ in 0..4 {
            match self.update(expected, &new).await {
                Outcome::Done => {
                    is_same(&self.must_load(id).await, &new, "`load` after an `update` that followed a dropped call");
                    return new;
                }
                Outcome::Conflict(there) => expected = there.version,
                Outcome::Gone => panic!("`update` is `Gone` after a dropped `{verb}`, though nothing ended the record"),
            }
        }
        panic!("after a dropped `{verb}` no `update` is done: every change of that session is answered 503")
    }
}

/// More than any method takes: a call over a network takes a handful.
const MOST_POLLS: usize = 50;
