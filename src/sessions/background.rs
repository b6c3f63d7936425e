//! Background work, and the permits that closing waits for.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{error::Error, record::id::RecordId};

/// The pending work of requests and of background tasks.
pub(crate) struct Background {
    /// Each call holds one permit. Closing acquires all of them.
    open: Arc<Semaphore>,
    /// The records that are being touched.
    touching: Mutex<HashSet<RecordId>>,
}

/// A permit that keeps the sessions open while it is held.
pub(crate) type Permit = OwnedSemaphorePermit;

/// Marks a record as being touched, until it is dropped.
pub(crate) struct Touching {
    background: Arc<Background>,
    id: RecordId,
}

/// Runs a closure when it is dropped, unless it was [disarmed](Self::disarm).
pub(crate) struct OnDrop<F: FnOnce()>(Option<F>);

impl Background {
    /// Returns a permit. Fails once the sessions are being closed. Only the outermost call takes one.
    pub(crate) fn permit(&self) -> Result<Permit, Error> {
        Arc::clone(&self.open).try_acquire_owned().map_err(|_| Error::closed())
    }

    /// Waits until all permits are returned, and refuses new ones.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        let permits = self.open.acquire_many(PERMITS).await.map_err(|_| Error::closed())?;
        self.open.close();
        drop(permits);
        Ok(())
    }

    /// Marks a record as being touched. Returns `None` if it already is.
    pub(crate) fn touching(self: &Arc<Self>, id: RecordId) -> Option<Touching> {
        let is_first = self.touching.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        is_first.then(|| Touching { background: Arc::clone(self), id })
    }
}

impl Default for Background {
    fn default() -> Self {
        Self { open: Arc::new(Semaphore::new(PERMITS as usize)), touching: Mutex::default() }
    }
}

impl Drop for Touching {
    fn drop(&mut self) {
        self.background.touching.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl<F: FnOnce()> OnDrop<F> {
    pub(crate) fn new(run: F) -> Self {
        Self(Some(run))
    }

    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(run) = self.0.take() {
            run();
        }
    }
}

const PERMITS: u32 = 1 << 28;

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    #[test]
    fn closing_waits_for_permits_and_gives_no_more() {
        let background = Background::default();
        let permit = background.permit().unwrap();
        let mut closing = pin!(background.close());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(closing.as_mut().poll(&mut cx).is_pending());
        assert!(background.permit().is_err());
        drop(permit);
        assert!(matches!(closing.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
        assert!(background.permit().is_err());
    }

    #[test]
    fn a_record_is_touched_once_at_a_time() {
        let background = Arc::new(Background::default());
        let id = "AAAAAAAAAAAAAAAAAAAAAA".parse().unwrap();
        let touching = background.touching(id).unwrap();
        assert!(background.touching(id).is_none());
        drop(touching);
        assert!(background.touching(id).is_some());
    }

    #[test]
    fn what_is_disarmed_does_not_run() {
        let runs = Cell::new(0);
        let count = || runs.set(runs.get() + 1);
        drop(OnDrop::new(count));
        OnDrop::new(count).disarm();
        assert_eq!(runs.get(), 1);
    }
}
