//! The terms of a login: marks, limits, and the visitor's record that it leaves.

use std::{collections::BTreeSet, time::Duration};

use jam_session::{
    Backend, BoxError, Clear, Cleared, Created, Left, Limit, Mark, Owner, Record, RecordId, RedisBackend,
    RedisSessions, Since, Terms, backend,
};
use tokio::task::JoinSet;

use super::{
    contract::{HOUR, anonymous, of, owner, payload, record, update},
    harness::{AGE, Place, Topology, WithSentinels, binaries, binary, connected},
    process::{Process, until},
    proxy::Proxy,
    wire::{Address, Wire},
};
use crate::store::{Plain, in_time, lasting, name};

crate::on_every_redis!(
    a_hundred_logins_at_once_leave_as_many_as_the_limit,
    who_was_heard_of_longest_ago_ends_first,
    a_limit_that_refuses_changes_nothing,
    what_has_ended_does_not_count,
    a_limit_that_was_lowered_is_kept_with_the_next_login,
    a_clear_makes_every_mark_from_before_it_late,
    a_mark_is_good_for_fifteen_minutes,
    a_mark_of_a_clear_that_was_forgotten_is_late,
    no_clock_that_jumps_makes_a_mark_good,
    the_first_reason_to_refuse_is_the_answer,
    a_key_of_another_type_keeps_nobody_from_signing_in,
    the_visitor_ends_with_the_login,
);

const MINUTE: Duration = Duration::from_secs(60);

/// Moves the last use of a record back by so many seconds.
const UNUSED: &str = "
    local value = redis.call('HGET', KEYS[1], ARGV[1])
    local used = string.format('%010.0f', string.sub(value, 25, 34) - ARGV[2])
    redis.call('HSET', KEYS[1], ARGV[1], string.sub(value, 1, 24) .. used .. string.sub(value, 35))";

fn limited(limit: impl Into<Limit>) -> Terms {
    Terms { limit: limit.into(), ..Terms::default() }
}

fn marked(mark: Mark) -> Terms {
    Terms { since: Some(Since::Mark(mark)), ..Terms::default() }
}

fn again(terms: Terms) -> Terms {
    Terms { retry: true, ..terms }
}

fn of_owner(place: &Place) -> (Address, String) {
    place.keys().into_iter().find(|(_, key)| !key.ends_with(":a")).unwrap()
}

fn unused(place: &Place, id: RecordId, seconds: u32) {
    let (server, key) = of_owner(place);
    let answer = server.ask(&["EVAL", UNUSED, "1", &key, id.sid(), &seconds.to_string()]);
    assert!(!answer.is_error(), "{answer:?}");
}

/// The records that ended.
async fn create(backend: &RedisBackend, id: RecordId, terms: Terms) -> BTreeSet<RecordId> {
    match backend.create(record(id, 1, "x"), terms).await.unwrap() {
        Created::Done { ended, .. } => ended.into_iter().collect(),
        other => panic!("{other:?}"),
    }
}

async fn is_late(backend: &RedisBackend, id: RecordId, mark: Mark) -> bool {
    match backend.create(record(id, 1, "x"), marked(mark)).await.unwrap() {
        Created::Done { .. } => false,
        Created::Late => {
            assert!(backend.load(id).await.unwrap().is_none());
            true
        }
        other => panic!("{other:?}"),
    }
}

async fn live(backend: &RedisBackend, owner: Owner) -> BTreeSet<RecordId> {
    backend.list(owner).await.unwrap().iter().map(|record| record.id).collect()
}

/// The records that ended, which the answer names. In a Cluster, a call that is answered late is sent again without our knowledge,
/// and the second answer names none.
async fn ends(on: Topology, backend: &RedisBackend, id: RecordId, terms: Terms) -> BTreeSet<RecordId> {
    let owner = id.owner().unwrap();
    let before = live(backend, owner).await;
    let named = create(backend, id, terms).await;
    let after = live(backend, owner).await;
    assert!(after.contains(&id), "the new one never ends");
    let ended: BTreeSet<RecordId> = before.difference(&after).copied().collect();
    assert!(named == ended || (named.is_empty() && on == Topology::Cluster), "{named:?} are named, {ended:?} ended");
    ended
}

