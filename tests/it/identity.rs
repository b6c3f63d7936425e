//! Who gets a session and which ID: first writes, rotation, login.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::Request;
use jam_session::{
    BoxError, Data, ErrorKind, MemorySessions, Serializer, Session,
    conformance::{Fault, Verb},
};
use serde_json::json;

use crate::{
    client::{Client, bind_ada, delete, rework},
    on_every_store,
    store::eventually,
    store::{Options, Store},
};

on_every_store! {
    p01_without_a_cookie_and_a_write_there_is_no_call_and_no_cookie,
    p01_nor_is_there_in_an_outage,
    p02_reading_creates_nothing,
    p02_writes_that_end_where_they_began_write_nothing,
    p02_what_is_taken_is_shown_once,
    p02_the_first_kept_write_is_one_record_and_one_cookie,
    p02_a_cross_site_post_makes_no_anonymous_session,
    p03_an_id_that_was_not_issued_is_never_adopted,
    p03_malformed_ids_never_reach_the_backend,
    p03_a_known_handle_is_of_no_use,
    p06_rework_keeps_everything_but_the_id,
    p06_the_id_before_works_for_the_grace_and_no_longer,
    p06_the_grace_is_never_extended_and_four_ids_back_at_most,
    p06_without_grace_the_id_before_is_dead_at_once,
    p06_parallel_reworks_rotate_once,
    p06_rework_with_the_id_before_sets_no_cookie,
    p06_rework_of_a_new_session_works,
    p06_two_reworks_in_one_request_are_one,
    p07_login_gives_a_new_id_and_keeps_the_data,
    p07_login_again_gives_a_new_id_too,
    p07_when_a_user_signed_in_is_known_and_a_login_starts_it_anew,
    p07_what_set_ttl_said_outlasts_a_login_of_the_same_user,
    p07_what_an_attacker_planted_before_login_leads_nowhere,
    p07_login_as_another_user_drops_data_and_session_of_the_first,
    p07_create_starts_afresh,
    p07_bind_beside_a_first_writing_poll,
    p07_bind_beside_a_write_to_the_anonymous_session,
    p07_bind_beside_a_read_that_rotates,
    p07_bind_beside_logout,
    p07_bind_beside_bind,
    p07_a_login_that_fails_halfway_leaves_the_old_session_as_it_was,
    p07_a_login_with_an_impossible_key_changes_nothing,
    p10_a_saved_login_is_carried_by_a_response_that_fails,
    p06_a_rework_whose_answer_was_lost_and_is_repeated_gives_the_browser_the_new_id,
    p06_a_rework_that_lost_without_grace_gives_no_dead_id,
    p07_what_a_handler_reads_after_bind_and_clear_is_what_is_written,
    p07_a_ttl_recorded_before_a_login_as_another_user_is_dropped,
    p07_a_login_after_a_save_that_said_not_found_does_not_take_the_dead_sessions_data_along,
    p07_what_was_recorded_before_bind_to_another_user_is_dropped_also_with_clear,
}

async fn p01_without_a_cookie_and_a_write_there_is_no_call_and_no_cookie(store: Store) {
    let client = Client::new(&store.layer());
    let unused = client.request(Request::default(), async |_| "hello").await.ok().sets_no_cookie();
    assert!(!unused.headers.contains_key("vary"));
    client.does(|session| Ok(session.get::<u8>("n")?.is_none().to_string())).await.ok().sets_no_cookie();
    assert!(store.faults.calls().is_empty());
}

async fn p01_nor_is_there_in_an_outage(store: Store) {
    let client = Client::new(&store.layer());
    store.faults.next(None, Fault::Before);
    client.does(|session| Ok(session.key().is_none().to_string())).await.ok();
    assert!(store.faults.calls().is_empty());
}

async fn p02_reading_creates_nothing(store: Store) {
    let client = Client::new(&store.layer());
    client
        .does(|session| {
            assert_eq!(session.get::<u64>("n")?, None);
            assert!(session.data()?.is_empty());
            assert_eq!((session.key(), session.handle()), (None, None));
            session.remove("n");
            session.rework();
            session.delete();
            session.clear();
            session.set_ttl(Duration::from_secs(9));
            Ok(())
        })
        .await
        .ok()
        .sets_no_cookie();
    assert!(store.faults.calls().is_empty());
}

