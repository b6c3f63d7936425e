//! Updates that are ready at the same time: they share one script call, and each gets its own answer.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use futures_util::future::join_all;
use jam_session::{Backend, Outcome, Record, RecordId, RedisBackend, RedisSessions};

use super::{
    contract::{HOUR, anonymous, of, owner, payload, record, update},
    faults::{brief, runtime},
    harness::{Place, Topology, binaries, patient},
    process::{Process, until},
    proxy::Proxy,
    replays::scripts_run,
    wire::Wire,
};
use crate::store::{Plain, eventually, in_time, lasting};

crate::on_every_redis!(updates_at_the_same_moment_are_answered_one_by_one);

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
    join_all(changes.iter().map(|(expected, next)| update(backend, *expected, next.clone()))).await
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_to_32_updates_go_in_one_call() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = patient(RedisSessions::builder(server.uri())).connect().await.unwrap();
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
        let sessions = patient(RedisSessions::builder(server.uri())).connect().await.unwrap();
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
        let sessions = patient(RedisSessions::builder(proxy.uri())).connect().await.unwrap();
        let (direct, ids) = (patient(RedisSessions::builder(server.uri())).connect().await.unwrap(), many());
        let (backend, others) = (sessions.backend(), direct.backend());
        for lost in ["request", "answer"] {
            let first = changes(backend, &ids).await;
            proxy.hold(true);
            match lost {
                "request" => proxy.swallow_next_request(),
                _ => proxy.swallow_next_answer(),
            }
            let ((), said) = tokio::join!(
                async {
                    eventually(async || proxy.has_swallowed()).await;
                    for (at, id) in ids.iter().enumerate() {
                        let (expected, next) = change(others, *id, 50, "theirs").await;
                        assert_eq!(expected, if lost == "request" { 1 } else { 2 });
                        if at % 2 == 0 {
                            assert_eq!(update(others, expected, next).await, "done");
                        }
                    }
                    proxy.hold(false);
                },
                update_all(backend, &first)
            );
            for (at, said) in said.into_iter().enumerate() {
                let is_written_over = at % 2 == 0;
                assert_eq!(said, if is_written_over && lost == "request" { "conflict" } else { "done" }, "{at}");
                let there = payload(backend, ids[at]).await;
                assert_eq!(there.as_deref(), Some(if is_written_over { "theirs" } else { "y" }), "{at}");
                assert!(backend.delete(ids[at]).await.unwrap());
            }
            server.ask(&["FLUSHALL"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_delivered_again_or_late_does_nothing() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        let direct = patient(RedisSessions::builder(server.uri())).connect().await.unwrap();
        let ids = [of(owner("ada"), "one"), anonymous("one")];
        let sessions = patient(RedisSessions::builder(proxy.uri())).connect().await.unwrap();
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

/// Polls an update until it waits: to be sent, or for the answer.
async fn begin(
    update: &mut (impl Future<Output = jam_session::backend::Result<Outcome>> + Unpin),
    sent: impl Fn() -> bool,
) {
    loop {
        assert!(waits(&mut *update).await);
        if sent() {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_gives_up_takes_no_other_update_with_it() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        let sessions = patient(RedisSessions::builder(proxy.uri())).connect().await.unwrap();
        let (backend, ids) = (sessions.backend(), many());
        for is_sent in [false, true] {
            let changes = changes(backend, &ids).await;
            let trips = proxy.trips();
            proxy.freeze_all();
            let mut first = Box::pin(backend.updates(1, changes[0].1.clone()));
            begin(&mut first, || true).await;
            let mut others = Box::pin(update_all(backend, &changes[1..]));
            assert!(waits(&mut others).await);
            if is_sent {
                begin(&mut first, || proxy.trips() > trips).await;
            }
            drop(first);
            proxy.thaw();
            assert!(others.await.iter().all(|said| *said == "done"));
            let there = payload(backend, ids[0]).await;
            assert_eq!(there.as_deref(), Some(if is_sent { "y" } else { "x" }));
            server.ask(&["FLUSHALL"]);
        }
    }
}

#[test]
fn a_batch_on_a_runtime_that_stands_still_is_left() {
    let Some(binary) = binaries().into_iter().next() else { return };
    let server = Process::start(&binary, &[]);
    let driven = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let proxy = driven.block_on(Proxy::before(&server.address));
    let sessions = driven.block_on(patient(RedisSessions::builder(proxy.uri())).connect()).unwrap();
    let (backend, ids) = (sessions.backend(), many());
    for is_sent in [false, true] {
        let changes = driven.block_on(changes(backend, &ids));
        let trips = proxy.trips();
        proxy.freeze_all();
        let still = runtime();
        let (mut first, mut others) =
            (Box::pin(backend.updates(1, changes[0].1.clone())), Box::pin(update_all(backend, &changes[1..])));
        still.block_on(begin(&mut first, || true));
        driven.block_on(async { assert!(waits(&mut others).await) });
        if is_sent {
            still.block_on(begin(&mut first, || proxy.trips() > trips));
        }
        proxy.thaw();
        assert!(driven.block_on(others).iter().all(|said| *said == "done"));
        assert!(matches!(driven.block_on(first), Ok(Outcome::Done)));
        server.ask(&["FLUSHALL"]);
    }
}
