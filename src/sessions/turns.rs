//! One queue per record for the writers of this process, so that only other processes can cause conflicts.

use std::{
    collections::VecDeque,
    hash::BuildHasher,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hashbrown::{DefaultHashBuilder, HashMap, hash_map::Entry};
use tokio::sync::oneshot;

use crate::record::id::RecordId;

/// The records that are being written, each with a queue of waiting writers.
#[derive(Default)]
pub(crate) struct Turns {
    shards: [Mutex<Queues>; 16],
    hasher: DefaultHashBuilder,
}

type Queues = HashMap<RecordId, VecDeque<oneshot::Sender<()>>>;

/// The right to write a record. Dropping it passes it to the next writer.
pub(crate) struct Turn<'a> {
    queues: &'a Mutex<Queues>,
    id: RecordId,
}

/// A place in a queue. Dropping it leaves the queue, and passes on a turn that has already come.
struct QueuedTurn<'a> {
    queues: &'a Mutex<Queues>,
    id: RecordId,
    call: oneshot::Receiver<()>,
}

impl Turns {
    /// Waits for a turn, first come first served.
    pub(crate) async fn take(&self, id: RecordId) -> Turn<'_> {
        let queues = &self.shards[self.hasher.hash_one(id) as usize % self.shards.len()];
        let call = match lock(queues).entry(id) {
            Entry::Vacant(queue) => {
                queue.insert(VecDeque::new());
                return Turn { queues, id };
            }
            Entry::Occupied(mut queue) => {
                let (caller, call) = oneshot::channel();
                queue.get_mut().push_back(caller);
                call
            }
        };
        let mut place = QueuedTurn { queues, id, call };
        // An error would mean that the sender was dropped without a call, which cannot happen.
        let _ = (&mut place.call).await;
        Turn { queues, id }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|queues| lock(queues).len()).sum()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queues = lock(self.queues);
        while let Some(next) = queues.get_mut(&self.id).and_then(VecDeque::pop_front) {
            // A writer that gave up waiting has dropped its receiver.
            if next.send(()).is_ok() {
                return;
            }
        }
        queues.remove(&self.id);
    }
}

impl Drop for QueuedTurn<'_> {
    fn drop(&mut self) {
        self.call.close();
        if self.call.try_recv().is_ok() {
            drop(Turn { queues: self.queues, id: self.id });
        }
    }
}

fn lock(queues: &Mutex<Queues>) -> MutexGuard<'_, Queues> {
    queues.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        pin::{Pin, pin},
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn poll<F: Future>(future: &mut Pin<&mut F>) -> Option<F::Output> {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn id() -> RecordId {
        "AAAAAAAAAAAAAAAAAAAAAA".parse().unwrap()
    }

    #[test]
    fn turns_come_in_order_and_the_last_to_leave_takes_the_queue_along() {
        let turns = Turns::default();
        let (mut first, mut second, mut third) =
            (pin!(turns.take(id())), pin!(turns.take(id())), pin!(turns.take(id())));
        let turn = poll(&mut first).unwrap();
        assert!(poll(&mut second).is_none() && poll(&mut third).is_none());
        drop(turn);
        assert!(poll(&mut third).is_none());
        let turn = poll(&mut second).unwrap();
        drop(turn);
        let turn = poll(&mut third).unwrap();
        assert_eq!(turns.len(), 1);
        drop(turn);
        assert_eq!(turns.len(), 0);
    }

    #[test]
    fn who_gives_up_waiting_keeps_nobody_waiting() {
        let turns = Turns::default();
        let mut last = pin!(turns.take(id()));
        {
            let (mut first, mut second, mut called) =
                (pin!(turns.take(id())), pin!(turns.take(id())), Box::pin(turns.take(id())));
            let turn = poll(&mut first).unwrap();
            assert!(poll(&mut called.as_mut()).is_none() && poll(&mut second).is_none() && poll(&mut last).is_none());
            // One is called, and leaves without having heard it; the next one leaves before.
            drop(turn);
            drop(called);
        }
        assert_eq!(turns.len(), 1);
        drop(poll(&mut last).unwrap());
        assert_eq!(turns.len(), 0);
    }

    /// Many tasks, on threads that do not wait for each other, each of which may give up while it waits or while it writes.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn one_at_a_time_whoever_gives_up() {
        use std::sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        };
        use tokio::task::{JoinSet, yield_now};

        let (turns, writing) = (Arc::new(Turns::default()), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for n in 0..4000_usize {
            let (turns, writing) = (Arc::clone(&turns), Arc::clone(&writing));
            tasks.spawn(async move {
                let patience = async {
                    for _ in 0..n % 7 {
                        yield_now().await;
                    }
                };
                let write = async {
                    let turn = turns.take(id()).await;
                    assert_eq!(writing.fetch_add(1, SeqCst), 0);
                    writing.fetch_sub(1, SeqCst);
                    for _ in 0..n % 3 {
                        yield_now().await;
                    }
                    drop(turn);
                };
                tokio::select! {
                    () = write => {}
                    () = patience, if n % 2 == 0 => {}
                }
            });
        }
        tasks.join_all().await;
        assert_eq!(turns.len(), 0);
    }
}
