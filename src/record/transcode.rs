//! Conversion of JSON text to other formats and back, for the application's [`Serializer`](crate::Serializer).
//!
//! It does not use `serde_json::Value`, which rounds large numbers. With the feature `arbitrary_precision`, which any
//! dependency can turn on, `Value` also turns every number into a struct that only serde_json understands.

use std::{fmt, str::from_utf8};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
    ser::{Error as _, SerializeMap},
};
use serde_json::value::RawValue;

use crate::record::{
    strict::{MAX_DEPTH, NUMBER},
    value::{RawObject, Text},
};

/// A value's JSON, which serializes as the value.
///
/// Integers are `i64` or `u64`, and other numbers `f64`. A number that does not fit is an error. Nesting that is too deep is
/// also an error, because each level is one more call on the stack, and a record may be planted.
pub(super) struct Json<'a> {
    json: &'a [u8],
    /// The current nesting level.
    depth: u8,
}

impl<'a> Json<'a> {
    pub(super) fn new(json: &'a [u8]) -> Self {
        Self { json, depth: 0 }
    }

    fn inside<E: serde::ser::Error>(&self) -> Result<impl Fn(&'a RawValue) -> Self, E> {
        let depth = deeper(self.depth).ok_or_else(|| E::custom(TOO_DEEP))?;
        Ok(move |value: &'a RawValue| Self { json: value.get().as_bytes(), depth })
    }
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn parsed<'a, T: Deserialize<'a>, E: serde::ser::Error>(json: &'a [u8]) -> Result<T, E> {
            serde_json::from_slice(json).map_err(E::custom)
        }

        match self.json.first() {
            Some(b'n') => serializer.serialize_unit(),
            Some(b't') => serializer.serialize_bool(true),
            Some(b'f') => serializer.serialize_bool(false),
            Some(b'"') => serializer.serialize_str(&parsed::<Text<'_>, S::Error>(self.json)?.0),
            Some(b'[') => {
                let inside = self.inside::<S::Error>()?;
                let items: Vec<&RawValue> = parsed(self.json)?;
                serializer.collect_seq(items.into_iter().map(inside))
            }
            Some(b'{') => {
                let inside = self.inside::<S::Error>()?;
                let RawObject(fields) = parsed(self.json)?;
                if fields.iter().any(|(name, _)| name == NUMBER) {
                    return Err(S::Error::custom("a name in an object is one that serde_json keeps for itself"));
                }
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (name, value) in fields {
                    map.serialize_entry(&name, &inside(value))?;
                }
                map.end()
            }
            _ => match from_utf8(self.json).ok().and_then(Number::parse) {
                Some(Number::U64(number)) => serializer.serialize_u64(number),
                Some(Number::I64(number)) => serializer.serialize_i64(number),
                Some(Number::F64(number)) => serializer.serialize_f64(number),
                None => Err(S::Error::custom("a number is neither an i64 nor a u64 nor exactly an f64")),
            },
        }
    }
}

/// Appends a deserialized value as JSON. Nesting that is too deep to be read is an error.
pub(super) struct ToJson<'a> {
    out: &'a mut Vec<u8>,
    /// The current nesting level.
    depth: u8,
}

impl<'de> DeserializeSeed<'de> for ToJson<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> ToJson<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, depth: 0 }
    }

    fn inside<E: de::Error>(self) -> Result<Self, E> {
        let depth = deeper(self.depth).ok_or_else(|| E::custom(TOO_DEEP))?;
        Ok(Self { depth, ..self })
    }

    fn write<E: de::Error>(self, value: impl Serialize) -> Result<(), E> {
        serde_json::to_writer(self.out, &value).map_err(E::custom)
    }
}

