//! The commit: turns a request's changes into calls of the session engine.

use std::{mem, sync::Arc, time::Duration};

use tokio::task::yield_now;

use crate::{
    clock::millis,
    error::{Error, ErrorKind},
    random::random_version,
    record::{
        data::Data,
        token::{Secret, SecretHash, SessionId},
    },
    session::change::{Change, Clearing, Identity, Staged},
    sessions::{
        engine::{Engine, check_key},
        loaded::{Base, Loaded, WriteOutcome},
    },
};

/// What a request wants to be written.
pub(crate) struct Commit {
    pub(crate) base: Base,
    pub(crate) changes: Vec<Change>,
    /// The base with the changes applied.
    pub(crate) staged: Staged,
    pub(crate) write_id: WriteId,
    /// The request came from another site and has no session. It must not create a visitor's session.
    pub(crate) cross_site: bool,
    /// The response has left, so no cookie can be set.
    pub(crate) response_sent: bool,
}

/// What a write is recognised by, if it has to be tried again because the answer was lost.
#[derive(Clone)]
pub(crate) struct WriteId {
    pub(crate) version: i64,
    /// The new secret, if it is a rotation.
    secret: Option<Secret>,
}

/// What became of a commit that was carried out.
pub(crate) struct Committed {
    pub(crate) base: Base,
    pub(crate) cookie: Option<CookieChange>,
    /// Why changes were dropped, if some were.
    pub(crate) dropped: Option<Dropped>,
    /// The changes were applied to other data than the handler saw, because another request had written.
    pub(crate) rebased: bool,
}

/// Why there is no session that changes could be written to.
#[derive(Clone, Copy)]
pub(crate) enum Dropped {
    /// It is gone.
    Gone,
    /// There was none, and the request came from another site.
    CrossSite,
}

/// What the response says about the cookie.
#[derive(Clone)]
pub(crate) enum CookieChange {
    /// Sets this ID, whose session ends at this time at the latest.
    Set(SessionId, u64),
    Remove,
}

impl WriteId {
    pub(crate) fn new(staged: &Staged) -> Result<Self, Error> {
        let secret = match staged.identity {
            Identity::Rework => Some(Secret::random()?),
            Identity::Keep | Identity::Bind(_) | Identity::Create(_) | Identity::Delete => None,
        };
        Ok(Self { version: random_version(), secret })
    }
}

impl Committed {
    /// Nothing was written, and nothing had to be.
    fn kept(base: Base) -> Self {
        Self { base, cookie: None, dropped: None, rebased: false }
    }

    fn dropped(base: Base) -> Self {
        Self { dropped: Some(Dropped::Gone), ..Self::kept(base) }
    }

    /// A session that the browser has yet to hear of.
    fn begun(loaded: Arc<Loaded>, id: SessionId, rebased: bool) -> Self {
        let cookie = Some(CookieChange::Set(id, loaded.contents.deadline));
        let hash = loaded.contents.hash;
        Self { base: Base::Live(loaded, hash), cookie, dropped: None, rebased }
    }
}

impl Commit {
    /// Writes the changes. After an error none of them is known to be written.
    pub(crate) async fn run(&mut self, engine: &Arc<Engine>) -> Result<Committed, Error> {
        self.check()?;
        let removed = match self.staged.clear {
            Clearing::All => Box::pin(self.clear(engine)).await?,
            Clearing::Others => Box::pin(self.clear_others(engine)).await?,
            Clearing::Nothing => None,
        };
        let mut committed = match &self.staged.identity {
            Identity::Keep | Identity::Rework => self.keep(engine).await?,
            // Boxed: most commits are neither a login nor a sign-out, and need not be as large as one.
            Identity::Bind(key) | Identity::Create(key) => Box::pin(self.sign_in(engine, key)).await?,
            Identity::Delete => Box::pin(self.delete(engine)).await?,
        };
        committed.cookie = committed.cookie.or(removed);
        Ok(committed)
    }

    /// Refuses what could not be carried out, before anything is written.
    fn check(&self) -> Result<(), Error> {
        for change in &self.changes {
            if let Change::Failed(error) = change {
                return Err(error.clone());
            }
        }
        if self.staged.ttl.is_some_and(|ttl| ttl < Duration::from_millis(1)) {
            return Err(Error::new(ErrorKind::Config, "the ttl of a session must not be zero"));
        }
        match &self.staged.identity {
            Identity::Bind(key) | Identity::Create(key) => check_key(key).map(drop)?,
            Identity::Keep | Identity::Rework | Identity::Delete => {}
        }
        if self.response_sent && self.changes_id() {
            return Err(Error::new(ErrorKind::ResponseSent, "the response has left: its cookie can no longer be set"));
        }
        Ok(())
    }

