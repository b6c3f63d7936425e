//! The stacks to compare, and a client for each.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, Response, StatusCode, header},
    routing::get,
};
use jam_session::{MemorySessions, Session, SessionLayer};
use serde_json::{Value, json};
use tower::{Layer, Service};
use tower_sessions::{MemoryStore, SessionManagerLayer};

pub const SCENARIOS: [(&str, &str, Visitor); 6] = [
    ("no cookie, session unused", "/unused", Visitor::New),
    ("cookie, unused", "/unused", Visitor::SignedIn),
    ("cookie, one value read", "/read", Visitor::SignedIn),
    ("cookie, one value read and written", "/write", Visitor::SignedIn),
    ("login (bind, new ID)", "/login", Visitor::Anonymous),
    ("first write of a new visitor", "/write", Visitor::New),
];

/// Which session the request has.
#[derive(Clone, Copy, PartialEq)]
pub enum Visitor {
    New,
    /// A new visitor's session each time, because a login uses it up.
    Anonymous,
    SignedIn,
}

pub const BARE: usize = 0;
pub const FLOOR: usize = 1;
pub const OURS: usize = 2;
pub const THEIRS: usize = 3;

/// The number of measured requests. As many warm-up requests come before them.
pub const COUNTED: usize = 200;

/// Runs one request, from the call to the end of its response.
pub fn call(router: &mut Router, request: Request) -> Response<Body> {
    let mut response = pin!(Service::<Request>::call(router, request));
    // Memory stores never wait.
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(response) = response.as_mut().poll(&mut context) {
            return response.unwrap_or_else(|never| match never {});
        }
    }
}

/// Requests of one scenario to one stack.
pub struct Client {
    pub router: Router,
    scenario: usize,
    cookie: String,
}

impl Client {
    pub fn new(stack: usize, scenario: usize) -> Self {
        let mut client = Self { router: router(stack), scenario, cookie: String::new() };
        client.cookie = match SCENARIOS[scenario].2 {
            Visitor::SignedIn => client.begin("/begin-signed-in"),
            Visitor::New | Visitor::Anonymous => String::new(),
        };
        client
    }

    pub fn request(&mut self) -> Request {
        let (_, path, visitor) = SCENARIOS[self.scenario];
        if visitor == Visitor::Anonymous {
            self.cookie = self.begin("/begin");
        }
        request(path, &self.cookie)
    }

    /// Returns the cookie of a new session. Bare axum and the empty layer get a made-up cookie.
    fn begin(&mut self, path: &str) -> String {
        let response = call(&mut self.router, request(path, ""));
        assert_eq!(response.status(), StatusCode::OK);
        set_cookie(response.headers()).unwrap_or_else(|| format!("__Host-id={}", "a".repeat(89)))
    }
}

fn request(path: &str, cookie: &str) -> Request {
    let mut request = Request::builder().uri(path).header(header::HOST, "localhost");
    if !cookie.is_empty() {
        request = request.header(header::COOKIE, cookie);
    }
    request.body(Body::empty()).expect("a request")
}

fn set_cookie(headers: &HeaderMap) -> Option<String> {
    let line = headers.get(header::SET_COOKIE)?.to_str().expect("a cookie is text");
    Some(line.split(';').next().unwrap_or_default().to_owned())
}

/// Prepares the router as a server does: `axum::serve` calls `with_state`, so layers are applied once.
fn router(stack: usize) -> Router {
    let router = match stack {
        BARE => plain(),
        FLOOR => plain().layer(Floor),
        OURS => ours().layer(SessionLayer::new(MemorySessions::new().erase())),
        THEIRS => theirs().layer(SessionManagerLayer::new(MemoryStore::default())),
        _ => panic!("there is no stack {stack}"),
    };
    router.with_state(())
}

