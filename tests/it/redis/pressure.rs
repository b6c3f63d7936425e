//! Used-up memory, and slots that are being migrated to another node.

use std::time::Duration;

use jam_session::{Backend, Cleared, ErrorKind, RedisSessions};
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    contract::{HOUR, anonymous, create_crowd, of, owner, payload, record, update},
    harness::{OfCluster, binaries, binary, connected},
    process::Process,
};
use crate::store::{Plain, lasting};

/// Under memory pressure visitors go first, and then what has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p19_sixty_thousand_visitors_sign_no_user_out() {
    for binary in binaries() {
        let server = Process::start(&binary, &["--maxmemory", "10mb", "--maxmemory-policy", "volatile-ttl"]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        let mut users = Vec::new();
        for at in 0..1_000 {
            users.push(sessions.create(format!("user {at}"), json!({"n": at})).await.unwrap());
        }
        sessions.clear("cleared").await.unwrap();
        let mut visitors = JoinSet::new();
        for part in 0..60 {
            let sessions = sessions.clone();
            visitors.spawn(async move {
                let payload = "x".repeat(300);
                for at in 0..1_000 {
                    let visitor = record(anonymous(&format!("v{part}-{at}")), 1, &payload);
                    assert!(sessions.backend().creates(lasting(HOUR, visitor)).await.unwrap());
                }
            });
        }
        visitors.join_all().await;
        assert_ne!(server.address.info("stats", "evicted_keys"), "0", "there was no pressure");
        let mut there = 0;
        for id in &users {
            there += usize::from(sessions.get(id).await.unwrap().is_some());
        }
        assert!(there >= 990, "{there} of 1000 users are signed in at {}", binary.display());
        // A login that was under way when its user was cleared is still refused.
        let keys = server.ask(&["EVAL", "local n = 0 for _, key in ipairs(redis.call('KEYS', '*')) do \
            if redis.call('TYPE', key).ok == 'hash' and redis.call('HEXISTS', key, '') == 1 then n = n + 1 end end return n", "0"]);
        assert_eq!(keys.number(), 1, "the clear is remembered");
    }
}

/// What ends something goes on when memory is used up; what begins something is refused, and leaves no key without an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_memory_is_used_up_sessions_end_and_none_begin() {
    for binary in binaries() {
        let server = Process::start(&binary, &["--maxmemory-policy", "noeviction"]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        let backend = sessions.backend();
        for round in 0..2 {
            let ids = ["one", "two", "three", "four"].map(|sid| of(owner("ada"), &format!("{sid}{round}")));
            let visitor = anonymous(&format!("visitor{round}"));
            for id in ids.into_iter().chain([visitor]) {
                assert!(
                    backend.creates(record(id, 1, &"x".repeat(if round == 0 { 10 } else { 5_000 }))).await.unwrap()
                );
            }
            server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
            assert!(backend.creates(record(of(owner("ada"), "new"), 1, "x")).await.is_err());
            assert!(backend.creates(record(of(owner("grace"), "new"), 1, "x")).await.is_err());
            assert!(backend.updates(1, record(ids[0], 2, "y")).await.is_err());
            // Who is active stays signed in.
            backend.touch(ids[0], 1, HOUR * 2).await.unwrap();
            assert!(backend.load(ids[0]).await.unwrap().unwrap().ttl > HOUR);
            assert!(backend.delete(ids[1]).await.unwrap());
            assert_eq!(update(backend, 1, lasting(Duration::ZERO, record(ids[2], 2, ""))).await, "done");
            backend.touch(ids[3], 1, Duration::ZERO).await.unwrap();
            assert!(backend.delete(visitor).await.unwrap());
            for key in server.ask(&["KEYS", "*"]).list() {
                assert!(server.ask(&["PTTL", &key.text()]).number() > 0, "{key:?} has an end");
            }
            let left = backend.list(owner("ada")).await.unwrap();
            assert_eq!(left.iter().map(|record| record.id).collect::<Vec<_>>(), [ids[0]]);
            assert_eq!(backend.clears(owner("ada"), None).await.unwrap(), 1);
            assert!(backend.list(owner("ada")).await.unwrap().is_empty());
            server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
        }
    }
}

