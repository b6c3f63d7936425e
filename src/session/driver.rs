//! The driver of the core: loads, commits and rebases, with a lock, a budget of time, and a backend.
//!
//! [`Pending`] decides what happens next. What is here waits, and decides nothing.

use std::{
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    detached::Detached,
    error::{Error, ErrorKind},
    record::token::Credentials,
    session::{
        change::Change,
        commit::{CookieChange, WriteId},
        origin::Origin,
        pending::{Adopted, Pending, Trigger},
    },
    sessions::{
        background::{OnDrop, Permit},
        engine::Engine,
        loaded::Base,
    },
    timeout::within,
};

/// The session of one request: where it came from, and what is pending.
pub(crate) struct Driver {
    origin: Arc<Origin>,
    /// The values of our cookies as they came, separated by semicolons. Gone once the session is loaded.
    cookies: Mutex<Option<Box<str>>>,
    cross_site: bool,
    /// The session of a layer around this one's.
    outer: Option<Arc<Driver>>,
    first_use: OnceLock<FirstUse>,
}

/// When the session was first looked at or written to. The response depends on the cookie only if that was before it left.
enum FirstUse {
    BeforeResponse(Box<InUse>),
    /// Nobody had used it when the response left. A stream may do so later.
    AfterResponse(OnceLock<Box<InUse>>),
}

/// What the clones of a session that is in use share.
struct InUse {
    /// Held while the backend is asked: the loads and commits of one session take turns. Inside is how long this request has
    /// waited for the backend since that last did something for it.
    turn: tokio::sync::Mutex<Duration>,
    pending: Mutex<Pending>,
}

