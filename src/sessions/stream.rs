//! Streams: futures that wait for a session to end, and poll the store while they wait.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::{
    clock::Alarm,
    detached::Detached,
    error::Error,
    log,
    record::{Record, id::RecordId},
    sessions::{
        engine::Engine,
        loaded::Loaded,
        watch::{Ending, Known, Look, Pace, Seen, Watch},
        watchers::{Looking, NextStep, Watcher},
    },
    timeout::within,
};

/// A watched session, as one request sees it.
#[derive(Clone)]
pub(crate) struct Watched {
    watcher: Arc<Watcher>,
    /// How many logins there have been. A later one ends the streams.
    logins: u32,
    /// How long the streams wait while the store fails. It is random, so that they do not all end at once.
    patience: Duration,
}

/// A stream that waits for its session to end. It holds no session data.
pub(crate) struct Stream {
    engine: Arc<Engine>,
    watched: Watched,
    place: Option<usize>,
    /// When the stream wakes up next.
    alarm: Option<(Duration, Alarm)>,
}

impl Engine {
    /// Starts to watch a session. `asked` is when its load began at the earliest, and `endings` is the value of
    /// [`Watchers::endings`](crate::sessions::watchers::Watchers::endings) at that time.
    pub(crate) fn watch(&self, loaded: &Loaded, endings: u64, asked: Duration) -> Watched {
        let (watchers, now) = (self.watchers(), self.policy().clock.moment());
        let mut known = self.known(loaded, asked);
        if self.is_touch_due(loaded) {
            // Loading the session touched it.
            known.ttl = self.ttl_at(known.idle, known.deadline, self.now());
        }
        let unknown_after = self.policy().unknown_after(known.idle);
        let watcher = watchers.watch(loaded.id, || {
            let pace = Pace::new(self.policy().watch_interval, unknown_after, watchers.draw());
            Watch::new(known, pace, now)
        });
        watcher.tell(|watch| watch.replace(known.logins));
        if watchers.endings() != endings {
            // The session may have ended between the load and this call.
            watcher.hurry(now);
        }
        let third = u64::try_from(unknown_after.as_nanos() / 3).unwrap_or(u64::MAX).max(1);
        let patience = unknown_after.saturating_add(Duration::from_nanos(watchers.draw() % third));
        Watched { watcher, logins: known.logins, patience }
    }

    /// Touches a watched session.
    pub(crate) async fn use_watched(&self, watched: &Watched) -> Result<(), Error> {
        let _permit = self.permit()?;
        let (watcher, clock) = (&watched.watcher, &self.policy().clock);
        if watcher.is_due(clock.moment()) {
            let look = self.look(watcher.id(), watcher.known()).await;
            let failed = match &look.seen {
                Seen::Failed(error) => Err(error.clone()),
                _ => Ok(()),
            };
            watcher.take(look);
            failed?;
        }
        match watcher.ending(watched.logins) {
            None => {}
            Some(Ending::Closed) => return Err(Error::closed()),
            Some(_) => return Err(Error::not_found()),
        }
        let Known { version, deadline, idle, ttl, at, .. } = watcher.known();
        let left = ttl.saturating_sub(clock.elapsed().saturating_sub(at));
        if !self.is_use_due(idle, deadline, left) {
            return Ok(());
        }
        let Some(_touching) = self.touching(watcher.id()) else { return Ok(()) };
        let (ttl, at) = (self.ttl_at(idle, deadline, self.now()), clock.elapsed());
        let touch = pin!(self.touch_once(watcher.id(), version, ttl));
        within(|| self.request_time(), touch).await.unwrap_or_else(|| Err(Error::too_late()))?;
        watcher.used(ttl, at);
        Ok(())
    }

