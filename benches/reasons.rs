//! The figures for the README: how many parallel writes are lost, whether a slow request undoes a sign-out, and how long it
//! takes to list and to end a user's sessions. tower-sessions does the same work in the same run.
//!
//! ```sh
//! cargo run --release --manifest-path benches/Cargo.toml --bin reasons                      # memory
//! cargo run --release --manifest-path benches/Cargo.toml --bin reasons --features redis     # and a redis-server it starts
//! ```
//!
//! Requests go through the whole router, with the cookie of one session, 20 at a time. Each handler waits a millisecond between
//! reading the session and writing to it, as if it queried a database. Each stack follows its documentation for a counter:
//! `modify` with jam-session, `get` and `insert` with tower-sessions.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request},
    http::{StatusCode, header},
    routing::get,
};
use jam_session::{AnyBackend, MemorySessions, Session, SessionLayer, Sessions};
use tokio::{sync::Barrier, task::JoinSet, time::sleep};
use tower::ServiceExt;
use tower_sessions::{MemoryStore, SessionManagerLayer};

#[cfg(feature = "redis")]
#[allow(dead_code)]
mod redis_server;

const REQUESTS: usize = 1_000;
const AT_A_TIME: usize = 20;
const SIGN_OUTS: usize = 100;
/// The number of users, and of sessions per user, for the list.
const USERS: usize = 1_000;
const SESSIONS: usize = 5;

/// How long a handler waits between reading and writing.
const DATABASE: Duration = Duration::from_millis(1);

#[tokio::main]
async fn main() {
    let memory = MemorySessions::new().erase();
    println!(
        "\n| | 1,000 increments | 1,000 inserts, each under its own name | {SIGN_OUTS} sign-outs during a slow request |"
    );
    println!("|---|---|---|---|");
    row("jam-session, memory", ours, SessionLayer::new(memory.clone())).await;
    row("tower-sessions 0.15, memory", theirs, SessionManagerLayer::new(MemoryStore::default())).await;
    #[cfg(feature = "redis")]
    if let Some(server) = redis_server::Server::start().await {
        use jam_session::RedisSessions;
        use tower_sessions_redis_store::{
            RedisStore,
            fred::prelude::{ClientLike, Config, Pool},
        };

        let redis = RedisSessions::connect(server.uri()).await.expect("connected").erase();
        let pool = Pool::new(Config::from_url(&server.uri()).expect("a URI"), None, None, None, 6).expect("a pool");
        pool.connect();
        pool.wait_for_connect().await.expect("connected");
        row("jam-session, Redis", ours, SessionLayer::new(redis.clone())).await;
        let theirs = tower_sessions_0_14::SessionManagerLayer::new(RedisStore::new(pool));
        row("tower-sessions 0.14, Redis", theirs_on_redis, theirs).await;
        legend();
        all_of_a_user("memory", &memory).await;
        all_of_a_user("Redis", &redis).await;
        return;
    }
    legend();
    all_of_a_user("memory", &memory).await;
}

fn legend() {
    println!(
        "\nOf the increments and inserts: how many the session has in the end. Of the sign-outs: how many hold.\n"
    );
}

/// Synchronizes the slow request with the sign-out.
type Meeting = Arc<Barrier>;

async fn row<L>(name: &str, router: fn(Meeting) -> Router, layer: L)
where
    L: tower::Layer<axum::routing::Route> + Clone + Send + Sync + 'static,
    L::Service: tower::Service<Request, Error = std::convert::Infallible> + Clone + Send + Sync + 'static,
    <L::Service as tower::Service<Request>>::Response: axum::response::IntoResponse + 'static,
    <L::Service as tower::Service<Request>>::Future: Send + 'static,
{
    let meeting = Arc::new(Barrier::new(2));
    let app = router(Arc::clone(&meeting)).layer(layer);
    let increments = parallel(&app, |_| "/increment".to_owned(), "/n").await;
    let inserts = parallel(&app, |i| format!("/insert/{i}"), "/names").await;
    let mut held = 0;
    for _ in 0..SIGN_OUTS {
        held += usize::from(sign_out_holds(&app, &meeting).await);
    }
    println!("| {name} | {increments} | {inserts} | {held} |");
}

/// Sends all requests with the cookie of a new session, and returns how many writes it contains at the end.
async fn parallel(app: &Router, path: impl Fn(usize) -> String, result: &str) -> String {
    let mut browser = Browser::new(app);
    browser.get("/begin").await;
    let next = Arc::new(AtomicUsize::new(0));
    let paths: Arc<[String]> = (0..REQUESTS).map(path).collect();
    let mut tasks = JoinSet::new();
    for _ in 0..AT_A_TIME {
        let (next, paths, mut tab) = (Arc::clone(&next), Arc::clone(&paths), browser.clone());
        tasks.spawn(async move {
            while let Some(path) = paths.get(next.fetch_add(1, Relaxed)) {
                tab.get(path).await;
            }
        });
    }
    tasks.join_all().await;
    browser.get(result).await
}

/// Runs a request that reads the session, then waits until the user has signed out, and then writes.
async fn sign_out_holds(app: &Router, meeting: &Barrier) -> bool {
    let mut browser = Browser::new(app);
    browser.get("/begin").await;
    let mut tab = browser.clone();
    let slow = tokio::spawn(async move {
        tab.get("/slow").await;
        tab
    });
    meeting.wait().await;
    browser.get("/sign-out").await;
    meeting.wait().await;
    let mut tab = slow.await.expect("it does not panic");
    // Use the cookie that the slow response set, or else the old one, which must no longer work.
    tab.get("/user").await == "nobody"
}

