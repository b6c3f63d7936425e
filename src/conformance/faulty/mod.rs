//! The faulty backend: a wrapper around any other backend, whose calls fail, wait or change when a test says so.

mod call;
mod faults;
mod gate;

use std::{fmt, sync::Arc, time::Duration};

use self::call::Request;
pub use self::{
    call::{Answer, Call, Verb},
    faults::{Fault, Faults, Hook},
    gate::Gate,
};
use crate::{
    backend::{
        Backend, Outcome, Result,
        clear::{Clear, Cleared},
        scan::{Count, Cursor, Page},
        terms::{Created, Mark, Terms},
    },
    clock::Clock,
    error::BoxError,
    record::{
        Record,
        id::{Owner, RecordId},
    },
};

/// A backend that wraps another one and fails as a network does, when a test says so. Use it to test what an application does
/// while the store is down.
///
/// [`faults`](Self::faults) returns a handle that controls which calls fail, and how. All other calls are passed on. A clone
/// wraps the same backend, with the same faults.
///
/// ```
/// use std::time::Duration;
/// use axum::{Router, body::Body, http::Request, routing::get};
/// use jam_session::{Error, MemoryBackend, Session, SessionLayer, Sessions};
/// use jam_session::conformance::{Fault, Faulty, Verb};
/// use tower::ServiceExt;
///
/// async fn visits(session: Session) -> Result<String, Error> {
///     session.modify("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
///     Ok(format!("visit number {:?}", session.get::<u64>("visits")?))
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let backend = Faulty::new(MemoryBackend::default());
/// let faults = backend.faults();
/// let sessions = Sessions::over(backend).build()?;
/// let app = Router::new().route("/", get(visits)).layer(SessionLayer::new(sessions));
///
/// // A visitor comes while nothing can be stored.
/// faults.next(Verb::Create, Fault::Before);
/// let response = app.clone().oneshot(Request::get("/").body(Body::empty())?).await?;
/// assert_eq!(response.status(), 503);
/// assert!(!response.headers().contains_key("set-cookie"));
///
/// // And again, when it can.
/// let response = app.oneshot(Request::get("/").body(Body::empty())?).await?;
/// assert_eq!(response.status(), 200);
/// assert!(response.headers().contains_key("set-cookie"));
/// assert_eq!(faults.calls(), [Verb::Create, Verb::Create]);
/// # Ok(())
/// # }
/// ```
///
/// An update whose answer was lost may be retried after another request has written. A backend that can lose answers should
/// [recognise the retry](crate::backend#retries). [`MemoryBackend`](crate::MemoryBackend) never loses an
/// answer, so it does not recognise the retry and answers with an error.
pub struct Faulty<B> {
    backend: Arc<B>,
    faults: Faults,
}

impl<B: Backend> Faulty<B> {
    /// Wraps a backend. Nothing fails yet.
    pub fn new(backend: B) -> Self {
        Self { backend: Arc::new(backend), faults: Faults::default() }
    }

    /// Returns the handle that controls which calls fail. Call it before the backend is moved into
    /// [`Sessions`](crate::Sessions).
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    async fn call(&self, request: Request) -> Result<Answer> {
        let mut call = request.call();
        let met = self.faults.meet(&mut call);
        if let Some(first) = met.first {
            first(call.clone()).await;
        }
        let answer = match met.wrong {
            None => request.act(&*self.backend).await,
            Some(fault) => self.goes_wrong(fault, request).await,
        };
        match met.change {
            None => answer,
            Some(change) => change(call, answer).await,
        }
    }

    async fn goes_wrong(&self, fault: Fault, request: Request) -> Result<Answer> {
        let backend = Arc::clone(&self.backend);
        match fault {
            Fault::Before => Err(lost("the request")),
            Fault::After => {
                request.act(&*backend).await?;
                Err(lost("the reply"))
            }
            Fault::Late(gate) => {
                let held = gate.hold();
                tokio::spawn(async move {
                    held.until_open().await;
                    let _ = request.act(&*backend).await;
                });
                Err(lost("the request, for now,"))
            }
            Fault::Twice => {
                let _ = request.clone().act(&*backend).await;
                request.act(&*backend).await
            }
            Fault::Hang => std::future::pending().await,
            Fault::HoldRequest(gate) => {
                let held = gate.hold();
                let acting = tokio::spawn(async move {
                    held.until_open().await;
                    request.act(&*backend).await
                });
                acting.await?
            }
            Fault::HoldReply(gate) => {
                let answer = request.act(&*backend).await;
                gate.hold().until_open().await;
                answer
            }
            // It ran first, or is still to change the answer.
            Fault::Run(_) => request.act(&*backend).await,
        }
    }
}

impl<B: Backend> Backend for Faulty<B> {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        match self.call(Request::Load(id)).await? {
            Answer::Load(record) => Ok(record),
            _ => Err(mistaken()),
        }
    }

    async fn create(&self, record: Record, terms: Terms) -> Result<Created> {
        match self.call(Request::Create(record, terms)).await? {
            Answer::Create(created) => Ok(created),
            _ => Err(mistaken()),
        }
    }

    async fn update(&self, expected: i64, record: Record, retry: bool) -> Result<Outcome> {
        match self.call(Request::Update(expected, record, retry)).await? {
            Answer::Update(outcome) => Ok(outcome),
            _ => Err(mistaken()),
        }
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        match self.call(Request::Touch(id, version, ttl)).await? {
            Answer::Touch => Ok(()),
            _ => Err(mistaken()),
        }
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        match self.call(Request::Delete(id)).await? {
            Answer::Delete(was_live) => Ok(was_live),
            _ => Err(mistaken()),
        }
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        match self.call(Request::List(owner)).await? {
            Answer::List(records) => Ok(records),
            _ => Err(mistaken()),
        }
    }

    async fn clear(&self, owner: Owner, clear: Clear) -> Result<Cleared> {
        match self.call(Request::Clear(owner, clear)).await? {
            Answer::Clear(cleared) => Ok(cleared),
            _ => Err(mistaken()),
        }
    }

    async fn mark(&self, owner: Owner) -> Result<Mark> {
        match self.call(Request::Mark(owner)).await? {
            Answer::Mark(mark) => Ok(mark),
            _ => Err(mistaken()),
        }
    }

    async fn scan(&self, after: Option<Cursor>, most: usize) -> Result<Page> {
        match self.call(Request::Scan(after, most)).await? {
            Answer::Scan(page) => Ok(page),
            _ => Err(mistaken()),
        }
    }

    async fn count(&self) -> Result<Count> {
        match self.call(Request::Count).await? {
            Answer::Count(count) => Ok(count),
            _ => Err(mistaken()),
        }
    }

    fn set_clock(&self, clock: Clock) {
        self.backend.set_clock(clock);
    }

    async fn close(&self) -> Result<()> {
        match self.call(Request::Close).await? {
            Answer::Close => Ok(()),
            _ => Err(mistaken()),
        }
    }
}

impl<B> Clone for Faulty<B> {
    fn clone(&self) -> Self {
        Self { backend: Arc::clone(&self.backend), faults: self.faults.clone() }
    }
}

impl<B> fmt::Debug for Faulty<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").finish_non_exhaustive()
    }
}

fn lost(what: &str) -> BoxError {
    format!("{what} was lost, as a test wanted it").into()
}

/// A test has changed the answer into one of another method.
fn mistaken() -> BoxError {
    "a test changed the answer into that of another method".into()
}
