//! Random records and names, and the comparison of a record with what was written.

use std::time::Duration;

use crate::{
    random::random,
    record::{
        Record,
        id::{Owner, RecordId, Sid},
    },
};

/// Makes a record with a long time to live, and a unique version and payload.
pub(super) fn record(id: RecordId) -> Record {
    let version = version();
    Record::new(id, version, LONG, format!("payload {version}"))
}

pub(super) fn version() -> i64 {
    i64::from_be_bytes(some()) & i64::MAX
}

pub(super) fn owner() -> Owner {
    Owner::from(some::<16>())
}

pub(super) fn of(owner: Owner) -> RecordId {
    RecordId::new(Some(owner), sid())
}

pub(super) fn anonymous() -> RecordId {
    RecordId::new(None, sid())
}

/// Makes the names of a user's record and of a visitor's record.
pub(super) fn both() -> [RecordId; 2] {
    [of(owner()), anonymous()]
}

fn sid() -> Sid {
    match Sid::random() {
        Ok(sid) => sid,
        Err(error) => panic!("{error}"),
    }
}

fn some<const N: usize>() -> [u8; N] {
    match random() {
        Ok(bytes) => bytes,
        Err(error) => panic!("{error}"),
    }
}

/// Checks that a record is the one that was written, with no more time to live.
pub(super) fn is_same(there: &Record, written: &Record, shown_by: &str) {
    assert!(there.id == written.id, "{shown_by} shows a record of another name: a user gets another's session");
    assert!(
        there.version == written.version,
        "{shown_by} shows version {} and not {}, the last one written: changes are answered 503, or lost",
        there.version,
        written.version
    );
    assert!(
        there.payload == written.payload,
        "{shown_by} shows another payload than the last one written ({} bytes and {}): a session is unreadable, or old",
        there.payload.len(),
        written.payload.len()
    );
    assert!(
        there.ttl <= written.ttl,
        "{shown_by} shows a time to live of {:?}, more than the {:?} it was given: it ends too late",
        there.ttl,
        written.ttl
    );
    assert!(!there.ttl.is_zero(), "{shown_by} shows a live record with no time to live");
}

/// An hour. A test takes only a small part of it on any machine.
pub(super) const LONG: Duration = Duration::from_secs(3600);
