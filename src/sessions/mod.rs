//! Sessions without HTTP: the verbs of a job, a command line or another protocol, over any backend.

pub(crate) mod background;
pub(crate) mod builder;
pub(crate) mod engine;
pub(crate) mod loaded;
pub(crate) mod policy;
mod turns;

use std::{fmt, pin::pin, sync::Arc, time::SystemTime};

use serde::Serialize;
use tokio::time::timeout;

use crate::{
    backend::{Backend, any::AnyBackend},
    clock::{millis, time},
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
        engine::Engine,
        loaded::{Base, Loaded, WriteOutcome},
        policy::Policy,
    },
    timeout::within,
};

/// Sessions over a backend: create, read, update, rotate, end and list them, with or without HTTP.
///
/// A [`SessionLayer`](crate::SessionLayer) is made from it. A clone is another handle to the same sessions. See [`Builder`] for
/// the options, and [`erase`](Self::erase) for choosing the store at run time.
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
/// Each call answers within [`request_time`](Builder::request_time), with [`Unavailable`](crate::ErrorKind::Unavailable) if the
/// backend takes longer. It needs a tokio runtime with its timer enabled.
pub struct Sessions<B = AnyBackend>(Arc<Engine<B>>);

/// One of a user's sessions, for a page that lists them.
#[derive(Clone)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The public name of the session, for [`revoke`](Sessions::revoke). It is not the ID: nobody can sign in with it.
    pub handle: String,
    /// When the session began.
    pub created: SystemTime,
    /// When its user signed in to it. A login always begins a session, so this equals `created` today.
    pub signed_in: Option<SystemTime>,
    /// When the session was last used, as far as the backend knows. It may have been used since, up to
    /// [`touch_interval`](Builder::touch_interval) ago.
    pub last_seen: SystemTime,
    /// When the session ends if it is not used until then.
    pub expires: SystemTime,
    /// The data of the session.
    pub data: Data,
}

impl<B: Backend> Sessions<B> {
    /// Starts to set up sessions over your own backend. See [`backend`](crate::backend) for how to write one.
    pub fn over(backend: B) -> Builder<B> {
        Builder::new(backend)
    }

    pub(crate) fn with(backend: B, policy: Policy, codec: Codec) -> Self {
        Self(Arc::new(Engine::new(backend, policy, codec)))
    }

    pub(crate) fn engine(&self) -> &Arc<Engine<B>> {
        &self.0
    }

    /// The same sessions with the type of their backend forgotten.
    pub fn erase(self) -> Sessions {
        Sessions(Arc::new(self.0.erase()))
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        self.0.backend()
    }

    /// Creates a session for a session key and returns its ID. The data is anything that serializes to a JSON object.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if the key is empty or longer than 1024 bytes, or the data is not an object,
    /// [`TooLarge`](crate::ErrorKind::TooLarge), [`Unavailable`](crate::ErrorKind::Unavailable).
    #[doc(alias = "login", alias = "sign_in")]
    pub async fn create(&self, key: impl AsRef<str>, data: impl Serialize) -> Result<SessionId, Error> {
        let contents = Data::from_serialize(data).map(|data| self.0.contents(Some(key.as_ref()), data, None));
        self.within_time(async {
            let (_, id) = self.0.create(contents?).await?;
            Ok(id)
        })
        .await
    }

    /// Returns the data of a session, or `None` if there is no such session. This counts as use of the session.
    ///
    /// # Errors
    /// [`Unreadable`](crate::ErrorKind::Unreadable), [`Unavailable`](crate::ErrorKind::Unavailable).
    pub async fn get(&self, id: impl AsRef<str>) -> Result<Option<Data>, Error> {
        self.within_time(async {
            let Some(loaded) = self.find(id.as_ref()).await? else { return Ok(None) };
            self.0.touch(&loaded);
            Ok(Some(loaded.contents.data.clone()))
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
            let loaded = self.find(id.as_ref()).await?.ok_or_else(Error::not_found)?;
            let updated = self.0.rewrite(loaded, random_version(), |contents| {
                contents.data = data.clone();
                Ok(true)
            });
            updated.await?.done().map(drop)
        })
        .await
    }

