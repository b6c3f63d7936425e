//! A call of a script that writes, and its answer.

use std::{borrow::Cow, time::Duration};

use redis::Value;

use super::{
    failure::{Failure, FailureKind},
    scripts::Script,
};

/// A call of a script that writes.
pub(super) struct Write<'a> {
    pub(super) script: &'a Script,
    pub(super) key: &'a str,
    /// The Redis key of a record that the script also ends.
    pub(super) leaves: Option<&'a str>,
    /// The version to write, or the name of a clear. It identifies a duplicate.
    pub(super) nonce: i64,
    /// Empty for a visitor's record.
    pub(super) sid: &'a str,
    /// The age of the request. A younger clear refuses it.
    pub(super) age: Option<Duration>,
    /// Whether the caller retries.
    pub(super) retry: bool,
}

/// The arguments of a script after those of a [`Write`].
pub(super) type Args<'a> = Vec<Cow<'a, [u8]>>;

/// The context of one attempt to write.
pub(super) struct Attempt<'a> {
    /// The server's time, in milliseconds since 1970, or a little before.
    pub(super) now: i64,
    /// The time at which the server begins to refuse the write.
    pub(super) not_after: i64,
    /// The last clear of the owner, if the server has named it.
    pub(super) named: &'a [u8],
}

/// The answer of a script.
pub(super) struct Reply {
    pub(super) code: i64,
    pub(super) rest: Vec<Value>,
}

impl Reply {
    /// Reads a code, the server's time, and the rest. The time alone means success.
    pub(super) fn read(answer: Value) -> std::result::Result<(Self, i64), Failure> {
        let parts = match answer {
            Value::Int(now) => return Ok((Self { code: DONE, rest: Vec::new() }, now)),
            Value::Array(parts) => parts,
            _ => return Err(Failure::garbage()),
        };
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next()) {
            (Some(Value::Int(code)), Some(Value::Int(now))) => Ok((Self { code, rest: parts.collect() }, now)),
            _ => Err(Failure::garbage()),
        }
    }
}

pub(super) fn unknown() -> Failure {
    let unknown = "the answer of Redis was lost, so it is not known whether the change was applied";
    Failure::new(FailureKind::Lost, unknown)
}

// The codes at the beginning of a script's answer.
pub(super) const DONE: i64 = 1;
pub(super) const NOT_THERE: i64 = 0;
pub(super) const CONFLICT: i64 = 2;
pub(super) const LARGE_CONFLICT: i64 = 3;
pub(super) const CLEARED_SINCE: i64 = 4;
pub(super) const NAME: i64 = 5;
pub(super) const REPLACED: i64 = 6;
pub(super) const FULL: i64 = 7;
pub(super) const LATE: i64 = -1;
pub(super) const UNREADABLE: i64 = -2;
pub(super) const UNKNOWN: i64 = -3;
