//! The data of a session: a JSON object, parsed one level deep.
//!
//! A record keeps each value as JSON, after its name and the lengths of both. So loading a session parses nothing, reading a
//! value deserializes only that value, and writing a value copies the others unchanged.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, MapAccess, Visitor},
    ser::SerializeMap,
};

use crate::{
    error::{Error, ErrorKind},
    record::{
        strict,
        transcode::{Json, ToJson},
        value::{Raw, RawObject, Value, from_raw, to_raw},
    },
};

/// The data of a session: names and values, as in a JSON object.
///
/// [`get`](Self::get) reads a value. For a [`Serializer`](crate::Serializer), it serializes and deserializes like a map. Its
/// `Debug` output shows no names and no values.
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
    /// The data as read: one [field](push_field) after another.
    stored: Bytes,
    /// The changes since then, if there are any.
    changed: Option<Arc<Edits>>,
}

/// The changes in their order: each name once, and without a value if it was removed.
///
/// An ordered map, for the usual case of very few names. `indexmap` is shorter to use, and makes the first write of a visitor
/// 2.0 % more expensive and other writes 1.7 % (by callgrind): it allocates and hashes for a single name too.
#[derive(Clone, Default)]
struct Edits {
    list: Vec<Changed>,
    /// The position of each name in the list, once there are more than [`FEW`].
    places: HashMap<Arc<str>, usize>,
}

type Changed = (Arc<str>, Option<Raw>);

