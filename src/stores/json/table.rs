//! The table of records in memory, which serves every read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use slab::Slab;

use super::{
    line::{Expiry, Line, Moment, Payload},
    usage::FileUsage,
};
use crate::{
    backend::scan::Count,
    clock::{Clock, millis},
    random::random_version,
    record::{
        Record,
        id::{Owner, RecordId},
    },
    stores::recent::{RecentClears, RecentEndings},
};

/// All acknowledged records, including expired ones that were not removed yet.
pub(super) struct Table {
    clock: Clock,
    /// The time of the file's clock when the time of `clock` was `since`.
    start: Duration,
    since: Duration,
    /// How much later the file's clock starts if the wall clock was set back while no process ran. It is then unknown how long
    /// that was, and IDs that were replaced just before it must not become valid again.
    pub(super) slack: Duration,
    /// When the lines since the last recorded time were written, by the file's clock.
    written: u64,
    /// Up to this time of its clock, the file records what has expired.
    marked: u64,
    entries: Slab<Row>,
    by_id: HashMap<RecordId, usize>,
    by_owner: HashMap<Owner, Vec<usize>>,
    by_expiry: BTreeSet<(Duration, usize)>,
    /// Visitors' records by their last recorded use. A read counts as use, but does not change this order.
    by_use: Mutex<BTreeMap<u64, usize>>,
    uses: AtomicU64,
    room: FileUsage,
    pub(super) clears: RecentClears,
    pub(super) endings: RecentEndings,
}

struct Row {
    id: RecordId,
    kept: Kept,
    /// Its place among the records of its owner.
    place: usize,
    /// When it was last used, and its place in `by_use`, if it is a visitor's.
    used: AtomicU64,
    order: AtomicU64,
}

/// A stored record, without its ID.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) version: i64,
    pub(super) time: Expiry,
    /// When the record expires by the file's clock, to the nanosecond.
    pub(super) expires: Duration,
    /// When the record was written or touched, in the order of all uses.
    pub(super) heard: u64,
    pub(super) payload: Payload,
}

/// The result of reading an ID.
pub(super) enum Lookup {
    Live(Record),
    Nothing,
    /// The record has expired, but the file does not record it yet.
    Expired,
}

impl Table {
    pub(super) fn new(clock: Clock) -> Self {
        let (start, since) = (Duration::from_millis(clock.wall_ms()), clock.elapsed());
        Self {
            clock,
            start,
            since,
            slack: Duration::ZERO,
            written: 0,
            marked: 0,
            entries: Slab::new(),
            by_id: HashMap::new(),
            by_owner: HashMap::new(),
            by_expiry: BTreeSet::new(),
            by_use: Mutex::default(),
            uses: AtomicU64::new(0),
            room: FileUsage::default(),
            clears: RecentClears::new(MOST_CLEARS, random_version()),
            endings: RecentEndings::new(MOST_ENDINGS),
        }
    }

    /// Returns the time of the file's clock since 1970. It begins with the wall clock, and never goes back.
    pub(super) fn now(&self) -> Duration {
        self.start.saturating_add(self.clock.elapsed().saturating_sub(self.since))
    }

    pub(super) fn moment(&self) -> Moment {
        Moment { at: millis(self.now()), wall: self.clock.wall_ms() }
    }

    /// Returns how many bytes the records take in a file, at most.
    pub(super) fn cost(&self) -> u64 {
        self.room.keyed.bytes + self.room.anonymous.bytes
    }

    /// Returns the same without expired records.
    pub(super) fn live_cost(&self) -> u64 {
        let expired = self.expired(self.now()).filter_map(|id| Some(Line::cost(&self.get(&id)?.payload)));
        self.cost().saturating_sub(expired.sum())
    }

    /// Returns the space that the records use, including expired ones that are still stored.
    pub(super) fn usage(&self) -> FileUsage {
        self.room
    }

