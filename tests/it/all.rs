//! `all`, `count` and `info`, for administrators.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jam_session::{
    Count, ErrorKind, SessionInfo, SessionLayer, Sessions,
    conformance::{Fault, Verb},
};
use serde_json::json;

use crate::{
    client::{Client, bind_ada, delete, increment, rework},
    on_every_store,
    store::{Options, Store, Watched},
};

on_every_store! {
    p23_all_shows_the_sessions_of_every_user_and_of_visitors,
    p23_all_shows_none_that_had_ended,
    p23_what_lives_throughout_is_included_whatever_begins_and_ends_meanwhile,
    p23_every_session_can_be_ended_while_they_are_read,
    p23_a_page_that_failed_can_be_asked_for_again,
    p23_looking_at_all_counts_as_use_of_none,
    p23_info_tells_of_one_session_and_counts_as_no_use,
    p23_the_count_is_that_of_the_live_sessions,
}

/// All pages of that size, by handle.
async fn all(sessions: &Sessions<Watched>, most: usize) -> BTreeMap<String, SessionInfo> {
    let (mut all, mut pages) = (BTreeMap::new(), sessions.all());
    while let Some(page) = pages.next_page(most).await.unwrap() {
        all.extend(page.into_iter().map(|info| (info.handle.clone(), info)));
    }
    assert!(!pages.may_have_missed());
    // It stays at its end.
    assert!(pages.next_page(most).await.unwrap().is_none());
    all
}

fn handle(id: &str) -> String {
    crate::store::record_id(id).sid().to_owned()
}

async fn visitor(layer: &SessionLayer) -> String {
    let client = Client::new(layer);
    client.does(increment).await.ok();
    client.id().unwrap()
}

async fn p23_all_shows_the_sessions_of_every_user_and_of_visitors(store: Store) {
    let (sessions, layer) = (store.sessions(), store.layer());
    assert!(all(&sessions, 10).await.is_empty());
    let mut expected = BTreeMap::new();
    for at in 0..12 {
        let key = format!("user {}", at % 5);
        let id = sessions.create(&key, json!({"at": at})).await.unwrap();
        expected.insert(handle(id.as_str()), Some(key));
        expected.insert(handle(&visitor(&layer).await), None);
    }
    // One that was changed and has a new ID is the same session.
    let client = Client::new(&layer);
    client.does(bind_ada).await.ok();
    client.does(increment).await.ok();
    client.does(rework).await.ok();
    expected.insert(handle(&client.id().unwrap()), Some("ada".to_owned()));
    for most in [0, 1, 4, 1000] {
        let all = all(&sessions, most).await;
        let shown: BTreeMap<_, _> = all.iter().map(|(handle, info)| (handle.clone(), info.key.clone())).collect();
        assert_eq!(shown, expected, "in pages of {most}");
        // As the user's own list shows it.
        for of_user in sessions.list("user 3").await.unwrap() {
            let info = &all[&of_user.handle];
            assert_eq!((info.created, info.signed_in, &info.key), (of_user.created, of_user.signed_in, &of_user.key));
            assert_eq!(info.data.get::<u8>("at").unwrap(), of_user.data.get::<u8>("at").unwrap());
            store.assert_about(info.expires, of_user.expires);
            store.assert_about(info.last_seen, of_user.last_seen);
        }
        let visitor = all.values().find(|info| info.key.is_none()).unwrap();
        assert_eq!((visitor.signed_in, visitor.data.get::<u64>("n").unwrap()), (None, Some(1)));
    }
}

