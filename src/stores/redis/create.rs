//! Logins: the mark that one begins with, and the `create` under its terms.

use std::{borrow::Cow, time::Instant};

use redis::Value;

use super::{
    backend::{MAX_BATCHED, RedisBackend, sid, ttl},
    batch::{Batched, Swap},
    failure::{Failure, FailureKind},
    scripts,
    source::Source,
    value::{new_value, read},
    write::{Args, Attempt, CLEARED_SINCE, DONE, FULL, NOT_THERE, Reply, UNKNOWN, Write, unknown},
};
use crate::{
    backend::{
        Result,
        terms::{Created, Left, Limit, Mark, Since, Terms},
    },
    record::{
        Record,
        id::{Owner, RecordId, Sid},
    },
};

impl RedisBackend {
    pub(super) async fn create_on(&self, record: Record, terms: Terms) -> Result<Created> {
        let Terms { since, limit, leaves, mut retry } = terms;
        let (id, ttl, key) = (record.id, ttl(record.ttl), self.keys.of(record.id));
        let (age, mark) = match since {
            None => (None, None),
            Some(Since::Age(age)) => (Some(age), None),
            Some(Since::Mark(mark)) => (None, Some(mark)),
        };
        let since = MarkArgs::new(mark);
        let leaves = leaves.filter(|(id, _)| id.owner().is_none() && self.has_one_server());
        let left = leaves.map(|(id, version)| (id, self.keys.of(id), version.to_be_bytes()));
        let (value, payload) = new_value(&record, None);
        let until = Instant::now() + self.deadline;
        let (life, limit) = (self.life(id, ttl).to_string(), limit_text(limit));
        if let Some(batches) = &self.batches
            && id.owner().is_none()
            && (age, mark, &left, retry) == (None, None, &None, false)
            && value.len() <= MAX_BATCHED
        {
            let value = value.at(self.time.at(0, Instant::now()), ttl).into_bytes();
            let swap = Swap { key: key.clone(), id, head: Vec::new(), value, life: life.clone() };
            match batches.send(swap, until, &self.link, &self.time).await? {
                Batched::Done => return Ok(Created::done()),
                Batched::Left { again } => retry = again,
            }
        }
        let write = Write {
            script: &scripts::CREATE,
            key: &key,
            leaves: left.as_ref().map(|(_, key, _)| key.as_str()),
            nonce: record.version,
            sid: sid(&id),
            age,
            retry,
        };
        let args = |attempt: &Attempt<'_>| -> Args<'_> {
            let value = value.at(attempt.now, ttl).into_bytes();
            let named = match attempt.named {
                [] => Cow::from(&since.name[..]),
                named => named.to_vec().into(),
            };
            let version = left.as_ref().map_or(&[][..], |(.., version)| version);
            let rest = [payload, life.as_bytes()].map(Cow::from);
            let terms = [since.taken.as_bytes(), limit.as_bytes(), version].map(Cow::from);
            [Cow::from(value)].into_iter().chain(rest).chain([named]).chain(terms).collect()
        };
        let reply = self.write_until(until, &write, args).await?;
        match reply.code {
            DONE => self.done(id.owner(), left.map(|(id, ..)| id), reply),
            NOT_THERE => Ok(Created::Taken),
            CLEARED_SINCE => Ok(Created::Late),
            FULL => Ok(Created::Full),
            UNKNOWN => Err(unknown().into()),
            _ => Err(Failure::garbage().into()),
        }
    }

    /// Returns whether one script may use any two Redis keys. Behind the application's own connection, this is not known.
    fn has_one_server(&self) -> bool {
        matches!(self.link.source(), Source::Server(_) | Source::Sentinel(_))
    }

