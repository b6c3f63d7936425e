//! The stores that tests run on, each behind a `Faulty`; and the options that tests set.

use std::{
    collections::HashSet,
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use jam_session::{
    AnyBackend, Backend, Builder, By, Clear, Cleared, Clock, Created, JsonSessions, Keyring, Limit, Login,
    MemorySessions, Outcome, Owner, Record, RecordId, SessionLayer, Sessions, Terms, backend,
    conformance::{Answer, Fault, Faults, Faulty, Verb},
};

use crate::folder::Folder;

/// Runs each of these tests on every store.
#[macro_export]
macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::store::Store::memory().await).await;
            })*
        }
        mod json {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::store::Store::json().await).await;
            })*
        }
        $crate::on_every_store!(@ redis_server Server: $($test),*);
        $crate::on_every_store!(@ redis_sentinel Sentinel: $($test),*);
        $crate::on_every_store!(@ redis_cluster Cluster: $($test),*);
    };
    (@ $module:ident $topology:ident: $($test:ident),*) => {
        #[cfg(feature = "redis")]
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let topology = $crate::redis::harness::Topology::$topology;
                if let Some(place) = $crate::redis::harness::Place::new(topology) {
                    super::$test($crate::store::Store::redis(place).await).await;
                }
            })*
        }
    };
}

/// The backend of the sessions that tests run on: what it meets is for a test to say, and the one in it stays open.
pub type Watched = Faulty<Faulty<AnyBackend>>;

/// A store, and a clock for it that only the test moves.
#[derive(Clone)]
pub struct Store {
    inner: Sessions,
    pub clock: Clock,
    /// How exactly this store can be made to tell the time.
    pub moment: Duration,
    /// What the calls of its sessions meet, and which there were.
    pub faults: Faults,
    backend: Watched,
    /// What it is in, to be removed after it.
    folder: Option<Arc<Folder>>,
    /// Where to make what is stored older, of a store that has a clock of its own.
    #[cfg(feature = "redis")]
    place: Option<Arc<crate::redis::harness::Place>>,
}

/// What a test wants other than by default.
#[derive(Clone, Default)]
pub struct Options {
    pub default_ttl: Option<Option<Duration>>,
    pub max_lifetime: Option<Duration>,
    pub anonymous_lifetime: Option<Duration>,
    pub touch_interval: Option<Duration>,
    pub rework_grace: Option<Duration>,
    pub request_time: Option<Duration>,
    pub watch_interval: Option<Duration>,
    pub unknown_after: Option<Duration>,
    pub max_size: Option<usize>,
    pub pepper: Option<&'static str>,
    pub namespace: Option<&'static str>,
    pub id_factory: Option<fn() -> String>,
    pub keyring: Option<Keyring>,
    pub sessions_per_key: Option<Limit>,
}

impl Options {
    pub fn apply<T>(&self, mut builder: Builder<T>) -> Builder<T> {
        builder = builder.request_time(self.request_time.unwrap_or(PATIENCE));
        if let Some(ttl) = self.default_ttl {
            builder = builder.default_ttl(ttl);
        }
        if let Some(lifetime) = self.max_lifetime {
            builder = builder.max_lifetime(lifetime);
        }
        if let Some(lifetime) = self.anonymous_lifetime {
            builder = builder.anonymous_lifetime(lifetime);
        }
        if let Some(interval) = self.touch_interval {
            builder = builder.touch_interval(interval);
        }
        if let Some(grace) = self.rework_grace {
            builder = builder.rework_grace(grace);
        }
        if let Some(interval) = self.watch_interval {
            builder = builder.watch_interval(interval);
        }
        if let Some(time) = self.unknown_after {
            builder = builder.unknown_after(time);
        }
        if let Some(size) = self.max_size {
            builder = builder.max_size(size);
        }
        if let Some(pepper) = self.pepper {
            builder = builder.pepper(pepper);
        }
        if let Some(namespace) = self.namespace {
            builder = builder.namespace(namespace);
        }
        if let Some(factory) = self.id_factory {
            builder = builder.id_factory(factory);
        }
        if let Some(keyring) = &self.keyring {
            builder = builder.encrypt(keyring.clone());
        }
        if let Some(limit) = self.sessions_per_key {
            builder = builder.sessions_per_key(limit);
        }
        builder
    }
}

impl Store {
    pub async fn memory() -> Self {
        let clock = Clock::manual();
        let store = MemorySessions::builder().clock(clock.clone()).build().unwrap().erase();
        let backend = store.backend().clone();
        Self::with(store, clock, |faults| knows_updates(faults, backend))
    }

