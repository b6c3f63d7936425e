//! The queue of changes, from the tasks to the writer thread.

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc::{self, Receiver, Sender},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    line::{Line, Payload},
    table::Table,
};
use crate::{
    backend::{
        Outcome,
        clear::{Clear, Cleared},
        terms::Created,
    },
    error::{Error, ErrorKind},
    record::{
        Record,
        id::{Owner, RecordId},
    },
    stores::recent::{TermsAt, above},
};

/// The sending side: a channel, a count of the bytes in it, and the result of closing it.
pub(super) struct Queue {
    sender: Sender<Message>,
    /// How many bytes are waiting in the channel.
    size: AtomicUsize,
    closing: AtomicBool,
    /// Whether reads are refused, too, because the file may now belong to another process.
    over: AtomicBool,
    /// How the writer ended.
    ended: OnceLock<Result<(), Error>>,
    /// Dropped when the writer has ended, which [`Queue::closed`] waits for.
    end: Mutex<Vec<oneshot::Sender<()>>>,
}

/// The receiving side. It takes all waiting changes, which become one batch and one sync.
pub(super) struct Incoming(Receiver<Message>);

enum Message {
    Change(QueuedOp),
    /// There is something else to do.
    Wake,
}

/// A change, and where to send its answer.
pub(super) struct QueuedOp {
    pub(super) op: Op,
    pub(super) answer: oneshot::Sender<Result<OpReply, Error>>,
}

/// A change that a [`Backend`](crate::Backend) method asks for.
pub(super) enum Op {
    Create {
        new: Put,
        terms: Box<TermsAt>,
    },
    Update {
        expected: i64,
        new: Put,
        retry: bool,
    },
    Touch {
        id: RecordId,
        version: i64,
        ttl: Duration,
    },
    Delete {
        id: RecordId,
    },
    Clear {
        owner: Owner,
        clear: Clear,
    },
    /// Records in the file what has expired, because a reader has seen it as expired.
    Expire,
}

/// A [`Record`] whose payload was examined for the form that it takes in the file.
pub(super) struct Put {
    pub(super) id: RecordId,
    pub(super) version: i64,
    pub(super) ttl: Duration,
    pub(super) payload: Payload,
}

/// The result of a change.
#[derive(Debug)]
pub(super) enum OpReply {
    Created(Created),
    Updated(Outcome),
    /// Whether there was a record to touch or to delete.
    Found(bool),
    Cleared(Cleared),
    /// There was nothing to do.
    Expired,
}

impl Queue {
    pub(super) fn new() -> (Self, Incoming) {
        let (sender, receiver) = mpsc::channel();
        let queue = Self {
            sender,
            size: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            over: AtomicBool::new(false),
            ended: OnceLock::new(),
            end: Mutex::default(),
        };
        (queue, Incoming(receiver))
    }

    /// # Errors
    /// `Unavailable` if the queue is closed, or holds more than the disk can write for a while. Nothing is applied then.
    pub(super) fn push(&self, request: QueuedOp) -> Result<(), Error> {
        if self.closing.load(SeqCst) {
            return Err(closed());
        }
        let size = request.op.size();
        let before = self.size.fetch_add(size, SeqCst);
        if before > 0 && before + size > MAX_SIZE {
            self.size.fetch_sub(size, SeqCst);
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the disk does not keep up with the changes to sessions: try again later",
            ));
        }
        self.sender.send(Message::Change(request)).map_err(|_| closed())
    }

    /// Wakes the writer, even if there is no change to take.
    pub(super) fn wake(&self) {
        // An error means that the writer has ended.
        let _ = self.sender.send(Message::Wake);
    }

    /// Refuses further changes, and lets the writer end after the waiting ones.
    pub(super) fn close(&self) {
        self.closing.store(true, SeqCst);
        self.wake();
    }

    /// Waits until the writer has ended and released the file, and returns its result.
    pub(super) async fn closed(&self) -> Result<(), Error> {
        let (end, ended) = oneshot::channel();
        {
            let mut waiting = self.end.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push(end);
            // The writer may already have ended. Then nothing else drops the pushed sender.
            if self.ended.get().is_some() {
                waiting.clear();
            }
        }
        let _ = ended.await;
        self.ended.get().cloned().unwrap_or_else(|| Err(closed()))
    }

    /// Records that the writer has ended.
    pub(super) fn ended(&self, result: Result<(), Error>) {
        self.closing.store(true, SeqCst);
        let mut waiting = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.ended.set(result);
        waiting.clear();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(SeqCst)
    }

    /// Refuses reads from now on.
    pub(super) fn end_reads(&self) {
        self.over.store(true, SeqCst);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(SeqCst)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.size.load(SeqCst) == 0
    }

    /// Waits for a change or a wake-up, at most for that long, and takes all waiting changes.
    pub(super) fn take(&self, incoming: &Incoming, at_most: Option<Duration>) -> Vec<QueuedOp> {
        let Incoming(receiver) = incoming;
        let first = match at_most {
            // This queue holds a sender, so the channel cannot be disconnected.
            None => receiver.recv().ok(),
            Some(time) => receiver.recv_timeout(time).ok(),
        };
        let messages = first.into_iter().chain(receiver.try_iter());
        let requests: Vec<QueuedOp> = messages
            .filter_map(|message| match message {
                Message::Change(request) => Some(request),
                Message::Wake => None,
            })
            .collect();
        self.size.fetch_sub(requests.iter().map(|request| request.op.size()).sum(), SeqCst);
        requests
    }
}

