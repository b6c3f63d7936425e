//! The source of connections: one server, Sentinel, a Cluster, or the application.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline, ProtocolVersion,
    PushKind, RedisResult, Value,
    aio::ConnectionLike,
    cluster::ClusterClientBuilder,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::{
    failure::{Failure, FailureKind, NO_COMMAND, NO_SENTINEL},
    transport::{CONNECT, IoTask, Node},
};
use crate::log;

pub(super) enum Source {
    Server(ConnectionInfo),
    Sentinel(Sentinel),
    /// Some nodes of a Cluster.
    Cluster(Vec<ConnectionInfo>),
    /// The application's own connection, which is never replaced.
    Own(Box<dyn Connection>),
}

pub(super) struct Sentinel {
    sentinels: Vec<ConnectionInfo>,
    name: String,
    /// Credentials, database and scheme for the master. Its address comes from the sentinels.
    master: ConnectionInfo,
    /// The sentinel that knew the master last.
    first: AtomicUsize,
}

/// A shared [`ConnectionLike`].
pub(super) trait Connection: ConnectionLike + Send + Sync {
    /// Returns another handle to the same connection.
    fn another(&self) -> Box<dyn Connection>;
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Connection for C {
    fn another(&self) -> Box<dyn Connection> {
        Box::new(self.clone())
    }
}

/// A handle to a connection, made for each call. For a single server this takes no heap allocation.
pub(super) enum Channel {
    Node(Node),
    Other(Box<dyn Connection>),
}

impl Channel {
    pub(super) fn another(&self) -> Self {
        match self {
            Self::Node(node) => Self::Node(node.clone()),
            Self::Other(connection) => Self::Other(connection.another()),
        }
    }

    /// Sends one command, and returns its answer, which may be an error as a value.
    pub(super) async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Node(node) => node.send(command).await,
            Self::Other(connection) => connection.req_packed_command(command).await,
        }
    }

    /// Sends several commands at once.
    pub(super) async fn send_all(&mut self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        match self {
            Self::Node(node) => node.req_packed_commands(pipeline, 0, pipeline.len()).await,
            Self::Other(connection) => connection.req_packed_commands(pipeline, 0, pipeline.len()).await,
        }
    }
}

/// A connection, and the tasks that drive it.
pub(super) struct Established {
    pub(super) channel: Channel,
    /// The task that reads and writes. `None` if the tasks are not ours. A Cluster's connection hides its tasks, so this is a
    /// task that ends with their runtime.
    task: Option<Arc<IoTask>>,
    /// The runtime of the tasks, if they are ours.
    pub(super) runtime: Option<Handle>,
}

impl Established {
    /// Returns whether this connection will never answer again.
    pub(super) fn has_ended(&self) -> bool {
        self.task.as_ref().is_some_and(|task| task.has_ended())
    }
}

impl Source {
    pub(super) fn server(uri: &str) -> Result<Self, Failure> {
        Ok(Self::Server(parse(uri)?))
    }

    pub(super) fn sentinel(uri: &str, sentinels: &[String], name: String) -> Result<Self, Failure> {
        let sentinels = sentinels.iter().map(|uri| parse(uri)).collect::<Result<Vec<_>, _>>()?;
        if sentinels.is_empty() {
            return Err(Failure::new(FailureKind::Config, "`.sentinel(…)` needs the URI of at least one sentinel"));
        }
        Ok(Self::Sentinel(Sentinel { sentinels, name, master: parse(uri)?, first: AtomicUsize::new(0) }))
    }