    pub async fn json() -> Self {
        let (clock, folder) = (Clock::manual(), Folder::new());
        let inner = JsonSessions::builder(folder.file()).clock(clock.clone()).open().await.unwrap().erase();
        Self { folder: Some(Arc::new(folder)), ..Self::over(inner, clock) }
    }

    /// Its clock is the server's: time passes for what is stored by making that older. While a test runs, it goes on.
    #[cfg(feature = "redis")]
    pub async fn redis(place: crate::redis::harness::Place) -> Self {
        let inner = place.sessions().await.erase();
        let moment = Duration::from_secs(90);
        Self { moment, place: Some(Arc::new(place)), ..Self::over(inner, Clock::manual()) }
    }

    fn over(inner: Sessions, clock: Clock) -> Self {
        Self::with(inner, clock, |_| {})
    }

    fn with(inner: Sessions, clock: Clock, rules: impl FnOnce(&Faults)) -> Self {
        let stored = Faulty::new(inner.backend().clone());
        stays_open(&stored.faults());
        rules(&stored.faults());
        let backend = Faulty::new(stored);
        Self {
            inner,
            clock,
            moment: Duration::from_millis(1),
            faults: backend.faults(),
            backend,
            #[cfg(feature = "redis")]
            place: None,
            folder: None,
        }
    }

    /// Sessions on this store: those of one process. Two of them share nothing but the store.
    pub fn sessions(&self) -> Sessions<Watched> {
        self.sessions_with(Options::default())
    }

    pub fn sessions_with(&self, options: Options) -> Sessions<Watched> {
        options.apply(Sessions::over(self.watched())).clock(self.clock.clone()).build().unwrap()
    }

    pub fn layer(&self) -> SessionLayer {
        SessionLayer::new(self.sessions())
    }

    pub fn layer_with(&self, options: Options) -> SessionLayer {
        SessionLayer::new(self.sessions_with(options))
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        // In this order: what is woken by the clock finds everything as old as it is then.
        #[cfg(feature = "redis")]
        if let Some(place) = &self.place {
            place.age(time);
        }
        self.clock.advance(time);
    }

    /// Lets time pass for a login too. A server has a clock of its own, which stands in what it gave away.
    pub fn pass_for(&self, login: Login, time: Duration) -> Login {
        self.pass(time);
        if !self.is_remote() {
            return login;
        }
        let mut text = serde_json::to_value(login).unwrap();
        let taken = text["mark"]["taken"].as_u64().unwrap();
        text["mark"]["taken"] = (taken - u64::try_from(time.as_millis()).unwrap()).into();
        serde_json::from_value(text).unwrap()
    }

    /// Whether it is a server, with a clock and timeouts of its own.
    pub fn is_remote(&self) -> bool {
        self.moment > Duration::from_millis(1)
    }

    /// The call that ends a visitor's session at a login: in a Cluster, one call cannot reach the keys of both.
    pub fn leaves_by(&self) -> Verb {
        #[cfg(feature = "redis")]
        if self.place.as_ref().is_some_and(|place| place.topology == crate::redis::harness::Topology::Cluster) {
            return Verb::Update;
        }
        Verb::Create
    }

    /// How many tasks the store may begin by itself, at any time: one listens to each sentinel, as soon as it is connected.
    pub fn listeners(&self) -> usize {
        #[cfg(feature = "redis")]
        if self.place.as_ref().is_some_and(|place| place.topology == crate::redis::harness::Topology::Sentinel) {
            return crate::redis::harness::sentinel().sentinels.len();
        }
        0
    }

    pub fn is_file(&self) -> bool {
        self.folder.is_some()
    }

    /// Waits until there is no file but those that there have to be: a compaction may be under way.
    pub async fn is_tidy(&self) {
        let Some(folder) = &self.folder else { return };
        let names = || {
            let files = std::fs::read_dir(folder.path("")).unwrap().map(|file| file.unwrap());
            // The reserve for the next compaction is allocated, and empty.
            let is_reserve = |file: &std::fs::DirEntry| {
                file.file_name() == "sessions.json.compacting" && file.metadata().is_ok_and(|file| file.len() == 0)
            };
            let files = files.filter(|file| !is_reserve(file)).map(|file| file.file_name());
            let mut names: Vec<_> = files.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        };
        eventually(async || names() == ["sessions.json", "sessions.json.lock"]).await;
    }

    /// That a time is as expected, as far as this store can tell.
    #[track_caller]
    pub fn assert_about(&self, time: SystemTime, expected: SystemTime) {
        let off = time.duration_since(expected).or_else(|_| expected.duration_since(time)).unwrap();
        assert!(off < self.moment, "{time:?} is not {expected:?}");
    }

