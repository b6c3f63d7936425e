//! A browser as its user sees it: pages, forms, tabs, cookies.

use std::{
    cell::RefCell,
    thread,
    time::{Duration, Instant},
};

use fantoccini::{
    Client, Locator,
    actions::{InputSource, KeyAction, KeyActions},
    elements::Element,
    wd::WindowHandle,
};
use serde_json::{Value, json};

use crate::driver::{self, Command, PATIENCE, wait};

/// One Chromium with its own cookies and cache.
pub struct Browser {
    client: Client,
    /// Chromium reports each page whose status is an error. A test says which of them it expects.
    expected: RefCell<Vec<u16>>,
}

impl Browser {
    pub fn new() -> Self {
        let browser = Self { client: driver::take(), expected: RefCell::default() };
        browser.resize(1280, 900);
        browser.dark(false);
        browser
    }

    // Pages.

    #[track_caller]
    pub fn open(&self, address: &str) {
        self.leaves_by(|| self.begin_to_open(address));
    }

    /// Opens a page without waiting for it.
    #[track_caller]
    pub fn begin_to_open(&self, address: &str) {
        wait(self.client.goto(address)).unwrap();
    }

    #[track_caller]
    pub fn reload(&self) {
        self.leaves_by(|| wait(self.client.refresh()).unwrap());
    }

    #[track_caller]
    pub fn back(&self) {
        self.leaves_by(|| wait(self.client.back()).unwrap());
    }

    #[track_caller]
    pub fn forward(&self) {
        self.leaves_by(|| wait(self.client.forward()).unwrap());
    }

