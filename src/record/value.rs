//! Single values, and JSON objects of them, as JSON text.

use std::{
    borrow::Cow,
    fmt,
    io::{self, Write},
    sync::Arc,
};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    error::{Error, ErrorKind},
    record::strict,
};

/// One value, as JSON.
pub(crate) type Raw = Arc<str>;

/// One value, extracted from the data of its session.
pub(crate) enum Value {
    Stored(Bytes),
    Changed(Raw),
}

impl Value {
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        match self {
            Self::Stored(value) => from_raw(value),
            Self::Changed(value) => from_raw(value.as_bytes()),
        }
    }
}

/// Writes a value as JSON.
pub(crate) fn json(value: impl Serialize) -> Result<Raw, Error> {
    let mut out = Short::default();
    strict::write(&mut out, value)?;
    let text = std::str::from_utf8(out.bytes());
    text.map(Raw::from).map_err(|_| Error::new(ErrorKind::Data, "a value for the session is not written as text"))
}

/// A buffer that most values fit in.
struct Short {
    short: [u8; 64],
    len: usize,
    /// All bytes, once there are too many for `short`.
    long: Vec<u8>,
}

impl Short {
    fn bytes(&self) -> &[u8] {
        if self.long.is_empty() { &self.short[..self.len] } else { &self.long }
    }
}

impl Default for Short {
    fn default() -> Self {
        Self { short: [0; 64], len: 0, long: Vec::new() }
    }
}

impl Write for Short {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.short.get_mut(self.len..self.len + bytes.len()) {
            Some(place) if self.long.is_empty() => {
                place.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            _ => {
                if self.long.is_empty() {
                    self.long.extend_from_slice(&self.short[..self.len]);
                }
                self.long.extend_from_slice(bytes);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a value from its JSON.
pub(crate) fn from_raw<T: DeserializeOwned>(raw: &[u8]) -> Result<T, Error> {
    // serde's own message can quote the value, and a value is not for logs.
    serde_json::from_slice(raw).map_err(|_| {
        let wanted = std::any::type_name::<T>();
        Error::new(ErrorKind::Data, format!("a value in the session does not deserialize as {wanted}"))
    })
}

pub(super) fn to_raw(json: &[u8]) -> Raw {
    Raw::from(std::str::from_utf8(json).unwrap_or("null"))
}

/// A JSON object, one level deep, borrowed from the text it was read from.
pub(crate) struct RawObject<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

/// A text, borrowed if it has no escapes: serde's own `Cow` is always owned.
#[derive(Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for RawObject<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawObjectVisitor;

        impl<'de> Visitor<'de> for RawObjectVisitor {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some((Text(name), value)) = map.next_entry()? {
                    fields.push((name, value));
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(RawObjectVisitor).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_length_are_json() {
        for len in [0, 61, 62, 63, 64, 200] {
            let text = "\"".repeat(len / 2) + &"x".repeat(len);
            assert_eq!(serde_json::from_str::<String>(&json(&text).unwrap()).unwrap(), text);
        }
    }
}
