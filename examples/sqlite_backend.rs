//! Sessions in SQLite: a complete custom backend.
//!
//! ```sh
//! cargo run --example sqlite_backend                            # then open http://127.0.0.1:3000
//! cargo test --example sqlite_backend --features conformance    # the conformance tests
//! ```

use std::{
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use axum::{Router, routing::get};
use jam_session::{
    Backend, By, Clear, Cleared, Clock, Count, Created, Cursor, Error, Left, Limit, Mark, Outcome, Owner, Page, Record,
    RecordId, Session, SessionLayer, Sessions, Since, Terms, backend::Result,
};
use rusqlite::{Connection, OptionalExtension, Rows, Transaction, TransactionBehavior::Immediate, params};

/// Keeps records in a table of an SQLite database. Any number of processes on one machine can share it.
pub struct SqliteBackend {
    connection: Arc<Mutex<Connection>>,
    clock: OnceLock<Clock>,
}

impl SqliteBackend {
    /// Opens or creates the database.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let connection = Connection::open(path)?;
        // Another process may be writing.
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = NORMAL;
             PRAGMA secure_delete = ON;
             CREATE TABLE IF NOT EXISTS sessions (
                 id      TEXT PRIMARY KEY,  -- owner and sid: the name of an anonymous one has no owner, and is no NULL
                 owner   BLOB,
                 version INTEGER NOT NULL,
                 older   BLOB NOT NULL,     -- the last eight versions before it, eight bytes each, the newest first
                 heard   INTEGER NOT NULL,  -- grows with each create, update and touch of a record of that owner
                 expires INTEGER NOT NULL,  -- milliseconds since 1970
                 payload BLOB NOT NULL
             ) STRICT;
             CREATE INDEX IF NOT EXISTS sessions_by_owner ON sessions (owner, heard) WHERE owner IS NOT NULL;
             CREATE INDEX IF NOT EXISTS sessions_by_expiry ON sessions (expires);
             CREATE TABLE IF NOT EXISTS clears (
                 owner   BLOB PRIMARY KEY,
                 name    INTEGER NOT NULL,
                 ended   INTEGER NOT NULL,
                 at      INTEGER NOT NULL
             ) STRICT;
             CREATE INDEX IF NOT EXISTS clears_by_time ON clears (at);",
        )?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), clock: OnceLock::new() })
    }

    /// Runs a method in an immediate transaction, which holds the write lock from the beginning, on a thread that may block.
    /// It runs to completion even if the caller gives up, and is either committed or rolled back.
    async fn verb<T: Send + 'static>(
        &self,
        verb: impl FnOnce(&Transaction<'_>, i64) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (connection, clock) = (Arc::clone(&self.connection), self.clock().clone());
        let work = move || -> Result<T> {
            // A transaction that panicked was rolled back.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let transaction = connection.transaction_with_behavior(Immediate)?;
            // Read the time only now, because the transaction may have waited for others.
            let now = now(&clock)?;
            // Housekeeping, a little at a time. Each statement checks for itself that a record has not expired.
            transaction.execute(
                "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE expires <= ?1 ORDER BY expires LIMIT 4)",
                [now - ENDINGS],
            )?;
            transaction.execute(
                "DELETE FROM clears WHERE owner IN (SELECT owner FROM clears WHERE at < ?1 ORDER BY at LIMIT 4)",
                [now - CLEARS],
            )?;
            let answer = verb(&transaction, now)?;
            transaction.commit()?;
            Ok(answer)
        };
        tokio::task::spawn_blocking(work).await?
    }

    fn clock(&self) -> &Clock {
        self.clock.get_or_init(Clock::system)
    }
}

