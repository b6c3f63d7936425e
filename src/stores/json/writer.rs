//! The writer thread: group commit. It takes the waiting changes, decides them, appends them to the file, and answers.

use std::{
    collections::HashSet,
    sync::{Arc, RwLock},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    batch::{Batch, Changes, FileBounds, RecentVersions},
    disk::Disk,
    journal::{Durability, Journal},
    queue::{Incoming, OpReply, Queue, QueuedOp},
    storage::Storage,
    table::{Table, read, write},
};
use crate::{backend::Outcome, error::Error, record::id::RecordId};

/// Owns the file. Nothing else changes the file or the table, so their state is stable while a batch is decided.
pub(super) struct Writer {
    pub(super) storage: Storage,
    pub(super) queue: Arc<Queue>,
    pub(super) bounds: FileBounds,
    recent: RecentVersions,
}

/// Ends reads when the writer ends, however it ends, and before the file's lock is released.
struct ReadsEnd(Arc<Queue>);

impl Drop for ReadsEnd {
    fn drop(&mut self) {
        self.0.end_reads();
    }
}

impl Writer {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        table: Arc<RwLock<Table>>,
        queue: Arc<Queue>,
        journal: Journal,
        durability: Durability,
    ) -> Self {
        let storage = Storage::new(disk, table, Arc::clone(&queue), journal, durability);
        Self { storage, queue, bounds: FileBounds::default(), recent: RecentVersions::default() }
    }

    /// Runs until the queue is closed, and then finishes the file.
    pub(super) fn run(mut self, incoming: &Incoming) -> Result<(), Error> {
        let _reads_end = ReadsEnd(Arc::clone(&self.queue));
        loop {
            self.storage.upkeep();
            let requests = self.queue.take(incoming, self.storage.patience());
            self.commit(requests);
            if self.queue.is_closing() {
                // Changes that were sent before the queue was closed.
                let rest = self.queue.take(incoming, Some(Duration::ZERO));
                self.commit(rest);
                return self.finish();
            }
        }
    }

    /// Writes one batch, entirely or not at all.
    pub(super) fn commit(&mut self, requests: Vec<QueuedOp>) {
        if requests.is_empty() {
            return;
        }
        if let Err(error) = self.storage.check() {
            return refuse(requests.into_iter().map(|request| request.answer), &error);
        }
        let full = self.storage.make_room(&requests).err();
        if self.storage.outage.is_some()
            && let Err(error) = self.storage.check()
        {
            return refuse(requests.into_iter().map(|request| request.answer), &error);
        }
        let mut answers = Vec::with_capacity(requests.len());
        let changes = self.batch(|batch| {
            for QueuedOp { op, answer } in requests {
                if answer.is_closed() && !op.ends() {
                    continue;
                }
                let extends = op.extends();
                let result = match &full {
                    Some(full) if op.grows() => Err(full.clone()),
                    _ => batch.apply(op),
                };
                answers.push((answer, extends, result));
            }
        });
        match self.storage.append(&changes.lines) {
            Ok(()) => {
                let late = self.show(changes);
                self.end_late(&late);
                for (tell, extends, answer) in answers {
                    let is_late = extends.is_some_and(|id| late.contains(&id));
                    // An error means that the caller has given up.
                    let _ = tell.send(if is_late { Ok(OpReply::Updated(Outcome::Gone)) } else { answer });
                }
            }
            Err(error) => refuse(answers.into_iter().map(|(answer, ..)| answer), &error),
        }
    }

    /// Ends records that expired while their new expiry was being written. If that fails, a later batch does it, as for all
    /// expired records.
    fn end_late(&mut self, late: &HashSet<RecordId>) {
        if late.is_empty() {
            return;
        }
        let changes = self.batch(|batch| late.iter().for_each(|id| batch.end(*id)));
        if self.storage.append(&changes.lines).is_ok() {
            self.show(changes);
        }
    }

    /// Decides what a batch changes. Readers are not blocked.
    fn batch(&self, fill: impl FnOnce(&mut Batch<'_>)) -> Changes {
        let table = read(&self.storage.table);
        let mut batch = Batch::new(&table, &self.recent, self.bounds, self.storage.journal.lines());
        fill(&mut batch);
        batch.finish()
    }

    /// Makes the written changes visible to readers. Returns the records that had expired before that: a reader may have seen
    /// them as expired, and must not see them live again.
    fn show(&mut self, changes: Changes) -> HashSet<RecordId> {
        self.recent.extend(changes.replaced);
        let mut late = HashSet::new();
        let mut table = write(&self.storage.table);
        let now = table.now();
        for (id, change) in changes.records {
            match change {
                Some(_) if changes.extended.contains(&id) && table.get(&id).is_none_or(|kept| kept.expires <= now) => {
                    late.insert(id);
                }
                Some(kept) => table.put(id, kept),
                None => table.end(&id, now),
            }
        }
        for (owner, (name, ended)) in changes.cleared {
            // The clear counts from now, and not from when it was decided, because until now readers saw the records.
            table.clears.remember(owner, name, ended, now);
        }
        if let Some(moment) = changes.moment {
            table.set_marked(moment.at);
        }
        // Remove expired records that the file has recorded. The lock is released in between, so that readers never wait for
        // long.
        let mut has_more = table.purge();
        drop(table);
        while has_more {
            has_more = write(&self.storage.table).purge();
        }
        late
    }

    /// Finishes the file with a line that says that all of it was synced.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.storage.stop()?;
        // An expired record must not come back if the clock is set back.
        let changes = self.batch(|_| {});
        self.storage.append(&changes.lines)?;
        self.show(changes);
        self.storage.finish()
    }
}

fn refuse(all: impl Iterator<Item = oneshot::Sender<Result<OpReply, Error>>>, error: &Error) {
    for answer in all {
        let _ = answer.send(Err(error.clone()));
    }
}
