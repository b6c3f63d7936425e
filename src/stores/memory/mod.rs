//! Sessions in the memory of this process. They end with the process, and no other process sees them.
//!
//! ```
//! use jam_session::stores::memory::MemorySessions;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), jam_session::Error> {
//! let sessions = MemorySessions::builder().max_sessions(100_000).build()?;
//! let id = sessions.create("ada", serde_json::json!({"role": "admin"})).await?;
//! assert!(sessions.get(&id).await?.is_some());
//! # Ok(())
//! # }
//! ```
//!
//! # What happens when it is full
//!
//! [`max_bytes`](Builder::max_bytes) and [`max_sessions`](Builder::max_sessions) limit the sessions. At a limit, expired
//! sessions are removed first. Then visitors' sessions (those without a session key) are evicted, the least recently used
//! first. Signed-in sessions are never evicted: if no visitors' sessions are left, creating a session fails with
//! [`ErrorKind::Unavailable`]. Signing out always works.
//!
//! The store also remembers each user's last clear for half an hour, so that pending logins can be refused. It remembers at
//! most 65,536 clears (7 MB). If there are more, the oldest are forgotten, and any login, of any user, that began before a
//! forgotten clear is refused. A [`Login`](crate::Login) is valid only for the store that it was begun on. A `Login` from
//! another process, or from this process before a restart, is refused.
//!
//! # A limit of sessions per user
//!
//! A login above the [limit](crate::Builder::sessions_per_key) atomically ends the user's least recently used sessions, and
//! their space is available for the new one. For this limit, a session is used when it is created, written or touched; a
//! request that reads it touches it once per [`touch_interval`](crate::Builder::touch_interval).
//!
//! # Cost of listing and counting all sessions
//!
//! The sessions are divided into shards, each with its own lock. [`all`](Sessions::all) locks one shard at a time, while it
//! copies at most 1,024 sessions. [`count`](Sessions::count) reads a counter per shard. It first removes expired sessions, so
//! it takes longer if many have expired.

mod bounds;
mod create;
mod shard;
#[cfg(test)]
mod tests;

use std::{
    hash::{BuildHasher, Hash},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hashbrown::DefaultHashBuilder;

use self::{
    bounds::{Bounds, Room},
    shard::{Due, SOME, Shard, nanos},
};
use crate::{
    backend::{
        Backend, Outcome, Result,
        clear::{By, Clear, Cleared},
        scan::{Count, Cursor, Page},
        terms::{Created, Mark, Terms},
    },
    clock::Clock,
    error::{Error, ErrorKind},
    random::random_version,
    record::{
        Record,
        id::{Owner, RecordId},
    },
    sessions::{Sessions, builder::Builder},
    stores::{
        cursor::{cursor, place},
        recent::{RecentClears, RecentEndings, TermsAt, unknown},
    },
};

/// [`Sessions`] in memory. See the [module docs](self).
pub type MemorySessions = Sessions<MemoryBackend>;

/// A [`Backend`] that keeps records in a sharded map. See the [module docs](self).
///
/// Each call removes a few expired records, and nothing ever scans all of them. The cost of reading and writing a record does not
/// depend on how many there are.
#[derive(Debug)]
pub struct MemoryBackend {
    shards: Box<[Mutex<Shard>]>,
    /// A random number that distinguishes its marks and cursors from those of another store.
    opening: i64,
    hasher: DefaultHashBuilder,
    clock: OnceLock<Clock>,
    bounds: Bounds,
}

impl MemorySessions {
    /// Creates sessions with the default options.
    pub fn new() -> Self {
        // The defaults are valid; `build` only ever fails for options, or for a system without random bytes.
        #[allow(clippy::expect_used)]
        Self::builder().build().expect("the defaults are valid")
    }

    /// Returns a builder with the default options.
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
    /// Limits the number of sessions. Default: no limit.
    ///
    /// At the limit, expired sessions are removed first. Then visitors' sessions (those without a session key) are evicted, the
    /// least recently used first. Signed-in sessions are never evicted: if no visitors' sessions are left, creating a session
    /// fails with [`ErrorKind::Unavailable`]. A limit of 0 is refused.
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        self.from.bounds.max_sessions = sessions;
        self.fits = a_session_fits;
        self
    }

    /// Limits the memory that sessions take, approximately and including bookkeeping. Default: 1 GiB.
    ///
    /// See [`max_sessions`](Self::max_sessions) for what happens at the limit. A limit that is too small for any session is
    /// refused.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.from.bounds.max_bytes = bytes;
        self.fits = a_session_fits;
        self
    }
}

