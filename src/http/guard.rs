//! What becomes of a request that is dropped: its sign-out, and what was being written.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::runtime::Handle;

use crate::{
    error::Error,
    session::{Session, When},
};

/// A request on its way through the handler. Dropped there, by a panic or because the client left, it still signs out.
pub(crate) struct Visit(Option<Session>);

impl Visit {
    pub(crate) fn new(session: Session) -> Self {
        Self(Some(session))
    }

    /// The handler has answered.
    pub(crate) fn end(mut self) -> Option<Session> {
        self.0.take()
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // An unfinished commit that is dropped goes on in a task.
        drop(self.0.take().and_then(|session| session.abandon()));
    }
}

/// A commit that, once begun, runs to its end: dropped before, it goes on in a task of its own.
///
/// Sessions that are being closed wait for it from the moment it is made.
pub(crate) struct Commit {
    session: Session,
    when: When,
    work: Option<Pin<Box<Work>>>,
    ended: bool,
}

type Work = dyn Future<Output = Result<(), Error>> + Send;

impl Commit {
    pub(crate) fn new(session: Session, when: When) -> Self {
        let permit = session.permit();
        let work = session.clone().commit(when, permit);
        Self { session, when, work: Some(Box::pin(work)), ended: false }
    }
}

impl Future for Commit {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(mut work) = self.work.take() else { return Poll::Ready(Ok(())) };
        // Not put back if it panics: nobody can go on with that.
        let result = work.as_mut().poll(cx);
        self.ended = result.is_ready();
        if result.is_pending() {
            self.work = Some(work);
        }
        result
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        let work = match self.work.take() {
            Some(work) => work,
            // A closure of the handler has panicked in it. That takes no sign-out back.
            None if !self.ended && self.when != When::Save && self.session.has_endings() => {
                let permit = self.session.permit();
                Box::pin(self.session.clone().commit(When::Failure, permit))
            }
            None => return,
        };
        match Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move {
                    if let Err(error) = work.await {
                        tracing::warn!(%error, "what a request without a client recorded was not written");
                    }
                });
            }
            Err(_) => tracing::warn!("what a request recorded was not written: there is no runtime any more"),
        }
    }
}
