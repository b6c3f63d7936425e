//! The store that the requests share. It lets one call pass at a time, and records the effect of each call.

use std::{
    collections::HashSet,
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use jam_session::{
    Backend, By, Clear, Cleared, Clock, Created, Cursor, Limit, Login, Mark, MemoryBackend, MemorySessions, Outcome,
    Owner, Page, Record, RecordId, Sessions, Since, Terms, backend::Result,
};

use super::start::now;

/// The store as one request sees it.
pub struct Gated {
    pub request: usize,
    pub shared: Arc<Shared>,
}

/// What all requests share.
pub struct Shared {
    pub inner: Sessions<MemoryBackend>,
    pub clock: Clock,
    pub wrong: Option<Wrong>,
    /// Taken before the first request.
    pub kept: Login,
    state: Mutex<State>,
}

#[derive(Default)]
pub struct State {
    /// The request that is polled by hand. What calls besides is background work, and does not wait.
    pub polled: Option<usize>,
    /// What each request waits for, and whether it may go on.
    pub waiting: Vec<Option<Wait>>,
    pub may_pass: bool,
    pub events: Vec<Event>,
    /// How many moves there were, and how often ten seconds were over.
    pub moves: usize,
    pub jumps: usize,
    /// What goes wrong: the call of a request, counted from 0.
    pub fault: Option<(usize, usize, Fault)>,
    calls: Vec<usize>,
    /// The requests whose process has died.
    pub crashed: Vec<bool>,
    /// For requests whose last call was a conflict: how often ten seconds were over before it.
    conflicts: Vec<Option<usize>>,
    /// Updates that were done: the store knows them again, as one has to whose answers are taken away.
    done: HashSet<(RecordId, i64)>,
    /// The names of the clears that were done. A repeat ends nothing.
    cleared: HashSet<(Owner, i64)>,
    /// How often the password was changed.
    pub passwords: usize,
    /// What happened, as a person reads it.
    pub story: Option<Vec<String>>,
}

/// What a request does next.
#[derive(Clone, Debug)]
pub struct Wait {
    pub touches: Touches,
    /// When it began to wait.
    pub at: usize,
    /// How often ten seconds were over when the secret was tried: after a conflict, by the time before the call that showed it.
    pub jumps: usize,
}

/// What a step reads or changes of what others see. Two steps whose order nobody can tell need not be tried in both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Touches {
    Nothing,
    Reads(Place),
    Writes(Place),
    /// The time at which a request arrives, or a login is taken, beside that of a clear.
    Time,
    Clears(Place),
    Password,
    /// The ten seconds.
    Clock,
    Everything,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    Owner(Owner),
    Record(RecordId),
}

impl Place {
    pub fn of(id: RecordId) -> Self {
        id.owner().map_or(Self::Record(id), Self::Owner)
    }
}

impl Touches {
    pub fn commutes(self, other: Self) -> bool {
        use Touches::{Clears, Clock, Everything, Nothing, Password, Reads, Time, Writes};
        match (self, other) {
            (Everything, _) | (_, Everything) => false,
            (Nothing, _) | (_, Nothing) | (Reads(_), Reads(_)) => true,
            (Password, other) | (other, Password) => other != Password,
            // Whether a login is too late is a matter of minutes.
            (Time, other) | (other, Time) => !matches!(other, Clears(_)),
            (Clock, _) | (_, Clock) => false,
            (Reads(one) | Writes(one) | Clears(one), Reads(other) | Writes(other) | Clears(other)) => one != other,
        }
    }
}

/// Something that a request did.
#[derive(Clone, Debug)]
pub struct Event {
    pub request: usize,
    pub at: usize,
    pub what: What,
    /// How often ten seconds were over when the call began.
    pub jumps: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Loaded(RecordId),
    Created(RecordId),
    Updated(RecordId),
    /// By an update with no time to live, or by `delete`.
    Ended(RecordId),
    /// Because of the limit, for a session that was created; and what that left beside it.
    Limited {
        ended: RecordId,
        left: Vec<RecordId>,
    },
    /// The limit has refused a session beside so many.
    Full(usize),
    Cleared {
        owner: Owner,
        by: Option<RecordId>,
        keeps: bool,
        ended: u64,
    },
    TookLogin,
    CheckedPassword,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// It fails, and nothing has happened.
    Before,
    /// It happens, and the answer is lost.
    After,
    /// It happens, and the process dies: neither this call nor a later one of the request ever returns.
    Crash,
}

