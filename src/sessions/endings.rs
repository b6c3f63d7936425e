//! Ending sessions: sign-outs by a secret, sessions that a login leaves behind, and all sessions of a user.
//!
//! A sign-out takes effect only if its secret opens the record. The check and the write are atomic: the backend call, an update
//! or a `clear`, succeeds only if the record has not changed since the secret was checked.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{runtime::Handle, task::yield_now, time::timeout};

use crate::{
    backend::{
        Backend, Outcome,
        clear::{By, Clear, Cleared},
    },
    error::{Error, ErrorKind},
    events::EventKind,
    log,
    random::random_version,
    record::{
        Record,
        id::{Owner, RecordId},
        secrets::Opening,
        token::SessionId,
    },
    sessions::{
        engine::Engine,
        loaded::{EndOutcome, Loaded, Opened, WriteOutcome},
        watch::Ending,
        writes::UPDATING,
    },
};

/// The result of a `clear` by a session.
pub(crate) struct ClearedBy {
    /// How many sessions ended.
    pub(crate) ended: u64,
    /// Whether the secret was the newest one of the session.
    pub(crate) by_newest: bool,
}

impl<B: Backend> Engine<B> {
    /// Ends a session if the secret of the request opens it.
    pub(crate) async fn sign_out(&self, opened: &Opened, ending: Ending) -> Result<EndOutcome, Error> {
        let ended = self.sign_out_quietly(opened, ending).await?;
        if ended == EndOutcome::Now {
            self.tell_of(EventKind::SignedOut, &opened.loaded);
        }
        Ok(ended)
    }

    async fn sign_out_quietly(&self, opened: &Opened, ending: Ending) -> Result<EndOutcome, Error> {
        // The time is read before each call, so a grace that ends during the call still counts.
        let (mut opened, mut now) = (opened.clone(), self.now());
        if opened.opening(now).is_none() {
            // The loaded copy may be old: the session may have ended or changed since.
            let Some(loaded) = self.load_again(opened.loaded.id).await? else { return Ok(EndOutcome::Before) };
            opened = opened.at(loaded);
        }
        for _ in 0..TRIES_TO_END {
            if opened.opening(now).is_none() {
                return Ok(EndOutcome::Refused);
            }
            now = self.now();
            match self.end_if(&opened.loaded, ending).await? {
                WriteOutcome::Done(_) => return Ok(EndOutcome::Now),
                WriteOutcome::Gone => return Ok(EndOutcome::Before),
                WriteOutcome::Conflict(current) => opened = opened.at(current),
                // The record has become unreadable. The secret opened it when it was loaded.
                WriteOutcome::Unreadable(_) => break,
            }
        }
        if opened.opening(now).is_none() {
            return Ok(EndOutcome::Refused);
        }
        // A sign-out wins against any number of writers, even against one that replaces the secret right now.
        self.delete(opened.loaded.id, ending).await.map(was_there)
    }

    /// Ends a session, even if other requests keep writing to it.
    pub(crate) async fn end(&self, loaded: &Arc<Loaded>, ending: Ending) -> Result<EndOutcome, Error> {
        let mut loaded = Arc::clone(loaded);
        for _ in 0..TRIES_TO_END {
            match self.end_if(&loaded, ending).await? {
                WriteOutcome::Done(_) => return Ok(EndOutcome::Now),
                WriteOutcome::Gone => return Ok(EndOutcome::Before),
                WriteOutcome::Conflict(current) => loaded = current,
                WriteOutcome::Unreadable(_) => break,
            }
        }
        self.delete(loaded.id, ending).await.map(was_there)
    }

    /// Ends a session that another one replaces, if the secret of the request is its newest one.
    pub(crate) async fn end_newest(&self, opened: &Opened) -> Result<EndOutcome, Error> {
        let mut opened = opened.clone();
        while opened.is_newest() {
            match self.end_if(&opened.loaded, Ending::Replaced).await? {
                WriteOutcome::Done(_) => return Ok(EndOutcome::Now),
                WriteOutcome::Gone => return Ok(EndOutcome::Before),
                WriteOutcome::Conflict(current) => opened = opened.at(current),
                // It is not known whether the secret is still the newest one.
                WriteOutcome::Unreadable(_) => break,
            }
            yield_now().await;
        }
        Ok(EndOutcome::Refused)
    }

    /// Ends a session if it has not been written to since it was loaded.
    pub(crate) async fn end_if(&self, loaded: &Arc<Loaded>, ending: Ending) -> Result<WriteOutcome, Error> {
        // An update with a time to live of zero removes the record.
        let end = Record::new(loaded.id, random_version(), Duration::ZERO, Bytes::new());
        let new = Loaded { version: end.version, ..Loaded::clone(loaded) };
        let updated = self.answer(self.backend().update(loaded.version, end, false).await, UPDATING)?;
        Ok(match updated {
            Outcome::Done => {
                self.ended(&[loaded.id], ending);
                WriteOutcome::Done(Arc::clone(loaded))
            }
            Outcome::Gone => WriteOutcome::Gone,
            Outcome::Conflict(current) => self.conflict(&new, current),
        })
    }

    /// Deletes a record unconditionally, and returns whether it existed.
    pub(crate) async fn delete(&self, id: RecordId, ending: Ending) -> Result<bool, Error> {
        let was_there = self.answer(self.backend().delete(id).await, "a session could not be ended")?;
        if was_there {
            self.ended(&[id], ending);
        }
        Ok(was_there)
    }

