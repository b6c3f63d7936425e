//! The Redis [`Backend`]: each verb is one script or one pipeline.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use bytes::Bytes;
use redis::{Pipeline, Value};

use super::{
    connection::Link,
    failure::{Failure, FailureKind},
    keys::{Keyspace, RecordKeys, slot},
    operation::Operation,
    scripts::{self, Script, ScriptCall},
    time::{ServerTime, time_of},
};
use crate::{
    backend::{Backend, By, Clear, Cleared, Created, Outcome, Result, Since, Terms},
    clock::millis,
    error::{Error, ErrorKind},
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
    inner: Arc<Executor>,
}

/// Sends operations. Shared with the clean-up that runs in the background.
struct Executor {
    link: Link,
    keys: Keyspace,
    time: ServerTime,
    deadline: Duration,
}

/// A script that writes, and what it is told.
struct Write<'a> {
    script: &'a Script,
    keys: &'a [&'a str],
    /// What it is recognised by if it is delivered twice.
    nonce: [u8; 8],
    sid: &'a str,
    /// Its arguments after these.
    args: &'a [&'a [u8]],
    /// The age of the request, for which a clear since then counts.
    age: Option<Duration>,
    /// The caller has called it before.
    retry: bool,
}

/// The answer of a script.
struct Reply {
    code: i64,
    rest: Vec<Value>,
}

impl RedisBackend {
    pub(super) fn new(link: Link, keys: Keyspace, deadline: Duration) -> Self {
        Self { inner: Arc::new(Executor { link, keys, time: ServerTime::new(), deadline }) }
    }

    pub(super) fn link(&self) -> &Link {
        &self.inner.link
    }

    pub(super) fn keys(&self) -> &Keyspace {
        &self.inner.keys
    }

    /// Learns the server's time and loads the scripts, so that the first operation does not have to.
    pub(super) async fn prepare(&self) {
        let Executor { link, time, .. } = &*self.inner;
        let sent = Instant::now();
        if let Ok(answer) = link.send_one(redis::cmd("TIME"), 0, sent + self.inner.deadline).await
            && let Some(now) = time_of(&answer)
        {
            time.learn(0, now, sent, Instant::now());
        }
        // Newer servers evict scripts that were sent with `EVAL`, but keep loaded ones. Optional, so errors are ignored.
        let mut load = Pipeline::new();
        for script in scripts::all() {
            load.cmd("SCRIPT").arg("LOAD").arg(script.text);
        }
        let _ = link.send(&Operation::Many(load), 0, Instant::now() + self.inner.deadline).await;
    }

    /// Removes dead members from an index, and shortens the life of records that are no longer in it.
    pub(super) async fn tidy(&self, owner: Owner, sids: &[String]) -> std::result::Result<(), Failure> {
        self.inner.tidy(owner, sids).await
    }

    /// Sends a script as to a server that does not know its hash. It finds no record.
    pub(super) async fn run_by_text(&self, owner: Owner) -> std::result::Result<(), Failure> {
        let key = self.inner.keys.cleared(owner);
        let args: &[&[u8]] = &[b"0", b"0", &[0; 8], b"", b"0"];
        let call = ScriptCall { keys: &[&key], args, age: None, again: &AtomicBool::new(false) };
        self.inner.send(&Operation::ByText(&scripts::TOUCH, &call), slot(&key)).await.map(drop)
    }

    /// The record that is in the way, unless it has ended since.
    async fn conflict(&self, id: RecordId, reply: Reply) -> Result<Option<Record>> {
        match (reply.code, <[Value; 2]>::try_from(reply.rest)) {
            (CONFLICT, Ok([there, left])) => read_record(id, there, left),
            (LARGE_CONFLICT, _) => self.load(id).await,
            _ => Err(Failure::garbage().into()),
        }
    }

    /// Removes every Redis key of an owner who has only the session `sid`, and of the anonymous session `sid`.
    pub(super) async fn remove(&self, owner: Owner, sid: Sid) -> std::result::Result<(), Failure> {
        let keys = &self.inner.keys;
        let RecordKeys { record, index } = keys.of(RecordId::new(Some(owner), sid));
        let anonymous = keys.of(RecordId::new(None, sid)).record;
        // Two commands, because these are two slots.
        for keys in [[Some(record), index, Some(keys.cleared(owner))], [Some(anonymous), None, None]] {
            let keys: Vec<String> = keys.into_iter().flatten().collect();
            let mut unlink = Pipeline::with_capacity(1);
            unlink.cmd("UNLINK").arg(&keys);
            self.inner.send(&Operation::Many(unlink), keys.first().map_or(0, |key| slot(key))).await?;
        }
        Ok(())
    }
}

