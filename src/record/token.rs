//! The text in the cookie: [`SessionId`], and the secret inside it.
//!
//! The text is `<owner>.<sid>.<secret>` for a session with a session key, and `<sid>.<secret>` for a visitor's session. The
//! backend sees only the part before the secret, the [`RecordId`]. The browser keeps the secret, and the record keeps its
//! SHA-256, so a stolen copy of the store cannot be used to sign in. With a [`Keyring`](crate::Keyring), the whole text is
//! encrypted, and has no dots.

use std::fmt;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD as BASE64, Engine};
use ctutils::CtEq;
use sha2::{Digest, Sha256};

use crate::{
    error::Error,
    random::random,
    record::{
        id::{RecordId, Sid, decode},
        keyring::{self, Keys},
    },
};

/// A session ID: the text in the cookie. It is a secret, and [`as_str`](Self::as_str) returns it.
///
/// It has no `Display`, and its `Debug` output is empty, because anyone who reads a session ID in a log can use the session.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionId(String);

/// The parsed text of an ID: the record, and the secret that opens it.
pub(crate) struct Credentials {
    pub(crate) record: RecordId,
    pub(crate) secret: Secret,
    /// Whether one of our keys encrypted the text, which proves that we issued it.
    pub(crate) is_proven: bool,
}

/// The result of parsing a text that may be an ID.
pub(crate) enum IdText {
    Id(Credentials),
    /// It looks like an encrypted ID, but none of our keys decrypts it.
    Foreign,
    Malformed,
}

/// 256 random bits that only the browser keeps.
#[derive(Clone)]
pub(crate) struct Secret([u8; 32]);

/// The SHA-256 of a [`Secret`], which the record keeps.
#[derive(Clone, Copy)]
pub(crate) struct SecretHash([u8; 32]);

impl SessionId {
    /// Returns the text as it is in the cookie. Treat it like a password.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// # Errors
    /// `Unavailable` if it has to be encrypted and the system has no random bytes.
    pub(crate) fn new(keys: Option<&Keys>, record: RecordId, secret: &Secret) -> Result<Self, Error> {
        let mut plain = String::with_capacity(Self::MAX_PLAIN);
        record.write_text(&mut plain);
        plain.push('.');
        BASE64.encode_string(secret.0, &mut plain);
        match keys.filter(|keys| keys.encrypts()) {
            None => Ok(Self(plain)),
            Some(keys) => Ok(Self(BASE64.encode(keys.ids.seal(b"", plain.as_bytes())?))),
        }
    }

    /// Wraps a text that [`read`](Self::read) has accepted.
    pub(crate) fn known(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Reads only texts that [`new`](Self::new) can have written.
    pub(crate) fn read(keys: Option<&Keys>, text: &str, now: impl FnOnce() -> u64) -> IdText {
        if text.len() > Self::MAX_LEN {
            return IdText::Malformed;
        }
        // An encrypted text has no dots.
        if !text.contains('.') {
            return Self::read_sealed(keys, text);
        }
        match (Self::parse(text, false), keys) {
            (None, _) => IdText::Malformed,
            // It may be valid in a process without these keys.
            (Some(_), Some(keys)) if !keys.takes_plain(now()) => IdText::Foreign,
            (Some(id), _) => IdText::Id(id),
        }
    }

    fn read_sealed(keys: Option<&Keys>, text: &str) -> IdText {
        let Some(sealed) = BASE64.decode(text).ok().filter(|sealed| keyring::is_sealed(sealed)) else {
            return IdText::Malformed;
        };
        // A client can send any number of these. They are logged once per request.
        let Some(opened) = keys.and_then(|keys| keys.ids.open(b"", &sealed).ok()) else { return IdText::Foreign };
        let id = std::str::from_utf8(&opened.text).ok().and_then(|plain| Self::parse(plain, true));
        id.map_or(IdText::Malformed, IdText::Id)
    }

    fn parse(plain: &str, is_proven: bool) -> Option<Credentials> {
        let (record, secret) = plain.rsplit_once('.')?;
        Some(Credentials { record: RecordId::parse(record)?, secret: Secret(decode(secret)?), is_proven })
    }

    const MAX_PLAIN: usize = RecordId::MAX_LEN + 1 + 43;

    /// The length of the shortest ID: a visitor's, with the shortest name.
    pub(crate) const MIN_LEN: usize = Sid::MIN_LEN + 1 + 43;

    /// The length of the longest ID.
    pub(crate) const MAX_LEN: usize = (4 * (Self::MAX_PLAIN + keyring::OVERHEAD)).div_ceil(3);
}

impl AsRef<str> for SessionId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionId").finish_non_exhaustive()
    }
}

