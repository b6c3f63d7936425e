//! The writer thread: group commit, upkeep, and recovery from disk errors.

use std::{
    collections::HashSet,
    fmt, io,
    sync::{Arc, RwLock, atomic::AtomicBool},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    batch::{Batch, Changes, RecentVersions},
    beside::{Beside, write_beside},
    compact::Compaction,
    disk::Disk,
    journal::{Durability, Journal, LineBuffer, WriteError},
    queue::{Answer, Incoming, Queue, Request},
    table::{Table, read, write},
};
use crate::{
    error::{Error, ErrorKind},
    record::id::RecordId,
};

/// Owns the file. Nothing else changes the file or the table, so what holds when a batch begins holds until it ends.
pub(super) struct Writer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) table: Arc<RwLock<Table>>,
    pub(super) queue: Arc<Queue>,
    pub(super) journal: Journal,
    pub(super) durability: Durability,
    pub(super) thresholds: Thresholds,
    pub(super) outage: Option<Outage>,
    pub(super) compaction: Option<Compaction>,
    /// After a compaction that failed: the next one begins above this many dead bytes.
    pub(super) put_off: u64,
    pub(super) last_sync: Instant,
    recent: RecentVersions,
}

/// When background work is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thresholds {
    /// The file is compacted when it has more dead bytes than this, and more than live ones.
    pub(super) dead: u64,
    /// With [`Durability::Flush`]: how long a change may stay in the page cache alone.
    pub(super) sync: Duration,
    /// How long to wait after the file could not be rewritten. It doubles each time, up to a limit.
    pub(super) retry: Duration,
}

/// A time without a file that can be trusted: changes are refused until a new one was written.
pub(super) struct Outage {
    cause: String,
    retry_at: Instant,
    wait: Duration,
}

#[cfg(test)]
impl Outage {
    pub(super) fn retry_now(&mut self) {
        self.retry_at = Instant::now();
    }
}

/// Ends reads when the writer ends, however it ends, and before the file's lock is released.
struct ReadsEnd(Arc<Queue>);