async fn p02_writes_that_end_where_they_began_write_nothing(store: Store) {
    let client = Client::new(&store.layer());
    let back_and_forth = |session: &Session| {
        session.insert("draft", "x")?;
        session.remove("draft");
        session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1)?;
        session.modify("n", |n: Option<u64>| n.unwrap_or(0) - 1)?;
        session.insert("n", 0)
    };
    client
        .does(|session| {
            session.insert("draft", "x")?;
            session.remove("draft");
            Ok(())
        })
        .await
        .ok()
        .sets_no_cookie();
    assert!(store.faults.calls().is_empty());

    client.does(|session| session.insert("n", 0)).await.ok();
    store.faults.calls();
    client.does(back_and_forth).await.ok().sets_no_cookie();
    client.does(|session| session.update(json!({"n": 0}))).await.ok().sets_no_cookie();
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Load]);
}

async fn p02_what_is_taken_is_shown_once(store: Store) {
    let client = Client::new(&store.layer());
    let show = |session: &Session| Ok(session.take::<String>("notice")?.unwrap_or_else(|| "nothing".to_owned()));
    assert_eq!(client.does(show).await.ok().body, "nothing");
    client.does(|session| session.insert("notice", "saved")).await.ok();

    let refused = client.does(|session| session.take::<u64>("notice").map(drop)).await;
    assert_eq!(refused.status, 500, "it is no number");
    let failed = client.does(|session| {
        assert_eq!(show(session)?, "saved");
        Ok(http::StatusCode::BAD_GATEWAY)
    });
    assert_eq!(failed.await.status, 502, "nobody saw it");
    assert_eq!(client.does(show).await.ok().sets_no_cookie().body, "saved");
    store.faults.calls();
    assert_eq!(client.does(show).await.ok().body, "nothing");
    assert_eq!(store.faults.calls(), [Verb::Load]);

    // In one request, too; also what was never stored.
    let answer = client.does(|session| {
        session.insert("notice", "again")?;
        Ok(format!("{}, {}", show(session)?, show(session)?))
    });
    assert_eq!(answer.await.ok().body, "again, nothing");
    // A login takes it along.
    let signing_in = client.does(|session| {
        session.insert("notice", "welcome")?;
        session.bind("ada");
        Ok(())
    });
    signing_in.await.ok();
    assert_eq!(client.does(show).await.body, "welcome");
}

async fn p02_the_first_kept_write_is_one_record_and_one_cookie(store: Store) {
    let client = Client::new(&store.layer());
    let answer = client
        .does(|session| {
            session.insert("a", 1)?;
            session.insert("b", 2)
        })
        .await
        .ok();
    assert!(answer.new_id().is_some());
    assert_eq!(store.faults.calls(), [Verb::Create]);

    let answer = client.does(|session| Ok(session.get::<u8>("b")?.unwrap().to_string())).await.ok().sets_no_cookie();
    assert_eq!(answer.body, "2");
    client.does(|session| session.insert("c", 3)).await.ok().sets_no_cookie();
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Load, Verb::Update]);
}

async fn p02_a_cross_site_post_makes_no_anonymous_session(store: Store) {
    let client = Client::new(&store.layer());
    let post = || {
        let request = Request::builder().method("POST").header("sec-fetch-site", "cross-site");
        request.body(axum::body::Body::empty()).unwrap()
    };
    let insert = async |session: Session| session.insert("n", 1);
    client.request(post(), insert).await.ok().sets_no_cookie();
    let saved = client.request(post(), async |session: Session| {
        session.insert("n", 1)?;
        session.save().await
    });
    assert_eq!(saved.await.status, 404);
    assert!(store.faults.calls().is_empty());

    // A login is the application's to allow.
    let login = async |session: Session| session.bind("ada");
    assert!(client.request(post(), login).await.ok().new_id().is_some());
    // And a session that is there may be written to.
    client.request(post(), insert).await.ok();
    assert_eq!(client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "1");
}

async fn p03_an_id_that_was_not_issued_is_never_adopted(store: Store) {
    let client = Client::new(&store.layer());
    let forged = format!("{}.{}", "A".repeat(22), "A".repeat(43));
    client.set_id(&forged);
    let id = client.does(|session| session.insert("n", 1)).await.ok().new_id().unwrap();
    assert!(!id.contains(&"A".repeat(22)));

    let thief = Client::new(&store.layer());
    thief.set_id(&forged);
    assert_eq!(thief.does(|session| Ok(session.get::<u8>("n")?.is_none().to_string())).await.body, "true");
}

