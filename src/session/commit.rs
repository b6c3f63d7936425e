//! The commit: turns a request's changes into calls of the session engine.
//!
//! Plain changes are here. What signs in is in [`login`](super::login), what signs out in [`sign_out`](super::sign_out).

use std::{mem, sync::Arc, time::Duration};

use crate::{
    clock::millis,
    error::{Error, ErrorKind},
    events::{EventKind, Refusal},
    random::random_version,
    record::{
        data::Data,
        token::{Secret, SecretHash, SessionId},
    },
    session::{
        authority::{Plan, SignOut},
        change::{Change, Identity, Staged},
        presented::{Base, Besides},
    },
    sessions::{
        engine::{Conditions, Engine, NewId, NewSession, check_key},
        loaded::{Loaded, Opened, WriteOutcome},
    },
};

/// What a request wants to be written.
pub(crate) struct Commit {
    pub(crate) plan: Plan,
    pub(crate) base: Base,
    pub(crate) besides: Option<Arc<Besides>>,
    pub(crate) changes: Vec<Change>,
    /// The base with the changes applied.
    pub(crate) staged: Staged,
    pub(crate) write_id: WriteId,
    /// It was tried before, and the answer was lost.
    pub(crate) retry: bool,
    pub(crate) request: RequestFacts,
    /// The response has left, so no cookie can be set.
    pub(crate) response_sent: bool,
    /// What is stored already, if the rest fails.
    pub(crate) progress: Option<Progress>,
}

/// What a commit has to know of the request that it belongs to.
#[derive(Clone, Copy, Default)]
pub(crate) struct RequestFacts {
    /// When it arrived, by the clock of its sessions.
    pub(crate) arrived: Duration,
    /// The request came from another site, and has no session as far as is known. It must not create a visitor's session.
    pub(crate) cross_site: bool,
    /// It came with a user's cookie, and with a visitor's.
    pub(crate) user_cookie: bool,
    pub(crate) visitor_cookie: bool,
    /// It came with an ID of a user's session, also if that leads nowhere.
    pub(crate) user_id: bool,
}

/// What a write is recognised by, if it has to be tried again because the answer was lost.
#[derive(Clone)]
pub(crate) struct WriteId {
    pub(crate) version: i64,
    /// The new secret of the session that there is.
    pub(crate) secret: Option<Secret>,
    /// With that secret, all before it are superseded: it is not a rotation.
    pub(crate) renews: bool,
    /// The secret of an earlier rotation by this request whose answer was lost. It may be the newest.
    pub(crate) rotated: Option<SecretHash>,
    /// The name and the secret of a new session.
    pub(crate) new: Option<Box<NewId>>,
}

/// A session that is stored and that the browser has to hear of, although a part of the commit was not done.
pub(crate) struct Progress {
    pub(crate) base: Base,
    pub(crate) cookies: CookieChanges,
    /// A login has made it.
    pub(crate) login: bool,
}

/// What became of a commit that was carried out.
pub(crate) struct Committed {
    pub(crate) base: Base,
    pub(crate) cookies: CookieChanges,
    /// Why changes were dropped, if some were.
    pub(crate) dropped: Option<Dropped>,
    /// The changes were applied to other data than the handler saw, because another request had written.
    pub(crate) rebased: bool,
    /// A login or a sign-out was refused. With it the changes are done with.
    pub(crate) refused: Option<Refused>,
    /// The other sessions that cookies of the request lead to have ended.
    pub(crate) ended_others: bool,
}

/// Why a login or a sign-out does not take place.
pub(crate) struct Refused {
    /// `None` if that is not known: an answer was lost.
    pub(crate) why: Option<Refusal>,
    pub(crate) error: Error,
}

/// Why changes were dropped: there is no session that they belong to.
#[derive(Clone, Copy)]
pub(crate) enum Dropped {
    /// It is gone, or none of several counts.
    Gone,
    /// There was none, and the request came from another site.
    CrossSite,
}

/// What the response says about the cookies.
#[derive(Clone, Default)]
pub(crate) struct CookieChanges {
    pub(crate) set: Option<NewCookie>,
    /// The user's session, and the visitor's, has ended: its cookie is not set any more.
    pub(crate) ends_user: bool,
    pub(crate) ends_visitor: bool,
    pub(crate) remove_user: bool,
    pub(crate) remove_visitor: bool,
}

#[derive(Clone)]
pub(crate) struct NewCookie {
    pub(crate) id: SessionId,
    /// When its session ends at the latest.
    pub(crate) deadline: u64,
    pub(crate) is_visitors: bool,
}

