//! All sessions of a namespace, read in pages and counted.

use std::collections::{BTreeMap, BTreeSet};

use jam_session::{Backend, Count, Cursor, ErrorKind, Record, RecordId, RedisBackend, RedisSessions};

use super::{
    contract::{HOUR, anonymous, create_crowd, create_visitors, of, owner, record, update},
    harness::{OfCluster, Place, Topology, binaries, binary, connected, connected_over},
    process::{Process, until},
};
use crate::store::{Plain, lasting};

crate::on_every_redis!(
    every_live_record_is_scanned_and_counted,
    what_cannot_be_read_is_left_out_of_a_scan,
    a_scan_during_writes_misses_nothing_that_stays,
    two_namespaces_are_scanned_apart,
    another_cursor_is_refused,
);

/// All records, and whether any may have been moved.
async fn scan(backend: &RedisBackend, most: usize) -> (Vec<Record>, bool) {
    let (mut all, mut moved, mut after) = (Vec::new(), false, None);
    loop {
        let page = backend.scan(after, most).await.unwrap();
        all.extend(page.records);
        moved |= page.moved;
        after = match page.next {
            Some(next) => Some(next),
            None => return (all, moved),
        };
    }
}

async fn scanned(backend: &RedisBackend, most: usize) -> BTreeSet<RecordId> {
    let (all, moved) = scan(backend, most).await;
    assert!(!moved);
    let ids: BTreeSet<RecordId> = all.iter().map(|record| record.id).collect();
    assert_eq!(ids.len(), all.len(), "each once, while nothing is written");
    ids
}

async fn every_live_record_is_scanned_and_counted(on: Topology) {
    let place = Place::new(on).unwrap();
    let (sessions, other) = (place.sessions().await, place.sessions().await);
    let backend = sessions.backend();
    assert!(scanned(backend, 10).await.is_empty());
    assert_eq!(backend.count().await.unwrap(), Count::new(0, 0));
    let mut made = BTreeMap::new();
    let (small, large) = ("x", "x".repeat(2_000));
    for at in 0..120 {
        for sid in 0..=at % 3 {
            made.insert(of(owner(&format!("u{at}")), &format!("s{sid}")), if at % 4 == 0 { &large } else { small });
        }
        made.insert(anonymous(&format!("v{at}")), if at % 4 == 0 { &large } else { small });
    }
    for (at, (id, payload)) in made.iter().enumerate() {
        let version = i64::try_from(at).unwrap() + 1;
        assert!(backend.creates(record(*id, version, payload)).await.unwrap());
    }
    let all: BTreeSet<RecordId> = made.keys().copied().collect();
    for most in [0, 1, 7, 100, usize::MAX] {
        assert_eq!(scanned(backend, most).await, all, "{most} at a time");
    }
    let (found, _) = scan(other.backend(), 50).await;
    for found in found {
        assert_eq!(&found.payload[..], made[&found.id].as_bytes());
        assert!(found.ttl > HOUR / 2 && found.ttl <= HOUR);
        assert!(found.version > 0);
    }
    let users = all.iter().filter(|id| id.owner().is_some()).count() as u64;
    assert_eq!(other.backend().count().await.unwrap(), Count::new(users, 120));
    // What a scan returns can be written.
    let page = backend.scan(None, 5).await.unwrap();
    for there in page.records {
        let mut next = record(there.id, there.version + 1_000, "y");
        next.hint = there.hint;
        assert_eq!(update(backend, there.version, next).await, "done");
    }
    // What ends is not in it, however it ends.
    let gone = [of(owner("u2"), "s1"), anonymous("v1")];
    for id in gone {
        assert!(backend.delete(id).await.unwrap());
    }
    backend.clears(owner("u5"), None).await.unwrap();
    let left = scanned(other.backend(), 33).await;
    assert!(all.difference(&left).all(|id| gone.contains(id) || id.owner() == Some(owner("u5"))));
    assert_eq!(left.len(), all.len() - 2 - 3);
    let short = [of(owner("u1"), "short"), of(owner("short"), "short"), anonymous("short")];
    for id in short {
        assert!(backend.creates(lasting(HOUR / 2, record(id, 1, "x"))).await.unwrap());
    }
    assert_eq!(scanned(backend, 33).await.len(), left.len() + 3);
    place.age(HOUR * 3 / 4);
    assert_eq!(scanned(backend, 33).await, left);
    assert_eq!(backend.count().await.unwrap(), Count::new(users - 4, 119));
}

