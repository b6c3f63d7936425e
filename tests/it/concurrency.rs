//! Parallel requests, in one process and in two: no change is lost or applied twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use jam_session::{
    Backend, ErrorKind, Outcome, Session,
    conformance::{Answer, Fault, Verb},
};
use serde_json::json;
use tokio::sync::{Barrier, Semaphore};

use crate::{
    client::{Client, increment},
    on_every_store,
    store::{BRIEF, Options, PATIENCE, Store},
};

on_every_store! {
    p05_a_thousand_parallel_modifies_are_a_thousand,
    p05_a_thousand_parallel_inserts_of_different_names_are_a_thousand,
    p05_removing_one_name_beside_writing_another,
    p05_a_whole_update_keeps_what_others_wrote_elsewhere,
    p05_the_module_replaces_everything,
    p05_a_closure_runs_once_unless_there_is_a_conflict,
    p05_what_a_clone_records_during_a_commit_is_not_lost,
    p05_a_write_whose_answer_was_lost_is_not_applied_twice,
    p05_what_cannot_be_committed_in_time_is_503,
    p06_touch_beside_rework_and_set_ttl,
    p02_first_requests_in_parallel_get_a_session_each,
    p05_a_save_whose_answer_was_lost_then_the_response_is_applied_once,
    p05_a_modify_recorded_while_a_conflicting_save_runs_is_not_lost,
    load_after_a_modify_of_another_type_fails_only_that_modify,
    p05_what_was_answered_503_is_not_applied_later_by_a_clone,
    p05_save_says_so_when_an_insert_on_a_replaced_id_is_dropped,
}

/// 500 requests each at two processes: all at once where that is one machine's matter, 16 at a time over a network.
async fn parallel(store: &Store, change: fn(usize, &Session) -> Result<(), jam_session::Error>) -> Client {
    let layers = [store.layer(), store.layer()];
    let client = Client::new(&layers[0]);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let places = Arc::new(Semaphore::new(if store.is_remote() { 16 } else { 1000 }));
    let tasks = (0..1000).map(|i| {
        let (tab, places) = (client.thief().at(&layers[i % 2]), places.clone());
        tokio::spawn(async move {
            let _place = places.acquire().await.unwrap();
            drop(tab.does(|session| change(i, session)).await.ok().sets_no_cookie());
        })
    });
    futures_util::future::join_all(tasks.collect::<Vec<_>>()).await.into_iter().for_each(Result::unwrap);
    client
}

async fn p05_a_thousand_parallel_modifies_are_a_thousand(store: Store) {
    let client = parallel(&store, |_, session| session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1)).await;
    assert_eq!(client.does(|session| Ok(session.get::<u64>("n")?.unwrap().to_string())).await.body, "1000");
}

async fn p05_a_thousand_parallel_inserts_of_different_names_are_a_thousand(store: Store) {
    let client = parallel(&store, |i, session| session.insert(&format!("n{i}"), i)).await;
    let answer = client.does(|session| {
        let data = session.data()?;
        assert!((0..1000).all(|i| data.get::<usize>(&format!("n{i}")).unwrap() == Some(i)));
        Ok(data.names().count().to_string())
    });
    assert_eq!(answer.await.body, "1000");
}

async fn p05_removing_one_name_beside_writing_another(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.update(json!({"a": 1, "b": 1}))).await.ok();
    let other = client.thief().at(&store.layer());
    let answer = client.visit(async |session: Session| {
        other.does(|session| session.insert("b", 2)).await.ok();
        session.remove("a");
        Ok(())
    });
    answer.await.ok();
    assert_eq!(names(&client).await, "b");
    assert_eq!(client.does(|session| Ok(session.get::<u8>("b")?.unwrap().to_string())).await.body, "2");
}

async fn p05_a_whole_update_keeps_what_others_wrote_elsewhere(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.update(json!({"a": 1, "b": 1}))).await.ok();
    for loaded in [true, false] {
        let other = client.thief().at(&store.layer());
        let answer = client.request(http::Request::default(), async |session: Session| {
            if loaded {
                session.load().await?;
            }
            other.does(|session| session.insert("c", 2)).await.ok();
            session.update(json!({"b": 3}))
        });
        answer.await.ok();
        // Not loaded, it was recorded against what is there when it is.
        assert_eq!(names(&client).await, if loaded { "b,c" } else { "b" });
    }
}

async fn p05_the_module_replaces_everything(store: Store) {
    let sessions = store.sessions();
    let id = sessions.create("ada", json!({"a": 1, "b": 2})).await.unwrap();
    let (other, same) = (store.sessions(), id.clone());
    store.first(Verb::Update, move || {
        let (other, same) = (other.clone(), same.clone());
        async move { other.update(&same, json!({"c": 3})).await.unwrap() }
    });
    sessions.update(&id, json!({"d": 4})).await.unwrap();
    let data = sessions.get(&id).await.unwrap().unwrap();
    assert_eq!(data.names().collect::<Vec<_>>(), ["d"]);
}

