//! A paginated scan over all sessions.

use std::{fmt, sync::Arc};

use crate::{
    backend::{Backend, any::AnyBackend, scan::Cursor},
    error::Error,
    sessions::{engine::Engine, info::SessionInfo},
};

/// Reads all live sessions in pages, including visitors' sessions. Returned by [`Sessions::all`](crate::Sessions::all).
///
/// A readable session that is live from the first page to the last is included. A session that ended before its page was
/// requested is not. A session that begins or ends in between may or may not be included.
///
/// On Redis, a session may be included twice. It may be missing if the server is restarted or replaced during the scan, or
/// if its slot in a Cluster moves to another server. [`may_have_missed`](Self::may_have_missed) reports most of these cases.
///
/// | store | cost |
/// |---|---|
/// | memory | each page locks one of many shards of the store while it copies the sessions |
/// | JSON file | each page blocks writers while it copies the sessions |
/// | Redis | `SCAN` on every server, which visits each Redis key of the database, and one command per user; other clients are served in between |
///
/// Reading a page does not count as use of its sessions.
#[must_use]
pub struct AllSessions<B = AnyBackend> {
    engine: Arc<Engine<B>>,
    next: Next,
    may_have_missed: bool,
}

enum Next {
    First,
    After(Cursor),
    Nothing,
}

impl<B: Backend> AllSessions<B> {
    pub(super) fn new(engine: Arc<Engine<B>>) -> Self {
        Self { engine, next: Next::First, may_have_missed: false }
    }

    /// Returns the next page, or `None` after the last one.
    ///
    /// A page has about `most` sessions; 0 counts as 1. Any page can have fewer, or even none. It can have more if a user
    /// has many sessions.
    ///
    /// After an error, call this again to retry the same page.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the store fails, or if the sessions are
    /// [closed](crate::Sessions::close). A session that cannot be read is left out, and logged.
    pub async fn next_page(&mut self, most: usize) -> Result<Option<Vec<SessionInfo>>, Error> {
        let after = match &self.next {
            Next::First => None,
            Next::After(cursor) => Some(cursor.clone()),
            Next::Nothing => return Ok(None),
        };
        let engine = &self.engine;
        let now = engine.now();
        let page = engine.within_time(engine.scan(after, most.max(1))).await?;
        let live = engine.readable(page.records).into_iter().filter(|loaded| loaded.is_live_at(now));
        let infos = live.map(|loaded| engine.info(loaded, now)).collect();
        self.may_have_missed |= page.moved;
        self.next = page.next.map_or(Next::Nothing, Next::After);
        Ok(Some(infos))
    }

    /// Returns whether sessions may be missing, because some moved between servers during the scan. It recognises most such
    /// cases: the docs of the module `stores::redis` list the others.
    pub fn may_have_missed(&self) -> bool {
        self.may_have_missed
    }
}

impl<B> fmt::Debug for AllSessions<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllSessions").finish_non_exhaustive()
    }
}
