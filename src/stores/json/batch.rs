//! A batch: the changes that are written and synced together, decided in order against the table.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use super::{
    journal::LineBuffer,
    line::{Line, Moment},
    queue::{Op, OpReply, Put},
    table::{Kept, Table},
    usage::{FileUsage, Space},
};
use crate::{
    backend::{
        Outcome,
        clear::{By, Clear, Cleared},
        terms::{Created, Left},
    },
    error::{Error, ErrorKind},
    record::id::{Owner, RecordId},
    stores::recent::{RecentEndings, TermsAt, above, unknown},
};

/// Decides each change as if the changes before it had already happened. Readers do not see any of them yet.
pub(super) struct Batch<'a> {
    table: &'a Table,
    recent: &'a RecentVersions,
    bounds: FileBounds,
    now: Duration,
    /// The time to write to the file, if a record has expired and the file does not record it yet.
    moment: Option<Moment>,
    /// The records that the batch changes in the table.
    changes: HashMap<RecordId, Option<Kept>>,
    /// The space that is used after the batch. Expired records count until they have to make room.
    usage: FileUsage,
    counts_expired: bool,
    /// How far visitors' records in the table were evicted, and which records of this batch can be.
    given_way: u64,
    new_visitors: VecDeque<RecordId>,
    /// The changed records that were in the table and get a new expiry.
    extended: HashSet<RecordId>,
    /// The changed records that are not in the table. So a change to all records of an owner need not search all changes.
    new_of: HashMap<Owner, HashSet<RecordId>>,
    replaced: Vec<Version>,
    /// The last clear of each owner who had one in this batch: its name, and how many records it ended.
    cleared: HashMap<Owner, (i64, u64)>,
    lines: LineBuffer,
}

/// The limits of the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileBounds {
    pub(super) max_sessions: usize,
    pub(super) max_bytes: u64,
}

/// A decided batch: the lines for the file, and the table's new records once they are written.
pub(super) struct Changes {
    pub(super) records: HashMap<RecordId, Option<Kept>>,
    pub(super) extended: HashSet<RecordId>,
    pub(super) moment: Option<Moment>,
    pub(super) replaced: Vec<Version>,
    pub(super) cleared: HashMap<Owner, (i64, u64)>,
    pub(super) lines: LineBuffer,
}

/// The versions that were replaced most recently. They identify a retried update whose caller did not wait for the answer, so
/// that it is not applied twice. Retries come soon, and from this process.
///
/// Versions are forgotten in the order in which they were replaced. So if the version that an update expected is known, and the
/// update's own version is not, then the update was not written.
#[derive(Default)]
pub(super) struct RecentVersions {
    last: VecDeque<Version>,
    known: HashSet<Version>,
}

type Version = (RecordId, i64);

impl Default for FileBounds {
    fn default() -> Self {
        Self { max_sessions: usize::MAX, max_bytes: 1 << 30 }
    }
}

impl FileBounds {
    fn fit(&self, usage: &FileUsage) -> bool {
        usage.records() <= self.max_sessions && usage.bytes() <= self.max_bytes
    }
}

impl<'a> Batch<'a> {
    pub(super) fn new(table: &'a Table, recent: &'a RecentVersions, bounds: FileBounds, mut lines: LineBuffer) -> Self {
        let now = table.now();
        // A record that was seen as expired must not come back if the clock is set back, so the file records it first.
        let moment = table.has_unmarked(now).then(|| table.moment());
        if moment.is_some() {
            lines.push(&Line::Synced { moment });
        }
        Self {
            table,
            recent,
            bounds,
            now,
            moment,
            changes: HashMap::new(),
            usage: table.usage(),
            counts_expired: true,
            given_way: 0,
            new_visitors: VecDeque::new(),
            extended: HashSet::new(),
            new_of: HashMap::new(),
            replaced: Vec::new(),
            cleared: HashMap::new(),
            lines,
        }
    }

    pub(super) fn finish(self) -> Changes {
        let Self { changes: records, extended, moment, replaced, cleared, lines, .. } = self;
        Changes { records, extended, moment, replaced, cleared, lines }
    }

