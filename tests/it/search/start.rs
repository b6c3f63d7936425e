//! The initial state of the search: the sessions, and who has their IDs.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use http::{Request, StatusCode, header};
use jam_session::{Backend, Clock, Keyring, MemorySessions, Owner, Record, RecordId, Session, SessionLayer, Sessions};
use serde_json::json;
use tokio::runtime::Runtime;
use tower::{Layer, ServiceExt, service_fn};

use crate::store::record_id;

pub const USERS: &str = "__Host-id";
pub const VISITORS: &str = "__Host-id-visitor";
/// A name and a value.
pub type Cookie = (String, String);

/// What there is before the first request.
pub struct Start {
    pub name: &'static str,
    pub records: Vec<Record>,
    /// A's cookies, B's, and the ID that the thief has.
    pub jars: [Vec<Cookie>; 2],
    pub stolen: Vec<String>,
    /// A user's cookie that A sends until it has another one, and that another key has encrypted.
    pub foreign: Option<Cookie>,
    /// The first session, which is revoked or expires.
    pub first: Option<RecordId>,
    pub ada: Owner,
    pub now: SystemTime,
}

impl Start {
    pub fn new(name: &'static str) -> Self {
        let clock = Clock::manual();
        let sessions = MemorySessions::builder().clock(clock.clone()).build().unwrap();
        let create =
            |user: &str| (USERS.to_owned(), now(sessions.create(user, json!({}))).unwrap().as_str().to_owned());
        let visitor = || {
            let write = |session: &Session| session.insert("cart", 1);
            let response = now(visit(&sessions, &[], write));
            set_cookies(&response).remove(0).0
        };
        let mut start = Self {
            name,
            records: Vec::new(),
            jars: Default::default(),
            stolen: Vec::new(),
            foreign: (name == "another key").then(foreign),
            first: None,
            ada: record_id(&create("ada").1).owner().unwrap(),
            now: clock.now(),
        };
        now(sessions.clear("ada")).unwrap();
        // Another moment than that of the clear.
        clock.advance(Duration::from_secs(1));
        start.now = clock.now();
        let [a, b] = match name {
            "signed in" => [vec![create("ada")], vec![create("ada")]],
            "visitor" => [vec![visitor()], vec![create("ada")]],
            "empty" => [vec![], vec![]],
            "another key" => [vec![], vec![create("ada")]],
            "two of one user" => [vec![create("ada"), create("ada")], vec![]],
            "two users" => [vec![create("ada"), create("grace")], vec![]],
            "two visitors" => [vec![visitor(), visitor()], vec![]],
            "user and visitor" => [vec![create("ada"), visitor()], vec![]],
            _ => unreachable!(),
        };
        let stolen = if name == "two users" { 1 } else { 0 };
        start.stolen = a.get(stolen).map(|cookie| cookie.1.clone()).into_iter().collect();
        start.first = a.first().map(|cookie| record_id(&cookie.1));
        let all = a.iter().chain(&b);
        start.records =
            all.map(|cookie| now(sessions.backend().load(record_id(&cookie.1))).unwrap().unwrap()).collect();
        start.jars = [a, b];
        start
    }
}

/// A cookie that no key of the search decrypts.
fn foreign() -> Cookie {
    let sessions = MemorySessions::builder().encrypt(Keyring::generate().unwrap()).build().unwrap();
    (USERS.to_owned(), now(sessions.create("ada", json!({}))).unwrap().as_str().to_owned())
}

/// A request to sessions that never wait.
async fn visit<B: Backend>(
    sessions: &Sessions<B>,
    cookies: &[Cookie],
    handler: impl Fn(&Session) -> Result<(), jam_session::Error>,
) -> Response {
    let service = SessionLayer::new(sessions.clone()).layer(service_fn(|request: Request<Body>| {
        let session = request.extensions().get::<Session>().unwrap().clone();
        let handler = &handler;
        async move {
            session.load().await.unwrap();
            handler(&session).unwrap();
            Ok::<Response, Infallible>(StatusCode::OK.into_response())
        }
    }));
    service.oneshot(request(cookies)).await.unwrap()
}

pub fn request(cookies: &[Cookie]) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    if !cookies.is_empty() {
        let cookies: Vec<_> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        request.headers_mut().insert(header::COOKIE, cookies.join("; ").parse().unwrap());
    }
    request
}

/// The cookies that are set, or removed.
pub fn set_cookies(response: &Response) -> Vec<(Cookie, bool)> {
    let lines = response.headers().get_all(header::SET_COOKIE).iter();
    let cookies = lines.map(|line| cookie::Cookie::parse(line.to_str().unwrap().to_owned()).unwrap());
    cookies.map(|cookie| ((cookie.name().to_owned(), cookie.value().to_owned()), cookie.value().is_empty())).collect()
}

pub fn take(jar: &mut Vec<Cookie>, cookies: &[(Cookie, bool)]) {
    for (cookie, is_removed) in cookies {
        match jar.iter_mut().find(|there| there.0 == cookie.0) {
            _ if *is_removed => jar.retain(|there| there.0 != cookie.0),
            Some(there) => there.1.clone_from(&cookie.1),
            None => jar.push(cookie.clone()),
        }
    }
}

pub fn now<T>(work: impl Future<Output = T>) -> T {
    work.now_or_never().expect("the memory never waits")
}

/// Timers and background work need a runtime. Nothing of it runs by itself. Each thread has its own: another test that ran a task
/// of this one, while a request of this one is polled, would leave that task waiting for ever.
pub fn runtime() -> &'static Runtime {
    thread_local! {
        static RUNTIME: &'static Runtime = Box::leak(Box::new(
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap(),
        ));
    }
    RUNTIME.with(|runtime| *runtime)
}
