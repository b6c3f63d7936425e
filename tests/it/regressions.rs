//! What hostile reviews have found, each as what was promised all along.

use std::{
    future::{Future, pending, poll_fn, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use jam_session::{
    Backend, BoxError, Data, Error, ErrorKind, MemorySessions, Outcome, Record, RecordId, Serializer, Session,
    SessionLayer,
    conformance::{Answer, Fault, Verb},
};
use serde_json::json;
use tokio::sync::Barrier;

use crate::{
    client::Client,
    on_every_store,
    store::{Options, PATIENCE, Store, eventually},
};

on_every_store! {
    p05_a_save_whose_answer_was_lost_then_the_response_is_applied_once,
    p05_a_modify_recorded_while_a_conflicting_save_runs_is_not_lost,
    p06_a_rework_whose_answer_was_lost_and_is_repeated_gives_the_browser_the_new_id,
    p06_a_rework_that_lost_without_grace_gives_no_dead_id,
    p16_a_closure_that_panics_at_the_commit_does_not_lose_a_sign_out,
    load_after_a_modify_of_another_type_fails_only_that_modify,
    what_was_answered_503_is_not_applied_later_by_a_clone,
    p08_clear_does_not_depend_on_a_listing,
    p11_a_payload_that_names_another_owner_is_unreadable,
    a_backend_that_gives_an_endless_ttl_does_not_panic_the_list,
    max_age_is_counted_at_response_time,
    what_a_handler_reads_after_bind_and_clear_is_what_is_written,
    save_says_so_when_delete_and_insert_on_a_replaced_id_drop_the_insert,
    a_login_that_starts_afresh_does_not_inherit_the_idle_time_of_the_anonymous_session,
    a_ttl_recorded_before_a_login_as_another_user_is_dropped_with_the_rest,
    a_login_whose_create_got_no_answer_leaves_no_session_behind,
    docs_backend_nothing_else_is_called_after_close,
    p07_a_login_after_a_save_that_said_not_found_does_not_take_the_dead_sessions_data_along,
    p07_what_was_recorded_before_bind_to_another_user_is_dropped_also_with_clear,
}

async fn n(client: &Client) -> String {
    client.does(|session| Ok(format!("{:?}", session.get::<u64>("n")?))).await.body
}

fn increment(session: &Session) -> Result<(), Error> {
    session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1)
}

fn record_id(id: &str) -> RecordId {
    id.rsplit_once('.').unwrap().0.parse().unwrap()
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
    assert_eq!(n(&client).await, "Some(1)");
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
    assert_eq!(n(&client).await, "Some(3)");
}

#[tokio::test]
async fn s4_commits_of_one_record_queue_in_a_process_and_do_not_conflict() {
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
    assert_eq!(n(&client).await, format!("Some({N})"));
    // One conflict each at most, because each had loaded before it queued.
    assert!(updates <= 2 * N, "{updates} updates for {N} commits");
}

async fn p06_a_rework_whose_answer_was_lost_and_is_repeated_gives_the_browser_the_new_id(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let answer = client.visit(async |session: Session| {
        session.rework();
        store.faults.next(Verb::Update, Fault::After);
        assert!(session.save().await.is_err());
        Ok(())
    });
    answer.await.ok();
    store.pass(Duration::from_secs(11));
    assert_eq!(client.does(|session| Ok(format!("{:?}", session.key()))).await.body, "Some(\"ada\")");
}

async fn p06_a_rework_that_lost_without_grace_gives_no_dead_id(store: Store) {
    let sessions = store.sessions_with(Options { rework_grace: Some(Duration::ZERO), ..Options::default() });
    let id = sessions.create("ada", json!({})).await.unwrap();
    let grace = Some(Duration::ZERO);
    let (other, same) = (store.sessions_with(Options { rework_grace: grace, ..Options::default() }), id.clone());
    store.first(Verb::Update, move || {
        let (other, same) = (other.clone(), same.clone());
        async move { drop(other.rework(&same).await.unwrap()) }
    });
    match sessions.rework(&id).await {
        Ok(id) => assert!(sessions.get(&id).await.unwrap().is_some(), "rework said Ok and gave an ID that is dead"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
    }
}

#[tokio::test]
async fn p16_close_waits_for_the_sign_out_of_a_request_that_was_dropped() {
    let store = Store::memory().await;
    let sessions = store.sessions();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    client.does(|session| session.create("ada", json!({}))).await.ok();
    {
        let mut request = Box::pin(client.visit(async |session: Session| {
            session.delete();
            pending::<()>().await;
            Ok(())
        }));
        for _ in 0..5 {
            poll_fn(|cx| {
                assert!(request.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
        }
    }
    sessions.close().await.unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(store.sessions().list("ada").await.unwrap().is_empty());
}

async fn sign_out_happens(name: &str, record: fn(&Session)) {
    let store = Store::memory().await;
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({"n": "text"}))).await.ok();
    let answer = client.request(http::Request::default(), async |session: Session| record(&session)).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let left = store.sessions().list("ada").await.unwrap().len();
    assert_eq!(left, 0, "{name}: answered {}, and the session lives", answer.status);
}

#[tokio::test]
async fn p16_a_modify_of_another_type_before_the_load_does_not_lose_a_sign_out() {
    sign_out_happens("modify", |session| {
        session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1).unwrap();
        session.delete();
    })
    .await;
}

#[tokio::test]
async fn p16_a_ttl_of_zero_does_not_lose_a_sign_out() {
    sign_out_happens("ttl", |session| {
        session.set_ttl(Duration::ZERO);
        session.delete();
    })
    .await;
}

#[tokio::test]
async fn p16_an_impossible_key_after_clear_does_not_lose_the_clear() {
    sign_out_happens("clear+bind", |session| {
        session.clear();
        session.bind("");
    })
    .await;
}

async fn p16_a_closure_that_panics_at_the_commit_does_not_lose_a_sign_out(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let panicking = client.clone();
    let task = tokio::spawn(async move {
        let answer = panicking.request(http::Request::default(), async |session: Session| {
            session.bind("grace");
            session.modify("n", |_: Option<u64>| -> u64 { panic!("on purpose") }).unwrap();
            session.clear();
        });
        drop(answer.await);
    });
    assert!(task.await.is_err());
    eventually(async || store.sessions().list("ada").await.unwrap().is_empty()).await;
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

#[tokio::test(start_paused = true)]
async fn streams_save_again_once_the_backend_is_back() {
    let store = Store::memory().await;
    let options = Options { request_time: Some(Duration::from_secs(1)), ..Options::default() };
    let client = Client::new(&store.layer_with(options));
    client.does(|session| session.insert("n", 0)).await.ok();
    let mut kept = None;
    let keep = &mut kept;
    let answer = client.visit(async |session: Session| {
        *keep = Some(session);
        Ok(())
    });
    answer.await.ok();
    let stream = kept.unwrap();
    increment(&stream).unwrap();
    store.faults.next(Verb::Update, Fault::Hang);
    assert_eq!(stream.save().await.unwrap_err().kind(), ErrorKind::Unavailable);
    // The backend is back, and answers when it is asked a second time, as a network does.
    store.first(Verb::Update, tokio::task::yield_now);
    let last = stream.save().await;
    assert!(last.is_ok(), "{last:?}");
}

async fn what_was_answered_503_is_not_applied_later_by_a_clone(store: Store) {
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
    assert_eq!(n(&client).await, "Some(0)");
}

#[tokio::test]
async fn p19_a_full_memory_still_signs_out_and_rewrites() {
    let sessions = MemorySessions::builder().max_bytes(64 * 1024).build().unwrap();
    let mut ids = Vec::new();
    let mut i = 0;
    while let Ok(id) = sessions.create(format!("user{i}"), json!({"n": 1000})).await {
        ids.push(id);
        i += 1;
    }
    let smaller = sessions.update(&ids[0], json!({"n": 1})).await.map_err(|error| error.kind());
    let revoked = sessions.revoke("user2", ids[2].as_str().split('.').nth(1).unwrap()).await.map_err(|e| e.kind());
    let deleted = sessions.delete(&ids[1]).await.map_err(|error| error.kind());
    assert_eq!((smaller, revoked, deleted), (Ok(()), Ok(true), Ok(())));
}

#[tokio::test]
async fn p19_a_write_that_does_not_grow_evicts_nobody() {
    let sessions = MemorySessions::builder().max_bytes(64 * 1024).build().unwrap();
    let layer = SessionLayer::new(sessions.clone());
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    let mut before = 0;
    loop {
        Client::new(&layer).does(|session| session.insert("n", 1)).await.ok();
        let now = sessions.backend().sessions();
        if now == before {
            break;
        }
        before = now;
    }
    for n in 2..9 {
        sessions.update(&id, json!({"n": n})).await.unwrap();
    }
    assert_eq!(sessions.backend().sessions(), before);
}

#[tokio::test]
async fn p19_an_anonymous_session_does_not_evict_itself_by_a_write() {
    let sessions = MemorySessions::builder().max_bytes(8 * 1024).build().unwrap();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    client.does(|session| session.insert("x", "x".repeat(4000))).await.ok();
    client.does(|session| session.insert("x", "y".repeat(4000))).await.ok();
    let x = client.does(|session| Ok(format!("{:?}", session.get::<String>("x")?.map(|x| x.len())))).await.body;
    assert_eq!(x, "Some(4000)");
}

#[tokio::test]
async fn p19_what_cannot_fit_beside_the_keyed_ones_evicts_nobody() {
    let sessions = MemorySessions::builder().max_bytes(256 * 1024).build().unwrap();
    let layer = SessionLayer::new(sessions.clone());
    sessions.create("ada", json!({"x": "x".repeat(150_000)})).await.unwrap();
    let visitors: Vec<_> = (0..20).map(|_| Client::new(&layer)).collect();
    for visitor in &visitors {
        visitor.does(|session| session.insert("n", 1)).await.ok();
    }
    let before = sessions.backend().sessions();
    // 150 KB can never fit beside the first 150 KB, which never give way.
    assert!(sessions.create("grace", json!({"x": "x".repeat(150_000)})).await.is_err());
    assert_eq!(sessions.backend().sessions(), before);
}

async fn p08_clear_does_not_depend_on_a_listing(store: Store) {
    let sessions = store.sessions();
    sessions.create("ada", json!({})).await.unwrap();
    store.faults.next(Verb::List, Fault::Before);
    let _ = sessions.clear("ada").await;
    assert!(sessions.list("ada").await.unwrap().is_empty());
}

async fn p11_a_payload_that_names_another_owner_is_unreadable(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("malory-of-the-tests", json!({}))).await.ok();
    let record = store.backend().load(record_id(&client.id().unwrap())).await.unwrap().unwrap();
    let mut payload = record.payload.to_vec();
    let (own, other) = (b"malory-of-the-tests", b"root-who-may-do-all");
    let at = payload.windows(own.len()).position(|bytes| bytes == own).unwrap();
    payload[at..at + own.len()].copy_from_slice(other);
    let forged = Record { version: 1, payload: payload.into(), ..record.clone() };
    let _ = store.backend().update(record.version, forged).await.unwrap();
    let body = client.does(|session| Ok(format!("{:?}", session.key()))).await.body;
    assert_eq!(body, "None", "the session of malory's slot is root's now, and a clear of root's does not end it");
}

async fn a_backend_that_gives_an_endless_ttl_does_not_panic_the_list(store: Store) {
    let sessions = store.sessions();
    let endless = |record| Record { ttl: Duration::MAX, ..record };
    store.faults.always(
        None,
        Fault::change(move |_, answer| {
            ready(answer.map(|answer| match answer {
                Answer::Load(record) => Answer::Load(record.map(endless)),
                Answer::List(records) => Answer::List(records.into_iter().map(endless).collect()),
                other => other,
            }))
        }),
    );
    sessions.create("ada", json!({})).await.unwrap();
    let task = tokio::spawn(async move { sessions.list("ada").await.map(|list| list.len()) });
    assert!(task.await.is_ok(), "overflow in Sessions::info");
}

#[derive(Clone)]
struct Counting(Arc<AtomicUsize>);

impl Serializer for Counting {
    fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError> {
        Ok(serde_json::to_vec(data)?)
    }
    fn read(&self, bytes: &[u8]) -> Result<Data, BoxError> {
        self.0.fetch_add(1, SeqCst);
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[tokio::test]
async fn s4_the_secret_is_compared_before_anything_else_is_done_with_the_record() {
    let reads = Arc::new(AtomicUsize::new(0));
    let sessions = MemorySessions::builder().serializer(Counting(reads.clone())).build().unwrap();
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    let wrong = format!("{}.{}", id.as_str().rsplit_once('.').unwrap().0, "A".repeat(43));
    assert!(sessions.get(&wrong).await.unwrap().is_none());
    assert_eq!(reads.load(SeqCst), 0, "data was deserialized for a stranger");
}

#[tokio::test]
async fn a_wrong_secret_is_unknown_also_where_the_data_cannot_be_read() {
    struct Broken;
    impl Serializer for Broken {
        fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError> {
            Ok(serde_json::to_vec(data)?)
        }
        fn read(&self, _: &[u8]) -> Result<Data, BoxError> {
            Err("broken".into())
        }
    }
    let sessions = MemorySessions::builder().serializer(Broken).build().unwrap();
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    let wrong = format!("{}.{}", id.as_str().rsplit_once('.').unwrap().0, "A".repeat(43));
    let got = sessions.get(&wrong).await.map(|data| data.is_some()).map_err(|error| error.kind());
    assert_eq!(got, Ok(false));
}

#[tokio::test]
async fn changes_to_an_unreadable_session_never_answer_200() {
    for (name, change) in [
        ("remove", (|session| session.remove("n")) as fn(&Session)),
        ("set_ttl", |session| session.set_ttl(Duration::from_secs(5))),
        ("rework", |session| session.rework()),
    ] {
        let store = Store::memory().await;
        let client = Client::new(&store.layer());
        client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
        let record = store.backend().load(record_id(&client.id().unwrap())).await.unwrap().unwrap();
        let spoilt = Record { version: 1, payload: "{".into(), ..record.clone() };
        let _ = store.backend().update(record.version, spoilt).await.unwrap();
        let answer = client.does(|session| {
            change(session);
            Ok(())
        });
        assert_eq!(answer.await.status, 500, "{name}");
        let update = client.does(|session| session.update(json!({})));
        assert_eq!(update.await.status, 500);
    }
}

#[tokio::test]
async fn p11_a_record_that_became_unreadable_meanwhile_does_not_keep_its_owner_from_signing_in() {
    for key in ["ada", "grace"] {
        let store = Store::memory().await;
        let client = Client::new(&store.layer());
        client.does(|session| session.create("ada", json!({}))).await.ok();
        let id = record_id(&client.id().unwrap());
        let spoiling = store.clone();
        store.first(Verb::Update, move || {
            let store = spoiling.clone();
            async move {
                let record = store.backend().load(id).await.unwrap().unwrap();
                let spoilt = Record { version: 1, payload: "{\"v\":2}".into(), ..record.clone() };
                let _ = store.backend().update(record.version, spoilt).await.unwrap();
            }
        });
        let answer = client.does(|session| {
            session.bind(key);
            Ok(())
        });
        assert_eq!(answer.await.status, 200, "bind({key})");
    }
}

async fn max_age_is_counted_at_response_time(store: Store) {
    let options = Options { anonymous_lifetime: Some(Duration::from_secs(1000)), ..Options::default() };
    let client = Client::new(&store.layer_with(options));
    let answer = client.visit(async |session: Session| {
        session.insert("n", 1)?;
        session.save().await?;
        store.pass(Duration::from_secs(600));
        Ok(())
    });
    let answer = answer.await.ok();
    assert!(answer.set_cookies()[0].contains("Max-Age=400"), "{:?}", answer.set_cookies());
}

async fn what_a_handler_reads_after_bind_and_clear_is_what_is_written(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({"n": 7}))).await.ok();
    let seen = client.does(|session| {
        session.bind("ada");
        session.clear();
        Ok(format!("{:?}", session.get::<u64>("n")?))
    });
    let seen = seen.await.ok().body;
    assert_eq!(n(&client).await, seen);
}

/// A session that was revoked while a request held it, and what `clear` does then: the answer should not depend on
/// whether something was saved in between.
#[tokio::test]
async fn clear_by_a_session_that_was_revoked_meanwhile_is_one_thing_or_the_other() {
    let mut left = Vec::new();
    for save_first in [false, true] {
        let store = Store::memory().await;
        let sessions = store.sessions();
        let client = Client::new(&store.layer());
        client.does(|session| session.create("ada", json!({}))).await.ok();
        sessions.create("ada", json!({})).await.unwrap();
        let answer = client.visit(async |session: Session| {
            sessions.revoke("ada", session.handle().unwrap()).await?;
            if save_first {
                session.insert("n", 1)?;
                let _ = session.save().await;
            }
            session.clear();
            Ok(())
        });
        let status = answer.await.status;
        left.push((status.as_u16(), sessions.list("ada").await.unwrap().len()));
    }
    assert_eq!(left[0], left[1], "(status, sessions of ada left): without and with a save before");
}

async fn save_says_so_when_delete_and_insert_on_a_replaced_id_drop_the_insert(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("n", 1)).await.ok();
    let old = client.thief();
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let answer = old.visit(async |session: Session| {
        session.delete();
        session.insert("m", 1)?;
        let saved = session.save().await.map_err(|error| error.kind());
        Ok(format!("{saved:?} {:?}", session.get::<u8>("m")?))
    });
    let body = answer.await.ok().body;
    assert!(body.starts_with("Err(NotFound)"), "{body}");
}

async fn a_login_that_starts_afresh_does_not_inherit_the_idle_time_of_the_anonymous_session(store: Store) {
    let client = Client::new(&store.layer());
    let cart = client.does(|session| {
        session.insert("cart", 1)?;
        session.set_ttl(Duration::from_secs(20 * 3600));
        Ok(())
    });
    cart.await.ok();
    client.does(|session| session.create("ada", json!({}))).await.ok();
    store.pass(Duration::from_secs(3600));
    let key = client.does(|session| Ok(format!("{:?}", session.key()))).await.body;
    assert_eq!(key, "None", "default_ttl is an hour");
}

async fn a_ttl_recorded_before_a_login_as_another_user_is_dropped_with_the_rest(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let login = client.does(|session| {
        session.set_ttl(Duration::from_secs(20 * 3600));
        session.bind("grace");
        Ok(())
    });
    login.await.ok();
    store.pass(Duration::from_secs(3600));
    let key = client.does(|session| Ok(format!("{:?}", session.key()))).await.body;
    assert_eq!(key, "None");
}

#[tokio::test]
async fn p07_a_logout_with_a_flash_beside_bind_does_not_overwrite_the_logins_cookie() {
    for clear in [false, true] {
        let store = Store::memory().await;
        let client = Client::new(&store.layer());
        client.does(|session| session.insert("cart", 1)).await.ok();
        let slow = client.thief();
        let answer = slow.visit(async |session: Session| {
            let login = client.does(|session| {
                session.bind("ada");
                Ok(())
            });
            login.await.ok().new_id().unwrap();
            if clear {
                session.clear()
            } else {
                session.delete()
            }
            session.insert("flash", "bye")
        });
        answer.await.ok().sets_no_cookie();
    }
}

async fn a_login_whose_create_got_no_answer_leaves_no_session_behind(store: Store) {
    let client = Client::new(&store.layer());
    store.faults.next(Verb::Create, Fault::After);
    let answer = client.does(|session| {
        session.bind("ada");
        Ok(())
    });
    assert_eq!(answer.await.status, 503);
    eventually(async || store.sessions().list("ada").await.unwrap().is_empty()).await;
}

#[tokio::test]
async fn a_serializer_that_fails_to_write_does_not_keep_a_session_from_ending() {
    #[derive(Clone, Default)]
    struct Fails(Arc<AtomicUsize>);
    impl Serializer for Fails {
        fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError> {
            if self.0.load(SeqCst) > 0 {
                return Err("the key service is away".into());
            }
            Ok(serde_json::to_vec(data)?)
        }
        fn read(&self, bytes: &[u8]) -> Result<Data, BoxError> {
            Ok(serde_json::from_slice(bytes)?)
        }
    }
    let fails = Fails::default();
    let sessions = MemorySessions::builder().serializer(fails.clone()).build().unwrap();
    let id = sessions.create("ada", json!({})).await.unwrap();
    fails.0.store(1, SeqCst);
    let deleted = sessions.delete(&id).await.map_err(|error| error.kind());
    assert_eq!(deleted, Ok(()));
}

#[tokio::test]
async fn p17_a_session_of_the_largest_size_can_be_ended_and_rotated() {
    let size = {
        let sessions = MemorySessions::new();
        let id = sessions.create("ada", json!({})).await.unwrap();
        sessions.backend().load(record_id(id.as_str())).await.unwrap().unwrap().payload.len()
    };
    let sessions = MemorySessions::builder().max_size(size).build().unwrap();
    let id = sessions.create("ada", json!({})).await.unwrap();
    let rotated = sessions.rework(&id).await.map(drop).map_err(|error| error.kind());
    let deleted = sessions.delete(&id).await.map_err(|error| error.kind());
    assert_eq!((rotated, deleted), (Ok(()), Ok(())));
}

#[tokio::test]
async fn the_innermost_layers_session_is_the_one_that_handlers_get() {
    let (a, b) = (Store::memory().await, Store::memory().await);
    let (a, b) = (a.layer().cookie_name("__Host-a"), b.layer().cookie_name("__Host-b"));
    let app = axum::Router::new()
        .route("/", axum::routing::get(async |session: Session| session.insert("n", 1)))
        .layer(a.clone())
        .layer(b)
        .layer(a);
    let request = http::Request::new(axum::body::Body::empty());
    let response = tower::ServiceExt::oneshot(app, request).await.unwrap();
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with("__Host-a="), "{cookie}");
}