    /// # Errors
    /// A limit is reached and nothing can be evicted, or it is a retry that cannot be answered. Nothing is applied then.
    pub(super) fn apply(&mut self, op: Op) -> Result<OpReply, Error> {
        Ok(match op {
            Op::Create { new, terms } => OpReply::Created(self.create(new, &terms)?),
            Op::Update { expected, new, retry } => OpReply::Updated(self.update(expected, new, retry)?),
            Op::Touch { id, version, ttl } => OpReply::Found(self.touch(id, version, ttl)),
            Op::Delete { id } => {
                let was_live = self.live(&id).is_some();
                if self.is_there(&id) {
                    self.end(id);
                }
                OpReply::Found(was_live)
            }
            Op::Clear { owner, clear } => OpReply::Cleared(self.clear(owner, clear)),
            // The batch already records this, if the file did not.
            Op::Expire => OpReply::Expired,
        })
    }

    fn create(&mut self, new: Put, terms: &TermsAt) -> Result<Created, Error> {
        let Put { id, version, .. } = new;
        let there = self.live(&id).map(|kept| kept.version);
        Ok(match there {
            // The record may have been written to since it was created.
            Some(there) if there == version || self.was_written(&(id, version)) => {
                let left = self.left(terms.leaves);
                if let (Left::Done, Some((visitor, _))) = (&left, terms.leaves) {
                    self.end(visitor);
                }
                Created::Done { ended: Vec::new(), left }
            }
            _ if self.is_late(id.owner(), terms) => Created::Late,
            _ if terms.retry && self.may_have_ended(&id) => return Err(unknown()),
            Some(_) => Created::Taken,
            None => {
                let Some(ended) = self.above_limit(id, terms) else { return Ok(Created::Full) };
                let left = self.left(terms.leaves);
                let visitor = terms.leaves.filter(|_| matches!(left, Left::Done)).map(|(visitor, _)| visitor);
                self.put(new, ended.iter().copied().chain(visitor).collect())?;
                Created::Done { ended, left }
            }
        })
    }

    /// Returns the records that end for a new one because of the limit, or `None` if the limit refuses it.
    fn above_limit(&self, id: RecordId, terms: &TermsAt) -> Option<Vec<RecordId>> {
        let Some((owner, limit)) = terms.limit_of(id.owner()) else { return Some(Vec::new()) };
        let live = self.of(owner).filter_map(|id| Some((self.live(&id)?.heard, id)));
        let mut live: Vec<(u64, RecordId)> = live.collect();
        let ends = above(limit, live.len())?;
        // The least recently used one first.
        live.sort_unstable();
        live.truncate(ends);
        Some(live.into_iter().map(|(_, id)| id).collect())
    }

    /// Decides what happens to the record that a new one leaves.
    fn left(&self, leaves: Option<(RecordId, i64)>) -> Left {
        let Some((id, version)) = leaves else { return Left::NotTried };
        match self.live(&id) {
            None => Left::Gone,
            Some(kept) if kept.version != version => Left::Conflict(kept.record(id, self.now)),
            Some(_) => Left::Done,
        }
    }

    fn update(&mut self, expected: i64, new: Put, retry: bool) -> Result<Outcome, Error> {
        let (id, version) = (new.id, new.version);
        Ok(match self.live(&id) {
            None => Outcome::Gone,
            Some(kept) if kept.version == expected => {
                if new.ttl.is_zero() {
                    self.end(id);
                } else {
                    self.put(new, Vec::new())?;
                    self.replaced.push((id, expected));
                }
                Outcome::Done
            }
            Some(_) if self.was_written(&(id, version)) => Outcome::Done,
            Some(kept) if retry && kept.version == version => Outcome::Done,
            Some(_) if retry && !self.was_written(&(id, expected)) => return Err(unknown()),
            Some(kept) => Outcome::Conflict(kept.record(id, self.now)),
        })
    }

    fn touch(&mut self, id: RecordId, version: i64, ttl: Duration) -> bool {
        let Some(kept) = self.live(&id).filter(|kept| kept.version == version).cloned() else { return false };
        if ttl.is_zero() {
            self.end(id);
            return true;
        }
        let (time, expires) = self.table.time(ttl);
        self.lines.push(&Line::Touch { id, version, time });
        self.extend(id);
        let heard = self.table.next_use();
        self.set(id, Some(Kept { time, expires, heard, ..kept }));
        true
    }

