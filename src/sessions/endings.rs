//! Endings: sign-outs by a secret, the sessions that a login leaves behind, and all sessions of a user.
//!
//! A sign-out acts only if its secret opens the record, and checking and acting are one backend call: an update, or a `clear`,
//! that succeeds only if the record is as it was when the secret was tried on it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{runtime::Handle, task::yield_now, time::timeout};

use crate::{
    backend::{Backend, By, Clear, Cleared, Outcome},
    error::Error,
    events::EventKind,
    log,
    random::random_version,
    record::{
        Record,
        id::{Owner, RecordId},
        secrets::Opening,
    },
    sessions::{
        engine::{Engine, UPDATING},
        loaded::{EndOutcome, Loaded, Opened, WriteOutcome},
        watch::Ending,
    },
};

/// What a `clear` by a session has done.
pub(crate) struct ClearedBy {
    /// How many sessions ended.
    pub(crate) ended: u64,
    /// The secret that came was the newest one.
    pub(crate) by_newest: bool,
}

/// What whoever ends sessions calls when it is done.
impl<B: Backend> Engine<B> {
    /// These sessions have ended.
    pub(crate) fn ended(&self, ids: &[RecordId], ending: Ending) {
        ids.iter().for_each(|id| self.watchers().ended(*id, ending));
    }

    /// All sessions of an owner have ended, but the one that is kept. The call [began](crate::sessions::watchers::Watchers::begin) then.
    fn cleared(&self, owner: Owner, kept: Option<RecordId>, began: u64) {
        self.watchers().cleared(owner, kept, began, self.policy().clock.moment());
    }

    /// A session was signed in to again, or has ended all others: streams that began before that hear of it.
    pub(super) fn replaced(&self, now: &Loaded) {
        self.watchers().replaced(now.id, now.contents.logins);
    }
}

impl<B: Backend> Engine<B> {
    /// Ends a session for good if the secret that came opens it.
    pub(crate) async fn sign_out(&self, opened: &Opened, ending: Ending) -> Result<EndOutcome, Error> {
        let ended = self.sign_out_quietly(opened, ending).await?;
        if ended == EndOutcome::Now {
            self.tell_of(EventKind::SignedOut, &opened.loaded);
        }
        Ok(ended)
    }

    async fn sign_out_quietly(&self, opened: &Opened, ending: Ending) -> Result<EndOutcome, Error> {
        // The time before a call: a window that ends while the call is under way counts as open.
        let (mut opened, mut now) = (opened.clone(), self.now());
        if opened.opening(now).is_none() {
            // It was loaded some time ago, and may have ended or have been written to since.
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
                // It has become unreadable. It was the right one when it was loaded.
                WriteOutcome::Unreadable(_) => break,
            }
        }
        if opened.opening(now).is_none() {
            return Ok(EndOutcome::Refused);
        }
        // A sign-out wins against any number of writers: a secret that is replaced just now still counts.
        self.delete(opened.loaded.id, ending).await.map(was_there)
    }

    /// Ends a session whatever other requests write to it.
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

    /// Ends a session if the secret that came is its newest one, because it is replaced by another one.
    pub(crate) async fn end_newest(&self, opened: &Opened) -> Result<EndOutcome, Error> {
        let mut opened = opened.clone();
        while opened.is_newest() {
            match self.end_if(&opened.loaded, Ending::Replaced).await? {
                WriteOutcome::Done(_) => return Ok(EndOutcome::Now),
                WriteOutcome::Gone => return Ok(EndOutcome::Before),
                WriteOutcome::Conflict(current) => opened = opened.at(current),
                // Nothing says that it still is.
                WriteOutcome::Unreadable(_) => break,
            }
            yield_now().await;
        }
        Ok(EndOutcome::Refused)
    }

    /// Ends a session if nobody has written to it since it was loaded.
    pub(crate) async fn end_if(&self, loaded: &Arc<Loaded>, ending: Ending) -> Result<WriteOutcome, Error> {
        // With a time to live of zero nothing of it is stored.
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

    /// Ends a record, whatever it is, and says whether it was there.
    pub(crate) async fn delete(&self, id: RecordId, ending: Ending) -> Result<bool, Error> {
        let was_there = self.answer(self.backend().delete(id).await, "a session could not be ended")?;
        if was_there {
            self.ended(&[id], ending);
        }
        Ok(was_there)
    }

    /// Ends all sessions of a session key, and says how many.
    pub(crate) async fn clear(&self, key: &str) -> Result<u64, Error> {
        match self.clear_once(self.owner(key), Clear { name: random_version(), by: None }).await? {
            Cleared::Done(ended) => {
                self.tell(EventKind::Cleared { ended, others: false }, None, Some(key));
                Ok(ended)
            }
            // Neither is an answer to a clear that depends on no record.
            Cleared::Gone | Cleared::Conflict(_) => Ok(0),
        }
    }

    /// Ends all sessions of a session's owner, if the secret that came opens that session when it is done. To `keep` the session
    /// itself it has to be the newest secret. `None` if it is not, or if the session has ended.
    ///
    /// By its name a repeat is known.
    pub(crate) async fn clear_by(&self, opened: &Opened, keep: bool, name: i64) -> Result<Option<ClearedBy>, Error> {
        let Some(owner) = opened.loaded.owner() else { return Ok(None) };
        let may = |opened: &Opened, now: u64| match opened.opening(now) {
            Some(opening) => !keep || opening == Opening::Newest,
            None => false,
        };
        // The time before a call, as in `sign_out`.
        let (mut opened, mut now) = (opened.clone(), self.now());
        if !may(&opened, now) {
            // It was loaded some time ago, and may have been written to since.
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

    async fn clear_once(&self, owner: Owner, clear: Clear) -> Result<Cleared, Error> {
        let began = self.watchers().begin();
        let cleared = self.backend().clear(owner, clear).await;
        let cleared = self.answer(cleared, "the sessions of a key could not be cleared")?;
        if let Cleared::Done(_) = cleared {
            self.cleared(owner, clear.by.filter(|by| by.keep).map(|by| by.id), began);
        }
        Ok(cleared)
    }

    /// The session of that name as it is by now, if it is live.
    pub(crate) async fn load_again(&self, id: RecordId) -> Result<Option<Arc<Loaded>>, Error> {
        let Some(record) = self.load(id).await? else { return Ok(None) };
        let loaded = self.read(id, record)?;
        Ok(loaded.is_live_at(self.now()).then(|| Arc::new(loaded)))
    }

    /// Removes a session that no client has the ID of, in the background.
    pub(crate) fn remove_orphan(self: &Arc<Self>, id: RecordId) {
        let Ok(runtime) = Handle::try_current() else { return };
        let (engine, permit) = (Arc::clone(self), self.permit());
        runtime.spawn(async move {
            let deleted = timeout(engine.request_time(), engine.delete(id, Ending::SignedOut)).await;
            if let Err(error) = deleted.unwrap_or_else(|_| Err(Error::too_late())) {
                // The session ends by itself.
                let error = error.chain();
                log::warn!(%error, session = id.sid(), "could not remove a session whose ID no client has");
            }
            drop(permit);
        });
    }
}

fn was_there(was_there: bool) -> EndOutcome {
    if was_there { EndOutcome::Now } else { EndOutcome::Before }
}

const TRIES_TO_END: usize = 3;
