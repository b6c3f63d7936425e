//! The creation of sessions: a new name and secret, and the conditions of a login.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    backend::{
        Backend,
        terms::{Created, Left, Limit, Mark, Since, Terms},
    },
    error::{Error, ErrorKind},
    events::{EventKind, Refusal},
    random::random_version,
    record::{
        Contents, Hint,
        data::Data,
        id::{RecordId, Sid},
        token::{Secret, SessionId},
    },
    sessions::{background::OnDrop, engine::Engine, loaded::Loaded, watch::Ending},
};

/// The name, secret and version of a new session. A retry uses the same ones.
#[derive(Clone)]
pub(crate) struct NewId {
    pub(crate) sid: Sid,
    pub(crate) secret: Secret,
    pub(crate) version: i64,
    /// The record that may be stored. Set when it is sent to the backend.
    sent: Arc<Mutex<Option<RecordId>>>,
}

/// When a login began. A later sign-out everywhere refuses it.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    Mark(Mark),
    /// A time of the sessions' own clock.
    Moment(Duration),
}

/// The conditions under which a session begins. Default: none.
#[derive(Clone, Copy, Default)]
pub(crate) struct Conditions {
    pub(crate) since: Option<Start>,
    /// Whether the limit of sessions per user applies.
    pub(crate) limited: bool,
    /// The visitor's session that ends in the same call.
    pub(crate) leaves: Option<(RecordId, i64)>,
}

/// The result of creating a session.
pub(crate) enum NewSession {
    Done {
        loaded: Arc<Loaded>,
        id: SessionId,
        /// What happened to the visitor's session.
        left: Left,
    },
    /// The user was signed out everywhere after the login [began](Refusal::Cleared), or has [too many](Refusal::Full) sessions.
    Refused(Refusal),
}

impl<B: Backend> Engine<B> {
    /// Makes a name and a secret for a new session.
    pub(crate) fn new_id(&self, version: i64) -> Result<NewId, Error> {
        let (secret, sid) = match &self.policy().id_factory {
            None => Secret::random_with_sid()?,
            Some(_) => (Secret::random()?, self.new_sid()?),
        };
        Ok(NewId { sid, secret, version, sent: Arc::default() })
    }

    /// Stores a new session, and ends the visitor's session in the same call. A retry returns what the first try stored.
    pub(crate) async fn create(
        &self,
        mut contents: Contents,
        new: &NewId,
        conditions: Conditions,
        mut retry: bool,
    ) -> Result<NewSession, Error> {
        let Conditions { since, limited, leaves } = conditions;
        let owner = match &contents.key {
            Some(key) => Some(self.owner(check_key(key)?)),
            None => None,
        };
        let NewId { mut sid, ref secret, version, .. } = *new;
        contents.hash = secret.hash();
        // A name may be taken by chance. The names of a broken factory always are.
        for _ in 0..TRIES_FOR_A_NAME {
            let id = RecordId::new(owner, sid);
            let ttl = self.ttl(&contents);
            let loaded = Loaded { id, version, ttl, contents, hint: Hint::default(), stale: false };
            let (record, text) = (self.record(&loaded)?, self.id(id, secret)?);
            let limit = if limited { self.policy().sessions_per_key } else { Limit::None };
            let terms = Terms { since: since.map(|start| self.since(start)), limit, leaves, retry };
            new.set_sent(Some(id));
            let created = self.backend().create(record, terms).await;
            match self.answer(created, "a session could not be created")? {
                Created::Done { ended, left } => {
                    let kind = if owner.is_some() { EventKind::SignedIn } else { EventKind::Created };
                    self.tell_of(kind, &loaded);
                    for ended in &ended {
                        self.tell(EventKind::Limited, Some(ended.sid()), loaded.contents.key.as_deref());
                    }
                    self.ended(&ended, Ending::SignedOut);
                    if let (Left::Done, Some((visitor, _))) = (&left, leaves) {
                        self.ended(&[visitor], Ending::Replaced);
                    }
                    return Ok(NewSession::Done { loaded: Arc::new(loaded), id: text, left });
                }
                Created::Late => {
                    new.set_sent(None);
                    return Ok(NewSession::Refused(Refusal::Cleared));
                }
                Created::Full => {
                    new.set_sent(None);
                    return Ok(NewSession::Refused(Refusal::Full));
                }
                // Another session may have the name.
                Created::Taken => new.set_sent(None),
            }
            // Or this very session has it: the answer of the first try was lost, and the session was written to since.
            if let Some(record) = self.load(id).await?
                && let Ok(there) = self.read(id, record)
                && there.contents.hash.matches(&loaded.contents.hash)
            {
                return Ok(NewSession::Done { loaded: Arc::new(there), id: text, left: Left::NotTried });
            }
            contents = loaded.contents;
            (sid, retry) = (self.new_sid()?, false);
        }
        Err(Error::new(
            ErrorKind::Config,
            "the id_factory returns names that are already taken: it must return a different one each time",
        ))
    }

    /// Creates a session for a session key, and returns its ID. It does not retry: if the store's answer is lost, it removes the
    /// record, because no client has the ID.
    pub(crate) async fn create_once(self: &Arc<Self>, key: &str, data: Data) -> Result<SessionId, Error> {
        let new = self.new_id(random_version())?;
        let orphan = OnDrop::new(|| {
            if let Some(id) = new.sent() {
                self.remove_orphan(id);
            }
        });
        let contents = self.contents(Some(key), data, None);
        let created = self.create(contents, &new, Conditions { limited: true, ..Conditions::default() }, false).await?;
        orphan.disarm();
        match created {
            NewSession::Done { id, .. } => Ok(id),
            NewSession::Refused(why) => {
                self.tell(EventKind::Refused(why), None, Some(key));
                Err(Error::refused(why))
            }
        }
    }

    /// Converts the start of a login for the backend, as of now.
    fn since(&self, start: Start) -> Since {
        match start {
            Start::Mark(mark) => Since::Mark(mark),
            Start::Moment(moment) => Since::Age(self.policy().clock.elapsed().saturating_sub(moment)),
        }
    }

    fn new_sid(&self) -> Result<Sid, Error> {
        match &self.policy().id_factory {
            None => Sid::random(),
            Some(make) => Sid::parse(&make()).ok_or_else(|| {
                Error::new(
                    ErrorKind::Config,
                    "the id_factory must return 22 to 43 characters of A-Z, a-z, 0-9, _ and -",
                )
            }),
        }
    }
}

impl NewId {
    /// Returns the record that may be stored.
    pub(crate) fn sent(&self) -> Option<RecordId> {
        *self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_sent(&self, id: Option<RecordId>) {
        *self.sent.lock().unwrap_or_else(PoisonError::into_inner) = id;
    }
}

/// Checks the length of a session key.
pub(crate) fn check_key(key: &str) -> Result<&str, Error> {
    match key.len() {
        1..=MAX_KEY => Ok(key),
        _ => Err(Error::new(ErrorKind::Data, "a session key must have 1 to 1024 bytes")),
    }
}

const MAX_KEY: usize = 1024;

const TRIES_FOR_A_NAME: usize = 5;