async fn a_hundred_logins_at_once_leave_as_many_as_the_limit(on: Topology) {
    let place = Place::new(on).unwrap();
    let mut processes = Vec::new();
    for _ in 0..4 {
        processes.push(place.sessions().await);
    }
    let mut users = 0;
    in_time(async || {
        users += 1;
        let ada = owner(&format!("ada{users}"));
        let mut logins = JoinSet::new();
        for at in 0..100 {
            let sessions = processes[at % processes.len()].clone();
            logins.spawn(async move {
                let id = of(ada, &format!("s{at}"));
                let ended = create(sessions.backend(), id, limited(5)).await;
                assert!(!ended.contains(&id), "the new one never ends");
                assert!(sessions.backend().list(ada).await.unwrap().len() <= 5);
                ended.into_iter().collect::<Vec<_>>()
            });
        }
        let ended = logins.join_all().await.concat();
        let all: BTreeSet<RecordId> = (0..100).map(|at| of(ada, &format!("s{at}"))).collect();
        let left = live(processes[0].backend(), ada).await;
        assert_eq!(left.len(), 5);
        // The answers of calls that were sent again are missing, as in `ends`.
        if ended.len() < 95 && on == Topology::Cluster {
            return None;
        }
        assert_eq!(ended.len(), 95);
        assert_eq!(ended.into_iter().chain(left).collect::<BTreeSet<_>>(), all, "each has ended once, or lives");
        let last = of(ada, "last");
        assert_eq!(ends(on, processes[0].backend(), last, limited(5)).await.len(), 1);
        assert!(live(processes[1].backend(), ada).await.contains(&last));
        Some(())
    })
    .await;
}

async fn who_was_heard_of_longest_ago_ends_first(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    let [loaded, touched, updated, new] = ["loaded", "touched", "updated", "new"].map(|sid| of(ada, sid));
    for (at, id) in [touched, updated, loaded].into_iter().enumerate() {
        assert!(create(backend, id, limited(3)).await.is_empty());
        unused(&place, id, 300 - 100 * at as u32);
    }
    backend.touch(touched, 1, HOUR).await.unwrap();
    assert_eq!(update(backend, 1, record(updated, 2, "y")).await, "done");
    backend.load(loaded).await.unwrap().unwrap();
    assert_eq!(ends(on, backend, new, limited(3)).await, [loaded].into());
    // A repeat of the same login ends no other, and the one that has ended is not created again.
    assert!(create(backend, new, again(limited(3))).await.is_empty());
    assert!(backend.create(record(loaded, 1, "x"), again(Terms::default())).await.is_err());
    assert_eq!(live(backend, ada).await, [touched, updated, new].into());
    // With the same last use, the one that ends first.
    for id in [touched, updated, new] {
        backend
            .touch(id, if id == updated { 2 } else { 1 }, if id == updated { HOUR / 2 } else { HOUR })
            .await
            .unwrap();
    }
    for id in [touched, new] {
        let (server, key) = of_owner(&place);
        let used =
            |id: RecordId| server.ask(&["HGET", &key, id.sid()]).text().get(24..34).unwrap().parse::<i64>().unwrap();
        let later = used(updated) - used(id);
        server.ask(&["EVAL", UNUSED, "1", &key, id.sid(), &(-later).to_string()]);
    }
    let third = of(ada, "third");
    assert_eq!(ends(on, backend, third, limited(3)).await, [updated].into());
    // None but the new one.
    let only = of(ada, "only");
    assert_eq!(ends(on, backend, only, limited(0)).await, [touched, new, third].into());
    assert_eq!(live(backend, ada).await, [only].into());
    // Others have their own, and visitors none.
    assert!(create(backend, of(owner("grace"), "one"), limited(1)).await.is_empty());
    for sid in ["one", "two"] {
        assert!(create(backend, anonymous(sid), limited(1)).await.is_empty());
    }
}

