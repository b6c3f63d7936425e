//! What a handler holds: it reads what was loaded, and records what is to change.
//!
//! Nothing is loaded until it is wanted, and nothing is written until the response is ready: then all that was recorded
//! goes to the backend in one atomic call. [`Session::save`] does it earlier.
//!
//! # Several verbs in one request
//!
//! [`clear`](Session::clear) and [`clear_others`](Session::clear_others) run first, on the key that was loaded. Then the session gets its identity: a
//! [`rework`](Session::rework) only counts if nothing else was asked for, and of [`bind`](Session::bind),
//! [`create`](Session::create) and [`delete`](Session::delete) the last one counts. Data belongs to the session that there is
//! when it is written:
//!
//! | recorded | afterwards |
//! |---|---|
//! | `insert`, `bind(same or first key)`, `insert` | a new ID with all data |
//! | `insert`, `bind(another key)`, `insert` | that key's new session with the second value only |
//! | `insert`, `create(key, data)`, `insert` | a new session with `data` and the second value |
//! | `insert`, `delete`, `insert` | an anonymous new session with the second value |
//! | `bind` or `create`, then `delete` | signed out |
//! | `delete`, then `bind` or `create` | signed in, with the data written after `delete` |
//! | `clear`, then `bind` or `create` | all others ended, and signed in, with the data written after `clear` |
//! | `bind` or `create`, then `clear` | all others ended, and signed in, with the data that it had |
//! | `clear_others` and `rework` or `bind(same key)` | all others ended, and a new ID with all data |
//! | `clear_others` and `delete`, or `clear` | signed out everywhere |
//! | `clear_others` and `bind(another key)` | signed out everywhere, and signed in as another |
//!
//! A sign-out counts whatever else of a request fails: with `clear` and then `bind("")` the response is a 500, and all are
//! signed out.
//!
//! # When the session is gone
//!
//! A session may end while a request holds it: signed out elsewhere, cleared, expired. What the request recorded is then
//! dropped, and its response leaves as it is; [`save`](Session::save) says [`ErrorKind::NotFound`]. Only a
//! login makes a session again.
//!
//! # Streams and sockets
//!
//! With server-sent events, WebSocket upgrades and streaming bodies, the response is ready before the stream begins: that
//! is when all that was recorded is written. What a clone records later waits for its own `save`. Without a response to
//! carry a cookie, that can do anything but change the ID: it is then an
//! [`ErrorKind::ResponseSent`].

pub(crate) mod change;
pub(crate) mod commit;

use std::{
    fmt, mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    time::{Duration, SystemTime},
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    error::{Error, ErrorKind},
    http::{guard::Commit, service::Gate},
    record::{data::Data, token::Credentials, value::json},
    session::{
        change::{Change, Clearing, Identity, Modifies, Plan},
        commit::{Attempt, Base, Draft, Effect, Limits},
    },
    sessions::{
        engine::{Found, Live, not_found, too_late},
        time,
    },
    timeout::within,
};

/// The session of a request. See the [module docs](self).
///
/// A clone is the same session. Handlers of axum take it as an argument, which loads it; other services find it among
/// the request's extensions, and [`load`](Self::load) it before they read.
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
pub struct Session(Arc<Inner>);

struct Inner {
    gate: Arc<Gate>,
    /// The values of our cookies, with semicolons between, as they came.
    cookies: Option<Box<str>>,
    cross_site: bool,
    /// The session of a layer around this one's.
    outer: Option<Session>,
    /// Made when somebody first looks at the session, or writes to it: then the response depends on the cookie. `None` if
    /// nobody had when the response left.
    active: OnceLock<Option<Box<Active>>>,
    /// Made if somebody looks later still.
    late: OnceLock<Box<Active>>,
}