impl MemoryBackend {
    /// Returns the number of sessions, including expired ones that were not removed yet.
    pub fn sessions(&self) -> usize {
        let usage = self.bounds.usage();
        usage.keyed.and(usage.anonymous).sessions
    }

    /// Returns approximately how many bytes of memory the sessions take.
    pub fn bytes(&self) -> usize {
        let usage = self.bounds.usage();
        usage.keyed.and(usage.anonymous).bytes
    }

    /// Locks the shard of a record, removes a few expired records from it, and returns the time.
    fn shard(&self, id: RecordId, purge: usize) -> (MutexGuard<'_, Shard>, u64) {
        self.shard_at(self.place_of(id), purge)
    }

    fn shard_of(&self, owner: Owner, purge: usize) -> (MutexGuard<'_, Shard>, u64) {
        self.shard_at(self.place_of_hash(owner), purge)
    }

    fn shard_at(&self, at: usize, purge: usize) -> (MutexGuard<'_, Shard>, u64) {
        let mut shard = lock(&self.shards[at]);
        let now = self.now();
        shard.clears.forget(Duration::from_nanos(now));
        for _ in 0..purge {
            if !self.look_at_due(&mut shard, now) {
                break;
            }
        }
        (shard, now)
    }

    /// Returns the index of a record's shard.
    fn place_of(&self, id: RecordId) -> usize {
        id.owner().map_or_else(|| self.place_of_hash(id), |owner| self.place_of_hash(owner))
    }

    fn place_of_hash(&self, name: impl Hash) -> usize {
        // The tables inside a shard use the other bits.
        (self.hasher.hash_one(name) >> 32) as usize % self.shards.len()
    }

    /// Removes the record of a shard that is due first, if it has expired. Returns whether one was due.
    fn look_at_due(&self, shard: &mut Shard, now: u64) -> bool {
        match shard.look_at_due(now) {
            Due::Nothing => false,
            Due::Later => true,
            Due::Expired(entry) => {
                self.bounds.release(entry.id, entry.room());
                true
            }
        }
    }

    fn remove(&self, shard: &mut Shard, at: u32, now: u64) {
        let entry = shard.remove(at, now);
        self.bounds.release(entry.id, entry.room());
    }

    fn now(&self) -> u64 {
        nanos(self.clock.get_or_init(Clock::system).elapsed())
    }

