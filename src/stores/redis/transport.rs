//! The connection to one server: TCP, TLS or a unix socket, and the Redis handshake over it.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind as Redis, IntoConnectionInfo, Pipeline,
    RedisError, RedisFuture, RedisResult, Value,
    aio::{AsyncStream, ConnectionLike, MultiplexedConnection},
    cluster_async::Connect,
    io::tcp::{TcpSettings, socket2::SockRef},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::ServerName,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    task::AbortHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::failure::{Failure, INSECURE, NO_COMMON_TLS, NO_NAME, NO_ROOTS, NO_TLS, ONLY_TLS, tls_failure};

/// A connection to one server. A clone shares it, and the last clone closes it.
///
/// The stream is opened here, because redis-rs would use the TLS provider of the process and install one if there is none. That
/// choice belongs to the application. This also keeps the causes of failures; a Cluster's connection would keep only their text.
#[derive(Clone)]
pub(super) struct Node {
    connection: MultiplexedConnection,
    /// The task ends with the last clone.
    task: Arc<IoTask>,
}

/// A task that is aborted when this is dropped. Otherwise the task of a connection would wait for a missing answer.
pub(super) struct IoTask(AbortHandle);

impl Node {
    /// Opens a connection within `limit`. If the server answers, but not as expected, this takes up to a second more to find out
    /// why.
    pub(super) async fn open(
        info: &ConnectionInfo,
        config: AsyncConnectionConfig,
        limit: Duration,
    ) -> RedisResult<Self> {
        let reached = AtomicBool::new(false);
        let opened = timeout(limit, Self::handshake(info, config, &reached)).await;
        let error = match opened.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into())) {
            Err(error) if reached.load(Relaxed) => error,
            Ok(node) => {
                remember(info.addr());
                return Ok(node);
            }
            failed => return failed,
        };
        let is_suspicious = match info.addr() {
            // A server that expects TLS closes the connection, or answers with a TLS alert.
            ConnectionAddr::Tcp(..) => matches!(error.kind(), Redis::Io | Redis::Parse) && !error.is_timeout(),
            // A server without TLS may wait for the end of a line.
            ConnectionAddr::TcpTls { .. } => error.kind() == Redis::Io,
            _ => false,
        };
        // If the server spoke Redis before, it is only down, so a reconnect does not spend time on the reason.
        let cause = match is_suspicious && !has_spoken(info.addr()) {
            true => timeout(PROBE, wrong_protocol(info.addr())).await.ok().flatten(),
            false => None,
        };
        Err(cause.map_or(error, RedisError::from))
    }

    async fn handshake(
        info: &ConnectionInfo,
        config: AsyncConnectionConfig,
        reached: &AtomicBool,
    ) -> RedisResult<Self> {
        let tcp = async |host, port| {
            let stream = tcp(host, port, info.tcp_settings()).await?;
            reached.store(true, Relaxed);
            RedisResult::Ok(stream)
        };
        let stream: Pin<Box<dyn AsyncStream + Send>> = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Box::pin(tcp(host, *port).await?),
            ConnectionAddr::TcpTls { insecure: true, .. } => return Err(INSECURE.into()),
            ConnectionAddr::TcpTls { host, port, .. } => Box::pin(tls(host, tcp(host, *port).await?).await?),
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => Box::pin(tokio::net::UnixStream::connect(path).await?),
            _ => return Err((Redis::InvalidClientConfig, "unsupported address").into()),
        };
        let (connection, task) = MultiplexedConnection::new_with_config(info.redis_settings(), stream, config).await?;
        Ok(Self { connection, task: Arc::new(IoTask::spawn(gathering(task))) })
    }

    /// The task that reads and writes.
    pub(super) fn task(&self) -> Arc<IoTask> {
        Arc::clone(&self.task)
    }

    /// Like `req_packed_command`, but without boxing the future.
    pub(super) async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.connection.send_packed_command(command).await
    }

    pub(super) async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        self.connection.subscribe(channel).await
    }
}

impl IoTask {
    pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task).abort_handle())
    }

    /// Returns whether the task has ended, for example because its runtime was shut down.
    pub(super) fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for IoTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ConnectionLike for Node {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        self.connection.req_packed_command(command)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.connection.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}

/// Used by a Cluster's connection to open its connections to the nodes.
impl Connect for Node {
    fn connect_with_config<'a, T>(info: T, config: AsyncConnectionConfig) -> RedisFuture<'a, Self>
    where
        T: IntoConnectionInfo + Send + 'a,
    {
        Box::pin(async move { Self::open(&info.into_connection_info()?, config, CONNECT).await })
    }
}

