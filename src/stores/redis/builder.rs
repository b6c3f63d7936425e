//! The builder of [`RedisSessions`]: which server to use, its options, and connecting.

use std::{fmt, time::Duration};

use redis::aio::ConnectionLike;

use super::{
    backend::{RedisBackend, RedisSessions},
    connection::Link,
    doctor,
    failure::{Failure, FailureKind},
    keys::Keyspace,
    selftest,
    source::Source,
};
use crate::{
    error::{Error, ErrorKind},
    log,
    record::id::Owner,
    sessions::{Sessions, builder::Builder},
};

/// The Redis server to connect to, as part of the [`Builder`] of [`RedisSessions`].
pub struct RedisServer {
    uri: String,
    source: Result<Source, Failure>,
    lazy: bool,
    deadline: Duration,
}

impl RedisSessions {
    /// Connects to one Redis server, with every option at its default.
    ///
    /// The URI is `redis://[[user]:password@]host[:port][/database]`, `rediss://…` for TLS, or
    /// `unix:///path/to.sock[?db=0&pass=…]`.
    ///
    /// # Errors
    /// The errors of [`Builder::connect`].
    pub async fn connect(uri: impl Into<String>) -> Result<Self, Error> {
        Self::builder(uri).connect().await
    }

    /// Returns a builder. Nothing is checked until [`connect`](Builder::connect).
    pub fn builder(uri: impl Into<String>) -> Builder<RedisServer> {
        let uri = uri.into();
        let source = Source::server(&uri);
        Builder::new(RedisServer { uri, source, lazy: false, deadline: Duration::from_millis(750) })
    }
}

