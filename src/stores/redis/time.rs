//! The server's clock, estimated from its answers.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use redis::Value;

use crate::clock::{Clock, millis};

/// The difference between each server's clock and our monotonic clock. In a Cluster every node has its own clock, so there is
/// one difference for each 64 neighbouring slots.
///
/// Every answer of a script contains the server's time. The script ran between sending and receiving, so each answer gives a
/// lower and an upper bound of the difference. The highest lower bound is kept. So the estimate is never ahead of the server's
/// clock, and when a caller has given up a write, the server refuses it as too late.
pub(super) struct ServerTime {
    differences: [AtomicI64; PLACES],
    /// Upper bounds of the same differences.
    at_most: [AtomicI64; PLACES],
    /// When each was last reported, by a clock that also counts while the machine is suspended.
    heard: [AtomicU64; PLACES],
    clock: Clock,
    /// The last difference of any server: the first guess for all others.
    last: AtomicI64,
}

impl ServerTime {
    pub(super) fn new() -> Self {
        Self::by(Clock::system())
    }

    fn by(clock: Clock) -> Self {
        Self {
            differences: std::array::from_fn(|_| AtomicI64::new(UNKNOWN)),
            at_most: std::array::from_fn(|_| AtomicI64::new(UNKNOWN)),
            heard: std::array::from_fn(|_| AtomicU64::new(0)),
            clock,
            last: AtomicI64::new(UNKNOWN),
        }
    }

    /// Returns whether the server's time was reported recently enough to read a session by it.
    ///
    /// This bounds for how long a wrong estimate is used after a clock was set, or after the machine was suspended.
    pub(super) fn is_fresh(&self, slot: usize) -> bool {
        let heard = self.heard[Self::place_of(slot)].load(Relaxed);
        heard > 0 && millis(self.clock.elapsed()).saturating_sub(heard) < FRESH
    }

    /// Estimates the server's time at that moment, in milliseconds since 1970. If it is not known, this is 0, which makes
    /// every write too late.
    pub(super) fn at(&self, slot: usize, moment: Instant) -> i64 {
        match (self.place(slot).load(Relaxed), self.last.load(Relaxed)) {
            (UNKNOWN, UNKNOWN) => 0,
            (UNKNOWN, guess) => since_start(moment).saturating_add(guess),
            (known, _) => since_start(moment).saturating_add(known),
        }
    }

    /// Estimates the server's time at that moment, or a little later. If it is not known, this is the maximum.
    ///
    /// So if a record's end was computed by [`at`](Self::at), it never seems to have more time than it was given.
    pub(super) fn at_most(&self, slot: usize, moment: Instant) -> i64 {
        match self.at_most[Self::place_of(slot)].load(Relaxed) {
            UNKNOWN => i64::MAX,
            known => since_start(moment).saturating_add(1).saturating_add(known),
        }
    }

    /// Learns from an answer: the server reported `now` for a request sent at `sent`.
    pub(super) fn learn(&self, slot: usize, now: i64, sent: Instant, received: Instant) {
        // Both clocks are read in whole milliseconds.
        let least = now.saturating_sub(since_start(received) + 1);
        let most = now.saturating_add(1).saturating_sub(since_start(sent));
        let known = self.place(slot).load(Relaxed);
        // A value above the upper bound means that the server's clock was set back or runs slower than ours.
        let better = if (least..=most).contains(&known) { known } else { least };
        if better != known {
            self.place(slot).store(better, Relaxed);
        }
        self.last.store(better, Relaxed);
        // A bound that is a little too high is kept. With a lower one, the remaining time of an unchanged session would seem
        // to grow.
        let at_most = &self.at_most[Self::place_of(slot)];
        if !(least..=most.saturating_add(CLOSE)).contains(&at_most.load(Relaxed)) {
            at_most.store(most, Relaxed);
        }
        self.heard[Self::place_of(slot)].store(millis(self.clock.elapsed()).max(1), Relaxed);
    }

    fn place(&self, slot: usize) -> &AtomicI64 {
        &self.differences[Self::place_of(slot)]
    }

    fn place_of(slot: usize) -> usize {
        slot / SLOTS_PER_PLACE % PLACES
    }
}

/// Reads the answer of `TIME` as milliseconds since 1970.
pub(super) fn time_of(answer: &Value) -> Option<i64> {
    let Value::Array(parts) = answer else { return None };
    let number = |part: Option<&Value>| match part {
        Some(Value::BulkString(text)) => std::str::from_utf8(text).ok()?.parse::<i64>().ok(),
        _ => None,
    };
    Some(number(parts.first())? * 1000 + number(parts.get(1))? / 1000)
}

fn since_start(moment: Instant) -> i64 {
    let since = moment.checked_duration_since(*START).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
const PLACES: usize = 16384 / SLOTS_PER_PLACE;
const SLOTS_PER_PLACE: usize = 64;
const UNKNOWN: i64 = i64::MIN;
/// The time, in milliseconds.
const FRESH: u64 = 1_000;
const CLOSE: i64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_before_a_suspension_is_not_fresh() {
        let clock = Clock::manual();
        let time = ServerTime::by(clock.clone());
        assert!(!time.is_fresh(0), "nothing was heard");
        let now = Instant::now();
        time.learn(0, 1_000_000, now, now);
        assert!(time.is_fresh(0) && !time.is_fresh(9000));
        clock.advance(Duration::from_millis(999));
        assert!(time.is_fresh(0));
        // The machine slept for an hour, in which the clock of `Instant` stood still.
        clock.advance(Duration::from_secs(3600));
        assert!(!time.is_fresh(0));
        time.learn(0, 4_600_000, now, now);
        assert!(time.is_fresh(0));
        assert!((4_600_000..4_600_010).contains(&time.at_most(0, now)));
    }

    #[test]
    fn an_answer_narrows_what_is_known_and_a_jump_is_followed() {
        let time = ServerTime::new();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(time.at(0, at(0)), 0);

        time.learn(0, 1_000_000, at(0), at(100));
        let first = time.at(0, at(100));
        assert!((999_998..=1_000_000).contains(&first));
        // The answer may have been on its way all the time.
        assert!((1_000_100..=1_000_103).contains(&time.at_most(0, at(100))));
        // An unknown slot is guessed.
        assert_eq!(time.at(9000, at(100)), first);
        // A quick answer is more exact, a slow one adds nothing.
        time.learn(0, 1_000_190, at(200), at(201));
        let second = time.at(0, at(201));
        assert!((1_000_188..=1_000_190).contains(&second));
        assert!((1_000_201..=1_000_204).contains(&time.at_most(0, at(201))));
        time.learn(0, 1_000_300, at(202), at(900));
        assert_eq!(time.at(0, at(201)), second);

        // The server's clock is set back, and then forward.
        time.learn(0, 5_000, at(1000), at(1001));
        assert!((4_998..=5_000).contains(&time.at(0, at(1001))));
        assert!((5_001..=5_004).contains(&time.at_most(0, at(1001))));
        time.learn(0, 9_000_000, at(1100), at(1101));
        assert!((8_999_998..=9_000_000).contains(&time.at(0, at(1101))));
    }
}