    /// Ends all sessions of a session key, and returns how many ended.
    pub(crate) async fn clear(&self, key: &str) -> Result<u64, Error> {
        match self.clear_once(self.owner(key), Clear { name: random_version(), by: None }).await? {
            Cleared::Done(ended) => {
                self.tell(EventKind::Cleared { ended, others: false }, None, Some(key));
                Ok(ended)
            }
            // An unconditional clear has neither outcome.
            Cleared::Gone | Cleared::Conflict(_) => Ok(0),
        }
    }

    /// Ends all sessions of a session's owner, if the secret of the request opens that session at that moment. With `keep` the
    /// session itself stays, and the secret must be the newest one.
    ///
    /// Returns `None` if the secret does not suffice, or if the session has ended. The name identifies a retry.
    pub(crate) async fn clear_by(&self, opened: &Opened, keep: bool, name: i64) -> Result<Option<ClearedBy>, Error> {
        let Some(owner) = opened.loaded.owner() else { return Ok(None) };
        let may = |opened: &Opened, now: u64| match opened.opening(now) {
            Some(opening) => !keep || opening == Opening::Newest,
            None => false,
        };
        // The time before a call, as in `sign_out`.
        let (mut opened, mut now) = (opened.clone(), self.now());
        if !may(&opened, now) {
            // The loaded copy may be old: the session may have changed since.
            let Some(loaded) = self.load_again(opened.loaded.id).await? else { return Ok(None) };
            opened = opened.at(loaded);
        }
        while may(&opened, now) {
            now = self.now();
            let by = By { id: opened.loaded.id, version: opened.loaded.version, keep };
            match self.clear_once(owner, Clear { name, by: Some(by) }).await? {
                Cleared::Done(ended) => {
                    self.tell_of(EventKind::Cleared { ended, others: keep }, &opened.loaded);
                    return Ok(Some(ClearedBy { ended, by_newest: opened.is_newest() }));
                }
                Cleared::Gone => return Ok(None),
                Cleared::Conflict(current) => {
                    let current = self.read(by.id, current)?;
                    if !current.is_live_at(self.now()) {
                        return Ok(None);
                    }
                    opened = opened.at(Arc::new(current));
                }
            }
            yield_now().await;
        }
        Ok(None)
    }

    /// Gives a session of a user a new secret, and ends the user's other sessions. Returns how many ended.
    pub(crate) async fn renew_and_clear(&self, old: &Opened) -> Result<(SessionId, u64), Error> {
        let (new_id, hash) = self.new_secret(old.loaded.id)?;
        let name = random_version();
        let renewed = self.rewrite(Arc::clone(&old.loaded), name, false, |contents| {
            Ok(contents.supersede(&old.secret, hash, self.now()))
        });
        let loaded = match renewed.await? {
            WriteOutcome::Done(loaded) if loaded.contents.hash.matches(&hash) => loaded,
            WriteOutcome::Unreadable(error) => return Err(error),
            _ => return Err(Error::not_newest()),
        };
        let kept = Opened { loaded, secret: hash };
        let cleared = match self.clear_by(&kept, true, name).await {
            // The new ID is stored, so a retry is worth it. It has the same name, which makes it idempotent.
            Err(error) if error.kind() == ErrorKind::Unavailable => self.clear_by(&kept, true, name).await?,
            cleared => cleared?,
        };
        let cleared = cleared.ok_or_else(Error::not_newest)?;
        Ok((new_id, cleared.ended))
    }

    async fn clear_once(&self, owner: Owner, clear: Clear) -> Result<Cleared, Error> {
        let began = self.watchers().begin();
        let cleared = self.backend().clear(owner, clear).await;
        let cleared = self.answer(cleared, "the sessions of a user could not be cleared")?;
        if let Cleared::Done(_) = cleared {
            self.cleared(owner, clear.by.filter(|by| by.keep).map(|by| by.id), began);
        }
        Ok(cleared)
    }

    /// Loads a session again. Returns `None` if it is no longer live.
    pub(crate) async fn load_again(&self, id: RecordId) -> Result<Option<Arc<Loaded>>, Error> {
        let Some(record) = self.load(id).await? else { return Ok(None) };
        let loaded = self.read(id, record)?;
        Ok(loaded.is_live_at(self.now()).then(|| Arc::new(loaded)))
    }

    /// Removes a session whose ID never reached a client, in the background.
    pub(crate) fn remove_orphan(self: &Arc<Self>, id: RecordId) {
        let Ok(runtime) = Handle::try_current() else { return };
        let (engine, permit) = (Arc::clone(self), self.permit());
        runtime.spawn(async move {
            let deleted = timeout(engine.request_time(), engine.delete(id, Ending::SignedOut)).await;
            if let Err(error) = deleted.unwrap_or_else(|_| Err(Error::too_late())) {
                // The session expires anyway.
                let (error, session) = (error.chain(), id.sid());
                log::limited!(
                    warn,
                    engine.limit(),
                    (%error, session,),
                    "could not remove a session whose ID no client has"
                );
            }
            drop(permit);
        });
    }
}

fn was_there(was_there: bool) -> EndOutcome {
    if was_there { EndOutcome::Now } else { EndOutcome::Before }
}

const TRIES_TO_END: usize = 3;
