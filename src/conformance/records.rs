//! Promises about one record: `load`, `create`, `update`, `touch` and `delete`.

use std::time::Duration;

use super::{
    samples::{LONG, both, is_same, of, owner, record, version},
    subject::Subject,
};
use crate::{
    backend::{Backend, Outcome},
    record::{Record, id::RecordId},
};

/// For a name that was never created, `load` is `None`, `update` is `Gone`, `touch` does nothing and `delete` is `false`.
pub async fn what_was_never_created_is_absent<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        subject.is_absent(id, version(), "nothing at all").await;
    }
    let owner = owner();
    assert!(subject.list(owner).await.is_empty(), "`list` shows records of somebody who never had one");
    assert!(subject.clear(owner).await == 0, "`clear` counts records of somebody who never had one");
}

/// `load` returns what `create` was given: name, version and payload, and a time to live that is not longer.
pub async fn what_is_created_is_loaded<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let new = record(id);
        assert!(subject.create(&new).await, "`create` refused a name that nothing has: nobody can sign in");
        let there = subject.must_load(id).await;
        is_same(&there, &new, "`load` after `create`");
        assert!(there.ttl > LONG / 2, "of {LONG:?} to live {:?} are left at once: sessions end early", there.ttl);
        if id.owner().is_some() {
            let Some(listed) = subject.lists(id).await else {
                panic!("`list` does not show what `create` made: a session that its user cannot see, nor end")
            };
            is_same(&listed, &new, "`list` after `create`");
        }
    }
}

/// `create` with the name of a live record returns `Taken`, and does not change that record.
pub async fn a_taken_name_is_left_alone<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let first = Record { ttl: LONG / 2, ..record(id) };
        subject.creates(&first).await;
        for ttl in [LONG, subject.short(), Duration::ZERO] {
            let second = Record { ttl, ..record(id) };
            assert!(!subject.create(&second).await, "`create` took a name that a live record has");
            let Some(there) = subject.load(id).await else {
                panic!("`create` on a taken name ended the record that was there: somebody is signed out")
            };
            assert!(
                there.version == first.version && there.payload == first.payload,
                "`create` overwrote a live record: one session takes another's place"
            );
            assert!(there.ttl <= first.ttl, "`create` on a taken name gave the record there more time to live");
            assert!(there.ttl > LONG / 4, "`create` on a taken name took time to live from the record there");
        }
        if id.owner().is_some() {
            let listed = subject.list_of(id).await;
            assert!(listed.len() == 1, "`list` shows {} records after a refused `create`, not one", listed.len());
            is_same(&listed[0], &first, "`list` after a refused `create`");
        }
    }
}

/// The name of a record that was deleted, cleared, updated with a `ttl` of zero, or has expired can be created again.
pub async fn a_name_is_free_again_after_its_end<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        for end in HowItEnds::of(id) {
            let old = subject.made_and_ended(id, end).await;
            let new = record(id);
            assert!(subject.create(&new).await, "`create` refused the name of a record that was over by {end:?}");
            is_same(&subject.must_load(id).await, &new, "`load` of a name that is used again");
            if id.owner().is_some() {
                let listed = subject.list_of(id).await;
                assert!(
                    listed.len() == 1,
                    "`list` shows {} records and not one, after a name was used again: a session that its user cannot see",
                    listed.len()
                );
                is_same(&listed[0], &new, "`list` of a name that is used again");
            }
            // A slow request still holds the previous version.
            assert!(
                matches!(subject.update(old.version, &record(id)).await, Outcome::Conflict(_)),
                "`update` took the version of a record that has ended for that of its successor"
            );
            assert!(subject.delete(id).await, "`delete` does not find a record whose name was used before");
        }
    }
}

/// `update` of the expected version is `Done`, and every later call sees the new record, however often it is repeated.
pub async fn an_update_replaces_what_it_expects<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let mut there = record(id);
        subject.creates(&there).await;
        for _ in 0..20 {
            let new = record(id);
            subject.updates(there.version, &new).await;
            is_same(&subject.must_load(id).await, &new, "`load` after `update`");
            if id.owner().is_some() {
                let Some(listed) = subject.lists(id).await else {
                    panic!("`list` lost a record by an `update`: a session that its user cannot see")
                };
                is_same(&listed, &new, "`list` after `update`");
            }
            there = new;
        }
    }
}

