//! The thresholds of the background work.

use std::time::Duration;

/// When background work is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thresholds {
    /// The file is compacted when it has more dead bytes than this, and more than live ones.
    pub(super) dead: u64,
    /// With [`Durability::Flush`](super::Durability::Flush), how long a change may stay unsynced in the page cache.
    pub(super) sync: Duration,
    /// How long to wait after the file could not be rewritten. It doubles each time, up to a limit.
    pub(super) retry: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { dead: 1 << 20, sync: Duration::from_secs(1), retry: Duration::from_millis(50) }
    }
}

/// A compaction that frees less space is not worth it.
pub(super) const MIN_GAIN: u64 = 64 << 10;
