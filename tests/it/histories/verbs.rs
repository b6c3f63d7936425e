//! Histories of backend methods, and the model that they are checked against.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::body::Bytes;
use jam_session::{
    Backend, Clear, Cleared, Clock, Created, Limit, Mark, Outcome, Owner, Record, RecordId, Since, Terms,
};

use super::{
    check::{Model, Op, OpOf},
    record::{Client, Recorder, Schedule, Trouble, cut},
    rough::Rough,
};
use crate::random::Random;

/// The records of one owner. What differs between stores is only how exactly they can be asked.
#[derive(Clone, Copy)]
pub struct Verbs {
    /// Whether time is the test's, and passes in the history.
    pub timed: bool,
    /// Whether a write begins to live when it is called, or later, until it is answered: not at one moment that others see.
    /// What an update says of another's record is then as old, too.
    pub lags: bool,
    /// Whether `list` sees all records at one moment.
    pub lists_at_once: bool,
    /// Whether the store can tell in which order it has heard of records, however fast they come.
    pub orders_all: bool,
}

/// A record's number, of those of one owner.
pub type At = usize;

#[derive(Clone, Copy, PartialEq)]
pub enum Call {
    Load(At),
    Create {
        at: At,
        version: i64,
        ttl: u64,
        /// The age of the request, for which a clear since then counts.
        age: Option<u64>,
        /// The clear that the mark names, if there is a mark.
        mark: Option<Option<i64>>,
        limit: Limit,
        now: u64,
        tried: Tried,
    },
    Update {
        at: At,
        expected: i64,
        version: i64,
        ttl: u64,
        now: u64,
        tried: Tried,
    },
    Touch {
        at: At,
        version: i64,
        ttl: u64,
        now: u64,
    },
    Delete(At),
    List,
    /// As `list`, in pages.
    Scan,
    /// What a `list` said of one record.
    Listed(At),
    Mark,
    Clear {
        name: i64,
        by: Option<By>,
        now: u64,
        of: u32,
    },
    /// Time passes.
    Pass(u64),
}

/// Whether a call is made again, with `retry`, if its answer is lost.
#[derive(Clone, Copy, PartialEq)]
pub enum Tried {
    Only,
    First,
    Again {
        /// When the first try was made.
        first: u64,
        /// Whether it is about a user's record.
        is_users: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Loaded(Option<Seen>),
    Listed(Vec<(At, Seen)>),
    Did(bool),
    /// These ended because of the limit.
    Created(Vec<At>),
    Late,
    Full,
    Marked(Option<i64>),
    Ended(u64),
    Done,
    Gone,
    Conflict(Seen),
}

/// The record that a clear is made by, if it has that version, and whether it is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct By {
    at: At,
    version: i64,
    keep: bool,
}

/// A version, and how long it had to live.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    pub version: i64,
    pub ttl: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    now: u64,
    records: BTreeMap<At, Kept>,
    /// All clears, the last one at the end.
    clears: Vec<Done>,
    /// The versions that were written by calls that may be made again.
    written: BTreeSet<i64>,
    /// The records in the order in which they were heard of, if that counts.
    heard: Vec<At>,
}

/// A clear that was done between these two, and how many records it ended, if that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Done {
    name: i64,
    ended: Option<u64>,
    earliest: u64,
    latest: u64,
}

/// It ends between these two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kept {
    version: i64,
    earliest: u64,
    latest: u64,
}

impl Verbs {
    fn kept(&self, now: u64, version: i64, ttl: u64, called: u64) -> Kept {
        let earliest = if self.lags { called.min(now) + ttl } else { now + ttl };
        Kept { version, earliest, latest: now + ttl }
    }