    fn changes_id(&self) -> bool {
        match (&self.staged.identity, &self.base) {
            (Identity::Bind(_) | Identity::Create(_), _) | (Identity::Rework, Base::Live(..)) => true,
            (Identity::Delete, _) | (_, Base::Nothing) => !self.staged.data.is_empty(),
            _ => self.staged.clear == Clearing::All && !self.staged.data.is_empty(),
        }
    }

    /// Ends all sessions of the loaded session's key, or the loaded one alone if it is a visitor's.
    async fn clear(&mut self, engine: &Arc<Engine>) -> Result<Option<CookieChange>, Error> {
        let ended = match &self.base {
            Base::Live(loaded, _) if loaded.id.owner().is_none() => match engine.end(Arc::clone(loaded)).await? {
                WriteOutcome::Replaced => {
                    self.base = Base::Replaced;
                    return Ok(None);
                }
                ended => matches!(ended, WriteOutcome::Done(_)),
            },
            // It is not known whose sessions these are, so "done" would be a lie.
            Base::Unreadable(error) => return Err(error.clone()),
            base => match base.key() {
                Some(key) => engine.clear(engine.owner(key), None).await?.is_some_and(|ended| ended > 0),
                None => return Ok(None),
            },
        };
        self.base = Base::Nothing;
        Ok(ended.then_some(CookieChange::Remove))
    }

    /// Ends all sessions of the loaded session's key except that one. A visitor's session has no others.
    async fn clear_others(&self, engine: &Arc<Engine>) -> Result<Option<CookieChange>, Error> {
        let keep = match &self.base {
            Base::Live(loaded, _) => Some((loaded.id, loaded.version)),
            Base::Unreadable(error) => return Err(error.clone()),
            Base::Nothing | Base::Replaced | Base::Gone(..) => None,
        };
        if let Some(key) = self.base.key()
            && engine.clear(engine.owner(key), keep).await?.is_none()
        {
            return Err(Error::new(ErrorKind::Unauthorized, "the session has ended, so no other session has ended"));
        }
        Ok(None)
    }

    /// Writes to the session that there is, or creates a visitor's session.
    async fn keep(&self, engine: &Arc<Engine>) -> Result<Committed, Error> {
        match &self.base {
            Base::Live(loaded, presented) => self.rewrite(engine, loaded, presented).await,
            Base::Nothing => Box::pin(self.create_for_visitor(engine)).await,
            Base::Unreadable(error) => Err(error.clone()),
            Base::Gone(_, data) if !self.staged.data.same_as(data) => Ok(Committed::dropped(self.base.clone())),
            Base::Replaced if !self.staged.data.is_empty() => Ok(Committed::dropped(Base::Replaced)),
            Base::Gone(..) | Base::Replaced => Ok(Committed::kept(self.base.clone())),
        }
    }

    async fn rewrite(
        &self,
        engine: &Arc<Engine>,
        loaded: &Arc<Loaded>,
        presented: &SecretHash,
    ) -> Result<Committed, Error> {
        let WriteId { version, secret } = &self.write_id;
        let id = secret.as_ref().map(|new| engine.id(loaded.id, new)).transpose()?;
        let (mut first, mut rebased) = (true, false);
        let written = engine.rewrite(Arc::clone(loaded), *version, |contents| {
            // After a conflict the same changes are applied to what is there by now.
            rebased = !mem::take(&mut first);
            let (ttl, data) = if rebased {
                let staged = Staged::rebase(&self.changes, contents.data.clone(), contents.key.as_deref())?;
                (staged.ttl, staged.data)
            } else {
                (self.staged.ttl, self.staged.data.clone())
            };
            let idle = ttl.map(millis).or(contents.idle);
            let rotated = secret.as_ref().is_some_and(|new| engine.rotate(contents, presented, new));
            let changed = rotated || idle != contents.idle || !data.same_as(&contents.data);
            contents.idle = idle;
            contents.data = data;
            Ok(changed)
        });
        let written = match written.await? {
            WriteOutcome::Done(written) => written,
            WriteOutcome::Replaced => return Ok(Committed::dropped(Base::Replaced)),
            WriteOutcome::Unreadable(error) => return Err(error),
            WriteOutcome::Gone | WriteOutcome::Conflict(_) => {
                let (key, last_seen) = (loaded.contents.key.clone(), self.staged.data.clone());
                return Ok(Committed::dropped(Base::Gone(key, last_seen)));
            }
        };
        let new = secret.as_ref().map(Secret::hash).filter(|new| written.contents.hash.matches(new));
        let cookie = id.filter(|_| new.is_some()).map(|id| CookieChange::Set(id, written.contents.deadline));
        let hash = new.unwrap_or(*presented);
        Ok(Committed { base: Base::Live(written, hash), cookie, dropped: None, rebased })
    }

