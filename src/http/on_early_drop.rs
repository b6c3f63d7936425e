//! The guard of a request on its way through the handler: if it is dropped there, it still signs out.

use crate::session::Session;

/// Dropped before [`disarm`](Self::disarm), by a panic or because the client left, it commits the sign-outs that the handler
/// recorded, in a task of its own.
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

    /// The response is there, and a commit of its own has begun.
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