    /// What a new record may find: others that end above the limit, or as many as there may be.
    fn above(&self, state: &State, at: At, limit: Limit, called: u64) -> Vec<(Option<Vec<At>>, State)> {
        if limit == Limit::None {
            return vec![(Some(Vec::new()), state.clone())];
        }
        let mut there = vec![(Vec::new(), state.clone())];
        for other in state.records.keys().copied().filter(|other| *other != at) {
            let look = |(live, state): (Vec<At>, State)| {
                let looked = state.live_for_clear(self.lags, other, called).into_iter();
                let with = move |(kept, state): (Option<Kept>, State)| {
                    (live.iter().copied().chain(kept.map(|_| other)).collect(), state)
                };
                looked.map(with).collect::<Vec<(Vec<At>, State)>>()
            };
            there = there.into_iter().flat_map(look).collect();
        }
        let ends = |(live, state): (Vec<At>, State)| match limit {
            Limit::Refuse(most) if live.len() >= most => vec![(None, state)],
            Limit::LeastRecent(most) => {
                let many = (live.len() + 1).saturating_sub(most);
                let all = self.least_recent(live, &state, many).into_iter();
                all.map(|ended| (Some(ended), state.clone())).collect()
            }
            _ => vec![(Some(Vec::new()), state)],
        };
        there.into_iter().flat_map(ends).collect()
    }

    /// Those that were heard of longest ago; any of them, if the store cannot tell.
    fn least_recent(&self, mut live: Vec<At>, state: &State, many: usize) -> Vec<Vec<At>> {
        if self.orders_all {
            live.sort_by_key(|at| state.heard.iter().position(|heard| heard == at));
            live.truncate(many);
            live.sort_unstable();
            return vec![live];
        }
        let among = |set: &usize| set.count_ones() as usize == many;
        let chosen = |set: usize| (0..live.len()).filter(|at| set & 1 << at != 0).map(|at| live[at]).collect();
        (0..1 << live.len()).filter(among).map(chosen).collect()
    }
}

impl State {
    /// Whether a request of that age may be late, and whether it may be in time. How old it is counts from some moment after it
    /// was called. A clear that lags may become visible after the call and at the same moment of a clock that stands still.
    fn late(&self, model: &Verbs, age: Option<u64>, mark: Option<Option<i64>>, called: u64) -> (bool, bool) {
        if let Some(mark) = mark {
            let is_past = self.last_clear() != mark;
            return (is_past, !is_past);
        }
        match (age, self.clears.last()) {
            (None, _) | (_, None) => (false, true),
            (Some(_), Some(_)) if !model.timed => (true, false),
            (Some(age), Some(last)) => {
                let (cleared, arrived) = (last.latest + age, called.min(self.now));
                (cleared > arrived || model.lags && cleared == arrived, last.earliest + age <= self.now)
            }
        }
    }

    fn last_clear(&self) -> Option<i64> {
        self.clears.last().map(|last| last.name)
    }

    fn heard(mut self, model: &Verbs, at: At) -> Self {
        if model.orders_all {
            self.heard.retain(|heard| *heard != at);
            self.heard.push(at);
        }
        self
    }

    /// Whether this call was done before.
    fn was_done(&self, version: i64, tried: Tried) -> bool {
        tried != Tried::Only && self.written.contains(&version)
    }

    fn noted(mut self, version: i64, tried: Tried) -> Self {
        if tried != Tried::Only {
            self.written.insert(version);
        }
        self
    }

    /// Whether a record is there; with each answer, what is then known of it.
    fn live(&self, at: At) -> Vec<(Option<Kept>, State)> {
        match self.records.get(&at) {
            None => vec![(None, self.clone())],
            Some(kept) if kept.latest <= self.now => vec![(None, self.clone())],
            Some(kept) if kept.earliest > self.now => vec![(Some(*kept), self.clone())],
            Some(kept) => {
                let there = Kept { earliest: self.now + 1, ..*kept };
                let expired = Kept { latest: self.now, ..*kept };
                vec![(None, self.but(at, Some(expired))), (Some(there), self.but(at, Some(there)))]
            }
        }
    }

    /// The same, as a clear sees it that was called back then. One that lags counts when it decides, which may be a while
    /// before others see it.
    fn live_for_clear(&self, lags: bool, at: At, called: u64) -> Vec<(Option<Kept>, State)> {
        let mut live = self.live(at);
        if let Some(expired) =
            self.records.get(&at).filter(|kept| lags && kept.latest <= self.now && kept.latest > called)
        {
            live.push((Some(*expired), self.clone()));
        }
        live
    }

    fn but(&self, at: At, kept: Option<Kept>) -> Self {
        let mut state = self.clone();
        match kept {
            Some(kept) => state.records.insert(at, kept),
            None => {
                state.heard.retain(|heard| *heard != at);
                state.records.remove(&at)
            }
        };
        state
    }

