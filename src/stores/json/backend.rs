//! The JSON store's backend: it reads from the table, and hands changes to the writer.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    batch::FileBounds,
    disk::Disk,
    folder::Folder,
    journal::Durability,
    queue::{Op, OpReply, Queue, QueuedOp, closed},
    recovery::{self, Cut, Recovered},
    table::{Lookup, SOME, Table, read},
    writer::Writer,
};
use crate::{
    backend::{
        Backend, Outcome, Result,
        clear::{Clear, Cleared},
        scan::{Count, Cursor, Page},
        terms::{Created, Mark, Terms},
    },
    clock::Clock,
    error::{Error, ErrorKind},
    log,
    record::{
        Record,
        id::{Owner, RecordId},
    },
    stores::{
        cursor::{cursor, place},
        recent::TermsAt,
    },
};

/// A [`Backend`] that keeps records in memory and in a file. See the [module docs](super).
pub struct JsonBackend {
    pub(super) table: Arc<RwLock<Table>>,
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The path and options of the file, for a [`Builder`](crate::Builder) of [`JsonSessions`](super::JsonSessions).
#[derive(Clone, Debug)]
pub struct JsonFile {
    pub(super) path: PathBuf,
    pub(super) durability: Durability,
    pub(super) bounds: FileBounds,
}

impl JsonBackend {
    /// Returns the number of sessions, including expired ones that were not removed yet.
    pub fn sessions(&self) -> usize {
        read(&self.table).usage().records()
    }

    /// Returns how many bytes the sessions take at most in a file without dead lines.
    pub fn bytes(&self) -> u64 {
        read(&self.table).usage().bytes()
    }

    pub(super) async fn open(file: JsonFile, clock: Clock, slack: Duration) -> std::result::Result<Self, Error> {
        let path = file.path.clone();
        let mut table = Table::new(clock);
        table.slack = slack;
        let table = Arc::new(RwLock::new(table));
        let (queue, incoming) = Queue::new();
        let queue = Arc::new(queue);
        let (tell, told) = oneshot::channel();
        let work = {
            let (table, queue) = (Arc::clone(&table), Arc::clone(&queue));
            move || {
                let _guard = WriterGuard(&queue);
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
            log::warn!(%path, line, bytes, "a torn write was cut off the end of the sessions file");
        }
        Ok(backend)
    }

    async fn ask(&self, op: Op) -> Result<OpReply> {
        let (answer, answered) = oneshot::channel();
        self.queue.push(QueuedOp { op, answer })?;
        Ok(answered.await.map_err(|_| stopped())??)
    }

    /// Has the file say that a record has expired before a reader learns of it: it must not come back after a crash with a
    /// clock that was set back.
    async fn tell_of_expiry(&self) {
        // It has expired even if this cannot be written.
        let _ = self.ask(Op::Expire).await;
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
    let mut writer = Writer::new(disk, Arc::clone(table), Arc::clone(queue), journal, file.durability);
    writer.bounds = file.bounds;
    Ok((writer, cut))
}

impl Backend for JsonBackend {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        let found = self.read()?.load(id);
        Ok(match found {
            Lookup::Live(record) => Some(record),
            Lookup::Nothing => None,
            Lookup::Expired => {
                self.tell_of_expiry().await;
                None
            }
        })
    }

    async fn create(&self, record: Record, terms: Terms) -> Result<Created> {
        let terms = {
            let table = self.read()?;
            TermsAt::new(terms, || table.now())
        };
        match self.ask(Op::Create { new: record.into(), terms: terms.into() }).await? {
            OpReply::Created(created) => Ok(created),
            _ => Err(mistaken().into()),
        }
    }

    async fn update(&self, expected: i64, record: Record, retry: bool) -> Result<Outcome> {
        match self.ask(Op::Update { expected, new: record.into(), retry }).await? {
            OpReply::Updated(outcome) => Ok(outcome),
            _ => Err(mistaken().into()),
        }
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        self.ask(Op::Touch { id, version, ttl }).await.map(drop)
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        Ok(matches!(self.ask(Op::Delete { id }).await?, OpReply::Found(true)))
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        let (live, has_expired) = self.read()?.list(owner);
        if has_expired {
            self.tell_of_expiry().await;
        }
        Ok(live)
    }

    async fn clear(&self, owner: Owner, clear: Clear) -> Result<Cleared> {
        match self.ask(Op::Clear { owner, clear }).await? {
            OpReply::Cleared(cleared) => Ok(cleared),
            _ => Err(mistaken().into()),
        }
    }

    async fn mark(&self, owner: Owner) -> Result<Mark> {
        let table = self.read()?;
        Ok(table.clears.mark(owner, table.now()))
    }

    async fn scan(&self, after: Option<Cursor>, most: usize) -> Result<Page> {
        let opening = self.read()?.clears.opening();
        let mut from = usize::try_from(place(opening, after)?)?;
        let (mut found, most, mut next) = (Vec::new(), most.max(1), None);
        // A page is less than full at the end, and where nearly all places are empty.
        for _ in 0..MOST_LOOKS.max(most / SOME) {
            next = self.read()?.some(from, most - found.len(), &mut found);
            match next {
                Some(next) if found.len() < most => from = next,
                _ => break,
            }
        }
        let (now, has_expired) = {
            let table = self.read()?;
            (table.now(), table.has_unmarked(table.now()))
        };
        if has_expired {
            self.tell_of_expiry().await;
        }
        let live = found.into_iter().filter(|(_, kept)| kept.expires > now);
        let records = live.map(|(id, kept)| kept.record(id, now)).collect();
        Ok(Page { records, next: next.map(|next| cursor(opening, next as u64)), moved: false })
    }

    async fn count(&self) -> Result<Count> {
        let (count, has_expired) = self.read()?.count();
        if has_expired {
            self.tell_of_expiry().await;
        }
        Ok(count)
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
struct WriterGuard<'a>(&'a Queue);

impl Drop for WriterGuard<'_> {
    fn drop(&mut self) {
        self.0.ended(Err(stopped()));
    }
}

fn stopped() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the file of sessions was released before it answered: the change may have been applied",
    )
}

/// Each change has an answer of its own kind, so this does not happen.
fn mistaken() -> Error {
    Error::new(ErrorKind::Unavailable, "the file of sessions gave the answer of another change")
}

/// How often a page of a scan looks for records, [`SOME`] places each time.
const MOST_LOOKS: usize = 256;
