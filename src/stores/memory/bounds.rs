//! The limits of the memory store: how much space is used, and whether more fits.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::record::id::RecordId;

/// The limits and the current usage. Space is reserved before a record is stored, and released after it is removed.
#[derive(Debug)]
pub(super) struct Bounds {
    pub(super) max_sessions: usize,
    pub(super) max_bytes: usize,
    usage: Mutex<Usage>,
}

/// The space used by signed-in sessions and by visitors' sessions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) keyed: Room,
    pub(super) anonymous: Room,
}

/// A number of sessions and the bytes that they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) sessions: usize,
    pub(super) bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { max_sessions: usize::MAX, max_bytes: MAX_BYTES, usage: Mutex::default() }
    }
}

impl Bounds {
    pub(super) fn usage(&self) -> Usage {
        *self.lock()
    }

    /// Reserves space for a record, if there is any.
    pub(super) fn take(&self, id: RecordId, more: Room) -> bool {
        let mut usage = self.lock();
        let fits = self.fits(usage.keyed.and(usage.anonymous).and(more));
        if fits {
            let used = usage.of(id);
            *used = used.and(more);
        }
        fits
    }

    /// Releases space.
    pub(super) fn release(&self, id: RecordId, room: Room) {
        if room == Room::default() {
            return;
        }
        let mut usage = self.lock();
        let used = usage.of(id);
        *used = used.beyond(room);
    }

    /// Assigns to a record the space that it needs, from its reservation and from the records that end for it. Releases the rest.
    pub(super) fn exchange(&self, id: RecordId, has: Room, needs: Room, left: Option<(RecordId, Room)>) {
        let mut usage = self.lock();
        let used = usage.of(id);
        *used = used.beyond(has).and(needs);
        if let Some((id, room)) = left {
            let used = usage.of(id);
            *used = used.beyond(room);
        }
    }

    /// Returns whether `more` would fit if all visitors were evicted, except those that use `stays`.
    pub(super) fn could_fit(&self, more: Room, stays: Room) -> bool {
        self.fits(self.usage().keyed.and(stays).and(more))
    }

    fn fits(&self, room: Room) -> bool {
        room.sessions <= self.max_sessions && room.bytes <= self.max_bytes
    }

    fn lock(&self) -> MutexGuard<'_, Usage> {
        // No application code runs under the lock, so a poisoned state cannot be half-changed.
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Usage {
    fn of(&mut self, id: RecordId) -> &mut Room {
        if id.owner().is_some() { &mut self.keyed } else { &mut self.anonymous }
    }
}

impl Room {
    /// The sum of both.
    pub(super) fn and(self, other: Self) -> Self {
        Self { sessions: self.sessions.saturating_add(other.sessions), bytes: self.bytes.saturating_add(other.bytes) }
    }

    /// Returns by how much `self` exceeds `other`, in each field.
    pub(super) fn beyond(self, other: Self) -> Self {
        Self { sessions: self.sessions.saturating_sub(other.sessions), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

const MAX_BYTES: usize = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::id::Owner;

    const ONE: Room = Room { sessions: 1, bytes: 10 };

    fn ids() -> (RecordId, RecordId) {
        let sid = "AAAAAAAAAAAAAAAAAAAAAA";
        (format!("{}.{sid}", Owner::from([1; 16])).parse().unwrap(), sid.parse().unwrap())
    }

    fn bounds(max_sessions: usize, max_bytes: usize) -> Bounds {
        Bounds { max_sessions, max_bytes, ..Bounds::default() }
    }

    #[test]
    fn what_is_refused_takes_no_room() {
        let (keyed, anonymous) = ids();
        for bounds in [bounds(2, usize::MAX), bounds(usize::MAX, 29)] {
            assert!(bounds.take(keyed, ONE) && bounds.take(anonymous, ONE) && !bounds.take(anonymous, ONE));
            let usage = bounds.usage();
            assert_eq!((usage.keyed, usage.anonymous), (ONE, ONE));
            bounds.release(anonymous, ONE);
            assert!(bounds.take(keyed, ONE));
        }
    }

    #[test]
    fn a_record_fits_if_those_that_can_give_way_make_enough_room() {
        let (keyed, anonymous) = ids();
        let bounds = bounds(2, 20);
        assert!(bounds.take(keyed, ONE) && bounds.take(anonymous, ONE));
        assert!(bounds.could_fit(ONE, Room::default()));
        assert!(!bounds.could_fit(Room { sessions: 0, bytes: 11 }, Room::default()));
        // The visitor's own record does not give way for itself.
        assert!(!bounds.could_fit(Room { sessions: 0, bytes: 1 }, ONE));
        assert!(!bounds.could_fit(Room { sessions: 1, bytes: usize::MAX }, Room::default()));
    }
}
