//! What a backend stores, and what is inside.
//!
//! A backend sees a [`Record`]: a name, a version, a time to live, and a payload that it never looks into. Inside the
//! payload are the `Contents`, written and read here, in one place for every backend:
//!
//! ```text
//! {"v":1,"realm":"…","id":"…","key":"ada","hash":"…","created":…,"signed_in":…,"seen":…,"deadline":…,"data":{…}}
//! ```
//!
//! Times are milliseconds since 1970. The first byte, `{`, stands for this format. With a [`Serializer`] of one's own there
//! is no `data` inside, and what that wrote follows the last brace. With a [`Keyring`](crate::Keyring) all of this is
//! sealed, and the first byte is 2.

use std::{borrow::Cow, fmt, io::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    BoxError, Data, Error, ErrorKind,
    data::Fields,
    id::{RecordId, SecretHash},
    keyring::{self, Keys, Opened, Purpose},
};

/// What a [`Backend`](crate::Backend) stores under a [`RecordId`].
#[derive(Clone)]
pub struct Record {
    /// The name, and the only thing to find it by.
    pub id: RecordId,
    /// Random, another one for each write; never negative, so that it fits a signed column.
    pub version: i64,
    /// How long the record lives from now on, by the backend's own clock; on loading, how much of that is left.
    pub ttl: Duration,
    /// Bytes, for the backend to keep as they are.
    pub payload: Bytes,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("id", &self.id).field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

/// Turns the data of a session into bytes and back; `serde_json` unless another is set.
///
/// [`Data`] implements serde's traits, so that most formats take two lines:
///
/// ```
/// use jam_session::{BoxError, Data, Serializer};
///
/// struct MessagePack;
///
/// impl Serializer for MessagePack {
///     fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError> {
///         Ok(rmp_serde::to_vec(data)?)
///     }
///     fn read(&self, bytes: &[u8]) -> Result<Data, BoxError> {
///         Ok(rmp_serde::from_slice(bytes)?)
///     }
/// }
/// ```
pub trait Serializer: Send + Sync + 'static {
    /// The bytes of the data.
    ///
    /// # Errors
    /// Any; it fails the commit with [`ErrorKind::Data`], and its text is not shown: it may quote the data.
    fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError>;

    /// The data of those bytes.
    ///
    /// # Errors
    /// Any; the record is then [`ErrorKind::Unreadable`], and the error's text is not shown: it may quote the data.
    fn read(&self, bytes: &[u8]) -> Result<Data, BoxError>;
}

/// What is known of a session. Times are milliseconds since 1970, by the application's clock.
#[derive(Clone)]
pub(crate) struct Contents {
    pub(crate) key: Option<String>,
    pub(crate) hash: SecretHash,
    /// Hashes of the secrets before, the newest last, each with the time until which it still leads here.
    pub(crate) previous: Vec<(SecretHash, u64)>,
    pub(crate) created: u64,
    pub(crate) signed_in: Option<u64>,
    /// When the record was last written.
    pub(crate) seen: u64,
    pub(crate) deadline: u64,
    /// The idle time of this session, if it is not the common one.
    pub(crate) idle: Option<u64>,
    /// A tombstone: a login ended this session and went on as another one.
    pub(crate) ended: bool,
    pub(crate) data: Data,
}

/// Writes and reads payloads.
#[derive(Clone)]
pub(crate) struct Codec {
    pub(crate) realm: String,
    pub(crate) serializer: Option<Arc<dyn Serializer>>,
    pub(crate) keys: Option<Arc<Keys>>,
    /// Of what is sealed, not of what that adds.
    pub(crate) max_size: usize,
}

