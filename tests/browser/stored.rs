//! Existing sessions: made through the library with the test's clock, in the example's store.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};

use http::{Request, Response, header};
use jam_session::{Clock, JsonSessions, RedisSessions, Session, SessionLayer, Sessions};
use tower::{Layer, ServiceExt, service_fn};

/// A session of the past.
pub struct Past {
    pub user: &'static str,
    pub device: &'static str,
    /// How long ago its user signed in, and was last there.
    pub signed_in: Duration,
    pub seen: Duration,
    pub remembered: bool,
}

/// One that somebody signed in to ten minutes ago, and wanted to be remembered. Gives its ID.
pub fn ten_minutes_ago(place: &str, user: &'static str) -> String {
    let past = Past { user, device: "Old Faithful", signed_in: minutes(10), seen: minutes(10), remembered: true };
    store(place, &[past]).remove(0)
}

/// Stores them, while nobody serves from there, and gives their IDs.
#[tokio::main(flavor = "current_thread")]
pub async fn store(place: &str, all: &[Past]) -> Vec<String> {
    let now = SystemTime::now();
    let clock = Clock::manual_at(now - all.iter().map(|past| past.signed_in).max().unwrap_or_default());
    let sessions: Sessions = match place.strip_prefix("json:") {
        // The clock of a file never goes back, so what is to have been there before needs a file of its own.
        Some(path) if std::fs::remove_file(path).is_err() && std::path::Path::new(path).exists() => {
            panic!("{path} could not be removed")
        }
        Some(path) => JsonSessions::builder(path).clock(clock.clone()).open().await.unwrap().erase(),
        None => RedisSessions::builder(place).clock(clock.clone()).connect().await.unwrap().erase(),
    };
    let layer = SessionLayer::new(sessions.clone());
    let mut ids = vec![String::new(); all.len()];
    let mut visits: Vec<_> =
        all.iter().enumerate().flat_map(|(i, past)| [(past.signed_in, i), (past.seen, i)]).collect();
    visits.sort_by(|a, b| b.cmp(a));
    for (ago, i) in visits {
        clock.advance((now - ago).duration_since(clock.now()).unwrap_or_default());
        let past = &all[i];
        let service = layer.layer(service_fn(async |request: Request<()>| {
            let session = request.extensions().get::<Session>().unwrap();
            session.load().await.unwrap();
            if session.key().is_none() {
                session.bind(past.user);
                session.insert("device", past.device).unwrap();
                session.set_ttl(if past.remembered { minutes(30 * 24 * 60) } else { minutes(60) });
            }
            session.modify("visits", |n: Option<u64>| n.unwrap_or(0) + 1).unwrap();
            Ok::<_, Infallible>(Response::new(()))
        }));
        let request = Request::builder().header(header::COOKIE, format!("__Host-id={}", ids[i]));
        let answer = service.oneshot(request.body(()).unwrap()).await.unwrap();
        if let Some(cookie) = answer.headers().get(header::SET_COOKIE) {
            let (pair, _) = cookie.to_str().unwrap().split_once(';').unwrap();
            ids[i] = pair.split_once('=').unwrap().1.to_owned();
        }
    }
    sessions.close().await.unwrap();
    ids
}

pub fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}
