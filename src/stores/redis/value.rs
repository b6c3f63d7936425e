//! The format of a stored record: the head, the older versions, and the payload. `record.lua` reads the same format.

use std::time::Duration;

use bytes::Bytes;
use redis::Value;

use super::failure::Failure;
use crate::{
    backend::Result,
    error::{Error, ErrorKind},
    record::{Hint, Record, id::RecordId},
};

/// A parsed record.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) version: i64,
    /// When the record ends, in milliseconds since 1970, by the server's clock.
    pub(super) ends: i64,
    pub(super) payload: Bytes,
    /// The head and the older versions, which an update then need not read again.
    pub(super) hint: Bytes,
}

/// The head and the older versions of a loaded record, kept as its [`Hint`].
pub(super) struct KnownHead<'a> {
    head: &'a [u8],
    older: &'a [u8],
}

/// A value to write.
pub(super) struct NewValue {
    bytes: Vec<u8>,
}

impl Stored {
    /// Reads a value. `payload` is its second field, if there is one. Returns `None` if the record was ended.
    pub(super) fn read(value: Bytes, payload: Option<Bytes>) -> Result<Option<Self>> {
        let Some(known) = KnownHead::read(&value) else { return Err(unreadable().into()) };
        let (version, ends, len) = (known.version(), known.ends(), HEAD + known.older.len());
        let (Some(version), Some(ends)) = (version, ends) else { return Err(unreadable().into()) };
        let payload = match (value.get(PLACE), payload) {
            (Some(&INLINE), _) => value.slice(len..),
            (Some(&BESIDE), Some(payload)) => payload,
            (Some(&ENDED), _) => return Ok(None),
            _ => return Err(unreadable().into()),
        };
        Ok(Some(Self { version, ends, payload, hint: value.slice(..len) }))
    }

    /// Returns the record, as of that time.
    pub(super) fn record(self, id: RecordId, now: i64) -> Record {
        let ttl = Duration::from_millis(u64::try_from(self.ends.saturating_sub(now)).unwrap_or_default().max(1));
        Record { hint: Hint::new(self.hint), ..Record::new(id, self.version, ttl, self.payload) }
    }
}

impl<'a> KnownHead<'a> {
    /// Reads the beginning of a value. Returns `None` if it has another format.
    pub(super) fn read(value: &'a [u8]) -> Option<Self> {
        let (head, rest) = value.split_at_checked(HEAD)?;
        let (format, count) = (*head.first()?, usize::from(*head.get(COUNT)?));
        let older = rest.get(..8 * count)?;
        (format == FORMAT && count <= MAX_OLDER).then_some(Self { head, older })
    }

    fn version(&self) -> Option<i64> {
        Some(i64::from_be_bytes(self.head.get(VERSION)?.try_into().ok()?))
    }

    fn ends(&self) -> Option<i64> {
        std::str::from_utf8(self.head.get(ENDS)?).ok()?.parse().ok()
    }

    /// Returns the older versions for the next value: the last seven, and the first.
    fn older(&self) -> Vec<u8> {
        let mut all = self.head.get(VERSION).unwrap_or_default().to_vec();
        all.extend_from_slice(self.older);
        if all.len() > 8 * MAX_OLDER {
            let first = all.split_off(all.len() - 8);
            all.truncate(8 * (MAX_OLDER - 1));
            all.extend(first);
        }
        all
    }

    /// Returns the head that an update compares, if the new value can simply replace this one.
    ///
    /// It can if this record lives until the deadline of the update, if neither value has a separate payload, and if the Redis
    /// key lives long enough.
    pub(super) fn head_for(&self, expected: i64, new: &NewValue, is_users: bool, not_after: i64) -> Option<&'a [u8]> {
        let is_live = self.ends().is_some_and(|ends| ends > not_after);
        let places = (self.head.get(PLACE), new.bytes.get(PLACE));
        let fits = self.version() == Some(expected) && places == (Some(&INLINE), Some(&INLINE));
        // A user's Redis key has a thousand seconds to spare, which the remaining digits count.
        let digits = ENDS.start..ENDS.start + 7;
        let lives = !is_users || new.bytes.get(digits.clone()) <= self.head.get(digits);
        (is_live && fits && lives).then_some(self.head)
    }
}

impl NewValue {
    /// Creates a value without times. With `known`, it keeps the older versions.
    pub(super) fn new(version: i64, payload: &[u8], is_beside: bool, known: Option<&KnownHead<'_>>) -> Self {
        let older = known.map(KnownHead::older).unwrap_or_default();
        let payload = if is_beside { &[] } else { payload };
        let mut bytes = Vec::with_capacity(HEAD + older.len() + payload.len());
        // There are at most eight.
        bytes.extend([FORMAT, if is_beside { BESIDE } else { INLINE }, (older.len() / 8) as u8]);
        bytes.extend([b'0'; ENDS.end - ENDS.start]);
        bytes.extend(version.to_be_bytes());
        bytes.extend([b'0'; USED.end - USED.start]);
        bytes.extend(older);
        bytes.extend(payload);
        Self { bytes }
    }

