//! Backends that are down, slow, or answer nonsense.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use jam_session::{
    Backend, ErrorKind, Record, RecordId, Session, SessionLayer,
    conformance::{Fault, Faulty, Verb},
};
use serde_json::json;

use crate::{
    client::Client,
    on_every_store,
    store::{BRIEF, Options, PATIENCE, Plain, Store, Watched, eventually, record_id},
};

on_every_store! {
    p09_a_backend_error_is_never_an_empty_session,
    p09_a_module_call_that_gets_no_answer_says_so_in_time,
    p10_no_id_leaves_that_is_not_stored,
    p10_a_failed_commit_can_be_tried_again,
    p11_a_record_that_cannot_be_read_stays_and_hinders_nobody,
    p11_a_record_moved_to_another_user_is_unreadable,
    p04_a_login_delivered_twice_around_a_logout,
    p05_a_conflict_with_oneself_is_done,
    p05_a_lost_reply_then_a_foreign_write_then_the_retry,
    p05_a_modify_is_made_once_however_many_others_write_before_its_retry,
    p06_rework_beside_delete_with_the_old_id_within_and_after_the_grace,
    p16_nothing_is_blocked_by_a_request_that_hangs,
    p16_dropped_at_any_point_a_commit_is_whole,
    closing_waits_and_refuses_further_use,
    p11_a_payload_that_names_another_owner_is_unreadable,
    p10_a_login_whose_create_got_no_answer_leaves_no_session_behind,
    nothing_is_called_after_close,
}

async fn p09_a_backend_error_is_never_an_empty_session(store: Store) {
    let patient = Client::new(&store.layer());
    patient.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
    let client = patient.at(&store.layer_with(Options { request_time: Some(BRIEF), ..Options::default() }));
    store.faults.calls();
    for fault in [Fault::Before, Fault::After, Fault::Hang] {
        store.faults.next(Verb::Load, fault.clone());
        let answer = client.does(|session| session.insert("n", 2)).await.sets_no_cookie();
        assert_eq!(answer.status, 503);
        // The handler does not even ask whether it went well.
        store.faults.next(Verb::Load, fault.clone());
        let answer = client.request(http::Request::default(), async |session: Session| {
            let _ = session.load().await;
            assert!(session.get::<u8>("n").is_err());
            "fine"
        });
        assert_eq!(answer.await.sets_no_cookie().status, 200);
        store.faults.next(Verb::Load, fault.clone());
        let answer = client.request(http::Request::default(), async |session: Session| session.insert("n", 2));
        assert_eq!(answer.await.sets_no_cookie().status, 503);
        store.faults.next(Verb::Load, fault);
        let answer = client.request(http::Request::default(), async |session: Session| session.delete());
        assert_eq!(answer.await.sets_no_cookie().status, 503);
        assert_eq!(store.faults.calls(), [Verb::Load; 4]);
    }
    assert_eq!(patient.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "1");
}

async fn p09_a_module_call_that_gets_no_answer_says_so_in_time(store: Store) {
    let patient = store.sessions();
    let sessions = store.sessions_with(Options { request_time: Some(BRIEF), ..Options::default() });
    let id = patient.create("ada", json!({})).await.unwrap();
    // A machine may be too slow even for the load that comes before.
    let unavailable = |kind| {
        assert_eq!(kind, ErrorKind::Unavailable);
        store.faults.heal();
    };
    store.faults.next(Verb::Load, Fault::Hang);
    unavailable(sessions.get(&id).await.unwrap_err().kind());
    store.faults.next(Verb::Create, Fault::Hang);
    unavailable(sessions.create("ada", json!({})).await.unwrap_err().kind());
    store.faults.next(Verb::Update, Fault::Hang);
    unavailable(sessions.update(&id, json!({})).await.unwrap_err().kind());
    store.faults.next(Verb::Update, Fault::Hang);
    unavailable(sessions.delete(&id).await.unwrap_err().kind());
    store.faults.next(Verb::List, Fault::Hang);
    unavailable(sessions.list("ada").await.unwrap_err().kind());
    store.faults.next(Verb::Clear, Fault::Hang);
    unavailable(sessions.clear("ada").await.unwrap_err().kind());
    assert!(patient.get(&id).await.unwrap().is_some());
}

