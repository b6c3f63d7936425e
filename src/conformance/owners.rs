//! Promises about an owner's records: `list`, `clear`, and whose records are whose.

use std::{collections::BTreeMap, time::Duration};

use super::{
    samples::{LONG, anonymous, is_same, of, owner, record},
    subject::Subject,
    verbs::by,
};
use crate::{
    backend::{Backend, Outcome, clear::Cleared},
    record::{
        Record,
        id::{Owner, RecordId},
    },
};

/// `list` returns every live record of its owner unchanged, and no other record.
pub async fn a_list_is_complete_and_only_its_owners<B: Backend>(subject: &Subject<B>) {
    let (ada, grace) = (owner(), owner());
    let mut of_ada = BTreeMap::new();
    for at in 0..12 {
        let new = Record { ttl: LONG - Duration::from_secs(at), ..record(of(ada)) };
        subject.creates(&new).await;
        subject.creates(&record(of(grace))).await;
        subject.creates(&record(anonymous())).await;
        of_ada.insert(new.id, new);
    }
    let listed = subject.list(ada).await;
    assert!(
        listed.len() == of_ada.len(),
        "`list` shows {} of {} live records: a session that its user cannot see, nor end",
        listed.len(),
        of_ada.len()
    );
    for there in &listed {
        let Some(new) = of_ada.get(&there.id) else { panic!("`list` shows a record that was never created") };
        is_same(there, new, "`list`");
        assert!(there.ttl > LONG / 2, "`list` shows less time to live than is left");
    }
    assert!(subject.list(grace).await.len() == 12, "`list` of another owner is not complete");
}

/// `list` shows the effect of every other method at once.
pub async fn a_list_follows_every_write<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    let stays = record(of(owner));
    subject.creates(&stays).await;
    let first = record(of(owner));
    let id = first.id;
    subject.creates(&first).await;
    let second = Record { ttl: LONG / 2, ..record(id) };
    subject.updates(first.version, &second).await;
    let Some(listed) = subject.lists(id).await else { panic!("`list` lost a record by an `update`") };
    is_same(&listed, &second, "`list` after `update`");
    subject.touch(id, second.version, LONG / 4).await;
    let Some(listed) = subject.lists(id).await else { panic!("`list` lost a record by a `touch`") };
    is_same(&listed, &Record { ttl: LONG / 4, ..second.clone() }, "`list` after `touch`");
    subject.updates(second.version, &Record { ttl: Duration::ZERO, ..record(id) }).await;
    assert!(subject.lists(id).await.is_none(), "`list` shows a session after its logout");
    let third = record(id);
    subject.creates(&third).await;
    let Some(listed) = subject.lists(id).await else { panic!("`list` does not show a name that is used again") };
    is_same(&listed, &third, "`list` after a second `create`");
    assert!(subject.delete(id).await, "`delete` says that a live record was not there");
    assert!(subject.lists(id).await.is_none(), "`list` shows a record after its `delete`");
    assert!(subject.list(owner).await.len() == 1, "`list` lost a record that nothing was done to");
    assert!(subject.clear(owner).await == 1, "`clear` does not count the one record that is left");
    assert!(subject.list(owner).await.is_empty(), "`list` shows records after `clear`");
}

/// `clear` ends all records of its owner and returns how many. Records of other owners, and records without an owner, do not
/// change.
pub async fn a_clear_ends_all_of_its_owner<B: Backend>(subject: &Subject<B>) {
    let (ada, grace) = (owner(), owner());
    let of_ada: Vec<_> = (0..8).map(|_| record(of(ada))).collect();
    let others = [record(of(grace)), record(of(grace)), record(anonymous())];
    for record in of_ada.iter().chain(&others) {
        subject.creates(record).await;
    }
    // A record that was written and read since ends like the others.
    let later = record(of_ada[3].id);
    subject.updates(of_ada[3].version, &later).await;
    subject.touch(of_ada[4].id, of_ada[4].version, LONG).await;
    let ended = subject.clear(ada).await;
    for old in &of_ada {
        assert!(
            subject.load(old.id).await.is_none(),
            "`clear` forgot a record: who signed out everywhere is still signed in somewhere"
        );
        subject.is_absent(old.id, old.version, "`clear`").await;
    }
    subject.is_absent(later.id, later.version, "`clear`").await;
    assert!(ended == 8, "`clear` says that it ended {ended} records, and they were 8");
    assert!(subject.list(ada).await.is_empty(), "`list` shows records after `clear`");
    assert!(subject.clear(ada).await == 0, "a second `clear` counts records that the first one ended");
    for other in &others {
        let Some(there) = subject.load(other.id).await else {
            panic!("`clear` ended a record that is not its owner's: somebody else is signed out")
        };
        is_same(&there, other, "`load` after the `clear` of another");
    }
    assert!(subject.list(grace).await.len() == 2, "`clear` took a record from the list of another owner");
}

