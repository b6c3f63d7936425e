//! Authority: decides, by what the request came with, whether it may begin or end a session, and how its commit proceeds.
//!
//! A request that acts with a session has one decisive moment: a conditional write, or a conditional `clear`, of the record
//! that it came with. Everything before that moment can be undone, and everything after it needs no further authority.
//!
//! | the request came with | and signs in | plan |
//! |---|---|---|
//! | a session of this user | with a session key | [`Renew`](Plan::Renew): keeps the record, if the request has its newest secret |
//! | a session of this user | with a [`Login`](crate::Login) | [`RenewOrBegin`](Plan::RenewOrBegin): the same, or else a new session |
//! | another user's session | with a session key | [`Switch`](Plan::Switch): a new session, then the old one ends if the request has its newest secret |
//! | another user's session | with a `Login` | [`Begin`](Plan::Begin), and the old session ends |
//! | no session, or a visitor's | with either | [`Begin`](Plan::Begin), unless the user was signed out everywhere since |
//! | a session that has ended, or an ID that was superseded | with a session key | [`Refuse`](Plan::Refuse) |
//!
//! A `clear` or `clear_others` in the same request comes after the login and keeps its session, unless the response failed. If
//! the new ID is stored but ending the other sessions fails, [`EndOthers`](Plan::EndOthers) remains to be done.

use crate::session::{
    change::{Clearing, Identity, Staged},
    presented::Base,
    sign_in::SignIn,
};

/// Why a commit happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// The handler asked for it.
    Save,
    /// The response is ready.
    Response,
    /// The response failed. Only the sign-outs are committed.
    Failure,
    /// There is no response, because the request was cancelled or its handler panicked. Only the sign-outs are committed, and
    /// no new ID is made, because no client would get it.
    Abandoned,
}

impl Trigger {
    /// Returns whether the handler's changes count.
    pub(crate) fn is_kept(self) -> bool {
        matches!(self, Self::Save | Self::Response)
    }
}

/// What the request came with, which decides what it may do. Unlike the base it does not change when the session ends. A login by
/// the request itself counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authority {
    /// No ID, an ID without a session, or a visitor's session.
    Visitor,
    /// A user's session: an ID that opened it, or a login of this request.
    Session,
    /// An ID that was superseded when it was loaded.
    Superseded,
}

/// How a commit proceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Plain changes, or a rotation.
    Write,
    /// The session gets a new secret in place: a login of the same user, or `clear_others`.
    Renew { login: bool, then: Then },
    /// The same if the request has the newest secret, and otherwise a new session.
    RenewOrBegin { then: Then },
    /// A new session.
    Begin { then: Then },
    /// A new session of another user. The end of the old session, which may be a `clear` of the old user, is the decisive moment.
    Switch { clears: bool, then: Then },
    /// The rest of a `clear_others` whose new ID is stored: the other sessions end.
    EndOthers { login: bool },
    /// A sign-out.
    SignOut(SignOut),
    /// A login that is refused. A `clear` in the same request still takes effect.
    Refuse { clears: bool },
}

/// Which sessions of the user end after a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    EndOthers,
    /// The response failed, so the session of the login ends, too.
    EndAll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignOut {
    Delete,
    Clear,
    /// `clear_others` without a session that could be kept.
    Others,
}

impl Authority {
    /// Returns the authority of a request that loaded this session.
    pub(crate) fn of(base: &Base) -> Self {
        match base {
            Base::Live(opened) if opened.key().is_some() => Self::Session,
            Base::Superseded(_) => Self::Superseded,
            _ => Self::Visitor,
        }
    }
}

impl SignOut {
    /// Returns whether the sign-out ends a session that an ID of the request opened. `with_users` says whether the request had
    /// an ID of a user's session.
    pub(crate) fn ends(self, is_users: bool, with_users: bool) -> bool {
        match self {
            Self::Delete => true,
            // If there is also a user's session, the visitor's session is left to expire.
            Self::Clear => is_users || !with_users,
            Self::Others => false,
        }
    }

    /// Returns whether the sign-out ends a session that cannot be read. `is_proven` says whether its ID was encrypted by us.
    ///
    /// A `clear` does not, because the user is not known, so it could not be completed. Without a keyring no sign-out does,
    /// because nothing proves the ID.
    pub(crate) fn ends_unread(self, is_proven: bool) -> bool {
        self == Self::Delete && is_proven
    }
}