/// A session that somebody looks at.
#[derive(Default)]
struct Active {
    /// Held while the backend is asked: loads and commits of one session take turns.
    turn: tokio::sync::Mutex<()>,
    /// Whether there is a base.
    loaded: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What was loaded; `None` until it is.
    base: Option<Base>,
    /// What is recorded and not yet written, and what that comes to.
    log: Vec<Change>,
    plan: Plan,
    /// So many of them, from the first, are being written.
    in_flight: usize,
    /// So many of them may be written already, in that attempt: nobody answered.
    unsure: Option<(usize, Attempt)>,
    /// Counts how often the log lost something that was not written.
    revision: u64,
    /// How long the backend has been waited for since it last did something for this request.
    spent: Duration,
    /// Whether the response has left.
    sent: bool,
    /// What the response is to say.
    effect: Option<Effect>,
    /// The ID that the request came with, if its cookie is to be sealed anew.
    stale: Option<Box<Credentials>>,
}

/// When a commit happens.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum When {
    /// Asked for, in between.
    Save,
    /// With the response.
    Response,
    /// With a response that failed, or none at all: then only a sign-out counts.
    Failure,
}

impl Session {
    /// Asks the backend for the session, once; later calls answer at once. The axum extractor has done it.
    ///
    /// To load up front for a whole router, use `axum::middleware::from_extractor::<Session>()`.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`]. That a record cannot be read is an error of [`get`](Self::get).
    pub async fn load(&self) -> Result<(), Error> {
        if self.is_loaded() {
            return Ok(());
        }
        let _permit = self.0.gate.sessions.permit()?;
        let _turn = self.active().turn.lock().await;
        self.load_in_turn().await
    }

