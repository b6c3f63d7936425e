//! The async driver of a session: loads, commits and rebases, with a lock, a time budget and a backend.
//!
//! [`Pending`] decides what happens next. The driver only waits, and decides nothing.

use std::{
    mem,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    clock::millis,
    detached::Detached,
    error::{Error, ErrorKind},
    log,
    record::token::Credentials,
    session::{
        authority::Trigger,
        change::{Change, Staged},
        commit::{CookieChanges, RequestFacts},
        origin::Origin,
        pending::Pending,
        presented::{Base, Besides, CookieValue, Cookies, Presented},
        rebase::Adopted,
        write_id::WriteId,
    },
    sessions::{
        background::{OnDrop, Permit},
        engine::Engine,
        loaded::Opened,
        stream::Watched,
        watch::Ending,
    },
    timeout::within,
};

/// The session of one request: its origin and its pending changes.
pub(crate) struct Driver {
    origin: Arc<Origin>,
    slot: Mutex<Slot>,
    request: RequestFacts,
    /// The session of an outer layer.
    outer: Option<Arc<Driver>>,
    first_use: OnceLock<FirstUse>,
}

/// Only one of these is needed at a time. Sharing the space matters, because there may be very many idle streams.
enum Slot {
    /// Before the session is loaded.
    Cookies(Cookies),
    Watching(Watching),
}

/// The state that the streams of a session share.
#[derive(Default)]
struct Watching {
    /// The number of endings when the session was last loaded or written.
    endings: u64,
    /// Kept as long as the session, because a handler may make a new future for each message of a socket.
    watched: Option<Box<Watched>>,
}

/// What a stream waits for.
pub(crate) enum Bound {
    To(Watched),
    /// The session of this request has ended.
    Gone(Ending),
    /// The request has no session.
    ToNothing,
}

/// When the session was first used. The response depends on the cookie only if that was before the response was sent.
enum FirstUse {
    BeforeResponse(Box<InUse>),
    /// The session was unused when the response was sent. A stream may still use it.
    AfterResponse(OnceLock<Box<InUse>>),
}

/// The state that the clones of a session share once it is used.
struct InUse {
    /// Held during backend calls, so that the loads and commits of one session take turns. It contains how much of the time
    /// budget this request has used.
    turn: tokio::sync::Mutex<Duration>,
    pending: Mutex<Pending>,
}

