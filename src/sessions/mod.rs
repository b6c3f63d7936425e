//! Sessions without HTTP, over any backend: for jobs, command-line tools and other protocols.

mod all;
pub(crate) mod background;
pub(crate) mod builder;
pub(crate) mod creation;
pub(crate) mod endings;
pub(crate) mod engine;
mod health;
mod info;
pub(crate) mod loaded;
pub(crate) mod login;
pub(crate) mod policy;
pub(crate) mod stream;
mod touches;
mod turns;
pub(crate) mod watch;
mod watchers;
mod writes;

use std::{fmt, sync::Arc};

use serde::Serialize;

pub use self::{all::AllSessions, info::SessionInfo};
use crate::{
    backend::{Backend, any::AnyBackend, scan::Count},
    detached::Detached,
    error::{Error, ErrorKind},
    events::{EventKind, Refusal},
    random::random_version,
    record::{
        codec::Codec,
        data::Data,
        id::{RecordId, Sid},
        secrets::Opening,
        token::{IdText, SessionId},
    },
    sessions::{
        builder::Builder,
        engine::Engine,
        loaded::{EndOutcome, Found, Loaded, Opened},
        login::Login,
        policy::Policy,
        watch::Ending,
    },
};

/// Sessions over a backend: create, read, update, rotate, end and list them, with or without HTTP.
///
/// Pass it to [`SessionLayer::new`](crate::SessionLayer::new) to use it over HTTP. Clones are cheap and share the same sessions.
/// [`Builder`] has the options, and [`erase`](Self::erase) lets you choose the store at run time.
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
/// Each call returns within [`request_time`](Builder::request_time), except [`count`](Self::count) and
/// [`close`](Self::close). If the backend takes longer, the call fails with [`Unavailable`](crate::ErrorKind::Unavailable).
/// After `close`, every call fails with that error. The calls need a tokio runtime with time enabled.
pub struct Sessions<B = AnyBackend>(Arc<Engine<B>>);

impl<B: Backend> Sessions<B> {
    /// Returns a builder for sessions over your own backend. See [`backend`](crate::backend) for how to write one.
    pub fn over(backend: B) -> Builder<B> {
        Builder::new(backend)
    }

    pub(crate) fn with(backend: B, policy: Policy, codec: Codec) -> Self {
        Self(Arc::new(Engine::new(backend, policy, codec)))
    }

    pub(crate) fn engine(&self) -> &Arc<Engine<B>> {
        &self.0
    }

    /// Erases the type of the backend, so that the store can be chosen at run time.
    pub fn erase(self) -> Sessions {
        Sessions(Arc::new(self.0.erase()))
    }

    /// Returns the backend.
    pub fn backend(&self) -> &B {
        self.0.backend()
    }

    /// Creates a session for a session key and returns its ID. The data can be anything that serializes to a JSON object.
    ///
    /// Unlike [`Session::bind`](crate::Session::bind) and [`Session::create`](crate::Session::create), this call does not
    /// check whether the user was signed out everywhere while you verified the credential, because it cannot know when the
    /// login began.
    ///
    /// # Errors
    /// * [`Data`](crate::ErrorKind::Data) if the session key is empty or longer than 1024 bytes, or if the data is not an object.
    /// * [`TooLarge`](crate::ErrorKind::TooLarge) if the record would exceed [`max_size`](Builder::max_size).
    /// * [`Full`](crate::ErrorKind::Full) if the user has too many sessions and the limit [refuses](crate::Limit::refuse) more.
    /// * [`Unavailable`](crate::ErrorKind::Unavailable) if the store fails.
    #[doc(alias = "login", alias = "sign_in")]
    pub async fn create(&self, key: impl AsRef<str>, data: impl Serialize) -> Result<SessionId, Error> {
        let data = Data::from_serialize(data);
        self.within_time(async { self.0.create_once(key.as_ref(), data?).await }).await
    }

    /// Begins a login. Call it before you check the credential, and pass the result to [`Session::bind`](crate::Session::bind) or
    /// [`Session::create`](crate::Session::create).
    ///
    /// That call is refused if the user was signed out everywhere in between, or if it comes more than fifteen minutes
    /// later.
    ///
    /// The session key is not validated here, so you can pass what the user typed. An unknown user fails your check, and
    /// `bind` and `create` refuse a session key that is empty or too long.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the store fails.
    pub async fn login(&self, key: impl AsRef<str>) -> Result<Login, Error> {
        let key = key.as_ref().to_owned();
        let mark = self.within_time(self.0.mark(self.0.owner(&key))).await?;
        Ok(Login { key, mark })
    }