impl Backend for SqliteBackend {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        self.verb(move |db, now| Ok(find(db, id, now)?.map(|found| found.record))).await
    }

    async fn create(&self, record: Record, terms: Terms) -> Result<Created> {
        // Destructured completely: when a field is added, this stops compiling until it is handled.
        let Terms { since, limit, leaves, retry } = terms;
        // The age is relative to now, and not to when this transaction gets its turn.
        let called = now(self.clock())?;
        self.verb(move |db, now| {
            let (id, version, owner) = (record.id, record.version, record.id.owner());
            let there = find(db, id, now)?;
            let mut ended = Vec::new();
            if !there.as_ref().is_some_and(|there| there.has_had(version)) {
                if is_late(db, owner, since, called, now)? {
                    return Ok(Created::Late);
                }
                // The first try may have been applied, and the record ended since. It must not be created again.
                if retry && has_ended(db, id, now)? {
                    return Err("whether it was created is not known".into());
                }
                if there.is_some() {
                    return Ok(Created::Taken);
                }
                let others = if limit == Limit::None { Vec::new() } else { names(db, owner, now)? };
                match limit {
                    Limit::Refuse(most) if owner.is_some() && others.len() >= most => return Ok(Created::Full),
                    Limit::LeastRecent(most) => {
                        ended.extend(others.iter().take((others.len() + 1).saturating_sub(most)))
                    }
                    Limit::None | Limit::Refuse(_) => {}
                }
                for id in &ended {
                    end(db, *id, now)?;
                }
                db.execute(
                    "INSERT INTO sessions (id, owner, version, older, heard, expires, payload)
                     VALUES (?1, ?2, ?3, x'', ?4, ?5, ?6)
                     ON CONFLICT (id) DO UPDATE SET version = ?3, older = x'', heard = ?4, expires = ?5, payload = ?6",
                    params![
                        id.to_string(),
                        owner.map(|owner| *owner.as_bytes()),
                        version,
                        heard(db, owner)?,
                        expiry(now, record.ttl),
                        &record.payload[..]
                    ],
                )?;
            }
            let left = match leaves {
                None => Left::NotTried,
                Some((id, version)) => match find(db, id, now)? {
                    None => Left::Gone,
                    Some(there) if there.record.version != version => Left::Conflict(there.record),
                    Some(_) => {
                        end(db, id, now)?;
                        Left::Done
                    }
                },
            };
            Ok(Created::Done { ended, left })
        })
        .await
    }

    async fn update(&self, expected: i64, record: Record, retry: bool) -> Result<Outcome> {
        self.verb(move |db, now| {
            let Some(there) = find(db, record.id, now)? else { return Ok(Outcome::Gone) };
            if there.record.version == expected {
                let mut older = [&expected.to_be_bytes()[..], &there.older].concat();
                older.truncate(8 * 8);
                // Of an ended record, only the name is kept, for a while.
                let payload = if record.ttl.is_zero() { &[] } else { &record.payload[..] };
                db.execute(
                    "UPDATE sessions SET version = ?2, older = ?3, heard = ?4, expires = ?5, payload = ?6 WHERE id = ?1",
                    params![
                        record.id.to_string(),
                        record.version,
                        older,
                        heard(db, record.id.owner())?,
                        expiry(now, record.ttl),
                        payload
                    ],
                )?;
                return Ok(Outcome::Done);
            }
            match retry {
                true if there.has_had(record.version) => Ok(Outcome::Done),
                // The write would have come right after the expected version. If that one is forgotten, it cannot be known.
                true if !there.has_had(expected) => Err("whether it was written is not known".into()),
                _ => Ok(Outcome::Conflict(there.record)),
            }
        })
        .await
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        self.verb(move |db, now| {
            db.execute(
                "UPDATE sessions SET heard = ?3, expires = ?4 WHERE id = ?1 AND version = ?2 AND expires > ?5",
                params![id.to_string(), version, heard(db, id.owner())?, expiry(now, ttl), now],
            )?;
            Ok(())
        })
        .await
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        self.verb(move |db, now| end(db, id, now)).await
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        self.verb(move |db, now| records(db, names(db, Some(owner), now)?, now)).await
    }

    async fn clear(&self, owner: Owner, clear: Clear) -> Result<Cleared> {
        let Clear { name, by } = clear;
        self.verb(move |db, now| {
            if let Some(last) = last_clear(db, Some(owner))?.filter(|last| last.name == name) {
                return Ok(Cleared::Done(last.ended.unsigned_abs()));
            }
            if let Some(By { id, version, .. }) = by {
                match find(db, id, now)?.filter(|_| id.owner() == Some(owner)) {
                    None => return Ok(Cleared::Gone),
                    Some(there) if there.record.version != version => return Ok(Cleared::Conflict(there.record)),
                    Some(_) => {}
                }
            }
            let kept = by.filter(|by| by.keep).map(|by| by.id.to_string());
            let ended = db.execute(
                "UPDATE sessions SET expires = ?3, payload = x'' WHERE owner = ?1 AND id IS NOT ?2 AND expires > ?3",
                params![owner.as_bytes(), kept, now],
            )?;
            db.execute(
                "INSERT OR REPLACE INTO clears (owner, name, ended, at) VALUES (?1, ?2, ?3, ?4)",
                params![owner.as_bytes(), name, ended as i64, now],
            )?;
            Ok(Cleared::Done(ended as u64))
        })
        .await
    }

    async fn mark(&self, owner: Owner) -> Result<Mark> {
        self.verb(move |db, now| {
            let last = last_clear(db, Some(owner))?.filter(|last| now - last.at <= GOOD);
            Ok(Mark::new(last.map(|last| last.name), now.unsigned_abs()))
        })
        .await
    }

    async fn scan(&self, after: Option<Cursor>, most: usize) -> Result<Page> {
        // The cursor is the name of the last record of the previous page.
        let after = after.map(|after| String::from_utf8(after.as_bytes().into())).transpose()?;
        let after = after.map(|after| after.parse::<RecordId>()).transpose()?;
        self.verb(move |db, now| {
            let mut query =
                db.prepare_cached("SELECT id FROM sessions WHERE id > ?1 AND expires > ?2 ORDER BY id LIMIT ?3")?;
            let after = after.map(|after| after.to_string()).unwrap_or_default();
            let ids = parsed(query.query(params![after, now, most as i64])?)?;
            let next = ids.last().filter(|_| ids.len() == most).map(|id| Cursor::new(id.to_string()));
            Ok(Page { records: records(db, ids, now)?, next, moved: false })
        })
        .await
    }

    async fn count(&self) -> Result<Count> {
        self.verb(move |db, now| {
            let mut query = db.prepare_cached("SELECT count(owner), count(*) FROM sessions WHERE expires > ?1")?;
            let (owned, all) = query.query_row([now], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
            Ok(Count::new(owned.unsigned_abs(), (all - owned).unsigned_abs()))
        })
        .await
    }

    fn set_clock(&self, clock: Clock) {
        let _ = self.clock.set(clock);
    }
}

