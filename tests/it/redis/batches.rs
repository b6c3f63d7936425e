//! Writes that are ready at the same time: they share one script call, and each gets its own answer.

use std::{cell::Cell, future::poll_fn, pin::Pin, task::Poll, time::Duration};

use futures_util::future::join_all;
use jam_session::{
    Backend, Created, Outcome, Record, RecordId, RedisBackend, RedisSessions, Since, Terms, backend::Result as Answer,
};
use tokio::runtime::Runtime;

use super::{
    contract::{HOUR, anonymous, of, owner, payload, record, update},
    faults::{brief, in_time_or_none, is_too_slow, runtime},
    harness::{Place, Topology, binaries, connected},
    process::{Process, until},
    proxy::Proxy,
    replays::scripts_run,
    wire::Wire,
};
use crate::store::{Plain, eventually, in_time, lasting};

crate::on_every_redis!(
    updates_at_the_same_moment_are_answered_one_by_one,
    creates_at_the_same_moment_are_answered_one_by_one,
);

/// Twenty records of users and visitors.
fn many() -> Vec<RecordId> {
    let ids = |at| [of(owner(&format!("u{}", at / 2)), &format!("s{at}")), anonymous(&format!("v{at}"))];
    (0..10).flat_map(ids).collect()
}

/// A record as it would be written after it was loaded, and the version that is there.
async fn change(backend: &RedisBackend, id: RecordId, version: i64, payload: &str) -> (i64, Record) {
    let there = backend.load(id).await.unwrap().expect("it is there");
    // A shorter life: the Redis key never has to live longer for it.
    let mut next = lasting(HOUR / 2, record(id, version, payload));
    next.hint = there.hint;
    (there.version, next)
}

/// Creates the records, and changes each as it would be written at the same moment.
async fn changes(backend: &RedisBackend, ids: &[RecordId]) -> Vec<(i64, Record)> {
    let mut changes = Vec::new();
    for id in ids {
        assert!(backend.creates(record(*id, 1, "x")).await.unwrap());
        changes.push(change(backend, *id, 2, "y").await);
    }
    changes
}

async fn update_all(backend: &RedisBackend, changes: &[(i64, Record)]) -> Vec<&'static str> {
    update_all_in_time(backend, changes).await.expect("it is in time")
}

/// `None` if there was no time for one of them.
async fn update_all_in_time(backend: &RedisBackend, changes: &[(i64, Record)]) -> Option<Vec<&'static str>> {
    let updates = changes.iter().map(|(expected, next)| backend.updates(*expected, next.clone()));
    let said = |answer| match in_time_or_none(answer)? {
        Outcome::Done => Some("done"),
        Outcome::Gone => Some("gone"),
        Outcome::Conflict(_) => Some("conflict"),
        other => panic!("{other:?}"),
    };
    join_all(updates).await.into_iter().map(said).collect()
}

/// First records of visitors, with this version.
fn visitors(count: usize, version: i64) -> Vec<Record> {
    (0..count).map(|at| record(anonymous(&format!("v{at}")), version, &version.to_string())).collect()
}

fn said(answer: Answer<Created>) -> &'static str {
    match answer {
        Ok(Created::Done { .. }) => "done",
        Ok(Created::Taken) => "taken",
        Ok(Created::Late) => "late",
        Ok(other) => panic!("{other:?}"),
        Err(error) if error.to_string().contains("it is not known whether") => "unknown",
        Err(error) => panic!("{error}"),
    }
}

async fn create_all(backend: &RedisBackend, records: &[Record]) -> Vec<&'static str> {
    create_all_in_time(backend, records).await.expect("it is in time")
}

/// `None` if there was no time for one of them.
async fn create_all_in_time(backend: &RedisBackend, records: &[Record]) -> Option<Vec<&'static str>> {
    let all = records.iter().map(|record| backend.create(record.clone(), Terms::default()));
    let answers = join_all(all).await;
    let are_in_time = !answers.iter().any(|answer| answer.as_ref().is_err_and(is_too_slow));
    are_in_time.then(|| answers.into_iter().map(said).collect())
}