    /// Sets when the record ends, and when it was last used.
    pub(super) fn at(&self, now: i64, ttl: i64) -> Self {
        let mut bytes = self.bytes.clone();
        put_digits(bytes.get_mut(ENDS), now.saturating_add(ttl));
        put_digits(bytes.get_mut(USED), now / 1000);
        Self { bytes }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// The end and the time of the last use, as `touch.lua` writes them into a head.
pub(super) fn times(now: i64, ttl: i64) -> (Vec<u8>, Vec<u8>) {
    let (mut ends, mut used) = (vec![0; ENDS.end - ENDS.start], vec![0; USED.end - USED.start]);
    put_digits(Some(&mut ends), now.saturating_add(ttl));
    put_digits(Some(&mut used), now / 1000);
    (ends, used)
}

/// Writes a number with leading zeros. Times are far too small to need more digits.
fn put_digits(place: Option<&mut [u8]>, number: i64) {
    let mut left = number.max(0);
    for digit in place.into_iter().flatten().rev() {
        // The remainder is less than ten.
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
}

/// Reads a value, and the payload if it is in a separate field.
pub(super) fn read(value: Value, payload: Value) -> Result<Option<Stored>> {
    let payload = match payload {
        Value::BulkString(payload) => Some(Bytes::from(payload)),
        Value::Nil => None,
        _ => return Err(Failure::garbage().into()),
    };
    match value {
        Value::BulkString(value) => Stored::read(value.into(), payload),
        Value::Nil => Ok(None),
        _ => Err(Failure::garbage().into()),
    }
}

/// Builds the value of a record, and the payload if it goes into a separate field.
pub(super) fn new_value<'a>(record: &'a Record, known: Option<&KnownHead<'_>>) -> (NewValue, &'a [u8]) {
    let is_beside = record.id.owner().is_some() && record.payload.len() > MAX_INLINE;
    let value = NewValue::new(record.version, &record.payload, is_beside, known);
    (value, if is_beside { &record.payload } else { &[] })
}

pub(super) fn unreadable() -> Error {
    Error::new(ErrorKind::Unreadable, "a record in Redis has a format that this version cannot read")
}

/// A longer payload of a user's record goes into a separate field, so that a touch writes little.
pub(super) const MAX_INLINE: usize = 1024;
const FORMAT: u8 = 2;
const INLINE: u8 = 0;
const BESIDE: u8 = 1;
const ENDED: u8 = 2;
const MAX_OLDER: usize = 8;
const PLACE: usize = 1;
const COUNT: usize = 2;
const ENDS: std::ops::Range<usize> = 3..16;
const VERSION: std::ops::Range<usize> = 16..24;
const USED: std::ops::Range<usize> = 24..34;
const HEAD: usize = 34;

#[cfg(test)]
mod tests {
    use super::*;

    fn value(version: i64, payload: &str, known: Option<&KnownHead<'_>>) -> Bytes {
        NewValue::new(version, payload.as_bytes(), false, known).at(1_795_000_000_123, 60_000).into_bytes().into()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let stored = Stored::read(value(7, "payload", None), None).unwrap().unwrap();
        assert_eq!((stored.version, stored.ends, &stored.payload[..]), (7, 1_795_000_060_123, &b"payload"[..]));
        let beside = NewValue::new(7, b"payload", true, None).at(5, 1).into_bytes();
        let stored = Stored::read(beside.clone().into(), Some("payload".into())).unwrap().unwrap();
        assert_eq!((stored.ends, &stored.payload[..]), (6, &b"payload"[..]));
        assert!(Stored::read(beside.into(), None).is_err());
    }

    #[test]
    fn the_last_versions_and_the_first_are_carried_on() {
        let mut stored = value(0, "", None);
        for version in 1..20 {
            stored = value(version, "x", KnownHead::read(&stored).as_ref());
        }
        let known = KnownHead::read(&stored).unwrap();
        let older: Vec<i64> = known.older.chunks(8).map(|v| i64::from_be_bytes(v.try_into().unwrap())).collect();
        assert_eq!((known.version(), older), (Some(19), vec![18, 17, 16, 15, 14, 13, 12, 0]));
    }

    #[test]
    fn an_update_is_simple_if_nothing_else_has_to_be_looked_at() {
        let old = value(1, "x", None);
        let known = KnownHead::read(&old).unwrap();
        let new = |ttl| NewValue::new(2, b"y", false, Some(&known)).at(1_795_000_000_200, ttl);
        let now = 1_795_000_000_200;
        assert_eq!(known.head_for(1, &new(60_000), true, now), Some(&old[..HEAD]));
        assert_eq!(known.head_for(3, &new(60_000), true, now), None, "another version");
        assert_eq!(known.head_for(1, &new(60_000), true, now + 60_000), None, "it may have ended by then");
        assert_eq!(known.head_for(1, &new(2_000_000), true, now), None, "the key would have to live longer");
        assert_eq!(known.head_for(1, &new(2_000_000), false, now), Some(&old[..HEAD]));
        let beside = NewValue::new(2, b"y", true, Some(&known)).at(1_795_000_000_200, 60_000);
        assert_eq!(known.head_for(1, &beside, true, now), None);
    }

    #[test]
    fn what_is_not_ours_is_unreadable() {
        let good = value(1, "", None);
        for bad in [
            &b""[..],
            b"\x01",
            &good[..33],
            &[&b"\x03"[..], &good[1..]].concat(),
            &[&good[..2], b"\x09", &good[3..]].concat(),
        ] {
            assert!(Stored::read(Bytes::copy_from_slice(bad), None).is_err(), "{bad:?}");
        }
    }
}
