//! The connection to one server: TCP, TLS or a unix socket, and the Redis handshake over it.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
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
    in_flight: InFlight,
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
        let in_flight = InFlight::default();
        let task = Arc::new(IoTask::spawn(gathering(task, in_flight.clone())));
        Ok(Self { connection, in_flight, task })
    }

    /// The task that reads and writes.
    pub(super) fn task(&self) -> Arc<IoTask> {
        Arc::clone(&self.task)
    }

    /// Like `req_packed_command`, but without boxing the future.
    pub(super) async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        let _call = self.in_flight.begin();
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
        Box::pin(self.send(command))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let _call = self.in_flight.begin();
            self.connection.send_packed_commands(pipeline, offset, count).await
        })
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

/// Counts the calls of a connection that have no answer yet.
#[derive(Clone, Default)]
struct InFlight(Arc<AtomicUsize>);

/// One of them, until it is dropped.
struct InFlightCall<'a>(&'a AtomicUsize);

impl InFlight {
    fn begin(&self) -> InFlightCall<'_> {
        self.0.fetch_add(1, Relaxed);
        InFlightCall(&self.0)
    }

    fn are_many(&self) -> bool {
        self.0.load(Relaxed) >= MANY
    }
}

impl Drop for InFlightCall<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Wraps the task of a connection: each time that it is woken while many calls are in flight, the tasks that are ready run
/// first. So it writes at once what all of these have to send, and the server reads it at once. By itself, tokio would run the
/// task right after the first caller that sends something.
///
/// With few calls in flight there is nothing to gather, and the detour through the queue would only delay them: a lone call
/// would take 160 µs instead of 100.
fn gathering(task: impl Future<Output = ()>, in_flight: InFlight) -> impl Future<Output = ()> {
    let (mut task, mut has_waited) = (Box::pin(task), false);
    poll_fn(move |cx| {
        if has_waited || !in_flight.are_many() {
            has_waited = false;
            return task.as_mut().poll(cx);
        }
        has_waited = true;
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
/// From this number of calls in flight on, gathering them pays off.
const MANY: usize = 8;
const MAX_SPOKEN: usize = 4096;

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;

    /// What three callers and the task of their connection do, with so many other calls in flight.
    fn order(others: usize) -> Vec<&'static str> {
        // With one thread there is one order. By itself, a task runs right after the one that wakes it.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (sent, done) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::new())));
        let in_flight = InFlight::default();
        let _others: Vec<_> = (0..others).map(|_| in_flight.begin()).collect();
        let task = {
            let (sent, done) = (Arc::clone(&sent), Arc::clone(&done));
            let written = async move {
                sent.notified().await;
                done.lock().unwrap().push("written");
            };
            runtime.spawn(gathering(written, in_flight.clone()))
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
            tokio::task::yield_now().await;
            done.lock().unwrap().clone()
        };
        runtime.block_on(runtime.spawn(callers)).unwrap()
    }

    #[test]
    fn many_callers_send_before_anything_is_written() {
        assert_eq!(order(MANY), ["sent", "sent", "sent", "written"]);
    }

    #[test]
    fn a_call_among_few_is_written_at_once() {
        assert_eq!(order(MANY - 1)[..2], ["sent", "written"]);
    }

    #[test]
    fn a_call_that_is_dropped_is_not_in_flight() {
        let in_flight = InFlight::default();
        let mut calls: Vec<_> = (0..MANY).map(|_| in_flight.begin()).collect();
        assert!(in_flight.are_many());
        calls.pop();
        assert!(!in_flight.are_many());
    }
}
