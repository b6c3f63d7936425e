//! A difficult store: it yields wherever other calls may interleave, fails without saying whether a change was applied, and
//! has bugs in tests that have to fail.

use std::{
    collections::HashMap,
    future::ready,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use jam_session::{
    AnyBackend, Backend, Clear, Cleared, Created, Limit, Outcome, Record, RecordId, Sessions, Since, Terms,
    backend::Result,
    conformance::{Answer, Call, Fault, Faults, Faulty, Verb},
};
use tokio::task::yield_now;

use crate::{
    random::Random,
    store::{Plain, knows_updates, stays_open},
};

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
    /// `create` takes no notice of a `clear`.
    CreatesLate,
    /// `create` does not know a retry.
    CreatesAgain,
    /// `update` says of a retry that another version is there, though the first try has written its own.
    DeniesWhatItWrote,
    /// `clear` does not know a repeat.
    ClearsAgain,
    /// `clear` does not look at the record that it is by.
    ClearsByAnything,
    /// `create` takes no notice of a mark.
    IgnoresMarks,
    /// `create` takes no notice of a limit.
    IgnoresLimits,
    /// `create` says what it ended because of the limit, and one of these lives on.
    EndsOneTooFew,
    /// Because of a limit `create` ends the record that was written last, of those that were there.
    EndsTheLatest,
    /// `scan` leaves one out.
    ScansTooFew,
    /// None of these; but the module keeps the ID from before a rework for an hour.
    KeepsPreviousIds,
}

/// What all processes have in common. It knows its updates again, unless that is left to the store.
pub type Common = Faulty<AnyBackend>;

/// What one process sees of it.
pub type Rough = Faulty<Faulty<Common>>;

pub fn common(store: &Sessions) -> Common {
    let common = forgetful(store);
    knows_updates(&common.faults(), store.backend().clone());
    common
}

/// It does not know its updates again.
pub fn forgetful(store: &Sessions) -> Common {
    let common = Faulty::new(store.backend().clone());
    stays_open(&common.faults());
    common
}

/// How rough it is.
#[derive(Clone, Copy, Default)]
pub struct Edges {
    /// It waits before and after each verb.
    pub waits: bool,
    /// It fails at times.
    pub fails: bool,
    /// It answers touches and does nothing: then reading keeps no session alive.
    pub ignores_touches: bool,
    pub wrong: Option<Wrong>,
}

pub fn rough(common: &Common, rng: Random, edges: Edges) -> Rough {
    let backend = Faulty::new(common.clone());
    if let Some(wrong) = edges.wrong {
        is_wrong(&backend.faults(), wrong, common);
    }
    let rough = Faulty::new(backend);
    let faults = rough.faults();
    let rng = Arc::new(Mutex::new(rng));
    let draw = move |below| rng.lock().unwrap().below(below);
    if edges.ignores_touches {
        faults.always(Verb::Touch, Fault::Before);
        faults.always(Verb::Touch, Fault::change(|_, _| ready(Ok(Answer::Touch))));
    }
    let waits = if edges.waits { 3 } else { 1 };
    let before = draw.clone();
    faults.when(move |_| {
        let times = before(waits);
        Some(Fault::first(move |_| wait(times)))
    });
    let after = draw.clone();
    faults.when(move |_| {
        let times = after(waits);
        Some(Fault::change(move |_, answer| async move {
            wait(times).await;
            answer
        }))
    });
    if edges.fails {
        faults.when(move |_| match draw(32) {
            0 => Some(Fault::Before),
            1 => Some(Fault::After),
            _ => None,
        });
    }
    rough
}

async fn wait(times: usize) {
    for _ in 0..times {
        yield_now().await;
    }
}

type Changing = Pin<Box<dyn Future<Output = Result<Answer>> + Send>>;

