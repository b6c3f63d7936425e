//! One shard: records by ID, by owner, by expiry, and the visitors' records in order of use.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fmt,
    hash::BuildHasher,
    iter::successors,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry as Place};
use slab::Slab;

use super::bounds::Room;
use crate::{
    backend::terms::Limit,
    record::{
        Record,
        id::{Owner, RecordId},
    },
    stores::recent::{RecentClears, RecentEndings, above},
};

/// A part of the records. All records of an owner are in the same shard, so that `list` and `clear` are atomic.
pub(super) struct Shard {
    hasher: DefaultHashBuilder,
    /// Counts uses across all shards, so that the least recent one can be found.
    uses: Arc<AtomicU64>,
    pub(super) entries: Slab<Entry>,
    pub(super) by_id: HashTable<u32>,
    /// The newest record of each owner.
    pub(super) by_owner: HashTable<u32>,
    /// When to check each record, at the latest when it expires. An entry does not move when its record is used, only when it
    /// is due. It is void if the record is gone, or has another entry by then.
    pub(super) due: BinaryHeap<Reverse<(u64, u32)>>,
    /// Anonymous records, linked from the least to the most recently used.
    pub(super) oldest: Option<u32>,
    pub(super) newest: Option<u32>,
    /// How many anonymous records there are.
    pub(super) visitors: usize,
    /// Counts the uses of records with an owner.
    heard: u64,
    pub(super) clears: RecentClears,
    pub(super) endings: RecentEndings,
}

/// A stored record. Times are nanoseconds of the clock.
pub(super) struct Entry {
    pub(super) id: RecordId,
    pub(super) version: i64,
    /// The version that it was created with, which identifies a retried `create`.
    pub(super) first: i64,
    pub(super) expires: u64,
    /// Its place in `due`.
    pub(super) due: u64,
    pub(super) payload: Bytes,
    /// Its neighbours: among the records of its owner, or among the anonymous ones.
    pub(super) older: Option<u32>,
    pub(super) newer: Option<u32>,
    /// When the record was last used. For a record with an owner, reads do not count.
    pub(super) used: u64,
}

/// The result of checking the first entry of `due`.
pub(super) enum Due {
    /// Nothing is due yet.
    Nothing,
    /// A void entry, or a record that was used since and is now due later.
    Later,
    /// An expired record, which was removed.
    Expired(Entry),
}

impl Shard {
    pub(super) fn new(
        hasher: DefaultHashBuilder,
        uses: Arc<AtomicU64>,
        clears: RecentClears,
        endings: RecentEndings,
    ) -> Self {
        Self {
            hasher,
            uses,
            entries: Slab::new(),
            by_id: HashTable::new(),
            by_owner: HashTable::new(),
            due: BinaryHeap::new(),
            oldest: None,
            newest: None,
            visitors: 0,
            heard: 0,
            clears,
            endings,
        }
    }

    pub(super) fn entry(&self, at: u32) -> &Entry {
        &self.entries[at as usize]
    }

    fn entry_mut(&mut self, at: u32) -> &mut Entry {
        &mut self.entries[at as usize]
    }

    pub(super) fn find(&self, id: RecordId) -> Option<u32> {
        self.by_id.find(self.hasher.hash_one(id), |&at| self.entry(at).id == id).copied()
    }

    pub(super) fn live(&self, id: RecordId, now: u64) -> Option<u32> {
        self.find(id).filter(|&at| self.entry(at).expires > now)
    }

    /// Returns whether a user's record with that name ended recently, or may have.
    pub(super) fn may_have_ended(&self, id: RecordId, now: u64) -> bool {
        let time = Duration::from_nanos(now);
        let dead = self.find(id).map(|at| self.entry(at).expires).filter(|expires| *expires <= now);
        let is_dead = dead.is_some_and(|at| RecentEndings::is_recent(Duration::from_nanos(at), time));
        id.owner().is_some() && (is_dead || self.endings.may_have(id, time))
    }

