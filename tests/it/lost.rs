//! Commits whose answer was lost, and later changes in the same request.

use http::StatusCode;
use jam_session::{
    Session,
    conformance::{Fault, Verb},
};
use serde_json::json;

use crate::{
    client::Client,
    on_every_store,
    store::{Store, eventually},
};

on_every_store! {
    p08_clear_others_after_a_rotation_whose_answer_was_lost_ends_a_copy,
    p04_a_switch_whose_answer_was_lost_leaves_no_session_behind,
    p08_a_clear_beside_a_switch_whose_answer_was_lost_is_done,
    p08_a_clear_whose_answer_was_lost_is_not_refused_for_what_it_has_ended,
    p08_a_failed_login_that_ends_everything_removes_the_cookie,
    p08_a_new_password_that_ended_the_others_too_late_leaves_an_id_that_counts,
    p08_a_login_that_ended_the_others_too_late_is_not_refused_for_a_cookie_that_counts_no_more,
}

async fn signed_in(store: &Store) -> Client {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
    client
}

/// The rotation is stored, so the secret that came is a previous one; it must not stay one.
async fn p08_clear_others_after_a_rotation_whose_answer_was_lost_ends_a_copy(store: Store) {
    for status in [StatusCode::OK, StatusCode::INTERNAL_SERVER_ERROR] {
        let owner = signed_in(&store).await;
        let copy = owner.thief();
        let before = owner.id();
        store.faults.next(Verb::Update, Fault::After);
        let answer = owner.visit(async |session: Session| {
            session.rework();
            let saved = session.save().await;
            session.clear_others();
            // Without that it is tried again with the response.
            drop(saved);
            Ok(status)
        });
        let answer = answer.await;
        assert!(answer.new_id().is_some() && owner.id() != before, "{answer:?}");
        assert_eq!(owner.n().await, "Some(1)", "{status}");
        assert_eq!(copy.n().await, "None", "a copy of the ID from before reads, after a {status}");
        store.sessions().clear("ada").await.unwrap();
    }
}

async fn p04_a_switch_whose_answer_was_lost_leaves_no_session_behind(store: Store) {
    for saves_again in [true, false] {
        let client = signed_in(&store).await;
        store.faults.next(Verb::Create, Fault::After);
        let answer = client.visit(async |session: Session| {
            session.bind("grace");
            assert!(session.save().await.is_err());
            if saves_again {
                assert!(session.save().await.is_err());
            }
            Ok(())
        });
        answer.await;
        eventually(async || store.sessions().list("grace").await.unwrap().is_empty()).await;
        store.sessions().clear("ada").await.unwrap();
    }
}

async fn p08_a_clear_beside_a_switch_whose_answer_was_lost_is_done(store: Store) {
    let client = signed_in(&store).await;
    signed_in(&store).await;
    store.faults.next(Verb::Create, Fault::After);
    let answer = client.visit(async |session: Session| {
        session.clear();
        session.bind("grace");
        assert!(session.save().await.is_err());
        assert!(session.save().await.is_err());
        Ok(())
    });
    answer.await;
    assert!(store.sessions().list("ada").await.unwrap().is_empty());
    eventually(async || store.sessions().list("grace").await.unwrap().is_empty()).await;
}

async fn p08_a_clear_whose_answer_was_lost_is_not_refused_for_what_it_has_ended(store: Store) {
    let client = signed_in(&store).await;
    signed_in(&store).await;
    store.faults.next(Verb::Clear, Fault::After);
    let answer = client.visit(async |session: Session| {
        session.clear();
        session.save().await
    });
    let answer = answer.await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.removes_cookie(), "{answer:?}");
    assert!(store.sessions().list("ada").await.unwrap().is_empty());
}

async fn p08_a_failed_login_that_ends_everything_removes_the_cookie(store: Store) {
    let client = signed_in(&store).await;
    let sessions = store.sessions();
    let answer = client.visit(async |session: Session| {
        session.clear_others();
        session.bind(sessions.login("ada").await?);
        Ok(StatusCode::INTERNAL_SERVER_ERROR)
    });
    let answer = answer.await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(answer.removes_cookie(), "{answer:?}");
    assert!(store.sessions().list("ada").await.unwrap().is_empty());
}

/// The new ID is stored before the others end, and is not replaced again when only that is left to do: if the answer to that
/// were lost, the browser would be signed out.
async fn p08_a_new_password_that_ended_the_others_too_late_leaves_an_id_that_counts(store: Store) {
    for (is_signed_in, binds) in [(true, false), (true, true), (false, true)] {
        let other = signed_in(&store).await;
        let owner = if is_signed_in { signed_in(&store).await } else { visitor(&store) };
        store.faults.next(Verb::Clear, Fault::Before);
        let answer = owner.visit(async |session: Session| {
            session.clear_others();
            if binds {
                session.bind("ada");
            }
            assert!(session.save().await.is_err());
            store.faults.next(Verb::Update, Fault::After);
            Ok(StatusCode::INTERNAL_SERVER_ERROR)
        });
        let answer = answer.await;
        assert!(answer.status == StatusCode::INTERNAL_SERVER_ERROR && answer.new_id().is_some(), "{answer:?}");
        assert_eq!(key(&owner).await, "ada");
        assert_eq!(key(&other).await, "");
        store.faults.heal();
    }
}

async fn p08_a_login_that_ended_the_others_too_late_is_not_refused_for_a_cookie_that_counts_no_more(store: Store) {
    let (owner, other) = (signed_in(&store).await, signed_in(&store).await);
    // The name is right, the secret is not.
    let id = owner.id().unwrap();
    let wrong = if id.ends_with('A') { "E" } else { "A" };
    let reset = visitor(&store);
    reset.set_id(&format!("{}{wrong}", &id[..id.len() - 1]));
    store.faults.next(Verb::Clear, Fault::After);
    let answer = reset.visit(async |session: Session| {
        session.clear_others();
        session.bind("ada");
        assert!(session.save().await.is_err());
        Ok(StatusCode::INTERNAL_SERVER_ERROR)
    });
    assert_eq!(answer.await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!((key(&reset).await, key(&owner).await, key(&other).await), ("ada".into(), String::new(), String::new()));
}

fn visitor(store: &Store) -> Client {
    Client::new(&store.layer())
}

async fn key(client: &Client) -> String {
    client.does(|session| Ok(session.key().unwrap_or_default())).await.ok().body
}