async fn a_limit_that_refuses_changes_nothing(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    let full = |made| assert!(matches!(made, Ok(Created::Full)), "{made:?}");
    full(backend.create(record(of(ada, "none"), 1, "x"), limited(Limit::refuse(0))).await);
    for sid in ["one", "two"] {
        create(backend, of(ada, sid), limited(Limit::refuse(2))).await;
    }
    let (server, key) = of_owner(&place);
    let before = server.ask(&["HGETALL", &key]);
    for terms in [limited(Limit::refuse(2)), limited(Limit::refuse(1)), again(limited(Limit::refuse(2)))] {
        full(backend.create(record(of(ada, "three"), 1, "x"), terms).await);
    }
    assert_eq!(server.ask(&["HGETALL", &key]), before);
    // This very one is there, and a name that is taken is taken.
    create(backend, of(ada, "two"), limited(Limit::refuse(2))).await;
    let taken = backend.create(record(of(ada, "two"), 2, "x"), limited(Limit::refuse(2))).await;
    assert!(matches!(taken, Ok(Created::Taken)), "{taken:?}");
    assert!(backend.delete(of(ada, "one")).await.unwrap());
    create(backend, of(ada, "three"), limited(Limit::refuse(2))).await;
}

async fn what_has_ended_does_not_count(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    // Each has two fields.
    let large = "x".repeat(2_000);
    for sid in ["one", "two", "three"] {
        assert!(backend.creates(record(of(ada, sid), 1, &large)).await.unwrap());
    }
    backend.clears(ada, Some(of(ada, "one"))).await.unwrap();
    assert!(backend.creates(record(of(ada, "two"), 2, &large)).await.unwrap());
    for sid in ["short", "shorter"] {
        assert!(backend.creates(lasting(HOUR / 2, record(of(ada, sid), 1, &large))).await.unwrap());
    }
    place.age(HOUR / 2 + MINUTE);
    assert!(backend.creates(record(of(ada, "out"), 1, &large)).await.unwrap());
    assert!(backend.delete(of(ada, "out")).await.unwrap());
    let (server, key) = of_owner(&place);
    // One of a later format is not counted either, and not ended.
    server.ask(&["HSET", &key, of(ada, "later").sid(), "\u{3}of a later version, and as long as a head is"]);
    assert!(create(backend, of(ada, "three"), limited(3)).await.is_empty());
    assert_eq!(ends(on, backend, of(ada, "four"), limited(3)).await.len(), 1);
    assert_eq!(live(backend, ada).await.len(), 3);
    // What was looked at and is dead is gone.
    assert_eq!(server.ask(&["HEXISTS", &key, of(ada, "short").sid()]).number(), 0);
    assert_eq!(server.ask(&["HEXISTS", &key, &(of(ada, "short").sid().to_owned() + ":")]).number(), 0);
    assert_eq!(server.ask(&["HEXISTS", &key, of(ada, "later").sid()]).number(), 1);
}

async fn a_limit_that_was_lowered_is_kept_with_the_next_login(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    let large = "x".repeat(2_000);
    for at in 0..1_300 {
        let payload = if at % 100 == 0 { &large[..] } else { "x" };
        assert!(backend.creates(record(of(ada, &format!("s{at}")), 1, payload)).await.unwrap());
    }
    let new = of(ada, "new");
    assert_eq!(ends(on, backend, new, limited(5)).await.len(), 1_296);
    let left = live(backend, ada).await;
    assert!(left.len() == 5 && left.contains(&new));
    // Nothing is left of their payloads.
    let (server, key) = of_owner(&place);
    let fields = server.ask(&["HKEYS", &key]).list();
    let payloads = fields.iter().filter(|field| field.text().ends_with(':')).count();
    assert!(payloads <= 5, "{payloads}");
    assert!(server.ask(&["PTTL", &key]).number() > 0);
}

