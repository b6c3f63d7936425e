//! Authority: logins and sign-outs of delayed requests, with stolen cookies, and with several cookies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD as BASE64, Engine};
use http::{Request, StatusCode, header::COOKIE};
use jam_session::{
    ErrorKind, Keyring, Session, SessionLayer, Sessions,
    conformance::{Answer as Reply, Fault, Verb},
};
use serde_json::json;

use crate::{
    client::{Answer, Client, bind_ada, clear_others, delete, increment, rework},
    on_every_store,
    store::{Options, PATIENCE, Store, Watched, eventually, record_id},
};

on_every_store! {
    p04_a_held_back_bind_survives_no_sign_out,
    p04_a_held_back_bind_survives_no_rotation_once_the_grace_is_over,
    p04_a_login_with_an_old_password_does_not_take_over_what_a_new_one_has_secured,
    p04_a_sign_out_between_the_two_calls_of_a_switch_refuses_it,
    p04_a_sign_out_between_bind_and_clear_refuses_both,
    p04_a_login_is_refused_if_its_user_was_signed_out_meanwhile,
    p04_a_session_key_is_refused_if_its_request_arrived_more_than_fifteen_minutes_ago,
    p04_a_login_beside_a_sign_out_ends_in_a_session_or_in_an_error,
    p07_a_login_beside_a_rotation_is_refused_by_key_and_a_new_session_by_login,
    p07_a_write_that_was_held_back_does_not_land_behind_a_new_password,
    p07_a_login_that_is_tried_again_is_not_removed_afterwards,
    p07_a_login_that_nobody_tries_again_is_removed,
    p08_a_sign_out_with_an_id_that_a_login_has_just_replaced_does_what_it_says,
    p08_revoke_ends_a_session_whose_user_signs_in_again_at_that_moment,
    p08_sign_out_everywhere_from_a_session_that_has_ended_is_a_401,
    p08_a_request_of_a_revoked_session_ends_no_others,
    p08_a_secret_is_tried_by_the_time_before_the_call,
    p16_a_writer_in_a_loop_holds_off_no_sign_out,
    p08_clear_others_ends_a_copy_of_its_own_cookie,
    p08_clear_others_counts_although_the_handler_fails,
    p08_clear_others_beside_a_login_of_a_handler_that_fails_leaves_the_session_as_it_was,
    p10_no_response_brings_an_id_of_a_session_that_it_knows_to_have_ended,
    p08_clear_others_by_an_id_that_was_rotated_ends_nothing,
    p08_a_password_reset_link_ends_every_session_of_the_user,
    p08_two_devices_that_set_a_new_password_at_once_are_not_both_out,
    p08_signing_out_of_what_another_key_has_encrypted_is_a_401,
    p08_signing_out_with_a_plain_id_where_none_is_accepted_is_a_401,
    p10_a_cookie_that_ends_before_its_session_is_set_again_in_time,
    p06_five_rotations_within_ten_seconds_forget_no_id,
    p15_a_sign_out_ends_every_session_that_its_cookies_open,
    p15_two_cookies_of_one_user_are_both_signed_out,
    p15_a_login_ends_what_was_planted,
    p15_more_cookies_than_are_tried_are_no_session,
    p15_two_visitors_cookies_are_no_session,
    p15_a_planter_who_writes_in_a_loop_holds_off_no_login,
    p02_a_visitors_cookie_never_replaces_a_users,
    p07_a_retry_overwrites_nothing_that_others_have_written_meanwhile,
    p06_a_retry_brings_no_rotated_id_back,
    p06_a_retry_sets_no_cookie_that_was_not_stored,
    p08_a_sign_out_after_a_saved_delete_is_a_401_or_takes_place,
    p08_the_cookie_of_a_session_that_the_request_has_ended_is_not_set,
    p15_a_login_ends_no_session_that_its_cookies_no_longer_open,
    p07_the_removal_of_a_login_that_failed_ends_no_session_of_the_same_name,
    p06_a_lost_answer_to_an_automatic_rotation_signs_nobody_out,
    p08_clear_others_whose_answer_is_lost_keeps_its_own_session,
    p15_a_session_that_cannot_be_read_is_not_reported_as_signed_out,
    p15_clear_others_beside_a_cookie_of_another_key_is_a_401,
    p15_cookies_of_visitors_do_not_count_against_users,
    p04_a_switch_that_fails_takes_no_cookie_of_the_login_before_it,
    p08_a_password_reset_link_that_fails_signs_nobody_in,
    p08_a_failed_password_reset_whose_own_session_was_ended_meanwhile_is_a_401,
    p15_a_sign_out_after_a_saved_login_sets_no_cookie,
    p15_two_users_cookies_begin_no_visitors_session,
    p04_a_panic_while_data_is_merged_into_a_login_leaves_no_session,
}

const LATER: Duration = Duration::from_secs(150);

fn ada(session: &Session) -> Result<(), jam_session::Error> {
    session.create("ada", json!({}))
}

async fn signed_in(layer: &SessionLayer) -> Client {
    let client = Client::new(layer);
    client.does(ada).await.ok();
    client
}

async fn key(client: &Client) -> String {
    client.does(|session| Ok(session.key().unwrap_or_default())).await.ok().body
}

async fn count(store: &Store, user: &str) -> usize {
    store.sessions().list(user).await.unwrap().len()
}

#[track_caller]
fn is_refused(answer: Answer) {
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{answer:?}");
    assert!(answer.set_cookies().is_empty(), "{answer:?}");
}

/// A request with these cookies, in this order, to a handler.
async fn with_cookies<T: axum::response::IntoResponse>(
    layer: &SessionLayer,
    cookies: &[String],
    handler: impl FnOnce(&Session) -> Result<T, jam_session::Error>,
) -> Answer {
    visit_with_cookies(layer, cookies, async |session| handler(session)).await
}

async fn visit_with_cookies<T: axum::response::IntoResponse>(
    layer: &SessionLayer,
    cookies: &[String],
    handler: impl AsyncFnOnce(&Session) -> Result<T, jam_session::Error>,
) -> Answer {
    let request = Request::builder().header(COOKIE, cookies.join("; ")).body(axum::body::Body::empty()).unwrap();
    let client = Client::new(layer);
    let answer = client.request(request, async |session: Session| {
        session.load().await?;
        handler(&session).await
    });
    answer.await
}

fn user_cookie(client: &Client) -> String {
    format!("__Host-id={}", client.id().unwrap())
}

fn visitor_cookie(client: &Client) -> String {
    format!("__Host-id-visitor={}", client.id().unwrap())
}

/// A handler that does only that.
fn calls(verb: fn(&Session)) -> impl FnOnce(&Session) -> Result<(), jam_session::Error> {
    move |session| {
        verb(session);
        Ok(())
    }
}

type Handler = fn(&Session) -> Result<(), jam_session::Error>;

