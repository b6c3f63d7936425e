//! The stores that tests run on, spied upon; and the options that tests set.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use jam_session::{
    Backend, Builder, Clock, JsonSessions, Keyring, MemorySessions, Outcome, Owner, Record, RecordId, SessionLayer,
    Sessions, backend::Result,
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

/// A store, and a clock for it that only the test moves.
#[derive(Clone)]
pub struct Store {
    inner: Sessions,
    pub clock: Clock,
    /// How exactly this store can be made to tell the time.
    pub moment: Duration,
    calls: Arc<Mutex<Vec<&'static str>>>,
    faults: Arc<Mutex<VecDeque<(&'static str, Fault)>>>,
    /// The updates whose answers a test has taken from a store that loses none: it has to know them again, as Redis does.
    lost: Arc<Mutex<HashSet<(RecordId, i64)>>>,
    /// What it is in, to be removed after it.
    folder: Option<Arc<Folder>>,
    /// Where to make what is stored older, of a store that has a clock of its own.
    #[cfg(feature = "redis")]
    place: Option<Arc<crate::redis::harness::Place>>,
}

/// What goes wrong with a call.
#[derive(Clone)]
pub enum Fault {
    /// An error, and nothing has happened.
    Before,
    /// An error, although it has happened.
    After,
    /// No answer.
    Hang,
    /// Something else happens first.
    First(Arc<dyn Fn() -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>),
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
    pub max_size: Option<usize>,
    pub pepper: Option<&'static str>,
    pub namespace: Option<&'static str>,
    pub id_factory: Option<fn() -> String>,
    pub keyring: Option<Keyring>,
}

impl Options {
    pub fn apply<T>(&self, mut builder: Builder<T>) -> Builder<T> {
        // A test may be slow; nothing in it waits for this to pass.
        builder = builder.request_time(self.request_time.unwrap_or(Duration::from_secs(60)));
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
        builder
    }
}

impl Store {
    pub async fn memory() -> Self {
        let clock = Clock::manual();
        Self::over(MemorySessions::builder().clock(clock.clone()).build().unwrap().erase(), clock)
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
        let moment = Duration::from_secs(20);
        Self { moment, place: Some(Arc::new(place)), ..Self::over(inner, Clock::manual()) }
    }

    fn over(inner: Sessions, clock: Clock) -> Self {
        Self {
            inner,
            clock,
            moment: Duration::from_millis(1),
            calls: Arc::default(),
            faults: Arc::default(),
            lost: Arc::default(),
            #[cfg(feature = "redis")]
            place: None,
            folder: None,
        }
    }

    /// Sessions on this store: those of one process. Two of them share nothing but the store.
    pub fn sessions(&self) -> Sessions<Spy> {
        self.sessions_with(Options::default())
    }

    pub fn sessions_with(&self, options: Options) -> Sessions<Spy> {
        options.apply(Sessions::over(Spy(self.clone()))).clock(self.clock.clone()).build().unwrap()
    }

    pub fn layer(&self) -> SessionLayer {
        SessionLayer::new(self.sessions())
    }

    pub fn layer_with(&self, options: Options) -> SessionLayer {
        SessionLayer::new(self.sessions_with(options))
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        self.clock.advance(time);
        #[cfg(feature = "redis")]
        if let Some(place) = &self.place {
            place.age(time);
        }
    }

    /// Whether it is a server, with a clock and timeouts of its own.
    pub fn is_remote(&self) -> bool {
        self.moment > Duration::from_millis(1)
    }

    /// Whether it knows an update again that it has done already.
    fn knows_repeats(&self) -> bool {
        self.is_remote() || self.is_file()
    }

    pub fn is_file(&self) -> bool {
        self.folder.is_some()
    }

    /// That there is no file but those that there have to be.
    #[track_caller]
    pub fn assert_tidy(&self) {
        let Some(folder) = &self.folder else { return };
        let files = std::fs::read_dir(folder.path("")).unwrap().map(|file| file.unwrap().file_name());
        let mut names: Vec<_> = files.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["sessions.json", "sessions.json.lock"]);
    }

    /// That a time is as expected, as far as this store can tell.
    #[track_caller]
    pub fn assert_about(&self, time: SystemTime, expected: SystemTime) {
        let off = time.duration_since(expected).or_else(|_| expected.duration_since(time)).unwrap();
        assert!(off < self.moment, "{time:?} is not {expected:?}");
    }

    /// The calls that the store got since this was last asked.
    pub fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// What goes wrong with the next call of that verb.
    pub fn fail(&self, verb: &'static str, fault: Fault) {
        self.faults.lock().unwrap().push_back((verb, fault));
    }

    pub fn forget_faults(&self) {
        self.faults.lock().unwrap().clear();
    }

    /// Something that happens between what a request has read and what it writes with that verb.
    pub fn first<F>(&self, verb: &'static str, first: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.fail(verb, Fault::First(Arc::new(move || Box::pin(first()))));
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

/// Waits until that is so, and not for ever.
pub async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it is not so after a minute");
}

/// Passes every call on, and notes it.
pub struct Spy(Store);

impl Spy {
    pub fn on(store: &Store) -> Self {
        Self(store.clone())
    }

    async fn call<T>(&self, verb: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.0.calls.lock().unwrap().push(verb);
        let fault = {
            let mut faults = self.0.faults.lock().unwrap();
            let at = faults.iter().position(|(of, _)| *of == verb || *of == "any");
            at.and_then(|at| faults.remove(at)).map(|(_, fault)| fault)
        };
        match fault {
            None => call.await,
            Some(Fault::Before) => Err("the wire was cut before".into()),
            Some(Fault::After) => {
                call.await?;
                Err("the wire was cut after".into())
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::First(first)) => {
                first().await;
                call.await
            }
        }
    }
}

impl Backend for Spy {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        self.call("load", self.0.inner.backend().load(id)).await
    }

    async fn create(&self, record: Record) -> Result<bool> {
        self.call("create", self.0.inner.backend().create(record)).await
    }

    async fn update(&self, expected: i64, record: Record) -> Result<Outcome> {
        let name = (record.id, record.version);
        let mut lost = None;
        let answer = self.call("update", async {
            if !self.0.knows_repeats() && self.0.lost.lock().unwrap().contains(&name) {
                return Ok(Outcome::Done);
            }
            let outcome = self.0.inner.backend().update(expected, record).await?;
            lost = matches!(outcome, Outcome::Done).then_some(name);
            Ok(outcome)
        });
        let answer = answer.await;
        if answer.is_err() {
            self.0.lost.lock().unwrap().extend(lost);
        }
        answer
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        self.call("touch", self.0.inner.backend().touch(id, version, ttl)).await
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        self.call("delete", self.0.inner.backend().delete(id)).await
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        self.call("list", self.0.inner.backend().list(owner)).await
    }

    async fn clear(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64> {
        self.call("clear", self.0.inner.backend().clear(owner, keep)).await
    }
}
