//! The checks: promises 4 to 8, applied to what the requests saw and to what is left in the store.

use http::StatusCode;
use jam_session::{Backend, Limit, Owner, RecordId};

use super::{
    acts::{Act, Out, Who},
    start::{Cookie, USERS, now, runtime},
    store::{Event, What},
    world::World,
};
use crate::store::record_id;

/// What a request has made: a session, or a new ID for one.
struct Made {
    session: RecordId,
    /// By which right: the session that it came with, or else a login; and since when it had that.
    by_session: Option<RecordId>,
    since: usize,
    /// When nothing could take it back any more.
    moment: usize,
}

impl World {
    fn events(&self) -> Vec<Event> {
        self.shared.state().events.clone()
    }

    fn wrong(&mut self, what: String) {
        if !self.wrongs.contains(&what) {
            self.wrongs.push(what);
        }
    }

    fn name(&self, at: usize) -> String {
        let sent = &self.requests[at];
        format!("{:?} {:?} (request {})", sent.who, sent.act, at + 1)
    }

    /// The session that a request came with. None of several counts, unless all are of one user.
    fn base(&self, at: usize) -> Option<(RecordId, usize)> {
        let mut live = self.requests[at].loaded.iter().filter(|(.., leads)| *leads);
        let (first, when, _) = *live.next()?;
        live.all(|(id, ..)| id.owner().is_some() && id.owner() == first.owner()).then_some((first, when))
    }

    /// Whether its cookies led to several sessions of which none counts.
    fn is_refused(&self, at: usize) -> bool {
        self.base(at).is_none() && self.requests[at].loaded.iter().any(|(.., leads)| *leads)
    }

