//! Sessions in the memory of this process: gone when it ends, and not shared with another.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use slab::Slab;

use super::{Backend, Outcome, Result};
use crate::{Builder, Clock, Error, ErrorKind, Owner, Record, RecordId, Sessions};

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
#[derive(Debug)]
pub struct MemoryBackend {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    clock: Clock,
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
    by_id: HashMap<RecordId, usize>,
    by_owner: BTreeSet<(Owner, usize)>,
    by_expiry: BTreeSet<(Duration, usize)>,
    /// Anonymous records, linked from the least to the most recently used.
    oldest: Option<usize>,
    newest: Option<usize>,
}

struct Entry {
    id: RecordId,
    version: i64,
    expires: Duration,
    payload: Bytes,
    /// Only of anonymous records: when it was last used, and its neighbours in the list of those.
    used: u64,
    older: Option<usize>,
    newer: Option<usize>,
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
    fn shard(&self, id: RecordId) -> (MutexGuard<'_, Shard>, Duration) {
        match id.owner() {
            Some(owner) => self.shard_of(&owner),
            None => self.shard_of(&id),
        }
    }

    fn shard_of(&self, name: &impl std::hash::Hash) -> (MutexGuard<'_, Shard>, Duration) {
        let at = self.hasher.hash_one(name) as usize % self.shards.len();
        let mut shard = lock(&self.shards[at]);
        let now = self.clock.elapsed();
        for _ in 0..PURGE_PER_CALL {
            if !self.drop_expired(&mut shard, now) {
                break;
            }
        }
        (shard, now)
    }

    /// Drops the record of a shard that expired first, if one has.
    fn drop_expired(&self, shard: &mut Shard, now: Duration) -> bool {
        match shard.by_expiry.first() {
            Some(&(expires, at)) if expires <= now => {
                self.remove(shard, at);
                true
            }
            _ => false,
        }
    }

    fn remove(&self, shard: &mut Shard, at: usize) {
        let entry = shard.remove(at);
        self.release(entry.id, Room::of(&entry.payload));
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, id: RecordId, room: Room) {
        let mut usage = self.usage();
        let used = usage.of(id);
        used.sessions = used.sessions.saturating_sub(room.sessions);
        used.bytes = used.bytes.saturating_sub(room.bytes);
    }

    /// Takes room for a record, beside what it already has, and lets others give way for it if need be; nothing of that
    /// if it would not be enough.
    ///
    /// No shard may be locked: making room may need any of them.
    fn reserve(&self, id: RecordId, more: Room, has: Room) -> Result<()> {
        while !self.take(id, more) {
            let stays = self.usage().keyed;
            let own = if id.owner().is_none() { has } else { Room::default() };
            // Anonymous ones give way, all but the one that this is for; those with a key do not.
            let could_fit = stays.sessions.saturating_add(own.sessions).saturating_add(more.sessions)
                <= self.max_sessions
                && stays.bytes.saturating_add(own.bytes).saturating_add(more.bytes) <= self.max_bytes;
            if self.drop_any_expired() || (could_fit && self.drop_least_recently_used(id)) {
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
        let now = self.clock.elapsed();
        self.shards.iter().any(|shard| self.drop_expired(&mut lock(shard), now))
    }

    /// Drops the anonymous record that was not used for longest, but not `except`.
    fn drop_least_recently_used(&self, except: RecordId) -> bool {
        let oldest = |shard: &Shard| {
            let at = shard.oldest.filter(|&at| shard.entries[at].id != except);
            let at = at.or_else(|| shard.entries[shard.oldest?].newer)?;
            Some((shard.entries[at].used, at))
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
            hasher: RandomState::new(),
            clock: Clock::system(),
            max_sessions: usize::MAX,
            max_bytes: MAX_BYTES,
            usage: Mutex::default(),
            uses: AtomicU64::new(0),
        }
    }
}

impl Backend for MemoryBackend {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        let (mut shard, now) = self.shard(id);
        let Some(at) = shard.live(id, now) else { return Ok(None) };
        shard.mark_used(at, &self.uses);
        Ok(Some(shard.record(at, now)))
    }

    async fn create(&self, record: Record) -> Result<bool> {
        let room = Room::of(&record.payload);
        self.reserve(record.id, room, Room::default())?;
        let (mut shard, now) = self.shard(record.id);
        if shard.live(record.id, now).is_some() {
            self.release(record.id, room);
            return Ok(false);
        }
        if let Some(&dead) = shard.by_id.get(&record.id) {
            self.remove(&mut shard, dead);
        }
        shard.insert(record, now, &self.uses);
        Ok(true)
    }

    async fn update(&self, expected: i64, record: Record) -> Result<Outcome> {
        let new = Room::of(&record.payload);
        let mut reserved = Room::default();
        loop {
            let (mut shard, now) = self.shard(record.id);
            let Some(at) = shard.live(record.id, now) else {
                self.release(record.id, reserved);
                return Ok(Outcome::Gone);
            };
            if shard.entries[at].version != expected {
                self.release(record.id, reserved);
                return Ok(Outcome::Conflict(shard.record(at, now)));
            }
            let old = Room::of(&shard.entries[at].payload);
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
            self.release(
                record.id,
                Room { sessions: 0, bytes: (old.bytes + reserved.bytes).saturating_sub(new.bytes) },
            );
            shard.entries[at].version = record.version;
            shard.entries[at].payload = record.payload;
            shard.expire_at(at, now.saturating_add(record.ttl));
            shard.mark_used(at, &self.uses);
            return Ok(Outcome::Done);
        }
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        let (mut shard, now) = self.shard(id);
        if let Some(at) = shard.live(id, now).filter(|&at| shard.entries[at].version == version) {
            shard.expire_at(at, now.saturating_add(ttl));
        }
        Ok(())
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        let (mut shard, now) = self.shard(id);
        let Some(at) = shard.live(id, now) else { return Ok(false) };
        self.remove(&mut shard, at);
        Ok(true)
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        let (shard, now) = self.shard_of(&owner);
        Ok(shard.of(owner).filter(|&at| shard.entries[at].expires > now).map(|at| shard.record(at, now)).collect())
    }

    async fn clear(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64> {
        let (mut shard, now) = self.shard_of(&owner);
        let mut ended = 0;
        for at in shard.of(owner).collect::<Vec<_>>() {
            if Some(shard.entries[at].id) != keep {
                ended += u64::from(shard.entries[at].expires > now);
                self.remove(&mut shard, at);
            }
        }
        Ok(ended)
    }

    fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }
}

impl Shard {
    fn live(&self, id: RecordId, now: Duration) -> Option<usize> {
        let at = *self.by_id.get(&id)?;
        (self.entries[at].expires > now).then_some(at)
    }