impl WriteId {
    /// With the names and secrets that a commit of this plan needs.
    pub(crate) fn new(engine: &Engine, plan: Plan, base: &Base, staged: &Staged) -> Result<Self, Error> {
        let renews = matches!(plan, Plan::Renew { .. } | Plan::RenewOrBegin { .. });
        let rotates = matches!(plan, Plan::Write | Plan::SignOut(SignOut::Others))
            && staged.identity == Identity::Rework
            && matches!(base, Base::Live(_));
        let begins = match plan {
            Plan::Write | Plan::SignOut(SignOut::Others) => matches!(base, Base::Nothing) && !staged.data.is_empty(),
            Plan::SignOut(_) => staged.is_left_behind(),
            Plan::Begin { .. } | Plan::RenewOrBegin { .. } | Plan::Switch { .. } => true,
            Plan::Renew { .. } | Plan::EndOthers { .. } | Plan::Refuse { .. } => false,
        };
        let secret = if renews || rotates { Some(Secret::random()?) } else { None };
        let version = random_version();
        let new = if begins { Some(Box::new(engine.new_id(version)?)) } else { None };
        Ok(Self { version, secret, renews, rotated: None, new })
    }
}

impl Committed {
    /// Nothing was written, and nothing had to be.
    pub(super) fn kept(base: Base) -> Self {
        Self {
            base,
            cookies: CookieChanges::default(),
            dropped: None,
            rebased: false,
            refused: None,
            ended_others: false,
        }
    }

    pub(super) fn dropped(base: Base) -> Self {
        Self { dropped: Some(Dropped::Gone), ..Self::kept(base) }
    }

    pub(super) fn refused(base: Base, why: Refused) -> Self {
        Self { refused: Some(why), ..Self::kept(base) }
    }
}

impl Refused {
    /// The newest ID of a live session did not come.
    pub(super) fn not_newest(message: &'static str) -> Self {
        Self { why: Some(Refusal::NotNewest), error: Error::new(ErrorKind::Unauthorized, message) }
    }
}

impl From<Refusal> for Refused {
    fn from(why: Refusal) -> Self {
        Self { why: Some(why), error: Error::refused(why) }
    }
}

impl CookieChanges {
    pub(super) fn set(loaded: &Loaded, id: SessionId) -> Self {
        let is_visitors = loaded.owner().is_none();
        let set = Some(NewCookie { id, deadline: loaded.contents.deadline, is_visitors });
        Self { set, ..Self::default() }
    }

    /// Both, the later one last.
    pub(crate) fn then(self, later: Self) -> Self {
        let (remove_user, remove_visitor) =
            (self.remove_user || later.remove_user, self.remove_visitor || later.remove_visitor);
        let undone = |set: &NewCookie| if set.is_visitors { later.ends_visitor } else { later.ends_user };
        let set = later.set.clone().or(self.set.filter(|set| !undone(set)));
        let (ends_user, ends_visitor) = (self.ends_user || later.ends_user, self.ends_visitor || later.ends_visitor);
        Self { set, ends_user, ends_visitor, remove_user, remove_visitor }
    }
}

impl Commit {
    /// Writes the changes. After an error none of them is known to be written, but for the [`progress`](Self::progress).
    pub(crate) async fn run(&mut self, engine: &Arc<Engine>) -> Result<Committed, Error> {
        self.check()?;
        match self.plan {
            Plan::Write => self.write(engine).await,
            // Boxed: most commits are neither a login nor a sign-out, and need not be as large as one.
            Plan::EndOthers { login } => Box::pin(self.end_rest(engine, login)).await,
            Plan::SignOut(what) => Box::pin(self.sign_out(engine, what)).await,
            plan => Box::pin(self.log_in(engine, plan)).await,
        }
    }

    /// Tells the application and the log what was refused.
    pub(crate) fn tell_refusal(&self, engine: &Engine, committed: &Committed) {
        let why = match (&committed.refused, committed.dropped) {
            (Some(refused), _) => refused.why,
            (None, Some(Dropped::CrossSite)) => Some(Refusal::CrossSite),
            (None, Some(Dropped::Gone) | None) => None,
        };
        let Some(why) = why else { return };
        let opened = match &self.base {
            Base::Live(opened) | Base::Superseded(opened) | Base::Gone(opened) => Some(opened),
            Base::Nothing | Base::Refused | Base::Unreadable(_) => None,
        };
        let key = match &self.staged.identity {
            Identity::Bind(user) | Identity::Create(user) => Some(user.key()),
            Identity::Keep | Identity::Rework | Identity::Delete => opened.and_then(|opened| opened.key()),
        };
        engine.tell(EventKind::Refused(why), opened.map(|opened| opened.loaded.id.sid()), key);
    }

    /// Refuses what could not be carried out, before anything is written.
    fn check(&self) -> Result<(), Error> {
        for change in &self.changes {
            if let Change::Failed(error) = change {
                return Err(error.clone());
            }
        }
        if self.staged.ttl.is_some_and(|ttl| ttl < Duration::from_millis(1)) {
            return Err(Error::new(
                ErrorKind::Config,
                "the ttl of a session must not be zero: call `delete` to end it",
            ));
        }
        match &self.staged.identity {
            Identity::Bind(user) | Identity::Create(user) => check_key(user.key()).map(drop)?,
            Identity::Keep | Identity::Rework | Identity::Delete => {}
        }
        if self.response_sent && self.plan.changes_id(&self.base, &self.staged) {
            return Err(Error::new(
                ErrorKind::ResponseSent,
                "the response was already sent, so its cookie can no longer be set: call `save` before the response",
            ));
        }
        Ok(())
    }

