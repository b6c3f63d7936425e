//! Sign-outs: end every session that the request's cookies open, or report that one may live on.

use std::sync::Arc;

use crate::{
    error::Error,
    record::id::Owner,
    session::{
        authority::SignOut,
        commit::{Commit, Committed, CookieChanges, Refused},
        login::NOT_OPENED,
        presented::Base,
    },
    sessions::{
        engine::Engine,
        loaded::{EndOutcome, Opened},
        watch::Ending,
    },
};

/// The result of a sign-out.
#[derive(Default)]
pub(super) struct SignedOut {
    pub(super) anything: bool,
    user: bool,
    visitor: bool,
    /// Whether a session that should end may live on.
    refused: bool,
}

impl Commit {
    pub(super) async fn sign_out(&mut self, engine: &Arc<Engine>, what: SignOut) -> Result<Committed, Error> {
        let signed_out = self.sign_out_all(engine, what).await?;
        let (ends_user, ends_visitor) = (signed_out.user, signed_out.user || signed_out.visitor);
        let ended = CookieChanges { ends_user, ends_visitor, ..CookieChanges::default() };
        if signed_out.refused {
            let base = if signed_out.anything { self.ended() } else { self.base.clone() };
            return Ok(Committed { cookies: ended, ..Committed::refused(base, Refused::not_newest(NOT_OPENED)) });
        }
        let mut committed = match &self.base {
            // A visitor has no other sessions, so `clear_others` does nothing.
            _ if what == SignOut::Others => return self.write(engine).await,
            _ if !self.staged.is_left_behind() => Committed::kept(self.ended()),
            Base::Refused => Committed::dropped(Base::Refused),
            _ => self.create_for_visitor(engine).await?,
        };
        // A cookie is removed only if this sign-out ended its session. Otherwise the removal of an old cookie could overtake the
        // cookie of a new login.
        let removed = CookieChanges {
            remove_user: ends_user && self.request.user_cookie,
            remove_visitor: ends_visitor && self.request.visitor_cookie,
            ..ended
        };
        committed.cookies = removed.then(committed.cookies);
        Ok(committed)
    }

    /// Returns the base after a sign-out. Cookies that lead to more than one session still count as no session.
    fn ended(&self) -> Base {
        match &self.base {
            Base::Refused => Base::Refused,
            _ => Base::Nothing,
        }
    }

    pub(super) async fn sign_out_all(&self, engine: &Arc<Engine>, what: SignOut) -> Result<SignedOut, Error> {
        let mut signed_out = SignedOut { refused: self.is_unproven(), ..SignedOut::default() };
        for unreadable in self.besides.iter().flat_map(|besides| &besides.unreadable) {
            if what.ends_unread(unreadable.is_proven) {
                signed_out.count(engine.delete(unreadable.id, Ending::SignedOut).await?, unreadable.id.owner());
            } else {
                signed_out.refused = true;
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
        let (mut cleared, mut lives_on) = (Vec::new(), Vec::new());
        for opened in self.opened().filter(ends) {
            match opened.loaded.owner().filter(|_| what == SignOut::Clear) {
                None => {
                    let ended = engine.sign_out(opened, Ending::SignedOut).await?;
                    signed_out.refused |= ended == EndOutcome::Refused;
                    signed_out.count(ended == EndOutcome::Now, opened.loaded.owner());
                }
                Some(owner) if cleared.contains(&owner) => {}
                Some(owner) => match engine.clear_by(opened, false, self.write_id.version).await? {
                    Some(_) => cleared.push(owner),
                    None => lives_on.push(owner),
                },
            }
        }
        signed_out.count(!cleared.is_empty(), cleared.first().copied());
        signed_out.refused |= match what {
            SignOut::Delete => false,
            SignOut::Clear => with_users && cleared.is_empty() || lives_on.iter().any(|owner| !cleared.contains(owner)),
            SignOut::Others => with_users || matches!(self.base, Base::Refused),
        };
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

    fn is_unproven(&self) -> bool {
        self.besides.as_ref().is_some_and(|besides| besides.unproven)
    }
}

impl SignedOut {
    fn count(&mut self, ended: bool, owner: Option<Owner>) {
        self.anything |= ended;
        self.user |= ended && owner.is_some();
        self.visitor |= ended && owner.is_none();
    }
}
