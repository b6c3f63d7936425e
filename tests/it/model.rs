//! A model of serde values of every kind, which predicts how each is read back.

use std::{cell::RefCell, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, EnumAccess, Error as _, IgnoredAny, MapAccess, SeqAccess, VariantAccess, Visitor},
    ser::{
        SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple, SerializeTupleStruct,
        SerializeTupleVariant,
    },
};

use crate::random::Random;

#[derive(Clone, Debug)]
pub enum Model {
    Bool(bool),
    I8(i8),
    I16(i16),
    I32(i32),
    I64(i64),
    I128(i128),
    U8(u8),
    U16(u16),
    U32(u32),
    U64(u64),
    U128(u128),
    F32(f32),
    F64(f64),
    Char(char),
    Str(String),
    Bytes(Vec<u8>),
    Option(Option<Box<Model>>),
    Unit,
    UnitStruct,
    NewtypeStruct(Box<Model>),
    Seq(Vec<Model>),
    Tuple(Vec<Model>),
    TupleStruct(Vec<Model>),
    Map(Vec<(Key, Model)>),
    Struct(Vec<Model>),
    /// The number of the variant comes first.
    UnitVariant(usize),
    NewtypeVariant(usize, Box<Model>),
    TupleVariant(usize, Vec<Model>),
    StructVariant(usize, Vec<Model>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Key {
    Str(String),
    I64(i64),
    U128(u128),
    Bool(bool),
    Char(char),
    Variant(usize),
}

const NAMES: [&str; 5] = ["a", "b\"\n", "long_name_of_a_field", "é", ""];

/// To the bit, so that zeros differ.
impl PartialEq for Model {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

impl Model {
    pub fn random(random: &mut Random, depth: usize) -> Self {
        if random.one_in(200) {
            return Self::nested(115 + random.below(25));
        }
        let kinds = if depth == 0 { 16 } else { 29 };
        let some = |random: &mut Random| {
            let len = random.below(NAMES.len() + 1).min(random.below(NAMES.len() + 1));
            (0..len).map(|_| Self::random(random, depth - 1)).collect::<Vec<_>>()
        };
        let one = |random: &mut Random| Box::new(Self::random(random, depth - 1));
        let variant = random.below(NAMES.len());
        match random.below(kinds) {
            0 => Self::Bool(random.one_in(2)),
            1 => Self::I8(random.next() as i8),
            2 => Self::I16(random.next() as i16),
            3 => Self::I32(random.next() as i32),
            4 => Self::I64(random.next() as i64 >> random.below(64)),
            5 => Self::I128(wide(random) as i128 >> random.below(128)),
            6 => Self::U8(random.next() as u8),
            7 => Self::U16(random.next() as u16),
            8 => Self::U32(random.next() as u32),
            9 => Self::U64(random.next() >> random.below(64)),
            10 => Self::U128(wide(random) >> random.below(128)),
            11 => Self::F32(f32::from_bits(random.next() as u32)),
            12 if random.one_in(8) => Self::F64([f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0][random.below(4)]),
            12 => Self::F64(f64::from_bits(random.next())),
            13 => Self::Char(char_of(random)),
            14 => Self::Str((0..random.below(20)).map(|_| char_of(random)).collect()),
            15 => Self::Bytes((0..random.below(20)).map(|_| random.next() as u8).collect()),
            16 if random.one_in(3) => Self::Option(None),
            16 => Self::Option(Some(one(random))),
            17 => Self::Unit,
            18 => Self::UnitStruct,
            19 => Self::NewtypeStruct(one(random)),
            20 => Self::Seq(some(random)),
            21 => Self::Tuple(some(random)),
            22 => Self::TupleStruct(some(random)),
            23 => {
                let mut map: Vec<(Key, Self)> = Vec::new();
                for value in some(random) {
                    let key = Key::random(random);
                    // Two keys of one text are one name in JSON.
                    if map.iter().all(|(other, _)| other.text() != key.text()) {
                        map.push((key, value));
                    }
                }
                Self::Map(map)
            }
            24 => Self::Struct(some(random)),
            25 => Self::UnitVariant(variant),
            26 => Self::NewtypeVariant(variant, one(random)),
            27 => Self::TupleVariant(variant, some(random)),
            _ => Self::StructVariant(variant, some(random)),
        }
    }

    /// So many levels of arrays.
    pub fn nested(levels: usize) -> Self {
        (1..levels).fold(Self::Seq(Vec::new()), |inner, _| Self::Seq(vec![inner]))
    }

    /// Whether the session can give it back equal: as JSON, or by way of a serializer of the application.
    pub fn is_held(&self, as_json: bool) -> bool {
        let fits = |number: Option<u64>, negative: Option<i64>| as_json || number.is_some() || negative.is_some();
        let number_is_held = match self {
            Self::F32(float) => float.is_finite(),
            Self::F64(float) => float.is_finite(),
            Self::I128(number) => fits(u64::try_from(*number).ok(), i64::try_from(*number).ok()),
            Self::U128(number) => fits(u64::try_from(*number).ok(), None),
            _ => true,
        };
        number_is_held && self.levels() <= 127 && self.inside().all(|value| value.is_held(as_json))
    }

    /// How many levels of arrays and objects it makes in JSON.
    fn levels(&self) -> usize {
        let own = match self {
            Self::Bytes(_) | Self::Seq(_) | Self::Tuple(_) | Self::TupleStruct(_) | Self::Map(_) | Self::Struct(_) => 1,
            Self::NewtypeVariant(..) => 1,
            Self::TupleVariant(..) | Self::StructVariant(..) => 2,
            _ => 0,
        };
        own + self.inside().map(Self::levels).max().unwrap_or(0)
    }

    fn inside(&self) -> Box<dyn Iterator<Item = &Self> + '_> {
        match self {
            Self::Option(Some(value)) | Self::NewtypeStruct(value) | Self::NewtypeVariant(_, value) => {
                Box::new(std::iter::once(&**value))
            }
            Self::Seq(values) | Self::Tuple(values) | Self::TupleStruct(values) | Self::Struct(values) => {
                Box::new(values.iter())
            }
            Self::TupleVariant(_, values) | Self::StructVariant(_, values) => Box::new(values.iter()),
            Self::Map(values) => Box::new(values.iter().map(|(_, value)| value)),
            _ => Box::new(std::iter::empty()),
        }
    }

    /// As serde_json reads it: what is written as `null` is no `Some`.
    pub fn as_read(&self) -> Self {
        let all = |values: &[Self]| values.iter().map(Self::as_read).collect::<Vec<_>>();
        let one = |value: &Self| Box::new(value.as_read());
        match self {
            Self::Option(Some(value)) if value.is_null() => Self::Option(None),
            Self::Option(Some(value)) => Self::Option(Some(one(value))),
            Self::NewtypeStruct(value) => Self::NewtypeStruct(one(value)),
            Self::NewtypeVariant(variant, value) => Self::NewtypeVariant(*variant, one(value)),
            Self::Seq(values) => Self::Seq(all(values)),
            Self::Tuple(values) => Self::Tuple(all(values)),
            Self::TupleStruct(values) => Self::TupleStruct(all(values)),
            Self::Struct(values) => Self::Struct(all(values)),
            Self::TupleVariant(variant, values) => Self::TupleVariant(*variant, all(values)),
            Self::StructVariant(variant, values) => Self::StructVariant(*variant, all(values)),
            Self::Map(values) => Self::Map(values.iter().map(|(key, value)| (key.clone(), value.as_read())).collect()),
            other => other.clone(),
        }
    }

    fn is_null(&self) -> bool {
        match self {
            Self::Unit | Self::UnitStruct | Self::Option(None) => true,
            Self::Option(Some(value)) | Self::NewtypeStruct(value) => value.is_null(),
            _ => false,
        }
    }

    /// Reads [`Back`] as a value of this one's kind.
    pub fn read<T>(&self, read: impl FnOnce() -> T) -> T {
        KIND.with(|kind| *kind.borrow_mut() = Some(self.clone()));
        let value = read();
        KIND.with(|kind| *kind.borrow_mut() = None);
        value
    }
}

impl Key {
    fn random(random: &mut Random) -> Self {
        match random.below(6) {
            0 => Self::I64(random.next() as i64),
            1 => Self::U128(wide(random)),
            2 => Self::Bool(random.one_in(2)),
            3 => Self::Char(char_of(random)),
            4 => Self::Variant(random.below(NAMES.len())),
            _ => Self::Str((0..random.below(10)).map(|_| char_of(random)).collect()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Str(text) => text.clone(),
            Self::I64(number) => number.to_string(),
            Self::U128(number) => number.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Char(char) => char.to_string(),
            Self::Variant(variant) => NAMES[*variant].to_owned(),
        }
    }
}

fn wide(random: &mut Random) -> u128 {
    u128::from(random.next()) << 64 | u128::from(random.next())
}

fn char_of(random: &mut Random) -> char {
    match random.below(3) {
        0 => *random
            .one(&['"', '\\', '/', '\0', '\n', '\u{7f}', '\u{2028}', 'é', '\u{fffd}', '😀', '\u{10ffff}'])
            .unwrap(),
        1 => char::from(random.below(128) as u8),
        _ => char::from_u32(random.next() as u32 % 0x11_0000).unwrap_or('x'),
    }
}

impl Serialize for Model {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::I8(value) => serializer.serialize_i8(*value),
            Self::I16(value) => serializer.serialize_i16(*value),
            Self::I32(value) => serializer.serialize_i32(*value),
            Self::I64(value) => serializer.serialize_i64(*value),
            Self::I128(value) => serializer.serialize_i128(*value),
            Self::U8(value) => serializer.serialize_u8(*value),
            Self::U16(value) => serializer.serialize_u16(*value),
            Self::U32(value) => serializer.serialize_u32(*value),
            Self::U64(value) => serializer.serialize_u64(*value),
            Self::U128(value) => serializer.serialize_u128(*value),
            Self::F32(value) => serializer.serialize_f32(*value),
            Self::F64(value) => serializer.serialize_f64(*value),
            Self::Char(value) => serializer.serialize_char(*value),
            Self::Str(value) => serializer.serialize_str(value),
            Self::Bytes(value) => serializer.serialize_bytes(value),
            Self::Option(None) => serializer.serialize_none(),
            Self::Option(Some(value)) => serializer.serialize_some(value),
            Self::Unit => serializer.serialize_unit(),
            Self::UnitStruct => serializer.serialize_unit_struct("Name"),
            Self::NewtypeStruct(value) => serializer.serialize_newtype_struct("Name", value),
            Self::UnitVariant(at) => serializer.serialize_unit_variant("Name", *at as u32, NAMES[*at]),
            Self::NewtypeVariant(at, value) => {
                serializer.serialize_newtype_variant("Name", *at as u32, NAMES[*at], value)
            }
            Self::Seq(values) => {
                let mut seq = serializer.serialize_seq(Some(values.len()))?;
                values.iter().try_for_each(|value| seq.serialize_element(value))?;
                seq.end()
            }
            Self::Tuple(values) => {
                let mut tuple = serializer.serialize_tuple(values.len())?;
                values.iter().try_for_each(|value| tuple.serialize_element(value))?;
                tuple.end()
            }
            Self::TupleStruct(values) => {
                let mut tuple = serializer.serialize_tuple_struct("Name", values.len())?;
                values.iter().try_for_each(|value| tuple.serialize_field(value))?;
                tuple.end()
            }
            Self::TupleVariant(at, values) => {
                let mut tuple = serializer.serialize_tuple_variant("Name", *at as u32, NAMES[*at], values.len())?;
                values.iter().try_for_each(|value| tuple.serialize_field(value))?;
                tuple.end()
            }
            Self::Map(values) => {
                let mut map = serializer.serialize_map(Some(values.len()))?;
                values.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
            Self::Struct(values) => {
                let mut object = serializer.serialize_struct("Name", values.len())?;
                NAMES.iter().zip(values).try_for_each(|(name, value)| object.serialize_field(name, value))?;
                object.end()
            }
            Self::StructVariant(at, values) => {
                let mut object = serializer.serialize_struct_variant("Name", *at as u32, NAMES[*at], values.len())?;
                NAMES.iter().zip(values).try_for_each(|(name, value)| object.serialize_field(name, value))?;
                object.end()
            }
        }
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Str(value) => serializer.serialize_str(value),
            Self::I64(value) => serializer.serialize_i64(*value),
            Self::U128(value) => serializer.serialize_u128(*value),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Char(value) => serializer.serialize_char(*value),
            Self::Variant(at) => serializer.serialize_unit_variant("Name", *at as u32, NAMES[*at]),
        }
    }
}

/// What was read, of the kind that [`Model::read`] says.
pub struct Back(pub Model);

thread_local! {
    static KIND: RefCell<Option<Model>> = const { RefCell::new(None) };
}

impl<'de> Deserialize<'de> for Back {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let kind = KIND.with(|kind| kind.borrow().clone().unwrap());
        Like(&kind).deserialize(deserializer).map(Self)
    }
}

