//! Who signs in.

use std::{borrow::Cow, fmt, sync::Arc};

use crate::{backend::Mark, sessions::login::Login};

/// Who signs in: a session key, or a [`Login`]. Made from either by `into()`.
#[derive(Clone, PartialEq, Eq)]
pub struct SignIn {
    key: Arc<str>,
    /// That of its [`Login`], if there is one.
    mark: Option<Mark>,
}

impl SignIn {
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn is_login(&self) -> bool {
        self.mark.is_some()
    }

    pub(crate) fn mark(&self) -> Option<Mark> {
        self.mark
    }
}

impl From<Login> for SignIn {
    fn from(login: Login) -> Self {
        Self { key: login.key.into(), mark: Some(login.mark) }
    }
}

impl From<&str> for SignIn {
    fn from(key: &str) -> Self {
        Self { key: key.into(), mark: None }
    }
}

impl From<String> for SignIn {
    fn from(key: String) -> Self {
        Self { key: key.into(), mark: None }
    }
}

impl From<&String> for SignIn {
    fn from(key: &String) -> Self {
        Self::from(key.as_str())
    }
}

impl From<Arc<str>> for SignIn {
    fn from(key: Arc<str>) -> Self {
        Self { key, mark: None }
    }
}

impl From<Cow<'_, str>> for SignIn {
    fn from(key: Cow<'_, str>) -> Self {
        Self::from(&*key)
    }
}

/// For logs: nothing of the user.
impl fmt::Debug for SignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignIn").finish_non_exhaustive()
    }
}
