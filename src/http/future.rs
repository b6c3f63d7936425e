//! What the service answers with: the inner response, once what was recorded is written back.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;

use crate::{
    http::{
        guard::{Commit, Visit},
        service::{close, finish},
    },
    session::Session,
};

pin_project! {
    /// The future of a [`SessionService`](crate::SessionService).
    ///
    /// Dropped while the handler runs, it takes back what the handler recorded, but for a sign-out. Dropped while that is
    /// being written, it leaves the writing to a task.
    pub struct ResponseFuture<F, B> {
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B> {
        /// The handler has the request.
        Handling { #[pin] inner: F, visit: Option<Visit> },
        /// The handler has answered; what it recorded is being written.
        Committing { session: Session, response: Option<Response<B>>, commit: Commit },
        /// No handler gets the request.
        Refusing { response: Option<Response<B>> },
    }
}

impl<F, B> ResponseFuture<F, B> {
    pub(crate) fn new(inner: F, session: Session) -> Self {
        Self { state: State::Handling { inner, visit: Some(Visit::new(session)) } }
    }

    /// Without a session of this layer: it was passed already.
    pub(crate) fn passing(inner: F) -> Self {
        Self { state: State::Handling { inner, visit: None } }
    }

    pub(crate) fn refusing(response: Response<B>) -> Self {
        Self { state: State::Refusing { response: Some(response) } }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Default,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Handling { inner, visit } => {
                    let response = ready!(inner.poll(cx))?;
                    let Some(session) = visit.take().and_then(Visit::end) else { return Poll::Ready(Ok(response)) };
                    match close(&session, &response) {
                        None => return Poll::Ready(Ok(finish(&session, Ok(()), response))),
                        Some(commit) => state.set(State::Committing { session, response: Some(response), commit }),
                    }
                }
                StateProj::Committing { session, response, commit } => {
                    let committed = ready!(Pin::new(commit).poll(cx));
                    let response = response.take().unwrap_or_default();
                    return Poll::Ready(Ok(finish(session, committed, response)));
                }
                StateProj::Refusing { response } => return Poll::Ready(Ok(response.take().unwrap_or_default())),
            }
        }
    }
}

impl<F, B> std::fmt::Debug for ResponseFuture<F, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
