//! Logins: a new secret for the session that there is, or a new session, and the end of the one before.

use std::{mem, sync::Arc};

use tokio::{task::yield_now, time::timeout};

use crate::{
    backend::Left,
    clock::millis,
    error::{Error, ErrorKind},
    events::{EventKind, Refusal},
    log,
    random::random_version,
    record::token::{Secret, SessionId},
    session::{
        authority::{Plan, SignOut, Then},
        change::{Clearing, Identity, Staged},
        commit::{Commit, Committed, CookieChanges, Progress, Refused, WriteId},
        presented::Base,
        sign_in::SignIn,
    },
    sessions::{
        background::OnDrop,
        engine::{Conditions, Engine, NewId, NewSession, Start},
        loaded::{EndOutcome, Loaded, Opened, WriteOutcome},
        watch::Ending,
    },
};

/// What became of a new secret for the session that there is.
enum Renewed {
    Done {
        opened: Opened,
        id: SessionId,
        rebased: bool,
    },
    /// The newest secret did not come, or the session has ended. It is this by now.
    Refused(Base),
}

/// What became of a new session.
enum Begun {
    Done { opened: Opened, id: SessionId, rebased: bool },
    Refused(Refusal),
}

impl Commit {
    pub(super) async fn log_in(&mut self, engine: &Arc<Engine>, plan: Plan) -> Result<Committed, Error> {
        let user = match &self.staged.identity {
            Identity::Bind(user) | Identity::Create(user) => Some(user.clone()),
            Identity::Keep | Identity::Rework | Identity::Delete => None,
        };
        let signed_in = self.base.signed_in().map(|(opened, _)| opened.clone());
        match (plan, user, signed_in) {
            (Plan::Renew { login, then }, _, Some(opened)) => match self.renew(engine, &opened, login).await? {
                Renewed::Done { opened, id, rebased } => self.finish(engine, opened, id, rebased, login, then).await,
                Renewed::Refused(base) => self.refuse(engine, base, Refused::not_newest(NOT_NEWEST)).await,
            },
            (Plan::RenewOrBegin { then }, Some(user), Some(opened)) => match self.renew(engine, &opened, true).await? {
                Renewed::Done { opened, id, rebased } => self.finish(engine, opened, id, rebased, true, then).await,
                Renewed::Refused(base) => {
                    // Its secret may have been the newest when it was loaded, and be a previous one by now.
                    if let Base::Live(_) = base {
                        self.base = base;
                    }
                    self.begin_and_finish(engine, &user, then).await
                }
            },
            (Plan::Begin { then }, Some(user), _) => self.begin_and_finish(engine, &user, then).await,
            (Plan::Switch { clears, then }, Some(user), Some(opened)) => {
                self.switch(engine, &user, &opened, clears, then).await
            }
            _ => {
                let base = self.base.clone();
                self.refuse(engine, base, Refused::not_newest("the session that signs in has ended")).await
            }
        }
    }

    /// Gives the session a new secret, if its newest one came. For a login it also begins anew: deadline and time of sign-in.
    async fn renew(&self, engine: &Arc<Engine>, opened: &Opened, login: bool) -> Result<Renewed, Error> {
        let WriteId { version, secret, rotated, .. } = &self.write_id;
        let new = secret.clone().map_or_else(Secret::random, Ok)?;
        let (id, hash) = (engine.id(opened.loaded.id, &new)?, new.hash());
        let (mut first, mut rebased, mut refused) = (true, false, false);
        let renewed = engine.rewrite(Arc::clone(&opened.loaded), *version, self.retry, |contents| {
            if contents.hash.matches(&hash) {
                // A repeat: it is stored.
                return Ok(false);
            }
            let again = !mem::take(&mut first) && !self.staged.fresh;
            rebased |= again;
            let (ttl, data) = self.on(contents.data.clone(), again, contents.key.as_deref())?;
            let now = engine.now();
            // The newest secret has to be the one that came, or one that this request made.
            let newest = rotated.filter(|rotated| contents.hash.matches(rotated)).unwrap_or(opened.secret);
            refused = !contents.supersede(&newest, hash, now);
            if refused {
                return Ok(false);
            }
            if login {
                contents.signed_in = Some(now);
                contents.deadline = engine.deadline(true, now);
            }
            // What starts afresh does so with the default idle timeout.
            let kept = contents.idle.filter(|_| !self.staged.known);
            contents.idle = ttl.map(millis).or(kept);
            contents.data = data;
            Ok(true)
        });
        Ok(match renewed.await? {
            WriteOutcome::Done(loaded) if !refused => {
                if login {
                    engine.tell_of(EventKind::SignedInAgain, &loaded);
                }
                Renewed::Done { opened: Opened { loaded, secret: hash }, id, rebased }
            }
            // A rotation has replaced its secret, and it may still read and write.
            WriteOutcome::Done(loaded) if opened.loaded.has_same_login(&loaded.contents) => {
                Renewed::Refused(Base::Live(opened.at(loaded)))
            }
            // Nothing says that the newest secret came.
            _ => Renewed::Refused(self.gone(opened)),
        })
    }

