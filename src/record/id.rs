//! What a session is called: by the browser, by the backend, and by its owner.
//!
//! The text in the cookie, a [`SessionId`], is `<slot>.<sid>.<secret>` for a session with a key and `<sid>.<secret>` for
//! an anonymous one. The backend gets to see only the first part of it, the [`RecordId`]; the secret stays with the
//! browser, and the record holds its SHA-256. Whoever steals the store signs in nowhere. With a
//! [`Keyring`](crate::Keyring) the whole text is sealed, and has no dots.

use std::{
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD as BASE64, Engine};
use ctutils::CtEq;
use hashbrown::DefaultHashBuilder;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::{
    error::{Error, ErrorKind},
    record::keyring::{self, Keys, Purpose},
};

/// The secret that leads to one session: what the cookie holds. [`as_str`](Self::as_str) gives its text.
///
/// It never prints itself: a log line with a session ID in it is a way to sign in.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionId(String);

/// Names a record in a backend: the [`Owner`] of a session with a key, or none, and the session's public name, its `sid`.
///
/// As text it is `<owner>.<sid>` or `<sid>`, at most [`RecordId::MAX_LEN`] characters of `[A-Za-z0-9_.-]`.
/// Its `Debug`, for logs, leaves out the owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordId {
    owner: Option<Owner>,
    sid: Sid,
}

/// Stands for one session key: the same for all sessions of a user, and not the user's name.
///
/// As text it is 22 characters of `[A-Za-z0-9_-]`. It is 128 bits of HMAC-SHA-256, so that equal owners are equal keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner([u8; 16]);

/// The public name of a session, unique among all; the handle in lists and logs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sid {
    len: u8,
    bytes: [u8; Sid::MAX],
}

/// What the text of an ID says.
pub(crate) struct Presented {
    pub(crate) record: RecordId,
    pub(crate) secret: Secret,
    /// The text is not as it would be written today: it was sealed with another key than the first, or is plain.
    pub(crate) stale: bool,
}

/// 256 random bits that only the browser keeps.
#[derive(Clone)]
pub(crate) struct Secret([u8; 32]);

/// What a record keeps of a [`Secret`].
#[derive(Clone, Copy)]
pub(crate) struct SecretHash([u8; 32]);

impl SessionId {
    /// The text, as it goes into a cookie. Keep it as you would keep a password.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// # Errors
    /// `Unavailable` if it is to be sealed and the system has no random bytes.
    pub(crate) fn new(keys: Option<&Keys>, record: RecordId, secret: &Secret) -> Result<Self, Error> {
        let mut plain = String::with_capacity(Self::MAX_PLAIN);
        record.write_text(&mut plain);
        plain.push('.');
        BASE64.encode_string(secret.0, &mut plain);
        match keys.filter(|keys| keys.seals()) {
            None => Ok(Self(plain)),
            Some(keys) => Ok(Self(BASE64.encode(keys.seal(Purpose::Id, plain.as_bytes())?))),
        }
    }

