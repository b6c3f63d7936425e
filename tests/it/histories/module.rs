//! Histories of [`Sessions`] and of increments through the layer, and the models that they are checked against.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::body::Body;
use http::{
    Request, StatusCode,
    header::{COOKIE, SET_COOKIE},
};
use jam_session::{Backend, Clock, Data, Error, ErrorKind, Login, Session, SessionLayer, Sessions};
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};

use super::{
    check::{Model, NEVER, Op, OpOf},
    record::{Client, Recorder, Schedule, Trouble, cut},
};
use crate::random::Random;
use crate::store::Options;

/// The sessions of one key.
#[derive(Clone, Copy)]
pub struct Module {
    /// Whether time is the test's, and passes in the history.
    pub timed: bool,
    /// Whether a write begins to live when it is called, or later.
    pub lags: bool,
    /// Whether `list` sees all sessions at one moment.
    pub lists_at_once: bool,
    /// Whether reading keeps a session alive. That happens in the background: the end is then known no better than the
    /// deadline.
    pub touches: bool,
}

/// A session: the number of the call that made it.
pub type Sid = usize;

/// An ID: the session, and the number of its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id {
    sid: Sid,
    secret: usize,
}

#[derive(Clone, Copy, PartialEq)]
pub struct Call {
    what: What,
    /// The time when it was called: what an ID leads to is looked up once.
    now: u64,
}

#[derive(Clone, Copy, PartialEq)]
pub enum What {
    Create {
        sid: Sid,
        n: u64,
        /// By the login that this call has taken.
        by: Option<usize>,
    },
    /// Takes a login, to be kept for a while.
    Login(usize),
    Get(Id),
    /// The same, by `info`.
    Info(Id),
    Update {
        id: Id,
        n: u64,
    },
    Increment(Id),
    /// `op` stands for the secret that nobody heard of.
    Rework {
        id: Id,
        op: usize,
    },
    Delete(Id),
    Revoke(Sid),
    List,
    /// As `list`, from the pages of all sessions.
    All,
    Listed(Sid),
    Clear {
        of: u32,
    },
    /// It does not happen at one moment: first its session gets another ID, then the others end.
    ClearOthers {
        id: Id,
        op: usize,
    },
    /// `op` stands for the secret that nobody heard of.
    Renew {
        id: Id,
        op: usize,
    },
    Keep {
        sid: Sid,
        of: u32,
    },
    Pass(u64),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Secret(usize),
    Data(Option<u64>),
    Did(bool),
    Done,
    Gone,
    Listed(Vec<(Sid, u64)>),
    Ended(u64),
    /// The new secret, and how many ended.
    Kept(usize, u64),
    /// It lives on: the ID does not open it.
    Refused,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    now: u64,
    /// `None` of what was ended.
    sessions: BTreeMap<Sid, Option<Kept>>,
    /// How often all were ended, or all but one.
    clears: u32,
    logins: BTreeMap<usize, Taken>,
}

/// A login that was taken after so many clears, between these two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Taken {
    clears: u32,
    earliest: u64,
    latest: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kept {
    secret: usize,
    /// The secrets before, the oldest first, and until when they lead here at least, and at most: the grace begins when the
    /// rework is under way.
    previous: Vec<(usize, u64, u64)>,
    /// Those that end it and do no more, the same way.
    superseded: Vec<(usize, u64, u64)>,
    n: u64,
    /// It ends for want of use between these two,
    idle: (u64, u64),
    /// and whatever happens between these two.
    deadline: (u64, u64),
    /// Whether nobody got its ID: then it is removed in the background.
    orphan: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Sure {
    Yes,
    Maybe,
    No,
}

// In seconds.
pub const IDLE: u64 = 100;
pub const GRACE: u64 = 10;
pub const LIFETIME: u64 = 300;
const LOGINS_ARE_GOOD_FOR: u64 = 900;
const PASSES: [u64; 8] = [1, 4, 9, 10, 50, 99, 100, 150];
const PREVIOUS: usize = 4;
const SUPERSEDED: usize = 11;
const UNHEARD: usize = 1_000_000;

impl Module {
    fn is_live(&self, kept: &Kept, now: u64) -> Sure {
        let (earliest, latest) = (kept.idle.0.min(kept.deadline.0), kept.idle.1.min(kept.deadline.1));
        match () {
            () if self.timed && now >= latest => Sure::No,
            () if kept.orphan || self.timed && now >= earliest => Sure::Maybe,
            () => Sure::Yes,
        }
    }

    /// Whether an ID leads to a session, and it is there. An ID from before a rework counts as when it was called: to a
    /// session that is there, nobody is let in who was not to be let in at some moment of the call.
    fn opens(&self, state: &State, id: Id, called: u64) -> Sure {
        let Some(Some(kept)) = state.sessions.get(&id.sid) else { return Sure::No };
        let known = match kept.secret == id.secret {
            true => Sure::Yes,
            false => self.is_among(&kept.previous, id, state.now, called),
        };
        known.and(self.is_live(kept, state.now))
    }

    /// Whether an ID may end a session that is there.
    fn may_end(&self, kept: &Kept, id: Id, now: u64, called: u64) -> Sure {
        let [previous, superseded] = [&kept.previous, &kept.superseded].map(|old| self.is_among(old, id, now, called));
        // The ten seconds of a superseded one are real where time is not the test's.
        let superseded = if self.timed { superseded } else { superseded.and(Sure::Maybe) };
        match (kept.secret == id.secret, previous, superseded) {
            (true, ..) | (_, Sure::Yes, _) | (_, _, Sure::Yes) => Sure::Yes,
            (false, Sure::No, Sure::No) => Sure::No,
            _ => Sure::Maybe,
        }
    }

    /// Whether an ID is among these that were replaced, each with the time until when it counts.
    fn is_among(&self, replaced: &[(usize, u64, u64)], id: Id, now: u64, called: u64) -> Sure {
        match replaced.iter().rfind(|(secret, ..)| *secret == id.secret) {
            Some((_, earliest, _)) if !self.timed || *earliest > now => Sure::Yes,
            Some((.., latest)) if *latest > called => Sure::Maybe,
            _ => Sure::No,
        }
    }

    /// Whether as many previous secrets are in their grace as there may be.
    fn is_full(&self, kept: &Kept, now: u64, called: u64) -> Sure {
        let count = |until: fn(&(usize, u64, u64)) -> u64, time: u64| {
            kept.previous.iter().filter(|old| !self.timed || until(old) > time).count()
        };
        match (count(|old| old.1, now) >= PREVIOUS, count(|old| old.2, called) >= PREVIOUS) {
            (true, _) => Sure::Yes,
            (false, true) => Sure::Maybe,
            (false, false) => Sure::No,
        }
    }

    /// Whether a login comes too late: it was taken before a clear, or too long ago.
    fn is_late(&self, state: &State, login: Taken, called: u64) -> Sure {
        let (least, most) = (called.min(state.now).saturating_sub(login.latest), state.now - login.earliest);
        match () {
            () if login.clears != state.clears || self.timed && least > LOGINS_ARE_GOOD_FOR => Sure::Yes,
            () if self.timed && most > LOGINS_ARE_GOOD_FOR => Sure::Maybe,
            () => Sure::No,
        }
    }

    /// The same session, written to.
    fn written(&self, kept: &Kept, now: u64, called: u64) -> Kept {
        let from = if self.lags { called.min(now) } else { now };
        let latest = if self.touches { u64::MAX } else { now + IDLE };
        Kept { idle: (from + IDLE, latest), ..kept.clone() }
    }
}

impl Sure {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, Self::Yes) => Self::Yes,
            (Self::No, _) | (_, Self::No) => Self::No,
            _ => Self::Maybe,
        }
    }
}