/// A user with far more sessions than are read at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_very_many_sessions_is_listed_in_pages() {
    const ALL: usize = 3_000;
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        create_crowd(&sessions, ALL).await;
        let listed = sessions.backend().list(owner("ada")).await.unwrap();
        assert_eq!(listed.len(), ALL);
        assert_eq!(listed.iter().filter(|record| record.payload.len() == 1_500).count(), ALL / 10);
        // Above a thousand fields the count is one of fields.
        assert!(sessions.backend().clears(owner("ada"), None).await.unwrap() >= ALL as u64);
        assert!(sessions.backend().list(owner("ada")).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_slot_that_is_half_migrated_every_verb_works() {
    if binary().is_none() {
        return;
    }
    let cluster = OfCluster::start(&[]);
    for has_moved in [false, true] {
        // Connections that have not heard the time of these slots, and such that have.
        let ada = owner(&format!("ada{has_moved}"));
        let key = format!("sessions:{{{ada}}}");
        let slot = cluster.nodes[0].ask(&["CLUSTER", "KEYSLOT", &key]).number().to_string();
        let from = (slot.parse::<usize>().unwrap() * 3 / 16384).min(2);
        let (source, target) = (&cluster.nodes[from], &cluster.nodes[(from + 1) % 3]);
        let sessions = connected(|| cluster.builder_as("app")).await;
        let backend = sessions.backend();
        let (one, two) = (of(ada, "one"), of(ada, "two"));
        assert!(backend.creates(record(one, 1, "x")).await.unwrap());
        let ids = [source, target].map(|node| node.ask(&["CLUSTER", "MYID"]).text());
        assert!(!target.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids[0]]).is_error());
        assert!(!source.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids[1]]).is_error());
        if has_moved {
            let moved = source.ask(&["MIGRATE", "127.0.0.1", &target.address.port().to_string(), &key, "0", "5000"]);
            assert_eq!(moved.text(), "OK");
        }
        let stranger = connected(|| cluster.builder_as("app")).await;
        assert_eq!(payload(stranger.backend(), one).await.as_deref(), Some("x"), "moved: {has_moved}");
        assert_eq!(payload(backend, one).await.as_deref(), Some("x"));
        assert_eq!(update(backend, 1, record(one, 2, "y")).await, "done");
        backend.touch(one, 2, HOUR).await.unwrap();
        assert!(backend.creates(record(two, 1, "z")).await.unwrap());
        assert_eq!(backend.list(ada).await.unwrap().len(), 2);
        assert!(backend.delete(two).await.unwrap());
        let clear = jam_session::Clear { name: 7, by: None };
        assert!(matches!(backend.clear(ada, clear).await.unwrap(), Cleared::Done(1)));
        assert!(backend.load(one).await.unwrap().is_none());
        for node in [source, target] {
            assert!(!node.ask(&["CLUSTER", "SETSLOT", &slot, "STABLE"]).is_error());
        }
    }
}

/// A deploy that is rolled back, or another application: nobody is kept from signing in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_a_record_of_a_later_format_keeps_nobody_from_starting_again() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        let id = sessions.create("ada", json!({"n": 1})).await.unwrap();
        let key = server.ask(&["KEYS", "*"]).list()[0].text();
        let field = server.ask(&["HKEYS", &key]).list()[0].text();
        server.ask(&["HSET", &key, &field, "\u{3}of a later version, and as long as a head is"]);
        assert_eq!(sessions.get(&id).await.unwrap_err().kind(), ErrorKind::Unreadable);
        // Another one, beside it.
        let new = sessions.create("ada", json!({"n": 2})).await.unwrap();
        assert!(sessions.get(&new).await.unwrap().is_some());
        assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
        assert!(sessions.revoke("ada", &field).await.unwrap(), "it can be ended");
        // A key without a time to live is a record all the same, and gets one.
        server.ask(&["PERSIST", &key]);
        assert!(sessions.get(&new).await.unwrap().is_some());
        sessions.delete(&new).await.unwrap();
        assert!(server.ask(&["PTTL", &key]).number() > 0);
        sessions.clear("ada").await.unwrap();
        // A key of another type.
        server.ask(&["DEL", &key]);
        server.ask(&["SET", &key, "of somebody else"]);
        let new = sessions.create("ada", json!({"n": 3})).await.unwrap();
        assert!(sessions.get(&new).await.unwrap().is_some());
    }
}
