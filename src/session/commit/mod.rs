//! The commit: turns a request's changes into calls of the session engine.
//!
//! This module commits plain changes. Logins are in [`login`], and sign-outs in [`sign_out`].

mod login;
mod sign_out;

use std::{mem, sync::Arc, time::Duration};

use crate::{
    clock::millis,
    error::{Error, ErrorKind},
    events::{EventKind, Refusal},
    log,
    random::random_version,
    record::{
        data::Data,
        token::{Secret, SecretHash, SessionId},
    },
    session::{
        authority::{Authority, Plan, SignOut, Trigger},
        change::{Change, Identity, Staged},
        presented::{Base, Besides},
    },
    sessions::{
        creation::{Conditions, NewId, NewSession, check_key},
        engine::Engine,
        loaded::{Loaded, Opened, WriteOutcome},
    },
};

/// The changes of a request, with all that is needed to write them.
pub(crate) struct Commit {
    pub(crate) plan: Plan,
    pub(crate) base: Base,
    pub(crate) besides: Option<Arc<Besides>>,
    pub(crate) changes: Vec<Change>,
    /// The base with the changes applied.
    pub(crate) staged: Staged,
    pub(crate) write_id: WriteId,
    /// Whether this is a retry, because the answer to the first try was lost.
    pub(crate) retry: bool,
    pub(crate) request: RequestFacts,
    /// Whether the response was sent, so that no cookie can be set.
    pub(crate) response_sent: bool,
    /// What is already stored, in case the rest fails.
    pub(crate) progress: Option<Progress>,
}

/// What a commit needs to know about its request.
#[derive(Clone, Copy, Default)]
pub(crate) struct RequestFacts {
    /// When the request arrived, by the sessions' own clock.
    pub(crate) arrived: Duration,
    /// Whether the request came from another site and has no known session. It must not create a visitor's session.
    pub(crate) cross_site: bool,
    /// Whether the request came with a user's cookie, and with a visitor's cookie.
    pub(crate) user_cookie: bool,
    pub(crate) visitor_cookie: bool,
    /// Whether the request came with an ID of a user's session, even if no session has that ID any more.
    pub(crate) user_id: bool,
}

/// Identifies a write, so that a retry after a lost answer is recognised.
#[derive(Clone)]
pub(crate) struct WriteId {
    pub(crate) version: i64,
    /// The new secret of the existing session.
    pub(crate) secret: Option<Secret>,
    /// Whether the new secret supersedes all others, which a rotation does not do.
    pub(crate) renews: bool,
    /// Whether all sessions of the session's owner end, by a clear whose name is the version.
    pub(crate) clears: bool,
    /// The secret of an earlier rotation by this request whose answer was lost. It may be the newest one.
    pub(crate) rotated: Option<SecretHash>,
    /// The name and the secret of a new session.
    pub(crate) new: Option<Box<NewId>>,
}

/// The completed part of a commit. The browser must get its cookie even if the rest of the commit fails.
pub(crate) struct Progress {
    pub(crate) base: Base,
    pub(crate) cookies: CookieChanges,
    /// Whether a login made the session.
    pub(crate) login: bool,
}

/// The result of a commit.
pub(crate) struct Committed {
    pub(crate) base: Base,
    pub(crate) cookies: CookieChanges,
    /// Why changes were dropped, if some were.
    pub(crate) dropped: Option<Dropped>,
    /// Whether the changes were applied to other data than the handler saw, because another request had written.
    pub(crate) rebased: bool,
    /// Why a login or a sign-out was refused. All changes are then dropped.
    pub(crate) refused: Option<Refused>,
    /// Whether the other sessions of the request's cookies have ended.
    pub(crate) ended_others: bool,
}

/// Why a login or a sign-out was refused.
pub(crate) struct Refused {
    /// `None` if the reason is not known, because an answer was lost.
    pub(crate) why: Option<Refusal>,
    pub(crate) error: Error,
}

/// Why the changes have no session that they could be written to.
#[derive(Clone, Copy)]
pub(crate) enum Dropped {
    /// The session has ended, or the cookies lead to several sessions.
    Gone,
    /// The request has no session, and came from another site.
    CrossSite,
}

/// The cookies that the response sets and removes.
#[derive(Clone, Default)]
pub(crate) struct CookieChanges {
    pub(crate) set: Option<NewCookie>,
    pub(crate) remove_user: bool,
    pub(crate) remove_visitor: bool,
}

#[derive(Clone)]
pub(crate) struct NewCookie {
    pub(crate) id: SessionId,
    /// The deadline of the session.
    pub(crate) deadline: u64,
    pub(crate) is_visitors: bool,
}

impl WriteId {
    /// Creates the names and secrets that a commit with this plan needs.
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
        let clears = matches!(plan, Plan::SignOut(SignOut::Clear) | Plan::Switch { clears: true, .. });
        Ok(Self { version, secret, renews, clears, rotated: None, new })
    }
}

impl Committed {
    /// Nothing was written, because nothing had to be.
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
    /// The request does not have the newest ID of a live session.
    pub(super) fn not_newest(message: &'static str) -> Self {
        Self { why: Some(Refusal::NotNewest), error: Error::new(ErrorKind::Unauthorized, message) }
    }
}

impl From<Refusal> for Refused {
    fn from(why: Refusal) -> Self {
        Self { why: Some(why), error: Error::refused(why) }
    }
}