async fn p10_no_id_leaves_that_is_not_stored(store: Store) {
    type Change = fn(&Session) -> Result<(), jam_session::Error>;
    let changes: [(Change, Verb); 4] = [
        (|session| session.insert("m", 1), Verb::Create),
        (|session| session.create("ada", json!({})), Verb::Create),
        (
            |session| {
                session.rework();
                Ok(())
            },
            Verb::Update,
        ),
        (
            |session| {
                session.bind("ada");
                Ok(())
            },
            store.leaves_by(),
        ),
    ];
    for (n, (change, verb)) in changes.into_iter().enumerate() {
        for fault in [Fault::Before, Fault::After] {
            let client = Client::new(&store.layer());
            // The first one is of a visitor without a session.
            if n > 0 {
                client.does(|session| session.insert("n", 1)).await.ok();
            }
            let before = client.id();
            store.faults.next(verb, fault);
            let answer = client.does(change).await.sets_no_cookie();
            assert_eq!(answer.status, 503);
            assert_eq!(client.id(), before);
        }
    }
}

async fn p10_a_failed_commit_can_be_tried_again(store: Store) {
    let client = Client::new(&store.layer());
    let answer = client.visit(async |session: Session| {
        session.insert("n", 1)?;
        store.faults.next(Verb::Create, Fault::Before);
        assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Unavailable);
        session.insert("m", 2)?;
        Ok(())
    });
    answer.await.ok().new_id().unwrap();
    let answer = client.does(|session| Ok(format!("{:?}{:?}", session.get::<u8>("n")?, session.get::<u8>("m")?)));
    assert_eq!(answer.await.body, "Some(1)Some(2)");
}

/// Puts other bytes into the record of a client's session.
async fn overwrite(store: &Store, client: &Client, payload: &'static [u8]) -> Record {
    let record = record(store, client).await.unwrap();
    let spoilt = Record::new(record.id, record.version + 1, record.ttl, payload);
    let _ = store.backend().updates(record.version, spoilt.clone()).await.unwrap();
    spoilt
}

async fn record(store: &Store, client: &Client) -> Option<Record> {
    let id: RecordId = client.id()?.rsplit_once('.')?.0.parse().ok()?;
    store.backend().load(id).await.unwrap()
}

async fn p11_a_record_that_cannot_be_read_stays_and_hinders_nobody(store: Store) {
    for payload in [&b""[..], b"{", b"\x00\x01\x02", b"{\"v\":2}", b"null", b"{\"v\":1}", b"\xff"] {
        let (layer, sessions) = (store.layer(), store.sessions());
        let client = Client::new(&layer);
        client.does(|session| session.create("ada", json!({}))).await.ok();
        let spoilt = overwrite(&store, &client, payload).await;

        let answer = client.does(|session| {
            assert_eq!(session.key(), None);
            assert_eq!(session.get::<u8>("n").unwrap_err().kind(), ErrorKind::Unreadable);
            session.get::<u8>("n").map(drop)
        });
        assert_eq!(answer.await.sets_no_cookie().status, 500);
        assert_eq!(client.does(|session| session.insert("n", 1)).await.sets_no_cookie().status, 500);
        let clear = client.does(|session| {
            session.clear();
            Ok(())
        });
        assert_eq!(clear.await.sets_no_cookie().status, 500);
        let id = client.id().unwrap();
        assert_eq!(sessions.get(&id).await.unwrap_err().kind(), ErrorKind::Unreadable);
        assert_eq!(sessions.update(&id, json!({})).await.unwrap_err().kind(), ErrorKind::Unreadable);
        // It is not listed, but it is still there.
        assert!(sessions.list("ada").await.unwrap().is_empty());
        assert_eq!(record(&store, &client).await.unwrap().payload, spoilt.payload);

        // Nothing proves the ID, so signing out is not known to be done. Signing in leaves it behind.
        let out = client.thief();
        let delete = out.does(|session| {
            session.delete();
            Ok(())
        });
        assert_eq!(delete.await.sets_no_cookie().status, 500);
        let bound = client.thief();
        let bind = bound.does(|session| {
            session.bind("ada");
            session.insert("n", 1)
        });
        bind.await.ok().new_id().unwrap();
        assert_eq!(bound.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "1");
        assert_eq!(record(&store, &client).await.unwrap().payload, spoilt.payload);
        // And it ends with the others.
        assert_eq!(sessions.clear("ada").await.unwrap(), 2);
        assert!(record(&store, &client).await.is_none());
    }
}