impl Kept {
    /// It has come to its end, of which the backend need not know.
    fn dead(&self) -> Self {
        Self { deadline: (0, 0), ..self.clone() }
    }
}

impl State {
    fn with(&self, sid: Sid, kept: Option<Kept>) -> Self {
        let mut state = self.clone();
        state.sessions.insert(sid, kept);
        state
    }

    fn kept(&self, sid: Sid) -> Option<&Kept> {
        self.sessions.get(&sid)?.as_ref()
    }
}

impl Model for Module {
    type State = State;
    type Call = Call;
    type Answer = Answer;

    fn start(&self) -> State {
        State::default()
    }

    fn step(&self, state: &State, call: &Call, answer: Option<&Answer>) -> Vec<State> {
        let may = |given: Answer| answer.is_none_or(|answer| *answer == given);
        let id = call.id();
        let opens = id.map_or(Sure::No, |id| self.opens(state, id, call.now));
        let mut states = Vec::new();
        // What a call by an ID leaves that finds nothing: if the session may have been there, it may be gone by now.
        let mut missed = |given: Answer| {
            if opens != Sure::Yes && may(given) {
                states.push(state.clone());
                if let Some((id, kept)) = id.and_then(|id| Some((id, state.kept(id.sid)?)))
                    && self.is_live(kept, state.now) == Sure::Maybe
                {
                    states.push(state.with(id.sid, Some(kept.dead())));
                }
            }
        };
        match call.what {
            What::Pass(by) => states.push(State { now: state.now + by, ..state.clone() }),
            What::Login(op) => {
                // Nobody has it without an answer.
                if answer.is_none() {
                    return vec![state.clone()];
                }
                let taken = Taken { clears: state.clears, earliest: call.now.min(state.now), latest: state.now };
                let mut after = state.clone();
                after.logins.insert(op, taken);
                states.push(after);
            }
            What::Create { sid, n, by } => {
                let login = by.and_then(|by| state.logins.get(&by));
                let late = login.map_or(Sure::No, |login| self.is_late(state, *login, call.now));
                let secret = match answer {
                    Some(Answer::Secret(secret)) => Some(*secret),
                    Some(Answer::Refused) if late != Sure::No => return vec![state.clone()],
                    Some(_) => return Vec::new(),
                    None => None,
                };
                if late == Sure::Yes {
                    return Vec::new();
                }
                let called = call.now.min(state.now);
                let new = Kept {
                    secret: secret.unwrap_or(UNHEARD + sid),
                    previous: Vec::new(),
                    superseded: Vec::new(),
                    n,
                    idle: (0, 0),
                    deadline: (called + LIFETIME, state.now + LIFETIME),
                    orphan: secret.is_none(),
                };
                states.push(state.with(sid, Some(self.written(&new, state.now, call.now))));
            }
            What::Get(id) | What::Info(id) => {
                missed(Answer::Data(None));
                if let Some(kept) = state.kept(id.sid).filter(|_| opens != Sure::No)
                    && may(Answer::Data(Some(kept.n)))
                {
                    states.push(state.clone());
                }
            }
            What::Update { id, .. } | What::Increment(id) => {
                missed(Answer::Gone);
                if let Some(kept) = state.kept(id.sid).filter(|_| opens != Sure::No)
                    && may(Answer::Done)
                {
                    let n = if let What::Update { n, .. } = call.what { n } else { kept.n + 1 };
                    states.push(state.with(id.sid, Some(Kept { n, ..self.written(kept, state.now, call.now) })));
                }
            }
            What::Rework { id, op } => {
                missed(Answer::Gone);
                if let Some(kept) = state.kept(id.sid).filter(|_| opens != Sure::No) {
                    let written = self.written(kept, state.now, call.now);
                    let (is_newest, full) = (kept.secret == id.secret, self.is_full(kept, state.now, call.now));
                    let rotated = |secret: usize| {
                        let mut new = written.clone();
                        let called = call.now.min(state.now);
                        new.previous.push((new.secret, called + GRACE, state.now + GRACE));
                        new.secret = secret;
                        state.with(id.sid, Some(new))
                    };
                    let (may_rotate, may_keep) = (is_newest && full != Sure::Yes, !is_newest || full != Sure::No);
                    match answer {
                        Some(Answer::Secret(secret)) if *secret != id.secret && may_rotate => {
                            states.push(rotated(*secret))
                        }
                        Some(Answer::Secret(secret)) if *secret == id.secret && may_keep => {
                            states.push(state.with(id.sid, Some(written)));
                        }
                        // It was written to, and no ID given: that of the call had come to its end by then.
                        Some(Answer::Gone) if !is_newest => {
                            let idle = (kept.idle.0, written.idle.1);
                            states.push(state.with(id.sid, Some(Kept { idle, ..kept.clone() })));
                        }
                        None => {
                            states.extend(may_rotate.then(|| rotated(UNHEARD + op)));
                            states.extend(may_keep.then(|| state.with(id.sid, Some(written.clone()))));
                        }
                        Some(_) => {}
                    }
                }
            }
            What::Renew { id, op } => {
                // Only by the newest one; the others end with it.
                let Some(kept) = state.kept(id.sid).filter(|kept| opens != Sure::No && kept.secret == id.secret) else {
                    return states;
                };
                let secret = match answer {
                    Some(Answer::Secret(secret)) => *secret,
                    Some(_) => return states,
                    None => UNHEARD + op,
                };
                let mut new = self.written(kept, state.now, call.now);
                let called = call.now.min(state.now);
                // A secret whose grace was over is forgotten. Of one that may have been over, nothing is sure.
                let kept = std::mem::take(&mut new.previous).into_iter().filter(|(.., latest)| *latest > called);
                let until = |earliest: u64| if earliest > state.now { called + GRACE } else { 0 };
                let kept = kept.map(|(secret, earliest, _)| (secret, until(earliest)));
                let replaced: Vec<_> = kept.chain([(new.secret, called + GRACE)]).collect();
                let latest = state.now + GRACE;
                new.superseded.extend(replaced.into_iter().map(|(secret, earliest)| (secret, earliest, latest)));
                // There is room for so many. Whether older ones are forgotten depends on which had come to their end.
                let surplus = new.superseded.len().saturating_sub(SUPERSEDED);
                new.superseded.iter_mut().take(surplus).for_each(|(_, earliest, _)| *earliest = 0);
                new.secret = secret;
                states.push(state.with(id.sid, Some(new)));
            }
            What::Delete(id) => {
                let kept = state.kept(id.sid);
                let live = kept.map_or(Sure::No, |kept| self.is_live(kept, state.now));
                let ends = kept.map_or(Sure::No, |kept| self.may_end(kept, id, state.now, call.now));
                if live != Sure::Yes && may(Answer::Done) {
                    states.push(state.with(id.sid, kept.map(Kept::dead)));
                    // It may be there, and was not when it was looked up.
                    states.extend((live == Sure::Maybe && answer.is_none()).then(|| state.clone()));
                }
                if live != Sure::No && ends != Sure::No && may(Answer::Done) {
                    states.push(state.with(id.sid, None));
                }
                if live != Sure::No && ends != Sure::Yes && may(Answer::Refused) {
                    states.push(state.clone());
                }
            }
            What::Revoke(sid) => {
                let live = state.kept(sid).map_or(Sure::No, |kept| self.is_live(kept, state.now));
                if live != Sure::No && may(Answer::Did(true)) {
                    states.push(state.with(sid, None));
                }
                if live != Sure::Yes && may(Answer::Did(false)) {
                    states.push(state.with(sid, state.kept(sid).map(Kept::dead)));
                }
            }
            What::List | What::All | What::Listed(_) => {
                let Some(answer) = answer else { return vec![state.clone()] };
                let mut after = state.clone();
                let mut seen = match (&call.what, answer) {
                    (_, Answer::Listed(seen)) => seen.clone(),
                    (What::Listed(sid), Answer::Data(n)) => n.map(|n| (*sid, n)).into_iter().collect(),
                    _ => return states,
                };
                for (sid, kept) in &state.sessions {
                    if matches!(call.what, What::Listed(only) if only != *sid) {
                        continue;
                    }
                    let live = kept.as_ref().map_or(Sure::No, |kept| self.is_live(kept, state.now));
                    let listed = seen.iter().position(|(of, _)| of == sid).map(|at| seen.remove(at).1);
                    let fits = match (live, listed) {
                        (Sure::Yes | Sure::Maybe, Some(n)) => kept.as_ref().is_some_and(|kept| kept.n == n),
                        (Sure::Yes, None) | (Sure::No, Some(_)) => false,
                        (Sure::Maybe, None) => {
                            after.sessions.insert(*sid, kept.as_ref().map(Kept::dead));
                            true
                        }
                        (Sure::No, None) => true,
                    };
                    if !fits {
                        return states;
                    }
                }
                if seen.is_empty() {
                    states.push(after);
                }
            }
            What::Clear { of } | What::Keep { of, .. } => {
                let keep = match call.what {
                    What::Keep { sid, .. } => Some(sid),
                    _ => None,
                };
                // It is asked for by a session that is there.
                if keep.is_some_and(|sid| state.kept(sid).is_none_or(|kept| self.is_live(kept, state.now) == Sure::No))
                {
                    return states;
                }
                let (mut least, mut most) = (0, 0);
                // A file counts when it decides, which may be a while before others see it.
                let counted = if self.lags { call.now.min(state.now) } else { state.now };
                let mut after = state.clone();
                for (_, kept) in after.sessions.iter_mut().filter(|(sid, _)| Some(**sid) != keep) {
                    if let Some(kept) = kept {
                        least += u64::from(self.is_live(kept, state.now) == Sure::Yes);
                        // The backend, which does the counting, does not know of deadlines.
                        most += u64::from(!self.timed || counted < kept.idle.1);
                    }
                    *kept = None;
                }
                let fits = match answer {
                    Some(Answer::Ended(count)) => (least..=most).contains(count) || of > 0,
                    Some(_) => false,
                    None => true,
                };
                if fits {
                    after.clears += 1;
                    states.push(after);
                }
            }
            // It is split.
            What::ClearOthers { .. } => {}
        }
        states
    }