async fn a_clear_makes_every_mark_from_before_it_late(on: Topology) {
    let place = Place::new(on).unwrap();
    let (here, there) = (place.sessions().await, place.sessions().await);
    let (backend, ada) = (here.backend(), owner("ada"));
    let first = backend.mark(ada).await.unwrap();
    assert_eq!((first.clear, first.opening), (None, 0));
    assert!(place.keys().is_empty(), "it writes nothing");
    assert!(!is_late(backend, of(ada, "one"), first).await);
    for round in 0..20 {
        let before = here.backend().mark(ada).await.unwrap();
        let kept = serde_json::to_string(&before).unwrap();
        let name = name();
        let cleared = there.backend().clear(ada, Clear { name, by: None }).await;
        assert!(matches!(cleared, Ok(Cleared::Done(_))));
        // Also where another process has kept it.
        let before: Mark = serde_json::from_str(&kept).unwrap();
        assert!(is_late(there.backend(), of(ada, &format!("late{round}")), before).await);
        assert!(is_late(here.backend(), of(ada, &format!("late{round}")), first).await);
        let after = there.backend().mark(ada).await.unwrap();
        assert_eq!(after.clear, Some(name));
        assert!(!is_late(here.backend(), of(ada, &format!("time{round}")), after).await);
    }
    // Another owner is not concerned.
    assert!(!is_late(backend, of(owner("grace"), "one"), first).await);
}

async fn a_mark_is_good_for_fifteen_minutes(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    backend.clears(ada, None).await.unwrap();
    let mark = backend.mark(ada).await.unwrap();
    assert!(mark.clear.is_some());
    let taken = |ms: i64| Mark::new(mark.clear, mark.taken.saturating_add_signed(ms));
    let minute = 60_000;
    for (at, ms, late) in [
        (0, -16 * minute, true),
        (1, -14 * minute, false),
        (2, minute / 2, false),
        (3, 2 * minute, true),
        (4, i64::MIN, true),
        (5, i64::MAX, true),
    ] {
        assert_eq!(is_late(backend, of(ada, &format!("m{at}")), taken(ms)).await, late, "{ms}");
        assert_eq!(
            is_late(backend, of(owner("grace"), &format!("m{at}")), Mark::new(None, taken(ms).taken)).await,
            late
        );
    }
    assert!(is_late(backend, of(ada, "other"), mark.with_opening(7)).await, "of another store");
    // It is named for as long as that, and remembered for twice as long.
    backend.clears(ada, None).await.unwrap();
    place.age(14 * MINUTE);
    let named = backend.mark(ada).await.unwrap();
    assert!(named.clear.is_some());
    place.age(14 * MINUTE);
    assert_eq!(backend.mark(ada).await.unwrap().clear, None);
    assert!(!is_late(backend, of(ada, "named"), named).await);
    assert!(!is_late(backend, of(ada, "unnamed"), backend.mark(ada).await.unwrap()).await);
}

async fn a_mark_of_a_clear_that_was_forgotten_is_late(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    backend.clears(ada, None).await.unwrap();
    let mark = backend.mark(ada).await.unwrap();
    let (server, key) = of_owner(&place);
    server.ask(&["DEL", &key]);
    assert!(is_late(backend, of(ada, "one"), mark).await);
    assert!(!is_late(backend, of(ada, "two"), backend.mark(ada).await.unwrap()).await);
}

