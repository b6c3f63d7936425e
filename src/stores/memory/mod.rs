//! Sessions in the memory of this process: gone when it ends, and not shared with another.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    hash::BuildHasher,
    iter::successors,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry as Place};
use slab::Slab;

use crate::backend::{Backend, Outcome, Result};
use crate::{
    clock::Clock,
    error::{Error, ErrorKind},
    record::{
        Record,
        id::{Owner, RecordId},
    },
    sessions::{Sessions, builder::Builder},
};

/// [`Sessions`] in memory.
///
/// ```
/// # use jam_session::MemorySessions;
/// let sessions = MemorySessions::builder().max_sessions(100_000).build()?;
/// # Ok::<(), jam_session::Error>(())
/// ```
pub type MemorySessions = Sessions<MemoryBackend>;

/// Keeps records in a sharded map. See [`Builder::max_sessions`] and [`Builder::max_bytes`] for its bounds.
///
/// Expired records make room for new ones a few at a time, with each call; none is ever looked for by going through all.
/// Writing to a record, or using it, costs the same however many there are.
#[derive(Debug)]
pub struct MemoryBackend {
    shards: Box<[Mutex<Shard>]>,
    hasher: DefaultHashBuilder,
    clock: OnceLock<Clock>,
    max_sessions: usize,
    max_bytes: usize,
    usage: Mutex<Usage>,
    /// Counts uses, so that the least recent one can be told across shards.
    uses: AtomicU64,
}

/// What is there, and what is about to be.
#[derive(Debug, Default)]
struct Usage {
    keyed: Room,
    anonymous: Room,
}

#[derive(Clone, Copy, Debug, Default)]
struct Room {
    sessions: usize,
    bytes: usize,
}

/// All records of an owner are in one shard, so that `list` and `clear` see one moment.
#[derive(Default)]
struct Shard {
    entries: Slab<Entry>,
    by_id: HashTable<u32>,
    /// The newest record of each owner.
    by_owner: HashTable<u32>,
    /// When to look at a record: no later than it expires. It does not move when the record is used, only when its time has
    /// come, and what it says is void if the record is gone, or was put in another place since.
    due: BinaryHeap<Reverse<(u64, u32)>>,
    /// Anonymous records, linked from the least to the most recently used.
    oldest: Option<u32>,
    newest: Option<u32>,
}

/// Times are nanoseconds of the clock.
struct Entry {
    id: RecordId,
    version: i64,
    expires: u64,
    /// Its place in `due`.
    due: u64,
    payload: Bytes,
    /// Its neighbours: among those of its owner, or of the anonymous ones.
    older: Option<u32>,
    newer: Option<u32>,
    /// When it was last used, if it is anonymous.
    used: u64,
}

impl MemorySessions {
    /// Sessions with every option at its default.
    pub fn new() -> Self {
        // The defaults are valid; `build` only ever fails for options, or for a system without random bytes.
        #[allow(clippy::expect_used)]
        Self::builder().build().expect("the defaults are valid")
    }

    /// Sessions to be set up.
    pub fn builder() -> Builder<MemoryBackend> {
        Self::over(MemoryBackend::default())
    }
}

impl Default for MemorySessions {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder<MemoryBackend> {
    /// At most so many sessions at a time; no bound unless set.
    ///
    /// When a bound is reached, expired sessions make room, then anonymous ones, the least recently used first. One with a
    /// session key never does: when nothing else is left, creating fails with [`ErrorKind::Unavailable`].
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        self.from.max_sessions = sessions;
        self
    }

    /// At most about so many bytes of memory, counting what comes with each record; 1 GiB unless set. See
    /// [`max_sessions`](Self::max_sessions) for what happens then.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.from.max_bytes = bytes;
        self
    }
}

impl MemoryBackend {
    /// How many sessions it holds, expired ones included that nothing had the place of yet.
    pub fn sessions(&self) -> usize {
        let usage = self.usage();
        usage.keyed.sessions + usage.anonymous.sessions
    }