    /// Returns when a record with this time to live expires, counted from now.
    pub(super) fn time(&self, ttl: Duration) -> (Expiry, Duration) {
        let expires = self.now().saturating_add(ttl);
        (Expiry { until: millis(expires), ttl: millis(ttl) }, expires)
    }

    pub(super) fn get(&self, id: &RecordId) -> Option<&Kept> {
        Some(&self.entries.get(*self.by_id.get(id)?)?.kept)
    }

    /// Reads a record, which counts as use.
    pub(super) fn load(&self, id: RecordId) -> Lookup {
        let Some(row) = self.by_id.get(&id).and_then(|&at| self.entries.get(at)) else { return Lookup::Nothing };
        let now = self.now();
        if row.kept.expires <= now {
            return if self.is_marked(&row.kept) { Lookup::Nothing } else { Lookup::Expired };
        }
        if id.owner().is_none() {
            row.used.store(self.next_use(), Relaxed);
        }
        Lookup::Live(row.kept.record(id, now))
    }

    /// Returns the live records of an owner, and whether others have expired that the file does not record yet.
    pub(super) fn list(&self, owner: Owner) -> (Vec<Record>, bool) {
        let (now, mut live, mut has_expired) = (self.now(), Vec::new(), false);
        for id in self.of(owner) {
            match self.get(&id) {
                Some(kept) if kept.expires > now => live.push(kept.record(id, now)),
                Some(kept) => has_expired |= !self.is_marked(kept),
                None => {}
            }
        }
        (live, has_expired)
    }

    /// Returns the IDs of all records of an owner, including expired ones.
    pub(super) fn of(&self, owner: Owner) -> impl Iterator<Item = RecordId> {
        let all = self.by_owner.get(&owner).into_iter().flatten();
        all.filter_map(|&at| Some(self.entries.get(at)?.id))
    }

    /// Returns how many records an owner has, including expired ones.
    pub(super) fn count_of(&self, owner: Owner) -> usize {
        self.by_owner.get(&owner).map_or(0, Vec::len)
    }

    /// Returns the IDs of the expired records, in the order in which they expired.
    pub(super) fn expired(&self, now: Duration) -> impl Iterator<Item = RecordId> {
        let all = self.by_expiry.iter().take_while(move |(expires, _)| *expires <= now);
        all.filter_map(|&(_, at)| Some(self.entries.get(at)?.id))
    }

    /// Returns whether a record has expired that the file does not record yet.
    pub(super) fn has_unmarked(&self, now: Duration) -> bool {
        let last = self.by_expiry.range(..=(now, usize::MAX)).next_back();
        last.is_some_and(|(expires, _)| millis(*expires) > self.marked)
    }

    fn is_marked(&self, kept: &Kept) -> bool {
        millis(kept.expires) <= self.marked
    }

    /// Notes that the file now records everything that had expired by that time.
    pub(super) fn set_marked(&mut self, at: u64) {
        self.marked = self.marked.max(at);
    }

    /// Removes some of the expired records that the file records. Returns whether there are more.
    pub(super) fn purge(&mut self) -> bool {
        let marked = self.marked;
        let expired = self.by_expiry.iter().take_while(|(expires, _)| millis(*expires) <= marked).take(SOME);
        let expired: Vec<RecordId> = expired.filter_map(|&(_, at)| Some(self.entries.get(at)?.id)).collect();
        let now = self.now();
        expired.iter().for_each(|id| self.end(id, now));
        self.clears.forget(now);
        expired.len() == SOME
    }

