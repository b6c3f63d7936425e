//! A log collector, for tests that read the log.

use std::{
    fmt::Write,
    sync::{Arc, LazyLock, Mutex},
};

use tracing::{
    Dispatch,
    subscriber::{DefaultGuard, NoSubscriber, set_default},
};

/// Keeps the events of one thread.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<String>>);

impl Events {
    /// Collects the events of this thread until the guard is dropped.
    pub fn collect() -> (Self, DefaultGuard) {
        LazyLock::force(&OTHERS);
        let events = Self::default();
        let guard = set_default(events.clone());
        (events, guard)
    }

    pub fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

/// Two dispatchers that are always there.
///
/// While there is only one, tracing-core 0.1 asks the thread that first reaches a callsite whether anybody wants its events, and
/// keeps the answer. That may be the thread of another test, which collects nothing.
static OTHERS: LazyLock<[Dispatch; 2]> = LazyLock::new(|| [(); 2].map(|()| Dispatch::new(NoSubscriber::new())));

impl tracing::Subscriber for Events {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = self.0.lock().unwrap();
        write!(text, "{}", event.metadata().level()).unwrap();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            write!(text, " {field}={value:?}").unwrap();
        });
        text.push('\n');
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
