//! The layout in Redis: what holds beyond the contract of every backend, on every topology and every server at hand.

use std::time::{Duration, Instant};

use jam_session::{Backend, Created, Outcome, Owner, Record, RecordId, RedisBackend, Since, Terms};
use serde_json::json;

use super::{
    harness::{AGE_CLEAR, Place, Topology},
    process::until,
    wire::Reply,
};
use crate::store::{Plain, lasting};

crate::on_every_redis!(
    a_logout_leaves_nothing_of_the_payload,
    cleared_records_are_let_go_in_the_background,
    the_index_is_the_authority,
    a_record_that_was_evicted_is_taken_out_of_the_index,
    the_dead_make_room_in_the_index,
    no_key_is_ever_without_an_end,
    a_request_right_after_a_clear_is_in_time,
    a_clear_that_seems_to_lie_ahead_has_just_happened,
    a_session_goes_all_the_way,
    strange_names_are_names,
    two_prefixes_never_meet,
    what_cannot_be_read_is_an_error_and_stays,
);

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn owner(name: &str) -> Owner {
    format!("{name:A<22}").parse().unwrap()
}

pub fn of(owner: Owner, sid: &str) -> RecordId {
    format!("{owner}.{sid:_<22}").parse().unwrap()
}

pub fn anonymous(sid: &str) -> RecordId {
    format!("{sid:_<22}").parse().unwrap()
}

pub fn record(id: RecordId, version: i64, payload: &str) -> Record {
    Record::new(id, version, HOUR, payload.to_owned())
}

/// One with an owner, and one without.
fn both() -> [RecordId; 2] {
    [of(owner("ada"), "one"), anonymous("one")]
}

pub async fn payload(backend: &RedisBackend, id: RecordId) -> Option<String> {
    let record = backend.load(id).await.unwrap()?;
    Some(String::from_utf8(record.payload.to_vec()).unwrap())
}

pub async fn update(backend: &RedisBackend, expected: i64, record: Record) -> &'static str {
    match backend.updates(expected, record).await.unwrap() {
        Outcome::Done => "done",
        Outcome::Gone => "gone",
        Outcome::Conflict(_) => "conflict",
        other => panic!("{other:?}"),
    }
}

async fn a_logout_leaves_nothing_of_the_payload(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let backend = sessions.backend();
    for id in both() {
        assert!(backend.creates(record(id, 1, "what is in it")).await.unwrap());
        let out = lasting(Duration::ZERO, record(id, 2, "out"));
        assert_eq!(update(backend, 1, out).await, "done");
        for (server, key) in place.keys() {
            assert!(!server.ask(&["GET", &key]).text().contains("what is in it"), "{key}");
        }
    }
}

async fn cleared_records_are_let_go_in_the_background(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let backend = sessions.backend();
    let ada = owner("ada");
    // More than are asked for at once.
    for at in 0..250 {
        assert!(backend.creates(record(of(ada, &format!("s{at}")), at, "x")).await.unwrap());
    }
    assert_eq!(backend.clears(ada, Some(of(ada, "s7"))).await.unwrap(), 249);
    assert_eq!(backend.clears(ada, None).await.unwrap(), 1);
    let soon = |(server, key): &(_, String)| {
        let server: &super::wire::Address = server;
        // The last clear is remembered for fifteen minutes.
        !key.contains(&ada.to_string()) || key.ends_with(":c") || server.ask(&["PTTL", key]).number() <= 10_000
    };
    until("the records are let go", || place.keys().iter().all(soon));
}

async fn the_index_is_the_authority(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let backend = sessions.backend();
    let id = of(owner("ada"), "one");
    assert!(backend.creates(record(id, 1, "x")).await.unwrap());
    let (server, index) = place.keys().into_iter().find(|(_, key)| key.ends_with(":i")).unwrap();
    server.ask(&["DEL", &index]);
    assert!(backend.load(id).await.unwrap().is_none());
    assert_eq!(update(backend, 1, record(id, 2, "y")).await, "gone");
    backend.touch(id, 1, HOUR).await.unwrap();
    assert!(backend.load(id).await.unwrap().is_none());
    assert!(backend.list(owner("ada")).await.unwrap().is_empty());
    // Another login of the same user does not bring it back.
    assert!(backend.creates(record(of(owner("ada"), "two"), 1, "x")).await.unwrap());
    assert!(backend.load(id).await.unwrap().is_none());
}

