//! The drop guard of a request: commits recorded sign-outs even if the request is cancelled.

use crate::session::Session;

/// If this is dropped before [`disarm`](Self::disarm), a task commits the sign-outs that the handler recorded. That happens if
/// the handler panicked, or if the client closed the connection.
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

    /// Disarms the guard, because the response is ready and its commit has begun.
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
