//! The limit of a user's sessions.

use std::{collections::BTreeSet, future::ready, sync::Arc, time::Duration};

use http::StatusCode;
use jam_session::{
    ErrorKind, Limit, MemorySessions, Session, SessionLayer, Sessions,
    conformance::{Fault, Verb},
};
use serde_json::json;
use tokio::sync::Notify;

use crate::{
    client::{Answer, Client, bind_ada, increment, rework},
    on_every_store,
    store::{Options, Store, Watched},
};

on_every_store! {
    p20_a_hundred_parallel_logins_leave_as_many_sessions_as_the_limit,
    p20_above_the_limit_the_least_recently_used_session_ends,
    p20_a_new_session_is_never_the_one_that_ends,
    p20_signing_in_again_on_the_same_session_counts_once,
    p20_a_login_that_is_tried_again_ends_one_session_only,
    p20_a_login_above_a_limit_that_refuses_is_a_409_and_changes_nothing,
    p20_of_parallel_logins_a_limit_that_refuses_lets_in_as_many_as_there_is_room_for,
    p20_a_lower_limit_takes_effect_at_the_next_login,
    p20_a_login_that_ends_the_others_is_not_refused,
    p20_a_switch_of_user_by_key_ends_no_session_of_the_new_user,
    p20_there_may_be_a_hundred_sessions_by_default,
    p20_visitors_have_no_limit,
}

fn limited(store: &Store, limit: impl Into<Limit>) -> Sessions<Watched> {
    store.sessions_with(Options { sessions_per_key: Some(limit.into()), ..Options::default() })
}

fn layer(store: &Store, limit: impl Into<Limit>) -> SessionLayer {
    SessionLayer::new(limited(store, limit))
}

/// Whether the browser is signed in.
async fn is_ada(client: &Client) -> bool {
    client.does(|session| Ok(format!("{:?}", session.key()))).await.body == r#"Some("ada")"#
}

/// A browser in which the user has just signed in.
async fn signed_in(layer: &SessionLayer) -> Client {
    let client = Client::new(layer);
    client.does(bind_ada).await.ok();
    client
}

async fn handles(sessions: &Sessions<Watched>) -> BTreeSet<String> {
    sessions.list("ada").await.unwrap().into_iter().map(|info| info.handle).collect()
}

/// The handle of the session in this browser.
fn handle(client: &Client) -> String {
    crate::store::record_id(&client.id().unwrap()).sid().to_owned()
}

async fn p20_a_hundred_parallel_logins_leave_as_many_sessions_as_the_limit(store: Store) {
    // As many processes over one store, which share nothing else.
    let processes: Vec<_> = (0..4).map(|_| limited(&store, 5)).collect();
    let logins = (0..100).map(|at| {
        let (sessions, looks) = (processes[at % 4].clone(), processes[(at + 1) % 4].clone());
        tokio::spawn(async move {
            let client = Client::new(&SessionLayer::new(sessions.clone()));
            if at % 2 == 0 {
                client.does(bind_ada).await.ok().new_id().unwrap();
            } else {
                let login = sessions.login("ada").await.unwrap();
                let answer = client.does(|session| {
                    session.bind(login);
                    Ok(())
                });
                answer.await.ok().new_id().unwrap();
            }
            let there = looks.list("ada").await.unwrap().len();
            assert!(there <= 5, "once a login was answered there are {there} sessions");
            client
        })
    });
    let mut live = 0;
    let tasks: Vec<_> = logins.collect();
    let mut clients = Vec::new();
    for task in tasks {
        clients.push(task.await.unwrap());
    }
    for client in &clients {
        live += usize::from(is_ada(client).await);
    }
    assert_eq!((live, processes[0].list("ada").await.unwrap().len()), (5, 5));
    // The one just created is among them.
    let last = signed_in(&SessionLayer::new(processes[3].clone())).await;
    assert!(is_ada(&last).await);
    assert_eq!(processes[0].list("ada").await.unwrap().len(), 5);
}

async fn p20_above_the_limit_the_least_recently_used_session_ends(store: Store) {
    let options = Options {
        sessions_per_key: Some(Limit::from(3)),
        touch_interval: Some(Duration::from_millis(1)),
        ..Options::default()
    };
    let sessions = store.sessions_with(options);
    let layer = SessionLayer::new(sessions.clone());
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(signed_in(&layer).await);
        tick(&store).await;
    }
    // A read is heard of by a touch, a write by an update. What is only listed is not heard of.
    let touched = Arc::new(Notify::new());
    let tell = Arc::clone(&touched);
    let is_done = Fault::change(move |_, answer| {
        tell.notify_one();
        ready(answer)
    });
    store.faults.next(Verb::Touch, is_done);
    assert!(is_ada(&clients[0]).await);
    touched.notified().await;
    tick(&store).await;
    clients[1].does(increment).await.ok();
    tick(&store).await;
    sessions.list("ada").await.unwrap();
    sessions.info(clients[2].id().unwrap()).await.unwrap().unwrap();
    for (new, ended) in [(3, 2), (4, 0), (5, 1)] {
        let before = handles(&sessions).await;
        clients.push(signed_in(&layer).await);
        let expected = before.iter().filter(|there| **there != handle(&clients[ended])).cloned();
        let expected: BTreeSet<String> = expected.chain([handle(&clients[new])]).collect();
        assert_eq!(handles(&sessions).await, expected, "at login {new}");
        tick(&store).await;
    }
    for ended in &clients[..3] {
        assert!(!is_ada(ended).await);
        // It brings nothing back.
        ended.does(increment).await.ok();
        ended.does(rework).await.ok();
        assert!(!is_ada(ended).await);
    }
    assert_eq!(handles(&sessions).await.len(), 3);
}

