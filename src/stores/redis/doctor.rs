//! What an operator should know about the server.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use redis::Value;

use super::{
    backend::RedisSessions,
    connection::Link,
    failure::{Failure, Kind},
    source::Source,
    time::time_of,
};
use crate::clock::millis;

/// One thing to know about a Redis server. It prints as a line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What it is about, in a word: `version`, `memory`, `persistence`, …
    pub subject: &'static str,
    /// What was found, and what to do about it.
    pub message: String,
}

/// How much a [`Finding`] matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// As it should be, or good to know.
    Fine,
    /// Sessions can be lost in ways that a setting would prevent.
    Advice,
    /// Sessions do not work, or will not.
    Problem,
}

impl RedisSessions {
    /// Looks at the server, and says what an operator should know: version, eviction, persistence, replicas, latency, clock.
    ///
    /// It reads only. What a managed server does not tell is left out; that is no error, nor is a server that is away: that is
    /// a finding.
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
        examine(self.backend().link()).await
    }
}

/// Whether the server can hold sessions at all.
pub(super) async fn admit(link: &Link) -> Result<(), Failure> {
    let infos = match infos(link).await {
        // Too few rights to say who it is: then it may well do.
        Err(failure) if failure.kind == Kind::Denied && failure.to_string().ends_with("NOPERM") => return Ok(()),
        infos => infos?,
    };
    for info in infos {
        if info.version().is_some_and(|version| version < OLDEST) {
            return Err(Failure::new(Kind::Config, "the Redis server is older than 6.2"));
        }
        if matches!(link.source(), Source::Server(_)) && info.get("cluster_enabled") == "1" {
            return Err(Failure::new(
                Kind::Config,
                "the Redis server is a node of a Cluster: it takes `.cluster([…])`",
            ));
        }
    }
    Ok(())
}

