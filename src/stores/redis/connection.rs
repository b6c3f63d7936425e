//! A connection that comes back: one deadline for each operation, one rebuild at a time, one repeat.

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
    source::{Connection, Source},
};

/// Any connection, made to recover.
///
/// * What is dropped, or has become a replica, is replaced, and the operation repeated once. All operations may be; a script is
///   told when its answer was lost.
/// * What only stays silent is kept, for it may answer again; after three times in a row its replacement is made beside it.
///   They are counted by slot: in a Cluster, the other nodes' answers say nothing about a dead one.
/// * A Cluster's connection heals what is dropped by itself, and repeats; it is replaced only when that did not help.
/// * Whoever finds no connection waits for the one attempt that is under way; after a failure the next one is made by whoever
///   comes 20 ms later, and until then all others fail at once.
pub(super) struct Link(Arc<LinkInner>);

struct LinkInner {
    source: Source,
    state: Mutex<LinkState>,
    /// How many attempts to connect have ended.
    attempts: watch::Sender<u64>,
    strikes: [AtomicU32; PLACES],
}

#[derive(Default)]
struct LinkState {
    connection: Option<Box<dyn Connection>>,
    /// Which connection that is.
    generation: u64,
    since: Option<Instant>,
    building: bool,
    failed: Option<(Instant, Failure)>,
    closed: bool,
    watchers: Vec<AbortHandle>,
}

/// What is sent at once, and answered at once.
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

    /// Runs a script, by its hash and, if the server does not know that, by its text.
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

    /// Sends, and gives the answers, none of which is an error.
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
        tracing::debug!(%failure, "a connection to Redis is replaced");
        // Who was found to be a replica has written nothing.
        if failure.kind != Kind::Demoted {
            request.was_lost();
        }
        let (_, mut connection) = self.connection().await?;
        request.send(connection.as_mut()).await
    }

    /// Whether to try again, with another connection if there can be one.
    fn replaces(&self, generation: u64, failure: &Failure) -> bool {
        match (failure.kind, self.0.source.heals()) {
            (Kind::Lost | Kind::Garbage, false) => self.0.forget(generation, Duration::ZERO),
            // Whoever was just asked and found to be a replica will not have changed by now.
            (Kind::Demoted, false) => self.0.forget(generation, LEAST_AGE),
            _ => false,
        }
    }

    /// The connection, made if there is none.
    async fn connection(&self) -> Result<(u64, Box<dyn Connection>), Failure> {
        let mut attempts = {
            let state = self.0.state();
            if state.closed {
                return Err(Failure::new(Kind::Lost, "the connection to Redis is closed"));
            }
            if let Some(connection) = &state.connection {
                return Ok((state.generation, connection.another()));
            }
            if let Some((at, failure)) = &state.failed
                && at.elapsed() < PAUSE
            {
                return Err(failure.clone());
            }
            // Before the lock is let go of: an attempt settles under it, and ends after that.
            self.0.attempts.subscribe()
        };
        self.0.rebuild(false);
        // An attempt that was aborted has ended as well.
        let _ = attempts.changed().await;
        let state = self.0.state();
        match (&state.connection, &state.failed) {
            (Some(connection), _) => Ok((state.generation, connection.another())),
            (None, Some((_, failure))) => Err(failure.clone()),
            (None, None) => Err(Failure::new(Kind::Lost, "the connection to Redis is gone")),
        }
    }

    /// Follows what the source has to tell, until [closed](Self::close) or dropped.
    pub(super) fn watch(&self) {
        let weak = Arc::downgrade(&self.0);
        let switched = move || {
            if let Some(shared) = weak.upgrade() {
                let mut state = shared.state();
                let old = state.connection.take();
                // What is being built may be to the one that was.
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
    /// Nothing that is done under the lock can stop halfway. Nor is anything spawned or dropped under it that is not ours:
    /// a runtime that shuts down drops at once what it is given, and that would wait for the lock.
    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops a connection, unless that has been done, and says whether it may be tried anew.
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

    /// Makes a connection if there is none, or also beside the one there is, unless that is being done. In a task of its own:
    /// whoever waits for it may go away, and it may take longer than one of them has.
    fn rebuild(self: &Arc<Self>, beside: bool) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        {
            let mut state = self.state();
            // Somebody else may just have made one.
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

    /// Takes what was made, unless it was overtaken.
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

    /// Counts a silence, and replaces the connection when there were too many.
    fn strike(self: &Arc<Self>, slot: usize) {
        let strikes = self.strikes[slot % PLACES].fetch_add(1, Relaxed) + 1;
        if strikes.is_multiple_of(STRIKES) {
            tracing::debug!("Redis is silent: another connection is tried");
            self.rebuild(true);
        }
    }
}

/// An attempt to connect. However it ends, also with the runtime, those who wait are told.
struct Building(Arc<LinkInner>);

impl Drop for Building {
    fn drop(&mut self) {
        self.0.state().building = false;
        self.0.attempts.send_modify(|ended| *ended += 1);
    }
}

/// An operation under way. Whoever gave up waiting, after a good part of the time, counts as not answered: the caller may have
/// less time than the operation.
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
            // A connection that heals itself is given a few tries.
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
    /// It may have been done all the same: from now on, it says so.
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
        // An error that the server answered is not always an `Err` down here.
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
