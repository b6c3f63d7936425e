//! Where sessions are kept: the trait that every store implements, and its contract.
//!
//! A [`Backend`] is a map from [`RecordId`] to [`Record`] with conditional writes. It knows nothing of cookies, secrets or
//! deadlines; all of that is inside the payload, which it keeps as it is. What it promises:
//!
//! | verb | does | nothing live there | live, but another version |
//! |---|---|---|---|
//! | [`load`](Backend::load) | reads; `ttl` is what is left | `None` | |
//! | [`create`](Backend::create) | adds | `true` | `false`, and leaves it alone |
//! | [`update`](Backend::update) | replaces, if its version is `expected`; `ttl` starts anew | [`Gone`](Outcome::Gone) | [`Conflict`](Outcome::Conflict) with what is there |
//! | [`touch`](Backend::touch) | if its version is `version`: `ttl` starts anew | nothing | nothing |
//! | [`delete`](Backend::delete) | ends it, `true` | `false` | |
//! | [`list`](Backend::list) | all live ones of an owner | empty | |
//! | [`clear`](Backend::clear) | ends all of an owner but `keep`, says how many | `0` | |
//!
//! * Each verb is atomic: others see all of it or nothing, and once it has answered, everyone sees it. Only `list` may take
//!   more than a moment: what was live all the time is in it, and nothing that had ended before.
//! * A record past its `ttl` does not exist, in any verb. The `ttl` is counted by the backend's own clock, and never
//!   lengthened. An `update` with a `ttl` of zero thus ends the record, if its version is `expected`: that is a logout.
//! * Nothing is written that was not there, except by `create`: there is no upsert. What was ended stays ended.
//! * [`RecordId::owner`] is part of the name: the same `sid` under two owners is two records.
//! * An error means that the verb may or may not have happened. Any error will do; `?` works. A verb may be repeated by
//!   its caller: a `Conflict` that shows the version that was to be written is taken as "done". A store whose answers can be
//!   lost should know an `update` again by that version even after others have written, and answer `Done`: a change that is
//!   repeated would else be made twice.
//! * A future that is dropped has happened or has not, as with an error.
//!
//! With the feature `conformance` the macro `conformance_tests!` makes a test of each of these promises, for any backend; the
//! docs of that module go through writing one for a database, and `examples/sqlite_backend.rs` is one.
//!
//! # A complete backend
//!
//! ```
//! use std::{collections::BTreeMap, sync::Mutex, time::{Duration, Instant}};
//! use jam_session::{Backend, Outcome, Owner, Record, RecordId, Sessions, backend::Result};
//!
//! #[derive(Default)]
//! struct Small(Mutex<BTreeMap<RecordId, (Record, Instant)>>);
//!
//! impl Small {
//!     /// Runs `verb` on the live records.
//!     fn with<T>(&self, verb: impl FnOnce(&mut BTreeMap<RecordId, (Record, Instant)>, Instant) -> T) -> Result<T> {
//!         let mut records = self.0.lock().map_err(|_| "a thread panicked")?;
//!         let now = Instant::now();
//!         records.retain(|_, (_, ends)| *ends > now);
//!         Ok(verb(&mut records, now))
//!     }
//! }
//!
//! impl Backend for Small {
//!     async fn load(&self, id: RecordId) -> Result<Option<Record>> {
//!         self.with(|records, now| {
//!             records.get(&id).map(|(record, ends)| Record { ttl: *ends - now, ..record.clone() })
//!         })
//!     }
//!     async fn create(&self, record: Record) -> Result<bool> {
//!         self.with(|records, now| {
//!             let free = !records.contains_key(&record.id);
//!             if free {
//!                 records.insert(record.id, (record.clone(), now + record.ttl));
//!             }
//!             free
//!         })
//!     }
//!     async fn update(&self, expected: i64, record: Record) -> Result<Outcome> {
//!         self.with(|records, now| match records.get_mut(&record.id) {
//!             None => Outcome::Gone,
//!             Some((there, ends)) if there.version != expected => {
//!                 Outcome::Conflict(Record { ttl: *ends - now, ..there.clone() })
//!             }
//!             Some(there) => {
//!                 *there = (record.clone(), now + record.ttl);
//!                 Outcome::Done
//!             }
//!         })
//!     }
//!     async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
//!         self.with(|records, now| {
//!             if let Some((_, ends)) = records.get_mut(&id).filter(|(record, _)| record.version == version) {
//!                 *ends = now + ttl;
//!             }
//!         })
//!     }
//!     async fn delete(&self, id: RecordId) -> Result<bool> {
//!         self.with(|records, _| records.remove(&id).is_some())
//!     }
//!     async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
//!         self.with(|records, now| {
//!             let live = records.values().filter(|(record, _)| record.id.owner() == Some(owner));
//!             live.map(|(record, ends)| Record { ttl: *ends - now, ..record.clone() }).collect()
//!         })
//!     }
//!     async fn clear(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64> {
//!         self.with(|records, _| {
//!             let before = records.len();
//!             records.retain(|id, _| id.owner() != Some(owner) || keep == Some(*id));
//!             (before - records.len()) as u64
//!         })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::result::Result<(), jam_session::Error> {
//! let sessions = Sessions::over(Small::default()).build()?;
//! let id = sessions.create("ada", serde_json::json!({"role": "admin"})).await?;
//! assert!(sessions.get(&id).await?.is_some());
//! assert_eq!(sessions.clear("ada").await?, 1);
//! # Ok(())
//! # }
//! ```

