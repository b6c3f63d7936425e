//! The session of one request: how it is loaded, changed and committed.
//!
//! A session is loaded when it is first used. Changes are staged in memory. When the response is ready, they are committed,
//! usually in [one](crate::guide::requests) atomic call to the store. [`Session::save`] commits earlier.
//!
//! ```text
//!  store ──load──▶ base ──changes──▶ staged      what the handler sees
//!    ▲              ▲                  │
//!    │              │               commit       one conditional write, if the base is still what the store has
//!    │              │                  │
//!    └───written────│──────────────────┤
//!                   └──────conflict────┘         another request was first: its result is the new base, and the same
//!                           rebase               changes are applied to it
//! ```
//!
//! # Several calls in one request
//!
//! The calls of one request take effect in this order, whatever the order in which you make them: first a login, then
//! [`clear`](Session::clear) or [`clear_others`](Session::clear_others), then all other writes. If there are several calls
//! of [`bind`](Session::bind), [`create`](Session::create) and [`delete`](Session::delete), the last one decides who is
//! signed in afterwards. A [`rework`](Session::rework) has an effect only if the request calls none of these three.
//!
//! Apart from that, the order of the calls decides only which data is kept, because each value is written to the session
//! that is current at that point:
//!
//! | calls, all for the same user | the session's data afterwards | the user's other sessions |
//! |---|---|---|
//! | `clear`, then `bind` | what was written after `clear` | end |
//! | `delete`, then `bind` | what was written after `delete` | stay |
//! | `bind`, then `clear`; `clear_others` with `bind` or `rework`, in any order | kept | end |
//! | any of these with `create` in place of `bind` | the data of `create`, and what was written after it | as above |
//! | `bind` or `create`, then `delete` | none: signed out | stay |
//! | `insert`, `delete`, `insert` | a new visitor's session with the second value | stay |
//!
//! [`bind`](Session::bind) of another user drops the data, and ends the previous session.
//!
//! A `clear` or `clear_others` in the same request as a login applies to the user who signs in, and keeps the session that
//! the login made. This is how a password-reset link signs a user in and ends all other sessions. There is one exception: if
//! one user is signed in and another one signs in by a plain session key, without a [`Login`](crate::Login), then `clear`
//! applies to the first user. A `clear_others` then still applies to the user who signs in.
//!
//! If other changes of the request fail, a sign-out still takes effect. For example, after `clear` and then `bind("")` the
//! response is a 500, and all sessions of the user who was signed in have ended. A login that is *refused* is different: the
//! next section says what happens to a sign-out in the same request.
//!
#![doc = include_str!("refused.md")]
//!
//! # When the session is gone
//!
//! A session may end while a request holds it: the user signs out elsewhere, or the session expires. The session may also get a
//! new ID, because the user signs in again or calls `clear_others`. In both cases the request's changes are dropped, and its
//! response is sent unchanged. [`save`](Session::save) returns [`NotFound`](crate::ErrorKind::NotFound).
//!
#![doc = include_str!("cross_site.md")]
//!
#![doc = include_str!("streams.md")]

pub(crate) mod authority;
pub(crate) mod change;
pub(crate) mod commit;
pub(crate) mod driver;
pub(crate) mod ended;
pub(crate) mod origin;
pub(crate) mod pending;
pub(crate) mod presented;
pub(crate) mod rebase;
pub(crate) mod sign_in;
mod values;
pub(crate) mod write_id;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::{
    clock::time,
    error::Error,
    record::data::Data,
    session::{
        authority::Trigger,
        change::{Change, Clearing, Identity},
        driver::Driver,
        ended::Ended,
        origin::Origin,
        presented::{Base, CookieValue},
        sign_in::SignIn,
    },
};

/// The session of a request: read and write its data, sign in and sign out.
///
/// An axum handler takes it as an argument, already loaded. Other services take it from the request's extensions, and call
/// [`load`](Self::load) before they read. A clone is the same session.
///
/// Methods without `.await` only record changes. They are committed together when the response is ready, or by
/// [`save`](Self::save). The [module docs](self) explain what happens when requests overlap.
///
/// ```
/// use jam_session::{Error, Session};
///
/// async fn home(session: Session) -> Result<String, Error> {
///     session.modify("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?; // never loses a visit, even if requests overlap
///     let visits: u64 = session.get("visits")?.unwrap_or(0);
///     Ok(format!("visit {visits} of {}", session.key().as_deref().unwrap_or("a stranger")))
/// }
/// ```
#[derive(Clone)]
pub struct Session(Arc<Driver>);