/// `clear` does not count records that have expired, were deleted or were signed out.
pub async fn a_clear_counts_only_what_was_live<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    let short = Record { ttl: subject.short(), ..record(of(owner)) };
    subject.creates(&short).await;
    subject.outlast(short.ttl).await;
    let deleted = record(of(owner));
    subject.creates(&deleted).await;
    assert!(subject.delete(deleted.id).await, "`delete` says that a live record was not there");
    let out = record(of(owner));
    subject.creates(&out).await;
    subject.updates(out.version, &Record { ttl: Duration::ZERO, ..record(out.id) }).await;
    subject.creates(&record(of(owner))).await;
    subject.creates(&record(of(owner))).await;
    let ended = subject.clear(owner).await;
    assert!(
        ended == 2,
        "`clear` counts {ended} records where 2 were live and 3 had ended: a user is told of sessions that have ended"
    );
}

/// `clear` neither changes nor counts the record to `keep`.
pub async fn a_clear_spares_the_one_to_keep<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    let kept = Record { ttl: LONG / 2, ..record(of(owner)) };
    subject.creates(&kept).await;
    for others in [3_u64, 0] {
        let ids: Vec<_> = (0..others).map(|_| of(owner)).collect();
        for id in &ids {
            subject.creates(&record(*id)).await;
        }
        let ended = subject.clear_others(&kept).await;
        let Some(there) = subject.load(kept.id).await else {
            panic!("`clear` ended the record that it was to keep: who signs out everywhere else is signed out here")
        };
        is_same(&there, &kept, "`load` of what `clear` kept");
        assert!(there.ttl > LONG / 4, "`clear` took time from the record that it was to keep");
        assert!(
            ended == others,
            "`clear` says that it ended {ended} records, and they were {others} beside the one kept"
        );
        for id in ids {
            assert!(
                subject.load(id).await.is_none(),
                "`clear` kept more than the one: who signs out everywhere else is still signed in somewhere"
            );
        }
        let listed = subject.list(owner).await;
        assert!(
            listed.len() == 1,
            "`list` shows {} records and not the one that `clear` kept: a session that its user cannot see, nor end",
            listed.len()
        );
        is_same(&listed[0], &kept, "`list` of what `clear` kept");
    }
    let new = record(kept.id);
    subject.updates(kept.version, &new).await;
    subject.touch(new.id, new.version, LONG).await;
    is_same(&subject.must_load(new.id).await, &new, "`load` of what `clear` kept, updated");
    assert!(subject.clear(owner).await == 1, "`clear` does not count a record that an earlier one kept");
    subject.is_absent(new.id, new.version, "a `clear` after one that kept it").await;
}

/// `clear` by a record that belongs to another owner or to none, does not exist or has ended is `Gone`, and ends nothing.
pub async fn a_clear_by_what_is_not_the_owners_is_gone<B: Backend>(subject: &Subject<B>) {
    let (ada, grace) = (owner(), owner());
    let expired = Record { ttl: subject.short(), ..record(of(ada)) };
    subject.creates(&expired).await;
    subject.outlast(expired.ttl).await;
    let ended = record(of(ada));
    subject.creates(&ended).await;
    subject.delete(ended.id).await;
    let live = [record(of(ada)), record(of(ada))];
    let (others, nobodys) = (record(same_sid(live[0].id, Some(grace))), record(same_sid(live[0].id, None)));
    for record in live.iter().chain([&others, &nobodys]) {
        subject.creates(record).await;
    }
    for (keep, asks) in [true, false]
        .into_iter()
        .flat_map(|keep| [&expired, &ended, &others, &nobodys, &record(of(ada))].map(|record| (keep, by(record, keep))))
    {
        let answer = subject.clear_as(ada, asks).await;
        assert!(
            subject.list(ada).await.len() == 2,
            "`clear` by a record that is not the owner's, or has ended, did something: who holds the ID of a session that \
             was revoked signs the user out"
        );
        assert!(
            matches!(answer, Cleared::Gone),
            "`clear` by a record that is not the owner's, or has ended, is not `Gone` but {answer:?} (keep: {keep})"
        );
    }
    for record in live.iter().chain([&others, &nobodys]) {
        is_same(&subject.must_load(record.id).await, record, "`load` after a `clear` that was `Gone`");
    }
    subject.is_absent(expired.id, expired.version, "a `clear` that was `Gone`").await;
    subject.is_absent(ended.id, ended.version, "a `clear` that was `Gone`").await;
}

