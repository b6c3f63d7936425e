//! Counts the client-side instructions of a load and of an update on Redis. It starts its own server.
//!
//! ```sh
//! cargo run --release --manifest-path benches/Cargo.toml --features calls --bin calls
//! ```
//!
//! 32 tasks load one session each, or load and update it, at the same time. All instructions for this are counted: those of
//! the store, redis-rs and tokio. `--guard` fails if they exceed the count in `benches/instructions-redis.txt` by 15 %.
//! `--write` rewrites that file.

use std::{env, hint::black_box, process::ExitCode, time::Duration};

use jam_session::{Backend, Outcome, Record, RecordId, RedisBackend, RedisSessions, Terms};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
};

use crate::{guard::Guard, redis_server::Server};

mod guard;
#[allow(dead_code, reason = "another benchmark asks the server more")]
mod redis_server;

const CALLS: [&str; 2] = ["load", "update"];
const TASKS: usize = 32;
/// How often each task repeats the call.
const ROUNDS: usize = 50;
const RUNS: usize = 3;

fn main() -> ExitCode {
    let guard = Guard { file: "instructions-redis.txt", head: HEAD, names: CALLS.to_vec(), count: &instructions };
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            for (at, name) in CALLS.iter().enumerate() {
                println!("{name}: {} instructions", instructions(at));
            }
            ExitCode::SUCCESS
        }
        ["--count", updates] => {
            count(updates == "true");
            ExitCode::SUCCESS
        }
        ["--guard"] => guard.check(),
        ["--write"] => guard.write(),
        _ => {
            eprintln!("usage: calls [--guard | --write]");
            ExitCode::FAILURE
        }
    }
}

const HEAD: &str = "\
# Instructions per call of the Redis store, with 32 concurrent calls. `.ci/run` fails if a count rises by 15 %. If a cost has
# risen for a good reason, or has fallen and should not rise again, run
#
#   cargo run --release --manifest-path benches/Cargo.toml --features calls --bin calls -- --write
#
# and give the reason in the commit.
";

/// Measures a load, or a load and an update. Takes the minimum of several runs, because on a busy machine slow calls trigger
/// extra checks of the connection.
fn instructions(call: usize) -> i64 {
    let count = |updates: bool| {
        let counts = (0..RUNS).map(|_| guard::instructions(&["--count", &updates.to_string()]));
        counts.min().unwrap_or_default()
    };
    let counted = if call == 0 { count(false) } else { count(true) - count(false) };
    counted / (TASKS * ROUNDS) as i64
}

fn count(updates: bool) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let server = runtime.block_on(Server::start()).expect("redis-server is installed");
    let sessions = runtime.block_on(RedisSessions::connect(server.uri())).expect("connected");
    let ids: Vec<RecordId> = (0..TASKS).map(id).collect();
    for id in &ids {
        let created = runtime.block_on(sessions.backend().create(record(*id, 0), Terms::default()));
        let _ = created.expect("created");
    }
    run(&runtime, &sessions, &ids, updates);
    measured(&runtime, &sessions, &ids, updates);
}

/// Callgrind finds the code to count by the name of this function.
#[inline(never)]
fn measured(runtime: &Runtime, sessions: &RedisSessions, ids: &[RecordId], updates: bool) {
    run(runtime, black_box(sessions), ids, updates);
}

fn run(runtime: &Runtime, sessions: &RedisSessions, ids: &[RecordId], updates: bool) {
    let mut tasks = JoinSet::new();
    for id in ids.iter().copied() {
        let sessions = sessions.clone();
        let work = async move {
            for _ in 0..ROUNDS {
                let there = sessions.backend().load(id).await.expect("answered").expect("it is there");
                if updates {
                    update(sessions.backend(), there).await;
                }
            }
        };
        tasks.spawn_on(work, runtime.handle());
    }
    runtime.block_on(tasks.join_all());
}

async fn update(backend: &RedisBackend, there: Record) {
    let mut new = record(there.id, there.version + 1);
    new.hint = there.hint;
    let updated = backend.update(there.version, new, false).await.expect("answered");
    assert!(matches!(updated, Outcome::Done), "{updated:?}");
}

/// Every user has three sessions.
fn id(task: usize) -> RecordId {
    format!("{:A<22}.{:A<22}", task / 3, task).parse().expect("an ID")
}

/// A session with 500 bytes of data.
fn record(id: RecordId, version: i64) -> Record {
    Record::new(id, version, Duration::from_secs(3600), vec![b'x'; 500])
}
