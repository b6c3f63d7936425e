//! The state of the Redis backend, and the calls that its [methods](super::methods) are made of.

use std::{
    borrow::Cow,
    fmt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
    vec,
};

use redis::{Cmd, Value};

use super::{
    batch::Batches,
    connection::Link,
    failure::{Failure, FailureKind},
    keys::{Keyspace, slot},
    operation::Operation,
    scripts::{self, Script, ScriptCall},
    source::Source,
    time::{ServerTime, time_of},
    value::read,
    write::{Args, Attempt, CLEARED_SINCE, DONE, LATE, NAME, REPLACED, Reply, Write, unknown},
};
use crate::{
    backend::Result,
    clock::millis,
    error::{BoxError, Error, ErrorKind},
    log,
    record::{
        Record,
        id::{Owner, RecordId, Sid},
    },
    sessions::Sessions,
};

/// [`Sessions`] in Redis or Valkey. See [the module](super).
pub type RedisSessions = Sessions<RedisBackend>;

/// A [`Backend`](crate::Backend) that keeps records in Redis or Valkey. See [the module](super).
pub struct RedisBackend {
    pub(super) link: Link,
    pub(super) keys: Keyspace,
    pub(super) time: ServerTime,
    pub(super) deadline: Duration,
    /// `None` in a Cluster, where one script call cannot have keys of several slots.
    pub(super) batches: Option<Batches>,
    /// How much longer a user's key lives than the longest session in it, in milliseconds.
    pub(super) extra: i64,
}

