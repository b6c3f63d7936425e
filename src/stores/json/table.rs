//! The table of records in memory, which serves every read.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use bytes::Bytes;
use slab::Slab;

use super::line::{Expiry, Line, Payload};
use crate::{
    clock::{Clock, millis},
    record::{
        Record,
        id::{Owner, RecordId},
    },
};

/// All records that were acknowledged, including expired ones that were not removed yet.
pub(super) struct Table {
    clock: Clock,
    entries: Slab<Row>,
    by_id: HashMap<RecordId, usize>,
    by_owner: HashMap<Owner, Vec<usize>>,
    by_expiry: BTreeSet<(Duration, usize)>,
    cost: u64,
}

struct Row {
    id: RecordId,
    kept: Kept,
    /// Its place among the records of its owner.
    place: usize,
}

/// A record as it is kept, without its ID.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) version: i64,
    pub(super) time: Expiry,
    /// When it expires by a clock that only goes forward, however the wall clock is set.
    pub(super) expires: Duration,
    pub(super) payload: Payload,
}

impl Table {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            entries: Slab::new(),
            by_id: HashMap::new(),
            by_owner: HashMap::new(),
            by_expiry: BTreeSet::new(),
            cost: 0,
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    /// About how many bytes the records take in a file.
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    /// Returns when a record expires that is to live for `ttl` from now on.
    pub(super) fn time(&self, ttl: Duration) -> (Expiry, Duration) {
        let ms = millis(ttl);
        (Expiry { until: self.clock.now_ms().saturating_add(ms), ttl: ms }, self.now().saturating_add(ttl))
    }

    /// Returns when a record expires that was read from the file. The clock may have been ahead when it was written, so it
    /// never has more time left than it had then.
    fn expires(&self, time: Expiry) -> Duration {
        let left = time.until.saturating_sub(self.clock.now_ms()).min(time.ttl);
        self.now().saturating_add(Duration::from_millis(left))
    }

    pub(super) fn get(&self, id: &RecordId) -> Option<&Kept> {
        Some(&self.entries.get(*self.by_id.get(id)?)?.kept)
    }

    pub(super) fn load(&self, id: RecordId, now: Duration) -> Option<Record> {
        self.get(&id).filter(|kept| kept.expires > now).map(|kept| kept.record(id, now))
    }

    /// The IDs of all records of an owner, expired ones included.
    pub(super) fn of(&self, owner: Owner) -> impl Iterator<Item = RecordId> {
        let all = self.by_owner.get(&owner).into_iter().flatten();
        all.filter_map(|&at| Some(self.entries.get(at)?.id))
    }

    /// The IDs of the expired records, the one that expired first in front.
    pub(super) fn expired(&self, now: Duration) -> impl Iterator<Item = RecordId> {
        let all = self.by_expiry.iter().take_while(move |(expires, _)| *expires <= now);
        all.filter_map(|&(_, at)| Some(self.entries.get(at)?.id))
    }

    /// Collects some of the live records, and returns where to go on, or `None` at the end. A record that is there the whole
    /// time is included, whatever changes between the calls.
    pub(super) fn some(&self, from: usize, into: &mut Vec<(RecordId, Kept)>) -> Option<usize> {
        let (now, wall, end) = (self.now(), self.clock.now_ms(), from.saturating_add(SOME));
        let entries = (from..end).filter_map(|at| self.entries.get(at)).filter(|entry| entry.kept.expires > now);
        into.extend(entries.map(|Row { id, kept, .. }| {
            // The wall clock may have been set since this was written.
            let until = wall.saturating_add(millis(kept.expires.saturating_sub(now)));
            (*id, Kept { time: Expiry { until, ..kept.time }, ..kept.clone() })
        }));
        (end < self.entries.capacity()).then_some(end)
    }

    pub(super) fn put(&mut self, id: RecordId, kept: Kept) {
        let expires = kept.expires;
        self.cost += Line::cost(&kept.payload);
        if let Some((at, entry)) = self.by_id.get(&id).and_then(|&at| Some((at, self.entries.get_mut(at)?))) {
            let before = std::mem::replace(&mut entry.kept, kept);
            self.cost = self.cost.saturating_sub(Line::cost(&before.payload));
            self.by_expiry.remove(&(before.expires, at));
            self.by_expiry.insert((expires, at));
            return;
        }
        let at = self.entries.insert(Row { id, kept, place: 0 });
        self.by_id.insert(id, at);
        self.by_expiry.insert((expires, at));
        if let Some(owner) = id.owner() {
            let all = self.by_owner.entry(owner).or_default();
            if let Some(entry) = self.entries.get_mut(at) {
                entry.place = all.len();
            }
            all.push(at);
        }
    }

