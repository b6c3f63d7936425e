//! The Redis [`Backend`]: each method is one command.

use std::{
    borrow::Cow,
    fmt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
    vec,
};

use redis::{Cmd, Value};

use super::{
    batch::{Batched, Batches, Swap},
    connection::Link,
    failure::{Failure, FailureKind},
    keys::{Keyspace, slot},
    operation::Operation,
    scripts::{self, Script, ScriptCall},
    source::Source,
    time::{ServerTime, time_of},
    value::{KnownHead, NewValue, new_value, read, times, unreadable},
    write::{
        Args, Attempt, CLEARED_SINCE, CONFLICT, DONE, LARGE_CONFLICT, LATE, NAME, NOT_THERE, REPLACED, Reply, UNKNOWN,
        UNREADABLE, Write, unknown,
    },
};
use crate::{
    backend::{
        Backend, Outcome, Result,
        clear::{By, Clear, Cleared},
        scan::{Count, Cursor, Page},
        terms::{Created, Mark, Terms},
    },
    clock::millis,
    error::{BoxError, Error, ErrorKind},
    log,
    random::random,
    record::{
        Record,
        id::{Owner, RecordId, Sid},
    },
    sessions::Sessions,
};

/// [`Sessions`] in Redis or Valkey. See [the module](super).
pub type RedisSessions = Sessions<RedisBackend>;

/// A [`Backend`] that keeps records in Redis or Valkey. See [the module](super).
pub struct RedisBackend {
    pub(super) link: Link,
    pub(super) keys: Keyspace,
    pub(super) time: ServerTime,
    pub(super) deadline: Duration,
    /// `None` in a Cluster, where one script call cannot have keys of several slots.
    pub(super) batches: Option<Batches>,
    /// How much longer a user's key lives than the longest session in it, in milliseconds.
    extra: i64,
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

    /// Reads the conflicting record, unless it has ended in the meantime.
    async fn conflict(&self, id: RecordId, reply: Reply, key: &str) -> Result<Option<Record>> {
        if reply.code == LARGE_CONFLICT {
            return self.load(id).await;
        }
        let mut rest = reply.rest.into_iter();
        let (value, payload) = (rest.next().unwrap_or(Value::Nil), rest.next().unwrap_or(Value::Nil));
        // The record was live when the script ran.
        let now = self.time.at_most(self.slot(key), Instant::now());
        Ok(read(value, payload)?.map(|stored| stored.record(id, now)))
    }

    /// Returns the time to live of the Redis key of a record with this `ttl`.
    pub(super) fn life(&self, id: RecordId, ttl: i64) -> i64 {
        ttl + if id.owner().is_some() { self.extra } else { KEEP }
    }
}

