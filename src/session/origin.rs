//! The origin of a session: the layer that made it.

use std::sync::Arc;

use crate::sessions::{Sessions, engine::Engine};

/// The layer that a session was made by. Two layers are the same if they share one.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) sessions: Sessions,
    pub(crate) cookie_name: String,
}

impl Origin {
    pub(crate) fn engine(&self) -> &Arc<Engine> {
        self.sessions.engine()
    }
}
