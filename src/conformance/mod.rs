//! The conformance suite: the contract of [`Backend`] as tests, for the stores of this crate and for your own.
//!
//! Each promise is a function. It panics if the backend breaks the promise, with a message that says what a user would see. The
//! macro [`conformance_tests!`](crate::conformance_tests) turns each of them into a test. With the feature `conformance` in
//! your `dev-dependencies`, this is a complete `tests/sessions.rs`:
//!
//! ```
//! # mod my_store { pub type MyStore = jam_session::MemoryBackend; }
//! use my_store::MyStore;
//!
//! # macro_rules! conformance_tests { ($make:expr) => {
//! # fn main() {
//! #     // Without a test harness, the same by hand.
//! #     jam_session::conformance::run(async {
//! #         for promise in jam_session::conformance::Promise::all() {
//! #             promise.check(&jam_session::conformance::IntoSubject::into_subject($make).unwrap()).await;
//! #         }
//! #     });
//! # } } }
//! jam_session::conformance_tests!(MyStore::default());
//! # conformance_tests!(MyStore::default());
//! ```
//!
//! The expression is evaluated once for each test. It can `.await`, and should panic if it fails. Its value is a backend,
//! [`Sessions`](crate::Sessions) over a backend, or a [`Subject`], which has options:
//!
//! | the backend | what to give |
//! |---|---|
//! | counts time by the [clock](Backend::set_clock) it is given | the backend itself: the tests do not wait |
//! | is a server with its own clock | [`Subject::with_own_clock`]: the tests wait for short times to live |
//! | has a clock that a test can move | [`Subject::with_time_passed_by`] |
//! | is shared by many processes | a second backend over the same store as well, with [`Subject::shared_with`], to detect caches |
//! | needs a folder or a container | pass that as well, with [`Subject::holding`] |
//! | may be missing on this machine | an `Option`: with `None` the test prints that it is skipped |
//!
//! The store may contain other records, even from earlier runs, because the tests use random names. Tests can run in parallel.
//!
//! # Writing a backend, step by step
//!
//! [`examples/sqlite_backend.rs`](https://docs.rs/crate/jam-session/latest/source/examples/sqlite_backend.rs) is a complete
//! backend for SQLite, with these tests at its end. Every store in a database has to make these decisions:
//!
//! 1. **The primary key is the text of the [`RecordId`](crate::RecordId)**, compared byte by byte. It contains owner and
//!    `sid`. A primary key of two columns would not work, because a visitor's session has no owner, and `NULL` equals
//!    nothing in SQL. The owner also has its own column, with an index, for `list` and `clear`.
//! 2. **Every statement has the condition `expires > now`**, by the database's clock if several processes share it. Deleting
//!    expired rows is housekeeping that nothing depends on.
//! 3. **Each method is one transaction that locks first**: `BEGIN IMMEDIATE` here, `SELECT … FOR UPDATE` elsewhere. A read that
//!    is followed by a write without a lock loses updates. A single statement is better still: `UPDATE … WHERE version = ?`.
//! 4. **`update` never inserts.** Only `create` uses `INSERT … ON CONFLICT`, and it replaces only expired rows.
//! 5. **A row remembers what a retry needs**: its last eight versions. For ten seconds after its end, its name stays, without
//!    the payload. If a store does not remember them, a lost answer fails the request, but nothing is written twice.
//! 6. **The last clear of an owner is a row in a second table**, written in the same transaction that ends the sessions. It
//!    stays for thirty minutes. A mark holds the name in that row, and the time when the mark was taken. `create` compares the
//!    row's name with that of the mark, or its time with that of the request.
//! 7. **A row stores the order of its last use**, for the limit of records: a number one higher than the owner's highest so
//!    far, so that no clock is involved. `create`, `update` and `touch` set it. The transaction of a `create` counts the
//!    owner's records, ends the least recently used ones above the limit, and ends the record in
//!    [`Terms::leaves`](crate::Terms::leaves). If the database locks single rows, add one row per owner that every `create` and
//!    `clear` locks first, because locks on existing sessions do not stop new ones from being inserted.
//! 8. **`scan` continues from the last primary key**: `WHERE id > ? ORDER BY id LIMIT ?`. With `OFFSET`, records would be
//!    skipped when others end between two pages. `count` is one statement.
//! 9. **Time to live is rounded down**, for example to whole milliseconds, and stored as the time when the record expires.
//! 10. **No thread of the async runtime waits for a disk.** If the driver blocks, the whole transaction runs in
//!     `spawn_blocking`. So if the future is dropped, the transaction still happens completely or not at all.
//! 11. **Any error type works.** `?` turns it into [`Unavailable`](crate::ErrorKind::Unavailable): the request is answered with
//!     503, and the cookie stays.
//!
//! # Testing an outage of the store
//!
//! [`Faulty`] wraps any backend and fails on demand: before a call takes effect, after it, late, or by never answering. It can
//! also run a closure before a call, such as another request, and change the answer. Use it to test what your application does
//! while the store is down.
//!
//! # Panics
//!
//! The function of a promise panics if the promise is broken, if the backend returns an error, or if it does not answer for
//! half a minute. It needs a tokio runtime with time enabled. A multi-threaded runtime finds more bugs.

