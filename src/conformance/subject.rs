//! The subject of a test: one or more backends over one store, and how time passes for them.

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

use crate::{backend::Backend, clock::Clock, sessions::Sessions};

/// A backend to be tested, and how time passes for it. A clone is the same subject.
///
/// [`conformance_tests!`](crate::conformance_tests) also accepts a backend, which it passes to [`new`](Self::new), and
/// [`Sessions`], which it passes to [`of`](Self::of).
///
/// The store need not be empty, because every promise uses random names and ignores all others.
pub struct Subject<B>(pub(super) Arc<Inner<B>>);

pub(super) struct Inner<B> {
    /// One handle for each process that would use the store.
    handles: Vec<B>,
    next: AtomicUsize,
    pub(super) time: Time,
    held: Vec<Box<dyn Any + Send + Sync>>,
}

pub(super) enum Time {
    /// The clock of the process, which only the tests move.
    Process(Clock),
    /// The backend's own clock, which cannot be moved, and the shortest time to live that it counts well.
    Own(Duration),
    /// The backend's own clock, and a way to move it.
    Moved(Box<dyn Fn(Duration) -> Moving + Send + Sync>),
}

pub(super) type Moving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What can be tested: a [`Backend`], [`Sessions`] over one, or a [`Subject`].
///
/// An `Option` of these is for a server that may be missing: with `None` the test prints that it is skipped, and passes.
pub trait IntoSubject {
    /// The backend that is tested.
    type Backend: Backend;

    /// Converts the value into a subject, if there is one.
    fn into_subject(self) -> Option<Subject<Self::Backend>>;
}

impl<B: Backend> Subject<B> {
    /// Tests a backend that counts time by the clock that [`set_clock`](Backend::set_clock) gives it. The tests move that
    /// clock, so they do not wait.
    pub fn new(backend: B) -> Self {
        let clock = Clock::manual();
        backend.set_clock(clock.clone());
        Self::with(backend, Time::Process(clock))
    }

    /// Tests a backend that has its own clock, such as a server. If a record has to expire, the tests wait for it.
    ///
    /// `shortest` is the shortest time to live that the backend counts accurately: about 100 ms for most, and one or two
    /// seconds for a backend that counts whole seconds. The tests wait this long a few times.
    pub fn with_own_clock(backend: B, shortest: Duration) -> Self {
        Self::with(backend, Time::Own(shortest))
    }

    /// Tests a backend whose time passes when `pass` is called: a server that has a command for it, or a backend with a clock
    /// that tests can move.
    pub fn with_time_passed_by<F>(backend: B, pass: impl Fn(Duration) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::with(backend, Time::Moved(Box::new(move |time| Box::pin(pass(time)))))
    }

    /// Adds a second backend over the same store, as another process would have. Each call goes to one of the two, and they
    /// take turns irregularly. So the tests detect a cache that only one of them has.
    ///
    /// Call it before the subject is cloned: it does nothing to a subject with clones.
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

    /// Keeps a value, such as a temporary folder or a server, until the tests are over, and drops it after the backend.
    ///
    /// Call it before the subject is cloned: a subject with clones drops the value at once.
    #[must_use]
    pub fn holding(mut self, held: impl Send + Sync + 'static) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.held.push(Box::new(held));
        }
        self
    }

    /// One for each process.
    pub(super) fn backends(&self) -> &[B] {
        &self.0.handles
    }

    /// Returns the backend, or one of them if [several](Self::shared_with) share the store.
    pub fn backend(&self) -> &B {
        let handles = &self.0.handles;
        // Not round-robin, because the first of each pair of calls would always go to the same handle. This sequence has no
        // period.
        &handles[self.0.next.fetch_add(1, Relaxed).count_ones() as usize % handles.len()]
    }

    fn with(backend: B, time: Time) -> Self {
        Self(Arc::new(Inner { handles: vec![backend], next: AtomicUsize::new(0), time, held: Vec::new() }))
    }
}

impl<B: Backend> Subject<Arc<B>> {
    /// Tests the backend of sessions that were built, opened or connected.
    ///
    /// If they have a manual [clock](crate::Builder::clock), the tests move it. Otherwise they wait, as with
    /// [`with_own_clock`](Self::with_own_clock).
    pub fn of(sessions: Sessions<B>) -> Self {
        let clock = sessions.engine().policy().clock.clone();
        let time = if clock.is_manual() { Time::Process(clock) } else { Time::Own(SHORTEST) };
        Self::with(sessions.engine().shared_backend(), time)
    }

    /// Adds the backend of other sessions on the same store, as [`shared_with`](Self::shared_with) adds a backend.
    #[must_use]
    pub fn shared_with_sessions(self, other: Sessions<B>) -> Self {
        self.shared_with(other.engine().shared_backend())
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
    type Backend = Arc<B>;

    fn into_subject(self) -> Option<Subject<Arc<B>>> {
        Some(Subject::of(self))
    }
}

impl<T: IntoSubject> IntoSubject for Option<T> {
    type Backend = T::Backend;

    fn into_subject(self) -> Option<Subject<T::Backend>> {
        self.and_then(T::into_subject)
    }
}

const SHORTEST: Duration = Duration::from_millis(200);

/// How long a backend may take to answer before it counts as hanging.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
