//! The clock that sessions use, and a manual clock for tests.

use std::{
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::{Instant, Sleep, sleep},
};

/// Tells the time: the machine's clocks, or a clock that a test moves by hand.
///
/// ```
/// # use jam_session::{Clock, MemorySessions};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), jam_session::Error> {
/// let clock = Clock::manual();
/// let sessions = MemorySessions::builder().clock(clock.clone()).build()?;
/// let id = sessions.create("ada", serde_json::json!({})).await?;
///
/// clock.advance(Duration::from_secs(3600));
/// assert!(sessions.get(&id).await?.is_none());
/// # Ok(())
/// # }
/// ```
///
/// # Which clock is used for what
///
/// * **Idle timeouts in memory and in the JSON file** use a monotonic clock that also counts while the machine is suspended
///   (`CLOCK_BOOTTIME` on Linux). After a laptop has slept for eight hours, a session with an idle timeout of one hour has
///   ended. Some systems have no such clock. On those, if the wall clock stays ahead of the monotonic clock for ten seconds
///   or more, the difference is counted as time spent suspended. A wall clock that is wrong for only a moment therefore does
///   not affect idle timeouts.
/// * **Idle timeouts in Redis** use the clock of the Redis server.
/// * **Absolute timeouts and the times in [`SessionInfo`](crate::SessionInfo)** use the wall clock of the application, because
///   they have to mean the same on every node. If the clocks of two nodes differ, an absolute timeout comes earlier or later by
///   the difference, depending on the node that handles the request. Nothing else changes.
///
/// # A wall clock that is set back
///
/// The time that a `Clock` and its clones report never goes backwards. If the wall clock is set back, this clock continues from
/// where it was. So a session or an ID that has ended stays ended, and absolute timeouts do not move. The price: if the wall
/// clock was ahead, even for a moment, this clock stays ahead until the application restarts.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    source: ClockSource,
    /// The latest time of day that any clone has seen, minus the steady time, in nanoseconds.
    start: Arc<AtomicU64>,
}

#[derive(Clone, Debug, Default)]
enum ClockSource {
    #[default]
    System,
    /// The time, and the tasks that wait for it to move.
    Manual(Arc<AtomicU64>, Arc<Notify>),
    /// A wall clock that tests can set back, and the time elapsed.
    #[cfg(test)]
    Adjustable(Arc<[AtomicU64; 2]>),
}

impl Clock {
    /// Returns the machine's clock, which is the default of every builder.
    pub fn system() -> Self {
        Self::from(ClockSource::System)
    }

    /// Returns a clock that moves only by [`advance`](Self::advance). It starts at the machine's time.
    #[doc(alias = "test", alias = "mock")]
    pub fn manual() -> Self {
        Self::manual_at(SystemTime::now())
    }

    /// Returns a clock that moves only by [`advance`](Self::advance) and starts at this time, for tests that need sessions
    /// created in the past.
    pub fn manual_at(time: SystemTime) -> Self {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from(ClockSource::Manual(Arc::new(millis(since_epoch).into()), Arc::default()))
    }

    /// Moves a manual clock and all its clones forward. Does nothing to the machine's clock.
    ///
    /// A future that waits for this clock, such as [`Session::ended`](crate::Session::ended), is woken.
    pub fn advance(&self, by: Duration) {
        if let ClockSource::Manual(now, moved) = &self.source {
            // It saturates, so it never goes back however far it is moved.
            let _ = now.fetch_update(SeqCst, SeqCst, |now| Some(now.saturating_add(millis(by))));
            moved.notify_waiters();
        }
        #[cfg(test)]
        if let ClockSource::Adjustable(clocks) = &self.source {
            clocks.iter().for_each(|clock| _ = clock.fetch_add(millis(by), SeqCst));
        }
    }

    /// Returns a manual clock whose wall clock can be [set](Self::set_wall) back.
    #[cfg(test)]
    pub(crate) fn adjustable() -> Self {
        Self::from(ClockSource::Adjustable(Arc::new([millis(since_epoch()).into(), AtomicU64::new(1)])))
    }

    #[cfg(test)]
    pub(crate) fn set_wall(&self, to: u64) {
        if let ClockSource::Adjustable(clocks) = &self.source {
            clocks[0].store(to, SeqCst);
        }
    }

    #[cfg(feature = "conformance")]
    pub(crate) fn is_manual(&self) -> bool {
        matches!(self.source, ClockSource::Manual(..))
    }

