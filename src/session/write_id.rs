//! The identity of a write, by which a retry is recognised.

use crate::{
    error::Error,
    random::random_version,
    record::token::{Secret, SecretHash},
    session::{
        authority::{Plan, SignOut},
        change::{Identity, Staged},
        presented::Base,
    },
    sessions::{creation::NewId, engine::Engine},
};

/// Identifies a write, so that a retry after a lost answer is recognised.
#[derive(Clone)]
pub(crate) struct WriteId {
    pub(crate) version: i64,
    /// The new secret of the existing session.
    pub(crate) secret: Option<Secret>,
    /// Whether the new secret supersedes all others, which a rotation does not do.
    pub(crate) renews: bool,
    /// Whether all sessions of the session's owner end, by a clear whose name is the version.
    pub(crate) clears: bool,
    /// The secret of an earlier rotation by this request whose answer was lost. It may be the newest one.
    pub(crate) rotated: Option<SecretHash>,
    /// The name and the secret of a new session.
    pub(crate) new: Option<Box<NewId>>,
}

impl WriteId {
    /// Creates the names and secrets that a commit with this plan needs.
    pub(crate) fn new(engine: &Engine, plan: Plan, base: &Base, staged: &Staged) -> Result<Self, Error> {
        let renews = matches!(plan, Plan::Renew { .. } | Plan::RenewOrBegin { .. });
        let rotates = matches!(plan, Plan::Write | Plan::SignOut(SignOut::Others))
            && staged.identity == Identity::Rework
            && matches!(base, Base::Live(_));
        let begins = match plan {
            Plan::Write | Plan::SignOut(SignOut::Others) => matches!(base, Base::Nothing) && !staged.data.is_empty(),
            Plan::SignOut(_) => staged.is_left_behind(),
            Plan::Begin { .. } | Plan::RenewOrBegin { .. } | Plan::Switch { .. } => true,
            Plan::Renew { .. } | Plan::EndOthers { .. } | Plan::Refuse { .. } => false,
        };
        let secret = if renews || rotates { Some(Secret::random()?) } else { None };
        let version = random_version();
        let new = if begins { Some(Box::new(engine.new_id(version)?)) } else { None };
        let clears = matches!(plan, Plan::SignOut(SignOut::Clear) | Plan::Switch { clears: true, .. });
        Ok(Self { version, secret, renews, clears, rotated: None, new })
    }
}