    /// What is known after somebody saw that, or nothing, there.
    fn seen(&self, timed: bool, at: At, seen: Option<Seen>) -> Vec<Self> {
        self.seen_since(self.now, timed, at, seen)
    }

    /// The same, by somebody who may have looked at the clock a while ago.
    fn seen_since(&self, looked: u64, timed: bool, at: At, seen: Option<Seen>) -> Vec<Self> {
        let fits = |(there, state): (Option<Kept>, State)| match (there, seen) {
            (None, None) => Some(state),
            (Some(kept), Some(seen)) if kept.version == seen.version && !timed => Some(state),
            (Some(kept), Some(seen)) if kept.version == seen.version => {
                let earliest = kept.earliest.max(looked.min(state.now) + seen.ttl);
                let latest = kept.latest.min(state.now + seen.ttl);
                (earliest <= latest).then(|| state.but(at, Some(Kept { earliest, latest, ..kept })))
            }
            _ => None,
        };
        self.live(at).into_iter().filter_map(fits).collect()
    }
}

impl Model for Verbs {
    type State = State;
    type Call = Call;
    type Answer = Answer;

    fn start(&self) -> State {
        State::default()
    }

    fn step(&self, state: &State, call: &Call, answer: Option<&Answer>) -> Vec<State> {
        let may = |given: Answer| answer.is_none_or(|answer| *answer == given);
        match *call {
            Call::Pass(by) => vec![State { now: state.now + by, ..state.clone() }],
            Call::Load(at) | Call::Listed(at) => match answer {
                Some(Answer::Loaded(seen)) => state.seen(self.timed, at, *seen),
                _ => vec![state.clone()],
            },
            Call::Mark => match answer {
                Some(Answer::Marked(name)) if *name != state.last_clear() => Vec::new(),
                _ => vec![state.clone()],
            },
            // It is taken apart.
            Call::Scan => vec![state.clone()],
            Call::List => match answer {
                Some(Answer::Listed(seen)) => {
                    let mut states = vec![state.clone()];
                    let all = state.records.keys().copied().chain(seen.iter().map(|(at, _)| *at));
                    for at in all.collect::<BTreeSet<_>>() {
                        let seen = seen.iter().find(|(of, _)| *of == at).map(|(_, seen)| *seen);
                        states = states.iter().flat_map(|state| state.seen(self.timed, at, seen)).collect();
                    }
                    states
                }
                _ => vec![state.clone()],
            },
            Call::Create { at, version, ttl, age, mark, limit, now, tried } => {
                let (may_be_late, may_be_in_time) = state.late(self, age, mark, now);
                // That a user's record has ended is remembered for ten seconds.
                let was_done = state.was_done(version, tried);
                let is_known = was_done
                    && match tried {
                        Tried::Again { first, is_users } => is_users && state.now < first + 10_000,
                        Tried::Only | Tried::First => true,
                    };
                let again = || may(Answer::Created(Vec::new()));
                let add = |(ended, state): (Option<Vec<At>>, State)| {
                    let Some(ended) = ended else { return may(Answer::Full).then_some(state) };
                    // A store that asks again when its own answer is lost finds the record there, and names none.
                    (may(Answer::Created(ended.clone())) || !self.orders_all && again()).then(|| {
                        let state = ended.iter().fold(state, |state, ended| state.but(*ended, None));
                        let new = Some(self.kept(state.now, version, ttl, now));
                        state.but(at, new).heard(self, at).noted(version, tried)
                    })
                };
                let step = |(there, state): (Option<Kept>, State)| match there {
                    Some(kept) if was_done && kept.version == version => again().then_some(state).into_iter().collect(),
                    // Since it was created it may have been written to.
                    Some(_) if was_done && again() => vec![state],
                    // Never a second time: it is late, or an error.
                    None if is_known || !may_be_in_time => Vec::new(),
                    None => self.above(&state, at, limit, now).into_iter().filter_map(add).collect(),
                    Some(_) if may_be_in_time && may(Answer::Did(false)) => vec![state],
                    _ => Vec::new(),
                };
                let late = may_be_late && may(Answer::Late);
                state.live(at).into_iter().flat_map(step).chain(late.then(|| state.clone())).collect()
            }
            // It is not done a second time, and not denied.
            Call::Update { at, version, tried, .. } if state.was_done(version, tried) => match answer {
                Some(Answer::Done) => vec![state.clone()],
                Some(Answer::Gone) => state.seen(self.timed, at, None),
                _ => Vec::new(),
            },
            Call::Update { at, expected, version, ttl, now, tried } => {
                let step = |(there, state): (Option<Kept>, State)| match there {
                    None if may(Answer::Gone) => vec![state],
                    Some(kept) if kept.version == expected && may(Answer::Done) => {
                        let new = Some(self.kept(state.now, version, ttl, now)).filter(|_| ttl > 0);
                        let state = state.but(at, new);
                        let state = if new.is_some() { state.heard(self, at) } else { state };
                        vec![state.noted(version, tried)]
                    }
                    Some(kept) if kept.version != expected => match answer {
                        Some(Answer::Conflict(seen)) => {
                            let looked = if self.lags { now } else { state.now };
                            state.seen_since(looked, self.timed, at, Some(*seen))
                        }
                        Some(_) => Vec::new(),
                        None => vec![state],
                    },
                    _ => Vec::new(),
                };
                state.live(at).into_iter().flat_map(step).collect()
            }
            Call::Touch { at, version, ttl, now } => {
                let step = |(there, state): (Option<Kept>, State)| match there {
                    Some(kept) if kept.version == version => {
                        state.but(at, Some(self.kept(state.now, version, ttl, now))).heard(self, at)
                    }
                    _ => state,
                };
                state.live(at).into_iter().map(step).collect()
            }
            Call::Delete(at) => {
                let live = state.live(at).into_iter();
                live.filter(|(there, _)| may(Answer::Did(there.is_some())))
                    .map(|(_, state)| state.but(at, None))
                    .collect()
            }
            Call::Clear { name, by, now, of } => {
                let (mut ends, mut states) = (Vec::new(), Vec::new());
                if let Some(done) = state.clears.iter().rfind(|done| done.name == name) {
                    // Where not all records are looked at, the number says nothing.
                    let ended = done.ended.filter(|_| of == 0);
                    if ended.map_or(!matches!(answer, Some(Answer::Gone | Answer::Conflict(_))), |ended| {
                        may(Answer::Ended(ended))
                    }) {
                        states.push(state.clone());
                    }
                }
                match by {
                    // It must be a repeat. Of one before the last, the store may remember it or not.
                    _ if state.clears.last().is_some_and(|done| done.name == name) => {}
                    None => ends.push((0, state.clone())),
                    Some(by) => {
                        for (there, state) in state.live_for_clear(self.lags, by.at, now) {
                            match there {
                                None if may(Answer::Gone) => states.push(state),
                                Some(kept) if kept.version == by.version => ends.push((0, state)),
                                Some(_) => match answer {
                                    Some(Answer::Conflict(seen)) => {
                                        let looked = if self.lags { now } else { state.now };
                                        states.extend(state.seen_since(looked, self.timed, by.at, Some(*seen)));
                                    }
                                    Some(_) => {}
                                    None => states.push(state),
                                },
                                None => {}
                            }
                        }
                    }
                }
                let keep = by.filter(|by| by.keep).map(|by| by.at);
                for at in state.records.keys().copied().filter(|at| Some(*at) != keep) {
                    let end = |(count, state): (u64, State)| {
                        let live = state.live_for_clear(self.lags, at, now).into_iter();
                        live.map(move |(there, state)| (count + u64::from(there.is_some()), state.but(at, None)))
                            .collect::<Vec<_>>()
                    };
                    ends = ends.into_iter().flat_map(end).collect();
                }
                let done = |(count, mut state): (u64, State)| {
                    let earliest = if self.lags { now.min(state.now) } else { state.now };
                    let ended = (of == 0).then_some(count);
                    state.clears.push(Done { name, ended, earliest, latest: state.now });
                    state
                };
                let counts = |count: u64| of == 0 && may(Answer::Ended(count)) || of > 0;
                states.extend(ends.into_iter().filter(|(count, _)| counts(*count)).map(done));
                states.dedup();
                states
            }
        }
    }

