//! The state machine of a session: the loaded base, the staged changes, and how many of them are being written.
//!
//! [`Pending`] has no lock, no await, no clock, no randomness and no backend. It is told what happened and asked what to do
//! next; the [driver](super::driver) waits in between. The [diagram](super) shows the steps.

use std::{mem, sync::Arc};

use crate::{
    error::{Error, ErrorKind},
    record::data::Data,
    session::{
        authority::{Authority, Plan, SignOut, Trigger},
        change::{Change, Identity, Staged},
        commit::{Commit, Committed, CookieChanges, Dropped, Progress, RequestFacts},
        presented::{Base, Besides},
        rebase::{Adopted, Discarded, Rebase},
        write_id::WriteId,
    },
    sessions::{creation::NewId, loaded::Opened},
};

/// The recorded changes of a request, and their state.
pub(crate) struct Pending {
    request: RequestFacts,
    /// What the request came with. Unlike the base, it does not change with each commit.
    authority: Authority,
    /// The session as last loaded or written. `None` until the session is loaded.
    base: Option<Base>,
    /// Whether the request has had a session. If it has none now, that session has ended.
    had_session: bool,
    /// Other sessions that the cookies lead to.
    besides: Option<Arc<Besides>>,
    /// The changes that are not known to be written.
    changes: Vec<Change>,
    staged: Staged,
    writing: Writing,
    /// A commit whose answer was lost, and that is not retried. Its secret may be the session's newest one.
    lost: Option<WriteId>,
    /// A new session whose answer was lost, and that is not retried.
    orphan: Option<Box<NewId>>,
    /// Counts how often changes were removed from the list. A rebase that began before that starts again.
    revision: u64,
    /// Why changes were dropped since the last [`outcome`](Self::outcome), if some were.
    dropped: Option<Dropped>,
    trigger: Trigger,
    response_sent: bool,
    cookies: CookieChanges,
}

/// How many of the changes, counted from the first, are being written.
enum Writing {
    Nothing,
    /// They are being written. The flag says whether this is a retry.
    InFlight(usize, WriteId, bool),
    /// They may have been written, because the answer was lost. They are written again alone and with the same ID, so that
    /// nothing is applied twice.
    Unknown(usize, WriteId),
}

impl Pending {
    #[inline]
    pub(crate) fn new(request: RequestFacts, response_sent: bool) -> Self {
        Self {
            request,
            authority: Authority::Visitor,
            base: None,
            had_session: false,
            besides: None,
            changes: Vec::new(),
            staged: Staged::default(),
            writing: Writing::Nothing,
            lost: None,
            orphan: None,
            revision: 0,
            dropped: None,
            trigger: Trigger::Response,
            response_sent,
            cookies: CookieChanges::default(),
        }
    }

    pub(crate) fn base(&self) -> Option<&Base> {
        self.base.as_ref()
    }

    /// Returns whether this request has had a session.
    pub(crate) fn had_session(&self) -> bool {
        self.had_session
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.base.is_some()
    }

    /// Returns whether it is known what a change will be applied to.
    pub(crate) fn is_known(&self) -> bool {
        self.base.is_some() || self.staged.known
    }

    /// Returns the state that the handler sees.
    pub(crate) fn staged(&self) -> &Staged {
        &self.staged
    }

    /// Returns the data that the handler sees.
    pub(crate) fn data(&self) -> Result<&Data, Error> {
        match &self.base {
            None => Err(Error::new(
                ErrorKind::NotLoaded,
                "the session was read before it was loaded: call `load().await` first",
            )),
            Some(Base::Unreadable(unreadable)) if matches!(self.staged.identity, Identity::Keep | Identity::Rework) => {
                Err(unreadable.error.clone())
            }
            Some(_) => Ok(&self.staged.data),
        }
    }

    /// Returns the session key after the changes.
    pub(crate) fn key(&self) -> Option<&str> {
        self.staged.key(self.base.as_ref().and_then(Base::key))
    }

    /// Records a change.
    pub(crate) fn stage(&mut self, change: Change) -> Result<Discarded, Error> {
        let undone = self.undo_before(&change);
        let key = self.base.as_ref().and_then(Base::key);
        self.staged.apply(&change, key)?;
        self.changes.push(change);
        Ok(undone)
    }

    /// Records a replacement of all data. Once the current data is known, only the difference is recorded.
    pub(crate) fn replace(&mut self, data: Data) -> Result<Discarded, Error> {
        let change = Change::Replace(data);
        match &self.base {
            Some(Base::Unreadable(unreadable)) if !self.staged.known => return Err(unreadable.error.clone()),
            _ if self.is_known() => {
                for change in change.resolve(&self.staged) {
                    // Setting or removing a value does not undo other changes.
                    self.stage(change)?;
                }
            }
            _ => return self.stage(change),
        }
        Ok(Vec::new())
    }

    /// Returns whether a recorded sign-out is not written yet.
    pub(crate) fn has_endings(&self) -> bool {
        self.changes.iter().any(Change::is_ending)
    }

