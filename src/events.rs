//! Events and logs: a callback for logins, sign-outs and refusals, and a table of every log message.
//!
//! [`Builder::on_event`](crate::Builder::on_event) registers a callback that receives every event. Use it to count logins, or to
//! keep an audit trail of who signed in and why a session ended. The same events are logged through
//! [`tracing`](https://docs.rs/tracing), without the session key.
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
//! An event is sent for each change listed in [`EventKind`] that this process made and the store confirmed, and for each one
//! that this process refused. Three cases send no event:
//!
//! * A session expired, or another process ended it.
//! * The store's answer was lost. The event may then be missing, even if the store applied the change.
//! * A new session is removed again because no response will carry its ID, for example after the request was cancelled. Its
//!   creation was an event; its removal is not.
//!
//! # The log
//!
//! All messages have the target `jam_session`. Targets, levels and field names are stable; the texts may change. No message
//! contains a session ID, a session key or session data. The [fields](#fields) are explained below the table.
//!
//! Clients cannot flood the log:
//!
//! * A message that a client can cause at any time is logged at DEBUG.
//! * A message about a fault that a client can meet again and again has the field `repeats`. An example is a session that cannot
//!   be read: a client can send its cookie with every request. Such a message is logged at the level in the table at most
//!   once a minute, and otherwise at DEBUG, without that field. The limit applies to each [`Sessions`](crate::Sessions)
//!   separately, except for five messages: the two about answers, the two about cancelled calls, and the one about an
//!   unreadable record in a list. They have one limit for the process.
//!
//! Four messages are listed at two levels, because their level depends on the [kind](crate::ErrorKind) of the error:
//!
//! * The two about the answer to a request are logged at DEBUG for a 4xx, 503 or 507, and for a session that cannot be read.
//!   They are logged at ERROR for any other 500, and limited separately for each error.
//! * The two about cancelled calls are logged at DEBUG for a 4xx or 507, and at WARN for a 500 or 503.
//!
//! | level | message | fields | what to do |
//! |---|---|---|---|
//! | DEBUG | a session event | `event`, `session`, `ended`, `others`, `why` | nothing: see [`EventKind`] |
//! | DEBUG | a request was answered with a session error | `error` | nothing: the client caused it, or the store is failing or a session cannot be read, which have a WARN of their own |
//! | DEBUG | the layer answered a request with an error | `error` | the same |
//! | DEBUG | could not write the changes of a cancelled request | `error` | nothing: the client caused it |
//! | DEBUG | a cancelled `clear_others` failed | `error` | the same |
//! | DEBUG | an ID with the wrong secret was refused | `session` | nothing: the client has an outdated ID, or is guessing |
//! | DEBUG | session cookies do not contain valid IDs | `count` | nothing; if every request logs it, check the [`Keyring`](crate::Keyring) |
//! | DEBUG | changes to a session that has ended were dropped | `came_with` | nothing: the session ended while the request was running |
//! | DEBUG | a cross-site request has no session, so its changes were dropped | | nothing; if users lose data, see [`CrossSite`](crate::ErrorKind::CrossSite) |
//! | DEBUG | could not check whether a watched session is live | `error`, `session` | nothing: it is checked again |
//! | DEBUG | could not touch a session | `error`, `session` | nothing: the next request tries again |
//! | DEBUG | touching a session timed out | `session` | the same |
//! | DEBUG | could not renew a cookie that is about to expire | `error` | the same |
//! | DEBUG | the sessions file was compacted | `bytes` | |
//! | DEBUG | connected to Redis | | |
//! | DEBUG | Redis cannot be reached | `error` | nothing: a WARN says when an outage begins |
//! | DEBUG | replacing the connection to Redis | `error` | the same |
//! | DEBUG | Redis does not answer: opening another connection | | the same |
//! | DEBUG | an operation was waiting on a closed connection to Redis, and is sent again | | |
//! | DEBUG | could not subscribe to a sentinel | `error` | |
//! | INFO | the store works again | `failed_for`, in seconds | |
//! | INFO | the disk of the sessions file has room again | `path` | |
//! | INFO | the sessions file was rewritten and accepts writes again | `path`, `repeats` | |
//! | INFO | Sentinel promoted another server to master | | |
//! | WARN | the store is failing: requests that need it are answered with 503 | `error` | check the store; this is logged once per outage, and the INFO above when it is over |
//! | WARN | a session cannot be read | `error`, `session`, `repeats` | check whether a newer version wrote it, or whether its encryption key is missing from the keyring |
//! | WARN | a session that cannot be read was left out of a list | `error`, `repeats` | the same |
//! | WARN | an unreadable record was left out of a list | `error`, `session`, `repeats` | the same |
//! | WARN | changes that were made after the response was sent were never saved: call `save` | `repeats` | add a call of `save` to the stream or task that makes them |
//! | WARN | the changes of a cancelled request were not written: the tokio runtime has ended | | call [`close`](crate::Sessions::close) before the runtime ends |
//! | WARN | could not write the changes of a cancelled request | `error`, `repeats` | look at the error |
//! | WARN | a cancelled `clear_others` failed | `error`, `repeats` | the same |
//! | WARN | a login could not end another session that its cookies open | `error`, `repeats` | nothing: the other session stays until it expires |
//! | WARN | could not remove a session whose ID no client has | `error`, `session`, `repeats` | nothing: the session expires |
//! | WARN | the disk of the sessions file is full | `error`, `path` | free disk space |
//! | WARN | another program wrote to the sessions file | `path`, `damage`, `repeats` | stop the other program: only one process may write to the file |
//! | WARN | could not write the sessions file, and could not undo the write | `error`, `path`, `repeats` | check the disk |
//! | WARN | could not sync the sessions file | `error`, `path`, `repeats` | the same |
//! | WARN | could not compact the sessions file | `error`, `path`, `repeats` | the same |
//! | WARN | a torn write was cut off the end of the sessions file | `path`, `line`, `bytes` | nothing: the process or the machine stopped during a write |
//! | WARN | the folder of the sessions file is a symbolic link that now points elsewhere: this process keeps the old file, and the next one will not find its sessions | `path`, `given` | move the file to a folder that deployments do not replace |
//! | WARN | Redis cannot be reached yet | `error` | check the server; the sessions were built all the same, because `lazy` is set |
//! | WARN | connected to Redis, but it is refusing operations | `error` | check the server |
//! | WARN | a Redis key in this namespace held foreign data and was replaced | | find out what else writes to this namespace |
//! | ERROR | a request was answered with a session error | `error`, `repeats` | fix the application or its configuration, as the error says |
//! | ERROR | the layer answered a request with an error | `error`, `repeats` | the same |
//! | ERROR | could not record a change to a session | `error`, `repeats` | the same |
//! | ERROR | the `on_event` callback panicked | `event`, `repeats` | fix the callback |
//! | ERROR | the backend listed another user's sessions | `foreign`, `repeats` | fix the backend |
//!
//! ## Fields
//!
//! | field | what it is |
//! | --- | --- |
//! | `bytes` | how many bytes were cut off, or the size of the compacted file |
//! | `came_with` | what the request came with: `Session` for a user's session, `Superseded` for an ID that a login or `clear_others` has replaced, or `Visitor` for anything else |
//! | `count` | how many cookies |
//! | `damage` | how the file differs from what this process wrote |
//! | `ended` | in the event `cleared`: how many sessions ended |
//! | `error` | the error with all its causes |
//! | `event` | the [name](EventKind::name) of the [`EventKind`]: `created`, `signed_in`, `signed_in_again`, `rotated`, `signed_out`, `cleared`, `revoked`, `limited`, `refused` |
//! | `failed_for` | how long the store failed, in seconds |
//! | `foreign` | how many sessions of other users the backend listed |
//! | `given` | the folder of the file as the application named it; `path` is where it led when the file was opened |
//! | `line` | the number of the damaged line |
//! | `others` | in the event `cleared`: whether the session that made the call was kept |
//! | `path` | the path of the sessions file |
//! | `repeats` | how often the message was repeated, at DEBUG, since it was last logged at this level |
//! | `session` | the [handle](crate::SessionInfo::handle) of the session, which identifies it in lists and logs |
//! | `why` | in the event `refused`: the [name](Refusal::name) of the [`Refusal`] |

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::log::{self, RateLimit};

