//! The one error of this crate, and the kinds to branch on.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc};

use crate::{events::Refusal, log};

/// Any error at all: what a [`Backend`](crate::Backend) or a [`Serializer`](crate::Serializer) may fail with.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Says what was being done when it failed, of which [kind](ErrorKind) the failure is, and carries the cause.
///
/// Neither `Debug`, `Display` nor the source shows a session ID, a session key or data, as long as the errors of a
/// backend of one's own do not.
///
/// With the feature `axum` it is a response, and the rejection of the extractors; see [`ErrorKind`] for the status codes.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// What went wrong, for code to branch on. The number is the HTTP status that the layer and the extractors answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// 404: the session is not there: never was, expired, or ended.
    NotFound,
    /// 500: something was set up in a way that cannot work.
    Config,
    /// 503: the backend did not answer, or not in time. Nothing is known to have changed; the cookie is kept.
    Unavailable,
    /// 500: the record is there, but it cannot be read. It stays as it is.
    Unreadable,
    /// 500: the same, because a sealed record was altered, cut or moved. See [`keyring`](crate::keyring).
    Corrupt,
    /// 500: the same, because a record was sealed with a key that is not on the [`Keyring`](crate::Keyring).
    WrongKey,
    /// 500: a value does not serialize, or not deserialize as the type asked for, or a session key is empty or too long.
    Data,
    /// 507: the record would be larger than `max_size`. Nothing was applied.
    TooLarge,
    /// 500: the session was read before [`load`](crate::Session::load).
    NotLoaded,
    /// 500: the response has left, and with it the last chance to set a cookie.
    ResponseSent,
    /// 401: the request is not signed in, or a login or a sign-out was refused because its session has ended, or has a newer ID,
    /// or because the user was signed out everywhere.
    Unauthorized,
    /// 409: the user has as many sessions as [`sessions_per_key`](crate::Builder::sessions_per_key) allows, and it is set to refuse
    /// more. One of them has to end first: the user's [list](crate::Sessions::list) says which there are.
    Full,
    /// 403: the request came from another site and has no session, so it must not begin a visitor's session.
    ///
    /// Such a request comes without the cookie of the session that the browser may have, and a new session would replace that
    /// one. [`Session::save`](crate::Session::save) returns this error; without `save` the response leaves as it is, and what the
    /// handler wrote is dropped. A login is never refused for this. Which requests are meant depends on
    /// [`same_site`](crate::SessionLayer::same_site): see the [docs of `session`](crate::session#requests-from-other-sites).
    ///
    /// These requests are typical:
    ///
    /// * **A login provider's `POST`**: SAML, and OpenID Connect with `response_mode=form_post`. Under `Lax` it comes without the
    ///   visitor's session, and so without a state that was kept there. Keep that state in a session of its own layer, with
    ///   [`SameSite::None`](crate::SameSite::None) and another [`cookie_name`](crate::SessionLayer::cookie_name).
    /// * **Every OAuth answer under [`SameSite::Strict`](crate::SameSite::Strict)**, also by `GET`. Keep its state in the same way,
    ///   with `Lax`. `Strict` needs HTTPS: over plain HTTP a link from another site is not recognised.
    /// * **The first `POST` from a sibling subdomain over plain HTTP.** It counts as one from another site, because there is no
    ///   list of public suffixes here. A [`domain`](crate::SessionLayer::domain) that both hosts are in makes them one site.
    CrossSite,
}

impl Error {
    /// An error of that kind, for a [`Backend`](crate::Backend) that knows better than [`ErrorKind::Unavailable`]. The
    /// message is lowercase, says what was being done, and shows no ID, key or data.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// A failure of the backend. One of our own errors passes as it is.
    pub(crate) fn backend(doing: &'static str, source: BoxError) -> Self {
        match source.downcast::<Self>() {
            Ok(own) => *own,
            Err(source) => Self { kind: ErrorKind::Unavailable, message: doing.into(), source: Some(source.into()) },
        }
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        message: impl Into<Cow<'static, str>>,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(Arc::new(source)) }
    }

    pub(crate) fn not_found() -> Self {
        Self::new(ErrorKind::NotFound, "there is no such session")
    }

    pub(crate) fn cross_site() -> Self {
        Self::new(ErrorKind::CrossSite, "a request from another site must not begin a visitor's session")
    }

    pub(crate) fn not_newest() -> Self {
        Self::new(ErrorKind::Unauthorized, "this ID is not valid for its session any more")
    }

    pub(crate) fn cleared() -> Self {
        Self::new(ErrorKind::Unauthorized, CLEARED)
    }

    pub(crate) fn full() -> Self {
        Self::new(ErrorKind::Full, "the user has as many sessions as sessions_per_key allows: end one of them first")
    }

    pub(crate) fn too_late() -> Self {
        Self::new(ErrorKind::Unavailable, "the sessions did not answer in time")
    }

    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Unavailable, "the sessions are closed")
    }

    /// What was refused, if it is one of the refusals that are [events](crate::events).
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self.kind {
            ErrorKind::Unauthorized if self.message == CLEARED => Some(Refusal::Cleared),
            ErrorKind::Unauthorized => Some(Refusal::NotNewest),
            ErrorKind::Full => Some(Refusal::Full),
            ErrorKind::CrossSite => Some(Refusal::CrossSite),
            _ => None,
        }
    }

    /// The message and all its causes, for a line in a log. Bodies of responses have less.
    pub(crate) fn chain(&self) -> Chain<'_> {
        Chain(self)
    }

    /// Whether the client caused it, and may do so at will: no line for the operator then.
    pub(crate) fn is_clients(&self) -> bool {
        use ErrorKind::{CrossSite, Full, NotFound, TooLarge, Unauthorized};
        matches!(self.kind, Unauthorized | CrossSite | NotFound | TooLarge | Full)
    }

    /// Logs an error that no caller is told.
    pub(crate) fn log(&self, what: &str) {
        match self.is_clients() {
            true => log::debug!(error = %self.chain(), "{what}"),
            false => log::warn!(error = %self.chain(), "{what}"),
        }
    }

    /// Logs an error that a request is answered with. What a client causes is no line for the operator, and that the store fails
    /// is one only when it begins.
    pub(crate) fn log_answer(&self, what: &str) {
        match self.is_clients() || self.kind == ErrorKind::Unavailable {
            true => log::debug!(error = %self.chain(), "{what}"),
            false => log::error!(error = %self.chain(), "{what}"),
        }
    }

    /// What went wrong, for code to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl ErrorKind {
    /// The status code that the layer and the extractors answer with.
    pub fn status(self) -> http::StatusCode {
        use http::StatusCode;
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::CrossSite => StatusCode::FORBIDDEN,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooLarge => StatusCode::INSUFFICIENT_STORAGE,
            Self::Full => StatusCode::CONFLICT,
            Self::Config
            | Self::Unreadable
            | Self::Corrupt
            | Self::WrongKey
            | Self::Data
            | Self::NotLoaded
            | Self::ResponseSent => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An error and all its causes, separated by colons.
pub(crate) struct Chain<'a>(&'a Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

const CLEARED: &str = "all sessions of the user were ended since this login began: sign in again";
