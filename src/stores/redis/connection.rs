//! The connection to Redis: reconnecting, one retry, and a deadline for each operation.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use redis::{Cmd, Value};
use tokio::{task::AbortHandle, time::timeout_at};

use super::{
    failure::{Failure, FailureKind, LOST},
    operation::Operation,
    reconnect::LinkInner,
    scripts::{Script, ScriptCall},
    slots::Slots,
    source::{Channel, Source},
    transport::is_driven,
};
use crate::{clock::millis, log};

/// A connection over any [`Source`] that recovers from failures.
///
/// * If a connection was lost, or its server became a replica, it is replaced, and the operation is sent once more. Every
///   operation is idempotent; a script is told when its answer was lost.
/// * If a connection is only silent, it is kept, because it may answer again. After three silences in a row, another
///   connection is opened beside it. Silences are counted per server, because in a Cluster the answers of other nodes say
///   nothing about a dead one.
/// * If the runtime of a connection has stopped, the connection is replaced by one on the caller's runtime.
/// * The connection of a Cluster reconnects and retries by itself. It is replaced only if that did not help.
/// * Only one attempt to connect runs at a time, and callers without a connection wait for it. For 20 ms after a failed attempt,
///   all callers fail at once; the next caller after that starts another attempt.
pub(super) struct Link(Arc<LinkInner>);

impl Link {
    pub(super) fn new(source: Source, deadline: Duration) -> Self {
        Self(Arc::new(LinkInner::new(source, deadline)))
    }

    pub(super) fn source(&self) -> &Source {
        &self.0.source
    }

    /// Returns the number of the connection, or of the last one. It changes when the server changes or restarts.
    pub(super) fn generation(&self) -> u64 {
        self.0.state().generation
    }

    /// Returns when to give up a background query that no request waits for.
    pub(super) fn patience(&self) -> Instant {
        Instant::now() + self.0.deadline.max(Duration::from_secs(2))
    }

    /// Returns how far ahead of the server's time the deadline of a write may be, in milliseconds.
    pub(super) fn window(&self) -> u64 {
        millis(self.0.deadline) + CLOCK_SLACK
    }

    pub(super) async fn send_one(&self, command: Cmd, slot: usize, until: Instant) -> Result<Value, Failure> {
        self.send(&Operation::One(command), slot, until).await
    }

    /// Runs a script by its hash, or by its text if the server does not know the hash.
    pub(super) async fn run(
        &self,
        script: &Script,
        call: &ScriptCall<'_>,
        slot: usize,
        until: Instant,
    ) -> Result<Value, Failure> {
        match self.send(&Operation::ByHash(script, call), slot, until).await {
            Err(failure) if failure.kind == FailureKind::NoScript => {
                self.send(&Operation::ByText(script, call), slot, until).await
            }
            done => done,
        }
    }

    /// Asks which server holds which slots. Returns `None` if it is not a Cluster, or does not answer.
    pub(super) async fn slots(&self) -> Option<Slots> {
        if !matches!(self.0.source, Source::Cluster(_) | Source::Own(_)) {
            return None;
        }
        Slots::read(&self.send_one(Slots::question(), 0, self.patience()).await.ok()?)
    }

    /// Sends an operation and returns its answer. An error fails the operation.
    pub(super) async fn send(&self, operation: &Operation<'_>, slot: usize, until: Instant) -> Result<Value, Failure> {
        let mut waiting = Waiting::begin(self, slot, until);
        let result = self.send_within(operation, waiting.since, until).await;
        let result = result.unwrap_or_else(|| Err(Failure::silent()));
        waiting.end(&result);
        result
    }

    /// Returns `None` if the time is up. Most operations finish before the first pulse.
    async fn send_within(
        &self,
        operation: &Operation<'_>,
        since: Instant,
        until: Instant,
    ) -> Option<Result<Value, Failure>> {
        let used = AtomicU64::new(NONE);
        // A separate block, so that the second attempt can reuse its space in the future.
        {
            let mut attempt = pin!(self.attempt(operation, &used));
            let mut pulse = since + PULSE;
            loop {
                if let Ok(result) = timeout_at(pulse.min(until).into(), attempt.as_mut()).await {
                    return Some(result);
                }
                if pulse >= until {
                    return None;
                }
                if self.waits_in_vain(used.load(Relaxed)).await {
                    break;
                }
                pulse = Instant::now() + PULSE;
            }
        }
        log::debug!("an operation was waiting on a closed connection to Redis, and is sent again");
        if used.load(Relaxed) != NONE {
            operation.was_lost();
        }
        timeout_at(until.into(), self.attempt(operation, &used)).await.ok()
    }

    /// Sets `used` to the number of the connection that it waits for.
    async fn attempt(&self, operation: &Operation<'_>, used: &AtomicU64) -> Result<Value, Failure> {
        let (generation, mut channel) = self.connection().await?;
        used.store(generation, Relaxed);
        let failure = match operation.send(&mut channel).await {
            Err(failure) if self.replaces(generation, &failure) => failure,
            done => return done,
        };
        log::debug!(error = %failure, "replacing the connection to Redis");
        // A replica has not written anything.
        if failure.kind != FailureKind::Demoted {
            operation.was_lost();
        }
        used.store(NONE, Relaxed);
        let (generation, mut channel) = self.connection().await?;
        used.store(generation, Relaxed);
        operation.send(&mut channel).await
    }

