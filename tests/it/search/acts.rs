//! The actions of the requests.

use std::sync::Arc;

use http::StatusCode;
use jam_session::{Error, ErrorKind, Session, Sessions};
use serde_json::json;

use super::store::{Gated, Shared, Touches, What};

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A browser with several tabs. Its responses arrive when the search says so.
    A,
    /// Another device of the same user.
    B,
    /// A thief with a copy of A's cookie. He uses the best ID that he has.
    M,
    /// The application, outside of any request of theirs.
    E,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Write,
    Rework,
    Bind,
    Create,
    BindLogin,
    /// The `Login` is taken before the session is loaded.
    EarlyLogin,
    /// The second page of a login: the `Login` was taken, and the password checked, before any of the requests.
    KeptLogin,
    /// The login form: a session key after a password was checked, whoever is signed in.
    FormBind,
    Switch,
    SwitchLogin,
    Delete,
    Clear,
    Others,
    OthersBind,
    /// A new password.
    OthersLogin,
    /// A password-reset link.
    OthersForm,
    ClearBind,
    ClearLogin,
    ClearForm,
    DeleteBind,
    DeleteSaveBind,
    ReworkSaveBind,
    SwitchClear,
    SwitchOthers,
    SwitchLoginOthers,
    /// The handler calls `sessions.clear`, and then binds with a session key.
    ModuleClearForm,
    /// `Sessions::clear_others`, by the ID that came.
    ModuleOthers,
    /// `Sessions::delete`, by the ID that came.
    ModuleDelete,
    /// These are recorded by a handler that answers 500 in the end.
    FailedDelete,
    FailedClear,
    FailedOthers,
    FailedOthersLogin,
    FailedOthersCreate,
    /// The session is signed in to and saved, and then the handler signs out.
    BindSaveDelete,
    BindSaveClear,
    /// The application's: `Sessions::revoke`, `Sessions::clear` of the one or the other user, and the first session expires.
    Revoke,
    ModuleClear,
    ModuleClearGrace,
    Expire,
    /// Deliberately wrong: the `Login` is taken after the password was checked.
    LateLogin,
    /// Deliberately wrong: a sign-out that answers before it is done, and then is not done.
    DeleteAndForget,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Out {
    Nothing,
    Delete,
    Clear,
    Others,
}

/// A handler.
pub struct Spec {
    pub login: Option<&'static str>,
    pub plain: Option<&'static str>,
    /// It binds only the user of its session, or another one from a session.
    pub guarded: bool,
    pub checks_password: bool,
    pub sets_password: bool,
    pub out: Out,
    /// The data before it does not go over.
    pub fresh: bool,
    /// It answers 500. Then its sign-outs count all the same.
    pub fails: bool,
}

impl Act {
    pub fn spec(self) -> Spec {
        use Act::*;
        const NOTHING: Spec = Spec {
            login: None,
            plain: None,
            guarded: false,
            checks_password: false,
            sets_password: false,
            out: Out::Nothing,
            fresh: false,
            fails: false,
        };
        let key = |user| Spec { plain: Some(user), guarded: true, ..NOTHING };
        let login = |user| Spec { login: Some(user), checks_password: true, ..NOTHING };
        let form = Spec { plain: Some("ada"), checks_password: true, ..NOTHING };
        match self {
            Bind | ReworkSaveBind | DeleteSaveBind => key("ada"),
            Create => Spec { fresh: true, ..key("ada") },
            BindLogin | EarlyLogin | LateLogin => login("ada"),
            KeptLogin => Spec { checks_password: false, ..login("ada") },
            FormBind => form,
            Switch => key("grace"),
            SwitchLogin => login("grace"),
            Delete | ModuleDelete | DeleteAndForget => Spec { out: Out::Delete, ..NOTHING },
            Clear => Spec { out: Out::Clear, ..NOTHING },
            Others | ModuleOthers => Spec { out: Out::Others, ..NOTHING },
            OthersBind => Spec { out: Out::Others, ..key("ada") },
            OthersLogin => Spec { out: Out::Others, sets_password: true, ..login("ada") },
            OthersForm => Spec { out: Out::Others, sets_password: true, ..form },
            ClearBind => Spec { out: Out::Clear, fresh: true, ..key("ada") },
            ClearLogin => Spec { out: Out::Clear, fresh: true, ..login("ada") },
            ClearForm => Spec { out: Out::Clear, fresh: true, ..form },
            DeleteBind => Spec { out: Out::Delete, fresh: true, ..key("ada") },
            SwitchClear => Spec { out: Out::Clear, ..key("grace") },
            SwitchOthers => Spec { out: Out::Others, ..key("grace") },
            SwitchLoginOthers => Spec { out: Out::Others, ..login("grace") },
            ModuleClearForm => Spec { sets_password: true, ..form },
            FailedDelete => Spec { fails: true, ..Delete.spec() },
            FailedClear => Spec { fails: true, ..Clear.spec() },
            FailedOthers => Spec { fails: true, ..Others.spec() },
            FailedOthersLogin => Spec { fails: true, ..OthersLogin.spec() },
            FailedOthersCreate => Spec { fails: true, ..OthersBind.spec() },
            BindSaveDelete => Delete.spec(),
            BindSaveClear => Clear.spec(),
            Write | Rework | Revoke | ModuleClear | ModuleClearGrace | Expire => NOTHING,
        }
    }

