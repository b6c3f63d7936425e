//! The number of records, and the space that they take in the file.

use crate::record::id::RecordId;

/// The space used by signed-in sessions and by visitors' sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FileUsage {
    pub(super) keyed: Space,
    pub(super) anonymous: Space,
}

/// A number of records, and the bytes that they take in a file without dead lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) records: usize,
    pub(super) bytes: u64,
}

impl FileUsage {
    pub(super) fn of(&mut self, id: &RecordId) -> &mut Space {
        if id.owner().is_some() { &mut self.keyed } else { &mut self.anonymous }
    }

    pub(super) fn records(&self) -> usize {
        self.keyed.records + self.anonymous.records
    }

    pub(super) fn bytes(&self) -> u64 {
        self.keyed.bytes + self.anonymous.bytes
    }
}

impl Space {
    /// Adds a record of that many bytes.
    pub(super) fn add(&mut self, bytes: u64) {
        *self = Self { records: self.records + 1, bytes: self.bytes + bytes };
    }

    /// Subtracts a record of that many bytes.
    pub(super) fn subtract(&mut self, bytes: u64) {
        *self = Self { records: self.records.saturating_sub(1), bytes: self.bytes.saturating_sub(bytes) };
    }
}
