//! The backend under examination, and what every promise needs of it: verbs that must answer, names, and time.

use std::{
    any::Any,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::Barrier,
    time::{sleep, timeout},
};

use crate::{
    backend::{Backend, Outcome, Result},
    clock::Clock,
    random::random,
    record::{
        Record,
        id::{Owner, RecordId, Sid},
    },
    sessions::Sessions,
};

/// A backend, and how time passes for it. A clone is another handle to the same.
///
/// What [`conformance_tests!`](crate::conformance_tests) is given becomes one by [`IntoSubject`]: a backend by
/// [`new`](Self::new), [`Sessions`] by [`of`](Self::of).
///
/// The store behind it need not be empty: every promise makes up random names, and looks at no others.
pub struct Subject<B>(Arc<Inner<B>>);

struct Inner<B> {
    /// As one process each would have it.
    handles: Vec<B>,
    next: AtomicUsize,
    time: Time,
    held: Vec<Box<dyn Any + Send + Sync>>,
}

enum Time {
    /// The process's, which stands still unless it is moved.
    Process(Clock),
    /// The backend's own, which cannot be moved, and the shortest time to live that it counts well.
    Own(Duration),
    /// The same, but somebody knows how to move it.
    Moved(Box<dyn Fn(Duration) -> Moving + Send + Sync>),
}

type Moving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What can be examined: any [`Backend`], and [`Sessions`] over one. `None` is for a server that is not there to be examined:
/// the test says that it is skipped, and passes.
pub trait IntoSubject {
    /// What is examined in the end.
    type Backend: Backend;

    /// The subject, if there is one.
    fn into_subject(self) -> Option<Subject<Self::Backend>>;
}

impl<B: Backend> Subject<B> {
    /// A backend that takes the clock of the process: it is [set](Backend::set_clock) to one that only the exam moves, so that
    /// nothing waits.
    pub fn new(backend: B) -> Self {
        let clock = Clock::manual();
        backend.set_clock(clock.clone());
        Self::with(backend, Time::Process(clock))
    }

    /// A backend with a clock of its own, as a server has: where a record has to expire, the exam waits until it has.
    ///
    /// `shortest` is a time to live that the backend counts well: some 100 ms for most, a second or two for one that
    /// counts in whole seconds. It is what the exam waits for, a few times over.
    pub fn with_own_clock(backend: B, shortest: Duration) -> Self {
        Self::with(backend, Time::Own(shortest))
    }

    /// A backend for which `pass` lets time pass: a server with a command for it, or a clock of the backend's that tests can
    /// move.
    pub fn with_time_passed_by<F>(backend: B, pass: impl Fn(Duration) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::with(backend, Time::Moved(Box::new(move |time| Box::pin(pass(time)))))
    }

    /// Another handle to the same store, as another process has: calls then go now to the one, now to the other. What one of them keeps to
    /// itself, as a cache does, is found out.
    ///
    /// It is for a subject that was just made: one that was cloned stays as it is.
    #[must_use]
    pub fn shared_with(mut self, other: B) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            if let Time::Process(clock) = &inner.time {
                other.set_clock(clock.clone());
            }
            inner.handles.push(other);
        }
        self
    }

    /// Keeps that until the exam is over, then drops it, after the backend: a folder, a server.
    ///
    /// It is for a subject that was just made: of one that was cloned it is dropped at once.
    #[must_use]
    pub fn holding(mut self, held: impl Send + Sync + 'static) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.held.push(Box::new(held));
        }
        self
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        let handles = &self.0.handles;
        // Not simply in turn: of pairs of calls the first would always go to the same one. This sequence has no period.
        &handles[self.0.next.fetch_add(1, Relaxed).count_ones() as usize % handles.len()]
    }

    fn with(backend: B, time: Time) -> Self {
        Self(Arc::new(Inner { handles: vec![backend], next: AtomicUsize::new(0), time, held: Vec::new() }))
    }
}

