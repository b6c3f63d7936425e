//! The session engine: loads records through a [`Backend`], and [creates](super::creation), [writes](super::writes),
//! [touches](super::touches) and [ends](super::endings) them.
//!
//! [`Sessions`](crate::Sessions) and the layer are built on it.

use std::{pin::pin, sync::Arc, time::Duration};

use crate::{
    backend::{
        Backend,
        any::AnyBackend,
        scan::{Count, Cursor, Page},
        terms::Mark,
    },
    clock::millis,
    error::{BoxError, Error, ErrorKind},
    events::{Event, EventKind},
    log::{self, RateLimit},
    record::{
        Contents, Record,
        codec::Codec,
        data::Data,
        id::{Owner, RecordId},
        secrets::Opening,
        token::{Credentials, IdText, Secret, SessionId},
    },
    sessions::{
        background::{Background, Permit, Touching},
        health::Health,
        loaded::{Found, Loaded, Opened, Unreadable},
        policy::Policy,
        turns::{Turn, Turns},
        watch::Ending,
        watchers::Watchers,
    },
    timeout::within,
};

/// A backend, and the state that all clones of the same [`Sessions`](crate::Sessions) share.
pub(crate) struct Engine<B = AnyBackend> {
    backend: Arc<B>,
    shared: Arc<Shared>,
}

struct Shared {
    policy: Policy,
    codec: Codec,
    turns: Turns,
    health: Health,
    limit: RateLimit,
    watchers: Arc<Watchers>,
    background: Arc<Background>,
}

impl<B: Backend> Engine<B> {
    pub(crate) fn new(backend: B, policy: Policy, codec: Codec) -> Self {
        let (turns, health, watchers) = (Turns::default(), Health::default(), Watchers::new());
        let limit = RateLimit::new(policy.clock.clone());
        let shared = Shared { policy, codec, turns, health, limit, watchers, background: Arc::default() };
        Self { backend: Arc::new(backend), shared: Arc::new(shared) }
    }

    /// Erases the type of the backend.
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

    /// Turns a backend's answer into a result, and updates the store's health.
    pub(super) fn answer<T>(&self, answer: Result<T, BoxError>, doing: &'static str) -> Result<T, Error> {
        self.answer_about(None, answer, doing)
    }

    /// The same, for a call about one record.
    pub(super) fn answer_about<T>(
        &self,
        id: Option<RecordId>,
        answer: Result<T, BoxError>,
        doing: &'static str,
    ) -> Result<T, Error> {
        match answer {
            Ok(answer) => {
                self.shared.health.answered(|| self.policy().clock.elapsed());
                Ok(answer)
            }
            Err(error) => {
                let error = Error::backend(doing, error);
                match error.kind() {
                    ErrorKind::Unavailable => self.shared.health.failed(&error, self.policy().clock.elapsed()),
                    // The store has a record that it cannot read.
                    _ if error.is_unreadable() => self.warn_unreadable(id, &error),
                    _ => {}
                }
                Err(error)
            }
        }
    }

    /// Records that the backend timed out, and returns the error.
    pub(crate) fn too_late(&self) -> Error {
        let error = Error::too_late();
        self.shared.health.failed(&error, self.policy().clock.elapsed());
        error
    }

    /// Sends an event to the application and to the log.
    pub(crate) fn tell(&self, kind: EventKind, session: Option<&str>, key: Option<&str>) {
        self.policy().on_event.tell(&Event { kind, session, key }, self.limit());
    }

    /// Sends an event about one session.
    pub(crate) fn tell_of(&self, kind: EventKind, loaded: &Loaded) {
        self.tell(kind, Some(loaded.id.sid()), loaded.contents.key.as_deref());
    }

