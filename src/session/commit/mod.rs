//! The commit: turns a request's changes into calls of the session engine.
//!
//! A commit [runs](run) as a [login], as a [sign-out](sign_out), or as a [write](mod@write) of all other changes.

mod login;
mod run;
mod sign_out;
mod write;

use std::{sync::Arc, time::Duration};

use crate::{
    error::{Error, ErrorKind},
    events::Refusal,
    log,
    record::token::SessionId,
    session::{
        authority::{Authority, Plan, Trigger},
        change::{Change, Staged},
        presented::{Base, Besides},
        write_id::WriteId,
    },
    sessions::loaded::Loaded,
};

/// The changes of a request, with all that is needed to write them.
pub(crate) struct Commit {
    pub(crate) plan: Plan,
    pub(crate) base: Base,
    pub(crate) besides: Option<Arc<Besides>>,
    pub(crate) changes: Vec<Change>,
    /// The base with the changes applied.
    pub(crate) staged: Staged,
    pub(crate) write_id: WriteId,
    /// Whether this is a retry, because the answer to the first try was lost.
    pub(crate) retry: bool,
    pub(crate) request: RequestFacts,
    /// Whether the response was sent, so that no cookie can be set.
    pub(crate) response_sent: bool,
    /// What is already stored, in case the rest fails.
    pub(crate) progress: Option<Progress>,
}

/// What a commit needs to know about its request.
#[derive(Clone, Copy, Default)]
pub(crate) struct RequestFacts {
    /// When the request arrived, by the sessions' own clock.
    pub(crate) arrived: Duration,
    /// Whether the request came from another site and has no known session. It must not create a visitor's session.
    pub(crate) cross_site: bool,
    /// Whether the request came with a user's cookie, and with a visitor's cookie.
    pub(crate) user_cookie: bool,
    pub(crate) visitor_cookie: bool,
    /// Whether the request came with an ID of a user's session, even if no session has that ID any more.
    pub(crate) user_id: bool,
}

/// The completed part of a commit. The browser must get its cookie even if the rest of the commit fails.
pub(crate) struct Progress {
    pub(crate) base: Base,
    pub(crate) cookies: CookieChanges,
    /// Whether a login made the session.
    pub(crate) login: bool,
}

/// The result of a commit.
pub(crate) struct Committed {
    pub(crate) base: Base,
    pub(crate) cookies: CookieChanges,
    /// Why changes were dropped, if some were.
    pub(crate) dropped: Option<Dropped>,
    /// Whether the changes were applied to other data than the handler saw, because another request had written.
    pub(crate) rebased: bool,
    /// Why a login or a sign-out was refused. All changes are then dropped.
    pub(crate) refused: Option<Refused>,
    /// Whether the other sessions of the request's cookies have ended.
    pub(crate) ended_others: bool,
}

/// Why a login or a sign-out was refused.
pub(crate) struct Refused {
    /// `None` if the reason is not known, because an answer was lost.
    pub(crate) why: Option<Refusal>,
    pub(crate) error: Error,
}

/// Why the changes have no session that they could be written to.
#[derive(Clone, Copy)]
pub(crate) enum Dropped {
    /// The session has ended, or the cookies lead to several sessions.
    Gone,
    /// The request has no session, and came from another site.
    CrossSite,
}

/// The cookies that the response sets and removes.
#[derive(Clone, Default)]
pub(crate) struct CookieChanges {
    pub(crate) set: Option<NewCookie>,
    pub(crate) remove_user: bool,
    pub(crate) remove_visitor: bool,
}

#[derive(Clone)]
pub(crate) struct NewCookie {
    pub(crate) id: SessionId,
    /// The deadline of the session.
    pub(crate) deadline: u64,
    pub(crate) is_visitors: bool,
}

impl Committed {
    /// Nothing was written, because nothing had to be.
    pub(super) fn kept(base: Base) -> Self {
        Self {
            base,
            cookies: CookieChanges::default(),
            dropped: None,
            rebased: false,
            refused: None,
            ended_others: false,
        }
    }

    pub(super) fn dropped(base: Base) -> Self {
        Self { dropped: Some(Dropped::Gone), ..Self::kept(base) }
    }

    pub(super) fn refused(base: Base, why: Refused) -> Self {
        Self { refused: Some(why), ..Self::kept(base) }
    }
}