    /// Takes the result of the load. Changes that were recorded before are applied to it.
    pub(crate) fn load(&mut self, base: Base, besides: Option<Box<Besides>>, user_id: bool) -> Adopted {
        self.authority = Authority::of(&base);
        self.besides = besides.map(Arc::from);
        self.request.user_id = user_id;
        // A request with a session came with its cookie, so a new cookie would not replace an unknown one.
        self.request.cross_site &= matches!(base, Base::Nothing);
        self.take_base(base, false, Vec::new())
    }

    /// Begins a commit. If the response failed, only the sign-outs are kept. Returns whether there is anything to write.
    pub(crate) fn begin(&mut self, trigger: Trigger) -> (bool, Discarded) {
        self.trigger = trigger;
        // A commit that was interrupted by a panic may have written.
        if let Writing::InFlight(count, id, _) = &self.writing {
            self.writing = Writing::Unknown(*count, id.clone());
        }
        let discarded = match trigger.is_kept() {
            true => Vec::new(),
            false => {
                // A recorded login means that the credential was correct, so a `clear` in the same request is for its user.
                let clears = self.changes.iter().any(Change::is_clearing);
                self.discard_all_but(|change| change.is_ending() || clears && change.is_possible_login())
            }
        };
        (!self.changes.is_empty(), discarded)
    }

    /// Returns the next commit. It asks for a write ID only if there is something to write.
    pub(crate) fn next(
        &mut self,
        new_id: &mut dyn FnMut(Plan, &Base, &Staged) -> Result<WriteId, Error>,
    ) -> Result<Option<Commit>, Error> {
        if self.base.as_ref().is_some_and(|base| Plan::discards_login(base, &self.staged, self.trigger)) {
            // Logins hold no code of the application, so they can be dropped here.
            drop(self.discard_all_but(Change::is_ending));
        }
        let Some(base) = self.base.as_ref().filter(|_| !self.changes.is_empty()) else { return Ok(None) };
        let plan = |staged: &Staged| Plan::new(self.authority, base, staged, self.trigger);
        let (changes, staged, known_id) = match &self.writing {
            Writing::Unknown(count, id) if *count < self.changes.len() => {
                let changes = self.changes[..*count].to_vec();
                let mut staged = Staged::on_base(base);
                changes.iter().try_for_each(|change| staged.apply(change, base.key()))?;
                (changes, staged, Some(id.clone()))
            }
            Writing::Unknown(_, id) => (self.changes.clone(), self.staged.clone(), Some(id.clone())),
            Writing::Nothing | Writing::InFlight(..) => (self.changes.clone(), self.staged.clone(), None),
        };
        let (plan, retry) = (plan(&staged), known_id.is_some());
        let mut write_id = match known_id {
            Some(id) => id,
            None => new_id(plan, base, &staged)?,
        };
        if let Plan::Renew { .. } | Plan::RenewOrBegin { .. } = plan
            && let Some(WriteId { secret: Some(secret), renews, .. }) = self.lost.take()
        {
            if renews {
                write_id.secret = Some(secret);
            } else {
                write_id.rotated = Some(secret.hash());
            }
        }
        // A clear goes under the same name again, so that the store knows that it is done. If anything else comes in between, it is
        // another one.
        if let Some(lost) = self.lost.take_if(|lost| lost.clears)
            && plan == Plan::SignOut(SignOut::Clear)
            && !retry
        {
            write_id.version = lost.version;
        }
        self.writing = Writing::InFlight(changes.len(), write_id.clone(), retry);
        Ok(Some(Commit {
            plan,
            base: base.clone(),
            besides: self.besides.clone(),
            changes,
            staged,
            write_id,
            retry,
            request: self.request,
            response_sent: self.response_sent,
            progress: None,
        }))
    }

    /// Takes the result of the commit: written, perhaps written, or refused.
    pub(crate) fn finish(
        &mut self,
        result: Result<Committed, Error>,
        progress: Option<Progress>,
    ) -> (Result<(), Error>, Adopted) {
        let (count, is_retry) = (self.writing.count(), matches!(self.writing, Writing::InFlight(_, _, true)));
        match (result, progress) {
            (Ok(committed), _) => {
                self.dropped = self.dropped.or(committed.dropped);
                self.take_cookies(&committed.base, committed.cookies);
                if committed.ended_others
                    && let Some(besides) = &mut self.besides
                {
                    Arc::make_mut(besides).others.clear();
                }
                let written = self.forget(count);
                // The first try may have been applied to data that the handler never saw.
                let rebased = committed.rebased || is_retry || committed.refused.is_some();
                (
                    committed.refused.map_or(Ok(()), |refused| Err(refused.error)),
                    self.take_base(committed.base, rebased, written),
                )
            }
            // The login is complete, and its cookie will be set. Only the other sessions have yet to end.
            (Err(error), Some(progress)) => {
                self.take_cookies(&progress.base, progress.cookies);
                let written = self.forget(count);
                if written.iter().any(Change::is_clearing) {
                    // Do not make another new ID: if its answer were lost, the browser would get an ID that is not valid.
                    self.changes.insert(0, Change::EndOthers { login: progress.login });
                }
                (Err(error), self.take_base(progress.base, true, written))
            }
            (Err(error), None) if error.kind() == ErrorKind::ResponseSent => {
                let refused = self.forget(count);
                let base = self.base.clone().unwrap_or(Base::Nothing);
                (Err(error), self.take_base(base, true, refused))
            }
            (Err(error), None) => {
                match mem::replace(&mut self.writing, Writing::Nothing) {
                    Writing::InFlight(count, id, _) if error.kind() == ErrorKind::Unavailable => {
                        self.writing = Writing::Unknown(count, id);
                    }
                    other => self.abandon(&other),
                }
                (Err(error), Adopted::Done(Vec::new()))
            }
        }
    }

