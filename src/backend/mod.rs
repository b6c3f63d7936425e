//! Where sessions are kept: the trait that every store implements, and its contract.
//!
//! A [`Backend`] is a map from [`RecordId`] to [`Record`] with conditional writes. It knows nothing of cookies, secrets or
//! deadlines; all of that is inside the payload, which it keeps as it is. What it promises:
//!
//! | verb | does | nothing live there | live, but another version |
//! |---|---|---|---|
//! | [`load`](Backend::load) | reads; `ttl` is what is left | `None` | |
//! | [`create`](Backend::create) | adds, on [`Terms`] | [`Done`](Created::Done), or [`Late`](Created::Late) | [`Taken`](Created::Taken), or [`Late`](Created::Late) |
//! | [`update`](Backend::update) | replaces, if its version is `expected`; `ttl` starts again | [`Gone`](Outcome::Gone) | [`Conflict`](Outcome::Conflict) with what is there |
//! | [`touch`](Backend::touch) | if its version is `version`: `ttl` starts again | nothing | nothing |
//! | [`delete`](Backend::delete) | ends it, `true` | `false` | |
//! | [`list`](Backend::list) | all live ones of an owner | empty | |
//! | [`clear`](Backend::clear) | ends all of an owner, and says how many | `0` | |
//! | `clear` [by](By) a record | the same, if the record's version is the one given | [`Gone`](Cleared::Gone) | [`Conflict`](Cleared::Conflict) with what is there |
//!
//! * Each verb is atomic: others see all of it or nothing, and once it has answered, everyone sees it. Only `list` may take
//!   more than a moment: what was live all the time is in it, and nothing that had ended before.
//! * A record past its `ttl` does not exist, in any verb. The `ttl` is counted by the backend's own clock, and never
//!   lengthened. An `update` with a `ttl` of zero thus ends the record, if its version is `expected`: that is a logout.
//! * Nothing is written that was not there, except by `create`: there is no upsert. What was ended stays ended.
//! * [`RecordId::owner`] is part of the name: the same `sid` under two owners is two records.
//! * With any answer other than `Done`, nothing has changed.
//! * An error means that the verb may or may not have happened. Any error will do; `?` works.
//! * A future that is dropped has happened or has not, as with an error.
//! * A backend may put a [`Hint`](crate::Hint) into a record that it returns. It comes back with the `update` of that record, and
//!   may be missing.
//!
//! # Logins and sign-outs that cross
//!
//! A user who signs out everywhere, or sets a new password, must not be signed in by a login that was under way. So a backend
//! remembers each owner's last clear: its [name](Clear::name), how many records it ended, and when it happened, by the
//! backend's clock. It remembers it for at least fifteen minutes, also where the clear ended nothing and the owner has no
//! record left. A clear that was answered with `Gone` or `Conflict` did not happen and is not remembered.
//!
//! * A `create` with [`Since::Age`] is [`Late`](Created::Late) if the owner's last clear is younger than that age, or if the
//!   age is above fifteen minutes. Without `since`, it is never late.
//! * Every `create` of an owner is ordered with `clear`: it is ended by the clear, or it comes after it.
//! * A `clear` with the name of the owner's last clear is a repeat. It ends nothing, and answers `Done` with the same number.
//!
//! # Calls that are repeated
//!
//! A caller whose call has failed may make it again, with the same version and `retry`. **A backend never applies a change a
//! second time.** Where it can no longer tell whether the first try was applied, it answers with an error.
//!
//! | with `retry` | what is there | answer |
//! |---|---|---|
//! | `create` | this very record | `Done` |
//! | | nothing, but the record was there and has ended | an error; `Late`, if that applies |
//! | | otherwise | as for a first try |
//! | `update` | the version that is to be written | `Done` |
//! | | `expected` | it is written |
//! | | another version, and this one was there before it | `Done`, or an error |
//! | | another version, and this one never was there | `Conflict`, or an error |
//! | | nothing | `Gone` |
//!
//! For `create`, a store remembers for ten seconds that a user's record has ended. It need not remember a visitor's record: that
//! one may be created again. One that does not remember endings
//! answers every retry with an error whose record is not there. For `update`, a store whose answers can be lost should remember a
//! record's last versions, so that a lost answer costs no request; one that does not answers with an error.
//!
//! With the feature `conformance` the macro `conformance_tests!` makes a test of each of these promises, for any backend; the
//! docs of that module go through writing one for a database, and `examples/sqlite_backend.rs` is one.
//!
//! # A complete backend
//!
//! ```
//! use std::{collections::BTreeMap, sync::Mutex, time::{Duration, Instant}};
//! use jam_session::{
//!     Backend, By, Clear, Cleared, Created, Outcome, Owner, Record, RecordId, Sessions, Since, Terms, backend::Result,
//! };
//!
//! #[derive(Default)]
//! struct Small(Mutex<Store>);
//!
//! #[derive(Default)]
//! struct Store {
//!     /// Each record, and when it expires.
//!     records: BTreeMap<RecordId, (Record, Instant)>,
//!     /// Each owner's last clear: its name, how many it ended, and when.
//!     clears: BTreeMap<Owner, (i64, u64, Instant)>,
//! }
//!
//! const REMEMBERED: Duration = Duration::from_secs(15 * 60);
//!
//! impl Small {
//!     /// Runs a verb on what is live.
//!     fn with<T>(&self, verb: impl FnOnce(&mut Store, Instant) -> Result<T>) -> Result<T> {
//!         let mut store = self.0.lock().map_err(|_| "a thread panicked")?;
//!         let now = Instant::now();
//!         store.records.retain(|_, (_, ends)| *ends > now);
//!         store.clears.retain(|_, (.., at)| now - *at <= REMEMBERED);
//!         verb(&mut store, now)
//!     }
//! }
//!
//! impl Store {
//!     fn find(&self, id: RecordId, now: Instant) -> Option<Record> {
//!         let (record, ends) = self.records.get(&id)?;
//!         let mut record = record.clone();
//!         record.ttl = *ends - now;
//!         Some(record)
//!     }
//! }
//!
//! impl Backend for Small {
//!     async fn load(&self, id: RecordId) -> Result<Option<Record>> {
//!         self.with(|store, now| Ok(store.find(id, now)))
//!     }
//!     async fn create(&self, record: Record, terms: Terms) -> Result<Created> {
//!         // To the last field: when another one is added, this does not compile until it is kept to.
//!         let Terms { since, retry } = terms;
//!         self.with(|store, now| {
//!             let there = store.find(record.id, now);
//!             if there.as_ref().is_some_and(|there| there.version == record.version) {
//!                 return Ok(Created::Done);
//!             }
//!             let last = record.id.owner().and_then(|owner| store.clears.get(&owner));
//!             let is_late = match since {
//!                 None => false,
//!                 Some(Since::Age(age)) => age > REMEMBERED || last.is_some_and(|(.., at)| now - *at < age),
//!                 Some(_) => return Err("these terms are unknown here".into()),
//!             };
//!             match there {
//!                 _ if is_late => Ok(Created::Late),
//!                 Some(_) => Ok(Created::Taken),
//!                 // It may have been made and ended: this store does not remember endings.
//!                 None if retry => Err("the first try may have been made".into()),
//!                 None => {
//!                     store.records.insert(record.id, (record.clone(), now + record.ttl));
//!                     Ok(Created::Done)
//!                 }
//!             }
//!         })
//!     }
//!     async fn update(&self, expected: i64, record: Record, retry: bool) -> Result<Outcome> {
//!         self.with(|store, now| match store.find(record.id, now) {
//!             None => Ok(Outcome::Gone),
//!             Some(there) if there.version == expected => {
//!                 store.records.insert(record.id, (record.clone(), now + record.ttl));
//!                 Ok(Outcome::Done)
//!             }
//!             Some(there) if there.version == record.version => Ok(Outcome::Done),
//!             // It may have been written and then replaced: this store does not remember versions.
//!             Some(_) if retry => Err("the first try may have been written".into()),
//!             Some(there) => Ok(Outcome::Conflict(there)),
//!         })
//!     }
//!     async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
//!         self.with(|store, now| {
//!             if let Some((_, ends)) = store.records.get_mut(&id).filter(|(record, _)| record.version == version) {
//!                 *ends = now + ttl;
//!             }
//!             Ok(())
//!         })
//!     }
//!     async fn delete(&self, id: RecordId) -> Result<bool> {
//!         self.with(|store, _| Ok(store.records.remove(&id).is_some()))
//!     }
//!     async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
//!         self.with(|store, now| {
//!             let all = store.records.keys().filter(|id| id.owner() == Some(owner));
//!             Ok(all.filter_map(|id| store.find(*id, now)).collect())
//!         })
//!     }
//!     async fn clear(&self, owner: Owner, clear: Clear) -> Result<Cleared> {
//!         let Clear { name, by } = clear;
//!         self.with(|store, now| {
//!             if let Some((_, ended, _)) = store.clears.get(&owner).filter(|(last, ..)| *last == name) {
//!                 return Ok(Cleared::Done(*ended));
//!             }
//!             if let Some(By { id, version, .. }) = by {
//!                 match store.find(id, now).filter(|_| id.owner() == Some(owner)) {
//!                     None => return Ok(Cleared::Gone),
//!                     Some(there) if there.version != version => return Ok(Cleared::Conflict(there)),
//!                     Some(_) => {}
//!                 }
//!             }
//!             let kept = by.filter(|by| by.keep).map(|by| by.id);
//!             let before = store.records.len();
//!             store.records.retain(|id, _| id.owner() != Some(owner) || kept == Some(*id));
//!             let ended = (before - store.records.len()) as u64;
//!             store.clears.insert(owner, (name, ended, now));
//!             Ok(Cleared::Done(ended))
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

