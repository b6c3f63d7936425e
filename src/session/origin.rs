//! The origin of a session: the layer that made it.

use std::{sync::Arc, time::Duration};

use crate::sessions::{Sessions, engine::Engine};

/// The layer that a session was made by. Two layers are the same if they share one.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) sessions: Sessions,
    /// The name of the user's cookie. The visitor's cookie has the suffix [`VISITOR`].
    pub(crate) cookie_name: String,
    /// How long a browser keeps a cookie at most. `None` means until the browser is closed.
    pub(crate) max_age: Option<Duration>,
}

/// The suffix of the visitor's cookie name, so that this cookie never replaces the user's.
pub(crate) const VISITOR: &str = "-visitor";

impl Origin {
    pub(crate) fn engine(&self) -> &Arc<Engine> {
        self.sessions.engine()
    }

    /// Returns whether the two layers share a cookie name.
    pub(crate) fn shares_a_name_with(&self, other: &Self) -> bool {
        let (a, b) = (&self.cookie_name, &other.cookie_name);
        a == b || a.strip_suffix(VISITOR) == Some(b) || b.strip_suffix(VISITOR) == Some(a)
    }
}
