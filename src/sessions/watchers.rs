//! The watched sessions of this process: one [`Watcher`] for each record, however many streams wait for its ending.
//!
//! No task is spawned for it. The streams of a record share one watcher, and one of them drives it: that stream asks the store
//! when a look is due. If it is dropped or no longer polled, another stream takes over.

use std::{
    array,
    collections::BTreeMap,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::Waker,
    time::Duration,
};

use hashbrown::DefaultHashBuilder;
use slab::Slab;

use crate::{
    detached::Detached,
    record::id::{Owner, RecordId},
    sessions::watch::{Ending, Known, Look, Watch},
};

/// The watchers of this process.
pub(crate) struct Watchers {
    /// The watchers of one owner are in the same shard and adjacent, so that a `clear` finds them.
    shards: [Mutex<ByRecord>; 16],
    hasher: DefaultHashBuilder,
    /// Counts the endings by this process.
    endings: AtomicU64,
    draws: AtomicU64,
    closed: AtomicBool,
}

type ByRecord = BTreeMap<RecordId, Weak<Watcher>>;

/// A record that streams of this process are watching.
pub(crate) struct Watcher {
    id: RecordId,
    /// The number of endings when the watcher was made.
    made: u64,
    watchers: Arc<Watchers>,
    state: Mutex<WatcherState>,
}

struct WatcherState {
    watch: Watch,
    /// A pending look that no stream is polling right now.
    looking: Option<Looking>,
    streams: Slab<Waker>,
    /// The stream whose turn it is to look.
    driver: Option<usize>,
}

/// A pending look at the store. It continues in a task if no stream is left to poll it.
pub(crate) type Looking = Detached<(Weak<Watcher>, Look)>;

/// What a stream does next.
pub(crate) enum NextStep {
    Hear(Ending),
    /// Continue this look, or begin one.
    Look(Option<Looking>),
    /// Wait until this moment, or until the stream is woken.
    Wait(Duration),
}

impl Watchers {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            shards: array::from_fn(|_| Mutex::default()),
            hasher: DefaultHashBuilder::default(),
            endings: AtomicU64::new(0),
            draws: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        })
    }

    /// Returns the number of endings so far. If it has not changed since a session was loaded, this process has not ended it.
    pub(crate) fn endings(&self) -> u64 {
        self.endings.load(SeqCst)
    }

    /// Counts an ending that begins, and returns the number before it. The ending covers every session watched before that.
    pub(crate) fn begin(&self) -> u64 {
        self.endings.fetch_add(1, SeqCst)
    }

    /// Returns a pseudorandom number, different each time.
    pub(crate) fn draw(&self) -> u64 {
        self.hasher.hash_one(self.draws.fetch_add(1, SeqCst))
    }

    /// Returns the watcher of a record, or makes one.
    pub(crate) fn watch(self: &Arc<Self>, id: RecordId, new: impl FnOnce() -> Watch) -> Arc<Watcher> {
        let watcher = {
            let mut shard = self.shard(id);
            match shard.get(&id).and_then(Weak::upgrade) {
                Some(watcher) => watcher,
                None => {
                    let state = WatcherState { watch: new(), looking: None, streams: Slab::new(), driver: None };
                    let (made, watchers) = (self.endings(), Arc::clone(self));
                    let watcher = Arc::new(Watcher { id, made, watchers, state: Mutex::new(state) });
                    shard.insert(id, Arc::downgrade(&watcher));
                    watcher
                }
            }
        };
        // Checked after the watcher is visible to others, so `close` either finds it or is seen here.
        if self.is_closed() {
            watcher.end(Ending::Closed);
        }
        watcher
    }

    /// Tells the streams of a session that it has ended.
    pub(crate) fn ended(&self, id: RecordId, ending: Ending) {
        self.begin();
        if let Some(watcher) = self.find(id) {
            watcher.end(ending);
        }
    }

    /// Tells the streams of a session that its user signed in again.
    pub(crate) fn replaced(&self, id: RecordId, logins: u32) {
        self.begin();
        if let Some(watcher) = self.find(id) {
            watcher.tell(|watch| watch.replace(logins));
        }
    }

    /// Tells the streams of an owner that all its sessions have ended, except the one that is kept.
    ///
    /// `began` is what [`begin`](Self::begin) returned.
    pub(crate) fn cleared(&self, owner: Owner, kept: Option<RecordId>, began: u64, now: Duration) {
        self.begin();
        let first = RecordId::first_of(owner);
        let all: Vec<_> = {
            let shard = self.shard(first);
            let all = shard.range(first..).take_while(|(id, _)| id.owner() == Some(owner));
            all.filter(|(id, _)| kept != Some(**id)).filter_map(|(_, watcher)| watcher.upgrade()).collect()
        };
        for watcher in all {
            match watcher.made <= began {
                true => watcher.end(Ending::SignedOut),
                // The session may have begun after the `clear`.
                false => watcher.hurry(now),
            }
        }
    }

    /// Stops all looks, and ends all streams.
    pub(crate) fn close(&self) {
        self.closed.store(true, SeqCst);
        for shard in &self.shards {
            // The watchers are dropped outside the lock, because their `drop` takes it.
            let all: Vec<_> = lock(shard).values().filter_map(Weak::upgrade).collect();
            all.iter().for_each(|watcher| watcher.end(Ending::Closed));
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    fn find(&self, id: RecordId) -> Option<Arc<Watcher>> {
        self.shard(id).get(&id)?.upgrade()
    }

    fn shard(&self, id: RecordId) -> MutexGuard<'_, ByRecord> {
        let hash = match id.owner() {
            Some(owner) => self.hasher.hash_one(owner),
            None => self.hasher.hash_one(id),
        };
        lock(&self.shards[hash as usize % self.shards.len()])
    }
}

