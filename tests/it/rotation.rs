//! Rotation: what `rework` does to the ID, and how long the previous ID works.

use std::time::Duration;

use jam_session::{
    ErrorKind, Session,
    conformance::{Fault, Verb},
};
use serde_json::json;

use crate::{
    client::{Client, rework},
    on_every_store,
    store::{Options, Store},
};

on_every_store! {
    p06_rework_keeps_everything_but_the_id,
    p06_the_id_before_works_for_the_grace_and_no_longer,
    p06_the_grace_is_never_extended_and_never_cut,
    p06_without_grace_the_id_before_is_dead_at_once,
    p06_parallel_reworks_rotate_once,
    p06_rework_with_the_id_before_sets_no_cookie,
    p06_rework_of_a_new_session_works,
    p06_two_reworks_in_one_request_are_one,
    p06_a_rework_whose_answer_was_lost_and_is_repeated_gives_the_browser_the_new_id,
    p06_a_rework_that_lost_without_grace_gives_no_dead_id,
}

async fn p06_rework_keeps_everything_but_the_id(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
    let before = (client.id().unwrap(), sessions.list("ada").await.unwrap().remove(0));
    store.pass(Duration::from_secs(60));
    store.faults.calls();

    let answer = client.does(|session| {
        session.rework();
        session.insert("m", 2)
    });
    let after = answer.await.ok().new_id().unwrap();
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Update]);
    assert_ne!(after, before.0);
    let info = sessions.list("ada").await.unwrap().remove(0);
    assert_eq!((&info.handle, info.created), (&before.1.handle, before.1.created));
    assert_eq!(client.does(|session| Ok(session.data()?.names().count().to_string())).await.body, "2");

    // The deadline stays too: a cookie set now ends when the first one did.
    let answer = client.does(|session| {
        session.rework();
        Ok(())
    });
    assert!(answer.await.set_cookies()[0].contains(&format!("Max-Age={}", 30 * 86_400 - 60)));
}

async fn p06_the_id_before_works_for_the_grace_and_no_longer(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let before = client.thief();
    client.does(rework).await.ok();

    store.pass(Duration::from_millis(9_999));
    let answer = before.does(|session| {
        session.insert("late", 1)?;
        Ok(session.key().unwrap())
    });
    assert_eq!(answer.await.ok().sets_no_cookie().body, "ada");
    assert_eq!(client.does(|session| Ok(session.get::<u8>("late")?.unwrap().to_string())).await.body, "1");

    store.pass(Duration::from_millis(1));
    assert_eq!(before.does(|session| Ok(session.key().is_none().to_string())).await.sets_no_cookie().body, "true");
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
}

/// While four of them are in their grace, a further rotation keeps the secret: none is forgotten early.
async fn p06_the_grace_is_never_extended_and_never_cut(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let (mut before, mut rotated) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        before.push(client.thief());
        rotated.push(client.does(rework).await.ok().new_id().is_some());
        store.pass(Duration::from_secs(1));
    }
    assert_eq!(rotated, [true, true, true, true, false, false]);
    let is_alive =
        async |old: &Client| old.does(|session| Ok(session.key().is_some().to_string())).await.body == "true";
    for old in &before {
        assert!(is_alive(old).await);
    }
    // The first was replaced at 0 s, and ends at 10 s, however often it was used; then there is room for another.
    store.pass(Duration::from_secs(4));
    assert!(!is_alive(&before[0]).await && is_alive(&before[1]).await);
    assert!(client.does(rework).await.ok().new_id().is_some());
    assert!(is_alive(&before[1]).await);
}

async fn p06_without_grace_the_id_before_is_dead_at_once(store: Store) {
    let layer = store.layer_with(Options { rework_grace: Some(Duration::ZERO), ..Options::default() });
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let before = client.thief();
    client.does(rework).await.ok();
    assert_eq!(before.does(|session| Ok(session.key().is_none().to_string())).await.body, "true");
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
}

async fn p06_parallel_reworks_rotate_once(store: Store) {
    for grace in [Duration::from_secs(10), Duration::ZERO] {
        // Half of them in another process.
        let options = Options { rework_grace: Some(grace), ..Options::default() };
        let layers = [store.layer_with(options.clone()), store.layer_with(options)];
        let client = Client::new(&layers[0]);
        client.does(|session| session.create("ada", json!({}))).await.ok();
        let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(20));
        let tabs = (0..20).map(|i| {
            let (tab, barrier) = (client.thief().at(&layers[i % 2]), barrier.clone());
            tokio::spawn(async move {
                let answer = tab.visit(async |session: Session| {
                    barrier.wait().await;
                    session.rework();
                    session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1)
                });
                answer.await.ok().new_id()
            })
        });
        let ids: Vec<_> = futures_util::future::join_all(tabs).await.into_iter().filter_map(Result::unwrap).collect();
        assert_eq!(ids.len(), 1, "with a grace of {grace:?}");
        client.set_id(&ids[0]);
        // And none of the writes was lost.
        assert_eq!(client.does(|session| Ok(session.get::<u64>("n")?.unwrap().to_string())).await.body, "20");
    }
}

async fn p06_rework_with_the_id_before_sets_no_cookie(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let before = client.thief();
    client.does(rework).await.ok();
    before.does(rework).await.ok().sets_no_cookie();
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
}

async fn p06_rework_of_a_new_session_works(store: Store) {
    let client = Client::new(&store.layer());
    let answer = client.does(|session| {
        session.rework();
        session.insert("n", 1)
    });
    assert!(answer.await.ok().new_id().is_some());
    assert_eq!(store.faults.calls(), [Verb::Create]);
}

async fn p06_two_reworks_in_one_request_are_one(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    store.faults.calls();
    client
        .does(|session| {
            session.rework();
            session.rework();
            Ok(())
        })
        .await
        .ok()
        .new_id()
        .unwrap();
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Update]);
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
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
        Ok(id) => assert!(sessions.get(&id).await.unwrap().is_some(), "the new ID is dead: the user is signed out"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
    }
}
