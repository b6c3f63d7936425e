//! Browsers that walk through the application at random: several tabs each, one jar of cookies per browser.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    time::Instant,
};

use futures_util::future::{Either, select};
use tokio::task::{JoinHandle, spawn_local, yield_now};

use super::{
    ask::{Ask, COUNTERS, End, Kept, Moment, Reply, What, Write},
    oracle::{Cookies, Forged, Jar, Oracle, Slot, Way},
};
use crate::{random::Random, store::PATIENCE};

/// Where the application is: two servers of it, on one store. With a keyring there is a third one, which lacks the key.
pub trait Site: 'static {
    /// Sends a request. `None` if its answer was lost. Dropped, it is a client that has left.
    fn send(
        &self,
        server: usize,
        ask: &Ask,
        headers: Vec<(&'static str, String)>,
    ) -> impl Future<Output = Option<Reply>>;

    /// Waits until the handler of that request waits.
    fn arrived(&self, server: usize, id: usize) -> impl Future<Output = ()>;

    /// Lets it go on.
    fn open(&self, server: usize, id: usize) -> impl Future<Output = ()>;

    /// In milliseconds, by the clock of the application.
    fn now(&self) -> u64;

    /// Called now and then: time may pass, and what can fail may begin to fail.
    fn shake(&self, random: &mut Random);

    /// Lets the time pass that an ID which was replaced still counts.
    fn pass(&self) -> impl Future<Output = ()>;

    /// Lets everything come to an end, heals what is broken, and lets the grace of all reworks pass.
    fn settle(&self) -> impl Future<Output = ()>;

    /// What that request had loaded when its handler had recorded everything; `None` if it never came to that, or nobody knows.
    fn recorded(&self, id: usize) -> Option<Option<String>>;

    /// Whether `save` is known to have said yes to that request.
    fn saved(&self, id: usize) -> bool;
}

/// How long a walk is.
#[derive(Clone, Copy)]
pub struct Size {
    pub browsers: usize,
    pub tabs: usize,
    pub steps: usize,
}

pub struct Walk<S> {
    pub site: S,
    pub oracle: RefCell<Oracle>,
    /// What each browser has.
    jars: Vec<Held>,
    /// Nobody but the servers can read a cookie.
    is_sealed: bool,
    /// Which session a new ID leads to can be told from the answer, whatever it is. If not, there are no logins with a `Login`,
    /// which make a new session or not, and no rotations that are saved before the store fails.
    takes_logins: bool,
    /// Logins that were taken, each with its user.
    kept: RefCell<Vec<(String, Kept)>>,
}

/// A jar of cookies: a user's, and a visitor's.
#[derive(Default)]
struct Held {
    user: Cell<Option<usize>>,
    visitor: Cell<Option<usize>>,
}

/// The server that lacks the key.
pub const LACKS_KEY: usize = 2;
/// Names that would meet in a store that is not careful.
pub const USERS: [&str; 3] = ["ada", "ada:s", "{ada}*\0\u{1f980}"];

impl<S: Site> Walk<S> {
    pub fn new(site: S, oracle: Oracle, size: Size, is_sealed: bool) -> Rc<Self> {
        let jars = (0..size.browsers).map(|_| Held::default()).collect();
        let takes_logins = !is_sealed || oracle.is_steady();
        Rc::new(Self { site, oracle: RefCell::new(oracle), jars, is_sealed, takes_logins, kept: RefCell::default() })
    }

    /// Walks, and looks at everything once more in the end. What is wrong is in the oracle.
    pub async fn run(self: &Rc<Self>, size: Size, random: &mut Random) {
        let mut tabs = Vec::new();
        for browser in 0..size.browsers {
            for _ in 0..size.tabs {
                let (walk, mut random) = (Rc::clone(self), random.fork());
                tabs.push(spawn_local(async move {
                    for _ in 0..size.steps {
                        if walk.is_over() {
                            break;
                        }
                        walk.step(browser, &mut random).await;
                    }
                }));
            }
        }
        for tab in tabs {
            tab.await.unwrap();
        }
        if !self.is_over() {
            self.look_back(random).await;
        }
    }

