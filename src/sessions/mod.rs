//! The module: sessions without HTTP. IDs, contents and time, over a backend that knows of none.

pub(crate) mod builder;
pub(crate) mod engine;
pub(crate) mod policy;
mod turns;

use std::{
    collections::HashSet,
    fmt,
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    backend::{Backend, any::AnyBackend},
    clock::millis,
    error::Error,
    random::random_version,
    record::{
        Record,
        codec::Codec,
        data::Data,
        id::{Owner, RecordId, Sid},
        token::{Credentials, Secret, SessionId},
    },
    sessions::{
        builder::Builder,
        engine::{Found, Live, Written, closed, not_found, on_delete, on_load, too_late},
        policy::Policy,
        turns::Turns,
    },
    timeout::within,
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
/// Each call answers within [`request_time`](Builder::request_time), if need be with [`Unavailable`](crate::ErrorKind::Unavailable). It needs a
/// tokio runtime with its timer on.
pub struct Sessions<B = AnyBackend> {
    pub(crate) backend: Arc<B>,
    pub(crate) shared: Arc<Shared>,
}

/// One of a user's sessions, for showing it to the user.
#[derive(Clone)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The public name, for [`revoke`](Sessions::revoke). It is not the ID, and leads nowhere.
    pub handle: String,
    /// When it began.
    pub created: SystemTime,
    /// When its user signed in to it. A login always begins a session, so this is `created` today.
    pub signed_in: Option<SystemTime>,
    /// When it was last used, as far as the backend was told: up to [`touch_interval`](Builder::touch_interval) ago it may
    /// have been used since.
    pub last_seen: Option<SystemTime>,
    /// When it ends, if it is not used until then.
    pub expires: SystemTime,
    /// What it holds.
    pub data: Data,
}

/// What all handles and the layer share.
pub(crate) struct Shared {
    pub(crate) policy: Policy,
    pub(crate) codec: Codec,
    pub(crate) turns: Turns,
    /// Records whose touch is under way.
    pub(crate) touching: Mutex<HashSet<RecordId>>,
    /// Whoever works holds a permit; closing takes them all.
    pub(crate) open: Arc<Semaphore>,
}

impl<B: Backend> Sessions<B> {
    /// Sessions over a backend of one's own, to be set up. See [`backend`](crate::backend) for how to write one.
    pub fn over(backend: B) -> Builder<B> {
        Builder::new(backend)
    }

