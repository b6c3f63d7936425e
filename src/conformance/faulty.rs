//! A backend that fails when it is told to.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use crate::{
    backend::{Backend, Outcome, Result},
    clock::Clock,
    record::{
        Record,
        id::{Owner, RecordId},
    },
};

/// A backend around another one that fails as a network does, when a test says so: to see what an application does while
/// its sessions are away.
///
/// Its [`faults`](Self::faults) say which calls go wrong, and how; all others are passed on.
///
/// ```
/// use std::time::Duration;
/// use axum::{Router, body::Body, http::Request, routing::get};
/// use jam_session::{Error, MemoryBackend, Session, SessionLayer, Sessions};
/// use jam_session::conformance::{Fault, Faulty, Verb};
/// use tower::ServiceExt;
///
/// async fn visits(session: Session) -> Result<String, Error> {
///     session.modify("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
///     Ok(format!("visit number {:?}", session.get::<u64>("visits")?))
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let backend = Faulty::new(MemoryBackend::default());
/// let faults = backend.faults();
/// let sessions = Sessions::over(backend).build()?;
/// let app = Router::new().route("/", get(visits)).layer(SessionLayer::new(sessions));
///
/// // A visitor comes while nothing can be stored.
/// faults.next(Verb::Create, Fault::Before);
/// let response = app.clone().oneshot(Request::get("/").body(Body::empty())?).await?;
/// assert_eq!(response.status(), 503);
/// assert!(!response.headers().contains_key("set-cookie"));
///
/// // And again, when it can.
/// let response = app.oneshot(Request::get("/").body(Body::empty())?).await?;
/// assert_eq!(response.status(), 200);
/// assert!(response.headers().contains_key("set-cookie"));
/// assert_eq!(faults.calls(), [Verb::Create, Verb::Create]);
/// # Ok(())
/// # }
/// ```
pub struct Faulty<B> {
    backend: Arc<B>,
    faults: Faults,
}

/// What goes wrong with a call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// An error, and nothing has happened.
    Before,
    /// An error, although it has happened: the reply was lost.
    After,
    /// An error at once; it happens when the [`Gate`] opens.
    Late(Gate),
    /// It happens twice, as when a client sends it again. The second answer is given.
    Twice,
    /// No answer, ever, and nothing happens.
    Hang,
    /// It happens when the [`Gate`] opens, even if nobody waits for the answer any more.
    HoldRequest(Gate),
    /// It happens at once; the answer comes when the [`Gate`] opens.
    HoldReply(Gate),
}

/// The methods of a [`Backend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is the method of that name")]
pub enum Verb {
    Load,
    Create,
    Update,
    Touch,
    Delete,
    List,
    Clear,
}

/// One call, as [`Faults::when`] sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Call {
    /// What is called.
    pub verb: Verb,
    /// Which call of all this is, counted from 1.
    pub number: u64,
    /// Which of that verb.
    pub number_of_verb: u64,
    /// The record that it is about; `None` for [`List`](Verb::List) and [`Clear`](Verb::Clear).
    pub id: Option<RecordId>,
    /// Whose records it is about; `None` for nobody's.
    pub owner: Option<Owner>,
}

/// Says which calls of a [`Faulty`] backend go wrong. A clone says it to the same.
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
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

#[derive(Default)]
struct Plan {
    calls: Vec<Verb>,
    rules: Vec<Rule>,
    total: u64,
    of_verb: [u64; 7],
}

type Rule = Box<dyn FnMut(&Call) -> Decision + Send>;

/// What a rule says to a call.
enum Decision {
    Pass,
    /// And the rule stays.
    Fail(Fault),
    /// And the rule has done its work.
    FailOnce(Fault),
}

impl<B: Backend> Faulty<B> {
    /// The same backend, of which nothing fails yet.
    pub fn new(backend: B) -> Self {
        Self { backend: Arc::new(backend), faults: Faults::default() }
    }