    /// The value of that name, or `None`.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if it does not deserialize as a `T`, [`ErrorKind::NotLoaded`] before [`load`](Self::load),
    /// [`ErrorKind::Unreadable`] if the record cannot be read.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        // Deserializing is the caller's code, and runs outside the lock.
        let value = self.readable()?.plan.data.value(name);
        value.map(|value| value.read()).transpose()
    }

    /// All of it, as it is now.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn data(&self) -> Result<Data, Error> {
        Ok(self.readable()?.plan.data.clone())
    }

    /// Writes one value. A visitor without a session gets one with it.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if the value does not serialize.
    pub fn insert(&self, name: &str, value: impl Serialize) -> Result<(), Error> {
        self.record(Change::Set(name.into(), json(value)?))
    }

    /// Makes the new value from the old one. Of changes made this way none is lost, however many requests make them.
    ///
    /// The closure runs once, and again each time that another request has written to the session meanwhile. Write out its
    /// type: `|n: Option<u64>| n.unwrap_or(0) + 1`.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if a value does not serialize, or the old one does not deserialize as a `T`.
    pub fn modify<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        change: impl Fn(Option<T>) -> T + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let change = Change::Modify(name.into(), Change::modifier(change), None);
        let mut tries = 0..TRIES_TO_MODIFY;
        loop {
            // The closure is the caller's code, and runs outside the lock.
            let plan = {
                let mut state = self.lock();
                if !state.is_known() {
                    return state.record(change);
                }
                Plan::on(state.plan.data.clone())
            };
            let settled = change.clone().settle(&plan);
            if let [Change::Failed(error)] = &settled[..] {
                return Err(error.clone());
            }
            let mut state = self.lock();
            // Another clone may have written that name meanwhile. The closure itself may, too: not for ever.
            if state.plan.data.raw(name) == plan.data.raw(name) || tries.next().is_none() {
                // Or all of the data would be copied for the one change.
                drop(plan);
                return settled.into_iter().try_for_each(|change| state.record(change));
            }
        }
    }

    /// Removes one value. That there is none is no error, and no change.
    pub fn remove(&self, name: &str) {
        self.record_plain(Change::Remove(name.into()));
    }

    /// Reads one value and removes it: a message for the next page.
    ///
    /// A response that fails takes nothing, and the message waits for the next one. Of two requests that come at the same time
    /// both may show it.
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
    pub fn take<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let value = self.get(name)?;
        if value.is_some() {
            self.remove(name);
        }
        Ok(value)
    }

    /// Replaces all data with anything that serializes to a JSON object.
    ///
    /// What other requests wrote meanwhile to names that this does not change stays.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if it does not serialize to an object, [`ErrorKind::Unreadable`] if the record cannot be read.
    pub fn update(&self, data: impl Serialize) -> Result<(), Error> {
        let change = Change::Replace(Data::from_serialize(data)?);
        let mut state = self.lock();
        match &state.base {
            Some(Base::Unreadable(error)) if !state.plan.known => Err(error.clone()),
            _ if state.is_known() => {
                let settled = change.settle(&state.plan);
                settled.into_iter().try_for_each(|change| state.record(change))
            }
            _ => state.record(change),
        }
    }

    /// Signs in: gives the session a session key and a new ID, and keeps its data. The old ID ends.
    ///
    /// Call it whenever privileges rise, also for the user who is signed in already. The data of another user is not kept.
    /// An empty key, or one of more than 1024 bytes, fails the commit.
    pub fn bind(&self, key: impl Into<String>) {
        self.record_plain(Change::Bind(key.into()));
    }

    /// Signs in afresh: a new session for a session key, with that data only. The old ID ends.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if the data does not serialize to an object.
    pub fn create(&self, key: impl Into<String>, data: impl Serialize) -> Result<(), Error> {
        self.record(Change::Create(key.into(), Data::from_serialize(data)?))
    }

    /// Gives the session a new ID and keeps its data.
    ///
    /// For routine rotation: the ID before works for [`rework_grace`](crate::Builder::rework_grace) more. When privileges rise,
    /// above all at login, call [`bind`](Self::bind).
    pub fn rework(&self) {
        self.record_plain(Change::Rework);
    }

    /// Signs out: ends this session. Nothing brings it back, not even a request that is under way.
    pub fn delete(&self) {
        self.record_plain(Change::Delete);
    }

    /// Signs out everywhere: ends all sessions of this session's key. One without a key is ended alone.
    pub fn clear(&self) {
        self.record_plain(Change::Clear);
    }

    /// Signs out everywhere else: ends all other sessions of this session's key, and keeps this one. One without a key has
    /// no others.
    ///
    /// With a new password, call [`bind`](Self::bind) too: then this session's old ID, which somebody else may have, ends as
    /// well. As with [`clear`](Self::clear), it is the key that was loaded that counts: somebody who only just signs in has to
    /// [`save`](Self::save) before the others can be ended.
    ///
    /// ```
    /// # use jam_session::{Session, SessionKey};
    /// async fn change_password(SessionKey(user): SessionKey, session: Session) {
    ///     // Check the old password, and keep the new one, first.
    ///     session.clear_others();
    ///     session.bind(user);
    /// }
    /// ```
    pub fn clear_others(&self) {
        self.record_plain(Change::ClearOthers);
    }

    /// The session key, if somebody is signed in: after a recorded [`bind`](Self::bind), [`create`](Self::create) or
    /// [`delete`](Self::delete) the one that there will be. Before [`load`](Self::load) nobody is known to be.
    pub fn key(&self) -> Option<String> {
        let state = self.lock();
        state.plan.key(state.base.as_ref().and_then(Base::key)).map(str::to_owned)
    }

    /// When this session's user signed in to it; `None` if nobody did, or the session is not loaded, or has ended.
    ///
    /// After a recorded [`bind`](Self::bind) or [`create`](Self::create) it is the time of asking, which the one that is stored
    /// will be a moment later. To ask for the password again, `bind` the same key: the session has a new ID then, a new
    /// deadline, its data, and what [`set_ttl`](Self::set_ttl) said.
    ///
    /// ```
    /// use std::time::Duration;
    /// # use jam_session::Session;
    ///
    /// fn signed_in_lately(session: &Session) -> bool {
    ///     // One that is ahead of this clock is of another server's.
    ///     let age = session.signed_in().map(|time| time.elapsed().unwrap_or_default());
    ///     age.is_some_and(|age| age < Duration::from_secs(300))
    /// }
    /// ```
    pub fn signed_in(&self) -> Option<SystemTime> {
        let state = self.lock();
        match (&state.plan.identity, &state.base) {
            (Identity::Bind(_) | Identity::Create(_), _) => Some(time(self.0.gate.sessions.now())),
            (Identity::Keep | Identity::Rework, Some(Base::Live(live, _))) if state.plan.clear != Clearing::All => {
                live.contents.signed_in.map(time)
            }
            _ => None,
        }
    }

    /// The public name of this session, as in [`SessionInfo::handle`](crate::SessionInfo::handle); `None` if there is no
    /// session, or it is not loaded. A login that is only recorded has none yet.
    pub fn handle(&self) -> Option<String> {
        match &self.lock().base {
            Some(Base::Live(live, _)) => Some(live.id.sid().to_owned()),
            _ => None,
        }
    }

    /// Ends this session when it is not used for so long, instead of [`default_ttl`](crate::Builder::default_ttl): "remember
    /// me". It is kept with the session, and never outlasts its deadline. A `ttl` of zero fails the commit.
    pub fn set_ttl(&self, ttl: Duration) {
        self.record_plain(Change::Ttl(ttl));
    }

    /// Writes what was recorded now, and not only with the response.
    ///
    /// Once begun it runs to its end, also when this future is dropped. A response that fails later does not take it back.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the session is gone and what was recorded is dropped, [`ErrorKind::ResponseSent`] if it
    /// would need a cookie and the response has left, and whatever hinders a commit: [`ErrorKind::Unavailable`],
    /// [`ErrorKind::Unreadable`], [`ErrorKind::TooLarge`], [`ErrorKind::Data`]. After all but the first two it is still
    /// recorded.
    pub async fn save(&self) -> Result<(), Error> {
        let _ = self.active();
        Commit::new(self.clone(), When::Save).await
    }
}

