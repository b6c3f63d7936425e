//! Sessions in SQLite: a complete backend of your own.
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
    Backend, By, Clear, Cleared, Clock, Created, Error, Outcome, Owner, Record, RecordId, Session, SessionLayer,
    Sessions, Since, Terms, backend::Result,
};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior::Immediate, params};

/// Keeps records in a table of a SQLite database. Any number of processes on one machine may share it.
pub struct SqliteBackend {
    connection: Arc<Mutex<Connection>>,
    clock: OnceLock<Clock>,
}

impl SqliteBackend {
    /// Opens the database, or creates it.
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
                 expires INTEGER NOT NULL,  -- milliseconds since 1970
                 payload BLOB NOT NULL
             ) STRICT;
             CREATE INDEX IF NOT EXISTS sessions_by_owner ON sessions (owner) WHERE owner IS NOT NULL;
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

    /// Runs a verb in a transaction that has the only right to write from its beginning on, on a thread that may wait for a
    /// disk. It runs to its end even if nobody waits for it any more, and is committed or is not.
    async fn verb<T: Send + 'static>(
        &self,
        verb: impl FnOnce(&Transaction<'_>, i64) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (connection, clock) = (Arc::clone(&self.connection), self.clock().clone());
        let work = move || -> Result<T> {
            // A transaction that panicked was rolled back.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let transaction = connection.transaction_with_behavior(Immediate)?;
            // Only now: it may have waited for others.
            let now = now(&clock)?;
            // Housekeeping, a little at a time. That what has expired does not exist, each statement says for itself.
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
        self.verb(move |db, now| Ok(find(db, id, now)?.map(|row| row.record))).await
    }

    async fn create(&self, record: Record, terms: Terms) -> Result<Created> {
        let Terms { since, retry } = terms;
        let arrived = match since {
            None => None,
            // By now, and not by when it is this one's turn to write.
            Some(Since::Age(age)) => Some(now(self.clock())? - millis_up(age)),
            Some(_) => return Err("these terms are unknown here".into()),
        };
        self.verb(move |db, now| {
            let (id, version) = (record.id, record.version);
            let there = find(db, id, now)?;
            if there.as_ref().is_some_and(|there| there.has_had(version)) {
                return Ok(Created::Done);
            }
            if let Some(arrived) = arrived
                && (now - arrived > CLEARS || cleared_since(db, id.owner(), arrived)?)
            {
                return Ok(Created::Late);
            }
            // The first try may have been made, and have ended since: it must not be made again.
            if retry && has_ended(db, id, now)? {
                return Err("whether it was created is not known".into());
            }
            if there.is_some() {
                return Ok(Created::Taken);
            }
            db.execute(
                "INSERT INTO sessions (id, owner, version, older, expires, payload) VALUES (?1, ?2, ?3, x'', ?4, ?5)
                 ON CONFLICT (id) DO UPDATE SET version = ?3, older = x'', expires = ?4, payload = ?5",
                params![
                    id.to_string(),
                    id.owner().map(|owner| *owner.as_bytes()),
                    version,
                    end(now, record.ttl),
                    &record.payload[..]
                ],
            )?;
            Ok(Created::Done)
        })
        .await
    }

    async fn update(&self, expected: i64, record: Record, retry: bool) -> Result<Outcome> {
        self.verb(move |db, now| {
            let Some(there) = find(db, record.id, now)? else { return Ok(Outcome::Gone) };
            if there.record.version == expected {
                let mut older = [&expected.to_be_bytes()[..], &there.older].concat();
                older.truncate(8 * 8);
                // What has ended leaves nothing behind but its name, for a while.
                let payload = if record.ttl.is_zero() { &[] } else { &record.payload[..] };
                db.execute(
                    "UPDATE sessions SET version = ?2, older = ?3, expires = ?4, payload = ?5 WHERE id = ?1",
                    params![record.id.to_string(), record.version, older, end(now, record.ttl), payload],
                )?;
                return Ok(Outcome::Done);
            }
            match retry {
                true if there.has_had(record.version) => Ok(Outcome::Done),
                // It would have come right after the version that it expected. If that one is forgotten, nobody knows.
                true if !there.has_had(expected) => Err("whether it was written is not known".into()),
                _ => Ok(Outcome::Conflict(there.record)),
            }
        })
        .await
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        self.verb(move |db, now| {
            db.execute(
                "UPDATE sessions SET expires = ?3 WHERE id = ?1 AND version = ?2 AND expires > ?4",
                params![id.to_string(), version, end(now, ttl), now],
            )?;
            Ok(())
        })
        .await
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        self.verb(move |db, now| {
            let ended = db.execute(
                "UPDATE sessions SET expires = ?2, payload = x'' WHERE id = ?1 AND expires > ?2",
                params![id.to_string(), now],
            )?;
            Ok(ended == 1)
        })
        .await
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        self.verb(move |db, now| {
            let mut all = db.prepare_cached("SELECT id FROM sessions WHERE owner = ?1 AND expires > ?2")?;
            let mut names = all.query(params![owner.as_bytes(), now])?;
            let mut records = Vec::new();
            while let Some(name) = names.next()? {
                records.extend(find(db, name.get_ref(0)?.as_str()?.parse()?, now)?.map(|row| row.record));
            }
            Ok(records)
        })
        .await
    }

    async fn clear(&self, owner: Owner, clear: Clear) -> Result<Cleared> {
        let Clear { name, by } = clear;
        self.verb(move |db, now| {
            let repeat = db
                .prepare_cached("SELECT ended FROM clears WHERE owner = ?1 AND name = ?2")?
                .query_row(params![owner.as_bytes(), name], |row| row.get::<_, i64>(0))
                .optional()?;
            if let Some(ended) = repeat {
                return Ok(Cleared::Done(ended.unsigned_abs()));
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

/// Whether a record of that name ended within the last ten seconds.
fn has_ended(db: &Transaction<'_>, id: RecordId, now: i64) -> Result<bool> {
    let mut query = db.prepare_cached("SELECT 1 FROM sessions WHERE id = ?1 AND expires BETWEEN ?2 AND ?3")?;
    Ok(query.exists(params![id.to_string(), now - ENDINGS, now])?)
}

fn cleared_since(db: &Transaction<'_>, owner: Option<Owner>, since: i64) -> Result<bool> {
    let Some(owner) = owner else { return Ok(false) };
    let mut query = db.prepare_cached("SELECT 1 FROM clears WHERE owner = ?1 AND at > ?2")?;
    Ok(query.exists(params![owner.as_bytes(), since])?)
}

fn now(clock: &Clock) -> Result<i64> {
    Ok(millis(clock.now().duration_since(UNIX_EPOCH)?))
}

fn end(now: i64, ttl: Duration) -> i64 {
    now.saturating_add(millis(ttl))
}

/// Rounded down: what is promised is that a session ends no later.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Rounded up: a request is taken to be no younger than it is. One of more than a year is too old in any case.
fn millis_up(age: Duration) -> i64 {
    millis(age.min(Duration::from_secs(365 * 86_400)) + Duration::from_nanos(999_999))
}

/// How long a clear and an ending are remembered, in milliseconds.
const CLEARS: i64 = 15 * 60 * 1000;
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
    // Whatever cannot be set up is a failure.
    #![allow(clippy::unwrap_used)]

    use jam_session::conformance::Subject;

    use super::SqliteBackend;

    // As two processes share it: each with a connection of its own.
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
