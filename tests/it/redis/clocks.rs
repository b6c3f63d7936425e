//! A server whose clock is set, by an hour back or forward, while two processes work on it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use jam_session::{Backend, Created, RecordId, RedisBackend, RedisSessions, Since, Terms};

use super::{
    contract::{HOUR, anonymous, of, owner, payload, record, update},
    harness::{binaries, connected},
    process::Process,
};
use crate::{
    folder::Folder,
    store::{Plain, eventually, lasting},
};

/// A server with a clock of its own.
struct Clocked {
    server: Process,
    folder: Folder,
}

/// What Redis asks for the time of day, with so many seconds more as a file says.
const CLOCK: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec now;
    char shift[24] = "";
    int file = open(SHIFT, O_RDONLY);
    if (file >= 0) {
        if (read(file, shift, sizeof shift - 1) < 0) shift[0] = 0;
        close(file);
    }
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec + atol(shift);
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"#;

impl Clocked {
    fn start(binary: &Path) -> Self {
        let folder = Folder::new();
        let (source, library, start) = (folder.path("clock.c"), folder.path("clock.so"), folder.path("start"));
        fs::write(&source, CLOCK).unwrap();
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", &format!("-DSHIFT=\"{}\"", folder.path("shift").display()), "-o"])
            .args([&library, &source])
            .status();
        // Rust links with it.
        assert!(compiled.unwrap().success());
        let text = format!("#!/bin/sh\nLD_PRELOAD={} exec {} \"$@\"\n", library.display(), binary.display());
        fs::write(&start, text).unwrap();
        fs::set_permissions(&start, fs::Permissions::from_mode(0o755)).unwrap();
        let clocked = Self { server: Process::start(&start, &[]), folder };
        clocked.set(-100);
        clocked
    }

    /// Sets the clock by so many seconds away from ours, and sees that the server goes by it.
    fn set(&self, seconds: i64) {
        let new = self.folder.path("new");
        fs::write(&new, seconds.to_string()).unwrap();
        fs::rename(&new, self.folder.path("shift")).unwrap();
        let ours = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let theirs: u64 = self.server.ask(&["TIME"]).list()[0].text().parse().unwrap();
        let away = i64::try_from(theirs).unwrap() - i64::try_from(ours).unwrap();
        assert!((away - seconds).abs() < 50, "the clock of the server cannot be set: it is {away} s away");
    }

    async fn sessions(&self) -> RedisSessions {
        connected(|| RedisSessions::builder(self.server.uri())).await
    }
}

const HOURS: [i64; 2] = [-3600, 3600];

fn many(name: &str) -> Vec<RecordId> {
    let ids = |at| [of(owner(&format!("u{at}")), name), anonymous(&format!("{name}{at}"))];
    (0..25).flat_map(ids).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_finds_what_another_one_writes_after_the_clock_was_set() {
    for binary in binaries() {
        for hour in HOURS {
            let server = Clocked::start(&binary);
            let (one, two) = (server.sessions().await, server.sessions().await);
            let (before, after) = (many("before"), many("after"));
            for id in &before {
                assert!(one.backend().creates(lasting(HOUR * 3, record(*id, 1, "x"))).await.unwrap());
                assert_eq!(payload(two.backend(), *id).await.as_deref(), Some("x"));
            }
            server.set(hour);
            // The first of these tells one process of it, and the other one knows nothing.
            for id in &after {
                assert!(one.backend().creates(lasting(HOUR / 2, record(*id, 1, "x"))).await.unwrap());
                assert_eq!(payload(two.backend(), *id).await.as_deref(), Some("x"), "{hour}");
            }
            for id in before.iter().chain(&after) {
                let there = two.backend().load(*id).await.unwrap().expect("it has not ended");
                let mut next = lasting(HOUR / 2, record(*id, 2, "y"));
                next.hint = there.hint;
                assert_eq!(update(two.backend(), 1, next).await, "done");
                assert_eq!(payload(one.backend(), *id).await.as_deref(), Some("y"));
                one.backend().touch(*id, 2, HOUR / 2).await.unwrap();
            }
            for at in 0..25 {
                assert_eq!(two.backend().list(owner(&format!("u{at}"))).await.unwrap().len(), 2, "{hour}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_by_the_new_time_is_not_live_for_longer_than_a_moment() {
    for binary in binaries() {
        let server = Clocked::start(&binary);
        let sessions = server.sessions().await;
        let (backend, ids) = (sessions.backend(), many("short"));
        for id in &ids {
            assert!(backend.creates(lasting(HOUR / 2, record(*id, 1, "x"))).await.unwrap());
        }
        server.set(3600);
        for id in ids {
            eventually(async || backend.load(id).await.unwrap().is_none()).await;
            assert_eq!(update(backend, 1, record(id, 2, "y")).await, "gone");
        }
        assert!(backend.list(owner("u1")).await.unwrap().is_empty());
    }
}

async fn is_created(backend: &RedisBackend, id: RecordId, age: Duration) -> bool {
    let terms = Terms { since: Some(Since::Age(age)), ..Terms::default() };
    match backend.create(record(id, 1, "x"), terms).await.unwrap() {
        Created::Done { .. } => true,
        Created::Late => false,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_after_a_clear_succeeds_although_the_clock_was_set() {
    for binary in binaries() {
        for hour in HOURS {
            let server = Clocked::start(&binary);
            let (one, two) = (server.sessions().await, server.sessions().await);
            let (ada, ben) = (owner("ada"), owner("ben"));
            let mut cleared = Instant::now();
            for owner in [ada, ben] {
                assert!(one.backend().creates(record(of(owner, "old"), 1, "x")).await.unwrap());
                assert_eq!(one.backend().clears(owner, None).await.unwrap(), 1);
                cleared = Instant::now();
            }
            server.set(hour);
            // If the clear seems to lie ahead, the first login is refused, and no second one.
            let first = is_created(two.backend(), of(ada, "first"), cleared.elapsed()).await;
            assert!(first || hour < 0);
            let now = Instant::now();
            assert!(is_created(two.backend(), of(ada, "second"), now.elapsed()).await);
            // Without an age, none is: no clock decides.
            assert!(two.backend().creates(record(of(ada, "third"), 1, "x")).await.unwrap());
            assert!(two.backend().creates(record(of(ben, "new"), 1, "x")).await.unwrap());
            // A login from a minute before a clear is refused, as ever.
            two.backend().clears(ben, None).await.unwrap();
            let cleared = Instant::now();
            assert!(!is_created(one.backend(), of(ben, "late"), cleared.elapsed() + Duration::from_secs(60)).await);
            let after = Instant::now();
            assert!(is_created(one.backend(), of(ben, "in_time"), after.elapsed()).await);
        }
    }
}
