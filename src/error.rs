//! The error type, and the kinds to branch on.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc};

use crate::{
    events::Refusal,
    log::{self, RateLimit},
};

/// Any error: the error type of a [`Backend`](crate::Backend) and of a [`Serializer`](crate::Serializer).
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The error type of this crate: a message, a [kind](ErrorKind) to branch on, and the cause as [`source`](StdError::source).
///
/// None of `Debug`, `Display` and the source shows a session ID, a session key or data, unless the errors of your own
/// backend do.
///
/// With the feature `axum` it can be returned as a response, and it is the rejection of the extractors. [`ErrorKind`] lists the
/// status codes.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// What went wrong, for code to branch on. The docs of each kind begin with the HTTP status that the layer and the extractors
/// answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// 404: the session was not found. It expired, was ended, or never existed.
    NotFound,
    /// 500: the configuration cannot work. The message says what to change.
    Config,
    /// 503: the store failed, or did not answer in time. If the message does not say otherwise, it is unknown whether a change
    /// was applied. The browser keeps its cookie, so a retry may succeed.
    Unavailable,
    /// 500: the record exists, but it cannot be read. It is left unchanged.
    Unreadable,
    /// 500: an encrypted record cannot be read, because it was altered, cut or moved. See [`keyring`](crate::keyring).
    Corrupt,
    /// 500: an encrypted record cannot be read, because its encryption key is not on the [`Keyring`](crate::Keyring). Add that
    /// key with [`also_opens`](crate::Keyring::also_opens).
    WrongKey,
    /// 500: a value does not serialize, or does not deserialize as the requested type; or a session key is empty or too long.
    Data,
    /// 507: the record would be larger than [`max_size`](crate::Builder::max_size). Nothing was applied.
    TooLarge,
    /// 500: the session was read before [`load`](crate::Session::load).
    NotLoaded,
    /// 500, which the client never sees: the change needs a new cookie, but the response has already been sent.
    /// [`Session::save`](crate::Session::save) in a stream or a task returns it.
    ResponseSent,
    /// 401: the request is not signed in. Or: a login or a sign-out was refused, because the request's session has ended or has
    /// a newer ID, or because the user was signed out everywhere in the meantime. See [when a login or a sign-out is
    /// refused](crate::session#when-a-login-or-a-sign-out-is-refused).
    Unauthorized,
    /// 409: the user already has as many sessions as [`sessions_per_key`](crate::Builder::sessions_per_key) allows, and that
    /// limit [refuses](crate::Limit::refuse) more. End one of them first: [`list`](crate::Sessions::list) returns them.
    Full,
    /// 403: the request came from another site and has no session, so it must not begin a visitor's session.
    ///
    /// Browsers send such a request without the session cookie. A new session would replace the one that the browser may have.
    ///
    /// [`Session::save`](crate::Session::save) returns this error. Without `save`, what the handler wrote is dropped, and the
    /// response is sent unchanged. A login is never refused for this reason. [`same_site`](crate::SessionLayer::same_site)
    /// decides which requests this concerns: see [requests from other sites](crate::session#requests-from-other-sites).
    ///
    /// These requests are typical:
    ///
    /// * **A login provider's `POST`**: SAML, and OpenID Connect with `response_mode=form_post`. Under `Lax` it comes without
    ///   the visitor's session, and so without any state that was kept there. Keep that state in the session of [a second
    ///   layer](crate::SessionLayer#several-layers), with [`SameSite::None`](crate::SameSite::None) and another
    ///   [`cookie_name`](crate::SessionLayer::cookie_name).
    /// * **Every redirect from an OAuth provider under [`SameSite::Strict`](crate::SameSite::Strict)**, even by `GET`. Keep its
    ///   state in the session of a second layer, with `Lax`.
    /// * **The first `POST` from a sibling subdomain over plain HTTP.** It counts as coming from another site, because this
    ///   crate has no list of public suffixes. If both hosts are within one [`domain`](crate::SessionLayer::domain), they are
    ///   one site.
    CrossSite,
}

impl Error {
    /// Creates an error of a kind, for a [`Backend`](crate::Backend) that can say more than [`ErrorKind::Unavailable`].
    ///
    /// The message should be lowercase, say what was being done, and contain no session ID, session key or data.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Wraps an error of the backend. An error of our own type is passed on unchanged.
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
        Self::new(ErrorKind::NotFound, "the session was not found: it expired, was ended, or never existed")
    }

    pub(crate) fn cross_site() -> Self {
        Self::new(ErrorKind::CrossSite, "a request from another site must not begin a visitor's session")
    }

    pub(crate) fn not_newest() -> Self {
        Self::new(ErrorKind::Unauthorized, "this ID is no longer valid for its session: sign in again")
    }

    pub(crate) fn refused(why: Refusal) -> Self {
        match why {
            Refusal::NotNewest => Self::not_newest(),
            Refusal::Cleared => Self::new(
                ErrorKind::Unauthorized,
                "all sessions of the user were ended since this login began: sign in again",
            ),
            Refusal::Full => Self::new(
                ErrorKind::Full,
                "the user has as many sessions as sessions_per_key allows: end one of them first",
            ),
            Refusal::CrossSite => Self::cross_site(),
        }
    }

    pub(crate) fn too_late() -> Self {
        Self::new(ErrorKind::Unavailable, "the store did not answer within `request_time`")
    }

    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Unavailable, "the sessions are closed: `close` was called")
    }

    /// The message and all its causes, for a line in the log. Response bodies say less.
    pub(crate) fn chain(&self) -> Chain<'_> {
        Chain(self)
    }

    /// Whether clients can cause this error at will. If so, it is logged at `debug` only.
    pub(crate) fn is_clients(&self) -> bool {
        use ErrorKind::{CrossSite, Full, NotFound, TooLarge, Unauthorized};
        matches!(self.kind, Unauthorized | CrossSite | NotFound | TooLarge | Full)
    }

    /// Whether a record could not be read. The engine logs a warning about it.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self.kind, ErrorKind::Unreadable | ErrorKind::Corrupt | ErrorKind::WrongKey)
    }

    /// Logs an error that is not returned to any caller.
    pub(crate) fn log(&self, what: &'static str) {
        let error = self.chain();
        match if self.is_clients() { None } else { RateLimit::of_process().admit(what) } {
            Some(repeats) => log::warn!(repeats, %error, "{what}"),
            None => log::debug!(%error, "{what}"),
        }
    }

    /// Logs an error that a request is answered with.
    ///
    /// Errors that clients can cause are logged at `debug`. So are failures of the store and unreadable records, because the
    /// engine logs a warning about them. Everything else needs the operator's attention.
    pub(crate) fn log_answer(&self, what: &'static str) {
        let error = self.chain();
        let is_known = self.is_clients() || self.is_unreadable() || self.kind == ErrorKind::Unavailable;
        // One error must not keep a different one out of the log.
        let message = if let Cow::Borrowed(message) = self.message { message } else { what };
        match if is_known { None } else { RateLimit::of_process().admit(message) } {
            Some(repeats) => log::error!(repeats, %error, "{what}"),
            None => log::debug!(%error, "{what}"),
        }
    }

    /// Returns what went wrong, for code to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl ErrorKind {
    /// Returns the status code that the layer and the extractors answer with.
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
