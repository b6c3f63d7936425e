//! The storage: the current file, with its reserve, its compactions, and its recovery from disk errors.

use std::{
    collections::HashSet,
    fmt, io,
    sync::{Arc, RwLock, atomic::AtomicBool},
    time::{Duration, Instant},
};

use super::{
    beside::{new_file, write_beside, write_to},
    compact::{Compaction, Copied},
    disk::Disk,
    journal::{Durability, Journal, LineBuffer, WriteError},
    line::Line,
    outage::Outage,
    queue::{Queue, QueuedOp},
    reserve::Reserve,
    table::{Table, read, write},
    thresholds::{MIN_GAIN, Thresholds},
};
use crate::{
    error::{Error, ErrorKind},
    log::{self, RateLimit},
    record::id::RecordId,
};

/// The current file. The table contains exactly the records of the file.
pub(super) struct Storage {
    disk: Arc<dyn Disk>,
    pub(super) table: Arc<RwLock<Table>>,
    queue: Arc<Queue>,
    pub(super) journal: Journal,
    durability: Durability,
    pub(super) thresholds: Thresholds,
    reserve: Reserve,
    pub(super) outage: Option<Outage>,
    pub(super) compaction: Option<Compaction>,
    /// After a failed compaction, the next one begins above this many dead bytes.
    put_off: u64,
    pub(super) last_sync: Instant,
    limit: RateLimit,
}

