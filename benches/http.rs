//! Throughput over HTTP: an axum server in a separate process on loopback, with jam-session and with tower-sessions, on memory, a
//! JSON file (jam-session only) and Redis. All stacks take turns in the same run.
//!
//! ```sh
//! cargo run --release --manifest-path benches/Cargo.toml --bin http                       # memory and a JSON file
//! cargo run --release --manifest-path benches/Cargo.toml --bin http --features redis      # and a redis-server it starts
//! ```
//!
//! Each of 64 connections has its own session (500 bytes in twelve fields), and sends the next request as soon as the last one is
//! answered. If `taskset` is installed, the server gets the first core, Redis the second, and the clients the others, or the
//! second as well if there are only two. The JSON file is in the folder `BENCH_DIR` (default: the current folder).
//!
//! The newest tower-sessions has no Redis store, so the rows on Redis use tower-sessions 0.14 with its store 0.16.

use std::{
    env, fs,
    io::Read,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    time::Instant,
};

use axum::Router;
use jam_session::{JsonSessions, MemorySessions, SessionLayer};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
};
use tower_sessions::{MemoryStore, SessionManagerLayer};

#[allow(dead_code)]
#[macro_use]
mod stacks;

#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod redis_server;

const CONNECTIONS: usize = 64;
/// How many requests each connection sends in a round.
const REQUESTS: usize = 100;
const ROUNDS: usize = 9;

const SCENARIOS: [(&str, &str, bool); 4] = [
    ("cookie, unused", "/unused", true),
    ("cookie, one value read", "/read", true),
    ("cookie, one value read and written", "/write", true),
    ("first write of a new visitor", "/write", false),
];

#[tokio::main]
async fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare().await,
        ["--serve", stack] => serve(router(stack, "").await).await,
        ["--serve", stack, place] => serve(router(stack, place).await).await,
        _ => eprintln!("usage: http"),
    }
}

async fn compare() {
    pin(std::process::id(), Role::Clients).await;
    let folder = PathBuf::from(env::var_os("BENCH_DIR").unwrap_or_else(|| ".".into())).join("http-bench.tmp");
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("sessions.json");

    let mut bare = Server::start("bare", "").await;
    println!("\n| | bare axum | jam-session | tower-sessions | ratio |\n|---|---|---|---|---|");
    let mut ours = Server::start("ours", "").await;
    let mut theirs = Server::start("theirs", "").await;
    for scenario in SCENARIOS {
        row("memory", scenario, &mut [&mut bare, &mut ours, &mut theirs], None).await;
    }
    let mut ours = Server::start("ours-json", &file.to_string_lossy()).await;
    for scenario in &SCENARIOS[1..] {
        row("JSON file", *scenario, &mut [&mut bare, &mut ours], None).await;
    }
    drop(ours);
    fs::remove_dir_all(folder).expect("removed");

    #[cfg(feature = "redis")]
    if let Some(server) = redis::Server::start().await {
        pin(server.id(), Role::Redis).await;
        let mut ours = Server::start("ours-redis", &server.uri()).await;
        let mut theirs = Server::start("theirs-redis", &server.uri()).await;
        for scenario in &SCENARIOS[1..] {
            row("Redis", *scenario, &mut [&mut bare, &mut ours, &mut theirs], Some(&server)).await;
        }
        drop((ours, theirs));
        redis::memory(&server).await;
    } else {
        println!("\nRedis: there is no redis-server here");
    }
    println!(
        "\nRequests/s, the median of {ROUNDS} rounds of {} requests; CPU time per request of the server, then of Redis, and how \
         many commands and bytes (in, out) went there. The ratio, of jam-session to tower-sessions, is the median of those of \
         the rounds.",
        CONNECTIONS * REQUESTS
    );
}

/// The measurements of one server in one scenario.
#[derive(Default)]
struct Measured {
    rates: Vec<f64>,
    cpu: f64,
    redis: [f64; 4],
}

#[cfg(not(feature = "redis"))]
mod redis {
    pub struct Server;

    impl Server {
        pub fn spent(&self) -> [f64; 4] {
            [0.0; 4]
        }
    }
}