    fn of(&self, owner: Owner) -> impl Iterator<Item = usize> {
        self.by_owner.range((owner, 0)..=(owner, usize::MAX)).map(|(_, at)| *at)
    }

    fn record(&self, at: usize, now: Duration) -> Record {
        let entry = &self.entries[at];
        Record {
            id: entry.id,
            version: entry.version,
            ttl: entry.expires.saturating_sub(now),
            payload: entry.payload.clone(),
        }
    }

    fn insert(&mut self, record: Record, now: Duration, uses: &AtomicU64) {
        let expires = now.saturating_add(record.ttl);
        let at = self.entries.insert(Entry {
            id: record.id,
            version: record.version,
            expires,
            payload: record.payload,
            used: 0,
            older: None,
            newer: None,
        });
        self.by_id.insert(record.id, at);
        self.by_expiry.insert((expires, at));
        match record.id.owner() {
            Some(owner) => _ = self.by_owner.insert((owner, at)),
            None => self.link(at, uses),
        }
    }

    fn remove(&mut self, at: usize) -> Entry {
        let id = self.entries[at].id;
        match id.owner() {
            Some(owner) => _ = self.by_owner.remove(&(owner, at)),
            None => self.unlink(at),
        }
        self.by_id.remove(&id);
        self.by_expiry.remove(&(self.entries[at].expires, at));
        self.entries.remove(at)
    }

    fn expire_at(&mut self, at: usize, expires: Duration) {
        self.by_expiry.remove(&(self.entries[at].expires, at));
        self.entries[at].expires = expires;
        self.by_expiry.insert((expires, at));
    }

    fn mark_used(&mut self, at: usize, uses: &AtomicU64) {
        if self.entries[at].id.owner().is_none() {
            self.unlink(at);
            self.link(at, uses);
        }
    }

    /// Puts an anonymous record at the newest end of the list.
    fn link(&mut self, at: usize, uses: &AtomicU64) {
        let older = self.newest.replace(at);
        self.entries[at].used = uses.fetch_add(1, Relaxed);
        self.entries[at].older = older;
        self.entries[at].newer = None;
        match older {
            Some(older) => self.entries[older].newer = Some(at),
            None => self.oldest = Some(at),
        }
    }

    fn unlink(&mut self, at: usize) {
        let (older, newer) = (self.entries[at].older, self.entries[at].newer);
        match older {
            Some(older) => self.entries[older].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.entries[newer].older = older,
            None => self.newest = older,
        }
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

const OVERHEAD: usize = size_of::<Entry>() + 2 * size_of::<(RecordId, usize)>() + 2 * size_of::<(Duration, usize)>();
const MAX_BYTES: usize = 1 << 30;
const PURGE_PER_CALL: usize = 4;
const SHARDS_PER_THREAD: usize = 4;