    fn split(&self, ops: Vec<OpOf<Self>>) -> Vec<OpOf<Self>> {
        let in_two = |op: OpOf<Self>| {
            let What::ClearOthers { id, op: number } = op.call.what else { return vec![op] };
            let part = |what, answer: Option<Answer>| {
                let end = if answer.is_some() { op.end } else { NEVER };
                Op { call: Call { what, ..op.call }, answer, end, ..op.clone() }
            };
            let (renew, keep) = (What::Renew { id, op: number }, What::Keep { sid: id.sid, of: 0 });
            match op.answer {
                Some(Answer::Kept(secret, ended)) => {
                    vec![part(renew, Some(Answer::Secret(secret))), part(keep, Some(Answer::Ended(ended)))]
                }
                // Refused: before it was renewed, or after that, or when it asked again because the answer to its clear was lost.
                Some(_) | None => vec![part(renew, None), part(keep, None)],
            }
        };
        let ops: Vec<_> = ops.into_iter().flat_map(in_two).collect();
        let made = |op: &OpOf<Self>| match op.call.what {
            What::Create { sid, .. } => Some(sid),
            _ => None,
        };
        let sids: Vec<(Sid, u64)> = ops.iter().filter_map(|op| Some((made(op)?, op.start))).collect();
        let split = |op: OpOf<Self>| match (op.call.what, &op.answer) {
            (what @ (What::List | What::All), Some(Answer::Listed(seen)))
                if what == What::All || !self.lists_at_once =>
            {
                let one = |sid: Sid| {
                    let n = seen.iter().find(|(of, _)| *of == sid).map(|(_, n)| *n);
                    let call = Call { what: What::Listed(sid), ..op.call };
                    Op { call, answer: Some(Answer::Data(n)), ..op.clone() }
                };
                sids.iter().filter(|(_, start)| *start < op.end).map(|(sid, _)| one(*sid)).collect()
            }
            _ => vec![op],
        };
        ops.into_iter().flat_map(split).collect()
    }