    /// Returns the records of an owner, the newest first, including expired ones.
    pub(super) fn of(&self, owner: Owner) -> impl Iterator<Item = u32> + Clone {
        let newest = self.by_owner.find(self.hasher.hash_one(owner), |&at| self.entry(at).id.owner() == Some(owner));
        successors(newest.copied(), |&at| self.entry(at).older)
    }

    /// Returns the least recently used live records of an owner, which end for a new one, or `None` if the limit refuses it.
    pub(super) fn above(&self, owner: Owner, limit: Limit, now: u64) -> Option<Vec<u32>> {
        let live = self.of(owner).filter(|&at| self.entry(at).expires > now);
        let ends = above(limit, live.clone().count())?;
        if ends == 0 {
            return Some(Vec::new());
        }
        let mut live: Vec<_> = live.map(|at| (self.entry(at).used, at)).collect();
        // There are at least as many records as have to end.
        live.select_nth_unstable(ends - 1);
        live.truncate(ends);
        Some(live.into_iter().map(|(_, at)| at).collect())
    }

    /// Collects up to `most` live records from that slot on, and returns where to continue, or `None` at the end. A record
    /// keeps its slot as long as it lives.
    pub(super) fn some(&self, from: usize, most: usize, now: u64, into: &mut Vec<Record>) -> Option<usize> {
        let (end, full) = (from.saturating_add(SOME), into.len().saturating_add(most));
        for at in from..end.min(self.entries.capacity()) {
            if into.len() >= full {
                return Some(at);
            }
            if self.entries.get(at).is_some_and(|entry| entry.expires > now) {
                into.push(self.record(at as u32, now));
            }
        }
        (end < self.entries.capacity()).then_some(end)
    }

    pub(super) fn record(&self, at: u32, now: u64) -> Record {
        let entry = self.entry(at);
        let ttl = Duration::from_nanos(entry.expires.saturating_sub(now));
        Record::new(entry.id, entry.version, ttl, entry.payload.clone())
    }

    pub(super) fn insert(&mut self, record: Record, now: u64) {
        let Record { id, version, ttl, payload, hint: _ } = record;
        let expires = now.saturating_add(nanos(ttl));
        let (first, due) = (version, expires);
        let entry = Entry { id, version, first, expires, due, payload, older: None, newer: None, used: 0 };
        // Each takes hundreds of bytes, so 2^32 of them never fit.
        let at = self.entries.insert(entry) as u32;
        let entries = &self.entries;
        self.by_id.insert_unique(self.hasher.hash_one(id), at, |&at| self.hasher.hash_one(entries[at as usize].id));
        self.due.push(Reverse((expires, at)));
        match id.owner() {
            Some(owner) => self.link_to_owner(at, owner),
            None => {
                self.link(at);
                self.visitors += 1;
            }
        }
        self.mark_heard(at);
    }

    /// Replaces the contents of a record, and returns its old payload.
    pub(super) fn replace(&mut self, at: u32, record: Record, now: u64) -> Bytes {
        let entry = self.entry_mut(at);
        entry.version = record.version;
        let old = std::mem::replace(&mut entry.payload, record.payload);
        self.expire_at(at, now.saturating_add(nanos(record.ttl)));
        self.mark_used(at);
        self.mark_heard(at);
        old
    }

    pub(super) fn remove(&mut self, at: u32, now: u64) -> Entry {
        let Entry { id, expires, .. } = *self.entry(at);
        self.endings.remember(id, Duration::from_nanos(expires.min(now)), Duration::from_nanos(now));
        match id.owner() {
            Some(owner) => self.unlink_from_owner(at, owner),
            None => {
                self.unlink(at);
                self.visitors -= 1;
            }
        }
        if let Ok(place) = self.by_id.find_entry(self.hasher.hash_one(id), |&there| there == at) {
            place.remove();
        }
        let entry = self.entries.remove(at as usize);
        self.tidy_due();
        entry
    }

