//! Failovers, with Sentinel and in a Cluster, under load.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use jam_session::{Backend, Builder, Outcome, RecordId, RedisBackend, RedisServer, RedisSessions};
use tokio::{task::JoinSet, time::sleep};

use super::{
    contract::{anonymous, of, owner, record, update},
    faults::{killed_connections_are_replaced, recovered},
    harness::{OfCluster, WithSentinels, binary, connected},
    process::until,
    wire::{Address, Reply},
};
use crate::store::{PATIENCE, Plain, in_time};

/// With as much time for an operation as there is by default: a failover is longer.
async fn connect(builder: impl Fn() -> Builder<RedisServer>) -> RedisSessions {
    in_time(async || builder().deadline(Duration::from_millis(750)).connect().await.ok()).await
}

/// Writers, each to a record of its own, that note what was acknowledged.
struct Load {
    sessions: RedisSessions,
    ids: Vec<RecordId>,
    acknowledged: Arc<Mutex<BTreeMap<RecordId, i64>>>,
    enough: Arc<AtomicBool>,
    writers: JoinSet<()>,
}

impl Load {
    async fn on(sessions: RedisSessions) -> Self {
        let ids: Vec<RecordId> =
            (0..12).map(|at| of(owner(&format!("u{at}")), "one")).chain([anonymous("two")]).collect();
        let mut load =
            Self { sessions, ids, acknowledged: Arc::default(), enough: Arc::default(), writers: JoinSet::new() };
        for id in load.ids.clone() {
            // Whether it was the first or a later try that is there.
            in_time(async || load.sessions.backend().creates(record(id, 0, "0")).await.ok()).await;
            load.acknowledged.lock().unwrap().insert(id, 0);
            let (sessions, enough) = (load.sessions.clone(), Arc::clone(&load.enough));
            let acknowledged = Arc::clone(&load.acknowledged);
            load.writers.spawn(async move {
                let mut at = 0;
                while !enough.load(SeqCst) {
                    at = write(sessions.backend(), id, at).await;
                    acknowledged.lock().unwrap().insert(id, at);
                    sleep(Duration::from_millis(2)).await;
                }
            });
        }
        load
    }

    /// Stops, and gives what was acknowledged and what is there, for each record.
    async fn stop(mut self) -> Vec<(i64, Option<i64>)> {
        self.enough.store(true, SeqCst);
        while let Some(writer) = self.writers.join_next().await {
            writer.unwrap();
        }
        let mut pairs = Vec::new();
        for id in &self.ids {
            let there = recovered(self.sessions.backend(), *id).await.map(|text| text.parse().unwrap());
            pairs.push((self.acknowledged.lock().unwrap()[id], there));
        }
        pairs
    }

    fn sum(&self) -> i64 {
        self.acknowledged.lock().unwrap().values().sum()
    }

    /// Waits until every record was written to anew.
    fn goes_on(&self) {
        let before = self.acknowledged.lock().unwrap().clone();
        let is_further = |(id, at): (&RecordId, &i64)| *at > before[id];
        until("writing goes on", || self.acknowledged.lock().unwrap().iter().all(is_further));
    }
}