/// On what terms a [`create`](Backend::create) is made. The default is none.
///
/// A backend destructures it to the last field, so that it does not compile when a field is added until it keeps to that too.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// The record is refused if its owner was cleared since then.
    pub since: Option<Since>,
    /// The answer to the first try was lost.
    pub retry: bool,
}

/// Since when a clear of the owner refuses a new record.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Since {
    /// Since the request arrived, this long ago. Above fifteen minutes, every record is refused.
    Age(Duration),
}

/// What became of a [`create`](Backend::create).
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub enum Created {
    /// The record is stored, or this very one was already there: the same name and the same version.
    Done,
    /// The owner was cleared [since then](Terms::since), or that is too long ago to know. Nothing is stored.
    Late,
    /// A live record has that name, and was left alone.
    Taken,
}

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

/// What a [`clear`](Backend::clear) is to do.
#[derive(Clone, Copy, Debug)]
pub struct Clear {
    /// The name of this clear, random and never negative. A clear that has the name of the owner's last one is a repeat.
    pub name: i64,
    /// The record that asks for it. Without one, all records end in any case.
    pub by: Option<By>,
}

/// The record that a [`clear`](Backend::clear) is made by: all of its owner's records end only if it is live and has this
/// version.
#[derive(Clone, Copy, Debug)]
pub struct By {
    /// The name of the record. If it belongs to another owner, or to none, the answer is [`Gone`](Cleared::Gone).
    pub id: RecordId,
    /// The version that it must have.
    pub version: i64,
    /// Whether this record lives on when all others of its owner end.
    pub keep: bool,
}

