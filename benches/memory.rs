//! A million sessions: the resident memory per session, and the latency of a load while half of them expire.
//!
//! ```sh
//! cargo run --release --manifest-path benches/Cargo.toml --bin memory            # in memory
//! cargo run --release --manifest-path benches/Cargo.toml --bin memory -- json    # in a JSON file, in the folder `BENCH_DIR`
//! ```
//!
//! Sessions have 500 bytes of data in twelve fields, and every user has two.

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use jam_session::{AnyBackend, Clock, Durability, JsonSessions, MemorySessions, SessionId, Sessions};
use serde_json::Value;

#[allow(dead_code)]
mod stacks;

const SESSIONS: usize = 1_000_000;
const LOADS: usize = 200_000;
const HOUR: Duration = Duration::from_secs(3600);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match env::args().nth(1).as_deref() {
        None => runtime.block_on(in_memory()),
        Some("json") => runtime.block_on(in_a_file()),
        Some(_) => eprintln!("usage: memory [json]"),
    }
}

async fn in_memory() {
    let clock = Clock::manual();
    let sessions = MemorySessions::builder()
        .max_bytes(usize::MAX)
        .touch_interval(HOUR)
        .clock(clock.clone())
        .build()
        .expect("sessions");
    measure(sessions.erase(), clock).await;
}

async fn in_a_file() {
    let folder = PathBuf::from(env::var_os("BENCH_DIR").unwrap_or_else(|| ".".into())).join("memory-bench.tmp");
    fs::create_dir_all(&folder).expect("a folder");
    let clock = Clock::manual();
    let builder =
        || JsonSessions::builder(folder.join("sessions.json")).durability(Durability::Flush).touch_interval(HOUR);
    let sessions = builder().clock(clock.clone()).open().await.expect("sessions");
    measure(sessions.clone().erase(), clock.clone()).await;
    sessions.close().await.expect("closed");
    let began = Instant::now();
    let sessions = builder().clock(clock).open().await.expect("sessions");
    println!("opened what is left of them in {:.1} s", began.elapsed().as_secs_f64());
    sessions.close().await.expect("closed");
    fs::remove_dir_all(folder).expect("removed");
}

async fn measure(sessions: Sessions<AnyBackend>, clock: Clock) {
    let data = stacks::fields();
    let empty = resident();
    let mut ids = create(&sessions, 0..SESSIONS / 2, &data).await;
    // The other half expires later.
    clock.advance(HOUR / 2);
    ids.extend(create(&sessions, SESSIONS / 2..SESSIONS, &data).await);
    let ids_take = ids.iter().map(|id| id.as_str().len() + size_of::<SessionId>() + 16).sum::<usize>();
    let each = (resident() - empty).saturating_sub(ids_take) / SESSIONS;
    println!("{SESSIONS} sessions of {} bytes: {each} bytes each", data.to_string().len());

    let late = &ids[SESSIONS / 2..];
    let before = percentile(loads(&sessions, late).await);
    clock.advance(HOUR / 2 + Duration::from_secs(1));
    let during = percentile(loads(&sessions, late).await);
    println!("p99 of a load: {before:.1} µs before, {during:.1} µs while half of them expire: {:.2}", during / before);
}

async fn create(sessions: &Sessions, which: std::ops::Range<usize>, data: &Value) -> Vec<SessionId> {
    let mut ids = Vec::with_capacity(which.len());
    for first in which.step_by(1000) {
        let all = (first..first + 1000).map(|i| sessions.create(format!("user-{}", i / 2), data));
        for id in futures_join(all).await {
            ids.push(id.expect("created"));
        }
    }
    ids
}

/// Creates all sessions concurrently, in order.
async fn futures_join<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (one, output) in all.iter_mut().filter(|(_, output)| output.is_none()) {
            match one.as_mut().poll(context) {
                std::task::Poll::Ready(ready) => *output = Some(ready),
                std::task::Poll::Pending => pending = true,
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    all.into_iter().filter_map(|(_, output)| output).collect()
}

async fn loads(sessions: &Sessions, ids: &[SessionId]) -> Vec<Duration> {
    let mut took = Vec::with_capacity(LOADS);
    for i in 0..LOADS {
        // A stride that visits all sessions, but not in memory order.
        let id = &ids[i * 7919 % ids.len()];
        let began = Instant::now();
        let data = sessions.get(id).await.expect("loaded");
        took.push(began.elapsed());
        assert!(data.is_some());
    }
    took
}

fn percentile(mut took: Vec<Duration>) -> f64 {
    took.sort_unstable();
    took[took.len() * 99 / 100].as_nanos() as f64 / 1000.0
}

/// The resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}