    /// Returns the least recently used visitor's record at position `from` or later, and its position.
    pub(super) fn least_used(&self, from: u64) -> Option<(u64, RecordId)> {
        let mut by_use = self.by_use.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (order, at) = by_use.range(from..).next().map(|(&order, &at)| (order, at))?;
            let row = self.entries.get(at)?;
            let used = row.used.load(Relaxed);
            if used == order {
                return Some((order, row.id));
            }
            // The record was read in the meantime.
            by_use.remove(&order);
            by_use.insert(used, at);
            row.order.store(used, Relaxed);
        }
    }

    /// Returns the least recently used live visitors' records that take `wanted` bytes together, or all of them, and how many
    /// bytes they take.
    pub(super) fn least_used_of(&self, wanted: u64) -> (HashSet<RecordId>, u64) {
        let (now, mut ids, mut bytes, mut from) = (self.now(), HashSet::new(), 0, 0);
        while bytes < wanted
            && let Some((order, id)) = self.least_used(from)
        {
            from = order + 1;
            if let Some(kept) = self.get(&id).filter(|kept| kept.expires > now) {
                bytes += Line::cost(&kept.payload);
                ids.insert(id);
            }
        }
        (ids, bytes)
    }

    /// Collects up to `most` live records, and returns where to continue, or `None` at the end. A record that exists all the
    /// time is included, whatever changes between the calls, because it keeps its slot.
    pub(super) fn some(&self, from: usize, most: usize, into: &mut Vec<(RecordId, Kept)>) -> Option<usize> {
        let (now, end, full) = (self.now(), from.saturating_add(SOME), into.len().saturating_add(most));
        for at in from..end.min(self.entries.capacity()) {
            if into.len() >= full {
                return Some(at);
            }
            if let Some(Row { id, kept, .. }) = self.entries.get(at).filter(|row| row.kept.expires > now) {
                into.push((*id, kept.clone()));
            }
        }
        (end < self.entries.capacity()).then_some(end)
    }

    /// Returns how many live records there are, and whether others have expired that the file does not record yet.
    pub(super) fn count(&self) -> (Count, bool) {
        let (now, mut live) = (self.now(), self.room);
        for id in self.expired(now) {
            live.of(&id).records -= 1;
        }
        (Count::new(live.keyed.records as u64, live.anonymous.records as u64), self.has_unmarked(now))
    }

    pub(super) fn put(&mut self, id: RecordId, kept: Kept) {
        let (expires, cost) = (kept.expires, Line::cost(&kept.payload));
        let used = self.next_use();
        let at = match self.by_id.get(&id).copied().filter(|&at| self.entries.contains(at)) {
            Some(at) => {
                let row = &mut self.entries[at];
                let before = std::mem::replace(&mut row.kept, kept);
                self.by_expiry.remove(&(before.expires, at));
                self.room.of(&id).subtract(Line::cost(&before.payload));
                at
            }
            None => {
                let (used, order) = (AtomicU64::new(used), AtomicU64::new(used));
                let at = self.entries.insert(Row { id, kept, place: 0, used, order });
                self.by_id.insert(id, at);
                if let Some(owner) = id.owner() {
                    let all = self.by_owner.entry(owner).or_default();
                    self.entries[at].place = all.len();
                    all.push(at);
                }
                at
            }
        };
        self.room.of(&id).add(cost);
        self.by_expiry.insert((expires, at));
        if id.owner().is_none() {
            let by_use = self.by_use.get_mut().unwrap_or_else(PoisonError::into_inner);
            let row = &mut self.entries[at];
            by_use.remove(row.order.get_mut());
            by_use.insert(used, at);
            (row.used, row.order) = (AtomicU64::new(used), AtomicU64::new(used));
        }
    }

    /// Removes a record that has ended, and remembers that for a while.
    pub(super) fn end(&mut self, id: &RecordId, now: Duration) {
        // A record that was created in the same batch was never in the table.
        let ended = self.get(id).map_or(now, |kept| kept.expires.min(now));
        self.endings.remember(*id, ended, now);
        self.remove(id);
    }

    pub(super) fn remove(&mut self, id: &RecordId) {
        let Some(row) = self.by_id.remove(id).and_then(|at| Some((at, self.entries.try_remove(at)?))) else { return };
        let (at, mut row) = row;
        self.room.of(id).subtract(Line::cost(&row.kept.payload));
        self.by_expiry.remove(&(row.kept.expires, at));
        let Some(owner) = id.owner() else {
            self.by_use.get_mut().unwrap_or_else(PoisonError::into_inner).remove(row.order.get_mut());
            return;
        };
        let Some(all) = self.by_owner.get_mut(&owner) else { return };
        if row.place < all.len() {
            all.swap_remove(row.place);
        }
        // The last one has moved to the free position.
        if let Some(moved) = all.get(row.place).and_then(|&moved| self.entries.get_mut(moved)) {
            moved.place = row.place;
        }
        if all.is_empty() {
            self.by_owner.remove(&owner);
        }
    }

    /// Replays a line.
    pub(super) fn replay(&mut self, line: Line) {
        if let Line::Put { time, .. } | Line::Touch { time, .. } = &line {
            self.written = self.written.max(time.until.saturating_sub(time.ttl));
        }
        match line {
            Line::Put { id, version, time, payload, ends } => {
                ends.iter().for_each(|id| self.remove(id));
                let (expires, heard) = (Duration::from_millis(time.until), self.next_use());
                self.put(id, Kept { version, time, expires, heard, payload });
            }
            Line::Touch { id, version, time } => {
                let Some(kept) = self.get(&id).filter(|kept| kept.version == version).cloned() else { return };
                let (expires, heard) = (Duration::from_millis(time.until), self.next_use());
                self.put(id, Kept { time, expires, heard, ..kept });
            }
            Line::End { id } => self.remove(&id),
            Line::Clear { owner, keep } => {
                let ended: Vec<RecordId> = self.of(owner).filter(|id| Some(*id) != keep).collect();
                ended.iter().for_each(|id| self.remove(id));
            }
            // Earlier lines have earlier times.
            Line::Head { moment: Some(_), .. } | Line::Synced { moment: Some(_) } => self.written = 0,
            Line::Head { .. } | Line::Synced { .. } => {}
        }
    }

    /// Starts the file's clock after the replay: at the latest time in the file, plus what the wall clock has advanced since.
    /// Removes the records that have expired by then, and returns whether the file does not record that yet.
    pub(super) fn begin(&mut self, latest: Option<Moment>) -> bool {
        let wall = self.clock.wall_ms();
        let at = match latest {
            Some(Moment { at, wall: then }) if wall < then => at.max(self.written).saturating_add(millis(self.slack)),
            Some(Moment { at, wall: then }) => at.saturating_add(wall - then).max(self.written),
            // A file of an earlier version.
            None => wall,
        };
        // Keep some room to the maximum, however large the time is.
        let at = at.min(u64::MAX / 2);
        let marked = latest.map_or(0, |latest| latest.at);
        (self.start, self.since) = (Duration::from_millis(at), self.clock.elapsed());
        // If the clock was ahead when a record was written, the record gets no more time than it had then.
        let longest = |kept: &Kept| at.saturating_add(kept.time.ttl);
        let too_long = self.entries.iter().filter(|(_, row)| row.kept.time.until > longest(&row.kept));
        for at in too_long.map(|(at, _)| at).collect::<Vec<_>>() {
            let kept = &mut self.entries[at].kept;
            self.by_expiry.remove(&(kept.expires, at));
            kept.time.until = longest(kept);
            kept.expires = Duration::from_millis(kept.time.until);
            self.by_expiry.insert((kept.expires, at));
        }
        self.set_marked(marked);
        let is_news = self.has_unmarked(Duration::from_millis(at));
        self.set_marked(at);
        while self.purge() {}
        is_news
    }

    /// Returns a number that is higher than all before it.
    pub(super) fn next_use(&self) -> u64 {
        self.uses.fetch_add(1, Relaxed)
    }
}

