//! All sessions, in pages.

use std::{fmt, sync::Arc};

use crate::{
    backend::{Backend, Cursor, any::AnyBackend},
    error::Error,
    sessions::{engine::Engine, info::SessionInfo},
};

/// Reads all live sessions in pages, those of visitors included: see [`Sessions::all`](crate::Sessions::all).
///
/// A session that is live from the first page to the last is included, and none that had ended before its page was asked for. One
/// that begins or ends meanwhile may or may not be. On Redis a session may be included twice, and one that moves between
/// servers of a Cluster meanwhile may be missing: [`may_have_missed`](Self::may_have_missed) says so.
///
/// | store | what it costs |
/// |---|---|
/// | memory | each page locks one of many parts of the store for as long as it takes to copy the sessions |
/// | JSON file | each page keeps writers waiting for as long as it takes to copy the sessions |
/// | Redis | `SCAN` on every server, which looks at each key in the database, and one command for each user: other clients are served in between |
///
/// A page counts as use of no session.
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
    /// A page has about `most` sessions: it can have fewer, or none, although it is not the last one, and more where a user has
    /// many. After an error the same page can be asked for again.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable). A session that cannot be read is left out, and the log says so.
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

    /// Whether sessions may have been moved between servers since it began, so that some may be missing.
    pub fn may_have_missed(&self) -> bool {
        self.may_have_missed
    }
}

impl<B> fmt::Debug for AllSessions<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllSessions").finish_non_exhaustive()
    }
}
