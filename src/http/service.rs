//! The whole road: open, insert, call, close.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tower_service::Service;

use crate::{
    error::{Error, ErrorKind},
    http::{cookie::CookieConfig, future::ResponseFuture, guard::Commit},
    session::{Session, commit::Effect},
    sessions::Sessions,
};

/// What a [`SessionLayer`](crate::SessionLayer) makes of a service.
#[derive(Clone)]
pub struct SessionService<S> {
    inner: S,
    gate: Arc<Gate>,
}

/// What every request of a layer passes on its way in and out.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) sessions: Sessions,
    pub(crate) cookie: CookieConfig,
}

/// Whose request it is.
enum Visitor {
    New(Session),
    /// This very layer was passed before: what it made then is what handlers get.
    Known(Session),
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for SessionService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        match self.gate.open(&request) {
            Ok(Visitor::New(session)) => {
                request.extensions_mut().insert(session.clone());
                ResponseFuture::new(self.inner.call(request), session)
            }
            Ok(Visitor::Known(session)) => {
                request.extensions_mut().insert(session);
                ResponseFuture::passing(self.inner.call(request))
            }
            Err(error) => ResponseFuture::refusing(refuse(&error)),
        }
    }
}

impl<S> SessionService<S> {
    pub(crate) fn new(inner: S, gate: Arc<Gate>) -> Self {
        Self { inner, gate }
    }
}

impl<S: std::fmt::Debug> std::fmt::Debug for SessionService<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Gate {
    pub(crate) fn new(sessions: Sessions) -> Self {
        Self { sessions, cookie: CookieConfig::default() }
    }

    /// The session of a request, not looked at yet: nothing is parsed, and nothing asked of the backend.
    fn open<B>(self: &Arc<Self>, request: &Request<B>) -> Result<Visitor, Error> {
        let outer = request.extensions().get::<Session>();
        for session in std::iter::successors(outer, |session| session.outer()) {
            if Arc::ptr_eq(session.gate(), self) {
                return Ok(Visitor::Known(session.clone()));
            }
            if session.gate().cookie.name() == self.cookie.name() {
                return Err(Error::new(
                    ErrorKind::Config,
                    "two SessionLayers with the same cookie name are nested: give one of them another cookie_name",
                ));
            }
        }
        let values = self.cookie.values(request.headers());
        Ok(Visitor::New(Session::new(Arc::clone(self), values, is_cross_site_write(request), outer.cloned())))
    }
}

/// Begins to write back what the handler recorded. Nothing is to be awaited if that is nothing.
///
/// A server error takes back what the handler did, but not that somebody is signed out.
pub(crate) fn close<B>(session: &Session, response: &Response<B>) -> Option<Commit> {
    let failed = response.status().is_server_error() || response.status() == http::StatusCode::REQUEST_TIMEOUT;
    session.close(failed)
}

/// Says in the response's headers what became of the session.
pub(crate) fn finish<B: Default>(
    session: &Session,
    committed: Result<(), Error>,
    response: Response<B>,
) -> Response<B> {
    let mut response = match committed {
        Ok(()) => response,
        Err(error) => refuse(&error),
    };
    let Some(effect) = session.outcome() else { return response };
    add_vary_cookie(response.headers_mut());
    let gate = session.gate();
    let cookie = match effect {
        Some(Effect::Set(id, deadline)) => {
            let left = deadline.saturating_sub(gate.sessions.now());
            gate.cookie.set(&id, Duration::from_millis(left))
        }
        Some(Effect::Remove) => gate.cookie.remove(),
        None => None,
    };
    if let Some(cookie) = cookie {
        // Append, not insert: the handler may have set cookies of its own.
        response.headers_mut().append(http::header::SET_COOKIE, cookie);
        forbid_storing(response.headers_mut());
    }
    response
}

/// The response in place of the one that must not leave. Its body is empty; the error is among its extensions.
fn refuse<B: Default>(error: &Error) -> Response<B> {
    tracing::error!(%error, "a request was answered without its session");
    let mut response = Response::new(B::default());
    *response.status_mut() = error.kind().status();
    if error.kind() == ErrorKind::Unavailable {
        response.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from_static("1"));
    }
    response.extensions_mut().insert(error.clone());
    response
}

/// A form posted by another site: it must not make the browser take a session that site chose the time of.
fn is_cross_site_write<B>(request: &Request<B>) -> bool {
    !request.method().is_safe() && request.headers().get("sec-fetch-site").is_some_and(|site| site == "cross-site")
}

fn add_vary_cookie(headers: &mut http::HeaderMap) {
    let names = |value: &http::HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        value.split(',').any(|name| name.trim() == "*" || name.trim().eq_ignore_ascii_case("cookie"))
    };
    if !headers.get_all(http::header::VARY).iter().any(names) {
        headers.append(http::header::VARY, http::HeaderValue::from_static("Cookie"));
    }
}

/// A stored response with a cookie in it would hand one visitor's session to the next.
fn forbid_storing(headers: &mut http::HeaderMap) {
    let forbids = |value: &http::HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        value.split(',').any(|directive| directive.trim().eq_ignore_ascii_case("no-store"))
    };
    if !headers.get_all(http::header::CACHE_CONTROL).iter().any(forbids) {
        headers.insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    }
}
