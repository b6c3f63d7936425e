//! The connection to Redis: reconnects, retries once, and keeps a deadline for each operation.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use redis::{Cmd, Pipeline, RedisResult, Value};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{timeout, timeout_at},
};

use super::{
    failure::{Failure, Kind},
    scripts::{Script, ScriptCall},
    slots::Slots,
    source::{Connection, Source},
};

/// A connection that recovers, over any [`Source`].
///
/// * A connection that was dropped, or whose server became a replica, is replaced, and the operation is sent again, once. Every
///   operation is idempotent; a script is told when its answer was lost.
/// * A connection that only stays silent is kept, because it may answer again. After three silences in a row, another one is
///   opened beside it. Silences are counted by slot, because in a Cluster the answers of other nodes say nothing about a dead
///   one.
/// * The connection of a Cluster reconnects and retries by itself. It is replaced only if that did not help.
/// * At most one attempt to connect is under way, and callers without a connection wait for it. For 20 ms after a failed
///   attempt all callers fail at once; the next caller starts another attempt.
pub(super) struct Link(Arc<LinkInner>);

struct LinkInner {
    source: Source,
    state: Mutex<LinkState>,
    /// The number of attempts to connect that have ended.
    attempts: watch::Sender<u64>,
    strikes: [AtomicU32; PLACES],
}

#[derive(Default)]
struct LinkState {
    connection: Option<Box<dyn Connection>>,
    /// The number of that connection.
    generation: u64,
    since: Option<Instant>,
    building: bool,
    failed: Option<(Instant, Failure)>,
    closed: bool,
    watchers: Vec<AbortHandle>,
}