    fn clear(&mut self, owner: Owner, clear: Clear) -> Cleared {
        let Clear { name, by } = clear;
        let repeat = match self.cleared.get(&owner) {
            Some((last, ended)) => (*last == name).then_some(*ended),
            None => self.table.clears.repeat(owner, name),
        };
        if let Some(ended) = repeat {
            return Cleared::Done(ended);
        }
        if let Some(By { id, version, .. }) = by {
            match self.live(&id).filter(|_| id.owner() == Some(owner)) {
                None => return Cleared::Gone,
                Some(kept) if kept.version != version => return Cleared::Conflict(kept.record(id, self.now)),
                Some(_) => {}
            }
        }
        let keep = by.filter(|by| by.keep).map(|by| by.id);
        let ids: Vec<RecordId> = self.of(owner).filter(|id| Some(*id) != keep && self.is_there(id)).collect();
        let live = ids.iter().filter(|id| self.live(id).is_some()).count() as u64;
        if !ids.is_empty() {
            self.lines.push(&Line::Clear { owner, keep });
        }
        ids.into_iter().for_each(|id| self.remove(id));
        self.cleared.insert(owner, (name, live));
        Cleared::Done(live)
    }

    pub(super) fn end(&mut self, id: RecordId) {
        self.lines.push(&Line::End { id });
        self.remove(id);
    }