/// Whatever it binds, and whatever the owner has done meanwhile.
async fn p04_a_held_back_bind_survives_no_sign_out(store: Store) {
    const BINDS: [Handler; 5] = [
        bind_ada,
        ada,
        |session| {
            session.bind("grace");
            Ok(())
        },
        |session| {
            session.clear();
            bind_ada(session)
        },
        |session| {
            session.clear_others();
            bind_ada(session)
        },
    ];
    const SIGN_OUTS: [Handler; 3] = [
        |session| {
            session.clear();
            Ok(())
        },
        |session| {
            session.clear_others();
            Ok(())
        },
        |session| {
            session.clear_others();
            bind_ada(session)
        },
    ];
    for bind in BINDS {
        for sign_out in SIGN_OUTS {
            let owner = signed_in(&store.layer()).await;
            let thief = owner.thief().at(&store.layer());
            let answer = thief.visit(async |session: Session| {
                owner.does(sign_out).await.ok();
                store.pass(LATER);
                bind(&session)
            });
            is_refused(answer.await);
            assert_eq!(count(&store, "grace").await, 0);
            assert_eq!(key(&thief).await, "");
            let kept = key(&owner).await;
            assert_eq!(count(&store, "ada").await, usize::from(kept == "ada"));
            store.sessions().clear("ada").await.unwrap();
            store.pass(LATER);
        }
    }
    // A session that the request itself has ended gives no right to another one.
    let owner = signed_in(&store.layer()).await;
    let answer = owner.visit(async |session: Session| {
        session.delete();
        session.save().await?;
        bind_ada(&session)
    });
    assert_eq!(answer.await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(count(&store, "ada").await, 0);
}

async fn p04_a_held_back_bind_survives_no_rotation_once_the_grace_is_over(store: Store) {
    let owner = signed_in(&store.layer()).await;
    let thief = owner.thief().at(&store.layer());
    let answer = thief.visit(async |session: Session| {
        owner.does(rework).await.ok();
        store.pass(LATER);
        bind_ada(&session)
    });
    is_refused(answer.await);
    assert_eq!((key(&owner).await, key(&thief).await), ("ada".to_owned(), String::new()));
}

async fn p04_a_login_with_an_old_password_does_not_take_over_what_a_new_one_has_secured(store: Store) {
    let owner = signed_in(&store.layer()).await;
    let (thief, sessions) = (owner.thief().at(&store.layer()), store.sessions());
    let answer = thief.visit(async |session: Session| {
        let login = sessions.login("ada").await?;
        store.pass(LATER);
        // The new password.
        let new = sessions.login("ada").await?;
        let secured = owner.does(|session| {
            session.clear_others();
            session.bind(new);
            Ok(())
        });
        secured.await.ok();
        session.bind(login);
        Ok(())
    });
    is_refused(answer.await);
    assert_eq!(key(&owner).await, "ada");
    assert_eq!(count(&store, "ada").await, 1);
}

async fn p04_a_sign_out_between_the_two_calls_of_a_switch_refuses_it(store: Store) {
    let client = signed_in(&store.layer()).await;
    let sessions = store.sessions();
    store.first(Verb::Update, move || {
        let sessions = sessions.clone();
        async move {
            sessions.clear("ada").await.unwrap();
        }
    });
    let answer = client.does(|session| {
        session.bind("grace");
        Ok(())
    });
    is_refused(answer.await);
    eventually(async || count(&store, "grace").await == 0).await;
    assert_eq!(count(&store, "ada").await, 0);
}

async fn p04_a_sign_out_between_bind_and_clear_refuses_both(store: Store) {
    for sign_out in [Session::clear as fn(&Session), Session::clear_others] {
        let client = signed_in(&store.layer()).await;
        let sessions = store.sessions();
        store.first(Verb::Clear, move || {
            let sessions = sessions.clone();
            async move {
                sessions.clear("ada").await.unwrap();
            }
        });
        let answer = client.does(|session| {
            session.bind("ada");
            sign_out(session);
            Ok(())
        });
        is_refused(answer.await);
        assert_eq!(count(&store, "ada").await, 0);
    }
}

/// By a session key since the request arrived, by a `Login` since it was taken.
async fn p04_a_login_is_refused_if_its_user_was_signed_out_meanwhile(store: Store) {
    let sessions = store.sessions();
    let client = Client::new(&store.layer());
    let answer = client.visit(async |session: Session| {
        store.pass(LATER);
        sessions.clear("ada").await?;
        bind_ada(&session)?;
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Unauthorized);
        // Once reported it is dropped. A `Login` that is taken now is good.
        session.bind(sessions.login("ada").await?);
        Ok(())
    });
    answer.await.ok().new_id().unwrap();
    let answer = client.visit(async |session: Session| {
        let login = sessions.login("grace").await?;
        store.pass(LATER);
        sessions.clear("grace").await?;
        session.bind(login);
        Ok(())
    });
    assert_eq!(answer.await.status, StatusCode::UNAUTHORIZED);
    assert_eq!((count(&store, "ada").await, count(&store, "grace").await), (1, 0));
    // Without a sign-out it is good for fifteen minutes.
    let login = sessions.login("grace").await.unwrap();
    let login = store.pass_for(login, Duration::from_secs(16 * 60));
    let late = Client::new(&store.layer());
    let answer = late.does(|session| {
        session.bind(login);
        Ok(())
    });
    is_refused(answer.await);
}

/// Nobody signed out: so long ago, nothing tells. It counts from when our service is called.
async fn p04_a_session_key_is_refused_if_its_request_arrived_more_than_fifteen_minutes_ago(store: Store) {
    let layer = store.layer();
    let after = async |minutes: u64, handler: Handler| {
        let client = Client::new(&layer);
        let answer = client.visit(async |session: Session| {
            store.pass(Duration::from_secs(60 * minutes));
            handler(&session)
        });
        (answer.await, client)
    };
    for (login, sessions) in [(bind_ada as Handler, 1), (ada, 2)] {
        let (answer, client) = after(14, login).await;
        answer.ok().new_id().unwrap();
        assert_eq!(key(&client).await, "ada");
        let (answer, client) = after(16, login).await;
        is_refused(answer);
        assert_eq!((key(&client).await, count(&store, "ada").await), (String::new(), sessions));
    }
    // A user who is signed in keeps the record, whose newest secret came: nothing depends on the time.
    let client = signed_in(&layer).await;
    let answer = client.visit(async |session: Session| {
        store.pass(Duration::from_secs(60 * 16));
        bind_ada(&session)
    });
    answer.await.ok().new_id().unwrap();
    // A switch of user makes a session, and has the age of its request.
    let answer = client.visit(async |session: Session| {
        store.pass(Duration::from_secs(60 * 16));
        session.bind("grace");
        Ok(())
    });
    is_refused(answer.await);
    assert_eq!((key(&client).await, count(&store, "grace").await), ("ada".to_owned(), 0));
}

/// The login form, posted by a user who is signed in, at the moment when the sessions are cleared.
async fn p04_a_login_beside_a_sign_out_ends_in_a_session_or_in_an_error(store: Store) {
    let sessions = store.sessions();
    for clear_first in [false, true] {
        let client = signed_in(&store.layer()).await;
        let answer = client.visit(async |session: Session| {
            let early = sessions.login("ada").await?;
            store.pass(LATER);
            sessions.clear("ada").await?;
            let late = sessions.login("ada").await?;
            session.bind(if clear_first { late } else { early });
            Ok(())
        });
        let answer = answer.await;
        match clear_first {
            true => drop(answer.ok().new_id().unwrap()),
            false => is_refused(answer),
        }
        assert_eq!(count(&store, "ada").await, usize::from(clear_first));
    }
}