    fn is_read(&self, call: &Call, answer: Option<&Answer>) -> bool {
        match (call.what, answer) {
            (What::Get(_) | What::Info(_) | What::List | What::All | What::Listed(_), _) => true,
            // Where it is not known whether it was written to nevertheless.
            (What::Rework { .. }, Some(Answer::Gone)) => !self.timed,
            (_, Some(Answer::Did(false) | Answer::Gone | Answer::Refused)) => true,
            _ => false,
        }
    }

    fn subjects(&self, ops: &[OpOf<Self>]) -> Vec<Sid> {
        let mut all: Vec<Sid> = ops.iter().filter_map(|op| op.call.sid()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn without(&self, op: &OpOf<Self>, subject: Sid) -> Option<OpOf<Self>> {
        let mut op = op.clone();
        if op.call.sid() == Some(subject) {
            return None;
        }
        // Without the session that is kept it is a clear.
        if let What::Keep { sid, of } = op.call.what
            && sid == subject
        {
            op.call.what = What::Clear { of: of + 1 };
            return Some(op);
        }
        match (&mut op.call.what, &mut op.answer) {
            (What::List, Some(Answer::Listed(seen))) => seen.retain(|(sid, _)| *sid != subject),
            (What::Clear { of } | What::Keep { of, .. }, _) => *of += 1,
            _ => {}
        }
        Some(op)
    }

    fn promise(&self, call: &Call) -> &'static str {
        match call.what {
            What::Create { .. } => {
                "Promise 2: one record for each session; 22: a login from before a clear is refused, and no other one."
            }
            What::Login(_) => "Promise 22: a login names the last clear.",
            What::Get(_) | What::Info(_) => {
                "Promises 4, 5, 6: the data that was acknowledged last, by an ID that leads there, while it is live."
            }
            What::Update { .. } => "Promise 5: a change answered with success is in it; 4: and revives nothing.",
            What::Increment(_) => "Promise 5: no modify is lost, and each is applied once.",
            What::Rework { .. } => {
                "Promise 6: the newest ID leads to the session, the one before for the grace, no other."
            }
            What::Delete(_) => "Promise 4: what was ended stays so.",
            What::Revoke(_) => "Promise 8: revoke ends what is live, once.",
            What::List | What::All | What::Listed(_) => {
                "Promises 8, 23: every session live throughout, and none that ended before."
            }
            What::Renew { .. } => "Promise 8: `clear_others` needs the newest ID, and ends every copy of it.",
            What::Clear { .. } | What::Keep { .. } | What::ClearOthers { .. } => {
                "Promise 8: clear ends every session that there is."
            }
            What::Pass(_) => "",
        }
    }
}

impl Call {
    fn id(&self) -> Option<Id> {
        match self.what {
            What::Get(id) | What::Info(id) | What::Update { id, .. } | What::Increment(id) => Some(id),
            What::Rework { id, .. } => Some(id),
            What::Delete(id) | What::ClearOthers { id, .. } | What::Renew { id, .. } => Some(id),
            _ => None,
        }
    }

