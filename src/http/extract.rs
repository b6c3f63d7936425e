//! `Session`, `Option<Session>` and `SessionKey` as axum extractors, and errors as responses.

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header, request::Parts};

use crate::{
    error::{Error, ErrorKind},
    session::Session,
};

/// Extracts the session key of the signed-in user. A request that is not signed in is answered with 401.
///
/// With `Option<SessionKey>`, such a request gets `None` instead.
///
/// ```
/// # use jam_session::SessionKey;
/// async fn private(SessionKey(user): SessionKey) -> String {
///     format!("hello {user}")
/// }
/// ```
///
/// # Errors
/// Both forms are rejected with an [`Error`]:
///
/// * 503 if the store fails, because it is not known then whether the user is signed in.
/// * 500 if the session's record cannot be read, for the same reason.
/// * 500 if the route has no [`SessionLayer`](crate::SessionLayer).
#[derive(Clone, PartialEq, Eq)]
#[doc(alias = "user", alias = "login_required", alias = "principal")]
pub struct SessionKey(pub String);

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionKey").finish_non_exhaustive()
    }
}

/// Extracts the session, loaded.
///
/// # Errors
/// 500 if the route has no [`SessionLayer`](crate::SessionLayer), and 503 if the store fails. If the record cannot be read, the
/// extraction succeeds and [`get`](Session::get) fails.
impl<S: Send + Sync> FromRequestParts<S> for Session {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        <Self as OptionalFromRequestParts<S>>::from_request_parts(parts, state).await?.ok_or_else(|| {
            Error::new(ErrorKind::Config, "there is no SessionLayer around this route: add one with Router::layer")
        })
    }
}

/// Extracts the session, loaded, or `None` if the route has no [`SessionLayer`](crate::SessionLayer). A visitor's request gets
/// `Some`.
///
/// # Errors
/// 503 if the store fails, because that is not the same as having no session.
impl<S: Send + Sync> OptionalFromRequestParts<S> for Session {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Error> {
        let Some(session) = parts.extensions.get::<Self>() else { return Ok(None) };
        let session = session.clone();
        session.load().await?;
        Ok(Some(session))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SessionKey {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        <Self as OptionalFromRequestParts<S>>::from_request_parts(parts, state)
            .await?
            .ok_or_else(|| Error::new(ErrorKind::Unauthorized, "sign in first"))
    }
}

/// Extracts `None` if the request is not signed in. The errors are those of [`SessionKey`].
impl<S: Send + Sync> OptionalFromRequestParts<S> for SessionKey {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, Error> {
        let session = <Session as FromRequestParts<S>>::from_request_parts(parts, state).await?;
        match session.key() {
            Some(key) => Ok(Some(Self(key))),
            // If the record cannot be read, it is not known whether a user is signed in.
            None => session.data().map(|_| None),
        }
    }
}

/// Returns a response with the status of the error's [kind](ErrorKind) and a text for the client, and with `Retry-After` if the
/// status is 503. The error itself is in the response's extensions.
///
/// The text depends only on the kind. The details go to the log, because they may name paths, servers and types of the
/// application.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.log_answer("a request was answered with a session error");
        let text = match self.kind() {
            ErrorKind::NotFound => "there is no such session",
            ErrorKind::Unauthorized => "sign in first",
            ErrorKind::Full => "this user has too many sessions: end one of them first",
            ErrorKind::CrossSite => "this request came from another site",
            ErrorKind::Unavailable => "sessions are not available at the moment, try again",
            ErrorKind::TooLarge => "the session is too large",
            ErrorKind::Data => "a value does not fit the session",
            ErrorKind::Config => "sessions are not set up correctly: is a SessionLayer around this route?",
            ErrorKind::Unreadable
            | ErrorKind::Corrupt
            | ErrorKind::WrongKey
            | ErrorKind::NotLoaded
            | ErrorKind::ResponseSent => "the session cannot be used",
        };
        let mut response = (self.kind().status(), text).into_response();
        if self.kind() == ErrorKind::Unavailable {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response.extensions_mut().insert(self);
        response
    }
}
