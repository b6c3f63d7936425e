//! Creating a record: whether it is allowed, which records end for it, and the space that it takes.

use std::{sync::MutexGuard, time::Duration};

use super::{MemoryBackend, PURGE_PER_WRITE, bounds::Room, lock, shard::Shard};
use crate::{
    backend::{
        Result,
        terms::{Created, Left},
    },
    record::{Record, id::RecordId},
    stores::recent::{TermsAt, unknown},
};

/// The decision about a record to create.
enum Admission {
    /// The record is stored, and these end because of the limit.
    New {
        ends: Vec<u32>,
    },
    /// This very record is already there.
    Repeated,
    Refused(Created),
}

impl MemoryBackend {
    pub(super) fn create_on(&self, record: Record, terms: &TermsAt) -> Result<Created> {
        let (id, needs) = (record.id, Room::of(&record.payload));
        let mut reserved = Room::default();
        loop {
            let (mut pair, now) = self.pair(id, terms.leaves.map(|(id, _)| id), PURGE_PER_WRITE);
            let there = pair.shard.find(id);
            let admission = Self::admit(&pair.shard, there, &record, terms, now);
            if !matches!(admission, Ok(Admission::New { .. })) {
                self.bounds.release(id, reserved);
            }
            let (left, leaving) = pair.leaving(terms.leaves, now);
            let ends = match admission? {
                Admission::New { ends } => ends,
                Admission::Repeated => {
                    if let Some(leaving) = leaving {
                        pair.leave(leaving, now);
                        self.bounds.release(leaving.id, leaving.room);
                    }
                    return Ok(Created::Done { ended: Vec::new(), left });
                }
                Admission::Refused(answer) => return Ok(answer),
            };
            if let Some(dead) = there {
                self.remove(&mut pair.shard, dead, now);
            }
            // The records that end make room for it.
            let freed = ends.iter().fold(Room::default(), |sum, &at| sum.and(pair.shard.entry(at).room()));
            let gone = leaving.map_or(Room::default(), |leaving| leaving.room);
            let more = needs.beyond(freed.and(gone)).beyond(reserved);
            if self.bounds.take(id, more) {
                let ended = ends.into_iter().map(|at| pair.shard.remove(at, now).id).collect();
                if let Some(leaving) = leaving {
                    pair.leave(leaving, now);
                }
                let left_room = leaving.map(|leaving| (leaving.id, leaving.room));
                self.bounds.exchange(id, freed.and(reserved).and(more), needs, left_room);
                pair.shard.insert(record, now);
                return Ok(Created::Done { ended, left });
            }
            // Others have to be evicted, and they may be in any shard.
            drop(pair);
            let of_visitors = if id.owner().is_none() { reserved } else { Room::default() };
            let except = leaving.map(|leaving| leaving.id);
            if let Err(full) = self.reserve(id, more, except, gone.and(of_visitors)) {
                self.bounds.release(id, reserved);
                return Err(full);
            }
            reserved = reserved.and(more);
        }
    }

    /// Locks the shards of a record and of another one, removes a few expired records, and returns the time.
    fn pair(&self, id: RecordId, other: Option<RecordId>, purge: usize) -> (Pair<'_>, u64) {
        let at = self.place_of(id);
        let other = other.map(|id| self.place_of(id)).filter(|other| *other != at);
        // The lower one is always locked first. Nothing else locks two shards.
        let before = other.filter(|other| *other < at).map(|other| lock(&self.shards[other]));
        let (shard, _) = self.shard_at(at, purge);
        let other = before.or_else(|| other.map(|other| lock(&self.shards[other])));
        (Pair { shard, other }, self.now())
    }

    /// Decides whether a record is stored.
    ///
    /// `there` is the record that has its name, live or expired.
    fn admit(shard: &Shard, there: Option<u32>, record: &Record, terms: &TermsAt, now: u64) -> Result<Admission> {
        let Record { id, version, .. } = *record;
        let there = there.map(|at| shard.entry(at)).filter(|there| there.expires > now);
        Ok(match there {
            // The record may have been written to since it was created.
            Some(there) if there.version == version || there.first == version => Admission::Repeated,
            _ if terms.are_late(&shard.clears, id.owner(), Duration::from_nanos(now)) => {
                Admission::Refused(Created::Late)
            }
            _ if terms.retry && shard.may_have_ended(id, now) => return Err(unknown().into()),
            Some(_) => Admission::Refused(Created::Taken),
            None => {
                let limited = terms.limit_of(id.owner());
                let ends = limited.map_or(Some(Vec::new()), |(owner, limit)| shard.above(owner, limit, now));
                ends.map_or(Admission::Refused(Created::Full), |ends| Admission::New { ends })
            }
        })
    }
}

/// The shards of the new record and of the visitor's record that it leaves. Both are locked, so that one exists exactly when the
/// other one is gone.
struct Pair<'a> {
    shard: MutexGuard<'a, Shard>,
    /// `None` if it is the same shard, or if no record is left.
    other: Option<MutexGuard<'a, Shard>>,
}

/// A record that is about to end.
#[derive(Clone, Copy)]
struct Leaving {
    id: RecordId,
    at: u32,
    room: Room,
}

impl Pair<'_> {
    /// Decides what happens to the record that is left, and finds it if it has to end.
    fn leaving(&self, leaves: Option<(RecordId, i64)>, now: u64) -> (Left, Option<Leaving>) {
        let Some((id, version)) = leaves else { return (Left::NotTried, None) };
        let shard = self.other.as_deref().unwrap_or(&self.shard);
        match shard.live(id, now) {
            None => (Left::Gone, None),
            Some(at) if shard.entry(at).version != version => (Left::Conflict(shard.record(at, now)), None),
            Some(at) => (Left::Done, Some(Leaving { id, at, room: shard.entry(at).room() })),
        }
    }

    /// Ends that record. The caller releases its space.
    fn leave(&mut self, leaving: Leaving, now: u64) {
        self.other.as_deref_mut().unwrap_or(&mut self.shard).remove(leaving.at, now);
    }
}