/// A task that lets the tasks that are ready go first, each time that it is woken.
///
/// By itself, tokio would run the one of a connection right after the first caller that sends something. So it writes at once
/// what all callers have to send that are ready at the same moment, and the server reads it at once.
fn gathering(task: impl Future<Output = ()>) -> impl Future<Output = ()> {
    let (mut task, mut is_last) = (Box::pin(task), true);
    poll_fn(move |cx| {
        is_last = !is_last;
        if is_last {
            return task.as_mut().poll(cx);
        }
        // A task that wakes itself goes to the end of the queue.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

/// Returns whether a runtime is running its tasks. It is not if it was shut down, or if no thread blocks on it.
pub(super) async fn is_driven(runtime: &Handle, patience: Duration) -> bool {
    Handle::try_current().is_ok_and(|here| here.id() == runtime.id())
        || matches!(timeout(patience, runtime.spawn(async {})).await, Ok(Ok(())))
}

async fn tcp(host: &str, port: u16, settings: &TcpSettings) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_nodelay(settings.nodelay())?;
    if let Some(keepalive) = settings.keepalive() {
        socket.set_tcp_keepalive(keepalive)?;
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(settings.user_timeout())?;
    Ok(stream)
}

async fn tls(host: &str, stream: TcpStream) -> RedisResult<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| NO_NAME)?;
    let connected = connector(system_roots()?)?.connect(name, stream).await;
    connected.map_err(|error| tls_failure(&error).map_or_else(|| error.into(), RedisError::from))
}

/// The certificate authorities of the system.
fn system_roots() -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(NO_ROOTS) } else { Ok(roots) }
}

/// TLS with the provider of the process, or ring if it has none.
fn connector(roots: RootCertStore) -> Result<TlsConnector, Failure> {
    let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| NO_COMMON_TLS)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The addresses at which a server has answered this process in Redis, with or without TLS as the URI says.
static SPOKEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn has_spoken(address: &ConnectionAddr) -> bool {
    SPOKEN.lock().unwrap_or_else(PoisonError::into_inner).contains(&spoken_name(address))
}

fn remember(address: &ConnectionAddr) {
    let mut spoken = SPOKEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Far more than there are servers. If an address is forgotten, the only cost is one more probe.
    if spoken.len() < MAX_SPOKEN {
        spoken.insert(spoken_name(address));
    }
}

fn spoken_name(address: &ConnectionAddr) -> String {
    let tls = matches!(address, ConnectionAddr::TcpTls { .. });
    format!("{tls} {address}")
}

/// Probes whether the server speaks TLS although the URI says that it does not, or the reverse. Sends no credentials.
async fn wrong_protocol(address: &ConnectionAddr) -> Option<Failure> {
    match address {
        ConnectionAddr::Tcp(host, port) => {
            let stream = tcp(host, *port, &TcpSettings::default()).await.ok()?;
            let name = ServerName::try_from(host.to_owned()).ok()?;
            // An untrusted certificate also proves TLS. The system's authorities are not loaded here, because while a server
            // closes every connection, they would be read from files many times a second.
            let connector = connector(RootCertStore::empty()).ok()?;
            match connector.connect(name, stream).await.map_err(|error| tls_failure(&error)) {
                Ok(_) => Some(ONLY_TLS),
                Err(Some(failure)) if failure != NO_TLS => Some(ONLY_TLS),
                Err(_) => None,
            }
        }
        ConnectionAddr::TcpTls { host, port, .. } => {
            let mut stream = tcp(host, *port, &TcpSettings::default()).await.ok()?;
            stream.write_all(b"PING\r\n").await.ok()?;
            // `+PONG`, or an error such as `-NOAUTH`.
            matches!(stream.read_u8().await, Ok(b'+' | b'-')).then_some(NO_TLS)
        }
        _ => None,
    }
}

/// The minimum time limit for opening a connection.
pub(super) const CONNECT: Duration = Duration::from_millis(500);
const PROBE: Duration = Duration::from_secs(1);
const MAX_SPOKEN: usize = 4096;

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;

    #[test]
    fn what_is_ready_sends_before_anything_is_written() {
        // With one thread there is one order. By itself, a task runs right after the one that wakes it.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (sent, done) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::new())));
        let task = {
            let (sent, done) = (Arc::clone(&sent), Arc::clone(&done));
            runtime.spawn(gathering(async move {
                sent.notified().await;
                done.lock().unwrap().push("written");
            }))
        };
        let callers = async move {
            // In a task, so that all of them wait in the queue of its thread. The connection is already waiting.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            for _ in 0..3 {
                let (sent, done) = (Arc::clone(&sent), Arc::clone(&done));
                tokio::spawn(async move {
                    done.lock().unwrap().push("sent");
                    sent.notify_one();
                });
            }
            task.await.unwrap();
            done.lock().unwrap().clone()
        };
        let done = runtime.block_on(runtime.spawn(callers)).unwrap();
        assert_eq!(done, ["sent", "sent", "sent", "written"]);
    }
}
