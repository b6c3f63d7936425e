//! Touches: the store hears in the background that a session was used, at most once in an interval.

use std::{sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::timeout};

use crate::{
    backend::Backend,
    error::Error,
    log,
    random::random_version,
    record::id::RecordId,
    sessions::{engine::Engine, loaded::Loaded},
};

impl<B: Backend> Engine<B> {
    /// Touches the session in the background, unless it was touched recently.
    ///
    /// A record that is not encrypted with the current keyring is encrypted again on this occasion.
    pub(crate) fn touch(self: &Arc<Self>, loaded: &Arc<Loaded>) {
        if !loaded.stale && !self.is_touch_due(loaded) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let Ok(permit) = self.permit() else { return };
        let Some(touching) = self.touching(loaded.id) else { return };
        let (engine, loaded) = (Arc::clone(self), Arc::clone(loaded));
        runtime.spawn(async move {
            let id = loaded.id;
            match timeout(engine.request_time(), engine.refresh(&loaded)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::debug!(%error, session = id.sid(), "could not touch a session"),
                Err(_) => log::debug!(session = id.sid(), "touching a session timed out"),
            }
            drop((touching, permit));
        });
    }

    pub(super) fn is_touch_due(&self, loaded: &Loaded) -> bool {
        self.is_use_due(self.idle(&loaded.contents), loaded.contents.deadline, loaded.ttl)
    }

    /// Returns whether a touch is due, for a session with this idle timeout, deadline and time to live.
    pub(super) fn is_use_due(&self, idle: Option<u64>, deadline: u64, ttl: Duration) -> bool {
        let Some(own) = idle.map(Duration::from_millis) else { return false };
        // At most a tenth of the session's own idle timeout: a longer interval could sign out active users.
        let interval = self.policy().touch_interval.unwrap_or(MAX_TOUCH_INTERVAL).min(own / 10);
        let interval = interval.max(Duration::from_millis(1));
        // The deadline may have shortened the time to live. This check reads the clock, so it comes last.
        own.saturating_sub(ttl) >= interval && self.ttl_at(idle, deadline, self.now()).saturating_sub(ttl) >= interval
    }

    async fn refresh(&self, loaded: &Loaded) -> Result<(), Error> {
        if loaded.stale {
            // If another request wrote in the meantime, that write encrypted the record again.
            let new = Loaded { version: random_version(), ..Loaded::clone(loaded) };
            return self.write(loaded, new, false).await.map(drop);
        }
        self.touch_once(loaded.id, loaded.version, self.ttl(&loaded.contents)).await
    }

    pub(super) async fn touch_once(&self, id: RecordId, version: i64, ttl: Duration) -> Result<(), Error> {
        let touched = self.backend().touch(id, version, ttl).await;
        self.answer(touched, "a session could not be touched")
    }
}

const MAX_TOUCH_INTERVAL: Duration = Duration::from_secs(300);
