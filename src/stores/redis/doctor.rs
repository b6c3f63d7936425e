//! The doctor: checks of the server, its settings and its clock, for operators.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use redis::Value;

use super::{
    backend::{RedisBackend, RedisSessions},
    connection::Link,
    failure::{Failure, FailureKind, OF_CLUSTER, SENTINEL},
    selftest,
    source::Source,
    time::time_of,
};
use crate::clock::millis;

/// One result of [`doctor`](crate::Sessions::doctor). Its `Display` is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The severity.
    pub level: Level,
    /// The topic, as one word: `version`, `memory`, `persistence`, …
    pub subject: &'static str,
    /// What was found, and what to do about it.
    pub message: String,
}

/// The severity of a [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// No action is needed.
    Fine,
    /// Changing a setting would prevent a loss of sessions.
    Advice,
    /// Sessions do not work, or will stop working.
    Problem,
}

impl RedisSessions {
    /// Checks the server and returns findings for the operator: version, eviction, persistence, replicas, latency, clock, and
    /// whether every operation works.
    ///
    /// It runs every operation once on each server, on separate Redis keys that it removes afterwards. Settings that a managed
    /// server does not reveal are left out. If a server cannot be reached, that is a finding and not an error.
    ///
    /// ```no_run
    /// # use jam_session::RedisSessions;
    /// # async fn doc() -> Result<(), jam_session::Error> {
    /// let sessions = RedisSessions::connect("redis://localhost").await?;
    /// for finding in sessions.doctor().await {
    ///     println!("{finding}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn doctor(&self) -> Vec<Finding> {
        examine(self.backend()).await
    }
}

/// Checks whether the server can hold sessions at all.
pub(super) async fn admit(backend: &RedisBackend) -> Result<(), Failure> {
    let link = backend.link();
    let infos = match infos(link).await {
        // Without the right to run `INFO`, the only way is to try.
        Err(failure) if failure.kind == FailureKind::Denied && failure.to_string().ends_with("NOPERM") => {
            return match link.source() {
                Source::Server(_) => selftest::all_slots(backend).await,
                _ => Ok(()),
            };
        }
        infos => infos?,
    };
    for info in infos {
        if info.get("redis_mode") == "sentinel" {
            return Err(SENTINEL);
        }
        if info.version().is_some_and(|version| version < OLDEST) {
            return Err(Failure::new(
                FailureKind::Config,
                "the Redis server is older than 6.2, the oldest version that is supported",
            ));
        }
        if matches!(link.source(), Source::Server(_)) && info.get("cluster_enabled") == "1" {
            return Err(OF_CLUSTER);
        }
    }
    Ok(())
}

async fn examine(backend: &RedisBackend) -> Vec<Finding> {
    let link = backend.link();
    let mut findings = Vec::new();
    match infos(link).await {
        Ok(infos) if infos.is_empty() => findings.push(fine("server", "it does not report its version")),
        Ok(infos) => infos.iter().for_each(|info| look_at(info, &mut findings)),
        Err(failure) if failure.kind == FailureKind::Denied => {
            findings.push(fine("server", "no right to run INFO, so version, memory and persistence are unknown"));
        }
        Err(failure) => return vec![finding(Level::Problem, "server", failure.to_string())],
    }
    try_all(backend, &mut findings).await;
    look_at_config(link, &mut findings).await;
    look_at_time(link, &mut findings).await;
    let mut said = Vec::new();
    for finding in findings {
        if !said.contains(&finding) {
            said.push(finding);
        }
    }
    said
}

/// Runs every backend method once on each server.
async fn try_all(backend: &RedisBackend, findings: &mut Vec<Finding>) {
    let Ok(owners) = selftest::owners(backend).await else { return };
    let before = findings.len();
    for owner in owners {
        for failure in selftest::run(backend, owner).await.unwrap_or_default() {
            let subject = if failure.kind == FailureKind::Denied { "rights" } else { "self-test" };
            findings.push(finding(Level::Problem, subject, failure.to_string()));
        }
    }
    if findings.len() == before {
        findings.push(fine("self-test", "every operation works"));
    }
}

fn look_at(info: &Info, findings: &mut Vec<Finding>) {
    let name = if info.get("server_name") == "valkey" { "Valkey" } else { "Redis" };
    let version = match info.get("valkey_version") {
        "" => info.get("redis_version"),
        version => version,
    };
    match info.version() {
        Some(version) if version < OLDEST => {
            findings.push(finding(Level::Problem, "version", "the server is too old: Redis 6.2 or later is required"));
        }
        _ => findings.push(fine("version", format!("{name} {version}"))),
    }
    if info.get("role") == "slave" {
        if info.get("cluster_enabled") != "1" {
            findings.push(finding(
                Level::Problem,
                "role",
                "this server is a replica and refuses writes: connect to its master",
            ));
        }
        return;
    }
    match (info.get("maxmemory"), info.get("maxmemory_policy")) {
        ("" | "0", _) => findings.push(finding(
            Level::Advice,
            "memory",
            "there is no limit: if the machine runs out of memory, the server is killed and all sessions are lost. Set maxmemory",
        )),
        (_, policy @ ("noeviction" | "volatile-ttl")) => findings.push(fine("memory", format!("limited, {policy}"))),
        (_, policy) => findings.push(finding(
            Level::Advice,
            "memory",
            format!("maxmemory-policy {policy} may evict the key of a user who is signed in, which ends all sessions of that \
                user. Use volatile-ttl, which evicts visitors first, or noeviction"),
        )),
    }
    match info.get("aof_enabled") {
        "1" if info.get("aof_last_write_status") == "err" => {
            findings.push(finding(
                Level::Problem,
                "persistence",
                "the append-only file cannot be written: check the server's log and disk",
            ));
        }
        _ if info.get("rdb_last_bgsave_status") == "err" => findings.push(finding(
            Level::Problem,
            "persistence",
            "the last snapshot failed, and the server refuses writes until one succeeds: check its log and disk",
        )),
        "0" => findings.push(finding(
            Level::Advice,
            "persistence",
            "there is no append-only file: a crash undoes all changes since the last snapshot, including logouts. Set \
                appendonly yes",
        )),
        _ => {}
    }
    match info.get("connected_slaves") {
        "" => {}
        "0" => findings.push(fine("replicas", "none: no session can be read while this server is down")),
        replicas => findings.push(fine("replicas", format!("{replicas} connected"))),
    }
}