    async fn begin_and_finish(&mut self, engine: &Arc<Engine>, user: &SignIn, then: Then) -> Result<Committed, Error> {
        // Where the others end, they take nobody's place.
        let (opened, id, rebased) = match self.begin(engine, user, then == Then::Nothing).await? {
            Begun::Done { opened, id, rebased } => (opened, id, rebased),
            Begun::Refused(why) if user.is_login() => return Ok(Committed::refused(self.base.clone(), why.into())),
            Begun::Refused(why) => {
                let base = self.base.clone();
                return self.refuse(engine, base, why.into()).await;
            }
        };
        match &self.base {
            Base::Live(old) if old.key() == Some(user.key()) => self.end_grace(engine, old).await?,
            // A `Login` needs no right to the session of another user that it leaves.
            Base::Live(old) if old.key().is_some() => {
                let ended = engine.end(&old.loaded, Ending::Replaced).await?;
                if ended == EndOutcome::Now {
                    engine.tell_of(EventKind::SignedOut, &old.loaded);
                }
            }
            _ => {}
        }
        self.finish(engine, opened, id, rebased, true, then).await
    }

    /// Creates a session of this user. A visitor's session goes over into it, with what others write to it meanwhile.
    async fn begin(&self, engine: &Arc<Engine>, user: &SignIn, limited: bool) -> Result<Begun, Error> {
        let visitor = self.base.visitor().map(|opened| &opened.loaded);
        let (mut new, id, left) = match self.create(engine, user, visitor, limited).await? {
            NewSession::Done { loaded, id, left } => (loaded, id, left),
            NewSession::Refused(why) => return Ok(Begun::Refused(why)),
        };
        let (mut rebased, mut merges) = (false, 0);
        let mut ended = match (left, visitor) {
            (Left::Conflict(current), Some(visitor)) => engine.conflict(visitor, current),
            (Left::NotTried, Some(visitor)) => engine.end_if(visitor, Ending::Replaced).await?,
            (Left::Done | Left::Gone, _) | (_, None) => WriteOutcome::Gone,
        };
        while let WriteOutcome::Conflict(current) = ended {
            if merges == MERGES {
                engine.delete(current.id, Ending::Replaced).await?;
                break;
            }
            merges += 1;
            if !self.staged.fresh {
                rebased = true;
                let data = Staged::rebase(&self.changes, current.contents.data.clone(), None)?.data;
                let rewritten = engine.rewrite(Arc::clone(&new), random_version(), false, |contents| {
                    contents.data = data.clone();
                    Ok(true)
                });
                match rewritten.await? {
                    WriteOutcome::Done(rewritten) => new = rewritten,
                    // The user was signed out everywhere since it was created.
                    _ => return Ok(Begun::Refused(Refusal::Cleared)),
                }
            }
            yield_now().await;
            ended = engine.end_if(&current, Ending::Replaced).await?;
        }
        Ok(Begun::Done { opened: Opened::newest(new), id, rebased })
    }