async fn p07_a_login_beside_a_rotation_is_refused_by_key_and_a_new_session_by_login(store: Store) {
    let (client, sessions) = (signed_in(&store.layer()).await, store.sessions());
    let tab = client.thief().at(&store.layer());
    let answer = tab.visit(async |session: Session| {
        client.does(rework).await.ok();
        bind_ada(&session)
    });
    is_refused(answer.await);
    // It may still read and write, by its previous ID.
    assert_eq!(key(&tab).await, "ada");
    let answer = tab.visit(async |session: Session| {
        session.bind(sessions.login("ada").await?);
        session.insert("n", 1)
    });
    answer.await.ok().new_id().unwrap();
    assert_eq!(count(&store, "ada").await, 2);
    assert_eq!((key(&tab).await, key(&client).await), ("ada".to_owned(), "ada".to_owned()));
}

async fn p07_a_write_that_was_held_back_does_not_land_behind_a_new_password(store: Store) {
    let owner = signed_in(&store.layer()).await;
    let thief = owner.thief().at(&store.layer());
    let answer = thief.visit(async |session: Session| {
        owner.does(calls(Session::clear_others)).await.ok();
        session.insert("n", 6)?;
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::NotFound);
        session.insert("n", 7)
    });
    answer.await.ok().sets_no_cookie();
    assert_eq!(owner.n().await, "None");
}

/// The session, with what it has to wait for before it is known that nothing removes it.
fn layer_of(store: &Store) -> (SessionLayer, Sessions<Watched>) {
    let sessions = store.sessions();
    (SessionLayer::new(sessions.clone()), sessions)
}

async fn p07_a_login_that_is_tried_again_is_not_removed_afterwards(store: Store) {
    let (layer, sessions) = layer_of(&store);
    let client = Client::new(&layer);
    let faults = store.faults.clone();
    let answer = client.visit(async |session: Session| {
        session.create("ada", json!({"n": 1}))?;
        faults.next(Verb::Create, Fault::After);
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Unavailable);
        session.save().await
    });
    answer.await.ok().new_id().unwrap();
    sessions.close().await.unwrap();
    assert_eq!(count(&store, "ada").await, 1);
    let client = client.at(&store.layer());
    assert_eq!(client.n().await, "Some(1)");
}

async fn p07_a_login_that_nobody_tries_again_is_removed(store: Store) {
    let (layer, sessions) = layer_of(&store);
    store.faults.next(Verb::Create, Fault::After);
    let answer = Client::new(&layer).does(ada).await.sets_no_cookie();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    sessions.close().await.unwrap();
    assert_eq!(count(&store, "ada").await, 0);
}