    /// Returns whether an expired record may not have been removed yet.
    pub(super) fn is_due(&self, now: u64) -> bool {
        self.due.peek().is_some_and(|Reverse((due, _))| *due <= now)
    }

    /// Checks the record that is due first, and removes it if it has expired.
    pub(super) fn look_at_due(&mut self, now: u64) -> Due {
        let Some(&Reverse((_, at))) = self.due.peek().filter(|Reverse((due, _))| *due <= now) else {
            return Due::Nothing;
        };
        let Some(Reverse((due, _))) = self.due.pop() else { return Due::Nothing };
        match self.entries.get_mut(at as usize).filter(|entry| entry.due == due) {
            Some(entry) if entry.expires <= now => Due::Expired(self.remove(at, now)),
            Some(entry) => {
                entry.due = entry.expires;
                self.due.push(Reverse((entry.due, at)));
                Due::Later
            }
            None => Due::Later,
        }
    }

    pub(super) fn expire_at(&mut self, at: u32, expires: u64) {
        let entry = self.entry_mut(at);
        entry.expires = expires;
        if expires < entry.due {
            entry.due = expires;
            self.due.push(Reverse((expires, at)));
            self.tidy_due();
        }
    }

    /// Drops void entries once they are the majority.
    fn tidy_due(&mut self) {
        if self.due.len() > 2 * self.entries.len() + MIN_DUE {
            let due = self.entries.iter().map(|(at, entry)| Reverse((entry.due, at as u32)));
            self.due = due.collect::<Vec<_>>().into();
        }
    }

    fn link_to_owner(&mut self, at: u32, owner: Owner) {
        let entries = &self.entries;
        let owner_of = |at: u32| entries[at as usize].id.owner();
        let place = self.by_owner.entry(
            self.hasher.hash_one(owner),
            |&there| owner_of(there) == Some(owner),
            |&there| owner_of(there).map_or(0, |owner| self.hasher.hash_one(owner)),
        );
        let older = match place {
            Place::Occupied(mut newest) => Some(std::mem::replace(newest.get_mut(), at)),
            Place::Vacant(place) => {
                place.insert(at);
                None
            }
        };
        self.entry_mut(at).older = older;
        if let Some(older) = older {
            self.entry_mut(older).newer = Some(at);
        }
    }

    fn unlink_from_owner(&mut self, at: u32, owner: Owner) {
        let (older, newer) = self.neighbours_without(at);
        if newer.is_none() {
            let place = self.by_owner.find_entry(self.hasher.hash_one(owner), |&there| there == at);
            match (place, older) {
                (Ok(mut newest), Some(older)) => *newest.get_mut() = older,
                (Ok(newest), None) => _ = newest.remove(),
                (Err(_), _) => {}
            }
        }
    }

    /// Returns the least recently used visitor's record, except `except`.
    pub(super) fn least_recently_used(&self, except: Option<RecordId>) -> Option<u32> {
        let oldest = self.oldest?;
        if Some(self.entry(oldest).id) == except { self.entry(oldest).newer } else { Some(oldest) }
    }

    pub(super) fn mark_used(&mut self, at: u32) {
        if self.entry(at).id.owner().is_none() {
            self.unlink(at);
            self.link(at);
        }
    }

    /// Notes that a record with an owner was created, written or touched.
    pub(super) fn mark_heard(&mut self, at: u32) {
        if self.entry(at).id.owner().is_some() {
            self.heard += 1;
            self.entry_mut(at).used = self.heard;
        }
    }

    /// Moves a visitor's record to the newest end of the list.
    fn link(&mut self, at: u32) {
        let older = self.newest.replace(at);
        let used = self.uses.fetch_add(1, Relaxed);
        let entry = self.entry_mut(at);
        entry.used = used;
        entry.older = older;
        entry.newer = None;
        match older {
            Some(older) => self.entry_mut(older).newer = Some(at),
            None => self.oldest = Some(at),
        }
    }

