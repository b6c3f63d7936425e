//! A real Chromium, driven by WebDriver: JSON over HTTP, of which tests need a dozen commands.
//!
//! See <https://www.w3.org/TR/webdriver2/>.

use std::{
    cell::RefCell,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{LazyLock, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::service::{Service, installed};

/// One browser with its own cookies and cache. Starting one takes a second: those that are done with are used again.
pub struct Browser {
    session: String,
    /// What Chromium says of each page whose status is an error. Which of them are expected is the test's to say.
    expected: RefCell<Vec<u16>>,
}

/// Chromium's driver, for all browsers.
static DRIVER: LazyLock<Option<(Service, String)>> = LazyLock::new(|| {
    installed(&["chromium", "chromium-browser", "google-chrome"])?;
    let mut driver = Service::start(&installed(&["chromedriver"])?, &["--port=0"]);
    let port = driver.says("started successfully on port ");
    Some((driver, format!("127.0.0.1:{}", port.trim_end_matches('.'))))
});

/// Browsers that nobody uses.
static IDLE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Whether there is a browser to test with.
pub fn is_there() -> bool {
    DRIVER.is_some()
}

impl Browser {
    pub fn new() -> Self {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let session = idle.unwrap_or_else(|| {
            let mut args = vec!["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions"];
            // Chromium's own sandbox does not run as root, as in a container.
            if is_root() {
                args.push("--no-sandbox");
            }
            let wanted = json!({"capabilities": {"alwaysMatch": {
                "goog:chromeOptions": {"args": args},
                "goog:loggingPrefs": {"browser": "ALL"},
                // We wait ourselves, and for one tab while another one loads.
                "pageLoadStrategy": "none",
            }}});
            command("POST", "/session", &wanted)["sessionId"].as_str().unwrap().to_owned()
        });
        let browser = Self { session, expected: RefCell::default() };
        browser.resize(1280, 900);
        browser.dark(false);
        browser
    }

    // Pages.

    #[track_caller]
    pub fn open(&self, address: &str) {
        self.leaves_by(|| drop(self.post("url", json!({"url": address}))));
    }

    /// Opens a page without waiting for it.
    pub fn begin_to_open(&self, address: &str) {
        self.post("url", json!({"url": address}));
    }

    #[track_caller]
    pub fn reload(&self) {
        self.leaves_by(|| drop(self.post("refresh", json!({}))));
    }

    #[track_caller]
    pub fn back(&self) {
        self.leaves_by(|| drop(self.post("back", json!({}))));
    }

    #[track_caller]
    pub fn forward(&self) {
        self.leaves_by(|| drop(self.post("forward", json!({}))));
    }

    /// Does what leads to another page, and waits until that is there.
    #[track_caller]
    pub fn leaves_by(&self, leave: impl FnOnce()) {
        let old = self.document();
        leave();
        let begun = Instant::now();
        while self.document() == old || !self.is_loaded() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{} stays: {}", self.path(), self.text());
            // The browser has better things to do than to answer.
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What Chromium calls the document of this tab.
    fn document(&self) -> Value {
        self.devtools("Page.getFrameTree", json!({}))["frameTree"]["frame"]["loaderId"].clone()
    }

    fn is_loaded(&self) -> bool {
        // While one page gives way to the next, there is nothing to ask.
        let state = self.try_post("execute/sync", json!({"script": "return document.readyState", "args": []}));
        state.is_ok_and(|state| state == "complete")
    }

    /// The path of the page.
    pub fn path(&self) -> String {
        let address = self.get("url");
        address.as_str().unwrap().splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap_or_default()
    }

    pub fn title(&self) -> String {
        self.get("title").as_str().unwrap().to_owned()
    }

    /// All text that is to be seen.
    pub fn text(&self) -> String {
        self.text_of("body")
    }

    #[track_caller]
    pub fn shows(&self, text: &str) {
        let all = self.text();
        assert!(all.contains(text), "{text:?} is not on {}:\n{all}", self.path());
    }

    #[track_caller]
    pub fn hides(&self, text: &str) {
        let all = self.text();
        assert!(!all.contains(text), "{text:?} is on {}:\n{all}", self.path());
    }

    /// Waits until a page shows that.
    #[track_caller]
    pub fn comes_to_show(&self, text: &str) {
        let begun = Instant::now();
        while !self.text().contains(text) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{text:?} never came:\n{}", self.text());
            thread::sleep(Duration::from_millis(5));
        }
    }

    // What is on them.

    #[track_caller]
    pub fn text_of(&self, css: &str) -> String {
        self.get(&format!("element/{}/text", self.find("css selector", css))).as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn fill(&self, css: &str, text: &str) {
        let element = self.find("css selector", css);
        self.post(&format!("element/{element}/clear"), json!({}));
        self.post(&format!("element/{element}/value"), json!({"text": text}));
    }

    /// Clicks what changes this page.
    #[track_caller]
    pub fn click(&self, css: &str) {
        self.click_on(&self.find("css selector", css));
    }

    /// Clicks what leads to another page.
    #[track_caller]
    pub fn follow(&self, css: &str) {
        let element = self.find("css selector", css);
        self.leaves_by(|| self.click_on(&element));
    }

    /// The same, by what the button or link says.
    #[track_caller]
    pub fn press(&self, label: &str) {
        let element = self.find("xpath", &format!("//*[self::button or self::a][normalize-space()='{label}']"));
        self.leaves_by(|| self.click_on(&element));
    }

    fn click_on(&self, element: &str) {
        self.post(&format!("element/{element}/click"), json!({}));
    }

    pub fn count(&self, css: &str) -> usize {
        let found = self.post("elements", json!({"using": "css selector", "value": css}));
        found.as_array().unwrap().len()
    }

    #[track_caller]
    fn find(&self, using: &str, value: &str) -> String {
        let found = self.try_post("element", json!({"using": using, "value": value}));
        let found = found.unwrap_or_else(|error| panic!("{value} on {}: {error}\n{}", self.path(), self.text()));
        found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned()
    }

    /// Types, to whatever has the focus.
    pub fn keys(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.to_string()})))
            .collect();
        self.post("actions", json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}));
    }

    /// What the script returns.
    pub fn run(&self, script: &str) -> Value {
        self.post("execute/sync", json!({"script": script, "args": []}))
    }

    /// What the script hands to its last argument.
    pub fn run_and_wait(&self, script: &str) -> Value {
        self.post("execute/async", json!({"script": script, "args": []}))
    }

    // The browser.

    pub fn cookies(&self) -> Vec<Value> {
        self.get("cookie").as_array().unwrap().clone()
    }

    /// The session's cookie.
    pub fn cookie(&self) -> Option<Value> {
        self.cookies().into_iter().find(|cookie| cookie["name"] == "__Host-id")
    }

    /// Its value.
    #[track_caller]
    pub fn id(&self) -> String {
        self.cookie().expect("there is a session")["value"].as_str().unwrap().to_owned()
    }

    pub fn set_id(&self, id: &str) {
        self.post(
            "cookie",
            json!({"cookie": {"name": "__Host-id", "value": id, "path": "/", "secure": true, "httpOnly": true}}),
        );
    }

    /// Sets the size of the page.
    pub fn resize(&self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", size);
        self.devtools("Emulation.setScrollbarsHidden", json!({"hidden": true}));
    }

    pub fn dark(&self, is_dark: bool) {
        let scheme = if is_dark { "dark" } else { "light" };
        // Without motion there is nothing in between.
        let motion = json!({"name": "prefers-reduced-motion", "value": "reduce"});
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}, motion]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    pub fn scripts(&self, on: bool) {
        self.devtools("Emulation.setScriptExecutionDisabled", json!({"value": !on}));
    }

    pub fn says_it_is(&self, agent: &str) {
        self.devtools("Network.setUserAgentOverride", json!({"userAgent": agent}));
    }

    /// A picture of what is to be seen of the page, as WebP in base64: a third of what Chromium makes of it as PNG.
    pub fn picture(&self) -> String {
        let picture = self.devtools("Page.captureScreenshot", json!({"format": "webp", "quality": 85}));
        picture["data"].as_str().unwrap().to_owned()
    }

    /// Opens another tab, and gives a handle to this one.
    pub fn new_tab(&self) -> String {
        let old = self.get("window").as_str().unwrap().to_owned();
        let new = self.post("window/new", json!({"type": "tab"}));
        self.switch_to(new["handle"].as_str().unwrap());
        old
    }

    /// The handle of this tab.
    pub fn tab(&self) -> String {
        self.get("window").as_str().unwrap().to_owned()
    }

    pub fn switch_to(&self, tab: &str) {
        self.post("window", json!({"handle": tab}));
    }

    /// Calls Chromium's own protocol.
    pub fn devtools(&self, method: &str, params: Value) -> Value {
        self.post("goog/cdp/execute", json!({"cmd": method, "params": params}))
    }

    /// That some pages may have that status.
    pub fn expect(&self, status: u16) {
        self.expected.borrow_mut().push(status);
    }

    /// That nothing is in the console but that pages had the statuses that they should.
    pub fn check_console(&self) {
        let entries = self.post("se/log", json!({"type": "browser"}));
        for entry in entries.as_array().unwrap() {
            let message = entry["message"].as_str().unwrap();
            let is_expected = |status: &u16| message.contains(&format!("responded with a status of {status} "));
            assert!(self.expected.borrow().iter().any(is_expected), "the console says: {entry}");
        }
    }

    fn get(&self, path: &str) -> Value {
        command("GET", &format!("/session/{}/{path}", self.session), &Value::Null)
    }

    #[track_caller]
    fn post(&self, path: &str, body: Value) -> Value {
        self.try_post(path, body).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn try_post(&self, path: &str, body: Value) -> Result<Value, String> {
        send("POST", &format!("/session/{}/{path}", self.session), &body)
    }

    /// Makes it as if new.
    fn reset(&self) {
        let tabs = self.get("window/handles");
        let tabs = tabs.as_array().unwrap();
        for tab in &tabs[1..] {
            self.switch_to(tab.as_str().unwrap());
            command("DELETE", &format!("/session/{}/window", self.session), &Value::Null);
        }
        self.switch_to(tabs[0].as_str().unwrap());
        self.open("about:blank");
        for method in ["Network.clearBrowserCookies", "Network.clearBrowserCache", "Page.resetNavigationHistory"] {
            self.devtools(method, json!({}));
        }
        self.devtools("Network.setUserAgentOverride", json!({"userAgent": ""}));
        self.scripts(true);
        self.post("se/log", json!({"type": "browser"}));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // One in an unknown state is not used again; it ends with the driver.
        if !std::thread::panicking() {
            self.reset();
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(self.session.clone());
        }
    }
}

#[track_caller]
fn command(method: &str, path: &str, body: &Value) -> Value {
    send(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

fn send(method: &str, path: &str, body: &Value) -> Result<Value, String> {
    let (_, address) = DRIVER.as_ref().expect("there is a driver");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n");
    let request = format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).unwrap();

    let mut answer = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while answer.read_line(&mut line).unwrap() > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    answer.read_exact(&mut body).unwrap();
    let mut answer: Value = serde_json::from_slice(&body).unwrap();
    let value = answer["value"].take();
    match value.get("error") {
        Some(error) => Err(format!("{error}: {}", value["message"])),
        None => Ok(value),
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| std::os::unix::fs::MetadataExt::uid(&process) == 0)
}
