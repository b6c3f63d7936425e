//! A batch: the changes that are written and synced together, decided in order against the table.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use super::{
    journal::LineBuffer,
    line::{Line, Moment},
    queue::{Op, OpReply, Put},
    table::{FileUsage, Kept, Space, Table},
};
use crate::{
    error::{Error, ErrorKind},
    record::id::{Owner, RecordId},
};

/// Decides each change as if those before it had happened already. Readers see none of them yet.
pub(super) struct Batch<'a> {
    table: &'a Table,
    recent: &'a RecentVersions,
    bounds: FileBounds,
    now: Duration,
    /// What the file is told of the time, if a record has expired of which it does not know.
    moment: Option<Moment>,
    /// What is in the table after the batch, as far as it differs.
    changes: HashMap<RecordId, Option<Kept>>,
    /// The room that is taken after the batch, with expired records until they are needed to make room.
    usage: FileUsage,
    counts_expired: bool,
    /// Up to where visitors' records in the table have given way, and those of this batch that can.
    given_way: u64,
    new_visitors: VecDeque<RecordId>,
    /// The records among the changes that were in the table and get a new expiry.
    extended: HashSet<RecordId>,
    /// The records that were not in the table, so that `Clear` need not look through all changes.
    new_of: HashMap<Owner, Vec<RecordId>>,
    replaced: Vec<Version>,
    lines: LineBuffer,
}

/// The most that there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileBounds {
    pub(super) max_sessions: usize,
    pub(super) max_bytes: u64,
}

/// What a batch comes to: lines for the file, and what the table has once they are written.
pub(super) struct Changes {
    pub(super) records: HashMap<RecordId, Option<Kept>>,
    pub(super) extended: HashSet<RecordId>,
    pub(super) moment: Option<Moment>,
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
        // What has been seen as expired must not come back with a clock that is set back: the file says so first.
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
            lines,
        }
    }

    pub(super) fn finish(self) -> Changes {
        let Self { changes: records, extended, moment, replaced, lines, .. } = self;
        Changes { records, extended, moment, replaced, lines }
    }

    /// # Errors
    /// A bound is reached, and nothing can give way. Nothing is applied then.
    pub(super) fn apply(&mut self, op: Op) -> Result<OpReply, Error> {
        let done = |count| Ok(OpReply { count, conflict: None });
        match op {
            Op::Create(new) => {
                if self.live(&new.id).is_some() {
                    return done(0);
                }
                self.put(new)?;
                done(1)
            }
            Op::Update { expected, new } => match self.live(&new.id) {
                None => done(0),
                Some(kept) if kept.version != expected && self.was_written(&(new.id, new.version)) => done(1),
                Some(kept) if kept.version != expected => {
                    Ok(OpReply { count: 0, conflict: Some(kept.record(new.id, self.now)) })
                }
                Some(_) if new.ttl.is_zero() => {
                    self.end(new.id);
                    done(1)
                }
                Some(_) => {
                    let replaced = (new.id, expected);
                    self.put(new)?;
                    self.replaced.push(replaced);
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
                self.set(id, Some(Kept { time, expires, ..kept }));
                done(1)
            }
            Op::Delete { id } => {
                let live = self.live(&id).is_some();
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
                ids.into_iter().for_each(|id| self.remove(id));
                done(live as u64)
            }
            // The batch says so already, if it is news.
            Op::Expire => done(0),
        }
    }

    pub(super) fn end(&mut self, id: RecordId) {
        self.lines.push(&Line::End { id });
        self.remove(id);
    }

    fn put(&mut self, new: Put) -> Result<(), Error> {
        let Put { id, version, ttl, payload } = new;
        // With no time to live it has expired before anyone can see it.
        if ttl.is_zero() {
            return Ok(());
        }
        if !self.make_room(id, Line::cost(&payload)) {
            return Err(Error::new(ErrorKind::Unavailable, "the sessions in the file have reached their bound"));
        }
        let (time, expires) = self.table.time(ttl);
        let is_new = !self.changes.contains_key(&id) && self.table.get(&id).is_none();
        match id.owner() {
            Some(owner) if is_new => self.new_of.entry(owner).or_default().push(id),
            None if !self.is_there(&id) => self.new_visitors.push_back(id),
            _ => {}
        }
        if self.live(&id).is_some() {
            self.extend(id);
        }
        let line = Line::Put { id, version, time, payload };
        self.lines.push(&line);
        if let Line::Put { payload, .. } = line {
            self.set(id, Some(Kept { version, time, expires, payload }));
        }
        Ok(())
    }

    /// Lets others give way until a record of that size fits, but none of them if that would not be enough.
    fn make_room(&mut self, id: RecordId, cost: u64) -> bool {
        loop {
            let own = self.cost(&id);
            let with = |mut usage: FileUsage| {
                let space = usage.of(&id);
                if let Some(own) = own {
                    space.subtract(own);
                }
                space.add(cost);
                usage
            };
            if self.bounds.fit(&with(self.usage)) {
                return true;
            }
            if std::mem::take(&mut self.counts_expired) {
                self.drop_expired();
                continue;
            }
            // Without visitors, except the one that this is for.
            let mut least = FileUsage { anonymous: Space::default(), ..self.usage };
            if let (None, Some(own)) = (id.owner(), own) {
                least.anonymous.add(own);
            }
            if !self.bounds.fit(&with(least)) {
                return false;
            }
            match self.next_to_give_way(id) {
                Some(visitor) => self.end(visitor),
                None => return false,
            }
        }
    }

    /// Leaves out what has expired. No line is needed for that: the batch, or one before it, says what had expired by then.
    fn drop_expired(&mut self) {
        let expired = self.table.expired(self.now).filter(|id| !self.changes.contains_key(id));
        expired.collect::<Vec<_>>().into_iter().for_each(|id| self.remove(id));
    }

    /// The visitor's record that was not used for longest, but not `except`.
    fn next_to_give_way(&mut self, except: RecordId) -> Option<RecordId> {
        while let Some((order, id)) = self.table.least_used(self.given_way) {
            self.given_way = order + 1;
            // One that was written in this batch was used just now.
            match self.changes.get(&id) {
                None if id != except => return Some(id),
                Some(Some(_)) => self.new_visitors.push_back(id),
                _ => {}
            }
        }
        let at = self.new_visitors.iter().position(|id| *id != except && self.live(id).is_some())?;
        self.new_visitors.remove(at)
    }

    /// Notes that a live record gets a new expiry. Only one that readers see already can turn out to be too late.
    fn extend(&mut self, id: RecordId) {
        if !self.changes.contains_key(&id) {
            self.extended.insert(id);
        }
    }

    fn remove(&mut self, id: RecordId) {
        self.extended.remove(&id);
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

    /// How many bytes of the usage are of that record.
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

    /// Whether the record is in the table or in this batch, even if it has expired.
    fn is_there(&self, id: &RecordId) -> bool {
        self.there(id).is_some()
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
