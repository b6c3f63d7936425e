//! What a handler holds: it reads what was loaded, and records what is to change.
//!
//! Nothing is loaded until it is wanted, and nothing is written until the response is ready: then all that was recorded
//! goes to the backend in one atomic call. [`Session::save`] does it earlier.
//!
//! # Several verbs in one request
//!
//! [`clear`](Session::clear) runs first, on the key that was loaded. Then the session gets its identity: a
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
//! | `clear`, then `bind` or `create` | all others ended, and signed in |
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

use std::{
    fmt, mem,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};

pub(crate) use crate::commit::Effect;
use crate::{
    Data, Error, ErrorKind, SessionId,
    change::{Change, Identity, Modifies, Plan},
    commit::{Base, Draft, Limits},
    data::json,
    service::Gate,
    sessions::{Found, Live, not_found, random_version, too_late},
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
    /// Held while the backend is asked: loads and commits of one session take turns.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whether anybody has looked at the session, or written to it: then the response depends on the cookie.
    looked_at: bool,
    /// What was loaded; `None` until it is.
    base: Option<Base>,
    /// What is recorded and not yet written, and what that comes to.
    log: Vec<Change>,
    plan: Plan,
    /// So many of them may be written already, under that version: nobody answered.
    unsure: Option<(usize, i64)>,
    /// Counts what changes base and plan.
    revision: u64,
    /// How long the backend has been waited for since it last did something for this request.
    spent: Duration,
    /// Whether the response has left.
    sent: bool,
    /// What the response is to say.
    effect: Option<Effect>,
}