impl Secret {
    pub(crate) fn random() -> Result<Self, Error> {
        random().map(Self)
    }

    /// Makes a secret and a public name with one call to the operating system.
    pub(crate) fn random_with_sid() -> Result<(Self, Sid), Error> {
        let bytes: [u8; 48] = random()?;
        let (mut secret, mut sid) = ([0; 32], [0; 16]);
        secret.copy_from_slice(&bytes[..32]);
        sid.copy_from_slice(&bytes[32..]);
        Ok((Self(secret), Sid::from_random(sid)?))
    }

    pub(crate) fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.0).into())
    }
}

impl SecretHash {
    /// Compares in constant time, so that the time taken does not reveal where two hashes differ.
    pub(crate) fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).to_bool()
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A placeholder until there is a secret.
    pub(crate) fn none() -> Self {
        Self([0; 32])
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        decode(text).map(Self)
    }
}

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::id::{Owner, Owners};

    fn id(owner: Option<Owner>) -> (SessionId, RecordId, Secret) {
        let record = RecordId::new(owner, Sid::random().unwrap());
        let secret = Secret::random().unwrap();
        (SessionId::new(None, record, &secret).unwrap(), record, secret)
    }

    fn read(text: &str) -> Option<Credentials> {
        match SessionId::read(None, text, || 0) {
            IdText::Id(id) => Some(id),
            IdText::Foreign | IdText::Malformed => None,
        }
    }

    #[test]
    fn what_is_printed_is_parsed() {
        let owner = Owners::new("sessions", b"").unwrap().owner("ada");
        for owner in [None, Some(owner)] {
            let (id, record, secret) = id(owner);
            let read = read(id.as_str()).unwrap();
            assert_eq!(read.record, record);
            assert!(read.secret.hash().matches(&secret.hash()));
            assert!(!read.is_proven);
            assert_eq!(record.to_string().parse::<RecordId>().unwrap(), record);
        }
    }

    /// Issued by version 0.1.0: every later version must take it, and find the same record.
    #[test]
    fn the_golden_ids_are_read_and_written() {
        let owner = Owners::new("sessions", b"").unwrap().owner("ada");
        let secret = Secret(std::array::from_fn(|i| i as u8));
        for (owner, golden) in [
            (None, "AAAAAAAAQACAAAAAAAAAAA.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"),
            (Some(owner), "Rii4kzINEgUu4Shaqdfvmg.AAAAAAAAQACAAAAAAAAAAA.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"),
        ] {
            let record = RecordId::new(owner, Sid::parse("AAAAAAAAQACAAAAAAAAAAA").unwrap());
            assert_eq!(SessionId::new(None, record, &secret).unwrap().as_str(), golden);
            let read = read(golden).unwrap();
            assert_eq!(read.record, record);
            assert!(read.secret.hash().matches(&secret.hash()));
        }
    }

    #[test]
    fn one_secret_has_one_spelling() {
        let (id, ..) = id(None);
        let (head, last) = id.as_str().split_at(id.as_str().len() - 1);
        let others = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let secret = read(id.as_str()).unwrap().secret;
        for other in others.chars().filter(|c| !last.contains(*c)) {
            // 43 characters hold 258 bits: the last two must be zero, or two texts would be one ID.
            if let Some(read) = read(&format!("{head}{other}")) {
                assert!(!read.secret.hash().matches(&secret.hash()));
            }
        }
    }

    #[test]
    fn what_is_not_an_id_is_none() {
        let (id, ..) = id(None);
        let long = "a".repeat(4096);
        for text in ["", ".", "..", "...", "a.b", "../../etc/passwd", "\0", "é", &long, &id.as_str()[1..]] {
            assert!(read(text).is_none() || text.len() == id.as_str().len() - 1, "{text}");
        }
        for end in 0..id.as_str().len() {
            assert!(read(&id.as_str()[..end]).is_none());
        }
    }

    #[test]
    fn nothing_of_an_id_prints_its_secret_or_its_owner() {
        let owner = Owners::new("sessions", b"").unwrap().owner("ada");
        let (id, record, _) = id(Some(owner));
        let printed = format!("{id:?} {record:?} {owner:?}");
        assert!(!printed.contains(&id.as_str()[id.as_str().len() - 43..]));
        assert!(!printed.contains(&owner.to_string()));
    }
}
