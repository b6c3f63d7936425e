//! The login example: its binary over a socket, with a client that keeps cookies.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use crate::{
    example::{App, example, retry},
    folder::Folder,
};

const ADA: &str = "analytical engine";
const GRACE: &str = "nanoseconds matter";

#[test]
fn a_user_sees_all_own_sessions_and_ends_the_one_on_another_device() {
    let app = start();
    let [mut laptop, mut phone] = [(); 2].map(|()| signed_in(&app));
    assert_eq!(laptop.get("/sessions").sessions().len(), 2);
    assert_eq!(phone.get("/sessions").sessions().len(), 2);

    let other = laptop.get("/sessions").another_session();
    let done = laptop.post("/sessions/end", &[("handle", &other)]);
    assert_eq!((done.status, done.header("location")), (303, Some("/sessions")));
    let list = laptop.get("/sessions");
    assert!(list.shows("That session is signed out."));
    assert_eq!(list.sessions().len(), 1);
    assert!(!laptop.get("/sessions").shows("That session is signed out."), "it is said once");

    assert!(phone.get("/sessions").asks_to_sign_in());
    assert!(laptop.get("/").shows("Hello, ada"));
}

#[test]
fn ending_the_session_of_this_device_signs_out_and_removes_the_cookie() {
    let app = start();
    let mut browser = signed_in(&app);
    let own = browser.get("/sessions").this_session();
    browser.post("/sessions/end", &[("handle", &own)]);
    assert!(browser.cookies.is_empty());
    assert!(browser.get("/sessions").asks_to_sign_in());
}

#[test]
fn p20_who_signs_in_on_too_many_devices_is_told_that_one_was_signed_out() {
    let app = start();
    let mut browsers: Vec<Browser> = (0..6).map(|_| browser_of(&app)).collect();
    for browser in &mut browsers {
        browser.sign_in("ada", ADA);
    }
    assert!(browsers[0].get("/sessions").asks_to_sign_in());
    let page = browsers[5].get("/sessions");
    assert!(page.shows("signed out on one device") && page.sessions().len() == 5, "{}", page.body);
    assert!(!browsers[5].get("/sessions").shows("signed out on one device"));
}

#[test]
fn p21_a_page_that_is_open_says_that_its_session_was_ended_in_another_browser() {
    let app = start();
    let [mut laptop, mut phone] = [(); 2].map(|()| signed_in(&app));
    let mut tab = browser_of(&app);
    tab.cookies.clone_from(&phone.cookies);
    let mut page = tab.begin("GET", "/sessions/live", "");
    let mut shown = String::new();
    while !shown.contains("It will say so here.") {
        let mut some = [0; 4096];
        let read = page.read(&mut some).unwrap();
        assert!(read > 0 && !shown.contains("</html>"), "{shown}");
        shown += std::str::from_utf8(&some[..read]).unwrap();
    }
    let other = laptop.get("/sessions").another_session();
    laptop.post("/sessions/end", &[("handle", &other)]);
    page.read_to_string(&mut shown).unwrap();
    assert!(shown.contains("This session was signed out.") && shown.contains("</html>"), "{shown}");
    assert!(phone.get("/sessions/live").asks_to_sign_in());
}

#[test]
fn nobody_ends_the_session_of_another_user() {
    let app = start();
    let (mut ada, mut grace) = (browser_of(&app), browser_of(&app));
    ada.sign_in("ada", ADA);
    grace.sign_in("grace", GRACE);
    let of_ada = ada.get("/sessions").this_session();
    grace.post("/sessions/end", &[("handle", &of_ada)]);
    assert!(grace.get("/sessions").shows("That session had ended before."));
    assert_eq!(ada.get("/sessions").status, 200);
}

#[test]
fn a_wrong_password_and_an_unknown_user_are_told_the_same() {
    let app = start();
    let mut browser = browser_of(&app);
    let wrong = browser.post("/login", &[("username", "ada"), ("password", GRACE)]);
    let unknown = browser.post("/login", &[("username", "\"><script>"), ("password", ADA)]);
    let nobody = browser.post("/login", &[("username", " "), ("password", ADA)]);
    for answer in [&wrong, &unknown, &nobody] {
        assert_eq!(answer.status, 401);
        assert!(answer.shows("That user name and that password do not go together."));
        assert!(answer.asks_to_sign_in());
    }
    assert!(wrong.shows("value=\"ada\""), "the name need not be typed again");
    assert!(unknown.shows("value=\"&quot;&gt;&lt;script&gt;\""), "what was typed is text, never markup");
    assert!(browser.cookies.is_empty());
    assert_eq!(browser.get("/sessions").status, 401);
}

