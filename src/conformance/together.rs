//! Promises about concurrency: calls that run at the same time, or are retried.

use std::time::Duration;

use tokio::task::yield_now;

use super::{
    samples::{LONG, both, is_same, of, owner, record},
    subject::Subject,
    verbs::together,
};
use crate::{
    backend::{Backend, Outcome},
    record::{Record, id::RecordId},
};

/// If several `create`s of one name run at the same time, exactly one returns `Done`, and its record is stored.
pub async fn of_parallel_creates_one_wins<B: Backend>(subject: &Subject<B>) {
    for (round, id) in rounds().enumerate() {
        if round % 8 == 0 {
            // An expired record has the name. It must not matter.
            let short = Record { ttl: subject.short(), ..record(id) };
            subject.creates(&short).await;
            subject.outlast(short.ttl).await;
        }
        let all: Vec<Record> = (0..8).map(|_| record(id)).collect();
        let created = together(all.clone().into_iter().map(|new| {
            let subject = subject.clone();
            async move { subject.create(&new).await }
        }))
        .await;
        let winners: Vec<&Record> = all.iter().zip(&created).filter(|(_, won)| **won).map(|(new, _)| new).collect();
        assert!(
            winners.len() == 1,
            "of 8 parallel `create`s of one name {} were told that it is theirs: one session takes another's place",
            winners.len()
        );
        is_same(&subject.must_load(id).await, winners[0], "`load` after parallel `create`s");
    }
}

/// If several `update`s that expect the same version run at the same time, exactly one returns `Done`. The others return
/// `Conflict` with its record.
pub async fn of_parallel_updates_one_is_done<B: Backend>(subject: &Subject<B>) {
    for id in rounds() {
        let first = record(id);
        subject.creates(&first).await;
        let all: Vec<Record> = (0..8).map(|_| record(id)).collect();
        let outcomes = together(all.clone().into_iter().map(|new| {
            let (subject, expected) = (subject.clone(), first.version);
            async move { subject.update(expected, &new).await }
        }))
        .await;
        let done: Vec<usize> = (0..8).filter(|at| matches!(outcomes[*at], Outcome::Done)).collect();
        assert!(
            done.len() == 1,
            "of 8 parallel `update`s that expect the same version {} are `Done`: all but one of these changes are lost",
            done.len()
        );
        let winner = &all[done[0]];
        for outcome in &outcomes {
            match outcome {
                Outcome::Conflict(there) => is_same(there, winner, "`Conflict` of parallel `update`s"),
                Outcome::Gone => panic!("a parallel `update` is `Gone`, though the record was live throughout"),
                Outcome::Done => {}
            }
        }
        is_same(&subject.must_load(id).await, winner, "`load` after parallel `update`s");
    }
}

/// If several tasks increment a count, and retry on a `Conflict`, no increment is lost.
pub async fn no_count_is_lost_among_parallel_updates<B: Backend>(subject: &Subject<B>) {
    const TASKS: u64 = 6;
    const EACH: u64 = 15;
    for id in both() {
        let zero = Record { payload: 0_u64.to_be_bytes().to_vec().into(), ..record(id) };
        subject.creates(&zero).await;
        together((0..TASKS).map(|_| {
            let (subject, mut there) = (subject.clone(), zero.clone());
            async move {
                let mut conflicts = 0;
                for _ in 0..EACH {
                    loop {
                        let next = count(&there) + 1;
                        let new = Record { payload: next.to_be_bytes().to_vec().into(), ..record(id) };
                        match subject.update(there.version, &new).await {
                            Outcome::Done => break there = new,
                            Outcome::Conflict(other) => {
                                // Each conflict is the success of another task, so their number is bounded.
                                conflicts += 1;
                                assert!(
                                    conflicts <= TASKS * EACH,
                                    "`update` is a `Conflict` over and over: nobody can write"
                                );
                                there = other;
                            }
                            Outcome::Gone => {
                                panic!("an `update` among many is `Gone`, though nothing ended the record")
                            }
                        }
                    }
                }
            }
        }))
        .await;
        let counted = count(&subject.must_load(id).await);
        assert!(
            counted == TASKS * EACH,
            "of {} counts in parallel {counted} are left: changes that were answered with success are lost",
            TASKS * EACH
        );
    }
}

