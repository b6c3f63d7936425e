//! The names of the Redis keys.

use super::slots::SLOTS;
use crate::record::id::{Owner, RecordId};

/// The Redis keys of a namespace.
///
/// A namespace has no braces, so the first brace ends it and two namespaces never share a Redis key. The text between the braces
/// decides the slot in a Cluster, so all keys of an owner are in one slot.
pub(super) struct Keyspace {
    namespace: String,
}

/// The Redis keys of one record.
pub(super) struct RecordKeys {
    pub(super) record: String,
    /// `None` for an anonymous record.
    pub(super) index: Option<String>,
}

impl Keyspace {
    pub(super) fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    /// Each kind of Redis key has its own ending, so no `sid` leads to another kind.
    pub(super) fn of(&self, id: RecordId) -> RecordKeys {
        match id.owner() {
            Some(owner) => RecordKeys { record: self.record(owner, id.sid()), index: Some(self.index(owner)) },
            None => RecordKeys { record: format!("{}:{{{}}}:a", self.namespace, id.sid()), index: None },
        }
    }

    pub(super) fn record(&self, owner: Owner, sid: &str) -> String {
        format!("{}:{{{owner}}}:s:{sid}", self.namespace)
    }

    pub(super) fn index(&self, owner: Owner) -> String {
        format!("{}:{{{owner}}}:i", self.namespace)
    }

    /// Holds the last clears of an owner.
    pub(super) fn cleared(&self, owner: Owner) -> String {
        format!("{}:{{{owner}}}:c", self.namespace)
    }
}

/// The slot of a Redis key in a Cluster: the CRC-16 (XMODEM) of the text between the first braces.
pub(super) fn slot(key: &str) -> usize {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or(key, |(tag, _)| tag);
    let crc = tag.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| (crc << 1) ^ if crc & 0x8000 != 0 { 0x1021 } else { 0 })
    });
    usize::from(crc) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::id::Owners;

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(slot("123456789"), 0x31C3);
        assert_eq!(slot("{user1000}.following"), slot("{user1000}.followers"));
        assert_eq!(slot("foo"), 12182);
    }

    #[test]
    fn all_keys_of_an_owner_are_in_one_slot_and_none_is_another() {
        let keys = Keyspace::new("sessions");
        let owner = Owners::new("sessions", b"").unwrap().owner("ada");
        let sid = "AAAAAAAAQACAAAAAAAAAAA";
        let all = [keys.record(owner, sid), keys.index(owner), keys.cleared(owner)];
        assert!(all.iter().all(|key| slot(key) == slot(&all[0])));

        let same_text: RecordId = owner.to_string().parse().unwrap();
        let anonymous = keys.of(same_text);
        assert!(anonymous.index.is_none());
        assert!(!all.contains(&anonymous.record));
    }
}
