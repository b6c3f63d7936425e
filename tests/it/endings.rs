//! Endings: ended sessions stay ended, and every session that should end does.

use std::{
    future::{pending, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use http::StatusCode;
use jam_session::{
    Backend, BoxError, Data, ErrorKind, MemorySessions, Serializer, Session, SessionId, SessionLayer, conformance::Verb,
};
use serde_json::json;
use tokio::sync::Barrier;

use crate::{
    client::{Client, bind_ada, clear_others, delete, rework},
    on_every_store,
    store::Store,
    store::eventually,
};

on_every_store! {
    p04_a_slow_request_does_not_revive_what_was_signed_out,
    p04_nor_what_was_cleared,
    p04_nor_what_has_expired,
    p04_nothing_in_flight_revives_what_was_ended,
    p04_delete_beside_rework_ends_the_session_under_every_id,
    p04_logout_by_an_id_from_before_a_rework,
    p04_changes_to_a_session_that_ended_are_reported_by_save,
    p08_clear_ends_every_session_of_the_key,
    p08_clear_beside_logins,
    p08_revoke_by_a_listed_handle_across_reworks,
    p08_revoke_ends_only_ones_own,
    p08_list_shows_what_is_live_and_no_id,
    p08_a_forged_owner_clears_nothing,
    p08_clear_by_the_session_needs_the_right_secret,
    p08_clear_and_a_login_in_one_request,
    p08_clear_others_ends_all_sessions_of_the_key_but_this_one,
    p08_clear_others_with_a_new_id_in_one_request,
    p08_clear_others_with_a_login_is_for_the_user_who_signs_in,
    p08_clear_others_in_the_module_keeps_one_and_counts_the_rest,
    p16_a_panic_does_not_lose_a_sign_out,
    p16_a_client_that_leaves_does_not_lose_a_sign_out,
    p16_a_server_error_does_not_lose_a_sign_out_and_keeps_nothing_else,
    p16_nor_does_it_lose_a_sign_out_everywhere_else,
    p16_a_client_that_leaves_takes_back_what_was_not_saved,
    p16_a_save_that_was_begun_runs_to_its_end,
    p16_a_closure_that_panics_at_the_commit_does_not_lose_a_sign_out,
    p16_nor_does_one_that_judges_responses,
    p08_clear_does_not_depend_on_a_listing,
}

async fn p04_a_slow_request_does_not_revive_what_was_signed_out(store: Store) {
    let layers = [store.layer(), store.layer()];
    for change in [
        (|session| session.insert("n", 1)) as fn(&Session) -> Result<(), jam_session::Error>,
        |session| session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1),
        |session| session.update(json!({"n": 1})),
        |session| {
            session.rework();
            Ok(())
        },
        |session| {
            session.set_ttl(Duration::from_secs(9));
            Ok(())
        },
    ] {
        let client = Client::new(&layers[0]);
        client.does(|session| session.create("ada", json!({"old": 1}))).await.ok();
        let (logout, replay) = (client.clone().at(&layers[1]), client.thief());
        let slow = client.thief();
        let answer = slow.visit(async |session: Session| {
            assert!(logout.does(delete).await.ok().removes_cookie());
            change(&session)
        });
        answer.await.ok().sets_no_cookie();
        assert_dead(&store, &replay).await;
    }
}

async fn p04_nor_what_was_cleared(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({"old": 1}))).await.ok();
    let answer = client.visit(async |session: Session| {
        assert_eq!(sessions.clear("ada").await?, 1);
        session.insert("n", 1)?;
        session.rework();
        Ok(())
    });
    answer.await.ok().sets_no_cookie();
    assert_dead(&store, &client).await;
}

async fn p04_nor_what_has_expired(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({"old": 1}))).await.ok();
    let answer = client.visit(async |session: Session| {
        store.pass(Duration::from_secs(3600));
        session.insert("n", 1)
    });
    answer.await.ok().sets_no_cookie();
    assert_dead(&store, &client).await;
}