pub(crate) mod any;

use std::{sync::Arc, time::Duration};

pub use self::any::AnyBackend;
use crate::{
    clock::Clock,
    error::BoxError,
    record::{
        Record,
        id::{Owner, RecordId},
    },
};

/// What a verb of a [`Backend`] answers. Any error will do: it means unavailable, unless it is an
/// [`Error`](crate::Error) of this crate, which is passed on as it is.
pub type Result<T> = std::result::Result<T, BoxError>;

/// What became of an [`update`](Backend::update).
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub enum Outcome {
    /// It is written.
    Done,
    /// There is no such record, and there still is none.
    Gone,
    /// The record has another version: this one. It was left alone.
    Conflict(Record),
}

/// A store of records. The [module docs](self) are its contract, with a complete one as an example.
///
/// Implementers write plain `async fn`s.
pub trait Backend: Send + Sync + 'static {
    /// The record of that name, if it is live.
    fn load(&self, id: RecordId) -> impl Future<Output = Result<Option<Record>>> + Send;

    /// Adds a record, unless its name is taken by a live one.
    fn create(&self, record: Record) -> impl Future<Output = Result<bool>> + Send;

    /// Replaces a live record whose version is still `expected`.
    fn update(&self, expected: i64, record: Record) -> impl Future<Output = Result<Outcome>> + Send;

    /// Starts the time to live anew, if the record is live and its version is still `version`. The version stays.
    fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> impl Future<Output = Result<()>> + Send;

    /// Ends a record, and says whether it was live.
    fn delete(&self, id: RecordId) -> impl Future<Output = Result<bool>> + Send;

    /// All live records of an owner, in any order.
    fn list(&self, owner: Owner) -> impl Future<Output = Result<Vec<Record>>> + Send;

    /// Ends all records of an owner but `keep`, and says how many were live.
    fn clear(&self, owner: Owner, keep: Option<RecordId>) -> impl Future<Output = Result<u64>> + Send;

    /// Gives the backend the clock that the sessions were built with, before any other call.
    ///
    /// A backend that counts time within the process keeps it, for example in a [`OnceLock`](std::sync::OnceLock). A server
    /// has a clock of its own and ignores it, which is the default. A backend that several [`Sessions`](crate::Sessions) share
    /// in an [`Arc`] is called once for each of them and keeps the first clock.
    fn set_clock(&self, clock: Clock) {
        let _ = clock;
    }

    /// Lets go of what it holds: files, locks, connections. Nothing else is called afterwards.
    fn close(&self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}

/// A backend that is shared: each clone of the [`Arc`] is another handle to it.
impl<B: Backend> Backend for Arc<B> {
    fn load(&self, id: RecordId) -> impl Future<Output = Result<Option<Record>>> + Send {
        B::load(self, id)
    }

    fn create(&self, record: Record) -> impl Future<Output = Result<bool>> + Send {
        B::create(self, record)
    }

    fn update(&self, expected: i64, record: Record) -> impl Future<Output = Result<Outcome>> + Send {
        B::update(self, expected, record)
    }

    fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> impl Future<Output = Result<()>> + Send {
        B::touch(self, id, version, ttl)
    }

    fn delete(&self, id: RecordId) -> impl Future<Output = Result<bool>> + Send {
        B::delete(self, id)
    }

    fn list(&self, owner: Owner) -> impl Future<Output = Result<Vec<Record>>> + Send {
        B::list(self, owner)
    }

    fn clear(&self, owner: Owner, keep: Option<RecordId>) -> impl Future<Output = Result<u64>> + Send {
        B::clear(self, owner, keep)
    }

    fn set_clock(&self, clock: Clock) {
        B::set_clock(self, clock);
    }

    fn close(&self) -> impl Future<Output = Result<()>> + Send {
        B::close(self)
    }
}
