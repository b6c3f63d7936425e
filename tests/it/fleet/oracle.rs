//! The oracle: tracks what is known about every session from requests and responses alone, and rejects impossible responses.
//!
//! Each request is sent at one moment and answered at another. One request is *before* another if it was answered before the
//! other was sent. Otherwise they overlap, and both orders are possible. The effect of a request is *sure* once it is
//! answered, *not* done if the answer says so, and *maybe* done, at any moment after it was sent, if its answer was lost or is
//! a 503. A response is wrong if it fits none of the possible orders.
//!
//! A login of the same user, and `clear_others`, keep the record and its handle, but no earlier ID can read them. The oracle
//! treats the result as another session, the *next* one. If the record ends, both end.

use std::collections::{BTreeMap, HashMap, HashSet};

use jam_session::Limit;
use serde_json::Value as Json;

use super::ask::{Ask, COUNTERS, End, Moment, Reply, Said, Seen, What, Write};

pub struct Oracle {
    /// How long an ID from before a rework still leads to its session; in milliseconds.
    grace: u64,
    /// Nothing is made to fail: there is no reason for a 503.
    steady: bool,
    /// How many sessions a user may have.
    limit: Limit,
    now: u64,
    /// By the clock of the application.
    ms: u64,
    pub sessions: Vec<Known>,
    /// The last session of each handle.
    handles: HashMap<String, usize>,
    pub values: Vec<Value>,
    texts: HashMap<String, usize>,
    asked: Vec<Asked>,
    clears: Vec<(String, Effect)>,
    /// Logins that may end others of their user, because of the limit.
    limits: Vec<(String, Effect)>,
    /// What increments made of counters.
    made: HashSet<(usize, usize, u64)>,
    log: Vec<Line>,
    pub wrong: Option<String>,
    /// The session that was looked at last.
    looked_at: Option<usize>,
    /// How often what happened, to tell whether the walk went anywhere.
    pub tally: BTreeMap<&'static str, u64>,
}

/// A session, from one login or `clear_others` to the next.
pub struct Known {
    pub key: Option<String>,
    pub handle: Option<String>,
    /// When its record was there for sure, at first.
    born: u64,
    /// When its ID was handed out.
    settled: u64,
    born_by: usize,
    /// The login that its data names; and which it may be instead, if that one was discarded.
    login: Option<usize>,
    or_login: Option<usize>,
    /// Its cookie was lost: it is known from lists alone, and the one who made it may still remove it.
    orphan: bool,
    /// The limit was applied to the login that made its record.
    limited: bool,
    /// The same record after the next login or `clear_others`.
    next: Option<usize>,
    /// What may have ended it.
    enders: Vec<Effect>,
    rotations: Vec<Effect>,
    counters: [Counter; COUNTERS],
    puts: BTreeMap<usize, Put>,
    themes: Vec<Effect>,
}

/// A cookie's value that somebody was given.
pub struct Value {
    pub text: String,
    pub session: usize,
    /// What may have replaced it: rotations, logins in place and `clear_others`.
    links: Vec<Effect>,
    /// By which of them it was, and by what.
    successor: Option<(usize, usize)>,
    /// Logins to other sessions that may have ended its grace.
    cut: Vec<Effect>,
}

/// What a request brings.
#[derive(Clone, Debug, Default)]
pub struct Cookies {
    users: Vec<usize>,
    visitors: Vec<usize>,
    forged: Option<Forged>,
}

/// How a request comes, besides its cookies.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way {
    pub cross_site: bool,
    /// To a process that lacks the key which the cookies are encrypted with.
    pub lacks_key: bool,
}

/// Nothing that was ever given to anybody under that name. If it is not even shaped like an ID, the store is not asked.
#[derive(Clone, Debug)]
pub struct Forged {
    pub text: String,
    pub malformed: bool,
    pub is_visitors: bool,
}

/// What the browser is told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Jar {
    pub user: Slot,
    pub visitor: Slot,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Slot {
    #[default]
    Keep,
    Set(usize),
    Remove,
}

struct Asked {
    ask: Ask,
    cookies: Cookies,
    way: Way,
    sent: Instant,
    browser: usize,
    /// When it was known to wait in its handler, and when it was let go on.
    waits: Option<Instant>,
    goes_on: Option<Instant>,
    answered: Option<Instant>,
}

/// A moment of the walk, and of the clock of the application.
#[derive(Clone, Copy, Debug)]
struct Instant {
    at: u64,
    ms: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Maybe,
    Sure,
    Not,
}

/// Something that a request does to a session.
#[derive(Clone, Copy)]
struct Effect {
    ask: usize,
    late: bool,
    /// The record stays, under a new ID.
    renews: bool,
    /// It ends because of the limit.
    limits: bool,
    sent: u64,
    sent_ms: u64,
    done: Option<u64>,
    fate: Fate,
}

#[derive(Clone, Default)]
struct Counter {
    /// What it was at least, and at most, when the session began.
    low: u64,
    high: u64,
    adds: Vec<Effect>,
    sights: Vec<Sight>,
}

#[derive(Clone, Copy)]
struct Sight {
    sent: u64,
    done: u64,
    n: u64,
}

#[derive(Clone)]
struct Put {
    put: Effect,
    takes: Vec<Effect>,
}

struct Line {
    ms: u64,
    ask: usize,
    browser: usize,
    sessions: Vec<usize>,
    text: String,
}

/// Where a request's cookies led.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    Nobody,
    User(usize),
    Visitor(usize),
}

type Checked<T = ()> = Result<T, String>;

impl Cookies {
    pub fn forged(forged: Forged) -> Self {
        Self { forged: Some(forged), ..Self::default() }
    }

    /// More than one of a name.
    pub fn is_several(&self) -> bool {
        self.users.len() > 1 || self.visitors.len() > 1
    }

    fn all(&self) -> impl Iterator<Item = usize> {
        self.users.iter().chain(&self.visitors).copied()
    }

    fn is_empty(&self) -> bool {
        self.all().next().is_none() && self.forged.is_none()
    }

    fn came(&self, is_visitors: bool) -> bool {
        let values = if is_visitors { &self.visitors } else { &self.users };
        !values.is_empty() || self.forged.as_ref().is_some_and(|it| it.is_visitors == is_visitors && !it.is_too_long())
    }

    /// A user's ID that leads to no session of the one who brings it, or is not known to.
    fn forges_user(&self) -> bool {
        self.forged.as_ref().is_some_and(|forged| !forged.is_visitors && !forged.malformed)
    }
}

impl Forged {
    fn is_too_long(&self) -> bool {
        self.text.len() > 1000
    }
}

impl Oracle {
    pub fn new(grace: u64, steady: bool, limit: Limit) -> Self {
        Self {
            grace,
            steady,
            limit,
            now: 0,
            ms: 0,
            sessions: vec![],
            handles: HashMap::new(),
            values: vec![],
            texts: HashMap::new(),
            asked: vec![],
            clears: vec![],
            limits: vec![],
            made: HashSet::new(),
            log: vec![],
            wrong: None,
            looked_at: None,
            tally: BTreeMap::new(),
        }
    }

    pub fn has_limit(&self) -> bool {
        self.limit != Limit::None
    }

    pub fn is_steady(&self) -> bool {
        self.steady
    }

    /// The number of the next request.
    pub fn next_id(&self) -> usize {
        self.asked.len()
    }

    /// A request with these values, each under the name of its kind.
    pub fn cookies(&self, values: impl IntoIterator<Item = usize>) -> Cookies {
        let (visitors, users) = values.into_iter().partition(|value| self.is_visitors(*value));
        Cookies { users, visitors, forged: None }
    }

    /// Whether an answer tells which of several cookies of one name has counted: at most one of them leads to a session whose
    /// name nobody knows.
    pub fn tells_apart(&self, cookies: &Cookies) -> bool {
        let is_unknown = |value: &&usize| self.sessions[self.values[**value].session].handle.is_none();
        [&cookies.users, &cookies.visitors].iter().all(|values| values.iter().filter(is_unknown).count() < 2)
    }

    pub fn is_visitors(&self, value: usize) -> bool {
        self.sessions[self.values[value].session].key.is_none()
    }

    pub fn header(&self, cookies: &Cookies) -> Option<String> {
        let value = |value: usize| {
            let name = if self.is_visitors(value) { VISITORS } else { USERS };
            format!("{name}={}", self.values[value].text)
        };
        let forged = cookies.forged.iter().map(|forged| {
            let name = if forged.is_visitors { VISITORS } else { USERS };
            format!("{name}={}", forged.text)
        });
        let pairs: Vec<String> = cookies.all().map(value).chain(forged).collect();
        (!pairs.is_empty()).then(|| pairs.join("; "))
    }

    /// The session that these cookies lead to, as far as is known.
    pub fn session_of(&self, cookies: &Cookies) -> Option<usize> {
        let sessions: Vec<usize> = cookies.all().map(|value| self.values[value].session).collect();
        sessions.iter().copied().find(|session| self.may_live(*session)).or(sessions.first().copied())
    }

    pub fn user_of(&self, cookies: &Cookies) -> Option<String> {
        cookies.users.first().and_then(|value| self.sessions[self.values[*value].session].key.clone())
    }

    fn user_of_value(&self, value: usize) -> Option<&str> {
        self.sessions[self.values[value].session].key.as_deref()
    }

    /// Whether that session may be live, as far as is known.
    pub fn may_live(&self, session: usize) -> bool {
        !self.sessions[session].enders.iter().any(|ender| ender.fate == Fate::Sure)
    }

    /// Handles of a user's sessions that may be live.
    pub fn handles_of(&self, user: &str) -> Vec<String> {
        let of_user = (0..self.sessions.len()).filter(|s| self.sessions[*s].key.as_deref() == Some(user));
        of_user.filter(|s| self.may_live(*s)).filter_map(|s| self.sessions[s].handle.clone()).collect()
    }

    /// Names that are in that session, unless somebody takes them.
    pub fn names_in(&self, session: usize) -> Vec<usize> {
        let puts = self.sessions[session].puts.iter();
        puts.filter(|(_, put)| put.put.fate == Fate::Sure && put.takes.is_empty()).map(|(name, _)| *name).collect()
    }

    /// A request is about to be sent.
    pub fn send(&mut self, ask: &Ask, cookies: Cookies, way: Way, browser: usize, ms: u64) {
        assert_eq!(ask.id, self.asked.len());
        self.now += 1;
        let sent = Instant { at: self.now, ms };
        let (late, renews, limits, done, fate) = (false, false, false, None, Fate::Maybe);
        let effect = Effect { ask: ask.id, late, renews, limits, sent: sent.at, sent_ms: ms, done, fate };
        for (at, value) in cookies.all().enumerate().filter(|_| !way.lacks_key) {
            let is_same = |other: usize| self.values[other].session == self.values[value].session;
            let is_again = cookies.all().take(at).any(is_same);
            self.note(value, ask, effect, cookies.is_several(), is_again);
        }
        match &ask.what {
            What::ClearOf(user) | What::ClearAndBind(user) | What::OthersAndBind(user) => self.note_clear(user, effect),
            _ => {}
        }
        if let (Limit::LeastRecent(_), Some(user), true) = (self.limit, ask.login(), ask.is_limited()) {
            self.note_limit(user, Effect { limits: true, ..effect });
        }
        let from = cookies.all().map(|value| self.values[value].session).collect();
        let shown = self.show(&cookies);
        let from_another = if way.cross_site { ", from another site" } else { "" };
        let lacking = if way.lacks_key { ", to a process without the key" } else { "" };
        let text = format!("-> {shown}: {}{from_another}{lacking}", told(ask));
        self.log.push(Line { ms, ask: ask.id, browser, sessions: from, text });
        let (waits, goes_on, answered) = (None, None, None);
        self.asked.push(Asked { ask: ask.clone(), cookies, way, sent, browser, waits, goes_on, answered });
    }

    /// It is known that its handler waits.
    pub fn waits(&mut self, id: usize, ms: u64) {
        self.now += 1;
        self.asked[id].waits = Some(Instant { at: self.now, ms });
    }

    /// The handler is let go on.
    pub fn goes_on(&mut self, id: usize, ms: u64) {
        self.now += 1;
        self.asked[id].goes_on = Some(Instant { at: self.now, ms });
        self.line(id, ms, vec![], "goes on".to_owned());
    }

    /// Nobody heard the answer.
    pub fn lost(&mut self, id: usize, ms: u64) {
        self.now += 1;
        self.count("lost");
        self.line(id, ms, vec![], "<- lost".to_owned());
    }

    /// How much was asked and answered.
    #[cfg(feature = "redis")]
    pub fn moment(&self) -> u64 {
        self.now
    }

    /// Something happens to the servers.
    #[cfg(feature = "redis")]
    pub fn happens(&mut self, what: &'static str, ms: u64) {
        self.count(what);
        self.log.push(Line { ms, ask: usize::MAX, browser: 0, sessions: vec![], text: what.to_owned() });
    }

    /// The handler of that request had recorded what it was asked to, and everything has come to its end since. If its answer was
    /// lost, a sign-out is done all the same. `loaded` is the handle of what it had loaded.
    pub fn recorded(&mut self, id: usize, loaded: Option<&str>) {
        let Asked { ask, answered, cookies, .. } = &self.asked[id];
        let is_sign_out = matches!(ask.what, What::Delete | What::Clear);
        if !self.steady || answered.is_some() || !is_sign_out || ask.blind {
            return;
        }
        let cookies = cookies.clone();
        let [value] = cookies.all().collect::<Vec<_>>()[..] else { return };
        let session = self.values[value].session;
        self.now += 1;
        // Whoever holds what was replaced is let in for a while, and for how long this request was nobody knows.
        let opens = self.replacers(id, value).is_empty() && self.is_record_alone(id, session);
        match loaded {
            Some(_) if opens => {
                self.count("sign-outs of lost requests");
                self.settle_endings(id, Fate::Sure);
            }
            None if !self.may_be_superseded(id, value) => self.settle_endings(id, Fate::Not),
            _ => {}
        }
    }

    pub fn is_answered_well(&self, id: usize) -> bool {
        let mut lines = self.log.iter().rev().filter(|line| line.ask == id);
        lines.any(|line| line.text.starts_with("<- 200"))
    }