impl Drop for ReadsEnd {
    fn drop(&mut self) {
        self.0.end_reads();
    }
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { dead: 1 << 20, sync: Duration::from_secs(1), retry: Duration::from_millis(50) }
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
        Self {
            disk,
            table,
            queue,
            journal,
            durability,
            thresholds: Thresholds::default(),
            outage: None,
            compaction: None,
            put_off: 0,
            last_sync: Instant::now(),
            recent: RecentVersions::default(),
        }
    }

    /// Works until the queue is closed. Then it leaves the file in order.
    pub(super) fn run(mut self, incoming: &Incoming) -> Result<(), Error> {
        let _reads_end = ReadsEnd(Arc::clone(&self.queue));
        loop {
            self.upkeep();
            let requests = self.queue.take(incoming, self.patience());
            self.commit(requests);
            if self.queue.is_closing() {
                // Those that were sent before it was closed.
                let rest = self.queue.take(incoming, Some(Duration::ZERO));
                self.commit(rest);
                return self.finish();
            }
        }
    }

    /// Writes one batch, entirely or not at all.
    pub(super) fn commit(&mut self, requests: Vec<Request>) {
        if requests.is_empty() {
            return;
        }
        if let Err(error) = self.check() {
            return refuse(requests.into_iter().map(|request| request.answer), &error);
        }
        let mut answers = Vec::with_capacity(requests.len());
        let changes = self.batch(|batch| {
            for Request { op, answer } in requests {
                if !answer.is_closed() || op.ends() {
                    let extends = op.extends();
                    answers.push((answer, extends, batch.apply(op)));
                }
            }
            if !batch.is_empty() {
                batch.end_expired(2 * answers.len() + MIN_EXPIRED);
            }
        });
        match self.append(&changes.lines) {
            Ok(()) => {
                let late = self.show(changes);
                self.end_late(&late);
                for (tell, extends, answer) in answers {
                    let is_late = extends.is_some_and(|id| late.contains(&id));
                    // A caller that no longer waits does not want to know.
                    let _ = tell.send(Ok(if is_late { Answer::default() } else { answer }));
                }
            }
            Err(error) => refuse(answers.into_iter().map(|(answer, ..)| answer), &error),
        }
    }

    /// Ends records in the file that expired while their new expiry was being written. If that fails, a later batch does it,
    /// as for all expired records.
    fn end_late(&mut self, late: &HashSet<RecordId>) {
        if late.is_empty() {
            return;
        }
        let changes = self.batch(|batch| late.iter().for_each(|id| batch.end(*id)));
        if self.append(&changes.lines).is_ok() {
            self.show(changes);
        }
    }

    /// Decides what a batch changes. Readers go on meanwhile.
    fn batch(&self, fill: impl FnOnce(&mut Batch<'_>)) -> Changes {
        let table = read(&self.table);
        let mut batch = Batch::new(&table, &self.recent, self.journal.lines());
        fill(&mut batch);
        batch.finish()
    }

    /// Checks that changes can be written, and to the right file.
    fn check(&mut self) -> Result<(), Error> {
        let path = self.disk.path().display().to_string();
        self.check_size();
        if let Some(outage) = &self.outage {
            let message = format!("{path} takes no changes until it can be rewritten, after {}", outage.cause);
            if Instant::now() < outage.retry_at || self.recover().is_err() {
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
        }
        match self.disk.leads_to(&**self.journal.file()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("{path} was deleted or replaced while it was in use; the change was not applied"),
            )),
            Err(error) => {
                Err(Error::caused(ErrorKind::Unavailable, format!("{path} cannot be reached: {error}"), error))
            }
        }
    }

    /// Detects another program that wrote to the file in place, as `cp` does: lines appended to that would be lost. What was
    /// acknowledged is in memory, so the file is rewritten. A file that cannot be reached at all is detected elsewhere.
    fn check_size(&mut self) {
        if self.outage.is_some() {
            return;
        }
        let end = self.journal.end().offset;
        if let Ok(size) = self.journal.file().size()
            && size != end
        {
            let path = self.disk.path().display();
            tracing::warn!(%path, size, end, "another program wrote to the sessions file");
            self.break_off(&format!("another program wrote to it: it had {end} bytes, and now {size}"));
        }
    }

    fn append(&mut self, lines: &LineBuffer) -> Result<(), Error> {
        if lines.is_empty() {
            return Ok(());
        }
        let was_ahead = self.journal.is_ahead_of_disk();
        match self.journal.append(lines, self.durability) {
            Ok(()) => {
                if !was_ahead {
                    self.last_sync = Instant::now();
                }
                if let Some(compaction) = &self.compaction {
                    compaction.goes_on(self.journal.good());
                }
                Ok(())
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Turns an append error into the answer, and begins an outage if the file cannot be trusted.
    fn failed(&mut self, error: WriteError) -> Error {
        let path = self.disk.path().display();
        let (message, error) = match error {
            // No event: a full disk would cause one per batch, and the caller is told.
            WriteError::NotApplied(error) => {
                (format!("{path} could not be written, and nothing was applied: {error}"), error)
            }
            WriteError::Unknown(error) => {
                let message = format!(
                    "{path} could not be written, nor cut back: what was being applied may be found there or not: {error}"
                );
                tracing::warn!("{message}");
                self.break_off(&error);
                (message, error)
            }
        };
        Error::caused(ErrorKind::Unavailable, message, error)
    }

    fn break_off(&mut self, cause: &dyn fmt::Display) {
        self.compaction = None;
        let (retry_at, wait) = (Instant::now(), self.thresholds.retry);
        self.outage = Some(Outage { cause: cause.to_string(), retry_at, wait });
    }

    /// Shows readers what is on the disk now. Returns the records that had expired by then: a reader may have seen that, and
    /// must not see them again.
    fn show(&mut self, changes: Changes) -> HashSet<RecordId> {
        self.recent.extend(changes.replaced);
        let mut late = HashSet::new();
        let mut table = write(&self.table);
        let now = table.now();
        for (id, change) in changes.records {
            match change {
                Some(_) if changes.extended.contains(&id) && table.get(&id).is_none_or(|kept| kept.expires <= now) => {
                    late.insert(id);
                }
                Some(kept) => table.put(id, kept),
                None => table.remove(&id),
            }
        }
        late
    }

    /// Does the background work between batches.
    pub(super) fn upkeep(&mut self) {
        if let Some(outage) = &self.outage {
            if Instant::now() >= outage.retry_at {
                let _ = self.recover();
            }
            return;
        }
        if let Some(result) = self.compaction.as_ref().and_then(Compaction::result) {
            self.take_over(result.map(|copied| (copied.beside, copied.until)));
        }
        if self.durability == Durability::Flush && self.patience().is_some_and(|left| left.is_zero()) {
            self.sync();
        }
        if self.queue.is_empty() {
            self.mark();
        }
        let dead = self.journal.good().offset.saturating_sub(read(&self.table).cost());
        let too_much = self.thresholds.dead.max(self.put_off).max(read(&self.table).cost());
        if self.outage.is_none() && self.compaction.is_none() && dead > too_much {
            self.start_compaction();
        }
    }

    /// How long to wait for changes before background work is due.
    fn patience(&self) -> Option<Duration> {
        let until = |then: Instant| then.saturating_duration_since(Instant::now());
        match &self.outage {
            Some(outage) => Some(until(outage.retry_at)),
            None if self.journal.is_ahead_of_disk() && self.durability == Durability::Flush => {
                Some(until(self.last_sync + self.thresholds.sync))
            }
            None => None,
        }
    }

    fn sync(&mut self) {
        self.last_sync = Instant::now();
        match self.journal.sync() {
            Ok(()) => self.mark(),
            Err(error) => {
                // What was acknowledged is in memory. The file may have lost it; only a new one surely has it.
                tracing::warn!(%error, path = %self.disk.path().display(), "the sessions file could not be synced");
                self.break_off(&error);
            }
        }
    }

    fn mark(&mut self) {
        // If the file was cut, a line would stand behind a hole, and the file would seem to have the right size again.
        self.check_size();
        if self.outage.is_none()
            && let Err(error) = self.journal.mark()
        {
            self.failed(error);
        }
    }

    pub(super) fn start_compaction(&mut self) {
        let (disk, table, queue) = (Arc::clone(&self.disk), Arc::clone(&self.table), Arc::clone(&self.queue));
        let old = Arc::clone(self.journal.file());
        match Compaction::start(disk, table, queue, old, self.journal.good()) {
            Ok(compaction) => self.compaction = Some(compaction),
            Err(error) => self.put_off(&error),
        }
    }

    /// Copies what is still missing to the compacted file, and puts it in place of the old one.
    pub(super) fn take_over(&mut self, result: io::Result<(Beside, u64)>) {
        let Some(from) = self.compaction.take().map(|compaction| compaction.from) else { return };
        let good = self.journal.good();
        let complete = result.and_then(|(mut beside, until)| {
            if until < good.offset {
                beside.copy(&**self.journal.file(), until, good.offset)?;
                beside.file.sync()?;
            }
            Ok(beside)
        });
        let replaced = complete
            .map_err(WriteError::NotApplied)
            .and_then(|beside| self.journal.replace(&*self.disk, beside, good.n, from.n));
        match replaced {
            Ok(()) => {
                self.put_off = 0;
                tracing::debug!(bytes = self.journal.end().offset, "the sessions file was compacted");
            }
            Err(WriteError::NotApplied(error)) => self.put_off(&error),
            Err(WriteError::Unknown(error)) => {
                self.put_off(&error);
                self.break_off(&error);
            }
        }
    }

    fn put_off(&mut self, error: &io::Error) {
        let dead = self.journal.good().offset.saturating_sub(read(&self.table).cost());
        self.put_off = dead.saturating_mul(2);
        tracing::warn!(%error, path = %self.disk.path().display(), "the sessions file could not be compacted");
        // The half-written file is of no use. If it cannot be removed now, the next one to need the place removes it.
        let _ = self.disk.remove_beside();
    }

    /// Writes everything that was acknowledged into a new file, and ends the outage.
    fn recover(&mut self) -> io::Result<()> {
        let n = self.journal.end().n;
        // A file that is not ours is not replaced, so a new one would be of no use.
        let checked = self.journal.in_place(&*self.disk);
        let written = checked.and_then(|_| write_beside(&*self.disk, &self.table, n, &AtomicBool::new(false)));
        let done = written.and_then(|beside| Ok(self.journal.replace(&*self.disk, beside, n, n)?));
        match &done {
            Ok(()) => {
                self.outage = None;
                self.put_off = 0;
                tracing::info!(path = %self.disk.path().display(), "the sessions file was rewritten, and takes changes again");
            }
            Err(error) => {
                let _ = self.disk.remove_beside();
                if let Some(outage) = &mut self.outage {
                    outage.cause = error.to_string();
                    outage.retry_at = Instant::now() + outage.wait;
                    outage.wait = (2 * outage.wait).min(MAX_RETRY);
                }
            }
        }
        done
    }

    /// Leaves a file that says that all of it is on the disk.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        if self.compaction.take().is_some() {
            let _ = self.disk.remove_beside();
        }
        if let Some(outage) = &mut self.outage {
            outage.retry_at = Instant::now();
        }
        self.check()?;
        // An expired record must not come back if the clock is set back.
        let changes = self.batch(|batch| batch.end_expired(usize::MAX));
        self.append(&changes.lines)?;
        self.show(changes);
        let marked = self.journal.sync().and_then(|()| {
            self.journal.mark()?;
            self.journal.sync()
        });
        marked
            .or_else(|error| {
                self.break_off(&error);
                self.recover()
            })
            .map_err(|error| {
                let path = self.disk.path().display();
                Error::caused(
                    ErrorKind::Unavailable,
                    format!("the end of {path} may not be on the disk: {error}"),
                    error,
                )
            })
    }
}

fn refuse(all: impl Iterator<Item = oneshot::Sender<Result<Answer, Error>>>, error: &Error) {
    for answer in all {
        let _ = answer.send(Err(error.clone()));
    }
}

const MIN_EXPIRED: usize = 16;
const MAX_RETRY: Duration = Duration::from_secs(5);