impl<'de> Visitor<'de> for ToJson<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can hold")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.write(value)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.write(value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.write(value)
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<(), E> {
        self.write(value)
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<(), E> {
        self.write(value)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        if !value.is_finite() {
            return Err(E::custom("a number is NaN or infinite"));
        }
        self.write(value)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        self.write(value)
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.write(())
    }

    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.write(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.inside::<D::Error>()?.deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.inside::<D::Error>()?.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { out, depth } = self.inside::<A::Error>()?;
        out.push(b'[');
        let start = out.len();
        loop {
            let end = out.len();
            if end > start {
                out.push(b',');
            }
            if items.next_element_seed(ToJson { out, depth })?.is_none() {
                // There was no further item after the comma.
                out.truncate(end);
                out.push(b']');
                return Ok(());
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let start = self.out.len();
        let first = map.next_key::<String>()?;
        if first.as_deref() == Some(NUMBER) {
            // This is not a level, so a number may be at the deepest level.
            let number: String = map.next_value()?;
            let number: &RawValue = serde_json::from_str(&number).map_err(de::Error::custom)?;
            self.out.extend_from_slice(number.get().as_bytes());
            return Ok(());
        }
        let Self { out, depth } = self.inside::<A::Error>()?;
        let mut next = first;
        while let Some(name) = next {
            out.push(if out.len() == start { b'{' } else { b',' });
            serde_json::to_writer(&mut *out, &name).map_err(de::Error::custom)?;
            out.push(b':');
            map.next_value_seed(ToJson { out, depth })?;
            next = map.next_key()?;
        }
        out.extend_from_slice(if out.len() == start { b"{}" } else { b"}" });
        Ok(())
    }
}

/// A number, exactly.
#[derive(Debug, PartialEq)]
enum Number {
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        // serde_json also reads a negative zero as a float.
        if !text.contains(['.', 'e', 'E']) && text != "-0" {
            return text.parse().map(Self::U64).or_else(|_| text.parse().map(Self::I64)).ok();
        }
        let number: f64 = text.parse().ok()?;
        // Compared in the form in which it would be written again, because of two equally short and near texts, std chooses
        // another one.
        let again = serde_json::to_string(&number).ok().filter(|_| number.is_finite())?;
        (Decimal::parse(text)? == Decimal::parse(&again)?).then_some(Self::F64(number))
    }
}

/// A number as its digits, without leading and trailing zeros, and the power of ten of the last digit.
#[derive(PartialEq)]
struct Decimal {
    digits: String,
    exponent: i64,
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (digits, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all = [whole.trim_start_matches('-'), fraction].concat();
        let digits = all.trim_end_matches('0');
        let exponent: i64 = exponent.parse().ok()?;
        let exponent = exponent.checked_sub(fraction.len() as i64)?.checked_add((all.len() - digits.len()) as i64)?;
        let digits = digits.trim_start_matches('0').to_owned();
        Some(Self { exponent: if digits.is_empty() { 0 } else { exponent }, digits })
    }
}

/// Returns the next nesting level, if that can still be read.
fn deeper(depth: u8) -> Option<u8> {
    (depth < MAX_DEPTH).then_some(depth + 1)
}

const TOO_DEEP: &str = "a value is nested deeper than 127 levels";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{STEP, mix};

    #[test]
    fn every_float_is_exactly_what_serde_json_writes() {
        let mut state = 1_u64;
        for _ in 0..20_000 {
            state = state.wrapping_add(STEP);
            let bits = mix(state);
            let (float, single) = (f64::from_bits(bits), f32::from_bits(bits as u32));
            let json = |float: &dyn Fn() -> String, value: f64| {
                if value.is_finite() {
                    assert!(matches!(Number::parse(&float()), Some(Number::F64(_))), "{}", float());
                }
            };
            json(&|| serde_json::to_string(&float).unwrap(), float);
            json(&|| serde_json::to_string(&single).unwrap(), single.into());
        }
    }

    #[test]
    fn what_is_nested_too_deep_to_be_read_is_an_error_and_never_overflows_the_stack() {
        for (levels, is_held) in [(1, true), (127, true), (128, false), (2_000, false), (100_000, false)] {
            for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
                let json = [open.repeat(levels), "0".to_owned(), close.repeat(levels)].concat();
                let written = serde_json::to_string(&Json::new(json.as_bytes()));
                assert_eq!(written.is_ok(), is_held, "{levels}");
                assert!(written.is_err() || written.is_ok_and(|written| written == json));
            }
            // Arrays of one, and then zero; read without the reader's own limit.
            let packed = [vec![0x91; levels], vec![0]].concat();
            let mut packed = rmp_serde::Deserializer::from_read_ref(&packed);
            packed.set_max_depth(usize::MAX);
            let mut json = Vec::new();
            assert_eq!(ToJson::new(&mut json).deserialize(&mut packed).is_ok(), is_held, "{levels}");
        }
    }

    #[test]
    fn a_number_is_exact_or_none() {
        for (text, number) in [
            ("0", Some(Number::U64(0))),
            ("-0", Some(Number::F64(-0.0))),
            ("-1", Some(Number::I64(-1))),
            ("18446744073709551615", Some(Number::U64(u64::MAX))),
            ("-9223372036854775808", Some(Number::I64(i64::MIN))),
            ("18446744073709551616", None),
            ("-9223372036854775809", None),
            ("0.09144338512092887", Some(Number::F64(0.09144338512092887))),
            ("1.00e+2", Some(Number::F64(100.0))),
            ("0.000E-5", Some(Number::F64(0.0))),
            ("5e-324", Some(Number::F64(5e-324))),
            ("1.7976931348623157e308", Some(Number::F64(f64::MAX))),
            ("1e400", None),
            ("1e-400", None),
            ("0.1000000000000000055511151231257827", None),
            ("9007199254740993.0", None),
            ("1e99999999999999999999", None),
        ] {
            assert_eq!(Number::parse(text), number, "{text}");
        }
    }
}