async fn p05_a_closure_runs_once_unless_there_is_a_conflict(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("n", 10)).await.ok();
    for conflict in [false, true] {
        let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = runs.clone();
        let other = client.thief().at(&store.layer());
        let answer = client.visit(async |session: Session| {
            session.modify("n", move |n: Option<u64>| {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                n.unwrap() + 1
            })?;
            assert!(session.get::<u64>("n")?.is_some());
            if conflict {
                other.does(|session| session.insert("n", 20)).await.ok();
            }
            Ok(())
        });
        answer.await.ok();
        assert_eq!(runs.load(std::sync::atomic::Ordering::SeqCst), if conflict { 2 } else { 1 });
        let n = client.does(|session| Ok(session.get::<u64>("n")?.unwrap().to_string())).await.body;
        assert_eq!(n, if conflict { "21" } else { "11" });
    }
}

async fn p05_what_a_clone_records_during_a_commit_is_not_lost(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("n", 0)).await.ok();
    let answer = client.visit(async |session: Session| {
        let clone = session.clone();
        session.insert("a", 1)?;
        store.first(Verb::Update, move || {
            let clone = clone.clone();
            async move {
                clone.insert("b", 2).unwrap();
                clone.modify("n", |n: Option<u64>| n.unwrap() + 1).unwrap();
            }
        });
        session.save().await?;
        assert_eq!((session.get::<u8>("a")?, session.get::<u8>("b")?), (Some(1), Some(2)));
        Ok(())
    });
    answer.await.ok();
    let answer = client.does(|session| Ok(format!("{:?}{:?}", session.get::<u8>("b")?, session.get::<u8>("n")?)));
    assert_eq!(answer.await.body, "Some(2)Some(1)");
}

async fn p05_a_write_whose_answer_was_lost_is_not_applied_twice(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("n", 0)).await.ok();
    let increment = |session: &Session| session.modify("n", |n: Option<u64>| n.unwrap() + 1);
    store.faults.next(Verb::Update, Fault::After);
    let answer = client.does(increment).await.sets_no_cookie();
    // It may have happened, and nobody says that it has.
    assert_eq!(answer.status, 503);
    assert!(answer.headers.contains_key("retry-after"));
    client.does(increment).await.ok();
    assert_eq!(client.does(|session| Ok(session.get::<u64>("n")?.unwrap().to_string())).await.body, "2");

    // A save that got no answer is tried again with the response, and applied once; so is what came after it.
    for fault in [Fault::Before, Fault::After] {
        let client = Client::new(&store.layer());
        client.does(|session| session.insert("n", 0)).await.ok();
        let answer = client.visit(async |session: Session| {
            increment(&session)?;
            store.faults.next(Verb::Update, fault);
            assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Unavailable);
            increment(&session)?;
            assert_eq!(session.get::<u64>("n")?, Some(2));
            Ok(())
        });
        answer.await.ok();
        assert_eq!(client.does(|session| Ok(session.get::<u64>("n")?.unwrap().to_string())).await.body, "2");
    }
}

async fn p05_what_cannot_be_committed_in_time_is_503(store: Store) {
    let patient = Client::new(&store.layer());
    patient.does(|session| session.insert("n", 0)).await.ok();
    let client = patient.at(&store.layer_with(Options { request_time: Some(BRIEF), ..Options::default() }));
    store.faults.next(Verb::Update, Fault::Hang);
    let answer = client.does(|session| session.insert("n", 1)).await.sets_no_cookie();
    assert_eq!((answer.status.as_u16(), answer.headers["retry-after"].to_str().unwrap()), (503, "1"));
    store.faults.heal();
    // One budget for all trips: a load that hangs leaves nothing for the commit.
    store.faults.next(Verb::Load, Fault::Hang);
    store.faults.next(Verb::Load, Fault::Hang);
    let answer = client.request(http::Request::default(), async |session: Session| {
        assert_eq!(session.load().await.unwrap_err().kind(), ErrorKind::Unavailable);
        session.insert("n", 2)
    });
    assert_eq!(answer.await.sets_no_cookie().status, 503);
    store.faults.heal();
    assert_eq!(patient.does(|session| Ok(session.get::<u64>("n")?.unwrap().to_string())).await.body, "0");
}