/// Reads a value as its own type would be read.
struct Like<'a>(&'a Model);

impl<'de> DeserializeSeed<'de> for Like<'_> {
    type Value = Model;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Model, D::Error> {
        let name = "Name";
        match self.0 {
            Model::Bool(_) => Deserialize::deserialize(deserializer).map(Model::Bool),
            Model::I8(_) => Deserialize::deserialize(deserializer).map(Model::I8),
            Model::I16(_) => Deserialize::deserialize(deserializer).map(Model::I16),
            Model::I32(_) => Deserialize::deserialize(deserializer).map(Model::I32),
            Model::I64(_) => Deserialize::deserialize(deserializer).map(Model::I64),
            Model::I128(_) => Deserialize::deserialize(deserializer).map(Model::I128),
            Model::U8(_) => Deserialize::deserialize(deserializer).map(Model::U8),
            Model::U16(_) => Deserialize::deserialize(deserializer).map(Model::U16),
            Model::U32(_) => Deserialize::deserialize(deserializer).map(Model::U32),
            Model::U64(_) => Deserialize::deserialize(deserializer).map(Model::U64),
            Model::U128(_) => Deserialize::deserialize(deserializer).map(Model::U128),
            Model::F32(_) => Deserialize::deserialize(deserializer).map(Model::F32),
            Model::F64(_) => Deserialize::deserialize(deserializer).map(Model::F64),
            Model::Char(_) => Deserialize::deserialize(deserializer).map(Model::Char),
            Model::Str(_) => Deserialize::deserialize(deserializer).map(Model::Str),
            Model::Bytes(_) => deserializer.deserialize_byte_buf(self),
            Model::Option(_) => deserializer.deserialize_option(self),
            Model::Unit => <()>::deserialize(deserializer).map(|()| Model::Unit),
            Model::UnitStruct => deserializer.deserialize_unit_struct(name, self),
            Model::NewtypeStruct(_) => deserializer.deserialize_newtype_struct(name, self),
            Model::Seq(_) => deserializer.deserialize_seq(self),
            Model::Tuple(values) => deserializer.deserialize_tuple(values.len(), self),
            Model::TupleStruct(values) => deserializer.deserialize_tuple_struct(name, values.len(), self),
            Model::Map(_) => deserializer.deserialize_map(self),
            Model::Struct(_) => deserializer.deserialize_struct(name, &NAMES, self),
            Model::UnitVariant(_) | Model::NewtypeVariant(..) | Model::TupleVariant(..) | Model::StructVariant(..) => {
                deserializer.deserialize_enum(name, &NAMES, self)
            }
        }
    }
}

