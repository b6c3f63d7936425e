//! The world of the search: requests, browsers and a thief, over one store.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{Request, StatusCode, header};
use jam_session::{Backend, Clock, Limit, RecordId, Session, SessionLayer, Sessions, Terms};
use tokio::task::yield_now;
use tower::{Layer, ServiceExt, service_fn};

use super::{
    acts::{Act, Place, Who},
    start::{Cookie, Start, USERS, VISITORS, now, request, runtime, set_cookies, take},
    store::{self, Fault, Gated, Shared, Touches, What, Wrong},
};
use crate::store::record_id;

const JUMP: Duration = Duration::from_millis(10_001);

/// What is searched: who does what, from where.
#[derive(Clone)]
pub struct Case {
    pub start: &'static Start,
    pub requests: Vec<(Who, Act)>,
    pub wrong: Option<Wrong>,
    pub fault: Option<(usize, usize, Fault)>,
    pub tries_again: bool,
    /// How many sessions a user may have.
    pub limit: Limit,
    /// How often the ten seconds may be over.
    pub jumps: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// The request is sent; before that, what is on its way to the browser arrives or not.
    Send { request: usize, arrives: bool },
    /// What the request waits for happens.
    Pass(usize),
    /// Its client goes away.
    Drop(usize),
    /// The ten seconds are over.
    Jump,
    /// What is done in the background is done.
    Background,
}

/// A request and what became of it.
pub struct Sent {
    pub who: Who,
    pub act: Act,
    running: Option<Pin<Box<dyn Future<Output = Response>>>>,
    pub is_sent: bool,
    /// Its client went away.
    pub is_dropped: bool,
    pub sent_at: usize,
    pub cookies: Vec<Cookie>,
    /// Whether a cookie of another key came along.
    pub is_foreign: bool,
    /// Where the cookies led when they were loaded: whether to a session.
    pub loaded: Vec<(RecordId, usize, bool)>,
    pub status: Option<StatusCode>,
    pub left_at: usize,
    pub set_cookies: Vec<(Cookie, bool)>,
    has_arrived: bool,
}

pub struct World {
    pub case: Case,
    pub shared: Arc<Shared>,
    pub requests: Vec<Sent>,
    pub jars: [Vec<Cookie>; 2],
    pub stolen: Vec<String>,
    /// When each ID that requests came with last led to a session: how often ten seconds were over by then.
    pub led: Vec<(String, usize)>,
    pub wrongs: Vec<String>,
    /// The moves at which a request ended sessions, and its ID opened one.
    pub opened: Vec<usize>,
    /// The order in which responses left.
    left: Vec<usize>,
}

impl World {
    pub fn new(case: &Case, tells: bool) -> Self {
        let clock = Clock::manual_at(case.start.now);
        let shared = Shared::new(clock, case.requests.len(), case.wrong);
        for record in &case.start.records {
            drop(now(shared.inner.backend().create(record.clone(), Terms::default())).unwrap());
        }
        let mut state = shared.state();
        state.fault = case.fault;
        state.story = tells.then(Vec::new);
        drop(state);
        let requests = case.requests.iter().map(|(who, act)| Sent {
            who: *who,
            act: *act,
            running: None,
            is_sent: false,
            is_dropped: false,
            sent_at: 0,
            cookies: Vec::new(),
            is_foreign: false,
            loaded: Vec::new(),
            status: None,
            left_at: usize::MAX,
            set_cookies: Vec::new(),
            has_arrived: true,
        });
        Self {
            requests: requests.collect(),
            jars: case.start.jars.clone(),
            stolen: case.start.stolen.clone(),
            led: Vec::new(),
            wrongs: Vec::new(),
            opened: Vec::new(),
            left: Vec::new(),
            case: case.clone(),
            shared,
        }
    }

    /// Everything that may happen now, and what it has to do with what others do.
    pub fn moves(&self) -> Vec<(Move, Touches)> {
        let mut moves = Vec::new();
        let state = self.shared.state();
        for (at, request) in self.requests.iter().enumerate() {
            if !request.is_sent {
                let twins = &self.requests[..at];
                // Of two that do the same the first is sent first.
                if twins.iter().any(|twin| !twin.is_sent && (twin.who, twin.act) == (request.who, request.act)) {
                    continue;
                }
                let touches = self.touches_of_sending(request);
                moves.push((Move::Send { request: at, arrives: false }, touches));
                if request.who == Who::A && self.on_its_way().next().is_some() {
                    moves.push((Move::Send { request: at, arrives: true }, touches));
                }
            } else if let Some(wait) = &state.waiting[at] {
                moves.push((Move::Pass(at), wait.touches));
            }
        }
        let renews = |request: usize| self.case.requests[request].1 != Act::Write;
        let window = state
            .events
            .iter()
            .any(|event| event.jumps == state.jumps && matches!(event.what, What::Updated(_)) && renews(event.request));
        if window && state.jumps < self.case.jumps && !moves.is_empty() {
            moves.push((Move::Jump, Touches::Clock));
        }
        moves
    }