    fn sid(&self) -> Option<Sid> {
        match self.what {
            What::Create { sid, .. } | What::Revoke(sid) | What::Listed(sid) => Some(sid),
            // It is about the others, too.
            What::ClearOthers { .. } | What::Keep { .. } => None,
            _ => self.id().map(|id| id.sid),
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |id: Id| format!("s{} by ID {}", id.sid, id.secret);
        match self.what {
            What::Create { sid, n, by: None } => write!(f, "create s{sid} with {n}"),
            What::Create { sid, n, by: Some(by) } => write!(f, "bind login {by}: s{sid} with {n}"),
            What::Login(op) => write!(f, "take login {op}"),
            What::Get(id) => write!(f, "get {}", text(id)),
            What::Info(id) => write!(f, "info of {}", text(id)),
            What::Update { id, n } => write!(f, "update {} to {n}", text(id)),
            What::Increment(id) => write!(f, "increment {}", text(id)),
            What::Rework { id, .. } => write!(f, "rework {}", text(id)),
            What::Delete(id) => write!(f, "delete {}", text(id)),
            What::Revoke(sid) => write!(f, "revoke s{sid}"),
            What::List => write!(f, "list"),
            What::All => write!(f, "all"),
            What::Listed(sid) => write!(f, "list, as for s{sid}"),
            What::ClearOthers { id, .. } => write!(f, "clear all others than {}", text(id)),
            What::Renew { id, .. } => write!(f, "new ID for {}, of clear_others", text(id)),
            What::Keep { sid, .. } => write!(f, "clear all but s{sid}"),
            What::Clear { of: 0 } => write!(f, "clear"),
            What::Clear { .. } => write!(f, "clear, of others too"),
            What::Pass(by) => write!(f, "{by} s pass"),
        }
    }
}

/// What the clients of a history share.
pub struct Stage<B: Backend> {
    model: Module,
    /// Two processes.
    sessions: Vec<Sessions<B>>,
    layers: Vec<SessionLayer>,
    clock: Clock,
    cuts: bool,
    trouble: Option<Trouble>,
    recorder: Arc<Recorder<Module>>,
    keys: Vec<String>,
    began: Duration,
    count: AtomicUsize,
    book: Mutex<Book>,
}

/// What clients know of each other's sessions.
#[derive(Default)]
struct Book {
    /// The number of each secret, by the text of its ID.
    secrets: HashMap<String, usize>,
    /// The IDs of each key.
    ids: [Vec<(Id, String)>; KEYS],
    handles: [Vec<(Sid, String)>; KEYS],
    /// The logins that were taken, by the number of the call.
    logins: [Vec<(usize, Login)>; KEYS],
}

pub const KEYS: usize = 2;

/// The options that the model goes by.
pub fn options() -> Options {
    Options {
        default_ttl: Some(Some(Duration::from_secs(IDLE))),
        max_lifetime: Some(Duration::from_secs(LIFETIME)),
        touch_interval: Some(Duration::from_secs(5)),
        rework_grace: Some(Duration::from_secs(GRACE)),
        ..Options::default()
    }
}

impl<B: Backend> Stage<B> {
    /// `name` tells the keys of this history from those of others on the same store.
    pub fn new(model: Module, sessions: Vec<Sessions<B>>, clock: Clock, name: u64) -> Self {
        Self {
            model,
            layers: sessions.iter().map(|sessions| SessionLayer::new(sessions.clone()).cookie_name("id")).collect(),
            sessions,
            began: clock.elapsed(),
            clock,
            cuts: false,
            trouble: None,
            recorder: Recorder::new(),
            keys: (0..KEYS).map(|key| format!("{name} {key}")).collect(),
            count: AtomicUsize::new(0),
            book: Mutex::default(),
        }
    }

    /// Calls are dropped at times.
    pub fn cuts(self, cuts: bool) -> Self {
        Self { cuts, ..self }
    }

    /// Something that happens at times before a call.
    #[cfg(feature = "redis")]
    pub fn trouble(self, trouble: Option<Trouble>) -> Self {
        Self { trouble, ..self }
    }

    pub async fn play(self, schedule: Schedule, mut rng: Random, clients: usize, calls: usize) -> Option<String> {
        let stage = Arc::new(self);
        let client = |number: usize, mut rng: Random| -> Client {
            let stage = Arc::clone(&stage);
            Box::pin(async move {
                for _ in 0..calls {
                    stage.call(number, &mut rng).await;
                }
            })
        };
        let clients = (0..clients).map(|number| client(number, rng.fork())).collect();
        schedule.run(rng, clients).await;
        stage.recorder.complaint(&stage.model, KEYS)
    }

