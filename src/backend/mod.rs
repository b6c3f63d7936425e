//! Where sessions are kept: the trait that every store implements, and its contract.
//!
//! A [`Backend`] is a map from [`RecordId`] to [`Record`] with conditional writes. It knows nothing of cookies, secrets or
//! deadlines; all of that is inside the payload, which it keeps as it is. What it promises:
//!
//! | verb | does | nothing live there | live, but another version |
//! |---|---|---|---|
//! | [`load`](Backend::load) | reads; `ttl` is what is left | `None` | |
//! | [`create`](Backend::create) | adds, on [`Terms`] | [`Done`](Created::Done), [`Late`](Created::Late) or [`Full`](Created::Full) | [`Taken`](Created::Taken), or [`Late`](Created::Late) |
//! | [`update`](Backend::update) | replaces, if its version is `expected`; `ttl` starts again | [`Gone`](Outcome::Gone) | [`Conflict`](Outcome::Conflict) with what is there |
//! | [`touch`](Backend::touch) | if its version is `version`: `ttl` starts again | nothing | nothing |
//! | [`delete`](Backend::delete) | ends it, `true` | `false` | |
//! | [`list`](Backend::list) | all live ones of an owner | empty | |
//! | [`clear`](Backend::clear) | ends all of an owner, and says how many | `0` | |
//! | [`mark`](Backend::mark) | names the last clear of an owner | | |
//! | [`scan`](Backend::scan), [`count`](Backend::count) | all live ones, of all owners and of none | empty | |
//! | `clear` [by](By) a record | the same, if the record's version is the one given | [`Gone`](Cleared::Gone) | [`Conflict`](Cleared::Conflict) with what is there |
//!
//! * Each verb is atomic: others see all of it or nothing, and once it has answered, everyone sees it. Only `list`, `scan` and
//!   `count` may take more than a moment: what was live all the time is in it, and nothing that had ended before.
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
//! backend's clock. It remembers it for at least thirty minutes, also where the clear ended nothing and the owner has no
//! record left. A clear that was answered with `Gone` or `Conflict` did not happen and is not remembered.
//!
//! * A [`Mark`] names the owner's last clear, and says when it was taken. A `create` with [`Since::Mark`] is
//!   [`Late`](Created::Late) if the owner's last clear has another name by now, or if the mark is older than fifteen minutes. So a
//!   clear has to be remembered for as long as a mark that names it is good: `mark` names only clears of the last fifteen minutes,
//!   and they are remembered for thirty. A mark that names none is good until there is a clear that is younger than fifteen
//!   minutes.
//! * A backend that forgets its clears when it is closed puts into each mark which [opening](Mark::opening) it is from, and
//!   refuses one from another opening.
//! * A `create` with [`Since::Age`] is [`Late`](Created::Late) if the owner's last clear is younger than that age, or if the
//!   age is above fifteen minutes. Without `since`, it is never late.
//! * Every `create` of an owner is ordered with `clear`: it is ended by the clear, or it comes after it.
//! * A `clear` with the name of the owner's last clear is a repeat. It ends nothing, and answers `Done` with the same number.
//!
//! # A limit
//!
//! [`Terms::limit`] bounds how many live records an owner has. Above it, `create` ends those that the backend has heard of longest
//! ago: each `create`, `update` and `touch` of a record is heard of, and a `load` is not. It never ends the new one, and says which
//! ones it has ended. Or it is [`Full`](Created::Full), if the limit says so. However many logins run at once, there are never
//! more records than the limit once a `create` with it has answered.
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
//! use std::{collections::BTreeMap, ops::Bound, sync::Mutex, time::{Duration, Instant}};
//! use jam_session::{
//!     Backend, By, Clear, Cleared, Created, Cursor, Left, Limit, Mark, Outcome, Owner, Page, Record, RecordId, Sessions, Since,
//!     Terms, backend::Result,
//! };
//!
//! #[derive(Default)]
//! struct Small(Mutex<Store>);
//!
//! #[derive(Default)]
//! struct Store {
//!     records: BTreeMap<RecordId, Kept>,
//!     /// Each owner's last clear: its name, how many it ended, and when.
//!     clears: BTreeMap<Owner, (i64, u64, Instant)>,
//!     opened: Option<Instant>,
//!     /// How many times it has heard of a record.
//!     heard: u64,
//! }
//!
//! struct Kept {
//!     record: Record,
//!     ends: Instant,
//!     /// When it was heard of last, as a number that grows.
//!     heard: u64,
//! }
//!
//! const REMEMBERED: Duration = Duration::from_secs(15 * 60);
//! /// Longer than any session lives: the clock may not be able to count to the end of more.
//! const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);
//!
//! impl Small {
//!     /// Runs a verb on what is live.
//!     fn with<T>(&self, verb: impl FnOnce(&mut Store, Instant) -> Result<T>) -> Result<T> {
//!         let mut store = self.0.lock().map_err(|_| "a thread panicked")?;
//!         let now = Instant::now();
//!         store.opened.get_or_insert(now);
//!         store.heard += 1;
//!         store.records.retain(|_, kept| kept.ends > now);
//!         store.clears.retain(|_, (.., at)| now - *at <= 2 * REMEMBERED);
//!         verb(&mut store, now)
//!     }
//! }
//!
//! impl Store {
//!     fn find(&self, id: RecordId, now: Instant) -> Option<Record> {
//!         let kept = self.records.get(&id)?;
//!         let mut record = kept.record.clone();
//!         record.ttl = kept.ends - now;
//!         Some(record)
//!     }
//!
//!     fn put(&mut self, record: Record, now: Instant) {
//!         let (id, ends, heard) = (record.id, now + record.ttl.min(LONGEST), self.heard);
//!         self.records.insert(id, Kept { record, ends, heard });
//!     }
//!
//!     fn of(&self, owner: Option<Owner>) -> Vec<RecordId> {
//!         let mut ids: Vec<_> = self.records.keys().copied().filter(|id| id.owner() == owner).collect();
//!         ids.sort_by_key(|id| self.records[id].heard);
//!         ids
//!     }
//!
//!     /// In milliseconds since it was opened.
//!     fn time(&self, now: Instant) -> u64 {
//!         self.opened.map_or(0, |opened| (now - opened).as_millis() as u64)
//!     }
//!
//!     fn is_late(&self, owner: Option<Owner>, since: Option<Since>, now: Instant) -> Result<bool> {
//!         let last = owner.and_then(|owner| self.clears.get(&owner));
//!         let is_after = |age: Duration| last.is_some_and(|(.., at)| now - *at < age);
//!         Ok(match since {
//!             None => false,
//!             Some(Since::Age(age)) => age > REMEMBERED || is_after(age),
//!             Some(Since::Mark(mark)) => {
//!                 let age = Duration::from_millis(self.time(now).saturating_sub(mark.taken));
//!                 let changed = match mark.clear {
//!                     Some(name) => last.is_none_or(|(last, ..)| *last != name),
//!                     None => is_after(REMEMBERED),
//!                 };
//!                 // No opening of this store has a name: it lives as long as the process. One that could be opened again has one.
//!                 changed || age > REMEMBERED || mark.opening != 0
//!             }
//!             Some(_) => return Err("these terms are unknown here".into()),
//!         })
//!     }
//! }
//!
//! impl Backend for Small {
//!     async fn load(&self, id: RecordId) -> Result<Option<Record>> {
//!         self.with(|store, now| Ok(store.find(id, now)))
//!     }
//!     async fn create(&self, record: Record, terms: Terms) -> Result<Created> {
//!         // To the last field: when another one is added, this does not compile until it is kept to.
//!         let Terms { since, limit, leaves, retry } = terms;
//!         let owner = record.id.owner();
//!         self.with(|store, now| {
//!             let there = store.find(record.id, now);
//!             let mut ended = Vec::new();
//!             if there.as_ref().is_none_or(|there| there.version != record.version) {
//!                 if store.is_late(owner, since, now)? {
//!                     return Ok(Created::Late);
//!                 }
//!                 match there {
//!                     Some(_) => return Ok(Created::Taken),
//!                     // It may have been made and ended: this store does not remember endings.
//!                     None if retry => return Err("the first try may have been made".into()),
//!                     None => {}
//!                 }
//!                 let others = if owner.is_some() { store.of(owner) } else { Vec::new() };
//!                 match limit {
//!                     Limit::Refuse(most) if owner.is_some() && others.len() >= most => return Ok(Created::Full),
//!                     Limit::LeastRecent(most) => ended.extend(others.iter().take((others.len() + 1).saturating_sub(most))),
//!                     Limit::None | Limit::Refuse(_) => {}
//!                 }
//!                 ended.iter().for_each(|id| drop(store.records.remove(id)));
//!                 store.put(record, now);
//!             }
//!             let left = match leaves.map(|(id, version)| (id, version, store.find(id, now))) {
//!                 None => Left::NotTried,
//!                 Some((.., None)) => Left::Gone,
//!                 Some((_, version, Some(there))) if there.version != version => Left::Conflict(there),
//!                 Some((id, ..)) => {
//!                     store.records.remove(&id);
//!                     Left::Done
//!                 }
//!             };
//!             Ok(Created::Done { ended, left })
//!         })
//!     }
//!     async fn update(&self, expected: i64, record: Record, retry: bool) -> Result<Outcome> {
//!         self.with(|store, now| match store.find(record.id, now) {
//!             None => Ok(Outcome::Gone),
//!             Some(there) if there.version == expected => {
//!                 store.put(record, now);
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
//!             let heard = store.heard;
//!             if let Some(kept) = store.records.get_mut(&id).filter(|kept| kept.record.version == version) {
//!                 (kept.ends, kept.heard) = (now + ttl.min(LONGEST), heard);
//!             }
//!             Ok(())
//!         })
//!     }
//!     async fn delete(&self, id: RecordId) -> Result<bool> {
//!         self.with(|store, _| Ok(store.records.remove(&id).is_some()))
//!     }
//!     async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
//!         self.with(|store, now| Ok(store.of(Some(owner)).into_iter().filter_map(|id| store.find(id, now)).collect()))
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
//!     async fn mark(&self, owner: Owner) -> Result<Mark> {
//!         self.with(|store, now| {
//!             let last = store.clears.get(&owner).filter(|(.., at)| now - *at <= REMEMBERED);
//!             Ok(Mark::new(last.map(|(name, ..)| *name), store.time(now)))
//!         })
//!     }
//!     async fn scan(&self, after: Option<Cursor>, most: usize) -> Result<Page> {
//!         // The name of the last record of a page is where the next one goes on.
//!         let after = after.map(|after| String::from_utf8(after.as_bytes().into())).transpose()?;
//!         let after: Option<RecordId> = after.map(|after| after.parse()).transpose()?;
//!         self.with(|store, now| {
//!             let from = after.map_or(Bound::Unbounded, Bound::Excluded);
//!             let ids: Vec<_> = store.records.range((from, Bound::Unbounded)).map(|(id, _)| *id).take(most).collect();
//!             let next = ids.last().filter(|_| ids.len() == most).map(|id| Cursor::new(id.to_string()));
//!             let records = ids.into_iter().filter_map(|id| store.find(id, now)).collect();
//!             Ok(Page { records, next, moved: false })
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