async fn p03_malformed_ids_never_reach_the_backend(store: Store) {
    let client = Client::new(&store.layer());
    let (sid, secret) = ("s".repeat(22), "A".repeat(43));
    for value in [
        String::new(),
        ".".to_owned(),
        "a".to_owned(),
        sid.clone(),
        format!("{sid}."),
        format!(".{secret}"),
        format!("{sid}.{}", "A".repeat(42)),
        format!("{sid}.{}B", "A".repeat(42)),
        format!("{sid}.{secret}="),
        format!("{}.{secret}", "s".repeat(44)),
        format!("{}.{secret}", "s".repeat(21)),
        format!("../../{sid}.{secret}"),
        format!("short.{sid}.{secret}"),
        format!("{sid}.{sid}.{sid}.{secret}"),
        format!("{sid}:{{x}}.{secret}"),
        format!("\"{sid}.{secret}\""),
        "x".repeat(60_000),
    ] {
        client.set_id(&value);
        let answer = client.does(|session| Ok(session.get::<u8>("n")?.is_none().to_string())).await.ok();
        assert_eq!(answer.sets_no_cookie().body, "true");
    }
    let binary = Request::builder().header("cookie", &b"__Host-id=\xff\xfe\x80; \xff"[..]);
    client
        .request(binary.body(axum::body::Body::empty()).unwrap(), async |session: Session| session.load().await)
        .await
        .ok();
    assert!(store.faults.calls().is_empty());
}

async fn p03_a_known_handle_is_of_no_use(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
    let id = client.id().unwrap();
    let handle = &sessions.list("ada").await.unwrap()[0].handle;
    let (owner, _) = id.split_once('.').unwrap();

    let thief = Client::new(&layer);
    for forged in [format!("{handle}.{}", "A".repeat(43)), format!("{owner}.{handle}.{}", "A".repeat(43))] {
        thief.set_id(&forged);
        let answer = thief
            .does(|session| {
                assert_eq!(session.key(), None);
                session.clear();
                session.delete();
                Ok(())
            })
            .await;
        answer.ok().sets_no_cookie();
    }
    // The real secret under another owner's name is no more than that.
    let (_, secret) = id.rsplit_once('.').unwrap();
    thief.set_id(&format!("{handle}.{secret}"));
    assert_eq!(thief.does(|session| Ok(session.key().is_none().to_string())).await.body, "true");
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
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

async fn p06_the_grace_is_never_extended_and_four_ids_back_at_most(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let mut before = Vec::new();
    for _ in 0..6 {
        before.push(client.thief());
        client.does(rework).await.ok();
        store.pass(Duration::from_secs(1));
    }
    let mut alive = Vec::new();
    for old in &before {
        alive.push(old.does(|session| Ok(session.key().is_some().to_string())).await.body == "true");
    }
    assert_eq!(alive, [false, false, true, true, true, true]);
    // Made at 2 s, and it ends at 12 s, however often it was used.
    store.pass(Duration::from_secs(6));
    assert_eq!(before[2].does(|session| Ok(session.key().is_some().to_string())).await.body, "false");
    assert_eq!(before[3].does(|session| Ok(session.key().is_some().to_string())).await.body, "true");
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

async fn p07_login_gives_a_new_id_and_keeps_the_data(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.insert("cart", [1, 2])).await.ok();
    let before = client.thief();
    store.faults.calls();
    let answer = client.does(|session| {
        session.bind("ada");
        assert_eq!(session.key().as_deref(), Some("ada"));
        session.insert("theme", "dark")
    });
    assert_ne!(answer.await.ok().new_id(), before.id());
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Create, Verb::Update]);
    let answer = client.does(|session| {
        assert_eq!(session.get::<Vec<u8>>("cart")?, Some(vec![1, 2]));
        assert_eq!(session.get::<String>("theme")?.as_deref(), Some("dark"));
        Ok(session.key().unwrap())
    });
    assert_eq!(answer.await.ok().body, "ada");
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    assert_nowhere(&before).await;
}