async fn p08_a_sign_out_with_an_id_that_a_login_has_just_replaced_does_what_it_says(store: Store) {
    let sessions = store.sessions();
    for loads_before in [true, false] {
        for (sign_out, left) in [(Session::delete as fn(&Session), 1), (Session::clear, 0)] {
            let other = signed_in(&store.layer()).await;
            let client = signed_in(&store.layer()).await;
            let tab = client.thief().at(&store.layer());
            let answer = tab.visit(async |session: Session| {
                if loads_before {
                    client.does(bind_ada).await.ok();
                }
                sign_out(&session);
                Ok(())
            });
            if !loads_before {
                client.does(bind_ada).await.ok();
            }
            let answer = answer.await.ok();
            assert!(answer.removes_cookie(), "{answer:?}");
            assert_eq!(key(&client).await, "");
            assert_eq!((count(&store, "ada").await, key(&other).await.len() / 3), (left, left));
            sessions.clear("ada").await.unwrap();
        }
    }
    // By the module; and not once the ten seconds are over.
    let client = signed_in(&store.layer()).await;
    let old = client.id().unwrap();
    client.does(bind_ada).await.ok();
    sessions.delete(&old).await.unwrap();
    assert_eq!(key(&client).await, "");
    let client = signed_in(&store.layer()).await;
    let tab = client.thief();
    client.does(bind_ada).await.ok();
    store.pass(LATER);
    for sign_out in [Session::delete as fn(&Session), Session::clear, Session::clear_others] {
        is_refused(tab.does(calls(sign_out)).await);
    }
    assert_eq!(sessions.delete(tab.id().unwrap()).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    assert_eq!(key(&client).await, "ada");
}

async fn p08_revoke_ends_a_session_whose_user_signs_in_again_at_that_moment(store: Store) {
    let client = signed_in(&store.layer()).await;
    let handle = store.sessions().list("ada").await.unwrap().remove(0).handle;
    let signing_in = client.clone();
    store.first(Verb::Update, move || {
        let client = signing_in.clone();
        async move { drop(client.does(bind_ada).await.ok()) }
    });
    assert!(store.sessions().revoke("ada", &handle).await.unwrap());
    assert_eq!(key(&client).await, "");
    assert_eq!(count(&store, "ada").await, 0);
}

async fn p08_sign_out_everywhere_from_a_session_that_has_ended_is_a_401(store: Store) {
    let other = signed_in(&store.layer()).await;
    for sign_out in [Session::clear as fn(&Session), Session::clear_others] {
        // Expired, and revoked.
        let expired = Client::new(&store.layer());
        let brief = expired.does(|session| {
            session.set_ttl(LATER);
            session.create("ada", json!({}))
        });
        brief.await.ok();
        store.pass(2 * LATER);
        let revoked = signed_in(&store.layer()).await;
        store.sessions().delete(revoked.id().unwrap()).await.unwrap();
        for tab in [expired, revoked] {
            // A visitor's session that came with it changes nothing.
            let id = tab.id();
            tab.does(|session| session.insert("n", 1)).await.ok().new_id().unwrap();
            assert_eq!(tab.id(), id, "a user's cookie is never replaced by a visitor's");
            is_refused(tab.does(calls(sign_out)).await);
            // Signing out here is done, and ends the visitor's session.
            tab.does(delete).await.ok();
            assert_eq!(tab.n().await, "None");
        }
        assert_eq!(key(&other).await, "ada");
    }
}

async fn p08_a_request_of_a_revoked_session_ends_no_others(store: Store) {
    let sessions = store.sessions();
    for sign_out in [Session::clear as fn(&Session), Session::clear_others] {
        let revoked = signed_in(&store.layer()).await;
        let answer = revoked.visit(async |session: Session| {
            sessions.clear("ada").await?;
            sign_out(&session);
            // Signed in again, on another device.
            assert_eq!(key(&signed_in(&store.layer()).await).await, "ada");
            Ok(())
        });
        is_refused(answer.await);
        assert_eq!(count(&store, "ada").await, 1);
    }
}

/// Another process writes to the session of that ID, if it is there.
fn writer(store: &Store, id: &str) -> (Fault, Arc<AtomicU64>) {
    let sessions = Sessions::over(store.inner().backend().clone()).clock(store.clock.clone()).request_time(PATIENCE);
    let sessions = sessions.build().unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let (id, count) = (id.to_owned(), Arc::clone(&written));
    let writes = Fault::first(move |_| {
        let (sessions, id, count) = (sessions.clone(), id.clone(), Arc::clone(&count));
        async move {
            let data = json!({"n": count.load(Relaxed)});
            if sessions.update(&id, data).await.is_ok() {
                count.fetch_add(1, Relaxed);
            }
        }
    });
    (writes, written)
}

/// A window that ends while the call is under way counts as open. After a conflict it is tried again, by the time before the
/// call that showed it.
async fn p08_a_secret_is_tried_by_the_time_before_the_call(store: Store) {
    let layer = store.layer();
    for (sign_out, verb) in [(Session::delete as fn(&Session), Verb::Update), (Session::clear, Verb::Clear)] {
        // During which call the ten seconds end.
        for (writes, is_over_at, is_done) in [(0_u64, 0, true), (1, 0, true), (2, 1, true), (2, 0, false)] {
            let client = signed_in(&layer).await;
            let tab = client.thief();
            // The tab's ID is superseded for ten seconds from now on.
            client.does(bind_ada).await.ok();
            store.clock.advance(Duration::from_secs(9));
            let (clock, calls_made) = (store.clock.clone(), AtomicU64::new(0));
            store.faults.when(move |call| {
                let is_over = call.verb == verb && calls_made.fetch_add(1, Relaxed) == is_over_at;
                is_over.then(|| clock.advance(Duration::from_secs(2)));
                None
            });
            let (write, written) = writer(&store, &client.id().unwrap());
            for _ in 0..writes {
                store.faults.next(verb, write.clone());
            }
            let answer = tab.does(calls(sign_out)).await;
            match is_done {
                true => assert!(answer.ok().removes_cookie()),
                false => is_refused(answer),
            }
            assert_eq!(written.load(Relaxed), writes);
            let left = if is_done { "" } else { "ada" };
            assert_eq!(key(&client).await, left, "{verb:?}: {writes} writes, over at {is_over_at}");
            store.faults.heal();
            // A login in the same instant as a clear is too late.
            store.pass(LATER);
        }
    }
}

/// Three times it loses to a writer; then it ends the session whatever is written.
async fn p16_a_writer_in_a_loop_holds_off_no_sign_out(store: Store) {
    let layer = store.layer();
    let loops = |id: &str| {
        let (write, written) = writer(&store, id);
        store.faults.always(Verb::Update, write);
        store.faults.calls();
        written
    };
    // A user's session, by its newest ID and by one that a login has just replaced; and a visitor's.
    for (begin, is_superseded) in [(ada as Handler, false), (ada, true), (increment, false)] {
        let client = Client::new(&layer);
        client.does(begin).await.ok();
        let tab = client.thief();
        if is_superseded {
            client.does(bind_ada).await.ok();
        }
        let written = loops(&client.id().unwrap());
        let answer = tab.does(delete).await.ok();
        assert_eq!(
            store.faults.calls(),
            [Verb::Load, Verb::Update, Verb::Update, Verb::Update, Verb::Delete],
            "{answer:?}"
        );
        store.faults.heal();
        assert!(answer.removes_cookie(), "{answer:?}");
        assert_eq!(written.load(Relaxed), 3);
        assert_eq!((key(&client).await, client.n().await), (String::new(), "None".to_owned()));
    }
    // By the module, and by a handler that fails.
    let client = signed_in(&layer).await;
    let written = loops(&client.id().unwrap());
    store.sessions().delete(&client.id().unwrap()).await.unwrap();
    store.faults.heal();
    assert_eq!((key(&client).await, written.load(Relaxed)), (String::new(), 3));
    let client = signed_in(&layer).await;
    let written = loops(&client.id().unwrap());
    let answer = client.does(|session| {
        session.delete();
        Ok(StatusCode::INTERNAL_SERVER_ERROR)
    });
    assert_eq!(answer.await.status, StatusCode::INTERNAL_SERVER_ERROR);
    store.faults.heal();
    assert_eq!((key(&client).await, written.load(Relaxed)), (String::new(), 3));
    assert_eq!(count(&store, "ada").await, 0);
    // A `clear` is asked again as often as somebody was quicker.
    let (client, other) = (signed_in(&layer).await, signed_in(&layer).await);
    let (write, written) = writer(&store, &client.id().unwrap());
    for _ in 0..20 {
        store.faults.next(Verb::Clear, write.clone());
    }
    client.does(calls(Session::clear)).await.ok();
    assert_eq!(written.load(Relaxed), 20);
    assert_eq!((key(&client).await, key(&other).await), (String::new(), String::new()));
}

async fn p08_clear_others_ends_a_copy_of_its_own_cookie(store: Store) {
    let (client, other) = (signed_in(&store.layer()).await, signed_in(&store.layer()).await);
    let (thief, handle) = (client.thief(), client.does(|session| Ok(session.handle().unwrap())).await.body);
    client.does(|session| session.insert("n", 1)).await.ok();
    let answer = client.does(calls(Session::clear_others));
    answer.await.ok().new_id().unwrap();
    assert_eq!((key(&thief).await, key(&other).await), (String::new(), String::new()));
    assert_eq!((key(&client).await, client.n().await), ("ada".to_owned(), "Some(1)".to_owned()));
    assert_eq!(client.does(|session| Ok(session.handle().unwrap())).await.body, handle);
    // The module's does the same.
    let sessions = store.sessions();
    let (old, other) = (client.id().unwrap(), signed_in(&store.layer()).await);
    let (new, ended) = sessions.clear_others(&old).await.unwrap();
    assert_eq!(ended, 1);
    assert!(sessions.get(&new).await.unwrap().is_some() && sessions.get(&old).await.unwrap().is_none());
    assert_eq!(sessions.clear_others(&old).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    assert_eq!(key(&other).await, "");
    // A visitor's session has no others.
    let visitor = Client::new(&store.layer());
    visitor.does(|session| session.insert("n", 2)).await.ok();
    visitor.does(calls(Session::clear_others)).await.ok().sets_no_cookie();
    assert_eq!(sessions.clear_others(visitor.id().unwrap()).await.unwrap().1, 0);
    assert_eq!(visitor.n().await, "Some(2)");
}

async fn p08_clear_others_counts_although_the_handler_fails(store: Store) {
    let sessions = store.sessions();
    for with_login in [false, true] {
        let (client, other) = (signed_in(&store.layer()).await, signed_in(&store.layer()).await);
        let thief = client.thief();
        let answer = client.does(|session| {
            session.clear_others();
            if with_login {
                bind_ada(session)?;
            }
            session.insert("n", 1)?;
            Ok(StatusCode::INTERNAL_SERVER_ERROR)
        });
        let answer = answer.await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(answer.new_id().is_some());
        assert_eq!((key(&thief).await, key(&other).await), (String::new(), String::new()));
        assert_eq!((key(&client).await, client.n().await), ("ada".to_owned(), "None".to_owned()));
        sessions.clear("ada").await.unwrap();
    }
}

async fn p08_clear_others_beside_a_login_of_a_handler_that_fails_leaves_the_session_as_it_was(store: Store) {
    const HOUR: Duration = Duration::from_secs(3600);
    let failing: [(Handler, bool); 4] = [
        (|session| session.create("ada", json!({"n": 9})), true),
        (calls_create_and_writes, true),
        (calls_bind_twice, true),
        (calls_delete_and_bind, false),
    ];
    let sessions = store.sessions();
    for (login, stays) in failing {
        let (client, other) = (signed_in(&store.layer()).await, signed_in(&store.layer()).await);
        let stay = client.does(|session| {
            session.insert("n", 1)?;
            session.set_ttl(Duration::from_secs(8 * 3600));
            Ok(())
        });
        stay.await.ok();
        let answer = client.does(|session| {
            session.clear_others();
            login(session)?;
            Ok(StatusCode::INTERNAL_SERVER_ERROR)
        });
        let answer = answer.await;
        assert_eq!((answer.status, answer.new_id().is_some()), (StatusCode::INTERNAL_SERVER_ERROR, stays));
        assert_eq!(key(&other).await, "");
        // It may still be idle for as long as before.
        store.pass(7 * HOUR);
        match stays {
            true => assert_eq!((key(&client).await, client.n().await), ("ada".to_owned(), "Some(1)".to_owned())),
            false => assert_eq!(key(&client).await, ""),
        }
        sessions.clear("ada").await.unwrap();
    }
}

fn calls_create_and_writes(session: &Session) -> Result<(), jam_session::Error> {
    session.create("ada", json!({}))?;
    session.insert("n", 9)
}

/// The user in between leaves nothing of the data.
fn calls_bind_twice(session: &Session) -> Result<(), jam_session::Error> {
    session.bind("grace");
    session.bind("ada");
    session.insert("n", 9)
}

fn calls_delete_and_bind(session: &Session) -> Result<(), jam_session::Error> {
    session.delete();
    session.bind("ada");
    Ok(())
}

async fn p08_clear_others_by_an_id_that_was_rotated_ends_nothing(store: Store) {
    let (client, other) = (signed_in(&store.layer()).await, signed_in(&store.layer()).await);
    let thief = client.thief();
    thief.does(rework).await.ok();
    is_refused(client.does(calls(Session::clear_others)).await);
    assert_eq!((key(&client).await, key(&other).await), ("ada".to_owned(), "ada".to_owned()));
    // Signing out everywhere is what is left.
    client.does(calls(Session::clear)).await.ok();
    assert_eq!((key(&thief).await, count(&store, "ada").await), (String::new(), 0));
}

async fn p08_a_password_reset_link_ends_every_session_of_the_user(store: Store) {
    let sessions = store.sessions();
    for with_visitor in [false, true] {
        for by_login in [false, true] {
            let thief = signed_in(&store.layer()).await;
            let client = Client::new(&store.layer());
            if with_visitor {
                client.does(|session| session.insert("n", 1)).await.ok();
            }
            let answer = client.visit(async |session: Session| {
                session.clear_others();
                match by_login {
                    true => session.bind(sessions.login("ada").await?),
                    false => session.bind("ada"),
                }
                Ok(())
            });
            answer.await.ok().new_id().unwrap();
            assert_eq!((key(&thief).await, key(&client).await), (String::new(), "ada".to_owned()));
            assert_eq!(count(&store, "ada").await, 1);
            sessions.clear("ada").await.unwrap();
        }
    }
    // A handler that fails has checked the link all the same: everything of the user ends.
    let thief = signed_in(&store.layer()).await;
    let client = Client::new(&store.layer());
    let answer = client.does(|session| {
        session.clear_others();
        session.bind("ada");
        Ok(StatusCode::INTERNAL_SERVER_ERROR)
    });
    answer.await.sets_no_cookie();
    assert_eq!((key(&thief).await, count(&store, "ada").await), (String::new(), 0));
}

async fn p08_two_devices_that_set_a_new_password_at_once_are_not_both_out(store: Store) {
    let sessions = store.sessions();
    let (one, two) = (signed_in(&store.layer()).await, signed_in(&store.layer()).await);
    let answer = one.visit(async |session: Session| {
        let login = sessions.login("ada").await?;
        store.pass(LATER);
        let other = sessions.login("ada").await?;
        let at_once = two.does(|session| {
            session.clear_others();
            session.bind(other);
            Ok(())
        });
        at_once.await.ok();
        session.clear_others();
        session.bind(login);
        Ok(())
    });
    is_refused(answer.await);
    assert_eq!((key(&one).await, key(&two).await), (String::new(), "ada".to_owned()));
}

fn keyring(byte: u8) -> Options {
    Options { keyring: Some(Keyring::new(BASE64.encode([byte; 32])).unwrap()), ..Options::default() }
}

async fn p08_signing_out_of_what_another_key_has_encrypted_is_a_401(store: Store) {
    let client = signed_in(&store.layer_with(keyring(1))).await;
    for elsewhere in [store.layer_with(keyring(2)), store.layer()] {
        for sign_out in [Session::delete as fn(&Session), Session::clear, Session::clear_others] {
            let tab = client.at(&elsewhere);
            is_refused(tab.does(calls(sign_out)).await);
        }
    }
    assert_eq!(key(&client).await, "ada");
}

/// A tab from before the keyring was turned on: its session, and that of another device, live on elsewhere.
async fn p08_signing_out_with_a_plain_id_where_none_is_accepted_is_a_401(store: Store) {
    let client = signed_in(&store.layer()).await;
    let elsewhere = store.layer_with(keyring(1));
    for sign_out in [Session::delete as fn(&Session), Session::clear, Session::clear_others] {
        is_refused(client.at(&elsewhere).does(calls(sign_out)).await);
    }
    let strict = store.sessions_with(keyring(1));
    let id = client.id().unwrap();
    assert_eq!(strict.delete(&id).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    assert_eq!(strict.clear_others(&id).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    assert_eq!(key(&client).await, "ada");
    // A visitor's plain ID is a visitor's, and ends nobody.
    let visitor = Client::new(&store.layer());
    visitor.does(|session| session.insert("n", 1)).await.ok();
    visitor.at(&elsewhere).does(calls(Session::clear)).await.ok();
}

async fn p10_a_cookie_that_ends_before_its_session_is_set_again_in_time(store: Store) {
    const DAY: Duration = Duration::from_secs(86_400);
    let options = Options { max_lifetime: Some(3 * 365 * DAY), default_ttl: Some(None), ..Options::default() };
    let client = signed_in(&store.layer_with(options)).await;
    store.pass(150 * DAY);
    client.does(|session| Ok(session.key().unwrap())).await.ok().sets_no_cookie();
    store.pass(100 * DAY);
    // A response that has nothing else to say.
    let answer = client.does(|session| Ok(session.key().unwrap())).await.ok();
    assert!(answer.new_id().is_some());
    assert!(answer.set_cookies()[0].contains("Max-Age=34560000"), "{answer:?}");
    client.does(|session| session.insert("n", 1)).await.ok().sets_no_cookie();
    store.pass(250 * DAY);
    let answer = client.does(|session| session.insert("n", 2)).await.ok();
    assert!(answer.new_id().is_some());
    assert_eq!((key(&client).await, client.n().await), ("ada".to_owned(), "Some(2)".to_owned()));
    // A cookie that the browser forgets has no end.
    let options = Options { max_lifetime: Some(3 * 365 * DAY), default_ttl: Some(None), ..Options::default() };
    let client = signed_in(&store.layer_with(options).persistent(false)).await;
    store.pass(300 * DAY);
    client.does(|session| Ok(session.key().unwrap())).await.ok().sets_no_cookie();
}

async fn p06_five_rotations_within_ten_seconds_forget_no_id(store: Store) {
    let client = signed_in(&store.layer()).await;
    let straggler = client.thief();
    for n in 0..5 {
        let answer = client.does(rework).await.ok();
        assert_eq!(answer.new_id().is_some(), n < 4, "rotation {n}");
    }
    straggler.does(|session| session.insert("n", 1)).await.ok().sets_no_cookie();
    assert_eq!((client.n().await, key(&straggler).await), ("Some(1)".to_owned(), "ada".to_owned()));
}

async fn p15_a_sign_out_ends_every_session_that_its_cookies_open(store: Store) {
    let layer = store.layer();
    for sign_out in [Session::delete as fn(&Session), Session::clear] {
        let client = signed_in(&layer).await;
        let planted = Client::new(&layer);
        planted.does(|session| session.create("mallory", json!({}))).await.ok();
        let cookies = [user_cookie(&planted), user_cookie(&client)];
        // None of them counts: plain writes are dropped.
        let answer = with_cookies(&layer, &cookies, |session| {
            session.insert("n", 1)?;
            Ok(session.key().unwrap_or_default())
        });
        assert_eq!(answer.await.ok().sets_no_cookie().body, "");
        // There is none that could be kept.
        is_refused(with_cookies(&layer, &cookies, calls(Session::clear_others)).await);
        assert_eq!(count(&store, "ada").await, 1);
        let answer = with_cookies(&layer, &cookies, calls(sign_out)).await.ok();
        assert!(answer.removes_cookie());
        assert_eq!((count(&store, "ada").await, count(&store, "mallory").await), (0, 0));
    }
}

async fn p15_two_cookies_of_one_user_are_both_signed_out(store: Store) {
    let layer = store.layer();
    let (one, two, three) = (signed_in(&layer).await, signed_in(&layer).await, signed_in(&layer).await);
    let cookies = [user_cookie(&one), user_cookie(&two)];
    with_cookies(&layer, &cookies, delete).await.ok();
    assert_eq!(count(&store, "ada").await, 1);
    // One that leads to a session which it does not open: what could be ended is, and the answer says that not all was.
    let old = user_cookie(&three);
    three.does(rework).await.ok();
    store.pass(LATER);
    let four = signed_in(&layer).await;
    is_refused(with_cookies(&layer, &[old, user_cookie(&four)], delete).await);
    assert_eq!((key(&three).await, key(&four).await), ("ada".to_owned(), String::new()));
}

async fn p15_a_login_ends_what_was_planted(store: Store) {
    let layer = store.layer();
    let planted = Client::new(&layer);
    planted.does(|session| session.create("mallory", json!({}))).await.ok();
    let client = signed_in(&layer).await;
    let cookies = [user_cookie(&planted), user_cookie(&client)];
    let answer = with_cookies(&layer, &cookies, |session| {
        session.bind("grace");
        Ok(())
    });
    answer.await.ok().new_id().unwrap();
    assert_eq!((count(&store, "ada").await, count(&store, "mallory").await), (0, 0));
    assert_eq!(count(&store, "grace").await, 1);
}

async fn p15_more_cookies_than_are_tried_are_no_session(store: Store) {
    let layer = store.layer();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(signed_in(&layer).await);
    }
    let cookies: Vec<_> = clients.iter().map(user_cookie).collect();
    let answer = with_cookies(&layer, &cookies, |session| {
        session.insert("n", 1)?;
        Ok(session.key().unwrap_or_default())
    });
    assert_eq!(answer.await.ok().sets_no_cookie().body, "");
    // Three were tried and end, the fourth may be anybody's.
    is_refused(with_cookies(&layer, &cookies, delete).await);
    assert_eq!(count(&store, "ada").await, 1);
    // Seventeen are too many, also if sixteen lead nowhere.
    let mut cookies: Vec<_> = (0..16).map(|n| format!("__Host-id={n:066}")).collect();
    cookies.push(user_cookie(&clients[3]));
    let answer = with_cookies(&layer, &cookies, |session| Ok(session.key().unwrap_or_default()));
    assert_eq!(answer.await.ok().body, "");
}

async fn p15_two_visitors_cookies_are_no_session(store: Store) {
    let layer = store.layer();
    let (planted, own) = (Client::new(&layer), Client::new(&layer));
    for client in [&planted, &own] {
        client.does(|session| session.insert("n", 1)).await.ok();
    }
    let cookies = [visitor_cookie(&planted), visitor_cookie(&own)];
    let answer = with_cookies(&layer, &cookies, |session| {
        session.insert("secret", 2)?;
        Ok(format!("{:?}", session.get::<u64>("n")?))
    });
    assert_eq!(answer.await.ok().sets_no_cookie().body, "None");
    assert_eq!(planted.does(|session| Ok(session.data()?.names().count().to_string())).await.body, "1");
    // An ID counts only under the name of its kind.
    let renamed = [format!("__Host-id={}", own.id().unwrap())];
    let answer = with_cookies(&layer, &renamed, |session| Ok(format!("{:?}", session.get::<u64>("n")?)));
    assert_eq!(answer.await.ok().body, "None");
}

async fn p15_a_planter_who_writes_in_a_loop_holds_off_no_login(store: Store) {
    let layer = store.layer();
    let planter = Client::new(&store.layer());
    planter.does(|session| session.insert("n", 0)).await.ok();
    let victim = Client::new(&layer);
    victim.set_id(&planter.id().unwrap());
    let (write, written) = writer(&store, &planter.id().unwrap());
    store.faults.always(Verb::Create, write.clone());
    store.faults.always(Verb::Update, write);
    victim.does(bind_ada).await.ok().new_id().unwrap();
    assert!(written.load(Relaxed) >= 3);
    assert_eq!(key(&victim).await, "ada");
    assert_eq!(planter.n().await, "None");
}

async fn p02_a_visitors_cookie_never_replaces_a_users(store: Store) {
    let client = Client::new(&store.layer());
    // A page that writes, sent before the login, and answered after it.
    let page = client.clone();
    let answer = page.visit(async |session: Session| {
        client.does(ada).await.ok();
        session.insert("n", 1)
    });
    answer.await.ok().new_id().unwrap();
    assert_eq!(key(&client).await, "ada");
    // The next login takes the visitor's cookie away.
    let answer = client.does(bind_ada).await.ok();
    assert!(answer.set_cookies().iter().any(|line| line.starts_with("__Host-id-visitor=;")), "{answer:?}");
    assert!(answer.set_cookies()[0].starts_with("__Host-id="), "the user's cookie comes first");
    // A session that has ended hides nothing: the visitor's counts.
    store.sessions().clear("ada").await.unwrap();
    client.does(|session| session.insert("n", 2)).await.ok().new_id().unwrap();
    assert_eq!((key(&client).await, client.n().await), (String::new(), "Some(2)".to_owned()));
}

/// The first update conflicts, and the answer to the second one is lost: what is tried again is based on older data.
async fn p07_a_retry_overwrites_nothing_that_others_have_written_meanwhile(store: Store) {
    let client = signed_in(&store.layer()).await;
    let tab = client.thief().at(&store.layer());
    let answer = tab.visit(async |session: Session| {
        client.does(|session| session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 10)).await.ok();
        increment(&session)?;
        store.faults.nth(2, Verb::Update, Fault::After);
        assert!(session.save().await.is_err());
        session.insert("b", 1)
    });
    answer.await.ok();
    assert_eq!(client.n().await, "Some(11)");
}

async fn p06_a_retry_brings_no_rotated_id_back(store: Store) {
    let client = signed_in(&store.layer()).await;
    let tab = client.thief().at(&store.layer());
    let answer = tab.visit(async |session: Session| {
        client.does(rework).await.ok();
        session.insert("a", 1)?;
        store.faults.nth(2, Verb::Update, Fault::After);
        assert!(session.save().await.is_err());
        session.insert("b", 1)
    });
    answer.await.ok();
    store.pass(LATER);
    assert_eq!((key(&client).await, key(&tab).await), ("ada".to_owned(), String::new()));
}

async fn p06_a_retry_sets_no_cookie_that_was_not_stored(store: Store) {
    let client = signed_in(&store.layer()).await;
    let tab = client.clone().at(&store.layer());
    let answer = tab.visit(async |session: Session| {
        client.does(rework).await.ok();
        session.insert("a", 1)?;
        session.rework();
        store.faults.nth(2, Verb::Update, Fault::After);
        assert!(session.save().await.is_err());
        session.save().await
    });
    answer.await.ok();
    assert_eq!(key(&client).await, "ada");
}

async fn p08_a_sign_out_after_a_saved_delete_is_a_401_or_takes_place(store: Store) {
    for sign_out in [Session::clear as fn(&Session), Session::clear_others] {
        let (client, other) = (signed_in(&store.layer()).await, signed_in(&store.layer()).await);
        let answer = client.visit(async |session: Session| {
            session.delete();
            session.save().await?;
            sign_out(&session);
            Ok(())
        });
        let answer = answer.await;
        assert!(answer.status == StatusCode::UNAUTHORIZED || key(&other).await.is_empty(), "{answer:?}");
    }
}

async fn p08_the_cookie_of_a_session_that_the_request_has_ended_is_not_set(store: Store) {
    type Begin = fn(&Session) -> Result<(), jam_session::Error>;
    for begin in [bind_ada as Begin, |session| session.insert("n", 1)] {
        let client = Client::new(&store.layer());
        let answer = client.visit(async |session: Session| {
            begin(&session)?;
            session.save().await?;
            session.delete();
            Ok(())
        });
        let answer = answer.await.ok();
        assert!(answer.new_id().is_none(), "{answer:?}");
    }
}

/// Each begins a session and saves it, so that its ID is to be sent, and then learns that the session has ended.
async fn p10_no_response_brings_an_id_of_a_session_that_it_knows_to_have_ended(store: Store) {
    let (sessions, layer) = (store.sessions(), store.layer());
    let visitor: Handler = |session| session.insert("n", 1);
    let is_without = |answer: Answer, status: StatusCode| {
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.new_id().is_none(), "{answer:?}");
    };
    for begin in [bind_ada as Handler, visitor] {
        // The answer to its own sign-out is lost, and asking again finds nothing.
        let client = Client::new(&layer);
        let answer = client.visit(async |session: Session| {
            begin(&session)?;
            session.save().await?;
            session.delete();
            store.faults.next(Verb::Update, Fault::After);
            assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Unavailable);
            Ok(())
        });
        is_without(answer.await, StatusCode::OK);
        // A login beside its sign-out comes too late, and the sign-out counts.
        let client = Client::new(&layer);
        let answer = client.visit(async |session: Session| {
            begin(&session)?;
            session.save().await?;
            store.pass(LATER);
            sessions.clear("grace").await?;
            session.clear();
            session.bind("grace");
            Ok(())
        });
        is_without(answer.await, StatusCode::UNAUTHORIZED);
    }
    // Others have signed the user out.
    for (sign_out, status) in
        [(Session::delete as fn(&Session), 200), (Session::clear, 401), (Session::clear_others, 401)]
    {
        let client = Client::new(&layer);
        let answer = client.visit(async |session: Session| {
            bind_ada(&session)?;
            session.save().await?;
            sessions.clear("ada").await?;
            sign_out(&session);
            Ok(())
        });
        is_without(answer.await, StatusCode::from_u16(status).unwrap());
    }
    // A login that was begun before that cannot replace it.
    let before = sessions.login("ada").await.unwrap();
    let client = Client::new(&layer);
    let answer = client.visit(async |session: Session| {
        session.bind(sessions.login("ada").await?);
        session.save().await?;
        store.pass(LATER);
        sessions.clear("ada").await?;
        session.bind(before);
        Ok(())
    });
    is_without(answer.await, StatusCode::UNAUTHORIZED);
}