async fn p04_nothing_in_flight_revives_what_was_ended(store: Store) {
    let (one, two) = (store.sessions(), store.sessions());
    for round in 0..40 {
        let id = one.create("ada", json!({})).await.unwrap();
        let barrier = Arc::new(Barrier::new(6));
        let writers = (0..5).map(|i| {
            let (sessions, id, barrier) = ([&one, &two][i % 2].clone(), id.clone(), barrier.clone());
            tokio::spawn(async move {
                barrier.wait().await;
                let result = match i {
                    0 | 1 => sessions.update(&id, json!({"n": i})).await,
                    2 | 3 => sessions.rework(&id).await.map(drop),
                    _ => sessions.get(&id).await.map(drop),
                };
                assert!(result.is_ok() || result.unwrap_err().kind() == ErrorKind::NotFound);
            })
        });
        let writers: Vec<_> = writers.collect();
        barrier.wait().await;
        match round % 3 {
            0 => one.delete(&id).await.unwrap(),
            1 => drop(two.clear("ada").await.unwrap()),
            _ => drop(two.revoke("ada", id.as_str().split('.').nth(1).unwrap()).await.unwrap()),
        }
        futures_util::future::join_all(writers).await.into_iter().for_each(Result::unwrap);
        assert!(two.get(&id).await.unwrap().is_none());
        assert!(one.list("ada").await.unwrap().is_empty());
    }
}

async fn p04_delete_beside_rework_ends_the_session_under_every_id(store: Store) {
    let sessions = store.sessions();
    for after_grace in [false, true] {
        let old = sessions.create("ada", json!({})).await.unwrap();
        let new = sessions.rework(&old).await.unwrap();
        if after_grace {
            store.pass(Duration::from_secs(10));
            // It is not valid any more, and the session lives: that is not a sign-out.
            assert_eq!(sessions.delete(&old).await.unwrap_err().kind(), ErrorKind::Unauthorized);
            assert!(sessions.get(&new).await.unwrap().is_some());
            sessions.delete(&new).await.unwrap();
        } else {
            sessions.delete(&old).await.unwrap();
        }
        assert!(sessions.get(&new).await.unwrap().is_none());
        assert!(sessions.get(&old).await.unwrap().is_none());
        assert_eq!(sessions.rework(&new).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

async fn p04_logout_by_an_id_from_before_a_rework(store: Store) {
    let layers = [store.layer(), store.layer()];
    let client = Client::new(&layers[0]);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let rotating = client.clone().at(&layers[1]);
    // A slow logout, during which another tab rotates.
    let slow = client.thief();
    let answer = slow.visit(async |session: Session| {
        rotating.does(rework).await.ok().new_id().unwrap();
        session.delete();
        Ok(())
    });
    assert!(answer.await.ok().removes_cookie());
    assert_dead(&store, &client).await;
}

async fn p04_changes_to_a_session_that_ended_are_reported_by_save(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
    let answer = client.visit(async |session: Session| {
        sessions.clear("ada").await?;
        session.insert("n", 2)?;
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::NotFound);
        // What was last seen can still be read; plain writes are dropped; a login makes a session again.
        assert_eq!(session.get::<u8>("n")?, Some(2));
        session.insert("m", 3)?;
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::NotFound);
        session.create(sessions.login("ada").await?, json!({"fresh": 1}))?;
        session.save().await
    });
    answer.await.ok().new_id().unwrap();
    let names = client.does(|session| Ok(session.data()?.names().collect::<String>()));
    assert_eq!(names.await.body, "fresh");
}

async fn p08_clear_ends_every_session_of_the_key(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let clients: Vec<_> = (0..5).map(|_| Client::new(&layer)).collect();
    for client in &clients {
        client.does(|session| session.create("ada", json!({}))).await.ok();
    }
    let other = Client::new(&layer);
    other.does(|session| session.create("grace", json!({}))).await.ok();
    // Under whatever ID.
    clients[1].does(rework).await.ok();
    let before = clients[2].thief();
    clients[2].does(rework).await.ok();
    clients[3].does(bind_ada).await.ok();
    assert_eq!(sessions.list("ada").await.unwrap().len(), 5);
    store.faults.calls();

    let answer = clients[0].does(|session| {
        session.clear();
        Ok(())
    });
    assert!(answer.await.ok().removes_cookie());
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Clear]);
    for client in clients.iter().chain([&before]) {
        assert_dead(&store, client).await;
    }
    assert_eq!(other.does(|session| Ok(session.key().unwrap())).await.body, "grace");
    assert_eq!(sessions.clear("ada").await.unwrap(), 0);
    // What a login leaves at the old ID is no session, and does not count.
    other.does(|session| session.create("grace", json!({}))).await.ok();
    assert_eq!(sessions.clear("grace").await.unwrap(), 1);
}