impl<B: Backend> Subject<Shared<B>> {
    /// The backend of sessions that were built, opened or connected: with the [clock](crate::Builder::clock) that they were
    /// given, if that is a manual one; else time is waited for, as [`with_own_clock`](Self::with_own_clock) says.
    pub fn of(sessions: Sessions<B>) -> Self {
        let clock = sessions.engine().policy().clock.clone();
        let time = if clock.is_manual() { Time::Process(clock) } else { Time::Own(SHORTEST) };
        Self::with(Shared(sessions), time)
    }
}

impl<B> Clone for Subject<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B> fmt::Debug for Subject<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").finish_non_exhaustive()
    }
}

impl<B: Backend> IntoSubject for B {
    type Backend = B;

    fn into_subject(self) -> Option<Subject<B>> {
        Some(Subject::new(self))
    }
}

impl<B: Backend> IntoSubject for Subject<B> {
    type Backend = B;

    fn into_subject(self) -> Option<Self> {
        Some(self)
    }
}

impl<B: Backend> IntoSubject for Sessions<B> {
    type Backend = Shared<B>;

    fn into_subject(self) -> Option<Subject<Shared<B>>> {
        Some(Subject::of(self))
    }
}

impl<T: IntoSubject> IntoSubject for Option<T> {
    type Backend = T::Backend;

    fn into_subject(self) -> Option<Subject<T::Backend>> {
        self.and_then(T::into_subject)
    }
}

/// The backend of [`Sessions`], which others may have handles to as well.
pub struct Shared<B>(Sessions<B>);

impl<B: Backend> Shared<B> {
    /// The backend of those sessions, for [`Subject::shared_with`].
    pub fn of(sessions: Sessions<B>) -> Self {
        Self(sessions)
    }
}

impl<B> fmt::Debug for Shared<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl<B: Backend> Backend for Shared<B> {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        self.0.backend().load(id).await
    }

    async fn create(&self, record: Record) -> Result<bool> {
        self.0.backend().create(record).await
    }

    async fn update(&self, expected: i64, record: Record) -> Result<Outcome> {
        self.0.backend().update(expected, record).await
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        self.0.backend().touch(id, version, ttl).await
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        self.0.backend().delete(id).await
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        self.0.backend().list(owner).await
    }

    async fn clear(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64> {
        self.0.backend().clear(owner, keep).await
    }

    async fn close(&self) -> Result<()> {
        self.0.backend().close().await
    }
}

/// The verbs, which must answer.
impl<B: Backend> Subject<B> {
    pub(super) async fn load(&self, id: RecordId) -> Option<Record> {
        let record = answer("load", self.backend().load(id)).await;
        if let Some(record) = &record {
            assert!(record.id == id, "`load` answered with a record of another name: a user gets another's session");
        }
        record
    }

    pub(super) async fn create(&self, record: &Record) -> bool {
        answer("create", self.backend().create(record.clone())).await
    }

    /// For records that have to be there for the exam to go on.
    pub(super) async fn creates(&self, record: &Record) {
        assert!(self.create(record).await, "`create` refused a name that nothing has: nobody can sign in");
    }

    pub(super) async fn update(&self, expected: i64, record: &Record) -> Outcome {
        answer("update", self.backend().update(expected, record.clone())).await
    }

    /// For updates that have to be done for the exam to go on.
    pub(super) async fn updates(&self, expected: i64, record: &Record) {
        match self.update(expected, record).await {
            Outcome::Done => {}
            Outcome::Gone => panic!("`update` found no record, though it is live: what a request changed is lost"),
            Outcome::Conflict(_) => {
                panic!(
                    "`update` found a conflict, though the version was the expected one: every change is answered 503"
                )
            }
        }
    }

    pub(super) async fn touch(&self, id: RecordId, version: i64, ttl: Duration) {
        answer("touch", self.backend().touch(id, version, ttl)).await;
    }

    pub(super) async fn delete(&self, id: RecordId) -> bool {
        answer("delete", self.backend().delete(id)).await
    }

