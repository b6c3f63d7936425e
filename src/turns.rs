//! Those who write one record take turns, so that conflicts are only with other processes.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use crate::RecordId;

/// One queue for each record that somebody is writing.
#[derive(Default)]
pub(crate) struct Turns {
    shards: [Mutex<Queues>; 16],
    hasher: RandomState,
}

type Queues = HashMap<RecordId, Arc<tokio::sync::Mutex<()>>>;

/// Holding this is one's turn.
pub(crate) struct Turn<'a> {
    queues: &'a Mutex<Queues>,
    id: RecordId,
    guard: Option<OwnedMutexGuard<()>>,
    queue: Option<Arc<tokio::sync::Mutex<()>>>,
}

impl Turns {
    /// Waits behind those who came first.
    pub(crate) async fn take(&self, id: RecordId) -> Turn<'_> {
        let queues = &self.shards[self.hasher.hash_one(id) as usize % self.shards.len()];
        let queue = Arc::clone(queues.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default());
        // From here on, giving up waiting cleans up as well.
        let mut turn = Turn { queues, id, guard: None, queue: Some(Arc::clone(&queue)) };
        turn.guard = Some(queue.lock_owned().await);
        turn
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|queues| queues.lock().unwrap().len()).sum()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        self.guard = None;
        self.queue = None;
        if queues.get(&self.id).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            queues.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn the_last_to_leave_takes_the_queue_along() {
        let turns = Turns::default();
        let id: RecordId = "AAAAAAAAAAAAAAAAAAAAAA".parse().unwrap();
        let first = turns.take(id).await;
        {
            let mut second = std::pin::pin!(turns.take(id));
            poll_fn(|cx| {
                assert!(second.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
        }
        assert_eq!(turns.len(), 1);
        drop(first);
        assert_eq!(turns.len(), 0);
    }
}
