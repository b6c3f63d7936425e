//! Stores and servers that break a promise on purpose, to check that the oracle notices.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use axum::{Router, body::to_bytes, extract::Request, middleware::Next, response::Response};
use http::{HeaderValue, header};
use jam_session::{
    AnyBackend, Backend, By, Clear, Created, Limit, Outcome, Owner, Record, RecordId, Since, Terms, backend::Result,
};
use tower::Service;

use super::ask::{Ask, What};
use crate::store::Plain;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sabotage {
    /// Writes what is gone.
    Upserts,
    /// Says that an update is done now and then, and does not do it.
    DropsUpdates,
    /// Says that it has ended what it has not.
    DropsEndings,
    /// Leaves one session when all are cleared.
    ClearsAllButOne,
    /// Ends also the one that is to be kept.
    ClearsTheKept,
    /// Answers now and then with what there was before.
    LoadsStale,
    /// An error is an empty session.
    LoadsNothing,
    /// Does not look at the version.
    Overwrites,
    /// Does it, and says that another was faster.
    AppliesTwice,
    /// Says that a session is stored now and then, and does not store it.
    DropsCreations,
    /// Shows not all of the list.
    ListsTooLittle,
    /// A sign of life brings back what has ended.
    TouchesRevive,
    /// An ID from before a rework lives for longer than was said.
    LongGrace,
    NoGrace,
    /// A response that fails has no cookie.
    CookiesOnlyOnSuccess,
    /// A failure signs the browser out.
    FailuresRemoveCookies,
    /// Everybody gets a cookie.
    CookiesForReaders,
    /// A response that was on its way to another browser.
    MixesResponses,
    /// Depends on the cookie, and does not say so.
    NoVary,
    /// A handler that panics takes the sign-out along.
    PanicsForget,
    /// A login that was under way survives a sign-out everywhere.
    ForgetsClears,
    /// A slow login survives the end of the session that it came with: it is made all the same.
    SlowBindsSurvive,
    /// A sign-out with an ID that a login has just replaced is answered as done, and does nothing.
    SupersededSignOutsDoNothing,
    /// The first write of a visitor removes the user's cookie that led nowhere.
    RemovesDeadCookies,
    /// A visitor's session is in the user's cookie.
    OneCookieName,
    /// A login looks at the first of several cookies, and leaves the session of the other.
    LoginsByTheFirstCookie,
    /// And so does a `clear_others`, which is then done.
    ClearsOthersByTheFirstCookie,
    /// Looks at three cookies, as if there were no more.
    HidesTheFourthCookie,
    /// A cookie that cannot be decrypted is none, and so a sign-out with it is done.
    ForeignCookiesAreNone,
    /// A login whose first answer was lost is removed, although it was tried again.
    RemovesRetriedLogins,
    /// A login that was kept since before a sign-out everywhere signs in.
    ForgetsMarks,
    /// One session more than the limit allows.
    LimitOneMore,
    /// One less.
    LimitOneLess,
    /// Above the limit the session ends that was used last, not the one that was not used for longest.
    LimitEndsTheLatest,
    /// Says that it has ended one, which lives.
    LimitEndsNone,
    /// A login is refused when there is room for one more.
    RefusesOneLess,
    /// A login is refused only above the limit.
    RefusesOneMore,
}

pub const ALL: [Sabotage; 37] = [
    Sabotage::Upserts,
    Sabotage::DropsUpdates,
    Sabotage::DropsEndings,
    Sabotage::ClearsAllButOne,
    Sabotage::ClearsTheKept,
    Sabotage::LoadsStale,
    Sabotage::LoadsNothing,
    Sabotage::Overwrites,
    Sabotage::AppliesTwice,
    Sabotage::DropsCreations,
    Sabotage::ListsTooLittle,
    Sabotage::TouchesRevive,
    Sabotage::LongGrace,
    Sabotage::NoGrace,
    Sabotage::CookiesOnlyOnSuccess,
    Sabotage::FailuresRemoveCookies,
    Sabotage::CookiesForReaders,
    Sabotage::MixesResponses,
    Sabotage::NoVary,
    Sabotage::PanicsForget,
    Sabotage::ForgetsClears,
    Sabotage::SlowBindsSurvive,
    Sabotage::SupersededSignOutsDoNothing,
    Sabotage::RemovesDeadCookies,
    Sabotage::OneCookieName,
    Sabotage::LoginsByTheFirstCookie,
    Sabotage::ClearsOthersByTheFirstCookie,
    Sabotage::HidesTheFourthCookie,
    Sabotage::ForeignCookiesAreNone,
    Sabotage::RemovesRetriedLogins,
    Sabotage::ForgetsMarks,
    Sabotage::LimitOneMore,
    Sabotage::LimitOneLess,
    Sabotage::LimitEndsTheLatest,
    Sabotage::LimitEndsNone,
    Sabotage::RefusesOneLess,
    Sabotage::RefusesOneMore,
];