    /// Stores a new session of this user, which may end the visitor's in the same step.
    async fn create(
        &self,
        engine: &Arc<Engine>,
        user: &SignIn,
        visitor: Option<&Arc<Loaded>>,
        limited: bool,
    ) -> Result<NewSession, Error> {
        let kept = self.base.visitor().filter(|_| !self.staged.known).and_then(|old| old.loaded.contents.idle);
        let same = self.base.signed_in().filter(|(_, key)| *key == user.key() && !self.staged.known);
        let kept = kept.or(same.and_then(|(old, _)| old.loaded.contents.idle));
        let idle = self.staged.ttl.map(millis).or(kept);
        let contents = engine.contents(Some(user.key()), self.staged.data.clone(), idle);
        let conditions = Conditions {
            since: Some(user.mark().map_or(Start::Moment(self.request.arrived), Start::Mark)),
            limited,
            leaves: visitor.map(|visitor| (visitor.id, visitor.version)),
        };
        engine.create(contents, &self.new_id(engine)?, conditions, self.retry).await
    }

    /// Signs in as another user by a session key: the new session first, which no client has the ID of yet; then the old one
    /// ends, if its newest secret came.
    async fn switch(
        &mut self,
        engine: &Arc<Engine>,
        user: &SignIn,
        old: &Opened,
        clears: bool,
        then: Then,
    ) -> Result<Committed, Error> {
        if self.retry {
            // Whether the first try has ended the old session was not known. The new one was removed.
            let error = Error::new(ErrorKind::Unavailable, "the answer to a switch of user was lost");
            if let Some(new) = self.write_id.new.as_deref().and_then(NewId::sent) {
                engine.remove_orphan(new);
            }
            if clears {
                self.sign_out_all(engine, SignOut::Clear).await?;
            }
            let base = match engine.load_again(old.loaded.id).await? {
                Some(loaded) if old.loaded.has_same_login(&loaded.contents) => Base::Live(old.at(loaded)),
                _ => self.gone(old),
            };
            return Ok(Committed::refused(base, Refused { why: None, error }));
        }
        if !old.is_newest() {
            let base = self.base.clone();
            return self.refuse(engine, base, Refused::not_newest(NOT_NEWEST)).await;
        }
        // No session of the user may end for one that is removed if this fails: the user's next login applies the limit.
        let (new, id) = match self.create(engine, user, None, false).await? {
            NewSession::Done { loaded, id, .. } => (loaded, id),
            NewSession::Refused(why) => {
                let base = self.base.clone();
                return self.refuse(engine, base, why.into()).await;
            }
        };
        let orphan = OnDrop::new(|| engine.remove_orphan(new.id));
        let moved = match clears {
            false => {
                let ended = engine.end_newest(old).await? == EndOutcome::Now;
                if ended {
                    engine.tell_of(EventKind::SignedOut, &old.loaded);
                }
                ended
            }
            true => {
                let cleared = engine.clear_by(old, false, self.write_id.version).await?;
                cleared.is_some_and(|cleared| cleared.by_newest)
            }
        };
        if !moved {
            if engine.delete(new.id, Ending::SignedOut).await.is_ok() {
                orphan.disarm();
            }
            return Ok(Committed::refused(self.gone(old), Refused::not_newest(NOT_NEWEST)));
        }
        orphan.disarm();
        let opened = Opened::newest(new);
        self.finish(engine, opened, id, false, true, then).await
    }

