//! The arguments of a [`clear`](super::Backend::clear), and its result.

use crate::record::{Record, id::RecordId};

/// The arguments of a [`clear`](super::Backend::clear).
#[derive(Clone, Copy, Debug)]
pub struct Clear {
    /// A random, non-negative number that identifies this clear. A clear with the number of the owner's last one is a retry.
    pub name: i64,
    /// The record that the clear depends on. `None` means that all records end unconditionally.
    pub by: Option<By>,
}

/// The record that a [`clear`](super::Backend::clear) depends on: the owner's records end only if this one is live and has this
/// version.
#[derive(Clone, Copy, Debug)]
pub struct By {
    /// The name of the record. If it belongs to another owner, or to none, the answer is [`Gone`](Cleared::Gone).
    pub id: RecordId,
    /// The version that it must have.
    pub version: i64,
    /// Whether this record stays when all others of its owner end.
    pub keep: bool,
}

/// The result of a [`clear`](super::Backend::clear).
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub enum Cleared {
    /// This many records ended. A retry returns the same number again.
    Done(u64),
    /// The record that the clear was made [by](Clear::by) is not live. No record ended.
    Gone,
    /// The record that the clear was made [by](Clear::by) has another version, and no record ended. This is the current record.
    Conflict(Record),
}