    /// Returns the data of a session, or `None` if the session does not exist. This counts as use: it renews the idle timeout.
    ///
    /// # Errors
    /// * [`Unreadable`](crate::ErrorKind::Unreadable), [`Corrupt`](crate::ErrorKind::Corrupt) or
    ///   [`WrongKey`](crate::ErrorKind::WrongKey) if the record cannot be read.
    /// * [`Unavailable`](crate::ErrorKind::Unavailable) if the store fails.
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
    /// * [`NotFound`](crate::ErrorKind::NotFound) if the session does not exist.
    /// * [`Data`](crate::ErrorKind::Data) if the data is not an object.
    /// * [`TooLarge`](crate::ErrorKind::TooLarge) if the record would exceed [`max_size`](Builder::max_size).
    /// * The errors of [`get`](Self::get).
    pub async fn update(&self, id: impl AsRef<str>, data: impl Serialize) -> Result<(), Error> {
        let data = Data::from_serialize(data);
        self.within_time(async {
            let data = data?;
            let loaded = self.find(id.as_ref()).await?.ok_or_else(Error::not_found)?;
            let mut superseded = false;
            let updated = self.0.rewrite(Arc::clone(&loaded), random_version(), false, |contents| {
                superseded = !loaded.has_same_login(contents);
                contents.data = data.clone();
                Ok(!superseded)
            });
            let updated = updated.await?.done().map(drop);
            if superseded { Err(Error::not_found()) } else { updated }
        })
        .await
    }

    /// Gives a session a new ID and returns it. The previous ID stays valid for [`rework_grace`](Builder::rework_grace).
    ///
    /// If the given ID is itself a previous ID, it is returned unchanged. So parallel calls rotate only once.
    ///
    /// # Errors
    /// * [`NotFound`](crate::ErrorKind::NotFound) if the session does not exist.
    /// * The errors of [`get`](Self::get).
    #[doc(alias = "rotate", alias = "regenerate", alias = "cycle_id", alias = "renew")]
    pub async fn rework(&self, id: impl AsRef<str>) -> Result<SessionId, Error> {
        self.within_time(async {
            let old = self.opened(id.as_ref()).await?.ok_or_else(Error::not_found)?;
            self.0.rework(&old, id.as_ref()).await
        })
        .await
    }

    /// Ends a session. Succeeds if the session does not exist.
    ///
    /// # Errors
    /// * [`Unauthorized`](crate::ErrorKind::Unauthorized) if the session exists but this ID is no longer valid for it. The
    ///   session does not end.
    /// * The errors of [`get`](Self::get).
    #[doc(alias = "logout", alias = "sign_out", alias = "destroy", alias = "flush")]
    pub async fn delete(&self, id: impl AsRef<str>) -> Result<(), Error> {
        self.within_time(async {
            let ended = match self.look_up(id.as_ref()).await? {
                Found::Nothing => EndOutcome::Before,
                Found::Closed => EndOutcome::Refused,
                Found::Opened(opened, _) => {
                    let ended = self.0.sign_out(&opened, Ending::SignedOut).await?;
                    if ended == EndOutcome::Refused {
                        self.0.tell_of(EventKind::Refused(Refusal::NotNewest), &opened.loaded);
                    }
                    ended
                }
                Found::Unreadable(unreadable) if unreadable.is_proven => {
                    if self.0.delete(unreadable.id, Ending::SignedOut).await? {
                        self.0.tell(EventKind::SignedOut, Some(unreadable.id.sid()), None);
                    }
                    EndOutcome::Now
                }
                Found::Unreadable(unreadable) => return Err(unreadable.error),
            };
            if ended == EndOutcome::Refused { Err(Error::not_newest()) } else { Ok(()) }
        })
        .await
    }

    /// Ends all sessions of a session key, and returns how many ended.
    ///
    /// A session that is created during the call either ends, or is listed afterwards.
    ///
    /// The user's pending [logins](Self::login) are refused. If users can trigger this, limit its rate per user, or ask for the
    /// password. [Otherwise](crate::session#when-a-login-or-a-sign-out-is-refused) a thief with a live session can keep its owner
    /// from signing in.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the store fails.
    #[doc(alias = "revoke_all", alias = "logout")]
    pub async fn clear(&self, key: impl AsRef<str>) -> Result<u64, Error> {
        self.within_time(self.0.clear(key.as_ref())).await
    }