impl Plan {
    pub(crate) fn new(authority: Authority, base: &Base, staged: &Staged, trigger: Trigger) -> Self {
        match (&staged.identity, staged.clear) {
            (Identity::Bind(user) | Identity::Create(user), clear) => {
                Self::login(authority, base, user, clear, trigger)
            }
            (Identity::Delete, Clearing::Nothing) => Self::SignOut(SignOut::Delete),
            (Identity::Delete, _) | (_, Clearing::All) => Self::SignOut(SignOut::Clear),
            (Identity::Keep | Identity::Rework, Clearing::Nothing) => Self::Write,
            (identity, clear) => match base.signed_in() {
                // No client would get the new ID.
                Some(_) if trigger == Trigger::Abandoned => Self::SignOut(SignOut::Clear),
                Some(_) => match (identity, clear) {
                    (Identity::Keep, Clearing::Rest { login }) => Self::EndOthers { login },
                    _ => Self::Renew { login: false, then: Then::EndOthers },
                },
                None => Self::SignOut(SignOut::Others),
            },
        }
    }

    /// Returns whether the recorded login is discarded because the response failed, although a sign-out that was recorded with it
    /// is not.
    ///
    /// It is if the request's session gives the right to sign out. Otherwise it is the login that does (rule 9): recording it
    /// says that the credential was correct.
    pub(crate) fn discards_login(base: &Base, staged: &Staged, trigger: Trigger) -> bool {
        match (&staged.identity, base.signed_in()) {
            (Identity::Bind(user) | Identity::Create(user), Some((_, key))) => {
                let is_for_session = key == user.key() || staged.clear == Clearing::All;
                !trigger.is_kept() && !user.is_login() && is_for_session
            }
            _ => false,
        }
    }

    fn login(authority: Authority, base: &Base, user: &SignIn, clear: Clearing, trigger: Trigger) -> Self {
        let clears = clear == Clearing::All;
        let then = match (clear, trigger.is_kept()) {
            (Clearing::Nothing, _) => Then::Nothing,
            (_, true) => Then::EndOthers,
            (_, false) => Then::EndAll,
        };
        match (base.signed_in(), user.is_login()) {
            (Some((_, key)), true) if key == user.key() => Self::RenewOrBegin { then },
            (Some((_, key)), false) if key == user.key() => Self::Renew { login: true, then },
            (Some(_), false) => Self::Switch { clears, then: if clears { Then::Nothing } else { then } },
            (_, true) => Self::Begin { then },
            (None, false) if authority == Authority::Visitor => Self::Begin { then },
            (None, false) => Self::Refuse { clears },
        }
    }

