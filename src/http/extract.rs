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

/// The session key of a request that is signed in; 401 for one that is not.
///
/// ```
/// # use jam_session::SessionKey;
/// async fn private(SessionKey(user): SessionKey) -> String {
///     format!("hello {user}")
/// }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct SessionKey(pub String);

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionKey").finish_non_exhaustive()
    }
}

/// Loads the session. 500 without the layer, 503 while the backend is away.
impl<S: Send + Sync> FromRequestParts<S> for Session {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        <Self as OptionalFromRequestParts<S>>::from_request_parts(parts, state)
            .await?
            .ok_or_else(|| Error::new(ErrorKind::Config, "no SessionLayer is around this route"))
    }
}

/// `None` only without the layer. While the backend is away it is 503 all the same: no session and no answer differ.
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

/// `None` if nobody is signed in.
impl<S: Send + Sync> OptionalFromRequestParts<S> for SessionKey {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, Error> {
        let session = <Session as FromRequestParts<S>>::from_request_parts(parts, state).await?;
        match session.key() {
            Some(key) => Ok(Some(Self(key))),
            // Whether somebody is signed in is not known if the record cannot be read.
            None => session.data().map(|_| None),
        }
    }
}

/// The status of its [kind](ErrorKind), a text for the client, `Retry-After` with a 503; and itself among the extensions.
///
/// The text only depends on the kind. What exactly happened may name paths, servers and types of the application: that is in
/// the log.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.log_answer("a request failed for its session");
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