    /// Reserves space for a record. Evicts others if necessary, or none at all if that would not be enough. The visitor's record
    /// `except` is never evicted; `stays` is the space of visitors' records that are not evicted.
    ///
    /// The caller must not hold a shard's lock, because making room may need any shard.
    fn reserve(&self, id: RecordId, more: Room, except: Option<RecordId>, stays: Room) -> Result<()> {
        while !self.bounds.take(id, more) {
            let could_fit = self.bounds.could_fit(more, stays);
            if self.drop_any_expired() || (could_fit && self.drop_least_recently_used(except)) {
                continue;
            }
            if !could_fit {
                let message = "the sessions in memory have reached max_sessions or max_bytes, and no visitor's session is \
                               left to evict";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
            // Other threads are storing or removing the records that could be evicted.
            std::thread::yield_now();
        }
        Ok(())
    }

    fn drop_any_expired(&self) -> bool {
        let now = self.now();
        self.shards.iter().any(|shard| self.look_at_due(&mut lock(shard), now))
    }

    /// Evicts the least recently used visitor's record, except `except`.
    fn drop_least_recently_used(&self, except: Option<RecordId>) -> bool {
        let used = |shard: &Shard| Some(shard.entry(shard.least_recently_used(except)?).used);
        let candidates = self.shards.iter().filter_map(|shard| Some((used(&lock(shard))?, shard)));
        let Some((_, shard)) = candidates.min_by_key(|(used, _)| *used) else { return false };
        let mut shard = lock(shard);
        // Another thread may have removed that record in the meantime. Then its neighbour is evicted, or the caller tries again.
        if let Some(at) = shard.least_recently_used(except) {
            self.remove(&mut shard, at, self.now());
        }
        true
    }
}

impl Default for MemoryBackend {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (threads * SHARDS_PER_THREAD).next_power_of_two();
        let (hasher, uses) = (DefaultHashBuilder::default(), Arc::default());
        let opening = random_version();
        let shard = |_| {
            let clears = RecentClears::new(MOST_CLEARS / shards, opening);
            Shard::new(hasher.clone(), Arc::clone(&uses), clears, RecentEndings::new(MOST_ENDINGS / shards))
        };
        Self {
            shards: (0..shards).map(shard).map(Mutex::new).collect(),
            opening,
            hasher,
            clock: OnceLock::new(),
            bounds: Bounds::default(),
        }
    }
}

