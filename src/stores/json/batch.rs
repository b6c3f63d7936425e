//! A batch: the changes that are written and synced together, decided in order against the table.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use super::{
    journal::LineBuffer,
    line::Line,
    queue::{Answer, Op, Put},
    table::{Kept, Table},
};
use crate::record::id::{Owner, RecordId};

/// Decides each change as if those before it had happened already. Readers see none of them yet.
pub(super) struct Batch<'a> {
    table: &'a Table,
    recent: &'a RecentVersions,
    now: Duration,
    /// What is in the table after the batch, as far as it differs.
    changes: HashMap<RecordId, Option<Kept>>,
    /// The records among them that were in the table and get a new expiry.
    extended: HashSet<RecordId>,
    /// The records that were not in the table, so that `Clear` need not look through all changes.
    new_of: HashMap<Owner, Vec<RecordId>>,
    replaced: Vec<Version>,
    lines: LineBuffer,
}

/// What a batch comes to: lines for the file, and what the table has once they are written.
pub(super) struct Changes {
    pub(super) records: HashMap<RecordId, Option<Kept>>,
    pub(super) extended: HashSet<RecordId>,
    pub(super) replaced: Vec<Version>,
    pub(super) lines: LineBuffer,
}

/// The versions that were replaced last. An update that is repeated, because its caller did not wait for the answer, is
/// recognised by the version that it wrote, and is not done twice. Repeats come soon, and from this process.
#[derive(Default)]
pub(super) struct RecentVersions {
    last: VecDeque<Version>,
    known: HashSet<Version>,
}

type Version = (RecordId, i64);

impl<'a> Batch<'a> {
    pub(super) fn new(table: &'a Table, recent: &'a RecentVersions, lines: LineBuffer) -> Self {
        Self {
            table,
            recent,
            now: table.now(),
            changes: HashMap::new(),
            extended: HashSet::new(),
            new_of: HashMap::new(),
            replaced: Vec::new(),
            lines,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn finish(self) -> Changes {
        Changes { records: self.changes, extended: self.extended, replaced: self.replaced, lines: self.lines }
    }

    pub(super) fn apply(&mut self, op: Op) -> Answer {
        let done = |count| Answer { count, conflict: None };
        match op {
            Op::Create(new) => {
                if self.live(&new.id).is_some() {
                    return done(0);
                }
                self.put(new);
                done(1)
            }
            Op::Update { expected, new } => match self.live(&new.id) {
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
                    self.replaced.push((new.id, expected));
                    self.extend(new.id);
                    self.put(new);
                    done(1)
                }
            },
            Op::Touch { id, version, ttl } => {
                let Some(kept) = self.live(&id).filter(|kept| kept.version == version).cloned() else { return done(0) };
                if ttl.is_zero() {
                    self.end(id);
                    return done(1);
                }
                let (time, expires) = self.table.time(ttl);
                self.lines.push(&Line::Touch { id, version, time });
                self.extend(id);
                self.changes.insert(id, Some(Kept { time, expires, ..kept }));
                done(1)
            }
            Op::Delete { id } => {
                let live = self.live(&id).is_some();
                // An expired record is ended too: a clock that is put right must not bring it back after this answer.
                if self.is_there(&id) {
                    self.end(id);
                }
                done(live.into())
            }
            Op::Clear { owner, keep } => {
                let mut ids: Vec<RecordId> = self.table.of(owner).collect();
                ids.extend(self.new_of.get(&owner).into_iter().flatten());
                ids.retain(|id| Some(*id) != keep && self.is_there(id));
                let live = ids.iter().filter(|id| self.live(id).is_some()).count();
                if !ids.is_empty() {
                    self.lines.push(&Line::Clear { owner, keep });
                }
                for id in &ids {
                    self.extended.remove(id);
                    self.changes.insert(*id, None);
                }
                done(live as u64)
            }
        }
    }

    /// Ends some of the expired records, so that the file forgets them too. A few per batch: no caller waits for many.
    pub(super) fn end_expired(&mut self, at_most: usize) {
        let expired = self.table.expired(self.now).filter(|id| !self.changes.contains_key(id));
        let expired: Vec<RecordId> = expired.take(at_most).collect();
        expired.into_iter().for_each(|id| self.end(id));
    }

    pub(super) fn end(&mut self, id: RecordId) {
        self.lines.push(&Line::End { id });
        self.extended.remove(&id);
        self.changes.insert(id, None);
    }

    fn put(&mut self, new: Put) {
        let Put { id, version, ttl, payload } = new;
        // With no time to live it has expired before anyone can see it.
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

    /// Notes that a live record gets a new expiry. Only one that readers see already can turn out to be too late.
    fn extend(&mut self, id: RecordId) {
        if !self.changes.contains_key(&id) {
            self.extended.insert(id);
        }
    }

    fn live(&self, id: &RecordId) -> Option<&Kept> {
        let kept = match self.changes.get(id) {
            Some(change) => change.as_ref(),
            None => self.table.get(id),
        };
        kept.filter(|kept| kept.expires > self.now)
    }

    /// Whether the record is in the table or in this batch, even if it has expired.
    fn is_there(&self, id: &RecordId) -> bool {
        self.changes.get(id).map_or_else(|| self.table.get(id).is_some(), Option::is_some)
    }

    /// Whether that version was written and then replaced by another one.
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

/// What a disk takes in some seconds. In memory that is less than a megabyte.
const REMEMBERED: usize = 4096;
