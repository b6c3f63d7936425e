//! Sessions in the memory of this process: gone when it ends, and not shared with another.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
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
    sessions: AtomicUsize,
    bytes: AtomicUsize,
    /// Counts uses, so that the least recent one can be told across shards.
    uses: AtomicU64,
}

/// All records of an owner are in one shard, so that `list` and `clear` see one moment.
#[derive(Default)]
struct Shard {
    entries: Slab<Entry>,
    by_id: HashMap<RecordId, usize>,
    by_owner: HashMap<Owner, Vec<usize>>,
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
        self.sessions.load(Relaxed)
    }

    /// About how many bytes of memory they take.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
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
        self.sessions.fetch_sub(1, Relaxed);
        self.bytes.fetch_sub(cost(&entry.payload), Relaxed);
    }

    /// Takes room for one more session or none, and for so many bytes; nothing of it if there is not enough.
    ///
    /// No shard may be locked.
    fn reserve(&self, sessions: usize, bytes: usize) -> Result<()> {
        let take = |counter: &AtomicUsize, more: usize, most: usize| {
            let sum = |now: usize| now.checked_add(more).filter(|sum| *sum <= most);
            counter.fetch_update(Relaxed, Relaxed, sum).is_ok()
        };
        // What can never fit is no reason for anybody to give way.
        let mut room = sessions <= self.max_sessions && bytes <= self.max_bytes;
        while room {
            if take(&self.sessions, sessions, self.max_sessions) {
                if take(&self.bytes, bytes, self.max_bytes) {
                    return Ok(());
                }
                self.release(sessions, 0);
            }
            room = self.make_room();
        }
        Err(Error::new(ErrorKind::Unavailable, "the sessions in memory have reached their bound").into())
    }

    fn release(&self, sessions: usize, bytes: usize) {
        self.sessions.fetch_sub(sessions, Relaxed);
        self.bytes.fetch_sub(bytes, Relaxed);
    }

    /// Drops one record: an expired one, else the anonymous one that was not used for longest.
    fn make_room(&self) -> bool {
        let now = self.clock.elapsed();
        if self.shards.iter().any(|shard| self.drop_expired(&mut lock(shard), now)) {
            return true;
        }
        let oldest = |shard: &Shard| Some((shard.entries.get(shard.oldest?)?.used, shard.oldest?));
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
            sessions: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
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
        // Before the shard is locked: making room may need any of them.
        let cost = cost(&record.payload);
        self.reserve(1, cost)?;
        let (mut shard, now) = self.shard(record.id);
        if shard.live(record.id, now).is_some() {
            self.release(1, cost);
            return Ok(false);
        }
        if let Some(&dead) = shard.by_id.get(&record.id) {
            self.remove(&mut shard, dead);
        }
        shard.insert(record, now, &self.uses);
        Ok(true)
    }

    async fn update(&self, expected: i64, record: Record) -> Result<Outcome> {
        let new = cost(&record.payload);
        self.reserve(0, new)?;
        let (mut shard, now) = self.shard(record.id);
        let Some(at) = shard.live(record.id, now) else {
            self.release(0, new);
            return Ok(Outcome::Gone);
        };
        if shard.entries[at].version != expected {
            self.release(0, new);
            return Ok(Outcome::Conflict(shard.record(at, now)));
        }
        self.release(0, cost(&shard.entries[at].payload));
        shard.entries[at].version = record.version;
        shard.entries[at].payload = record.payload;
        shard.expire_at(at, now.saturating_add(record.ttl));
        shard.mark_used(at, &self.uses);
        Ok(Outcome::Done)
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
        let all = shard.by_owner.get(&owner).into_iter().flatten();
        Ok(all.filter(|&&at| shard.entries[at].expires > now).map(|&at| shard.record(at, now)).collect())
    }

    async fn clear(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64> {
        let (mut shard, now) = self.shard_of(&owner);
        let mut ended = 0;
        for at in shard.by_owner.get(&owner).cloned().unwrap_or_default() {
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
            Some(owner) => self.by_owner.entry(owner).or_default().push(at),
            None => self.link(at, uses),
        }
    }

    fn remove(&mut self, at: usize) -> Entry {
        let id = self.entries[at].id;
        match id.owner() {
            None => self.unlink(at),
            Some(owner) => {
                if let Some(all) = self.by_owner.get_mut(&owner) {
                    all.retain(|&other| other != at);
                    if all.is_empty() {
                        self.by_owner.remove(&owner);
                    }
                }
            }
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

/// What a record takes, with its places in the maps.
fn cost(payload: &Bytes) -> usize {
    payload.len() + OVERHEAD
}

const OVERHEAD: usize = size_of::<Entry>() + 2 * size_of::<(RecordId, usize)>() + 2 * size_of::<(Duration, usize)>();
const MAX_BYTES: usize = 1 << 30;
const PURGE_PER_CALL: usize = 4;
const SHARDS_PER_THREAD: usize = 4;
