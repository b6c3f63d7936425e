//! What a hostile review of the JSON file found.

use std::{
    fs::OpenOptions,
    pin::pin,
    sync::{Arc, Mutex, mpsc},
    task::{Context, Wake, Waker},
    time::Duration,
};

use jam_session::{Backend, JsonSessions, Record};
use serde_json::json;

use crate::folder::Folder;

fn record(n: u64) -> Record {
    Record { id: format!("{n:022}").parse().unwrap(), version: 1, ttl: Duration::from_secs(3600), payload: "{}".into() }
}

/// `> sessions.json`, `cp backup.json sessions.json`, logrotate's copytruncate: the same inode, and another length.
#[tokio::test]
async fn r08_a_file_cut_short_in_use_takes_no_changes() {
    let folder = Folder::new();
    let sessions = JsonSessions::open(folder.file()).await.unwrap();
    sessions.create("ada", json!({})).await.unwrap();
    OpenOptions::new().write(true).truncate(true).open(folder.file()).unwrap();
    let answer = sessions.create("bob", json!({})).await;
    sessions.close().await.ok();
    drop(sessions);
    if answer.is_ok() {
        let again = JsonSessions::open(folder.file()).await;
        let found = match again {
            Ok(again) => again.list("bob").await.unwrap().len(),
            Err(error) => panic!("acknowledged, and then: {error}"),
        };
        assert_eq!(found, 1, "acknowledged, and then lost");
    }
}

/// The folder is /tmp, and somebody was there first.
#[cfg(unix)]
#[tokio::test]
async fn r09_a_file_that_belongs_to_somebody_else_is_refused() {
    let folder = Folder::new();
    JsonSessions::open(folder.file()).await.unwrap().close().await.unwrap();
    // For root alone can make this file; it is what any other user can plant.
    if std::os::unix::fs::chown(folder.file(), Some(65_534), Some(65_534)).is_err() {
        return;
    }
    let sessions = JsonSessions::open(folder.file()).await;
    assert!(sessions.is_err(), "the owner of the file, uid 65534, reads and writes our sessions from now on");
}

type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

struct Holder(Mutex<Option<Task>>, mpsc::Sender<()>);

impl Wake for Holder {
    fn wake(self: Arc<Self>) {
        // As an executor that polls where it is woken, or drops a task with its last waker.
        drop(self.0.lock().unwrap().take());
        let _ = self.1.send(());
    }
}

/// The last handle is dropped on the thread that writes, which then waits for itself.
#[test]
fn r10_the_last_handle_may_be_dropped_by_the_writer() {
    let folder = Folder::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sessions = runtime.block_on(JsonSessions::open(folder.file())).unwrap();
    let (told, done) = mpsc::channel();
    let holder = Arc::new(Holder(Mutex::new(None), told));
    let mut task: Task = Box::pin(async move { sessions.backend().create(record(1)).await.map(drop).unwrap() });
    let waker = Waker::from(Arc::clone(&holder));
    let mut place = holder.0.lock().unwrap();
    assert!(task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    *place = Some(task);
    drop(place);
    done.recv_timeout(Duration::from_secs(5)).expect("the writer panicked, or hangs: it waits for itself");
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("somebody else's waker");
    }
}

/// The writer is gone and with it the lock; reads go on as if nothing had been, beside the next owner of the file.
#[tokio::test]
async fn r12_nothing_is_read_once_the_file_is_let_go_of() {
    let folder = Folder::new();
    let sessions = JsonSessions::open(folder.file()).await.unwrap();
    let id = sessions.create("ada", json!({})).await.unwrap();
    {
        let waker = Waker::from(Arc::new(Panics));
        let mut create = pin!(sessions.backend().create(record(1)));
        assert!(create.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let Ok(second) = JsonSessions::open(folder.file()).await else { return };
    second.delete(&id).await.unwrap();
    let found = sessions.get(&id).await;
    assert!(!matches!(found, Ok(Some(_))), "deleted, acknowledged, and still signed in here");
}

/// An error, and nothing is overwritten: but something was removed.
#[tokio::test]
async fn r13_a_path_that_is_refused_costs_no_other_file() {
    let folder = Folder::new();
    std::fs::write(folder.file(), r#"{"_default": {}}"#).unwrap();
    std::fs::write(folder.path("sessions.json.compacting"), "precious").unwrap();
    assert!(JsonSessions::open(folder.file()).await.is_err());
    assert!(folder.path("sessions.json.compacting").exists(), "removed beside a file that is not ours");
}

/// The lock file was removed: the second process is refused, but first it takes away what the first one is writing.
#[tokio::test]
async fn r14_who_is_refused_disturbs_nobody() {
    let folder = Folder::new();
    let _first = JsonSessions::open(folder.file()).await.unwrap();
    std::fs::write(folder.path("sessions.json.compacting"), "being written by the first").unwrap();
    std::fs::remove_file(folder.path("sessions.json.lock")).unwrap();
    assert!(JsonSessions::open(folder.file()).await.is_err());
    assert!(folder.path("sessions.json.compacting").exists());
}
