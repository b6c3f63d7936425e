//! Late logins: the user was signed out everywhere while the password was checked.

use std::time::Duration;

use http::StatusCode;
use jam_session::{Clock, ErrorKind, JsonSessions, Login, MemorySessions, Session, SessionLayer, Sessions};
use serde_json::{Value, json};

use crate::{
    client::{Answer, Client, bind_ada, clear_others, delete, rework},
    folder::Folder,
    on_every_store,
    store::{Options, PATIENCE, Store, Watched},
};

on_every_store! {
    p22_a_password_check_that_was_held_back_survives_no_new_password,
    p22_a_login_is_refused_after_any_sign_out_everywhere,
    p22_a_login_is_good_after_what_is_no_sign_out_everywhere,
    p22_a_login_is_kept_between_two_requests_also_for_another_process,
    p22_a_clock_that_jumps_between_mark_and_clear_changes_nothing,
    p22_a_login_is_good_for_fifteen_minutes,
    p22_what_was_written_over_in_a_login_is_refused,
    p22_parallel_logins_and_a_sign_out_leave_none_of_the_logins,
}

async fn signed_in(layer: &SessionLayer) -> Client {
    let client = Client::new(layer);
    client.does(bind_ada).await.ok();
    client
}

async fn key(client: &Client) -> String {
    client.does(|session| Ok(session.key().unwrap_or_default())).await.body
}

async fn count(store: &Store, key: &str) -> usize {
    store.sessions().list(key).await.unwrap().len()
}

/// Binds a login that was taken before.
async fn bind(client: &Client, login: Login) -> Answer {
    let answer = client.does(|session| {
        session.bind(login);
        Ok(())
    });
    answer.await
}

#[track_caller]
fn is_refused(answer: Answer) {
    assert_eq!(answer.sets_no_cookie().status, StatusCode::UNAUTHORIZED);
}

/// The login form with the old password is posted just before the user sets a new one.
async fn p22_a_password_check_that_was_held_back_survives_no_new_password(store: Store) {
    for in_between in ["in place", "by its login"] {
        let owner = signed_in(&store.layer()).await;
        // Another process.
        let (sessions, thief) = (store.sessions(), Client::new(&store.layer()));
        let answer = thief.visit(async |session: Session| {
            let login = sessions.login("ada").await?;
            // The old password was right when it was looked up, and checking it takes a while.
            let new = sessions.login("ada").await?;
            let changed = owner.does(|session| {
                session.clear_others();
                if in_between == "by its login" {
                    session.bind(new);
                }
                Ok(())
            });
            changed.await.ok().new_id().unwrap();
            session.bind(login);
            session.insert("n", 1)
        });
        is_refused(answer.await);
        assert_eq!((key(&owner).await, key(&thief).await, count(&store, "ada").await), ("ada".into(), "".into(), 1));
        // A handler that asks gets the error, and can show its own page.
        let answer = thief.visit(async |session: Session| {
            let login = sessions.login("ada").await?;
            owner.does(clear_others).await.ok();
            session.create(login, json!({}))?;
            let error = session.save().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unauthorized);
            assert!(error.to_string().contains("sign in again"), "{error}");
            Ok("sign in again")
        });
        assert_eq!(answer.await.ok().sets_no_cookie().body, "sign in again");
        assert_eq!(count(&store, "ada").await, 1);
        // With the new password it is a login like any other.
        bind(&thief, sessions.login("ada").await.unwrap()).await.ok().new_id().unwrap();
        assert_eq!(count(&store, "ada").await, 2);
        sessions.clear("ada").await.unwrap();
    }
}

async fn p22_a_login_is_refused_after_any_sign_out_everywhere(store: Store) {
    let (sessions, layer) = (store.sessions(), store.layer());
    for was_cleared in [false, true] {
        for kind in ["clear(key), of nothing", "clear(key)", "clear", "clear_others", "clear_others(id)"] {
            if !was_cleared {
                store.pass(Duration::from_secs(60 * 31));
            }
            let client = if kind == "clear(key), of nothing" { Client::new(&layer) } else { signed_in(&layer).await };
            let login = sessions.login("ada").await.unwrap();
            match kind {
                "clear" => drop(
                    client
                        .does(|session| {
                            session.clear();
                            Ok(())
                        })
                        .await
                        .ok(),
                ),
                "clear_others" => drop(client.does(clear_others).await.ok()),
                "clear_others(id)" => drop(sessions.clear_others(client.id().unwrap()).await.unwrap()),
                _ => drop(sessions.clear("ada").await.unwrap()),
            }
            let before = count(&store, "ada").await;
            for _ in 0..2 {
                is_refused(bind(&Client::new(&layer), login.clone()).await);
            }
            assert_eq!(count(&store, "ada").await, before, "after {kind}");
            sessions.clear("ada").await.unwrap();
            is_refused(bind(&Client::new(&layer), login).await);
        }
    }
}