impl Codec {
    /// # Errors
    /// `Data` if the serializer fails, `TooLarge` if the payload is, `Unavailable` if it is to be sealed and the system has no
    /// random bytes.
    pub(crate) fn write(&self, id: RecordId, contents: &Contents) -> Result<Bytes, Error> {
        let mut out = Vec::with_capacity(320 + contents.data.json_len());
        self.write_head(&mut out, id, contents)
            .map_err(|_| Error::new(ErrorKind::Data, "a session could not be written as JSON"))?;
        match &self.serializer {
            // There is nothing more to it, and no serializer that could fail.
            _ if contents.ended => out.push(b'}'),
            None => {
                out.extend_from_slice(br#","data":"#);
                contents.data.write_json(&mut out)?;
                out.push(b'}');
            }
            Some(serializer) => {
                out.push(b'}');
                let data = serializer.write(&contents.data);
                out.extend(data.map_err(|_| Error::new(ErrorKind::Data, "the serializer did not write a session"))?);
            }
        }
        // What comes and goes by itself does not count: a session of the largest size can be rotated, and ended.
        let lasting = out.len().saturating_sub(contents.previous.len() * PREVIOUS_LEN);
        if lasting > self.max_size && !contents.ended {
            let message = format!("a session of {} bytes is larger than max_size, {} bytes", out.len(), self.max_size);
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        match self.keys.as_ref().filter(|keys| keys.seals()) {
            None => Ok(out.into()),
            Some(keys) => Ok(keys.seal(Purpose::Record(id), &out)?.into()),
        }
    }

    fn write_head(&self, out: &mut Vec<u8>, id: RecordId, contents: &Contents) -> std::io::Result<()> {
        write!(out, r#"{{"v":1,"realm":"{}","id":"{id}""#, self.realm)?;
        if let Some(key) = &contents.key {
            out.extend_from_slice(br#","key":"#);
            serde_json::to_writer(&mut *out, key)?;
        }
        write!(out, r#","hash":"{}""#, contents.hash)?;
        for (i, (hash, until)) in contents.previous.iter().enumerate() {
            write!(out, r#"{}["{hash}",{until}]"#, if i == 0 { r#","previous":["# } else { "," })?;
        }
        if !contents.previous.is_empty() {
            out.push(b']');
        }
        write!(out, r#","created":{}"#, contents.created)?;
        if let Some(signed_in) = contents.signed_in {
            write!(out, r#","signed_in":{signed_in}"#)?;
        }
        write!(out, r#","seen":{},"deadline":{}"#, contents.seen, contents.deadline)?;
        if let Some(idle) = contents.idle {
            write!(out, r#","idle":{idle}"#)?;
        }
        if contents.ended {
            out.extend_from_slice(br#","ended":true"#);
        }
        Ok(())
    }

    /// The contents, and whether the payload is stale: not sealed as it would be today.
    ///
    /// # Errors
    /// `Corrupt` or `WrongKey` if it is sealed and does not open, else `Unreadable` whatever is wrong with it, in words that
    /// say what and show nothing of it.
    pub(crate) fn read(&self, id: RecordId, payload: &Bytes, now: u64) -> Result<(Contents, bool), Error> {
        self.read_if(id, payload, now, |_| true)?.ok_or_else(|| unreadable("a record was not asked for"))
    }

    /// The same, if its secrets are the right ones: for a stranger the data is not even looked at.
    pub(crate) fn read_if(
        &self,
        id: RecordId,
        payload: &Bytes,
        now: u64,
        is_right: impl FnOnce(&Secrets<'_>) -> bool,
    ) -> Result<Option<(Contents, bool)>, Error> {
        let is_sealed = payload.first() == Some(&keyring::SEALED);
        let opened;
        let (plain, stale) = match &self.keys {
            None if is_sealed => return Err(keyring::wrong_key()),
            None => (payload, false),
            Some(keys) if is_sealed => {
                let Opened { text, stale } = keys.open(Purpose::Record(id), payload)?;
                opened = Bytes::from(text);
                (&opened, stale)
            }
            Some(keys) if keys.takes_plain(now) => (payload, keys.seals()),
            Some(_) => return Err(unreadable("a record is not sealed, and there is a keyring")),
        };
        let contents = self.read_plain(id, plain, is_right)?;
        Ok(contents.map(|contents| (contents, stale)))
    }

    fn read_plain(
        &self,
        id: RecordId,
        payload: &Bytes,
        is_right: impl FnOnce(&Secrets<'_>) -> bool,
    ) -> Result<Option<Contents>, Error> {
        let mut heads = serde_json::Deserializer::from_slice(payload).into_iter::<Head<'_>>();
        let head = match heads.next() {
            Some(Ok(head)) if head.v == 1 => head,
            Some(Ok(_)) => return Err(unreadable("a record has a format of another version")),
            _ => return Err(unreadable("a record is not in a format that this version reads")),
        };
        if head.realm != self.realm {
            return Err(unreadable("a record was written under another sessions_key or pepper"));
        }
        // A record that was moved: to another session, or to another user.
        if head.id.parse().ok() != Some(id) || head.key.is_some() != id.owner().is_some() {
            return Err(unreadable("a record belongs to another session"));
        }
        if !is_right(&Secrets { hash: &head.hash, previous: &head.previous }) {
            return Ok(None);
        }
        let data = match (&self.serializer, head.data) {
            _ if head.ended => Data::default(),
            (None, Some(data)) => data.within(payload),
            (Some(serializer), None) => serializer
                .read(&payload[heads.byte_offset()..])
                .map_err(|_| unreadable("the serializer did not read a record"))?,
            _ => return Err(unreadable("a record was written by another serializer")),
        };
        Ok(Some(Contents {
            key: head.key.map(Cow::into_owned),
            hash: head.hash,
            previous: head.previous,
            created: head.created,
            signed_in: head.signed_in,
            seen: head.seen,
            deadline: head.deadline,
            idle: head.idle,
            ended: head.ended,
            data,
        }))
    }
}

/// The secrets that lead to a session, hashed.
pub(crate) struct Secrets<'a> {
    hash: &'a SecretHash,
    previous: &'a [(SecretHash, u64)],
}

impl Secrets<'_> {
    /// Whether that one does: the newest, or one before within its grace.
    pub(crate) fn opens_with(&self, secret: &SecretHash, now: u64) -> bool {
        // All are compared, so that the time it takes tells nothing.
        self.previous
            .iter()
            .fold(self.hash.matches(secret), |opens, (hash, until)| opens | (hash.matches(secret) & (*until > now)))
    }
}

impl Contents {
    /// See [`Secrets::opens_with`].
    pub(crate) fn opens_with(&self, secret: &SecretHash, now: u64) -> bool {
        Secrets { hash: &self.hash, previous: &self.previous }.opens_with(secret, now)
    }
}

/// What is in front of the data. Names that this version does not know are passed over.
#[derive(Deserialize)]
struct Head<'a> {
    v: u32,
    #[serde(default)]
    realm: &'a str,
    #[serde(default)]
    id: &'a str,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    hash: SecretHash,
    #[serde(default)]
    previous: Vec<(SecretHash, u64)>,
    created: u64,
    signed_in: Option<u64>,
    seen: u64,
    deadline: u64,
    idle: Option<u64>,
    #[serde(default)]
    ended: bool,
    #[serde(borrow)]
    data: Option<Fields<'a>>,
}

impl<'de> Deserialize<'de> for SecretHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        Self::parse(text).ok_or_else(|| D::Error::custom("not a hash"))
    }
}

/// How long one secret of before gets as JSON, at most.
const PREVIOUS_LEN: usize = r#","previous":[["",18446744073709551615]]"#.len() + 43;

fn unreadable(message: &'static str) -> Error {
    Error::new(ErrorKind::Unreadable, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::id::{Owners, Secret, Sid};

    fn codec() -> Codec {
        Codec { realm: Owners::new("sessions", b"").unwrap().realm(), serializer: None, keys: None, max_size: 1 << 20 }
    }

    fn contents(key: Option<&str>) -> Contents {
        Contents {
            key: key.map(str::to_owned),
            hash: Secret::random().unwrap().hash(),
            previous: vec![(Secret::random().unwrap().hash(), 5), (Secret::random().unwrap().hash(), 6)],
            created: 1,
            signed_in: key.map(|_| 2),
            seen: 3,
            deadline: 4,
            idle: Some(5),
            ended: false,
            data: Data::from_serialize(json!({"a": [1, 2], "b\"": "c"})).unwrap(),
        }
    }

    fn id(key: Option<&str>) -> RecordId {
        let owners = Owners::new("sessions", b"").unwrap();
        RecordId::new(key.map(|key| owners.owner(key)), Sid::random().unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        for key in [None, Some("ada"), Some("a\0\"{}*é:")] {
            let (id, contents) = (id(key), contents(key));
            let payload = codec().write(id, &contents).unwrap();
            let read = codec().read(id, &payload, 0).unwrap().0;
            assert_eq!(read.key, contents.key);
            assert!(read.hash.matches(&contents.hash));
            assert_eq!(read.previous.len(), 2);
            assert_eq!((read.created, read.signed_in, read.seen), (1, contents.signed_in, 3));
            assert_eq!((read.deadline, read.idle, read.ended), (4, Some(5), false));
            assert!(read.data.same_as(&contents.data));
            assert_eq!(codec().write(id, &read).unwrap(), payload);
        }
    }

    #[test]
    fn a_record_cut_anywhere_is_unreadable_and_never_panics() {
        let id = id(Some("ada"));
        let payload = codec().write(id, &contents(Some("ada"))).unwrap();
        for end in 0..payload.len() {
            let error = codec().read(id, &payload.slice(..end), 0).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Unreadable);
        }
    }

    #[test]
    fn a_record_under_another_name_or_prefix_is_unreadable() {
        let (ada, grace) = (id(Some("ada")), id(Some("grace")));
        let payload = codec().write(ada, &contents(Some("ada"))).unwrap();
        assert_eq!(codec().read(grace, &payload, 0).err().unwrap().kind(), ErrorKind::Unreadable);

        let other = Codec { realm: Owners::new("sessions", b"a pepper").unwrap().realm(), ..codec() };
        assert_eq!(other.read(ada, &payload, 0).err().unwrap().kind(), ErrorKind::Unreadable);
    }

    /// Written by version 0.1.0: every later version must read it.
    #[test]
    fn the_golden_record_is_read_and_written() {
        let golden = include_bytes!("../tests/golden/record-v1.json").trim_ascii_end();
        let golden = Bytes::from_static(golden);
        let owner = Owners::new("sessions", b"").unwrap().owner("ada");
        let id = RecordId::new(Some(owner), Sid::parse("AAAAAAAAQACAAAAAAAAAAA").unwrap());
        let read = codec().read(id, &golden, 0).unwrap().0;
        assert_eq!(read.key.as_deref(), Some("ada"));
        assert_eq!(read.data.get::<String>("role").unwrap().as_deref(), Some("admin"));
        assert_eq!(codec().write(id, &read).unwrap(), golden);
    }

    #[test]
    fn names_of_a_later_version_are_passed_over() {
        let id = id(None);
        let payload = codec().write(id, &contents(None)).unwrap();
        let text = std::str::from_utf8(&payload).unwrap().replacen(r#""created""#, r#""later":[1],"created""#, 1);
        assert!(codec().read(id, &Bytes::from(text), 0).is_ok());
    }
}