    pub(super) fn cluster(uris: &[String]) -> Result<Self, Failure> {
        let nodes = uris.iter().map(|uri| parse(uri)).collect::<Result<Vec<_>, _>>()?;
        if nodes.iter().any(|node| node.redis_settings().db() != 0) {
            return Err(Failure::new(FailureKind::Config, "a Redis Cluster has only database 0"));
        }
        if nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::Unix(_))) {
            return Err(Failure::new(FailureKind::Config, "a Redis Cluster cannot be reached through unix sockets"));
        }
        Ok(Self::Cluster(nodes))
    }

    /// Returns how long an attempt to connect may take, if an operation may take `deadline`.
    pub(super) fn time(&self, deadline: Duration) -> Duration {
        let more = match self {
            Self::Server(_) | Self::Own(_) => Duration::from_millis(1500),
            Self::Sentinel(_) | Self::Cluster(_) => Duration::from_millis(2500),
        };
        limit(deadline) + more
    }

    /// Returns whether the connections reconnect and retry by themselves.
    pub(super) fn heals(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    pub(super) async fn connect(&self, deadline: Duration) -> Result<Established, Failure> {
        let limit = limit(deadline);
        let ours = |channel, task| Established { channel, task: Some(task), runtime: Handle::try_current().ok() };
        let of_node = |node: Node| {
            let task = node.task();
            ours(Channel::Node(node), task)
        };
        match self {
            Self::Server(info) => open(info, limit).await.map(of_node),
            Self::Sentinel(sentinel) => sentinel.connect(limit).await.map(of_node),
            Self::Cluster(nodes) => {
                let connection = connect_to_cluster(nodes, deadline).await?;
                Ok(ours(Channel::Other(connection), Arc::new(IoTask::spawn(pending()))))
            }
            Self::Own(connection) => {
                Ok(Established { channel: Channel::Other(connection.another()), task: None, runtime: None })
            }
        }
    }

    /// Calls `switched` whenever a sentinel announces another master.
    pub(super) fn watch(&self, switched: impl Fn() + Clone + Send + Sync + 'static) -> Vec<AbortHandle> {
        let Self::Sentinel(sentinel) = self else { return Vec::new() };
        let watch = |info: &ConnectionInfo| {
            let watching = watch(info.clone(), sentinel.name.clone(), switched.clone());
            tokio::spawn(watching).abort_handle()
        };
        sentinel.sentinels.iter().map(watch).collect()
    }
}

impl Sentinel {
    async fn connect(&self, limit: Duration) -> Result<Node, Failure> {
        let mut failure: Option<Failure> = None;
        let first = self.first.load(Relaxed);
        for at in (0..self.sentinels.len()).map(|at| (first + at) % self.sentinels.len()) {
            let connected = match self.ask(&self.sentinels[at], limit / 2).await {
                Ok(Some(master)) => connect_to_master(&master, limit).await,
                Ok(None) => continue,
                Err(failure) => Err(failure),
            };
            match connected {
                Ok(connection) => {
                    self.first.store(at, Relaxed);
                    return Ok(connection);
                }
                // Prefer an error that a retry cannot fix.
                Err(other) if failure.as_ref().is_none_or(|failure| other.lasts() && !failure.lasts()) => {
                    failure = Some(other);
                }
                Err(_) => {}
            }
        }
        Err(failure.unwrap_or(Failure::new(FailureKind::Config, "no sentinel knows a master of that name")))
    }

    async fn ask(&self, sentinel: &ConnectionInfo, limit: Duration) -> Result<Option<ConnectionInfo>, Failure> {
        let mut connection = open(sentinel, limit).await?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("get-master-addr-by-name").arg(&self.name);
        let answer = timeout(limit, question.query_async(&mut connection)).await.map_err(|_| Failure::silent())?;
        let answer: Option<(String, u16)> = answer.map_err(|error| match Failure::from(error) {
            failure if failure == NO_COMMAND => NO_SENTINEL,
            failure => failure,
        })?;
        let Some((host, port)) = answer else { return Ok(None) };
        let addr = match self.master.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        Ok(Some(self.master.clone().set_addr(addr)))
    }
}