#[test]
fn attempts_are_counted_by_user_name_and_by_address() {
    // Nobody is told whether there is such a user.
    for username in ["ada", "nobody"] {
        let app = start();
        let mut browser = browser_of(&app);
        let mut tried = |username: &str| browser.post("/login", &[("username", username), ("password", "wrong")]);
        // Half a minute gives one more, and a busy machine may take that for some of them.
        let refused = (0..1000).map(|_| tried(username)).find(|answer| answer.status != 401).unwrap();
        assert_eq!(refused.status, 429);
        assert!(refused.shows("Too many attempts. Please wait "));
        assert!(refused.shows(&format!("value=\"{username}\"")) && refused.header("retry-after").is_none());
        // Three seconds do.
        let refused = (0..1000).map(|_| tried("grace")).find(|answer| answer.header("retry-after").is_some()).unwrap();
        assert_eq!(refused.status, 429);
        assert!(refused.shows("Too many attempts. Please wait "));
        // Whoever is in is not kept from anything else.
        assert_eq!(browser.get("/").status, 200);
    }
}

#[test]
fn after_signing_in_one_sees_the_page_that_one_wanted_and_no_other_site() {
    let app = start();
    for (wanted, seen) in [("/recovery", "/recovery"), ("https://attacker.example/", "/"), ("//attacker.example", "/")]
    {
        let mut browser = browser_of(&app);
        let asked = browser.get("/recovery");
        assert!(asked.shows("name=\"next\" value=\"/recovery\""));
        let answer = browser.post("/login", &[("username", " ada "), ("password", ADA), ("next", wanted)]);
        assert_eq!((answer.status, answer.header("location")), (303, Some(seen)));
    }
}

#[test]
fn a_new_id_is_the_same_session() {
    let app = start();
    let mut browser = signed_in(&app);
    let (handle, id) = (browser.get("/sessions").this_session(), browser.id());
    browser.post("/sessions/rotate", &[]);
    let home = browser.get("/sessions");
    assert!(home.shows("This session has a new ID."));
    assert_ne!(browser.id(), id);
    assert_eq!(home.this_session(), handle);
    assert_eq!(home.sessions().len(), 1);
}

#[test]
fn signing_out_everywhere_ends_all_of_the_users_sessions_and_nobody_elses() {
    let app = start();
    let (mut laptop, mut phone, mut grace) = (browser_of(&app), browser_of(&app), browser_of(&app));
    laptop.sign_in("ada", ADA);
    phone.sign_in("ada", ADA);
    grace.sign_in("grace", GRACE);
    laptop.post("/logout-everywhere", &[]);
    assert!(laptop.cookies.is_empty());
    assert!(laptop.get("/sessions").asks_to_sign_in());
    assert!(phone.get("/sessions").asks_to_sign_in());
    assert_eq!(grace.get("/sessions").status, 200);
}

#[test]
fn a_thief_who_ends_sessions_all_the_time_does_not_keep_the_owner_out() {
    let app = start();
    let (mut ada, mut thief) = (browser_of(&app), browser_of(&app));
    thief.sign_in("ada", ADA);
    for (path, form) in [("/sessions/end-others", &[][..]), ("/sessions/end", &[("handle", "another")])] {
        // Two minutes give one more, and a busy machine may take that for some of them.
        let refused = (0..1000).map(|_| thief.post(path, form)).find(|answer| answer.status != 303).unwrap();
        assert_eq!(refused.status, 429);
        assert!(refused.shows("Too many attempts. Please wait ") && refused.header("retry-after").is_some());
    }
    // What ends everything has a limit of its own, and so has another user.
    ada.sign_in("ada", ADA);
    let mut grace = browser_of(&app);
    grace.sign_in("grace", GRACE);
    assert_eq!(grace.post("/sessions/end-others", &[]).status, 303);
    assert_eq!(ada.post("/logout-everywhere", &[]).status, 303);
    assert!(thief.get("/sessions").asks_to_sign_in());
    // It is the user who counts, and not the session.
    let mut again = || {
        grace.sign_in("grace", GRACE);
        grace.post("/logout-everywhere", &[])
    };
    assert_eq!((0..1000).map(|_| again()).find(|answer| answer.status != 303).unwrap().status, 429);
    // What ends this session alone never is.
    assert_eq!(grace.post("/logout", &[]).status, 303);
}

#[test]
fn the_counter_of_a_visitor_is_kept_across_sign_in_and_the_id_is_not() {
    let app = start();
    let mut browser = browser_of(&app);
    assert!(browser.get("/").shows("been here <strong>once</strong>"));
    assert!(browser.get("/").shows("been here <strong>2 times</strong>"));
    let before = browser.cookies.clone();
    browser.sign_in("ada", ADA);
    assert_ne!(browser.cookies, before);
    assert!(browser.get("/").shows("been here <strong>3 times</strong>"));

    let mut thief = browser_of(&app);
    thief.cookies = before;
    assert!(thief.get("/sessions").asks_to_sign_in());
    assert!(browser.get("/").shows("been here <strong>4 times</strong>"));
}