    async fn create_for_visitor(&self, engine: &Arc<Engine>) -> Result<Committed, Error> {
        if self.staged.data.is_empty() {
            return Ok(Committed::kept(Base::Nothing));
        }
        if self.cross_site {
            return Ok(Committed { dropped: Some(Dropped::CrossSite), ..Committed::kept(Base::Nothing) });
        }
        let contents = engine.contents(None, self.staged.data.clone(), self.staged.ttl.map(millis));
        let (loaded, id) = engine.create(contents).await?;
        Ok(Committed::begun(loaded, id, false))
    }

    /// Ends the session that there is. Data that was written after that belongs to a new visitor's session.
    async fn delete(&self, engine: &Arc<Engine>) -> Result<Committed, Error> {
        let removed = match &self.base {
            // A client that holds a replaced ID has a new one on its way.
            Base::Replaced => return self.keep(engine).await,
            Base::Live(loaded, _) => match engine.end(Arc::clone(loaded)).await? {
                WriteOutcome::Replaced if self.staged.data.is_empty() => return Ok(Committed::kept(Base::Replaced)),
                WriteOutcome::Replaced => return Ok(Committed::dropped(Base::Replaced)),
                ended => matches!(ended, WriteOutcome::Done(_)),
            },
            // The record stays, but the browser forgets it.
            Base::Unreadable(_) => true,
            Base::Nothing | Base::Gone(..) => false,
        };
        let mut committed = self.create_for_visitor(engine).await?;
        if removed && committed.cookie.is_none() {
            committed.cookie = Some(CookieChange::Remove);
        }
        Ok(committed)
    }

    /// Creates a session of this key, under a new name and with a new secret, and ends the session before.
    async fn sign_in(&self, engine: &Arc<Engine>, key: &str) -> Result<Committed, Error> {
        let mut old = match &self.base {
            Base::Live(loaded, _) => Some(Arc::clone(loaded)),
            _ => None,
        };
        let foreign = old.take_if(|loaded| loaded.contents.key.as_deref().is_some_and(|owner| owner != key));
        let kept = old.as_ref().filter(|_| !self.staged.known);
        let idle = self.staged.ttl.map(millis).or(kept.and_then(|old| old.contents.idle));
        let contents = engine.contents(Some(key), self.staged.data.clone(), idle);
        if let Some(loaded) = foreign {
            // Another user's session ends first, so that a later failure leaves no one signed in to it.
            engine.check_size(&contents)?;
            replace(engine, loaded).await?;
        }
        let (mut new, id) = engine.create(contents).await?;
        let orphan = engine.remove_on_drop(new.id);
        let (mut alive, mut rebased, mut last_seen) = (true, false, self.staged.data.clone());
        while let Some(loaded) = old.take() {
            let data = match engine.bury(&loaded, engine.grace()).await? {
                // A record that became unreadable is left behind.
                WriteOutcome::Done(_) | WriteOutcome::Unreadable(_) => break,
                // It ended meanwhile, and its data with it; or another request wrote to it, and that goes over too.
                WriteOutcome::Gone | WriteOutcome::Replaced => Data::default(),
                WriteOutcome::Conflict(current) => old.insert(current).contents.data.clone(),
            };
            if !self.staged.fresh {
                rebased = true;
                last_seen = Staged::rebase(&self.changes, data, loaded.contents.key.as_deref())?.data;
                let rewritten = engine.rewrite(Arc::clone(&new), random_version(), |contents| {
                    contents.data = last_seen.clone();
                    Ok(true)
                });
                match rewritten.await? {
                    WriteOutcome::Done(rewritten) => new = rewritten,
                    // All sessions of the key have been ended since.
                    _ => alive = false,
                }
            }
            yield_now().await;
        }
        orphan.disarm();
        Ok(match alive {
            true => Committed::begun(new, id, rebased),
            false => Committed::dropped(Base::Gone(Some(key.into()), last_seen)),
        })
    }
}

/// Ends a session for a login, whatever other requests write to it, and leaves a tombstone.
async fn replace(engine: &Arc<Engine>, mut loaded: Arc<Loaded>) -> Result<(), Error> {
    while let WriteOutcome::Conflict(current) = engine.bury(&loaded, engine.grace()).await? {
        loaded = current;
        yield_now().await;
    }
    Ok(())
}