    pub fn is_over(&self) -> bool {
        self.oracle.borrow().wrong.is_some()
    }

    async fn step(self: &Rc<Self>, browser: usize, random: &mut Random) {
        self.site.shake(random);
        match random.below(100) {
            0..60 => self.quick(browser, random).await,
            60..77 => self.slow(browser, random).await,
            77..82 => self.hold_back(browser, random).await,
            82..88 => self.leave(browser, random).await,
            88..91 => self.come_with_planted(browser, random).await,
            91 | 92 if self.is_sealed => self.come_without_key(browser, random).await,
            93..97 if self.oracle.borrow().has_limit() => self.come_anew(browser, random).await,
            _ => self.steal(browser, random).await,
        }
    }

    async fn quick(self: &Rc<Self>, browser: usize, random: &mut Random) {
        let cookie = self.jar(browser);
        let task = self.ask(browser, cookie, random, None).0;
        task.await.unwrap();
    }

    /// A request that waits in its handler, until others have been answered; or its client leaves meanwhile.
    async fn slow(self: &Rc<Self>, browser: usize, random: &mut Random) {
        let moments = [Moment::Come, Moment::Loaded, Moment::Loaded, Moment::Recorded, Moment::Recorded, Moment::Saved];
        let moment = random.one(&moments).copied();
        let cookie = self.jar(browser);
        let (mut task, server, id) = self.ask(browser, cookie, random, moment);
        if !self.arrives(&mut task, server, id).await {
            return;
        }
        for _ in 0..random.below(4) {
            match random.percent(80) {
                true => self.quick(browser, random).await,
                false => self.steal(browser, random).await,
            }
        }
        match random.percent(30) {
            true => task.abort(),
            false => self.go_on(server, id).await,
        }
        let _ = task.await;
    }

    /// A request of what signs in or out, mostly, that somebody holds back: until others have signed in and out, and what the
    /// request came with counts no more.
    async fn hold_back(self: &Rc<Self>, browser: usize, random: &mut Random) {
        let cookies = self.jar(browser);
        let mut ask = self.random_ask(&cookies, random);
        if random.percent(80) {
            let user = match self.oracle.borrow().user_of(&cookies) {
                Some(user) if random.percent(75) => user,
                _ => (*random.one(&USERS).unwrap()).to_owned(),
            };
            let what = match random.below(8) {
                0..3 => What::Bind(user),
                3 => What::Create(user),
                4 if self.takes_logins => What::OthersAndBind(user),
                4 | 5 => What::Delete,
                6 => What::Clear,
                _ => What::ClearOthers,
            };
            ask = Ask::new(ask.id, what);
            if self.takes_logins && random.percent(40) {
                self.take_login(&mut ask, random);
            }
            ask.save = ask.takes_login && self.is_sealed || random.percent(20);
        }
        ask.wait = random.one(&[Moment::Come, Moment::Loaded, Moment::Loaded, Moment::Recorded]).copied();
        let (mut task, server, id) = self.send(browser, ask, cookies.clone(), Way::default(), random.below(2), true);
        if !self.arrives(&mut task, server, id).await {
            return;
        }
        for _ in 0..1 + random.below(3) {
            match random.below(10) {
                // The owner, on the same cookies.
                0..5 => {
                    let user = self.oracle.borrow().user_of(&cookies);
                    let what = match (random.below(7), user) {
                        (0 | 1, Some(user)) => What::Bind(user),
                        (2, Some(user)) if self.takes_logins => What::OthersAndBind(user),
                        (3, _) => What::ClearOthers,
                        (4, _) => What::Rework,
                        (5, _) => What::Clear,
                        _ => What::Delete,
                    };
                    let ask = Ask::new(self.oracle.borrow().next_id(), what);
                    let task = self.send(browser, ask, self.jar(browser), Way::default(), random.below(2), true).0;
                    task.await.unwrap();
                }
                5..9 => self.quick(browser, random).await,
                _ => self.steal(browser, random).await,
            }
        }
        if random.percent(50) {
            self.site.pass().await;
        }
        match random.percent(15) {
            true => task.abort(),
            false => self.go_on(server, id).await,
        }
        let _ = task.await;
    }

