//! Sessions in one file: what was answered is on the disk, and nothing has to be installed.
//!
//! ```
//! use jam_session::JsonSessions;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = std::env::temp_dir().join(format!("jam-session-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! # let path = folder.join("sessions.json");
//! let sessions = JsonSessions::open(&path).await?;
//! let id = sessions.create("ada", serde_json::json!({"role": "admin"})).await?;
//! sessions.close().await?;
//!
//! let sessions = JsonSessions::open(&path).await?;
//! assert!(sessions.get(&id).await?.is_some());
//! # sessions.close().await?;
//! # std::fs::remove_dir_all(folder)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! Reads are served from memory, and show what was acknowledged and nothing else. Changes that come at the same time are
//! written and synced together, by a thread of their own; the async runtime never waits for the disk. When a change is
//! answered,
//!
//! * with [`Durability::Sync`], it outlives the process and a power cut, as far as the disk keeps what it says it has;
//! * with [`Durability::Flush`], it outlives the process. Of a power cut the last second may be lost, from some change on.
//!
//! An error of a change is [`Unavailable`](ErrorKind::Unavailable), and its text says whether nothing was applied, or that
//! it is not known; then it is found later entirely or not at all. While the disk cannot be trusted changes are [`Unavailable`](ErrorKind::Unavailable), and reads go on. A
//! full disk is no such case: changes fail until there is room, and nothing else happens.
//!
//! Opening is an error, in words, and leaves the file as it was, if that is not one of ours, or is broken where the file
//! says that it had been on the disk. What is broken behind that was, as a rule, torn off when the machine stopped, and
//! acknowledged to nobody: it is cut off, with a `warn` event. So is a last batch that was damaged later, if the process
//! was killed before it could say in the file that it was on the disk. A session that expired while nothing ran is gone.
//!
//! [`close`](Sessions::close) waits for what is under way, and lets go of the file. So does the last handle when it is
//! dropped, which for a moment blocks the thread that drops it.
//!
//! # The file
//!
//! One JSON object a line: first what there was when the file was written, then each change since.
//!
//! ```text
//! {"sum":"8c5a1f0e","op":"file","format":1,"records":1,"after":41}
//! {"sum":"…","op":"put","id":"<owner>.<sid>","version":…,"until":…,"ttl":…,"json":{"v":1,…,"data":{"role":"admin"}}}
//! {"sum":"…","n":42,"synced":41,"op":"touch","id":"…","version":…,"until":…,"ttl":…}
//! {"sum":"…","n":43,"synced":42,"op":"end","id":"…"}
//! {"sum":"…","n":44,"synced":43,"op":"clear","owner":"…","keep":"…"}
//! {"sum":"…","n":45,"synced":44,"op":"synced"}
//! ```
//!
//! `sum` is the CRC-32 of all that follows its comma. `n` counts the changes, and `synced` says which of them were on the
//! disk before this line was written: a break behind that is a torn tail, a break before it is damage. `until` is in
//! milliseconds since 1970, `ttl` what it was on writing. A payload that is not JSON stands as `base64`.
//!
//! When more than half of the file, and more than 1 MiB, is dead, it is written anew beside the old one, as
//! `sessions.json.compacting`, and put in its place, while requests go on. `sessions.json.lock` is locked as long as the
//! file is in use, and may stay behind empty: one process at a time. On Unix all are for their owner alone (mode 0600), and
//! none is followed if it is a symbolic link; elsewhere the folder says who may read them, and links are followed. The
//! folder should belong to the application: who may write there may put another file in its place before it is opened.
//! One that is removed or replaced while it is in use takes no more changes. One that is written to in its place, and so
//! has another length, is written anew from memory.
//!
//! ```sh
//! cp sessions.json backup.json                                    # while nothing runs
//! jq -r 'select(.op == "put") | .json.key' sessions.json | sort | uniq -c
//! jq -c 'select(.op == "put") | .json.data' sessions.json
//! rm sessions.json                                                # while nothing runs: signs everybody out
//! ```
//!
//! A copy made while it is in use is mostly as good: a last line cut in two does no harm. But it may meet the moment when a
//! change that failed is taken back, and have both what was there and what came instead. Open the copy before relying on
//! it, and copy once more if that is an error. To put a backup in place, stop the application first.
//!
//! Do not edit it: a line whose sum is wrong is not read. It holds no session ID, only hashes, but names and data of users.

