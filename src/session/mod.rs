//! The session of one request: what a handler reads and changes, and how that is written back.
//!
//! A session is loaded when it is first wanted. Changes are staged in memory, and committed when the response is ready, in one
//! atomic call to the store. [`Session::save`] commits earlier.
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
//! # Several verbs in one request
//!
//! A login comes first, then [`clear`](Session::clear) or [`clear_others`](Session::clear_others), then what else was written. Of
//! [`bind`](Session::bind), [`create`](Session::create) and [`delete`](Session::delete) the last one counts; a
//! [`rework`](Session::rework) only counts if there is none of them. Each value is written to the session that is current at that
//! point:
//!
//! | recorded, same user | the data afterwards | the user's other sessions |
//! |---|---|---|
//! | `clear` or `delete`, then `bind` | what was written after `clear` or `delete` | end; after `delete` they stay |
//! | `bind`, then `clear`; `clear_others` with `bind` or `rework`, in any order | kept | end |
//! | `create` with any of them | `create`'s, and what was written after it | as above |
//! | `bind` or `create`, then `delete` | signed out | stay |
//! | `insert`, `delete`, `insert` | a new visitor's session with the second value | stay |
//!
//! [`bind`](Session::bind) of another user drops the data, and ends the session that there was.
//!
//! A `clear` or `clear_others` recorded together with a login is for the user who signs in, and keeps the session that the login
//! made: this is how a password-reset link ends all sessions of the user and signs in. There is one exception: beside a switch
//! from one signed-in user to another by a session key, `clear` is for the user before.
//!
//! A sign-out counts whatever else of the request fails: after `clear` and then `bind("")` the response is a 500, and all
//! sessions have ended.
//!
//! # When a login or a sign-out is refused
//!
//! A request holds the session as it was when it was loaded. Until it commits, its user may sign out everywhere, and somebody who
//! has copied its cookie may hold a request back for as long as the server allows. Therefore:
//!
//! * [`bind`](Session::bind) and [`create`](Session::create) with the key of the user who is signed in need the newest ID of a
//!   session that is live at the moment of the commit. Otherwise the response is a 401, and
//!   [`save`](Session::save) returns [`Unauthorized`](crate::ErrorKind::Unauthorized). This also happens while another tab rotates
//!   or signs in. With a [`Login`](crate::Login) it never does.
//! * A login of a visitor, and one of another user than the one who is signed in, makes a new session. It is refused if all
//!   sessions of that user were ended since the request arrived, or if it arrived more than fifteen minutes ago. With a `Login`,
//!   the time when that was taken counts instead.
//! * [`delete`](Session::delete), [`clear`](Session::clear) and [`clear_others`](Session::clear_others) act only if the ID that came
//!   is valid for the session at that moment. A `delete` of a session that has ended already is done. A `clear` by one is a 401.
//!
//! A refused login or sign-out is dropped together with what was recorded beside it.
//!
//! Every `clear` and `clear_others` therefore refuses the user's logins that are under way. Put them behind the rate limit of the
//! login, counted by user, or ask for the password first. Otherwise a thief with a live session can repeat them and keep its owner
//! from signing in. A limit by address does not prevent that, because a thief can use many addresses.
//!
//! Some outcomes cannot be avoided:
//!
//! * If the response of a login, a rotation or a `clear_others` is lost, the browser never gets the new ID. It is signed out when the
//!   old one ends: ten seconds later at the latest, or when [`rework_grace`](crate::Builder::rework_grace) is over.
//! * A login form that a visitor sends twice makes two sessions. Both work, and each takes a place in the user's list. So does a
//!   login with a `Login` beside a rotation.
//! * Two requests of one browser are under way, and one of them ends the other's session on purpose while the other's new cookie is
//!   on its way. The browser may keep the cookie of the session that has ended, and the user signs in again.
//! * One sign-out can answer 200 although the browser stays signed in: a `delete`, or a visitor's `clear`, with the ID of a session
//!   that a login or a switch of user has already ended, in a browser that has a new session by now.
//!
//! # When the session is gone
//!
//! A session may end while a request holds it: signed out elsewhere, cleared, expired. Or its user signs in again on it, or calls
//! `clear_others`, and it has a new ID. The request's changes are then dropped, and its response leaves as it is.
//! [`save`](Session::save) returns [`NotFound`](crate::ErrorKind::NotFound).
//!
//! # Two cookies
//!
//! A visitor's session has a cookie of its own, named like the user's with `-visitor` behind it. Whatever a visitor's page
//! writes, and in whatever order responses arrive, it never replaces the cookie of a user who is signed in. The cookie of a user's
//! session that has ended stays until the next login: such a browser costs two loads for each request that looks at its session.
//!
//! # Requests from other sites
//!
//! A request that a page of another site makes the browser send may come without the cookie, as
//! [`SameSite`](crate::SessionLayer::same_site) says. It then looks like a visitor's, and a session created for it would replace
//! the one that the browser has. So whether a request *that has no session* may begin a visitor's session depends on that
//! option:
//!
//! | `SameSite` | a request without a session begins a visitor's session |
//! |---|---|
//! | `None` | always |
//! | `Lax` | unless it came from another site with an unsafe method, such as `POST` |
//! | `Strict` | unless it came from another site |
//!
//! Otherwise what it writes is dropped: its response leaves as it is, without a cookie, and a line at `debug` says so.
//! [`save`](Session::save) returns [`CrossSite`](crate::ErrorKind::CrossSite), whose docs say which login providers this concerns.
//! A request that has a session writes to it wherever it came from, and a login may come from anywhere: protecting forms
//! against forgery (CSRF) is the application's part.
//!
//! A request came from another site if its `Sec-Fetch-Site` is `cross-site`. Browsers send that header over HTTPS and to
//! `localhost`. Without it, a request came from another site if the host of its `Origin` is not
//!
//! * the host that it was sent to: the authority of its URI, otherwise `Host`, without the port;
//! * or a host in `X-Forwarded-Host` or `Forwarded`. A proxy that replaces `Host` should send one of them;
//! * or the layer's [`domain`](crate::SessionLayer::domain) or a host below it.
//!
//! `Origin: null` is another site; no `Origin` at all is this one. Over plain HTTP this has three consequences:
//!
//! * A link from another site has neither header, and is taken for an address that was typed. There it can replace a visitor's
//!   session, so `Strict` needs HTTPS.
//! * Without a `domain`, the first `POST` from a sibling subdomain counts as one from another site. There is no list of public
//!   suffixes here that could tell siblings from strangers.
//! * A form on a page with `Referrer-Policy: no-referrer` sends `Origin: null`, also to its own site. Use `same-origin`.
//!
//! # Streams and sockets
//!
//! With server-sent events, WebSocket upgrades and streaming bodies, the response is ready before the stream begins: the changes
//! are committed at that point. What a clone changes later waits for its own `save`. There is no response left to
//! carry a cookie, so such a `save` can do anything except change the ID: that is [`ResponseSent`](crate::ErrorKind::ResponseSent).