    /// Takes the result of a rebase, or returns it if more changes were recorded while it ran, for example by a closure.
    pub(crate) fn adopt(&mut self, mut rebase: Box<Rebase>) -> Adopted {
        if rebase.revision != self.revision {
            let mut discarded = rebase.discarded;
            discarded.append(&mut rebase.resolved);
            return self.take_base(rebase.base, rebase.again, discarded);
        }
        if rebase.seen < self.changes.len() {
            rebase.todo = self.changes[rebase.seen..].to_vec();
            return Adopted::After(rebase);
        }
        self.set_base(rebase.base, rebase.staged);
        rebase.discarded.append(&mut mem::replace(&mut self.changes, rebase.resolved));
        Adopted::Done(rebase.discarded)
    }

    /// Returns the outcome of the commits since the last call.
    pub(crate) fn outcome(&mut self, trigger: Trigger) -> Result<(), Error> {
        match mem::take(&mut self.dropped) {
            Some(dropped) => dropped.outcome(trigger, self.authority),
            None => Ok(()),
        }
    }

    /// Records that the response is sent. A cookie that it does not carry can no longer be set.
    pub(crate) fn leave(&mut self, committed: bool) -> Discarded {
        self.response_sent = true;
        if committed { Vec::new() } else { self.discard_all_but(|_| false) }
    }

    /// Does the same if there is nothing to write or wait for. Otherwise returns `false`.
    pub(crate) fn leave_if_idle(&mut self) -> bool {
        let idle = self.changes.is_empty();
        self.response_sent |= idle;
        idle
    }

    /// Returns whether there are changes that no response will write.
    pub(crate) fn is_left_unsaved(&self) -> bool {
        self.response_sent && !self.changes.is_empty()
    }

    /// Returns whether the response was sent.
    pub(crate) fn response_sent(&self) -> bool {
        self.response_sent
    }

    /// Returns the cookies that the response sets and removes.
    pub(crate) fn cookies(&mut self) -> CookieChanges {
        mem::take(&mut self.cookies)
    }

    /// Returns a new session that may be stored, but whose ID no response will carry. It is returned only once.
    pub(crate) fn orphan(&mut self) -> Option<Box<NewId>> {
        self.orphan.take()
    }

    /// Returns the session if `is_due` says that its cookie ends soon, so that it needs a new secret.
    ///
    /// Not while there is anything else to write, and not with a previous secret, because the newest one is then already on
    /// its way to the browser.
    pub(crate) fn due(&self, is_due: impl FnOnce(&Opened) -> bool) -> Option<Opened> {
        match &self.base {
            Some(Base::Live(opened)) if self.cookies.set.is_none() && opened.is_newest() && is_due(opened) => {
                Some(opened.clone())
            }
            _ => None,
        }
    }

    /// Takes a new secret that no change asked for.
    pub(crate) fn rotated(&mut self, opened: Opened, cookies: CookieChanges) {
        self.base = Some(Base::Live(opened));
        self.cookies = mem::take(&mut self.cookies).then(cookies);
    }

    fn take_cookies(&mut self, base: &Base, cookies: CookieChanges) {
        self.cookies = mem::take(&mut self.cookies).then(cookies).valid_on(base);
        if base.signed_in().is_some() {
            self.authority = Authority::Session;
        }
    }

    /// Gives up a commit that is not retried.
    fn abandon(&mut self, writing: &Writing) {
        if let Writing::InFlight(_, id, _) | Writing::Unknown(_, id) = writing {
            self.lost = Some(id.clone());
            self.orphan = id.new.clone();
        }
    }

    /// Replaces the base, at once if there are no changes to apply to it.
    fn take_base(&mut self, base: Base, again: bool, discarded: Discarded) -> Adopted {
        let staged = Staged::on_base(&base);
        if self.changes.is_empty() {
            self.set_base(base, staged);
            return Adopted::Done(discarded);
        }
        let (resolved, todo) = (Vec::new(), self.changes.clone());
        let revision = self.revision;
        Adopted::After(Box::new(Rebase { base, staged, resolved, seen: 0, todo, again, revision, discarded }))
    }

    fn set_base(&mut self, base: Base, staged: Staged) {
        self.had_session |= matches!(base, Base::Live(_));
        (self.base, self.staged) = (Some(base), staged);
    }