    /// Does what leads to another page, and waits until that page is there.
    #[track_caller]
    pub fn leaves_by(&self, leave: impl FnOnce()) {
        let old = self.document();
        leave();
        let begun = Instant::now();
        while self.document() == old || !self.is_loaded() {
            assert!(begun.elapsed() < PATIENCE, "{} stays: {}", self.path(), self.text());
            // The browser has better things to do than to answer.
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Chromium's ID of the document in this tab.
    fn document(&self) -> Value {
        self.devtools("Page.getFrameTree", json!({}))["frameTree"]["frame"]["loaderId"].clone()
    }

    fn is_loaded(&self) -> bool {
        // Between two pages there is none that could be asked.
        wait(self.client.execute("return document.readyState", vec![])).is_ok_and(|state| state == "complete")
    }

    /// The path of the page.
    pub fn path(&self) -> String {
        let address = wait(self.client.current_url()).unwrap();
        address[url::Position::BeforePath..].to_owned()
    }

    pub fn title(&self) -> String {
        wait(self.client.title()).unwrap()
    }

    /// All visible text.
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

    /// Waits until the page shows this text. The page may still be loading.
    #[track_caller]
    pub fn comes_to_show(&self, text: &str) {
        let begun = Instant::now();
        while !self.text_so_far().contains(text) {
            assert!(begun.elapsed() < PATIENCE, "{text:?} never came:\n{}", self.text_so_far());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// All visible text. Between two pages there is none.
    fn text_so_far(&self) -> String {
        wait(async { self.client.find(Locator::Css("body")).await?.text().await }).unwrap_or_default()
    }

    /// Waits until the element with this ID has the focus. It comes there by itself, after the page is loaded.
    #[track_caller]
    pub fn comes_to_focus(&self, id: &str) {
        let begun = Instant::now();
        while self.run("return document.activeElement.id") != id {
            assert!(begun.elapsed() < PATIENCE, "{id:?} never gets the focus on {}", self.path());
            thread::sleep(Duration::from_millis(5));
        }
    }

    // What is on them.

    #[track_caller]
    pub fn text_of(&self, css: &str) -> String {
        wait(self.find(Locator::Css(css)).text()).unwrap()
    }

    #[track_caller]
    pub fn fill(&self, css: &str, text: &str) {
        let field = self.find(Locator::Css(css));
        wait(field.clear()).unwrap();
        wait(field.send_keys(text)).unwrap();
    }

    /// Clicks on something that changes this page.
    #[track_caller]
    pub fn click(&self, css: &str) {
        wait(self.find(Locator::Css(css)).click()).unwrap();
    }

    /// Clicks on something that leads to another page.
    #[track_caller]
    pub fn follow(&self, css: &str) {
        let element = self.find(Locator::Css(css));
        self.leaves_by(|| wait(element.click()).unwrap());
    }

    /// The same, by the label of the button or link.
    #[track_caller]
    pub fn press(&self, label: &str) {
        let path = format!("//*[self::button or self::a][normalize-space()='{label}']");
        let element = self.find(Locator::XPath(&path));
        self.leaves_by(|| wait(element.click()).unwrap());
    }

    pub fn count(&self, css: &str) -> usize {
        wait(self.client.find_all(Locator::Css(css))).unwrap().len()
    }

    #[track_caller]
    fn find(&self, locator: Locator<'_>) -> Element {
        let found = wait(self.client.find(locator));
        found.unwrap_or_else(|error| match locator {
            // There is no text to show of a page without a body.
            Locator::Css("body") => panic!("{}: {error}", self.path()),
            _ => panic!("{locator:?} on {}: {error}\n{}", self.path(), self.text()),
        })
    }

    /// Types into the element that has the focus.
    #[track_caller]
    pub fn keys(&self, keys: &str) {
        let actions = keys.chars().fold(KeyActions::new("keyboard".to_owned()), |actions, value| {
            actions.then(KeyAction::Down { value }).then(KeyAction::Up { value })
        });
        wait(self.client.perform_actions(actions)).unwrap();
    }

    /// What the script returns.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        wait(self.client.execute(script, vec![])).unwrap()
    }

    /// What the script passes to its last argument.
    #[track_caller]
    pub fn run_and_wait(&self, script: &str) -> Value {
        wait(self.client.execute_async(script, vec![])).unwrap()
    }

    // The browser.

    /// All cookies, as WebDriver shows them: a parsed cookie would have lost the dot in front of its domain.
    pub fn cookies(&self) -> Vec<Value> {
        self.command(Command::get("cookie")).as_array().unwrap().clone()
    }

    /// The session's cookie: the user's, otherwise the visitor's.
    pub fn cookie(&self) -> Option<Value> {
        let cookies = self.cookies();
        let named = |name: &str| cookies.iter().find(|cookie| cookie["name"] == name).cloned();
        named("__Host-id").or_else(|| named("__Host-id-visitor"))
    }

    /// Its value.
    #[track_caller]
    pub fn id(&self) -> String {
        self.cookie().expect("there is a session")["value"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn set_id(&self, id: &str) {
        let cookie = json!({"name": "__Host-id", "value": id, "path": "/", "secure": true, "httpOnly": true});
        self.command(Command::post("cookie", json!({"cookie": cookie})));
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

    /// A picture of the visible part of the page, as WebP in base64. WebDriver would make it a PNG of three times the size.
    pub fn picture(&self) -> String {
        let picture = self.devtools("Page.captureScreenshot", json!({"format": "webp", "quality": 85}));
        picture["data"].as_str().unwrap().to_owned()
    }

    /// Opens another tab, and returns a handle to this one.
    pub fn new_tab(&self) -> WindowHandle {
        let old = self.tab();
        self.switch_to(&wait(self.client.new_window(true)).unwrap().handle);
        old
    }

    /// The handle of this tab.
    pub fn tab(&self) -> WindowHandle {
        wait(self.client.window()).unwrap()
    }

    #[track_caller]
    pub fn switch_to(&self, tab: &WindowHandle) {
        wait(self.client.switch_to_window(tab.clone())).unwrap();
    }

    /// Calls the Chrome DevTools Protocol.
    #[track_caller]
    pub fn devtools(&self, method: &str, params: Value) -> Value {
        self.command(Command::post("goog/cdp/execute", json!({"cmd": method, "params": params})))
    }

    /// Lets pages have this status.
    pub fn expect(&self, status: u16) {
        self.expected.borrow_mut().push(status);
    }

    /// Checks that the console has only the statuses that the test expects.
    pub fn check_console(&self) {
        let entries = self.console();
        for entry in entries.as_array().unwrap() {
            let message = entry["message"].as_str().unwrap();
            let is_expected = |status: &u16| message.contains(&format!("responded with a status of {status} "));
            assert!(self.expected.borrow().iter().any(is_expected), "the console says: {entry}");
        }
    }

    /// What is new in the console.
    fn console(&self) -> Value {
        self.command(Command::post("se/log", json!({"type": "browser"})))
    }

    #[track_caller]
    fn command(&self, command: Command) -> Value {
        wait(command.send(&self.client)).unwrap()
    }

    /// Makes the browser like new.
    fn reset(&self) {
        let tabs = wait(self.client.windows()).unwrap();
        for tab in &tabs[1..] {
            self.switch_to(tab);
            wait(self.client.close_window()).unwrap();
        }
        self.switch_to(&tabs[0]);
        self.open("about:blank");
        for method in ["Network.clearBrowserCookies", "Network.clearBrowserCache", "Page.resetNavigationHistory"] {
            self.devtools(method, json!({}));
        }
        self.says_it_is("");
        self.scripts(true);
        self.console();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A browser in an unknown state is not used again. Its client ends it.
        if !thread::panicking() {
            self.reset();
            driver::give_back(self.client.clone());
        }
    }
}