    /// Ends all other sessions of a session's user, and gives this session a new ID. Returns the new ID and how many sessions
    /// ended.
    ///
    /// Use it after a password change, if your IDs do not come from a cookie. Every copy of the old ID becomes invalid. A session
    /// without a session key has no others, and keeps its ID.
    ///
    /// Like [`clear`](Self::clear), it refuses the user's pending logins and needs the same
    /// [protection](crate::session#when-a-login-or-a-sign-out-is-refused).
    ///
    /// # Errors
    /// * [`Unauthorized`](crate::ErrorKind::Unauthorized) if this is not the newest ID of a live session. No session ends.
    /// * The errors of [`get`](Self::get).
    ///
    /// # Cancel safety
    /// Once polled, the call runs to completion even if this future is dropped. The new ID is then lost.
    #[doc(alias = "revoke_all")]
    pub async fn clear_others(&self, id: impl AsRef<str>) -> Result<(SessionId, u64), Error> {
        let (sessions, id) = (self.clone(), id.as_ref().to_owned());
        let cleared = async move {
            let clear = async {
                let old = sessions.opened(&id).await?.ok_or_else(Error::not_newest)?;
                match old.loaded.owner() {
                    Some(_) => sessions.0.renew_and_clear(&old).await,
                    None => Ok((SessionId::known(&id), 0)),
                }
            };
            sessions.within_time(clear).await
        };
        Detached::new(cleared, |cleared| {
            if let Err(error) = cleared {
                error.log("a cancelled `clear_others` failed");
            }
        })
        .await
    }

    /// Returns all live sessions of a session key, oldest first. The list never contains an ID.
    ///
    /// It includes every readable session that is live throughout the call, and none that ended before the call. A session
    /// that begins or ends during the call may be missing, because on Redis a long list takes more than one round trip.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the store fails. A session that cannot be read is left out, and logged.
    pub async fn list(&self, key: impl AsRef<str>) -> Result<Vec<SessionInfo>, Error> {
        let engine = &self.0;
        let owner = engine.owner(key.as_ref());
        self.within_time(async {
            let (listed, now) = loop {
                let asked = engine.now();
                let listed = engine.readable(engine.list(owner).await?);
                let now = engine.now();
                // If a deadline passed during the call, the store may have answered before it or after it.
                if listed.iter().all(|loaded| loaded.is_live_at(asked) == loaded.is_live_at(now)) {
                    break (listed, now);
                }
            };
            let live = listed.into_iter().filter(|loaded| loaded.is_live_at(now));
            let mut infos: Vec<_> = live.map(|loaded| engine.info(loaded, now)).collect();
            infos.sort_by(|a, b| (a.created, &a.handle).cmp(&(b.created, &b.handle)));
            Ok(infos)
        })
        .await
    }

    /// Returns a session's user, times and data, or `None` if the session does not exist.
    ///
    /// Unlike [`get`](Self::get), this does not count as use.
    ///
    /// # Errors
    /// The errors of [`get`](Self::get).
    pub async fn info(&self, id: impl AsRef<str>) -> Result<Option<SessionInfo>, Error> {
        self.within_time(async {
            let Some(loaded) = self.find(id.as_ref()).await? else { return Ok(None) };
            Ok(Some(self.0.info(Loaded::clone(&loaded), self.0.now())))
        })
        .await
    }

    /// Reads all live sessions in pages, including visitors' sessions.
    ///
    /// ```
    /// # use jam_session::{Error, MemorySessions};
    /// # async fn users(sessions: MemorySessions) -> Result<(), Error> {
    /// let mut all = sessions.all();
    /// while let Some(page) = all.next_page(500).await? {
    ///     for session in page {
    ///         println!("{} since {:?}", session.key.as_deref().unwrap_or("a visitor"), session.created);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// See [`AllSessions`] for its guarantees and its cost.
    #[doc(alias = "scan", alias = "iter")]
    pub fn all(&self) -> AllSessions<B> {
        AllSessions::new(Arc::clone(&self.0))
    }