    /// About how many bytes of memory they take.
    pub fn bytes(&self) -> usize {
        let usage = self.usage();
        usage.keyed.bytes + usage.anonymous.bytes
    }

    /// The shard of that record, locked and with some expired ones gone, and the time.
    fn shard(&self, id: RecordId, purge: usize) -> (MutexGuard<'_, Shard>, u64) {
        match id.owner() {
            Some(owner) => self.shard_of(&owner, purge),
            None => self.shard_of(&id, purge),
        }
    }

    fn shard_of(&self, name: &impl std::hash::Hash, purge: usize) -> (MutexGuard<'_, Shard>, u64) {
        // Not the bits that the tables go by.
        let at = (self.hasher.hash_one(name) >> 32) as usize % self.shards.len();
        let mut shard = lock(&self.shards[at]);
        let now = self.now();
        for _ in 0..purge {
            if !self.look_at_due(&mut shard, now) {
                break;
            }
        }
        (shard, now)
    }

    /// Drops the record of a shard that expired first, if one has: whether anything was due.
    fn look_at_due(&self, shard: &mut Shard, now: u64) -> bool {
        match shard.due.peek() {
            Some(&Reverse((due, at))) if due <= now => {
                shard.due.pop();
                match shard.entries.get_mut(at as usize).filter(|entry| entry.due == due) {
                    Some(entry) if entry.expires <= now => self.remove(shard, at),
                    Some(entry) => {
                        entry.due = entry.expires;
                        shard.due.push(Reverse((entry.due, at)));
                    }
                    None => {}
                }
                true
            }
            _ => false,
        }
    }

    fn remove(&self, shard: &mut Shard, at: u32) {
        let entry = shard.remove(at, &self.hasher);
        self.release(entry.id, Room::of(&entry.payload));
    }

    fn holds(&self, id: RecordId) -> bool {
        let (shard, now) = self.shard(id, PURGE_PER_LOAD);
        shard.live(id, now, &self.hasher).is_some()
    }

    fn now(&self) -> u64 {
        nanos(self.clock.get_or_init(Clock::system).elapsed())
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, id: RecordId, room: Room) {
        if room.bytes == 0 {
            return;
        }
        let mut usage = self.usage();
        let used = usage.of(id);
        used.sessions = used.sessions.saturating_sub(room.sessions);
        used.bytes = used.bytes.saturating_sub(room.bytes);
    }

    /// Takes room for a record, beside what it already has (if it is there), and lets others give way for it if need be;
    /// nothing of that if it would not be enough.
    ///
    /// No shard may be locked: making room may need any of them.
    fn reserve(&self, id: RecordId, more: Room, has: Room) -> Result<()> {
        while !self.take(id, more) {
            let stays = self.usage().keyed;
            let own = if id.owner().is_none() { has } else { Room::default() };
            let except = (has.sessions > 0).then_some(id);
            // Anonymous ones give way, all but the one that this is for; those with a key do not.
            let could_fit = stays.sessions.saturating_add(own.sessions).saturating_add(more.sessions)
                <= self.max_sessions
                && stays.bytes.saturating_add(own.bytes).saturating_add(more.bytes) <= self.max_bytes;
            if self.drop_any_expired() || (could_fit && self.drop_least_recently_used(except)) {
                continue;
            }
            if !could_fit {
                return Err(
                    Error::new(ErrorKind::Unavailable, "the sessions in memory have reached their bound").into()
                );
            }
            // What could give way is on its way in or out, in other threads.
            std::thread::yield_now();
        }
        Ok(())
    }

