//! The terms of a [`create`](super::Backend::create), and its result.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::record::{Record, id::RecordId};

/// The conditions of a [`create`](super::Backend::create). Default: none.
///
/// A backend should destructure this completely, so that it stops compiling when a field is added that it does not handle yet.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Refuses the record if its owner was cleared since then. `None` never refuses it.
    pub since: Option<Since>,
    /// How many records the owner may have, and what happens above that. It does not apply to records without an owner.
    pub limit: Limit,
    /// A visitor's record that the new record replaces, when a visitor signs in: its name and its version. It ends atomically
    /// with the `create`, if it still has this version.
    pub leaves: Option<(RecordId, i64)>,
    /// Whether this is a [retry](super#retries), because the answer to the first try was lost.
    pub retry: bool,
}

/// The point from which on a clear of the owner causes a new record to be refused.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Since {
    /// Since the [`mark`](super::Backend::mark) was taken. The owner's last clear must still be the one that the mark names.
    Mark(Mark),
    /// Since the request arrived, this long ago. If that is more than fifteen minutes, the record is refused.
    Age(Duration),
}

/// Identifies an owner's last clear, so that a later call can tell whether there was another one since.
///
/// It compares names and not times, because clocks can jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Mark {
    /// The [name](super::Clear::name) of the owner's last clear. `None` if there was none within the last fifteen minutes.
    pub clear: Option<i64>,
    /// When the mark was taken, in milliseconds of the backend's clock.
    pub taken: u64,
    /// Which run of the backend (from opening to closing) made the mark, if the backend forgets its clears when it is
    /// closed. Otherwise 0.
    pub opening: i64,
}

/// How many sessions a user may have, and what happens to a login above the limit.
///
/// ```
/// use jam_session::Limit;
///
/// assert_eq!(Limit::from(5), Limit::LeastRecent(5));
/// assert_eq!(Limit::refuse(5), Limit::Refuse(5));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// No limit.
    #[default]
    None,
    /// At most this many sessions. A login above the limit ends the least recently used ones.
    LeastRecent(usize),
    /// At most this many sessions. A login above the limit is refused.
    Refuse(usize),
}

/// The result of a [`create`](super::Backend::create). Any answer other than `Done` means that nothing changed.
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub enum Created {
    /// The record is stored, or it was already there with the same name and the same version.
    Done {
        /// The records of the owner that ended because of the [limit](Terms::limit). Empty if the record was already there.
        ended: Vec<RecordId>,
        /// What happened to the visitor's record in [`Terms::leaves`].
        left: Left,
    },
    /// The owner was cleared after the time that [`Terms::since`] gives, or that time is too long ago to tell.
    Late,
    /// There is a live record with that name. It was not changed.
    Taken,
    /// The owner already has as many records as the [limit](Terms::limit) allows, and the limit refuses more.
    Full,
}

/// What happened to the visitor's record that a `create` was to end, as [`Terms::leaves`] says.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Left {
    /// The record has ended.
    Done,
    /// The record does not exist.
    Gone,
    /// The record has another version, and was not changed. This is the current record.
    Conflict(Record),
    /// There was no such record in the terms, or the backend cannot end it atomically. The caller then ends it itself.
    #[default]
    NotTried,
}

impl Created {
    /// Returns a `Done` that affected no other records.
    pub const fn done() -> Self {
        Self::Done { ended: Vec::new(), left: Left::NotTried }
    }
}

impl Mark {
    /// Creates a mark that names this clear, taken at this time.
    pub const fn new(clear: Option<i64>, taken: u64) -> Self {
        Self { clear, taken, opening: 0 }
    }

    /// Makes the mark valid only for this [run](Self::opening) of the backend.
    pub const fn with_opening(self, opening: i64) -> Self {
        Self { opening, ..self }
    }
}

impl Limit {
    /// Allows any number of sessions.
    pub const fn none() -> Self {
        Self::None
    }

    /// Allows this many sessions, and refuses logins above it.
    pub const fn refuse(sessions: usize) -> Self {
        Self::Refuse(sessions)
    }
}

impl From<usize> for Limit {
    fn from(sessions: usize) -> Self {
        Self::LeastRecent(sessions)
    }
}
