//! Logins: a new secret for the existing session or a new session, and the end of the previous one.

use std::{mem, sync::Arc};

use tokio::{task::yield_now, time::timeout};

use crate::{
    backend::terms::Left,
    clock::millis,
    error::{Error, ErrorKind},
    events::{EventKind, Refusal},
    log,
    random::random_version,
    record::token::{Secret, SessionId},
    session::{
        authority::{Plan, SignOut, Then},
        change::{Clearing, Identity, Staged},
        commit::{Commit, Committed, CookieChanges, Progress, Refused},
        presented::Base,
        sign_in::SignIn,
        write_id::WriteId,
    },
    sessions::{
        background::OnDrop,
        creation::{Conditions, NewId, NewSession, Start},
        engine::Engine,
        loaded::{EndOutcome, Loaded, Opened, WriteOutcome},
        watch::Ending,
    },
};

/// The result of giving the existing session a new secret.
enum Renewed {
    Done {
        opened: Opened,
        id: SessionId,
        rebased: bool,
    },
    /// The request did not have the newest secret, or the session has ended. This is the current base.
    Refused(Base),
}

/// The result of creating a new session.
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
                Renewed::Refused(Base::Live(opened)) => {
                    // The secret may have been the newest one at the load, and be a previous one now.
                    self.base = Base::Live(opened);
                    self.begin_and_finish(engine, &user, then).await
                }
                Renewed::Refused(gone) => {
                    let committed = self.begin_and_finish(engine, &user, then).await?;
                    let keeps_base = committed.refused.is_some() && matches!(committed.base, Base::Live(_));
                    Ok(if keeps_base { Committed { base: gone, ..committed } } else { committed })
                }
            },
            (Plan::Begin { then }, Some(user), _) => self.begin_and_finish(engine, &user, then).await,
            (Plan::Switch { clears, then }, Some(user), Some(opened)) => {
                self.switch(engine, &user, &opened, clears, then).await
            }
            _ => {
                let base = self.base.clone();
                self.refuse(engine, base, Refused::not_newest("the session has ended: sign in again")).await
            }
        }
    }

    /// Gives the session a new secret, if the request had its newest one. A login also restarts the deadline and sets the time of
    /// the sign-in.
    async fn renew(&self, engine: &Arc<Engine>, opened: &Opened, login: bool) -> Result<Renewed, Error> {
        let WriteId { version, secret, rotated, .. } = &self.write_id;
        let new = secret.clone().map_or_else(Secret::random, Ok)?;
        let (id, hash) = (engine.id(opened.loaded.id, &new)?, new.hash());
        let (mut first, mut rebased, mut refused) = (true, false, false);
        let renewed = engine.rewrite(Arc::clone(&opened.loaded), *version, self.retry, |contents| {
            if contents.hash.matches(&hash) {
                // This is a retry, and the first try was stored.
                return Ok(false);
            }
            let again = !mem::take(&mut first) && !self.staged.fresh;
            rebased |= again;
            let (ttl, data) = self.on(contents.data.clone(), again, contents.key.as_deref())?;
            let now = engine.now();
            // The newest secret must be the one that the request came with, or one that this request made.
            let newest = rotated.filter(|rotated| contents.hash.matches(rotated)).unwrap_or(opened.secret);
            refused = !contents.supersede(&newest, hash, now);
            if refused {
                return Ok(false);
            }
            if login {
                contents.signed_in = Some(now);
                contents.deadline = engine.deadline(true, now);
            }
            // If the data starts empty, the idle timeout starts with its default.
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
            // A rotation replaced the secret. The request can still read and write.
            WriteOutcome::Done(loaded) if opened.loaded.has_same_login(&loaded.contents) => {
                Renewed::Refused(Base::Live(opened.at(loaded)))
            }
            // It is not known that the request had the newest secret.
            _ => Renewed::Refused(self.gone(opened)),
        })
    }

    async fn begin_and_finish(&mut self, engine: &Arc<Engine>, user: &SignIn, then: Then) -> Result<Committed, Error> {
        // If the other sessions end anyway, the limit does not apply.
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
            // With a `Login`, the request can leave another user's session whatever secret it has.
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

    /// Creates a session of this user. It takes over the data of the visitor's session, including concurrent writes to that
    /// session.
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
                    // The user was signed out everywhere after the session was created, or another login has taken its place.
                    _ => return Ok(Begun::Refused(Refusal::Cleared)),
                }
            }
            yield_now().await;
            ended = engine.end_if(&current, Ending::Replaced).await?;
        }
        Ok(Begun::Done { opened: Opened::newest(new), id, rebased })
    }

    /// Stores a new session of this user, and may end the visitor's session in the same call.
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

    /// Signs in as another user by a session key.
    ///
    /// The new session is stored first, while no client has its ID. Then the old session ends, if the request had its newest
    /// secret. If not, the new session is removed again.
    async fn switch(
        &mut self,
        engine: &Arc<Engine>,
        user: &SignIn,
        old: &Opened,
        clears: bool,
        then: Then,
    ) -> Result<Committed, Error> {
        if self.retry {
            // It is not known whether the first try ended the old session. The new session is removed.
            let error =
                Error::new(ErrorKind::Unavailable, "the store's answer was lost while switching users: sign in again");
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
        // The limit is not applied here, because the new session is removed if this fails. The user's next login applies it.
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

    /// Finishes a login, or a `clear_others` whose new secret is stored.
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
            // The visitor's session has become the user's.
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
                    // The session of the request's cookie has ended, and not only the one that this login made.
                    remove_user: ended && was_in && self.request.user_cookie,
                    remove_visitor: ended && was_in && self.request.visitor_cookie,
                    ..CookieChanges::default()
                };
                let committed = match ended {
                    true => Committed::kept(Base::Nothing),
                    // The session of this login had already ended, so no other session ends.
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

    /// Ends the other sessions that the request's cookies opened. A failure does not fail the login.
    async fn end_others(&self, engine: &Arc<Engine>, made: &Opened) {
        let Some(besides) = &self.besides else { return };
        let end = async {
            let mut ended = Ok(());
            for other in besides.others.iter().filter(|other| other.loaded.id != made.loaded.id) {
                // Sign out instead of deleting, because the secret may have been replaced since. After a failure, continue
                // with the others.
                ended = ended.and(engine.sign_out(other, Ending::Replaced).await.map(drop));
            }
            ended
        };
        let ended = timeout(engine.request_time() / 2, end).await.unwrap_or_else(|_| Err(Error::too_late()));
        if let Err(error) = ended {
            let error = error.chain();
            log::limited!(
                warn,
                engine.limit(),
                (%error,),
                "a login could not end another session that its cookies open"
            );
        }
    }

    /// Ends the grace of the request's ID early, because its holder signed in on another session.
    async fn end_grace(&self, engine: &Arc<Engine>, old: &Opened) -> Result<(), Error> {
        let ended = engine.rewrite(Arc::clone(&old.loaded), random_version(), false, |contents| {
            Ok(contents.end_grace(&old.secret, engine.now()))
        });
        ended.await.map(drop)
    }

    /// Completes a `clear_others` whose new ID is stored.
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

    /// Reports that a session may live on after a `clear_others`: one of the request's cookies leads to it by a secret that is
    /// not accepted.
    fn unproven_beside(&self, login: bool) -> Option<Refused> {
        let unproven = !login && self.besides.as_ref().is_some_and(|besides| besides.unproven);
        unproven.then(Refused::not_opened)
    }

    /// Refuses a login. A `clear` in the same request still takes effect, for the session that the request came with.
    async fn refuse(&mut self, engine: &Arc<Engine>, base: Base, why: Refused) -> Result<Committed, Error> {
        let base = match self.staged.clear {
            Clearing::All => self.sign_out_all(engine, SignOut::Clear).await?.left_of(base),
            Clearing::Nothing | Clearing::Others | Clearing::Rest { .. } => base,
        };
        Ok(Committed::refused(base, why))
    }
}

const NOT_NEWEST: &str = "the session has a newer ID, or has ended: sign in again";
/// How often concurrent writes to a visitor's session are taken over.
const MERGES: u32 = 3;
