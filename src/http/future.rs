//! The response future: runs the handler, commits its changes, and sends the response.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;

use crate::{
    detached::Detached,
    error::Error,
    http::{
        config::HttpConfig,
        on_early_drop::Guard,
        respond::{refuse, respond},
    },
    session::Session,
};

pin_project! {
    /// The future of a [`SessionService`](crate::SessionService).
    ///
    /// # Cancel safety
    /// If it is dropped while the handler runs, the handler's changes are discarded, except a sign-out. If it is dropped during
    /// the commit, a task finishes the commit.
    pub struct ResponseFuture<F, B> {
        #[pin]
        state: Phase<F, B>,
    }
}

pin_project! {
    #[project = PhaseProj]
    enum Phase<F, B> {
        /// The handler runs.
        Handling { #[pin] inner: F, session: Option<(Guard, Arc<HttpConfig>)> },
        /// The handler has answered, and its changes are being written.
        Committing { #[pin] commit: Detached<Result<(), Error>>, guard: Guard, config: Arc<HttpConfig>, response: Option<Response<B>> },
        /// The handler does not run.
        Refusing { response: Option<Response<B>> },
    }
}

impl<F, B: Default> ResponseFuture<F, B> {
    pub(crate) fn new(inner: F, session: Session, config: Arc<HttpConfig>) -> Self {
        Self { state: Phase::Handling { inner, session: Some((Guard::new(session), config)) } }
    }

    /// Creates a future without a session, because the same layer was already applied outside.
    pub(crate) fn passing(inner: F) -> Self {
        Self { state: Phase::Handling { inner, session: None } }
    }

    pub(crate) fn refusing(error: &Error) -> Self {
        Self { state: Phase::Refusing { response: Some(refuse(error)) } }
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
                PhaseProj::Handling { inner, session } => {
                    let mut response = ready!(inner.poll(cx))?;
                    let Some((mut guard, config)) = session.take() else { return Poll::Ready(Ok(response)) };
                    let commit = guard.session().driver().respond(|| config.is_failure(&mut response));
                    guard.disarm();
                    match commit {
                        None => return Poll::Ready(Ok(respond(&config, guard.session(), Ok(()), response))),
                        Some(commit) => {
                            let response = Some(response);
                            state.set(Phase::Committing { commit, guard, config, response });
                        }
                    }
                }
                PhaseProj::Committing { commit, guard, config, response } => {
                    let committed = ready!(commit.poll(cx));
                    let response = response.take().unwrap_or_default();
                    return Poll::Ready(Ok(respond(config, guard.session(), committed, response)));
                }
                PhaseProj::Refusing { response } => return Poll::Ready(Ok(response.take().unwrap_or_default())),
            }
        }
    }
}

impl<F, B> std::fmt::Debug for ResponseFuture<F, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