impl Op {
    /// Returns whether the change is applied even if its caller has given up: a sign-out must not be lost because a client
    /// disconnected.
    pub(super) fn ends(&self) -> bool {
        match self {
            Self::Delete { .. } | Self::Clear { .. } => true,
            Self::Update { new, .. } => new.ttl.is_zero(),
            Self::Create { .. } | Self::Touch { .. } | Self::Expire => false,
        }
    }

    /// Returns whether the change needs space in the file, because it does more than end records.
    pub(super) fn grows(&self) -> bool {
        !self.ends() && !matches!(self, Self::Expire)
    }

    /// Returns how many bytes the change may add to the file.
    pub(super) fn growth(&self, table: &Table) -> u64 {
        match self {
            _ if !self.grows() => 0,
            Self::Create { new, terms } => {
                // Its line names the records that it ends: those already above the limit, and one that is created before it.
                let above = |(owner, limit)| above(limit, table.count_of(owner)).map_or(0, |above| above + 1);
                let ends = terms.limit_of(new.id.owner()).map_or(0, above) + usize::from(terms.leaves.is_some());
                Line::cost(&new.payload) + Line::SHORT * ends as u64
            }
            Self::Update { new, .. } => Line::cost(&new.payload),
            _ => Line::SHORT,
        }
    }

    /// Returns the record whose life the change extends.
    pub(super) fn extends(&self) -> Option<RecordId> {
        match self {
            Self::Update { new, .. } => Some(new.id),
            Self::Touch { id, .. } => Some(*id),
            Self::Create { .. } | Self::Delete { .. } | Self::Clear { .. } | Self::Expire => None,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Create { new, .. } | Self::Update { new, .. } => new.payload.bytes().len() + size_of::<QueuedOp>(),
            _ => size_of::<QueuedOp>(),
        }
    }
}

impl From<Record> for Put {
    fn from(Record { id, version, ttl, payload, .. }: Record) -> Self {
        Self { id, version, ttl, payload: Payload::new(payload) }
    }
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the file of sessions is closed")
}

const MAX_SIZE: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::terms::Terms;

    fn request(size: usize) -> QueuedOp {
        let id: RecordId = "AAAAAAAAAAAAAAAAAAAAAA".parse().unwrap();
        let payload = Payload::new(vec![0; size].into());
        let op = Op::Create {
            new: Put { id, version: 1, ttl: Duration::ZERO, payload },
            terms: TermsAt::new(Terms::default(), || Duration::ZERO).into(),
        };
        QueuedOp { op, answer: oneshot::channel().0 }
    }

    #[test]
    fn what_waits_is_taken_at_once_and_in_order() {
        let (queue, incoming) = Queue::new();
        for size in [3, 1, 2] {
            queue.push(request(size)).unwrap();
        }
        queue.wake();
        let sizes: Vec<usize> = queue.take(&incoming, None).iter().map(|request| request.op.size()).collect();
        assert_eq!(sizes, [3, 1, 2].map(|size| size + size_of::<QueuedOp>()));
        assert!(queue.is_empty() && queue.take(&incoming, Some(Duration::ZERO)).is_empty());
    }

    #[test]
    fn a_full_queue_refuses_changes_until_they_are_taken() {
        let (queue, incoming) = Queue::new();
        // One change is always accepted, however large.
        queue.push(request(MAX_SIZE + 1)).unwrap();
        assert_eq!(queue.push(request(1)).unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(queue.take(&incoming, None).len(), 1);
        queue.push(request(1)).unwrap();
    }

    #[tokio::test]
    async fn whoever_closes_hears_how_it_ended_however_late() {
        let (queue, incoming) = Queue::new();
        queue.close();
        assert!(queue.push(request(1)).is_err() && queue.take(&incoming, None).is_empty() && queue.is_closing());
        let (first, ()) = tokio::join!(queue.closed(), async { queue.ended(Err(closed())) });
        assert!(first.is_err());
        queue.ended(Ok(()));
        assert!(queue.closed().await.is_err());
    }
}
