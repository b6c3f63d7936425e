//! Sessions in one file. What was answered is on the disk, and nothing has to be installed.
//!
//! ```
//! use jam_session::stores::json::JsonSessions;
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
//! # Durability
//!
//! Reads are served from memory. They show every change that was acknowledged, and no other. Changes that come at the same
//! time are written and synced together (group commit) by a thread of their own, so the async runtime never waits for the
//! disk. An acknowledged change survives,
//!
//! * with [`Durability::Sync`], the end of the process and a power cut, provided that the disk keeps what it says was
//!   synced;
//! * with [`Durability::Flush`], the end of the process. A power cut may lose the last second: all changes from some point
//!   on.
//!
//! A change that fails is [`Unavailable`](ErrorKind::Unavailable). The error says whether nothing was applied, or whether
//! that is unknown; then the change turns out later to have happened entirely or not at all. While the file cannot be
//! trusted, changes are [`Unavailable`](ErrorKind::Unavailable), and reads go on.
//!
//! Opening fails, and leaves the file as it was, if the file is not one of ours, or if it is damaged where it says that it
//! had been synced. Damage after that point is normally a torn write: it was being written when the machine stopped, and was
//! never acknowledged. It is cut off, with a `warn` event. If the process was killed before it could write that its last
//! batch was synced, then damage to that batch is also taken for a torn write. Sessions that expired while nothing ran are
//! gone.
//!
//! [`close`](Sessions::close) waits for what is under way and releases the file. Dropping the last handle does so too, and
//! blocks the thread that drops it for a moment.
//!
//! # The file
//!
//! The file has one JSON object per line: first the sessions that there were when it was written, then each change since.
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
//! * `sum` is the CRC-32 of everything after its comma.
//! * `n` counts the changes. `synced` is the last change that was on the disk before this line was written: damage after it
//!   is a torn write, damage before it is an error.
//! * `until` is in milliseconds since 1970, `ttl` is what it was on writing.
//! * A payload that is not JSON is written as `base64`.
//!
//! When more than half of the file, and more than 1 MiB, is dead, the file is compacted: the live sessions are written to
//! `sessions.json.compacting`, which is then renamed to `sessions.json`. Requests go on meanwhile. `sessions.json.lock` is
//! locked while the file is in use, because only one process may use it, and may stay behind empty.
//!
//! On Unix all three files are for their owner alone (mode 0600), and a symbolic link in the place of one is refused. On
//! other systems the folder decides who may read them, and links are followed. The folder should belong to the application:
//! a user who can write to it can put another file in place before it is opened.
//!
//! If the file is removed or replaced while it is in use, changes are refused. If another program writes to it in place, so
//! that its length changes, it is rewritten from memory.
//!
//! ```sh
//! cp sessions.json backup.json                                    # while nothing runs
//! jq -r 'select(.op == "put") | .json.key' sessions.json | sort | uniq -c
//! jq -c 'select(.op == "put") | .json.data' sessions.json
//! rm sessions.json                                                # while nothing runs: signs everybody out
//! ```
//!
//! A copy made while the file is in use is mostly as good: a last line that was cut in two does no harm. But the copy may be
//! made at the moment when a failed change is cut off, and contain both that and what was written instead. Open the copy
//! before relying on it, and copy again if that fails. To restore a backup, stop the application first.
//!
//! Do not edit the file: a line whose checksum is wrong is not read. It contains names and data of users, and hashes instead
//! of session IDs.

mod batch;
mod beside;
mod compact;
mod disk;
mod journal;
mod line;
mod queue;
mod recovery;
#[cfg(test)]
mod sim;
mod table;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::oneshot;