use bytes::Bytes;
use serde::{Deserialize, Serialize};

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
    /// How many records its owner may have. It does not concern records without an owner.
    pub limit: Limit,
    /// A record without an owner that ends in the same step, if it has this version: the visitor's, when a visitor signs in.
    pub leaves: Option<(RecordId, i64)>,
    /// The answer to the first try was lost.
    pub retry: bool,
}

/// Since when a clear of the owner refuses a new record.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Since {
    /// Since the [`mark`](Backend::mark) was taken: the owner's last clear must still be the one that it names.
    Mark(Mark),
    /// Since the request arrived, this long ago. Above fifteen minutes, every record is refused.
    Age(Duration),
}

/// Names an owner's last clear, and so tells later whether there was another one since.
///
/// It does not go by the time of the clear, because clocks can jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Mark {
    /// The [name](Clear::name) of the owner's last clear. `None` if there was none within the last fifteen minutes.
    pub clear: Option<i64>,
    /// When it was taken, by the backend's clock, in milliseconds.
    pub taken: u64,
    /// Of a backend that forgets its clears when it is closed: which opening of it this is. Otherwise 0.
    pub opening: i64,
}

/// How many sessions a user may have, and what becomes of a login above it.
///
/// ```
/// use jam_session::Limit;
///
/// assert_eq!(Limit::from(5), Limit::LeastRecent(5));
/// assert_eq!(Limit::refuse(5), Limit::Refuse(5));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// Any number.
    #[default]
    None,
    /// So many. Above it the sessions end that the store has heard of longest ago, until there are no more.
    LeastRecent(usize),
    /// So many. Above it the login is refused.
    Refuse(usize),
}

