//! A login under way: the user, and a mark of the user's last clear.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::backend::Mark;

/// A login that is under way, from [`Sessions::login`](crate::Sessions::login): it is refused if its user was signed out
/// everywhere since it was taken.
///
/// Checking a password takes a tenth of a second. Meanwhile the user may set a new one and end all sessions. A `Login` that is
/// taken before the check makes sure that the login with the old password does not happen:
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
/// It names the last time that the user was signed out everywhere, and goes by no clock. It is good for fifteen minutes, in every
/// process over the same store. A sign-in with a second factor keeps it in the visitor's session, and binds it when the code
/// is right:
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
/// Only keep it where its user cannot read or change it: whoever has a `Login` that an application binds, is signed in. A visitor's
/// session is such a place.
///
/// With memory and a JSON file, which forget at a restart when users were signed out, it is good until the store is closed. One
/// case is not noticed: the store has lost all that it knew of the user's sign-outs (Redis has evicted it, or was restored from
/// an older snapshot), there was none in the fifteen minutes before the login, and one during the login was lost as well.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Login {
    pub(crate) key: String,
    pub(crate) mark: Mark,
}

/// For logs: nothing of the user.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}
