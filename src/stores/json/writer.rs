//! The one who writes: takes what waits, decides, appends, and answers when it is on the disk.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    sync::{Arc, RwLock, atomic::AtomicBool},
    time::{Duration, Instant},
};

use super::{
    Durability,
    compact::{Beside, Compaction, write_beside},
    disk::{Disk, Handle},
    inbox::{Answer, Inbox, New, Request, Verb},
    journal::{At, Fault, Journal, Lines},
    line::Line,
    read,
    repeats::{Overwritten, Version},
    table::{Kept, Table},
    write,
};
use crate::{
    error::{Error, ErrorKind},
    record::id::{Owner, RecordId},
};

/// Owns the file. Nothing else changes it or the table, so that what holds when a batch begins holds until it ends.
pub(super) struct Writer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) table: Arc<RwLock<Table>>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) journal: Journal,
    pub(super) durability: Durability,
    pub(super) limits: Limits,
    pub(super) broken: Option<Broken>,
    /// What else may be in place, after a rename of which nothing is known; only while it is broken.
    perhaps: Vec<Arc<dyn Handle>>,
    pub(super) compaction: Option<Compaction>,
    /// No compaction below so many dead bytes, after one that failed.
    pub(super) put_off: u64,
    pub(super) last_sync: Instant,
    overwritten: Overwritten,
}

/// However the work ends, nothing is read any more: before the lock of the file is let go of, if it ends in the middle.
struct OverAtTheEnd(Arc<Inbox>);

impl Drop for OverAtTheEnd {
    fn drop(&mut self) {
        self.0.end_reads();
    }
}

/// When things are done that nobody asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The file is compacted when more than this is dead in it, and more than is alive.
    pub(super) dead: u64,
    /// With [`Durability::Flush`]: how long a change may stay with the system alone.
    pub(super) sync: Duration,
    /// How long to wait after a file could not be written anew; twice as long each time, up to a limit.
    pub(super) retry: Duration,
}

/// Nothing can be said of the file, and changes are refused until there is a new one.
pub(super) struct Broken {
    cause: String,
    retry_at: Instant,
    wait: Duration,
}

#[cfg(test)]
impl Broken {
    pub(super) fn retry_now(&mut self) {
        self.retry_at = Instant::now();
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { dead: 1 << 20, sync: Duration::from_secs(1), retry: Duration::from_millis(50) }
    }
}

