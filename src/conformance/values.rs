//! Promises about values: times to live, versions and payloads.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    samples::{LONG, both, is_same, of, owner, record, version},
    subject::Subject,
};
use crate::{
    backend::{Backend, Outcome, terms::Terms},
    record::Record,
};

/// A record past its `ttl` does not exist for any method, whichever method is called first.
pub async fn what_has_expired_is_absent_in_every_verb<B: Backend>(subject: &Subject<B>) {
    let short = subject.short();
    // For each method one that no other method has looked at: what expired may not wait for a `load` to be noticed.
    for at in 0..2 {
        let all: Vec<Record> = (0..6).map(|_| Record { ttl: short, ..record(both()[at]) }).collect();
        for record in &all {
            subject.creates(record).await;
        }
        subject.outlast(short).await;
        let [created, updated, touched, deleted, listed, loaded] = &all[..] else { return };
        let new = record(created.id);
        assert!(subject.create(&new).await, "`create` refused the name of a record that had expired");
        is_same(&subject.must_load(created.id).await, &new, "`load` of a name that is used again");
        let outcome = subject.update(updated.version, &record(updated.id)).await;
        assert!(
            matches!(outcome, Outcome::Gone),
            "`update` of an expired record is not `Gone` but {outcome:?}: who was idle too long stays signed in"
        );
        assert!(subject.load(updated.id).await.is_none(), "`update` revived an expired record");
        subject.touch(touched.id, touched.version, LONG).await;
        assert!(
            subject.load(touched.id).await.is_none(),
            "`touch` revived an expired record: who was idle too long is signed in again"
        );
        assert!(!subject.delete(deleted.id).await, "`delete` says that an expired record was live");
        assert!(
            subject.load(loaded.id).await.is_none(),
            "`load` finds an expired record: who was idle too long stays signed in"
        );
        if let Some(owner) = listed.id.owner() {
            assert!(subject.list(owner).await.is_empty(), "`list` shows an expired record: a session that is over");
            let owner = all[3].id.owner().unwrap_or(owner);
            assert!(subject.clear(owner).await == 0, "`clear` counts an expired record");
        }
    }
    // Nor for a `list`: `clear` comes first.
    let owner = owner();
    subject.creates(&Record { ttl: short, ..record(of(owner)) }).await;
    subject.outlast(short).await;
    assert!(subject.clear(owner).await == 0, "`clear` counts an expired record");
}

/// No method returns more time to live than was given: it is never rounded up.
pub async fn a_time_to_live_is_never_lengthened<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        for ttl in [Duration::from_millis(1_500), Duration::from_millis(59_999), Duration::new(3_600, 1)] {
            let first = Record { ttl, ..record(id) };
            let began = Instant::now();
            subject.creates(&first).await;
            let second = Record { ttl, ..record(id) };
            for write in ["create", "update", "touch"] {
                match write {
                    "update" => _ = subject.update(first.version, &second).await,
                    "touch" => subject.touch(id, second.version, ttl).await,
                    _ => {}
                }
                let conflict = match subject.update(version(), &record(id)).await {
                    Outcome::Conflict(there) => Some(there),
                    _ => None,
                };
                let all = [("load", subject.load(id).await), ("list", subject.lists(id).await), ("update", conflict)];
                for (verb, there) in all {
                    let Some(there) = there else {
                        // Only a clock that goes on by itself may have come to its end, or to its last second.
                        let last = subject.short().max(Duration::from_secs(1));
                        let is_over = subject.has_own_clock() && began.elapsed() + last > ttl;
                        assert!(
                            is_over || (verb == "list" && id.owner().is_none()),
                            "`{verb}` does not find a record of {ttl:?} that `{write}` has just written"
                        );
                        continue;
                    };
                    assert!(
                        there.ttl <= ttl,
                        "of {ttl:?} to live `{verb}` shows {:?} after `{write}`: who is idle stays signed in too long",
                        there.ttl
                    );
                }
            }
            if !subject.has_own_clock() {
                subject.outlast(ttl).await;
                assert!(
                    subject.load(id).await.is_none(),
                    "a record lives on after its {ttl:?}, which were rounded up: who is idle stays signed in too long"
                );
            }
            subject.delete(id).await;
        }
        // Whatever the clock: by then it has ended, unless it was given more.
        let blink = Record { ttl: Duration::from_millis(1), ..record(id) };
        assert!(subject.create(&blink).await, "`create` refused a record that lives for a millisecond");
        match subject.has_own_clock() {
            true => tokio::time::sleep(Duration::from_millis(100)).await,
            false => subject.outlast(blink.ttl).await,
        }
        assert!(
            subject.load(id).await.is_none(),
            "a record lives on after its millisecond, which was rounded up: who is idle stays signed in too long"
        );
        subject.is_absent(id, blink.version, "its millisecond").await;
        let never = Record { ttl: Duration::ZERO, ..record(id) };
        subject.create(&never).await;
        subject.is_absent(id, never.version, "being created for no time").await;
    }
}

