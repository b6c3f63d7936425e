//! The module: sessions without HTTP. IDs, contents and time, over a backend that knows of none.

use std::{
    collections::HashSet,
    fmt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::yield_now,
    time::timeout,
};

use crate::{
    AnyBackend, Backend, Builder, Clock, Data, Error, ErrorKind, Outcome, Owner, Record, RecordId, SessionId,
    builder::IdFactory,
    clock::millis,
    id::{Owners, Presented, Secret, SecretHash, Sid, random},
    record::{Codec, Contents},
    turns::Turns,
};

/// Sessions over a backend: the module, usable without HTTP, and what a [`SessionLayer`](crate::SessionLayer) is made from.
///
/// A clone is another handle to the same sessions. See [`Builder`] for the options, and [`erase`](Self::erase) for choosing
/// the store at run time.
///
/// ```
/// use jam_session::MemorySessions;
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), jam_session::Error> {
/// let sessions = MemorySessions::new();
/// let id = sessions.create("ada", json!({"role": "admin"})).await?;
///
/// let data = sessions.get(&id).await?.expect("it was just created");
/// assert_eq!(data.get::<String>("role")?.as_deref(), Some("admin"));
///
/// sessions.update(&id, json!({"role": "guest"})).await?;
/// let id = sessions.rework(&id).await?;
/// assert_eq!(sessions.list("ada").await?.len(), 1);
///
/// sessions.delete(&id).await?;
/// assert!(sessions.get(&id).await?.is_none());
/// # Ok(())
/// # }
/// ```
///
/// Each call answers within [`request_time`](Builder::request_time), if need be with [`ErrorKind::Unavailable`]. It needs a
/// tokio runtime with its timer on.
pub struct Sessions<B = AnyBackend> {
    backend: Arc<B>,
    shared: Arc<Shared>,
}

/// One of a user's sessions, for showing it to the user.
#[derive(Clone)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The public name, for [`revoke`](Sessions::revoke). It is not the ID, and leads nowhere.
    pub handle: String,
    /// When it began.
    pub created: SystemTime,
    /// When it was last used, as far as the backend was told: up to [`touch_interval`](Builder::touch_interval) ago it may
    /// have been used since.
    pub last_seen: Option<SystemTime>,
    /// When it ends, if it is not used until then.
    pub expires: SystemTime,
    /// What it holds.
    pub data: Data,
}

/// What all handles and the layer share.
struct Shared {
    policy: Policy,
    turns: Turns,
    /// Records whose touch is under way.
    touching: Mutex<HashSet<RecordId>>,
    /// Whoever works holds a permit; closing takes them all.
    open: Arc<Semaphore>,
}

/// What the [`Builder`] was told.
pub(crate) struct Policy {
    #[cfg(feature = "redis")]
    pub(crate) sessions_key: String,
    pub(crate) codec: Codec,
    pub(crate) owners: Owners,
    pub(crate) default_ttl: Option<Duration>,
    pub(crate) max_lifetime: Duration,
    pub(crate) anonymous_lifetime: Duration,
    pub(crate) touch_interval: Option<Duration>,
    pub(crate) rework_grace: Duration,
    pub(crate) request_time: Duration,
    pub(crate) id_factory: Option<IdFactory>,
    pub(crate) clock: Clock,
}

/// Where an ID leads.
pub(crate) enum Found {
    Live(Box<Live>),
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
    Done(Live),
    Gone,
    /// A login has ended it, and went on as another one.
    Replaced,
    /// Somebody else has written. If what that is cannot be read, this is all that is known.
    Conflict(Live),
    Unreadable(Error),
}

impl<B: Backend> Sessions<B> {
    /// Sessions over a backend of one's own, to be set up. See [`backend`](crate::backend) for how to write one.
    pub fn over(backend: B) -> Builder<B> {
        Builder::new(backend)
    }

    pub(crate) fn with(backend: B, policy: Policy) -> Self {
        let shared = Shared {
            policy,
            turns: Turns::default(),
            touching: Mutex::default(),
            open: Arc::new(Semaphore::new(PERMITS as usize)),
        };
        Self { backend: Arc::new(backend), shared: Arc::new(shared) }
    }