async fn p06_touch_beside_rework_and_set_ttl(store: Store) {
    let sessions = store.sessions();
    let client = Client::new(&jam_session::SessionLayer::new(sessions.clone()));
    client.does(|session| session.create("ada", json!({}))).await.ok();
    store.pass(Duration::from_secs(1800));
    // A touch that is late: between what it has seen and what it does, the session gets a short life and another ID.
    let other = client.clone().at(&store.layer_with(Options { default_ttl: Some(None), ..Options::default() }));
    let client = other.clone();
    store.first(Verb::Touch, move || {
        let other = other.clone();
        async move {
            let answer = other.does(|session| {
                session.rework();
                session.set_ttl(Duration::from_secs(600));
                Ok(())
            });
            answer.await.ok().new_id().unwrap();
        }
    });
    let reader = client.thief().at(&jam_session::SessionLayer::new(sessions.clone()));
    reader.does(|session| Ok(session.key().unwrap())).await.ok();
    // The touch is conditional on what it saw: it has not given the session an hour.
    sessions.close().await.unwrap();
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
    store.pass(Duration::from_secs(600));
    assert_eq!(client.does(|session| Ok(session.key().is_none().to_string())).await.body, "true");
}

async fn p02_first_requests_in_parallel_get_a_session_each(store: Store) {
    let layer = store.layer();
    let barrier = Arc::new(Barrier::new(50));
    let tasks = (0..50).map(|i| {
        let (client, barrier) = (Client::new(&layer), barrier.clone());
        tokio::spawn(async move {
            let answer = client.visit(async |session: Session| {
                barrier.wait().await;
                session.insert("who", i)
            });
            (answer.await.ok().new_id().unwrap(), client)
        })
    });
    let mut ids = std::collections::BTreeSet::new();
    for (i, task) in tasks.collect::<Vec<_>>().into_iter().enumerate() {
        let (id, client) = task.await.unwrap();
        assert!(ids.insert(id));
        assert_eq!(
            client.does(|session| Ok(session.get::<usize>("who")?.unwrap().to_string())).await.body,
            i.to_string()
        );
    }
}

async fn names(client: &Client) -> String {
    client.does(|session| Ok(session.data()?.names().collect::<Vec<_>>().join(","))).await.ok().body
}

async fn p05_a_save_whose_answer_was_lost_then_the_response_is_applied_once(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("n", 0)).await.ok();
    let answer = client.visit(async |session: Session| {
        increment(&session)?;
        store.faults.next(Verb::Update, Fault::After);
        assert!(session.save().await.is_err());
        Ok(())
    });
    answer.await.ok();
    assert_eq!(client.n().await, "Some(1)");
}

async fn p05_a_modify_recorded_while_a_conflicting_save_runs_is_not_lost(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("n", 0)).await.ok();
    let other = client.thief().at(&store.layer());
    let answer = client.visit(async |session: Session| {
        increment(&session)?;
        let clone = session.clone();
        let once = Arc::new(AtomicUsize::new(0));
        store.first(Verb::Update, move || {
            let (other, clone, once) = (other.clone(), clone.clone(), once.clone());
            async move {
                assert_eq!(once.fetch_add(1, SeqCst), 0);
                other.does(increment).await.ok();
                increment(&clone).unwrap();
            }
        });
        session.save().await?;
        Ok(())
    });
    answer.await.ok();
    assert_eq!(client.n().await, "Some(3)");
}

#[tokio::test]
async fn p05_commits_of_one_session_queue_within_a_process() {
    const N: usize = 50;
    let store = Store::memory().await;
    let layer = store.layer();
    let client = Client::new(&layer);
    client.does(|session| session.insert("n", 0)).await.ok();
    store.faults.calls();
    for _ in 0..20 * N {
        store.first(Verb::Update, tokio::task::yield_now);
    }
    let barrier = Arc::new(Barrier::new(N));
    let tasks = (0..N).map(|_| {
        let (tab, barrier) = (client.thief(), barrier.clone());
        tokio::spawn(async move {
            let answer = tab.visit(async |session: Session| {
                barrier.wait().await;
                increment(&session)
            });
            drop(answer.await.ok());
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let updates = store.faults.calls().iter().filter(|call| **call == Verb::Update).count();
    assert_eq!(client.n().await, format!("Some({N})"));
    // One conflict each at most, because each had loaded before it queued.
    assert!(updates <= 2 * N, "{updates} updates for {N} requests of one session: they get in each other's way");
}

async fn load_after_a_modify_of_another_type_fails_only_that_modify(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({"n": "text"}))).await.ok();
    let answer = client.request(http::Request::default(), async |session: Session| {
        session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1).unwrap();
        session.load().await.unwrap();
        assert_eq!(session.key().as_deref(), Some("ada"));
    });
    // The mistake is the request's, and the session is as it was.
    assert_eq!(answer.await.status, 500);
    assert_eq!(client.does(|session| Ok(session.get::<String>("n")?.unwrap())).await.body, "text");
}

async fn p05_what_was_answered_503_is_not_applied_later_by_a_clone(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({"n": 0}))).await.ok();
    let mut kept = None;
    let keep = &mut kept;
    store.faults.next(Verb::Update, Fault::Before);
    let answer = client.visit(async |session: Session| {
        session.insert("n", 1)?;
        *keep = Some(session);
        Ok(())
    });
    assert_eq!(answer.await.status, 503);
    let late = kept.unwrap();
    late.insert("progress", 1).unwrap();
    late.save().await.unwrap();
    assert_eq!(client.n().await, "Some(0)");
}

