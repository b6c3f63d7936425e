//! The [`Backend`] trait, which every store implements, and its contract.
//!
//! A [`Backend`] is a map from [`RecordId`] to [`Record`] with conditional writes. It knows nothing about cookies, secrets or
//! absolute timeouts: these are inside the payload, which it stores unchanged. Its methods:
//!
//! | method | does | if there is no live record | if it has another version |
//! |---|---|---|---|
//! | [`load`](Backend::load) | returns a record, with the `ttl` that is left | `None` | |
//! | [`create`](Backend::create) | adds a record under [`Terms`] | [`Done`](Created::Done), [`Late`](Created::Late) or [`Full`](Created::Full) | [`Taken`](Created::Taken) or [`Late`](Created::Late) |
//! | [`update`](Backend::update) | replaces a record that has the version `expected`, and restarts its `ttl` | [`Gone`](Outcome::Gone) | [`Conflict`](Outcome::Conflict) with the current record |
//! | [`touch`](Backend::touch) | restarts the `ttl` of a record that has this `version` | does nothing | does nothing |
//! | [`delete`](Backend::delete) | ends a record and returns `true` | `false` | |
//! | [`list`](Backend::list) | returns all live records of an owner | empty | |
//! | [`clear`](Backend::clear) | ends all records of an owner, and returns how many | `0` | |
//! | `clear` [by](By) a record | the same, if that record has the given version | [`Gone`](Cleared::Gone) | [`Conflict`](Cleared::Conflict) with the current record |
//! | [`mark`](Backend::mark) | identifies the last clear of an owner | | |
//! | [`scan`](Backend::scan), [`count`](Backend::count) | returns or counts all live records, with and without an owner | empty | |
//!
//! * Each method is atomic and linearizable: others see all of its effect or none, and all of it once it has returned. Only
//!   `list`, `scan` and `count` may take several steps. They include every record that is live throughout the call, and none that
//!   ended before it.
//! * A record whose `ttl` has passed does not exist for any method. The backend measures the `ttl` by its own clock, and
//!   never lets a record live longer than the `ttl` that it was last given. So an `update` with a `ttl` of zero ends the
//!   record, if its version is `expected`: that is how a logout works.
//! * Only `create` adds a record. There is no upsert, so a record that has ended stays ended.
//! * [`RecordId::owner`] is part of the name: the same `sid` under two owners is two records.
//! * Any answer other than `Done` means that nothing changed.
//! * An error means that the change may or may not have been applied. Any error type will do, so `?` works.
//! * If a future is dropped, its change may or may not have been applied, as after an error.
//! * A backend may put a [`Hint`](crate::Hint) into a record that it returns. The next `update` of that record passes the hint
//!   back, but it may be missing.
//!
//! # Logins that overlap with a sign-out everywhere
//!
//! When a user signs out everywhere, or sets a new password, a login that is still pending must not sign that user in. So a
//! backend remembers each owner's last clear: its [name](Clear::name), how many records it ended, and when it happened by the
//! backend's clock. It remembers this for at least thirty minutes, even if the clear ended nothing or the owner has no records
//! left. A clear that returned `Gone` or `Conflict` did not happen and is not remembered.
//!
//! * A [`Mark`] identifies the owner's last clear, and says when the mark was taken. A `create` with [`Since::Mark`] returns
//!   [`Late`](Created::Late) if the owner's last clear now has another name, or if the mark is older than fifteen minutes.
//! * `mark` names a clear only if that clear is at most fifteen minutes old. Because clears are remembered for thirty minutes,
//!   a clear is never forgotten while a mark that names it is valid.
//! * A mark that names no clear becomes invalid once the owner is cleared. More precisely, a `create` with it returns `Late` if
//!   there is a clear of the owner that is younger than fifteen minutes.
//! * If a backend forgets its clears when it is closed, each of its marks has to say in [`opening`](Mark::opening) which run of
//!   the backend made it, and the backend refuses marks from other runs.
//! * A `create` with [`Since::Age`] returns [`Late`](Created::Late) if the owner's last clear is younger than that age, or if
//!   the age exceeds fifteen minutes. A `create` without `since` never returns `Late`.
//! * Every `create` for an owner happens either before a `clear`, which then ends the record, or after it.
//! * A `clear` with the name of the owner's last clear is a retry. It ends nothing, and returns `Done` with the same number.
//!
//! # The limit
//!
//! [`Terms::limit`] bounds the number of live records of an owner. Above it, `create` ends the least recently used records and
//! returns which ones, or it returns [`Full`](Created::Full) if the limit refuses more. `create`, `update` and `touch` count as
//! use of a record; `load` does not. The new record is never among those that end.
//!
//! However many logins run at once, the owner has no more records than the limit once a `create` with that limit has returned.
//!
//! # Retries
//!
//! After a failed call the caller may retry it, with the same version and with `retry` set. **A backend never applies a change
//! twice.** If it can no longer tell whether the first try was applied, it returns an error. (A client library that sends an
//! `update` twice without saying so can defeat this: the docs of the Redis store describe the one case.)
//!
//! | call with `retry` | what the store has | answer |
//! |---|---|---|
//! | `create` | this very record: the same name and version | `Done` |
//! | | nothing, but this record was there and has ended | an error, or `Late` if that applies |
//! | | anything else | the same as for a first try |
//! | `update` | the version that is to be written | `Done` |
//! | | `expected` | `Done`, after writing the record |
//! | | another version now, but it once had the version that is to be written | `Done`, or an error |
//! | | another version, and it never had the version that is to be written | `Conflict`, or an error |
//! | | nothing | `Gone` |
//!
//! For `create`, a store remembers for ten seconds that a user's record has ended. It need not remember the end of a visitor's
//! record, so a retry may create that record again. A store that remembers no endings returns an error for every retry whose
//! record is missing.
//!
//! For `update`, a store whose answers can be lost should remember the last versions of each record, so that a lost answer fails
//! no request. A store that does not remember them returns an error.
//!
//! # Testing a backend
//!
//! The macro `conformance_tests!` (feature `conformance`) generates tests of this whole contract for any backend. The docs of the
//! module `conformance` show how to write a backend for a database, and `examples/sqlite_backend.rs` is a complete one.
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
//!     /// Each owner's last clear: its name, how many records it ended, and when.
//!     clears: BTreeMap<Owner, (i64, u64, Instant)>,
//!     opened: Option<Instant>,
//!     /// Counts the calls, to order records by their last use.
//!     calls: u64,
//! }
//!
//! struct Kept {
//!     record: Record,
//!     ends: Instant,
//!     /// The number of the call that used it last.
//!     used: u64,
//! }
//!
//! const REMEMBERED: Duration = Duration::from_secs(15 * 60);
//! /// Longer than any session lives. Adding more to an `Instant` may overflow.
//! const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);
//!
//! impl Small {
//!     /// Runs a method on the live records.
//!     fn with<T>(&self, method: impl FnOnce(&mut Store, Instant) -> Result<T>) -> Result<T> {
//!         let mut store = self.0.lock().map_err(|_| "a thread panicked")?;
//!         let now = Instant::now();
//!         store.opened.get_or_insert(now);
//!         store.calls += 1;
//!         store.records.retain(|_, kept| kept.ends > now);
//!         store.clears.retain(|_, (.., at)| now - *at <= 2 * REMEMBERED);
//!         method(&mut store, now)
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
//!         let (id, ends, used) = (record.id, now + record.ttl.min(LONGEST), self.calls);
//!         self.records.insert(id, Kept { record, ends, used });
//!     }
//!
//!     fn of(&self, owner: Option<Owner>) -> Vec<RecordId> {
//!         let mut ids: Vec<_> = self.records.keys().copied().filter(|id| id.owner() == owner).collect();
//!         ids.sort_by_key(|id| self.records[id].used);
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
//!                 // This store is opened once per process. A store that can be opened again compares the opening here.
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
//!         // Destructured completely: when a field is added, this stops compiling until it is handled.
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
//!                     // The first try may have been applied, and the record ended since: this store remembers no endings.
//!                     None if retry => return Err("the first try may have been applied".into()),
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
//!             // The first try may have been applied and then replaced: this store remembers no versions.
//!             Some(_) if retry => Err("the first try may have been applied".into()),
//!             Some(there) => Ok(Outcome::Conflict(there)),
//!         })
//!     }
//!     async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
//!         self.with(|store, now| {
//!             let calls = store.calls;
//!             if let Some(kept) = store.records.get_mut(&id).filter(|kept| kept.record.version == version) {
//!                 (kept.ends, kept.used) = (now + ttl.min(LONGEST), calls);
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
//!         // The cursor is the name of the last record of the previous page.
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
pub(crate) mod clear;
pub(crate) mod scan;
pub(crate) mod terms;

