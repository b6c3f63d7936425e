//! A store with rough edges: it waits where others may come in between, fails without saying whether it did what it was
//! asked, and, where a test has to fail, is wrong.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use jam_session::{Backend, Outcome, Owner, Record, RecordId, Sessions, backend::Result};
use tokio::task::yield_now;

use crate::random::Random;

/// What a backend may get wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wrong {
    /// `update` adds what is gone.
    Upserts,
    /// `update` takes whatever version there is for the expected one.
    IgnoresVersions,
    /// `clear` leaves one.
    ForgetsOne,
    /// `clear` ends what it has listed, one after the other.
    ClearsOneByOne,
    /// `load` answers what it answered before.
    LoadsStale,
    /// `list` leaves one out.
    ListsTooFew,
    /// `delete` answers before it is done.
    DeletesLater,
    /// `touch` brings back what was ended.
    TouchRevives,
    /// `create` replaces what there is.
    CreatesOver,
    /// A record lives a second longer than it should.
    ExpiresLate,
    /// None of these; but the module keeps the ID from before a rework for an hour.
    KeepsPreviousIds,
}

pub struct Rough {
    inner: Sessions,
    rng: Mutex<Random>,
    waits: bool,
    fails: bool,
    wrong: Option<Wrong>,
    seen: Mutex<HashMap<RecordId, Option<Record>>>,
    /// What was written, by any process: as a store has to know whose answers get lost.
    written: Written,
    forgetful: bool,
}

pub type Written = Arc<Mutex<HashSet<(RecordId, i64)>>>;

impl Rough {
    pub fn new(inner: Sessions, rng: Random) -> Self {
        Self {
            inner,
            rng: Mutex::new(rng),
            waits: false,
            fails: false,
            wrong: None,
            seen: Mutex::default(),
            written: Written::default(),
            forgetful: false,
        }
    }

    /// It does not know its writes again: that is left to the store.
    pub fn forgetful(inner: Sessions, rng: Random) -> Self {
        Self { forgetful: true, ..Self::new(inner, rng) }
    }

    pub fn of(self, written: &Written) -> Self {
        Self { written: Arc::clone(written), ..self }
    }

    /// It waits before and after each verb.
    pub fn waits(self) -> Self {
        Self { waits: true, ..self }
    }

    /// It fails at times.
    pub fn fails(self, fails: bool) -> Self {
        Self { fails, ..self }
    }

    pub fn wrong(self, wrong: Option<Wrong>) -> Self {
        Self { wrong, ..self }
    }

    fn on(&self) -> &impl Backend {
        self.inner.backend()
    }

    async fn call<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let (before, after, fault) = {
            let mut rng = self.rng.lock().unwrap();
            let waits = if self.waits { 3 } else { 1 };
            (rng.below(waits), rng.below(waits), if self.fails { rng.below(32) } else { 31 })
        };
        for _ in 0..before {
            yield_now().await;
        }
        if fault == 0 {
            return Err("the wire was cut before".into());
        }
        let answer = work.await?;
        for _ in 0..after {
            yield_now().await;
        }
        if fault == 1 {
            return Err("the wire was cut after".into());
        }
        Ok(answer)
    }

    fn longer(&self, record: Record) -> Record {
        let more = Duration::from_secs(u64::from(self.wrong == Some(Wrong::ExpiresLate) && !record.ttl.is_zero()));
        Record { ttl: record.ttl + more, ..record }
    }
}

impl Backend for Rough {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        self.call(async {
            if self.wrong == Some(Wrong::LoadsStale)
                && let Some(seen) = self.seen.lock().unwrap().remove(&id)
            {
                return Ok(seen);
            }
            let record = self.on().load(id).await?;
            self.seen.lock().unwrap().insert(id, record.clone());
            Ok(record)
        })
        .await
    }

    async fn create(&self, record: Record) -> Result<bool> {
        self.call(async {
            if self.wrong == Some(Wrong::CreatesOver) {
                self.on().delete(record.id).await?;
            }
            self.on().create(self.longer(record)).await
        })
        .await
    }

    async fn update(&self, expected: i64, record: Record) -> Result<Outcome> {
        self.call(async {
            let record = self.longer(record);
            let name = (record.id, record.version);
            if !self.forgetful && self.written.lock().unwrap().contains(&name) {
                return Ok(Outcome::Done);
            }
            let outcome = self.on().update(expected, record.clone()).await?;
            if let Outcome::Done = outcome {
                self.written.lock().unwrap().insert(name);
            }
            Ok(match (self.wrong, outcome) {
                (Some(Wrong::Upserts), Outcome::Gone) if !record.ttl.is_zero() => {
                    self.on().create(record).await?;
                    Outcome::Done
                }
                (Some(Wrong::IgnoresVersions), Outcome::Conflict(there)) => {
                    self.on().update(there.version, record).await?
                }
                (_, outcome) => outcome,
            })
        })
        .await
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        self.call(async {
            let seen = self.seen.lock().unwrap().get(&id).cloned().flatten();
            match seen.filter(|_| self.wrong == Some(Wrong::TouchRevives)) {
                Some(record) => self.on().create(Record { ttl, ..record }).await.map(drop),
                None => self.on().touch(id, version, ttl).await,
            }
        })
        .await
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        self.call(async {
            if self.wrong == Some(Wrong::DeletesLater) {
                let there = self.on().load(id).await?.is_some();
                let inner = self.inner.clone();
                tokio::spawn(async move {
                    for _ in 0..5 {
                        yield_now().await;
                    }
                    drop(inner.backend().delete(id).await);
                });
                return Ok(there);
            }
            self.on().delete(id).await
        })
        .await
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        self.call(async {
            let mut records = self.on().list(owner).await?;
            if self.wrong == Some(Wrong::ListsTooFew) {
                records.pop();
            }
            Ok(records)
        })
        .await
    }

    async fn clear(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64> {
        self.call(async {
            match self.wrong {
                Some(Wrong::ForgetsOne | Wrong::ClearsOneByOne) => {
                    let mut ended = 0;
                    for record in self.on().list(owner).await? {
                        yield_now().await;
                        let forgotten = self.wrong == Some(Wrong::ForgetsOne) && ended == 1;
                        if Some(record.id) != keep && !forgotten {
                            ended += u64::from(self.on().delete(record.id).await?);
                        }
                    }
                    Ok(ended)
                }
                _ => self.on().clear(owner, keep).await,
            }
        })
        .await
    }
}
