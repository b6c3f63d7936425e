//! x
#![allow(missing_docs, dead_code)]
pub mod backend;
mod builder;
mod clock;
mod data;
mod error;
mod id;
mod record;
mod sessions;
mod turns;

#[cfg(feature = "redis")]
pub use self::backend::redis::{RedisBackend, RedisServer, RedisSessions};
#[cfg(feature = "redis")]
pub use ::redis;

pub use self::{
    backend::{
        AnyBackend, Backend, Outcome,
        memory::{MemoryBackend, MemorySessions},
    },
    builder::Builder,
    clock::Clock,
    data::Data,
    error::{BoxError, Error, ErrorKind},
    id::{Owner, RecordId, SessionId},
    record::{Record, Serializer},
    sessions::{SessionInfo, Sessions},
};