async fn p08_clear_beside_logins(store: Store) {
    let (one, two) = (store.sessions(), store.sessions());
    for _ in 0..20 {
        let before: Vec<SessionId> =
            futures_util::future::join_all((0..4).map(|_| async { one.create("ada", json!({})).await.unwrap() })).await;
        let barrier = Arc::new(Barrier::new(5));
        let logins = (0..4).map(|_| {
            let (sessions, barrier) = (one.clone(), barrier.clone());
            tokio::spawn(async move {
                barrier.wait().await;
                sessions.create("ada", json!({})).await.unwrap()
            })
        });
        let logins: Vec<_> = logins.collect();
        barrier.wait().await;
        two.clear("ada").await.unwrap();
        for id in &before {
            assert!(one.get(id).await.unwrap().is_none());
        }
        let mut alive = 0;
        for id in futures_util::future::join_all(logins).await {
            alive += usize::from(one.get(id.unwrap()).await.unwrap().is_some());
        }
        assert_eq!(two.list("ada").await.unwrap().len(), alive);
        two.clear("ada").await.unwrap();
    }
}

async fn p08_revoke_by_a_listed_handle_across_reworks(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let handle = sessions.list("ada").await.unwrap().remove(0).handle;
    let slow = client.thief();
    let answer = slow.visit(async |session: Session| {
        client.does(rework).await.ok();
        assert!(sessions.revoke("ada", &handle).await?);
        session.insert("n", 1)?;
        session.rework();
        Ok(())
    });
    answer.await.ok().sets_no_cookie();
    assert_dead(&store, &client).await;
    assert!(!sessions.revoke("ada", &handle).await.unwrap());
}

async fn p08_revoke_ends_only_ones_own(store: Store) {
    let sessions = store.sessions();
    let id = sessions.create("ada", json!({})).await.unwrap();
    let handle = sessions.list("ada").await.unwrap().remove(0).handle;
    for handle in [handle.as_str(), "", "*", "../..", id.as_str(), &"x".repeat(5000)] {
        assert!(!sessions.revoke("grace", handle).await.unwrap());
    }
    assert!(sessions.get(&id).await.unwrap().is_some());
}

async fn p08_list_shows_what_is_live_and_no_id(store: Store) {
    let sessions = store.sessions();
    let first = sessions.create("ada", json!({"device": "phone"})).await.unwrap();
    store.pass(Duration::from_secs(1000));
    let second = sessions.create("ada", json!({"device": "desk"})).await.unwrap();
    sessions.create("grace", json!({})).await.unwrap();

    let list = sessions.list("ada").await.unwrap();
    let devices: Vec<_> = list.iter().map(|info| info.data.get::<String>("device").unwrap().unwrap()).collect();
    assert_eq!(devices, ["phone", "desk"]);
    let hour = Duration::from_secs(3600);
    assert_eq!(list[1].created, store.clock.now());
    store.assert_about(list[1].last_seen, store.clock.now());
    store.assert_about(list[1].expires, store.clock.now() + hour);
    assert_eq!(list[0].created, store.clock.now() - Duration::from_secs(1000));
    store.assert_about(list[0].expires, list[0].created + hour);
    for (info, id) in list.iter().zip([&first, &second]) {
        let (rest, secret) = id.as_str().rsplit_once('.').unwrap();
        assert!(rest.ends_with(&info.handle));
        assert!(!format!("{info:?}").contains(secret));
        assert!(sessions.get(&info.handle).await.unwrap().is_none());
    }
    sessions.delete(&second).await.unwrap();
    store.pass(hour);
    assert!(sessions.list("ada").await.unwrap().is_empty());
}

