//! The records of one owner, read from its hash.

use std::{collections::HashMap, time::Instant};

use redis::Value;

use super::{
    backend::{RedisBackend, beside, foreign},
    failure::Failure,
    value::{Stored, read},
};
use crate::{
    backend::Result,
    log::{self, RateLimit},
    record::{
        Record,
        id::{Owner, RecordId, Sid},
    },
};

impl RedisBackend {
    pub(super) async fn list_all(&self, owner: Owner) -> Result<Vec<Record>> {
        let key = self.keys.owner(owner);
        let mut scan = redis::cmd("HSCAN");
        scan.arg(&key).arg(0).arg("COUNT").arg(FIELDS);
        let answer = self.one(scan, &key).await.map_err(foreign)?;
        let found = match scanned(answer)? {
            Some(all) => all,
            None => self.fields(&key).await?,
        };
        let slot = self.slot(&key);
        let time = || self.time.at_most(slot, Instant::now());
        let mut now = self.time.is_fresh(slot).then(time);
        let mut records = Vec::new();
        for (id, stored) in stored(owner, found) {
            match now {
                Some(now) if stored.ends > now => records.push(stored.record(id, now)),
                // An estimate of the time must not end a session.
                _ => {
                    let there = self.look(id, &key).await?;
                    now = Some(time());
                    records.extend(there);
                }
            }
        }
        Ok(records)
    }

    /// Reads all fields of a hash that is too large for one `HSCAN`.
    pub(super) async fn fields(&self, key: &str) -> Result<Vec<(String, Value)>> {
        // A cursor is not valid after a failover, and the sessions that it skips would seem to have ended. So read the names
        // first.
        let mut keys = redis::cmd("HKEYS");
        keys.arg(key);
        let Value::Array(fields) = self.one(keys, key).await? else { return Err(Failure::garbage().into()) };
        let fields = fields.into_iter().map(text).collect::<Result<Vec<_>>>()?;
        let mut found = Vec::with_capacity(fields.len());
        for page in fields.chunks(FIELDS) {
            let mut get = redis::cmd("HMGET");
            get.arg(key).arg(page);
            let Value::Array(values) = self.one(get, key).await? else { return Err(Failure::garbage().into()) };
            found.extend(page.iter().cloned().zip(values));
        }
        Ok(found)
    }
}

/// Reads the first answer of `HSCAN`. Returns `None` if it is not the whole hash.
pub(super) fn scanned(answer: Value) -> Result<Option<Vec<(String, Value)>>> {
    let Value::Array(parts) = answer else { return Err(Failure::garbage().into()) };
    match <[Value; 2]>::try_from(parts) {
        Ok([Value::BulkString(cursor), Value::Array(all)]) => Ok((cursor == b"0").then(|| pairs(all)).transpose()?),
        _ => Err(Failure::garbage().into()),
    }
}

/// The records among the fields of an owner's hash, live or not.
pub(super) fn stored(owner: Owner, found: Vec<(String, Value)>) -> impl Iterator<Item = (RecordId, Stored)> {
    let (fields, payloads): (Vec<_>, Vec<_>) =
        found.into_iter().filter(|(field, _)| !field.is_empty()).partition(|(field, _)| !field.ends_with(':'));
    let mut payloads: HashMap<String, Value> = payloads.into_iter().collect();
    fields.into_iter().filter_map(move |(field, value)| {
        // A field that is not a valid `sid` is not ours.
        let id = RecordId::new(Some(owner), Sid::parse(&field)?);
        let payload = payloads.remove(&beside(&field)).unwrap_or(Value::Nil);
        readable(id, value, payload).map(|stored| (id, stored))
    })
}

/// An unreadable record must not hide the others. `clear` ends it like any other.
pub(super) fn readable(id: RecordId, value: Value, payload: Value) -> Option<Stored> {
    read(value, payload).unwrap_or_else(|error| {
        let (limit, session) = (RateLimit::of_process(), id.sid());
        log::limited!(warn, limit, (error, session,), "an unreadable record was left out of a list");
        None
    })
}

fn pairs(all: Vec<Value>) -> Result<Vec<(String, Value)>> {
    let mut all = all.into_iter();
    let mut pairs = Vec::new();
    while let (Some(field), Some(value)) = (all.next(), all.next()) {
        pairs.push((text(field)?, value));
    }
    Ok(pairs)
}

/// Text that is not valid is not ours: neither a key nor a `sid`.
pub(super) fn text(value: Value) -> Result<String> {
    match value {
        Value::BulkString(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        _ => Err(Failure::garbage().into()),
    }
}

/// How many fields are read at once. Each session has one or two.
pub(super) const FIELDS: usize = 1000;