    /// Waits until that request waits in its handler, or is answered before.
    async fn arrives(&self, task: &mut JoinHandle<()>, server: usize, id: usize) -> bool {
        let arrived = pin!(self.site.arrived(server, id));
        let has_arrived = matches!(select(arrived, task).await, Either::Left(_));
        if has_arrived {
            self.oracle.borrow_mut().waits(id, self.site.now());
        }
        has_arrived
    }

    async fn go_on(&self, server: usize, id: usize) {
        self.oracle.borrow_mut().goes_on(id, self.site.now());
        self.site.open(server, id).await;
    }

    /// The client leaves at some moment: before the handler runs, meanwhile, or after.
    async fn leave(self: &Rc<Self>, browser: usize, random: &mut Random) {
        let cookie = self.jar(browser);
        let (task, ..) = self.ask(browser, cookie, random, None);
        for _ in 0..random.below(60) {
            yield_now().await;
        }
        task.abort();
        let _ = task.await;
    }

    /// Somebody tries a cookie that is not their own: an old one, a forged one, or two.
    async fn steal(self: &Rc<Self>, browser: usize, random: &mut Random) {
        let count = self.oracle.borrow().values.len();
        if count == 0 {
            return;
        }
        // Mostly what was given out lately.
        let any = |random: &mut Random| match random.percent(60) {
            true => count - 1 - random.below(count.min(12)),
            false => random.below(count),
        };
        let (a, b) = (any(random), any(random));
        let cookie = match random.below(10) {
            0..6 => self.oracle.borrow().cookies([a]),
            6 | 7 if a != b => {
                let oracle = self.oracle.borrow();
                let both = oracle.cookies([a, b]);
                if oracle.tells_apart(&both) { both } else { oracle.cookies([a]) }
            }
            _ => self.forge(a, b, random),
        };
        let ask = match cookie.is_several() {
            true => self.ask_of_several(random),
            false => self.random_ask(&cookie, random),
        };
        // A thief has no jar of ours.
        let (task, ..) = self.send(browser, ask, cookie, Way::default(), random.below(2), false);
        task.await.unwrap();
    }

    /// Sends a request from a browser in which an attacker has planted up to four cookies. Their paths decide whether they come
    /// before or after the browser's own.
    async fn come_with_planted(self: &Rc<Self>, browser: usize, random: &mut Random) {
        let Held { user, visitor } = &self.jars[browser];
        let mut values: Vec<usize> = user.get().into_iter().chain(visitor.get()).collect();
        let count = self.oracle.borrow().values.len();
        if count == 0 {
            return;
        }
        for _ in 0..random.one(&[1, 1, 1, 2, 2, 3, 4]).copied().unwrap_or(1) {
            let planted = count - 1 - random.below(count.min(20));
            if !values.contains(&planted) && values.len() < 4 {
                values.insert(if random.percent(50) { 0 } else { values.len() }, planted);
            }
        }
        let mut cookie = self.oracle.borrow().cookies(values);
        if !self.oracle.borrow().tells_apart(&cookie) {
            cookie = self.jar(browser);
        }
        let ask = match cookie.is_several() {
            true => self.ask_of_several(random),
            false => self.random_ask(&cookie, random),
        };
        let (task, ..) = self.send(browser, ask, cookie, Way::default(), random.below(2), true);
        task.await.unwrap();
    }