    /// Checks a response, and says what the browser does with it.
    pub fn answered(&mut self, id: usize, reply: &Reply, saved: bool, ms: u64) -> Jar {
        self.now += 1;
        self.ms = ms;
        self.asked[id].answered = Some(Instant { at: self.now, ms });
        let said = reply.said().filter(|said| said.id == id);
        let text = match &said {
            Some(said) => {
                let mut text = format!("<- {}", reply.status);
                if let Some(seen) = &said.seen {
                    text += &format!(" saw {}", shown(seen));
                }
                if let Some(saved) = &said.saved {
                    text += &format!(", saved: {saved}");
                    text += if said.again { ", the second time" } else { "" };
                }
                if let Some(after) = &said.after {
                    text += &format!(", then {}", shown(after));
                }
                if let Some(list) = &said.list {
                    text += &format!(", listed {:?}", list.iter().map(shown).collect::<Vec<_>>());
                }
                if let Some(revoked) = said.revoked {
                    text += &format!(", revoked: {revoked}");
                }
                text
            }
            None => format!("<- {} {}", reply.status, String::from_utf8_lossy(&reply.body)),
        };
        self.line(id, ms, vec![], text);
        self.looked_at = None;
        match self.check(id, reply, said, saved, ms) {
            Ok(jar) => {
                for (slot, whose) in [(jar.user, "user's"), (jar.visitor, "visitor's")] {
                    let (sessions, text) = match slot {
                        Slot::Keep => continue,
                        Slot::Set(value) => (vec![self.values[value].session], self.show_one(value)),
                        Slot::Remove => (vec![], "removed".to_owned()),
                    };
                    self.line(id, ms, sessions, format!("<- the {whose} cookie is {text}"));
                }
                jar
            }
            Err(wrong) => {
                self.blame(id, &wrong);
                Jar::default()
            }
        }
    }

    /// Says what is wrong, and how it came to it.
    pub fn blame(&mut self, id: usize, wrong: &str) {
        if self.wrong.is_some() {
            return;
        }
        let of = |id: usize| self.asked[id].cookies.all().map(|value| self.values[value].session);
        let mut about: Vec<usize> = of(id).chain(self.looked_at).collect();
        // And what it came from, and is by now.
        for session in about.clone() {
            about.extend(of(self.sessions[session].born_by));
            about.extend(self.lineage(session));
        }
        let lines: Vec<&Line> = self.log.iter().collect();
        let is_about = |line: &&&Line| line.ask == id || line.sessions.iter().any(|session| about.contains(session));
        // Both halves of each request.
        let asks: HashSet<usize> = lines.iter().filter(is_about).map(|line| line.ask).collect();
        let tail: Vec<String> = lines
            .iter()
            .filter(|line| line.ask == usize::MAX || asks.contains(&line.ask))
            .map(|line| match line.ask {
                usize::MAX => format!("{:9} {}", line.ms % 1_000_000_000, line.text),
                ask => format!("{:9} #{ask} browser {} {}", line.ms % 1_000_000_000, line.browser, line.text),
            })
            .collect();
        let tail = &tail[tail.len().saturating_sub(LINES)..];
        self.wrong = Some(format!("#{id}: {wrong}\n  {}", tail.join("\n  ")));
    }

    fn line(&mut self, ask: usize, ms: u64, sessions: Vec<usize>, text: String) {
        let browser = self.asked[ask].browser;
        self.log.push(Line { ms, ask, browser, sessions, text });
    }

    pub fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn show_one(&self, value: usize) -> String {
        let session = self.values[value].session;
        match self.sessions[session].key.as_deref() {
            Some(key) => format!("v{value} of session {session}, {key:?}"),
            None => format!("v{value} of session {session}"),
        }
    }

    fn show(&self, cookies: &Cookies) -> String {
        if cookies.is_empty() {
            return "no cookie".to_owned();
        }
        let forged = cookies.forged.iter().map(|_| "a forged cookie".to_owned());
        cookies.all().map(|value| self.show_one(value)).chain(forged).collect::<Vec<_>>().join(" and ")
    }
}

/// What requests do.
impl Oracle {
    /// What a request that brings this value may do: perhaps one of several, perhaps another one of a session.
    fn note(&mut self, value: usize, ask: &Ask, effect: Effect, is_several: bool, is_again: bool) {
        let session = self.values[value].session;
        let renews = Effect { renews: true, ..effect };
        if ask.is_plain() && !is_again {
            self.note_writes(session, &ask.writes, effect);
            self.note_writes(session, &ask.late, Effect { late: true, ..effect });
        }
        let key = self.sessions[session].key.clone();
        match (&ask.what, key) {
            (What::Rework, _) => {
                self.sessions[session].rotations.push(effect);
                self.values[value].links.push(effect);
            }
            (What::Delete, _) | (What::Clear, None) => self.note_ending(session, effect),
            (What::Clear, Some(key)) => self.note_clear(&key, effect),
            (What::ClearOthers, Some(key)) => {
                self.note_clear(&key, effect);
                self.sessions[session].enders.push(renews);
                self.values[value].links.push(renews);
            }
            (What::Revoke(handle), Some(key)) => {
                if let Some(target) = self.handles.get(handle).copied()
                    && self.sessions[target].key == Some(key)
                {
                    self.note_ending(target, effect);
                }
            }
            (what, key) => match ask.login() {
                Some(user) if key.as_deref() == Some(user) => {
                    self.sessions[session].enders.push(renews);
                    self.values[value].links.push(renews);
                    if ask.takes_login {
                        self.values[value].cut.push(effect);
                    }
                    if is_several {
                        // It may be another one that counts.
                        self.note_ending(session, effect);
                    }
                }
                Some(_) => {
                    self.note_ending(session, effect);
                    if let (What::ClearAndBind(_), Some(key)) = (what, key) {
                        self.note_clear(&key, effect);
                    }
                }
                None => {}
            },
        }
    }

    fn note_writes(&mut self, session: usize, writes: &[Write], effect: Effect) {
        let known = &mut self.sessions[session];
        for write in writes {
            match write {
                Write::Add(counter) => known.counters[*counter].adds.push(effect),
                Write::Put(name) => drop(known.puts.insert(*name, Put { put: effect, takes: vec![] })),
                Write::Take(name) => {
                    if let Some(put) = known.puts.get_mut(name) {
                        put.takes.push(effect);
                    }
                }
                Write::Theme(_) => known.themes.push(effect),
                Write::Idle => {}
            }
        }
    }

    /// The record ends, whatever it is by now.
    fn note_ending(&mut self, session: usize, effect: Effect) {
        for session in self.lineage(session) {
            self.sessions[session].enders.push(effect);
        }
    }

    fn note_clear(&mut self, key: &str, effect: Effect) {
        for known in self.sessions.iter_mut().filter(|known| known.key.as_deref() == Some(key)) {
            known.enders.push(effect);
        }
        self.clears.push((key.to_owned(), effect));
    }

    fn note_limit(&mut self, key: &str, effect: Effect) {
        for known in self.sessions.iter_mut().filter(|known| known.key.as_deref() == Some(key)) {
            known.enders.push(effect);
        }
        self.limits.push((key.to_owned(), effect));
    }

    /// This session, and what its record became.
    fn lineage(&self, session: usize) -> Vec<usize> {
        std::iter::successors(Some(session), |session| self.sessions[*session].next).collect()
    }

    /// All that its record was and became.
    fn record(&self, session: usize) -> Vec<usize> {
        (0..self.sessions.len()).filter(|at| *at == session || self.shares_record(*at, session)).collect()
    }

    fn shares_record(&self, a: usize, b: usize) -> bool {
        self.lineage(a).contains(&b) || self.lineage(b).contains(&a)
    }

    /// The request that made its record. The logins in place since then are never too late.
    fn maker(&self, session: usize) -> usize {
        let before = |at: &usize| self.sessions.iter().position(|known| known.next == Some(*at));
        let first = std::iter::successors(Some(session), before).last();
        self.sessions[first.unwrap_or(session)].born_by
    }

    fn settle_writes(&mut self, session: usize, id: usize, late: bool, fate: Fate) {
        let now = self.now;
        for (at, session) in self.lineage(session).into_iter().enumerate() {
            // Whether it was in time for what the record has become since is not known.
            if at > 0 && fate != Fate::Not {
                break;
            }
            let known = &mut self.sessions[session];
            let adds = known.counters.iter_mut().flat_map(|counter| &mut counter.adds);
            let puts = known.puts.values_mut().flat_map(|put| std::iter::once(&mut put.put).chain(&mut put.takes));
            for effect in adds.chain(puts).chain(&mut known.themes) {
                if effect.ask == id && effect.late == late {
                    (effect.fate, effect.done) = (fate, Some(now));
                }
            }
        }
    }

    /// What that request ends of the sessions that are picked.
    fn settle_enders(&mut self, id: usize, fate: Fate, is_picked: impl Fn(usize, &Known, &Effect) -> bool) {
        let now = self.now;
        let is_clear = self.clears.iter().any(|(_, effect)| effect.ask == id);
        for at in 0..self.sessions.len() {
            let mut enders = std::mem::take(&mut self.sessions[at].enders);
            let known = &self.sessions[at];
            let of_it = |effect: &&mut Effect| effect.ask == id && !effect.limits && is_picked(at, known, effect);
            for effect in enders.iter_mut().filter(of_it) {
                // Of a session that began meanwhile it is not known whether it was cleared. But if its login was under way when
                // the clear was sent, either it was, or the login would have been refused.
                let was_there = known.born < effect.sent || self.would_refuse(self.maker(at), effect);
                let is_known = fate != Fate::Sure || !is_clear || was_there;
                effect.fate = if is_known { fate } else { Fate::Maybe };
                effect.done = Some(now);
            }
            self.sessions[at].enders = enders;
        }
    }

    fn settle_clears(&mut self, id: usize, key: &str, fate: Fate) {
        let now = self.now;
        for (_, effect) in self.clears.iter_mut().filter(|(of, effect)| of == key && effect.ask == id) {
            (effect.fate, effect.done) = (fate, Some(now));
        }
    }

    /// All sessions of that user, except what the record of that one has become.
    fn settle_clear(&mut self, id: usize, key: &str, fate: Fate, except: Option<usize>) {
        let kept = except.map(|session| self.record(session)).unwrap_or_default();
        self.settle_enders(id, fate, |at, known, effect| {
            !effect.renews && known.key.as_deref() == Some(key) && !kept.contains(&at)
        });
        self.settle_clears(id, key, fate);
    }

    /// What ends a record, whichever.
    fn settle_endings(&mut self, id: usize, fate: Fate) {
        self.settle_enders(id, fate, |_, _, effect| !effect.renews);
        let keys: Vec<String> = self.clears.iter().filter(|(_, e)| e.ask == id).map(|(key, _)| key.clone()).collect();
        keys.iter().for_each(|key| self.settle_clears(id, key, fate));
    }

    fn settle_ending_of(&mut self, id: usize, session: usize, fate: Fate) {
        let lineage = self.lineage(session);
        self.settle_enders(id, fate, |at, _, effect| !effect.renews && lineage.contains(&at));
    }

    /// What gives the session of that value a new ID.
    fn settle_link(&mut self, value: usize, id: usize, fate: Fate) {
        let now = self.now;
        let session = self.values[value].session;
        let (links, known) = (self.values[value].links.iter_mut(), &mut self.sessions[session]);
        let enders = known.enders.iter_mut().filter(|effect| effect.renews);
        for effect in links.chain(&mut known.rotations).chain(enders).filter(|effect| effect.ask == id) {
            (effect.fate, effect.done) = (fate, Some(now));
        }
    }

    fn settle_cut(&mut self, value: usize, id: usize, fate: Fate) {
        let now = self.now;
        for effect in self.values[value].cut.iter_mut().filter(|effect| effect.ask == id) {
            (effect.fate, effect.done) = (fate, Some(now));
        }
    }

    /// It did nothing at all.
    fn settle_nothing(&mut self, id: usize) {
        self.settle_endings(id, Fate::Not);
        self.settle_limit(id, false);
        let values: Vec<usize> = self.asked[id].cookies.all().collect();
        for value in values {
            self.settle_link(value, id, Fate::Not);
            self.settle_cut(value, id, Fate::Not);
            for late in [false, true] {
                self.settle_writes(self.values[value].session, id, late, Fate::Not);
            }
        }
    }

    /// That ID was replaced by this one: all else that may have replaced it did not.
    fn replace(&mut self, value: usize, id: usize, text: &str, session: usize) -> Checked<usize> {
        ensure(self.values[value].successor.is_none(), || "an ID was replaced twice".to_owned())?;
        self.is_there(id, self.values[value].session)?;
        let others: Vec<usize> = self.values[value].links.iter().map(|effect| effect.ask).collect();
        for other in others.into_iter().filter(|other| *other != id) {
            self.settle_link(value, other, Fate::Not);
        }
        self.settle_link(value, id, Fate::Sure);
        let new = self.hand_out(text, session);
        self.values[value].successor = Some((id, new));
        Ok(new)
    }

    /// Nobody had ended it for sure before that request wrote anything.
    fn is_there(&self, id: usize, session: usize) -> Checked {
        let commits = self.commits(id).at;
        let ender = self.sessions[session].enders.iter().find(|ender| ender.ask != id && ender.is_before(commits));
        ender.map_or(Ok(()), |ender| Err(format!("a session that #{} had ended was written to", ender.ask)))
    }

    /// A session began: with that cookie, or known from a list alone.
    fn bear(&mut self, id: usize, birth: Birth) -> Checked<usize> {
        let Birth { key, handle, login, or_login, cookie, renews, from, early, late } = birth;
        let asked = &self.asked[id];
        let Instant { at: sent, ms: sent_ms } = asked.sent;
        let began = self.began(id).at;
        let writes = match early {
            Some(_) => (asked.ask.writes.clone(), asked.ask.late.clone()),
            None => (vec![], vec![]),
        };
        let orphan = |known: &&Known| known.orphan && known.born_by == id;
        let of_handle = handle.as_ref().and_then(|handle| self.handles.get(handle)).copied();
        let existing = match of_handle.filter(|at| orphan(&&self.sessions[*at])) {
            Some(at) => Some(at),
            None if handle.is_none() => self.sessions.iter().position(|known| orphan(&known)),
            None => None,
        };
        ensure(of_handle.is_none() || existing.is_some() || renews.is_some(), || {
            "a new session has the name of another".to_owned()
        })?;
        let mut session = Known {
            key,
            handle,
            born: self.now,
            settled: self.now,
            born_by: id,
            login,
            or_login,
            orphan: cookie.is_none(),
            limited: false,
            next: None,
            enders: vec![],
            rotations: vec![],
            counters: Default::default(),
            puts: BTreeMap::new(),
            themes: vec![],
        };
        if let Some(before) = renews {
            // What ends the record ends this, and there is no other one that it could have become.
            let before = &self.sessions[before];
            (session.handle, session.born, session.limited) = (before.handle.clone(), before.born, before.limited);
            session.enders = before.enders.iter().copied().filter(|ender| !ender.renews && ender.ask != id).collect();
        } else {
            // Who is being cleared meanwhile may have been cleared with it.
            for (key, clear) in &self.clears {
                let may_be_since = |moment: u64| clear.done.is_none_or(|done| done > moment) && clear.fate != Fate::Not;
                if existing.is_none() && session.key.as_ref() == Some(key) && clear.ask != id && may_be_since(began) {
                    // And surely was, if the login would have been refused otherwise.
                    let is_sure = clear.fate == Fate::Sure && self.would_refuse(id, clear);
                    let is_before = is_sure && clear.is_before(self.commits(id).at);
                    ensure(!is_before, || format!("a login that began before #{} came after it", clear.ask))?;
                    let (fate, done) = if is_sure { (Fate::Sure, clear.done) } else { (Fate::Maybe, None) };
                    if may_be_since(sent) {
                        session.enders.push(Effect { fate, done, ..*clear });
                    }
                }
            }
            // And another login may have come after this one.
            for (key, limit) in &self.limits {
                let overlaps = limit.done.is_none_or(|done| done > sent) && limit.fate != Fate::Not;
                if existing.is_none() && session.key.as_ref() == Some(key) && limit.ask != id && overlaps {
                    session.enders.push(Effect { fate: Fate::Maybe, ..*limit });
                }
            }
        }
        if let Some(at) = existing {
            let known = &self.sessions[at];
            (session.handle, session.born, session.limited) = (known.handle.clone(), known.born, known.limited);
            session.enders = self.sessions[at].enders.clone();
            session.next = self.sessions[at].next;
        }
        if let Some((from, is_sure)) = from {
            self.inherit(&mut session, from, is_sure, id, sent);
        }
        let (at, handle) = (existing.unwrap_or(self.sessions.len()), session.handle.clone());
        match existing {
            None => self.sessions.push(session),
            Some(_) => self.sessions[at] = session,
        }
        if let Some(before) = renews.filter(|before| *before != at) {
            self.sessions[before].next = Some(at);
        }
        let fate = |is_sure| if is_sure { Fate::Sure } else { Fate::Maybe };
        let done = Some(self.now);
        let fate_early = fate(early.unwrap_or(false));
        let (renews, limits) = (false, false);
        let effect = Effect { ask: id, late: false, renews, limits, sent, sent_ms, done, fate: fate_early };
        self.note_writes(at, &writes.0, effect);
        if let Some(is_sure) = late {
            self.note_writes(at, &writes.1, Effect { late: true, fate: fate(is_sure), ..effect });
        }
        if let Some(handle) = handle {
            self.handles.insert(handle, at);
        }
        Ok(at)
    }

