//! What a draft does to the backend: the one place where a request's changes become calls.

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
    session::change::{Change, Clearing, Identity, Plan},
    sessions::{
        Sessions,
        engine::{Live, Unclaimed, Written, check_key},
    },
};

/// What a request found when it loaded its session.
#[derive(Clone)]
pub(crate) enum Base {
    /// No session.
    Nothing,
    /// A session, and the hash of the secret that led to it.
    Live(Arc<Live>, SecretHash),
    /// A login ended the session that the cookie means. No cookie is set here, not even to remove it: the login's own is on
    /// its way.
    Replaced,
    /// A session that ended while the request ran. Its key and its data, as they were last seen, are all there is.
    Gone(Option<Arc<str>>, Data),
    /// A record that cannot be read. It is left alone.
    Unreadable(Error),
}

/// What a request wants to be written.
pub(crate) struct Draft {
    pub(crate) base: Base,
    pub(crate) log: Vec<Change>,
    /// What the log comes to on the base.
    pub(crate) plan: Plan,
    pub(crate) attempt: Attempt,
    pub(crate) limits: Limits,
}

/// By what a write to the session is recognised, if it has to be written again for want of an answer.
#[derive(Clone)]
pub(crate) struct Attempt {
    version: i64,
    /// The new one, of a rework.
    secret: Option<Secret>,
}

/// What this request may not do.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// It was sent by another site, and must not make an anonymous session.
    pub(crate) cross_site: bool,
    /// Its response has left, and no cookie can be set.
    pub(crate) sent: bool,
}

/// What came of it.
pub(crate) struct Committed {
    pub(crate) base: Base,
    pub(crate) effect: Option<Effect>,
    /// Changes were dropped: there is no session, and none was to be made.
    pub(crate) dropped: bool,
    /// They were made to other data than the handler saw: somebody else had written.
    pub(crate) replayed: bool,
}

/// What the response is to say.
#[derive(Clone)]
pub(crate) enum Effect {
    /// This ID, and when the session ends at the latest.
    Set(SessionId, u64),
    Remove,
}

impl Base {
    pub(crate) fn key(&self) -> Option<&str> {
        match self {
            Self::Live(live, _) => live.contents.key.as_deref(),
            Self::Gone(key, _) => key.as_deref(),
            Self::Nothing | Self::Replaced | Self::Unreadable(_) => None,
        }
    }

    /// Nothing asked for yet.
    pub(crate) fn plan(&self) -> Plan {
        match self {
            Self::Live(live, _) => Plan::on(live.contents.data.clone()),
            Self::Gone(_, data) => Plan { gone: true, ..Plan::on(data.clone()) },
            Self::Nothing | Self::Replaced | Self::Unreadable(_) => Plan::default(),
        }
    }
}

impl Attempt {
    pub(crate) fn of(plan: &Plan) -> Result<Self, Error> {
        let secret = match plan.identity {
            Identity::Rework => Some(Secret::random()?),
            _ => None,
        };
        Ok(Self { version: random_version(), secret })
    }
}

impl Committed {
    fn kept(base: Base) -> Self {
        Self { base, effect: None, dropped: false, replayed: false }
    }

    fn dropped(base: Base) -> Self {
        Self { dropped: true, ..Self::kept(base) }
    }
}

impl Draft {
    /// Writes it, or says why not; then nothing of it is known to be written.
    pub(crate) async fn commit(&mut self, sessions: &Sessions) -> Result<Committed, Error> {
        self.check()?;
        let removed = match self.plan.clear {
            Clearing::All => Box::pin(self.clear(sessions)).await?,
            Clearing::Others => Box::pin(self.clear_others(sessions)).await?,
            Clearing::Nothing => None,
        };
        let mut committed = match &self.plan.identity {
            Identity::Keep | Identity::Rework => self.keep(sessions).await?,
            // Boxed: most commits are no login and no logout, and need not be as large as one.
            Identity::Bind(key) | Identity::Create(key) => Box::pin(self.sign_in(sessions, key)).await?,
            Identity::Delete => Box::pin(self.delete(sessions)).await?,
        };
        committed.effect = committed.effect.or(removed);
        Ok(committed)
    }

