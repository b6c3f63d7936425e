//! The argument of `bind` and `create`: the user who signs in.

use std::{borrow::Cow, fmt, sync::Arc};

use crate::{backend::terms::Mark, sessions::login::Login};

/// The user who signs in: a session key or a [`Login`]. Both convert into it.
#[derive(Clone, PartialEq, Eq)]
pub struct SignIn {
    key: Arc<str>,
    /// The mark of the [`Login`], if it was made from one.
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

/// Omits the user, so that it can be logged.
impl fmt::Debug for SignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignIn").finish_non_exhaustive()
    }
}