    fn done(&self, owner: Option<Owner>, leaves: Option<RecordId>, reply: Reply) -> Result<Created> {
        let mut rest = reply.rest.into_iter();
        let left = match (rest.next(), rest.next(), leaves) {
            (None | Some(Value::Int(0)), ..) => Left::NotTried,
            (Some(Value::Int(1)), ..) => Left::Done,
            (Some(Value::Int(2)), ..) => Left::Gone,
            (Some(Value::Int(3)), Some(value), Some(id)) => {
                let now = self.time.at_most(0, Instant::now());
                // A record that cannot be read must not fail the login. A later call on it reports the error.
                let there = read(value, Value::Nil).ok().flatten();
                there.map_or(Left::NotTried, |stored| Left::Conflict(stored.record(id, now)))
            }
            _ => return Err(Failure::garbage().into()),
        };
        let ended = rest.map(|sid| match sid {
            Value::BulkString(sid) => std::str::from_utf8(&sid).ok().and_then(Sid::parse),
            _ => None,
        });
        // A field that is not a valid `sid` is not ours.
        let ended = ended.flatten().map(|sid| RecordId::new(owner, sid)).collect();
        Ok(Created::Done { ended, left })
    }

    pub(super) async fn mark_now(&self, owner: Owner) -> Result<Mark> {
        let key = self.keys.owner(owner);
        let slot = self.slot(&key);
        let clears = if self.time.is_fresh(slot) {
            let mut command = redis::cmd("HGET");
            command.arg(&key).arg(CLEARS);
            self.one(command, &key).await
        } else {
            self.time_and_clears(&key).await.map(|(_, clears)| clears)
        };
        let clears = match clears {
            // A login replaces the foreign data, so it must not block one.
            Err(failure) if failure.kind == FailureKind::OtherType => Value::Nil,
            clears => clears?,
        };
        // This is never ahead of the server's clock. If it is unknown, it is 0, and the mark would not be valid.
        let now = self.time.at(slot, Instant::now());
        let Some(taken) = u64::try_from(now).ok().filter(|now| *now > 0) else { return Err(Failure::silent().into()) };
        let name = match &clears {
            Value::BulkString(clears) => last_clear(clears).filter(|(at, _)| now.saturating_mul(1000) - at < NAMED),
            Value::Nil => None,
            _ => return Err(Failure::garbage().into()),
        };
        Ok(Mark::new(name.map(|(_, name)| name), taken))
    }

    /// Reads the server's time and the last clears.
    pub(super) async fn time_and_clears(&self, key: &str) -> std::result::Result<(i64, Value), Failure> {
        let (now, mut parts) = self.read_with_time(&scripts::LOOK, key, &[b":"[..].into()]).await?;
        Ok((now, parts.next().unwrap_or(Value::Nil)))
    }
}

/// The arguments of a `create` for a mark: the name of the clear, and when the mark was taken.
#[derive(Default)]
struct MarkArgs {
    name: Vec<u8>,
    taken: String,
}

impl MarkArgs {
    fn new(mark: Option<Mark>) -> Self {
        let Some(Mark { clear, taken, opening }) = mark else { return Self::default() };
        let name = clear.map(|name| name.to_be_bytes().to_vec()).unwrap_or_default();
        // A mark of another store counts as too old.
        let taken = if opening == 0 { taken } else { 0 };
        Self { name, taken: taken.to_string() }
    }
}

/// The limit, in the form that `create.lua` reads.
fn limit_text(limit: Limit) -> String {
    let most = |most: usize| i64::try_from(most).unwrap_or(i64::MAX - 1).min(MANY);
    match limit {
        Limit::None => String::new(),
        Limit::LeastRecent(sessions) => most(sessions).to_string(),
        Limit::Refuse(sessions) => (-1 - most(sessions)).to_string(),
    }
}

/// The time of the last clear, in microseconds, and its name.
fn last_clear(clears: &[u8]) -> Option<(i64, i64)> {
    let at = std::str::from_utf8(clears.get(..16)?).ok()?.parse().ok()?;
    Some((at, i64::from_be_bytes(clears.get(16..24)?.try_into().ok()?)))
}

/// More records than a Redis key can hold, and exact as a Lua number.
const MANY: i64 = 1 << 40;

/// The field of an owner's hash with the last clears. It begins with the time of the last one (sixteen digits, in
/// microseconds) and its name.
const CLEARS: &str = "";
/// A mark names only clears that are younger than this, in microseconds.
const NAMED: i64 = 15 * 60 * 1_000_000;