impl Driver {
    #[inline]
    pub(crate) fn new<'a>(
        origin: Arc<Origin>,
        cookies: impl Iterator<Item = &'a str>,
        cross_site: bool,
        outer: Option<Arc<Self>>,
    ) -> Self {
        let mut joined = String::new();
        for value in cookies {
            match joined.is_empty() {
                // There is hardly ever more than one.
                true => joined.reserve_exact(value.len()),
                false => joined.push(';'),
            }
            joined.push_str(value);
        }
        let cookies = Mutex::new((!joined.is_empty()).then(|| joined.into_boxed_str()));
        Self { origin, cookies, cross_site, outer, first_use: OnceLock::new() }
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

    /// What the response says about the cookie, if the response depends on it at all.
    pub(crate) fn outcome(&self) -> Option<Option<CookieChange>> {
        match self.first_use.get()? {
            FirstUse::BeforeResponse(shared) => Some(shared.pending(Pending::cookie)),
            FirstUse::AfterResponse(_) => None,
        }
    }

    /// The commit that goes with the response; `None` if there is nothing to wait for.
    pub(crate) fn respond(self: &Arc<Self>, failed: impl FnOnce() -> bool) -> Option<Detached<Result<(), Error>>> {
        let shared = match self.first_use.get_or_init(|| FirstUse::AfterResponse(OnceLock::new())) {
            FirstUse::BeforeResponse(shared) => shared,
            FirstUse::AfterResponse(_) => return None,
        };
        if let Ok(mut waited) = shared.turn.try_lock()
            && shared.pending(Pending::leave_if_idle)
        {
            *waited = Duration::ZERO;
            return None;
        }
        Some(self.begin_commit(if failed() { Trigger::Failure } else { Trigger::Response }))
    }

    /// Signs out if the handler asked for it, although there is no response that could carry a cookie: the request was
    /// dropped, or the handler has panicked.
    pub(crate) fn abandon(self: &Arc<Self>) {
        if let Some(FirstUse::BeforeResponse(shared)) = self.first_use.get() {
            shared.pending(Pending::stale);
        }
        // Dropped, the commit goes on in a task.
        drop(self.respond(|| true));
    }

    fn shared(&self) -> &InUse {
        let shared = |response_sent| {
            let pending = Mutex::new(Pending::new(self.cross_site, response_sent));
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
            tracing::error!(error = %error.chain(), "a change to a session was not recorded");
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
        let (base, stale) = self.within_budget(waited, pin!(self.fetch())).await?;
        self.rebase(self.pending(|pending| pending.load(base, stale)));
        // Nothing asks for them again, and a stream may hold its session for hours.
        drop(self.cookies().take());
        Ok(())
    }

    /// What the cookies lead to, and the ID that did if its cookie has to be encrypted again.
    async fn fetch(&self) -> Result<(Base, Option<Box<Credentials>>), Error> {
        let engine = self.engine();
        // No iterator over the cookies: it would be a part of the future, which is moved.
        let (mut at, mut tried) = (0, 0);
        let (mut best, mut stale) = (Base::Nothing, None);
        while tried < MAX_COOKIES
            && let Some(id) = self.next_credentials(&mut at)
        {
            tried += 1;
            match (engine.find(&id).await?, &best) {
                (Base::Live(loaded, _), Base::Live(first, _)) if loaded.id.owner() != first.id.owner() => {
                    // One of them was planted, and nothing tells which.
                    tracing::debug!("a request came with live sessions of different owners, and got none");
                    return Ok((Base::Nothing, None));
                }
                // Of several sessions of one user the first counts.
                (_, Base::Live(..)) => {}
                (Base::Live(loaded, hash), _) => {
                    // A client that came with a previous secret has the newest one on its way.
                    stale = (id.stale && loaded.contents.hash.matches(&hash)).then(|| Box::new(id));
                    best = Base::Live(loaded, hash);
                }
                (Base::Replaced, _) => best = Base::Replaced,
                (Base::Unreadable(error), Base::Nothing) => best = Base::Unreadable(error),
                (Base::Unreadable(_) | Base::Nothing | Base::Gone(..), _) => {}
            }
        }
        if let Base::Live(loaded, _) = &best {
            engine.touch(loaded);
        }
        Ok((best, stale))
    }

    /// The next ID in the cookies, from this place on.
    fn next_credentials(&self, at: &mut usize) -> Option<Credentials> {
        let cookies = self.cookies();
        let cookies = cookies.as_deref()?;
        let mut refused = 0;
        let credentials = loop {
            let Some(rest) = cookies.get(*at..) else { break None };
            let text = &rest[..memchr::memchr(b';', rest.as_bytes()).unwrap_or(rest.len())];
            *at += text.len() + 1;
            match self.engine().credentials(text) {
                Some(credentials) => break Some(credentials),
                None => refused += 1,
            }
        };
        if refused > 0 {
            // One line for all of them: a stranger can send any number.
            tracing::debug!(refused, "cookies of our name are not valid IDs");
        }
        credentials
    }

    fn cookies(&self) -> MutexGuard<'_, Option<Box<str>>> {
        self.cookies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A commit that, once begun, runs to its end.
    pub(crate) fn begin_commit(self: &Arc<Self>, trigger: Trigger) -> Detached<Result<(), Error>> {
        self.shared();
        let (driver, permit) = (Arc::clone(self), self.engine().permit());
        Detached::new(
            async move {
                // A closure of the handler may panic in the commit. That does not undo a sign-out.
                let sign_out = OnDrop::new(|| {
                    if trigger != Trigger::Save && driver.pending(|pending| pending.has_endings()) {
                        drop(driver.begin_commit(Trigger::Failure));
                    }
                });
                let committed = driver.commit_with(trigger, &permit).await;
                sign_out.disarm();
                committed
            },
            |committed| {
                if let Err(error) = committed {
                    tracing::warn!(error = %error.chain(), "the changes of a request without a client were not written");
                }
            },
        )
    }

    async fn commit_with(&self, trigger: Trigger, permit: &Result<Permit, Error>) -> Result<(), Error> {
        let mut waited = self.shared().turn.lock().await;
        let committed = match permit {
            Ok(_) => self.commit(trigger, &mut waited).await,
            Err(closed) => Err(closed.clone()),
        };
        if trigger == Trigger::Save {
            return committed;
        }
        let refused = committed.as_ref().is_err_and(|error| error.kind() != ErrorKind::Unavailable);
        if refused && self.pending(|pending| pending.has_endings()) {
            // Whatever else is wrong with the changes does not keep anyone signed in.
            self.commit(Trigger::Failure, &mut waited).await?;
        }
        if committed.is_ok() {
            self.renew_cookie(&mut waited).await;
        }
        self.pending(|pending| pending.leave(committed.is_ok()));
        *waited = Duration::ZERO;
        committed
    }

    async fn commit(&self, trigger: Trigger, waited: &mut Duration) -> Result<(), Error> {
        let (anything, _) = self.pending(|pending| pending.begin(trigger));
        if !anything {
            return Ok(());
        }
        self.load_in_turn(waited).await?;
        loop {
            let Some(mut commit) = self.pending(|pending| pending.next(&mut WriteId::new))? else { break };
            let result = self.within_budget(waited, pin!(commit.run(self.engine()))).await;
            if result.is_ok() {
                *waited = Duration::ZERO;
            }
            let (result, adopted) = self.pending(|pending| pending.finish(result));
            self.rebase(adopted);
            result?;
        }
        self.pending(|pending| pending.outcome(trigger))
    }

    /// Applies the changes to another base, if there are any. Closures of the application run here, and are dropped here.
    fn rebase(&self, mut adopted: Adopted) {
        while let Adopted::After(mut rebase) = adopted {
            rebase.run();
            adopted = self.pending(|pending| pending.adopt(rebase));
        }
    }

    /// Encrypts the cookie again if its encryption key is to go, and nothing else sets the cookie.
    ///
    /// The session is loaded once more, because the cookie of a login or a rotation that has answered since must stay.
    async fn renew_cookie(&self, waited: &mut Duration) {
        let Some(stale) = self.pending(Pending::stale) else { return };
        let engine = self.engine();
        match self.within_budget(waited, pin!(engine.find(&stale))).await {
            Ok(Base::Live(loaded, hash)) if loaded.contents.hash.matches(&hash) => {
                let id = engine.id(stale.record, &stale.secret).ok();
                let cookie = id.map(|id| CookieChange::Set(id, loaded.contents.deadline));
                self.pending(|pending| pending.set_cookie(cookie));
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "a cookie was not encrypted again"),
        }
    }

    /// Waits for the backend for as long as this request still may.
    ///
    /// It takes the work pinned, because a commit is large and would be copied at each call.
    async fn within_budget<T>(
        &self,
        waited: &mut Duration,
        work: Pin<&mut impl Future<Output = Result<T, Error>>>,
    ) -> Result<T, Error> {
        let mut began = None;
        let limit = || {
            began = Some(Instant::now());
            // A stream may go on for hours: all that it saves is not one request.
            if self.pending(|pending| pending.response_sent()) {
                *waited = Duration::ZERO;
            }
            self.engine().request_time().saturating_sub(*waited)
        };
        let result = within(limit, work).await;
        if let Some(began) = began {
            *waited += began.elapsed();
        }
        result.unwrap_or_else(|| Err(Error::too_late()))
    }
}

impl InUse {
    #[inline]
    fn pending<T>(&self, run: impl FnOnce(&mut Pending) -> T) -> T {
        // No code of the application runs under the lock, so nothing can have stopped halfway.
        run(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How many cookies of our name are tried.
const MAX_COOKIES: usize = 3;
