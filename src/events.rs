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
//! | DEBUG | a session event | `event`, `session`, `ended`, `others`, `why` | nothing: see below for the events |
//! | DEBUG | a request failed for its session | `error` | nothing: the client caused it, or the store fails |
//! | DEBUG | a request was answered without its session | `error` | the same |
//! | DEBUG | the changes of a request without a client were not written | `error` | the same |
//! | DEBUG | a call that was dropped has not ended other sessions | `error` | the same |
//! | DEBUG | an ID with the wrong secret was refused | `session` | nothing: somebody guesses, or has an old ID |
//! | DEBUG | cookies of our name are not valid IDs | `count` | nothing: see [`Keyring`](crate::Keyring) if it is every request |
//! | DEBUG | changes to a session that is gone were dropped | `came_with` | nothing: it was signed out meanwhile |
//! | DEBUG | a request from another site has no session, and what it wrote was dropped | | see [`CrossSite`](crate::ErrorKind::CrossSite) if users lose what they write |
//! | DEBUG | whether a watched session is there is not known | `error`, `session` | nothing: the store is asked again |
//! | DEBUG | a session was not touched | `error`, `session` | nothing: the next request tries again |
//! | DEBUG | a session was not touched in time | `session` | the same |
//! | DEBUG | a cookie was not set again | `error` | the same |
//! | DEBUG | the sessions file was compacted | `bytes` | |
//! | DEBUG | connected to Redis | | |
//! | DEBUG | Redis cannot be reached | `error` | the WARN of the store says when it begins |
//! | DEBUG | the connection to Redis is replaced | `error` | the same |
//! | DEBUG | Redis does not answer: another connection is opened | | the same |
//! | DEBUG | an operation waits for a connection to Redis that is no more, and is sent again | | |
//! | DEBUG | cannot subscribe to a sentinel | `error` | |
//! | INFO | the store does what it is asked again | `failed_for`, in seconds | |
//! | INFO | the disk of the sessions file has room again | `path` | |
//! | INFO | the sessions file was rewritten, and takes changes again | `path` | |
//! | INFO | the sentinels have made another server the master | | |
//! | WARN | the store fails, and requests that need it are answered with 503 | `error` | look at the store: it is said once, until the INFO above |
//! | WARN | a session cannot be read | `error`, `session` | was it written by a later version, or encrypted with a key that is not on the keyring? |
//! | WARN | a session is not listed | `error` | the same |
//! | WARN | an unreadable record is left out of the list | `error`, `session` | the same |
//! | WARN | changes to a session that were recorded after its response had left were never saved: call `save` | | a stream or a task lacks a `save` |
//! | WARN | what a request recorded was not written: there is no runtime any more | | call [`close`](crate::Sessions::close) before the runtime ends |
//! | WARN | the changes of a request without a client were not written | `error` | look at the error |
//! | WARN | a call that was dropped has not ended other sessions | `error` | the same |
//! | WARN | a login has not ended another session that its cookies lead to | `error` | nothing: that session lives on until it expires |
//! | WARN | a session that no client has the ID of was not removed | `error`, `session` | nothing: it expires |
//! | WARN | the disk of the sessions file is full | `error`, `path` | make room |
//! | WARN | another program wrote to the sessions file | `path`, `damage` | find that program: nothing else may write to the file |
//! | WARN | the sessions file could not be written, nor cut back | `error`, `path` | look at the disk |
//! | WARN | the sessions file could not be synced | `error`, `path` | the same |
//! | WARN | the sessions file could not be compacted | `error`, `path` | the same |
//! | WARN | a torn end was cut off the sessions file, from this line on | `path`, `line`, `bytes` | nothing: the machine stopped while it was written |
//! | WARN | the folder of the sessions file is a symbolic link that was switched: this process goes on with the old file, and the next one will not find its sessions | `path`, `given` | keep the file outside folders that a deployment switches |
//! | WARN | Redis cannot be reached yet | `error` | look at the server: the sessions were built with `lazy` |
//! | WARN | connected to Redis, but it refuses operations for now | `error` | look at the server |
//! | WARN | a Redis key of this namespace held something else, and was replaced | | find what else uses the namespace |
//! | ERROR | a request failed for its session | `error` | look at the error: it is a fault of the application or its setup |
//! | ERROR | a request was answered without its session | `error` | the same |
//! | ERROR | a change to a session was not recorded | `error` | the same |
//! | ERROR | on_event has panicked | `event` | mend the function given to `on_event` |
//! | ERROR | the backend has listed sessions of another key | `foreign` | mend the backend |
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
pub(crate) struct Listener(Option<Arc<OnEvent>>);

type OnEvent = dyn Fn(&Event<'_>) + Send + Sync;

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