/// The server's clock was set back by an hour after the clear, and then forward again.
async fn no_clock_that_jumps_makes_a_mark_good(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    let before = backend.mark(ada).await.unwrap();
    backend.clears(ada, None).await.unwrap();
    let (server, key) = of_owner(&place);
    for jump in ["-3600000", "3600000"] {
        server.ask(&["EVAL", AGE, "1", &key, jump]);
        assert!(is_late(backend, of(ada, "before"), before).await);
        let after = backend.mark(ada).await.unwrap();
        assert!(after.clear.is_some());
        assert!(!is_late(backend, of(ada, &format!("after{jump}")), after).await);
    }
}

async fn the_first_reason_to_refuse_is_the_answer(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    let before = backend.mark(ada).await.unwrap();
    backend.clears(ada, None).await.unwrap();
    let mark = backend.mark(ada).await.unwrap();
    let there = of(ada, "there");
    create(backend, there, Terms::default()).await;
    assert!(create(backend, of(ada, "ended"), limited(5)).await.is_empty());
    assert!(backend.delete(of(ada, "ended")).await.unwrap());
    let answer = async |id, version, mark, limit: Limit, retry| {
        let terms = Terms { limit, retry, ..marked(mark) };
        match backend.create(record(id, version, "x"), terms).await {
            Ok(Created::Done { .. }) => "done",
            Ok(Created::Late) => "late",
            Ok(Created::Taken) => "taken",
            Ok(Created::Full) => "full",
            Ok(other) => panic!("{other:?}"),
            Err(_) => "error",
        }
    };
    let full = Limit::refuse(1);
    assert_eq!(answer(there, 1, before, full, false).await, "done");
    assert_eq!(answer(there, 2, before, full, false).await, "late");
    assert_eq!(answer(of(ada, "ended"), 1, before, full, true).await, "late");
    assert_eq!(answer(of(ada, "ended"), 1, mark, full, true).await, "error");
    assert_eq!(answer(there, 2, mark, full, false).await, "taken");
    assert_eq!(answer(of(ada, "new"), 1, mark, full, false).await, "full");
    assert_eq!(answer(of(ada, "new"), 1, mark, Limit::refuse(2), false).await, "done");
}

async fn a_key_of_another_type_keeps_nobody_from_signing_in(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    assert!(backend.creates(record(of(ada, "one"), 1, "x")).await.unwrap());
    let (server, key) = of_owner(&place);
    server.ask(&["DEL", &key]);
    server.ask(&["RPUSH", &key, "x"]);
    server.ask(&["PEXPIRE", &key, "100000"]);
    let mark = backend.mark(ada).await.unwrap();
    assert_eq!(mark.clear, None);
    let terms = Terms { limit: Limit::refuse(1), ..marked(mark) };
    assert!(create(backend, of(ada, "one"), terms).await.is_empty());
    assert_eq!(payload(backend, of(ada, "one")).await.as_deref(), Some("x"));
}

fn leaving(id: RecordId, version: i64) -> Terms {
    Terms { leaves: Some((id, version)), ..Terms::default() }
}

async fn left(backend: &RedisBackend, record: Record, terms: Terms) -> backend::Result<Left> {
    match backend.create(record, terms).await? {
        Created::Done { left, .. } => Ok(left),
        other => panic!("{other:?}"),
    }
}