    /// Something that happens between what a request has read and what it writes with that verb.
    pub fn first<F>(&self, verb: Verb, first: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.faults.next(verb, Fault::first(move |_| first()));
    }

    /// The backend of sessions on this store, to be set up in another way.
    pub fn watched(&self) -> Watched {
        self.backend.clone()
    }

    /// The store itself, with nobody looking on.
    pub fn inner(&self) -> Sessions {
        self.inner.clone()
    }

    /// The store itself.
    pub fn backend(&self) -> &impl Backend {
        self.inner.backend()
    }
}

/// A machine may be slow, and a test with it: what takes longer than this never ends.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// So little time that a test can wait until it is over; what has to be answered may not be given so little.
pub const BRIEF: Duration = Duration::from_millis(50);

/// The verbs as most tests call them: without terms, for the first time, and each clear with a name of its own.
pub trait Plain: Backend {
    /// Whether the record was created.
    fn creates(&self, record: Record) -> impl Future<Output = backend::Result<bool>> + Send {
        async {
            match self.create(record, Terms::default()).await? {
                Created::Done { .. } => Ok(true),
                Created::Taken => Ok(false),
                other => panic!("it is {other:?}"),
            }
        }
    }

    fn updates(&self, expected: i64, record: Record) -> impl Future<Output = backend::Result<Outcome>> + Send {
        self.update(expected, record, false)
    }

    /// How many records ended: all, or all but one. If that one is not there, none.
    fn clears(&self, owner: Owner, keep: Option<RecordId>) -> impl Future<Output = backend::Result<u64>> + Send {
        async move {
            let by = match keep {
                None => None,
                Some(id) => {
                    let Some(there) = self.load(id).await? else { return Ok(0) };
                    Some(By { id, version: there.version, keep: true })
                }
            };
            match self.clear(owner, Clear { name: name(), by }).await? {
                Cleared::Done(ended) => Ok(ended),
                Cleared::Gone => Ok(0),
                other => panic!("it is {other:?}"),
            }
        }
    }
}

impl<B: Backend> Plain for B {}

/// A name for a clear, that no other has.
pub fn name() -> i64 {
    static LAST: AtomicI64 = AtomicI64::new(0);
    // Other processes clear the same store.
    i64::from(std::process::id()) << 32 | LAST.fetch_add(1, Relaxed)
}

/// The same record with another time to live.
pub fn lasting(ttl: Duration, mut record: Record) -> Record {
    record.ttl = ttl;
    record
}

/// Waits until that is so, and not for ever. Not where time is paused: it would pass while this sleeps.
pub async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        let mut rounds = 0;
        while !condition().await {
            rounds += 1;
            match rounds {
                ..100 => tokio::task::yield_now().await,
                // What takes this long may need the processor that this would keep busy.
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it never is");
}

/// Tries again what a busy machine may be too slow for, as everything that has to be done in [`BRIEF`] time, until it was in
/// time.
pub async fn in_time<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let mut done = None;
    eventually(async || {
        done = attempt().await;
        done.is_some()
    })
    .await;
    done.unwrap()
}

/// Lets a store know its updates again, as one has to whose answers a test takes away: those that it has done, and those that it
/// has not.
pub fn knows_updates(faults: &Faults, store: AnyBackend) {
    let done = Arc::new(Mutex::new(HashSet::new()));
    faults.always(
        Verb::Update,
        Fault::change(move |call, answer| {
            let (done, store) = (Arc::clone(&done), store.clone());
            async move {
                let name = call.record.as_ref().map(|record| (record.id, record.version));
                if matches!(answer, Ok(Answer::Update(Outcome::Done))) {
                    done.lock().unwrap().insert(name);
                }
                if done.lock().unwrap().contains(&name) {
                    return Ok(Answer::Update(Outcome::Done));
                }
                match (answer, call.id) {
                    (Err(_), Some(id)) if call.retry => Ok(Answer::Update(match store.load(id).await? {
                        Some(there) => Outcome::Conflict(there),
                        None => Outcome::Gone,
                    })),
                    (answer, _) => answer,
                }
            }
        }),
    );
}

/// Keeps a store open when sessions on it are closed: other sessions go on with it.
pub fn stays_open(faults: &Faults) {
    faults.always(Verb::Close, Fault::Before);
    faults.always(Verb::Close, Fault::change(|_, _| ready(Ok(Answer::Close))));
}

/// The name in the store of the session with that ID.
pub fn record_id(id: &str) -> RecordId {
    id.rsplit_once('.').unwrap().0.parse().unwrap()
}
