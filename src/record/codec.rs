//! The codec: converts contents to payloads and back, in both forms, encrypted or plain, with all checks.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    error::{Error, ErrorKind},
    record::{
        Contents, Serializer, binary,
        data::Data,
        id::{Owners, RecordId},
        keyring::{self, Decrypted, Keys},
        parsed::{Body, Parsed, Undecoded},
        text,
        value::{Raw, Text},
    },
};

/// Writes and reads payloads.
#[derive(Clone)]
pub(crate) struct Codec {
    pub(crate) form: Form,
    pub(crate) owners: Owners,
    pub(crate) serializer: Option<Arc<dyn Serializer>>,
    pub(crate) keys: Option<Arc<Keys>>,
    /// The maximum size, without the bytes that encryption adds.
    pub(crate) max_size: usize,
}

/// The form in which payloads are written. Both forms are read.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) enum Form {
    #[default]
    Binary,
    Text,
}

impl Codec {
    /// Checks that the application's serializer, if there is one, can write a value and read it back.
    ///
    /// # Errors
    /// `Data` if it cannot.
    pub(crate) fn check_value(&self, name: &Arc<str>, value: &Raw) -> Result<(), Error> {
        if self.serializer.is_none() {
            return Ok(());
        }
        let mut data = Data::default();
        data.set(name, Arc::clone(value));
        self.check_data(&data)
    }

    /// The same for all data.
    pub(crate) fn check_data(&self, data: &Data) -> Result<(), Error> {
        self.serialize(data).map(drop)
    }

    /// Returns the output of the application's serializer, if there is one.
    ///
    /// It is read back at once, because a format may write what it cannot read: formats that are not self-describing cannot be
    /// read back, and others limit the nesting. Without this check, every later request of that session would fail.
    fn serialize(&self, data: &Data) -> Result<Option<Vec<u8>>, Error> {
        let Some(serializer) = &self.serializer else { return Ok(None) };
        let refuse = |message: &'static str| Error::new(ErrorKind::Data, message);
        let written = serializer.write(data).map_err(|_| refuse("the serializer did not write a session"))?;
        serializer.read(&written).map_err(|_| refuse("the serializer did not read the session that it wrote"))?;
        Ok(Some(written))
    }