async fn p15_a_login_ends_no_session_that_its_cookies_no_longer_open(store: Store) {
    let owner = signed_in(&store.layer()).await;
    let mallory = Client::new(&store.layer());
    mallory.does(|session| session.create("mallory", json!({}))).await.ok();
    let cookies = [user_cookie(&mallory), user_cookie(&owner)];
    let layer = store.layer();
    let answer = visit_with_cookies(&layer, &cookies, async |session: &Session| {
        owner.does(clear_others).await.ok();
        store.pass(LATER);
        session.bind("mallory");
        Ok(())
    });
    answer.await.ok();
    assert_eq!(key(&owner).await, "ada");
}

async fn p07_the_removal_of_a_login_that_failed_ends_no_session_of_the_same_name(store: Store) {
    let options = Options { id_factory: Some(|| "A".repeat(22)), ..Options::default() };
    let first = signed_in(&store.layer_with(options.clone())).await;
    assert_eq!(key(&first).await, "ada");
    let sessions = store.sessions_with(options);
    let layer = SessionLayer::new(sessions.clone());
    store.faults.next(Verb::Load, Fault::Before);
    let second = Client::new(&layer);
    let answer = second.request(Request::default(), async |session: Session| session.bind("ada"));
    assert_eq!(answer.await.status, StatusCode::SERVICE_UNAVAILABLE);
    sessions.close().await.unwrap();
    assert_eq!(key(&first).await, "ada");
}