async fn p11_a_record_moved_to_another_user_is_unreadable(store: Store) {
    let (layer, sessions) = (store.layer(), store.sessions());
    let (ada, mallory) = (Client::new(&layer), Client::new(&layer));
    ada.does(|session| session.create("ada", json!({"role": "admin"}))).await.ok();
    mallory.does(|session| session.create("mallory", json!({}))).await.ok();
    // Somebody who can write to the store puts ada's record under mallory's name.
    let (from, to) = (record(&store, &ada).await.unwrap(), record(&store, &mallory).await.unwrap());
    let _ =
        store.backend().updates(to.version, Record::new(to.id, from.version, from.ttl, from.payload)).await.unwrap();
    let answer = mallory.does(|session| session.get::<String>("role").map(drop));
    assert_eq!(answer.await.sets_no_cookie().status, 500);
    // The same store under another pepper or another name: nothing of it is ours.
    let id = ada.id().unwrap();
    for options in [
        Options { pepper: Some("a pepper of 16 bytes"), ..Options::default() },
        Options { namespace: Some("other"), ..Options::default() },
    ] {
        let other = store.sessions_with(options);
        assert_eq!(other.get(&id).await.unwrap_err().kind(), ErrorKind::Unreadable);
        assert!(other.list("ada").await.unwrap().is_empty());
        assert_eq!(other.clear("ada").await.unwrap(), 0);
    }
    assert!(sessions.get(&id).await.unwrap().is_some());
}

async fn p04_a_login_delivered_twice_around_a_logout(store: Store) {
    // The login's answer is lost, the client tries again and logs out: what is left is what `list` shows, and it ends.
    let sessions = store.sessions();
    store.faults.next(Verb::Create, Fault::After);
    assert_eq!(sessions.create("ada", json!({})).await.unwrap_err().kind(), ErrorKind::Unavailable);
    let id = sessions.create("ada", json!({})).await.unwrap();
    sessions.delete(&id).await.unwrap();
    // The one that nobody has the ID of goes by itself.
    eventually(async || sessions.list("ada").await.unwrap().is_empty()).await;

    // A logout whose answer is lost has happened, and may be repeated.
    let id = sessions.create("ada", json!({})).await.unwrap();
    store.faults.next(Verb::Update, Fault::After);
    assert_eq!(sessions.delete(&id).await.unwrap_err().kind(), ErrorKind::Unavailable);
    sessions.delete(&id).await.unwrap();
    assert!(sessions.get(&id).await.unwrap().is_none());
}

async fn p05_a_conflict_with_oneself_is_done(store: Store) {
    // A backend that repeats a call whose answer it lost: the second time it finds the version that it wrote.
    let repeats = Faulty::new(store.inner().backend().clone());
    repeats.faults().always(Verb::Update, Fault::Twice);
    let sessions =
        jam_session::Sessions::over(repeats).clock(store.clock.clone()).request_time(PATIENCE).build().unwrap();
    let client = Client::new(&jam_session::SessionLayer::new(sessions));
    client.does(|session| session.insert("n", 0)).await.ok();
    for _ in 0..5 {
        client.does(|session| session.modify("n", |n: Option<u64>| n.unwrap() + 1)).await.ok();
    }
    assert_eq!(client.does(|session| Ok(session.get::<u64>("n")?.unwrap().to_string())).await.body, "5");
}