    /// Counts the live sessions.
    ///
    /// On Redis, a session may be counted twice. The call may take longer than [`request_time`](Builder::request_time).
    /// Memory and the JSON file keep a counter, and only look through the expired sessions that are still stored. Redis, and
    /// a backend without a `count` of its own, read all sessions.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the store fails.
    pub async fn count(&self) -> Result<Count, Error> {
        let _permit = self.0.permit()?;
        self.0.count().await
    }

    /// Ends one session of a session key, by its [handle](SessionInfo::handle). Returns `false` if there is no such session.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the store fails.
    pub async fn revoke(&self, key: impl AsRef<str>, handle: impl AsRef<str>) -> Result<bool, Error> {
        let engine = &self.0;
        let owner = engine.owner(key.as_ref());
        let Some(sid) = Sid::parse(handle.as_ref()) else { return Ok(false) };
        let id = RecordId::new(Some(owner), sid);
        self.within_time(async {
            let read = match engine.load(id).await {
                Ok(Some(record)) => engine.read(id, record),
                Ok(None) => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Unreadable => Err(error),
                Err(error) => return Err(error),
            };
            let ended = match read {
                Ok(loaded) if loaded.is_live_at(engine.now()) => {
                    engine.end(&Arc::new(loaded), Ending::SignedOut).await? == EndOutcome::Now
                }
                Ok(_) => false,
                Err(_) => engine.delete(id, Ending::SignedOut).await?,
            };
            if ended {
                engine.tell(EventKind::Revoked, Some(id.sid()), Some(key.as_ref()));
            }
            Ok(ended)
        })
        .await
    }

    /// Closes the sessions, for a graceful shutdown:
    ///
    /// 1. In this process, every [`Session::ended`](crate::Session::ended) resolves to [`Closed`](crate::Ending::Closed).
    /// 2. The call waits for all pending work, including commits and touches in the background.
    /// 3. The backend releases its resources.
    ///
    /// After that, every call on any clone fails with [`Unavailable`](crate::ErrorKind::Unavailable).
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the backend fails to close, or if the sessions are already closed.
    pub async fn close(&self) -> Result<(), Error> {
        self.0.close().await
    }

    fn within_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> impl Future<Output = Result<T, Error>> {
        self.0.within_time(work)
    }

    /// Looks up the session of an ID that is still text.
    async fn look_up(&self, id: &str) -> Result<Found, Error> {
        match self.0.credentials(id) {
            IdText::Id(id) => self.0.find(&id).await,
            IdText::Foreign => Ok(Found::Closed),
            IdText::Malformed => Ok(Found::Nothing),
        }
    }

    /// Looks up the session of an ID that is still text, if that ID may read and write.
    async fn opened(&self, id: &str) -> Result<Option<Opened>, Error> {
        match self.look_up(id).await? {
            Found::Opened(opened, Opening::Newest | Opening::Previous) => Ok(Some(opened)),
            Found::Unreadable(unreadable) => Err(unreadable.error),
            Found::Nothing | Found::Closed | Found::Opened(_, Opening::Superseded) => Ok(None),
        }
    }

    async fn find(&self, id: &str) -> Result<Option<Arc<Loaded>>, Error> {
        Ok(self.opened(id).await?.map(|opened| opened.loaded))
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

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::Sessions;
    use crate::{backend::Backend, clock::Clock};

    pub(crate) const TWO_HOURS: Duration = Duration::from_secs(7_200);

    /// Checks that setting the wall clock back by an hour revives no ID and no session. The sessions live for two hours.
    pub(crate) async fn nothing_comes_back<B: Backend>(sessions: &Sessions<B>, clock: &Clock) {
        let old = sessions.create("ada", serde_json::json!({})).await.unwrap();
        let new = sessions.rework(&old).await.unwrap();
        assert!(sessions.get(&old).await.unwrap().is_some());
        clock.advance(Duration::from_secs(10));
        assert!(sessions.get(&old).await.unwrap().is_none());
        clock.set_wall(clock.wall_ms() - 3_600_000);
        assert!(sessions.get(&old).await.unwrap().is_none(), "an ID that was replaced is valid again");
        clock.advance(TWO_HOURS - Duration::from_secs(11));
        assert!(sessions.get(&new).await.unwrap().is_some());
        clock.advance(Duration::from_secs(1));
        assert!(sessions.get(&new).await.unwrap().is_none(), "the session lives on behind its deadline");
    }
}
