//! The cost of a call: commands as the server counts them, and round trips as a proxy sees them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jam_session::{Backend, Outcome, RedisSessions, Since, Terms};
use serde_json::json;

use super::{
    contract::{HOUR, anonymous, create_visitors, of, owner, record, update},
    harness::{binaries, connected},
    process::Process,
    proxy::Proxy,
};
use crate::store::{Plain, in_time, lasting};

/// Runs a call, and gives its round trips and its commands.
async fn cost<T>(server: &Process, proxy: &Proxy, call: impl Future<Output = T>) -> (usize, String) {
    server.ask(&["CONFIG", "RESETSTAT"]);
    let before = proxy.trips();
    call.await;
    let trips = proxy.trips() - before;
    let stats = server.ask(&["INFO", "commandstats"]).text();
    let mut commands = BTreeMap::new();
    for line in stats.lines() {
        if let Some((name, calls)) = line.strip_prefix("cmdstat_").and_then(|line| line.split_once(":calls=")) {
            commands.insert(name.to_owned(), calls.split(',').next().unwrap().to_owned());
        }
    }
    // What a script calls is counted as well; what it cost the network is the script.
    let sent = ["evalsha", "eval", "get", "getrange", "hget", "hmget", "hscan", "hkeys", "scan", "time"];
    let is_script = commands.contains_key("evalsha") || commands.contains_key("eval");
    let sent = sent.iter().filter(|name| !is_script || name.starts_with("eval"));
    let counted: Vec<String> = sent.filter_map(|name| Some(format!("{name} {}", commands.get(*name)?))).collect();
    (trips, counted.join(", "))
}

