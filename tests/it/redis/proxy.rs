//! A proxy that can lose answers, freeze, and report the traffic.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};

use super::wire::Address;

pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

struct State {
    server: Address,
    /// Connections with a lower number pass nothing on.
    frozen_below: watch::Sender<usize>,
    connections: AtomicUsize,
    swallow: AtomicBool,
    swallow_request: AtomicBool,
    /// What was swallowed is not missed yet.
    held: watch::Sender<bool>,
    /// What the client last sent in one piece.
    last: Mutex<Vec<u8>>,
    /// How many pieces there were.
    pieces: AtomicUsize,
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

impl Proxy {
    pub async fn before(server: &Address) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            server: server.clone(),
            frozen_below: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
            swallow: AtomicBool::new(false),
            swallow_request: AtomicBool::new(false),
            held: watch::Sender::new(false),
            last: Mutex::default(),
            pieces: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                let number = state.connections.fetch_add(1, SeqCst);
                tokio::spawn(async move { state.serve(client, number).await });
            }
        });
        Self { port, state }
    }

    pub fn uri(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The next request reaches the server; its answer is lost, and the connection with it.
    pub fn swallow_next_answer(&self) {
        self.state.swallow.store(true, SeqCst);
    }

    /// The next request does not reach the server, and the connection is lost.
    pub fn swallow_next_request(&self) {
        self.state.swallow_request.store(true, SeqCst);
    }

    pub fn has_swallowed(&self) -> bool {
        !self.state.swallow.load(SeqCst) && !self.state.swallow_request.load(SeqCst)
    }

    /// Connections that lost something stay open, until they are not held.
    pub fn hold(&self, held: bool) {
        self.state.held.send_replace(held);
    }

    /// The connections that there are pass nothing on any more, and are not closed. New ones do.
    pub fn freeze(&self) {
        self.state.frozen_below.send_replace(self.connections());
    }

    /// Nothing is passed on, also by new connections.
    pub fn freeze_all(&self) {
        self.state.frozen_below.send_replace(usize::MAX);
    }

    /// What was held back goes on.
    pub fn thaw(&self) {
        self.state.frozen_below.send_replace(0);
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// How many times the client has spoken: of one that waits for each answer, that is its round trips.
    pub fn trips(&self) -> usize {
        self.state.pieces.load(SeqCst)
    }

    /// What the client last sent, byte for byte.
    pub fn last_request(&self) -> Vec<u8> {
        self.state.last.lock().unwrap().clone()
    }
}

impl State {
    async fn serve(&self, client: TcpStream, number: usize) {
        let _ = client.set_nodelay(true);
        let server: Box<dyn Duplex> = match &self.server {
            Address::Unix(path) => match UnixStream::connect(path).await {
                Ok(server) => Box::new(server),
                Err(_) => return,
            },
            Address::Port(port) => match TcpStream::connect(("127.0.0.1", *port)).await {
                Ok(server) => Box::new(server),
                Err(_) => return,
            },
        };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = tokio::io::split(server);
        // A client that leaves has still said what it said.
        tokio::join!(self.requests(from_client, to_server, number), self.answers(from_server, to_client, number));
    }

    async fn requests(&self, mut client: impl AsyncRead + Unpin, mut server: impl AsyncWrite + Unpin, number: usize) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = client.read(&mut buffer).await {
            *self.last.lock().unwrap() = buffer[..read].to_vec();
            self.pieces.fetch_add(1, SeqCst);
            self.thawed(number).await;
            if self.swallow_request.swap(false, SeqCst) {
                self.let_go().await;
                break;
            }
            if server.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
        self.thawed(number).await;
        let _ = server.shutdown().await;
    }

    async fn answers(&self, mut server: impl AsyncRead + Unpin, mut client: impl AsyncWrite + Unpin, number: usize) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = server.read(&mut buffer).await {
            self.thawed(number).await;
            if self.swallow.swap(false, SeqCst) {
                self.let_go().await;
                break;
            }
            if client.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
        let _ = client.shutdown().await;
    }

    async fn let_go(&self) {
        let _ = self.held.subscribe().wait_for(|held| !held).await;
    }

    async fn thawed(&self, number: usize) {
        let _ = self.frozen_below.subscribe().wait_for(|frozen_below| number >= *frozen_below).await;
    }
}
