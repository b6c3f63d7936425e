//! The tower layer, with every HTTP option.

use std::{borrow::Cow, fmt, sync::Arc};

use cookie::SameSite;
use http::response::Parts;
use tower_layer::Layer;

use crate::{
    backend::Backend,
    http::{config::HttpConfig, cookie::CookieConfig, service::SessionService},
    session::origin::Origin,
    sessions::Sessions,
};

/// Gives every request a [`Session`](crate::Session).
///
/// ```
/// # use axum::{Router, routing::get};
/// # use jam_session::{MemorySessions, SameSite, Session, SessionLayer};
/// let sessions = MemorySessions::new();
/// let app: Router = Router::new()
///     .route("/", get(async |_: Session| "hello"))
///     .layer(SessionLayer::new(sessions).same_site(SameSite::Strict));
/// ```
///
/// By default the cookie is `__Host-id`, with `HttpOnly`, `SameSite=Lax`, `Secure` and `Path=/`. It lasts until the session's
/// absolute timeout.
///
/// # Several layers
///
/// Layers with different cookie names may be nested. Handlers get the session of the innermost layer. Applying the same layer
/// twice is harmless: the inner one does nothing. Two different layers with the same cookie name are a mistake: requests are then
/// answered with 500, and the error says so.
///
/// # Caches
///
/// A response that sets or removes the cookie always gets `Cache-Control: no-store`. If it has a header for one kind of cache,
/// such as `CDN-Cache-Control` or `Surrogate-Control`, that one is set to `no-store` as well.
///
/// # Panics
/// A setter panics, with an explanation, if its option contradicts an earlier one in a way that would make browsers reject the
/// cookie.
#[derive(Clone)]
#[must_use]
pub struct SessionLayer {
    config: Arc<HttpConfig>,
}

impl SessionLayer {
    /// Creates a layer over these sessions, with the default options.
    pub fn new<B: Backend>(sessions: Sessions<B>) -> Self {
        let cookie = CookieConfig::default();
        let origin =
            Origin { sessions: sessions.erase(), cookie_name: cookie.name().to_owned(), max_age: cookie.max_age() };
        Self { config: Arc::new(HttpConfig { origin: Arc::new(origin), cookie, failed_if: None }) }
    }

