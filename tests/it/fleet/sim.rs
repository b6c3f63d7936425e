//! The application inside the test: two instances on one store, without sockets. Each store call takes a random time and may
//! fail. Time passes only when the walk says so. Everything runs in one thread, so a seed always gives the same walk.

use std::{
    cell::RefCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use axum::{Router, body::Body};
use http::Request;
use jam_session::{
    Backend, Clear, Cleared, Clock, Created, Cursor, JsonSessions, Keyring, Limit, Mark, MemorySessions, Outcome,
    Owner, Page, Record, RecordId, Sessions, Terms, backend::Result,
};
use tokio::task::{AbortHandle, yield_now};
use tower::ServiceExt;

use super::{
    app::{App, MAX_SIZE},
    ask::{Ask, Reply},
    walk::{LACKS_KEY, Site},
};
use crate::{folder::Folder, random::Random, store::PATIENCE};

pub struct Sim {
    options: Options,
    clock: Clock,
    nerves: Arc<Nerves>,
    store: RefCell<Store>,
    apps: RefCell<Vec<(Arc<App>, Router)>>,
    /// Of those before the last settling.
    earlier: RefCell<Vec<Arc<App>>>,
}

#[derive(Clone)]
pub struct Options {
    pub seed: u64,
    pub json: bool,
    /// Some calls take so long that many others come before them, as on a store that writes to a disk.
    pub slow: bool,
    pub faults: bool,
    pub keyring: Option<Keyring>,
    pub sabotage: Option<Sabotage>,
    pub grace: Duration,
    /// How many sessions a user may have.
    pub limit: Limit,
}

pub type Sabotage = super::sabotage::Sabotage;

struct Store {
    sessions: Sessions,
    folder: Option<Folder>,
}

/// What makes the store slow and unreliable.
pub struct Nerves {
    random: Mutex<Random>,
    /// So many calls in a thousand fail.
    failing: AtomicUsize,
    is_slow: bool,
}

/// A store at the end of a line.
pub struct Shaky {
    store: Sessions,
    nerves: Arc<Nerves>,
    sabotage: Option<Arc<super::sabotage::Saboteur>>,
}

impl Sim {
    pub async fn new(options: Options) -> Self {
        let clock = Clock::manual();
        let random = Mutex::new(Random(options.seed ^ 0x5eed));
        let nerves = Arc::new(Nerves { random, failing: AtomicUsize::new(0), is_slow: options.slow });
        let store = match options.json {
            true => Store::json(Folder::new(), &clock).await,
            false => Store {
                sessions: MemorySessions::builder().clock(clock.clone()).build().unwrap().erase(),
                folder: None,
            },
        };
        let sim = Self {
            options,
            clock,
            nerves,
            store: RefCell::new(store),
            apps: RefCell::default(),
            earlier: RefCell::default(),
        };
        sim.start();
        sim
    }

    fn start(&self) {
        let saboteur = self.options.sabotage.map(|sabotage| Arc::new(super::sabotage::Saboteur::new(sabotage)));
        let servers = if self.options.keyring.is_some() { 3 } else { 2 };
        let apps = (0..servers).map(|server| {
            let backend = Shaky {
                store: self.store.borrow().sessions.clone(),
                nerves: self.nerves.clone(),
                sabotage: saboteur.clone(),
            };
            let grace = match self.options.sabotage {
                Some(Sabotage::LongGrace) => self.options.grace * 3,
                Some(Sabotage::NoGrace) => Duration::ZERO,
                _ => self.options.grace,
            };
            let mut builder = Sessions::over(backend)
                .clock(self.clock.clone())
                .max_size(MAX_SIZE)
                .rework_grace(grace)
                .touch_interval(Duration::from_secs(1))
                .request_time(PATIENCE);
            if self.options.limit != Limit::None {
                // Nothing but writes tells the store of a session, so that the oracle knows which one was heard of last.
                let day = Duration::from_secs(86_400);
                builder = builder.sessions_per_key(self.options.limit).default_ttl(day).touch_interval(day);
            }
            if let Some(keyring) = &self.options.keyring {
                // The third one lacks the key of the others.
                let other = || Keyring::generate().unwrap();
                builder = builder.encrypt(if server == LACKS_KEY { other() } else { keyring.clone() });
            }
            let app = App::new(builder.build().unwrap().erase(), self.options.sabotage);
            let router = super::sabotage::around(self.options.sabotage, server == LACKS_KEY, app.router());
            (app, router)
        });
        self.apps.replace(apps.collect());
    }

    fn app(&self, server: usize) -> (Arc<App>, Router) {
        self.apps.borrow()[server].clone()
    }
}

impl Store {
    async fn json(folder: Folder, clock: &Clock) -> Self {
        let sessions = JsonSessions::builder(folder.file()).clock(clock.clone()).open().await.unwrap().erase();
        Self { sessions, folder: Some(folder) }
    }
}

impl Site for Sim {
    async fn send(&self, server: usize, ask: &Ask, headers: Vec<(&'static str, String)>) -> Option<Reply> {
        let (_, router) = self.app(server);
        let mut request = Request::post("/act").header("host", "localhost");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(serde_json::to_vec(ask).unwrap())).unwrap();
        let task = tokio::spawn(async move {
            let response = router.oneshot(request).await.unwrap();
            let (parts, body) = response.into_parts();
            let headers = parts.headers.iter();
            let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
            Reply { status: parts.status.as_u16(), headers, body }
        });
        let _leaving = Leaving(task.abort_handle());
        // A handler that panics takes the connection with it.
        task.await.ok()
    }

    async fn arrived(&self, server: usize, id: usize) {
        self.app(server).0.arrived(id).await;
    }

    async fn open(&self, server: usize, id: usize) {
        self.app(server).0.open(id);
    }

    fn now(&self) -> u64 {
        let since = self.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        u64::try_from(since.as_millis()).unwrap()
    }

    fn shake(&self, random: &mut Random) {
        if random.percent(15) {
            let most = self.options.grace.as_millis() as usize / 2;
            self.clock.advance(Duration::from_millis(random.below(most) as u64));
        }
        if self.options.faults && random.percent(4) {
            let failing = random.one(&[0, 0, 50, 200, 1000]).copied().unwrap();
            self.nerves.failing.store(failing, SeqCst);
        }
    }

    async fn pass(&self) {
        self.clock.advance(self.options.grace + Duration::from_secs(1));
    }

    async fn settle(&self) {
        self.nerves.failing.store(0, SeqCst);
        for (app, _) in self.apps.take() {
            app.close().await;
            self.earlier.borrow_mut().push(app);
        }
        self.clock.advance(self.options.grace + Duration::from_secs(1));
        if self.options.json {
            // What is in the file is all that counts.
            let store = self.store.replace(Store { sessions: MemorySessions::new().erase(), folder: None });
            store.sessions.close().await.unwrap();
            let folder = store.folder.unwrap();
            self.store.replace(Store::json(folder, &self.clock).await);
        }
        self.start();
    }

    fn recorded(&self, id: usize) -> Option<Option<String>> {
        self.earlier.borrow().iter().find_map(|app| app.recorded.lock().unwrap().get(&id).cloned())
    }

    fn saved(&self, id: usize) -> bool {
        self.apps.borrow().iter().any(|(app, _)| app.saved.lock().unwrap().contains(&id))
    }
}

/// A client that leaves takes its request along.
struct Leaving(AbortHandle);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Nerves {
    fn below(&self, end: usize) -> usize {
        self.random.lock().unwrap().below(end)
    }

    async fn pause(&self) {
        let most = if self.is_slow && self.below(4) == 0 { 60 } else { 4 };
        for _ in 0..self.below(most) {
            yield_now().await;
        }
    }

    fn fails(&self) -> bool {
        self.below(1000) < self.failing.load(SeqCst)
    }
}

impl Shaky {
    async fn call<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.nerves.pause().await;
        if self.nerves.fails() {
            return Err("the line was cut before".into());
        }
        let done = call.await?;
        self.nerves.pause().await;
        if self.nerves.fails() {
            return Err("the line was cut after".into());
        }
        Ok(done)
    }
}