    /// Removes changes that this change undoes, so that a failing closure does not block a sign-out. Changes that are being
    /// written, or may have been written, stay.
    fn undo_before(&mut self, change: &Change) -> Discarded {
        if !change.starts_afresh() {
            return Vec::new();
        }
        let history = self.writing.count().min(self.changes.len());
        if !self.changes[history..].iter().any(|earlier| earlier.is_undone_by(change)) {
            return Vec::new();
        }
        self.revision += 1;
        let later = self.changes.split_off(history);
        let (undone, kept): (_, Vec<_>) = later.into_iter().partition(|earlier| earlier.is_undone_by(change));
        self.changes.extend(kept);
        undone
    }

    fn discard_all_but(&mut self, is_kept: impl Fn(&Change) -> bool) -> Discarded {
        let (kept, discarded) = mem::take(&mut self.changes).into_iter().partition(is_kept);
        self.changes = kept;
        let writing = mem::replace(&mut self.writing, Writing::Nothing);
        self.abandon(&writing);
        self.revision += 1;
        self.staged = self.base.as_ref().map(Staged::on_base).unwrap_or_default();
        let key = self.base.as_ref().and_then(Base::key);
        for change in &self.changes {
            // A failing change fails at the commit.
            let _ = self.staged.apply(change, key);
        }
        discarded
    }

    /// Removes the first changes, which are done.
    fn forget(&mut self, count: usize) -> Discarded {
        self.revision += 1;
        self.writing = Writing::Nothing;
        if count >= self.changes.len() {
            return mem::take(&mut self.changes);
        }
        self.changes.drain(..count).collect()
    }
}

impl Writing {
    fn count(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::InFlight(count, ..) | Self::Unknown(count, _) => *count,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        random::{STEP, mix, random_version},
        record::value,
        session::{authority::Then, commit::Refused},
        sessions::loaded::{Loaded, sample},
    };

    fn data(value: serde_json::Value) -> Data {
        Data::from_serialize(value).unwrap()
    }

    fn loaded(version: i64, data: Data) -> Base {
        Base::Live(opened(version, data))
    }

    fn opened(version: i64, data: Data) -> Opened {
        let opened = sample(1, Some("ada"), data);
        opened.at(Arc::new(Loaded { version, ..Loaded::clone(&opened.loaded) }))
    }

    fn done(base: Base) -> Committed {
        Committed::kept(base)
    }

    /// Without names and secrets, which the core never looks at.
    fn write_id(plan: Plan, _: &Base, _: &Staged) -> Result<WriteId, Error> {
        let clears = plan == Plan::SignOut(SignOut::Clear);
        Ok(WriteId { version: random_version(), secret: None, renews: false, clears, rotated: None, new: None })
    }

    fn lost() -> Error {
        Error::too_late()
    }

    fn set(name: &str, value: u64) -> Change {
        Change::Set(name.into(), value::json(value).unwrap())
    }

    fn add(name: &str, amount: u64) -> Change {
        let add = Change::modifier(move |n: Option<u64>| n.unwrap_or(0) + amount);
        Change::Modify(name.into(), add, None)
    }

    /// What [`Session`](crate::Session) does for a change: closures run outside of [`Pending`].
    fn stage(pending: &mut Pending, change: Change) {
        let resolved = if pending.is_known() { change.resolve(pending.staged()) } else { vec![change] };
        for change in resolved {
            pending.stage(change).unwrap();
        }
    }

    fn run(pending: &mut Pending, mut adopted: Adopted) {
        while let Adopted::After(mut rebase) = adopted {
            rebase.run();
            adopted = pending.adopt(rebase);
        }
    }

    fn load(base: Base) -> Pending {
        let mut pending = Pending::new(RequestFacts::default(), false);
        let adopted = pending.load(base, None, false);
        run(&mut pending, adopted);
        pending
    }

    fn next(pending: &mut Pending) -> Option<Commit> {
        pending.next(&mut write_id).unwrap()
    }

    fn finish(pending: &mut Pending, result: Result<Committed, Error>) -> Result<(), Error> {
        let (result, adopted) = pending.finish(result, None);
        run(pending, adopted);
        result
    }

    fn seen(pending: &Pending, name: &str) -> Option<u64> {
        pending.staged().data.get(name).unwrap()
    }

    #[test]
    fn nothing_recorded_is_nothing_to_write() {
        let mut pending = load(loaded(1, data(json!({"a": 1}))));
        let (anything, _) = pending.begin(Trigger::Response);
        assert!(!anything && pending.leave_if_idle());
        let mut asked = false;
        let commit = pending.next(&mut |plan, base, staged| {
            asked = true;
            write_id(plan, base, staged)
        });
        assert!(commit.unwrap().is_none() && !asked);
    }