    /// Gives a session a new ID. The previous ID works for [`rework_grace`](Builder::rework_grace) more.
    ///
    /// A previous ID is returned as it is, so parallel calls rotate once.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is no such session, and as [`get`](Self::get).
    #[doc(alias = "rotate", alias = "regenerate", alias = "cycle_id", alias = "renew")]
    pub async fn rework(&self, id: impl AsRef<str>) -> Result<SessionId, Error> {
        self.within_time(async {
            let engine = &self.0;
            let old = engine.credentials(id.as_ref()).ok_or_else(Error::not_found)?;
            let loaded = self.find_by(&old).await?.ok_or_else(Error::not_found)?;
            let new = Secret::random()?;
            let (new_id, old_hash) = (engine.id(old.record, &new)?, old.secret.hash());
            let rotated = engine.rewrite(loaded, random_version(), |contents| {
                engine.rotate(contents, &old_hash, &new);
                Ok(true)
            });
            let loaded = rotated.await?.done()?;
            match loaded.contents.hash.matches(&new.hash()) {
                true => Ok(new_id),
                // Another call has rotated it. Without a grace the ID is invalid by now.
                false if loaded.contents.opens_with(&old_hash, engine.now()) => Ok(SessionId::known(id.as_ref())),
                false => Err(Error::not_found()),
            }
        })
        .await
    }

    /// Ends a session. An ID that leads to no session is not an error.
    ///
    /// # Errors
    /// [`Unreadable`](crate::ErrorKind::Unreadable), [`Unavailable`](crate::ErrorKind::Unavailable).
    #[doc(alias = "logout", alias = "sign_out", alias = "destroy", alias = "flush")]
    pub async fn delete(&self, id: impl AsRef<str>) -> Result<(), Error> {
        self.within_time(async {
            match self.find(id.as_ref()).await? {
                Some(loaded) => self.0.end(loaded).await.map(drop),
                None => Ok(()),
            }
        })
        .await
    }

    /// Ends all sessions of a session key, and returns how many there were.
    ///
    /// A session that is created meanwhile has either ended or is listed afterwards. The number may be off by sessions that
    /// begin or expire during the call, because counting and ending are two steps.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    #[doc(alias = "revoke_all", alias = "logout")]
    pub async fn clear(&self, key: impl AsRef<str>) -> Result<u64, Error> {
        let owner = self.0.owner(key.as_ref());
        self.within_time(self.clear_and_count(owner, None)).await
    }

    /// Ends all other sessions of this session's key, keeps this one, and returns how many there were. A session without a
    /// session key has no others. If it has ended, or ends at the same moment, no other ends.
    ///
    /// For an application that gets its IDs from elsewhere than a cookie, and has just changed a password.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is no such session. Otherwise as [`get`](Self::get).
    #[doc(alias = "revoke_all")]
    pub async fn clear_others(&self, id: impl AsRef<str>) -> Result<u64, Error> {
        self.within_time(async {
            let loaded = self.find(id.as_ref()).await?.ok_or_else(Error::not_found)?;
            match loaded.id.owner() {
                Some(owner) => self.clear_and_count(owner, Some((loaded.id, loaded.version))).await,
                None => Ok(0),
            }
        })
        .await
    }

