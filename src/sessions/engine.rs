//! A session as it is in the backend: found by its ID, written, rotated, ended, kept alive.
//!
//! What [`Sessions`] and the layer are made of.

use std::{
    pin::pin,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{sync::OwnedSemaphorePermit, task::yield_now, time::timeout};

use crate::{
    backend::{Backend, Outcome},
    clock::millis,
    error::{BoxError, Error, ErrorKind},
    random::random_version,
    record::{
        Contents, Record,
        data::Data,
        id::{Owner, RecordId, Sid},
        token::{Credentials, Secret, SecretHash, SessionId},
    },
    sessions::{Sessions, Shared},
    timeout::within,
};

/// Where an ID leads.
pub(crate) enum Found {
    Live(Arc<Live>),
    /// A login ended this session, and went on as another one.
    Ended,
    /// There is a record, and it cannot be read: not even whether the ID is right.
    Unreadable(Error),
    Nothing,
}

/// A session as it was when it was read or written.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) id: RecordId,
    pub(crate) version: i64,
    /// What the backend still gave it.
    pub(crate) ttl: Duration,
    pub(crate) contents: Contents,
    /// The record is not sealed as it would be today.
    pub(crate) stale: bool,
}

/// What became of a write.
pub(crate) enum Written {
    Done(Arc<Live>),
    Gone,
    /// A login has ended it, and went on as another one.
    Replaced,
    /// Somebody else has written. If what that is cannot be read, this is all that is known.
    Conflict(Arc<Live>),
    Unreadable(Error),
}