    /// What is asked with several cookies of one name.
    fn ask_of_several(&self, random: &mut Random) -> Ask {
        let id = self.oracle.borrow().next_id();
        let user = (*random.one(&USERS).unwrap()).to_owned();
        let what = match random.below(11) {
            0..4 => What::Visit,
            4 => What::List,
            5 => What::Delete,
            6 => What::Clear,
            // In a sealed cookie nobody reads which session it has kept.
            7 if !self.is_sealed => What::ClearOthers,
            7 | 8 => What::Create(user),
            _ => What::Bind(user),
        };
        let mut ask = Ask::new(id, what);
        if ask.login().is_some() || ask.what == What::Visit && random.percent(50) {
            ask.writes = vec![Write::Put(id), Write::Add(random.below(COUNTERS))];
        }
        if self.takes_logins && random.percent(30) {
            self.take_login(&mut ask, random);
        }
        // Whether what was saved is in place is not known of several.
        let may_save = ask.login().is_none() || self.oracle.borrow().is_steady();
        ask.save = may_save && (random.percent(30) || ask.takes_login && self.is_sealed);
        ask
    }

    /// Another device, or a browser that has lost its cookies.
    async fn come_anew(self: &Rc<Self>, browser: usize, random: &mut Random) {
        let user = (*random.one(&USERS).unwrap()).to_owned();
        let what = if random.percent(80) { What::Bind(user) } else { What::Create(user) };
        let mut ask = Ask::new(self.oracle.borrow().next_id(), what);
        if random.percent(50) {
            self.take_login(&mut ask, random);
        }
        let (way, keeps) = (Way::default(), random.percent(30));
        self.send(browser, ask, Cookies::default(), way, random.below(2), keeps).0.await.unwrap();
    }

    /// It signs in with a `Login`: its own, or one that was kept.
    fn take_login(&self, ask: &mut Ask, random: &mut Random) {
        let Some(user) = ask.login() else { return };
        let kept = self.kept.borrow();
        let of_user: Vec<&Kept> = kept.iter().filter(|(of, _)| of == user).map(|(_, kept)| kept).collect();
        ask.kept = random.one(&of_user).filter(|_| random.percent(50)).map(|kept| (*kept).clone());
        ask.takes_login = true;
    }

    /// A request to a process that lacks the key which our cookies are encrypted with.
    async fn come_without_key(self: &Rc<Self>, browser: usize, random: &mut Random) {
        let what = [What::Visit, What::Rework, What::List, What::Delete, What::Clear, What::ClearOthers];
        let what = random.one(&what).unwrap().clone();
        let ask = Ask::new(self.oracle.borrow().next_id(), what);
        let way = Way { lacks_key: true, ..Way::default() };
        let (task, ..) = self.send(browser, ask, self.jar(browser), way, LACKS_KEY, true);
        task.await.unwrap();
    }

    fn forge(&self, a: usize, b: usize, random: &mut Random) -> Cookies {
        let oracle = self.oracle.borrow();
        let is_visitors = oracle.is_visitors(a);
        let (a, b) = (&oracle.values[a].text, &oracle.values[b].text);
        let forged = |text: String, malformed, is_visitors| Cookies::forged(Forged { text, malformed, is_visitors });
        let malformed = |text: &str| forged(text.to_owned(), true, is_visitors);
        match random.below(6) {
            0 => malformed(&"nonsense".repeat(9)),
            1 => malformed(&"a.b.c.d.e".repeat(9)),
            2 => malformed(&"x".repeat(3000)),
            // Another secret.
            3 => {
                let at = a.len() - 20;
                let other = if a.as_bytes()[at] == b'A' { 'B' } else { 'A' };
                forged(format!("{}{other}{}", &a[..at], &a[at + 1..]), false, is_visitors)
            }
            // Under the name of the other kind.
            4 => forged(a.clone(), true, !is_visitors),
            // The name of one with the secret of another.
            _ => match (a.rsplit_once('.'), b.rsplit_once('.')) {
                (Some((name, _)), Some((other, secret))) if name != other => {
                    forged(format!("{name}.{secret}"), false, is_visitors)
                }
                _ => malformed(&"-".repeat(70)),
            },
        }
    }

    fn jar(&self, browser: usize) -> Cookies {
        let Held { user, visitor } = &self.jars[browser];
        self.oracle.borrow().cookies(user.get().into_iter().chain(visitor.get()))
    }