impl Dropped {
    /// Returns the outcome of the commits for [`Session::save`](super::Session::save), which reports it, or for the response.
    pub(crate) fn outcome(self, trigger: Trigger, came_with: Authority) -> Result<(), Error> {
        match (self, trigger) {
            (Self::Gone, Trigger::Save) => Err(Error::not_found()),
            (Self::CrossSite, Trigger::Save) => Err(Error::cross_site()),
            (Self::Gone, _) => {
                // Logged at debug, because a client can cause it by sending many cookies.
                log::debug!(?came_with, "changes to a session that has ended were dropped");
                Ok(())
            }
            (Self::CrossSite, _) => {
                // Logged at debug, because any site can cause it.
                log::debug!("a cross-site request has no session, so its changes were dropped");
                Ok(())
            }
        }
    }
}

impl CookieChanges {
    pub(super) fn set(loaded: &Loaded, id: SessionId) -> Self {
        let is_visitors = loaded.owner().is_none();
        let set = Some(NewCookie { id, deadline: loaded.contents.deadline, is_visitors });
        Self { set, ..Self::default() }
    }

    /// Combines these changes with later ones.
    pub(crate) fn then(self, later: Self) -> Self {
        Self {
            set: later.set.or(self.set),
            remove_user: self.remove_user || later.remove_user,
            remove_visitor: self.remove_visitor || later.remove_visitor,
        }
    }

    /// Keeps the new ID only if it is still the newest one of the request's session, as far as the request knows.
    pub(crate) fn valid_on(self, base: &Base) -> Self {
        let is_valid = match base {
            Base::Live(opened) => opened.is_newest(),
            // It is not known whether the session has ended.
            Base::Unreadable(_) => true,
            Base::Nothing | Base::Superseded(_) | Base::Gone(_) | Base::Refused => false,
        };
        Self { set: self.set.filter(|_| is_valid), ..self }
    }
}

impl Commit {
    /// Writes the changes. After an error, only the [`progress`](Self::progress) is known to be written.
    pub(crate) async fn run(&mut self, engine: &Arc<Engine>) -> Result<Committed, Error> {
        self.check()?;
        match self.plan {
            Plan::Write => self.write(engine).await,
            // Boxed to keep the future small, because most commits are neither a login nor a sign-out.
            Plan::EndOthers { login } => Box::pin(self.end_rest(engine, login)).await,
            Plan::SignOut(what) => Box::pin(self.sign_out(engine, what)).await,
            plan => Box::pin(self.log_in(engine, plan)).await,
        }
    }

    /// Sends an event for a refusal.
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

    /// Checks the changes before anything is written.
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

    /// Writes to the existing session, or creates a visitor's session.
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
            // After a conflict, the same changes are applied to the current data.
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
            // The changes were written, and the user has signed in again since.
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

    /// Returns the new idle timeout and data: as the handler saw them, or computed again on other data.
    pub(super) fn on(&self, data: Data, again: bool, key: Option<&str>) -> Result<(Option<Duration>, Data), Error> {
        match again {
            true => Staged::rebase(&self.changes, data, key).map(|staged| (staged.ttl, staged.data)),
            false => Ok((self.staged.ttl, self.staged.data.clone())),
        }
    }

    /// Returns the base after the session has ended for this request. It keeps the data that the handler saw last.
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
            // This cannot happen: without a user there is no clear and no limit.
            NewSession::Refused(_) => Ok(Committed::dropped(Base::Nothing)),
        }
    }

    /// Returns the name and secret of a new session, which are the same for every try.
    pub(super) fn new_id(&self, engine: &Engine) -> Result<NewId, Error> {
        match &self.write_id.new {
            Some(new) => Ok(NewId::clone(new)),
            None => engine.new_id(self.write_id.version),
        }
    }
}

/// A new session, whose cookie has to be set.
fn begun(loaded: Arc<Loaded>, id: SessionId) -> Committed {
    let cookies = CookieChanges::set(&loaded, id);
    Committed { cookies, ..Committed::kept(Base::Live(Opened::newest(loaded))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::loaded::sample;

    fn sets(text: &str, is_visitors: bool) -> CookieChanges {
        let set = Some(NewCookie { id: SessionId::known(text), deadline: 0, is_visitors });
        CookieChanges { set, ..CookieChanges::default() }
    }

    fn set(cookies: &CookieChanges) -> Option<&str> {
        cookies.set.as_ref().map(|set| set.id.as_str())
    }

    #[test]
    fn the_last_cookie_counts_and_every_removal() {
        let removes = || CookieChanges { remove_visitor: true, ..CookieChanges::default() };
        assert_eq!(set(&sets("first", true).then(sets("second", false))), Some("second"));
        assert_eq!(set(&sets("first", false).then(CookieChanges::default())), Some("first"));
        let both = removes().then(sets("first", false)).then(CookieChanges { remove_user: true, ..Default::default() });
        assert!(both.remove_user && both.remove_visitor && set(&both) == Some("first"));
    }

    /// "It carries an ID that this request has stored, unless the request has learned that its session has ended or has another
    /// secret."
    #[test]
    fn no_id_is_sent_that_the_request_knows_to_be_invalid() {
        let opened = sample(1, Some("ada"), Data::default());
        let mut other = Loaded::clone(&opened.loaded);
        other.contents.hash = SecretHash::from_bytes([2; 32]);
        let replaced = opened.at(Arc::new(other));
        for (base, is_sent) in [
            (Base::Live(opened.clone()), true),
            (Base::Live(replaced), false),
            (Base::Gone(opened), false),
            (Base::Nothing, false),
            (Base::Refused, false),
        ] {
            let changes = CookieChanges { remove_visitor: true, ..sets("an ID", false) }.valid_on(&base);
            assert_eq!((set(&changes).is_some(), changes.remove_visitor), (is_sent, true));
        }
    }
}