/// What the module and the layer are made of.
impl<B: Backend> Sessions<B> {
    /// A permit to work, for as long as it is kept; none once they are being closed. Whoever works takes one, at the
    /// outermost: closing waits for those, and gives no others.
    pub(crate) fn permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.shared.open).try_acquire_owned().map_err(|_| closed())
    }

    pub(crate) fn now(&self) -> u64 {
        self.shared.policy.clock.now_ms()
    }

    pub(crate) fn request_time(&self) -> Duration {
        self.shared.policy.request_time
    }

    pub(crate) fn owner(&self, key: &str) -> Owner {
        self.shared.codec.owners.owner(key)
    }

    /// What a text says that may be an ID; `None` if it is none, or does not open.
    pub(crate) fn presented(&self, text: &str) -> Option<Credentials> {
        SessionId::read(self.shared.codec.keys.as_deref(), text, || self.now())
    }

    pub(crate) fn id(&self, record: RecordId, secret: &Secret) -> Result<SessionId, Error> {
        SessionId::new(self.shared.codec.keys.as_deref(), record, secret)
    }

    /// Asks the backend for a record, and the record for the secret, before anything else is done with it.
    pub(crate) async fn look(&self, id: RecordId, secret: &SecretHash) -> Result<Found, Error> {
        let Some(record) = self.backend.load(id).await.map_err(on_load)? else { return Ok(Found::Nothing) };
        let now = self.now();
        let codec = &self.shared.codec;
        let opened = codec.read_if(id, &record.payload, now, |head| head.opens_with(secret, now));
        let (contents, stale) = match opened {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                tracing::info!(session = id.sid(), "an ID with the wrong secret was refused");
                return Ok(Found::Nothing);
            }
            Err(error) => {
                tracing::warn!(%error, session = id.sid(), "a session cannot be read");
                return Ok(Found::Unreadable(error));
            }
        };
        let live = Live { id, version: record.version, ttl: record.ttl, contents, stale };
        Ok(match live {
            live if live.contents.ended => Found::Ended,
            live if live.is_live_at(now) => Found::Live(Arc::new(live)),
            _ => Found::Nothing,
        })
    }

    /// What a new session starts with. [`add`](Self::add) fills in its secret.
    pub(crate) fn contents(&self, key: Option<&str>, data: Data, idle: Option<u64>) -> Contents {
        let now = self.now();
        let policy = &self.shared.policy;
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
    pub(crate) async fn add(&self, mut contents: Contents) -> Result<(Arc<Live>, SessionId), Error> {
        let owner = match &contents.key {
            Some(key) => Some(self.owner(check_key(key)?)),
            None => None,
        };
        let (secret, mut sid) = match &self.shared.policy.id_factory {
            None => Secret::random_with_sid()?,
            Some(_) => (Secret::random()?, self.new_sid()?),
        };
        contents.hash = secret.hash();
        // A name may be taken: that of a broken factory always is.
        for _ in 0..TRIES_FOR_A_NAME {
            let id = RecordId::new(owner, sid);
            let live = Live { id, version: random_version(), ttl: self.ttl(&contents), contents, stale: false };
            let (record, text) = (self.seal(&live)?, self.id(id, &secret)?);
            let unclaimed = Unclaimed::new(self, id);
            let created = self.backend.create(record).await.map_err(on_create)?;
            unclaimed.claim();
            // A name that is taken may be by this very record: a client has sent it twice.
            if created || self.is_there(id, live.version).await? {
                tracing::debug!(session = id.sid(), signed_in = owner.is_some(), "a session was created");
                return Ok((Arc::new(live), text));
            }
            contents = live.contents;
            sid = self.new_sid()?;
        }
        Err(Error::new(ErrorKind::Config, "the id_factory gives names that are taken"))
    }

    async fn is_there(&self, id: RecordId, version: i64) -> Result<bool, Error> {
        let there = self.backend.load(id).await.map_err(on_load)?;
        Ok(there.is_some_and(|there| there.version == version))
    }

    /// Whether a new session with that would be stored.
    pub(crate) fn check_size(&self, contents: &Contents) -> Result<(), Error> {
        let owner = contents.key.as_deref().map(|key| self.owner(key));
        self.shared.codec.write(RecordId::new(owner, self.new_sid()?), contents).map(drop)
    }

    /// Writes new contents over what was seen as `live`.
    fn write(&self, live: &Live, mut new: Live) -> impl Future<Output = Result<Written, Error>> {
        new.contents.written = self.now();
        new.ttl = self.ttl_at(&new.contents, new.contents.written);
        new.stale = false;
        self.write_for(live, Arc::new(new))
    }

    async fn write_for(&self, live: &Live, new: Arc<Live>) -> Result<Written, Error> {
        let record = self.seal(&new)?;
        let current = match self.backend.update(live.version, record).await.map_err(on_update)? {
            Outcome::Done => return Ok(Written::Done(new)),
            Outcome::Gone => return Ok(Written::Gone),
            Outcome::Conflict(current) => current,
        };
        Ok(match self.unseal(current) {
            // Our own write, of which we had no answer. What is in it counts, not what we would write now.
            Ok(current) if current.version == new.version => Written::Done(Arc::new(current)),
            Ok(current) if current.contents.ended => Written::Replaced,
            Ok(current) if current.is_live_at(self.now()) => Written::Conflict(Arc::new(current)),
            Ok(_) => Written::Gone,
            Err(error) => Written::Unreadable(error),
        })
    }

    /// Changes a session, again and again until nobody else has meanwhile. The change says whether there is anything to
    /// write.
    ///
    /// One version for all tries: only one of them can be written, and whichever it was is recognised by it.
    pub(crate) async fn rewrite(
        &self,
        mut live: Arc<Live>,
        version: i64,
        mut change: impl FnMut(&mut Contents) -> Result<bool, Error>,
    ) -> Result<Written, Error> {
        let mut turn = None;
        loop {
            if turn.is_none() {
                turn = Some(self.shared.turns.take(live.id).await);
            }
            let mut new = Live { version, ..Live::clone(&live) };
            if !change(&mut new.contents)? {
                return Ok(Written::Done(live));
            }
            let written = {
                let mut write = pin!(self.write(&live, new));
                match within(|| MAX_TURN, write.as_mut()).await {
                    Some(written) => written?,
                    // Turns save conflicts, and nothing depends on them: one that hangs does not keep the others waiting.
                    None => {
                        turn = None;
                        write.await?
                    }
                }
            };
            match written {
                Written::Conflict(current) => live = current,
                written => return Ok(written),
            }
            // A backend that never waits would never let time run out.
            yield_now().await;
        }
    }

    /// Gives the session another secret, unless `presented` is not its newest: then somebody else just did.
    pub(crate) fn rotate(&self, contents: &mut Contents, presented: &SecretHash, new: &Secret) -> bool {
        if !contents.hash.matches(presented) {
            return false;
        }
        let now = self.now();
        contents.previous.retain(|(_, until)| *until > now);
        let grace = millis(self.shared.policy.rework_grace);
        if grace > 0 {
            contents.previous.push((contents.hash, now.saturating_add(grace)));
            let surplus = contents.previous.len().saturating_sub(MAX_PREVIOUS);
            contents.previous.drain(..surplus);
        }
        contents.hash = new.hash();
        true
    }

    /// Ends a session for good. `Done` says that it was still there.
    pub(crate) async fn end(&self, mut live: Arc<Live>) -> Result<Written, Error> {
        for _ in 0..TRIES_TO_END {
            match self.bury(&live, Duration::ZERO).await? {
                Written::Conflict(current) => live = current,
                // It became unreadable meanwhile; it was the right one when it was loaded.
                Written::Unreadable(_) => break,
                ended => return Ok(ended),
            }
        }
        // Ending wins against any number of writers.
        let ended = self.backend.delete(live.id).await.map_err(on_delete)?;
        Ok(if ended { Written::Done(live) } else { Written::Gone })
    }

    /// Ends a session, if nobody has written it meanwhile, and leaves a tombstone for so long.
    ///
    /// Not `delete`, even for no time at all: only this way it is known that what was ended was not a tombstone.
    pub(crate) async fn bury(&self, live: &Live, ttl: Duration) -> Result<Written, Error> {
        let contents = Contents { ended: true, data: Data::default(), ..live.contents.clone() };
        let new = Live { id: live.id, version: random_version(), ttl, contents, stale: false };
        let written = self.write_for(live, Arc::new(new)).await?;
        if let Written::Done(_) = written {
            tracing::debug!(session = live.id.sid(), "a session was ended");
        }
        Ok(written)
    }

    /// Removes what nobody will ask for. If that fails, time will do it.
    pub(crate) async fn remove(&self, id: RecordId) {
        if !matches!(timeout(self.request_time(), self.backend.delete(id)).await, Ok(Ok(_))) {
            tracing::warn!(session = id.sid(), "a session that nobody got the ID of was not removed");
        }
    }

    /// How long an old ID lives on, or its tombstone.
    pub(crate) fn grace(&self) -> Duration {
        self.shared.policy.rework_grace
    }

    /// Ends all of an owner's sessions but `keep`.
    pub(crate) async fn clear_all(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64, Error> {
        self.backend
            .clear(owner, keep)
            .await
            .map_err(|error| Error::backend("the sessions of a key could not be cleared", error))
    }

    /// Tells the backend that the session is in use, in the background, if it was not told lately. A record that is not
    /// sealed as it would be today is sealed anew on this occasion.
    pub(crate) fn touch(&self, live: &Arc<Live>) {
        if !live.stale && !self.is_touch_due(live) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let Ok(permit) = self.permit() else { return };
        let Some(touching) = Touching::begin(&self.shared, live.id) else { return };
        let (sessions, live) = (self.clone(), Arc::clone(live));
        runtime.spawn(async move {
            let id = live.id;
            match timeout(sessions.request_time(), sessions.refresh(live)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, session = id.sid(), "a session was not touched"),
                Err(_) => tracing::debug!(session = id.sid(), "a session was not touched in time"),
            }
            drop((touching, permit));
        });
    }

    fn is_touch_due(&self, live: &Live) -> bool {
        let Some(idle) = self.idle(&live.contents) else { return false };
        let interval = self
            .shared
            .policy
            .touch_interval
            .unwrap_or_else(|| (Duration::from_millis(idle) / 10).min(MAX_TOUCH_INTERVAL));
        let interval = interval.max(Duration::from_millis(1));
        // Only what could be due needs the time: the deadline may have cut it.
        Duration::from_millis(idle).saturating_sub(live.ttl) >= interval
            && self.ttl(&live.contents).saturating_sub(live.ttl) >= interval
    }

    async fn refresh(&self, live: Arc<Live>) -> Result<(), Error> {
        if live.stale {
            // Whoever has written to it meanwhile has sealed it, too.
            return self.write(&live, Live { version: random_version(), ..Live::clone(&live) }).await.map(drop);
        }
        let touched = self.backend.touch(live.id, live.version, self.ttl(&live.contents)).await;
        touched.map_err(|error| Error::backend("a session could not be touched", error))
    }

    pub(crate) fn unseal(&self, record: Record) -> Result<Live, Error> {
        let (contents, stale) = self.shared.codec.read(record.id, &record.payload, self.now())?;
        Ok(Live { id: record.id, version: record.version, ttl: record.ttl, contents, stale })
    }

    fn seal(&self, live: &Live) -> Result<Record, Error> {
        let payload = self.shared.codec.write(live.id, &live.contents)?;
        Ok(Record { id: live.id, version: live.version, ttl: live.ttl, payload })
    }

    fn new_sid(&self) -> Result<Sid, Error> {
        match &self.shared.policy.id_factory {
            None => Sid::random(),
            Some(make) => Sid::parse(&make()).ok_or_else(|| {
                Error::new(
                    ErrorKind::Config,
                    "the id_factory gave a name that is not 22 to 43 characters of A-Z, a-z, 0-9, _ and -",
                )
            }),
        }
    }

    /// In milliseconds; `None` for no idle limit.
    pub(crate) fn idle(&self, contents: &Contents) -> Option<u64> {
        contents.idle.or(self.shared.policy.default_ttl.map(millis))
    }

    /// How long the session lives if nothing happens.
    fn ttl(&self, contents: &Contents) -> Duration {
        self.ttl_at(contents, self.now())
    }

    fn ttl_at(&self, contents: &Contents, now: u64) -> Duration {
        let left = contents.deadline.saturating_sub(now);
        Duration::from_millis(self.idle(contents).unwrap_or(u64::MAX).min(left).max(1))
    }
}