    fn ask(
        self: &Rc<Self>,
        browser: usize,
        cookie: Cookies,
        random: &mut Random,
        wait: Option<Moment>,
    ) -> (JoinHandle<()>, usize, usize) {
        let mut ask = self.random_ask(&cookie, random);
        ask.wait = wait;
        if wait == Some(Moment::Saved) && !matches!(ask.what, What::Unused) {
            ask.save = self.takes_logins || ask.what != What::Rework;
        }
        let way = Way { cross_site: random.percent(5), ..Way::default() };
        self.send(browser, ask, cookie, way, random.below(2), true)
    }

    fn send(
        self: &Rc<Self>,
        browser: usize,
        mut ask: Ask,
        cookie: Cookies,
        way: Way,
        server: usize,
        keeps: bool,
    ) -> (JoinHandle<()>, usize, usize) {
        let id = ask.id;
        ask.again = ask.save && !id.is_multiple_of(4) && !self.oracle.borrow().is_steady();
        let mut headers = Vec::new();
        {
            let mut oracle = self.oracle.borrow_mut();
            headers.extend(oracle.header(&cookie).map(|text| ("cookie", text)));
            if way.cross_site {
                headers.push(("sec-fetch-site", "cross-site".to_owned()));
            }
            oracle.send(&ask, cookie, way, browser, self.site.now());
        }
        let walk = Rc::clone(self);
        let task = spawn_local(async move {
            // If this task is aborted, the client has left.
            let mut answer = Answer { walk: &*walk, id, is_lost: true };
            let Some(reply) = walk.site.send(server, &ask, headers).await else { return };
            answer.is_lost = false;
            if let (What::TakeLogin(user), 200, Some(login)) =
                (&ask.what, reply.status, reply.said().and_then(|it| it.login))
            {
                walk.kept.borrow_mut().push((user.clone(), Kept { by: id, login }));
            }
            let saved = walk.site.saved(id);
            let jar = walk.oracle.borrow_mut().answered(id, &reply, saved, walk.site.now());
            let Jar { user, visitor } = jar;
            let held = &walk.jars[browser];
            for (held, slot) in [(&held.user, user), (&held.visitor, visitor)] {
                match slot {
                    Slot::Set(value) if keeps => held.set(Some(value)),
                    Slot::Remove if keeps => held.set(None),
                    _ => {}
                }
            }
        });
        (task, server, id)
    }

    fn random_ask(&self, cookie: &Cookies, random: &mut Random) -> Ask {
        let oracle = self.oracle.borrow();
        let id = oracle.next_id();
        let session = oracle.session_of(cookie);
        let key = session.and_then(|session| oracle.sessions[session].key.clone());
        let user = (*random.one(&USERS).unwrap()).to_owned();
        // Mostly one's own.
        let user = key.clone().filter(|_| random.percent(60)).unwrap_or(user);
        let is_signed_in = key.is_some();
        let what = match random.below(100) {
            0..53 => What::Visit,
            53..56 => What::Unused,
            56..61 => What::Bind(user),
            61..63 => What::Create(user),
            63 if self.takes_logins => What::ClearAndBind(user),
            64 if self.takes_logins => What::OthersAndBind(user),
            63 | 64 => What::Bind(user),
            65..78 => What::Rework,
            78..81 => What::Delete,
            81 | 82 => What::Clear,
            83 => What::ClearOthers,
            84..86 => What::List,
            86 if self.takes_logins => What::TakeLogin(user),
            86 | 87 => What::List,
            88..92 => {
                let whose = if random.percent(85) { key.unwrap_or(user) } else { user };
                let handles = oracle.handles_of(&whose);
                random.one(&handles).map_or(What::List, |handle| What::Revoke(handle.clone()))
            }
            92 => What::Huge,
            // Sign in, if nobody is.
            _ if !is_signed_in => What::Bind(user),
            _ => What::Visit,
        };
        let mut ask = Ask::new(id, what);
        match &ask.what {
            What::Visit | What::Rework if random.percent(70) => {
                ask.writes = self.random_writes(&oracle, session, id, random);
                ask.blind = ask.what == What::Visit && random.percent(10);
                ask.save = random.percent(35) && (self.takes_logins || ask.what != What::Rework);
                // One name is written once.
                if ask.save && random.percent(30) {
                    ask.late = vec![Write::Add(random.below(COUNTERS))];
                }
            }
            What::Bind(_) | What::Create(_) | What::ClearAndBind(_) | What::OthersAndBind(_) => {
                if random.percent(50) {
                    ask.writes = vec![Write::Put(id), Write::Add(random.below(COUNTERS))];
                }
                if self.takes_logins && random.percent(30) {
                    self.take_login(&mut ask, random);
                }
                // In a sealed cookie nobody reads whether the session is the one before.
                ask.save = random.percent(30) || ask.takes_login && self.is_sealed;
            }
            What::Delete => {
                if random.percent(20) {
                    ask.writes = vec![Write::Put(id)];
                }
                ask.blind = ask.writes.is_empty() && random.percent(20);
            }
            What::Huge => ask.writes = vec![Write::Add(0)],
            _ => {}
        }
        ask.end = match random.below(20) {
            _ if ask.what == What::Unused => End::Well,
            0 => End::Fail,
            1..3 if ask.signs_out() => End::Panic,
            1 if random.percent(50) => End::Panic,
            _ => End::Well,
        };
        ask
    }