async fn p08_a_forged_owner_clears_nothing(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let (ada, mallory) = (Client::new(&layer), Client::new(&layer));
    ada.does(|session| session.create("ada", json!({}))).await.ok();
    mallory.does(|session| session.create("mallory", json!({}))).await.ok();
    let owner = ada.id().unwrap().split_once('.').unwrap().0.to_owned();
    let (_, own) = mallory.cookie().unwrap();
    // Ada's owner in front of mallory's own, valid rest.
    mallory.set_id(&format!("{owner}.{}", own.split_once('.').unwrap().1));
    let answer = mallory.does(|session| {
        session.clear();
        Ok(())
    });
    assert_eq!(answer.await.sets_no_cookie().status, 401);
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    assert_eq!(sessions.list("mallory").await.unwrap().len(), 1);
}

async fn p08_clear_by_the_session_needs_the_right_secret(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let id = client.id().unwrap();
    let thief = Client::new(&layer);
    thief.set_id(&format!("{}.{}", id.rsplit_once('.').unwrap().0, "A".repeat(43)));
    let answer = thief.does(|session| {
        session.clear();
        Ok(())
    });
    assert_eq!(answer.await.sets_no_cookie().status, 401);
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
}

async fn p08_clear_and_a_login_in_one_request(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({"old": 1}))).await.ok();
    let other = Client::new(&layer);
    other.does(|session| session.create("ada", json!({}))).await.ok();
    // A new password: everybody else is out, this browser stays in.
    let answer = client.does(|session| {
        session.clear();
        session.create("ada", json!({"new": 1}))
    });
    answer.await.ok().new_id().unwrap();
    assert_dead(&store, &other).await;
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    assert_eq!(client.does(|session| Ok(session.data()?.names().collect::<String>())).await.body, "new");
}

async fn p08_clear_others_ends_all_sessions_of_the_key_but_this_one(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let clients: Vec<_> = (0..4).map(|_| Client::new(&layer)).collect();
    for client in &clients {
        client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
    }
    let (grace, visitor) = (Client::new(&layer), Client::new(&layer));
    grace.does(|session| session.create("grace", json!({}))).await.ok();
    visitor.does(|session| session.insert("n", 1)).await.ok();
    // Under whatever ID.
    let before = clients[1].thief();
    clients[1].does(rework).await.ok();
    clients[2].does(bind_ada).await.ok();
    store.faults.calls();

    clients[0].does(clear_others).await.ok().new_id().unwrap();
    assert_eq!(store.faults.calls(), [Verb::Load, Verb::Update, Verb::Clear]);
    for client in clients[1..].iter().chain([&before]) {
        assert_dead(&store, client).await;
    }
    assert_eq!(clients[0].does(ada_and_n).await.body, "ada1");
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    assert_eq!(grace.does(|session| Ok(session.key().unwrap())).await.body, "grace");

    // Somebody who is not signed in has no others.
    store.faults.calls();
    visitor.does(clear_others).await.ok().sets_no_cookie();
    Client::new(&layer).does(clear_others).await.ok().sets_no_cookie();
    assert_eq!(store.faults.calls(), [Verb::Load]);
    assert_eq!(visitor.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "1");
}