/// Reading gives no time: neither `load`, `list`, a `Conflict`, nor a refused `create` or `touch` makes a record live longer.
pub async fn looking_gives_no_time<B: Backend>(subject: &Subject<B>) {
    for id in both() {
        let there = record(id);
        subject.creates(&there).await;
        let low = subject.must_load(id).await.ttl;
        let left = subject.left_after_a_while(id).await;
        assert!(left < low, "what is left of a time to live does not fall");
        // Processes may estimate it differently. None of them sees it rise.
        let mut left = subject.left_everywhere(id).await;
        for _ in 0..3 {
            subject.lists(id).await;
            let _ = subject.update(version(), &record(id)).await;
            subject.touch(id, version(), LONG).await;
            subject.create(&record(id)).await;
            subject.scan(100).await;
            subject.count().await;
            if let Some(owner) = id.owner() {
                subject.mark(owner).await;
            }
            let now = subject.left_everywhere(id).await;
            assert!(
                now.iter().zip(&left).all(|(now, left)| now <= left),
                "a record was only looked at, and has more time to live ({now:?} after {left:?}): who is idle stays signed in"
            );
            left = now;
        }
    }
}

/// A time to live can be anything from a millisecond to ten years.
pub async fn times_from_a_millisecond_to_ten_years<B: Backend>(subject: &Subject<B>) {
    const DAY: Duration = Duration::from_secs(86_400);
    for id in both() {
        let mut expected = None;
        for ttl in [DAY, DAY * 25, DAY * 50, DAY * 366, DAY * 3_650] {
            let new = Record { ttl, ..record(id) };
            match expected.replace(new.version) {
                None => subject.creates(&new).await,
                Some(expected) => subject.updates(expected, &new).await,
            }
            subject.touch(id, new.version, ttl).await;
            let there = subject.must_load(id).await;
            is_same(&there, &new, "`load`");
            assert!(
                there.ttl > ttl - ttl / 10,
                "of {ttl:?} to live only {:?} are left at once: who asked to be remembered is signed out",
                there.ttl
            );
        }
        if !subject.has_own_clock() {
            subject.outlast(DAY * 3_600).await;
            assert!(subject.load(id).await.is_some(), "a record does not live for the ten years that it was given");
            subject.outlast(DAY * 50).await;
            assert!(subject.load(id).await.is_none(), "a record lives for more than the ten years that it was given");
        }
        let blink = Record { ttl: Duration::from_millis(1), ..record(id) };
        subject.delete(id).await;
        assert!(subject.create(&blink).await, "`create` refused a record that lives for a millisecond");
        subject.outlast(Duration::from_millis(1)).await;
        subject.is_absent(id, blink.version, "its millisecond").await;
    }
}

/// A time to live that is longer than the backend can count is an error, or cut to the longest time that it can count. It is
/// never a panic, and never cut to a short time.
pub async fn a_time_beyond_all_counting_is_long_or_an_error<B: Backend>(subject: &Subject<B>) {
    let times =
        [Duration::from_secs(u64::from(u32::MAX)), Duration::from_secs(1 << 40), Duration::from_millis(1 << 62)];
    for ttl in times.into_iter().chain([Duration::from_secs(i64::MAX as u64), Duration::MAX]) {
        for id in both() {
            let (first, second) = (record(id), Record { ttl, ..record(id) });
            let created = without_panic(subject, "create", ttl, {
                let new = Record { ttl, ..record(id) };
                async move |subject: Subject<B>| subject.backend().create(new, Terms::default()).await.map(drop)
            });
            let outlives = "though it was to live for more than a hundred years";
            if created.await {
                let there = subject.load(id).await;
                assert!(there.is_some(), "a record is gone as soon as it was created, {outlives}: {ttl:?}");
                subject.delete(id).await;
            }
            assert!(subject.load(id).await.is_none(), "`create` failed, and yet the record is there");
            subject.creates(&first).await;
            let updated = without_panic(subject, "update", ttl, {
                let (expected, new) = (first.version, second.clone());
                async move |subject: Subject<B>| subject.backend().update(expected, new, false).await.map(drop)
            });
            let there = if updated.await { &second } else { &first };
            is_same(&subject.must_load(id).await, there, "`load` after a very long `update`");
            let _ = without_panic(subject, "touch", ttl, {
                let version = there.version;
                async move |subject: Subject<B>| subject.backend().touch(id, version, ttl).await
            })
            .await;
            let left = subject.must_load(id).await.ttl;
            assert!(left > LONG / 2, "a record has {left:?} left at once, {outlives}: {ttl:?}");
        }
    }
}