pub fn plain() -> Router {
    let ok = || async { "ok" };
    ["/unused", "/read", "/write", "/login", "/begin", "/begin-signed-in"]
        .into_iter()
        .fold(Router::new(), |router, path| router.route(path, get(ok)))
}

pub fn ours() -> Router {
    static BEGUN: AtomicU64 = AtomicU64::new(0);
    let read = async |session: Session| {
        assert!(session.get::<u64>("visits").expect("a number").is_some());
        "ok"
    };
    let write = async |session: Session| {
        let visits = session.get::<u64>("visits").expect("a number").unwrap_or(0);
        session.insert("visits", visits + 1).expect("a number");
        "ok"
    };
    let login = async |session: Session| {
        session.bind("ada");
        "ok"
    };
    let begin = async |session: Session| {
        session.update(fields()).expect("an object");
        "ok"
    };
    let begin_signed_in = async |session: Session| {
        // Every user has three sessions.
        let user = BEGUN.fetch_add(1, Relaxed) / 3;
        session.create(format!("user-{user}"), fields()).expect("an object");
        "ok"
    };
    Router::new()
        .route("/unused", get(|| async { "ok" }))
        .route("/read", get(read))
        .route("/write", get(write))
        .route("/login", get(login))
        .route("/begin", get(begin))
        .route("/begin-signed-in", get(begin_signed_in))
}

/// A macro over the version of tower-sessions, because its Redis store does not support the newest one.
macro_rules! theirs {
    ($name:ident, $version:ident) => {
        pub fn $name() -> axum::Router {
            use axum::{Router, routing::get};
            use $version::Session;

            let read = async |session: Session| {
                assert!(session.get::<u64>("visits").await.expect("a number").is_some());
                "ok"
            };
            let write = async |session: Session| {
                let visits = session.get::<u64>("visits").await.expect("a number").unwrap_or(0);
                session.insert("visits", visits + 1).await.expect("a number");
                "ok"
            };
            // The login that its documentation shows.
            let login = async |session: Session| {
                session.cycle_id().await.expect("a new ID");
                session.insert("user", "ada").await.expect("a user");
                "ok"
            };
            let begin = async |session: Session| {
                for (name, value) in crate::stacks::fields().as_object().expect("an object") {
                    session.insert(name, value).await.expect("a value");
                }
                "ok"
            };
            Router::new()
                .route("/unused", get(|| async { "ok" }))
                .route("/read", get(read))
                .route("/write", get(write))
                .route("/login", get(login))
                .route("/begin", get(begin))
                .route("/begin-signed-in", get(begin))
        }
    };
}

theirs!(theirs, tower_sessions);

/// Twelve fields with 500 bytes of JSON.
pub fn fields() -> Value {
    let mut fields = json!({
        "visits": 0, "theme": "dark", "locale": "en-GB", "name": "Ada Lovelace", "email": "ada@example.com",
        "roles": ["admin", "editor"], "cart": [[1001, 2], [1002, 1], [1003, 7]], "csrf": "8f14e45fceea167a5a36dedd4bea2543",
        "returns_to": "/orders/2024/11/17/status", "newsletter": true, "last_search": "analytical engine", "notes": "",
    });
    let missing = 500 - fields.to_string().len();
    fields["notes"] = "x".repeat(missing).into();
    fields
}

/// A layer that only inserts an `Arc` into the extensions.
#[derive(Clone)]
struct Floor;

#[derive(Clone)]
struct InsertsAnArc<S>(S);

#[derive(Clone)]
struct Inserted {
    _arc: Arc<[u64; 4]>,
}

impl<S> Layer<S> for Floor {
    type Service = InsertsAnArc<S>;

    fn layer(&self, inner: S) -> InsertsAnArc<S> {
        InsertsAnArc(inner)
    }
}

impl<S: Service<Request>> Service<Request> for InsertsAnArc<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> S::Future {
        request.extensions_mut().insert(Inserted { _arc: Arc::new([0; 4]) });
        self.0.call(request)
    }
}