/// Used by the HTTP layer.
impl Session {
    pub(crate) fn new<'a>(
        origin: Arc<Origin>,
        cookies: impl Iterator<Item = CookieValue<'a>>,
        cross_site: bool,
        outer: Option<Arc<Driver>>,
    ) -> Self {
        Self(Arc::new(Driver::new(origin, cookies, cross_site, outer)))
    }

    /// Returns another handle to the same session.
    pub(crate) fn of(driver: &Arc<Driver>) -> Self {
        Self(Arc::clone(driver))
    }

    pub(crate) fn driver(&self) -> &Arc<Driver> {
        &self.0
    }
}

impl Session {
    /// Signs in: gives the session a session key and a new ID, and keeps its data. The old ID becomes invalid.
    ///
    /// If no user was signed in, this makes a new session with the visitor's data, and the visitor's session ends. If this
    /// user was already signed in, the session keeps its record and its handle.
    ///
    /// It takes a session key or a [`Login`](crate::Login). Use a `Login` wherever a password or another credential is checked:
    /// the login is then refused if the user was signed out everywhere during the check. See [when a login is
    /// refused](self#when-a-login-or-a-sign-out-is-refused).
    ///
    /// Call it whenever privileges rise, even for the user who is already signed in. If another user was signed in, that
    /// user's session ends and its data is dropped.
    ///
    /// The commit fails with [`Data`](crate::ErrorKind::Data) if the session key is empty or longer than 1024 bytes, and
    /// with [`Full`](crate::ErrorKind::Full) (409) if the user has too many sessions and the limit
    /// [refuses](crate::Limit::refuse) more.
    ///
    /// A plain session key is refused in two more cases:
    ///
    /// * The login would make a new session, and the request arrived more than fifteen minutes ago.
    /// * The handler itself called [`Sessions::clear`](crate::Sessions::clear) for this user. Take a `Login` after that
    ///   call, or call [`clear_others`](Self::clear_others) instead.
    #[doc(alias = "login", alias = "sign_in")]
    pub fn bind(&self, user: impl Into<SignIn>) {
        self.0.stage_plain(Change::Bind(user.into()));
    }

    /// Signs in with new data: the session then has only this data. The old ID becomes invalid.
    ///
    /// It is refused, and its commit fails, in the same cases as [`bind`](Self::bind).
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if the data does not serialize to an object, or a value in it would be refused by
    /// [`insert`](Self::insert).
    #[doc(alias = "login", alias = "sign_in")]
    pub fn create(&self, user: impl Into<SignIn>, data: impl Serialize) -> Result<(), Error> {
        let data = Data::from_serialize(data)?;
        self.0.engine().codec().check_data(&data)?;
        self.0.stage(Change::Create(user.into(), data))
    }

    /// Gives the session a new ID and keeps its data.
    ///
    /// Use it for routine rotation. The previous ID stays valid for [`rework_grace`](crate::Builder::rework_grace), so that
    /// requests in flight still work. When privileges rise, above all at login, call [`bind`](Self::bind) instead.
    #[doc(alias = "rotate", alias = "regenerate", alias = "cycle_id", alias = "renew")]
    pub fn rework(&self) {
        self.0.stage_plain(Change::Rework);
    }

    /// Signs out: ends this session. Nothing brings it back, not even a request that is already running.
    ///
    /// If the request has several session cookies, all their sessions end. If one of them cannot be ended, because its ID is
    /// no longer valid for it, the response is a 401. If the session has already ended, `delete` succeeds.
    #[doc(alias = "logout", alias = "sign_out", alias = "destroy", alias = "flush")]
    pub fn delete(&self) {
        self.0.stage_plain(Change::Delete);
    }

    /// Signs out everywhere: ends all sessions of the signed-in user, including this one. For a visitor it ends only this
    /// session.
    ///
    /// If this is a user's session, and it has expired or was ended, the response is a 401 and no other session ends.
    ///
    /// It also refuses the user's pending logins, with the exceptions that are named
    /// [here](self#when-a-login-or-a-sign-out-is-refused). Limit how often each user can call it, or ask for the password
    /// first: [otherwise](self#when-a-login-or-a-sign-out-is-refused) a thief with a live session can keep its owner from
    /// signing in.
    #[doc(alias = "revoke_all", alias = "logout")]
    pub fn clear(&self) {
        self.0.stage_plain(Change::Clear);
    }