    /// What goes over at a login. It is all there is if it is known that the request had loaded it.
    fn inherit(&self, session: &mut Known, from: usize, is_sure: bool, id: usize, sent: u64) {
        let from = &self.sessions[from];
        let is_before = |effect: &Effect| effect.fate == Fate::Sure && effect.done.is_some_and(|done| done < sent);
        let goes_over = |effect: &Effect| match is_sure && is_before(effect) {
            true => *effect,
            false => {
                Effect { fate: if effect.fate == Fate::Not { Fate::Not } else { Fate::Maybe }, done: None, ..*effect }
            }
        };
        for (counter, old) in session.counters.iter_mut().zip(&from.counters) {
            counter.low = if is_sure { old.least(sent) } else { 0 };
            counter.high = old.most(self.now, id);
        }
        session.puts = from
            .puts
            .iter()
            .map(|(name, put)| {
                let takes = put.takes.iter().map(|take| match is_before(take) {
                    true => *take,
                    false => goes_over(take),
                });
                (*name, Put { put: goes_over(&put.put), takes: takes.collect() })
            })
            .collect();
        session.themes = from.themes.iter().map(goes_over).collect();
    }

    /// Or it is that one whose data are in it.
    fn may_come_from(&mut self, id: usize, session: usize, from: usize) {
        let may = |effect: &Effect| match effect.fate {
            Fate::Not => *effect,
            Fate::Maybe | Fate::Sure => Effect { fate: Fate::Maybe, done: None, ..*effect },
        };
        let from = &self.sessions[from];
        let most = from.counters.each_ref().map(|counter| counter.most(self.now, id));
        let themes: Vec<Effect> = from.themes.iter().map(may).collect();
        // What was taken since it began may be there.
        let sent = self.asked[id].sent.at;
        let take = |take: &Effect| if take.is_before(sent) { *take } else { may(take) };
        let puts = from
            .puts
            .iter()
            .map(|(name, put)| (*name, Put { put: may(&put.put), takes: put.takes.iter().map(take).collect() }));
        let puts: Vec<(usize, Put)> = puts.collect();
        let known = &mut self.sessions[session];
        known.themes.retain(|theme| theme.fate != Fate::Not);
        known.themes.extend(themes.into_iter().filter(|theme| theme.fate != Fate::Not));
        for (counter, most) in known.counters.iter_mut().zip(most) {
            counter.high = counter.high.max(most);
        }
        known.puts.retain(|_, put| put.put.fate != Fate::Not);
        for (name, put) in puts {
            known.puts.entry(name).or_insert(put);
        }
    }

    fn hand_out(&mut self, text: &str, session: usize) -> usize {
        let value = self.values.len();
        self.texts.insert(text.to_owned(), value);
        let (links, successor, cut) = (vec![], None, vec![]);
        self.values.push(Value { text: text.to_owned(), session, links, successor, cut });
        value
    }
}

/// A session beside the one that a login makes.
struct Other {
    /// All that its record was and became.
    record: Vec<usize>,
    /// It began before the login did anything; and it was there until that was answered.
    is_born: bool,
    is_there: bool,
    /// Nobody had ended it for sure before.
    may_be: bool,
    /// When the store had heard of it last: no earlier, and no later.
    heard: (u64, u64),
}

/// How a session came to be.
struct Birth<'a> {
    key: Option<String>,
    handle: Option<String>,
    login: Option<usize>,
    or_login: Option<usize>,
    cookie: Option<&'a str>,
    /// The session whose record it is.
    renews: Option<usize>,
    /// From which one its data are, and whether all that was in that one for sure is in this one.
    from: Option<(usize, bool)>,
    /// Whether what was written with it, and after the save, is in it. Nothing was, if there is no telling.
    early: Option<bool>,
    late: Option<bool>,
}

/// What may be the case while a request is under way.
impl Oracle {
    /// No earlier it has loaded its session.
    fn loads(&self, id: usize) -> Instant {
        let asked = &self.asked[id];
        asked.goes_on.filter(|_| asked.ask.wait == Some(Moment::Come)).unwrap_or(asked.sent)
    }

    /// No earlier it has written anything.
    fn commits(&self, id: usize) -> Instant {
        let asked = &self.asked[id];
        asked.goes_on.filter(|_| asked.ask.wait != Some(Moment::Saved)).unwrap_or(asked.sent)
    }

    /// No earlier its login began.
    fn began(&self, id: usize) -> Instant {
        let asked = &self.asked[id];
        asked.ask.kept.as_ref().map_or(asked.sent, |kept| self.asked[kept.by].sent)
    }

    /// No later its login began: whatever cleared its user since refuses it.
    fn marked(&self, id: usize) -> Option<Instant> {
        let asked = &self.asked[id];
        if let Some(kept) = &asked.ask.kept {
            return self.asked[kept.by].answered;
        }
        asked.waits.filter(|_| !asked.ask.takes_login || asked.ask.wait != Some(Moment::Come))
    }

    /// Whether a login could not come after that clear. For how long its call is on its way to the store does not count.
    fn would_refuse(&self, login: usize, clear: &Effect) -> bool {
        let (Some(marked), Some(answered)) = (self.marked(login), self.asked[login].answered) else { return false };
        if self.asked[login].ask.kept.is_some() {
            return marked.at < clear.sent;
        }
        let on_its_way = answered.ms.saturating_sub(self.commits(login).ms);
        marked.at < clear.sent && marked.ms + on_its_way < clear.sent_ms
    }

    /// When what it did was answered, by the clock of the application; `None` if that is not known.
    fn answered_ms(&self, effect: &Effect) -> Option<u64> {
        self.asked[effect.ask].answered.map(|answered| answered.ms)
    }

    /// What other requests may have replaced that ID by, and what it was replaced by, one after the other.
    fn replacers(&self, id: usize, value: usize) -> Vec<Effect> {
        let after = |value: &usize| self.values[*value].successor.map(|(_, next)| next);
        let chain = std::iter::successors(Some(value), after);
        let links = chain.flat_map(|value| &self.values[value].links);
        let may = |effect: &&Effect| effect.ask != id && effect.fate != Fate::Not;
        let cut = self.values[value].cut.iter().map(|effect| Effect { renews: true, ..*effect });
        links.copied().chain(cut).filter(|effect| may(&effect)).collect()
    }

    fn values_of_record(&self, session: usize) -> usize {
        let lineage = self.lineage(session);
        self.values.iter().filter(|value| lineage.contains(&value.session)).count()
    }

    /// Nobody has ended it for sure, nor has its ID died of age.
    fn may_lead(&mut self, id: usize, value: usize) -> Checked {
        let loads = self.loads(id);
        let value = &self.values[value];
        let known = &self.sessions[value.session];
        if let Some(ender) = known.enders.iter().find(|ender| ender.is_before(loads.at)) {
            return Err(format!("a session that #{} had ended was revived", ender.ask));
        }
        if let Some(login) = value.cut.iter().find(|effect| effect.is_before(loads.at)) {
            return Err(format!("an ID leads to the session that its holder has left with #{}", login.ask));
        }
        let Some((rework, _)) = value.successor else { return Ok(()) };
        let over = self.asked[rework].answered.map(|answered| answered.ms + self.grace);
        if over.is_some_and(|over| loads.ms > over) {
            return Err(format!("an ID that #{rework} had replaced leads to its session long after"));
        }
        self.count("old IDs within the grace");
        Ok(())
    }

    /// Nobody may have ended it, and its ID cannot have died of age.
    fn must_lead(&self, id: usize, value: usize, ms: u64) -> bool {
        if !self.is_alone(id, self.values[value].session) {
            return false;
        }
        let replacers = self.replacers(id, value);
        let first = replacers.iter().map(|effect| effect.sent_ms).min();
        replacers.iter().all(|effect| !effect.renews) && first.is_none_or(|first| ms < first + self.grace)
    }

    /// It may be the newest ID when the request commits.
    fn must_be_newest(&self, id: usize, value: usize) -> bool {
        self.replacers(id, value).is_empty()
    }

    fn may_be_superseded(&self, id: usize, value: usize) -> bool {
        let loads = self.loads(id).ms;
        self.replacers(id, value).iter().any(|effect| {
            let over = self.answered_ms(effect).map(|ms| ms + SUPERSEDED_FOR);
            effect.renews && (effect.fate == Fate::Maybe || over.is_none_or(|over| loads <= over))
        })
    }

    /// A login, or `clear_others`, has replaced it, its record is there, and the ten seconds are not over.
    fn must_be_superseded(&self, id: usize, value: usize, ms: u64) -> bool {
        let loads = self.loads(id).at;
        let (of, session) = (&self.values[value], self.values[value].session);
        let mut renewals = self.sessions[session].enders.iter().filter(|ender| ender.renews);
        let Some(renewal) = renewals.find(|renewal| renewal.ask != id && renewal.is_before(loads)) else {
            return false;
        };
        let was_good = of.successor.is_some_and(|(first, _)| {
            let until = self.asked[first].sent.ms + self.grace;
            first == renewal.ask || self.answered_ms(renewal).is_some_and(|ms| ms < until)
        });
        was_good
            && of.cut.iter().all(|effect| effect.fate == Fate::Not)
            && ms < renewal.sent_ms + SUPERSEDED_FOR
            && self.values_of_record(session) <= MOST_SUPERSEDED
            && self.is_record_alone(id, session)
    }

    /// If its record is there, a sign-out by this ID acts.
    fn must_open(&self, id: usize, value: usize, ms: u64) -> bool {
        let first = self.replacers(id, value).iter().map(|effect| effect.sent_ms).min();
        let many = self.values_of_record(self.values[value].session) > MOST_SUPERSEDED;
        first.is_none_or(|first| !many && ms < first + self.grace.min(SUPERSEDED_FOR))
    }

    /// A sign-out by this ID may act.
    fn may_open(&self, id: usize, value: usize) -> bool {
        let commits = self.commits(id).ms;
        let replacers = self.replacers(id, value);
        let is_open = |effect: &Effect| {
            let window = if effect.renews { SUPERSEDED_FOR } else { self.grace };
            let answered = self.answered_ms(effect).filter(|_| effect.fate == Fate::Sure);
            answered.is_none_or(|ms| commits <= ms + window)
        };
        let [first, ..] = &replacers[..] else { return true };
        is_open(first) || replacers.iter().any(|effect| effect.renews && is_open(effect))
    }

    /// Whether nobody but that request may have ended the session, or given it a new ID.
    fn is_alone(&self, id: usize, session: usize) -> bool {
        let mut enders = self.sessions[session].enders.iter();
        !enders.any(|ender| ender.ask != id && ender.fate != Fate::Not)
    }

    /// Whether nobody but that request may have ended the record, under whatever ID.
    fn is_record_alone(&self, id: usize, session: usize) -> bool {
        let lineage = self.lineage(session);
        let mut enders = lineage.iter().flat_map(|session| &self.sessions[*session].enders);
        !enders.any(|ender| !ender.renews && ender.ask != id && ender.fate != Fate::Not)
    }

    fn is_record_over(&self, session: usize, at: u64) -> bool {
        let lineage = self.lineage(session);
        let mut enders = lineage.iter().flat_map(|session| &self.sessions[*session].enders);
        enders.any(|ender| !ender.renews && ender.is_before(at))
    }

    /// A login as that user may have been refused, because all of the user's sessions were ended since it began.
    fn may_be_late(&self, id: usize, user: &str) -> bool {
        let Instant { at: sent, ms } = self.began(id);
        let overlaps = |clear: &Effect| clear.done.is_none_or(|done| done > sent) && clear.fate != Fate::Not;
        let mut clears = self.clears.iter().filter(|(key, clear)| key == user && clear.ask != id);
        clears.any(|(_, clear)| overlaps(clear)) || self.ms > ms + LOGINS_ARE_GOOD_FOR
    }

    /// What a login made may have ended because of the limit, before what was written to the visitor's session since was in it, or
    /// all others were cleared.
    fn may_be_pushed_out(&self, id: usize, user: &str) -> bool {
        let commits = self.commits(id).at;
        let may = |limit: &Effect| limit.fate != Fate::Not && limit.done.is_none_or(|done| done > commits);
        let mut others = self.limits.iter().filter(|(key, limit)| key == user && limit.ask != id);
        let Asked { ask, cookies, .. } = &self.asked[id];
        (!cookies.visitors.is_empty() || ask.logs_in_and_clears()) && others.any(|(_, limit)| may(limit))
    }

    /// `save` may have found that the session is gone.
    fn may_be_gone(&self, id: usize, found: Option<Found>) -> bool {
        let cookies = &self.asked[id].cookies;
        let session = |value: usize| self.values[value].session;
        match found {
            Some(Found::User(value) | Found::Visitor(value)) => !self.is_alone(id, session(value)),
            Some(Found::Nobody) | None => {
                let superseded = cookies.users.iter().any(|value| self.may_be_superseded(id, *value));
                superseded
                    || cookies.is_several()
                    || found.is_none() && cookies.all().any(|value| !self.is_alone(id, session(value)))
            }
        }
    }
}