    fn touches_of_sending(&self, request: &Sent) -> Touches {
        match (request.who, request.act) {
            (_, Act::Expire) => Touches::Writes(store::Place::Owner(self.case.start.ada)),
            (Who::E, Act::Revoke) | (Who::M | Who::B, _) => Touches::Everything,
            (_, act) if act.user().is_some() => Touches::Time,
            _ => Touches::Nothing,
        }
    }

    /// Responses of A's requests that have left and not arrived.
    fn on_its_way(&self) -> impl Iterator<Item = usize> {
        self.left.iter().copied().filter(|at| !self.requests[*at].has_arrived)
    }

    pub fn step(&mut self, next: Move) {
        {
            let mut state = self.shared.state();
            state.moves += 1;
        }
        self.shared.clock.advance(Duration::from_millis(1));
        match next {
            Move::Send { request, arrives } => {
                if arrives {
                    let on_its_way: Vec<_> = self.on_its_way().collect();
                    on_its_way.into_iter().for_each(|at| self.arrive(at));
                }
                self.send(request);
            }
            Move::Pass(request) => {
                self.note_what_leads();
                if self.opens(request) {
                    let moves = self.shared.state().moves;
                    self.opened.push(moves);
                }
                self.shared.state().may_pass = true;
                self.poll(request);
            }
            Move::Drop(request) => {
                self.shared.tell(|| format!("request {}: its client goes away", request + 1));
                let sent = &mut self.requests[request];
                sent.is_dropped = true;
                let _context = runtime().enter();
                sent.running = None;
            }
            Move::Jump => {
                self.note_what_leads();
                self.shared.clock.advance(JUMP);
                self.shared.state().jumps += 1;
                self.shared.tell(|| "ten seconds are over".to_owned());
            }
            Move::Background => self.background(),
        }
    }

    /// Lets everything that was spawned run.
    pub fn background(&mut self) {
        runtime().block_on(async {
            for _ in 0..100 {
                yield_now().await;
            }
        });
    }

    /// Whether an ID leads to a session, and whose.
    pub fn leads(&self, id: &str) -> bool {
        let _context = runtime().enter();
        now(self.shared.inner.get(id)).unwrap().is_some()
    }

    pub fn is_live(&self, id: RecordId) -> bool {
        now(self.shared.inner.backend().load(id)).unwrap().is_some()
    }

    /// Whether an ID that the request came with opens a session: it leads to one, or it did less than ten seconds ago, and that
    /// lives. A window that ends while the call is under way counts as open, as long as nobody writes to the session.
    fn opens(&self, request: usize) -> bool {
        let state = self.shared.state();
        let Some(wait) = state.waiting[request].clone() else { return false };
        let writes =
            |id: RecordId| state.events.iter().any(|event| event.what == What::Updated(id) && event.at > wait.at);
        let tried = |id: RecordId| if writes(id) { state.jumps } else { wait.jumps };
        let recent = |id: &str| self.led.iter().any(|(there, when)| there == id && *when >= tried(record_id(id)));
        let cookies = &self.requests[request].cookies;
        cookies.iter().any(|(_, id)| recent(id) && self.is_live(record_id(id)))
    }

    fn note_what_leads(&mut self) {
        let jumps = self.shared.state().jumps;
        let ids: Vec<_> = self.requests.iter().flat_map(|request| &request.cookies).map(|cookie| &cookie.1).collect();
        let led: Vec<_> = ids.into_iter().filter(|id| self.leads(id)).cloned().collect();
        for id in led {
            match self.led.iter_mut().find(|(there, _)| *there == id) {
                Some((_, when)) => *when = jumps,
                None => self.led.push((id, jumps)),
            }
        }
    }

