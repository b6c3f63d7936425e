//! Changes on their way from the tasks that want them to the thread that writes them.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::line::Payload;
use crate::{
    error::{Error, ErrorKind},
    record::{
        Record,
        id::{Owner, RecordId},
    },
};

/// A queue with one reader, which takes all there is at a time: that is one batch, and one sync.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    bell: Condvar,
    /// Nothing is read either: the file may belong to somebody else.
    over: AtomicBool,
}

#[derive(Default)]
struct State {
    requests: Vec<Request>,
    size: usize,
    rung: bool,
    closing: bool,
    /// What became of closing, and who waits to hear of it.
    closed: Option<Result<(), Error>>,
    waiting: Vec<oneshot::Sender<Result<(), Error>>>,
}

/// A verb, and who waits for its answer.
pub(super) struct Request {
    pub(super) verb: Verb,
    pub(super) answer: oneshot::Sender<Result<Answer, Error>>,
}

/// What a [`Backend`](crate::Backend) is asked to change.
pub(super) enum Verb {
    Create(New),
    Update { expected: i64, new: New },
    Touch { id: RecordId, version: i64, ttl: Duration },
    Delete { id: RecordId },
    Clear { owner: Owner, keep: Option<RecordId> },
}

/// A [`Record`] whose payload was looked into, as far as its form in the file goes.
pub(super) struct New {
    pub(super) id: RecordId,
    pub(super) version: i64,
    pub(super) ttl: Duration,
    pub(super) payload: Payload,
}

/// How many records it was done to, or what stood in the way.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) count: u64,
    pub(super) conflict: Option<Record>,
}

/// What the reader found.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) requests: Vec<Request>,
    pub(super) closing: bool,
}

impl Inbox {
    /// # Errors
    /// `Unavailable` if it is closed, or if more waits already than the disk can take in a while. Nothing is applied.
    pub(super) fn push(&self, request: Request) -> Result<(), Error> {
        let mut state = self.lock();
        if state.closing {
            return Err(closed());
        }
        let size = request.verb.size();
        if !state.requests.is_empty() && state.size + size > MAX_SIZE {
            return Err(Error::new(ErrorKind::Unavailable, "the disk does not keep up with the changes to sessions"));
        }
        state.size += size;
        state.requests.push(request);
        // The reader takes all there is: it needs to be woken only for the first.
        if state.requests.len() == 1 {
            self.bell.notify_one();
        }
        Ok(())
    }

    /// Wakes the reader, though there may be nothing to take.
    pub(super) fn ring(&self) {
        self.lock().rung = true;
        self.bell.notify_one();
    }

    /// Takes no more.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.bell.notify_one();
    }

    /// As [`close`](Self::close), and gives what tells when everything is done.
    pub(super) fn close_and_tell(&self) -> oneshot::Receiver<Result<(), Error>> {
        let (tell, told) = oneshot::channel();
        let mut state = self.lock();
        state.closing = true;
        match state.closed.clone() {
            // Nobody hears it only if nobody wants to.
            Some(result) => drop(tell.send(result)),
            None => state.waiting.push(tell),
        }
        self.bell.notify_one();
        told
    }

    /// The reader is gone, and this is what became of it.
    pub(super) fn closed(&self, result: Result<(), Error>) {
        let mut state = self.lock();
        state.closing = true;
        state.requests.clear();
        for tell in state.waiting.drain(..) {
            let _ = tell.send(result.clone());
        }
        state.closed.get_or_insert(result);
    }

    /// From now on nothing is read.
    pub(super) fn end_reads(&self) {
        self.over.store(true, SeqCst);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(SeqCst)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().requests.is_empty()
    }

    /// Waits until there is something, or until it was rung or closed, but no longer than that.
    pub(super) fn take(&self, at_most: Option<Duration>) -> Taken {
        let nothing = |state: &mut State| state.requests.is_empty() && !state.rung && !state.closing;
        let state = self.lock();
        let mut state = match at_most {
            None => self.bell.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner),
            Some(time) => self.bell.wait_timeout_while(state, time, nothing).unwrap_or_else(PoisonError::into_inner).0,
        };
        state.rung = false;
        state.size = 0;
        Taken { requests: std::mem::take(&mut state.requests), closing: state.closing }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can stop halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verb {
    /// Whether it is to be done even if nobody waits for it any more: what was to end must not live on because somebody
    /// was in a hurry.
    pub(super) fn ends(&self) -> bool {
        match self {
            Self::Delete { .. } | Self::Clear { .. } => true,
            Self::Update { new, .. } => new.ttl.is_zero(),
            Self::Create(_) | Self::Touch { .. } => false,
        }
    }

    /// Whose life it makes longer.
    pub(super) fn renews(&self) -> Option<RecordId> {
        match self {
            Self::Update { new, .. } => Some(new.id),
            Self::Touch { id, .. } => Some(*id),
            Self::Create(_) | Self::Delete { .. } | Self::Clear { .. } => None,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Create(new) | Self::Update { new, .. } => new.payload.bytes().len() + size_of::<Request>(),
            _ => size_of::<Request>(),
        }
    }
}

impl From<Record> for New {
    fn from(Record { id, version, ttl, payload }: Record) -> Self {
        Self { id, version, ttl, payload: Payload::new(payload) }
    }
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the file of sessions is closed")
}

const MAX_SIZE: usize = 32 << 20;