impl Builder<RedisServer> {
    /// Finds the master with this name through Sentinel, and follows failovers. Default: one server, which the builder's URI
    /// names.
    ///
    /// Pass the URIs of the sentinels. The builder's own URI supplies the scheme, credentials and database for the master; its
    /// host is not used. Of `sentinel`, [`cluster`](Self::cluster) and [`connection`](Self::connection), the last call counts.
    ///
    /// ```no_run
    /// # async fn doc() -> Result<(), jam_session::Error> {
    /// use jam_session::RedisSessions;
    ///
    /// let sessions = RedisSessions::builder("redis://:password@master/0")
    ///     .sentinel(["redis://10.0.0.1:26379", "redis://10.0.0.2:26379", "redis://10.0.0.3:26379"], "mymaster")
    ///     .connect()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn sentinel<S: Into<String>>(
        mut self,
        sentinels: impl IntoIterator<Item = S>,
        name: impl Into<String>,
    ) -> Self {
        let sentinels: Vec<String> = sentinels.into_iter().map(Into::into).collect();
        self.from.source = Source::sentinel(&self.from.uri, &sentinels, name.into());
        self
    }

    /// Connects to a Redis Cluster. The builder's URI and these URIs name some of its nodes. Default: one server.
    ///
    /// One reachable node is enough to find the others. Name several, in case one is down.
    ///
    /// ```no_run
    /// # async fn doc() -> Result<(), jam_session::Error> {
    /// use jam_session::RedisSessions;
    ///
    /// let sessions = RedisSessions::builder("redis://10.0.0.1:6379")
    ///     .cluster(["redis://10.0.0.2:6379", "redis://10.0.0.3:6379"])
    ///     .connect()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn cluster<S: Into<String>>(mut self, nodes: impl IntoIterator<Item = S>) -> Self {
        let first = self.from.uri.clone();
        let nodes: Vec<String> = std::iter::once(first).chain(nodes.into_iter().map(Into::into)).collect();
        self.from.source = Source::cluster(&nodes);
        self
    }

    /// Uses an existing connection of the application instead of the URI. Default: connections that this crate opens.
    ///
    /// Any asynchronous connection type of [`redis`] works, and so does any pool that implements [`ConnectionLike`], provided
    /// that it:
    ///
    /// * reconnects by itself, as `ConnectionManager` and `ClusterConnection` do, because it is never replaced,
    /// * never reads from replicas,
    /// * does not cache.
    pub fn connection(mut self, connection: impl ConnectionLike + Clone + Send + Sync + 'static) -> Self {
        self.from.source = Ok(Source::Own(Box::new(connection)));
        self
    }

    /// Lets [`connect`](Self::connect) succeed while no server can be reached. Default: `false`.
    ///
    /// Until a server can be reached, calls fail with [`ErrorKind::Unavailable`].
    pub fn lazy(mut self, lazy: bool) -> Self {
        self.from.lazy = lazy;
        self
    }

    /// Sets the time limit of one operation, including reconnecting and a retry. Default: 750 ms.
    ///
    /// It must be between 50 ms and 4 s.
    ///
    /// An attempt to connect may take two thirds of this time, or half a second if that is longer. An operation that waits for
    /// it still fails at its own time limit; the attempt then continues in the background.
    ///
    /// In a Cluster, connecting to one node may take half a second, whatever this time is. An operation is sent again if its
    /// node does not answer within half of this time, or 400 ms if that is longer.
    ///
    /// The server refuses a write that arrives after the deadline. To make this work, its clock is compared with ours whenever
    /// it answers a script.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.from.deadline = deadline;
        self
    }

    /// Connects, and returns the sessions.
    ///
    /// It tries every operation once, on separate Redis keys. If the server refuses some of them for a temporary reason, such
    /// as running out of memory, a warning is logged and `connect` succeeds.
    ///
    /// # Errors
    /// * [`ErrorKind::Config`] if a retry cannot help: an invalid option or URI, wrong credentials, missing rights, a failed
    ///   TLS handshake, a database that does not exist, a server older than Redis 6.2, or a different kind of server than the
    ///   builder specifies. The message names the cause: see [troubleshooting](crate::stores::redis#troubleshooting).
    /// * [`ErrorKind::Unavailable`] if no server can be reached, unless [`lazy`](Self::lazy) is set.
    pub async fn connect(self) -> Result<RedisSessions, Error> {
        let (server, policy, codec) = self.check()?;
        if server.deadline < MIN_DEADLINE || server.deadline > MAX_DEADLINE {
            return Err(Error::new(ErrorKind::Config, "`deadline` must be between 50 ms and 4 s"));
        }
        let source = server.source.map_err(refuse)?;
        let (link, keys) = (Link::new(source, server.deadline), Keyspace::new(&policy.namespace));
        let visitors = policy.default_ttl.unwrap_or(Duration::MAX).min(policy.anonymous_lifetime);
        let backend = RedisBackend::new(link, keys, server.deadline, visitors);
        match greet(&backend, selftest::owner()?).await {
            Ok(()) => {}
            Err(failure) if failure.lasts() => return Err(refuse(failure)),
            Err(failure) if server.lazy => log::warn!(error = %failure, "Redis cannot be reached yet"),
            Err(failure) => return Err(Error::backend("Redis cannot be reached", failure.into())),
        }
        Ok(Sessions::with(backend, policy, codec))
    }
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer").finish_non_exhaustive()
    }
}

/// Checks the server, prepares the first operation, and tries all of them. Temporary refusals are only logged.
async fn greet(backend: &RedisBackend, owner: Owner) -> Result<(), Failure> {
    let link = backend.link();
    link.watch();
    doctor::admit(backend).await?;
    backend.prepare().await;
    let failures = selftest::run(backend, owner).await.map_err(|_| Failure::garbage())?;
    if let Some(failure) = failures.iter().find(|failure| failure.lasts()) {
        return Err(failure.clone());
    }
    for failure in failures {
        match failure.kind {
            FailureKind::Refused | FailureKind::Demoted | FailureKind::Moved => {
                log::warn!(error = %failure, "connected to Redis, but it is refusing operations");
            }
            _ => return Err(failure),
        }
    }
    Ok(())
}

fn refuse(failure: Failure) -> Error {
    Error::new(ErrorKind::Config, failure.to_string())
}

const MIN_DEADLINE: Duration = Duration::from_millis(50);
const MAX_DEADLINE: Duration = Duration::from_secs(4);