/// A live record, and the versions that it had before.
struct Found {
    record: Record,
    older: Vec<u8>,
}

impl Found {
    fn has_had(&self, version: i64) -> bool {
        self.record.version == version || self.older.chunks(8).any(|older| older == version.to_be_bytes())
    }
}

fn find(db: &Transaction<'_>, id: RecordId, now: i64) -> Result<Option<Found>> {
    let mut query =
        db.prepare_cached("SELECT version, older, expires, payload FROM sessions WHERE id = ?1 AND expires > ?2")?;
    let found = query.query_row(params![id.to_string(), now], |row| {
        let ttl = Duration::from_millis(row.get::<_, i64>(2)?.saturating_sub(now).unsigned_abs());
        let record = Record::new(id, row.get(0)?, ttl, row.get::<_, Vec<u8>>(3)?);
        Ok(Found { record, older: row.get(1)? })
    });
    Ok(found.optional()?)
}

fn records(db: &Transaction<'_>, ids: Vec<RecordId>, now: i64) -> Result<Vec<Record>> {
    ids.into_iter().filter_map(|id| Some(find(db, id, now).transpose()?.map(|found| found.record))).collect()
}

/// All live records of an owner, the least recently used one first.
fn names(db: &Transaction<'_>, owner: Option<Owner>, now: i64) -> Result<Vec<RecordId>> {
    let mut query = db.prepare_cached("SELECT id FROM sessions WHERE owner = ?1 AND expires > ?2 ORDER BY heard")?;
    parsed(query.query(params![owner.map(|owner| *owner.as_bytes()), now])?)
}

fn parsed(mut rows: Rows<'_>) -> Result<Vec<RecordId>> {
    let mut ids = Vec::new();
    while let Some(row) = rows.next()? {
        ids.push(row.get_ref(0)?.as_str()?.parse()?);
    }
    Ok(ids)
}