impl Storage {
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
            reserve: Reserve::default(),
            outage: None,
            compaction: None,
            put_off: 0,
            last_sync: Instant::now(),
            limit: RateLimit::default(),
        }
    }

    /// Checks that changes can be written, and that they go to the right file.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        let path = self.disk.path().display().to_string();
        self.check_content();
        if let Some(outage) = &self.outage {
            let message = format!("{path} accepts no changes until it could be rewritten, after {}", outage.cause());
            if !outage.patience().is_zero() || self.recover().is_err() {
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

    /// Detects that another program wrote to the file in place, as `cp` does, so that appended lines would be lost. All
    /// acknowledged changes are in memory, so the file is rewritten. A file that cannot be reached at all is detected
    /// elsewhere.
    fn check_content(&mut self) {
        if self.outage.is_some() {
            return;
        }
        if let Ok(Some(damage)) = self.journal.damage() {
            let path = self.disk.path().display();
            log::limited!(warn, self.limit, (%path, %damage,), "another program wrote to the sessions file");
            self.break_off(&format!("another program wrote to it: {damage}"));
        }
    }

    pub(super) fn append(&mut self, lines: &LineBuffer) -> Result<(), Error> {
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
            Err(error) => {
                // Truncating the file released the space that was allocated after its end.
                self.reserve.set_tail(0);
                Err(self.failed(error))
            }
        }
    }

    /// Reserves disk space for a batch, and in addition for sign-outs and a compaction.
    ///
    /// # Errors
    /// The disk is full. Changes that only end records still fit.
    pub(super) fn make_room(&mut self, requests: &[QueuedOp]) -> Result<(), Error> {
        let growth = {
            let table = read(&self.table);
            requests.iter().map(|request| request.op.growth(&table)).sum()
        };
        if self.ensure(growth).is_ok() {
            return Ok(());
        }
        if growth > 0 {
            self.tidy_up(growth);
        }
        let ensured = self.ensure(growth);
        // In addition to the changes: a line that says what has expired, and one that says what was synced.
        let lines = Line::SHORT * (requests.len() as u64 + 2);
        if ensured.is_err() && !self.reserve.holds(self.journal.end().offset, lines) {
            // Changes that end records must fit, even if the rest of the batch is refused.
            self.tidy_up(0);
        }
        match ensured {
            Err(error) if growth > 0 => Err(self.failed(WriteError::NotApplied(error))),
            _ => Ok(()),
        }
    }

    fn ensure(&mut self, growth: u64) -> io::Result<()> {
        let live = self.compaction.is_none().then(|| read(&self.table).cost() + growth);
        let (file, end) = (self.journal.file(), self.journal.end().offset);
        self.reserve.ensure(&*self.disk, &**file, end, growth, live)
    }

    /// On a full disk, evicts visitors' sessions for new ones, and rewrites the file if that makes enough room. For sign-outs (a
    /// growth of 0), the file is rewritten whenever the reserve has space for that.
    fn tidy_up(&mut self, growth: u64) {
        if let Some(compaction) = &mut self.compaction {
            compaction.wait();
            self.take_over_if_done();
            if self.outage.is_some() || self.ensure(growth).is_ok() {
                return;
            }
        }
        let (give_way, live, gained) = {
            let table = read(&self.table);
            let all = table.live_cost();
            // Keep a part for further changes, or each of them would need a compaction.
            let allowed = self.reserve.capacity().unwrap_or(all) / 4 * 3;
            let wanted = if growth > 0 { (all + growth).saturating_sub(allowed) } else { 0 };
            let (mut give_way, mut given) = table.least_used_of(wanted);
            // If that is not enough for the new records, evict none.
            if given < growth {
                (give_way, given) = (HashSet::new(), 0);
            }
            let dead = self.journal.end().offset.saturating_sub(all);
            (give_way, all - given, dead + given)
        };
        // For sign-outs a rewrite is always worth it, because the new file has so much space after its end that not every
        // sign-out needs a rewrite.
        let is_reserved = growth == 0 && self.reserve.capacity().is_some_and(|capacity| capacity >= live);
        if is_reserved || gained >= (live / 4).max(MIN_GAIN) {
            self.rewrite(&give_way);
        }
    }

    /// Replaces the current file with one without dead lines, and without some of the records.
    fn rewrite(&mut self, give_way: &HashSet<RecordId>) {
        let n = self.journal.end().n;
        let new = self.reserve.take().map_or_else(|| new_file(&*self.disk).map(|file| (file, 0)), Ok);
        let written = new.and_then(|(file, allocated)| {
            Ok((write_to(file, &self.table, n, &AtomicBool::new(false), give_way)?, allocated))
        });
        let replaced = written.map_err(WriteError::NotApplied).and_then(|(beside, allocated)| {
            let (allocated, at) = (allocated.max(beside.len), beside.moment.at);
            self.journal.replace(&*self.disk, beside, n, n)?;
            Ok((allocated, at))
        });
        if let Some((allocated, at)) = self.compacted(replaced) {
            self.reserve.set_tail(allocated);
            let mut table = write(&self.table);
            give_way.iter().for_each(|id| table.remove(id));
            table.set_marked(at);
            while table.purge() {}
        }
    }

    /// Records the result of a compaction.
    fn compacted<T>(&mut self, replaced: Result<T, WriteError>) -> Option<T> {
        match replaced {
            Ok(done) => {
                self.put_off = 0;
                log::debug!(bytes = self.journal.end().offset, "the sessions file was compacted");
                Some(done)
            }
            Err(WriteError::NotApplied(error)) => {
                self.put_off(&error);
                None
            }
            Err(WriteError::Unknown(error)) => {
                self.put_off(&error);
                self.break_off(&error);
                None
            }
        }
    }

    /// Turns an append error into the answer, and begins an outage if the file cannot be trusted.
    fn failed(&mut self, error: WriteError) -> Error {
        let path = self.disk.path().display();
        let (message, error) = match error {
            // Not logged, because a full disk would cause one message per batch, and the caller gets the error.
            WriteError::NotApplied(error) => {
                (format!("{path} could not be written, and nothing was applied: {error}"), error)
            }
            WriteError::Unknown(error) => {
                let message = format!(
                    "{path} could not be written or cut back, so the change may or may not have been applied: {error}"
                );
                log::limited!(
                    warn,
                    self.limit,
                    (%error, %path,),
                    "could not write the sessions file, and could not undo the write"
                );
                self.break_off(&error);
                (message, error)
            }
        };
        Error::caused(ErrorKind::Unavailable, message, error)
    }

    fn break_off(&mut self, cause: &dyn fmt::Display) {
        self.compaction = None;
        self.outage = Some(Outage::new(cause.to_string(), self.thresholds.retry));
    }

    /// Does the background work between batches.
    pub(super) fn upkeep(&mut self) {
        if let Some(outage) = &self.outage {
            if outage.patience().is_zero() {
                let _ = self.recover();
            }
            return;
        }
        self.take_over_if_done();
        if self.durability == Durability::Flush && self.patience().is_some_and(|left| left.is_zero()) {
            self.sync();
        }
        if self.queue.is_empty() {
            self.mark();
        }
        if self.outage.is_some() || self.compaction.is_some() {
            return;
        }
        let live = read(&self.table).cost();
        let dead = self.journal.good().offset.saturating_sub(live);
        // A file without live records is started over.
        let too_much = if live == 0 { MIN_GAIN } else { self.thresholds.dead.max(live) };
        if dead > too_much.max(self.put_off) {
            self.start_compaction();
        } else {
            // Without a reserve the store also keeps working, as long as the disk has space.
            let _ = self.ensure(0);
        }
    }

    fn take_over_if_done(&mut self) {
        if let Some(result) = self.compaction.as_ref().and_then(Compaction::result) {
            self.take_over(result);
        }
    }

    /// Returns how long to wait for changes until background work is due.
    pub(super) fn patience(&self) -> Option<Duration> {
        let until = |then: Instant| then.saturating_duration_since(Instant::now());
        match &self.outage {
            Some(outage) => Some(outage.patience()),
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
                // The acknowledged changes are in memory. The file may have lost them, so only a new file certainly has them.
                let path = self.disk.path().display();
                log::limited!(warn, self.limit, (%error, %path,), "could not sync the sessions file");
                self.break_off(&error);
            }
        }
    }

    fn mark(&mut self) {
        if self.journal.is_marked() {
            return;
        }
        // If the file was truncated, this line would come after a hole, and the file would seem to have the right size again.
        self.check_content();
        if self.outage.is_none()
            && let Err(error) = self.mark_journal()
        {
            self.reserve.set_tail(0);
            self.failed(error);
        }
    }

    fn mark_journal(&mut self) -> Result<(), WriteError> {
        let moment = read(&self.table).moment();
        self.journal.mark(moment)
    }

    pub(super) fn start_compaction(&mut self) {
        let (disk, table, queue) = (Arc::clone(&self.disk), Arc::clone(&self.table), Arc::clone(&self.queue));
        let old = Arc::clone(self.journal.file());
        match Compaction::start(disk, table, queue, old, self.journal.good(), self.reserve.take()) {
            Ok(compaction) => self.compaction = Some(compaction),
            Err(error) => self.put_off(&error),
        }
    }

    /// Copies the remaining lines to the compacted file, and replaces the old file with it.
    fn take_over(&mut self, result: io::Result<Copied>) {
        let Some((from, allocated)) = self.compaction.take().map(|done| (done.from, done.allocated)) else { return };
        let good = self.journal.good();
        let complete = result.and_then(|Copied { mut beside, until }| {
            if until < good.offset {
                beside.copy(&**self.journal.file(), until, good.offset)?;
                beside.file.sync()?;
            }
            Ok(beside)
        });
        // If another program wrote to the file, the copy is worthless.
        self.check_content();
        if self.outage.is_some() {
            return;
        }
        let replaced = complete.map_err(WriteError::NotApplied).and_then(|beside| {
            let allocated = allocated.max(beside.len);
            self.journal.replace(&*self.disk, beside, good.n, from.n)?;
            Ok(allocated)
        });
        if let Some(allocated) = self.compacted(replaced) {
            self.reserve.set_tail(allocated);
        }
    }

    fn put_off(&mut self, error: &io::Error) {
        let dead = self.journal.good().offset.saturating_sub(read(&self.table).cost());
        self.put_off = dead.saturating_mul(2);
        let path = self.disk.path().display();
        log::limited!(warn, self.limit, (%error, %path,), "could not compact the sessions file");
        // The half-written file is useless. If it cannot be removed now, the next compaction removes it.
        self.reserve.forget_next();
        let _ = self.disk.remove_beside();
    }

    /// Writes all acknowledged changes to a new file, and ends the outage.
    fn recover(&mut self) -> io::Result<()> {
        let n = self.journal.end().n;
        // The new file needs the reserve's place.
        self.reserve = Reserve::default();
        // A foreign file is never replaced, so a new file would be useless.
        let checked = self.journal.in_place(&*self.disk);
        let written = checked.and_then(|_| write_beside(&*self.disk, &self.table, n, &AtomicBool::new(false)));
        let done = written.and_then(|beside| Ok(self.journal.replace(&*self.disk, beside, n, n)?));
        match &done {
            Ok(()) => {
                self.outage = None;
                self.put_off = 0;
                let path = self.disk.path().display();
                log::limited!(
                    info,
                    self.limit,
                    (%path,),
                    "the sessions file was rewritten and accepts writes again"
                );
            }
            Err(error) => {
                let _ = self.disk.remove_beside();
                if let Some(outage) = &mut self.outage {
                    outage.go_on(error.to_string());
                }
            }
        }
        done
    }

    /// Stops the background work, and checks that the rest can be written.
    pub(super) fn stop(&mut self) -> Result<(), Error> {
        if self.compaction.take().is_some() || self.reserve.take().is_some() {
            let _ = self.disk.remove_beside();
        }
        if let Some(outage) = &mut self.outage {
            outage.retry_now();
        }
        self.check()
    }

    /// Syncs everything to the disk, and records that in the file.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        let marked = self.journal.sync().and_then(|()| {
            self.mark_journal()?;
            self.journal.sync()
        });
        match marked {
            Ok(()) => self.check_content(),
            Err(error) => self.break_off(&error),
        }
        if self.outage.is_none() {
            return Ok(());
        }
        self.recover().map_err(|error| {
            let path = self.disk.path().display();
            Error::caused(ErrorKind::Unavailable, format!("the end of {path} may not be on the disk: {error}"), error)
        })
    }
}