pub(crate) mod authority;
pub(crate) mod change;
pub(crate) mod commit;
pub(crate) mod driver;
mod login;
pub(crate) mod origin;
pub(crate) mod pending;
pub(crate) mod presented;
pub(crate) mod sign_in;
mod sign_out;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    clock::time,
    error::Error,
    record::{data::Data, value::json},
    session::{
        authority::Trigger,
        change::{Change, Clearing, Identity, Staged},
        driver::Driver,
        origin::{CookieValue, Origin},
        presented::Base,
        sign_in::SignIn,
    },
};

/// The session of a request. See the [module docs](self).
///
/// A clone is the same session. Handlers of axum take it as an argument, which loads it. Other services find it among the
/// request's extensions, and [`load`](Self::load) it before they read.
///
/// ```
/// use jam_session::{Error, Session};
///
/// async fn home(session: Session) -> Result<String, Error> {
///     let visits: u64 = session.get("visits")?.unwrap_or(0);
///     session.insert("visits", visits + 1)?;
///     Ok(format!("visit {visits} of {}", session.key().as_deref().unwrap_or("a stranger")))
/// }
/// ```
#[derive(Clone)]
pub struct Session(Arc<Driver>);

/// What the HTTP side does with it.
impl Session {
    pub(crate) fn new<'a>(
        origin: Arc<Origin>,
        cookies: impl Iterator<Item = CookieValue<'a>>,
        cross_site: bool,
        outer: Option<Arc<Driver>>,
    ) -> Self {
        Self(Arc::new(Driver::new(origin, cookies, cross_site, outer)))
    }

    /// The same session again.
    pub(crate) fn of(driver: &Arc<Driver>) -> Self {
        Self(Arc::clone(driver))
    }

    pub(crate) fn driver(&self) -> &Arc<Driver> {
        &self.0
    }
}