/// Measures all servers, which take turns round by round.
async fn row(
    store: &str,
    (name, path, with_cookie): (&str, &'static str, bool),
    servers: &mut [&mut Server],
    redis: Option<&redis::Server>,
) {
    let requests = (CONNECTIONS * REQUESTS) as f64;
    let spent = || redis.map_or([0.0; 4], redis::Server::spent);
    let mut measured: Vec<Measured> = servers.iter().map(|_| Measured::default()).collect();
    for round in 0..=ROUNDS {
        for (server, measured) in servers.iter_mut().zip(&mut measured) {
            let (cpu, before, began) = (server.cpu(), spent(), Instant::now());
            server.round(path, with_cookie).await;
            let rate = requests / began.elapsed().as_secs_f64();
            // The first round warms up.
            if round > 0 {
                measured.rates.push(rate);
                measured.cpu += (server.cpu() - cpu) / ROUNDS as f64 / requests;
                for (sum, (after, before)) in measured.redis.iter_mut().zip(spent().into_iter().zip(before)) {
                    *sum += (after - before) / ROUNDS as f64 / requests;
                }
            }
        }
    }
    let cell = |measured: &Measured| {
        let rate = median(measured.rates.clone());
        let mut cell = format!("{rate:.0}/s, {:.0} µs", measured.cpu * 1e6);
        // Bare axum does not use Redis.
        let [cpu, commands, inward, outward] = measured.redis;
        if commands > 0.5 {
            cell += &format!(" + {:.1} µs, {commands:.0} commands, {inward:.0} + {outward:.0} B", cpu * 1e6);
        }
        cell
    };
    let (theirs, ratio) = match &measured[..] {
        [_, ours, theirs] => {
            let ratios = ours.rates.iter().zip(&theirs.rates).map(|(ours, theirs)| ours / theirs).collect();
            (cell(theirs), format!("{:.2}", median(ratios)))
        }
        _ => (String::new(), String::new()),
    };
    println!("| {store}: {name} | {} | {} | {theirs} | {ratio} |", cell(&measured[0]), cell(&measured[1]));
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// A second process of this program, as a server, and the connections to it.
struct Server {
    process: Child,
    connections: Vec<Connection>,
}

impl Server {
    async fn start(stack: &str, place: &str) -> Self {
        let mut process = Command::new(env::current_exe().expect("this program"))
            .args(["--serve", stack, place])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a server");
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout.take().expect("its output"));
        stdout.read_line(&mut line).await.expect("a line");
        let port: u16 = line.trim().parse().expect("its port");
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut connection = Connection::new((Ipv4Addr::LOCALHOST, port).into()).await;
            connection.cookie = connection.get("/begin-signed-in", true).await.unwrap_or_else(|| "id=1".to_owned());
            connections.push(connection);
        }
        pin(process.id().expect("it runs"), Role::Server).await;
        Self { process, connections }
    }

    async fn round(&mut self, path: &'static str, with_cookie: bool) {
        let mut tasks = JoinSet::new();
        for mut connection in self.connections.drain(..) {
            tasks.spawn(async move {
                for _ in 0..REQUESTS {
                    connection.get(path, with_cookie).await;
                }
                connection
            });
        }
        self.connections = tasks.join_all().await;
    }

    fn cpu(&self) -> f64 {
        cpu(self.process.id().expect("it runs"))
    }
}

struct Connection {
    stream: TcpStream,
    cookie: String,
    buffer: Vec<u8>,
}

impl Connection {
    async fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connected");
        stream.set_nodelay(true).expect("set");
        Self { stream, cookie: String::new(), buffer: Vec::new() }
    }

    /// Sends a request, reads the whole response, and returns the cookie that it sets.
    async fn get(&mut self, path: &str, with_cookie: bool) -> Option<String> {
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n");
        if with_cookie && !self.cookie.is_empty() {
            request += &format!("cookie: {}\r\n", self.cookie);
        }
        request += "\r\n";
        self.stream.write_all(request.as_bytes()).await.expect("sent");
        self.buffer.clear();
        let head = loop {
            let read = self.stream.read_buf(&mut self.buffer).await.expect("received");
            assert_ne!(read, 0, "the server hung up");
            // Every body is `ok`.
            if let Some(head) = self.buffer.strip_suffix(b"\r\n\r\nok") {
                break std::str::from_utf8(head).expect("text");
            }
        };
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let (_, cookie) = head.split_once("\r\nset-cookie: ")?;
        Some(cookie.split([';', '\r']).next().unwrap_or_default().to_owned())
    }
}

async fn serve(router: Router) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    println!("{}", listener.local_addr().expect("bound").port());
    std::thread::spawn(|| {
        // Standard input is closed when the parent process ends.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    axum::serve(listener, router).await.expect("served");
}

async fn router(stack: &str, place: &str) -> Router {
    match stack {
        "bare" => stacks::plain(),
        "ours" => stacks::ours().layer(SessionLayer::new(MemorySessions::new().erase())),
        "theirs" => stacks::theirs().layer(SessionManagerLayer::new(MemoryStore::default())),
        "ours-json" => {
            let sessions = JsonSessions::open(place).await.expect("a file");
            stacks::ours().layer(SessionLayer::new(sessions.erase()))
        }
        #[cfg(feature = "redis")]
        "ours-redis" => redis::ours(place).await,
        #[cfg(feature = "redis")]
        "theirs-redis" => redis::theirs(place).await,
        _ => panic!("there is no stack {stack}"),
    }
}

enum Role {
    Server,
    Redis,
    Clients,
}

/// Pins a process to cores, if possible.
async fn pin(process: u32, role: Role) {
    let cores = fs::read_to_string("/proc/cpuinfo").unwrap_or_default().matches("processor\t").count();
    let mine = match (role, cores) {
        (_, ..2) => return,
        (Role::Server, _) => "0".to_owned(),
        (Role::Redis, _) | (Role::Clients, 2) => "1".to_owned(),
        (Role::Clients, _) => format!("2-{}", cores - 1),
    };
    let mut taskset = Command::new("taskset");
    taskset.args(["--all-tasks", "--pid", "--cpu-list", &mine, &process.to_string()]);
    let _ = taskset.stdout(Stdio::null()).stderr(Stdio::null()).status().await;
}

/// The CPU time that a process has used, in seconds.
fn cpu(process: u32) -> f64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return f64::NAN };
    // Skip the name, which may contain spaces.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    // Linux reports hundredths of a second.
    fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap_or(f64::NAN) / 100.0).sum()
}