async fn p08_clear_others_with_a_new_id_in_one_request(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    type Verb = fn(&Session);
    let (others, rework, bind): (Verb, Verb, Verb) =
        (|session| session.clear_others(), |session| session.rework(), |session| session.bind("ada"));
    for verbs in [[others, rework], [rework, others], [others, bind], [bind, others]] {
        let [client, other] = [(); 2].map(|()| Client::new(&layer));
        for client in [&client, &other] {
            client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
        }
        let before = client.thief();
        let answer = client.does(|session| {
            verbs.iter().for_each(|verb| verb(session));
            Ok(())
        });
        assert!(answer.await.ok().new_id().is_some());
        assert_dead(&store, &other).await;
        assert_eq!(client.does(ada_and_n).await.body, "ada1");
        assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
        // A copy of the old ID ends too: there is no grace.
        let left = before.does(|session| Ok(session.key().is_none().to_string())).await.body;
        assert_eq!(left, "true");
        sessions.clear("ada").await.unwrap();
    }
    let leaving: [Verb; 2] = [|session| session.delete(), |session| session.clear()];
    for leave in leaving {
        let [client, other] = [(); 2].map(|()| Client::new(&layer));
        for client in [&client, &other] {
            client.does(bind_ada).await.ok();
        }
        let before = client.thief();
        let answer = client.does(|session| {
            session.clear_others();
            leave(session);
            Ok(())
        });
        answer.await.ok();
        assert_dead(&store, &other).await;
        assert!(sessions.list("ada").await.unwrap().is_empty());
        assert_eq!(before.does(|session| Ok(session.key().is_none().to_string())).await.body, "true");
    }
}

async fn p08_clear_others_with_a_login_is_for_the_user_who_signs_in(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let [phone, laptop] = [(); 2].map(|()| Client::new(&layer));
    phone.does(bind_ada).await.ok();
    let answer = laptop.does(|session| {
        session.bind("ada");
        session.clear_others();
        Ok(())
    });
    answer.await.ok().new_id().unwrap();
    assert_dead(&store, &phone).await;
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    // Also if another user was signed in: her other sessions stay.
    let [switching, other] = [(); 2].map(|()| Client::new(&layer));
    for client in [&switching, &other] {
        client.does(|session| session.create("grace", json!({}))).await.ok();
    }
    let answer = switching.does(|session| {
        session.bind("ada");
        session.clear_others();
        Ok(())
    });
    answer.await.ok().new_id().unwrap();
    assert_dead(&store, &laptop).await;
    assert_eq!(other.does(|session| Ok(session.key().unwrap())).await.body, "grace");
    assert_eq!(sessions.list("grace").await.unwrap().len(), 1);

    let tablet = Client::new(&layer);
    let answer = tablet.visit(async |session: Session| {
        session.bind("ada");
        session.save().await?;
        session.clear_others();
        Ok(())
    });
    answer.await.ok().new_id().unwrap();
    assert_dead(&store, &switching).await;
    assert_eq!(tablet.does(|session| Ok(session.key().unwrap())).await.body, "ada");
}