/// What may be answered.
impl Oracle {
    fn check(&mut self, id: usize, reply: &Reply, said: Option<Said>, witnessed: bool, ms: u64) -> Checked<Jar> {
        let got = self.check_headers(id, reply)?;
        let asked = &self.asked[id];
        if asked.way.lacks_key {
            return self.check_lacking(id, reply.status, said, &got);
        }
        let ask = asked.ask.clone();
        let said = match (reply.status, said) {
            (200, Some(said)) if ask.end == End::Well => said,
            (500, Some(said)) if ask.end == End::Fail => said,
            (503, None) => {
                self.count("503");
                return self.check_unavailable(id, reply, &got, witnessed);
            }
            (401, None) if ask.what == What::ClearOthers && got.user.text().is_some() => {
                return self.check_others_ended(id, &got);
            }
            (401, None) => {
                // The first try signed in, and what it made had ended before the second one ended the others.
                let had_begun = ask.again && ask.logs_in_and_clears();
                let is_right = got == Got { visitor: Change::Remove, ..Got::default() } && had_begun;
                ensure(is_right || got == Got::default(), || format!("a 401 came with {got:?}"))?;
                return self.check_refused(id, ms).map(|()| got.removals());
            }
            (409, None) if ask.is_limited() => {
                ensure(got == Got::default(), || "a refused login set a cookie".to_owned())?;
                return self.check_full(id).map(|()| Jar::default());
            }
            (507, None) if ask.what == What::Huge => {
                self.count("too large");
                ensure(got == Got::default(), || "a refused write set a cookie".to_owned())?;
                self.settle_nothing(id);
                return Ok(Jar::default());
            }
            _ => return Err(format!("nothing explains a {}", reply.status)),
        };
        let failed = reply.status == 500;
        self.count(if failed { "500" } else { "200" });
        match &ask.what {
            What::Unused => {
                ensure(got == Got::default(), || "who did not look set a cookie".to_owned())?;
                return Ok(Jar::default());
            }
            What::ClearOf(user) => {
                self.settle_clear(id, user, Fate::Sure, None);
                return Ok(Jar::default());
            }
            What::ListOf(user) => {
                self.check_list(id, user, said.list.as_deref().unwrap_or_default())?;
                return Ok(Jar::default());
            }
            _ => {}
        }
        // Whom it found. Of a blind one that is not known.
        let found = match &said.seen {
            None => self.guess(id, &got, ms),
            Some(seen) => Some(self.check_seen(id, seen, ms)?),
        };
        let saved = said.saved.as_deref();
        ensure(saved != Some("gone") || self.may_be_gone(id, found) || ask.login().is_some(), || {
            "`save` said that the session is gone, and nobody has ended it".to_owned()
        })?;
        let cross_site = self.asked[id].way.cross_site;
        ensure(saved != Some("cross-site") || (cross_site && matches!(found, Some(Found::Nobody) | None)), || {
            "`save` said that another site must not begin a session, and there is one, or it is this site".to_owned()
        })?;
        let is_dropped = matches!(saved, Some("gone" | "cross-site"));
        let early = if saved.is_some() { saved == Some("ok") } else { !failed };
        let (late, saved) = (!failed && !is_dropped, saved == Some("ok"));
        let done = Done { early, late, is_dropped, saved, again: said.again };
        if said.again {
            self.count(if saved { "second tries" } else { "second tries in vain" });
        }
        let jar = match &ask.what {
            What::Delete => self.check_delete(id, &got, &said, found, done, ms)?,
            What::Clear => self.check_clear(id, &got, &said, found, done, ms)?,
            What::ClearOthers => self.check_clear_others(id, &got, &said, found)?,
            _ if ask.login().is_some() => self.check_login(id, &got, &said, found, done, ms)?,
            _ => self.check_plain(id, &got, &said, found, done, ms)?,
        };
        if let (Some(Found::User(value)), Some(list)) = (found, &said.list) {
            let user = self.sessions[self.values[value].session].key.clone().unwrap_or_default();
            self.check_list(id, &user, list)?;
        }
        Ok(jar)
    }

    /// A process that lacks the key of all cookies finds nobody, ends nothing, and does not say that it did.
    fn check_lacking(&mut self, id: usize, status: u16, said: Option<Said>, got: &Got) -> Checked<Jar> {
        let Asked { ask, cookies, .. } = &self.asked[id];
        let must_refuse = ask.signs_out() && cookies.came(false);
        ensure(*got == Got::default(), || format!("a cookie that cannot be read was answered with {got:?}"))?;
        self.count(if must_refuse { "refused without the key" } else { "asked without the key" });
        match (status, said) {
            (401, None) if must_refuse => Ok(Jar::default()),
            (200, Some(Said { seen: Some(seen), .. })) if !must_refuse && seen.handle.is_none() => Ok(Jar::default()),
            _ => Err(format!("a process without the key answered with a {status}")),
        }
    }