    /// All of them, each once.
    pub(super) async fn list(&self, owner: Owner) -> Vec<Record> {
        let mut all = answer("list", self.backend().list(owner)).await;
        assert!(
            all.iter().all(|record| record.id.owner() == Some(owner)),
            "`list` shows a record that is not the owner's: a user sees, and may end, another's session"
        );
        all.sort_by_key(|record| record.id);
        assert!(all.windows(2).all(|two| two[0].id != two[1].id), "`list` shows a record twice");
        all
    }

    pub(super) async fn lists(&self, id: RecordId) -> Option<Record> {
        let all = self.list(id.owner()?).await;
        all.into_iter().find(|record| record.id == id)
    }

    pub(super) async fn clear(&self, owner: Owner, keep: Option<RecordId>) -> u64 {
        answer("clear", self.backend().clear(owner, keep)).await
    }

    /// That every verb finds nothing. `after` is what ended it, and `version` what it had.
    pub(super) async fn is_absent(&self, id: RecordId, version: i64, after: &str) {
        assert!(self.load(id).await.is_none(), "`load` finds a record after {after}: who was signed out is signed in");
        let new = record(id);
        // To some stores a version of zero means "none yet".
        for expected in [version, 0] {
            assert!(
                matches!(self.update(expected, &new).await, Outcome::Gone),
                "`update` is not `Gone` after {after}: a slow request takes a session that has ended for a live one"
            );
        }
        self.touch(id, version, LONG).await;
        self.touch(id, new.version, LONG).await;
        assert!(
            self.load(id).await.is_none(),
            "`update` or `touch` brought back a record after {after}: a logout is undone by a request that was slow"
        );
        assert!(!self.delete(id).await, "`delete` says that a record was live after {after}");
        if id.owner().is_some() {
            assert!(self.lists(id).await.is_none(), "`list` shows a record after {after}: a session that is over");
        }
    }
}

/// Time.
impl<B: Backend> Subject<B> {
    /// A time to live that can be seen to end.
    pub(super) fn short(&self) -> Duration {
        match self.0.time {
            Time::Own(shortest) => shortest,
            _ => Duration::from_secs(600),
        }
    }

    /// Whether nothing passes by itself: then what is left of a time to live is known to the millisecond.
    pub(super) fn stands_still(&self) -> bool {
        matches!(self.0.time, Time::Process(_))
    }

    /// Whether time cannot be moved, but has to be waited for.
    pub(super) fn has_own_clock(&self) -> bool {
        matches!(self.0.time, Time::Own(_))
    }

    /// Lets so much time pass that whatever was to live for `ttl` is over.
    pub(super) async fn outlast(&self, ttl: Duration) {
        // A backend may think that the last millisecond belongs to the record.
        let over = ttl + Duration::from_millis(1);
        match &self.0.time {
            Time::Process(clock) => clock.advance(over),
            Time::Moved(pass) => pass(over).await,
            Time::Own(_) => {
                // By the backend's clock: something that was made later, for as long, has ended.
                let witness = Record { ttl, ..record(anonymous()) };
                self.creates(&witness).await;
                sleep(ttl).await;
                let gone = async {
                    while self.load(witness.id).await.is_some() {
                        sleep(TICK).await;
                    }
                };
                let gone = timeout(PATIENCE, gone).await;
                assert!(gone.is_ok(), "a record outlives its time to live of {ttl:?}: who was idle stays signed in");
            }
        }
    }

    /// Lets time pass until less is left to a record that lives long, and says how much is.
    pub(super) async fn left_after_a_while(&self, id: RecordId) -> Duration {
        let before = self.must_load(id).await.ttl;
        match &self.0.time {
            Time::Process(clock) => clock.advance(self.short()),
            Time::Moved(pass) => pass(self.short()).await,
            Time::Own(shortest) => sleep(*shortest / 4).await,
        }
        let fallen = async {
            loop {
                let left = self.must_load(id).await.ttl;
                if left < before {
                    return left;
                }
                assert!(!self.stands_still(), "{CLOCK}");
                sleep(TICK).await;
            }
        };
        let Ok(left) = timeout(PATIENCE, fallen).await else { panic!("{CLOCK}") };
        left
    }

