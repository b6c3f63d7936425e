//! Outages, slow and full servers, and dead connections: each may cause an error, but never "no session".

use std::time::{Duration, Instant};

use jam_session::{Backend, BoxError, ErrorKind, RecordId, RedisBackend, RedisSessions};
use serde_json::json;

use super::{
    contract::{HOUR, anonymous, of, owner, payload, record, update},
    harness::{OfCluster, Place, Topology, binaries, connected, patient},
    process::{Process, until},
    proxy::Proxy,
    replays::scripts_run,
    wire::{Address, Reply},
};
use crate::store::{PATIENCE, Plain, eventually, in_time, lasting};

crate::on_every_redis!(forgotten_scripts_are_told_again, a_runtime_that_stands_still_is_left_at_the_first_call);

/// Sessions whose operations have so little time that a test can wait until it is over; what has to succeed may not be asked of
/// them.
pub async fn brief(uri: String) -> RedisSessions {
    in_time(async || RedisSessions::builder(&uri).deadline(Duration::from_millis(200)).connect().await.ok()).await
}

/// Sessions at that server with time for what has to succeed.
async fn direct(server: &Process) -> RedisSessions {
    connected(|| RedisSessions::builder(server.uri())).await
}

/// Asks again until it is answered, and gives that answer. Nothing else may be told in between but an error.
pub async fn recovered(backend: &RedisBackend, id: RecordId) -> Option<String> {
    let begun = Instant::now();
    loop {
        match backend.load(id).await {
            Ok(record) => return record.map(|record| String::from_utf8(record.payload.to_vec()).unwrap()),
            Err(error) => assert!(begun.elapsed() < PATIENCE, "it did not recover: {error}"),
        }
    }
}

async fn forgotten_scripts_are_told_again(on: Topology) {
    let place = Place::new(on).unwrap();
    let sessions = place.sessions().await;
    let id = of(owner("ada"), "one");
    let flush = || place.masters().iter().for_each(|master| drop(master.ask(&["SCRIPT", "FLUSH"])));
    for version in 0..3 {
        flush();
        assert!(sessions.backend().creates(record(id, version * 10, "x")).await.unwrap());
        flush();
        assert_eq!(update(sessions.backend(), version * 10, record(id, version * 10 + 1, "y")).await, "done");
        flush();
        sessions.backend().touch(id, version * 10 + 1, HOUR).await.unwrap();
        flush();
        assert!(sessions.backend().delete(id).await.unwrap());
        flush();
        assert_eq!(sessions.backend().clears(owner("ada"), None).await.unwrap(), 0);
    }
}

/// Whether a call failed for want of time, and for nothing else.
pub fn is_too_slow(error: &BoxError) -> bool {
    error.to_string().contains("did not answer in time")
}

/// The answer. `None` if there was no time for one, and the case has to be tried again.
pub fn in_time_or_none<T>(answer: Result<T, BoxError>) -> Option<T> {
    match answer {
        Err(error) if is_too_slow(&error) => None,
        answer => Some(answer.unwrap()),
    }
}

