//! The sessions that ended because their user had too many, until the user has read it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jam_session::{Event, EventKind};

/// How many sessions a user may have. Signing in once more ends the one that was not used for longest.
pub(crate) const MOST: usize = 5;

/// How many have ended, by user: here in memory, in your application in a table.
#[derive(Clone, Default)]
pub(crate) struct Limited(Arc<Mutex<HashMap<String, u64>>>);

impl Limited {
    /// Takes notice of what has happened to a session.
    pub(crate) fn hear(&self, event: &Event<'_>) {
        if let (EventKind::Limited, Some(user)) = (event.kind, event.key) {
            *self.ended().entry(user.to_owned()).or_default() += 1;
        }
    }

    /// What to tell the user, once.
    pub(crate) fn take_notice(&self, user: &str) -> Option<String> {
        let ended = self.ended().remove(user)?;
        let devices = if ended == 1 { "one device".to_owned() } else { format!("{ended} devices") };
        Some(format!("You were signed out on {devices}, because you may be signed in on {MOST} at most."))
    }

    fn ended(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