/// The same of a call right after another one, which tells the server's time: a second later it would be asked for again.
async fn cost_after<A, T>(
    server: &Process,
    proxy: &Proxy,
    first: impl AsyncFn() -> A,
    call: impl AsyncFn() -> T,
) -> (usize, String) {
    in_time(async || {
        let begun = Instant::now();
        first().await;
        let cost = cost(server, proxy, call()).await;
        (begun.elapsed() < Duration::from_millis(500)).then_some(cost)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_verb_is_one_trip() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        let sessions = connected(|| RedisSessions::builder(proxy.uri())).await;
        let backend = sessions.backend();
        let one_script = (1, "evalsha 1".to_owned());
        for id in [of(owner("ada"), "one"), anonymous("one")] {
            let read = if id.owner().is_some() { "hmget 1" } else { "get 1" };
            assert_eq!(cost(&server, &proxy, backend.creates(record(id, 1, "x"))).await, one_script);
            let touch = async || backend.touch(id, 1, HOUR).await.unwrap();
            let load = cost_after(&server, &proxy, touch, async || backend.load(id).await);
            assert_eq!(load.await, (1, read.to_owned()));
            assert_eq!(cost(&server, &proxy, update(backend, 1, record(id, 2, "x"))).await, one_script);
            assert_eq!(cost(&server, &proxy, update(backend, 1, record(id, 3, "x"))).await, one_script);
            assert_eq!(cost(&server, &proxy, backend.touch(id, 2, HOUR)).await, one_script);
            let logout = lasting(Duration::ZERO, record(id, 4, ""));
            assert_eq!(cost(&server, &proxy, update(backend, 2, logout)).await, one_script);
            assert_eq!(cost(&server, &proxy, backend.delete(id)).await, one_script);
        }
        for at in 0..3 {
            assert!(backend.creates(record(of(owner("ada"), &format!("s{at}")), 1, "x")).await.unwrap());
        }
        // A login: the mark, and then all of it in one step.
        let (ada, visitor) = (owner("ada"), anonymous("visitor"));
        assert!(backend.creates(record(visitor, 1, "x")).await.unwrap());
        let touch = async || backend.touch(visitor, 1, HOUR).await.unwrap();
        let mark = cost_after(&server, &proxy, touch, async || backend.mark(ada).await);
        assert_eq!(mark.await, (1, "hget 1".to_owned()));
        let since = Some(Since::Mark(backend.mark(ada).await.unwrap()));
        for (at, limit) in [4, 3, 3].into_iter().enumerate() {
            let login = record(of(ada, &format!("login{at}")), 1, "x");
            let terms = Terms { since: since.clone(), limit: limit.into(), leaves: Some((visitor, 1)), retry: false };
            assert_eq!(cost(&server, &proxy, backend.create(login, terms)).await, one_script);
        }
        let touch = async || backend.touch(visitor, 1, HOUR).await.unwrap();
        let list = cost_after(&server, &proxy, touch, async || backend.list(ada).await);
        assert_eq!(list.await, (1, "hscan 1".to_owned()));
        assert_eq!(cost(&server, &proxy, backend.clears(owner("nobody"), None)).await, one_script);
        assert_eq!(cost(&server, &proxy, backend.clears(owner("ada"), None)).await, one_script);
        server.ask(&["FLUSHALL"]);
        assert!(backend.creates(record(of(ada, "one"), 1, "x")).await.unwrap());
        create_visitors(backend, 60).await;
        // Two trips for up to a hundred Redis keys: the visitors, and a user.
        let all = (2, "getrange 60, hscan 1, scan 1, time 1".to_owned());
        assert_eq!(cost(&server, &proxy, backend.scan(None, 1_000)).await, all);
        assert_eq!(cost(&server, &proxy, backend.count()).await, all);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_about_a_large_record_is_read_past_the_script() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        let backend = sessions.backend();
        for (id, size) in [(of(owner("ada"), "small"), 32_000), (of(owner("ada"), "large"), 33_000)] {
            let payload = "x".repeat(size);
            assert!(backend.creates(record(id, 1, &payload)).await.unwrap());
            assert_eq!(update(backend, 1, record(id, 2, &payload)).await, "done");
            // A large one is read past the script, and by another one if the time was not heard of for a second.
            let looked = in_time(async || {
                server.ask(&["CONFIG", "RESETSTAT"]);
                let begun = Instant::now();
                let Ok(Outcome::Conflict(there)) = backend.updates(1, record(id, 3, "mine")).await else {
                    panic!("{size}")
                };
                let is_in_time = begun.elapsed() < Duration::from_millis(500);
                assert_eq!((there.id, there.version, &there.payload[..]), (id, 2, payload.as_bytes()));
                assert!(there.ttl > HOUR / 2 && there.ttl <= HOUR);
                is_in_time.then(|| server.address.info("commandstats", "cmdstat_hmget"))
            })
            .await;
            assert_eq!(looked.starts_with("calls=1,"), size > 32_768, "{looked}");
            // What was written is recognized all the same.
            assert_eq!(update(backend, 1, record(id, 2, &payload)).await, "done");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_costs_what_its_records_cost() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        let sessions = connected(|| RedisSessions::builder(proxy.uri())).await;
        let before = proxy.trips();
        let id = sessions.create("ada", json!({})).await.unwrap();
        assert_eq!(proxy.trips() - before, 1);
        for _ in 0..5 {
            sessions.get(&id).await.unwrap().unwrap();
        }
        assert_eq!(proxy.trips() - before, 6, "reading it writes nothing");
        sessions.update(&id, json!({"a": 1})).await.unwrap();
        assert_eq!(proxy.trips() - before, 8, "a load, and an update");
        let id = sessions.rework(&id).await.unwrap();
        assert_eq!(proxy.trips() - before, 10, "a load, and an update");
        sessions.delete(&id).await.unwrap();
        assert_eq!(proxy.trips() - before, 12, "a load, and an update");
        // None of these is an ID.
        assert!(sessions.get("not an id").await.unwrap().is_none());
        assert_eq!(proxy.trips() - before, 12);
    }
}