    /// Where to say what fails. Take it before the backend is given away.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    async fn call<T, F>(&self, call: Call, act: impl Fn(Arc<B>) -> F + Send + Sync + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let act = move |backend: &Arc<B>| act(Arc::clone(backend));
        match self.faults.fault_of(call) {
            None => act(&self.backend).await,
            Some(Fault::Before) => Err(lost("the request")),
            Some(Fault::After) => {
                act(&self.backend).await?;
                Err(lost("the reply"))
            }
            Some(Fault::Late(gate)) => {
                let (backend, held) = (Arc::clone(&self.backend), gate.hold());
                tokio::spawn(async move {
                    held.until_open().await;
                    let _ = act(&backend).await;
                });
                Err(lost("the request, for now,"))
            }
            Some(Fault::Twice) => {
                let _ = act(&self.backend).await;
                act(&self.backend).await
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::HoldRequest(gate)) => {
                let (backend, held) = (Arc::clone(&self.backend), gate.hold());
                let acting = tokio::spawn(async move {
                    held.until_open().await;
                    act(&backend).await
                });
                acting.await?
            }
            Some(Fault::HoldReply(gate)) => {
                let answer = act(&self.backend).await;
                gate.hold().until_open().await;
                answer
            }
        }
    }
}

impl Faults {
    /// The next call of that verb goes wrong; `None` for whichever is next. Of several, the one said first comes first.
    pub fn next(&self, verb: impl Into<Option<Verb>>, fault: Fault) {
        self.nth(1, verb, fault);
    }

    /// The `n`-th call of that verb from now on goes wrong, `1` being the next one; `None` counts them all.
    pub fn nth(&self, n: u64, verb: impl Into<Option<Verb>>, fault: Fault) {
        let (verb, mut left) = (verb.into(), n.max(1));
        self.plan().rules.push(Box::new(move |call| {
            if verb.is_none_or(|verb| verb == call.verb) {
                left -= 1;
                if left == 0 {
                    return Decision::FailOnce(fault.clone());
                }
            }
            Decision::Pass
        }));
    }

    /// Every call of that verb goes wrong, or every call, until [`heal`](Self::heal).
    pub fn always(&self, verb: impl Into<Option<Verb>>, fault: Fault) {
        let verb = verb.into();
        self.when(move |call| verb.is_none_or(|verb| verb == call.verb).then(|| fault.clone()));
    }

    /// Each call goes wrong for which that says how, until [`heal`](Self::heal).
    pub fn when(&self, mut fault: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        self.plan().rules.push(Box::new(move |call| match fault(call) {
            Some(fault) => Decision::Fail(fault),
            None => Decision::Pass,
        }));
    }

    /// From now on nothing goes wrong. What is held by a [`Gate`] stays held.
    pub fn heal(&self) {
        self.plan().rules.clear();
    }

    /// The calls since this was last asked, those that went wrong included.
    pub fn calls(&self) -> Vec<Verb> {
        std::mem::take(&mut self.plan().calls)
    }

    fn fault_of(&self, mut call: Call) -> Option<Fault> {
        let mut plan = self.plan();
        plan.calls.push(call.verb);
        plan.total += 1;
        plan.of_verb[call.verb as usize] += 1;
        (call.number, call.number_of_verb) = (plan.total, plan.of_verb[call.verb as usize]);
        // The first that has something to say is heard, and the turn of those after it begins with the next call.
        let mut said = None;
        plan.rules.retain_mut(|rule| {
            if said.is_some() {
                return true;
            }
            match rule(&call) {
                Decision::Pass => true,
                Decision::Fail(fault) => {
                    said = Some(fault);
                    true
                }
                Decision::FailOnce(fault) => {
                    said = Some(fault);
                    false
                }
            }
        });
        said
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    fn of(verb: Verb, id: Option<RecordId>, owner: Option<Owner>) -> Self {
        Self { verb, number: 0, number_of_verb: 0, id, owner }
    }

    fn on(verb: Verb, id: RecordId) -> Self {
        Self::of(verb, Some(id), id.owner())
    }
}

/// Holds calls until it is opened. A clone is another hand on the same gate.
///
/// ```
/// # use jam_session::{ErrorKind, MemoryBackend, Sessions, conformance::{Fault, Faulty, Gate, Verb}};
/// # use serde_json::json;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), jam_session::Error> {
/// # let backend = Faulty::new(MemoryBackend::default());
/// # let faults = backend.faults();
/// # let sessions = Sessions::over(backend).build()?;
/// let id = sessions.create("ada", json!({"cart": 1})).await?;
///
/// // A change is stuck in the network; its request is answered 503.
/// let gate = Gate::new();
/// faults.next(Verb::Update, Fault::Late(gate.clone()));
/// assert_eq!(sessions.update(&id, json!({"cart": 2})).await.unwrap_err().kind(), ErrorKind::Unavailable);
///
/// // Ada signs out everywhere, and only then does it arrive. It revives nothing.
/// sessions.clear("ada").await?;
/// gate.open().await;
/// assert!(sessions.get(&id).await?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    is_open: watch::Sender<bool>,
    /// How many calls have come, and how many of them have gone on and ended.
    come: watch::Sender<usize>,
    gone: watch::Sender<usize>,
    opens_after: Option<Duration>,
}

