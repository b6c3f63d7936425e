//! Counters of unanswered operations, one per server.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use super::slots::{SLOTS, Slots};

/// How often in a row each server did not answer. In a Cluster every server has its own count, because the answers of other nodes
/// say nothing about a dead one.
pub(super) struct Silences {
    /// The server of each slot of a Cluster. Empty otherwise.
    servers: Box<[AtomicU8]>,
    counts: [AtomicU32; SERVERS],
}

impl Silences {
    pub(super) fn new(is_cluster: bool) -> Self {
        // Until the topology is known, neighbouring slots count as different servers.
        let slots = if is_cluster { SLOTS } else { 0 };
        let servers = (0..slots).map(|slot| AtomicU8::new((slot % SERVERS) as u8)).collect();
        Self { servers, counts: [const { AtomicU32::new(0) }; SERVERS] }
    }

    /// Learns which server holds which slots.
    pub(super) fn learn(&self, slots: &Slots) {
        for (slot, number) in self.servers.iter().enumerate() {
            if let Some(server) = slots.server(slot) {
                number.store((server % SERVERS) as u8, Relaxed);
            }
        }
    }

    /// Counts a silence for a slot, and returns whether there were too many in a row.
    pub(super) fn are_too_many(&self, slot: usize) -> bool {
        (self.of(slot).fetch_add(1, Relaxed) + 1).is_multiple_of(TOO_MANY)
    }

    /// Resets the count, because the server of a slot answered.
    pub(super) fn end(&self, slot: usize) {
        self.of(slot).store(0, Relaxed);
    }

    /// Resets all counts, for a new connection.
    pub(super) fn forget(&self) {
        self.counts.iter().for_each(|count| count.store(0, Relaxed));
    }

    fn of(&self, slot: usize) -> &AtomicU32 {
        &self.counts[self.servers.get(slot).map_or(0, |server| server.load(Relaxed).into())]
    }
}

const TOO_MANY: u32 = 3;
/// The number of counts. In a larger Cluster, some servers share one.
const SERVERS: usize = 64;

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    #[test]
    fn three_silences_of_one_server_are_too_many_whatever_others_answer() {
        let server = Silences::new(false);
        assert_eq!([1, 2000, 16383].map(|slot| server.are_too_many(slot)), [false, false, true]);
        server.end(7);
        assert!(!server.are_too_many(1) && !server.are_too_many(2));

        let cluster = Silences::new(true);
        let node = |first, last, port| {
            let address = Value::Array(vec![Value::BulkString(b"host".into()), Value::Int(port), Value::Nil]);
            Value::Array(vec![Value::Int(first), Value::Int(last), address])
        };
        let slots = Slots::read(&Value::Array(vec![node(0, 8191, 1), node(8192, 16383, 2)])).unwrap();
        cluster.learn(&slots);
        assert!(!cluster.are_too_many(1) && !cluster.are_too_many(100));
        cluster.end(9000);
        assert!(cluster.are_too_many(8000));
        cluster.forget();
        assert!(!cluster.are_too_many(1));
    }
}