    pub(super) fn remove(&mut self, id: &RecordId) {
        let Some(entry) = self.by_id.remove(id).and_then(|at| Some((at, self.entries.try_remove(at)?))) else { return };
        let (at, entry) = entry;
        self.cost = self.cost.saturating_sub(Line::cost(&entry.kept.payload));
        self.by_expiry.remove(&(entry.kept.expires, at));
        let Some(owner) = id.owner() else { return };
        let Some(all) = self.by_owner.get_mut(&owner) else { return };
        if entry.place < all.len() {
            all.swap_remove(entry.place);
        }
        // The last one has moved to its place.
        if let Some(moved) = all.get(entry.place).and_then(|&moved| self.entries.get_mut(moved)) {
            moved.place = entry.place;
        }
        if all.is_empty() {
            self.by_owner.remove(&owner);
        }
    }

    /// Repeats what a line says was done.
    pub(super) fn replay(&mut self, line: Line) {
        match line {
            Line::Put { id, version, time, payload } => {
                let expires = self.expires(time);
                self.put(id, Kept { version, time, expires, payload });
            }
            Line::Touch { id, version, time } => {
                let Some(kept) = self.get(&id).filter(|kept| kept.version == version).cloned() else { return };
                let expires = self.expires(time);
                self.put(id, Kept { time, expires, ..kept });
            }
            Line::End { id } => self.remove(&id),
            Line::Clear { owner, keep } => {
                let ended: Vec<RecordId> = self.of(owner).filter(|id| Some(*id) != keep).collect();
                ended.iter().for_each(|id| self.remove(id));
            }
            Line::Head { .. } | Line::Synced => {}
        }
    }
}

impl Kept {
    pub(super) fn record(&self, id: RecordId, now: Duration) -> Record {
        let payload = self.payload.bytes();
        // It is read next anyway, and a reference count would be one more cache line to wait for.
        let payload = if payload.len() <= COPIED { Bytes::copy_from_slice(payload) } else { payload.clone() };
        Record { id, version: self.version, ttl: self.expires.saturating_sub(now), payload }
    }
}

const COPIED: usize = 4096;
/// How many places are looked through at a time, so that a change never waits for long.
const SOME: usize = 1024;

pub(super) fn read(table: &RwLock<Table>) -> RwLockReadGuard<'_, Table> {
    // No user code runs under the lock, so nothing can have stopped halfway.
    table.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write(table: &RwLock<Table>) -> RwLockWriteGuard<'_, Table> {
    table.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::id::{Owners, Sid};

    #[test]
    fn every_index_forgets_what_is_removed() {
        let mut table = Table::new(Clock::manual());
        let owner = Owners::new("sessions", b"").unwrap().owner("ada");
        let ids: Vec<RecordId> = (0..100).map(|_| RecordId::new(Some(owner), Sid::random().unwrap())).collect();
        let put = |table: &mut Table, id: RecordId, version: i64| {
            let (time, expires) = table.time(Duration::from_secs(version as u64 + 1));
            table.put(id, Kept { version, time, expires, payload: Payload::new("{}".into()) });
        };
        for (i, id) in ids.iter().enumerate() {
            put(&mut table, *id, i as i64);
            put(&mut table, ids[i / 2], 1000 + i as i64);
        }
        assert_eq!((table.entries.len(), table.of(owner).count(), table.by_expiry.len()), (100, 100, 100));
        for (i, id) in ids.iter().enumerate() {
            table.remove(&ids[i * 37 % 100]);
            table.remove(&ids[i * 37 % 100]);
            assert_eq!(table.of(owner).count(), 99 - i);
            assert!(table.of(owner).all(|id| table.get(&id).is_some()), "{id:?}");
        }
        assert!(table.by_id.is_empty() && table.by_owner.is_empty() && table.by_expiry.is_empty());
        assert_eq!((table.entries.len(), table.cost()), (0, 0));
    }

    #[test]
    fn a_clock_that_went_back_lengthens_no_life() {
        let mut table = Table::new(Clock::manual());
        let id: RecordId = "AAAAAAAAAAAAAAAAAAAAAA".parse().unwrap();
        let ahead = table.clock.now_ms() + 1_000_000;
        let time = Expiry { until: ahead + 5_000, ttl: 5_000 };
        table.replay(Line::Put { id, version: 1, time, payload: Payload::new("{}".into()) });
        let now = table.now();
        assert_eq!(table.load(id, now).unwrap().ttl, Duration::from_secs(5));
    }
}