/// What became of a [`clear`](Backend::clear).
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub enum Cleared {
    /// The records have ended, this many. A repeat answers the same number again.
    Done(u64),
    /// The record that it was made [by](Clear::by) is not live. Nothing has ended.
    Gone,
    /// The record that it was made [by](Clear::by) has another version: this one. Nothing has ended.
    Conflict(Record),
}

/// A store of records. The [module docs](self) are its contract, with a complete one as an example.
///
/// Implementers write plain `async fn`s.
pub trait Backend: Send + Sync + 'static {
    /// Loads the record of that name, if it is live.
    fn load(&self, id: RecordId) -> impl Future<Output = Result<Option<Record>>> + Send;

    /// Adds a record, unless its name is taken by a live one or it is too late.
    ///
    /// The first of these that applies is the answer: [`Done`](Created::Done), if this very record is there;
    /// [`Late`](Created::Late); an error, if it is a [retry](Terms::retry) of a record that has ended;
    /// [`Taken`](Created::Taken); otherwise the record is stored.
    fn create(&self, record: Record, terms: Terms) -> impl Future<Output = Result<Created>> + Send;

    /// Replaces a live record whose version is still `expected`.
    ///
    /// `retry` says that the answer to the first try was lost: see [the module](self#calls-that-are-repeated).
    fn update(&self, expected: i64, record: Record, retry: bool) -> impl Future<Output = Result<Outcome>> + Send;

    /// Starts the time to live again, if the record is live and its version is still `version`. The version stays.
    fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> impl Future<Output = Result<()>> + Send;

    /// Ends a record, and says whether it was live.
    fn delete(&self, id: RecordId) -> impl Future<Output = Result<bool>> + Send;

    /// Lists all live records of an owner, in any order.
    fn list(&self, owner: Owner) -> impl Future<Output = Result<Vec<Record>>> + Send;

    /// Ends all records of an owner, or all but the one that it is made [by](Clear::by), and remembers that.
    ///
    /// The first of these that applies is the answer: [`Done`](Cleared::Done) with the same number again, if the owner's last
    /// clear has the same name; [`Gone`](Cleared::Gone) or [`Conflict`](Cleared::Conflict), if there is a [`By`] and its record
    /// is not live or has another version; otherwise the records end.
    fn clear(&self, owner: Owner, clear: Clear) -> impl Future<Output = Result<Cleared>> + Send;

    /// Gives the backend the clock that the sessions were built with, before any other call.
    ///
    /// A backend that counts time within the process keeps it, for example in a [`OnceLock`](std::sync::OnceLock). A server
    /// has a clock of its own and ignores it, which is the default. A backend that several [`Sessions`](crate::Sessions) share
    /// in an [`Arc`] is called once for each of them and keeps the first clock.
    fn set_clock(&self, clock: Clock) {
        let _ = clock;
    }

    /// Releases what it holds: files, locks, connections. Nothing else is called afterwards.
    fn close(&self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}

/// A backend that is shared: each clone of the [`Arc`] is another handle to it.
impl<B: Backend> Backend for Arc<B> {
    fn load(&self, id: RecordId) -> impl Future<Output = Result<Option<Record>>> + Send {
        B::load(self, id)
    }

    fn create(&self, record: Record, terms: Terms) -> impl Future<Output = Result<Created>> + Send {
        B::create(self, record, terms)
    }

    fn update(&self, expected: i64, record: Record, retry: bool) -> impl Future<Output = Result<Outcome>> + Send {
        B::update(self, expected, record, retry)
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

    fn clear(&self, owner: Owner, clear: Clear) -> impl Future<Output = Result<Cleared>> + Send {
        B::clear(self, owner, clear)
    }

    fn set_clock(&self, clock: Clock) {
        B::set_clock(self, clock);
    }

    fn close(&self) -> impl Future<Output = Result<()>> + Send {
        B::close(self)
    }
}
