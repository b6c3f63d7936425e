//! Backends behind a pointer: the type-erased one, which keeps type parameters out of the HTTP layer, and shared ones.

use std::{pin::Pin, sync::Arc, time::Duration};

use super::{
    Backend, Outcome, Result,
    clear::{Clear, Cleared},
    scan::{Count, Cursor, Page},
    terms::{Created, Mark, Terms},
};
use crate::{
    clock::Clock,
    record::{
        Record,
        id::{Owner, RecordId},
    },
};

/// A backend whose type was [erased](crate::Sessions::erase), so that the store can be chosen at run time.
///
/// Clones share the same backend.
#[derive(Clone)]
pub struct AnyBackend(Arc<dyn Erased>);

type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// [`Backend`] with boxed futures, which a trait object needs.
trait Erased: Send + Sync {
    fn load(&self, id: RecordId) -> Boxed<'_, Option<Record>>;
    fn create(&self, record: Record, terms: Terms) -> Boxed<'_, Created>;
    fn update(&self, expected: i64, record: Record, retry: bool) -> Boxed<'_, Outcome>;
    fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Boxed<'_, ()>;
    fn delete(&self, id: RecordId) -> Boxed<'_, bool>;
    fn list(&self, owner: Owner) -> Boxed<'_, Vec<Record>>;
    fn clear(&self, owner: Owner, clear: Clear) -> Boxed<'_, Cleared>;
    fn mark(&self, owner: Owner) -> Boxed<'_, Mark>;
    fn scan(&self, after: Option<Cursor>, most: usize) -> Boxed<'_, Page>;
    fn count(&self) -> Boxed<'_, Count>;
    fn set_clock(&self, clock: Clock);
    fn close(&self) -> Boxed<'_, ()>;
}

impl<B: Backend> Erased for B {
    fn load(&self, id: RecordId) -> Boxed<'_, Option<Record>> {
        Box::pin(Backend::load(self, id))
    }

    fn create(&self, record: Record, terms: Terms) -> Boxed<'_, Created> {
        Box::pin(Backend::create(self, record, terms))
    }

    fn update(&self, expected: i64, record: Record, retry: bool) -> Boxed<'_, Outcome> {
        Box::pin(Backend::update(self, expected, record, retry))
    }

    fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Boxed<'_, ()> {
        Box::pin(Backend::touch(self, id, version, ttl))
    }

    fn delete(&self, id: RecordId) -> Boxed<'_, bool> {
        Box::pin(Backend::delete(self, id))
    }

    fn list(&self, owner: Owner) -> Boxed<'_, Vec<Record>> {
        Box::pin(Backend::list(self, owner))
    }

    fn clear(&self, owner: Owner, clear: Clear) -> Boxed<'_, Cleared> {
        Box::pin(Backend::clear(self, owner, clear))
    }

    fn mark(&self, owner: Owner) -> Boxed<'_, Mark> {
        Box::pin(Backend::mark(self, owner))
    }

    fn scan(&self, after: Option<Cursor>, most: usize) -> Boxed<'_, Page> {
        Box::pin(Backend::scan(self, after, most))
    }

    fn count(&self) -> Boxed<'_, Count> {
        Box::pin(Backend::count(self))
    }

    fn set_clock(&self, clock: Clock) {
        Backend::set_clock(self, clock);
    }

    fn close(&self) -> Boxed<'_, ()> {
        Box::pin(Backend::close(self))
    }
}

impl AnyBackend {
    pub(crate) fn new<B: Backend>(backend: Arc<B>) -> Self {
        Self(backend)
    }
}

// These are not `async fn`s, because each would wrap the boxed future in another future that has to be moved.
impl Backend for AnyBackend {
    fn load(&self, id: RecordId) -> impl Future<Output = Result<Option<Record>>> + Send {
        self.0.load(id)
    }

    fn create(&self, record: Record, terms: Terms) -> impl Future<Output = Result<Created>> + Send {
        self.0.create(record, terms)
    }

    fn update(&self, expected: i64, record: Record, retry: bool) -> impl Future<Output = Result<Outcome>> + Send {
        self.0.update(expected, record, retry)
    }

    fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> impl Future<Output = Result<()>> + Send {
        self.0.touch(id, version, ttl)
    }

    fn delete(&self, id: RecordId) -> impl Future<Output = Result<bool>> + Send {
        self.0.delete(id)
    }

    fn list(&self, owner: Owner) -> impl Future<Output = Result<Vec<Record>>> + Send {
        self.0.list(owner)
    }

    fn clear(&self, owner: Owner, clear: Clear) -> impl Future<Output = Result<Cleared>> + Send {
        self.0.clear(owner, clear)
    }

    fn mark(&self, owner: Owner) -> impl Future<Output = Result<Mark>> + Send {
        self.0.mark(owner)
    }

    fn scan(&self, after: Option<Cursor>, most: usize) -> impl Future<Output = Result<Page>> + Send {
        self.0.scan(after, most)
    }

    fn count(&self) -> impl Future<Output = Result<Count>> + Send {
        self.0.count()
    }

    fn set_clock(&self, clock: Clock) {
        self.0.set_clock(clock);
    }

    fn close(&self) -> impl Future<Output = Result<()>> + Send {
        self.0.close()
    }
}

/// Several [`Sessions`](crate::Sessions) can share one backend in an [`Arc`].
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