async fn look_at_config(link: &Link, findings: &mut Vec<Finding>) {
    let Ok(fsync) = config(link, "appendfsync").await else {
        findings.push(fine("settings", "no right to run CONFIG GET: check the settings where the server is managed"));
        return;
    };
    let append = config(link, "appendonly").await.unwrap_or_default();
    if append == "yes" {
        let loss = match fsync.as_str() {
            "always" => "nothing that was acknowledged",
            "everysec" => "about the last second",
            _ => "what the operating system had not written yet, often half a minute",
        };
        findings.push(fine("persistence", format!("appendfsync {fsync}: a crash of the machine loses {loss}")));
    }
    let replicated = matches!(link.source(), Source::Sentinel(_) | Source::Cluster(_));
    if replicated && config(link, "min-replicas-to-write").await.is_ok_and(|replicas| replicas == "0") {
        findings.push(finding(
            Level::Advice,
            "replicas",
            "a master that is cut off keeps accepting writes, which a failover then loses. Set min-replicas-to-write 1 and \
                min-replicas-max-lag 2",
        ));
    }
    if config(link, "cluster-require-full-coverage").await.is_ok_and(|full| full == "yes")
        && matches!(link.source(), Source::Cluster(_))
    {
        findings.push(finding(
            Level::Advice,
            "cluster",
            "while one shard is down, all others refuse requests, too. Set cluster-require-full-coverage no",
        ));
    }
}

async fn look_at_time(link: &Link, findings: &mut Vec<Finding>) {
    let mut trips = Vec::new();
    let mut ahead = None;
    for _ in 0..TRIPS {
        let sent = Instant::now();
        let Ok(answer) = link.send_one(redis::cmd("TIME"), 0, link.patience()).await else { return };
        trips.push(sent.elapsed());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map(millis).unwrap_or_default();
        ahead = time_of(&answer).map(|there| there.saturating_sub_unsigned(now));
    }
    trips.sort();
    let trip = trips[TRIPS / 2];
    if trip > Duration::from_millis(20) {
        findings.push(finding(
            Level::Advice,
            "latency",
            format!("{trip:.1?} per round trip, and each request makes one or two: move the server closer"),
        ));
    } else {
        findings.push(fine("latency", format!("{trip:.1?} per round trip")));
    }
    match ahead {
        Some(ahead) if ahead.unsigned_abs() > 1000 => findings.push(finding(
            Level::Advice,
            "clock",
            format!(
                "{:.1} s {} ours: synchronize all machines with the same time server",
                ahead.unsigned_abs() as f64 / 1000.0,
                if ahead > 0 { "ahead of" } else { "behind" }
            ),
        )),
        _ => findings.push(fine("clock", "in sync with ours")),
    }
}

/// The answer of `INFO` from one server.
struct Info(HashMap<String, String>);

impl Info {
    fn parse(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        Self(fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Empty if the field is missing.
    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// For Valkey, this is the Redis version that it is compatible with.
    fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.get("redis_version").split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// Runs `INFO`, in a Cluster on every server.
async fn infos(link: &Link) -> Result<Vec<Info>, Failure> {
    let answer = link.send_one(redis::cmd("INFO"), 0, link.patience()).await?;
    let mut texts = Vec::new();
    collect_texts(&answer, &mut texts);
    Ok(texts.iter().map(|text| Info::parse(text)).filter(|info| info.version().is_some()).collect())
}

async fn config(link: &Link, name: &str) -> Result<String, Failure> {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg(name);
    let answer = link.send_one(command, 0, link.patience()).await?;
    let mut texts = Vec::new();
    collect_texts(&answer, &mut texts);
    let value = texts.iter().skip_while(|text| *text != name).nth(1);
    value.cloned().ok_or_else(Failure::garbage)
}

/// Collects all strings of an answer in order. Their nesting depends on the protocol and the topology.
fn collect_texts(answer: &Value, texts: &mut Vec<String>) {
    match answer {
        Value::BulkString(bytes) => texts.push(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => texts.push(text.clone()),
        Value::Array(values) | Value::Set(values) => values.iter().for_each(|value| collect_texts(value, texts)),
        Value::Map(pairs) => {
            for (key, value) in pairs {
                collect_texts(key, texts);
                collect_texts(value, texts);
            }
        }
        _ => {}
    }
}

fn fine(subject: &'static str, message: impl Into<String>) -> Finding {
    finding(Level::Fine, subject, message)
}

fn finding(level: Level, subject: &'static str, message: impl Into<String>) -> Finding {
    Finding { level, subject, message: message.into() }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.level, self.subject, self.message)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fine => "fine",
            Self::Advice => "advice",
            Self::Problem => "problem",
        })
    }
}

const OLDEST: (u32, u32) = (6, 2);
const TRIPS: usize = 5;
