//! What is known of every session, from what was asked and answered alone; and what therefore may not be answered.
//!
//! Each request has a moment at which it was sent and one at which it was answered. Of two requests the one is *before* the
//! other if it was answered before the other was sent; else they overlap, and both orders are possible. What a request does
//! is *sure* from its answer on, *not* done if the answer says so, and *maybe* done, at any moment after it was sent, if its
//! answer was lost or is a 503. A response is wrong if it fits none of the possible orders.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value as Json;

use super::ask::{Ask, COUNTERS, End, Reply, Seen, What, Write};

pub struct Oracle {
    /// How long an ID from before a rework still leads to its session, and a tombstone lives; in milliseconds.
    grace: u64,
    /// Nothing is made to fail: there is no reason for a 503.
    steady: bool,
    now: u64,
    /// By the clock of the application.
    ms: u64,
    pub sessions: Vec<Known>,
    handles: HashMap<String, usize>,
    pub values: Vec<Value>,
    texts: HashMap<String, usize>,
    asked: Vec<Asked>,
    clears: Vec<(String, Effect)>,
    /// What increments made of counters.
    made: HashSet<(usize, usize, u64)>,
    log: Vec<Line>,
    pub wrong: Option<String>,
    /// The session that was looked at last.
    looked_at: Option<usize>,
    /// How often what happened, to tell whether the walk went anywhere.
    pub tally: BTreeMap<&'static str, u64>,
}

/// A session.
pub struct Known {
    pub key: Option<String>,
    pub handle: Option<String>,
    /// When it was there for sure, at first.
    born: u64,
    /// When its ID was handed out.
    settled: u64,
    born_by: usize,
    /// Its cookie was lost: it is known from lists alone, and the one who made it may still remove it.
    orphan: bool,
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
    /// What may have rotated it away.
    reworks: Vec<Effect>,
    /// By which rework it was, and when that was answered.
    successor: Option<(usize, u64)>,
}

#[derive(Clone, Debug)]
pub enum Cookie {
    None,
    One(usize),
    /// Two of our name.
    Two(usize, usize),
    /// Nothing that was ever given to anybody. If it is not even shaped like an ID, the store is not asked.
    Forged {
        text: String,
        malformed: bool,
    },
}

/// What the browser is told.
#[derive(Debug, PartialEq)]
pub enum Jar {
    Keep,
    Set(usize),
    Remove,
}

struct Asked {
    ask: Ask,
    cookie: Cookie,
    cross_site: bool,
    sent: u64,
    sent_ms: u64,
    browser: usize,
    answered: Option<u64>,
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

type Checked<T = ()> = Result<T, String>;

impl Oracle {
    pub fn new(grace: u64, steady: bool) -> Self {
        Self {
            grace,
            steady,
            now: 0,
            ms: 0,
            sessions: vec![],
            handles: HashMap::new(),
            values: vec![],
            texts: HashMap::new(),
            asked: vec![],
            clears: vec![],
            made: HashSet::new(),
            log: vec![],
            wrong: None,
            looked_at: None,
            tally: BTreeMap::new(),
        }
    }

    /// The number of the next request.
    pub fn next_id(&self) -> usize {
        self.asked.len()
    }