/// `update` that expects any other version than the stored one is a `Conflict` with the stored record, and changes nothing.
pub async fn an_update_of_another_version_is_a_conflict<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let first = record(id);
        subject.creates(&first).await;
        let there = Record { ttl: LONG / 2, ..record(id) };
        subject.updates(first.version, &there).await;
        subject.touch(id, there.version, LONG / 2).await;
        let others = [first.version, version(), there.version ^ 1, there.version.wrapping_add(1) & i64::MAX, 0];
        for expected in others {
            let conflict = match subject.update(expected, &record(id)).await {
                Outcome::Conflict(record) => record,
                Outcome::Done => panic!("`update` overwrote a version that it had not seen: a parallel change is lost"),
                Outcome::Gone => panic!("`update` is `Gone`, though a live record of another version is there"),
            };
            is_same(&conflict, &there, "`Conflict`");
            assert!(conflict.ttl > LONG / 4, "`Conflict` shows less time to live than is left");
            is_same(&subject.must_load(id).await, &there, "`load` after a `Conflict`");
        }
    }
}

/// `update` of a record that has ended is `Gone`, whatever ended it, and stores nothing.
pub async fn an_update_brings_nothing_back<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        for end in HowItEnds::of(id) {
            let old = subject.made_and_ended(id, end).await;
            let late = record(id);
            let outcome = subject.update(old.version, &late).await;
            assert!(
                subject.load(id).await.is_none() && subject.lists(id).await.is_none(),
                "`update` brought back a record that {end:?} had ended: a logout is undone by a request that was slow"
            );
            assert!(matches!(outcome, Outcome::Gone), "`update` of what {end:?} had ended is not `Gone`: {outcome:?}");
            subject.is_absent(id, late.version, "an `update` that came too late").await;
        }
    }
}

/// `update` with a `ttl` of zero ends the record if its version is the expected one. This is how a session is signed out.
pub async fn an_update_for_no_time_ends_the_record<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let there = record(id);
        subject.creates(&there).await;
        let out = Record { ttl: Duration::ZERO, ..record(id) };
        assert!(
            matches!(subject.update(version(), &out).await, Outcome::Conflict(_)),
            "`update` for no time is no `Conflict`, though it expected another version"
        );
        is_same(&subject.must_load(id).await, &there, "`load` after a `Conflict`");
        subject.updates(there.version, &out).await;
        assert!(
            subject.load(id).await.is_none(),
            "`update` with a time to live of zero did not end the record: who logs out stays signed in"
        );
        if let Some(owner) = id.owner() {
            assert!(subject.list(owner).await.is_empty(), "`list` shows a record after an `update` for no time");
            assert!(subject.clear(owner).await == 0, "`clear` counts a record that an `update` for no time had ended");
        }
        subject.is_absent(id, out.version, "an `update` for no time").await;
        subject.is_absent(id, there.version, "an `update` for no time").await;
    }
}

/// `update` gives the record the whole new time to live, counted from that moment.
pub async fn an_update_restarts_the_time_to_live<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let mut there = record(id);
        subject.creates(&there).await;
        let mut anew = false;
        // Unless the clock stands still, more time may pass than the update gives back.
        for _ in 0..5 {
            let low = subject.left_after_a_while(id).await;
            let new = record(id);
            subject.updates(there.version, &new).await;
            there = new;
            anew = subject.must_load(id).await.ttl > low;
            if anew {
                break;
            }
        }
        assert!(anew, "`update` did not start the time to live anew: who is active is signed out");
    }
    for at in 0..2 {
        let longer = subject
            .extended(|| both()[at], |old| async move { subject.updates_or_gone(old.version, &record(old.id)).await });
        let Some(old) = longer.await else {
            panic!(
                "`update` did not give a record that would end soon its new time to live: who is active is signed out"
            )
        };
        let there = subject.load(old.id).await;
        assert!(
            there.is_some(),
            "a record that was given more time by `update` ended when its first time was over: who is active is signed out"
        );
        if old.id.owner().is_some() {
            assert!(
                subject.lists(old.id).await.is_some(),
                "`list` lost a record whose first time is over, though `update` gave it more"
            );
        }
    }
}

