//! The session engine: loads, creates, compare-and-swaps, rotates, ends and touches records through a [`Backend`].
//!
//! [`Sessions`](crate::Sessions) and the layer are made of it.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{runtime::Handle, task::yield_now, time::timeout};

use crate::{
    backend::{Backend, By, Clear, Cleared, Created, Outcome, Terms, any::AnyBackend},
    clock::millis,
    error::{BoxError, Error, ErrorKind},
    random::random_version,
    record::{
        Contents, Record,
        codec::Codec,
        data::Data,
        id::{Owner, RecordId, Sid},
        token::{Credentials, Secret, SecretHash, SessionId},
    },
    sessions::{
        background::{Background, OnDrop, Permit},
        loaded::{Base, Loaded, WriteOutcome},
        policy::Policy,
        turns::Turns,
    },
    timeout::within,
};

/// What all handles to the same sessions share, over a backend.
pub(crate) struct Engine<B = AnyBackend> {
    backend: Arc<B>,
    shared: Arc<Shared>,
}

struct Shared {
    policy: Policy,
    codec: Codec,
    turns: Turns,
    background: Arc<Background>,
}

impl<B: Backend> Engine<B> {
    pub(crate) fn new(backend: B, policy: Policy, codec: Codec) -> Self {
        let shared = Shared { policy, codec, turns: Turns::default(), background: Arc::default() };
        Self { backend: Arc::new(backend), shared: Arc::new(shared) }
    }

    /// The same engine with the type of its backend forgotten.
    pub(crate) fn erase(&self) -> Engine<AnyBackend> {
        Engine { backend: Arc::new(AnyBackend::new(Arc::clone(&self.backend))), shared: Arc::clone(&self.shared) }
    }

    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    #[cfg(feature = "conformance")]
    pub(crate) fn shared_backend(&self) -> Arc<B> {
        Arc::clone(&self.backend)
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.shared.policy
    }

    pub(crate) fn codec(&self) -> &Codec {
        &self.shared.codec
    }

    pub(crate) fn now(&self) -> u64 {
        self.policy().clock.now_ms()
    }

    pub(crate) fn request_time(&self) -> Duration {
        self.policy().request_time
    }

    /// A permit to work, for as long as it is kept; an error once the sessions are being closed.
    pub(crate) fn permit(&self) -> Result<Permit, Error> {
        self.shared.background.permit()
    }

