//! What was written and has been written over since: an update that is repeated, for its caller did not wait for the answer,
//! is known by it, and not done twice.

use std::collections::{HashSet, VecDeque};

use crate::record::id::RecordId;

/// The last versions that others were written over. Who repeats an update does so soon, and in this process.
#[derive(Default)]
pub(super) struct Overwritten {
    last: VecDeque<Version>,
    known: HashSet<Version>,
}

pub(super) type Version = (RecordId, i64);

impl Overwritten {
    pub(super) fn knows(&self, version: &Version) -> bool {
        self.known.contains(version)
    }

    pub(super) fn extend(&mut self, versions: Vec<Version>) {
        for version in versions {
            if self.known.insert(version) {
                self.last.push_back(version);
            }
        }
        while self.last.len() > KEPT {
            if let Some(oldest) = self.last.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

/// What a disk takes in some seconds. In memory that is less than a megabyte.
const KEPT: usize = 4096;