/// One request to the server, or several that are sent and answered together.
pub(super) enum Operation<'a> {
    One(Cmd),
    Many(Pipeline),
    ByHash(&'a Script, &'a ScriptCall<'a>),
    ByText(&'a Script, &'a ScriptCall<'a>),
}

impl Link {
    pub(super) fn new(source: Source) -> Self {
        Self(Arc::new(LinkInner {
            source,
            state: Mutex::default(),
            attempts: watch::Sender::new(0),
            strikes: [const { AtomicU32::new(0) }; PLACES],
        }))
    }

    pub(super) fn source(&self) -> &Source {
        &self.0.source
    }

    /// Runs a script by its hash, or by its text if the server does not know the hash.
    pub(super) async fn run(
        &self,
        script: &Script,
        call: &ScriptCall<'_>,
        slot: usize,
        until: Instant,
    ) -> Result<Value, Failure> {
        let answers = match self.send(&Operation::ByHash(script, call), slot, until).await {
            Err(failure) if failure.kind == Kind::NoScript => {
                self.send(&Operation::ByText(script, call), slot, until).await
            }
            done => done,
        };
        answers?.pop().ok_or_else(Failure::garbage)
    }

    pub(super) async fn send_one(&self, command: Cmd, slot: usize, until: Instant) -> Result<Value, Failure> {
        self.send(&Operation::One(command), slot, until).await?.pop().ok_or_else(Failure::garbage)
    }

    /// Asks which server holds which slots. `None` if it is not a Cluster, or does not tell.
    pub(super) async fn slots(&self, until: Instant) -> Option<Slots> {
        if !matches!(self.0.source, Source::Cluster(_) | Source::Own(_)) {
            return None;
        }
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        Slots::read(&self.send_one(command, 0, until).await.ok()?)
    }

    /// Sends an operation and returns its answers. If one of them is an error, the operation fails.
    pub(super) async fn send(
        &self,
        request: &Operation<'_>,
        slot: usize,
        until: Instant,
    ) -> Result<Vec<Value>, Failure> {
        let mut waiting = Waiting::begin(self, slot, until);
        let result = timeout_at(until.into(), self.attempt(request)).await.unwrap_or_else(|_| Err(Failure::silent()));
        waiting.end(&result);
        result
    }

    async fn attempt(&self, request: &Operation<'_>) -> Result<Vec<Value>, Failure> {
        let (generation, mut connection) = self.connection().await?;
        let failure = match request.send(connection.as_mut()).await {
            Err(failure) if self.replaces(generation, &failure) => failure,
            done => return done,
        };
        tracing::debug!(%failure, "the connection to Redis is replaced");
        // A replica has written nothing.
        if failure.kind != Kind::Demoted {
            request.was_lost();
        }
        let (_, mut connection) = self.connection().await?;
        request.send(connection.as_mut()).await
    }

    /// Whether to send the operation again, on another connection.
    fn replaces(&self, generation: u64, failure: &Failure) -> bool {
        match (failure.kind, self.0.source.heals()) {
            (Kind::Lost | Kind::Garbage, false) => self.0.forget(generation, Duration::ZERO),
            // A server that was a replica a moment ago still is one.
            (Kind::Demoted, false) => self.0.forget(generation, LEAST_AGE),
            _ => false,
        }
    }

    /// Returns the connection, and opens one if there is none.
    async fn connection(&self) -> Result<(u64, Box<dyn Connection>), Failure> {
        let mut attempts = {
            let state = self.0.state();
            if state.closed {
                return Err(Failure::new(
                    Kind::Lost,
                    "the sessions were closed, and the connection to Redis with them",
                ));
            }
            if let Some(connection) = &state.connection {
                return Ok((state.generation, connection.another()));
            }
            if let Some((at, failure)) = &state.failed
                && at.elapsed() < PAUSE
            {
                return Err(failure.clone());
            }
            // Subscribe before the lock is released: an attempt takes the lock to settle, and ends after that.
            self.0.attempts.subscribe()
        };
        self.0.rebuild(false);
        // An aborted attempt ends, too.
        let _ = attempts.changed().await;
        let state = self.0.state();
        match (&state.connection, &state.failed) {
            (Some(connection), _) => Ok((state.generation, connection.another())),
            (None, Some((_, failure))) => Err(failure.clone()),
            (None, None) => Err(Failure::new(Kind::Lost, "the connection to Redis is gone")),
        }
    }

    /// Follows failovers that the source announces, until [`close`](Self::close) or drop.
    pub(super) fn watch(&self) {
        let weak = Arc::downgrade(&self.0);
        let switched = move || {
            if let Some(shared) = weak.upgrade() {
                let mut state = shared.state();
                let old = state.connection.take();
                // An attempt that is under way may lead to the old master.
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

impl LinkInner {
    /// No code under this lock can panic halfway, so a poisoned lock is used as it is. Nothing foreign is spawned or dropped
    /// under it: a runtime that shuts down drops a spawned task at once, and that drop would wait for the lock.
    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops a connection unless that was done before, and returns whether to retry.
    fn forget(&self, generation: u64, least_age: Duration) -> bool {
        let mut state = self.state();
        if state.generation != generation {
            return true;
        }
        if state.since.is_some_and(|since| since.elapsed() < least_age) {
            return false;
        }
        let old = state.connection.take();
        drop(state);
        drop(old);
        true
    }

    /// Opens a connection if there is none, or `beside` the present one. Does nothing while another attempt is under way.
    ///
    /// It runs in a task of its own, because a caller may be dropped and may have less time than an attempt takes.
    fn rebuild(self: &Arc<Self>, beside: bool) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        {
            let mut state = self.state();
            // Another caller may just have opened one.
            if state.building || state.closed || (state.connection.is_some() && !beside) {
                return;
            }
            state.building = true;
        }
        let building = Building(Arc::clone(self));
        runtime.spawn(async move {
            let source = &building.0.source;
            loop {
                let generation = building.0.state().generation;
                let made = timeout(source.time(), source.connect()).await.unwrap_or_else(|_| Err(Failure::silent()));
                if building.0.settle(generation, made) {
                    break;
                }
            }
        });
    }

    /// Takes over the outcome of an attempt. `false` if the master has changed meanwhile.
    fn settle(&self, generation: u64, made: Result<Box<dyn Connection>, Failure>) -> bool {
        let mut state = self.state();
        let mut old = None;
        match made {
            _ if state.closed => {}
            Ok(_) if state.generation != generation => return false,
            Ok(connection) => {
                old = state.connection.replace(connection);
                state.generation += 1;
                state.since = Some(Instant::now());
                state.failed = None;
                self.strikes.iter().for_each(|strikes| strikes.store(0, Relaxed));
                tracing::debug!("connected to Redis");
            }
            Err(failure) => {
                tracing::debug!(%failure, "Redis cannot be reached");
                state.failed = Some((Instant::now(), failure));
            }
        }
        drop(state);
        drop(old);
        true
    }

    /// Counts a silence, and replaces the connection after too many.
    fn strike(self: &Arc<Self>, slot: usize) {
        let strikes = self.strikes[slot % PLACES].fetch_add(1, Relaxed) + 1;
        if strikes.is_multiple_of(STRIKES) {
            tracing::debug!("Redis does not answer: another connection is opened");
            self.rebuild(true);
        }
    }
}

/// An attempt to connect. When it ends, even because the runtime shuts down, its drop wakes the callers that wait.
struct Building(Arc<LinkInner>);

impl Drop for Building {
    fn drop(&mut self) {
        self.0.state().building = false;
        self.0.attempts.send_modify(|ended| *ended += 1);
    }
}

/// An operation that is under way. If its caller gives up after half of the deadline or more, that counts as a silence, because
/// the caller may have less time than the operation.
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

    fn end(&mut self, result: &Result<Vec<Value>, Failure>) {
        self.ended = true;
        match result {
            Err(failure) if failure.kind == Kind::Silent => self.shared.strike(self.slot),
            // A connection that heals itself gets a few tries.
            Err(failure) if failure.kind == Kind::Lost && self.shared.source.heals() => self.shared.strike(self.slot),
            _ => self.shared.strikes[self.slot % PLACES].store(0, Relaxed),
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

impl Operation<'_> {
    /// Notes that the operation may have been applied although its answer was lost. A script is told.
    fn was_lost(&self) {
        if let Self::ByHash(_, call) | Self::ByText(_, call) = self {
            call.again.store(true, Relaxed);
        }
    }

    async fn send(&self, connection: &mut dyn Connection) -> Result<Vec<Value>, Failure> {
        let one = |answer| vec![answer];
        let answers: RedisResult<Vec<Value>> = match self {
            Self::One(command) => connection.req_packed_command(command).await.map(one),
            Self::Many(pipeline) => connection.req_packed_commands(pipeline, 0, pipeline.len()).await,
            Self::ByHash(script, call) => connection.req_packed_command(&script.by_hash(call)).await.map(one),
            Self::ByText(script, call) => connection.req_packed_command(&script.by_text(call)).await.map(one),
        };
        let answers = answers?;
        let expected = match self {
            Self::Many(pipeline) => pipeline.len(),
            _ => 1,
        };
        if answers.len() != expected {
            return Err(Failure::garbage());
        }
        // `ConnectionLike` may also report a server error as a value.
        for answer in &answers {
            if let Value::ServerError(error) = answer {
                return Err(error.into());
            }
        }
        Ok(answers)
    }
}

const PLACES: usize = 64;
const STRIKES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(20);
const LEAST_AGE: Duration = Duration::from_millis(250);
