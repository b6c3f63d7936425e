//! What a session holds: a JSON object, parsed one level deep.
//!
//! A record's data is kept as the bytes it was read from, with the place of each name and value in them. Reading one
//! value deserializes that value alone; writing one copies the others as they are.

use std::{borrow::Cow, collections::HashMap, fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, MapAccess, Visitor},
    ser::{Error as _, SerializeMap},
};
use serde_json::value::RawValue;

use crate::{Error, ErrorKind};

/// The data of a session: names and values, as in a JSON object.
///
/// It is read with [`get`](Self::get), and it serializes and deserializes like a map, for a
/// [`Serializer`](crate::Serializer) of one's own. Its `Debug` shows no names and no values.
///
/// ```
/// # use jam_session::Data;
/// let data: Data = serde_json::from_str(r#"{"role": "admin", "visits": 3}"#)?;
/// assert_eq!(data.get::<u64>("visits")?, Some(3));
/// assert_eq!(data.get::<String>("theme")?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Data {
    source: Bytes,
    fields: Vec<Field>,
}

#[derive(Clone)]
struct Field {
    name: Text,
    value: Text,
}

/// UTF-8: somewhere in the source, or its own. A name without its quotes, a value as JSON.
#[derive(Clone)]
enum Text {
    At(Range<u32>),
    Own(Arc<str>),
}

/// One value, as JSON.
pub(crate) type Raw = Arc<str>;

/// One value, taken out of its [`Data`].
pub(crate) struct Value {
    source: Bytes,
    text: Text,
}

impl Value {
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        from_raw(bytes(&self.source, &self.text))
    }
}

impl Data {
    /// The value of that name, or `None`.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if it does not deserialize as a `T`.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        self.raw(name).map(from_raw).transpose()
    }

    /// The names, in the order in which they were first written.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|field| std::str::from_utf8(self.bytes(&field.name)).unwrap_or_default())
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Anything that serializes to a JSON object.
    pub(crate) fn from_serialize(value: impl Serialize) -> Result<Self, Error> {
        let json = serde_json::to_vec(&value).map_err(|_| does_not_serialize())?;
        let json = Bytes::from(json);
        serde_json::from_slice::<Fields<'_>>(&json)
            .map(|fields| fields.within(&json))
            .map_err(|_| Error::new(ErrorKind::Data, "the data of a session must serialize to a JSON object"))
    }

    pub(crate) fn raw(&self, name: &str) -> Option<&[u8]> {
        self.position(name).map(|at| self.bytes(&self.fields[at].value))
    }

    /// A value, to be read without holding on to the rest.
    pub(crate) fn value(&self, name: &str) -> Option<Value> {
        let at = self.position(name)?;
        Some(Value { source: self.source.clone(), text: self.fields[at].value.clone() })
    }

    pub(crate) fn set(&mut self, name: &str, value: Raw) {
        match self.position(name) {
            Some(at) => self.fields[at].value = Text::Own(value),
            None => self.fields.push(Field { name: Text::Own(name.into()), value: Text::Own(value) }),
        }
    }

    pub(crate) fn remove(&mut self, name: &str) {
        if self.position(name).is_some() {
            let source = self.source.clone();
            self.fields.retain(|field| bytes(&source, &field.name) != name.as_bytes());
        }
    }

    /// Whether both hold the same names with the same values, in whatever order.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        if self.fields.len() != other.fields.len() {
            return false;
        }
        let same = |(mine, theirs): (&Field, &Field)| {
            self.bytes(&mine.name) == other.bytes(&theirs.name) && self.bytes(&mine.value) == other.bytes(&theirs.value)
        };
        // Nearly always in the same order.
        if self.fields.iter().zip(&other.fields).all(same) {
            return true;
        }
        let theirs = other.by_name();
        self.fields.iter().all(|field| theirs.get(self.bytes(&field.name)) == Some(&self.bytes(&field.value)))
    }

    /// Every name of this with its value, or with `None` where `other` alone has it: what turns `other` into this.
    pub(crate) fn difference_from(&self, other: &Self) -> Vec<(String, Option<Raw>)> {
        let (mine, theirs) = (self.by_name(), other.by_name());
        let set = self.names().filter(|name| mine.get(name.as_bytes()) != theirs.get(name.as_bytes()));
        let set = set.map(|name| (name.to_owned(), mine.get(name.as_bytes()).map(|value| to_raw(value))));
        let removed = other.names().filter(|name| !mine.contains_key(name.as_bytes()));
        set.chain(removed.map(|name| (name.to_owned(), None))).collect()
    }

    fn by_name(&self) -> HashMap<&[u8], &[u8]> {
        self.fields.iter().map(|field| (self.bytes(&field.name), self.bytes(&field.value))).collect()
    }

    /// Appends the JSON object.
    pub(crate) fn write_json(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        out.push(b'{');
        for (i, field) in self.fields.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            match &field.name {
                // In the source it had no escapes, so it needs none now.
                Text::At(_) => {
                    out.push(b'"');
                    out.extend_from_slice(self.bytes(&field.name));
                    out.push(b'"');
                }
                Text::Own(name) => serde_json::to_writer(&mut *out, &**name).map_err(|_| does_not_serialize())?,
            }
            out.push(b':');
            out.extend_from_slice(self.bytes(&field.value));
        }
        out.push(b'}');
        Ok(())
    }

    /// About how long [`write_json`](Self::write_json) gets.
    pub(crate) fn json_len(&self) -> usize {
        let fields = self.fields.iter();
        2 + fields.map(|field| self.bytes(&field.name).len() + self.bytes(&field.value).len() + 4).sum::<usize>()
    }

    fn position(&self, name: &str) -> Option<usize> {
        // From the end: of a name written twice, JSON readers take the last.
        self.fields.iter().rposition(|field| self.bytes(&field.name) == name.as_bytes())
    }

    fn bytes<'a>(&'a self, text: &'a Text) -> &'a [u8] {
        bytes(&self.source, text)
    }
}

