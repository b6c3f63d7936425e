//! Chromium's WebDriver server, and the WebDriver sessions that tests open on it.

use std::{
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use fantoccini::{
    Client, ClientBuilder,
    error::{CmdError, NewSessionError},
    wd::WebDriverCompatibleCommand,
};
use http::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use url::{ParseError, Url};

use crate::service::{Service, installed};

/// One server for all browsers, and its address.
static DRIVER: LazyLock<Option<(Service, String)>> = LazyLock::new(|| {
    installed(&["chromium", "chromium-browser", "google-chrome"])?;
    let mut driver = Service::start(&installed(&["chromedriver"])?, &["--port=0"]);
    let port = driver.says("started successfully on port ");
    Some((driver, format!("http://127.0.0.1:{}", port.trim_end_matches('.'))))
});

/// Browsers that no test uses. Starting one takes a second, so they are used again.
static IDLE: Mutex<Vec<Client>> = Mutex::new(Vec::new());

/// Runs the clients. Tests are plain functions, each on its own thread.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

/// Whether there is a browser to test with.
pub fn is_there() -> bool {
    DRIVER.is_some()
}

/// An idle browser, or a new one.
pub fn take() -> Client {
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    idle.unwrap_or_else(|| wait(connect()).unwrap_or_else(|error| panic!("no browser starts: {error}")))
}

/// Keeps a browser for the next test that wants one.
pub fn give_back(client: Client) {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(client);
}

async fn connect() -> Result<Client, NewSessionError> {
    let (_, address) = DRIVER.as_ref().expect("there is a driver");
    let mut args = vec!["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions"];
    // Chromium's own sandbox does not run as root, as in a container.
    if is_root() {
        args.push("--no-sandbox");
    }
    let Value::Object(capabilities) = json!({
        "goog:chromeOptions": {"args": args},
        "goog:loggingPrefs": {"browser": "ALL"},
        // The tests wait themselves: for one tab while another one loads.
        "pageLoadStrategy": "none",
        "timeouts": {"script": PATIENCE.as_secs() * 1_000},
    }) else {
        unreachable!("it is an object")
    };
    ClientBuilder::new(HttpConnector::new()).capabilities(capabilities).connect(address).await
}

/// What takes a browser longer than this never ends, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Waits for an answer of the driver.
#[track_caller]
pub fn wait<T>(answer: impl Future<Output = T>) -> T {
    let answer = RUNTIME.block_on(async { tokio::time::timeout(PATIENCE, answer).await });
    answer.expect("the driver answers")
}

/// A command that fantoccini has no method for: one of Chromium's, or one whose answer is wanted as it is.
#[derive(Debug)]
pub struct Command {
    path: &'static str,
    /// Sent by POST. Without a body it is a GET.
    body: Option<Value>,
}

impl Command {
    pub fn get(path: &'static str) -> Self {
        Self { path, body: None }
    }

    pub fn post(path: &'static str, body: Value) -> Self {
        Self { path, body: Some(body) }
    }

    pub async fn send(self, client: &Client) -> Result<Value, CmdError> {
        client.issue_cmd(self).await
    }
}

impl WebDriverCompatibleCommand for Command {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        match &self.body {
            Some(body) => (Method::POST, Some(body.to_string())),
            None => (Method::GET, None),
        }
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| std::os::unix::fs::MetadataExt::uid(&process) == 0)
}