/// When a commit happens.
#[derive(Clone, Copy, PartialEq)]
enum When {
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
        drop(self.look());
        if self.is_loaded() {
            return Ok(());
        }
        let _turn = self.0.turn.lock().await;
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
        self.record(Change::Set(name.to_owned(), json(value)?))
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
        let change = Change::Modify(name.to_owned(), Change::modifier(change), None);
        loop {
            let (plan, revision) = {
                let mut state = self.look();
                if state.base.is_none() {
                    return state.record(change);
                }
                (Plan::on(state.plan.data.clone()), state.revision)
            };
            // The closure is the caller's code, and runs outside the lock.
            let settled = change.clone().settle(&plan)?;
            let mut state = self.look();
            if state.revision == revision {
                return settled.into_iter().try_for_each(|change| state.record(change));
            }
        }
    }

    /// Removes one value. That there is none is no error, and no change.
    pub fn remove(&self, name: &str) {
        self.record_plain(Change::Remove(name.to_owned()));
    }

    /// Replaces all data with anything that serializes to a JSON object.
    ///
    /// What other requests wrote meanwhile to names that this does not change stays.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if it does not serialize to an object.
    pub fn update(&self, data: impl Serialize) -> Result<(), Error> {
        let change = Change::Replace(Data::from_serialize(data)?);
        let mut state = self.look();
        match state.base {
            None => state.record(change),
            Some(_) => {
                let settled = change.settle(&state.plan)?;
                settled.into_iter().try_for_each(|change| state.record(change))
            }
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

    /// The session key, if somebody is signed in: after a recorded [`bind`](Self::bind), [`create`](Self::create) or
    /// [`delete`](Self::delete) the one that there will be.
    pub fn key(&self) -> Option<String> {
        let state = self.look();
        state.plan.key(state.base.as_ref().and_then(Base::key)).map(str::to_owned)
    }

    /// The public name of this session, as in [`SessionInfo::handle`](crate::SessionInfo::handle); `None` if there is no
    /// session. A login that is only recorded has none yet.
    pub fn handle(&self) -> Option<String> {
        match &self.look().base {
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
        drop(self.look());
        Commit::new(self.clone().commit(When::Save)).await
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
            if !cookies.is_empty() {
                cookies.push(';');
            }
            cookies.reserve_exact(value.len());
            cookies.push_str(value);
        }
        let inner = Inner {
            gate,
            cookies: (!cookies.is_empty()).then(|| cookies.into_boxed_str()),
            cross_site,
            outer,
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::default(),
        };
        Self(Arc::new(inner))
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.0.gate
    }

    pub(crate) fn outer(&self) -> Option<&Self> {
        self.0.outer.as_ref()
    }

    pub(crate) fn was_looked_at(&self) -> bool {
        self.lock().looked_at
    }

    /// What the response is to say.
    pub(crate) fn effect(&self) -> Option<Effect> {
        self.lock().effect.take()
    }

    /// The commit that goes with the response; `None` if there is nothing to wait for.
    pub(crate) fn close(&self, failed: bool) -> Option<Commit> {
        if let Ok(_turn) = self.0.turn.try_lock() {
            let mut state = self.lock();
            if state.log.is_empty() {
                state.sent = true;
                return None;
            }
        }
        let when = if failed { When::Failure } else { When::Response };
        Some(Commit::new(self.clone().commit(when)))
    }

    /// The request is gone, without a response.
    fn abandon(&self) {
        if let Some(commit) = self.close(true) {
            // Dropping an unfinished commit leaves it to a task.
            drop(commit);
        }
    }
}

impl Session {
    fn look(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.looked_at = true;
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of others runs under the lock, so nothing can have stopped halfway.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn readable(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.look();
        let kept = matches!(state.plan.identity, Identity::Keep | Identity::Rework) && !state.plan.clear;
        match &state.base {
            None => Err(Error::new(ErrorKind::NotLoaded, "the session was read before it was loaded")),
            Some(Base::Unreadable(error)) if kept => Err(error.clone()),
            Some(_) => Ok(state),
        }
    }

    fn is_loaded(&self) -> bool {
        self.lock().base.is_some()
    }

    fn record(&self, change: Change) -> Result<(), Error> {
        self.look().record(change)
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
        let _permit = self.0.gate.sessions.permit().await?;
        let base = self.within_budget(pin!(self.fetch())).await?;
        self.settle(base)
    }

    /// The session that the cookies lead to.
    async fn fetch(&self) -> Result<Base, Error> {
        let sessions = &self.0.gate.sessions;
        let cookies = self.0.cookies.as_deref().unwrap_or_default();
        let ids = cookies.split(';').filter_map(SessionId::parse).take(MAX_COOKIES);
        let mut found: Option<(Box<Live>, _)> = None;
        let mut otherwise = Base::Nothing;
        for (id, secret) in ids {
            let hash = secret.hash();
            match (sessions.look(id, &hash).await?, &found) {
                (Found::Live(live), None) => found = Some((live, hash)),
                (Found::Live(live), Some((first, _))) if live.id.owner() != first.id.owner() => {
                    // One of them was planted, and there is no telling which.
                    tracing::warn!("a request came with live sessions of different owners, and got none");
                    return Ok(Base::Nothing);
                }
                (Found::Ended, _) => otherwise = Base::Replaced,
                (Found::Unreadable(error), _) if matches!(otherwise, Base::Nothing) => {
                    otherwise = Base::Unreadable(error)
                }
                (Found::Live(_) | Found::Unreadable(_) | Found::Nothing, _) => {}
            }
        }
        let Some((live, hash)) = found else { return Ok(otherwise) };
        sessions.touch(&live);
        Ok(Base::Live(live, hash))
    }

    /// Takes what was loaded or written for what is there, and applies to it what is recorded.
    fn settle(&self, base: Base) -> Result<(), Error> {
        loop {
            let (log, revision) = {
                let state = self.lock();
                (state.log.clone(), state.revision)
            };
            // Closures are the caller's code, and run outside the lock.
            let mut plan = Plan::on(base.data());
            let mut settled = Vec::with_capacity(log.len());
            for change in log {
                for change in change.settle(&plan)? {
                    plan.apply(&change, base.key(), Modifies::Recorded)?;
                    settled.push(change);
                }
            }
            let mut state = self.lock();
            if state.revision == revision {
                state.base = Some(base);
                state.plan = plan;
                state.log = settled;
                state.revision += 1;
                return Ok(());
            }
        }
    }

    async fn commit(self, when: When) -> Result<(), Error> {
        let _turn = self.0.turn.lock().await;
        let committed = self.commit_in_turn(when).await;
        if when != When::Save {
            let mut state = self.lock();
            state.sent = true;
            state.spent = Duration::ZERO;
        }
        committed
    }

    async fn commit_in_turn(&self, when: When) -> Result<(), Error> {
        {
            let mut state = self.lock();
            if when == When::Failure {
                state.keep_endings();
            }
            if state.log.is_empty() {
                return Ok(());
            }
        }
        self.load_in_turn().await?;
        let _permit = self.0.gate.sessions.permit().await?;
        let mut dropped = false;
        while let Some(draft) = self.take_draft()? {
            let (log, version) = (Arc::clone(&draft.log), draft.version);
            let work = pin!(draft.commit(&self.0.gate.sessions));
            match self.within_budget(work).await {
                Ok(committed) => {
                    dropped |= committed.dropped;
                    let mut state = self.lock();
                    state.spent = Duration::ZERO;
                    state.unsure = None;
                    state.effect = committed.effect.or(state.effect.take());
                    drop(state);
                    self.settle(committed.base)?;
                }
                Err(error) => {
                    self.put_back(log, version, error.kind())?;
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

    /// What is to be written next. What may be written already comes alone, and under the same version: should it be there,
    /// the backend shows that version, and nothing is applied twice.
    fn take_draft(&self) -> Result<Option<Draft>, Error> {
        let mut state = self.lock();
        let Some(base) = state.base.clone() else { return Ok(None) };
        let limits = Limits { cross_site: self.0.cross_site, sent: state.sent };
        let (log, plan, version) = match state.unsure {
            Some((count, version)) => {
                let count = count.min(state.log.len());
                let later = state.log.split_off(count);
                let log = mem::replace(&mut state.log, later);
                let mut plan = Plan::on(base.data());
                log.iter().try_for_each(|change| plan.apply(change, base.key(), Modifies::Recorded))?;
                (log, plan, version)
            }
            None => (mem::take(&mut state.log), state.plan.clone(), random_version()?),
        };
        Ok((!log.is_empty()).then(|| Draft { base, log: Arc::new(log), plan, version, limits }))
    }

    /// Records again what was not written. It comes before what was recorded meanwhile.
    fn put_back(&self, log: Arc<Vec<Change>>, version: i64, kind: ErrorKind) -> Result<(), Error> {
        let mut state = self.lock();
        if kind == ErrorKind::ResponseSent {
            let base = state.base.clone();
            drop(state);
            return base.map_or(Ok(()), |base| self.settle(base));
        }
        state.unsure = (kind == ErrorKind::Unavailable).then_some((log.len(), version));
        let later = mem::replace(&mut state.log, Arc::unwrap_or_clone(log));
        state.log.extend(later);
        Ok(())
    }

    /// Waits for the backend for as long as this request still may.
    ///
    /// It takes the work pinned: a commit is large, and would be copied at each hand it goes through.
    async fn within_budget<T>(&self, work: Pin<&mut impl Future<Output = Result<T, Error>>>) -> Result<T, Error> {
        let left = self.0.gate.sessions.request_time().saturating_sub(self.lock().spent);
        let began = Instant::now();
        let result = timeout(left, work).await;
        self.lock().spent += began.elapsed();
        result.map_err(|_| too_late())?
    }
}

impl State {
    fn record(&mut self, change: Change) -> Result<(), Error> {
        // Before it is loaded, a closure has nothing to run on.
        if !matches!(change, Change::Modify(_, _, None)) {
            let key = self.base.as_ref().and_then(Base::key);
            self.plan.apply(&change, key, Modifies::Recorded)?;
        }
        self.log.push(change);
        self.revision += 1;
        Ok(())
    }

    /// Takes back everything but that somebody signs out.
    fn keep_endings(&mut self) {
        self.log.retain(|change| matches!(change, Change::Delete | Change::Clear));
        self.unsure = None;
        self.plan = Plan::on(self.base.as_ref().map(Base::data).unwrap_or_default());
        for change in &self.log {
            let key = self.base.as_ref().and_then(Base::key);
            // Neither of the two can fail.
            let _ = self.plan.apply(change, key, Modifies::Recorded);
        }
        self.revision += 1;
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// A request on its way through the handler. Dropped there, by a panic or because the client left, it still signs out.
pub(crate) struct Visit(Option<Session>);

impl Visit {
    pub(crate) fn new(session: Session) -> Self {
        Self(Some(session))
    }

    /// The handler has answered.
    pub(crate) fn end(mut self) -> Option<Session> {
        self.0.take()
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(session) = &self.0 {
            session.abandon();
        }
    }
}

/// A commit that, once begun, runs to its end: dropped before, it goes on in a task of its own.
pub(crate) struct Commit(Option<Pin<Box<Work>>>);

type Work = dyn Future<Output = Result<(), Error>> + Send;

impl Commit {
    fn new(work: impl Future<Output = Result<(), Error>> + Send + 'static) -> Self {
        Self(Some(Box::pin(work)))
    }
}

impl Future for Commit {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.0 else { return Poll::Ready(Ok(())) };
        let result = work.as_mut().poll(cx);
        if result.is_ready() {
            self.0 = None;
        }
        result
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        let Some(work) = self.0.take() else { return };
        match Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move {
                    if let Err(error) = work.await {
                        tracing::warn!(%error, "what a request without a client recorded was not written");
                    }
                });
            }
            Err(_) => tracing::warn!("what a request recorded was not written: there is no runtime any more"),
        }
    }
}

/// How many cookies of our name are tried.
const MAX_COOKIES: usize = 3;