/// As much time as the store can tell.
async fn tick(store: &Store) {
    match store.is_remote() {
        // Its clock is its own.
        true => tokio::time::sleep(Duration::from_millis(3)).await,
        false => store.pass(Duration::from_secs(1)),
    }
}

async fn p20_a_new_session_is_never_the_one_that_ends(store: Store) {
    // All at one moment, as far as the clock says.
    let (sessions, layer) = (limited(&store, 1), layer(&store, 1));
    let mut last: Option<Client> = None;
    for _ in 0..10 {
        let client = signed_in(&layer).await;
        assert!(is_ada(&client).await);
        assert_eq!(handles(&sessions).await, [handle(&client)].into());
        if let Some(before) = last.replace(client) {
            assert!(!is_ada(&before).await);
        }
    }
    let id = sessions.create("ada", json!({})).await.unwrap();
    assert!(sessions.get(&id).await.unwrap().is_some());
    assert!(!is_ada(&last.unwrap()).await);
}

async fn p20_signing_in_again_on_the_same_session_counts_once(store: Store) {
    for limit in [Limit::from(2), Limit::refuse(2)] {
        let (sessions, layer) = (limited(&store, limit), layer(&store, limit));
        sessions.clear("ada").await.unwrap();
        let (one, other) = (signed_in(&layer).await, signed_in(&layer).await);
        for at in 0..4 {
            match at % 2 {
                0 => one.does(bind_ada).await.ok(),
                _ => one.does(|session| session.create("ada", json!({}))).await.ok(),
            };
            one.does(rework).await.ok();
            let login = sessions.login("ada").await.unwrap();
            let again = one.does(|session| {
                session.bind(login);
                Ok(())
            });
            again.await.ok();
        }
        assert!(is_ada(&one).await && is_ada(&other).await);
        assert_eq!(handles(&sessions).await, [handle(&one), handle(&other)].into());
    }
}

async fn p20_a_login_that_is_tried_again_ends_one_session_only(store: Store) {
    let sessions = limited(&store, 3);
    let layer = SessionLayer::new(sessions.clone());
    for fault in [Fault::Before, Fault::After] {
        let mut others = Vec::new();
        for _ in 0..3 {
            others.push(signed_in(&layer).await);
            tick(&store).await;
        }
        let client = Client::new(&layer);
        client.does(|session| session.insert("n", 1)).await.ok();
        store.faults.next(Verb::Create, fault);
        let answer = client.visit(async |session: Session| {
            session.bind("ada");
            assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Unavailable);
            // With the response it is tried again.
            Ok(())
        });
        answer.await.ok().new_id().unwrap();
        assert!(is_ada(&client).await);
        assert_eq!(client.n().await, "Some(1)");
        let expected: BTreeSet<String> = others[1..].iter().chain([&client]).map(handle).collect();
        assert_eq!(handles(&sessions).await, expected);
        sessions.clear("ada").await.unwrap();
        // A store need not know whether that ended what is tried again.
        store.pass(Duration::from_secs(60));
    }
}

#[track_caller]
fn is_full(answer: Answer) {
    assert_eq!(answer.sets_no_cookie().status, StatusCode::CONFLICT);
}

async fn p20_a_login_above_a_limit_that_refuses_is_a_409_and_changes_nothing(store: Store) {
    let sessions = limited(&store, Limit::refuse(2));
    let layer = SessionLayer::new(sessions.clone());
    let (one, other) = (signed_in(&layer).await, signed_in(&layer).await);
    let before = handles(&sessions).await;
    let third = Client::new(&layer);
    third.does(|session| session.insert("n", 1)).await.ok();
    let login = sessions.login("ada").await.unwrap();
    for at in 0..3 {
        let login = login.clone();
        let answer = third.does(|session| {
            session.insert("n", 2)?;
            match at {
                0 => session.bind("ada"),
                1 => session.bind(login),
                _ => session.create("ada", json!({}))?,
            }
            Ok(())
        });
        is_full(answer.await);
        assert_eq!(third.n().await, "Some(1)", "the visitor's session is as before");
    }
    // A handler can show its own page.
    let answer = third.visit(async |session: Session| {
        session.bind("ada");
        let error = session.save().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full);
        assert_eq!(error.kind().status(), StatusCode::CONFLICT);
        Ok("which one of these?")
    });
    assert_eq!(answer.await.ok().sets_no_cookie().body, "which one of these?");
    assert_eq!(sessions.create("ada", json!({})).await.unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(handles(&sessions).await, before);
    assert!(is_ada(&one).await && is_ada(&other).await);
    // Another user is not concerned, and once one has ended there is room.
    Client::new(&layer).does(|session| session.create("grace", json!({}))).await.ok();
    assert!(sessions.revoke("ada", &handle(&one)).await.unwrap());
    third.does(bind_ada).await.ok().new_id().unwrap();
    assert!(is_ada(&third).await && is_ada(&other).await);
    assert_eq!(third.n().await, "Some(1)");
}

