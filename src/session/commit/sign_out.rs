//! Sign-outs: end every session that the request's cookies open, or report that one may live on.

use std::sync::Arc;

use crate::{
    error::Error,
    record::id::Owner,
    session::{
        authority::SignOut,
        commit::{Commit, Committed, CookieChanges, Refused},
        presented::Base,
    },
    sessions::{
        engine::Engine,
        loaded::{EndOutcome, Opened},
        watch::Ending,
    },
};

/// What a sign-out has ended, and what may live on.
#[derive(Default)]
pub(super) struct SignedOut {
    user: bool,
    visitor: bool,
    /// Whether the session of the base was to end. Then it has ended, or the request's ID no longer opens it.
    own: bool,
    /// Whether a session that was to end may live on: its ID no longer opens it, it cannot be read, or not every cookie was tried.
    lives_on: bool,
    /// The users whose sessions were cleared.
    cleared: Vec<Owner>,
    /// Users for whom a session of theirs gave no right to a `clear`, because it has ended or its ID no longer opens it.
    not_cleared: Vec<Owner>,
}

impl Commit {
    pub(super) async fn sign_out(&mut self, engine: &Arc<Engine>, what: SignOut) -> Result<Committed, Error> {
        let signed_out = self.sign_out_all(engine, what).await?;
        if signed_out.is_refused(what, self.came_with_users(), matches!(self.base, Base::Refused)) {
            let base = signed_out.left_of(self.base.clone());
            return Ok(Committed::refused(base, Refused::not_opened()));
        }
        let mut committed = match &self.base {
            // A visitor has no other sessions, so `clear_others` does nothing.
            _ if what == SignOut::Others => return self.write(engine).await,
            Base::Refused if !self.staged.is_left_behind() => Committed::kept(Base::Refused),
            _ if !self.staged.is_left_behind() => Committed::kept(Base::Nothing),
            Base::Refused => Committed::dropped(Base::Refused),
            _ => self.create_for_visitor(engine).await?,
        };
        // A cookie is removed only if this sign-out ended its session. Otherwise the removal of an old cookie could overtake the
        // cookie of a new login.
        let removed = CookieChanges {
            remove_user: signed_out.user && self.request.user_cookie,
            remove_visitor: signed_out.anything() && self.request.visitor_cookie,
            ..CookieChanges::default()
        };
        committed.cookies = removed.then(committed.cookies);
        Ok(committed)
    }

    pub(super) async fn sign_out_all(&self, engine: &Arc<Engine>, what: SignOut) -> Result<SignedOut, Error> {
        let unproven = self.besides.as_ref().is_some_and(|besides| besides.unproven);
        let mut signed_out = SignedOut { lives_on: unproven, ..SignedOut::default() };
        for unreadable in self.besides.iter().flat_map(|besides| &besides.unreadable) {
            if what.ends_unread(unreadable.is_proven) {
                signed_out.count(engine.delete(unreadable.id, Ending::SignedOut).await?, unreadable.id.owner());
            } else {
                signed_out.lives_on = true;
            }
        }
        if let Base::Unreadable(unreadable) = &self.base {
            if !what.ends_unread(unreadable.is_proven) {
                return Err(unreadable.error.clone());
            }
            signed_out.count(engine.delete(unreadable.id, Ending::SignedOut).await?, unreadable.id.owner());
            return Ok(signed_out);
        }
        let with_users = self.came_with_users();
        let ends = |opened: &&Opened| what.ends(opened.loaded.owner().is_some(), with_users);
        for opened in self.opened().filter(ends) {
            signed_out.own |= matches!(&self.base, Base::Live(own) if own.loaded.id == opened.loaded.id);
            match opened.loaded.owner().filter(|_| what == SignOut::Clear) {
                None => {
                    let ended = engine.sign_out(opened, Ending::SignedOut).await?;
                    signed_out.lives_on |= ended == EndOutcome::Refused;
                    signed_out.count(ended == EndOutcome::Now, opened.loaded.owner());
                }
                Some(owner) if signed_out.cleared.contains(&owner) => {}
                Some(owner) => match engine.clear_by(opened, false, self.write_id.version).await? {
                    Some(_) => signed_out.cleared.push(owner),
                    None => signed_out.not_cleared.push(owner),
                },
            }
        }
        signed_out.user |= !signed_out.cleared.is_empty();
        Ok(signed_out)
    }

    /// Returns the sessions that the request's cookies opened. The one that counts comes first.
    fn opened(&self) -> impl Iterator<Item = &Opened> {
        let own = match &self.base {
            Base::Live(opened) | Base::Superseded(opened) | Base::Gone(opened) => Some(opened),
            Base::Nothing | Base::Refused | Base::Unreadable(_) => None,
        };
        own.into_iter().chain(self.besides.iter().flat_map(|besides| &besides.others))
    }