impl Kept {
    pub(super) fn record(&self, id: RecordId, now: Duration) -> Record {
        let payload = self.payload.bytes();
        // The payload is read next anyway, while a reference count would be one more cache miss.
        let payload = if payload.len() <= COPIED { Bytes::copy_from_slice(payload) } else { payload.clone() };
        Record::new(id, self.version, self.expires.saturating_sub(now), payload)
    }
}

pub(super) fn read(table: &RwLock<Table>) -> RwLockReadGuard<'_, Table> {
    // No application code runs under the lock, so a poisoned state cannot be half-changed.
    table.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write(table: &RwLock<Table>) -> RwLockWriteGuard<'_, Table> {
    table.write().unwrap_or_else(PoisonError::into_inner)
}

const COPIED: usize = 4096;
/// How many slots are visited at a time, so that a change never waits for long.
pub(super) const SOME: usize = 1024;
const MOST_CLEARS: usize = 1 << 16;
const MOST_ENDINGS: usize = 1 << 13;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::id::{Owners, Sid};

    fn put(table: &mut Table, id: RecordId, version: i64) {
        let (time, expires) = table.time(Duration::from_secs(version as u64 + 1));
        let (heard, payload) = (table.next_use(), Payload::new("{}".into()));
        table.put(id, Kept { version, time, expires, heard, payload });
    }

    #[test]
    fn every_index_forgets_what_is_removed() {
        let mut table = Table::new(Clock::manual());
        let owner = Owners::new("sessions", b"").unwrap().owner("ada");
        let ids: Vec<RecordId> = (0..100).map(|_| RecordId::new(Some(owner), Sid::random().unwrap())).collect();
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
        assert_eq!(table.usage(), FileUsage::default());
    }

    #[test]
    fn a_clock_that_went_back_lengthens_no_life() {
        let mut table = Table::new(Clock::manual());
        let id: RecordId = "AAAAAAAAAAAAAAAAAAAAAA".parse().unwrap();
        let ahead = table.clock.now_ms() + 1_000_000;
        let time = Expiry { until: ahead + 5_000, ttl: 5_000 };
        table.replay(Line::Put { id, version: 1, time, payload: Payload::new("{}".into()), ends: Vec::new() });
        table.begin(None);
        let Lookup::Live(record) = table.load(id) else { panic!("it is live") };
        assert_eq!(record.ttl, Duration::from_secs(5));
    }

    #[test]
    fn p19_the_visitor_who_was_away_for_longest_is_found_however_often_others_came() {
        let mut table = Table::new(Clock::manual());
        let ids: Vec<RecordId> = (0..50).map(|_| RecordId::new(None, Sid::random().unwrap())).collect();
        ids.iter().for_each(|id| put(&mut table, *id, 60));
        for i in 0..500_usize {
            table.load(ids[i * i % 50]);
        }
        // The last use of each decides.
        let mut last: Vec<(Option<usize>, usize)> = (0..50).map(|n| (None, n)).collect();
        for i in 0..500_usize {
            last[i * i % 50].0 = Some(i);
        }
        last.sort();
        let (mut from, mut order) = (0, Vec::new());
        while let Some((at, id)) = table.least_used(from) {
            order.push(id);
            from = at + 1;
        }
        assert_eq!(order, last.iter().map(|(_, n)| ids[*n]).collect::<Vec<_>>());
        ids.iter().for_each(|id| table.remove(id));
        assert!(table.least_used(0).is_none() && table.by_use.lock().unwrap().is_empty());
    }

    #[test]
    fn p18_the_files_clock_never_goes_back_and_counts_the_time_in_which_nothing_ran() {
        let now = |latest: Option<Moment>| {
            let mut table = Table::new(Clock::manual());
            table.begin(latest);
            (millis(table.now()), table.clock.now_ms())
        };
        let (at, wall) = now(None);
        assert_eq!(at, wall);
        // Nothing ran for 5 s.
        let (at, wall) = now(Some(Moment { at: 1_000, wall: wall - 5_000 }));
        assert!((6_000..60_000).contains(&at), "{at} {wall}");
        // The wall clock was set back by a year in the meantime.
        let (at, _) = now(Some(Moment { at: 1_000, wall: wall + 365 * 86_400_000 }));
        assert_eq!(at, 1_000);
        let (at, _) = now(Some(Moment { at: u64::MAX, wall: 0 }));
        assert_eq!(at, u64::MAX / 2);
    }
}