    #[test]
    fn what_was_recorded_before_the_load_is_applied_to_what_is_loaded() {
        let mut pending = Pending::new(RequestFacts::default(), false);
        stage(&mut pending, add("n", 2));
        stage(&mut pending, set("a", 1));
        assert_eq!(pending.data().err().unwrap().kind(), ErrorKind::NotLoaded);
        let adopted = pending.load(loaded(1, data(json!({"n": 40}))), None, false);
        run(&mut pending, adopted);
        assert_eq!((seen(&pending, "n"), seen(&pending, "a")), (Some(42), Some(1)));
    }

    #[test]
    fn what_is_recorded_during_a_commit_waits_for_the_next() {
        let mut pending = load(loaded(1, data(json!({}))));
        stage(&mut pending, set("a", 1));
        let commit = next(&mut pending).unwrap();
        stage(&mut pending, set("b", 2));
        finish(&mut pending, Ok(done(loaded(2, commit.staged.data.clone())))).unwrap();
        assert_eq!((seen(&pending, "a"), seen(&pending, "b")), (Some(1), Some(2)));
        let commit = next(&mut pending).unwrap();
        assert_eq!(commit.changes.len(), 1);
        finish(&mut pending, Ok(done(loaded(3, commit.staged.data.clone())))).unwrap();
        assert!(next(&mut pending).is_none());
    }

    #[test]
    fn a_lost_answer_is_asked_for_again_alone_and_under_the_same_id() {
        let mut pending = load(loaded(1, data(json!({"n": 1}))));
        stage(&mut pending, add("n", 1));
        let first = next(&mut pending).unwrap();
        assert_eq!(finish(&mut pending, Err(lost())).unwrap_err().kind(), ErrorKind::Unavailable);
        stage(&mut pending, set("later", 1));
        let again = next(&mut pending).unwrap();
        assert_eq!(again.write_id.version, first.write_id.version);
        assert_eq!(again.changes.len(), 1);
        assert!(again.staged.data.same_as(&first.staged.data));
        finish(&mut pending, Ok(done(loaded(2, again.staged.data.clone())))).unwrap();
        let rest = next(&mut pending).unwrap();
        assert_ne!(rest.write_id.version, first.write_id.version);
        assert_eq!((seen(&pending, "n"), seen(&pending, "later")), (Some(2), Some(1)));
    }

    #[test]
    fn after_a_lost_answer_closures_run_on_what_was_really_stored() {
        let mut pending = load(loaded(1, data(json!({"n": 1}))));
        stage(&mut pending, add("n", 1));
        next(&mut pending).unwrap();
        finish(&mut pending, Err(lost())).unwrap_err();
        stage(&mut pending, add("n", 10));
        next(&mut pending).unwrap();
        // The first try was applied to what another request had written: the sum is 6, not 2.
        finish(&mut pending, Ok(done(loaded(2, data(json!({"n": 6})))))).unwrap();
        assert_eq!(seen(&pending, "n"), Some(16));
    }

    #[test]
    fn what_is_refused_stays_recorded_under_another_id() {
        let mut pending = load(loaded(1, data(json!({}))));
        stage(&mut pending, set("a", 1));
        let first = next(&mut pending).unwrap();
        let refused = Err(Error::new(ErrorKind::TooLarge, "it is too large"));
        assert_eq!(finish(&mut pending, refused).unwrap_err().kind(), ErrorKind::TooLarge);
        let again = next(&mut pending).unwrap();
        assert_ne!(again.write_id.version, first.write_id.version);
        assert_eq!(again.changes.len(), 1);
    }

    #[test]
    fn what_would_need_a_cookie_after_the_response_is_forgotten() {
        let mut pending = load(loaded(1, data(json!({"n": 1}))));
        pending.leave(true);
        stage(&mut pending, Change::Rework);
        assert!(next(&mut pending).unwrap().response_sent);
        stage(&mut pending, add("n", 1));
        let refused = Err(Error::new(ErrorKind::ResponseSent, "the response has left"));
        assert!(finish(&mut pending, refused).is_err());
        let commit = next(&mut pending).unwrap();
        assert!(commit.staged.identity == Identity::Keep && commit.changes.len() == 1);
        assert_eq!(seen(&pending, "n"), Some(2));
    }

    #[test]
    fn after_a_failure_only_the_sign_outs_are_left() {
        let mut pending = load(loaded(1, data(json!({"n": 1}))));
        for change in [set("n", 9), Change::Delete, Change::Bind("ada".into())] {
            stage(&mut pending, change);
        }
        let (anything, discarded) = pending.begin(Trigger::Failure);
        assert!(anything && discarded.len() == 1 && pending.has_endings());
        let commit = next(&mut pending).unwrap();
        assert!(matches!(commit.changes[..], [Change::Delete]));
        assert_eq!(commit.plan, Plan::SignOut(SignOut::Delete));
    }