async fn the_visitor_ends_with_the_login(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    let visitor = anonymous("visitor");
    assert!(backend.creates(record(visitor, 1, "x")).await.unwrap());
    let user = |at: i32| record(of(ada, &format!("u{at}")), 1, "x");
    if on == Topology::Cluster {
        // One script has one key there.
        assert!(matches!(left(backend, user(0), leaving(visitor, 1)).await, Ok(Left::NotTried)));
        assert_eq!(payload(backend, visitor).await.as_deref(), Some("x"));
        return;
    }
    assert_eq!(update(backend, 1, record(visitor, 2, "y")).await, "done");
    // Written meanwhile: the login goes on from there.
    match left(backend, user(0), leaving(visitor, 1)).await.unwrap() {
        Left::Conflict(there) => {
            assert_eq!((there.id, there.version, &there.payload[..]), (visitor, 2, &b"y"[..]));
            assert!(there.ttl > HOUR / 2 && there.ttl <= HOUR);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(payload(backend, visitor).await.as_deref(), Some("y"));
    // With any other answer nothing has changed.
    let refused = backend.create(user(1), Terms { limit: Limit::refuse(1), ..leaving(visitor, 2) }).await;
    assert!(matches!(refused, Ok(Created::Full)));
    assert!(backend.load(visitor).await.unwrap().is_some());
    assert!(matches!(left(backend, user(1), leaving(visitor, 2)).await, Ok(Left::Done)));
    assert!(backend.load(visitor).await.unwrap().is_none());
    // What was under way for it does not bring it back, and nothing of it is left.
    assert_eq!(update(backend, 2, record(visitor, 3, "z")).await, "gone");
    let (server, key) = place.keys().into_iter().find(|(_, key)| key.ends_with(":a")).unwrap();
    assert!(!server.ask(&["GET", &key]).text().contains('y'));
    assert!((1..=10_000).contains(&server.ask(&["PTTL", &key]).number()));
    for terms in [leaving(visitor, 2), again(leaving(visitor, 2)), leaving(anonymous("nobody"), 1)] {
        assert!(matches!(left(backend, user(1), terms).await, Ok(Left::Gone)));
    }
    // Also if this very record was already there.
    let other = anonymous("other");
    assert!(backend.creates(record(other, 1, "x")).await.unwrap());
    assert!(matches!(left(backend, user(1), again(leaving(other, 1))).await, Ok(Left::Done)));
    assert!(backend.load(other).await.unwrap().is_none());
    // One with an owner, a large one, and one that cannot be read are left to the caller.
    assert!(matches!(left(backend, user(2), leaving(of(ada, "u0"), 1)).await, Ok(Left::NotTried)));
    let large = anonymous("large");
    assert!(backend.creates(record(large, 1, &"x".repeat(40_000))).await.unwrap());
    assert!(matches!(left(backend, user(3), leaving(large, 2)).await, Ok(Left::NotTried)));
    assert!(matches!(left(backend, user(4), leaving(large, 1)).await, Ok(Left::Done)));
    let key = key.replace(visitor.sid(), large.sid());
    server.ask(&["SET", &key, "\u{3}later format", "PX", "100000"]);
    assert!(matches!(left(backend, user(5), leaving(large, 1)).await, Ok(Left::NotTried)));
    assert_eq!(server.ask(&["GET", &key]).text(), "\u{3}later format");
    server.ask(&["DEL", &key]);
    server.ask(&["RPUSH", &key, "x"]);
    assert!(matches!(left(backend, user(6), leaving(large, 1)).await, Ok(Left::Gone)));
    assert!(backend.load(user(6).id).await.unwrap().is_some());
    server.ask(&["DEL", &key]);
}

/// A login is refused, and ends nothing: neither another session nor the visitor's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_memory_is_used_up_a_limit_ends_nothing() {
    for binary in binaries() {
        let server = Process::start(&binary, &["--maxmemory-policy", "noeviction"]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        let (backend, ada, visitor) = (sessions.backend(), owner("ada"), anonymous("visitor"));
        for sid in ["one", "two", "three"] {
            assert!(backend.creates(record(of(ada, sid), 1, &"x".repeat(2_000))).await.unwrap());
        }
        assert!(backend.creates(record(visitor, 1, "x")).await.unwrap());
        let before = live(backend, ada).await;
        server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
        for limit in [1, 3] {
            let terms = Terms { limit: limit.into(), ..leaving(visitor, 1) };
            let refused: BoxError = backend.create(record(of(ada, "new"), 1, "x"), terms).await.unwrap_err();
            assert!(refused.to_string().contains("OOM"), "{refused}");
        }
        assert_eq!(live(backend, ada).await, before);
        assert!(backend.load(visitor).await.unwrap().is_some());
        // What is there already is told, and what it leaves ends.
        assert!(matches!(left(backend, record(of(ada, "one"), 1, "x"), leaving(visitor, 1)).await, Ok(Left::Done)));
        assert!(backend.load(visitor).await.unwrap().is_none());
        server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
        assert_eq!(create(backend, of(ada, "new"), limited(1)).await, before);
    }
}

/// The network delivers a login twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_delivered_twice_ends_nothing_more() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        let sessions = connected(|| RedisSessions::builder(proxy.uri())).await;
        let (backend, ada, visitor) = (sessions.backend(), owner("ada"), anonymous("visitor"));
        let deliver = |said: &[u8]| Wire::connect(&server.address).unwrap().send(said).unwrap().list()[0].number();
        assert!(backend.creates(record(visitor, 1, "x")).await.unwrap());
        assert!(backend.creates(record(of(ada, "one"), 1, "x")).await.unwrap());
        let one = proxy.last_request();
        let mark = backend.mark(ada).await.unwrap();
        let terms = Terms { limit: 1.into(), ..leaving(visitor, 1) };
        let terms = Terms { since: Some(Since::Mark(mark)), ..terms };
        assert_eq!(create(backend, of(ada, "two"), terms).await, [of(ada, "one")].into());
        let two = proxy.last_request();
        assert!(backend.creates(record(visitor, 5, "x")).await.unwrap());
        assert_eq!(update(backend, 5, record(visitor, 6, "y")).await, "done");
        assert!(backend.creates(record(of(ada, "three"), 1, "x")).await.unwrap());
        // The one that has ended does not come back, and nothing else ends. A machine may be so slow that the second is late.
        assert_eq!(deliver(&one), 1);
        let again = deliver(&two);
        assert!(again == 1 || again == -1, "{again}");
        assert_eq!(live(backend, ada).await, [of(ada, "two"), of(ada, "three")].into());
        assert_eq!(payload(backend, visitor).await.as_deref(), Some("y"));
        backend.clears(ada, None).await.unwrap();
        let late = deliver(&two);
        assert!(late == 4 || late == -1, "{late}");
        assert!(live(backend, ada).await.is_empty());
        // An answer that is lost is asked for again.
        let mark = backend.mark(ada).await.unwrap();
        proxy.swallow_next_answer();
        let terms = Terms { limit: 1.into(), ..marked(mark) };
        assert!(create(backend, of(ada, "four"), terms).await.is_empty());
        assert!(proxy.has_swallowed());
    }
}