async fn what_cannot_be_read_is_left_out_of_a_scan(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let backend = sessions.backend();
    let good = [of(owner("ada"), "good"), anonymous("good")];
    let bad = [of(owner("ada"), "bad"), of(owner("bad"), "bad"), anonymous("bad"), anonymous("worse")];
    for id in good.into_iter().chain(bad) {
        assert!(backend.creates(record(id, 1, "x")).await.unwrap());
    }
    for (server, key) in place.keys() {
        let later = "\u{3}of a later version, and as long as a head is";
        match () {
            () if key.contains("bad") && key.ends_with(":a") => drop(server.ask(&["SET", &key, later, "PX", "100000"])),
            () if key.contains("worse") => drop(server.ask(&["SET", &key, "", "PX", "100000"])),
            () if key.contains("good") => {}
            () => drop(server.ask(&["HSET", &key, bad[0].sid(), later])),
        }
    }
    assert_eq!(scanned(backend, 10).await, good.into());
    assert_eq!(backend.count().await.unwrap(), Count::new(1, 1));
    // Other types under our names.
    for (server, key) in place.keys().into_iter().filter(|(_, key)| key.contains("bad") || key.contains("worse")) {
        server.ask(&["DEL", &key]);
        server.ask(&["RPUSH", &key, "x"]);
        server.ask(&["PEXPIRE", &key, "100000"]);
    }
    assert_eq!(scanned(backend, 10).await, good.into());
    assert_eq!(backend.count().await.unwrap(), Count::new(1, 1));
    for (server, key) in place.keys() {
        server.ask(&["DEL", &key]);
    }
}

async fn a_scan_during_writes_misses_nothing_that_stays(on: Topology) {
    let place = Place::new(on).unwrap();
    let (sessions, writer) = (place.sessions().await, place.sessions().await);
    let backend = sessions.backend();
    let stay: BTreeSet<RecordId> =
        (0..150).flat_map(|at| [of(owner(&format!("u{at}")), "stays"), anonymous(&format!("v{at}"))]).collect();
    for id in &stay {
        assert!(backend.creates(record(*id, 1, "x")).await.unwrap());
    }
    let ended = [of(owner("u1"), "ended"), anonymous("ended")];
    for id in ended {
        assert!(backend.creates(record(id, 1, "x")).await.unwrap());
        assert!(backend.delete(id).await.unwrap());
    }
    let writing = tokio::spawn(async move {
        for at in 0..600 {
            let user = owner(&format!("u{}", at % 300));
            let id = of(user, "comes");
            assert!(writer.backend().creates(record(id, at, "x")).await.unwrap());
            assert!(writer.backend().creates(record(anonymous(&format!("comes{at}")), at, "x")).await.unwrap());
            if at % 300 < 150 {
                writer.backend().clears(user, Some(of(user, "stays"))).await.unwrap();
            } else {
                assert!(writer.backend().delete(id).await.unwrap());
            }
        }
    });
    while !writing.is_finished() {
        let (found, moved) = scan(backend, 20).await;
        let found: BTreeSet<RecordId> = found.iter().map(|record| record.id).collect();
        assert!(!moved && found.is_superset(&stay));
        assert!(ended.iter().all(|id| !found.contains(id)));
    }
    writing.await.unwrap();
}

async fn two_namespaces_are_scanned_apart(on: Topology) {
    let place = Place::new(on).unwrap();
    let one = place.sessions().await;
    for more in [":", ":b"] {
        let other = place.sessions_with(|builder| builder.namespace(format!("{}{more}", place.namespace))).await;
        for id in [of(owner("ada"), "other"), anonymous("other")] {
            assert!(other.backend().creates(record(id, 1, "x")).await.unwrap());
        }
        assert_eq!(scanned(other.backend(), 10).await.len(), 2);
    }
    for id in [of(owner("ada"), "one"), anonymous("one")] {
        assert!(one.backend().creates(record(id, 1, "x")).await.unwrap());
    }
    assert_eq!(scanned(one.backend(), 10).await, [of(owner("ada"), "one"), anonymous("one")].into());
    assert_eq!(one.backend().count().await.unwrap(), Count::new(1, 1));
}

async fn another_cursor_is_refused(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    for cursor in ["", "x", "1 2", "1 2 3 4", "-1 0 0", "\u{0}", "0 99999999999999999999999 0"] {
        let refused = sessions.backend().scan(Some(Cursor::new(cursor)), 10).await.unwrap_err();
        assert_eq!(refused.downcast::<jam_session::Error>().unwrap().kind(), ErrorKind::Data, "{cursor:?}");
    }
    // One that is of this form, but from elsewhere, may miss records, and says so.
    for cursor in ["0 0 0", "7 0 0", "7 12345 99"] {
        let page = sessions.backend().scan(Some(Cursor::new(cursor)), 10).await.unwrap();
        assert!(page.moved, "{cursor}");
    }
}