    fn split(&self, ops: Vec<OpOf<Self>>) -> Vec<OpOf<Self>> {
        let is_split = |call: Call| call == Call::Scan || call == Call::List && !self.lists_at_once;
        let split = |op: OpOf<Self>| match (op.call, &op.answer) {
            (call, Some(Answer::Listed(seen))) if is_split(call) => {
                let seen = |at: At| seen.iter().find(|(of, _)| *of == at).map(|(_, seen)| *seen);
                let one = |at: At| Op { call: Call::Listed(at), answer: Some(Answer::Loaded(seen(at))), ..op.clone() };
                (0..RECORDS).map(one).collect()
            }
            _ => vec![op],
        };
        ops.into_iter().flat_map(split).collect()
    }

    fn is_read(&self, call: &Call, answer: Option<&Answer>) -> bool {
        matches!(call, Call::Load(_) | Call::List | Call::Listed(_) | Call::Scan | Call::Mark)
            || matches!(
                answer,
                Some(Answer::Did(false) | Answer::Late | Answer::Full | Answer::Gone | Answer::Conflict(_))
            )
    }

    fn subjects(&self, ops: &[OpOf<Self>]) -> Vec<At> {
        // Each record counts where there is a limit.
        if ops.iter().any(|op| matches!(op.call, Call::Create { limit, .. } if limit != Limit::None)) {
            return Vec::new();
        }
        let mut all: Vec<At> = ops.iter().filter_map(|op| op.call.at()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn without(&self, op: &OpOf<Self>, subject: At) -> Option<OpOf<Self>> {
        let mut op = op.clone();
        if op.call.at() == Some(subject) {
            return None;
        }
        match (&mut op.call, &mut op.answer) {
            (Call::List, Some(Answer::Listed(seen))) => seen.retain(|(at, _)| *at != subject),
            // That one was in its way.
            (Call::Clear { by: Some(by), .. }, Some(Answer::Gone | Answer::Conflict(_))) if by.at == subject => {
                return None;
            }
            (Call::Clear { by, of, .. }, _) => {
                *of += 1;
                by.take_if(|by| by.at == subject);
            }
            _ => {}
        }
        Some(op)
    }

    fn promise(&self, call: &Call) -> &'static str {
        match call {
            Call::Load(_) => "load: the record that was acknowledged last, unless it was ended or expired (4, 5).",
            Call::Create { .. } => {
                "create: adds once, unless a live one is there (4), or the owner was cleared since (8, 22), or has too many (20)."
            }
            Call::Update { .. } => {
                "update: writes once, only over the version that was seen, and revives nothing (4, 5)."
            }
            Call::Touch { .. } => "touch: only moves the end of the version that was seen (4, 18).",
            Call::Delete(_) => "delete: what was ended is ended once, and stays so (4).",
            Call::List | Call::Listed(_) | Call::Scan => "list, scan: every live record, and none that ended (8, 23).",
            Call::Mark => "mark: the last clear that was done (22).",
            Call::Clear { .. } => {
                "clear: ends all that was there, if it is by a version that is there, and says how many (8)."
            }
            Call::Pass(_) => "",
        }
    }
}

impl Call {
    /// The same call, made again by one who had no answer.
    fn again(self, later: u64, is_users: bool) -> Option<Self> {
        match self {
            Self::Create { at, version, ttl, age, mark, limit, now, tried: Tried::First } => {
                // The request has grown older meanwhile.
                let (age, tried) = (age.map(|age| age + (later - now)), Tried::Again { first: now, is_users });
                Some(Self::Create { at, version, ttl, age, mark, limit, now: later, tried })
            }
            Self::Update { at, expected, version, ttl, now, tried: Tried::First } => Some(Self::Update {
                at,
                expected,
                version,
                ttl,
                now: later,
                tried: Tried::Again { first: now, is_users },
            }),
            Self::Clear { name, by, of, .. } => Some(Self::Clear { name, by, now: later, of }),
            _ => None,
        }
    }