pub use self::journal::Durability;
use self::{
    disk::{Disk, Folder},
    queue::{Answer, Op, Queue, Request, closed},
    recovery::{Cut, Recovered},
    table::{Table, read},
    writer::Writer,
};
use crate::{
    backend::{Backend, Outcome, Result},
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

/// A [`Backend`] that keeps records in memory and in a file. See the [module docs](self).
pub struct JsonBackend {
    table: Arc<RwLock<Table>>,
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The path and options of the file, for a [`Builder`] of [`JsonSessions`].
#[derive(Clone, Debug)]
pub struct JsonFile {
    path: PathBuf,
    durability: Durability,
}

impl JsonSessions {
    /// Opens the file with every option at its default. It is created if it does not exist.
    ///
    /// # Errors
    /// As [`Builder::open`](Builder::<JsonFile>::open).
    pub async fn open(path: impl AsRef<Path>) -> std::result::Result<Self, Error> {
        Self::builder(path).open().await
    }

    /// Returns a builder for sessions in that file.
    pub fn builder(path: impl AsRef<Path>) -> Builder<JsonFile> {
        Builder::new(JsonFile { path: path.as_ref().to_owned(), durability: Durability::default() }).in_text()
    }
}

impl Builder<JsonFile> {
    /// Sets when a change is acknowledged. Default: [`Durability::Sync`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.from.durability = durability;
        self
    }

    /// Opens the file, or creates it.
    ///
    /// # Errors
    /// Nothing is overwritten, and the error comes with an explanation:
    /// * [`ErrorKind::Config`] for what stays wrong until it is changed: an option that cannot work, a folder that does not
    ///   exist or is not writable, a file that is not ours or, on Unix, is a symbolic link.
    /// * [`ErrorKind::Unavailable`] for what may be over later: the file is in use, or the disk fails.
    /// * [`ErrorKind::Unreadable`] if a line that had been synced is damaged or missing, or was written by a later version.
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
        let (queue, incoming) = Queue::new();
        let queue = Arc::new(queue);
        let (tell, told) = oneshot::channel();
        let work = {
            let (table, queue) = (Arc::clone(&table), Arc::clone(&queue));
            move || {
                let _ended = Ended(&queue);
                let writer = match start(&file, &table, &queue) {
                    Ok((writer, cut)) => tell.send(Ok(cut)).is_ok().then_some(writer),
                    Err(error) => {
                        let _ = tell.send(Err(error));
                        None
                    }
                };
                // When `run` returns, the file and its lock have been released.
                if let Some(result) = writer.map(|writer| writer.run(&incoming)) {
                    queue.ended(result);
                }
            }
        };
        let spawned = thread::Builder::new().name("jam-session-json".to_owned()).spawn(work);
        let thread = spawned.map_err(|error| {
            Error::caused(ErrorKind::Unavailable, "a thread for the file of sessions could not be started", error)
        })?;
        let backend = Self { table, queue, thread: Mutex::default() };
        let cut = told.await.map_err(|_| stopped())??;
        // Not before: a caller that gives up opening must not wait in `drop` until it is done.
        *backend.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        if let Some(Cut { line, bytes }) = cut {
            let path = path.display();
            tracing::warn!(%path, line, bytes, "a torn end was cut off the sessions file, from this line on");
        }
        Ok(backend)
    }

    async fn ask(&self, op: Op) -> Result<Answer> {
        let (answer, answered) = oneshot::channel();
        self.queue.push(Request { op, answer })?;
        Ok(answered.await.map_err(|_| stopped())??)
    }

    fn read(&self) -> Result<RwLockReadGuard<'_, Table>> {
        if self.queue.is_over() {
            return Err(closed().into());
        }
        Ok(read(&self.table))
    }
}

/// Opens the file, and creates its writer.
fn start(
    file: &JsonFile,
    table: &Arc<RwLock<Table>>,
    queue: &Arc<Queue>,
) -> std::result::Result<(Writer, Option<Cut>), Error> {
    let disk: Arc<dyn Disk> = Arc::new(Folder::lock(&file.path)?);
    let Recovered { journal, cut } = recovery::open(&*disk, table)?;
    Ok((Writer::new(disk, Arc::clone(table), Arc::clone(queue), journal, file.durability), cut))
}

impl Backend for JsonBackend {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        let table = self.read()?;
        Ok(table.load(id, table.now()))
    }

    async fn create(&self, record: Record) -> Result<bool> {
        Ok(self.ask(Op::Create(record.into())).await?.count > 0)
    }

    async fn update(&self, expected: i64, record: Record) -> Result<Outcome> {
        Ok(match self.ask(Op::Update { expected, new: record.into() }).await? {
            Answer { conflict: Some(current), .. } => Outcome::Conflict(current),
            Answer { count: 0, .. } => Outcome::Gone,
            Answer { .. } => Outcome::Done,
        })
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        self.ask(Op::Touch { id, version, ttl }).await.map(drop)
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        Ok(self.ask(Op::Delete { id }).await?.count > 0)
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        let table = self.read()?;
        let now = table.now();
        Ok(table.of(owner).filter_map(|id| table.load(id, now)).collect())
    }

    async fn clear(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64> {
        Ok(self.ask(Op::Clear { owner, keep }).await?.count)
    }

    async fn close(&self) -> Result<()> {
        self.queue.end_reads();
        self.queue.close();
        Ok(self.queue.closed().await?)
    }
}

impl Drop for JsonBackend {
    /// Writes what still waits and releases the file, so that it can be opened again at once.
    fn drop(&mut self) {
        self.queue.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A waker may drop it on that very thread, which cannot wait for itself. It ends by itself.
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

/// Says that the writer has ended, even if its thread panicked.
struct Ended<'a>(&'a Queue);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.ended(Err(stopped()));
    }
}

fn stopped() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the file of sessions was released before it answered: what was under way may be in it",
    )
}