/// Whatever the characters of a namespace could mean in a pattern.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_no_pattern() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let namespaces = ["a", "a*", "a?", "[a]", "a\\", "*", "a:b", "ä"];
        let mut all = Vec::new();
        for namespace in namespaces {
            let sessions = connected(|| RedisSessions::builder(server.uri()).namespace(namespace)).await;
            assert!(sessions.backend().creates(record(anonymous(&format!("n{}", all.len())), 1, "x")).await.unwrap());
            all.push(sessions);
        }
        for (at, sessions) in all.iter().enumerate() {
            assert_eq!(scanned(sessions.backend(), 10).await, [anonymous(&format!("n{at}"))].into());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_very_many_sessions_is_scanned_whole() {
    const ALL: usize = 2_500;
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        create_crowd(&sessions, ALL).await;
        let backend = sessions.backend();
        assert!(backend.delete(of(owner("ada"), "s0-0")).await.unwrap());
        assert!(backend.creates(record(anonymous("one"), 1, "x")).await.unwrap());
        assert_eq!(scanned(backend, 10).await.len(), ALL);
        assert_eq!(backend.count().await.unwrap(), Count::new(ALL as u64 - 1, 1));
    }
}

/// Its cursors mean nothing to the next process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_starts_again_during_a_scan_is_noticed() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        create_visitors(sessions.backend(), 300).await;
        let page = sessions.backend().scan(None, 10).await.unwrap();
        assert!(!page.moved && page.next.is_some());
        server.signal("KILL");
        server.run(&[]);
        let after = sessions.backend().scan(page.next, 10).await.unwrap();
        assert!(after.moved);
        assert!(!scan(sessions.backend(), 10).await.1, "another scan is whole");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_during_a_scan_is_noticed() {
    if binary().is_none() {
        return;
    }
    let cluster = OfCluster::start(&[]);
    let sessions = connected(|| cluster.builder()).await;
    let backend = sessions.backend();
    create_visitors(backend, 300).await;
    assert_eq!(scanned(backend, 20).await.len(), 300);
    let page = backend.scan(None, 20).await.unwrap();
    assert!(!page.moved);
    // An empty slot of the first node goes to the last one.
    let slot = (0..5_000)
        .rev()
        .find(|slot| cluster.nodes[0].ask(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]).number() == 0);
    let (slot, target) = (slot.unwrap().to_string(), cluster.nodes[2].ask(&["CLUSTER", "MYID"]).text());
    for node in [2, 0, 1] {
        let moved = cluster.nodes[node].ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
        assert!(!moved.is_error(), "{moved:?}");
    }
    // A client may ask any of them.
    for node in &cluster.nodes {
        until("every node knows", || {
            let ranges = node.ask(&["CLUSTER", "SLOTS"]).list();
            ranges.iter().any(|range| format!("{:?}", range.clone().list()[0]).contains(&slot))
        });
    }
    let (mut after, mut moved) = (page.next, false);
    while let Some(next) = after.take() {
        let page = backend.scan(Some(next), 20).await.unwrap();
        moved = page.moved;
        assert!(moved);
        after = page.next;
    }
    assert!(moved);
    assert_eq!(scanned(backend, 20).await.len(), 300, "another scan is whole");
}

/// A connection that the application has is scanned as whatever is behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_connection_of_the_application_everything_is_scanned() {
    for on in [Topology::Server, Topology::Cluster] {
        let Some(place) = Place::new(on) else { return };
        let uris: Vec<String> = place.masters().iter().map(|master| master.uri_as("app")).collect();
        let builder = || RedisSessions::builder("redis://unused").namespace(&place.namespace);
        let sessions = connected_over(on, &uris, builder).await;
        let all: BTreeSet<RecordId> =
            (0..40).flat_map(|at| [of(owner(&format!("u{at}")), "one"), anonymous(&format!("v{at}"))]).collect();
        for id in &all {
            assert!(sessions.backend().creates(record(*id, 1, "x")).await.unwrap());
        }
        assert_eq!(scanned(sessions.backend(), 15).await, all);
        assert_eq!(sessions.backend().count().await.unwrap(), Count::new(40, 40));
    }
}

/// Sessions are scanned in so many steps that none keeps the server for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_is_about_as_large_as_it_was_asked_for() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        create_visitors(sessions.backend(), 1_000).await;
        let page = sessions.backend().scan(None, 400).await.unwrap();
        assert!((400..600).contains(&page.records.len()), "{}", page.records.len());
        // Among very many keys of others, a page may be empty.
        let fill = "for at = 1, 20000 do redis.call('SET', 'of others' .. at, 'x') end";
        server.ask(&["EVAL", fill, "0"]);
        assert_eq!(scanned(sessions.backend(), 400).await.len(), 1_000);
        let none = connected(|| RedisSessions::builder(server.uri()).namespace("none")).await;
        let first = none.backend().scan(None, 400).await.unwrap();
        assert!(first.records.is_empty() && first.next.is_some());
        assert_eq!(none.backend().count().await.unwrap(), Count::new(0, 0));
    }
}