/// What a store may get wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wrong {
    /// `clear` acts by a record of another version.
    ClearsByAnyVersion,
    /// `clear` acts although the record that it is by has ended.
    ClearsByNothing,
    /// `clear` ends the record that it is to keep.
    ClearKeepsNothing,
    /// `clear` leaves one.
    ClearForgetsOne,
    /// `create` does not ask when its owner was cleared.
    CreatesLate,
    /// `create` does not ask whether the mark names its owner's last clear.
    IgnoresMarks,
    /// `create` leaves one more than the limit allows.
    LeavesOneMore,
    /// `create` ends one more than it has to because of the limit, or refuses what it could add.
    LeavesOneLess,
    /// `create` ends the record that was written last, of those that were there.
    EndsTheLatest,
    /// `update` takes whatever version there is for the expected one.
    IgnoresVersions,
    /// `update` adds what is gone.
    Upserts,
    /// `update` with no time to live answers, and ends nothing.
    EndsNothing,
}

impl Shared {
    pub fn new(clock: Clock, requests: usize, wrong: Option<Wrong>) -> Arc<Self> {
        let inner = MemorySessions::builder().clock(clock.clone()).build().unwrap();
        let kept = now(inner.login("ada")).unwrap();
        let state = State { waiting: vec![None; requests], calls: vec![0; requests], ..State::default() };
        let state = State { conflicts: vec![None; requests], crashed: vec![false; requests], ..state };
        Arc::new(Self { inner, clock, wrong, kept, state: Mutex::new(state) })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits until the search lets the request go on.
    pub async fn pause(&self, request: usize, touches: Touches) -> usize {
        let jumps = self.state().jumps;
        if self.state().polled == Some(request) {
            let at = self.state().moves;
            let jumps = self.state().conflicts[request].unwrap_or(jumps);
            let wait = Wait { touches, at, jumps };
            AtGate { shared: self, request, wait: Some(wait), waits: false }.await;
        }
        jumps
    }

    pub fn note(&self, request: usize, jumps: usize, what: What) {
        let mut state = self.state();
        let at = state.moves;
        state.events.push(Event { request, at, what, jumps });
    }

    /// The number of the event by which that record was written last; before all of them, none.
    pub fn heard(&self, id: RecordId) -> Option<usize> {
        let state = self.state();
        state.events.iter().rposition(|event| matches!(event.what, What::Created(of) | What::Updated(of) if of == id))
    }

    /// What the story says, if one is told.
    pub fn tell(&self, line: impl FnOnce() -> String) {
        let tells = self.state().story.is_some();
        if tells {
            let line = line();
            self.state().story.as_mut().unwrap().push(line);
        }
    }

    fn fault(&self, request: usize) -> Option<Fault> {
        let mut state = self.state();
        let call = state.calls[request];
        state.calls[request] += 1;
        state.fault.filter(|(of, at, _)| (*of, *at) == (request, call)).map(|(.., fault)| fault)
    }
}

struct AtGate<'a> {
    shared: &'a Shared,
    request: usize,
    wait: Option<Wait>,
    waits: bool,
}

impl Future for AtGate<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let (shared, request) = (self.shared, self.request);
        let mut state = shared.state();
        // What was begun by a request that was dropped goes on in the background.
        if state.polled != Some(request) {
            state.waiting[request] = None;
            return Poll::Ready(());
        }
        if let Some(wait) = self.wait.take() {
            state.waiting[request] = Some(wait);
            self.waits = true;
            return Poll::Pending;
        }
        if !state.may_pass {
            return Poll::Pending;
        }
        state.may_pass = false;
        state.waiting[request] = None;
        self.waits = false;
        Poll::Ready(())
    }
}

impl Drop for AtGate<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.shared.state().waiting[self.request] = None;
        }
    }
}

impl Gated {
    /// Waits for its turn, and then does it, unless something goes wrong.
    async fn pass<T>(
        &self,
        what: &str,
        touches: Touches,
        call: impl Future<Output = Result<T>> + Send,
        effect: impl FnOnce(&T) -> (Option<What>, String) + Send,
    ) -> Result<T> {
        let jumps = self.shared.pause(self.request, touches).await;
        // What it had begun in the background ends with its process.
        if self.shared.state().crashed[self.request] {
            return pending().await;
        }
        let fault = self.shared.fault(self.request);
        let (request, of) =
            (self.request, if self.shared.state().polled.is_some() { "" } else { " in the background" });
        if fault == Some(Fault::Before) {
            self.shared.tell(|| format!("request {}: {what}{of}: fails", request + 1));
            return Err("the store is away".into());
        }
        let answer = match call.await {
            Ok(answer) => answer,
            Err(error) => {
                self.shared.tell(|| format!("request {}: {what}{of}: {error}", request + 1));
                return Err(error);
            }
        };
        let (event, says) = effect(&answer);
        let lost = match fault {
            Some(Fault::Crash) => ", and its process dies",
            Some(_) => ", and the answer is lost",
            None => "",
        };
        self.shared.tell(|| format!("request {}: {what}{of}: {says}{lost}", request + 1));
        self.shared.state().conflicts[request] = (says == "conflict").then_some(jumps);
        if let Some(event) = event {
            self.shared.note(self.request, jumps, event);
        }
        match fault {
            Some(Fault::Crash) => {
                self.shared.state().crashed[self.request] = true;
                pending().await
            }
            Some(_) => Err("the answer is lost".into()),
            None => Ok(answer),
        }
    }