/// A version can be any `i64` that is not negative, and is stored and compared to the last bit.
pub async fn any_version_that_is_not_negative<B: Backend>(subject: &Subject<B>) {
    // Zero, one, what a double or 32 bits cannot tell from its neighbour, and the largest there is.
    let doubles = 1_i64 << 53;
    let all =
        [1, i64::from(u32::MAX), 0, 1 << 32, doubles, doubles + 1, version(), i64::MAX - 1, i64::MAX, i64::MAX - 512];
    for id in both() {
        let zero = Record { version: 0, ..record(id) };
        subject.creates(&zero).await;
        is_same(&subject.must_load(id).await, &zero, "`load`");
    }
    for id in both() {
        let mut there = Record { version: 7, ..record(id) };
        subject.creates(&there).await;
        for version in all {
            let new = Record { version, ..record(id) };
            subject.updates(there.version, &new).await;
            is_same(&subject.must_load(id).await, &new, "`load`");
            for near in [version ^ 1, version ^ (1 << 32), version ^ (1 << 62)] {
                let outcome = subject.update(near, &record(id)).await;
                let Outcome::Conflict(conflict) = outcome else {
                    panic!("`update` took version {version} for {near}: a parallel change is lost")
                };
                is_same(&conflict, &new, "`Conflict`");
            }
            subject.touch(id, version ^ 1, Duration::ZERO).await;
            assert!(subject.load(id).await.is_some(), "`touch` took version {version} for {}", version ^ 1);
            there = new;
        }
    }
}

/// A payload can be any bytes, from none to 1 MiB. `load`, `list` and `Conflict` show it unchanged.
pub async fn any_bytes_are_a_payload<B: Backend>(subject: &Subject<B>) {
    let every: Vec<u8> = (0..=255).collect();
    let mut x = 1_u32;
    let noise = (0..1 << 20).map(|_| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    });
    let all: Vec<Bytes> = vec![
        Bytes::new(),
        every.into(),
        noise.collect::<Vec<u8>>().into(),
        Bytes::new(),
        Bytes::from_static(b"\0"),
        Bytes::from_static(b"\0\0text after zeros\0"),
        Bytes::from_static(b" \r\n\t line\nbreaks and spaces \r\n"),
        Bytes::from_static(b"'; DROP TABLE sessions; -- \\ \" % _ $1 {} ${x}"),
        Bytes::from_static(b"\xff\xfe\xc3\x28 not UTF-8"),
        Bytes::from_static(b"\xef\xbb\xbf{\"json\":  [1.0, null]}"),
        Bytes::from_static("\u{1F511} e\u{301}".as_bytes()),
        vec![0; 1 << 20].into(),
    ];
    for id in both() {
        let mut there: Option<Record> = None;
        for payload in &all {
            let new = Record { payload: payload.clone(), ..record(id) };
            match &there {
                None => subject.creates(&new).await,
                Some(there) => subject.updates(there.version, &new).await,
            }
            is_same(&subject.must_load(id).await, &new, "`load`");
            if let Some(listed) = subject.lists(id).await {
                is_same(&listed, &new, "`list`");
            }
            match subject.update(version(), &record(id)).await {
                Outcome::Conflict(conflict) => is_same(&conflict, &new, "`Conflict`"),
                other => panic!("`update` of another version is no `Conflict` but {other:?}"),
            }
            // Created with it, too.
            assert!(subject.delete(id).await, "`delete` says that a live record was not there");
            let again = Record { payload: payload.clone(), ..record(id) };
            subject.creates(&again).await;
            is_same(&subject.must_load(id).await, &again, "`load`");
            there = Some(again);
        }
    }
}

/// Says whether a call succeeded. It may fail, but not panic.
async fn without_panic<B: Backend, F>(
    subject: &Subject<B>,
    verb: &str,
    ttl: Duration,
    call: impl FnOnce(Subject<B>) -> F,
) -> bool
where
    F: Future<Output = crate::backend::Result<()>> + Send + 'static,
{
    match tokio::spawn(call(subject.clone())).await {
        Ok(answer) => answer.is_ok(),
        Err(_) => panic!("`{verb}` panicked at a time to live of {ttl:?}, which is an error or as long as it can be"),
    }
}