async fn p06_a_lost_answer_to_an_automatic_rotation_signs_nobody_out(store: Store) {
    const DAY: Duration = Duration::from_secs(86_400);
    let options = Options { max_lifetime: Some(3 * 365 * DAY), default_ttl: Some(None), ..Options::default() };
    let client = signed_in(&store.layer_with(options)).await;
    store.pass(250 * DAY);
    store.faults.next(Verb::Update, Fault::After);
    client.does(|session| Ok(session.key().unwrap())).await.ok();
    store.pass(LATER);
    assert_eq!(key(&client).await, "ada");
}

async fn p08_clear_others_whose_answer_is_lost_keeps_its_own_session(store: Store) {
    let (client, thief) = (signed_in(&store.layer()).await, signed_in(&store.layer()).await);
    let answer = client.visit(async |session: Session| {
        session.clear_others();
        store.faults.next(Verb::Update, Fault::After);
        session.save().await
    });
    answer.await;
    assert_eq!((key(&client).await, key(&thief).await), ("ada".to_owned(), String::new()));
}

async fn p15_a_session_that_cannot_be_read_is_not_reported_as_signed_out(store: Store) {
    let (broken, client) = (signed_in(&store.layer()).await, signed_in(&store.layer()).await);
    let id = record_id(&broken.id().unwrap());
    store.faults.always(
        Verb::Load,
        Fault::change(move |call, answer| async move {
            match answer {
                Ok(Reply::Load(Some(mut record))) if call.id == Some(id) => {
                    record.payload = vec![9, 9, 9].into();
                    Ok(Reply::Load(Some(record)))
                }
                answer => answer,
            }
        }),
    );
    let cookies = [user_cookie(&broken), user_cookie(&client)];
    let layer = store.layer();
    let answer = with_cookies(&layer, &cookies, |session| {
        session.delete();
        Ok(())
    });
    let answer = answer.await;
    assert!(
        !answer.status.is_success() || count(&store, "ada").await == 0,
        "{answer:?} {}",
        count(&store, "ada").await
    );
}

