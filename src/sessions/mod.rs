//! Sessions without HTTP: the verbs of a job, a command line or another protocol, over any backend.

mod all;
pub(crate) mod background;
pub(crate) mod builder;
pub(crate) mod endings;
pub(crate) mod engine;
mod health;
mod info;
pub(crate) mod loaded;
pub(crate) mod login;
pub(crate) mod policy;
pub(crate) mod stream;
mod turns;
pub(crate) mod watch;
mod watchers;

use std::{fmt, sync::Arc};

use serde::Serialize;

pub use self::{all::AllSessions, info::SessionInfo};
use crate::{
    backend::{Backend, Count, any::AnyBackend},
    detached::Detached,
    error::{Error, ErrorKind},
    events::{EventKind, Refusal},
    random::random_version,
    record::{
        codec::Codec,
        data::Data,
        id::{RecordId, Sid},
        secrets::Opening,
        token::{IdText, Secret, SessionId},
    },
    sessions::{
        background::OnDrop,
        builder::Builder,
        engine::{Conditions, Engine, NewSession},
        loaded::{EndOutcome, Found, Loaded, Opened, WriteOutcome},
        login::Login,
        policy::Policy,
        watch::Ending,
    },
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
    /// Unlike [`Session::bind`](crate::Session::bind) and [`Session::create`](crate::Session::create), it is never refused: nothing
    /// says since when the user has been signing in. After a check that took time, the user may have been signed out everywhere
    /// meanwhile, and this session begins all the same.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if the key is empty or longer than 1024 bytes, or the data is not an object,
    /// [`TooLarge`](crate::ErrorKind::TooLarge), [`Full`](crate::ErrorKind::Full),
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    #[doc(alias = "login", alias = "sign_in")]
    pub async fn create(&self, key: impl AsRef<str>, data: impl Serialize) -> Result<SessionId, Error> {
        let engine = &self.0;
        let contents = Data::from_serialize(data).map(|data| engine.contents(Some(key.as_ref()), data, None));
        self.within_time(async {
            let new = engine.new_id(random_version())?;
            // Nobody tries again: without an answer no client gets its ID.
            let orphan = OnDrop::new(|| {
                if let Some(id) = new.sent() {
                    engine.remove_orphan(id);
                }
            });
            let conditions = Conditions { limited: true, ..Conditions::default() };
            let created = engine.create(contents?, &new, conditions, false).await?;
            orphan.disarm();
            match created {
                NewSession::Done { id, .. } => Ok(id),
                NewSession::Refused(why) => {
                    engine.tell(EventKind::Refused(why), None, Some(key.as_ref()));
                    Err(Error::refused(why))
                }
            }
        })
        .await
    }

    /// Begins a login: take it before the credential is checked, and pass it to [`Session::bind`](crate::Session::bind) or
    /// [`Session::create`](crate::Session::create). The login is refused if the user was signed out everywhere meanwhile.
    ///
    /// Any key will do: who is not known by it fails the check, and a session for a key that is empty or too long is refused.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    pub async fn login(&self, key: impl AsRef<str>) -> Result<Login, Error> {
        let key = key.as_ref().to_owned();
        let mark = self.within_time(self.0.mark(self.0.owner(&key))).await?;
        Ok(Login { key, mark })
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
            let old = self.opened(id.as_ref()).await?.ok_or_else(Error::not_found)?;
            let new = Secret::random()?;
            let (new_id, hash) = (engine.id(old.loaded.id, &new)?, new.hash());
            let rotated = engine.rewrite(Arc::clone(&old.loaded), random_version(), false, |contents| {
                contents.rotate(&old.secret, hash, engine.grace(), engine.now());
                // To the session of a later login nothing is written, not even that it is in use.
                Ok(old.loaded.has_same_login(contents))
            });
            let loaded = rotated.await?.done()?;
            let now = engine.now();
            match (loaded.contents.hash.matches(&hash), loaded.contents.opening(&old.secret, now)) {
                (true, _) => {
                    engine.tell_of(EventKind::Rotated, &loaded);
                    Ok(new_id)
                }
                // Another call has rotated it, or it was rotated too often to forget one more secret.
                (false, Some(Opening::Newest | Opening::Previous)) => Ok(SessionId::known(id.as_ref())),
                // Without a grace the ID is invalid by now.
                (false, Some(Opening::Superseded) | None) => Err(Error::not_found()),
            }
        })
        .await
    }

    /// Ends a session. An ID that leads to no session is not an error.
    ///
    /// # Errors
    /// [`Unauthorized`](crate::ErrorKind::Unauthorized) if the session lives on because this ID is not valid for it any more,
    /// [`Unreadable`](crate::ErrorKind::Unreadable), [`Unavailable`](crate::ErrorKind::Unavailable).
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

    /// Ends all sessions of a session key, and returns how many there were.
    ///
    /// A session that is created meanwhile has either ended or is listed afterwards. The user's [logins](Self::login) that are under
    /// way are refused, so what the user can trigger needs a rate limit by user, or the password:
    /// [otherwise](crate::session#when-a-login-or-a-sign-out-is-refused) a thief with a live session can keep its owner out.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    #[doc(alias = "revoke_all", alias = "logout")]
    pub async fn clear(&self, key: impl AsRef<str>) -> Result<u64, Error> {
        self.within_time(self.0.clear(key.as_ref())).await
    }

    /// Gives a session a new ID, and ends all other sessions of its session key and every copy of the old ID. Returns the new ID
    /// and how many sessions ended. A session without a session key has no others, and keeps its ID.
    ///
    /// For an application that gets its IDs from elsewhere than a cookie, and has just changed a password. As [`clear`](Self::clear)
    /// does, it refuses the user's logins that are under way, and needs the same
    /// [protection](crate::session#when-a-login-or-a-sign-out-is-refused).
    ///
    /// # Errors
    /// [`Unauthorized`](crate::ErrorKind::Unauthorized) if this is not the newest ID of a live session; no session ends then.
    /// Otherwise as [`get`](Self::get).
    #[doc(alias = "revoke_all")]
    ///
    /// # Cancel safety
    /// Once begun it runs to its end, also when this future is dropped. Nobody has the new ID then.
    pub async fn clear_others(&self, id: impl AsRef<str>) -> Result<(SessionId, u64), Error> {
        let (sessions, id) = (self.clone(), id.as_ref().to_owned());
        let cleared = async move { sessions.within_time(sessions.renew_and_clear(&id)).await };
        Detached::new(cleared, |cleared| {
            if let Err(error) = cleared {
                error.log("a call that was dropped has not ended other sessions");
            }
        })
        .await
    }

    async fn renew_and_clear(&self, id: &str) -> Result<(SessionId, u64), Error> {
        let engine = &self.0;
        let old = self.opened(id).await?.ok_or_else(Error::not_newest)?;
        if old.loaded.owner().is_none() {
            return Ok((SessionId::known(id), 0));
        }
        let (new, name) = (Secret::random()?, random_version());
        let (new_id, hash) = (engine.id(old.loaded.id, &new)?, new.hash());
        let renewed = engine.rewrite(Arc::clone(&old.loaded), name, false, |contents| {
            Ok(contents.supersede(&old.secret, hash, engine.now()))
        });
        let loaded = match renewed.await? {
            WriteOutcome::Done(loaded) if loaded.contents.hash.matches(&hash) => loaded,
            WriteOutcome::Unreadable(error) => return Err(error),
            _ => return Err(Error::not_newest()),
        };
        let kept = Opened { loaded, secret: hash };
        let cleared = match engine.clear_by(&kept, true, name).await {
            // The new ID is stored, so it is worth a second try, which is known by its name.
            Err(error) if error.kind() == ErrorKind::Unavailable => engine.clear_by(&kept, true, name).await?,
            cleared => cleared?,
        };
        let cleared = cleared.ok_or_else(Error::not_newest)?;
        Ok((new_id, cleared.ended))
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
            let (listed, now) = loop {
                let asked = engine.now();
                let listed = engine.readable(engine.list(owner).await?);
                let now = engine.now();
                // If the deadline of one has passed while the store was asked, the answer may be from before that or from after it.
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

    /// Returns what is known of one session, by its ID, or `None` if there is no such session. Unlike [`get`](Self::get), this does
    /// not count as use.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn info(&self, id: impl AsRef<str>) -> Result<Option<SessionInfo>, Error> {
        self.within_time(async {
            let Some(loaded) = self.find(id.as_ref()).await? else { return Ok(None) };
            Ok(Some(self.0.info(Loaded::clone(&loaded), self.0.now())))
        })
        .await
    }

    /// Begins to read all live sessions in pages, those of visitors included.
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
    /// See [`AllSessions`] for what it promises, and what it costs.
    #[doc(alias = "scan", alias = "iter")]
    pub fn all(&self) -> AllSessions<B> {
        AllSessions::new(Arc::clone(&self.0))
    }

    /// Counts the live sessions.
    ///
    /// It may take longer than [`request_time`](Builder::request_time). Memory and the JSON file keep the number, and look through
    /// the sessions that have expired and are still there. On Redis, and with a backend that does not count by itself, it reads
    /// all sessions.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    pub async fn count(&self) -> Result<Count, Error> {
        let _permit = self.0.permit()?;
        self.0.count().await
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

    /// Ends every stream of this process that [waits for it](crate::Session::ended), waits until all work that has begun is done,
    /// including commits and touches in the background, releases what the backend holds, and refuses further use of every handle.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the backend fails to close, or if the sessions are closed already.
    pub async fn close(&self) -> Result<(), Error> {
        self.0.close().await
    }

    fn within_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> impl Future<Output = Result<T, Error>> {
        self.0.within_time(work)
    }

    /// Where the text of an ID leads.
    async fn look_up(&self, id: &str) -> Result<Found, Error> {
        match self.0.credentials(id) {
            IdText::Id(id) => self.0.find(&id).await,
            IdText::Foreign => Ok(Found::Closed),
            IdText::Malformed => Ok(Found::Nothing),
        }
    }

    /// The session that the text of an ID leads to, if it may read and write.
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

    /// Of sessions that live for two hours, by a wall clock that is set back by one.
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