/// A router, and the cookie that it set.
#[derive(Clone)]
struct Browser {
    app: Router,
    cookie: String,
}

impl Browser {
    fn new(app: &Router) -> Self {
        Self { app: app.clone(), cookie: String::new() }
    }

    async fn get(&mut self, path: &str) -> String {
        let request = Request::builder().uri(path).header(header::COOKIE, &self.cookie).body(Body::empty());
        let response =
            self.app.clone().oneshot(request.expect("a request")).await.unwrap_or_else(|never| match never {});
        // A store may refuse what the slow request writes.
        assert!(response.status() == StatusCode::OK || path == "/slow", "{path}: {}", response.status());
        if let Some(line) = response.headers().get(header::SET_COOKIE) {
            let line = line.to_str().expect("a cookie is text");
            self.cookie = line.split(';').next().unwrap_or_default().to_owned();
        }
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("a body");
        String::from_utf8(body.into()).expect("text")
    }
}

fn ours(meeting: Meeting) -> Router {
    let begin = async |session: Session| session.create("ada", serde_json::json!({"user": "ada"})).expect("an object");
    let increment = async |session: Session| {
        sleep(DATABASE).await;
        session.modify("n", |n: Option<u64>| n.unwrap_or(0) + 1).expect("a number");
    };
    let insert = async |session: Session, Path(name): Path<String>| {
        sleep(DATABASE).await;
        session.insert(&name, true).expect("a value");
    };
    let n = async |session: Session| session.get::<u64>("n").expect("a number").unwrap_or(0).to_string();
    let names = async |session: Session| {
        let inserted = (0..REQUESTS).filter(|i| session.get::<bool>(&i.to_string()).expect("a value").is_some());
        inserted.count().to_string()
    };
    let user =
        async |session: Session| session.get::<String>("user").expect("text").unwrap_or_else(|| "nobody".to_owned());
    let slow = async move |session: Session| {
        meeting.wait().await;
        meeting.wait().await;
        session.insert("late", true).expect("a value");
    };
    let sign_out = async |session: Session| session.delete();
    Router::new()
        .route("/begin", get(begin))
        .route("/increment", get(increment))
        .route("/insert/{name}", get(insert))
        .route("/n", get(n))
        .route("/names", get(names))
        .route("/user", get(user))
        .route("/slow", get(slow))
        .route("/sign-out", get(sign_out))
}

/// Two versions: the newest one, and the newest one that the Redis store supports.
macro_rules! theirs {
    ($name:ident, $version:ident) => {
        fn $name(meeting: Meeting) -> Router {
            use $version::Session;

            let begin = async |session: Session| {
                session.cycle_id().await.expect("a new ID");
                session.insert("user", "ada").await.expect("a user");
            };
            let increment = async |session: Session| {
                let n: Option<u64> = session.get("n").await.expect("a number");
                sleep(DATABASE).await;
                session.insert("n", n.unwrap_or(0) + 1).await.expect("a number");
            };
            let insert = async |session: Session, Path(name): Path<String>| {
                // Reading the user loads the session.
                session.get::<String>("user").await.expect("a user");
                sleep(DATABASE).await;
                session.insert(&name, true).await.expect("a value");
            };
            let n = async |session: Session| session.get::<u64>("n").await.expect("a number").unwrap_or(0).to_string();
            let names = async |session: Session| {
                let mut inserted = 0;
                for i in 0..REQUESTS {
                    inserted += usize::from(session.get::<bool>(&i.to_string()).await.expect("a value").is_some());
                }
                inserted.to_string()
            };
            let user = async |session: Session| {
                session.get::<String>("user").await.expect("text").unwrap_or_else(|| "nobody".to_owned())
            };
            let slow = async move |session: Session| {
                session.get::<String>("user").await.expect("a user");
                meeting.wait().await;
                meeting.wait().await;
                session.insert("late", true).await.expect("a value");
            };
            let sign_out = async |session: Session| session.flush().await.expect("signed out");
            Router::new()
                .route("/begin", get(begin))
                .route("/increment", get(increment))
                .route("/insert/{name}", get(insert))
                .route("/n", get(n))
                .route("/names", get(names))
                .route("/user", get(user))
                .route("/slow", get(slow))
                .route("/sign-out", get(sign_out))
        }
    };
}

theirs!(theirs, tower_sessions);
#[cfg(feature = "redis")]
theirs!(theirs_on_redis, tower_sessions_0_14);

/// Measures how long it takes to list a user's sessions, and to end them all.
async fn all_of_a_user(store: &str, sessions: &Sessions<AnyBackend>) {
    for i in 0..USERS * SESSIONS {
        sessions
            .create(format!("user-{}", i % USERS), serde_json::json!({"device": "Firefox"}))
            .await
            .expect("created");
    }
    let (mut lists, mut clears) = (Vec::new(), Vec::new());
    for user in (0..USERS).map(|i| format!("user-{i}")) {
        let began = Instant::now();
        assert_eq!(sessions.list(&user).await.expect("listed").len(), SESSIONS);
        lists.push(began.elapsed());
        let began = Instant::now();
        assert_eq!(sessions.clear(&user).await.expect("cleared"), SESSIONS as u64);
        clears.push(began.elapsed());
    }
    println!(
        "{store}: `list` of a user's {SESSIONS} sessions takes {:.0?}, `clear` {:.0?} (medians).",
        median(lists),
        median(clears)
    );
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}