    fn take(&self, id: RecordId, more: Room) -> bool {
        let mut usage = self.usage();
        let sessions = usage.keyed.sessions + usage.anonymous.sessions;
        let bytes = usage.keyed.bytes + usage.anonymous.bytes;
        let fits = sessions.saturating_add(more.sessions) <= self.max_sessions
            && bytes.saturating_add(more.bytes) <= self.max_bytes;
        if fits {
            let used = usage.of(id);
            used.sessions += more.sessions;
            used.bytes += more.bytes;
        }
        fits
    }

    fn drop_any_expired(&self) -> bool {
        let now = self.now();
        self.shards.iter().any(|shard| self.look_at_due(&mut lock(shard), now))
    }

    /// Drops the anonymous record that was not used for longest, but not `except`.
    fn drop_least_recently_used(&self, except: Option<RecordId>) -> bool {
        let oldest = |shard: &Shard| {
            let at = shard.oldest.filter(|&at| Some(shard.entry(at).id) != except);
            let at = at.or_else(|| shard.entry(shard.oldest?).newer)?;
            Some((shard.entry(at).used, at))
        };
        let candidates = self.shards.iter().filter_map(|shard| Some((oldest(&lock(shard))?.0, shard)));
        let Some((_, shard)) = candidates.min_by_key(|(used, _)| *used) else { return false };
        let mut shard = lock(shard);
        // Another thread may have taken that one meanwhile; then its neighbour goes, or the caller looks again.
        if let Some((_, at)) = oldest(&shard) {
            self.remove(&mut shard, at);
        }
        true
    }
}

impl Usage {
    fn of(&mut self, id: RecordId) -> &mut Room {
        if id.owner().is_some() { &mut self.keyed } else { &mut self.anonymous }
    }
}

impl Room {
    /// What a record takes, with its places in the maps.
    fn of(payload: &Bytes) -> Self {
        Self { sessions: 1, bytes: payload.len() + OVERHEAD }
    }

    /// What `self` has more than `other`, of each.
    fn beyond(self, other: Self) -> Self {
        Self { sessions: self.sessions.saturating_sub(other.sessions), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

impl Default for MemoryBackend {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (threads * SHARDS_PER_THREAD).next_power_of_two();
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            clock: OnceLock::new(),
            max_sessions: usize::MAX,
            max_bytes: MAX_BYTES,
            usage: Mutex::default(),
            uses: AtomicU64::new(0),
        }
    }
}

impl Backend for MemoryBackend {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        let (mut shard, now) = self.shard(id, PURGE_PER_LOAD);
        let Some(at) = shard.live(id, now, &self.hasher) else { return Ok(None) };
        shard.mark_used(at, &self.uses);
        Ok(Some(shard.record(at, now)))
    }

    async fn create(&self, record: Record) -> Result<bool> {
        let room = Room::of(&record.payload);
        if !self.take(record.id, room) {
            // Nobody gives way for what is not added; and that very record may be all that could.
            if self.holds(record.id) {
                return Ok(false);
            }
            self.reserve(record.id, room, Room::default())?;
        }
        let (mut shard, now) = self.shard(record.id, PURGE_PER_WRITE);
        match shard.find(record.id, &self.hasher) {
            Some(at) if shard.entry(at).expires > now => {
                self.release(record.id, room);
                return Ok(false);
            }
            Some(dead) => self.remove(&mut shard, dead),
            None => {}
        }
        shard.insert(record, now, &self.uses, &self.hasher);
        Ok(true)
    }

