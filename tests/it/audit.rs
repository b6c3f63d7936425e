//! Events for the application, and log messages about the store for the operator.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http::StatusCode;
use jam_session::{
    Error, ErrorKind, EventKind, Limit, Refusal, Session, SessionLayer, Sessions,
    conformance::{Fault, Verb},
};
use serde_json::json;

use crate::{
    client::{Client, bind_ada, clear_others, delete, increment, rework},
    events::Events,
    store::{Store, Watched},
};

type Told = (EventKind, Option<String>, Option<String>);

/// Sessions of which each event is kept.
fn audited(store: &Store, limit: Limit) -> (Sessions<Watched>, Arc<Mutex<Vec<Told>>>) {
    let told: Arc<Mutex<Vec<Told>>> = Arc::default();
    let keep = Arc::clone(&told);
    let builder = Sessions::over(store.watched()).clock(store.clock.clone()).sessions_per_key(limit);
    let sessions = builder.on_event(move |event| {
        keep.lock().unwrap().push((event.kind, event.session.map(str::to_owned), event.key.map(str::to_owned)));
    });
    (sessions.build().unwrap(), told)
}

/// What was told since the last time.
fn kinds(told: &Mutex<Vec<Told>>) -> Vec<EventKind> {
    std::mem::take(&mut *told.lock().unwrap()).into_iter().map(|(kind, ..)| kind).collect()
}

#[tokio::test]
async fn p24_each_thing_that_happens_to_a_session_is_told_once() {
    let store = Store::memory().await;
    let (sessions, told) = audited(&store, Limit::none());
    let layer = SessionLayer::new(sessions.clone());
    let client = Client::new(&layer);
    client.does(increment).await.ok();
    let visitor = told.lock().unwrap()[0].1.clone();
    assert_eq!((kinds(&told), visitor.is_some()), (vec![EventKind::Created], true));

    client.does(bind_ada).await.ok();
    let handle = sessions.list("ada").await.unwrap()[0].handle.clone();
    let expected = (EventKind::SignedIn, Some(handle.clone()), Some("ada".to_owned()));
    assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [expected]);

    client.does(bind_ada).await.ok();
    assert_eq!(kinds(&told), [EventKind::SignedInAgain]);
    client.does(rework).await.ok();
    assert_eq!(kinds(&told), [EventKind::Rotated]);
    // A write, and a read, are none.
    client.does(increment).await.ok();
    client.n().await;
    assert_eq!(kinds(&told), []);

    let other = Client::new(&layer);
    other.does(bind_ada).await.ok();
    kinds(&told);
    client.does(clear_others).await.ok();
    assert_eq!(kinds(&told), [EventKind::Cleared { ended: 1, others: true }]);
    client
        .does(|session| {
            session.bind("eve");
            Ok(())
        })
        .await
        .ok();
    assert_eq!(kinds(&told), [EventKind::SignedIn, EventKind::SignedOut]);
    client.does(delete).await.ok();
    assert_eq!(kinds(&told), [EventKind::SignedOut]);

    let id = sessions.create("ada", json!({})).await.unwrap();
    let id = sessions.rework(&id).await.unwrap();
    sessions.delete(&id).await.unwrap();
    sessions.delete(&id).await.unwrap();
    assert_eq!(kinds(&told), [EventKind::SignedIn, EventKind::Rotated, EventKind::SignedOut]);
    sessions.create("ada", json!({})).await.unwrap();
    sessions.create("ada", json!({})).await.unwrap();
    let handle = sessions.list("ada").await.unwrap()[0].handle.clone();
    assert!(sessions.revoke("ada", &handle).await.unwrap() && !sessions.revoke("ada", &handle).await.unwrap());
    assert_eq!(sessions.clear("ada").await.unwrap(), 1);
    assert_eq!(kinds(&told)[2..], [EventKind::Revoked, EventKind::Cleared { ended: 1, others: false }]);
}