async fn p08_clear_others_in_the_module_keeps_one_and_counts_the_rest(store: Store) {
    let sessions = store.sessions();
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    let others = [sessions.create("ada", json!({})).await.unwrap(), sessions.create("ada", json!({})).await.unwrap()];
    sessions.create("grace", json!({})).await.unwrap();
    // What a login leaves at the old ID is no session, and does not count.
    let client = Client::new(&jam_session::SessionLayer::new(sessions.clone()));
    client.set_id(others[0].as_str());
    client.does(bind_ada).await.ok();
    let newest = sessions.rework(&id).await.unwrap();
    let (newest, ended) = sessions.clear_others(&newest).await.unwrap();
    assert_eq!(ended, 2);
    assert!(sessions.get(&newest).await.unwrap().is_some());
    assert_dead(&store, &client).await;
    assert_eq!(sessions.clear_others(&newest).await.unwrap().1, 0);
    for (key, left) in [("ada", 1), ("grace", 1)] {
        assert_eq!(sessions.list(key).await.unwrap().len(), left);
    }

    for nobody in [others[1].as_str(), "", "nonsense"] {
        assert_eq!(sessions.clear_others(nobody).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    }
    let visitor = Client::new(&jam_session::SessionLayer::new(sessions.clone()));
    let anonymous = visitor.does(|session| session.insert("n", 1)).await.new_id().unwrap();
    assert_eq!(sessions.clear_others(anonymous).await.unwrap().1, 0);
}

async fn p16_a_panic_does_not_lose_a_sign_out(store: Store) {
    for everywhere in [false, true] {
        let (layer, sessions) = (store.layer(), store.sessions());
        let client = Client::new(&layer);
        client.does(|session| session.create("ada", json!({}))).await.ok();
        let panicking = client.clone();
        let task = tokio::spawn(async move {
            let answer = panicking.visit(async |session: Session| {
                session.insert("lost", 1)?;
                if everywhere {
                    session.clear()
                } else {
                    session.delete()
                }
                if !everywhere {
                    panic!("on purpose");
                }
                session.modify("x", |_: Option<u8>| -> u8 { panic!("on purpose") })
            });
            answer.await
        });
        assert!(task.await.is_err());
        eventually(async || sessions.list("ada").await.unwrap().is_empty()).await;
        assert_dead(&store, &client).await;
    }
}

async fn p16_a_client_that_leaves_does_not_lose_a_sign_out(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    // Loaded or not.
    for loaded in [true, false] {
        let client = Client::new(&layer);
        client.does(|session| session.create("ada", json!({}))).await.ok();
        let (recorded, waits) = tokio::sync::oneshot::channel();
        let leaving = client.clone();
        let task = tokio::spawn(async move {
            let answer = leaving.request(http::Request::default(), async |session: Session| {
                if loaded {
                    session.load().await.unwrap();
                }
                session.delete();
                recorded.send(()).unwrap();
                std::future::pending::<()>().await;
            });
            answer.await
        });
        waits.await.unwrap();
        task.abort();
        eventually(async || sessions.list("ada").await.unwrap().is_empty()).await;
        assert_dead(&store, &client).await;
    }
}

async fn p16_a_server_error_does_not_lose_a_sign_out_and_keeps_nothing_else(store: Store) {
    for status in [500, 503, 408] {
        let client = Client::new(&store.layer());
        client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
        let answer = client.does(|session| {
            session.insert("n", 2)?;
            session.bind("grace");
            Ok(http::StatusCode::from_u16(status).unwrap())
        });
        answer.await.sets_no_cookie();
        let answer = client.does(|session| Ok(session.key().unwrap() + &session.get::<u8>("n")?.unwrap().to_string()));
        assert_eq!(answer.await.body, "ada1");

        let answer = client.does(|session| {
            session.insert("n", 2)?;
            session.delete();
            session.insert("flash", "bye")?;
            Ok(http::StatusCode::from_u16(status).unwrap())
        });
        assert!(answer.await.removes_cookie());
        assert_dead(&store, &client).await;
    }
}

async fn p16_nor_does_it_lose_a_sign_out_everywhere_else(store: Store) {
    let layer = store.layer();
    // The handler's own error, and a login that cannot be.
    for (key, status) in [("ada", 500), ("", 200)] {
        let [client, other] = [(); 2].map(|()| Client::new(&layer));
        for client in [&client, &other] {
            client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
        }
        let answer = client.does(|session| {
            session.insert("n", 2)?;
            session.clear_others();
            session.bind(key);
            Ok(http::StatusCode::from_u16(status).unwrap())
        });
        let answer = answer.await;
        assert_eq!(answer.status, 500);
        assert!(answer.new_id().is_some());
        assert_dead(&store, &other).await;
        assert_eq!(client.does(ada_and_n).await.body, "ada1");
    }
}

async fn p16_a_client_that_leaves_takes_back_what_was_not_saved(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
    let (recorded, waits) = tokio::sync::oneshot::channel();
    let leaving = client.clone();
    let task = tokio::spawn(async move {
        let answer = leaving.visit(async |session: Session| {
            session.insert("n", 2)?;
            session.save().await?;
            session.insert("n", 3)?;
            recorded.send(()).unwrap();
            std::future::pending::<()>().await;
            Ok(())
        });
        answer.await
    });
    waits.await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "2");
}

