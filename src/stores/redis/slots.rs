//! The slots of a Cluster: which server holds which.

use std::hash::{DefaultHasher, Hash, Hasher};

use redis::{Cmd, Value};

/// The number of slots of a Cluster.
pub(super) const SLOTS: usize = 16384;

/// The server of each slot, as reported by `CLUSTER SLOTS`. Servers are numbered in the order of their slots.
pub(super) struct Slots {
    /// The first slot, the last one, and the number of the server.
    ranges: Vec<(usize, usize, usize)>,
    /// The name of each server.
    servers: Vec<Vec<u8>>,
}

impl Slots {
    pub(super) fn question() -> Cmd {
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        command
    }

    /// Reads the answer to the [`question`](Self::question). Returns `None` if it is something else.
    pub(super) fn read(answer: &Value) -> Option<Self> {
        let Value::Array(answers) = answer else { return None };
        let mut all = Vec::with_capacity(answers.len());
        for answer in answers {
            let Value::Array(parts) = answer else { return None };
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else { return None };
            // Its address may differ from client to client.
            let name = match master.get(2) {
                Some(Value::BulkString(name)) => name.clone(),
                _ => format!("{:?}", master.get(..2)?).into_bytes(),
            };
            all.push((usize::try_from(*first).ok()?, usize::try_from(*last).ok()?, name));
        }
        // The order differs from server to server.
        all.sort_unstable();
        let mut slots = Self { ranges: Vec::with_capacity(all.len()), servers: Vec::new() };
        for (first, last, name) in all {
            let known = slots.servers.iter().position(|server| *server == name);
            let number = known.unwrap_or(slots.servers.len());
            if known.is_none() {
                slots.servers.push(name);
            }
            slots.ranges.push((first, last, number));
        }
        Some(slots)
    }

    pub(super) fn servers(&self) -> usize {
        self.servers.len()
    }

    /// Returns the ID of a server.
    pub(super) fn name(&self, server: usize) -> &[u8] {
        self.servers.get(server).map_or(&[], Vec::as_slice)
    }

    /// Returns the server of a slot, if there is one.
    pub(super) fn server(&self, slot: usize) -> Option<usize> {
        let range = self.ranges.iter().find(|(first, last, _)| (first..=last).contains(&&slot));
        range.map(|(_, _, server)| *server)
    }

    /// Returns a number that changes when a slot moves to another server.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.ranges.hash(&mut hasher);
        self.servers.hash(&mut hasher);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_belongs_to_the_server_that_the_cluster_names() {
        let text = |text: &str| Value::BulkString(text.into());
        let node =
            |port| Value::Array(vec![text("10.0.0.1"), Value::Int(port), text(&format!("id{port}")), text("more")]);
        let range = |first, last, port| Value::Array(vec![Value::Int(first), Value::Int(last), node(port), node(1)]);
        let answer = Value::Array(vec![range(0, 99, 7), range(100, 199, 8), range(300, 16383, 7)]);
        let slots = Slots::read(&answer).unwrap();
        assert_eq!(slots.servers(), 2);
        for (slot, server) in [(0, Some(0)), (99, Some(0)), (100, Some(1)), (200, None), (16383, Some(0))] {
            assert_eq!(slots.server(slot), server, "{slot}");
        }
        assert_eq!(slots.name(1), b"id8");
        assert_eq!(slots.name(2), b"");
        // Another server may tell them in another order, and call others by other addresses.
        let same = Value::Array(vec![range(300, 16383, 7), range(0, 99, 7), range(100, 199, 8)]);
        assert_eq!(Slots::read(&same).unwrap().fingerprint(), slots.fingerprint());
        let moved = Value::Array(vec![range(0, 98, 7), range(99, 199, 8), range(300, 16383, 7)]);
        assert_ne!(Slots::read(&moved).unwrap().fingerprint(), slots.fingerprint());
        assert!(Slots::read(&Value::Nil).is_none());
        assert!(Slots::read(&Value::Array(vec![Value::Int(1)])).is_none());
    }
}