#[test]
fn a_form_from_another_site_is_refused_in_words() {
    let app = start();
    let mut browser = signed_in(&app);
    browser.extra = vec![("Sec-Fetch-Site", "cross-site")];
    let by_site = browser.post("/logout-everywhere", &[]);
    browser.extra = vec![("Origin", "https://attacker.example")];
    let by_origin = browser.post("/logout", &[]);
    for answer in [by_site, by_origin] {
        assert_eq!(answer.status, 403);
        assert!(answer.shows("That form came from another site. Nothing was done."));
    }
    browser.extra = vec![("Sec-Fetch-Site", "same-origin")];
    assert_eq!(browser.get("/sessions").status, 200);
    assert_eq!(browser.post("/logout", &[]).status, 303);
}

#[test]
fn the_private_page_is_for_those_who_are_signed_in() {
    let app = start();
    let mut browser = browser_of(&app);
    let refused = browser.get("/sessions");
    assert_eq!(refused.status, 401);
    assert!(refused.shows("Please sign in first.") && refused.asks_to_sign_in());
    assert!(refused.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));

    browser.sign_in("grace", GRACE);
    assert!(browser.get("/sessions").shows("nowhere else"));
    browser.post("/logout", &[]);
    assert!(browser.cookies.is_empty());
    assert_eq!(browser.get("/sessions").status, 401);
}

#[test]
fn every_answer_forbids_scripts_frames_and_storing() {
    let app = start();
    let mut browser = browser_of(&app);
    for path in ["/", "/sessions", "/nowhere"] {
        let answer = browser.get(path);
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    }
    let reopened = browser.get("/logout");
    assert_eq!((reopened.status, reopened.header("allow")), (405, Some("POST")));
    assert!(reopened.shows("This address only takes what a form sends."));
    assert_eq!(browser.get("/nowhere").status, 404);
    assert_eq!(browser.get("/style.css").header("content-type"), Some("text/css; charset=utf-8"));
}

#[test]
#[cfg(unix)]
fn an_interrupt_ends_it_in_order() {
    let mut app = start();
    browser_of(&app).get("/");
    let pid = app.child.id().to_string();
    assert!(Command::new("sh").args(["-c", "kill -INT \"$0\"", &pid]).status().unwrap().success());
    assert!(app.child.wait().unwrap().success());
}

#[test]
fn who_signed_in_is_still_signed_in_when_it_is_stopped_and_started() {
    let folder = Folder::new();
    let store = format!("json:{}", folder.file().display());
    let app = App::start_on(&store);
    let mut browser = signed_in(&app);
    // It gets no chance to say goodbye.
    drop(app);
    let app = App::start_on(&store);
    browser.address.clone_from(&app.address);
    assert!(browser.get("/").shows("Hello, ada"));
    browser.post("/logout", &[]);
    drop(app);
    let app = App::start_on(&store);
    browser.address.clone_from(&app.address);
    assert!(browser.get("/sessions").asks_to_sign_in());
}

#[test]
fn a_store_that_is_not_there_is_an_error_in_words() {
    let output = example().env("SESSION_STORE", "floppy:secret").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains("SESSION_STORE") && said.contains("floppy") && !said.contains("secret"), "{said}");
}

#[cfg(feature = "redis")]
#[test]
fn two_processes_on_one_redis_are_one_application() {
    use crate::{
        ports::ports,
        redis::{harness::binary, process::Process},
    };
    let Some(binary) = binary() else { return };
    // A login that is answered too late may have left a session, which would be listed: then begin with another server.
    let (_redis, apps, mut browser, mut phone) = retry(|| {
        let redis = Process::start_on(&binary, ports(1)[0], &[]);
        let apps = [App::start_on(&redis.uri()), App::start_on(&redis.uri())];
        let [mut browser, mut phone] = apps.each_ref().map(browser_of);
        browser.sign_in_once("ada", ADA)?;
        phone.sign_in_once("ada", ADA)?;
        Some((redis, apps, browser, phone))
    });
    browser.address.clone_from(&apps[1].address);
    assert_eq!(browser.get("/sessions").status, 200);
    assert_eq!(browser.get("/sessions").sessions().len(), 2);
    phone.post("/logout-everywhere", &[]);
    assert_eq!(browser.get("/sessions").status, 401);
    browser.address.clone_from(&apps[0].address);
    assert_eq!(browser.get("/sessions").status, 401);
}

fn start() -> App {
    App::start_on("memory")
}

