//! What a backend stores, and what is inside.
//!
//! A backend sees a [`Record`]: a name, a version, a time to live, and a payload that it never looks into. Inside the
//! payload are the `Contents`, written and read here, in one place for every backend. The first byte says in which form:
//!
//! | first byte | form |
//! |---|---|
//! | 1 | [binary], which takes the least time and room |
//! | `{` | [text], for a file that people look into |
//! | 2 | sealed, with a [`Keyring`](crate::Keyring): either of them is inside |
//!
//! With a [`Serializer`] of one's own, what that wrote stands in place of the data.

mod binary;
pub(crate) mod data;
pub(crate) mod id;
pub mod keyring;
mod text;
pub(crate) mod token;

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    error::{BoxError, Error, ErrorKind},
    record::{
        data::Data,
        id::{Owners, RecordId},
        keyring::{Keys, Opened, Purpose},
        token::SecretHash,
    },
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
    pub(crate) key: Option<Arc<str>>,
    pub(crate) hash: SecretHash,
    /// Hashes of the secrets before, the newest last, each with the time until which it still leads here.
    pub(crate) previous: Vec<(SecretHash, u64)>,
    pub(crate) created: u64,
    pub(crate) signed_in: Option<u64>,
    /// When the record was last written.
    pub(crate) written: u64,
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
    pub(crate) form: Form,
    pub(crate) owners: Owners,
    pub(crate) serializer: Option<Arc<dyn Serializer>>,
    pub(crate) keys: Option<Arc<Keys>>,
    /// Of what is sealed, not of what that adds.
    pub(crate) max_size: usize,
}

/// The form in which payloads are written. Both are read.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) enum Form {
    #[default]
    Binary,
    Text,
}

/// What a payload says, before anything of it is checked.
struct Stored<'a> {
    namespace: &'a str,
    is_of_id: bool,
    key: Option<Cow<'a, str>>,
    hash: SecretHash,
    previous: Vec<(SecretHash, u64)>,
    created: u64,
    signed_in: Option<u64>,
    written: u64,
    deadline: u64,
    idle: Option<u64>,
    ended: bool,
    body: Body<'a>,
}