    fn unlink(&mut self, at: u32) {
        let (older, newer) = self.neighbours_without(at);
        if older.is_none() {
            self.oldest = newer;
        }
        if newer.is_none() {
            self.newest = older;
        }
    }

    /// Links the neighbours of a record to each other, and returns them.
    fn neighbours_without(&mut self, at: u32) -> (Option<u32>, Option<u32>) {
        let (older, newer) = (self.entry(at).older, self.entry(at).newer);
        if let Some(older) = older {
            self.entry_mut(older).newer = newer;
        }
        if let Some(newer) = newer {
            self.entry_mut(newer).older = older;
        }
        (older, newer)
    }
}

impl Entry {
    pub(super) fn room(&self) -> Room {
        Room::of(&self.payload)
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

/// Whole nanoseconds, at most 584 years of them.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Room {
    /// Returns the space that a record takes, including its index entries.
    pub(super) fn of(payload: &Bytes) -> Self {
        Self { sessions: 1, bytes: payload.len() + OVERHEAD }
    }
}

/// The space that a record takes in addition to its payload: an entry, two entries in `due`, and two in each of the tables, which
/// are half empty.
pub(super) const OVERHEAD: usize = size_of::<Entry>() + 2 * size_of::<(u64, u32)>() + 4 * (size_of::<u32>() + 1);
pub(super) const MIN_DUE: usize = 64;
/// How many slots are visited at a time, so that other calls never wait for long.
pub(super) const SOME: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn shard() -> Shard {
        let (clears, endings) = (RecentClears::new(16, 1), RecentEndings::new(16));
        Shard::new(DefaultHashBuilder::default(), Arc::default(), clears, endings)
    }

    fn record(id: &str, ttl: u64) -> Record {
        Record::new(id.parse().unwrap(), 1, Duration::from_nanos(ttl), Bytes::new())
    }

    const A: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    const B: &str = "AAAAAAAAAAAAAAAAAAAAAB";

    #[test]
    fn a_record_that_was_used_is_looked_at_again_when_it_expires() {
        let mut shard = shard();
        shard.insert(record(A, 10), 0);
        let at = shard.find(A.parse().unwrap()).unwrap();
        shard.expire_at(at, 20);
        assert!(matches!(shard.look_at_due(9), Due::Nothing));
        assert!(matches!(shard.look_at_due(15), Due::Later));
        assert!(matches!(shard.look_at_due(19), Due::Nothing));
        assert!(matches!(shard.look_at_due(20), Due::Expired(entry) if entry.id == A.parse().unwrap()));
        assert!(shard.entries.is_empty() && shard.due.is_empty());
    }

    #[test]
    fn a_record_that_is_to_end_earlier_is_due_earlier_and_only_once() {
        let mut shard = shard();
        shard.insert(record(A, 20), 0);
        let at = shard.find(A.parse().unwrap()).unwrap();
        shard.expire_at(at, 10);
        assert!(matches!(shard.look_at_due(10), Due::Expired(_)));
        // The place that it had first is void.
        assert!(matches!(shard.look_at_due(20), Due::Later));
        assert!(matches!(shard.look_at_due(20), Due::Nothing));
    }

    #[test]
    fn the_least_recently_used_visitor_is_found_and_may_be_excepted() {
        let mut shard = shard();
        for id in [A, B] {
            shard.insert(record(id, 10), 0);
        }
        let find = |shard: &Shard, id: &str| shard.find(id.parse().unwrap());
        assert_eq!(shard.least_recently_used(None), find(&shard, A));
        assert_eq!(shard.least_recently_used(A.parse().ok()), find(&shard, B));
        let at = find(&shard, A).unwrap();
        shard.mark_used(at);
        assert_eq!(shard.least_recently_used(None), find(&shard, B));
        let at = find(&shard, B).unwrap();
        shard.remove(at, 0);
        assert_eq!(shard.least_recently_used(A.parse().ok()), None);
    }
}