    /// What every response must be like.
    fn check_headers(&mut self, id: usize, reply: &Reply) -> Checked<Got> {
        let mut got = Got::default();
        let mut last = None;
        for cookie in reply.all("set-cookie") {
            for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/"] {
                let has = cookie.split("; ").any(|part| part == attribute);
                ensure(has, || format!("a cookie without {attribute}"))?;
            }
            let no_store = reply.all("cache-control").any(|value| value.contains("no-store"));
            ensure(no_store, || "a response with a cookie may be stored".to_owned())?;
            let pair = cookie.split("; ").next().and_then(|pair| pair.split_once('='));
            let (is_visitors, text) = match pair {
                Some((USERS, text)) => (false, text),
                Some((VISITORS, text)) => (true, text),
                _ => return Err("a cookie of another name".to_owned()),
            };
            ensure(last.is_none_or(|last: bool| !last && is_visitors), || {
                "two cookies of one name, or the visitor's came first".to_owned()
            })?;
            last = Some(is_visitors);
            let is_removed = cookie.split("; ").any(|part| part == "Max-Age=0");
            ensure(!is_removed || self.asked[id].cookies.came(is_visitors), || {
                "a cookie was removed that had not come".to_owned()
            })?;
            ensure(cookie.len() <= 4096, || "a cookie is too long".to_owned())?;
            ensure(!self.texts.contains_key(text), || "an ID was given out twice".to_owned())?;
            let parts = text.split('.').count();
            ensure(is_removed || parts == 1 || (parts == 2) == is_visitors, || {
                "an ID is in the cookie of the other kind".to_owned()
            })?;
            let change = if is_removed { Change::Remove } else { Change::Set(text.to_owned()) };
            *(if is_visitors { &mut got.visitor } else { &mut got.user }) = change;
        }
        ensure(got.user.text().is_none() || got.visitor.text().is_none(), || "two cookies were set".to_owned())?;
        let looked = !matches!(self.asked[id].ask.what, What::Unused | What::ListOf(_) | What::ClearOf(_));
        let varies = reply.all("vary").any(|value| value.eq_ignore_ascii_case("cookie"));
        ensure(varies || !looked, || "a response that depends on the cookie does not say so".to_owned())?;
        Ok(got)
    }

    /// Whom a request without loading has found, if that is sure.
    fn guess(&self, id: usize, got: &Got, ms: u64) -> Option<Found> {
        let cookies = &self.asked[id].cookies;
        match (&cookies.users[..], &cookies.visitors[..]) {
            _ if got.visitor.text().is_some() => Some(Found::Nobody),
            ([], []) => Some(Found::Nobody),
            ([user], _) if self.must_lead(id, *user, ms) => Some(Found::User(*user)),
            ([], [visitor]) if self.must_lead(id, *visitor, ms) => Some(Found::Visitor(*visitor)),
            _ => None,
        }
    }

    /// What a handler loaded: which session, if any.
    fn check_seen(&mut self, id: usize, seen: &Seen, ms: u64) -> Checked<Found> {
        let is_found = seen.handle.is_some();
        ensure(is_found || (seen.key.is_none() && seen.data.is_empty()), || "no session has data".to_owned())?;
        let loads = self.loads(id).at;
        let cookies = self.asked[id].cookies.clone();
        let values = match (is_found, seen.key.is_some()) {
            (true, false) => {
                for user in &cookies.users {
                    ensure(!self.must_lead(id, *user, ms), || {
                        "a visitor's session was found in place of the user's".to_owned()
                    })?;
                    ensure(!self.must_be_superseded(id, *user, ms), || {
                        "a visitor's session was found beside an ID that a login had replaced".to_owned()
                    })?;
                }
                &cookies.visitors[..]
            }
            _ => &cookies.users[..],
        };
        if cookies.is_several() {
            self.count("two cookies");
        }
        if !is_found {
            self.count(if cookies.is_empty() { "strangers" } else { "found nothing" });
        }
        if !is_found {
            ensure(!self.must_find(id, ms), || "signed out, and nobody asked for it".to_owned())?;
            return Ok(Found::Nobody);
        }
        ensure(!self.are_too_many(id, seen.key.is_none()), || {
            "more cookies than are tried led to a session".to_owned()
        })?;
        let value = self.which_counts(id, seen, values, ms)?;
        self.observe(id, self.values[value].session, seen, false)?;
        self.may_lead(id, value)?;
        self.is_not_limited(self.values[value].session, loads);
        self.count("found");
        Ok(if seen.key.is_some() { Found::User(value) } else { Found::Visitor(value) })
    }

    /// Whether the cookies surely lead to a session: no other one that may be live makes it doubtful which one counts.
    fn must_find(&self, id: usize, ms: u64) -> bool {
        let Cookies { users, visitors, .. } = &self.asked[id].cookies;
        let loads = self.loads(id).at;
        let session = |value: usize| &self.sessions[self.values[value].session];
        let must = |value: &usize| self.must_lead(id, *value, ms);
        let alive = |values: &[usize]| -> Vec<usize> {
            values.iter().copied().filter(|value| !session(*value).is_over(loads)).collect()
        };
        let (users_alive, visitors_alive) = (alive(users), alive(visitors));
        // Of one user either may count.
        let is_one_user = users_alive.windows(2).all(|pair| session(pair[0]).key == session(pair[1]).key);
        let is_one_visitor =
            visitors_alive.windows(2).all(|pair| self.values[pair[0]].session == self.values[pair[1]].session);
        let of_users = !self.are_too_many(id, false) && is_one_user && users.iter().any(must);
        let of_visitors = !self.are_too_many(id, true) && is_one_user && is_one_visitor && visitors.iter().any(must);
        of_users || of_visitors && users.iter().all(|user| !self.may_be_superseded(id, *user))
    }

    /// Whether there are more cookies than are tried. A visitor's are tried if no user's leads anywhere.
    fn are_too_many(&self, id: usize, with_visitors: bool) -> bool {
        let Cookies { users, visitors, .. } = &self.asked[id].cookies;
        users.len() + if with_visitors { visitors.len() } else { 0 } > MOST_COOKIES
    }

    /// By which of the cookies of that kind a session was found.
    fn which_counts(&mut self, id: usize, seen: &Seen, values: &[usize], ms: u64) -> Checked<usize> {
        ensure(!values.is_empty(), || "a stranger was given a session".to_owned())?;
        if let [value] = values {
            return Ok(*value);
        }
        let session = |value: usize| &self.sessions[self.values[value].session];
        let is_unknown = !seen.handle.as_ref().is_some_and(|handle| self.handles.contains_key(handle));
        let is = |value: &usize| {
            let known = session(*value);
            known.handle == seen.handle || (is_unknown && known.handle.is_none() && known.key == seen.key)
        };
        let first = values.iter().position(is).ok_or("several cookies led to another session")?;
        for (at, value) in values.iter().enumerate().filter(|(_, value)| !is(value)) {
            let is_other = seen.key.is_none() || session(*value).key != seen.key;
            let must = self.must_lead(id, *value, ms);
            ensure(!must || !is_other, || "one of two users' cookies was taken".to_owned())?;
            ensure(!must || at > first, || "a later cookie was taken".to_owned())?;
        }
        let mine: Vec<usize> = values.iter().copied().filter(is).collect();
        Ok(self.newest_of(id, &mine))
    }

    /// Of several IDs of one record, the one that counts: it leads somewhere, and no other one has replaced it.
    fn newest_of(&mut self, id: usize, values: &[usize]) -> usize {
        let loads = self.loads(id).at;
        let session = |oracle: &Self, value: usize| oracle.values[value].session;
        let rank = |oracle: &mut Self, value: usize| {
            let is_over = oracle.sessions[session(oracle, value)].is_over(loads);
            let is_dead = is_over || oracle.may_lead(id, value).is_err();
            (is_dead, oracle.values[value].successor.is_some())
        };
        let mut ranked: Vec<_> = values.iter().map(|value| (rank(self, *value), *value)).collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked[0].1
    }

    /// Nobody knows what happened, unless a cookie tells.
    fn check_unavailable(&mut self, id: usize, reply: &Reply, got: &Got, saved: bool) -> Checked<Jar> {
        let Asked { ask, cookies, .. } = &self.asked[id];
        let (ask, cookies) = (ask.clone(), cookies.clone());
        let is_kept = Ask::is_kept(&ask.writes) || Ask::is_kept(&ask.late);
        let is_stranger = cookies.all().next().is_none() && cookies.forged.as_ref().is_none_or(|f| f.malformed);
        let needs_none = match &ask.what {
            What::Unused => true,
            What::Visit
            | What::Rework
            | What::List
            | What::Revoke(_)
            | What::Delete
            | What::Clear
            | What::ClearOthers => is_stranger && !is_kept,
            _ => false,
        };
        ensure(!self.steady, || "503, and nothing is wrong".to_owned())?;
        ensure(!needs_none, || "a request without a session depended on the store".to_owned())?;
        ensure(reply.all("retry-after").next().is_some(), || "a 503 without Retry-After".to_owned())?;
        let removes = got.user == Change::Remove || got.visitor == Change::Remove;
        if removes {
            // The save failed, and the sign-out came through with the response that says so.
            let may = ask.save && ask.signs_out() && (got.user.text().is_none() || ask.logs_in_and_clears());
            ensure(may, || "an outage removed a cookie".to_owned())?;
        }
        let mut jar = got.removals();
        if let Some(text) = got.visitor.text() {
            ensure(ask.save, || "an outage set a cookie".to_owned())?;
            let rotated = cookies.visitors.first().filter(|_| ask.what == What::Rework).copied();
            jar.visitor = Slot::Set(match rotated.filter(|value| self.is_same_session(*value, text)) {
                Some(value) if handle_in(text).is_some() || cookies.users.is_empty() => {
                    self.settle_writes(self.values[value].session, id, false, Fate::Sure);
                    self.replace(value, id, text, self.values[value].session)?
                }
                _ => self.bear_visitor(id, text, (Some(true), Some(false)))?,
            });
        }
        let Some(text) = got.user.text() else {
            let may = got.visitor.text().is_some() || ask.login().is_none() || !saved;
            ensure(may, || "a login was saved, and its cookie is missing".to_owned())?;
            return Ok(jar);
        };
        // What was saved is stored, and its ID must leave. What became of the rest is not known.
        ensure(ask.save || ask.logs_in_and_clears() || ask.what == What::ClearOthers, || {
            "an outage set a cookie".to_owned()
        })?;
        let mine: Vec<usize> = match ask.what {
            What::ClearOthers => {
                cookies.users.iter().copied().filter(|user| self.is_same_session(*user, text)).collect()
            }
            _ => vec![],
        };
        let user = if mine.is_empty() { cookies.users.first().copied() } else { Some(self.newest_of(id, &mine)) };
        let is_same = user.is_some_and(|value| self.is_same_session(value, text));
        jar.user = Slot::Set(match (&ask.what, user) {
            (What::Rework, Some(value)) if is_same => {
                self.settle_writes(self.values[value].session, id, false, Fate::Sure);
                self.replace(value, id, text, self.values[value].session)?
            }
            (What::ClearOthers, Some(value)) if is_same => self.renew(id, value, text, (None, None), true)?,
            (_, value) if ask.login().is_some() => {
                let in_place = value.filter(|value| is_same && self.user_of_value(*value) == ask.login());
                let early = Some(false);
                match in_place {
                    Some(value) => self.renew(id, value, text, (early, Some(false)), false)?,
                    None => {
                        let of_user = |value: &usize| self.user_of_value(*value) == ask.login() && ask.takes_login;
                        let from = value.filter(of_user).or(cookies.visitors.first().copied());
                        let goes_over = matches!(ask.what, What::Bind(_) | What::OthersAndBind(_));
                        let session = |value: usize| self.values[value].session;
                        let (from, or) = (from.map(session), cookies.visitors.first().copied().map(session));
                        let new = self.begin(
                            id,
                            text,
                            from.filter(|_| goes_over).map(|it| (it, false)),
                            (early, Some(false)),
                        )?;
                        if let Some(or) = or.filter(|or| goes_over && from != Some(*or)) {
                            self.may_come_from(id, self.values[new].session, or);
                        }
                        new
                    }
                }
            }
            _ => return Err("an outage set a user's cookie".to_owned()),
        });
        Ok(jar)
    }

    /// A 401: what it was for may be gone, or have another ID by now.
    fn check_refused(&mut self, id: usize, ms: u64) -> Checked {
        self.count("refused");
        let Asked { ask, cookies, .. } = &self.asked[id];
        let (ask, cookies) = (ask.clone(), cookies.clone());
        let session = |value: usize| self.values[value].session;
        let loads = self.loads(id).at;
        let may_be_closed =
            |value: usize| !self.must_open(id, value, ms) && !self.is_record_over(session(value), loads);
        let is_newest_for_sure = |value: usize| self.must_be_newest(id, value) && self.is_alone(id, session(value));
        let may = match &ask.what {
            What::Delete => {
                self.are_too_many(id, true)
                    || cookies.forges_user()
                    || cookies.forged.is_some()
                    || cookies.all().any(may_be_closed)
            }
            What::Clear => {
                let user =
                    |value: &usize| !self.must_open(id, *value, ms) || !self.is_record_alone(id, session(*value));
                self.are_too_many(id, true)
                    || cookies.forged.is_some()
                    || cookies.users.iter().any(user)
                    || cookies.visitors.iter().any(|value| may_be_closed(*value))
            }
            What::ClearOthers => {
                cookies.is_several()
                    || cookies.forged.is_some()
                    || cookies.visitors.iter().any(|value| may_be_closed(*value))
                    || cookies.users.iter().any(|value| !is_newest_for_sure(*value))
            }
            _ => match ask.login() {
                Some(user) => {
                    let needs_no_session = ask.takes_login;
                    let ended = |known: &Known| known.born_by == id && !known.enders.is_empty();
                    let gone = cookies.users.iter().any(|value| !is_newest_for_sure(*value));
                    self.may_be_late(id, user)
                        || self.may_be_pushed_out(id, user)
                        || (gone && (!needs_no_session || ask.logs_in_and_clears()))
                        || (ask.logs_in_and_clears() && self.sessions.iter().any(ended))
                }
                None => false,
            },
        };
        ensure(may, || "a 401, and nothing explains it".to_owned())?;
        match &ask.what {
            // What its first try did is not known.
            _ if ask.again => {}
            // What could be ended was.
            What::Delete if cookies.all().count() > 1 => {}
            What::Clear if cookies.is_several() => {}
            What::ClearAndBind(_) | What::OthersAndBind(_) => {
                if let [value] = cookies.users[..]
                    && let What::ClearAndBind(_) = ask.what
                    && !ask.takes_login
                    && self.is_alone_but_for_rotations(id, value, ms)
                {
                    // The login was refused, and the clear beside it acted.
                    let key = self.sessions[self.values[value].session].key.clone().unwrap_or_default();
                    self.count("clears beside refused logins");
                    self.settle_clear(id, &key, Fate::Sure, None);
                }
            }
            What::ClearOthers => {
                if cookies.users.len() > 1 {
                    self.count("other sessions not ended by several cookies");
                }
                // It has a new ID all the same, if it ended only then; and nothing else did.
                self.settle_endings(id, Fate::Not);
                for value in cookies.users {
                    let may_be = !self.is_record_alone(id, self.values[value].session);
                    self.settle_link(value, id, if may_be { Fate::Maybe } else { Fate::Not });
                }
            }
            _ => self.settle_nothing(id),
        }
        Ok(())
    }

    /// Its session is there for sure, and lets this ID sign out, which another one has replaced.
    fn is_alone_but_for_rotations(&self, id: usize, value: usize, ms: u64) -> bool {
        let replacers = self.replacers(id, value);
        let is_replaced = replacers.iter().any(|effect| effect.is_before(self.loads(id).at));
        is_replaced && self.must_open(id, value, ms) && self.is_alone(id, self.values[value].session)
    }

    /// What is neither a login nor a sign-out.
    fn check_plain(
        &mut self,
        id: usize,
        got: &Got,
        said: &Said,
        found: Option<Found>,
        done: Done,
        ms: u64,
    ) -> Checked<Jar> {
        let Asked { ask, cookies, way, .. } = &self.asked[id];
        let (ask, cookies, cross_site) = (ask.clone(), cookies.clone(), way.cross_site);
        ensure(got.user != Change::Remove && got.visitor != Change::Remove, || {
            "a cookie was removed, and nobody signed out".to_owned()
        })?;
        let kept = ask.what != What::Huge
            && ((done.early && Ask::is_kept(&ask.writes)) || (done.late && ask.save && Ask::is_kept(&ask.late)));
        // What was written to the sessions that it came with.
        let own = match found {
            Some(Found::User(value) | Found::Visitor(value)) => Some((value, self.values[value].session)),
            _ => None,
        };
        for value in cookies.all().filter(|_| ask.is_plain()) {
            let session = self.values[value].session;
            // Perhaps by another ID of it.
            if own.is_some_and(|(it, own)| it != value && (own == session || self.shares_record(own, session))) {
                continue;
            }
            let is_it = found.map(|found| matches!(found, Found::User(it) | Found::Visitor(it) if it == value));
            let loads = self.loads(id).at;
            let known = &self.sessions[session];
            // A new ID, or an end, that came between leaves nothing of what is written without a word.
            let mut renewals = known.enders.iter().filter(|ender| ender.renews && ender.ask != id);
            let may_be_late = renewals.any(|renewal| renewal.fate != Fate::Not && !renewal.is_before(loads));
            let fate = |counts: bool, told: bool| match is_it {
                _ if ask.what == What::Huge => Fate::Not,
                Some(false) => Fate::Not,
                None => Fate::Maybe,
                // The first try may have been in time.
                Some(true) if done.is_dropped && done.again => Fate::Maybe,
                Some(true) if !counts => Fate::Not,
                Some(true) if may_be_late && !told => Fate::Maybe,
                Some(true) => Fate::Sure,
            };
            let (early, late) = (fate(done.early, done.saved), fate(done.late, false));
            if done.saved && is_it == Some(true) && Ask::is_kept(&ask.writes) {
                self.is_there(id, session)?;
            }
            self.settle_writes(session, id, false, early);
            self.settle_writes(session, id, true, late);
        }
        if let What::Revoke(handle) = &ask.what {
            self.check_revoked(id, handle, said.revoked, found)?;
        }
        let value = own.map(|(value, _)| value);
        let mut jar = Jar::default();
        if let (What::Rework, true) = (&ask.what, done.early || done.is_dropped) {
            let is_user = matches!(found, Some(Found::User(_)));
            let text = if is_user { got.user.text() } else { got.visitor.text() };
            if let Some(value) = value {
                let session = self.values[value].session;
                if let Some(text) = text {
                    self.count("rotations");
                    ensure(self.is_same_session(value, text), || "a rework changed the handle".to_owned())?;
                    ensure(self.fewest_previous(id, session, ms) < MOST_PREVIOUS, || {
                        "a rotation while four IDs are in their grace".to_owned()
                    })?;
                    let new = self.replace(value, id, text, session)?;
                    self.check_after(id, session, said)?;
                    let slot = Slot::Set(new);
                    return Ok(if is_user { Jar { user: slot, ..jar } } else { Jar { visitor: slot, ..jar } });
                }
                let must = done.early
                    && self.must_be_newest(id, value)
                    && self.is_alone(id, session)
                    && self.values[value].successor.is_none()
                    && self.most_previous(id, session) < MOST_PREVIOUS;
                ensure(!must, || "a rework gave no new ID".to_owned())?;
            }
        }
        for value in cookies.all().filter(|_| ask.what == What::Rework && !(done.is_dropped && done.again)) {
            self.settle_link(value, id, Fate::Not);
        }
        ensure(got.user == Change::Nothing, || "a user's cookie was set, and nobody signed in".to_owned())?;
        match (got.visitor.text(), value) {
            (Some(_), Some(_)) => return Err("a cookie was set for a session that had one".to_owned()),
            (Some(text), None) => {
                self.count("first writes");
                ensure(kept, || "a cookie was set, and nothing was written".to_owned())?;
                ensure(!cross_site, || "a request from another site made a session".to_owned())?;
                ensure(!self.are_too_many(id, false), || "more cookies than are tried were given another".to_owned())?;
                for value in cookies.all() {
                    ensure(!self.must_lead(id, value, ms), || "a second session was made".to_owned())?;
                    ensure(self.is_visitors(value) || !self.must_be_superseded(id, value, ms), || {
                        "what a login had replaced was given a visitor's cookie".to_owned()
                    })?;
                }
                let late = done.late.then_some(true).filter(|_| ask.save);
                let new = self.bear_visitor(id, text, (Some(done.early), late))?;
                self.check_after(id, self.values[new].session, said)?;
                jar.visitor = Slot::Set(new);
            }
            (None, Some(value)) => self.check_after(id, self.values[value].session, said)?,
            (None, None) => {
                let loads = self.loads(id).at;
                let is_over = |value: usize| self.is_record_over(self.values[value].session, loads);
                let is_nobody = found == Some(Found::Nobody) && cookies.all().all(is_over) && !cookies.is_several();
                let must = kept && is_nobody && !cross_site && !done.is_dropped;
                ensure(!must, || "the first write set no cookie".to_owned())?;
            }
        }
        Ok(jar)
    }

    /// So many IDs are in their grace for sure when that request rotates.
    fn fewest_previous(&self, id: usize, session: usize, ms: u64) -> usize {
        let is = |effect: &&Effect| {
            effect.ask != id && effect.is_before(self.commits(id).at) && ms < effect.sent_ms + self.grace
        };
        self.sessions[session].rotations.iter().filter(is).count()
    }

    /// And so many at most.
    fn most_previous(&self, id: usize, session: usize) -> usize {
        let commits = self.commits(id).ms;
        let may = |effect: &&Effect| {
            let over = self.answered_ms(effect).filter(|_| effect.fate == Fate::Sure).map(|ms| ms + self.grace);
            effect.ask != id && effect.fate != Fate::Not && over.is_none_or(|over| over >= commits)
        };
        self.sessions[session].rotations.iter().filter(may).count()
    }

    /// Signing out here.
    fn check_delete(
        &mut self,
        id: usize,
        got: &Got,
        said: &Said,
        found: Option<Found>,
        done: Done,
        ms: u64,
    ) -> Checked<Jar> {
        let cookies = self.asked[id].cookies.clone();
        let loads = self.loads(id).at;
        let session = |oracle: &Self, value: usize| oracle.values[value].session;
        let user_ended = got.user == Change::Remove;
        ensure(!self.are_too_many(id, cookies.users.is_empty()), || NOT_ALL_TRIED.to_owned())?;
        if user_ended {
            self.count("logouts");
            let may = |value: &usize| self.may_open(id, *value) && !self.is_record_over(session(self, *value), loads);
            ensure(cookies.users.iter().any(may), || "a user's cookie was removed that led nowhere".to_owned())?;
            if let (&[value], Some(seen)) = (&cookies.users[..], &said.seen)
                && seen.handle.is_none()
            {
                self.count("sign-outs by superseded IDs");
                ensure(self.may_be_superseded(id, value), || {
                    "a cookie was removed by a sign-out that found nobody".to_owned()
                })?;
            }
        }
        for value in cookies.users.clone() {
            let session = session(self, value);
            // The first try may have ended it; the second one then finds nothing.
            ensure(user_ended || done.again || !self.is_record_alone(id, session), || {
                "a sign-out was answered as done, and its session is there".to_owned()
            })?;
            ensure(!self.is_closed(id, value), || {
                "a sign-out by an ID that does not count was answered as done".to_owned()
            })?;
            // Nothing lives under its name by now.
            self.settle_ending_of(id, session, Fate::Sure);
        }
        for value in cookies.visitors.clone() {
            let session = session(self, value);
            let fate = match found {
                Some(Found::Visitor(it)) if it == value => Fate::Sure,
                // A user's comes first.
                Some(Found::User(_)) => Fate::Not,
                _ if cookies.visitors.len() > 1 && !cookies.users.is_empty() => Fate::Maybe,
                _ if cookies.visitors.len() > 1 => Fate::Sure,
                Some(_) => Fate::Not,
                None if user_ended => Fate::Not,
                None if cookies.users.is_empty() => Fate::Sure,
                None => Fate::Maybe,
            };
            if fate == Fate::Sure && got.visitor == Change::Nothing && !done.again {
                ensure(!self.is_record_alone(id, session), || "a sign-out left the visitor's session".to_owned())?;
            }
            self.settle_ending_of(id, session, fate);
        }
        self.check_removed_visitor(id, got, user_ended, loads)?;
        self.check_left_behind(id, got, said, done, ms)
    }

    /// Signing out everywhere.
    fn check_clear(
        &mut self,
        id: usize,
        got: &Got,
        said: &Said,
        found: Option<Found>,
        done: Done,
        ms: u64,
    ) -> Checked<Jar> {
        let cookies = self.asked[id].cookies.clone();
        let loads = self.loads(id).at;
        let user_ended = got.user == Change::Remove;
        ensure(!self.are_too_many(id, cookies.users.is_empty()), || NOT_ALL_TRIED.to_owned())?;
        if cookies.users.is_empty() {
            ensure(!cookies.forges_user(), || "an ID of nobody has signed out everywhere".to_owned())?;
            for value in cookies.visitors.clone() {
                let session = self.values[value].session;
                ensure(got.visitor == Change::Remove || done.again || !self.is_record_alone(id, session), || {
                    "a sign-out left the visitor's session".to_owned()
                })?;
                self.settle_ending_of(id, session, Fate::Sure);
            }
        } else {
            ensure(user_ended, || "signing out everywhere was answered as done, and is not".to_owned())?;
            self.count("logouts");
            if found == Some(Found::Nobody) && cookies.users.len() == 1 {
                self.count("sign-outs by superseded IDs");
                ensure(self.may_be_superseded(id, cookies.users[0]), || {
                    "an ID that leads nowhere has signed out everywhere".to_owned()
                })?;
            }
            let may =
                |value: &usize| self.may_open(id, *value) && !self.is_record_over(self.values[*value].session, loads);
            ensure(cookies.users.iter().any(may), || "an ID that counts no more has signed out everywhere".to_owned())?;
            for value in cookies.users.clone() {
                let session = self.values[value].session;
                let key = self.sessions[session].key.clone().unwrap_or_default();
                let is_sure =
                    cookies.users.len() == 1 || self.must_open(id, value, ms) && self.is_record_alone(id, session);
                self.settle_clear(id, &key, if is_sure { Fate::Sure } else { Fate::Maybe }, None);
            }
            for value in cookies.visitors.clone() {
                self.settle_ending_of(id, self.values[value].session, Fate::Not);
            }
        }
        self.check_removed_visitor(id, got, user_ended, loads)?;
        self.check_left_behind(id, got, said, done, ms)
    }

    /// The visitor's cookie goes with the user's, or with its own session.
    fn check_removed_visitor(&mut self, id: usize, got: &Got, user_ended: bool, loads: u64) -> Checked {
        let cookies = &self.asked[id].cookies;
        let is_live = |value: &usize| !self.is_record_over(self.values[*value].session, loads);
        match got.visitor {
            Change::Remove => ensure(user_ended || cookies.visitors.iter().any(is_live), || {
                "a visitor's cookie was removed by a sign-out that found nobody".to_owned()
            }),
            Change::Nothing => {
                ensure(!user_ended || !cookies.came(true), || "a sign-out left the visitor's cookie".to_owned())
            }
            Change::Set(_) => Ok(()),
        }
    }

    /// What was written after a sign-out is the first write of a visitor.
    fn check_left_behind(&mut self, id: usize, got: &Got, said: &Said, done: Done, _ms: u64) -> Checked<Jar> {
        let Asked { ask, cookies, way, .. } = &self.asked[id];
        let (ask, cookies, cross_site) = (ask.clone(), cookies.clone(), way.cross_site);
        let kept = done.early && Ask::is_kept(&ask.writes);
        let mut jar = got.removals();
        ensure(got.user.text().is_none(), || "a sign-out set a user's cookie".to_owned())?;
        match got.visitor.text() {
            Some(text) => {
                ensure(kept, || "a sign-out set a cookie".to_owned())?;
                let may = !cross_site || cookies.all().next().is_some();
                ensure(may, || "a request from another site made a session".to_owned())?;
                let new = self.bear_visitor(id, text, (Some(true), None))?;
                self.check_after(id, self.values[new].session, said)?;
                jar.visitor = Slot::Set(new);
            }
            None => ensure(!kept || cross_site || !cookies.is_empty(), || "the first write set no cookie".to_owned())?,
        }
        Ok(jar)
    }

    /// Signing out everywhere else.
    fn check_clear_others(&mut self, id: usize, got: &Got, said: &Said, found: Option<Found>) -> Checked<Jar> {
        let cookies = self.asked[id].cookies.clone();
        let Some(Found::User(value)) = found else {
            ensure(got == &Got::default(), || "without a session `clear_others` set a cookie".to_owned())?;
            ensure(cookies.users.is_empty() && !cookies.forges_user(), || {
                "`clear_others` without a session was answered as done".to_owned()
            })?;
            self.settle_nothing(id);
            return Ok(Jar::default());
        };
        let text = got.user.text().ok_or("`clear_others` gave no new ID")?;
        ensure(got.visitor == Change::Nothing, || "`clear_others` changed the visitor's cookie".to_owned())?;
        if cookies.users.len() > 1 {
            self.count("other sessions ended by several cookies");
        }
        for other in cookies.users {
            ensure(!self.is_closed(id, other), || {
                "`clear_others` was answered as done beside an ID that does not count".to_owned()
            })?;
        }
        let new = self.end_others(id, value, text)?;
        self.check_after(id, self.values[new].session, said)?;
        Ok(Jar { user: Slot::Set(new), ..Jar::default() })
    }

    /// A 401 after it has acted: a cookie beside the one that counts may lead to a session that lives on.
    fn check_others_ended(&mut self, id: usize, got: &Got) -> Checked<Jar> {
        let cookies = self.asked[id].cookies.clone();
        let text = got.user.text().unwrap_or_default();
        ensure(got.visitor == Change::Nothing, || "`clear_others` changed the visitor's cookie".to_owned())?;
        let mine: Vec<usize> =
            cookies.users.iter().copied().filter(|value| self.is_same_session(*value, text)).collect();
        ensure(!mine.is_empty(), || "`clear_others` made another session".to_owned())?;
        let value = self.newest_of(id, &mine);
        let mut others = cookies.users.iter().filter(|other| **other != value);
        let loads = self.loads(id).at;
        let may_live_on = others.any(|other| {
            !self.replacers(id, *other).is_empty() && !self.is_record_over(self.values[*other].session, loads)
        });
        ensure(may_live_on, || "a 401 after `clear_others`, and nothing explains it".to_owned())?;
        self.count("other sessions ended beside one that may live on");
        let new = self.end_others(id, value, text)?;
        Ok(Jar { user: Slot::Set(new), ..Jar::default() })
    }

    /// `clear_others` by that value has ended all others of its user, and no other user's.
    fn end_others(&mut self, id: usize, value: usize, text: &str) -> Checked<usize> {
        self.count("other sessions ended");
        let cookies = self.asked[id].cookies.clone();
        let session = self.values[value].session;
        let key = self.sessions[session].key.clone().unwrap_or_default();
        for other in cookies.users.into_iter().filter(|other| *other != value) {
            self.settle_link(other, id, Fate::Not);
            match self.sessions[self.values[other].session].key.clone() {
                Some(other) if other != key => self.settle_clear(id, &other, Fate::Not, None),
                _ => {}
            }
        }
        let new = self.renew(id, value, text, (None, None), true)?;
        self.settle_clear(id, &key, Fate::Sure, Some(session));
        self.settle_ending_of(id, session, Fate::Not);
        Ok(new)
    }

    /// A login, alone or with what ends other sessions.
    fn check_login(
        &mut self,
        id: usize,
        got: &Got,
        said: &Said,
        found: Option<Found>,
        done: Done,
        ms: u64,
    ) -> Checked<Jar> {
        let Asked { ask, cookies, .. } = &self.asked[id];
        let (ask, cookies) = (ask.clone(), cookies.clone());
        let user = ask.login().unwrap_or_default().to_owned();
        let own = match found {
            Some(Found::User(value)) => Some((value, self.values[value].session)),
            _ => None,
        };
        let key = own.and_then(|(_, session)| self.sessions[session].key.clone());
        let is_same_user = key.as_ref() == Some(&user);
        if !done.early {
            // The handler's login is discarded, what it ends is not.
            let all = got.removals();
            let with_key = !ask.takes_login && own.is_some();
            return match (&ask.what, own) {
                (What::ClearAndBind(_), Some((_, _))) if with_key => {
                    ensure(got.user == Change::Remove, || "a clear was discarded with its login".to_owned())?;
                    let key = key.unwrap_or_default();
                    self.settle_clear(id, &key, Fate::Sure, None);
                    if key != user {
                        self.settle_clear(id, &user, Fate::Not, None);
                    }
                    Ok(all)
                }
                (What::OthersAndBind(_), Some((value, session))) if with_key && is_same_user => {
                    let text = got.user.text().ok_or("`clear_others` gave no new ID")?;
                    let new = self.renew(id, value, text, (None, None), true)?;
                    self.settle_clear(id, &user, Fate::Sure, Some(session));
                    self.settle_ending_of(id, session, Fate::Not);
                    Ok(Jar { user: Slot::Set(new), ..Jar::default() })
                }
                (What::ClearAndBind(_) | What::OthersAndBind(_), _) => {
                    let sets = got.user.text().or(got.visitor.text()).is_some();
                    ensure(!sets, || "a login that was discarded set a cookie".to_owned())?;
                    // Who was signed in is signed out with all others.
                    ensure(got == &Got::default() || own.is_some(), || {
                        "a login that was discarded removed the cookie of a session that was not there".to_owned()
                    })?;
                    self.settle_clear(id, &user, Fate::Sure, None);
                    for value in cookies.all() {
                        let session = self.values[value].session;
                        match found {
                            Some(Found::User(it) | Found::Visitor(it)) if it == value => {
                                self.settle_ending_of(id, session, Fate::Sure)
                            }
                            _ if self.sessions[session].key.as_ref() != Some(&user) => {
                                self.settle_ending_of(id, session, Fate::Not)
                            }
                            _ => {}
                        }
                    }
                    Ok(all)
                }
                _ => {
                    ensure(got == &Got::default(), || format!("a login that was discarded answered with {got:?}"))?;
                    if !done.again {
                        self.settle_nothing(id);
                    }
                    Ok(Jar::default())
                }
            };
        }
        let text = got.user.text().ok_or_else(|| format!("a login answered with {got:?}"))?;
        self.count("logins");
        ensure((got.visitor == Change::Remove) == cookies.came(true) && got.visitor.text().is_none(), || {
            format!("a login left the visitor's cookie, or set it: {got:?}")
        })?;
        // With more cookies there may be sessions of two others.
        if let (false, Some(value), 0..=2) = (ask.takes_login, cookies.users.first(), cookies.users.len()) {
            ensure(found != Some(Found::Nobody) || !self.must_be_superseded(id, *value, ms), || {
                "a login by an ID that a login had replaced".to_owned()
            })?;
        }
        let late = done.late.then_some(true).filter(|_| ask.save);
        let writes = (Some(true), late);
        let new_handle = handle_in(text).or_else(|| said.after.as_ref().and_then(|after| after.handle.clone()));
        let in_place = own.filter(|(_, session)| {
            let handle = &self.sessions[*session].handle;
            is_same_user && (!ask.takes_login || new_handle.is_some() && *handle == new_handle)
        });
        // Whatever it did not do.
        for value in cookies.all() {
            let session = self.values[value].session;
            let is_it = matches!(found, Some(Found::User(it) | Found::Visitor(it)) if it == value);
            if in_place.is_none_or(|(it, _)| it != value) && !done.again {
                self.settle_link(value, id, Fate::Not);
            }
            let has_left = is_it && in_place.is_none() && is_same_user;
            self.settle_cut(value, id, if has_left { Fate::Sure } else { Fate::Not });
            if !is_it && self.sessions[session].key.as_ref() != Some(&user) && !cookies.is_several() {
                self.settle_ending_of(id, session, Fate::Not);
            }
        }
        // By what the others are ended, they must have been there before.
        let others: Vec<(usize, Fate)> = match cookies.is_several() {
            true => cookies.all().map(|value| (value, self.fate_beside(id, value, found, ms))).collect(),
            false => vec![],
        };
        let new = match (in_place, found) {
            (Some((value, _)), _) => {
                self.count("logins in place");
                self.renew(id, value, text, writes, false)?
            }
            (None, Some(Found::User(value) | Found::Visitor(value))) => {
                let (session, is_newest) = (self.values[value].session, self.values[value].successor.is_none());
                if is_same_user {
                    self.count("logins beside");
                    let must = self.must_be_newest(id, value) && self.is_alone(id, session);
                    ensure(!must, || "a login of the same user made another session".to_owned())?;
                } else {
                    let commits = self.commits(id).at;
                    let needs_it = !ask.takes_login && own.is_some();
                    let replaced = self.values[value]
                        .successor
                        .is_some_and(|(by, _)| self.asked[by].answered.is_some_and(|answered| answered.at < commits));
                    ensure(!needs_it || is_newest || !replaced, || "a switch by an ID that was replaced".to_owned())?;
                    ensure(!needs_it || !self.sessions[session].is_over(commits), || {
                        "a session that had ended has become another user's".to_owned()
                    })?;
                    self.settle_ending_of(id, session, Fate::Sure);
                }
                let goes_over = matches!(ask.what, What::Bind(_) | What::OthersAndBind(_));
                let goes_over = goes_over && (is_same_user || own.is_none());
                self.begin(id, text, goes_over.then_some((session, true)), writes)?
            }
            _ => self.begin(id, text, None, writes)?,
        };
        let session = self.values[new].session;
        if ask.is_limited() {
            // A switch by a session key is not.
            let applies = in_place.is_none() && (own.is_none() || is_same_user || ask.takes_login);
            self.check_limit(id, session, applies)?;
        }
        for (value, fate) in others {
            let other = self.values[value].session;
            let is_own = other == session || self.shares_record(other, session);
            let is_it = matches!(found, Some(Found::User(it) | Found::Visitor(it)) if it == value);
            match is_it || is_own {
                // What it came with stays, if that is of the same user.
                true if is_same_user || is_own => self.settle_ending_of(id, other, Fate::Not),
                false if fate != Fate::Maybe => self.settle_ending_of(id, other, fate),
                _ => {}
            }
        }
        if ask.logs_in_and_clears() {
            let of_old =
                own.is_some() && !is_same_user && !ask.takes_login && matches!(ask.what, What::ClearAndBind(_));
            let kept = in_place.map_or(session, |(_, before)| before);
            self.settle_clear(id, &user, if of_old { Fate::Not } else { Fate::Sure }, Some(kept));
            if let Some((_, before)) = in_place {
                self.settle_ending_of(id, before, Fate::Not);
            }
            if let Some(key) = key.filter(|_| !is_same_user) {
                self.settle_clear(id, &key, if of_old { Fate::Sure } else { Fate::Not }, None);
                if let Some((_, session)) = own {
                    self.settle_ending_of(id, session, Fate::Sure);
                }
            }
        }
        self.check_after(id, session, said)?;
        Ok(Jar { user: Slot::Set(new), ..got.removals() })
    }

    /// A login was answered: who was ended for it, and who was not. `applies` if it made a session that counts under the limit.
    fn check_limit(&mut self, id: usize, session: usize, applies: bool) -> Checked {
        if !applies {
            self.settle_limit(id, false);
            return Ok(());
        }
        self.sessions[session].limited = true;
        match self.limit {
            Limit::None => {}
            Limit::LeastRecent(_) => {
                self.count("logins under a limit");
                self.settle_limit(id, true);
            }
            Limit::Refuse(most) => {
                self.count("logins under a limit that refuses");
                let user = self.asked[id].ask.login().unwrap_or_default();
                let there = self.others_of(id, user).iter().filter(|other| other.is_there).count();
                ensure(there < most, || format!("a login beside {there} sessions, and {most} are the most"))?;
            }
        }
        Ok(())
    }

    /// A 409: the user has as many sessions as may be.
    fn check_full(&mut self, id: usize) -> Checked {
        self.count("refused by the limit");
        if !self.asked[id].ask.again {
            self.settle_nothing(id);
        }
        let Limit::Refuse(most) = self.limit else { return Err("a 409, and logins are not refused".to_owned()) };
        let user = self.asked[id].ask.login().unwrap_or_default();
        let may_be = self.others_of(id, user).iter().filter(|other| other.may_be).count() + self.unknown_of(id, user);
        ensure(may_be >= most, || format!("a 409, and there are {may_be} sessions at most, of {most}"))
    }

    /// Which sessions that login has ended because of the limit, if it has made one.
    fn settle_limit(&mut self, id: usize, has_begun: bool) {
        let now = self.now;
        let Limit::LeastRecent(most) = self.limit else { return };
        let Some(at) = self.limits.iter().position(|(_, effect)| effect.ask == id) else { return };
        let user = self.limits[at].0.clone();
        let (others, unknown) = match has_begun {
            true => (self.others_of(id, &user), self.unknown_of(id, &user)),
            false => (vec![], 0),
        };
        let fate = |session: usize| {
            let Some(it) = others.iter().find(|other| other.record.contains(&session)) else { return Fate::Maybe };
            // So many that were heard of later stay before it.
            let others = || others.iter().filter(|other| other.record != it.record);
            let may = others().filter(|other| other.may_be && other.heard.1 > it.heard.0).count() + unknown;
            let surely = others().filter(|other| other.is_there && other.heard.0 > it.heard.1).count();
            match () {
                () if may < most - 1 => Fate::Not,
                () if surely >= most - 1 && it.is_born => Fate::Sure,
                () => Fate::Maybe,
            }
        };
        let fates: Vec<Fate> = match has_begun {
            true => (0..self.sessions.len()).map(fate).collect(),
            false => vec![Fate::Not; self.sessions.len()],
        };
        let mut counts = [0; 3];
        for other in others.iter().filter(|other| other.may_be) {
            counts[fates[other.record[0]] as usize] += 1;
        }
        for (known, fate) in self.sessions.iter_mut().zip(&fates) {
            for effect in known.enders.iter_mut().filter(|effect| effect.limits && effect.ask == id) {
                (effect.fate, effect.done) = (*fate, Some(now));
            }
        }
        for (what, count) in LIMITED.into_iter().zip(counts).filter(|(_, count)| *count > 0) {
            *self.tally.entry(what).or_default() += count;
        }
        let fate = if has_begun { Fate::Sure } else { Fate::Not };
        (self.limits[at].1.fate, self.limits[at].1.done) = (fate, Some(now));
    }

    /// A session that is seen to be there was not ended before.
    fn is_not_limited(&mut self, session: usize, since: u64) {
        for at in self.record(session) {
            let enders = self.sessions[at].enders.iter_mut();
            for effect in enders.filter(|effect| effect.limits && effect.done.is_some_and(|done| done < since)) {
                effect.fate = Fate::Not;
            }
        }
    }

    /// The sessions of that user beside the one that a login has made.
    fn others_of(&self, id: usize, user: &str) -> Vec<Other> {
        let commits = self.commits(id).at;
        let is_first = |at: &usize| !self.sessions.iter().any(|known| known.next == Some(*at));
        let of_user = |at: &usize| self.sessions[*at].key.as_deref() == Some(user);
        let other = |first: usize| {
            let record = self.lineage(first);
            let known = || record.iter().map(|at| &self.sessions[*at]);
            let mut enders = known().flat_map(|known| &known.enders).filter(|ender| !ender.renews && ender.ask != id);
            // One that is known from a list alone may be one that is known by its cookie alone.
            let is_born = known().all(|known| !known.orphan) && known().any(|known| known.born < commits);
            let is_there = is_born && enders.clone().all(|ender| ender.fate == Fate::Not);
            let may_be = !enders.any(|ender| ender.is_before(commits));
            let heard = self.heard(id, &record);
            Other { record, is_born, is_there, may_be, heard }
        };
        let firsts = (0..self.sessions.len()).filter(of_user).filter(is_first);
        firsts.map(other).filter(|other| !other.record.iter().any(|at| self.sessions[*at].born_by == id)).collect()
    }

    /// Sessions of that user that may be there, and of which nobody knows.
    fn unknown_of(&self, id: usize, user: &str) -> usize {
        let commits = self.commits(id).at;
        let may = |(at, asked): &(usize, &Asked)| {
            let is_done = asked.answered.is_some_and(|answered| answered.at < commits);
            // A switch that is refused in the end has made one first.
            let switches = !asked.ask.takes_login && !asked.cookies.users.is_empty();
            let may_be_discarded = (asked.ask.logs_in_and_clears() || switches) && !is_done;
            *at != id
                && asked.ask.login() == Some(user)
                && (asked.answered.is_none() || may_be_discarded || self.is_open(*at))
                && !self.sessions.iter().any(|known| known.born_by == *at)
        };
        self.asked.iter().enumerate().filter(may).count()
    }

    /// When the store has heard of that record last before the login: no earlier, and no later.
    fn heard(&self, id: usize, record: &[usize]) -> (u64, u64) {
        let (commits, now) = (self.commits(id).at, self.now);
        let (mut low, mut high) = (0, 0);
        let mut hears = |ask: usize, done: Option<u64>, is_sure: bool| {
            if ask == id {
                return;
            }
            high = high.max(done.unwrap_or(now));
            if is_sure && done.is_some_and(|done| done < commits) {
                low = low.max(self.commits(ask).at);
            }
        };
        for known in record.iter().map(|at| &self.sessions[*at]) {
            hears(known.born_by, Some(known.settled).filter(|_| !known.orphan), true);
            let adds = known.counters.iter().flat_map(|counter| &counter.adds);
            let renewals = known.enders.iter().filter(|ender| ender.renews);
            for effect in adds.chain(&known.rotations).chain(renewals).filter(|effect| effect.fate != Fate::Not) {
                hears(effect.ask, effect.done, effect.fate == Fate::Sure);
            }
            let puts = known.puts.values().flat_map(|put| std::iter::once(&put.put).chain(&put.takes));
            for effect in puts.chain(&known.themes).filter(|effect| effect.fate != Fate::Not) {
                hears(effect.ask, effect.done, false);
            }
        }
        let values = self.values.iter().filter(|value| record.contains(&value.session));
        for effect in values.flat_map(|value| &value.cut).filter(|effect| effect.fate != Fate::Not) {
            hears(effect.ask, effect.done, false);
        }
        (low, high)
    }

    /// What a login does to the session of another cookie that came with it: it ends what that opens. That of a visitor is not
    /// looked at beside a user's.
    fn fate_beside(&mut self, id: usize, value: usize, found: Option<Found>, ms: u64) -> Fate {
        let is_visitors = self.is_visitors(value);
        let cookies = &self.asked[id].cookies;
        let is_looked_at =
            (!is_visitors || cookies.users.is_empty()) && cookies.all().take(MOST_COOKIES).any(|tried| tried == value);
        match found {
            Some(Found::User(_)) if is_visitors => Fate::Not,
            _ if self.steady && is_looked_at && self.must_lead(id, value, ms) && self.must_open(id, value, ms) => {
                self.count("other sessions ended by a login");
                Fate::Sure
            }
            _ => Fate::Maybe,
        }
    }

    /// A new ID for the session of that value. `keeps` if all data stay as they are.
    fn renew(
        &mut self,
        id: usize,
        value: usize,
        text: &str,
        (early, late): (Option<bool>, Option<bool>),
        keeps: bool,
    ) -> Checked<usize> {
        let before = self.values[value].session;
        self.is_there(id, before)?;
        ensure(self.is_same_session(value, text), || "a login in place changed the handle".to_owned())?;
        let what = &self.asked[id].ask.what;
        let goes_over = keeps || matches!(what, What::Bind(_) | What::OthersAndBind(_));
        let is_sure = early != Some(false);
        let birth = Birth {
            key: self.sessions[before].key.clone(),
            handle: self.sessions[before].handle.clone(),
            login: if keeps { self.sessions[before].login } else { Some(id) },
            // A login that fails with `clear_others` beside it may be that alone.
            or_login: match early {
                Some(false) => self.sessions[before].login,
                _ => self.sessions[before].or_login.filter(|_| keeps),
            },
            cookie: Some(text),
            renews: Some(before),
            from: goes_over.then_some((before, is_sure)),
            early,
            late,
        };
        let session = self.bear(id, birth)?;
        let new = self.replace(value, id, text, session)?;
        // It was the newest ID of a live session: no other one has replaced it, nor the others.
        let now = self.now;
        for ender in self.sessions[before].enders.iter_mut().filter(|ender| ender.renews && ender.ask != id) {
            (ender.fate, ender.done) = (Fate::Not, Some(now));
        }
        self.settle_cut(value, id, Fate::Not);
        Ok(new)
    }

    fn begin(
        &mut self,
        id: usize,
        text: &str,
        from: Option<(usize, bool)>,
        (early, late): (Option<bool>, Option<bool>),
    ) -> Checked<usize> {
        let key = self.asked[id].ask.login().map(str::to_owned);
        let birth = Birth {
            key,
            handle: handle_in(text),
            login: Some(id),
            or_login: None,
            cookie: Some(text),
            renews: None,
            from,
            early,
            late,
        };
        let session = self.bear(id, birth)?;
        Ok(self.hand_out(text, session))
    }

    fn bear_visitor(&mut self, id: usize, text: &str, (early, late): (Option<bool>, Option<bool>)) -> Checked<usize> {
        let (key, login, or_login, renews, from) = (None, None, None, None, None);
        let birth =
            Birth { key, handle: handle_in(text), login, or_login, cookie: Some(text), renews, from, early, late };
        let session = self.bear(id, birth)?;
        Ok(self.hand_out(text, session))
    }

    /// It surely does not open its record, which is surely there.
    fn is_closed(&self, id: usize, value: usize) -> bool {
        !self.may_open(id, value) && self.is_record_alone(id, self.values[value].session)
    }

    /// What there was after a save that said yes.
    fn check_after(&mut self, id: usize, session: usize, said: &Said) -> Checked {
        let (Some(after), again) = (&said.after, said.again) else { return Ok(()) };
        let writes = self.asked[id].ask.writes.clone();
        if after.handle.is_none() && self.sessions[session].born_by == id && !Ask::is_kept(&writes) {
            // The session began with what was written later.
            return Ok(());
        }
        if after.handle.is_none() && self.asked[id].ask.blind && !Ask::is_kept(&writes) {
            let must = self.asked[id].cookies.all().any(|value| self.must_lead(id, value, self.ms));
            return ensure(!must, || "a session that nobody has ended was not found".to_owned());
        }
        if after.handle.is_none() && again && !self.is_alone(id, session) {
            // The first try was in time, and the session has ended or has a new ID since.
            return Ok(());
        }
        self.observe(id, session, after, true)?;
        if again {
            // It may be what there was at the first try, before what was written to the visitor's session was taken over.
            for counter in &mut self.sessions[session].counters {
                counter.sights.pop();
            }
        }
        for counter in 0..COUNTERS {
            // Since the first try others may have made it larger.
            let is_own = !again && writes.iter().filter(|write| **write == Write::Add(counter)).count() == 1;
            if is_own {
                let is_new = self.made.insert((session, counter, count_in(after, counter)));
                ensure(is_new, || format!("two increments of n{counter} made the same number"))?;
            }
        }
        Ok(())
    }

    fn check_revoked(&mut self, id: usize, handle: &str, revoked: Option<bool>, found: Option<Found>) -> Checked {
        let key = match found {
            Some(Found::User(value)) => self.sessions[self.values[value].session].key.clone(),
            _ => None,
        };
        let sent = self.asked[id].sent.at;
        let target =
            self.handles.get(handle).copied().filter(|target| key.is_some() && self.sessions[*target].key == key);
        match (revoked, target) {
            (Some(true), Some(target)) => {
                self.count("revoked");
                ensure(!self.sessions[target].is_over(sent), || "what had ended was revoked".to_owned())?;
                self.settle_endings(id, Fate::Sure);
                Ok(())
            }
            (Some(true), None) => Err("a session was revoked that is not the user's".to_owned()),
            (Some(false), Some(target)) => {
                let known = &self.sessions[target];
                let must = !known.orphan && known.born < sent && self.is_record_alone(id, target);
                self.settle_endings(id, Fate::Not);
                ensure(!must, || "a live session was not revoked".to_owned())
            }
            _ => {
                self.settle_endings(id, Fate::Not);
                Ok(())
            }
        }
    }

    fn check_list(&mut self, id: usize, user: &str, list: &[Seen]) -> Checked {
        self.count("lists");
        let sent = self.asked[id].sent.at;
        let mut listed = HashSet::new();
        // Their names are random, and must not decide which session gets which number.
        let mut list: Vec<&Seen> = list.iter().collect();
        list.sort_by_key(|seen| seen.data.get("login").and_then(Json::as_u64));
        for seen in list {
            let handle = seen.handle.clone().unwrap_or_default();
            let by = seen.data.get("login").and_then(Json::as_u64).map(|login| login as usize);
            // A record that has a new ID meanwhile may be listed as it was before.
            let of_handle = |s: &usize| self.sessions[*s].handle.as_ref() == Some(&handle);
            let mut may_be: Vec<usize> = (0..self.sessions.len()).filter(of_handle).collect();
            may_be.retain(|session| self.sessions[*session].is_login(by.map(|by| by as u64)));
            if may_be.is_empty() && self.may_be_discarded(id, user, by) {
                continue;
            }
            if let [.., last] = may_be[..] {
                may_be.retain(|session| *session == last || !self.sessions[*session].is_over(sent));
            } else {
                may_be.push(self.adopt(id, user, &handle, seen)?);
            }
            ensure(listed.insert(handle), || "a session was listed twice".to_owned())?;
            let mut looks = Err("a session was listed that nobody made".to_owned());
            for session in may_be.into_iter().rev() {
                let known = &self.sessions[session];
                ensure(known.key.as_deref() == Some(user), || format!("{user:?} saw session {session} in the list"))?;
                // As long as a login is under way, what is written to the session before goes over to its own.
                let is_settled = !known.orphan && known.settled < sent;
                looks = match known.is_over(sent) {
                    true => Err(format!("session {session} had ended, and was listed")),
                    false if is_settled => self.observe(id, session, seen, false),
                    false => Ok(()),
                };
                if looks.is_ok() {
                    self.is_not_limited(session, sent);
                    break;
                }
            }
            looks?;
        }
        if let Limit::LeastRecent(most) | Limit::Refuse(most) = self.limit {
            let is_limited = |handle: &&String| self.handles.get(*handle).is_some_and(|at| self.sessions[*at].limited);
            let limited = listed.iter().filter(is_limited).count();
            ensure(limited <= most, || format!("{limited} sessions of a user who may have {most}"))?;
        }
        for session in 0..self.sessions.len() {
            let known = &self.sessions[session];
            let must = known.key.as_deref() == Some(user) && known.born < sent && !known.orphan;
            if must && self.is_alone(id, session) {
                let is_listed = known.handle.as_ref().is_some_and(|handle| listed.contains(handle));
                ensure(is_listed, || format!("session {session} is not in the list"))?;
            }
        }
        Ok(())
    }

    /// A login whose data was discarded, because its handler has failed: what it made ends with all others. Until then it has
    /// what there was in the session that it came with, and that names the login before.
    fn may_be_discarded(&self, id: usize, user: &str, by: Option<usize>) -> bool {
        let sent = self.asked[id].sent.at;
        let overlaps = |asked: &Asked| asked.answered.is_none_or(|answered| answered.at > sent);
        let came_with = |asked: &Asked, number| {
            let mut sessions = asked.cookies.all().map(|value| &self.sessions[self.values[value].session]);
            sessions.any(|known| known.is_login(Some(number)))
        };
        let may = |asked: &Asked| {
            let is_users = asked.ask.logs_in_and_clears() && asked.ask.login() == Some(user);
            is_users && by.is_none_or(|by| came_with(asked, by as u64))
        };
        self.asked.iter().enumerate().any(|(at, asked)| may(asked) && (overlaps(asked) || self.is_open(at)))
    }

    /// A session that nobody has told of: made by a login whose answer was lost, or is still to come.
    fn adopt(&mut self, id: usize, user: &str, handle: &str, seen: &Seen) -> Checked<usize> {
        let login = seen.data.get("login").and_then(Json::as_u64).ok_or("a session was listed that nobody made")?;
        let login = usize::try_from(login).map_err(|_| "a session was listed that nobody made")?;
        let by = self.asked.get(login).ok_or("a session was listed that nobody made")?;
        ensure(by.ask.login() == Some(user), || format!("{user:?} saw the login of another in the list"))?;
        // One whose name is not in its cookie.
        if let Some(at) = self.sessions.iter().position(|known| known.login == Some(login) && known.handle.is_none()) {
            self.name(at, handle)?;
            return Ok(at);
        }
        ensure(!self.sessions.iter().any(|known| known.login == Some(login)), || {
            format!("#{login} made two sessions")
        })?;
        let sent = self.asked[id].sent.at;
        ensure(by.answered.is_none_or(|answered| answered.at > sent) || self.is_open(login), || {
            format!("#{login} was refused, and its session was listed")
        })?;
        let (cookies, goes_over) = (by.cookies.clone(), matches!(by.ask.what, What::Bind(_) | What::OthersAndBind(_)));
        let session = |value: &usize| self.values[*value].session;
        let is_it = |session: &usize| self.sessions[*session].handle.as_deref() == Some(handle);
        let in_place = cookies.users.iter().map(session).find(is_it);
        let mut before = cookies.all().map(|value| self.values[value].session);
        let from = before.find(|from| self.sessions[*from].key.as_deref().is_none_or(|key| key == user));
        self.count("orphans");
        let birth = Birth {
            key: Some(user.to_owned()),
            handle: Some(handle.to_owned()),
            login: Some(login),
            or_login: None,
            cookie: None,
            renews: in_place,
            from: from.filter(|_| goes_over).map(|from| (in_place.unwrap_or(from), false)),
            early: Some(false),
            late: Some(false),
        };
        self.bear(login, birth)
    }

    /// Whether what a login did is not known: its answer was a 503, or a 401 after what it had begun was not undone. A second try
    /// says nothing of the first.
    fn is_open(&self, login: usize) -> bool {
        let is_open =
            |line: &Line| line.text.starts_with("<- 503") || (!self.steady && line.text.starts_with("<- 401"));
        let is_full = |line: &Line| self.asked[login].ask.again && line.text.starts_with("<- 409");
        self.log.iter().any(|line| line.ask == login && (is_open(line) || is_full(line)))
    }

    /// The handle of a session that was not known by it.
    fn name(&mut self, session: usize, handle: &str) -> Checked {
        if let Some(next) = self.handles.get(handle).copied() {
            // A login in place was listed before anybody knew the name of the session that it came with.
            let (before, known) = (&self.sessions[session], &self.sessions[next]);
            let came_with =
                self.asked[known.born_by].cookies.users.iter().any(|it| self.values[*it].session == session);
            let is_next = came_with && known.orphan && before.next.is_none() && before.key == known.key;
            ensure(is_next, || "two sessions with one handle".to_owned())?;
            let ends_both = |ender: &&Effect| !ender.renews && ender.ask != known.born_by;
            let enders: Vec<Effect> = before.enders.iter().filter(ends_both).copied().collect();
            let born = before.born;
            self.sessions[session].next = Some(next);
            self.sessions[next].born = born;
            self.sessions[next].enders.extend(enders);
        }
        let lineage = self.lineage(session);
        let first = (0..self.sessions.len()).filter(|at| self.lineage(*at).contains(&session)).collect::<Vec<_>>();
        for at in first.into_iter().chain(lineage) {
            self.sessions[at].handle = Some(handle.to_owned());
            self.handles.insert(handle.to_owned(), at);
        }
        Ok(())
    }

    /// What was seen of a session, at some moment since the request was sent. `own` is whether what the request has written
    /// itself is to be in it.
    fn observe(&mut self, id: usize, session: usize, seen: &Seen, own: bool) -> Checked {
        let (sent, now) = (self.asked[id].sent.at, self.now);
        self.looked_at = Some(session);
        let known = &self.sessions[session];
        ensure(seen.key == known.key, || {
            format!("session {session} is that of {:?}, and {:?} was seen", known.key, seen.key)
        })?;
        let handle = seen.handle.clone().ok_or("a session without a handle")?;
        match &known.handle {
            Some(known) => ensure(*known == handle, || format!("another session than {session} was seen"))?,
            None => self.name(session, &handle)?,
        }
        let known = &self.sessions[session];
        for (name, value) in &seen.data {
            let number = value.as_u64();
            let put = name.strip_prefix('w').and_then(|name| name.parse().ok());
            match (name.as_str(), put) {
                ("n0" | "n1", _) => {}
                ("login", _) => ensure(known.key.is_some() && known.is_login(number), || {
                    format!("session {session} was seen to be the login of #{value}")
                })?,
                ("theme", _) => {}
                (_, Some(put)) => {
                    let put: usize = put;
                    let may = known.puts.get(&put).is_some_and(|there| {
                        let may = there.put.fate != Fate::Not && (own || there.put.ask != id);
                        let taken = |take: &Effect| take.is_before(sent) || (own && take.ask == id && !take.late);
                        may && !there.takes.iter().any(taken)
                    });
                    ensure(may && number == Some(put as u64), || {
                        format!("w{put} = {value} was seen in session {session}")
                    })?;
                }
                _ => return Err(format!("{name} = {value} was seen in session {session}")),
            }
        }
        for (name, put) in &known.puts {
            let there = put.put.is_before(sent) || (own && put.put.ask == id && !put.put.late);
            let must = there && put.takes.iter().all(|take| take.fate == Fate::Not || (take.ask == id && !own));
            ensure(!must || seen.data.contains_key(&format!("w{name}")), || format!("w{name} is lost"))?;
        }
        let theme = seen.data.get("theme").and_then(Json::as_u64);
        let last = known.themes.iter().filter(|theme| theme.is_before(sent));
        match theme {
            None => ensure(last.count() == 0, || "the theme is lost".to_owned())?,
            Some(theme) => {
                let theme = known.themes.iter().find(|effect| effect.ask as u64 == theme);
                let theme = theme.filter(|theme| theme.fate != Fate::Not && (own || theme.ask != id));
                let theme = theme
                    .ok_or_else(|| format!("a theme of session {session} that nobody has set: {}", shown(seen)))?;
                let over = known.themes.iter().any(|later| {
                    later.is_before(sent)
                        && theme.fate == Fate::Sure
                        && theme.done.is_some_and(|done| done < later.sent)
                });
                ensure(!over, || "a theme came back".to_owned())?;
            }
        }
        let counts = |at: usize, counter: &Counter| {
            let n = count_in(seen, at);
            let mine = counter.adds.iter().filter(|add| own && add.ask == id && !add.late).count() as u64;
            (n, counter.least(sent) + mine, counter.most(now, id) + mine)
        };
        for (at, counter) in known.counters.iter().enumerate() {
            let (n, least, most) = counts(at, counter);
            ensure(n >= least, || format!("n{at} is {n}, and was to be {least} at least: an increment is lost"))?;
            ensure(n <= most, || format!("n{at} is {n}, and was to be {most} at most: an increment counted twice"))?;
        }
        let known = &mut self.sessions[session];
        if let (Some(_), Some(login)) = (known.or_login, seen.data.get("login").and_then(Json::as_u64)) {
            (known.login, known.or_login) = (usize::try_from(login).ok(), None);
        }
        for (at, counter) in known.counters.iter_mut().enumerate() {
            counter.sights.push(Sight { sent, done: now, n: count_in(seen, at) });
            if counter.sights.len() > SIGHTS {
                counter.sights.remove(0);
            }
        }
        Ok(())
    }

    fn is_same_session(&self, value: usize, text: &str) -> bool {
        let handle = handle_in(text);
        handle.is_none() || handle == self.sessions[self.values[value].session].handle
    }
}

