//! Remembers which users lost a session to the limit, until they have been told.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jam_session::{Event, EventKind};

/// How many sessions a user may have. Another login ends the least recently used one.
pub(crate) const MOST: usize = 5;

/// How many sessions ended, by user. It is in memory here; in your application this is a database table.
#[derive(Clone, Default)]
pub(crate) struct Limited(Arc<Mutex<HashMap<String, u64>>>);

impl Limited {
    /// Handles an event.
    pub(crate) fn hear(&self, event: &Event<'_>) {
        if let (EventKind::Limited, Some(user)) = (event.kind, event.key) {
            *self.ended().entry(user.to_owned()).or_default() += 1;
        }
    }

    /// Returns the number to tell the user, and forgets it.
    pub(crate) fn take_notice(&self, user: &str) -> Option<String> {
        let ended = self.ended().remove(user)?;
        let devices = if ended == 1 { "one device".to_owned() } else { format!("{ended} devices") };
        Some(format!("You were signed out on {devices}, because you may be signed in on {MOST} at most."))
    }

    fn ended(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