async fn updates_at_the_same_moment_are_answered_one_by_one(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ids) = (sessions.backend(), many());
    let mut changes = changes(backend, &ids).await;
    let mut expected = vec!["done"; ids.len()];
    // Some are gone, some were written by others, and one of these has written the same.
    for at in [0, 1, 10] {
        assert!(backend.delete(ids[at]).await.unwrap());
        expected[at] = "gone";
    }
    for at in [2, 3, 19] {
        assert_eq!(update(backend, 1, record(ids[at], 7, "theirs")).await, "done");
        expected[at] = "conflict";
    }
    for at in [4, 5] {
        assert_eq!(update(backend, 1, changes[at].1.clone()).await, "done");
    }
    // Two of one record: one of them is a conflict.
    changes.push((1, lasting(HOUR / 2, record(ids[6], 3, "z"))));
    changes[20].1.hint = changes[6].1.hint.clone();
    // Some have no hint, or what they write goes elsewhere.
    changes[7].1.hint = Default::default();
    let large = "z".repeat(3_000);
    for at in [8, 9] {
        changes[at].1.payload = large.clone().into();
    }
    changes[12].1.ttl = HOUR * 3;
    changes[14].1.ttl = Duration::ZERO;

    let mut said = update_all(backend, &changes).await;
    let mut of_one = [said.remove(6), said.pop().unwrap()];
    of_one.sort_unstable();
    assert_eq!(of_one, ["conflict", "done"]);
    expected.remove(6);
    assert_eq!(said, expected);
    for (at, id) in ids.iter().enumerate() {
        let there = payload(backend, *id).await;
        match at {
            0 | 1 | 10 | 14 => assert_eq!(there, None),
            2 | 3 | 19 => assert_eq!(there.as_deref(), Some("theirs")),
            6 => assert!(["y", "z"].contains(&there.unwrap().as_str())),
            8 | 9 => assert_eq!(there.as_deref(), Some(&large[..])),
            _ => assert_eq!(there.as_deref(), Some("y")),
        }
    }
}