/// What became of what a request has recorded.
#[derive(Clone, Copy)]
struct Done {
    /// What it wrote before the save, and after it, counts.
    early: bool,
    late: bool,
    is_dropped: bool,
    /// `save` has said so.
    saved: bool,
    /// At its second try. Of the first one it is not known whether it did the same.
    again: bool,
}

/// What a response says about the cookies.
#[derive(Debug, Default, PartialEq)]
struct Got {
    user: Change,
    visitor: Change,
}

#[derive(Debug, Default, PartialEq)]
enum Change {
    #[default]
    Nothing,
    Set(String),
    Remove,
}

impl Change {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Set(text) => Some(text),
            _ => None,
        }
    }
}

impl Got {
    fn removals(&self) -> Jar {
        let slot = |change: &Change| if *change == Change::Remove { Slot::Remove } else { Slot::Keep };
        Jar { user: slot(&self.user), visitor: slot(&self.visitor) }
    }
}

impl Known {
    /// Whether that may be the login that its data names.
    fn is_login(&self, number: Option<u64>) -> bool {
        let is = |login: Option<usize>| login.map(|login| login as u64) == number;
        is(self.login) || self.or_login.is_some() && is(self.or_login)
    }

    fn is_over(&self, at: u64) -> bool {
        self.enders.iter().any(|ender| ender.is_before(at))
    }
}

