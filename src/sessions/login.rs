//! A pending login: the user, and a mark of the user's last clear.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::backend::Mark;

/// A pending login, returned by [`Sessions::login`](crate::Sessions::login). It is refused if the user is signed out everywhere
/// before it is bound.
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
/// A `Login` identifies the user's last sign-out everywhere, and does not depend on clocks. It is valid for fifteen minutes, in
/// every process that shares the store. For a second factor, keep it in the visitor's session, and bind it once the code is
/// correct:
///
/// ```
/// # use jam_session::{Error, ErrorKind, Login, Session, Sessions};
/// # async fn is_right(code: &str) -> bool { true }
/// # async fn check(sessions: &Sessions, session: Session, user: &str, code: &str) -> Result<(), Error> {
/// // The first page, before the password is checked.
/// session.insert("login", sessions.login(user).await?)?;
///
/// // The second page.
/// let login: Option<Login> = session.get("login")?;
/// let login = login.ok_or_else(|| Error::new(ErrorKind::Unauthorized, "begin again"))?;
/// if !is_right(code).await {
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
/// Memory and the JSON file forget sign-outs at a restart, so a `Login` is valid there only until the store is closed.
///
/// One case goes unnoticed: Redis lost everything that it knew about the user's sign-outs (by eviction, or because an older
/// snapshot was restored), the user was not signed out in the fifteen minutes before the login, and a sign-out during the login
/// was lost as well.
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