// This is test code: it reports by panicking.
#![allow(clippy::panic)]

mod crossing;
mod dropped;
mod faulty;
mod leaves;
mod limits;
mod marks;
mod owners;
mod records;
mod retries;
mod samples;
mod scans;
mod subject;
mod time;
mod together;
mod values;
mod verbs;

use std::pin::Pin;

pub use self::{
    faulty::{Answer, Call, Fault, Faults, Faulty, Gate, Hook, Verb},
    subject::{IntoSubject, Subject},
};
use crate::backend::Backend;

/// The list of promises. A promise in it is public, a test of [`conformance_tests!`](crate::conformance_tests), and in
/// [`Promise::all`]. A promise that is missing is dead code, which the compiler reports.
#[doc(hidden)]
#[macro_export]
macro_rules! __every_promise {
    ($give_to:path, $($with:tt)*) => {
        $give_to! {
            $($with)*;
            records::what_was_never_created_is_absent,
            records::what_is_created_is_loaded,
            records::a_taken_name_is_left_alone,
            records::a_name_is_free_again_after_its_end,
            records::an_update_replaces_what_it_expects,
            records::an_update_of_another_version_is_a_conflict,
            records::an_update_brings_nothing_back,
            records::an_update_for_no_time_ends_the_record,
            records::an_update_restarts_the_time_to_live,
            records::an_update_can_shorten_the_time_to_live,
            records::a_touch_restarts_the_time_to_live,
            records::a_touch_can_shorten_the_time_to_live,
            records::a_touch_needs_the_version_it_saw,
            records::a_touch_brings_nothing_back,
            records::a_touch_changes_nothing_but_the_time_to_live,
            records::a_delete_ends_and_says_whether_it_was_live,
            owners::a_list_is_complete_and_only_its_owners,
            owners::a_list_follows_every_write,
            owners::a_clear_ends_all_of_its_owner,
            owners::a_clear_counts_only_what_was_live,
            owners::a_clear_spares_the_one_to_keep,
            owners::a_clear_by_what_is_not_the_owners_is_gone,
            owners::after_a_clear_new_ones_begin,
            owners::one_sid_of_two_owners_is_two_records,
            owners::names_are_taken_to_the_letter,
            owners::five_hundred_of_one_owner,
            crossing::a_repeated_clear_ends_nothing_more,
            crossing::a_clear_by_a_record_ends_that_one_too,
            crossing::a_clear_by_another_version_is_a_conflict,
            crossing::a_clear_that_ended_nothing_is_not_remembered,
            crossing::a_clear_is_remembered_for_fifteen_minutes,
            crossing::a_create_since_before_a_clear_is_late,
            crossing::a_create_since_after_a_clear_is_done,
            crossing::a_create_as_old_as_the_clear_is_done,
            crossing::a_create_since_more_than_fifteen_minutes_is_late,
            crossing::a_record_that_is_there_is_never_late,
            crossing::no_create_since_before_a_clear_outlives_it,
            marks::a_mark_names_the_last_clear,
            marks::a_create_with_a_mark_from_before_a_clear_is_late,
            marks::a_create_with_a_mark_from_after_a_clear_is_done,
            marks::a_mark_is_good_for_fifteen_minutes,
            marks::a_mark_of_another_opening_is_late,
            marks::a_mark_writes_nothing,
            marks::no_create_with_a_mark_from_before_a_clear_outlives_it,
            limits::above_a_limit_the_least_recent_ends,
            limits::a_lowered_limit_ends_several_at_once,
            limits::a_limit_counts_only_the_owners_live_records,
            limits::a_limit_that_refuses_is_full,
            limits::of_the_answers_of_a_create_the_first_is_given,
            limits::what_a_limit_has_ended_stays_ended,
            limits::of_parallel_creates_no_more_than_the_limit_are_left,
            leaves::a_create_ends_what_it_leaves,
            leaves::what_a_create_leaves_ends_only_with_it,
            leaves::a_repeated_create_ends_what_it_leaves,
            leaves::a_create_beside_a_write_to_what_it_leaves_loses_nothing,
            scans::a_scan_shows_all_that_is_live,
            scans::a_scan_shows_nothing_that_has_ended,
            scans::what_lives_throughout_a_scan_is_in_it,
            scans::what_a_scan_shows_can_be_ended_at_once,
            scans::a_page_of_a_scan_can_be_asked_for_again,
            scans::a_cursor_of_another_is_an_error_or_begins,
            scans::a_page_of_a_scan_is_about_as_long_as_asked,
            scans::a_count_is_that_of_the_live_records,
            retries::a_create_of_the_very_record_is_done,
            retries::a_retried_create_that_was_never_made_is_made_or_an_error,
            retries::a_retried_create_brings_nothing_back,
            retries::a_retried_create_can_be_late,
            retries::a_retried_update_that_was_written_is_done,
            retries::a_retried_update_that_was_never_written_is_written,
            retries::a_retried_update_that_was_replaced_is_not_made_twice,
            retries::a_retried_update_that_came_too_late_is_not_done,
            retries::a_retried_update_of_what_has_ended_is_gone,
            values::what_has_expired_is_absent_in_every_verb,
            values::a_time_to_live_is_never_lengthened,
            values::looking_gives_no_time,
            values::times_from_a_millisecond_to_ten_years,
            values::a_time_beyond_all_counting_is_long_or_an_error,
            values::any_version_that_is_not_negative,
            values::any_bytes_are_a_payload,
            together::of_parallel_creates_one_wins,
            together::of_parallel_updates_one_is_done,
            together::no_count_is_lost_among_parallel_updates,
            together::a_create_beside_a_clear_is_ended_or_listed,
            together::an_end_beside_updates_and_touches_is_the_end,
            together::a_repeated_update_is_not_applied_again,
            together::a_repeated_create_leaves_its_record_alone,
            dropped::a_dropped_verb_is_all_or_nothing,
        }
    };
}