async fn examine(link: &Link) -> Vec<Finding> {
    let mut findings = Vec::new();
    match infos(link).await {
        Ok(infos) if infos.is_empty() => findings.push(fine("server", "it does not say what it is")),
        Ok(infos) => infos.iter().for_each(|info| look_at(info, &mut findings)),
        Err(failure) if failure.kind == Kind::Denied => {
            findings.push(fine("server", "it may not be asked what it is (INFO): little can be said of it"));
        }
        Err(failure) => return vec![finding(Level::Problem, "server", failure.to_string())],
    }
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

fn look_at(info: &Info, findings: &mut Vec<Finding>) {
    let name = if info.get("server_name") == "valkey" { "Valkey" } else { "Redis" };
    let version = match info.get("valkey_version") {
        "" => info.get("redis_version"),
        version => version,
    };
    match info.version() {
        Some(version) if version < OLDEST => {
            findings.push(finding(Level::Problem, "version", "Redis must be 6.2 at least"));
        }
        _ => findings.push(fine("version", format!("{name} {version}"))),
    }
    if info.get("role") == "slave" {
        if info.get("cluster_enabled") != "1" {
            findings.push(finding(Level::Problem, "role", "this server is a replica: nothing can be written to it"));
        }
        return;
    }
    match (info.get("maxmemory"), info.get("maxmemory_policy")) {
        ("" | "0", _) => findings.push(finding(
            Level::Advice,
            "memory",
            "there is no limit (maxmemory): when the machine has no more, the server is gone, with all sessions",
        )),
        (_, policy @ ("noeviction" | "volatile-ttl")) => findings.push(fine("memory", format!("limited, {policy}"))),
        (_, policy) => findings.push(finding(
            Level::Advice,
            "memory",
            format!("maxmemory-policy {policy} may evict the index of a user who is signed in, which ends all of that user's \
                sessions: use volatile-ttl, or noeviction"),
        )),
    }
    match info.get("aof_enabled") {
        "1" if info.get("aof_last_write_status") == "err" => {
            findings.push(finding(Level::Problem, "persistence", "the append-only file cannot be written"));
        }
        "0" => findings.push(finding(
            Level::Advice,
            "persistence",
            "there is no append-only file: a restart loses, or takes back, what changed since the last snapshot, logouts \
                included. Use appendonly yes",
        )),
        _ => {}
    }
    match info.get("connected_slaves") {
        "" => {}
        "0" => findings.push(fine("replicas", "none: when this server is away, so are the sessions")),
        replicas => findings.push(fine("replicas", format!("{replicas} connected"))),
    }
}

async fn look_at_config(link: &Link, findings: &mut Vec<Finding>) {
    let Ok(fsync) = config(link, "appendfsync").await else {
        findings
            .push(fine("settings", "it may not be asked for them (CONFIG): look at them where the server is managed"));
        return;
    };
    let append = config(link, "appendonly").await.unwrap_or_default();
    if append == "yes" {
        let loss = match fsync.as_str() {
            "always" => "nothing that was acknowledged",
            "everysec" => "about the last second",
            _ => "as much as the system had not written, often half a minute",
        };
        findings.push(fine("persistence", format!("appendfsync {fsync}: a crash of the machine loses {loss}")));
    }
    let replicated = matches!(link.source(), Source::Sentinel(_) | Source::Cluster(_));
    if replicated && config(link, "min-replicas-to-write").await.is_ok_and(|replicas| replicas == "0") {
        findings.push(finding(
            Level::Advice,
            "replicas",
            "a master that was cut off goes on taking writes, which a failover then drops: use min-replicas-to-write 1 and \
                min-replicas-max-lag 2",
        ));
    }
    if config(link, "cluster-require-full-coverage").await.is_ok_and(|full| full == "yes")
        && matches!(link.source(), Source::Cluster(_))
    {
        findings.push(finding(
            Level::Advice,
            "cluster",
            "while one shard is away, all are: use cluster-require-full-coverage no",
        ));
    }
}

async fn look_at_time(link: &Link, findings: &mut Vec<Finding>) {
    let mut trips = Vec::new();
    let mut ahead = None;
    for _ in 0..TRIPS {
        let sent = Instant::now();
        let Ok(answer) = link.send_one(redis::cmd("TIME"), 0, sent + PATIENCE).await else { return };
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
            format!("{trip:.1?} for one trip, and each request makes one or two"),
        ));
    } else {
        findings.push(fine("latency", format!("{trip:.1?} for one trip")));
    }
    match ahead {
        Some(ahead) if ahead.unsigned_abs() > 1000 => findings.push(finding(
            Level::Advice,
            "clock",
            format!(
                "{:.1} s {} ours: all machines should follow one time server",
                ahead.unsigned_abs() as f64 / 1000.0,
                if ahead > 0 { "ahead of" } else { "behind" }
            ),
        )),
        _ => findings.push(fine("clock", "as ours")),
    }
}

/// What `INFO` says of one server.
struct Info(HashMap<String, String>);

impl Info {
    fn parse(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        Self(fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Empty if it is not told.
    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Valkey says here which Redis it is compatible with.
    fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.get("redis_version").split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// One for each server: in a Cluster all are asked.
async fn infos(link: &Link) -> Result<Vec<Info>, Failure> {
    let answer = link.send_one(redis::cmd("INFO"), 0, Instant::now() + PATIENCE).await?;
    let mut texts = Vec::new();
    collect_texts(&answer, &mut texts);
    Ok(texts.iter().map(|text| Info::parse(text)).filter(|info| info.version().is_some()).collect())
}

async fn config(link: &Link, name: &str) -> Result<String, Failure> {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg(name);
    let answer = link.send_one(command, 0, Instant::now() + PATIENCE).await?;
    let mut texts = Vec::new();
    collect_texts(&answer, &mut texts);
    let value = texts.iter().skip_while(|text| *text != name).nth(1);
    value.cloned().ok_or_else(Failure::garbage)
}

/// All strings of an answer, in their order. How they are nested depends on protocol and topology.
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
const PATIENCE: Duration = Duration::from_secs(2);
const TRIPS: usize = 5;