async fn p05_save_says_so_when_an_insert_on_a_replaced_id_is_dropped(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let old = client.thief();
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let answer = old.visit(async |session: Session| {
        session.insert("m", 1)?;
        let saved = session.save().await.map_err(|error| error.kind());
        Ok(format!("{saved:?} {:?}", session.get::<u8>("m")?))
    });
    let body = answer.await.ok().body;
    assert!(body.starts_with("Err(NotFound)"), "{body}");
}

#[tokio::test]
async fn a_closure_that_holds_its_session_is_freed_after_a_503() {
    struct Freed(Arc<AtomicUsize>);
    impl Drop for Freed {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let freed = Arc::new(AtomicUsize::new(0));
    let store = Store::memory().await;
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("price", 1)).await.ok();
    store.faults.next(Verb::Update, Fault::Before);
    let answer = client.does(|session| {
        let (clone, guard) = (session.clone(), Freed(freed.clone()));
        session.modify("n", move |n: Option<u64>| {
            let _guard = &guard;
            n.unwrap_or(0) + clone.get::<u64>("price").unwrap().unwrap()
        })
    });
    assert_eq!(answer.await.status, 503);
    assert_eq!(freed.load(SeqCst), 1, "the closure is never freed: each 503 leaks a session");
}

/// Runs it on a thread of its own, which may never come back.
fn comes_back(work: impl FnOnce() + Send + 'static) -> bool {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    is_done.recv_timeout(PATIENCE).is_ok()
}

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

#[test]
fn p16_a_closure_that_writes_to_its_session_does_not_run_for_ever() {
    let stop = Arc::new(AtomicUsize::new(0));
    let runs = stop.clone();
    let back = comes_back(move || {
        block_on(async move {
            let store = Store::memory().await;
            let client = Client::new(&store.layer());
            client.does(|session| session.insert("n", 1)).await.ok();
            let answer = client.does(|session| {
                let clone = session.clone();
                session.modify("n", move |n: Option<u64>| {
                    // Ends the proof, not the defect.
                    if runs.fetch_add(1, SeqCst) < 10_000 {
                        clone.insert("last", "modify").unwrap();
                    }
                    n.unwrap_or(0) + 1
                })
            });
            answer.await.ok();
        });
    });
    let runs = stop.load(SeqCst);
    assert!(back && runs < 10, "the request hangs: its closure ran {runs} times");
}

#[test]
fn p16_a_closure_may_own_something_that_looks_at_the_session_when_dropped() {
    struct Guard(Session);
    impl Drop for Guard {
        fn drop(&mut self) {
            let _ = self.0.key();
        }
    }
    let back = comes_back(|| {
        block_on(async {
            let store = Store::memory().await;
            let client = Client::new(&store.layer());
            client.does(|session| session.insert("n", 1)).await.ok();
            let answer = client.does(|session| {
                let guard = Guard(session.clone());
                session.modify("n", move |n: Option<u64>| {
                    let _guard = &guard;
                    n.unwrap_or(0) + 1
                })?;
                Ok(http::StatusCode::INTERNAL_SERVER_ERROR)
            });
            drop(answer.await);
        });
    });
    assert!(back, "the request hangs: its closure is dropped while the session is locked");
}

#[test]
fn p05_a_backend_that_always_conflicts_is_503_in_time_and_not_a_spin() {
    let back = comes_back(|| {
        block_on(async {
            let store = Store::memory().await;
            let options = Options { request_time: Some(Duration::from_millis(100)), ..Options::default() };
            let sessions = store.sessions_with(options);
            let inner = store.inner();
            store.faults.always(Verb::Update, Fault::Before);
            store.faults.always(
                Verb::Update,
                Fault::change(move |call, _| {
                    let inner = inner.clone();
                    async move {
                        let there = inner.backend().load(call.id.unwrap()).await?;
                        Ok(Answer::Update(there.map_or(Outcome::Gone, Outcome::Conflict)))
                    }
                }),
            );
            let id = sessions.create("ada", json!({})).await.unwrap();
            let _ = sessions.update(&id, json!({"n": 1})).await;
        });
    });
    assert!(back, "a call whose store always conflicts is not answered in its 100 ms");
}
