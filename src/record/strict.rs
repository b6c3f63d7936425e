//! The serializer of values: serde_json's, with checks that refuse values that would not be read back equal.
//!
//! serde_json writes `NaN` and infinities as `null`. It writes any depth of nesting, but reads only 127 levels. A map with a name
//! that serde_json reserves is read back as something else.

use std::{
    cell::Cell,
    fmt::{self, Write as _},
    io::Write,
};

use serde::{
    Serialize, Serializer,
    ser::{
        self, Error as _, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
        SerializeTupleStruct, SerializeTupleVariant,
    },
};

use crate::error::{Error, ErrorKind};

/// Writes a value as JSON.
///
/// # Errors
/// `Data`, with an explanation that does not contain any part of the value.
pub(super) fn write(out: impl Write, value: impl Serialize) -> Result<(), Error> {
    let refused = Cell::new("a value for the session does not serialize to JSON");
    let mut json = serde_json::Serializer::new(out);
    // serde's own message can quote the value, and a value is not for logs.
    value
        .serialize(Strict { inner: &mut json, depth: 0, is_name: false, is_raw: false, refused: &refused })
        .map(drop)
        .map_err(|_| Error::new(ErrorKind::Data, refused.get()))
}

/// A serializer, or one of its compounds, wrapped with the checks.
struct Strict<'r, S> {
    inner: S,
    /// The nesting level: how many arrays and objects enclose this.
    depth: u8,
    /// Whether this is a name in a map.
    is_name: bool,
    /// Whether this is the struct that serde_json uses for a `RawValue`, whose field is already JSON.
    is_raw: bool,
    /// The reason, if a check failed.
    refused: &'r Cell<&'static str>,
}

/// A value inside a compound, which is serialized with the same checks.
struct Element<'r, 'v, T: ?Sized> {
    value: &'v T,
    depth: u8,
    is_name: bool,
    refused: &'r Cell<&'static str>,
}

impl<T: Serialize + ?Sized> Serialize for Element<'_, '_, T> {
    fn serialize<S: Serializer>(&self, inner: S) -> Result<S::Ok, S::Error> {
        let Self { value, depth, is_name, refused } = *self;
        value.serialize(Strict { inner, depth, is_name, is_raw: false, refused })
    }
}

impl<'r, S> Strict<'r, S> {
    fn element<'v, T: ?Sized>(&self, value: &'v T) -> Element<'r, 'v, T> {
        Element { value, depth: self.depth, is_name: self.is_name, refused: self.refused }
    }

    fn refuse<T, E: ser::Error>(&self, why: &'static str) -> Result<T, E> {
        self.refused.set(why);
        Err(E::custom(why))
    }
}

impl<'r, S: Serializer> Strict<'r, S> {
    fn finite(&self, is_finite: bool) -> Result<(), S::Error> {
        if is_finite {
            return Ok(());
        }
        self.refuse("a value for the session has a number that is NaN or infinite, which JSON cannot hold")
    }

    /// Enters this many levels.
    fn deeper(mut self, levels: u8) -> Result<Self, S::Error> {
        self.depth += levels;
        if self.depth > MAX_DEPTH {
            return self.refuse(TOO_DEEP);
        }
        Ok(self)
    }

    /// Wraps a compound of the inner serializer.
    fn compound<C>(self, begin: impl FnOnce(S) -> Result<C, S::Error>) -> Result<Strict<'r, C>, S::Error> {
        let Self { inner, depth, is_name, is_raw, refused } = self;
        Ok(Strict { inner: begin(inner)?, depth, is_name, is_raw, refused })
    }
}

/// Passes calls on unchanged.
macro_rules! pass {
    ($($name:ident($($argument:ident: $type:ty),*))*) => {$(
        fn $name(self, $($argument: $type),*) -> Result<S::Ok, S::Error> {
            self.inner.$name($($argument),*)
        }
    )*};
}

