//! A login under way: the user, and since when.

use std::{fmt, sync::Arc, time::Duration};

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
/// It is good for fifteen minutes, in the process that took it. Its age is sent to the store when the response is on its way: a
/// sign-out in the milliseconds that this call takes may be missed.
#[derive(Clone, PartialEq, Eq)]
#[must_use]
pub struct Login {
    pub(crate) key: Arc<str>,
    /// When it was taken, by the clock of its [`Sessions`](crate::Sessions).
    pub(crate) taken: Duration,
}

/// For logs: nothing of the user.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}