async fn p05_a_lost_reply_then_a_foreign_write_then_the_retry(store: Store) {
    let increment = |session: &Session| session.modify("n", |n: Option<u64>| n.unwrap() + 1);
    for fault in [Fault::Before, Fault::After] {
        let client = Client::new(&store.layer());
        client.does(|session| session.insert("n", 0)).await.ok();
        let other = client.thief().at(&store.layer());
        let answer = client.visit(async |session: Session| {
            increment(&session)?;
            store.faults.next(Verb::Update, fault);
            assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Unavailable);
            for _ in 0..3 {
                other.does(increment).await.ok();
            }
            // It is still recorded, and goes with the response: whether it was written or not, once.
            Ok(())
        });
        answer.await.ok();
        assert_eq!(client.does(|session| Ok(session.get::<u64>("n")?.unwrap().to_string())).await.body, "4");
    }
}

async fn p05_a_modify_is_made_once_however_many_others_write_before_its_retry(store: Store) {
    let increment = |session: &Session| session.modify("n", |n: Option<u64>| n.unwrap() + 1);
    for (others, is_lost) in [1, 7, 8, 9, 20].into_iter().flat_map(|others| [(others, true), (others, false)]) {
        let client = Client::new(&store.layer());
        client.does(|session| session.insert("n", 0)).await.ok();
        let other = client.thief().at(&store.layer());
        let answer = client.visit(async |session: Session| {
            increment(&session)?;
            store.faults.next(Verb::Update, if is_lost { Fault::Before } else { Fault::After });
            assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Unavailable);
            for _ in 0..others {
                other.does(increment).await.ok();
            }
            Ok(())
        });
        let status = answer.await.status;
        let n = other.does(|session| Ok(session.get::<u64>("n")?.unwrap().to_string())).await.body;
        // Redis knows the last eight versions. After more than that it may not say that it was not done, nor that it was.
        let is_known = status == 200 || !store.is_remote() || others < 8;
        assert_eq!(status, if is_known { 200 } else { 503 }, "{others} others, lost: {is_lost}");
        let own = u64::from(is_known || !is_lost);
        assert_eq!(n, (others + own).to_string(), "{others} others, lost: {is_lost}, {status}");
    }
}

/// A delete that has looked the old ID up when the session is rotated; and one that has when its grace comes to an end.
async fn p06_rework_beside_delete_with_the_old_id_within_and_after_the_grace(store: Store) {
    for grace_ends in [false, true] {
        let sessions = store.sessions();
        let old = sessions.create("ada", json!({})).await.unwrap();
        let new = Arc::new(Mutex::new(None));
        let (at, rotating, id, noted) = (store.clone(), store.sessions(), old.clone(), Arc::clone(&new));
        store.first(Verb::Update, move || {
            let (at, rotating, id, noted) = (at.clone(), rotating.clone(), id.clone(), Arc::clone(&noted));
            async move {
                let new = rotating.rework(&id).await.unwrap();
                if grace_ends {
                    at.pass(Duration::from_secs(11));
                    assert!(rotating.get(&id).await.unwrap().is_none());
                }
                assert!(rotating.get(&new).await.unwrap().is_some());
                *noted.lock().unwrap() = Some(new);
            }
        });
        // It led to the session when it was looked up, and a sign-out is not turned down for having been slow.
        sessions.delete(&old).await.unwrap();
        let new = new.lock().unwrap().take().unwrap();
        assert!(sessions.get(&new).await.unwrap().is_none());
        assert!(sessions.list("ada").await.unwrap().is_empty());

        // The other way round: the rework has looked it up when it is ended.
        let old = sessions.create("ada", json!({})).await.unwrap();
        let (ending, id) = (store.sessions(), old.clone());
        store.first(Verb::Update, move || {
            let (ending, id) = (ending.clone(), id.clone());
            async move { ending.delete(&id).await.unwrap() }
        });
        assert_eq!(sessions.rework(&old).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(sessions.list("ada").await.unwrap().is_empty());
    }
}

async fn p16_nothing_is_blocked_by_a_request_that_hangs(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.insert("n", 0)).await.ok();
    store.faults.next(Verb::Update, Fault::Hang);
    let hanging = client.thief();
    let task = tokio::spawn(async move { drop(hanging.does(|session| session.insert("m", 1)).await) });
    eventually(async || store.faults.calls().contains(&Verb::Update)).await;
    // Others of the same session go on, while it hangs and after it is dropped.
    client.does(|session| session.modify("n", |n: Option<u64>| n.unwrap() + 1)).await.ok();
    task.abort();
    client.does(|session| session.modify("n", |n: Option<u64>| n.unwrap() + 1)).await.ok();
    assert_eq!(client.does(|session| Ok(session.get::<u64>("n")?.unwrap().to_string())).await.body, "2");
}