impl Written {
    /// What is there now, if this call has written it.
    pub(crate) fn done(self) -> Result<Arc<Live>, Error> {
        match self {
            Self::Done(live) => Ok(live),
            Self::Unreadable(error) => Err(error),
            Self::Gone | Self::Replaced | Self::Conflict(_) => Err(not_found()),
        }
    }
}

impl Live {
    pub(crate) fn is_live_at(&self, now: u64) -> bool {
        !self.contents.ended && self.contents.deadline > now
    }
}

/// A session of which nobody has the ID, or not yet. Dropped like that, by an error or because its time was over, it is
/// removed in the background.
pub(crate) struct Unclaimed<'a, B: Backend> {
    sessions: &'a Sessions<B>,
    id: Option<RecordId>,
}

impl<'a, B: Backend> Unclaimed<'a, B> {
    pub(crate) fn new(sessions: &'a Sessions<B>, id: RecordId) -> Self {
        Self { sessions, id: Some(id) }
    }

    /// It is the browser's now, or was never ours.
    pub(crate) fn claim(mut self) {
        self.id = None;
    }
}

impl<B: Backend> Drop for Unclaimed<'_, B> {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id, tokio::runtime::Handle::try_current()) else { return };
        let sessions = self.sessions.clone();
        let permit = sessions.permit();
        runtime.spawn(async move {
            sessions.remove(id).await;
            drop(permit);
        });
    }
}