/// `update` with less time to live than is left makes the record expire earlier, for every method.
pub async fn an_update_can_shorten_the_time_to_live<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let there = record(id);
        subject.creates(&there).await;
        let new = Record { ttl: subject.short(), ..record(id) };
        subject.updates(there.version, &new).await;
        if let Some(there) = subject.load(id).await {
            assert!(there.ttl <= new.ttl, "`update` to a shorter time to live left the longer one");
        }
        subject.outlast(new.ttl).await;
        subject.is_absent(id, new.version, "the shorter time of an `update`").await;
    }
}

/// `touch` gives the record the whole time to live, counted from that moment.
pub async fn a_touch_restarts_the_time_to_live<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let there = record(id);
        subject.creates(&there).await;
        let mut anew = false;
        for _ in 0..5 {
            let low = subject.left_after_a_while(id).await;
            subject.touch(id, there.version, LONG).await;
            anew = subject.must_load(id).await.ttl > low;
            if anew {
                break;
            }
        }
        assert!(anew, "`touch` did not start the time to live anew: who only reads is signed out");
    }
    for at in 0..2 {
        let longer =
            subject.extended(|| both()[at], |old| async move { subject.touch(old.id, old.version, LONG).await });
        let Some(old) = longer.await else {
            panic!("`touch` did not give a record that would end soon more time to live: who only reads is signed out")
        };
        let there = subject.load(old.id).await;
        assert!(
            there.is_some(),
            "a record that was given more time by `touch` ended when its first time was over: who only reads is signed out"
        );
        if old.id.owner().is_some() {
            assert!(
                subject.lists(old.id).await.is_some(),
                "`list` lost a record whose first time is over, though `touch` gave it more"
            );
        }
    }
}

/// `touch` with less time to live than is left makes the record expire earlier, for every method. Zero ends it at once.
pub async fn a_touch_can_shorten_the_time_to_live<B: Backend>(subject: &Subject<B>) {
    for ttl in [subject.short(), Duration::ZERO] {
        for id in both() {
            let there = record(id);
            subject.creates(&there).await;
            subject.touch(id, there.version, ttl).await;
            if let Some(there) = subject.load(id).await {
                assert!(
                    there.ttl <= ttl,
                    "`touch` with {ttl:?} left {:?} to live: a session passes its deadline",
                    there.ttl
                );
            }
            if !ttl.is_zero() {
                subject.outlast(ttl).await;
            }
            subject.is_absent(id, there.version, "the shorter time of a `touch`").await;
        }
    }
}

/// `touch` of any other version than the stored one does nothing: the time to live gets neither longer nor shorter.
pub async fn a_touch_needs_the_version_it_saw<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let first = record(id);
        subject.creates(&first).await;
        let there = Record { ttl: LONG / 2, ..record(id) };
        subject.updates(first.version, &there).await;
        for other in [first.version, version(), there.version ^ 1, 0] {
            for ttl in [LONG * 10, subject.short(), Duration::ZERO] {
                subject.touch(id, other, ttl).await;
                let Some(now) = subject.load(id).await else {
                    panic!("`touch` of another version ended a record: who has just been active is signed out")
                };
                assert!(
                    now.ttl <= there.ttl,
                    "`touch` of another version gave a record more time: a session with a short time outlives it"
                );
                assert!(now.ttl > LONG / 4, "`touch` of another version took time from a record");
            }
        }
    }
}