async fn p15_clear_others_beside_a_cookie_of_another_key_is_a_401(store: Store) {
    let keyring = Keyring::new(BASE64.encode([1; 32])).unwrap();
    let foreign = signed_in(&store.layer_with(Options { keyring: Some(keyring), ..Options::default() })).await;
    let client = signed_in(&store.layer()).await;
    let cookies = [user_cookie(&foreign), user_cookie(&client)];
    let layer = store.layer();
    let answer = with_cookies(&layer, &cookies, |session| {
        session.clear_others();
        Ok(())
    });
    assert_eq!(answer.await.status, StatusCode::UNAUTHORIZED);
}

async fn p15_cookies_of_visitors_do_not_count_against_users(store: Store) {
    let layer = store.layer().cookie_name("sid");
    let client = signed_in(&layer).await;
    let mut cookies: Vec<_> = (0..17).map(|n| format!("sid-visitor={n:066}")).collect();
    cookies.push(format!("sid={}", client.id().unwrap()));
    let answer = with_cookies(&layer, &cookies, |session| Ok(session.key().unwrap_or_default()));
    assert_eq!(answer.await.ok().body, "ada");
}

async fn p04_a_switch_that_fails_takes_no_cookie_of_the_login_before_it(store: Store) {
    let client = Client::new(&store.layer());
    let answer = client.visit(async |session: Session| {
        session.bind("ada");
        session.save().await?;
        session.bind("grace");
        store.faults.next(Verb::Create, Fault::Before);
        assert!(session.save().await.is_err());
        assert!(session.save().await.is_err());
        Ok(())
    });
    let answer = answer.await;
    assert_eq!(count(&store, "ada").await, 1);
    assert!(answer.new_id().is_some(), "{answer:?}");
}