    fn random_writes(&self, oracle: &Oracle, session: Option<usize>, id: usize, random: &mut Random) -> Vec<Write> {
        let mut writes = Vec::new();
        let names = session.map(|session| oracle.names_in(session)).unwrap_or_default();
        if random.percent(70) {
            writes.push(Write::Add(random.below(COUNTERS)));
        }
        if random.percent(40) {
            writes.push(Write::Put(id));
        }
        if random.percent(15) || names.len() > 15 {
            writes.extend(random.one(&names).map(|name| Write::Take(*name)));
        }
        if random.percent(20) {
            writes.push(Write::Theme(id));
        }
        if writes.is_empty() || random.percent(5) {
            writes.push(Write::Idle);
        }
        writes
    }

    /// When all is quiet: every cookie that there ever was leads where it must, every list is right, and after all users are
    /// signed out everywhere nothing is left.
    async fn look_back(self: &Rc<Self>, random: &mut Random) {
        self.site.settle().await;
        let count = self.oracle.borrow().next_id();
        for id in 0..count {
            if let Some(loaded) = self.site.recorded(id) {
                self.oracle.borrow_mut().recorded(id, loaded.as_deref());
            }
        }
        for round in 0..2 {
            let values = self.oracle.borrow().values.len();
            for value in 0..values {
                let cookies = self.oracle.borrow().cookies([value]);
                self.insist(What::Visit, cookies, random).await;
            }
            for user in USERS {
                self.insist(What::ListOf(user.to_owned()), Cookies::default(), random).await;
                if round == 0 {
                    self.insist(What::ClearOf(user.to_owned()), Cookies::default(), random).await;
                    self.insist(What::ListOf(user.to_owned()), Cookies::default(), random).await;
                }
            }
        }
    }

    /// Asks until there is an answer.
    async fn insist(self: &Rc<Self>, what: What, cookie: Cookies, random: &mut Random) {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if self.is_over() {
                return;
            }
            let ask = Ask::new(self.oracle.borrow().next_id(), what.clone());
            let id = ask.id;
            self.send(0, ask, cookie.clone(), Way::default(), random.below(2), false).0.await.unwrap();
            if self.oracle.borrow().is_answered_well(id) {
                return;
            }
            yield_now().await;
        }
        panic!("the store did not come back");
    }
}

struct Answer<'a, S: Site> {
    walk: &'a Walk<S>,
    id: usize,
    is_lost: bool,
}

impl<S: Site> Drop for Answer<'_, S> {
    fn drop(&mut self) {
        if self.is_lost {
            self.walk.oracle.borrow_mut().lost(self.id, self.walk.site.now());
        }
    }
}