/// Writes the next number, over the last one or what a failover has left, and repeats until that is acknowledged.
async fn write(backend: &RedisBackend, id: RecordId, last: i64) -> i64 {
    let begun = Instant::now();
    let (mut expected, next) = (last, last + 1);
    loop {
        assert!(begun.elapsed() < PATIENCE, "it did not recover");
        match backend.updates(expected, record(id, next, &next.to_string())).await {
            Ok(Outcome::Done) => return next,
            Ok(Outcome::Conflict(there)) => expected = there.version,
            // A failover may take back what was acknowledged, but the record was there long before.
            Ok(other) => panic!("it is {other:?}"),
            // Slower than a storm.
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_by_hand_is_followed_under_load() {
    if binary().is_none() {
        return;
    }
    let redis = WithSentinels::start(3);
    let sessions = connect(|| redis.builder()).await;
    let patient = connected(|| redis.builder()).await;
    killed_connections_are_replaced(vec![redis.master()], patient.backend()).await;
    let load = Load::on(sessions).await;
    let old = redis.master();
    until("all is replicated", || redis.servers[1].address.info("keyspace", "db0").contains("keys=14,"));
    until("there is another master", || redis.has_left(&old));
    load.goes_on();
    // What becomes of the old one is up to the sentinels, and may take them a minute on a busy machine.
    let new = redis.master();
    assert_eq!(new.info("replication", "role"), "master");
    let scripts = || new.info("commandstats", "cmdstat_evalsha") + &new.info("commandstats", "cmdstat_eval");
    let before = scripts();
    until("it is the new one that is written to", || scripts() != before);
    load.goes_on();
    // Replication lags: what was acknowledged just before may be lost, but nothing is invented, and later writes stay.
    for (acknowledged, there) in load.stop().await {
        assert_eq!(there, Some(acknowledged));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_whole_though_the_master_changes_in_the_middle() {
    if binary().is_none() {
        return;
    }
    let redis = WithSentinels::start(3);
    let sessions = connect(|| redis.builder()).await;
    let (backend, ada) = (sessions.backend(), owner("ada"));
    // More than one page.
    let ids: Vec<RecordId> = (0..2_500).map(|at| of(ada, &format!("s{at}"))).collect();
    for some in ids.chunks(100) {
        let creates = some.iter().map(|id| in_time(async || backend.creates(record(*id, 1, "x")).await.ok()));
        join_all(creates).await;
    }
    let old = redis.master();
    let key = format!("sessions:{{{ada}}}");
    until("the replica has all", || redis.servers[1].ask(&["HLEN", &key]) == Reply::Number(2_500));
    // Until there is another master, and once more with it.
    let (begun, mut is_over) = (Instant::now(), false);
    loop {
        let was_over = is_over;
        is_over = is_over || redis.has_left(&old);
        assert!(begun.elapsed() < PATIENCE, "there is no other master, or it does not answer");
        match backend.list(ada).await {
            Ok(listed) => {
                assert_eq!(listed.len(), 2_500);
                if was_over {
                    break;
                }
            }
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_dies_is_followed_by_its_replica() {
    if binary().is_none() {
        return;
    }
    let redis = WithSentinels::start(3);
    let sessions = connect(|| redis.builder()).await;
    let load = Load::on(sessions.clone()).await;
    let old = redis.master();
    until("all is replicated", || redis.servers[1].address.info("keyspace", "db0").contains("keys=13,"));
    redis.process(&old).signal("KILL");
    redis.lose_patience();
    until("there is another master", || redis.master().port() != old.port());
    load.goes_on();
    // The sentinel that answered so far dies too.
    redis.sentinels[0].signal("KILL");
    redis.servers[1].ask(&["CLIENT", "KILL", "TYPE", "normal"]);
    load.goes_on();
    for (acknowledged, there) in load.stop().await {
        assert_eq!(there, Some(acknowledged));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_and_then_a_frozen_master_of_a_cluster_are_replaced_under_load() {
    if binary().is_none() {
        return;
    }
    let redis = OfCluster::start(&["--cluster-require-full-coverage", "no"]);
    let sessions = connect(|| redis.builder()).await;
    let load = Load::on(sessions.clone()).await;
    let patient = connected(|| redis.builder()).await;
    killed_connections_are_replaced(redis.masters(), patient.backend()).await;
    let has_replica = |address: &Address| address.info("replication", "connected_slaves") == "1";
    until("all masters have replicas", || redis.nodes[..3].iter().all(|node| has_replica(&node.address)));

    redis.nodes[0].signal("KILL");
    let took_over = |at: usize| redis.nodes[at].address.info("replication", "role") == "master";
    redis.take_over(&[1, 2, 3, 4, 5]);
    until("its replica took over", || took_over(3));
    redis.be_patient(&[1, 2, 3, 4, 5]);
    load.goes_on();

    // It stands still rather than being gone: nothing is refused, nothing answered.
    redis.nodes[1].signal("STOP");
    redis.take_over(&[2, 3, 4, 5]);
    until("its replica took over", || took_over(4));
    redis.be_patient(&[2, 3, 4, 5]);
    load.goes_on();
    redis.nodes[1].signal("CONT");
    until("it is a replica now", || redis.nodes[1].address.info("replication", "role") == "slave");
    load.goes_on();

    let sum = load.sum();
    assert!(sum > 0);
    for (acknowledged, there) in load.stop().await {
        assert_eq!(there, Some(acknowledged));
    }
    // One of them is dead, and a cluster is still found.
    let again = connected(|| redis.builder()).await;
    assert_eq!(update(again.backend(), 0, record(anonymous("none"), 1, "x")).await, "gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_down_is_an_error_and_no_answer() {
    if binary().is_none() {
        return;
    }
    let redis = OfCluster::start(&["--cluster-require-full-coverage", "yes"]);
    let sessions = connect(|| redis.builder()).await;
    let ids: Vec<RecordId> = (0..20).map(|at| of(owner(&format!("u{at}")), "one")).collect();
    for id in &ids {
        in_time(async || sessions.backend().creates(record(*id, 1, "x")).await.ok()).await;
    }
    // A master and its replica: a third of the slots is gone for good.
    redis.nodes[2].signal("STOP");
    redis.nodes[5].signal("STOP");
    redis.lose_patience(&[0, 1, 3, 4]);
    until("the cluster is down", || redis.nodes[0].address.info_of_cluster("cluster_state") == "fail");
    for record in join_all(ids.iter().map(|id| sessions.backend().load(*id))).await.into_iter().flatten() {
        assert!(record.is_some(), "an outage is not the end of a session");
    }
    redis.nodes[2].signal("CONT");
    redis.nodes[5].signal("CONT");
    for id in &ids {
        assert_eq!(recovered(sessions.backend(), *id).await.as_deref(), Some("x"));
    }
}