    async fn update(&self, expected: i64, record: Record) -> Result<Outcome> {
        let new = Room::of(&record.payload);
        let mut reserved = Room::default();
        loop {
            let (mut shard, now) = self.shard(record.id, PURGE_PER_WRITE);
            let Some(at) = shard.live(record.id, now, &self.hasher) else {
                self.release(record.id, reserved);
                return Ok(Outcome::Gone);
            };
            if shard.entry(at).version != expected {
                self.release(record.id, reserved);
                return Ok(Outcome::Conflict(shard.record(at, now)));
            }
            let old = Room::of(&shard.entry(at).payload);
            let more = new.beyond(old).beyond(reserved);
            if more.bytes > 0 {
                // Others may have to give way for it, and they may be in this shard.
                drop(shard);
                if let Err(full) = self.reserve(record.id, more, old) {
                    self.release(record.id, reserved);
                    return Err(full);
                }
                reserved.bytes += more.bytes;
                continue;
            }
            let less = (old.bytes + reserved.bytes).saturating_sub(new.bytes);
            self.release(record.id, Room { sessions: 0, bytes: less });
            let entry = shard.entry_mut(at);
            entry.version = record.version;
            let old = std::mem::replace(&mut entry.payload, record.payload);
            shard.expire_at(at, now.saturating_add(nanos(record.ttl)));
            shard.mark_used(at, &self.uses);
            drop(shard);
            drop(old);
            return Ok(Outcome::Done);
        }
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        let (mut shard, now) = self.shard(id, PURGE_PER_WRITE);
        if let Some(at) = shard.live(id, now, &self.hasher).filter(|&at| shard.entry(at).version == version) {
            shard.expire_at(at, now.saturating_add(nanos(ttl)));
        }
        Ok(())
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        let (mut shard, now) = self.shard(id, PURGE_PER_WRITE);
        let Some(at) = shard.live(id, now, &self.hasher) else { return Ok(false) };
        self.remove(&mut shard, at);
        Ok(true)
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        let (shard, now) = self.shard_of(&owner, PURGE_PER_LOAD);
        let live = shard.of(owner, &self.hasher).filter(|&at| shard.entry(at).expires > now);
        Ok(live.map(|at| shard.record(at, now)).collect())
    }

    async fn clear(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64> {
        let (mut shard, now) = self.shard_of(&owner, PURGE_PER_WRITE);
        let mut ended = 0;
        for at in shard.of(owner, &self.hasher).collect::<Vec<_>>() {
            if Some(shard.entry(at).id) != keep {
                ended += u64::from(shard.entry(at).expires > now);
                self.remove(&mut shard, at);
            }
        }
        Ok(ended)
    }

    fn set_clock(&self, clock: Clock) {
        // A backend that is shared keeps the clock it was given first.
        let _ = self.clock.set(clock);
    }
}

impl Shard {
    fn entry(&self, at: u32) -> &Entry {
        &self.entries[at as usize]
    }

    fn entry_mut(&mut self, at: u32) -> &mut Entry {
        &mut self.entries[at as usize]
    }

    fn find(&self, id: RecordId, hasher: &DefaultHashBuilder) -> Option<u32> {
        self.by_id.find(hasher.hash_one(id), |&at| self.entry(at).id == id).copied()
    }

    fn live(&self, id: RecordId, now: u64, hasher: &DefaultHashBuilder) -> Option<u32> {
        self.find(id, hasher).filter(|&at| self.entry(at).expires > now)
    }

    /// The newest first.
    fn of(&self, owner: Owner, hasher: &DefaultHashBuilder) -> impl Iterator<Item = u32> {
        let newest = self.by_owner.find(hasher.hash_one(owner), |&at| self.entry(at).id.owner() == Some(owner));
        successors(newest.copied(), |&at| self.entry(at).older)
    }

    fn record(&self, at: u32, now: u64) -> Record {
        let entry = self.entry(at);
        Record {
            id: entry.id,
            version: entry.version,
            ttl: Duration::from_nanos(entry.expires.saturating_sub(now)),
            payload: entry.payload.clone(),
        }
    }

    fn insert(&mut self, record: Record, now: u64, uses: &AtomicU64, hasher: &DefaultHashBuilder) {
        let Record { id, version, ttl, payload } = record;
        let expires = now.saturating_add(nanos(ttl));
        let entry = Entry { id, version, expires, due: expires, payload, older: None, newer: None, used: 0 };
        // Each takes hundreds of bytes: there never are as many as that.
        let at = self.entries.insert(entry) as u32;
        let entries = &self.entries;
        self.by_id.insert_unique(hasher.hash_one(id), at, |&at| hasher.hash_one(entries[at as usize].id));
        self.due.push(Reverse((expires, at)));
        match id.owner() {
            Some(owner) => self.link_to_owner(at, owner, hasher),
            None => self.link(at, uses),
        }
    }