    /// Nothing is begun that could not be ended.
    fn check(&self) -> Result<(), Error> {
        for change in &self.log {
            if let Change::Failed(error) = change {
                return Err(error.clone());
            }
        }
        if self.plan.ttl.is_some_and(|ttl| ttl < Duration::from_millis(1)) {
            return Err(Error::new(ErrorKind::Config, "the ttl of a session must not be zero"));
        }
        match &self.plan.identity {
            Identity::Bind(key) | Identity::Create(key) => check_key(key).map(drop)?,
            Identity::Keep | Identity::Rework | Identity::Delete => {}
        }
        if self.limits.sent && self.changes_id() {
            return Err(Error::new(ErrorKind::ResponseSent, "the response has left: its cookie can no longer be set"));
        }
        Ok(())
    }

    fn changes_id(&self) -> bool {
        match (&self.plan.identity, &self.base) {
            (Identity::Bind(_) | Identity::Create(_), _) | (Identity::Rework, Base::Live(..)) => true,
            (Identity::Delete, _) | (_, Base::Nothing) => !self.plan.data.is_empty(),
            _ => self.plan.clear == Clearing::All && !self.plan.data.is_empty(),
        }
    }

    /// All sessions of the loaded one's key, or the loaded one alone if it has none.
    async fn clear(&mut self, sessions: &Sessions) -> Result<Option<Effect>, Error> {
        let ended = match &self.base {
            Base::Live(live, _) if live.id.owner().is_none() => match sessions.end(Arc::clone(live)).await? {
                Written::Replaced => {
                    self.base = Base::Replaced;
                    return Ok(None);
                }
                ended => matches!(ended, Written::Done(_)),
            },
            // Whose sessions these are is not known, and "done" would be a lie.
            Base::Unreadable(error) => return Err(error.clone()),
            base => match base.key() {
                Some(key) => sessions.clear_all(sessions.owner(key), None).await? > 0,
                None => return Ok(None),
            },
        };
        self.base = Base::Nothing;
        Ok(ended.then_some(Effect::Remove))
    }

    /// All sessions of the loaded one's key but that one. One without a key has no others.
    async fn clear_others(&self, sessions: &Sessions) -> Result<Option<Effect>, Error> {
        let keep = match &self.base {
            Base::Live(live, _) => Some(live.id),
            Base::Unreadable(error) => return Err(error.clone()),
            Base::Nothing | Base::Replaced | Base::Gone(..) => None,
        };
        if let Some(key) = self.base.key() {
            sessions.clear_all(sessions.owner(key), keep).await?;
        }
        Ok(None)
    }

    /// Writes to the session that there is, or makes an anonymous one.
    async fn keep(&self, sessions: &Sessions) -> Result<Committed, Error> {
        match &self.base {
            Base::Live(live, presented) => self.rewrite(sessions, live, presented).await,
            Base::Nothing => Box::pin(self.add_anonymous(sessions)).await,
            Base::Unreadable(error) => Err(error.clone()),
            Base::Gone(_, data) if !self.plan.data.same_as(data) => Ok(Committed::dropped(self.base.clone())),
            Base::Replaced if !self.plan.data.is_empty() => Ok(Committed::dropped(Base::Replaced)),
            Base::Gone(..) | Base::Replaced => Ok(Committed::kept(self.base.clone())),
        }
    }

    async fn rewrite(&self, sessions: &Sessions, live: &Arc<Live>, presented: &SecretHash) -> Result<Committed, Error> {
        let Attempt { version, secret } = &self.attempt;
        let id = secret.as_ref().map(|new| sessions.id(live.id, new)).transpose()?;
        let (mut first, mut replayed) = (true, false);
        let written = sessions.rewrite(Arc::clone(live), *version, |contents| {
            // On a conflict the same changes are made to what is there now.
            replayed = !mem::take(&mut first);
            let (ttl, data) = if replayed {
                let plan = Plan::replay(&self.log, contents.data.clone(), contents.key.as_deref())?;
                (plan.ttl, plan.data)
            } else {
                (self.plan.ttl, self.plan.data.clone())
            };
            let idle = ttl.map(millis).or(contents.idle);
            let rotated = secret.as_ref().is_some_and(|new| sessions.rotate(contents, presented, new));
            let changed = rotated || idle != contents.idle || !data.same_as(&contents.data);
            contents.idle = idle;
            contents.data = data;
            Ok(changed)
        });
        let written = match written.await? {
            Written::Done(written) => written,
            Written::Replaced => return Ok(Committed::dropped(Base::Replaced)),
            Written::Unreadable(error) => return Err(error),
            Written::Gone | Written::Conflict(_) => {
                let (key, last_seen) = (live.contents.key.clone(), self.plan.data.clone());
                return Ok(Committed::dropped(Base::Gone(key, last_seen)));
            }
        };
        let new = secret.as_ref().map(Secret::hash).filter(|new| written.contents.hash.matches(new));
        let effect = id.filter(|_| new.is_some()).map(|id| Effect::Set(id, written.contents.deadline));
        let hash = new.unwrap_or(*presented);
        Ok(Committed { base: Base::Live(written, hash), effect, dropped: false, replayed })
    }