async fn p23_all_shows_none_that_had_ended(store: Store) {
    let options = Options { anonymous_lifetime: Some(Duration::from_secs(900)), ..Options::default() };
    let (sessions, layer) = (store.sessions_with(options.clone()), store.layer_with(options));
    let lives = handle(&Client::new(&layer).does(bind_ada).await.ok().new_id().unwrap());
    let deleted = sessions.create("ada", json!({})).await.unwrap();
    sessions.delete(&deleted).await.unwrap();
    let revoked = sessions.create("ada", json!({})).await.unwrap();
    assert!(sessions.revoke("ada", &handle(revoked.as_str())).await.unwrap());
    sessions.create("grace", json!({})).await.unwrap();
    sessions.create("grace", json!({})).await.unwrap();
    assert_eq!(sessions.clear("grace").await.unwrap(), 2);
    // A visitor who signs in leaves nothing behind.
    let client = Client::new(&layer);
    client.does(increment).await.ok();
    client.does(|session| session.create("linus", json!({}))).await.ok();
    let linus = handle(&client.id().unwrap());
    visitor(&layer).await;
    store.pass(Duration::from_secs(1000));
    assert_eq!(all(&sessions, 2).await.into_keys().collect::<BTreeSet<_>>(), [lives, linus].into());
    store.pass(Duration::from_secs(4000));
    assert!(all(&sessions, 2).await.is_empty());
}

async fn p23_what_lives_throughout_is_included_whatever_begins_and_ends_meanwhile(store: Store) {
    let (sessions, layer) = (store.sessions(), store.layer());
    let (mut lives, mut ends) = (BTreeSet::new(), Vec::new());
    for at in 0..15 {
        lives.insert(handle(sessions.create(format!("user {}", at % 4), json!({})).await.unwrap().as_str()));
        lives.insert(handle(&visitor(&layer).await));
        ends.push(sessions.create(format!("user {}", at % 4), json!({})).await.unwrap());
    }
    let (mut seen, mut gone) = (BTreeSet::new(), BTreeSet::new());
    let (mut pages, mut at) = (sessions.all(), 0);
    while let Some(page) = pages.next_page(2).await.unwrap() {
        for info in page {
            assert!(!gone.contains(&info.handle), "it had ended when the page was asked for");
            seen.insert(info.handle);
        }
        at += 1;
        match (at % 2, ends.pop()) {
            (0, Some(id)) => {
                sessions.delete(&id).await.unwrap();
                gone.insert(handle(id.as_str()));
            }
            _ if at < 40 => drop(sessions.create(format!("user {}", at % 6), json!({})).await.unwrap()),
            _ => {}
        }
    }
    assert!(lives.is_subset(&seen), "{} are missing", lives.difference(&seen).count());
}

async fn p23_every_session_can_be_ended_while_they_are_read(store: Store) {
    let sessions = store.sessions();
    for at in 0..30 {
        sessions.create(format!("user {}", at % 4), json!({})).await.unwrap();
    }
    let mut pages = sessions.all();
    while let Some(page) = pages.next_page(3).await.unwrap() {
        for info in page {
            assert!(sessions.revoke(info.key.unwrap(), &info.handle).await.unwrap());
        }
    }
    assert_eq!(sessions.count().await.unwrap(), Count::new(0, 0));
}