/// Records that are created after a `clear` are live, even under their old names.
pub async fn after_a_clear_new_ones_begin<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    let mut id = of(owner);
    for _ in 0..3 {
        subject.creates(&record(id)).await;
        assert!(subject.clear(owner).await == 1, "`clear` does not count the one record there is");
        let (again, new) = (record(id), record(of(owner)));
        for record in [&again, &new] {
            assert!(subject.create(record).await, "`create` refused a name after `clear`: nobody can sign in again");
            let Some(there) = subject.load(record.id).await else {
                panic!("a record created after a `clear` is not there: a user who signs in again is not")
            };
            is_same(&there, record, "`load` after `clear` and `create`");
        }
        assert!(subject.list(owner).await.len() == 2, "`list` does not show what was created after a `clear`");
        assert!(subject.clear(owner).await == 2, "`clear` does not count what was created after another");
        id = new.id;
    }
}

/// The same `sid` under two owners and without an owner is three records, for every method.
pub async fn one_sid_of_two_owners_is_two_records<B: Backend>(subject: &Subject<B>) {
    let (ada, grace) = (owner(), owner());
    let id = of(ada);
    // They have the same version, so it cannot distinguish them.
    let version = record(id).version;
    let all = [id, same_sid(id, Some(grace)), same_sid(id, None)].map(|id| Record { version, ..record(id) });
    for record in &all {
        assert!(
            subject.create(record).await,
            "`create` refused a `sid` that only another owner has: owners are mixed up"
        );
    }
    for record in &all {
        is_same(&subject.must_load(record.id).await, record, "`load` of a `sid` that three have");
    }
    for owner in [ada, grace] {
        assert!(subject.list(owner).await.len() == 1, "`list` mixes up owners that have the same `sid`");
    }
    let [of_ada, of_grace, of_nobody] = &all;
    let new = record(of_ada.id);
    subject.updates(of_ada.version, &new).await;
    subject.touch(of_grace.id, of_grace.version, LONG / 2).await;
    is_same(&subject.must_load(of_ada.id).await, &new, "`load` after `update`");
    is_same(&subject.must_load(of_grace.id).await, of_grace, "`load` of another owner's record, after an `update`");
    is_same(&subject.must_load(of_nobody.id).await, of_nobody, "`load` of nobody's record, after an `update`");
    assert!(subject.must_load(of_nobody.id).await.ttl > LONG / 2, "`touch` shortened the record of another owner");
    assert!(subject.must_load(of_ada.id).await.ttl > LONG / 2, "`touch` shortened the record of another owner");
    assert!(
        matches!(subject.update(new.version, &record(of_nobody.id)).await, Outcome::Conflict(_)),
        "`update` took the version of another owner's record"
    );
    assert!(subject.clear(ada).await == 1, "`clear` counts records of another owner");
    assert!(
        subject.load(of_grace.id).await.is_some() && subject.load(of_nobody.id).await.is_some(),
        "`clear` ended the record of another owner that has the same `sid`"
    );
    assert!(subject.delete(of_nobody.id).await, "`delete` does not find nobody's record");
    assert!(subject.load(of_grace.id).await.is_some(), "`delete` ended the record of another that has the same `sid`");
    assert!(subject.delete(of_grace.id).await, "`delete` does not find a record whose `sid` others had");
}