    async fn add_anonymous(&self, sessions: &Sessions) -> Result<Committed, Error> {
        if self.plan.data.is_empty() {
            return Ok(Committed::kept(Base::Nothing));
        }
        if self.limits.cross_site {
            return Ok(Committed::dropped(Base::Nothing));
        }
        let contents = sessions.contents(None, self.plan.data.clone(), self.plan.ttl.map(millis));
        let (live, id) = sessions.add(contents).await?;
        Ok(set_out(live, id, false))
    }

    /// Ends the session that there is; data that was written afterwards belongs to another, anonymous one.
    async fn delete(&self, sessions: &Sessions) -> Result<Committed, Error> {
        let removed = match &self.base {
            // Whoever holds a replaced ID has a new one on its way.
            Base::Replaced => return self.keep(sessions).await,
            Base::Live(live, _) => match sessions.end(Arc::clone(live)).await? {
                Written::Replaced if self.plan.data.is_empty() => return Ok(Committed::kept(Base::Replaced)),
                Written::Replaced => return Ok(Committed::dropped(Base::Replaced)),
                ended => matches!(ended, Written::Done(_)),
            },
            // The record stays, but the browser may forget it.
            Base::Unreadable(_) => true,
            Base::Nothing | Base::Gone(..) => false,
        };
        let mut committed = self.add_anonymous(sessions).await?;
        if removed && committed.effect.is_none() {
            committed.effect = Some(Effect::Remove);
        }
        Ok(committed)
    }

    /// A session of that key, under a new name and a new secret; the one before ends.
    async fn sign_in(&self, sessions: &Sessions, key: &str) -> Result<Committed, Error> {
        let mut old = match &self.base {
            Base::Live(live, _) => Some(Arc::clone(live)),
            _ => None,
        };
        let foreign = old.take_if(|live| live.contents.key.as_deref().is_some_and(|owner| owner != key));
        let kept = old.as_ref().filter(|_| !self.plan.known);
        let idle = self.plan.ttl.map(millis).or(kept.and_then(|old| old.contents.idle));
        let contents = sessions.contents(Some(key), self.plan.data.clone(), idle);
        if let Some(live) = foreign {
            // Another user's session ends first: should anything fail later, nobody is left in it.
            sessions.check_size(&contents)?;
            replace(sessions, live).await?;
        }
        let (mut new, id) = sessions.add(contents).await?;
        let unclaimed = Unclaimed::new(sessions, new.id);
        let (mut alive, mut replayed, mut last_seen) = (true, false, self.plan.data.clone());
        while let Some(live) = old.take() {
            let data = match sessions.bury(&live, sessions.grace()).await? {
                // One that became unreadable is left behind.
                Written::Done(_) | Written::Unreadable(_) => break,
                // It ended meanwhile, and its data with it; or somebody wrote to it, and that goes over too.
                Written::Gone | Written::Replaced => Data::default(),
                Written::Conflict(current) => old.insert(current).contents.data.clone(),
            };
            if !self.plan.fresh {
                replayed = true;
                last_seen = Plan::replay(&self.log, data, live.contents.key.as_deref())?.data;
                let rewritten = sessions.rewrite(Arc::clone(&new), random_version(), |contents| {
                    contents.data = last_seen.clone();
                    Ok(true)
                });
                match rewritten.await? {
                    Written::Done(rewritten) => new = rewritten,
                    // All sessions of the key were ended since.
                    _ => alive = false,
                }
            }
            yield_now().await;
        }
        unclaimed.claim();
        Ok(match alive {
            true => set_out(new, id, replayed),
            false => Committed::dropped(Base::Gone(Some(key.into()), last_seen)),
        })
    }
}

/// A session that the browser has yet to hear of.
fn set_out(live: Arc<Live>, id: SessionId, replayed: bool) -> Committed {
    let effect = Some(Effect::Set(id, live.contents.deadline));
    let hash = live.contents.hash;
    Committed { base: Base::Live(live, hash), effect, dropped: false, replayed }
}

/// Ends a session for a login, whatever else is written to it, and leaves a tombstone.
async fn replace(sessions: &Sessions, mut live: Arc<Live>) -> Result<(), Error> {
    while let Written::Conflict(current) = sessions.bury(&live, sessions.grace()).await? {
        live = current;
        yield_now().await;
    }
    Ok(())
}