impl Effect {
    fn is_before(&self, moment: u64) -> bool {
        self.fate == Fate::Sure && self.done.is_some_and(|done| done < moment)
    }
}

impl Counter {
    /// What it was at least, at that moment.
    fn least(&self, moment: u64) -> u64 {
        let since = |after: u64| {
            let adds = self.adds.iter().filter(|add| add.is_before(moment) && add.sent > after);
            adds.count() as u64
        };
        let seen = self.sights.iter().filter(|sight| sight.done < moment).map(|sight| sight.n + since(sight.done));
        seen.max().unwrap_or(0).max(self.low + since(0))
    }

    /// What it is at most, without what that request adds itself.
    fn most(&self, moment: u64, id: usize) -> u64 {
        let since = |before: u64| {
            let may = |add: &&Effect| add.ask != id && add.fate != Fate::Not && add.sent < moment;
            self.adds.iter().filter(may).filter(|add| !add.is_before(before)).count() as u64
        };
        let seen = self.sights.iter().map(|sight| sight.n + since(sight.sent));
        seen.min().unwrap_or(u64::MAX).min(self.high.saturating_add(since(0)))
    }
}

fn ensure(is_right: bool, wrong: impl FnOnce() -> String) -> Checked {
    if is_right { Ok(()) } else { Err(wrong()) }
}