async fn a_record_that_was_evicted_is_taken_out_of_the_index(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let backend = sessions.backend();
    let (gone, stays) = (of(owner("ada"), "gone"), of(owner("ada"), "stays"));
    assert!(backend.creates(record(gone, 1, "x")).await.unwrap());
    assert!(backend.creates(record(stays, 1, "x")).await.unwrap());
    let key = |id: RecordId| place.keys().into_iter().find(|(_, key)| key.ends_with(id.sid())).unwrap();
    let (server, evicted) = key(gone);
    server.ask(&["DEL", &evicted]);
    assert!(backend.load(gone).await.unwrap().is_none());
    let listed = backend.list(owner("ada")).await.unwrap();
    assert_eq!(listed.len(), 1);
    let index = evicted.split_once(":s:").unwrap().0.to_owned() + ":i";
    until("the index is healed", || server.ask(&["ZCARD", &index]) == Reply::Number(1));
    assert!(backend.load(stays).await.unwrap().is_some());
}

async fn the_dead_make_room_in_the_index(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let ada = owner("ada");
    for at in 0..20 {
        let short = lasting(HOUR / 2, record(of(ada, &format!("s{at}")), 1, "x"));
        assert!(sessions.backend().creates(short).await.unwrap());
    }
    assert!(sessions.backend().creates(record(of(ada, "long"), 1, "x")).await.unwrap());
    place.age(HOUR / 2);
    let size = || {
        let (server, index) = place.keys().into_iter().find(|(_, key)| key.ends_with(":i")).unwrap();
        server.ask(&["ZCARD", &index]).number()
    };
    assert_eq!(size(), 21);
    assert!(sessions.backend().creates(record(of(ada, "new1"), 1, "x")).await.unwrap());
    assert_eq!(size(), 6);
    assert!(sessions.backend().creates(record(of(ada, "new2"), 1, "x")).await.unwrap());
    assert_eq!(size(), 3);
    assert_eq!(sessions.backend().clears(ada, None).await.unwrap(), 3);
}

async fn no_key_is_ever_without_an_end(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let backend = sessions.backend();
    let mut versions = 0;
    for id in both().into_iter().cycle().take(60) {
        versions += 1;
        let ttl = [HOUR, HOUR / 3, Duration::MAX, Duration::ZERO][versions % 4];
        let version = i64::try_from(versions).unwrap();
        let record = lasting(ttl, record(id, version, "x"));
        match versions % 7 {
            0 | 1 => drop(backend.creates(record).await.unwrap()),
            2 | 3 => {
                if let Some(there) = backend.load(id).await.unwrap() {
                    let _ = backend.updates(there.version, record).await.unwrap();
                }
            }
            4 => backend.touch(id, version - 1, ttl).await.unwrap(),
            5 => drop(backend.delete(id).await.unwrap()),
            _ => drop(backend.clears(owner("ada"), Some(id)).await.unwrap()),
        }
        for (server, key) in place.keys() {
            let left = server.ask(&["PTTL", &key]).number();
            assert_ne!(left, -1, "{key} after step {versions}");
        }
    }
}

/// Whether a new record is stored although its request is that old.
async fn is_in_time(backend: &RedisBackend, id: RecordId, age: Duration) -> bool {
    let terms = Terms { since: Some(Since::Age(age)), retry: false };
    match backend.create(record(id, 1, "x"), terms).await.unwrap() {
        Created::Done => true,
        Created::Late => false,
        other => panic!("{other:?}"),
    }
}

async fn a_request_right_after_a_clear_is_in_time(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    for round in 0..100 {
        backend.clears(ada, None).await.unwrap();
        let after = Instant::now();
        let (late, in_time) = (of(ada, &format!("late{round}")), of(ada, &format!("time{round}")));
        assert!(is_in_time(backend, in_time, after.elapsed()).await, "it came after the clear was answered");
        assert!(!is_in_time(backend, late, HOUR / 10).await, "it came before the clear");
        assert!(backend.load(late).await.unwrap().is_none());
    }
}