    /// The same sessions with the type of their backend forgotten.
    pub fn erase(self) -> Sessions {
        Sessions { backend: Arc::new(AnyBackend::new(self.backend)), shared: self.shared }
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Makes a new session for a session key, from anything that serializes to a JSON object, and gives its ID.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] for a key that is empty or longer than 1024 bytes, or data that is no object,
    /// [`ErrorKind::TooLarge`], [`ErrorKind::Unavailable`].
    pub async fn create(&self, key: impl AsRef<str>, data: impl Serialize) -> Result<SessionId, Error> {
        let contents = Data::from_serialize(data).map(|data| self.contents(Some(key.as_ref()), data, None));
        self.within_time(async {
            let (_, id) = self.add(contents?).await?;
            Ok(id)
        })
        .await
    }

    /// The data of a session, or `None` if there is no such session. It counts as use of the session.
    ///
    /// # Errors
    /// [`ErrorKind::Unreadable`], [`ErrorKind::Unavailable`].
    pub async fn get(&self, id: impl AsRef<str>) -> Result<Option<Data>, Error> {
        self.within_time(async {
            let Some(live) = self.find(id.as_ref()).await? else { return Ok(None) };
            self.touch(&live);
            Ok(Some(live.contents.data))
        })
        .await
    }

    /// Replaces all data of a session.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such session, and as [`create`](Self::create) and [`get`](Self::get).
    pub async fn update(&self, id: impl AsRef<str>, data: impl Serialize) -> Result<(), Error> {
        let data = Data::from_serialize(data);
        self.within_time(async {
            let data = data?;
            let live = self.find(id.as_ref()).await?.ok_or_else(not_found)?;
            self.rewrite(live, random_version()?, |contents| {
                contents.data = data.clone();
                Ok(true)
            })
            .await?
            .done()
            .map(drop)
        })
        .await
    }

    /// Gives a session a new ID. The one before leads to it for [`rework_grace`](Builder::rework_grace) more.
    ///
    /// An ID from before a rework is given back as it is: calls in parallel rotate once.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such session, and as [`get`](Self::get).
    pub async fn rework(&self, id: impl AsRef<str>) -> Result<SessionId, Error> {
        self.within_time(async {
            let old = self.presented(id.as_ref()).ok_or_else(not_found)?;
            let live = self.find_presented(&old).await?.ok_or_else(not_found)?;
            let new = Secret::random()?;
            let (new_id, old_hash) = (self.id(old.record, &new)?, old.secret.hash());
            let live = self
                .rewrite(live, random_version()?, |contents| {
                    self.rotate(contents, &old_hash, &new);
                    Ok(true)
                })
                .await?
                .done()?;
            match live.contents.hash.matches(&new.hash()) {
                true => Ok(new_id),
                // Somebody else has rotated it. Without a grace the ID is dead by now.
                false if live.contents.opens_with(&old_hash, self.now()) => Ok(SessionId::known(id.as_ref())),
                false => Err(not_found()),
            }
        })
        .await
    }

    /// Ends a session. One that is not there is no error.
    ///
    /// # Errors
    /// [`ErrorKind::Unreadable`], [`ErrorKind::Unavailable`].
    pub async fn delete(&self, id: impl AsRef<str>) -> Result<(), Error> {
        self.within_time(async {
            match self.find(id.as_ref()).await? {
                Some(live) => self.end(live).await.map(drop),
                None => Ok(()),
            }
        })
        .await
    }

    /// Ends all sessions of a session key, and says how many there were.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`].
    pub async fn clear(&self, key: impl AsRef<str>) -> Result<u64, Error> {
        let owner = self.shared.policy.owners.owner(key.as_ref());
        self.within_time(async {
            // What a login left at an old ID is no session, though the backend counts it. Ending matters more than counting:
            // it does not depend on a list.
            let records = timeout(self.request_time() / 2, self.records(owner)).await;
            let tombstones = match records {
                Ok(Ok(records)) => records.iter().filter(|record| self.is_tombstone(record)).count() as u64,
                _ => 0,
            };
            let ended = self.clear_all(owner).await?;
            Ok(ended.saturating_sub(tombstones))
        })
        .await
    }

