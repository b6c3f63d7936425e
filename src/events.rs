//! Logs and events: what the crate says about sessions as they begin and end, and about the store.
//!
//! [`Builder::on_event`](crate::Builder::on_event) calls a function for each event: to count logins, or to keep an audit trail of
//! who signed in and why a session ended. With [`tracing`](https://docs.rs/tracing) the same events are lines of a log, without
//! the session key.
//!
//! ```
//! use jam_session::{EventKind, MemorySessions};
//!
//! let sessions = MemorySessions::builder()
//!     .on_event(|event| match event.kind {
//!         EventKind::SignedIn => println!("{:?} has signed in", event.key),
//!         EventKind::Cleared { ended, .. } => println!("{ended} sessions of {:?} have ended", event.key),
//!         _ => {}
//!     })
//!     .build()?;
//! # Ok::<(), jam_session::Error>(())
//! ```
//!
//! An event says what this process has done and the store has confirmed. Sessions that expire, and those that another process
//! ends, cause none. Where the answer of the store was lost, there may be none either. A session that was begun and whose
//! response was then lost is removed again without another event.
//!
//! # The log
//!
//! All lines have the target `jam_session`. Targets, levels and names of fields are stable; messages may change. No line has a
//! session ID, a session key or data. A field `error` has the whole chain of causes, and `session` is the
//! [handle](crate::SessionInfo::handle).
//!
//! What a client can cause is at DEBUG, so that nobody can fill the log.
//!
//! | level | message | fields | what to do |
//! |---|---|---|---|
//! | DEBUG | a session event | `event`, `session`, `ended`, `others`, `why` | |
//! TABLE
//!
//! The field `event` is the name of the [`EventKind`]: `created`, `signed_in`, `signed_in_again`, `rotated`, `signed_out`,
//! `cleared`, `revoked`, `limited`, `refused`.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::log;

/// Something that has happened to a session. See [the module](self).
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Event<'a> {
    /// What has happened.
    pub kind: EventKind,
    /// The [handle](crate::SessionInfo::handle) of the session. `None` for what concerns all sessions of a user.
    pub session: Option<&'a str>,
    /// The session key of the user. `None` for a visitor, and for a session that cannot be read.
    pub key: Option<&'a str>,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// A visitor's session has begun.
    Created,
    /// A user has signed in, and a session has begun.
    SignedIn,
    /// A user has signed in again on the same session.
    SignedInAgain,
    /// A session has a new ID.
    Rotated,
    /// A session has ended: a sign-out, or a login as another user.
    SignedOut,
    /// Sessions of a user have ended together.
    Cleared {
        /// How many.
        ended: u64,
        /// All but the session that asked for it.
        others: bool,
    },
    /// A session has ended because its user chose it from the list.
    Revoked,
    /// A session has ended because its user has signed in more often than the [limit](crate::Builder::sessions_per_key) allows.
    Limited,
    /// A login, a sign-out or a visitor's session was refused.
    Refused(Refusal),
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The ID that came is not the newest of a live session.
    NotNewest,
    /// All sessions of the user have ended since the login began.
    Cleared,
    /// The user has as many sessions as the [limit](crate::Builder::sessions_per_key) allows.
    Full,
    /// A request from another site has no session, and must not begin one.
    CrossSite,
}

/// What the application does with events.
#[derive(Clone, Default)]
pub(crate) struct Listener(Option<Arc<dyn Fn(&Event<'_>) + Send + Sync>>);

impl EventKind {
    /// Its name in the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::SignedIn => "signed_in",
            Self::SignedInAgain => "signed_in_again",
            Self::Rotated => "rotated",
            Self::SignedOut => "signed_out",
            Self::Cleared { .. } => "cleared",
            Self::Revoked => "revoked",
            Self::Limited => "limited",
            Self::Refused(_) => "refused",
        }
    }
}

impl Refusal {
    /// Its name in the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotNewest => "not_newest",
            Self::Cleared => "cleared",
            Self::Full => "full",
            Self::CrossSite => "cross_site",
        }
    }
}

impl Listener {
    pub(crate) fn new(listener: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listener)))
    }

    pub(crate) fn tell(&self, event: &Event<'_>) {
        let Event { kind, session, .. } = *event;
        let (ended, others) = match kind {
            EventKind::Cleared { ended, others } => (Some(ended), Some(others)),
            _ => (None, None),
        };
        let why = match kind {
            EventKind::Refused(why) => Some(why.name()),
            _ => None,
        };
        log::debug!(event = kind.name(), session, ended, others, why, "a session event");
        if let Some(listener) = &self.0
            && catch_unwind(AssertUnwindSafe(|| listener(event))).is_err()
        {
            // What it was told has happened: the request goes on.
            log::error!(event = kind.name(), "on_event has panicked");
        }
    }
}

/// For logs: nothing of the user.
impl fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("kind", &self.kind).field("session", &self.session).finish_non_exhaustive()
    }
}