impl Backend for RedisBackend {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        let key = self.keys.of(id);
        let slot = self.slot(&key);
        if !self.time.is_fresh(slot) {
            return self.look(id, &key).await;
        }
        let sid = id.sid();
        let mut command = Cmd::with_capacity(4, key.len() + 2 * sid.len() + 6);
        if id.owner().is_some() {
            command.arg("HMGET").arg(&key).arg(sid).arg(beside(sid));
        } else {
            command.arg("GET").arg(&key);
        }
        let answer = self.one(command, &key).await.map_err(foreign)?;
        let (value, payload) = match answer {
            Value::Array(found) => {
                let [value, payload] = <[Value; 2]>::try_from(found).map_err(|_| Failure::garbage())?;
                (value, payload)
            }
            value => (value, Value::Nil),
        };
        let Some(stored) = read(value, payload)? else { return Ok(None) };
        let now = self.time.at_most(slot, Instant::now());
        if stored.ends > now {
            return Ok(Some(stored.record(id, now)));
        }
        // The time is only an estimate, and the server's clock may have been set, so it must not end a session.
        self.look(id, &key).await
    }

    async fn create(&self, record: Record, terms: Terms) -> Result<Created> {
        self.create_on(record, terms).await
    }

    async fn update(&self, expected: i64, record: Record, retry: bool) -> Result<Outcome> {
        let (id, ttl, key) = (record.id, ttl(record.ttl), self.keys.of(record.id));
        let known = KnownHead::read(record.hint.as_bytes());
        let (value, payload) = new_value(&record, known.as_ref());
        let life = self.life(id, ttl).to_string();
        let until = Instant::now() + self.deadline;
        // The head that the fast path compares, if the update can take it.
        let head = |value: &NewValue, not_after| match &known {
            Some(known) if ttl > 0 => known.head_for(expected, value, id.owner().is_some(), not_after),
            _ => None,
        };
        let mut retry = retry;
        if let Some(batches) = &self.batches
            && value.len() <= MAX_BATCHED
        {
            let value = value.at(self.time.at(0, Instant::now()), ttl);
            if let Some(head) = head(&value, self.time.at(0, until)) {
                let (head, value) = (head.to_vec(), value.into_bytes());
                let swap = Swap { key: key.clone(), id, head, value, life: life.clone() };
                match batches.send(swap, until, &self.link, &self.time).await? {
                    Batched::Done => return Ok(Outcome::Done),
                    Batched::Left { again } => retry |= again,
                }
            }
        }
        let (ttl_text, extra, expected_bytes) = (ttl.to_string(), self.extra.to_string(), expected.to_be_bytes());
        let write = Write {
            script: &scripts::UPDATE,
            key: &key,
            leaves: None,
            nonce: record.version,
            sid: sid(&id),
            age: None,
            retry,
        };
        let args = |attempt: &Attempt<'_>| -> Args<'_> {
            let value = value.at(attempt.now, ttl);
            let args: [Cow<'_, [u8]>; 7] = [
                head(&value, attempt.not_after).unwrap_or_default().into(),
                value.into_bytes().into(),
                life.as_bytes().into(),
                payload.into(),
                (&expected_bytes[..]).into(),
                ttl_text.as_bytes().into(),
                extra.as_bytes().into(),
            ];
            args.into()
        };
        let reply = self.write_until(until, &write, args).await.map_err(foreign)?;
        match reply.code {
            DONE => Ok(Outcome::Done),
            NOT_THERE => Ok(Outcome::Gone),
            CONFLICT | LARGE_CONFLICT => {
                Ok(self.conflict(id, reply, &key).await?.map_or(Outcome::Gone, Outcome::Conflict))
            }
            UNREADABLE => Err(unreadable().into()),
            UNKNOWN => Err(unknown().into()),
            _ => Err(Failure::garbage().into()),
        }
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        let (ttl, key) = (self::ttl(ttl), self.keys.of(id));
        let (life, ttl_text, extra) = (self.life(id, ttl).to_string(), ttl.to_string(), self.extra.to_string());
        let write = Write {
            script: &scripts::TOUCH,
            key: &key,
            leaves: None,
            nonce: version,
            sid: sid(&id),
            age: None,
            retry: false,
        };
        let args = |attempt: &Attempt<'_>| -> Args<'_> {
            let (ends, used) = times(attempt.now, ttl);
            let rest = [&ttl_text, &life, &extra].map(|text| Cow::from(text.as_bytes()));
            [ends.into(), used.into()].into_iter().chain(rest).collect()
        };
        self.write(&write, args).await.map_err(foreign)?;
        Ok(())
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        let (key, extra) = (self.keys.of(id), self.extra.to_string());
        let nonce = i64::from_be_bytes(random()?);
        let write =
            Write { script: &scripts::DELETE, key: &key, leaves: None, nonce, sid: sid(&id), age: None, retry: false };
        let reply = self.write(&write, |_: &Attempt<'_>| vec![extra.as_bytes().into()]).await;
        Ok(reply.map_err(foreign)?.code == DONE)
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        self.list_all(owner).await
    }

    async fn clear(&self, owner: Owner, clear: Clear) -> Result<Cleared> {
        let Clear { name, by } = clear;
        if by.is_some_and(|by| by.id.owner() != Some(owner)) {
            return Ok(Cleared::Gone);
        }
        let (key, extra) = (self.keys.owner(owner), self.extra.to_string());
        let (sid, keep, version) = match &by {
            None => ("", false, 0),
            Some(By { id, version, keep }) => (id.sid(), *keep, *version),
        };
        let version = version.to_be_bytes();
        let write =
            Write { script: &scripts::CLEAR, key: &key, leaves: None, nonce: name, sid, age: None, retry: false };
        let args = |_: &Attempt<'_>| -> Args<'_> {
            vec![(&version[..]).into(), (if keep { &b"1"[..] } else { b"" }).into(), extra.as_bytes().into()]
        };
        let reply = self.write(&write, args).await?;
        match (reply.code, by) {
            (DONE, _) => match reply.rest[..] {
                [Value::Int(ended)] => Ok(Cleared::Done(u64::try_from(ended).unwrap_or_default())),
                _ => Err(Failure::garbage().into()),
            },
            (NOT_THERE, Some(_)) => Ok(Cleared::Gone),
            (CONFLICT | LARGE_CONFLICT, Some(by)) => {
                Ok(self.conflict(by.id, reply, &key).await?.map_or(Cleared::Gone, Cleared::Conflict))
            }
            (UNREADABLE, _) => Err(unreadable().into()),
            _ => Err(Failure::garbage().into()),
        }
    }

    async fn mark(&self, owner: Owner) -> Result<Mark> {
        self.mark_now(owner).await
    }

    async fn scan(&self, after: Option<Cursor>, most: usize) -> Result<Page> {
        self.scan_from(after, most).await
    }

    async fn count(&self) -> Result<Count> {
        self.count_all().await
    }

    async fn close(&self) -> Result<()> {
        self.link.close();
        Ok(())
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