impl Watcher {
    pub(crate) fn id(&self) -> RecordId {
        self.id
    }

    pub(crate) fn known(&self) -> Known {
        *self.state().watch.known()
    }

    /// Returns why a stream that began at this number of logins has ended, if it has.
    pub(crate) fn ending(&self, logins: u32) -> Option<Ending> {
        self.state().watch.verdict(logins, Duration::MAX, Duration::ZERO)
    }

    pub(crate) fn is_due(&self, now: Duration) -> bool {
        self.state().watch.next() <= now
    }

    pub(crate) fn used(&self, ttl: Duration, now: Duration) {
        self.state().watch.used(ttl, now);
    }

    pub(crate) fn end(&self, ending: Ending) {
        let looking = {
            let mut state = self.state();
            state.watch.end(ending);
            state.looking.take()
        };
        drop(looking);
        self.tell(|_| true);
    }

    /// Makes a look due at once.
    pub(crate) fn hurry(&self, now: Duration) {
        self.tell(|watch| {
            watch.hurry(now);
            true
        });
    }

    /// Takes the result of a look.
    pub(crate) fn take(&self, look: Look) {
        self.tell(|watch| watch.take(look));
    }

    /// Changes the state, and wakes the streams if `change` returns `true`.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut Watch) -> bool) {
        let wakers: Vec<_> = {
            let mut state = self.state();
            match change(&mut state.watch) {
                true => state.streams.iter().map(|(_, waker)| waker.clone()).collect(),
                false => Vec::new(),
            }
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Returns what a stream does next. The stream is woken when that changes.
    pub(crate) fn turn(
        &self,
        place: &mut Option<usize>,
        logins: u32,
        patience: Duration,
        now: Duration,
        waker: &Waker,
    ) -> NextStep {
        let mut state = self.state();
        let WatcherState { watch, looking, streams, driver } = &mut *state;
        if let Some(ending) = watch.verdict(logins, patience, now) {
            return NextStep::Hear(ending);
        }
        let place = match *place {
            Some(place) => {
                streams[place].clone_from(waker);
                place
            }
            None => *place.insert(streams.insert(waker.clone())),
        };
        let is_due = looking.is_none() && watch.next() <= now;
        if is_due || driver.is_none() || watch.overdue() <= now {
            *driver = Some(place);
        }
        let drives = *driver == Some(place);
        if is_due {
            watch.begin(now);
        }
        if is_due || drives && looking.is_some() {
            return NextStep::Look(looking.take());
        }
        let next = if drives { watch.next() } else { watch.overdue() };
        NextStep::Wait(watch.gives_up(patience).map_or(next, |at| at.min(next)))
    }

    /// Keeps a pending look. Returns when the stream that drives it gives up.
    pub(crate) fn keep(&self, looking: Looking, patience: Duration) -> Option<Duration> {
        let mut state = self.state();
        if state.watch.ending().is_some() {
            drop(state);
            // The look is no longer needed, and the stream has already been woken.
            drop(looking);
            return None;
        }
        let before = state.looking.replace(looking);
        let gives_up = state.watch.gives_up(patience);
        drop(state);
        drop(before);
        gives_up
    }

    /// Removes a stream. If it was driving the watcher, another one takes over.
    pub(crate) fn leave(&self, place: usize) {
        let (next, looking) = {
            let mut state = self.state();
            state.streams.remove(place);
            if state.driver.is_some_and(|driver| driver != place) {
                return;
            }
            state.driver = None;
            let next = state.streams.iter().next().map(|(_, waker)| waker.clone());
            let looking = if next.is_none() { state.looking.take() } else { None };
            (next, looking)
        };
        // Dropping a look continues it in a task. Otherwise a handler that makes a new stream for each message would never
        // complete one.
        drop(looking);
        if let Some(next) = next {
            next.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, WatcherState> {
        lock(&self.state)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut shard = self.watchers.shard(self.id);
        // A new watcher may already have taken its place.
        if shard.get(&self.id).is_some_and(|watcher| watcher.strong_count() == 0) {
            shard.remove(&self.id);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No application code runs under the lock, so a poisoned state cannot be half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