    fn store(&self) -> &MemoryBackend {
        self.shared.inner.backend()
    }

    /// Also says whether it was done before.
    async fn updates(&self, expected: i64, record: Record, retry: bool) -> Result<(Outcome, bool)> {
        let (id, version) = (record.id, record.version);
        if retry && self.shared.state().done.contains(&(id, version)) {
            return Ok((Outcome::Done, true));
        }
        let there = self.store().load(id).await?;
        let outcome = match (self.shared.wrong, there) {
            (Some(Wrong::IgnoresVersions), Some(there)) => self.store().update(there.version, record, false).await?,
            (Some(Wrong::EndsNothing), Some(there)) if record.ttl.is_zero() && there.version == expected => {
                Outcome::Done
            }
            (Some(Wrong::Upserts), None) if !record.ttl.is_zero() => {
                drop(self.store().create(record, Terms::default()).await?);
                Outcome::Done
            }
            _ => self.store().update(expected, record, false).await?,
        };
        if matches!(outcome, Outcome::Done) {
            self.shared.state().done.insert((id, version));
        }
        Ok((outcome, false))
    }

    async fn creates(&self, record: Record, terms: Terms) -> Result<Created> {
        let Some(wrong) = self.shared.wrong else { return self.store().create(record, terms).await };
        let limit = match (wrong, terms.limit) {
            (Wrong::LeavesOneMore, Limit::LeastRecent(most)) => Limit::from(most + 1),
            (Wrong::LeavesOneMore, Limit::Refuse(most)) => Limit::refuse(most + 1),
            (Wrong::LeavesOneLess, Limit::LeastRecent(most)) => Limit::from(most - 1),
            (Wrong::LeavesOneLess, Limit::Refuse(most)) => Limit::refuse(most - 1),
            (Wrong::EndsTheLatest, Limit::LeastRecent(most)) if self.all_of(record.id).len() == most => {
                let latest = self.all_of(record.id).into_iter().max_by_key(|id| self.shared.heard(*id)).unwrap();
                self.store().delete(latest).await?;
                return Ok(match self.store().create(record, terms).await? {
                    Created::Done { left, .. } => Created::Done { ended: vec![latest], left },
                    other => other,
                });
            }
            (_, limit) => limit,
        };
        self.store().create(record, Terms { limit, ..terms }).await
    }

    /// All live records of the owner of this one.
    fn all_of(&self, id: RecordId) -> Vec<RecordId> {
        let all = id.owner().map(|owner| now(self.store().list(owner)).unwrap()).unwrap_or_default();
        all.into_iter().map(|record| record.id).collect()
    }

    /// Notes what ended for a new record.
    fn note_limit(&self, id: RecordId, ended: &[RecordId]) {
        let left: Vec<_> = self.all_of(id).into_iter().filter(|left| *left != id).collect();
        for ended in ended.iter().copied() {
            let jumps = self.shared.state().jumps;
            self.shared.note(self.request, jumps, What::Limited { ended, left: left.clone() });
        }
    }

    async fn clears(&self, owner: Owner, clear: Clear) -> Result<Cleared> {
        let store = self.store();
        let mut clear = clear;
        if let Some(By { id, version, keep }) = clear.by {
            match (self.shared.wrong, store.load(id).await?) {
                (Some(Wrong::ClearsByAnyVersion), Some(there)) => {
                    clear.by = Some(By { id, version: there.version, keep });
                }
                (Some(Wrong::ClearsByNothing), None) => clear.by = None,
                (Some(Wrong::ClearKeepsNothing), Some(there)) if there.version == version => {
                    clear.by = Some(By { id, version, keep: false });
                }
                _ => {}
            }
        }
        if self.shared.wrong == Some(Wrong::ClearForgetsOne) {
            let kept = clear.by.filter(|by| by.keep).map(|by| by.id);
            let all = store.list(owner).await?;
            let forgotten =
                all.into_iter().filter(|record| Some(record.id) != kept).max_by_key(|record| record.version);
            let cleared = store.clear(owner, clear).await?;
            if let (Cleared::Done(ended), Some(forgotten)) = (&cleared, forgotten)
                && *ended > 1
            {
                drop(store.create(forgotten, Terms::default()).await?);
            }
            return Ok(cleared);
        }
        store.clear(owner, clear).await
    }
}

