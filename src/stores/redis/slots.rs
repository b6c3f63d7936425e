//! The slots of a Cluster: which server holds which.

use std::collections::HashMap;

use redis::{Cmd, Value};

/// How many slots a Cluster has.
pub(super) const SLOTS: usize = 16384;

/// The server of each slot, as `CLUSTER SLOTS` tells it. Servers are numbered in the order of their slots.
pub(super) struct Slots {
    /// The first slot, the last one, and the number of the server.
    ranges: Vec<(usize, usize, usize)>,
    servers: usize,
}

impl Slots {
    pub(super) fn question() -> Cmd {
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        command
    }

    /// Reads the answer to the [`question`](Self::question). `None` if it is something else.
    pub(super) fn read(answer: &Value) -> Option<Self> {
        let Value::Array(answers) = answer else { return None };
        let mut numbers = HashMap::new();
        let mut ranges = Vec::with_capacity(answers.len());
        for answer in answers {
            let Value::Array(parts) = answer else { return None };
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else { return None };
            // The address, and, since it may be unknown, the node's own name.
            let name = format!("{:?}", master.get(..3)?);
            let next = numbers.len();
            let number = *numbers.entry(name).or_insert(next);
            ranges.push((usize::try_from(*first).ok()?, usize::try_from(*last).ok()?, number));
        }
        Some(Self { ranges, servers: numbers.len() })
    }

    pub(super) fn servers(&self) -> usize {
        self.servers
    }

    /// The server of a slot, if one has it.
    pub(super) fn server(&self, slot: usize) -> Option<usize> {
        let range = self.ranges.iter().find(|(first, last, _)| (first..=last).contains(&&slot));
        range.map(|(_, _, server)| *server)
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
        assert!(Slots::read(&Value::Nil).is_none());
        assert!(Slots::read(&Value::Array(vec![Value::Int(1)])).is_none());
    }
}