    fn at(&self) -> Option<At> {
        match *self {
            Self::Load(at) | Self::Listed(at) | Self::Delete(at) => Some(at),
            Self::Create { at, .. } | Self::Update { at, .. } | Self::Touch { at, .. } => Some(at),
            Self::List | Self::Scan | Self::Mark | Self::Clear { .. } | Self::Pass(_) => None,
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Load(at) => write!(f, "load r{at}"),
            Self::Create { at, version, ttl, age, mark, limit, tried, .. } => {
                write!(f, "{}create r{at} v{version} for {ttl} ms", tried.word())?;
                age.map_or(Ok(()), |age| write!(f, ", {age} ms old"))?;
                let name = |mark: Option<i64>| mark.map_or("none".to_owned(), |name| (name & 0xffff_ffff).to_string());
                mark.map_or(Ok(()), |mark| write!(f, ", marked {}", name(mark)))?;
                if limit == Limit::None { Ok(()) } else { write!(f, ", {limit:?}") }
            }
            Self::Update { at, expected, version, ttl, tried, .. } => {
                write!(f, "{}update r{at} v{expected} to v{version} for {ttl} ms", tried.word())
            }
            Self::Touch { at, version, ttl, .. } => write!(f, "touch r{at} v{version} for {ttl} ms"),
            Self::Delete(at) => write!(f, "delete r{at}"),
            Self::List => write!(f, "list"),
            Self::Scan => write!(f, "scan"),
            Self::Mark => write!(f, "mark"),
            Self::Listed(at) => write!(f, "list, as for r{at}"),
            Self::Clear { name, by, of, .. } => {
                write!(f, "clear {}", name & 0xffff_ffff)?;
                by.map_or(Ok(()), |by| {
                    write!(f, " by r{} v{}{}", by.at, by.version, if by.keep { ", which is kept" } else { "" })
                })?;
                if of > 0 { write!(f, ", of others too") } else { Ok(()) }
            }
            Self::Pass(by) => write!(f, "{by} ms pass"),
        }
    }
}

impl Tried {
    fn is_retry(self) -> bool {
        matches!(self, Self::Again { .. })
    }

