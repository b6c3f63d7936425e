//! A pending login: the user, and a mark of the user's last clear.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::backend::terms::Mark;

/// A pending login, returned by [`Sessions::login`](crate::Sessions::login). It is refused if the user is signed out
/// everywhere before it is bound (with two [exceptions](crate::session#when-a-login-or-a-sign-out-is-refused)), or if it is
/// older than fifteen minutes.
///
/// Checking a password takes about a tenth of a second. In the meantime the user may set a new password and end all sessions. If
/// you take a `Login` before the check, the login with the old password is refused:
///
/// ```
/// # use jam_session::{Error, ErrorKind, Session, Sessions};
/// # async fn is_right(user: &str, password: &str) -> bool { true }
/// async fn log_in(sessions: Sessions, session: Session, user: String, password: String) -> Result<(), Error> {
///     let login = sessions.login(&user).await?;
///     if !is_right(&user, &password).await {
///         return Err(Error::new(ErrorKind::Unauthorized, "wrong password"));
///     }
///     session.bind(login);
///     Ok(())
/// }
/// ```
///
/// A `Login` records which "sign out everywhere" was the user's most recent one, so the check does not compare clocks. It is
/// valid for fifteen minutes, in every process that shares the store. For a second factor, keep it in the visitor's session,
/// and bind it once the code is correct too:
///
/// ```
/// # use jam_session::{Error, ErrorKind, Login, Session, Sessions};
/// # async fn is_right(user: &str, password: &str) -> bool { true }
/// # async fn is_code_right(code: &str) -> bool { true }
/// # async fn check(sessions: &Sessions, session: Session, user: &str, password: &str, code: &str) -> Result<(), Error> {
/// // The first page: take the `Login` before the password is checked, and keep it only if the password is right.
/// let login = sessions.login(user).await?;
/// if !is_right(user, password).await {
///     return Err(Error::new(ErrorKind::Unauthorized, "wrong password"));
/// }
/// session.insert("login", login)?;
///
/// // The second page: check the code.
/// let login: Option<Login> = session.get("login")?;
/// let login = login.ok_or_else(|| Error::new(ErrorKind::Unauthorized, "begin again"))?;
/// if !is_code_right(code).await {
///     return Err(Error::new(ErrorKind::Unauthorized, "wrong code"));
/// }
/// session.remove("login");
/// session.bind(login);
/// # Ok(())
/// # }
/// ```
///
/// Keep it only where the user can neither read nor change it, such as in the visitor's session. Anyone who can submit a `Login`
/// that your application binds is signed in.
///
/// # Limits
///
/// An empty session key, or one of more than 1024 bytes, is refused only when the `Login` is bound: the commit fails with
/// [`Data`](crate::ErrorKind::Data).
///
/// At a restart, memory and the JSON file forget *when users signed out everywhere*, so a `Login` is valid there only until
/// the store is closed. Ended sessions stay ended.
///
/// On Redis, one sign-out during a login can go unnoticed. All of this must happen: the user had not signed out everywhere
/// in the fifteen minutes before the login began; the user does so during the login; and Redis then loses that sign-out, by
/// eviction, in a failover, or because an older snapshot is restored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Login {
    pub(crate) key: String,
    pub(crate) mark: Mark,
}

/// Omits the user, so that it can be logged.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}
