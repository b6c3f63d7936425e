//! The time of a subject, and ways to let it pass.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{
    samples::{anonymous, record},
    subject::{PATIENCE, Subject, Time},
};
use crate::{
    backend::Backend,
    record::{Record, id::RecordId},
};

impl<B: Backend> Subject<B> {
    /// A time to live that is short enough to wait for.
    pub(super) fn short(&self) -> Duration {
        match self.0.time {
            Time::Own(shortest) => shortest,
            _ => Duration::from_secs(600),
        }
    }

    /// Returns whether time stands still unless it is moved. The remaining time to live is then known to the millisecond.
    pub(super) fn stands_still(&self) -> bool {
        matches!(self.0.time, Time::Process(_))
    }

    /// Returns whether time cannot be moved, so that the tests have to wait.
    pub(super) fn has_own_clock(&self) -> bool {
        matches!(self.0.time, Time::Own(_))
    }

    /// Lets time pass until every record with this `ttl` has expired.
    pub(super) async fn outlast(&self, ttl: Duration) {
        // A backend may count the last millisecond as part of the record's life.
        let over = ttl + Duration::from_millis(1);
        match &self.0.time {
            Time::Process(clock) => clock.advance(over),
            Time::Moved(pass) => pass(over).await,
            Time::Own(_) => {
                // Measured by the backend's clock: a record that was created later, with the same time to live, has ended.
                let witness = Record { ttl, ..record(anonymous()) };
                self.creates(&witness).await;
                sleep(ttl).await;
                let gone = async {
                    while self.load(witness.id).await.is_some() {
                        sleep(TICK).await;
                    }
                };
                let gone = timeout(PATIENCE, gone).await;
                assert!(gone.is_ok(), "a record outlives its time to live of {ttl:?}: who was idle stays signed in");
            }
        }
    }

    /// Lets the shortest time pass that the backend can measure.
    pub(super) async fn wait_a_little(&self) {
        match &self.0.time {
            Time::Process(clock) => clock.advance(Duration::from_millis(1)),
            Time::Moved(pass) => pass(Duration::from_millis(1)).await,
            Time::Own(shortest) => sleep(*shortest).await,
        }
    }

    /// Lets time pass until a record with a long time to live has less left, and returns how much.
    pub(super) async fn left_after_a_while(&self, id: RecordId) -> Duration {
        let before = self.must_load(id).await.ttl;
        match &self.0.time {
            Time::Process(clock) => clock.advance(self.short()),
            Time::Moved(pass) => pass(self.short()).await,
            Time::Own(shortest) => sleep(*shortest / 4).await,
        }
        let fallen = async {
            loop {
                let left = self.must_load(id).await.ttl;
                if left < before {
                    return left;
                }
                assert!(!self.stands_still(), "{CLOCK}");
                sleep(TICK).await;
            }
        };
        let Ok(left) = timeout(PATIENCE, fallen).await else { panic!("{CLOCK}") };
        left
    }

    /// Calls `extend` for records that would expire soon, until one call was in time. Unless time stands still, a record may
    /// expire first on a slow machine.
    pub(super) async fn extended<F: Future<Output = ()>>(
        &self,
        id: impl Fn() -> RecordId,
        extend: impl Fn(Record) -> F,
    ) -> Option<Record> {
        for attempt in 0..6 {
            let ttl = self.short() * (1 << attempt);
            let short = Record { ttl, ..record(id()) };
            self.creates(&short).await;
            extend(short.clone()).await;
            if self.load(short.id).await.is_some_and(|there| there.ttl > ttl) {
                self.outlast(ttl).await;
                return Some(short);
            }
            if self.stands_still() {
                break;
            }
        }
        None
    }
}

const TICK: Duration = Duration::from_millis(5);

const CLOCK: &str = "what is left of a time to live does not fall as time passes: sessions never end. (A backend that does not \
    take the clock it is given by `set_clock` is examined as `Subject::with_own_clock`.)";
