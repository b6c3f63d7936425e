//! A Redis server, and the stacks on it.

use std::{
    env,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::Router;
use jam_session::{RedisSessions, SessionLayer};
use tower_sessions_0_14::{Session, SessionManagerLayer};
use tower_sessions_redis_store::{
    RedisStore,
    fred::prelude::{ClientLike, Config, Pool},
};

use crate::{Role, cpu, pin, stacks};

const SESSIONS: usize = 30_000;

theirs!(theirs_on_redis, tower_sessions_0_14);

pub async fn ours(uri: &str) -> Router {
    let sessions = RedisSessions::connect(uri).await.expect("connected");
    stacks::ours().layer(SessionLayer::new(sessions.erase()))
}

pub async fn theirs(uri: &str) -> Router {
    theirs_on_redis().layer(SessionManagerLayer::new(their_store(uri).await))
}

/// As in its documentation: six connections.
async fn their_store(uri: &str) -> RedisStore<Pool> {
    let pool = Pool::new(Config::from_url(uri).expect("a URI"), None, None, None, 6).expect("a pool");
    pool.connect();
    pool.wait_for_connect().await.expect("connected");
    RedisStore::new(pool)
}

/// Bytes that the server holds more, for each session.
pub async fn memory(server: &Server) {
    server.command("FLUSHALL");
    let empty = server.info("memory", "used_memory");
    let sessions = RedisSessions::connect(server.uri()).await.expect("connected");
    for i in 0..SESSIONS {
        sessions.create(format!("user-{}", i / 3), stacks::fields()).await.expect("created");
    }
    let ours = (server.info("memory", "used_memory") - empty) / SESSIONS as f64;
    sessions.close().await.expect("closed");

    server.command("FLUSHALL");
    let empty = server.info("memory", "used_memory");
    let store = Arc::new(their_store(&server.uri()).await);
    for _ in 0..SESSIONS {
        let session = Session::new(None, Arc::clone(&store), None);
        for (name, value) in stacks::fields().as_object().expect("an object") {
            session.insert(name, value).await.expect("a value");
        }
        session.save().await.expect("saved");
    }
    let theirs = (server.info("memory", "used_memory") - empty) / SESSIONS as f64;
    println!(
        "\nRedis: {SESSIONS} sessions of 500 bytes, three a user, take {ours:.0} bytes each; those of tower-sessions, which know \
         of no user, {theirs:.0}."
    );
}

/// A `redis-server` of our own, without persistence, until it is dropped.
pub struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// `None` if there is no such program.
    pub async fn start() -> Option<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
            .arg(env::temp_dir())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let server = Self { process, port };
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "redis-server does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        pin(server.process.id(), Role::Redis).await;
        Some(server)
    }

    pub fn uri(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// So far: seconds of CPU time, commands from outside and from scripts, bytes in, bytes out.
    pub fn spent(&self) -> [f64; 4] {
        let stats = self.command("INFO stats");
        let number = |name| number(&stats, name);
        [
            cpu(self.process.id()),
            number("total_commands_processed"),
            number("total_net_input_bytes"),
            number("total_net_output_bytes"),
        ]
    }

    fn info(&self, section: &str, name: &str) -> f64 {
        number(&self.command(&format!("INFO {section}")), name)
    }

    /// On a connection of its own, which the server closes after the answer.
    fn command(&self, command: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("connected");
        write!(stream, "{command}\r\nQUIT\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn number(info: &str, name: &str) -> f64 {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
}