async fn docs_backend_nothing_else_is_called_after_close(store: Store) {
    let sessions = store.sessions();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    client.does(|session| session.insert("n", 1)).await.ok();
    // A login that fails halfway removes the new session in a task without a permit.
    store.faults.next(Verb::Update, Fault::Before);
    let answer = client.does(|session| {
        session.bind("ada");
        Ok(())
    });
    assert_eq!(answer.await.status, 503);
    sessions.close().await.unwrap();
    store.faults.calls();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(store.faults.calls().is_empty(), "called after close");
}

async fn p07_a_login_after_a_save_that_said_not_found_does_not_take_the_dead_sessions_data_along(store: Store) {
    let sessions = store.sessions();
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({"card": 4111}))).await.ok();
    let answer = client.visit(async |session: Session| {
        sessions.clear("ada").await?;
        session.insert("n", 1)?;
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::NotFound);
        session.bind("grace");
        Ok(())
    });
    answer.await.ok().new_id().unwrap();
    let names = client.does(|session| Ok(session.data()?.names().collect::<Vec<_>>().join(",")));
    assert_eq!(names.await.body, "", "ada's data is grace's now");
}

async fn p07_what_was_recorded_before_bind_to_another_user_is_dropped_also_with_clear(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let answer = client.does(|session| {
        session.insert("card", 4111)?;
        session.bind("grace");
        session.clear();
        assert!(session.data()?.is_empty());
        Ok(())
    });
    answer.await.ok().new_id().unwrap();
    let names = client.does(|session| Ok(session.data()?.names().collect::<Vec<_>>().join(",")));
    assert_eq!(names.await.body, "");
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
    assert_eq!(freed.load(SeqCst), 1, "session, log, closure, session: a circle");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p19_a_keyed_session_gets_in_while_anonymous_ones_come_and_go() {
    let sessions = MemorySessions::builder().max_sessions(3).build().unwrap();
    let stop = Arc::new(AtomicUsize::new(0));
    let visitors: Vec<_> = (0..4)
        .map(|t| {
            let (sessions, stop) = (sessions.clone(), stop.clone());
            tokio::task::spawn_blocking(move || {
                let mut i = 0_u64;
                while stop.load(SeqCst) == 0 {
                    i += 1;
                    let id = format!("{t}-{i:020}").parse().unwrap();
                    let record = Record { id, version: 1, ttl: Duration::from_secs(9), payload: Vec::new().into() };
                    let _ = futures_util::FutureExt::now_or_never(sessions.backend().create(record)).unwrap();
                }
            })
        })
        .collect();
    let (tries, mut refused) = (1000, 0);
    for _ in 0..tries {
        match sessions.create("ada", json!({})).await {
            Ok(id) => sessions.delete(&id).await.unwrap_or_default(),
            Err(_) => refused += 1,
        }
        sessions.clear("ada").await.unwrap();
    }
    stop.store(1, SeqCst);
    for visitor in visitors {
        visitor.await.unwrap();
    }
    assert_eq!(refused, 0, "of {tries} logins, with at most one keyed session of three");
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
fn a_closure_that_writes_to_its_session_does_not_run_for_ever() {
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
    assert!(back && runs < 10, "the closure ran {runs} times");
}

#[test]
fn a_closure_may_own_something_that_looks_at_the_session_when_dropped() {
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
    assert!(back, "State::keep_endings drops the closure under the lock");
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
    assert!(back, "request_time was 100 ms");
}
