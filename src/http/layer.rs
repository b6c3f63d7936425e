//! The layer: every HTTP option is set here and nowhere else.

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
/// Unless set otherwise the cookie is `__Host-id`, with `HttpOnly`, `SameSite=Lax`, `Secure` and `Path=/`, and lives as long
/// as the session may. Layers with different cookie names may be nested; the innermost one's session is the one that
/// handlers get. A layer that meets a clone of itself steps aside; one that meets another layer with the same cookie name
/// answers 500 and says so.
///
/// A response that sets or removes the cookie gets `Cache-Control: no-store`, whatever the handler said, and so do the headers
/// for one kind of cache that it has, such as `CDN-Cache-Control` and `Surrogate-Control`.
///
/// # Panics
/// Its setters panic, in words, when what is set contradicts what was set before: such a cookie no browser would keep.
#[derive(Clone)]
#[must_use]
pub struct SessionLayer {
    config: Arc<HttpConfig>,
}

impl SessionLayer {
    /// A layer over those sessions.
    pub fn new<B: Backend>(sessions: Sessions<B>) -> Self {
        let cookie = CookieConfig::default();
        let origin =
            Origin { sessions: sessions.erase(), cookie_name: cookie.name().to_owned(), max_age: cookie.max_age() };
        Self { config: Arc::new(HttpConfig { origin: Arc::new(origin), cookie, failed_if: None }) }
    }

    /// The name of the cookie. Unless set it follows the other options: `__Host-id` if browsers take that, else
    /// `__Secure-id`, else `id`. A visitor's cookie has this name with `-visitor` behind it.
    ///
    /// # Panics
    /// If the name is no token, or one of both names has a prefix that the other options forbid.
    #[track_caller]
    pub fn cookie_name<'a>(mut self, name: impl Into<Cow<'a, str>>) -> Self {
        self.cookie().set_name(name.into());
        self.renewed()
    }

    /// Sends the cookie only below this path; `/` unless set. It is no boundary against other code on the same host.
    ///
    /// # Panics
    /// If the path does not begin with a slash, or the name forbids it.
    #[track_caller]
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.cookie().set_path(path.into());
        self.renewed()
    }

    /// Sends the cookie to this domain and all below it; to this host alone unless set. Every one of those hosts can then
    /// read the cookie and plant another.
    ///
    /// # Panics
    /// If it is not a host name, such as `https://example.com` or `example.com:8080`, or the cookie's name forbids a domain.
    #[track_caller]
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.cookie().set_domain(domain.into());
        self.renewed()
    }

    /// Sets which requests from other sites bring the cookie. Default: [`SameSite::Lax`].
    ///
    /// | | the cookie comes with | a request from another site that has no session may begin a visitor's |
    /// |---|---|---|
    /// | [`Strict`](SameSite::Strict) | requests from this site only | never |
    /// | [`Lax`](SameSite::Lax) | links from other sites, too | with a safe method, such as `GET` |
    /// | [`None`](SameSite::None) | everything, such as requests from a page that embeds this site | always |
    ///
    /// The last column keeps another site from replacing the session that the browser has: see
    /// [requests from other sites](crate::session#requests-from-other-sites). A login may come from anywhere.
    ///
    /// With `None`, browsers that block third-party cookies keep this one only if it is [`partitioned`](Self::partitioned).
    ///
    /// `Strict` needs HTTPS. Over plain HTTP a link from another site cannot be told from an address that was typed, and both
    /// come without the cookie. Under `Strict` the answer of an OAuth provider also comes without it: keep what that answer is
    /// compared with in a session of its own layer, with `Lax` and another [`cookie_name`](Self::cookie_name).
    ///
    /// # Panics
    /// If it is [`SameSite::None`] after `secure(false)`.
    #[track_caller]
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        self.cookie().set_same_site(same_site);
        self.renewed()
    }

    /// Whether the cookie travels over HTTPS alone; it does unless set otherwise. Browsers take `localhost` for secure.
    ///
    /// # Panics
    /// If it is switched off after an option that needs it.
    #[track_caller]
    pub fn secure(mut self, secure: bool) -> Self {
        self.cookie().set_secure(secure);
        self.renewed()
    }

    /// Whether scripts in the page cannot read the cookie; they cannot unless set otherwise.
    ///
    /// # Panics
    /// If it is switched off after a name that needs it: `__Http-…` or `__Host-Http-…`.
    #[track_caller]
    pub fn http_only(mut self, http_only: bool) -> Self {
        self.cookie().set_http_only(http_only);
        self.renewed()
    }

    /// Whether the cookie is another one under each top-level site that embeds this one (CHIPS); it is not unless set.
    ///
    /// # Panics
    /// If it is switched on after `secure(false)`.
    #[track_caller]
    pub fn partitioned(mut self, partitioned: bool) -> Self {
        self.cookie().set_partitioned(partitioned);
        self.renewed()
    }

    /// Whether the cookie survives the end of the browser, with a `Max-Age` of the time to the session's deadline and at
    /// most 400 days; it does unless set otherwise. The session's own limits hold either way.
    pub fn persistent(mut self, persistent: bool) -> Self {
        self.cookie().set_persistent(persistent);
        self.renewed()
    }

    /// Decides which responses discard the handler's changes, except sign-outs. Default: those with a status of 408 or 5xx, and
    /// failed gRPC calls, which have a `grpc-status` other than 0 in the response's head.
    ///
    /// A status that comes in trailers, after the body, is too late: the changes are committed when the response is ready.
    ///
    /// ```
    /// # use jam_session::{MemorySessions, SessionLayer};
    /// // Also when a form is shown again with its mistakes.
    /// let layer = SessionLayer::new(MemorySessions::new())
    ///     .failed_if(|response| response.status.is_server_error() || response.status == 422);
    /// ```
    pub fn failed_if(mut self, failed: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.config).failed_if = Some(Arc::new(failed));
        self.renewed()
    }

    fn cookie(&mut self) -> &mut CookieConfig {
        &mut Arc::make_mut(&mut self.config).cookie
    }

    /// With an origin of its own: a clone that was made before this option was set is not the same layer any more.
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