/// A `create` at the same time as a `clear` is ended by it or listed afterwards. The `clear` ends every older record.
pub async fn a_create_beside_a_clear_is_ended_or_listed<B: Backend>(subject: &Subject<B>) {
    for round in 0..ROUNDS {
        let owner = owner();
        let before: Vec<Record> = (0..4).map(|_| record(of(owner))).collect();
        for record in &before {
            subject.creates(record).await;
        }
        let new: Vec<Record> = (0..6).map(|_| record(of(owner))).collect();
        together((0..7).map(|at| {
            let (subject, new) = (subject.clone(), new.get(at).cloned());
            async move {
                match new {
                    Some(new) => subject.creates(&new).await,
                    None => {
                        // Before, between, or after the other calls.
                        for _ in 0..round % 5 {
                            yield_now().await;
                        }
                        subject.clear(owner).await;
                    }
                }
            }
        }))
        .await;
        let listed = subject.list(owner).await;
        for record in &before {
            assert!(
                subject.load(record.id).await.is_none(),
                "`clear` beside a `create` left a record of before: who signed out everywhere is still signed in"
            );
        }
        for record in &new {
            let is_listed = listed.iter().any(|there| there.id == record.id);
            let is_live = subject.load(record.id).await.is_some();
            assert!(
                is_live == is_listed,
                "after a `create` beside a `clear` `load` says {is_live} and `list` {is_listed}: a session that its user cannot end"
            );
        }
        assert!(listed.iter().all(|there| there.id != before[0].id), "`list` shows a record that `clear` ended");
        let ended = subject.clear(owner).await;
        assert!(ended == listed.len() as u64, "`clear` counts {ended} records, and `list` showed {}", listed.len());
    }
}

/// A record that is deleted, logged out or cleared while other calls update and touch it is gone once all have answered.
pub async fn an_end_beside_updates_and_touches_is_the_end<B: Backend>(subject: &Subject<B>) {
    for (round, id) in rounds().enumerate() {
        let first = record(id);
        subject.creates(&first).await;
        let versions = together((0..7).map(|at| {
            let (subject, first) = (subject.clone(), first.clone());
            async move {
                match at {
                    // A logout retries until it has seen the current version.
                    0 if round % 3 == 0 => subject.logs_out(&first).await,
                    0 if round % 3 == 1 && id.owner().is_some() => {
                        let ended = subject.clear(of_owner(id)).await;
                        assert!(ended == 1, "`clear` beside `update`s says that it ended {ended} records and not one");
                    }
                    0 => assert!(subject.delete(id).await, "`delete` beside `update`s says that nothing was live"),
                    1..4 => return subject.changes_until_gone(&first).await,
                    _ => {
                        for _ in 0..4 {
                            if let Some(there) = subject.load(id).await {
                                subject.touch(id, there.version, LONG).await;
                            }
                            subject.touch(id, first.version, LONG).await;
                        }
                    }
                }
                first.version
            }
        }))
        .await;
        assert!(
            subject.load(id).await.is_none(),
            "a record was ended beside `update` and `touch`, and is there: a logout is undone by a request that was slow"
        );
        assert!(subject.lists(id).await.is_none(), "`list` shows a record that was ended beside `update` and `touch`");
        for version in versions {
            subject.is_absent(id, version, "an end beside `update` and `touch`").await;
        }
    }
}

