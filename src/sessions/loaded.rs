//! A session as it was read from the backend, and what a write made of it.

use std::{sync::Arc, time::Duration};

use crate::{
    error::Error,
    record::{Contents, data::Data, id::RecordId, token::SecretHash},
};

/// A live session as it was when it was last read or written.
#[derive(Clone)]
pub(crate) struct Loaded {
    pub(crate) id: RecordId,
    pub(crate) version: i64,
    /// The time to live that the backend gave it.
    pub(crate) ttl: Duration,
    pub(crate) contents: Contents,
    /// The record is not encrypted as it would be today.
    pub(crate) stale: bool,
}

/// Where an ID leads.
#[derive(Clone)]
pub(crate) enum Base {
    /// To no session.
    Nothing,
    /// To a session, by the secret with this hash.
    Live(Arc<Loaded>, SecretHash),
    /// To a record that a login left behind. No cookie is set here, not even to remove it: the login's cookie is on its way.
    Replaced,
    /// To a session that ended while the request ran. Its session key and its data, as they were last seen, are left.
    Gone(Option<Arc<str>>, Data),
    /// To a record that cannot be read. It is left alone.
    Unreadable(Error),
}

/// What became of a write.
pub(crate) enum WriteOutcome {
    Done(Arc<Loaded>),
    Gone,
    /// A login has replaced the session.
    Replaced,
    /// Another request has written: this.
    Conflict(Arc<Loaded>),
    /// Another request has written, and what it wrote cannot be read.
    Unreadable(Error),
}

impl Loaded {
    pub(crate) fn is_live_at(&self, now: u64) -> bool {
        !self.contents.ended && self.contents.deadline > now
    }
}

impl Base {
    pub(crate) fn key(&self) -> Option<&str> {
        match self {
            Self::Live(loaded, _) => loaded.contents.key.as_deref(),
            Self::Gone(key, _) => key.as_deref(),
            Self::Nothing | Self::Replaced | Self::Unreadable(_) => None,
        }
    }
}

impl WriteOutcome {
    /// The session as it is now, if this call has written it.
    pub(crate) fn done(self) -> Result<Arc<Loaded>, Error> {
        match self {
            Self::Done(loaded) => Ok(loaded),
            Self::Unreadable(error) => Err(error),
            Self::Gone | Self::Replaced | Self::Conflict(_) => Err(Error::not_found()),
        }
    }
}