fn bytes<'a>(source: &'a [u8], text: &'a Text) -> &'a [u8] {
    match text {
        Text::At(range) => &source[range.start as usize..range.end as usize],
        Text::Own(text) => text.as_bytes(),
    }
}

/// A value, as JSON.
pub(crate) fn json(value: impl Serialize) -> Result<Raw, Error> {
    serde_json::to_string(&value).map(Raw::from).map_err(|_| does_not_serialize())
}

/// The type behind a value's JSON.
pub(crate) fn from_raw<T: DeserializeOwned>(raw: &[u8]) -> Result<T, Error> {
    // serde's own message can quote the value, and a value is not for logs.
    serde_json::from_slice(raw).map_err(|_| {
        let wanted = std::any::type_name::<T>();
        Error::new(ErrorKind::Data, format!("a value in the session does not deserialize as {wanted}"))
    })
}

fn to_raw(json: &[u8]) -> Raw {
    Raw::from(std::str::from_utf8(json).unwrap_or("null"))
}

fn does_not_serialize() -> Error {
    Error::new(ErrorKind::Data, "a value for the session does not serialize to JSON")
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Data").field("names", &self.fields.len()).finish_non_exhaustive()
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len()))?;
        for (name, field) in self.names().zip(&self.fields) {
            let value: serde_json::Value =
                serde_json::from_slice(self.bytes(&field.value)).map_err(S::Error::custom)?;
            map.serialize_entry(name, &value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = serde_json::Map::<String, serde_json::Value>::deserialize(deserializer)?;
        let fields = map.iter().map(|(name, value)| Field {
            name: Text::Own(name.as_str().into()),
            value: Text::Own(value.to_string().into()),
        });
        Ok(Self { source: Bytes::new(), fields: fields.collect() })
    }
}

/// A JSON object, one level deep, borrowed from the text it was read from.
pub(crate) struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl Fields<'_> {
    /// Turns what was borrowed from `source` into places in it.
    pub(crate) fn within(self, source: &Bytes) -> Data {
        let start = source.as_ptr() as usize;
        let place = |text: &str| {
            let at = (text.as_ptr() as usize).checked_sub(start)?;
            let end = at.checked_add(text.len()).filter(|&end| end <= source.len())?;
            Some(Text::At(u32::try_from(at).ok()?..u32::try_from(end).ok()?))
        };
        let fields = self.0.into_iter().map(|(name, value)| Field {
            name: match name {
                Cow::Borrowed(name) => place(name).unwrap_or_else(|| Text::Own(name.into())),
                Cow::Owned(name) => Text::Own(name.into()),
            },
            value: place(value.get()).unwrap_or_else(|| Text::Own(value.get().into())),
        });
        Data { fields: fields.collect(), source: source.clone() }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        /// `Cow` alone would always be owned.
        #[derive(Deserialize)]
        struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

        impl<'de> Visitor<'de> for Object {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some((Name(name), value)) = map.next_entry()? {
                    fields.push((name, value));
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Object).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(data: &Data) -> String {
        let mut out = Vec::new();
        data.write_json(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn names_with_escapes_survive() {
        let data = Data::from_serialize(json!({"a\"b\\\u{1}é": {"deep": [1, "x\"y"]}, "": null})).unwrap();
        let again: Data = serde_json::from_str(&text(&data)).unwrap();
        assert!(data.same_as(&again));
        assert_eq!(again.get::<serde_json::Value>("a\"b\\\u{1}é").unwrap(), Some(json!({"deep": [1, "x\"y"]})));
        assert_eq!(again.get::<Option<u8>>("").unwrap(), Some(None));
    }

    #[test]
    fn untouched_values_are_copied_as_they_are() {
        #[derive(Serialize)]
        struct Odd {
            number: Box<RawValue>,
            other: u8,
        }
        let number = RawValue::from_string("1.00e+2".to_owned()).unwrap();
        let mut data = Data::from_serialize(Odd { number, other: 1 }).unwrap();
        data.set("other", json(2).unwrap());
        assert_eq!(text(&data), r#"{"number":1.00e+2,"other":2}"#);
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        for value in [json!(1), json!([1]), json!("x"), json!(null)] {
            assert_eq!(Data::from_serialize(value).unwrap_err().kind(), ErrorKind::Data);
        }
    }

    #[test]
    fn a_difference_applied_gives_the_other() {
        let before = Data::from_serialize(json!({"a": 1, "b": 2, "c": 3})).unwrap();
        let after = Data::from_serialize(json!({"c": 3, "a": 9, "d": 4})).unwrap();
        let mut data = before.clone();
        for (name, value) in after.difference_from(&before) {
            match value {
                Some(value) => data.set(&name, value),
                None => data.remove(&name),
            }
        }
        assert!(data.same_as(&after));
        assert!(!data.same_as(&before));
    }

    #[test]
    fn neither_debug_nor_errors_show_data() {
        let data = Data::from_serialize(json!({"card": "4111-1111"})).unwrap();
        let error = data.get::<u64>("card").unwrap_err();
        for printed in [format!("{data:?}"), format!("{error:?}"), error.to_string()] {
            assert!(!printed.contains("4111") && !printed.contains("card"), "{printed}");
        }
    }
}
