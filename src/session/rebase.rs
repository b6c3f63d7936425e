//! A rebase: applies recorded changes to another base.

use std::mem;

use crate::session::{
    change::{Change, Staged},
    presented::Base,
};

/// Changes that are no longer needed. They hold the application's closures, which must be dropped outside every lock.
pub(crate) type Discarded = Vec<Change>;

/// The recorded changes of a request, and the base that they are applied to. It owns a copy of the data, because it runs
/// closures outside the lock.
pub(crate) struct Rebase {
    pub(super) base: Base,
    pub(super) staged: Staged,
    /// The changes that were resolved so far, and how many recorded ones they stand for.
    pub(super) resolved: Vec<Change>,
    pub(super) seen: usize,
    pub(super) todo: Vec<Change>,
    /// Whether the changes were recorded on another base, so that closures run again.
    pub(super) again: bool,
    pub(super) revision: u64,
    pub(super) discarded: Discarded,
}

/// The result of replacing the base.
pub(crate) enum Adopted {
    Done(#[allow(dead_code, reason = "it is there to be dropped outside the lock")] Discarded),
    /// The base is replaced after this rebase has run, because there are changes to apply to it.
    After(Box<Rebase>),
}

impl Rebase {
    /// Applies the changes to the base in order, each to the result of the one before. The application's closures run here,
    /// outside every lock.
    pub(crate) fn run(&mut self) {
        self.seen += self.todo.len();
        for change in mem::take(&mut self.todo) {
            let change = if self.again { change.unresolved() } else { change };
            for change in change.resolve(&self.staged) {
                // A failing change fails at the commit.
                let _ = self.staged.apply(&change, self.base.key());
                self.resolved.push(change);
            }
        }
    }
}
