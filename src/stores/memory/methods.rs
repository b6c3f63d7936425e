//! The methods of the [`Backend`] in memory.

use std::time::Duration;

use super::{
    MemoryBackend, PURGE_PER_LOAD, PURGE_PER_WRITE,
    bounds::Room,
    lock,
    shard::{SOME, nanos},
};
use crate::{
    backend::{
        Backend, Outcome, Result,
        clear::{By, Clear, Cleared},
        scan::{Count, Cursor, Page},
        terms::{Created, Mark, Terms},
    },
    clock::Clock,
    record::{
        Record,
        id::{Owner, RecordId},
    },
    stores::{
        cursor::{cursor, place},
        recent::{TermsAt, unknown},
    },
};

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

/// How many times a page of a scan looks for records, at [`SOME`] slots each time.
const MOST_LOOKS: usize = 256;