async fn p07_login_again_gives_a_new_id_too(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
    let (before, handle) = (client.thief(), sessions.list("ada").await.unwrap().remove(0).handle);
    client.does(bind_ada).await.ok().new_id().unwrap();
    assert_nowhere(&before).await;
    let list = sessions.list("ada").await.unwrap();
    assert_eq!(list.len(), 1);
    assert_ne!(list[0].handle, handle);
    assert_eq!(client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "1");
}

async fn p07_when_a_user_signed_in_is_known_and_a_login_starts_it_anew(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    let signed_in = |session: &Session| Ok(format!("{:?}", session.signed_in()));
    let at = |time: std::time::SystemTime| format!("{:?}", Some(time));
    let answer = client.request(Request::default(), async |session: Session| session.signed_in().is_none().to_string());
    assert_eq!(answer.await.body, "true", "it is not loaded");
    client.does(|session| session.insert("n", 1)).await.ok();
    assert_eq!(client.does(signed_in).await.body, "None");

    let first = store.clock.now();
    let answer = client.does(|session| {
        session.bind("ada");
        // As `key`, it is what there will be.
        assert_eq!(session.signed_in(), Some(first));
        Ok(())
    });
    answer.await.ok();
    store.pass(Duration::from_secs(400));
    // Neither use nor rotation is a login.
    client.does(|session| session.insert("n", 2)).await.ok();
    client.does(rework).await.ok();
    assert_eq!(client.does(signed_in).await.body, at(first));
    assert_eq!(sessions.list("ada").await.unwrap()[0].signed_in, Some(first));

    let second = store.clock.now();
    let answer = client.visit(async |session: Session| {
        session.bind("ada");
        assert_eq!(session.signed_in(), Some(second));
        session.save().await?;
        Ok(format!("{:?}", session.signed_in()))
    });
    assert_eq!(answer.await.body, at(second));
    store.pass(Duration::from_secs(1));
    assert_eq!(client.does(signed_in).await.body, at(second));
    assert_eq!(client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "2");
    assert_eq!(sessions.list("ada").await.unwrap()[0].signed_in, Some(second));

    for leave in [(|session| session.delete()) as fn(&Session), |session| session.clear()] {
        let answer = client.does(|session| {
            leave(session);
            assert_eq!((session.key(), session.signed_in()), (None, None));
            session.create("ada", json!({}))?;
            assert!(session.signed_in().is_some());
            Ok(())
        });
        answer.await.ok();
    }
    // One that ended meanwhile tells no time: whoever asks for a recent one gets none.
    let answer = client.visit(async |session: Session| {
        sessions.clear("ada").await?;
        session.insert("n", 3)?;
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(session.signed_in(), None);
        Ok(())
    });
    answer.await.ok();
}

async fn p07_what_set_ttl_said_outlasts_a_login_of_the_same_user(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    let (week, hour) = (Duration::from_secs(7 * 86_400), Duration::from_secs(3600));
    let remembered = client.does(|session| {
        session.bind("ada");
        session.set_ttl(week);
        Ok(())
    });
    remembered.await.ok();
    store.pass(hour * 24);
    client.does(bind_ada).await.ok();
    store.assert_about(sessions.list("ada").await.unwrap()[0].expires, store.clock.now() + week);
    let with_others_out = client.does(|session| {
        session.clear_others();
        session.bind("ada");
        Ok(())
    });
    with_others_out.await.ok();
    store.assert_about(sessions.list("ada").await.unwrap()[0].expires, store.clock.now() + week);
    // It is that user's.
    let as_another = client.does(|session| {
        session.bind("grace");
        Ok(())
    });
    as_another.await.ok();
    store.assert_about(sessions.list("grace").await.unwrap()[0].expires, store.clock.now() + hour);
}

async fn p07_what_an_attacker_planted_before_login_leads_nowhere(store: Store) {
    let layer = store.layer();
    let attacker = Client::new(&layer);
    attacker.does(|session| session.insert("n", 1)).await.ok();
    let victim = Client::new(&layer);
    victim.set_id(&attacker.id().unwrap());
    victim.does(bind_ada).await.ok();
    assert_nowhere(&attacker).await;
    store.pass(Duration::from_secs(11));
    assert_nowhere(&attacker).await;
}