    /// Returns whether a slow operation will never complete. `used` is the connection that it was sent on, if any.
    ///
    /// * The connection was replaced, or its task has ended. A request that is handed over at that moment is lost silently.
    /// * The runtime that drives or opens the connection exists, but is no longer running.
    async fn waits_in_vain(&self, used: u64) -> bool {
        let runtime = {
            let state = self.0.state();
            match (&state.connection, &state.building) {
                _ if state.closed => return false,
                (Some(there), _) if used == state.generation && !there.has_ended() => there.runtime.clone(),
                (None, Some(building)) if used == NONE => Some(building.runtime.clone()),
                _ if used == NONE => return false,
                _ => None,
            }
        };
        match runtime {
            Some(runtime) if is_driven(&runtime, PULSE).await => return false,
            Some(_) if used == NONE => self.0.abandon(),
            _ => drop(self.0.forget(used, Duration::ZERO)),
        }
        true
    }

    /// Returns whether to send the operation again on another connection.
    fn replaces(&self, generation: u64, failure: &Failure) -> bool {
        match (failure.kind, self.0.source.heals()) {
            (FailureKind::Lost | FailureKind::Garbage, false) => self.0.forget(generation, Duration::ZERO),
            // It can recover by itself only while its runtime is running.
            (FailureKind::Lost, true) => self.0.has_ended(generation) && self.0.forget(generation, Duration::ZERO),
            // This connection is still to the replica.
            (FailureKind::Demoted, false) => self.0.forget(generation, LEAST_AGE),
            _ => false,
        }
    }

    /// Returns the connection, and opens one if there is none.
    async fn connection(&self) -> Result<(u64, Channel), Failure> {
        // An attempt may be abandoned, or end with its runtime. Then this caller makes the second one.
        for _ in 0..2 {
            let mut attempts = {
                let state = self.0.state();
                if state.closed {
                    return Err(CLOSED);
                }
                if let Some(there) = &state.connection {
                    return Ok((state.generation, there.channel.another()));
                }
                if let Some((at, failure)) = &state.failed
                    && at.elapsed() < PAUSE
                {
                    return Err(failure.clone());
                }
                // Subscribe before the lock is released. An attempt takes the lock to settle and ends after that, so its end
                // cannot be missed.
                self.0.attempts.subscribe()
            };
            let began = Instant::now();
            self.0.rebuild(false);
            let _ = attempts.changed().await;
            let state = self.0.state();
            match (&state.connection, &state.failed) {
                (Some(there), _) => return Ok((state.generation, there.channel.another())),
                (None, Some((at, failure))) if *at >= began => return Err(failure.clone()),
                (None, _) => {}
            }
        }
        Err(LOST)
    }

    /// Follows failovers that the source announces, until [`close`](Self::close) or drop.
    pub(super) fn watch(&self) {
        let weak = Arc::downgrade(&self.0);
        let switched = move || {
            if let Some(shared) = weak.upgrade() {
                let mut state = shared.state();
                let old = state.connection.take();
                // A pending attempt may lead to the old master.
                state.generation += 1;
                drop(state);
                drop(old);
            }
        };
        let watchers = self.0.source.watch(switched);
        self.0.state().watchers.extend(watchers);
    }

    pub(super) fn close(&self) {
        let mut state = self.0.state();
        state.closed = true;
        let old = state.connection.take();
        let watchers = std::mem::take(&mut state.watchers);
        drop(state);
        drop(old);
        watchers.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// A pending operation. If its caller gives up after at least half of the deadline, that counts as a silence, because the
/// caller may have less time than the operation.
struct Waiting<'a> {
    shared: &'a Arc<LinkInner>,
    slot: usize,
    since: Instant,
    patience: Duration,
    ended: bool,
}

impl<'a> Waiting<'a> {
    fn begin(link: &'a Link, slot: usize, until: Instant) -> Self {
        let since = Instant::now();
        let patience = until.saturating_duration_since(since) / 2;
        Self { shared: &link.0, slot, since, patience, ended: false }
    }

    fn end(&mut self, result: &Result<Value, Failure>) {
        self.ended = true;
        match result {
            Err(failure) if failure.kind == FailureKind::Silent => self.shared.strike(self.slot),
            // A connection that recovers by itself gets a few tries.
            Err(failure) if failure.kind == FailureKind::Lost && self.shared.source.heals() => {
                self.shared.strike(self.slot)
            }
            _ => self.shared.silences.end(self.slot),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.ended && self.since.elapsed() >= self.patience {
            self.shared.strike(self.slot);
        }
    }
}

const CLOSED: Failure =
    Failure::new(FailureKind::Lost, "the connection to Redis is closed, because the sessions were closed");
/// The interval at which a slow operation checks whether its connection still works.
const PULSE: Duration = Duration::from_millis(50);
/// A number that no connection has.
const NONE: u64 = 0;
/// The tolerance when comparing clocks, in milliseconds. Even with the longest deadline, the window of a write is far shorter
/// than the time for which an ended record is remembered.
const CLOCK_SLACK: u64 = 1_000;
const PAUSE: Duration = Duration::from_millis(20);
const LEAST_AGE: Duration = Duration::from_millis(250);