mod compact;
mod disk;
mod inbox;
mod journal;
mod line;
mod repeats;
mod replay;
#[cfg(test)]
mod sim;
mod table;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::oneshot;

use self::{
    disk::{Disk, Folder},
    inbox::{Answer, Inbox, Request, Verb, closed},
    replay::{Cut, Opened},
    table::Table,
    writer::Writer,
};
use crate::backend::{Backend, Outcome, Result};
use crate::{
    clock::Clock,
    error::{Error, ErrorKind},
    record::{
        Record,
        id::{Owner, RecordId},
    },
    sessions::{Sessions, builder::Builder},
};

/// [`Sessions`] in one file. See the [module docs](self).
pub type JsonSessions = Sessions<JsonBackend>;

/// Keeps records in memory and in a file. See the [module docs](self).
pub struct JsonBackend {
    table: Arc<RwLock<Table>>,
    inbox: Arc<Inbox>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// When a change is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Durability {
    /// When it is on the disk: it outlives a power cut.
    #[default]
    Sync,
    /// When the system has it: it outlives the process. The disk follows within about a second.
    Flush,
}

/// Where the file is, and how it is written: what a [`Builder`] makes [`JsonSessions`] from.
#[derive(Clone, Debug)]
pub struct JsonFile {
    path: PathBuf,
    durability: Durability,
}

impl JsonSessions {
    /// Sessions in that file, with every option at its default. It is made if there is none.
    ///
    /// # Errors
    /// As [`Builder::open`](Builder::<JsonFile>::open).
    pub async fn open(path: impl AsRef<Path>) -> std::result::Result<Self, Error> {
        Self::builder(path).open().await
    }

    /// Sessions in that file, to be set up.
    pub fn builder(path: impl AsRef<Path>) -> Builder<JsonFile> {
        Builder::new(JsonFile { path: path.as_ref().to_owned(), durability: Durability::default() }).in_text()
    }
}

impl Builder<JsonFile> {
    /// When a change is answered; [`Durability::Sync`] unless set.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.from.durability = durability;
        self
    }

    /// Opens the file, or makes it, and makes the sessions.
    ///
    /// # Errors
    /// In words, and nothing is overwritten: [`ErrorKind::Config`] for what stays so until somebody changes it, as an
    /// option that cannot work, a folder that is not there or not writable, a file that is not ours or, on Unix, a symbolic
    /// link; [`ErrorKind::Unavailable`] for what may be over later, if it is in use or the disk fails;
    /// [`ErrorKind::Unreadable`] if a line that was on the disk is broken or missing, or was written by a later version.
    pub async fn open(self) -> std::result::Result<JsonSessions, Error> {
        let (file, policy, codec) = self.check()?;
        let backend = JsonBackend::open(file, policy.clock.clone()).await?;
        Ok(Sessions::with(backend, policy, codec))
    }
}

