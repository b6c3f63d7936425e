//! The methods of the backend under examination, and ways to call them: alone, together, and not to the end.

use std::{pin::pin, sync::Arc, task::Poll, time::Duration};

use tokio::{sync::Barrier, time::timeout};

use super::{
    samples::{LONG, record, version},
    subject::{PATIENCE, Subject},
};
use crate::{
    backend::{
        Backend, Outcome, Result,
        clear::{By, Clear, Cleared},
        scan::{Count, Cursor, Page},
        terms::{Created, Limit, Mark, Since, Terms},
    },
    record::{
        Record,
        id::{Owner, RecordId},
    },
};

/// The methods, which have to answer.
impl<B: Backend> Subject<B> {
    pub(super) async fn load(&self, id: RecordId) -> Option<Record> {
        let record = answer("load", self.backend().load(id)).await;
        if let Some(record) = &record {
            assert!(record.id == id, "`load` answered with a record of another name: a user gets another's session");
        }
        record
    }

    pub(super) async fn must_load(&self, id: RecordId) -> Record {
        let Some(record) = self.load(id).await else {
            panic!("`load` does not find a record that is live: who is signed in is signed out")
        };
        record
    }

    /// What is left to a record, as each process sees it.
    pub(super) async fn left_everywhere(&self, id: RecordId) -> Vec<Duration> {
        let mut left = Vec::with_capacity(self.backends().len());
        for backend in self.backends() {
            let Some(record) = answer("load", backend.load(id)).await else {
                panic!("`load` does not find a record that is live: who is signed in is signed out")
            };
            left.push(record.ttl);
        }
        left
    }

    /// Creates a record without terms, and says whether its name was free.
    pub(super) async fn create(&self, record: &Record) -> bool {
        match self.create_on(record, Terms::default()).await {
            Created::Done { .. } => true,
            Created::Taken => false,
            Created::Late => panic!("`create` without a `since` is `Late`: nobody can sign in"),
            Created::Full => panic!("`create` without a limit is `Full`: nobody can sign in"),
        }
    }

    pub(super) async fn create_on(&self, record: &Record, terms: Terms) -> Created {
        answer("create", self.backend().create(record.clone(), terms)).await
    }

    /// Creates a record that the test needs.
    pub(super) async fn creates(&self, record: &Record) {
        assert!(self.create(record).await, "`create` refused a name that nothing has: nobody can sign in");
    }

    /// Creates a record whose first try was not answered. An error is an answer, too.
    pub(super) async fn creates_again(&self, record: &Record) -> Result<Created> {
        self.create_retried(record, Terms::default()).await
    }

    /// The same on terms.
    pub(super) async fn create_retried(&self, record: &Record, terms: Terms) -> Result<Created> {
        in_time("create", self.backend().create(record.clone(), Terms { retry: true, ..terms })).await
    }

    pub(super) async fn update(&self, expected: i64, record: &Record) -> Outcome {
        answer("update", self.backend().update(expected, record.clone(), false)).await
    }

    /// Does an update whose first try was not answered. An error is an answer, too.
    pub(super) async fn updates_again(&self, expected: i64, record: &Record) -> Result<Outcome> {
        in_time("update", self.backend().update(expected, record.clone(), true)).await
    }

    /// Does an update that the test needs.
    pub(super) async fn updates(&self, expected: i64, record: &Record) {
        match self.update(expected, record).await {
            Outcome::Done => {}
            Outcome::Gone => panic!("`update` found no record, though it is live: what a request changed is lost"),
            Outcome::Conflict(_) => {
                panic!(
                    "`update` found a conflict, though the version was the expected one: every change is answered 503"
                )
            }
        }
    }

    pub(super) async fn touch(&self, id: RecordId, version: i64, ttl: Duration) {
        answer("touch", self.backend().touch(id, version, ttl)).await;
    }

    pub(super) async fn delete(&self, id: RecordId) -> bool {
        answer("delete", self.backend().delete(id)).await
    }

    /// Lists the records of an owner by name, each of them once.
    pub(super) async fn list(&self, owner: Owner) -> Vec<Record> {
        let mut all = answer("list", self.backend().list(owner)).await;
        assert!(
            all.iter().all(|record| record.id.owner() == Some(owner)),
            "`list` shows a record that is not the owner's: a user sees, and may end, another's session"
        );
        all.sort_by_key(|record| record.id);
        assert!(all.windows(2).all(|two| two[0].id != two[1].id), "`list` shows a record twice");
        all
    }

    pub(super) async fn lists(&self, id: RecordId) -> Option<Record> {
        let all = self.list(id.owner()?).await;
        all.into_iter().find(|record| record.id == id)
    }

    /// Clears an owner, whatever the owner has, and says how many records ended.
    pub(super) async fn clear(&self, owner: Owner) -> u64 {
        match self.clear_as(owner, everything()).await {
            Cleared::Done(ended) => ended,
            other => panic!("`clear` that is by no record is {other:?}: nobody can be signed out everywhere"),
        }
    }

    pub(super) async fn clear_as(&self, owner: Owner, clear: Clear) -> Cleared {
        answer("clear", self.backend().clear(owner, clear)).await
    }

