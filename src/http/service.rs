//! The service: the life of a request, from the cookie to the response.
//!
//! ```text
//!  request ──▶ open ──▶ insert ──▶ call ─────────────▶ respond ──▶ response
//!              │        │          │                   │
//!              │        │          │                   commits what the handler changed, then sets or removes the cookie
//!              │        │          the inner service runs: extractors load the session, handlers read and change it
//!              │        the Session goes into the request's extensions
//!              finds the cookie; nothing is parsed, and the store is not asked
//! ```
//!
//! [`ResponseFuture`] is the second half.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use crate::{
    error::{Error, ErrorKind},
    http::{config::HttpConfig, cross_site::is_barred, future::ResponseFuture},
    session::{Session, driver::Driver},
};

/// The service that a [`SessionLayer`](crate::SessionLayer) wraps around another one.
#[derive(Clone)]
pub struct SessionService<S> {
    inner: S,
    config: Arc<HttpConfig>,
}

/// The session of a request that enters a layer.
enum Entered {
    New(Session),
    /// The layer was applied twice. Handlers get the session of the outer one.
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
        match self.config.open(&request) {
            Ok(Entered::New(session)) => {
                request.extensions_mut().insert(session.clone());
                ResponseFuture::new(self.inner.call(request), session, Arc::clone(&self.config))
            }
            Ok(Entered::Known(session)) => {
                request.extensions_mut().insert(session);
                ResponseFuture::passing(self.inner.call(request))
            }
            Err(error) => ResponseFuture::refusing(&error),
        }
    }
}

impl<S> SessionService<S> {
    pub(crate) fn new(inner: S, config: Arc<HttpConfig>) -> Self {
        Self { inner, config }
    }
}

impl HttpConfig {
    /// Creates the session of a request. Nothing is parsed, and the backend is not called.
    #[inline]
    fn open<B>(&self, request: &Request<B>) -> Result<Entered, Error> {
        let outer = request.extensions().get::<Session>().map(Session::driver);
        for driver in std::iter::successors(outer, |driver| Driver::outer(driver)) {
            if Arc::ptr_eq(driver.origin(), &self.origin) {
                return Ok(Entered::Known(Session::of(driver)));
            }
            if driver.origin().shares_a_name_with(&self.origin) {
                return Err(Error::new(
                    ErrorKind::Config,
                    "two SessionLayers with the same cookie name are nested: give one of them another cookie_name",
                ));
            }
        }
        let values = self.cookie.values(request.headers());
        let origin = Arc::clone(&self.origin);
        Ok(Entered::New(Session::new(origin, values, is_barred(request, &self.cookie), outer.cloned())))
    }
}

impl<S: std::fmt::Debug> std::fmt::Debug for SessionService<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionService").field("inner", &self.inner).finish_non_exhaustive()
    }
}