async fn p16_dropped_at_any_point_a_commit_is_whole(store: Store) {
    use std::{future::Future, pin::pin, task::Poll};
    type Change = fn(&Session) -> Result<(), jam_session::Error>;
    let changes: [(Change, Option<(&str, u8)>); 4] = [
        (|session| session.insert("n", 2), Some(("ada", 2))),
        (
            |session| {
                session.rework();
                session.insert("n", 2)
            },
            Some(("ada", 2)),
        ),
        (
            |session| {
                session.create("grace", json!({}))?;
                session.insert("n", 2)
            },
            Some(("grace", 2)),
        ),
        (
            |session| {
                session.delete();
                Ok(())
            },
            None,
        ),
    ];
    let sessions = store.sessions();
    for (change, after) in changes {
        let (mut befores, mut afters) = (0, 0);
        for polls in 0..16 {
            let own = store.sessions();
            let client = Client::new(&jam_session::SessionLayer::new(own.clone()));
            client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
            // Each call yields before it is made, so that there are points to be dropped at.
            for verb in [Verb::Load, Verb::Update, Verb::Create, Verb::Delete] {
                store.first(verb, tokio::task::yield_now);
            }
            let dropped = client.thief();
            {
                let mut request = pin!(dropped.does(change));
                for _ in 0..polls {
                    // Once, and then not before it is woken: a store that answers over a wire takes its time.
                    let mut polled = false;
                    let ready = std::future::poll_fn(|cx| match std::mem::replace(&mut polled, true) {
                        false => request.as_mut().poll(cx).map(|_| true),
                        true => Poll::Ready(false),
                    });
                    if ready.await {
                        break;
                    }
                }
            }
            // What was begun ends in the background, and closing waits for it. Then it is before or after, and never
            // between: and the browser, which may not have got the new ID, is signed in as long as the old one holds.
            own.close().await.unwrap();
            let settled = state(&sessions).await;
            if settled == [("ada", Some(1))] {
                befores += 1;
                let client = client.at(&store.layer());
                assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
            } else {
                let after = after.map(|(key, n)| (key, Some(n)));
                assert_eq!(settled, after.into_iter().collect::<Vec<_>>(), "after {polls} polls");
                afters += 1;
            }
            store.faults.heal();
            sessions.clear("ada").await.unwrap();
            sessions.clear("grace").await.unwrap();
        }
        assert!(befores > 0 && afters > 0, "{befores} before, {afters} after");
    }
}

async fn state(sessions: &jam_session::Sessions<Watched>) -> Vec<(&'static str, Option<u8>)> {
    let mut all = Vec::new();
    for key in ["ada", "grace"] {
        for info in sessions.list(key).await.unwrap() {
            all.push((key, info.data.get::<u8>("n").unwrap()));
        }
    }
    all
}