/// What the service does with it.
impl Session {
    pub(crate) fn new<'a>(
        gate: Arc<Gate>,
        values: impl Iterator<Item = &'a str>,
        cross_site: bool,
        outer: Option<Self>,
    ) -> Self {
        let mut cookies = String::new();
        for value in values {
            match cookies.is_empty() {
                // There hardly ever are more than one.
                true => cookies.reserve_exact(value.len()),
                false => cookies.push(';'),
            }
            cookies.push_str(value);
        }
        let inner = Inner {
            gate,
            cookies: (!cookies.is_empty()).then(|| cookies.into_boxed_str()),
            cross_site,
            outer,
            active: OnceLock::new(),
            late: OnceLock::new(),
        };
        Self(Arc::new(inner))
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.0.gate
    }

    pub(crate) fn outer(&self) -> Option<&Self> {
        self.0.outer.as_ref()
    }

    /// What the response is to say; `None` if nobody has looked at the session.
    pub(crate) fn outcome(&self) -> Option<Option<Effect>> {
        let active = self.0.active.get()?.as_ref()?;
        Some(lock(&active.state).effect.take())
    }

    /// The commit that goes with the response; `None` if there is nothing to wait for.
    pub(crate) fn close(&self, failed: bool) -> Option<Commit> {
        let active = self.0.active.get_or_init(|| None).as_ref()?;
        if let Ok(_turn) = active.turn.try_lock() {
            let mut state = lock(&active.state);
            if state.log.is_empty() && state.stale.is_none() {
                state.sent = true;
                state.spent = Duration::ZERO;
                return None;
            }
        }
        Some(Commit::new(self.clone(), if failed { When::Failure } else { When::Response }))
    }

    /// The same for a request that is gone: there is no response to carry a cookie.
    pub(crate) fn abandon(&self) -> Option<Commit> {
        let active = self.0.active.get_or_init(|| None).as_ref()?;
        lock(&active.state).stale = None;
        self.close(true)
    }

    pub(crate) fn permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        self.0.gate.sessions.permit()
    }

    /// Whether there is a sign-out that is not written yet.
    pub(crate) fn has_endings(&self) -> bool {
        self.lock().log.iter().any(Change::is_ending)
    }

    pub(crate) async fn commit(self, when: When, permit: Result<OwnedSemaphorePermit, Error>) -> Result<(), Error> {
        let _turn = self.active().turn.lock().await;
        let committed = match &permit {
            Ok(_) => self.commit_in_turn(when).await,
            Err(closed) => Err(closed.clone()),
        };
        if when == When::Save {
            return committed;
        }
        if committed.as_ref().is_err_and(|error| error.kind() != ErrorKind::Unavailable) && self.has_endings() {
            // Whatever else is wrong with what was recorded, it does not keep anybody signed in.
            self.commit_in_turn(When::Failure).await?;
        }
        if committed.is_ok() {
            self.renew_cookie().await;
        }
        self.leave(committed.is_ok());
        committed
    }
}

