//! The scan: all records of the namespace, by `SCAN` over its Redis keys.

use std::{future::poll_fn, str::FromStr, sync::LazyLock, task::Poll, time::Instant};

use redis::{Cmd, Pipeline, Value};

use super::{
    backend::RedisBackend,
    failure::{Failure, FailureKind, NO_CLUSTER},
    keys::Holds,
    list::{FIELDS, readable, scanned, stored, text},
    operation::Operation,
    scripts,
    slots::Slots,
    source::Source,
    time::time_of,
};
use crate::{
    backend::{
        Result,
        scan::{Count, Cursor, Page},
    },
    error::{Error, ErrorKind},
    random::{mix, random_version},
    record::{Record, id::Owner},
};

/// The position of a scan, which a [`Cursor`] encodes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Position {
    /// The server that is being scanned. The servers of a Cluster are scanned one after the other.
    server: usize,
    /// Its cursor.
    cursor: u64,
    /// Identifies the [connection](began_over) or the slots of a Cluster that the scan began with.
    over: u64,
}

/// How much of each record is read.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Whole,
    /// Only the heads of records without an owner. In an owner's hash, they cannot be read without the rest.
    Heads,
}

/// The Redis keys that one step of a scan found.
struct Step {
    /// The next cursor of the server. 0 after the last step.
    cursor: u64,
    keys: Vec<(String, Holds)>,
    /// Whether another server of the Cluster answered.
    is_elsewhere: bool,
}

impl RedisBackend {
    pub(super) async fn scan_from(&self, after: Option<Cursor>, most: usize) -> Result<Page> {
        self.page(after, most, Part::Whole).await
    }