impl Executor {
    /// Runs a script that writes.
    ///
    /// The server refuses a write that arrives too late by its own clock. It also refuses if its clock is not known yet or was
    /// set. The refusal tells its time, so the script is then sent a second time.
    async fn write(&self, write: Write<'_>) -> std::result::Result<Reply, Failure> {
        let begun = Instant::now();
        let until = begun + self.deadline;
        let Write { script, keys, nonce, sid, args: rest, age, retry } = write;
        let (slot, age) = (keys.first().map_or(0, |key| slot(key)), age.map(|age| (age, begun)));
        let window = (millis(self.deadline) + CLOCK_SLACK).to_string();
        // A refused write was not applied, but one whose answer was lost before the refusal may have been.
        let lost = AtomicBool::new(retry);
        let mut again = true;
        loop {
            let not_after = self.time.at(slot, until).to_string();
            let mut args: Vec<&[u8]> = vec![not_after.as_bytes(), window.as_bytes(), &nonce, sid.as_bytes()];
            args.extend(rest);
            let sent = Instant::now();
            let call = ScriptCall { keys, args: &args, age, again: &lost };
            let (reply, now) = Reply::read(self.run(script, &call, slot, until).await?)?;
            self.time.learn(slot, now, sent, Instant::now());
            match reply.code {
                LATE if again && Instant::now() < until => again = false,
                LATE => return Err(Failure::silent()),
                _ => return Ok(reply),
            }
        }
    }

    /// Runs a script by its hash, or by its text if the server does not know the hash.
    async fn run(
        &self,
        script: &Script,
        call: &ScriptCall<'_>,
        slot: usize,
        until: Instant,
    ) -> std::result::Result<Value, Failure> {
        let answers = match self.link.send(&Operation::ByHash(script, call), slot, until).await {
            Err(failure) if failure.kind == FailureKind::NoScript => {
                self.link.send(&Operation::ByText(script, call), slot, until).await
            }
            done => done,
        };
        answers?.pop().ok_or_else(Failure::garbage)
    }

    async fn read(&self, slot: usize, pipeline: Pipeline) -> std::result::Result<Vec<Value>, Failure> {
        self.send(&Operation::Many(pipeline), slot).await
    }

    async fn send(&self, operation: &Operation<'_>, slot: usize) -> std::result::Result<Vec<Value>, Failure> {
        self.link.send(operation, slot, Instant::now() + self.deadline).await
    }

    async fn tidy(&self, owner: Owner, sids: &[String]) -> std::result::Result<(), Failure> {
        for sids in sids.chunks(BATCH) {
            let index = self.keys.index(owner);
            let records: Vec<String> = sids.iter().map(|sid| self.keys.record(owner, sid)).collect();
            let keys: Vec<&str> = std::iter::once(&index).chain(&records).map(String::as_str).collect();
            let sids: Vec<&[u8]> = sids.iter().map(String::as_bytes).collect();
            let script = &scripts::TIDY;
            let (keys, args) = (&keys, &sids);
            self.write(Write { script, keys, nonce: [0; 8], sid: "", args, age: None, retry: false }).await?;
        }
        Ok(())
    }

    fn tidy_later(self: &Arc<Self>, owner: Owner, sids: Vec<String>) {
        if sids.is_empty() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let inner = Arc::clone(self);
            runtime.spawn(async move {
                if let Err(failure) = inner.tidy(owner, &sids).await {
                    tracing::debug!(%failure, "ended sessions could not be cleaned up; they stay until they expire");
                }
            });
        }
    }

    /// Runs a script on a record. Its keys are the record and, unless it is anonymous, the index.
    async fn write_record(
        &self,
        script: &Script,
        id: RecordId,
        nonce: [u8; 8],
        args: &[&[u8]],
        retry: bool,
    ) -> std::result::Result<Reply, Failure> {
        let RecordKeys { record, index } = self.keys.of(id);
        let keys: Vec<&str> = std::iter::once(record.as_str()).chain(index.as_deref()).collect();
        self.write(Write { script, keys: &keys, nonce, sid: id.sid(), args, age: None, retry }).await
    }
}