impl JsonBackend {
    async fn open(file: JsonFile, clock: Clock) -> std::result::Result<Self, Error> {
        let path = file.path.clone();
        let table = Arc::new(RwLock::new(Table::new(clock)));
        let inbox = Arc::new(Inbox::default());
        let (tell, told) = oneshot::channel();
        let work = {
            let (table, inbox) = (Arc::clone(&table), Arc::clone(&inbox));
            move || {
                let _closed = ClosedAtTheEnd(&inbox);
                let writer = match start(&file, &table, &inbox) {
                    Ok((writer, cut)) => tell.send(Ok(cut)).is_ok().then_some(writer),
                    Err(error) => {
                        let _ = tell.send(Err(error));
                        None
                    }
                };
                // By now the file and its lock are let go.
                if let Some(result) = writer.map(Writer::run) {
                    inbox.closed(result);
                }
            }
        };
        let spawned = thread::Builder::new().name("jam-session-json".to_owned()).spawn(work);
        let thread = spawned.map_err(|error| {
            Error::caused(ErrorKind::Unavailable, "a thread for the file of sessions could not be started", error)
        })?;
        let backend = Self { table, inbox, thread: Mutex::default() };
        let cut = told.await.map_err(|_| stopped())??;
        // Not before: whoever gives up opening does not wait for the end of it.
        *backend.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        if let Some(Cut { line, bytes }) = cut {
            let path = path.display();
            tracing::warn!(%path, line, bytes, "a torn end was cut off the sessions file, from this line on");
        }
        Ok(backend)
    }

    async fn ask(&self, verb: Verb) -> Result<Answer> {
        let (answer, answered) = oneshot::channel();
        self.inbox.push(Request { verb, answer })?;
        Ok(answered.await.map_err(|_| stopped())??)
    }

    fn read(&self) -> Result<RwLockReadGuard<'_, Table>> {
        if self.inbox.is_over() {
            return Err(closed().into());
        }
        Ok(read(&self.table))
    }
}

/// Opens the file, and makes the one who writes to it.
fn start(
    file: &JsonFile,
    table: &Arc<RwLock<Table>>,
    inbox: &Arc<Inbox>,
) -> std::result::Result<(Writer, Option<Cut>), Error> {
    let disk: Arc<dyn Disk> = Arc::new(Folder::lock(&file.path)?);
    let Opened { journal, cut } = replay::open(&*disk, table)?;
    Ok((Writer::new(disk, Arc::clone(table), Arc::clone(inbox), journal, file.durability), cut))
}

impl Backend for JsonBackend {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        let table = self.read()?;
        Ok(table.load(id, table.now()))
    }

    async fn create(&self, record: Record) -> Result<bool> {
        Ok(self.ask(Verb::Create(record.into())).await?.count > 0)
    }

    async fn update(&self, expected: i64, record: Record) -> Result<Outcome> {
        Ok(match self.ask(Verb::Update { expected, new: record.into() }).await? {
            Answer { conflict: Some(current), .. } => Outcome::Conflict(current),
            Answer { count: 0, .. } => Outcome::Gone,
            Answer { .. } => Outcome::Done,
        })
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        self.ask(Verb::Touch { id, version, ttl }).await.map(drop)
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        Ok(self.ask(Verb::Delete { id }).await?.count > 0)
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        let table = self.read()?;
        let now = table.now();
        Ok(table.of(owner).filter_map(|id| table.load(id, now)).collect())
    }

    async fn clear(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64> {
        Ok(self.ask(Verb::Clear { owner, keep }).await?.count)
    }

    async fn close(&self) -> Result<()> {
        self.inbox.end_reads();
        let told = self.inbox.close_and_tell();
        Ok(told.await.map_err(|_| stopped())??)
    }
}

impl Drop for JsonBackend {
    /// Writes what still waits, and lets go of the file, so that it can be opened again at once.
    fn drop(&mut self) {
        self.inbox.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A waker may drop it on that very thread, which goes on by itself, and does not wait for itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for JsonBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonBackend").finish_non_exhaustive()
    }
}

/// Nobody waits for a thread that is gone, however it went.
struct ClosedAtTheEnd<'a>(&'a Inbox);

impl Drop for ClosedAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.closed(Err(stopped()));
    }
}

fn stopped() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the file of sessions was let go of before it answered: what was under way may be in it",
    )
}

fn read(table: &RwLock<Table>) -> RwLockReadGuard<'_, Table> {
    // Nothing under the lock calls foreign code, so nothing can have stopped halfway.
    table.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(table: &RwLock<Table>) -> RwLockWriteGuard<'_, Table> {
    table.write().unwrap_or_else(PoisonError::into_inner)
}
