//! Records: what a backend stores, and what they contain.
//!
//! A backend sees a [`Record`]: a name, a version, a time to live, and a payload that it never looks into. The payload holds
//! the `Contents`, and the `codec` writes and reads it, for every backend alike:
//!
//! ```text
//!                     +-- binary: 1 ---+
//! Contents -- codec --+                +-- plain ------------------------- payload
//!     |               +-- text: { -----+     |                                |
//!     +- data: Data                          +-- encrypted by a Keyring: 2 ---+
//!        (or what a Serializer wrote)
//! ```
//!
//! | first byte | form |
//! |---|---|
//! | 1 | [binary]: the fastest and smallest |
//! | `{` | [text]: for a file that people read |
//! | 2 | encrypted with a [`Keyring`](crate::Keyring); either of the others is inside |
//!
//! With a [`Serializer`] of the application, its output takes the place of the data.

mod binary;
pub(crate) mod codec;
pub(crate) mod data;
pub(crate) mod id;
pub mod keyring;
mod parsed;
pub(crate) mod secrets;
mod strict;
mod text;
pub(crate) mod token;
mod transcode;
pub(crate) mod value;

use std::{fmt, mem, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Deserialize;

use crate::{
    error::BoxError,
    record::{data::Data, id::RecordId, token::SecretHash},
};

/// What a [`Backend`](crate::Backend) stores under a [`RecordId`].
#[derive(Clone)]
#[non_exhaustive]
pub struct Record {
    /// The name. A backend finds records only by their name.
    pub id: RecordId,
    /// A random number, different after each write. It is never negative, so it fits a signed column.
    pub version: i64,
    /// The time to live from now on, by the backend's own clock. In a loaded record, this is the remaining time.
    pub ttl: Duration,
    /// Bytes that the backend stores unchanged.
    pub payload: Bytes,
    /// The backend's hint for the next update, which it may set when the record is loaded.
    pub hint: Hint,
}

/// Bytes for a backend's own use, to save a lookup.
///
/// A backend may put a hint into a record that it returns. It gets the hint back with the [`update`](crate::Backend::update) of
/// that record. The hint may be missing, so a backend must work without it.
#[derive(Clone, Debug, Default)]
pub struct Hint(Bytes);

impl Hint {
    /// Creates a hint from bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Record {
    /// Creates a record, for example from a database row. To change one, assign to its fields: `record.ttl = …`.
    pub fn new(id: RecordId, version: i64, ttl: Duration, payload: impl Into<Bytes>) -> Self {
        Self { id, version, ttl, payload: payload.into(), hint: Hint::default() }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("id", &self.id).field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

/// Turns the data of a session into bytes and back. Default: `serde_json`.
///
/// [`read`](Self::read) must return what [`write`](Self::write) was given. [`Data`] implements serde's traits, so most formats
/// take two lines. A serializer gets every integer as `i64` or `u64`, and every other number as `f64`. A value with a number
/// that fits none of these exactly is refused when it is written to the session.
///
/// Before data is stored, it is read back, and refused if that fails. So only self-describing formats can be used: bincode and
/// postcard cannot, because [`Data`] does not know the types of its values. If a format limits nesting, [`Data`] itself uses up
/// one of these levels.
///
/// ```
/// use jam_session::{BoxError, Data, Serializer};
///
/// struct MessagePack;
///
/// impl Serializer for MessagePack {
///     fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError> {
///         Ok(rmp_serde::to_vec(data)?)
///     }
///     fn read(&self, bytes: &[u8]) -> Result<Data, BoxError> {
///         Ok(rmp_serde::from_slice(bytes)?)
///     }
/// }
/// ```
pub trait Serializer: Send + Sync + 'static {
    /// Serializes the data to bytes, when a session is stored.
    ///
    /// # Errors
    /// Any error type will do. The call that writes to the session then fails with [`ErrorKind::Data`](crate::ErrorKind::Data).
    /// The error's text is not shown, because it may quote the data.
    fn write(&self, data: &Data) -> Result<Vec<u8>, BoxError>;

    /// Deserializes bytes that [`write`](Self::write) returned, when a session is loaded and when a write is checked.
    ///
    /// # Errors
    /// Any error type will do. The record then counts as [`ErrorKind::Unreadable`](crate::ErrorKind::Unreadable), or if a write
    /// was being checked, that write fails with [`ErrorKind::Data`](crate::ErrorKind::Data). The error's text is not shown,
    /// because it may quote the data.
    fn read(&self, bytes: &[u8]) -> Result<Data, BoxError>;
}

/// The decoded contents of a session. Times are in milliseconds since 1970, by the application's clock.
///
/// Once decoded, the session key is an `Arc<str>` and the data is [`Data`]. Before that, both borrow from the payload.
#[derive(Clone, Deserialize)]
pub(crate) struct Contents<K = Arc<str>, D = Data> {
    pub(crate) key: Option<K>,
    /// The hash of the newest secret.
    pub(crate) hash: SecretHash,
    /// The hashes of previous and of superseded secrets, each with the time until which it is accepted. The latest one is last.
    #[serde(default)]
    pub(crate) previous: Vec<(SecretHash, u64)>,
    #[serde(default)]
    pub(crate) superseded: Vec<(SecretHash, u64)>,
    /// How often a login or `clear_others` gave this session a new ID. Rotations do not count.
    #[serde(default)]
    pub(crate) logins: u32,
    /// When the newest secret was made, if that was after the session began.
    #[serde(default)]
    pub(crate) issued: Option<u64>,
    pub(crate) created: u64,
    pub(crate) signed_in: Option<u64>,
    /// When the record was last written.
    #[serde(rename = "seen")]
    pub(crate) written: u64,
    pub(crate) deadline: u64,
    /// The idle timeout of this session, if it differs from the default.
    pub(crate) idle: Option<u64>,
    #[serde(default)]
    pub(crate) data: D,
}

impl<K, D> Contents<K, D> {
    /// Replaces the session key and the data. The old secrets are moved.
    fn take_with<L, E>(&mut self, key: Option<L>, data: E) -> Contents<L, E> {
        Contents {
            key,
            hash: self.hash,
            previous: mem::take(&mut self.previous),
            superseded: mem::take(&mut self.superseded),
            logins: self.logins,
            issued: self.issued,
            created: self.created,
            signed_in: self.signed_in,
            written: self.written,
            deadline: self.deadline,
            idle: self.idle,
            data,
        }
    }
}