    #[test]
    fn a_clear_whose_answer_was_lost_keeps_its_name_after_a_failure() {
        let mut pending = load(loaded(1, data(json!({"n": 1}))));
        stage(&mut pending, set("n", 9));
        stage(&mut pending, Change::Clear);
        pending.begin(Trigger::Save);
        let first = next(&mut pending).unwrap();
        let (result, adopted) = pending.finish(Err(lost()), None);
        run(&mut pending, adopted);
        assert!(result.is_err());
        pending.begin(Trigger::Failure);
        let again = next(&mut pending).unwrap();
        assert_eq!(again.plan, Plan::SignOut(SignOut::Clear));
        assert_eq!(again.write_id.version, first.write_id.version);
    }

    /// The session keeps its data and its idle timeout, and a sign-out beside the login counts.
    #[test]
    fn after_a_failure_a_login_in_place_leaves_nothing_behind() {
        let create = || Change::Create("ada".into(), data(json!({"new": 1})));
        let [ada, grace] = ["ada", "grace"].map(|key| Change::Bind(key.into()));
        for changes in [
            vec![Change::ClearOthers, create()],
            vec![create(), Change::ClearOthers],
            vec![grace, ada.clone(), Change::ClearOthers],
        ] {
            let mut pending = load(loaded(1, data(json!({"n": 1}))));
            changes.into_iter().for_each(|change| stage(&mut pending, change));
            pending.begin(Trigger::Failure);
            let commit = next(&mut pending).unwrap();
            assert!(matches!(commit.changes[..], [Change::ClearOthers]));
            assert_eq!(commit.plan, Plan::Renew { login: false, then: Then::EndOthers });
            assert!(commit.staged.data.same_as(&data(json!({"n": 1}))) && !commit.staged.known);
        }
        let mut pending = load(loaded(1, data(json!({"n": 1}))));
        for change in [Change::Delete, Change::ClearOthers, ada] {
            stage(&mut pending, change);
        }
        pending.begin(Trigger::Failure);
        assert_eq!(next(&mut pending).unwrap().plan, Plan::SignOut(SignOut::Clear));
    }

    /// Rule 9: that the login was recorded says that the credential was right.
    #[test]
    fn after_a_failure_a_login_beside_a_clear_is_made_all_the_same() {
        let mut pending = load(Base::Nothing);
        for change in [set("n", 9), Change::ClearOthers, Change::Bind("ada".into())] {
            stage(&mut pending, change);
        }
        pending.begin(Trigger::Failure);
        let commit = next(&mut pending).unwrap();
        assert!(matches!(commit.changes[..], [Change::ClearOthers, Change::Bind(_)]));
        assert_eq!(commit.plan, Plan::Begin { then: Then::EndAll });
        // Not one that nobody can make.
        let mut pending = load(Base::Nothing);
        stage(&mut pending, Change::Clear);
        stage(&mut pending, Change::Bind(String::new().into()));
        pending.begin(Trigger::Failure);
        assert!(matches!(next(&mut pending).unwrap().changes[..], [Change::Clear]));
    }

    #[test]
    fn a_login_whose_second_half_failed_is_not_made_again() {
        let mut pending = load(loaded(1, data(json!({"n": 1}))));
        for change in [add("n", 1), Change::Bind("ada".into()), Change::Clear] {
            stage(&mut pending, change);
        }
        let commit = next(&mut pending).unwrap();
        assert_eq!(commit.plan, Plan::Renew { login: true, then: Then::EndOthers });
        let cookies = CookieChanges { remove_visitor: true, ..CookieChanges::default() };
        let progress = Progress { base: loaded(2, data(json!({"n": 2}))), cookies, login: true };
        let (result, adopted) = pending.finish(Err(lost()), Some(progress));
        run(&mut pending, adopted);
        assert!(result.is_err() && pending.cookies().remove_visitor);
        // What is left to do is to end the others. The increment is not done twice.
        let commit = next(&mut pending).unwrap();
        assert!(commit.plan == Plan::EndOthers { login: true } && !commit.retry);
        assert_eq!(seen(&pending, "n"), Some(2));
    }