async fn p08_a_password_reset_link_that_fails_signs_nobody_in(store: Store) {
    signed_in(&store.layer()).await;
    let client = Client::new(&store.layer());
    store.faults.next(Verb::Clear, Fault::Before);
    let answer = client.does(|session| {
        session.clear_others();
        session.bind("ada");
        Ok(StatusCode::INTERNAL_SERVER_ERROR)
    });
    let answer = answer.await;
    assert!(answer.new_id().is_none());
}

/// It would end nothing, so a 500, after which everything is signed out, would be wrong.
async fn p08_a_failed_password_reset_whose_own_session_was_ended_meanwhile_is_a_401(store: Store) {
    let client = Client::new(&store.layer());
    let sessions = store.sessions();
    store.faults.next(
        Verb::Clear,
        Fault::first(move |_| {
            let sessions = sessions.clone();
            async move {
                sessions.clear("ada").await.unwrap();
                sessions.create("ada", json!({})).await.unwrap();
            }
        }),
    );
    let answer = client.does(|session| {
        session.clear_others();
        session.bind("ada");
        Ok(StatusCode::INTERNAL_SERVER_ERROR)
    });
    assert_eq!(answer.await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(count(&store, "ada").await, 1);
}

async fn p15_a_sign_out_after_a_saved_login_sets_no_cookie(store: Store) {
    let layer = store.layer();
    let planted = Client::new(&layer);
    planted.does(|session| session.create("mallory", json!({}))).await.ok();
    let client = signed_in(&layer).await;
    let cookies = [user_cookie(&planted), user_cookie(&client)];
    let answer = visit_with_cookies(&layer, &cookies, async |session: &Session| {
        session.bind("grace");
        session.save().await?;
        session.clear();
        Ok(())
    });
    let answer = answer.await;
    assert_eq!((count(&store, "ada").await, count(&store, "mallory").await, count(&store, "grace").await), (0, 0, 0));
    assert!(answer.status.is_success(), "{answer:?}");
    assert!(answer.new_id().is_none(), "{answer:?}");
}

async fn p15_two_users_cookies_begin_no_visitors_session(store: Store) {
    let layer = store.layer();
    let planted = Client::new(&layer);
    planted.does(|session| session.create("mallory", json!({}))).await.ok();
    let client = signed_in(&layer).await;
    let cookies = [user_cookie(&planted), user_cookie(&client)];
    let answer = visit_with_cookies(&layer, &cookies, async |session: &Session| {
        session.delete();
        session.save().await?;
        session.insert("n", 1)
    });
    let answer = answer.await;
    assert!(answer.new_id().is_none(), "{answer:?}");
}

async fn p04_a_panic_while_data_is_merged_into_a_login_leaves_no_session(store: Store) {
    let visitor = Client::new(&store.layer());
    visitor.does(|session| session.insert("n", 1)).await.ok();
    let tab = visitor.clone().at(&store.layer());
    let task = tokio::spawn(async move {
        tab.visit(async |session: Session| {
            session.modify("n", |n: Option<u64>| if n == Some(5) { panic!("on purpose") } else { 2_u64 })?;
            visitor.does(|session| session.insert("n", 5)).await.ok();
            bind_ada(&session)
        })
        .await
        .status
    });
    assert!(task.await.is_err());
    eventually(async || count(&store, "ada").await == 0).await;
}
