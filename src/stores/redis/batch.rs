//! Batches: writes that are ready at the same moment, sent in one script call.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use redis::Value;
use tokio::{runtime::Handle, sync::oneshot, task::yield_now, time::timeout_at};

use super::{
    connection::Link,
    failure::{Failure, FailureKind},
    scripts::{self, ScriptCall},
    time::ServerTime,
    transport::is_driven,
};
use crate::record::id::RecordId;

/// Collects the updates and the visitors' creates to one server, which has all Redis keys.
///
/// The first write of a batch yields once to all other tasks, and then sends what was collected. If its caller gives up, or its
/// runtime stops, the others are sent alone.
#[derive(Default)]
pub(super) struct Batches {
    /// The newest batch, which may be closed.
    last: Mutex<Arc<SwapBatch>>,
}

/// A write on the fast path.
pub(super) struct Swap {
    pub(super) key: String,
    pub(super) id: RecordId,
    /// The head of the value that this one replaces. Empty for a visitor's create, whose Redis key must not exist.
    pub(super) head: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) life: String,
}

/// The result of a write in a batch.
pub(super) enum Batched {
    Done,
    /// The write has to be sent alone. `again` means that it may already have been applied.
    Left {
        again: bool,
    },
}

#[derive(Default)]
struct SwapBatch {
    /// The runtime of the write that sends the batch.
    runtime: Option<Handle>,
    /// `None` once it is closed.
    waiting: Mutex<Option<Vec<WaitingSwap>>>,
}

struct WaitingSwap {
    swap: Swap,
    answer: oneshot::Sender<Result<Batched, Failure>>,
}

/// The write that sends the batch. If it is dropped, the batch is not sent.
struct BatchSender<'a>(&'a SwapBatch);

impl Batches {
    /// Sends a write together with others. If there are none, it is not sent.
    pub(super) async fn send(
        &self,
        swap: Swap,
        until: Instant,
        link: &Link,
        time: &ServerTime,
    ) -> Result<Batched, Failure> {
        let (answer, mut answered) = oneshot::channel();
        let (batch, is_first) = self.join(WaitingSwap { swap, answer });
        if is_first {
            let first = BatchSender(&batch);
            yield_now().await;
            let all = first.0.close();
            if all.len() == 1 {
                return Ok(Batched::Left { again: false });
            }
            send(all, until, link, time).await;
        }
        loop {
            let pulse = (Instant::now() + PULSE).min(until);
            match timeout_at(pulse.into(), &mut answered).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(_)) => return Ok(Batched::Left { again: true }),
                Err(_) if Instant::now() >= until => return Err(Failure::silent()),
                Err(_) if batch.is_driven().await => {}
                Err(_) => {
                    drop(batch.close());
                    return Ok(Batched::Left { again: true });
                }
            }
        }
    }

    /// Returns the batch for a write, and whether the write is its first one.
    fn join(&self, write: WaitingSwap) -> (Arc<SwapBatch>, bool) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = last.add(write);
        let is_first = rest.is_some();
        if let Some(write) = rest {
            let waiting = Mutex::new(Some(vec![write]));
            *last = Arc::new(SwapBatch { runtime: Handle::try_current().ok(), waiting });
        }
        (Arc::clone(&last), is_first)
    }
}

impl SwapBatch {
    /// Adds a write, or returns it if the batch is full.
    fn add(&self, write: WaitingSwap) -> Option<WaitingSwap> {
        match &mut *self.waiting() {
            Some(waiting) if waiting.len() < MAX_WRITES => waiting.push(write),
            _ => return Some(write),
        }
        None
    }

    /// Takes the writes whose callers are still waiting, and closes the batch.
    fn close(&self) -> Vec<WaitingSwap> {
        let mut waiting = self.waiting().take().unwrap_or_default();
        waiting.retain(|write| !write.answer.is_closed());
        waiting
    }

    async fn is_driven(&self) -> bool {
        match &self.runtime {
            Some(runtime) => is_driven(runtime, PULSE).await,
            None => false,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Vec<WaitingSwap>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BatchSender<'_> {
    fn drop(&mut self) {
        drop(self.0.close());
    }
}

/// Sends a batch and answers each write. If this future is dropped, the writes get no answer, and notice that.
async fn send(batch: Vec<WaitingSwap>, until: Instant, link: &Link, time: &ServerTime) {
    let (not_after, window) = (time.at(SLOT, until).to_string(), link.window().to_string());
    let keys: Vec<&str> = batch.iter().map(|write| write.swap.key.as_str()).collect();
    let mut args: Vec<Cow<'_, [u8]>> = vec![not_after.as_bytes().into(), window.as_bytes().into()];
    for WaitingSwap { swap: Swap { id, head, value, life, .. }, .. } in &batch {
        let sid = if id.owner().is_some() { id.sid() } else { "" };
        args.extend([sid.as_bytes(), head, value, life.as_bytes()].map(Cow::from));
    }
    let again = AtomicBool::new(false);
    let call = ScriptCall { keys: &keys, args: &args, age: None, again: &again };
    let sent = Instant::now();
    let left = link.run(&scripts::BATCH, &call, SLOT, until).await.and_then(|answer| {
        let (now, left) = read(answer)?;
        time.learn(SLOT, now, sent, Instant::now());
        Ok(left)
    });
    let again = again.into_inner();
    for (number, WaitingSwap { answer, .. }) in (1..).zip(batch) {
        // The caller may have given up.
        let _ = answer.send(match &left {
            Ok(left) if !left.contains(&number) => Ok(Batched::Done),
            Ok(_) => Ok(Batched::Left { again }),
            // The error may be about another write, and the writes before that one were applied.
            Err(failure) if matches!(failure.kind, FailureKind::OtherType | FailureKind::Refused) => {
                Ok(Batched::Left { again: true })
            }
            Err(failure) => Err(failure.clone()),
        });
    }
}

/// Reads the server's time, and the numbers of the writes that were not applied.
fn read(answer: Value) -> Result<(i64, Vec<i64>), Failure> {
    let number = |value: &Value| match value {
        Value::Int(number) => Ok(*number),
        _ => Err(Failure::garbage()),
    };
    match &answer {
        Value::Int(now) => Ok((*now, Vec::new())),
        Value::Array(all) => match &all[..] {
            [now, left @ ..] => Ok((number(now)?, left.iter().map(number).collect::<Result<_, _>>()?)),
            [] => Err(Failure::garbage()),
        },
        _ => Err(Failure::garbage()),
    }
}

/// A larger batch would delay other operations by more than it saves.
const MAX_WRITES: usize = 32;
/// The slot of the only server.
const SLOT: usize = 0;
/// The interval at which a write checks whether its batch will still be sent.
const PULSE: Duration = Duration::from_millis(50);