impl<'r, S: Serializer> Serializer for Strict<'r, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Strict<'r, S::SerializeSeq>;
    type SerializeTuple = Strict<'r, S::SerializeTuple>;
    type SerializeTupleStruct = Strict<'r, S::SerializeTupleStruct>;
    type SerializeTupleVariant = Strict<'r, S::SerializeTupleVariant>;
    type SerializeMap = Strict<'r, S::SerializeMap>;
    type SerializeStruct = Strict<'r, S::SerializeStruct>;
    type SerializeStructVariant = Strict<'r, S::SerializeStructVariant>;

    pass! {
        serialize_bool(value: bool)
        serialize_i8(value: i8)
        serialize_i16(value: i16)
        serialize_i32(value: i32)
        serialize_i64(value: i64)
        serialize_i128(value: i128)
        serialize_u8(value: u8)
        serialize_u16(value: u16)
        serialize_u32(value: u32)
        serialize_u64(value: u64)
        serialize_u128(value: u128)
        serialize_char(value: char)
        serialize_none()
        serialize_unit()
        serialize_unit_struct(name: &'static str)
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str)
    }

    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        self.finite(value.is_finite())?;
        self.inner.serialize_f32(value)
    }

    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        self.finite(value.is_finite())?;
        self.inner.serialize_f64(value)
    }

    fn serialize_str(self, value: &str) -> Result<S::Ok, S::Error> {
        if self.is_name && (value == NUMBER || value == RAW) {
            return self.refuse("a map for the session has a name that serde_json keeps for itself");
        }
        self.inner.serialize_str(value)
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<S::Ok, S::Error> {
        self.deeper(1)?.inner.serialize_bytes(value)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        let value = self.element(value);
        self.inner.serialize_some(&value)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<S::Ok, S::Error> {
        let value = self.element(value);
        self.inner.serialize_newtype_struct(name, &value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let deeper = self.deeper(1)?;
        let value = deeper.element(value);
        deeper.inner.serialize_newtype_variant(name, index, variant, &value)
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.deeper(1)?.compound(|inner| inner.serialize_seq(len))
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.deeper(1)?.compound(|inner| inner.serialize_tuple(len))
    }

    fn serialize_tuple_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.deeper(1)?.compound(|inner| inner.serialize_tuple_struct(name, len))
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.deeper(2)?.compound(|inner| inner.serialize_tuple_variant(name, index, variant, len))
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.deeper(1)?.compound(|inner| inner.serialize_map(len))
    }

    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeStruct, S::Error> {
        let is_raw = name == RAW;
        // A `RawValue` counts as many levels as its text has.
        Strict { is_raw, ..self.deeper(u8::from(!is_raw))? }.compound(|inner| inner.serialize_struct(name, len))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.deeper(2)?.compound(|inner| inner.serialize_struct_variant(name, index, variant, len))
    }

    fn collect_str<T: fmt::Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        if self.is_name {
            let mut name = String::new();
            write!(name, "{value}").map_err(S::Error::custom)?;
            return self.serialize_str(&name);
        }
        self.inner.collect_str(value)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! elements {
    ($($compound:ident: $element:ident)*) => {$(
        impl<S: $compound> $compound for Strict<'_, S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn $element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
                let value = self.element(value);
                self.inner.$element(&value)
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.inner.end()
            }
        }
    )*};
}

elements! {
    SerializeSeq: serialize_element
    SerializeTuple: serialize_element
    SerializeTupleStruct: serialize_field
    SerializeTupleVariant: serialize_field
}

macro_rules! fields {
    ($($compound:ident)*) => {$(
        impl<S: $compound> $compound for Strict<'_, S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), S::Error> {
                if self.is_raw && deepest(value) > MAX_DEPTH - self.depth {
                    return self.refuse(TOO_DEEP);
                }
                let value = self.element(value);
                self.inner.serialize_field(name, &value)
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), S::Error> {
                self.inner.skip_field(name)
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.inner.end()
            }
        }
    )*};
}

fields! { SerializeStruct SerializeStructVariant }

impl<S: SerializeMap> SerializeMap for Strict<'_, S> {
    type Ok = S::Ok;
    type Error = S::Error;

    /// serde_json itself refuses anything that cannot be a name.
    fn serialize_key<T: Serialize + ?Sized>(&mut self, name: &T) -> Result<(), S::Error> {
        let name = Element { is_name: true, ..self.element(name) };
        self.inner.serialize_key(&name)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        let value = self.element(value);
        self.inner.serialize_value(&value)
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.inner.end()
    }
}

/// Returns how deep the text of a `RawValue` is nested.
fn deepest<T: Serialize + ?Sized>(raw: &T) -> u8 {
    struct Shown<'v, T: ?Sized>(&'v T);

    impl<T: Serialize + ?Sized> fmt::Display for Shown<'_, T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            // For serde, a formatter is a serializer of single values.
            self.0.serialize(f)
        }
    }

    let mut levels = Levels::default();
    // If it is not a string, serde_json refuses it.
    let _ = write!(levels, "{}", Shown(raw));
    levels.deepest
}

/// Counts the levels of the JSON that is written to it. It stores nothing and does not recurse.
#[derive(Default)]
struct Levels {
    now: u8,
    deepest: u8,
    in_string: bool,
    escaped: bool,
}

impl fmt::Write for Levels {
    fn write_str(&mut self, json: &str) -> fmt::Result {
        for byte in json.bytes() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = self.in_string,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'[' | b'{' => {
                    self.now = self.now.saturating_add(1);
                    self.deepest = self.deepest.max(self.now);
                }
                b']' | b'}' => self.now = self.now.saturating_sub(1),
                _ => {}
            }
        }
        Ok(())
    }
}

const TOO_DEEP: &str = "a value for the session is nested deeper than 127 levels, which is too deep to be read";
/// The maximum depth that serde_json reads.
pub(super) const MAX_DEPTH: u8 = 127;
/// With its feature `arbitrary_precision`, serde_json passes numbers to other formats as a map of this name and their text.
pub(super) const NUMBER: &str = "$serde_json::private::Number";
/// The same for a `RawValue`, which is also a struct with this name when it is written.
const RAW: &str = "$serde_json::private::RawValue";
