//! Sessions in SQLite: a backend of one's own, complete.
//!
//! ```sh
//! cargo run --example sqlite_backend                            # then open http://127.0.0.1:3000, and restart it in between
//! cargo test --example sqlite_backend --features conformance    # the exam that every backend takes
//! ```

use std::{
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use axum::{Router, routing::get};
use jam_session::{
    Backend, Clock, Error, Outcome, Owner, Record, RecordId, Session, SessionLayer, Sessions, backend::Result,
};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior::Immediate, params, types::Type};

/// Keeps records in a table of a SQLite database, which any number of processes of one machine may share.
pub struct SqliteBackend {
    connection: Arc<Mutex<Connection>>,
    clock: OnceLock<Clock>,
}

impl SqliteBackend {
    /// Opens the database, or makes it.
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
                 expires INTEGER NOT NULL,  -- milliseconds since 1970
                 payload BLOB NOT NULL
             ) STRICT;
             CREATE INDEX IF NOT EXISTS sessions_by_owner ON sessions (owner) WHERE owner IS NOT NULL;
             CREATE INDEX IF NOT EXISTS sessions_by_expiry ON sessions (expires);",
        )?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), clock: OnceLock::new() })
    }

    /// Runs a verb in a transaction that has the only right to write from its beginning on, on a thread that may wait for a
    /// disk. It runs to its end even if nobody waits for it any more, and is committed or is not.
    async fn verb<T: Send + 'static>(
        &self,
        verb: impl FnOnce(&Transaction<'_>, i64) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (connection, clock) = (Arc::clone(&self.connection), self.clock.get_or_init(Clock::system).clone());
        let work = move || -> Result<T> {
            // A transaction that panicked was rolled back.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let transaction = connection.transaction_with_behavior(Immediate)?;
            // Only now: it may have waited for others.
            let now = millis(clock.now().duration_since(UNIX_EPOCH)?);
            // Housekeeping, a little at a time. That what has expired does not exist, each statement says for itself.
            transaction.execute(
                "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE expires <= ?1 ORDER BY expires LIMIT 4)",
                [now],
            )?;
            let answer = verb(&transaction, now)?;
            transaction.commit()?;
            Ok(answer)
        };
        tokio::task::spawn_blocking(work).await?
    }
}

impl Backend for SqliteBackend {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        self.verb(move |db, now| find(db, id, now)).await
    }

    async fn create(&self, record: Record) -> Result<bool> {
        self.verb(move |db, now| {
            let Record { id, version, ttl, payload } = record;
            let (name, owner, expires) = (id.to_string(), id.owner().map(|owner| *owner.as_bytes()), end(now, ttl));
            // What is live stays; what has expired does not exist.
            let created = db.execute(
                "INSERT INTO sessions (id, owner, version, expires, payload) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (id) DO UPDATE SET version = ?3, expires = ?4, payload = ?5 WHERE expires <= ?6",
                params![name, owner, version, expires, &payload[..], now],
            )?;
            Ok(created == 1)
        })
        .await
    }

    async fn update(&self, expected: i64, record: Record) -> Result<Outcome> {
        self.verb(move |db, now| {
            let Record { id, version, ttl, payload } = record;
            let updated = db.execute(
                "UPDATE sessions SET version = ?3, expires = ?4, payload = ?5
                 WHERE id = ?1 AND version = ?2 AND expires > ?6",
                params![id.to_string(), expected, version, end(now, ttl), &payload[..], now],
            )?;
            Ok(match updated {
                1 => Outcome::Done,
                _ => find(db, id, now)?.map_or(Outcome::Gone, Outcome::Conflict),
            })
        })
        .await
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        self.verb(move |db, now| {
            db.execute(
                "UPDATE sessions SET expires = ?3 WHERE id = ?1 AND version = ?2 AND expires > ?4",
                params![id.to_string(), version, end(now, ttl), now],
            )
        })
        .await?;
        Ok(())
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        self.verb(move |db, now| {
            let ended =
                db.execute("DELETE FROM sessions WHERE id = ?1 AND expires > ?2", params![id.to_string(), now])?;
            Ok(ended == 1)
        })
        .await
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        self.verb(move |db, now| {
            db.prepare_cached("SELECT id, version, expires, payload FROM sessions WHERE owner = ?1 AND expires > ?2")?
                .query_map(params![owner.as_bytes(), now], |row| record(row, now))?
                .collect()
        })
        .await
    }

    async fn clear(&self, owner: Owner, keep: Option<RecordId>) -> Result<u64> {
        self.verb(move |db, now| {
            let ended = db.execute(
                "DELETE FROM sessions WHERE owner = ?1 AND id IS NOT ?2 AND expires > ?3",
                params![owner.as_bytes(), keep.map(|id| id.to_string()), now],
            )?;
            Ok(ended as u64)
        })
        .await
    }

    fn set_clock(&self, clock: Clock) {
        let _ = self.clock.set(clock);
    }
}

fn find(db: &Transaction<'_>, id: RecordId, now: i64) -> rusqlite::Result<Option<Record>> {
    db.prepare_cached("SELECT id, version, expires, payload FROM sessions WHERE id = ?1 AND expires > ?2")?
        .query_row(params![id.to_string(), now], |row| record(row, now))
        .optional()
}

fn record(row: &Row<'_>, now: i64) -> rusqlite::Result<Record> {
    let id = row.get_ref(0)?.as_str()?.parse();
    Ok(Record {
        id: id.map_err(|error: Error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into()))?,
        version: row.get(1)?,
        ttl: Duration::from_millis(row.get::<_, i64>(2)?.saturating_sub(now).unsigned_abs()),
        payload: row.get::<_, Vec<u8>>(3)?.into(),
    })
}

fn end(now: i64, ttl: Duration) -> i64 {
    now.saturating_add(millis(ttl))
}

/// Rounded down: what is promised is that a session ends no later.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

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