/// Names are compared byte by byte. Two names are different even if they differ only in case, or in `_` and `-`, or if one
/// begins with the other.
pub async fn names_are_taken_to_the_letter<B: Backend>(subject: &Subject<B>) {
    // Random where it does not matter, because the store may contain records of an earlier run.
    let base = of(owner());
    let sid = |end: &str| format!("{}{end}", &base.sid()[..16]);
    let sids: Vec<String> = [
        "abcdef",
        "ABCDEF",
        "abcdeF",
        "_bcdef",
        "-bcdef",
        "______",
        "------",
        "abcdef_",
        "abcdefg",
        "abcdefG",
        "abcdef-0123456789ABCDXYZxyz",
        "abcdef-0123456789ABCDXYZxyZ",
        "0123456789abcdefghijklmnopq",
        "RSTUVWXYZABCDEFGHIJKLMNOPQ_",
        "rstuvwxyz------------------",
    ]
    .map(sid)
    .into();
    // Owners that differ in the case of a letter, in one bit, and in nothing but `_` and `-`.
    let text = base.owner().map(|owner| owner.to_string()).unwrap_or_default();
    let owners =
        ["aaaaaA", "aaaaAA", "AAAAAA", "____-A", "---_-A", "____-Q"].map(|end| format!("{}{end}", &text[..16]));
    let mut ids: Vec<RecordId> = sids.iter().map(|sid| name(sid)).collect();
    for owner in &owners {
        ids.extend(sids.iter().map(|sid| name(&format!("{owner}.{sid}"))));
    }
    let all: Vec<Record> = ids.into_iter().map(record).collect();
    for record in &all {
        assert!(
            subject.create(record).await,
            "`create` takes two names for one that differ in a letter or its case: one session takes another's place"
        );
    }
    for record in &all {
        let there = subject.must_load(record.id).await;
        assert!(
            there.version == record.version,
            "`load` takes two names for one that differ in a letter or its case: a user gets another's session"
        );
    }
    let owners: Vec<Owner> = all.iter().filter_map(|record| record.id.owner()).collect();
    for owner in owners.chunks(sids.len()) {
        let listed = subject.list(owner[0]).await.len();
        assert!(listed == sids.len(), "`list` shows {listed} records of {}, of owners with similar names", sids.len());
    }
    // Only underscores, because each matches any character in an SQL `LIKE`.
    let keep = name(&format!("{}.{}", owners[0], sids[5]));
    let ended = subject.clear_others(&subject.must_load(keep).await).await;
    assert!(
        ended == sids.len() as u64 - 1,
        "`clear` ended {ended} records of {} beside the one kept, all with similar names",
        sids.len() - 1
    );
    assert!(subject.clear(owners[0]).await == 1, "`clear` did not keep the one it was to, of similar names");
    let one = &all[0];
    assert!(subject.delete(one.id).await, "`delete` does not find a record among similar names");
    for record in all.iter().skip(1).filter(|record| record.id.owner() != Some(owners[0])) {
        assert!(
            subject.load(record.id).await.is_some(),
            "`clear` or `delete` ended a record whose name is only similar: somebody else is signed out"
        );
    }
}

/// An owner can have 500 records: `list` shows all of them, `clear` ends all of them.
pub async fn five_hundred_of_one_owner<B: Backend>(subject: &Subject<B>) {
    let owner = owner();
    let ids: Vec<_> = (0..500).map(|_| of(owner)).collect();
    for id in &ids {
        subject.creates(&record(*id)).await;
    }
    let listed = subject.list(owner).await;
    let shown = listed.len();
    assert!(shown == 500, "`list` shows {shown} of 500 records: sessions that their user cannot see, nor end");
    let ended = subject.clear_others(&subject.must_load(ids[250]).await).await;
    assert!(ended == 499, "`clear` says that it ended {ended} of 500 records, all but one");
    for id in &ids {
        let there = subject.load(*id).await.is_some();
        assert!(
            there == (*id == ids[250]),
            "of 500 records `clear` ended not all, or the one to keep: who signed out everywhere is still signed in"
        );
    }
    assert!(subject.list(owner).await.len() == 1, "`list` does not show the one of 500 records that `clear` kept");
}

/// Returns the name with the same `sid` under another owner.
fn same_sid(id: RecordId, owner: Option<Owner>) -> RecordId {
    match owner {
        Some(owner) => name(&format!("{owner}.{}", id.sid())),
        None => name(id.sid()),
    }
}

fn name(text: &str) -> RecordId {
    match text.parse() {
        Ok(id) => id,
        Err(error) => panic!("{error}"),
    }
}
