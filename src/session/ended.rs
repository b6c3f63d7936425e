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
/// It is `'static`, and needs no pinning: `&mut ended` is a future too. Once it has resolved it is ready with the same answer for
/// ever.
///
/// # Cancel safety
/// Dropped and made again, for each message of a socket for instance, it still finds out: what is known, and when the store is to
/// be asked next, is kept with the [`Session`](crate::Session).
#[must_use = "futures do nothing unless polled"]
pub struct Ended(State);

enum State {
    /// It was not polled yet, so it may be any session.
    Unbound(Arc<Driver>),
    Loading(Arc<Driver>, Detached<Result<(), Error>>),
    Waiting(Stream),
    /// There is no session.
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
                    // Who makes a new future for each message does not load for ever.
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