/// The servers are this test's own.
pub async fn killed_connections_are_replaced(masters: Vec<Address>, backend: &RedisBackend) {
    let id = of(owner("ada"), "killed");
    assert!(in_time(async || in_time_or_none(backend.creates(record(id, 1, "x")).await)).await);
    // The connection of a Cluster loses some calls when it is too slow to connect again.
    let is_too_slow = |error: &BoxError| {
        is_too_slow(error) || (masters.len() > 1 && error.to_string() == "the connection to Redis was lost")
    };
    for _ in 0..5 {
        for master in &masters {
            assert!(!master.ask(&["CLIENT", "KILL", "TYPE", "normal"]).is_error());
        }
        // The same call that finds it dead; a machine may be too slow for that, and then it is asked again.
        let loaded = in_time(async || match backend.load(id).await {
            Err(error) if is_too_slow(&error) => None,
            loaded => Some(loaded.unwrap()),
        });
        assert_eq!(loaded.await.unwrap().payload, "x");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_connection_is_replaced_within_the_call() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        killed_connections_are_replaced(vec![server.address.clone()], sessions.backend()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_killed_is_away_and_then_there_again() {
    for binary in binaries() {
        let server = Process::start(&binary, &["--appendonly", "yes", "--appendfsync", "always"]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        let id = of(owner("ada"), "one");
        assert!(sessions.backend().creates(record(id, 1, "x")).await.unwrap());
        server.signal("KILL");
        until("it is gone", || server.ask(&["PING"]).is_error());
        assert!(sessions.backend().load(id).await.is_err());
        assert!(sessions.backend().creates(record(anonymous("two"), 1, "x")).await.is_err());
        assert!(sessions.backend().list(owner("ada")).await.is_err());
        server.run(&[]);
        // What was acknowledged is there, if the server keeps it.
        assert_eq!(recovered(sessions.backend(), id).await.as_deref(), Some("x"));
        assert_eq!(update(sessions.backend(), 1, record(id, 2, "y")).await, "done");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_restarted_while_nobody_asked_is_found_again() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        server.signal("KILL");
        until("it is gone", || server.ask(&["PING"]).is_error());
        server.run(&[]);
        // The first call already: its connection is dead, the next one is not.
        assert!(sessions.backend().load(anonymous("one")).await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_is_waited_for_no_longer_than_the_deadline() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = brief(server.uri()).await;
        let id = of(owner("ada"), "one");
        assert!(direct(&server).await.backend().creates(record(id, 1, "x")).await.unwrap());
        server.signal("STOP");
        // More than enough silences for the connection to be given up.
        for _ in 0..5 {
            let (load, late) = tokio::join!(
                sessions.backend().load(id),
                sessions.backend().creates(record(anonymous("late"), 1, "x"))
            );
            assert!(load.is_err() && late.is_err());
        }
        let error =
            sessions.get("AAAAAAAAQACAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        server.signal("CONT");
        assert_eq!(recovered(sessions.backend(), id).await.as_deref(), Some("x"));
        // All that was sent meanwhile came too late.
        assert_eq!(recovered(sessions.backend(), anonymous("late")).await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_went_silent_is_replaced() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let proxy = Proxy::before(&server.address).await;
        // Three times that much, and a connection that is in order would be given up as well.
        let builder = RedisSessions::builder(proxy.uri()).deadline(Duration::from_secs(1));
        let sessions = builder.lazy(true).connect().await.unwrap();
        let id = of(owner("ada"), "one");
        assert!(direct(&server).await.backend().creates(record(id, 1, "x")).await.unwrap());
        assert_eq!(recovered(sessions.backend(), id).await.as_deref(), Some("x"));
        let before = proxy.connections();
        proxy.freeze();
        assert!(sessions.backend().load(id).await.is_err());
        assert_eq!(recovered(sessions.backend(), id).await.as_deref(), Some("x"));
        // An attempt that takes too long counts as well.
        assert!(proxy.connections() > before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_silences_of_a_server_are_enough_whatever_they_are_about() {
    let Some(binary) = binaries().into_iter().next() else { return };
    let server = Process::start(&binary, &[]);
    // An attempt to connect that took too long may still come to the proxy later.
    let (proxy, sessions) = in_time(async || {
        let proxy = Proxy::before(&server.address).await;
        let builder = RedisSessions::builder(proxy.uri()).deadline(Duration::from_millis(200));
        let sessions = builder.connect().await.ok()?;
        sessions.backend().load(anonymous("warm")).await.is_ok().then_some((proxy, sessions))
    })
    .await;
    let before = proxy.connections();
    proxy.freeze();
    // Each in another slot.
    for at in 0..3 {
        assert_eq!(proxy.connections(), before);
        assert!(sessions.backend().load(of(owner(&format!("u{at}")), "one")).await.is_err());
    }
    until("another connection is made", || proxy.connections() > before);
    assert_eq!(recovered(sessions.backend(), anonymous("warm")).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_silences_of_a_node_are_enough_while_the_others_answer() {
    if binaries().is_empty() {
        return;
    }
    let redis = OfCluster::start(&[]);
    let connect = || redis.builder().deadline(Duration::from_millis(200)).connect();
    let sessions = in_time(async || connect().await.ok()).await;
    let slot = |id: RecordId| {
        let key = format!("{{{}}}", id.owner().unwrap());
        usize::try_from(redis.nodes[0].ask(&["CLUSTER", "KEYSLOT", &key]).number()).unwrap()
    };
    let on_node = |node: usize| {
        let ids = (0..).map(|at| of(owner(&format!("u{at}")), "one"));
        ids.filter(move |id| (16384 * node / 3..16384 * (node + 1) / 3).contains(&slot(*id)))
    };
    let connections = || {
        let list = redis.nodes[0].ask(&["CLIENT", "LIST"]).text();
        let ours = list.lines().filter(|line| line.contains("user=app"));
        ours.filter_map(|line| line.strip_prefix("id=")?.split(' ').next()?.parse::<u64>().ok()).max()
    };
    let healthy = on_node(0).next().unwrap();
    assert_eq!(recovered(sessions.backend(), healthy).await, None);
    let before = connections();
    redis.nodes[1].signal("STOP");
    for id in on_node(1).take(3) {
        assert!(sessions.backend().load(id).await.is_err());
        let _ = sessions.backend().load(healthy).await;
    }
    until("another connection is made", || connections() > before);
    redis.nodes[1].signal("CONT");
    assert_eq!(recovered(sessions.backend(), on_node(1).next().unwrap()).await, None);
}

/// For as long as it is not blocked on, nothing in it runs, though it is still there.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn a_runtime_that_stands_still_is_left_at_the_first_call(on: Topology) {
    let test = move || {
        let place = Place::new(on).unwrap();
        let still = runtime();
        let sessions = still.block_on(place.sessions());
        let loaded = runtime().block_on(sessions.backend().load(anonymous("one")));
        assert!(loaded.unwrap().is_none());
        // The connection is the second one's now, which is gone.
        let created = runtime().block_on(sessions.backend().creates(record(anonymous("one"), 1, "x")));
        assert!(created.unwrap());
        drop(still);
    };
    tokio::task::spawn_blocking(test).await.unwrap();
}

#[test]
fn an_attempt_to_connect_on_a_runtime_that_stands_still_is_made_by_another() {
    let Some(binary) = binaries().into_iter().next() else { return };
    let server = Process::start(&binary, &[]);
    let serving = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let proxy = serving.block_on(Proxy::before(&server.address));
    let still = runtime();
    let sessions = still.block_on(connected(|| RedisSessions::builder(proxy.uri())));
    server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
    proxy.freeze_all();
    // It connects, hears nothing, and is given up halfway.
    still.block_on(async {
        let load = sessions.backend().load(anonymous("one"));
        assert!(tokio::time::timeout(Duration::from_millis(100), load).await.is_err());
    });
    proxy.thaw();
    assert!(runtime().block_on(sessions.backend().load(anonymous("one"))).unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_with_less_patience_than_the_deadline_is_counted_too() {
    let Some(binary) = binaries().into_iter().next() else { return };
    let server = Process::start(&binary, &[]);
    let proxy = Proxy::before(&server.address).await;
    let builder = RedisSessions::builder(proxy.uri()).request_time(Duration::from_millis(500));
    let sessions = builder.lazy(true).connect().await.unwrap();
    let id = direct(&server).await.create("ada", json!({})).await.unwrap();
    let answers = async || sessions.get(&id).await.is_ok();
    eventually(answers).await;
    proxy.freeze();
    eventually(answers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_one_rebuild() {
    let Some(binary) = binaries().into_iter().next() else { return };
    let server = Process::start(&binary, &[]);
    assert!(direct(&server).await.backend().creates(record(anonymous("one"), 1, "x")).await.unwrap());
    // Where one of them has no time for that, it is another connection, too.
    in_time(async || {
        let proxy = Proxy::before(&server.address).await;
        let sessions = patient(RedisSessions::builder(proxy.uri())).connect().await.ok()?;
        in_time_or_none(sessions.backend().load(anonymous("one")).await)?;
        server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let sessions = sessions.clone();
            callers.spawn(async move { sessions.backend().load(anonymous("one")).await });
        }
        let answers = callers.join_all().await.into_iter().map(in_time_or_none).collect::<Option<Vec<_>>>()?;
        assert!(answers.into_iter().all(|there| there.expect("it is there").payload == "x"));
        assert_eq!(proxy.connections(), 2);
        Some(())
    })
    .await;
}

#[test]
fn a_runtime_that_ends_in_the_middle_ends() {
    let Some(binary) = binaries().into_iter().next() else { return };
    let server = Process::start(&binary, &[]);
    let (ended, all) = std::sync::mpsc::channel();
    let uri = server.uri();
    std::thread::spawn(move || {
        for round in 0..60 {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let sessions = runtime.block_on(connected(|| RedisSessions::builder(&uri)));
            for caller in 0..8 {
                let sessions = sessions.clone();
                runtime.spawn(async move {
                    for at in 0.. {
                        let id = of(owner("ada"), &format!("{round}-{caller}-{at}"));
                        let _ = sessions.backend().creates(record(id, 1, "x")).await;
                        let _ = sessions.backend().clears(owner("ada"), None).await;
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(5));
            drop(runtime);
            // What is left of them makes itself a connection in the next runtime.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            assert_eq!(runtime.block_on(recovered(sessions.backend(), anonymous("none"))), None);
        }
        ended.send(()).unwrap();
    });
    all.recv_timeout(2 * PATIENCE).expect("it hangs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_harms_no_other() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        let ids: Vec<RecordId> = (0..50).map(|at| anonymous(&format!("s{at}"))).collect();
        for (at, id) in ids.iter().enumerate() {
            assert!(sessions.backend().creates(record(*id, 1, &at.to_string())).await.unwrap());
        }
        for (at, id) in ids.iter().enumerate().cycle().take(300) {
            let wait = Duration::from_micros(7 * u64::try_from(at).unwrap());
            let _ = tokio::time::timeout(wait, sessions.backend().load(ids[(at + 1) % ids.len()])).await;
            assert_eq!(payload(sessions.backend(), *id).await, Some(at.to_string()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_takes_nothing_in_and_still_lets_sessions_end() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        let backend = sessions.backend();
        let ids = [of(owner("ada"), "one"), anonymous("one"), of(owner("ada"), "two"), anonymous("two")];
        for id in ids {
            assert!(backend.creates(record(id, 1, "x")).await.unwrap());
        }
        server.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
        server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
        for id in ids {
            let error = backend.updates(1, record(id, 2, "y")).await.unwrap_err();
            assert!(error.to_string().ends_with("OOM"), "{error}");
            assert_eq!(payload(backend, id).await.as_deref(), Some("x"));
            backend.touch(id, 1, HOUR).await.unwrap();
        }
        let error = backend.creates(record(anonymous("new"), 1, "x")).await.unwrap_err();
        assert!(error.to_string().ends_with("OOM"), "{error}");
        // Logouts, of both kinds.
        for id in &ids[..2] {
            assert!(backend.delete(*id).await.unwrap());
        }
        let out = |id| lasting(Duration::ZERO, record(id, 2, "out"));
        assert_eq!(update(backend, 1, out(ids[3])).await, "done");
        assert_eq!(backend.clears(owner("ada"), None).await.unwrap(), 1);
        for id in ids {
            assert!(backend.load(id).await.unwrap().is_none());
        }
        assert_eq!(backend.clears(owner("nobody"), None).await.unwrap(), 0);
        server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
        assert!(backend.creates(record(ids[0], 3, "z")).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_not_written_to() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = direct(&server).await;
        let backend = sessions.backend();
        let id = of(owner("ada"), "one");
        assert!(backend.creates(record(id, 1, "x")).await.unwrap());
        server.ask(&["REPLICAOF", "127.0.0.1", "1"]);
        for verb in [backend.updates(1, record(id, 2, "y")).await.map(drop), backend.delete(id).await.map(drop)] {
            let error = verb.unwrap_err();
            assert!(error.to_string().ends_with("READONLY"), "{error}");
        }
        // And not read from, if it says that it is behind.
        server.ask(&["CONFIG", "SET", "replica-serve-stale-data", "no"]);
        assert!(backend.load(id).await.unwrap_err().to_string().ends_with("MASTERDOWN"));
        assert!(backend.list(owner("ada")).await.is_err());
        server.ask(&["REPLICAOF", "NO", "ONE"]);
        assert_eq!(recovered(backend, id).await.as_deref(), Some("x"));
        assert_eq!(update(backend, 1, record(id, 2, "y")).await, "done");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_without_its_replicas_takes_nothing() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = direct(&server).await;
        let id = of(owner("ada"), "one");
        assert!(sessions.backend().creates(record(id, 1, "x")).await.unwrap());
        server.ask(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
        let error = sessions.backend().updates(1, record(id, 2, "y")).await.unwrap_err();
        assert!(error.to_string().ends_with("NOREPLICAS"), "{error}");
        assert_eq!(payload(sessions.backend(), id).await.as_deref(), Some("x"));
        server.ask(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
        assert_eq!(update(sessions.backend(), 1, record(id, 2, "y")).await, "done");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_still_loads_its_data_is_not_empty() {
    for binary in binaries() {
        let server = Process::start(&binary, &["--appendonly", "yes", "--rdbcompression", "no"]);
        let sessions = direct(&server).await;
        let id = of(owner("ada"), "one");
        assert!(sessions.backend().creates(record(id, 1, "x")).await.unwrap());
        // It answers while it loads, but only after each two megabytes.
        for at in 0..40 {
            server.ask(&["SET", &format!("other{at}"), &"x".repeat(200_000)]);
        }
        server.ask(&["CONFIG", "SET", "auto-aof-rewrite-percentage", "0"]);
        until("it is rewritten", || {
            server.ask(&["BGREWRITEAOF"]);
            server.address.info("persistence", "aof_base_size") != "0"
                && server.address.info("persistence", "aof_rewrite_in_progress") == "0"
                && server.address.info("persistence", "aof_last_bgrewrite_status") == "ok"
        });
        server.signal("KILL");
        until("it is gone", || server.ask(&["PING"]).is_error());
        server.run_without_waiting(&["--key-load-delay", "20000"]);
        until("it listens", || match server.ask(&["PING"]) {
            Reply::Error(error) => error.starts_with("LOADING"),
            _ => true,
        });
        assert_eq!(recovered(sessions.backend(), id).await.as_deref(), Some("x"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_none_is_an_error() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = direct(&server).await;
        let id = of(owner("ada"), "one");
        assert!(sessions.backend().creates(record(id, 1, "x")).await.unwrap());
        server.ask(&["ACL", "SETUSER", "default", "-hmget", "-hscan"]);
        let error = sessions.backend().load(id).await.unwrap_err();
        assert!(error.to_string().ends_with("NOPERM"), "{error}");
        assert!(sessions.backend().list(owner("ada")).await.is_err());
        let printed = format!("{error} {error:?}");
        assert!(!printed.contains(id.sid()) && !printed.contains("sessions"), "{printed}");
        server.ask(&["ACL", "SETUSER", "default", "+hmget", "+hscan"]);
        assert_eq!(payload(sessions.backend(), id).await.as_deref(), Some("x"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_are_sent_whole_only_when_they_must_be() {
    for binary in binaries() {
        let server = Process::start(&binary, &[]);
        let sessions = connected(|| RedisSessions::builder(server.uri())).await;
        // The self-test sends one as a whole, to see that this may be done.
        server.ask(&["CONFIG", "RESETSTAT"]);
        assert!(sessions.backend().creates(record(anonymous("one"), 1, "x")).await.unwrap());
        assert_eq!(scripts_run(&server), 1);
        assert!(!server.address.info("commandstats", "cmdstat_eval").contains("calls="));
    }
}