/// What comes after the head.
enum Body<'a> {
    Data(Data),
    /// As they stand there, not looked at yet.
    Fields(&'a [u8]),
    /// A serializer wrote it.
    Own(&'a [u8]),
}

impl Codec {
    /// # Errors
    /// `Data` if the serializer fails, `TooLarge` if the payload is, `Unavailable` if it is to be sealed and the system has no
    /// random bytes.
    pub(crate) fn write(&self, id: RecordId, contents: &Contents) -> Result<Bytes, Error> {
        let own = match &self.serializer {
            // There is nothing to write, and no serializer that could fail.
            Some(serializer) if !contents.ended => {
                let own = serializer.write(&contents.data);
                Some(own.map_err(|_| Error::new(ErrorKind::Data, "the serializer did not write a session"))?)
            }
            _ => None,
        };
        let (namespace, previous) = (self.owners.namespace(), &contents.previous);
        let (out, passing) = match self.form {
            Form::Binary => (binary::write(namespace, id, contents, own.as_deref()), binary::previous_len(previous)),
            Form::Text => (text::write(namespace, id, contents, own.as_deref())?, text::previous_len(previous)),
        };
        // What comes and goes by itself does not count: a session of the largest size can be rotated, and ended.
        let lasting = out.len().saturating_sub(passing);
        if lasting > self.max_size.min(u32::MAX as usize) && !contents.ended {
            let message = format!("a session of {} bytes is larger than max_size, {} bytes", out.len(), self.max_size);
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        match self.keys.as_ref().filter(|keys| keys.seals()) {
            // To the byte: it may be kept for as long as the session lives.
            None => Ok(out.into_boxed_slice().into()),
            Some(keys) => Ok(keys.seal(Purpose::Record(id), &out)?.into()),
        }
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
        let stored = match payload.first() {
            Some(&binary::FORMAT) => binary::read(id, payload),
            Some(&text::FORMAT) => text::read(id, payload),
            _ => None,
        };
        let stored = stored.ok_or_else(|| unreadable("a record is not in a format that this version reads"))?;
        if stored.namespace != self.owners.namespace() {
            return Err(unreadable("a record was written under another namespace or pepper"));
        }
        // A record that was moved: to another session, or to another user.
        if !stored.is_of_id || stored.key.is_some() != id.owner().is_some() {
            return Err(unreadable("a record belongs to another session"));
        }
        if !is_right(&Secrets { hash: &stored.hash, previous: &stored.previous }) {
            return Ok(None);
        }
        // A session that its owner could not clear is nobody's.
        let (key, owner) = stored.key.map(|key| self.owners.known(&key)).unzip();
        if owner != id.owner() {
            return Err(unreadable("a record belongs to another session key"));
        }
        let data = match (&self.serializer, stored.body) {
            _ if stored.ended => Data::default(),
            (None, Body::Data(data)) => data,
            (None, Body::Fields(fields)) => {
                Data::read(payload.slice_ref(fields)).ok_or_else(|| unreadable("a record's data is broken"))?
            }
            (Some(serializer), Body::Own(own)) => {
                serializer.read(own).map_err(|_| unreadable("the serializer did not read a record"))?
            }
            _ => return Err(unreadable("a record was written by another serializer")),
        };
        Ok(Some(Contents {
            key,
            hash: stored.hash,
            previous: stored.previous,
            created: stored.created,
            signed_in: stored.signed_in,
            written: stored.written,
            deadline: stored.deadline,
            idle: stored.idle,
            ended: stored.ended,
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

fn unreadable(message: &'static str) -> Error {
    Error::new(ErrorKind::Unreadable, message)
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD as STANDARD, Engine};
    use serde_json::json;

    use super::*;
    use crate::record::{
        id::{Owners, Sid},
        token::Secret,
    };

    const FORMS: [Form; 2] = [Form::Binary, Form::Text];

    fn codec(form: Form) -> Codec {
        codec_with(form, b"")
    }

    fn codec_with(form: Form, pepper: &[u8]) -> Codec {
        let owners = Owners::new("sessions", pepper).unwrap();
        Codec { form, owners, serializer: None, keys: None, max_size: 1 << 20 }
    }

    fn contents(key: Option<&str>) -> Contents {
        Contents {
            key: key.map(Arc::from),
            hash: Secret::random().unwrap().hash(),
            previous: vec![(Secret::random().unwrap().hash(), 5), (Secret::random().unwrap().hash(), 6)],
            created: 1,
            signed_in: key.map(|_| 2),
            written: 3,
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
        for (form, key) in
            FORMS.into_iter().flat_map(|form| [None, Some("ada"), Some("a\0\"{}*é:")].map(|key| (form, key)))
        {
            let (id, contents) = (id(key), contents(key));
            let payload = codec(form).write(id, &contents).unwrap();
            for reader in FORMS {
                let read = codec(reader).read(id, &payload, 0).unwrap().0;
                assert_eq!(read.key, contents.key);
                assert!(read.hash.matches(&contents.hash));
                assert_eq!(read.previous.len(), 2);
                assert_eq!((read.created, read.signed_in, read.written), (1, contents.signed_in, 3));
                assert_eq!((read.deadline, read.idle, read.ended), (4, Some(5), false));
                assert!(read.data.same_as(&contents.data));
                assert_eq!(codec(form).write(id, &read).unwrap(), payload);
            }
        }
    }

    #[test]
    fn what_goes_from_one_form_to_the_other_and_back_is_the_same_to_the_byte() {
        let id = id(Some("ada"));
        for value in ["1.00e+2", "{ \"a\" :\n\t[1 ,2] }", "\"\\u0041\\n\"", "123456789012345678901234567890", "-0.0"] {
            for name in ["", "a\nb", "\"\\\u{0}", "é\u{2028}", "data"] {
                let mut contents = contents(Some("ada"));
                contents.data.set(&name.into(), value.into());
                let binary = codec(Form::Binary).write(id, &contents).unwrap();
                let read = codec(Form::Text).read(id, &binary, 0).unwrap().0;
                let text = codec(Form::Text).write(id, &read).unwrap();
                let read = codec(Form::Binary).read(id, &text, 0).unwrap().0;
                assert_eq!(codec(Form::Binary).write(id, &read).unwrap(), binary);
            }
        }
    }

    #[test]
    fn a_serializer_of_ones_own_may_write_anything_in_either_form() {
        struct Own(&'static [u8]);
        impl Serializer for Own {
            fn write(&self, _: &Data) -> Result<Vec<u8>, BoxError> {
                Ok(self.0.to_vec())
            }
            fn read(&self, bytes: &[u8]) -> Result<Data, BoxError> {
                assert_eq!(bytes, self.0);
                Ok(serde_json::from_str(r#"{"read":true}"#)?)
            }
        }
        let id = id(None);
        for own in [&b""[..], b" \n", b"}", b",\"data\":{}}", b"{\"v\":1}", b"\x00\xff\x01", &[b'x'; 300]] {
            for form in FORMS {
                let own = |form| Codec { serializer: Some(Arc::new(Own(own))), ..codec(form) };
                let payload = own(form).write(id, &contents(None)).unwrap();
                for reader in FORMS {
                    let read = own(reader).read(id, &payload, 0).unwrap().0;
                    assert_eq!(read.data.get("read").unwrap(), Some(true));
                    assert_eq!(codec(reader).read(id, &payload, 0).err().unwrap().kind(), ErrorKind::Unreadable);
                }
                let plain = codec(form).write(id, &contents(None)).unwrap();
                assert_eq!(own(form).read(id, &plain, 0).err().unwrap().kind(), ErrorKind::Unreadable);
            }
        }
    }

    #[test]
    fn the_secrets_of_before_take_nothing_of_the_size() {
        for form in FORMS {
            let (id, mut contents) = (id(None), contents(None));
            contents.previous.clear();
            let size = codec(form).write(id, &contents).unwrap().len();
            for previous in 0..5 {
                assert!(Codec { max_size: size, ..codec(form) }.write(id, &contents).is_ok());
                let error = Codec { max_size: size - 1, ..codec(form) }.write(id, &contents).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::TooLarge);
                let until = [0, 9, 10, u64::MAX][previous % 4];
                contents.previous.push((Secret::random().unwrap().hash(), until));
            }
        }
    }

    #[test]
    fn a_payload_keeps_no_room_that_it_does_not_fill() {
        for form in FORMS {
            let payload = codec(form).write(id(None), &contents(None)).unwrap();
            let len = payload.len();
            assert_eq!(payload.try_into_mut().unwrap().capacity(), len);
        }
    }

    #[test]
    fn a_stranger_learns_nothing_of_broken_data() {
        let id = id(None);
        let payload = codec(Form::Binary).write(id, &contents(None)).unwrap();
        // The first length of the data says that there is more of it than there is.
        let mut broken = payload.to_vec();
        let at = payload.len() - contents(None).data.len();
        broken[at] = 0x7f;
        let broken = Bytes::from(broken);
        assert!(codec(Form::Binary).read_if(id, &broken, 0, |_| false).unwrap().is_none());
        assert_eq!(codec(Form::Binary).read(id, &broken, 0).err().unwrap().kind(), ErrorKind::Unreadable);
    }

    #[test]
    fn a_record_cut_anywhere_is_unreadable_and_never_panics() {
        for form in FORMS {
            let id = id(Some("ada"));
            let payload = codec(form).write(id, &contents(Some("ada"))).unwrap();
            for end in 0..payload.len() {
                let error = codec(form).read(id, &payload.slice(..end), 0).err().unwrap();
                assert_eq!(error.kind(), ErrorKind::Unreadable, "{end}");
            }
        }
    }

    #[test]
    fn a_record_with_any_byte_changed_never_panics_and_can_be_written_again() {
        for form in FORMS {
            let id = id(Some("ada"));
            let payload = codec(form).write(id, &contents(Some("ada"))).unwrap();
            for (at, byte) in (0..payload.len()).flat_map(|at| [0, 1, 0x7f, 0x80, 0xff].map(|byte| (at, byte))) {
                let mut changed = payload.to_vec();
                changed[at] ^= byte;
                let Ok((mut read, _)) = codec(form).read(id, &changed.into(), 0) else { continue };
                // What is read can be written to, and is read again.
                read.data.set(&"a".into(), "0".into());
                let written = codec(form).write(id, &read).unwrap();
                let again = codec(form).read(id, &written, 0).unwrap().0;
                assert!(again.data.same_as(&read.data) || again.ended, "{at}");
            }
        }
    }

    #[test]
    fn a_record_under_another_name_or_prefix_is_unreadable() {
        for form in FORMS {
            let (ada, grace) = (id(Some("ada")), id(Some("grace")));
            let payload = codec(form).write(ada, &contents(Some("ada"))).unwrap();
            assert_eq!(codec(form).read(grace, &payload, 0).err().unwrap().kind(), ErrorKind::Unreadable);
            let other = codec_with(form, b"a pepper");
            assert_eq!(other.read(ada, &payload, 0).err().unwrap().kind(), ErrorKind::Unreadable);

            // One that names another user, by somebody who can write to the store, and knows no pepper.
            let payload = codec(form).write(ada, &contents(Some("grace"))).unwrap();
            assert_eq!(codec(form).read(ada, &payload, 0).err().unwrap().kind(), ErrorKind::Unreadable);
        }
    }

    /// Written by version 0.1.0: every later version must read them.
    #[test]
    fn the_golden_records_are_read_and_written() {
        let text = include_bytes!("../../tests/golden/record-v1.json").trim_ascii_end();
        let binary = STANDARD.decode(include_str!("../../tests/golden/record-v1-binary.txt").trim_ascii_end()).unwrap();
        let owner = Owners::new("sessions", b"").unwrap().owner("ada");
        let id = RecordId::new(Some(owner), Sid::parse("AAAAAAAAQACAAAAAAAAAAA").unwrap());
        for (form, golden) in [(Form::Text, Bytes::from_static(text)), (Form::Binary, binary.into())] {
            let read = codec(form).read(id, &golden, 0).unwrap().0;
            assert_eq!(read.key.as_deref(), Some("ada"));
            assert_eq!(read.data.get::<String>("role").unwrap().as_deref(), Some("admin"));
            assert_eq!(codec(form).write(id, &read).unwrap(), golden);
        }
    }

    #[test]
    fn what_a_later_version_says_besides_is_passed_over_in_text() {
        let id = id(None);
        let payload = codec(Form::Text).write(id, &contents(None)).unwrap();
        let text = std::str::from_utf8(&payload).unwrap().replacen(r#""created""#, r#""later":[1],"created""#, 1);
        assert!(codec(Form::Text).read(id, &Bytes::from(text), 0).is_ok());
    }
}