    /// Ends all records of an owner but the one to keep, which is live and has that version.
    pub(super) async fn clear_others(&self, kept: &Record) -> u64 {
        let Some(owner) = kept.id.owner() else { return 0 };
        match self.clear_as(owner, by(kept, true)).await {
            Cleared::Done(ended) => ended,
            Cleared::Gone => panic!("`clear` by a live record is `Gone`: who signs out everywhere is not heard"),
            Cleared::Conflict(_) => {
                panic!(
                    "`clear` by a record is a `Conflict`, though it has that version: nobody can sign out everywhere"
                )
            }
        }
    }

    pub(super) async fn mark(&self, owner: Owner) -> Mark {
        answer("mark", self.backend().mark(owner)).await
    }

    /// Gives a page of a scan, of about that many records.
    pub(super) async fn page(&self, after: Option<Cursor>, most: usize) -> Page {
        answer("scan", self.backend().scan(after, most)).await
    }

    /// The same. An error is an answer, too.
    pub(super) async fn try_page(&self, after: Option<Cursor>, most: usize) -> Result<Page> {
        in_time("scan", self.backend().scan(after, most)).await
    }

    pub(super) async fn count(&self) -> Count {
        answer("count", self.backend().count()).await
    }

    /// Checks that no method finds the record. `after` says what ended it, and `version` is the one that it had.
    pub(super) async fn is_absent(&self, id: RecordId, version: i64, after: &str) {
        assert!(self.load(id).await.is_none(), "`load` finds a record after {after}: who was signed out is signed in");
        let new = record(id);
        // To some stores a version of zero means "none yet".
        for expected in [version, 0] {
            assert!(
                matches!(self.update(expected, &new).await, Outcome::Gone),
                "`update` is not `Gone` after {after}: a slow request takes a session that has ended for a live one"
            );
        }
        self.touch(id, version, LONG).await;
        self.touch(id, new.version, LONG).await;
        assert!(
            self.load(id).await.is_none(),
            "`update` or `touch` brought back a record after {after}: a logout is undone by a request that was slow"
        );
        assert!(!self.delete(id).await, "`delete` says that a record was live after {after}");
        if id.owner().is_some() {
            assert!(self.lists(id).await.is_none(), "`list` shows a record after {after}: a session that is over");
        }
    }
}

/// The terms of a request of that age.
pub(super) fn since(age: Duration) -> Terms {
    Terms { since: Some(Since::Age(age)), ..Terms::default() }
}

/// The terms of a login that has this mark.
pub(super) fn marked(mark: Mark) -> Terms {
    Terms { since: Some(Since::Mark(mark)), ..Terms::default() }
}

pub(super) fn at_most(limit: impl Into<Limit>) -> Terms {
    Terms { limit: limit.into(), ..Terms::default() }
}

/// The terms of a record that takes the place of this one.
pub(super) fn leaving(record: &Record) -> Terms {
    Terms { leaves: Some((record.id, record.version)), ..Terms::default() }
}

/// A clear of all that an owner has.
pub(super) fn everything() -> Clear {
    Clear { name: version(), by: None }
}

/// A clear by a record as it is there.
pub(super) fn by(record: &Record, keep: bool) -> Clear {
    let Record { id, version: expected, .. } = *record;
    Clear { name: version(), by: Some(By { id, version: expected, keep }) }
}

/// Waits for the answer of a call.
async fn answer<T>(verb: &str, call: impl Future<Output = Result<T>>) -> T {
    match in_time(verb, call).await {
        Ok(answer) => answer,
        Err(error) => panic!("`{verb}` failed: {error}"),
    }
}

/// Waits for the answer of a call, which may be an error.
async fn in_time<T>(verb: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    match timeout(PATIENCE, call).await {
        Ok(answer) => answer,
        Err(_) => panic!("`{verb}` has not answered for {PATIENCE:?}: requests hang"),
    }
}

/// Runs the calls in tasks that all begin at the same time.
pub(super) async fn together<T, F>(calls: impl IntoIterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let calls: Vec<F> = calls.into_iter().collect();
    let start = Arc::new(Barrier::new(calls.len()));
    let tasks: Vec<_> = calls
        .into_iter()
        .map(|call| {
            let start = Arc::clone(&start);
            tokio::spawn(async move {
                start.wait().await;
                call.await
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        match task.await {
            Ok(answer) => answers.push(answer),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => panic!("{error}"),
            },
        }
    }
    answers
}

/// Polls a call this many times, each time when it was woken, then drops it. Says whether it was ready by then.
pub(super) async fn polled<T>(polls: usize, call: impl Future<Output = T>) -> bool {
    let mut call = pin!(call);
    for _ in 0..polls {
        let mut polled = false;
        let once = std::future::poll_fn(|cx| match std::mem::replace(&mut polled, true) {
            false => match call.as_mut().poll(cx) {
                Poll::Ready(_) => Poll::Ready(true),
                Poll::Pending => Poll::Pending,
            },
            true => Poll::Ready(false),
        });
        if answer("a verb", async { Ok(once.await) }).await {
            return true;
        }
    }
    false
}
