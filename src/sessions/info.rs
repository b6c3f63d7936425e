//! Public information about a session, for lists.

use std::{fmt, time::SystemTime};

use crate::{
    backend::Backend,
    clock::{millis, time},
    error::Error,
    log,
    record::{Record, data::Data},
    sessions::{engine::Engine, loaded::Loaded},
};

/// Information about a session, for example for a list of devices. It never contains the ID.
#[derive(Clone)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The public name of the session, for [`revoke`](crate::Sessions::revoke). It is not the ID: it cannot be used to sign in.
    pub handle: String,
    /// The session key of the user. `None` for a visitor's session.
    pub key: Option<String>,
    /// When the session began.
    pub created: SystemTime,
    /// The time of the latest login on this session; signing in again on the same session updates it. `None` for a visitor's
    /// session.
    pub signed_in: Option<SystemTime>,
    /// When the session was last used. This may be too early by up to [`touch_interval`](crate::Builder::touch_interval), because
    /// the store does not record every use.
    pub last_seen: SystemTime,
    /// When the session ends if it is not used again.
    pub expires: SystemTime,
    /// The data of the session.
    pub data: Data,
}

impl<B: Backend> Engine<B> {
    /// Decodes these records. A record that cannot be read is left out, and logged.
    pub(super) fn readable(&self, records: Vec<Record>) -> Vec<Loaded> {
        let read = records.into_iter().map(|record| self.decode(record.id, record));
        let warn = |error: &Error| {
            let error = error.chain();
            log::limited!(warn, self.limit(), (%error,), "a session that cannot be read was left out of a list");
        };
        read.filter_map(|read| read.inspect_err(warn).ok()).collect()
    }

    /// Builds the public information about a session.
    pub(super) fn info(&self, loaded: Loaded, now: u64) -> SessionInfo {
        let Loaded { id, ttl, contents, .. } = loaded;
        let left = millis(ttl);
        // The time to live began at the last use. If the deadline shortened it, this is too early rather than too late, and the
        // last write is a lower bound.
        let used = self.idle(&contents).map_or(0, |idle| now.saturating_add(left).saturating_sub(idle));
        SessionInfo {
            handle: id.sid().to_owned(),
            key: contents.key.as_deref().map(str::to_owned),
            created: time(contents.created),
            signed_in: contents.signed_in.map(time),
            last_seen: time(used.clamp(contents.written, contents.written.max(now))),
            expires: time(now.saturating_add(left).min(contents.deadline)),
            data: contents.data,
        }
    }
}

impl fmt::Debug for SessionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionInfo")
            .field("handle", &self.handle)
            .field("created", &self.created)
            .field("signed_in", &self.signed_in)
            .field("last_seen", &self.last_seen)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}