    /// Returns the wall-clock time, which never goes backwards. Use it for times that other processes also read.
    pub fn now(&self) -> SystemTime {
        time(self.now_ms())
    }

    /// Returns the monotonic time since an arbitrary start. Use it for durations within one process. It includes the time
    /// during which the machine is suspended.
    pub fn elapsed(&self) -> Duration {
        match &self.source {
            ClockSource::System => machine::elapsed(),
            ClockSource::Manual(now, _) => Duration::from_millis(now.load(SeqCst)),
            #[cfg(test)]
            ClockSource::Adjustable(clocks) => Duration::from_millis(clocks[1].load(SeqCst)),
        }
    }

    /// Returns the time that [alarms](Self::alarm) use. With the machine's clock, this is tokio's time, which a test can pause.
    pub(crate) fn moment(&self) -> Duration {
        match &self.source {
            ClockSource::System => Instant::now().saturating_duration_since(*START),
            _ => self.elapsed(),
        }
    }

    /// Waits until the [`moment`](Self::moment) has come.
    pub(crate) fn alarm(&self, at: Duration) -> Alarm {
        match &self.source {
            ClockSource::Manual(now, moved) => Alarm::Moved {
                // Rounded up, so that an alarm never rings too early.
                at: millis(at.saturating_add(Duration::from_nanos(999_999))),
                now: Arc::clone(now),
                moved: Arc::clone(moved),
                wait: Box::pin(Arc::clone(moved).notified_owned()),
            },
            _ => Alarm::Timer(Box::pin(sleep(at.saturating_sub(self.moment())))),
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        // Read in this order, so that time that passes in between makes the start too early, but never too late.
        let wall = self.wall();
        let steady = self.steady();
        let start = nanos(wall.saturating_sub(steady));
        let latest = self.start.load(Relaxed);
        // Written only if the wall clock was moved forward, to avoid contention with clones on other cores.
        if start > latest {
            self.start.fetch_max(start, Relaxed);
        }
        millis(Duration::from_nanos(start.max(latest)).saturating_add(steady))
    }

    /// Returns what the wall clock says, in milliseconds since 1970, even if it was set back.
    pub(crate) fn wall_ms(&self) -> u64 {
        millis(self.wall())
    }

    /// The monotonic time that drives the time of day. It may stand still while the machine is suspended.
    fn steady(&self) -> Duration {
        match &self.source {
            ClockSource::System => machine::steady(),
            _ => self.elapsed(),
        }
    }

    fn wall(&self) -> Duration {
        match &self.source {
            ClockSource::System => since_epoch(),
            ClockSource::Manual(now, _) => Duration::from_millis(now.load(SeqCst)),
            #[cfg(test)]
            ClockSource::Adjustable(clocks) => Duration::from_millis(clocks[0].load(SeqCst)),
        }
    }

    /// Returns the same clock with a separate time of day, which starts at `now` or later.
    pub(crate) fn not_before(&self, now: u64) -> Self {
        let start = nanos(Duration::from_millis(now).saturating_sub(self.steady()));
        Self { source: self.source.clone(), start: Arc::new(self.start.load(Relaxed).max(start).into()) }
    }
}

/// The future of [`Clock::alarm`].
pub(crate) enum Alarm {
    Timer(Pin<Box<Sleep>>),
    Moved { at: u64, now: Arc<AtomicU64>, moved: Arc<Notify>, wait: Pin<Box<OwnedNotified>> },
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self {
            Self::Timer(sleep) => sleep.as_mut().poll(cx),
            Self::Moved { at, now, moved, wait } => {
                // Register before reading the time, so that no move is missed.
                while now.load(SeqCst) < *at {
                    ready!(wait.as_mut().poll(cx));
                    *wait = Box::pin(Arc::clone(moved).notified_owned());
                }
                Poll::Ready(())
            }
        }
    }
}

/// When the [moments](Clock::moment) of the machine's clock began.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl From<ClockSource> for Clock {
    fn from(source: ClockSource) -> Self {
        Self { source, start: Arc::default() }
    }
}