impl Backend for RedisBackend {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        let RecordKeys { record, index } = self.inner.keys.of(id);
        let mut pipeline = Pipeline::with_capacity(3);
        // The index first: a session that ends after this was live during the call.
        if let Some(index) = &index {
            pipeline.cmd("ZSCORE").arg(index).arg(id.sid());
        }
        pipeline.cmd("GET").arg(&record).cmd("PTTL").arg(&record);
        let answers = self.inner.read(slot(&record), pipeline).await?;
        let (member, record, left) = match <[Value; 3]>::try_from(answers) {
            Ok([member, record, left]) => (Some(member), record, left),
            Err(answers) => {
                let [record, left] = <[Value; 2]>::try_from(answers).map_err(|_| Failure::garbage())?;
                (None, record, left)
            }
        };
        match member {
            Some(Value::Nil) => Ok(None),
            _ => read_record(id, record, left),
        }
    }

    async fn create(&self, record: Record, terms: Terms) -> Result<Created> {
        let Terms { since, retry } = terms;
        let (id, ttl) = (record.id, ttl(record.ttl));
        let RecordKeys { record: name, index } = self.inner.keys.of(id);
        let age = since.map(|Since::Age(age)| age);
        let clears = id.owner().filter(|_| age.is_some()).map(|owner| self.inner.keys.cleared(owner));
        let keys: Vec<&str> =
            [Some(&name), index.as_ref(), clears.as_ref()].into_iter().flatten().map(|key| &**key).collect();
        let write = Write {
            script: &scripts::CREATE,
            keys: &keys,
            nonce: nonce(record.version),
            sid: id.sid(),
            args: &[ttl.as_bytes(), &record.payload],
            age,
            retry,
        };
        match self.inner.write(write).await?.code {
            DONE => Ok(Created::Done),
            NOT_THERE => Ok(Created::Taken),
            CLEARED_SINCE => Ok(Created::Late),
            UNKNOWN => Err(unknown().into()),
            _ => Err(Failure::garbage().into()),
        }
    }

    async fn update(&self, expected: i64, record: Record, retry: bool) -> Result<Outcome> {
        let ttl = ttl(record.ttl);
        let rest: [&[u8]; 3] = [ttl.as_bytes(), &record.payload, &nonce(expected)];
        let reply = self.inner.write_record(&scripts::UPDATE, record.id, nonce(record.version), &rest, retry).await?;
        match reply.code {
            DONE => Ok(Outcome::Done),
            NOT_THERE => Ok(Outcome::Gone),
            CONFLICT | LARGE_CONFLICT => {
                Ok(self.conflict(record.id, reply).await?.map_or(Outcome::Gone, Outcome::Conflict))
            }
            UNREADABLE => Err(unreadable().into()),
            UNKNOWN => Err(unknown().into()),
            _ => Err(Failure::garbage().into()),
        }
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        let ttl = self::ttl(ttl);
        self.inner.write_record(&scripts::TOUCH, id, nonce(version), &[ttl.as_bytes()], false).await?;
        Ok(())
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        let reply = self.inner.write_record(&scripts::DELETE, id, random()?, &[], false).await?;
        Ok(reply.code == DONE)
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        let index = self.inner.keys.index(owner);
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.cmd("ZRANGE").arg(&index).arg(0).arg(-1);
        let answer = self.inner.read(slot(&index), pipeline).await?.pop().ok_or_else(Failure::garbage)?;
        let mut records = Vec::new();
        let mut dead = Vec::new();
        for sids in sids(answer)?.chunks(BATCH) {
            let keys: Vec<String> = sids.iter().map(|sid| self.inner.keys.record(owner, sid)).collect();
            let mut pipeline = Pipeline::with_capacity(1 + keys.len());
            pipeline.cmd("MGET").arg(&keys);
            for key in &keys {
                pipeline.cmd("PTTL").arg(key);
            }
            let mut answers = self.inner.read(slot(&index), pipeline).await?.into_iter();
            let Some(Value::Array(found)) = answers.next() else { return Err(Failure::garbage().into()) };
            for ((sid, record), left) in sids.iter().zip(found).zip(answers) {
                // A member that is not a valid `sid` is not ours.
                let Some(id) = Sid::parse(sid).map(|sid| RecordId::new(Some(owner), sid)) else { continue };
                match read_record(id, record, left) {
                    Ok(Some(record)) => records.push(record),
                    Ok(None) => dead.push(sid.clone()),
                    // An unreadable record must not hide the others. `clear` ends it like any other.
                    Err(error) => {
                        tracing::warn!(error, session = id.sid(), "an unreadable record is left out of the list")
                    }
                }
            }
        }
        self.inner.tidy_later(owner, dead);
        Ok(records)
    }

    async fn clear(&self, owner: Owner, clear: Clear) -> Result<Cleared> {
        let Clear { name, by } = clear;
        if by.is_some_and(|by| by.id.owner() != Some(owner)) {
            return Ok(Cleared::Gone);
        }
        let (index, clears) = (self.inner.keys.index(owner), self.inner.keys.cleared(owner));
        let record = by.map(|by| self.inner.keys.record(owner, by.id.sid()));
        let keys: Vec<&str> =
            [Some(&index), Some(&clears), record.as_ref()].into_iter().flatten().map(|key| &**key).collect();
        let (sid, keep, version) = match &by {
            None => ("", false, 0),
            Some(By { id, version, keep }) => (id.sid(), *keep, *version),
        };
        let args: [&[u8]; 2] = [if keep { b"1" } else { b"" }, &nonce(version)];
        let script = &scripts::CLEAR;
        let write = Write { script, keys: &keys, nonce: nonce(name), sid, args: &args, age: None, retry: false };
        let reply = self.inner.write(write).await?;
        match (reply.code, by) {
            (DONE, _) => {}
            (NOT_THERE, Some(_)) => return Ok(Cleared::Gone),
            (CONFLICT | LARGE_CONFLICT, Some(by)) => {
                return Ok(self.conflict(by.id, reply).await?.map_or(Cleared::Gone, Cleared::Conflict));
            }
            (UNREADABLE, _) => return Err(unreadable().into()),
            _ => return Err(Failure::garbage().into()),
        }
        let [Value::Int(ended), members] = <[Value; 2]>::try_from(reply.rest).map_err(|_| Failure::garbage())? else {
            return Err(Failure::garbage().into());
        };
        let mut ended_sids = sids(members)?;
        ended_sids.retain(|ended| !keep || ended != sid);
        self.inner.tidy_later(owner, ended_sids);
        Ok(Cleared::Done(u64::try_from(ended).unwrap_or_default()))
    }

    async fn close(&self) -> Result<()> {
        self.inner.link.close();
        Ok(())
    }
}