    fn send(&mut self, at: usize) {
        let (who, act) = self.case.requests[at];
        let cookies = match who {
            Who::A => self.jars[0].clone(),
            Who::B => self.jars[1].clone(),
            // Whoever has a password needs no cookie, unless he is to keep the session.
            Who::M if matches!(act, Act::FormBind | Act::OthersForm | Act::ClearForm | Act::ModuleClearForm) => vec![],
            Who::M => {
                let best = self.stolen.iter().rev().find(|id| self.leads(id)).or(self.stolen.last());
                best.map(|id| (self.cookie_name(id).to_owned(), id.clone())).into_iter().collect()
            }
            Who::E => vec![],
        };
        let is_users = |cookie: &Cookie| cookie.0 == USERS;
        let foreign = self.case.start.foreign.iter().filter(|_| who == Who::A && !cookies.iter().any(is_users));
        let all: Vec<_> = foreign.chain(&cookies).cloned().collect();
        let is_foreign = all.len() > cookies.len();
        let tells = self.shared.state().story.is_some();
        if tells {
            let ids: Vec<_> = cookies.iter().map(|(_, id)| short(id)).collect();
            self.shared.tell(|| format!("request {} ({who:?} {act:?}): is sent with {ids:?}", at + 1));
        }
        if act == Act::Expire {
            if let Some(first) = self.case.start.first {
                now(self.shared.inner.backend().delete(first)).unwrap();
            }
            let left_at = self.shared.state().moves;
            let sent = &mut self.requests[at];
            (sent.is_sent, sent.status, sent.left_at) = (true, Some(StatusCode::OK), left_at);
            return;
        }
        let passwords = if who == Who::M { 0 } else { self.shared.state().passwords };
        let gated = Gated { request: at, shared: Arc::clone(&self.shared) };
        let sessions = Sessions::over(gated).clock(self.shared.clock.clone()).sessions_per_key(self.case.limit);
        let sessions = sessions.build().unwrap();
        let place = Place {
            request: at,
            shared: Arc::clone(&self.shared),
            sessions: sessions.clone(),
            password: passwords,
            tries_again: self.case.tries_again,
        };
        let running: Pin<Box<dyn Future<Output = Response>>> = match act {
            Act::Revoke => {
                let target = self.to_revoke();
                Box::pin(async move { done(sessions.revoke("ada", target).await) })
            }
            Act::ModuleClear => Box::pin(async move { done(sessions.clear("ada").await) }),
            Act::ModuleClearGrace => Box::pin(async move { done(sessions.clear("grace").await) }),
            Act::ModuleDelete | Act::ModuleOthers if cookies.is_empty() => {
                Box::pin(async { StatusCode::UNAUTHORIZED.into_response() })
            }
            Act::ModuleDelete => {
                let id = cookies[0].1.clone();
                Box::pin(async move { done(sessions.delete(&id).await) })
            }
            Act::ModuleOthers => {
                let (name, id) = cookies[0].clone();
                Box::pin(async move {
                    match sessions.clear_others(&id).await {
                        Ok((new, _)) => [(header::SET_COOKIE, format!("{name}={}", new.as_str()))].into_response(),
                        Err(error) => error.into_response(),
                    }
                })
            }
            _ => {
                let place = Arc::new(place);
                let layer = SessionLayer::new(sessions);
                let service = layer.layer(service_fn(move |request: Request<Body>| {
                    let session = request.extensions().get::<Session>().unwrap().clone();
                    let place = Arc::clone(&place);
                    async move { Ok::<Response, Infallible>(place.handle(act, session).await.into_response()) }
                }));
                let request = request(&all);
                Box::pin(async move { service.oneshot(request).await.unwrap() })
            }
        };
        let moves = self.shared.state().moves;
        let sent = &mut self.requests[at];
        (sent.is_sent, sent.sent_at, sent.cookies, sent.running) = (true, moves, cookies, Some(running));
        sent.is_foreign = is_foreign;
        self.note_what_leads();
        self.poll(at);
    }