impl Backend for Shaky {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        let loaded = self.call(self.store.backend().load(id)).await;
        match &self.sabotage {
            Some(saboteur) => saboteur.load(id, loaded),
            None => loaded,
        }
    }

    async fn create(&self, record: Record, terms: Terms) -> Result<Created> {
        if self.sabotage.as_ref().is_some_and(|saboteur| saboteur.skips_create()) {
            return Ok(Created::done());
        }
        match &self.sabotage {
            Some(saboteur) => self.call(saboteur.create(self.store.backend(), record, terms)).await,
            None => self.call(self.store.backend().create(record, terms)).await,
        }
    }

    async fn update(&self, expected: i64, record: Record, retry: bool) -> Result<Outcome> {
        match &self.sabotage {
            Some(saboteur) => self.call(saboteur.update(self.store.backend(), expected, record, retry)).await,
            None => self.call(self.store.backend().update(expected, record, retry)).await,
        }
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        if let Some(saboteur) = &self.sabotage {
            saboteur.touch(self.store.backend(), id).await?;
        }
        self.call(self.store.backend().touch(id, version, ttl)).await
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        self.call(self.store.backend().delete(id)).await
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        let listed = self.call(self.store.backend().list(owner)).await?;
        Ok(match &self.sabotage {
            Some(saboteur) => saboteur.list(listed),
            None => listed,
        })
    }

    async fn clear(&self, owner: Owner, clear: Clear) -> Result<Cleared> {
        let clear = match &self.sabotage {
            Some(saboteur) => saboteur.clear(self.store.backend(), owner, clear).await?,
            None => clear,
        };
        self.call(self.store.backend().clear(owner, clear)).await
    }
    async fn mark(&self, owner: Owner) -> Result<Mark> {
        self.call(self.store.backend().mark(owner)).await
    }

    async fn scan(&self, after: Option<Cursor>, most: usize) -> Result<Page> {
        self.call(self.store.backend().scan(after, most)).await
    }
}