    pub(crate) fn with(backend: B, policy: Policy, codec: Codec) -> Self {
        let shared = Shared {
            policy,
            codec,
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
    /// [`Data`](crate::ErrorKind::Data) for a key that is empty or longer than 1024 bytes, or data that is no object,
    /// [`TooLarge`](crate::ErrorKind::TooLarge), [`Unavailable`](crate::ErrorKind::Unavailable).
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
    /// [`Unreadable`](crate::ErrorKind::Unreadable), [`Unavailable`](crate::ErrorKind::Unavailable).
    pub async fn get(&self, id: impl AsRef<str>) -> Result<Option<Data>, Error> {
        self.within_time(async {
            let Some(live) = self.find(id.as_ref()).await? else { return Ok(None) };
            self.touch(&live);
            Ok(Some(live.contents.data.clone()))
        })
        .await
    }

    /// Replaces all data of a session.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is no such session, and as [`create`](Self::create) and [`get`](Self::get).
    pub async fn update(&self, id: impl AsRef<str>, data: impl Serialize) -> Result<(), Error> {
        let data = Data::from_serialize(data);
        self.within_time(async {
            let data = data?;
            let live = self.find(id.as_ref()).await?.ok_or_else(not_found)?;
            self.rewrite(live, random_version(), |contents| {
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
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is no such session, and as [`get`](Self::get).
    pub async fn rework(&self, id: impl AsRef<str>) -> Result<SessionId, Error> {
        self.within_time(async {
            let old = self.presented(id.as_ref()).ok_or_else(not_found)?;
            let live = self.find_presented(&old).await?.ok_or_else(not_found)?;
            let new = Secret::random()?;
            let (new_id, old_hash) = (self.id(old.record, &new)?, old.secret.hash());
            let live = self
                .rewrite(live, random_version(), |contents| {
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
    /// [`Unreadable`](crate::ErrorKind::Unreadable), [`Unavailable`](crate::ErrorKind::Unavailable).
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
    /// One that is made meanwhile is ended, or is there afterwards. The number may be off by those that log in or expire at
    /// that very time: it is counted in two steps, while ending them is one.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    pub async fn clear(&self, key: impl AsRef<str>) -> Result<u64, Error> {
        let owner = self.owner(key.as_ref());
        self.within_time(self.clear_and_count(owner, None)).await
    }

    /// Ends all other sessions of this session's key, keeps this one, and says how many there were. A session without a key
    /// has no others. It is looked up first: one that ends at that very time may end the others nevertheless, also one that
    /// only just began.
    ///
    /// For an app that gets its IDs from elsewhere than a cookie, and has just changed a password.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is no such session, which then ends no other either, and as
    /// [`get`](Self::get).
    pub async fn clear_others(&self, id: impl AsRef<str>) -> Result<u64, Error> {
        self.within_time(async {
            let live = self.find(id.as_ref()).await?.ok_or_else(not_found)?;
            match live.id.owner() {
                Some(owner) => self.clear_and_count(owner, Some(live.id)).await,
                None => Ok(0),
            }
        })
        .await
    }

    /// All live sessions of a session key, in the order in which they began. None of their IDs is in it.
    ///
    /// One that is there all the time is listed, and none that ended before. One that begins or ends meanwhile is listed or
    /// not, each for itself: with Redis, this is more than one trip.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    pub async fn list(&self, key: impl AsRef<str>) -> Result<Vec<SessionInfo>, Error> {
        let owner = self.owner(key.as_ref());
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
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    pub async fn revoke(&self, key: impl AsRef<str>, handle: impl AsRef<str>) -> Result<bool, Error> {
        let owner = self.owner(key.as_ref());
        let Some(sid) = Sid::parse(handle.as_ref()) else { return Ok(false) };
        let id = RecordId::new(Some(owner), sid);
        self.within_time(async {
            let Some(record) = self.backend.load(id).await.map_err(on_load)? else { return Ok(false) };
            match self.unseal(record) {
                Ok(live) if live.is_live_at(self.now()) => {
                    Ok(matches!(self.end(Arc::new(live)).await?, Written::Done(_)))
                }
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
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the backend fails to, or if they are closed already.
    pub async fn close(&self) -> Result<(), Error> {
        let permits = self.shared.open.acquire_many(PERMITS).await.map_err(|_| closed())?;
        self.shared.open.close();
        drop(permits);
        self.backend.close().await.map_err(|error| Error::backend("the backend did not close", error))
    }

    /// Runs a call of the module, if they are open, for as long as it may take.
    async fn within_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let _permit = self.permit()?;
        within(|| self.request_time(), pin!(work)).await.unwrap_or_else(|| Err(too_late()))
    }

    /// Where the text of an ID leads; `None` for nowhere.
    async fn find(&self, id: &str) -> Result<Option<Arc<Live>>, Error> {
        match self.presented(id) {
            Some(presented) => self.find_presented(&presented).await,
            None => Ok(None),
        }
    }

    async fn find_presented(&self, id: &Credentials) -> Result<Option<Arc<Live>>, Error> {
        match self.look(id.record, &id.secret.hash()).await? {
            Found::Live(live) => Ok(Some(live)),
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
            signed_in: contents.signed_in.map(time),
            last_seen: Some(time(used.unwrap_or(0).clamp(contents.written, contents.written.max(now)))),
            expires: time(now.saturating_add(left).min(contents.deadline)),
            data: contents.data,
        }
    }

    /// What a login left at an old ID is no session, though the backend counts it. Ending matters more than counting: it does
    /// not depend on a list.
    async fn clear_and_count(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64, Error> {
        let records = timeout(self.request_time() / 2, self.records(owner)).await;
        let tombstones = match records {
            Ok(Ok(records)) => records.iter().filter(|record| self.is_tombstone(record)).count() as u64,
            _ => 0,
        };
        let ended = self.clear_all(owner, keep).await?;
        Ok(ended.saturating_sub(tombstones))
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
            .field("signed_in", &self.signed_in)
            .field("last_seen", &self.last_seen)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

pub(crate) fn time(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

const PERMITS: u32 = 1 << 28;