impl Data {
    /// Returns the value with this name, or `None`.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if the value does not deserialize as a `T`.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        self.raw(name).map(from_raw).transpose()
    }

    /// Returns the names, each once, in the order in which they were first written.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields().map(|(name, _)| name)
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        StoredFields(&self.stored).all(|(name, _)| self.change(name) == Some(&None)) && self.added().next().is_none()
    }

    /// Creates data from anything that serializes to a JSON object.
    pub(crate) fn from_serialize(value: impl Serialize) -> Result<Self, Error> {
        let mut json = Vec::new();
        strict::write(&mut json, value)?;
        serde_json::from_slice::<RawObject<'_>>(&json)
            .map(|fields| Self::from(&fields))
            .map_err(|_| Error::new(ErrorKind::Data, "the data of a session must serialize to a JSON object"))
    }

    /// Reads the output of [`write`](Self::write). Returns `None` for anything else.
    pub(crate) fn read(stored: Bytes) -> Option<Self> {
        let mut rest = &stored[..];
        while !rest.is_empty() {
            let (name, _, after) = take_field(rest)?;
            if !name.is_ascii() {
                std::str::from_utf8(name).ok()?;
            }
            rest = after;
        }
        Some(Self { stored, changed: None })
    }

    /// Appends all fields.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        if self.changed().is_empty() {
            return out.extend_from_slice(&self.stored);
        }
        // The bytes between two changes are copied at once.
        let (mut from, mut rest) = (&self.stored[..], &self.stored[..]);
        while let Some((name, _, after)) = take_field(rest) {
            if let Some(value) = self.change(name) {
                out.extend_from_slice(&from[..from.len() - rest.len()]);
                from = after;
                if let Some(value) = value {
                    push_field(out, name, value.as_bytes());
                }
            }
            rest = after;
        }
        out.extend_from_slice(from);
        for (name, value) in self.added() {
            push_field(out, name.as_bytes(), value.as_bytes());
        }
    }

    /// Returns how many bytes [`write`](Self::write) appends.
    pub(crate) fn len(&self) -> usize {
        let mut len = self.stored.len();
        if self.changed().is_empty() {
            return len;
        }
        for (name, value) in StoredFields(&self.stored) {
            if let Some(now) = self.change(name) {
                len -= field_len(name.len(), value.len());
                len += now.as_ref().map_or(0, |now| field_len(name.len(), now.len()));
            }
        }
        len + self.added().map(|(name, value)| field_len(name.len(), value.len())).sum::<usize>()
    }

    /// Returns the current names and values, in the order in which they were first written.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let stored = self.last_stored().filter_map(|(name, stored)| {
            let value = match self.change(name) {
                Some(value) => value.as_ref()?.as_bytes(),
                None => stored,
            };
            Some((std::str::from_utf8(name).unwrap_or_default(), value))
        });
        stored.chain(self.added().map(|(name, value)| (name, value.as_bytes())))
    }

    fn changed(&self) -> &[Changed] {
        self.changed.as_ref().map_or(&[], |changes| &changes.list)
    }

    /// Returns the change to that name since the data was read, if there was one.
    fn change(&self, name: &[u8]) -> Option<&Option<Raw>> {
        let changes = self.changed.as_ref()?;
        changes.place(name).map(|at| &changes.list[at].1)
    }

    /// Returns the values of new names since the data was read.
    fn added(&self) -> impl Iterator<Item = (&str, &Raw)> {
        let many = self.changed().len() > FEW;
        let stored: HashSet<_> = StoredFields(&self.stored).take_while(|_| many).map(|(name, _)| name).collect();
        let is_stored = move |name: &str| match many {
            true => stored.contains(name.as_bytes()),
            false => self.stored(name).is_some(),
        };
        self.changed()
            .iter()
            .filter_map(|(name, value)| Some((&**name, value.as_ref()?)))
            .filter(move |(name, _)| !is_stored(name))
    }

    /// Returns the fields that were read, each name once. If a name is there twice, the last one counts, as for JSON readers.
    fn last_stored(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let many = StoredFields(&self.stored).nth(FEW).is_some();
        let last: HashMap<_, _> =
            StoredFields(&self.stored).take_while(|_| many).map(|(name, value)| (name, value.as_ptr())).collect();
        let mut rest = StoredFields(&self.stored);
        std::iter::from_fn(move || {
            loop {
                let (name, value) = rest.next()?;
                let is_last = match many {
                    true => last.get(name) == Some(&value.as_ptr()),
                    false => StoredFields(rest.0).all(|(other, _)| other != name),
                };
                if is_last {
                    return Some((name, value));
                }
            }
        })
    }

    /// Returns the value that was read.
    fn stored(&self, name: &str) -> Option<&[u8]> {
        // If a name is there twice, the last one counts, as for JSON readers.
        let named = |(stored, value): (_, _)| (stored == name.as_bytes()).then_some(value);
        StoredFields(&self.stored).filter_map(named).last()
    }

    pub(crate) fn raw(&self, name: &str) -> Option<&[u8]> {
        match self.change(name.as_bytes()) {
            Some(value) => value.as_ref().map(|raw| raw.as_bytes()),
            None => self.stored(name),
        }
    }

    /// Returns the value of that name. It does not change when the name is written to.
    pub(crate) fn value(&self, name: &str) -> Option<Value> {
        match self.change(name.as_bytes()) {
            Some(value) => value.clone().map(Value::Changed),
            None => self.stored(name).map(|value| Value::Stored(self.stored.slice_ref(value))),
        }
    }

    pub(crate) fn set(&mut self, name: &Arc<str>, value: Raw) {
        self.put(name, Some(value));
    }

    pub(crate) fn remove(&mut self, name: &Arc<str>) {
        self.put(name, None);
    }

    fn put(&mut self, name: &Arc<str>, value: Option<Raw>) {
        Arc::make_mut(self.changed.get_or_insert_default()).put(name, value);
    }

    /// Returns whether both have the same names with the same values, in any order.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        if self.changed().len().max(other.changed().len()) <= FEW && self.stored == other.stored {
            // The usual case: one was made from the other.
            let mut changed = self.changed().iter().chain(other.changed());
            return changed.all(|(name, _)| self.raw(name) == other.raw(name));
        }
        self.by_name() == other.by_name()
    }

    /// Returns the changes that turn `other` into this: names with their new values, or `None` if they are removed.
    pub(crate) fn difference_from(&self, other: &Self) -> Vec<(Arc<str>, Option<Raw>)> {
        let (mine, theirs) = (self.by_name(), other.by_name());
        let set = self.names().filter(|name| mine.get(name) != theirs.get(name));
        let set = set.map(|name| (name.into(), mine.get(name).map(|value| to_raw(value))));
        let removed = other.names().filter(|name| !mine.contains_key(name));
        set.chain(removed.map(|name| (name.into(), None))).collect()
    }

    fn by_name(&self) -> HashMap<&str, &[u8]> {
        self.fields().collect()
    }
}

impl Edits {
    fn put(&mut self, name: &Arc<str>, value: Option<Raw>) {
        if let Some(at) = self.place(name.as_bytes()) {
            self.list[at].1 = value;
            return;
        }
        self.list.push((Arc::clone(name), value));
        if self.list.len() > FEW {
            // Index all of them the first time, and one each time after that.
            let from = self.places.len();
            let new = self.list.iter().enumerate().skip(from).map(|(at, (name, _))| (Arc::clone(name), at));
            self.places.extend(new);
        }
    }

    fn place(&self, name: &[u8]) -> Option<usize> {
        if self.list.len() > FEW {
            return self.places.get(std::str::from_utf8(name).ok()?).copied();
        }
        self.list.iter().position(|(changed, _)| changed.as_bytes() == name)
    }
}

