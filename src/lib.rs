//! Sessions for [tower] and [axum]: the ID is in a cookie, the data on the server.
//!
//! A [`SessionLayer`] gives each request a [`Session`]. Handlers take it as an argument, read and write without `.await`, and
//! what they recorded is written back in one atomic call when the response is ready.
//!
//! ```
//! use axum::{Router, extract::State, routing::{get, post}};
//! use jam_session::{Error, MemorySessions, Session, SessionKey, SessionLayer, Sessions};
//!
//! async fn visits(session: Session) -> Result<String, Error> {
//!     session.modify("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
//!     Ok(format!("visit number {:?}", session.get::<u64>("visits")?))
//! }
//!
//! async fn login(State(sessions): State<Sessions>, session: Session) -> Result<(), Error> {
//!     let login = sessions.login("ada").await?; // before the password is checked
//!     // Check the password.
//!     session.bind(login);
//!     Ok(())
//! }
//!
//! async fn private(SessionKey(user): SessionKey) -> String {
//!     format!("hello {user}")
//! }
//!
//! let sessions = MemorySessions::new().erase();
//! let app: Router = Router::new()
//!     .route("/", get(visits))
//!     .route("/login", post(login))
//!     .route("/private", get(private))
//!     .layer(SessionLayer::new(sessions.clone()))
//!     .with_state(sessions);
//! ```
//!
//! # Words
//!
//! | word | meaning | elsewhere |
//! |---|---|---|
//! | session key | who owns the session, usually the user; one key has many sessions | principal, user id |
//! | session ID | the secret in the cookie | token, sid |
//! | handle | the public name of a session, for lists and logs | |
//! | create | a new session for a session key | login |
//! | bind | the same, keeping the data of the session before | login |
//! | rework | the same session, a new ID | regenerate, cycle, rotate, renew |
//! | delete | ends this session | destroy, flush, logout |
//! | clear | ends all sessions of a session key | logout everywhere |
//! | `default_ttl` | how long a session may be unused | idle timeout |
//! | `max_lifetime` | how long it may be used | absolute timeout |
//!
//! # The life of a request
//!
//! 1. The [layer](SessionLayer) finds the cookie and puts a [`Session`] into the request's extensions. Nothing is parsed,
//!    and the backend is not asked: a handler without use for the session costs no trip.
//! 2. The extractor awaits [`Session::load`]: one trip, and none without a cookie.
//! 3. The handler reads, and records what is to change.
//! 4. When its response is ready the layer writes that: one conditional update. If another request has written meanwhile,
//!    the same changes are made to what is there now; if the session has ended meanwhile, nothing is revived.
//! 5. A cookie is set if there is a new ID, and only once its record is stored.
//!
//! If the response status is 408 or 5xx, or the response is a failed gRPC call, the handler's changes are discarded, except
//! sign-outs. [`failed_if`](SessionLayer::failed_if) decides otherwise. See [`session`] for more, and [`Sessions`] for the module
//! without HTTP: for jobs, command lines, and pages that list a user's sessions.
//!
//! # What a request costs
//!
//! Calls of the backend, and allocations beside a layer that only inserts an `Arc` into the extensions (on memory, with 500
//! bytes of data in twelve fields; a Redis connection makes more of its own):
//!
//! | the request | calls | allocations | in Redis |
//! |---|---|---|---|
//! | has no cookie, and the handler has no use for the session | none | 0 | nothing |
//! | has a cookie, likewise | none | 1: a copy of the cookie's value | nothing |
//! | reads | `load` | 5 | one pipeline: `ZSCORE`, `GET`, `PTTL` |
//! | reads and writes | `load`, `update` | 17 | that, and one script |
//! | writes what was there already | `load` | | one pipeline |
//! | has no session yet, and writes | `create` | 20 | one script |
//! | signs in ([`bind`](Session::bind)) with an anonymous session | `load`, `create`, `update` | 29 | one pipeline, two scripts |
//! | signs in without one | `create` | | one script |
//! | signs in again, as the same user | `load`, `update` | | one pipeline, one script |
//! | [rotates](Session::rework) | `load`, `update` | | one pipeline, one script |
//! | [signs out](Session::delete) | `load`, `update` | | one pipeline, one script |
//! | [signs out everywhere](Session::clear) | `load`, `clear` | | one pipeline, one script |
//! | [signs out everywhere else](Session::clear_others) | `load`, `update`, `clear` | | one pipeline, two scripts |
//! | reads, with the cookie of a user's session that has ended, and a visitor's | `load` twice | | two pipelines |
//!
//! Each call is one trip, and a conflict with another process one more. A read tells the backend now and then that the
//! session is in use, one [`touch`](Backend::touch) per [`touch_interval`](Builder::touch_interval), which no request waits
//! for.
//!
//! To Redis a read sends some 240 bytes and gets the data and some 150 bytes; a write sends the data once more
//! and 400 bytes.
//!
//! A response that stays open, such as a stream of server-sent events, holds a [`Session`] if its handler keeps one: a pointer
//! to about 180 bytes, the cookie's value included, and once loaded some 350 bytes more and the data. Ten thousand idle
//! streams hold 2 MB, or 9 MB with 500 bytes of data each; nothing polls, and no timer runs. Applying the layer, which axum
//! does for each connection or request, clones an `Arc`.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `axum` | yes | [`Session`], `Option<Session>` and [`SessionKey`] as extractors, [`Error`] as a response |
//! | `redis` | no | `RedisSessions`: one server, Sentinel or Cluster, TLS included |
//! | `conformance` | no | `conformance`: the contract of [`Backend`] as tests for one of your own, and a backend that fails when told to |
//!
//! Without `axum` this is a plain tower layer over the types of [`http`](::http).
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
// Inline: the list of items on the front page has those of the public modules too.
#[doc(inline)]
pub use self::{
    backend::{Backend, By, Clear, Cleared, Created, Outcome, Since, Terms, any::AnyBackend},
    clock::Clock,
    error::{BoxError, Error, ErrorKind},
    http::{future::ResponseFuture, layer::SessionLayer, service::SessionService},
    record::{
        Hint, Record, Serializer,
        data::Data,
        id::{Owner, RecordId},
        keyring,
        keyring::Keyring,
        token::SessionId,
    },
    session::{Session, sign_in::SignIn},
    sessions::{SessionInfo, Sessions, builder::Builder, login::Login},
    stores::{
        json::{Durability, JsonBackend, JsonSessions},
        memory::{MemoryBackend, MemorySessions},
    },
};

/// The examples in the README, for the tests.
#[cfg(all(doctest, feature = "axum", feature = "conformance"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// Those in the examples' README.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../examples/README.md")]
struct ExamplesReadme;
