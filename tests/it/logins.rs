//! Logins: the new ID, which data is kept or dropped, and concurrent requests.

use std::time::Duration;

use http::Request;
use jam_session::{
    ErrorKind, Session,
    conformance::{Fault, Verb},
};
use serde_json::json;

use crate::{
    client::{Client, bind_ada, delete, rework},
    on_every_store,
    store::{Store, eventually},
};

on_every_store! {
    p07_login_gives_a_new_id_and_keeps_the_data,
    p07_login_again_gives_a_new_id_too,
    p07_a_login_is_begun_for_any_name_and_refused_where_it_binds,
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
    p07_what_a_handler_reads_after_bind_and_clear_is_what_is_written,
    p07_a_ttl_recorded_before_a_login_as_another_user_is_dropped,
    p07_a_login_after_a_save_that_said_not_found_does_not_take_the_dead_sessions_data_along,
    p07_what_was_recorded_before_bind_to_another_user_is_dropped_also_with_clear,
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
    assert_eq!(store.faults.calls().last(), Some(&store.leaves_by()));
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
    assert_eq!(list[0].handle, handle, "it is the same session");
    assert_eq!(client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "1");
}

/// A user may type anything into a login form. The server must not fail before the password is checked.
async fn p07_a_login_is_begun_for_any_name_and_refused_where_it_binds(store: Store) {
    let sessions = store.sessions();
    for name in [String::new(), "a".repeat(2_000)] {
        let login = sessions.login(&name).await.unwrap();
        let client = Client::new(&store.layer());
        let answer = client.visit(async |session| {
            session.bind(login);
            session.save().await
        });
        assert_eq!(answer.await.sets_no_cookie().status, 500, "no session is made for it");
        assert!(sessions.list(&name).await.unwrap().is_empty());
    }
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
    // It comes with the visitor's ID, and must not overwrite the login's cookie: it gets one of another name.
    let answer = poll.does(|session| session.insert("seen", 1)).await.ok();
    assert!(answer.set_cookies()[0].starts_with("__Host-id-visitor="), "{answer:?}");
    client.take_cookies(&answer.headers);
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
    assert_eq!(client.does(|session| Ok(session.get::<u8>("cart")?.unwrap().to_string())).await.body, "1");
    // It may log in itself.
    poll.does(|session| session.create("grace", json!({}))).await.ok().new_id().unwrap();
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
}

async fn p07_bind_beside_a_write_to_the_anonymous_session(store: Store) {
    let layers = [store.layer(), store.layer()];
    let client = Client::new(&layers[0]);
    client.does(|session| session.insert("n", 1)).await.ok();

    // Written after the login has read the data, and before it ends the old session: it goes over.
    let early = client.thief().at(&layers[1]);
    store.first(store.leaves_by(), move || {
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
    // The logout has loaded before the login and ends after it: for ten seconds an ID that a login has replaced signs out.
    let client = Client::new(&layers[0]);
    client.does(|session| session.create("ada", json!({}))).await.ok();
    let (login, logout) = (client.clone(), client.thief().at(&layers[1]));
    let answer = logout.visit(async |session: Session| {
        login.does(bind_ada).await.ok();
        session.delete();
        Ok(())
    });
    assert!(answer.await.ok().removes_cookie());
    assert_nowhere(&client).await;
    assert_nowhere(&logout).await;

    // The login has loaded before the logout and ends after it: the session is dead, and a session key is not enough.
    client.does(|session| session.create("ada", json!({"old": 1}))).await.ok();
    let logout = client.thief().at(&layers[1]);
    let before = client.thief();
    let answer = client.visit(async |session: Session| {
        assert!(logout.does(delete).await.ok().removes_cookie());
        session.bind("ada");
        session.insert("new", 2)
    });
    assert_eq!(answer.await.sets_no_cookie().status, 401);
    assert_nowhere(&client).await;
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
    // Both logins are good, and each has the data that it saw.
    let mut carts = Vec::new();
    for info in sessions.list("ada").await.unwrap() {
        carts.push(info.data.get::<u8>("cart").unwrap());
    }
    carts.sort();
    assert_eq!(carts, [Some(1), Some(1)]);
    assert_nowhere(&before).await;
}

async fn p07_a_login_that_fails_halfway_leaves_the_old_session_as_it_was(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let client = Client::new(&layer);
    client.does(|session| session.insert("cart", 1)).await.ok();
    for (verb, fault) in [(Verb::Create, Fault::Before), (store.leaves_by(), Fault::Before)] {
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
        let answer = answer.await.ok();
        assert!(answer.set_cookies()[0].starts_with("__Host-id-visitor="), "{answer:?}");
        assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
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
        session.bind(sessions.login("grace").await?);
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