    /// Writes to the session that there is, or creates a visitor's session.
    pub(super) async fn write(&self, engine: &Arc<Engine>) -> Result<Committed, Error> {
        let base = self.base.clone();
        match &self.base {
            Base::Live(opened) => self.rewrite(engine, opened).await,
            Base::Nothing => Box::pin(self.create_for_visitor(engine)).await,
            Base::Unreadable(unreadable) => Err(unreadable.error.clone()),
            Base::Gone(opened) if !self.staged.data.same_as(&opened.loaded.contents.data) => {
                Ok(Committed::dropped(base))
            }
            Base::Superseded(_) | Base::Refused if !self.staged.data.is_empty() => Ok(Committed::dropped(base)),
            Base::Gone(_) | Base::Superseded(_) | Base::Refused => Ok(Committed::kept(base)),
        }
    }

    async fn rewrite(&self, engine: &Arc<Engine>, opened: &Opened) -> Result<Committed, Error> {
        let WriteId { version, secret, .. } = &self.write_id;
        let id = secret.as_ref().map(|new| engine.id(opened.loaded.id, new)).transpose()?;
        let new = secret.as_ref().map(Secret::hash);
        let (mut first, mut rebased, mut superseded) = (true, false, false);
        let written = engine.rewrite(Arc::clone(&opened.loaded), *version, self.retry, |contents| {
            superseded = !opened.loaded.has_same_login(contents);
            if superseded {
                return Ok(false);
            }
            // After a conflict the same changes are applied to what is there by now.
            rebased = !mem::take(&mut first);
            let (ttl, data) = self.on(contents.data.clone(), rebased, contents.key.as_deref())?;
            let idle = ttl.map(millis).or(contents.idle);
            let rotated = new.is_some_and(|new| contents.rotate(&opened.secret, new, engine.grace(), engine.now()));
            let changed = rotated || idle != contents.idle || !data.same_as(&contents.data);
            contents.idle = idle;
            contents.data = data;
            Ok(changed)
        });
        let written = match written.await? {
            // It was written, and its user has signed in again since.
            WriteOutcome::Done(written) if !superseded && !opened.loaded.has_same_login(&written.contents) => {
                return Ok(Committed::kept(self.gone(opened)));
            }
            WriteOutcome::Done(written) if !superseded => written,
            WriteOutcome::Unreadable(error) => return Err(error),
            _ => return Ok(Committed::dropped(self.gone(opened))),
        };
        let new = new.filter(|new| written.contents.hash.matches(new));
        if new.is_some() {
            engine.tell_of(EventKind::Rotated, &written);
        }
        let cookies = id.filter(|_| new.is_some()).map(|id| CookieChanges::set(&written, id)).unwrap_or_default();
        let base = Base::Live(Opened { loaded: written, secret: new.unwrap_or(opened.secret) });
        Ok(Committed { cookies, rebased, ..Committed::kept(base) })
    }

    /// The idle timeout and the data that there will be: as the handler saw it, or worked out again on other data.
    pub(super) fn on(&self, data: Data, again: bool, key: Option<&str>) -> Result<(Option<Duration>, Data), Error> {
        match again {
            true => Staged::rebase(&self.changes, data, key).map(|staged| (staged.ttl, staged.data)),
            false => Ok((self.staged.ttl, self.staged.data.clone())),
        }
    }

    /// That session is not there any more for this request: what the handler saw last is left.
    pub(super) fn gone(&self, opened: &Opened) -> Base {
        let mut loaded = Loaded::clone(&opened.loaded);
        loaded.contents.data = self.staged.data.clone();
        Base::Gone(opened.at(Arc::new(loaded)))
    }

    pub(super) async fn create_for_visitor(&self, engine: &Arc<Engine>) -> Result<Committed, Error> {
        if self.staged.data.is_empty() {
            return Ok(Committed::kept(Base::Nothing));
        }
        if self.request.cross_site {
            return Ok(Committed { dropped: Some(Dropped::CrossSite), ..Committed::kept(Base::Nothing) });
        }
        let new = self.new_id(engine)?;
        let contents = engine.contents(None, self.staged.data.clone(), self.staged.ttl.map(millis));
        match engine.create(contents, &new, Conditions::default(), self.retry).await? {
            NewSession::Done { loaded, id, .. } => Ok(begun(loaded, id)),
            // No user, and nobody who could have been cleared or have too many.
            NewSession::Refused(_) => Ok(Committed::dropped(Base::Nothing)),
        }
    }

    /// The name and secret of a new session, the same for every try.
    pub(super) fn new_id(&self, engine: &Engine) -> Result<NewId, Error> {
        match &self.write_id.new {
            Some(new) => Ok(NewId::clone(new)),
            None => engine.new_id(self.write_id.version),
        }
    }
}

/// A session that the browser has yet to hear of.
fn begun(loaded: Arc<Loaded>, id: SessionId) -> Committed {
    let cookies = CookieChanges::set(&loaded, id);
    Committed { cookies, ..Committed::kept(Base::Live(Opened::newest(loaded))) }
}
