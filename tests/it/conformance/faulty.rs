//! `Faulty`: that it fails as told, and how sessions and the layer react.

use std::{
    future::ready,
    sync::{Arc, Mutex},
    time::Duration,
};

use jam_session::{
    Cleared, ErrorKind, MemoryBackend, SessionLayer, Sessions,
    conformance::{Answer, Fault, Faults, Faulty, Gate, Verb},
};
use serde_json::json;

use crate::{
    client::{Client, bind_ada, delete},
    store::{PATIENCE, eventually},
};

fn faulty() -> (Sessions<Faulty<MemoryBackend>>, Faults) {
    let backend = Faulty::new(MemoryBackend::default());
    let faults = backend.faults();
    (Sessions::over(backend).request_time(PATIENCE).build().unwrap(), faults)
}

async fn value(sessions: &Sessions<Faulty<MemoryBackend>>, id: &str) -> Option<u8> {
    sessions.get(id).await.unwrap()?.get::<u8>("n").unwrap()
}

#[tokio::test]
async fn before_nothing_happens_and_after_it_has_happened() {
    let (sessions, faults) = faulty();
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    faults.next(Verb::Update, Fault::Before);
    assert_eq!(sessions.update(&id, json!({"n": 2})).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(value(&sessions, id.as_str()).await, Some(1));
    faults.next(Verb::Update, Fault::After);
    assert_eq!(sessions.update(&id, json!({"n": 3})).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(value(&sessions, id.as_str()).await, Some(3));
    for fault in [Fault::Before, Fault::After] {
        faults.next(None, fault);
        assert!(sessions.list("ada").await.is_err());
        assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn what_happens_twice_is_applied_once() {
    let (sessions, faults) = faulty();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    for verb in [Verb::Load, Verb::Create, Verb::Update, Verb::Touch] {
        faults.always(verb, Fault::Twice);
    }
    client.does(|session| session.insert("n", 0)).await.ok();
    sessions.create("ada", json!({})).await.unwrap();
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    for _ in 0..3 {
        client.does(|session| session.modify("n", |n: Option<u8>| n.unwrap_or(0) + 1)).await.ok();
    }
    assert_eq!(client.does(|session| Ok(session.get::<u8>("n")?.unwrap().to_string())).await.body, "3");
}

#[tokio::test]
async fn p04_what_arrives_late_revives_nothing() {
    let (sessions, faults) = faulty();
    let layer = SessionLayer::new(sessions.clone());
    for verb in [Verb::Update, Verb::Touch] {
        let client = Client::new(&layer);
        client.does(bind_ada).await.ok();
        let gate = Gate::new();
        faults.next(verb, Fault::Late(gate.clone()));
        if verb == Verb::Update {
            let answer = client.does(|session| session.insert("n", 1)).await.sets_no_cookie();
            assert_eq!(answer.status, 503);
        } else {
            faults.heal();
        }
        assert_eq!(sessions.clear("ada").await.unwrap(), 1);
        gate.open().await;
        assert!(sessions.list("ada").await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_request_that_is_held_happens_when_it_is_let_go_even_if_nobody_waits_for_it() {
    let (sessions, faults) = faulty();
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    let gate = Gate::new();
    faults.next(Verb::Update, Fault::HoldRequest(gate.clone()));
    let update = tokio::spawn({
        let (sessions, id) = (sessions.clone(), id.clone());
        async move { sessions.update(&id, json!({"n": 2})).await }
    });
    gate.has_held(1).await;
    update.abort();
    assert!(update.await.unwrap_err().is_cancelled());
    assert_eq!(value(&sessions, id.as_str()).await, Some(1));
    gate.open().await;
    assert_eq!(value(&sessions, id.as_str()).await, Some(2));
    // It stays open.
    faults.next(Verb::Update, Fault::HoldRequest(gate));
    sessions.update(&id, json!({"n": 3})).await.unwrap();
}

#[tokio::test]
async fn a_reply_that_is_held_is_that_of_what_has_happened() {
    let (sessions, faults) = faulty();
    let gate = Gate::new();
    faults.next(Verb::Create, Fault::HoldReply(gate.clone()));
    let create = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.create("ada", json!({})).await }
    });
    gate.has_held(1).await;
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    assert!(!create.is_finished());
    gate.open().await;
    let id = create.await.unwrap().unwrap();
    assert!(sessions.get(&id).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_gate_may_open_by_itself_in_paused_time() {
    let (sessions, faults) = faulty();
    let hour = Duration::from_secs(3600);
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    faults.next(Verb::Update, Fault::Late(Gate::after(hour)));
    assert!(sessions.update(&id, json!({"n": 2})).await.is_err());
    assert_eq!(value(&sessions, id.as_str()).await, Some(1));
    tokio::time::sleep(hour - Duration::from_millis(10)).await;
    assert_eq!(value(&sessions, id.as_str()).await, Some(1));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(value(&sessions, id.as_str()).await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn what_hangs_is_answered_when_the_time_of_the_request_is_over() {
    let (sessions, faults) = faulty();
    faults.always(None, Fault::Hang);
    assert_eq!(sessions.create("ada", json!({})).await.unwrap_err().kind(), ErrorKind::Unavailable);
    faults.heal();
    assert!(sessions.list("ada").await.unwrap().is_empty());
}

#[tokio::test]
async fn p09_an_outage_is_503_keeps_the_cookie_and_signs_nobody_out() {
    let (sessions, faults) = faulty();
    let client = Client::new(&SessionLayer::new(sessions));
    client.does(bind_ada).await.ok();
    faults.always(None, Fault::Before);
    for _ in 0..3 {
        assert_eq!(client.does(|session| session.insert("n", 1)).await.sets_no_cookie().status, 503);
        assert_eq!(client.does(delete).await.sets_no_cookie().status, 503);
    }
    faults.heal();
    assert_eq!(client.does(|session| Ok(session.key().unwrap())).await.body, "ada");
}

#[tokio::test]
async fn p16_a_sign_out_whose_reply_is_lost_has_happened() {
    let (sessions, faults) = faulty();
    let client = Client::new(&SessionLayer::new(sessions.clone()));
    client.does(bind_ada).await.ok();
    faults.always(Verb::Update, Fault::After);
    client.does(delete).await.sets_no_cookie();
    faults.heal();
    eventually(async || sessions.list("ada").await.unwrap().is_empty()).await;
    assert_eq!(client.does(|session| Ok(format!("{:?}", session.key()))).await.body, "None");
}

#[tokio::test]
async fn calls_are_counted_and_chosen() {
    let (sessions, faults) = faulty();
    let list = async || sessions.list("ada").await.is_ok();
    let id = sessions.create("ada", json!({})).await.unwrap();
    assert_eq!(faults.calls(), [Verb::Create]);
    faults.nth(2, Verb::List, Fault::Before);
    assert_eq!([list().await, list().await, list().await], [true, false, true]);
    // Two at once come one after the other, and others do not count.
    faults.next(Verb::List, Fault::Before);
    faults.next(Verb::List, Fault::Before);
    assert!(sessions.get(&id).await.is_ok());
    assert_eq!([list().await, list().await, list().await], [false, false, true]);
    faults.calls();
    // By number, by verb, by record.
    faults.when(|call| (call.number_of_verb % 2 == 1 && call.verb == Verb::List).then_some(Fault::Before));
    assert_eq!([list().await, list().await, list().await], [false, true, false]);
    faults.heal();
    let sid = sessions.list("ada").await.unwrap()[0].handle.clone();
    faults.when(move |call| call.id.is_some_and(|id| id.sid() == sid).then_some(Fault::Before));
    assert!(sessions.get(&id).await.is_err());
    let other = sessions.create("ada", json!({})).await.unwrap();
    assert!(sessions.get(&other).await.is_ok());
    assert!(format!("{faults:?} {:?} {:?}", sessions.backend(), Gate::new()).starts_with("Faults { .. } Faulty"));
}

#[tokio::test]
async fn a_closure_runs_before_the_verb_acts_and_may_make_it_come_too_late() {
    let (sessions, faults) = faulty();
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    let (other, same) = (sessions.clone(), id.clone());
    faults.next(
        Verb::Update,
        Fault::first(move |call| {
            assert_eq!((call.verb, call.number_of_verb), (Verb::Update, 1));
            let (other, same) = (other.clone(), same.clone());
            async move { other.delete(&same).await.unwrap() }
        }),
    );
    assert_eq!(sessions.update(&id, json!({"n": 2})).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(sessions.get(&id).await.unwrap().map(drop), None);
}

#[tokio::test]
async fn an_answer_can_be_changed_and_so_can_an_error() {
    let (sessions, faults) = faulty();
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    faults.next(Verb::List, Fault::change(|_, _| async { Ok(Answer::List(Vec::new())) }));
    assert_eq!(sessions.list("ada").await.unwrap().len(), 0);
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
    // A verb that has not acted is answered as if it had.
    faults.always(Verb::Clear, Fault::Before);
    faults.always(
        Verb::Clear,
        Fault::change(|call, answer| async move {
            assert!(answer.is_err() && call.clear.is_some_and(|clear| clear.by.is_none()));
            Ok(Answer::Clear(Cleared::Done(7)))
        }),
    );
    assert_eq!(sessions.clear("ada").await.unwrap(), 7);
    assert_eq!(value(&sessions, id.as_str()).await, Some(1));
    // The answer of another verb is none.
    faults.next(Verb::Load, Fault::change(|_, _| async { Ok(Answer::Touch) }));
    assert_eq!(sessions.get(&id).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_call_meets_one_fault_of_each_kind() {
    let (sessions, faults) = faulty();
    let noted = Arc::new(Mutex::new(Vec::new()));
    for name in ["a", "b"] {
        let (first, change) = (Arc::clone(&noted), Arc::clone(&noted));
        faults.next(
            Verb::List,
            Fault::first(move |_| {
                first.lock().unwrap().push(format!("first {name}"));
                ready(())
            }),
        );
        faults.next(
            Verb::List,
            Fault::change(move |_, answer| {
                change.lock().unwrap().push(format!("change {name}, failed: {}", answer.is_err()));
                ready(answer)
            }),
        );
    }
    faults.next(Verb::List, Fault::Before);
    assert!(sessions.list("ada").await.is_err());
    assert!(sessions.list("ada").await.is_ok());
    assert!(sessions.list("ada").await.is_ok());
    let noted = std::mem::take(&mut *noted.lock().unwrap());
    assert_eq!(noted, ["first a", "change a, failed: true", "first b", "change b, failed: false"]);
}

#[tokio::test]
async fn a_clone_is_the_same_backend_and_meets_the_same_faults() {
    let one = Faulty::new(MemoryBackend::default());
    let (faults, other) = (one.faults(), one.clone());
    let one = Sessions::over(one).build().unwrap();
    let other = Sessions::over(other).build().unwrap();
    let id = one.create("ada", json!({})).await.unwrap();
    assert!(other.get(&id).await.unwrap().is_some());
    faults.next(Verb::Load, Fault::Before);
    assert!(other.get(&id).await.is_err());
    assert_eq!(faults.calls(), [Verb::Create, Verb::Load, Verb::Load]);
}

#[tokio::test]
async fn closing_can_fail() {
    let (sessions, faults) = faulty();
    faults.next(Verb::Close, Fault::Before);
    assert_eq!(sessions.close().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(faults.calls(), [Verb::Close]);
}

#[tokio::test]
async fn a_faulty_backend_that_is_told_nothing_is_as_good_as_the_one_in_it() {
    for promise in jam_session::conformance::Promise::all() {
        promise.check(&jam_session::conformance::Subject::new(Faulty::new(MemoryBackend::default()))).await;
    }
}