async fn creates_at_the_same_moment_are_answered_one_by_one(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, mut all) = (sessions.backend(), visitors(16, 1));
    let mut terms = vec![Terms::default(); all.len()];
    let mut expected = vec!["done"; all.len()];
    // Some are there: others', the same, and the same that was written to since.
    for at in [0, 1] {
        assert!(backend.creates(record(all[at].id, 7, "theirs")).await.unwrap());
        expected[at] = "taken";
    }
    for at in [2, 3] {
        assert!(backend.creates(all[at].clone()).await.unwrap());
    }
    assert_eq!(update(backend, 1, record(all[3].id, 8, "later")).await, "done");
    // Some have ended: others', the same, and the same before a repeat.
    assert!(backend.creates(record(all[4].id, 7, "theirs")).await.unwrap());
    assert!(backend.creates(all[5].clone()).await.unwrap());
    assert!(backend.creates(all[6].clone()).await.unwrap());
    for at in [4, 5, 6] {
        assert!(backend.delete(all[at].id).await.unwrap());
    }
    terms[6].retry = true;
    expected[6] = "unknown";
    // A key of another type, and a record of another format.
    for (at, command) in [(7, ["RPUSH", "x"]), (8, ["SET", "\u{3}"])] {
        assert!(backend.creates(all[at].clone()).await.unwrap());
        let (server, key) = place.keys().into_iter().find(|(_, key)| key.contains(all[at].id.sid())).unwrap();
        assert_eq!(server.ask(&["DEL", &key]).number(), 1);
        server.ask(&[command[0], &key, command[1]]);
    }
    expected[8] = "taken";
    // Some do not go with others.
    all[9].payload = "z".repeat(3_000).into();
    terms[10].retry = true;
    terms[11].since = Some(Since::Age(HOUR));
    expected[11] = "late";
    terms[12].since = Some(Since::Age(Duration::from_secs(1)));
    all.push(record(of(owner("ada"), "one"), 1, "1"));
    terms.push(Terms::default());
    expected.push("done");

    let answers = join_all(all.iter().zip(terms).map(|(record, terms)| backend.create(record.clone(), terms))).await;
    assert_eq!(answers.into_iter().map(said).collect::<Vec<_>>(), expected);
    for (at, Record { id, payload: written, .. }) in all.iter().enumerate() {
        // That cannot be read.
        if at == 8 {
            continue;
        }
        let there = payload(backend, *id).await;
        match at {
            0 | 1 => assert_eq!(there.as_deref(), Some("theirs")),
            3 => assert_eq!(there.as_deref(), Some("later")),
            5 | 6 | 11 => assert_eq!(there, None, "{at}"),
            _ => assert_eq!(there.unwrap().as_bytes(), &written[..], "{at}"),
        }
    }
    // Two of one name: one of them is later.
    let same = [record(anonymous("same"), 1, "1"), record(anonymous("same"), 2, "2")];
    let mut said = create_all(backend, &same).await;
    said.sort_unstable();
    assert_eq!(said, ["done", "taken"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_to_32_creates_go_in_one_call_also_with_updates() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        let backend = sessions.backend();
        let new = visitors(40, 1);
        let calls = async |new: &[Record]| {
            let before = scripts_run(&server);
            assert!(create_all(backend, new).await.iter().all(|said| *said == "done"));
            scripts_run(&server) - before
        };
        assert_eq!(calls(&new).await, 2);
        // Each of these is there already, which only a call of its own can tell.
        assert_eq!(calls(&new[..8]).await, 9);
        for count in [1, 2, 32] {
            server.ask(&["FLUSHALL"]);
            assert_eq!(calls(&new[..count]).await, 1, "{count}");
            for key in new[..count].iter().map(|new| format!("sessions:{{{}}}:a", new.id.sid())) {
                let life = server.ask(&["PTTL", &key]).number();
                assert!((3_600_000 / 2..=3_610_000).contains(&life), "{key}: {life}");
            }
        }
        server.ask(&["FLUSHALL"]);
        let ids = many();
        let changes = changes(backend, &ids).await;
        let before = scripts_run(&server);
        let (updated, created) = tokio::join!(update_all(backend, &changes), create_all(backend, &new[30..]));
        assert!(updated.iter().chain(&created).all(|said| *said == "done"));
        assert_eq!(scripts_run(&server) - before, 1);
    }
}