impl RedisBackend {
    /// `visitors` is the default time to live of a visitor's record.
    pub(super) fn new(link: Link, keys: Keyspace, deadline: Duration, visitors: Duration) -> Self {
        // A visitor's Redis key lives `KEEP` longer than its record. A user's key has `SPARE` in addition, which the fast path
        // of an update relies on.
        let extra = i64::try_from(millis(visitors)).unwrap_or(CENTURY).min(CENTURY) + KEEP + SPARE;
        let batches = matches!(link.source(), Source::Server(_) | Source::Sentinel(_)).then(Batches::default);
        Self { link, keys, time: ServerTime::new(), deadline, batches, extra }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    pub(super) fn keys(&self) -> &Keyspace {
        &self.keys
    }

    /// Learns the server's time and loads the scripts, so that the first operation does not have to.
    pub(super) async fn prepare(&self) {
        let sent = Instant::now();
        if let Ok(answer) = self.link.send_one(redis::cmd("TIME"), 0, sent + self.deadline).await
            && let Some(now) = time_of(&answer)
        {
            self.time.learn(0, now, sent, Instant::now());
        }
        // Newer servers evict scripts that were sent with `EVAL`, but keep loaded ones. Optional, so errors are ignored.
        for script in scripts::all() {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(script.text);
            if self.link.send_one(load, 0, Instant::now() + self.deadline).await.is_err() {
                break;
            }
        }
    }

    /// Sends a script by its text, as to a server that does not know its hash. It finds no record.
    pub(super) async fn run_by_text(&self, owner: Owner) -> std::result::Result<(), Failure> {
        let key = self.keys.owner(owner);
        let call = ScriptCall { keys: &[&key], args: &[b"x"[..].into()], age: None, again: &AtomicBool::new(false) };
        let (operation, until) = (Operation::ByText(&scripts::LOOK, &call), Instant::now() + self.deadline);
        self.link.send(&operation, self.slot(&key), until).await.map(drop)
    }

    /// Removes the Redis key of an owner, and of the anonymous session `sid`.
    pub(super) async fn remove(&self, owner: Owner, sid: Sid) -> std::result::Result<(), Failure> {
        for key in [self.keys.owner(owner), self.keys.of(RecordId::new(None, sid))] {
            let mut unlink = redis::cmd("UNLINK");
            unlink.arg(&key);
            self.one(unlink, &key).await?;
        }
        Ok(())
    }

    /// The slot of a Redis key. It is computed only in a Cluster, where it decides which server has the key.
    pub(super) fn slot(&self, key: &str) -> usize {
        if matches!(self.link.source(), Source::Cluster(_) | Source::Own(_)) { slot(key) } else { 0 }
    }

    pub(super) async fn one(&self, command: Cmd, key: &str) -> std::result::Result<Value, Failure> {
        self.link.send_one(command, self.slot(key), Instant::now() + self.deadline).await
    }

    /// Runs a script that writes.
    ///
    /// The server refuses a write that arrives too late by its own clock, or if our estimate of that clock is missing or
    /// outdated. The refusal contains the server's time, and the script is sent a second time. It is also sent again if a
    /// `create` has to name a clear.
    pub(super) async fn write<'a>(
        &self,
        write: &'a Write<'a>,
        args: impl Fn(&Attempt<'_>) -> Args<'a>,
    ) -> std::result::Result<Reply, Failure> {
        self.write_until(Instant::now() + self.deadline, write, args).await
    }

    pub(super) async fn write_until<'a>(
        &self,
        until: Instant,
        write: &'a Write<'a>,
        args: impl Fn(&Attempt<'_>) -> Args<'a>,
    ) -> std::result::Result<Reply, Failure> {
        let begun = Instant::now();
        let slot = self.slot(write.key);
        let age = write.age.map(|age| (age, begun));
        let window = self.link.window().to_string();
        let nonce = write.nonce.to_be_bytes();
        let both = write.leaves.map(|leaves| [write.key, leaves]);
        let keys = both.as_ref().map_or(std::slice::from_ref(&write.key), |both| &both[..]);
        // The refused write was not applied, but an earlier one whose answer was lost may have been.
        let lost = AtomicBool::new(write.retry);
        let (mut named, mut may_learn, mut may_name) = (Vec::new(), true, NAMINGS);
        loop {
            let (not_after, now) = (self.time.at(slot, until), self.time.at(slot, Instant::now()));
            let late = not_after.to_string();
            let first: [&[u8]; 4] = [late.as_bytes(), window.as_bytes(), &nonce, write.sid.as_bytes()];
            let mut all: Args<'_> = first.into_iter().map(Cow::Borrowed).collect();
            all.extend(args(&Attempt { now, not_after, named: &named }));
            let sent = Instant::now();
            let call = ScriptCall { keys, args: &all, age, again: &lost };
            let (reply, now) = Reply::read(self.link.run(write.script, &call, slot, until).await?)?;
            self.time.learn(slot, now, sent, Instant::now());
            match (reply.code, <[Value; 1]>::try_from(reply.rest)) {
                (LATE, _) if may_learn && Instant::now() < until => may_learn = false,
                (LATE, _) => return Err(Failure::silent()),
                (NAME, Ok([Value::BulkString(name)])) if may_name > 0 => {
                    named = name;
                    may_name -= 1;
                }
                (NAME, _) => return Err(unknown()),
                // The record may have been created, and then ended by that clear.
                (CLEARED_SINCE, _) if lost.load(Relaxed) && !write.retry => return Err(unknown()),
                (REPLACED, rest) => {
                    log::warn!("a Redis key in this namespace held foreign data and was replaced");
                    return Ok(Reply { code: DONE, rest: rest.map_or_else(|rest| rest, Vec::from) });
                }
                (code, rest) => return Ok(Reply { code, rest: rest.map_or_else(|rest| rest, Vec::from) }),
            }
        }
    }

    /// Runs a script that reads one Redis key. Returns the server's time, which is learned, and the rest of the answer.
    pub(super) async fn read_with_time(
        &self,
        script: &Script,
        key: &str,
        args: &[Cow<'_, [u8]>],
    ) -> std::result::Result<(i64, vec::IntoIter<Value>), Failure> {
        let (slot, sent) = (self.slot(key), Instant::now());
        let call = ScriptCall { keys: &[key], args, age: None, again: &AtomicBool::new(false) };
        let answer = self.link.run(script, &call, slot, sent + self.deadline).await?;
        let Value::Array(parts) = answer else { return Err(Failure::garbage()) };
        let mut parts = parts.into_iter();
        let Some(Value::Int(now)) = parts.next() else { return Err(Failure::garbage()) };
        self.time.learn(slot, now, sent, Instant::now());
        Ok((now, parts))
    }

    /// Reads a record and the server's time.
    pub(super) async fn look(&self, id: RecordId, key: &str) -> Result<Option<Record>> {
        let sid = sid(&id).as_bytes().into();
        let (now, mut parts) = self.read_with_time(&scripts::LOOK, key, &[sid]).await.map_err(foreign)?;
        let (value, payload) = (parts.next().unwrap_or(Value::Nil), parts.next().unwrap_or(Value::Nil));
        let Some(stored) = read(value, payload)? else { return Ok(None) };
        // What is shown is by the same estimate as elsewhere, so that it never rises.
        Ok((stored.ends > now).then(|| stored.record(id, self.time.at_most(self.slot(key), Instant::now()))))
    }

    /// Returns the time to live of the Redis key of a record with this `ttl`.
    pub(super) fn life(&self, id: RecordId, ttl: i64) -> i64 {
        ttl + if id.owner().is_some() { self.extra } else { KEEP }
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend").finish_non_exhaustive()
    }
}

/// A key of another type is not a record.
pub(super) fn foreign(failure: Failure) -> BoxError {
    match failure.kind {
        FailureKind::OtherType => Error::new(ErrorKind::Unreadable, failure.to_string()).into(),
        _ => failure.into(),
    }
}

/// The field for the payload of a record, if it is separate.
pub(super) fn beside(sid: &str) -> String {
    [sid, ":"].concat()
}

/// The field of a user's record. A visitor's record has its own Redis key and no field.
pub(super) fn sid(id: &RecordId) -> &str {
    if id.owner().is_some() { id.sid() } else { "" }
}

/// Whole milliseconds, rounded down, and at most a century, so that adding to it cannot overflow.
pub(super) fn ttl(ttl: Duration) -> i64 {
    i64::try_from(millis(ttl)).unwrap_or(CENTURY).min(CENTURY)
}

/// How often a `create` is sent again because of a concurrent clear.
const NAMINGS: u32 = 3;
/// As in `record.lua`, in milliseconds.
const KEEP: i64 = 10_000;
/// A thousand seconds, and one more for clocks that differ.
const SPARE: i64 = 1_001_000;
const CENTURY: i64 = 100 * 365 * 86_400_000;
/// A larger value is not batched, because little would be saved.
pub(super) const MAX_BATCHED: usize = 2048;
