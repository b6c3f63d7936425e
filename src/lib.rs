//! Server-side sessions for [axum] and [tower] that stay correct under parallel requests.
//!
//! The browser holds a random ID in a cookie, and the data stays on the server: in memory, in a JSON file or in Redis. A
//! [`SessionLayer`] gives each request a [`Session`]. Handlers take it as an argument, and read and write without `.await`.
//! When the response is ready, their changes are committed in one atomic call to the store. Only `clear_others` and some
//! logins need a second one: see [what a request costs](guide::requests).
//!
//! # Quick start
//!
//! ```
//! use axum::{Router, extract::State, routing::{get, post}};
//! use jam_session::{Error, MemorySessions, Session, SessionKey, SessionLayer, Sessions};
//!
//! async fn home(session: Session) -> Result<String, Error> {
//!     session.modify("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
//!     let visits: u64 = session.get("visits")?.unwrap_or(0);
//!     Ok(format!("visit number {visits}"))
//! }
//!
//! async fn login(State(sessions): State<Sessions>, session: Session) -> Result<(), Error> {
//!     let login = sessions.login("ada").await?; // before the password is checked
//!     // Check the password.
//!     session.bind(login); // gives the session a user and a new ID, and keeps its data
//!     Ok(())
//! }
//!
//! async fn private(SessionKey(user): SessionKey) -> String {
//!     format!("hello {user}") // a request that is not signed in gets a 401 instead
//! }
//!
//! async fn logout(session: Session) {
//!     session.delete();
//! }
//!
//! let sessions = MemorySessions::new().erase();
//! let app: Router = Router::new()
//!     .route("/", get(home))
//!     .route("/login", post(login))
//!     .route("/private", get(private))
//!     .route("/logout", post(logout))
//!     .layer(SessionLayer::new(sessions.clone()))
//!     .with_state(sessions);
//! ```
//!
//! # Where to look
//!
//! | you want to | look at |
//! |---|---|
//! | read and write a session, sign in and out | [`Session`], and [`session`] for what happens when requests overlap |
//! | require a signed-in user | [`SessionKey`], the extractor |
//! | set the cookie's name, path, `SameSite` and so on | [`SessionLayer`] |
//! | set timeouts, sizes, the key prefix, encryption | [`Builder`] |
//! | list and end a user's sessions, or use sessions outside HTTP | [`Sessions`], [`SessionInfo`] |
//! | limit how many sessions a user may have | [`Builder::sessions_per_key`], [`Limit`] |
//! | end a stream or a socket together with its session | [`Session::ended`], [`Ending`], [`Session::touch`] |
//! | read all sessions, or count them | [`Sessions::all`], [`Sessions::count`] |
//! | count logins, keep an audit trail, read the log | [`events`] |
//! | choose a store | [`MemorySessions`], [`JsonSessions`], `RedisSessions`; all are in [`stores`] |
//! | encrypt IDs and data | [`Keyring`], and [`keyring`] for how to turn it on and change keys |
//! | handle errors | [`Error`], [`ErrorKind`] |
//! | keep sessions in your own store | [`Backend`], and [`backend`] for its contract |
//! | test expiry without waiting, or failures of the store | [`Clock::manual`], `conformance::Faulty` |
//! | know the guarantees, and the cost of a request | [`guide::promises`], [`guide::requests`] |
//!
//! # Words
//!
//! | word | meaning | also called |
//! |---|---|---|
//! | session key | who the session belongs to, usually the user's ID; one session key has many sessions | principal, user ID |
//! | session ID | the secret in the cookie | token, sid |
//! | handle | the public identifier of a session, for lists and logs; it cannot be used to sign in | |
//! | visitor | a client whose session has no session key yet | anonymous session, guest |
//! | newest ID | the ID in the session's latest cookie, which may do everything | |
//! | previous ID | the ID before a rotation, which stays valid for `rework_grace` | |
//! | commit | storing all changes of a request in one atomic call, when its response is ready or in `save` | save |
//! | [`Login`] | a pending login: taken before the password is checked, and refused after a "sign out everywhere" | |
//! | `bind` | signs in and keeps the data: gives the session a session key and a new ID | login |
//! | `create` | signs in with new data | login |
//! | `rework` | gives the same session a new ID | regenerate, cycle, rotate |
//! | `delete` | signs out: ends this session | logout, destroy, flush |
//! | `clear` | signs out everywhere: ends all sessions of a user | logout everywhere |
//! | `clear_others` | signs out everywhere else: ends all other sessions of a user | logout everywhere else |
//! | refuse | to answer a login or a sign-out with an error, and drop it | reject, cancel |
//! | evict | to remove a session from a full store, visitors' sessions first | |
//! | `default_ttl` | how long a session can stay unused before it ends | idle timeout |
//! | `max_lifetime` | how long a session lives at most, even if it is used | absolute timeout |
//! | namespace | keeps the sessions of applications apart; on Redis, the prefix of all keys | key prefix |
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `axum` | yes | [`Session`], `Option<Session>` and [`SessionKey`] as extractors, [`Error`] as a response |
//! | `redis` | no | `RedisSessions`: one server, Sentinel or Cluster, with TLS |
//! | `conformance` | no | `conformance`: tests for your own [`Backend`], and a backend that fails on demand |
//!
//! Without `axum` this crate is a plain tower layer over [`http`](::http) types: take the [`Session`] from the request's
//! extensions, and call [`load`](Session::load) before you read it.
//!
//! [tower]: https://docs.rs/tower
//! [axum]: https://docs.rs/axum

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod guide;
mod http;
pub mod session;
mod sessions;

pub mod stores;

pub mod backend;
#[cfg(feature = "conformance")]
pub mod conformance;
mod record;

mod clock;
mod detached;
mod error;
pub mod events;
mod log;
mod random;
mod timeout;

pub use ::cookie::SameSite;
#[cfg(feature = "redis")]
pub use ::redis;

#[cfg(feature = "axum")]
pub use self::http::extract::SessionKey;
#[cfg(feature = "redis")]
#[doc(inline)]
pub use self::stores::redis::{RedisBackend, RedisServer, RedisSessions};
// Inlined, so that the front page also lists the items of public modules.
#[doc(inline)]
pub use self::{
    backend::{
        Backend, By, Clear, Cleared, Count, Created, Cursor, Left, Limit, Mark, Outcome, Page, Since, Terms,
        any::AnyBackend,
    },
    clock::Clock,
    error::{BoxError, Error, ErrorKind},
    events::{Event, EventKind, Refusal},
    http::{future::ResponseFuture, layer::SessionLayer, service::SessionService},
    record::{
        Hint, Record, Serializer,
        data::Data,
        id::{Owner, RecordId},
        keyring,
        keyring::Keyring,
        token::SessionId,
    },
    session::{Session, ended::Ended, sign_in::SignIn},
    sessions::{AllSessions, SessionInfo, Sessions, builder::Builder, login::Login, watch::Ending},
    stores::{
        json::{Durability, JsonBackend, JsonSessions},
        memory::{MemoryBackend, MemorySessions},
    },
};

/// The examples in the README, as doctests.
#[cfg(all(doctest, feature = "axum", feature = "conformance"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// The examples in the examples' README, as doctests.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../examples/README.md")]
struct ExamplesReadme;