/// Something that happened to a session. See [the module](self).
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Event<'a> {
    /// What happened.
    pub kind: EventKind,
    /// The [handle](crate::SessionInfo::handle) of the session. `None` for an event about all sessions of a user, and for a
    /// refusal before there was a session.
    pub session: Option<&'a str>,
    /// The session key of the user. `None` for a visitor, and for a session that cannot be read.
    pub key: Option<&'a str>,
}

/// The kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// A visitor's session began.
    Created,
    /// A user signed in, and a new session began.
    SignedIn,
    /// A user signed in again on a session that was already signed in.
    SignedInAgain,
    /// A session got a new ID without a login, by [`rework`](crate::Session::rework).
    Rotated,
    /// A session ended: by a sign-out, or by a login as another user.
    SignedOut,
    /// The sessions of a user ended together.
    Cleared {
        /// How many sessions ended.
        ended: u64,
        /// Whether the session that made the call was kept, as `clear_others` does.
        others: bool,
    },
    /// A session was ended by its handle, for example from a list of devices.
    Revoked,
    /// A session ended because a new login of its user exceeded the [limit](crate::Builder::sessions_per_key).
    Limited,
    /// A login, a sign-out or a visitor's session was refused.
    Refused(Refusal),
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The session ID is not the newest one of a live session.
    NotNewest,
    /// All sessions of the user were ended after the login began.
    Cleared,
    /// The user already has as many sessions as the [limit](crate::Builder::sessions_per_key) allows.
    Full,
    /// The request came from another site and has no session, so it must not begin one.
    CrossSite,
}

/// The callback of [`Builder::on_event`](crate::Builder::on_event).
#[derive(Clone, Default)]
pub(crate) struct Listener(Option<Arc<OnEvent>>);

type OnEvent = dyn Fn(&Event<'_>) + Send + Sync;

impl EventKind {
    /// Returns the name that the log uses, such as `signed_in`.
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
    /// Returns the name that the log uses, such as `not_newest`.
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

    pub(crate) fn tell(&self, event: &Event<'_>, limit: &RateLimit) {
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
            // The event has already happened, so the request continues.
            log::limited!(error, limit, (event = kind.name(),), "the `on_event` callback panicked");
        }
    }
}

/// Omits the session key, so that events can be logged.
impl fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("kind", &self.kind).field("session", &self.session).finish_non_exhaustive()
    }
}
