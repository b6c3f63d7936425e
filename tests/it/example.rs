//! The login example as a child process.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::ports::ports;

/// The example, serving until it is dropped.
pub struct App {
    pub child: Child,
    pub address: String,
    /// Kept open: whoever prints into a closed pipe fails.
    stdout: BufReader<ChildStdout>,
}

impl App {
    /// On a port of its own, which stays its own while it is stopped and started again.
    pub fn start_on(store: &str) -> Self {
        Self::start_at(&format!("127.0.0.1:{}", ports(1)[0]), store)
    }

    /// Starts it again if its store was too late: the example has the default timeouts.
    pub fn start_at(address: &str, store: &str) -> Self {
        retry(|| {
            let command = &mut example();
            let mut child =
                command.env("LISTEN", address).env("SESSION_STORE", store).stdout(Stdio::piped()).spawn().unwrap();
            let mut app = Self { stdout: BufReader::new(child.stdout.take().unwrap()), address: String::new(), child };
            let mut line = String::new();
            app.stdout.read_line(&mut line).unwrap();
            app.address = line.trim().strip_prefix("listening on http://")?.to_owned();
            Some(app)
        })
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Repeats what a busy machine may be too slow for until it has a result, and not for ever.
#[track_caller]
pub fn retry<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(began.elapsed() < Duration::from_secs(300), "it never is in time");
        sleep(Duration::from_millis(50));
    }
}

/// Cargo builds examples along with the tests, and puts them beside the folder of the tests; but not for `--test it` alone.
pub fn example() -> Command {
    let tests = env::current_exe().unwrap();
    let path = PathBuf::from_iter([tests.parent().unwrap(), "../examples/login".as_ref()])
        .with_extension(env::consts::EXE_EXTENSION);
    assert!(is_built(&path), "{} is missing or old: `cargo build --example login` makes it", path.display());
    Command::new(path)
}

/// Whether it is there, and newer than all it is made from, which cargo lists beside it.
fn is_built(path: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    let sources = fs::read_to_string(path.with_extension("d")).unwrap_or_default();
    let mut sources = sources.split_whitespace().skip(1);
    path.exists() && sources.all(|source| modified(source.as_ref()) <= modified(path))
}