async fn p16_a_save_that_was_begun_runs_to_its_end(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
    let (begun, is_begun) = tokio::sync::mpsc::unbounded_channel::<()>();
    let (go, gone) = tokio::sync::watch::channel(false);
    store.first(Verb::Update, move || {
        let (begun, mut gone) = (begun.clone(), gone.clone());
        async move {
            begun.send(()).unwrap();
            gone.wait_for(|go| *go).await.unwrap();
        }
    });
    let mut is_begun = is_begun;
    let answer = client.visit(async |session: Session| {
        session.insert("n", 2)?;
        tokio::select! {
            biased;
            _ = session.save() => panic!("it waits"),
            _ = is_begun.recv() => {}
        }
        // The save was dropped. It goes on, and the response waits for it.
        session.insert("m", 3)?;
        go.send(true).unwrap();
        Ok(())
    });
    answer.await.ok();
    let names = client.does(|session| Ok(format!("{:?}{:?}", session.get::<u8>("n")?, session.get::<u8>("m")?)));
    assert_eq!(names.await.body, "Some(2)Some(3)");
}

fn ada_and_n(session: &Session) -> Result<String, jam_session::Error> {
    Ok(session.key().unwrap_or_default() + &session.get::<u8>("n")?.unwrap_or_default().to_string())
}

/// The ID leads nowhere, and the store has nothing under its name.
async fn assert_dead(store: &Store, client: &Client) {
    let Some(id) = client.id() else { return };
    let answer = client.does(|session| {
        assert_eq!((session.key(), session.handle()), (None, None));
        assert!(session.data()?.is_empty());
        Ok(())
    });
    answer.await.ok();
    let record = id.rsplit_once('.').unwrap().0.parse().unwrap();
    assert!(store.backend().load(record).await.unwrap().is_none());
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

/// It is the application's code that runs between the handler's answer and the commit.
async fn p16_nor_does_one_that_judges_responses(store: Store) {
    let layer = store.layer().failed_if(|response| match response.status {
        StatusCode::IM_A_TEAPOT => panic!("on purpose"),
        _ => false,
    });
    let client = Client::new(&layer);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let panicking = client.clone();
    let task = tokio::spawn(async move {
        let answer = panicking.does(|session| {
            session.delete();
            Ok(StatusCode::IM_A_TEAPOT)
        });
        answer.await
    });
    assert!(task.await.unwrap_err().is_panic());
    eventually(async || store.sessions().list("ada").await.unwrap().is_empty()).await;
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

async fn p08_clear_does_not_depend_on_a_listing(store: Store) {
    let sessions = store.sessions();
    sessions.create("ada", json!({})).await.unwrap();
    store.faults.calls();
    assert_eq!(sessions.clear("ada").await.unwrap(), 1);
    assert_eq!(store.faults.calls(), [Verb::Clear]);
    assert!(sessions.list("ada").await.unwrap().is_empty());
}

/// A session that was revoked while a request held it, and what `clear` does then: the answer should not depend on
/// whether something was saved in between.
#[tokio::test]
async fn p08_clear_by_a_revoked_session_does_the_same_with_and_without_a_save() {
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
    assert_eq!(left[0], left[1], "a save before it changes what `clear` answers and ends");
}

#[tokio::test]
async fn p04_a_session_ends_even_if_the_serializer_cannot_write() {
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