    /// Returns whether the request had an ID of a user's session, even if no session has that ID any more.
    fn came_with_users(&self) -> bool {
        self.request.user_id || self.opened().any(|opened| opened.loaded.owner().is_some())
    }
}

impl SignedOut {
    fn count(&mut self, ended: bool, owner: Option<Owner>) {
        self.user |= ended && owner.is_some();
        self.visitor |= ended && owner.is_none();
    }

    fn anything(&self) -> bool {
        self.user || self.visitor
    }

    /// Returns whether the answer is a 401. `with_users` says whether the request had an ID of a user's session, and
    /// `with_several` whether its cookies lead to more than one session, so that it has none.
    fn is_refused(&self, what: SignOut, with_users: bool, with_several: bool) -> bool {
        self.lives_on
            || self.not_cleared.iter().any(|owner| !self.cleared.contains(owner))
            || match what {
                SignOut::Delete => false,
                // An ID that opens nothing gives no right to it.
                SignOut::Clear => with_users && self.cleared.is_empty(),
                // There is no session that could be kept.
                SignOut::Others => with_users || with_several,
            }
    }

    /// Returns what is left of the base after a sign-out that was refused, or that came with a refused login.
    pub(super) fn left_of(&self, base: Base) -> Base {
        match base {
            // Cookies that lead to more than one session still count as no session.
            Base::Refused => Base::Refused,
            _ if self.anything() => Base::Nothing,
            Base::Live(opened) if self.own => Base::Gone(opened),
            base => base,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::data::Data, sessions::loaded::sample};

    fn owner(number: u8) -> Owner {
        Owner::from([number; 16])
    }

    fn cleared(cleared: &[u8], not_cleared: &[u8]) -> SignedOut {
        let owners = |numbers: &[u8]| numbers.iter().copied().map(owner).collect();
        SignedOut { cleared: owners(cleared), not_cleared: owners(not_cleared), ..SignedOut::default() }
    }

    /// Rule 11.
    #[test]
    fn what_a_sign_out_answers() {
        use SignOut::{Clear, Delete, Others};
        let nothing = || cleared(&[], &[]);
        let lives_on = || SignedOut { lives_on: true, user: true, ..nothing() };
        // What was done, with a user's ID or without, and with which sign-outs that is a 401.
        let table: [(SignedOut, bool, &[SignOut]); 7] = [
            (nothing(), false, &[]),
            (nothing(), true, &[Clear, Others]),
            (SignedOut { user: true, ..nothing() }, true, &[Clear, Others]),
            (SignedOut { visitor: true, ..nothing() }, false, &[]),
            (cleared(&[1], &[]), true, &[Others]),
            (lives_on(), false, &[Delete, Clear, Others]),
            (lives_on(), true, &[Delete, Clear, Others]),
        ];
        for (row, (signed_out, with_users, refused)) in table.into_iter().enumerate() {
            for what in [Delete, Clear, Others] {
                assert_eq!(
                    signed_out.is_refused(what, with_users, false),
                    refused.contains(&what),
                    "row {row}: {what:?}"
                );
            }
        }
    }

    /// Rule 14: one session that gives the right is enough for its user, and every user counts.
    #[test]
    fn what_a_sign_out_answers_with_several_cookies() {
        for (done, not_done, is_refused) in
            [(&[1][..], &[1][..], false), (&[1, 2], &[2], false), (&[1], &[2], true), (&[], &[1], true)]
        {
            assert_eq!(
                cleared(done, not_done).is_refused(SignOut::Clear, true, true),
                is_refused,
                "{done:?} {not_done:?}"
            );
        }
        assert!(!cleared(&[], &[]).is_refused(SignOut::Delete, true, true));
        assert!(cleared(&[], &[]).is_refused(SignOut::Others, false, true));
    }

    /// Promise 10: no ID of it is sent after this.
    #[test]
    fn a_session_that_was_to_end_is_not_the_requests_any_more() {
        let live = || Base::Live(sample(1, Some("ada"), Data::default()));
        let own = |user: bool| SignedOut { own: true, user, ..SignedOut::default() };
        assert!(matches!(own(true).left_of(live()), Base::Nothing));
        assert!(matches!(own(false).left_of(live()), Base::Gone(_)));
        assert!(matches!(SignedOut::default().left_of(live()), Base::Live(_)));
        assert!(matches!(own(true).left_of(Base::Refused), Base::Refused));
    }
}