    fn word(self) -> &'static str {
        if self.is_retry() { "again: " } else { "" }
    }
}

/// What the clients of a history share.
pub struct Stage {
    model: Verbs,
    backend: Rough,
    /// Moved by the clients, if time is theirs.
    clock: Clock,
    /// Whether calls are dropped at times.
    cuts: bool,
    trouble: Option<Trouble>,
    recorder: Arc<Recorder<Verbs>>,
    /// The names of records: of two owners, and of nobody.
    names: Vec<Vec<RecordId>>,
    owners: Vec<Option<Owner>>,
    began: Duration,
    versions: AtomicI64,
    /// The version of each that somebody saw last.
    known: Mutex<BTreeMap<(usize, At), i64>>,
    /// The name of the last clear of each part.
    clear: Mutex<BTreeMap<usize, i64>>,
    /// The last mark of each part.
    mark: Mutex<BTreeMap<usize, Mark>>,
}

/// Two owners and nobody.
pub const PARTS: usize = 3;
const RECORDS: usize = 3;
/// In milliseconds; the first ends at once, which `update` takes for an end.
const TTLS: [u64; 4] = [0, 1_000, 5_000, 60_000];
const PASSES: [u64; 4] = [1, 999, 1_000, 5_000];
/// How old a request is, in milliseconds. Before the last of these there was no history.
const AGES: [u64; 4] = [0, 1_000, 5_000, 600_000];