    /// Waits for all permits, gives no more, and closes the backend.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        self.shared.background.close().await?;
        self.backend.close().await.map_err(|error| Error::backend("the backend did not close", error))
    }

    pub(crate) fn owner(&self, key: &str) -> Owner {
        self.codec().owners.owner(key)
    }

    /// What the text of an ID says; `None` if it is not a valid ID, or does not decrypt.
    pub(crate) fn credentials(&self, text: &str) -> Option<Credentials> {
        SessionId::read(self.codec().keys.as_deref(), text, || self.now())
    }

    pub(crate) fn id(&self, record: RecordId, secret: &Secret) -> Result<SessionId, Error> {
        SessionId::new(self.codec().keys.as_deref(), record, secret)
    }

    /// Loads the record of an ID. The secret is compared before anything else is done with it.
    pub(crate) async fn find(&self, credentials: &Credentials) -> Result<Base, Error> {
        // Not by way of `load`: each future around another one is moved with it.
        let Some(record) = self.backend.load(credentials.record).await.map_err(on_load)? else {
            return Ok(Base::Nothing);
        };
        let (id, now, secret) = (credentials.record, self.now(), credentials.secret.hash());
        let opened = self.codec().read_if(id, &record.payload, now, |head| head.opens_with(&secret, now));
        let (contents, stale) = match opened {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                tracing::debug!(session = id.sid(), "an ID with the wrong secret was refused");
                return Ok(Base::Nothing);
            }
            Err(error) => {
                tracing::warn!(error = %error.chain(), session = id.sid(), "a session cannot be read");
                return Ok(Base::Unreadable(error));
            }
        };
        let loaded = Loaded { id, version: record.version, ttl: record.ttl, contents, stale };
        Ok(match loaded {
            loaded if loaded.contents.ended => Base::Replaced,
            loaded if loaded.is_live_at(now) => Base::Live(Arc::new(loaded), secret),
            _ => Base::Nothing,
        })
    }

    pub(crate) async fn load(&self, id: RecordId) -> Result<Option<Record>, Error> {
        self.backend.load(id).await.map_err(on_load)
    }

    pub(crate) async fn list(&self, owner: Owner) -> Result<Vec<Record>, Error> {
        let records = self.backend.list(owner).await;
        let mut records =
            records.map_err(|error| Error::backend("the sessions of a key could not be listed", error))?;
        let all = records.len();
        records.retain(|record| record.id.owner() == Some(owner));
        if records.len() < all {
            tracing::error!(foreign = all - records.len(), "the backend has listed sessions of another key");
        }
        Ok(records)
    }

    /// What a new session starts with. [`create`](Self::create) adds its secret.
    pub(crate) fn contents(&self, key: Option<&str>, data: Data, idle: Option<u64>) -> Contents {
        let now = self.now();
        let policy = self.policy();
        let lifetime = if key.is_some() { policy.max_lifetime } else { policy.anonymous_lifetime };
        Contents {
            key: key.map(Arc::from),
            hash: SecretHash::none(),
            previous: Vec::new(),
            created: now,
            signed_in: key.map(|_| now),
            written: now,
            deadline: now.saturating_add(millis(lifetime)),
            idle,
            ended: false,
            data,
        }
    }

    /// Stores a new session, under a new name and with a new secret.
    pub(crate) async fn create(self: &Arc<Self>, mut contents: Contents) -> Result<(Arc<Loaded>, SessionId), Error> {
        let owner = match &contents.key {
            Some(key) => Some(self.owner(check_key(key)?)),
            None => None,
        };
        let (secret, mut sid) = match &self.policy().id_factory {
            None => Secret::random_with_sid()?,
            Some(_) => (Secret::random()?, self.new_sid()?),
        };
        contents.hash = secret.hash();
        // A name may be taken; one from a broken factory always is.
        for _ in 0..TRIES_FOR_A_NAME {
            let id = RecordId::new(owner, sid);
            let new = Loaded { id, version: random_version(), ttl: self.ttl(&contents), contents, stale: false };
            let (record, text) = (self.record(&new)?, self.id(id, &secret)?);
            let orphan = self.remove_on_drop(id);
            let created = self.backend.create(record, Terms::default()).await;
            let created = created.map_err(|error| Error::backend("a session could not be created", error))?;
            orphan.disarm();
            match created {
                Created::Done => {
                    tracing::debug!(session = id.sid(), signed_in = owner.is_some(), "a session was created");
                    return Ok((Arc::new(new), text));
                }
                // Without terms it is never late.
                Created::Taken | Created::Late => {}
            }
            contents = new.contents;
            sid = self.new_sid()?;
        }
        Err(Error::new(ErrorKind::Config, "the id_factory gives names that are taken"))
    }

    /// Whether a new session with these contents would be stored.
    pub(crate) fn check_size(&self, contents: &Contents) -> Result<(), Error> {
        let owner = contents.key.as_deref().map(|key| self.owner(key));
        self.codec().write(RecordId::new(owner, self.new_sid()?), contents).map(drop)
    }

    /// Changes a session: compare and swap, and after each conflict the same change on what is there by then. The change
    /// says whether there is anything to write.
    ///
    /// All tries have the same version: only one of them can be written, and it is recognised by its version.
    pub(crate) async fn rewrite(
        &self,
        mut loaded: Arc<Loaded>,
        version: i64,
        mut change: impl FnMut(&mut Contents) -> Result<bool, Error>,
    ) -> Result<WriteOutcome, Error> {
        let mut turn = None;
        loop {
            if turn.is_none() {
                turn = Some(self.shared.turns.take(loaded.id).await);
            }
            let outcome = {
                // A block of its own: what is in it is not part of the future, which is moved.
                let write = {
                    let mut new = Loaded { version, ..Loaded::clone(&loaded) };
                    if !change(&mut new.contents)? {
                        return Ok(WriteOutcome::Done(loaded));
                    }
                    self.write(&loaded, new)
                };
                let mut write = pin!(write);
                match within(|| MAX_TURN, write.as_mut()).await {
                    Some(outcome) => outcome?,
                    // Turns save conflicts, and nothing depends on them. A write that hangs does not keep the others waiting.
                    None => {
                        turn = None;
                        write.await?
                    }
                }
            };
            match outcome {
                WriteOutcome::Conflict(current) => loaded = current,
                outcome => return Ok(outcome),
            }
            // With a backend that never waits, the request's time would never run out.
            yield_now().await;
        }
    }

    /// Writes new contents over a session, as it was loaded.
    fn write(&self, loaded: &Loaded, mut new: Loaded) -> impl Future<Output = Result<WriteOutcome, Error>> {
        new.contents.written = self.now();
        new.ttl = self.ttl_at(&new.contents, new.contents.written);
        new.stale = false;
        self.swap(loaded.version, Arc::new(new))
    }

    /// Compare and swap: stores the session if the record still has this version.
    async fn swap(&self, expected: i64, new: Arc<Loaded>) -> Result<WriteOutcome, Error> {
        let record = self.record(&new)?;
        let updated = self.backend.update(expected, record, false).await;
        let current = match updated.map_err(|error| Error::backend("a session could not be updated", error))? {
            Outcome::Done => return Ok(WriteOutcome::Done(new)),
            Outcome::Gone => return Ok(WriteOutcome::Gone),
            Outcome::Conflict(current) => current,
        };
        Ok(match self.read(new.id, current) {
            // Our own write, whose answer was lost. What is stored counts, not what we would write now.
            Ok(current) if current.version == new.version => WriteOutcome::Done(Arc::new(current)),
            Ok(current) if current.contents.ended => WriteOutcome::Replaced,
            Ok(current) if current.is_live_at(self.now()) => WriteOutcome::Conflict(Arc::new(current)),
            Ok(_) => WriteOutcome::Gone,
            Err(error) => WriteOutcome::Unreadable(error),
        })
    }

    /// Gives the session another secret. It does nothing if `presented` is not the newest one: another request has just
    /// rotated it.
    pub(crate) fn rotate(&self, contents: &mut Contents, presented: &SecretHash, new: &Secret) -> bool {
        if !contents.hash.matches(presented) {
            return false;
        }
        let now = self.now();
        contents.previous.retain(|(_, until)| *until > now);
        let grace = millis(self.grace());
        if grace > 0 {
            contents.previous.push((contents.hash, now.saturating_add(grace)));
            let surplus = contents.previous.len().saturating_sub(MAX_PREVIOUS);
            contents.previous.drain(..surplus);
        }
        contents.hash = new.hash();
        true
    }

    /// Ends a session for good. `Done` says that it was still there.
    pub(crate) async fn end(&self, mut loaded: Arc<Loaded>) -> Result<WriteOutcome, Error> {
        for _ in 0..TRIES_TO_END {
            match self.bury(&loaded, Duration::ZERO).await? {
                WriteOutcome::Conflict(current) => loaded = current,
                // It has become unreadable. It was the right one when it was loaded.
                WriteOutcome::Unreadable(_) => break,
                outcome => return Ok(outcome),
            }
        }
        // A sign-out wins against any number of writers.
        let ended = self.delete(loaded.id).await?;
        Ok(if ended { WriteOutcome::Done(loaded) } else { WriteOutcome::Gone })
    }

    /// Ends a session if nobody has written to it meanwhile, and leaves a tombstone that lives for `ttl`.
    ///
    /// It is no `delete`, even if `ttl` is zero, because only this tells whether a session was ended or a tombstone.
    pub(crate) async fn bury(&self, loaded: &Loaded, ttl: Duration) -> Result<WriteOutcome, Error> {
        let contents = Contents { ended: true, data: Data::default(), ..loaded.contents.clone() };
        let new = Loaded { id: loaded.id, version: random_version(), ttl, contents, stale: false };
        let outcome = self.swap(loaded.version, Arc::new(new)).await?;
        if let WriteOutcome::Done(_) = outcome {
            tracing::debug!(session = loaded.id.sid(), "a session was ended");
        }
        Ok(outcome)
    }

    /// Ends a record, whatever it is.
    pub(crate) async fn delete(&self, id: RecordId) -> Result<bool, Error> {
        self.backend.delete(id).await.map_err(|error| Error::backend("a session could not be ended", error))
    }

    /// Removes a session that no client has the ID of when the returned guard is dropped: by an error, or because the time
    /// was over.
    pub(crate) fn remove_on_drop(self: &Arc<Self>, id: RecordId) -> OnDrop<impl FnOnce()> {
        let engine = self;
        OnDrop::new(move || {
            let Ok(runtime) = Handle::try_current() else { return };
            let (engine, permit) = (Arc::clone(engine), engine.permit());
            runtime.spawn(async move {
                // If it fails, the session ends by itself.
                if !matches!(timeout(engine.request_time(), engine.delete(id)).await, Ok(Ok(_))) {
                    tracing::warn!(session = id.sid(), "a session that no client has the ID of was not removed");
                }
                drop(permit);
            });
        })
    }

    /// How long a previous ID, or a tombstone, lives on.
    pub(crate) fn grace(&self) -> Duration {
        self.policy().rework_grace
    }

    /// Ends all sessions of an owner, or all but the one to keep, which is given with its version. `None` says that the one
    /// to keep has ended, and that no other has.
    pub(crate) async fn clear(&self, owner: Owner, keep: Option<(RecordId, i64)>) -> Result<Option<u64>, Error> {
        let mut by = keep.map(|(id, version)| By { id, version, keep: true });
        loop {
            let cleared = self.backend.clear(owner, Clear { name: random_version(), by }).await;
            match cleared.map_err(|error| Error::backend("the sessions of a key could not be cleared", error))? {
                Cleared::Done(ended) => return Ok(Some(ended)),
                Cleared::Gone => return Ok(None),
                // Another request has written to it meanwhile. It is live, so it is still the one to keep.
                Cleared::Conflict(current) => by = by.map(|by| By { version: current.version, ..by }),
            }
            // With a backend that never waits, the request's time would never run out.
            yield_now().await;
        }
    }

    /// Tells the backend in the background that the session is in use, unless it was told lately. A record that is not
    /// encrypted as it would be today is encrypted again on this occasion.
    pub(crate) fn touch(self: &Arc<Self>, loaded: &Arc<Loaded>) {
        if !loaded.stale && !self.is_touch_due(loaded) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let Ok(permit) = self.permit() else { return };
        let Some(touching) = self.shared.background.touching(loaded.id) else { return };
        let (engine, loaded) = (Arc::clone(self), Arc::clone(loaded));
        runtime.spawn(async move {
            let id = loaded.id;
            match timeout(engine.request_time(), engine.refresh(&loaded)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, session = id.sid(), "a session was not touched"),
                Err(_) => tracing::debug!(session = id.sid(), "a session was not touched in time"),
            }
            drop((touching, permit));
        });
    }

    fn is_touch_due(&self, loaded: &Loaded) -> bool {
        let Some(idle) = self.idle(&loaded.contents).map(Duration::from_millis) else { return false };
        // Never more than a tenth of the session's own idle time: a longer interval would sign out users who are active.
        let interval = self.policy().touch_interval.unwrap_or(MAX_TOUCH_INTERVAL).min(idle / 10);
        let interval = interval.max(Duration::from_millis(1));
        // The deadline may have cut the time to live. That needs the clock, so it is looked at last.
        idle.saturating_sub(loaded.ttl) >= interval && self.ttl(&loaded.contents).saturating_sub(loaded.ttl) >= interval
    }

    async fn refresh(&self, loaded: &Loaded) -> Result<(), Error> {
        if loaded.stale {
            // If another request has written meanwhile, it has encrypted the record again.
            let new = Loaded { version: random_version(), ..Loaded::clone(loaded) };
            return self.write(loaded, new).await.map(drop);
        }
        let touched = self.backend.touch(loaded.id, loaded.version, self.ttl(&loaded.contents)).await;
        touched.map_err(|error| Error::backend("a session could not be touched", error))
    }

    /// What is in a record that the backend returned for this ID. Another session's is unreadable, whatever it is called.
    pub(crate) fn read(&self, id: RecordId, record: Record) -> Result<Loaded, Error> {
        let (contents, stale) = self.codec().read(id, &record.payload, self.now())?;
        Ok(Loaded { id, version: record.version, ttl: record.ttl, contents, stale })
    }

    fn record(&self, loaded: &Loaded) -> Result<Record, Error> {
        let payload = self.codec().write(loaded.id, &loaded.contents)?;
        Ok(Record { id: loaded.id, version: loaded.version, ttl: loaded.ttl, payload })
    }

    fn new_sid(&self) -> Result<Sid, Error> {
        match &self.policy().id_factory {
            None => Sid::random(),
            Some(make) => Sid::parse(&make()).ok_or_else(|| {
                Error::new(
                    ErrorKind::Config,
                    "the id_factory gave a name that is not 22 to 43 characters of A-Z, a-z, 0-9, _ and -",
                )
            }),
        }
    }

    /// The idle timeout of a session, in milliseconds; `None` for no limit.
    pub(crate) fn idle(&self, contents: &Contents) -> Option<u64> {
        contents.idle.or(self.policy().default_ttl.map(millis))
    }

    /// How long the session lives if it is not used.
    fn ttl(&self, contents: &Contents) -> Duration {
        self.ttl_at(contents, self.now())
    }

    fn ttl_at(&self, contents: &Contents, now: u64) -> Duration {
        let left = contents.deadline.saturating_sub(now);
        Duration::from_millis(self.idle(contents).unwrap_or(u64::MAX).min(left).max(1))
    }
}

fn on_load(error: BoxError) -> Error {
    Error::backend("a session could not be loaded", error)
}

/// Whether this text can be a session key.
pub(crate) fn check_key(key: &str) -> Result<&str, Error> {
    match key.len() {
        1..=MAX_KEY => Ok(key),
        _ => Err(Error::new(ErrorKind::Data, "a session key must have 1 to 1024 bytes")),
    }
}

const MAX_KEY: usize = 1024;
const MAX_TURN: Duration = Duration::from_millis(100);
const MAX_PREVIOUS: usize = 4;
const MAX_TOUCH_INTERVAL: Duration = Duration::from_secs(300);
const TRIES_FOR_A_NAME: usize = 5;
const TRIES_TO_END: usize = 3;
