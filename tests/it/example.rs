//! The login example as a child process.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use crate::ports::ports;

/// The example, serving until it is dropped.
pub struct App {
    pub child: Child,
    pub address: String,
    /// Kept open: whoever prints into a closed pipe fails.
    _stdout: BufReader<ChildStdout>,
}

impl App {
    /// On a port of its own, which stays its own while it is stopped and started again.
    pub fn start_on(store: &str) -> Self {
        Self::start_at(&format!("127.0.0.1:{}", ports(1)[0]), store)
    }

    pub fn start_at(address: &str, store: &str) -> Self {
        let command = &mut example();
        let mut child =
            command.env("LISTEN", address).env("SESSION_STORE", store).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").map(str::to_owned);
        let mut app = Self { child, address: String::new(), _stdout: stdout };
        app.address = address.unwrap_or_else(|| panic!("the example said {line:?}"));
        app
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