async fn p22_a_login_is_good_after_what_is_no_sign_out_everywhere(store: Store) {
    let (sessions, layer) = (store.sessions(), store.layer());
    for was_cleared in [false, true] {
        if was_cleared {
            sessions.clear("ada").await.unwrap();
        }
        let login = sessions.login("ada").await.unwrap();
        // Another user's, one that does not happen, a sign-out of one session, and other logins.
        sessions.clear("grace").await.unwrap();
        let client = signed_in(&layer).await;
        let old = client.thief();
        client.does(rework).await.ok();
        assert_eq!(sessions.clear_others(old.id().unwrap()).await.unwrap_err().kind(), ErrorKind::Unauthorized);
        client.does(delete).await.ok();
        let _ = sessions.login("ada").await.unwrap();
        for _ in 0..2 {
            let client = Client::new(&layer);
            bind(&client, login.clone()).await.ok().new_id().unwrap();
            assert_eq!(key(&client).await, "ada");
        }
    }
}

/// A sign-in with a second factor: the code is asked for on a page of its own.
async fn p22_a_login_is_kept_between_two_requests_also_for_another_process(store: Store) {
    let (first, second, sessions) = (store.layer(), store.layer(), store.sessions());
    for is_cleared in [false, true] {
        let client = Client::new(&first);
        let answer = client.visit(async |session: Session| {
            session.insert("login", sessions.login("ada").await?)?;
            session.insert("n", 1)
        });
        answer.await.ok();
        if is_cleared {
            sessions.clear("ada").await.unwrap();
        }
        let client = client.at(&second);
        let answer = client.does(|session| {
            let login: Login = session.get("login")?.unwrap();
            session.remove("login");
            session.bind(login);
            Ok(())
        });
        let answer = answer.await;
        if is_cleared {
            is_refused(answer);
            assert_eq!((key(&client).await.as_str(), client.n().await.as_str()), ("", "Some(1)"));
            // It was not taken out either: nothing of that request counts.
            let there = client.does(|session| Ok(format!("{}", session.get::<Login>("login")?.is_some())));
            assert_eq!(there.await.body, "true");
        } else {
            answer.ok().new_id().unwrap();
            assert_eq!((key(&client).await.as_str(), client.n().await.as_str()), ("ada", "Some(1)"));
            let there = client.does(|session| Ok(format!("{}", session.get::<Login>("login")?.is_some())));
            assert_eq!(there.await.body, "false");
        }
    }
}

async fn p22_a_clock_that_jumps_between_mark_and_clear_changes_nothing(store: Store) {
    // Processes whose clocks differ by hours, in either direction, and jump.
    let day = Duration::from_secs(86_400);
    let clocks =
        [Clock::manual(), Clock::manual_at(store.clock.now() + day), Clock::manual_at(store.clock.now() - day)];
    let process = |clock: &Clock| -> Sessions<Watched> {
        Options::default().apply(Sessions::over(store.watched())).clock(clock.clone()).build().unwrap()
    };
    let processes = clocks.each_ref().map(process);
    for (at, sessions) in processes.iter().enumerate() {
        for is_cleared in [false, true] {
            let login = sessions.login("ada").await.unwrap();
            clocks[at].advance(day / 2);
            if is_cleared {
                // By a process whose clock says that it was long before the mark, or long after it.
                processes[(at + 1) % 3].clear("ada").await.unwrap();
            }
            clocks[at].advance(day / 2);
            let client = Client::new(&SessionLayer::new(processes[(at + 2) % 3].clone()));
            let answer = bind(&client, login).await;
            match is_cleared {
                true => is_refused(answer),
                false => drop(answer.ok().new_id().unwrap()),
            }
        }
        sessions.clear("ada").await.unwrap();
    }
}

/// The same login, as another has written it.
fn changed(login: &Login, change: impl FnOnce(&mut Value)) -> Result<Login, serde_json::Error> {
    let mut text = serde_json::to_value(login).unwrap();
    change(&mut text);
    serde_json::from_value(text)
}