/// What became of a [`create`](Backend::create). With any answer other than `Done`, nothing has changed.
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub enum Created {
    /// The record is stored, or this very one was already there: the same name and the same version.
    Done {
        /// The records of its owner that ended because of the [limit](Terms::limit). None, if it was already there.
        ended: Vec<RecordId>,
        /// What became of the record that it [leaves](Terms::leaves).
        left: Left,
    },
    /// The owner was cleared [since then](Terms::since), or that is too long ago to know.
    Late,
    /// A live record has that name, and was left alone.
    Taken,
    /// Its owner has as many records as the [limit](Terms::limit) allows, and the limit is to refuse more.
    Full,
}

/// What became of the record that a new one [leaves](Terms::leaves).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Left {
    /// It has ended.
    Done,
    /// There is no such record.
    Gone,
    /// It has another version: this one. It was left alone.
    Conflict(Record),
    /// There was none to leave, or the backend cannot do it in the same step. The caller does it then.
    #[default]
    NotTried,
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

/// Where a [`scan`](Backend::scan) goes on: bytes that only the backend understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(Bytes);

/// A part of all records.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Live records, in any order.
    pub records: Vec<Record>,
    /// Where the next page begins. `None` after the last one.
    pub next: Option<Cursor>,
    /// Records may have been moved between servers since the scan began, so that some are missing.
    pub moved: bool,
}

