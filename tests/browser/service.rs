//! Helper processes that end with the tests, even if the tests are killed.

use std::{
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use crate::ports::ports;

/// A process, and what it starts, until this is dropped.
pub struct Service {
    shell: Child,
    stdout: BufReader<ChildStdout>,
}

impl Service {
    pub fn start(program: &PathBuf, args: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("jam-session-service-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let mut shell = Command::new("sh")
            // When our end of its input is closed, however that comes, the process goes, its children with it, and its files.
            .args([
                "-c",
                r#"TMPDIR=$0 setsid "$@" </dev/null 2>/dev/null & cat >/dev/null; kill -s KILL -- -$!; wait; rm -rf "$0""#,
            ])
            .arg(&folder)
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(shell.stdout.take().unwrap());
        Self { shell, stdout }
    }

    /// What follows that text in a line of its output.
    pub fn says(&mut self, text: &str) -> String {
        let mut lines = self.stdout.by_ref().lines();
        let found = lines.find_map(|line| line.unwrap().split_once(text).map(|(_, rest)| rest.to_owned()));
        found.unwrap_or_else(|| panic!("it never says {text:?}"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// A database of a Redis that all tests share; `None` without a server to start.
pub fn redis() -> Option<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static SERVER: LazyLock<Option<(Service, u16)>> = LazyLock::new(|| {
        let program = installed(&["redis-server", "valkey-server"])?;
        let port = ports(1)[0];
        let port_text = port.to_string();
        let args = ["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--databases", "256"];
        let mut server = Service::start(&program, &args);
        server.says("Ready to accept connections");
        Some((server, port))
    });
    let (_, port) = SERVER.as_ref()?;
    Some(format!("redis://127.0.0.1:{port}/{}", NEXT.fetch_add(1, SeqCst)))
}

/// The first of these programs that there is. Without any of them the tests say so and pass, but fail in CI.
pub fn installed(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let found =
        names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|file| file.is_file());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "there is no {} to test with", names[0]);
        eprintln!("skipped: there is no {} to test with", names[0]);
    }
    found
}
