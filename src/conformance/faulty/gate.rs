//! Gates: they hold calls of a backend until a test lets them go.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

/// A gate that holds calls until it is opened. A clone is the same gate.
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
/// // Ada signs out everywhere, and only then does the change arrive. It revives nothing.
/// sessions.clear("ada").await?;
/// gate.open().await;
/// assert!(sessions.get(&id).await?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Gate(Arc<GateState>);

struct GateState {
    is_open: watch::Sender<bool>,
    /// How many calls have come, and how many of them have gone on and ended.
    come: watch::Sender<usize>,
    gone: watch::Sender<usize>,
    opens_after: Option<Duration>,
}

/// A call at a gate. Dropping it counts the call as gone.
pub(super) struct HeldCall(Gate);

impl Gate {
    /// Creates a gate that stays closed until it is [opened](Self::open).
    pub fn new() -> Self {
        Self::with(None)
    }

    /// Creates a gate that holds each call for this long, or until the gate is opened. It uses tokio's time, which a test can
    /// pause.
    pub fn after(time: Duration) -> Self {
        Self::with(Some(time))
    }

    /// Opens the gate for good, and waits until all calls that it held have taken effect.
    pub async fn open(&self) {
        self.0.is_open.send_replace(true);
        let come = *self.0.come.borrow();
        let _ = self.0.gone.subscribe().wait_for(|gone| *gone >= come).await;
    }

    /// Waits until this many calls have come to the gate since it was made, whether they are still held or not.
    pub async fn has_held(&self, calls: usize) {
        let _ = self.0.come.subscribe().wait_for(|come| *come >= calls).await;
    }

    pub(super) fn hold(&self) -> HeldCall {
        self.0.come.send_modify(|come| *come += 1);
        HeldCall(self.clone())
    }

    fn with(opens_after: Option<Duration>) -> Self {
        let (is_open, come, gone) = (watch::Sender::new(false), watch::Sender::new(0), watch::Sender::new(0));
        Self(Arc::new(GateState { is_open, come, gone, opens_after }))
    }
}

impl HeldCall {
    pub(super) async fn until_open(&self) {
        let mut is_open = self.0.0.is_open.subscribe();
        let open = async { drop(is_open.wait_for(|open| *open).await) };
        match self.0.0.opens_after {
            Some(time) => _ = timeout(time, open).await,
            None => open.await,
        }
    }
}

impl Drop for HeldCall {
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