async fn closing_waits_and_refuses_further_use(store: Store) {
    let sessions = store.sessions();
    let client = Client::new(&jam_session::SessionLayer::new(sessions.clone()));
    client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
    // A commit that nobody waits for any more.
    let (go, gone) = tokio::sync::watch::channel(false);
    store.first(Verb::Update, move || {
        let mut gone = gone.clone();
        async move { drop(gone.wait_for(|go| *go).await.unwrap()) }
    });
    let leaving = client.thief();
    let task = tokio::spawn(async move { drop(leaving.does(|session| session.insert("n", 2)).await) });
    eventually(async || store.faults.calls().contains(&Verb::Update)).await;
    task.abort();
    let _ = task.await;
    let clone = sessions.clone();
    let closing = tokio::spawn(async move { sessions.close().await });
    go.send(true).unwrap();
    closing.await.unwrap().unwrap();
    assert_eq!(store.sessions().list("ada").await.unwrap()[0].data.get::<u8>("n").unwrap(), Some(2));
    assert_eq!(clone.list("ada").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(clone.close().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(client.does(|session| session.insert("n", 3)).await.sets_no_cookie().status, 503);
}

async fn p11_a_payload_that_names_another_owner_is_unreadable(store: Store) {
    let client = Client::new(&store.layer());
    client.does(|session| session.create("malory-of-the-tests", json!({}))).await.ok();
    let record = store.backend().load(record_id(&client.id().unwrap())).await.unwrap().unwrap();
    let mut payload = record.payload.to_vec();
    let (own, other) = (b"malory-of-the-tests", b"root-who-may-do-all");
    let at = payload.windows(own.len()).position(|bytes| bytes == own).unwrap();
    payload[at..at + own.len()].copy_from_slice(other);
    let forged = Record::new(record.id, 1, record.ttl, payload);
    let _ = store.backend().updates(record.version, forged).await.unwrap();
    let body = client.does(|session| Ok(format!("{:?}", session.key()))).await.body;
    assert_eq!(body, "None", "malory is signed in as root, in a session that a clear of root's does not end");
}

#[tokio::test]
async fn p11_changes_to_an_unreadable_session_never_answer_200() {
    for (name, change) in [
        ("remove", (|session| session.remove("n")) as fn(&Session)),
        ("set_ttl", |session| session.set_ttl(Duration::from_secs(5))),
        ("rework", |session| session.rework()),
    ] {
        let store = Store::memory().await;
        let client = Client::new(&store.layer());
        client.does(|session| session.create("ada", json!({"n": 1}))).await.ok();
        let record = store.backend().load(record_id(&client.id().unwrap())).await.unwrap().unwrap();
        let spoilt = Record::new(record.id, 1, record.ttl, "{");
        let _ = store.backend().updates(record.version, spoilt).await.unwrap();
        let answer = client.does(|session| {
            change(session);
            Ok(())
        });
        assert_eq!(answer.await.status, 500, "{name}");
        let update = client.does(|session| session.update(json!({})));
        assert_eq!(update.await.status, 500);
    }
}

#[tokio::test]
async fn p11_a_record_that_became_unreadable_meanwhile_does_not_keep_its_owner_from_signing_in() {
    for (key, by_login) in [("ada", false), ("ada", true), ("grace", false), ("grace", true)] {
        let store = Store::memory().await;
        let sessions = store.sessions();
        let client = Client::new(&store.layer());
        client.does(|session| session.create("ada", json!({}))).await.ok();
        let id = record_id(&client.id().unwrap());
        let spoiling = store.clone();
        store.first(Verb::Update, move || {
            let store = spoiling.clone();
            async move {
                let record = store.backend().load(id).await.unwrap().unwrap();
                let spoilt = Record::new(record.id, 1, record.ttl, "{\"v\":2}");
                let _ = store.backend().updates(record.version, spoilt).await.unwrap();
            }
        });
        let answer = client.visit(async |session: Session| {
            match by_login {
                true => session.bind(sessions.login(key).await?),
                false => session.bind(key),
            }
            Ok(())
        });
        // A session key needs the newest ID of a session that is live, and nothing says that any more.
        assert_eq!(answer.await.status, if by_login { 200 } else { 401 }, "bind({key})");
    }
}

async fn p10_a_login_whose_create_got_no_answer_leaves_no_session_behind(store: Store) {
    let client = Client::new(&store.layer());
    store.faults.next(Verb::Create, Fault::After);
    let answer = client.does(|session| {
        session.bind("ada");
        Ok(())
    });
    assert_eq!(answer.await.status, 503);
    eventually(async || store.sessions().list("ada").await.unwrap().is_empty()).await;
}

async fn nothing_is_called_after_close(store: Store) {
    let sessions = store.sessions();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    client.does(|session| session.insert("n", 1)).await.ok();
    // A login whose answer is lost removes the new session in a task without a permit.
    store.faults.next(Verb::Create, Fault::After);
    let answer = client.does(|session| {
        session.bind("ada");
        Ok(())
    });
    assert_eq!(answer.await.status, 503);
    sessions.close().await.unwrap();
    store.faults.calls();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(store.faults.calls().is_empty(), "the store is called after it was closed");
}
