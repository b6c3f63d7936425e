//! The future of [`Session::ended`](super::Session::ended).

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use crate::{
    detached::Detached,
    error::Error,
    session::driver::{Bound, Driver},
    sessions::{stream::Stream, watch::Ending},
};

/// The future of [`Session::ended`](crate::Session::ended): resolves to why the session ended.
///
/// It is `'static` and `Unpin`, so `&mut ended` is a future, too. It is fused: after it has resolved, polling it again returns
/// the same answer.
///
/// # Cancel safety
/// You can drop it and make a new one, for example for each message of a socket. What is known, and when the store is polled
/// next, is kept in the [`Session`](crate::Session).
#[must_use = "futures do nothing unless polled"]
pub struct Ended(State);

enum State {
    /// Not polled yet, so it is still open which session it waits for.
    Unbound(Arc<Driver>),
    Loading(Arc<Driver>, Detached<Result<(), Error>>),
    Waiting(Stream),
    /// The request has no session, so the future never resolves.
    Never,
    Done(Ending),
}

impl Ended {
    pub(super) fn new(driver: &Arc<Driver>) -> Self {
        Self(State::Unbound(Arc::clone(driver)))
    }
}

impl Future for Ended {
    type Output = Ending;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ending> {
        loop {
            self.0 = match &mut self.0 {
                State::Unbound(driver) if !driver.pending(|pending| pending.is_loaded()) => {
                    let (driver, loading) = (Arc::clone(driver), Arc::clone(driver));
                    // Detached, so that a handler that makes a new future for each message still completes the load.
                    State::Loading(driver, Detached::new(async move { loading.load().await }, |_| {}))
                }
                State::Loading(driver, loading) => match ready!(Pin::new(loading).poll(cx)) {
                    Ok(()) => State::Unbound(Arc::clone(driver)),
                    Err(_) if driver.engine().watchers().is_closed() => State::Done(Ending::Closed),
                    Err(_) => State::Done(Ending::Unknown),
                },
                State::Unbound(driver) => match driver.bound() {
                    Bound::To(watched) => State::Waiting(Stream::new(Arc::clone(driver.engine()), watched)),
                    Bound::Gone(ending) => State::Done(ending),
                    Bound::ToNothing => State::Never,
                },
                State::Waiting(stream) => State::Done(ready!(stream.poll(cx))),
                State::Never => return Poll::Pending,
                State::Done(ending) => return Poll::Ready(*ending),
            }
        }
    }
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ended").finish_non_exhaustive()
    }
}
