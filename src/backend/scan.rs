//! The pages of a [`scan`](super::Backend::scan), and the result of a [`count`](super::Backend::count).

use bytes::Bytes;

use crate::record::{Record, id::RecordId};

/// The position of a [`scan`](super::Backend::scan), as bytes that only the backend understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(Bytes);

/// One page of a [`scan`](super::Backend::scan).
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Live records, in any order.
    pub records: Vec<Record>,
    /// Where the next page begins. `None` after the last page.
    pub next: Option<Cursor>,
    /// Whether records may be missing, for example because some moved between servers, or because a server restarted.
    pub moved: bool,
}

/// The number of live sessions, as returned by [`Sessions::count`](crate::Sessions::count).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Count {
    /// Sessions of users.
    pub signed_in: u64,
    /// Sessions of visitors.
    pub visitors: u64,
}

impl Cursor {
    /// Creates a cursor from bytes that only the backend understands.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Count {
    /// Creates a count.
    pub const fn new(signed_in: u64, visitors: u64) -> Self {
        Self { signed_in, visitors }
    }

    /// Counts one more record.
    pub fn add(&mut self, id: RecordId) {
        match id.owner() {
            Some(_) => self.signed_in += 1,
            None => self.visitors += 1,
        }
    }
}
