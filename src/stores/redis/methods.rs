//! The methods of the [`Backend`] on Redis: each is one command or one call of a script, if it concerns one session.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
    vec,
};

use redis::{Cmd, Value};

use super::{
    backend::{MAX_BATCHED, RedisBackend, beside, foreign, sid, ttl},
    batch::{Batched, Swap},
    failure::Failure,
    scripts,
    value::{KnownHead, NewValue, new_value, read, times, unreadable},
    write::{Args, Attempt, CONFLICT, DONE, LARGE_CONFLICT, NOT_THERE, Reply, UNKNOWN, UNREADABLE, Write, unknown},
};
use crate::{
    backend::{
        Backend, Outcome, Result,
        clear::{By, Clear, Cleared},
        scan::{Count, Cursor, Page},
        terms::{Created, Mark, Terms},
    },
    random::random,
    record::{
        Record,
        id::{Owner, RecordId},
    },
};

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

impl RedisBackend {
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
}
