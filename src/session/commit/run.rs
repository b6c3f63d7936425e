//! The execution of a commit: checks the changes, and does what the plan says.

use std::{sync::Arc, time::Duration};

use crate::{
    error::{Error, ErrorKind},
    events::{EventKind, Refusal},
    session::{
        authority::Plan,
        change::{Change, Identity},
        commit::{Commit, Committed, Dropped},
        presented::Base,
    },
    sessions::{creation::check_key, engine::Engine},
};

impl Commit {
    /// Writes the changes. After an error, only the [`progress`](Self::progress) is known to be written.
    pub(crate) async fn run(&mut self, engine: &Arc<Engine>) -> Result<Committed, Error> {
        self.check()?;
        match self.plan {
            Plan::Write => self.write(engine).await,
            // Boxed to keep the future small, because most commits are neither a login nor a sign-out.
            Plan::EndOthers { login } => Box::pin(self.end_rest(engine, login)).await,
            Plan::SignOut(what) => Box::pin(self.sign_out(engine, what)).await,
            plan => Box::pin(self.log_in(engine, plan)).await,
        }
    }

    /// Sends an event for a refusal.
    pub(crate) fn tell_refusal(&self, engine: &Engine, committed: &Committed) {
        let why = match (&committed.refused, committed.dropped) {
            (Some(refused), _) => refused.why,
            (None, Some(Dropped::CrossSite)) => Some(Refusal::CrossSite),
            (None, Some(Dropped::Gone) | None) => None,
        };
        let Some(why) = why else { return };
        let opened = match &self.base {
            Base::Live(opened) | Base::Superseded(opened) | Base::Gone(opened) => Some(opened),
            Base::Nothing | Base::Refused | Base::Unreadable(_) => None,
        };
        let key = match &self.staged.identity {
            Identity::Bind(user) | Identity::Create(user) => Some(user.key()),
            Identity::Keep | Identity::Rework | Identity::Delete => opened.and_then(|opened| opened.key()),
        };
        engine.tell(EventKind::Refused(why), opened.map(|opened| opened.loaded.id.sid()), key);
    }

    /// Checks the changes before anything is written.
    fn check(&self) -> Result<(), Error> {
        for change in &self.changes {
            if let Change::Failed(error) = change {
                return Err(error.clone());
            }
        }
        if self.staged.ttl.is_some_and(|ttl| ttl < Duration::from_millis(1)) {
            return Err(Error::new(
                ErrorKind::Config,
                "the ttl of a session must not be zero: call `delete` to end it",
            ));
        }
        match &self.staged.identity {
            Identity::Bind(user) | Identity::Create(user) => check_key(user.key()).map(drop)?,
            Identity::Keep | Identity::Rework | Identity::Delete => {}
        }
        if self.response_sent && self.plan.changes_id(&self.base, &self.staged) {
            return Err(Error::new(
                ErrorKind::ResponseSent,
                "the response was already sent, so its cookie can no longer be set: call `save` before the response",
            ));
        }
        Ok(())
    }
}
