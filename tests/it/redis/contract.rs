//! The layout in Redis: guarantees beyond the backend contract, on every topology and every installed server.

use std::time::{Duration, Instant};

use jam_session::{Backend, Created, Outcome, Owner, Record, RecordId, RedisBackend, Sessions, Since, Terms};
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    harness::{AGE, Place, Topology},
    wire::Address,
};
use crate::store::{Plain, lasting, record_id};

crate::on_every_redis!(
    a_logout_leaves_nothing_of_the_payload,
    a_clear_leaves_one_field,
    the_dead_make_room,
    no_key_is_ever_without_an_end,
    a_request_right_after_a_clear_is_in_time,
    a_clear_that_seems_to_lie_ahead_has_just_happened,
    a_session_goes_all_the_way,
    strange_names_are_names,
    two_prefixes_never_meet,
    what_cannot_be_read_is_an_error_and_stays,
    payloads_of_every_size_go_through_all_verbs,
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

/// Creates so many records of visitors.
pub async fn create_visitors(backend: &RedisBackend, count: usize) {
    for at in 0..count {
        assert!(backend.creates(record(anonymous(&format!("v{at}")), 1, "x")).await.unwrap());
    }
}

/// Creates so many sessions of one user. Every tenth is too large to be listed with the others.
pub async fn create_crowd(sessions: &Sessions<RedisBackend>, count: usize) {
    const AT_ONCE: usize = 25;
    let mut creating = JoinSet::new();
    for part in 0..AT_ONCE {
        let sessions = sessions.clone();
        creating.spawn(async move {
            for at in 0..count / AT_ONCE {
                let id = of(owner("ada"), &format!("s{part}-{at}"));
                let payload = "x".repeat(if at % 10 == 0 { 1_500 } else { 10 });
                assert!(sessions.backend().creates(record(id, 1, &payload)).await.unwrap());
            }
        });
    }
    creating.join_all().await;
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
            let verb = if key.ends_with(":a") { "GET" } else { "HGETALL" };
            assert!(!format!("{:?}", server.ask(&[verb, &key])).contains("what is in it"), "{key}");
        }
    }
}

/// The owner's key of this place.
fn of_owner(place: &Place) -> (Address, String) {
    place.keys().into_iter().find(|(_, key)| !key.ends_with(":a")).unwrap()
}

async fn a_clear_leaves_one_field(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let backend = sessions.backend();
    let ada = owner("ada");
    for at in 0..250 {
        assert!(backend.creates(record(of(ada, &format!("s{at}")), at, "x")).await.unwrap());
    }
    let large = "x".repeat(2_000);
    assert_eq!(update(backend, 7, record(of(ada, "s7"), 1_000, &large)).await, "done");
    assert_eq!(backend.clears(ada, Some(of(ada, "s7"))).await.unwrap(), 249);
    assert_eq!(payload(backend, of(ada, "s7")).await.as_deref(), Some(&large[..]));
    let (server, key) = of_owner(&place);
    // The clear, the record, and its payload.
    assert_eq!(server.ask(&["HLEN", &key]).number(), 3);
    assert_eq!(backend.clears(ada, None).await.unwrap(), 1);
    assert_eq!(server.ask(&["HLEN", &key]).number(), 1);
    assert!(server.ask(&["PTTL", &key]).number() > 900_000, "the clear is remembered");
}