    /// Signs out everywhere else: gives this session a new ID, and ends all other sessions of the signed-in user. A copy of
    /// the old cookie becomes invalid, too. For a visitor it does nothing, unless the same request signs in: then it ends
    /// that user's other sessions.
    ///
    /// Use it for "sign out my other devices", and when the password was changed.
    ///
    /// * If the response [counts as failed](crate::SessionLayer::failed_if), the other sessions still end, and the response
    ///   carries the new ID.
    /// * If the client closes the connection before the response is ready, or the handler panics, this session ends as well.
    /// * If the request does not have the newest ID, the response is a 401 and no session ends. A double click can cause this:
    ///   its second request has the ID that the first one replaced.
    ///
    /// Like [`clear`](Self::clear), it refuses the user's pending logins, except the one that this request binds. It needs
    /// the same [protection](self#when-a-login-or-a-sign-out-is-refused).
    ///
    /// ```
    /// # use jam_session::{Error, Session, SessionKey, Sessions};
    /// async fn change_password(SessionKey(user): SessionKey, session: Session, sessions: Sessions) -> Result<(), Error> {
    ///     let login = sessions.login(&user).await?;
    ///     // Check the old password, and store the new one.
    ///     session.clear_others();
    ///     session.bind(login);
    ///     Ok(())
    /// }
    /// ```
    #[doc(alias = "revoke_all")]
    pub fn clear_others(&self) {
        self.0.stage_plain(Change::ClearOthers);
    }

    /// Returns the session key if a user is signed in. Before [`load`](Self::load) it is `None`.
    ///
    /// After [`bind`](Self::bind), [`create`](Self::create) or [`delete`](Self::delete) it already reflects that call.
    #[doc(alias = "user", alias = "user_id", alias = "is_authenticated")]
    pub fn key(&self) -> Option<String> {
        self.0.pending(|pending| pending.key().map(str::to_owned))
    }

    /// Returns when the user signed in on this session. `None` for a visitor, and for a session that is not loaded or has ended.
    ///
    /// After [`bind`](Self::bind) or [`create`](Self::create) it is the time of this call; the stored time will be slightly
    /// later.
    ///
    /// Use it to ask for the password again before a sensitive action. If the password is correct, `bind` a
    /// [`Login`](crate::Login) of the same user. The session then gets a new ID and a new absolute timeout, and keeps its data
    /// and its [own idle timeout](Self::set_ttl).
    ///
    /// ```
    /// use std::time::Duration;
    /// # use jam_session::Session;
    ///
    /// fn signed_in_recently(session: &Session) -> bool {
    ///     // If another server's clock is ahead, the time may be in the future.
    ///     let age = session.signed_in().map(|time| time.elapsed().unwrap_or_default());
    ///     age.is_some_and(|age| age < Duration::from_secs(300))
    /// }
    /// ```
    pub fn signed_in(&self) -> Option<SystemTime> {
        self.0.pending(|pending| match (&pending.staged().identity, pending.base()) {
            (Identity::Bind(_) | Identity::Create(_), _) => Some(time(self.0.engine().now())),
            (Identity::Keep | Identity::Rework, Some(Base::Live(opened)))
                if pending.staged().clear != Clearing::All =>
            {
                opened.loaded.contents.signed_in.map(time)
            }
            _ => None,
        })
    }

    /// Returns the public name of this session, as in [`SessionInfo::handle`](crate::SessionInfo::handle). `None` if there is
    /// no session, or it is not loaded. A new session has no handle until it is committed.
    pub fn handle(&self) -> Option<String> {
        self.0.pending(|pending| match pending.base() {
            Some(Base::Live(opened)) => Some(opened.loaded.id.sid().to_owned()),
            _ => None,
        })
    }

    /// Sets an idle timeout for this session, for example for "remember me". Default:
    /// [`default_ttl`](crate::Builder::default_ttl).
    ///
    /// It is stored with the session. The session still ends at its absolute timeout. If `ttl` is less than a millisecond,
    /// the commit fails with [`Config`](crate::ErrorKind::Config).
    #[doc(alias = "remember_me", alias = "idle_timeout", alias = "idle timeout", alias = "expire")]
    pub fn set_ttl(&self, ttl: Duration) {
        self.0.stage_plain(Change::Ttl(ttl));
    }

