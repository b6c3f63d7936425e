//! The rules of a faulty backend: which calls fail, and how.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    call::{Answer, Call, Verb},
    gate::Gate,
};
use crate::backend::Result;

/// What happens to a call of a [`Faulty`](super::Faulty) backend.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Fails, and takes no effect.
    Before,
    /// Fails although it took effect: the answer was lost.
    After,
    /// Fails at once, and takes effect when the [`Gate`] opens.
    Late(Gate),
    /// Takes effect twice, as when a client sends it again. The second answer is returned.
    Twice,
    /// Never answers, and takes no effect.
    Hang,
    /// Takes effect and answers when the [`Gate`] opens, even if the caller is gone by then.
    HoldRequest(Gate),
    /// Takes effect at once, and answers when the [`Gate`] opens.
    HoldReply(Gate),
    /// Runs a closure of the test. [`first`](Self::first) and [`change`](Self::change) create it.
    Run(Hook),
}

/// A closure that runs before a call takes effect, or that changes its answer. See [`Fault::first`] and [`Fault::change`].
#[derive(Clone)]
pub struct Hook(Run);

#[derive(Clone)]
enum Run {
    First(RunsFirst),
    Change(ChangeAnswer),
}

pub(super) type RunsFirst = Arc<dyn Fn(Call) -> BoxFuture<()> + Send + Sync>;
pub(super) type ChangeAnswer = Arc<dyn Fn(Call, Result<Answer>) -> BoxFuture<Result<Answer>> + Send + Sync>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Fault {
    /// Runs `first` before the call takes effect: for example another request that writes after this one has read, and before
    /// it writes.
    ///
    /// The closure is part of the call: if the caller drops the call, the closure is dropped as well.
    ///
    /// ```
    /// # use jam_session::{MemoryBackend, Sessions, conformance::{Fault, Faulty, Verb}};
    /// # use serde_json::json;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), jam_session::Error> {
    /// # let backend = Faulty::new(MemoryBackend::default());
    /// # let faults = backend.faults();
    /// # let sessions = Sessions::over(backend).build()?;
    /// let id = sessions.create("ada", json!({})).await?;
    ///
    /// // Ada signs out everywhere while one of her requests is about to write.
    /// let other = sessions.clone();
    /// faults.next(Verb::Update, Fault::first(move |_| {
    ///     let other = other.clone();
    ///     async move { assert_eq!(other.clear("ada").await.unwrap(), 1) }
    /// }));
    /// assert!(sessions.update(&id, json!({"n": 1})).await.is_err());
    /// assert!(sessions.list("ada").await?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn first<F>(first: impl Fn(Call) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::Run(Hook(Run::First(Arc::new(move |call| Box::pin(first(call))))))
    }

    /// Replaces the answer, or the error, by what `change` returns: to damage a record, to hide one, or to imitate another
    /// backend.
    ///
    /// The call has taken effect by then. Combined with [`Before`](Self::Before) it has not.
    ///
    /// ```
    /// # use jam_session::{ErrorKind, MemoryBackend, Sessions, conformance::{Answer, Fault, Faulty, Verb}};
    /// # use serde_json::json;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), jam_session::Error> {
    /// # let backend = Faulty::new(MemoryBackend::default());
    /// # let faults = backend.faults();
    /// # let sessions = Sessions::over(backend).build()?;
    /// let id = sessions.create("ada", json!({})).await?;
    ///
    /// // Every record comes back damaged.
    /// faults.always(Verb::Load, Fault::change(|_, answer| async {
    ///     Ok(match answer? {
    ///         Answer::Load(Some(mut record)) => {
    ///             record.payload = "damaged".into();
    ///             Answer::Load(Some(record))
    ///         }
    ///         other => other,
    ///     })
    /// }));
    /// assert_eq!(sessions.get(&id).await.unwrap_err().kind(), ErrorKind::Unreadable);
    /// # Ok(())
    /// # }
    /// ```
    pub fn change<F>(change: impl Fn(Call, Result<Answer>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Answer>> + Send + 'static,
    {
        Self::Run(Hook(Run::Change(Arc::new(move |call, answer| Box::pin(change(call, answer))))))
    }
}

/// Controls which calls of a [`Faulty`](super::Faulty) backend fail, and how. A clone controls the same backend.
///
/// ```
/// # use jam_session::{MemoryBackend, conformance::{Fault, Faulty, Verb}};
/// # let faults = Faulty::new(MemoryBackend::default()).faults();
/// faults.next(Verb::Update, Fault::After);                     // the next update
/// faults.next(None, Fault::Hang);                              // the next call, whatever it is
/// faults.nth(3, Verb::Load, Fault::Before);                    // the third load from now on
/// faults.always(Verb::List, Fault::Before);                    // every list, until heal()
/// faults.when(|call| (call.number % 10 == 0).then_some(Fault::Before)); // every tenth call
/// faults.heal();
/// ```
///
/// A call gets at most one fault of each kind: one closure that runs [first](Fault::first), then one failure, then one
/// [change](Fault::change) of the answer. If several rules have a fault of the same kind for a call, the oldest rule applies,
/// and the others wait for the next call.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<FaultState>>);

#[derive(Default)]
struct FaultState {
    calls: Vec<Verb>,
    rules: Vec<Rule>,
    total: u64,
    /// `Close` is the last of them.
    of_verb: [u64; Verb::Close as usize + 1],
}

struct Rule {
    /// `None` if the closure of [`Faults::when`] is still to say.
    kind: Option<Kind>,
    ask: Box<dyn FnMut(&Call) -> Decision + Send>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    First,
    Wrong,
    Change,
}

/// What a rule says to a call.
enum Decision {
    Pass,
    /// Here it is, and the rule stays.
    Meet(Fault),
    /// Here it is, and the rule has done its work.
    MeetOnce(Fault),
}

/// What a call meets.
#[derive(Default)]
pub(super) struct Met {
    pub(super) first: Option<RunsFirst>,
    pub(super) wrong: Option<Fault>,
    pub(super) change: Option<ChangeAnswer>,
}

impl Faults {
    /// Applies the fault to the next call of this method; with `None`, to the next call of any method.
    pub fn next(&self, verb: impl Into<Option<Verb>>, fault: Fault) {
        self.nth(1, verb, fault);
    }

    /// Applies the fault to the `n`-th call of this method from now on, where `1` is the next one; with `None`, calls of every
    /// method count.
    pub fn nth(&self, n: u64, verb: impl Into<Option<Verb>>, fault: Fault) {
        let (verb, mut left, kind) = (verb.into(), n.max(1), fault.kind());
        self.add(Some(kind), move |call| {
            if verb.is_none_or(|verb| verb == call.verb) {
                left -= 1;
                if left == 0 {
                    return Decision::MeetOnce(fault.clone());
                }
            }
            Decision::Pass
        });
    }

    /// Applies the fault to every call of this method until [`heal`](Self::heal); with `None`, to every call.
    pub fn always(&self, verb: impl Into<Option<Verb>>, fault: Fault) {
        let (verb, kind) = (verb.into(), fault.kind());
        self.add(Some(kind), move |call| match verb.is_none_or(|verb| verb == call.verb) {
            true => Decision::Meet(fault.clone()),
            false => Decision::Pass,
        });
    }

    /// Calls `fault` for every call until [`heal`](Self::heal), and applies what it returns. If it always returns `None`, it
    /// only observes.
    pub fn when(&self, mut fault: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        self.add(None, move |call| fault(call).map_or(Decision::Pass, Decision::Meet));
    }

    /// Removes all rules. Calls that a [`Gate`] holds stay held.
    pub fn heal(&self) {
        self.state().rules.clear();
    }

    /// Returns the calls since the last time `calls` was called, including those that failed.
    pub fn calls(&self) -> Vec<Verb> {
        std::mem::take(&mut self.state().calls)
    }

    /// Counts and notes a call, and decides what it meets.
    pub(super) fn meet(&self, call: &mut Call) -> Met {
        let mut state = self.state();
        state.calls.push(call.verb);
        state.total += 1;
        state.of_verb[call.verb as usize] += 1;
        (call.number, call.number_of_verb) = (state.total, state.of_verb[call.verb as usize]);
        let mut met = Met::default();
        state.rules.retain_mut(|rule| {
            if rule.kind.is_some_and(|kind| met.has(kind)) {
                return true;
            }
            match (rule.ask)(call) {
                Decision::Pass => true,
                Decision::Meet(fault) => {
                    met.take(fault);
                    true
                }
                Decision::MeetOnce(fault) => {
                    met.take(fault);
                    false
                }
            }
        });
        met
    }

    fn add(&self, kind: Option<Kind>, ask: impl FnMut(&Call) -> Decision + Send + 'static) {
        self.state().rules.push(Rule { kind, ask: Box::new(ask) });
    }

    fn state(&self) -> MutexGuard<'_, FaultState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fault {
    fn kind(&self) -> Kind {
        match self {
            Self::Run(Hook(Run::First(_))) => Kind::First,
            Self::Run(Hook(Run::Change(_))) => Kind::Change,
            _ => Kind::Wrong,
        }
    }
}

impl Met {
    fn has(&self, kind: Kind) -> bool {
        match kind {
            Kind::First => self.first.is_some(),
            Kind::Wrong => self.wrong.is_some(),
            Kind::Change => self.change.is_some(),
        }
    }

    /// Takes a fault, unless it has one of that kind.
    fn take(&mut self, fault: Fault) {
        match fault {
            Fault::Run(Hook(Run::First(first))) => _ = self.first.get_or_insert(first),
            Fault::Run(Hook(Run::Change(change))) => _ = self.change.get_or_insert(change),
            wrong => _ = self.wrong.get_or_insert(wrong),
        }
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").finish_non_exhaustive()
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").finish_non_exhaustive()
    }
}