fn count_in(seen: &Seen, counter: usize) -> u64 {
    seen.data.get(&format!("n{counter}")).and_then(Json::as_u64).unwrap_or(0)
}

/// The name of the session in its cookie; none in one that is sealed.
fn handle_in(text: &str) -> Option<String> {
    text.rsplit('.').nth(1).map(str::to_owned)
}

fn shown(seen: &Seen) -> String {
    match &seen.handle {
        None => "nobody".to_owned(),
        Some(_) => {
            format!("{:?} {}", seen.key.as_deref().unwrap_or_default(), serde_json::to_string(&seen.data).unwrap())
        }
    }
}

fn told(ask: &Ask) -> String {
    let mut text = format!("{:?}", ask.what);
    if ask.blind {
        text += ", without loading";
    }
    match &ask.kept {
        Some(kept) => text += &format!(", with the login of #{}", kept.by),
        None if ask.takes_login => text += ", with a login",
        None => {}
    }
    if !ask.writes.is_empty() {
        text += &format!(", writes {:?}", ask.writes);
    }
    if ask.save {
        text += ", saves";
    }
    if ask.again {
        text += ", again if need be";
    }
    if !ask.late.is_empty() {
        text += &format!(", writes {:?}", ask.late);
    }
    if let Some(moment) = ask.wait {
        text += &format!(", waits when {moment:?}");
    }
    match ask.end {
        End::Well => {}
        End::Fail => text += ", fails",
        End::Panic => text += ", panics",
    }
    text
}

/// The names of the cookies.
const USERS: &str = "__Host-id";
const VISITORS: &str = "__Host-id-visitor";
/// So many IDs are tried.
const MOST_COOKIES: usize = 3;
/// So many IDs from before reworks are in their grace at most, and so many in all are kept that a login has replaced.
const MOST_PREVIOUS: usize = 4;
const MOST_SUPERSEDED: usize = 11;
/// In milliseconds: how long an ID still signs out that a login has replaced; and a little less than how long a login may take.
const SUPERSEDED_FOR: u64 = 10_000;
const LOGINS_ARE_GOOD_FOR: u64 = 14 * 60_000;
/// What a login under a limit has done to another session, as in [`Fate`].
const LIMITED: [&str; 3] = ["perhaps ended by a limit", "ended by a limit", "spared by a limit"];
const NOT_ALL_TRIED: &str = "a sign-out was answered as done, and not all of its cookies were tried";
const SIGHTS: usize = 24;
const LINES: usize = 60;