/// A call at a gate, which counts as gone when this is dropped.
struct Held(Gate);

impl Gate {
    /// A gate that stays closed until it is [opened](Self::open).
    pub fn new() -> Self {
        Self::with(None)
    }

    /// A gate that lets each call pass so long after it came, by tokio's time, which a test may have paused; or when it is
    /// opened.
    pub fn after(time: Duration) -> Self {
        Self::with(Some(time))
    }

    /// Opens the gate for good, and waits until everything that was held has happened.
    pub async fn open(&self) {
        self.0.is_open.send_replace(true);
        let come = *self.0.come.borrow();
        let _ = self.0.gone.subscribe().wait_for(|gone| *gone >= come).await;
    }

    /// Waits until so many calls have come to it since it was made, whether they are still held or not.
    pub async fn has_held(&self, calls: usize) {
        let _ = self.0.come.subscribe().wait_for(|come| *come >= calls).await;
    }

    fn with(opens_after: Option<Duration>) -> Self {
        let (is_open, come, gone) = (watch::Sender::new(false), watch::Sender::new(0), watch::Sender::new(0));
        Self(Arc::new(Inner { is_open, come, gone, opens_after }))
    }

    fn hold(&self) -> Held {
        self.0.come.send_modify(|come| *come += 1);
        Held(self.clone())
    }
}

impl Held {
    async fn until_open(&self) {
        let mut is_open = self.0.0.is_open.subscribe();
        let open = async { drop(is_open.wait_for(|open| *open).await) };
        match self.0.0.opens_after {
            Some(time) => _ = timeout(time, open).await,
            None => open.await,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.gone.send_modify(|gone| *gone += 1);
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("is_open", &*self.0.is_open.borrow()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for Faulty<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").finish_non_exhaustive()
    }
}

impl<B: Backend> Backend for Faulty<B> {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        self.call(Call::on(Verb::Load, id), move |backend| async move { backend.load(id).await }).await
    }

    async fn create(&self, record: Record) -> Result<bool> {
        self.call(Call::on(Verb::Create, record.id), move |backend| {
            let record = record.clone();
            async move { backend.create(record).await }
        })
        .await
    }

    async fn update(&self, expected: i64, record: Record) -> Result<Outcome> {
        self.call(Call::on(Verb::Update, record.id), move |backend| {
            let record = record.clone();
            async move { backend.update(expected, record).await }
        })
        .await
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        self.call(Call::on(Verb::Touch, id), move |backend| async move { backend.touch(id, version, ttl).await }).await
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        self.call(Call::on(Verb::Delete, id), move |backend| async move { backend.delete(id).await }).await
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        let call = Call::of(Verb::List, None, Some(owner));
        self.call(call, move |backend| async move { backend.list(owner).await }).await
    }

    async fn clear(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64> {
        let call = Call::of(Verb::Clear, None, Some(owner));
        self.call(call, move |backend| async move { backend.clear(owner, keep).await }).await
    }

    fn set_clock(&self, clock: Clock) {
        self.backend.set_clock(clock);
    }

    async fn close(&self) -> Result<()> {
        self.backend.close().await
    }
}

fn lost(what: &str) -> crate::error::BoxError {
    format!("{what} was lost, as a test wanted it").into()
}