impl Writer {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        table: Arc<RwLock<Table>>,
        inbox: Arc<Inbox>,
        journal: Journal,
        durability: Durability,
    ) -> Self {
        Self {
            disk,
            table,
            inbox,
            journal,
            durability,
            limits: Limits::default(),
            broken: None,
            perhaps: Vec::new(),
            compaction: None,
            put_off: 0,
            last_sync: Instant::now(),
            overwritten: Overwritten::default(),
        }
    }

    /// Works until the inbox is closed, and then leaves the file in order.
    pub(super) fn run(mut self) -> Result<(), Error> {
        let _over = OverAtTheEnd(Arc::clone(&self.inbox));
        loop {
            self.upkeep();
            let taken = self.inbox.take(self.patience());
            self.commit(taken.requests);
            if taken.closing {
                return self.finish();
            }
        }
    }

    /// One batch: all of it is written, or nothing.
    pub(super) fn commit(&mut self, requests: Vec<Request>) {
        if requests.is_empty() {
            return;
        }
        if let Err(error) = self.check() {
            return refuse(requests.into_iter().map(|request| request.answer), &error);
        }
        let table = read(&self.table);
        let mut draft = Draft::new(&table, &self.overwritten, self.journal.lines());
        let mut answers = Vec::with_capacity(requests.len());
        for Request { verb, answer } in requests {
            if !answer.is_closed() || verb.ends() {
                let renews = verb.renews();
                answers.push((answer, renews, draft.apply(verb)));
            }
        }
        if !draft.lines.is_empty() {
            draft.end_expired(2 * answers.len() + MIN_EXPIRED);
        }
        let Draft { changes, renewed, overwritten, lines, .. } = draft;
        drop(table);
        match self.append(&lines) {
            Ok(()) => {
                self.overwritten.extend(overwritten);
                let late = self.apply(changes, &renewed);
                self.end_late(&late);
                for (tell, renews, answer) in answers {
                    let is_late = renews.is_some_and(|id| late.contains(&id));
                    // Whoever does not wait any more does not want to know.
                    let _ = tell.send(Ok(if is_late { Answer::default() } else { answer }));
                }
            }
            Err(error) => refuse(answers.into_iter().map(|(answer, ..)| answer), &error),
        }
    }

    /// Ends in the file too what expired while its new time was being written. If that fails it is done with a later batch,
    /// as for all that has expired.
    fn end_late(&mut self, late: &HashSet<RecordId>) {
        if late.is_empty() {
            return;
        }
        let table = read(&self.table);
        let mut draft = Draft::new(&table, &self.overwritten, self.journal.lines());
        late.iter().for_each(|id| draft.end(*id));
        let Draft { changes, renewed, lines, .. } = draft;
        drop(table);
        if self.append(&lines).is_ok() {
            self.apply(changes, &renewed);
        }
    }

    /// Whether changes can be written, and to the right file.
    fn check(&mut self) -> Result<(), Error> {
        let path = self.disk.path().display().to_string();
        self.check_size();
        if let Some(broken) = &self.broken {
            let message = format!("{path} takes no changes until it can be written anew, after {}", broken.cause);
            if Instant::now() < broken.retry_at || self.recover().is_err() {
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

    /// Somebody may have written to the file in its place, as `cp` does. What is appended to that would be lost, and what
    /// was acknowledged is in memory. A file that cannot be reached at all is found out elsewhere.
    fn check_size(&mut self) {
        if self.broken.is_some() {
            return;
        }
        let end = self.journal.end().offset;
        if let Ok(size) = self.journal.file().size()
            && size != end
        {
            let path = self.disk.path().display();
            tracing::warn!(%path, size, end, "somebody else wrote to the sessions file");
            self.break_off(&format!("somebody else wrote to it: it had {end} bytes, and now {size}"));
        }
    }

    fn append(&mut self, lines: &Lines) -> Result<(), Error> {
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
            Err(fault) => Err(self.fault(fault)),
        }
    }

    /// Takes note of a fault, and says it.
    fn fault(&mut self, fault: Fault) -> Error {
        let path = self.disk.path().display();
        let (message, error) = match fault {
            // Not said in an event: a full disk has one for each batch, and whoever asked is told.
            Fault::NotApplied(error) => {
                (format!("{path} could not be written, and nothing was applied: {error}"), error)
            }
            Fault::Unknown(error) => {
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
        let (retry_at, wait) = (Instant::now(), self.limits.retry);
        self.broken = Some(Broken { cause: cause.to_string(), retry_at, wait });
    }

    /// Shows what is on the disk by now, and gives what came too late: somebody may have seen that it had expired, and
    /// must not see it again.
    fn apply(&mut self, changes: HashMap<RecordId, Option<Kept>>, renewed: &HashSet<RecordId>) -> HashSet<RecordId> {
        let mut late = HashSet::new();
        let mut table = write(&self.table);
        let now = table.now();
        for (id, change) in changes {
            match change {
                Some(_) if renewed.contains(&id) && table.get(&id).is_none_or(|kept| kept.expires <= now) => {
                    late.insert(id);
                }
                Some(kept) => table.put(id, kept),
                None => table.remove(&id),
            }
        }
        late
    }

    /// What is done between batches.
    pub(super) fn upkeep(&mut self) {
        if let Some(broken) = &self.broken {
            if Instant::now() >= broken.retry_at {
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
        if self.inbox.is_empty() {
            self.mark();
        }
        let dead = self.journal.good().offset.saturating_sub(read(&self.table).cost());
        let too_much = self.limits.dead.max(self.put_off).max(read(&self.table).cost());
        if self.broken.is_none() && self.compaction.is_none() && dead > too_much {
            self.start_compaction();
        }
    }

    /// How long it may wait for somebody before there is something to do.
    fn patience(&self) -> Option<Duration> {
        let until = |then: Instant| then.saturating_duration_since(Instant::now());
        match &self.broken {
            Some(broken) => Some(until(broken.retry_at)),
            None if self.journal.is_ahead_of_disk() && self.durability == Durability::Flush => {
                Some(until(self.last_sync + self.limits.sync))
            }
            None => None,
        }
    }

    fn sync(&mut self) {
        self.last_sync = Instant::now();
        match self.journal.sync() {
            Ok(()) => self.mark(),
            Err(error) => {
                // What was acknowledged is in memory. The file may have lost it, and only a new one is sure to have it.
                tracing::warn!(%error, path = %self.disk.path().display(), "the sessions file could not be synced");
                self.break_off(&error);
            }
        }
    }

    fn mark(&mut self) {
        // Behind a cut a line would stand after a hole, and the file would seem to have the right size again.
        self.check_size();
        if self.broken.is_none()
            && let Err(fault) = self.journal.mark()
        {
            self.fault(fault);
        }
    }

    pub(super) fn start_compaction(&mut self) {
        let (disk, table, inbox) = (Arc::clone(&self.disk), Arc::clone(&self.table), Arc::clone(&self.inbox));
        let old = Arc::clone(self.journal.file());
        match Compaction::start(disk, table, inbox, old, self.journal.good()) {
            Ok(compaction) => self.compaction = Some(compaction),
            Err(error) => self.put_off(&error),
        }
    }

    /// Copies what is still missing to the new file, and puts it in place of the old one.
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
        match complete.and_then(|beside| self.replace(beside, good.n, from.n)) {
            Ok(()) => {
                self.put_off = 0;
                tracing::debug!(bytes = self.journal.end().offset, "the sessions file was compacted");
            }
            Err(error) => self.put_off(&error),
        }
    }

    /// Puts a new file in place of the one in use. On an error the old one goes on, or it is known to be broken.
    fn replace(&mut self, beside: Beside, n: u64, said: u64) -> io::Result<()> {
        let old = self.in_place()?;
        let renamed = self.disk.rename();
        if let Err(error) = &renamed {
            // Where files cannot be told apart both seem to be there: there a rename that fails has not happened.
            let is_new = match self.disk.leads_to(&*old) {
                Ok(true) => Ok(false),
                Ok(false) => self.disk.leads_to(&*beside.file),
                Err(unknown) => Err(unknown),
            };
            let error = io::Error::new(error.kind(), error.to_string());
            match is_new {
                Ok(true) => {}
                Ok(false) => return Err(error),
                Err(_) => {
                    // Whichever of the two is found there later may be replaced by a third one.
                    self.perhaps = vec![old, beside.file];
                    self.break_off(&error);
                    return Err(error);
                }
            }
        }
        self.perhaps.clear();
        self.journal = Journal::new(beside.file, At { offset: beside.len, n }, said);
        let synced = renamed.and_then(|()| self.disk.sync_folder());
        if let Err(error) = &synced {
            // Which of the two is there after a power cut, nobody knows. A third one will be.
            self.break_off(error);
        }
        synced
    }

    /// The file the path leads to, if that is still the one in use, or may be: nothing else is ever replaced.
    fn in_place(&self) -> io::Result<Arc<dyn Handle>> {
        for file in std::iter::once(self.journal.file()).chain(&self.perhaps) {
            if self.disk.leads_to(&**file)? {
                return Ok(Arc::clone(file));
            }
        }
        Err(io::Error::other("the file was deleted or replaced while it was in use"))
    }

    fn put_off(&mut self, error: &io::Error) {
        let dead = self.journal.good().offset.saturating_sub(read(&self.table).cost());
        self.put_off = dead.saturating_mul(2);
        tracing::warn!(%error, path = %self.disk.path().display(), "the sessions file could not be compacted");
        // What is there is of no use. If it cannot be removed, the next one who needs the place will.
        let _ = self.disk.remove_beside();
    }

    /// Writes everything acknowledged into a new file.
    fn recover(&mut self) -> io::Result<()> {
        let n = self.journal.end().n;
        // Not for nothing.
        let checked = self.in_place();
        let written = checked.and_then(|_| write_beside(&*self.disk, &self.table, n, &AtomicBool::new(false)));
        let done = written.and_then(|beside| {
            let wait = self.broken.as_ref().map_or(self.limits.retry, |broken| broken.wait);
            let replaced = self.replace(beside, n, n);
            if let Some(broken) = &mut self.broken {
                broken.wait = wait;
            }
            replaced
        });
        match &done {
            Ok(()) => {
                self.broken = None;
                self.put_off = 0;
                tracing::info!(path = %self.disk.path().display(), "the sessions file was written anew, and takes changes");
            }
            Err(error) => {
                let _ = self.disk.remove_beside();
                if let Some(broken) = &mut self.broken {
                    broken.cause = error.to_string();
                    broken.retry_at = Instant::now() + broken.wait;
                    broken.wait = (2 * broken.wait).min(MAX_RETRY);
                }
            }
        }
        done
    }

    /// Leaves a file that says of itself that all of it is on the disk.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        if self.compaction.take().is_some() {
            let _ = self.disk.remove_beside();
        }
        if let Some(broken) = &mut self.broken {
            broken.retry_at = Instant::now();
        }
        self.check()?;
        // What has expired must not come back by a clock that is set back.
        let table = read(&self.table);
        let mut draft = Draft::new(&table, &self.overwritten, self.journal.lines());
        draft.end_expired(usize::MAX);
        let Draft { changes, renewed, lines, .. } = draft;
        drop(table);
        self.append(&lines)?;
        self.apply(changes, &renewed);
        let marked = self.journal.sync().and_then(|()| match self.journal.mark() {
            Ok(()) => self.journal.sync(),
            Err(Fault::NotApplied(error) | Fault::Unknown(error)) => Err(error),
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

/// What a batch is going to change, seen by its own verbs and by nobody else.
struct Draft<'a> {
    table: &'a Table,
    now: Duration,
    changes: HashMap<RecordId, Option<Kept>>,
    /// Those of them that were in the table, and are only to live on.
    renewed: HashSet<RecordId>,
    /// Those that are not in the table, so that a clear does not look through all changes.
    new_of: HashMap<Owner, Vec<RecordId>>,
    overwritten_before: &'a Overwritten,
    overwritten: Vec<Version>,
    lines: Lines,
}

impl<'a> Draft<'a> {
    fn new(table: &'a Table, overwritten_before: &'a Overwritten, lines: Lines) -> Self {
        let (changes, renewed, new_of, overwritten) = (HashMap::new(), HashSet::new(), HashMap::new(), Vec::new());
        Self { table, now: table.now(), changes, renewed, new_of, overwritten_before, overwritten, lines }
    }

    /// Whether it was written, and others have written since.
    fn was_written(&self, version: &Version) -> bool {
        self.overwritten.contains(version) || self.overwritten_before.knows(version)
    }

    fn live(&self, id: &RecordId) -> Option<&Kept> {
        let kept = match self.changes.get(id) {
            Some(change) => change.as_ref(),
            None => self.table.get(id),
        };
        kept.filter(|kept| kept.expires > self.now)
    }

    /// Whether it is in the table or the file, be it expired.
    fn is_there(&self, id: &RecordId) -> bool {
        self.changes.get(id).map_or_else(|| self.table.get(id).is_some(), Option::is_some)
    }

    fn apply(&mut self, verb: Verb) -> Answer {
        let done = |count| Answer { count, conflict: None };
        match verb {
            Verb::Create(new) => {
                if self.live(&new.id).is_some() {
                    return done(0);
                }
                self.put(new);
                done(1)
            }
            Verb::Update { expected, new } => match self.live(&new.id) {
                None => done(0),
                Some(kept) if kept.version != expected && self.was_written(&(new.id, new.version)) => done(1),
                Some(kept) if kept.version != expected => {
                    Answer { count: 0, conflict: Some(kept.record(new.id, self.now)) }
                }
                Some(_) if new.ttl.is_zero() => {
                    self.end(new.id);
                    done(1)
                }
                Some(_) => {
                    self.overwritten.push((new.id, expected));
                    self.renew(new.id);
                    self.put(new);
                    done(1)
                }
            },
            Verb::Touch { id, version, ttl } => {
                let Some(kept) = self.live(&id).filter(|kept| kept.version == version).cloned() else { return done(0) };
                if ttl.is_zero() {
                    self.end(id);
                    return done(1);
                }
                let (time, expires) = self.table.time(ttl);
                self.lines.push(&Line::Touch { id, version, time });
                self.renew(id);
                self.changes.insert(id, Some(Kept { time, expires, ..kept }));
                done(1)
            }
            Verb::Delete { id } => {
                let live = self.live(&id).is_some();
                // What has expired is ended too: a clock that is put right must not bring it back after this.
                if self.is_there(&id) {
                    self.end(id);
                }
                done(live.into())
            }
            Verb::Clear { owner, keep } => {
                let mut ids: Vec<RecordId> = self.table.of(owner).collect();
                ids.extend(self.new_of.get(&owner).into_iter().flatten());
                ids.retain(|id| Some(*id) != keep && self.is_there(id));
                let live = ids.iter().filter(|id| self.live(id).is_some()).count();
                if !ids.is_empty() {
                    self.lines.push(&Line::Clear { owner, keep });
                }
                for id in &ids {
                    self.renewed.remove(id);
                    self.changes.insert(*id, None);
                }
                done(live as u64)
            }
        }
    }

    fn put(&mut self, new: New) {
        let New { id, version, ttl, payload } = new;
        // A time of nothing is over before it began.
        if ttl.is_zero() {
            return;
        }
        let (time, expires) = self.table.time(ttl);
        if let Some(owner) = id.owner()
            && !self.changes.contains_key(&id)
            && self.table.get(&id).is_none()
        {
            self.new_of.entry(owner).or_default().push(id);
        }
        let line = Line::Put { id, version, time, payload };
        self.lines.push(&line);
        if let Line::Put { payload, .. } = line {
            self.changes.insert(id, Some(Kept { version, time, expires, payload }));
        }
    }

    fn end(&mut self, id: RecordId) {
        self.lines.push(&Line::End { id });
        self.renewed.remove(&id);
        self.changes.insert(id, None);
    }

    /// A live record is about to get a new time. It can come too late only for one that others see already.
    fn renew(&mut self, id: RecordId) {
        if !self.changes.contains_key(&id) {
            self.renewed.insert(id);
        }
    }

    /// Ends some of what has expired: a few with each batch, so that no one has to wait for many.
    fn end_expired(&mut self, at_most: usize) {
        let expired = self.table.expired(self.now).filter(|id| !self.changes.contains_key(id));
        let expired: Vec<RecordId> = expired.take(at_most).collect();
        expired.into_iter().for_each(|id| self.end(id));
    }
}

fn refuse(all: impl Iterator<Item = tokio::sync::oneshot::Sender<Result<Answer, Error>>>, error: &Error) {
    for answer in all {
        let _ = answer.send(Err(error.clone()));
    }
}

const MIN_EXPIRED: usize = 16;
const MAX_RETRY: Duration = Duration::from_secs(5);