fn is_wrong(faults: &Faults, wrong: Wrong, store: &Common) {
    let seen: Arc<Mutex<HashMap<RecordId, Option<Record>>>> = Arc::default();
    let change = |verb: Verb, change: fn(Common, Call, Answer) -> Changing| {
        let store = store.clone();
        let change = move |call, answer: Result<Answer>| match answer {
            Ok(answer) => change(store.clone(), call, answer),
            Err(error) => Box::pin(ready(Err(error))),
        };
        faults.always(verb, Fault::change(change));
    };
    // What the store answers is then of no account: it is not asked.
    let replace = |verb: Verb, answer: fn(Common, Call) -> Changing| {
        let store = store.clone();
        faults.always(verb, Fault::Before);
        faults.always(verb, Fault::change(move |call, _| answer(store.clone(), call)));
    };
    match wrong {
        Wrong::Upserts => change(Verb::Update, |store, call, answer| {
            Box::pin(async move {
                match (answer, call.record) {
                    (Answer::Update(Outcome::Gone), Some(record)) if !record.ttl.is_zero() => {
                        store.creates(record).await?;
                        Ok(Answer::Update(Outcome::Done))
                    }
                    (answer, _) => Ok(answer),
                }
            })
        }),
        Wrong::IgnoresVersions => change(Verb::Update, |store, call, answer| {
            Box::pin(async move {
                match (answer, call.record) {
                    (Answer::Update(Outcome::Conflict(there)), Some(record)) => {
                        Ok(Answer::Update(store.updates(there.version, record).await?))
                    }
                    (answer, _) => Ok(answer),
                }
            })
        }),
        Wrong::ForgetsOne => replace(Verb::Clear, |store, call| Box::pin(one_by_one(store, call, true))),
        Wrong::ClearsOneByOne => replace(Verb::Clear, |store, call| Box::pin(one_by_one(store, call, false))),
        Wrong::LoadsStale => faults.always(
            Verb::Load,
            Fault::change(move |call, answer| {
                let mut seen = seen.lock().unwrap();
                ready(answer.map(|answer| match (answer, call.id) {
                    (Answer::Load(record), Some(id)) => Answer::Load(seen.remove(&id).unwrap_or_else(|| {
                        seen.insert(id, record.clone());
                        record
                    })),
                    (answer, _) => answer,
                }))
            }),
        ),
        Wrong::ListsTooFew => change(Verb::List, |_, _, answer| {
            let Answer::List(mut records) = answer else { return Box::pin(ready(Ok(answer))) };
            records.pop();
            Box::pin(ready(Ok(Answer::List(records))))
        }),
        Wrong::DeletesLater => replace(Verb::Delete, |store, call| {
            Box::pin(async move {
                let id = call.id.unwrap();
                let was_live = store.load(id).await?.is_some();
                tokio::spawn(async move {
                    wait(5).await;
                    drop(store.delete(id).await);
                });
                Ok(Answer::Delete(was_live))
            })
        }),
        Wrong::TouchRevives => {
            let noted = Arc::clone(&seen);
            faults.always(
                Verb::Load,
                Fault::change(move |call, answer| {
                    if let (Ok(Answer::Load(record)), Some(id)) = (&answer, call.id) {
                        noted.lock().unwrap().insert(id, record.clone());
                    }
                    ready(answer)
                }),
            );
            let store = store.clone();
            faults.always(
                Verb::Touch,
                Fault::first(move |call| {
                    let record = call.id.and_then(|id| seen.lock().unwrap().get(&id).cloned().flatten());
                    let store = store.clone();
                    async move {
                        if let Some(record) = record {
                            drop(store.creates(record).await);
                        }
                    }
                }),
            );
        }
        Wrong::CreatesOver => {
            let store = store.clone();
            faults.always(
                Verb::Create,
                Fault::first(move |call| {
                    let store = store.clone();
                    async move { drop(store.delete(call.id.unwrap()).await) }
                }),
            );
        }
        Wrong::ExpiresLate => {
            change(Verb::Create, |store, call, answer| Box::pin(longer(store, call, answer)));
            change(Verb::Update, |store, call, answer| Box::pin(longer(store, call, answer)));
        }
        Wrong::CreatesLate => replace(Verb::Create, |store, call| {
            Box::pin(async move { Ok(Answer::Create(store.create(call.record.unwrap(), Terms::default()).await?)) })
        }),
        Wrong::CreatesAgain => replace(Verb::Create, |store, call| {
            let terms = Terms { retry: false, ..call.terms.unwrap() };
            Box::pin(async move { Ok(Answer::Create(store.create(call.record.unwrap(), terms).await?)) })
        }),
        Wrong::IgnoresMarks => replace(Verb::Create, |store, call| {
            let terms = call.terms.unwrap();
            let since = terms.since.filter(|since| !matches!(since, Since::Mark(_)));
            let terms = Terms { since, ..terms };
            Box::pin(async move { Ok(Answer::Create(store.create(call.record.unwrap(), terms).await?)) })
        }),
        Wrong::IgnoresLimits => replace(Verb::Create, |store, call| {
            let terms = Terms { limit: Limit::None, ..call.terms.unwrap() };
            Box::pin(async move { Ok(Answer::Create(store.create(call.record.unwrap(), terms).await?)) })
        }),
        Wrong::EndsOneTooFew => replace(Verb::Create, |store, call| {
            Box::pin(async move {
                let mut before = match call.owner {
                    Some(owner) => store.list(owner).await?,
                    None => Vec::new(),
                };
                let created = store.create(call.record.unwrap(), call.terms.unwrap()).await?;
                if let Created::Done { ended, .. } = &created {
                    before.retain(|record| ended.first() == Some(&record.id));
                    if let Some(record) = before.pop() {
                        store.creates(record).await?;
                    }
                }
                Ok(Answer::Create(created))
            })
        }),
        Wrong::EndsTheLatest => replace(Verb::Create, |store, call| {
            Box::pin(async move {
                let (record, terms) = (call.record.unwrap(), call.terms.unwrap());
                let (Some(owner), Limit::LeastRecent(most)) = (call.owner, terms.limit) else {
                    return Ok(Answer::Create(store.create(record, terms).await?));
                };
                let mut there = store.list(owner).await?;
                there.sort_by_key(|record| record.version);
                let created = store.create(record, Terms { limit: Limit::None, ..terms }).await?;
                let Created::Done { left, .. } = created else { return Ok(Answer::Create(created)) };
                let ended: Vec<RecordId> = match there.iter().any(|record| Some(record.id) == call.id) {
                    true => Vec::new(),
                    false => there.into_iter().skip(most - 1).map(|record| record.id).collect(),
                };
                for id in &ended {
                    store.delete(*id).await?;
                }
                Ok(Answer::Create(Created::Done { ended, left }))
            })
        }),
        Wrong::ScansTooFew => change(Verb::Scan, |_, _, answer| {
            let Answer::Scan(mut page) = answer else { return Box::pin(ready(Ok(answer))) };
            page.records.pop();
            Box::pin(ready(Ok(Answer::Scan(page))))
        }),
        Wrong::DeniesWhatItWrote => change(Verb::Update, |store, call, answer| {
            Box::pin(async move {
                let there = if call.retry { store.load(call.id.unwrap()).await? } else { None };
                Ok(there.map_or(answer, |there| Answer::Update(Outcome::Conflict(there))))
            })
        }),
        Wrong::ClearsAgain => replace(Verb::Clear, |store, call| {
            let clear = Clear { name: crate::store::name(), ..call.clear.unwrap() };
            Box::pin(async move { Ok(Answer::Clear(store.clear(call.owner.unwrap(), clear).await?)) })
        }),
        Wrong::ClearsByAnything => replace(Verb::Clear, |store, call| {
            let clear = Clear { by: None, ..call.clear.unwrap() };
            Box::pin(async move { Ok(Answer::Clear(store.clear(call.owner.unwrap(), clear).await?)) })
        }),
        Wrong::KeepsPreviousIds => {}
    }
}

async fn one_by_one(store: Common, call: Call, forgets_one: bool) -> Result<Answer> {
    let mut ended = 0;
    let by = call.clear.and_then(|clear| clear.by);
    let keep = by.filter(|by| by.keep).map(|by| by.id);
    for record in store.list(call.owner.unwrap()).await? {
        yield_now().await;
        let forgotten = forgets_one && ended == 1;
        if Some(record.id) != keep && !forgotten {
            ended += u64::from(store.delete(record.id).await?);
        }
    }
    Ok(Answer::Clear(Cleared::Done(ended)))
}

/// What was just written gets a second more.
async fn longer(store: Common, call: Call, answer: Answer) -> Result<Answer> {
    if let (Some(record), Answer::Create(Created::Done { .. }) | Answer::Update(Outcome::Done)) = (call.record, &answer)
        && !record.ttl.is_zero()
    {
        store.touch(record.id, record.version, record.ttl + Duration::from_secs(1)).await?;
    }
    Ok(answer)
}
