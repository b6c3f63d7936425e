//! The speed of the JSON file: `cargo run --release --manifest-path benches/Cargo.toml --bin json`. The file is in the folder
//! `BENCH_DIR` (default: the current folder). Use a folder on a real disk.
// A benchmark may panic if something goes wrong.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jam_session::{Durability, JsonSessions, SessionId};
use serde_json::json;

fn main() {
    let folder = PathBuf::from(std::env::var_os("BENCH_DIR").unwrap_or_else(|| ".".into())).join("json-bench.tmp");
    fs::create_dir_all(&folder).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(&folder));
    fs::remove_dir_all(folder).unwrap();
}

async fn run(folder: &Path) {
    println!("raw: {:.0} appends of 450 bytes a second, each synced", raw_syncs(&folder.join("raw")));

    println!("\nmicroseconds for one operation, one caller, flush, best of {ROUNDS}");
    let (few, few_ids) = filled(&folder.join("few.json"), Durability::Flush, 1_000).await;
    let (many, many_ids) = filled(&folder.join("many.json"), Durability::Flush, 100_000).await;
    let mut best = [[f64::MAX; 2]; 4];
    for round in 0..ROUNDS {
        // They take turns, so that other load on the machine affects both.
        for (i, (sessions, ids)) in [(&few, &few_ids), (&many, &many_ids)].into_iter().enumerate() {
            for (best, took) in best.iter_mut().zip(each(sessions, ids, round).await) {
                best[i] = best[i].min(took);
            }
        }
    }
    for (name, [few, many]) in ["get", "update", "create", "delete"].into_iter().zip(best) {
        println!("{name:>8}: {few:5.1} of 1,000 sessions, {many:5.1} of 100,000, ratio {:.2}", many / few);
    }
    few.close().await.unwrap();
    many.close().await.unwrap();

    println!("\nopening a file of 100,000 sessions: {:.2} s", opening(&folder.join("many.json")).await);

    println!("\nupdates a second of 10,000 sessions, 64 callers");
    let raw = raw_syncs(&folder.join("raw"));
    let synced = updates(&folder.join("sync.json"), Durability::Sync).await;
    println!("    sync: {synced:.0}, where the disk syncs {raw:.0} times a second");
    println!("   flush: {:.0}", updates(&folder.join("flush.json"), Durability::Flush).await);
}

/// Measures how often per second the disk can append and sync, without any other work.
fn raw_syncs(path: &Path) -> f64 {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(2) {
        file.write_all(&[b'x'; 450]).unwrap();
        file.sync_all().unwrap();
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

async fn filled(path: &Path, durability: Durability, count: usize) -> (JsonSessions, Arc<Vec<SessionId>>) {
    let builder = JsonSessions::builder(path).durability(Durability::Flush).request_time(Duration::from_secs(60));
    let sessions = builder.open().await.unwrap();
    let tasks: Vec<_> = (0..count / 100)
        .map(|task| {
            let sessions = sessions.clone();
            tokio::spawn(async move {
                let mut ids = Vec::new();
                for n in 0..100 {
                    ids.push(sessions.create(format!("user{task}-{n}"), data(n)).await.unwrap());
                }
                ids
            })
        })
        .collect();
    let mut ids = Vec::new();
    for task in tasks {
        ids.extend(task.await.unwrap());
    }
    sessions.close().await.unwrap();
    let builder = JsonSessions::builder(path).durability(durability).request_time(Duration::from_secs(60));
    (builder.open().await.unwrap(), Arc::new(ids))
}

fn data(n: usize) -> serde_json::Value {
    json!({"role": "admin", "theme": "dark", "cart": [n, n + 1], "visits": n})
}

/// Microseconds per operation: get, update, create, delete.
async fn each(sessions: &JsonSessions, ids: &[SessionId], round: usize) -> [f64; 4] {
    // Access the sessions in a scattered order. The IDs themselves are contiguous in memory, as if they came from a socket.
    let picked = (round * TIMES..(round + 1) * TIMES).map(|i| ids[i * 7_919 % ids.len()].clone());
    let picked: Vec<SessionId> = picked.collect();
    let took = |start: Instant| start.elapsed().as_secs_f64() * 1e6 / TIMES as f64;

    let start = Instant::now();
    for id in &picked {
        sessions.get(id).await.unwrap().unwrap();
    }
    let get = took(start);
    let start = Instant::now();
    for (i, id) in picked.iter().enumerate() {
        sessions.update(id, data(i)).await.unwrap();
    }
    let update = took(start);
    let start = Instant::now();
    let mut new = Vec::new();
    for i in 0..TIMES {
        new.push(sessions.create(format!("new{i}"), data(i)).await.unwrap());
    }
    let create = took(start);
    let start = Instant::now();
    for id in &new {
        sessions.delete(id).await.unwrap();
    }
    [get, update, create, took(start)]
}

async fn opening(path: &Path) -> f64 {
    let start = Instant::now();
    let sessions = JsonSessions::open(path).await.unwrap();
    let took = start.elapsed().as_secs_f64();
    sessions.close().await.unwrap();
    took
}

async fn updates(path: &Path, durability: Durability) -> f64 {
    const CALLERS: usize = 64;
    let (sessions, ids) = filled(path, durability, 10_000).await;
    let start = Instant::now();
    let end = start + Duration::from_secs(5);
    let tasks: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (sessions, ids) = (sessions.clone(), Arc::clone(&ids));
            tokio::spawn(async move {
                let mut count = 0;
                while Instant::now() < end {
                    let id = &ids[(caller + CALLERS * count) % ids.len()];
                    sessions.update(id, data(count)).await.unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for task in tasks {
        count += task.await.unwrap();
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    sessions.close().await.unwrap();
    rate
}

const ROUNDS: usize = 20;
const TIMES: usize = 2_000;