impl Sabotage {
    /// The limit of sessions that it is about.
    pub fn limit(self) -> Limit {
        match self {
            Self::LimitOneMore | Self::LimitOneLess | Self::LimitEndsTheLatest | Self::LimitEndsNone => Limit::from(2),
            Self::RefusesOneLess | Self::RefusesOneMore => Limit::refuse(2),
            _ => Limit::None,
        }
    }
}

pub struct Saboteur {
    what: Sabotage,
    calls: AtomicUsize,
    before: Mutex<HashMap<RecordId, Record>>,
    /// The records in the order in which they were written last.
    written: Mutex<Vec<RecordId>>,
}

impl Saboteur {
    pub fn new(what: Sabotage) -> Self {
        Self { what, calls: AtomicUsize::new(0), before: Mutex::default(), written: Mutex::default() }
    }

    /// Each time so many calls have passed.
    fn now_and_then(&self, what: Sabotage, every: usize) -> bool {
        self.what == what && self.calls.fetch_add(1, SeqCst) % every == every - 1
    }

    pub fn load(&self, id: RecordId, loaded: Result<Option<Record>>) -> Result<Option<Record>> {
        if self.what == Sabotage::LoadsNothing && loaded.is_err() {
            return Ok(None);
        }
        if self.now_and_then(Sabotage::LoadsStale, 20)
            && let Some(before) = self.before.lock().unwrap().get(&id)
        {
            return Ok(Some(before.clone()));
        }
        if let Ok(Some(record)) = &loaded {
            self.before.lock().unwrap().insert(id, record.clone());
        }
        loaded
    }

    pub fn skips_create(&self) -> bool {
        self.now_and_then(Sabotage::DropsCreations, 20)
    }

    pub async fn create(&self, backend: &AnyBackend, record: Record, terms: Terms) -> Result<Created> {
        let more = |by: isize| match terms.limit {
            Limit::None => Limit::None,
            Limit::LeastRecent(most) => Limit::from(most.saturating_add_signed(by)),
            Limit::Refuse(most) => Limit::refuse(most.saturating_add_signed(by)),
        };
        let terms = match self.what {
            Sabotage::ForgetsClears => Terms { since: None, ..terms },
            Sabotage::ForgetsMarks if matches!(terms.since, Some(Since::Mark(_))) => Terms { since: None, ..terms },
            Sabotage::LimitOneMore | Sabotage::RefusesOneMore => Terms { limit: more(1), ..terms },
            Sabotage::LimitOneLess | Sabotage::RefusesOneLess => Terms { limit: more(-1), ..terms },
            _ => terms,
        };
        let (id, limit, retry) = (record.id, terms.limit, terms.retry);
        let there = match id.owner() {
            Some(owner) => backend.list(owner).await?,
            None => Vec::new(),
        };
        self.writes(id);
        let (limit, left_alone) = match (self.what, limit) {
            (Sabotage::LimitEndsTheLatest, Limit::LeastRecent(most)) => (Limit::None, most),
            _ => (limit, usize::MAX),
        };
        let mut created = backend.create(record, Terms { limit, ..terms }).await?;
        let Created::Done { ended, .. } = &mut created else { return Ok(created) };
        if self.what == Sabotage::RemovesRetriedLogins && retry && id.owner().is_some() {
            backend.delete(id).await?;
        }
        if there.len() >= left_alone {
            let written = self.written.lock().unwrap().clone();
            let when = |id: RecordId| written.iter().position(|written| *written == id);
            let mut ids: Vec<RecordId> = there.iter().map(|record| record.id).collect();
            ids.sort_by_key(|id| when(*id));
            for id in ids.split_off(left_alone - 1) {
                backend.delete(id).await?;
                ended.push(id);
            }
        }
        if self.what == Sabotage::LimitEndsNone {
            for record in there.into_iter().filter(|record| ended.contains(&record.id)) {
                backend.creates(record).await?;
            }
        }
        Ok(created)
    }