/// An `update` that a client library sends again by itself, so without `retry`, is `Done`, or a `Conflict` with the version
/// that it wrote. It is never applied again, neither at once nor after another update.
pub async fn a_repeated_update_is_not_applied_again<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let first = record(id);
        subject.creates(&first).await;
        let second = Record { ttl: LONG / 2, ..record(id) };
        subject.updates(first.version, &second).await;
        for _ in 0..3 {
            match subject.update(first.version, &second).await {
                Outcome::Done => {}
                Outcome::Conflict(there) => is_same(&there, &second, "`Conflict` of a repeated `update`"),
                Outcome::Gone => {
                    panic!("a repeated `update` is `Gone`: a change that was made is taken for a session that ended")
                }
            }
            is_same(&subject.must_load(id).await, &second, "`load` after a repeated `update`");
        }
        let third = record(id);
        subject.updates(second.version, &third).await;
        match subject.update(first.version, &second).await {
            Outcome::Done => {}
            Outcome::Conflict(there) => is_same(&there, &third, "`Conflict` of an `update` that is repeated late"),
            Outcome::Gone => panic!("an `update` that is repeated late is `Gone`, though the record is live"),
        }
        let there = subject.must_load(id).await;
        assert!(
            there.version == third.version && there.payload == third.payload,
            "an `update` that was repeated late undid the one after it: a change that was answered with success is lost"
        );
        // The same for a logout, whose name may have been used again by then.
        let out = Record { ttl: Duration::ZERO, ..record(id) };
        subject.updates(third.version, &out).await;
        assert!(
            !matches!(subject.update(third.version, &out).await, Outcome::Conflict(_)),
            "a repeated `update` for no time is a `Conflict`, though nothing is there"
        );
        let fourth = record(id);
        subject.creates(&fourth).await;
        let _ = subject.update(third.version, &out).await;
        let _ = subject.update(first.version, &second).await;
        let Some(there) = subject.load(id).await else {
            panic!(
                "a repeated `update` for no time ended a record that was created since: who has just signed in is signed out"
            )
        };
        is_same(&there, &fourth, "`load` after an `update` of before it was created");
    }
}

/// A repeated `create` changes nothing, whatever it returns.
pub async fn a_repeated_create_leaves_its_record_alone<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let first = Record { ttl: LONG / 2, ..record(id) };
        subject.creates(&first).await;
        for _ in 0..3 {
            let _ = subject.create(&first).await;
            is_same(&subject.must_load(id).await, &first, "`load` after a repeated `create`");
        }
        let second = record(id);
        subject.updates(first.version, &second).await;
        let _ = subject.create(&first).await;
        let there = subject.must_load(id).await;
        assert!(
            there.version == second.version && there.payload == second.payload,
            "a repeated `create` undid an `update`: a change that was answered with success is lost"
        );
        if let Some(owner) = id.owner() {
            let ended = subject.clear(owner).await;
            assert!(ended == 1, "`clear` counts {ended} records after a `create` that was repeated, not one");
        }
    }
}

impl<B: Backend> Subject<B> {
    async fn logs_out(&self, first: &Record) {
        let mut expected = first.version;
        let out = Record { ttl: Duration::ZERO, ..record(first.id) };
        for _ in 0..4 * CHANGES {
            match self.update(expected, &out).await {
                Outcome::Conflict(there) => expected = there.version,
                _ => return,
            }
        }
        panic!("`update` is a `Conflict` over and over: nobody can log out")
    }

    /// Updates the record until it is gone, but not for ever. Gives the last version that it wrote.
    async fn changes_until_gone(&self, first: &Record) -> i64 {
        let mut expected = first.version;
        for _ in 0..CHANGES {
            let new = record(first.id);
            match self.update(expected, &new).await {
                Outcome::Done => expected = new.version,
                Outcome::Conflict(there) => expected = there.version,
                Outcome::Gone => break,
            }
            yield_now().await;
        }
        expected
    }
}

fn rounds() -> impl Iterator<Item = RecordId> {
    (0..ROUNDS).flat_map(|_| both())
}

fn of_owner(id: RecordId) -> crate::record::id::Owner {
    id.owner().unwrap_or_else(owner)
}

fn count(record: &Record) -> u64 {
    match record.payload[..].try_into() {
        Ok(bytes) => u64::from_be_bytes(bytes),
        Err(_) => panic!("a payload came back with another length"),
    }
}

const ROUNDS: usize = 20;
const CHANGES: usize = 200;
