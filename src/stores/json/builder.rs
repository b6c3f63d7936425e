//! The options of a JSON file, and how it is opened.

use std::{path::Path, time::Duration};

use bytes::Bytes;

use super::{
    backend::{JsonBackend, JsonFile},
    batch::FileBounds,
    journal::Durability,
    line::{Line, Payload},
    table::read,
};
use crate::{
    clock::millis,
    error::Error,
    sessions::{
        Sessions,
        builder::{Builder, check_bounds},
    },
};

/// [`Sessions`] in one file. See the [module docs](super).
pub type JsonSessions = Sessions<JsonBackend>;

impl JsonSessions {
    /// Opens the file with the default options, or creates it.
    ///
    /// # Errors
    /// The errors of [`Builder::open`](Builder::<JsonFile>::open).
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder(path).open().await
    }

    /// Returns a builder for sessions in this file. Nothing is opened until [`open`](Builder::<JsonFile>::open).
    pub fn builder(path: impl AsRef<Path>) -> Builder<JsonFile> {
        let (path, durability, bounds) = (path.as_ref().to_owned(), Durability::default(), FileBounds::default());
        Builder::new(JsonFile { path, durability, bounds }).in_text()
    }
}

impl Builder<JsonFile> {
    /// Sets when a change is acknowledged. Default: [`Durability::Sync`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.from.durability = durability;
        self
    }

    /// Limits the number of sessions. Default: no limit.
    ///
    /// At the limit, visitors' sessions (those without a session key) are evicted, the least recently used first. Signed-in
    /// sessions are never evicted: if no visitors' sessions are left, creating a session fails with
    /// [`Unavailable`](crate::ErrorKind::Unavailable). Expired sessions do not count. A limit of 0 is refused.
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        self.from.bounds.max_sessions = sessions;
        self.fits = a_session_fits;
        self
    }

    /// Limits the bytes that live sessions take in the file. Default: 1 GiB.
    ///
    /// See [`max_sessions`](Self::max_sessions) for what happens at the limit, and the [module
    /// docs](crate::stores::json#a-full-disk) for how much space the files take in all. A limit in which no session fits is
    /// refused.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.from.bounds.max_bytes = bytes;
        self.fits = a_session_fits;
        self
    }

    /// Opens the file, or creates it.
    ///
    /// # Errors
    /// The file is left unchanged, and the message explains the problem:
    /// * [`Config`](crate::ErrorKind::Config) for a problem that you have to fix: an option that cannot work; a folder that
    ///   does not exist or is not writable; a file that this crate did not write, that belongs to another user or that, on
    ///   Unix, is a symbolic link.
    /// * [`Unavailable`](crate::ErrorKind::Unavailable) for a problem that may pass: the file is in use, or the disk fails.
    /// * [`Unreadable`](crate::ErrorKind::Unreadable) if a line that had been synced is damaged or missing, or was written by
    ///   a later version.
    pub async fn open(self) -> Result<JsonSessions, Error> {
        let (file, mut policy, codec) = self.check()?;
        let slack = policy.rework_grace.max(SUPERSEDED);
        let backend = JsonBackend::open(file, policy.clock.clone(), slack).await?;
        // The file knows of a later time of day than this process, if the wall clock was set back while nothing ran.
        policy.clock = policy.clock.not_before(millis(read(&backend.table).now()));
        Ok(Sessions::with(backend, policy, codec))
    }
}

fn a_session_fits(file: &JsonFile, smallest: &Bytes) -> Result<(), &'static str> {
    let FileBounds { max_sessions, max_bytes } = file.bounds;
    check_bounds(max_sessions, max_bytes, Line::cost(&Payload::new(smallest.clone())))
}

/// For how long a superseded secret may still sign out.
const SUPERSEDED: Duration = Duration::from_secs(10);
