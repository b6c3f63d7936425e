//! The guard of a request on its way through the handler: if it is dropped there, it still signs out.

use crate::session::Session;

/// Dropped before [`disarm`](Self::disarm), by a panic or because the client left, it commits the sign-outs that the handler
/// recorded, in a task of its own.
pub(crate) struct Guard(Option<Session>);

impl Guard {
    pub(crate) fn new(session: Session) -> Self {
        Self(Some(session))
    }

    /// The handler has answered.
    pub(crate) fn disarm(mut self) -> Option<Session> {
        self.0.take()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(session) = self.0.take() {
            session.driver().abandon();
        }
    }
}