    async fn call(&self, client: usize, rng: &mut Random) {
        let key = rng.below(KEYS);
        let number = self.count.fetch_add(1, SeqCst);
        let (known, handle, login) = {
            let book = self.book.lock().unwrap();
            // Mostly one of the newest, so that clients meet.
            let newest = |len: usize, rng: &mut Random| len.saturating_sub(1 + rng.below(3));
            let known = book.ids[key].get(newest(book.ids[key].len(), rng)).cloned();
            let handle = book.handles[key].get(newest(book.handles[key].len(), rng)).cloned();
            let login = book.logins[key].get(newest(book.logins[key].len(), rng)).cloned();
            (known, handle, login)
        };
        let n = number as u64 * 1000;
        let create = What::Create { sid: number, n, by: None };
        let what = match (rng.below(46), &known) {
            (0..4, _) => create,
            (4..6, Some((id, _))) => What::Get(*id),
            (6..8, Some((id, _))) => What::Info(*id),
            (8..13, Some((id, _))) => What::Update { id: *id, n },
            (13..20, Some((id, _))) => What::Increment(*id),
            (20..26, Some((id, _))) => What::Rework { id: *id, op: number },
            (26..29, Some((id, _))) => What::Delete(*id),
            (29..31, _) if handle.is_some() => What::Revoke(handle.as_ref().unwrap().0),
            (31..34, _) => What::List,
            (34, _) => What::Clear { of: 0 },
            (35, Some((id, _))) => What::ClearOthers { id: *id, op: number },
            (40..42, _) => What::Login(number),
            (42..44, _) if login.is_some() => What::Create { sid: number, n, by: login.as_ref().map(|(op, _)| *op) },
            (44.., _) => What::All,
            (36.., _) if self.model.timed => What::Pass(*rng.one(&PASSES).unwrap()),
            (_, Some((id, _))) => What::Get(*id),
            (_, None) => create,
        };
        let call = Call { what, now: (self.clock.elapsed() - self.began).as_secs() };
        let part = (!matches!(what, What::Pass(_))).then_some(key);
        let polls = (self.cuts && rng.one_in(10)).then(|| 1 + rng.below(12));
        let process = rng.below(self.sessions.len());
        let text = known.map(|(_, text)| text).unwrap_or_default();
        let handle = handle.map(|(_, handle)| handle).unwrap_or_default();
        if let Some(trouble) = self.trouble.as_ref().filter(|_| rng.one_in(8)) {
            trouble(rng);
        }
        // It would be large on the stack, and so would what is around it.
        let work = Box::pin(self.make(key, process, what, &text, &handle, login.map(|(_, login)| login)));
        drop(self.recorder.call(client, part, call, async { cut(polls, work).await.flatten() }).await);
    }

    async fn make(
        &self,
        key: usize,
        process: usize,
        what: What,
        id: &str,
        handle: &str,
        login: Option<Login>,
    ) -> Option<Answer> {
        let (sessions, name) = (&self.sessions[process], &self.keys[key]);
        Some(match what {
            What::Create { sid, n, by: Some(_) } => Box::pin(self.bind(key, process, login?, sid, n)).await?,
            What::Login(op) => {
                let login = sessions.login(name).await.ok()?;
                self.book.lock().unwrap().logins[key].push((op, login));
                Answer::Done
            }
            What::Info(_) => {
                let info = known(sessions.info(id).await)?.flatten();
                Answer::Data(info.map(|info| n_of(&info.data)))
            }
            What::All => {
                let (mut all, mut seen) = (sessions.all(), BTreeMap::new());
                while let Some(page) = all.next_page(100).await.ok()? {
                    for info in page.into_iter().filter(|info| info.key.as_ref() == Some(name)) {
                        // One that is shown twice was seen twice.
                        seen.insert(info.data.get::<Sid>("made").unwrap().unwrap(), n_of(&info.data));
                    }
                }
                if all.may_have_missed() {
                    return None;
                }
                Answer::Listed(seen.into_iter().collect())
            }
            What::Create { sid, n, by: None } => {
                let id = sessions.create(name, json!({"made": sid, "n": n})).await.ok()?;
                Answer::Secret(self.note(key, sid, id.as_str()))
            }
            What::Get(_) => {
                let data = known(sessions.get(id).await)?.flatten();
                Answer::Data(data.map(|data| n_of(&data)))
            }
            What::Update { id: of, n } => {
                let updated = known(sessions.update(id, json!({"made": of.sid, "n": n})).await)?;
                updated.map_or(Answer::Gone, |()| Answer::Done)
            }
            What::Increment(_) => Box::pin(self.increment(process, id)).await?,
            What::Rework { id: of, .. } => match known(sessions.rework(id).await)? {
                Some(new) => Answer::Secret(self.note(key, of.sid, new.as_str())),
                None => Answer::Gone,
            },
            What::Delete(_) => match sessions.delete(id).await {
                Ok(()) => Answer::Done,
                Err(error) if error.kind() == ErrorKind::Unauthorized => Answer::Refused,
                Err(_) => return None,
            },
            What::Revoke(_) => Answer::Did(sessions.revoke(name, handle).await.ok()?),
            What::List => {
                let mut seen = Vec::new();
                for info in sessions.list(name).await.ok()? {
                    let sid = info.data.get::<Sid>("made").unwrap().unwrap();
                    seen.push((sid, n_of(&info.data)));
                    let mut book = self.book.lock().unwrap();
                    if book.handles[key].iter().all(|(of, _)| *of != sid) {
                        book.handles[key].push((sid, info.handle));
                    }
                }
                seen.sort_unstable();
                Answer::Listed(seen)
            }
            What::Clear { .. } => Answer::Ended(sessions.clear(name).await.ok()?),
            What::ClearOthers { id: of, .. } => match Box::pin(sessions.clear_others(id)).await {
                Ok((new, ended)) => Answer::Kept(self.note(key, of.sid, new.as_str()), ended),
                Err(error) if error.kind() == ErrorKind::Unauthorized => Answer::Refused,
                Err(_) => return None,
            },
            What::Pass(by) => {
                self.clock.advance(Duration::from_secs(by));
                Answer::Done
            }
            What::Listed(_) | What::Renew { .. } | What::Keep { .. } => return None,
        })
    }