    /// Returns whether the response has to carry a new ID.
    pub(crate) fn changes_id(&self, base: &Base, staged: &Staged) -> bool {
        match self {
            Self::Renew { .. } | Self::RenewOrBegin { .. } | Self::Begin { .. } | Self::Switch { .. } => true,
            Self::Write | Self::EndOthers { .. } | Self::SignOut(SignOut::Others) => match base {
                Base::Live(_) => staged.identity == Identity::Rework,
                Base::Nothing => !staged.data.is_empty(),
                Base::Superseded(_) | Base::Gone(_) | Base::Refused | Base::Unreadable(_) => false,
            },
            // Data that was written after it belongs to a new visitor's session.
            Self::SignOut(_) => staged.is_left_behind(),
            Self::Refuse { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::terms::Mark,
        record::data::Data,
        session::change::Change::{self, Bind, Clear, ClearOthers, Create, Delete, Rework},
        sessions::{loaded::sample, login::Login},
    };

    /// What a request has loaded.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Came {
        Nothing,
        Visitor,
        Ada,
        Superseded,
        Gone,
        Refused,
    }

    impl Came {
        fn with(self) -> (Authority, Base) {
            let opened = |key| sample(1, key, Data::default());
            match self {
                Self::Nothing => (Authority::Visitor, Base::Nothing),
                Self::Visitor => (Authority::Visitor, Base::Live(opened(None))),
                Self::Ada => (Authority::Session, Base::Live(opened(Some("ada")))),
                Self::Superseded => (Authority::Superseded, Base::Superseded(opened(Some("ada")))),
                Self::Gone => (Authority::Session, Base::Gone(opened(Some("ada")))),
                Self::Refused => (Authority::Visitor, Base::Refused),
            }
        }

        fn plan(self, changes: &[Change], trigger: Trigger) -> Plan {
            let (authority, base) = self.with();
            let staged = |is_kept: fn(&Change) -> bool| {
                let mut staged = Staged::on_base(&base);
                let kept = changes.iter().filter(|change| is_kept(change));
                kept.for_each(|change| staged.apply(change, base.key()).unwrap());
                staged
            };
            let all = staged(|_| true);
            let left = if Plan::discards_login(&base, &all, trigger) { staged(Change::is_ending) } else { all };
            Plan::new(authority, &base, &left, trigger)
        }
    }

    const COULD_COME: [Came; 6] =
        [Came::Nothing, Came::Visitor, Came::Ada, Came::Superseded, Came::Gone, Came::Refused];

    fn ada() -> Change {
        Bind("ada".into())
    }

    fn grace() -> Change {
        Bind("grace".into())
    }

    fn login(key: &str) -> Change {
        Bind(Login { key: key.to_owned(), mark: Mark::new(None, 0) }.into())
    }

    fn create(key: &str) -> Change {
        Create(key.into(), Data::default())
    }

    #[track_caller]
    fn check(came: Came, changes: &[Change], expected: Plan) {
        assert_eq!(came.plan(changes, Trigger::Response), expected, "{came:?}");
        assert_eq!(came.plan(changes, Trigger::Save), expected, "{came:?}, saved");
    }

    /// Rule 1.
    #[test]
    fn the_same_user_signs_in_again_in_place() {
        for change in [ada(), create("ada")] {
            check(Came::Ada, &[change], Plan::Renew { login: true, then: Then::Nothing });
        }
        for came in [Came::Superseded, Came::Gone] {
            check(came, &[ada()], Plan::Refuse { clears: false });
        }
    }

    /// Rule 2.
    #[test]
    fn with_a_login_it_is_a_new_session_if_it_cannot_be_in_place() {
        check(Came::Ada, &[login("ada")], Plan::RenewOrBegin { then: Then::Nothing });
        for came in [Came::Superseded, Came::Gone, Came::Nothing] {
            check(came, &[login("ada")], Plan::Begin { then: Then::Nothing });
        }
    }

    /// Rules 3 and 13.
    #[test]
    fn a_visitor_signs_in_to_a_new_session() {
        for came in [Came::Nothing, Came::Visitor, Came::Refused] {
            for change in [ada(), create("ada"), login("ada")] {
                check(came, &[change], Plan::Begin { then: Then::Nothing });
            }
        }
    }

    /// Rule 4.
    #[test]
    fn a_switch_of_user_has_the_end_of_the_old_session_as_its_moment() {
        check(Came::Ada, &[grace()], Plan::Switch { clears: false, then: Then::Nothing });
        check(Came::Ada, &[login("grace")], Plan::Begin { then: Then::Nothing });
        for came in [Came::Superseded, Came::Gone] {
            check(came, &[grace()], Plan::Refuse { clears: false });
        }
    }

    /// Rule 5.
    #[test]
    fn a_sign_out_beside_a_login_of_the_same_user_comes_after_it() {
        for changes in [vec![Clear, ada()], vec![ada(), Clear], vec![ClearOthers, ada()], vec![ada(), ClearOthers]] {
            check(Came::Ada, &changes, Plan::Renew { login: true, then: Then::EndOthers });
        }
        check(Came::Ada, &[Delete, ada()], Plan::Renew { login: true, then: Then::Nothing });
        check(Came::Ada, &[Clear, login("ada")], Plan::RenewOrBegin { then: Then::EndOthers });
        check(Came::Ada, &[ada(), Delete], Plan::SignOut(SignOut::Delete));
    }

    /// Rule 6: beside a session key it acts, beside a `Login` it would be too late.
    #[test]
    fn a_clear_beside_a_refused_login_acts_all_the_same() {
        for came in [Came::Superseded, Came::Gone] {
            check(came, &[Clear, ada()], Plan::Refuse { clears: true });
            check(came, &[ClearOthers, ada()], Plan::Refuse { clears: false });
        }
    }

    /// Rules 7 and 11.
    #[test]
    fn sign_outs_go_by_what_the_request_came_with() {
        for came in COULD_COME {
            check(came, &[Delete], Plan::SignOut(SignOut::Delete));
            check(came, &[Clear], Plan::SignOut(SignOut::Clear));
            check(came, &[Delete, ClearOthers], Plan::SignOut(SignOut::Clear));
            check(came, &[], Plan::Write);
            check(came, &[Rework], Plan::Write);
        }
    }

    /// Rules 11 and 14.
    #[test]
    fn a_sign_out_ends_every_session_that_an_id_opens_and_a_clear_only_users() {
        for (is_users, with_users) in [(true, true), (false, true), (false, false)] {
            assert!(SignOut::Delete.ends(is_users, with_users));
            assert_eq!(SignOut::Clear.ends(is_users, with_users), is_users || !with_users);
            assert!(!SignOut::Others.ends(is_users, with_users));
        }
    }

    /// Rule 12.
    #[test]
    fn only_a_delete_by_an_id_that_we_encrypted_ends_what_cannot_be_read() {
        assert!(SignOut::Delete.ends_unread(true) && !SignOut::Delete.ends_unread(false));
        for what in [SignOut::Clear, SignOut::Others] {
            assert!(!what.ends_unread(true) && !what.ends_unread(false));
        }
    }

    /// Rule 8.
    #[test]
    fn clear_others_gives_a_new_id_or_there_is_nothing_to_keep() {
        for changes in [vec![ClearOthers], vec![ClearOthers, Rework], vec![Rework, ClearOthers]] {
            check(Came::Ada, &changes, Plan::Renew { login: false, then: Then::EndOthers });
            // On a failure the response brings the new ID; without a response nobody would get it.
            let failed = Came::Ada.plan(&changes, Trigger::Failure);
            assert_eq!(failed, Plan::Renew { login: false, then: Then::EndOthers });
            assert_eq!(Came::Ada.plan(&changes, Trigger::Abandoned), Plan::SignOut(SignOut::Clear));
        }
        for came in COULD_COME.into_iter().filter(|came| *came != Came::Ada) {
            check(came, &[ClearOthers], Plan::SignOut(SignOut::Others));
        }
    }

    /// Rule 8. With another new ID whose answer is lost, the one that the browser gets would not count.
    #[test]
    fn what_is_left_of_a_clear_others_makes_no_id() {
        for login in [false, true] {
            let rest = || Change::EndOthers { login };
            check(Came::Ada, &[rest()], Plan::EndOthers { login });
            assert_eq!(Came::Ada.plan(&[rest()], Trigger::Failure), Plan::EndOthers { login });
            assert_eq!(Came::Ada.plan(&[rest()], Trigger::Abandoned), Plan::SignOut(SignOut::Clear));
            // Unless that is asked for.
            for more in [ClearOthers, Rework] {
                check(Came::Ada, &[rest(), more], Plan::Renew { login: false, then: Then::EndOthers });
            }
            check(Came::Gone, &[rest()], Plan::SignOut(SignOut::Others));
        }
    }

    /// Rule 9.
    #[test]
    fn a_clear_with_a_login_is_for_the_user_who_signs_in() {
        for came in [Came::Nothing, Came::Visitor, Came::Refused] {
            for changes in [vec![Clear, ada()], vec![ClearOthers, ada()], vec![login("ada"), ClearOthers]] {
                check(came, &changes, Plan::Begin { then: Then::EndOthers });
                for trigger in [Trigger::Failure, Trigger::Abandoned] {
                    assert_eq!(came.plan(&changes, trigger), Plan::Begin { then: Then::EndAll });
                }
            }
        }
        check(Came::Ada, &[Clear, login("grace")], Plan::Begin { then: Then::EndOthers });
        let failed = Came::Ada.plan(&[ClearOthers, login("ada")], Trigger::Failure);
        assert_eq!(failed, Plan::RenewOrBegin { then: Then::EndAll });
    }

    /// Rule 10.
    #[test]
    fn a_clear_with_a_switch_is_for_the_user_before_and_clear_others_for_the_new_one() {
        check(Came::Ada, &[grace(), Clear], Plan::Switch { clears: true, then: Then::Nothing });
        check(Came::Ada, &[grace(), ClearOthers], Plan::Switch { clears: false, then: Then::EndOthers });
        assert_eq!(Came::Ada.plan(&[Clear, grace()], Trigger::Failure), Plan::SignOut(SignOut::Clear));
    }

    /// What a handler that fails had recorded: its login is discarded, what it ends is not.
    #[test]
    fn after_a_failure_a_login_in_place_is_discarded_and_its_clear_is_not() {
        for trigger in [Trigger::Failure, Trigger::Abandoned] {
            assert_eq!(Came::Ada.plan(&[Clear, ada()], trigger), Plan::SignOut(SignOut::Clear));
        }
        for changes in [vec![ClearOthers, ada()], vec![create("ada"), ClearOthers], vec![grace(), ada(), ClearOthers]] {
            let failed = Came::Ada.plan(&changes, Trigger::Failure);
            assert_eq!(failed, Plan::Renew { login: false, then: Then::EndOthers });
            assert_eq!(Came::Ada.plan(&changes, Trigger::Abandoned), Plan::SignOut(SignOut::Clear));
        }
        // So is a sign-out before the login.
        let failed = Came::Ada.plan(&[Delete, ClearOthers, ada()], Trigger::Failure);
        assert_eq!(failed, Plan::SignOut(SignOut::Clear));
    }
}