    pub fn user(self) -> Option<&'static str> {
        let spec = self.spec();
        spec.login.or(spec.plain)
    }

    /// Whether it is asked to end sessions.
    pub fn signs_out(self) -> bool {
        use Act::*;
        self.spec().out != Out::Nothing
            || matches!(self, DeleteSaveBind | ModuleClearForm | Revoke | ModuleClear | ModuleClearGrace)
    }

    /// Whether its handler may end nothing when no session is there, and that is done.
    pub fn may_end_nothing(self) -> bool {
        matches!(self, Self::Delete | Self::FailedDelete | Self::DeleteBind | Self::BindSaveDelete | Self::ModuleDelete)
    }

    /// Whether it may make a session to which the limit does not apply.
    pub fn is_unlimited(self) -> bool {
        self.user().is_some() && self.spec().out != Out::Nothing
    }

    /// Whether it gives the session that it came with a new ID, by which no earlier one is accepted.
    pub fn renews(self) -> bool {
        self.user().is_some() || self.spec().out == Out::Others
    }
}

/// What a handler has to do with besides its session.
pub struct Place {
    pub request: usize,
    pub shared: Arc<Shared>,
    pub sessions: Sessions<Gated>,
    /// Which password is typed in: the one that was right when the request was sent.
    pub password: usize,
    /// If a call fails, the handler tries again.
    pub tries_again: bool,
}

impl Place {
    pub async fn handle(&self, act: Act, session: Session) -> Result<StatusCode, Error> {
        let spec = act.spec();
        let mut login = None;
        if act == Act::EarlyLogin {
            login = Some(self.take_login("ada").await?);
        }
        session.load().await?;
        if spec.guarded {
            let is_allowed = match session.key().as_deref() {
                None => false,
                Some(key) => spec.plain != Some("ada") || key == "ada",
            };
            if !is_allowed {
                return Ok(StatusCode::FORBIDDEN);
            }
        }
        if act == Act::KeptLogin {
            login = Some(self.shared.kept.clone());
        }
        let takes_login = !matches!(act, Act::EarlyLogin | Act::KeptLogin | Act::LateLogin);
        if let Some(user) = spec.login.filter(|_| takes_login) {
            login = Some(self.take_login(user).await?);
        }
        if spec.checks_password && act.user() == Some("ada") {
            let jumps = self.shared.pause(self.request, Touches::Password).await;
            let is_right = self.password == self.shared.state().passwords;
            self.shared.tell(|| format!("request {}: the password is checked: {is_right}", self.request + 1));
            if !is_right {
                return Ok(StatusCode::FORBIDDEN);
            }
            self.shared.note(self.request, jumps, What::CheckedPassword);
            if spec.sets_password {
                self.shared.state().passwords += 1;
            }
        }
        if act == Act::LateLogin {
            login = Some(self.take_login("ada").await?);
        }
        match act {
            Act::Write => {
                let name = format!("w{}", self.request);
                session.modify(&name, |n: Option<u64>| n.unwrap_or(0) + 1)?;
            }
            Act::Rework => session.rework(),
            Act::ReworkSaveBind => {
                session.rework();
                session.save().await?;
            }
            Act::DeleteSaveBind => {
                session.delete();
                session.save().await?;
            }
            Act::BindSaveDelete | Act::BindSaveClear => {
                let Some(key) = session.key() else { return Ok(StatusCode::FORBIDDEN) };
                session.bind(&*key);
                match session.save().await {
                    Err(error) if error.kind() == ErrorKind::Unauthorized => return Ok(StatusCode::FORBIDDEN),
                    saved => saved?,
                }
            }
            Act::ModuleClearForm => drop(self.sessions.clear("ada").await?),
            Act::DeleteAndForget => return Ok(StatusCode::OK),
            _ => {}
        }
        match spec.out {
            Out::Nothing => {}
            Out::Delete => session.delete(),
            Out::Clear => session.clear(),
            Out::Others => session.clear_others(),
        }
        match (login, spec.plain) {
            (Some(login), _) => session.bind(login),
            (None, Some(user)) if matches!(act, Act::Create | Act::FailedOthersCreate) => {
                session.create(user, json!({}))?;
            }
            (None, Some(user)) => session.bind(user),
            (None, None) => {}
        }
        if spec.fails {
            return Ok(StatusCode::INTERNAL_SERVER_ERROR);
        }
        if self.tries_again {
            let saved = session.save().await;
            match saved {
                Err(error) if error.kind() == ErrorKind::Unavailable => session.save().await?,
                // The layer says so.
                Err(error) if act == Act::Write && error.kind() == ErrorKind::NotFound => {
                    return Ok(StatusCode::NOT_FOUND);
                }
                saved => saved?,
            }
        }
        Ok(StatusCode::OK)
    }

    async fn take_login(&self, user: &str) -> Result<jam_session::Login, Error> {
        let jumps = self.shared.pause(self.request, Touches::Time).await;
        let login = self.sessions.login(user).await?;
        self.shared.note(self.request, jumps, What::TookLogin);
        self.shared.tell(|| format!("request {}: takes a login", self.request + 1));
        Ok(login)
    }
}
