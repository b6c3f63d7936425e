//! x
#![allow(missing_docs)]
pub mod backend;
mod builder;
mod change;
mod clock;
mod commit;
mod cookie;
mod data;
mod error;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod id;
mod layer;
mod record;
mod service;
pub mod session;
mod sessions;
mod turns;

pub use ::cookie::SameSite;

#[cfg(feature = "axum")]
pub use self::extract::SessionKey;
pub use self::{
    backend::{
        AnyBackend, Backend, Outcome,
        memory::{MemoryBackend, MemorySessions},
    },
    builder::Builder,
    clock::Clock,
    data::Data,
    error::{BoxError, Error, ErrorKind},
    future::ResponseFuture,
    id::{Owner, RecordId, SessionId},
    layer::SessionLayer,
    record::{Record, Serializer},
    service::SessionService,
    session::Session,
    sessions::{SessionInfo, Sessions},
};

/// The examples in the README, for the tests.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../README.md")]
struct Readme;