    /// All live sessions of a session key, in the order in which they began. None of their IDs is in it.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`].
    pub async fn list(&self, key: impl AsRef<str>) -> Result<Vec<SessionInfo>, Error> {
        let owner = self.shared.policy.owners.owner(key.as_ref());
        self.within_time(async {
            let now = self.now();
            let mut infos = Vec::new();
            for record in self.records(owner).await? {
                match self.unseal(record) {
                    Ok(live) if live.is_live_at(now) => infos.push(self.info(live, now)),
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "a session is not listed"),
                }
            }
            infos.sort_by(|a, b| (a.created, &a.handle).cmp(&(b.created, &b.handle)));
            Ok(infos)
        })
        .await
    }

    /// Ends one of the sessions of a session key, by its [handle](SessionInfo::handle), and says whether there was one.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`].
    pub async fn revoke(&self, key: impl AsRef<str>, handle: impl AsRef<str>) -> Result<bool, Error> {
        let owner = self.shared.policy.owners.owner(key.as_ref());
        let Some(sid) = Sid::parse(handle.as_ref()) else { return Ok(false) };
        let id = RecordId::new(Some(owner), sid);
        self.within_time(async {
            let Some(record) = self.backend.load(id).await.map_err(on_load)? else { return Ok(false) };
            match self.unseal(record) {
                Ok(live) if live.is_live_at(self.now()) => Ok(matches!(self.end(live).await?, Written::Done(_))),
                Ok(_) => Ok(false),
                Err(_) => self.backend.delete(id).await.map_err(on_delete),
            }
        })
        .await
    }

    /// Waits until everything that was begun has ended, commits and touches in the background included, lets go of what
    /// the backend holds, and refuses further use, of every handle.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if the backend fails to, or if they are closed already.
    pub async fn close(&self) -> Result<(), Error> {
        let permits = self.shared.open.acquire_many(PERMITS).await.map_err(|_| closed())?;
        self.shared.open.close();
        drop(permits);
        self.backend.close().await.map_err(|error| Error::backend("the backend did not close", error))
    }

    /// Runs a call of the module, if they are open, for as long as it may take.
    async fn within_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let _permit = self.permit()?;
        timeout(self.request_time(), work).await.map_err(|_| too_late())?
    }

    /// Where the text of an ID leads; `None` for nowhere.
    async fn find(&self, id: &str) -> Result<Option<Live>, Error> {
        match self.presented(id) {
            Some(presented) => self.find_presented(&presented).await,
            None => Ok(None),
        }
    }

    async fn find_presented(&self, id: &Presented) -> Result<Option<Live>, Error> {
        match self.look(id.record, &id.secret.hash()).await? {
            Found::Live(live) => Ok(Some(*live)),
            Found::Unreadable(error) => Err(error),
            Found::Ended | Found::Nothing => Ok(None),
        }
    }

    fn info(&self, live: Live, now: u64) -> SessionInfo {
        let Live { id, ttl, contents, .. } = live;
        let left = millis(ttl);
        // The time to live began to run at its last use. Where the deadline has cut it, this says too early rather than too
        // late, and when it was last written is known besides.
        let used = self.idle(&contents).map(|idle| now.saturating_add(left).saturating_sub(idle));
        SessionInfo {
            handle: id.sid().to_owned(),
            created: time(contents.created),
            last_seen: Some(time(used.unwrap_or(0).clamp(contents.seen, contents.seen.max(now)))),
            expires: time(now.saturating_add(left).min(contents.deadline)),
            data: contents.data,
        }
    }

    fn is_tombstone(&self, record: &Record) -> bool {
        self.unseal(record.clone()).is_ok_and(|live| live.contents.ended)
    }

    async fn records(&self, owner: Owner) -> Result<Vec<Record>, Error> {
        self.backend
            .list(owner)
            .await
            .map_err(|error| Error::backend("the sessions of a key could not be listed", error))
    }
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
        self.shared.policy.owners.owner(key)
    }

    /// What a text says that may be an ID; `None` if it is none, or does not open.
    pub(crate) fn presented(&self, text: &str) -> Option<Presented> {
        SessionId::read(self.shared.policy.codec.keys.as_deref(), text, self.now())
    }

    pub(crate) fn id(&self, record: RecordId, secret: &Secret) -> Result<SessionId, Error> {
        SessionId::new(self.shared.policy.codec.keys.as_deref(), record, secret)
    }

    /// Asks the backend for a record, and the record for the secret, before anything else is done with it.
    pub(crate) async fn look(&self, id: RecordId, secret: &SecretHash) -> Result<Found, Error> {
        let Some(record) = self.backend.load(id).await.map_err(on_load)? else { return Ok(Found::Nothing) };
        let now = self.now();
        let codec = &self.shared.policy.codec;
        let opened = codec.read_if(record.id, &record.payload, now, |head| head.opens_with(secret, now));
        let (contents, stale) =
            match opened.and_then(|opened| opened.map(|opened| self.check_owner(id, opened)).transpose()) {
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
            live if live.is_live_at(now) => Found::Live(Box::new(live)),
            _ => Found::Nothing,
        })
    }

    /// A session that its owner could not clear is nobody's.
    fn check_owner(&self, id: RecordId, opened: (Contents, bool)) -> Result<(Contents, bool), Error> {
        match opened.0.key.as_deref().map(|key| self.owner(key)) == id.owner() {
            true => Ok(opened),
            false => Err(Error::new(ErrorKind::Unreadable, "a record belongs to another session key")),
        }
    }

    /// What a new session starts with. [`add`](Self::add) fills in its secret.
    pub(crate) fn contents(&self, key: Option<&str>, data: Data, idle: Option<u64>) -> Contents {
        let now = self.now();
        let policy = &self.shared.policy;
        let lifetime = if key.is_some() { policy.max_lifetime } else { policy.anonymous_lifetime };
        Contents {
            key: key.map(str::to_owned),
            hash: SecretHash::none(),
            previous: Vec::new(),
            created: now,
            signed_in: key.map(|_| now),
            seen: now,
            deadline: now.saturating_add(millis(lifetime)),
            idle,
            ended: false,
            data,
        }
    }

    /// Stores a new session, under a new name and with a new secret.
    pub(crate) async fn add(&self, mut contents: Contents) -> Result<(Live, SessionId), Error> {
        let owner = match &contents.key {
            Some(key) => Some(self.owner(check_key(key)?)),
            None => None,
        };
        let secret = Secret::random()?;
        contents.hash = secret.hash();
        // A name may be taken: that of a broken factory always is.
        for _ in 0..TRIES_FOR_A_NAME {
            let id = RecordId::new(owner, self.new_sid()?);
            let live = Live { id, version: random_version()?, ttl: self.ttl(&contents), contents, stale: false };
            let (record, text) = (self.seal(&live)?, self.id(id, &secret)?);
            let unclaimed = Unclaimed::new(self, id);
            let created = self.backend.create(record).await.map_err(on_create)?;
            unclaimed.claim();
            if created {
                tracing::debug!(session = id.sid(), signed_in = owner.is_some(), "a session was created");
                return Ok((live, text));
            }
            contents = live.contents;
        }
        Err(Error::new(ErrorKind::Config, "the id_factory gives names that are taken"))
    }

    /// Whether a new session with that would be stored.
    pub(crate) fn check_size(&self, contents: &Contents) -> Result<(), Error> {
        let owner = contents.key.as_deref().map(|key| self.owner(key));
        self.shared.policy.codec.write(RecordId::new(owner, self.new_sid()?), contents).map(drop)
    }

    /// Writes new contents over what was seen as `live`.
    async fn write(&self, live: &Live, version: i64, mut contents: Contents) -> Result<Written, Error> {
        contents.seen = self.now();
        let ttl = self.ttl(&contents);
        self.write_for(live, Live { id: live.id, version, ttl, contents, stale: false }).await
    }

    async fn write_for(&self, live: &Live, new: Live) -> Result<Written, Error> {
        let record = self.seal(&new)?;
        let current = match self.backend.update(live.version, record).await.map_err(on_update)? {
            Outcome::Done => return Ok(Written::Done(new)),
            Outcome::Gone => return Ok(Written::Gone),
            Outcome::Conflict(current) => current,
        };
        Ok(match self.unseal(current) {
            // Our own write, of which we had no answer. What is in it counts, not what we would write now.
            Ok(current) if current.version == new.version => Written::Done(current),
            Ok(current) if current.contents.ended => Written::Replaced,
            Ok(current) if current.is_live_at(self.now()) => Written::Conflict(current),
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
        mut live: Live,
        version: i64,
        mut change: impl FnMut(&mut Contents) -> Result<bool, Error>,
    ) -> Result<Written, Error> {
        let mut turn = None;
        loop {
            if turn.is_none() {
                turn = Some(self.shared.turns.take(live.id).await);
            }
            let mut contents = live.contents.clone();
            if !change(&mut contents)? {
                return Ok(Written::Done(live));
            }
            let written = {
                let mut write = pin!(self.write(&live, version, contents));
                match timeout(MAX_TURN, &mut write).await {
                    Ok(written) => written?,
                    // Turns save conflicts, and nothing depends on them: one that hangs does not keep the others waiting.
                    Err(_) => {
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
    pub(crate) async fn end(&self, mut live: Live) -> Result<Written, Error> {
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
        let new = Live { id: live.id, version: random_version()?, ttl, contents, stale: false };
        let written = self.write_for(live, new).await?;
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

    pub(crate) async fn clear_all(&self, owner: Owner) -> Result<u64, Error> {
        self.backend
            .clear(owner, None)
            .await
            .map_err(|error| Error::backend("the sessions of a key could not be cleared", error))
    }

    /// Tells the backend that the session is in use, in the background, if it was not told lately. A record that is not
    /// sealed as it would be today is sealed anew on this occasion.
    pub(crate) fn touch(&self, live: &Live) {
        if !live.stale && !self.is_touch_due(live) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let Ok(permit) = self.permit() else { return };
        let Some(touching) = Touching::begin(&self.shared, live.id) else { return };
        let (sessions, live) = (self.clone(), live.clone());
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
        self.ttl(&live.contents).saturating_sub(live.ttl) >= interval.max(Duration::from_millis(1))
    }

    async fn refresh(&self, live: Live) -> Result<(), Error> {
        if live.stale {
            // Whoever has written to it meanwhile has sealed it, too.
            return self.write(&live, random_version()?, live.contents.clone()).await.map(drop);
        }
        let touched = self.backend.touch(live.id, live.version, self.ttl(&live.contents)).await;
        touched.map_err(|error| Error::backend("a session could not be touched", error))
    }

    fn unseal(&self, record: Record) -> Result<Live, Error> {
        let opened = self.shared.policy.codec.read(record.id, &record.payload, self.now())?;
        let (contents, stale) = self.check_owner(record.id, opened)?;
        Ok(Live { id: record.id, version: record.version, ttl: record.ttl, contents, stale })
    }

    fn seal(&self, live: &Live) -> Result<Record, Error> {
        let payload = self.shared.policy.codec.write(live.id, &live.contents)?;
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
    fn idle(&self, contents: &Contents) -> Option<u64> {
        contents.idle.or(self.shared.policy.default_ttl.map(millis))
    }

    /// How long the session lives if nothing happens.
    fn ttl(&self, contents: &Contents) -> Duration {
        let left = contents.deadline.saturating_sub(self.now());
        Duration::from_millis(self.idle(contents).unwrap_or(u64::MAX).min(left).max(1))
    }
}

impl Written {
    /// What is there now, if this call has written it.
    pub(crate) fn done(self) -> Result<Live, Error> {
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

impl<B> Clone for Sessions<B> {
    fn clone(&self) -> Self {
        Self { backend: Arc::clone(&self.backend), shared: Arc::clone(&self.shared) }
    }
}

impl<B> fmt::Debug for Sessions<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

impl fmt::Debug for SessionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionInfo")
            .field("handle", &self.handle)
            .field("created", &self.created)
            .field("last_seen", &self.last_seen)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
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

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the sessions are closed")
}

fn on_load(error: crate::BoxError) -> Error {
    Error::backend("a session could not be loaded", error)
}

fn on_create(error: crate::BoxError) -> Error {
    Error::backend("a session could not be created", error)
}

fn on_update(error: crate::BoxError) -> Error {
    Error::backend("a session could not be updated", error)
}

fn on_delete(error: crate::BoxError) -> Error {
    Error::backend("a session could not be ended", error)
}

pub(crate) fn random_version() -> Result<i64, Error> {
    Ok(i64::from_be_bytes(random()?) & i64::MAX)
}

fn time(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

const MAX_KEY: usize = 1024;
const MAX_TURN: Duration = Duration::from_millis(100);
const MAX_PREVIOUS: usize = 4;
const MAX_TOUCH_INTERVAL: Duration = Duration::from_secs(300);
const PERMITS: u32 = 1 << 28;
const TRIES_FOR_A_NAME: usize = 5;
const TRIES_TO_END: usize = 3;