    pub fn cookie_name(&self, id: &str) -> &'static str {
        if record_id(id).owner().is_some() { USERS } else { VISITORS }
    }

    /// The newest session of the user that was made meanwhile, or the first.
    fn to_revoke(&self) -> String {
        let state = self.shared.state();
        let made = state.events.iter().rev().find_map(|event| match event.what {
            What::Created(id) if id.owner() == Some(self.case.start.ada) => Some(id),
            _ => None,
        });
        made.or(self.case.start.first).map_or_else(|| "none".to_owned(), |id| id.sid().to_owned())
    }

    fn poll(&mut self, at: usize) {
        let _context = runtime().enter();
        self.shared.state().polled = Some(at);
        let events = self.shared.state().events.len();
        let mut polls = 0;
        let response = loop {
            let Some(running) = &mut self.requests[at].running else { break None };
            match running.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(response) => break Some(response),
                Poll::Pending if self.shared.state().crashed[at] => {
                    // Dropped, it would do what a request does whose client went away.
                    std::mem::forget(self.requests[at].running.take());
                    break None;
                }
                Poll::Pending if self.shared.state().waiting[at].is_some() => break None,
                Poll::Pending => polls += 1,
            }
            assert!(polls < 1000, "request {at} hangs");
        };
        self.shared.state().polled = None;
        self.note_loads(at, events);
        if let Some(response) = response {
            self.requests[at].running = None;
            self.leave(at, &response);
        }
    }

    /// Where the cookies of a request led when they were loaded.
    fn note_loads(&mut self, at: usize, since: usize) {
        let events = self.shared.state().events[since..].to_vec();
        for event in events {
            let What::Loaded(id) = event.what else { continue };
            let came: Vec<_> =
                self.requests[at].cookies.iter().filter(|cookie| record_id(&cookie.1) == id).cloned().collect();
            if self.requests[at].loaded.iter().any(|(loaded, ..)| *loaded == id) || came.is_empty() {
                continue;
            }
            let leads = came.iter().any(|cookie| self.leads(&cookie.1));
            self.requests[at].loaded.push((id, event.at, leads));
        }
    }

    fn leave(&mut self, at: usize, response: &Response) {
        let cookies = set_cookies(response);
        let moves = self.shared.state().moves;
        self.shared.tell(|| {
            let says = |(cookie, is_removed): &(Cookie, bool)| match is_removed {
                true => format!("{} removed", cookie.0),
                false => short(&cookie.1),
            };
            let cookies: Vec<_> = cookies.iter().map(says).collect();
            format!("request {}: answers {} {cookies:?}", at + 1, response.status())
        });
        let sent = &mut self.requests[at];
        (sent.status, sent.left_at, sent.set_cookies) = (Some(response.status()), moves, cookies.clone());
        match sent.who {
            Who::A => {
                sent.has_arrived = cookies.is_empty();
                self.left.push(at);
            }
            Who::B => take(&mut self.jars[1], &cookies),
            Who::M => {
                self.stolen
                    .extend(cookies.into_iter().filter(|(_, is_removed)| !is_removed).map(|(cookie, _)| cookie.1));
            }
            Who::E => {}
        }
        self.check_what_leaves(at);
    }

    fn arrive(&mut self, at: usize) {
        self.shared.tell(|| format!("request {}: its response arrives", at + 1));
        let sent = &mut self.requests[at];
        sent.has_arrived = true;
        take(&mut self.jars[0], &sent.set_cookies);
    }

    /// A's cookies in the end, in each order in which the last responses may arrive.
    pub fn ends(&self) -> Vec<Vec<Cookie>> {
        let mut orders = vec![vec![]];
        for at in self.on_its_way() {
            orders = orders
                .into_iter()
                .flat_map(|order: Vec<usize>| {
                    (0..=order.len()).map(move |place| {
                        let mut order = order.clone();
                        order.insert(place, at);
                        order
                    })
                })
                .collect();
        }
        let jar = |order: Vec<usize>| {
            let mut jar = self.jars[0].clone();
            order.iter().for_each(|at| take(&mut jar, &self.requests[*at].set_cookies));
            jar
        };
        orders.into_iter().map(jar).collect()
    }
}

impl World {
    /// The same text with names that a person can tell apart.
    pub fn renamed(&self, mut text: String) -> String {
        let mut names: Vec<(String, String)> = Vec::new();
        for (at, record) in self.case.start.records.iter().enumerate() {
            names.push((record.id.sid().to_owned(), format!("session {}", at + 1)));
        }
        for event in self.shared.state().events.iter() {
            if let What::Created(id) = event.what {
                names.push((id.sid().to_owned(), format!("session of request {}", event.request + 1)));
            }
        }
        for (sid, name) in names {
            text = text.replace(&sid, &name);
        }
        text
    }
}

fn done<T>(result: Result<T, jam_session::Error>) -> Response {
    match result {
        Ok(_) => StatusCode::OK.into_response(),
        Err(error) => error.into_response(),
    }
}

/// An ID, as far as a person wants to read it.
fn short(id: &str) -> String {
    let (record, secret) = id.rsplit_once('.').unwrap();
    format!("{}#{}", record_id(id).sid(), &secret[..4.min(record.len())])
}