#[tokio::test]
async fn p24_who_is_signed_out_by_the_limit_is_told_and_who_is_refused_too() {
    let store = Store::memory().await;
    let (sessions, told) = audited(&store, Limit::from(1));
    sessions.create("ada", json!({})).await.unwrap();
    let first = sessions.list("ada").await.unwrap()[0].handle.clone();
    sessions.create("ada", json!({})).await.unwrap();
    let all = std::mem::take(&mut *told.lock().unwrap());
    assert_eq!(all[2], (EventKind::Limited, Some(first), Some("ada".to_owned())));
    assert_eq!(all.len(), 3);

    let (sessions, told) = audited(&store, Limit::refuse(1));
    assert_eq!(sessions.create("ada", json!({})).await.unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(kinds(&told), [EventKind::Refused(Refusal::Full)]);
    let client = Client::new(&SessionLayer::new(sessions));
    let answer = client.does(bind_ada).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!(
        std::mem::take(&mut *told.lock().unwrap()),
        [(EventKind::Refused(Refusal::Full), None, Some("ada".to_owned()))]
    );
}

#[tokio::test]
async fn p24_a_refused_login_is_told_with_the_reason() {
    let store = Store::memory().await;
    let (sessions, told) = audited(&store, Limit::none());
    let layer = SessionLayer::new(sessions.clone());
    let login = sessions.login("ada").await.unwrap();
    sessions.clear("ada").await.unwrap();
    kinds(&told);
    let client = Client::new(&layer);
    let answer = client
        .does(|session| {
            session.bind(login);
            Ok(())
        })
        .await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(kinds(&told), [EventKind::Refused(Refusal::Cleared)]);

    client.does(bind_ada).await.ok();
    let copy = client.thief();
    client.does(rework).await.ok();
    kinds(&told);
    assert_eq!(copy.does(bind_ada).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(kinds(&told), [EventKind::Refused(Refusal::NotNewest)]);
}

#[tokio::test]
async fn p24_a_listener_that_panics_breaks_no_request() {
    let store = Store::memory().await;
    let sessions = Sessions::over(store.watched()).on_event(|_| panic!("a listener")).build().unwrap();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    let (events, _guard) = Events::collect();
    client.does(bind_ada).await.ok();
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    assert!(
        events
            .text()
            .lines()
            .any(|line| line.starts_with("ERROR") && line.contains("the `on_event` callback panicked"))
    );
}

/// With the cause. A stranger's requests do not fill the log.
#[tokio::test]
async fn p24_a_store_that_fails_is_one_line_and_that_it_works_again_another() {
    let store = Store::memory().await;
    let client = Client::new(&store.layer());
    client.does(increment).await.ok();
    let (events, _guard) = Events::collect();
    let above_debug = || {
        let text = events.text();
        text.lines().filter(|line| !line.starts_with("DEBUG")).map(str::to_owned).collect::<Vec<_>>()
    };
    store.faults.always(Verb::Load, Fault::Before);
    for _ in 0..50 {
        assert_eq!(client.does(increment).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    let lines = above_debug();
    assert!(lines.len() == 1 && lines[0].starts_with("WARN") && lines[0].contains("the store is failing"), "{lines:?}");
    assert!(lines[0].contains("was lost, as a test wanted it"), "{lines:?}");
    store.faults.heal();
    // One that fails and works by turns is failing.
    for _ in 0..10 {
        client.does(increment).await.ok();
        store.faults.next(Verb::Update, Fault::Before);
        assert_eq!(client.does(increment).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(above_debug().len(), 1);
    store.clock.advance(Duration::from_secs(5));
    client.does(increment).await.ok();
    client.does(increment).await.ok();
    let lines = above_debug();
    assert!(lines.len() == 2 && lines[1].starts_with("INFO") && lines[1].contains("again"), "{lines:?}");
    // The next time it is said again.
    store.faults.next(Verb::Load, Fault::Before);
    client.does(increment).await;
    assert_eq!(above_debug().len(), 3);
}

#[tokio::test]
async fn p24_what_a_stream_wrote_and_never_saved_is_a_warning() {
    let store = Store::memory().await;
    let client = Client::new(&store.layer());
    client.does(increment).await.ok();
    let (events, _guard) = Events::collect();
    let warned = || events.text().lines().filter(|line| line.starts_with("WARN")).count();
    let kept: Arc<Mutex<Option<Session>>> = Arc::default();
    let keep = |session: Session| {
        let kept = Arc::clone(&kept);
        async move {
            *kept.lock().unwrap() = Some(session);
            Ok::<_, Error>(())
        }
    };
    client.visit(keep).await.ok();
    // One that saves, one that only reads, and one that forgets to save.
    let session = kept.lock().unwrap().take().unwrap();
    session.insert("n", 7).unwrap();
    session.save().await.unwrap();
    drop(session);
    client.visit(keep).await.ok();
    let session = kept.lock().unwrap().take().unwrap();
    assert_eq!(session.get::<u64>("n").unwrap(), Some(7));
    drop(session);
    assert_eq!(warned(), 0, "{}", events.text());
    client.visit(keep).await.ok();
    let session = kept.lock().unwrap().take().unwrap();
    let clone = session.clone();
    session.insert("n", 8).unwrap();
    drop(session);
    assert_eq!(warned(), 0);
    drop(clone);
    assert_eq!(warned(), 1);
    assert!(events.text().contains("never saved"));
}

/// Nothing that somebody could sign in with, or that is the user's, is in a line or in an event's `Debug`.
#[tokio::test]
async fn p24_no_line_has_an_id_a_key_or_data() {
    let store = Store::memory().await;
    let seen = Arc::new(AtomicBool::new(false));
    let is_seen = Arc::clone(&seen);
    let builder = Sessions::over(store.watched()).sessions_per_key(1).on_event(move |event| {
        is_seen.fetch_or(format!("{event:?}").contains("ada@"), Relaxed);
    });
    let sessions = builder.build().unwrap();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    let (events, _guard) = Events::collect();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let bind = |session: &Session| session.create("ada@example.com", json!({"secret": "very secret"}));
        ids.extend(client.does(bind).await.ok().new_id());
        ids.extend(client.does(rework).await.ok().new_id());
        ids.push(sessions.create("ada@example.com", json!({})).await.unwrap().as_str().to_owned());
    }
    sessions.clear("ada@example.com").await.unwrap();
    store.faults.next(Verb::Create, Fault::Before);
    let failed = sessions.create("ada@example.com", json!({"secret": "very secret"})).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
    let text = events.text();
    assert!(ids.len() == 6 && text.contains("limited") && text.contains("cleared"), "{text}");
    let secrets = ids.iter().map(|id| id.rsplit('.').next().unwrap());
    for private in secrets.chain(["ada@", "very secret"]) {
        assert!(!text.contains(private), "{private}: {text}");
    }
    assert!(!seen.load(Relaxed));
}