    /// Asks the store whether a session is live. This does not count as use.
    async fn look(&self, id: RecordId, known: Known) -> Look {
        let clock = &self.policy().clock;
        let (began, from) = (clock.moment(), clock.elapsed());
        let seen = match self.permit() {
            Ok(_permit) => {
                let limit = || self.request_time().min(self.policy().unknown_after(known.idle));
                let loaded = within(limit, pin!(self.load(id))).await;
                match loaded.unwrap_or_else(|| Err(Error::too_late())) {
                    Ok(record) => self.see(record, &known, from),
                    Err(error) => Seen::Failed(error),
                }
            }
            Err(_) => Seen::Closed,
        };
        if let Seen::Failed(error) = &seen {
            log::debug!(error = %error.chain(), session = id.sid(), "could not check whether a watched session is live");
        }
        Look { seen, began, over: clock.moment(), from, to: clock.elapsed() }
    }

    fn see(&self, record: Option<Record>, known: &Known, at: Duration) -> Seen {
        let now = self.now();
        match record {
            None => Seen::Gone,
            // The record is unchanged, so it need not be decoded.
            Some(record) if record.version == known.version && known.deadline > now => Seen::Same(record.ttl),
            Some(record) => match self.read(record.id, record) {
                Ok(loaded) if loaded.is_live_at(now) => Seen::Changed(self.known(&loaded, at)),
                Ok(_) => Seen::Expired,
                Err(error) => Seen::Failed(error),
            },
        }
    }

    fn known(&self, loaded: &Loaded, at: Duration) -> Known {
        let contents = &loaded.contents;
        Known {
            version: loaded.version,
            logins: contents.logins,
            deadline: contents.deadline,
            idle: self.idle(contents),
            ttl: loaded.ttl,
            at,
        }
    }
}

impl Watched {
    /// Returns whether this session is the watched one.
    pub(crate) fn is(&self, loaded: &Loaded) -> bool {
        self.watcher.id() == loaded.id
    }

    /// Returns the same watched session, for streams that begin after its latest login.
    pub(crate) fn since(&self, loaded: &Loaded) -> Self {
        let logins = loaded.contents.logins;
        self.watcher.tell(|watch| watch.replace(logins));
        Self { logins, ..self.clone() }
    }

    /// Returns why the session ended, if it is known to have ended.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.watcher.ending(self.logins)
    }
}

impl Stream {
    pub(crate) fn new(engine: Arc<Engine>, watched: Watched) -> Self {
        Self { engine, watched, place: None, alarm: None }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        let Watched { logins, patience, .. } = self.watched;
        loop {
            let watcher = &self.watched.watcher;
            let now = self.engine.policy().clock.moment();
            let until = match watcher.turn(&mut self.place, logins, patience, now, cx.waker()) {
                NextStep::Hear(ending) => return Poll::Ready(ending),
                NextStep::Wait(until) => Some(until),
                NextStep::Look(looking) => {
                    let mut looking = looking.unwrap_or_else(|| self.begin_look());
                    match Pin::new(&mut looking).poll(cx) {
                        Poll::Ready((_, look)) => {
                            watcher.take(look);
                            continue;
                        }
                        Poll::Pending => watcher.keep(looking, patience),
                    }
                }
            };
            match until {
                Some(until) => ready!(self.poll_alarm(until, cx)),
                None => return Poll::Pending,
            }
        }
    }

    fn begin_look(&self) -> Looking {
        let (engine, watcher) = (Arc::clone(&self.engine), Arc::downgrade(&self.watched.watcher));
        let (id, known) = (self.watched.watcher.id(), self.watched.watcher.known());
        Detached::new(async move { (watcher, engine.look(id, known).await) }, |(watcher, look)| {
            if let Some(watcher) = watcher.upgrade() {
                watcher.take(look);
            }
        })
    }

    fn poll_alarm(&mut self, at: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let alarm = match &mut self.alarm {
            Some((set, alarm)) if *set == at => alarm,
            alarm => &mut alarm.insert((at, self.engine.policy().clock.alarm(at))).1,
        };
        ready!(Pin::new(alarm).poll(cx));
        self.alarm = None;
        Poll::Ready(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.watched.watcher.leave(place);
        }
    }
}