/// How many records there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Count {
    /// Those with an owner.
    pub signed_in: u64,
    /// Those without.
    pub visitors: u64,
}

impl Created {
    /// Stored, without consequences for other records.
    pub const fn done() -> Self {
        Self::Done { ended: Vec::new(), left: Left::NotTried }
    }
}

impl Mark {
    /// Names this clear, at this time.
    pub const fn new(clear: Option<i64>, taken: u64) -> Self {
        Self { clear, taken, opening: 0 }
    }

    /// The same mark, good only for this opening of the backend.
    pub const fn with_opening(self, opening: i64) -> Self {
        Self { opening, ..self }
    }
}

impl Limit {
    /// Any number of sessions.
    pub const fn none() -> Self {
        Self::None
    }

    /// Above so many sessions the login is refused.
    pub const fn refuse(sessions: usize) -> Self {
        Self::Refuse(sessions)
    }
}

impl From<usize> for Limit {
    fn from(sessions: usize) -> Self {
        Self::LeastRecent(sessions)
    }
}

impl Cursor {
    /// From bytes that only the backend understands.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Count {
    /// So many of each.
    pub const fn new(signed_in: u64, visitors: u64) -> Self {
        Self { signed_in, visitors }
    }

    /// Counts one more record.
    pub fn add(&mut self, id: RecordId) {
        match id.owner() {
            Some(_) => self.signed_in += 1,
            None => self.visitors += 1,
        }
    }
}

/// A store of records. The [module docs](self) are its contract, with a complete one as an example.
///
/// Implementers write plain `async fn`s.
pub trait Backend: Send + Sync + 'static {
    /// Loads the record of that name, if it is live.
    fn load(&self, id: RecordId) -> impl Future<Output = Result<Option<Record>>> + Send;

    /// Adds a record, unless its name is taken by a live one, it is too late, or its owner has too many.
    ///
    /// The first of these that applies is the answer: [`Done`](Created::Done), if this very record is there;
    /// [`Late`](Created::Late); an error, if it is a [retry](Terms::retry) of a record that has ended;
    /// [`Taken`](Created::Taken); [`Full`](Created::Full); otherwise the record is stored. With `Done` the record that it
    /// [leaves](Terms::leaves) ends, also if this very record was already there.
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

    /// Names the owner's last clear, for the [terms](Since::Mark) of a later `create`. It writes nothing.
    fn mark(&self, owner: Owner) -> impl Future<Output = Result<Mark>> + Send;

    /// Reads all live records in pages, of about `most` records each. It begins without a cursor, and goes on after each page
    /// with the [`next`](Page::next) of that one.
    ///
    /// A record that is live throughout all pages is included, at least once, unless it is [moved](Page::moved). None is included
    /// that had ended before its page was asked for. A cursor that is not from this backend is an error, or begins anew.
    fn scan(&self, after: Option<Cursor>, most: usize) -> impl Future<Output = Result<Page>> + Send;

    /// Counts the live records. By default it [scans](Self::scan) all of them.
    fn count(&self) -> impl Future<Output = Result<Count>> + Send {
        async {
            let (mut count, mut after) = (Count::default(), None);
            loop {
                let page = self.scan(after, COUNTED_AT_ONCE).await?;
                page.records.iter().for_each(|record| count.add(record.id));
                match page.next {
                    Some(next) => after = Some(next),
                    None => return Ok(count),
                }
            }
        }
    }

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

    fn mark(&self, owner: Owner) -> impl Future<Output = Result<Mark>> + Send {
        B::mark(self, owner)
    }

    fn scan(&self, after: Option<Cursor>, most: usize) -> impl Future<Output = Result<Page>> + Send {
        B::scan(self, after, most)
    }

    fn count(&self) -> impl Future<Output = Result<Count>> + Send {
        B::count(self)
    }

    fn set_clock(&self, clock: Clock) {
        B::set_clock(self, clock);
    }

    fn close(&self) -> impl Future<Output = Result<()>> + Send {
        B::close(self)
    }
}

const COUNTED_AT_ONCE: usize = 1000;