/// Connects, and checks the role: during a failover, a sentinel may still name the old master.
async fn connect_to_master(master: &ConnectionInfo, limit: Duration) -> Result<Node, Failure> {
    let mut connection = open(master, limit).await?;
    let question = redis::cmd("ROLE");
    let answer = timeout(limit, question.query_async(&mut connection)).await.map_err(|_| Failure::silent())?;
    let role: Value = answer?;
    let is_master = match &role {
        Value::Array(role) => matches!(role.first(), Some(Value::BulkString(role)) if role == b"master"),
        _ => false,
    };
    if is_master {
        Ok(connection)
    } else {
        Err(Failure::new(FailureKind::Demoted, "the server that a sentinel named as the master is not a master"))
    }
}

/// Connects to a Cluster. Its connection retries by itself, within time limits of its own.
async fn connect_to_cluster(nodes: &[ConnectionInfo], deadline: Duration) -> Result<Box<dyn Connection>, Failure> {
    let client = ClusterClientBuilder::new(nodes.to_vec())
        .tcp_settings(tcp())
        .response_timeout((deadline / 2).max(Duration::from_millis(400)))
        .overall_response_timeout(Some(deadline.max(Duration::from_secs(1))))
        .retries(5)
        .min_retry_wait(20)
        .max_retry_wait(200)
        .retry_wait_formula(20, 2)
        .build()?;
    Ok(Box::new(client.get_async_generic_connection::<Node>().await?))
}

/// Returns how long connecting to one server may take, if an operation may take `deadline`.
fn limit(deadline: Duration) -> Duration {
    (deadline * 2 / 3).max(CONNECT)
}

async fn open(info: &ConnectionInfo, limit: Duration) -> Result<Node, Failure> {
    let config = AsyncConnectionConfig::new()
        // Each operation has its own deadline.
        .set_response_timeout(None)
        .set_pipeline_buffer_size(1024);
    Ok(Node::open(info, config, limit).await?)
}

/// Listens to one sentinel until the task is aborted.
async fn watch(sentinel: ConnectionInfo, name: String, switched: impl Fn()) {
    let mut missed = false;
    loop {
        if let Err(failure) = listen(&sentinel, &name, &mut missed, &switched).await {
            log::debug!(error = %failure, "could not subscribe to a sentinel");
        }
        sleep(LISTEN_AGAIN).await;
    }
}

async fn listen(sentinel: &ConnectionInfo, name: &str, missed: &mut bool, switched: &impl Fn()) -> Result<(), Failure> {
    let settings = sentinel.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let (sender, mut pushes) = mpsc::unbounded_channel();
    let config = AsyncConnectionConfig::new().set_push_sender(sender);
    let mut connection = Node::open(&sentinel.clone().set_redis_settings(settings), config, CONNECT).await?;
    connection.subscribe("+switch-master").await?;
    // A failover may have been announced between two subscriptions, so the next operation asks for the master again.
    if std::mem::replace(missed, true) {
        switched();
    }
    while let Some(push) = pushes.recv().await {
        match push.kind {
            PushKind::Message if push.data.iter().any(|part| is_about(part, name)) => {
                log::info!("Sentinel promoted another server to master");
                switched();
            }
            PushKind::Disconnection => break,
            _ => {}
        }
    }
    Ok(())
}

/// `<name> <old host> <old port> <new host> <new port>`
fn is_about(message: &Value, name: &str) -> bool {
    match message {
        Value::BulkString(text) => text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b" ")),
        _ => false,
    }
}

fn parse(uri: &str) -> Result<ConnectionInfo, Failure> {
    let wrong = |_| {
        Failure::new(
            FailureKind::Config,
            "a Redis URI is redis://, rediss:// or unix://, such as redis://:password@host:6379/0",
        )
    };
    let info = uri.into_connection_info().map_err(wrong)?;
    let settings = info.redis_settings().clone().set_lib_name("jam-session", env!("CARGO_PKG_VERSION"));
    Ok(info.set_redis_settings(settings).set_tcp_settings(tcp()))
}

fn tcp() -> TcpSettings {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2)).with_retries(3);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(5));
    settings
}

const LISTEN_AGAIN: Duration = Duration::from_secs(1);