impl Reply {
    /// Reads a code, the server's time, and the rest.
    fn read(answer: Value) -> std::result::Result<(Self, i64), Failure> {
        let Value::Array(parts) = answer else { return Err(Failure::garbage()) };
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next()) {
            (Some(Value::Int(code)), Some(Value::Int(now))) => Ok((Self { code, rest: parts.collect() }, now)),
            _ => Err(Failure::garbage()),
        }
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend").finish_non_exhaustive()
    }
}

/// Reads a value as `head.lua` writes it: the format, the number of versions, the versions, the payload. `left` is the answer of
/// `PTTL`.
fn read_record(id: RecordId, stored: Value, left: Value) -> Result<Option<Record>> {
    let (stored, left) = match (stored, left) {
        (Value::Nil, _) | (_, Value::Int(-2)) => return Ok(None),
        (Value::BulkString(stored), Value::Int(left)) => (Bytes::from(stored), left),
        _ => return Err(Failure::garbage().into()),
    };
    let head = match stored.get(..2) {
        Some(&[FORMAT, versions @ 1..=9]) => 2 + 8 * usize::from(versions),
        _ => return Err(unreadable().into()),
    };
    let version: Option<[u8; 8]> = stored.get(2..10).and_then(|newest| newest.try_into().ok());
    let (Some(version), true) = (version, stored.len() >= head) else { return Err(unreadable().into()) };
    if left < 0 {
        return Err(Error::new(ErrorKind::Unreadable, "a record in Redis has no time to live").into());
    }
    let ttl = Duration::from_millis(u64::try_from(left - KEEP).unwrap_or_default());
    let live = !ttl.is_zero();
    Ok(live.then(|| Record { id, version: i64::from_be_bytes(version), ttl, payload: stored.slice(head..) }))
}

fn unreadable() -> Error {
    Error::new(ErrorKind::Unreadable, "a record in Redis has a format that this version cannot read")
}

fn unknown() -> Failure {
    let unknown = "the answer of Redis was lost, so it is not known whether the change was applied";
    Failure::new(FailureKind::Lost, unknown)
}

fn sids(answer: Value) -> Result<Vec<String>> {
    let Value::Array(members) = answer else { return Err(Failure::garbage().into()) };
    let text = |member| match member {
        Value::BulkString(text) => String::from_utf8(text).map_err(|_| Failure::garbage().into()),
        _ => Err(Failure::garbage().into()),
    };
    members.into_iter().map(text).collect()
}

fn nonce(version: i64) -> [u8; 8] {
    version.to_be_bytes()
}

/// Whole milliseconds, rounded down, and at most a century, so that adding to it cannot overflow.
fn ttl(ttl: Duration) -> String {
    millis(ttl).min(CENTURY).to_string()
}

// The codes that scripts answer first.
const DONE: i64 = 1;
const NOT_THERE: i64 = 0;
const CONFLICT: i64 = 2;
const LARGE_CONFLICT: i64 = 3;
const CLEARED_SINCE: i64 = 4;
const LATE: i64 = -1;
const UNREADABLE: i64 = -2;
const UNKNOWN: i64 = -3;

const FORMAT: u8 = 1;
/// As in `head.lua`, in milliseconds.
const KEEP: i64 = 10_000;
/// How far off a comparison of clocks may be, in milliseconds. Even with the longest deadline it is far below `KEEP`.
const CLOCK_SLACK: u64 = 1_000;
const CENTURY: u64 = 100 * 365 * 86_400_000;
/// How many records are read at once.
const BATCH: usize = 100;