/// A number above those of all other records of the owner. It orders records by their last use, without a clock.
fn heard(db: &Transaction<'_>, owner: Option<Owner>) -> Result<i64> {
    let mut query = db.prepare_cached("SELECT ifnull(max(heard), 0) + 1 FROM sessions WHERE owner = ?1")?;
    Ok(query.query_row([owner.map(|owner| *owner.as_bytes())], |row| row.get(0))?)
}

/// Ends a record. Its name is kept for a while.
fn end(db: &Transaction<'_>, id: RecordId, now: i64) -> Result<bool> {
    let mut end =
        db.prepare_cached("UPDATE sessions SET expires = ?2, payload = x'' WHERE id = ?1 AND expires > ?2")?;
    Ok(end.execute(params![id.to_string(), now])? == 1)
}

/// Returns whether a record with that name ended within the last ten seconds.
fn has_ended(db: &Transaction<'_>, id: RecordId, now: i64) -> Result<bool> {
    let mut query = db.prepare_cached("SELECT 1 FROM sessions WHERE id = ?1 AND expires BETWEEN ?2 AND ?3")?;
    Ok(query.exists(params![id.to_string(), now - ENDINGS, now])?)
}

struct LastClear {
    name: i64,
    ended: i64,
    at: i64,
}

fn last_clear(db: &Transaction<'_>, owner: Option<Owner>) -> Result<Option<LastClear>> {
    let mut query = db.prepare_cached("SELECT name, ended, at FROM clears WHERE owner = ?1")?;
    let last = query.query_row([owner.map(|owner| *owner.as_bytes())], |row| {
        Ok(LastClear { name: row.get(0)?, ended: row.get(1)?, at: row.get(2)? })
    });
    Ok(last.optional()?)
}

/// Returns whether the owner was cleared since then, or that time is too long ago to tell.
fn is_late(db: &Transaction<'_>, owner: Option<Owner>, since: Option<Since>, called: i64, now: i64) -> Result<bool> {
    let last = last_clear(db, owner)?;
    Ok(match since {
        None => false,
        Some(Since::Age(age)) => {
            let arrived = called - millis_up(age);
            now - arrived > GOOD || last.is_some_and(|last| last.at > arrived)
        }
        Some(Since::Mark(mark)) => {
            let changed = match mark.clear {
                Some(name) => last.is_none_or(|last| last.name != name),
                None => last.is_some_and(|last| now - last.at < GOOD),
            };
            // The database remembers its clears when it is closed, so its marks do not depend on the opening.
            changed || now.saturating_sub_unsigned(mark.taken) > GOOD || mark.opening != 0
        }
        Some(_) => return Err("these terms are unknown here".into()),
    })
}

fn now(clock: &Clock) -> Result<i64> {
    Ok(millis(clock.now().duration_since(UNIX_EPOCH)?))
}

fn expiry(now: i64, ttl: Duration) -> i64 {
    now.saturating_add(millis(ttl))
}

/// Rounds down, because a session must not end later than promised.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Rounds up, so that a request never counts as younger than it is. Anything above a year is too old in any case.
fn millis_up(age: Duration) -> i64 {
    millis(age.min(Duration::from_secs(365 * 86_400)) + Duration::from_nanos(999_999))
}

/// How long marks and ages are valid, and how long clears and endings are remembered, in milliseconds.
const GOOD: i64 = 15 * 60 * 1000;
const CLEARS: i64 = 2 * GOOD;
const ENDINGS: i64 = 10 * 1000;

async fn visits(session: Session) -> std::result::Result<String, Error> {
    session.modify("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
    Ok(format!("visit number {}", session.get::<u64>("visits")?.unwrap_or(0)))
}

#[tokio::main]
async fn main() -> Result<()> {
    let sessions = Sessions::over(SqliteBackend::open("sessions.sqlite")?).build()?;
    let app = Router::new().route("/", get(visits)).layer(SessionLayer::new(sessions));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    // A failed setup fails the test.
    #![allow(clippy::unwrap_used)]

    use jam_session::conformance::Subject;

    use super::SqliteBackend;

    // Two connections, as if two processes shared the database.
    jam_session::conformance_tests!({
        let folder = Folder::new();
        let open = || SqliteBackend::open(folder.0.join("sessions.sqlite")).unwrap();
        Subject::new(open()).shared_with(open()).holding(folder)
    });

    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new() -> Self {
            let name = format!("jam-session-sqlite-{:?}-{}", std::thread::current().id(), std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