impl Backend for MemoryBackend {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        let (mut shard, now) = self.shard(id, PURGE_PER_LOAD);
        let Some(at) = shard.live(id, now) else { return Ok(None) };
        shard.mark_used(at);
        Ok(Some(shard.record(at, now)))
    }

    async fn create(&self, record: Record, terms: Terms) -> Result<Created> {
        let terms = TermsAt::new(terms, || Duration::from_nanos(self.now()));
        self.create_on(record, &terms)
    }

    async fn update(&self, expected: i64, record: Record, retry: bool) -> Result<Outcome> {
        let new = Room::of(&record.payload);
        let mut reserved = Room::default();
        loop {
            let (mut shard, now) = self.shard(record.id, PURGE_PER_WRITE);
            let Some(at) = shard.live(record.id, now) else {
                self.bounds.release(record.id, reserved);
                return Ok(Outcome::Gone);
            };
            let there = shard.entry(at).version;
            if there != expected {
                self.bounds.release(record.id, reserved);
                return match retry {
                    true if there == record.version => Ok(Outcome::Done),
                    // The first try may have been applied and replaced. Memory never loses an answer, so it remembers no
                    // versions.
                    true => Err(unknown().into()),
                    false => Ok(Outcome::Conflict(shard.record(at, now))),
                };
            }
            let old = shard.entry(at).room();
            let more = new.beyond(old).beyond(reserved);
            if more.bytes > 0 {
                // Others may have to be evicted for it, and they may be in this shard.
                drop(shard);
                let stays = if record.id.owner().is_none() { old.and(reserved) } else { Room::default() };
                if let Err(full) = self.reserve(record.id, more, Some(record.id), stays) {
                    self.bounds.release(record.id, reserved);
                    return Err(full);
                }
                reserved.bytes += more.bytes;
                continue;
            }
            let less = (old.bytes + reserved.bytes).saturating_sub(new.bytes);
            self.bounds.release(record.id, Room { sessions: 0, bytes: less });
            let old = shard.replace(at, record, now);
            drop(shard);
            drop(old);
            return Ok(Outcome::Done);
        }
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        let (mut shard, now) = self.shard(id, PURGE_PER_WRITE);
        if let Some(at) = shard.live(id, now).filter(|&at| shard.entry(at).version == version) {
            shard.expire_at(at, now.saturating_add(nanos(ttl)));
            shard.mark_heard(at);
        }
        Ok(())
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        let (mut shard, now) = self.shard(id, PURGE_PER_WRITE);
        let Some(at) = shard.live(id, now) else { return Ok(false) };
        self.remove(&mut shard, at, now);
        Ok(true)
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        let (shard, now) = self.shard_of(owner, PURGE_PER_LOAD);
        let live = shard.of(owner).filter(|&at| shard.entry(at).expires > now);
        Ok(live.map(|at| shard.record(at, now)).collect())
    }

    async fn clear(&self, owner: Owner, clear: Clear) -> Result<Cleared> {
        let Clear { name, by } = clear;
        let (mut shard, now) = self.shard_of(owner, PURGE_PER_WRITE);
        if let Some(ended) = shard.clears.repeat(owner, name) {
            return Ok(Cleared::Done(ended));
        }
        let mut kept = None;
        if let Some(By { id, version, keep }) = by {
            match shard.live(id, now).filter(|_| id.owner() == Some(owner)) {
                None => return Ok(Cleared::Gone),
                Some(at) if shard.entry(at).version != version => return Ok(Cleared::Conflict(shard.record(at, now))),
                Some(at) => kept = keep.then_some(at),
            }
        }
        let mut ended = 0;
        for at in shard.of(owner).collect::<Vec<_>>() {
            if Some(at) != kept {
                ended += u64::from(shard.entry(at).expires > now);
                self.remove(&mut shard, at, now);
            }
        }
        shard.clears.remember(owner, name, ended, Duration::from_nanos(now));
        Ok(Cleared::Done(ended))
    }

    async fn mark(&self, owner: Owner) -> Result<Mark> {
        let (shard, now) = self.shard_of(owner, 0);
        Ok(shard.clears.mark(owner, Duration::from_nanos(now)))
    }

    async fn scan(&self, after: Option<Cursor>, most: usize) -> Result<Page> {
        let place = place(self.opening, after)?;
        let (mut at, mut from) = ((place >> 32) as usize, place as u32 as usize);
        let (mut records, most) = (Vec::new(), most.max(1));
        // A page is not full at the end of a shard, or where nearly all slots are empty.
        for _ in 0..MOST_LOOKS.max(most / SOME) {
            let Some(shard) = self.shards.get(at) else { return Ok(Page { records, ..Page::default() }) };
            let shard = lock(shard);
            let next = shard.some(from, most - records.len(), self.now(), &mut records);
            (at, from) = next.map_or((at + 1, 0), |next| (at, next));
            if records.len() >= most {
                break;
            }
        }
        let next = (at < self.shards.len()).then(|| cursor(self.opening, (at as u64) << 32 | from as u64));
        Ok(Page { records, next, moved: false })
    }

    async fn count(&self) -> Result<Count> {
        let mut count = Count::default();
        for at in 0..self.shards.len() {
            let (shard, _) = loop {
                let (shard, now) = self.shard_at(at, SOME);
                if !shard.is_due(now) {
                    break (shard, now);
                }
            };
            count.signed_in += (shard.entries.len() - shard.visitors) as u64;
            count.visitors += shard.visitors as u64;
        }
        Ok(count)
    }

    fn set_clock(&self, clock: Clock) {
        // A shared backend keeps the first clock.
        let _ = self.clock.set(clock);
    }
}

fn a_session_fits(backend: &MemoryBackend, smallest: &Bytes) -> std::result::Result<(), &'static str> {
    let Bounds { max_sessions, max_bytes, .. } = backend.bounds;
    if max_sessions == 0 {
        return Err("max_sessions must not be zero: no session fits in that");
    }
    if max_bytes < Room::of(smallest).bytes {
        return Err("max_bytes is so small that no session fits in it");
    }
    Ok(())
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // No application code runs under the lock, so a poisoned state cannot be half-changed.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many expired records each call removes. Few, so that loads stay fast while many records expire; enough, so that writes
/// remove more than they add.
const PURGE_PER_LOAD: usize = 1;
const PURGE_PER_WRITE: usize = 4;
const SHARDS_PER_THREAD: usize = 4;
/// How many times a page of a scan looks for records, at [`SOME`] slots each time.
const MOST_LOOKS: usize = 256;
/// The total of all shards.
const MOST_CLEARS: usize = 1 << 16;
const MOST_ENDINGS: usize = 1 << 13;