/// The replica that takes over knows the last clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_outlives_a_failover() {
    if binary().is_none() {
        return;
    }
    let redis = WithSentinels::start(3);
    let sessions = connected(|| redis.builder()).await;
    let (backend, ada, grace) = (sessions.backend(), owner("ada"), owner("grace"));
    backend.clears(ada, None).await.unwrap();
    let marks = [backend.mark(ada).await.unwrap(), backend.mark(grace).await.unwrap()];
    backend.clears(grace, None).await.unwrap();
    let old = redis.master();
    let replica = redis.servers.iter().find(|server| server.address.port() != old.port()).unwrap();
    until("both clears are replicated", || replica.address.info("keyspace", "db0").contains("keys=2,"));
    until("there is another master", || redis.has_left(&old));
    let new = redis.master();
    in_time(async || {
        let made = backend.create(record(of(ada, "one"), 1, "x"), marked(marks[0])).await.ok()?;
        assert!(matches!(made, Created::Done { .. }), "{made:?}");
        // At first the old master may still be the one that is asked.
        let key = format!("sessions:{{{ada}}}");
        (new.ask(&["HEXISTS", &key, of(ada, "one").sid()]).number() == 1).then_some(())
    })
    .await;
    assert!(is_late(backend, of(grace, "one"), marks[1]).await);
}
