//! What a list says of a session.

use std::{fmt, time::SystemTime};

use crate::{
    backend::Backend,
    clock::{millis, time},
    error::Error,
    log,
    record::{Record, data::Data},
    sessions::{engine::Engine, loaded::Loaded},
};

/// A session, for a page that lists sessions.
#[derive(Clone)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The public name of the session, for [`revoke`](crate::Sessions::revoke). It is not the ID: nobody can sign in with it.
    pub handle: String,
    /// The session key of its user. `None` if nobody has signed in.
    pub key: Option<String>,
    /// When the session began.
    pub created: SystemTime,
    /// When its user last signed in to it. Signing in again on the same browser does not begin a new session.
    pub signed_in: Option<SystemTime>,
    /// When the session was last used, as far as the backend knows. It may have been used since, up to
    /// [`touch_interval`](crate::Builder::touch_interval) ago.
    pub last_seen: SystemTime,
    /// When the session ends if it is not used until then.
    pub expires: SystemTime,
    /// The data of the session.
    pub data: Data,
}

impl<B: Backend> Engine<B> {
    /// The sessions in these records. One that cannot be read is left out, and the log says so.
    pub(super) fn readable(&self, records: Vec<Record>) -> Vec<Loaded> {
        let read = records.into_iter().map(|record| self.read(record.id, record));
        let warn =
            |error: &Error| log::warn!(error = %error.chain(), "a session that cannot be read was left out of a list");
        read.filter_map(|read| read.inspect_err(warn).ok()).collect()
    }

    /// What a list says of a session.
    pub(super) fn info(&self, loaded: Loaded, now: u64) -> SessionInfo {
        let Loaded { id, ttl, contents, .. } = loaded;
        let left = millis(ttl);
        // The time to live began to run at its last use. Where the deadline has cut it, this says too early rather than too
        // late, and it was used no earlier than it was written.
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
