//! The application as two processes on one Redis, over sockets. All of them are killed, frozen and disconnected at random.

use std::{
    cell::{Cell, RefCell},
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jam_session::{Limit, RedisSessions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{LocalSet, spawn_blocking, spawn_local},
    time::{sleep, timeout},
};

use super::{
    app::{App, MAX_SIZE},
    ask::{Ask, Reply},
    oracle::Oracle,
    walk::{Site, Size, Walk},
};
use crate::ports::ports;
use crate::random::Random;
use crate::redis::{harness::binary, process::Process, proxy::Proxy};

pub struct Processes {
    servers: [RefCell<Option<Server>>; 2],
    ports: [u16; 2],
    redis: Arc<Process>,
    proxy: Proxy,
    ending: Cell<bool>,
    healed: Semaphore,
}

/// Kills what it started when it is dropped.
struct Server(Child);

/// One walk, with everything that it needs. What is wrong, and how often what happened.
pub fn walk_through_processes(seed: u64, size: Size) -> Option<Rc<Walk<Processes>>> {
    let binary = binary()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let walk = LocalSet::new().block_on(&runtime, async move {
        // What it has acknowledged it keeps.
        let redis = Arc::new(Process::start(&binary, &["--appendonly", "yes", "--appendfsync", "always"]));
        let proxy = Proxy::before(&redis.address).await;
        let ports: [u16; 2] = ports(2).try_into().unwrap();
        let servers = ports.map(|port| RefCell::new(Some(Server::start(port, &proxy.uri()))));
        let site = Processes { servers, ports, redis, proxy, ending: Cell::new(false), healed: Semaphore::new(0) };
        let walk =
            Walk::new(site, Oracle::new(u64::try_from(GRACE.as_millis()).unwrap(), false, Limit::None), size, false);
        let mut random = Random(seed);
        let (chaos, mut chance) = (Rc::clone(&walk), random.fork());
        spawn_local(async move {
            while !chaos.site.ending.get() && !chaos.is_over() {
                chaos.disturb(&mut chance).await;
            }
            chaos.site.healed.add_permits(1);
        });
        walk.run(size, &mut random).await;
        walk
    });
    Some(walk)
}

impl Walk<Processes> {
    /// Lets the walk go on for a while.
    async fn pass(&self, random: &mut Random) {
        let until = self.oracle.borrow().moment() + 5 + random.below(70) as u64;
        for _ in 0..200 {
            if self.oracle.borrow().moment() >= until || self.site.ending.get() || self.is_over() {
                return;
            }
            // Other processes need the time as well.
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Does something bad, and makes up for it.
    async fn disturb(&self, random: &mut Random) {
        self.pass(random).await;
        let site = &self.site;
        match random.below(12) {
            0 | 1 => {
                self.happens("a server is killed");
                let at = random.below(2);
                site.servers[at].take();
                self.pass(random).await;
                let (port, uri) = (site.ports[at], site.proxy.uri());
                let server = spawn_blocking(move || Server::start(port, &uri)).await.unwrap();
                site.servers[at].replace(Some(server));
            }
            2 | 3 => {
                self.happens("Redis is killed");
                site.redis.signal("KILL");
                self.pass(random).await;
                let redis = Arc::clone(&site.redis);
                spawn_blocking(move || redis.run(&[])).await.unwrap();
            }
            4 => {
                self.happens("Redis hangs");
                site.redis.signal("STOP");
                self.pass(random).await;
                site.redis.signal("CONT");
            }
            5 => {
                self.happens("all connections to Redis are cut");
                site.redis.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
            }
            6 => {
                self.happens("Redis forgets its scripts");
                site.redis.ask(&["SCRIPT", "FLUSH"]);
            }
            7 => {
                self.happens("a request to Redis is lost");
                site.proxy.swallow_next_request();
            }
            8 => {
                self.happens("the connections to Redis go dead");
                site.proxy.freeze();
                self.pass(random).await;
                site.proxy.thaw();
            }
            _ => {
                self.happens("an answer of Redis is lost");
                site.proxy.swallow_next_answer();
            }
        }
    }

    fn happens(&self, what: &'static str) {
        self.oracle.borrow_mut().happens(what, self.site.now());
    }
}

impl Site for Processes {
    async fn send(&self, server: usize, ask: &Ask, headers: Vec<(&'static str, String)>) -> Option<Reply> {
        let body = serde_json::to_string(ask).unwrap();
        match timeout(PATIENCE, request(self.ports[server], "/act", headers, &body)).await {
            Ok(reply) => reply,
            // Which nothing explains.
            Err(_) => Some(Reply::default()),
        }
    }

    async fn arrived(&self, server: usize, id: usize) {
        request(self.ports[server], &format!("/arrived/{id}"), vec![], "").await;
    }

    async fn open(&self, server: usize, id: usize) {
        request(self.ports[server], &format!("/open/{id}"), vec![], "").await;
    }

    fn now(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        u64::try_from(since.as_millis()).unwrap()
    }

    fn shake(&self, _: &mut Random) {}

    async fn pass(&self) {
        // An ID that a login has replaced counts for longer than anybody wants to wait.
        sleep(GRACE + Duration::from_millis(50)).await;
    }

    async fn settle(&self) {
        self.ending.set(true);
        drop(self.healed.acquire().await);
        // The servers' clock is not ours to set.
        sleep(GRACE + Duration::from_millis(50)).await;
    }

    fn recorded(&self, _: usize) -> Option<Option<String>> {
        None
    }

    fn saved(&self, _: usize) -> bool {
        false
    }
}

impl Server {
    /// Another process of this very program, serving on that port.
    fn start(port: u16, redis: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["fleet::processes::serves", "--exact", "--nocapture"])
            .env(PORT, port.to_string())
            .env(REDIS, redis)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listens = lines.any(|line| line.is_ok_and(|line| line == "listening"));
        assert!(listens, "the server did not start");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Run by the tests, in a process of its own.
#[test]
fn serves() {
    let (Ok(port), Ok(redis)) = (std::env::var(PORT), std::env::var(REDIS)) else { return };
    // Whoever started it may be killed, too.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let sessions = RedisSessions::builder(redis)
            .lazy(true)
            .deadline(Duration::from_millis(300))
            .request_time(Duration::from_millis(600))
            .rework_grace(GRACE)
            .touch_interval(Duration::from_millis(100))
            .max_size(MAX_SIZE)
            .connect()
            .await
            .unwrap();
        let app = App::new(sessions.erase(), None);
        let listener = TcpListener::bind(("127.0.0.1", port.parse().unwrap())).await.unwrap();
        println!("\nlistening");
        axum::serve(listener, app.router()).await.unwrap();
    });
}

/// A request over a connection of its own. `None` if that was lost before all of the answer was there.
async fn request(port: u16, path: &str, headers: Vec<(&'static str, String)>, body: &str) -> Option<Reply> {
    let mut text = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("content-length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(text.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).unwrap();
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let body = answer.split_off(end + 4);
    let length: usize = headers.iter().find(|(name, _)| name == "content-length")?.1.parse().unwrap();
    (body.len() == length).then_some(Reply { status, headers, body })
}

const GRACE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(120);
const PORT: &str = "SESSION_TEST_FLEET_PORT";
const REDIS: &str = "SESSION_TEST_FLEET_REDIS";