    pub fn session_of(&self, cookie: &Cookie) -> Option<usize> {
        match cookie {
            Cookie::One(value) => Some(self.values[*value].session),
            _ => None,
        }
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
    pub fn send(&mut self, ask: &Ask, cookie: Cookie, cross_site: bool, browser: usize, ms: u64) {
        assert_eq!(ask.id, self.asked.len());
        self.now += 1;
        let effect = Effect { ask: ask.id, late: false, sent: self.now, sent_ms: ms, done: None, fate: Fate::Maybe };
        if let Cookie::One(value) = cookie {
            let session = self.values[value].session;
            if ask.is_plain() {
                self.note_writes(session, &ask.writes, effect);
                self.note_writes(session, &ask.late, Effect { late: true, ..effect });
            }
            let known = &mut self.sessions[session];
            match (&ask.what, known.key.clone()) {
                (What::Rework, _) => {
                    known.rotations.push(effect);
                    self.values[value].reworks.push(effect);
                }
                (What::Bind(_) | What::Create(_) | What::Delete, _) | (What::Clear | What::ClearAndBind(_), None) => {
                    known.enders.push(effect)
                }
                (What::Clear | What::ClearAndBind(_), Some(key)) => self.note_clear(&key, effect),
                (What::ClearOthers, Some(key)) => {
                    self.note_clear(&key, effect);
                    self.sessions[session].enders.retain(|ender| ender.ask != effect.ask);
                }
                (What::Revoke(handle), Some(key)) => {
                    let target = self.handles.get(handle).map(|target| &mut self.sessions[*target]);
                    if let Some(target) = target.filter(|target| target.key == Some(key)) {
                        target.enders.push(effect);
                    }
                }
                _ => {}
            }
        }
        if let What::ClearOf(user) = &ask.what {
            self.note_clear(user, effect);
        }
        let from = self.session_of(&cookie);
        let shown = self.show(&cookie);
        let text = format!("-> {shown}: {}{}", told(ask), if cross_site { ", from another site" } else { "" });
        self.log.push(Line { ms, ask: ask.id, browser, sessions: from.into_iter().collect(), text });
        let (ask, sent) = (ask.clone(), self.now);
        self.asked.push(Asked { ask, cookie, cross_site, sent, sent_ms: ms, browser, answered: None });
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
        let Asked { ask, answered, .. } = &self.asked[id];
        if !self.steady || answered.is_some() || !ask.signs_out() || ask.blind {
            return;
        }
        self.now += 1;
        self.count("sign-outs of lost requests");
        self.settle_endings(id, if loaded.is_some() { Fate::Sure } else { Fate::Not });
    }

    pub fn is_answered_well(&self, id: usize) -> bool {
        let mut lines = self.log.iter().rev().filter(|line| line.ask == id);
        lines.any(|line| line.text.starts_with("<- 200"))
    }

    /// Checks a response, and says what the browser does with it.
    pub fn answered(&mut self, id: usize, reply: &Reply, saved: bool, ms: u64) -> Jar {
        self.now += 1;
        self.ms = ms;
        self.asked[id].answered = Some(self.now);
        let said = reply.said().filter(|said| said.id == id);
        let text = match &said {
            Some(said) => {
                let mut text = format!("<- {}", reply.status);
                if let Some(seen) = &said.seen {
                    text += &format!(" saw {}", shown(seen));
                }
                if let Some(saved) = &said.saved {
                    text += &format!(", saved: {saved}");
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
        let sessions = self.session_of(&self.asked[id].cookie).into_iter().collect();
        self.line(id, ms, sessions, text);
        self.looked_at = None;
        match self.check(id, reply, said, saved, ms) {
            Ok(jar) => {
                let text = match jar {
                    Jar::Keep => return jar,
                    Jar::Set(value) => format!("<- the cookie is {}", self.show(&Cookie::One(value))),
                    Jar::Remove => "<- the cookie is removed".to_owned(),
                };
                let sessions = match jar {
                    Jar::Set(value) => vec![self.values[value].session],
                    _ => vec![],
                };
                self.line(id, ms, sessions, text);
                jar
            }
            Err(wrong) => {
                self.blame(id, &wrong);
                Jar::Keep
            }
        }
    }

    /// Says what is wrong, and how it came to it.
    pub fn blame(&mut self, id: usize, wrong: &str) {
        if self.wrong.is_some() {
            return;
        }
        let asked = &self.asked[id];
        let mut about: Vec<usize> = match asked.cookie {
            Cookie::One(a) => vec![self.values[a].session],
            Cookie::Two(a, b) => vec![self.values[a].session, self.values[b].session],
            _ => vec![],
        };
        about.extend(self.looked_at);
        // And what it came from.
        for session in about.clone() {
            about.extend(self.session_of(&self.asked[self.sessions[session].born_by].cookie));
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

    fn show(&self, cookie: &Cookie) -> String {
        let one = |value: &usize| match self.sessions[self.values[*value].session].key.as_deref() {
            Some(key) => format!("v{value} of session {}, {key:?}", self.values[*value].session),
            None => format!("v{value} of session {}", self.values[*value].session),
        };
        match cookie {
            Cookie::None => "no cookie".to_owned(),
            Cookie::One(value) => one(value),
            Cookie::Two(a, b) => format!("{} and {}", one(a), one(b)),
            Cookie::Forged { .. } => "a forged cookie".to_owned(),
        }
    }
}

/// What requests do.
impl Oracle {
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

    fn note_clear(&mut self, key: &str, effect: Effect) {
        for known in self.sessions.iter_mut().filter(|known| known.key.as_deref() == Some(key)) {
            known.enders.push(effect);
        }
        self.clears.push((key.to_owned(), effect));
    }

    fn settle_writes(&mut self, session: usize, id: usize, late: bool, fate: Fate) {
        let now = self.now;
        let known = &mut self.sessions[session];
        let adds = known.counters.iter_mut().flat_map(|counter| &mut counter.adds);
        let puts = known.puts.values_mut().flat_map(|put| std::iter::once(&mut put.put).chain(&mut put.takes));
        for effect in adds.chain(puts).chain(&mut known.themes) {
            if effect.ask == id && effect.late == late {
                (effect.fate, effect.done) = (fate, Some(now));
            }
        }
    }

    fn settle_endings(&mut self, id: usize, fate: Fate) {
        let now = self.now;
        let is_clear = self.clears.iter().any(|(_, effect)| effect.ask == id);
        for known in &mut self.sessions {
            let born = known.born;
            for effect in known.enders.iter_mut().filter(|effect| effect.ask == id) {
                // Of a session that began meanwhile it is not known whether it was cleared.
                if fate == Fate::Not || !is_clear || born < effect.sent {
                    (effect.fate, effect.done) = (fate, Some(now));
                }
            }
        }
        for (_, effect) in self.clears.iter_mut().filter(|(_, effect)| effect.ask == id) {
            (effect.fate, effect.done) = (fate, Some(now));
        }
    }

    fn settle_rework(&mut self, value: usize, id: usize, fate: Fate) {
        let now = self.now;
        let session = self.values[value].session;
        let of_value = self.values[value].reworks.iter_mut();
        for effect in of_value.chain(&mut self.sessions[session].rotations).filter(|effect| effect.ask == id) {
            (effect.fate, effect.done) = (fate, Some(now));
        }
    }

    /// A session began: with that cookie, or known from a list alone.
    fn bear(&mut self, id: usize, handle: Option<String>, cookie: Option<&str>, came: Came) -> Checked<usize> {
        let asked = &self.asked[id];
        let (sent, sent_ms, key) = (asked.sent, asked.sent_ms, asked.ask.login().map(str::to_owned));
        let (early, late) = (asked.ask.writes.clone(), asked.ask.late.clone());
        let existing = match handle.as_ref().and_then(|handle| self.handles.get(handle)) {
            Some(session) => Some(*session),
            None => (0..self.sessions.len()).find(|s| self.sessions[*s].orphan && self.sessions[*s].born_by == id),
        };
        let mut session = Known {
            key,
            handle: handle.clone(),
            born: self.now,
            settled: self.now,
            born_by: id,
            orphan: cookie.is_none(),
            enders: vec![],
            rotations: vec![],
            counters: Default::default(),
            puts: BTreeMap::new(),
            themes: vec![],
        };
        let at = match existing {
            None => self.sessions.len(),
            Some(at) => {
                let orphan = &self.sessions[at];
                ensure(orphan.orphan && orphan.born_by == id, || "a new session has the name of another".to_owned())?;
                ensure(orphan.handle == handle || handle.is_none(), || "one login made two sessions".to_owned())?;
                (session.handle, session.born, session.enders) =
                    (orphan.handle.clone(), orphan.born, orphan.enders.clone());
                at
            }
        };
        // Who is being cleared meanwhile may have been cleared with it.
        for (key, effect) in &self.clears {
            let overlaps = effect.done.is_none_or(|done| done > sent) && effect.fate != Fate::Not;
            if existing.is_none() && session.key.as_ref() == Some(key) && effect.ask != id && overlaps {
                session.enders.push(Effect { fate: Fate::Maybe, done: None, ..*effect });
            }
        }
        if let Some((from, is_sure)) = came.from {
            self.inherit(&mut session, from, is_sure, id, sent);
        }
        match existing {
            None => self.sessions.push(session),
            Some(_) => self.sessions[at] = session,
        }
        let fate = |is_sure| if is_sure { Fate::Sure } else { Fate::Maybe };
        let done = Some(self.now);
        let effect = Effect { ask: id, late: false, sent, sent_ms, done, fate: fate(came.early) };
        self.note_writes(at, &early, effect);
        if let Some(is_sure) = came.late {
            self.note_writes(at, &late, Effect { late: true, fate: fate(is_sure), ..effect });
        }
        if let Some(handle) = handle {
            self.handles.insert(handle, at);
        }
        if let Some(text) = cookie {
            self.hand_out(text, at);
        }
        Ok(at)
    }

    /// What goes over at a login. It is all there is if the login was sure to be what ended the session before.
    fn inherit(&self, session: &mut Known, from: usize, is_sure: bool, id: usize, sent: u64) {
        let from = &self.sessions[from];
        let others = from.enders.iter().any(|ender| ender.ask != id && ender.fate != Fate::Not);
        let is_sure = is_sure && !others;
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

    fn hand_out(&mut self, text: &str, session: usize) -> usize {
        let value = self.values.len();
        self.texts.insert(text.to_owned(), value);
        self.values.push(Value { text: text.to_owned(), session, reworks: vec![], successor: None });
        value
    }
}

/// How a session came to be.
struct Came {
    /// From which one, and whether all that was in that one for sure is in this one.
    from: Option<(usize, bool)>,
    /// Whether what was written with it, and after the save, is in it.
    early: bool,
    late: Option<bool>,
}

/// What may be answered.
impl Oracle {
    fn check(
        &mut self,
        id: usize,
        reply: &Reply,
        said: Option<super::ask::Said>,
        witnessed: bool,
        ms: u64,
    ) -> Checked<Jar> {
        let cookie = self.check_headers(id, reply)?;
        let asked = &self.asked[id];
        let (ask, presented, cross_site) = (asked.ask.clone(), asked.cookie.clone(), asked.cross_site);
        let from = self.session_of(&presented);
        let value = match presented {
            Cookie::One(value) => Some(value),
            _ => None,
        };
        let said = match (reply.status, said) {
            (200, Some(said)) if ask.end == End::Well => said,
            (500, Some(said)) if ask.end == End::Fail => said,
            (503, None) => {
                self.count("503");
                return self.check_unavailable(id, reply, &cookie, witnessed, ms);
            }
            (401, None) if ask.what == What::ClearOthers => {
                self.count("refused sign-outs");
                ensure(cookie == Got::Nothing, || "a refused sign-out set a cookie".to_owned())?;
                let enders = from.iter().flat_map(|session| &self.sessions[*session].enders);
                let has_ended = enders.into_iter().any(|ender| ender.ask != id && ender.fate != Fate::Not);
                ensure(has_ended, || "a sign-out was refused, and nothing had ended its session".to_owned())?;
                self.settle_endings(id, Fate::Not);
                return Ok(Jar::Keep);
            }
            (507, None) if ask.what == What::Huge => {
                self.count("too large");
                ensure(cookie == Got::Nothing, || "a refused write set a cookie".to_owned())?;
                for late in [false, true] {
                    from.inspect(|session| self.settle_writes(*session, id, late, Fate::Not));
                }
                return Ok(Jar::Keep);
            }
            _ => return Err(format!("nothing explains a {}", reply.status)),
        };
        let failed = reply.status == 500;
        self.count(if failed { "500" } else { "200" });
        match &ask.what {
            What::Unused => {
                return ensure(cookie == Got::Nothing, || "who did not look set a cookie".to_owned())
                    .map(|()| Jar::Keep);
            }
            What::ClearOf(_) => {
                self.settle_endings(id, Fate::Sure);
                return Ok(Jar::Keep);
            }
            What::ListOf(user) => {
                self.check_list(id, user, said.list.as_deref().unwrap_or_default())?;
                return Ok(Jar::Keep);
            }
            _ => {}
        }

        // Whom it found. Of a blind one that is not known.
        let found = match &said.seen {
            None => None,
            Some(seen) => Some(self.check_seen(id, seen, ms)?),
        };
        let is_nobody = found == Some(None) || from.is_none();
        let found = found.flatten();

        let saved = said.saved.as_deref();
        ensure(saved != Some("gone") || self.may_be_gone(id, from), || {
            "`save` said that the session is gone, and nobody has ended it".to_owned()
        })?;
        ensure(saved != Some("cross-site") || (cross_site && found.is_none()), || {
            "`save` said that another site must not begin a session, and there is one, or it is this site".to_owned()
        })?;
        let is_dropped = matches!(saved, Some("gone" | "cross-site"));
        let early = match saved {
            Some("ok") => true,
            Some(_) => false,
            None => !failed,
        };
        let late = !failed && !is_dropped;
        let fate = |is_sure| if is_sure { Fate::Sure } else { Fate::Not };
        let kept = ask.what != What::Huge
            && ((early && Ask::is_kept(&ask.writes)) || (late && ask.save && Ask::is_kept(&ask.late)));
        let came = |from: Option<(usize, bool)>| Came { from, early, late: late.then_some(true).filter(|_| ask.save) };

        // What was written to the session that it came with.
        if let Some(session) = from.filter(|_| ask.is_plain()) {
            let elsewhere = is_nobody || (ask.blind && matches!(cookie, Got::Set(_)));
            let here = |is_sure| if elsewhere || ask.what == What::Huge { Fate::Not } else { fate(is_sure) };
            // A blind one may have come with an ID that led nowhere, and have left no trace.
            let is_told = !ask.blind || matches!(cookie, Got::Set(_)) || (kept && !cross_site);
            if is_told || value.is_some_and(|value| self.must_lead(id, value, ms)) {
                self.settle_writes(session, id, false, here(early));
                self.settle_writes(session, id, true, here(late));
            }
        }
        // What was ended.
        let signs_out = ask.signs_out();
        match &ask.what {
            What::Revoke(handle) => self.check_revoked(id, handle, said.revoked, found)?,
            _ if is_nobody => self.settle_endings(id, Fate::Not),
            _ if !(signs_out || early || is_dropped) => self.settle_endings(id, Fate::Not),
            // A blind one may have come with an ID that led nowhere any more.
            _ if found.is_some() || value.is_some_and(|value| self.must_lead(id, value, ms)) => {
                self.settle_endings(id, Fate::Sure)
            }
            _ => {}
        }

        let jar = match &ask.what {
            What::Bind(user) | What::Create(user) | What::ClearAndBind(user) => {
                let is_cleared = self.clears.iter().any(|(key, clear)| {
                    key == user
                        && clear.ask != id
                        && clear.fate != Fate::Not
                        && clear.done.is_none_or(|done| done > self.asked[id].sent)
                });
                // Or its session was found in the list, and revoked.
                let orphan = self.sessions.iter().find(|known| known.orphan && known.born_by == id);
                let is_cleared =
                    is_cleared || orphan.is_some_and(|known| known.enders.iter().any(|e| e.fate != Fate::Not));
                match (&cookie, early) {
                    (Got::Set(text), true) => {
                        self.count("logins");
                        let goes_over = found.filter(|found| {
                            let key = &self.sessions[*found].key;
                            matches!(ask.what, What::Bind(_)) && key.as_ref().is_none_or(|key| key == user)
                        });
                        let handle = handle_in(text);
                        let born = self.bear(id, handle, Some(text), came(goes_over.map(|from| (from, true))))?;
                        self.check_after(id, born, said.after.as_ref())?;
                        Jar::Set(self.texts[text])
                    }
                    (Got::Nothing, _) if is_cleared => Jar::Keep,
                    (Got::Remove, _) if is_cleared && ask.what != What::Bind(user.clone()) => Jar::Remove,
                    (Got::Nothing, false) => Jar::Keep,
                    (Got::Remove, false) if found.is_some() && signs_out => Jar::Remove,
                    (Got::Nothing, true) => return Err("a login set no cookie".to_owned()),
                    (got, _) => return Err(format!("a login answered with {got:?}")),
                }
            }
            What::Delete | What::Clear => match &cookie {
                Got::Remove => {
                    self.count("logouts");
                    ensure(ask.blind && from.is_some() || found.is_some(), || {
                        "a cookie was removed by a sign-out that found nobody".to_owned()
                    })?;
                    Jar::Remove
                }
                Got::Set(text) => {
                    ensure(kept, || "a sign-out set a cookie".to_owned())?;
                    let had_one = found.is_some() || (ask.blind && from.is_some());
                    ensure(had_one || !cross_site, || "a request from another site made a session".to_owned())?;
                    self.check_tombstone(id, value, ms)?;
                    let born = self.bear(id, handle_in(text), Some(text), came(None))?;
                    self.check_after(id, born, said.after.as_ref())?;
                    Jar::Set(self.texts[text])
                }
                Got::Nothing => {
                    let alone = found.is_some_and(|found| self.is_alone(id, found));
                    ensure(!alone, || "a sign-out left the cookie".to_owned())?;
                    ensure(!kept || !matches!(presented, Cookie::None) || cross_site, || {
                        "the first write set no cookie".to_owned()
                    })?;
                    Jar::Keep
                }
            },
            What::Rework if !is_nobody && early => match (&cookie, value) {
                (Got::Set(text), Some(value)) => {
                    self.count("rotations");
                    let session = self.values[value].session;
                    ensure(self.values[value].successor.is_none(), || "an ID was rotated twice".to_owned())?;
                    ensure(self.is_same_session(value, text), || "a rework changed the handle".to_owned())?;
                    let others: Vec<usize> = self.values[value].reworks.iter().map(|effect| effect.ask).collect();
                    for other in others.into_iter().filter(|other| *other != id) {
                        self.settle_rework(value, other, Fate::Not);
                    }
                    self.settle_rework(value, id, Fate::Sure);
                    self.values[value].successor = Some((id, ms));
                    self.check_after(id, session, said.after.as_ref())?;
                    Jar::Set(self.hand_out(text, session))
                }
                (Got::Nothing, Some(value)) => {
                    let session = self.values[value].session;
                    let others = self.values[value].reworks.iter().any(|e| e.ask != id && e.fate != Fate::Not);
                    let must = found.is_some() && !others && self.is_alone(id, session);
                    let must = must && self.values[value].successor.is_none();
                    ensure(!must, || "a rework gave no new ID".to_owned())?;
                    self.settle_rework(value, id, Fate::Not);
                    self.check_after(id, session, said.after.as_ref())?;
                    Jar::Keep
                }
                (got, _) => return Err(format!("a rework answered with {got:?}")),
            },
            _ => {
                if let Some(value) = value.filter(|_| ask.what == What::Rework) {
                    self.settle_rework(value, id, Fate::Not);
                }
                match &cookie {
                    Got::Remove => return Err("a cookie was removed, and nobody signed out".to_owned()),
                    Got::Nothing => {
                        let must = kept && matches!(presented, Cookie::None) && !cross_site;
                        ensure(!must, || "the first write set no cookie".to_owned())?;
                        if let Some(session) = from.filter(|_| !is_nobody) {
                            self.check_after(id, session, said.after.as_ref())?;
                        }
                        Jar::Keep
                    }
                    Got::Set(text) => {
                        ensure(found.is_none(), || "a cookie was set for a session that had one".to_owned())?;
                        ensure(!cross_site, || "a request from another site made a session".to_owned())?;
                        let leads = ask.blind && value.is_some_and(|value| self.must_lead(id, value, ms));
                        ensure(!leads, || "a second session was made".to_owned())?;
                        self.be_first(id, value, text, kept, came(None), &said, ms)?
                    }
                }
            }
        };
        if let (Some(found), Some(list)) = (found, &said.list) {
            let user = self.sessions[found].key.clone().unwrap_or_default();
            self.check_list(id, &user, list)?;
        }
        Ok(jar)
    }

    /// The first write of a visitor.
    #[expect(clippy::too_many_arguments, reason = "all of it is the response at hand")]
    fn be_first(
        &mut self,
        id: usize,
        value: Option<usize>,
        text: &str,
        kept: bool,
        came: Came,
        said: &super::ask::Said,
        ms: u64,
    ) -> Checked<Jar> {
        self.count("first writes");
        ensure(kept, || "a cookie was set, and nothing was written".to_owned())?;
        self.check_tombstone(id, value, ms)?;
        let born = self.bear(id, handle_in(text), Some(text), came)?;
        self.check_after(id, born, said.after.as_ref())?;
        Ok(Jar::Set(self.texts[text]))
    }

    /// What every response must be like.
    fn check_headers(&mut self, id: usize, reply: &Reply) -> Checked<Got> {
        let cookies: Vec<&str> = reply.all("set-cookie").collect();
        let got = match cookies[..] {
            [] => Got::Nothing,
            [cookie] => {
                for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/"] {
                    let has = cookie.split("; ").any(|part| part == attribute);
                    ensure(has, || format!("a cookie without {attribute}"))?;
                }
                let no_store = reply.all("cache-control").any(|value| value.contains("no-store"));
                ensure(no_store, || "a response with a cookie may be stored".to_owned())?;
                let text = cookie.split("; ").next().and_then(|pair| pair.strip_prefix("__Host-id="));
                let text = text.ok_or("a cookie of another name")?;
                match cookie.split("; ").any(|part| part == "Max-Age=0") {
                    true => Got::Remove,
                    false => {
                        ensure(cookie.len() <= 4096, || "a cookie is too long".to_owned())?;
                        ensure(!self.texts.contains_key(text), || "an ID was given out twice".to_owned())?;
                        Got::Set(text.to_owned())
                    }
                }
            }
            _ => return Err("more than one cookie was set".to_owned()),
        };
        let looked = !matches!(self.asked[id].ask.what, What::Unused | What::ListOf(_) | What::ClearOf(_));
        let varies = reply.all("vary").any(|value| value.eq_ignore_ascii_case("cookie"));
        ensure(varies || !looked, || "a response that depends on the cookie does not say so".to_owned())?;
        Ok(got)
    }

    /// Nobody knows what happened, unless a cookie tells.
    fn check_unavailable(&mut self, id: usize, reply: &Reply, cookie: &Got, saved: bool, ms: u64) -> Checked<Jar> {
        let Asked { ask, cookie: presented, .. } = &self.asked[id];
        let (ask, presented) = (ask.clone(), presented.clone());
        let is_kept = Ask::is_kept(&ask.writes) || Ask::is_kept(&ask.late);
        let is_stranger = matches!(presented, Cookie::None | Cookie::Forged { malformed: true, .. });
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
        let from = self.session_of(&presented);
        match (cookie, ask.login()) {
            // The save failed, and the sign-out came through with the response that says so.
            (Got::Remove, _) if ask.save && ask.signs_out() && ask.what != What::ClearOthers && from.is_some() => {
                self.settle_endings(id, Fate::Sure);
                Ok(Jar::Remove)
            }
            (Got::Remove, _) => Err("an outage removed a cookie".to_owned()),
            (Got::Nothing, Some(_)) if saved => Err("a login was saved, and its cookie is missing".to_owned()),
            (Got::Nothing, _) => Ok(Jar::Keep),
            (Got::Set(_), _) if !ask.save => Err("an outage set a cookie".to_owned()),
            (Got::Set(text), login) => {
                // What was saved is stored, and its ID must leave. What became of the rest is not known.
                if let (Some(session), None) = (from, login)
                    && let (What::Rework, Cookie::One(value)) = (&ask.what, &presented)
                    && self.is_same_session(*value, text)
                {
                    ensure(self.values[*value].successor.is_none(), || "an ID was rotated twice".to_owned())?;
                    self.settle_rework(*value, id, Fate::Sure);
                    self.values[*value].successor = Some((id, ms));
                    self.settle_writes(session, id, false, Fate::Sure);
                    return Ok(Jar::Set(self.hand_out(text, session)));
                }
                let goes_over = from.filter(|_| matches!(ask.what, What::Bind(_)));
                let goes_over = goes_over.filter(|from| {
                    let key = self.sessions[*from].key.as_deref();
                    key.is_none() || key == login
                });
                let came = Came { from: goes_over.map(|from| (from, false)), early: true, late: Some(false) };
                self.bear(id, handle_in(text), Some(text), came)?;
                Ok(Jar::Set(self.texts[text]))
            }
        }
    }

    /// What a handler loaded: which session, if any.
    fn check_seen(&mut self, id: usize, seen: &Seen, ms: u64) -> Checked<Option<usize>> {
        let is_found = seen.handle.is_some();
        ensure(is_found || (seen.key.is_none() && seen.data.is_empty()), || "no session has data".to_owned())?;
        let sent = self.asked[id].sent;
        match self.asked[id].cookie.clone() {
            Cookie::None | Cookie::Forged { .. } => {
                self.count("strangers");
                ensure(!is_found, || "a stranger was given a session".to_owned())?;
                Ok(None)
            }
            Cookie::One(value) if is_found => {
                let session = self.values[value].session;
                self.observe(id, session, seen, false)?;
                self.may_lead(id, value)?;
                self.count("found");
                Ok(Some(session))
            }
            Cookie::One(value) => {
                self.count("found nothing");
                ensure(!self.must_lead(id, value, ms), || "signed out, and nobody asked for it".to_owned())?;
                Ok(None)
            }
            Cookie::Two(a, b) => {
                let (first, second) = (self.values[a].session, self.values[b].session);
                let (must_first, must_second) = (self.must_lead(id, a, ms), self.must_lead(id, b, ms));
                let same_owner = self.sessions[first].key == self.sessions[second].key;
                self.count("two cookies");
                if !is_found {
                    let dead = |session: usize| self.sessions[session].is_over(sent);
                    let wrong = (must_first && must_second && same_owner)
                        || (must_first && dead(second))
                        || (must_second && dead(first));
                    ensure(!wrong, || "of two cookies none was taken".to_owned())?;
                    return Ok(None);
                }
                let is_unknown = !seen.handle.as_ref().is_some_and(|handle| self.handles.contains_key(handle));
                let is = |session: usize| {
                    let known = &self.sessions[session];
                    known.handle == seen.handle || (is_unknown && known.handle.is_none() && known.key == seen.key)
                };
                ensure(is(first) || is(second), || "two cookies led to a third session".to_owned())?;
                ensure(!(must_first && must_second && !same_owner), || {
                    "one of two users' cookies was taken".to_owned()
                })?;
                ensure(!must_first || is(first) || !same_owner, || "the second cookie was taken".to_owned())?;
                let (value, session) = if is(first) { (a, first) } else { (b, second) };
                self.observe(id, session, seen, false)?;
                // With two IDs of one session either may be the one that led there.
                if first != second {
                    self.may_lead(id, value)?;
                }
                Ok(Some(session))
            }
        }
    }

    /// Nobody has ended it for sure, nor has its ID died of age.
    fn may_lead(&mut self, id: usize, value: usize) -> Checked {
        let (sent, sent_ms) = (self.asked[id].sent, self.asked[id].sent_ms);
        let value = &self.values[value];
        let known = &self.sessions[value.session];
        if let Some(ender) = known.enders.iter().find(|ender| ender.is_before(sent)) {
            return Err(format!("a session that #{} had ended was revived", ender.ask));
        }
        match value.successor {
            Some((rework, ms)) if sent_ms > ms + self.grace => {
                Err(format!("an ID that #{rework} had replaced leads to its session long after"))
            }
            Some(_) => {
                self.count("old IDs within the grace");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Nobody may have ended it, and its ID cannot have died of age.
    fn must_lead(&self, id: usize, value: usize, ms: u64) -> bool {
        let value = &self.values[value];
        let known = &self.sessions[value.session];
        if !self.is_alone(id, value.session) {
            return false;
        }
        let mut reworks = value.reworks.iter().filter(|effect| effect.ask != id && effect.fate != Fate::Not);
        // They were noted in the order in which they were sent.
        let Some(first) = reworks.next() else { return true };
        let since = |effect: &&Effect| effect.fate != Fate::Not && effect.done.is_none_or(|done| done > first.sent);
        let rotations = known.rotations.iter().filter(|effect| effect.ask != id).filter(since);
        ms < first.sent_ms + self.grace && rotations.count() <= MOST_PREVIOUS
    }

    /// Whether nobody but that request may have ended the session.
    fn is_alone(&self, id: usize, session: usize) -> bool {
        let mut enders = self.sessions[session].enders.iter();
        !enders.any(|ender| ender.ask != id && ender.fate != Fate::Not)
    }

    fn may_be_gone(&self, id: usize, from: Option<usize>) -> bool {
        // A login may be cleared at once.
        from.is_some_and(|session| !self.is_alone(id, session)) || self.asked[id].ask.login().is_some()
    }

    /// Who still holds what a login has replaced gets no cookie but by a login of their own.
    fn check_tombstone(&self, id: usize, value: Option<usize>, ms: u64) -> Checked {
        let Some(value) = value else { return Ok(()) };
        let known = &self.sessions[self.values[value].session];
        let enders: Vec<&Effect> =
            known.enders.iter().filter(|ender| ender.fate != Fate::Not && ender.ask != id).collect();
        let [ender] = enders[..] else { return Ok(()) };
        let is_login = matches!(self.asked[ender.ask].ask.what, What::Bind(_) | What::Create(_));
        // Of an ID that was rotated away before, the tombstone need not know.
        let is_newest = self.values[value].reworks.iter().all(|effect| effect.fate == Fate::Not);
        let stands = is_login && is_newest && ender.is_before(self.asked[id].sent) && ms < ender.sent_ms + self.grace;
        ensure(!stands, || format!("what #{} had replaced was given a cookie", ender.ask))
    }

    /// What there was after a save that said yes.
    fn check_after(&mut self, id: usize, session: usize, after: Option<&Seen>) -> Checked {
        let Some(after) = after else { return Ok(()) };
        let writes = self.asked[id].ask.writes.clone();
        if after.handle.is_none() && self.sessions[session].born_by == id && !Ask::is_kept(&writes) {
            // The session began with what was written later.
            return Ok(());
        }
        if after.handle.is_none() && self.asked[id].ask.blind && !Ask::is_kept(&writes) {
            let must = matches!(self.asked[id].cookie, Cookie::One(value) if self.must_lead(id, value, self.ms));
            return ensure(!must, || "a session that nobody has ended was not found".to_owned());
        }
        self.observe(id, session, after, true)?;
        for counter in 0..COUNTERS {
            if writes.iter().filter(|write| **write == Write::Add(counter)).count() == 1 {
                let is_new = self.made.insert((session, counter, count_in(after, counter)));
                ensure(is_new, || format!("two increments of n{counter} made the same number"))?;
            }
        }
        Ok(())
    }

    fn check_revoked(&mut self, id: usize, handle: &str, revoked: Option<bool>, found: Option<usize>) -> Checked {
        let key = found.and_then(|found| self.sessions[found].key.clone());
        let sent = self.asked[id].sent;
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
                let must = !known.orphan && known.born < sent && self.is_alone(id, target);
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
        let sent = self.asked[id].sent;
        let mut listed = HashSet::new();
        // Their names are random, and must not decide which session gets which number.
        let mut list: Vec<&Seen> = list.iter().collect();
        list.sort_by_key(|seen| seen.data.get("login").and_then(Json::as_u64));
        for seen in list {
            let handle = seen.handle.clone().unwrap_or_default();
            let session = match self.handles.get(&handle) {
                Some(session) => *session,
                None => self.adopt(id, user, &handle, seen)?,
            };
            ensure(listed.insert(session), || "a session was listed twice".to_owned())?;
            let known = &self.sessions[session];
            ensure(known.key.as_deref() == Some(user), || format!("{user:?} saw session {session} in the list"))?;
            ensure(!known.is_over(sent), || format!("session {session} had ended, and was listed"))?;
            // As long as a login is under way, what is written to the session before goes over to its own; and none of it stays, if
            // that is ended by somebody else.
            let is_settled = !known.orphan && known.settled < sent;
            let by = seen.data.get("login").and_then(Json::as_u64);
            ensure(by == Some(known.born_by as u64), || format!("session {session} is not the login of {by:?}"))?;
            if is_settled {
                self.observe(id, session, seen, false)?;
            }
        }
        for session in 0..self.sessions.len() {
            let known = &self.sessions[session];
            let must = known.key.as_deref() == Some(user) && known.born < sent && !known.orphan;
            if must && self.is_alone(id, session) {
                ensure(listed.contains(&session), || format!("session {session} is not in the list"))?;
            }
        }
        Ok(())
    }

    /// A session that nobody has told of: made by a login whose answer was lost, or is still to come.
    fn adopt(&mut self, id: usize, user: &str, handle: &str, seen: &Seen) -> Checked<usize> {
        let login = seen.data.get("login").and_then(Json::as_u64).ok_or("a session was listed that nobody made")?;
        let login = usize::try_from(login).map_err(|_| "a session was listed that nobody made")?;
        let by = self.asked.get(login).ok_or("a session was listed that nobody made")?;
        ensure(by.ask.login() == Some(user), || format!("{user:?} saw the login of another in the list"))?;
        // One whose name is not in its cookie.
        if let Some(at) = self.sessions.iter().position(|known| known.born_by == login && known.handle.is_none()) {
            self.sessions[at].handle = Some(handle.to_owned());
            self.handles.insert(handle.to_owned(), at);
            return Ok(at);
        }
        ensure(!self.sessions.iter().any(|known| known.born_by == login && known.key.is_some()), || {
            format!("#{login} made two sessions")
        })?;
        let sent = self.asked[id].sent;
        ensure(by.answered.is_none_or(|at| at > sent) || self.is_open(login), || {
            format!("#{login} was refused, and its session was listed")
        })?;
        let from = self.session_of(&by.cookie).filter(|_| matches!(by.ask.what, What::Bind(_)));
        let from = from.filter(|from| self.sessions[*from].key.as_deref().is_none_or(|key| key == user));
        self.count("orphans");
        let came = Came { from: from.map(|from| (from, false)), early: false, late: Some(false) };
        self.bear(login, Some(handle.to_owned()), None, came)
    }

    /// Whether what a login did is not known: its answer was a 503.
    fn is_open(&self, login: usize) -> bool {
        self.log.iter().any(|line| line.ask == login && line.text.starts_with("<- 503"))
    }

    /// What was seen of a session, at some moment since the request was sent. `own` is whether what the request has written itself is
    /// to be in it.
    fn observe(&mut self, id: usize, session: usize, seen: &Seen, own: bool) -> Checked {
        let (sent, now) = (self.asked[id].sent, self.now);
        self.looked_at = Some(session);
        let known = &mut self.sessions[session];
        ensure(seen.key == known.key, || {
            format!("session {session} is that of {:?}, and {:?} was seen", known.key, seen.key)
        })?;
        let handle = seen.handle.clone().ok_or("a session without a handle")?;
        match &known.handle {
            Some(known) => ensure(*known == handle, || format!("another session than {session} was seen"))?,
            None => {
                known.handle = Some(handle.clone());
                ensure(self.handles.insert(handle, session).is_none(), || "two sessions with one handle".to_owned())?;
            }
        }
        let known = &mut self.sessions[session];
        for (name, value) in &seen.data {
            let number = value.as_u64();
            let put = name.strip_prefix('w').and_then(|name| name.parse().ok());
            match (name.as_str(), put) {
                ("n0" | "n1", _) => {}
                ("login", _) => ensure(known.key.is_some() && number == Some(known.born_by as u64), || {
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
        for (at, counter) in known.counters.iter_mut().enumerate() {
            let n = count_in(seen, at);
            let mine = counter.adds.iter().filter(|add| own && add.ask == id && !add.late).count() as u64;
            let (least, most) = (counter.least(sent) + mine, counter.most(now, id) + mine);
            ensure(n >= least, || format!("n{at} is {n}, and was to be {least} at least: an increment is lost"))?;
            ensure(n <= most, || format!("n{at} is {n}, and was to be {most} at most: an increment counted twice"))?;
            counter.sights.push(Sight { sent, done: now, n });
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

/// What a response says about the cookie.
#[derive(Debug, PartialEq)]
enum Got {
    Nothing,
    Set(String),
    Remove,
}

impl Known {
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
    if !ask.writes.is_empty() {
        text += &format!(", writes {:?}", ask.writes);
    }
    if ask.save {
        text += ", saves";
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

/// So many IDs from before reworks are kept.
const MOST_PREVIOUS: usize = 4;
const SIGHTS: usize = 24;
const LINES: usize = 60;