impl Session {
    /// Loads the session once; later calls return at once. The axum extractor does this.
    ///
    /// To load it up front for a whole router, use `axum::middleware::from_extractor::<Session>()`.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable). A record that cannot be read is an error of [`get`](Self::get).
    pub async fn load(&self) -> Result<(), Error> {
        self.0.load().await
    }

    /// Returns the value of this name, or `None`.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if it does not deserialize as a `T`, [`NotLoaded`](crate::ErrorKind::NotLoaded) before [`load`](Self::load),
    /// [`Unreadable`](crate::ErrorKind::Unreadable) if the record cannot be read.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        // Deserializing is the application's code, and runs outside the lock.
        let value = self.0.pending(|pending| pending.data().map(|data| data.value(name)))?;
        value.map(|value| value.read()).transpose()
    }

    /// Returns all data as it is now.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn data(&self) -> Result<Data, Error> {
        self.0.pending(|pending| pending.data().cloned())
    }

    /// Writes one value. A visitor without a session gets one. Writing a value that is already there does nothing.
    ///
    /// A value that is accepted is read back equal: numbers to the last bit, integers up to 128 bits, strings, bytes, sequences
    /// and maps. As in serde_json, a `Some` of something that is written as `null` is read back as `None`: `Some(None)`,
    /// `Some(())`. A [`Serializer`](crate::Serializer) of the application takes integers that fit in an `i64` or a `u64`.
    /// Of a name that a value writes twice, as `#[serde(flatten)]` can, the last counts for maps, and a struct with a field of
    /// that name is not read.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if the value does not serialize, or would not be read back equal: a number that is `NaN`
    /// or infinite, more than 127 levels of nesting, a map with one of the two names that serde_json keeps for itself
    /// (`$serde_json::private::Number` and `…RawValue`), or what the `Serializer` of the application does not write, or does not
    /// read back.
    pub fn insert(&self, name: &str, value: impl Serialize) -> Result<(), Error> {
        let (name, value) = (name.into(), json(value)?);
        self.0.engine().codec().check_value(&name, &value)?;
        self.0.stage(Change::Set(name, value))
    }

    /// Computes the new value from the old one. Concurrent `modify` calls never lose an update.
    ///
    /// The closure runs once, and again each time another request has written to the session meanwhile. Write out its type:
    /// `|n: Option<u64>| n.unwrap_or(0) + 1`.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if the new value would be refused by [`insert`](Self::insert), or the old one does not
    /// deserialize as a `T`. Before the session is [loaded](Self::load), the closure has not run yet, and such a value fails the
    /// commit.
    pub fn modify<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        change: impl Fn(Option<T>) -> T + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let change = Change::Modify(name.into(), Change::modifier(change), None);
        let mut tries = 0..TRIES_TO_MODIFY;
        loop {
            let known = self.0.pending(|pending| match pending.is_known() {
                true => Ok(Some(Staged::on(pending.staged().data.clone()))),
                false => pending.stage(change.clone()).map(|_| None),
            });
            // The closure is the application's code, and runs outside the lock.
            let Some(before) = known? else { return Ok(()) };
            let resolved = change.clone().resolve(&before);
            if let [Change::Failed(error)] = &resolved[..] {
                return Err(error.clone());
            }
            if let [Change::Modify(name, _, Some(value))] = &resolved[..] {
                self.0.engine().codec().check_value(name, value)?;
            }
            let may_retry = tries.next().is_some();
            let staged = self.0.pending(|pending| {
                // Another clone may have written this name meanwhile. The closure itself may too, but not for ever.
                let changed = pending.staged().data.raw(name) != before.data.raw(name);
                if changed && may_retry {
                    return Ok(false);
                }
                // Otherwise all of the data would be copied for the one change.
                drop(before);
                resolved.into_iter().try_for_each(|change| pending.stage(change).map(drop)).map(|()| true)
            });
            if staged? {
                return Ok(());
            }
        }
    }

    /// Removes one value. Removing a value that is not there does nothing.
    pub fn remove(&self, name: &str) {
        self.0.stage_plain(Change::Remove(name.into()));
    }

    /// Returns one value and removes it: a message for the next page.
    ///
    /// If the response fails, the value stays for the next one. Two requests at the same time may both show it.
    ///
    /// ```
    /// use jam_session::{Error, Session};
    ///
    /// // POST /profile, which then redirects to /profile
    /// async fn save(session: Session) -> Result<(), Error> {
    ///     session.insert("notice", "Your profile is saved.")
    /// }
    ///
    /// // GET /profile
    /// async fn show(session: Session) -> Result<String, Error> {
    ///     Ok(session.take::<String>("notice")?.unwrap_or_default())
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get); the value then stays.
    #[doc(alias = "flash")]
    pub fn take<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let value = self.get(name)?;
        if value.is_some() {
            self.remove(name);
        }
        Ok(value)
    }

    /// Replaces all data with anything that serializes to a JSON object.
    ///
    /// Names that this does not change keep what other requests write to them meanwhile.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if it does not serialize to an object, or a value in it would be refused by
    /// [`insert`](Self::insert); [`Unreadable`](crate::ErrorKind::Unreadable) if the record cannot be read.
    pub fn update(&self, data: impl Serialize) -> Result<(), Error> {
        let data = Data::from_serialize(data)?;
        self.0.engine().codec().check_data(&data)?;
        self.0.pending(|pending| pending.replace(data)).map(drop)
    }

    /// Signs in: gives the session a session key and a new ID, and keeps its data. The old ID ends.
    ///
    /// Takes a session key, or a [`Login`](crate::Login). Take a `Login` wherever a credential is checked: it is then refused if
    /// the user was signed out everywhere during the check. See [when a login is refused](self#when-a-login-or-a-sign-out-is-refused).
    ///
    /// Call it whenever privileges rise, also for the user who is signed in already. Another user's data is not kept. A session
    /// key that is empty or longer than 1024 bytes fails the commit. A handler that itself calls
    /// [`Sessions::clear`](crate::Sessions::clear) for this user takes a `Login` after that, or calls
    /// [`clear_others`](Self::clear_others) instead: a plain session key is refused then. It is also refused for a new session if
    /// the request arrived more than fifteen minutes ago.
    #[doc(alias = "login", alias = "sign_in")]
    pub fn bind(&self, user: impl Into<SignIn>) {
        self.0.stage_plain(Change::Bind(user.into()));
    }

    /// Signs in with a session that has only this data. The old ID ends. It is refused as [`bind`](Self::bind) is: a plain session
    /// key also for a new session after fifteen minutes, and after a [`Sessions::clear`](crate::Sessions::clear) for this user in
    /// the same handler.
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
    /// Use it for routine rotation: the previous ID works for [`rework_grace`](crate::Builder::rework_grace) more. When
    /// privileges rise, above all at login, call [`bind`](Self::bind) instead.
    #[doc(alias = "rotate", alias = "regenerate", alias = "cycle_id", alias = "renew")]
    pub fn rework(&self) {
        self.0.stage_plain(Change::Rework);
    }

    /// Signs out: ends this session. Nothing brings it back, not even a request that is under way.
    ///
    /// Every session that a cookie of this request opens ends. If one lives on, because its cookie has an ID that is not valid
    /// any more, the response is a 401.
    #[doc(alias = "logout", alias = "sign_out", alias = "destroy", alias = "flush")]
    pub fn delete(&self) {
        self.0.stage_plain(Change::Delete);
    }

    /// Signs out everywhere: ends all sessions of this session's key. A visitor's session is ended alone.
    ///
    /// A session that has expired or was ended can end no others: the response is a 401. The user's logins that are under way are
    /// refused: put this behind the rate limit of the login, by user, or ask for the password.
    /// [Otherwise](self#when-a-login-or-a-sign-out-is-refused) a thief with a live session can keep its owner from signing in.
    #[doc(alias = "revoke_all", alias = "logout")]
    pub fn clear(&self) {
        self.0.stage_plain(Change::Clear);
    }

    /// Signs out everywhere else: gives this session a new ID, and ends all other sessions of its key. A copy of the old ID ends
    /// too. A visitor's session has no others.
    ///
    /// It is the verb for "sign out my other devices", and for a new password. On a 5xx the response carries the new ID. If the
    /// request is dropped before the response is ready, this session ends as well. If the ID that came is not the newest one, the
    /// response is a 401 and nothing ends: a double click sends the ID that the first click has replaced.
    ///
    /// As [`clear`](Self::clear) does, it refuses the user's logins that are under way, and needs the same
    /// [protection](self#when-a-login-or-a-sign-out-is-refused).
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

    /// Returns the session key if a user is signed in. After a recorded [`bind`](Self::bind), [`create`](Self::create) or
    /// [`delete`](Self::delete) it is the one that there will be. Before [`load`](Self::load) it is `None`.
    pub fn key(&self) -> Option<String> {
        self.0.pending(|pending| pending.key().map(str::to_owned))
    }

    /// Returns when this session's user signed in to it; `None` for a visitor, and for a session that is not loaded or has
    /// ended.
    ///
    /// After a recorded [`bind`](Self::bind) or [`create`](Self::create) it is the time of the call; the time that is stored
    /// will be a moment later. To ask for the password again, `bind` a [`Login`](crate::Login) of the same user: the session then
    /// has a new ID, a new deadline, its data, and its own idle timeout if it has [one](Self::set_ttl).
    ///
    /// ```
    /// use std::time::Duration;
    /// # use jam_session::Session;
    ///
    /// fn signed_in_lately(session: &Session) -> bool {
    ///     // A time that is ahead of this clock is another server's.
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

    /// Returns the public name of this session, as in [`SessionInfo::handle`](crate::SessionInfo::handle); `None` if there is
    /// no session, or it is not loaded. A login has no handle until it is committed.
    pub fn handle(&self) -> Option<String> {
        self.0.pending(|pending| match pending.base() {
            Some(Base::Live(opened)) => Some(opened.loaded.id.sid().to_owned()),
            _ => None,
        })
    }

    /// Sets this session's own idle timeout, in place of [`default_ttl`](crate::Builder::default_ttl): "remember me". It is
    /// stored with the session, which never outlasts its deadline. A `ttl` of zero fails the commit.
    #[doc(alias = "remember_me", alias = "idle_timeout", alias = "idle timeout", alias = "expire")]
    pub fn set_ttl(&self, ttl: Duration) {
        self.0.stage_plain(Change::Ttl(ttl));
    }

    /// Commits the changes now, instead of with the response.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if the session is gone, [`Unauthorized`](crate::ErrorKind::Unauthorized) if a
    /// [login or a sign-out is refused](self#when-a-login-or-a-sign-out-is-refused), [`CrossSite`](crate::ErrorKind::CrossSite) if
    /// there is no session and the request [came from another site](self#requests-from-other-sites),
    /// [`ResponseSent`](crate::ErrorKind::ResponseSent) if a cookie would be needed and the response has left: after these four the
    /// changes are dropped. And whatever prevents a commit, after which they are still recorded:
    /// [`Unavailable`](crate::ErrorKind::Unavailable), [`Unreadable`](crate::ErrorKind::Unreadable),
    /// [`TooLarge`](crate::ErrorKind::TooLarge), [`Data`](crate::ErrorKind::Data).
    ///
    /// # Cancel safety
    /// A commit that has begun runs to its end, also when this future is dropped. A response that fails later does not undo
    /// it.
    pub async fn save(&self) -> Result<(), Error> {
        self.0.begin_commit(Trigger::Save).await
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// How often a closure runs for clones that all write the same name.
const TRIES_TO_MODIFY: usize = 8;
