//! The self-test: runs every backend method once, on separate Redis keys.

use std::time::Duration;

use bytes::Bytes;
use redis::Pipeline;

use super::{
    backend::RedisBackend,
    failure::{Failure, FailureKind, OF_CLUSTER, SOME_RIGHT},
    keys::slot,
    operation::Operation,
};
use crate::{
    backend::{
        Backend, Result,
        clear::Clear,
        terms::{Since, Terms},
    },
    error::Error,
    random::{random, random_version},
    record::{
        Record,
        id::{Owner, RecordId, Sid},
    },
};

/// Finds an owner for each server that holds sessions: one server, or the masters of a Cluster.
pub(super) async fn owners(backend: &RedisBackend) -> std::result::Result<Vec<Owner>, Error> {
    let Some(slots) = backend.link().slots().await else {
        return Ok(vec![owner()?]);
    };
    let mut owners = vec![None; slots.servers()];
    // Slots are spread about evenly, so a server without an owner after this has hardly any slots.
    for _ in 0..64 * slots.servers() {
        let owner = owner()?;
        if let Some(server) = slots.server(slot(&backend.keys().owner(owner))) {
            owners[server] = Some(owner);
        }
    }
    Ok(owners.into_iter().flatten().collect())
}

/// Queries Redis keys of many owners. If the server is a node of a Cluster, some of them are on other nodes.
pub(super) async fn all_slots(backend: &RedisBackend) -> std::result::Result<(), Failure> {
    let mut look = Pipeline::with_capacity(64);
    for _ in 0..64 {
        let owner = owner().map_err(|_| Failure::garbage())?;
        look.cmd("EXISTS").arg(backend.keys().owner(owner));
    }
    match backend.link().send(&Operation::Many(look), 0, backend.link().patience()).await {
        Err(failure) if failure.kind == FailureKind::Moved => Err(OF_CLUSTER),
        // The self-test reports other failures in more detail.
        _ => Ok(()),
    }
}

/// Makes up an owner that no session has.
pub(super) fn owner() -> std::result::Result<Owner, Error> {
    random().map(Owner::from_bytes)
}

/// Runs every script and every read once, and returns each failure once. If the server cannot be reached, it stops at once.
///
/// The records belong to an owner that no session has, and are removed at the end.
pub(super) async fn run(backend: &RedisBackend, owner: Owner) -> std::result::Result<Vec<Failure>, Error> {
    let sid = Sid::from_random(*owner.as_bytes())?;
    let mut failures = Failures(Vec::new());
    // `None` means that the server cannot be reached. The failures include that.
    let _ = failures.collect(backend, owner, sid).await;
    if failures.0.contains(&SOME_RIGHT) {
        let _ = failures.name_rights(backend, owner).await;
    }
    Ok(failures.0)
}

struct Failures(Vec<Failure>);

impl Failures {
    async fn collect(&mut self, backend: &RedisBackend, owner: Owner, sid: Sid) -> Option<()> {
        for id in [RecordId::new(Some(owner), sid), RecordId::new(None, sid)] {
            let record = |version| Record::new(id, version, TTL, Bytes::from_static(b"self-test"));
            let terms = Terms { since: Some(Since::Age(Duration::ZERO)), ..Terms::default() };
            self.note(backend.create(record(1), terms).await)?;
            self.note(backend.load(id).await)?;
            self.note(backend.update(1, record(2), false).await)?;
            // A conflict takes another path through the script.
            self.note(backend.update(1, record(3), false).await)?;
            self.note(backend.touch(id, 2, TTL).await)?;
            self.note(backend.list(owner).await)?;
            self.note(backend.delete(id).await)?;
        }
        self.note(backend.mark(owner).await)?;
        self.note(backend.clear(owner, Clear { name: random_version(), by: None }).await)?;
        self.note(backend.run_by_text(owner).await.map_err(Into::into))?;
        // Commands that a script runs only if there are many records.
        self.commands(backend, owner, &["HRANDFIELD KEY", "HSTRLEN KEY x"]).await?;
        self.note(backend.scan_once(owner).await.map_err(Into::into))?;
        self.note(backend.remove(owner, sid).await.map_err(Into::into))
    }

    /// Runs the commands of the scripts one by one, on a Redis key that does not exist.
    async fn name_rights(&mut self, backend: &RedisBackend, owner: Owner) -> Option<()> {
        self.commands(backend, owner, &COMMANDS).await?;
        if backend.link().slots().await.is_some() {
            self.commands(backend, owner, &["CLUSTER MYID"]).await?;
        }
        if self.0.iter().any(|failure| failure.kind == FailureKind::Denied && *failure != SOME_RIGHT) {
            self.0.retain(|failure| *failure != SOME_RIGHT);
        }
        Some(())
    }

    async fn commands(&mut self, backend: &RedisBackend, owner: Owner, commands: &[&str]) -> Option<()> {
        let key = backend.keys().owner(owner);
        for line in commands {
            let mut words = line.split(' ');
            let mut command = redis::cmd(words.next()?);
            for word in words {
                command.arg(if word == "KEY" { &key } else { word });
            }
            let answer = backend.link().send_one(command, slot(&key), backend.link().patience()).await;
            self.note(answer.map_err(Into::into))?;
        }
        Some(())
    }

    fn note<T>(&mut self, result: Result<T>) -> Option<()> {
        let Err(error) = result else { return Some(()) };
        let failure = error.downcast::<Failure>().map_or_else(|_| Failure::garbage(), |failure| *failure);
        let goes_on = !matches!(failure.kind, FailureKind::Lost | FailureKind::Silent);
        if !self.0.contains(&failure) {
            self.0.push(failure);
        }
        goes_on.then_some(())
    }
}

/// All commands of the scripts. They change nothing, or only what the last of them removes.
const COMMANDS: [&str; 21] = [
    "EXISTS KEY",
    "GET KEY",
    "GETRANGE KEY 0 0",
    "PTTL KEY",
    "SCAN 0 COUNT 1",
    "SET KEY x XX",
    // With an empty value.
    "SETRANGE KEY 0 ",
    "STRLEN KEY",
    "TIME",
    "TYPE KEY",
    "HDEL KEY x",
    "HGET KEY x",
    "HKEYS KEY",
    "HLEN KEY",
    "HMGET KEY x",
    "HRANDFIELD KEY",
    "HSCAN KEY 0",
    "HSTRLEN KEY x",
    "HSET KEY x x",
    "PEXPIRE KEY 5000",
    "UNLINK KEY",
];
/// Short, in case the process dies before it removes the Redis keys.
const TTL: Duration = Duration::from_secs(5);