/// The fields of what was read.
struct StoredFields<'a>(&'a [u8]);

impl<'a> Iterator for StoredFields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value, rest) = take_field(self.0)?;
        self.0 = rest;
        Some((name, value))
    }
}

/// A field: the length of the name, the length of the value, the name, and the value as JSON.
fn push_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    push_len(out, name.len());
    push_len(out, value.len());
    out.extend_from_slice(name);
    out.extend_from_slice(value);
}

/// A field's name and value, and what comes after it.
fn take_field(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name_len, rest) = take_len(bytes)?;
    let (value_len, rest) = take_len(rest)?;
    let (name, rest) = rest.split_at_checked(name_len)?;
    let (value, rest) = rest.split_at_checked(value_len)?;
    Some((name, value, rest))
}

fn field_len(name: usize, value: usize) -> usize {
    len_len(name) + len_len(value) + name + value
}

/// The number of bytes of a [length](push_len).
pub(crate) fn len_len(len: usize) -> usize {
    (usize::BITS - (len | 1).leading_zeros()).div_ceil(7) as usize
}

/// A length in LEB128: seven bits per byte, the lowest first. The eighth bit is set if another byte follows.
pub(crate) fn push_len(out: &mut Vec<u8>, mut len: usize) {
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
}

/// A length, and what comes after it.
pub(crate) fn take_len(bytes: &[u8]) -> Option<(usize, &[u8])> {
    if let Some((&len @ ..0x80, rest)) = bytes.split_first() {
        return Some((len.into(), rest));
    }
    let mut len = 0;
    for (i, byte) in bytes.iter().take(MAX_LEN_BYTES).enumerate() {
        len |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            // A length has one encoding, so that it never grows when it is written again.
            if *byte == 0 {
                return None;
            }
            return Some((usize::try_from(len).ok()?, &bytes[i + 1..]));
        }
    }
    None
}

/// Enough for 32 GiB.
const MAX_LEN_BYTES: usize = 5;
/// Up to this many changes, comparing each is faster than hashing.
const FEW: usize = 16;

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Data").field("names", &self.fields().count()).finish_non_exhaustive()
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields().count()))?;
        for (name, value) in self.fields() {
            map.serialize_entry(name, &Json::new(value))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DataVisitor;

        impl<'de> Visitor<'de> for DataVisitor {
            type Value = Data;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the data of a session, a map with names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Data, A::Error> {
                let (mut stored, mut value) = (Vec::new(), Vec::new());
                while let Some(name) = map.next_key::<String>()? {
                    value.clear();
                    map.next_value_seed(ToJson::new(&mut value))?;
                    push_field(&mut stored, name.as_bytes(), &value);
                }
                Ok(Data { stored: stored.into(), changed: None })
            }
        }

        deserializer.deserialize_map(DataVisitor)
    }
}

impl From<&RawObject<'_>> for Data {
    fn from(fields: &RawObject<'_>) -> Self {
        let mut stored = Vec::new();
        for (name, value) in &fields.0 {
            push_field(&mut stored, name.as_bytes(), value.get().as_bytes());
        }
        Self { stored: stored.into(), changed: None }
    }
}

#[cfg(test)]
mod tests {
    use std::str::from_utf8;

    use serde_json::{json, value::RawValue};

    use super::*;
    use crate::record::value::json;

    fn text(data: &Data) -> String {
        let fields =
            data.fields().map(|(name, value)| format!("{}:{}", json(name).unwrap(), from_utf8(value).unwrap()));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }

    fn written(data: &Data) -> Data {
        let mut out = Vec::new();
        data.write(&mut out);
        assert_eq!(out.len(), data.len());
        Data::read(out.into()).unwrap()
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
        data.set(&"other".into(), json(2).unwrap());
        for data in [written(&data), data] {
            assert_eq!(text(&data), r#"{"number":1.00e+2,"other":2}"#);
        }
    }

    #[test]
    fn what_is_read_is_what_was_written_or_nothing() {
        let mut out = Vec::new();
        let long = "x".repeat(300);
        Data::from_serialize(json!({"a": long, "": {}, "b": null})).unwrap().write(&mut out);
        let ends = (0..out.len()).filter(|end| Data::read(Bytes::copy_from_slice(&out[..*end])).is_some());
        // Only between two fields.
        assert_eq!(ends.count(), 3);
        for broken in [&[0x80; 9][..], &[1], &[0xff, 0xff, 0xff, 0xff, 0x7f, 0], &[0, 5, b'1'], &[1, 1, 0xff, b'1']] {
            assert!(Data::read(Bytes::copy_from_slice(broken)).is_none());
        }
    }

    #[test]
    fn a_length_has_one_spelling() {
        for len in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u32::MAX as usize] {
            let mut out = Vec::new();
            push_len(&mut out, len);
            assert_eq!(out.len(), len_len(len));
            assert_eq!(take_len(&out), Some((len, &[][..])));
            *out.last_mut().unwrap() |= 0x80;
            out.push(0);
            assert_eq!(take_len(&out), None);
        }
        // The name `a` and the value 1, once as they are written, and once with a length that has a byte too many.
        assert!(Data::read(Bytes::from_static(&[1, 1, b'a', b'1'])).is_some());
        assert!(Data::read(Bytes::from_static(&[0x81, 0, 1, b'a', b'1'])).is_none());
    }