    /// A text that [`read`](Self::read) has read.
    pub(crate) fn known(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Reads only what [`new`](Self::new) can have written, to the letter.
    pub(crate) fn read(keys: Option<&Keys>, text: &str, now: impl FnOnce() -> u64) -> Option<Presented> {
        if text.len() > Self::MAX_LEN {
            return None;
        }
        let Some(keys) = keys else { return Self::parse(text, false) };
        // A sealed text has no dots.
        if text.contains('.') {
            return keys.takes_plain(now()).then(|| Self::parse(text, keys.seals()))?;
        }
        let sealed = BASE64.decode(text).ok()?;
        match keys.open(Purpose::Id, &sealed) {
            Ok(opened) => Self::parse(std::str::from_utf8(&opened.text).ok()?, opened.stale),
            Err(error) => {
                tracing::info!(%error, "an ID was refused");
                None
            }
        }
    }

    fn parse(plain: &str, stale: bool) -> Option<Presented> {
        let (record, secret) = plain.rsplit_once('.')?;
        Some(Presented { record: RecordId::parse(record)?, secret: Secret(decode(secret)?), stale })
    }

    const MAX_PLAIN: usize = RecordId::MAX_LEN + 1 + 43;

    /// The longest text that can be one.
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

impl RecordId {
    /// The length of the longest text form, in bytes.
    pub const MAX_LEN: usize = 22 + 1 + Sid::MAX;

    pub(crate) fn new(owner: Option<Owner>, sid: Sid) -> Self {
        Self { owner, sid }
    }

    /// Whose session it is; `None` for an anonymous one.
    pub fn owner(&self) -> Option<Owner> {
        self.owner
    }

    /// The session's public name: 22 to 43 characters of `[A-Za-z0-9_-]`, unique among all sessions.
    pub fn sid(&self) -> &str {
        self.sid.as_str()
    }

    fn write_text(&self, out: &mut String) {
        if let Some(owner) = self.owner {
            BASE64.encode_string(owner.0, out);
            out.push('.');
        }
        out.push_str(self.sid());
    }

    fn parse(text: &str) -> Option<Self> {
        match text.split_once('.') {
            Some((owner, sid)) => Some(Self::new(Some(Owner(decode(owner)?)), Sid::parse(sid)?)),
            None => Some(Self::new(None, Sid::parse(text)?)),
        }
    }
}

/// The `sid` alone: hardly ever do two owners have the same.
impl Hash for RecordId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.sid.as_bytes());
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(Self::MAX_LEN);
        self.write_text(&mut text);
        f.write_str(&text)
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordId({})", self.sid())
    }
}

impl FromStr for RecordId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text).ok_or_else(|| Error::new(ErrorKind::Data, "this text is not a record id"))
    }
}

impl Owner {
    /// 16 bytes, for a binary column.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

/// The owner whose [bytes](Owner::as_bytes) these are: any 16 are one.
impl From<[u8; 16]> for Owner {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").finish_non_exhaustive()
    }
}

impl FromStr for Owner {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        decode(text).map(Self).ok_or_else(|| Error::new(ErrorKind::Data, "this text is not an owner"))
    }
}

impl Sid {
    const MIN: usize = 22;
    const MAX: usize = 43;

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let fits = (Self::MIN..=Self::MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        fits.then(|| {
            let mut bytes = [0; Self::MAX];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            Self { len: text.len() as u8, bytes }
        })
    }

    /// A version 4 UUID, in its short form of 22 characters.
    pub(crate) fn random() -> Result<Self, Error> {
        Self::from_random(random()?)
    }