    pub(super) async fn count_all(&self) -> Result<Count> {
        let (mut count, mut after) = (Count::default(), None);
        loop {
            let page = self.page(after, COUNTED_AT_ONCE, Part::Heads).await?;
            page.records.iter().for_each(|record| count.add(record.id));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(count),
            }
        }
    }

    async fn page(&self, after: Option<Cursor>, most: usize, part: Part) -> Result<Page> {
        let slots = self.slots_of_cluster().await?;
        let now_over = |slots: &Option<Slots>| match slots {
            Some(slots) => slots.fingerprint(),
            None => began_over(self.link.generation()),
        };
        let mut place = match after {
            Some(after) => Some(Position::read(&after)?),
            None => slots.as_ref().map(|slots| Position { server: 0, cursor: 0, over: slots.fingerprint() }),
        };
        let servers = slots.as_ref().map_or(1, Slots::servers);
        let mut page = Page::default();
        for _ in 0..STEPS {
            let (server, cursor) = place.map_or((0, 0), |place| (place.server, place.cursor));
            let keys = most.saturating_sub(page.records.len()).clamp(FEWEST, AT_ONCE);
            let step = match &slots {
                None => self.step(cursor, keys).await?,
                Some(slots) if server < servers => self.step_of_cluster(slots, server, cursor, keys).await?,
                // The Cluster had more servers when the cursor was made.
                Some(_) => Step { cursor: 0, keys: Vec::new(), is_elsewhere: true },
            };
            // If the first step is repeated over another connection, the scan has started again.
            let mut next = place.unwrap_or_else(|| Position { server, cursor, over: now_over(&None) });
            if step.is_elsewhere {
                next.over = !slots.as_ref().map_or(0, Slots::fingerprint);
            }
            match slots.is_some() {
                true => self.read_each(step.keys, part, &mut page.records).await?,
                false => self.read_together(&step.keys, part, &mut page.records).await?,
            }
            next.cursor = step.cursor;
            next.server += usize::from(step.cursor == 0);
            place = Some(next);
            if next.server >= servers || page.records.len() >= most {
                break;
            }
        }
        let is_last = place.is_none_or(|place| place.server >= servers);
        // Records that moved since the last step may be missing as well.
        let slots = if is_last && slots.is_some() { self.slots_of_cluster().await? } else { slots };
        page.moved = place.is_some_and(|place| place.over != now_over(&slots));
        page.next = place.filter(|_| !is_last).map(|place| place.cursor());
        Ok(page)
    }

    /// Returns the servers that a scan has to ask, in a Cluster.
    async fn slots_of_cluster(&self) -> std::result::Result<Option<Slots>, Failure> {
        if matches!(self.link.source(), Source::Server(_) | Source::Sentinel(_)) {
            return Ok(None);
        }
        match self.link.send_one(Slots::question(), 0, self.link.patience()).await {
            Ok(answer) => Ok(Some(Slots::read(&answer).ok_or_else(Failure::garbage)?)),
            Err(failure) if failure == NO_CLUSTER && matches!(self.link.source(), Source::Own(_)) => Ok(None),
            Err(failure) => match (self.link.source(), failure.kind) {
                (Source::Own(_), FailureKind::Denied | FailureKind::Config | FailureKind::Refused)
                    if self.is_one_server().await =>
                {
                    Ok(None)
                }
                _ => Err(failure),
            },
        }
    }

    /// Checks whether one command may use Redis keys of many slots, which is not the case in a Cluster.
    async fn is_one_server(&self) -> bool {
        let mut look = Pipeline::with_capacity(64);
        for number in 0..64u8 {
            look.cmd("EXISTS").arg(self.keys.owner(Owner::from([number; 16])));
        }
        self.link.send(&Operation::Many(look), 0, self.link.patience()).await.is_ok()
    }

    /// One `SCAN`, for the self-test.
    pub(super) async fn scan_once(&self, owner: Owner) -> std::result::Result<(), Failure> {
        let key = self.keys.owner(owner);
        match self.slots_of_cluster().await? {
            None => self.one(self.scan_command(0, 1), &key).await.map(drop),
            Some(_) => {
                self.scan_node(&key, 0, 1).await?;
                self.read_one(&key, Holds::Owner(owner), Part::Heads).await.map(drop)
            }
        }
    }

    fn scan_command(&self, cursor: u64, keys: usize) -> Cmd {
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(self.keys.pattern()).arg("COUNT").arg(keys);
        command
    }

    async fn step(&self, cursor: u64, keys: usize) -> Result<Step> {
        let until = Instant::now() + self.deadline;
        let Value::Array(parts) = self.link.send_one(self.scan_command(cursor, keys), 0, until).await? else {
            return Err(Failure::garbage().into());
        };
        let [next, found] = <[Value; 2]>::try_from(parts).map_err(|_| Failure::garbage())?;
        self.found(next, found, false)
    }

    async fn step_of_cluster(&self, slots: &Slots, server: usize, cursor: u64, keys: usize) -> Result<Step> {
        let Some(key) = self.keys.in_slot(|slot| slots.server(slot) == Some(server)) else {
            return Err(Failure::garbage().into());
        };
        let [name, next, found] = self.scan_node(&key, cursor, keys).await?;
        let is_elsewhere = !matches!(name, Value::BulkString(name) if name == slots.name(server));
        self.found(next, found, is_elsewhere)
    }

    /// Scans the server of a Cluster that has the slot of this Redis key. A plain `SCAN` would go to any server.
    async fn scan_node(&self, key: &str, cursor: u64, keys: usize) -> std::result::Result<[Value; 3], Failure> {
        let (cursor, pattern, keys) = (cursor.to_string(), self.keys.pattern(), keys.to_string());
        let args = [cursor.as_bytes().into(), pattern.as_bytes().into(), keys.as_bytes().into()];
        let (_, parts) = self.read_with_time(&scripts::SCAN, key, &args).await?;
        <[Value; 3]>::try_from(parts.collect::<Vec<_>>()).map_err(|_| Failure::garbage())
    }

    /// Keeps only the Redis keys of this namespace.
    fn found(&self, next: Value, found: Value, is_elsewhere: bool) -> Result<Step> {
        let (Ok(cursor), Value::Array(found)) = (text(next)?.parse(), found) else {
            return Err(Failure::garbage().into());
        };
        let keys = found.into_iter().map(text).collect::<Result<Vec<_>>>()?;
        let keys = keys.into_iter().filter_map(|key| self.keys.read(&key).map(|holds| (key, holds))).collect();
        Ok(Step { cursor, keys, is_elsewhere })
    }

    /// Reads Redis keys of one server in one round trip.
    async fn read_together(&self, keys: &[(String, Holds)], part: Part, records: &mut Vec<Record>) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut pipeline = Pipeline::with_capacity(keys.len() + 1);
        for (key, holds) in keys {
            pipeline.add_command(part.command(key, *holds));
        }
        // `TIME` comes last. A record that has ended by that time ended before this answer, and one that is live was live when
        // it was read.
        pipeline.cmd("TIME");
        let sent = Instant::now();
        let answers = match self.link.send(&Operation::Many(pipeline), 0, sent + self.deadline).await {
            // One of the Redis keys is not ours.
            Err(failure) if failure.kind == FailureKind::OtherType => {
                return self.read_each(keys.to_vec(), part, records).await;
            }
            answers => answers?,
        };
        let Value::Array(mut answers) = answers else { return Err(Failure::garbage().into()) };
        let now = answers.pop().as_ref().and_then(time_of).ok_or_else(Failure::garbage)?;
        self.time.learn(0, now, sent, Instant::now());
        for ((key, holds), answer) in keys.iter().zip(answers) {
            self.records(key, *holds, answer, now, records).await?;
        }
        Ok(())
    }

    /// Reads Redis keys with one command each, several at a time, because those of a Cluster are in different slots.
    async fn read_each(&self, keys: Vec<(String, Holds)>, part: Part, records: &mut Vec<Record>) -> Result<()> {
        for some in keys.chunks(AT_A_TIME) {
            let reading = some.iter().map(|(key, holds)| self.read_one(key, *holds, part)).collect();
            for ((key, holds), answer) in some.iter().zip(all(reading).await) {
                if let Some((now, answer)) = answer? {
                    self.records(key, *holds, answer, now, records).await?;
                }
            }
        }
        Ok(())
    }

    /// Reads one Redis key together with the server's time. Returns `None` if it has another type.
    async fn read_one(
        &self,
        key: &str,
        holds: Holds,
        part: Part,
    ) -> std::result::Result<Option<(i64, Value)>, Failure> {
        let (fields, bytes) = match holds {
            Holds::Owner(_) => (FIELDS.to_string(), ""),
            Holds::Anonymous(_) => (String::new(), part.bytes()),
        };
        let args = [fields.as_bytes().into(), bytes.as_bytes().into()];
        let (now, mut parts) = self.read_with_time(&scripts::PAGE, key, &args).await?;
        Ok(parts.next().map(|answer| (now, answer)))
    }

    /// Adds the records of a Redis key that are live at `now`, the server's time when it was read.
    async fn records(
        &self,
        key: &str,
        holds: Holds,
        answer: Value,
        mut now: i64,
        records: &mut Vec<Record>,
    ) -> Result<()> {
        let slot = self.slot(key);
        let found = match holds {
            Holds::Owner(owner) => match scanned(answer)? {
                Some(found) => stored(owner, found).collect(),
                None => {
                    let found = self.fields(key).await?;
                    (now, _) = self.time_and_clears(key).await?;
                    stored(owner, found).collect()
                }
            },
            Holds::Anonymous(id) => match &answer {
                Value::BulkString(value) if value.is_empty() => Vec::new(),
                _ => readable(id, answer, Value::Nil).map(|stored| (id, stored)).into_iter().collect(),
            },
        };
        // What is shown is by the same estimate as elsewhere, so that it never rises.
        let shown = self.time.at_most(slot, Instant::now());
        records.extend(
            found.into_iter().filter(|(_, stored)| stored.ends > now).map(|(id, stored)| stored.record(id, shown)),
        );
        Ok(())
    }
}