    fn remove(&mut self, at: u32, hasher: &DefaultHashBuilder) -> Entry {
        let id = self.entry(at).id;
        match id.owner() {
            Some(owner) => self.unlink_from_owner(at, owner, hasher),
            None => self.unlink(at),
        }
        if let Ok(place) = self.by_id.find_entry(hasher.hash_one(id), |&there| there == at) {
            place.remove();
        }
        let entry = self.entries.remove(at as usize);
        self.tidy_due();
        entry
    }

    fn expire_at(&mut self, at: u32, expires: u64) {
        let entry = self.entry_mut(at);
        entry.expires = expires;
        if expires < entry.due {
            entry.due = expires;
            self.due.push(Reverse((expires, at)));
            self.tidy_due();
        }
    }

    /// Leaves out what is void, once that is most of it.
    fn tidy_due(&mut self) {
        if self.due.len() > 2 * self.entries.len() + MIN_DUE {
            let due = self.entries.iter().map(|(at, entry)| Reverse((entry.due, at as u32)));
            self.due = due.collect::<Vec<_>>().into();
        }
    }

    fn link_to_owner(&mut self, at: u32, owner: Owner, hasher: &DefaultHashBuilder) {
        let entries = &self.entries;
        let owner_of = |at: u32| entries[at as usize].id.owner();
        let place = self.by_owner.entry(
            hasher.hash_one(owner),
            |&there| owner_of(there) == Some(owner),
            |&there| owner_of(there).map_or(0, |owner| hasher.hash_one(owner)),
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

    fn unlink_from_owner(&mut self, at: u32, owner: Owner, hasher: &DefaultHashBuilder) {
        let (older, newer) = self.neighbours_without(at);
        if newer.is_none() {
            let place = self.by_owner.find_entry(hasher.hash_one(owner), |&there| there == at);
            match (place, older) {
                (Ok(mut newest), Some(older)) => *newest.get_mut() = older,
                (Ok(newest), None) => _ = newest.remove(),
                (Err(_), _) => {}
            }
        }
    }

    fn mark_used(&mut self, at: u32, uses: &AtomicU64) {
        if self.entry(at).id.owner().is_none() {
            self.unlink(at);
            self.link(at, uses);
        }
    }

    /// Puts an anonymous record at the newest end of the list.
    fn link(&mut self, at: u32, uses: &AtomicU64) {
        let older = self.newest.replace(at);
        let entry = self.entry_mut(at);
        entry.used = uses.fetch_add(1, Relaxed);
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

    /// Links the neighbours of a record to each other, and says which they are.
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

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // No user code runs under the lock, so nothing can have stopped halfway.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As many as fit: 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An entry, its two places in `due`, and two in each of the tables, which are half empty.
const OVERHEAD: usize = size_of::<Entry>() + 2 * size_of::<(u64, u32)>() + 4 * (size_of::<u32>() + 1);
const MAX_BYTES: usize = 1 << 30;
const MIN_DUE: usize = 64;
/// A load is to take hardly longer while many expire; who writes keeps ahead of those who create.
const PURGE_PER_LOAD: usize = 1;
const PURGE_PER_WRITE: usize = 4;
const SHARDS_PER_THREAD: usize = 4;

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;
    use crate::random::{STEP, mix};

    /// What a backend in memory is to be, in the plainest words.
    #[derive(Default)]
    struct Model {
        records: BTreeMap<RecordId, Kept>,
        uses: u64,
    }

    struct Kept {
        version: i64,
        /// In milliseconds; `None` for never.
        expires: Option<u64>,
        payload: Bytes,
        used: u64,
    }

    impl Model {
        fn room(&self, only: impl Fn(&RecordId) -> bool) -> Room {
            let rooms = self.records.iter().filter(|(id, _)| only(id)).map(|(_, kept)| Room::of(&kept.payload));
            rooms.fold(Room::default(), |sum, room| Room {
                sessions: sum.sessions + room.sessions,
                bytes: sum.bytes + room.bytes,
            })
        }

        /// Whether there is room for that; then others have given way for it.
        fn make_room(&mut self, id: RecordId, more: Room, (sessions, bytes): (usize, usize)) -> bool {
            let fits = |room: Room| room.sessions + more.sessions <= sessions && room.bytes + more.bytes <= bytes;
            if !fits(self.room(|there| there.owner().is_some() || *there == id)) {
                return false;
            }
            while !fits(self.room(|_| true)) {
                let anonymous = self.records.iter().filter(|(there, _)| there.owner().is_none() && **there != id);
                let oldest = *anonymous.min_by_key(|(_, kept)| kept.used).unwrap().0;
                self.records.remove(&oldest);
            }
            true
        }

        fn mark_used(&mut self, id: RecordId) {
            self.uses += 1;
            if let Some(kept) = self.records.get_mut(&id) {
                kept.used = self.uses;
            }
        }
    }

    fn done<T>(work: impl Future<Output = T>) -> T {
        match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => done,
            Poll::Pending => panic!("memory waits for nobody"),
        }
    }

    fn below(seed: &mut u64, end: u64) -> u64 {
        *seed = seed.wrapping_add(STEP);
        mix(*seed) % end
    }

    fn id(owner: Option<u8>, sid: u64) -> RecordId {
        let sid = format!("AAAAAAAAAAAAAAAAAA{sid:04}");
        match owner {
            Some(owner) => format!("{}.{sid}", Owner::from([owner; 16])).parse().unwrap(),
            None => sid.parse().unwrap(),
        }
    }

    fn backend(clock: &Clock, (max_sessions, max_bytes): (usize, usize)) -> MemoryBackend {
        let backend = MemoryBackend { max_sessions, max_bytes, ..MemoryBackend::default() };
        backend.set_clock(clock.clone());
        backend
    }

    /// Whether its tables, its lists and its counters agree.
    fn check(backend: &MemoryBackend) {
        let (mut keyed, mut anonymous) = (Room::default(), Room::default());
        for shard in &backend.shards {
            let shard = lock(shard);
            let (mut linked, mut owners) = (0, 0);
            for (at, entry) in &shard.entries {
                let at = at as u32;
                assert_eq!(shard.find(entry.id, &backend.hasher), Some(at));
                assert!(entry.due <= entry.expires);
                assert!(shard.due.iter().any(|&Reverse(due)| due == (entry.due, at)));
                let (room, used) = (Room::of(&entry.payload), entry.id.owner().map_or(&mut anonymous, |_| &mut keyed));
                (used.sessions, used.bytes) = (used.sessions + 1, used.bytes + room.bytes);
                if let Some(owner) = entry.id.owner() {
                    assert_eq!(shard.of(owner, &backend.hasher).filter(|there| *there == at).count(), 1);
                    owners += usize::from(entry.newer.is_none());
                }
                for (neighbour, is_older) in [(entry.older, true), (entry.newer, false)] {
                    let Some(neighbour) = neighbour else { continue };
                    let neighbour = shard.entry(neighbour);
                    assert_eq!(if is_older { neighbour.newer } else { neighbour.older }, Some(at));
                    assert_eq!(neighbour.id.owner(), entry.id.owner());
                }
            }
            let mut last = None;
            for at in successors(shard.oldest, |&at| shard.entry(at).newer) {
                assert!(last < Some(shard.entry(at).used));
                last = Some(shard.entry(at).used);
                linked += 1;
            }
            assert_eq!(linked, shard.entries.iter().filter(|(_, entry)| entry.id.owner().is_none()).count());
            assert_eq!(shard.oldest.is_none(), shard.newest.is_none());
            assert_eq!((shard.by_id.len(), shard.by_owner.len()), (shard.entries.len(), owners));
            assert!(shard.due.len() <= 2 * shard.entries.len() + MIN_DUE);
        }
        let usage = backend.usage();
        for (counted, there) in [(usage.keyed, keyed), (usage.anonymous, anonymous)] {
            assert_eq!((counted.sessions, counted.bytes), (there.sessions, there.bytes));
        }
    }

    fn run(seed: u64, bounds: (usize, usize), steps: usize) {
        const TTLS: [u64; 6] = [0, 1, 3, 20, 1000, u64::MAX];
        let clock = Clock::manual();
        let (backend, mut model, mut random) = (backend(&clock, bounds), Model::default(), seed);
        let mut random = |end| below(&mut random, end);
        for step in 0..steps {
            if random(3) == 0 {
                clock.advance(Duration::from_millis([1, 1, 2, 19, 400][random(5) as usize]));
            }
            let now = clock.now_ms();
            model.records.retain(|_, kept| kept.expires.is_none_or(|expires| expires > now));
            let id = id([None, None, Some(1), Some(2), Some(3)][random(5) as usize], random(5));
            let ttl = TTLS[random(6) as usize];
            let expires = now.checked_add(ttl);
            let ttl = if ttl == u64::MAX { Duration::MAX } else { Duration::from_millis(ttl) };
            let payload = Bytes::from(vec![step as u8; random(40) as usize]);
            let version = random(3) as i64;
            let room = Room::of(&payload);
            let there = model.records.get(&id).map(|kept| kept.version);
            let context = format!("seed {seed}, step {step}");
            match random(16) {
                0..3 => {
                    let loaded = done(backend.load(id)).unwrap();
                    assert_eq!(loaded.as_ref().map(|record| record.version), there, "{context}");
                    if let Some(record) = loaded {
                        let kept = &model.records[&id];
                        assert_eq!((record.id, &record.payload), (id, &kept.payload), "{context}");
                        if let Some(expires) = kept.expires {
                            assert_eq!(record.ttl, Duration::from_millis(expires - now), "{context}");
                        }
                    }
                    model.mark_used(id);
                }
                3..8 => {
                    let created = done(backend.create(Record { id, version, ttl, payload: payload.clone() }));
                    let fits = there.is_some() || model.make_room(id, room, bounds);
                    assert_eq!(created.ok(), fits.then_some(there.is_none()), "{context}");
                    if fits && there.is_none() {
                        model.records.insert(id, Kept { version, expires, payload, used: 0 });
                        model.mark_used(id);
                    }
                }
                8..11 => {
                    let expected = random(3) as i64;
                    let updated = done(backend.update(expected, Record { id, version, ttl, payload: payload.clone() }));
                    match there {
                        None => assert!(matches!(updated, Ok(Outcome::Gone)), "{context}"),
                        Some(there) if there != expected => {
                            let Ok(Outcome::Conflict(current)) = updated else { panic!("{context}") };
                            assert_eq!((current.version, &current.payload), (there, &model.records[&id].payload));
                        }
                        Some(_) => {
                            let more = room.beyond(Room::of(&model.records[&id].payload));
                            let fits = more.bytes == 0 || model.make_room(id, more, bounds);
                            assert_eq!(matches!(updated, Ok(Outcome::Done)), fits, "{context}");
                            assert_eq!(updated.is_ok(), fits, "{context}");
                            if fits {
                                model.records.insert(id, Kept { version, expires, payload, used: 0 });
                                model.mark_used(id);
                            }
                        }
                    }
                }
                11..13 => {
                    done(backend.touch(id, version, ttl)).unwrap();
                    if let Some(kept) = model.records.get_mut(&id).filter(|kept| kept.version == version) {
                        kept.expires = expires;
                    }
                }
                13 => {
                    assert_eq!(done(backend.delete(id)).unwrap(), there.is_some(), "{context}");
                    model.records.remove(&id);
                }
                what => {
                    let Some(owner) = id.owner() else { continue };
                    let of_owner = |id: &RecordId| id.owner() == Some(owner);
                    let mut listed: Vec<_> =
                        done(backend.list(owner)).unwrap().iter().map(|record| record.id).collect();
                    listed.sort();
                    assert!(listed.iter().eq(model.records.keys().filter(|id| of_owner(id))), "{context}");
                    if what == 14 && random(3) == 0 {
                        let keep = (random(2) == 0).then_some(id);
                        let ended = listed.iter().filter(|id| Some(**id) != keep).count() as u64;
                        assert_eq!(done(backend.clear(owner, keep)).unwrap(), ended, "{context}");
                        model.records.retain(|id, _| !of_owner(id) || Some(*id) == keep);
                    }
                }
            }
            // One with no time to live may stand until somebody comes by, and is nothing to anybody.
            check(&backend);
        }
        for id in model.records.into_keys() {
            done(backend.delete(id)).unwrap();
        }
        clock.advance(Duration::from_secs(10));
        while backend.drop_any_expired() {}
        check(&backend);
        assert_eq!((backend.sessions(), backend.bytes()), (0, 0), "seed {seed}");
        for shard in &backend.shards {
            let shard = lock(shard);
            assert!(shard.oldest.is_none() && shard.by_owner.is_empty() && shard.due.len() <= MIN_DUE);
        }
    }

    #[test]
    fn it_does_what_a_plain_map_would_do() {
        for seed in 0..40 {
            run(seed, (usize::MAX, usize::MAX), 400);
        }
    }

    #[test]
    fn within_its_bounds_it_does_what_a_plain_map_would_do() {
        for seed in 0..40 {
            run(seed, (6, usize::MAX), 400);
            run(seed, (usize::MAX, 5 * OVERHEAD + 60), 400);
        }
    }

    #[test]
    fn a_name_that_is_taken_takes_nobodys_place() {
        let (clock, none) = (Clock::manual(), Bytes::new());
        let backend = backend(&clock, (2, usize::MAX));
        let record = |id| Record { id, version: 1, ttl: Duration::from_secs(1), payload: none.clone() };
        for sid in [1, 2] {
            assert!(done(backend.create(record(id(None, sid)))).unwrap());
        }
        assert!(!done(backend.create(record(id(None, 1)))).unwrap());
        assert!(done(backend.load(id(None, 2))).unwrap().is_some());
        // All that could give way is the one itself.
        assert!(done(backend.delete(id(None, 2))).unwrap());
        assert!(done(backend.create(record(id(Some(1), 1)))).unwrap());
        assert!(!done(backend.create(record(id(None, 1)))).unwrap());
    }

    #[test]
    fn churn_leaves_nothing_behind() {
        let clock = Clock::manual();
        let backend = backend(&clock, (usize::MAX, usize::MAX));
        let record =
            |id, ttl| Record { id, version: 1, ttl: Duration::from_millis(ttl), payload: Bytes::from_static(b"x") };
        let stays = id(None, 0);
        done(backend.create(record(stays, 1 << 40))).unwrap();
        for n in 0..20_000 {
            let id = id(Some(1), n % 7 + 1);
            done(backend.create(record(id, 100_000))).unwrap();
            done(backend.delete(id)).unwrap();
            // Each time it is to end earlier.
            assert!(matches!(done(backend.update(1, record(stays, (1 << 40) - n))), Ok(Outcome::Done)));
            done(backend.touch(stays, 1, Duration::from_secs(1 << 40))).unwrap();
        }
        check(&backend);
        assert!(backend.shards.iter().all(|shard| lock(shard).due.len() <= 2 + MIN_DUE));
    }
}