impl Backend for Gated {
    async fn load(&self, id: RecordId) -> Result<Option<Record>> {
        let answer =
            |there: &Option<Record>| (Some(What::Loaded(id)), if there.is_some() { "found" } else { "none" }.into());
        self.pass(&format!("load {}", id.sid()), Touches::Reads(Place::of(id)), self.store().load(id), answer).await
    }

    async fn create(&self, record: Record, terms: Terms) -> Result<Created> {
        let (id, issued) = (record.id, self.shared.clock.elapsed());
        let call = async move {
            // As if calls took no time: what an age misses while it is under way is known (rule 3).
            let waited = self.shared.clock.elapsed().saturating_sub(issued);
            let since = match (terms.since, self.shared.wrong) {
                (_, Some(Wrong::CreatesLate)) | (Some(Since::Mark(_)), Some(Wrong::IgnoresMarks)) => None,
                (Some(Since::Age(age)), _) => Some(Since::Age(age + waited)),
                (since, _) => since,
            };
            self.creates(record, Terms { since, ..terms }).await
        };
        let answer = |created: &Created| {
            let event = match created {
                Created::Done { ended, .. } => {
                    self.note_limit(id, ended);
                    Some(What::Created(id))
                }
                Created::Full => Some(What::Full(self.all_of(id).len())),
                _ => None,
            };
            (event, format!("{created:?}"))
        };
        self.pass(&format!("create {}", id.sid()), Touches::Writes(Place::of(id)), call, answer).await
    }

    async fn update(&self, expected: i64, record: Record, retry: bool) -> Result<Outcome> {
        let (id, ends) = (record.id, record.ttl.is_zero());
        let call = self.updates(expected, record, retry);
        let answer = |(outcome, is_repeat): &(Outcome, bool)| match outcome {
            Outcome::Done if *is_repeat => (None, "was done".to_owned()),
            Outcome::Done if ends => (Some(What::Ended(id)), "done".to_owned()),
            Outcome::Done => (Some(What::Updated(id)), "done".to_owned()),
            Outcome::Gone => (None, "gone".to_owned()),
            _ => (None, "conflict".to_owned()),
        };
        let what = format!("{} {}", if ends { "end" } else { "update" }, id.sid());
        let updated = self.pass(&what, Touches::Writes(Place::of(id)), call, answer).await?;
        Ok(updated.0)
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> Result<()> {
        self.store().touch(id, version, ttl).await
    }

    async fn delete(&self, id: RecordId) -> Result<bool> {
        let answer = |was_there: &bool| (was_there.then_some(What::Ended(id)), was_there.to_string());
        let what = format!("delete {}", id.sid());
        self.pass(&what, Touches::Writes(Place::of(id)), self.store().delete(id), answer).await
    }

    async fn list(&self, owner: Owner) -> Result<Vec<Record>> {
        let touches = Touches::Reads(Place::Owner(owner));
        self.pass("list", touches, self.store().list(owner), |all| (None, all.len().to_string())).await
    }

    async fn clear(&self, owner: Owner, clear: Clear) -> Result<Cleared> {
        let by = clear.by.map(|by| by.id);
        let keeps = clear.by.is_some_and(|by| by.keep);
        let what = match by {
            None => "clear all".to_owned(),
            Some(id) if keeps => format!("clear all but {}", id.sid()),
            Some(id) => format!("clear all by {}", id.sid()),
        };
        let answer = |cleared: &Cleared| match cleared {
            Cleared::Done(ended) => {
                let is_first = self.shared.state().cleared.insert((owner, clear.name));
                let event = What::Cleared { owner, by, keeps, ended: *ended };
                (is_first.then_some(event), format!("{ended} have ended"))
            }
            Cleared::Gone => (None, "gone".to_owned()),
            _ => (None, "conflict".to_owned()),
        };
        self.pass(&what, Touches::Clears(Place::Owner(owner)), self.clears(owner, clear), answer).await
    }
    async fn mark(&self, owner: Owner) -> Result<Mark> {
        let touches = Touches::Reads(Place::Owner(owner));
        self.pass("mark", touches, self.store().mark(owner), |mark| (None, format!("{:?}", mark.clear))).await
    }

    async fn scan(&self, after: Option<Cursor>, most: usize) -> Result<Page> {
        let answer = |page: &Page| (None, page.records.len().to_string());
        self.pass("scan", Touches::Everything, self.store().scan(after, most), answer).await
    }
}