    /// Sets the name of the cookie. Default: `__Host-id` if the other options allow it, otherwise `__Secure-id`, otherwise `id`.
    ///
    /// The cookie of a visitor's session has this name with `-visitor` appended.
    ///
    /// # Panics
    /// If the name contains a character that cookie names cannot have, or if one of the two names has a prefix that the other
    /// options forbid.
    #[track_caller]
    pub fn cookie_name<'a>(mut self, name: impl Into<Cow<'a, str>>) -> Self {
        self.cookie().set_name(name.into());
        self.renewed()
    }

    /// Sets the `Path` attribute: browsers send the cookie for this path and everything below it. Default: `/`.
    ///
    /// It does not protect the cookie from other applications on the same host.
    ///
    /// # Panics
    /// If the path does not begin with a slash, or if the cookie's name forbids it.
    #[track_caller]
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.cookie().set_path(path.into());
        self.renewed()
    }

    /// Sets the `Domain` attribute: browsers send the cookie to this domain and all its subdomains. Default: none, so that they
    /// send it only to the host that set it.
    ///
    /// Each of these hosts can then read the cookie and plant another one.
    ///
    /// # Panics
    /// If it is not a plain host name (`https://example.com` and `example.com:8080` are not), or if the cookie's name forbids a
    /// domain.
    #[track_caller]
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.cookie().set_domain(domain.into());
        self.renewed()
    }

    /// Sets the `SameSite` attribute: which requests from other sites carry the cookie. Default: [`SameSite::Lax`].
    ///
    /// | | browsers send the cookie with | a request from another site without a session may begin a visitor's session |
    /// |---|---|---|
    /// | [`Strict`](SameSite::Strict) | requests from this site only | never |
    /// | [`Lax`](SameSite::Lax) | links from other sites, too | with a safe method, such as `GET` |
    /// | [`None`](SameSite::None) | all requests, even from a page that embeds this site | always |
    ///
    /// The rule in the last column keeps another site from replacing the session that the browser has. See
    /// [requests from other sites](crate::session#requests-from-other-sites). A login may come from any site.
    ///
    /// With `None`, browsers that block third-party cookies keep the cookie only if it is [`partitioned`](Self::partitioned).
    ///
    /// `Strict` needs HTTPS. Over plain HTTP, a request from a link on another site has no cookie and no header that tells
    /// where it came from. So it cannot be distinguished from a first visit, and may begin a visitor's session that replaces
    /// the one that the browser has.
    ///
    /// Under `Strict`, the redirect back from an OAuth provider also comes without the cookie. Keep the OAuth state in the
    /// session of a second layer, with `Lax` and another [`cookie_name`](Self::cookie_name).
    ///
    /// # Panics
    /// If this is [`SameSite::None`] and `secure(false)` was set.
    #[track_caller]
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        self.cookie().set_same_site(same_site);
        self.renewed()
    }

    /// Sets the `Secure` attribute: browsers send the cookie over HTTPS only. Default: `true`.
    ///
    /// Most browsers also send it over plain HTTP to `localhost`; Safari does not.
    ///
    /// # Panics
    /// If this is `false` and an earlier option needs it.
    #[track_caller]
    pub fn secure(mut self, secure: bool) -> Self {
        self.cookie().set_secure(secure);
        self.renewed()
    }

    /// Sets the `HttpOnly` attribute: scripts in the page cannot read the cookie. Default: `true`.
    ///
    /// # Panics
    /// If this is `false` and the cookie's name needs it: `__Http-…` or `__Host-Http-…`.
    #[track_caller]
    pub fn http_only(mut self, http_only: bool) -> Self {
        self.cookie().set_http_only(http_only);
        self.renewed()
    }

    /// Sets the `Partitioned` attribute (CHIPS): one cookie for each top-level site that embeds this one. Default: `false`.
    ///
    /// # Panics
    /// If this is `true` and `secure(false)` was set.
    #[track_caller]
    pub fn partitioned(mut self, partitioned: bool) -> Self {
        self.cookie().set_partitioned(partitioned);
        self.renewed()
    }

    /// Sets whether the cookie survives a restart of the browser. Default: `true`.
    ///
    /// If it does, its `Max-Age` is the time to the session's absolute timeout, at most 400 days. The session's own timeouts
    /// apply in either case.
    #[doc(alias = "max_age", alias = "expire")]
    pub fn persistent(mut self, persistent: bool) -> Self {
        self.cookie().set_persistent(persistent);
        self.renewed()
    }

    /// Decides which responses discard the handler's changes, except sign-outs. Default: a status of 408 or 5xx, or a
    /// `grpc-status` header other than 0.
    ///
    /// This replaces the default rule, so repeat the parts of it that you want to keep. A gRPC status in the trailers comes too
    /// late, because the changes are committed before the body is sent.
    ///
    /// ```
    /// # use jam_session::{MemorySessions, SessionLayer};
    /// // The default rule without gRPC, and also when a form is shown again because of invalid input.
    /// let layer = SessionLayer::new(MemorySessions::new()).failed_if(|response| {
    ///     response.status.is_server_error() || response.status == 408 || response.status == 422
    /// });
    /// ```
    pub fn failed_if(mut self, failed: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.config).failed_if = Some(Arc::new(failed));
        self.renewed()
    }

    fn cookie(&mut self) -> &mut CookieConfig {
        &mut Arc::make_mut(&mut self.config).cookie
    }

    /// Gives the layer a new origin: a clone from before this option was set is a different layer.
    fn renewed(mut self) -> Self {
        let config = Arc::make_mut(&mut self.config);
        let (sessions, cookie_name) = (config.origin.sessions.clone(), config.cookie.name().to_owned());
        config.origin = Arc::new(Origin { sessions, cookie_name, max_age: config.cookie.max_age() });
        self
    }
}

impl<S> Layer<S> for SessionLayer {
    type Service = SessionService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionService::new(inner, Arc::clone(&self.config))
    }
}

impl fmt::Debug for SessionLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer").field("cookie", &self.config.cookie).finish_non_exhaustive()
    }
}
