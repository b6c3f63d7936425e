//! The current connection to Redis, and the attempts to open one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::watch, task::AbortHandle, time::timeout};

use super::{
    failure::Failure,
    operation::Operation,
    silences::Silences,
    slots::Slots,
    source::{Established, Source},
};
use crate::log;

/// What the clones of a connection and its attempts share.
pub(super) struct LinkInner {
    pub(super) source: Source,
    pub(super) deadline: Duration,
    pub(super) state: Mutex<LinkState>,
    /// The number of finished attempts to connect.
    pub(super) attempts: watch::Sender<u64>,
    pub(super) silences: Silences,
}

#[derive(Default)]
pub(super) struct LinkState {
    pub(super) connection: Option<Established>,
    /// The number of the current connection, or of the last one.
    pub(super) generation: u64,
    pub(super) since: Option<Instant>,
    pub(super) building: Option<Connecting>,
    /// The number of the last attempt.
    begun: u64,
    pub(super) failed: Option<(Instant, Failure)>,
    pub(super) closed: bool,
    pub(super) watchers: Vec<AbortHandle>,
}

/// A pending attempt to connect.
pub(super) struct Connecting {
    number: u64,
    pub(super) runtime: Handle,
}

impl LinkInner {
    pub(super) fn new(source: Source, deadline: Duration) -> Self {
        let silences = Silences::new(source.heals());
        let attempts = watch::Sender::new(0);
        Self { source, deadline, state: Mutex::default(), attempts, silences }
    }

    /// No code under this lock can panic halfway, so a poisoned lock can be used. No task is spawned or dropped under it,
    /// because a runtime that shuts down drops a spawned task at once, and that drop would wait for the lock.
    pub(super) fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a connection was replaced, or will never answer.
    pub(super) fn has_ended(&self, generation: u64) -> bool {
        let state = self.state();
        state.generation != generation || state.connection.as_ref().is_none_or(Established::has_ended)
    }

    /// Drops a connection, unless it was already dropped, and returns whether to retry.
    pub(super) fn forget(&self, generation: u64, least_age: Duration) -> bool {
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

    /// Opens a connection if there is none. With `beside`, it opens one even if there is one, which stays in use until the new
    /// one is ready. Does nothing while another attempt is running.
    ///
    /// It runs in a separate task, because a caller may be dropped, and may have less time than an attempt takes.
    pub(super) fn rebuild(self: &Arc<Self>, beside: bool) {
        let Ok(runtime) = Handle::try_current() else { return };
        let building = {
            let mut state = self.state();
            // Another caller may just have opened one.
            if state.building.is_some() || state.closed || (state.connection.is_some() && !beside) {
                return;
            }
            state.begun += 1;
            let number = state.begun;
            state.building = Some(Connecting { number, runtime: runtime.clone() });
            Building { link: Arc::clone(self), number }
        };
        runtime.spawn(async move {
            let link = Arc::clone(&building.link);
            loop {
                let generation = link.state().generation;
                let made = timeout(link.source.time(link.deadline), link.source.connect(link.deadline)).await;
                if link.settle(building.number, generation, made.unwrap_or_else(|_| Err(Failure::silent()))) {
                    break;
                }
            }
            drop(building);
            link.learn_servers().await;
        });
    }

    /// Abandons an attempt whose runtime has stopped, so that another one can be made.
    pub(super) fn abandon(&self) {
        self.state().building = None;
        self.attempts.send_modify(|ended| *ended += 1);
    }

    /// Takes the outcome of an attempt. Returns `false` if the master has changed in the meantime.
    fn settle(&self, number: u64, generation: u64, made: Result<Established, Failure>) -> bool {
        let mut state = self.state();
        let mut old = None;
        match made {
            _ if state.closed => {}
            // The attempt was abandoned, and another one is running.
            _ if state.building.as_ref().is_none_or(|building| building.number != number) => {}
            Ok(_) if state.generation != generation => return false,
            Ok(connection) => {
                old = state.connection.replace(connection);
                state.generation += 1;
                state.since = Some(Instant::now());
                state.failed = None;
                self.silences.forget();
                log::debug!("connected to Redis");
            }
            Err(failure) => {
                log::debug!(error = %failure, "Redis cannot be reached");
                state.failed = Some((Instant::now(), failure));
            }
        }
        drop(state);
        drop(old);
        true
    }

    /// Asks a Cluster which server holds which slots.
    async fn learn_servers(&self) {
        if !self.source.heals() {
            return;
        }
        let Some(mut channel) = self.state().connection.as_ref().map(|there| there.channel.another()) else {
            return;
        };
        let question = Operation::One(Slots::question());
        if let Ok(Ok(answer)) = timeout(self.deadline, question.send(&mut channel)).await
            && let Some(slots) = Slots::read(&answer)
        {
            self.silences.learn(&slots);
        }
    }

    /// Counts a silence, and replaces the connection after too many.
    pub(super) fn strike(self: &Arc<Self>, slot: usize) {
        if self.silences.are_too_many(slot) {
            log::debug!("Redis does not answer: opening another connection");
            self.rebuild(true);
        }
    }
}

/// An attempt to connect. Its drop wakes the waiting callers, even if it ends because the runtime shuts down.
struct Building {
    link: Arc<LinkInner>,
    number: u64,
}

impl Drop for Building {
    fn drop(&mut self) {
        {
            let mut state = self.link.state();
            if state.building.as_ref().is_some_and(|building| building.number == self.number) {
                state.building = None;
            }
        }
        self.link.attempts.send_modify(|ended| *ended += 1);
    }
}