/// Loses the request of these writes, or the answer, and lets others do something before it is missed.
async fn lose<T>(
    proxy: &Proxy,
    lost: &str,
    writes: impl Future<Output = Option<T>>,
    meanwhile: impl Future<Output = ()>,
) -> Option<T> {
    proxy.hold(true);
    match lost {
        "request" => proxy.swallow_next_request(),
        _ => proxy.swallow_next_answer(),
    }
    let is_answered = Cell::new(false);
    let ((), said) = tokio::join!(
        async {
            eventually(async || proxy.has_swallowed() || is_answered.get()).await;
            if proxy.has_swallowed() {
                meanwhile.await;
            }
            proxy.hold(false);
        },
        async {
            let said = writes.await;
            is_answered.set(true);
            said
        }
    );
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_whose_answer_was_lost_are_done_once() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        let sessions = connected(|| RedisSessions::builder(proxy.uri())).await;
        let direct = connected(|| RedisSessions::builder(server.uri())).await;
        let (backend, others, new) = (sessions.backend(), direct.backend(), visitors(8, 1));
        // Together with others, and alone.
        for (lost, count) in [("request", 8), ("answer", 8), ("request", 1), ("answer", 1)] {
            // All of that takes no longer than one operation may take, or it is tried again.
            let said = in_time(async || {
                server.ask(&["FLUSHALL"]);
                // A connection that there is, and the only thing that is lost.
                assert!(in_time_or_none(backend.load(new[0].id).await)?.is_none());
                let creates = create_all_in_time(backend, &new[..count]);
                let meanwhile = async {
                    for (at, Record { id, .. }) in new[..count].iter().enumerate() {
                        let is_there = others.load(*id).await.unwrap().is_some();
                        assert_eq!(is_there, lost == "answer");
                        match at % 4 {
                            1 if is_there => assert!(others.delete(*id).await.unwrap()),
                            2 if is_there => assert_eq!(update(others, 1, record(*id, 2, "later")).await, "done"),
                            3 if !is_there => assert!(others.creates(record(*id, 3, "theirs")).await.unwrap()),
                            _ => {}
                        }
                    }
                };
                lose(&proxy, lost, creates, meanwhile).await
            })
            .await;
            for (at, said) in said.into_iter().enumerate() {
                let there = payload(backend, new[at].id).await;
                let expected = match (lost, at % 4) {
                    // It was there, and has ended.
                    ("answer", 1) => ("unknown", None),
                    ("answer", 2) => ("done", Some("later")),
                    ("request", 3) => ("taken", Some("theirs")),
                    _ => ("done", Some("1")),
                };
                assert_eq!((said, there.as_deref()), expected, "{lost} {at} of {count}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_delivered_again_or_late_do_nothing() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        let direct = connected(|| RedisSessions::builder(server.uri())).await;
        let sessions = connected(|| RedisSessions::builder(proxy.uri())).await;
        let new = visitors(2, 1);
        assert_eq!(create_all(sessions.backend(), &new).await, ["done", "done"]);
        let said = proxy.last_request();
        // While it is there, when it was written to, and when it has ended.
        for step in ["there", "later", "ended"] {
            for Record { id, .. } in &new {
                match step {
                    "later" => assert_eq!(update(direct.backend(), 1, record(*id, 2, "later")).await, "done"),
                    "ended" => assert!(direct.backend().delete(*id).await.unwrap()),
                    _ => {}
                }
            }
            let answer = Wire::connect(&server.address).unwrap().send(&said).unwrap().list();
            let left: Vec<i64> = answer[1..].iter().map(|number| number.clone().number()).collect();
            assert_eq!(left, [1, 2], "{step}");
            for Record { id, .. } in &new {
                let there = payload(direct.backend(), *id).await;
                let expected = match step {
                    "there" => Some("1"),
                    "later" => Some("later"),
                    _ => None,
                };
                assert_eq!(there.as_deref(), expected);
            }
        }

        for count in [1, 2] {
            server.ask(&["FLUSHALL"]);
            let late = brief(proxy.uri()).await;
            let before = scripts_run(&server);
            proxy.freeze_all();
            // What a busy machine has not even sent by the time that it is given up cannot arrive.
            in_time(async || {
                let trips = proxy.trips();
                let said = join_all(new[..count].iter().map(|new| late.backend().creates(new.clone())));
                assert!(said.await.iter().all(Result::is_err));
                (proxy.trips() > trips).then_some(())
            })
            .await;
            proxy.thaw();
            until("it has arrived", || scripts_run(&server) > before);
            for Record { id, .. } in &new {
                assert_eq!(payload(direct.backend(), *id).await, None);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_to_32_updates_go_in_one_call() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        let backend = sessions.backend();
        let ids: Vec<RecordId> = (0..40).map(|at| of(owner("ada"), &format!("s{at}"))).collect();
        let first = changes(backend, &ids).await;
        let calls = async |changes: &[(i64, Record)]| {
            let before = scripts_run(&server);
            assert!(update_all(backend, changes).await.iter().all(|said| *said == "done"));
            scripts_run(&server) - before
        };
        assert_eq!(calls(&first).await, 2);
        for count in [1, 2, 32] {
            let mut changes = Vec::new();
            for id in &ids[..count] {
                changes.push(change(backend, *id, 100 + i64::try_from(count).unwrap(), "y").await);
            }
            assert_eq!(calls(&changes).await, 1, "{count}");
        }
        // Each of these is there already, which only a call of its own can tell.
        assert_eq!(calls(&first[32..]).await, 9);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_another_type_spoils_no_other_update() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        let (backend, ids) = (sessions.backend(), many());
        let changes = changes(backend, &ids).await;
        let foreign = format!("sessions:{{{}}}:a", ids[7].sid());
        assert_eq!(server.ask(&["DEL", &foreign]).number(), 1);
        server.ask(&["RPUSH", &foreign, "x"]);
        let said = join_all(changes.iter().map(|(expected, next)| backend.updates(*expected, next.clone()))).await;
        for (at, said) in said.into_iter().enumerate() {
            assert_eq!(matches!(said, Ok(Outcome::Done)), at != 7, "{at}: {said:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_answer_was_lost_is_done_once() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        let sessions = connected(|| RedisSessions::builder(proxy.uri())).await;
        let (direct, ids) = (connected(|| RedisSessions::builder(server.uri())).await, many());
        let (backend, others) = (sessions.backend(), direct.backend());
        for lost in ["request", "answer"] {
            // All of that takes no longer than one operation may take, or it is tried again.
            let said = in_time(async || {
                server.ask(&["FLUSHALL"]);
                let first = changes(backend, &ids).await;
                let meanwhile = async {
                    for (at, id) in ids.iter().enumerate() {
                        let (expected, next) = change(others, *id, 50, "theirs").await;
                        assert_eq!(expected, if lost == "request" { 1 } else { 2 });
                        if at % 2 == 0 {
                            assert_eq!(update(others, expected, next).await, "done");
                        }
                    }
                };
                lose(&proxy, lost, update_all_in_time(backend, &first), meanwhile).await
            })
            .await;
            for (at, said) in said.into_iter().enumerate() {
                let is_written_over = at % 2 == 0;
                assert_eq!(said, if is_written_over && lost == "request" { "conflict" } else { "done" }, "{at}");
                let there = payload(backend, ids[at]).await;
                assert_eq!(there.as_deref(), Some(if is_written_over { "theirs" } else { "y" }), "{at}");
                assert!(backend.delete(ids[at]).await.unwrap());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_delivered_again_or_late_does_nothing() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        let direct = connected(|| RedisSessions::builder(server.uri())).await;
        let ids = [of(owner("ada"), "one"), anonymous("one")];
        let sessions = connected(|| RedisSessions::builder(proxy.uri())).await;
        let first = changes(sessions.backend(), &ids).await;
        assert_eq!(update_all(sessions.backend(), &first).await, ["done", "done"]);
        let said = proxy.last_request();
        for at in 0..3 {
            let answer = Wire::connect(&server.address).unwrap().send(&said).unwrap().list();
            let left: Vec<i64> = answer[1..].iter().map(|number| number.clone().number()).collect();
            assert_eq!(left, [1, 2]);
            for id in ids {
                let (expected, next) = change(direct.backend(), id, 10 + at, "theirs").await;
                assert_eq!(update(direct.backend(), expected, next).await, "done");
            }
        }

        let late = brief(proxy.uri()).await;
        let mut changes = Vec::new();
        for id in ids {
            changes.push(change(direct.backend(), id, 20, "late").await);
        }
        let before = scripts_run(&server);
        proxy.freeze_all();
        // What a busy machine has not even sent by the time that it is given up cannot arrive.
        in_time(async || {
            let trips = proxy.trips();
            let said = join_all(changes.iter().map(|(there, next)| late.backend().updates(*there, next.clone())));
            assert!(said.await.iter().all(Result::is_err));
            (proxy.trips() > trips).then_some(())
        })
        .await;
        proxy.thaw();
        until("it has arrived", || scripts_run(&server) > before);
        for id in ids {
            assert_eq!(payload(direct.backend(), id).await.as_deref(), Some("theirs"));
        }
    }
}

/// Polls it once.
async fn waits(future: &mut (impl Future + Unpin)) -> bool {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending())).await
}

/// Polls a write until it waits: to be sent, or for the answer.
async fn begin<T>(write: &mut (impl Future<Output = Answer<T>> + Unpin), sent: impl Fn() -> bool) {
    loop {
        assert!(waits(&mut *write).await);
        if sent() {
            break;
        }
        tokio::task::yield_now().await;
    }
}

/// Gives up the first write of a batch, before or after it was sent. The others are done all the same.
async fn give_up<T>(
    proxy: &Proxy,
    is_sent: bool,
    first: impl Future<Output = Answer<T>>,
    others: impl Future<Output = Vec<&'static str>>,
) {
    let trips = proxy.trips();
    proxy.freeze_all();
    let (mut first, mut others) = (Box::pin(first), Box::pin(others));
    begin(&mut first, || true).await;
    assert!(waits(&mut others).await);
    if is_sent {
        begin(&mut first, || proxy.trips() > trips).await;
    }
    drop(first);
    proxy.thaw();
    assert!(others.await.iter().all(|said| *said == "done"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_gives_up_takes_no_other_write_with_it() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        let sessions = connected(|| RedisSessions::builder(proxy.uri())).await;
        let (backend, ids, new) = (sessions.backend(), many(), visitors(8, 1));
        for is_sent in [false, true] {
            let changes = changes(backend, &ids).await;
            let update = backend.updates(1, changes[0].1.clone());
            give_up(&proxy, is_sent, update, update_all(backend, &changes[1..])).await;
            let there = payload(backend, ids[0]).await;
            assert_eq!(there.as_deref(), Some(if is_sent { "y" } else { "x" }));
            server.ask(&["FLUSHALL"]);

            give_up(&proxy, is_sent, backend.creates(new[0].clone()), create_all(backend, &new[1..])).await;
            assert_eq!(payload(backend, new[0].id).await.is_some(), is_sent);
            server.ask(&["FLUSHALL"]);
        }
    }
}

/// Lets the runtime of the first write of a batch stand still, before or after the batch was sent. The others are done, and so
/// is the first one in the end.
fn stand_still<T>(
    driven: &Runtime,
    proxy: &Proxy,
    is_sent: bool,
    first: impl Future<Output = Answer<T>>,
    others: impl Future<Output = Vec<&'static str>>,
) -> Answer<T> {
    let trips = proxy.trips();
    proxy.freeze_all();
    let still = runtime();
    let (mut first, mut others) = (Box::pin(first), Box::pin(others));
    still.block_on(begin(&mut first, || true));
    driven.block_on(async { assert!(waits(&mut others).await) });
    if is_sent {
        still.block_on(begin(&mut first, || proxy.trips() > trips));
    }
    proxy.thaw();
    assert!(driven.block_on(others).iter().all(|said| *said == "done"));
    driven.block_on(first)
}

#[test]
fn a_batch_on_a_runtime_that_stands_still_is_left() {
    let Some(binary) = binaries().into_iter().next() else { return };
    let server = Process::start(&binary, &[]);
    let driven = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let proxy = driven.block_on(Proxy::before(&server.address));
    let sessions = driven.block_on(connected(|| RedisSessions::builder(proxy.uri())));
    let (backend, ids, new) = (sessions.backend(), many(), visitors(8, 1));
    for is_sent in [false, true] {
        let changes = driven.block_on(changes(backend, &ids));
        let update = backend.updates(1, changes[0].1.clone());
        let updated = stand_still(&driven, &proxy, is_sent, update, update_all(backend, &changes[1..]));
        assert!(matches!(updated, Ok(Outcome::Done)));
        server.ask(&["FLUSHALL"]);

        let create = backend.creates(new[0].clone());
        let created = stand_still(&driven, &proxy, is_sent, create, create_all(backend, &new[1..]));
        assert!(matches!(created, Ok(true)));
        server.ask(&["FLUSHALL"]);
    }
}
