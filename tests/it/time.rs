//! Idle timeout, absolute timeout, and how often the backend is touched.

use std::{future::ready, time::Duration};

use jam_session::{
    Backend, ErrorKind, Session, SessionLayer,
    conformance::{Answer, Fault, Verb},
};
use serde_json::json;

use crate::{
    client::Client,
    on_every_store,
    store::{BRIEF, Options, Store, eventually, in_time, lasting},
};

on_every_store! {
    p18_idle_ends_a_session_to_the_millisecond,
    p18_use_keeps_a_session_and_at_most_the_interval_is_lost,
    p18_the_deadline_ends_it_whatever_is_done,
    p18_a_touch_never_passes_the_deadline,
    p18_only_login_starts_a_new_deadline,
    p18_anonymous_sessions_have_a_deadline_of_their_own,
    p18_set_ttl_stays_with_the_session,
    p18_a_ttl_of_zero_fails_the_commit,
    p18_no_idle_limit_leaves_the_deadline,
    p18_touches_are_throttled,
    p18_an_interval_above_the_idle_time_signs_no_active_user_out,
    p18_a_touch_that_fails_is_nobodys_problem,
    p18_clocks_that_differ_do_not_touch_idle_times,
    last_seen_is_told_as_far_as_it_is_known,
    p18_an_endless_time_to_live_does_not_break_the_list,
    p18_max_age_is_counted_when_the_response_leaves,
    p18_a_login_does_not_inherit_the_idle_time_of_the_visitor,
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

async fn p18_idle_ends_a_session_to_the_millisecond(store: Store) {
    let sessions = store.sessions();
    let id = sessions.create("ada", json!({})).await.unwrap();
    store.pass(HOUR - store.moment);
    // A list is no use.
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    store.pass(store.moment);
    assert!(sessions.get(&id).await.unwrap().is_none());
    assert!(sessions.list("ada").await.unwrap().is_empty());
    assert_eq!(sessions.update(&id, json!({})).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(sessions.rework(&id).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(sessions.clear("ada").await.unwrap(), 0);
    sessions.delete(&id).await.unwrap();
}

async fn p18_use_keeps_a_session_and_at_most_the_interval_is_lost(store: Store) {
    // The interval is five minutes, as the tenth of an hour is more.
    let id = store.sessions().create("ada", json!({})).await.unwrap();
    for _ in 0..20 {
        store.pass(Duration::from_secs(50 * 60));
        read(&store, &id).await;
    }
    // Used again just before it would be told, it ends that much too early, and no more.
    store.pass(Duration::from_secs(299));
    read(&store, &id).await;
    store.pass(HOUR - Duration::from_secs(299) - store.moment);
    assert!(store.sessions().get(&id).await.unwrap().is_some());
}

async fn p18_the_deadline_ends_it_whatever_is_done(store: Store) {
    let layer = store.layer();
    let client = Client::new(&layer);
    let answer = client.does(|session| {
        session.set_ttl(DAY);
        session.create("ada", json!({}))
    });
    answer.await.ok();
    let mut lived = Duration::ZERO;
    while lived < 29 * DAY {
        store.pass(DAY / 2);
        lived += DAY / 2;
        let answer = client.does(|session| {
            session.rework();
            session.set_ttl(DAY);
            session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1)
        });
        answer.await.ok();
    }
    store.pass(DAY / 2);
    client.does(|session| Ok(session.key().unwrap())).await.ok();
    store.pass(DAY / 2 - store.moment);
    assert_eq!(client.does(|session| Ok(session.key().is_some().to_string())).await.body, "true");
    store.pass(store.moment);
    assert_eq!(client.does(|session| Ok(session.key().is_some().to_string())).await.body, "false");
}

async fn p18_a_touch_never_passes_the_deadline(store: Store) {
    let options = Options { max_lifetime: Some(2 * HOUR), ..Options::default() };
    let sessions = store.sessions_with(options);
    let id = sessions.create("ada", json!({})).await.unwrap();
    let record = id.as_str().rsplit_once('.').unwrap().0.parse().unwrap();
    let left = async || store.backend().load(record).await.unwrap().unwrap().ttl;
    for lived in [HOUR / 2, HOUR, 3 * HOUR / 2] {
        store.pass(HOUR / 2);
        let told = HOUR.min(2 * HOUR - lived);
        // Used until the backend hears of it: while one touch is under way there is no other.
        eventually(async || {
            sessions.get(&id).await.unwrap().unwrap();
            left().await + store.moment > told
        })
        .await;
        assert!(left().await <= told, "after {lived:?}");
        // And so is a write.
        sessions.update(&id, json!({"lived": lived.as_secs()})).await.unwrap();
        assert!(left().await <= told, "after {lived:?}");
    }
}

async fn p18_only_login_starts_a_new_deadline(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    let set_cookie = |answer: crate::client::Answer| answer.set_cookies()[0].to_owned();
    client.does(|session| session.create("ada", json!({}))).await.ok();
    store.pass(Duration::from_secs(600));
    let reworked = client.does(|session| {
        session.rework();
        Ok(())
    });
    assert!(set_cookie(reworked.await).contains(&format!("Max-Age={}", 30 * 86_400 - 600)));
    let bound = client.does(|session| {
        session.bind("ada");
        Ok(())
    });
    assert!(set_cookie(bound.await).contains(&format!("Max-Age={}", 30 * 86_400)));
    assert_eq!(sessions.list("ada").await.unwrap()[0].signed_in, Some(store.clock.now()));
}

async fn p18_anonymous_sessions_have_a_deadline_of_their_own(store: Store) {
    let options = Options { anonymous_lifetime: Some(2 * HOUR), max_lifetime: Some(10 * HOUR), ..Options::default() };
    let client = Client::new(&store.layer_with(options));
    let answer = client.does(|session| session.insert("n", 1)).await.ok();
    assert!(answer.set_cookies()[0].contains("Max-Age=7200"));
    for _ in 0..3 {
        store.pass(HOUR / 2);
        client.does(|session| session.modify("n", |n: Option<u64>| n.unwrap() + 1)).await.ok();
    }
    let signed_in = client.thief();
    let answer = signed_in.does(|session| {
        session.bind("ada");
        Ok(())
    });
    assert!(answer.await.set_cookies()[0].contains("Max-Age=36000"));
    store.pass(HOUR / 2);
    assert_eq!(client.does(|session| Ok(session.data()?.is_empty().to_string())).await.body, "true");
    assert_eq!(signed_in.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "4");
}

async fn p18_set_ttl_stays_with_the_session(store: Store) {
    let client = Client::new(&store.layer());
    let answer = client.does(|session| {
        session.set_ttl(3 * DAY);
        session.create("ada", json!({}))
    });
    answer.await.ok();
    let answer = client.does(|session| {
        session.set_ttl(2 * DAY);
        Ok(())
    });
    answer.await.ok();
    store.pass(DAY);
    client.does(|session| session.insert("n", 1)).await.ok();
    store.pass(2 * DAY - store.moment);
    let answer = client.does(|session| {
        session.bind("ada");
        Ok(())
    });
    answer.await.ok();
    store.pass(2 * DAY - store.moment);
    assert_eq!(client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "1");
}

async fn p18_a_ttl_of_zero_fails_the_commit(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("n", 1)).await.ok();
    let answer = client.does(|session| {
        session.insert("n", 2)?;
        session.set_ttl(Duration::ZERO);
        Ok(())
    });
    assert_eq!(answer.await.sets_no_cookie().status, 500);
    assert_eq!(client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "1");
    // And one beyond all bounds is cut to the deadline.
    let answer = client.does(|session| {
        session.set_ttl(Duration::MAX);
        Ok(())
    });
    answer.await.ok();
    store.pass(DAY - store.moment);
    assert_eq!(client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "1");
    store.pass(store.moment);
    assert_eq!(client.does(|session| Ok(session.data()?.is_empty().to_string())).await.body, "true");
}

async fn p18_no_idle_limit_leaves_the_deadline(store: Store) {
    let options = Options { default_ttl: Some(None), ..Options::default() };
    let sessions = store.sessions_with(options);
    let id = sessions.create("ada", json!({})).await.unwrap();
    store.pass(30 * DAY - store.moment);
    assert!(sessions.get(&id).await.unwrap().is_some());
    store.pass(store.moment);
    assert!(sessions.get(&id).await.unwrap().is_none());
    assert!(!store.faults.calls().contains(&Verb::Touch));
}

async fn p18_touches_are_throttled(store: Store) {
    let id = store.sessions().create("ada", json!({})).await.unwrap();
    store.faults.calls();
    for _ in 0..100 {
        store.pass(Duration::from_secs(3));
        // Each with the touch that it makes: a read beside one may still see the time before.
        read(&store, &id).await;
    }
    let touches = store.faults.calls().into_iter().filter(|call| *call == Verb::Touch).count();
    assert_eq!(touches, 1);
}

/// Neither above the default idle time, nor above the one that a session has of its own.
async fn p18_an_interval_above_the_idle_time_signs_no_active_user_out(store: Store) {
    const MINUTE: Duration = Duration::from_secs(60);
    let options = Options { touch_interval: Some(HOUR), default_ttl: Some(Some(30 * MINUTE)), ..Options::default() };
    let sessions = store.sessions_with(options);
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    for (ttl, pause) in [(None, 20 * MINUTE), (Some(HOUR), 40 * MINUTE), (Some(2 * HOUR), 70 * MINUTE)] {
        let signed_in = client.does(|session| {
            ttl.into_iter().for_each(|ttl| session.set_ttl(ttl));
            session.create("ada", json!({}))
        });
        signed_in.await.ok();
        for _ in 0..20 {
            store.pass(pause);
            // Used until the store has heard of it: while one touch is under way there is no other.
            eventually(async || {
                let answer = client.does(|session| Ok(session.key().unwrap_or_default())).await;
                assert_eq!(answer.body, "ada", "idle time {ttl:?}");
                sessions.list("ada").await.unwrap()[0].last_seen + store.moment > store.clock.now()
            })
            .await;
        }
        // What is lost at the end is a tenth of the idle time and no more.
        let idle = ttl.unwrap_or(30 * MINUTE);
        store.pass(idle / 10 - store.moment);
        client.does(|session| Ok(session.key().unwrap_or_default())).await.ok();
        store.pass(idle - idle / 10 - store.moment);
        assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
        sessions.clear("ada").await.unwrap();
    }
}

async fn p18_a_touch_that_fails_is_nobodys_problem(store: Store) {
    for fault in [Fault::Before, Fault::After] {
        let sessions = store.sessions();
        let id = sessions.create("ada", json!({})).await.unwrap();
        store.pass(HOUR / 2);
        store.faults.next(Verb::Touch, fault);
        assert!(sessions.get(&id).await.unwrap().is_some());
        assert!(sessions.get(&id).await.unwrap().is_some());
        sessions.close().await.unwrap();
    }
    // A touch that hangs is given up when the time of a request is over.
    let sessions = store.sessions_with(Options { request_time: Some(BRIEF), ..Options::default() });
    let id = store.sessions().create("ada", json!({})).await.unwrap();
    store.pass(HOUR / 2);
    store.faults.next(Verb::Touch, Fault::Hang);
    for _ in 0..2 {
        let read = async || match sessions.get(&id).await {
            // It was late, as a load may be that has so little time.
            Err(error) if error.kind() == ErrorKind::Unavailable => None,
            read => Some(read.unwrap()),
        };
        assert!(in_time(read).await.is_some());
    }
    sessions.close().await.unwrap();
}

async fn p18_clocks_that_differ_do_not_touch_idle_times(store: Store) {
    // Two application nodes, one of them ten minutes ahead.
    let ahead = jam_session::Clock::manual();
    ahead.advance(Duration::from_secs(600));
    let there = Options::default().apply(jam_session::Sessions::over(store.watched())).clock(ahead).build().unwrap();
    let here = store.sessions();
    for (writer, reader) in [(&here, &there), (&there, &here)] {
        let id = writer.create("ada", json!({})).await.unwrap();
        writer.update(&id, json!({"n": 1})).await.unwrap();
        store.pass(HOUR - store.moment);
        assert!(reader.list("ada").await.unwrap().len() == 1);
        store.pass(store.moment);
        assert!(reader.get(&id).await.unwrap().is_none());
        assert!(writer.get(&id).await.unwrap().is_none());
    }
}

async fn last_seen_is_told_as_far_as_it_is_known(store: Store) {
    let id = store.sessions().create("ada", json!({})).await.unwrap();
    let begin = store.clock.now();
    store.pass(Duration::from_secs(1200));
    read(&store, &id).await;
    let last_seen = async || store.sessions().list("ada").await.unwrap()[0].last_seen;
    store.assert_about(last_seen().await, begin + Duration::from_secs(1200));
    // Within the interval the backend does not hear of it.
    store.pass(Duration::from_secs(100));
    read(&store, &id).await;
    store.assert_about(last_seen().await, begin + Duration::from_secs(1200));

    // Where the idle time is longer than the session may live, a write still tells.
    let client = Client::new(&store.layer());
    let answer = client.does(|session| {
        session.set_ttl(90 * DAY);
        session.create("grace", json!({}))
    });
    answer.await.ok();
    store.pass(DAY);
    client.does(|session| session.insert("n", 1)).await.ok();
    let info = store.sessions().list("grace").await.unwrap().remove(0);
    store.assert_about(info.last_seen, store.clock.now());
    store.assert_about(info.expires, info.created + 30 * DAY);
}

/// A read, and whatever touch it makes.
async fn read(store: &Store, id: &jam_session::SessionId) {
    let sessions = store.sessions();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    client.set_id(id.as_str());
    client.visit(async |session: Session| Ok(session.key().unwrap())).await.ok();
    sessions.close().await.unwrap();
}

async fn p18_an_endless_time_to_live_does_not_break_the_list(store: Store) {
    let sessions = store.sessions();
    let endless = |record| lasting(Duration::MAX, record);
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
    assert!(task.await.is_ok(), "the page that lists the sessions panics");
}

async fn p18_max_age_is_counted_when_the_response_leaves(store: Store) {
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

async fn p18_a_login_does_not_inherit_the_idle_time_of_the_visitor(store: Store) {
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
    assert_eq!(key, "None", "an hour idle, and the user is still signed in");
}