async fn the_dead_make_room(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let ada = owner("ada");
    for at in 0..20 {
        let short = lasting(HOUR / 2, record(of(ada, &format!("s{at}")), 1, "x"));
        assert!(sessions.backend().creates(short).await.unwrap());
    }
    assert!(sessions.backend().creates(record(of(ada, "long"), 1, "x")).await.unwrap());
    place.age(HOUR / 2 + Duration::from_secs(20));
    let (server, key) = of_owner(&place);
    let size = || server.ask(&["HLEN", &key]).number();
    assert_eq!(size(), 21);
    // Each login looks at a few of them.
    let mut logins = 0;
    while size() > 20 {
        assert!(sessions.backend().creates(record(of(ada, &format!("new{logins}")), 1, "x")).await.unwrap());
        logins += 1;
    }
    assert!(logins < 10, "{logins} logins");
    assert_eq!(sessions.backend().clears(ada, None).await.unwrap(), logins + 1);
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
    let terms = Terms { since: Some(Since::Age(age)), ..Terms::default() };
    match backend.create(record(id, 1, "x"), terms).await.unwrap() {
        Created::Done { .. } => true,
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
    let (server, key) = of_owner(&place);
    server.ask(&["EVAL", AGE, "1", &key, "-3600000"]);
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
    // Those that began in the same millisecond are listed in any order.
    let handle = record_id(new.as_str()).sid().to_owned();
    let listed = sessions.list("ada").await.unwrap();
    assert!(listed.len() == 2 && listed.iter().any(|info| info.handle == handle));
    assert!(sessions.revoke("ada", &handle).await.unwrap());
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
        let (text, head) = ("\u{1}\u{1}12345678", "\u{2}\u{0}\u{9}1234567890123");
        for garbage in ["", "\u{2}", "\u{3}later format", text, head, "not ours at all, and long enough for a head"] {
            assert!(backend.creates(record(id, 1, "x")).await.unwrap());
            let is_users = id.owner().is_some();
            let (server, key) = place.keys().into_iter().find(|(_, key)| key.ends_with(":a") != is_users).unwrap();
            let get = || match is_users {
                true => server.ask(&["HGET", &key, id.sid()]).text(),
                false => server.ask(&["GET", &key]).text(),
            };
            match is_users {
                true => server.ask(&["HSET", &key, id.sid(), garbage]),
                false => server.ask(&["SET", &key, garbage, "KEEPTTL"]),
            };
            let error = backend.load(id).await.unwrap_err();
            assert!(!format!("{error} {error:?}").contains(id.sid()));
            assert!(backend.updates(1, record(id, 2, "y")).await.is_err());
            assert!(!backend.creates(record(id, 3, "z")).await.unwrap());
            backend.touch(id, 1, HOUR).await.unwrap();
            assert_eq!(get(), garbage);
            assert!(backend.delete(id).await.unwrap());
            assert!(backend.load(id).await.unwrap().is_none());
            // Of another type altogether: nobody is kept from signing in by it.
            server.ask(&["DEL", &key]);
            server.ask(&["RPUSH", &key, "x"]);
            server.ask(&["PEXPIRE", &key, "100000"]);
            let unreadable = |error: jam_session::BoxError| {
                let kind = error.downcast::<jam_session::Error>().unwrap().kind();
                assert_eq!(kind, jam_session::ErrorKind::Unreadable);
            };
            unreadable(backend.load(id).await.unwrap_err());
            unreadable(backend.delete(id).await.map(drop).unwrap_err());
            assert!(backend.creates(record(id, 4, "x")).await.unwrap());
            assert_eq!(payload(backend, id).await.as_deref(), Some("x"));
            server.ask(&["DEL", &key]);
            server.ask(&["SADD", &key, "x"]);
            if let Some(owner) = id.owner() {
                assert_eq!(backend.clears(owner, None).await.unwrap(), 0);
                assert!(backend.list(owner).await.unwrap().is_empty());
            }
            server.ask(&["DEL", &key]);
        }
    }
}

/// Up and down across all lines: into a field of its own and back, past what a batch takes, past what a conflict brings.
async fn payloads_of_every_size_go_through_all_verbs(on: Topology) {
    const SIZES: [usize; 9] = [100, 1_025, 1_024, 900_000, 100, 32_769, 2_000, 100_000, 1_000];
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let backend = sessions.backend();
    let text = |version: i64, size: usize| {
        let version = version.to_string();
        "0".repeat(size - version.len()) + &version
    };
    for (id, is_hinted) in both().into_iter().flat_map(|id| [(id, false), (id, true)]) {
        // A record that has ended is known by its versions for a while.
        let mut version = if is_hinted { 100 } else { 0 };
        assert!(backend.creates(record(id, version, &text(version, 50_000))).await.unwrap());
        for size in SIZES {
            let case = format!("{size} bytes of {id:?}, with a hint: {is_hinted}");
            let there = backend.load(id).await.unwrap().expect(&case);
            version += 1;
            let new = text(version, size);
            let mut next = record(id, version, &new);
            if is_hinted {
                next.hint = there.hint;
            }
            assert_eq!(update(backend, there.version, next.clone()).await, "done", "{case}");
            assert_eq!(update(backend, there.version, next).await, "done", "it is there: {case}");
            let Ok(Outcome::Conflict(there)) = backend.updates(there.version, record(id, 1_000, "mine")).await else {
                panic!("{case}")
            };
            assert!(there.version == version && there.payload == new, "{case}");
            backend.touch(id, version, HOUR / 2).await.unwrap();
            assert!(payload(backend, id).await.as_deref() == Some(&new[..]), "{case}");
            if let Some(owner) = id.owner() {
                assert!(backend.creates(record(of(owner, &format!("other{version}")), 1, &new)).await.unwrap());
                let listed = backend.list(owner).await.unwrap();
                assert!(listed.len() == 2 && listed.iter().all(|record| record.payload == new), "{case}");
                assert_eq!(backend.clears(owner, Some(id)).await.unwrap(), 1, "{case}");
                assert!(payload(backend, id).await.as_deref() == Some(&new[..]), "{case}");
            }
        }
        assert!(backend.delete(id).await.unwrap());
        assert!(backend.load(id).await.unwrap().is_none());
    }
}