use std::time::Duration;

pub use self::{
    clear::{By, Clear, Cleared},
    scan::{Count, Cursor, Page},
    terms::{Created, Left, Limit, Mark, Since, Terms},
};
use crate::{
    clock::Clock,
    error::BoxError,
    record::{
        Record,
        id::{Owner, RecordId},
    },
};

/// The result of a [`Backend`] method. Any error will do.
///
/// It counts as [`Unavailable`](crate::ErrorKind::Unavailable), unless it is an [`Error`](crate::Error) of this crate, which is
/// passed on unchanged.
pub type Result<T> = std::result::Result<T, BoxError>;

/// The result of an [`update`](Backend::update).
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub enum Outcome {
    /// The record is written.
    Done,
    /// There is no such record, and none was created.
    Gone,
    /// The record has another version, and was not changed. This is the current record.
    Conflict(Record),
}

/// A store of records. The [module docs](self) have its contract and a complete example.
///
/// Implement the methods as plain `async fn`s.
///
/// # Errors
/// A method returns an error if the store fails, or if it cannot tell whether a [retry](self#retries) was already applied. Any
/// error type will do: see [`Result`]. After an error, the change may or may not have been applied.
pub trait Backend: Send + Sync + 'static {
    /// Loads a record, if it is live.
    fn load(&self, id: RecordId) -> impl Future<Output = Result<Option<Record>>> + Send;

    /// Adds a record, unless its name is taken, the owner was cleared in the meantime, or the owner has too many records.
    ///
    /// The answer is the first of these that applies:
    ///
    /// 1. [`Done`](Created::Done) if this very record is already there: the same name and version.
    /// 2. [`Late`](Created::Late) if the owner was cleared after the time that [`Terms::since`] gives, or that time is too long
    ///    ago.
    /// 3. An error if this is a [retry](Terms::retry), and the record has ended.
    /// 4. [`Taken`](Created::Taken) if another live record has the name.
    /// 5. [`Full`](Created::Full) if the limit refuses more records.
    /// 6. `Done`, after storing the record.
    ///
    /// In both cases of `Done`, the visitor's record in [`Terms::leaves`] ends as well, if it still has the version given,
    /// unless the backend answers [`Left::NotTried`].
    fn create(&self, record: Record, terms: Terms) -> impl Future<Output = Result<Created>> + Send;

    /// Replaces a live record whose version is still `expected`.
    ///
    /// `retry` means that the answer to the first try was lost: see [retries](self#retries).
    fn update(&self, expected: i64, record: Record, retry: bool) -> impl Future<Output = Result<Outcome>> + Send;

    /// Restarts the time to live, if the record is live and its version is still `version`. The version stays the same.
    fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> impl Future<Output = Result<()>> + Send;

    /// Ends a record, and returns whether it was live.
    fn delete(&self, id: RecordId) -> impl Future<Output = Result<bool>> + Send;

    /// Returns all live records of an owner, in any order.
    fn list(&self, owner: Owner) -> impl Future<Output = Result<Vec<Record>>> + Send;

    /// Ends all records of an owner, or all except the one to [keep](By::keep), and remembers the clear.
    ///
    /// The answer is the first of these that applies:
    ///
    /// 1. [`Done`](Cleared::Done) with the same number again, if the owner's last clear has the same name.
    /// 2. [`Gone`](Cleared::Gone) or [`Conflict`](Cleared::Conflict), if there is a [`By`] and its record is not live or has
    ///    another version.
    /// 3. `Done`, after ending the records.
    fn clear(&self, owner: Owner, clear: Clear) -> impl Future<Output = Result<Cleared>> + Send;

    /// Returns a mark of the owner's last clear, for the [terms](Since::Mark) of a later `create`. It writes nothing.
    fn mark(&self, owner: Owner) -> impl Future<Output = Result<Mark>> + Send;

    /// Reads all live records in pages of about `most` records. The first call has no cursor, and each further call has the
    /// [`next`](Page::next) of the page before.
    ///
    /// A record that is live from the first page to the last is included at least once, unless a page says that some
    /// [moved](Page::moved). A record that ended before its page was requested is not included. If a cursor is not from this
    /// backend, the call fails or starts from the beginning.
    fn scan(&self, after: Option<Cursor>, most: usize) -> impl Future<Output = Result<Page>> + Send;

    /// Counts the live records. The default implementation [scans](Self::scan) all of them.
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

    /// Passes the clock of the sessions to the backend, before any other call. The default implementation ignores it.
    ///
    /// A backend that measures time in this process keeps the clock, for example in a [`OnceLock`](std::sync::OnceLock). A
    /// backend on a server uses the server's clock. If several [`Sessions`](crate::Sessions) share a backend in an
    /// [`Arc`](std::sync::Arc), this is called once for each, and the first clock counts.
    fn set_clock(&self, clock: Clock) {
        let _ = clock;
    }

    /// Releases files, locks and connections. No other method is called afterwards.
    fn close(&self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}

const COUNTED_AT_ONCE: usize = 1000;