impl Session {
    /// From here on somebody has looked at it.
    fn active(&self) -> &Active {
        match self.0.active.get_or_init(|| Some(Box::default())) {
            Some(active) => active,
            None => self.0.late.get_or_init(|| {
                let state = State { sent: true, ..State::default() };
                Box::new(Active { state: Mutex::new(state), ..Active::default() })
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.active().state)
    }

    fn readable(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.lock();
        match &state.base {
            None => Err(Error::new(ErrorKind::NotLoaded, "the session was read before it was loaded")),
            Some(Base::Unreadable(error)) if matches!(state.plan.identity, Identity::Keep | Identity::Rework) => {
                Err(error.clone())
            }
            Some(_) => Ok(state),
        }
    }

    fn is_loaded(&self) -> bool {
        self.active().loaded.load(Acquire)
    }

    fn record(&self, change: Change) -> Result<(), Error> {
        let undone = self.lock().undo_before(&change);
        drop(undone);
        self.lock().record(change)
    }

    /// For changes that nothing can be wrong with.
    fn record_plain(&self, change: Change) {
        if let Err(error) = self.record(change) {
            tracing::error!(%error, "a change to a session was not recorded");
        }
    }

    async fn load_in_turn(&self) -> Result<(), Error> {
        if self.is_loaded() {
            return Ok(());
        }
        let (base, stale) = self.within_budget(pin!(self.fetch())).await?;
        if stale.is_some() {
            self.lock().stale = stale;
        }
        self.settle(base, Modifies::Recorded);
        Ok(())
    }

    /// The session that the cookies lead to, and the ID that did if its cookie is to be sealed anew.
    async fn fetch(&self) -> Result<(Base, Option<Box<Credentials>>), Error> {
        let sessions = &self.0.gate.sessions;
        let cookies = self.0.cookies.as_deref().unwrap_or_default();
        let ids = cookies.split(';').filter_map(|text| sessions.presented(text)).take(MAX_COOKIES);
        let mut found: Option<(Arc<Live>, _, _)> = None;
        let mut otherwise = Base::Nothing;
        for id in ids {
            let hash = id.secret.hash();
            match (sessions.look(id.record, &hash).await?, &found) {
                (Found::Live(live), None) => found = Some((live, id, hash)),
                (Found::Live(live), Some((first, ..))) if live.id.owner() != first.id.owner() => {
                    // One of them was planted, and there is no telling which.
                    tracing::warn!("a request came with live sessions of different owners, and got none");
                    return Ok((Base::Nothing, None));
                }
                (Found::Ended, _) => otherwise = Base::Replaced,
                (Found::Unreadable(error), _) if matches!(otherwise, Base::Nothing) => {
                    otherwise = Base::Unreadable(error)
                }
                (Found::Live(_) | Found::Unreadable(_) | Found::Nothing, _) => {}
            }
        }
        let Some((live, id, hash)) = found else { return Ok((otherwise, None)) };
        sessions.touch(&live);
        // Who came with a secret from before a rework has the newest on its way.
        let stale = (id.stale && live.contents.hash.matches(&hash)).then(|| Box::new(id));
        Ok((Base::Live(live, hash), stale))
    }

    /// Takes what was loaded or written for what is there, and applies to it what is recorded.
    fn settle(&self, base: Base, modifies: Modifies) {
        let (mut plan, mut settled, mut revision) = (base.plan(), Vec::new(), None);
        let mut seen = 0;
        loop {
            let new = {
                let mut state = self.lock();
                if revision.replace(state.revision).is_some_and(|revision| revision != state.revision) {
                    (plan, settled, seen) = (base.plan(), Vec::new(), 0);
                }
                if state.log.len() == seen {
                    state.base = Some(base);
                    state.plan = plan;
                    self.active().loaded.store(true, Release);
                    let old = mem::replace(&mut state.log, settled);
                    // Closures are the caller's, and are dropped outside the lock as well.
                    drop(state);
                    return drop(old);
                }
                state.log[seen..].to_vec()
            };
            seen += new.len();
            // Closures run outside the lock, and may record something themselves: then there is more to come.
            for change in new {
                let change = if modifies == Modifies::Again { change.unsettle() } else { change };
                for change in change.settle(&plan) {
                    // What fails does so when it is committed.
                    let _ = plan.apply(&change, base.key(), Modifies::Recorded);
                    settled.push(change);
                }
            }
        }
    }

    async fn commit_in_turn(&self, when: When) -> Result<(), Error> {
        let undone = self.lock().begin(when);
        drop(undone);
        if self.lock().log.is_empty() {
            return Ok(());
        }
        self.load_in_turn().await?;
        let mut dropped = false;
        loop {
            let Some(mut draft) = self.take_draft()? else { break };
            let count = draft.log.len();
            let committed = self.within_budget(pin!(draft.commit(&self.0.gate.sessions))).await;
            match committed {
                Ok(committed) => {
                    dropped |= committed.dropped;
                    let written = {
                        let mut state = self.lock();
                        state.spent = Duration::ZERO;
                        state.effect = committed.effect.or(state.effect.take());
                        state.forget(count)
                    };
                    drop(written);
                    let modifies = if committed.replayed { Modifies::Again } else { Modifies::Recorded };
                    self.settle(committed.base, modifies);
                }
                Err(error) if error.kind() == ErrorKind::ResponseSent => {
                    let refused = self.lock().forget(count);
                    drop(refused);
                    let base = self.lock().base.clone().unwrap_or(Base::Nothing);
                    self.settle(base, Modifies::Again);
                    return Err(error);
                }
                Err(error) => {
                    let mut state = self.lock();
                    state.in_flight = 0;
                    state.unsure = (error.kind() == ErrorKind::Unavailable).then_some((count, draft.attempt));
                    return Err(error);
                }
            }
        }
        match dropped {
            false => Ok(()),
            true if when == When::Save => Err(not_found()),
            true => {
                tracing::info!("changes to a session that is gone were dropped");
                Ok(())
            }
        }
    }

    /// Seals the cookie anew, if what it was sealed with is to go, and nothing else sets it.
    ///
    /// The session is looked at once more: a login or a rework may have answered since, and its cookie must stay.
    async fn renew_cookie(&self) {
        let stale = {
            let mut state = self.lock();
            state.stale.take().filter(|_| state.effect.is_none())
        };
        let Some(stale) = stale else { return };
        let (sessions, hash) = (&self.0.gate.sessions, stale.secret.hash());
        match self.within_budget(pin!(sessions.look(stale.record, &hash))).await {
            Ok(Found::Live(live)) if live.contents.hash.matches(&hash) => {
                let id = sessions.id(stale.record, &stale.secret);
                self.lock().effect = id.ok().map(|id| Effect::Set(id, live.contents.deadline));
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "a cookie was not sealed anew"),
        }
    }

    /// What is to be written next. What may be written already comes alone, and in the same attempt: should it be there,
    /// it is recognised, and nothing is applied twice.
    fn take_draft(&self) -> Result<Option<Draft>, Error> {
        let mut state = self.lock();
        let Some(base) = state.base.clone() else { return Ok(None) };
        let limits = Limits { cross_site: self.0.cross_site, sent: state.sent };
        let (log, plan, attempt) = match &state.unsure {
            Some((count, attempt)) if *count < state.log.len() => {
                let log = state.log[..*count].to_vec();
                let mut plan = base.plan();
                log.iter().try_for_each(|change| plan.apply(change, base.key(), Modifies::Recorded))?;
                (log, plan, attempt.clone())
            }
            Some((_, attempt)) => (state.log.clone(), state.plan.clone(), attempt.clone()),
            None => (state.log.clone(), state.plan.clone(), Attempt::of(&state.plan)?),
        };
        state.in_flight = log.len();
        Ok((!log.is_empty()).then_some(Draft { base, log, plan, attempt, limits }))
    }

    /// The response has left. What it did not bring, nothing brings any more.
    fn leave(&self, committed: bool) {
        let undone = {
            let mut state = self.lock();
            state.sent = true;
            state.spent = Duration::ZERO;
            if committed { Vec::new() } else { state.undo(|_| false) }
        };
        drop(undone);
    }

    /// Waits for the backend for as long as this request still may.
    ///
    /// It takes the work pinned: a commit is large, and would be copied at each hand it goes through.
    async fn within_budget<T>(&self, work: Pin<&mut impl Future<Output = Result<T, Error>>>) -> Result<T, Error> {
        let mut began = None;
        let limit = || {
            began = Some(Instant::now());
            let mut state = self.lock();
            // A stream may go on for hours: what it saves is not one request.
            if state.sent {
                state.spent = Duration::ZERO;
            }
            self.0.gate.sessions.request_time().saturating_sub(state.spent)
        };
        let result = within(limit, work).await;
        if let Some(began) = began {
            self.lock().spent += began.elapsed();
        }
        result.unwrap_or_else(|| Err(too_late()))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // No code of others runs under the lock, so nothing can have stopped halfway.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Whether it is known what a change is made to.
    fn is_known(&self) -> bool {
        self.base.is_some() || self.plan.known
    }

    fn record(&mut self, change: Change) -> Result<(), Error> {
        // Before it is loaded, a closure has nothing to run on.
        if !matches!(change, Change::Modify(_, _, None)) {
            let key = self.base.as_ref().and_then(Base::key);
            self.plan.apply(&change, key, Modifies::Recorded)?;
        }
        self.log.push(change);
        Ok(())
    }

    /// Takes what a change will leave nothing of: a closure that fails must not be in the way of a sign-out. What is being
    /// written, or may be written, is history already.
    fn undo_before(&mut self, change: &Change) -> Vec<Change> {
        if !change.starts_afresh() {
            return Vec::new();
        }
        let history = self.in_flight.max(self.unsure.as_ref().map_or(0, |(count, _)| *count));
        if !self.log.iter().skip(history).any(|earlier| earlier.is_undone_by(change)) {
            return Vec::new();
        }
        self.revision += 1;
        let later = self.log.split_off(history);
        let (undone, kept): (_, Vec<_>) = later.into_iter().partition(|earlier| earlier.is_undone_by(change));
        self.log.extend(kept);
        undone
    }

    /// Takes what a commit starts from: with a response that failed, everything else is undone.
    fn begin(&mut self, when: When) -> Vec<Change> {
        self.in_flight = 0;
        if when == When::Failure { self.undo(Change::is_ending) } else { Vec::new() }
    }

    /// Keeps only some of what is recorded. What is not kept is the caller's to drop, outside the lock: there may be code
    /// of others in it.
    fn undo(&mut self, is_kept: impl Fn(&Change) -> bool) -> Vec<Change> {
        let kept = self.log.iter().filter(|change| is_kept(change)).cloned().collect();
        let all = mem::replace(&mut self.log, kept);
        (self.in_flight, self.unsure) = (0, None);
        self.revision += 1;
        self.plan = self.base.as_ref().map(Base::plan).unwrap_or_default();
        let key = self.base.as_ref().and_then(Base::key);
        for change in self.log.iter() {
            let _ = self.plan.apply(change, key, Modifies::Recorded);
        }
        all
    }

    /// So many changes are done with. They are the caller's to drop, outside the lock.
    fn forget(&mut self, count: usize) -> Vec<Change> {
        (self.in_flight, self.unsure) = (0, None);
        self.revision += 1;
        self.log.drain(..count.min(self.log.len())).collect()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// How many cookies of our name are tried.
const MAX_COOKIES: usize = 3;

/// How often a closure runs for clones that all write the same name.
const TRIES_TO_MODIFY: usize = 8;
