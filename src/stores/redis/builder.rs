//! Which Redis to use, and how the connection is made.

use std::{fmt, time::Duration};

use redis::aio::ConnectionLike;

use super::{
    backend::{RedisBackend, RedisSessions},
    connection::Link,
    doctor,
    failure::{Failure, Kind},
    keys::Keyspace,
    source::Source,
};
use crate::{
    error::{Error, ErrorKind},
    sessions::{Sessions, builder::Builder},
};

/// A Redis to connect to: what a [`Builder`] of [`RedisSessions`] is made from.
pub struct RedisServer {
    uri: String,
    source: Result<Source, Failure>,
    lazy: bool,
    deadline: Duration,
}

impl RedisSessions {
    /// Sessions in one Redis server, with every option at its default: `redis://[[user]:password@]host[:port][/database]`,
    /// `rediss://…` for TLS, or `unix:///path/to.sock[?db=0&pass=…]`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a URI that is none, credentials that the server does not accept, a server that is older than
    /// Redis 6.2 or a node of a Cluster; [`ErrorKind::Unavailable`] if it cannot be reached.
    pub async fn connect(uri: impl Into<String>) -> Result<Self, Error> {
        Self::builder(uri).connect().await
    }

    /// Sessions in Redis, to be set up. Nothing is looked at before [`connect`](Builder::connect).
    pub fn builder(uri: impl Into<String>) -> Builder<RedisServer> {
        let uri = uri.into();
        let source = Source::server(&uri);
        Builder::new(RedisServer { uri, source, lazy: false, deadline: Duration::from_millis(750) })
    }
}

impl Builder<RedisServer> {
    /// Asks these sentinels, given as URIs, which server is the master of that name, and follows them when they make another
    /// one the master.
    ///
    /// The URI of the builder says how to speak to the master: scheme, credentials and database. Its host is not used.
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

    /// Uses a Redis Cluster, of which the URI of the builder and these are nodes. Give all there are: any one that answers is
    /// enough to find the others, but one must.
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

    /// Uses a connection that the application already has, in place of the URI: anything of [`redis`], or a pool behind its
    /// [`ConnectionLike`].
    ///
    /// It must reconnect by itself, as `ConnectionManager` and `ClusterConnection` do: it is not replaced. It must not read
    /// from replicas, nor cache.
    pub fn connection(mut self, connection: impl ConnectionLike + Clone + Send + Sync + 'static) -> Self {
        self.from.source = Ok(Source::Own(Box::new(connection)));
        self
    }

    /// Lets [`connect`](Self::connect) succeed although no server can be reached yet. Until one can, calls fail with
    /// [`ErrorKind::Unavailable`].
    pub fn lazy(mut self, lazy: bool) -> Self {
        self.from.lazy = lazy;
        self
    }

    /// How long one operation may take, with everything it needs: waiting for the connection, making another one, a repeat;
    /// 750 ms unless set, at least 50 ms and at most four seconds.
    ///
    /// What a server does later than that, it refuses to do: its clock and ours are compared with every answer.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.from.deadline = deadline;
        self
    }

    /// Connects, and makes the sessions.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if an option cannot work, the URI is none, the credentials are not accepted, or the server is too
    /// old, in words; [`ErrorKind::Unavailable`] if no server can be reached, unless [`lazy`](Self::lazy).
    pub async fn connect(self) -> Result<RedisSessions, Error> {
        let (server, policy) = self.check()?;
        if server.deadline < MIN_DEADLINE || server.deadline > MAX_DEADLINE {
            return Err(Error::new(ErrorKind::Config, "the deadline of an operation must be between 50 ms and 4 s"));
        }
        let source = server.source.map_err(refuse)?;
        let backend = RedisBackend::new(Link::new(source), Keyspace::new(&policy.namespace), server.deadline);
        match greet(&backend).await {
            Ok(()) => {}
            Err(failure) if matches!(failure.kind, Kind::Config | Kind::Denied) => return Err(refuse(failure)),
            Err(failure) if server.lazy => tracing::warn!(%failure, "Redis cannot be reached yet"),
            Err(failure) => return Err(Error::backend("Redis cannot be reached", failure.into())),
        }
        Ok(Sessions::with(backend, policy))
    }
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer").finish_non_exhaustive()
    }
}

/// Looks at the server, and makes ready what the first operation would have to wait for.
async fn greet(backend: &RedisBackend) -> Result<(), Failure> {
    backend.link().watch();
    doctor::admit(backend.link()).await?;
    backend.prepare().await;
    Ok(())
}

fn refuse(failure: Failure) -> Error {
    Error::new(ErrorKind::Config, failure.to_string())
}

const MIN_DEADLINE: Duration = Duration::from_millis(50);
const MAX_DEADLINE: Duration = Duration::from_secs(4);
