//! Recording histories: clients make random calls from one seed, and record the answers.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::Poll,
    time::{Duration, Instant},
};

use super::check::{Model, NEVER, Op, OpOf, explain, is_linearizable, shrink};
use crate::random::Random;

/// The seeds of a run: so many fixed ones, or with `SESSION_TEST_LONG` new ones for its share of so many seconds; or the one
/// that `SESSION_TEST_SEED` names.
pub struct Seeds {
    next: u64,
    left: usize,
    until: Option<Instant>,
    given: usize,
}

impl Drop for Seeds {
    fn drop(&mut self) {
        if self.until.is_some() {
            println!("{} histories, to seed {}", self.given, self.next);
        }
    }
}

impl Seeds {
    /// `share` is how many of a thousand parts of a long run are for these.
    pub fn new(count: usize, share: u32) -> Self {
        if let Some(seed) = std::env::var("SESSION_TEST_SEED").ok().and_then(|text| text.parse::<u64>().ok()) {
            return Self { next: seed.wrapping_sub(1), left: 1, until: None, given: 0 };
        }
        let Some(time) = std::env::var("SESSION_TEST_LONG").ok().and_then(|text| text.parse().ok()) else {
            return Self { next: 0, left: count, until: None, given: 0 };
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let until = Instant::now() + Duration::from_secs(time) * share / 1000;
        Self { next: Random(now.as_nanos() as u64).next(), left: usize::MAX, until: Some(until), given: 0 }
    }
}

impl Iterator for Seeds {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.left == 0 || self.until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        self.left -= 1;
        self.given += 1;
        self.next = self.next.wrapping_add(1);
        Some(self.next)
    }
}

/// A history in the making. Its parts are explained each for itself; what has no part belongs to all.
pub struct Recorder<M: Model> {
    tick: AtomicU64,
    ops: Mutex<Vec<(Option<usize>, OpOf<M>)>>,
}

impl<M: Model> Recorder<M> {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { tick: AtomicU64::new(0), ops: Mutex::default() })
    }

    /// Notes a call, and what it answers. One that is dropped has no answer.
    pub async fn call(
        &self,
        client: usize,
        part: Option<usize>,
        call: M::Call,
        work: impl Future<Output = Option<M::Answer>>,
    ) -> Option<M::Answer> {
        let start = self.tick.fetch_add(1, SeqCst);
        let op = Op { client, call, answer: None, start, end: NEVER };
        let mut noted = Noted { recorder: self, op: Some((part, op)) };
        let answer = work.await;
        if let (Some((_, op)), Some(answer)) = (&mut noted.op, &answer) {
            op.answer = Some(answer.clone());
            op.end = self.tick.fetch_add(1, SeqCst);
        }
        answer
    }

    /// All that was noted of that part, in the order in which it was called.
    pub fn history(&self, part: usize) -> Vec<OpOf<M>> {
        let ops = self.ops.lock().unwrap();
        let mine = ops.iter().filter(|(of, _)| of.is_none_or(|of| of == part));
        let mut ops: Vec<_> = mine.map(|(_, op)| op.clone()).collect();
        ops.sort_by_key(|op| op.start);
        ops
    }

    /// What is wrong with the history, if anything is.
    pub fn complaint(&self, model: &M, parts: usize) -> Option<String> {
        (0..parts).find_map(|part| {
            let ops = model.split(self.history(part));
            (!is_linearizable(model, &ops)).then(|| explain(model, &shrink(model, &ops)))
        })
    }
}

struct Noted<'a, M: Model> {
    recorder: &'a Recorder<M>,
    op: Option<(Option<usize>, OpOf<M>)>,
}

impl<M: Model> Drop for Noted<'_, M> {
    fn drop(&mut self) {
        self.recorder.ops.lock().unwrap().extend(self.op.take());
    }
}

/// Polls it so many times, and then drops it.
pub async fn cut<T>(polls: Option<usize>, work: impl Future<Output = T>) -> Option<T> {
    let Some(mut left) = polls else { return Some(work.await) };
    let mut work = pin!(work);
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        let polled = work.as_mut().poll(cx).map(Some);
        if polled.is_pending() && left == 0 {
            return Poll::Ready(None);
        }
        polled
    })
    .await
}

/// What goes wrong beside the calls.
pub type Trouble = Arc<dyn Fn(&mut Random) + Send + Sync>;

pub type Client = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs clients side by side.
#[derive(Clone, Copy, PartialEq)]
pub enum Schedule {
    /// As tasks on the threads that there are.
    Threads,
    /// On one thread, in an order that the seed says: it can be had again.
    Seeded,
}

impl Schedule {
    pub async fn run(self, mut rng: Random, clients: Vec<Client>) {
        match self {
            Self::Threads => {
                let tasks: Vec<_> = clients.into_iter().map(tokio::spawn).collect();
                for task in tasks {
                    task.await.unwrap();
                }
            }
            Self::Seeded => {
                let mut clients: VecDeque<Client> = clients.into();
                poll_fn(|cx| {
                    if clients.is_empty() {
                        return Poll::Ready(());
                    }
                    let at = rng.below(clients.len());
                    if clients[at].as_mut().poll(cx).is_ready() {
                        drop(clients.remove(at));
                    }
                    // What was spawned has its turn in between.
                    cx.waker().wake_by_ref();
                    Poll::Pending
                })
                .await;
            }
        }
    }
}

/// Runs it on one thread, where time stands still.
pub fn alone<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(work)
}