/// Generates a test for every promise of a [`Backend`]. Your own backend needs no other tests of the contract.
///
/// The expression is evaluated once for each test, and can `.await`. [`conformance`](crate::conformance) says what its value
/// can be. This is a complete file for a server that has its own clock and may be missing:
///
/// ```
/// use std::time::Duration;
/// use jam_session::conformance::Subject;
/// # use jam_session::MemoryBackend;
/// # struct MyServer;
/// # impl MyServer { async fn connect(url: &str) -> Result<MemoryBackend, String> { Ok(MemoryBackend::default()) } }
///
/// jam_session::conformance_tests!(match std::env::var("MY_SERVER") {
///     Ok(url) => {
///         let (one, other) = (MyServer::connect(&url).await.unwrap(), MyServer::connect(&url).await.unwrap());
///         Some(Subject::with_own_clock(one, Duration::from_millis(200)).shared_with(other))
///     }
///     Err(_) => None,
/// });
/// # fn main() {}
/// ```
///
/// Each test is a plain `#[test]` with its own tokio runtime of four threads. Connect within the expression, because
/// connections do not work on another runtime. If you test several backends, put each call of the macro into its own `mod`.
#[macro_export]
macro_rules! conformance_tests {
    ($subject:expr $(,)?) => {
        $crate::__every_promise! { $crate::conformance_tests, @each ($subject) }
    };
    (@each ($subject:expr); $($module:ident::$promise:ident,)*) => {
        $(
            #[test]
            fn $promise() {
                $crate::conformance::run(async {
                    match $crate::conformance::IntoSubject::into_subject($subject) {
                        ::core::option::Option::Some(subject) => $crate::conformance::$promise(&subject).await,
                        ::core::option::Option::None => ::std::eprintln!("skipped: there is no backend to test"),
                    }
                });
            }
        )*
    };
}

macro_rules! publish {
    ($backend:ident; $($module:ident::$promise:ident,)*) => {
        $(pub use self::$module::$promise;)*

        impl<$backend: Backend> Promise<$backend> {
            /// Lists all promises.
            pub fn all() -> Vec<Self> {
                vec![$(Self { name: stringify!($promise), check: |subject| Box::pin($promise(subject)) }),*]
            }
        }
    };
}

crate::__every_promise! { publish, B }

/// A promise as a value, for a test runner of your own.
///
/// ```
/// use jam_session::{MemoryBackend, conformance::{Promise, Subject}};
///
/// # #[tokio::main(flavor = "multi_thread")]
/// # async fn main() {
/// for promise in Promise::all() {
///     println!("{}", promise.name());
///     promise.check(&Subject::new(MemoryBackend::default())).await;
/// }
/// # }
/// ```
pub struct Promise<B> {
    name: &'static str,
    check: for<'a> fn(&'a Subject<B>) -> Checking<'a>,
}

type Checking<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl<B: Backend> Promise<B> {
    /// Returns the name of its function.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Checks the promise on this backend.
    ///
    /// # Panics
    /// If the promise is broken. The message says what a user would see.
    pub async fn check(&self, subject: &Subject<B>) {
        (self.check)(subject).await;
    }
}

impl<B> std::fmt::Debug for Promise<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Promise").field(&self.name).finish()
    }
}

/// Runs a test of [`conformance_tests!`](crate::conformance_tests).
#[doc(hidden)]
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(test),
        Err(error) => panic!("the tokio runtime for this test could not be started: {error}"),
    }
}