/// A record's place among those that are being touched.
struct Touching {
    shared: Arc<Shared>,
    id: RecordId,
}

impl Touching {
    fn begin(shared: &Arc<Shared>, id: RecordId) -> Option<Self> {
        let first = shared.touching.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        first.then(|| Self { shared: Arc::clone(shared), id })
    }
}

impl Drop for Touching {
    fn drop(&mut self) {
        self.shared.touching.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

pub(crate) fn check_key(key: &str) -> Result<&str, Error> {
    match key.len() {
        1..=MAX_KEY => Ok(key),
        _ => Err(Error::new(ErrorKind::Data, "a session key must have 1 to 1024 bytes")),
    }
}

pub(crate) fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such session")
}

pub(crate) fn too_late() -> Error {
    Error::new(ErrorKind::Unavailable, "the sessions did not answer in time")
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the sessions are closed")
}

pub(crate) fn on_load(error: BoxError) -> Error {
    Error::backend("a session could not be loaded", error)
}

fn on_create(error: BoxError) -> Error {
    Error::backend("a session could not be created", error)
}

fn on_update(error: BoxError) -> Error {
    Error::backend("a session could not be updated", error)
}

pub(crate) fn on_delete(error: BoxError) -> Error {
    Error::backend("a session could not be ended", error)
}

const MAX_KEY: usize = 1024;
const MAX_TURN: Duration = Duration::from_millis(100);
const MAX_PREVIOUS: usize = 4;
const MAX_TOUCH_INTERVAL: Duration = Duration::from_secs(300);
const TRIES_FOR_A_NAME: usize = 5;
const TRIES_TO_END: usize = 3;
