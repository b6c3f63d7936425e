//! The names of the Redis keys.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD as BASE64, Engine};

use super::slots::SLOTS;
use crate::record::id::{Owner, RecordId};

/// The Redis keys of a namespace.
///
/// A namespace has no braces, so the first brace ends it and two namespaces never share a Redis key. The text between the braces
/// decides the slot in a Cluster.
pub(super) struct Keyspace {
    /// The namespace, and what ends it.
    prefix: String,
}

impl Keyspace {
    pub(super) fn new(namespace: &str) -> Self {
        Self { prefix: format!("{namespace}:{{") }
    }

    /// The Redis key that has a record: its owner's, or one of its own.
    pub(super) fn of(&self, id: RecordId) -> String {
        match id.owner() {
            Some(owner) => self.owner(owner),
            // No owner's key ends like this.
            None => self.key(|key| key.push_str(id.sid()), "}:a"),
        }
    }

    /// The hash with all records of an owner.
    pub(super) fn owner(&self, owner: Owner) -> String {
        self.key(|key| BASE64.encode_string(owner.as_bytes(), key), "}")
    }

    fn key(&self, name: impl FnOnce(&mut String), end: &str) -> String {
        let mut key = String::with_capacity(self.prefix.len() + MAX_NAME + end.len());
        key.push_str(&self.prefix);
        name(&mut key);
        key.push_str(end);
        key
    }
}

const MAX_NAME: usize = 43;

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
    fn an_owner_has_one_key_and_an_anonymous_record_of_that_name_another() {
        let keys = Keyspace::new("sessions");
        let owner = Owners::new("sessions", b"").unwrap().owner("ada");
        let text = owner.to_string();
        let of_owner: RecordId = format!("{text}.AAAAAAAAQACAAAAAAAAAAA").parse().unwrap();
        assert_eq!(keys.of(of_owner), format!("sessions:{{{text}}}"));
        let anonymous: RecordId = text.parse().unwrap();
        assert_eq!(keys.of(anonymous), format!("sessions:{{{text}}}:a"));
    }
}