impl Stage {
    pub fn new(model: Verbs, backend: Rough, clock: Clock, rng: &mut Random) -> Self {
        let owner = |rng: &mut Random| format!("{:0>21}A", hex(rng.next())).parse::<Owner>().unwrap();
        let owners = vec![Some(owner(rng)), Some(owner(rng)), None];
        let sids: Vec<String> = (0..RECORDS).map(|_| format!("{:A>22}", hex(rng.next()))).collect();
        let name = |owner: &Option<Owner>, sid: &String| match owner {
            Some(owner) => format!("{owner}.{sid}").parse().unwrap(),
            None => sid.parse().unwrap(),
        };
        let names = owners.iter().map(|owner| sids.iter().map(|sid| name(owner, sid)).collect()).collect();
        Self {
            model,
            backend,
            began: clock.elapsed(),
            clock,
            cuts: false,
            trouble: None,
            recorder: Recorder::new(),
            names,
            owners,
            versions: AtomicI64::new(1),
            known: Mutex::default(),
            clear: Mutex::default(),
            mark: Mutex::default(),
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
        stage.recorder.complaint(&stage.model, PARTS)
    }

    async fn call(&self, client: usize, rng: &mut Random) {
        let part = rng.below(PARTS);
        let at = rng.below(RECORDS);
        let known = self.known.lock().unwrap().get(&(part, at)).copied().unwrap_or_default();
        let new = self.versions.fetch_add(1, SeqCst);
        let ttl = if self.model.timed { *rng.one(&TTLS).unwrap() } else { 3_600_000 };
        let now = self.now();
        let tries_again = rng.one_in(2);
        let tried = if tries_again { Tried::First } else { Tried::Only };
        let call = match rng.below(28) {
            0..4 => Call::Load(at),
            4..8 => {
                let age = if self.model.timed { *rng.one(&AGES).unwrap() } else { 600_000 };
                let mark =
                    self.mark.lock().unwrap().get(&part).copied().filter(|_| rng.one_in(2)).map(|mark| mark.clear);
                let age = (mark.is_none() && rng.one_in(2)).then_some(age);
                let limits =
                    [Limit::None, Limit::None, Limit::from(1), Limit::from(2), Limit::refuse(1), Limit::refuse(2)];
                let limit = if part < 2 { *rng.one(&limits).unwrap() } else { Limit::None };
                Call::Create { at, version: new, ttl: ttl.max(1_000), age, mark, limit, now, tried }
            }
            8..14 => {
                let ttl = if rng.one_in(8) { 0 } else { ttl };
                Call::Update { at, expected: known, version: new, ttl, now, tried }
            }
            14..16 => Call::Touch { at, version: known, ttl: ttl.max(1_000), now },
            16..18 => Call::Delete(at),
            18..21 if part < 2 => Call::List,
            24..26 => Call::Scan,
            26..28 if part < 2 => Call::Mark,
            21 if part < 2 => {
                let by = rng.one_in(2).then(|| By { at, version: known, keep: rng.one_in(2) });
                // At times it is a repeat.
                let mut last = self.clear.lock().unwrap();
                let name = last.get(&part).copied().filter(|_| rng.one_in(4)).unwrap_or_else(crate::store::name);
                last.insert(part, name);
                Call::Clear { name, by, now, of: 0 }
            }
            _ if self.model.timed && rng.one_in(2) => Call::Pass(*rng.one(&PASSES).unwrap()),
            _ => Call::Load(at),
        };
        let polls = (self.cuts && rng.one_in(10)).then(|| 1 + rng.below(3));
        if let Some(trouble) = self.trouble.as_ref().filter(|_| rng.one_in(8)) {
            trouble(rng);
        }
        let answer = self.make(client, part, call, polls).await;
        if let Some(again) = call.again(self.now(), part < 2).filter(|_| tries_again && answer.is_none()) {
            self.make(client, part, again, None).await;
        }
    }

    fn now(&self) -> u64 {
        (self.clock.elapsed() - self.began).as_millis() as u64
    }

    async fn make(&self, client: usize, part: usize, call: Call, polls: Option<usize>) -> Option<Answer> {
        let (recorder, backend) = (&self.recorder, &self.backend);
        match call {
            Call::Pass(by) => {
                let pass = async {
                    self.clock.advance(Duration::from_millis(by));
                    Some(Answer::Done)
                };
                recorder.call(client, None, call, pass).await
            }
            call => {
                let name = |at: At| self.names[part][at];
                let work = async {
                    match call {
                        Call::Load(at) => {
                            let record = backend.load(name(at)).await.ok()?;
                            Some(Answer::Loaded(record.map(|record| self.saw(part, record).1)))
                        }
                        Call::Create { at, version, ttl, age, mark, limit, tried, .. } => {
                            let age = age.map(|age| Since::Age(Duration::from_millis(age)));
                            // Any mark that names the same clear will do.
                            let taken = self.mark.lock().unwrap().get(&part).copied();
                            let mark = mark.zip(taken).map(|(clear, taken)| {
                                Since::Mark(Mark::new(clear, taken.taken).with_opening(taken.opening))
                            });
                            let terms = Terms { since: age.or(mark), limit, leaves: None, retry: tried.is_retry() };
                            Some(match backend.create(record(name(at), version, ttl), terms).await.ok()? {
                                Created::Done { ended, .. } => {
                                    let mut ended: Vec<At> = ended.into_iter().map(|id| self.at(part, id)).collect();
                                    ended.sort_unstable();
                                    Answer::Created(ended)
                                }
                                Created::Taken => Answer::Did(false),
                                Created::Late => Answer::Late,
                                Created::Full => Answer::Full,
                                other => panic!("{other:?}"),
                            })
                        }
                        Call::Mark => {
                            let mark = backend.mark(self.owners[part]?).await.ok()?;
                            self.mark.lock().unwrap().insert(part, mark);
                            Some(Answer::Marked(mark.clear))
                        }
                        Call::Scan => self.scanned(part).await.map(Answer::Listed),
                        Call::Update { at, expected, version, ttl, tried, .. } => {
                            let record = record(name(at), version, ttl);
                            Some(match backend.update(expected, record, tried.is_retry()).await.ok()? {
                                Outcome::Done => Answer::Done,
                                Outcome::Gone => Answer::Gone,
                                Outcome::Conflict(there) => Answer::Conflict(self.saw(part, there).1),
                                other => panic!("{other:?}"),
                            })
                        }
                        Call::Touch { at, version, ttl, .. } => {
                            let ttl = Duration::from_millis(ttl);
                            backend.touch(name(at), version, ttl).await.ok().map(|()| Answer::Done)
                        }
                        Call::Delete(at) => backend.delete(name(at)).await.ok().map(Answer::Did),
                        Call::Clear { name: of_clear, by, .. } => {
                            let by = by.map(|By { at, version, keep }| jam_session::By { id: name(at), version, keep });
                            let clear = Clear { name: of_clear, by };
                            Some(match backend.clear(self.owners[part]?, clear).await.ok()? {
                                Cleared::Done(ended) => Answer::Ended(ended),
                                Cleared::Gone => Answer::Gone,
                                Cleared::Conflict(there) => Answer::Conflict(self.saw(part, there).1),
                                other => panic!("{other:?}"),
                            })
                        }
                        Call::List => self.listed(part).await.map(Answer::Listed),
                        Call::Listed(_) | Call::Pass(_) => None,
                    }
                };
                let answer = recorder.call(client, Some(part), call, async { cut(polls, work).await.flatten() }).await;
                if let (Some(Answer::Done | Answer::Created(_)), Some(at)) = (&answer, call.at())
                    && let Call::Create { version, .. } | Call::Update { version, .. } = call
                {
                    self.known.lock().unwrap().insert((part, at), version);
                }
                answer
            }
        }
    }

    async fn listed(&self, part: usize) -> Option<Vec<(At, Seen)>> {
        let records = self.backend.list(self.owners[part]?).await.ok()?;
        let mut seen: Vec<_> = records.into_iter().map(|record| self.saw(part, record)).collect();
        seen.sort_by_key(|(at, _)| *at);
        Some(seen)
    }

    async fn scanned(&self, part: usize) -> Option<Vec<(At, Seen)>> {
        let (mut seen, mut after) = (BTreeMap::new(), None);
        loop {
            // A server is shared: other tests have records there, too.
            let page = self.backend.scan(after, if self.model.timed { 2 } else { 500 }).await.ok()?;
            if page.moved {
                return None;
            }
            let ours = page.records.into_iter().filter(|record| self.names[part].contains(&record.id));
            // What is shown twice is so for one reason: it was seen twice.
            seen.extend(ours.map(|record| self.saw(part, record)));
            after = page.next;
            if after.is_none() {
                return Some(seen.into_iter().collect());
            }
        }
    }

    fn at(&self, part: usize, id: RecordId) -> At {
        self.names[part].iter().position(|name| *name == id).expect("a record of somebody else")
    }

    fn saw(&self, part: usize, record: Record) -> (At, Seen) {
        let at = self.at(part, record.id);
        assert_eq!(record.payload, payload(record.version), "a record with another one's payload");
        self.known.lock().unwrap().insert((part, at), record.version);
        (at, Seen { version: record.version, ttl: record.ttl.as_millis() as u64 })
    }
}

fn record(id: RecordId, version: i64, ttl: u64) -> Record {
    Record::new(id, version, Duration::from_millis(ttl), payload(version))
}

fn payload(version: i64) -> Bytes {
    format!("{{\"written\":{version}}}").into()
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}