    /// Waits for the turn of the next writer of a record in this process.
    pub(super) async fn turn(&self, id: RecordId) -> Turn<'_> {
        self.shared.turns.take(id).await
    }

    /// Marks a record as being touched. Returns `None` if it already is.
    pub(super) fn touching(&self, id: RecordId) -> Option<Touching> {
        self.shared.background.touching(id)
    }

    /// Returns the rate limit of the messages that clients can repeat.
    pub(crate) fn limit(&self) -> &RateLimit {
        &self.shared.limit
    }

    fn warn_unreadable(&self, id: Option<RecordId>, error: &Error) {
        let (error, session) = (error.chain(), id.as_ref().map(RecordId::sid));
        log::limited!(warn, self.limit(), (%error, session,), "a session cannot be read");
    }

    pub(crate) fn now(&self) -> u64 {
        self.policy().clock.now_ms()
    }

    pub(crate) fn request_time(&self) -> Duration {
        self.policy().request_time
    }

    /// Returns a permit, which keeps the sessions open while it is held. Fails once they are being closed.
    pub(crate) fn permit(&self) -> Result<Permit, Error> {
        self.shared.background.permit()
    }

    /// Returns the watchers, which the streams of this process wait on.
    pub(crate) fn watchers(&self) -> &Arc<Watchers> {
        &self.shared.watchers
    }

    /// Ends the streams, waits until all permits are returned, refuses new ones, and closes the backend.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        self.watchers().close();
        self.shared.background.close().await?;
        self.backend.close().await.map_err(|error| Error::backend("the backend could not be closed", error))
    }

    /// Runs a call within `request_time`, if the sessions are open.
    pub(crate) async fn within_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let _permit = self.permit()?;
        within(|| self.request_time(), pin!(work)).await.unwrap_or_else(|| Err(self.too_late()))
    }

    pub(crate) fn owner(&self, key: &str) -> Owner {
        self.codec().owners.owner(key)
    }

    /// Parses the text of an ID.
    pub(crate) fn credentials(&self, text: &str) -> IdText {
        SessionId::read(self.codec().keys.as_deref(), text, || self.now())
    }

    pub(crate) fn id(&self, record: RecordId, secret: &Secret) -> Result<SessionId, Error> {
        SessionId::new(self.codec().keys.as_deref(), record, secret)
    }

    /// Loads the record of an ID. The secret is checked before the record is used for anything else.
    pub(crate) async fn find(&self, credentials: &Credentials) -> Result<Found, Error> {
        // The secret has to open the session both before and after the call, because its grace may end in between.
        let (id, secret, mut now) = (credentials.record, credentials.secret.hash(), self.now());
        loop {
            // This does not call `load`, because a nested future would be moved together with this one.
            let record = match self.answer_about(Some(id), self.backend.load(id).await, LOADING) {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(Found::Nothing),
                Err(error) if error.kind() == ErrorKind::Unreadable => return Ok(unreadable(credentials, error)),
                Err(error) => return Err(error),
            };
            let (mut opening, mut is_live) = (None, false);
            let opened = self.codec().read_if(id, &record.payload, now, |head| {
                (opening, is_live) = (head.opening(&secret, now), head.deadline > now);
                opening.is_some() && is_live
            });
            match (opened, opening) {
                (Ok(Some((contents, stale))), Some(opening)) => {
                    let Record { version, ttl, hint, .. } = record;
                    let loaded = Arc::new(Loaded { id, version, ttl, contents, hint, stale });
                    let opened = Opened { loaded, secret };
                    if opening != Opening::Newest {
                        now = self.now();
                        if opened.opening(now).is_none() {
                            // The grace ended during the call, and the session may have ended, too.
                            continue;
                        }
                    }
                    return Ok(Found::Opened(opened, opening));
                }
                (Ok(_), None) if is_live => {
                    log::debug!(session = id.sid(), "an ID with the wrong secret was refused");
                    return Ok(Found::Closed);
                }
                (Ok(_), _) => return Ok(Found::Nothing),
                (Err(error), _) => {
                    self.warn_unreadable(Some(id), &error);
                    return Ok(unreadable(credentials, error));
                }
            }
        }
    }

    pub(crate) async fn load(&self, id: RecordId) -> Result<Option<Record>, Error> {
        self.answer_about(Some(id), self.backend.load(id).await, LOADING)
    }

    pub(crate) async fn list(&self, owner: Owner) -> Result<Vec<Record>, Error> {
        let mut records = self.answer(self.backend.list(owner).await, "the sessions of a user could not be listed")?;
        let all = records.len();
        records.retain(|record| record.id.owner() == Some(owner));
        if records.len() < all {
            let foreign = all - records.len();
            log::limited!(error, self.limit(), (foreign,), "the backend listed another user's sessions");
        }
        Ok(records)
    }

    /// Returns the initial contents of a new session. [`create`](Self::create) adds its secret.
    pub(crate) fn contents(&self, key: Option<&str>, data: Data, idle: Option<u64>) -> Contents {
        self.policy().contents(key, data, idle)
    }

    /// Returns the deadline of a session that begins at that time.
    pub(crate) fn deadline(&self, is_signed_in: bool, now: u64) -> u64 {
        self.policy().deadline(is_signed_in, now)
    }

    /// Returns the mark of an owner's last clear.
    pub(crate) async fn mark(&self, owner: Owner) -> Result<Mark, Error> {
        self.answer(self.backend.mark(owner).await, "a login could not be started")
    }

    pub(crate) async fn scan(&self, after: Option<Cursor>, most: usize) -> Result<Page, Error> {
        self.answer(self.backend.scan(after, most).await, "the sessions could not be listed")
    }

    pub(crate) async fn count(&self) -> Result<Count, Error> {
        self.answer(self.backend.count().await, "the sessions could not be counted")
    }

    /// Returns how long a previous secret is accepted, in milliseconds.
    pub(crate) fn grace(&self) -> u64 {
        millis(self.policy().rework_grace)
    }

    /// Decodes a record that the backend returned for this ID. The record of another session is unreadable, whatever ID it
    /// claims. That is logged.
    pub(crate) fn read(&self, id: RecordId, record: Record) -> Result<Loaded, Error> {
        self.decode(id, record).inspect_err(|error| self.warn_unreadable(Some(id), error))
    }

    /// The same, for a caller that logs the error.
    pub(super) fn decode(&self, id: RecordId, record: Record) -> Result<Loaded, Error> {
        let (contents, stale) = self.codec().read(id, &record.payload, self.now())?;
        let Record { version, ttl, hint, .. } = record;
        Ok(Loaded { id, version, ttl, contents, hint, stale })
    }

    pub(super) fn record(&self, loaded: &Loaded) -> Result<Record, Error> {
        let payload = self.codec().write(loaded.id, &loaded.contents)?;
        Ok(Record { hint: loaded.hint.clone(), ..Record::new(loaded.id, loaded.version, loaded.ttl, payload) })
    }

    /// Returns the idle timeout of a session in milliseconds, or `None` if it has none.
    pub(crate) fn idle(&self, contents: &Contents) -> Option<u64> {
        contents.idle.or(self.policy().default_ttl.map(millis))
    }

    /// Returns how long the session lives if it is not used.
    pub(super) fn ttl(&self, contents: &Contents) -> Duration {
        self.ttl_at(self.idle(contents), contents.deadline, self.now())
    }

    /// Returns how long a session with this idle timeout and deadline lives if it is not used.
    pub(super) fn ttl_at(&self, idle: Option<u64>, deadline: u64, now: u64) -> Duration {
        let left = deadline.saturating_sub(now);
        Duration::from_millis(idle.unwrap_or(u64::MAX).min(left).max(1))
    }
}

/// Notifications for the streams of this process, after sessions have ended.
impl<B: Backend> Engine<B> {
    /// Tells the streams that these sessions have ended.
    pub(crate) fn ended(&self, ids: &[RecordId], ending: Ending) {
        ids.iter().for_each(|id| self.watchers().ended(*id, ending));
    }

    /// Tells the streams that all sessions of an owner have ended, except the one that is kept.
    ///
    /// `began` is what [`begin`](crate::sessions::watchers::Watchers::begin) returned before the call.
    pub(super) fn cleared(&self, owner: Owner, kept: Option<RecordId>, began: u64) {
        self.watchers().cleared(owner, kept, began, self.policy().clock.moment());
    }

    /// Tells the streams that a session had another login or `clear_others`, which ends the older ones.
    pub(super) fn replaced(&self, now: &Loaded) {
        self.watchers().replaced(now.id, now.contents.logins);
    }
}

fn unreadable(credentials: &Credentials, error: Error) -> Found {
    let Credentials { record: id, is_proven, .. } = *credentials;
    Found::Unreadable(Box::new(Unreadable { id, error, is_proven }))
}

const LOADING: &str = "a session could not be loaded";