    fn writes(&self, id: RecordId) {
        let mut written = self.written.lock().unwrap();
        written.retain(|written| *written != id);
        written.push(id);
    }

    pub async fn update(&self, backend: &AnyBackend, expected: i64, record: Record, retry: bool) -> Result<Outcome> {
        let ends = record.ttl.is_zero();
        self.writes(record.id);
        if self.what == Sabotage::DropsEndings && ends {
            return Ok(Outcome::Done);
        }
        if !ends && self.now_and_then(Sabotage::DropsUpdates, 20) {
            return Ok(Outcome::Done);
        }
        match backend.update(expected, record.clone(), retry).await? {
            Outcome::Gone if self.what == Sabotage::Upserts && !ends => {
                backend.creates(record).await?;
                Ok(Outcome::Done)
            }
            Outcome::Conflict(current) if self.what == Sabotage::Overwrites => {
                backend.updates(current.version, record).await
            }
            Outcome::Done if !ends && self.now_and_then(Sabotage::AppliesTwice, 20) => {
                let written = backend.load(record.id).await?;
                let Some(written) = written else { return Ok(Outcome::Done) };
                let mut other = written.clone();
                other.version ^= 1;
                match backend.updates(written.version, other.clone()).await? {
                    Outcome::Done => Ok(Outcome::Conflict(other)),
                    _ => Ok(Outcome::Done),
                }
            }
            outcome => Ok(outcome),
        }
    }

    pub async fn touch(&self, backend: &AnyBackend, id: RecordId) -> Result<()> {
        let before = self.before.lock().unwrap().get(&id).cloned();
        if let Some(before) = before.filter(|_| self.what == Sabotage::TouchesRevive) {
            backend.creates(before).await?;
        }
        Ok(())
    }

    pub fn list(&self, mut listed: Vec<Record>) -> Vec<Record> {
        if self.what == Sabotage::ListsTooLittle {
            listed.pop();
        }
        listed
    }

    /// What a clear is to do.
    pub async fn clear(&self, backend: &AnyBackend, owner: Owner, clear: Clear) -> Result<Clear> {
        let by = match self.what {
            Sabotage::ClearsTheKept => clear.by.map(|by| By { keep: false, ..by }),
            Sabotage::ClearsAllButOne => {
                let listed = backend.list(owner).await?;
                listed.last().map(|record| By { id: record.id, version: record.version, keep: true })
            }
            _ => clear.by,
        };
        Ok(Clear { by, ..clear })
    }
}