impl Driver {
    #[inline]
    pub(crate) fn new<'a>(
        origin: Arc<Origin>,
        cookies: impl Iterator<Item = CookieValue<'a>>,
        cross_site: bool,
        outer: Option<Arc<Self>>,
    ) -> Self {
        let cookies = Cookies::collect(cookies);
        let user_cookie = cookies.as_ref().is_some_and(Cookies::has_users);
        let visitor_cookie = cookies.as_ref().is_some_and(Cookies::has_visitors);
        let slot = cookies.map_or_else(|| Slot::Watching(Watching::default()), Slot::Cookies);
        let arrived = origin.engine().policy().clock.elapsed();
        let request = RequestFacts { arrived, cross_site, user_cookie, visitor_cookie, user_id: false };
        Self { origin, slot: Mutex::new(slot), request, outer, first_use: OnceLock::new() }
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        self.origin.engine()
    }

    pub(crate) fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    pub(crate) fn outer(&self) -> Option<&Arc<Self>> {
        self.outer.as_ref()
    }

    /// Returns the cookies that the response sets and removes, if the session was used.
    pub(crate) fn outcome(&self) -> Option<CookieChanges> {
        match self.first_use.get()? {
            FirstUse::BeforeResponse(shared) => Some(shared.pending(Pending::cookies)),
            FirstUse::AfterResponse(_) => None,
        }
    }

    /// Returns the commit for the response, or `None` if there is nothing to wait for.
    pub(crate) fn respond(self: &Arc<Self>, failed: impl FnOnce() -> bool) -> Option<Detached<Result<(), Error>>> {
        let shared = match self.first_use.get_or_init(|| FirstUse::AfterResponse(OnceLock::new())) {
            FirstUse::BeforeResponse(shared) => shared,
            FirstUse::AfterResponse(_) => return None,
        };
        if let Ok(mut waited) = shared.turn.try_lock()
            && shared.pending(|pending| self.due(pending).is_none() && pending.leave_if_idle())
        {
            *waited = Duration::ZERO;
            return None;
        }
        Some(self.begin_commit(if failed() { Trigger::Failure } else { Trigger::Response }))
    }

    /// Commits a recorded sign-out although there is no response, because the request was cancelled or the handler panicked.
    pub(crate) fn abandon(self: &Arc<Self>) {
        if let FirstUse::BeforeResponse(_) = self.first_use.get_or_init(|| FirstUse::AfterResponse(OnceLock::new())) {
            // A dropped commit continues in a task.
            drop(self.begin_commit(Trigger::Abandoned));
        }
    }

    fn shared(&self) -> &InUse {
        let shared = |response_sent| {
            let pending = Mutex::new(Pending::new(self.request, response_sent));
            Box::new(InUse { turn: tokio::sync::Mutex::new(Duration::ZERO), pending })
        };
        match self.first_use.get_or_init(|| FirstUse::BeforeResponse(shared(false))) {
            FirstUse::BeforeResponse(shared) => shared,
            FirstUse::AfterResponse(late) => late.get_or_init(|| shared(true)),
        }
    }

    #[inline]
    pub(crate) fn pending<T>(&self, run: impl FnOnce(&mut Pending) -> T) -> T {
        self.shared().pending(run)
    }

    pub(crate) fn stage(&self, change: Change) -> Result<(), Error> {
        self.pending(|pending| pending.stage(change)).map(drop)
    }

    /// Records a change that cannot fail.
    pub(crate) fn stage_plain(&self, change: Change) {
        if let Err(error) = self.stage(change) {
            let error = error.chain();
            log::limited!(error, self.engine().limit(), (%error,), "could not record a change to a session");
        }
    }

    /// Loads the session once.
    pub(crate) async fn load(&self) -> Result<(), Error> {
        if self.pending(|pending| pending.is_loaded()) {
            return Ok(());
        }
        let _permit = self.engine().permit()?;
        let mut waited = self.shared().turn.lock().await;
        self.load_in_turn(&mut waited).await
    }

    async fn load_in_turn(&self, waited: &mut Duration) -> Result<(), Error> {
        if self.pending(|pending| pending.is_loaded()) {
            return Ok(());
        }
        let endings = self.engine().watchers().endings();
        let (base, besides, user_id) = self.within_budget(waited, pin!(self.fetch())).await?;
        self.rebase(self.pending(|pending| pending.load(base, besides, user_id)));
        // The cookies are no longer needed.
        self.slot().set_endings(endings);
        Ok(())
    }

    /// Returns what a stream that begins now waits for. The session must be loaded.
    pub(crate) fn bound(&self) -> Bound {
        let (base, had_session) = self.pending(|pending| (pending.base().cloned(), pending.had_session()));
        let mut slot = self.slot();
        let Watching { endings, mut watched } = slot.take_watching();
        // A stream that watched the session knows why it has ended.
        let why_gone = |watched: Option<&Watched>| watched.and_then(Watched::ending).unwrap_or(Ending::SignedOut);
        let bound = match base {
            Some(Base::Live(opened)) => {
                let loaded = &opened.loaded;
                let known = watched.take().filter(|watched| watched.is(loaded));
                let now = known.map_or_else(
                    || self.engine().watch(loaded, endings, self.request.arrived),
                    |watched| watched.since(loaded),
                );
                watched = Some(Box::new(now.clone()));
                Bound::To(now)
            }
            Some(Base::Gone(_)) => Bound::Gone(why_gone(watched.as_deref())),
            Some(Base::Nothing) if had_session => Bound::Gone(why_gone(watched.as_deref())),
            _ => Bound::ToNothing,
        };
        *slot = Slot::Watching(Watching { endings, watched });
        bound
    }

    /// Counts as use of the session.
    pub(crate) async fn touch(&self) -> Result<(), Error> {
        self.load().await?;
        match self.bound() {
            Bound::To(watched) => self.engine().use_watched(&watched).await,
            Bound::Gone(_) | Bound::ToNothing => Err(Error::not_found()),
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks up the sessions of the cookies. Also returns whether they contain an ID of a user's session.
    async fn fetch(&self) -> Result<(Base, Option<Box<Besides>>, bool), Error> {
        let engine = self.engine();
        // No iterator over the cookies, because it would become part of the future, which is moved.
        let (mut presented, mut at, mut loads) = (Presented::default(), 0, 0);
        while let Some(id) = self.next_id(&mut at, &mut presented) {
            if loads == MAX_LOADS {
                presented.take_too_many();
                break;
            }
            loads += 1;
            presented.take(engine.find(&id).await?);
        }
        if let Some(loaded) = presented.live() {
            engine.touch(loaded);
        }
        if presented.malformed > 0 {
            // One message for all of them, because a client can send any number.
            log::debug!(count = presented.malformed, "session cookies do not contain valid IDs");
        }
        let user_id = presented.user_id;
        let (base, besides) = presented.finish();
        Ok((base, besides, user_id))
    }

    /// Returns the next ID in the cookies from this position.
    fn next_id(&self, at: &mut usize, presented: &mut Presented) -> Option<Credentials> {
        match &*self.slot() {
            Slot::Cookies(cookies) => cookies.next_id(at, presented, self.engine()),
            Slot::Watching(_) => None,
        }
    }

    /// Begins a commit. Once begun, it runs to completion.
    pub(crate) fn begin_commit(self: &Arc<Self>, trigger: Trigger) -> Detached<Result<(), Error>> {
        self.shared();
        let (driver, permit) = (Arc::clone(self), self.engine().permit());
        Detached::new(
            async move {
                // A closure of the handler may panic during the commit. A sign-out must still take effect.
                let sign_out = OnDrop::new(|| {
                    if trigger != Trigger::Save {
                        drop(driver.begin_commit(Trigger::Abandoned));
                    }
                });
                let committed = driver.commit_with(trigger, &permit).await;
                sign_out.disarm();
                committed
            },
            |committed| {
                if let Err(error) = committed {
                    error.log("could not write the changes of a cancelled request");
                }
            },
        )
    }

    async fn commit_with(&self, trigger: Trigger, permit: &Result<Permit, Error>) -> Result<(), Error> {
        let mut waited = self.shared().turn.lock().await;
        let mut committed = match permit {
            Ok(_) => self.commit(trigger, &mut waited).await,
            Err(closed) => Err(closed.clone()),
        };
        if trigger == Trigger::Save {
            return committed;
        }
        let refused = committed.as_ref().is_err_and(|error| error.kind() != ErrorKind::Unavailable);
        if refused && self.pending(|pending| pending.has_endings()) {
            // A failure of other changes must not keep the user signed in.
            if let Err(error) = self.commit(Trigger::Failure, &mut waited).await {
                committed = Err(error);
            }
        }
        if committed.is_ok() && trigger == Trigger::Response {
            self.renew_cookie(&mut waited).await;
        }
        self.pending(|pending| pending.leave(committed.is_ok()));
        self.remove_orphan();
        *waited = Duration::ZERO;
        committed
    }

    async fn commit(&self, trigger: Trigger, waited: &mut Duration) -> Result<(), Error> {
        let (anything, _) = self.pending(|pending| pending.begin(trigger));
        self.remove_orphan();
        if !anything {
            return Ok(());
        }
        self.load_in_turn(waited).await?;
        loop {
            let engine = self.engine();
            let mut new_id = |plan, base: &Base, staged: &Staged| WriteId::new(engine, plan, base, staged);
            let Some(mut commit) = self.pending(|pending| pending.next(&mut new_id))? else { break };
            let endings = engine.watchers().endings();
            let result = self.within_budget(waited, pin!(commit.run(engine))).await;
            if let Ok(committed) = &result {
                self.slot().set_endings(endings);
                *waited = Duration::ZERO;
                commit.tell_refusal(engine, committed);
            }
            let progress = commit.progress.take();
            let (result, adopted) = self.pending(|pending| pending.finish(result, progress));
            self.rebase(adopted);
            self.remove_orphan();
            result?;
        }
        self.pending(|pending| pending.outcome(trigger))
    }

    /// Applies the changes to another base, if there are any. The application's closures run and are dropped here.
    fn rebase(&self, mut adopted: Adopted) {
        while let Adopted::After(mut rebase) = adopted {
            rebase.run();
            adopted = self.pending(|pending| pending.adopt(rebase));
        }
    }

    /// Removes a new session whose ID no response will carry.
    fn remove_orphan(&self) {
        if let Some(id) = self.pending(Pending::orphan).and_then(|new| new.sent()) {
            self.engine().remove_orphan(id);
        }
    }

    /// Returns the session if its cookie has to be renewed.
    fn due(&self, pending: &Pending) -> Option<Opened> {
        let max_age = self.origin.max_age.map(millis)?;
        pending.due(|opened| opened.loaded.contents.needs_new_secret(max_age, || self.engine().now()))
    }

    /// Gives a session a new secret, which sets a new cookie, long before the old cookie ends. If this fails, the next request
    /// tries again.
    async fn renew_cookie(&self, waited: &mut Duration) {
        let Some(opened) = self.pending(|pending| self.due(pending)) else { return };
        match self.within_budget(waited, pin!(self.engine().renew_secret(&opened))).await {
            Ok(Some((opened, id))) => {
                let cookies = CookieChanges::set(&opened.loaded, id);
                self.pending(|pending| pending.rotated(opened, cookies));
            }
            Ok(None) => {}
            Err(error) => log::debug!(%error, "could not renew a cookie that is about to expire"),
        }
    }

    /// Waits for the backend within the remaining time budget of this request.
    ///
    /// It takes the future pinned, because a commit is large and would be copied at each call.
    async fn within_budget<T>(
        &self,
        waited: &mut Duration,
        work: Pin<&mut impl Future<Output = Result<T, Error>>>,
    ) -> Result<T, Error> {
        let mut began = None;
        let limit = || {
            began = Some(Instant::now());
            // A stream may run for hours, so each of its saves gets a new budget.
            if self.pending(|pending| pending.response_sent()) {
                *waited = Duration::ZERO;
            }
            self.engine().request_time().saturating_sub(*waited)
        };
        let result = within(limit, work).await;
        if let Some(began) = began {
            *waited += began.elapsed();
        }
        result.unwrap_or_else(|| Err(self.engine().too_late()))
    }
}

/// Runs when the last clone of a session is dropped.
impl Drop for Driver {
    fn drop(&mut self) {
        let shared = match self.first_use.get() {
            Some(FirstUse::BeforeResponse(shared)) => Some(shared),
            Some(FirstUse::AfterResponse(late)) => late.get(),
            None => None,
        };
        if shared.is_some_and(|shared| shared.pending(|pending| pending.is_left_unsaved())) {
            log::limited!(
                warn,
                self.engine().limit(),
                (),
                "changes that were made after the response was sent were never saved: call `save`"
            );
        }
    }
}

impl Slot {
    /// Takes out the state of the streams. The caller puts it back.
    fn take_watching(&mut self) -> Watching {
        match mem::replace(self, Self::Watching(Watching::default())) {
            Self::Watching(watching) => watching,
            Self::Cookies(_) => Watching::default(),
        }
    }

    fn set_endings(&mut self, endings: u64) {
        *self = Self::Watching(Watching { endings, ..self.take_watching() });
    }
}

impl InUse {
    #[inline]
    fn pending<T>(&self, run: impl FnOnce(&mut Pending) -> T) -> T {
        // No application code runs under the lock, so a poisoned state cannot be half-changed.
        run(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How many sessions are loaded for the cookies of one request.
const MAX_LOADS: usize = 3;