async fn p07_login_as_another_user_drops_data_and_session_of_the_first(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.create("grace", json!({"private": 1}))).await.ok();
    let before = client.thief();
    let answer = client.does(|session| {
        session.insert("before", 1)?;
        session.bind("ada");
        session.insert("after", 2)
    });
    answer.await.ok().new_id().unwrap();
    let names = client.does(|session| Ok(session.data()?.names().collect::<Vec<_>>().join(",")));
    assert_eq!(names.await.body, "after");
    assert_eq!(sessions.list("grace").await.unwrap().len(), 0);
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    assert_nowhere(&before).await;
}

async fn p07_create_starts_afresh(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("old", 1)).await.ok();
    let before = client.thief();
    let answer = client.does(|session| {
        session.insert("dropped", 1)?;
        session.create("ada", json!({"role": "admin"}))?;
        session.insert("theme", "dark")
    });
    answer.await.ok().new_id().unwrap();
    let names = client.does(|session| Ok(session.data()?.names().collect::<Vec<_>>().join(",")));
    assert_eq!(names.await.body, "role,theme");
    assert_nowhere(&before).await;
}

async fn p07_bind_beside_a_first_writing_poll(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("cart", 1)).await.ok();
    let poll = client.thief();
    client.does(bind_ada).await.ok();
    // It comes with the anonymous ID, writes, and must not overwrite the login's cookie.
    let answer = poll.visit(async |session: Session| {
        session.insert("seen", 1)?;
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::NotFound);
        session.insert("seen", 2)
    });
    answer.await.ok().sets_no_cookie();
    let same = poll.does(|session| {
        session.delete();
        Ok(())
    });
    same.await.ok().sets_no_cookie();
    // But it may log in itself.
    poll.does(|session| session.create("grace", json!({}))).await.ok().new_id().unwrap();
    // After the grace the ID is as unknown as any.
    let late = Client::new(&store.layer());
    store.pass(Duration::from_secs(11));
    late.does(|session| session.insert("seen", 1)).await.ok().new_id().unwrap();
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
}

async fn p07_bind_beside_a_write_to_the_anonymous_session(store: Store) {
    let layers = [store.layer(), store.layer()];
    let client = Client::new(&layers[0]);
    client.does(|session| session.insert("n", 1)).await.ok();

    // Written after the login has read the data, and before it ends the old session: it goes over.
    let early = client.thief().at(&layers[1]);
    store.first(Verb::Update, move || {
        let early = early.clone();
        async move { drop(early.does(|session| session.insert("early", 2)).await.ok()) }
    });
    // Loaded before the login, and written after it: it is dropped.
    let late = client.thief().at(&layers[1]);
    let login = client.clone();
    let answer = late.visit(async |session: Session| {
        login.does(bind_ada).await.ok().new_id().unwrap();
        session.insert("late", 3)
    });
    answer.await.ok().sets_no_cookie();
    let names = client.does(|session| Ok(session.data()?.names().collect::<Vec<_>>().join(",")));
    assert_eq!(names.await.body, "n,early");
}

async fn p07_bind_beside_a_read_that_rotates(store: Store) {
    let layers = [store.layer(), store.layer()];
    let client = Client::new(&layers[0]);
    client.does(|session| session.insert("n", 1)).await.ok();
    let (login, rotating) = (client.clone(), client.thief().at(&layers[1]));
    let answer = rotating.visit(async |session: Session| {
        login.does(bind_ada).await.ok();
        session.rework();
        Ok(())
    });
    answer.await.ok().sets_no_cookie();
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
}

async fn p07_bind_beside_logout(store: Store) {
    let layers = [store.layer(), store.layer()];
    // The logout has loaded before the login and ends after it: it must not remove the login's cookie.
    let client = Client::new(&layers[0]);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let (login, logout) = (client.clone(), client.thief().at(&layers[1]));
    let answer = logout.visit(async |session: Session| {
        login.does(bind_ada).await.ok();
        session.delete();
        Ok(())
    });
    answer.await.ok().sets_no_cookie();
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
    assert_nowhere(&logout).await;

    // The login has loaded before the logout and ends after it: the old one is dead, its data too.
    client.does(|session| session.insert("old", 1)).await.ok();
    let logout = client.thief().at(&layers[1]);
    let before = client.thief();
    let answer = client.visit(async |session: Session| {
        assert!(logout.does(delete).await.ok().removes_cookie());
        session.bind("ada");
        session.insert("new", 2)
    });
    answer.await.ok().new_id().unwrap();
    let names = client.does(|session| Ok(session.data()?.names().collect::<Vec<_>>().join(",")));
    assert_eq!(names.await.body, "new");
    assert_nowhere(&before).await;
}