    pub(crate) fn from_random(bytes: [u8; 16]) -> Result<Self, Error> {
        let uuid = uuid::Builder::from_random_bytes(bytes).into_uuid();
        let mut bytes = [0; Self::MAX];
        match BASE64.encode_slice(uuid.as_bytes(), &mut bytes) {
            Ok(len) => Ok(Self { len: len as u8, bytes }),
            Err(_) => Err(Error::new(ErrorKind::Config, "a UUID did not fit a sid")),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn as_str(&self) -> &str {
        // Only ASCII gets past `parse`.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl Secret {
    pub(crate) fn random() -> Result<Self, Error> {
        random().map(Self)
    }

    /// A secret and a name for it, with one call to the system.
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
    /// Constant time: how long it takes says nothing of where two differ.
    pub(crate) fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).to_bool()
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash of no secret, until there is one.
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

/// Turns session keys into owners: a keyed hash, so that a name cannot be guessed from a dump when there is a pepper,
/// and a prefix, so that two applications in one store share no owner.
#[derive(Clone)]
pub(crate) struct Owners(Arc<OwnersInner>);

struct OwnersInner {
    mac: Hmac<Sha256>,
    realm: String,
    /// Keys that were asked for lately, each in the place that its own hash gives it.
    recent: [Mutex<Option<Recent>>; RECENT],
    hasher: DefaultHashBuilder,
}

type Recent = (Arc<str>, Owner);

impl Owners {
    pub(crate) fn new(prefix: &str, pepper: &[u8]) -> Result<Self, Error> {
        let mut mac = Hmac::<Sha256>::new_from_slice(pepper)
            .map_err(|_| Error::new(ErrorKind::Config, "the pepper does not fit HMAC"))?;
        mac.update(&(prefix.len() as u64).to_be_bytes());
        mac.update(prefix.as_bytes());
        let realm = BASE64.encode(tag::<6>(&mac, b"realm\0", b""));
        let recent = std::array::from_fn(|_| Mutex::default());
        Ok(Self(Arc::new(OwnersInner { mac, realm, recent, hasher: DefaultHashBuilder::default() })))
    }

    pub(crate) fn owner(&self, key: &str) -> Owner {
        self.known(key).1
    }

    /// The same, and the key itself.
    pub(crate) fn known(&self, key: &str) -> (Arc<str>, Owner) {
        let owner = || Owner(tag(&self.0.mac, b"owner\0", key.as_bytes()));
        if key.len() > MAX_RECENT {
            return (key.into(), owner());
        }
        let place = &self.0.recent[self.0.hasher.hash_one(key) as usize % RECENT];
        let mut recent = place.lock().unwrap_or_else(PoisonError::into_inner);
        match &*recent {
            Some((known, owner)) if **known == *key => (Arc::clone(known), *owner),
            _ => recent.insert((key.into(), owner())).clone(),
        }
    }

    /// Eight characters that stand for prefix and pepper: a record made under others is not ours to read, for
    /// `clear` would not find it.
    pub(crate) fn realm(&self) -> &str {
        &self.0.realm
    }
}

fn tag<const N: usize>(mac: &Hmac<Sha256>, purpose: &[u8], text: &[u8]) -> [u8; N] {
    let full = mac.clone().chain_update(purpose).chain_update(text).finalize().into_bytes();
    let mut tag = [0; N];
    tag.copy_from_slice(&full[..N]);
    tag
}

/// Base64url without padding, in the one form that encodes to the same text again.
fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let decoded = BASE64.decode_slice(text, &mut bytes).ok()?;
    (decoded == N).then_some(bytes)
}

/// How many keys are remembered. Hashing one anew takes three blocks of SHA-256.
const RECENT: usize = 512;
/// The longest key that is, in bytes.
const MAX_RECENT: usize = 128;

pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(Error::new(ErrorKind::Unavailable, "the system gave no random bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(owner: Option<Owner>) -> (SessionId, RecordId, Secret) {
        let record = RecordId::new(owner, Sid::random().unwrap());
        let secret = Secret::random().unwrap();
        (SessionId::new(None, record, &secret).unwrap(), record, secret)
    }

    fn read(text: &str) -> Option<Presented> {
        SessionId::read(None, text, || 0)
    }

    #[test]
    fn what_is_printed_is_parsed() {
        let owner = Owners::new("sessions", b"").unwrap().owner("ada");
        for owner in [None, Some(owner)] {
            let (id, record, secret) = id(owner);
            let read = read(id.as_str()).unwrap();
            assert_eq!(read.record, record);
            assert!(read.secret.hash().matches(&secret.hash()));
            assert!(!read.stale);
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
    fn owners_differ_by_key_prefix_and_pepper() {
        let owner = |prefix: &str, pepper: &[u8], key: &str| Owners::new(prefix, pepper).unwrap().owner(key);
        let all = [
            owner("sessions", b"", "ada"),
            owner("sessions", b"", "ad"),
            owner("sessions", b"", "ada\0"),
            owner("session", b"", "sada"),
            owner("sessions", b"pepper", "ada"),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
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
