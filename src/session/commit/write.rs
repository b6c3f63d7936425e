//! Plain changes: data, the idle timeout and a rotation, written to the session or to a visitor's new one.

use std::{mem, sync::Arc, time::Duration};

use crate::{
    clock::millis,
    error::Error,
    events::EventKind,
    record::{
        data::Data,
        token::{Secret, SessionId},
    },
    session::{
        change::Staged,
        commit::{Commit, Committed, CookieChanges, Dropped},
        presented::Base,
        write_id::WriteId,
    },
    sessions::{
        creation::{Conditions, NewId, NewSession},
        engine::Engine,
        loaded::{Loaded, Opened, WriteOutcome},
    },
};

impl Commit {
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
