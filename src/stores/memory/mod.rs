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
//! The store also remembers each user's last clear for a quarter of an hour, so that logins that were under way are refused. It
//! remembers at most 65,536 clears (7 MB). If there are more, the oldest are forgotten, and logins that have been under way for
//! longer than that are refused.

mod bounds;
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
    backend::{Backend, By, Clear, Cleared, Created, Outcome, Result, Terms},
    clock::Clock,
    error::{Error, ErrorKind},
    record::{
        Record,
        id::{Owner, RecordId},
    },
    sessions::{Sessions, builder::Builder},
    stores::recent::{TermsAt, unknown},
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
    /// See [`max_sessions`](Self::max_sessions) for what happens at the limit. A limit in which no session fits is refused.
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

    /// Locks the shard of a record, removes a few expired records from it, and tells the time.
    fn shard(&self, id: RecordId, purge: usize) -> (MutexGuard<'_, Shard>, u64) {
        match id.owner() {
            Some(owner) => self.shard_of(&owner, purge),
            None => self.shard_of(&id, purge),
        }
    }

    fn shard_of(&self, name: &impl Hash, purge: usize) -> (MutexGuard<'_, Shard>, u64) {
        // The tables inside a shard use the other bits.
        let at = (self.hasher.hash_one(name) >> 32) as usize % self.shards.len();
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

    /// What `create` answers without storing the record, if it does not.
    ///
    /// `there` is what has its name, dead or alive.
    fn refusal(
        shard: &Shard,
        there: Option<u32>,
        record: &Record,
        terms: TermsAt,
        now: u64,
    ) -> Result<Option<Created>> {
        let Record { id, version, .. } = *record;
        let there = there.map(|at| shard.entry(at)).filter(|there| there.expires > now);
        Ok(match there {
            // Since this one was created it may have been written to.
            Some(there) if there.version == version || there.first == version => Some(Created::Done),
            _ if terms.are_late(&shard.clears, id.owner(), Duration::from_nanos(now)) => Some(Created::Late),
            _ if terms.retry && shard.may_have_ended(id, now) => return Err(unknown().into()),
            Some(_) => Some(Created::Taken),
            None => None,
        })
    }

    /// Takes room for a record that already has some (`has`, if it is there). Others give way for it if need be, but none
    /// of them if that would not be enough.
    ///
    /// No shard may be locked: making room may need any of them.
    fn reserve(&self, id: RecordId, more: Room, has: Room) -> Result<()> {
        let except = (has.sessions > 0).then_some(id);
        while !self.bounds.take(id, more) {
            let could_fit = self.bounds.could_fit(id, more, has);
            if self.drop_any_expired() || (could_fit && self.drop_least_recently_used(except)) {
                continue;
            }
            if !could_fit {
                let message = "the sessions in memory have reached max_sessions or max_bytes, and no visitor's session is \
                               left to evict";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
            // The records that could give way are being stored or removed by other threads.
            std::thread::yield_now();
        }
        Ok(())
    }

    fn drop_any_expired(&self) -> bool {
        let now = self.now();
        self.shards.iter().any(|shard| self.look_at_due(&mut lock(shard), now))
    }

    /// Drops the anonymous record that was not used for longest, but not `except`.
    fn drop_least_recently_used(&self, except: Option<RecordId>) -> bool {
        let used = |shard: &Shard| Some(shard.entry(shard.least_recently_used(except)?).used);
        let candidates = self.shards.iter().filter_map(|shard| Some((used(&lock(shard))?, shard)));
        let Some((_, shard)) = candidates.min_by_key(|(used, _)| *used) else { return false };
        let mut shard = lock(shard);
        // Another thread may have removed that one meanwhile. Then its neighbour goes, or the caller looks again.
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
        let shard = |_| Shard::new(hasher.clone(), Arc::clone(&uses), MOST_CLEARS / shards, MOST_ENDINGS / shards);
        Self {
            shards: (0..shards).map(shard).map(Mutex::new).collect(),
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
        let room = Room::of(&record.payload);
        if !self.bounds.take(record.id, room) {
            let (shard, now) = self.shard(record.id, PURGE_PER_LOAD);
            // Nothing gives way for a record that is not added; and that very record may be all that could.
            if let Some(answer) = Self::refusal(&shard, shard.find(record.id), &record, terms, now)? {
                return Ok(answer);
            }
            drop(shard);
            self.reserve(record.id, room, Room::default())?;
        }
        let (mut shard, now) = self.shard(record.id, PURGE_PER_WRITE);
        let there = shard.find(record.id);
        match Self::refusal(&shard, there, &record, terms, now) {
            Ok(None) => {}
            refused => {
                self.bounds.release(record.id, room);
                return Ok(refused?.unwrap_or(Created::Taken));
            }
        }
        if let Some(dead) = there {
            self.remove(&mut shard, dead, now);
        }
        shard.insert(record, now);
        Ok(Created::Done)
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
                    // It may have been written and replaced. No answer of the memory is lost, so no versions are remembered.
                    true => Err(unknown().into()),
                    false => Ok(Outcome::Conflict(shard.record(at, now))),
                };
            }
            let old = shard.entry(at).room();
            let more = new.beyond(old).beyond(reserved);
            if more.bytes > 0 {
                // Others may have to give way for it, and they may be in this shard.
                drop(shard);
                if let Err(full) = self.reserve(record.id, more, old) {
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
        let (shard, now) = self.shard_of(&owner, PURGE_PER_LOAD);
        let live = shard.of(owner).filter(|&at| shard.entry(at).expires > now);
        Ok(live.map(|at| shard.record(at, now)).collect())
    }

    async fn clear(&self, owner: Owner, clear: Clear) -> Result<Cleared> {
        let Clear { name, by } = clear;
        let (mut shard, now) = self.shard_of(&owner, PURGE_PER_WRITE);
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

    fn set_clock(&self, clock: Clock) {
        // A backend that is shared keeps the clock that it was given first.
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
    // No user code runs under the lock, so nothing can have stopped halfway.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A load must hardly take longer while many records expire. Writes remove more than they can add.
const PURGE_PER_LOAD: usize = 1;
const PURGE_PER_WRITE: usize = 4;
const SHARDS_PER_THREAD: usize = 4;
/// In all shards together.
const MOST_CLEARS: usize = 1 << 16;
const MOST_ENDINGS: usize = 1 << 13;