async fn p23_a_page_that_failed_can_be_asked_for_again(store: Store) {
    let (sessions, layer) = (store.sessions(), store.layer());
    let mut expected = BTreeSet::new();
    for at in 0..10 {
        expected.insert(handle(sessions.create(format!("user {}", at % 3), json!({})).await.unwrap().as_str()));
        expected.insert(handle(&visitor(&layer).await));
    }
    let (mut seen, mut pages) = (BTreeSet::new(), sessions.all());
    for at in 0.. {
        assert!(at < 1000, "it never ends");
        if at % 3 < 2 {
            store.faults.next(Verb::Scan, if at % 3 == 0 { Fault::Before } else { Fault::After });
        }
        match pages.next_page(3).await {
            Ok(Some(page)) => seen.extend(page.into_iter().map(|info| info.handle)),
            Ok(None) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        }
    }
    store.faults.heal();
    assert_eq!(seen, expected);
    store.faults.next(Verb::Count, Fault::Before);
    assert_eq!(sessions.count().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

async fn p23_looking_at_all_counts_as_use_of_none(store: Store) {
    let sessions = store.sessions();
    let id = sessions.create("ada", json!({})).await.unwrap();
    store.pass(Duration::from_secs(30 * 60));
    store.faults.calls();
    let before = sessions.list("ada").await.unwrap().remove(0);
    for _ in 0..3 {
        all(&sessions, 5).await;
        sessions.count().await.unwrap();
    }
    let after = sessions.list("ada").await.unwrap().remove(0);
    assert_eq!(before.created, after.created);
    store.assert_about(before.last_seen, after.last_seen);
    store.assert_about(before.expires, after.expires);
    let calls = store.faults.calls();
    assert!(calls.iter().all(|verb| matches!(verb, Verb::List | Verb::Scan | Verb::Count)), "{calls:?}");
    store.pass(Duration::from_secs(30 * 60 + 90));
    assert!(sessions.get(&id).await.unwrap().is_none(), "it was idle for an hour");
}

async fn p23_info_tells_of_one_session_and_counts_as_no_use(store: Store) {
    let (sessions, layer) = (store.sessions(), store.layer());
    let client = Client::new(&layer);
    client.does(increment).await.ok();
    let info = sessions.info(client.id().unwrap()).await.unwrap().unwrap();
    assert_eq!((info.key, info.signed_in, info.data.get::<u64>("n").unwrap()), (None, None, Some(1)));
    client.does(bind_ada).await.ok();
    let listed = sessions.list("ada").await.unwrap().remove(0);
    store.pass(Duration::from_secs(30 * 60));
    store.faults.calls();
    for _ in 0..3 {
        let info = sessions.info(client.id().unwrap()).await.unwrap().unwrap();
        assert_eq!((&info.handle, info.key.as_deref()), (&listed.handle, Some("ada")));
        assert_eq!((info.created, info.signed_in), (listed.created, listed.signed_in));
        store.assert_about(info.last_seen, listed.last_seen);
        store.assert_about(info.expires, listed.expires);
    }
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Load, Verb::Load]);
    // As `get`: by an ID from before a rotation too, and not by one that leads nowhere.
    let before = client.id().unwrap();
    client.does(rework).await.ok();
    assert!(sessions.info(&before).await.unwrap().is_some());
    assert!(sessions.info("nonsense").await.unwrap().is_none());
    let guessed = format!("{}A", &before[..before.len() - 1]);
    assert_eq!(sessions.info(&guessed).await.unwrap().is_some(), guessed == before);
    sessions.clear("ada").await.unwrap();
    assert!(sessions.info(client.id().unwrap()).await.unwrap().is_none());
}

async fn p23_the_count_is_that_of_the_live_sessions(store: Store) {
    let options = Options { anonymous_lifetime: Some(Duration::from_secs(900)), ..Options::default() };
    let (sessions, layer) = (store.sessions_with(options.clone()), store.layer_with(options));
    let count = async || {
        let Count { signed_in, visitors, .. } = sessions.count().await.unwrap();
        (signed_in, visitors)
    };
    assert_eq!(count().await, (0, 0));
    for at in 0..7 {
        sessions.create(format!("user {}", at % 2), json!({})).await.unwrap();
    }
    for _ in 0..3 {
        visitor(&layer).await;
    }
    assert_eq!(count().await, (7, 3));
    // A visitor who signs in is a user.
    let client = Client::new(&layer);
    client.does(increment).await.ok();
    assert_eq!(count().await, (7, 4));
    client.does(bind_ada).await.ok();
    assert_eq!(count().await, (8, 3));
    assert_eq!(sessions.clear("user 1").await.unwrap(), 3);
    assert_eq!(count().await, (5, 3));
    store.pass(Duration::from_secs(1000));
    assert_eq!(count().await, (5, 0));
    client.does(delete).await.ok();
    assert_eq!(count().await, (4, 0));
    store.pass(Duration::from_secs(4000));
    assert_eq!(count().await, (0, 0));
}