fn browser_of(app: &App) -> Browser {
    Browser { address: app.address.clone(), cookies: BTreeMap::new(), extra: Vec::new() }
}

/// One that is signed in as `ada`.
fn signed_in(app: &App) -> Browser {
    let mut browser = browser_of(app);
    browser.sign_in("ada", ADA);
    browser
}

/// One browser: a connection for each request, and a jar of cookies.
struct Browser {
    address: String,
    cookies: BTreeMap<String, String>,
    /// Headers that go with every request.
    extra: Vec<(&'static str, &'static str)>,
}

struct Page {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Browser {
    fn get(&mut self, path: &str) -> Page {
        self.send("GET", path, "")
    }

    fn post(&mut self, path: &str, form: &[(&str, &str)]) -> Page {
        let pairs: Vec<_> = form.iter().map(|(name, value)| format!("{name}={}", percent_encoded(value))).collect();
        self.send("POST", path, &pairs.join("&"))
    }

    #[track_caller]
    fn sign_in(&mut self, username: &str, password: &str) {
        retry(|| self.sign_in_once(username, password));
    }

    /// Returns `None` if the store was too late. It may have stored the session then.
    #[track_caller]
    fn sign_in_once(&mut self, username: &str, password: &str) -> Option<()> {
        let answer = self.post("/login", &[("username", username), ("password", password)]);
        if answer.status == 503 {
            return None;
        }
        assert_eq!((answer.status, answer.header("location")), (303, Some("/")), "{}", answer.body);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        Some(())
    }

    fn id(&self) -> String {
        self.cookies.get("__Host-id").or(self.cookies.get("__Host-id-visitor")).unwrap().clone()
    }

    /// Sends a request, and leaves the answer to be read.
    fn begin(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        if method == "POST" {
            request += "Content-Type: application/x-www-form-urlencoded\r\n";
            request += &format!("Content-Length: {}\r\n", body.len());
        }
        if !self.cookies.is_empty() {
            let pairs: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            request += &format!("Cookie: {}\r\n", pairs.join("; "));
        }
        for (name, value) in &self.extra {
            request += &format!("{name}: {value}\r\n");
        }
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
        stream.write_all(format!("{request}\r\n{body}").as_bytes()).unwrap();
        stream
    }

    /// Sends a request, and sends it again if the store was too late and the request may be repeated.
    fn send(&mut self, method: &str, path: &str, body: &str) -> Page {
        let may_be_repeated = method == "GET" || path.starts_with("/logout");
        retry(|| Some(self.send_once(method, path, body)).filter(|page| page.status != 503 || !may_be_repeated))
    }

    fn send_once(&mut self, method: &str, path: &str, body: &str) -> Page {
        let mut answer = String::new();
        self.begin(method, path, body).read_to_string(&mut answer).unwrap();
        let page = Page::parse(&answer);
        for (name, value) in &page.headers {
            if name == "set-cookie" {
                self.keep(value);
            }
        }
        page
    }

    /// Takes a cookie as a browser does, and insists on what this one must say.
    fn keep(&mut self, set_cookie: &str) {
        let (pair, attributes) = set_cookie.split_once("; ").unwrap();
        let attributes: Vec<_> = attributes.split("; ").collect();
        for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/"] {
            assert!(attributes.contains(&attribute), "no {attribute} in {attributes:?}");
        }
        let (name, value) = pair.split_once('=').unwrap();
        // What makes a browser forget the pages of before.
        if name == "__Host-out" {
            return;
        }
        assert!(["__Host-id", "__Host-id-visitor"].contains(&name), "{name}");
        if attributes.contains(&"Max-Age=0") {
            self.cookies.remove(name);
        } else {
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
    }
}

impl Page {
    /// Its body has a known length or ends with the connection: the example never sends chunks.
    fn parse(answer: &str) -> Self {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Self { status, headers, body: body.to_owned() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    fn shows(&self, text: &str) -> bool {
        self.body.contains(text)
    }

    fn asks_to_sign_in(&self) -> bool {
        self.shows("action=\"/login\"")
    }

    /// The handle of each session in the list, and whether it is this device's.
    fn sessions(&self) -> Vec<(String, bool)> {
        let items = self.body.split("</li>");
        let with_handle = items.filter_map(|item| Some((item, item.split_once("name=\"handle\" value=\"")?.1)));
        with_handle
            .map(|(item, rest)| (rest.split('"').next().unwrap().to_owned(), item.contains("This device")))
            .collect()
    }

    fn this_session(&self) -> String {
        self.sessions().into_iter().find(|(_, is_this)| *is_this).unwrap().0
    }

    fn another_session(&self) -> String {
        self.sessions().into_iter().find(|(_, is_this)| !is_this).unwrap().0
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