    /// What comes after a login, or after a new secret for `clear_others`.
    async fn finish(
        &mut self,
        engine: &Arc<Engine>,
        opened: Opened,
        id: SessionId,
        rebased: bool,
        login: bool,
        then: Then,
    ) -> Result<Committed, Error> {
        let cookies = CookieChanges {
            // From now on the visitor's session that it came with is the user's.
            ends_visitor: login,
            remove_visitor: login && self.request.visitor_cookie,
            ..CookieChanges::set(&opened.loaded, id)
        };
        if then != Then::EndAll {
            self.progress = Some(Progress { base: Base::Live(opened.clone()), cookies: cookies.clone(), login });
        }
        if login {
            self.end_others(engine, &opened).await;
        }
        let (name, was_in) = (self.write_id.version, self.base.signed_in().is_some());
        let done = match then {
            Then::Nothing => true,
            Then::EndOthers => engine.clear_by(&opened, true, name).await?.is_some(),
            Then::EndAll => {
                let ended = engine.clear_by(&opened, false, name).await?.is_some();
                let cookies = CookieChanges {
                    ends_user: true,
                    ends_visitor: login,
                    // The session that the cookie led to has ended, and not only the one that this login made.
                    remove_user: ended && was_in && self.request.user_cookie,
                    remove_visitor: ended && was_in && self.request.visitor_cookie,
                    ..CookieChanges::default()
                };
                let committed = match ended {
                    true => Committed::kept(Base::Nothing),
                    // What it made has ended before, and nothing more does.
                    false => Committed::refused(self.gone(&opened), Refusal::Cleared.into()),
                };
                return Ok(Committed { cookies, ended_others: login, ..committed });
            }
        };
        if !done {
            return Ok(Committed::refused(self.gone(&opened), Refusal::Cleared.into()));
        }
        let refused = self.unproven_beside(login);
        Ok(Committed { cookies, rebased, refused, ended_others: login, ..Committed::kept(Base::Live(opened)) })
    }

    /// Ends the other sessions that cookies of this request have opened. The login does not fail for it.
    async fn end_others(&self, engine: &Arc<Engine>, made: &Opened) {
        let Some(besides) = &self.besides else { return };
        let end = async {
            let mut ended = Ok(());
            for other in besides.others.iter().filter(|other| other.loaded.id != made.loaded.id) {
                // As a sign-out: what this request holds may have been replaced since. If one fails, the others end all the same.
                ended = ended.and(engine.sign_out(other, Ending::Replaced).await.map(drop));
            }
            ended
        };
        let ended = timeout(engine.request_time() / 2, end).await.unwrap_or_else(|_| Err(Error::too_late()));
        if let Err(error) = ended {
            log::warn!(error = %error.chain(), "a login could not end another session that its cookies open");
        }
    }

    /// Ends what is left of the grace of the ID that came, because its holder has signed in to another session.
    async fn end_grace(&self, engine: &Arc<Engine>, old: &Opened) -> Result<(), Error> {
        let ended = engine.rewrite(Arc::clone(&old.loaded), random_version(), false, |contents| {
            Ok(contents.end_grace(&old.secret, engine.now()))
        });
        ended.await.map(drop)
    }

    /// Does what is left of a `clear_others`.
    pub(super) async fn end_rest(&mut self, engine: &Arc<Engine>, login: bool) -> Result<Committed, Error> {
        let written = self.write(engine).await?;
        let Base::Live(opened) = &written.base else {
            return Ok(Committed::refused(written.base, Refusal::Cleared.into()));
        };
        self.progress = Some(Progress { base: written.base.clone(), cookies: written.cookies.clone(), login });
        if engine.clear_by(opened, true, self.write_id.version).await?.is_none() {
            return Ok(Committed::refused(self.gone(opened), Refusal::Cleared.into()));
        }
        Ok(Committed { refused: self.unproven_beside(login), ..written })
    }

    /// What a cookie of this request leads to by a secret that is not accepted may live on after a `clear_others`.
    fn unproven_beside(&self, login: bool) -> Option<Refused> {
        let unproven = !login && self.besides.as_ref().is_some_and(|besides| besides.unproven);
        unproven.then(|| Refused::not_newest(NOT_OPENED))
    }

    /// Refuses a login. A `clear` beside it acts all the same: the session that it is for is the one that came.
    async fn refuse(&mut self, engine: &Arc<Engine>, base: Base, why: Refused) -> Result<Committed, Error> {
        if self.staged.clear == Clearing::All {
            let ended = self.sign_out_all(engine, SignOut::Clear).await?;
            let base = if ended.anything { Base::Nothing } else { base };
            return Ok(Committed::refused(base, why));
        }
        Ok(Committed::refused(base, why))
    }
}

/// What is said where a session that a sign-out was for may live on.
pub(super) const NOT_OPENED: &str = "a session that this sign-out was for has another ID by now, or has ended";
const NOT_NEWEST: &str = "the session has a newer ID, or has ended: a login or a new ID needs the newest one";
/// How often what others write to a visitor's session is taken along.
const MERGES: u32 = 3;