/// The server's clock was set back by an hour after the clear.
async fn a_clear_that_seems_to_lie_ahead_has_just_happened(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    backend.clears(ada, None).await.unwrap();
    let (server, key) = place.keys().into_iter().find(|(_, key)| key.ends_with(":c")).unwrap();
    server.ask(&["EVAL", AGE_CLEAR, "1", &key, "-3600000000"]);
    assert!(!is_in_time(backend, of(ada, "one"), Duration::ZERO).await, "when the clear was is not known");
    // The next request is in time, and one from before is not.
    let now = Instant::now();
    assert!(is_in_time(backend, of(ada, "two"), now.elapsed()).await);
    assert!(!is_in_time(backend, of(ada, "three"), HOUR / 10).await);
    assert!(server.ask(&["PTTL", &key]).number() > 900_000);
}

async fn a_session_goes_all_the_way(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
    sessions.update(&id, json!({"n": 2})).await.unwrap();
    let new = sessions.rework(&id).await.unwrap();
    assert_eq!(sessions.get(&new).await.unwrap().unwrap().get::<u8>("n").unwrap(), Some(2));
    let second = sessions.create("ada", json!({})).await.unwrap();
    let listed = sessions.list("ada").await.unwrap();
    assert_eq!(listed.len(), 2);
    assert!(sessions.revoke("ada", &listed[0].handle).await.unwrap());
    assert!(sessions.get(&new).await.unwrap().is_none());
    assert_eq!(sessions.clear("ada").await.unwrap(), 1);
    assert!(sessions.get(&second).await.unwrap().is_none());
    sessions.close().await.unwrap();
}

async fn strange_names_are_names(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let long = "k".repeat(1024);
    let keys = ["a:b", "{a}", "}{", "*", "a\0b", "🦀", " ", "a b\r\n", "sessions:{x}:i", &long];
    for key in keys {
        sessions.create(key, json!({ "key": key })).await.unwrap();
    }
    for key in keys {
        let listed = sessions.list(key).await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].data.get::<String>("key").unwrap().as_deref(), Some(key));
        assert_eq!(sessions.clear(key).await.unwrap(), 1);
    }
}

async fn two_prefixes_never_meet(on: Topology) {
    let place = Place::new(on).unwrap();
    let one = place.sessions().await;
    let other = place.sessions_with(|builder| builder.namespace(format!("{}:", place.namespace))).await;
    let id = one.create("ada", json!({})).await.unwrap();
    assert!(other.get(&id).await.unwrap().is_none());
    assert!(other.list("ada").await.unwrap().is_empty());
    assert_eq!(other.clear("ada").await.unwrap(), 0);
    let record = of(owner("ada"), "one");
    assert!(one.backend().creates(self::record(record, 1, "x")).await.unwrap());
    assert!(other.backend().load(record).await.unwrap().is_none());
    assert!(!other.backend().delete(record).await.unwrap());
    assert_eq!(other.backend().clears(owner("ada"), None).await.unwrap(), 0);
    assert!(one.get(&id).await.unwrap().is_some());
}

async fn what_cannot_be_read_is_an_error_and_stays(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let backend = sessions.backend();
    for id in both() {
        for garbage in ["", "\u{1}", "\u{1}\u{a}", "\u{2}\u{1}12345678", "\u{1}\u{2}12345678", "not ours at all"] {
            assert!(backend.creates(record(id, 1, "x")).await.unwrap());
            let (server, key) = place
                .keys()
                .into_iter()
                .find(|(server, key)| server.ask(&["TYPE", key]).text() == "string" && !key.ends_with(":c"))
                .unwrap();
            server.ask(&["SET", &key, garbage, "KEEPTTL"]);
            let error = backend.load(id).await.unwrap_err();
            assert!(!format!("{error} {error:?}").contains(id.sid()));
            assert!(backend.updates(1, record(id, 2, "y")).await.is_err());
            assert!(!backend.creates(record(id, 3, "z")).await.unwrap());
            backend.touch(id, 1, HOUR).await.unwrap();
            assert_eq!(server.ask(&["GET", &key]).text(), garbage);
            backend.delete(id).await.unwrap();
            assert!(backend.load(id).await.unwrap().is_none());
            // Of another type altogether.
            server.ask(&["DEL", &key]);
            server.ask(&["RPUSH", &key, "x"]);
            server.ask(&["PEXPIRE", &key, "100000"]);
            if id.owner().is_none() {
                assert!(backend.load(id).await.is_err());
            }
            assert!(backend.creates(record(id, 4, "x")).await.is_err());
            server.ask(&["DEL", &key]);
        }
    }
}