    /// Writes contents as a payload.
    ///
    /// # Errors
    /// `Data` if the serializer fails. `TooLarge` if the payload is too large. `Unavailable` if it has to be encrypted and the
    /// system has no random bytes.
    pub(crate) fn write(&self, id: RecordId, contents: &Contents) -> Result<Bytes, Error> {
        let own = self.serialize(&contents.data)?;
        let namespace = self.owners.namespace();
        let (out, passing) = match self.form {
            Form::Binary => (binary::write(namespace, id, contents, own.as_deref()), binary::uncounted_len(contents)),
            Form::Text => (text::write(namespace, id, contents, own.as_deref())?, text::uncounted_len(contents)),
        };
        // The parts that depend on new IDs do not count, so that a session of the maximum size can still be rotated.
        let lasting = out.len().saturating_sub(passing);
        if lasting > self.max_size.min(u32::MAX as usize) {
            let message = format!("a session of {} bytes is larger than max_size, {} bytes", out.len(), self.max_size);
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        match self.keys.as_ref().filter(|keys| keys.encrypts()) {
            // Without unused capacity, because a backend may keep it as long as the session lives.
            None => Ok(out.into_boxed_slice().into()),
            Some(keys) => Ok(keys.records.seal(id.to_string().as_bytes(), &out)?.into()),
        }
    }

    /// Reads a payload. Returns its contents, and whether it is stale: not encrypted with the current keyring.
    ///
    /// # Errors
    /// `Corrupt` or `WrongKey` if it fails to decrypt. `Unreadable` for any other problem. The message says what is wrong,
    /// without any part of the payload.
    pub(crate) fn read(&self, id: RecordId, payload: &Bytes, now: u64) -> Result<(Contents, bool), Error> {
        self.read_if(id, payload, now, |_| true)?.ok_or_else(|| unreadable("a record was not asked for"))
    }

    /// The same, if `is_right` accepts the secrets in it. Otherwise the data is not read.
    pub(crate) fn read_if(
        &self,
        id: RecordId,
        payload: &Bytes,
        now: u64,
        is_right: impl FnOnce(&Undecoded<'_>) -> bool,
    ) -> Result<Option<(Contents, bool)>, Error> {
        let is_sealed = payload.first() == Some(&keyring::SEALED);
        let opened;
        let (plain, stale) = match &self.keys {
            None if is_sealed => return Err(keyring::wrong_key()),
            None => (payload, false),
            Some(keys) if is_sealed => {
                let Decrypted { text, stale } = keys.records.open(id.to_string().as_bytes(), payload)?;
                opened = Bytes::from(text);
                (&opened, stale)
            }
            Some(keys) if keys.takes_plain(now) => (payload, keys.encrypts()),
            Some(_) => return Err(unreadable("a record is plain, and there is a keyring")),
        };
        // Each form is decoded where it was parsed, because the parsed value is large to move.
        match plain.first() {
            Some(&binary::FORMAT) => match binary::read(id, plain) {
                Some(mut parsed) => self.decode(id, plain, &mut parsed, stale, is_right),
                None => Err(unreadable(UNKNOWN_FORMAT)),
            },
            Some(&text::FORMAT) => match text::read(id, plain) {
                Some(mut parsed) => self.decode(id, plain, &mut parsed, stale, is_right),
                None => Err(unreadable(UNKNOWN_FORMAT)),
            },
            _ => Err(unreadable(UNKNOWN_FORMAT)),
        }
    }

    fn decode(
        &self,
        id: RecordId,
        payload: &Bytes,
        parsed: &mut Parsed<'_>,
        stale: bool,
        is_right: impl FnOnce(&Undecoded<'_>) -> bool,
    ) -> Result<Option<(Contents, bool)>, Error> {
        let contents = &mut parsed.contents;
        if parsed.namespace != self.owners.namespace() {
            return Err(unreadable("a record was written under another namespace or pepper"));
        }
        // The record was moved to another session, or to another user.
        if !parsed.is_of_id || contents.key.is_some() != id.owner().is_some() {
            return Err(unreadable("a record belongs to another session"));
        }
        if !is_right(contents) {
            return Ok(None);
        }
        // `clear` would not find a session under another owner.
        let (key, owner) = contents.key.as_ref().map(|Text(key)| self.owners.known(key)).unzip();
        if owner != id.owner() {
            return Err(unreadable("a record belongs to another session key"));
        }
        let data = match (&self.serializer, &contents.data) {
            (None, Body::Text(fields)) => fields.into(),
            (None, Body::Binary(fields)) => {
                Data::read(payload.slice_ref(fields)).ok_or_else(|| unreadable("a record's data is broken"))?
            }
            (Some(serializer), Body::Own(own)) => {
                serializer.read(own).map_err(|_| unreadable("the serializer did not read a record"))?
            }
            _ => return Err(unreadable("a record was written by another serializer")),
        };
        Ok(Some((contents.take_with(key, data), stale)))
    }
}

const UNKNOWN_FORMAT: &str = "a record is not in a format that this version reads";

fn unreadable(message: &'static str) -> Error {
    Error::new(ErrorKind::Unreadable, message)
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD as STANDARD, Engine};
    use serde_json::json;

    use super::*;
    use crate::{
        error::BoxError,
        record::{id::Sid, token::Secret},
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
            superseded: vec![(Secret::random().unwrap().hash(), 7)],
            logins: 8,
            issued: Some(9),
            created: 1,
            signed_in: key.map(|_| 2),
            written: 3,
            deadline: 4,
            idle: Some(5),
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
                assert_eq!((read.previous.len(), read.superseded.len()), (2, 1));
                assert_eq!((read.logins, read.issued), (8, Some(9)));
                assert_eq!((read.created, read.signed_in, read.written), (1, contents.signed_in, 3));
                assert_eq!((read.deadline, read.idle), (4, Some(5)));
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
            contents.superseded.clear();
            (contents.logins, contents.issued) = (0, None);
            let size = codec(form).write(id, &contents).unwrap().len();
            for old in 0..5 {
                assert!(Codec { max_size: size, ..codec(form) }.write(id, &contents).is_ok());
                let error = Codec { max_size: size - 1, ..codec(form) }.write(id, &contents).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::TooLarge);
                let until = [0, 9, 10, u64::MAX][old % 4];
                let secrets = if old < 3 { &mut contents.previous } else { &mut contents.superseded };
                secrets.push((Secret::random().unwrap().hash(), until));
                (contents.logins, contents.issued) = (1 << old, Some(until));
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
                assert!(again.data.same_as(&read.data), "{at}");
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
            assert_eq!((read.previous.len(), read.superseded.len(), read.logins), (1, 1, 2));
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
