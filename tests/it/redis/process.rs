//! A server process that ends with the tests, even if the tests are killed.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use super::wire::{Address, Reply};
use crate::store::PATIENCE;

pub struct Process {
    binary: PathBuf,
    pub folder: PathBuf,
    pub address: Address,
    args: Vec<String>,
    running: Mutex<Vec<Child>>,
    pid: AtomicUsize,
}

impl Process {
    /// A server on a unix socket, without a file on disk unless the arguments say otherwise.
    pub fn start(binary: &Path, args: &[&str]) -> Self {
        let folder = folder();
        let address = Address::Unix(folder.join("redis.sock"));
        let socket = folder.join("redis.sock").display().to_string();
        let mut all = vec!["--port", "0", "--unixsocket", &socket, "--save", "", "--repl-diskless-sync-delay", "0"];
        all.extend(args);
        Self::start_at(binary, folder.clone(), address, &all)
    }

    /// A server on a port of loopback.
    pub fn start_on(binary: &Path, port: u16, args: &[&str]) -> Self {
        let port_text = port.to_string();
        let mut all =
            vec!["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0"];
        all.extend(args);
        Self::start_at(binary, folder(), Address::Port(port), &all)
    }

    /// A sentinel of a master called `mymaster`, which it does not hold for dead before it is told to.
    pub fn start_sentinel(binary: &Path, port: u16, master: u16, quorum: usize) -> Self {
        let folder = folder();
        let config = folder.join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {master} {quorum}\n\
             sentinel down-after-milliseconds mymaster 600000\nsentinel failover-timeout mymaster 20000\n"
        );
        fs::write(&config, text).unwrap();
        let config = config.display().to_string();
        Self::start_at(binary, folder, Address::Port(port), &[&config, "--sentinel"])
    }

    fn start_at(binary: &Path, folder: PathBuf, address: Address, args: &[&str]) -> Self {
        let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        args.extend(["--dir".to_owned(), folder.display().to_string()]);
        let process = Self {
            binary: binary.to_owned(),
            folder,
            address,
            args,
            running: Mutex::default(),
            pid: AtomicUsize::new(0),
        };
        process.run(&[]);
        process
    }

    /// Starts it, once more if it was killed, and waits until it answers.
    pub fn run(&self, more: &[&str]) {
        self.run_without_waiting(more);
        let answers = || match self.address.ask(&["PING"]) {
            Reply::Error(error) => error.starts_with("NOAUTH"),
            _ => true,
        };
        until("the server answers", answers);
    }

    pub fn run_without_waiting(&self, more: &[&str]) {
        let mut shell = Command::new("sh")
            // When our end of its input is closed, however that comes, the server goes, and its files.
            .args([
                "-c",
                r#"folder=$0; "$@" </dev/null >/dev/null 2>&1 & echo $!; cat >/dev/null; kill -9 $!; rm -rf "$folder""#,
            ])
            .arg(&self.folder)
            .arg(&self.binary)
            .args(&self.args)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut pid = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        self.pid.store(pid.trim().parse().unwrap(), SeqCst);
        self.running.lock().unwrap().push(shell);
    }

    /// `KILL`, `STOP`, `CONT`, …
    pub fn signal(&self, signal: &str) {
        let pid = self.pid.load(SeqCst).to_string();
        let done = Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap();
        assert!(done.success(), "kill -{signal}");
    }

    pub fn ask(&self, command: &[&str]) -> Reply {
        self.address.ask(command)
    }

    pub fn uri(&self) -> String {
        self.address.uri()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for mut shell in self.running.get_mut().unwrap().drain(..) {
            drop(shell.stdin.take());
            let _ = shell.wait();
        }
    }
}

fn folder() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("jam-session-redis-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst));
    let folder = std::env::temp_dir().join(name);
    // Another process may have had the same number, and been killed.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Looks again and again, and not for ever.
pub fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_server_does_not_outlive_tests_that_are_killed() {
    let Some(_) = super::harness::binary() else { return };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["redis::process::starts_a_server_and_waits", "--exact", "--nocapture"])
        .env("START_A_SERVER_AND_WAIT", "")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let socket = lines.find_map(|line| line.unwrap().strip_prefix("started ").map(PathBuf::from)).unwrap();
    let address = Address::Unix(socket.clone());
    assert!(!address.ask(&["PING"]).is_error());
    child.kill().unwrap();
    child.wait().unwrap();
    until("the server is gone, and its files", || {
        address.ask(&["PING"]).is_error() && !socket.parent().unwrap().exists()
    });
}

/// Run by the test above, in a process of its own.
#[test]
fn starts_a_server_and_waits() {
    if std::env::var_os("START_A_SERVER_AND_WAIT").is_none() {
        return;
    }
    let server = Process::start(&super::harness::binary().unwrap(), &[]);
    println!("\nstarted {}", server.folder.join("redis.sock").display());
    thread::sleep(PATIENCE);
}
