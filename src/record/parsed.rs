//! A parsed payload, before it is checked and decoded.

use serde::{Deserialize, Deserializer};

use crate::record::{
    Contents,
    value::{RawObject, Text},
};

/// A payload in either form. It borrows from the bytes that it was read from.
pub(super) struct Parsed<'a> {
    pub(super) namespace: &'a str,
    pub(super) is_of_id: bool,
    pub(super) contents: Undecoded<'a>,
}

/// Contents that borrow from the payload.
pub(crate) type Undecoded<'a> = Contents<Text<'a>, Body<'a>>;

/// The data, as it is in the payload.
pub(crate) enum Body<'a> {
    Text(RawObject<'a>),
    Binary(&'a [u8]),
    /// The application's serializer wrote it.
    Own(&'a [u8]),
}

/// In the text form, the output of an application's serializer follows a record without data.
impl Default for Body<'_> {
    fn default() -> Self {
        Self::Own(&[])
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Body<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RawObject::deserialize(deserializer).map(Self::Text)
    }
}
