//! The text form of a record: one JSON object.
//!
//! ```text
//! {"v":1,"realm":"…","id":"…","key":"ada","hash":"…","created":…,"signed_in":…,"seen":…,"deadline":…,"data":{…}}
//! ```
//!
//! Times are in milliseconds since 1970; `seen` is when the record was written. The output of an application's serializer
//! comes after the last brace, and then there is no `data`.

use std::{fmt, io::Write};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IntoDeserializer, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::{
    error::{Error, ErrorKind},
    record::{
        Contents,
        id::RecordId,
        parsed::{Body, Parsed, Undecoded},
        token::SecretHash,
        value::Text,
    },
};

pub(super) const FORMAT: u8 = b'{';

/// The length of the parts that depend on new IDs: old secrets, when the newest one was made, and the number of logins.
pub(super) fn uncounted_len(contents: &Contents) -> usize {
    let digits = |until: u64| until.checked_ilog10().map_or(1, |log| log as usize + 1);
    let len = |name: &str, secrets: &[(SecretHash, u64)]| {
        let all: usize = secrets.iter().map(|(_, until)| r#"["",],"#.len() + HASH_LEN + digits(*until)).sum();
        // No comma after the last one.
        if secrets.is_empty() { 0 } else { r#","":[]"#.len() + name.len() + all - 1 }
    };
    let issued = contents.issued.map_or(0, |issued| r#","issued":"#.len() + digits(issued));
    let logins = if contents.logins > 0 { r#","logins":"#.len() + digits(contents.logins.into()) } else { 0 };
    len(PREVIOUS, &contents.previous) + len(SUPERSEDED, &contents.superseded) + issued + logins
}

pub(super) fn write(namespace: &str, id: RecordId, contents: &Contents, own: Option<&[u8]>) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(320 + own.map_or_else(|| 2 * contents.data.len(), <[u8]>::len));
    write_all(&mut out, namespace, id, contents, own)
        .map_err(|_| Error::new(ErrorKind::Data, "a session could not be written as JSON"))?;
    Ok(out)
}

fn write_all(
    out: &mut Vec<u8>,
    namespace: &str,
    id: RecordId,
    contents: &Contents,
    own: Option<&[u8]>,
) -> std::io::Result<()> {
    write!(out, r#"{{"v":1,"realm":"{namespace}","id":"{id}""#)?;
    if let Some(key) = &contents.key {
        out.extend_from_slice(br#","key":"#);
        serde_json::to_writer(&mut *out, &**key)?;
    }
    write!(out, r#","hash":"{}""#, contents.hash)?;
    for (name, secrets) in [(PREVIOUS, &contents.previous), (SUPERSEDED, &contents.superseded)] {
        for (i, (hash, until)) in secrets.iter().enumerate() {
            match i {
                0 => write!(out, r#","{name}":["#)?,
                _ => out.push(b','),
            }
            write!(out, r#"["{hash}",{until}]"#)?;
        }
        if !secrets.is_empty() {
            out.push(b']');
        }
    }
    if contents.logins > 0 {
        write!(out, r#","logins":{}"#, contents.logins)?;
    }
    if let Some(issued) = contents.issued {
        write!(out, r#","issued":{issued}"#)?;
    }
    write!(out, r#","created":{}"#, contents.created)?;
    if let Some(signed_in) = contents.signed_in {
        write!(out, r#","signed_in":{signed_in}"#)?;
    }
    write!(out, r#","seen":{},"deadline":{}"#, contents.written, contents.deadline)?;
    if let Some(idle) = contents.idle {
        write!(out, r#","idle":{idle}"#)?;
    }
    match own {
        Some(own) => {
            out.push(b'}');
            out.extend_from_slice(own);
        }
        None => {
            for (i, (name, value)) in contents.data.fields().enumerate() {
                out.extend_from_slice(if i == 0 { br#","data":{"# } else { b"," });
                serde_json::to_writer(&mut *out, name)?;
                out.push(b':');
                out.extend_from_slice(value);
            }
            out.extend_from_slice(if contents.data.is_empty() { br#","data":{}}"# } else { b"}}" });
        }
    }
    Ok(())
}

pub(super) fn read(id: RecordId, payload: &Bytes) -> Option<Parsed<'_>> {
    let mut objects = serde_json::Deserializer::from_slice(payload).into_iter::<Object<'_>>();
    let Object { envelope, mut contents } = objects.next()?.ok()?;
    if envelope.v != Some(1) {
        return None;
    }
    if let Body::Own(own) = &mut contents.data {
        *own = &payload[objects.byte_offset()..];
    }
    let is_of_id = envelope.id.is_some_and(|text| text.parse().ok() == Some(id));
    Some(Parsed { namespace: envelope.namespace.unwrap_or_default(), is_of_id, contents })
}

/// A record as one JSON object: the contents and an envelope.
struct Object<'a> {
    envelope: Envelope<'a>,
    contents: Undecoded<'a>,
}

#[derive(Default)]
struct Envelope<'a> {
    v: Option<u32>,
    namespace: Option<&'a str>,
    id: Option<&'a str>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;

        impl<'de> Visitor<'de> for Whole {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let mut envelope = Envelope::default();
                let inside = Unwrapped { map, envelope: &mut envelope };
                let contents = Undecoded::deserialize(MapAccessDeserializer::new(inside))?;
                Ok(Object { envelope, contents })
            }
        }

        deserializer.deserialize_map(Whole)
    }
}

/// The object without its envelope, which is stored separately while parsing. (serde's `flatten` would copy all values first.)
struct Unwrapped<'e, 'de, A> {
    map: A,
    envelope: &'e mut Envelope<'de>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Unwrapped<'_, 'de, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(Text(name)) = self.map.next_key()? {
            let is_twice = match &*name {
                "v" => self.envelope.v.replace(self.map.next_value()?).is_some(),
                "realm" => self.envelope.namespace.replace(self.map.next_value()?).is_some(),
                "id" => self.envelope.id.replace(self.map.next_value()?).is_some(),
                _ => return seed.deserialize(name.into_deserializer()).map(Some),
            };
            if is_twice {
                return Err(A::Error::custom("a name is there twice"));
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

impl<'de> Deserialize<'de> for SecretHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        Self::parse(text).ok_or_else(|| D::Error::custom("not a hash"))
    }
}

const PREVIOUS: &str = "previous";
const SUPERSEDED: &str = "superseded";
/// 32 bytes, in base64.
const HASH_LEN: usize = 43;
