//! Writes: compare-and-swaps of a session, one writer of this process at a time, and the automatic rotation.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::task::yield_now;

use crate::{
    backend::{Backend, Outcome},
    error::{Error, ErrorKind},
    events::EventKind,
    random::random_version,
    record::{
        Contents, Record,
        id::RecordId,
        secrets::Opening,
        token::{Secret, SecretHash, SessionId},
    },
    sessions::{
        engine::Engine,
        loaded::{Loaded, Opened, WriteOutcome},
    },
    timeout::within,
};

impl<B: Backend> Engine<B> {
    /// Changes a session by compare-and-swap. After a conflict, the same change is applied to the current record.
    ///
    /// `change` returns whether there is anything to write. All tries use the same version, so only one of them can be stored,
    /// and it is recognised by its version.
    pub(crate) async fn rewrite(
        &self,
        mut loaded: Arc<Loaded>,
        version: i64,
        mut retry: bool,
        mut change: impl FnMut(&mut Contents) -> Result<bool, Error>,
    ) -> Result<WriteOutcome, Error> {
        let mut turn = None;
        loop {
            if turn.is_none() {
                turn = Some(self.turn(loaded.id).await);
            }
            let outcome = {
                // This block keeps its temporaries out of the future, which would be moved with them.
                let write = {
                    let mut new = Loaded { version, ..Loaded::clone(&loaded) };
                    if !change(&mut new.contents)? {
                        return Ok(WriteOutcome::Done(loaded));
                    }
                    self.write(&loaded, new, retry)
                };
                let mut write = pin!(write);
                match within(|| MAX_TURN, write.as_mut()).await {
                    Some(outcome) => outcome?,
                    // Turns only avoid conflicts, so a write that hangs gives up its turn and does not block the others.
                    None => {
                        turn = None;
                        write.await?
                    }
                }
            };
            if let WriteOutcome::Done(current) | WriteOutcome::Conflict(current) = &outcome
                && !loaded.has_same_login(&current.contents)
            {
                self.replaced(current);
            }
            match outcome {
                WriteOutcome::Conflict(current) => loaded = current,
                outcome => return Ok(outcome),
            }
            retry = false;
            // If the backend never yields, the time limit of the request could not take effect.
            yield_now().await;
        }
    }

    /// Writes new contents, if the session has not changed since it was loaded.
    pub(super) fn write(
        &self,
        loaded: &Loaded,
        mut new: Loaded,
        retry: bool,
    ) -> impl Future<Output = Result<WriteOutcome, Error>> {
        new.contents.written = self.now();
        new.ttl = self.ttl_at(self.idle(&new.contents), new.contents.deadline, new.contents.written);
        new.stale = false;
        self.swap(loaded.version, Arc::new(new), retry)
    }

    /// Compare-and-swap: stores the session if the record still has the expected version.
    async fn swap(&self, expected: i64, new: Arc<Loaded>, retry: bool) -> Result<WriteOutcome, Error> {
        let record = self.record(&new)?;
        let updated = self.backend().update(expected, record, retry).await;
        let updated = match self.answer_about(Some(new.id), updated, UPDATING) {
            Err(error) if error.kind() == ErrorKind::Unreadable => return Ok(WriteOutcome::Unreadable(error)),
            updated => updated?,
        };
        match updated {
            // The first try may have been stored with other data than this one, and other requests may have written since.
            Outcome::Done if retry => match self.load(new.id).await? {
                Some(stored) => self.read(new.id, stored).map(|stored| WriteOutcome::Done(Arc::new(stored))),
                None => Ok(WriteOutcome::Gone),
            },
            Outcome::Done => Ok(WriteOutcome::Done(new)),
            Outcome::Gone => Ok(WriteOutcome::Gone),
            Outcome::Conflict(current) => Ok(self.conflict(&new, current)),
        }
    }

    /// Interprets the record that the backend returned in place of the expected one.
    pub(crate) fn conflict(&self, new: &Loaded, current: Record) -> WriteOutcome {
        match self.read(new.id, current) {
            // This is our own write, whose answer was lost. The stored contents count, not what this try would write.
            Ok(current) if current.version == new.version => WriteOutcome::Done(Arc::new(current)),
            Ok(current) if current.is_live_at(self.now()) => WriteOutcome::Conflict(Arc::new(current)),
            Ok(_) => WriteOutcome::Gone,
            Err(error) => WriteOutcome::Unreadable(error),
        }
    }

    /// Gives a session a new secret and returns its new ID. If the given ID is itself a previous one, it is returned unchanged.
    pub(crate) async fn rework(&self, old: &Opened, id: &str) -> Result<SessionId, Error> {
        let (new_id, hash) = self.new_secret(old.loaded.id)?;
        let rotated = self.rewrite(Arc::clone(&old.loaded), random_version(), false, |contents| {
            contents.rotate(&old.secret, hash, self.grace(), self.now());
            // Never write to the session of a later login, not even a touch.
            Ok(old.loaded.has_same_login(contents))
        });
        let loaded = rotated.await?.done()?;
        match (loaded.contents.hash.matches(&hash), loaded.contents.opening(&old.secret, self.now())) {
            (true, _) => {
                self.tell_of(EventKind::Rotated, &loaded);
                Ok(new_id)
            }
            // Another call rotated the session, or it already holds as many previous secrets as it can.
            (false, Some(Opening::Newest | Opening::Previous)) => Ok(SessionId::known(id)),
            // With a grace of zero the ID is no longer valid.
            (false, Some(Opening::Superseded) | None) => Err(Error::not_found()),
        }
    }

    /// Gives a session a new secret because its cookie ends soon. Returns `None` if another request was first.
    ///
    /// The previous secret gets a grace even if `rework_grace` is zero, because the browser needs time to pick up the new cookie.
    pub(crate) async fn renew_secret(&self, opened: &Opened) -> Result<Option<(Opened, SessionId)>, Error> {
        let (id, hash) = self.new_secret(opened.loaded.id)?;
        let (version, grace) = (random_version(), self.grace().max(MIN_GRACE));
        let write = async |retry| {
            let rotate = |contents: &mut Contents| Ok(contents.rotate(&opened.secret, hash, grace, self.now()));
            self.rewrite(Arc::clone(&opened.loaded), version, retry, rotate).await
        };
        let written = match write(false).await {
            // If the secret were stored but never sent, the user would be signed out at the end of the grace.
            Err(error) if error.kind() == ErrorKind::Unavailable => write(true).await?,
            written => written?,
        };
        Ok(match written {
            WriteOutcome::Done(loaded) if loaded.contents.hash.matches(&hash) => {
                self.tell_of(EventKind::Rotated, &loaded);
                Some((Opened { loaded, secret: hash }, id))
            }
            _ => None,
        })
    }

    /// Makes a new secret for a session. Returns its ID and its hash.
    pub(super) fn new_secret(&self, id: RecordId) -> Result<(SessionId, SecretHash), Error> {
        let secret = Secret::random()?;
        Ok((self.id(id, &secret)?, secret.hash()))
    }
}

pub(super) const UPDATING: &str = "a session could not be updated";
const MAX_TURN: Duration = Duration::from_millis(100);
const MIN_GRACE: u64 = 10_000;