    /// Rule 6: once it was reported, it is dropped with what was recorded beside it.
    #[test]
    fn a_refused_login_is_reported_once() {
        let mut pending = load(loaded(1, data(json!({}))));
        stage(&mut pending, set("a", 1));
        stage(&mut pending, Change::Bind("ada".into()));
        next(&mut pending).unwrap();
        stage(&mut pending, set("later", 1));
        let refused = Some(Refused::not_newest("it is refused"));
        let base = loaded(2, data(json!({"b": 1})));
        let result = finish(&mut pending, Ok(Committed { refused, ..done(base) }));
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unauthorized);
        assert_eq!((seen(&pending, "a"), seen(&pending, "b"), seen(&pending, "later")), (None, Some(1), Some(1)));
        assert_eq!(next(&mut pending).unwrap().plan, Plan::Write);
    }

    #[test]
    fn a_commit_that_panicked_may_have_written() {
        let mut pending = load(loaded(1, data(json!({}))));
        stage(&mut pending, set("a", 1));
        let first = next(&mut pending).unwrap();
        // It is never finished.
        pending.begin(Trigger::Response);
        assert_eq!(next(&mut pending).unwrap().write_id.version, first.write_id.version);
    }

    #[test]
    fn a_sign_out_undoes_a_closure_that_fails_unless_it_is_under_way() {
        let fails = || Change::Failed(Error::new(ErrorKind::Data, "it fails"));
        let mut pending = load(loaded(1, data(json!({}))));
        stage(&mut pending, set("a", 1));
        pending.changes.push(fails());
        let undone = pending.stage(Change::Delete).unwrap();
        assert!(undone.len() == 2 && pending.changes.len() == 1);

        let mut pending = load(loaded(1, data(json!({}))));
        stage(&mut pending, set("a", 1));
        next(&mut pending).unwrap();
        pending.changes.push(fails());
        let undone = pending.stage(Change::Delete).unwrap();
        assert!(undone.len() == 1 && pending.changes.len() == 2);
    }

    #[test]
    fn changes_to_a_session_that_is_gone_are_reported_once() {
        let mut pending = load(loaded(1, data(json!({}))));
        stage(&mut pending, set("a", 1));
        let commit = next(&mut pending).unwrap();
        let gone = Base::Gone(opened(1, commit.staged.data.clone()));
        finish(&mut pending, Ok(Committed { dropped: Some(Dropped::Gone), ..done(gone) })).unwrap();
        assert_eq!(pending.outcome(Trigger::Save).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(pending.outcome(Trigger::Save).is_ok());
    }

    #[test]
    fn only_a_request_without_a_session_is_barred_from_beginning_one() {
        for (base, is_barred) in [(Base::Nothing, true), (loaded(1, data(json!({}))), false), (Base::Refused, false)] {
            let mut pending = Pending::new(RequestFacts { cross_site: true, ..RequestFacts::default() }, false);
            stage(&mut pending, set("a", 1));
            let adopted = pending.load(base, None, false);
            run(&mut pending, adopted);
            assert_eq!(next(&mut pending).unwrap().request.cross_site, is_barred);
        }
    }

    #[test]
    fn what_another_site_wrote_is_reported_once() {
        let mut pending = Pending::new(RequestFacts { cross_site: true, ..RequestFacts::default() }, false);
        let adopted = pending.load(Base::Nothing, None, false);
        run(&mut pending, adopted);
        stage(&mut pending, set("a", 1));
        next(&mut pending).unwrap();
        finish(&mut pending, Ok(Committed { dropped: Some(Dropped::CrossSite), ..done(Base::Nothing) })).unwrap();
        assert!(pending.staged().data.is_empty() && next(&mut pending).is_none());
        assert_eq!(pending.outcome(Trigger::Save).unwrap_err().kind(), ErrorKind::CrossSite);
        assert!(pending.outcome(Trigger::Save).is_ok());
    }

    #[test]
    fn what_is_recorded_while_a_rebase_runs_is_not_forgotten() {
        let mut pending = load(loaded(1, data(json!({"n": 1}))));
        stage(&mut pending, add("n", 1));
        next(&mut pending).unwrap();
        stage(&mut pending, add("n", 10));
        // Another request has written in the meantime.
        let committed = Committed { rebased: true, ..done(loaded(3, data(json!({"n": 6})))) };
        let (_, Adopted::After(mut rebase)) = pending.finish(Ok(committed), None) else {
            panic!("nothing is left to apply")
        };
        rebase.run();
        // A closure, or another clone, records more while the rebase runs.
        stage(&mut pending, set("late", 1));
        let adopted = pending.adopt(rebase);
        run(&mut pending, adopted);
        assert_eq!((seen(&pending, "n"), seen(&pending, "late")), (Some(16), Some(1)));
    }

    #[test]
    fn a_rebase_starts_again_when_a_sign_out_took_changes_out() {
        let mut pending = Pending::new(RequestFacts::default(), false);
        stage(&mut pending, set("a", 1));
        let Adopted::After(mut rebase) = pending.load(loaded(1, data(json!({}))), None, false) else {
            panic!("it was not applied")
        };
        rebase.run();
        stage(&mut pending, Change::Delete);
        let adopted = pending.adopt(rebase);
        run(&mut pending, adopted);
        assert!(matches!(pending.changes[..], [Change::Delete]) && pending.staged().data.is_empty());
    }

    #[test]
    fn it_carries_what_the_request_came_with() {
        let plan = |pending: &mut Pending| {
            stage(pending, Change::Bind("ada".into()));
            next(pending).unwrap().plan
        };
        // The session that it came with has ended: a session key is not enough any more.
        let mut pending = load(loaded(1, data(json!({}))));
        stage(&mut pending, set("a", 1));
        next(&mut pending).unwrap();
        finish(&mut pending, Ok(done(Base::Gone(opened(1, data(json!({}))))))).unwrap();
        assert_eq!(plan(&mut pending), Plan::Refuse { clears: false });
        // The request has signed in and out again.
        let mut pending = load(Base::Nothing);
        assert_eq!(plan(&mut pending), Plan::Begin { then: Then::Nothing });
        finish(&mut pending, Ok(done(loaded(2, data(json!({})))))).unwrap();
        stage(&mut pending, Change::Delete);
        next(&mut pending).unwrap();
        finish(&mut pending, Ok(done(Base::Nothing))).unwrap();
        assert_eq!(plan(&mut pending), Plan::Refuse { clears: false });
        // Its ID was superseded before it was loaded.
        assert_eq!(plan(&mut load(Base::Superseded(opened(1, Data::default())))), Plan::Refuse { clears: false });
    }

    /// A store of one record, and the naive rebase beside it: each change is applied once, to the data that there is when it
    /// is first written.
    struct Store {
        version: i64,
        data: Data,
        naive: Data,
        written: Vec<i64>,
    }

    #[derive(Clone, Copy)]
    enum Op {
        Set(&'static str, u64),
        Remove(&'static str),
        Add(&'static str, u64),
    }

    impl Op {
        fn change(self) -> Change {
            match self {
                Self::Set(name, value) => set(name, value),
                Self::Remove(name) => Change::Remove(name.into()),
                Self::Add(name, amount) => add(name, amount),
            }
        }
    }

    impl Store {
        fn apply_naively(&mut self, op: Op) {
            match op {
                Op::Set(name, value) => self.naive.set(&name.into(), value::json(value).unwrap()),
                Op::Remove(name) => self.naive.remove(&name.into()),
                Op::Add(name, amount) => {
                    let sum = self.naive.get::<u64>(name).unwrap().unwrap_or(0) + amount;
                    self.naive.set(&name.into(), value::json(sum).unwrap());
                }
            }
        }

        /// Another request writes.
        fn write_foreign(&mut self, op: Op) {
            self.data = Staged::rebase(&[op.change()], self.data.clone(), None).unwrap().data;
            self.version = -self.version.abs() - 1;
            self.apply_naively(op);
        }

        /// A commit, as the engine carries it out: on a conflict it rebases, and it recognises what it has written before.
        fn write(&mut self, commit: &Commit, ops: &[Op]) -> Committed {
            let version = commit.write_id.version;
            if self.written.contains(&version) {
                return done(loaded(self.version, self.data.clone()));
            }
            let rebased = !matches!(&commit.base, Base::Live(base) if base.loaded.version == self.version);
            self.data = match rebased {
                true => Staged::rebase(&commit.changes, self.data.clone(), Some("ada")).unwrap().data,
                false => commit.staged.data.clone(),
            };
            self.version = version;
            self.written.push(version);
            ops.iter().for_each(|op| self.apply_naively(*op));
            Committed { rebased, ..done(loaded(self.version, self.data.clone())) }
        }
    }

    fn shown(data: &Data) -> serde_json::Value {
        serde_json::to_value(data).unwrap()
    }

    #[test]
    fn random_conflicts_and_lost_answers_come_to_what_the_naive_rebase_says() {
        for seed in 0..2000_u64 {
            let mut state = mix(seed);
            let mut below = |end: u64| {
                state = state.wrapping_add(STEP);
                mix(state) % end
            };
            let start = data(json!({"a": 1, "b": 2}));
            let mut store = Store { version: 1, data: start.clone(), naive: start, written: Vec::new() };
            let mut pending = load(loaded(1, store.data.clone()));
            let mut recorded: Vec<Op> = Vec::new();
            for _ in 0..below(40) {
                let name = ["a", "b", "c"][below(3) as usize];
                let op = match below(4) {
                    0 => Op::Set(name, below(5)),
                    1 => Op::Remove(name),
                    _ => Op::Add(name, 1 + below(3)),
                };
                match below(5) {
                    0 => store.write_foreign(op),
                    1 | 2 => {
                        stage(&mut pending, op.change());
                        recorded.push(op);
                    }
                    _ => {
                        pending.begin(Trigger::Save);
                        let Some(commit) = next(&mut pending) else { continue };
                        let count = commit.changes.len();
                        if below(2) == 0 {
                            // More changes are recorded while it is in flight.
                            stage(&mut pending, op.change());
                            recorded.push(op);
                        }
                        let result = match below(4) {
                            // It does not arrive; or it does, and its answer is lost.
                            0 => Err(lost()),
                            1 => {
                                store.write(&commit, &recorded[..count]);
                                Err(lost())
                            }
                            _ => Ok(store.write(&commit, &recorded[..count])),
                        };
                        if finish(&mut pending, result).is_ok() {
                            recorded.drain(..count);
                        }
                    }
                }
            }
            // In the end everything is written, and one change more, so that the handler sees what others wrote last.
            stage(&mut pending, add("a", 0));
            recorded.push(Op::Add("a", 0));
            pending.begin(Trigger::Response);
            while let Some(commit) = next(&mut pending) {
                let count = commit.changes.len();
                let committed = store.write(&commit, &recorded[..count]);
                finish(&mut pending, Ok(committed)).unwrap();
                recorded.drain(..count);
            }
            assert_eq!(shown(&store.data), shown(&store.naive), "seed {seed}");
            assert_eq!(shown(&pending.staged().data), shown(&store.naive), "seed {seed}");
        }
    }
}
