//! What the time is on the server, as far as it was heard.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use redis::Value;

/// How far each server's clock is ahead of ours, which only goes forward. In a Cluster every node has a clock of its own,
/// so that there is one place for each 64 neighbouring slots.
///
/// Every answer of a script tells the time. The true difference is between what it would be if the script had run when its
/// answer came, and when it was sent. What is kept is the highest of the lower bounds: the server is taken to be no further
/// than it is, so that what the caller has given up is too late there as well.
pub(super) struct ServerTime {
    differences: [AtomicI64; PLACES],
    /// Heard last, from anywhere: a first guess for places that were not heard of.
    last: AtomicI64,
}

impl ServerTime {
    pub(super) fn new() -> Self {
        Self { differences: std::array::from_fn(|_| AtomicI64::new(UNKNOWN)), last: AtomicI64::new(UNKNOWN) }
    }

    /// The server's time at that moment, in milliseconds since 1970; 0 if it was never heard, which is always too late.
    pub(super) fn at(&self, slot: usize, moment: Instant) -> i64 {
        match (self.place(slot).load(Relaxed), self.last.load(Relaxed)) {
            (UNKNOWN, UNKNOWN) => 0,
            (UNKNOWN, guess) => since_start(moment).saturating_add(guess),
            (known, _) => since_start(moment).saturating_add(known),
        }
    }

    /// The server answered `now` to what was sent at `sent`.
    pub(super) fn learn(&self, slot: usize, now: i64, sent: Instant, received: Instant) {
        // It counts in whole milliseconds, and so do we.
        let least = now.saturating_sub(since_start(received) + 1);
        let most = now.saturating_add(1).saturating_sub(since_start(sent));
        let known = self.place(slot).load(Relaxed);
        // Above the upper bound, its clock was set back, or goes slower than ours.
        let better = if (least..=most).contains(&known) { known } else { least };
        if better != known {
            self.place(slot).store(better, Relaxed);
        }
        self.last.store(better, Relaxed);
    }

    fn place(&self, slot: usize) -> &AtomicI64 {
        &self.differences[slot / SLOTS_PER_PLACE % PLACES]
    }
}

/// What `TIME` answers, in milliseconds since 1970.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_narrows_what_is_known_and_a_jump_is_followed() {
        let time = ServerTime::new();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(time.at(0, at(0)), 0);

        time.learn(0, 1_000_000, at(0), at(100));
        let first = time.at(0, at(100));
        assert!((999_998..=1_000_000).contains(&first));
        // A slot that was not heard of is guessed.
        assert_eq!(time.at(9000, at(100)), first);
        // A quick answer says it better, a slow one says nothing new.
        time.learn(0, 1_000_190, at(200), at(201));
        let second = time.at(0, at(201));
        assert!((1_000_188..=1_000_190).contains(&second));
        time.learn(0, 1_000_300, at(202), at(900));
        assert_eq!(time.at(0, at(201)), second);

        // Its clock is set: back, and on.
        time.learn(0, 5_000, at(1000), at(1001));
        assert!((4_998..=5_000).contains(&time.at(0, at(1001))));
        time.learn(0, 9_000_000, at(1100), at(1101));
        assert!((8_999_998..=9_000_000).contains(&time.at(0, at(1101))));
    }
}