async fn p22_a_login_is_good_for_fifteen_minutes(store: Store) {
    let (sessions, layer) = (store.sessions(), store.layer());
    for was_cleared in [false, true] {
        if was_cleared {
            sessions.clear("ada").await.unwrap();
        }
        // As if it had been taken then.
        let login = sessions.login("ada").await.unwrap();
        let taken = |minutes: u64| {
            changed(&login, |text| {
                let taken = text["mark"]["taken"].as_u64().unwrap();
                text["mark"]["taken"] = (taken - minutes * 60_000).into();
            })
            .unwrap()
        };
        for minutes in [16, 60 * 24] {
            is_refused(bind(&Client::new(&layer), taken(minutes)).await);
        }
        bind(&Client::new(&layer), taken(14)).await.ok().new_id().unwrap();
        bind(&Client::new(&layer), login.clone()).await.ok().new_id().unwrap();
        if !store.is_remote() {
            store.pass(Duration::from_secs(60 * 14));
            bind(&Client::new(&layer), login.clone()).await.ok().new_id().unwrap();
            store.pass(Duration::from_secs(61));
            is_refused(bind(&Client::new(&layer), login).await);
        }
    }
}

async fn p22_what_was_written_over_in_a_login_is_refused(store: Store) {
    let (sessions, layer) = (store.sessions(), store.layer());
    sessions.clear("ada").await.unwrap();
    let login = sessions.login("ada").await.unwrap();
    let text = serde_json::to_string(&login).unwrap();
    assert_eq!(serde_json::from_str::<Login>(&text).unwrap(), login);
    for cut in 0..text.len() {
        assert!(serde_json::from_str::<Login>(&text[..cut]).is_err(), "{}", &text[..cut]);
    }
    for (name, value) in [
        ("key", json!(7)),
        ("key", json!(null)),
        ("mark", json!(null)),
        ("mark", json!("x")),
        ("mark", json!({})),
        ("mark", json!({"clear": "x", "taken": 0, "opening": 0})),
        ("mark", json!({"clear": 1, "taken": -1, "opening": 0})),
        ("mark", json!({"clear": 1e300, "taken": 0, "opening": 0})),
    ] {
        assert!(changed(&login, |text| text[name] = value.clone()).is_err(), "{name}: {value}");
    }
    // What can be read, and is of another clear, is too late.
    let clear = |text: &mut Value| text["mark"]["clear"] = (text["mark"]["clear"].as_i64().unwrap() ^ 1).into();
    is_refused(bind(&Client::new(&layer), changed(&login, clear).unwrap()).await);
    let none = changed(&login, |text| text["mark"]["clear"] = Value::Null).unwrap();
    is_refused(bind(&Client::new(&layer), none).await);
    assert_eq!(count(&store, "ada").await, 0);
    // For logs it says nothing of its user.
    assert_eq!(format!("{login:?}"), "Login { .. }");
    bind(&Client::new(&layer), login).await.ok().new_id().unwrap();
}

async fn p22_parallel_logins_and_a_sign_out_leave_none_of_the_logins(store: Store) {
    let sessions = store.sessions();
    for round in 0..10 {
        let mut logins = Vec::new();
        for _ in 0..8 {
            logins.push(sessions.login("ada").await.unwrap());
        }
        let tasks: Vec<_> = logins
            .into_iter()
            .map(|login| {
                let client = Client::new(&store.layer());
                tokio::spawn(async move { bind(&client, login).await.status })
            })
            .collect();
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        sessions.clear("ada").await.unwrap();
        for task in tasks {
            let status = task.await.unwrap();
            assert!([StatusCode::OK, StatusCode::UNAUTHORIZED].contains(&status), "{status}");
        }
        assert_eq!(count(&store, "ada").await, 0);
    }
}

/// What was cleared is forgotten when the file is closed: a login from before is not taken for one from after.
#[tokio::test]
async fn p22_a_login_ends_with_the_store_that_forgets() {
    let folder = Folder::new();
    let clock = Clock::manual();
    let open = async || {
        let builder = JsonSessions::builder(folder.file()).clock(clock.clone()).request_time(PATIENCE);
        builder.open().await.unwrap()
    };
    let text = {
        let sessions = open().await;
        let text = serde_json::to_string(&sessions.login("ada").await.unwrap()).unwrap();
        sessions.clear("ada").await.unwrap();
        sessions.close().await.unwrap();
        text
    };
    let again = open().await.erase();
    let login: Login = serde_json::from_str(&text).unwrap();
    is_refused(bind(&Client::new(&SessionLayer::new(again.clone())), login).await);
    assert!(again.list("ada").await.unwrap().is_empty());
    let login = again.login("ada").await.unwrap();
    bind(&Client::new(&SessionLayer::new(again)), login).await.ok().new_id().unwrap();
    // So is one of another process with sessions in its memory.
    let (one, other) = (MemorySessions::new(), MemorySessions::new());
    let login = one.login("ada").await.unwrap();
    is_refused(bind(&Client::new(&SessionLayer::new(other)), login).await);
}