impl<'de> Visitor<'de> for Like<'_> {
    type Value = Model;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what {:?} is written as", self.0)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Model, E> {
        match self.0 {
            Model::Option(_) => Ok(Model::Option(None)),
            Model::UnitStruct => Ok(Model::UnitStruct),
            _ => Err(E::custom("a unit")),
        }
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Model, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Model, D::Error> {
        match self.0 {
            Model::Option(Some(value)) => {
                Like(value).deserialize(deserializer).map(|value| Model::Option(Some(Box::new(value))))
            }
            _ => Err(D::Error::custom("a value where there was none")),
        }
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Model, D::Error> {
        match self.0 {
            Model::NewtypeStruct(value) => {
                Like(value).deserialize(deserializer).map(|value| Model::NewtypeStruct(Box::new(value)))
            }
            _ => Err(D::Error::custom("a newtype")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Model, A::Error> {
        if let Model::Bytes(_) = self.0 {
            let mut bytes = Vec::new();
            while let Some(byte) = seq.next_element()? {
                bytes.push(byte);
            }
            return Ok(Model::Bytes(bytes));
        }
        let mut values = Vec::new();
        for value in self.0.inside() {
            values.push(seq.next_element_seed(Like(value))?.ok_or_else(|| A::Error::custom("too few"))?);
        }
        if seq.next_element::<IgnoredAny>()?.is_some() {
            return Err(A::Error::custom("too many"));
        }
        Ok(match self.0 {
            Model::Tuple(_) => Model::Tuple(values),
            Model::TupleStruct(_) => Model::TupleStruct(values),
            Model::TupleVariant(at, _) => Model::TupleVariant(*at, values),
            _ => Model::Seq(values),
        })
    }

    /// In the order in which it was written.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Model, A::Error> {
        if let Model::Map(values) = self.0 {
            let mut read = Vec::new();
            for (key, value) in values {
                let key = match key {
                    Key::Str(_) => map.next_key()?.map(Key::Str),
                    Key::I64(_) => map.next_key()?.map(Key::I64),
                    Key::U128(_) => map.next_key()?.map(Key::U128),
                    Key::Bool(_) => map.next_key()?.map(Key::Bool),
                    Key::Char(_) => map.next_key()?.map(Key::Char),
                    Key::Variant(at) => {
                        map.next_key::<String>()?.filter(|name| *name == NAMES[*at]).map(|_| key.clone())
                    }
                };
                let key = key.ok_or_else(|| A::Error::custom("too few"))?;
                read.push((key, map.next_value_seed(Like(value))?));
            }
            return match map.next_key::<IgnoredAny>()? {
                Some(_) => Err(A::Error::custom("too many")),
                None => Ok(Model::Map(read)),
            };
        }
        let mut values = Vec::new();
        for (name, value) in NAMES.iter().zip(self.0.inside()) {
            if map.next_key::<String>()?.as_deref() != Some(name) {
                return Err(A::Error::custom("another name"));
            }
            values.push(map.next_value_seed(Like(value))?);
        }
        if map.next_key::<IgnoredAny>()?.is_some() {
            return Err(A::Error::custom("too many"));
        }
        Ok(match self.0 {
            Model::StructVariant(at, _) => Model::StructVariant(*at, values),
            _ => Model::Struct(values),
        })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Model, A::Error> {
        let (name, variant) = data.variant::<String>()?;
        let at = NAMES.iter().position(|known| **known == *name).ok_or_else(|| A::Error::custom("another variant"))?;
        match self.0 {
            Model::UnitVariant(_) => variant.unit_variant().map(|()| Model::UnitVariant(at)),
            Model::NewtypeVariant(_, value) => {
                variant.newtype_variant_seed(Like(value)).map(|value| Model::NewtypeVariant(at, Box::new(value)))
            }
            Model::TupleVariant(_, values) => variant.tuple_variant(values.len(), self),
            _ => variant.struct_variant(&NAMES, self),
        }
    }
}
