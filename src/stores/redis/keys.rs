//! The names of the Redis keys.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD as BASE64, Engine};

use super::slots::SLOTS;
use crate::record::id::{Owner, RecordId, Sid};

/// The Redis keys of a namespace.
///
/// A namespace has no braces, so the first brace ends it and two namespaces never share a Redis key. The text between the braces
/// decides the slot in a Cluster.
pub(super) struct Keyspace {
    /// The namespace, and the characters that end it.
    prefix: String,
}

impl Keyspace {
    pub(super) fn new(namespace: &str) -> Self {
        Self { prefix: format!("{namespace}:{{") }
    }

    /// The Redis key that holds a record: its owner's hash, or its own string.
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

    /// The `MATCH` pattern for the Redis keys of this namespace. It may match others as well.
    pub(super) fn pattern(&self) -> String {
        let mut pattern = String::with_capacity(self.prefix.len() + 1);
        for character in self.prefix.chars() {
            if matches!(character, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern.push('*');
        pattern
    }

    /// Returns what a Redis key of this namespace holds, or `None` for any other Redis key.
    pub(super) fn read(&self, key: &str) -> Option<Holds> {
        let (name, end) = key.strip_prefix(&self.prefix)?.split_once('}')?;
        match end {
            "" => name.parse().ok().map(Holds::Owner),
            ":a" => Sid::parse(name).map(|sid| Holds::Anonymous(RecordId::new(None, sid))),
            _ => None,
        }
    }

    /// Finds an unused Redis key in a certain slot.
    pub(super) fn in_slot(&self, fits: impl Fn(usize) -> bool) -> Option<String> {
        (0..MAX_TRIES).map(|number| self.key(|key| key.push_str(&number.to_string()), "}")).find(|key| fits(slot(key)))
    }

    fn key(&self, name: impl FnOnce(&mut String), end: &str) -> String {
        let mut key = String::with_capacity(self.prefix.len() + MAX_NAME + end.len());
        key.push_str(&self.prefix);
        name(&mut key);
        key.push_str(end);
        key
    }
}

/// What a Redis key holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Holds {
    /// All records of an owner.
    Owner(Owner),
    /// One record without an owner.
    Anonymous(RecordId),
}

const MAX_NAME: usize = 43;
/// One name in 16,384 is in a certain slot.
const MAX_TRIES: u32 = 500_000;

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
    #[test]
    fn a_key_is_read_only_if_it_is_one_of_this_namespace() {
        let keys = Keyspace::new("a");
        let owner: Owner = "AAAAAAAAAAAAAAAAAAAAAA".parse().unwrap();
        let sid: RecordId = "AAAAAAAAQACAAAAAAAAAAA".parse().unwrap();
        for (key, holds) in [(keys.owner(owner), Holds::Owner(owner)), (keys.of(sid), Holds::Anonymous(sid))] {
            assert_eq!(keys.read(&key), Some(holds));
            assert_eq!(Keyspace::new("a:b").read(&key), None);
            for other in [
                format!("a:{key}"),
                format!("{key}x"),
                format!("{key}:a:a"),
                key.replace('A', "B}"),
                key.replace("AAA", ""),
            ] {
                assert_eq!(keys.read(&other), None, "{other}");
            }
        }
        assert_eq!(keys.read(&keys.in_slot(|slot| slot == 77).unwrap()), None);
        assert_eq!(slot(&keys.in_slot(|slot| slot == 77).unwrap()), 77);
    }

    #[test]
    fn what_a_pattern_could_mean_is_escaped() {
        assert_eq!(Keyspace::new("sessions").pattern(), "sessions:{*");
        assert_eq!(Keyspace::new(r"a*b?[c]\").pattern(), r"a\*b\?\[c\]\\:{*");
    }
}
