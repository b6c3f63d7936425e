//! The drop guard of a request: a request that is dropped in its handler still signs out.

use crate::session::Session;

/// Commits the sign-outs that the handler recorded, in a task, if it is dropped before [`disarm`](Self::disarm): because the
/// handler panicked, or because the client closed the connection.
pub(crate) struct Guard {
    session: Session,
    armed: bool,
}

impl Guard {
    pub(crate) fn new(session: Session) -> Self {
        Self { session, armed: true }
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Turns the guard off, because the response is ready and its commit has begun.
    pub(crate) fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            self.session.driver().abandon();
        }
    }
}