/// `touch` of a record that has ended does nothing, whatever ended it.
pub async fn a_touch_brings_nothing_back<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        for end in HowItEnds::of(id) {
            let old = subject.made_and_ended(id, end).await;
            subject.touch(id, old.version, LONG).await;
            assert!(
                subject.load(id).await.is_none() && subject.lists(id).await.is_none(),
                "`touch` brought back a record that {end:?} had ended: a logout is undone by a request that only read"
            );
            subject.is_absent(id, old.version, "a `touch` that came too late").await;
        }
    }
}

/// `touch` changes neither version nor payload.
pub async fn a_touch_changes_nothing_but_the_time_to_live<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let there = record(id);
        subject.creates(&there).await;
        subject.touch(id, there.version, LONG).await;
        is_same(&subject.must_load(id).await, &there, "`load` after `touch`");
        if id.owner().is_some() {
            let Some(listed) = subject.lists(id).await else { panic!("`list` lost a record by a `touch`") };
            is_same(&listed, &there, "`list` after `touch`");
        }
        let new = record(id);
        let outcome = subject.update(there.version, &new).await;
        assert!(
            matches!(outcome, Outcome::Done),
            "`touch` changed the version: who writes after somebody else has read runs into a conflict ({outcome:?})"
        );
    }
}

/// `delete` ends a live record and returns `true`. If there is none, it returns `false`.
pub async fn a_delete_ends_and_says_whether_it_was_live<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        assert!(!subject.delete(id).await, "`delete` says that a record was live that never was there");
        let there = record(id);
        subject.creates(&there).await;
        assert!(subject.delete(id).await, "`delete` says that a live record was not there");
        assert!(subject.load(id).await.is_none(), "`delete` left the record: who was revoked stays signed in");
        assert!(!subject.delete(id).await, "a second `delete` says that the record was live");
        subject.is_absent(id, there.version, "`delete`").await;
    }
}

/// How a record ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum HowItEnds {
    Delete,
    UpdateForNoTime,
    Expiry,
    Clear,
}

impl HowItEnds {
    /// Returns the ways in which a record of that name can end.
    pub(super) fn of(id: RecordId) -> &'static [Self] {
        let all = &[Self::Delete, Self::UpdateForNoTime, Self::Expiry, Self::Clear];
        if id.owner().is_some() { all } else { &all[..3] }
    }
}

impl<B: Backend> Subject<B> {
    /// Creates a record and ends it. Returns its last state.
    pub(super) async fn made_and_ended(&self, id: RecordId, end: &HowItEnds) -> Record {
        let ttl = if *end == HowItEnds::Expiry { self.short() } else { LONG };
        let there = Record { ttl, ..record(id) };
        assert!(self.create(&there).await, "`create` refused a name that nothing live has");
        self.ends(&there, end).await
    }

    /// Ends a record. Returns its last state.
    pub(super) async fn ends(&self, there: &Record, end: &HowItEnds) -> Record {
        let id = there.id;
        match (end, id.owner()) {
            (HowItEnds::Expiry, _) => self.outlast(there.ttl).await,
            (HowItEnds::UpdateForNoTime, _) => {
                let out = Record { ttl: Duration::ZERO, ..record(id) };
                self.updates(there.version, &out).await;
                return out;
            }
            (HowItEnds::Clear, Some(owner)) => {
                // Another record stays, so that not all records of the owner are gone.
                let other = record(of(owner));
                self.creates(&other).await;
                let ended = self.clear_others(&other).await;
                assert!(ended == 1, "`clear` says that it ended {ended} records, and not one");
                self.delete(other.id).await;
            }
            _ => assert!(self.delete(id).await, "`delete` says that a live record was not there"),
        }
        there.clone()
    }

    /// Updates a record that may have expired, on a slow machine.
    async fn updates_or_gone(&self, expected: i64, new: &Record) {
        let outcome = self.update(expected, new).await;
        assert!(!matches!(outcome, Outcome::Conflict(_)), "`update` of the expected version is a `Conflict`");
    }

    async fn list_of(&self, id: RecordId) -> Vec<Record> {
        match id.owner() {
            Some(owner) => self.list(owner).await,
            None => Vec::new(),
        }
    }
}