async fn p20_of_parallel_logins_a_limit_that_refuses_lets_in_as_many_as_there_is_room_for(store: Store) {
    let processes: Vec<_> = (0..2).map(|_| layer(&store, Limit::refuse(5))).collect();
    let logins: Vec<_> = (0..40)
        .map(|at| {
            let client = Client::new(&processes[at % 2]);
            tokio::spawn(async move {
                let answer = client.does(bind_ada).await;
                assert!([StatusCode::OK, StatusCode::CONFLICT].contains(&answer.status), "{answer:?}");
                usize::from(answer.status == StatusCode::OK)
            })
        })
        .collect();
    let mut done = 0;
    for login in logins {
        done += login.await.unwrap();
    }
    assert_eq!((done, store.sessions().list("ada").await.unwrap().len()), (5, 5));
}

async fn p20_a_lower_limit_takes_effect_at_the_next_login(store: Store) {
    let (before, after) = (layer(&store, 6), limited(&store, 2));
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(signed_in(&before).await);
        tick(&store).await;
    }
    assert_eq!(handles(&after).await.len(), 6);
    let new = signed_in(&SessionLayer::new(after.clone())).await;
    assert_eq!(handles(&after).await, [handle(&clients[5]), handle(&new)].into());
    // One that refuses ends none of those that there are.
    let refuses = layer(&store, Limit::refuse(1));
    is_full(Client::new(&refuses).does(bind_ada).await);
    assert_eq!(handles(&after).await.len(), 2);
}

/// The limit is for what stays: a link to reset a password works for whoever has as many sessions as there may be.
async fn p20_a_login_that_ends_the_others_is_not_refused(store: Store) {
    let sessions = limited(&store, Limit::refuse(1));
    let layer = SessionLayer::new(sessions.clone());
    for leave in [(|session| session.clear_others()) as fn(&Session), |session| session.clear()] {
        let other = signed_in(&layer).await;
        let client = Client::new(&layer);
        let login = sessions.login("ada").await.unwrap();
        let answer = client.does(|session| {
            leave(session);
            session.bind(login);
            Ok(())
        });
        answer.await.ok().new_id().unwrap();
        assert!(is_ada(&client).await && !is_ada(&other).await);
        assert_eq!(handles(&sessions).await, [handle(&client)].into());
        sessions.clear("ada").await.unwrap();
    }
}

/// The new session may have to be removed again. The next login applies the limit.
async fn p20_a_switch_of_user_by_key_ends_no_session_of_the_new_user(store: Store) {
    let sessions = limited(&store, 1);
    let layer = SessionLayer::new(sessions.clone());
    let ada = signed_in(&layer).await;
    let client = Client::new(&layer);
    client.does(|session| session.create("grace", json!({}))).await.ok();
    client.does(bind_ada).await.ok().new_id().unwrap();
    assert!(is_ada(&ada).await && is_ada(&client).await);
    assert!(sessions.list("grace").await.unwrap().is_empty());
    let last = signed_in(&layer).await;
    assert_eq!(handles(&sessions).await, [handle(&last)].into());
}

async fn p20_there_may_be_a_hundred_sessions_by_default(store: Store) {
    let sessions = store.sessions();
    let first = sessions.create("ada", json!({})).await.unwrap();
    tick(&store).await;
    for _ in 1..100 {
        sessions.create("ada", json!({})).await.unwrap();
    }
    assert!(sessions.get(&first).await.unwrap().is_some());
    assert_eq!(sessions.list("ada").await.unwrap().len(), 100);
    sessions.create("ada", json!({})).await.unwrap();
    assert_eq!(sessions.list("ada").await.unwrap().len(), 100);
    // With none, there can be any number.
    let all = limited(&store, Limit::none());
    for _ in 0..3 {
        all.create("ada", json!({})).await.unwrap();
    }
    assert_eq!(sessions.list("ada").await.unwrap().len(), 103);
}

async fn p20_visitors_have_no_limit(store: Store) {
    for limit in [Limit::from(1), Limit::refuse(1)] {
        let layer = layer(&store, limit);
        let mut visitors = Vec::new();
        for _ in 0..5 {
            let visitor = Client::new(&layer);
            visitor.does(increment).await.ok();
            visitors.push(visitor);
        }
        for visitor in visitors {
            assert_eq!(visitor.n().await, "Some(1)");
        }
    }
}

#[test]
fn p20_a_limit_of_zero_is_refused() {
    for limit in [Limit::from(0), Limit::refuse(0)] {
        let error = MemorySessions::builder().sessions_per_key(limit).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("sessions_per_key"), "{error}");
    }
}