    /// Whether it was answered that the request is done. If the handler failed, it is about its sign-out.
    fn is_ok(&self, at: usize) -> bool {
        let sent = &self.requests[at];
        let done = if sent.act.spec().fails { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        sent.status == Some(done)
    }

    fn made(&self, at: usize, events: &[Event]) -> Option<Made> {
        let sent = &self.requests[at];
        if !sent.act.renews() {
            return None;
        }
        let mine = || events.iter().filter(|event| event.request == at);
        let first = |what: &dyn Fn(&What) -> bool| mine().find(|event| what(&event.what));
        let base = self.base(at).filter(|(id, _)| id.owner().is_some());
        let is_base = |id: RecordId| base.is_some_and(|(base, _)| base == id);
        let is_base_owner = |of: Owner| base.is_some_and(|(base, _)| base.owner() == Some(of));

        let took = first(&|what| *what == What::TookLogin).map(|event| event.at);
        let checked = first(&|what| *what == What::CheckedPassword).map(|event| event.at);
        if let Some(created) = first(&|what| matches!(what, What::Created(id) if id.owner().is_some())) {
            let What::Created(session) = created.what else { return None };
            // A switch by a session key, and its moment is the end of the old session.
            if let (Some((base, since)), None) = (base, sent.act.spec().login) {
                let left = mine().filter(|event| event.at > created.at).find(|event| match event.what {
                    What::Ended(id) => is_base(id),
                    What::Cleared { owner, .. } => is_base_owner(owner),
                    _ => false,
                });
                return Some(Made { session, by_session: Some(base), since, moment: left?.at });
            }
            // A login counts from when it was taken, or the password checked; with a session key, from when it was sent.
            let since = match sent.act {
                Act::KeptLogin => 0,
                _ => took.map_or(sent.sent_at, |took| took.min(checked.unwrap_or(took))),
            };
            return Some(Made { session, by_session: None, since, moment: created.at });
        }
        let mut updates = mine().filter(|event| matches!(event.what, What::Updated(id) if is_base(id)));
        // Its first update is a rotation.
        let renewed = match sent.act {
            Act::ReworkSaveBind if self.case.fault.is_some() && !self.is_ok(at) => None,
            Act::ReworkSaveBind => updates.nth(1),
            _ => updates.next_back(),
        };
        let (session, since) = base?;
        Some(Made { session, by_session: Some(session), since, moment: renewed?.at })
    }

    /// After each response: promise 4, and what is promised of this moment.
    pub fn check_what_leaves(&mut self, at: usize) {
        let events = self.events();
        self.ended_is_ended(&events, false);
        self.brings_what_is_stored(at, &events);
        self.check_what_came_of_another_key(at);
        if !self.is_ok(at) {
            self.check_what_was_refused(at, &events);
            return;
        }
        let sent = &self.requests[at];
        let (who, act, spec) = (sent.who, sent.act, sent.act.spec());
        let mine: Vec<_> = events.iter().filter(|event| event.request == at).collect();
        let users: Vec<RecordId> = sent.cookies.iter().filter(|c| c.0 == USERS).map(|c| record_id(&c.1)).collect();
        let came: Vec<RecordId> = match users.is_empty() {
            false => users.clone(),
            true => sent.cookies.iter().map(|cookie| record_id(&cookie.1)).collect(),
        };
        let leads: Vec<RecordId> =
            sent.cookies.iter().filter(|cookie| self.leads(&cookie.1)).map(|cookie| record_id(&cookie.1)).collect();
        let has_ended = mine.iter().any(|event| matches!(event.what, What::Ended(_) | What::Cleared { .. }));
        let name = self.name(at);

        // Promise 8: it did what it says.
        if act.user().is_none() && matches!(spec.out, Out::Delete | Out::Clear) {
            for id in came.iter().filter(|id| self.is_live(**id)).copied().collect::<Vec<_>>() {
                self.wrong(format!("P8: {name} answered 200, and a session that it came with lives: {}", id.sid()));
            }
        }
        let removes_users =
            self.requests[at].set_cookies.iter().any(|(cookie, is_removed)| *is_removed && cookie.0 == USERS);
        if removes_users && !has_ended {
            self.wrong(format!("P6: {name} has ended nothing, and removes the cookie of what may be a newer login"));
        }
        let may_do_nothing = act.may_end_nothing() || users.is_empty();
        if act.signs_out() && who != Who::E && !has_ended && !may_do_nothing {
            self.wrong(format!("P8: {name} answered 200 and did nothing"));
        }
        let clears = |of: Option<Owner>| {
            mine.iter().any(|event| matches!(event.what, What::Cleared { owner, .. } if Some(owner) == of))
        };
        let made = self.made(at, &events);
        if act.user().is_some() && matches!(spec.out, Out::Clear | Out::Others) {
            let old = self.base(at).and_then(|(base, _)| base.owner());
            let user = match spec.out {
                // Rule 10: beside a switch of user by a session key it is for the old user.
                Out::Clear if spec.login.is_none() && old.is_some() => old,
                _ => made.as_ref().and_then(|made| made.session.owner()),
            };
            if !clears(user) {
                self.wrong(format!("P8: {name} answered 200, and nobody of its user was signed out"));
            }
        }
        // Every session whose creation came before the clear has ended.
        for event in &mine {
            let What::Cleared { owner, by, keeps, .. } = event.what else { continue };
            let kept = by.filter(|_| keeps);
            for record in now(self.shared.inner.backend().list(owner)).unwrap() {
                let created = events.iter().find(|other| other.what == What::Created(record.id)).map(|other| other.at);
                if Some(record.id) != kept && created.is_none_or(|created| created < event.at) {
                    self.wrong(format!("P8: {name} answered 200, and {} from before it lives", record.id.sid()));
                }
            }
        }

        // Promise 7: the ID before a login leads nowhere.
        if act.user().is_some() {
            for id in leads {
                // That a login could not end other sessions does not fail it.
                let is_other = self.base(at).is_none_or(|(base, _)| base != id);
                if is_other && self.case.fault.is_some() {
                    continue;
                }
                if id.owner().is_some() || self.is_refused(at) || self.base(at).is_some_and(|(base, _)| base == id) {
                    self.wrong(format!("P7: after the 200 of {name} an ID that it came with leads to {}", id.sid()));
                }
            }
        }

        if self.requests.iter().all(|sent| !sent.act.is_unlimited()) {
            self.limit_holds(&events);
        }

        // Promise 5: the change is there.
        if act == Act::Write {
            let cookies = self.requests[at].cookies.clone();
            for (_, id) in cookies {
                if self.base(at).is_some_and(|(base, _)| base == record_id(&id))
                    && self.leads(&id)
                    && self.count(&id, at) != 1
                {
                    self.wrong(format!(
                        "P5: {name} answered 200, and its session under its ID has {} of its changes",
                        self.count(&id, at)
                    ));
                }
            }
        }
    }

    /// Promise 10: a response only sets an ID that is stored, unless another request has ended it since. After a lost answer, an
    /// error may set an ID that has been replaced.
    fn brings_what_is_stored(&mut self, at: usize, events: &[Event]) {
        if !self.is_ok(at) && self.case.fault.is_some() {
            return;
        }
        let brought = self.requests[at].set_cookies.iter().filter(|(_, is_removed)| !is_removed);
        let dead: Vec<_> =
            brought.filter(|(cookie, _)| !self.leads(&cookie.1)).map(|(cookie, _)| cookie.1.clone()).collect();
        for id in dead {
            let id = record_id(&id);
            let by_others = events.iter().filter(|event| event.request != at);
            let has_ended = by_others.clone().any(|event| match event.what {
                What::Ended(ended) | What::Updated(ended) | What::Limited { ended, .. } => ended == id,
                What::Cleared { owner, .. } => id.owner() == Some(owner),
                _ => false,
            });
            let expires = self.requests.iter().any(|sent| sent.act == Act::Expire);
            if !has_ended && !expires {
                let name = self.name(at);
                self.wrong(format!("P10: {name} answered with an ID that leads nowhere"));
            }
        }
    }

    /// A sign-out with a cookie that this process cannot decrypt is never done, and the cookie stays (rule 11).
    fn check_what_came_of_another_key(&mut self, at: usize) {
        let (sent, name) = (&self.requests[at], self.name(at));
        let (spec, is_foreign) = (sent.act.spec(), sent.is_foreign);
        let is_sign_out = sent.act.user().is_none() && spec.out != Out::Nothing;
        let removes = sent.set_cookies.iter().any(|(cookie, is_removed)| *is_removed && cookie.0 == USERS);
        if is_foreign && is_sign_out && sent.status == Some(StatusCode::OK) {
            self.wrong(format!("P8: {name} answered 200, and what its cookie leads to elsewhere lives on"));
        }
        if is_foreign && removes {
            self.wrong(format!("P6: {name} removes a cookie that it could not decrypt"));
        }
    }

    /// A `clear` beside a login by a session key that is refused acts all the same (rule 6).
    fn check_what_was_refused(&mut self, at: usize, events: &[Event]) {
        let (sent, spec) = (&self.requests[at], self.requests[at].act.spec());
        let is_refused = sent.status == Some(StatusCode::UNAUTHORIZED);
        let is_users = self.base(at).is_some_and(|(base, _)| base.owner().is_some());
        let has_ended = events
            .iter()
            .any(|event| event.request == at && matches!(event.what, What::Ended(_) | What::Cleared { .. }));
        let leads = sent.cookies.iter().any(|cookie| cookie.0 == USERS && self.leads(&cookie.1));
        if is_refused && is_users && spec.out == Out::Clear && spec.login.is_none() && leads && !has_ended {
            let name = self.name(at);
            self.wrong(format!("P8: {name} was refused its login, and its clear did nothing"));
        }
    }

    /// How often the change of a request is in the session that an ID leads to.
    fn count(&self, id: &str, at: usize) -> u64 {
        let data = now(self.shared.inner.get(id)).unwrap();
        data.and_then(|data| data.get(&format!("w{at}")).unwrap()).unwrap_or(0)
    }

    /// Promise 4. Before the end only what a client has the ID of counts: the rest may be about to be removed.
    fn ended_is_ended(&mut self, events: &[Event], is_end: bool) {
        let acked = |world: &Self, at: usize| world.is_ok(at) && world.requests[at].left_at != usize::MAX;
        for at in 0..self.requests.len() {
            let Some(made) = self.made(at, events) else { continue };
            let brings = |(cookie, _): &(Cookie, bool)| !cookie.1.is_empty() && record_id(&cookie.1) == made.session;
            // What is left of a process that died is removed by nobody, and no client has its ID.
            let stays = is_end && !self.shared.state().crashed[at];
            if !(stays || self.requests[at].set_cookies.iter().any(brings)) || !self.is_live(made.session) {
                continue;
            }
            for event in events.iter().filter(|event| event.request != at) {
                let covers = match (&event.what, made.by_session) {
                    (What::Cleared { owner, .. }, Some(base)) => base.owner() == Some(*owner),
                    (What::Cleared { owner, .. }, None) => made.session.owner() == Some(*owner),
                    (What::Ended(id) | What::Limited { ended: id, .. }, Some(base)) => base == *id,
                    _ => false,
                };
                if covers && made.since < event.at && event.at < made.moment && acked(self, event.request) {
                    let (by, out) = (self.name(at), self.name(event.request));
                    self.wrong(format!(
                        "P4: a live session, made by {by} with authority from before {out}, which was answered 200"
                    ));
                }
            }
        }
        // A thief without a password is out for good.
        let full = |world: &Self, event: &Event| {
            matches!(event.what, What::Cleared { owner, .. } if owner == world.case.start.ada)
                && world.requests[event.request].who != Who::M
                && acked(world, event.request)
        };
        let Some(out) = events.iter().find(|event| full(self, event)).map(|event| event.request) else { return };
        for id in self.stolen.clone() {
            let record = record_id(&id);
            if record.owner() != Some(self.case.start.ada) || !self.leads(&id) {
                continue;
            }
            let by_password = (0..self.requests.len()).any(|at| {
                self.requests[at].act.spec().checks_password
                    && self.made(at, events).is_some_and(|made| made.session == record)
            });
            if !by_password {
                let out = self.name(out);
                self.wrong(format!("P4: the thief is signed in after {out}, which was answered 200"));
            }
        }
    }

    /// At the end of a run.
    pub fn check_the_end(&mut self) {
        let events = self.events();
        self.ended_is_ended(&events, true);
        self.sign_outs_had_a_right(&events);
        self.writes_are_there_once(&events);
        // One to which the limit does not apply is alone in the end, if it comes to that.
        if self.case.fault.is_none() && self.requests.iter().all(|sent| !sent.is_dropped) {
            self.limit_holds(&events);
        }
        self.browser_is_signed_in();
        self.rotations_have_a_grace();
    }

    /// Promise 8: what ended sessions came with a secret that opened one.
    fn sign_outs_had_a_right(&mut self, events: &[Event]) {
        for event in events {
            let sent = &self.requests[event.request];
            if sent.who == Who::E || sent.is_dropped || self.opened.contains(&event.at) {
                continue;
            }
            let ends = match event.what {
                // A login ends the other sessions that its cookies opened when they were loaded.
                What::Ended(id) if sent.act.user().is_some() => {
                    self.base(event.request).is_some_and(|(base, _)| base == id)
                }
                What::Ended(id) => sent.cookies.iter().any(|cookie| record_id(&cookie.1) == id),
                What::Cleared { keeps: false, ended, .. } => ended > 0,
                _ => false,
            };
            // A login has a right of its own.
            let is_users = self.base(event.request).is_some_and(|(base, _)| base.owner().is_some());
            let spec = sent.act.spec();
            let by_login =
                spec.login.is_some() || spec.checks_password && !is_users || sent.act == Act::ModuleClearForm;
            let visitors = matches!(event.what, What::Ended(id) if id.owner().is_none()) && sent.act.user().is_some();
            // It has made the newest ID itself.
            let is_renewed = matches!(sent.act, Act::BindSaveDelete | Act::BindSaveClear)
                && events.iter().any(|before| {
                    before.request == event.request && before.at < event.at && matches!(before.what, What::Updated(_))
                });
            if ends && !by_login && !visitors && !is_renewed {
                let name = self.name(event.request);
                self.wrong(format!("P8: {name} ended sessions, though its ID opened none any more"));
            }
        }
    }

    /// Promise 20.
    fn limit_holds(&mut self, events: &[Event]) {
        let (most, refuses) = match self.case.limit {
            Limit::None => return,
            Limit::LeastRecent(most) => (most, false),
            Limit::Refuse(most) => (most, true),
        };
        for event in events {
            let name = self.name(event.request);
            match &event.what {
                What::Limited { ended, left } => {
                    let heard = |id: RecordId| {
                        let of_it = |what: &What| matches!(what, What::Created(of) | What::Updated(of) if *of == id);
                        let last = events.iter().rposition(|other| other.at < event.at && of_it(&other.what));
                        // Those that there were before come in the order in which they began.
                        (last, self.case.start.records.iter().position(|record| record.id == id))
                    };
                    if refuses || left.len() + 1 < most {
                        self.wrong(format!("P20: {name} has ended {}, and there was room", ended.sid()));
                    }
                    if left.iter().any(|left| heard(*left) < heard(*ended)) {
                        self.wrong(format!(
                            "P20: {name} has ended {}, and another one was not used for longer",
                            ended.sid()
                        ));
                    }
                }
                What::Full(there) if !refuses || *there < most => {
                    self.wrong(format!("P20: {name} was refused beside {there} sessions"));
                }
                _ => {}
            }
        }
        let there = now(self.shared.inner.backend().list(self.case.start.ada)).unwrap().len();
        let is_one = |made: Made| made.by_session.is_none() && made.session.owner() == Some(self.case.start.ada);
        let made_one = |at: usize| self.made(at, events).is_some_and(is_one);
        let is_limited = |at: usize| self.is_ok(at) && made_one(at) && !self.requests[at].act.is_unlimited();
        // The limit does not apply to a switch of user by a session key, even if that fails in the end.
        let is_adas = |id: RecordId| id.owner() == Some(self.case.start.ada);
        let switches = |at: usize| {
            let from_others = self.base(at).is_some_and(|(base, _)| base.owner().is_some() && !is_adas(base));
            let made = |event: &Event| matches!(event.what, What::Created(id) if event.request == at && is_adas(id));
            from_others && self.requests[at].act.spec().login.is_none() && events.iter().any(made)
        };
        let switches = (0..self.requests.len()).filter(|at| switches(*at)).count();
        // Until then there may be as many as there were.
        if there > most + switches && (0..self.requests.len()).any(is_limited) {
            self.wrong(format!("P20: {there} sessions of a user who may have {most}"));
        }
    }

    /// Promises 5 and 7.
    fn writes_are_there_once(&mut self, events: &[Event]) {
        for at in 0..self.requests.len() {
            if self.requests[at].act != Act::Write {
                continue;
            }
            let name = self.name(at);
            for record in self.all_sessions() {
                if record.1.get::<u64>(&format!("w{at}")).unwrap().unwrap_or(0) > 1 {
                    self.wrong(format!("P5: {name} is in {} twice", record.0));
                }
            }
            let Some((base, loaded)) = self.base(at) else { continue };
            let written = events.iter().find(|event| event.request == at && event.what == What::Updated(base));
            let Some(written) = written.map(|event| event.at) else { continue };
            let mut goes_on_in = Some(base);
            for other in (0..self.requests.len()).filter(|other| *other != at) {
                let Some(made) = self.made(other, events) else { continue };
                if made.session == base && loaded < made.moment && made.moment < written {
                    let other = self.name(other);
                    self.wrong(format!("P7: {name} has written to the session after {other}, by an ID from before"));
                }
                let spec = self.requests[other].act.spec();
                if made.session == base && spec.fresh {
                    goes_on_in = None;
                }
                // A visitor's session goes over into that of the login, if there is only one.
                if base.owner().is_none() && self.base(other).is_some_and(|(id, _)| id == base) {
                    // Nor if a sign-out has ended it first.
                    let moves = events.iter().any(|event| event.request == other && event.what == What::Ended(base));
                    let is_only = goes_on_in == Some(base) && !spec.fresh && moves && self.is_ok(other);
                    goes_on_in = is_only.then_some(made.session);
                }
            }
            if base.owner().is_none()
                && goes_on_in != Some(base)
                && !self.requests.iter().all(|sent| sent.who == Who::A)
            {
                continue;
            }
            let there = goes_on_in.and_then(|id| self.all_sessions().into_iter().find(|(sid, _)| sid == id.sid()));
            if let Some((sid, data)) = there
                && self.is_ok(at)
                && data.get::<u64>(&format!("w{at}")).unwrap() != Some(1)
            {
                self.wrong(format!("P5: {name} answered 200, and its change is not in {sid}"));
            }
        }
    }

    /// All users' sessions with their data, and those of visitors that cookies lead to.
    fn all_sessions(&self) -> Vec<(String, jam_session::Data)> {
        let mut all = Vec::new();
        for user in ["ada", "grace"] {
            all.extend(now(self.shared.inner.list(user)).unwrap().into_iter().map(|info| (info.handle, info.data)));
        }
        let _context = runtime().enter();
        let visitors = self.requests.iter().flat_map(|sent| &sent.cookies).filter(|cookie| cookie.0 != USERS);
        for (_, id) in visitors {
            if let Some(data) = now(self.shared.inner.get(id)).unwrap() {
                all.push((record_id(id).sid().to_owned(), data));
            }
        }
        all
    }

    /// Promise 6: within its grace the ID before a rotation leads to the session.
    fn rotations_have_a_grace(&mut self) {
        let only_rotates = self.requests.iter().all(|sent| matches!(sent.act, Act::Write | Act::Rework));
        if !only_rotates || self.shared.state().jumps > 0 {
            return;
        }
        for at in 0..self.requests.len() {
            let Some((base, _)) = self.base(at) else { continue };
            let cookies = &self.requests[at].cookies;
            if cookies.iter().any(|cookie| record_id(&cookie.1) == base && !self.leads(&cookie.1)) {
                let name = self.name(at);
                self.wrong(format!("P6: the ID that {name} came with leads nowhere, within its grace"));
            }
        }
    }

    /// Promise 6, and what goes with it: a browser that nobody signed out is signed in, in whatever order responses arrive.
    fn browser_is_signed_in(&mut self) {
        let calm = self.requests.iter().all(|sent| {
            sent.who == Who::A
                && !sent.act.signs_out()
                && sent.act.user().is_none_or(|user| user == "ada")
                && sent.act != Act::LateLogin
        });
        // Two logins may be two sessions, and one of them too many.
        if self.case.limit != Limit::None {
            return;
        }
        // With several sessions a login ends those that others of its requests may have loaded: one cookie cannot solve it.
        if self.case.start.name.starts_with("two") {
            return;
        }
        let was_in = self.case.start.name == "signed in";
        let signs_in = (0..self.requests.len()).any(|at| self.is_ok(at) && self.requests[at].act.user().is_some());
        if !calm
            || !(was_in || signs_in)
            || self.case.fault.is_some()
            || self.requests.iter().any(|sent| sent.is_dropped)
        {
            return;
        }
        for jar in self.ends() {
            let is_in = jar.iter().filter(|cookie| cookie.0 == USERS).any(|cookie| self.leads(&cookie.1));
            if !is_in {
                self.wrong("P6: nobody has signed the browser out, and it is signed out".to_owned());
            }
        }
    }
}