    /// A visitor's request that signs in with a login.
    async fn bind(&self, key: usize, process: usize, login: Login, sid: Sid, n: u64) -> Option<Answer> {
        let service = self.layers[process].layer(service_fn(async |request: Request<Body>| {
            let session = request.extensions().get::<Session>().unwrap().clone();
            session.bind(login.clone());
            session.insert("made", sid).unwrap();
            session.insert("n", n).unwrap();
            Ok::<_, Error>(http::Response::new(()))
        }));
        let response = service.oneshot(Request::new(Body::empty())).await.unwrap();
        match response.status() {
            StatusCode::OK => {
                let cookie = response.headers()[SET_COOKIE].to_str().unwrap();
                let id = cookie.split([';', '=']).nth(1).unwrap();
                Some(Answer::Secret(self.note(key, sid, id)))
            }
            StatusCode::UNAUTHORIZED => Some(Answer::Refused),
            status => {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
                None
            }
        }
    }

    /// A request through the layer that adds one.
    async fn increment(&self, process: usize, id: &str) -> Option<Answer> {
        let service = self.layers[process].layer(service_fn(async |request: Request<Body>| {
            let session = request.extensions().get::<Session>().unwrap().clone();
            let answer = match session.load().await {
                Err(_) => None,
                Ok(()) if session.key().is_none() => Some(Answer::Gone),
                Ok(()) => {
                    session.modify("n", |n: Option<u64>| n.unwrap() + 1).unwrap();
                    known(session.save().await).map(|saved| saved.map_or(Answer::Gone, |()| Answer::Done))
                }
            };
            Ok::<_, Error>(http::Response::new(answer))
        }));
        let request = Request::builder().header(COOKIE, format!("id={id}")).body(Body::empty()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert!(response.headers().get("set-cookie").is_none());
        // What the save left unknown, the response may have written.
        response.into_body()
    }

    fn note(&self, key: usize, sid: Sid, text: &str) -> usize {
        let mut book = self.book.lock().unwrap();
        let next = book.secrets.len();
        let secret = *book.secrets.entry(text.to_owned()).or_insert(next);
        let id = Id { sid, secret };
        if secret == next {
            book.ids[key].push((id, text.to_owned()));
        }
        secret
    }
}

/// What is known of a call: that it was done, or that there was nothing to do it to; or nothing.
fn known<T>(result: Result<T, Error>) -> Option<Option<T>> {
    match result {
        Ok(done) => Some(Some(done)),
        Err(error) if error.kind() == ErrorKind::NotFound => Some(None),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            None
        }
    }
}

fn n_of(data: &Data) -> u64 {
    data.get("n").unwrap().unwrap()
}

mod known {
    //! Histories that are known to be right, or wrong.

    use super::*;
    use crate::histories::check::{explain, is_linearizable, shrink};

    const MODEL: Module = Module { timed: true, lags: false, lists_at_once: true, touches: false };
    const FIRST: Id = Id { sid: 1, secret: 1 };
    const SECOND: Id = Id { sid: 1, secret: 2 };

    /// A call from the first to the second tick. Clients are told apart by what overlaps.
    fn op(start: u64, end: u64, what: What, answer: Answer) -> OpOf<Module> {
        Op { client: 0, call: Call { what, now: 0 }, answer: Some(answer), start, end }
    }

    fn lost(start: u64, what: What) -> OpOf<Module> {
        Op { client: 0, call: Call { what, now: 0 }, answer: None, start, end: NEVER }
    }

    fn created() -> OpOf<Module> {
        op(0, 1, What::Create { sid: 1, n: 0, by: None }, Answer::Secret(1))
    }

    fn get(start: u64, end: u64, n: Option<u64>) -> OpOf<Module> {
        op(start, end, What::Get(FIRST), Answer::Data(n))
    }

    #[track_caller]
    fn right(history: Vec<OpOf<Module>>) {
        assert!(is_linearizable(&MODEL, &history), "{}", explain(&MODEL, &history));
    }

    /// It is wrong, and comes down to so many calls that are.
    #[track_caller]
    fn wrong(history: Vec<OpOf<Module>>, calls: usize) {
        assert!(!is_linearizable(&MODEL, &history), "{}", explain(&MODEL, &history));
        let less = shrink(&MODEL, &history);
        assert!(!is_linearizable(&MODEL, &less));
        assert_eq!(less.len(), calls, "{}", explain(&MODEL, &less));
    }

    #[test]
    fn calls_that_overlap_may_happen_in_either_order() {
        let increment = |start, end| op(start, end, What::Increment(FIRST), Answer::Done);
        right(vec![created(), increment(2, 6), increment(3, 5), get(4, 7, Some(1)), get(8, 9, Some(2))]);
        right(vec![created(), increment(2, 6), increment(3, 5), get(4, 7, Some(0))]);
        let delete = op(2, 5, What::Delete(FIRST), Answer::Done);
        right(vec![created(), delete.clone(), get(3, 4, Some(0)), get(6, 7, None)]);
        right(vec![created(), delete, get(3, 4, None)]);
    }

    #[test]
    fn a_call_without_an_answer_happens_at_any_time_or_never() {
        let update = lost(2, What::Update { id: FIRST, n: 7 });
        right(vec![created(), update.clone(), get(3, 4, Some(0)), get(5, 6, Some(7))]);
        right(vec![created(), update.clone(), get(3, 4, Some(0)), get(5, 6, Some(0))]);
        wrong(vec![created(), update, get(3, 4, Some(7)), get(5, 6, Some(0))], 4);
    }

    #[test]
    fn a_lost_update_is_found() {
        let increment = |start, end| op(start, end, What::Increment(FIRST), Answer::Done);
        let list = op(10, 11, What::List, Answer::Listed(vec![(1, 1)]));
        wrong(vec![created(), increment(2, 4), increment(3, 5), get(6, 7, Some(1)), list], 4);
    }