/// Whole milliseconds, at most `u64::MAX`.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whole nanoseconds, at most `u64::MAX`, which is in the year 2554.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The time of day that is this many milliseconds after 1970.
pub(crate) fn time(millis: u64) -> SystemTime {
    // Saturates, because a manual clock may have been moved past what the platform can represent.
    UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(UNIX_EPOCH)
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// For machines with a clock that also counts while they are suspended.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
mod machine {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    pub(super) use elapsed as steady;

    pub(super) fn elapsed() -> Duration {
        #[cfg(not(target_vendor = "apple"))]
        let clock = ClockId::Boottime;
        // On this system it counts while the machine is asleep. `Instant` reads another clock.
        #[cfg(target_vendor = "apple")]
        let clock = ClockId::Monotonic;
        // It counts from the start of the machine, so it is not negative.
        clock_gettime(clock).try_into().unwrap_or_default()
    }
}

/// For machines whose clock stops while they are suspended. The wall clock tells how long that was.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
mod machine {
    use std::{
        sync::{LazyLock, Mutex, PoisonError},
        time::{Duration, Instant},
    };

    use super::{asleep::Asleep, since_epoch};

    static START: LazyLock<(Instant, Mutex<Asleep>)> =
        LazyLock::new(|| (Instant::now(), Mutex::new(Asleep::new(since_epoch()))));

    pub(super) fn elapsed() -> Duration {
        let (start, asleep) = &*START;
        asleep.lock().unwrap_or_else(PoisonError::into_inner).elapsed(start.elapsed(), since_epoch())
    }

    /// Time asleep is not added, because the wall clock already includes it.
    pub(super) fn steady() -> Duration {
        START.0.elapsed()
    }
}

#[cfg(any(test, not(any(target_os = "linux", target_os = "android", target_vendor = "apple"))))]
mod asleep {
    use std::time::Duration;

    /// Measures the time asleep, by how much the wall clock is ahead of a clock that stops during sleep.
    pub(super) struct Asleep {
        /// The time of the wall clock when the other clock was at zero.
        start: Duration,
        /// How long the machine has slept so far.
        slept: Duration,
        /// Since when the wall clock has been ahead, and by how much at the least.
        ahead: Option<(Duration, Duration)>,
    }

    impl Asleep {
        pub(super) fn new(wall: Duration) -> Self {
            Self { start: wall, slept: Duration::ZERO, ahead: None }
        }

        /// Returns the time since the start, from the time awake and the wall clock.
        pub(super) fn elapsed(&mut self, awake: Duration, wall: Duration) -> Duration {
            let ahead = wall.saturating_sub(self.start).saturating_sub(awake).saturating_sub(self.slept);
            self.ahead = match self.ahead {
                _ if ahead < TOLERATED => None,
                None => Some((awake, ahead)),
                Some((since, least)) => Some((since, least.min(ahead))),
            };
            if let Some((_, least)) = self.ahead.filter(|(since, _)| awake.saturating_sub(*since) >= BELIEVED_AFTER) {
                self.slept = self.slept.saturating_add(least);
                self.ahead = None;
            }
            awake.saturating_add(self.slept)
        }
    }

    /// Clocks that are adjusted in small steps drift by less.
    const TOLERATED: Duration = Duration::from_secs(1);
    /// How long the wall clock has to be ahead, so that a brief error is ignored.
    const BELIEVED_AFTER: Duration = Duration::from_secs(10);
}

#[cfg(test)]
mod tests {
    use super::{asleep::Asleep, *};

    #[test]
    fn a_manual_clock_never_goes_back() {
        let clock = Clock::manual();
        let before = clock.elapsed();
        clock.advance(Duration::MAX);
        assert!(clock.elapsed() > before);
        clock.advance(Duration::from_secs(1));
        assert!(clock.elapsed() > before);
    }

    #[test]
    fn an_alarm_rings_when_the_clock_is_moved_and_never_too_early() {
        let clock = Clock::manual();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let at = clock.moment() + Duration::from_micros(5_001);
        let mut alarm = clock.alarm(at);
        for _ in 0..5 {
            assert!(Pin::new(&mut alarm).poll(&mut cx).is_pending());
            clock.advance(Duration::from_millis(1));
        }
        assert!(Pin::new(&mut alarm).poll(&mut cx).is_pending());
        clock.advance(Duration::from_millis(1));
        assert!(Pin::new(&mut alarm).poll(&mut cx).is_ready() && clock.moment() >= at);
    }

    #[test]
    fn p18_a_clock_that_is_not_to_go_back_goes_on_from_there() {
        let wall = Clock::adjustable();
        let start = wall.now_ms();
        assert_eq!(wall.not_before(start - 5_000).now_ms(), start);
        let clock = wall.not_before(start + 5_000);
        assert_eq!((clock.now_ms(), wall.now_ms()), (start + 5_000, start));
        wall.advance(Duration::from_secs(60));
        assert_eq!((clock.now_ms(), wall.now_ms()), (start + 65_000, start + 60_000));
    }

    #[test]
    fn p18_the_time_of_day_goes_on_when_the_wall_clock_is_set_back() {
        let s = Duration::from_secs;
        let clock = Clock::adjustable();
        let clone = clock.clone();
        let start = clock.now_ms();
        clock.advance(s(10));
        assert_eq!(clone.now_ms(), start + 10_000);
        for back in [start - 3_600_000, 0, start + 9_999] {
            clock.set_wall(back);
            assert_eq!((clock.now_ms(), clone.now_ms()), (start + 10_000, start + 10_000));
        }
        clock.advance(s(5));
        assert_eq!(clone.now_ms(), start + 15_000);
        // It is followed forward, by every clone, and that is not taken back either.
        clock.set_wall(start + 100_000);
        assert_eq!(clock.now_ms(), start + 100_000);
        clock.set_wall(start + 15_000);
        clock.advance(s(1));
        assert_eq!(clone.now_ms(), start + 101_000);
        // A new clock begins with the wall clock.
        assert_eq!(Clock::from(clock.source).now_ms(), start + 16_000);
    }

    #[test]
    fn the_machines_time_of_day_is_that_of_the_wall_clock() {
        let clock = Clock::system();
        for _ in 0..1_000 {
            let before = clock.now_ms();
            assert!(before <= clock.now_ms());
            // If the machine's clock is set meanwhile it is ahead, so only one side holds for sure.
            assert!(millis(since_epoch()).saturating_sub(3_600_000) <= clock.now_ms());
        }
    }

    /// In a namespace whose `CLOCK_BOOTTIME` is eight hours ahead of every other clock, as after eight hours asleep.
    #[cfg(target_os = "linux")]
    #[test]
    fn p18_the_time_that_a_machine_sleeps_counts() {
        use std::io::Write;

        const CHILD: &str = "JAM_SESSION_ASLEEP";
        let uptime = || {
            let text = std::fs::read_to_string("/proc/uptime").unwrap();
            Duration::from_secs_f64(text.split(' ').next().unwrap().parse().unwrap())
        };
        let (before, elapsed, after) = (uptime(), Clock::system().elapsed(), uptime());
        // It tells hundredths of a second.
        let hundredth = Duration::from_millis(10);
        assert!(before <= elapsed + hundredth && elapsed <= after + hundredth, "{before:?} {elapsed:?} {after:?}");
        if std::env::var_os(CHILD).is_some() {
            return;
        }
        let child = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--time", "--boottime", "28800"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "clock::tests::p18_the_time_that_a_machine_sleeps_counts"])
            .env(CHILD, "")
            .output();
        let ran = match child {
            Ok(child) if child.status.success() => "after eight hours asleep".to_owned(),
            Ok(child) if String::from_utf8_lossy(&child.stderr).starts_with("unshare:") => {
                "without sleep: a time namespace is forbidden here".to_owned()
            }
            Err(error) => format!("without sleep: {error}"),
            Ok(child) => panic!("{}", String::from_utf8_lossy(&child.stdout)),
        };
        // Not `eprintln!`, which the harness hides if the test passes.
        let _ = writeln!(std::io::stderr(), "the clock was compared {ran}");
    }

    #[test]
    fn p18_where_no_clock_runs_during_sleep_the_wall_clock_tells_how_long_it_was() {
        let s = Duration::from_secs;
        let wall = s(1_000_000);
        let mut asleep = Asleep::new(wall);
        assert_eq!(asleep.elapsed(s(60), wall + s(60)), s(60));
        // Eight hours asleep.
        let night = s(8 * 3600);
        assert_eq!(asleep.elapsed(s(61), wall + s(61) + night), s(61));
        assert_eq!(asleep.elapsed(s(71), wall + s(71) + night), s(71) + night);
        // And only once.
        assert_eq!(asleep.elapsed(s(200), wall + s(200) + night), s(200) + night);
    }

    #[test]
    fn p18_a_wall_clock_that_is_wrong_for_a_second_ends_no_session() {
        let s = Duration::from_secs;
        let wall = s(1_000_000);
        let mut asleep = Asleep::new(wall);
        for turn in 0..100 {
            let awake = s(20 * turn);
            assert_eq!(asleep.elapsed(awake, wall + awake + s(1 << 40)), awake);
            assert_eq!(asleep.elapsed(awake + s(1), s(0)), awake + s(1));
            assert_eq!(asleep.elapsed(awake + s(2), wall + awake + s(2)), awake + s(2));
        }
    }
}
