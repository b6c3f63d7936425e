//! The JSON file: durability, recovery, and files that are refused.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    future::poll_fn,
    io::{BufRead, BufReader, Write as _},
    ops::Range,
    path::Path,
    pin::{Pin, pin},
    process::{Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use jam_session::{
    Backend, BoxError, Builder, Clock, Data, Durability, ErrorKind, JsonSessions, Outcome, Record, Serializer,
    stores::json::JsonFile,
};
use serde_json::{Value, json};

use crate::{
    events::Events,
    folder::Folder,
    store::{PATIENCE, Plain, eventually},
};

/// The same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// With more time than any machine needs.
fn builder(path: impl AsRef<Path>) -> Builder<JsonFile> {
    JsonSessions::builder(path).request_time(PATIENCE)
}

async fn open(path: &Path) -> JsonSessions {
    builder(path).open().await.unwrap()
}

async fn refused(path: &Path) -> (ErrorKind, String) {
    let error = JsonSessions::open(path).await.unwrap_err();
    (error.kind(), error.to_string())
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn record(n: u64, version: i64, ttl: Duration, payload: impl Into<Bytes>) -> Record {
    Record::new(format!("{n:022}").parse().unwrap(), version, ttl, payload)
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_session_outlives_a_restart_with_everything_it_has() {
    let folder = Folder::new();
    let clock = Clock::manual();
    let start = || builder(folder.file()).clock(clock.clone()).rework_grace(Duration::ZERO).open();
    let sessions = start().await.unwrap();
    let ada = sessions.create("ada", json!({"role": "admin"})).await.unwrap();
    let gone = sessions.create("ada", json!({})).await.unwrap();
    let old = sessions.create("bob", json!({"n": 1})).await.unwrap();
    sessions.delete(&gone).await.unwrap();
    sessions.update(&old, json!({"n": 2})).await.unwrap();
    let bob = sessions.rework(&old).await.unwrap();
    sessions.create("eve", json!({})).await.unwrap();
    assert_eq!(sessions.clear("eve").await.unwrap(), 1);
    drop(sessions);

    let sessions = start().await.unwrap();
    assert_eq!(sessions.get(&ada).await.unwrap().unwrap().get::<String>("role").unwrap().unwrap(), "admin");
    assert_eq!(sessions.get(&bob).await.unwrap().unwrap().get::<u64>("n").unwrap(), Some(2));
    for id in [&gone, &old] {
        assert!(sessions.get(id).await.unwrap().is_none());
    }
    assert!(sessions.list("eve").await.unwrap().is_empty());
    assert_eq!(sessions.list("ada").await.unwrap().len(), 1);
}

#[tokio::test]
async fn p18_time_goes_on_while_nothing_runs() {
    let folder = Folder::new();
    let clock = Clock::manual();
    let start = || builder(folder.file()).clock(clock.clone()).open();
    let sessions = start().await.unwrap();
    let (a, b) = (record(1, 1, HOUR, "{}"), record(2, 1, 3 * HOUR, "{}"));
    for record in [&a, &b] {
        assert!(sessions.backend().creates(record.clone()).await.unwrap());
    }
    clock.advance(HOUR / 2);
    sessions.backend().touch(a.id, 1, HOUR).await.unwrap();
    sessions.backend().touch(b.id, 7, 9 * HOUR).await.unwrap();
    drop(sessions);

    clock.advance(HOUR / 2 + HOUR / 4);
    let sessions = start().await.unwrap();
    assert_eq!(sessions.backend().load(a.id).await.unwrap().unwrap().ttl, HOUR / 4);
    assert_eq!(sessions.backend().load(b.id).await.unwrap().unwrap().ttl, HOUR + 3 * HOUR / 4);
    clock.advance(HOUR / 4);
    assert!(sessions.backend().load(a.id).await.unwrap().is_none());
    assert!(matches!(sessions.backend().updates(1, a.clone()).await.unwrap(), Outcome::Gone));
    assert!(!sessions.backend().delete(a.id).await.unwrap());
    drop(sessions);

    clock.advance(2 * HOUR);
    let sessions = start().await.unwrap();
    assert!(sessions.backend().load(b.id).await.unwrap().is_none());
    assert!(sessions.backend().creates(b).await.unwrap());
}

#[tokio::test]
async fn an_update_for_no_time_ends_the_record() {
    let folder = Folder::new();
    let sessions = open(&folder.file()).await;
    let there = record(1, 1, HOUR, "{}");
    assert!(sessions.backend().creates(there.clone()).await.unwrap());
    let end = |version| record(1, version, Duration::ZERO, "{}");
    assert!(matches!(sessions.backend().updates(2, end(3)).await.unwrap(), Outcome::Conflict(_)));
    assert!(matches!(sessions.backend().updates(1, end(3)).await.unwrap(), Outcome::Done));
    assert!(matches!(sessions.backend().updates(1, end(3)).await.unwrap(), Outcome::Gone));
    assert!(sessions.backend().load(there.id).await.unwrap().is_none());
    sessions.close().await.unwrap();
    assert!(open(&folder.file()).await.backend().load(there.id).await.unwrap().is_none());
}

#[tokio::test]
async fn each_line_is_json_and_the_data_in_it_too() {
    let folder = Folder::new();
    let sessions = open(&folder.file()).await;
    sessions.create("ada", json!({"role": "admin"})).await.unwrap();
    sessions.close().await.unwrap();
    let lines = lines(&folder.file());
    let put = lines.iter().find(|line| line["op"] == "put").unwrap();
    assert_eq!(put["json"]["key"], "ada");
    assert_eq!(put["json"]["data"], json!({"role": "admin"}));
    assert_eq!(lines[0]["op"], "file");
}

/// Written by version 0.1.0: every later version must read it.
#[tokio::test]
async fn the_golden_file_is_read() {
    let folder = Folder::new();
    fs::write(folder.file(), include_bytes!("../golden/sessions-v1.json")).unwrap();
    let sessions = builder(folder.file()).clock(Clock::manual()).open().await.unwrap();
    let owner = "fVJZcPs5bTnULFhpr8ooOA";
    let load = |name: String| sessions.backend().load(name.parse().unwrap());
    let sid = |last: char| format!("AAAAAAAAQACAAAAAAAAAA{last}");
    let a = load(sid('A')).await.unwrap().unwrap();
    assert_eq!((a.version, a.ttl, a.payload.as_ref()), (i64::MAX, 2 * HOUR, br#"{"v":3}"#.as_slice()));
    let c = load(format!("{owner}.{}", sid('C'))).await.unwrap().unwrap();
    assert_eq!((c.version, c.ttl, c.payload.as_ref()), (4, HOUR, b"\0\xff\n".as_slice()));
    let mut all = sessions.backend().list(owner.parse().unwrap()).await.unwrap();
    all.sort_by_key(|record| record.version);
    assert_eq!(all.iter().map(|record| record.version).collect::<Vec<_>>(), [4, 6]);
    assert!(load(sid('D')).await.unwrap().is_none());
}

struct Backwards;

impl Serializer for Backwards {
    fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError> {
        let mut bytes = serde_json::to_vec(data)?;
        bytes.reverse();
        Ok(bytes)
    }

    fn read(&self, bytes: &[u8]) -> Result<Data, BoxError> {
        let bytes: Vec<u8> = bytes.iter().rev().copied().collect();
        Ok(serde_json::from_slice(&bytes)?)
    }
}

#[tokio::test]
async fn what_is_not_json_comes_back_to_the_byte() {
    let folder = Folder::new();
    let sessions = builder(folder.file()).serializer(Backwards).open().await.unwrap();
    let id = sessions.create("ada", json!({"role": "admin"})).await.unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    assert!(sessions.backend().creates(record(1, 1, HOUR, bytes.clone())).await.unwrap());
    sessions.close().await.unwrap();
    assert!(lines(&folder.file()).iter().any(|line| line["base64"].is_string()));

    let sessions = builder(folder.file()).serializer(Backwards).open().await.unwrap();
    assert_eq!(sessions.get(&id).await.unwrap().unwrap().get::<String>("role").unwrap().unwrap(), "admin");
    let read = sessions.backend().load(record(1, 1, HOUR, "").id).await.unwrap().unwrap();
    assert_eq!(read.payload, bytes);
}

#[tokio::test]
async fn any_key_and_any_data_fit_a_line() {
    let folder = Folder::new();
    let sessions = builder(folder.file()).max_size(2 << 20).open().await.unwrap();
    let large = "\n\0\"é".repeat(1 << 17);
    let keys = ["a\0b", "a\nb", "a\r\n{\"sum\":\"", "*:{}", "é\u{2028}"];
    let raw = serde_json::value::RawValue::from_string("{\n\"a\": [1,\n2]}".to_owned()).unwrap();
    let mut ids = Vec::new();
    for key in keys {
        ids.push(sessions.create(key, json!({"large": large})).await.unwrap());
        ids.push(sessions.create(key, HashMap::from([("raw", &raw)])).await.unwrap());
    }
    drop(sessions);
    let sessions = builder(folder.file()).max_size(2 << 20).open().await.unwrap();
    for (i, key) in keys.into_iter().enumerate() {
        let data = sessions.get(&ids[2 * i]).await.unwrap().unwrap();
        assert_eq!(data.get::<String>("large").unwrap().unwrap(), large);
        let data = sessions.get(&ids[2 * i + 1]).await.unwrap().unwrap();
        assert_eq!(data.get::<Value>("raw").unwrap().unwrap(), json!({"a": [1, 2]}));
        assert_eq!(sessions.clear(key).await.unwrap(), 2);
    }
}

#[tokio::test]
async fn p05_an_update_whose_answer_nobody_waited_for_is_not_done_twice() {
    let folder = Folder::new();
    let sessions = open(&folder.file()).await;
    let on = sessions.backend();
    assert!(on.creates(record(0, 1, HOUR, "{}")).await.unwrap());
    let write = |expected: i64, version: i64| on.updates(expected, record(0, version, HOUR, "{}"));
    for version in 1..100 {
        assert!(matches!(write(version, version + 1).await.unwrap(), Outcome::Done));
    }
    // Each of them, repeated, was done already; what was not done is a conflict, as it was for another record.
    for version in [1, 2, 50, 98] {
        assert!(matches!(write(version, version + 1).await.unwrap(), Outcome::Done), "{version}");
    }
    for (expected, version) in [(1, 200), (99, 201)] {
        assert!(matches!(write(expected, version).await.unwrap(), Outcome::Conflict(there) if there.version == 100));
    }
    assert!(on.creates(record(1, 300, HOUR, "{}")).await.unwrap());
    assert!(matches!(on.updates(1, record(1, 2, HOUR, "{}")).await.unwrap(), Outcome::Conflict(_)));
    assert_eq!(on.load(record(0, 0, HOUR, "").id).await.unwrap().unwrap().version, 100);
    // In one batch, too.
    let (first, second, again) = tokio::join!(write(100, 101), write(101, 102), write(100, 101));
    assert!(matches!((first.unwrap(), second.unwrap(), again.unwrap()), (Outcome::Done, Outcome::Done, Outcome::Done)));
    assert_eq!(on.load(record(0, 0, HOUR, "").id).await.unwrap().unwrap().version, 102);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_updates_that_expect_the_same_version_one_is_done() {
    let folder = Folder::new();
    for durability in [Durability::Sync, Durability::Flush] {
        let sessions = builder(folder.file()).durability(durability).open().await.unwrap();
        let id = record(1, 0, HOUR, "{}").id;
        assert!(sessions.backend().creates(record(1, 0, HOUR, "{}")).await.unwrap());
        for expected in 0..50 {
            let all = (0..16).map(|i| {
                let sessions = sessions.clone();
                tokio::spawn(async move {
                    let (version, payload) = (if i == 0 { expected + 1 } else { 1_000 * i + expected }, "{}");
                    match sessions.backend().updates(expected, record(1, version, HOUR, payload)).await.unwrap() {
                        Outcome::Done => Some(version),
                        // What stands in the way is what everybody sees by now.
                        Outcome::Conflict(there) => {
                            let seen = sessions.backend().load(there.id).await.unwrap().unwrap();
                            assert_eq!(seen.version, there.version);
                            None
                        }
                        other => panic!("it is there, and not {other:?}"),
                    }
                })
            });
            let mut done = Vec::new();
            for task in all.collect::<Vec<_>>() {
                done.extend(task.await.unwrap());
            }
            assert_eq!(done.len(), 1);
            let there = sessions.backend().load(id).await.unwrap().unwrap().version;
            assert_eq!(done, [there]);
            let next = record(1, expected + 1, HOUR, "{}");
            assert!(matches!(sessions.backend().updates(there, next).await.unwrap(), Outcome::Done));
        }
        assert!(sessions.backend().delete(id).await.unwrap());
        sessions.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_change_that_is_given_up_has_happened_or_not() {
    let folder = Folder::new();
    let sessions = open(&folder.file()).await;
    let (mut asked, mut given_up) = (0, 0);
    while given_up < 100 {
        let n = asked;
        asked += 1;
        let mut create = pin!(sessions.backend().creates(record(n, 5, HOUR, "{}")));
        let first = poll_fn(|cx| Poll::Ready(create.as_mut().poll(cx))).await;
        // The thread that writes may be so quick that there is nothing to give up.
        match first {
            Poll::Ready(created) => assert!(created.unwrap()),
            Poll::Pending => given_up += 1,
        }
    }
    // Later than all of them.
    assert!(sessions.backend().creates(record(1 << 32, 1, HOUR, "{}")).await.unwrap());
    let mut there = Vec::new();
    for n in 0..asked {
        there.push(sessions.backend().load(record(n, 0, HOUR, "").id).await.unwrap().map(|record| record.version));
    }
    sessions.close().await.unwrap();
    let sessions = open(&folder.file()).await;
    for (n, there) in there.into_iter().enumerate() {
        let found = sessions.backend().load(record(n as u64, 0, HOUR, "").id).await.unwrap();
        assert_eq!(found.map(|record| record.version), there);
        assert!(there.is_none_or(|version| version == 5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_during_writes_loses_nothing_that_was_answered() {
    let folder = Folder::new();
    for round in 0..20_u64 {
        let sessions = open(&folder.file()).await;
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let sessions = sessions.clone();
                tokio::spawn(async move {
                    let mut done = Vec::new();
                    for n in 0.. {
                        let n = (round * 8 + task) << 32 | n;
                        match sessions.backend().creates(record(n, 1, HOUR, "{}")).await {
                            Ok(created) => assert!(created),
                            Err(_) => break,
                        }
                        done.push(n);
                    }
                    done
                })
            })
            .collect();
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        sessions.close().await.unwrap();
        let again = open(&folder.file()).await;
        for task in tasks {
            for n in task.await.unwrap() {
                assert!(again.backend().load(record(n, 0, HOUR, "").id).await.unwrap().is_some());
            }
        }
        assert_eq!(sessions.get("x").await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(sessions.backend().load(record(0, 0, HOUR, "").id).await.is_err());
    }
}

#[tokio::test]
async fn one_holds_the_file_and_lets_go_of_it_when_closed_or_dropped() {
    let folder = Folder::new();
    let sessions = open(&folder.file()).await;
    let (kind, message) = refused(&folder.file()).await;
    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(message.contains("in use") && message.contains("sessions.json"), "{message}");
    // Nor does it help to take the lock away.
    fs::remove_file(folder.path("sessions.json.lock")).unwrap();
    let (kind, message) = refused(&folder.file()).await;
    assert!(kind == ErrorKind::Unavailable && message.contains("in use"), "{message}");
    let clone = sessions.clone();
    sessions.close().await.unwrap();
    let second = open(&folder.file()).await;
    drop(second);
    drop(open(&folder.file()).await);
    assert!(clone.create("ada", json!({})).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_stays_small_while_requests_go_on() {
    let folder = Folder::new();
    let sessions = builder(folder.file()).durability(Durability::Flush).open().await.unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|task: usize| {
            let sessions = sessions.clone();
            tokio::spawn(async move {
                let id = sessions.create(format!("user{task}"), json!({"n": 0})).await.unwrap();
                for n in 1..=300 {
                    sessions.update(&id, json!({"n": n, "pad": "x".repeat(2_000)})).await.unwrap();
                    let read = sessions.get(&id).await.unwrap().unwrap();
                    assert_eq!(read.get::<u64>("n").unwrap(), Some(n));
                }
                id
            })
        })
        .collect();
    let mut ids = Vec::new();
    for task in tasks {
        ids.push(task.await.unwrap());
    }
    // 10 MB were written, and it is compacted when 1 MiB of it is dead. A compaction may be late on a busy machine; it needs no
    // other request to come.
    eventually(async || fs::metadata(folder.file()).unwrap().len() < 2 << 20).await;
    sessions.close().await.unwrap();
    assert!(!folder.path("sessions.json.compacting").exists());
    assert!(lines(&folder.file())[0]["after"].as_u64().unwrap() > 0);
    let sessions = open(&folder.file()).await;
    for id in ids {
        assert_eq!(sessions.get(&id).await.unwrap().unwrap().get::<u64>("n").unwrap(), Some(300));
    }
}

#[tokio::test]
async fn what_is_not_ours_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    let tinydb = r#"{"_default": {"1": {"session_id": "x", "session_key": "ada", "data": {}}}}"#;
    for (content, word) in [
        (tinydb, "TinyDB"),
        ("hello\nworld\n", "was not written by this crate"),
        ("{}\n", "was not written by this crate"),
        ("\0\0\0\0", "was not written by this crate"),
        ("\n", "was not written by this crate"),
    ] {
        fs::write(folder.file(), content).unwrap();
        let (kind, message) = refused(&folder.file()).await;
        assert_eq!(kind, ErrorKind::Config, "{message}");
        assert!(message.contains(word), "{message}");
        assert_eq!(fs::read_to_string(folder.file()).unwrap(), content);
    }
    fs::write(folder.file(), "").unwrap();
    open(&folder.file()).await.create("ada", json!({})).await.unwrap();
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_an_error_in_words() {
    let folder = Folder::new();
    let (kind, message) = refused(&folder.path("none").join("sessions.json")).await;
    assert!(kind == ErrorKind::Config && message.contains("does not exist"), "{message}");
    fs::write(folder.path("file"), "").unwrap();
    let (kind, message) = refused(&folder.path("file").join("sessions.json")).await;
    assert!(kind == ErrorKind::Config && message.contains("is not a folder"), "{message}");
    let (kind, message) = refused(Path::new("/")).await;
    assert!(kind == ErrorKind::Config && message.contains("has no file name"), "{message}");
    fs::create_dir(folder.path("folder.json")).unwrap();
    let (_, message) = refused(&folder.path("folder.json")).await;
    assert!(message.contains("folder.json could not be opened"), "{message}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_read_only_folder_is_an_error_in_words() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    fs::set_permissions(folder.path(""), fs::Permissions::from_mode(0o500)).unwrap();
    // Nothing is read-only for root.
    if fs::write(folder.path("probe"), "").is_err() {
        let (kind, message) = refused(&folder.file()).await;
        assert!(kind == ErrorKind::Config && message.contains("for writing"), "{message}");
    }
    fs::set_permissions(folder.path(""), fs::Permissions::from_mode(0o700)).unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn no_link_is_followed_and_all_is_for_the_owner_alone() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = Folder::new();
    let target = folder.path("target");
    fs::write(&target, "precious").unwrap();
    for name in ["sessions.json", "sessions.json.lock"] {
        symlink(&target, folder.path(name)).unwrap();
        let (kind, message) = refused(&folder.file()).await;
        assert!(kind == ErrorKind::Config && message.contains("symbolic link"), "{message}");
        fs::remove_file(folder.path(name)).unwrap();
        let _ = fs::remove_file(folder.path("sessions.json.lock"));
    }
    // The place where a new file is written is ours: a link there is removed, not followed.
    symlink(&target, folder.path("sessions.json.compacting")).unwrap();
    let sessions = open(&folder.file()).await;
    sessions.create("ada", json!({})).await.unwrap();
    let mode = |name: &str| fs::metadata(folder.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("sessions.json"), mode("sessions.json.lock")), (0o600, 0o600));
    sessions.close().await.unwrap();
    fs::set_permissions(folder.file(), fs::Permissions::from_mode(0o644)).unwrap();
    drop(open(&folder.file()).await);
    assert_eq!(mode("sessions.json"), 0o600);
    assert_eq!(fs::read_to_string(target).unwrap(), "precious");
}

#[tokio::test]
async fn a_file_deleted_in_use_refuses_changes_until_it_is_back() {
    let folder = Folder::new();
    let sessions = open(&folder.file()).await;
    let id = sessions.create("ada", json!({})).await.unwrap();
    fs::rename(folder.file(), folder.path("away")).unwrap();
    fs::write(folder.file(), "another").unwrap();
    let error = sessions.create("bob", json!({})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("deleted or replaced"), "{error}");
    assert!(sessions.get(&id).await.unwrap().is_some());
    assert_eq!(fs::read_to_string(folder.file()).unwrap(), "another");
    fs::rename(folder.path("away"), folder.file()).unwrap();
    sessions.create("bob", json!({})).await.unwrap();
}

/// `> sessions.json`: the same file, and another length.
#[tokio::test]
async fn a_file_cut_short_in_use_loses_nothing_that_was_acknowledged() {
    let folder = Folder::new();
    let sessions = open(&folder.file()).await;
    let ada = sessions.create("ada", json!({})).await.unwrap();
    fs::OpenOptions::new().write(true).truncate(true).open(folder.file()).unwrap();
    sessions.create("bob", json!({})).await.unwrap();
    sessions.close().await.unwrap();
    let again = open(&folder.file()).await;
    assert!(again.get(&ada).await.unwrap().is_some());
    assert_eq!(again.list("bob").await.unwrap().len(), 1);
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Drops a task where it is woken.
struct Holder(Mutex<Option<Task>>, mpsc::Sender<()>);

impl Wake for Holder {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().unwrap().take());
        let _ = self.1.send(());
    }
}

#[tokio::test]
async fn the_last_handle_may_be_dropped_by_the_thread_that_writes() {
    let (told, done) = mpsc::channel();
    let (mut folders, mut is_pending) = (Vec::new(), false);
    // The thread that writes may be so quick that nobody has to be woken.
    while !is_pending {
        let folder = Folder::new();
        let sessions = open(&folder.file()).await;
        folders.push(folder);
        let holder = Arc::new(Holder(Mutex::new(None), told.clone()));
        let mut task: Task =
            Box::pin(async move { sessions.backend().creates(record(1, 1, HOUR, "{}")).await.map(drop).unwrap() });
        let waker = Waker::from(Arc::clone(&holder));
        let mut place = holder.0.lock().unwrap();
        is_pending = task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
        if is_pending {
            *place = Some(task);
        }
    }
    // It would wait for itself otherwise.
    done.recv_timeout(PATIENCE).unwrap();
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("somebody else's waker");
    }
}

#[tokio::test]
async fn nothing_is_read_once_the_file_was_let_go_of() {
    let folder = Folder::new();
    let sessions = open(&folder.file()).await;
    let id = sessions.create("ada", json!({})).await.unwrap();
    let waker = Waker::from(Arc::new(Panics));
    // Until there is one that the thread that writes has to wake.
    let mut waits = None;
    for n in 0.. {
        let mut create = Box::pin(sessions.backend().creates(record(n, 1, HOUR, "{}")));
        if create.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            waits = Some(create);
            break;
        }
    }
    // The thread that writes stops halfway, and with it the lock is gone.
    let second = async {
        loop {
            match builder(folder.file()).open().await {
                Ok(second) => break second,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let second = tokio::time::timeout(PATIENCE, second).await.unwrap();
    drop(waits);
    second.delete(&id).await.unwrap();
    assert_eq!(sessions.get(&id).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(sessions.list("ada").await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn damage_is_an_error_that_names_file_and_line() {
    let folder = Folder::new();
    let sessions = open(&folder.file()).await;
    // So long that no random name in the file spells it.
    for key in ["ada-of-the-tests", "bob-of-the-tests"] {
        sessions.create(key, json!({})).await.unwrap();
    }
    sessions.close().await.unwrap();
    let whole = fs::read_to_string(folder.file()).unwrap();
    let damaged = whole.replacen("bob-of-the-tests", "eve-of-the-tests", 1);
    fs::write(folder.file(), &damaged).unwrap();
    let line = 1 + damaged.lines().position(|line| line.contains("eve-of-the-tests")).unwrap();
    let (kind, message) = refused(&folder.file()).await;
    assert_eq!(kind, ErrorKind::Unreadable);
    assert!(message.starts_with(&format!("line {line} of {}", folder.file().display())), "{message}");
    assert_eq!(fs::read_to_string(folder.file()).unwrap(), damaged);
    fs::write(folder.file(), whole).unwrap();
    assert_eq!(open(&folder.file()).await.list("bob-of-the-tests").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "current_thread")]
async fn a_torn_end_is_cut_off_and_said() {
    let folder = Folder::new();
    let sessions = open(&folder.file()).await;
    let id = sessions.create("ada", json!({})).await.unwrap();
    sessions.close().await.unwrap();
    let whole = fs::read(folder.file()).unwrap();
    let torn = br#"{"sum":"00000000","n":3,"synced":2,"op":"end","#;
    fs::write(folder.file(), [&whole, torn.as_slice()].concat()).unwrap();

    let (events, _guard) = Events::collect();
    let sessions = open(&folder.file()).await;
    let said = events.text();
    assert!(said.contains("WARN") && said.contains("torn write"), "{said}");
    assert!(said.contains(&format!("bytes={}", torn.len())) && said.contains("sessions.json"), "{said}");
    assert!(sessions.get(&id).await.unwrap().is_some());
    sessions.close().await.unwrap();
    assert_eq!(fs::read(folder.file()).unwrap(), whole);
}

#[tokio::test]
async fn opening_and_closing_adds_nothing() {
    let folder = Folder::new();
    let sessions = open(&folder.file()).await;
    sessions.create("ada", json!({})).await.unwrap();
    sessions.close().await.unwrap();
    let before = fs::read(folder.file()).unwrap();
    for _ in 0..3 {
        open(&folder.file()).await.close().await.unwrap();
        drop(open(&folder.file()).await);
    }
    assert_eq!(fs::read(folder.file()).unwrap(), before);
}

#[tokio::test]
async fn nothing_of_it_prints_what_it_holds() {
    let folder = Folder::new();
    let builder = builder(folder.file());
    let printed = format!("{builder:?}");
    let sessions = builder.open().await.unwrap();
    sessions.create("ada-of-the-tests", json!({"secret": "lovelace"})).await.unwrap();
    let printed = format!("{printed} {sessions:?} {:?}", sessions.backend());
    assert!(!printed.contains("ada-of") && !printed.contains("lovelace"), "{printed}");
    // Nor do errors quote the file.
    sessions.close().await.unwrap();
    let broken = fs::read_to_string(folder.file()).unwrap().replacen("lovelace", "byron...", 1);
    fs::write(folder.file(), broken).unwrap();
    let error = JsonSessions::open(folder.file()).await.unwrap_err();
    let printed = format!("{error} {error:?}");
    assert!(!printed.contains("ada-of") && !printed.contains("byron"), "{printed}");
}

#[tokio::test]
async fn who_is_refused_removes_nothing_and_disturbs_nobody() {
    let folder = Folder::new();
    let beside = folder.path("sessions.json.compacting");
    fs::write(folder.file(), r#"{"_default": {}}"#).unwrap();
    fs::write(&beside, "precious").unwrap();
    assert_eq!(refused(&folder.file()).await.0, ErrorKind::Config);
    assert!(beside.exists());

    fs::remove_file(folder.file()).unwrap();
    let _first = open(&folder.file()).await;
    fs::write(&beside, "being written by the first").unwrap();
    fs::remove_file(folder.path("sessions.json.lock")).unwrap();
    assert_eq!(refused(&folder.file()).await.0, ErrorKind::Unavailable);
    // Elsewhere than on Unix the lock alone keeps others out.
    assert!(beside.exists() || !cfg!(unix));
}

#[tokio::test]
async fn what_a_crash_left_beside_is_removed() {
    let folder = Folder::new();
    fs::write(folder.path("sessions.json.compacting"), "half a file").unwrap();
    let sessions = open(&folder.file()).await;
    // Nothing, or the reserve for the next compaction.
    assert!(fs::read(folder.path("sessions.json.compacting")).unwrap_or_default().is_empty());
    sessions.close().await.unwrap();
    let mut names: Vec<_> = fs::read_dir(folder.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["sessions.json", "sessions.json.lock"]);
}

/// What is known of one session of the child: what it was when that was last answered, and what was asked since.
#[derive(Clone, Debug, Default)]
struct Known {
    user: String,
    answered: State,
    asked: Option<State>,
}

/// The ID, if there is a session, and the number in its data.
type State = Option<(String, u64)>;

/// Not a test of its own: what the test below starts and kills.
#[test]
fn child_that_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let (path, round) = path.rsplit_once('#').unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let durability = if round.ends_with(['1', '3', '5', '7', '9']) { Durability::Flush } else { Durability::Sync };
        let builder = builder(path).durability(durability).rework_grace(Duration::ZERO);
        let sessions = builder.open().await.unwrap();
        let tasks = (0..8).map(|task| tokio::spawn(be_busy(sessions.clone(), format!("{round}-{task}"))));
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
}

/// Creates, updates, reworks, deletes, and tells of each before and after.
async fn be_busy(sessions: JsonSessions, name: String) {
    let say = |text: String| std::io::stdout().write_all(format!("\n@{text}\n").as_bytes()).unwrap();
    let mut random = Random(name.bytes().fold(7, |seed, byte| seed * 31 + u64::from(byte)));
    for turn in 0.. {
        let user = format!("{name}-{turn}");
        let data = |n: u64, size: u64| json!({"n": n, "twice": 2 * n, "pad": "x".repeat(size as usize)});
        say(format!("{user} ask-create 0"));
        let mut id = sessions.create(&user, data(0, random.below(5_000))).await.unwrap();
        say(format!("{user} is {} 0", id.as_str()));
        let mut n = 0;
        for _ in 0..random.below(8) {
            if random.below(3) > 0 {
                say(format!("{user} ask-update {}", n + 1));
                sessions.update(&id, data(n + 1, random.below(20_000))).await.unwrap();
                n += 1;
            } else {
                say(format!("{user} ask-rework {n}"));
                id = sessions.rework(&id).await.unwrap();
            }
            say(format!("{user} is {} {n}", id.as_str()));
        }
        if random.below(2) == 0 {
            say(format!("{user} ask-delete 0"));
            sessions.delete(&id).await.unwrap();
            say(format!("{user} gone"));
        }
    }
}

const CHILD: &str = "JAM_SESSION_CHILD";

/// Two hundred times, in four places side by side: most of the time it is the disk that is waited for.
#[test]
fn killed_at_any_moment_it_has_what_was_answered_and_nothing_by_halves() {
    let places: Vec<_> =
        (0..4).map(|place| thread::spawn(move || kill_at_any_moment(50 * place..50 * (place + 1)))).collect();
    for place in places {
        place.join().unwrap();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn kill_at_any_moment(rounds: Range<u32>) {
    let folder = Folder::new();
    let mut random = Random(2026 + u64::from(rounds.start));
    let mut all: BTreeMap<String, Known> = BTreeMap::new();
    let last = rounds.end - 1;
    for round in rounds {
        let killed = run_child(&folder.file(), round, &mut random, &mut all);
        assert!(killed, "the child ended by itself");
        let sessions = builder(folder.file()).rework_grace(Duration::ZERO).open().await.unwrap();
        for (user, known) in &mut all {
            check(&sessions, user, known).await;
        }
        // What is settled is looked at once more at the end; not each time, or this would take for ever.
        if round < last {
            all.retain(|_, known| known.answered.is_some() && random.below(4) > 0);
        }
        sessions.close().await.unwrap();
        assert!(!folder.path("sessions.json.compacting").exists());
    }
}

/// Lets a child work until it has said some random number of things and a moment longer, kills it, and keeps what it said.
fn run_child(path: &Path, round: u32, random: &mut Random, all: &mut BTreeMap<String, Known>) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "json::child_that_is_killed", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{}#{round}", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut left = random.below(150);
    let mut is_killed = false;
    while let Some(Ok(line)) = said.next() {
        if let Some(line) = line.strip_prefix('@') {
            let words: Vec<&str> = line.split(' ').collect();
            let known = all.entry(words[0].to_owned()).or_default();
            known.user = words[0].to_owned();
            let id = known.answered.as_ref().map(|(id, _)| id.clone()).unwrap_or_default();
            match words[1..] {
                ["ask-delete", _] => known.asked = Some(None),
                ["ask-rework", n] => known.asked = Some(Some((String::new(), n.parse().unwrap()))),
                [_, n] => known.asked = Some(Some((id, n.parse().unwrap()))),
                ["is", id, n] => (known.answered, known.asked) = (Some((id.to_owned(), n.parse().unwrap())), None),
                _ => (known.answered, known.asked) = (None, None),
            }
            left = left.saturating_sub(1);
        }
        if left == 0 && !is_killed {
            let moment = Duration::from_micros(random.below(1_500));
            let start = Instant::now();
            while start.elapsed() < moment {
                std::hint::spin_loop();
            }
            child.kill().unwrap();
            is_killed = true;
        }
    }
    let status = child.wait().unwrap();
    is_killed && !status.success()
}

/// It is what was answered, or what was asked then; from now on it is known which.
async fn check(sessions: &JsonSessions, user: &str, known: &mut Known) {
    let listed = sessions.list(user).await.unwrap();
    assert!(listed.len() <= 1);
    let found = listed.first().map(|info| {
        let (n, twice) = (info.data.get::<u64>("n").unwrap().unwrap(), info.data.get::<u64>("twice").unwrap());
        assert_eq!(twice, Some(2 * n));
        n
    });
    let n = |state: &State| state.as_ref().map(|(_, n)| *n);
    let is_asked = known.asked.as_ref().is_some_and(|asked| n(asked) == found);
    assert!(n(&known.answered) == found || is_asked, "{known:?}: {found:?}");
    // Its ID leads there, unless it was just given another one that nobody heard of.
    if let Some((id, _)) = known.answered.as_ref().filter(|_| found.is_some()) {
        let is_reworking =
            known.asked.as_ref().is_some_and(|asked| asked.as_ref().is_some_and(|(id, _)| id.is_empty()));
        let data = sessions.get(id).await.unwrap();
        assert!(is_reworking || data.unwrap().get::<u64>("n").unwrap() == found, "{known:?}");
    }
    *known = match found {
        Some(n) => {
            // By its list, for the ID may not be known.
            let id = known.answered.as_ref().map(|(id, _)| id.clone()).filter(|_| known.asked.is_none());
            match id {
                Some(id) => Known { answered: Some((id, n)), asked: None, ..known.clone() },
                None => {
                    assert_eq!(sessions.clear(user).await.unwrap(), 1);
                    Known { answered: None, asked: None, ..known.clone() }
                }
            }
        }
        None => Known { answered: None, asked: None, ..known.clone() },
    };
}