    #[test]
    fn a_revived_session_is_found() {
        let delete = op(2, 3, What::Delete(FIRST), Answer::Done);
        let update = op(4, 5, What::Update { id: FIRST, n: 7 }, Answer::Done);
        wrong(vec![created(), delete.clone(), update], 3);
        wrong(vec![created(), delete, get(4, 5, Some(0)), get(6, 7, Some(0))], 3);
    }

    #[test]
    fn a_stale_read_after_an_acknowledged_write_is_found() {
        let update = op(2, 3, What::Update { id: FIRST, n: 7 }, Answer::Done);
        wrong(vec![created(), update, get(4, 6, Some(0)), get(7, 8, Some(7))], 3);
    }

    #[test]
    fn a_list_without_a_live_session_is_found() {
        let other = op(2, 3, What::Create { sid: 2, n: 5, by: None }, Answer::Secret(5));
        let list = |listed| op(4, 5, What::List, Answer::Listed(listed));
        right(vec![created(), other.clone(), list(vec![(1, 0), (2, 5)])]);
        wrong(vec![created(), other, list(vec![(1, 0)])], 2);
    }

    #[test]
    fn a_clear_that_leaves_one_is_found() {
        let other = |start, end| op(start, end, What::Create { sid: 2, n: 5, by: None }, Answer::Secret(5));
        let clear = |ended| op(4, 6, What::Clear { of: 0 }, Answer::Ended(ended));
        let list = op(7, 8, What::List, Answer::Listed(vec![(2, 5)]));
        // One that is made meanwhile may come after it.
        right(vec![created(), other(3, 5), clear(1), list.clone()]);
        wrong(vec![created(), other(2, 3), clear(2), list.clone()], 3);
        wrong(vec![created(), other(2, 3), clear(1)], 3);
    }

    #[test]
    fn a_login_from_before_a_clear_is_found() {
        let login = op(2, 3, What::Login(7), Answer::Done);
        let bind = |start, end, answer| op(start, end, What::Create { sid: 2, n: 5, by: Some(7) }, answer);
        let clear = |start, end| op(start, end, What::Clear { of: 0 }, Answer::Ended(1));
        right(vec![created(), login.clone(), clear(4, 5), bind(6, 7, Answer::Refused)]);
        right(vec![
            created(),
            login.clone(),
            op(4, 7, What::Clear { of: 0 }, Answer::Ended(2)),
            bind(5, 6, Answer::Secret(5)),
        ]);
        wrong(vec![created(), login.clone(), clear(4, 5), bind(6, 7, Answer::Secret(5))], 3);
        wrong(vec![created(), login, bind(6, 7, Answer::Refused)], 2);
    }

    #[test]
    fn an_id_that_outlives_its_grace_is_found() {
        let rework = op(2, 3, What::Rework { id: FIRST, op: 9 }, Answer::Secret(2));
        let pass = op(4, 5, What::Pass(GRACE), Answer::Done);
        let by = |id| Op { call: Call { what: What::Get(id), now: GRACE }, ..get(6, 7, Some(0)) };
        right(vec![created(), rework.clone(), get(4, 5, Some(0)), pass.clone(), by(SECOND)]);
        wrong(vec![created(), rework, pass, by(FIRST)], 4);
    }

    #[test]
    fn a_copy_that_outlives_clear_others_is_found() {
        let others = || op(2, 3, What::ClearOthers { id: FIRST, op: 9 }, Answer::Kept(2, 0));
        let split = |ops| MODEL.split(ops);
        let by = |id| op(4, 5, What::Get(id), Answer::Data(Some(0)));
        right(split(vec![created(), others(), by(SECOND)]));
        wrong(split(vec![created(), others(), by(FIRST)]), 4);
        // For ten seconds it signs out, and then no more.
        let delete = |answer| Op { call: Call { what: What::Delete(FIRST), now: 0 }, ..op(6, 7, What::List, answer) };
        right(split(vec![created(), others(), delete(Answer::Done)]));
        wrong(split(vec![created(), others(), delete(Answer::Refused)]), 4);
        let pass = op(4, 5, What::Pass(GRACE), Answer::Done);
        let late = |answer| Op { call: Call { what: What::Delete(FIRST), now: GRACE }, ..delete(answer) };
        right(split(vec![created(), others(), pass.clone(), late(Answer::Refused)]));
        wrong(split(vec![created(), others(), pass, late(Answer::Done)]), 5);
    }

    #[test]
    fn an_id_whose_grace_is_over_signs_nobody_out_after_clear_others() {
        let at = |now: u64, op: OpOf<Module>| Op { call: Call { now, ..op.call }, ..op };
        let history = |passed: u64, answer: Answer| {
            MODEL.split(vec![
                created(),
                op(2, 3, What::Rework { id: FIRST, op: 9 }, Answer::Secret(2)),
                op(4, 5, What::Pass(passed), Answer::Done),
                at(passed, op(6, 7, What::ClearOthers { id: SECOND, op: 9 }, Answer::Kept(3, 0))),
                at(passed, op(8, 9, What::Delete(FIRST), answer)),
            ])
        };
        right(history(GRACE - 1, Answer::Done));
        wrong(history(GRACE - 1, Answer::Refused), 6);
        right(history(GRACE, Answer::Refused));
        wrong(history(GRACE, Answer::Done), 6);
    }

    #[test]
    fn a_session_that_outlives_its_time_or_dies_early_is_found() {
        let pass = |by| op(2, 3, What::Pass(by), Answer::Done);
        right(vec![created(), pass(IDLE - 1), get(4, 5, Some(0))]);
        right(vec![created(), pass(IDLE), get(4, 5, None)]);
        wrong(vec![created(), pass(IDLE), get(4, 5, Some(0))], 3);
        wrong(vec![created(), pass(IDLE - 1), get(4, 5, None)], 3);
    }
}