/// A server that does something else with what the layer says.
pub fn around(what: Option<Sabotage>, lacks_key: bool, router: Router) -> Router {
    let Some(what) = what else { return router };
    if what == Sabotage::PanicsForget {
        return router.layer(tower::layer::layer_fn(Forgetful));
    }
    let last: &'static Mutex<Option<HeaderValue>> = Box::leak(Box::default());
    let count: &'static AtomicUsize = Box::leak(Box::default());
    router.layer(axum::middleware::from_fn(move |request: Request, next: Next| async move {
        let cookies = request.headers().get(header::COOKIE).and_then(|cookies| cookies.to_str().ok());
        let users_came = cookies.is_some_and(|cookies| cookies.contains("__Host-id="));
        let request = match what {
            Sabotage::LoginsByTheFirstCookie => {
                with_cookies(request, |ask| ask.login().is_some(), first_of_each_name).await
            }
            Sabotage::ClearsOthersByTheFirstCookie => {
                with_cookies(request, |ask| ask.what == What::ClearOthers, first_of_each_name).await
            }
            Sabotage::HidesTheFourthCookie => with_cookies(request, |_| true, first_three).await,
            Sabotage::ForeignCookiesAreNone if lacks_key => without_cookies(request),
            _ => request,
        };
        let mut response: Response = next.run(request).await;
        let failed = response.status().is_server_error();
        let headers = response.headers_mut();
        match what {
            Sabotage::CookiesOnlyOnSuccess if failed => drop(headers.remove(header::SET_COOKIE)),
            Sabotage::FailuresRemoveCookies if failed && users_came => {
                let removal = "__Host-id=; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=0";
                headers.insert(header::SET_COOKIE, HeaderValue::from_static(removal));
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            }
            Sabotage::CookiesForReaders if !headers.contains_key(header::SET_COOKIE) => {
                let n = count.fetch_add(1, SeqCst);
                let cookie =
                    format!("__Host-id-visitor=n{n:021}.{n:043}; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=60");
                headers.insert(header::SET_COOKIE, cookie.parse().unwrap());
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            }
            Sabotage::MixesResponses => {
                if let Some(cookie) = headers.get(header::SET_COOKIE).cloned() {
                    let other = last.lock().unwrap().replace(cookie);
                    if let Some(other) = other.filter(|_| count.fetch_add(1, SeqCst) % 10 == 9) {
                        headers.insert(header::SET_COOKIE, other);
                    }
                }
            }
            Sabotage::RemovesDeadCookies if users_came => {
                let set =
                    headers.get(header::SET_COOKIE).filter(|set| set.as_bytes().starts_with(b"__Host-id-visitor="));
                if let Some(set) = set.cloned() {
                    let removal = "__Host-id=; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=0";
                    headers.insert(header::SET_COOKIE, HeaderValue::from_static(removal));
                    headers.append(header::SET_COOKIE, set);
                }
            }
            Sabotage::OneCookieName => {
                let cookies: Vec<_> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
                headers.remove(header::SET_COOKIE);
                for cookie in cookies {
                    let cookie = cookie.to_str().unwrap().replace("__Host-id-visitor=", "__Host-id=");
                    headers.append(header::SET_COOKIE, cookie.parse().unwrap());
                }
            }
            Sabotage::NoVary => drop(headers.remove(header::VARY)),
            _ => {}
        }
        response
    }))
}

/// With fewer cookies, if it asks for that.
async fn with_cookies(request: Request, if_asked: fn(&Ask) -> bool, pick: fn(&str) -> Vec<&str>) -> Request {
    let (mut parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let is_asked = serde_json::from_slice(&body).is_ok_and(|ask: Ask| if_asked(&ask));
    if let Some(cookies) = parts.headers.get(header::COOKIE).filter(|_| is_asked) {
        let picked = pick(cookies.to_str().unwrap()).join("; ");
        parts.headers.insert(header::COOKIE, picked.parse().unwrap());
    }
    Request::from_parts(parts, body.into())
}

fn first_of_each_name(cookies: &str) -> Vec<&str> {
    let mut names = HashSet::new();
    cookies.split("; ").filter(|cookie| names.insert(cookie.split('=').next())).collect()
}

fn first_three(cookies: &str) -> Vec<&str> {
    cookies.split("; ").take(3).collect()
}

fn without_cookies(mut request: Request) -> Request {
    request.headers_mut().remove(header::COOKIE);
    request
}

/// A server of whose requests a panic leaves nothing, not even what they do when they are dropped.
#[derive(Clone)]
struct Forgetful<S>(S);

impl<S: Service<Request>> Service<Request> for Forgetful<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Forgotten<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        Forgotten { inner: Some(Box::pin(self.0.call(request))), is_polled: false }
    }
}

struct Forgotten<F> {
    inner: Option<Pin<Box<F>>>,
    is_polled: bool,
}

impl<F: Future> Future for Forgotten<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.is_polled = true;
        let polled = self.inner.as_mut().unwrap().as_mut().poll(cx);
        self.is_polled = false;
        polled
    }
}

impl<F> Drop for Forgotten<F> {
    fn drop(&mut self) {
        if self.is_polled {
            std::mem::forget(self.inner.take());
        }
    }
}
