//! Compaction: writes the live records to a new file beside the current one, while changes continue.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        mpsc::{self, Receiver, TryRecvError},
    },
    thread::{self, JoinHandle},
};

use super::{
    beside::{Beside, CHUNK, new_file, write_to},
    disk::{Disk, Handle},
    journal::At,
    queue::Queue,
    table::Table,
};

/// A running compaction, in a separate thread.
pub(super) struct Compaction {
    /// Where the old file ended when the compaction began. Lines that were appended since are copied unchanged.
    pub(super) from: At,
    /// Where the old file ends now.
    good: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    done: Receiver<io::Result<Copied>>,
    thread: Option<JoinHandle<()>>,
    /// How much of the new file was allocated in advance.
    pub(super) allocated: u64,
}

/// The new file, and how far the old one was copied.
pub(super) struct Copied {
    pub(super) beside: Beside,
    pub(super) until: u64,
}

impl Compaction {
    /// Starts a compaction in the background. It wakes the writer when it is done.
    pub(super) fn start(
        disk: Arc<dyn Disk>,
        table: Arc<RwLock<Table>>,
        queue: Arc<Queue>,
        old: Arc<dyn Handle>,
        from: At,
        new: Option<(Arc<dyn Handle>, u64)>,
    ) -> io::Result<Self> {
        let (new, allocated) = new.unzip();
        let (good, stop) = (Arc::new(AtomicU64::new(from.offset)), Arc::new(AtomicBool::new(false)));
        let (send, done) = mpsc::sync_channel(1);
        let work = {
            let (good, stop) = (Arc::clone(&good), Arc::clone(&stop));
            move || {
                // An error means that the compaction was stopped.
                let _ = send.send(copy_all(&*disk, &table, &*old, from, new, &good, &stop));
                drop((disk, old));
                queue.wake();
            }
        };
        let thread = thread::Builder::new().name("jam-session-compact".to_owned()).spawn(work)?;
        Ok(Self { from, good, stop, done, thread: Some(thread), allocated: allocated.unwrap_or_default() })
    }

    /// Tells the compaction where the old file ends now. The file is never truncated below that.
    pub(super) fn goes_on(&self, good: At) {
        self.good.store(good.offset, SeqCst);
    }

    /// Waits until the compaction is done.
    pub(super) fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Returns the result, once the compaction is done.
    pub(super) fn result(&self) -> Option<io::Result<Copied>> {
        match self.done.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(io::Error::other("the thread stopped"))),
        }
    }
}

impl Drop for Compaction {
    /// Stops the compaction, and waits for its thread, which writes to files that the lock protects.
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes the new file, and catches up with the old one until there is little left to copy.
fn copy_all(
    disk: &dyn Disk,
    table: &RwLock<Table>,
    old: &dyn Handle,
    from: At,
    new: Option<Arc<dyn Handle>>,
    good: &AtomicU64,
    stop: &AtomicBool,
) -> io::Result<Copied> {
    let new = new.map_or_else(|| new_file(disk), Ok)?;
    let mut beside = write_to(new, table, from.n, stop, &HashSet::new())?;
    let mut until = from.offset;
    for _ in 0..ROUNDS {
        let end = good.load(SeqCst);
        if stop.load(SeqCst) || end - until < CHUNK as u64 {
            break;
        }
        beside.copy(old, until, end)?;
        beside.file.sync()?;
        until = end;
    }
    Ok(Copied { beside, until })
}

/// How often it tries to catch up before the writer waits for it.
const ROUNDS: usize = 8;
