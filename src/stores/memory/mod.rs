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
mod methods;
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
    shard::{Due, Shard, nanos},
};
use crate::{
    backend::Result,
    clock::Clock,
    error::{Error, ErrorKind},
    random::random_version,
    record::id::{Owner, RecordId},
    sessions::{
        Sessions,
        builder::{Builder, check_bounds},
    },
    stores::recent::{RecentClears, RecentEndings},
};

/// [`Sessions`] in memory. See the [module docs](self).
pub type MemorySessions = Sessions<MemoryBackend>;

/// A [`Backend`](crate::Backend) that keeps records in a sharded map. See the [module docs](self).
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

fn a_session_fits(backend: &MemoryBackend, smallest: &Bytes) -> std::result::Result<(), &'static str> {
    let Bounds { max_sessions, max_bytes, .. } = backend.bounds;
    check_bounds(max_sessions, max_bytes as u64, Room::of(smallest).bytes as u64)
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
/// The total of all shards.
const MOST_CLEARS: usize = 1 << 16;
const MOST_ENDINGS: usize = 1 << 13;