    /// Stores a record, and ends `ends` in its favour.
    fn put(&mut self, new: Put, ends: Vec<RecordId>) -> Result<(), Error> {
        let Put { id, version, ttl, payload } = new;
        // Without time to live, it has expired before any reader can see it.
        if ttl.is_zero() {
            ends.into_iter().for_each(|id| self.end(id));
            return Ok(());
        }
        if !self.make_room(id, Line::cost(&payload), &ends) {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the sessions in the file have reached max_sessions or max_bytes, and no visitor's session is left to evict",
            ));
        }
        ends.iter().for_each(|id| self.remove(*id));
        let (time, expires) = self.table.time(ttl);
        match id.owner() {
            Some(owner) if self.table.get(&id).is_none() => _ = self.new_of.entry(owner).or_default().insert(id),
            None if !self.is_there(&id) => self.new_visitors.push_back(id),
            _ => {}
        }
        if self.live(&id).is_some() {
            self.extend(id);
        }
        // All of this is one line, so that after a torn write they have ended exactly if the new record is there.
        let line = Line::Put { id, version, time, payload, ends };
        self.lines.push(&line);
        if let Line::Put { payload, .. } = line {
            let heard = self.table.next_use();
            self.set(id, Some(Kept { version, time, expires, heard, payload }));
        }
        Ok(())
    }

    /// Evicts records until one of this size fits, or none at all if that would not be enough. The space of the record's old
    /// value and of `ends` is available to it.
    fn make_room(&mut self, id: RecordId, cost: u64, ends: &[RecordId]) -> bool {
        loop {
            let own = self.cost(&id);
            let freed: Vec<(RecordId, u64)> =
                ends.iter().chain([&id]).filter_map(|id| Some((*id, self.cost(id)?))).collect();
            let with = |mut usage: FileUsage| {
                freed.iter().for_each(|(id, cost)| usage.of(id).subtract(*cost));
                usage.of(&id).add(cost);
                usage
            };
            if self.bounds.fit(&with(self.usage)) {
                return true;
            }
            if std::mem::take(&mut self.counts_expired) {
                self.drop_expired();
                continue;
            }
            // The space without visitors, except the one that this is for.
            let mut least = FileUsage { anonymous: Space::default(), ..self.usage };
            if let (None, Some(own)) = (id.owner(), own) {
                least.anonymous.add(own);
            }
            if !self.bounds.fit(&with(least)) {
                return false;
            }
            match self.next_to_give_way(id, ends) {
                Some(visitor) => self.end(visitor),
                None => return false,
            }
        }
    }

    /// Drops expired records. This needs no line of its own, because this batch or an earlier one recorded what had expired.
    fn drop_expired(&mut self) {
        let expired = self.table.expired(self.now).filter(|id| !self.changes.contains_key(id));
        expired.collect::<Vec<_>>().into_iter().for_each(|id| self.remove(id));
    }

    /// Returns the least recently used visitor's record, except `except` and those that end anyway.
    fn next_to_give_way(&mut self, except: RecordId, ends: &[RecordId]) -> Option<RecordId> {
        while let Some((order, id)) = self.table.least_used(self.given_way) {
            self.given_way = order + 1;
            // A record that was written in this batch was used just now.
            match self.changes.get(&id) {
                None if id != except && !ends.contains(&id) => return Some(id),
                Some(Some(_)) => self.new_visitors.push_back(id),
                _ => {}
            }
        }
        let can = |id: &RecordId| *id != except && !ends.contains(id) && self.live(id).is_some();
        let at = self.new_visitors.iter().position(can)?;
        self.new_visitors.remove(at)
    }

    /// Notes that a live record gets a new expiry. This can only be too late for a record that readers already see.
    fn extend(&mut self, id: RecordId) {
        if !self.changes.contains_key(&id) {
            self.extended.insert(id);
        }
    }

    fn remove(&mut self, id: RecordId) {
        self.extended.remove(&id);
        if let Some(new) = id.owner().and_then(|owner| self.new_of.get_mut(&owner)) {
            new.remove(&id);
        }
        self.set(id, None);
    }

    fn set(&mut self, id: RecordId, kept: Option<Kept>) {
        if let Some(before) = self.cost(&id) {
            self.usage.of(&id).subtract(before);
        }
        if let Some(kept) = &kept {
            self.usage.of(&id).add(Line::cost(&kept.payload));
        }
        self.changes.insert(id, kept);
    }

    /// Returns the records of an owner in the table or in this batch, including those that ended in it.
    fn of(&self, owner: Owner) -> impl Iterator<Item = RecordId> {
        self.table.of(owner).chain(self.new_of.get(&owner).into_iter().flatten().copied())
    }

    /// Returns how many bytes that record takes.
    fn cost(&self, id: &RecordId) -> Option<u64> {
        self.there(id).map(|kept| Line::cost(&kept.payload))
    }

    fn there(&self, id: &RecordId) -> Option<&Kept> {
        match self.changes.get(id) {
            Some(change) => change.as_ref(),
            None => self.table.get(id),
        }
    }

    fn live(&self, id: &RecordId) -> Option<&Kept> {
        self.there(id).filter(|kept| kept.expires > self.now)
    }

    /// Returns whether the record is in the table or in this batch, even if it has expired.
    fn is_there(&self, id: &RecordId) -> bool {
        self.there(id).is_some()
    }

    /// Returns whether a new record of this owner is too late. A clear in this batch counts as happening right now.
    fn is_late(&self, owner: Option<Owner>, terms: &TermsAt) -> bool {
        terms.are_late(&self.table.clears, owner, self.now)
            || terms.has_since() && owner.is_some_and(|owner| self.cleared.contains_key(&owner))
    }

    /// Returns whether a user's record with that name ended recently, or may have.
    fn may_have_ended(&self, id: &RecordId) -> bool {
        let has_ended = match self.changes.get(id) {
            Some(change) => change.is_none(),
            None => {
                let dead = self.table.get(id).filter(|kept| kept.expires <= self.now);
                dead.is_some_and(|kept| RecentEndings::is_recent(kept.expires, self.now))
            }
        };
        id.owner().is_some() && (has_ended || self.table.endings.may_have(*id, self.now))
    }

    /// Returns whether that version was written and then replaced by another one.
    fn was_written(&self, version: &Version) -> bool {
        self.replaced.contains(version) || self.recent.contains(version)
    }
}

impl RecentVersions {
    fn contains(&self, version: &Version) -> bool {
        self.known.contains(version)
    }

    pub(super) fn extend(&mut self, versions: Vec<Version>) {
        for version in versions {
            if self.known.insert(version) {
                self.last.push_back(version);
            }
        }
        while self.last.len() > REMEMBERED {
            if let Some(oldest) = self.last.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

/// What a disk can write in a few seconds. In memory this takes less than a megabyte.
const REMEMBERED: usize = 4096;