impl Refused {
    /// The request does not have the newest ID of a live session.
    pub(super) fn not_newest(message: &'static str) -> Self {
        Self { why: Some(Refusal::NotNewest), error: Error::new(ErrorKind::Unauthorized, message) }
    }

    /// A session that should be signed out may live on.
    pub(super) fn not_opened() -> Self {
        Self::not_newest("the session to sign out has a newer ID, or has ended: sign in again")
    }
}

impl From<Refusal> for Refused {
    fn from(why: Refusal) -> Self {
        Self { why: Some(why), error: Error::refused(why) }
    }
}

impl Dropped {
    /// Returns the outcome of the commits for [`Session::save`](super::Session::save), which reports it, or for the response.
    pub(crate) fn outcome(self, trigger: Trigger, came_with: Authority) -> Result<(), Error> {
        match (self, trigger) {
            (Self::Gone, Trigger::Save) => Err(Error::not_found()),
            (Self::CrossSite, Trigger::Save) => Err(Error::cross_site()),
            (Self::Gone, _) => {
                // Logged at debug, because a client can cause it by sending many cookies.
                log::debug!(?came_with, "changes to a session that has ended were dropped");
                Ok(())
            }
            (Self::CrossSite, _) => {
                // Logged at debug, because any site can cause it.
                log::debug!("a cross-site request has no session, so its changes were dropped");
                Ok(())
            }
        }
    }
}

impl CookieChanges {
    pub(super) fn set(loaded: &Loaded, id: SessionId) -> Self {
        let is_visitors = loaded.owner().is_none();
        let set = Some(NewCookie { id, deadline: loaded.contents.deadline, is_visitors });
        Self { set, ..Self::default() }
    }

    /// Combines these changes with later ones.
    pub(crate) fn then(self, later: Self) -> Self {
        Self {
            set: later.set.or(self.set),
            remove_user: self.remove_user || later.remove_user,
            remove_visitor: self.remove_visitor || later.remove_visitor,
        }
    }

    /// Keeps the new ID only if it is still the newest one of the request's session, as far as the request knows.
    pub(crate) fn valid_on(self, base: &Base) -> Self {
        let is_valid = match base {
            Base::Live(opened) => opened.is_newest(),
            // It is not known whether the session has ended.
            Base::Unreadable(_) => true,
            Base::Nothing | Base::Superseded(_) | Base::Gone(_) | Base::Refused => false,
        };
        Self { set: self.set.filter(|_| is_valid), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{data::Data, token::SecretHash},
        sessions::loaded::sample,
    };

    fn sets(text: &str, is_visitors: bool) -> CookieChanges {
        let set = Some(NewCookie { id: SessionId::known(text), deadline: 0, is_visitors });
        CookieChanges { set, ..CookieChanges::default() }
    }

    fn set(cookies: &CookieChanges) -> Option<&str> {
        cookies.set.as_ref().map(|set| set.id.as_str())
    }

    #[test]
    fn the_last_cookie_counts_and_every_removal() {
        let removes = || CookieChanges { remove_visitor: true, ..CookieChanges::default() };
        assert_eq!(set(&sets("first", true).then(sets("second", false))), Some("second"));
        assert_eq!(set(&sets("first", false).then(CookieChanges::default())), Some("first"));
        let both = removes().then(sets("first", false)).then(CookieChanges { remove_user: true, ..Default::default() });
        assert!(both.remove_user && both.remove_visitor && set(&both) == Some("first"));
    }

    /// "It carries an ID that this request has stored, unless the request has learned that its session has ended or has another
    /// secret."
    #[test]
    fn no_id_is_sent_that_the_request_knows_to_be_invalid() {
        let opened = sample(1, Some("ada"), Data::default());
        let mut other = Loaded::clone(&opened.loaded);
        other.contents.hash = SecretHash::from_bytes([2; 32]);
        let replaced = opened.at(Arc::new(other));
        for (base, is_sent) in [
            (Base::Live(opened.clone()), true),
            (Base::Live(replaced), false),
            (Base::Gone(opened), false),
            (Base::Nothing, false),
            (Base::Refused, false),
        ] {
            let changes = CookieChanges { remove_visitor: true, ..sets("an ID", false) }.valid_on(&base);
            assert_eq!((set(&changes).is_some(), changes.remove_visitor), (is_sent, true));
        }
    }
}