impl Part {
    fn command(self, key: &str, holds: Holds) -> Cmd {
        let mut command;
        match holds {
            Holds::Owner(_) => {
                command = redis::cmd("HSCAN");
                command.arg(key).arg(0).arg("COUNT").arg(FIELDS);
            }
            Holds::Anonymous(_) => {
                command = redis::cmd("GETRANGE");
                command.arg(key).arg(0).arg(self.bytes());
            }
        }
        command
    }

    /// The last byte to read of a record without an owner.
    fn bytes(self) -> &'static str {
        match self {
            Self::Whole => "-1",
            // The head, and eight older versions.
            Self::Heads => "97",
        }
    }
}

impl Position {
    fn cursor(self) -> Cursor {
        Cursor::new(format!("{} {} {}", self.server, self.cursor, self.over))
    }

    fn read(cursor: &Cursor) -> Result<Self> {
        fn number<T: FromStr>(text: Option<&str>) -> Option<T> {
            text?.parse().ok()
        }
        let mut parts = std::str::from_utf8(cursor.as_bytes()).unwrap_or_default().split(' ');
        let place = (number(parts.next()), number(parts.next()), number(parts.next()), parts.next());
        match place {
            (Some(server), Some(cursor), Some(over), None) => Ok(Self { server, cursor, over }),
            _ => Err(Error::new(ErrorKind::Data, "the cursor is not from a scan of Redis").into()),
        }
    }
}

/// Identifies a connection of this process. A cursor is not valid for a restarted server or for another one. In both cases the
/// connection is a different one.
fn began_over(generation: u64) -> u64 {
    static PROCESS: LazyLock<i64> = LazyLock::new(random_version);
    mix(PROCESS.cast_unsigned() ^ generation)
}

/// Runs several futures at the same time, and returns their outputs.
async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        let mut is_done = true;
        for (future, output) in &mut running {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(done) => *output = Some(done),
                    Poll::Pending => is_done = false,
                }
            }
        }
        if is_done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}

/// How many Redis keys a `SCAN` visits, at least and at most. One key may hold a hundred sessions of a user.
const FEWEST: usize = 10;
const AT_ONCE: usize = 100;
/// After this many steps a page is returned, even if it has few records.
const STEPS: usize = 32;
/// How many Redis keys of a Cluster are read at a time.
const AT_A_TIME: usize = 32;
const COUNTED_AT_ONCE: usize = 1000;