    /// Returns a future that resolves when the session ends, with the reason.
    ///
    /// Use it for streams and sockets, which must end together with their session: see [streams and
    /// sockets](self#streams-and-sockets).
    ///
    /// * If this process ends the session, the future resolves at once. If another process ends it, the future resolves within
    ///   [`watch_interval`](crate::Builder::watch_interval).
    /// * A [`rework`](Self::rework) does not resolve it. A login on the same session and [`clear_others`](Self::clear_others) do,
    ///   because the stream may belong to a stolen copy of the cookie.
    /// * If the store fails for too long, it resolves to [`Unknown`](crate::Ending::Unknown).
    /// * Without a session it never resolves. If the session has already ended, it resolves at once.
    ///
    /// Waiting does not count as use; [`touch`](Self::touch) does.
    ///
    /// Which session the future waits for is decided at its first poll, not when you call `ended`, because a new session is
    /// not committed yet while the handler runs. If the session is not loaded yet, the first poll loads it; if that fails,
    /// the future resolves to `Unknown`.
    ///
    /// The future does not hold the session's data. It spawns no task, but needs a tokio runtime with time enabled.
    #[doc(alias = "expire", alias = "on_logout")]
    pub fn ended(&self) -> Ended {
        Ended::new(&self.0)
    }

    /// Counts as use of the session, as a request does, and so renews the idle timeout. Use it for a socket that is in use.
    ///
    /// It is cheap enough to call for each message: it writes to the store at most once per
    /// [`touch_interval`](crate::Builder::touch_interval). It also checks once per
    /// [`watch_interval`](crate::Builder::watch_interval) that the session is live, unless a stream of this process already does.
    /// If the session is not loaded yet, it is loaded.
    ///
    /// # Errors
    /// * [`NotFound`](crate::ErrorKind::NotFound) if the session has ended, if there is none, or if a login or `clear_others`
    ///   replaced its ID.
    /// * [`Unreadable`](crate::ErrorKind::Unreadable), [`Corrupt`](crate::ErrorKind::Corrupt) or
    ///   [`WrongKey`](crate::ErrorKind::WrongKey) if the record cannot be read.
    /// * [`Unavailable`](crate::ErrorKind::Unavailable) if the store fails.
    #[doc(alias = "keep_alive")]
    pub async fn touch(&self) -> Result<(), Error> {
        self.0.touch().await
    }

    /// Commits the changes now, instead of with the response.
    ///
    /// # Errors
    /// After these errors the changes are dropped:
    /// * [`NotFound`](crate::ErrorKind::NotFound): the [session is gone](self#when-the-session-is-gone).
    /// * [`Unauthorized`](crate::ErrorKind::Unauthorized): a [login or a sign-out was
    ///   refused](self#when-a-login-or-a-sign-out-is-refused).
    /// * [`Full`](crate::ErrorKind::Full): the user who signs in has too many sessions, and the limit
    ///   [refuses](crate::Limit::refuse) more.
    /// * [`CrossSite`](crate::ErrorKind::CrossSite): there is no session, and the request [came from another
    ///   site](self#requests-from-other-sites).
    /// * [`ResponseSent`](crate::ErrorKind::ResponseSent): the change needs a cookie, and the response was already sent.
    ///
    /// After these errors the changes are still recorded, and the response will try to commit them again:
    /// * [`Unavailable`](crate::ErrorKind::Unavailable): the store fails, or the sessions are
    ///   [closed](crate::Sessions::close).
    /// * [`Unreadable`](crate::ErrorKind::Unreadable), [`Corrupt`](crate::ErrorKind::Corrupt) or
    ///   [`WrongKey`](crate::ErrorKind::WrongKey): the record cannot be read.
    /// * [`TooLarge`](crate::ErrorKind::TooLarge): the record would be larger than [`max_size`](crate::Builder::max_size).
    /// * [`Data`](crate::ErrorKind::Data): the session key of a login is empty or too long, or a [`modify`](Self::modify)
    ///   that ran at the commit failed: the old value does not deserialize, or [`insert`](Self::insert) would refuse the new
    ///   one.
    /// * [`Config`](crate::ErrorKind::Config): the `ttl` of [`set_ttl`](Self::set_ttl) is less than a millisecond.
    ///
    /// # Cancel safety
    /// Once polled, the commit runs to completion even if this future is dropped. A response that fails later does not undo it.
    pub async fn save(&self) -> Result<(), Error> {
        self.0.begin_commit(Trigger::Save).await
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}