    /// Against a plain list of names and values, whatever is written, removed and read in between.
    #[test]
    fn it_is_what_a_plain_list_would_be() {
        let mut seed = 1_u64;
        let mut below = |end: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % end
        };
        for round in 0..300 {
            // Few names are changed again and again; of many, there are more than are looked through one by one.
            let names = if round % 2 == 0 { 6 } else { 60 };
            let (mut data, mut before) = (Data::default(), Data::default());
            let mut list: Vec<(String, String)> = Vec::new();
            for _ in 0..below(150) {
                let name = match below(names) {
                    0 => String::new(),
                    1 => "n".repeat(200),
                    n => format!("n{n}\"é"),
                };
                let name: Arc<str> = name.into();
                let at = list.iter().position(|(there, _)| **there == *name);
                match below(8) {
                    0..4 => {
                        let value = "1".repeat([1, 2, 127, 128][below(4) as usize]);
                        data.set(&name, value.as_str().into());
                        match at {
                            Some(at) => list[at].1 = value,
                            None => list.push((name.to_string(), value)),
                        }
                    }
                    4..6 => {
                        data.remove(&name);
                        list.retain(|(there, _)| **there != *name);
                    }
                    6 if below(3) == 0 => (data, before) = (written(&data), data),
                    _ => assert_eq!(data.raw(&name), at.map(|at| list[at].1.as_bytes())),
                }
                let mut fields: Vec<_> = data
                    .fields()
                    .map(|(name, value)| (name.to_owned(), from_utf8(value).unwrap().to_owned()))
                    .collect();
                assert_eq!(data.is_empty(), fields.is_empty());
                fields.sort();
                let mut sorted = list.clone();
                sorted.sort();
                assert_eq!(fields, sorted);
            }
            let again = written(&data);
            assert!(again.fields().eq(data.fields()));
            assert!(again.same_as(&data) && data.same_as(&again));
            assert_eq!(before.same_as(&data), data.difference_from(&before).is_empty());
            for (name, value) in data.difference_from(&before) {
                match value {
                    Some(value) => before.set(&name, value),
                    None => before.remove(&name),
                }
            }
            assert!(before.same_as(&data) && data.same_as(&before) && written(&before).same_as(&data));
        }
    }

    /// A hundred thousand names in one session: work that grew with the square of that would take minutes.
    #[test]
    fn many_names_are_no_more_work_than_their_number() {
        let names: Vec<Arc<str>> = (0..100_000).map(|n| format!("name{n}").into()).collect();
        let mut data = Data::default();
        for value in ["1", "2"] {
            for name in &names {
                data.set(name, value.into());
            }
            data = written(&data);
        }
        let before = data.clone();
        for name in &names {
            data.remove(name);
            data.set(name, "3".into());
        }
        assert!(!data.same_as(&before) && written(&data).same_as(&data));
        assert_eq!(data.difference_from(&before).len(), names.len());
        assert_eq!(data.fields().count(), names.len());
    }

    #[test]
    fn of_a_name_written_twice_the_last_counts() {
        let mut out = Vec::new();
        push_field(&mut out, b"a", b"1");
        push_field(&mut out, b"a", b"2");
        let mut data = Data::read(out.into()).unwrap();
        assert_eq!(data.get::<u8>("a").unwrap(), Some(2));
        data.set(&"a".into(), json(3).unwrap());
        assert_eq!(written(&data).get::<u8>("a").unwrap(), Some(3));
        data.remove(&"a".into());
        assert!(written(&data).is_empty() && data.is_empty());
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
        for data in [written(&data), data] {
            assert!(data.same_as(&after) && after.same_as(&data));
            assert!(!data.same_as(&before) && !before.same_as(&data));
            assert_eq!(data.names().collect::<Vec<_>>(), ["a", "c", "d"]);
        }
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