async fn p07_bind_beside_bind(store: Store) {
    let (layers, sessions) = ([store.layer(), store.layer()], store.sessions());
    let client = Client::new(&layers[0]);
    client.does(|session| session.insert("cart", 1)).await.ok();
    let before = client.thief();
    let other = client.thief().at(&layers[1]);
    let answer = client.visit(async |session: Session| {
        other.does(bind_ada).await.ok().new_id().unwrap();
        session.bind("ada");
        Ok(())
    });
    answer.await.ok().new_id().unwrap();
    // Both logins are good, and the data went with the one that was first.
    let mut carts = Vec::new();
    for info in sessions.list("ada").await.unwrap() {
        carts.push(info.data.get::<u8>("cart").unwrap());
    }
    carts.sort();
    assert_eq!(carts, [None, Some(1)]);
    assert_nowhere(&before).await;
}

async fn p07_a_login_that_fails_halfway_leaves_the_old_session_as_it_was(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.insert("cart", 1)).await.ok();
    for (verb, fault) in [(Verb::Create, Fault::Before), (Verb::Update, Fault::Before)] {
        store.faults.next(verb, fault);
        let answer = client.does(bind_ada).await.sets_no_cookie();
        assert_eq!(answer.status, 503);
        assert_eq!(client.does(|session| Ok(session.get::<u8>("cart")?.unwrap().to_string())).await.body, "1");
    }
    // The half that was stored is removed again, in the background.
    eventually(async || sessions.list("ada").await.unwrap().is_empty()).await;
    client.does(bind_ada).await.ok().new_id().unwrap();
}

async fn p07_a_login_with_an_impossible_key_changes_nothing(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("cart", 1)).await.ok();
    store.faults.calls();
    for key in [String::new(), "k".repeat(1025)] {
        let answer = client.does(|session| {
            session.bind(key);
            session.insert("cart", 2)
        });
        assert_eq!(answer.await.sets_no_cookie().status, 500);
    }
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Load]);
    assert_eq!(client.does(|session| Ok(session.get::<u8>("cart")?.unwrap().to_string())).await.body, "1");
}

async fn p10_a_saved_login_is_carried_by_a_response_that_fails(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("cart", 1)).await.ok();
    let answer = client.visit(async |session: Session| {
        session.bind("ada");
        session.save().await?;
        session.insert("lost", 1)?;
        Ok(http::StatusCode::INTERNAL_SERVER_ERROR)
    });
    let answer = answer.await;
    assert_eq!(answer.status, 500);
    assert!(answer.new_id().is_some());
    let names = client.does(|session| Ok(session.key().unwrap() + &session.data()?.names().collect::<String>()));
    assert_eq!(names.await.body, "adacart");
}

async fn assert_nowhere(client: &Client) {
    let answer = client.does(|session| {
        assert_eq!((session.key(), session.handle()), (None, None));
        assert!(session.data()?.is_empty());
        Ok(())
    });
    answer.await.ok().sets_no_cookie();
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
async fn p03_a_wrong_secret_is_refused_before_any_data_is_read() {
    let reads = Arc::new(AtomicUsize::new(0));
    let sessions = MemorySessions::builder().serializer(Counting(reads.clone())).build().unwrap();
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    let wrong = format!("{}.{}", id.as_str().rsplit_once('.').unwrap().0, "A".repeat(43));
    assert!(sessions.get(&wrong).await.unwrap().is_none());
    assert_eq!(reads.load(SeqCst), 0, "a stranger's request reads the data of a session");
}

#[tokio::test]
async fn p03_a_wrong_secret_is_unknown_even_if_the_data_is_unreadable() {
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

async fn p07_what_a_handler_reads_after_bind_and_clear_is_what_is_written(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({"n": 7}))).await.ok();
    let seen = client.does(|session| {
        session.bind("ada");
        session.clear();
        Ok(format!("{:?}", session.get::<u64>("n")?))
    });
    let seen = seen.await.ok().body;
    assert_eq!(client.n().await, seen);
}

async fn p07_a_ttl_recorded_before_a_login_as_another_user_is_dropped(store: Store) {
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
    assert_eq!(key, "None", "an hour idle, and the user is still signed in");
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
    assert_eq!(names.await.body, "", "grace sees what ada had in her session");
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