    /// Returns all live sessions of a session key, in the order in which they began. It never contains an ID.
    ///
    /// A session that is live throughout the call is included, and none that had ended before. One that begins or ends
    /// meanwhile may or may not be, because on Redis this is more than one round trip.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    pub async fn list(&self, key: impl AsRef<str>) -> Result<Vec<SessionInfo>, Error> {
        let engine = &self.0;
        let owner = engine.owner(key.as_ref());
        self.within_time(async {
            let now = engine.now();
            let mut infos = Vec::new();
            for record in engine.list(owner).await? {
                match engine.read(record.id, record) {
                    Ok(loaded) if loaded.is_live_at(now) => infos.push(self.info(loaded, now)),
                    Ok(_) => {}
                    Err(error) => tracing::warn!(error = %error.chain(), "a session is not listed"),
                }
            }
            infos.sort_by(|a, b| (a.created, &a.handle).cmp(&(b.created, &b.handle)));
            Ok(infos)
        })
        .await
    }

    /// Ends one of the sessions of a session key, by its [handle](SessionInfo::handle), and returns whether there was one.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    pub async fn revoke(&self, key: impl AsRef<str>, handle: impl AsRef<str>) -> Result<bool, Error> {
        let engine = &self.0;
        let owner = engine.owner(key.as_ref());
        let Some(sid) = Sid::parse(handle.as_ref()) else { return Ok(false) };
        let id = RecordId::new(Some(owner), sid);
        self.within_time(async {
            let Some(record) = engine.load(id).await? else { return Ok(false) };
            match engine.read(id, record) {
                Ok(loaded) if loaded.is_live_at(engine.now()) => {
                    Ok(matches!(engine.end(Arc::new(loaded)).await?, WriteOutcome::Done(_)))
                }
                Ok(_) => Ok(false),
                Err(_) => engine.delete(id).await,
            }
        })
        .await
    }

    /// Waits until all work that has begun is done, including commits and touches in the background, releases what the backend
    /// holds, and refuses further use of every handle.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the backend fails to close, or if the sessions are closed already.
    pub async fn close(&self) -> Result<(), Error> {
        self.0.close().await
    }

    /// Runs a call, if the sessions are open, for as long as it may take.
    async fn within_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let _permit = self.0.permit()?;
        within(|| self.0.request_time(), pin!(work)).await.unwrap_or_else(|| Err(Error::too_late()))
    }

    /// The session that the text of an ID leads to.
    async fn find(&self, id: &str) -> Result<Option<Arc<Loaded>>, Error> {
        match self.0.credentials(id) {
            Some(credentials) => self.find_by(&credentials).await,
            None => Ok(None),
        }
    }

    async fn find_by(&self, id: &Credentials) -> Result<Option<Arc<Loaded>>, Error> {
        match self.0.find(id).await? {
            Base::Live(loaded, _) => Ok(Some(loaded)),
            Base::Unreadable(error) => Err(error),
            Base::Nothing | Base::Replaced | Base::Gone(..) => Ok(None),
        }
    }

    fn info(&self, loaded: Loaded, now: u64) -> SessionInfo {
        let Loaded { id, ttl, contents, .. } = loaded;
        let left = millis(ttl);
        // The time to live began to run at its last use. Where the deadline has cut it, this says too early rather than too
        // late, and it was used no earlier than it was written.
        let used = self.0.idle(&contents).map_or(0, |idle| now.saturating_add(left).saturating_sub(idle));
        SessionInfo {
            handle: id.sid().to_owned(),
            created: time(contents.created),
            signed_in: contents.signed_in.map(time),
            last_seen: time(used.clamp(contents.written, contents.written.max(now))),
            expires: time(now.saturating_add(left).min(contents.deadline)),
            data: contents.data,
        }
    }

    /// What a login left behind under an old ID is not a session, although the backend counts it. Ending matters more than
    /// counting, so it does not depend on a list.
    async fn clear_and_count(&self, owner: Owner, keep: Option<(RecordId, i64)>) -> Result<u64, Error> {
        let records = timeout(self.0.request_time() / 2, self.0.list(owner)).await;
        let tombstones = match records {
            Ok(Ok(records)) => records.iter().filter(|record| self.is_tombstone(record)).count() as u64,
            _ => 0,
        };
        let ended = self.0.clear(owner, keep).await?.ok_or_else(Error::not_found)?;
        Ok(ended.saturating_sub(tombstones))
    }

    fn is_tombstone(&self, record: &Record) -> bool {
        self.0.read(record.id, record.clone()).is_ok_and(|loaded| loaded.contents.ended)
    }
}

impl<B> Clone for Sessions<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
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