    pub(super) async fn must_load(&self, id: RecordId) -> Record {
        let Some(record) = self.load(id).await else {
            panic!("`load` does not find a record that is live: who is signed in is signed out")
        };
        record
    }

    /// Does `extend` to records that would end soon, until it was in time: without a clock that stands still, a slow machine may
    /// let one end first.
    pub(super) async fn extended<F: Future<Output = ()>>(
        &self,
        id: impl Fn() -> RecordId,
        extend: impl Fn(Record) -> F,
    ) -> Option<Record> {
        for attempt in 0..6 {
            let ttl = self.short() * (1 << attempt);
            let short = Record { ttl, ..record(id()) };
            self.creates(&short).await;
            extend(short.clone()).await;
            if self.load(short.id).await.is_some_and(|there| there.ttl > ttl) {
                self.outlast(ttl).await;
                return Some(short);
            }
            if self.stands_still() {
                break;
            }
        }
        None
    }
}

/// A record that lives long, with a version and a payload of its own.
pub(super) fn record(id: RecordId) -> Record {
    let version = version();
    Record { id, version, ttl: LONG, payload: Bytes::from(format!("payload {version}")) }
}

pub(super) fn version() -> i64 {
    i64::from_be_bytes(some()) & i64::MAX
}

pub(super) fn owner() -> Owner {
    Owner::from(some::<16>())
}

pub(super) fn of(owner: Owner) -> RecordId {
    RecordId::new(Some(owner), sid())
}

pub(super) fn anonymous() -> RecordId {
    RecordId::new(None, sid())
}

/// One of somebody, and one of nobody.
pub(super) fn both() -> [RecordId; 2] {
    [of(owner()), anonymous()]
}

fn sid() -> Sid {
    match Sid::random() {
        Ok(sid) => sid,
        Err(error) => panic!("{error}"),
    }
}

fn some<const N: usize>() -> [u8; N] {
    match random() {
        Ok(bytes) => bytes,
        Err(error) => panic!("{error}"),
    }
}

/// That what is there is what was written, and has no more time than that was given.
pub(super) fn is_same(there: &Record, written: &Record, shown_by: &str) {
    assert!(there.id == written.id, "{shown_by} shows a record of another name: a user gets another's session");
    assert!(
        there.version == written.version,
        "{shown_by} shows version {} and not {}, the last one written: changes are answered 503, or lost",
        there.version,
        written.version
    );
    assert!(
        there.payload == written.payload,
        "{shown_by} shows another payload than the last one written ({} bytes and {}): a session is unreadable, or old",
        there.payload.len(),
        written.payload.len()
    );
    assert!(
        there.ttl <= written.ttl,
        "{shown_by} shows a time to live of {:?}, more than the {:?} it was given: it ends too late",
        there.ttl,
        written.ttl
    );
    assert!(!there.ttl.is_zero(), "{shown_by} shows a live record with no time to live");
}

/// What a call answers, if it does.
pub(super) async fn answer<T>(verb: &str, call: impl Future<Output = Result<T>>) -> T {
    match timeout(PATIENCE, call).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => panic!("`{verb}` failed: {error}"),
        Err(_) => panic!("`{verb}` has not answered for {PATIENCE:?}: requests hang"),
    }
}

/// Runs them in tasks that all begin at the same time.
pub(super) async fn together<T, F>(calls: impl IntoIterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let calls: Vec<F> = calls.into_iter().collect();
    let start = Arc::new(Barrier::new(calls.len()));
    let tasks: Vec<_> = calls
        .into_iter()
        .map(|call| {
            let start = Arc::clone(&start);
            tokio::spawn(async move {
                start.wait().await;
                call.await
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        match task.await {
            Ok(answer) => answers.push(answer),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => panic!("{error}"),
            },
        }
    }
    answers
}

/// An hour, of which no machine takes more than a little while an exam runs.
pub(super) const LONG: Duration = Duration::from_secs(3600);

const SHORTEST: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(30);

const CLOCK: &str = "what is left of a time to live does not fall as time passes: sessions never end. (A backend that does not \
    take the clock it is given by `set_clock` is examined as `Subject::with_own_clock`.)";
