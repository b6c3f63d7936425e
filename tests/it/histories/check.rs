//! The linearizability checker: the search of Wing and Gong, with Lowe's memoization.
//!
//! Overlapping calls may have happened in either order; other calls happened in the order in which they were made. A history is
//! linearizable if there is an order in which the sequential model gives all the same answers. A call without an answer may have
//! happened at any time after it was made, or never.

use std::{
    collections::HashSet,
    fmt::{Debug, Write as _},
    hash::Hash,
};

/// What is promised, as one that does one thing after the other.
pub trait Model {
    type State: Clone + Eq + Hash + Debug;
    type Call: Clone + Debug;
    type Answer: Clone + Debug;

    fn start(&self) -> Self::State;

    /// Every state that a call may leave if that is its answer; none if that cannot be its answer. Without one: every state
    /// that it may leave if it happens.
    fn step(&self, state: &Self::State, call: &Self::Call, answer: Option<&Self::Answer>) -> Vec<Self::State>;

    /// The same history with each call that does not happen at one moment as several that do.
    fn split(&self, ops: Vec<OpOf<Self>>) -> Vec<OpOf<Self>> {
        ops
    }

    /// Whether the call, with that answer or with none, has changed nothing. What happened without it can be explained too.
    fn is_read(&self, call: &Self::Call, answer: Option<&Self::Answer>) -> bool;

    /// What may be left out together.
    fn subjects(&self, ops: &[OpOf<Self>]) -> Vec<usize>;

    /// The same call as those see it who do not know of that subject; `None` if there is nothing to see.
    fn without(&self, op: &OpOf<Self>, subject: usize) -> Option<OpOf<Self>>;

    /// What is promised of such a call.
    fn promise(&self, call: &Self::Call) -> &'static str;
}

pub type OpOf<M> = Op<<M as Model>::Call, <M as Model>::Answer>;

/// A call that was made, and what was answered.
#[derive(Clone, Debug)]
pub struct Op<C, A> {
    pub client: usize,
    pub call: C,
    /// `None` if there was none: then `end` is [`NEVER`].
    pub answer: Option<A>,
    pub start: u64,
    pub end: u64,
}

pub const NEVER: u64 = u64::MAX;
/// A history seldom needs more than a tenth of this.
const MOST_TRIED: usize = 30_000;

/// Whether there is an order that explains all answers. After [`MOST_TRIED`] states it gives up, says so, and assumes that there
/// is one: on a busy machine many calls have no answer, and then there are too many orders to try.
pub fn is_linearizable<M: Model + ?Sized>(model: &M, ops: &[OpOf<M>]) -> bool {
    assert!(ops.len() <= 128, "{} calls are too many for one history", ops.len());
    let answered = ops.iter().enumerate().filter(|(_, op)| op.answer.is_some());
    let mut search =
        Search { model, ops, answered: answered.fold(0, |all, (at, _)| all | 1 << at), tried: HashSet::new() };
    search.explains(0, model.start())
}

struct Search<'a, M: Model + ?Sized> {
    model: &'a M,
    ops: &'a [OpOf<M>],
    answered: u128,
    tried: HashSet<(u128, M::State)>,
}

impl<M: Model + ?Sized> Search<'_, M> {
    fn explains(&mut self, mut done: u128, state: M::State) -> bool {
        // A read that fits is taken at once: no other order gains by its coming later.
        let next = loop {
            if done & self.answered == self.answered {
                return true;
            }
            let pending = |at: &usize| done & 1 << at == 0;
            let first_end = (0..self.ops.len()).filter(pending).map(|at| self.ops[at].end).min().unwrap_or(NEVER);
            let next: Vec<usize> =
                (0..self.ops.len()).filter(pending).filter(|at| self.ops[*at].start < first_end).collect();
            let read = next.iter().find(|at| {
                let op = &self.ops[**at];
                op.answer.is_some()
                    && self.model.is_read(&op.call, op.answer.as_ref())
                    && self.model.step(&state, &op.call, op.answer.as_ref()) == [state.clone()]
            });
            match read {
                Some(at) => done |= 1 << at,
                None => break next,
            }
        };
        if self.tried.len() == MOST_TRIED {
            println!("too many orders: a history of {} calls was not checked to its end", self.ops.len());
            return true;
        }
        if !self.tried.insert((done, state.clone())) {
            return false;
        }
        for at in next {
            let op = &self.ops[at];
            for after in self.model.step(&state, &op.call, op.answer.as_ref()) {
                // Without an answer, and without an effect, it may as well not have happened.
                if (op.answer.is_some() || after != state) && self.explains(done | 1 << at, after) {
                    return true;
                }
            }
        }
        false
    }
}

/// Less of a history that cannot be explained, and what is left cannot be explained either.
///
/// Nothing is left out that could have been the explanation: only what came after the answer that is wrong, calls that changed
/// nothing, and whole subjects, for the rest of a history is explained by what explains all of it.
pub fn shrink<M: Model + ?Sized>(model: &M, ops: &[OpOf<M>]) -> Vec<OpOf<M>> {
    let mut ops = shortest(model, ops);
    loop {
        let before = ops.len();
        for subject in model.subjects(&ops) {
            let less: Vec<_> = ops.iter().filter_map(|op| model.without(op, subject)).collect();
            if !is_linearizable(model, &less) {
                ops = shortest(model, &less);
            }
        }
        for at in (0..ops.len()).rev() {
            let mut less = ops.clone();
            let op = less.remove(at);
            if model.is_read(&op.call, op.answer.as_ref()) && !is_linearizable(model, &less) {
                ops = less;
            }
        }
        if ops.len() == before {
            ops.sort_by_key(|op| op.start);
            return ops;
        }
    }
}

/// The history up to the first answer that is wrong.
fn shortest<M: Model + ?Sized>(model: &M, ops: &[OpOf<M>]) -> Vec<OpOf<M>> {
    let mut ends: Vec<u64> = ops.iter().map(|op| op.end).filter(|end| *end != NEVER).collect();
    ends.sort_unstable();
    let until = |end: u64| -> Vec<OpOf<M>> {
        let begun = ops.iter().filter(|op| op.start < end).cloned();
        begun.map(|op| if op.end > end { Op { answer: None, end: NEVER, ..op } } else { op }).collect()
    };
    ends.into_iter().map(until).find(|ops| !is_linearizable(model, ops)).unwrap_or_else(|| ops.to_vec())
}

/// A history that cannot be explained, to be read by a person: time goes to the right.
pub fn explain<M: Model + ?Sized>(model: &M, ops: &[OpOf<M>]) -> String {
    let mut ticks: Vec<u64> = ops.iter().flat_map(|op| [op.start, op.end]).filter(|tick| *tick != NEVER).collect();
    ticks.sort_unstable();
    let at = |tick: u64| ticks.binary_search(&tick).unwrap_or(ticks.len());
    let mut text = String::new();
    for op in ops {
        let (from, to) = (at(op.start), at(op.end));
        let bar =
            format!("{}|{}{}", " ".repeat(from), "-".repeat(to - from - 1), if op.end == NEVER { "…" } else { "|" });
        let answer = op.answer.as_ref().map_or("?".to_owned(), |answer| format!("{answer:?}"));
        let _ = writeln!(text, "{bar:width$}  client {}: {:?} → {answer}", op.client, op.call, width = ticks.len() + 1);
    }
    let wrong = ops.iter().filter(|op| op.end != NEVER).max_by_key(|op| op.end);
    let promise = wrong.map_or("", |op| model.promise(&op.call));
    format!("No order of these calls explains the last answer. {promise}\n{text}")
}
